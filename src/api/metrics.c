/* GET /metrics, in Prometheus' text format 0.0.4.
 *
 * Tables say which number of which struct is shown under which name; what has one series for each model or tenant is a
 * table of its own. Names follow Prometheus' conventions: counters end in _total, times are in seconds, sizes in bytes.
 * docs/api.md lists them all, and a test holds the two against each other.
 *
 * Series of tenants carry their names, so they are there for an admin key alone: the admin listener shows the rest to
 * whoever reaches it, and no tenant's key opens any of it.
 */
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "api/internal.h"
#include "base/alloc.h"
#include "base/clock.h"

typedef enum unit { COUNT, SECONDS } unit; /* SECONDS: the field is in nanoseconds */

typedef struct metric {
    const char *name, *type, *help;
    size_t at, size; /* of the field: 4 or 8 bytes, unsigned */
    unit unit;
    const char *label; /* NULL, or what tells rows of one name apart, which stand together: key="value" */
} metric;

/* Rows of a table whose struct is ROW at that place; counters' names end as they should by themselves. */
#define FIELD(strukt, field) offsetof(strukt, field), sizeof(((strukt *)NULL)->field)
#define COUNTER(name, help, field) {"realm_" name "_total", "counter", help, FIELD(ROW, field), COUNT, NULL}
#define TIMER(name, help, field) {"realm_" name "_seconds_total", "counter", help, FIELD(ROW, field), SECONDS, NULL}
#define GAUGE(name, help, field) {"realm_" name, "gauge", help, FIELD(ROW, field), COUNT, NULL}
#define GAUGE_OF(name, label, help, field) {"realm_" name, "gauge", help, FIELD(ROW, field), COUNT, label}

#define ROW realm_runtime_stats
static const metric runtime_metrics[] = {
    COUNTER("requests", "Requests counted in the ledger.", requests),
    COUNTER("requests_aborted", "Of those, given up by the client.", requests_aborted),
    COUNTER("requests_refused", "Requests refused by a limit.", requests_refused),
    GAUGE("requests_active", "Requests being served.", requests_active),
    GAUGE("runs_active", "Programs running or about to.", runs_active),
    GAUGE("runs_awaiting_program", "Of those, waiting for their program to be opened.", runs_awaiting),
    GAUGE("tenants", "Tenants in memory.", tenants),
    GAUGE_OF("jobs_queued", "kind=\"quick\"", "Calls of programs that wait for a thread which may block.",
             jobs_queued[0]),
    GAUGE_OF("jobs_queued", "kind=\"heavy\"", "", jobs_queued[1]),
    COUNTER("ledger_writes", "Transactions of the ledger.", ledger_writes),
    COUNTER("ledger_failures", "Attempts to write the ledger that failed, and are made again.", ledger_failures),

    TIMER("program_cpu", "CPU time of programs and of compiling them.", program_cpu_ns),
    COUNTER("program_failures", "Runs that ended by a trap, a limit or a failure.", program_failures),
    GAUGE("program_bytes", "Compiled code of programs in memory.", program_bytes),
    COUNTER("programs_compiled", "Programs that were compiled.", programs_compiled),
    COUNTER("programs_from_cache", "Programs whose compiled code was in the cache.", programs_from_cache),
    GAUGE("instances", "Program instances: queued, running or waiting.", instances),
    GAUGE_OF("instances_ready", "queue=\"ready\"", "Of those, waiting for a worker.", instances_ready[0]),
    GAUGE_OF("instances_ready", "queue=\"background\"", "", instances_ready[1]),
    COUNTER("instances_started", "Program instances started.", instances_started),
    COUNTER("instances_ended", "Program instances that have ended.", instances_ended),
    COUNTER("instances_failed", "Of those, by a trap, a limit or because they were cancelled.", instances_failed),
    TIMER("instance_start", "Time spent starting instances.", instance_start_ns),
    COUNTER("instance_starts_timed", "Instance starts in that time.", instance_starts_timed),

    COUNTER("device_turns", "Turns on the device, of engines and of tensor calls.", turns.turns),
    TIMER("device_held", "Time for which it was held.", turns.held_ns),
    COUNTER("device_waits", "Turns that had to be waited for.", turns.waits),
    TIMER("device_wait", "Time that they waited.", turns.wait_ns),
    GAUGE("device_waiting", "Engines and tensor calls that wait for a turn.", turns.waiting),
    GAUGE("tensor_lists", "Lists of tensor operations queued or running.", tensor_lists),
    COUNTER("tensor_ops", "Tensor operations of programs.", tensor_ops),
    TIMER("tensor", "Time for which they held the device.", tensor_ns),
};
#undef ROW

