/* Open and close, the handler that net calls, routes, keys, and the life of a call.
 *
 * What is decided on the I/O thread when the head has come: path, method, key, content type, and whether the tenant may
 * ask now. So nobody without a key, or past a limit, has a body buffered here. GET answers are made there too, except
 * those of the ledger and the metrics; everything that parses, tokenises or reads the store goes to a worker, so that
 * /health answers while a client tokenises megabytes.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "api/internal.h"
#include "base/alloc.h"
#include "base/clock.h"
#include "base/log.h"

#define AUTH_TEXT_MAX 256u
#define GET_BODY_MAX 4096u /* it says nothing there */

/* ---- routes ---- */

/* OPEN_TO_ALL: a key is not looked at. OPEN_OR_ADMIN: without a key, or with an admin's. */
typedef enum access { OPEN_TO_ALL, TENANT_KEY, ADMIN_KEY, OPEN_OR_ADMIN } access_kind;

static const struct route {
    const char *path;
    bool post;
    access_kind access[2]; /* by listener */
    bool on[2];
    api_route route;
} routes[] = {
    {"/v1/chat/completions", true, {TENANT_KEY, 0}, {true, false}, ROUTE_CHAT},
    {"/v1/completions", true, {TENANT_KEY, 0}, {true, false}, ROUTE_COMPLETION},
    {"/tokenize", true, {TENANT_KEY, 0}, {true, false}, ROUTE_TOKENIZE},
    {"/detokenize", true, {TENANT_KEY, 0}, {true, false}, ROUTE_DETOKENIZE},
    {"/apply-template", true, {TENANT_KEY, 0}, {true, false}, ROUTE_APPLY_TEMPLATE},
    {"/v1/models", false, {TENANT_KEY, 0}, {true, false}, ROUTE_MODELS},
    {"/v1/usage", false, {TENANT_KEY, 0}, {true, false}, ROUTE_USAGE},
    {"/health", false, {OPEN_TO_ALL, OPEN_TO_ALL}, {true, true}, ROUTE_HEALTH},
    {"/ready", false, {OPEN_TO_ALL, OPEN_TO_ALL}, {true, true}, ROUTE_READY},
    {"/metrics", false, {ADMIN_KEY, OPEN_OR_ADMIN}, {true, true}, ROUTE_METRICS},
    {"/admin/v1/usage", false, {0, ADMIN_KEY}, {false, true}, ROUTE_ADMIN_USAGE},
    {"/admin/v1/models", false, {0, ADMIN_KEY}, {false, true}, ROUTE_ADMIN_MODELS},
};
static const char model_prefix[] = "/v1/models/";
static const struct route model_route = {"/v1/models/{id}", false, {TENANT_KEY, 0}, {true, false}, ROUTE_MODEL};

const char *api_route_name(api_route r) {
    if (r == ROUTE_MODEL) return model_route.path;
    for (size_t i = 0; i < REALM_ARRAY_LEN(routes); i++)
        if (routes[i].route == r) return routes[i].path;
    return "other";
}

static const struct route *find_route(realm_http_str path, int tag) {
    for (size_t i = 0; i < REALM_ARRAY_LEN(routes); i++)
        if (routes[i].on[tag] && realm_http_str_is(path, routes[i].path)) return &routes[i];
    size_t n = sizeof model_prefix - 1;
    if (tag == REALM_API_PUBLIC && path.len > n && memcmp(path.data, model_prefix, n) == 0) return &model_route;
    return NULL;
}

/* ---- a call's life ---- */

uint64_t api_random_u64(void) {
    uint64_t v = 0;
    size_t got = 0;
    while (got < sizeof v) {
        ssize_t n = getrandom((char *)&v + got, sizeof v - got, 0);
        if (n > 0)
            got += (size_t)n;
        else if (errno != EINTR)
            break; /* no source of randomness: ids and default seeds need not be secret */
    }
    return got == sizeof v ? v : v ^ realm_clock_ns();
}

void api_random_id(char *out, size_t cap, const char *prefix, size_t n_bytes) {
    size_t at = (size_t)snprintf(out, cap, "%s", prefix);
    for (size_t i = 0; i < n_bytes && at + 17 <= cap; i += 8)
        at += (size_t)snprintf(out + at, cap - at, "%016llx", (unsigned long long)api_random_u64());
}

