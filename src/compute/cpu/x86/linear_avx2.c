/* compute/cpu/x86/linear_avx2.c - matrix products on 256-bit vectors (AVX2, FMA, F16C).
 *
 * A vector holds 8 of a panel's 16 rows: a *half*. With 16 registers at most 4 columns are multiplied at once, so a
 * tile of 5 to 8 columns is two passes over a panel that the first has brought into the cache. `kind`, C (columns of
 * the tile), N (columns of this pass) and H (halves side by side) are constants of each instance.
 *
 * Bytes are summed in pairs into 16 bits, as many as cannot overflow (15 * 127 * 2 = 3,810 eight times, 31 * 127 * 2 =
 * 7,874 four times, 63 * 127 * 2 = 16,002 twice), and those then into 32. Values of Q8_0 are taken as
 * |w| * (sign of w * q): 128 * 127 * 2 once.
 */
#include <math.h>

#include "compute/cpu/linear_kernels.h"
#include "compute/cpu/x86/panel.h"

#define PASS_COLS 4u
#define FIRST_PASS(C) ((C) <= PASS_COLS ? (C) : ((C) + 1) / 2) /* two passes of nearly equal width */
/* log2 of the offset; 0 means none, as for Q8_0, whose values are taken with their sign */
#define OFFSET_SHIFT(kind) \
    ((kind) == REALM_PACK_Q4_0 ? 3 : (kind) == REALM_PACK_Q5_0 ? 4 : (kind) == REALM_PACK_Q6_K ? 5 : 0)

/* ---- weights ---------------------------------------------------------------------------------------------------- */

INLINE __m256i load(const uint8_t *p) { return _mm256_load_si256((const __m256i *)p); }
INLINE __m256i shift_left(__m256i v, int n) {
    return n > 0 ? _mm256_slli_epi16(v, n) : n < 0 ? _mm256_srli_epi16(v, -n) : v;
}

/* Codes (Q8_0: values) of 4 inputs of a block for the 8 rows of the half that `q` is moved to: inputs 4 * step .. */
INLINE __m256i unpack(realm_pack_kind kind, const uint8_t *q, unsigned step) {
    if (kind == REALM_PACK_Q8_0) return _mm256_xor_si256(load(q + 64 * step), _mm256_set1_epi8(-128));
    unsigned i = step % 4, high = step / 4;
    __m256i v = _mm256_and_si256(shift_left(load(q + 64 * i), high ? -4 : 0), _mm256_set1_epi8(15));
    if (HAS_FIFTH(kind)) {
        __m256i plane = shift_left(load(q + 256), 4 - (int)step);
        v = _mm256_or_si256(v, _mm256_and_si256(plane, _mm256_set1_epi8(16)));
    }
    if (kind == REALM_PACK_Q6_K) {
        __m256i plane = shift_left(load(q + 256 + 64 * high), 4 - 2 * (int)i);
        v = _mm256_or_si256(v, _mm256_and_si256(plane, _mm256_set1_epi8(48)));
    }
    return v;
}

INLINE __m256 load_halves(const uint8_t *p) { return _mm256_cvtph_ps(_mm_load_si128((const __m128i *)p)); }
INLINE __m256 load_bytes_unsigned(const uint8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
INLINE __m256 load_bytes_signed(const uint8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
INLINE __m256i broadcast_i32(const uint8_t *p) {
    int32_t v;
    __builtin_memcpy(&v, p, 4);
    return _mm256_set1_epi32(v);
}
INLINE __m256 broadcast_f32(const uint8_t *p) {
    float v;
    __builtin_memcpy(&v, p, 4);
    return _mm256_set1_ps(v);
}

/* ---- quantised kinds -------------------------------------------------------------------------------------------- */

INLINE __m256i widen(__m256i pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }
INLINE __m256i signed_products(__m256i w, __m256i a) {
    return widen(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w)));
}

/* Sums of codes times activations over the steps [first, last) of a block, two at a time; columns are 32 bytes apart.
 */
