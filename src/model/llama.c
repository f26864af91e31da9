/* model/llama.c - the "llama" architecture: Llama 1-3, SmolLM, Mistral 7B, TinyLlama and what else is filed under it.
 *
 * A block (Touvron et al. 2023, https://arxiv.org/abs/2302.13971), x being the residual stream:
 *
 *      q, k, v = W x / rms(x) (+ bias);  RoPE over neighbouring pairs, q and k only
 *      x += Wo softmax(q K^T / sqrt(head_dim)) V
 *      x += Wdown (silu(Wgate x / rms(x)) * Wup x / rms(x))
 *
 * Llama 3.1 and later carry the tensor rope_freqs.weight, by which each frequency is divided. Files permute the rows of
 * Wq and Wk so that pairs are neighbours (PAIRS, not the halves of the original weights).
 */
#include "model/internal.h"

static realm_status hparams(realm_hparams *hp, const realm_gguf *g, realm_error *err) {
    realm_status s = realm_hparams_read(hp, g, err);
    if (s != REALM_OK) return s;
    hp->act = REALM_ACT_SILU;
    hp->rope_style = REALM_ROPE_PAIRS;
    return realm_hparams_check(hp, g, err);
}

static const realm_layer_row rows[] = {
    REALM_LAYER_ROW("attn_norm.weight", attn_norm, ONE, MODEL, REQUIRED),
    REALM_LAYER_ROW("attn_q.weight", wq, Q, MODEL, REQUIRED),
    REALM_LAYER_ROW("attn_q.bias", bq, ONE, Q, OPTIONAL),
    REALM_LAYER_ROW("attn_k.weight", wk, KV, MODEL, REQUIRED),
    REALM_LAYER_ROW("attn_k.bias", bk, ONE, KV, OPTIONAL),
    REALM_LAYER_ROW("attn_v.weight", wv, KV, MODEL, REQUIRED),
    REALM_LAYER_ROW("attn_v.bias", bv, ONE, KV, OPTIONAL),
    REALM_LAYER_ROW("attn_output.weight", wo, MODEL, Q, REQUIRED),
    REALM_LAYER_ROW("attn_output.bias", bo, ONE, MODEL, OPTIONAL),
    REALM_LAYER_ROW("ffn_norm.weight", ffn_norm, ONE, MODEL, REQUIRED),
    REALM_LAYER_ROW("ffn_gate.weight", w_gate, FF, MODEL, REQUIRED),
    REALM_LAYER_ROW("ffn_gate.bias", b_gate, ONE, FF, OPTIONAL),
    REALM_LAYER_ROW("ffn_up.weight", w_up, FF, MODEL, REQUIRED),
    REALM_LAYER_ROW("ffn_up.bias", b_up, ONE, FF, OPTIONAL),
    REALM_LAYER_ROW("ffn_down.weight", w_down, MODEL, FF, REQUIRED),
    REALM_LAYER_ROW("ffn_down.bias", b_down, ONE, MODEL, OPTIONAL),
};

static realm_status bind(realm_binder *b, realm_error *err) {
    realm_status s =
        realm_bind_vector(b, "rope_freqs.weight", b->m->hp.rope_dims / 2, REALM_OPTIONAL, &b->m->rope_factors, err);
    return s == REALM_OK ? realm_bind_layers(b, rows, REALM_ARRAY_LEN(rows), err) : s;
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
    realm_value h_out = realm_planner_value(p, hp->d_ff, REALM_ROWS_OUT);
    for (uint32_t i = 0; i < hp->n_layers; i++) {
        const realm_layer *l = &m->layers[i];
        p->streamed = i + 1;
        realm_planner_op(p, REALM_OP_LINEAR)->u.linear = (realm_op_linear){.x = x,
                                                                           .gain = l->attn_norm,
                                                                           .eps = hp->norm_eps,
                                                                           .n_weights = 3,
                                                                           .w = {l->wq, l->wk, l->wv},
                                                                           .bias = {l->bq, l->bk, l->bv},
                                                                           .y = {q, k, v}};
        realm_planner_op(p, REALM_OP_ROPE_KV)->u.rope_kv = (realm_op_rope_kv){.q = q,
                                                                              .k = k,
                                                                              .v = v,
                                                                              .layer = i,
                                                                              .n_head = hp->n_head,
                                                                              .n_kv_head = hp->n_kv_head,
                                                                              .head_dim = hp->head_dim,
                                                                              .style = hp->rope_style,
                                                                              .rope_dims = hp->rope_dims,
                                                                              .base = hp->rope_base,
                                                                              .freq_scale = hp->rope_freq_scale,
                                                                              .factors = m->rope_factors};
        realm_planner_op(p, REALM_OP_ATTENTION)->u.attention = (realm_op_attention){.q = q,
                                                                                    .out = a,
                                                                                    .layer = i,
                                                                                    .n_head = hp->n_head,
                                                                                    .n_kv_head = hp->n_kv_head,
                                                                                    .head_dim = hp->head_dim,
                                                                                    .scale = hp->attn_scale};
        if (i + 1 == hp->n_layers) {
            realm_planner_op(p, REALM_OP_GATHER)->u.gather = (realm_op_gather){.x = x, .y = wanted};
            x = wanted, h = h_out;
        }
        realm_planner_op(p, REALM_OP_LINEAR)->u.linear = (realm_op_linear){
            .x = a, .n_weights = 1, .w = {l->wo}, .bias = {l->bo}, .y = {x}, .epilogue = REALM_EPILOGUE_ADD};
        realm_planner_op(p, REALM_OP_LINEAR)->u.linear = (realm_op_linear){.x = x,
                                                                           .gain = l->ffn_norm,
                                                                           .eps = hp->norm_eps,
                                                                           .n_weights = 2,
                                                                           .w = {l->w_gate, l->w_up},
                                                                           .bias = {l->b_gate, l->b_up},
                                                                           .y = {h, REALM_VALUE_NONE},
                                                                           .epilogue = REALM_EPILOGUE_GATE,
                                                                           .act = hp->act};
        realm_planner_op(p, REALM_OP_LINEAR)->u.linear = (realm_op_linear){
            .x = h, .n_weights = 1, .w = {l->w_down}, .bias = {l->b_down}, .y = {x}, .epilogue = REALM_EPILOGUE_ADD};
    }
}

const realm_family realm_family_llama = {
    .arch = "llama", .hparams = hparams, .bind = bind, .ops_per_layer = 6, .n_values = 6, .plan = plan};
