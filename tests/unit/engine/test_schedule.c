/* The scheduler: who shares a step never shows in the tokens; limits, cancels, slow readers and lack of memory end or
 * delay only whom they concern; counts add up. */
#include <math.h>

#include "engine/internal.h"
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

static void wait_until_idle(const engine_run *r) {
    realm_engine_stats st;
    for (int i = 0; i < 2000; i++) {
        realm_engine_get_stats(r->e, &st);
        if (st.running + st.queued == 0) return;
        usleep(1000);
    }
    fail();
}

static void cancel_in_prefill(void **state) {
    (void)state;
    engine_run r;
    realm_engine_stats st;
    realm_token prompt[500];
    static consumer c;
    engine_run_open(&r, &tiny_llama, &(realm_engine_config){.chunk_tokens = 1});
    fill_prompt(prompt, 500, 3);
    realm_generation_params p = greedy(r.a, prompt, 500, 10);
    assert_int_equal(consumer_submit(&c, r.e, &p, NULL), REALM_OK);
    do realm_engine_get_stats(r.e, &st);
    while (st.steps < 20);
    realm_generation_cancel(c.g);
    consumer_wait(&c);
    realm_engine_get_stats(r.e, &st);
    assert_int_equal(c.finish, REALM_FINISH_CANCELLED);
    assert_int_equal(c.completion_tokens, 0);
    assert_int_equal(c.prompt_tokens, 500);
    assert_true(st.steps < 500);
    assert_int_equal(st.cancelled, 1);
    assert_int_equal(st.kv_pages_used, 0);
    consumer_close(&c);
    engine_run_close(&r);
}

/* Who leaves is still charged for the step that is under way: until the engine has ended it, its account is busy. */
static void busy_until_ended(void **state) {
    (void)state;
    engine_run r;
    realm_account *a;
    realm_generation *g;
    held stop;
    realm_token prompt[20];
    engine_run_open(&r, &tiny_llama, NULL);
    assert_int_equal(realm_account_open(r.e, NULL, NULL, &a, NULL), REALM_OK);
    assert_false(realm_account_is_busy(a));
    fill_prompt(prompt, 20, 3);
    realm_generation_params p = greedy(a, prompt, 20, 10);
    engine_stop(&stop, &r);
    assert_int_equal(realm_generation_submit(r.e, &p, &g, NULL), REALM_OK);
    realm_generation_cancel(g);
    realm_generation_release(g);
    assert_int_equal(realm_account_generations(a), 0); /* its place is free */
    assert_true(realm_account_is_busy(a));
    held_go(&stop);
    while (realm_account_is_busy(a)) usleep(1000);
    realm_account_close(a);
    engine_run_close(&r);
}

static void slow_reader(void **state) {
    (void)state;
    enum { N_NEW = 300 };
    static int32_t want[N_NEW];
    static consumer slow, other[8];
    realm_token prompt[20];
    fill_prompt(prompt, 20, 1);
    expect_tokens(&tiny_llama, prompt, 20, N_NEW, want);
    /* With places for all, and with one place, which the slow one must leave to the others. */
    for (uint32_t places = 8; places > 0; places = places == 8 ? 1 : 0) {
        engine_run r;
        engine_run_open(&r, &tiny_llama, &(realm_engine_config){.max_generations = places});
        realm_generation_params p = greedy(r.a, prompt, 20, N_NEW);
        assert_int_equal(consumer_submit(&slow, r.e, &p, NULL), REALM_OK);
        for (unsigned i = 0; i < 3; i++) {
            assert_int_equal(consumer_submit(&other[i], r.e, &p, NULL), REALM_OK);
            consumer_wait(&other[i]);
            assert_int_equal(other[i].n_ids, N_NEW);
            assert_memory_equal(other[i].ids, want, sizeof want);
            consumer_close(&other[i]);
        }
        consumer_wait(&slow);
        assert_int_equal(slow.finish, REALM_FINISH_LENGTH);
        assert_int_equal(slow.n_ids, N_NEW);
        assert_memory_equal(slow.ids, want, sizeof want);
        consumer_close(&slow);
        realm_token_counts n;
        realm_account_counts(r.a, &n);
        assert_int_equal(n.prompt, 4 * 20);
        assert_int_equal(n.completion, 4 * N_NEW);
        engine_run_close(&r);
    }
}

