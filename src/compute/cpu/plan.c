/* compute/cpu/plan.c - checks a plan and lays out its memory.
 *
 * A plan is refused unless every op can be run without further checks: values and weights exist and have the shapes
 * that the op implies, nothing is read before it is written, nothing that an op reads while it writes is aliased.
 * Models declare few values and use them again in every layer, so each value simply has its own place for the life of
 * the plan:
 *
 *     map:  value 0 | value 1 | ... | rope table 0 | ... | quantised activations | partial attention results
 *
 * everything 64-byte aligned, (max_rows or max_out) rows without padding between them. The mapping is committed as it
 * is touched, so a plan for large batches costs little until one comes.
 */
#include "compute/cpu/plan.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"

#define MAP_ALIGN 64u
#define HEADS_MAX 65536u
/* Partial results of attention at most; beyond it a long sequence is shared by kv heads alone. */
#define PARTIAL_FLOATS_MAX ((size_t)16 << 20)

/* ---- checks ------------------------------------------------------------------------------------------------------ */

typedef struct checker {
    const realm_plan_desc *d;
    bool *written; /* (n_values) */
    uint32_t op;
    const char *op_name;
    realm_error *err;
} checker;

static realm_status bad(checker *c, const char *fmt, ...) REALM_PRINTF(2, 3);
static realm_status bad(checker *c, const char *fmt, ...) {
    char text[256];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return realm_error_set(c->err, REALM_E_INVALID, "op %u (%s): %s", c->op, c->op_name, text);
}

/* `v` exists and has `cols` columns. */
static realm_status check_value(checker *c, const char *what, realm_value v, uint64_t cols) {
    if (v >= c->d->n_values) return bad(c, "%s is value %u of %u", what, v, c->d->n_values);
    if (c->d->values[v].cols != cols)
        return bad(c, "%s has %u columns, not %llu", what, c->d->values[v].cols, (unsigned long long)cols);
    return REALM_OK;
}

static realm_status check_read(checker *c, const char *what, realm_value v, uint64_t cols) {
    realm_status s = check_value(c, what, v, cols);
    if (s == REALM_OK && !c->written[v]) return bad(c, "%s (value %u) is read before it is written", what, v);
    return s;
}

static realm_status check_batch_rows(checker *c, const char *what, realm_value v) {
    return c->d->values[v].rows == REALM_ROWS_BATCH ? REALM_OK : bad(c, "%s must have a row per token", what);
}

/* NULL passes. */
static realm_status check_vector(checker *c, const char *what, const realm_weight *w, uint64_t n) {
    if (!w) return REALM_OK;
    if (!w->vector) return bad(c, "%s was not opened as a vector", what);
    return w->cols == n
               ? REALM_OK
               : bad(c, "%s has %llu values, not %llu", what, (unsigned long long)w->cols, (unsigned long long)n);
}

static realm_status check_eps(checker *c, float eps) {
    return isfinite(eps) && eps >= 0 ? REALM_OK : bad(c, "eps %g is not a small positive number", (double)eps);
}

#define TRY(expr)                                      \
    do {                                               \
        realm_status try_status = (expr);              \
        if (try_status != REALM_OK) return try_status; \
    } while (0)

static realm_status check_embed(checker *c, const realm_op_embed *o) {
    c->op_name = "embed";
    if (!o->w || !o->w->raw) return bad(c, "the weight was not opened for rows");
    TRY(check_value(c, "y", o->y, o->w->cols));
    TRY(check_batch_rows(c, "y", o->y));
    if (!isfinite(o->scale)) return bad(c, "the scale is not finite");
    c->written[o->y] = true;
    return REALM_OK;
}

