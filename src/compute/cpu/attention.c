/* compute/cpu/attention.c - shares attention among the workers.
 *
 * A *tile* is a few neighbouring rows of one sequence, a *unit* the query heads of one kv head (or, for very wide
 * groups, a part of them), a *split* REALM_SPLIT_TOKENS positions. (tile, unit, split) is one kernel call:
 *
 *                      splits of the sequence's positions
 *                      |    0    |    1    |    2    |  3 |
 *      tile, unit      |  m l o  |  m l o  |  m l o  | ...|   merged left to right -> o / l
 *
 * Where there are enough (tile, unit) pairs for the team, a worker does all splits of one pair and merges as it goes.
 * With few (one long sequence being decoded) the splits are items of their own: partial results go to memory, and
 * after a barrier they are merged in the same order. Both ways compute the same numbers, so neither the batch nor the
 * number of threads shows in a result.
 */
#include <math.h>
#include <string.h>

#include "compute/cpu/plan.h"

#define QUERIES REALM_ATTEND_QUERIES

/* Pairs per worker from which on splits stay together. */
#define ENOUGH_ITEMS 4u

/* A worker's scratch, everything 64-byte aligned. */
typedef struct scratch {
    float *q;              /* (QUERIES, head_dim) */
    float *scores;         /* (QUERIES, REALM_SPLIT_TOKENS) */
    float *page;           /* (32, v_dim) */
    float *m, *l, *o;      /* (QUERIES), (QUERIES), (QUERIES, v_dim) */
    float *m2, *l2, *o2;   /* the same, of one split */
    uint32_t *begin, *end; /* (QUERIES) within the split */
} scratch;

static uint32_t v_dim_of(uint32_t head_dim) {
    return (head_dim + REALM_HEAD_PAD - 1) / REALM_HEAD_PAD * REALM_HEAD_PAD;
}

size_t cpu_attention_scratch_bytes(uint32_t head_dim) {
    uint32_t v_dim = v_dim_of(head_dim);
    return sizeof(float) * ((size_t)QUERIES * (3 * v_dim + REALM_SPLIT_TOKENS + 6) + REALM_KV_PAGE_TOKENS * v_dim);
}

static scratch scratch_of(const realm_worker *w, uint32_t v_dim) {
    float *f = w->scratch;
    scratch s;
    s.scores = f, f += (size_t)QUERIES * REALM_SPLIT_TOKENS;
    s.page = f, f += (size_t)REALM_KV_PAGE_TOKENS * v_dim;
    s.q = f, f += (size_t)QUERIES * v_dim;
    s.o = f, f += (size_t)QUERIES * v_dim;
    s.o2 = f, f += (size_t)QUERIES * v_dim;
    s.m = f, f += QUERIES;
    s.l = f, f += QUERIES;
    s.m2 = f, f += QUERIES;
    s.l2 = f, f += QUERIES;
    s.begin = (uint32_t *)(void *)f, f += QUERIES;
    s.end = (uint32_t *)(void *)f;
    return s;
}

/* ---- sharing ----------------------------------------------------------------------------------------------------- */

static uint32_t window_begin(uint32_t pos, uint32_t window) {
    return window > 0 && pos >= window ? pos + 1 - window : 0;
}

/* Rows of a tile are at neighbouring positions, or all at the same one (row_step 0: direct attention over everything).
 */
static uint32_t last_pos(const realm_plan *p, const attention_tile *t) {
    return t->pos + (t->n_rows - 1) * p->row_step;
}

/* The splits that a tile sees, [first, end), and which of them are done now: all, or those of a part, if any. */
typedef struct split_range {
    uint32_t first, end;
    bool resumed, complete; /* earlier ones have been done, none is left after these */
} split_range;

static split_range splits_of(const realm_plan *p, const attention_tile *t, uint32_t window) {
    split_range r = {.first = window_begin(t->pos, window) / REALM_SPLIT_TOKENS,
                     .end = last_pos(p, t) / REALM_SPLIT_TOKENS + 1,
                     .complete = true};
    if (!p->part) return r;
    r.resumed = r.first < p->part->first_split;
    r.complete = r.end <= p->part->end_split;
    r.first = REALM_MAX(r.first, p->part->first_split);
    r.end = REALM_MAX(r.first, REALM_MIN(r.end, p->part->end_split));
    return r;
}

static size_t slot_floats(const realm_plan *p, const attention_schedule *s) {
    return (size_t)s->slot_queries * (p->kv->v_dim + 2);
}

