/* compute/cpu/x86/attention_avx512.c - one split of attention in 512-bit registers.
 *
 * Scores: the 32 tokens of a page are two registers; for each value of the head one row of K meets the broadcast value
 * of up to six queries. Even and odd values are separate chains (the definition's order), so that even one query keeps
 * four sums going. Outputs: the lanes are values of the head; tokens come in order; six queries by four
 * registers of V. So halves are widened once for six queries; with more than that, a page is widened into scratch
 * first. Widening is exact: the same numbers either way.
 */
#include <immintrin.h>
#include <math.h>

#include "compute/cpu/kernels.h"

#define INLINE static inline __attribute__((always_inline))
#define PAGE REALM_KV_PAGE_TOKENS
#define SPLIT REALM_SPLIT_TOKENS
#define BLOCK 6u /* queries */

/* As in row_avx512.c; below exp(-87) zero. */
INLINE __m512 exp512(__m512 x) {
    __mmask16 live = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_NLT_UQ);
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269502f)),
                                    _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(6.931457520e-01f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(1.428606765e-06f), r);
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(1.392621314e-03f), r, _mm512_set1_ps(8.363203146e-03f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.166655615e-02f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.666657627e-01f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_maskz_scalef_ps(live, p, n);
}

INLINE __m512 widen(const uint16_t *h) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)h)); }

/* 16 values at `at` of a page that is halves or, widened, floats. */
INLINE __m512 load16(const void *page, size_t at, bool wide) {
    return wide ? _mm512_load_ps((const float *)page + at) : widen((const uint16_t *)page + at);
}

/* Into the second level: requests from the first are too few at a time for memory (measured: 19 against 28 GB/s). */
INLINE void prefetch(const void *base, size_t byte) { _mm_prefetch((const char *)base + byte, _MM_HINT_T1); }

/* ---- scores ------------------------------------------------------------------------------------------------------ */

/* s[j][0..31] of one page for n queries. `v` (the page's V, as large as its K) is fetched meanwhile. */
INLINE void scores_n(uint32_t n, const float *q, uint32_t dim, const void *k, bool wide, float *s, const void *v) {
    __m512 acc[BLOCK][4];
#pragma GCC unroll 8
    for (uint32_t j = 0; j < n; j++) acc[j][0] = acc[j][1] = acc[j][2] = acc[j][3] = _mm512_setzero_ps();
    for (uint32_t d = 0; d < dim / 2; d++) {
        size_t even = (size_t)d * 2 * PAGE, odd = even + PAGE;
        __m512 k0 = load16(k, even, wide), k1 = load16(k, even + 16, wide);
        __m512 k2 = load16(k, odd, wide), k3 = load16(k, odd + 16, wide);
        if (!wide) {
            prefetch(v, even * 2);
            prefetch(v, odd * 2);
        }
#pragma GCC unroll 8
        for (uint32_t j = 0; j < n; j++) {
            __m512 a = _mm512_set1_ps(q[j * dim + 2 * d]), b = _mm512_set1_ps(q[j * dim + 2 * d + 1]);
            acc[j][0] = _mm512_fmadd_ps(a, k0, acc[j][0]);
            acc[j][1] = _mm512_fmadd_ps(a, k1, acc[j][1]);
            acc[j][2] = _mm512_fmadd_ps(b, k2, acc[j][2]);
            acc[j][3] = _mm512_fmadd_ps(b, k3, acc[j][3]);
        }
    }
#pragma GCC unroll 8
    for (uint32_t j = 0; j < n; j++) {
        _mm512_store_ps(s + j * SPLIT, _mm512_add_ps(acc[j][0], acc[j][2]));
        _mm512_store_ps(s + j * SPLIT + 16, _mm512_add_ps(acc[j][1], acc[j][3]));
    }
}

INLINE void scores_page(uint32_t n_q, const float *q, uint32_t dim, const void *k, bool wide, float *s, const void *v) {
    for (; n_q >= BLOCK; n_q -= BLOCK, q += BLOCK * dim, s += BLOCK * SPLIT) scores_n(BLOCK, q, dim, k, wide, s, v);
    switch (n_q) {
    case 5: scores_n(5, q, dim, k, wide, s, v); break;
    case 4: scores_n(4, q, dim, k, wide, s, v); break;
    case 3: scores_n(3, q, dim, k, wide, s, v); break;
    case 2: scores_n(2, q, dim, k, wide, s, v); break;
    case 1: scores_n(1, q, dim, k, wide, s, v); break;
    default: break;
    }
}

