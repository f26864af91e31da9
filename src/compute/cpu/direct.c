/* compute/cpu/direct.c - the direct ops: one op on host rows, with the kernels and helpers that plans are run with.
 *
 * Nothing is computed here that the plan computes elsewhere: LINEAR is linear.c over the weight's panels; MATMUL packs
 * the float matrix into panels first and goes the same way; ATTENTION copies K and V into pages (halves, as the plan's
 * KV is) and is attention.c over a plan that exists for this one op; norms, activations and rotations are the kernels
 * of the table row by row. What has no kernel (softmax, argmax) is plain C, so it is the same at every level.
 *
 * Ops that need memory beside the operands take it from one mapping of the backend, before anything is written.
 */
#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "compute/cpu/pack.h"
#include "compute/cpu/plan.h"

#define KEEP_BYTES ((size_t)32 << 20) /* of the mapping, from one op to the next */
#define SMALL_VALUES 16384u           /* below it waking the team costs more than it saves */
#define ACT_CHUNK 256u

void cpu_direct_release(cpu_backend *b) {
    if (b->direct.map) realm_pages_unmap(b->direct.map, b->direct.bytes);
    b->direct.map = NULL;
    b->direct.bytes = 0;
}

/* At least `bytes`; what was in it is lost. */
static realm_status reserve(cpu_backend *b, size_t bytes, realm_error *err) {
    if (bytes <= b->direct.bytes) return REALM_OK;
    char *map = realm_pages_map(bytes);
    if (!map) return realm_error_set(err, REALM_E_NOMEM, "no memory for an op that needs %zu bytes beside it", bytes);
    cpu_direct_release(b);
    b->direct.map = map;
    b->direct.bytes = bytes;
    return REALM_OK;
}

static void shrink(cpu_backend *b) {
    if (b->direct.bytes > KEEP_BYTES) cpu_direct_release(b);
}

/* Where parts of the mapping lie: adds up first, gives pointers once it is there. */
typedef struct layout {
    char *map;
    size_t at;
    bool overflow;
} layout;

static void *part(layout *l, size_t n, size_t size) {
    size_t bytes;
    uint64_t end;
    void *p = l->map ? l->map + l->at : NULL;
    if (!realm_mul_size(n, size, &bytes) || !realm_add_size(l->at, bytes, &bytes) || !realm_align_u64(bytes, 64, &end))
        l->overflow = true;
    else
        l->at = (size_t)end;
    return p;
}

static realm_status too_large(const char *what, realm_error *err) {
    return realm_error_set(err, REALM_E_LIMIT, "%s is too large", what);
}

/* ---- products ---------------------------------------------------------------------------------------------------- */

typedef struct product {
    const realm_cpu_kernels *kernels;
    realm_linear_args args;
} product;

static void product_worker(realm_worker *w, void *user) {
    const product *p = user;
    realm_cpu_linear(w, p->kernels, &p->args);
}

static realm_status multiply(cpu_backend *b, const realm_direct *op, const realm_weight *w, void *quantized,
                             realm_error *err) {
    realm_status s = realm_team_reserve(b->team, realm_linear_scratch_bytes(w->cols), err);
    if (s != REALM_OK) return s;
    product p = {.kernels = &b->kernels,
                 .args = {.x = op->x, .n_rows = op->m, .n_weights = 1, .w = {w}, .y = {op->y}, .quantized = quantized}};
    realm_team_run(b->team, product_worker, &p);
    return REALM_OK;
}

static realm_status run_linear(cpu_backend *b, const realm_direct *op, realm_error *err) {
    const realm_weight *w = op->u.linear;
    if (!w->packed || !w->packed->panels || w->rows != op->cols)
        return realm_error_set(err, REALM_E_INVALID, "a weight that is not there for products, or not of %u rows",
                               op->cols);
    realm_status s = reserve(b, realm_linear_quantized_bytes(op->m, w->cols), err);
    return s == REALM_OK ? multiply(b, op, w, b->direct.map, err) : s;
}

