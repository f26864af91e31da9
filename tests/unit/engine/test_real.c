/* The default model through the engine: with quantised weights and the kernels of this machine, too, a generation's
 * tokens are the same alone, with others, and at any chunk size. */
#include "support/engine_run.h"

#define N 6u
#define N_NEW 20u

typedef struct real {
    realm_gguf *g;
    realm_backend *b;
    realm_model *m;
    realm_tokenizer *t;
} real;

static real real_open(void) {
    const char *path = cached_model("smollm2-135m-instruct-q4_1.gguf");
    if (!path) {
        print_message("the model is not in the cache: skipped\n");
        skip();
    }
    realm_error err = {0};
    real r;
    if (realm_gguf_open(&r.g, path, &err) != REALM_OK) model_run_fail("gguf", &err);
    if (realm_backend_open_cpu(&r.b, &(realm_backend_config){0}, &err) != REALM_OK) model_run_fail("backend", &err);
    if (realm_model_open(&r.m, r.b, r.g, NULL, &err) != REALM_OK) model_run_fail("model", &err);
    if (realm_tokenizer_open(&r.t, r.g, &err) != REALM_OK) model_run_fail("tokenizer", &err);
    return r;
}

static void real_close(real *r) {
    realm_tokenizer_close(r->t);
    realm_model_close(r->m);
    realm_backend_close(r->b);
    realm_gguf_close(r->g);
}

static void batch_invariance(void **state) {
    (void)state;
    real r = real_open();
    realm_backend *b = r.b;
    realm_model *m = r.m;
    realm_tokenizer *t = r.t;
    realm_error err = {0};
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
    real_close(&r);
}

/* Waits for n_new tokens after a context's, or after a prompt, and holds them against `want`. */
static uint32_t expect(realm_engine *e, realm_account *a, realm_context *c, const realm_token *more, size_t n,
                       const realm_token *want, uint32_t n_new) {
    static consumer k;
    realm_error err = {0};
    realm_generation_params p = greedy(a, more, n, n_new);
    p.context = c;
    if (consumer_submit(&k, e, &p, &err) != REALM_OK) model_run_fail("submit", &err);
    consumer_wait(&k);
    assert_int_equal(k.finish, REALM_FINISH_LENGTH);
    if (want) assert_memory_equal(k.ids, want, n_new * sizeof *want);
    uint32_t cached = k.batch.cached_tokens;
    consumer_close(&k);
    return cached;
}

/* Contexts, forward passes, forks, suspension and the prefix cache give the tokens of a plain generation. */
static void contexts_change_nothing(void **state) {
    (void)state;
    enum { N_PROMPT = 100, N_ALL = 140 };
    real r = real_open();
    realm_backend *b = r.b;
    realm_model *m = r.m;
    realm_tokenizer *t = r.t;
    realm_error err = {0};
    realm_kv *kv;
    if (realm_model_kv_open(m, 1, &kv, &err) != REALM_OK) model_run_fail("kv", &err);
    const uint64_t page = b->v->kv_page_bytes(kv);
    b->v->kv_close(b, kv);

    static realm_token want[N_ALL], other[150];
    static const uint8_t secret[REALM_CACHE_SECRET_BYTES] = "a secret";
    for (unsigned i = 0; i < N_PROMPT; i++) want[i] = (realm_token)(1000 + i * 37 % 900);
    for (unsigned i = 0; i < 150; i++) other[i] = (realm_token)(2000 + i * 91 % 1700);
    for (int round = 0; round < 2; round++) { /* the first: room for all, no cache; it says what is right */
        realm_engine *e;
        realm_account *a;
        realm_engine_config config = {.kv_bytes = round ? 7 * page : 0, .spill_bytes = 20 * page, .chunk_tokens = 48};
        if (realm_engine_open(&e, b, m, t, &config, &err) != REALM_OK) model_run_fail("engine", &err);
        assert_int_equal(realm_account_open(e, NULL, round ? secret : NULL, &a, &err), REALM_OK);
        if (round == 0) {
            static consumer k;
            realm_generation_params p = greedy(a, want, N_PROMPT, N_ALL - N_PROMPT);
            assert_int_equal(consumer_submit(&k, e, &p, &err), REALM_OK);
            consumer_wait(&k);
            memcpy(want + N_PROMPT, k.ids, (N_ALL - N_PROMPT) * sizeof *want);
            consumer_close(&k);
        } else {
            realm_context *c, *f;
            static consumer k;
            assert_int_equal(realm_context_open(e, a, &c, &err), REALM_OK);
            assert_int_equal(realm_context_append(c, want, 60, &err), REALM_OK);
            realm_generation_params p = {.account = a,
                                         .context = c,
                                         .prompt = want + 60,
                                         .n_prompt = N_PROMPT - 60,
                                         .forward = true,
                                         .n_rows = 9};
            assert_int_equal(consumer_submit(&k, e, &p, &err), REALM_OK);
            consumer_wait(&k);
            realm_logits *l = realm_generation_take_logits(k.g);
            realm_token id;
            assert_int_equal(realm_logits_sample(l, 8, NULL, &id, NULL, &err), REALM_OK);
            assert_int_equal(id, want[N_PROMPT]);
            realm_logits_release(l);
            consumer_close(&k);
            expect(e, a, c, NULL, 0, want + N_PROMPT, 12);
            assert_int_equal(realm_context_fork(c, &f, &err), REALM_OK);
            expect(e, a, f, NULL, 0, want + N_PROMPT + 12, 20);
            expect(e, a, NULL, other, 150, NULL, 2); /* both leave the pool */
            realm_engine_stats st;
            realm_engine_get_stats(e, &st);
            assert_true(st.suspends > 0);
            expect(e, a, c, NULL, 0, want + N_PROMPT + 12, 28);
            expect(e, a, f, NULL, 0, want + N_PROMPT + 32, 8);
            realm_engine_get_stats(e, &st);
            assert_true(st.resumes > 0);
            assert_int_equal(realm_context_truncate(c, 77, &err), REALM_OK);
            expect(e, a, c, want + 77, N_PROMPT - 77, want + N_PROMPT, 40);
            realm_context_release(c);
            realm_context_release(f);
            assert_int_equal(expect(e, a, NULL, want, N_PROMPT, want + N_PROMPT, 40), 96);
            /* Verification of several tokens in one pass: each row's best is the next token. */
            p = (realm_generation_params){
                .account = a, .prompt = want, .n_prompt = N_ALL - 1, .forward = true, .n_rows = 30};
            assert_int_equal(consumer_submit(&k, e, &p, &err), REALM_OK);
            consumer_wait(&k);
            l = realm_generation_take_logits(k.g);
            for (unsigned i = 0; i < 30; i++) {
                assert_int_equal(realm_logits_sample(l, i, NULL, &id, NULL, &err), REALM_OK);
                assert_int_equal(id, want[N_ALL - 30 + i]);
            }
            realm_logits_release(l);
            consumer_close(&k);
        }
        realm_account_close(a);
        realm_engine_close(e);
    }
    real_close(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(batch_invariance), cmocka_unit_test(contexts_change_nothing)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
