/* tenant/host/host.c - host calls: the import table, handles, and the calls that need neither text nor model.
 *
 * A failed call never ends the program: it returns a negative code, and last_error has a line of text about it. Lengths
 * and pointers come from the program and are checked by realm_call_memory before anything is done.
 */
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/str.h"
#include "base/utf8.h"
#include "crypto/crypto.h"
#include "tenant/host/abi_nn.h"
#include "tenant/host/abi_wasi.h"
#include "tenant/host/host.h"

/* ---- the import table ---- */

#define ROW32(group, name, params, flags, declaration, text) {"realm", #name, params, false, flags, host_##name, 0},
#define ROW64(group, name, params, flags, declaration, text) {"realm64", #name, params, true, flags, host_##name, 0},
#define ROW_WASI(name, fn, params, result, flags) {"wasi_snapshot_preview1", #name, params, false, flags, fn, result},
#define ROW_NN(name, params, flags) {"wasi_ephemeral_nn", #name, params, false, flags, nn_##name, 0},
#define ROW_ENV(name, fn, params, result, flags) {"env", name, params, false, flags, fn, result},
static const realm_import IMPORTS[] = {REALM_ABI_CALLS(ROW32) REALM_ABI_CALLS(ROW64) REALM_WASI_CALLS(ROW_WASI)
                                           REALM_ENV_CALLS(ROW_ENV) REALM_NN_CALLS(ROW_NN)};
#undef ROW32
#undef ROW64
#undef ROW_WASI
#undef ROW_ENV
#undef ROW_NN

const realm_import *realm_host_imports(size_t *n) {
    *n = REALM_ARRAY_LEN(IMPORTS);
    return IMPORTS;
}

const char *realm_host_import_group(const char *module, const char *name) {
#define ROW_TITLE(group, title) [GROUP_##group] = title,
#define ROW_GROUP(group, title) GROUP_##group,
#define ROW_CALL(group, name, params, flags, declaration, text) {#name, GROUP_##group},
    enum { REALM_ABI_GROUPS(ROW_GROUP) };
    static const char *const TITLES[] = {REALM_ABI_GROUPS(ROW_TITLE)};
    static const struct {
        const char *name;
        int group;
    } CALLS[] = {REALM_ABI_CALLS(ROW_CALL)};
#undef ROW_TITLE
#undef ROW_GROUP
#undef ROW_CALL
    if (!strcmp(module, "wasi_snapshot_preview1")) return "WASI preview 1";
    if (!strcmp(module, "wasi_ephemeral_nn")) return "wasi-nn";
    if (!strcmp(module, "env")) return "AssemblyScript";
    if (strcmp(module, "realm") != 0 && strcmp(module, "realm64") != 0) return NULL;
    for (size_t i = 0; i < REALM_ARRAY_LEN(CALLS); i++)
        if (!strcmp(CALLS[i].name, name)) return TITLES[CALLS[i].group];
    return NULL;
}

/* ---- life ---- */

static void close_slot(realm_host *h, uint32_t i);

realm_status realm_host_open(realm_host **out, realm_run *run, realm_error *err) {
    realm_host *h = realm_calloc(1, sizeof *h);
    if (!h) return realm_error_set(err, REALM_E_NOMEM, "no memory for a program's host calls");
    realm_mutex_init(&h->mu, REALM_RANK_SANDBOX);
    h->run = run;
    const realm_request *r = realm_run_request(run);
    h->models[0] = (host_model){.id = 0, .m = r->model, .account = r->account};
    h->n_models = 1;
    h->model = &h->models[0];
    h->opened_ns = realm_clock_ns();
    h->log_credit_ns = HOST_LOG_BURST * (REALM_NS_PER_S / HOST_LOG_PER_S);
    h->log_at_ns = h->opened_ns;
    *out = h;
    return REALM_OK;
}

void realm_host_set_instance(realm_host *h, realm_instance *instance) {
    atomic_store_explicit(&h->instance, instance, memory_order_release);
}

