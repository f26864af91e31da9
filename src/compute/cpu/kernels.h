/* compute/cpu/kernels.h - the table of kernels: everything in the CPU backend that has more than one implementation.
 *
 * realm_cpu_kernels_init fills the table with the scalar definitions of ref/ and then lets each instruction set up to
 * the wanted level overwrite what it does better. A kernel works on one row or one tile and knows nothing of teams,
 * plans or batches. What has to hold at every level:
 *
 *   - a kernel's result for one row, query or element never depends on what else is in the call (batch invariance);
 *   - rms_norm_row, norm_add_row, add_row, scale_row, rope_row and the conversions to half are the same bit for bit at
 *     every level (products and sums are rounded one by one, in the lane order given below);
 *   - the others agree with ref to a few units in the last place (polynomial exp, fused multiply-add).
 *
 * No pointer needs alignment beyond its type's unless said. Kernels are called from any worker.
 */
#ifndef REALM_COMPUTE_CPU_KERNELS_H
#define REALM_COMPUTE_CPU_KERNELS_H

#include "compute/cpu/cpu.h"
#include "compute/cpu/linear_kernels.h"

/* ---- rows ------------------------------------------------------------------------------------------------------- */

/* Lanes of a sum over a row: partial sum j takes the elements i = j mod 16 in order, then halves are folded:
 * j += j + 8, += 4, += 2, += 1. */
#define REALM_SUM_LANES 16u

typedef struct realm_row_kernels {
    /* y = x * inv * gain, inv = 1 / sqrtf(sum(x^2) / k + eps); gain NULL: all ones. y may be x. */
    void (*rms_norm_row)(const float *x, const float *gain, float eps, float *y, size_t k);
    /* y += x * inv * gain */
    void (*norm_add_row)(const float *x, const float *gain, float eps, float *y, size_t k);
    void (*scale_row)(float *y, float s, size_t n);      /* y *= s */
    void (*add_row)(float *y, const float *x, size_t n); /* y += x */
    /* gate = act(gate) * up, element by element.
     * SILU x / (1 + exp(-x)); GELU_TANH x / (1 + exp(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3), which is
     * 0.5 x (1 + tanh(u)) (Hendrycks and Gimpel 2016, the tanh approximation). */
    void (*act_mul)(realm_act act, float *gate, const float *up, size_t n);
    /* Rotates the first `dims` values of x in place, pair i by the angle whose cosine and sine are cs[i] and
     * cs[dims / 2 + i]. */
    void (*rope_row)(realm_rope_style style, float *x, const float *cs, uint32_t dims);
    /* dst[i * stride] = half(src[i]), to nearest even. */
    void (*store_half)(const float *src, uint16_t *dst, size_t n, size_t stride);
} realm_row_kernels;

/* ---- attention -------------------------------------------------------------------------------------------------- */

/* Positions of a sequence are cut into splits of this many tokens, aligned at position 0. Softmax is complete inside a
 * split and splits are merged in order, so the result is the same whichever thread does which split. */
#define REALM_SPLIT_PAGES 4u
#define REALM_SPLIT_TOKENS (REALM_SPLIT_PAGES * REALM_KV_PAGE_TOKENS)
/* Queries of one call at most. */
#define REALM_ATTEND_QUERIES 32u
/* Values per row of V and of an output are padded to a multiple of this. */
#define REALM_HEAD_PAD 16u

/* Some queries (rows times heads of a group) against one split of one kv head. */
typedef struct realm_attend_args {
    uint32_t n_q;      /* 1..REALM_ATTEND_QUERIES */
    uint32_t head_dim; /* even */
    uint32_t v_dim;    /* head_dim rounded up to REALM_HEAD_PAD */
    const float *q;    /* (n_q, head_dim), already times the softmax scale */
    const uint32_t
        *begin;          /* (n_q) query i sees tokens begin[i] <= t < end[i] of the split; none when not begin < end */
    const uint32_t *end; /* (n_q) */
    const uint16_t *k[REALM_SPLIT_PAGES];      /* halves (head_dim, 32 tokens); those that no query sees are not read */
    const uint16_t *v[REALM_SPLIT_PAGES];      /* halves (32 tokens, v_dim) */
    const uint16_t *next_k[REALM_SPLIT_PAGES]; /* what will probably be read next, fetched meanwhile; NULL: nothing */
    float softcap;                             /* 0: none */
    const float *const *mask; /* NULL, or (n_q): what is added to query i's scores, at the split's first token; read
                                 between begin and end alone. A query whose scores are all -infinity sees nothing. */
    float *scores;            /* scratch: (n_q, REALM_SPLIT_TOKENS), 64-byte aligned */
    float *page;              /* scratch: 32 * v_dim, 64-byte aligned */
    float *m;                 /* (n_q) out: greatest score; -infinity when the query sees nothing */
    float *l;                 /* (n_q) out: sum of exp(score - m); 0 when it sees nothing */
    float *o;                 /* (n_q, v_dim) out: sum of exp(score - m) * V[t]; 0 when it sees nothing */
} realm_attend_args;

typedef struct realm_attention_kernels {
    /* Per query, in this order: score[t] = (sum over the even values of the head) + (sum over the odd ones), each in
     * order (+ mask[t], after the softcap); m; p[t] = exp(score[t] - m); l; o[d] = sum over t in order of p[t] V[t][d].
     */
    void (*attend_split)(const realm_attend_args *a);
    /* Merges a later split (m2, l2, o2) of one query into (m, l, o); a split with l = 0 changes nothing. */
    void (*merge_split)(float *m, float *l, float *o, float m2, float l2, const float *o2, uint32_t v_dim);
} realm_attention_kernels;

/* ---- the table -------------------------------------------------------------------------------------------------- */

struct realm_cpu_kernels {
    realm_linear_kernels linear; /* linear_kernels.h */
    realm_row_kernels row;
    realm_attention_kernels attention;
};

/* Any thread; the level must be one that realm_cpu_detect allows. */
void realm_cpu_kernels_init(realm_cpu_kernels *k, realm_cpu_level level);

/* Each fills or overwrites its own entries. */
void realm_row_kernels_init_ref(realm_row_kernels *k);
void realm_row_kernels_init_avx2(realm_row_kernels *k);
void realm_row_kernels_init_avx512(realm_row_kernels *k);
void realm_attention_kernels_init_ref(realm_attention_kernels *k);
void realm_attention_kernels_init_avx2(realm_attention_kernels *k);
void realm_attention_kernels_init_avx512(realm_attention_kernels *k);

#endif
