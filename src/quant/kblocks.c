/* quant/kblocks.c - the formats with 256 values a block: Q4_K, Q5_K, Q6_K.
 *
 * A block is cut into sub-blocks whose scales are themselves small integers under one binary16 scale. Bytes of a block
 * (the ggml library's block layouts):
 *
 *     Q4_K   0 d   2 dmin   4 scales[12]   16 qs[128]                 8 sub-blocks of 32
 *     Q5_K   0 d   2 dmin   4 scales[12]   16 qh[32]   48 qs[128]     8 sub-blocks of 32
 *     Q6_K   0 ql[128]   128 qh[64]   192 scales[16], signed   208 d  16 sub-blocks of 16
 *
 * Q4_K and Q5_K mean x = (d * s) * q - (dmin * m) with six-bit s and m of the sub-block. The 16 six-bit numbers fill
 * the 12 bytes like this (A: sub-blocks 0..3, B: 4..7, low four and high two bits apart):
 *
 *     bytes 0..3    s[A] in bits 0..5, high two bits of s[B] in bits 6..7
 *     bytes 4..7    m[A] in bits 0..5, high two bits of m[B] in bits 6..7
 *     bytes 8..11   low four bits of s[B] in bits 0..3, those of m[B] in bits 4..7
 *
 * In qs, 32 bytes hold two neighbouring sub-blocks: low nibbles the first, high nibbles the second. In Q5_K bit k of
 * qh[l] is the fifth bit of value l of sub-block k.
 *
 * Q6_K means x = (d * s) * (q - 32). Each half of 128 values has 64 bytes of ql and 32 of qh; of its four runs of 32
 * values, runs 0 and 1 are the low nibbles of ql[0..31] and ql[32..63], runs 2 and 3 their high nibbles; bits 2r, 2r+1
 * of qh[l] are the two high bits of value l of run r.
 *
 * The quantisers choose each sub-block's scale by least squares over a few candidates, weighting large values more, as
 * the reference does in kind; they are not meant to give its exact bytes.
 */
#include <math.h>

#include "quant/blocks.h"

#define BLOCK 256
#define SUBS 8   /* sub-blocks of Q4_K and Q5_K */
#define SUB 32   /* values in each */
#define SUBS6 16 /* of Q6_K */
#define SUB6 16

static void unpack_scales(const uint8_t *p, uint8_t s[SUBS], uint8_t m[SUBS]) {
    for (int j = 0; j < 4; j++) {
        s[j] = p[j] & 63;
        m[j] = p[j + 4] & 63;
        s[j + 4] = (uint8_t)((p[j + 8] & 15) | (p[j] >> 6) << 4);
        m[j + 4] = (uint8_t)((p[j + 8] >> 4) | (p[j + 4] >> 6) << 4);
    }
}

static void pack_scales(uint8_t *p, const uint8_t s[SUBS], const uint8_t m[SUBS]) {
    for (int j = 0; j < 4; j++) {
        p[j] = (uint8_t)(s[j] | (s[j + 4] >> 4) << 6);
        p[j + 4] = (uint8_t)(m[j] | (m[j + 4] >> 4) << 6);
        p[j + 8] = (uint8_t)((s[j + 4] & 15) | (m[j + 4] & 15) << 4);
    }
}

/* Q4_K where qh is NULL, else Q5_K. */
static void dequantize_spanned(const uint8_t *b, const uint8_t *qh, const uint8_t *qs, float *dst) {
    uint8_t s[SUBS], m[SUBS];
    float d = realm_block_f16(b), dmin = realm_block_f16(b + 2);
    unpack_scales(b + 4, s, m);
    for (int k = 0; k < SUBS; k++) {
        float scale = d * (float)s[k], min = dmin * (float)m[k];
        const uint8_t *q = qs + SUB * (k / 2);
        for (int l = 0; l < SUB; l++) {
            int v = k % 2 ? q[l] >> 4 : q[l] & 15;
            if (qh) v |= ((qh[l] >> k) & 1) << 4;
            dst[SUB * k + l] = scale * (float)v - min;
        }
    }
}

void realm_dequantize_q4_k(const void *src, float *dst, size_t n) {
    const uint8_t *b = src;
    for (size_t i = 0; i + BLOCK <= n; i += BLOCK, b += 144) dequantize_spanned(b, NULL, b + 16, dst + i);
}

void realm_dequantize_q5_k(const void *src, float *dst, size_t n) {
    const uint8_t *b = src;
    for (size_t i = 0; i + BLOCK <= n; i += BLOCK, b += 176) dequantize_spanned(b, b + 16, b + 48, dst + i);
}

