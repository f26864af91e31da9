/* compute/cpu/direct_attention.c - ATTENTION over K and V in host rows, in slices.
 *
 * The kernels want K and V as a plan's pool has them: halves, in pages, K transposed. A block of them (some kv heads of
 * some splits of positions) is brought into that form at a time:
 *
 *      positions   0      128     256     384                 for each run of kv heads, for each run of splits:
 *                  +-------+-------+-------+----                slice: pages of the block, into `kept`
 *      kv heads 0,1|    block 0    |    block 1                 slice: rows r0 against it
 *      kv heads 2,3|    block 2    |    block 3                 slice: rows r1 against it ...
 *                  +-------+-------+-------+----
 *
 * so that K and V are converted once for all rows, in the same few MiB whatever their length. A row that sees several
 * blocks is carried from one to the next (attention_part, plan.h) and merged in the order of positions, as in a plan:
 * the bits are the same. The work itself is attention.c over a plan that exists for this slice.
 */
#include "compute/cpu/direct.h"

#define SPLIT_VALUES(dim, v_dim) ((uint64_t)REALM_SPLIT_TOKENS * ((uint64_t)(dim) + (v_dim)))

typedef struct attend_cut {
    uint32_t group, v_dim, tile_rows;
    uint32_t heads, n_head_runs; /* kv heads of a block, runs of them */
    uint32_t first_split, end_split, splits;
    uint32_t n_split_runs;
    uint64_t rows, n_row_slices;
    uint64_t kept_halves, carried; /* of pages; rows times heads */
} attend_cut;

static uint64_t last_position(const realm_direct *op) {
    return op->u.attention.full ? op->u.attention.t - 1 : op->u.attention.n_past + op->m - 1;
}

static attend_cut cut_of(const cpu_backend *b, const realm_direct *op) {
    const uint32_t dim = op->u.attention.head_dim, n_kv_head = op->u.attention.n_kv_head;
    const uint32_t window = op->u.attention.window, n_past = op->u.attention.n_past;
    attend_cut c = {.group = op->u.attention.n_head / n_kv_head,
                    .v_dim = (dim + REALM_HEAD_PAD - 1) / REALM_HEAD_PAD * REALM_HEAD_PAD,
                    .tile_rows = REALM_ATTEND_TILE_ROWS};
    c.first_split = window > 0 && n_past >= window ? (n_past + 1 - window) / REALM_SPLIT_TOKENS : 0;
    c.end_split = (uint32_t)(last_position(op) / REALM_SPLIT_TOKENS + 1);
    /* One kv head's part of a split: values to convert, work for a row. */
    const uint64_t values = SPLIT_VALUES(dim, c.v_dim), row_work = (uint64_t)c.group * values, work = cpu_slice_work(b);
    const uint64_t all_splits = c.end_split - c.first_split;
    const uint64_t most = REALM_MIN(cpu_fit(CPU_BLOCK_VALUES, values, UINT32_MAX), cpu_fit(work, row_work, UINT32_MAX));
    c.heads = (uint32_t)REALM_MIN(most, n_kv_head);
    c.n_head_runs = (uint32_t)cpu_parts(n_kv_head, c.heads);
    c.splits = (uint32_t)cpu_fit(most, c.heads, all_splits);
    c.n_split_runs = (uint32_t)cpu_parts(all_splits, c.splits);
    c.rows = cpu_fit(work, row_work * c.heads * c.splits, REALM_MIN(op->m, UINT32_MAX));
    if (c.rows > c.tile_rows && c.rows < op->m) c.rows -= c.rows % c.tile_rows;
    c.n_row_slices = cpu_parts(op->m, c.rows);
    c.kept_halves = values * c.heads * c.splits;
    c.carried = c.n_split_runs > 1 ? op->m * c.heads * c.group : 0;
    return c;
}

