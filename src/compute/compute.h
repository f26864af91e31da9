/* compute/compute.h - what a device does for Realm: a closed set of operations behind one vtable.
 *
 * A model describes its forward pass once, as a *plan*: a table of values (activations, float32, one row per token) and
 * a list of ops over them. The backend prepares the plan (scratch memory, kernels, on a GPU a captured graph) and runs
 * it for one *batch* after another; everything that changes from step to step is in the batch. The ops are coarse,
 * norm + quantise + product + epilogue being one op, so that a backend can fuse, and few, so that a new backend is a
 * week and not a year.
 *
 *      model file --weight_open--> realm_weight (repacked for the device)
 *      ops + values --plan_open--> realm_plan
 *      batch (tokens, positions, sequences with their KV pages, rows wanted) --run--> logits rows
 *
 * Numerics (the contract that every backend keeps and cpu/ref defines):
 *   - batch-invariant: a row's result depends on that row and its own sequence's KV alone, never on the other rows of
 *     the batch, their number, the chunking of a prompt or the number of threads: bit for bit on the same device kind;
 *   - quantised weights meet activations quantised to int8 in blocks of 32 (scale amax / 127, round to nearest even);
 *     block products are exact integers, scaled and summed in float32 in block order; F32, F16, BF16 weights meet
 * float32 activations;
 *   - KV is stored as IEEE half; attention is float32 inside: softmax over splits of 128 positions, aligned at position
 *     0, which are merged in order.
 *
 * Threads: a backend and all that was opened from it belong to one thread (the engine's), unless a function says
 * otherwise. Failures of the device are REALM_E_DEVICE.
 */
#ifndef REALM_COMPUTE_COMPUTE_H
#define REALM_COMPUTE_COMPUTE_H

#include "base/base.h"
#include "quant/quant.h"

#define REALM_KV_PAGE_TOKENS 32u /* tokens of one KV page, all layers together */
#define REALM_OP_MAX_WEIGHTS 3

typedef struct realm_backend realm_backend;
typedef struct realm_weight realm_weight;
typedef struct realm_kv realm_kv;
typedef struct realm_plan realm_plan;

/* ---- weights ---------------------------------------------------------------------------------------------------- */

typedef enum realm_weight_use {
    REALM_WEIGHT_ROWS = 1,   /* rows are looked up by token id (embedding) */
    REALM_WEIGHT_LINEAR = 2, /* y = W x */
    REALM_WEIGHT_VECTOR = 4  /* one row of float gains (norms, RoPE factors): dequantised whole */
} realm_weight_use;

typedef struct realm_weight_desc {
    const realm_type_info *type;
    uint64_t rows; /* outputs n; 1 for a vector */
    uint64_t cols; /* inputs k, contiguous in `data` */
    const void
        *data;    /* rows * row_bytes(cols), in the file's layout; for REALM_WEIGHT_ROWS it must outlive the weight */
    unsigned use; /* realm_weight_use, or-ed: a tied embedding is ROWS | LINEAR */
} realm_weight_desc;

/* ---- plans ------------------------------------------------------------------------------------------------------ */

typedef uint16_t realm_value; /* index into the plan's value table */
#define REALM_VALUE_NONE UINT16_MAX

typedef enum realm_rows_of { REALM_ROWS_BATCH, REALM_ROWS_OUT } realm_rows_of;
typedef struct realm_value_desc {
    uint32_t cols;
    realm_rows_of rows; /* a row per token of the batch, or per row that the batch wants out */
} realm_value_desc;

typedef enum realm_act { REALM_ACT_SILU, REALM_ACT_GELU_TANH } realm_act;
typedef enum realm_epilogue {
    REALM_EPILOGUE_NONE, /* y[i] = W[i] x                                                    */
    REALM_EPILOGUE_ADD,  /* y[0] += W[0] x           (one weight; residual)                  */
    REALM_EPILOGUE_GATE  /* y[0] = act(W[0] x) * (W[1] x)    (two weights of the same shape) */
} realm_epilogue;
typedef enum realm_rope_style {
    REALM_ROPE_PAIRS, /* rotates (x[2i], x[2i+1]): "llama" files  */
    REALM_ROPE_HALVES /* rotates (x[i], x[i + d/2]): gemma, qwen  */
} realm_rope_style;