INLINE void step_sums(realm_pack_kind kind, unsigned first, unsigned last, const unsigned N, const uint8_t *q,
                      const uint8_t *a, __m256i *sums) {
    const unsigned flush = kind == REALM_PACK_Q6_K ? 2 : HAS_FIFTH(kind) ? 4 : 8; /* steps that fit 16 bits */
    __m256i s16[PASS_COLS];
    UNROLL for (unsigned step = first; step < last; step += 2) {
        __m256i w0 = unpack(kind, q, step), w1 = unpack(kind, q, step + 1);
        UNROLL for (unsigned c = 0; c < N; c++) {
            __m256i a0 = broadcast_i32(a + 32 * c + 4 * step), a1 = broadcast_i32(a + 32 * c + 4 * step + 4);
            if (kind == REALM_PACK_Q8_0) {
                __m256i s = _mm256_add_epi32(signed_products(w0, a0), signed_products(w1, a1));
                sums[c] = step == first ? s : _mm256_add_epi32(sums[c], s);
                continue;
            }
            __m256i s = _mm256_add_epi16(_mm256_maddubs_epi16(w0, a0), _mm256_maddubs_epi16(w1, a1));
            s16[c] = (step - first) % flush == 0 ? s : _mm256_add_epi16(s16[c], s);
            if ((step - first + 2) % flush == 0)
                sums[c] = step + 2 - first <= flush ? widen(s16[c]) : _mm256_add_epi32(sums[c], widen(s16[c]));
        }
    }
}

INLINE __m256i with_offset(realm_pack_kind kind, __m256i sum, const uint8_t *neg) {
    if (OFFSET_SHIFT(kind) == 0) return sum;
    return _mm256_add_epi32(sum, _mm256_slli_epi32(broadcast_i32(neg), OFFSET_SHIFT(kind)));
}

INLINE void block_half(realm_pack_kind kind, const unsigned C, const unsigned first_col, const unsigned N,
                       const uint8_t *q, const uint8_t *scales, const uint8_t *super, unsigned half,
                       const uint8_t *tile, __m256 *f) {
    const uint8_t *a = tile + 32 * first_col, *d = tile + 32 * C + 4 * first_col;
    const uint8_t *dsum = d + 4 * C, *neg = d + 8 * C;
    const unsigned lane = 8 * half;
    __m256i s[PASS_COLS];
    __m256 sums[PASS_COLS];
    if (kind == REALM_PACK_Q6_K) { /* below 2^24 throughout: exact in floats */
        __m256 s0 = load_bytes_signed(scales + lane), s1 = load_bytes_signed(scales + 16 + lane);
        step_sums(kind, 0, 4, N, q, a, s);
        UNROLL for (unsigned c = 0; c < N; c++) sums[c] =
            _mm256_mul_ps(_mm256_cvtepi32_ps(with_offset(kind, s[c], neg + 4 * (C + c))), s0);
        step_sums(kind, 4, 8, N, q, a, s);
        UNROLL for (unsigned c = 0; c < N; c++) sums[c] =
            _mm256_fmadd_ps(_mm256_cvtepi32_ps(with_offset(kind, s[c], neg + 4 * (2 * C + c))), s1, sums[c]);
    } else {
        step_sums(kind, 0, 8, N, q, a, s);
        UNROLL for (unsigned c = 0; c < N; c++) sums[c] = _mm256_cvtepi32_ps(with_offset(kind, s[c], neg + 4 * c));
    }
    __m256 dw, mw = _mm256_setzero_ps();
    if (IS_K(kind)) {
        dw = load_halves(super + 2 * lane);
        if (HAS_MIN(kind)) {
            dw = _mm256_mul_ps(dw, load_bytes_unsigned(scales + lane));
            mw = _mm256_mul_ps(load_halves(super + 32 + 2 * lane), load_bytes_unsigned(scales + 16 + lane));
        }
    } else {
        dw = load_halves(scales + 2 * lane);
        if (HAS_MIN(kind)) mw = load_halves(scales + 32 + 2 * lane);
    }
    UNROLL for (unsigned c = 0; c < N; c++) {
        f[c] = _mm256_fmadd_ps(sums[c], _mm256_mul_ps(dw, broadcast_f32(d + 4 * c)), f[c]);
        if (HAS_MIN(kind) && IS_K(kind)) f[c] = _mm256_fnmadd_ps(mw, broadcast_f32(dsum + 4 * c), f[c]);
        if (HAS_MIN(kind) && !IS_K(kind)) f[c] = _mm256_fmadd_ps(mw, broadcast_f32(dsum + 4 * c), f[c]);
    }
}

