/* model/internal.h - what the files of this folder share: the bound weights, the binder, the plan builder.
 *
 *      realm_model_open
 *        hparams.c   metadata --> realm_hparams, every number checked
 *        <family>.c  bind: names of tensors --> realm_layer, through the binder of bind.c (shape checks, repacking)
 *        bind.c      every tensor of the file was used, or the file is refused
 *      realm_model_plan_open
 *        <family>.c  plan: realm_layer --> ops, through the builder of plan.c
 *
 * A new architecture is a row in the table of model.c, a hyperparameter function and a file with those two functions.
 */
#ifndef REALM_MODEL_INTERNAL_H
#define REALM_MODEL_INTERNAL_H

#include "model/model.h"

/* Weights of one block; borrowed from the model's list. NULL where the family or the file has none. */
typedef struct realm_layer {
    const realm_weight *attn_norm;              /* (d_model) */
    const realm_weight *wq, *wk, *wv;           /* (n_head * head_dim, d_model), (n_kv_head * head_dim, d_model) x 2 */
    const realm_weight *bq, *bk, *bv;           /* their biases */
    const realm_weight *q_norm, *k_norm;        /* (head_dim) */
    const realm_weight *wo, *bo;                /* (d_model, n_head * head_dim), (d_model) */
    const realm_weight *post_attn_norm;         /* (d_model) */
    const realm_weight *ffn_norm;               /* (d_model) */
    const realm_weight *w_gate, *w_up, *w_down; /* (d_ff, d_model) x 2, (d_model, d_ff) */
    const realm_weight *b_gate, *b_up, *b_down; /* their biases */
    const realm_weight *post_ffn_norm;          /* (d_model) */
} realm_layer;

typedef struct realm_family realm_family;
typedef struct realm_stream realm_stream;

struct realm_model {
    realm_backend *backend;
    const realm_family *family;
    realm_hparams hp;
    realm_layer *layers;              /* (n_layers) */
    const realm_weight *embed;        /* (n_vocab, d_model), rows */
    const realm_weight *output;       /* (n_vocab, d_model); `embed` itself when tied */
    const realm_weight *out_norm;     /* (d_model) */
    float *out_gain;                  /* (d_model) the same in host memory */
    const realm_weight *rope_factors; /* (rope_dims / 2) or NULL */
    realm_weight **weights;           /* all that were opened, in order */
    size_t n_weights, cap_weights;
    uint64_t weight_bytes; /* resident ones; once open, all that weights take at most */

    const realm_gguf *g;
    realm_model_tensor *tensors;         /* (tensors of the file), in its order */
    const realm_model_tensor **by_layer; /* those of layer i from first_of_layer[i] on, to first_of_layer[i + 1] */
    size_t *first_of_layer;              /* (n_layers + 1) */
    realm_stream *stream;
};

/* ---- bind.c ----------------------------------------------------------------------------------------------------- */

typedef struct realm_binder {
    realm_model *m;
    enum { BIND_RESIDENT, BIND_STREAM, BIND_MEASURE } mode; /* which matrices stream: none, those of layers, all */
    uint32_t layer;                                         /* being bound; REALM_LAYER_NONE: the ends */
    realm_model_progress progress;
    void *user;
    uint64_t done_bytes, total_bytes;
} realm_binder;

typedef enum realm_presence { REALM_REQUIRED, REALM_OPTIONAL } realm_presence;

void realm_binder_init(realm_binder *b, realm_model *m, realm_model_progress progress, void *user);
/* Opens tensor `name` of n values; *out is NULL when it is optional and absent. REALM_E_FORMAT names the tensor that is
 * missing or has another shape; the backend refuses types that it cannot serve. */
REALM_WARN_UNUSED realm_status realm_bind_vector(realm_binder *b, const char *name, uint64_t n, realm_presence presence,
                                                 const realm_weight **out, realm_error *err);
/* One row of a family's table: tensor "blk.<i>.<suffix>" into the pointer at `offset` of a realm_layer. Sizes are given
 * as dimensions of the model; a vector has rows REALM_DIM_ONE. */
