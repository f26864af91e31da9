/* compute/cpu/direct.c - the direct ops: one op on host rows, a slice at a time, with the kernels and helpers that
 * plans are run with.
 *
 * Nothing is computed here that the plan computes elsewhere: products are linear.c (direct_product.c), attention is
 * attention.c (direct_attention.c); norms, activations and rotations are the kernels of the table row by row, below.
 * What has no kernel (softmax, argmax) is plain C, so it is the same at every level.
 *
 * A slice of these is a run of rows, or, where a row is long, a piece of one. What goes element by element is cut
 * anywhere; a softmax goes over its row three times (greatest value, exponentials and their sum, quotients) and keeps
 * the first two between pieces. Norms, lookups and the greatest value take a row whole: a few milliseconds for the
 * longest.
 *
 * Slices that need memory beside the operands take it from one mapping of the backend, before anything is written.
 */
#include "compute/cpu/direct.h"

#include <math.h>
#include <string.h>

#include "base/alloc.h"

#define KEEP_BYTES ((size_t)32 << 20) /* of the mapping, from one slice to the next */
#define SMALL_VALUES 16384u           /* below it waking the team costs more than it saves */
#define ACT_CHUNK 256u
/* Of a value that is moved or added; of one with an exponential or a sine. */
#define VALUE_WORK 32u
#define EXP_WORK 256u

void cpu_direct_release(cpu_backend *b) {
    if (b->direct.map) realm_pages_unmap(b->direct.map, b->direct.bytes);
    b->direct.map = NULL;
    b->direct.bytes = 0;
}