/* H halves of a panel from `half` on, columns [first_col, first_col + N). */
INLINE void pass_quantized(realm_pack_kind kind, const unsigned C, const unsigned first_col, const unsigned N,
                           const unsigned H, unsigned half, const uint8_t *panel, size_t panel_bytes, uint32_t n_blocks,
                           const uint8_t *tile, bool once, float *out, size_t out_stride) {
    const uint8_t *super = panel, *scales = panel + SCALES_AT(kind), *q = panel + QUANTS_AT(kind);
    __m256 f[2][PASS_COLS];
    UNROLL for (unsigned h = 0; h < H; h++) UNROLL for (unsigned c = 0; c < N; c++) f[h][c] = _mm256_setzero_ps();
    const bool first_pass = first_col == 0 && half == 0;
    once = once && C == 1; /* else the panel is gone through again */
    const uint8_t *ahead = panel + (once ? AHEAD : panel_bytes);
    for (uint32_t b = 0; b < n_blocks; b++) {
        if (first_pass) ahead = prefetch_block(kind, 1, panel_bytes, b, ahead, once);
        UNROLL for (unsigned h = 0; h < H; h++)
            block_half(kind, C, first_col, N, q + 32 * (half + h), scales, super, half + h, tile, f[h]);
        q += QUANT_BYTES(kind);
        scales += SCALE_BYTES(kind);
        if (b % GROUP(kind) == GROUP(kind) - 1) {
            q += GAP(kind, QUANT_BYTES(kind));
            scales += GAP(kind, SCALE_BYTES(kind));
            super += GROUP_BYTES(kind);
        }
        tile += (size_t)REALM_LINEAR_COL_BYTES * C;
    }
    UNROLL for (unsigned h = 0; h < H; h++) UNROLL for (unsigned c = 0; c < N; c++)
        _mm256_storeu_ps(out + (first_col + c) * out_stride + 8 * (half + h), f[h][c]);
}

INLINE void panel_quantized(realm_pack_kind kind, const unsigned C, const uint8_t *panel, size_t panel_bytes,
                            uint32_t n_blocks, const uint8_t *tile, bool once, float *out, size_t out_stride) {
    if (C == 1) { /* all rows in one pass: memory is read once, in order */
        pass_quantized(kind, C, 0, C, 2, 0, panel, panel_bytes, n_blocks, tile, once, out, out_stride);
        return;
    }
    UNROLL for (unsigned c = 0; c < C; c += FIRST_PASS(C)) {
        const unsigned N = C - c < FIRST_PASS(C) ? C - c : FIRST_PASS(C);
        for (unsigned half = 0; half < 2; half++)
            pass_quantized(kind, C, c, N, 1, half, panel, panel_bytes, n_blocks, tile, once, out, out_stride);
    }
}

#define QUANTIZED(name, kind, C)                                                                                       \
    static void name##_##C(const uint8_t *panels, size_t panel_bytes, uint32_t n_panels, uint32_t k, const void *tile, \
                           uint32_t n_cols, bool once, float *out, size_t out_stride) {                                \
        (void)n_cols;                                                                                                  \
        for (; n_panels; n_panels--, panels += panel_bytes, out += PANEL_ROWS)                                         \
            panel_quantized(kind, C, panels, panel_bytes, k / 32, tile, once, out, out_stride);                        \
    }

/* ---- float kinds ------------------------------------------------------------------------------------------------ */

INLINE __m256 load_weights(realm_pack_kind kind, const uint8_t *panel, size_t at) {
    if (kind == REALM_PACK_F32) return _mm256_load_ps((const float *)panel + at);
    __m128i v = _mm_load_si128((const __m128i *)(panel + 2 * at));
    if (kind == REALM_PACK_F16) return _mm256_cvtph_ps(v);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
}

INLINE void panel_float(realm_pack_kind kind, const unsigned C, const uint8_t *panel, size_t panel_bytes, uint32_t k,
                        const float *x, float *out, size_t out_stride) {
    UNROLL for (unsigned c0 = 0; c0 < C; c0 += FIRST_PASS(C)) {
        const unsigned N = C - c0 < FIRST_PASS(C) ? C - c0 : FIRST_PASS(C);
        __m256 f[2][PASS_COLS];
        UNROLL for (unsigned h = 0; h < 2; h++) UNROLL for (unsigned c = 0; c < N; c++) f[h][c] = _mm256_setzero_ps();
        for (uint32_t i = 0; i < k; i++) {
            __m256 w0 = load_weights(kind, panel, (size_t)i * PANEL_ROWS);
            __m256 w1 = load_weights(kind, panel, (size_t)i * PANEL_ROWS + 8);
            if (c0 == 0 && (kind == REALM_PACK_F32 || i % 2 == 0))
                prefetch(panel + panel_bytes + (size_t)i * PANEL_ROWS * (kind == REALM_PACK_F32 ? 4 : 2), 64, false);
            UNROLL for (unsigned c = 0; c < N; c++) {
                __m256 a = _mm256_set1_ps(x[(size_t)i * C + c0 + c]);
                f[0][c] = _mm256_fmadd_ps(w0, a, f[0][c]);
                f[1][c] = _mm256_fmadd_ps(w1, a, f[1][c]);
            }
        }
        UNROLL for (unsigned h = 0; h < 2; h++) UNROLL for (unsigned c = 0; c < N; c++)
            _mm256_storeu_ps(out + (c0 + c) * out_stride + (size_t)8 * h, f[h][c]);
    }
}