static void deadlines(void **state) {
    (void)state;
    engine_run r;
    realm_token prompt[400];
    static consumer c[3];
    fill_prompt(prompt, 400, 9);
    engine_run_open(&r, &tiny_llama, &(realm_engine_config){.chunk_tokens = 1, .max_generations = 1});
    realm_generation_params p = greedy(r.a, prompt, 400, 100);
    p.deadline_ns = 1; /* long past */
    assert_int_equal(consumer_submit(&c[0], r.e, &p, NULL), REALM_OK);
    consumer_wait(&c[0]);
    assert_int_equal(c[0].finish, REALM_FINISH_ERROR);
    assert_int_equal(c[0].status, REALM_E_TIMEOUT);
    assert_int_equal(c[0].prompt_tokens, 0); /* never admitted */
    p.deadline_ns = realm_clock_ns() + 5 * REALM_NS_PER_MS;
    assert_int_equal(consumer_submit(&c[1], r.e, &p, NULL), REALM_OK);
    assert_int_equal(consumer_submit(&c[2], r.e, &p, NULL), REALM_OK); /* in the queue */
    for (int i = 1; i < 3; i++) {
        consumer_wait(&c[i]);
        assert_int_equal(c[i].status, REALM_E_TIMEOUT);
    }
    for (int i = 0; i < 3; i++) consumer_close(&c[i]);
    engine_run_close(&r);
}

/* A client that cancels and asks again at once is not told that it has too many, and cannot fill the engine so. */
static void cancel_and_again(void **state) {
    (void)state;
    enum { N = 2 };
    engine_run r;
    realm_error err;
    realm_token prompt[20];
    static consumer c[3 * N];
    held stop;
    fill_prompt(prompt, 20, 3);
    engine_run_open(&r, &tiny_llama, NULL);
    realm_account *a;
    assert_int_equal(realm_account_open(r.e, &(realm_account_limits){.generations = N}, NULL, &a, &err), REALM_OK);
    realm_generation_params p = greedy(a, prompt, 20, 5);
    engine_stop(&stop, &r);
    for (int i = 0; i < N; i++) assert_int_equal(consumer_submit(&c[i], r.e, &p, &err), REALM_OK);
    assert_int_equal(consumer_submit(&c[N], r.e, &p, &err), REALM_E_CROWDED);
    for (int i = 0; i < N; i++) {
        realm_generation_cancel(c[i].g);
        realm_generation_cancel(c[i].g); /* counted out once */
        assert_int_equal(realm_account_generations(a), N - 1);
        assert_int_equal(consumer_submit(&c[N + i], r.e, &p, &err), REALM_OK);
        assert_int_equal(consumer_submit(&c[2 * N], r.e, &p, &err), REALM_E_CROWDED);
    }
    realm_generation_cancel(c[N].g); /* as many as that may wait for their end, not more */
    assert_int_equal(consumer_submit(&c[2 * N], r.e, &p, &err), REALM_E_CROWDED);
    assert_non_null(strstr(err.text, "3 being cancelled"));
    held_go(&stop);
    for (int i = 0; i < 2 * N; i++) {
        consumer_wait(&c[i]);
        assert_int_equal(c[i].finish, i <= N ? REALM_FINISH_CANCELLED : REALM_FINISH_LENGTH);
    }
    realm_generation_cancel(c[2 * N - 1].g); /* it has ended */
    assert_int_equal(realm_account_generations(a), 0);
    for (int i = 0; i < N; i++) assert_int_equal(consumer_submit(&c[2 * N + i], r.e, &p, &err), REALM_OK);
    for (int i = 0; i < N; i++) consumer_wait(&c[2 * N + i]);
    realm_token_counts n, total;
    realm_account *const both[] = {a, r.a};
    realm_token_counts each[2];
    realm_engine_counts(r.e, &total, both, 2, each);
    realm_account_counts(a, &n);
    assert_int_equal(n.completion, 3 * 5);
    assert_int_equal(total.completion, each[0].completion + each[1].completion);
    for (int i = 0; i < 3 * N; i++) consumer_close(&c[i]);
    realm_account_close(a);
    engine_run_close(&r);
}

