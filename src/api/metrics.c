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

typedef enum unit { COUNT, SECONDS } unit; /* SECONDS: the field is in nanoseconds */

typedef struct metric {
    const char *name, *type, *help;
    size_t at, size; /* of the field: 4 or 8 bytes, unsigned */
    unit unit;
    const char *label; /* NULL, or what tells rows of one name apart, which stand together: key="value" */
} metric;

#define FIELD(strukt, field) offsetof(strukt, field), sizeof(((strukt *)NULL)->field)

#define OF(field) FIELD(realm_runtime_stats, field)
static const metric runtime_metrics[] = {
    {"realm_requests_total", "counter", "Requests counted in the ledger.", OF(requests), COUNT, NULL},
    {"realm_requests_aborted_total", "counter", "Of those, given up by the client.", OF(requests_aborted), COUNT, NULL},
    {"realm_requests_refused_total", "counter", "Requests refused by a limit.", OF(requests_refused), COUNT, NULL},
    {"realm_requests_active", "gauge", "Requests being served.", OF(requests_active), COUNT, NULL},
    {"realm_runs_active", "gauge", "Programs running or about to.", OF(runs_active), COUNT, NULL},
    {"realm_runs_awaiting_program", "gauge", "Of those, waiting for their program to be opened.", OF(runs_awaiting),
     COUNT, NULL},
    {"realm_tenants", "gauge", "Tenants in memory.", OF(tenants), COUNT, NULL},
    {"realm_jobs_queued", "gauge", "Calls of programs that wait for a thread which may block.", OF(jobs_queued[0]),
     COUNT, "kind=\"quick\""},
    {"realm_jobs_queued", "gauge", "", OF(jobs_queued[1]), COUNT, "kind=\"heavy\""},
    {"realm_ledger_writes_total", "counter", "Transactions of the ledger.", OF(ledger_writes), COUNT, NULL},
    {"realm_ledger_failures_total", "counter", "Attempts to write the ledger that failed, and are made again.",
     OF(ledger_failures), COUNT, NULL},

    {"realm_program_cpu_seconds_total", "counter", "CPU time of programs and of compiling them.", OF(program_cpu_ns),
     SECONDS, NULL},
    {"realm_program_failures_total", "counter", "Runs that ended by a trap, a limit or a failure.",
     OF(program_failures), COUNT, NULL},
    {"realm_program_bytes", "gauge", "Compiled code of programs in memory.", OF(program_bytes), COUNT, NULL},
    {"realm_programs_compiled_total", "counter", "Programs that were compiled.", OF(programs_compiled), COUNT, NULL},
    {"realm_programs_from_cache_total", "counter", "Programs whose compiled code was in the cache.",
     OF(programs_from_cache), COUNT, NULL},
    {"realm_instances", "gauge", "Program instances: queued, running or waiting.", OF(instances), COUNT, NULL},
    {"realm_instances_ready", "gauge", "Of those, waiting for a worker.", OF(instances_ready[0]), COUNT,
     "queue=\"ready\""},
    {"realm_instances_ready", "gauge", "", OF(instances_ready[1]), COUNT, "queue=\"background\""},
    {"realm_instances_started_total", "counter", "Program instances started.", OF(instances_started), COUNT, NULL},
    {"realm_instances_ended_total", "counter", "Program instances that have ended.", OF(instances_ended), COUNT, NULL},
    {"realm_instances_failed_total", "counter", "Of those, by a trap, a limit or because they were cancelled.",
     OF(instances_failed), COUNT, NULL},
    {"realm_instance_start_seconds_total", "counter", "Time spent starting instances.", OF(instance_start_ns), SECONDS,
     NULL},
    {"realm_instance_starts_timed_total", "counter", "Instance starts in that time.", OF(instance_starts_timed), COUNT,
     NULL},

    {"realm_device_turns_total", "counter", "Turns on the device, of engines and of tensor calls.", OF(turns.turns),
     COUNT, NULL},
    {"realm_device_held_seconds_total", "counter", "Time for which it was held.", OF(turns.held_ns), SECONDS, NULL},
    {"realm_device_waits_total", "counter", "Turns that had to be waited for.", OF(turns.waits), COUNT, NULL},
    {"realm_device_wait_seconds_total", "counter", "Time that they waited.", OF(turns.wait_ns), SECONDS, NULL},
    {"realm_device_waiting", "gauge", "Engines and tensor calls that wait for a turn.", OF(turns.waiting), COUNT, NULL},
    {"realm_tensor_lists", "gauge", "Lists of tensor operations queued or running.", OF(tensor_lists), COUNT, NULL},
    {"realm_tensor_ops_total", "counter", "Tensor operations of programs.", OF(tensor_ops), COUNT, NULL},
    {"realm_tensor_seconds_total", "counter", "Time for which they held the device.", OF(tensor_ns), SECONDS, NULL},
};
#undef OF

