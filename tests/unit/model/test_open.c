/* Model files that must fail with a clear error: hyperparameters out of range or in contradiction, tensors missing, of
 * another shape, or unknown; random damage; memory that runs out anywhere. */
#include <math.h>

#include "support/tiny_model.h"

static const tiny_spec base = {.arch = "llama",
                               .layers = 2,
                               .d = 32,
                               .heads = 4,
                               .kv_heads = 2,
                               .head_dim = 8,
                               .ff = 32,
                               .n_ctx = 64,
                               .type = REALM_TYPE_F32,
                               .rope_base = 10000.0f,
                               .seed = 1};

typedef enum change_kind { NO_KEY, U32, F32, STR, BOOLEAN, U32_ARRAY } change_kind;

/* One key set, replaced or (NO_KEY) left out; or one tensor left out, added or given other dimensions. */
typedef struct change {
    const char *key;
    change_kind kind;
    double number;
    const char *text;
    const char *tensor;
    uint64_t dims[2];
    int code;
    const char *word;
    const char *arch;
} change;

static const change changes[] = {
    {.key = "general.architecture", .kind = NO_KEY, .code = REALM_E_FORMAT, .word = "architecture"},
    {.key = "general.architecture", .kind = STR, .text = "mamba", .code = REALM_E_UNSUPPORTED, .word = "mamba"},
    {.key = "general.architecture", .kind = U32, .number = 3, .code = REALM_E_FORMAT, .word = "architecture"},
    {.key = "llama.block_count", .kind = NO_KEY, .code = REALM_E_FORMAT, .word = "block_count"},
    {.key = "llama.block_count", .kind = U32, .number = 0, .code = REALM_E_FORMAT, .word = "block_count"},
    {.key = "llama.block_count", .kind = U32, .number = 1025, .code = REALM_E_FORMAT, .word = "block_count"},
    {.key = "llama.block_count", .kind = U32, .number = 4294967295., .code = REALM_E_FORMAT, .word = "block_count"},
    {.key = "llama.block_count", .kind = U32, .number = 3, .code = REALM_E_FORMAT, .word = "blk.2."},
    {.key = "llama.block_count", .kind = U32, .number = 1, .code = REALM_E_UNSUPPORTED, .word = "blk.1."},
    {.key = "llama.block_count", .kind = STR, .text = "2", .code = REALM_E_FORMAT, .word = "block_count"},
    {.key = "llama.context_length", .kind = U32, .number = 0, .code = REALM_E_FORMAT, .word = "context_length"},
    {.key = "llama.context_length", .kind = U32, .number = 4e9, .code = REALM_E_FORMAT, .word = "context_length"},
    {.key = "llama.embedding_length", .kind = U32, .number = 0, .code = REALM_E_FORMAT, .word = "embedding_length"},
    {.key = "llama.embedding_length", .kind = U32, .number = 4e9, .code = REALM_E_FORMAT, .word = "embedding_length"},
    {.key = "llama.embedding_length", .kind = U32, .number = 64, .code = REALM_E_FORMAT, .word = "token_embd"},
    {.key = "llama.feed_forward_length", .kind = U32, .number = 33, .code = REALM_E_FORMAT, .word = "ffn_gate"},
    {.key = "llama.feed_forward_length", .kind = U32_ARRAY, .number = 32, .code = REALM_E_UNSUPPORTED, .word = "layer"},
    {.key = "llama.attention.head_count", .kind = U32, .number = 0, .code = REALM_E_FORMAT, .word = "head_count"},
    {.key = "llama.attention.head_count", .kind = U32, .number = 5000, .code = REALM_E_FORMAT, .word = "head_count"},
    {.key = "llama.attention.head_count", .kind = U32, .number = 3, .code = REALM_E_FORMAT, .word = "evenly"},
    {.key = "llama.attention.head_count_kv", .kind = U32, .number = 0, .code = REALM_E_FORMAT, .word = "head_count_kv"},
    {.key = "llama.attention.head_count_kv", .kind = U32, .number = 8, .code = REALM_E_FORMAT, .word = "head_count_kv"},
    {.key = "llama.attention.key_length", .kind = U32, .number = 7, .code = REALM_E_FORMAT, .word = "pairs"},
    {.key = "llama.attention.key_length", .kind = U32, .number = 0, .code = REALM_E_FORMAT, .word = "key_length"},
    {.key = "llama.attention.key_length", .kind = U32, .number = 1e6, .code = REALM_E_FORMAT, .word = "key_length"},
    {.key = "llama.attention.key_length", .kind = U32, .number = 16, .code = REALM_E_UNSUPPORTED, .word = "per head"},
    {.key = "llama.attention.value_length", .kind = U32, .number = 16, .code = REALM_E_UNSUPPORTED, .word = "per head"},
    {.key = "llama.attention.scale", .kind = F32, .number = -1, .code = REALM_E_FORMAT, .word = "attention.scale"},
    {.key = "llama.attention.layer_norm_rms_epsilon", .kind = NO_KEY, .code = REALM_E_FORMAT, .word = "epsilon"},
    {.key = "llama.attention.layer_norm_rms_epsilon", .kind = F32, .number = 0, .code = REALM_E_FORMAT, .word = "epsi"},
    {.key = "llama.attention.layer_norm_rms_epsilon", .kind = F32, .number = -1, .code = REALM_E_FORMAT, .word = "eps"},
    {.key = "llama.attention.layer_norm_rms_epsilon", .kind = F32, .number = NAN, .code = REALM_E_FORMAT, .word = "ep"},
    {.key = "llama.attention.layer_norm_rms_epsilon",
     .kind = F32,
     .number = INFINITY,
     .code = REALM_E_FORMAT,
     .word = "ep"},
    {.key = "llama.rope.freq_base", .kind = F32, .number = 0, .code = REALM_E_FORMAT, .word = "freq_base"},
    {.key = "llama.rope.freq_base", .kind = F32, .number = -INFINITY, .code = REALM_E_FORMAT, .word = "freq_base"},
    {.key = "llama.rope.dimension_count", .kind = U32, .number = 10, .code = REALM_E_FORMAT, .word = "dimension_count"},
    {.key = "llama.rope.dimension_count", .kind = U32, .number = 3, .code = REALM_E_FORMAT, .word = "dimension_count"},
    {.key = "llama.rope.scaling.type", .kind = STR, .text = "yarn", .code = REALM_E_UNSUPPORTED, .word = "yarn"},
    {.key = "llama.rope.scaling.factor", .kind = F32, .number = -2, .code = REALM_E_FORMAT, .word = "factor"},
    {.key = "llama.rope.scaling.factor", .kind = F32, .number = NAN, .code = REALM_E_FORMAT, .word = "factor"},
    {.key = "llama.expert_count", .kind = U32, .number = 8, .code = REALM_E_UNSUPPORTED, .word = "experts"},
    {.key = "llama.final_logit_softcapping", .kind = F32, .number = 30, .code = REALM_E_UNSUPPORTED, .word = "cap"},
    {.key = "llama.attention.causal", .kind = BOOLEAN, .number = 0, .code = REALM_E_UNSUPPORTED, .word = "causal"},
    {.key = "llama.vocab_size", .kind = U32, .number = 319, .code = REALM_E_FORMAT, .word = "vocab_size"},
    {.tensor = "token_embd.weight", .code = REALM_E_FORMAT, .word = "token_embd"},
    {.tensor = "output_norm.weight", .code = REALM_E_FORMAT, .word = "output_norm"},
    {.tensor = "blk.1.attn_k.weight", .code = REALM_E_FORMAT, .word = "blk.1.attn_k"},
    {.tensor = "blk.1.ffn_down.weight", .code = REALM_E_FORMAT, .word = "blk.1.ffn_down"},
    {.tensor = "blk.0.attn_q.weight", .dims = {16, 64}, .code = REALM_E_FORMAT, .word = "blk.0.attn_q"},
    {.tensor = "blk.0.attn_norm.weight", .dims = {16, 2}, .code = REALM_E_FORMAT, .word = "blk.0.attn_norm"},
    {.tensor = "token_embd.weight", .dims = {32, 319}, .code = REALM_E_FORMAT, .word = "tokenizer"},
    {.tensor = "output.weight", .dims = {32, 100}, .code = REALM_E_FORMAT, .word = "output.weight"},
    {.tensor = "blk.0.ffn_gate_inp.weight", .dims = {32, 1}, .code = REALM_E_UNSUPPORTED, .word = "ffn_gate_inp"},
    {.arch = "gemma3",
     .key = "gemma3.attention.sliding_window",
     .kind = U32,
     .number = 4e9,
     .code = REALM_E_FORMAT,
     .word = "sliding_window"},
    {.arch = "gemma3",
     .key = "gemma3.rope.freq_base_swa",
     .kind = F32,
     .number = -1,
     .code = REALM_E_FORMAT,
     .word = "freq_base_swa"},
    {.arch = "gemma3", .tensor = "blk.1.attn_q_norm.weight", .code = REALM_E_FORMAT, .word = "attn_q_norm"},
    {.arch = "gemma3", .tensor = "blk.1.post_ffw_norm.weight", .code = REALM_E_FORMAT, .word = "post_ffw_norm"},
};