static void limits(void **state) {
    (void)state;
    engine_run r;
    realm_error err;
    realm_token prompt[400];
    static consumer c[8];
    fill_prompt(prompt, 400, 2);
    engine_run_open(&r, &tiny_llama, &(realm_engine_config){.max_generations = 1, .max_queued = 2, .chunk_tokens = 1});
    realm_account *a;
    assert_int_equal(
        realm_account_open(r.e, &(realm_account_limits){.generations = 1, .kv_tokens = 96}, NULL, &a, &err), REALM_OK);
    realm_generation_params p = greedy(a, prompt, 97, 1);
    assert_int_equal(consumer_submit(&c[0], r.e, &p, &err), REALM_E_QUOTA);
    assert_non_null(strstr(err.text, "kv_tokens"));
    p = greedy(a, prompt, 90, 8); /* 97 tokens held: a fourth page */
    assert_int_equal(consumer_submit(&c[0], r.e, &p, &err), REALM_E_QUOTA);
    p = greedy(a, prompt, 90, 7);
    held stop;
    engine_stop(&stop, &r);
    assert_int_equal(consumer_submit(&c[0], r.e, &p, &err), REALM_OK);
    assert_int_equal(consumer_submit(&c[1], r.e, &p, &err), REALM_E_CROWDED);
    assert_non_null(strstr(err.text, "generations"));
    held_go(&stop);
    consumer_wait(&c[0]);
    assert_int_equal(c[0].n_ids, 7);
    assert_int_equal(realm_account_generations(a), 0);
    consumer_close(&c[0]);
    p.max_tokens = 0; /* as far as it goes: positions 0 .. 95, and one token more that is not held */
    assert_int_equal(consumer_submit(&c[0], r.e, &p, &err), REALM_OK);
    consumer_wait(&c[0]);
    assert_int_equal(c[0].finish, REALM_FINISH_LENGTH);
    assert_int_equal(c[0].n_ids, 7);
    consumer_close(&c[0]);
    /* Three of one account that hold one page each at first, three pages in all. */
    realm_account_set_limits(a, &(realm_account_limits){.kv_tokens = 96});
    p = greedy(a, prompt, 10, 60);
    static int32_t want[60];
    expect_tokens(&tiny_llama, prompt, 10, 60, want);
    for (int i = 0; i < 3; i++) assert_int_equal(consumer_submit(&c[i], r.e, &p, &err), REALM_OK);
    for (int i = 0; i < 3; i++) {
        consumer_wait(&c[i]);
        assert_int_equal(c[i].n_ids, 60);
        assert_memory_equal(c[i].ids, want, sizeof want);
        consumer_close(&c[i]);
    }
    realm_account_close(a);

    p = greedy(r.a, prompt, 400, 10);
    engine_stop(&stop, &r);
    for (int i = 0; i < 3; i++) assert_int_equal(consumer_submit(&c[i], r.e, &p, &err), REALM_OK);
    assert_int_equal(consumer_submit(&c[3], r.e, &p, &err), REALM_E_BUSY);
    held_go(&stop);
    for (int i = 0; i < 3; i++) consumer_close(&c[i]); /* released while they run */
    wait_until_idle(&r);
    engine_run_close(&r);
}

