/* GET: health, readiness, models, usage. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/internal.h"
#include "base/alloc.h"

/* ---- health ---- */

void info_health(api_call *c) { realm_buf_puts(&c->reply, "{\"status\":\"ok\"}"); }

void info_ready(api_call *c) {
    int state = atomic_load(&c->api->state);
    if (state == REALM_API_DRAINING)
        api_error_set(&c->error, 503, "shutting_down", NULL, "the server is shutting down");
    else if (state == REALM_API_STARTING)
        api_error_set(&c->error, 503, "model_loading", NULL, "models are being loaded");
    else if (realm_runtime_model_count(c->api->rt) == 0)
        api_error_set(&c->error, 503, "no_model", NULL, "no model is loaded");
    else
        realm_buf_puts(&c->reply, "{\"status\":\"ready\"}");
}

/* ---- models ---- */

static void write_model(realm_json_writer *w, const realm_served *m) {
    realm_model_info info;
    realm_served_get_info(m, &info);
    realm_json_begin_object(w);
    realm_json_key(w, "id");
    realm_json_write_cstr(w, info.id);
    realm_json_key(w, "object");
    realm_json_write_cstr(w, "model");
    realm_json_key(w, "created");
    realm_json_write_int(w, info.created_s);
    realm_json_key(w, "owned_by");
    realm_json_write_cstr(w, "realm");
    realm_json_end_object(w);
}

void info_models(api_call *c) {
    realm_json_writer w;
    realm_served *all[REALM_MODELS_MAX];
    const size_t n = realm_runtime_hold_all(c->api->rt, all);
    realm_json_writer_init(&w, &c->reply);
    realm_json_begin_object(&w);
    realm_json_key(&w, "object");
    realm_json_write_cstr(&w, "list");
    realm_json_key(&w, "data");
    realm_json_begin_array(&w);
    for (size_t i = 0; i < n; i++) {
        write_model(&w, all[i]);
        realm_served_release(all[i]);
    }
    realm_json_end_array(&w);
    realm_json_end_object(&w);
}

static int hex(char ch) {
    if (ch >= '0' && ch <= '9') return ch - '0';
    return ch >= 'a' && ch <= 'f' ? ch - 'a' + 10 : ch >= 'A' && ch <= 'F' ? ch - 'A' + 10 : -1;
}

void info_model(api_call *c, const char *id, size_t len) {
    char name[REALM_MODEL_ID_MAX + 1];
    size_t n = 0;
    for (size_t i = 0; i < len && n < sizeof name - 1; i++, n++) {
        name[n] = id[i];
        if (id[i] != '%') continue;
        name[n] = (char)(hex(id[i + 1]) << 4 | hex(id[i + 2])); /* the parser has checked escapes */
        i += 2;
    }
    name[n] = '\0';
    realm_served *m = strlen(name) == n ? realm_runtime_hold(c->api->rt, name) : NULL;
    if (!m) {
        api_error_model(&c->error, name, n);
        return;
    }
    realm_json_writer w;
    realm_json_writer_init(&w, &c->reply);
    write_model(&w, m);
    realm_served_release(m);
}

/* ---- usage ---- */

typedef struct usage_sink {
    realm_json_writer w;
    realm_usage own;
    bool all;
} usage_sink;

static void write_usage_fields(realm_json_writer *w, const char *tenant, const realm_usage *u) {
    realm_json_key(w, "tenant");
    realm_json_write_cstr(w, tenant);
#define WRITE(field)           \
    realm_json_key(w, #field); \
    realm_json_write_uint(w, u->field);
    REALM_USAGE_FIELDS(WRITE)
#undef WRITE
}

static bool usage_row(void *user, const char *name, const realm_usage *u) {
    usage_sink *s = user;
    if (s->all) {
        realm_json_begin_object(&s->w);
        write_usage_fields(&s->w, name, u);
        realm_json_end_object(&s->w);
    } else {
        s->own = *u;
    }
    return true;
}

/* "since=UNIX" is the one parameter. */
static bool read_since(api_call *c, int64_t *since) {
    const char *query = c->body ? c->body : "";
    *since = 0;
    if (!*query) return true;
    if (strncmp(query, "since=", 6) != 0)
        return api_error_set(&c->error, 400, "unknown_parameter", NULL, "the only parameter is since=SECONDS");
    const char *digits = query + 6;
    if (!*digits || strspn(digits, "0123456789") != strlen(digits) || strlen(digits) > 15)
        return api_error_set(&c->error, 400, "invalid_value", "since", "since must be seconds since 1970");
    *since = (int64_t)strtoll(digits, NULL, 10);
    return true;
}

void info_usage(api_call *c, bool all) {
    usage_sink s = {.all = all};
    realm_error err = {0};
    int64_t since;
    if (!read_since(c, &since)) return;
    const char *name = all ? NULL : realm_tenant_name(c->tenant);
    realm_json_writer_init(&s.w, &c->reply);
    if (all) realm_json_begin_array(&s.w);
    realm_status st = realm_store_usage_each(realm_runtime_store(c->api->rt), name, since, usage_row, &s, &err);
    if (st != REALM_OK) {
        api_error_server(&c->error, st, &err);
        return;
    }
    if (all) {
        realm_json_end_array(&s.w);
        return;
    }
    realm_json_begin_object(&s.w);
    realm_json_key(&s.w, "object");
    realm_json_write_cstr(&s.w, "usage");
    write_usage_fields(&s.w, name, &s.own);
    realm_json_end_object(&s.w);
}