void realm_host_close(realm_host *h) {
    if (!h) return;
    host_nn_close(h);
    host_tensors_close(h);
    for (uint32_t i = 0; i < h->n_slots; i++)
        if (h->slots[i].kind != HOST_FREE) close_slot(h, i);
    realm_free(h->slots);
    host_job_end(h);
    host_prompt_release(h, &h->own);
    host_models_close(h);
    host_wasi_close(h);
    realm_json_doc_close(h->input);
    realm_mutex_destroy(&h->mu);
    realm_free(h);
}

static void wake(realm_host *h) {
    realm_instance *i = atomic_load_explicit(&h->instance, memory_order_acquire);
    if (i) realm_instance_wake(i);
}

void realm_host_drained(realm_host *h) { wake(h); }

void realm_host_pipe_ended(realm_host *h, realm_finish finish, const realm_event_batch *last) {
    realm_mutex_lock(&h->mu);
    for (uint32_t i = 0; i < h->n_slots; i++) {
        host_generation *g = host_at(h, i, HOST_GENERATION);
        if (!g || !g->pipe || g->pipe_ended) continue;
        g->pipe_ended = true;
        g->pipe_finish = finish;
        g->pipe_usage = (realm_guest_usage){last->prompt_tokens, last->cached_tokens, last->completion_tokens};
        if (finish == REALM_FINISH_ERROR) g->pipe_error = last->error;
    }
    realm_mutex_unlock(&h->mu);
    wake(h);
}

void realm_host_cancel(realm_host *h) {
    realm_mutex_lock(&h->mu);
    atomic_store_explicit(&h->cancelled, true, memory_order_release);
    for (uint32_t i = 0; i < h->n_slots; i++) {
        host_generation *g = host_at(h, i, HOST_GENERATION);
        if (g && g->g) realm_generation_cancel(g->g);
    }
    realm_mutex_unlock(&h->mu);
    wake(h);
}

/* ---- what every call uses ---- */

realm_host *host_of(realm_call *call) {
    realm_run *run = realm_call_user(call);
    realm_host *h = run->host; /* set before the instance starts, cleared after it has ended */
    /* Before anything that could want to wake it: whoever started the instance may not have come to say which it is. */
    atomic_store_explicit(&h->instance, realm_call_instance(call), memory_order_release);
    return h;
}

realm_call_result host_failed(realm_host *h, int32_t *result) {
    if (h->error.code >= 0) h->error.code = REALM_E_INTERNAL;
    *result = (int32_t)h->error.code;
    realm_run_set_error(h->run, &h->error);
    return REALM_CALL_DONE;
}

realm_call_result host_fail(realm_host *h, int32_t *result, realm_status code, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    h->error.code = code;
    vsnprintf(h->error.text, sizeof h->error.text, fmt, args);
    va_end(args);
    return host_failed(h, result);
}

void *host_range(realm_call *call, uint64_t ptr, uint64_t len, const char *what, int32_t *result) {
    void *p = realm_call_memory(call, ptr, len);
    if (!p)
        host_fail(host_of(call), result, REALM_E_RANGE, "%s: %llu bytes at %llu are not all inside the memory", what,
                  (unsigned long long)len, (unsigned long long)ptr);
    return p;
}

void *host_room(realm_call *call, uint64_t out, uint64_t max, size_t unit, const char *what, int32_t *result) {
    uint64_t bytes;
    if (realm_mul_u64(max, unit, &bytes)) return host_range(call, out, bytes, what, result);
    host_fail(host_of(call), result, REALM_E_RANGE, "%s: %llu elements of %zu bytes are more than any memory", what,
              (unsigned long long)max, unit);
    return NULL;
}