static void schedule(realm_plan *p, attention_schedule *s) {
    uint32_t units = p->kv->n_kv_head * s->n_chunks, most = 0;
    s->slot_queries = p->tile_rows * s->chunk_heads;
    s->split = false;
    if ((uint64_t)p->n_tiles * units >= (uint64_t)ENOUGH_ITEMS * realm_team_size(p->backend->team) ||
        realm_team_size(p->backend->team) == 1)
        return;
    uint64_t items = 0;
    for (uint32_t i = 0; i < p->n_tiles; i++) {
        split_range splits = splits_of(p, &p->tiles[i], s->window);
        s->first_item[i] = (uint32_t)items;
        items += (uint64_t)(splits.end - splits.first) * units;
        most = REALM_MAX(most, splits.end - splits.first);
    }
    s->first_item[p->n_tiles] = (uint32_t)items;
    s->split = most > 1 && items * slot_floats(p, s) <= p->partial_floats;
}

void cpu_attention_prepare(realm_plan *p) {
    if (p->n_schedules == 0) return;
    p->n_tiles = 0;
    for (uint32_t i = 0; i < p->batch->n_seqs; i++) {
        const realm_batch_seq *seq = &p->batch->seqs[i];
        for (uint32_t r = 0; r < seq->n_rows; r += p->tile_rows)
            p->tiles[p->n_tiles++] = (attention_tile){.seq = i,
                                                      .row = seq->first_row + r,
                                                      .n_rows = REALM_MIN(p->tile_rows, seq->n_rows - r),
                                                      .pos = seq->n_past + r * p->row_step};
    }
    for (uint32_t i = 0; i < p->n_schedules; i++) schedule(p, &p->schedules[i]);
}

/* ---- the work ---------------------------------------------------------------------------------------------------- */

typedef struct pair { /* a tile and a unit of one op */
    const realm_op_attention *op;
    attention_tile tile;
    uint32_t kv_head, first_head, n_heads; /* query heads first_head .. + n_heads - 1 */
} pair;

static pair pair_of(const realm_plan *p, const plan_op *po, uint32_t tile, uint32_t unit) {
    const attention_schedule *s = &p->schedules[po->shared];
    const realm_op_attention *o = &po->op.u.attention;
    uint32_t group = o->n_head / o->n_kv_head, chunk = unit % s->n_chunks, head = chunk * s->chunk_heads;
    return (pair){.op = o,
                  .tile = p->tiles[tile],
                  .kv_head = unit / s->n_chunks,
                  .first_head = (p->part ? p->part->first_head : 0) + unit / s->n_chunks * group + head,
                  .n_heads = REALM_MIN(s->chunk_heads, group - head)};
}

/* Query i of a pair is head i % n_heads of row i / n_heads. */
static uint32_t n_queries(const pair *x) { return x->tile.n_rows * x->n_heads; }

static void gather_q(const realm_plan *p, const pair *x, float *q) {
    const realm_op_attention *o = x->op;
    size_t n = (size_t)x->n_heads * o->head_dim;
    for (uint32_t r = 0; r < x->tile.n_rows; r++) {
        const float *src = p->data[o->q] + ((size_t)(x->tile.row + r) * o->n_head + x->first_head) * o->head_dim;
        for (size_t i = 0; i < n; i++) q[r * n + i] = src[i] * o->scale;
    }
}

/* Page `index` of the pair's sequence. */
static uint32_t page_of(const realm_plan *p, const pair *x, uint32_t index) {
    return p->part ? index - p->part->first_split * REALM_SPLIT_PAGES : p->batch->seqs[x->tile.seq].pages[index];
}

/* The K of a split of a pair, for the kernel to fetch while it works on another. */
static void look_ahead(const realm_plan *p, const pair *x, uint32_t split, realm_attend_args *a) {
    uint32_t last = last_pos(p, &x->tile) / REALM_KV_PAGE_TOKENS;
    for (uint32_t i = 0; i < REALM_SPLIT_PAGES && split * REALM_SPLIT_PAGES + i <= last; i++)
        a->next_k[i] = cpu_kv_k(p->kv, page_of(p, x, split * REALM_SPLIT_PAGES + i), x->op->layer, x->kv_head);
}

