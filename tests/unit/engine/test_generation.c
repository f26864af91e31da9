/* What a consumer sees of a generation: text, stop strings, ends, log-probabilities, seeds; and many at once from many
 * threads, with counts that add up. */
#include <math.h>

#include "base/utf8.h"
#include "support/engine_run.h"

/* ---- a model that says what it is told -------------------------------------------------------------------------- */

static struct realm_backend_vtable patched;
static float row[TINY_VOCAB];
static const realm_token *script;
static size_t script_len, script_at;

static float *scripted_logits(realm_plan *p, uint32_t i) {
    (void)p;
    (void)i;
    for (uint32_t j = 0; j < TINY_VOCAB; j++) row[j] = 0;
    row[script[script_at < script_len ? script_at++ : script_len - 1]] = 10;
    return row;
}

static void say(consumer *c, engine_run *r, const realm_token *ids, size_t n, realm_generation_params *p) {
    if (r->b->v != &patched) { /* before the first step: from then on the engine looks at it until it sleeps */
        patched = *r->b->v;
        patched.logits = scripted_logits;
        r->b->v = &patched;
    }
    script = ids;
    script_len = n;
    script_at = 0;
    static const realm_token prompt[] = {5, 6, 7};
    p->account = r->a;
    p->prompt = prompt;
    p->n_prompt = 3;
    p->sampling.temperature = 0;
    if (p->max_tokens == 0) p->max_tokens = (uint32_t)n;
    assert_int_equal(consumer_submit(c, r->e, p, NULL), REALM_OK);
    consumer_wait(c);
    consumer_close(c);
}

static realm_generation_params neutral(void) {
    realm_generation_params p = {0};
    realm_sampling_init(&p.sampling);
    return p;
}

static void expect_text(const consumer *c, const char *text, realm_finish finish, uint32_t completion) {
    if (c->text_len != strlen(text) || memcmp(c->text, text, c->text_len) != 0)
        fail_msg("\"%.*s\" where \"%s\" was due", (int)c->text_len, c->text, text);
    assert_int_equal(c->finish, finish);
    assert_int_equal(c->completion_tokens, completion);
}

static void text_and_stops(void **state) {
    (void)state;
    enum { SPACE = TINY_PIECE(0), A, B, C, AB, BC, THE, EURO, STOP, END, D, E };
    engine_run r;
    static consumer c;
    engine_run_open(&r, &tiny_llama, NULL);
    realm_generation_params p = neutral();

    static const realm_token plain[] = {A, THE, EURO, SPACE, B};
    say(&c, &r, plain, 5, &p);
    expect_text(&c, "a the\xe2\x82\xac b", REALM_FINISH_LENGTH, 5);
    assert_int_equal(c.n_ids, 5);
    assert_int_equal(c.end_id, -1);

    static const realm_token ends[] = {A, B, 2, C};
    p = neutral();
    say(&c, &r, ends, 4, &p);
    expect_text(&c, "ab", REALM_FINISH_STOP, 3); /* the end token counts and is no TOKEN event */
    assert_int_equal(c.n_ids, 2);
    assert_int_equal(c.end_id, 2);
    p = neutral();
    p.ignore_end = true;
    say(&c, &r, ends, 4, &p);
    expect_text(&c, "abc", REALM_FINISH_LENGTH, 4);
    p.special_text = true;
    p.max_tokens = 4;
    say(&c, &r, ends, 4, &p);
    expect_text(&c, "ab</s>c", REALM_FINISH_LENGTH, 4);

    /* A character in three tokens; cut at the end; broken in the middle. */
    static const realm_token euro[] = {A, TINY_BYTE(0xe2), TINY_BYTE(0x82), TINY_BYTE(0xac), B, TINY_BYTE(0xe2)};
    p = neutral();
    say(&c, &r, euro, 6, &p);
    expect_text(&c,
                "a\xe2\x82\xac"
                "b\xef\xbf\xbd",
                REALM_FINISH_LENGTH, 6);
    static const realm_token broken[] = {TINY_BYTE(0xe2), TINY_BYTE(0x82), A};
    p = neutral();
    say(&c, &r, broken, 3, &p);
    assert_memory_equal(c.text + c.text_len - 1, "a", 1);
    assert_true(realm_utf8_valid(c.text, c.text_len));

    /* Stop strings: inside a token, across tokens, begun but not finished, the earliest of several. */
    realm_gguf_str stops[3] = {{"bc", 2}};
    static const realm_token across[] = {A, AB, C, D};
    p = neutral();
    p.stop = stops;
    p.n_stop = 1;
    say(&c, &r, across, 4, &p);
    expect_text(&c, "aa", REALM_FINISH_STOP, 3);
    assert_int_equal(c.n_ids, 3);
    static const realm_token begun[] = {A, AB, D, B};
    p.max_tokens = 0;
    say(&c, &r, begun, 4, &p);
    expect_text(&c, "aabdb", REALM_FINISH_LENGTH, 4);
    stops[0] = (realm_gguf_str){"to", 2};
    stops[1] = (realm_gguf_str){"ND", 2};
    static const realm_token inside[] = {A, STOP, END};
    p = neutral();
    p.stop = stops;
    p.n_stop = 2;
    say(&c, &r, inside, 3, &p);
    expect_text(&c, "as", REALM_FINISH_STOP, 2);
    stops[0] = (realm_gguf_str){"\xe2\x82\xac", 3};
    p = neutral();
    p.stop = stops;
    p.n_stop = 1;
    say(&c, &r, euro, 6, &p);
    expect_text(&c, "a", REALM_FINISH_STOP, 4);
    stops[0] = (realm_gguf_str){"abcde", 5};
    stops[1] = (realm_gguf_str){"bd", 2};
    static const realm_token nested[] = {A, BC, AB, D, E};
    p = neutral();
    p.stop = stops;
    p.n_stop = 2;
    say(&c, &r, nested, 5, &p);
    expect_text(&c, "abca", REALM_FINISH_STOP, 4);
    engine_run_close(&r);
}