#define ROW realm_model_stats
static const metric model_metrics[] = {
    COUNTER("prompt_tokens", "Prompt tokens of admitted generations.", tokens.prompt),
    COUNTER("cached_tokens", "Prompt tokens that were not computed again.", tokens.cached),
    COUNTER("completion_tokens", "Tokens sampled.", tokens.completion),
    COUNTER("prefix_lookups", "Prompts looked up in the prefix cache.", engine.prefix_asked),
    COUNTER("prefix_hits", "Of those, prompts of which it had the beginning.", engine.prefix_found),
    GAUGE("generations_running", "Generations decoding or in prefill.", engine.running),
    GAUGE("generations_queued", "Generations waiting.", engine.queued),
    COUNTER("generations_ended", "Generations that ended by themselves.", engine.ended),
    COUNTER("generations_cancelled", "Generations that were cancelled.", engine.cancelled),
    COUNTER("generations_failed", "Generations that failed.", engine.failed),
    COUNTER("engine_steps", "Forward passes.", engine.steps),
    COUNTER("engine_rows", "Tokens computed in them.", engine.rows),
    TIMER("engine_step", "Time spent in them.", engine.step_ns),
    TIMER("engine_notify", "Time spent handing their tokens on.", engine.notify_ns),
    TIMER("engine_lent", "Time for which its thread ran programs, having nothing to compute.", engine.lent_ns),
    TIMER("engine_aside", "Time for which a compute thread ran programs beside them.", engine.aside_ns),
    COUNTER("guesses", "Passes of programs that were computed before they were asked for.", engine.guesses),
    COUNTER("guesses_right", "Of those, passes that then were asked for.", engine.guesses_right),
    GAUGE("contexts", "Contexts of programs and saved ones.", engine.contexts),
    GAUGE("kv_pages", "KV pages.", engine.kv_pages),
    GAUGE("kv_pages_used", "KV pages in use.", engine.kv_pages_used),
    GAUGE("kv_pages_cached", "KV pages kept for prompts that begin alike.", engine.kv_pages_cached),
    GAUGE("kv_pages_suspended", "KV pages of idle contexts outside the pool.", engine.suspended_pages),
    GAUGE_OF("kv_suspended_bytes", "place=\"memory\"", "What they take.", engine.suspended_bytes),
    GAUGE_OF("kv_suspended_bytes", "place=\"disk\"", "", engine.suspended_disk),
    COUNTER("kv_suspends", "KV pages that left the pool.", engine.suspends),
    COUNTER("kv_resumes", "KV pages that came back into it.", engine.resumes),
    COUNTER("kv_lost", "KV pages that have to be computed again.", engine.dropped),
    GAUGE("kv_page_bytes", "Bytes of a KV page.", engine.kv_page_bytes),
    GAUGE("model_weight_bytes", "Bytes of weights that are kept at most.", engine.weight_bytes),
    GAUGE("model_resident_bytes", "Bytes of weights in memory.", stream.bytes_resident),
    GAUGE("model_layers_resident", "Layers in memory.", stream.layers_resident),
    GAUGE("model_layers_pinned", "Layers that programs hold there.", stream.layers_pinned),
    COUNTER("stream_hits", "Layers that were needed and there, or on their way.", stream.hits),
    COUNTER("stream_misses", "Layers that somebody had to wait for.", stream.misses),
    COUNTER("stream_evictions", "Layers that gave way to others.", stream.evictions),
    COUNTER("stream_prefetched", "Layers loaded before they were needed.", stream.prefetched),
    COUNTER("stream_read_bytes", "Bytes of the model's file that were read for them.", stream.bytes_read),
};
#undef ROW

#define ROW realm_tenant_stats
static const metric tenant_metrics[] = {
    COUNTER("tenant_requests", "Requests of a tenant that are in the ledger.", used.requests),
    COUNTER("tenant_requests_aborted", "Of those, given up by the client.", used.aborted_requests),
    COUNTER("tenant_prompt_tokens", "Prompt tokens of a tenant.", used.prompt_tokens),
    COUNTER("tenant_cached_tokens", "Of those, not computed again.", used.cached_tokens),
    COUNTER("tenant_completion_tokens", "Tokens sampled for a tenant.", used.completion_tokens),
    TIMER("tenant_program_cpu", "CPU time of a tenant's programs.", used.program_cpu_ns),
    TIMER("tenant_tensor", "Time for which their tensor calls held the device.", used.tensor_ns),
    GAUGE("tenant_generations", "Generations of a tenant, running or queued.", generations),
    GAUGE("tenant_tensor_bytes", "Tensors of its programs.", tensor_bytes),
    GAUGE("tenant_storage_bytes", "Values and models that a tenant stored.", storage_bytes),
};
#undef ROW

