/* tenant/host/tensor.c - tensors by handle: a program's own forward pass on the shared device.
 *
 * A program makes tensors (charged to its tenant), names weights of a model, and hands over lists of operations. The
 * list is read out of its memory and checked whole, then computed by the tensor service, which takes turns on the
 * device with the engines; the program is suspended meanwhile, so nothing of its memory is touched but when it runs:
 *
 *      tensor_run --copy, check--> service --on_done--> instance woken --tensor_run again--> 0, or what failed
 *
 * What moves between the program's memory and its tensors is copied by the call itself, what is read of weights by the
 * pool (weights.c): writes are free, reads are metered.
 */
#include <string.h>

#include "tenant/host/tensor.h"

/* ---- an instance's state ---- */

host_tensors *host_tensors_of(realm_host *h) {
    if (!h->tensors && !(h->tensors = realm_calloc(1, sizeof *h->tensors)))
        realm_error_set(&h->error, REALM_E_NOMEM, "no memory for a program's tensors");
    return h->tensors;
}

/* The tenant's. */
static realm_tensor_budget *budget_of(const realm_host *h) { return realm_run_request(h->run)->tenant->tensors; }

/* Undoes a pin too that nobody has taken over: an instance may be ended, or cancelled, when the service has told of it
 * and before its call runs again. */
static void work_end(host_tensor_work *w) {
    realm_tensor_job_release(w->job); /* from here on list_done has run or never will */
    w->job = NULL;
    if (w->pinned) (void)!realm_model_layer_unpin(w->pin.model->m->model, w->pin.layer, NULL);
    w->pinned = false;
    w->pin.model = NULL;
    for (size_t i = 0; i < REALM_ARRAY_LEN(w->own); i++) {
        realm_tensor_release(w->own[i]);
        w->own[i] = NULL;
    }
}

void host_tensor_forget_own(realm_host *h) { work_end(&h->tensors->work); }

void host_tensors_close(realm_host *h) {
    host_tensors *t = h->tensors;
    if (!t) return;
    work_end(&t->work);
    for (uint32_t i = 0; i < t->n_pins; i++)
        (void)!realm_model_layer_unpin(t->pins[i].model->m->model, t->pins[i].layer, NULL);
    realm_free(t);
    h->tensors = NULL;
}

bool host_model_is_own(const host_model *model) { return model->m->sha256[0] != 0; }

realm_call_result host_tensor_give(realm_host *h, realm_tensor *t, const host_model *model, int32_t *result) {
    host_tensor *o = realm_malloc(sizeof *o);
    if (!o) {
        realm_tensor_release(t);
        return host_fail(h, result, REALM_E_NOMEM, "no memory for a tensor's handle");
    }
    *o = (host_tensor){t, model && !host_model_is_own(model)};
    return host_handle_give(h, HOST_TENSOR, o, result);
}

void host_tensor_free(realm_host *h, void *object) {
    (void)h;
    host_tensor *o = object;
    realm_tensor_release(o->t);
    realm_free(o);
}

/* ---- lists ---- */

static void list_done(void *user, realm_status status, const realm_error *err) {
    host_tensor_work *w = user;
    if (status) {
        if (err) w->error = *err;
        w->error.code = status;
    }
    w->pinned = !status && w->pin.model;
    realm_instance *i = atomic_load_explicit(&w->host->instance, memory_order_acquire);
    /* Release: the program's worker reads the error after it has seen the flag. */
    atomic_store_explicit(&w->done, true, memory_order_release);
    if (i) realm_instance_wake(i);
}

typedef struct call_state { /* of a call that computes */
    bool started;
} call_state;

bool host_tensor_started(realm_call *call) { return ((const call_state *)realm_call_state(call))->started; }

