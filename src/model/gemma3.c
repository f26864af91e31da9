/* model/gemma3.c - the "gemma3" architecture (text part), 270M to 27B.
 *
 * A block (Gemma 3 technical report, https://arxiv.org/abs/2503.19786), x being the residual stream, N_g(y) the RMS
 * norm of y with gain g (files hold 1 + the trained gain, so it is used as it is):
 *
 *      q, k, v = W N(x);  q and k normed per head, then RoPE over halves
 *      x += N(Wo softmax(scale q K^T) V)                     post-attention norm
 *      x += N(Wdown (gelu(Wgate N(x)) * Wup N(x)))           post-feed-forward norm
 *
 * The embedding is scaled by sqrt(d_model) and is also the output. Of each group of six layers the last sees
 * everything and rotates with the file's base and scaling; the others see a window and rotate with base 10,000
 * unscaled. The attention scale is 1 / sqrt(head_dim), but 1 / sqrt(d_model / n_head) in the 27B model, which files do
 * not say: as in the reference, the model is known by its 62 layers.
 */
#include <math.h>

#include "model/internal.h"

#define PATTERN_DEFAULT 6u
#define LOCAL_BASE_DEFAULT 10000.0f
#define LAYERS_OF_27B 62u

static realm_status hparams(realm_hparams *hp, const realm_gguf *g, realm_error *err) {
    realm_status s = realm_hparams_read(hp, g, err);
    if (s != REALM_OK) return s;
    hp->act = REALM_ACT_GELU_TANH;
    hp->rope_style = REALM_ROPE_HALVES;
    hp->embed_scale = sqrtf((float)hp->d_model);
    if (hp->n_layers == LAYERS_OF_27B && !realm_gguf_find(g, "gemma3.attention.scale"))
        hp->attn_scale = 1.0f / sqrtf((float)(hp->d_model / hp->n_head));
    s = realm_hparam_u32(hp, g, "attention.sliding_window", false, &hp->window, err);
    if (s != REALM_OK) return s;
    if (hp->window > 0) {
        hp->window_pattern = PATTERN_DEFAULT;
        hp->rope_base_local = LOCAL_BASE_DEFAULT;
        s = realm_hparam_u32(hp, g, "attention.sliding_window_pattern", false, &hp->window_pattern, err);
        if (s == REALM_OK) s = realm_hparam_f32(hp, g, "rope.freq_base_swa", false, &hp->rope_base_local, err);
        if (s != REALM_OK) return s;
    }
    return realm_hparams_check(hp, g, err);
}

static const realm_layer_row rows[] = {
    REALM_LAYER_ROW("attn_norm.weight", attn_norm, ONE, MODEL, REQUIRED),
    REALM_LAYER_ROW("attn_q.weight", wq, Q, MODEL, REQUIRED),
    REALM_LAYER_ROW("attn_k.weight", wk, KV, MODEL, REQUIRED),
    REALM_LAYER_ROW("attn_v.weight", wv, KV, MODEL, REQUIRED),
    REALM_LAYER_ROW("attn_q_norm.weight", q_norm, ONE, HEAD, REQUIRED),
    REALM_LAYER_ROW("attn_k_norm.weight", k_norm, ONE, HEAD, REQUIRED),
    REALM_LAYER_ROW("attn_output.weight", wo, MODEL, Q, REQUIRED),
    REALM_LAYER_ROW("post_attention_norm.weight", post_attn_norm, ONE, MODEL, REQUIRED),
    REALM_LAYER_ROW("ffn_norm.weight", ffn_norm, ONE, MODEL, REQUIRED),
    REALM_LAYER_ROW("ffn_gate.weight", w_gate, FF, MODEL, REQUIRED),
    REALM_LAYER_ROW("ffn_up.weight", w_up, FF, MODEL, REQUIRED),
    REALM_LAYER_ROW("ffn_down.weight", w_down, MODEL, FF, REQUIRED),
    REALM_LAYER_ROW("post_ffw_norm.weight", post_ffn_norm, ONE, MODEL, REQUIRED),
};

static realm_status bind(realm_binder *b, realm_error *err) {
    return realm_bind_layers(b, rows, REALM_ARRAY_LEN(rows), err);
}

static bool is_local(const realm_hparams *hp, uint32_t layer) {
    return hp->window > 0 && hp->window_pattern > 1 && (layer + 1) % hp->window_pattern != 0;
}

