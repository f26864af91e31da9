/* compute/cpu/direct.h - the direct ops: what their files share.
 *
 *      direct.c              which op, ops that go row by row, the memory of a slice
 *      direct_product.c      LINEAR and MATMUL
 *      direct_attention.c    ATTENTION
 *
 * Work is counted in float multiply-adds; what else an op does is given in as many as take about the same time. A slice
 * has CPU_SLICE_WORK for each thread of the team, a millisecond or two of a core of 2023.
 */
#ifndef REALM_COMPUTE_CPU_DIRECT_H
#define REALM_COMPUTE_CPU_DIRECT_H

#include "compute/cpu/plan.h"

#define CPU_SLICE_WORK (UINT64_C(1) << 26)
/* Of an operand, what is brought into the kernels' form at a time: packing it is a slice. */
#define CPU_BLOCK_VALUES (UINT64_C(1) << 20)

static inline uint64_t cpu_slice_work(const cpu_backend *b) { return CPU_SLICE_WORK * realm_team_size(b->team); }

/* n / d within [1, most]. */
static inline uint64_t cpu_fit(uint64_t n, uint64_t d, uint64_t most) {
    const uint64_t q = n / REALM_MAX(d, 1u);
    return REALM_MIN(REALM_MAX(q, 1u), most);
}
static inline uint64_t cpu_parts(uint64_t n, uint64_t of) { return (n + of - 1) / of; }

/* Where parts of a mapping lie: adds up first (map NULL), gives pointers once it is there. */
typedef struct cpu_layout {
    char *map;
    size_t at;
    bool overflow;
} cpu_layout;
void *cpu_part(cpu_layout *l, size_t n, size_t size);
/* At least `bytes` at b->direct.map for this slice; what was in it is lost. */
REALM_WARN_UNUSED realm_status cpu_direct_reserve(cpu_backend *b, size_t bytes, realm_error *err);

REALM_WARN_UNUSED realm_status cpu_product_cut(const cpu_backend *b, const realm_direct *op, realm_direct_cut *out,
                                               realm_error *err);
REALM_WARN_UNUSED realm_status cpu_product_slice(cpu_backend *b, const realm_direct *op, uint64_t slice, void *kept,
                                                 realm_error *err);
REALM_WARN_UNUSED realm_status cpu_attend_cut(const cpu_backend *b, const realm_direct *op, realm_direct_cut *out,
                                              realm_error *err);
REALM_WARN_UNUSED realm_status cpu_attend_slice(cpu_backend *b, const realm_direct *op, uint64_t slice, void *kept,
                                                realm_error *err);

#endif