realm_call_result host_tensor_start(realm_call *call, const realm_tensor_op *ops, size_t n, const char *what,
                                    int32_t *result) {
    realm_host *h = host_of(call);
    host_tensors *t = host_tensors_of(h);
    if (!t) return host_failed(h, result);
    realm_tensor_budget *b = budget_of(h);
    host_tensor_work *w = &t->work;
    ((call_state *)realm_call_state(call))->started = true;
    w->host = h;
    realm_error_clear(&w->error);
    atomic_store_explicit(&w->done, false, memory_order_relaxed);
    realm_tensor_service *s = realm_run_runtime(h->run)->tensors;
    if (realm_tensor_submit(s, b, ops, n, list_done, w, &w->job, &h->error)) {
        work_end(w);
        realm_error_prefix(&h->error, what);
        return host_failed(h, result);
    }
    return REALM_CALL_SUSPEND;
}

bool host_tensor_done(realm_call *call, const char *what, realm_call_result *state, int32_t *result) {
    realm_host *h = host_of(call);
    host_tensor_work *w = &h->tensors->work;
    if (!atomic_load_explicit(&w->done, memory_order_acquire)) {
        *state = REALM_CALL_SUSPEND;
        if (!realm_call_cancelled(call)) return false;
        work_end(w);
        *state = host_fail(h, result, REALM_E_CANCELLED, "%s: the request was cancelled", what);
        return false;
    }
    realm_tensor_job_release(w->job);
    w->job = NULL;
    if (!w->error.code) return true;
    h->error = w->error;
    work_end(w);
    realm_error_prefix(&h->error, what);
    *state = host_failed(h, result);
    return false;
}

/* ---- tensors ---- */

realm_call_result host_tensor_new(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    uint64_t dims[REALM_TENSOR_MAX_DIMS];
    realm_tensor *t;
    if (args[1] == 0 || args[1] > REALM_TENSOR_MAX_DIMS)
        return host_fail(h, result, REALM_E_RANGE, "tensor_new: 1 to %u dimensions", REALM_TENSOR_MAX_DIMS);
    const void *from = host_range(call, args[0], args[1] * sizeof *dims, "tensor_new", result);
    if (!from) return REALM_CALL_DONE;
    memcpy(dims, from, (size_t)args[1] * sizeof *dims);
    if (realm_tensor_new(budget_of(h), (uint32_t)args[1], dims, &t, &h->error)) return host_failed(h, result);
    return host_tensor_give(h, t, NULL, result);
}

static void weight_let_go(void *user) { realm_served_release(user); }

/* It holds its model: the service may outlast the instance by a slice. */
realm_status host_weight_open(realm_host *h, const host_model *model, const char *name, size_t len,
                              realm_tensor **out) {
    tenant_model *m = model_hold_again(model->m);
    realm_status st = realm_tensor_of_weight(m->model, name, len, weight_let_go, m, out, &h->error);
    if (st) realm_served_release(m);
    return st;
}

realm_call_result host_tensor_weight(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    const host_model *m;
    realm_tensor *t;
    if (args[2] > HOST_NAME_MAX)
        return host_fail(h, result, REALM_E_RANGE, "tensor_weight: a name has at most %u bytes", HOST_NAME_MAX);
    if (!host_range(call, args[1], args[2], "tensor_weight", result)) return REALM_CALL_DONE;
    realm_call_result state = host_model_get(call, args[0], &m, result);
    if (!m) return state;
    const char *name = realm_call_memory(call, args[1], args[2]); /* again: loading the model may have taken its time */
    if (host_weight_open(h, m, name, (size_t)args[2], &t)) return host_failed(h, result);
    return host_tensor_give(h, t, m, result);
}

/* An open tensor, or NULL with *result set. */
static realm_tensor *get_tensor(realm_call *call, uint64_t handle, const char *what, int32_t *result) {
    realm_host *h = host_of(call);
    const host_tensor *o = host_get(h, handle, HOST_TENSOR);
    if (!o) host_fail(h, result, REALM_E_INVALID, "%s: %d is no open tensor", what, (int32_t)handle);
    return o ? o->t : NULL;
}