/* Copies a file with one change. */
static realm_gguf *changed(const void *file, size_t len, const change *c, void **bytes) {
    realm_gguf *g, *out;
    realm_gguf_writer *w;
    realm_error err = {0};
    size_t out_len;
    assert_int_equal(realm_gguf_open_memory(&g, file, len, &err), REALM_OK);
    assert_int_equal(realm_gguf_writer_open(&w, 3, 32, &err), REALM_OK);
    for (size_t i = 0; i < realm_gguf_key_count(g); i++) {
        realm_gguf_str k = realm_gguf_key_at(g, i);
        const realm_gguf_value *v = realm_gguf_value_at(g, i);
        char key[128];
        snprintf(key, sizeof key, "%.*s", (int)k.len, k.data);
        if (c->key && strcmp(key, c->key) == 0) continue;
        uint32_t u = 0;
        float f = 0;
        bool b = false;
        realm_gguf_str s = {0}, *strs;
        realm_gguf_iter it;
        switch (realm_gguf_type(v)) {
        case REALM_GGUF_U32:
            assert_int_equal(realm_gguf_get_u32(g, key, true, &u, &err), REALM_OK);
            assert_int_equal(realm_gguf_put_u32(w, key, u), REALM_OK);
            break;
        case REALM_GGUF_F32:
            assert_int_equal(realm_gguf_get_f32(g, key, true, &f, &err), REALM_OK);
            assert_int_equal(realm_gguf_put_f32(w, key, f), REALM_OK);
            break;
        case REALM_GGUF_BOOL:
            assert_int_equal(realm_gguf_get_bool(g, key, true, &b, &err), REALM_OK);
            assert_int_equal(realm_gguf_put_bool(w, key, b), REALM_OK);
            break;
        case REALM_GGUF_STRING:
            assert_int_equal(realm_gguf_get_str(g, key, true, &s, &err), REALM_OK);
            assert_int_equal(realm_gguf_put_str(w, key, s.data, s.len), REALM_OK);
            break;
        default: /* the tokenizer's arrays: only the tokens matter here */
            if (realm_gguf_array_type(v) != REALM_GGUF_STRING) break;
            strs = calloc(realm_gguf_array_len(v), sizeof *strs);
            realm_gguf_iter_init(&it, v);
            for (size_t n = 0; realm_gguf_iter_next(&it, &s);) strs[n++] = s;
            assert_int_equal(realm_gguf_put_strs(w, key, strs, realm_gguf_array_len(v)), REALM_OK);
            free(strs);
        }
    }
    if (c->key && c->kind == U32) assert_int_equal(realm_gguf_put_u32(w, c->key, (uint32_t)c->number), REALM_OK);
    if (c->key && c->kind == F32) assert_int_equal(realm_gguf_put_f32(w, c->key, (float)c->number), REALM_OK);
    if (c->key && c->kind == BOOLEAN) assert_int_equal(realm_gguf_put_bool(w, c->key, c->number != 0), REALM_OK);
    if (c->key && c->kind == STR) assert_int_equal(realm_gguf_put_str(w, c->key, c->text, strlen(c->text)), REALM_OK);
    if (c->key && c->kind == U32_ARRAY) {
        uint32_t two[2] = {(uint32_t)c->number, (uint32_t)c->number};
        assert_int_equal(realm_gguf_put_array(w, c->key, REALM_GGUF_U32, two, 2), REALM_OK);
    }
    static float zeros[32 * TINY_VOCAB];
    bool found = false;
    for (size_t i = 0; i < realm_gguf_tensor_count(g); i++) {
        const realm_gguf_tensor *t = realm_gguf_tensor_at(g, i);
        char name[64];
        snprintf(name, sizeof name, "%.*s", (int)t->name.len, t->name.data);
        bool same = c->tensor && strcmp(name, c->tensor) == 0;
        found |= same;
        if (same && c->dims[0] == 0) continue;
        assert_int_equal(realm_gguf_put_tensor(w, name, t->type->type, t->n_dims < 2 && same ? 2 : t->n_dims,
                                               same ? c->dims : t->dims, same ? zeros : t->data),
                         REALM_OK);
    }
    if (c->tensor && !found && c->dims[0] > 0)
        assert_int_equal(realm_gguf_put_tensor(w, c->tensor, REALM_TYPE_F32, 2, c->dims, zeros), REALM_OK);
    if (realm_gguf_writer_finish(w, bytes, &out_len, &err) != REALM_OK) model_run_fail("finish", &err);
    realm_gguf_writer_close(w);
    realm_gguf_close(g);
    if (realm_gguf_open_memory(&out, *bytes, out_len, &err) != REALM_OK) model_run_fail("reopen", &err);
    return out;
}

