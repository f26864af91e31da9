/* cli/cmd_usage.c - `realm usage`: the ledger, or with --engine the engine's own counters that it must add up to. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/args.h"
#include "cli/cli.h"
#include "cli/listing.h"

#define OUTPUT_MAX ((size_t)1 << 20)

enum { OPT_STATE = 1, OPT_TENANT, OPT_SINCE, OPT_ENGINE };
static const realm_option options[] = {{"--state", OPT_STATE, true},
                                       {"--tenant", OPT_TENANT, true},
                                       {"--since", OPT_SINCE, true},
                                       {"--engine", OPT_ENGINE, false},
                                       {0}};

static bool list_one(void *user, const char *name, const realm_usage *u) {
    realm_listing *l = user;
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

static int print_tenants(realm_store *store, const char *tenant, int64_t since_s, bool json) {
    realm_tenant_row row;
    realm_error err = {0};
    realm_listing l;
    if (tenant && realm_store_tenant_find(store, tenant, &row, &err) != REALM_OK) return realm_fail("usage", &err);
    realm_listing_begin(&l, json);
    if (!json)
        (void)realm_buf_printf(&l.out, "%-32s %10s %10s %14s %14s %14s %12s %12s\n", "tenant", "requests", "aborted",
                               "prompt", "cached", "completion", "cpu s", "tensor s");
    realm_status s = realm_store_usage_each(store, tenant, since_s, list_one, &l, &err);
    return realm_listing_end(&l, "usage", s, &err);
}

static int print_engine(realm_store *store, bool json) {
    realm_usage u;
    realm_error err = {0};
    realm_buf out;
    realm_json_writer w;
    if (realm_store_usage_engine(store, &u, &err) != REALM_OK) return realm_fail("usage", &err);
    const struct {
        const char *key;
        uint64_t value;
    } fields[] = {{"prompt_tokens", u.prompt_tokens},
                  {"cached_tokens", u.cached_tokens},
                  {"completion_tokens", u.completion_tokens},
                  {"program_cpu_ns", u.program_cpu_ns},
                  {"tensor_ns", u.tensor_ns}};
    realm_buf_init(&out, OUTPUT_MAX);
    realm_json_writer_init(&w, &out);
    if (json) realm_json_begin_object(&w);
    for (size_t i = 0; i < REALM_ARRAY_LEN(fields); i++) {
        if (json) {
            realm_json_key(&w, fields[i].key);
            realm_json_write_uint(&w, fields[i].value);
        } else {
            (void)realm_buf_printf(&out, "%s %llu\n", fields[i].key, (unsigned long long)fields[i].value);
        }
    }
    if (json) {
        realm_json_end_object(&w);
        (void)realm_buf_putc(&out, '\n');
    }
    return realm_print("usage", &out);
}

/* Seconds since 1970, or a date or time. */
static bool parse_since(const char *s, int64_t *since_s) {
    if (realm_time_parse(s, since_s)) return true;
    char *rest;
    errno = 0;
    *since_s = (int64_t)strtoll(s, &rest, 10);
    return s[0] >= '0' && s[0] <= '9' && *rest == '\0' && errno == 0;
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
                       .prints_data = true,
                       .argc = argc,
                       .argv = argv};
    const char *state = NULL, *tenant = NULL, *value;
    int64_t since_s = 0;
    bool engine = false;
    for (int id; (id = realm_args_next(&args, &value)) != 0;) {
        if (id < 0) return args.status;
        if (id == OPT_STATE) state = value;
        if (id == OPT_TENANT) tenant = value;
        if (id == OPT_ENGINE) engine = true;
        if (id == OPT_SINCE && !parse_since(value, &since_s))
            return realm_args_usage(&args, "--since takes a date, a time or seconds, not ", value);
    }
    if (engine && (tenant || since_s)) return realm_args_usage(&args, "--engine stands alone", "");

    realm_error err = {0};
    realm_store *store = NULL;
    if (realm_open_store(state, &store, &err) != REALM_OK) return realm_fail("usage", &err);
    int status = engine ? print_engine(store, args.json) : print_tenants(store, tenant, since_s, args.json);
    realm_store_close(store);
    return status;
}