static realm_status check_linear(checker *c, const realm_op_linear *o) {
    c->op_name = "linear";
    if (o->n_weights < 1 || o->n_weights > REALM_OP_MAX_WEIGHTS) return bad(c, "%u weights", o->n_weights);
    uint32_t n_y = o->n_weights;
    switch (o->epilogue) {
    case REALM_EPILOGUE_NONE: break;
    case REALM_EPILOGUE_ADD:
        if (o->n_weights != 1) return bad(c, "a residual takes one weight, not %u", o->n_weights);
        break;
    case REALM_EPILOGUE_GATE:
        if (o->n_weights != 2) return bad(c, "a gate takes two weights, not %u", o->n_weights);
        if (o->act != REALM_ACT_SILU && o->act != REALM_ACT_GELU_TANH) return bad(c, "unknown activation %d", o->act);
        n_y = 1;
        break;
    default: return bad(c, "unknown epilogue %d", o->epilogue);
    }
    for (uint32_t i = 0; i < o->n_weights; i++) {
        const realm_weight *w = o->w[i];
        if (!w || !w->packed) return bad(c, "weight %u was not opened for products", i);
        if (w->cols != o->w[0]->cols) return bad(c, "weights 0 and %u differ in columns", i);
        if (o->epilogue == REALM_EPILOGUE_GATE && w->rows != o->w[0]->rows) return bad(c, "gate and up differ in rows");
        TRY(check_vector(c, "a bias", o->bias[i], w->rows));
    }
    TRY(check_read(c, "x", o->x, o->w[0]->cols));
    TRY(check_vector(c, "the gain", o->gain, o->w[0]->cols));
    if (o->gain) TRY(check_eps(c, o->eps));
    for (uint32_t i = 0; i < n_y; i++) {
        TRY(check_value(c, "y", o->y[i], o->w[i]->rows));
        if (o->y[i] == o->x) return bad(c, "y %u is also x", i);
        for (uint32_t j = 0; j < i; j++)
            if (o->y[j] == o->y[i]) return bad(c, "y %u and y %u are the same value", j, i);
        if (c->d->values[o->y[i]].rows != c->d->values[o->y[0]].rows) return bad(c, "the y differ in rows");
        if (c->d->values[o->x].rows == REALM_ROWS_OUT && c->d->values[o->y[i]].rows != REALM_ROWS_OUT)
            return bad(c, "y has a row per token, but x only rows that are wanted out");
        if (o->epilogue == REALM_EPILOGUE_ADD) TRY(check_read(c, "y", o->y[i], o->w[i]->rows));
        c->written[o->y[i]] = true;
    }
    return REALM_OK;
}

static realm_status check_norm_add(checker *c, const realm_op_norm_add *o) {
    c->op_name = "norm_add";
    if (!o->gain || !o->gain->vector) return bad(c, "the gain was not opened as a vector");
    TRY(check_read(c, "x", o->x, o->gain->cols));
    TRY(check_read(c, "y", o->y, o->gain->cols));
    if (o->x == o->y) return bad(c, "x and y are the same value");
    if (c->d->values[o->x].rows != c->d->values[o->y].rows) return bad(c, "x and y differ in rows");
    return check_eps(c, o->eps);
}

static realm_status check_heads(checker *c, uint32_t layer, uint32_t n_head, uint32_t n_kv_head, uint32_t head_dim) {
    const realm_kv *kv = c->d->kv;
    if (!kv) return bad(c, "the plan has no KV");
    if (layer >= kv->n_layers) return bad(c, "layer %u of %u", layer, kv->n_layers);
    if (n_kv_head != kv->n_kv_head || head_dim != kv->head_dim)
        return bad(c, "%u kv heads of %u values; the KV has %u of %u", n_kv_head, head_dim, kv->n_kv_head,
                   kv->head_dim);
    if (n_head == 0 || n_head > HEADS_MAX || n_head % n_kv_head != 0)
        return bad(c, "%u heads cannot share %u kv heads", n_head, n_kv_head);
    return REALM_OK;
}