realm_call_result host_tensor_info(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_tensor_info info;
    realm_tensor *t = get_tensor(call, args[0], "tensor_info", result);
    if (!t) return REALM_CALL_DONE;
    realm_guest_tensor out = {0};
    void *to = host_range(call, args[1], sizeof out, "tensor_info", result);
    if (!to) return REALM_CALL_DONE;
    realm_tensor_get_info(t, &info);
    memcpy(out.dims, info.dims, sizeof out.dims);
    out.n_dims = info.n_dims;
    out.type = (uint32_t)info.type->type;
    out.weight = info.is_weight;
    memcpy(to, &out, sizeof out);
    return REALM_CALL_DONE;
}

/* Both directions copy through here: the program's floats need not be aligned. */
#define COPY_VALUES 4096u

realm_call_result host_tensor_write(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    float part[COPY_VALUES];
    uint64_t bytes;
    realm_tensor *t = get_tensor(call, args[0], "tensor_write", result);
    if (!t) return REALM_CALL_DONE;
    if (!realm_mul_u64(args[3], sizeof(float), &bytes))
        return host_fail(h, result, REALM_E_RANGE, "tensor_write: too many values");
    const char *from = host_range(call, args[2], bytes, "tensor_write", result);
    if (!from) return REALM_CALL_DONE;
    /* The whole range is checked before the first value is written. */
    realm_tensor_info info;
    realm_tensor_get_info(t, &info);
    if (args[1] > info.rows * info.cols || args[3] > info.rows * info.cols - args[1])
        return host_fail(h, result, REALM_E_RANGE, "tensor_write: values %llu to %llu of %llu",
                         (unsigned long long)args[1], (unsigned long long)(args[1] + args[3]),
                         (unsigned long long)(info.rows * info.cols));
    for (uint64_t done = 0; done < args[3];) {
        uint64_t n = REALM_MIN(args[3] - done, (uint64_t)COPY_VALUES);
        memcpy(part, from + done * sizeof *part, (size_t)n * sizeof *part);
        if (realm_tensor_write(t, args[1] + done, n, part, &h->error)) return host_failed(h, result);
        done += n;
    }
    return REALM_CALL_DONE;
}

realm_call_result host_tensor_read(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    uint64_t bytes;
    if (realm_call_resumed(call)) return host_copy_go_on(call, args[2], "tensor_read", result);
    realm_tensor *t = get_tensor(call, args[0], "tensor_read", result);
    if (!t) return REALM_CALL_DONE;
    const host_tensor *o = host_get(h, args[0], HOST_TENSOR);
    if (o->denied && !realm_run_limits(h->run)->read_weights)
        return host_fail(h, result, REALM_E_DENIED, "tensor_read: reading weights needs the tenant's read_weights");
    if (!realm_mul_u64(args[3], sizeof(float), &bytes) || args[3] > INT32_MAX)
        return host_fail(h, result, REALM_E_RANGE, "tensor_read: too many values");
    char *to = host_range(call, args[2], bytes, "tensor_read", result);
    if (!to) return REALM_CALL_DONE;
    realm_tensor_info info;
    realm_tensor_get_info(t, &info);
    if (info.is_weight && bytes > 0) {
        if (realm_tensor_check_read(t, args[1], args[3], &h->error) || host_charge_read(h, bytes, "tensor_read"))
            return host_failed(h, result);
        return host_copy_values(call, t, args[1], args[3], result);
    }
    float *values = realm_malloc((size_t)bytes + 1);
    if (!values)
        return host_fail(h, result, REALM_E_NOMEM, "tensor_read: no memory for %llu bytes", (unsigned long long)bytes);
    realm_status st = host_charge_read(h, bytes, "tensor_read");
    if (!st) st = realm_tensor_read(t, args[1], args[3], values, &h->error);
    if (!st && bytes) memcpy(to, values, (size_t)bytes);
    realm_free(values);
    if (st) return host_failed(h, result);
    *result = (int32_t)args[3];
    return REALM_CALL_DONE;
}