void realm_dequantize_q6_k(const void *src, float *dst, size_t n) {
    const uint8_t *b = src;
    for (size_t i = 0; i + BLOCK <= n; i += BLOCK, b += 210) {
        float d = realm_block_f16(b + 208);
        for (size_t half = 0; half < 2; half++) {
            const uint8_t *ql = b + 64 * half, *qh = b + 128 + 32 * half, *s = b + 192 + 8 * half;
            for (int run = 0; run < 4; run++) {
                float *out = dst + i + 128 * half + 32 * (size_t)run;
                const uint8_t *low = ql + 32 * (run & 1);
                float scale[2] = {d * (float)(int8_t)s[2 * run], d * (float)(int8_t)s[2 * run + 1]};
                for (int l = 0; l < 32; l++) {
                    int q = (run < 2 ? low[l] & 15 : low[l] >> 4) | ((qh[l] >> (2 * run)) & 3) << 4;
                    out[l] = scale[l / SUB6] * (float)(q - 32);
                }
            }
        }
    }
}

static inline float finite_or_zero(float v) { return isfinite(v) ? v : 0.0f; }

/* Scale and minimum (both >= 0) of x = scale * q - min with q in 0..top, for 32 values.
 *
 * A candidate spreads the range over top - 1 .. top + 1 steps; the q that it gives fix scale and min by weighted least
 * squares (two normal equations), and the candidate with the least weighted error wins. */
static void fit_spanned(const float *x, int top, float *scale, float *min) {
    float w[SUB], lo = 0.0f, hi = x[0], sum_w = 0, sum_wx = 0, energy = 0;
    for (int l = 0; l < SUB; l++) energy += x[l] * x[l];
    float rms = sqrtf(energy / SUB);
    for (int l = 0; l < SUB; l++) {
        w[l] = rms + fabsf(x[l]);
        sum_w += w[l];
        sum_wx += w[l] * x[l];
        if (x[l] < lo) lo = x[l];
        if (x[l] > hi) hi = x[l];
    }
    *scale = 0.0f;
    *min = -lo;
    if (!(hi > lo) || !isfinite(hi - lo)) return;
    float best = INFINITY;
    for (int step = -10; step <= 10; step++) {
        float id = ((float)top + 0.1f * (float)step) / (hi - lo), q[SUB];
        float wq = 0, wqq = 0, wqx = 0, error = 0;
        for (int l = 0; l < SUB; l++) {
            q[l] = realm_block_clamp((x[l] - lo) * id + 0.5f, top);
            wq += w[l] * q[l];
            wqq += w[l] * q[l] * q[l];
            wqx += w[l] * q[l] * x[l];
        }
        float det = sum_w * wqq - wq * wq;
        if (!(det > 0.0f)) continue;
        float s = (sum_w * wqx - sum_wx * wq) / det, m = (wq * wqx - wqq * sum_wx) / det;
        if (m < 0.0f) { /* the format cannot: fit the scale alone */
            m = 0.0f;
            s = wqx / wqq;
        }
        for (int l = 0; l < SUB; l++) {
            float e = s * q[l] - m - x[l];
            error += w[l] * e * e;
        }
        if (error < best && s > 0.0f) {
            best = error;
            *scale = s;
            *min = m;
        }
    }
}

/* One block of Q4_K (top 15) or Q5_K (top 31): d, dmin and scales into b[0..15], q of all values. */
static void quantize_spanned(const float *x, int top, uint8_t *b, uint8_t q[BLOCK]) {
    float scale[SUBS], min[SUBS], scale_max = 0, min_max = 0;
    for (int k = 0; k < SUBS; k++) {
        fit_spanned(x + SUB * k, top, &scale[k], &min[k]);
        if (scale[k] > scale_max) scale_max = scale[k];
        if (min[k] > min_max) min_max = min[k];
    }
    realm_block_put_f16(b, scale_max / 63.0f);
    realm_block_put_f16(b + 2, min_max / 63.0f);
    uint8_t s[SUBS], m[SUBS];
    for (int k = 0; k < SUBS; k++) {
        s[k] = scale_max > 0 ? realm_block_clamp(63.0f * scale[k] / scale_max + 0.5f, 63) : 0;
        m[k] = min_max > 0 ? realm_block_clamp(63.0f * min[k] / min_max + 0.5f, 63) : 0;
    }
    pack_scales(b + 4, s, m);
    /* Round against the scales as they will be read back. */
    float d = realm_block_f16(b), dmin = realm_block_f16(b + 2);
    for (int k = 0; k < SUBS; k++) {
        float step = d * (float)s[k], low = dmin * (float)m[k];
        for (int l = 0; l < SUB; l++)
            q[SUB * k + l] = step > 0 ? realm_block_clamp((x[SUB * k + l] + low) / step + 0.5f, top) : 0;
    }
}

