/* support/tiny_model.h - small random model files, made by the GGUF writer, with a vocabulary that text can be made of.
 *
 * The float values behind each tensor (after a round through its type) stay readable by name, so that a test can do the
 * same computation in its own way. Vocabulary: 0 <unk>, 1 <s>, 2 </s>, 3..258 the bytes, then TINY_PIECES.
 */
#ifndef TESTS_SUPPORT_TINY_MODEL_H
#define TESTS_SUPPORT_TINY_MODEL_H

#include "support/model_run.h"

#define TINY_BYTE(b) (3 + (b))
#define TINY_PIECE(i) (259 + (i))
static const char *const TINY_PIECES[] = {"\xe2\x96\x81", "a",    "b",   "c", "ab", "bc", "\xe2\x96\x81the",
                                          "\xe2\x82\xac", "stop", "END", "d", "e"};
#define TINY_N_PIECES 12u
#define TINY_VOCAB (259u + TINY_N_PIECES + 49u) /* 320; the rest are letters with a number */

typedef struct tiny_spec {
    const char *arch;
    uint32_t layers, d, heads, kv_heads, head_dim, ff, n_ctx;
    realm_type type; /* of the matrices */
    bool tied, bias, factors;
    uint32_t window, pattern; /* gemma3 */
    float rope_base, rope_factor;
    uint64_t seed;
} tiny_spec;

typedef struct tiny_tensor {
    char name[64];
    uint64_t rows, cols;
    realm_type type;
    float *values; /* (rows, cols) */
    void *bytes;
} tiny_tensor;

typedef struct tiny_model {
    tiny_spec spec;
    tiny_tensor tensors[256];
    size_t n;
    uint64_t rng;
    void *file;
    size_t file_len;
} tiny_model;

static float tiny_random(tiny_model *m) { /* about normal: sum of four uniforms */
    float sum = 0;
    for (int i = 0; i < 4; i++) {
        m->rng = m->rng * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        sum += (float)(m->rng >> 40) * 0x1p-24f - 0.5f;
    }
    return sum * 1.7f;
}

static void tiny_add(tiny_model *m, const char *name, uint64_t rows, uint64_t cols, realm_type type, float mean,
                     float scale) {
    tiny_tensor *t = &m->tensors[m->n++];
    const realm_type_info *info = realm_type_get((uint32_t)type);
    uint64_t row_bytes;
    assert_true(realm_type_row_bytes(info, cols, &row_bytes));
    snprintf(t->name, sizeof t->name, "%s", name);
    t->rows = rows;
    t->cols = cols;
    t->type = type;
    t->values = malloc(rows * cols * sizeof *t->values);
    t->bytes = malloc(rows * row_bytes);
    for (uint64_t i = 0; i < rows * cols; i++) t->values[i] = mean + scale * tiny_random(m);
    for (uint64_t r = 0; r < rows; r++) {
        info->quantize(t->values + r * cols, (char *)t->bytes + r * row_bytes, cols);
        info->dequantize((char *)t->bytes + r * row_bytes, t->values + r * cols, cols);
    }
}

__attribute__((unused)) static const float *tiny_find(const tiny_model *m, const char *name) {
    for (size_t i = 0; i < m->n; i++)
        if (strcmp(m->tensors[i].name, name) == 0) return m->tensors[i].values;
    return NULL;
}

