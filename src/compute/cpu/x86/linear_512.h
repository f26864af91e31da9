/* compute/cpu/x86/linear_512.h - matrix products on 512-bit vectors; included by linear_avx512.c and linear_vnni.c
 * alone, which differ in one step: four products of bytes summed into a 32-bit lane are one instruction with VNNI, and
 * without it bytes are summed in pairs into 16 bits, as many as cannot overflow, and those then into 32.
 *
 * A vector is one value (or 4 neighbouring codes) of each of a panel's 16 rows. The kernels below are one template:
 * `kind`, R (panels side by side) and C (columns) are constants of each instance, so every loop over them unrolls and
 * every array is registers. Weights are unpacked once for all C columns; an activation is broadcast once for R panels.
 * With R * C products in flight the latency of the dot instruction is hidden. The offset of a code costs nothing: the
 * sum starts at minus offset times the sum of the activations.
 */
#include <math.h>

#include "compute/cpu/linear_kernels.h"
#include "compute/cpu/x86/panel.h"

/* log2 of the offset; 0 means no offset */
#define OFFSET_SHIFT(kind)           \
    ((kind) == REALM_PACK_Q4_0   ? 3 \
     : (kind) == REALM_PACK_Q5_0 ? 4 \
     : (kind) == REALM_PACK_Q6_K ? 5 \
     : (kind) == REALM_PACK_Q8_0 ? 7 \
                                 : 0)

/* ---- weights ---------------------------------------------------------------------------------------------------- */

/* Codes of inputs 4i.. (lo) and 16 + 4i.. (hi) of a block. */
typedef struct code_pair {
    __m512i lo, hi;
} code_pair;

/* a | (b & mask) in one instruction: truth table 0xf8. */
INLINE __m512i or_and(__m512i a, __m512i b, __m512i mask) { return _mm512_ternarylogic_epi32(a, b, mask, 0xf8); }

INLINE __m512i shift_left(__m512i v, int n) {
    return n > 0 ? _mm512_slli_epi16(v, n) : n < 0 ? _mm512_srli_epi16(v, -n) : v;
}

INLINE code_pair unpack(realm_pack_kind kind, const uint8_t *q, unsigned i) {
    code_pair p;
    if (kind == REALM_PACK_Q8_0) {
        p.lo = _mm512_load_si512(q + 64 * i);
        p.hi = _mm512_load_si512(q + 256 + 64 * i);
        return p;
    }
    const __m512i low = _mm512_set1_epi8(15);
    __m512i v = _mm512_load_si512(q + 64 * i);
    p.lo = _mm512_and_si512(v, low);
    p.hi = _mm512_and_si512(_mm512_srli_epi16(v, 4), low);
    if (HAS_FIFTH(kind)) {
        const __m512i bit = _mm512_set1_epi8(16);
        __m512i plane = _mm512_load_si512(q + 256);
        p.lo = or_and(p.lo, shift_left(plane, 4 - (int)i), bit);
        p.hi = or_and(p.hi, shift_left(plane, -(int)i), bit);
    }
    if (kind == REALM_PACK_Q6_K) {
        const __m512i bits = _mm512_set1_epi8(48);
        p.lo = or_and(p.lo, shift_left(_mm512_load_si512(q + 256), 4 - 2 * (int)i), bits);
        p.hi = or_and(p.hi, shift_left(_mm512_load_si512(q + 320), 4 - 2 * (int)i), bits);
    }
    return p;
}

INLINE __m512 load_halves(const uint8_t *p) { return _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)p)); }
INLINE __m512 load_bytes_unsigned(const uint8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_load_si128((const __m128i *)p)));
}
INLINE __m512 load_bytes_signed(const uint8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_load_si128((const __m128i *)p)));
}

/* ---- sums of bytes ---------------------------------------------------------------------------------------------- */

INLINE __m512i broadcast_i32(const uint8_t *p) {
    int32_t v;
    __builtin_memcpy(&v, p, 4);
    return _mm512_set1_epi32(v);
}
INLINE __m512 broadcast_f32(const uint8_t *p) {
    float v;
    __builtin_memcpy(&v, p, 4);
    return _mm512_set1_ps(v);
}