/* `next` and its split are what this worker will probably come to next; NULL: not known. */
static void attend(const realm_plan *p, const pair *x, const scratch *s, uint32_t split, const pair *next,
                   uint32_t next_split, float *m, float *l, float *o) {
    const realm_op_attention *op = x->op;
    const float *mask[QUERIES];
    uint32_t base = split * REALM_SPLIT_TOKENS, low = REALM_SPLIT_TOKENS, high = 0;
    for (uint32_t r = 0; r < x->tile.n_rows; r++) {
        uint32_t pos = x->tile.pos + r * p->row_step, begin = window_begin(pos, op->window);
        begin = begin <= base ? 0 : REALM_MIN(begin - base, REALM_SPLIT_TOKENS);
        uint32_t end = pos < base ? 0 : REALM_MIN(pos + 1 - base, REALM_SPLIT_TOKENS);
        for (uint32_t h = 0; h < x->n_heads; h++) {
            s->begin[r * x->n_heads + h] = begin;
            s->end[r * x->n_heads + h] = end;
            if (p->mask) mask[r * x->n_heads + h] = p->mask + (x->tile.row + r) * p->mask_cols + base;
        }
        if (begin >= end) continue;
        low = REALM_MIN(low, begin);
        high = REALM_MAX(high, end);
    }
    realm_attend_args a = {.n_q = n_queries(x),
                           .head_dim = op->head_dim,
                           .v_dim = p->kv->v_dim,
                           .q = s->q,
                           .begin = s->begin,
                           .end = s->end,
                           .softcap = op->softcap,
                           .mask = p->mask ? mask : NULL,
                           .scores = s->scores,
                           .page = s->page,
                           .m = m,
                           .l = l,
                           .o = o};
    for (uint32_t i = low / REALM_KV_PAGE_TOKENS; i * REALM_KV_PAGE_TOKENS < high; i++) {
        uint32_t page = page_of(p, x, base / REALM_KV_PAGE_TOKENS + i);
        a.k[i] = cpu_kv_k(p->kv, page, op->layer, x->kv_head);
        a.v[i] = cpu_kv_v(p->kv, page, op->layer, x->kv_head);
    }
    if (next) look_ahead(p, next, next_split, &a);
    p->backend->kernels.attention.attend_split(&a);
}

/* Where the output of a query stands. */
static float *out_of(const realm_plan *p, const pair *x, uint32_t query) {
    size_t row = x->tile.row + query / x->n_heads, head = x->first_head + query % x->n_heads;
    return p->data[x->op->out] + (row * x->op->n_head + head) * x->op->head_dim;
}

static size_t carry_of(const realm_plan *p, const pair *x, uint32_t query) {
    return (size_t)(x->tile.row + query / x->n_heads) * p->part->n_heads + x->first_head - p->part->first_head +
           query % x->n_heads;
}

/* What the earlier splits of a query have come to. */
static void resume(const realm_plan *p, const pair *x, uint32_t query, float *m, float *l, float *o) {
    *m = p->part->m[carry_of(p, x, query)];
    *l = p->part->l[carry_of(p, x, query)];
    memcpy(o, out_of(p, x, query), x->op->head_dim * sizeof *o);
    memset(o + x->op->head_dim, 0, (p->kv->v_dim - x->op->head_dim) * sizeof *o);
}

static void write_out(const realm_plan *p, const pair *x, uint32_t query, bool complete, float m, float l,
                      const float *o) {
    float *out = out_of(p, x, query), inv = l == 0 ? 0 : 1.0f / l;
    if (!complete) {
        p->part->m[carry_of(p, x, query)] = m;
        p->part->l[carry_of(p, x, query)] = l;
        memcpy(out, o, x->op->head_dim * sizeof *o);
        return;
    }
    for (uint32_t d = 0; d < x->op->head_dim; d++) out[d] = o[d] * inv;
}

/* All splits of one pair; `after` is probably the next one (may be NULL). */
static void attend_pair(const realm_plan *p, const pair *x, const pair *after, const scratch *s) {
    const realm_attention_kernels *k = &p->backend->kernels.attention;
    const split_range r = splits_of(p, &x->tile, x->op->window);
    uint32_t v_dim = p->kv->v_dim, n = n_queries(x), after_split = 0;
    if (r.first == r.end) return;
    if (after) {
        const split_range others = splits_of(p, &after->tile, x->op->window);
        if (others.first == others.end) after = NULL;
        after_split = others.first;
    }
    gather_q(p, x, s->q);
    for (uint32_t i = 0; r.resumed && i < n; i++) resume(p, x, i, &s->m[i], &s->l[i], s->o + (size_t)i * v_dim);
    for (uint32_t split = r.first; split < r.end; split++) {
        const pair *next = split + 1 < r.end ? x : after;
        uint32_t next_split = split + 1 < r.end ? split + 1 : after_split;
        if (split == r.first && !r.resumed) {
            attend(p, x, s, split, next, next_split, s->m, s->l, s->o);
            continue;
        }
        attend(p, x, s, split, next, next_split, s->m2, s->l2, s->o2);
        for (uint32_t i = 0; i < n; i++)
            k->merge_split(&s->m[i], &s->l[i], s->o + (size_t)i * v_dim, s->m2[i], s->l2[i], s->o2 + (size_t)i * v_dim,
                           v_dim);
    }
    for (uint32_t i = 0; i < n; i++) write_out(p, x, i, r.complete, s->m[i], s->l[i], s->o + (size_t)i * v_dim);
}