static void tiny_tensors(tiny_model *m) {
    const tiny_spec *s = &m->spec;
    const bool gemma = strcmp(s->arch, "gemma3") == 0;
    const uint64_t q = (uint64_t)s->heads * s->head_dim, kv = (uint64_t)s->kv_heads * s->head_dim;
    char name[64];
    tiny_add(m, "token_embd.weight", TINY_VOCAB, s->d, s->type, 0, gemma ? 0.2f : 1.0f);
    tiny_add(m, "output_norm.weight", 1, s->d, REALM_TYPE_F32, 1, 0.1f);
    if (!s->tied) tiny_add(m, "output.weight", TINY_VOCAB, s->d, s->type, 0, 0.3f);
    if (s->factors) tiny_add(m, "rope_freqs.weight", 1, s->head_dim / 2, REALM_TYPE_F32, 2, 0.3f);
    for (uint32_t i = 0; i < s->layers; i++) {
#define TINY(suffix, rows, cols, type, mean, scale)   \
    snprintf(name, sizeof name, "blk.%u." suffix, i); \
    tiny_add(m, name, rows, cols, type, mean, scale)
        const float w = 1.0f / 8.0f;
        TINY("attn_norm.weight", 1, s->d, REALM_TYPE_F32, 1, 0.2f);
        TINY("attn_q.weight", q, s->d, s->type, 0, w);
        TINY("attn_k.weight", kv, s->d, s->type, 0, w);
        TINY("attn_v.weight", kv, s->d, s->type, 0, w);
        TINY("attn_output.weight", s->d, q, s->type, 0, w);
        TINY("ffn_norm.weight", 1, s->d, REALM_TYPE_F32, 1, 0.2f);
        TINY("ffn_gate.weight", s->ff, s->d, s->type, 0, w);
        TINY("ffn_up.weight", s->ff, s->d, s->type, 0, w);
        TINY("ffn_down.weight", s->d, s->ff, s->type, 0, w);
        if (s->bias) {
            TINY("attn_q.bias", 1, q, REALM_TYPE_F32, 0, 0.3f);
            TINY("attn_k.bias", 1, kv, REALM_TYPE_F32, 0, 0.3f);
            TINY("attn_v.bias", 1, kv, REALM_TYPE_F32, 0, 0.3f);
            TINY("attn_output.bias", 1, s->d, REALM_TYPE_F32, 0, 0.3f);
        }
        if (gemma) {
            TINY("attn_q_norm.weight", 1, s->head_dim, REALM_TYPE_F32, 1, 0.2f);
            TINY("attn_k_norm.weight", 1, s->head_dim, REALM_TYPE_F32, 1, 0.2f);
            TINY("post_attention_norm.weight", 1, s->d, REALM_TYPE_F32, 1, 0.2f);
            TINY("post_ffw_norm.weight", 1, s->d, REALM_TYPE_F32, 1, 0.2f);
        }
#undef TINY
    }
}

static void tiny_u32(realm_gguf_writer *w, const tiny_spec *s, const char *key, uint32_t v) {
    char name[96];
    snprintf(name, sizeof name, "%s.%s", s->arch, key);
    assert_int_equal(realm_gguf_put_u32(w, name, v), REALM_OK);
}

static void tiny_f32(realm_gguf_writer *w, const tiny_spec *s, const char *key, float v) {
    char name[96];
    snprintf(name, sizeof name, "%s.%s", s->arch, key);
    assert_int_equal(realm_gguf_put_f32(w, name, v), REALM_OK);
}

static void tiny_vocabulary(realm_gguf_writer *w) {
    static char text[TINY_VOCAB][12];
    static realm_gguf_str tokens[TINY_VOCAB];
    static float scores[TINY_VOCAB];
    static int32_t types[TINY_VOCAB];
    for (uint32_t i = 0; i < TINY_VOCAB; i++) {
        types[i] = 1;
        scores[i] = -(float)i;
        if (i == 0) {
            snprintf(text[i], sizeof text[i], "<unk>");
            types[i] = 2;
        } else if (i < 3) {
            snprintf(text[i], sizeof text[i], i == 1 ? "<s>" : "</s>");
            types[i] = 3;
        } else if (i < 259) {
            snprintf(text[i], sizeof text[i], "<0x%02X>", i - 3);
            types[i] = 6;
        } else if (i < 259 + TINY_N_PIECES) {
            snprintf(text[i], sizeof text[i], "%s", TINY_PIECES[i - 259]);
        } else {
            snprintf(text[i], sizeof text[i], "%c%u", (char)('f' + i % 20), i);
        }
        tokens[i] = (realm_gguf_str){text[i], strlen(text[i])};
    }
    assert_int_equal(realm_gguf_put_str(w, "tokenizer.ggml.model", "llama", 5), REALM_OK);
    assert_int_equal(realm_gguf_put_str(w, "tokenizer.ggml.pre", "default", 7), REALM_OK);
    assert_int_equal(realm_gguf_put_strs(w, "tokenizer.ggml.tokens", tokens, TINY_VOCAB), REALM_OK);
    assert_int_equal(realm_gguf_put_array(w, "tokenizer.ggml.scores", REALM_GGUF_F32, scores, TINY_VOCAB), REALM_OK);
    assert_int_equal(realm_gguf_put_array(w, "tokenizer.ggml.token_type", REALM_GGUF_I32, types, TINY_VOCAB), REALM_OK);
    assert_int_equal(realm_gguf_put_u32(w, "tokenizer.ggml.bos_token_id", 1), REALM_OK);
    assert_int_equal(realm_gguf_put_u32(w, "tokenizer.ggml.eos_token_id", 2), REALM_OK);
    assert_int_equal(realm_gguf_put_bool(w, "tokenizer.ggml.add_space_prefix", false), REALM_OK);
}

