/* quant/half.c - binary16 and bfloat16, in integer arithmetic.
 *
 * binary16 (IEEE 754-2008, 3.6) has 1 sign, 5 exponent (bias 15) and 10 fraction bits; bfloat16 is the upper half of a
 * binary32. To float both are exact. From float both round to nearest, ties to even, overflow to infinity, and keep a
 * NaN a (quiet) NaN with the upper bits of its payload. Nothing here depends on the rounding mode or on flush-to-zero
 * of the calling thread, so the result is the definition that vectorised conversions are checked against.
 */
#include "quant/blocks.h"

static inline uint32_t bits_of(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static inline float float_of(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline float from_f16(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = (h >> 10) & 0x1fu, fraction = h & 0x3ffu;
    if (exponent == 0x1f) return float_of(sign | 0x7f800000u | fraction << 13);
    if (exponent == 0) {
        if (fraction == 0) return float_of(sign);
        /* A subnormal is fraction * 2^-24: shift the leading one up to the implicit place (bit 10). */
        uint32_t shift = (uint32_t)__builtin_clz(fraction) - 21u;
        return float_of(sign | (113u - shift) << 23 | ((fraction << shift) & 0x3ffu) << 13);
    }
    return float_of(sign | (exponent + 112u) << 23 | fraction << 13);
}

static inline uint16_t to_f16(float f) {
    uint32_t u = bits_of(f), sign = (u >> 16) & 0x8000u, mag = u & 0x7fffffffu;
    if (mag > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | ((mag >> 13) & 0x3ffu));
    if (mag >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* 65520, half way past the largest finite, and above */
    if (mag >= 0x38800000u) {                                  /* 2^-14 and above: normal */
        uint32_t rounded = mag + 0xfffu + ((mag >> 13) & 1u);
        return (uint16_t)(sign | ((rounded - 0x38000000u) >> 13));
    }
    if (mag < 0x33000000u) return (uint16_t)sign; /* under 2^-25, half of the least subnormal */
    uint32_t significand = (mag & 0x7fffffu) | 0x800000u, shift = 126u - (mag >> 23); /* 14..24 */
    uint32_t q = significand >> shift, rest = significand & ((1u << shift) - 1u), half = 1u << (shift - 1u);
    if (rest > half || (rest == half && (q & 1u))) q++;
    return (uint16_t)(sign | q);
}

static inline float from_bf16(uint16_t b) { return float_of((uint32_t)b << 16); }

static inline uint16_t to_bf16(float f) {
    uint32_t u = bits_of(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(u >> 16 | 0x40u);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

float realm_f16_to_f32(uint16_t h) { return from_f16(h); }
uint16_t realm_f32_to_f16(float f) { return to_f16(f); }
float realm_bf16_to_f32(uint16_t b) { return from_bf16(b); }
uint16_t realm_f32_to_bf16(float f) { return to_bf16(f); }

void realm_dequantize_f32(const void *src, float *dst, size_t n) {
    if (n) memcpy(dst, src, n * sizeof *dst);
}

void realm_quantize_f32(const float *src, void *dst, size_t n) {
    if (n) memcpy(dst, src, n * sizeof *src);
}

void realm_dequantize_f16(const void *src, float *dst, size_t n) {
    const uint8_t *p = src;
    for (size_t i = 0; i < n; i++) dst[i] = from_f16(realm_block_u16(p + 2 * i));
}

void realm_quantize_f16(const float *src, void *dst, size_t n) {
    uint8_t *p = dst;
    for (size_t i = 0; i < n; i++) {
        uint16_t h = to_f16(src[i]);
        memcpy(p + 2 * i, &h, 2);
    }
}

void realm_dequantize_bf16(const void *src, float *dst, size_t n) {
    const uint8_t *p = src;
    for (size_t i = 0; i < n; i++) dst[i] = from_bf16(realm_block_u16(p + 2 * i));
}

void realm_quantize_bf16(const float *src, void *dst, size_t n) {
    uint8_t *p = dst;
    for (size_t i = 0; i < n; i++) {
        uint16_t h = to_bf16(src[i]);
        memcpy(p + 2 * i, &h, 2);
    }
}