/* ---- operations ---- */

/* The program's numbers are those of realm/abi.h, one to one. */
static bool kind_of(uint32_t kind, realm_tensor_op_kind *out) {
    static const realm_tensor_op_kind KINDS[] = {
        [REALM_TENSOR_OP_MATMUL] = REALM_TENSOR_MATMUL,     [REALM_TENSOR_OP_MATMUL_PLAIN] = REALM_TENSOR_MATMUL_PLAIN,
        [REALM_TENSOR_OP_GET_ROWS] = REALM_TENSOR_GET_ROWS, [REALM_TENSOR_OP_RMS_NORM] = REALM_TENSOR_RMS_NORM,
        [REALM_TENSOR_OP_ADD] = REALM_TENSOR_ADD,           [REALM_TENSOR_OP_MUL] = REALM_TENSOR_MUL,
        [REALM_TENSOR_OP_SCALE] = REALM_TENSOR_SCALE,       [REALM_TENSOR_OP_SILU] = REALM_TENSOR_SILU,
        [REALM_TENSOR_OP_GELU] = REALM_TENSOR_GELU,         [REALM_TENSOR_OP_SOFTMAX] = REALM_TENSOR_SOFTMAX,
        [REALM_TENSOR_OP_ROPE] = REALM_TENSOR_ROPE,         [REALM_TENSOR_OP_ATTENTION] = REALM_TENSOR_ATTENTION,
        [REALM_TENSOR_OP_ARGMAX] = REALM_TENSOR_ARGMAX,     [REALM_TENSOR_OP_COPY] = REALM_TENSOR_COPY,
    };
    if (kind == 0 || kind >= REALM_ARRAY_LEN(KINDS)) return false;
    *out = KINDS[kind];
    return true;
}

static realm_status operand(realm_host *h, int32_t handle, size_t op, const char *name, realm_tensor **out) {
    *out = NULL;
    if (handle == 0) return REALM_OK; /* the service says where one is missing */
    const host_tensor *o = host_get(h, (uint32_t)handle, HOST_TENSOR);
    if (o) *out = o->t;
    if (o) return REALM_OK;
    return realm_error_set(&h->error, REALM_E_INVALID, "op %zu: %s is %d, which is no open tensor", op, name, handle);
}

