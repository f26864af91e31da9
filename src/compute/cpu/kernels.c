/* compute/cpu/kernels.c - fills the table: the scalar definitions first, then each instruction set in order. */
#include "compute/cpu/kernels.h"

void realm_cpu_kernels_init(realm_cpu_kernels *k, realm_cpu_level level) {
    realm_linear_kernels_init_ref(&k->linear);
    realm_row_kernels_init_ref(&k->row);
    realm_attention_kernels_init_ref(&k->attention);
#if defined(__x86_64__)
    if (level >= REALM_CPU_AVX2) {
        realm_linear_kernels_init_avx2(&k->linear);
        realm_row_kernels_init_avx2(&k->row);
        realm_attention_kernels_init_avx2(&k->attention);
    }
    if (level >= REALM_CPU_AVX512) {
        realm_linear_kernels_init_avx512(&k->linear);
        realm_row_kernels_init_avx512(&k->row);
        realm_attention_kernels_init_avx512(&k->attention);
    }
    if (level >= REALM_CPU_VNNI) realm_linear_kernels_init_vnni(&k->linear);
#else
    (void)level;
#endif
}