#define OF(field) FIELD(realm_model_stats, field)
static const metric model_metrics[] = {
    {"realm_prompt_tokens_total", "counter", "Prompt tokens of admitted generations.", OF(tokens.prompt), COUNT, NULL},
    {"realm_cached_tokens_total", "counter", "Prompt tokens that were not computed again.", OF(tokens.cached), COUNT,
     NULL},
    {"realm_completion_tokens_total", "counter", "Tokens sampled.", OF(tokens.completion), COUNT, NULL},
    {"realm_prefix_lookups_total", "counter", "Prompts looked up in the prefix cache.", OF(engine.prefix_asked), COUNT,
     NULL},
    {"realm_prefix_hits_total", "counter", "Of those, prompts of which it had the beginning.", OF(engine.prefix_found),
     COUNT, NULL},
    {"realm_generations_running", "gauge", "Generations decoding or in prefill.", OF(engine.running), COUNT, NULL},
    {"realm_generations_queued", "gauge", "Generations waiting.", OF(engine.queued), COUNT, NULL},
    {"realm_generations_ended_total", "counter", "Generations that ended by themselves.", OF(engine.ended), COUNT,
     NULL},
    {"realm_generations_cancelled_total", "counter", "Generations that were cancelled.", OF(engine.cancelled), COUNT,
     NULL},
    {"realm_generations_failed_total", "counter", "Generations that failed.", OF(engine.failed), COUNT, NULL},
    {"realm_engine_steps_total", "counter", "Forward passes.", OF(engine.steps), COUNT, NULL},
    {"realm_engine_rows_total", "counter", "Tokens computed in them.", OF(engine.rows), COUNT, NULL},
    {"realm_engine_step_seconds_total", "counter", "Time spent in them.", OF(engine.step_ns), SECONDS, NULL},
    {"realm_engine_notify_seconds_total", "counter", "Time spent handing their tokens on.", OF(engine.notify_ns),
     SECONDS, NULL},
    {"realm_engine_lent_seconds_total", "counter", "Time for which its thread ran programs, having nothing to compute.",
     OF(engine.lent_ns), SECONDS, NULL},
    {"realm_contexts", "gauge", "Contexts of programs and saved ones.", OF(engine.contexts), COUNT, NULL},
    {"realm_kv_pages", "gauge", "KV pages.", OF(engine.kv_pages), COUNT, NULL},
    {"realm_kv_pages_used", "gauge", "KV pages in use.", OF(engine.kv_pages_used), COUNT, NULL},
    {"realm_kv_pages_cached", "gauge", "KV pages kept for prompts that begin alike.", OF(engine.kv_pages_cached), COUNT,
     NULL},
    {"realm_kv_pages_suspended", "gauge", "KV pages of idle contexts outside the pool.", OF(engine.suspended_pages),
     COUNT, NULL},
    {"realm_kv_suspended_bytes", "gauge", "What they take.", OF(engine.suspended_bytes), COUNT, "place=\"memory\""},
    {"realm_kv_suspended_bytes", "gauge", "", OF(engine.suspended_disk), COUNT, "place=\"disk\""},
    {"realm_kv_suspends_total", "counter", "KV pages that left the pool.", OF(engine.suspends), COUNT, NULL},
    {"realm_kv_resumes_total", "counter", "KV pages that came back into it.", OF(engine.resumes), COUNT, NULL},
    {"realm_kv_lost_total", "counter", "KV pages that have to be computed again.", OF(engine.dropped), COUNT, NULL},
    {"realm_kv_page_bytes", "gauge", "Bytes of a KV page.", OF(engine.kv_page_bytes), COUNT, NULL},
    {"realm_model_weight_bytes", "gauge", "Bytes of weights that are kept at most.", OF(engine.weight_bytes), COUNT,
     NULL},
    {"realm_model_resident_bytes", "gauge", "Bytes of weights in memory.", OF(stream.bytes_resident), COUNT, NULL},
    {"realm_model_layers_resident", "gauge", "Layers in memory.", OF(stream.layers_resident), COUNT, NULL},
    {"realm_model_layers_pinned", "gauge", "Layers that programs hold there.", OF(stream.layers_pinned), COUNT, NULL},
    {"realm_stream_hits_total", "counter", "Layers that were needed and there, or on their way.", OF(stream.hits),
     COUNT, NULL},
    {"realm_stream_misses_total", "counter", "Layers that somebody had to wait for.", OF(stream.misses), COUNT, NULL},
    {"realm_stream_evictions_total", "counter", "Layers that gave way to others.", OF(stream.evictions), COUNT, NULL},
    {"realm_stream_prefetched_total", "counter", "Layers loaded before they were needed.", OF(stream.prefetched), COUNT,
     NULL},
    {"realm_stream_read_bytes_total", "counter", "Bytes of the model's file that were read for them.",
     OF(stream.bytes_read), COUNT, NULL},
};
#undef OF