static api_call *new_call(realm_api *api, realm_exchange *x) {
    api_call *c = realm_calloc(1, sizeof *c);
    if (!c) return NULL;
    c->api = api;
    c->x = x;
    c->start_ns = realm_clock_ns();
    realm_mutex_init(&c->mu, REALM_RANK_QUEUE);
    realm_buf_init(&c->reply, API_REPLY_MAX);
    realm_buf_init(&c->head, 64u << 10);
    realm_buf_init(&c->piece, API_REPLY_MAX);
    realm_event_batch_init(&c->batch);
    api_random_id(c->id, sizeof c->id, "req_", 8);
    realm_exchange_set_user(x, c);
    return c;
}

/* Nobody else has it any more. */
static void free_call(api_call *c) {
    gen_release(c);
    party_leave(c);
    realm_tenant_release(c->tenant);
    realm_free(c->body);
    realm_buf_release(&c->reply);
    realm_buf_release(&c->head);
    realm_buf_release(&c->piece);
    realm_event_batch_release(&c->batch);
    realm_mutex_destroy(&c->mu);
    realm_free(c);
}

/* ---- answers ---- */

static void put_rate(realm_exchange *x, const char *what, uint64_t limit, uint64_t remaining, uint32_t reset_ms) {
    char name[48], text[32];
    if (limit == 0) return;
    (void)snprintf(name, sizeof name, "x-ratelimit-limit-%s", what);
    (void)snprintf(text, sizeof text, "%llu", (unsigned long long)limit);
    realm_exchange_field(x, name, text);
    (void)snprintf(name, sizeof name, "x-ratelimit-remaining-%s", what);
    (void)snprintf(text, sizeof text, "%llu", (unsigned long long)remaining);
    realm_exchange_field(x, name, text);
    (void)snprintf(name, sizeof name, "x-ratelimit-reset-%s", what);
    (void)snprintf(text, sizeof text, "%.3gs", reset_ms / 1000.0);
    realm_exchange_field(x, name, text);
}

/* Pages of any origin may ask on the public listener: what they need is a key, which no browser adds by itself. The
 * admin listener is for no page. */
static bool is_from_page(const api_call *c) {
    realm_http_str origin;
    return realm_exchange_tag(c->x) == REALM_API_PUBLIC && realm_exchange_head(c->x) &&
           realm_http_find(realm_exchange_head(c->x), "origin", &origin, NULL);
}

void api_put_fields(api_call *c) {
    realm_exchange_field(c->x, "x-request-id", c->id);
    if (is_from_page(c)) {
        realm_exchange_field(c->x, "Access-Control-Allow-Origin", "*");
        realm_exchange_field(c->x, "Access-Control-Expose-Headers", "*");
    }
    if (!c->has_rate) return;
    put_rate(c->x, "requests", c->rate.limit, c->rate.remaining, c->rate.reset_ms);
    put_rate(c->x, "tokens", c->rate.token_limit, c->rate.token_remaining, c->rate.token_reset_ms);
}

void api_log_error(const api_call *c) {
    if (c->error.detail[0]) realm_log_error("api", "%s: %s", c->id, c->error.detail);
}

void api_answer_error(api_call *c) {
    const api_error *e = &c->error;
    char text[32];
    api_log_error(c);
    api_put_fields(c);
    if (e->status == 401) realm_exchange_field(c->x, "WWW-Authenticate", "Bearer realm=\"realm\"");
    if (e->retry_after_ms) {
        (void)snprintf(text, sizeof text, "%u", (e->retry_after_ms + 999) / 1000);
        realm_exchange_field(c->x, "retry-after", text);
        (void)snprintf(text, sizeof text, "%u", e->retry_after_ms);
        realm_exchange_field(c->x, "retry-after-ms", text);
    }
    if (e->no_retry) realm_exchange_field(c->x, "x-should-retry", "false");
    realm_buf out;
    realm_buf_init(&out, 64u << 10);
    api_error_write(e, &out);
    metrics_answered(c, e->status);
    if (realm_buf_status(&out) == REALM_OK)
        realm_exchange_respond(c->x, e->status, API_JSON, out.data, out.len);
    else
        realm_exchange_abort(c->x); /* no memory for a line of text */
    realm_buf_release(&out);
    c->phase = CALL_ENDED;
}