realm_call_result host_give(realm_call *call, uint64_t out, uint64_t max, const void *data, size_t len, size_t unit,
                            int32_t *result) {
    realm_host *h = host_of(call);
    uint64_t n = len / unit;
    if (n > INT32_MAX) return host_fail(h, result, REALM_E_LIMIT, "the result is too large: %zu bytes", len);
    void *to = max ? host_room(call, out, max, unit, "output", result) : NULL;
    if (max && !to) return REALM_CALL_DONE;
    if (n <= max && len > 0) memcpy(to, data, len);
    *result = (int32_t)n;
    return REALM_CALL_DONE;
}

/* ---- calls that block ---- */

realm_call_result host_job_start(realm_call *call, tenant_job *job, int32_t *result) {
    realm_host *h = host_of(call);
    host_job_end(h);
    if (jobs_submit(realm_run_runtime(h->run)->jobs, job, &h->error)) {
        job_release(job);
        return host_failed(h, result);
    }
    h->job = job;
    return REALM_CALL_SUSPEND;
}

tenant_job *host_job_done(realm_call *call, realm_call_result *state, int32_t *result) {
    realm_host *h = host_of(call);
    if (!atomic_load_explicit(&h->job->done, memory_order_acquire)) {
        *state = REALM_CALL_SUSPEND;
        if (!realm_call_cancelled(call)) return NULL;
        host_job_end(h); /* it goes on alone */
        *state = host_fail(h, result, REALM_E_CANCELLED, "the request was cancelled");
        return NULL;
    }
    if (!h->job->error.code) return h->job;
    h->error = h->job->error;
    host_job_end(h);
    *state = host_failed(h, result);
    return NULL;
}

realm_call_result host_job_again(realm_call *call, int32_t *result) {
    realm_host *h = host_of(call);
    atomic_store_explicit(&h->job->done, false, memory_order_relaxed); /* the queue's lock publishes it */
    if (!jobs_submit(realm_run_runtime(h->run)->jobs, h->job, &h->error)) return REALM_CALL_SUSPEND;
    host_job_end(h);
    return host_failed(h, result);
}

void host_job_end(realm_host *h) {
    job_release(h->job);
    h->job = NULL;
}

/* ---- handles ---- */

static realm_status no_more_handles(realm_host *h, uint64_t limit) {
    return realm_error_set(&h->error, REALM_E_LIMIT, "handles: %llu are open, as many as are allowed",
                           (unsigned long long)limit);
}

/* Twice the slots, within the limit. */
static realm_status more_slots(realm_host *h) {
    uint32_t limit = (uint32_t)REALM_MIN(realm_run_limits(h->run)->handles, 1u << HOST_SLOT_BITS);
    uint32_t n = REALM_MIN(h->n_slots ? h->n_slots * 2 : HOST_SLOTS_AT_FIRST, limit);
    if (n <= h->n_slots) return no_more_handles(h, limit);
    realm_mutex_lock(&h->mu);
    host_slot *slots = realm_realloc_array(h->slots, n, sizeof *slots);
    if (slots) {
        memset(slots + h->n_slots, 0, (n - h->n_slots) * sizeof *slots);
        h->slots = slots;
        h->n_slots = n;
    }
    realm_mutex_unlock(&h->mu);
    return slots ? REALM_OK : realm_error_set(&h->error, REALM_E_NOMEM, "no memory for a handle");
}

realm_status host_slot_take(realm_host *h, host_kind kind, void *object, int32_t *handle) {
    uint32_t i = h->first_free;
    while (i < h->n_slots && h->slots[i].kind != HOST_FREE) i++;
    h->first_free = i;
    if (i == h->n_slots) {
        realm_status st = more_slots(h);
        if (st) return st;
    }
    h->next_tag = h->next_tag % HOST_TAG_MAX + 1; /* never 0, so that no handle is */
    realm_mutex_lock(&h->mu);
    h->slots[i] = (host_slot){.kind = kind, .tag = h->next_tag, .object = object};
    realm_mutex_unlock(&h->mu);
    *handle = (int32_t)(h->next_tag << HOST_SLOT_BITS | i);
    return REALM_OK;
}

