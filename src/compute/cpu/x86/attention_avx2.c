/* compute/cpu/x86/attention_avx2.c - one split of attention in 256-bit registers.
 *
 * As attention_avx512.c in outline. With 16 registers a block is three queries by the four registers of a page's 32
 * tokens (scores) or of 32 values of the head (outputs); even and odd values of the head are two passes whose sums are
 * added at the end. Every page is widened to floats first where more than one block uses it.
 */
#include <immintrin.h>
#include <math.h>

#include "compute/cpu/kernels.h"

#define INLINE static inline __attribute__((always_inline))
#define PAGE REALM_KV_PAGE_TOKENS
#define SPLIT REALM_SPLIT_TOKENS
#define BLOCK 3u /* queries */

/* As in row_avx2.c; below exp(-87) zero. */
INLINE __m256 exp256(__m256 x) {
    __m256 live = _mm256_cmp_ps(x, _mm256_set1_ps(-87.0f), _CMP_NLT_UQ);
    x = _mm256_min_ps(_mm256_set1_ps(88.0f), _mm256_max_ps(_mm256_set1_ps(-87.0f), x));
    __m256 n =
        _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269502f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(6.931457520e-01f), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(1.428606765e-06f), r);
    __m256 p = _mm256_fmadd_ps(_mm256_set1_ps(1.392621314e-03f), r, _mm256_set1_ps(8.363203146e-03f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.166655615e-02f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.666657627e-01f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
    p = _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), _mm256_add_ps(r, _mm256_set1_ps(1.0f)));
    __m256i e = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    return _mm256_and_ps(_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), e)), live);
}

INLINE __m256 widen(const uint16_t *h) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)h)); }

/* 8 values at `at` of a page that is halves or, widened, floats. */
INLINE __m256 load8(const void *page, size_t at, bool wide) {
    return wide ? _mm256_load_ps((const float *)page + at) : widen((const uint16_t *)page + at);
}

INLINE void prefetch(const void *base, size_t byte) { _mm_prefetch((const char *)base + byte, _MM_HINT_T1); }

/* ---- scores ------------------------------------------------------------------------------------------------------ */

/* s[j][0..31] of one page for n queries. `v` (the page's V, as large as its K) is fetched meanwhile. */
INLINE void scores_n(uint32_t n, const float *q, uint32_t dim, const void *k, bool wide, float *s, const void *v) {
    for (uint32_t odd = 0; odd < 2; odd++) {
        __m256 acc[BLOCK][4];
#pragma GCC unroll 4
        for (uint32_t j = 0; j < n; j++) acc[j][0] = acc[j][1] = acc[j][2] = acc[j][3] = _mm256_setzero_ps();
        for (uint32_t d = odd; d < dim; d += 2) {
            size_t at = (size_t)d * PAGE;
            if (!wide) prefetch(v, at * 2);
            __m256 a[BLOCK];
#pragma GCC unroll 4
            for (uint32_t j = 0; j < n; j++) a[j] = _mm256_set1_ps(q[j * dim + d]);
#pragma GCC unroll 4
            for (uint32_t i = 0; i < 4; i++) {
                __m256 x = load8(k, at + 8 * i, wide);
#pragma GCC unroll 4
                for (uint32_t j = 0; j < n; j++) acc[j][i] = _mm256_fmadd_ps(a[j], x, acc[j][i]);
            }
        }
#pragma GCC unroll 4
        for (uint32_t j = 0; j < n; j++)
#pragma GCC unroll 4
            for (uint32_t i = 0; i < 4; i++) {
                float *dst = s + j * SPLIT + 8 * i;
                _mm256_store_ps(dst, !odd ? acc[j][i] : _mm256_add_ps(_mm256_load_ps(dst), acc[j][i]));
            }
    }
}

