/* A forward pass written with tensor ops against the model's own plan: the same bits, whatever the chunks, with weights
 * that stream as with resident ones; and the same tokens on a real file. */
#include "handmade.h"

#define N_TOKENS 150u /* crosses a split of attention and five pages */

static void check(const tiny_spec *spec, const char *level, uint32_t threads, uint32_t chunk, uint64_t budget_percent) {
    realm_error err = {0};
    tiny_model *tiny = tiny_make(spec);
    model_run r = {0};
    if (realm_gguf_open_memory(&r.g, tiny->file, tiny->file_len, &err) != REALM_OK) model_run_fail("gguf", &err);
    realm_backend_config config = {.n_threads = threads, .cpu_level = level};
    if (realm_backend_open_cpu(&r.b, &config, &err) != REALM_OK) model_run_fail("backend", &err);
    realm_model_memory need;
    realm_model_options options = {0};
    if (realm_model_measure(r.b, r.g, &need, &err) != REALM_OK) model_run_fail("measure", &err);
    if (budget_percent > 0)
        options.weight_budget_bytes = need.least_budget + (need.all_bytes - need.least_budget) * budget_percent / 100;
    if (realm_model_open(&r.m, r.b, r.g, &options, &err) != REALM_OK) model_run_fail("model", &err);
    if (realm_model_kv_open(r.m, MODEL_RUN_PAGES, &r.kv, &err) != REALM_OK) model_run_fail("kv", &err);
    if (realm_model_plan_open(r.m, r.kv, N_TOKENS, N_TOKENS, &r.plan, &err) != REALM_OK) model_run_fail("plan", &err);
    for (uint32_t i = 0; i < MODEL_RUN_PAGES; i++) r.pages[i] = (i * 37 + 11) % MODEL_RUN_PAGES;

    int32_t tokens[N_TOKENS];
    for (uint32_t i = 0; i < N_TOKENS; i++) tokens[i] = (int32_t)((i * 7919 + i * i * 31 + 5) % TINY_VOCAB);
    model_run_step(&r, tokens, 0, N_TOKENS, N_TOKENS);
    tensor_run t;
    tensor_run_open(&t, r.b, 0, NULL);
    handmade *f = handmade_open(&t, r.m, chunk, N_TOKENS);
    float *got = malloc(sizeof(float) * chunk * TINY_VOCAB);
    float best[N_TOKENS];
    for (uint32_t from = 0; from < N_TOKENS; from += chunk) {
        uint32_t n = REALM_MIN(chunk, N_TOKENS - from);
        handmade_step(f, tokens + from, n);
        tensor_get(f->logits, 0, (uint64_t)n * TINY_VOCAB, got);
        tensor_get(f->last, 0, n, best);
        for (uint32_t i = 0; i < n; i++) {
            const float *want = model_run_logits(&r, from + i);
            if (memcmp(got + (size_t)i * TINY_VOCAB, want, TINY_VOCAB * sizeof *want) != 0) {
                print_error("%s type %d level %s chunk %u: token %u differs\n", spec->arch, (int)spec->type, level,
                            chunk, from + i);
                fail();
            }
            uint32_t top = 0;
            for (uint32_t j = 1; j < TINY_VOCAB; j++)
                if (want[j] > want[top]) top = j;
            assert_int_equal(top, (int)best[i]);
        }
    }
    free(got);
    handmade_close(f);
    tensor_run_close(&t);
    model_run_close(&r);
    tiny_free(tiny);
}

static const tiny_spec gemma = {.arch = "gemma3",
                                .layers = 7,
                                .d = 64,
                                .heads = 4,
                                .kv_heads = 1,
                                .head_dim = 32,
                                .ff = 96,
                                .n_ctx = 512,
                                .type = REALM_TYPE_F32,
                                .tied = true,
                                .window = 20,
                                .pattern = 3,
                                .rope_base = 1000000.0f,
                                .rope_factor = 8,
                                .seed = 2};

static void same_bits(void **state) {
    (void)state;
    static const char *const levels[] = {"scalar", NULL};
    for (size_t i = 0; i < REALM_ARRAY_LEN(levels); i++) {
        tiny_spec s = tiny_llama;
        s.type = REALM_TYPE_Q8_0;
        check(&s, levels[i], 2, 40, 0);
        s.type = REALM_TYPE_Q4_1;
        s.bias = s.factors = s.tied = true;
        check(&s, levels[i], 1, 1, 0);
        check(&s, levels[i], 3, N_TOKENS, 0);
        check(&gemma, levels[i], 2, 33, 0);
        s = gemma;
        s.type = REALM_TYPE_Q5_0;
        check(&s, levels[i], 3, 7, 0);
    }
}

static void streamed(void **state) {
    (void)state;
    tiny_spec s = tiny_llama;
    s.type = REALM_TYPE_Q4_0;
    s.layers = 5;
    for (uint64_t percent = 0; percent < 100; percent += 30) {
        check(&s, NULL, 2, 50, percent + 1);
        check(&gemma, NULL, 2, 50, percent + 1);
    }
}

/* The file that everybody has, decoded greedily both ways. */
static void real_tokens(void **state) {
    (void)state;
    static const int32_t prompt[] = {504, 3575, 282, 4649, 314}; /* "The capital of France is" */
    const uint32_t n_prompt = REALM_ARRAY_LEN(prompt), n_gen = 24;
    const char *path = cached_model("smollm2-135m-instruct-q4_1.gguf");
    if (!path) skip();
    realm_error err = {0};
    realm_gguf *g;
    if (realm_gguf_open(&g, path, &err) != REALM_OK) model_run_fail("gguf", &err);
    model_run r;
    model_run_open(&r, g, 2, 64, 1);
    tensor_run t;
    tensor_run_open(&t, r.b, 0, NULL);
    handmade *f = handmade_open(&t, r.m, 8, 64);
    int32_t tokens[64];
    memcpy(tokens, prompt, sizeof prompt);
    handmade_step(f, prompt, n_prompt);
    uint32_t row = n_prompt - 1;
    for (uint32_t i = 0; i < n_gen; i++) {
        float best;
        uint32_t at = i == 0 ? 0 : n_prompt + i - 1, n = i == 0 ? n_prompt : 1;
        model_run_step(&r, tokens, at, n, 1);
        const float *logits = model_run_logits(&r, 0);
        uint32_t top = 0;
        for (uint32_t j = 1; j < f->hp->n_vocab; j++)
            if (logits[j] > logits[top]) top = j;
        tensor_get(f->last, row, 1, &best);
        assert_int_equal(top, (int32_t)best);
        tokens[n_prompt + i] = (int32_t)top;
        handmade_step(f, &tokens[n_prompt + i], 1);
        row = 0;
    }
    handmade_close(f);
    tensor_run_close(&t);
    model_run_close(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(same_bits), cmocka_unit_test(streamed),
                                       cmocka_unit_test(real_tokens)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
