/* compute/cpu/x86/row_avx512.c - row kernels in 512-bit registers.
 *
 * What the table promises to be the same at every level is computed with separate products and sums, 16 lanes wide,
 * which is the lane order of the definition. exp and the activations use fused multiply-add.
 */
#include <immintrin.h>
#include <math.h>

#include "compute/cpu/kernels.h"

static inline __mmask16 tail_mask(size_t n) { return (__mmask16)((1u << n) - 1u); } /* n < 16 */

/* Lane j += lane j + 8, then 4, 2, 1: the order of the definition. */
static inline float fold(__m512 v) {
    __m256 a = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}

static inline float inverse_rms(const float *x, float eps, size_t k) {
    __m512 sum = _mm512_setzero_ps();
    size_t i = 0;
    for (; i + 16 <= k; i += 16) {
        __m512 v = _mm512_loadu_ps(x + i);
        sum = _mm512_add_ps(sum, _mm512_mul_ps(v, v));
    }
    if (i < k) {
        __m512 v = _mm512_maskz_loadu_ps(tail_mask(k - i), x + i);
        sum = _mm512_add_ps(sum, _mm512_mul_ps(v, v));
    }
    return 1.0f / sqrtf(fold(sum) / (float)k + eps);
}

static void rms_norm_row(const float *x, const float *gain, float eps, float *y, size_t k) {
    __m512 inv = _mm512_set1_ps(inverse_rms(x, eps, k));
    for (size_t i = 0; i < k; i += 16) {
        __mmask16 m = k - i >= 16 ? 0xffff : tail_mask(k - i);
        __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(m, x + i), inv);
        if (gain) v = _mm512_mul_ps(v, _mm512_maskz_loadu_ps(m, gain + i));
        _mm512_mask_storeu_ps(y + i, m, v);
    }
}

static void norm_add_row(const float *x, const float *gain, float eps, float *y, size_t k) {
    __m512 inv = _mm512_set1_ps(inverse_rms(x, eps, k));
    for (size_t i = 0; i < k; i += 16) {
        __mmask16 m = k - i >= 16 ? 0xffff : tail_mask(k - i);
        __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(m, x + i), inv);
        v = _mm512_mul_ps(v, _mm512_maskz_loadu_ps(m, gain + i));
        _mm512_mask_storeu_ps(y + i, m, _mm512_add_ps(_mm512_maskz_loadu_ps(m, y + i), v));
    }
}

static void scale_row(float *y, float s, size_t n) {
    __m512 f = _mm512_set1_ps(s);
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 m = n - i >= 16 ? 0xffff : tail_mask(n - i);
        _mm512_mask_storeu_ps(y + i, m, _mm512_mul_ps(_mm512_maskz_loadu_ps(m, y + i), f));
    }
}

static void add_row(float *y, const float *x, size_t n) {
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 m = n - i >= 16 ? 0xffff : tail_mask(n - i);
        _mm512_mask_storeu_ps(y + i, m,
                              _mm512_add_ps(_mm512_maskz_loadu_ps(m, y + i), _mm512_maskz_loadu_ps(m, x + i)));
    }
}

/* exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln(2) / 2; exp(r) = 1 + r + r^2 P(r) with P of degree 4 through the
 * Chebyshev nodes of that interval (relative error 1.1e-8). Overflows to infinity, underflows to zero, keeps NaN. */
static inline __m512 exp512(__m512 x) {
    x = _mm512_min_ps(_mm512_set1_ps(100.0f), _mm512_max_ps(_mm512_set1_ps(-110.0f), x));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269502f)),
                                    _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(6.931457520e-01f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(1.428606765e-06f), r);
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(1.392621314e-03f), r, _mm512_set1_ps(8.363203146e-03f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.166655615e-02f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.666657627e-01f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, n);
}

