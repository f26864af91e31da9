/* compute/cpu/pack.h - the panel layouts that the matrix product kernels read.
 *
 * A packed weight is a run of panels; a panel holds 16 neighbouring output rows, all k inputs. Rows behind the last one
 * are zeros. Within a panel every vector of 16 lanes is one value per row, so a kernel never shuffles:
 *
 *   float kinds      elements w[k][16]
 *
 *   quantised kinds  groups of 1, 2 or 8 blocks of 32 inputs, as few as make a multiple of 64 bytes (K types: a
 *                    super-block); what the last group has no blocks for is not read. A kernel that goes through panels
 *                    goes through memory, byte by byte. In a group:
 *     super    K types: half d[16], half dmin[16] (Q6_K: the latter zero)
 *     scales   per block scale_bytes:
 *                Q4_0 Q5_0 Q8_0   half d[16]
 *                Q4_1 Q5_1        half d[16], half m[16]
 *                Q4_K Q5_K        uint8 scale[16], uint8 min[16]
 *                Q6_K             int8 scale[2][16], of the first and the last 16 inputs
 *     quants   per block quant_bytes:
 *                nibbles  uint8[4][16][4]: byte (i, r, j) holds the low 4 bits of row r's codes for inputs 4i + j (low
 *                         nibble) and 16 + 4i + j (high nibble). One 64-byte load i gives two vectors of 16 x 4 codes.
 *                Q5 types + uint8[16][4]: bit i of (r, j) is bit 4 of the code of 4i + j, bit 4 + i that of 16 + 4i + j
 *                Q6_K     + uint8[2][16][4]: bits 2i, 2i + 1 of (h, r, j) are bits 4, 5 of the code of 16h + 4i + j
 *                Q8_0     uint8[8][16][4]: (i, r, j) is the value of input 4i + j, plus 128; no nibbles
 *
 * A code's value is (code - offset) * scale + min, offset 8, 16, 32, 128 for Q4_0, Q5_0, Q6_K, Q8_0, else 0.
 */
#ifndef REALM_COMPUTE_CPU_PACK_H
#define REALM_COMPUTE_CPU_PACK_H

#include "compute/cpu/cpu.h"
#include "compute/cpu/linear_kernels.h"

typedef struct realm_pack_layout {
    realm_pack_kind kind;
    realm_type type;
    uint32_t block_len;     /* k must be a multiple of it */
    uint32_t element_bytes; /* float kinds; 0 for quantised ones, and then: */
    uint32_t quant_bytes, scale_bytes, super_bytes, group;
} realm_pack_layout;

struct realm_packed {
    const realm_pack_layout *layout;
    uint64_t rows;
    uint32_t k, n_panels;
    size_t panel_bytes;
    size_t bytes;     /* n_panels * panel_bytes */
    uint8_t *panels;  /* page-aligned; NULL: a streamed weight that is not loaded */
    bool owned;       /* the panels: given back on closing */
    realm_slab *slab; /* that owned ones came from; NULL: a mapping of their own */
};

/* NULL for a type that has no product kernels. Static storage. */
const realm_pack_layout *realm_pack_layout_of(realm_type type);
static inline bool realm_pack_is_float(const realm_pack_layout *l) { return l->element_bytes != 0; }

/* Where the parts of block b are in a panel of a quantised kind. */
typedef struct realm_pack_block {
    size_t quants, scales, super;
} realm_pack_block;
static inline size_t realm_pack_group_bytes(const realm_pack_layout *l) {
    return (size_t)l->group * (l->quant_bytes + l->scale_bytes) + l->super_bytes;
}
static inline realm_pack_block realm_pack_block_at(const realm_pack_layout *l, uint32_t b) {
    const size_t super = b / l->group * realm_pack_group_bytes(l), in = b % l->group;
    const size_t scales = super + l->super_bytes, quants = scales + (size_t)l->group * l->scale_bytes;
    return (realm_pack_block){quants + in * l->quant_bytes, scales + in * l->scale_bytes, super};
}

#endif
