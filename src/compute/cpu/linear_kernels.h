/* compute/cpu/linear_kernels.h - the kernels of packed matrix products: what an instruction set has to provide.
 *
 * A product is cut into *panels* (16 output rows, interleaved; pack.h has the layouts) and *column tiles* (1 to
 * REALM_LINEAR_MAX_COLS rows of the batch, interleaved too, so that every operand of a kernel stands at a constant
 * distance from one pointer). One kernel call multiplies a run of neighbouring panels with one column tile and leaves
 * the plain sums in a small private buffer; epilogues (bias, residual, gate) are applied there by linear.c.
 *
 * Column tile for quantised weights: for each block of 32 inputs, with C columns,
 *
 *      int8_t  q[C][32]     activations, -127..127
 *      float   d[C]         scale: amax / 127
 *      float   dsum[C]      d * (sum of q): what a weight's minimum is multiplied with
 *      int32_t neg[3][C]    minus the sum of q over all 32, over the first 16, over the last 16
 *
 * that is 52 bytes per column and block. For float weights: float x[k][C].
 *
 * The definition (ref/linear.c), per output element, blocks in increasing order, f = 0 before the first:
 *
 *      isum  = sum over the block of code * q, minus offset * sum of q     (exact in int32; Q6_K: times the 8-bit
 * scales) f     = fma((float)isum, dw * d, f) f     = fma(mw, dsum, f) (types with minimums only)
 *
 * where dw and mw are the weight's float scale and minimum of the block (for K types the exact products
 * d * scale and -(dmin * min)). Float weights: f = fma(w[k], x[k], f), k increasing. So every level gives the same bits
 * for any number of columns.
 */
#ifndef REALM_COMPUTE_CPU_LINEAR_KERNELS_H
#define REALM_COMPUTE_CPU_LINEAR_KERNELS_H

#include "base/base.h"

#define REALM_LINEAR_MAX_COLS 8u
#define REALM_LINEAR_BLOCK 32u
#define REALM_LINEAR_COL_BYTES 52u /* of one column and one block of a quantised column tile */

/* How the panels of a weight are laid out: one kind per supported tensor type. */
typedef enum realm_pack_kind {
    REALM_PACK_F32,
    REALM_PACK_F16,
    REALM_PACK_BF16,
    REALM_PACK_Q4_0,
    REALM_PACK_Q4_1,
    REALM_PACK_Q5_0,
    REALM_PACK_Q5_1,
    REALM_PACK_Q8_0,
    REALM_PACK_Q4_K,
    REALM_PACK_Q5_K,
    REALM_PACK_Q6_K,
    REALM_PACK_KINDS
} realm_pack_kind;

/* out[c * out_stride + 16 * p + r] = sum over the inputs of panel p's row r times column c, for p < n_panels and
 * c < n_cols. `panels`: 64-byte aligned, panel_bytes apart. k: inputs, a multiple of 32 for quantised kinds. `once`:
 * the caller will not want these weights again soon, so they need not be kept in a cache. What is behind the last panel
 * is asked for at most by prefetch. */
typedef void (*realm_linear_product)(const uint8_t *panels, size_t panel_bytes, uint32_t n_panels, uint32_t k,
                                     const void *tile, uint32_t n_cols, bool once, float *out, size_t out_stride);

typedef struct realm_linear_kernels {
    /* Quantises x[k] (k a multiple of 32) into column `col` of a tile of n_cols columns. A block whose largest
     * magnitude is below 2^-100 becomes zeros; one that holds an infinity or a NaN gets scale NaN, so that the row's
     * results are NaN and not a plausible number. */
    void (*quantize_column)(const float *x, uint32_t k, void *tile, uint32_t col, uint32_t n_cols);
    /* y[i] = acc[i] (+ bias[i] if bias) for i < n; with `add`: y[i] += that. */
    void (*store_row)(float *y, const float *acc, const float *bias, uint32_t n, bool add);
    /* [kind][n_cols - 1] */
    realm_linear_product product[REALM_PACK_KINDS][REALM_LINEAR_MAX_COLS];
} realm_linear_kernels;

/* ref fills every entry; the others overwrite what they have, in this order, on a machine that has them. */
void realm_linear_kernels_init_ref(realm_linear_kernels *k);
#if defined(__x86_64__)
void realm_linear_kernels_init_avx2(realm_linear_kernels *k);
void realm_linear_kernels_init_avx512(realm_linear_kernels *k);
void realm_linear_kernels_init_vnni(realm_linear_kernels *k);
#endif

#endif