static realm_status check_rope_kv(checker *c, const realm_op_rope_kv *o) {
    c->op_name = "rope_kv";
    TRY(check_heads(c, o->layer, o->n_head, o->n_kv_head, o->head_dim));
    TRY(check_read(c, "q", o->q, (uint64_t)o->n_head * o->head_dim));
    TRY(check_read(c, "k", o->k, (uint64_t)o->n_kv_head * o->head_dim));
    TRY(check_read(c, "v", o->v, (uint64_t)o->n_kv_head * o->head_dim));
    if (o->q == o->k || o->q == o->v) return bad(c, "q is also k or v");
    TRY(check_batch_rows(c, "q", o->q));
    TRY(check_batch_rows(c, "k", o->k));
    TRY(check_batch_rows(c, "v", o->v));
    TRY(check_vector(c, "the gain of q", o->q_gain, o->head_dim));
    TRY(check_vector(c, "the gain of k", o->k_gain, o->head_dim));
    if (o->q_gain || o->k_gain) TRY(check_eps(c, o->eps));
    if (o->style != REALM_ROPE_PAIRS && o->style != REALM_ROPE_HALVES) return bad(c, "unknown rotation %d", o->style);
    if (o->rope_dims % 2 != 0 || o->rope_dims > o->head_dim)
        return bad(c, "%u of %u values to rotate", o->rope_dims, o->head_dim);
    if (!isfinite(o->base) || o->base <= 0 || !isfinite(o->freq_scale))
        return bad(c, "base %g with scale %g", (double)o->base, (double)o->freq_scale);
    return check_vector(c, "the factors", o->factors, o->rope_dims / 2);
}

static realm_status check_attention(checker *c, const realm_op_attention *o) {
    c->op_name = "attention";
    TRY(check_heads(c, o->layer, o->n_head, o->n_kv_head, o->head_dim));
    TRY(check_read(c, "q", o->q, (uint64_t)o->n_head * o->head_dim));
    TRY(check_value(c, "out", o->out, (uint64_t)o->n_head * o->head_dim));
    if (o->q == o->out) return bad(c, "q and out are the same value");
    TRY(check_batch_rows(c, "q", o->q));
    TRY(check_batch_rows(c, "out", o->out));
    if (!isfinite(o->scale)) return bad(c, "the scale is not finite");
    if (!isfinite(o->softcap) || o->softcap < 0) return bad(c, "softcap %g", (double)o->softcap);
    c->written[o->out] = true;
    return REALM_OK;
}

static realm_status check_gather(checker *c, const realm_op_gather *o) {
    c->op_name = "gather";
    TRY(check_value(c, "y", o->y, o->y < c->d->n_values ? c->d->values[o->y].cols : 0));
    TRY(check_read(c, "x", o->x, c->d->values[o->y].cols));
    TRY(check_batch_rows(c, "x", o->x));
    if (c->d->values[o->y].rows != REALM_ROWS_OUT) return bad(c, "y must have a row per row that is wanted out");
    c->written[o->y] = true;
    return REALM_OK;
}

/* Streamed weights are there while their layer is needed, and only then. */
static realm_status check_streamed(checker *c, const realm_op *op) {
    for (uint32_t i = 0; op->kind == REALM_OP_LINEAR && i < op->u.linear.n_weights; i++) {
        if (!(op->u.linear.w[i]->use & REALM_WEIGHT_STREAMED)) continue;
        if (op->streamed == 0 || !c->d->residency) return bad(c, "weight %u is streamed, but nobody brings it in", i);
    }
    return REALM_OK;
}

static realm_status check_op(checker *c, const realm_op *op) {
    switch (op->kind) {
    case REALM_OP_EMBED: return check_embed(c, &op->u.embed);
    case REALM_OP_LINEAR: return check_linear(c, &op->u.linear);
    case REALM_OP_NORM_ADD: return check_norm_add(c, &op->u.norm_add);
    case REALM_OP_ROPE_KV: return check_rope_kv(c, &op->u.rope_kv);
    case REALM_OP_ATTENTION: return check_attention(c, &op->u.attention);
    case REALM_OP_GATHER: return check_gather(c, &op->u.gather);
    }
    c->op_name = "unknown";
    return bad(c, "unknown kind %d", op->kind);
}

