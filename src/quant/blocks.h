/* quant/blocks.h - inside the folder: field access in block bytes, and the row functions that the table points at.
 *
 * Blocks are read as bytes, not as structs: a row in a mapping needs no alignment, and the byte offsets in the comments
 * of legacy.c and kblocks.c are then the whole definition of a format. Files are little-endian; so must the host be.
 */
#ifndef REALM_QUANT_BLOCKS_H
#define REALM_QUANT_BLOCKS_H

#include <string.h>

#include "quant/quant.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tensor data is little-endian and used in place");

static inline uint16_t realm_block_u16(const uint8_t *p) { return (uint16_t)(p[0] | (unsigned)p[1] << 8); }
static inline float realm_block_f16(const uint8_t *p) { return realm_f16_to_f32(realm_block_u16(p)); }
static inline void realm_block_put_f16(uint8_t *p, float v) {
    uint16_t h = realm_f32_to_f16(v);
    p[0] = (uint8_t)h;
    p[1] = (uint8_t)(h >> 8);
}
/* v cut towards zero and held inside [0, max]; NaN is 0. A bare cast of a value out of range is undefined. */
static inline uint8_t realm_block_clamp(float v, int max) {
    if (!(v > 0.0f)) return 0;
    return v >= (float)max ? (uint8_t)max : (uint8_t)v;
}

#define REALM_ROW_FUNCTIONS(name)                                        \
    void realm_dequantize_##name(const void *src, float *dst, size_t n); \
    void realm_quantize_##name(const float *src, void *dst, size_t n);

REALM_ROW_FUNCTIONS(f32)
REALM_ROW_FUNCTIONS(f16)
REALM_ROW_FUNCTIONS(bf16)
REALM_ROW_FUNCTIONS(q4_0)
REALM_ROW_FUNCTIONS(q4_1)
REALM_ROW_FUNCTIONS(q5_0)
REALM_ROW_FUNCTIONS(q5_1)
REALM_ROW_FUNCTIONS(q8_0)
REALM_ROW_FUNCTIONS(q4_k)
REALM_ROW_FUNCTIONS(q5_k)
REALM_ROW_FUNCTIONS(q6_k)
#undef REALM_ROW_FUNCTIONS

#endif