static inline __m512 act512(realm_act act, __m512 x) {
    __m512 u = x;
    if (act == REALM_ACT_GELU_TANH) {
        __m512 c = _mm512_fmadd_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(0.044715f), _mm512_set1_ps(1.0f));
        u = _mm512_mul_ps(_mm512_mul_ps(x, c), _mm512_set1_ps(2 * 0.79788456080286535588f));
    }
    __m512 e = exp512(_mm512_sub_ps(_mm512_setzero_ps(), u));
    return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0f), e));
}

static void act_mul(realm_act act, float *gate, const float *up, size_t n) {
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 m = n - i >= 16 ? 0xffff : tail_mask(n - i);
        __m512 v = act512(act, _mm512_maskz_loadu_ps(m, gate + i));
        _mm512_mask_storeu_ps(gate + i, m, _mm512_mul_ps(v, _mm512_maskz_loadu_ps(m, up + i)));
    }
}

static void rope_halves(float *x, const float *cs, uint32_t pairs) {
    for (uint32_t i = 0; i < pairs; i += 16) {
        __mmask16 m = pairs - i >= 16 ? 0xffff : tail_mask(pairs - i);
        __m512 a = _mm512_maskz_loadu_ps(m, x + i), b = _mm512_maskz_loadu_ps(m, x + pairs + i);
        __m512 c = _mm512_maskz_loadu_ps(m, cs + i), s = _mm512_maskz_loadu_ps(m, cs + pairs + i);
        _mm512_mask_storeu_ps(x + i, m, _mm512_sub_ps(_mm512_mul_ps(a, c), _mm512_mul_ps(b, s)));
        _mm512_mask_storeu_ps(x + pairs + i, m, _mm512_add_ps(_mm512_mul_ps(a, s), _mm512_mul_ps(b, c)));
    }
}

/* Eight pairs at a time: (a0 b0 a1 b1 ...) times (c0 c0 c1 c1 ...), minus and plus the swapped pairs times sines. */
static void rope_pairs(float *x, const float *cs, uint32_t pairs) {
    const __m512i twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    for (uint32_t i = 0; i < pairs; i += 8) {
        uint32_t n = pairs - i >= 8 ? 8 : pairs - i;
        __mmask16 m = n == 8 ? 0xffff : tail_mask(2 * n), half = tail_mask(n);
        __m512 v = _mm512_maskz_loadu_ps(m, x + 2 * i);
        __m512 c = _mm512_permutexvar_ps(twice, _mm512_maskz_loadu_ps(half, cs + i));
        __m512 s = _mm512_permutexvar_ps(twice, _mm512_maskz_loadu_ps(half, cs + pairs + i));
        __m512 straight = _mm512_mul_ps(v, c), crossed = _mm512_mul_ps(_mm512_permute_ps(v, 0xb1), s);
        __m512 y = _mm512_mask_sub_ps(_mm512_add_ps(straight, crossed), 0x5555, straight, crossed);
        _mm512_mask_storeu_ps(x + 2 * i, m, y);
    }
}

static void rope_row(realm_rope_style style, float *x, const float *cs, uint32_t dims) {
    if (style == REALM_ROPE_PAIRS)
        rope_pairs(x, cs, dims / 2);
    else
        rope_halves(x, cs, dims / 2);
}

static void store_half(const float *src, uint16_t *dst, size_t n, size_t stride) {
    uint16_t lane[16];
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 m = n - i >= 16 ? 0xffff : tail_mask(n - i);
        __m256i h = _mm512_cvtps_ph(_mm512_maskz_loadu_ps(m, src + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        if (stride == 1) {
            _mm256_mask_storeu_epi16(dst + i, m, h);
            continue;
        }
        _mm256_storeu_si256((__m256i *)(void *)lane, h);
        for (size_t j = 0; j < 16 && i + j < n; j++) dst[(i + j) * stride] = lane[j];
    }
}

void realm_row_kernels_init_avx512(realm_row_kernels *k) {
    *k = (realm_row_kernels){.rms_norm_row = rms_norm_row,
                             .norm_add_row = norm_add_row,
                             .scale_row = scale_row,
                             .add_row = add_row,
                             .act_mul = act_mul,
                             .rope_row = rope_row,
                             .store_half = store_half};
}
