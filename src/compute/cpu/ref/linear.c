/* compute/cpu/ref/linear.c - packed matrix products in plain C: the definition that every instruction set matches bit
 * for bit (linear_kernels.h states it in words). One function serves all quantised kinds: it decodes a block of a panel
 * to codes, then forms exact integer sums and one or two fused multiply-adds per output and column.
 */
#include <math.h>
#include <string.h>

#include "compute/cpu/linear_kernels.h"
#include "compute/cpu/pack.h"

#define ROWS REALM_PANEL_ROWS
#define BLOCK REALM_LINEAR_BLOCK

/* Below this magnitude 127 / amax could overflow; such blocks count as zero. */
#define TINY 0x1p-100f

static float f16_at(const uint8_t *p, unsigned i) {
    uint16_t h;
    memcpy(&h, p + (size_t)2 * i, 2);
    return realm_f16_to_f32(h);
}

static void quantize_column(const float *x, uint32_t k, void *tile, uint32_t col, uint32_t n_cols) {
    uint8_t *block = tile;
    for (uint32_t b = 0; b < k / BLOCK; b++, x += BLOCK, block += (size_t)REALM_LINEAR_COL_BYTES * n_cols) {
        uint32_t amax_bits = 0; /* magnitudes of floats order as their bits do, NaN above infinity */
        for (unsigned i = 0; i < BLOCK; i++) {
            uint32_t bits;
            memcpy(&bits, &x[i], 4);
            bits &= 0x7fffffffu;
            if (bits > amax_bits) amax_bits = bits;
        }
        float amax, d, inv;
        memcpy(&amax, &amax_bits, 4);
        if (!(amax < INFINITY)) {
            d = NAN;
            inv = 0.0f;
        } else if (amax < TINY) {
            d = 0.0f;
            inv = 0.0f;
        } else {
            d = amax / 127.0f;
            inv = 127.0f / amax;
        }
        int8_t q[BLOCK];
        int32_t sum[2] = {0, 0};
        for (unsigned i = 0; i < BLOCK; i++) {
            q[i] = inv > 0.0f ? (int8_t)lrintf(x[i] * inv) : 0;
            sum[i / 16] += q[i];
        }
        float dsum = d * (float)(sum[0] + sum[1]);
        int32_t neg[3] = {-(sum[0] + sum[1]), -sum[0], -sum[1]};
        memcpy(block + (size_t)BLOCK * col, q, BLOCK);
        uint8_t *meta = block + (size_t)BLOCK * n_cols + (size_t)4 * col;
        memcpy(meta, &d, 4);
        memcpy(meta + (size_t)4 * n_cols, &dsum, 4);
        for (unsigned i = 0; i < 3; i++) memcpy(meta + (size_t)4 * n_cols * (2 + i), &neg[i], 4);
    }
}

static void store_row(float *y, const float *acc, const float *bias, uint32_t n, bool add) {
    for (uint32_t i = 0; i < n; i++) {
        float v = bias ? acc[i] + bias[i] : acc[i];
        y[i] = add ? y[i] + v : v;
    }
}

/* ---- quantised kinds -------------------------------------------------------------------------------------------- */

static const struct {
    realm_type type;
    uint8_t offset;
} kinds[REALM_PACK_KINDS] = {
    [REALM_PACK_Q4_0] = {REALM_TYPE_Q4_0, 8},   [REALM_PACK_Q4_1] = {REALM_TYPE_Q4_1, 0},
    [REALM_PACK_Q5_0] = {REALM_TYPE_Q5_0, 16},  [REALM_PACK_Q5_1] = {REALM_TYPE_Q5_1, 0},
    [REALM_PACK_Q8_0] = {REALM_TYPE_Q8_0, 128}, [REALM_PACK_Q4_K] = {REALM_TYPE_Q4_K, 0},
    [REALM_PACK_Q5_K] = {REALM_TYPE_Q5_K, 0},   [REALM_PACK_Q6_K] = {REALM_TYPE_Q6_K, 32},
};

static void decode_codes(realm_pack_kind kind, const uint8_t *quants, uint8_t codes[ROWS][BLOCK]) {
    for (unsigned r = 0; r < ROWS; r++)
        for (unsigned n = 0; n < BLOCK; n++) {
            unsigned half = n / 16, i = n % 16 / 4, lane = 4 * r + n % 4;
            if (kind == REALM_PACK_Q8_0) {
                codes[r][n] = quants[64 * (n / 4) + lane];
                continue;
            }
            unsigned code = quants[64 * i + lane] >> 4 * half & 15;
            if (kind == REALM_PACK_Q5_0 || kind == REALM_PACK_Q5_1 || kind == REALM_PACK_Q5_K)
                code |= (quants[256 + lane] >> (4 * half + i) & 1u) << 4;
            if (kind == REALM_PACK_Q6_K) code |= (quants[256 + 64 * half + lane] >> 2 * i & 3u) << 4;
            codes[r][n] = (uint8_t)code;
        }
}

/* Float scale and minimum of row r in a block; for Q6_K the scale of the super-block. */
static float decode_scale(realm_pack_kind kind, const uint8_t *scales, const uint8_t *super, unsigned r, float *min) {
    *min = 0.0f;
    switch (kind) {
    case REALM_PACK_Q4_1:
    case REALM_PACK_Q5_1: *min = f16_at(scales + 32, r); return f16_at(scales, r);
    case REALM_PACK_Q4_K:
    case REALM_PACK_Q5_K:
        *min = -(f16_at(super + 32, r) * (float)scales[16 + r]);
        return f16_at(super, r) * (float)scales[r];
    case REALM_PACK_Q6_K: return f16_at(super, r);
    default: return f16_at(scales, r);
    }
}