/* Random texts over few letters with random stop strings, against the definition: after each token, does the whole text
 * hold a stop string? Then it ends before the earliest one. */
static void stops_by_definition(void **state) {
    (void)state;
    engine_run r;
    static consumer c;
    uint64_t rng = 99;
    engine_run_open(&r, &tiny_llama, NULL);
    for (int round = 0; round < 150; round++) {
        realm_token ids[20];
        char text[128] = "", stop_text[3][8];
        realm_gguf_str stops[3];
        size_t n_stop = 1 + (rng >> 33) % 3, want_n = 20;
        for (size_t i = 0; i < n_stop; i++) {
            size_t len = 1 + (rng >> 35) % 6;
            for (size_t j = 0; j < len; j++) {
                rng = rng * UINT64_C(6364136223846793005) + 1;
                stop_text[i][j] = "abc"[(rng >> 33) % 3];
            }
            stop_text[i][len] = '\0';
            stops[i] = (realm_gguf_str){stop_text[i], len};
        }
        for (size_t i = 0; i < 20; i++) {
            rng = rng * UINT64_C(6364136223846793005) + 1;
            ids[i] = TINY_PIECE(1 + (int)((rng >> 33) % 5)); /* a b c ab bc */
        }
        for (size_t i = 0; i < 20 && want_n == 20; i++) {
            strcat(text, TINY_PIECES[ids[i] - 259]);
            char *first = NULL;
            for (size_t k = 0; k < n_stop; k++) {
                char *at = strstr(text, stop_text[k]);
                if (at && (!first || at < first)) first = at;
            }
            if (!first) continue;
            *first = '\0';
            want_n = i + 1;
            if (i == 19) want_n = 19 + 1;
            break;
        }
        realm_generation_params p = neutral();
        p.stop = stops;
        p.n_stop = n_stop;
        say(&c, &r, ids, 20, &p);
        assert_int_equal(c.text_len, strlen(text));
        assert_memory_equal(c.text, text, c.text_len);
        assert_int_equal(c.completion_tokens, want_n);
    }
    engine_run_close(&r);
}

/* ---- log-probabilities ------------------------------------------------------------------------------------------ */

