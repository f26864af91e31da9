/* model/model.h - from a GGUF file to a plan: hyperparameters, weight binding, one file per architecture family.
 *
 * Opening a model reads and checks the hyperparameters (finite, in range, consistent with each other and with every
 * tensor's shape), hands each tensor to the backend for repacking and keeps the mapping only for what is looked up by
 * row. A model then describes its forward pass as a plan over a KV pool; it holds no state of any sequence.
 *
 * With a weight budget the matrices of the layers are not kept: they *stream*. A layer is repacked from the mapping
 * into a slot when it is needed, the next one meanwhile by a helper thread, and gives way to another later:
 *
 *      budget = embedding, norms, biases, output + n slots of the largest layer
 *      need(i): resident or on its way (hit), else loaded now (miss);  then prefetch of i + 1;  done(i)
 *
 * The layer given up is the least recently used one, except that a plan's walk, which comes to the layers in turn and
 * so to the one just used last of all, gives that one up first: with n slots n - 2 layers then stay from step to step,
 * where strict LRU would load every layer in every step. Pinned layers stay. All functions: any thread; those that use
 * the device take a turn (compute.h), so not while holding one unless they say so.
 */
#ifndef REALM_MODEL_MODEL_H
#define REALM_MODEL_MODEL_H

#include "base/base.h"
#include "compute/compute.h"
#include "gguf/gguf.h"

#define REALM_MODEL_MAX_LAYERS 1024u

typedef struct realm_hparams {
    char arch[32]; /* "llama", "gemma3" */
    uint32_t n_layers;
    uint32_t n_vocab; /* rows of the embedding */
    uint32_t d_model, d_ff;
    uint32_t n_head, n_kv_head, head_dim;
    uint32_t n_ctx_train;
    float norm_eps;
    float embed_scale; /* sqrt(d_model) for gemma, else 1 */
    float attn_scale;
    realm_act act;
    realm_rope_style rope_style;
    uint32_t rope_dims;
    float rope_base, rope_freq_scale;
    float rope_base_local;   /* local layers of gemma3 */
    uint32_t window;         /* tokens a local layer sees; 0: every layer is global */
    uint32_t window_pattern; /* every n-th layer is global (the last of each group); 0 or 1: all are */
    bool tied_output;
} realm_hparams;

typedef struct realm_model realm_model;

/* Called while weights are repacked: done and total in bytes; false gives up, and opening ends with REALM_E_CANCELLED.
 * May be NULL. */
typedef bool (*realm_model_progress)(void *user, uint64_t done, uint64_t total);

typedef struct realm_model_options {
    uint64_t weight_budget_bytes; /* memory for weights; 0: all are resident */
    realm_model_progress progress;
    void *user;
} realm_model_options;

/* `g` must outlive the model; `options` may be NULL. REALM_E_UNSUPPORTED names the architecture or tensor type that is
 * not known; REALM_E_FORMAT names the key or tensor that is missing or wrong; REALM_E_LIMIT says how much a budget that
 * is too small must be at least. */
REALM_WARN_UNUSED realm_status realm_model_open(realm_model **out, realm_backend *b, const realm_gguf *g,
                                                const realm_model_options *options, realm_error *err);
void realm_model_close(realm_model *m); /* plans are closed first; NULL-safe */
const realm_hparams *realm_model_hparams(const realm_model *m);
/* Memory that weights take: with a budget, what they take at most. */
uint64_t realm_model_weight_bytes(const realm_model *m);

typedef struct realm_model_memory {
    uint64_t all_bytes;    /* every weight resident */
    uint64_t fixed_bytes;  /* what is always resident */
    uint64_t layer_bytes;  /* of the largest layer's slot */
    uint64_t least_budget; /* fixed_bytes + one slot */
} realm_model_memory;
/* What a file needs on this backend, by its shapes alone: nothing is read or repacked. Errors as realm_model_open. */
REALM_WARN_UNUSED realm_status realm_model_measure(realm_backend *b, const realm_gguf *g, realm_model_memory *out,
                                                   realm_error *err);