void api_answer(api_call *c) {
    if (!c->error.status && realm_buf_status(&c->reply) != REALM_OK)
        api_error_status(&c->error, realm_buf_status(&c->reply), NULL);
    /* it may take its client long to read it */
    if (c->error.status || !party_hold(c, c->reply.len)) {
        api_answer_error(c);
        return;
    }
    api_put_fields(c);
    metrics_answered(c, 200);
    realm_exchange_respond(c->x, 200, c->route == ROUTE_METRICS ? "text/plain; version=0.0.4; charset=utf-8" : API_JSON,
                           c->reply.data, c->reply.len);
    c->phase = CALL_ENDED;
}

static void refuse(api_call *c, unsigned status, const char *code, const char *message) {
    api_error_set(&c->error, status, code, NULL, "%s", message);
    api_answer_error(c);
}

/* ---- workers ---- */

static void hand_back(api_call *c);

static bool is_gone(api_call *c) {
    realm_mutex_lock(&c->mu);
    bool gone = c->gone;
    realm_mutex_unlock(&c->mu);
    return gone;
}

static void *compile_and_start(void *arg) {
    api_call *c = arg;
    realm_api *api = c->api;
    if (!is_gone(c)) gen_start(c);
    party_give_thread(c);
    hand_back(c);
    realm_mutex_lock(&api->lent_mu);
    api->n_lent--;
    realm_cond_broadcast(&api->returned);
    realm_mutex_unlock(&api->lent_mu);
    return NULL;
}

/* Schemas are compiled by threads of their own, which wait for their turn and for the compiler: no worker does, so
 * other calls go on. False, with the error filled, when there is none to be had. */
static bool lend_thread(api_call *c) {
    realm_api *api = c->api;
    pthread_t t;
    if (!party_take_thread(c)) return false;
    if (realm_thread_start(&t, "realm-schema", compile_and_start, c, NULL) == REALM_OK) {
        pthread_detach(t);
        return true;
    }
    party_give_thread(c);
    realm_mutex_lock(&api->lent_mu);
    api->n_lent--;
    realm_mutex_unlock(&api->lent_mu);
    return api_error_status(&c->error, REALM_E_BUSY, NULL);
}

/* False: the call was handed on. */
static bool work(api_call *c) {
    switch (c->route) {
    case ROUTE_CHAT:
    case ROUTE_COMPLETION:
        if (!gen_read(c)) break;
        if (c->gen.constrained) return !lend_thread(c);
        gen_start(c);
        break;
    case ROUTE_TOKENIZE: text_tokenize(c); break;
    case ROUTE_DETOKENIZE: text_detokenize(c); break;
    case ROUTE_APPLY_TEMPLATE: text_apply_template(c); break;
    case ROUTE_USAGE: info_usage(c, false); break;
    case ROUTE_ADMIN_USAGE: info_usage(c, true); break;
    case ROUTE_METRICS: metrics_write(c); break;
    default: api_error_set(&c->error, 500, "internal_error", NULL, "no worker for this route"); break;
    }
    return true;
}

/* A model that is not there yet is not unknown. */
static void excuse_start(api_call *c) {
    if (c->error.status != 404 || atomic_load(&c->api->state) != REALM_API_STARTING) return;
    api_error_set(&c->error, 503, "model_loading", "model", "models are being loaded; try again");
    c->error.retry_after_ms = 1000;
}

static void hand_back(api_call *c) {
    excuse_start(c);
    realm_mutex_lock(&c->mu);
    bool gone = c->gone;
    c->phase = c->error.status || !c->request ? CALL_REPLY : CALL_RUNNING;
    if (!gone) realm_exchange_wake(c->x);
    realm_mutex_unlock(&c->mu);
    if (gone) free_call(c);
}

static void *worker(void *arg) {
    realm_api *api = arg;
    api_call *c;
    while ((c = call_queue_pop_wait(&api->queue))) {
        const realm_tenant *t = c->tenant;
        if (is_gone(c) || work(c)) hand_back(c);
        call_queue_done(&api->queue, t);
    }
    return NULL;
}

static void submit(api_call *c) {
    c->phase = CALL_WORKING; /* before it is in the queue: from there on a worker has it */
    if (call_queue_push(&c->api->queue, c) == REALM_OK) return;
    c->phase = CALL_NEW;
    api_error_set(&c->error, 503, "overloaded", NULL, "too many requests are waiting; try again");
    c->error.retry_after_ms = 1000;
    api_answer_error(c);
}

