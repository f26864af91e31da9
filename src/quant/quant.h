/* quant/quant.h - the tensor types of a model file: one table row per type, block layouts, scalar dequantisation.
 *
 * Types and their numbers are those of the ggml library's file format (GGUF specification, "ggml_type"). A quantised
 * row is a sequence of blocks of `block_len` values in `block_bytes` bytes; a row's length is a multiple of block_len.
 * Dequantisation here is the definition that every kernel is checked against. All functions: any thread.
 */
#ifndef REALM_QUANT_QUANT_H
#define REALM_QUANT_QUANT_H

#include "base/base.h"

/* X(NAME, number in the file, values per block, bytes per block) */
#define REALM_TYPE_LIST(X)  \
    X(F32, 0, 1, 4)         \
    X(F16, 1, 1, 2)         \
    X(Q4_0, 2, 32, 18)      \
    X(Q4_1, 3, 32, 20)      \
    X(Q5_0, 6, 32, 22)      \
    X(Q5_1, 7, 32, 24)      \
    X(Q8_0, 8, 32, 34)      \
    X(Q8_1, 9, 32, 36)      \
    X(Q2_K, 10, 256, 84)    \
    X(Q3_K, 11, 256, 110)   \
    X(Q4_K, 12, 256, 144)   \
    X(Q5_K, 13, 256, 176)   \
    X(Q6_K, 14, 256, 210)   \
    X(Q8_K, 15, 256, 292)   \
    X(IQ2_XXS, 16, 256, 66) \
    X(IQ2_XS, 17, 256, 74)  \
    X(IQ3_XXS, 18, 256, 98) \
    X(IQ1_S, 19, 256, 50)   \
    X(IQ4_NL, 20, 32, 18)   \
    X(IQ3_S, 21, 256, 110)  \
    X(IQ2_S, 22, 256, 82)   \
    X(IQ4_XS, 23, 256, 136) \
    X(I8, 24, 1, 1)         \
    X(I16, 25, 1, 2)        \
    X(I32, 26, 1, 4)        \
    X(I64, 27, 1, 8)        \
    X(F64, 28, 1, 8)        \
    X(IQ1_M, 29, 256, 56)   \
    X(BF16, 30, 1, 2)       \
    X(TQ1_0, 34, 256, 54)   \
    X(TQ2_0, 35, 256, 66)   \
    X(MXFP4, 39, 32, 17)    \
    X(NVFP4, 40, 64, 36)    \
    X(Q1_0, 41, 128, 18)    \
    X(Q2_0, 42, 64, 18)

typedef enum realm_type {
#define REALM_TYPE_ENUM(name, number, len, bytes) REALM_TYPE_##name = number,
    REALM_TYPE_LIST(REALM_TYPE_ENUM)
#undef REALM_TYPE_ENUM
} realm_type;

typedef struct realm_type_info {
    realm_type type;
    const char *name;     /* "Q4_K" */
    uint32_t block_len;   /* values per block */
    uint32_t block_bytes; /* bytes per block */
    /* n values (a multiple of block_len) from `src` (no alignment needed) into dst[n]; NULL where Realm cannot
     * dequantise the type yet. */
    void (*dequantize)(const void *src, float *dst, size_t n);
    /* The reverse, for tests, tools and writers; rounds to nearest as the format's reference quantiser; NULL where
     * absent. */
    void (*quantize)(const float *src, void *dst, size_t n);
} realm_type_info;

/* NULL for a number that is no known type. Static storage. */
const realm_type_info *realm_type_get(uint32_t number);
/* By name, upper or lower case; NULL when unknown. */
const realm_type_info *realm_type_find(const char *name);
/* Bytes of a row of n values; false when n is no multiple of block_len or the size overflows. */
bool realm_type_row_bytes(const realm_type_info *info, uint64_t n, uint64_t *bytes);

/* IEEE 754 binary16 and bfloat16, exact to float; from float round to nearest even. */
float realm_f16_to_f32(uint16_t h);
uint16_t realm_f32_to_f16(float f);
float realm_bf16_to_f32(uint16_t b);
uint16_t realm_f32_to_bf16(float f);

#endif
