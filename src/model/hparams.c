/* model/hparams.c - a model's numbers, read from metadata that nobody has vouched for.
 *
 * Keys are those of the GGUF specification ("<arch>.embedding_length" and so on). A number is used only after it has
 * been compared with a bound that the arithmetic behind it can bear and with the numbers that it must agree with; the
 * tensors' shapes are compared with them in bind.c, so that no buffer is sized by a number that the file's own bytes do
 * not back up. Features that change the result and are not computed here (experts, other RoPE scalings, soft caps) are
 * refused by name rather than left out.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "model/internal.h"

#define MAX_WIDTH (1u << 20) /* d_model, d_ff, heads * head_dim */
#define MAX_HEADS 4096u
#define MAX_HEAD_DIM 1024u
#define MAX_VOCAB (1u << 24)

typedef struct key_name {
    char text[96];
} key_name;

static key_name key_of(const realm_hparams *hp, const char *suffix) {
    key_name k;
    snprintf(k.text, sizeof k.text, "%s.%s", hp->arch, suffix);
    return k;
}

realm_status realm_hparam_u32(const realm_hparams *hp, const realm_gguf *g, const char *suffix, bool required,
                              uint32_t *out, realm_error *err) {
    key_name k = key_of(hp, suffix);
    const realm_gguf_value *v = realm_gguf_find(g, k.text);
    if (v && realm_gguf_type(v) == REALM_GGUF_ARRAY)
        return realm_error_set(err, REALM_E_UNSUPPORTED, "key %s differs from layer to layer, which is not supported",
                               k.text);
    return realm_gguf_get_u32(g, k.text, required, out, err);
}

realm_status realm_hparam_f32(const realm_hparams *hp, const realm_gguf *g, const char *suffix, bool required,
                              float *out, realm_error *err) {
    key_name k = key_of(hp, suffix);
    return realm_gguf_get_f32(g, k.text, required, out, err);
}

static realm_status out_of_range(const realm_hparams *hp, const char *suffix, uint64_t v, uint64_t least, uint64_t most,
                                 realm_error *err) {
    return realm_error_set(err, REALM_E_FORMAT, "key %s.%s is %llu, it must be in %llu..%llu", hp->arch, suffix,
                           (unsigned long long)v, (unsigned long long)least, (unsigned long long)most);
}

/* A required size within 1..most. */
static realm_status read_size(const realm_hparams *hp, const realm_gguf *g, const char *suffix, uint32_t most,
                              uint32_t *out, realm_error *err) {
    realm_status s = realm_hparam_u32(hp, g, suffix, true, out, err);
    if (s != REALM_OK) return s;
    if (*out == 0 || *out > most) return out_of_range(hp, suffix, *out, 1, most, err);
    return REALM_OK;
}

static realm_status bad_float(const realm_hparams *hp, const char *suffix, double v, const char *need,
                              realm_error *err) {
    return realm_error_set(err, REALM_E_FORMAT, "key %s.%s is %g, it must be %s", hp->arch, suffix, v, need);
}

static realm_status read_heads(realm_hparams *hp, const realm_gguf *g, realm_error *err) {
    realm_status s = read_size(hp, g, "attention.head_count", MAX_HEADS, &hp->n_head, err);
    if (s != REALM_OK) return s;
    hp->n_kv_head = hp->n_head;
    s = realm_hparam_u32(hp, g, "attention.head_count_kv", false, &hp->n_kv_head, err);
    if (s != REALM_OK) return s;
    if (hp->n_kv_head == 0 || hp->n_kv_head > hp->n_head)
        return out_of_range(hp, "attention.head_count_kv", hp->n_kv_head, 1, hp->n_head, err);
    if (hp->n_head % hp->n_kv_head != 0)
        return realm_error_set(err, REALM_E_FORMAT, "%u attention heads cannot share %u key-value heads evenly",
                               hp->n_head, hp->n_kv_head);
    uint32_t value_length;
    bool from_model = realm_gguf_find(g, key_of(hp, "attention.key_length").text) == NULL;
    if (from_model) {
        if (hp->d_model % hp->n_head != 0)
            return realm_error_set(err, REALM_E_FORMAT, "embedding length %u is no multiple of %u heads", hp->d_model,
                                   hp->n_head);
        hp->head_dim = hp->d_model / hp->n_head;
    } else {
        s = realm_hparam_u32(hp, g, "attention.key_length", true, &hp->head_dim, err);
        if (s != REALM_OK) return s;
    }
    if (hp->head_dim == 0 || hp->head_dim > MAX_HEAD_DIM)
        return out_of_range(hp, "attention.key_length", hp->head_dim, 1, MAX_HEAD_DIM, err);
    if (hp->head_dim % 2 != 0)
        return realm_error_set(err, REALM_E_FORMAT, "heads of %u values cannot be rotated in pairs", hp->head_dim);
    value_length = hp->head_dim;
    s = realm_hparam_u32(hp, g, "attention.value_length", false, &value_length, err);
    if (s != REALM_OK) return s;
    if (value_length != hp->head_dim)
        return realm_error_set(err, REALM_E_UNSUPPORTED, "keys of %u and values of %u per head are not supported",
                               hp->head_dim, value_length);
    if ((uint64_t)hp->n_head * hp->head_dim > MAX_WIDTH)
        return realm_error_set(err, REALM_E_FORMAT, "%u heads of %u values are more than %u", hp->n_head, hp->head_dim,
                               MAX_WIDTH);
    hp->attn_scale = 1.0f / sqrtf((float)hp->head_dim);
    s = realm_hparam_f32(hp, g, "attention.scale", false, &hp->attn_scale, err);
    if (s == REALM_OK && !(hp->attn_scale > 0.0f))
        return bad_float(hp, "attention.scale", (double)hp->attn_scale, "above 0", err);
    return s;
}

