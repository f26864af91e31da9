/* compute/cpu/run.c - one step: checks the batch, then the workers walk the op list together.
 *
 *     caller: check batch, positions, attention tiles        worker i: rope tables, what I claim of them; barrier
 *             team_run(walk) --------------------------->              for each op: what I claim of it; barrier
 *
 * A plan whose weights stream is walked in parts, one for each layer, which the caller asks for in between.
 *
 * Every op ends with a barrier, so the next may read whatever it wrote; ops without rows are left out by all workers
 * alike. Nothing here allocates, and nothing calls the kernel unless a worker waits long.
 */
#include <math.h>
#include <string.h>

#include "compute/cpu/plan.h"

/* ---- ops --------------------------------------------------------------------------------------------------------- */

/* Items per claim: few claims where items are few, several per worker where they are many, so that a worker that was
 * held up by the system does not hold up the rest. */
static uint32_t grain_of(const realm_worker *w, uint32_t n) {
    uint32_t g = n / (w->n * (n > 32 * w->n ? 8 : 1));
    return g ? g : 1;
}

static uint32_t rows_of(const realm_plan *p, realm_value v) {
    return p->values[v].rows == REALM_ROWS_BATCH ? p->batch->n_rows : p->batch->n_out;
}

void cpu_rope_angles(uint32_t dims, const double *freq, uint32_t pos, float *cs) {
    for (uint32_t j = 0; j < dims / 2; j++) {
        double s, c;
        sincos(pos * freq[j], &s, &c);
        cs[j] = (float)c;
        cs[dims / 2 + j] = (float)s;
    }
}

/* The cosines and sines of every rotation that the plan knows, for the positions of this batch. */
static void fill_ropes(realm_worker *w, realm_plan *p) {
    uint32_t n = p->batch->n_rows, grain = grain_of(w, n), begin, end;
    while (realm_worker_claim(w, n, grain, &begin, &end))
        for (uint32_t row = begin; row < end; row++)
            for (uint32_t i = 0; i < p->n_ropes; i++) {
                const rope_table *r = &p->ropes[i];
                cpu_rope_angles(r->dims, r->freq, p->row_pos[row], r->cs + (size_t)row * r->dims);
            }
    realm_worker_barrier(w);
}

static void run_embed(realm_worker *w, realm_plan *p, const realm_op_embed *o) {
    const realm_cpu_kernels *k = &p->backend->kernels;
    size_t cols = (size_t)o->w->cols, row_bytes = cols / o->w->type->block_len * o->w->type->block_bytes;
    uint32_t n = p->batch->n_rows, grain = grain_of(w, n), begin, end;
    while (realm_worker_claim(w, n, grain, &begin, &end)) {
        for (uint32_t row = begin; row < end; row++) {
            float *y = p->data[o->y] + row * cols;
            size_t token = (size_t)p->batch->tokens[row];
            o->w->type->dequantize((const char *)o->w->raw + token * row_bytes, y, cols);
            if (o->scale != 1.0f) k->row.scale_row(y, o->scale, cols);
        }
    }
    realm_worker_barrier(w);
}

static void run_linear(realm_worker *w, realm_plan *p, const realm_op_linear *o) {
    uint32_t rows = rows_of(p, o->y[0]);
    if (rows == 0) return;
    bool gather = p->values[o->x].rows == REALM_ROWS_BATCH && p->values[o->y[0]].rows == REALM_ROWS_OUT;
    realm_linear_args a = {.x = p->data[o->x],
                           .gather = gather ? p->batch->out_rows : NULL,
                           .n_rows = rows,
                           .gain = o->gain ? o->gain->vector : NULL,
                           .eps = o->eps,
                           .n_weights = o->n_weights,
                           .epilogue = o->epilogue,
                           .act = o->act,
                           .pass_by = p->pass_by,
                           .quantized = p->quantized};
    for (uint32_t i = 0; i < o->n_weights; i++) {
        a.w[i] = o->w[i];
        a.bias[i] = o->bias[i] ? o->bias[i]->vector : NULL;
        if (o->epilogue != REALM_EPILOGUE_GATE || i == 0) a.y[i] = p->data[o->y[i]];
    }
    realm_cpu_linear(w, &p->backend->kernels, &a);
}

