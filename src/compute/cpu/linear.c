/* compute/cpu/linear.c - the LINEAR op: norm, quantise, products, epilogue, shared by the team.
 *
 *      rows of x --norm, quantise--> column tiles --kernel--> sums (private, L1) --bias, residual, gate--> y
 *                                    panels ------^
 *
 * A batch's rows are cut into column tiles of nearly equal width (at most REALM_LINEAR_MAX_COLS), so that 9 rows cost 5
 * and 4 columns and not 8 and 1. An item of work is a run of neighbouring panels times a run of tiles; items are
 * claimed dynamically. Inside an item the tile loop is outside and the panel loop inside: the panels stay in the
 * second-level cache for all tiles, a tile in the first-level cache for all its panels.
 *
 * Few rows: each worker prepares the tile for itself. That repeats some work but saves a barrier, and the result is the
 * same bits. Many rows: the team prepares them together and meets.
 *
 * Each output element is written by one worker, once, from one kernel's sum; nothing depends on the number of threads.
 */
#include <string.h>

#include "compute/cpu/kernels.h"
#include "compute/cpu/pack.h"

#define MAX_COLS REALM_LINEAR_MAX_COLS
#define CHUNK_PANELS 16u                                   /* most panels of one item */
#define OUT_STRIDE (CHUNK_PANELS * REALM_PANEL_ROWS + 16u) /* floats; off a power of two, for the cache's sets */
#define OUT_BYTES ((size_t)MAX_COLS * OUT_STRIDE * sizeof(float))
#define PRIVATE_VALUES 8192u            /* values that every worker rather prepares itself than waits for the others */
#define CHUNK_BYTES ((size_t)256 << 10) /* of weights that meet several tiles */
#define ITEMS_PER_WORKER 8u             /* for balance */

static size_t align64(size_t n) { return (n + 63) & ~(size_t)63; }
static size_t quant_bytes(uint32_t n_rows, uint64_t k) {
    return align64((size_t)n_rows * (size_t)(k / REALM_LINEAR_BLOCK) * REALM_LINEAR_COL_BYTES);
}
static size_t float_bytes(uint32_t n_rows, uint64_t k) { return align64((size_t)n_rows * (size_t)k * sizeof(float)); }

size_t realm_linear_quantized_bytes(uint32_t n_rows, uint64_t cols) {
    return quant_bytes(n_rows, cols) + float_bytes(n_rows, cols);
}

/* Scratch of a worker: sums of two weights, a normed row, private tiles of up to PRIVATE_VALUES values or one row. */
size_t realm_linear_scratch_bytes(uint64_t max_cols) {
    uint64_t values = REALM_MAX(max_cols, (uint64_t)PRIVATE_VALUES);
    return 2 * OUT_BYTES + float_bytes(1, max_cols) + quant_bytes(1, values) + float_bytes(1, values) + 64;
}

typedef struct linear_run {
    const realm_cpu_kernels *kernels;
    const realm_linear_args *a;
    uint32_t k, n_tiles;
    bool any_quant, any_float;
    uint8_t *quants;     /* column tiles of all rows, in either form */
    const float *floats; /* as above; x itself for a single row without norm */
    float *normed;       /* private: one row */
    float *out[2];       /* private: (MAX_COLS, OUT_STRIDE) */
} linear_run;

/* First row of tile t: n_rows / n_tiles or one more each, the larger ones first. */
static uint32_t tile_begin(const linear_run *r, uint32_t t) {
    uint32_t base = r->a->n_rows / r->n_tiles, extra = r->a->n_rows % r->n_tiles;
    return base * t + REALM_MIN(t, extra);
}
static uint8_t *tile_quants(const linear_run *r, uint32_t first_row) {
    return r->quants + (size_t)first_row * (r->k / REALM_LINEAR_BLOCK) * REALM_LINEAR_COL_BYTES;
}