#define OF(field) FIELD(realm_tenant_stats, field)
static const metric tenant_metrics[] = {
    {"realm_tenant_requests_total", "counter", "Requests of a tenant that are in the ledger.", OF(used.requests), COUNT,
     NULL},
    {"realm_tenant_requests_aborted_total", "counter", "Of those, given up by the client.", OF(used.aborted_requests),
     COUNT, NULL},
    {"realm_tenant_prompt_tokens_total", "counter", "Prompt tokens of a tenant.", OF(used.prompt_tokens), COUNT, NULL},
    {"realm_tenant_cached_tokens_total", "counter", "Of those, not computed again.", OF(used.cached_tokens), COUNT,
     NULL},
    {"realm_tenant_completion_tokens_total", "counter", "Tokens sampled for a tenant.", OF(used.completion_tokens),
     COUNT, NULL},
    {"realm_tenant_program_cpu_seconds_total", "counter", "CPU time of a tenant's programs.", OF(used.program_cpu_ns),
     SECONDS, NULL},
    {"realm_tenant_tensor_seconds_total", "counter", "Time for which their tensor calls held the device.",
     OF(used.tensor_ns), SECONDS, NULL},
    {"realm_tenant_generations", "gauge", "Generations of a tenant, running or queued.", OF(generations), COUNT, NULL},
    {"realm_tenant_tensor_bytes", "gauge", "Tensors of its programs.", OF(tensor_bytes), COUNT, NULL},
    {"realm_tenant_storage_bytes", "gauge", "Values and models that a tenant stored.", OF(storage_bytes), COUNT, NULL},
};
#undef OF

#define OF(field) FIELD(realm_server_stats, field)
static const metric server_metrics[] = {
    {"realm_http_connections", "gauge", "Open connections.", OF(connections), COUNT, NULL},
    {"realm_http_connections_total", "counter", "Connections accepted.", OF(accepted), COUNT, NULL},
    {"realm_http_connections_refused_total", "counter", "Connections refused at a limit.", OF(refused), COUNT, NULL},
    {"realm_http_connections_displaced_total", "counter", "Connections closed to make room for others.", OF(displaced),
     COUNT, NULL},
    {"realm_http_exchanges", "gauge", "Requests being read or answered.", OF(exchanges), COUNT, NULL},
    {"realm_http_received_bytes_total", "counter", "Bytes read from clients.", OF(bytes_in), COUNT, NULL},
    {"realm_http_sent_bytes_total", "counter", "Bytes written to clients.", OF(bytes_out), COUNT, NULL},
    {"realm_http_timeouts_total", "counter", "Heads, bodies and readers that were too slow.", OF(timeouts), COUNT,
     NULL},
    {"realm_http_aborted_total", "counter", "Exchanges that ended without their whole answer.", OF(answers[0]), COUNT,
     NULL},
    {"realm_http_buffered_body_bytes", "gauge", "Request bodies in memory.", OF(bodies_bytes), COUNT, NULL},
};
#undef OF

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
    one(b, "realm_api_queued", "Requests that wait to be parsed.", call_queue_length(&api->queue));
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
    if (st != REALM_OK) api_error_status(&c->error, st, &err);
}