static __attribute__((noinline)) void scores_halves(uint32_t n_q, const float *q, uint32_t dim, const uint16_t *k,
                                                    float *s, const uint16_t *v) {
    scores_page(n_q, q, dim, k, false, s, v);
}

static __attribute__((noinline)) void scores_wide(uint32_t n_q, const float *q, uint32_t dim, const float *k,
                                                  float *s) {
    scores_page(n_q, q, dim, k, true, s, NULL);
}

/* ---- softmax ----------------------------------------------------------------------------------------------------- */

INLINE __m512 soften(__m512 s, float cap) {
    /* cap * tanh(x) = cap * (1 - 2 / (exp(2x) + 1)); beyond |x| = 20 it is cap itself */
    __m512 x = _mm512_div_ps(s, _mm512_set1_ps(cap));
    x = _mm512_min_ps(_mm512_set1_ps(20.0f), _mm512_max_ps(_mm512_set1_ps(-20.0f), x));
    __m512 e = _mm512_add_ps(exp512(_mm512_add_ps(x, x)), _mm512_set1_ps(1.0f));
    __m512 t = _mm512_sub_ps(_mm512_set1_ps(1.0f), _mm512_div_ps(_mm512_set1_ps(2.0f), e));
    return _mm512_mul_ps(t, _mm512_set1_ps(cap));
}

INLINE __mmask16 lanes_between(uint32_t at, uint32_t begin, uint32_t end) {
    uint32_t low = begin > at ? begin - at : 0, high = end - at < 16 ? end - at : 16; /* low < 16, high > 0 */
    return (__mmask16)((0xffffu << low) & (0xffffu >> (16 - high)));
}

/* Scores of [begin, end) to exp(score - m) in place, zero in the lanes around it; begin < end. */
static void softmax(float *s, uint32_t begin, uint32_t end, float softcap, const float *mask, float *m, float *l) {
    const __m512 least = _mm512_set1_ps(-INFINITY);
    uint32_t first = begin & ~15u;
    __m512 top = least;
    for (uint32_t t = first; t < end; t += 16) {
        __m512 x = _mm512_load_ps(s + t);
        if (softcap > 0) x = soften(x, softcap);
        if (mask) x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(lanes_between(t, begin, end), mask + t));
        x = _mm512_mask_mov_ps(least, lanes_between(t, begin, end), x);
        _mm512_store_ps(s + t, x);
        top = _mm512_max_ps(top, x);
    }
    *m = _mm512_reduce_max_ps(top);
    if (mask && *m == -INFINITY) { /* sees nothing */
        for (uint32_t t = first; t < end; t += 16) _mm512_store_ps(s + t, _mm512_setzero_ps());
        *l = 0;
        return;
    }
    __m512 sub = _mm512_set1_ps(*m), sum = _mm512_setzero_ps();
    for (uint32_t t = first; t < end; t += 16) {
        __m512 p = exp512(_mm512_sub_ps(_mm512_load_ps(s + t), sub));
        _mm512_store_ps(s + t, p);
        sum = _mm512_add_ps(sum, p);
    }
    *l = _mm512_reduce_add_ps(sum);
}

/* ---- outputs ----------------------------------------------------------------------------------------------------- */

/* o[j][0 .. 16 r) += sum over t in [t0, t1) of p[j][t] V[t]; v points at the first of the values. With r = 4, two
 * cache lines per token of what comes `next` are fetched meanwhile: V and K have the same size. */
INLINE void outputs_nr(uint32_t n, uint32_t r, const float *p, const void *v, bool wide, uint32_t dim, uint32_t t0,
                       uint32_t t1, const void *next, float *o) {
    __m512 acc[BLOCK][4];
#pragma GCC unroll 8
    for (uint32_t j = 0; j < n; j++)
#pragma GCC unroll 4
        for (uint32_t i = 0; i < r; i++) acc[j][i] = _mm512_loadu_ps(o + j * dim + 16 * i);
    for (uint32_t t = t0; t < t1; t++) {
        __m512 x[4];
        if (!wide && r == 4) {
            prefetch(next, (size_t)t * 128);
            prefetch(next, (size_t)t * 128 + 64);
        }
#pragma GCC unroll 4
        for (uint32_t i = 0; i < r; i++) x[i] = load16(v, (size_t)t * dim + 16 * i, wide);
#pragma GCC unroll 8
        for (uint32_t j = 0; j < n; j++) {
            __m512 a = _mm512_set1_ps(p[j * SPLIT + t]);
#pragma GCC unroll 4
            for (uint32_t i = 0; i < r; i++) acc[j][i] = _mm512_fmadd_ps(a, x[i], acc[j][i]);
        }
    }
#pragma GCC unroll 8
    for (uint32_t j = 0; j < n; j++)
#pragma GCC unroll 4
        for (uint32_t i = 0; i < r; i++) _mm512_storeu_ps(o + j * dim + 16 * i, acc[j][i]);
}