/* `ids` (REALM_TENSOR_MAX_IDS in all) receives the row numbers. */
static realm_status read_op(realm_call *call, const realm_guest_tensor_op *g, size_t at, int32_t *ids, size_t *n_ids,
                            realm_tensor_op *o) {
    realm_host *h = host_of(call);
    memset(o, 0, sizeof *o);
    if (!kind_of(g->kind, &o->kind))
        return realm_error_set(&h->error, REALM_E_UNSUPPORTED, "op %zu: there is no operation %u", at, g->kind);
    uint32_t known = g->kind == REALM_TENSOR_OP_ROPE        ? REALM_TENSOR_ROPE_HALVES
                     : g->kind == REALM_TENSOR_OP_ATTENTION ? REALM_TENSOR_ATTENTION_FULL
                                                            : 0;
    if (g->flags & ~known)
        return realm_error_set(&h->error, REALM_E_UNSUPPORTED, "op %zu: unknown flags 0x%x", at, g->flags & ~known);
    realm_status st = operand(h, g->out, at, "out", &o->out);
    if (!st) st = operand(h, g->a, at, "a", &o->a);
    if (!st) st = operand(h, g->b, at, "b", &o->b);
    if (!st) st = operand(h, g->c, at, "c", &o->c);
    if (!st) st = operand(h, g->d, at, "d", &o->d);
    if (st) return st;
    o->m = g->m;
    switch (g->kind) {
    case REALM_TENSOR_OP_GET_ROWS: {
        if (g->n_ids > REALM_TENSOR_MAX_IDS - *n_ids)
            return realm_error_set(&h->error, REALM_E_LIMIT, "op %zu: more than %u row numbers in one list", at,
                                   REALM_TENSOR_MAX_IDS);
        const void *from = realm_call_memory(call, g->ids, (uint64_t)g->n_ids * sizeof *ids);
        if (!from)
            return realm_error_set(&h->error, REALM_E_RANGE, "op %zu: the row numbers are not all inside the memory",
                                   at);
        if (g->n_ids) memcpy(ids + *n_ids, from, g->n_ids * sizeof *ids);
        o->u.get_rows.ids = ids + *n_ids;
        o->u.get_rows.n = g->n_ids;
        o->u.get_rows.scale = g->scale;
        *n_ids += g->n_ids;
        break;
    }
    case REALM_TENSOR_OP_RMS_NORM: o->u.eps = g->eps; break;
    case REALM_TENSOR_OP_SCALE: o->u.scale = g->scale; break;
    case REALM_TENSOR_OP_ROPE:
        o->u.rope.head_dim = g->head_dim;
        o->u.rope.rope_dims = g->rope_dims;
        o->u.rope.first_pos = g->first;
        o->u.rope.base = g->base;
        o->u.rope.freq_scale = g->freq_scale;
        o->u.rope.style = g->flags & REALM_TENSOR_ROPE_HALVES ? REALM_ROPE_HALVES : REALM_ROPE_PAIRS;
        break;
    case REALM_TENSOR_OP_ATTENTION:
        o->u.attention.n_head = g->n_head;
        o->u.attention.n_kv_head = g->n_kv_head;
        o->u.attention.head_dim = g->head_dim;
        o->u.attention.t = g->t;
        o->u.attention.n_past = g->first;
        o->u.attention.window = g->window;
        o->u.attention.full = g->flags & REALM_TENSOR_ATTENTION_FULL;
        o->u.attention.scale = g->scale;
        o->u.attention.softcap = g->softcap;
        break;
    case REALM_TENSOR_OP_COPY:
        o->u.copy.row = g->row;
        o->u.copy.n_rows = g->n_rows;
        o->u.copy.out_row = g->out_row;
        break;
    default: break;
    }
    return REALM_OK;
}

realm_call_result host_tensor_run(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    realm_call_result state = REALM_CALL_DONE;
    if (host_tensor_started(call)) {
        (void)host_tensor_done(call, "tensor_run", &state, result);
        return state;
    }
    uint64_t n = args[1];
    if (n == 0) return REALM_CALL_DONE;
    if (n > REALM_TENSOR_MAX_OPS)
        return host_fail(h, result, REALM_E_LIMIT, "tensor_run: at most %u operations in one list",
                         REALM_TENSOR_MAX_OPS);
    const char *from = host_range(call, args[0], n * sizeof(realm_guest_tensor_op), "tensor_run", result);
    if (!from) return REALM_CALL_DONE;
    realm_tensor_op *ops = realm_calloc((size_t)n, sizeof *ops);
    int32_t *ids = realm_calloc(REALM_TENSOR_MAX_IDS, sizeof *ids);
    size_t n_ids = 0;
    realm_status st = REALM_OK;
    if (!ops || !ids)
        st = realm_error_set(&h->error, REALM_E_NOMEM, "no memory for %llu operations", (unsigned long long)n);
    for (size_t i = 0; i < n && !st; i++) {
        realm_guest_tensor_op g;
        memcpy(&g, from + i * sizeof g, sizeof g);
        st = read_op(call, &g, i, ids, &n_ids, &ops[i]);
    }
    if (st) {
        realm_error_prefix(&h->error, "tensor_run");
        state = host_failed(h, result);
    } else {
        state = host_tensor_start(call, ops, (size_t)n, "tensor_run", result);
    }
    realm_free(ids);
    realm_free(ops);
    return state;
}

/* ---- rows of logits ---- */