#define FLOATS(name, kind, C)                                                                                          \
    static void name##_##C(const uint8_t *panels, size_t panel_bytes, uint32_t n_panels, uint32_t k, const void *tile, \
                           uint32_t n_cols, bool once, float *out, size_t out_stride) {                                \
        (void)n_cols, (void)once;                                                                                      \
        for (; n_panels; n_panels--, panels += panel_bytes, out += PANEL_ROWS)                                         \
            panel_float(kind, C, panels, panel_bytes, k, tile, out, out_stride);                                       \
    }

#define ALL_COLS(M, name, kind) \
    M(name, kind, 1)            \
    M(name, kind, 2)            \
    M(name, kind, 3) M(name, kind, 4) M(name, kind, 5) M(name, kind, 6) M(name, kind, 7) M(name, kind, 8)
#define ROW_OF(name) {name##_1, name##_2, name##_3, name##_4, name##_5, name##_6, name##_7, name##_8}

ALL_COLS(FLOATS, f32, REALM_PACK_F32)
ALL_COLS(FLOATS, f16, REALM_PACK_F16)
ALL_COLS(FLOATS, bf16, REALM_PACK_BF16)
ALL_COLS(QUANTIZED, q4_0, REALM_PACK_Q4_0)
ALL_COLS(QUANTIZED, q4_1, REALM_PACK_Q4_1)
ALL_COLS(QUANTIZED, q5_0, REALM_PACK_Q5_0)
ALL_COLS(QUANTIZED, q5_1, REALM_PACK_Q5_1)
ALL_COLS(QUANTIZED, q8_0, REALM_PACK_Q8_0)
ALL_COLS(QUANTIZED, q4_k, REALM_PACK_Q4_K)
ALL_COLS(QUANTIZED, q5_k, REALM_PACK_Q5_K)
ALL_COLS(QUANTIZED, q6_k, REALM_PACK_Q6_K)

/* ---- rows ------------------------------------------------------------------------------------------------------- */

INLINE __m256i magnitude_bits(__m256 x) {
    return _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff));
}

static int32_t sum_bytes(__m128i v) {                                                     /* 16 signed bytes */
    __m128i s = _mm_sad_epu8(_mm_xor_si128(v, _mm_set1_epi8(-128)), _mm_setzero_si128()); /* two sums of v + 128 */
    return _mm_cvtsi128_si32(s) + _mm_extract_epi32(s, 2) - 16 * 128;
}

static __m128i round_bytes(__m256 x0, __m256 x1, __m256 scale) {
    __m256i v0 = _mm256_cvtps_epi32(_mm256_mul_ps(x0, scale)), v1 = _mm256_cvtps_epi32(_mm256_mul_ps(x1, scale));
    __m128i low = _mm_packs_epi32(_mm256_castsi256_si128(v0), _mm256_extracti128_si256(v0, 1));
    __m128i high = _mm_packs_epi32(_mm256_castsi256_si128(v1), _mm256_extracti128_si256(v1, 1));
    return _mm_packs_epi16(low, high);
}

static void quantize_column(const float *x, uint32_t k, void *tile, uint32_t col, uint32_t n_cols) {
    uint8_t *block = tile;
    for (uint32_t b = 0; b < k / 32; b++, x += 32, block += (size_t)REALM_LINEAR_COL_BYTES * n_cols) {
        __m256 x0 = _mm256_loadu_ps(x), x1 = _mm256_loadu_ps(x + 8);
        __m256 x2 = _mm256_loadu_ps(x + 16), x3 = _mm256_loadu_ps(x + 24);
        __m256i m8 = _mm256_max_epi32(_mm256_max_epi32(magnitude_bits(x0), magnitude_bits(x1)),
                                      _mm256_max_epi32(magnitude_bits(x2), magnitude_bits(x3)));
        __m128i m = _mm_max_epi32(_mm256_castsi256_si128(m8), _mm256_extracti128_si256(m8, 1));
        m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
        m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
        int32_t amax_bits = _mm_cvtsi128_si32(m);
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
            __m256 scale = _mm256_set1_ps(inv);
            q0 = round_bytes(x0, x1, scale);
            q1 = round_bytes(x2, x3, scale);
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
    uint32_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 v = _mm256_loadu_ps(acc + i);
        if (bias) v = _mm256_add_ps(v, _mm256_loadu_ps(bias + i));
        if (add) v = _mm256_add_ps(_mm256_loadu_ps(y + i), v);
        _mm256_storeu_ps(y + i, v);
    }
    for (; i < n; i++) {
        float v = bias ? acc[i] + bias[i] : acc[i];
        y[i] = add ? y[i] + v : v;
    }
}

void realm_linear_kernels_init_avx2(realm_linear_kernels *k) {
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