realm_status cpu_direct_reserve(cpu_backend *b, size_t bytes, realm_error *err) {
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

void *cpu_part(cpu_layout *l, size_t n, size_t size) {
    size_t bytes;
    uint64_t end;
    void *p = l->map ? l->map + l->at : NULL;
    if (!realm_mul_size(n, size, &bytes) || !realm_add_size(l->at, bytes, &bytes) || !realm_align_u64(bytes, 64, &end))
        l->overflow = true;
    else
        l->at = (size_t)end;
    return p;
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

static float softmax_top(const float *x, uint32_t n, float top) {
    for (uint32_t i = 0; i < n; i++)
        if (x[i] > top) top = x[i];
    return top;
}

/* lane j sums the values i = j mod REALM_SUM_LANES. */
static void softmax_exps(const float *x, float *y, uint32_t n, float top, float *lane) {
    for (uint32_t i = 0; i < n; i++) {
        y[i] = expf(x[i] - top);
        lane[i % REALM_SUM_LANES] += y[i];
    }
}

static void softmax_divide(float *y, uint32_t n, const float *lane) {
    float sum[REALM_SUM_LANES];
    memcpy(sum, lane, sizeof sum);
    for (uint32_t half = REALM_SUM_LANES / 2; half > 0; half /= 2)
        for (uint32_t j = 0; j < half; j++) sum[j] += sum[j + half];
    for (uint32_t i = 0; i < n; i++) y[i] /= sum[0];
}

static void softmax_row(const float *x, float *y, uint32_t n) {
    float lane[REALM_SUM_LANES] = {0}, top = softmax_top(x, n, x[0]);
    softmax_exps(x, y, n, top, lane);
    softmax_divide(y, n, lane);
}

static void rope_row(const row_run *r, const float *x, float *y, uint32_t row) {
    const realm_direct *op = r->op;
    uint32_t dims = op->u.rope.rope_dims;
    float *cs = r->cs + (size_t)row * dims;
    cpu_rope_angles(dims, r->freq, op->u.rope.first_pos + row, cs);
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
    uint32_t m = (uint32_t)r->op->m, grain = REALM_MAX(1u, m / (8 * w->n)), begin, end; /* of a slice */
    while (realm_worker_claim(w, m, grain, &begin, &end))
        for (uint32_t row = begin; row < end; row++) run_row(r, row);
    realm_worker_barrier(w);
}

/* All of an op that is a slice. */
static realm_status run_rows(cpu_backend *b, const realm_direct *op, realm_error *err) {
    row_run r = {.op = op, .kernels = &b->kernels.row};
    if (op->kind == REALM_DIRECT_ROPE) {
        uint32_t dims = op->u.rope.rope_dims;
        double *freq = NULL;
        for (int pass = 0; pass < 2; pass++) {
            cpu_layout l = {.map = pass ? b->direct.map : NULL};
            freq = cpu_part(&l, dims / 2, sizeof *freq);
            r.cs = cpu_part(&l, (size_t)op->m * dims, sizeof *r.cs);
            if (l.overflow) return realm_error_set(err, REALM_E_LIMIT, "a rotation is too large");
            realm_status s = pass == 0 ? cpu_direct_reserve(b, l.at, err) : REALM_OK;
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

/* ---- slices of rows ---------------------------------------------------------------------------------------------- */

typedef struct row_cut {
    uint64_t rows;            /* of a slice */
    uint32_t piece, n_pieces; /* values of one row in a slice; 0, 0: whole rows */
    uint32_t passes;          /* over the pieces of a row */
} row_cut;

typedef struct softmax_state { /* between the pieces of a row */
    float top, lane[REALM_SUM_LANES];
} softmax_state;

static row_cut cut_rows(const cpu_backend *b, const realm_direct *op) {
    uint32_t unit = 1, work = VALUE_WORK; /* values that stay together */
    bool pieces = true;
    row_cut c = {.rows = 1, .passes = 1};
    switch (op->kind) {
    case REALM_DIRECT_ADD:
    case REALM_DIRECT_MUL:
    case REALM_DIRECT_SCALE:
    case REALM_DIRECT_COPY: break;
    case REALM_DIRECT_ACT: work = EXP_WORK; break;
    case REALM_DIRECT_ROPE: work = EXP_WORK, unit = op->u.rope.head_dim; break;
    case REALM_DIRECT_SOFTMAX: work = EXP_WORK, unit = REALM_SUM_LANES, c.passes = 3; break;
    default: pieces = false; break;
    }
    const uint64_t row_work = (uint64_t)op->cols * work;
    if (!pieces || row_work <= CPU_SLICE_WORK) {
        c.rows = cpu_fit(cpu_slice_work(b), row_work, REALM_MIN(op->m, UINT32_MAX));
        return c;
    }
    c.piece = (uint32_t)REALM_MIN(unit * cpu_fit(CPU_SLICE_WORK / work, unit, op->cols), op->cols); /* one thread's */
    c.n_pieces = (uint32_t)cpu_parts(op->cols, c.piece);
    return c;
}

static void cut_rows_into(const cpu_backend *b, const realm_direct *op, realm_direct_cut *out) {
    const row_cut c = cut_rows(b, op);
    out->n_slices = c.n_pieces > 0 ? op->m * c.n_pieces * c.passes : cpu_parts(op->m, c.rows); /* values at most */
    out->kept_bytes = c.passes > 1 && c.n_pieces > 0 ? sizeof(softmax_state) : 0;
}

static void softmax_piece(const float *x, float *y, uint32_t n, uint32_t pass, bool first, softmax_state *s) {
    if (pass == 0) {
        s->top = softmax_top(x, n, first ? x[0] : s->top);
    } else if (pass == 1) {
        if (first) memset(s->lane, 0, sizeof s->lane);
        softmax_exps(x, y, n, s->top, s->lane);
    } else {
        softmax_divide(y, n, s->lane);
    }
}

static realm_status slice_rows(cpu_backend *b, const realm_direct *op, uint64_t slice, void *kept, realm_error *err) {
    const row_cut c = cut_rows(b, op);
    const uint64_t per_row = (uint64_t)c.n_pieces * c.passes;
    const uint64_t row = c.n_pieces > 0 ? slice / per_row : slice * c.rows;
    const uint32_t piece = c.n_pieces > 0 ? (uint32_t)(slice % per_row) % c.n_pieces : 0, at = piece * c.piece;
    realm_direct d = *op;
    d.m = REALM_MIN(c.rows, op->m - row);
    if (c.n_pieces > 0) d.cols = REALM_MIN(c.piece, op->cols - at);
    if (d.x) d.x += row * op->cols + at;
    d.y += op->kind == REALM_DIRECT_ARGMAX ? row : row * op->cols + at;
    switch (op->kind) {
    case REALM_DIRECT_ROWS: d.u.rows.ids += row; break;
    case REALM_DIRECT_ADD: d.u.add.z += (op->u.add.one_row ? 0 : row * op->cols) + at; break;
    case REALM_DIRECT_MUL: d.u.mul.z += (op->u.mul.one_row ? 0 : row * op->cols) + at; break;
    case REALM_DIRECT_ACT:
        if (d.u.act.z) d.u.act.z += row * op->cols + at;
        break;
    case REALM_DIRECT_ROPE: d.u.rope.first_pos += (uint32_t)row; break;
    case REALM_DIRECT_SOFTMAX:
        if (c.n_pieces == 0) break;
        softmax_piece(d.x, d.y, d.cols, (uint32_t)(slice % per_row) / c.n_pieces, piece == 0, kept);
        return REALM_OK;
    default: break;
    }
    return run_rows(b, &d, err);
}

/* ---- which op ---------------------------------------------------------------------------------------------------- */

static const cpu_backend *cpu(const realm_backend *b) { return (const cpu_backend *)(const void *)b; }

realm_status cpu_direct_cut(realm_backend *b, const realm_direct *op, realm_direct_cut *out, realm_error *err) {
    *out = (realm_direct_cut){0};
    if (op->m == 0 || op->cols == 0) return REALM_OK;
    switch (op->kind) {
    case REALM_DIRECT_LINEAR:
    case REALM_DIRECT_MATMUL: return cpu_product_cut(cpu(b), op, out, err);
    case REALM_DIRECT_ATTENTION: return cpu_attend_cut(cpu(b), op, out, err);
    default: cut_rows_into(cpu(b), op, out); return REALM_OK;
    }
}

realm_status cpu_direct(realm_backend *b, const realm_direct *op, uint64_t slice, void *kept, realm_error *err) {
    cpu_backend *cb = (cpu_backend *)(void *)b;
    if (op->m == 0 || op->cols == 0) return REALM_OK;
    realm_status s;
    switch (op->kind) {
    case REALM_DIRECT_LINEAR:
    case REALM_DIRECT_MATMUL: s = cpu_product_slice(cb, op, slice, kept, err); break;
    case REALM_DIRECT_ATTENTION: s = cpu_attend_slice(cb, op, slice, kept, err); break;
    default: s = slice_rows(cb, op, slice, kept, err); break;
    }
    shrink(cb);
    return s;
}