#define ROW realm_server_stats
static const metric server_metrics[] = {
    GAUGE("http_connections", "Open connections.", connections),
    COUNTER("http_connections", "Connections accepted.", accepted),
    COUNTER("http_connections_refused", "Connections refused at a limit.", refused),
    COUNTER("http_connections_displaced", "Connections closed to make room for others.", displaced),
    GAUGE("http_exchanges", "Requests being read or answered.", exchanges),
    COUNTER("http_received_bytes", "Bytes read from clients.", bytes_in),
    COUNTER("http_sent_bytes", "Bytes written to clients.", bytes_out),
    COUNTER("http_timeouts", "Heads, bodies and readers that were too slow.", timeouts),
    COUNTER("http_aborted", "Exchanges that ended without their whole answer.", answers[0]),
    GAUGE("http_buffered_body_bytes", "Request bodies in memory.", bodies_bytes),
};
#undef ROW

/* ---- counting ---- */

static const uint32_t LATENCIES_MS[API_LATENCIES] = {10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000};

static void count(_Atomic uint64_t *n, uint64_t by) {
    atomic_fetch_add_explicit(n, by, memory_order_relaxed); /* statistics order nothing */
}

void metrics_answered(api_call *c, unsigned status) {
    count(&c->api->answers[c->route][status / 100 < 6 ? status / 100 : 0], 1);
    count(&c->api->seconds_ns[c->route], realm_clock_ns() - c->start_ns);
}

void metrics_first_token(api_call *c) {
    if (c->first_token) return;
    c->first_token = true;
    const uint64_t ns = realm_clock_ns() - c->start_ns;
    size_t i = 0;
    while (i < API_LATENCIES && ns > LATENCIES_MS[i] * REALM_NS_PER_MS) i++;
    count(&c->api->first_token[i], 1);
    count(&c->api->first_token_ns, ns);
}

/* ---- writing ---- */

