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
 * Threads: several engines and the tensor service share one backend. A device does one thing at a time, so whoever
 * wants it takes a *turn* (realm_backend_turn_begin, first come first served) and uses it from its own thread until
 * realm_backend_turn_end; functions below say "turn" where they need that. While nothing else uses a backend (tests, a
 * benchmark with one model) a turn need not be taken. Failures of the device are REALM_E_DEVICE.
 */
#ifndef REALM_COMPUTE_COMPUTE_H
#define REALM_COMPUTE_COMPUTE_H

#include "base/base.h"
#include "base/thread.h"
#include "quant/quant.h"

#define REALM_KV_PAGE_TOKENS 32u /* tokens of one KV page, all layers together */
#define REALM_OP_MAX_WEIGHTS 3

typedef struct realm_backend realm_backend;
typedef struct realm_weight realm_weight;
typedef struct realm_kv realm_kv;
typedef struct realm_plan realm_plan;
typedef struct realm_slot realm_slot;

/* ---- weights ---------------------------------------------------------------------------------------------------- */

typedef enum realm_weight_use {
    REALM_WEIGHT_ROWS = 1,   /* rows are looked up by token id (embedding) */
    REALM_WEIGHT_LINEAR = 2, /* y = W x */
    REALM_WEIGHT_VECTOR = 4, /* one row of float gains (norms, RoPE factors): dequantised whole */
    /* With LINEAR: only the shape is taken; the weight computes while it is loaded into a slot (weight_load). `data`
     * must outlive the weight. */
    REALM_WEIGHT_STREAMED = 8
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
    REALM_OP_ATTENTION,
    REALM_OP_GATHER
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

/* y = the rows of x that the batch wants out: x has BATCH rows, y OUT rows of as many columns. What follows the last
 * attention of a model is for these alone. */
typedef struct realm_op_gather {
    realm_value x, y;
} realm_op_gather;

#define REALM_LAYER_NONE UINT32_MAX

typedef struct realm_op {
    realm_op_kind kind;
    uint32_t streamed; /* 1 + the layer whose streamed weights the op reads; 0: all it reads is resident */
    union {
        realm_op_embed embed;
        realm_op_linear linear;
        realm_op_norm_add norm_add;
        realm_op_rope_kv rope_kv;
        realm_op_attention attention;
        realm_op_gather gather;
    } u;
} realm_op;

/* Who brings streamed weights in. During a run the backend calls `need` on the thread of the run before the first of
 * the neighbouring ops of a layer, and `done` after the last of them; between the two the layer's weights stay loaded.
 * A failure of `need` ends the run with its error. */
typedef struct realm_residency {
    realm_status (*need)(void *user, uint32_t layer, realm_error *err);
    void (*done)(void *user, uint32_t layer);
    void *user;
} realm_residency;

typedef struct realm_plan_desc {
    const realm_value_desc *values;
    uint32_t n_values;
    const realm_op *ops; /* copied */
    uint32_t n_ops;
    uint32_t max_rows;                /* most tokens in a batch */
    uint32_t max_out;                 /* most rows wanted out of a batch */
    realm_value logits;               /* an OUT value: what realm_plan_logits reads */
    realm_kv *kv;                     /* the pages that ROPE_KV and ATTENTION use */
    const realm_residency *residency; /* copied; NULL: no op is streamed */
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

/* ---- single ops on host rows ------------------------------------------------------------------------------------- */

/* One op without a plan, on float32 rows in host memory: what programs that write their own forward pass call, through
 * src/tensor. The same kernels as the plan's, so that a forward pass taken apart into these gives the plan's results
 * (bit for bit on the CPU). Every op treats the rows of y (and of x) independently of each other. */
#define REALM_DIRECT_SUM 16384u
typedef enum realm_direct_kind {
    REALM_DIRECT_LINEAR,    /* y(m, n) = W(n, k) x                                                        */
    REALM_DIRECT_MATMUL,    /* y(m, n) = x(m, k) B, B float32 (n, k), or (k, n) with `plain`; sums over more
                             * inputs than REALM_DIRECT_SUM are sums of as many each, added in order      */
    REALM_DIRECT_ROWS,      /* y(m, cols) = scale * row ids[i] of a table                                         */
    REALM_DIRECT_NORM,      /* y = x / sqrt(mean(x^2) + eps) * gain; y may be x                           */
    REALM_DIRECT_ADD,       /* y = x + z; z one row or m; y may be x or z                                 */
    REALM_DIRECT_MUL,       /* y = x * z; as ADD                                                          */
    REALM_DIRECT_SCALE,     /* y = x * scale; y may be x                                                  */
    REALM_DIRECT_ACT,       /* y = act(x), times z where given; y may be x or z                           */
    REALM_DIRECT_SOFTMAX,   /* y = exp(x - max) / sum over the row; y may be x                            */
    REALM_DIRECT_ROPE,      /* y = x with the first rope_dims values of each head rotated; y may be x     */
    REALM_DIRECT_ATTENTION, /* y = softmax(scale * x K^T (+ mask)) V per head                             */
    REALM_DIRECT_ARGMAX,    /* y(m, 1) = index of the row's greatest value, the first of equals           */
    REALM_DIRECT_COPY       /* y = x                                                                      */
} realm_direct_kind;

typedef struct realm_direct {
    realm_direct_kind kind;
    uint64_t m;     /* rows of y */
    uint32_t cols;  /* of y; for ARGMAX of x */
    const float *x; /* (m, cols) unless said; NULL for ROWS */
    float *y;       /* overlaps no operand unless said */
    union {
        const realm_weight *linear; /* LINEAR; loaded; its cols are k */
        struct {
            const float *b;
            uint32_t k;
            bool plain;
        } matmul;
        struct {
            const realm_type_info *type; /* one that can be dequantised */
            const void *data;            /* rows of cols values */
            const int32_t *ids;          /* (m); the caller has checked them */
            float scale;                 /* that the rows are multiplied with */
        } rows;
        struct {
            const float *gain; /* (cols) or NULL */
            float eps;
        } norm;
        struct {
            const float *z;
            bool one_row; /* z is (cols), the same for every row */
        } add, mul;
        float scale;
        struct {
            realm_act act;
            const float *z; /* or NULL */
        } act;
        struct {
            uint32_t head_dim, rope_dims; /* cols is a multiple of head_dim */
            uint32_t first_pos;           /* row i is at position first_pos + i */
            float base, freq_scale;
            realm_rope_style style;
            const float *factors; /* (rope_dims / 2) or NULL */
        } rope;
        struct {
            const float *k, *v; /* (t, n_kv_head * head_dim); rounded to half, as the plan's KV is */
            uint32_t t, n_head, n_kv_head, head_dim;
            /* Row i sees positions 0 .. n_past + i, n_past + m <= t; all t of them when `full` (n_past is then 0). */
            bool full;
            uint32_t n_past, window; /* window as in realm_op_attention; 0 with `full` */
            float scale, softcap;
            const float *mask; /* (m, t), added to the scores after the softcap, -infinity hides; or NULL */
        } attention;
    } u;
} realm_direct;

/* How a backend cuts an op, so that no part of it holds the device for more than a few milliseconds: into slices 0 ..
 * n_slices - 1, which are run in this order, each once, with other work in between as the caller likes. What they leave
 * for each other (a packed part of an operand, sums that are not complete) lies in memory that the caller provides from
 * the first to the last. A NORM of one row is one slice. */
typedef struct realm_direct_cut {
    uint64_t n_slices;   /* 0 for an op without rows */
    uint64_t kept_bytes; /* of that memory; 0: none. A few MiB and less than the operands and y have, but for
                          * attention's two sums per row and head. */
} realm_direct_cut;

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
     * Turn, both. */
    realm_status (*weight_open)(realm_backend *b, const realm_weight_desc *desc, realm_weight **out, realm_error *err);
    void (*weight_close)(realm_backend *b, realm_weight *w);
    /* Device memory it takes, the mapping not counted; for a streamed weight what it takes of a slot when loaded. */
    uint64_t (*weight_bytes)(const realm_weight *w);
    /* Memory for streamed weights, committed as it is first used. Any thread. */
    realm_status (*slot_open)(realm_backend *b, uint64_t bytes, realm_slot **out, realm_error *err);
    void (*slot_close)(realm_backend *b, realm_slot *s); /* NULL-safe; nothing is loaded in it */
    /* Repacks a streamed weight into [offset, offset + weight_bytes) of a slot, offset a multiple of
     * REALM_SLOT_ALIGN; with slot NULL takes it out. Nothing may be using the weight. `turn`: the caller has the turn,
     * so the backend's threads may help; without it, any thread, beside a run. */
    realm_status (*weight_load)(realm_backend *b, realm_weight *w, realm_slot *slot, uint64_t offset, bool turn,
                                realm_error *err);
    realm_status (*kv_open)(realm_backend *b, const realm_kv_desc *desc, realm_kv **out, realm_error *err);
    void (*kv_close)(realm_backend *b, realm_kv *kv);
    uint64_t (*kv_page_bytes)(const realm_kv *kv);
    /* Overwrites with zeros before a page changes tenant; copies all layers of one page for copy on write. */
    void (*kv_zero_page)(realm_backend *b, realm_kv *kv, uint32_t page);
    void (*kv_copy_page)(realm_backend *b, realm_kv *kv, uint32_t dst, uint32_t src);
    /* A whole page to and from host memory of kv_page_bytes, in a form that only this pool understands: what was read
     * from one page may be written into any other. */
    void (*kv_read_page)(realm_backend *b, const realm_kv *kv, uint32_t page, void *out);
    void (*kv_write_page)(realm_backend *b, realm_kv *kv, uint32_t page, const void *in);
    /* Turn for opening, any thread for closing. */
    realm_status (*plan_open)(realm_backend *b, const realm_plan_desc *desc, realm_plan **out, realm_error *err);
    void (*plan_close)(realm_backend *b, realm_plan *p);
    /* One step. Turn. A batch that does not fit the plan (rows, tokens, page ids, order) is REALM_E_INVALID before
     * anything is written. On failure no page that the batch does not own has changed. */
    realm_status (*run)(realm_backend *b, realm_plan *p, const realm_batch *batch, realm_error *err);
    /* Row i (< n_out of the last run) of the logits value in host memory, valid until the run after the next begins,
     * so that it can be read while the next one goes on; the caller may change it. */
    float *(*logits)(realm_plan *p, uint32_t i);
    /* Any value of the last run in host memory (row-major), for tests and hidden states; NULL where there is none such.
     */
    const float *(*value)(realm_plan *p, realm_value v);
    /* Calls fn(user, i) for i in [0, n) on the backend's host threads, the caller included; returns when all are done.
     * For host work between steps (sampling). fn may not call the backend. Turn. */
    void (*parallel)(realm_backend *b, uint32_t n, void (*fn)(void *user, uint32_t i), void *user);
    /* Hands fn(user) to a host thread of the backend that is awake with nothing to do, as they are for a moment after a
     * run; false, and nothing is done, when there is none. fn is brief and may not call the backend: a run that begins
     * meanwhile has one thread less until it returns. Any thread, without a turn. NULL: never. */
    bool (*aside)(realm_backend *b, void (*fn)(void *user), void *user);
    /* How an op is cut; none of its data is looked at. Any thread. REALM_E_LIMIT: more than can be counted. */
    realm_status (*direct_cut)(realm_backend *b, const realm_direct *op, realm_direct_cut *out, realm_error *err);
    /* A slice of an op on host rows. `kept`: kept_bytes, 64-byte aligned. Turn. Shapes are the caller's to check. */
    realm_status (*direct)(realm_backend *b, const realm_direct *op, uint64_t slice, void *kept, realm_error *err);
};

#define REALM_SLOT_ALIGN 4096u

/* ---- turns, turn.c ----------------------------------------------------------------------------------------------- */

typedef struct realm_turn_stats {
    uint64_t turns;   /* that have ended */
    uint64_t held_ns; /* time held, all of them together */
    uint64_t waits;   /* turns that were not free when asked for */
    uint64_t wait_ns; /* time waited for those */
    uint32_t waiting; /* now */
} realm_turn_stats;

typedef struct realm_turn_waiter realm_turn_waiter;
typedef struct realm_turn { /* inside a backend; for turn.c alone */
    realm_mutex mu;
    realm_turn_waiter *first, *last; /* who waits, in the order they came */
    bool held;
    uint64_t since_ns;
    realm_turn_stats stats;
} realm_turn;

struct realm_backend {
    const struct realm_backend_vtable *v;
    const char *name; /* "cpu/vnni" */
    uint32_t n_threads;
    realm_turn turn; /* a backend's opening calls realm_turn_init, its closing realm_turn_release */
};

void realm_turn_init(realm_turn *t);
void realm_turn_release(realm_turn *t); /* nobody holds or waits */

/* Waits until everybody who asked before has had the device. Not while holding a turn (of any backend) or a lock of
 * base/thread.h. Any thread; the same one ends it. */
void realm_backend_turn_begin(realm_backend *b);
void realm_backend_turn_end(realm_backend *b);
void realm_backend_turn_get_stats(realm_backend *b, realm_turn_stats *out); /* any thread */

static inline void realm_backend_close(realm_backend *b) {
    if (b) b->v->close(b);
}

#endif