static realm_backend *backend(void) {
    realm_backend *b;
    assert_int_equal(realm_backend_open_cpu(&b, &(realm_backend_config){.n_threads = 1}, NULL), REALM_OK);
    return b;
}

static void refused(void **state) {
    (void)state;
    realm_backend *b = backend();
    for (size_t i = 0; i < REALM_ARRAY_LEN(changes); i++) {
        const change *c = &changes[i];
        tiny_spec spec = base;
        if (c->arch) spec.arch = c->arch, spec.window = 16;
        spec.tied = c->tensor && strcmp(c->tensor, "output.weight") == 0;
        tiny_model *file = tiny_make(&spec);
        realm_error err = {0};
        realm_model *m = NULL;
        void *bytes;
        realm_gguf *g = changed(file->file, file->file_len, c, &bytes);
        realm_status s = realm_model_open(&m, b, g, NULL, &err);
        if (s != c->code || err.code != s || !strstr(err.text, c->word))
            fail_msg("change %zu (%s%s): %s: \"%s\"", i, c->key ? c->key : "", c->tensor ? c->tensor : "",
                     realm_status_name(s), err.text);
        assert_null(m);
        realm_gguf_close(g);
        realm_free(bytes);
        tiny_free(file);
    }
    realm_backend_close(b);
}