/* A KV pool of n_pages pages that fits this model, and the model's forward pass over it. The caller closes both through
 * the backend's vtable, the plan first. */
REALM_WARN_UNUSED realm_status realm_model_kv_open(const realm_model *m, uint32_t n_pages, realm_kv **out,
                                                   realm_error *err);
REALM_WARN_UNUSED realm_status realm_model_plan_open(const realm_model *m, realm_kv *kv, uint32_t max_rows,
                                                     uint32_t max_out, realm_plan **out, realm_error *err);
/* Of the rows that the last batch wanted out, number `row`, after the final norm: (d_model) into `out`. In the same
 * turn. */
REALM_WARN_UNUSED realm_status realm_model_hidden(const realm_model *m, realm_plan *plan, uint32_t row, float *out,
                                                  realm_error *err);

/* ---- tensors by name --------------------------------------------------------------------------------------------- */

typedef struct realm_model_tensor {
    const realm_gguf_tensor *file; /* name, type, shape and the bytes as in the file; as long as the model's file */
    const realm_weight *weight;    /* what the backend computes with */
    unsigned use;                  /* realm_weight_use that it was opened for */
    uint32_t layer;                /* REALM_LAYER_NONE: of no layer */
} realm_model_tensor;

/* NULL when the file has no such tensor. `name` need not end with a NUL. */
const realm_model_tensor *realm_model_tensor_find(const realm_model *m, const char *name, size_t len);
/* The tensors of a layer in file order; NULL and 0 for a layer that is not there. */
const realm_model_tensor *const *realm_model_layer_tensors(const realm_model *m, uint32_t layer, size_t *n);
/* Rows [first, first + n) of a tensor (all its dimensions but the first taken together) as float32 into out
 * (n * dims[0]). REALM_E_RANGE for rows that are not there, REALM_E_UNSUPPORTED for a type that cannot be
 * dequantised. */
REALM_WARN_UNUSED realm_status realm_model_tensor_rows(const realm_model_tensor *t, uint64_t first, uint64_t n,
                                                       float *out, realm_error *err);

/* ---- streaming --------------------------------------------------------------------------------------------------- */

typedef struct realm_model_stream_stats {
    uint64_t hits;           /* needed and resident, or on its way */
    uint64_t misses;         /* needed and loaded while somebody waited */
    uint64_t evictions;      /* gave way to another layer */
    uint64_t bytes_resident; /* weights in memory now, the fixed part included */
    uint64_t bytes_read;     /* of the file, by loads of layers since opening */
    uint64_t prefetched;     /* layers loaded before they were needed */
    uint32_t layers_resident, layers_pinned;
} realm_model_stream_stats;
/* Of a model without a budget: everything resident, no loads; pins are counted. */
void realm_model_get_stream_stats(const realm_model *m, realm_model_stream_stats *out);

/* Brings a layer in and keeps it until as many unpins; waits while it is loaded (not for a thread that must not block).
 * REALM_E_RANGE for a layer that is not there; REALM_E_LIMIT when one slot at least would not be left for the others:
 * pins can never stop a plan. REALM_E_NOMEM leaves everything as it was. Unpinning what is not pinned is
 * REALM_E_INVALID. With or without the turn. */
REALM_WARN_UNUSED realm_status realm_model_layer_pin(realm_model *m, uint32_t layer, realm_error *err);
REALM_WARN_UNUSED realm_status realm_model_layer_unpin(realm_model *m, uint32_t layer, realm_error *err);
/* Between the two the layer's weights can be computed with (the plan does this by itself). Needs a slot, so at most one
 * layer at a time and thread. The first: the caller has the turn. */
REALM_WARN_UNUSED realm_status realm_model_layer_need(realm_model *m, uint32_t layer, realm_error *err);
void realm_model_layer_done(realm_model *m, uint32_t layer);

#endif