static void pack_nibbles(const uint8_t q[BLOCK], uint8_t *qs) {
    for (int k = 0; k < SUBS; k += 2)
        for (int l = 0; l < SUB; l++)
            qs[SUB * (k / 2) + l] = (uint8_t)((q[SUB * k + l] & 15) | (q[SUB * (k + 1) + l] & 15) << 4);
}

void realm_quantize_q4_k(const float *src, void *dst, size_t n) {
    uint8_t *b = dst, q[BLOCK];
    for (size_t i = 0; i + BLOCK <= n; i += BLOCK, b += 144) {
        quantize_spanned(src + i, 15, b, q);
        pack_nibbles(q, b + 16);
    }
}

void realm_quantize_q5_k(const float *src, void *dst, size_t n) {
    uint8_t *b = dst, q[BLOCK];
    for (size_t i = 0; i + BLOCK <= n; i += BLOCK, b += 176) {
        quantize_spanned(src + i, 31, b, q);
        pack_nibbles(q, b + 48);
        memset(b + 16, 0, SUB);
        for (int j = 0; j < BLOCK; j++) b[16 + j % SUB] = (uint8_t)(b[16 + j % SUB] | (q[j] >> 4) << (j / SUB));
    }
}

/* Nearest integer in -top-1 .. top (of -32..31: top 31); 0 for NaN. */
static int nearest(float v, int top) {
    int q = realm_block_clamp(fabsf(v) + 0.5f, v < 0.0f ? top + 1 : top);
    return v < 0.0f ? -q : q;
}

/* Scale (of either sign) of x = scale * q, q in -32..31, for 16 values: candidates put the value of largest magnitude
 * near -32; for given q the weighted least squares scale is sum(wxq) / sum(wqq), and the best candidate has the largest
 * sum(wxq)^2 / sum(wqq). Weights x^2. */
static float fit_symmetric(const float *x) {
    float max = 0.0f, scale = 0.0f, best = 0.0f;
    for (int l = 0; l < SUB6; l++)
        if (fabsf(x[l]) > fabsf(max)) max = x[l];
    if (max == 0.0f || !isfinite(max)) return 0.0f;
    scale = max / -32.0f;
    for (int step = -9; step <= 9; step++) {
        float id = -(32.0f + 0.1f * (float)step) / max, wqq = 0, wxq = 0;
        for (int l = 0; l < SUB6; l++) {
            float q = (float)nearest(x[l] * id, 31), w = x[l] * x[l] / (max * max);
            wqq += w * q * q;
            wxq += w * x[l] * q;
        }
        if (wqq > 0.0f && wxq * wxq > best * wqq) {
            best = wxq * wxq / wqq;
            scale = wxq / wqq;
        }
    }
    return scale;
}

static void quantize_q6_block(const float *x, uint8_t *b) {
    float scale[SUBS6], max = 0.0f;
    for (int k = 0; k < SUBS6; k++) {
        scale[k] = finite_or_zero(fit_symmetric(x + SUB6 * k));
        if (fabsf(scale[k]) > fabsf(max)) max = scale[k];
    }
    memset(b, 0, 210);
    realm_block_put_f16(b + 208, max / -128.0f);
    float d = realm_block_f16(b + 208);
    for (int k = 0; k < SUBS6; k++) {
        float s = d != 0.0f ? scale[k] / d : 0.0f;
        b[192 + k] = (uint8_t)(int8_t)nearest(s, 127);
    }
    for (int j = 0; j < BLOCK; j++) {
        int half = j / 128, run = j % 128 / 32, l = j % 32;
        float step = d * (float)(int8_t)b[192 + j / SUB6];
        unsigned q = (unsigned)((step != 0.0f ? nearest(x[j] / step, 31) : 0) + 32);
        uint8_t *low = b + 64 * half + 32 * (run & 1) + l, *high = b + 128 + 32 * half + l;
        *low = (uint8_t)(*low | (q & 15u) << (run < 2 ? 0 : 4));
        *high = (uint8_t)(*high | (q >> 4) << (2 * run));
    }
}

void realm_quantize_q6_k(const float *src, void *dst, size_t n) {
    uint8_t *b = dst;
    for (size_t i = 0; i + BLOCK <= n; i += BLOCK, b += 210) quantize_q6_block(src + i, b);
}
