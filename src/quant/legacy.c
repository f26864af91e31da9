/* quant/legacy.c - the formats with 32 values a block: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.
 *
 * A block holds one binary16 scale d, in the _1 formats one binary16 minimum m, and 32 small integers q. Symmetric
 * formats mean x = d * (q - bias), the others x = d * q + m. Bytes of a block (the ggml library's block layouts):
 *
 *     Q4_0   0 d   2 qs[16]                       bias 8
 *     Q4_1   0 d   2 m    4 qs[16]
 *     Q5_0   0 d   2 qh[4]   6 qs[16]             bias 16
 *     Q5_1   0 d   2 m    4 qh[4]   8 qs[16]
 *     Q8_0   0 d   2 q[32], signed
 *
 * Byte j of qs has the low four bits of value j in its low nibble and those of value j + 16 in its high nibble; bit i
 * of qh (32 bits, little-endian) is the fifth bit of value i.
 *
 * Quantising follows the reference: the symmetric formats map the value of largest magnitude, with its sign, to the end
 * of the range that has one step more; the others span minimum to maximum. The scale used for rounding is the
 * unrounded one. Values whose scale passes binary16 (about 65504 steps) give an infinite scale, as they do there.
 */
#include <math.h>

#include "quant/blocks.h"

#define BLOCK 32
#define HALF 16

void realm_dequantize_q4_0(const void *src, float *dst, size_t n) {
    const uint8_t *b = src;
    for (size_t i = 0; i + BLOCK <= n; i += BLOCK, b += 18, dst += BLOCK) {
        float d = realm_block_f16(b);
        for (int j = 0; j < HALF; j++) {
            dst[j] = (float)((b[2 + j] & 15) - 8) * d;
            dst[j + HALF] = (float)((b[2 + j] >> 4) - 8) * d;
        }
    }
}

void realm_dequantize_q4_1(const void *src, float *dst, size_t n) {
    const uint8_t *b = src;
    for (size_t i = 0; i + BLOCK <= n; i += BLOCK, b += 20, dst += BLOCK) {
        float d = realm_block_f16(b), m = realm_block_f16(b + 2);
        for (int j = 0; j < HALF; j++) {
            dst[j] = (float)(b[4 + j] & 15) * d + m;
            dst[j + HALF] = (float)(b[4 + j] >> 4) * d + m;
        }
    }
}

/* The fifth bit of value i, in place (0 or 16). */
static inline int high_bit(const uint8_t *qh, int i) { return ((qh[i >> 3] >> (i & 7)) & 1) << 4; }

void realm_dequantize_q5_0(const void *src, float *dst, size_t n) {
    const uint8_t *b = src;
    for (size_t i = 0; i + BLOCK <= n; i += BLOCK, b += 22, dst += BLOCK) {
        float d = realm_block_f16(b);
        for (int j = 0; j < HALF; j++) {
            dst[j] = (float)(((b[6 + j] & 15) | high_bit(b + 2, j)) - 16) * d;
            dst[j + HALF] = (float)(((b[6 + j] >> 4) | high_bit(b + 2, j + HALF)) - 16) * d;
        }
    }
}

void realm_dequantize_q5_1(const void *src, float *dst, size_t n) {
    const uint8_t *b = src;
    for (size_t i = 0; i + BLOCK <= n; i += BLOCK, b += 24, dst += BLOCK) {
        float d = realm_block_f16(b), m = realm_block_f16(b + 2);
        for (int j = 0; j < HALF; j++) {
            dst[j] = (float)((b[8 + j] & 15) | high_bit(b + 4, j)) * d + m;
            dst[j + HALF] = (float)((b[8 + j] >> 4) | high_bit(b + 4, j + HALF)) * d + m;
        }
    }
}

void realm_dequantize_q8_0(const void *src, float *dst, size_t n) {
    const uint8_t *b = src;
    for (size_t i = 0; i + BLOCK <= n; i += BLOCK, b += 34, dst += BLOCK) {
        float d = realm_block_f16(b);
        for (int j = 0; j < BLOCK; j++) dst[j] = (float)(int8_t)b[2 + j] * d;
    }
}