static void logprobs(void **state) {
    (void)state;
    enum { N = 300, N_NEW = 12 };
    realm_error err = {0};
    realm_token prompt[N];
    fill_prompt(prompt, N, 4);
    static float want[N + N_NEW], got[N + N_NEW];
    int32_t tokens[N + N_NEW];
    memcpy(tokens, prompt, sizeof prompt);
    tiny_model *file = tiny_make(&tiny_llama);
    realm_gguf *g;
    assert_int_equal(realm_gguf_open_memory(&g, file->file, file->file_len, &err), REALM_OK);
    model_run m;
    model_run_open(&m, g, 1, 1, 1);
    for (uint32_t i = 0; i < N + N_NEW - 1; i++) {
        model_run_step(&m, tokens, i, 1, 1);
        const float *l = model_run_logits(&m, 0);
        double sum = 0;
        int32_t best = 0;
        for (uint32_t j = 0; j < TINY_VOCAB; j++) {
            sum += exp((double)l[j]);
            if (l[j] > l[best]) best = (int32_t)j;
        }
        if (i + 1 >= N) tokens[i + 1] = best;
        want[i + 1] = (float)((double)l[tokens[i + 1]] - log(sum));
    }
    model_run_close(&m);
    tiny_free(file);

    static const uint32_t chunks[] = {1, 20, 256};
    for (size_t k = 0; k < 6; k++) {
        engine_run r;
        const uint32_t n_new = k < 3 ? N_NEW : 0; /* then the prompt alone */
        engine_run_open(&r, &tiny_llama, &(realm_engine_config){.chunk_tokens = chunks[k % 3]});
        realm_generation_params p = greedy(r.a, prompt, N, N_NEW);
        p.prompt_only = n_new == 0;
        p.logprobs = p.prompt_logprobs = true;
        p.top_logprobs = 3;
        realm_generation *gen;
        assert_int_equal(realm_generation_submit(r.e, &p, &gen, &err), REALM_OK);
        realm_event_batch b;
        realm_event_batch_init(&b);
        size_t at = 0;
        bool ended = false;
        while (!ended) {
            usleep(2000); /* slow: the list of pending events fills */
            size_t n = realm_generation_poll(gen, &b);
            for (size_t i = 0; i < n; i++) {
                const realm_event *ev = &b.events[i];
                if (ev->kind == REALM_EVENT_END) {
                    assert_int_equal(ev->finish, REALM_FINISH_LENGTH);
                    ended = true;
                    break;
                }
                assert_int_equal(ev->kind, at < N ? REALM_EVENT_PROMPT : REALM_EVENT_TOKEN);
                assert_int_equal(ev->id, tokens[at]);
                got[at] = ev->logprob;
                assert_int_equal(ev->n_top, at == 0 ? 0 : 3);
                assert_true(ev->top_at + ev->n_top <= b.n_top);
                for (uint32_t j = 1; j < ev->n_top; j++)
                    assert_true(b.top[ev->top_at + j - 1].logprob >= b.top[ev->top_at + j].logprob);
                if (at >= N) assert_int_equal(b.top[ev->top_at].id, ev->id);
                at++;
            }
        }
        assert_int_equal(at, N + n_new);
        assert_true(isnan(got[0]));
        for (size_t i = 1; i < at; i++) assert_true(fabsf(got[i] - want[i]) < 1e-4f);
        assert_int_equal(b.prompt_tokens, N);
        assert_int_equal(b.completion_tokens, n_new);
        realm_event_batch_release(&b);
        realm_generation_release(gen);
        engine_run_close(&r);
    }
}

static void seeds(void **state) {
    (void)state;
    enum { N = 12, N_NEW = 30 };
    static int32_t first[N][N_NEW];
    static consumer c[N];
    realm_token prompt[50];
    fill_prompt(prompt, 50, 8);
    for (int round = 0; round < 3; round++) { /* together, together in small chunks, one by one */
        engine_run r;
        engine_run_open(&r, &tiny_llama, &(realm_engine_config){.chunk_tokens = round == 1 ? 5 : 64});
        for (int i = 0; i < N; i++) {
            realm_generation_params p = greedy(r.a, prompt, 50, N_NEW);
            p.sampling.temperature = 1.5f;
            p.sampling.top_p = i % 2 ? 0.9f : 1.0f;
            p.sampling.top_k = i % 3 ? 40 : 0;
            p.sampling.seed = (uint64_t)(i / 2) + 1000;
            assert_int_equal(consumer_submit(&c[i], r.e, &p, NULL), REALM_OK);
            if (round == 2) consumer_wait(&c[i]);
        }
        for (int i = 0; i < N; i++) {
            if (round != 2) consumer_wait(&c[i]);
            if (round == 0) memcpy(first[i], c[i].ids, sizeof first[i]);
            assert_memory_equal(first[i], c[i].ids, sizeof first[i]);
            consumer_close(&c[i]);
        }
        engine_run_close(&r);
    }
    assert_memory_not_equal(first[0], first[2], sizeof first[0]);
}