static realm_status check_plan(const realm_plan_desc *d, realm_error *err) {
    if (d->n_values == 0 || d->n_values >= REALM_VALUE_NONE || d->n_ops == 0 || !d->values || !d->ops)
        return realm_error_set(err, REALM_E_INVALID, "a plan of %u values and %u ops", d->n_values, d->n_ops);
    if (d->max_rows == 0 || d->max_rows > INT32_MAX || d->max_out == 0 || d->max_out > d->max_rows)
        return realm_error_set(err, REALM_E_INVALID, "a plan for %u rows, %u of them wanted out", d->max_rows,
                               d->max_out);
    for (uint32_t i = 0; i < d->n_values; i++)
        if (d->values[i].cols == 0 || (d->values[i].rows != REALM_ROWS_BATCH && d->values[i].rows != REALM_ROWS_OUT))
            return realm_error_set(err, REALM_E_INVALID, "value %u has no columns or no kind of rows", i);
    checker c = {.d = d, .written = realm_calloc(d->n_values, sizeof(bool)), .err = err};
    if (!c.written) return realm_error_set(err, REALM_E_NOMEM, "no memory to check a plan");
    realm_status s = REALM_OK;
    for (; c.op < d->n_ops && s == REALM_OK; c.op++) {
        s = check_op(&c, &d->ops[c.op]);
        if (s == REALM_OK) s = check_streamed(&c, &d->ops[c.op]);
    }
    if (s == REALM_OK &&
        (d->logits >= d->n_values || d->values[d->logits].rows != REALM_ROWS_OUT || !c.written[d->logits]))
        s = realm_error_set(err, REALM_E_INVALID, "logits are value %u, which is not one that is written per row out",
                            d->logits);
    realm_free(c.written);
    return s;
}

/* ---- what ops share ---------------------------------------------------------------------------------------------- */

void cpu_rope_freqs(uint32_t dims, float base, float freq_scale, const float *factors, double *freq) {
    for (uint32_t i = 0; i < dims / 2; i++) {
        freq[i] = pow((double)base, -2.0 * i / dims) * (double)freq_scale;
        if (factors) freq[i] /= (double)factors[i];
    }
}

static realm_status share_rope(realm_plan *p, plan_op *po) {
    const realm_op_rope_kv *o = &po->op.u.rope_kv;
    for (po->shared = 0; po->shared < p->n_ropes; po->shared++) {
        const rope_table *r = &p->ropes[po->shared];
        if (r->dims == o->rope_dims && r->base == o->base && r->freq_scale == o->freq_scale && r->factors == o->factors)
            return REALM_OK;
    }
    rope_table *r = &p->ropes[p->n_ropes++];
    *r = (rope_table){.dims = o->rope_dims, .base = o->base, .freq_scale = o->freq_scale, .factors = o->factors};
    r->freq = realm_calloc(o->rope_dims / 2, sizeof *r->freq);
    if (!r->freq) return REALM_E_NOMEM;
    cpu_rope_freqs(o->rope_dims, o->base, o->freq_scale, o->factors ? o->factors->vector : NULL, r->freq);
    return REALM_OK;
}

void cpu_attention_shape(attention_schedule *s, const realm_op_attention *o, uint32_t *tile_rows) {
    uint32_t group = o->n_head / o->n_kv_head;
    s->n_head = o->n_head;
    s->window = o->window;
    s->n_chunks = (group + REALM_ATTEND_QUERIES - 1) / REALM_ATTEND_QUERIES;
    s->chunk_heads = (group + s->n_chunks - 1) / s->n_chunks;
    *tile_rows = REALM_MIN(*tile_rows, REALM_ATTEND_QUERIES / s->chunk_heads);
}