realm_status cpu_attend_cut(const cpu_backend *b, const realm_direct *op, realm_direct_cut *out, realm_error *err) {
    const attend_cut c = cut_of(b, op);
    const uint64_t blocks = (uint64_t)c.n_head_runs * c.n_split_runs;
    if (c.carried > UINT64_MAX / 64 || !realm_mul_u64(blocks, c.n_row_slices + 1, &out->n_slices))
        return realm_error_set(err, REALM_E_LIMIT, "the K and V of an op are too large");
    out->kept_bytes = c.kept_halves * sizeof(uint16_t) + c.carried * 2 * sizeof(float);
    return REALM_OK;
}

typedef struct filling {
    const realm_direct *op;
    const realm_row_kernels *kernels;
    const realm_kv *kv;
    uint32_t first_page, n_pages, first_head;
} filling;

/* Page `page` of kv head `head` of the block, from the rows of k and v. */
static void fill_page(const filling *f, uint32_t page, uint32_t head) {
    const realm_kv *kv = f->kv;
    const uint32_t n_kv_head = f->op->u.attention.n_kv_head;
    const uint64_t first = (uint64_t)(f->first_page + page) * REALM_KV_PAGE_TOKENS;
    const uint64_t end = REALM_MIN(first + REALM_KV_PAGE_TOKENS, f->op->u.attention.t);
    uint16_t *to_k = cpu_kv_k(kv, page, 0, head), *to_v = cpu_kv_v(kv, page, 0, head);
    for (uint64_t t = first; t < end; t++) {
        const size_t at = ((size_t)t * n_kv_head + f->first_head + head) * kv->head_dim;
        uint16_t *v = to_v + (size_t)(t - first) * kv->v_dim;
        f->kernels->store_half(f->op->u.attention.k + at, to_k + (t - first), kv->head_dim, REALM_KV_PAGE_TOKENS);
        f->kernels->store_half(f->op->u.attention.v + at, v, kv->head_dim, 1);
        for (uint32_t d = kv->head_dim; d < kv->v_dim; d++) v[d] = 0;
    }
}

static void fill_worker(realm_worker *w, void *user) {
    const filling *f = user;
    uint32_t n = f->n_pages * f->kv->n_kv_head, grain = REALM_MAX(1u, n / (8 * w->n)), begin, end;
    while (realm_worker_claim(w, n, grain, &begin, &end))
        for (uint32_t i = begin; i < end; i++) fill_page(f, i / f->kv->n_kv_head, i % f->kv->n_kv_head);
    realm_worker_barrier(w);
}

typedef struct attending {
    realm_plan plan;
    plan_op op;
} attending;

static void attend_worker(realm_worker *w, void *user) {
    attending *a = user;
    cpu_attention(w, &a->plan, &a->op);
}