/* The value of largest magnitude, with its sign; 0 for a block of zeros. */
static float signed_max(const float *x) {
    float amax = 0.0f, max = 0.0f;
    for (int j = 0; j < BLOCK; j++) {
        if (fabsf(x[j]) > amax) {
            amax = fabsf(x[j]);
            max = x[j];
        }
    }
    return max;
}

static void span(const float *x, float *min, float *max) {
    *min = *max = x[0];
    for (int j = 1; j < BLOCK; j++) {
        if (x[j] < *min) *min = x[j];
        if (x[j] > *max) *max = x[j];
    }
}

static inline float inverse(float d) { return d != 0.0f ? 1.0f / d : 0.0f; }

/* 32 values of at most five bits: nibbles into qs, fifth bits into qh where the format has them. */
static void pack(const uint8_t *q, uint8_t *qs, uint8_t *qh) {
    for (int j = 0; j < HALF; j++) qs[j] = (uint8_t)((q[j] & 15) | (q[j + HALF] & 15) << 4);
    if (!qh) return;
    memset(qh, 0, 4);
    for (int j = 0; j < BLOCK; j++) qh[j >> 3] = (uint8_t)(qh[j >> 3] | (q[j] >> 4) << (j & 7));
}

/* x = d * (q - bias), bias 8 or 16. */
static void quantize_symmetric(const float *x, int bias, uint8_t *scale, uint8_t *qs, uint8_t *qh) {
    uint8_t q[BLOCK];
    float d = signed_max(x) / (float)-bias, id = inverse(d);
    realm_block_put_f16(scale, d);
    for (int j = 0; j < BLOCK; j++) q[j] = realm_block_clamp(x[j] * id + ((float)bias + 0.5f), 2 * bias - 1);
    pack(q, qs, qh);
}

/* x = d * q + m, q up to `top`. */
static void quantize_spanned(const float *x, int top, uint8_t *scale, uint8_t *qs, uint8_t *qh) {
    uint8_t q[BLOCK];
    float min, max;
    span(x, &min, &max);
    float d = (max - min) / (float)top, id = inverse(d);
    realm_block_put_f16(scale, d);
    realm_block_put_f16(scale + 2, min);
    for (int j = 0; j < BLOCK; j++) q[j] = realm_block_clamp((x[j] - min) * id + 0.5f, top);
    pack(q, qs, qh);
}

void realm_quantize_q4_0(const float *src, void *dst, size_t n) {
    uint8_t *b = dst;
    for (size_t i = 0; i + BLOCK <= n; i += BLOCK, b += 18) quantize_symmetric(src + i, 8, b, b + 2, NULL);
}

void realm_quantize_q4_1(const float *src, void *dst, size_t n) {
    uint8_t *b = dst;
    for (size_t i = 0; i + BLOCK <= n; i += BLOCK, b += 20) quantize_spanned(src + i, 15, b, b + 4, NULL);
}

void realm_quantize_q5_0(const float *src, void *dst, size_t n) {
    uint8_t *b = dst;
    for (size_t i = 0; i + BLOCK <= n; i += BLOCK, b += 22) quantize_symmetric(src + i, 16, b, b + 6, b + 2);
}

void realm_quantize_q5_1(const float *src, void *dst, size_t n) {
    uint8_t *b = dst;
    for (size_t i = 0; i + BLOCK <= n; i += BLOCK, b += 24) quantize_spanned(src + i, 31, b, b + 8, b + 4);
}

void realm_quantize_q8_0(const float *src, void *dst, size_t n) {
    uint8_t *b = dst;
    for (size_t i = 0; i + BLOCK <= n; i += BLOCK, b += 34) {
        const float *x = src + i;
        float d = fabsf(signed_max(x)) / 127.0f, id = inverse(d);
        realm_block_put_f16(b, d);
        for (int j = 0; j < BLOCK; j++) {
            /* To nearest, ties away from zero; by magnitude, so that the clamp also takes NaN. */
            float v = x[j] * id;
            int q = realm_block_clamp(roundf(fabsf(v)), 127);
            b[2 + j] = (uint8_t)(int8_t)(v < 0.0f ? -q : q);
        }
    }
}
