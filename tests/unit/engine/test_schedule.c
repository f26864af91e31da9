/* The scheduler: who shares a step never shows in the tokens; limits, cancels, slow readers and lack of memory end or
 * delay only whom they concern; counts add up. */
#include <math.h>

#include "support/engine_run.h"

#define MANY 17u

/* The same computed by hand with plan runs of one token each. */
static void expect_tokens(const tiny_spec *spec, const realm_token *prompt, uint32_t n, uint32_t n_new, int32_t *out) {
    realm_error err = {0};
    tiny_model *file = tiny_make(spec);
    realm_gguf *g;
    if (realm_gguf_open_memory(&g, file->file, file->file_len, &err) != REALM_OK) model_run_fail("gguf", &err);
    model_run r;
    model_run_open(&r, g, 1, 1, 1);
    int32_t tokens[2048];
    memcpy(tokens, prompt, n * sizeof *tokens);
    for (uint32_t i = 0; i < n + n_new - 1; i++) {
        model_run_step(&r, tokens, i, 1, 1);
        if (i + 1 < n) continue;
        const float *l = model_run_logits(&r, 0);
        int32_t best = 0;
        for (int32_t j = 1; j < (int32_t)TINY_VOCAB; j++)
            if (l[j] > l[best]) best = j;
        tokens[i + 1] = out[i + 1 - n] = best;
    }
    model_run_close(&r);
    tiny_free(file);
}

static void alone_and_together(void **state) {
    (void)state;
    enum { N_NEW = 40 };
    static const uint32_t chunks[] = {1, 7, 32, 250};
    realm_token prompt[MANY][150];
    int32_t want[MANY][N_NEW];
    uint32_t len[MANY];
    for (unsigned i = 0; i < MANY; i++) {
        len[i] = 1 + i * 9;
        fill_prompt(prompt[i], len[i], i);
        expect_tokens(&tiny_llama, prompt[i], len[i], N_NEW, want[i]);
    }
    for (size_t k = 0; k < REALM_ARRAY_LEN(chunks); k++) {
        engine_run r;
        realm_engine_config config = {.chunk_tokens = chunks[k], .max_generations = MANY};
        engine_run_open(&r, &tiny_llama, &config);
        static consumer c[MANY];
        for (unsigned i = 0; i < MANY; i++) {
            realm_generation_params p = greedy(r.a, prompt[i], len[i], N_NEW);
            assert_int_equal(consumer_submit(&c[i], r.e, &p, NULL), REALM_OK);
        }
        uint64_t prompts = 0;
        for (unsigned i = 0; i < MANY; i++) {
            consumer_wait(&c[i]);
            assert_int_equal(c[i].finish, REALM_FINISH_LENGTH);
            assert_int_equal(c[i].n_ids, N_NEW);
            assert_memory_equal(c[i].ids, want[i], sizeof want[i]);
            assert_int_equal(c[i].prompt_tokens, len[i]);
            assert_int_equal(c[i].completion_tokens, N_NEW);
            prompts += len[i];
            consumer_close(&c[i]);
        }
        realm_token_counts total, each;
        realm_engine_counts(r.e, &total, &r.a, 1, &each);
        assert_int_equal(total.prompt, prompts);
        assert_int_equal(total.completion, MANY * N_NEW);
        assert_memory_equal(&total, &each, sizeof total);
        assert_int_equal(realm_account_generations(r.a), 0);
        engine_run_close(&r);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(alone_and_together)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
