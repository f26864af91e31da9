/* model/model.h - from a GGUF file to a plan: hyperparameters, weight binding, one file per architecture family.
 *
 * Opening a model reads and checks the hyperparameters (finite, in range, consistent with each other and with every
 * tensor's shape), hands each tensor to the backend for repacking and keeps the mapping only for what is looked up by
 * row. A model then describes its forward pass as a plan over a KV pool; it holds no state of any sequence. Opening and
 * planning: the engine's thread; reading hyperparameters: any thread.
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

/* Called while weights are repacked: done and total in bytes. May be NULL. */
typedef void (*realm_model_progress)(void *user, uint64_t done, uint64_t total);

/* `g` must outlive the model. REALM_E_UNSUPPORTED names the architecture or tensor type that is not known;
 * REALM_E_FORMAT names the key or tensor that is missing or wrong. */
REALM_WARN_UNUSED realm_status realm_model_open(realm_model **out, realm_backend *b, const realm_gguf *g,
                                                realm_model_progress progress, void *user, realm_error *err);
void realm_model_close(realm_model *m); /* plans are closed first; NULL-safe */
const realm_hparams *realm_model_hparams(const realm_model *m);
uint64_t realm_model_weight_bytes(const realm_model *m);

/* A KV pool of n_pages pages that fits this model, and the model's forward pass over it. The caller closes both through
 * the backend's vtable, the plan first. */
REALM_WARN_UNUSED realm_status realm_model_kv_open(const realm_model *m, uint32_t n_pages, realm_kv **out,
                                                   realm_error *err);
REALM_WARN_UNUSED realm_status realm_model_plan_open(const realm_model *m, realm_kv *kv, uint32_t max_rows,
                                                     uint32_t max_out, realm_plan **out, realm_error *err);

#endif
