/* compute/cpu/x86/row_avx2.c - row kernels in 256-bit registers.
 *
 * What the table promises to be the same at every level is computed with separate products and sums; the 16 lanes of a
 * sum are two registers. Ends of rows that fill no register go through plain C with the same roundings.
 */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "compute/cpu/kernels.h"

/* Lane j += lane j + 8, then 4, 2, 1: the order of the definition. `low` holds lanes 0 to 7. */
static inline float fold(__m256 low, __m256 high) {
    __m256 a = _mm256_add_ps(low, high);
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}

static inline float inverse_rms(const float *x, float eps, size_t k) {
    __m256 low = _mm256_setzero_ps(), high = low;
    size_t i = 0;
    for (; i + 16 <= k; i += 16) {
        __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + i + 8);
        low = _mm256_add_ps(low, _mm256_mul_ps(a, a));
        high = _mm256_add_ps(high, _mm256_mul_ps(b, b));
    }
    if (i < k) {
        float end[16] = {0};
        memcpy(end, x + i, (k - i) * sizeof *x);
        __m256 a = _mm256_loadu_ps(end), b = _mm256_loadu_ps(end + 8);
        low = _mm256_add_ps(low, _mm256_mul_ps(a, a));
        high = _mm256_add_ps(high, _mm256_mul_ps(b, b));
    }
    return 1.0f / sqrtf(fold(low, high) / (float)k + eps);
}

static void rms_norm_row(const float *x, const float *gain, float eps, float *y, size_t k) {
    float inv = inverse_rms(x, eps, k);
    __m256 vinv = _mm256_set1_ps(inv);
    size_t i = 0;
    for (; i + 8 <= k; i += 8) {
        __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x + i), vinv);
        if (gain) v = _mm256_mul_ps(v, _mm256_loadu_ps(gain + i));
        _mm256_storeu_ps(y + i, v);
    }
    for (; i < k; i++) y[i] = gain ? x[i] * inv * gain[i] : x[i] * inv;
}

static void norm_add_row(const float *x, const float *gain, float eps, float *y, size_t k) {
    float inv = inverse_rms(x, eps, k);
    __m256 vinv = _mm256_set1_ps(inv);
    size_t i = 0;
    for (; i + 8 <= k; i += 8) {
        __m256 v = _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(x + i), vinv), _mm256_loadu_ps(gain + i));
        _mm256_storeu_ps(y + i, _mm256_add_ps(_mm256_loadu_ps(y + i), v));
    }
    for (; i < k; i++) y[i] += x[i] * inv * gain[i];
}

static void scale_row(float *y, float s, size_t n) {
    __m256 f = _mm256_set1_ps(s);
    size_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(y + i, _mm256_mul_ps(_mm256_loadu_ps(y + i), f));
    for (; i < n; i++) y[i] *= s;
}

static void add_row(float *y, const float *x, size_t n) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(y + i, _mm256_add_ps(_mm256_loadu_ps(y + i), _mm256_loadu_ps(x + i)));
    for (; i < n; i++) y[i] += x[i];
}

/* exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln(2) / 2; exp(r) = 1 + r + r^2 P(r) with P of degree 4 through the
 * Chebyshev nodes of that interval (relative error 1.1e-8). For the divisor of an activation: the ends are cut to the
 * range of normal numbers; keeps NaN. */
static inline __m256 exp256(__m256 x) {
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
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), e));
}

static inline __m256 act256(realm_act act, __m256 x) {
    __m256 u = x;
    if (act == REALM_ACT_GELU_TANH) {
        __m256 c = _mm256_fmadd_ps(_mm256_mul_ps(x, x), _mm256_set1_ps(0.044715f), _mm256_set1_ps(1.0f));
        u = _mm256_mul_ps(_mm256_mul_ps(x, c), _mm256_set1_ps(2 * 0.79788456080286535588f));
    }
    __m256 e = exp256(_mm256_sub_ps(_mm256_setzero_ps(), u));
    return _mm256_div_ps(x, _mm256_add_ps(_mm256_set1_ps(1.0f), e));
}

