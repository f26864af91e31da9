/* compute/cpu/direct_product.c - products of host rows, in slices: LINEAR with a weight's panels, MATMUL with a float
 * matrix that is packed for it.
 *
 *              k                      A block is some panels of 16 outputs, of MATMUL's B also REALM_DIRECT_SUM inputs
 *          +-------+                  at most. For each block in turn:
 *      x   |  r0   |
 *      (m) |  r1   |   n   B(n, k)      slice: pack the block into `kept` (MATMUL)
 *          |  ...  |   +---+---+        slice: y[r0] = x[r0] * block        (+= from its second run of inputs on)
 *          +-------+   | b0| b1|        slice: y[r1] = x[r1] * block
 *                      +---+---+        ...
 *                      | b2| b3|
 *                      +---+---+      So each part of B is packed once for all rows, whatever B's size in the same few
 *                                     MiB, which are still in a cache when the rows come by.
 *
 * The products themselves are linear.c over a weight that is the block.
 */
#include "compute/cpu/direct.h"
#include "compute/cpu/pack.h"

#define QUANT_RATIO 4u   /* quantised multiply-adds in the time of one of floats */
#define PREPARE_WORK 96u /* of one value of x: quantised, brought into tiles */
#define REUSE_ROWS 32u   /* that share a block of a weight, where there are as many */
#define TILE_ROWS REALM_LINEAR_MAX_COLS

typedef struct product_cut {
    uint64_t n, k;
    bool packs;
    uint32_t run, n_runs; /* inputs of a block, runs of them */
    uint32_t n_panels;    /* of a block */
    uint64_t n_blocks;    /* along the outputs */
    uint64_t rows, n_row_slices;
    uint64_t block_slices; /* of one block and run */
} product_cut;

/* Panels of a block, `wanted` at most: all, or pairs, which is how kernels take them. */
static uint32_t panels_of(uint64_t wanted, uint64_t all) {
    return (uint32_t)(wanted < all && wanted > 1 ? wanted & ~UINT64_C(1) : wanted);
}

static product_cut cut_of(const cpu_backend *b, const realm_direct *op) {
    product_cut c = {.n = op->cols, .packs = op->kind == REALM_DIRECT_MATMUL};
    c.k = c.packs ? op->u.matmul.k : op->u.linear->cols;
    const uint64_t all = cpu_parts(c.n, REALM_PANEL_ROWS),
                   ratio = !c.packs && op->u.linear->type->block_len > 1 ? QUANT_RATIO : 1;
    const uint64_t work = cpu_slice_work(b) * ratio;
    c.run = (uint32_t)(c.packs ? REALM_MIN(c.k, REALM_DIRECT_SUM) : c.k);
    c.n_runs = (uint32_t)cpu_parts(c.k, c.run);
    const uint64_t panel = (uint64_t)c.run * REALM_PANEL_ROWS;
    c.n_panels = panels_of(c.packs ? cpu_fit(CPU_BLOCK_VALUES, panel, all)
                                   : cpu_fit(work, panel * REALM_MIN(op->m, REUSE_ROWS), all),
                           all);
    c.n_blocks = cpu_parts(all, c.n_panels);
    c.rows = cpu_fit(work, panel * c.n_panels + (uint64_t)c.run * PREPARE_WORK, REALM_MIN(op->m, UINT32_MAX));
    if (c.rows > TILE_ROWS && c.rows < op->m) c.rows -= c.rows % TILE_ROWS;
    c.n_row_slices = cpu_parts(op->m, c.rows);
    c.block_slices = c.n_row_slices + c.packs;
    return c;
}

realm_status cpu_product_cut(const cpu_backend *b, const realm_direct *op, realm_direct_cut *out, realm_error *err) {
    const product_cut c = cut_of(b, op);
    if (!realm_mul_u64(c.n_blocks * c.n_runs, c.block_slices, &out->n_slices)) /* 2^20 * 2^18 at most */
        return realm_error_set(err, REALM_E_LIMIT, "a product is too large");
    out->kept_bytes = c.packs ? (uint64_t)c.n_panels * REALM_PANEL_ROWS * c.run * sizeof(float) : 0;
    return REALM_OK;
}

typedef struct product {
    const realm_cpu_kernels *kernels;
    realm_linear_args args;
} product;

static void worker(realm_worker *w, void *user) {
    const product *p = user;
    realm_cpu_linear(w, p->kernels, &p->args);
}

static realm_status multiply(cpu_backend *b, const realm_direct *op, const product_cut *c, const realm_weight *block,
                             uint64_t first_out, uint64_t first_in, uint64_t row, realm_error *err) {
    const uint32_t n_rows = (uint32_t)REALM_MIN(c->rows, op->m - row);
    realm_status s = realm_team_reserve(b->team, realm_linear_scratch_bytes(block->cols), err);
    if (s == REALM_OK) s = cpu_direct_reserve(b, realm_linear_quantized_bytes(n_rows, block->cols), err);
    if (s != REALM_OK) return s;
    product p = {.kernels = &b->kernels,
                 .args = {.x = op->x + row * c->k + first_in,
                          .x_stride = (size_t)c->k,
                          .n_rows = n_rows,
                          .n_weights = 1,
                          .w = {block},
                          .y = {op->y + row * c->n + first_out},
                          .y_stride = (size_t)c->n,
                          .epilogue = first_in > 0 ? REALM_EPILOGUE_ADD : REALM_EPILOGUE_NONE,
                          .quantized = b->direct.map}};
    realm_team_run(b->team, worker, &p);
    return REALM_OK;
}

realm_status cpu_product_slice(cpu_backend *b, const realm_direct *op, uint64_t slice, void *kept, realm_error *err) {
    const realm_weight *whole = op->kind == REALM_DIRECT_LINEAR ? op->u.linear : NULL;
    if (whole && (!whole->packed || !whole->packed->panels || whole->rows != op->cols))
        return realm_error_set(err, REALM_E_INVALID, "a weight that is not there for products, or not of %u rows",
                               op->cols);
    const product_cut c = cut_of(b, op);
    const uint64_t unit = slice / c.block_slices, at = slice % c.block_slices;
    const uint64_t first_panel = unit / c.n_runs * c.n_panels, first_in = unit % c.n_runs * c.run;
    const uint64_t first_out = first_panel * REALM_PANEL_ROWS;
    struct realm_packed panels = {.layout = whole ? whole->packed->layout : realm_pack_layout_of(REALM_TYPE_F32),
                                  .rows = REALM_MIN(c.n - first_out, (uint64_t)c.n_panels * REALM_PANEL_ROWS),
                                  .k = (uint32_t)REALM_MIN(c.run, c.k - first_in)};
    panels.n_panels = (uint32_t)cpu_parts(panels.rows, REALM_PANEL_ROWS);
    panels.panel_bytes = whole ? whole->packed->panel_bytes : (size_t)panels.k * REALM_PANEL_ROWS * sizeof(float);
    panels.bytes = panels.n_panels * panels.panel_bytes;
    panels.panels = whole ? whole->packed->panels + first_panel * panels.panel_bytes : kept;
    if (c.packs && at == 0) {
        const bool plain = op->u.matmul.plain;
        const float *from = op->u.matmul.b + (plain ? first_in * c.n + first_out : first_out * c.k + first_in);
        realm_cpu_pack_floats(b->team, &panels, from, (size_t)(plain ? c.n : c.k), plain);
        return REALM_OK;
    }
    const realm_weight block = {.rows = panels.rows, .cols = panels.k, .packed = &panels};
    return multiply(b, op, &c, &block, first_out, first_in, (at - c.packs) * c.rows, err);
}
