/* quant/types.c - the table of tensor types.
 *
 * Numbers, names and sizes come from REALM_TYPE_LIST; only which row functions exist is said here. Numbers in files are
 * small and dense, so the number is the index; a slot without a name is no type (gaps, and numbers that were withdrawn
 * before the format was fixed).
 */
#include <strings.h>

#include "quant/blocks.h"

/* The row functions of a type, dequantize and quantize. */
#define FN_F32 realm_dequantize_f32, realm_quantize_f32
#define FN_F16 realm_dequantize_f16, realm_quantize_f16
#define FN_BF16 realm_dequantize_bf16, realm_quantize_bf16
#define FN_Q4_0 realm_dequantize_q4_0, realm_quantize_q4_0
#define FN_Q4_1 realm_dequantize_q4_1, realm_quantize_q4_1
#define FN_Q5_0 realm_dequantize_q5_0, realm_quantize_q5_0
#define FN_Q5_1 realm_dequantize_q5_1, realm_quantize_q5_1
#define FN_Q8_0 realm_dequantize_q8_0, realm_quantize_q8_0
#define FN_Q4_K realm_dequantize_q4_k, realm_quantize_q4_k
#define FN_Q5_K realm_dequantize_q5_k, realm_quantize_q5_k
#define FN_Q6_K realm_dequantize_q6_k, realm_quantize_q6_k
/* Known by name and size (a file that holds them can be opened and described), no arithmetic. */
#define FN_Q8_1 NULL, NULL
#define FN_Q2_K NULL, NULL
#define FN_Q3_K NULL, NULL
#define FN_Q8_K NULL, NULL
#define FN_IQ2_XXS NULL, NULL
#define FN_IQ2_XS NULL, NULL
#define FN_IQ3_XXS NULL, NULL
#define FN_IQ1_S NULL, NULL
#define FN_IQ4_NL NULL, NULL
#define FN_IQ3_S NULL, NULL
#define FN_IQ2_S NULL, NULL
#define FN_IQ4_XS NULL, NULL
#define FN_I8 NULL, NULL
#define FN_I16 NULL, NULL
#define FN_I32 NULL, NULL
#define FN_I64 NULL, NULL
#define FN_F64 NULL, NULL
#define FN_IQ1_M NULL, NULL
#define FN_TQ1_0 NULL, NULL
#define FN_TQ2_0 NULL, NULL
#define FN_MXFP4 NULL, NULL
#define FN_NVFP4 NULL, NULL
#define FN_Q1_0 NULL, NULL
#define FN_Q2_0 NULL, NULL

static const realm_type_info table[] = {
#define TYPE_ROW(type, number, len, bytes) [number] = {REALM_TYPE_##type, #type, len, bytes, FN_##type},
    REALM_TYPE_LIST(TYPE_ROW)
#undef TYPE_ROW
};

const realm_type_info *realm_type_get(uint32_t number) {
    return number < REALM_ARRAY_LEN(table) && table[number].name ? &table[number] : NULL;
}

const realm_type_info *realm_type_find(const char *name) {
    for (size_t i = 0; i < REALM_ARRAY_LEN(table); i++)
        if (table[i].name && strcasecmp(table[i].name, name) == 0) return &table[i];
    return NULL;
}

bool realm_type_row_bytes(const realm_type_info *info, uint64_t n, uint64_t *bytes) {
    return n % info->block_len == 0 && realm_mul_u64(n / info->block_len, info->block_bytes, bytes);
}