INLINE void outputs_n(uint32_t n, const float *p, const void *v, bool wide, uint32_t dim, uint32_t t0, uint32_t t1,
                      const void *next, float *o) {
    size_t size = wide ? sizeof(float) : sizeof(uint16_t);
    uint32_t d = 0;
    for (; d + 64 <= dim; d += 64)
        outputs_nr(n, 4, p, (const char *)v + d * size, wide, dim, t0, t1, (const char *)next + (size_t)d * PAGE * 2,
                   o + d);
    for (; d < dim; d += 16) outputs_nr(n, 1, p, (const char *)v + d * size, wide, dim, t0, t1, NULL, o + d);
}

INLINE void outputs_block(uint32_t n_q, const float *p, const void *v, bool wide, uint32_t dim, uint32_t t0,
                          uint32_t t1, const void *next, float *o) {
    if (t0 >= t1) return;
    switch (n_q) {
    case 6: outputs_n(6, p, v, wide, dim, t0, t1, next, o); break;
    case 5: outputs_n(5, p, v, wide, dim, t0, t1, next, o); break;
    case 4: outputs_n(4, p, v, wide, dim, t0, t1, next, o); break;
    case 3: outputs_n(3, p, v, wide, dim, t0, t1, next, o); break;
    case 2: outputs_n(2, p, v, wide, dim, t0, t1, next, o); break;
    case 1: outputs_n(1, p, v, wide, dim, t0, t1, next, o); break;
    default: break;
    }
}

static __attribute__((noinline)) void outputs_halves(uint32_t n_q, const float *p, const uint16_t *v, uint32_t dim,
                                                     uint32_t t0, uint32_t t1, const uint16_t *next, float *o) {
    outputs_block(n_q, p, v, false, dim, t0, t1, next, o);
}

static __attribute__((noinline)) void outputs_wide(uint32_t n_q, const float *p, const float *v, uint32_t dim,
                                                   uint32_t t0, uint32_t t1, float *o) {
    outputs_block(n_q, p, v, true, dim, t0, t1, NULL, o);
}

INLINE void outputs_any(uint32_t n_q, const float *p, const void *v, bool wide, uint32_t dim, uint32_t t0, uint32_t t1,
                        const void *next, float *o) {
    if (wide)
        outputs_wide(n_q, p, v, dim, t0, t1, o);
    else
        outputs_halves(n_q, p, v, dim, t0, t1, next, o);
}

static void widen_page(const uint16_t *h, size_t n, float *f) {
    for (size_t i = 0; i < n; i += 16) _mm512_store_ps(f + i, widen(h + i));
}

INLINE void clear(float *f, size_t n) {
    for (size_t i = 0; i < n; i += 16) _mm512_storeu_ps(f + i, _mm512_setzero_ps());
}

/* ---- the split --------------------------------------------------------------------------------------------------- */

#include "compute/cpu/x86/attention_split.h"

static void merge_split(float *m, float *l, float *o, float m2, float l2, const float *o2, uint32_t v_dim) {
    if (!(l2 != 0)) return;
    float top = *m > m2 ? *m : m2;
    __m512 both = exp512(_mm512_setr_ps(*m - top, m2 - top, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0));
    float a = *l != 0 ? _mm512_cvtss_f32(both) : 0;
    float b = _mm_cvtss_f32(_mm_movehdup_ps(_mm512_castps512_ps128(both)));
    __m512 va = _mm512_set1_ps(a), vb = _mm512_set1_ps(b);
    for (uint32_t d = 0; d < v_dim; d += 16) {
        __m512 x = _mm512_mul_ps(_mm512_loadu_ps(o2 + d), vb);
        _mm512_storeu_ps(o + d, _mm512_fmadd_ps(_mm512_loadu_ps(o + d), va, x));
    }
    *l = *l * a + l2 * b;
    *m = top;
}

void realm_attention_kernels_init_avx512(realm_attention_kernels *k) {
    *k = (realm_attention_kernels){.attend_split = attend_split, .merge_split = merge_split};
}
