/* The default model through the engine: with quantised weights and the kernels of this machine, too, a generation's
 * tokens are the same alone, with others, and at any chunk size. */
#include "support/engine_run.h"

#define N 6u
#define N_NEW 20u

static void batch_invariance(void **state) {
    (void)state;
    const char *path = cached_model("smollm2-135m-instruct-q4_1.gguf");
    if (!path) {
        print_message("the model is not in the cache: skipped\n");
        skip();
    }
    realm_error err = {0};
    realm_gguf *g;
    realm_backend *b;
    realm_model *m;
    realm_tokenizer *t;
    if (realm_gguf_open(&g, path, &err) != REALM_OK) model_run_fail("gguf", &err);
    if (realm_backend_open_cpu(&b, &(realm_backend_config){0}, &err) != REALM_OK) model_run_fail("backend", &err);
    if (realm_model_open(&m, b, g, NULL, &err) != REALM_OK) model_run_fail("model", &err);
    if (realm_tokenizer_open(&t, g, &err) != REALM_OK) model_run_fail("tokenizer", &err);
    static const char *const prompts[N] = {
        "The capital of France is",
        "def fibonacci(n):\n",
        "Once upon a time, in a small village between two rivers,",
        "1, 1, 2, 3, 5, 8, 13, 21,",
        "Photosynthesis is the process by which plants turn light into",
        "The harbour woke before the town did. Ropes creaked, gulls argued over the first scraps, and the old crane on "
        "the "
        "eastern quay turned its long neck towards the water as if it, too, had been waiting for the light. Marta had "
        "worked there for thirty-one years. She knew the names of the boats and the names of the people who"};
    static const uint32_t chunks[] = {256, 256, 11};
    static consumer c[N];
    static int32_t first[N][N_NEW];
    for (int round = 0; round < 3; round++) { /* one by one; together; together in small chunks */
        realm_engine *e;
        realm_account *a;
        realm_engine_config config = {.max_generations = N, .chunk_tokens = chunks[round]};
        if (realm_engine_open(&e, b, m, t, &config, &err) != REALM_OK) model_run_fail("engine", &err);
        assert_int_equal(realm_account_open(e, NULL, NULL, &a, &err), REALM_OK);
        for (unsigned i = 0; i < N; i++) {
            realm_tokens ids = {0};
            assert_int_equal(realm_tokenizer_encode(t, prompts[i], strlen(prompts[i]), 0, 500, &ids, &err), REALM_OK);
            realm_generation_params p = greedy(a, ids.ids, ids.len, N_NEW);
            p.sampling.temperature = i % 2 ? 0.0f : 0.8f;
            p.sampling.seed = i;
            assert_int_equal(consumer_submit(&c[i], e, &p, &err), REALM_OK);
            realm_tokens_release(&ids);
            if (round == 0) consumer_wait(&c[i]);
        }
        for (unsigned i = 0; i < N; i++) {
            consumer_wait(&c[i]);
            assert_int_equal(c[i].n_ids, N_NEW);
            if (round == 0) memcpy(first[i], c[i].ids, sizeof first[i]);
            assert_memory_equal(c[i].ids, first[i], sizeof first[i]);
            if (i == 0 && round == 0) print_message("%s%.*s\n", prompts[0], (int)c[0].text_len, c[0].text);
            consumer_close(&c[i]);
        }
        realm_account_close(a);
        realm_engine_close(e);
    }
    realm_tokenizer_close(t);
    realm_model_close(m);
    realm_backend_close(b);
    realm_gguf_close(g);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(batch_invariance)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