#ifdef REALM_VNNI
/* Running sum of one output and column within a block. */
typedef struct byte_sum {
    __m512i s32;
} byte_sum;
INLINE void sum_start(byte_sum *s, __m512i start) { s->s32 = start; }
INLINE void sum_add(realm_pack_kind kind, byte_sum *s, unsigned step, __m512i codes, __m512i q) {
    (void)kind, (void)step;
    s->s32 = _mm512_dpbusd_epi32(s->s32, codes, q);
}
INLINE __m512i sum_get(const byte_sum *s, __m512i start) {
    (void)start;
    return s->s32;
}
#else
/* Pairs of products fit 16 bits for all codes below 7 bits: 15 * 127 * 2 = 3,810 eight times, 31 * 127 * 2 = 7,874 four
 * times, 63 * 127 * 2 = 16,002 twice. Values of Q8_0 are taken as |w| * (sign of w * q): 128 * 127 * 2 once. */
typedef struct byte_sum {
    __m512i s32, s16;
} byte_sum;
INLINE void sum_start(byte_sum *s, __m512i start) { (void)s, (void)start; } /* added at the end: a register less */
INLINE void sum_add(realm_pack_kind kind, byte_sum *s, unsigned step, __m512i codes, __m512i q) {
    const unsigned flush = kind == REALM_PACK_Q8_0 ? 1 : kind == REALM_PACK_Q6_K ? 2 : HAS_FIFTH(kind) ? 4 : 8;
    __m512i pairs;
    if (kind == REALM_PACK_Q8_0) {
        /* The stored value is w + 128, whose top bit is set when w >= 0. */
        __mmask64 minus = ~_mm512_movepi8_mask(codes);
        __m512i size = _mm512_abs_epi8(_mm512_xor_si512(codes, _mm512_set1_epi8(-128)));
        pairs = _mm512_maddubs_epi16(size, _mm512_mask_sub_epi8(q, minus, _mm512_setzero_si512(), q));
    } else {
        pairs = _mm512_maddubs_epi16(codes, q);
    }
    s->s16 = step % flush == 0 ? pairs : _mm512_add_epi16(s->s16, pairs);
    if (step % flush == flush - 1) {
        __m512i wide = _mm512_madd_epi16(s->s16, _mm512_set1_epi16(1));
        s->s32 = step < flush ? wide : _mm512_add_epi32(s->s32, wide);
    }
}
INLINE __m512i sum_get(const byte_sum *s, __m512i start) { return _mm512_add_epi32(s->s32, start); }
#endif

/* ---- quantised kinds -------------------------------------------------------------------------------------------- */

INLINE __m512i start_of(realm_pack_kind kind, const uint8_t *neg) {
#ifndef REALM_VNNI
    if (kind == REALM_PACK_Q8_0) return _mm512_setzero_si512(); /* signed values: no offset */
#endif
    if (OFFSET_SHIFT(kind) == 0) return _mm512_setzero_si512();
    return _mm512_slli_epi32(broadcast_i32(neg), OFFSET_SHIFT(kind));
}

INLINE void block_sums(realm_pack_kind kind, const unsigned R, const unsigned C, const uint8_t *q,
                       const uint8_t *scales, size_t panel_bytes, const uint8_t *tile,
                       __m512 sums[][REALM_LINEAR_MAX_COLS]) {
    const uint8_t *neg = tile + 40 * C; /* after q, d and dsum */
    const bool halves = kind == REALM_PACK_Q6_K;
    byte_sum s[2][REALM_LINEAR_MAX_COLS], t[2][REALM_LINEAR_MAX_COLS]; /* t: last 16 inputs, Q6_K only */
    UNROLL for (unsigned c = 0; c < C; c++) UNROLL for (unsigned r = 0; r < R; r++) {
        sum_start(&s[r][c], start_of(kind, neg + 4 * ((halves ? C : 0) + c)));
        if (halves) sum_start(&t[r][c], start_of(kind, neg + 4 * (2 * C + c)));
    }
    UNROLL for (unsigned i = 0; i < 4; i++) {
        code_pair w[2];
        UNROLL for (unsigned r = 0; r < R; r++) w[r] = unpack(kind, q + r * panel_bytes, i);
        UNROLL for (unsigned c = 0; c < C; c++) {
            __m512i a = broadcast_i32(tile + 32 * c + 4 * i);
            UNROLL for (unsigned r = 0; r < R; r++) sum_add(kind, &s[r][c], halves ? i : 2 * i, w[r].lo, a);
        }
        UNROLL for (unsigned c = 0; c < C; c++) {
            __m512i a = broadcast_i32(tile + 32 * c + 16 + 4 * i);
            UNROLL for (unsigned r = 0; r < R; r++)
                sum_add(kind, halves ? &t[r][c] : &s[r][c], halves ? i : 2 * i + 1, w[r].hi, a);
        }
    }
    UNROLL for (unsigned r = 0; r < R; r++) {
        const __m512 scale0 = halves ? load_bytes_signed(scales + r * panel_bytes) : _mm512_setzero_ps();
        const __m512 scale1 = halves ? load_bytes_signed(scales + r * panel_bytes + 16) : _mm512_setzero_ps();
        UNROLL for (unsigned c = 0; c < C; c++) {
            __m512 sum = _mm512_cvtepi32_ps(sum_get(&s[r][c], start_of(kind, neg + 4 * ((halves ? C : 0) + c))));
            if (halves) { /* below 2^24 throughout: exact in floats */
                __m512 last = _mm512_cvtepi32_ps(sum_get(&t[r][c], start_of(kind, neg + 4 * (2 * C + c))));
                sum = _mm512_fmadd_ps(last, scale1, _mm512_mul_ps(sum, scale0));
            }
            sums[r][c] = sum;
        }
    }
}

