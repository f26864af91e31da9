/* cli/cmd_usage.c - `realm usage`: the ledger, or with --engine the engine's own counters that it must add up to. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/alloc.h"
#include "cli/args.h"
#include "cli/cli.h"
#include "data/data.h"
#include "store/store.h"

#define OUTPUT_MAX ((size_t)64 << 20)

enum { OPT_STATE = 1, OPT_TENANT, OPT_SINCE, OPT_ENGINE };
static const realm_option options[] = {{"--state", OPT_STATE, true},
                                       {"--tenant", OPT_TENANT, true},
                                       {"--since", OPT_SINCE, true},
                                       {"--engine", OPT_ENGINE, false}};

typedef struct listing {
    bool json;
    realm_buf out;
    realm_json_writer w;
} listing;

static bool list_one(void *user, const char *name, const realm_usage *u) {
    listing *l = user;
    if (l->json) {
        realm_json_begin_object(&l->w);
        realm_json_key(&l->w, "tenant");
        realm_json_write_cstr(&l->w, name);
#define WRITE(field)               \
    realm_json_key(&l->w, #field); \
    realm_json_write_uint(&l->w, u->field);
        REALM_USAGE_FIELDS(WRITE)
#undef WRITE
        realm_json_end_object(&l->w);
    } else {
        (void)realm_buf_printf(&l->out, "%-32s %10llu %10llu %14llu %14llu %14llu %12.3f %12.3f\n", name,
                               (unsigned long long)u->requests, (unsigned long long)u->aborted_requests,
                               (unsigned long long)u->prompt_tokens, (unsigned long long)u->cached_tokens,
                               (unsigned long long)u->completion_tokens, (double)u->program_cpu_ns / 1e9,
                               (double)u->tensor_ns / 1e9);
    }
    return realm_buf_status(&l->out) == REALM_OK;
}

static realm_status print_engine(realm_store *store, listing *l, realm_error *err) {
    realm_usage u;
    realm_status s = realm_store_usage_engine(store, &u, err);
    if (s != REALM_OK) return s;
    const struct {
        const char *key;
        uint64_t value;
    } fields[] = {{"prompt_tokens", u.prompt_tokens},
                  {"cached_tokens", u.cached_tokens},
                  {"completion_tokens", u.completion_tokens},
                  {"program_cpu_ns", u.program_cpu_ns},
                  {"tensor_ns", u.tensor_ns}};
    if (l->json) realm_json_begin_object(&l->w);
    for (size_t i = 0; i < REALM_ARRAY_LEN(fields); i++) {
        if (l->json) {
            realm_json_key(&l->w, fields[i].key);
            realm_json_write_uint(&l->w, fields[i].value);
        } else {
            (void)realm_buf_printf(&l->out, "%s %llu\n", fields[i].key, (unsigned long long)fields[i].value);
        }
    }
    if (l->json) {
        realm_json_end_object(&l->w);
        (void)realm_buf_putc(&l->out, '\n');
    }
    return REALM_OK;
}

static realm_status print_tenants(realm_store *store, listing *l, const char *tenant, int64_t since_s,
                                  realm_error *err) {
    realm_tenant_row row;
    realm_status s = tenant ? realm_store_tenant_find(store, tenant, &row, err) : REALM_OK;
    if (s != REALM_OK) return s;
    if (l->json)
        realm_json_begin_array(&l->w);
    else
        (void)realm_buf_printf(&l->out, "%-32s %10s %10s %14s %14s %14s %12s %12s\n", "tenant", "requests", "aborted",
                               "prompt", "cached", "completion", "cpu s", "tensor s");
    s = realm_store_usage_each(store, tenant, since_s, list_one, l, err);
    if (l->json) {
        realm_json_end_array(&l->w);
        (void)realm_buf_putc(&l->out, '\n');
    }
    return s;
}

/* Seconds since 1970, or a date "2026-11-01" or time "2026-11-01T12:00:00" (UTC). */
static bool parse_since(const char *s, int64_t *since_s) {
    static const char *const formats[] = {"%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%SZ"};
    for (size_t i = 0; i < REALM_ARRAY_LEN(formats); i++) {
        struct tm tm = {0};
        const char *end = strptime(s, formats[i], &tm);
        if (!end || *end != '\0') continue;
        *since_s = (int64_t)timegm(&tm);
        return true;
    }
    char *rest;
    *since_s = (int64_t)strtoll(s, &rest, 10);
    return s[0] >= '0' && s[0] <= '9' && *rest == '\0';
}

int realm_cmd_usage(int argc, char **argv) {
    static const char usage[] = "usage: realm usage [--tenant NAME] [--since T] [--engine]\n";
    static const char help[] =
        "\nRequests, tokens and time per tenant, from the ledger: the CPU time of its programs, and\n"
        "for how long their tensor calls held the device (in JSON both are nanoseconds).\n\n"
        "  --tenant NAME      one tenant\n"
        "  --since T          from this minute on: 2026-11-01, 2026-11-01T12:00:00 or seconds\n"
        "  --engine           what was counted in all; the ledger's sum equals it\n"
        "  --state DIR        where tenants, keys and the ledger are kept\n";
    realm_args args = {.command = "usage",
                       .usage = usage,
                       .help = help,
                       .options = options,
                       .n_options = REALM_ARRAY_LEN(options),
                       .prints_data = true,
                       .argc = argc,
                       .argv = argv,
                       .at = 1};
    const char *state_arg = NULL, *tenant = NULL, *value;
    int64_t since_s = 0;
    bool engine = false;
    for (int id; (id = realm_args_next(&args, &value)) != -1;) {
        if (id == -2) return args.status;
        if (id == OPT_STATE) state_arg = value;
        if (id == OPT_TENANT) tenant = value;
        if (id == OPT_ENGINE) engine = true;
        if (id == OPT_SINCE && !parse_since(value, &since_s))
            return realm_args_usage(&args, "--since takes a date, a time or seconds, not ", value);
        if (id == 0) return realm_args_usage(&args, "one argument too many: ", value);
    }
    if (engine && (tenant || since_s)) return realm_args_usage(&args, "--engine stands alone", "");

    realm_error err = {0};
    realm_store *store = NULL;
    listing l = {.json = args.json};
    char *state = realm_state_dir(state_arg);
    realm_buf_init(&l.out, OUTPUT_MAX);
    realm_json_writer_init(&l.w, &l.out);
    realm_status s = state ? realm_store_open(&store, state, &err)
                           : realm_error_set(&err, REALM_E_NOT_FOUND, "no state folder: set HOME or give --state");
    if (s == REALM_OK) s = engine ? print_engine(store, &l, &err) : print_tenants(store, &l, tenant, since_s, &err);
    realm_store_close(store);
    realm_free(state);
    if (s == REALM_OK) return realm_print("usage", &l.out);
    realm_buf_release(&l.out);
    return realm_fail("usage", &err);
}