static void act_mul(realm_act act, float *gate, const float *up, size_t n) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(gate + i, _mm256_mul_ps(act256(act, _mm256_loadu_ps(gate + i)), _mm256_loadu_ps(up + i)));
    if (i < n) {
        float g[8] = {0}, u[8] = {0};
        memcpy(g, gate + i, (n - i) * sizeof *g);
        memcpy(u, up + i, (n - i) * sizeof *u);
        _mm256_storeu_ps(g, _mm256_mul_ps(act256(act, _mm256_loadu_ps(g)), _mm256_loadu_ps(u)));
        memcpy(gate + i, g, (n - i) * sizeof *g);
    }
}

static void rope_halves(float *x, const float *cs, uint32_t pairs) {
    uint32_t i = 0;
    for (; i + 8 <= pairs; i += 8) {
        __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + pairs + i);
        __m256 c = _mm256_loadu_ps(cs + i), s = _mm256_loadu_ps(cs + pairs + i);
        _mm256_storeu_ps(x + i, _mm256_sub_ps(_mm256_mul_ps(a, c), _mm256_mul_ps(b, s)));
        _mm256_storeu_ps(x + pairs + i, _mm256_add_ps(_mm256_mul_ps(a, s), _mm256_mul_ps(b, c)));
    }
    for (; i < pairs; i++) {
        float a = x[i], b = x[pairs + i], c = cs[i], s = cs[pairs + i];
        x[i] = a * c - b * s;
        x[pairs + i] = a * s + b * c;
    }
}

/* Four pairs at a time: (a0 b0 a1 b1 ...) times (c0 c0 c1 c1 ...), minus and plus the swapped pairs times sines. */
static void rope_pairs(float *x, const float *cs, uint32_t pairs) {
    const __m256i twice = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
    uint32_t i = 0;
    for (; i + 4 <= pairs; i += 4) {
        __m256 v = _mm256_loadu_ps(x + 2 * i);
        __m256 c = _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(cs + i)), twice);
        __m256 s = _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(cs + pairs + i)), twice);
        __m256 straight = _mm256_mul_ps(v, c), crossed = _mm256_mul_ps(_mm256_permute_ps(v, 0xb1), s);
        _mm256_storeu_ps(x + 2 * i, _mm256_addsub_ps(straight, crossed));
    }
    for (; i < pairs; i++) {
        float a = x[2 * i], b = x[2 * i + 1], c = cs[i], s = cs[pairs + i];
        x[2 * i] = a * c - b * s;
        x[2 * i + 1] = a * s + b * c;
    }
}

static void rope_row(realm_rope_style style, float *x, const float *cs, uint32_t dims) {
    if (style == REALM_ROPE_PAIRS)
        rope_pairs(x, cs, dims / 2);
    else
        rope_halves(x, cs, dims / 2);
}

static void store_half(const float *src, uint16_t *dst, size_t n, size_t stride) {
    uint16_t lane[8];
    for (size_t i = 0; i < n; i += 8) {
        size_t m = n - i < 8 ? n - i : 8;
        __m256 v;
        if (m == 8) {
            v = _mm256_loadu_ps(src + i);
        } else {
            float end[8] = {0};
            memcpy(end, src + i, m * sizeof *end);
            v = _mm256_loadu_ps(end);
        }
        __m128i h = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        if (stride == 1 && m == 8) {
            _mm_storeu_si128((__m128i *)(void *)(dst + i), h);
            continue;
        }
        _mm_storeu_si128((__m128i *)(void *)lane, h);
        for (size_t j = 0; j < m; j++) dst[(i + j) * stride] = lane[j];
    }
}

void realm_row_kernels_init_avx2(realm_row_kernels *k) {
    *k = (realm_row_kernels){.rms_norm_row = rms_norm_row,
                             .norm_add_row = norm_add_row,
                             .scale_row = scale_row,
                             .add_row = add_row,
                             .act_mul = act_mul,
                             .rope_row = rope_row,
                             .store_half = store_half};
}