/* R neighbouring panels times C columns. */
INLINE void panels_quantized(realm_pack_kind kind, const unsigned R, const unsigned C, const uint8_t *panel,
                             size_t panel_bytes, uint32_t n_blocks, const uint8_t *tile, bool once, float *out,
                             size_t out_stride) {
    const uint8_t *super = panel, *scales = panel + SCALES_AT(kind), *q = panel + QUANTS_AT(kind);
    once = once && R == 1;
    const uint8_t *ahead = panel + (once ? AHEAD : R * panel_bytes);
    __m512 f[2][REALM_LINEAR_MAX_COLS];
    UNROLL for (unsigned r = 0; r < R; r++) UNROLL for (unsigned c = 0; c < C; c++) f[r][c] = _mm512_setzero_ps();
    for (uint32_t b = 0; b < n_blocks; b++) {
        __m512 sums[2][REALM_LINEAR_MAX_COLS];
        ahead = prefetch_block(kind, R, panel_bytes, b, ahead, once);
        block_sums(kind, R, C, q, scales, panel_bytes, tile, sums);
        const uint8_t *d = tile + 32 * C, *dsum = tile + 36 * C;
        UNROLL for (unsigned r = 0; r < R; r++) {
            const uint8_t *scale = scales + r * panel_bytes;
            __m512 dw, mw = _mm512_setzero_ps();
            if (IS_K(kind)) {
                dw = load_halves(super + r * panel_bytes);
                if (HAS_MIN(kind)) {
                    mw = _mm512_mul_ps(load_halves(super + r * panel_bytes + 32), load_bytes_unsigned(scale + 16));
                    dw = _mm512_mul_ps(dw, load_bytes_unsigned(scale));
                }
            } else {
                dw = load_halves(scale);
                if (HAS_MIN(kind)) mw = load_halves(scale + 32);
            }
            UNROLL for (unsigned c = 0; c < C; c++) {
                f[r][c] = _mm512_fmadd_ps(sums[r][c], _mm512_mul_ps(dw, broadcast_f32(d + 4 * c)), f[r][c]);
                if (HAS_MIN(kind)) {
                    if (IS_K(kind))
                        f[r][c] = _mm512_fnmadd_ps(mw, broadcast_f32(dsum + 4 * c), f[r][c]);
                    else
                        f[r][c] = _mm512_fmadd_ps(mw, broadcast_f32(dsum + 4 * c), f[r][c]);
                }
            }
        }
        q += QUANT_BYTES(kind);
        scales += SCALE_BYTES(kind);
        tile += (size_t)REALM_LINEAR_COL_BYTES * C;
        if (b % GROUP(kind) != GROUP(kind) - 1) continue;
        q += GAP(kind, QUANT_BYTES(kind));
        scales += GAP(kind, SCALE_BYTES(kind));
        super += GROUP_BYTES(kind);
    }
    UNROLL for (unsigned r = 0; r < R; r++) UNROLL for (unsigned c = 0; c < C; c++)
        _mm512_storeu_ps(out + (size_t)c * out_stride + (size_t)PANEL_ROWS * r, f[r][c]);
}

#define QUANTIZED(name, kind, R, C)                                                                                    \
    static void name##_##C(const uint8_t *panels, size_t panel_bytes, uint32_t n_panels, uint32_t k, const void *tile, \
                           uint32_t n_cols, bool once, float *out, size_t out_stride) {                                \
        (void)n_cols;                                                                                                  \
        for (; n_panels >= R; n_panels -= R, panels += R * panel_bytes, out += R * PANEL_ROWS)                         \
            panels_quantized(kind, R, C, panels, panel_bytes, k / 32, tile, once, out, out_stride);                    \
        if (R > 1 && n_panels) panels_quantized(kind, 1, C, panels, panel_bytes, k / 32, tile, once, out, out_stride); \
    }