static void plan(realm_planner *p, realm_value x, realm_value wanted) {
    const realm_model *m = p->m;
    const realm_hparams *hp = &m->hp;
    const uint32_t n_q = hp->n_head * hp->head_dim, n_kv = hp->n_kv_head * hp->head_dim;
    realm_value q = realm_planner_value(p, n_q, REALM_ROWS_BATCH);
    realm_value k = realm_planner_value(p, n_kv, REALM_ROWS_BATCH);
    realm_value v = realm_planner_value(p, n_kv, REALM_ROWS_BATCH);
    realm_value a = realm_planner_value(p, n_q, REALM_ROWS_BATCH);
    realm_value h = realm_planner_value(p, hp->d_ff, REALM_ROWS_BATCH);
    realm_value t = realm_planner_value(p, hp->d_model, REALM_ROWS_BATCH); /* a block's output before its norm */
    realm_value h_out = realm_planner_value(p, hp->d_ff, REALM_ROWS_OUT);
    realm_value t_out = realm_planner_value(p, hp->d_model, REALM_ROWS_OUT);
    for (uint32_t i = 0; i < hp->n_layers; i++) {
        const realm_layer *l = &m->layers[i];
        p->streamed = i + 1;
        const bool local = is_local(hp, i);
        realm_planner_op(p, REALM_OP_LINEAR)->u.linear = (realm_op_linear){.x = x,
                                                                           .gain = l->attn_norm,
                                                                           .eps = hp->norm_eps,
                                                                           .n_weights = 3,
                                                                           .w = {l->wq, l->wk, l->wv},
                                                                           .y = {q, k, v}};
        realm_planner_op(p, REALM_OP_ROPE_KV)->u.rope_kv =
            (realm_op_rope_kv){.q = q,
                               .k = k,
                               .v = v,
                               .layer = i,
                               .n_head = hp->n_head,
                               .n_kv_head = hp->n_kv_head,
                               .head_dim = hp->head_dim,
                               .q_gain = l->q_norm,
                               .k_gain = l->k_norm,
                               .eps = hp->norm_eps,
                               .style = hp->rope_style,
                               .rope_dims = hp->rope_dims,
                               .base = local ? hp->rope_base_local : hp->rope_base,
                               .freq_scale = local ? 1.0f : hp->rope_freq_scale};
        realm_planner_op(p, REALM_OP_ATTENTION)->u.attention = (realm_op_attention){.q = q,
                                                                                    .out = a,
                                                                                    .layer = i,
                                                                                    .n_head = hp->n_head,
                                                                                    .n_kv_head = hp->n_kv_head,
                                                                                    .head_dim = hp->head_dim,
                                                                                    .window = local ? hp->window : 0,
                                                                                    .scale = hp->attn_scale};
        if (i + 1 == hp->n_layers) {
            realm_planner_op(p, REALM_OP_GATHER)->u.gather = (realm_op_gather){.x = x, .y = wanted};
            x = wanted, h = h_out, t = t_out;
        }
        realm_planner_op(p, REALM_OP_LINEAR)->u.linear =
            (realm_op_linear){.x = a, .n_weights = 1, .w = {l->wo}, .y = {t}};
        realm_planner_op(p, REALM_OP_NORM_ADD)->u.norm_add =
            (realm_op_norm_add){.x = t, .y = x, .gain = l->post_attn_norm, .eps = hp->norm_eps};
        realm_planner_op(p, REALM_OP_LINEAR)->u.linear = (realm_op_linear){.x = x,
                                                                           .gain = l->ffn_norm,
                                                                           .eps = hp->norm_eps,
                                                                           .n_weights = 2,
                                                                           .w = {l->w_gate, l->w_up},
                                                                           .y = {h, REALM_VALUE_NONE},
                                                                           .epilogue = REALM_EPILOGUE_GATE,
                                                                           .act = hp->act};
        realm_planner_op(p, REALM_OP_LINEAR)->u.linear =
            (realm_op_linear){.x = h, .n_weights = 1, .w = {l->w_down}, .y = {t}};
        realm_planner_op(p, REALM_OP_NORM_ADD)->u.norm_add =
            (realm_op_norm_add){.x = t, .y = x, .gain = l->post_ffn_norm, .eps = hp->norm_eps};
    }
}

const realm_family realm_family_gemma3 = {
    .arch = "gemma3", .hparams = hparams, .bind = bind, .ops_per_layer = 8, .n_values = 8, .plan = plan};