static void prepare_row(const linear_run *r, float *floats, uint32_t row, uint32_t tile) {
    const realm_linear_args *a = r->a;
    uint32_t first = tile_begin(r, tile), n_cols = tile_begin(r, tile + 1) - first, col = row - first;
    const float *x = a->x + (size_t)(a->gather ? a->gather[row] : row) * (a->x_stride ? a->x_stride : r->k);
    if (a->gain) {
        r->kernels->row.rms_norm_row(x, a->gain, a->eps, r->normed, r->k);
        x = r->normed;
    }
    if (r->any_quant) r->kernels->linear.quantize_column(x, r->k, tile_quants(r, first), col, n_cols);
    if (r->any_float) {
        float *to = floats + (size_t)first * r->k + col;
        for (uint32_t i = 0; i < r->k; i++) to[(size_t)i * n_cols] = x[i];
    }
}

static void prepare_shared(const linear_run *r, float *floats, realm_worker *w) {
    uint32_t begin, end, t = 0;
    if (r->n_tiles >= 2 * w->n) { /* whole tiles: no cache line is written by two */
        while (realm_worker_claim(w, r->n_tiles, 1, &begin, &end))
            for (uint32_t row = tile_begin(r, begin); row < tile_begin(r, end); row++)
                prepare_row(r, floats, row, begin);
    } else {
        while (realm_worker_claim(w, r->a->n_rows, 1, &begin, &end)) { /* claims only go up */
            while (tile_begin(r, t + 1) <= begin) t++;
            prepare_row(r, floats, begin, t);
        }
    }
    realm_worker_barrier(w);
}

/* Sums of panels [first, first + n) of weight i with tile t. */
static void multiply(const linear_run *r, uint32_t i, uint32_t first, uint32_t n, uint32_t t, float *out) {
    const struct realm_packed *p = r->a->w[i]->packed;
    uint32_t row = tile_begin(r, t), n_cols = tile_begin(r, t + 1) - row;
    const void *tile = realm_pack_is_float(p->layout) ? (const void *)(r->floats + (size_t)row * r->k)
                                                      : (const void *)tile_quants(r, row);
    r->kernels->linear.product[p->layout->kind][n_cols - 1](p->panels + first * p->panel_bytes, p->panel_bytes, n, r->k,
                                                            tile, n_cols, r->a->pass_by && r->n_tiles == 1, out,
                                                            OUT_STRIDE);
}

/* The same with the epilogue, into y. */
static void multiply_store(const linear_run *r, uint32_t i, uint32_t first, uint32_t n, uint32_t t) {
    const realm_linear_args *a = r->a;
    const realm_linear_kernels *lk = &r->kernels->linear;
    bool gate = a->epilogue == REALM_EPILOGUE_GATE;
    multiply(r, i, first, n, t, r->out[0]);
    if (gate) multiply(r, 1, first, n, t, r->out[1]);
    uint64_t rows = a->w[i]->packed->rows;
    size_t at = (size_t)first * REALM_PANEL_ROWS;
    uint32_t n_out = (uint32_t)REALM_MIN((uint64_t)n * REALM_PANEL_ROWS, rows - at);
    size_t stride = a->y_stride ? a->y_stride : (size_t)rows;
    const float *bias = a->bias[i] ? a->bias[i] + at : NULL;
    for (uint32_t row = tile_begin(r, t), c = 0; row < tile_begin(r, t + 1); row++, c++) {
        float *y = a->y[i] + row * stride + at;
        lk->store_row(y, r->out[0] + (size_t)c * OUT_STRIDE, bias, n_out, a->epilogue == REALM_EPILOGUE_ADD);
        if (!gate) continue;
        float *up = r->out[1] + (size_t)c * OUT_STRIDE;
        if (a->bias[1]) lk->store_row(up, up, a->bias[1] + at, n_out, false);
        r->kernels->row.act_mul(a->act, y, up, n_out);
    }
}

