/* compute/cpu/x86/linear_avx512.c - matrix products for AVX-512 (F, BW, DQ, VL) without VNNI, float products, and the
 * quantiser; the product templates are linear_512.h. */
#include "compute/cpu/x86/linear_512.h"

ALL_COLS(FLOATS, f32, REALM_PACK_F32, 4, 3)
ALL_COLS(FLOATS, f16, REALM_PACK_F16, 4, 3)
ALL_COLS(FLOATS, bf16, REALM_PACK_BF16, 4, 3)

static int32_t sum_bytes(__m128i v) {                                                     /* 16 signed bytes */
    __m128i s = _mm_sad_epu8(_mm_xor_si128(v, _mm_set1_epi8(-128)), _mm_setzero_si128()); /* two sums of v + 128 */
    return _mm_cvtsi128_si32(s) + _mm_extract_epi32(s, 2) - 16 * 128;
}

static void quantize_column(const float *x, uint32_t k, void *tile, uint32_t col, uint32_t n_cols) {
    uint8_t *block = tile;
    for (uint32_t b = 0; b < k / 32; b++, x += 32, block += (size_t)REALM_LINEAR_COL_BYTES * n_cols) {
        __m512 x0 = _mm512_loadu_ps(x), x1 = _mm512_loadu_ps(x + 16);
        const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
        int32_t amax_bits =
            _mm512_reduce_max_epi32(_mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(x0), magnitude),
                                                     _mm512_and_si512(_mm512_castps_si512(x1), magnitude)));
        float amax, d = 0.0f, inv = 0.0f;
        __builtin_memcpy(&amax, &amax_bits, 4);
        if (!(amax < INFINITY)) {
            d = NAN;
        } else if (amax >= 0x1p-100f) {
            d = amax / 127.0f;
            inv = 127.0f / amax;
        }
        __m128i q0 = _mm_setzero_si128(), q1 = q0;
        if (inv > 0.0f) {
            __m512 scale = _mm512_set1_ps(inv);
            q0 = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(x0, scale)));
            q1 = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(x1, scale)));
        }
        uint8_t *q = block + (size_t)32 * col, *meta = block + (size_t)32 * n_cols + (size_t)4 * col;
        const size_t step = (size_t)4 * n_cols;
        _mm_storeu_si128((__m128i *)q, q0);
        _mm_storeu_si128((__m128i *)(q + 16), q1);
        int32_t sum0 = sum_bytes(q0), sum1 = sum_bytes(q1);
        int32_t neg[3] = {-(sum0 + sum1), -sum0, -sum1};
        float dsum = d * (float)(sum0 + sum1);
        __builtin_memcpy(meta, &d, 4);
        __builtin_memcpy(meta + step, &dsum, 4);
        for (unsigned i = 0; i < 3; i++) __builtin_memcpy(meta + (2 + i) * step, &neg[i], 4);
    }
}

static void store_row(float *y, const float *acc, const float *bias, uint32_t n, bool add) {
    for (uint32_t i = 0; i < n; i += 16) {
        __mmask16 m = n - i >= 16 ? 0xffff : (__mmask16)((1u << (n - i)) - 1);
        __m512 v = _mm512_maskz_loadu_ps(m, acc + i);
        if (bias) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(m, bias + i));
        if (add) v = _mm512_add_ps(_mm512_maskz_loadu_ps(m, y + i), v);
        _mm512_mask_storeu_ps(y + i, m, v);
    }
}

void realm_linear_kernels_init_avx512(realm_linear_kernels *k) {
    static const realm_linear_product products[REALM_PACK_KINDS][REALM_LINEAR_MAX_COLS] = {
        [REALM_PACK_F32] = ROW_OF(f32),   [REALM_PACK_F16] = ROW_OF(f16),   [REALM_PACK_BF16] = ROW_OF(bf16),
        [REALM_PACK_Q4_0] = ROW_OF(q4_0), [REALM_PACK_Q4_1] = ROW_OF(q4_1), [REALM_PACK_Q5_0] = ROW_OF(q5_0),
        [REALM_PACK_Q5_1] = ROW_OF(q5_1), [REALM_PACK_Q8_0] = ROW_OF(q8_0), [REALM_PACK_Q4_K] = ROW_OF(q4_k),
        [REALM_PACK_Q5_K] = ROW_OF(q5_k), [REALM_PACK_Q6_K] = ROW_OF(q6_k),
    };
    k->quantize_column = quantize_column;
    k->store_row = store_row;
    for (unsigned kind = 0; kind < REALM_PACK_KINDS; kind++)
        for (unsigned c = 0; c < REALM_LINEAR_MAX_COLS; c++) k->product[kind][c] = products[kind][c];
}