/* ---- the handler ---- */

static bool bearer(const realm_http_head *h, realm_http_str *key) {
    realm_http_str v;
    if (!realm_http_find(h, "authorization", &v, NULL) || v.len < 8) return false;
    if (!realm_http_str_is_nocase((realm_http_str){v.data, 7}, "Bearer ")) return false;
    *key = (realm_http_str){v.data + 7, v.len - 7};
    while (key->len && key->data[0] == ' ') key->data++, key->len--;
    return key->len > 0 && key->len <= AUTH_TEXT_MAX;
}

/* False when the call was answered. */
static bool authenticate(api_call *c, access_kind access) {
    realm_http_str key;
    realm_error err = {0};
    realm_status s = REALM_E_UNAUTHENTICATED;
    if (access == OPEN_TO_ALL) return true;
    if (access == OPEN_OR_ADMIN) {
        size_t n = 0;
        (void)realm_http_find(realm_exchange_head(c->x), "authorization", &key, &n);
        if (n == 0) return true;
    }
    if (!bearer(realm_exchange_head(c->x), &key)) {
        refuse(c, 401, "invalid_api_key", "an API key is needed: \"Authorization: Bearer KEY\"");
        return false;
    }
    if (access == TENANT_KEY) {
        s = realm_runtime_authenticate(c->api->rt, key.data, key.len, &c->tenant, &err);
    } else {
        realm_key_row row;
        s = realm_store_key_find(realm_runtime_store(c->api->rt), key.data, key.len, &row, &err);
        if (s == REALM_OK && !row.admin) {
            refuse(c, 403, "permission_denied", "this needs an admin key");
            return false;
        }
        c->by_admin = s == REALM_OK;
    }
    if (s == REALM_OK) return true;
    if (s == REALM_E_UNAUTHENTICATED)
        api_error_set(&c->error, 401, "invalid_api_key", NULL, "the API key is unknown, revoked or expired");
    else
        api_error_server(&c->error, s, &err); /* the store's */
    api_answer_error(c);
    return false;
}

/* application/json, with any parameters but a charset other than UTF-8; absent is taken as JSON. */
static bool is_json(realm_http_str v) {
    size_t n = 0;
    while (n < v.len && v.data[n] != ';' && v.data[n] != ' ') n++;
    if (!realm_http_str_is_nocase((realm_http_str){v.data, n}, API_JSON)) return false;
    const char *set = n < v.len ? memmem(v.data + n, v.len - n, "charset=", 8) : NULL;
    if (!set) return true;
    realm_http_str name = {set + 8, 0};
    const size_t left = (size_t)(v.data + v.len - name.data);
    const bool quoted = left > 0 && name.data[0] == '"';
    if (quoted) name.data++;
    for (size_t i = quoted; i < left && !strchr(quoted ? "\"" : "; \t", set[8 + i]); i++) name.len++;
    return realm_http_str_is_nocase(name, "utf-8") || realm_http_str_is_nocase(name, "utf8");
}

static bool check_content(api_call *c) {
    const realm_http_head *h = realm_exchange_head(c->x);
    realm_http_str v;
    size_t n;
    if (!h->has_length && !h->chunked) {
        refuse(c, 411, "length_required", "the request has no body; send Content-Length");
        return false;
    }
    if (!realm_http_find(h, "content-type", &v, &n) && n > 1) {
        refuse(c, 400, "invalid_request", "more than one Content-Type");
        return false;
    }
    if (n == 1 && !is_json(v)) {
        refuse(c, 415, "unsupported_media_type", "Content-Type must be application/json in UTF-8");
        return false;
    }
    if ((realm_http_find(h, "content-encoding", &v, &n) && !realm_http_str_is_nocase(v, "identity")) || n > 1) {
        refuse(c, 415, "unsupported_media_type", "Content-Encoding is not supported; send the body as it is");
        return false;
    }
    return true;
}

/* Before its body is read and anything is done for it: what is refused costs no more than a head. */
static bool admit(api_call *c) {
    realm_error err = {0};
    realm_status s = realm_tenant_admit(c->tenant, &c->rate, &err);
    c->has_rate = true;
    if (s == REALM_OK) return true;
    api_error_status(&c->error, s, &err);
    api_error_rate(&c->error, s, &c->rate);
    api_answer_error(c);
    return false;
}

