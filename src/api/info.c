/* GET: health, readiness, models, usage, metrics. */
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

static void write_model(realm_json_writer *w, const realm_model_info *m) {
    realm_json_begin_object(w);
    realm_json_key(w, "id");
    realm_json_write_cstr(w, m->id);
    realm_json_key(w, "object");
    realm_json_write_cstr(w, "model");
    realm_json_key(w, "created");
    realm_json_write_int(w, m->created_s);
    realm_json_key(w, "owned_by");
    realm_json_write_cstr(w, "realm");
    realm_json_end_object(w);
}

void info_models(api_call *c) {
    realm_json_writer w;
    realm_model_info m;
    realm_json_writer_init(&w, &c->reply);
    realm_json_begin_object(&w);
    realm_json_key(&w, "object");
    realm_json_write_cstr(&w, "list");
    realm_json_key(&w, "data");
    realm_json_begin_array(&w);
    for (size_t i = 0; i < realm_runtime_model_count(c->api->rt); i++)
        if (realm_runtime_model_at(c->api->rt, i, &m) == REALM_OK) write_model(&w, &m);
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
    realm_model_info m;
    for (size_t i = 0; i < realm_runtime_model_count(c->api->rt); i++) {
        if (realm_runtime_model_at(c->api->rt, i, &m) != REALM_OK || strlen(m.id) != n || memcmp(m.id, name, n) != 0)
            continue;
        realm_json_writer w;
        realm_json_writer_init(&w, &c->reply);
        write_model(&w, &m);
        return;
    }
    api_error_model(&c->error, name, n);
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
    const char *digits = query + 6;
    if (strncmp(query, "since=", 6) != 0)
        return api_error_set(&c->error, 400, "unknown_parameter", NULL, "the only parameter is since=SECONDS");
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
        api_error_status(&c->error, st, &err);
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

/* ---- metrics ---- (Prometheus text format 0.0.4) */

static void family(realm_buf *b, const char *name, const char *type, const char *help) {
    realm_buf_printf(b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void one(realm_buf *b, const char *name, const char *type, const char *help, double value) {
    family(b, name, type, help);
    realm_buf_printf(b, "%s %.17g\n", name, value);
}

/* A label's value: backslash, quote and line feed escaped. */
static void label(realm_buf *b, const char *s) {
    for (; *s; s++) {
        if (*s == '\\' || *s == '"') realm_buf_putc(b, '\\');
        if (*s == '\n')
            realm_buf_puts(b, "\\n");
        else
            realm_buf_putc(b, *s);
    }
}

static void http_metrics(const api_call *c, realm_buf *b) {
    realm_api *api = c->api;
    static const char *const classes[] = {"none", "1xx", "2xx", "3xx", "4xx", "5xx"};
    family(b, "realm_http_requests_total", "counter", "Answers by route and class of status.");
    for (int r = 0; r < N_ROUTES; r++)
        for (int k = 0; k < 6; k++) {
            uint64_t n = atomic_load_explicit(&api->answers[r][k], memory_order_relaxed);
            if (n)
                realm_buf_printf(b, "realm_http_requests_total{route=\"%s\",status=\"%s\"} %llu\n",
                                 api_route_name((api_route)r), classes[k], (unsigned long long)n);
        }
    family(b, "realm_http_request_seconds_total", "counter", "Time from head to whole answer, summed, by route.");
    for (int r = 0; r < N_ROUTES; r++) {
        uint64_t ns = atomic_load_explicit(&api->seconds_ns[r], memory_order_relaxed);
        if (ns)
            realm_buf_printf(b, "realm_http_request_seconds_total{route=\"%s\"} %.9f\n", api_route_name((api_route)r),
                             (double)ns / 1e9);
    }
    static const char *const bounds[] = {"0.01", "0.025", "0.05", "0.1", "0.25", "0.5",
                                         "1",    "2.5",   "5",    "10",  "30",   "+Inf"};
    family(b, "realm_time_to_first_token_seconds", "histogram", "From a request's head to its first token.");
    uint64_t sum = 0;
    for (size_t i = 0; i < REALM_ARRAY_LEN(bounds); i++) {
        sum += atomic_load_explicit(&api->first_token[i], memory_order_relaxed);
        realm_buf_printf(b, "realm_time_to_first_token_seconds_bucket{le=\"%s\"} %llu\n", bounds[i],
                         (unsigned long long)sum);
    }
    realm_buf_printf(b, "realm_time_to_first_token_seconds_sum %.9f\nrealm_time_to_first_token_seconds_count %llu\n",
                     (double)atomic_load_explicit(&api->first_token_ns, memory_order_relaxed) / 1e9,
                     (unsigned long long)sum);
    const realm_server *server = atomic_load(&api->server);
    if (!server) return;
    realm_server_stats s;
    realm_server_get_stats(server, &s);
    one(b, "realm_http_connections", "gauge", "Open connections.", s.connections);
    one(b, "realm_http_connections_total", "counter", "Connections accepted.", (double)s.accepted);
    one(b, "realm_http_connections_refused_total", "counter", "Connections refused at a limit.", (double)s.refused);
    one(b, "realm_http_exchanges", "gauge", "Requests being read or answered.", s.exchanges);
    one(b, "realm_http_received_bytes_total", "counter", "Bytes read from clients.", (double)s.bytes_in);
    one(b, "realm_http_sent_bytes_total", "counter", "Bytes written to clients.", (double)s.bytes_out);
    one(b, "realm_http_timeouts_total", "counter", "Heads, bodies and readers that were too slow.", (double)s.timeouts);
    one(b, "realm_http_aborted_total", "counter", "Exchanges that ended without their whole answer.",
        (double)s.answers[0]);
    one(b, "realm_http_buffered_body_bytes", "gauge", "Request bodies in memory.", (double)s.bodies_bytes);
}

/* One value of every engine. */
typedef double (*engine_value)(const realm_engine_stats *s, const realm_token_counts *t);
#define VALUE(name, expression)                                                    \
    static double name(const realm_engine_stats *s, const realm_token_counts *t) { \
        (void)s;                                                                   \
        (void)t;                                                                   \
        return (double)(expression);                                               \
    }
VALUE(v_steps, s->steps)
VALUE(v_rows, s->rows)
VALUE(v_seconds, (double)s->step_ns / 1e9)
VALUE(v_running, s->running)
VALUE(v_queued, s->queued)
VALUE(v_pages, s->kv_pages)
VALUE(v_used, s->kv_pages_used)
VALUE(v_pages_cached, s->kv_pages_cached)
VALUE(v_suspended, s->suspended_pages)
VALUE(v_suspended_bytes, (double)(s->suspended_bytes + s->suspended_disk))
VALUE(v_resumes, s->resumes)
VALUE(v_lost, s->dropped)
VALUE(v_contexts, s->contexts)
VALUE(v_page_bytes, s->kv_page_bytes)
VALUE(v_weights, s->weight_bytes)
VALUE(v_ended, s->ended)
VALUE(v_cancelled, s->cancelled)
VALUE(v_failed, s->failed)
VALUE(v_prompt, t->prompt)
VALUE(v_cached, t->cached)
VALUE(v_completion, t->completion)

static const struct {
    const char *name, *type, *help;
    engine_value value;
} engine_metrics[] = {
    {"realm_prompt_tokens_total", "counter", "Prompt tokens of admitted generations.", v_prompt},
    {"realm_cached_tokens_total", "counter", "Prompt tokens that were not computed again.", v_cached},
    {"realm_completion_tokens_total", "counter", "Tokens sampled.", v_completion},
    {"realm_generations_running", "gauge", "Generations decoding or in prefill.", v_running},
    {"realm_generations_queued", "gauge", "Generations waiting.", v_queued},
    {"realm_generations_ended_total", "counter", "Generations that ended by themselves.", v_ended},
    {"realm_generations_cancelled_total", "counter", "Generations that were cancelled.", v_cancelled},
    {"realm_generations_failed_total", "counter", "Generations that failed.", v_failed},
    {"realm_engine_steps_total", "counter", "Forward passes.", v_steps},
    {"realm_engine_rows_total", "counter", "Tokens computed in them.", v_rows},
    {"realm_engine_step_seconds_total", "counter", "Time spent in them.", v_seconds},
    {"realm_kv_pages", "gauge", "KV pages.", v_pages},
    {"realm_kv_pages_used", "gauge", "KV pages in use.", v_used},
    {"realm_kv_pages_cached", "gauge", "KV pages kept for prompts that begin alike.", v_pages_cached},
    {"realm_kv_pages_suspended", "gauge", "KV pages of idle contexts outside the pool.", v_suspended},
    {"realm_kv_suspended_bytes", "gauge", "Memory and disk that they take.", v_suspended_bytes},
    {"realm_kv_resumes_total", "counter", "KV pages that came back into the pool.", v_resumes},
    {"realm_kv_lost_total", "counter", "KV pages that have to be computed again.", v_lost},
    {"realm_contexts", "gauge", "Contexts of programs and saved ones.", v_contexts},
    {"realm_kv_page_bytes", "gauge", "Bytes of a KV page.", v_page_bytes},
    {"realm_model_weight_bytes", "gauge", "Bytes of weights.", v_weights},
};

static void engine_metrics_write(const api_call *c, realm_buf *b) {
    realm_runtime *rt = c->api->rt;
    for (size_t k = 0; k < REALM_ARRAY_LEN(engine_metrics); k++) {
        family(b, engine_metrics[k].name, engine_metrics[k].type, engine_metrics[k].help);
        for (size_t i = 0; i < realm_runtime_model_count(rt); i++) {
            realm_model_info m;
            if (realm_runtime_model_at(rt, i, &m) != REALM_OK) continue;
            realm_engine *e = realm_runtime_engine(rt, m.id);
            if (!e) continue;
            realm_engine_stats s = {0};
            realm_token_counts t = {0};
            realm_engine_get_stats(e, &s);
            realm_engine_counts(e, &t, NULL, 0, NULL);
            realm_buf_printf(b, "%s{model=\"", engine_metrics[k].name);
            label(b, m.id);
            realm_buf_printf(b, "\"} %.17g\n", engine_metrics[k].value(&s, &t));
        }
    }
}

void info_metrics(api_call *c) {
    realm_buf *b = &c->reply;
    realm_runtime_stats s = {0};
    realm_runtime_get_stats(c->api->rt, &s);
    family(b, "realm_build_info", "gauge", "The version that runs.");
    realm_buf_puts(b, "realm_build_info{version=\"" REALM_VERSION "\"} 1\n");
    one(b, "realm_requests_total", "counter", "Requests counted in the ledger.", (double)s.requests);
    one(b, "realm_requests_aborted_total", "counter", "Of those, given up by the client.", (double)s.requests_aborted);
    one(b, "realm_requests_refused_total", "counter", "Requests refused by a limit.", (double)s.requests_refused);
    one(b, "realm_requests_active", "gauge", "Requests being served.", s.requests_active);
    one(b, "realm_runs_active", "gauge", "Programs running.", s.runs_active);
    one(b, "realm_tenants", "gauge", "Tenants in memory.", s.tenants);
    one(b, "realm_program_bytes", "gauge", "Compiled code of tenants' programs in memory.", (double)s.program_bytes);
    one(b, "realm_instances_started_total", "counter", "Program instances started.", (double)s.instances_started);
    one(b, "realm_program_failures_total", "counter", "Programs that trapped or gave up.", (double)s.program_failures);
    one(b, "realm_instance_start_seconds_total", "counter", "Time spent starting instances.",
        (double)s.instance_start_ns / 1e9);
    one(b, "realm_instance_starts_timed_total", "counter", "Instance starts in that time.",
        (double)s.instance_starts_timed);
    engine_metrics_write(c, b);
    http_metrics(c, b);
}