static void run_norm_add(realm_worker *w, realm_plan *p, const realm_op_norm_add *o) {
    size_t cols = p->values[o->y].cols;
    uint32_t n = rows_of(p, o->y), grain = grain_of(w, n), begin, end;
    if (n == 0) return;
    while (realm_worker_claim(w, n, grain, &begin, &end))
        for (uint32_t row = begin; row < end; row++)
            p->backend->kernels.row.norm_add_row(p->data[o->x] + row * cols, o->gain->vector, o->eps,
                                                 p->data[o->y] + row * cols, cols);
    realm_worker_barrier(w);
}

/* One head of one row: heads 0 .. n_head - 1 are those of q, then come those of k, then those of v. */
static void rope_kv_head(realm_worker *w, realm_plan *p, const realm_op_rope_kv *o, const rope_table *rope,
                         uint32_t row, uint32_t head) {
    const realm_row_kernels *k = &p->backend->kernels.row;
    const float *cs = rope->cs + (size_t)row * rope->dims;
    uint32_t dim = o->head_dim;
    if (head < o->n_head) {
        float *q = p->data[o->q] + ((size_t)row * o->n_head + head) * dim;
        if (o->q_gain) k->rms_norm_row(q, o->q_gain->vector, o->eps, q, dim);
        k->rope_row(o->style, q, cs, o->rope_dims);
        return;
    }
    head -= o->n_head;
    const realm_batch_seq *seq = &p->batch->seqs[p->row_seq[row]];
    uint32_t pos = p->row_pos[row], page = seq->pages[pos / REALM_KV_PAGE_TOKENS], t = pos % REALM_KV_PAGE_TOKENS;
    if (head < o->n_kv_head) {
        const float *src = p->data[o->k] + ((size_t)row * o->n_kv_head + head) * dim;
        float *x = w->scratch;
        if (o->k_gain)
            k->rms_norm_row(src, o->k_gain->vector, o->eps, x, dim);
        else
            memcpy(x, src, dim * sizeof *x);
        k->rope_row(o->style, x, cs, o->rope_dims);
        k->store_half(x, cpu_kv_k(p->kv, page, o->layer, head) + t, dim, REALM_KV_PAGE_TOKENS);
        return;
    }
    head -= o->n_kv_head;
    uint16_t *dst = cpu_kv_v(p->kv, page, o->layer, head) + (size_t)t * p->kv->v_dim;
    k->store_half(p->data[o->v] + ((size_t)row * o->n_kv_head + head) * dim, dst, dim, 1);
    for (uint32_t d = dim; d < p->kv->v_dim; d++) dst[d] = 0;
}

static void run_rope_kv(realm_worker *w, realm_plan *p, const plan_op *po) {
    const realm_op_rope_kv *o = &po->op.u.rope_kv;
    uint32_t heads = o->n_head + 2 * o->n_kv_head, n = p->batch->n_rows * heads, grain = grain_of(w, n), begin, end;
    while (realm_worker_claim(w, n, grain, &begin, &end))
        for (uint32_t i = begin; i < end; i++) rope_kv_head(w, p, o, &p->ropes[po->shared], i / heads, i % heads);
    realm_worker_barrier(w);
}

static void run_gather(realm_worker *w, realm_plan *p, const realm_op_gather *o) {
    size_t cols = p->values[o->y].cols;
    uint32_t n = p->batch->n_out, grain = grain_of(w, n), begin, end;
    if (n == 0) return;
    while (realm_worker_claim(w, n, grain, &begin, &end))
        for (uint32_t row = begin; row < end; row++)
            memcpy(p->data[o->y] + row * cols, p->data[o->x] + p->batch->out_rows[row] * cols, cols * sizeof(float));
    realm_worker_barrier(w);
}

static void walk(realm_worker *w, void *user) {
    realm_plan *p = user;
    if (p->first_op == 0) fill_ropes(w, p);
    for (uint32_t i = p->first_op; i < p->end_op; i++) {
        const plan_op *po = &p->ops[i];
        switch (po->op.kind) {
        case REALM_OP_EMBED: run_embed(w, p, &po->op.u.embed); break;
        case REALM_OP_LINEAR: run_linear(w, p, &po->op.u.linear); break;
        case REALM_OP_NORM_ADD: run_norm_add(w, p, &po->op.u.norm_add); break;
        case REALM_OP_ROPE_KV: run_rope_kv(w, p, po); break;
        case REALM_OP_ATTENTION: cpu_attention(w, p, po); break;
        case REALM_OP_GATHER: run_gather(w, p, &po->op.u.gather); break;
        }
    }
}