/* The partial results of item i: m (slot_queries), l (slot_queries), o (slot_queries, v_dim). */
static float *slot(const realm_plan *p, const attention_schedule *s, uint32_t item) {
    return p->partials + item * slot_floats(p, s);
}

static void merge_pair(const realm_plan *p, const attention_schedule *sched, const pair *x, uint32_t tile,
                       uint32_t unit, const scratch *s) {
    const realm_attention_kernels *k = &p->backend->kernels.attention;
    const split_range r = splits_of(p, &x->tile, x->op->window);
    uint32_t v_dim = p->kv->v_dim, units = p->kv->n_kv_head * sched->n_chunks, q = sched->slot_queries;
    if (r.first == r.end) return;
    for (uint32_t i = 0; i < n_queries(x); i++) {
        uint32_t item = sched->first_item[tile] + unit;
        float *first = slot(p, sched, item), *m = &first[i], *l = &first[q + i];
        float *o = first + 2 * (size_t)q + (size_t)i * v_dim;
        if (r.resumed) {
            m = s->m, l = s->l, o = s->o;
            resume(p, x, i, m, l, o);
        } else {
            item += units;
        }
        for (; item < sched->first_item[tile + 1]; item += units) {
            const float *next = slot(p, sched, item), *next_o = next + 2 * (size_t)q;
            k->merge_split(m, l, o, next[i], next[q + i], next_o + (size_t)i * v_dim, v_dim);
        }
        write_out(p, x, i, r.complete, *m, *l, o);
    }
}

/* Item i of the splits: its pair, the split. *tile is that of an earlier item and becomes that of this one. */
static pair split_item(const realm_plan *p, const plan_op *po, uint32_t i, uint32_t *tile, uint32_t *split) {
    const attention_schedule *s = &p->schedules[po->shared];
    while (s->first_item[*tile + 1] <= i) ++*tile;
    uint32_t units = p->kv->n_kv_head * s->n_chunks, at = i - s->first_item[*tile];
    *split = at / units + splits_of(p, &p->tiles[*tile], s->window).first;
    return pair_of(p, po, *tile, at % units);
}

static void attend_splits(realm_worker *w, realm_plan *p, const plan_op *po, const scratch *s) {
    const attention_schedule *sched = &p->schedules[po->shared];
    uint32_t units = p->kv->n_kv_head * sched->n_chunks, items = sched->first_item[p->n_tiles], begin, end, tile = 0;
    while (realm_worker_claim(w, items, 1, &begin, &end)) {
        uint32_t split, next_split = 0;
        pair x = split_item(p, po, begin, &tile, &split), next; /* claims only go up */
        uint32_t next_tile = tile;
        bool more = begin + w->n < items; /* where the others take one each meanwhile */
        if (more) next = split_item(p, po, begin + w->n, &next_tile, &next_split);
        gather_q(p, &x, s->q);
        float *m = slot(p, sched, begin), *l = m + sched->slot_queries;
        attend(p, &x, s, split, more ? &next : NULL, next_split, m, l, l + sched->slot_queries);
    }
    realm_worker_barrier(w);
    while (realm_worker_claim(w, p->n_tiles * units, 1, &begin, &end)) {
        pair x = pair_of(p, po, begin / units, begin % units);
        merge_pair(p, sched, &x, begin / units, begin % units, s);
    }
    realm_worker_barrier(w);
}

void cpu_attention(realm_worker *w, realm_plan *p, const plan_op *po) {
    const attention_schedule *sched = &p->schedules[po->shared];
    scratch s = scratch_of(w, p->kv->v_dim);
    if (sched->split) {
        attend_splits(w, p, po, &s);
        return;
    }
    uint32_t units = p->kv->n_kv_head * sched->n_chunks, n = p->n_tiles * units, begin, end;
    while (realm_worker_claim(w, n, 1, &begin, &end)) {
        uint32_t item = n - 1 - begin; /* the longest first: within a prompt that is the last */
        pair x = pair_of(p, po, item / units, item % units), after = x;
        if (item >= w->n) after = pair_of(p, po, (item - w->n) / units, (item - w->n) % units);
        attend_pair(p, &x, item >= w->n ? &after : NULL, &s);
    }
    realm_worker_barrier(w);
}