static bool str_is(realm_gguf_str s, const char *text) {
    return s.len == strlen(text) && memcmp(s.data, text, s.len) == 0;
}

static realm_status read_rope(realm_hparams *hp, const realm_gguf *g, realm_error *err) {
    hp->rope_dims = hp->head_dim;
    realm_status s = realm_hparam_u32(hp, g, "rope.dimension_count", false, &hp->rope_dims, err);
    if (s != REALM_OK) return s;
    if (hp->rope_dims == 0 || hp->rope_dims > hp->head_dim || hp->rope_dims % 2 != 0)
        return realm_error_set(err, REALM_E_FORMAT, "key %s.rope.dimension_count is %u, it must be even and at most %u",
                               hp->arch, hp->rope_dims, hp->head_dim);
    hp->rope_base = 10000.0f;
    s = realm_hparam_f32(hp, g, "rope.freq_base", false, &hp->rope_base, err);
    if (s != REALM_OK) return s;
    if (!(hp->rope_base > 0.0f)) return bad_float(hp, "rope.freq_base", (double)hp->rope_base, "above 0", err);

    realm_gguf_str type = {"linear", 6};
    s = realm_gguf_get_str(g, key_of(hp, "rope.scaling.type").text, false, &type, err);
    if (s != REALM_OK) return s;
    if (str_is(type, "none")) {
        hp->rope_freq_scale = 1.0f;
        return REALM_OK;
    }
    if (!str_is(type, "linear")) {
        char text[64];
        return realm_error_set(err, REALM_E_UNSUPPORTED, "RoPE scaling \"%s\" is not supported",
                               realm_escape(text, sizeof text, type.data, type.len));
    }
    /* Older files name the factor rope.scale_linear; 0 stands for none, as in the reference. */
    float factor = 0.0f;
    const char *suffix = "rope.scaling.factor";
    if (!realm_gguf_find(g, key_of(hp, suffix).text)) suffix = "rope.scale_linear";
    s = realm_hparam_f32(hp, g, suffix, false, &factor, err);
    if (s != REALM_OK) return s;
    if (factor < 0.0f) return bad_float(hp, suffix, (double)factor, "0 or more", err);
    hp->rope_freq_scale = factor == 0.0f ? 1.0f : 1.0f / factor;
    if (!isfinite(hp->rope_freq_scale)) return bad_float(hp, suffix, (double)factor, "a usable factor", err);
    return REALM_OK;
}