static const host_slot *slot_of(const realm_host *h, uint64_t handle) {
    uint64_t i = handle & ((1u << HOST_SLOT_BITS) - 1);
    if (handle == 0 || handle > INT32_MAX || i >= h->n_slots) return NULL;
    const host_slot *s = &h->slots[i];
    return s->kind != HOST_FREE && s->tag == handle >> HOST_SLOT_BITS ? s : NULL;
}

void *host_get(realm_host *h, uint64_t handle, host_kind kind) {
    const host_slot *s = slot_of(h, handle);
    return s && s->kind == kind ? s->object : NULL;
}

void *host_at(const realm_host *h, uint32_t slot, host_kind kind) {
    return h->slots[slot].kind == kind ? h->slots[slot].object : NULL;
}

#define FREE(kind, free) [HOST_##kind] = free,
static void (*const FREES[])(realm_host *, void *) = {HOST_KINDS(FREE)};
#undef FREE

realm_call_result host_handle_give(realm_host *h, host_kind kind, void *object, int32_t *result) {
    if (!host_slot_take(h, kind, object, result)) return REALM_CALL_DONE;
    FREES[kind](h, object);
    return host_failed(h, result);
}

/* Out of the table first: what other threads find there under mu is alive. */
static void close_slot(realm_host *h, uint32_t i) {
    host_slot s = h->slots[i];
    realm_mutex_lock(&h->mu);
    h->slots[i].kind = HOST_FREE;
    realm_mutex_unlock(&h->mu);
    h->first_free = REALM_MIN(h->first_free, i);
    FREES[s.kind](h, s.object);
}

bool host_handle_close(realm_host *h, uint64_t handle) {
    const host_slot *s = slot_of(h, handle);
    if (s) close_slot(h, (uint32_t)(s - h->slots));
    return s;
}

realm_call_result host_close(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    if (realm_call_lent(call) && (host_get(h, args[0], HOST_TENSOR) || host_get(h, args[0], HOST_GRAMMAR)))
        return REALM_CALL_MOVE; /* much memory to give back */
    host_generation *g = host_get(h, args[0], HOST_GENERATION);
    if (g && !host_generation_left(call, g)) return REALM_CALL_SUSPEND;
    if (!host_handle_close(h, args[0]))
        return host_fail(h, result, REALM_E_INVALID, "close: %d is no open handle", (int32_t)(uint32_t)args[0]);
    return REALM_CALL_DONE;
}

void *host_need(realm_host *h, uint64_t handle, host_kind kind, const char *call, int32_t *result) {
#define NAME(kind, free) [HOST_##kind] = #kind,
    static const char *const NAMES[] = {HOST_KINDS(NAME)};
#undef NAME
    void *object = host_get(h, handle, kind);
    char name[24];
    size_t n = 0;
    if (object) return object;
    for (const char *from = NAMES[kind]; *from && n + 1 < sizeof name; from++) name[n++] = (char)(*from | 0x20);
    name[n] = 0;
    host_fail(h, result, REALM_E_INVALID, "%s: %d is no open %s", call, (int32_t)(uint32_t)handle, name);
    return NULL;
}

realm_status host_same_model(realm_host *h, const host_model *a, const char *what, const host_model *b) {
    if (a->m == b->m) return REALM_OK;
    return realm_error_set(&h->error, REALM_E_INVALID, "%s belongs to model %d, not to model %d", what, a->id, b->id);
}

realm_status host_charge_tensor(realm_host *h, uint64_t n, const char *call) {
    uint64_t limit = realm_run_limits(h->run)->tensor_bytes;
    if (n > limit - h->tensor_bytes)
        return realm_error_set(&h->error, REALM_E_LIMIT,
                               "%s: tensor_bytes: %llu of %llu are in use, %llu more do not fit", call,
                               (unsigned long long)h->tensor_bytes, (unsigned long long)limit, (unsigned long long)n);
    h->tensor_bytes += n;
    return REALM_OK;
}