/* The metadata of the spec, before `change` (may be NULL) had a say by adding keys. */
static void tiny_metadata(realm_gguf_writer *w, const tiny_spec *s) {
    assert_int_equal(realm_gguf_put_str(w, "general.architecture", s->arch, strlen(s->arch)), REALM_OK);
    tiny_u32(w, s, "block_count", s->layers);
    tiny_u32(w, s, "context_length", s->n_ctx);
    tiny_u32(w, s, "embedding_length", s->d);
    tiny_u32(w, s, "feed_forward_length", s->ff);
    tiny_u32(w, s, "attention.head_count", s->heads);
    tiny_u32(w, s, "attention.head_count_kv", s->kv_heads);
    tiny_u32(w, s, "attention.key_length", s->head_dim);
    tiny_u32(w, s, "attention.value_length", s->head_dim);
    tiny_f32(w, s, "attention.layer_norm_rms_epsilon", 1e-5f);
    tiny_f32(w, s, "rope.freq_base", s->rope_base);
    if (s->rope_factor > 0) tiny_f32(w, s, "rope.scaling.factor", s->rope_factor);
    if (s->window > 0) tiny_u32(w, s, "attention.sliding_window", s->window);
    if (s->pattern > 0) tiny_u32(w, s, "attention.sliding_window_pattern", s->pattern);
}

__attribute__((unused)) static tiny_model *tiny_make(const tiny_spec *spec) {
    tiny_model *m = calloc(1, sizeof *m);
    realm_error err = {0};
    realm_gguf_writer *w;
    m->spec = *spec;
    m->rng = spec->seed * 2654435761u + 12345;
    tiny_tensors(m);
    if (realm_gguf_writer_open(&w, 3, 32, &err) != REALM_OK) model_run_fail("writer", &err);
    tiny_metadata(w, spec);
    tiny_vocabulary(w);
    for (size_t i = 0; i < m->n; i++) {
        const tiny_tensor *t = &m->tensors[i];
        uint64_t dims[2] = {t->cols, t->rows};
        assert_int_equal(realm_gguf_put_tensor(w, t->name, t->type, t->rows == 1 ? 1 : 2, dims, t->bytes), REALM_OK);
    }
    if (realm_gguf_writer_finish(w, &m->file, &m->file_len, &err) != REALM_OK) model_run_fail("finish", &err);
    realm_gguf_writer_close(w);
    return m;
}

__attribute__((unused)) static void tiny_free(tiny_model *m) {
    for (size_t i = 0; i < m->n; i++) {
        free(m->tensors[i].values);
        free(m->tensors[i].bytes);
    }
    realm_free(m->file);
    free(m);
}

static const tiny_spec tiny_llama = {.arch = "llama",
                                     .layers = 3,
                                     .d = 64,
                                     .heads = 4,
                                     .kv_heads = 2,
                                     .head_dim = 16,
                                     .ff = 96,
                                     .n_ctx = 512,
                                     .type = REALM_TYPE_F32,
                                     .rope_base = 10000.0f,
                                     .seed = 1};

#endif
