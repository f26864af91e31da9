/* A forward pass of the llama and gemma3 architectures as a program would write it: tensors by name, lists of ops, K
 * and V kept in the program's own tensors. Nothing here knows of plans. */
#ifndef TESTS_TENSOR_HANDMADE_H
#define TESTS_TENSOR_HANDMADE_H

#include "fixture.h"

enum {
    H_ATTN_NORM,
    H_Q,
    H_K,
    H_V,
    H_O,
    H_BQ,
    H_BK,
    H_BV,
    H_BO,
    H_QN,
    H_KN,
    H_POST_ATTN,
    H_FFN_NORM,
    H_GATE,
    H_UP,
    H_DOWN,
    H_POST_FFN,
    H_WEIGHTS
};
static const char *const handmade_names[H_WEIGHTS] = {
    "attn_norm.weight",    "attn_q.weight",      "attn_k.weight",      "attn_v.weight",
    "attn_output.weight",  "attn_q.bias",        "attn_k.bias",        "attn_v.bias",
    "attn_output.bias",    "attn_q_norm.weight", "attn_k_norm.weight", "post_attention_norm.weight",
    "ffn_norm.weight",     "ffn_gate.weight",    "ffn_up.weight",      "ffn_down.weight",
    "post_ffw_norm.weight"};

typedef struct handmade {
    tensor_run *r;
    const realm_hparams *hp;
    uint32_t max_rows, n_past;
    realm_tensor *embed, *output, *out_norm, *factors;
    realm_tensor *w[128][H_WEIGHTS];
    realm_tensor *keys[128], *values[128];
    realm_tensor *x, *h, *q, *k, *v, *a, *gate, *up, *t, *logits, *last;
    realm_tensor_op ops[4096];
    size_t n;
} handmade;

static realm_tensor *optional(realm_model *m, const char *name) {
    return realm_model_tensor_find(m, name, strlen(name)) ? tensor_weight(m, name) : NULL;
}

__attribute__((unused)) static handmade *handmade_open(tensor_run *r, realm_model *m, uint32_t max_rows,
                                                       uint32_t n_ctx) {
    handmade *f = calloc(1, sizeof *f);
    const realm_hparams *hp = realm_model_hparams(m);
    f->r = r;
    f->hp = hp;
    f->max_rows = max_rows;
    f->embed = tensor_weight(m, "token_embd.weight");
    f->output = optional(m, "output.weight");
    f->out_norm = tensor_weight(m, "output_norm.weight");
    f->factors = optional(m, "rope_freqs.weight");
    for (uint32_t i = 0; i < hp->n_layers; i++) {
        for (uint32_t k = 0; k < H_WEIGHTS; k++) {
            char name[96];
            snprintf(name, sizeof name, "blk.%u.%s", i, handmade_names[k]);
            f->w[i][k] = optional(m, name);
        }
        f->keys[i] = tensor_make(r, n_ctx, (uint64_t)hp->n_kv_head * hp->head_dim);
        f->values[i] = tensor_make(r, n_ctx, (uint64_t)hp->n_kv_head * hp->head_dim);
    }
    f->x = tensor_make(r, max_rows, hp->d_model);
    f->h = tensor_make(r, max_rows, hp->d_model);
    f->t = tensor_make(r, max_rows, hp->d_model);
    f->q = tensor_make(r, max_rows, (uint64_t)hp->n_head * hp->head_dim);
    f->a = tensor_make(r, max_rows, (uint64_t)hp->n_head * hp->head_dim);
    f->k = tensor_make(r, max_rows, (uint64_t)hp->n_kv_head * hp->head_dim);
    f->v = tensor_make(r, max_rows, (uint64_t)hp->n_kv_head * hp->head_dim);
    f->gate = tensor_make(r, max_rows, hp->d_ff);
    f->up = tensor_make(r, max_rows, hp->d_ff);
    f->logits = tensor_make(r, max_rows, hp->n_vocab);
    f->last = tensor_make(r, max_rows, 1);
    return f;
}

__attribute__((unused)) static void handmade_close(handmade *f) {
    realm_tensor *const all[] = {f->embed, f->output, f->out_norm, f->factors, f->x, f->h,      f->q,   f->k,
                                 f->v,     f->a,      f->gate,     f->up,      f->t, f->logits, f->last};
    for (size_t i = 0; i < REALM_ARRAY_LEN(all); i++) realm_tensor_release(all[i]);
    for (uint32_t i = 0; i < f->hp->n_layers; i++) {
        for (uint32_t k = 0; k < H_WEIGHTS; k++) realm_tensor_release(f->w[i][k]);
        realm_tensor_release(f->keys[i]);
        realm_tensor_release(f->values[i]);
    }
    free(f);
}

static realm_tensor_op *handmade_op(handmade *f, realm_tensor_op_kind kind, realm_tensor *out, realm_tensor *a,
                                    realm_tensor *b, uint64_t m) {
    assert_true(f->n < REALM_ARRAY_LEN(f->ops));
    f->ops[f->n] = (realm_tensor_op){.kind = kind, .out = out, .a = a, .b = b, .m = m};
    return &f->ops[f->n++];
}