/* Rows of the embedding, which the tokenizer's table and <arch>.vocab_size must agree with where they are given. */
static realm_status read_vocab(realm_hparams *hp, const realm_gguf *g, realm_error *err) {
    const realm_gguf_tensor *t = realm_gguf_tensor_find(g, "token_embd.weight");
    if (!t) return realm_error_set(err, REALM_E_FORMAT, "tensor token_embd.weight is missing");
    if (t->dims[1] == 0 || t->dims[1] > MAX_VOCAB)
        return realm_error_set(err, REALM_E_FORMAT, "tensor token_embd.weight has %llu rows, 1..%u are supported",
                               (unsigned long long)t->dims[1], MAX_VOCAB);
    hp->n_vocab = (uint32_t)t->dims[1];
    uint32_t said = hp->n_vocab;
    realm_status s = realm_hparam_u32(hp, g, "vocab_size", false, &said, err);
    if (s != REALM_OK) return s;
    if (said != hp->n_vocab)
        return realm_error_set(err, REALM_E_FORMAT, "key %s.vocab_size is %u, but token_embd.weight has %u rows",
                               hp->arch, said, hp->n_vocab);
    const realm_gguf_value *tokens = realm_gguf_find(g, "tokenizer.ggml.tokens");
    if (tokens && realm_gguf_type(tokens) == REALM_GGUF_ARRAY && realm_gguf_array_len(tokens) != hp->n_vocab)
        return realm_error_set(err, REALM_E_FORMAT, "the tokenizer has %llu tokens, but token_embd.weight has %u rows",
                               (unsigned long long)realm_gguf_array_len(tokens), hp->n_vocab);
    return REALM_OK;
}

/* Metadata that asks for a computation that is not done here. */
static realm_status refuse_unknown_features(const realm_hparams *hp, const realm_gguf *g, realm_error *err) {
    uint32_t experts = 0;
    realm_status s = realm_hparam_u32(hp, g, "expert_count", false, &experts, err);
    if (s != REALM_OK) return s;
    if (experts != 0)
        return realm_error_set(err, REALM_E_UNSUPPORTED, "mixtures of experts (%u) are not supported", experts);
    static const char *const caps[] = {"final_logit_softcapping", "attn_logit_softcapping"};
    for (size_t i = 0; i < REALM_ARRAY_LEN(caps); i++) {
        float cap = 0.0f;
        s = realm_hparam_f32(hp, g, caps[i], false, &cap, err);
        if (s != REALM_OK) return s;
        if (cap != 0.0f)
            return realm_error_set(err, REALM_E_UNSUPPORTED, "key %s.%s (%g) is not supported", hp->arch, caps[i],
                                   (double)cap);
    }
    bool causal = true;
    s = realm_gguf_get_bool(g, key_of(hp, "attention.causal").text, false, &causal, err);
    if (s != REALM_OK) return s;
    if (!causal) return realm_error_set(err, REALM_E_UNSUPPORTED, "models without a causal mask are not supported");
    return REALM_OK;
}

realm_status realm_hparams_read(realm_hparams *hp, const realm_gguf *g, realm_error *err) {
    realm_status s = refuse_unknown_features(hp, g, err);
    if (s == REALM_OK) s = read_size(hp, g, "block_count", REALM_MODEL_MAX_LAYERS, &hp->n_layers, err);
    if (s == REALM_OK) s = read_size(hp, g, "embedding_length", MAX_WIDTH, &hp->d_model, err);
    if (s == REALM_OK) s = read_size(hp, g, "feed_forward_length", MAX_WIDTH, &hp->d_ff, err);
    if (s == REALM_OK) s = read_size(hp, g, "context_length", INT32_MAX, &hp->n_ctx_train, err);
    if (s == REALM_OK) s = read_heads(hp, g, err);
    if (s == REALM_OK) s = read_rope(hp, g, err);
    if (s == REALM_OK) s = read_vocab(hp, g, err);
    if (s == REALM_OK) s = realm_hparam_f32(hp, g, "attention.layer_norm_rms_epsilon", true, &hp->norm_eps, err);
    if (s != REALM_OK) return s;
    /* 0 would make a row of zeros divide by zero. */
    if (!(hp->norm_eps > 0.0f && hp->norm_eps < 1.0f))
        return bad_float(hp, "attention.layer_norm_rms_epsilon", (double)hp->norm_eps, "between 0 and 1", err);
    hp->embed_scale = 1.0f;
    hp->rope_base_local = hp->rope_base;
    return REALM_OK;
}

realm_status realm_hparams_check(const realm_hparams *hp, const realm_gguf *g, realm_error *err) {
    (void)g;
    if (!(hp->rope_base_local > 0.0f) || !isfinite(hp->rope_base_local))
        return bad_float(hp, "rope.freq_base_swa", (double)hp->rope_base_local, "above 0", err);
    if (hp->window > INT32_MAX) return out_of_range(hp, "attention.sliding_window", hp->window, 0, INT32_MAX, err);
    if (hp->window_pattern > REALM_MODEL_MAX_LAYERS)
        return out_of_range(hp, "attention.sliding_window_pattern", hp->window_pattern, 0, REALM_MODEL_MAX_LAYERS, err);
    return REALM_OK;
}