/* ---- the batch --------------------------------------------------------------------------------------------------- */

static realm_status check_seq(realm_plan *p, const realm_batch *b, uint32_t i, uint32_t first_row, realm_error *err) {
    const realm_batch_seq *s = &b->seqs[i];
    if (s->first_row != first_row || s->n_rows == 0 || s->n_rows > b->n_rows - first_row)
        return realm_error_set(err, REALM_E_INVALID, "sequence %u has rows %u + %u; the next free one is %u of %u", i,
                               s->first_row, s->n_rows, first_row, b->n_rows);
    if (s->n_past > INT32_MAX - s->n_rows)
        return realm_error_set(err, REALM_E_INVALID, "sequence %u is at position %u", i, s->n_past);
    if (!p->kv) return REALM_OK;
    uint32_t n_pages = (s->n_past + s->n_rows + REALM_KV_PAGE_TOKENS - 1) / REALM_KV_PAGE_TOKENS;
    for (uint32_t j = 0; j < n_pages; j++)
        if (s->pages[j] >= p->kv->n_pages)
            return realm_error_set(err, REALM_E_INVALID, "sequence %u has page %u of %u", i, s->pages[j],
                                   p->kv->n_pages);
    return REALM_OK;
}

static realm_status check_batch(realm_plan *p, const realm_batch *b, realm_error *err) {
    if (b->n_rows == 0 || b->n_rows > p->max_rows)
        return realm_error_set(err, REALM_E_INVALID, "a batch of %u rows; the plan is for 1 to %u", b->n_rows,
                               p->max_rows);
    if (b->n_out > p->max_out)
        return realm_error_set(err, REALM_E_INVALID, "%u rows wanted out; the plan is for at most %u", b->n_out,
                               p->max_out);
    for (uint32_t i = 0; i < b->n_rows; i++)
        if (b->tokens[i] < 0 || (uint64_t)b->tokens[i] >= p->n_vocab)
            return realm_error_set(err, REALM_E_INVALID, "row %u has token %d", i, b->tokens[i]);
    for (uint32_t i = 0; i < b->n_out; i++)
        if (b->out_rows[i] >= b->n_rows || (i > 0 && b->out_rows[i] <= b->out_rows[i - 1]))
            return realm_error_set(err, REALM_E_INVALID, "row %u is wanted out of order or does not exist",
                                   b->out_rows[i]);
    uint32_t row = 0;
    for (uint32_t i = 0; i < b->n_seqs; i++) {
        realm_status s = check_seq(p, b, i, row, err);
        if (s != REALM_OK) return s;
        row += b->seqs[i].n_rows;
    }
    if (row != b->n_rows)
        return realm_error_set(err, REALM_E_INVALID, "%u rows belong to no sequence", b->n_rows - row);
    return REALM_OK;
}

/* The ops from first_op on that need the same layer; without streaming that is the whole plan. */
static realm_status run_part(realm_plan *p, realm_error *err) {
    const realm_residency *r = &p->residency;
    uint32_t streamed = p->ops[p->first_op].op.streamed;
    for (p->end_op = p->first_op + 1; p->end_op < p->n_ops; p->end_op++)
        if (r->need && p->ops[p->end_op].op.streamed != streamed) break;
    const bool streams = r->need && streamed > 0;
    realm_status s = streams ? r->need(r->user, streamed - 1, err) : REALM_OK;
    if (s != REALM_OK) return s;
    realm_team_run(p->backend->team, walk, p);
    if (streams) r->done(r->user, streamed - 1);
    return REALM_OK;
}

realm_status cpu_plan_run(realm_backend *b, realm_plan *p, const realm_batch *batch, realm_error *err) {
    (void)b;
    realm_status s = check_batch(p, batch, err);
    if (s != REALM_OK) return s;
    p->batch = batch;
    p->data[p->logits] = p->logits_at[p->data[p->logits] == p->logits_at[0]];
    for (uint32_t i = 0; i < batch->n_seqs; i++) {
        const realm_batch_seq *seq = &batch->seqs[i];
        for (uint32_t r = 0; r < seq->n_rows; r++) {
            p->row_seq[seq->first_row + r] = i;
            p->row_pos[seq->first_row + r] = seq->n_past + r;
        }
    }
    cpu_attention_prepare(p);
    for (p->first_op = 0; p->first_op < p->n_ops && s == REALM_OK; p->first_op = p->end_op) s = run_part(p, err);
    p->batch = NULL;
    return s;
}