static realm_status run_matmul(cpu_backend *b, const realm_direct *op, realm_error *err) {
    const realm_weight_desc desc = {.type = realm_type_get(REALM_TYPE_F32), .rows = op->cols, .cols = op->u.matmul.k};
    realm_weight w = {.type = desc.type, .rows = desc.rows, .cols = desc.cols, .use = REALM_WEIGHT_LINEAR};
    realm_status s = realm_cpu_pack_shape(&desc, &w.packed, err);
    if (s != REALM_OK) return s;
    layout l = {0};
    void *panels = NULL, *quantized = NULL;
    for (int pass = 0; pass < 2 && s == REALM_OK; pass++) {
        l = (layout){.map = pass ? b->direct.map : NULL};
        panels = part(&l, w.packed->bytes, 1);
        quantized = part(&l, realm_linear_quantized_bytes(op->m, w.cols), 1);
        if (l.overflow)
            s = too_large("a product", err);
        else if (pass == 0)
            s = reserve(b, l.at, err);
    }
    /* What the product itself needs, before the work of packing. */
    if (s == REALM_OK) s = realm_team_reserve(b->team, realm_linear_scratch_bytes(w.cols), err);
    if (s == REALM_OK) {
        if (op->u.matmul.plain)
            realm_cpu_pack_columns(b->team, w.packed, op->u.matmul.b, panels);
        else
            realm_cpu_pack_into(b->team, w.packed, op->u.matmul.b, panels);
        s = multiply(b, op, &w, quantized, err);
    }
    realm_cpu_unpack(w.packed);
    return s;
}

/* ---- attention --------------------------------------------------------------------------------------------------- */

typedef struct attention_run {
    const realm_direct *op;
    realm_plan plan;
    plan_op plan_op;
    uint32_t first_page, n_pages;
} attention_run;

/* Page `page` of kv head `head` from the rows of k and v. */
static void fill_page(const attention_run *r, uint32_t page, uint32_t head) {
    const realm_kv *kv = r->plan.kv;
    const realm_row_kernels *k = &r->plan.backend->kernels.row;
    uint32_t first = page * REALM_KV_PAGE_TOKENS, end = REALM_MIN(first + REALM_KV_PAGE_TOKENS, r->op->u.attention.t);
    uint16_t *to_k = cpu_kv_k(kv, page, 0, head), *to_v = cpu_kv_v(kv, page, 0, head);
    for (uint32_t t = first; t < end; t++) {
        size_t at = ((size_t)t * kv->n_kv_head + head) * kv->head_dim;
        uint16_t *v = to_v + (size_t)(t - first) * kv->v_dim;
        k->store_half(r->op->u.attention.k + at, to_k + (t - first), kv->head_dim, REALM_KV_PAGE_TOKENS);
        k->store_half(r->op->u.attention.v + at, v, kv->head_dim, 1);
        for (uint32_t d = kv->head_dim; d < kv->v_dim; d++) v[d] = 0;
    }
}

static void attention_worker(realm_worker *w, void *user) {
    attention_run *r = user;
    uint32_t heads = r->plan.kv->n_kv_head, n = (r->n_pages - r->first_page) * heads, begin, end;
    uint32_t grain = REALM_MAX(1u, n / (8 * w->n));
    while (realm_worker_claim(w, n, grain, &begin, &end))
        for (uint32_t i = begin; i < end; i++) fill_page(r, r->first_page + i / heads, i % heads);
    realm_worker_barrier(w);
    cpu_attention(w, &r->plan, &r->plan_op);
}