static void hyperparameters(void **state) {
    (void)state;
    realm_backend *b = backend();
    realm_error err = {0};
    tiny_spec spec = base;
    spec.arch = "gemma3";
    spec.window = 16;
    spec.rope_factor = 4;
    spec.tied = true;
    tiny_model *file = tiny_make(&spec);
    void *bytes;
    realm_gguf *g = changed(file->file, file->file_len, &(change){0}, &bytes);
    realm_model *m;
    assert_int_equal(realm_model_open(&m, b, g, NULL, &err), REALM_OK);
    const realm_hparams *hp = realm_model_hparams(m);
    assert_string_equal(hp->arch, "gemma3");
    assert_int_equal(hp->n_vocab, TINY_VOCAB);
    assert_int_equal(hp->window, 16);
    assert_int_equal(hp->window_pattern, 6);
    assert_true(hp->tied_output);
    assert_true(hp->rope_freq_scale == 0.25f && hp->rope_base_local == 10000.0f && hp->embed_scale == sqrtf(32));
    assert_true(realm_model_weight_bytes(m) > 0);
    realm_model_close(m);
    realm_gguf_close(g);
    realm_free(bytes);
    tiny_free(file);
    realm_backend_close(b);
}

/* Bytes of the header changed at random: an error or a model, never a crash; a model that opens can be run. */
static void damage(void **state) {
    (void)state;
    realm_backend *b = backend();
    tiny_spec spec = base;
    spec.layers = 1;
    tiny_model *file = tiny_make(&spec);
    unsigned char *copy = malloc(file->file_len);
    uint64_t rng = 5;
    unsigned opened = 0, refusals = 0;
    for (int round = 0; round < 1500; round++) {
        memcpy(copy, file->file, file->file_len);
        for (int k = 0; k < 1 + round % 3; k++) {
            rng = rng * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
            size_t where = (rng >> 40) % (k == 0 && round % 2 ? 1200 : file->file_len); /* the keys come first */
            copy[where] = (unsigned char)(rng >> 32);
        }
        realm_gguf *g;
        realm_error err = {0};
        if (realm_gguf_open_memory(&g, copy, file->file_len, &err) != REALM_OK) continue;
        realm_model *m;
        if (realm_model_open(&m, b, g, NULL, &err) == REALM_OK) {
            opened++;
            if (realm_model_hparams(m)->n_vocab > 3) {
                realm_kv *kv = NULL;
                realm_plan *plan = NULL;
                if (realm_model_kv_open(m, 1, &kv, &err) == REALM_OK &&
                    realm_model_plan_open(m, kv, 4, 1, &plan, &err) == REALM_OK) {
                    int32_t tokens[] = {1, 2, 3};
                    uint32_t page = 0, last = 2;
                    realm_batch_seq seq = {.n_rows = 3, .pages = &page};
                    realm_batch batch = {
                        .n_rows = 3, .tokens = tokens, .n_seqs = 1, .seqs = &seq, .n_out = 1, .out_rows = &last};
                    assert_int_equal(b->v->run(b, plan, &batch, &err), REALM_OK);
                }
                if (plan) b->v->plan_close(b, plan);
                if (kv) b->v->kv_close(b, kv);
            }
            realm_model_close(m);
        } else {
            assert_true(err.code != REALM_OK && err.text[0] != '\0');
            refusals++;
        }
        realm_gguf_close(g);
    }
    assert_true(opened > 100 && refusals > 50);
    free(copy);
    tiny_free(file);
    realm_backend_close(b);
}