static void family(realm_buf *b, const char *name, const char *type, const char *help) {
    realm_buf_printf(b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

/* A label's value: backslash, quote and line feed escaped. */
static void put_label(realm_buf *b, const char *key, const char *value) {
    realm_buf_printf(b, "%s=\"", key);
    for (const char *s = value; *s; s++) {
        if (*s == '\\' || *s == '"') realm_buf_putc(b, '\\');
        if (*s == '\n')
            realm_buf_puts(b, "\\n");
        else
            realm_buf_putc(b, *s);
    }
    realm_buf_putc(b, '"');
}

static void put_value(realm_buf *b, const metric *m, const void *stats) {
    uint64_t v = 0;
    uint32_t small;
    if (m->size == sizeof small) {
        memcpy(&small, (const char *)stats + m->at, sizeof small);
        v = small;
    } else {
        memcpy(&v, (const char *)stats + m->at, sizeof v);
    }
    if (m->unit == SECONDS)
        realm_buf_printf(b, " %llu.%09llu\n", (unsigned long long)(v / 1000000000),
                         (unsigned long long)(v % 1000000000));
    else
        realm_buf_printf(b, " %llu\n", (unsigned long long)v);
}

/* A table over n structs of `size` bytes, told apart by the label `key` with the name of each; NULL: there is one. */
static void write_table(realm_buf *b, const metric *table, size_t n_metrics, const void *stats, size_t n, size_t size,
                        const char *key, const char *(*name_of)(const void *stats)) {
    for (size_t k = 0; k < n_metrics; k++) {
        const metric *m = &table[k];
        if (k == 0 || strcmp(m->name, table[k - 1].name) != 0) family(b, m->name, m->type, m->help);
        for (size_t i = 0; i < n; i++) {
            const char *at = (const char *)stats + i * size;
            realm_buf_puts(b, m->name);
            if (key || m->label) realm_buf_putc(b, '{');
            if (key) put_label(b, key, name_of(at));
            if (m->label) realm_buf_printf(b, "%s%s", key ? "," : "", m->label);
            if (key || m->label) realm_buf_putc(b, '}');
            put_value(b, m, at);
        }
    }
}

static void one(realm_buf *b, const char *name, const char *help, uint64_t value) {
    family(b, name, "gauge", help);
    realm_buf_printf(b, "%s %llu\n", name, (unsigned long long)value);
}

/* ---- what there is ---- */

static void write_http(realm_api *api, realm_buf *b) {
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
    family(b, "realm_time_to_first_token_seconds", "histogram", "From a request's head to its first token.");
    uint64_t sum = 0;
    for (size_t i = 0; i <= API_LATENCIES; i++) {
        char bound[16] = "+Inf";
        if (i < API_LATENCIES) (void)snprintf(bound, sizeof bound, "%g", LATENCIES_MS[i] / 1000.0);
        sum += atomic_load_explicit(&api->first_token[i], memory_order_relaxed);
        realm_buf_printf(b, "realm_time_to_first_token_seconds_bucket{le=\"%s\"} %llu\n", bound,
                         (unsigned long long)sum);
    }
    realm_buf_printf(b, "realm_time_to_first_token_seconds_sum %.9f\nrealm_time_to_first_token_seconds_count %llu\n",
                     (double)atomic_load_explicit(&api->first_token_ns, memory_order_relaxed) / 1e9,
                     (unsigned long long)sum);
    one(b, "realm_api_queued", "Requests that wait to be parsed.", call_queue_length(&api->queue));
    one(b, "realm_api_held_bytes", "Bodies being worked on, and answers being gathered or read.",
        atomic_load_explicit(&api->held_bytes, memory_order_relaxed));
    realm_mutex_lock(&api->lent_mu);
    const uint32_t compiling = api->n_lent;
    realm_mutex_unlock(&api->lent_mu);
    one(b, "realm_schemas_compiling", "Schemas of requests that are being compiled, or wait for it.", compiling);
    const realm_server *server = atomic_load(&api->server);
    if (!server) return;
    realm_server_stats s;
    realm_server_get_stats(server, &s);
    write_table(b, server_metrics, REALM_ARRAY_LEN(server_metrics), &s, 1, sizeof s, NULL, NULL);
}

typedef struct model_numbers {
    realm_model_stats stats; /* first: the table's offsets are in it */
    realm_model_info info;
} model_numbers;

static const char *model_name(const void *stats) { return ((const model_numbers *)stats)->info.id; }
static const char *tenant_name(const void *stats) { return ((const realm_tenant_stats *)stats)->name; }

static realm_status write_models(realm_runtime *rt, realm_buf *b) {
    realm_served *all[REALM_MODELS_MAX];
    model_numbers *list = realm_calloc(REALM_MODELS_MAX, sizeof *list);
    if (!list) return REALM_E_NOMEM;
    const size_t n = realm_runtime_hold_all(rt, all);
    for (size_t i = 0; i < n; i++) {
        realm_served_get_info(all[i], &list[i].info);
        realm_served_get_stats(all[i], &list[i].stats);
    }
    write_table(b, model_metrics, REALM_ARRAY_LEN(model_metrics), list, n, sizeof *list, "model", model_name);
    for (size_t i = 0; i < n; i++) realm_served_release(all[i]);
    realm_free(list);
    return REALM_OK;
}

static realm_status write_tenants(realm_runtime *rt, realm_buf *b, realm_error *err) {
    realm_tenant_stats *list;
    size_t n;
    realm_status s = realm_runtime_tenant_stats(rt, &list, &n, err);
    if (s != REALM_OK) return s;
    write_table(b, tenant_metrics, REALM_ARRAY_LEN(tenant_metrics), list, n, sizeof *list, "tenant", tenant_name);
    realm_free(list);
    return REALM_OK;
}

void metrics_write(api_call *c) {
    realm_buf *b = &c->reply;
    realm_runtime_stats s = {0};
    realm_error err = {0};
    realm_runtime_get_stats(c->api->rt, &s);
    family(b, "realm_build_info", "gauge", "The version that runs.");
    realm_buf_puts(b, "realm_build_info{version=\"" REALM_VERSION "\"} 1\n");
    write_table(b, runtime_metrics, REALM_ARRAY_LEN(runtime_metrics), &s, 1, sizeof s, NULL, NULL);
    realm_status st = write_models(c->api->rt, b);
    if (st == REALM_OK && c->by_admin) st = write_tenants(c->api->rt, b, &err);
    write_http(c->api, b);
    if (st != REALM_OK) api_error_server(&c->error, st, &err);
}
