/* compute/cpu/plan.h - inside the CPU backend: what backend.c, kv.c, plan.c, run.c and attention.c share. */
#ifndef REALM_COMPUTE_CPU_PLAN_H
#define REALM_COMPUTE_CPU_PLAN_H

#include "compute/cpu/kernels.h"

typedef struct cpu_backend {
    realm_backend base;
    realm_team *team;
    realm_cpu_kernels kernels;
    char name[16]; /* "cpu/vnni" */
    uint64_t cache_bytes;
    struct { /* direct.c: one mapping, grown as needed, for what a slice prepares */
        char *map;
        size_t bytes;
    } direct;
} cpu_backend;

/* ---- KV, kv.c ---------------------------------------------------------------------------------------------------- */

/* One mapping of n_pages pages. A page, in halves:
 *
 *     (layer, kv head) { K (head_dim, 32 tokens), V (32 tokens, v_dim) }
 *
 * so that a kernel reads each half of a block front to back: for scores the lanes are tokens, for outputs they are the
 * values of a head, and neither needs a sum across lanes. */
struct realm_kv {
    uint32_t n_layers, n_kv_head, head_dim, v_dim, n_pages;
    size_t block_halves, page_halves;
    uint16_t *pages;
    size_t map_bytes;
};

static inline uint16_t *cpu_kv_k(const realm_kv *kv, uint32_t page, uint32_t layer, uint32_t head) {
    return kv->pages + page * kv->page_halves + ((size_t)layer * kv->n_kv_head + head) * kv->block_halves;
}
static inline uint16_t *cpu_kv_v(const realm_kv *kv, uint32_t page, uint32_t layer, uint32_t head) {
    return cpu_kv_k(kv, page, layer, head) + (size_t)kv->head_dim * REALM_KV_PAGE_TOKENS;
}

realm_status cpu_kv_open(realm_backend *b, const realm_kv_desc *desc, realm_kv **out, realm_error *err);
void cpu_kv_close(realm_backend *b, realm_kv *kv);
uint64_t cpu_kv_page_bytes(const realm_kv *kv);
void cpu_kv_zero_page(realm_backend *b, realm_kv *kv, uint32_t page);
void cpu_kv_copy_page(realm_backend *b, realm_kv *kv, uint32_t dst, uint32_t src);
void cpu_kv_read_page(realm_backend *b, const realm_kv *kv, uint32_t page, void *out);
void cpu_kv_write_page(realm_backend *b, realm_kv *kv, uint32_t page, const void *in);

/* ---- plans, plan.c ----------------------------------------------------------------------------------------------- */

/* One way to rotate; ops with the same one share its table of the current batch. */
typedef struct rope_table {
    uint32_t dims;
    float base, freq_scale;
    const realm_weight *factors;
    double *freq; /* (dims / 2) radians per position */
    float *cs;    /* (rows of the batch, dims): cosines, then sines */
} rope_table;

/* Most rows of one. */
#define REALM_ATTEND_TILE_ROWS (REALM_ATTEND_QUERIES / 2)
/* Neighbouring rows of one sequence that attention takes together. */
typedef struct attention_tile {
    uint32_t seq, row, n_rows, pos; /* pos: of the first row */
} attention_tile;

/* How the work of the attention ops with one shape is shared in the current batch (attention.c). */
typedef struct attention_schedule {
    uint32_t n_head, window;
    uint32_t chunk_heads, n_chunks; /* the heads of a group, cut so that one row fits into a call */
    uint32_t slot_queries;          /* most queries of a call */
    bool split;                     /* items are (tile, unit, split), else (tile, unit) */
    uint32_t *first_item;           /* (tiles + 1) with `split`: the tile's first item */
} attention_schedule;

/* What a direct attention adds: K and V of some splits and kv heads alone are in the pool, with the first of these
 * splits in page 0 and so on, and each split's part is merged into what the earlier ones have left: unnormalised
 * outputs in the output's place, m and l here. */
typedef struct attention_part {
    uint32_t first_split, end_split;
    uint32_t first_head, n_heads; /* query heads of the pool's kv heads */
    float *m, *l;                 /* (rows, n_heads) */
} attention_part;

typedef struct plan_op {
    realm_op op;
    uint32_t shared; /* ROPE_KV: index of its rope_table; ATTENTION: of its schedule */
} plan_op;

struct realm_plan {
    cpu_backend *backend;
    uint32_t n_values, n_ops, n_ropes, n_schedules, max_rows, max_out;
    realm_value logits;
    realm_kv *kv;
    realm_residency residency; /* need is NULL: nothing is streamed */
    realm_value_desc *values;
    float **data;        /* (n_values) into `map` */
    float *logits_at[2]; /* data[logits] of one run and of the next */
    plan_op *ops;
    rope_table *ropes;
    attention_schedule *schedules;
    bool pass_by;     /* its weights together are more than the caches hold */
    uint64_t n_vocab; /* the least of the embeddings' rows; UINT64_MAX without one */

    /* one mapping: values, rope tables, quantised activations, partial attention results */
    char *map;
    size_t map_bytes;
    void *quantized;
    float *partials;
    size_t partial_floats;

    /* the current batch */
    const realm_batch *batch;
    uint32_t first_op, end_op;   /* that the team walks now */
    uint32_t *row_seq, *row_pos; /* (max_rows) */
    uint32_t tile_rows, n_tiles;
    attention_tile *tiles;      /* (max_rows) */
    const attention_part *part; /* of a direct attention; NULL in plans */
    uint32_t row_step;          /* 1; 0 for a direct attention where every row sees everything */
    const float *mask;          /* (rows, mask_cols) of a direct attention; NULL in plans */
    size_t mask_cols;
};

realm_status cpu_plan_open(realm_backend *b, const realm_plan_desc *desc, realm_plan **out, realm_error *err);
void cpu_plan_close(realm_backend *b, realm_plan *p);

/* ---- running, run.c and attention.c ------------------------------------------------------------------------------ */

realm_status cpu_plan_run(realm_backend *b, realm_plan *p, const realm_batch *batch, realm_error *err);

/* The direct ops, direct.c. */
realm_status cpu_direct_cut(realm_backend *b, const realm_direct *op, realm_direct_cut *out, realm_error *err);
realm_status cpu_direct(realm_backend *b, const realm_direct *op, uint64_t slice, void *kept, realm_error *err);
/* Memory that the direct ops keep from one slice to the next; a team's owner thread. */
void cpu_direct_release(cpu_backend *b);

/* Angles in radians per position (Su et al., "RoFormer" (2021), 3.2.2), and their cosines and sines (dims / 2 each) at
 * one position, in double: a float position times a float frequency is off by 1e-4 of a turn at position 4,096. */
void cpu_rope_freqs(uint32_t dims, float base, float freq_scale, const float *factors, double *freq);
void cpu_rope_angles(uint32_t dims, const double *freq, uint32_t pos, float *cs);
/* How many heads and rows attention takes together; *tile_rows is lowered where needed. */
void cpu_attention_shape(attention_schedule *s, const realm_op_attention *op, uint32_t *tile_rows);
/* Most partial results that are worth their memory; 0 for one thread. */
size_t cpu_attention_partial_floats(const realm_plan *p);
/* Private scratch of a worker that attention needs. */
size_t cpu_attention_scratch_bytes(uint32_t head_dim);
/* Cuts the batch into tiles and decides per schedule how to share them. The caller of the run, before it. */
void cpu_attention_prepare(realm_plan *p);
/* Every worker; ends with a barrier. */
void cpu_attention(realm_worker *w, realm_plan *p, const plan_op *op);

#endif