/* Panels [begin, end) of the op's weights laid end to end, for tiles [tile_first, tile_last). */
static void run_item(const linear_run *r, uint32_t n_own, uint32_t begin, uint32_t end, uint32_t tile_first,
                     uint32_t tile_last) {
    for (uint32_t t = tile_first; t < tile_last; t++)
        for (uint32_t i = 0, base = 0; i < n_own; i++) {
            uint32_t n = r->a->w[i]->packed->n_panels;
            uint32_t from = REALM_MAX(begin, base), to = REALM_MIN(end, base + n);
            if (from < to) multiply_store(r, i, from - base, to - from, t);
            base += n;
        }
}

void realm_cpu_linear(realm_worker *w, const realm_cpu_kernels *kernels, const realm_linear_args *a) {
    if (a->n_rows == 0) return;
    linear_run r = {.kernels = kernels, .a = a, .k = a->w[0]->packed->k};
    r.n_tiles = (a->n_rows + MAX_COLS - 1) / MAX_COLS;
    uint32_t n_own = a->epilogue == REALM_EPILOGUE_GATE ? 1 : a->n_weights; /* whose panels are claimed */
    uint32_t n_panels = 0;
    size_t panel_bytes = 0;
    for (uint32_t i = 0; i < a->n_weights; i++) {
        const struct realm_packed *p = a->w[i]->packed;
        if (realm_pack_is_float(p->layout))
            r.any_float = true;
        else
            r.any_quant = true;
        if (i < n_own) n_panels += p->n_panels;
        panel_bytes = i < n_own ? REALM_MAX(panel_bytes, p->panel_bytes) : panel_bytes + p->panel_bytes;
    }

    uint8_t *s = w->scratch;
    r.out[0] = (float *)s;
    r.out[1] = (float *)(s + OUT_BYTES);
    r.normed = (float *)(s + 2 * OUT_BYTES);
    s += 2 * OUT_BYTES + float_bytes(1, r.k);
    float *floats;
    if (a->n_rows == 1 || (r.n_tiles == 1 && (size_t)a->n_rows * r.k <= PRIVATE_VALUES)) {
        r.quants = s;
        floats = (float *)(s + quant_bytes(a->n_rows, r.k));
        for (uint32_t row = 0; row < a->n_rows && !realm_worker_is_behind(w); row++) prepare_row(&r, floats, row, 0);
    } else {
        r.quants = a->quantized;
        floats = (float *)((uint8_t *)a->quantized + quant_bytes(a->n_rows, r.k));
        prepare_shared(&r, floats, w);
    }
    r.floats = floats;

    /* Items: chunks of panels, cut again along the tiles where there are too few of them. */
    uint32_t grain = REALM_MIN(CHUNK_PANELS, n_panels / (ITEMS_PER_WORKER * w->n) + 1);
    if (r.n_tiles > 1) grain = (uint32_t)REALM_MIN((size_t)grain, CHUNK_BYTES / panel_bytes + 1);
    if (grain > 1) grain &= ~1u; /* kernels take panels in pairs */
    uint32_t n_chunks = (n_panels + grain - 1) / grain;
    uint32_t n_cuts = 1;
    if (n_chunks < ITEMS_PER_WORKER * w->n)
        n_cuts = REALM_MIN(r.n_tiles, (ITEMS_PER_WORKER * w->n + n_chunks - 1) / n_chunks);
    uint32_t item, item_end;
    while (realm_worker_claim(w, n_chunks * n_cuts, 1, &item, &item_end)) {
        uint32_t chunk = item / n_cuts, cut = item % n_cuts;
        uint32_t begin = chunk * grain;
        run_item(&r, n_own, begin, REALM_MIN(begin + grain, n_panels), (uint32_t)((uint64_t)r.n_tiles * cut / n_cuts),
                 (uint32_t)((uint64_t)r.n_tiles * (cut + 1) / n_cuts));
    }
    realm_worker_barrier(w);
}