/* ---- float kinds ------------------------------------------------------------------------------------------------ */

INLINE __m512 load_weights(realm_pack_kind kind, const uint8_t *panel, uint32_t i) {
    if (kind == REALM_PACK_F32) return _mm512_load_ps((const float *)panel + (size_t)i * PANEL_ROWS);
    const __m256i *p = (const __m256i *)(panel + (size_t)i * PANEL_ROWS * 2);
    if (kind == REALM_PACK_F16) return _mm512_cvtph_ps(_mm256_load_si256(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_load_si256(p)), 16));
}

INLINE void panels_float(realm_pack_kind kind, const unsigned R, const unsigned C, const uint8_t *panel,
                         size_t panel_bytes, uint32_t k, const float *x, float *out, size_t out_stride) {
    __m512 f[4][REALM_LINEAR_MAX_COLS];
    UNROLL for (unsigned r = 0; r < R; r++) UNROLL for (unsigned c = 0; c < C; c++) f[r][c] = _mm512_setzero_ps();
    for (uint32_t i = 0; i < k; i++, x += C) {
        __m512 w[4];
        UNROLL for (unsigned r = 0; r < R; r++) {
            w[r] = load_weights(kind, panel + r * panel_bytes, i);
            if (kind == REALM_PACK_F32 || i % 2 == 0)
                prefetch(panel + (r + R) * panel_bytes + (size_t)i * PANEL_ROWS * (kind == REALM_PACK_F32 ? 4 : 2), 64,
                         false);
        }
        UNROLL for (unsigned c = 0; c < C; c++) {
            __m512 a = _mm512_set1_ps(x[c]);
            UNROLL for (unsigned r = 0; r < R; r++) f[r][c] = _mm512_fmadd_ps(w[r], a, f[r][c]);
        }
    }
    UNROLL for (unsigned r = 0; r < R; r++) UNROLL for (unsigned c = 0; c < C; c++)
        _mm512_storeu_ps(out + (size_t)c * out_stride + (size_t)PANEL_ROWS * r, f[r][c]);
}

#define FLOATS(name, kind, R, C)                                                                                       \
    static void name##_##C(const uint8_t *panels, size_t panel_bytes, uint32_t n_panels, uint32_t k, const void *tile, \
                           uint32_t n_cols, bool once, float *out, size_t out_stride) {                                \
        (void)n_cols, (void)once; /* several streams side by side: see prefetch */                                     \
        for (; n_panels >= R; n_panels -= R, panels += R * panel_bytes, out += R * PANEL_ROWS)                         \
            panels_float(kind, R, C, panels, panel_bytes, k, tile, out, out_stride);                                   \
        for (; n_panels; n_panels--, panels += panel_bytes, out += PANEL_ROWS)                                         \
            panels_float(kind, 1, C, panels, panel_bytes, k, tile, out, out_stride);                                   \
    }

#define ALL_COLS(M, name, kind, R_FEW, R_MANY) \
    M(name, kind, R_FEW, 1)                    \
    M(name, kind, R_FEW, 2)                    \
    M(name, kind, R_FEW, 3)                    \
    M(name, kind, R_FEW, 4)                    \
    M(name, kind, R_MANY, 5)                   \
    M(name, kind, R_MANY, 6)                   \
    M(name, kind, R_MANY, 7)                   \
    M(name, kind, R_MANY, 8)
#define ROW_OF(name) {name##_1, name##_2, name##_3, name##_4, name##_5, name##_6, name##_7, name##_8}

/* Panels side by side: one for up to 4 columns, which wait for memory and get it fastest in its order; for more as many
 * as registers hold sums of. */
#ifdef REALM_VNNI
#define MANY 2
#else
#define MANY 1
#endif
ALL_COLS(QUANTIZED, q4_0, REALM_PACK_Q4_0, 1, MANY)
ALL_COLS(QUANTIZED, q4_1, REALM_PACK_Q4_1, 1, MANY)
ALL_COLS(QUANTIZED, q5_0, REALM_PACK_Q5_0, 1, MANY)
ALL_COLS(QUANTIZED, q5_1, REALM_PACK_Q5_1, 1, MANY)
ALL_COLS(QUANTIZED, q8_0, REALM_PACK_Q8_0, 1, MANY)
ALL_COLS(QUANTIZED, q4_k, REALM_PACK_Q4_K, 1, MANY)
ALL_COLS(QUANTIZED, q5_k, REALM_PACK_Q5_K, 1, MANY)
ALL_COLS(QUANTIZED, q6_k, REALM_PACK_Q6_K, 1, 1)