typedef enum realm_op_kind {
    REALM_OP_EMBED,
    REALM_OP_LINEAR,
    REALM_OP_NORM_ADD,
    REALM_OP_ROPE_KV,
    REALM_OP_ATTENTION
} realm_op_kind;

/* y(M, cols) = scale * W[token] */
typedef struct realm_op_embed {
    const realm_weight *w;
    realm_value y;
    float scale;
} realm_op_embed;

/* With `gain`: x' = x / sqrt(mean(x^2) + eps) * gain, else x' = x. Then y[i] = W[i] x' (+ bias[i]) through the
 * epilogue. All weights share cols. If y has OUT rows and x has BATCH rows, the rows of x that the batch wants are
 * gathered first. x may not alias a y. */
typedef struct realm_op_linear {
    realm_value x;
    const realm_weight *gain; /* VECTOR (k) or NULL */
    float eps;
    uint32_t n_weights; /* 1..REALM_OP_MAX_WEIGHTS */
    const realm_weight *w[REALM_OP_MAX_WEIGHTS];
    const realm_weight *bias[REALM_OP_MAX_WEIGHTS]; /* VECTOR (n) or NULL */
    realm_value y[REALM_OP_MAX_WEIGHTS];
    realm_epilogue epilogue;
    realm_act act; /* for GATE */
} realm_op_linear;

/* y += x / sqrt(mean(x^2) + eps) * gain, per row (a norm after a block, as in gemma) */
typedef struct realm_op_norm_add {
    realm_value x, y;
    const realm_weight *gain;
    float eps;
} realm_op_norm_add;

/* Per head h of q (n_head * head_dim) and k, v (n_kv_head * head_dim): optional RMS norm over head_dim with the gains,
 * rotation of the first rope_dims values by position * base^(-2i / rope_dims) * freq_scale (divided by factors[i] where
 * given), in place for q; k and v are rounded to half and stored at the row's position in its sequence's pages. */
typedef struct realm_op_rope_kv {
    realm_value q, k, v;
    uint32_t layer, n_head, n_kv_head, head_dim;
    const realm_weight *q_gain, *k_gain; /* VECTOR (head_dim) or NULL */
    float eps;
    realm_rope_style style;
    uint32_t rope_dims;
    float base, freq_scale;
    const realm_weight *factors; /* VECTOR (rope_dims / 2) or NULL */
} realm_op_rope_kv;

/* out(M, n_head * head_dim) = softmax(scale * q K^T) V per head over the row's own sequence, positions 0 .. row's own;
 * with window > 0 only the last `window` positions, own one included. Head h reads kv head h / (n_head / n_kv_head). */
typedef struct realm_op_attention {
    realm_value q, out;
    uint32_t layer, n_head, n_kv_head, head_dim, window;
    float scale;
    float softcap; /* 0: none; else s = softcap * tanh(s / softcap) before the mask */
} realm_op_attention;

typedef struct realm_op {
    realm_op_kind kind;
    union {
        realm_op_embed embed;
        realm_op_linear linear;
        realm_op_norm_add norm_add;
        realm_op_rope_kv rope_kv;
        realm_op_attention attention;
    } u;
} realm_op;

typedef struct realm_plan_desc {
    const realm_value_desc *values;
    uint32_t n_values;
    const realm_op *ops; /* copied */
    uint32_t n_ops;
    uint32_t max_rows;  /* most tokens in a batch */
    uint32_t max_out;   /* most rows wanted out of a batch */
    realm_value logits; /* an OUT value: what realm_plan_logits reads */
    realm_kv *kv;       /* the pages that ROPE_KV and ATTENTION use */
} realm_plan_desc;

/* ---- KV --------------------------------------------------------------------------------------------------------- */

/* A pool of pages; one page holds K and V of REALM_KV_PAGE_TOKENS tokens for all layers. How a page is laid out inside
 * is the backend's own affair. Memory is committed as pages are first written. */