static void bad_requests(void **state) {
    (void)state;
    engine_run r;
    realm_error err;
    realm_generation *g = NULL;
    realm_token prompt[600];
    fill_prompt(prompt, 600, 2);
    engine_run_open(&r, &tiny_llama, NULL);
#define REFUSED(code, word, change)                                                   \
    do {                                                                              \
        realm_generation_params p = greedy(r.a, prompt, 10, 5);                       \
        change;                                                                       \
        assert_int_equal(realm_generation_submit(r.e, &p, &g, &err), code);           \
        assert_null(g);                                                               \
        if (!strstr(err.text, word)) fail_msg("\"%s\" lacks \"%s\"", err.text, word); \
    } while (0)
    realm_token wrong[2] = {1, (realm_token)TINY_VOCAB};
    realm_gguf_str empty = {"", 0}, cut = {"\xe2\x82", 2};
    realm_logit_bias bias = {-1, 1.0f};
    static char long_stop[REALM_STOP_BYTES_MAX + 1];
    memset(long_stop, 'a', sizeof long_stop);
    realm_gguf_str too_long = {long_stop, sizeof long_stop};
    REFUSED(REALM_E_RANGE, "empty", p.n_prompt = 0);
    REFUSED(REALM_E_CONTEXT, "context", p.n_prompt = 512);
    REFUSED(REALM_E_RANGE, "token 1", (p.prompt = wrong, p.n_prompt = 2));
    wrong[1] = -1;
    REFUSED(REALM_E_RANGE, "token 1", (p.prompt = wrong, p.n_prompt = 2));
    REFUSED(REALM_E_RANGE, "temperature", p.sampling.temperature = -0.1f);
    REFUSED(REALM_E_RANGE, "temperature", p.sampling.temperature = NAN);
    REFUSED(REALM_E_RANGE, "temperature", p.sampling.temperature = INFINITY);
    REFUSED(REALM_E_RANGE, "top_p", p.sampling.top_p = 0);
    REFUSED(REALM_E_RANGE, "top_p", p.sampling.top_p = NAN);
    REFUSED(REALM_E_RANGE, "min_p", p.sampling.min_p = 1.5f);
    REFUSED(REALM_E_RANGE, "repeat_penalty", p.sampling.repeat_penalty = 0);
    REFUSED(REALM_E_RANGE, "frequency_penalty", p.sampling.frequency_penalty = 2.5f);
    REFUSED(REALM_E_RANGE, "presence_penalty", p.sampling.presence_penalty = -3);
    REFUSED(REALM_E_RANGE, "logit_bias", (p.sampling.bias = &bias, p.sampling.n_bias = 1));
    bias = (realm_logit_bias){1, 101};
    REFUSED(REALM_E_RANGE, "logit_bias", (p.sampling.bias = &bias, p.sampling.n_bias = 1));
    REFUSED(REALM_E_RANGE, "logit_bias", (p.sampling.bias = &bias, p.sampling.n_bias = REALM_LOGIT_BIAS_MAX + 1));
    REFUSED(REALM_E_RANGE, "stop", (p.stop = &empty, p.n_stop = 1));
    REFUSED(REALM_E_RANGE, "stop", (p.stop = &cut, p.n_stop = 1));
    REFUSED(REALM_E_RANGE, "stop", (p.stop = &too_long, p.n_stop = 1));
    REFUSED(REALM_E_RANGE, "stop", (p.stop = &too_long, p.n_stop = REALM_STOP_MAX + 1));
    REFUSED(REALM_E_RANGE, "top_logprobs", p.top_logprobs = REALM_TOP_LOGPROBS_MAX + 1);
    REFUSED(REALM_E_INVALID, "account", p.account = NULL);
#undef REFUSED
    realm_token_counts n;
    realm_account_counts(r.a, &n);
    assert_int_equal(n.prompt + n.completion, 0);
    engine_run_close(&r);
}

