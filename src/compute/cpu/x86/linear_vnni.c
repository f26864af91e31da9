/* compute/cpu/x86/linear_vnni.c - quantised matrix products for AVX-512 with VNNI; the template is linear_512.h. Float
 * kinds, which VNNI does not help, stay those of linear_avx512.c. */
#define REALM_VNNI
#include "compute/cpu/x86/linear_512.h"

void realm_linear_kernels_init_vnni(realm_linear_kernels *k) {
    static const realm_linear_product products[REALM_PACK_KINDS][REALM_LINEAR_MAX_COLS] = {
        [REALM_PACK_Q4_0] = ROW_OF(q4_0), [REALM_PACK_Q4_1] = ROW_OF(q4_1), [REALM_PACK_Q5_0] = ROW_OF(q5_0),
        [REALM_PACK_Q5_1] = ROW_OF(q5_1), [REALM_PACK_Q8_0] = ROW_OF(q8_0), [REALM_PACK_Q4_K] = ROW_OF(q4_k),
        [REALM_PACK_Q5_K] = ROW_OF(q5_k), [REALM_PACK_Q6_K] = ROW_OF(q6_k),
    };
    for (unsigned kind = REALM_PACK_Q4_0; kind < REALM_PACK_KINDS; kind++)
        for (unsigned c = 0; c < REALM_LINEAR_MAX_COLS; c++) k->product[kind][c] = products[kind][c];
}