typedef struct realm_kv_desc {
    uint32_t n_layers, n_kv_head, head_dim;
    uint32_t n_pages;
} realm_kv_desc;

/* ---- batches ---------------------------------------------------------------------------------------------------- */

typedef struct realm_batch_seq {
    uint32_t first_row, n_rows; /* the sequence's rows are neighbours in the batch */
    uint32_t n_past;            /* tokens already in its KV: its rows have positions n_past, n_past + 1, ... */
    const uint32_t *pages;      /* page ids in order, enough for n_past + n_rows tokens; written ones are not shared */
} realm_batch_seq;

typedef struct realm_batch {
    uint32_t n_rows;
    const int32_t *tokens; /* (n_rows), each < the embedding's rows: the caller has checked */
    uint32_t n_seqs;
    const realm_batch_seq *seqs; /* cover the rows without gap or overlap */
    uint32_t n_out;
    const uint32_t *out_rows; /* (n_out), increasing */
} realm_batch;

/* ---- the backend ------------------------------------------------------------------------------------------------ */

typedef struct realm_backend_config {
    uint32_t n_threads;    /* CPU: threads of the pool, the calling one included; 0: one per core that may be used */
    const char *cpu_level; /* NULL or "": the best that the machine has; else "scalar", "avx2", "avx512", "vnni" */
} realm_backend_config;

/* Opens the CPU backend. REALM_E_UNSUPPORTED for an unknown level or one that this machine lacks. The environment
 * variable REALM_CPU, when set, stands in for a NULL cpu_level. */
REALM_WARN_UNUSED realm_status realm_backend_open_cpu(realm_backend **out, const realm_backend_config *config,
                                                      realm_error *err);

struct realm_backend_vtable {
    void (*close)(realm_backend *b); /* all that was opened from it is closed first */
    /* Repacks a weight for the device. REALM_E_UNSUPPORTED for a type that `use` cannot serve (the message names it).
     */
    realm_status (*weight_open)(realm_backend *b, const realm_weight_desc *desc, realm_weight **out, realm_error *err);
    void (*weight_close)(realm_backend *b, realm_weight *w);
    uint64_t (*weight_bytes)(const realm_weight *w); /* device memory it takes, the mapping not counted */
    realm_status (*kv_open)(realm_backend *b, const realm_kv_desc *desc, realm_kv **out, realm_error *err);
    void (*kv_close)(realm_backend *b, realm_kv *kv);
    uint64_t (*kv_page_bytes)(const realm_kv *kv);
    /* Overwrites with zeros before a page changes tenant; copies all layers of one page for copy on write. */
    void (*kv_zero_page)(realm_backend *b, realm_kv *kv, uint32_t page);
    void (*kv_copy_page)(realm_backend *b, realm_kv *kv, uint32_t dst, uint32_t src);
    realm_status (*plan_open)(realm_backend *b, const realm_plan_desc *desc, realm_plan **out, realm_error *err);
    void (*plan_close)(realm_backend *b, realm_plan *p);
    /* One step. A batch that does not fit the plan (rows, tokens, page ids, order) is REALM_E_INVALID before anything
     * is written. On failure no page that the batch does not own has changed. */
    realm_status (*run)(realm_backend *b, realm_plan *p, const realm_batch *batch, realm_error *err);
    /* Row i (< n_out of the last run) of the logits value in host memory, valid until the next run. */
    const float *(*logits)(realm_plan *p, uint32_t i);
    /* Any value of the last run in host memory (row-major), for tests and hidden states; NULL where there is none such.
     */
    const float *(*value)(realm_plan *p, realm_value v);
    /* Calls fn(user, i) for i in [0, n) on the backend's host threads, the caller included; returns when all are done.
     * For host work between steps (sampling). fn may not call the backend. */
    void (*parallel)(realm_backend *b, uint32_t n, void (*fn)(void *user, uint32_t i), void *user);
};

struct realm_backend {
    const struct realm_backend_vtable *v;
    const char *name; /* "cpu/vnni" */
    uint32_t n_threads;
};

static inline void realm_backend_close(realm_backend *b) {
    if (b) b->v->close(b);
}

#endif