realm_status host_hold_bytes(realm_host *h, uint64_t n, const char *what) {
    realm_tensor_budget *b = realm_run_request(h->run)->tenant->tensors;
    realm_status st = realm_tensor_budget_charge(b, n, what, &h->error);
    return st ? realm_error_prefix(&h->error, "tensor_bytes") : st;
}

void host_let_go_bytes(realm_host *h, uint64_t n) {
    realm_tensor_budget_refund(realm_run_request(h->run)->tenant->tensors, n);
}

realm_status host_charge_read(realm_host *h, uint64_t n, const char *call) {
    uint64_t limit = realm_run_limits(h->run)->read_bytes;
    if (n > limit - h->read_bytes)
        return realm_error_set(&h->error, REALM_E_LIMIT, "%s: read_bytes: %llu of %llu are used, %llu more do not fit",
                               call, (unsigned long long)h->read_bytes, (unsigned long long)limit,
                               (unsigned long long)n);
    h->read_bytes += n;
    return REALM_OK;
}

/* ---- about the host ---- */

realm_call_result host_abi_version(realm_call *call, const uint64_t *args, int32_t *result) {
    (void)call;
    (void)args;
    *result = REALM_ABI_MAJOR << 16 | REALM_ABI_MINOR;
    return REALM_CALL_DONE;
}

realm_call_result host_limits_get(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    const realm_limits *l = realm_run_limits(h->run);
    realm_guest_limits out = {.size = sizeof out,
                              .abi_major = REALM_ABI_MAJOR,
                              .abi_minor = REALM_ABI_MINOR,
                              .context_tokens = (uint32_t)host_context_length(h->model),
                              .memory_bytes = l->memory_bytes,
                              .cpu_ms_per_wake = l->cpu_ms_per_wake,
                              .generations = (uint32_t)REALM_MIN(l->generations, UINT32_MAX),
                              .handles = (uint32_t)l->handles,
                              .emit_bytes = INT32_MAX,
                              .read_bytes = l->read_bytes,
                              .tensor_bytes = l->tensor_bytes,
                              .storage_bytes = l->storage_bytes,
                              .kv_tokens = l->kv_tokens,
                              .wall_ms = l->wall_ms,
                              .vocabulary = (uint32_t)realm_tokenizer_vocab_size(host_tokenizer(h->model))};
    uint64_t n = REALM_MIN(args[1], sizeof out); /* a program that knows fewer fields gets those */
    void *to = host_range(call, args[0], args[1], "limits_get", result);
    if (!to) return REALM_CALL_DONE;
    memcpy(to, &out, (size_t)n);
    *result = (int32_t)sizeof out;
    return REALM_CALL_DONE;
}

realm_call_result host_last_error(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    size_t len = strlen(h->error.text), n = (size_t)REALM_MIN(args[1], (uint64_t)len);
    n = realm_utf8_complete_prefix(h->error.text, n);
    void *to = realm_call_memory(call, args[0], args[1]);
    *result = to ? (int32_t)len : REALM_E_RANGE; /* keeps the text it could not write */
    if (to && n) memcpy(to, h->error.text, n);
    return REALM_CALL_DONE;
}

/* A bucket of time: each line costs 1/HOST_LOG_PER_S of a second, at most HOST_LOG_BURST are saved. And the limit
 * `log_bytes` for all of it. */
static bool log_allowed(realm_host *h, size_t len) {
    const uint64_t price = REALM_NS_PER_S / HOST_LOG_PER_S;
    uint64_t now = realm_clock_ns();
    h->log_credit_ns = REALM_MIN(h->log_credit_ns + (now - h->log_at_ns), HOST_LOG_BURST * price);
    h->log_at_ns = now;
    len = REALM_MIN(len, HOST_LOG_BYTES_MAX);
    if (h->log_credit_ns < price || len > realm_run_limits(h->run)->log_bytes - h->log_bytes) {
        h->log_dropped++;
        return false;
    }
    h->log_credit_ns -= price;
    h->log_bytes += len;
    return true;
}

