/* compute/cpu/x86/panel.h - the panel layouts of pack.h as constants of the kernels' templates, and how panels are
 * read.
 *
 * Few columns wait for memory alone, so panels are asked for ahead of their use. Weights that a step reads once go past
 * the caches: the hint keeps them out of the second and third level. A model that streams through those in every step
 * throws out all that the next step, the engine and the tenants' programs would have found there. Such lines can only
 * wait in the first level, so they are asked for AHEAD bytes before and in the order of memory, which the processor's
 * own prefetchers then follow too: half the bandwidth is lost where several panels are read side by side like this.
 * Weights that meet several column tiles, or several panels at once, go into the second level, a panel ahead. What is
 * behind the last panel is asked for and not read.
 */
#ifndef REALM_COMPUTE_CPU_X86_PANEL_H
#define REALM_COMPUTE_CPU_X86_PANEL_H

#include <immintrin.h>

#include "compute/cpu/linear_kernels.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

#define PANEL_ROWS 16u
#define HAS_MIN(kind) \
    ((kind) == REALM_PACK_Q4_1 || (kind) == REALM_PACK_Q5_1 || (kind) == REALM_PACK_Q4_K || (kind) == REALM_PACK_Q5_K)
#define HAS_FIFTH(kind) ((kind) == REALM_PACK_Q5_0 || (kind) == REALM_PACK_Q5_1 || (kind) == REALM_PACK_Q5_K)
#define IS_K(kind) ((kind) == REALM_PACK_Q4_K || (kind) == REALM_PACK_Q5_K || (kind) == REALM_PACK_Q6_K)
#define QUANT_BYTES(kind) \
    ((kind) == REALM_PACK_Q8_0 ? 512u : (kind) == REALM_PACK_Q6_K ? 384u : HAS_FIFTH(kind) ? 320u : 256u)
#define SCALE_BYTES(kind) ((kind) == REALM_PACK_Q4_1 || (kind) == REALM_PACK_Q5_1 ? 64u : 32u)
/* Blocks of a group, its bytes, where its scales and quants begin, and how far it is from the end of either to that of
 * the next group's. */
#define GROUP(kind) (IS_K(kind) ? 8u : SCALE_BYTES(kind) == 64 ? 1u : 2u)
#define SCALES_AT(kind) (IS_K(kind) ? 64u : 0u)
#define QUANTS_AT(kind) (SCALES_AT(kind) + GROUP(kind) * SCALE_BYTES(kind))
#define GROUP_BYTES(kind) (QUANTS_AT(kind) + GROUP(kind) * QUANT_BYTES(kind))
#define GAP(kind, part_bytes) (GROUP_BYTES(kind) - GROUP(kind) * (part_bytes))

#define AHEAD ((size_t)3072)
INLINE void prefetch(const uint8_t *p, unsigned n, bool once) {
    if (once) {
        UNROLL for (unsigned i = 0; i < n; i += 64) _mm_prefetch((const char *)p + i, _MM_HINT_NTA);
    } else {
        UNROLL for (unsigned i = 0; i < n; i += 64) _mm_prefetch((const char *)p + i, _MM_HINT_T1);
    }
}

/* In the order of memory, wherever the block's own bytes are: returns what comes next. */
INLINE const uint8_t *prefetch_block(realm_pack_kind kind, const unsigned R, size_t panel_bytes, uint32_t b,
                                     const uint8_t *ahead, bool once) {
    UNROLL for (unsigned r = 0; r < R; r++) prefetch(ahead + r * panel_bytes, QUANT_BYTES(kind), once);
    ahead += QUANT_BYTES(kind);
    if (SCALE_BYTES(kind) == 64 || b % 2 == 0) {
        UNROLL for (unsigned r = 0; r < R; r++) prefetch(ahead + r * panel_bytes, 64, once);
        ahead += 64;
    }
    if (IS_K(kind) && b % 8 == 0) {
        UNROLL for (unsigned r = 0; r < R; r++) prefetch(ahead + r * panel_bytes, 64, once);
        ahead += 64;
    }
    return ahead;
}

#endif