static void panel_quantized(realm_pack_kind kind, const uint8_t *panel, uint32_t k, const uint8_t *tile,
                            uint32_t n_cols, float *out, size_t out_stride) {
    const realm_pack_layout *l = realm_pack_layout_of(kinds[kind].type);
    uint32_t n_blocks = k / BLOCK;
    bool has_min =
        kind == REALM_PACK_Q4_1 || kind == REALM_PACK_Q5_1 || kind == REALM_PACK_Q4_K || kind == REALM_PACK_Q5_K;
    for (uint32_t c = 0; c < n_cols; c++) memset(out + c * out_stride, 0, ROWS * sizeof *out);
    for (uint32_t b = 0; b < n_blocks; b++) {
        uint8_t codes[ROWS][BLOCK];
        const realm_pack_block at = realm_pack_block_at(l, b);
        decode_codes(kind, panel + at.quants, codes);
        const uint8_t *block = tile + (size_t)b * REALM_LINEAR_COL_BYTES * n_cols;
        const uint8_t *bscales = panel + at.scales, *bsuper = panel + at.super;
        for (unsigned r = 0; r < ROWS; r++) {
            float mw, dw = decode_scale(kind, bscales, bsuper, r, &mw);
            for (uint32_t c = 0; c < n_cols; c++) {
                const int8_t *q = (const int8_t *)block + (size_t)BLOCK * c;
                const uint8_t *meta = block + (size_t)BLOCK * n_cols + (size_t)4 * c;
                float d, dsum;
                memcpy(&d, meta, 4);
                memcpy(&dsum, meta + (size_t)4 * n_cols, 4);
                int32_t half[2] = {0, 0};
                for (unsigned n = 0; n < BLOCK; n++) half[n / 16] += (codes[r][n] - kinds[kind].offset) * q[n];
                int32_t isum = half[0] + half[1];
                if (kind == REALM_PACK_Q6_K) isum = half[0] * (int8_t)bscales[r] + half[1] * (int8_t)bscales[16 + r];
                float *f = &out[c * out_stride + r];
                *f = fmaf((float)isum, dw * d, *f);
                if (has_min) *f = fmaf(mw, dsum, *f);
            }
        }
    }
}

/* ---- float kinds ------------------------------------------------------------------------------------------------ */

static void panel_float(realm_pack_kind kind, const uint8_t *panel, uint32_t k, const float *x, uint32_t n_cols,
                        float *out, size_t out_stride) {
    for (uint32_t c = 0; c < n_cols; c++) memset(out + c * out_stride, 0, ROWS * sizeof *out);
    for (uint32_t i = 0; i < k; i++, x += n_cols)
        for (unsigned r = 0; r < ROWS; r++) {
            float w;
            if (kind == REALM_PACK_F32) {
                memcpy(&w, panel + ((size_t)i * ROWS + r) * 4, 4);
            } else {
                uint16_t h;
                memcpy(&h, panel + ((size_t)i * ROWS + r) * 2, 2);
                w = kind == REALM_PACK_F16 ? realm_f16_to_f32(h) : realm_bf16_to_f32(h);
            }
            for (uint32_t c = 0; c < n_cols; c++) out[c * out_stride + r] = fmaf(w, x[c], out[c * out_stride + r]);
        }
}

#define PRODUCT(name, kind, panel_fn)                                                                         \
    static void product_##name(const uint8_t *panels, size_t panel_bytes, uint32_t n_panels, uint32_t k,      \
                               const void *tile, uint32_t n_cols, bool once, float *out, size_t out_stride) { \
        (void)once;                                                                                           \
        for (uint32_t p = 0; p < n_panels; p++)                                                               \
            panel_fn(kind, panels + p * panel_bytes, k, tile, n_cols, out + (size_t)ROWS * p, out_stride);    \
    }
PRODUCT(f32, REALM_PACK_F32, panel_float)
PRODUCT(f16, REALM_PACK_F16, panel_float)
PRODUCT(bf16, REALM_PACK_BF16, panel_float)
PRODUCT(q4_0, REALM_PACK_Q4_0, panel_quantized)
PRODUCT(q4_1, REALM_PACK_Q4_1, panel_quantized)
PRODUCT(q5_0, REALM_PACK_Q5_0, panel_quantized)
PRODUCT(q5_1, REALM_PACK_Q5_1, panel_quantized)
PRODUCT(q8_0, REALM_PACK_Q8_0, panel_quantized)
PRODUCT(q4_k, REALM_PACK_Q4_K, panel_quantized)
PRODUCT(q5_k, REALM_PACK_Q5_K, panel_quantized)
PRODUCT(q6_k, REALM_PACK_Q6_K, panel_quantized)

void realm_linear_kernels_init_ref(realm_linear_kernels *k) {
    static const realm_linear_product products[REALM_PACK_KINDS] = {
        [REALM_PACK_F32] = product_f32,   [REALM_PACK_F16] = product_f16,   [REALM_PACK_BF16] = product_bf16,
        [REALM_PACK_Q4_0] = product_q4_0, [REALM_PACK_Q4_1] = product_q4_1, [REALM_PACK_Q5_0] = product_q5_0,
        [REALM_PACK_Q5_1] = product_q5_1, [REALM_PACK_Q8_0] = product_q8_0, [REALM_PACK_Q4_K] = product_q4_k,
        [REALM_PACK_Q5_K] = product_q5_k, [REALM_PACK_Q6_K] = product_q6_k,
    };
    k->quantize_column = quantize_column;
    k->store_row = store_row;
    for (unsigned kind = 0; kind < REALM_PACK_KINDS; kind++)
        for (unsigned c = 0; c < REALM_LINEAR_MAX_COLS; c++) k->product[kind][c] = products[kind];
}