/* Lines go out at debug level, which is off by default: programs handle their tenants' text, and that is logged only
 * where an operator asks for it. */
void host_log_line(realm_host *h, realm_log_level said, const char *text, size_t len) {
    if (!log_allowed(h, len) || !realm_log_enabled(REALM_LOG_DEBUG)) return;
    static const char *const LEVELS[] = {"debug", "info", "warn", "error"};
    char line[HOST_LOG_BYTES_MAX + 4];
    realm_escape(line, sizeof line, text, len);
    if (h->log_dropped)
        realm_log_debug("program", "%s: %u lines were dropped (%u a second are kept, log_bytes in all)",
                        realm_tenant_name(h->run->request->tenant), h->log_dropped, HOST_LOG_PER_S);
    h->log_dropped = 0;
    realm_log_debug("program", "%s: %s: %s", realm_tenant_name(h->run->request->tenant), LEVELS[said], line);
}

realm_call_result host_log(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    const char *text = host_range(call, args[1], args[2], "log", result);
    if (text) host_log_line(h, (realm_log_level)REALM_MIN(args[0], (uint64_t)REALM_LOG_ERROR), text, (size_t)args[2]);
    return REALM_CALL_DONE;
}

/* In whole milliseconds: fine clocks are what timing attacks are made of. */
realm_call_result host_clock_ms(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    int64_t ms;
    if (args[0] == REALM_CLOCK_MONOTONIC)
        ms = (int64_t)((realm_clock_ns() - h->opened_ns) / REALM_NS_PER_MS);
    else if (args[0] == REALM_CLOCK_WALL)
        ms = realm_clock_wall_ms();
    else
        return host_fail(h, result, REALM_E_INVALID, "clock_ms: there is no clock %u", (unsigned)args[0]);
    void *to = host_range(call, args[1], sizeof ms, "clock_ms", result);
    if (to) memcpy(to, &ms, sizeof ms);
    return REALM_CALL_DONE;
}

realm_call_result host_random(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    if (args[1] > HOST_RANDOM_MAX)
        return host_fail(h, result, REALM_E_LIMIT, "random: at most %u bytes at once", HOST_RANDOM_MAX);
    void *to = host_range(call, args[0], args[1], "random", result);
    if (!to) return REALM_CALL_DONE;
    if (realm_random_bytes(to, (size_t)args[1])) return host_fail(h, result, REALM_E_IO, "random: none to be had");
    return REALM_CALL_DONE;
}

/* ---- input and output ---- */

static realm_status parse_input(realm_host *h) {
    if (h->input) return REALM_OK;
    const realm_run_params *p = realm_run_get_params(h->run);
    return realm_json_parse(&h->input, p->input, p->input_len, NULL, &h->error);
}

realm_call_result host_input(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    const realm_run_params *p = realm_run_get_params(h->run);
    char name[HOST_NAME_MAX + 1];
    if (args[1] == 0) return host_give(call, args[2], args[3], p->input, p->input_len, 1, result);
    if (args[1] > HOST_NAME_MAX)
        return host_fail(h, result, REALM_E_LIMIT, "input: a name has at most %u bytes", HOST_NAME_MAX);
    const char *from = host_range(call, args[0], args[1], "input", result);
    if (!from) return REALM_CALL_DONE;
    memcpy(name, from, (size_t)args[1]);
    name[args[1]] = 0;
    if (parse_input(h)) return host_failed(h, result);
    realm_json root = realm_json_root(h->input), v;
    if (strlen(name) != args[1] || !realm_json_get(&root, name, &v)) {
        char shown[80]; /* an ordinary answer: last_error has it, the run's own error stays what it was */
        realm_error_set(&h->error, REALM_E_NOT_FOUND, "input: there is no field \"%s\"",
                        realm_escape(shown, sizeof shown, name, strlen(name)));
        *result = REALM_E_NOT_FOUND;
        return REALM_CALL_DONE;
    }
    if (realm_json_kind_of(&v) == REALM_JSON_STRING) {
        const char *s;
        size_t n;
        if (realm_json_str(&v, &s, &n, &h->error)) return host_failed(h, result);
        return host_give(call, args[2], args[3], s, n, 1, result);
    }
    realm_buf b;
    realm_buf_init(&b, REALM_RUN_INPUT_MAX * 2ul);
    realm_status st = realm_json_dump(&v, &b);
    if (st)
        host_fail(h, result, st, "input: the field cannot be written as JSON");
    else
        host_give(call, args[2], args[3], b.data, b.len, 1, result);
    realm_buf_release(&b);
    return REALM_CALL_DONE;
}