/* NULL: of the whole listener, which `OPTIONS *` asks for (RFC 9110, 9.3.7). */
static const char *methods_of(const struct route *r, int tag) {
    if (!r) return tag == REALM_API_PUBLIC ? "GET, HEAD, POST, OPTIONS" : "GET, HEAD";
    if (tag == REALM_API_PUBLIC) return r->post ? "POST, OPTIONS" : "GET, HEAD, OPTIONS";
    return r->post ? "POST" : "GET, HEAD";
}

/* What may be asked here, without a key: browsers ask so before a page's request, and add none. `*` in the list of
 * fields stands for all but Authorization. */
static void answer_options(api_call *c, const struct route *r, int tag) {
    realm_exchange_field(c->x, "Allow", methods_of(r, tag));
    if (is_from_page(c)) {
        realm_exchange_field(c->x, "Access-Control-Allow-Methods", methods_of(r, tag));
        realm_exchange_field(c->x, "Access-Control-Allow-Headers", "authorization, *");
        realm_exchange_field(c->x, "Access-Control-Max-Age", "86400");
    }
    api_put_fields(c);
    metrics_answered(c, 200);
    realm_exchange_respond(c->x, 200, "text/plain; charset=utf-8", "", 0);
    c->phase = CALL_ENDED;
}

static void on_head(void *user, realm_exchange *x) {
    realm_api *api = user;
    api_call *c = new_call(api, x);
    if (!c) {
        realm_exchange_abort(x);
        return;
    }
    const realm_http_head *h = realm_exchange_head(x);
    int tag = realm_exchange_tag(x) == REALM_API_ADMIN;
    const struct route *r = find_route(h->path, tag);
    static const char *const methods[] = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"};
    bool known = false;
    for (size_t i = 0; i < REALM_ARRAY_LEN(methods); i++) known |= realm_http_str_is(h->method, methods[i]);
    if (!known) {
        refuse(c, 501, "unknown_method", "the method is not known");
        return;
    }
    const bool all = realm_http_str_is(h->path, "*"); /* of OPTIONS alone */
    if (!r && !all) {
        refuse(c, 404, "unknown_url", "there is nothing at this path");
        return;
    }
    if (r) c->route = r->route;
    if (tag == REALM_API_PUBLIC && realm_http_str_is(h->method, "OPTIONS")) {
        answer_options(c, r, tag);
        return;
    }
    bool ok = r && (r->post ? realm_http_str_is(h->method, "POST")
                            : realm_http_str_is(h->method, "GET") || realm_http_str_is(h->method, "HEAD"));
    if (!ok) {
        realm_exchange_field(x, "Allow", methods_of(r, tag));
        refuse(c, 405, "method_not_allowed", r && r->post ? "only POST is allowed here" : "only GET is allowed here");
        return;
    }
    if (r->post && realm_exchange_is_late(x)) {
        api_error_set(&c->error, 503, "shutting_down", NULL, "the server is shutting down; try again");
        c->error.retry_after_ms = 1000;
        api_answer_error(c);
        return;
    }
    if (!authenticate(c, r->access[tag])) return;
    if (!r->post) realm_exchange_limit_body(x, GET_BODY_MAX);
    if (r->post && !check_content(c)) return;
    if (c->tenant && !party_join(c)) {
        api_answer_error(c);
        return;
    }
    if (r->post) (void)admit(c);
}

/* The body goes with the call to a worker. From here on it is the api that bounds how much of them there is. */
static bool take_body(api_call *c) {
    c->body = realm_exchange_take_body(c->x, &c->body_len);
    if (c->body ? party_hold(c, c->body_len) : api_error_status(&c->error, REALM_E_NOMEM, NULL)) return true;
    api_answer_error(c);
    return false;
}

static void on_request(void *user, realm_exchange *x) {
    (void)user;
    api_call *c = realm_exchange_get_user(x);
    const realm_http_head *h = realm_exchange_head(x);
    switch (c->route) {
    case ROUTE_MODELS:
    case ROUTE_ADMIN_MODELS: info_models(c); break;
    case ROUTE_MODEL:
        info_model(c, h->path.data + sizeof model_prefix - 1, h->path.len - (sizeof model_prefix - 1));
        break;
    case ROUTE_HEALTH: info_health(c); break;
    case ROUTE_READY: info_ready(c); break;
    case ROUTE_METRICS: submit(c); return;
    default:
        if (c->route != ROUTE_USAGE && c->route != ROUTE_ADMIN_USAGE) {
            if (!take_body(c)) return;
        } else if (h->query.len && !(c->body = realm_strndup(h->query.data, h->query.len))) {
            refuse(c, 503, "overloaded", "out of memory");
            return;
        }
        submit(c);
        return;
    }
    api_answer(c);
}