INLINE void scores_page(uint32_t n_q, const float *q, uint32_t dim, const void *k, bool wide, float *s, const void *v) {
    for (; n_q >= BLOCK; n_q -= BLOCK, q += BLOCK * dim, s += BLOCK * SPLIT) scores_n(BLOCK, q, dim, k, wide, s, v);
    if (n_q == 2) scores_n(2, q, dim, k, wide, s, v);
    if (n_q == 1) scores_n(1, q, dim, k, wide, s, v);
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

INLINE __m256 soften(__m256 s, float cap) {
    /* cap * tanh(x) = cap * (1 - 2 / (exp(2x) + 1)); beyond |x| = 20 it is cap itself */
    __m256 x = _mm256_div_ps(s, _mm256_set1_ps(cap));
    x = _mm256_min_ps(_mm256_set1_ps(20.0f), _mm256_max_ps(_mm256_set1_ps(-20.0f), x));
    __m256 e = _mm256_add_ps(exp256(_mm256_add_ps(x, x)), _mm256_set1_ps(1.0f));
    __m256 t = _mm256_sub_ps(_mm256_set1_ps(1.0f), _mm256_div_ps(_mm256_set1_ps(2.0f), e));
    return _mm256_mul_ps(t, _mm256_set1_ps(cap));
}

/* All ones in the lanes whose token is in [begin, end). */
INLINE __m256 lanes_between(uint32_t at, uint32_t begin, uint32_t end) {
    __m256i t = _mm256_add_epi32(_mm256_set1_epi32((int)at), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    __m256i from = _mm256_cmpgt_epi32(t, _mm256_set1_epi32((int)begin - 1));
    return _mm256_castsi256_ps(_mm256_and_si256(from, _mm256_cmpgt_epi32(_mm256_set1_epi32((int)end), t)));
}

INLINE __m128 halves_of(__m256 v, __m128 (*f)(__m128, __m128)) {
    __m128 x = f(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = f(x, _mm_movehl_ps(x, x));
    return f(x, _mm_movehdup_ps(x));
}
INLINE __m128 max128(__m128 a, __m128 b) { return _mm_max_ps(a, b); }
INLINE __m128 add128(__m128 a, __m128 b) { return _mm_add_ps(a, b); }

/* Scores of [begin, end) to exp(score - m) in place, zero in the lanes around it; begin < end. */
static void softmax(float *s, uint32_t begin, uint32_t end, float softcap, const float *mask, float *m, float *l) {
    const __m256 least = _mm256_set1_ps(-INFINITY);
    uint32_t first = begin & ~7u;
    __m256 top = least;
    for (uint32_t t = first; t < end; t += 8) {
        __m256 x = _mm256_load_ps(s + t);
        if (softcap > 0) x = soften(x, softcap);
        if (mask) x = _mm256_add_ps(x, _mm256_maskload_ps(mask + t, _mm256_castps_si256(lanes_between(t, begin, end))));
        x = _mm256_blendv_ps(least, x, lanes_between(t, begin, end));
        _mm256_store_ps(s + t, x);
        top = _mm256_max_ps(top, x);
    }
    *m = _mm_cvtss_f32(halves_of(top, max128));
    if (mask && *m == -INFINITY) { /* sees nothing */
        for (uint32_t t = first; t < end; t += 8) _mm256_store_ps(s + t, _mm256_setzero_ps());
        *l = 0;
        return;
    }
    __m256 sub = _mm256_set1_ps(*m), sum = _mm256_setzero_ps();
    for (uint32_t t = first; t < end; t += 8) {
        __m256 p = exp256(_mm256_sub_ps(_mm256_load_ps(s + t), sub));
        _mm256_store_ps(s + t, p);
        sum = _mm256_add_ps(sum, p);
    }
    *l = _mm_cvtss_f32(halves_of(sum, add128));
}

/* ---- outputs ----------------------------------------------------------------------------------------------------- */

/* o[j][0 .. 8 r) += sum over t in [t0, t1) of p[j][t] V[t]; v points at the first of the values. With r = 4, a cache
 * line per token of what comes `next` is fetched meanwhile: V and K have the same size. */
INLINE void outputs_nr(uint32_t n, uint32_t r, const float *p, const void *v, bool wide, uint32_t dim, uint32_t t0,
                       uint32_t t1, const void *next, float *o) {
    __m256 acc[BLOCK][4];
#pragma GCC unroll 4
    for (uint32_t j = 0; j < n; j++)
#pragma GCC unroll 4
        for (uint32_t i = 0; i < r; i++) acc[j][i] = _mm256_loadu_ps(o + j * dim + 8 * i);
    for (uint32_t t = t0; t < t1; t++) {
        __m256 a[BLOCK];
        if (!wide && r == 4) prefetch(next, (size_t)t * 64);
#pragma GCC unroll 4
        for (uint32_t j = 0; j < n; j++) a[j] = _mm256_set1_ps(p[j * SPLIT + t]);
#pragma GCC unroll 4
        for (uint32_t i = 0; i < r; i++) {
            __m256 x = load8(v, (size_t)t * dim + 8 * i, wide);
#pragma GCC unroll 4
            for (uint32_t j = 0; j < n; j++) acc[j][i] = _mm256_fmadd_ps(a[j], x, acc[j][i]);
        }
    }
#pragma GCC unroll 4
    for (uint32_t j = 0; j < n; j++)
#pragma GCC unroll 4
        for (uint32_t i = 0; i < r; i++) _mm256_storeu_ps(o + j * dim + 8 * i, acc[j][i]);
}

INLINE void outputs_n(uint32_t n, const float *p, const void *v, bool wide, uint32_t dim, uint32_t t0, uint32_t t1,
                      const void *next, float *o) {
    size_t size = wide ? sizeof(float) : sizeof(uint16_t);
    uint32_t d = 0;
    for (; d + 32 <= dim; d += 32)
        outputs_nr(n, 4, p, (const char *)v + d * size, wide, dim, t0, t1, (const char *)next + (size_t)d * PAGE * 2,
                   o + d);
    for (; d < dim; d += 16) outputs_nr(n, 2, p, (const char *)v + d * size, wide, dim, t0, t1, NULL, o + d);
}

INLINE void outputs_block(uint32_t n_q, const float *p, const void *v, bool wide, uint32_t dim, uint32_t t0,
                          uint32_t t1, const void *next, float *o) {
    if (t0 >= t1) return;
    if (n_q == 3)
        outputs_n(3, p, v, wide, dim, t0, t1, next, o);
    else if (n_q == 2)
        outputs_n(2, p, v, wide, dim, t0, t1, next, o);
    else
        outputs_n(1, p, v, wide, dim, t0, t1, next, o);
}

static __attribute__((noinline)) void outputs_any(uint32_t n_q, const float *p, const void *v, bool wide, uint32_t dim,
                                                  uint32_t t0, uint32_t t1, const void *next, float *o) {
    if (wide)
        outputs_block(n_q, p, v, true, dim, t0, t1, NULL, o);
    else
        outputs_block(n_q, p, v, false, dim, t0, t1, next, o);
}

static void widen_page(const uint16_t *h, size_t n, float *f) {
    for (size_t i = 0; i < n; i += 8) _mm256_store_ps(f + i, widen(h + i));
}

INLINE void clear(float *f, size_t n) {
    for (size_t i = 0; i < n; i += 8) _mm256_storeu_ps(f + i, _mm256_setzero_ps());
}

/* ---- the split --------------------------------------------------------------------------------------------------- */

#include "compute/cpu/x86/attention_split.h"

static void merge_split(float *m, float *l, float *o, float m2, float l2, const float *o2, uint32_t v_dim) {
    if (!(l2 != 0)) return;
    float top = *m > m2 ? *m : m2;
    __m256 both = exp256(_mm256_setr_ps(*m - top, m2 - top, 0, 0, 0, 0, 0, 0));
    float a = *l != 0 ? _mm256_cvtss_f32(both) : 0;
    float b = _mm_cvtss_f32(_mm_movehdup_ps(_mm256_castps256_ps128(both)));
    __m256 va = _mm256_set1_ps(a), vb = _mm256_set1_ps(b);
    for (uint32_t d = 0; d < v_dim; d += 8) {
        __m256 x = _mm256_mul_ps(_mm256_loadu_ps(o2 + d), vb);
        _mm256_storeu_ps(o + d, _mm256_fmadd_ps(_mm256_loadu_ps(o + d), va, x));
    }
    *l = *l * a + l2 * b;
    *m = top;
}

void realm_attention_kernels_init_avx2(realm_attention_kernels *k) {
    *k = (realm_attention_kernels){.attend_split = attend_split, .merge_split = merge_split};
}