static realm_call_result emit_failed(realm_host *h, int32_t *result, realm_status st, const char *call) {
    switch (st) {
    case REALM_E_FORMAT: return host_fail(h, result, st, "%s: the text is not well-formed UTF-8", call);
    case REALM_E_LIMIT:
        return host_fail(h, result, st, "%s: output_bytes: %llu bytes may be given to the client in all", call,
                         (unsigned long long)realm_run_limits(h->run)->output_bytes);
    case REALM_E_CANCELLED: return host_fail(h, result, st, "%s: the request was cancelled", call);
    default: return host_fail(h, result, st, "%s: %s", call, realm_status_text(st));
    }
}

/* Any length: long texts go out in pieces, as the reader takes them. */
realm_call_result host_emit(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    uint64_t *done = realm_call_state(call), len = args[1];
    if (len > INT32_MAX) return host_fail(h, result, REALM_E_LIMIT, "emit: at most %d bytes at once", INT32_MAX);
    const char *text = host_range(call, args[0], len, "emit", result);
    if (!text) return REALM_CALL_DONE;
    while (*done < len) {
        size_t piece = (size_t)REALM_MIN(len - *done, REALM_RUN_OUTPUT_MAX / 4);
        if (piece < len - *done) piece = realm_utf8_complete_prefix(text + *done, piece);
        realm_status st = realm_run_emit(h->run, -1, text + *done, piece, call);
        if (st == REALM_E_AGAIN && !realm_call_cancelled(call)) return REALM_CALL_SUSPEND;
        if (st) return emit_failed(h, result, st == REALM_E_AGAIN ? REALM_E_CANCELLED : st, "emit");
        *done += piece;
    }
    *result = (int32_t)len;
    return REALM_CALL_DONE;
}

realm_call_result host_realm_stream_token(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    int32_t id = (int32_t)(uint32_t)args[0];
    if (id < -1 || (id >= 0 && (size_t)id >= realm_tokenizer_vocab_size(host_tokenizer(h->model))))
        return host_fail(h, result, REALM_E_RANGE, "realm_stream_token: there is no token %d", id);
    const char *text = host_range(call, args[1], args[2], "realm_stream_token", result);
    if (!text) return REALM_CALL_DONE;
    if (args[2] > REALM_RUN_OUTPUT_MAX)
        return host_fail(h, result, REALM_E_LIMIT, "realm_stream_token: at most %u bytes at once",
                         REALM_RUN_OUTPUT_MAX);
    realm_status st = realm_run_emit(h->run, id, text, (size_t)args[2], call);
    if (st == REALM_E_AGAIN && !realm_call_cancelled(call)) return REALM_CALL_SUSPEND;
    if (st) return emit_failed(h, result, st == REALM_E_AGAIN ? REALM_E_CANCELLED : st, "realm_stream_token");
    *result = (int32_t)args[2];
    return REALM_CALL_DONE;
}

realm_call_result host_finish(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    if (args[0] != REALM_END_STOP && args[0] != REALM_END_LENGTH)
        return host_fail(h, result, REALM_E_INVALID, "finish: %u is neither stop (1) nor length (2)",
                         (unsigned)args[0]);
    h->finish_set = true;
    realm_run_set_finish(h->run, args[0] == REALM_END_STOP ? REALM_FINISH_STOP : REALM_FINISH_LENGTH);
    return REALM_CALL_DONE;
}