static realm_status run_attention(cpu_backend *b, const realm_direct *op, realm_error *err) {
    const uint32_t head_dim = op->u.attention.head_dim, n_kv_head = op->u.attention.n_kv_head, t = op->u.attention.t;
    realm_kv kv = {.n_layers = 1,
                   .n_kv_head = n_kv_head,
                   .head_dim = head_dim,
                   .v_dim = (head_dim + REALM_HEAD_PAD - 1) / REALM_HEAD_PAD * REALM_HEAD_PAD,
                   .n_pages = (t + REALM_KV_PAGE_TOKENS - 1) / REALM_KV_PAGE_TOKENS};
    kv.block_halves = (size_t)REALM_KV_PAGE_TOKENS * (kv.head_dim + kv.v_dim);
    attention_schedule sched = {0};
    /* Rows that see everything are all at the last position. */
    realm_batch_seq seq = {.n_rows = op->m, .n_past = op->u.attention.full ? t - 1 : op->u.attention.n_past};
    realm_batch batch = {.n_rows = op->m, .n_seqs = 1, .seqs = &seq};
    /* Only read: the plan's values are pointers to what may be written, and x is not. */
    float *data[2] = {(float *)(uintptr_t)op->x, op->y};
    attention_run r = {.op = op,
                       .plan = {.backend = b,
                                .n_schedules = 1,
                                .schedules = &sched,
                                .kv = &kv,
                                .data = data,
                                .batch = &batch,
                                .tile_rows = REALM_ATTEND_TILE_ROWS,
                                .row_step = op->u.attention.full ? 0 : 1,
                                .mask = op->u.attention.mask,
                                .mask_cols = t},
                       .plan_op = {.op = {.kind = REALM_OP_ATTENTION,
                                          .u.attention = {.q = 0,
                                                          .out = 1,
                                                          .n_head = op->u.attention.n_head,
                                                          .n_kv_head = n_kv_head,
                                                          .head_dim = head_dim,
                                                          .window = op->u.attention.window,
                                                          .scale = op->u.attention.scale,
                                                          .softcap = op->u.attention.softcap}}},
                       .n_pages = kv.n_pages};
    if (!realm_mul_size(kv.block_halves, n_kv_head, &kv.page_halves)) return too_large("the K and V of an op", err);
    if (op->u.attention.window > 0 && seq.n_past >= op->u.attention.window)
        r.first_page = (seq.n_past + 1 - op->u.attention.window) / REALM_KV_PAGE_TOKENS;
    r.n_pages = REALM_MIN(kv.n_pages, (seq.n_past + (op->m - 1) * r.plan.row_step) / REALM_KV_PAGE_TOKENS + 1);
    cpu_attention_shape(&sched, &r.plan_op.op.u.attention, &r.plan.tile_rows);
    r.plan.partial_floats = cpu_attention_partial_floats(&r.plan);
    uint32_t n_tiles = (op->m + r.plan.tile_rows - 1) / r.plan.tile_rows, *ids = NULL;
    realm_status s = realm_team_reserve(b->team, cpu_attention_scratch_bytes(head_dim), err);
    for (int pass = 0; pass < 2 && s == REALM_OK; pass++) {
        layout l = {.map = pass ? b->direct.map : NULL};
        size_t halves = 0;
        l.overflow = !realm_mul_size(kv.page_halves, kv.n_pages, &halves);
        kv.pages = part(&l, halves, sizeof *kv.pages);
        r.plan.partials = part(&l, r.plan.partial_floats, sizeof(float));
        r.plan.tiles = part(&l, n_tiles, sizeof *r.plan.tiles);
        sched.first_item = part(&l, (size_t)n_tiles + 1, sizeof *sched.first_item);
        ids = part(&l, kv.n_pages, sizeof *ids);
        if (l.overflow)
            s = too_large("the K and V of an op", err);
        else if (pass == 0)
            s = reserve(b, l.at, err);
    }
    if (s != REALM_OK) return s;
    for (uint32_t i = 0; i < kv.n_pages; i++) ids[i] = i;
    seq.pages = ids;
    cpu_attention_prepare(&r.plan);
    realm_team_run(b->team, attention_worker, &r);
    return REALM_OK;
}

/* ---- row by row -------------------------------------------------------------------------------------------------- */

typedef struct row_run {
    const realm_direct *op;
    const realm_row_kernels *kernels;
    const double *freq; /* ROPE */
    float *cs;          /* ROPE: (m, rope_dims) */
} row_run;

/* y = act(x) * z, where y may be any of them; z NULL: ones. */
static void act_row(const realm_row_kernels *k, realm_act act, const float *x, const float *z, float *y, uint32_t n) {
    float ones[ACT_CHUNK], t[ACT_CHUNK];
    for (uint32_t i = 0; !z && i < ACT_CHUNK; i++) ones[i] = 1.0f;
    for (uint32_t at = 0; at < n; at += ACT_CHUNK) {
        uint32_t len = REALM_MIN(ACT_CHUNK, n - at);
        memcpy(t, x + at, len * sizeof *t);
        k->act_mul(act, t, z ? z + at : ones, len);
        memcpy(y + at, t, len * sizeof *t);
    }
}

static void softmax_row(const float *x, float *y, uint32_t n) {
    float top = x[0], lane[REALM_SUM_LANES] = {0};
    for (uint32_t i = 1; i < n; i++)
        if (x[i] > top) top = x[i];
    for (uint32_t i = 0; i < n; i++) {
        y[i] = expf(x[i] - top);
        lane[i % REALM_SUM_LANES] += y[i];
    }
    for (uint32_t half = REALM_SUM_LANES / 2; half > 0; half /= 2)
        for (uint32_t j = 0; j < half; j++) lane[j] += lane[j + half];
    for (uint32_t i = 0; i < n; i++) y[i] /= lane[0];
}

static void rope_row(const row_run *r, const float *x, float *y, uint32_t row) {
    const realm_direct *op = r->op;
    uint32_t dims = op->u.rope.rope_dims;
    float *cs = r->cs + (size_t)row * dims;
    cpu_rope_angles(dims, r->freq, op->u.rope.first_pos + row, 0, dims / 2, cs);
    if (y != x) memcpy(y, x, op->cols * sizeof *y);
    for (uint32_t at = 0; at < op->cols; at += op->u.rope.head_dim)
        r->kernels->rope_row(op->u.rope.style, y + at, cs, dims);
}