/* More generations than pages: some are thrown out and computed again, which nobody can see. */
static void pages_run_out(void **state) {
    (void)state;
    enum { N = 7, N_NEW = 70 };
    realm_token prompt[N][60];
    static int32_t want[N][N_NEW];
    static consumer c[N];
    uint64_t bytes = page_bytes_of(&tiny_llama);
    for (unsigned i = 0; i < N; i++) {
        fill_prompt(prompt[i], 60, i);
        expect_tokens(&tiny_llama, prompt[i], 20 + i * 5, N_NEW, want[i]);
    }
    for (uint32_t pages = 4; pages <= 12; pages += 4) {
        engine_run r;
        engine_run_open(&r, &tiny_llama,
                        &(realm_engine_config){.kv_bytes = pages * bytes, .n_ctx = 128, .chunk_tokens = 16});
        for (unsigned i = 0; i < N; i++) {
            realm_generation_params p = greedy(r.a, prompt[i], 20 + i * 5, N_NEW);
            assert_int_equal(consumer_submit(&c[i], r.e, &p, NULL), REALM_OK);
        }
        uint64_t prompts = 0;
        for (unsigned i = 0; i < N; i++) {
            consumer_wait(&c[i]);
            assert_int_equal(c[i].finish, REALM_FINISH_LENGTH);
            assert_int_equal(c[i].n_ids, N_NEW);
            assert_memory_equal(c[i].ids, want[i], sizeof want[i]);
            consumer_close(&c[i]);
            prompts += 20 + i * 5;
        }
        realm_token_counts n;
        realm_engine_stats st;
        realm_account_counts(r.a, &n);
        realm_engine_get_stats(r.e, &st);
        assert_int_equal(n.prompt, prompts);
        assert_int_equal(n.completion, N * N_NEW);
        assert_int_equal(st.kv_pages, pages);
        assert_int_equal(st.kv_pages_used, 0);
        engine_run_close(&r);
    }
}

static void shares(void **state) {
    (void)state;
    enum { N = 6, N_NEW = 40 };
    static int32_t want[N_NEW];
    static consumer c[N];
    static const uint32_t lens[] = {1, 31, 32, 33, 64, 100};
    realm_error err;
    realm_token prompt[128];
    fill_prompt(prompt, 128, 5);
    uint64_t bytes = page_bytes_of(&tiny_llama);
    for (size_t k = 0; k < REALM_ARRAY_LEN(lens); k++) {
        expect_tokens(&tiny_llama, prompt, lens[k], N_NEW, want);
        for (int tight = 0; tight < 2; tight++) { /* with few pages the share is given up and the rest computed again */
            engine_run r;
            realm_engine_config config = {.chunk_tokens = 24, .kv_bytes = tight ? 8 * bytes : 0, .n_ctx = 160};
            engine_run_open(&r, &tiny_llama, &config);
            realm_prompt_share *s;
            assert_int_equal(realm_prompt_share_open(r.e, r.a, &s, &err), REALM_OK);
            realm_generation_params p = greedy(r.a, prompt, lens[k], N_NEW);
            p.share = s;
            for (int i = 0; i < N; i++) assert_int_equal(consumer_submit(&c[i], r.e, &p, &err), REALM_OK);
            if (k % 2) realm_generation_cancel(c[0].g); /* perhaps the leader, in whatever state it is */
            realm_generation *other;
            realm_generation_params wrong = p;
            wrong.prompt = prompt + 1;
            assert_int_equal(realm_generation_submit(r.e, &wrong, &other, &err), REALM_E_INVALID);
            uint32_t prompts = 0, completions = 0;
            for (int i = 0; i < N; i++) {
                consumer_wait(&c[i]);
                prompts += c[i].prompt_tokens;
                completions += c[i].completion_tokens;
                if (c[i].finish != REALM_FINISH_CANCELLED) {
                    assert_int_equal(c[i].n_ids, N_NEW);
                    assert_memory_equal(c[i].ids, want, sizeof want);
                }
                consumer_close(&c[i]);
            }
            assert_true(prompts == lens[k] || (k % 2 && prompts == 0)); /* 0: cancelled before any was admitted */
            realm_token_counts n;
            realm_account_counts(r.a, &n);
            assert_int_equal(n.prompt, lens[k]);
            assert_int_equal(n.completion, completions);
            realm_prompt_share_close(s);
            engine_run_close(&r);
        }
    }
}

/* ---- a backend that fails, and one that tells ------------------------------------------------------------------- */

static struct realm_backend_vtable patched;
static const struct realm_backend_vtable *original;
static int fail_in; /* steps until one fails */
static unsigned zeroed;