static void on_wake(void *user, realm_exchange *x) {
    (void)user;
    api_call *c = realm_exchange_get_user(x);
    realm_mutex_lock(&c->mu);
    call_phase phase = c->phase;
    realm_mutex_unlock(&c->mu);
    if (phase == CALL_REPLY)
        api_answer(c);
    else if (phase == CALL_RUNNING)
        gen_wake(c);
}

static void on_close(void *user, realm_exchange *x, bool complete) {
    (void)user;
    (void)complete;
    api_call *c = realm_exchange_get_user(x);
    if (!c) return;
    realm_mutex_lock(&c->mu);
    c->x = NULL;
    c->gone = true;
    bool theirs = c->phase == CALL_WORKING; /* a worker has it and will find it gone */
    realm_mutex_unlock(&c->mu);
    if (!theirs) free_call(c);
}

static void on_error(void *user, realm_exchange *x, unsigned status, const char *why) {
    api_call *c = realm_exchange_get_user(x);
    if (!c && !(c = new_call(user, x))) return; /* net answers by itself */
    api_error_set(&c->error, status,
                  status == 408   ? "timeout"
                  : status == 413 ? "body_too_large"
                  : status == 429 ? "rate_limit_exceeded"
                  : status == 503 ? "overloaded"
                                  : "bad_http_request",
                  NULL, "%s", why);
    if (status == 429 || status == 503) c->error.retry_after_ms = 1000;
    api_answer_error(c);
}

/* ---- open, close ---- */

realm_http_handler realm_api_handler(realm_api *api) {
    return (realm_http_handler){.user = api,
                                .on_head = on_head,
                                .on_request = on_request,
                                .on_wake = on_wake,
                                .on_close = on_close,
                                .on_error = on_error};
}

realm_status realm_api_open(realm_api **out, realm_runtime *rt, const realm_api_config *config, realm_error *err) {
    *out = NULL;
    realm_api *api = realm_calloc(1, sizeof *api);
    if (!api) return realm_error_set(err, REALM_E_NOMEM, "out of memory");
    api->rt = rt;
    unsigned n = REALM_MIN(config && config->n_workers ? config->n_workers : 4u, API_WORKERS_MAX);
    realm_status s = REALM_OK;
    call_queue_init(&api->queue, n, config && config->max_waiting ? config->max_waiting : 1024);
    api->held_most = config && config->held_bytes ? config->held_bytes : (uint64_t)1 << 30;
    realm_mutex_init(&api->parties_mu, REALM_RANK_LEAF);
    realm_mutex_init(&api->lent_mu, REALM_RANK_LEAF);
    realm_cond_init(&api->returned);
    for (unsigned i = 0; s == REALM_OK && i < n; i++) {
        s = realm_thread_start(&api->workers[i], "realm-api", worker, api, err);
        if (s == REALM_OK) api->n_workers++;
    }
    if (s != REALM_OK) {
        realm_api_close(api);
        return s;
    }
    *out = api;
    return REALM_OK;
}

void realm_api_set_server(realm_api *api, const realm_server *server) { atomic_store(&api->server, server); }

void realm_api_set_state(realm_api *api, realm_api_state state) { atomic_store(&api->state, (int)state); }

void realm_api_close(realm_api *api) {
    if (!api) return;
    call_queue_shut(&api->queue);
    for (unsigned i = 0; i < api->n_workers; i++) pthread_join(api->workers[i], NULL);
    realm_mutex_lock(&api->lent_mu);
    while (api->n_lent > 0) realm_cond_wait(&api->returned, &api->lent_mu);
    realm_mutex_unlock(&api->lent_mu);
    call_queue_release(&api->queue);
    realm_cond_destroy(&api->returned);
    realm_mutex_destroy(&api->lent_mu);
    realm_mutex_destroy(&api->parties_mu);
    realm_free(api);
}