void host_logits_free(realm_host *h, void *object) {
    host_logits *l = object;
    realm_logits_release(l->rows.logits);
    h->tensor_bytes -= l->rows.charged;
    realm_free(l);
}

static realm_status copy_logits(realm_host *h, const realm_tensor *t, const realm_tensor_info *info, host_logits *l) {
    realm_engine *e = l->model->m->engine;
    uint64_t values = info->rows * info->cols; /* of a tensor that exists: no overflow */
    float *rows = realm_malloc((size_t)values * sizeof *rows);
    if (!rows) return realm_error_set(&h->error, REALM_E_NOMEM, "tensor_logits: no memory for a copy");
    realm_status st = realm_tensor_read(t, 0, values, rows, &h->error);
    if (!st) st = realm_logits_open(e, rows, (size_t)info->rows, &l->rows.logits, &h->error);
    realm_free(rows);
    return st;
}

realm_call_result host_tensor_logits(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    realm_tensor_info info;
    realm_tensor *t = get_tensor(call, args[0], "tensor_logits", result);
    if (!t) return REALM_CALL_DONE;
    realm_tensor_get_info(t, &info);
    size_t vocabulary = realm_tokenizer_vocab_size(host_tokenizer(h->model));
    if (info.is_weight || info.cols != vocabulary || info.rows > REALM_FORWARD_ROWS_MAX)
        return host_fail(h, result, REALM_E_RANGE,
                         "tensor_logits: a tensor of (%llu, %llu), not of up to %u rows of %zu values of one's own",
                         (unsigned long long)info.rows, (unsigned long long)info.cols, REALM_FORWARD_ROWS_MAX,
                         vocabulary);
    host_logits *l = realm_calloc(1, sizeof *l);
    if (!l) return host_fail(h, result, REALM_E_NOMEM, "tensor_logits: out of memory");
    l->model = h->model;
    realm_status st = host_charge_tensor(h, info.bytes, "tensor_logits");
    if (!st) l->rows.charged = info.bytes;
    if (!st) st = copy_logits(h, t, &info, l);
    if (!st) return host_handle_give(h, HOST_LOGITS, l, result);
    host_logits_free(h, l);
    return host_failed(h, result);
}

/* ---- the specification's two ---- */

static realm_status make_own(realm_host *h, size_t i, uint32_t rows, uint32_t cols, const char *values) {
    host_tensors *t = host_tensors_of(h);
    if (!t) return h->error.code;
    realm_status st = realm_tensor_new(budget_of(h), 2, (uint64_t[]){rows, cols}, &t->work.own[i], &h->error);
    if (st || !values) return st;
    float part[COPY_VALUES];
    uint64_t total = (uint64_t)rows * cols;
    for (uint64_t done = 0; done < total && !st;) {
        uint64_t n = REALM_MIN(total - done, (uint64_t)COPY_VALUES);
        memcpy(part, values + done * sizeof *part, (size_t)n * sizeof *part);
        st = realm_tensor_write(t->work.own[i], done, n, part, &h->error);
        done += n;
    }
    return st;
}

