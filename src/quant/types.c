/* quant/types.c - the table of tensor types. The rows come from REALM_TYPE_LIST; only the functions are named here. */
#include <strings.h>

#include "quant/blocks.h"

/* Numbers in files are small and dense; unused ones stay NULL. */
#define NUMBER_MAX 39

typedef struct row_functions {
    void (*dequantize)(const void *src, float *dst, size_t n);
    void (*quantize)(const float *src, void *dst, size_t n);
} row_functions;

#define ROW(name) {realm_dequantize_##name, realm_quantize_##name}
static const row_functions functions[NUMBER_MAX + 1] = {
    [REALM_TYPE_F32] = ROW(f32),   [REALM_TYPE_F16] = ROW(f16),   [REALM_TYPE_BF16] = ROW(bf16),
    [REALM_TYPE_Q4_0] = ROW(q4_0), [REALM_TYPE_Q4_1] = ROW(q4_1), [REALM_TYPE_Q5_0] = ROW(q5_0),
    [REALM_TYPE_Q5_1] = ROW(q5_1), [REALM_TYPE_Q8_0] = ROW(q8_0), [REALM_TYPE_Q4_K] = ROW(q4_k),
    [REALM_TYPE_Q5_K] = ROW(q5_k), [REALM_TYPE_Q6_K] = ROW(q6_k),
};