static realm_status share_schedule(realm_plan *p, plan_op *po) {
    const realm_op_attention *o = &po->op.u.attention;
    for (po->shared = 0; po->shared < p->n_schedules; po->shared++)
        if (p->schedules[po->shared].n_head == o->n_head && p->schedules[po->shared].window == o->window)
            return REALM_OK;
    attention_schedule *s = &p->schedules[p->n_schedules++];
    /* All attention ops of a plan work on the same tiles: as many rows as the widest group leaves room for. */
    cpu_attention_shape(s, o, &p->tile_rows);
    s->first_item = realm_calloc((size_t)p->max_rows + 1, sizeof *s->first_item);
    return s->first_item ? REALM_OK : REALM_E_NOMEM;
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

/* Takes rows * cols things of `size` bytes from the map's plan; false on overflow. */
static bool take(size_t *at, size_t rows, size_t cols, size_t size, size_t *offset) {
    size_t bytes;
    uint64_t end;
    if (!realm_mul_size(rows, cols, &bytes) || !realm_mul_size(bytes, size, &bytes) ||
        !realm_add_size(*at, bytes, &bytes) || !realm_align_u64(bytes, MAP_ALIGN, &end))
        return false;
    *offset = *at;
    *at = (size_t)end;
    return true;
}

/* Room for the partial results of four rows as long as the KV allows, within reason. */
size_t cpu_attention_partial_floats(const realm_plan *p) {
    uint64_t most = 0, splits = p->kv ? p->kv->n_pages / REALM_SPLIT_PAGES + 1u : 0;
    if (realm_team_size(p->backend->team) == 1) return 0;
    for (uint32_t i = 0; i < p->n_schedules; i++)
        most = REALM_MAX(most, 4 * splits * p->schedules[i].n_head * (p->kv->v_dim + 2u));
    return (size_t)REALM_MIN(most, PARTIAL_FLOATS_MAX);
}

/* Twice the same walk: offsets first, pointers once the mapping is there. */
static bool lay_out(realm_plan *p, size_t quantized, size_t *total) {
    size_t at = 0, offset;
    for (uint32_t i = 0; i < p->n_values; i++) {
        uint32_t rows = p->values[i].rows == REALM_ROWS_BATCH ? p->max_rows : p->max_out;
        if (!take(&at, rows, p->values[i].cols, sizeof(float), &offset)) return false;
        if (p->map) p->data[i] = (float *)(void *)(p->map + offset);
        if (i != p->logits) continue;
        p->logits_at[0] = p->data[i];
        if (!take(&at, rows, p->values[i].cols, sizeof(float), &offset)) return false;
        if (p->map) p->logits_at[1] = (float *)(void *)(p->map + offset);
    }
    for (uint32_t i = 0; i < p->n_ropes; i++) {
        if (!take(&at, p->max_rows, p->ropes[i].dims, sizeof(float), &offset)) return false;
        if (p->map) p->ropes[i].cs = (float *)(void *)(p->map + offset);
    }
    if (!take(&at, 1, quantized, 1, &offset)) return false;
    if (p->map) p->quantized = p->map + offset;
    p->partial_floats = cpu_attention_partial_floats(p);
    if (!take(&at, 1, p->partial_floats, sizeof(float), &offset)) return false;
    if (p->map) p->partials = (float *)(void *)(p->map + offset);
    *total = at;
    return true;
}

void cpu_plan_close(realm_backend *b, realm_plan *p) {
    (void)b;
    if (!p) return;
    realm_pages_unmap(p->map, p->map_bytes);
    for (uint32_t i = 0; p->ropes && i < p->n_ropes; i++) realm_free(p->ropes[i].freq);
    for (uint32_t i = 0; p->schedules && i < p->n_schedules; i++) realm_free(p->schedules[i].first_item);
    realm_free(p->tiles);
    realm_free(p->row_pos);
    realm_free(p->row_seq);
    realm_free(p->schedules);
    realm_free(p->ropes);
    realm_free(p->ops);
    realm_free(p->data);
    realm_free(p->values);
    realm_free(p);
}

static realm_status copy_ops(realm_plan *p, const realm_plan_desc *d, size_t *quantized, size_t *scratch) {
    realm_status s = REALM_OK;
    uint64_t weight_bytes = 0;
    for (uint32_t i = 0; i < d->n_ops && s == REALM_OK; i++) {
        plan_op *po = &p->ops[i];
        po->op = d->ops[i];
        switch (po->op.kind) {
        case REALM_OP_EMBED: p->n_vocab = REALM_MIN(p->n_vocab, po->op.u.embed.w->rows); break;
        case REALM_OP_LINEAR: {
            const realm_op_linear *o = &po->op.u.linear;
            uint32_t rows = p->values[o->y[0]].rows == REALM_ROWS_BATCH ? p->max_rows : p->max_out;
            *quantized = REALM_MAX(*quantized, realm_linear_quantized_bytes(rows, o->w[0]->cols));
            *scratch = REALM_MAX(*scratch, realm_linear_scratch_bytes(o->w[0]->cols));
            for (uint32_t k = 0; k < o->n_weights; k++) weight_bytes += realm_cpu_packed_bytes(o->w[k]->packed);
            break;
        }
        case REALM_OP_NORM_ADD:
        case REALM_OP_GATHER: break;
        case REALM_OP_ROPE_KV:
            *scratch = REALM_MAX(*scratch, po->op.u.rope_kv.head_dim * sizeof(float));
            s = share_rope(p, po);
            break;
        case REALM_OP_ATTENTION:
            *scratch = REALM_MAX(*scratch, cpu_attention_scratch_bytes(po->op.u.attention.head_dim));
            s = share_schedule(p, po);
            break;
        }
    }
    p->pass_by = weight_bytes > p->backend->cache_bytes;
    return s;
}

realm_status cpu_plan_open(realm_backend *b, const realm_plan_desc *d, realm_plan **out, realm_error *err) {
    cpu_backend *cb = (cpu_backend *)(void *)b;
    *out = NULL;
    realm_status s = check_plan(d, err);
    if (s != REALM_OK) return s;

    size_t quantized = 0, scratch = 0;
    realm_plan *p = realm_calloc(1, sizeof *p);
    if (!p) goto no_memory;
    p->backend = cb;
    p->n_values = d->n_values;
    p->n_ops = d->n_ops;
    p->max_rows = d->max_rows;
    p->max_out = d->max_out;
    p->logits = d->logits;
    p->kv = d->kv;
    if (d->residency) p->residency = *d->residency;
    p->n_vocab = UINT64_MAX;
    p->tile_rows = REALM_ATTEND_TILE_ROWS;
    p->row_step = 1;
    p->values = realm_calloc(d->n_values, sizeof *p->values);
    p->data = realm_calloc(d->n_values, sizeof *p->data);
    p->ops = realm_calloc(d->n_ops, sizeof *p->ops);
    p->ropes = realm_calloc(d->n_ops, sizeof *p->ropes);
    p->schedules = realm_calloc(d->n_ops, sizeof *p->schedules);
    p->row_seq = realm_calloc(d->max_rows, sizeof *p->row_seq);
    p->row_pos = realm_calloc(d->max_rows, sizeof *p->row_pos);
    p->tiles = realm_calloc(d->max_rows, sizeof *p->tiles);
    if (!p->values || !p->data || !p->ops || !p->ropes || !p->schedules || !p->row_seq || !p->row_pos || !p->tiles)
        goto no_memory;
    memcpy(p->values, d->values, d->n_values * sizeof *p->values);
    if (copy_ops(p, d, &quantized, &scratch) != REALM_OK) goto no_memory;
    if (!lay_out(p, quantized, &p->map_bytes)) goto no_memory;
    p->map = realm_pages_map(p->map_bytes);
    if (!p->map) goto no_memory;
    (void)lay_out(p, quantized, &p->map_bytes); /* went well the first time */
    s = realm_team_reserve(cb->team, scratch, err);
    if (s != REALM_OK) {
        cpu_plan_close(b, p);
        return s;
    }
    *out = p;
    return REALM_OK;
no_memory:
    s = realm_error_set(err, REALM_E_NOMEM, "no memory for a plan of %u rows (%zu bytes)", d->max_rows,
                        p ? p->map_bytes : 0);
    cpu_plan_close(b, p);
    return s;
}