static void handmade_norm(handmade *f, realm_tensor *out, realm_tensor *x, realm_tensor *gain, uint64_t m) {
    handmade_op(f, REALM_TENSOR_RMS_NORM, out, x, gain, m)->u.eps = f->hp->norm_eps;
}

static void handmade_linear(handmade *f, realm_tensor *out, realm_tensor *x, realm_tensor *w, realm_tensor *bias,
                            uint64_t m) {
    handmade_op(f, REALM_TENSOR_MATMUL, out, x, w, m);
    if (bias) handmade_op(f, REALM_TENSOR_ADD, out, out, bias, m);
}

/* Logits of all n tokens, in f->logits, and the best token of each, in f->last. */
__attribute__((unused)) static void handmade_step(handmade *f, const int32_t *tokens, uint32_t n) {
    const realm_hparams *hp = f->hp;
    const bool gemma = strcmp(hp->arch, "gemma3") == 0;
    f->n = 0;
    realm_tensor_op *op = handmade_op(f, REALM_TENSOR_GET_ROWS, f->x, f->embed, NULL, 0);
    op->u.get_rows.ids = tokens;
    op->u.get_rows.n = n;
    op->u.get_rows.scale = hp->embed_scale;
    for (uint32_t i = 0; i < hp->n_layers; i++) {
        realm_tensor *const *w = f->w[i];
        const bool local = hp->window > 0 && hp->window_pattern > 1 && (i + 1) % hp->window_pattern != 0;
        handmade_norm(f, f->h, f->x, w[H_ATTN_NORM], n);
        handmade_linear(f, f->q, f->h, w[H_Q], w[H_BQ], n);
        handmade_linear(f, f->k, f->h, w[H_K], w[H_BK], n);
        handmade_linear(f, f->v, f->h, w[H_V], w[H_BV], n);
        if (w[H_QN]) handmade_norm(f, f->q, f->q, w[H_QN], n);
        if (w[H_KN]) handmade_norm(f, f->k, f->k, w[H_KN], n);
        for (int part = 0; part < 2; part++) {
            realm_tensor *t = part ? f->k : f->q;
            op = handmade_op(f, REALM_TENSOR_ROPE, t, t, f->factors, n);
            op->u.rope.head_dim = hp->head_dim;
            op->u.rope.rope_dims = hp->rope_dims;
            op->u.rope.first_pos = f->n_past;
            op->u.rope.base = local ? hp->rope_base_local : hp->rope_base;
            op->u.rope.freq_scale = local ? 1.0f : hp->rope_freq_scale;
            op->u.rope.style = hp->rope_style;
        }
        for (int part = 0; part < 2; part++) {
            op = handmade_op(f, REALM_TENSOR_COPY, part ? f->values[i] : f->keys[i], part ? f->v : f->k, NULL, 0);
            op->u.copy.n_rows = n;
            op->u.copy.out_row = f->n_past;
        }
        op = handmade_op(f, REALM_TENSOR_ATTENTION, f->a, f->q, f->keys[i], n);
        op->c = f->values[i];
        op->u.attention.n_head = hp->n_head;
        op->u.attention.n_kv_head = hp->n_kv_head;
        op->u.attention.head_dim = hp->head_dim;
        op->u.attention.t = f->n_past + n;
        op->u.attention.n_past = f->n_past;
        op->u.attention.window = local ? hp->window : 0;
        op->u.attention.scale = hp->attn_scale;
        handmade_linear(f, f->t, f->a, w[H_O], w[H_BO], n);
        if (gemma) handmade_norm(f, f->t, f->t, w[H_POST_ATTN], n);
        handmade_op(f, REALM_TENSOR_ADD, f->x, f->x, f->t, n);
        handmade_norm(f, f->h, f->x, w[H_FFN_NORM], n);
        handmade_linear(f, f->gate, f->h, w[H_GATE], NULL, n);
        handmade_linear(f, f->up, f->h, w[H_UP], NULL, n);
        handmade_op(f, gemma ? REALM_TENSOR_GELU : REALM_TENSOR_SILU, f->gate, f->gate, f->up, n);
        handmade_linear(f, f->t, f->gate, w[H_DOWN], NULL, n);
        if (gemma) handmade_norm(f, f->t, f->t, w[H_POST_FFN], n);
        handmade_op(f, REALM_TENSOR_ADD, f->x, f->x, f->t, n);
    }
    handmade_norm(f, f->x, f->x, f->out_norm, n);
    handmade_linear(f, f->logits, f->x, f->output ? f->output : f->embed, NULL, n);
    handmade_op(f, REALM_TENSOR_ARGMAX, f->last, f->logits, NULL, n);
    tensor_do(f->r, f->ops, f->n);
    f->n_past += n;
}

#endif