static realm_status failing_run(realm_backend *b, realm_plan *p, const realm_batch *batch, realm_error *err) {
    if (fail_in > 0 && --fail_in == 0) return realm_error_set(err, REALM_E_DEVICE, "the device is gone");
    return original->run(b, p, batch, err);
}

static void telling_zero(realm_backend *b, realm_kv *kv, uint32_t page) {
    zeroed++;
    original->kv_zero_page(b, kv, page);
}

static void patch(engine_run *r) {
    original = r->b->v;
    patched = *original;
    patched.run = failing_run;
    patched.kv_zero_page = telling_zero;
    r->b->v = &patched;
}

static void a_step_fails(void **state) {
    (void)state;
    engine_run r;
    static consumer c[4];
    realm_token prompt[40];
    int32_t want[20];
    fill_prompt(prompt, 40, 5);
    expect_tokens(&tiny_llama, prompt, 40, 20, want);
    engine_run_open(&r, &tiny_llama, NULL);
    realm_generation_params p = greedy(r.a, prompt, 40, 20);
    fail_in = 10;
    patch(&r); /* before the first step: from then on the engine looks at the table until it sleeps */
    assert_int_equal(consumer_submit(&c[0], r.e, &p, NULL), REALM_OK);
    consumer_wait(&c[0]);
    assert_int_equal(c[0].finish, REALM_FINISH_ERROR);
    assert_int_equal(c[0].status, REALM_E_DEVICE);
    assert_string_equal(c[0].batch.error.text, "the device is gone");
    assert_int_equal(c[0].n_ids, 9);
    consumer_close(&c[0]);
    assert_int_equal(consumer_submit(&c[1], r.e, &p, NULL), REALM_OK);
    consumer_wait(&c[1]);
    assert_int_equal(c[1].n_ids, 20);
    assert_memory_equal(c[1].ids, want, sizeof want);
    consumer_close(&c[1]);
    realm_engine_stats st;
    realm_engine_get_stats(r.e, &st);
    assert_int_equal(st.failed, 1);
    assert_int_equal(st.kv_pages_used, 0);
    engine_run_close(&r);
}

static void pages_change_hands(void **state) {
    (void)state;
    engine_run r;
    static consumer c;
    realm_token prompt[70];
    fill_prompt(prompt, 70, 5);
    engine_run_open(&r, &tiny_llama, NULL);
    zeroed = 0;
    fail_in = 0;
    patch(&r);
    realm_account *other;
    assert_int_equal(realm_account_open(r.e, NULL, NULL, &other, NULL), REALM_OK);
    realm_account *turns[] = {r.a, r.a, other, other, r.a};
    static const unsigned after[] = {0, 0, 3, 3, 6};
    for (size_t i = 0; i < REALM_ARRAY_LEN(turns); i++) {
        realm_generation_params p = greedy(turns[i], prompt, 70, 2);
        assert_int_equal(consumer_submit(&c, r.e, &p, NULL), REALM_OK);
        consumer_wait(&c);
        consumer_close(&c);
        wait_until_idle(&r);
        assert_int_equal(zeroed, after[i]);
    }
    realm_account_close(other);
    engine_run_close(&r);
}

/* One account asks for much; another's single request is not put behind all of it. */
static void fair(void **state) {
    (void)state;
    enum { N = 40 };
    static consumer c[N];
    realm_token prompt[100];
    fill_prompt(prompt, 100, 5);
    engine_run r;
    held stop, quiet;
    engine_run_open(&r, &tiny_llama, &(realm_engine_config){.max_generations = 2});
    realm_account *other;
    assert_int_equal(realm_account_open(r.e, NULL, NULL, &other, NULL), REALM_OK);
    realm_generation_params p = greedy(r.a, prompt, 100, 40), q = greedy(other, prompt, 100, 40);
    engine_stop(&stop, &r);
    for (int i = 0; i < N; i++) assert_int_equal(consumer_submit(&c[i], r.e, &p, NULL), REALM_OK);
    held_submit(&quiet, r.e, &q);
    held_go(&stop);
    held_wait(&quiet);
    assert_true(realm_account_generations(r.a) > N / 2);
    held_go(&quiet);
    for (int i = 0; i < N; i++) {
        consumer_wait(&c[i]);
        consumer_close(&c[i]);
    }
    realm_account_close(other);
    engine_run_close(&r);
}