typedef enum realm_dim {
    REALM_DIM_ONE,
    REALM_DIM_MODEL,
    REALM_DIM_FF,
    REALM_DIM_Q,
    REALM_DIM_KV,
    REALM_DIM_HEAD
} realm_dim;
typedef struct realm_layer_row {
    const char *suffix;
    size_t offset;
    realm_dim rows, cols;
    realm_presence presence;
} realm_layer_row;
#define REALM_LAYER_ROW(suffix, field, rows, cols, presence) \
    {suffix, offsetof(realm_layer, field), REALM_DIM_##rows, REALM_DIM_##cols, REALM_##presence}
REALM_WARN_UNUSED realm_status realm_bind_layers(realm_binder *b, const realm_layer_row *rows, size_t n_rows,
                                                 realm_error *err);
/* Embedding, final norm and output: an absent output.weight ties it to the embedding. */
REALM_WARN_UNUSED realm_status realm_bind_ends(realm_binder *b, realm_error *err);
/* REALM_E_UNSUPPORTED names the first tensor that nothing bound: computing without it would be silently wrong. */
REALM_WARN_UNUSED realm_status realm_binder_check_all_used(const realm_binder *b, realm_error *err);

/* ---- tensors.c --------------------------------------------------------------------------------------------------- */

REALM_WARN_UNUSED realm_status realm_tensors_init(realm_model *m, realm_error *err); /* before binding */
void realm_tensors_index(realm_model *m);                                            /* after it */
void realm_tensors_release(realm_model *m);

/* ---- stream.c ---------------------------------------------------------------------------------------------------- */

/* Slot memory of a layer's streamed weights. */
uint64_t realm_stream_layer_bytes(const realm_model *m, uint32_t layer);
/* n_slots 0: everything is resident, and this only counts pins. */
REALM_WARN_UNUSED realm_status realm_stream_open(realm_stream **out, const realm_model *m, uint32_t n_slots,
                                                 uint64_t slot_bytes, uint64_t fixed_bytes, realm_error *err);
void realm_stream_close(realm_stream *s); /* NULL-safe; before the weights are closed */
/* For a plan; NULL when nothing streams. */
const realm_residency *realm_stream_residency(const realm_stream *s);

/* ---- plan.c ----------------------------------------------------------------------------------------------------- */

/* Collects values and ops; sizes are fixed when it is made, so adding cannot fail but by a programming error. */
typedef struct realm_planner {
    const realm_model *m;
    uint32_t streamed; /* that new ops get: 1 + their layer, or 0 */
    realm_value_desc *values;
    uint32_t n_values, cap_values;
    realm_op *ops;
    uint32_t n_ops, cap_ops;
} realm_planner;

realm_value realm_planner_value(realm_planner *p, uint32_t cols, realm_rows_of rows);
/* A zeroed op of this kind at the end of the list, to be filled in; valid until the next call. */
realm_op *realm_planner_op(realm_planner *p, realm_op_kind kind);

/* ---- families --------------------------------------------------------------------------------------------------- */

struct realm_family {
    const char *arch; /* general.architecture */
    realm_status (*hparams)(realm_hparams *hp, const realm_gguf *g, realm_error *err);
    realm_status (*bind)(realm_binder *b, realm_error *err);
    uint32_t ops_per_layer, n_values; /* what plan adds at most, without the embedding, gather and output ops */
    /* Ops from the residual stream x (BATCH, d_model) back to it, for all layers; behind the last attention from x's
     * wanted rows on, in `wanted` (OUT, d_model), which nothing else needs: one of a whole prompt, as a rule. */
    void (*plan)(realm_planner *p, realm_value x, realm_value wanted);
};

extern const realm_family realm_family_llama;
extern const realm_family realm_family_gemma3;

/* ---- hparams.c -------------------------------------------------------------------------------------------------- */

/* What all families share: sizes, heads, RoPE. The family then sets what is its own and calls realm_hparams_check. */
REALM_WARN_UNUSED realm_status realm_hparams_read(realm_hparams *hp, const realm_gguf *g, realm_error *err);
REALM_WARN_UNUSED realm_status realm_hparams_check(const realm_hparams *hp, const realm_gguf *g, realm_error *err);
/* "<arch>.<suffix>" lookups, as realm_gguf_get_*. */
REALM_WARN_UNUSED realm_status realm_hparam_u32(const realm_hparams *hp, const realm_gguf *g, const char *suffix,
                                                bool required, uint32_t *out, realm_error *err);
REALM_WARN_UNUSED realm_status realm_hparam_f32(const realm_hparams *hp, const realm_gguf *g, const char *suffix,
                                                bool required, float *out, realm_error *err);

#endif
