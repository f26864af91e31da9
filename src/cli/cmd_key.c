/* cli/cmd_key.c - `realm key create / list / revoke`: a new key's secret is its last line on stdout, shown once. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "cli/args.h"
#include "cli/cli.h"
#include "cli/listing.h"
#include "crypto/crypto.h"

#define OUTPUT_MAX ((size_t)1 << 20)

enum { OPT_STATE = 1, OPT_EXPIRES, OPT_ADMIN };
static const realm_option options[] = {
    {"--state", OPT_STATE, true}, {"--expires", OPT_EXPIRES, true}, {"--admin", OPT_ADMIN, false}, {0}};

static const char usage[] = "usage: realm key create TENANT [--expires D]\n"
                            "       realm key create --admin [--expires D]\n"
                            "       realm key list | revoke ID-or-KEY\n";

/* "90d", "12h", "30m", "45s" from now, or a date or time (UTC) that has not passed. */
static bool parse_expiry(const char *s, int64_t *expires_s) {
    char *rest;
    if (realm_time_parse(s, expires_s)) return *expires_s > realm_clock_wall_s();
    unsigned long long n = strtoull(s, &rest, 10);
    if (s[0] < '0' || s[0] > '9' || n == 0 || n > 1000000 || rest[0] == '\0' || rest[1] != '\0') return false;
    int64_t unit = rest[0] == 'd' ? 86400 : rest[0] == 'h' ? 3600 : rest[0] == 'm' ? 60 : rest[0] == 's' ? 1 : 0;
    *expires_s = realm_clock_wall_s() + (int64_t)n * unit;
    return unit > 0;
}

static void write_key(realm_json_writer *w, const realm_key_row *k, const char *secret) {
    realm_json_begin_object(w);
    realm_json_key(w, "id");
    realm_json_write_cstr(w, k->id);
    realm_json_key(w, "tenant");
    realm_json_write_cstr(w, k->admin ? NULL : k->tenant);
    realm_json_key(w, "admin");
    realm_json_write_bool(w, k->admin);
    realm_json_key(w, "created");
    realm_json_write_int(w, k->created_s);
    realm_json_key(w, "expires");
    if (k->expires_s)
        realm_json_write_int(w, k->expires_s);
    else
        realm_json_write_null(w);
    if (secret) {
        realm_json_key(w, "key");
        realm_json_write_cstr(w, secret);
    } else {
        realm_json_key(w, "revoked");
        realm_json_write_bool(w, k->revoked);
    }
    realm_json_end_object(w);
}

static bool list_one(void *user, const realm_key_row *k) {
    realm_listing *l = user;
    if (l->json)
        write_key(&l->w, k, NULL);
    else
        (void)realm_buf_printf(&l->out, "%s  %-24s %s\n", k->id, k->admin ? "(admin)" : k->tenant,
                               k->revoked                                             ? "revoked"
                               : k->expires_s && k->expires_s <= realm_clock_wall_s() ? "expired"
                                                                                      : "valid");
    return realm_buf_status(&l->out) == REALM_OK;
}

static int list(realm_store *store, bool json) {
    realm_listing l;
    realm_error err = {0};
    realm_listing_begin(&l, json);
    realm_status s = realm_store_key_each(store, list_one, &l, &err);
    return realm_listing_end(&l, "key list", s, &err);
}

static int create(realm_store *store, const char *tenant, bool admin, int64_t expires_s, bool json) {
    char key[REALM_KEY_TEXT_MAX];
    realm_key_row row;
    realm_error err = {0};
    realm_buf out;
    if (realm_store_key_create(store, tenant, admin, expires_s, key, &row, &err) != REALM_OK)
        return realm_fail("key create", &err);
    realm_buf_init(&out, OUTPUT_MAX);
    if (json) {
        realm_json_writer w;
        realm_json_writer_init(&w, &out);
        write_key(&w, &row, key);
        (void)realm_buf_putc(&out, '\n');
    } else {
        fprintf(stderr, "key %s for %s; it is shown this once:\n", row.id, admin ? "the admin listener" : tenant);
        (void)realm_buf_printf(&out, "%s\n", key);
    }
    realm_secret_wipe(key, sizeof key);
    int status = realm_print("key create", &out);
    if (status != REALM_EXIT_DONE && realm_store_key_revoke(store, row.id, &err) != REALM_OK) /* nobody has seen it */
        return realm_fail("key create", &err);
    return status;
}

int realm_cmd_key(int argc, char **argv) {
    static const char help[] = "\nA running server takes new keys at once and drops revoked ones at once.\n\n"
                               "  --expires D        90d, 12h, 30m from now, or a date to come as 2027-01-31\n"
                               "  --admin            a key for the admin listener instead of a tenant\n"
                               "  --state DIR        where tenants, keys and the ledger are kept\n";
    realm_args args = {.command = "key",
                       .usage = usage,
                       .help = help,
                       .options = options,
                       .words_max = 2,
                       .prints_data = true,
                       .argc = argc,
                       .argv = argv};
    const char *state = NULL, *value;
    bool admin = false, expires = false;
    int64_t expires_s = 0;
    for (int id; (id = realm_args_next(&args, &value)) != 0;) {
        if (id < 0) return args.status;
        if (id == OPT_STATE) state = value;
        if (id == OPT_ADMIN) admin = true;
        if (id == OPT_EXPIRES) expires = true;
        if (id == OPT_EXPIRES && !parse_expiry(value, &expires_s))
            return realm_args_usage(&args, "--expires takes 90d, 12h, 30m or a date to come as 2027-01-31, not ",
                                    value);
    }
    enum { CREATE, LIST, REVOKE };
    const realm_action actions[] = {[CREATE] = {"create", admin ? NULL : "a tenant's name"},
                                    [LIST] = {"list", NULL},
                                    [REVOKE] = {"revoke", "a key or its id"}};
    int action = realm_args_action(&args, actions, REALM_ARRAY_LEN(actions));
    if (action < 0) return args.status;
    if (action != CREATE && (admin || expires))
        return realm_args_usage(&args, "--admin and --expires are for create, not ", args.words[0]);

    realm_error err = {0};
    realm_store *store = NULL;
    if (realm_open_store(state, &store, &err) != REALM_OK) return realm_fail("key", &err);
    int status;
    if (action == CREATE)
        status = create(store, args.words[1], admin, expires_s, args.json);
    else if (action == LIST)
        status = list(store, args.json);
    else
        status = realm_store_key_revoke(store, args.words[1], &err) == REALM_OK ? REALM_EXIT_DONE
                                                                                : realm_fail("key revoke", &err);
    realm_store_close(store);
    return status;
}