/* Prompt tokens of a step are shared between accounts: one long prompt is not put behind three of another account. */
/* What sampling takes is charged to whom it is done for, not to all who share the step. */
static void sampling_is_charged(void **state) {
    (void)state;
    enum { N = 4 };
    engine_run r;
    static consumer c[2 * N];
    realm_token prompt[400];
    realm_stage stages[REALM_STAGES_MAX];
    realm_chain *chain;
    realm_account *slow, *quick;
    held stop;
    fill_prompt(prompt, 400, 5);
    engine_run_open(&r, &tiny_llama, NULL);
    assert_int_equal(realm_account_open(r.e, NULL, NULL, &slow, NULL), REALM_OK);
    assert_int_equal(realm_account_open(r.e, NULL, NULL, &quick, NULL), REALM_OK);
    for (size_t i = 0; i < REALM_ARRAY_LEN(stages); i++) {
        stages[i] = (realm_stage){.kind = REALM_STAGE_KIND_DRY};
        stages[i].u.dry.multiplier = stages[i].u.dry.base = 1;
        stages[i].u.dry.allowed = 1;
    }
    assert_int_equal(realm_chain_open(stages, REALM_STAGES_MAX, 1, TINY_VOCAB, &chain, NULL), REALM_OK);
    for (int i = 0; i < 2 * N; i++) {
        realm_generation_params p = greedy(i % 2 ? slow : quick, prompt, 400, 40);
        if (i % 2) p.chain = chain;
        assert_int_equal(consumer_submit(&c[i], r.e, &p, NULL), REALM_OK);
    }
    for (int i = 0; i < 2 * N; i++) consumer_wait(&c[i]);
    engine_stop(&stop, &r); /* and look at what is its thread's */
    if (!(slow->share.sample_ns > 3 * quick->share.sample_ns && quick->share.sample_ns > 0))
        fail_msg("a row: %.0f ns with a long chain, %.0f ns without", slow->share.sample_ns, quick->share.sample_ns);
    held_go(&stop);
    for (int i = 0; i < 2 * N; i++) consumer_close(&c[i]);
    realm_chain_close(chain);
    realm_account_close(slow);
    realm_account_close(quick);
    engine_run_close(&r);
}

static void fair_prefill(void **state) {
    (void)state;
    static consumer c[3];
    realm_token prompt[450];
    engine_run r;
    held stop, quiet;
    engine_run_open(&r, &tiny_llama, &(realm_engine_config){.chunk_tokens = 64});
    realm_account *other;
    assert_int_equal(realm_account_open(r.e, NULL, NULL, &other, NULL), REALM_OK);
    engine_stop(&stop, &r);
    for (unsigned i = 0; i < 3; i++) {
        fill_prompt(prompt, 450, i);
        realm_generation_params p = greedy(r.a, prompt, 450, 1);
        assert_int_equal(consumer_submit(&c[i], r.e, &p, NULL), REALM_OK);
    }
    realm_generation_params q = greedy(other, prompt, 450, 1);
    held_submit(&quiet, r.e, &q);
    held_go(&stop);
    held_wait(&quiet);
    realm_engine_stats st;
    realm_engine_get_stats(r.e, &st);
    assert_in_range(st.rows, 2 * 450 - 2 * 64, 2 * 450 + 2 * 64); /* half of the rows were the other account's */
    held_go(&quiet);
    for (unsigned i = 0; i < 3; i++) {
        consumer_wait(&c[i]);
        consumer_close(&c[i]);
    }
    realm_account_close(other);
    engine_run_close(&r);
}