static void memory_runs_out(void **state) {
    (void)state;
    realm_backend *b = backend();
    tiny_model *file = tiny_make(&base);
    realm_gguf *g;
    realm_error err = {0};
    assert_int_equal(realm_gguf_open_memory(&g, file->file, file->file_len, &err), REALM_OK);
    int failures = 0;
    for (int64_t n = 0;; n++) {
        realm_model *m = NULL;
        realm_kv *kv = NULL;
        realm_plan *plan = NULL;
        realm_alloc_inject_failure(n, false);
        realm_status s = realm_model_open(&m, b, g, NULL, &err);
        if (s == REALM_OK) s = realm_model_kv_open(m, 2, &kv, &err);
        if (s == REALM_OK) s = realm_model_plan_open(m, kv, 8, 2, &plan, &err);
        realm_alloc_inject_failure(-1, false);
        if (plan) b->v->plan_close(b, plan);
        if (kv) b->v->kv_close(b, kv);
        realm_model_close(m);
        if (s == REALM_OK) break;
        assert_int_equal(s, REALM_E_NOMEM);
        failures++;
    }
    assert_true(failures > 20);
    realm_gguf_close(g);
    tiny_free(file);
    realm_backend_close(b);
}

typedef struct patience {
    uint32_t calls, most;
    uint64_t done, total;
} patience;

static bool until_enough(void *user, uint64_t done, uint64_t total) {
    patience *p = user;
    assert_true(done >= p->done && done <= total && (p->total == 0 || p->total == total));
    p->done = done;
    p->total = total;
    return ++p->calls < p->most;
}

/* Loading is given up at each of its steps in turn, with weights resident and with a budget; then it comes to its end.
 */
static void given_up(void **state) {
    (void)state;
    realm_backend *b = backend();
    tiny_model *file = tiny_make(&base);
    realm_gguf *g;
    realm_error err = {0};
    realm_model_memory memory;
    assert_int_equal(realm_gguf_open_memory(&g, file->file, file->file_len, &err), REALM_OK);
    assert_int_equal(realm_model_measure(b, g, &memory, &err), REALM_OK);
    for (int streams = 0; streams < 2; streams++) {
        uint32_t n = 1;
        for (;; n++) {
            realm_model *m = NULL;
            patience p = {.most = n};
            realm_model_options options = {
                .weight_budget_bytes = streams ? memory.least_budget : 0, .progress = until_enough, .user = &p};
            realm_status s = realm_model_open(&m, b, g, &options, &err);
            if (s == REALM_OK) {
                assert_true(p.calls < n && p.done == p.total);
                realm_model_close(m);
                break;
            }
            assert_int_equal(s, REALM_E_CANCELLED);
            assert_null(m);
            assert_int_equal(p.calls, n); /* and not asked again */
        }
        assert_true(n > 10);
    }
    realm_gguf_close(g);
    tiny_free(file);
    realm_backend_close(b);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(refused), cmocka_unit_test(hyperparameters),
                                       cmocka_unit_test(damage), cmocka_unit_test(memory_runs_out),
                                       cmocka_unit_test(given_up)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