/* candle_matmul(a, a_len, b, b_len, m, k, n, out): float32 [m,k] x [k,n], lengths in bytes */
realm_call_result host_candle_matmul(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    realm_call_result state = REALM_CALL_DONE;
    uint32_t m = (uint32_t)args[4], k = (uint32_t)args[5], n = (uint32_t)args[6];
    uint64_t out_bytes = (uint64_t)m * n; /* of 32 bits each, so this cannot overflow */
    if (!realm_mul_u64(out_bytes, sizeof(float), &out_bytes))
        return host_fail(h, result, REALM_E_RANGE, "candle_matmul: %u x %u values are too many", m, n);
    if (!host_tensor_started(call)) {
        if (m == 0 || k == 0 || n == 0)
            return host_fail(h, result, REALM_E_RANGE, "candle_matmul: m, k and n must not be 0");
        if (args[1] / sizeof(float) < (uint64_t)m * k || args[3] / sizeof(float) < (uint64_t)k * n)
            return host_fail(h, result, REALM_E_RANGE,
                             "candle_matmul: %llu and %llu bytes are less than %u x %u and %u x %u values",
                             (unsigned long long)args[1], (unsigned long long)args[3], m, k, k, n);
        const char *a = host_range(call, args[0], args[1], "candle_matmul: a", result);
        const char *b = a ? host_range(call, args[2], args[3], "candle_matmul: b", result) : NULL;
        if (!b || !host_range(call, args[7], out_bytes, "candle_matmul: out", result)) return REALM_CALL_DONE;
        realm_status st = host_charge_read(h, out_bytes, "candle_matmul");
        if (!st) st = make_own(h, 0, m, k, a);
        if (!st) st = make_own(h, 1, k, n, b);
        if (!st) st = make_own(h, 2, m, n, NULL);
        if (st) {
            if (h->tensors) work_end(&h->tensors->work);
            realm_error_prefix(&h->error, "candle_matmul");
            return host_failed(h, result);
        }
        realm_tensor *const *own = h->tensors->work.own;
        realm_tensor_op op = {.kind = REALM_TENSOR_MATMUL_PLAIN, .out = own[2], .a = own[0], .b = own[1]};
        return host_tensor_start(call, &op, 1, "candle_matmul", result);
    }
    if (!host_tensor_done(call, "candle_matmul", &state, result)) return state;
    host_tensor_work *w = &h->tensors->work;
    char *to = host_range(call, args[7], out_bytes, "candle_matmul: out", result);
    float part[COPY_VALUES];
    realm_status st = REALM_OK;
    for (uint64_t done = 0, total = (uint64_t)m * n; to && done < total && !st;) {
        uint64_t count = REALM_MIN(total - done, (uint64_t)COPY_VALUES);
        if (!(st = realm_tensor_read(w->own[2], done, count, part, &h->error)))
            memcpy(to + done * sizeof *part, part, (size_t)count * sizeof *part);
        done += count;
    }
    work_end(w);
    if (st) return host_failed(h, result);
    return REALM_CALL_DONE;
}

realm_call_result host_attention_forward(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    realm_call_result state = REALM_CALL_DONE;
    static const char WHAT[] = "attention_forward";
    if (host_tensor_started(call)) {
        (void)host_tensor_done(call, WHAT, &state, result);
        return state;
    }
    realm_tensor_op op = {.kind = REALM_TENSOR_ATTENTION};
    if (!(op.a = get_tensor(call, args[0], "attention_forward: q", result)) ||
        !(op.b = get_tensor(call, args[1], "attention_forward: k", result)) ||
        !(op.c = get_tensor(call, args[2], "attention_forward: v", result)) ||
        (args[3] && !(op.d = get_tensor(call, args[3], "attention_forward: mask", result))) ||
        !(op.out = get_tensor(call, args[4], "attention_forward: out", result)))
        return REALM_CALL_DONE;
    uint32_t scale_bits = (uint32_t)args[8];
    op.u.attention.n_head = (uint32_t)args[5];
    op.u.attention.n_kv_head = (uint32_t)args[6];
    op.u.attention.head_dim = (uint32_t)args[7];
    memcpy(&op.u.attention.scale, &scale_bits, sizeof scale_bits);
    if (op.d) {
        op.u.attention.full = true; /* the mask alone says what is hidden */
    } else {
        /* Causal from the end: the last query sees all positions. */
        realm_tensor_info q, k;
        realm_tensor_get_info(op.a, &q);
        realm_tensor_get_info(op.b, &k);
        if (q.rows > k.rows)
            return host_fail(h, result, REALM_E_RANGE, "%s: %llu queries for %llu positions", WHAT,
                             (unsigned long long)q.rows, (unsigned long long)k.rows);
        op.u.attention.n_past = (uint32_t)(k.rows - q.rows);
    }
    return host_tensor_start(call, &op, 1, WHAT, result);
}