static void allocation_failures(void **state) {
    (void)state;
    engine_run r;
    realm_error err;
    realm_token prompt[40];
    fill_prompt(prompt, 40, 5);
    engine_run_open(&r, &tiny_llama, NULL);
    realm_prompt_share *s;
    realm_gguf_str stop = {"stop", 4};
    realm_logit_bias bias = {7, 1};
    int failures = 0;
    for (int64_t n = 0;; n++) {
        realm_generation *g = NULL;
        realm_alloc_inject_failure(n, false);
        realm_status st = realm_prompt_share_open(r.e, r.a, &s, &err);
        if (st == REALM_OK) {
            realm_generation_params p = greedy(r.a, prompt, 40, 3);
            p.share = s;
            p.stop = &stop;
            p.n_stop = 1;
            p.sampling.bias = &bias;
            p.sampling.n_bias = 1;
            p.logprobs = true;
            p.top_logprobs = 2;
            st = realm_generation_submit(r.e, &p, &g, &err);
        }
        realm_alloc_inject_failure(-1, false);
        if (st == REALM_OK) {
            /* Then the consumer's own memory fails: nothing is lost. */
            realm_event_batch b;
            realm_event_batch_init(&b);
            wait_until_idle(&r);
            for (int64_t k = 0; k < 3; k++) {
                realm_alloc_inject_failure(0, false); /* events, then top, then text */
                assert_int_equal(realm_generation_poll(g, &b), 0);
                realm_alloc_inject_failure(-1, false);
                assert_int_equal(b.status, REALM_E_NOMEM);
            }
            assert_int_equal(realm_generation_poll(g, &b), 4);
            realm_event_batch_release(&b);
            realm_generation_release(g);
            realm_prompt_share_close(s);
            break;
        }
        assert_int_equal(st, REALM_E_NOMEM);
        assert_int_equal(err.code, REALM_E_NOMEM);
        assert_null(g);
        failures++;
        realm_prompt_share_close(s);
    }
    assert_true(failures > 8);
    assert_int_equal(realm_account_generations(r.a), 0);
    engine_run_close(&r);
}

/* Opening an engine with memory running out at every place: an error, and nothing left behind. */
static void open_without_memory(void **state) {
    (void)state;
    engine_run r;
    realm_error err;
    engine_run_open(&r, &tiny_llama, NULL);
    int failures = 0;
    for (int64_t n = 0;; n++) {
        realm_engine *e = NULL;
        realm_alloc_inject_failure(n, false);
        realm_status s = realm_engine_open(&e, r.b, r.m, r.t, NULL, &err);
        realm_alloc_inject_failure(-1, false);
        if (s == REALM_OK) {
            realm_engine_close(e);
            break;
        }
        assert_int_equal(s, REALM_E_NOMEM);
        assert_null(e);
        failures++;
    }
    assert_true(failures > 10);
    realm_engine *e;
    assert_int_equal(realm_engine_open(&e, r.b, r.m, r.t, &(realm_engine_config){.kv_bytes = 1}, &err), REALM_E_RANGE);
    assert_int_equal(realm_engine_open(&e, r.b, r.m, r.t, &(realm_engine_config){.max_generations = 5000}, &err),
                     REALM_E_RANGE);
    engine_run_close(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(alone_and_together),
                                       cmocka_unit_test(cancel_in_prefill),
                                       cmocka_unit_test(busy_until_ended),
                                       cmocka_unit_test(slow_reader),
                                       cmocka_unit_test(deadlines),
                                       cmocka_unit_test(limits),
                                       cmocka_unit_test(cancel_and_again),
                                       cmocka_unit_test(bad_requests),
                                       cmocka_unit_test(pages_run_out),
                                       cmocka_unit_test(shares),
                                       cmocka_unit_test(a_step_fails),
                                       cmocka_unit_test(pages_change_hands),
                                       cmocka_unit_test(fair),
                                       cmocka_unit_test(fair_prefill),
                                       cmocka_unit_test(sampling_is_charged),
                                       cmocka_unit_test(allocation_failures),
                                       cmocka_unit_test(open_without_memory)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