/* ---- many threads ----------------------------------------------------------------------------------------------- */

typedef struct worker {
    engine_run *r;
    realm_account *a;
    uint64_t rng, completions;
    unsigned id;
} worker;

static unsigned next(worker *w, unsigned n) {
    w->rng = w->rng * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (unsigned)(w->rng >> 33) % n;
}

static void *worker_main(void *arg) {
    worker *w = arg;
    consumer *c = malloc(sizeof *c);
    realm_token prompt[200];
    for (int i = 0; i < 25; i++) {
        fill_prompt(prompt, 200, next(w, 50));
        realm_generation_params p = greedy(w->a, prompt, 1 + next(w, 120), 1 + next(w, 90));
        p.sampling.temperature = next(w, 2) ? 1.0f : 0.0f;
        p.logprobs = next(w, 2);
        p.ignore_end = next(w, 2);
        p.top_logprobs = next(w, 4);
        realm_prompt_share *s = NULL;
        if (next(w, 3) == 0 && realm_prompt_share_open(w->r->e, w->a, &s, NULL) == REALM_OK) p.share = s;
        realm_status st = consumer_submit(c, w->r->e, &p, NULL);
        realm_generation *sibling = NULL;
        if (s && st == REALM_OK) st = realm_generation_submit(w->r->e, &p, &sibling, NULL);
        switch (next(w, 5)) {
        case 0: usleep(next(w, 3000)); break;
        case 1: realm_generation_cancel(c->g); break;
        case 2:
            usleep(next(w, 2000));
            realm_generation_cancel(c->g);
            consumer_wait(c);
            break;
        default: consumer_wait(c);
        }
        consumer_close(c);
        realm_generation_release(sibling);
        realm_prompt_share_close(s);
    }
    free(c);
    return NULL;
}

static void many_threads(void **state) {
    (void)state;
    enum { N = 6 };
    engine_run r;
    uint64_t pages = 24;
    realm_engine_stats st;
    engine_run_open(&r, &tiny_llama, &(realm_engine_config){.max_generations = 1});
    realm_engine_get_stats(r.e, &st);
    engine_run_close(&r);
    engine_run_open(&r, &tiny_llama,
                    &(realm_engine_config){
                        .kv_bytes = pages * st.kv_page_bytes, .n_ctx = 256, .max_generations = 5, .chunk_tokens = 40});
    pthread_t threads[N];
    worker w[N];
    realm_account *accounts[N + 1] = {r.a};
    for (unsigned i = 0; i < N; i++) {
        assert_int_equal(realm_account_open(r.e, NULL, NULL, &accounts[i + 1], NULL), REALM_OK);
        w[i] = (worker){.r = &r, .a = accounts[1 + i / 2], .rng = i + 1, .id = i};
        assert_int_equal(pthread_create(&threads[i], NULL, worker_main, &w[i]), 0);
    }
    realm_token_counts total, each[N + 1];
    for (int i = 0; i < 200; i++) { /* sums agree at every moment */
        realm_engine_counts(r.e, &total, accounts, N + 1, each);
        for (int k = 0; k < N + 1; k++) {
            total.prompt -= each[k].prompt;
            total.cached -= each[k].cached;
            total.completion -= each[k].completion;
        }
        assert_int_equal(total.prompt, 0);
        assert_int_equal(total.cached, 0);
        assert_int_equal(total.completion, 0);
        usleep(500);
    }
    for (unsigned i = 0; i < N; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < 5000; i++) {
        realm_engine_get_stats(r.e, &st);
        if (st.running + st.queued + st.kv_pages_used == 0) break;
        usleep(1000);
    }
    assert_int_equal(st.running + st.queued, 0);
    assert_int_equal(st.kv_pages_used, 0);
    assert_int_equal(st.failed, 0);
    for (unsigned i = 0; i < N; i++) realm_account_close(accounts[i + 1]);
    engine_run_close(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(text_and_stops), cmocka_unit_test(stops_by_definition),
                                       cmocka_unit_test(logprobs), cmocka_unit_test(seeds),
                                       cmocka_unit_test(many_threads)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