/* Rows [row, row + rows) against the block that `part` and `kv` describe. */
static realm_status attend(cpu_backend *b, const realm_direct *op, const attend_cut *c, realm_kv *kv,
                           attention_part *part, uint64_t row, realm_error *err) {
    const uint32_t dim = op->u.attention.head_dim, width = op->u.attention.n_head * dim;
    const bool full = op->u.attention.full;
    attention_schedule sched = {0};
    /* Rows that see everything are all at the last position. */
    realm_batch_seq seq = {.n_rows = (uint32_t)REALM_MIN(c->rows, op->m - row),
                           .n_past = full ? op->u.attention.t - 1 : op->u.attention.n_past + (uint32_t)row};
    const realm_batch batch = {.n_rows = seq.n_rows, .n_seqs = 1, .seqs = &seq};
    /* Only read: the plan's values are pointers to what may be written, and x is not. */
    float *data[2] = {(float *)(uintptr_t)(op->x + row * width), op->y + row * width};
    if (part->m) {
        part->m += row * part->n_heads;
        part->l += row * part->n_heads;
    }
    attending a = {.plan = {.backend = b,
                            .n_schedules = 1,
                            .schedules = &sched,
                            .kv = kv,
                            .data = data,
                            .batch = &batch,
                            .tile_rows = c->tile_rows,
                            .part = part,
                            .row_step = full ? 0 : 1,
                            .mask = op->u.attention.mask ? op->u.attention.mask + row * op->u.attention.t : NULL,
                            .mask_cols = op->u.attention.t},
                   .op = {.op = {.kind = REALM_OP_ATTENTION,
                                 .u.attention = {.q = 0,
                                                 .out = 1,
                                                 .n_head = op->u.attention.n_head,
                                                 .n_kv_head = op->u.attention.n_kv_head,
                                                 .head_dim = dim,
                                                 .window = op->u.attention.window,
                                                 .scale = op->u.attention.scale,
                                                 .softcap = op->u.attention.softcap}}}};
    cpu_attention_shape(&sched, &a.op.op.u.attention, &a.plan.tile_rows);
    a.plan.partial_floats = cpu_attention_partial_floats(&a.plan);
    const uint32_t n_tiles = (uint32_t)cpu_parts(seq.n_rows, a.plan.tile_rows);
    realm_status s = realm_team_reserve(b->team, cpu_attention_scratch_bytes(dim), err);
    for (int pass = 0; pass < 2 && s == REALM_OK; pass++) {
        cpu_layout l = {.map = pass ? b->direct.map : NULL};
        a.plan.partials = cpu_part(&l, a.plan.partial_floats, sizeof(float));
        a.plan.tiles = cpu_part(&l, n_tiles, sizeof *a.plan.tiles);
        sched.first_item = cpu_part(&l, (size_t)n_tiles + 1, sizeof *sched.first_item);
        if (l.overflow)
            s = realm_error_set(err, REALM_E_LIMIT, "an attention is too large");
        else if (pass == 0)
            s = cpu_direct_reserve(b, l.at, err);
    }
    if (s != REALM_OK) return s;
    cpu_attention_prepare(&a.plan);
    realm_team_run(b->team, attend_worker, &a);
    return REALM_OK;
}

realm_status cpu_attend_slice(cpu_backend *b, const realm_direct *op, uint64_t slice, void *kept, realm_error *err) {
    const attend_cut c = cut_of(b, op);
    const uint64_t block = slice / (c.n_row_slices + 1), at = slice % (c.n_row_slices + 1);
    const uint32_t head = (uint32_t)(block / c.n_split_runs) * c.heads;
    const uint32_t n_heads = REALM_MIN(c.heads, op->u.attention.n_kv_head - head);
    attention_part part = {.first_split = c.first_split + (uint32_t)(block % c.n_split_runs) * c.splits,
                           .first_head = head * c.group,
                           .n_heads = n_heads * c.group};
    part.end_split = REALM_MIN(part.first_split + c.splits, c.end_split);
    realm_kv kv = {.n_layers = 1,
                   .n_kv_head = n_heads,
                   .head_dim = op->u.attention.head_dim,
                   .v_dim = c.v_dim,
                   .n_pages = (part.end_split - part.first_split) * REALM_SPLIT_PAGES,
                   .pages = kept};
    kv.block_halves = (size_t)REALM_KV_PAGE_TOKENS * (kv.head_dim + kv.v_dim);
    kv.page_halves = kv.block_halves * n_heads;
    if (c.carried > 0) {
        part.m = (float *)(void *)((uint16_t *)kept + c.kept_halves);
        part.l = part.m + c.carried;
    }
    if (at > 0) return attend(b, op, &c, &kv, &part, (at - 1) * c.rows, err);
    filling f = {.op = op,
                 .kernels = &b->kernels.row,
                 .kv = &kv,
                 .first_page = part.first_split * REALM_SPLIT_PAGES,
                 .first_head = head};
    f.n_pages = (uint32_t)REALM_MIN((uint64_t)kv.n_pages, last_position(op) / REALM_KV_PAGE_TOKENS + 1 - f.first_page);
    realm_team_run(b->team, fill_worker, &f);
    return REALM_OK;
}