static void run_row(const row_run *r, uint32_t row) {
    const realm_direct *op = r->op;
    const uint32_t n = op->cols;
    const float *x = op->x ? op->x + (size_t)row * n : NULL;
    float *y = op->kind == REALM_DIRECT_ARGMAX ? op->y + row : op->y + (size_t)row * n;
    switch (op->kind) {
    case REALM_DIRECT_ROWS: {
        const realm_type_info *type = op->u.rows.type;
        size_t row_bytes = (size_t)n / type->block_len * type->block_bytes;
        type->dequantize((const char *)op->u.rows.data + (size_t)op->u.rows.ids[row] * row_bytes, y, n);
        if (op->u.rows.scale != 1.0f) r->kernels->scale_row(y, op->u.rows.scale, n);
        break;
    }
    case REALM_DIRECT_NORM: r->kernels->rms_norm_row(x, op->u.norm.gain, op->u.norm.eps, y, n); break;
    case REALM_DIRECT_ADD: {
        const float *z = op->u.add.z + (op->u.add.one_row ? 0 : (size_t)row * n);
        for (uint32_t i = 0; i < n; i++) y[i] = x[i] + z[i];
        break;
    }
    case REALM_DIRECT_MUL: {
        const float *z = op->u.mul.z + (op->u.mul.one_row ? 0 : (size_t)row * n);
        for (uint32_t i = 0; i < n; i++) y[i] = x[i] * z[i];
        break;
    }
    case REALM_DIRECT_SCALE:
        for (uint32_t i = 0; i < n; i++) y[i] = x[i] * op->u.scale;
        break;
    case REALM_DIRECT_ACT:
        act_row(r->kernels, op->u.act.act, x, op->u.act.z ? op->u.act.z + (size_t)row * n : NULL, y, n);
        break;
    case REALM_DIRECT_SOFTMAX: softmax_row(x, y, n); break;
    case REALM_DIRECT_ROPE: rope_row(r, x, y, row); break;
    case REALM_DIRECT_ARGMAX: {
        uint32_t best = 0;
        for (uint32_t i = 1; i < n; i++)
            if (x[i] > x[best]) best = i;
        y[0] = (float)best;
        break;
    }
    case REALM_DIRECT_COPY: memcpy(y, x, n * sizeof *y); break;
    default: break;
    }
}

static void rows_worker(realm_worker *w, void *user) {
    const row_run *r = user;
    uint32_t grain = REALM_MAX(1u, r->op->m / (8 * w->n)), begin, end;
    while (realm_worker_claim(w, r->op->m, grain, &begin, &end))
        for (uint32_t row = begin; row < end; row++) run_row(r, row);
    realm_worker_barrier(w);
}

static realm_status run_rows(cpu_backend *b, const realm_direct *op, realm_error *err) {
    row_run r = {.op = op, .kernels = &b->kernels.row};
    if (op->kind == REALM_DIRECT_ROPE) {
        uint32_t dims = op->u.rope.rope_dims;
        double *freq = NULL;
        for (int pass = 0; pass < 2; pass++) {
            layout l = {.map = pass ? b->direct.map : NULL};
            freq = part(&l, dims / 2, sizeof *freq);
            r.cs = part(&l, (size_t)op->m * dims, sizeof *r.cs);
            if (l.overflow) return too_large("a rotation", err);
            realm_status s = pass == 0 ? reserve(b, l.at, err) : REALM_OK;
            if (s != REALM_OK) return s;
        }
        cpu_rope_freqs(dims, op->u.rope.base, op->u.rope.freq_scale, op->u.rope.factors, freq);
        r.freq = freq;
    }
    if (op->m > 1 && (size_t)op->m * op->cols >= SMALL_VALUES)
        realm_team_run(b->team, rows_worker, &r);
    else
        for (uint32_t row = 0; row < op->m; row++) run_row(&r, row);
    return REALM_OK;
}

realm_status cpu_direct(realm_backend *b, const realm_direct *op, realm_error *err) {
    cpu_backend *cb = (cpu_backend *)(void *)b;
    if (op->m == 0 || op->cols == 0) return REALM_OK;
    realm_status s;
    switch (op->kind) {
    case REALM_DIRECT_LINEAR: s = run_linear(cb, op, err); break;
    case REALM_DIRECT_MATMUL: s = run_matmul(cb, op, err); break;
    case REALM_DIRECT_ATTENTION: s = run_attention(cb, op, err); break;
    default: s = run_rows(cb, op, err); break;
    }
    shrink(cb);
    return s;
}
