/* Contexts, forward passes and run ahead against an oracle that knows nothing of any of them. */
#include <math.h>

#include "support/oracle.h"

#define PAGES_FOR(n) (((n) + REALM_KV_PAGE_TOKENS - 1) / REALM_KV_PAGE_TOKENS)

static tiny_spec long_llama; /* tiny_llama with room for 4,096 tokens */
static oracle truth;

static realm_context *context_of(engine_run *r, const realm_token *tokens, size_t n) {
    realm_context *c;
    assert_int_equal(realm_context_open(r->e, r->a, &c, NULL), REALM_OK);
    assert_int_equal(realm_context_append(c, tokens, n, NULL), REALM_OK);
    return c;
}

/* Runs to the end; the consumer is left open. */
static void generate(engine_run *r, consumer *k, realm_context *c, const realm_token *more, size_t n, uint32_t n_new) {
    realm_generation_params p = greedy(r->a, more, n, n_new);
    p.context = c;
    realm_error err = {0};
    if (consumer_submit(k, r->e, &p, &err) != REALM_OK) model_run_fail("submit", &err);
    consumer_wait(k);
}

static realm_logits *forward(engine_run *r, realm_context *c, const realm_token *more, size_t n, uint32_t n_rows,
                             bool hidden) {
    consumer k;
    realm_error err = {0};
    realm_generation_params p = {.account = r->a,
                                 .context = c,
                                 .prompt = more,
                                 .n_prompt = n,
                                 .forward = true,
                                 .n_rows = n_rows,
                                 .hidden = hidden};
    if (consumer_submit(&k, r->e, &p, &err) != REALM_OK) model_run_fail("submit", &err);
    consumer_wait(&k);
    assert_int_equal(k.finish, REALM_FINISH_STOP);
    assert_int_equal(k.n_events, 1);
    realm_logits *l = realm_generation_take_logits(k.g);
    assert_non_null(l);
    assert_null(realm_generation_take_logits(k.g));
    consumer_close(&k);
    return l;
}

static void check_tokens(realm_context *c, const realm_token *want, uint32_t n) {
    static realm_token got[4096];
    realm_context_info info;
    realm_context_get_info(c, &info);
    assert_int_equal(info.n_tokens, n);
    assert_false(info.busy);
    assert_int_equal(realm_context_get_tokens(c, 0, got, 4096), n);
    assert_memory_equal(got, want, n * sizeof *want);
}

static void a_context_goes_on(void **state) {
    (void)state;
    engine_run r;
    static consumer k;
    realm_token want[400];
    engine_run_open(&r, &tiny_llama, &(realm_engine_config){.chunk_tokens = 16});
    oracle_open_tiny(&truth, r.file);
    fill_prompt(want, 100, 3);
    oracle_continue(&truth, want, 100, 40);
    fill_prompt(want + 140, 33, 5);
    oracle_continue(&truth, want, 173, 30);

    realm_context *c = context_of(&r, want, 60);
    realm_logits_release(forward(&r, c, want + 60, 10, 1, false));
    check_tokens(c, want, 70);
    generate(&r, &k, c, want + 70, 30, 25);
    assert_int_equal(k.finish, REALM_FINISH_LENGTH);
    assert_memory_equal(k.ids, want + 100, 25 * sizeof *want);
    assert_int_equal(k.prompt_tokens, 30);
    consumer_close(&k);
    check_tokens(c, want, 125);
    generate(&r, &k, c, NULL, 0, 15); /* goes on without a prompt */
    assert_memory_equal(k.ids, want + 125, 15 * sizeof *want);
    assert_int_equal(k.prompt_tokens, 1); /* the token that was sampled last */
    consumer_close(&k);
    generate(&r, &k, c, want + 140, 33, 30);
    assert_memory_equal(k.ids, want + 173, 30 * sizeof *want);
    consumer_close(&k);
    check_tokens(c, want, 203);

    /* Back into the middle of a page, and the same again; then all is computed but the last token. */
    for (uint32_t keep = 150; keep > 100; keep -= 23) {
        assert_int_equal(realm_context_truncate(c, keep, NULL), REALM_OK);
        check_tokens(c, want, keep);
        generate(&r, &k, c, want + keep, 173 - keep, 30);
        assert_memory_equal(k.ids, want + 173, 30 * sizeof *want);
        consumer_close(&k);
    }
    realm_context_info info;
    realm_context_get_info(c, &info);
    assert_int_equal(info.n_computed, 202);
    assert_int_equal(info.pages, 7);
    assert_int_equal(info.shared_pages, 0);
    realm_token tail[10];
    assert_int_equal(realm_context_get_tokens(c, 198, tail, 10), 5);
    assert_memory_equal(tail, want + 198, 5 * sizeof *want);
    assert_int_equal(realm_context_get_tokens(c, 300, tail, 10), 0);
    realm_context_release(c);
    realm_engine_stats st;
    realm_engine_get_stats(r.e, &st);
    assert_int_equal(st.kv_pages_used, 0);
    assert_int_equal(st.contexts, 0);
    oracle_close(&truth);
    engine_run_close(&r);
}

/* Thirty-two branches over one trunk, each with an ending of its own: right tokens, and the trunk's pages once. */
static void branches(void **state) {
    (void)state;
    enum { BRANCHES = 32, TRUNK = 300, N_NEW = 12 };
    engine_run r;
    static consumer k[BRANCHES];
    static realm_token want[BRANCHES][TRUNK + 2 + N_NEW];
    realm_context *trunk, *branch[BRANCHES];
    engine_run_open(&r, &tiny_llama, NULL);
    oracle_open_tiny(&truth, r.file);
    for (unsigned i = 0; i < BRANCHES; i++) {
        fill_prompt(want[i], TRUNK, 7);
        want[i][TRUNK] = (realm_token)(10 + i);
        want[i][TRUNK + 1] = (realm_token)(100 + 3 * i);
        oracle_continue(&truth, want[i], TRUNK + 2, N_NEW);
    }
    trunk = context_of(&r, want[0], TRUNK);
    realm_logits_release(forward(&r, trunk, NULL, 0, 1, false));
    for (unsigned i = 0; i < BRANCHES; i++) assert_int_equal(realm_context_fork(trunk, &branch[i], NULL), REALM_OK);
    realm_engine_stats st;
    realm_engine_get_stats(r.e, &st);
    assert_int_equal(st.kv_pages_used, PAGES_FOR(TRUNK));
    assert_int_equal(st.contexts, BRANCHES + 1);
    realm_context_info info;
    realm_context_get_info(branch[3], &info);
    assert_int_equal(info.shared_pages, PAGES_FOR(TRUNK));
    assert_int_equal(info.n_computed, TRUNK);
    realm_generation_params p;
    for (unsigned i = 0; i < BRANCHES; i++) {
        p = greedy(r.a, want[i] + TRUNK, 2, N_NEW);
        p.context = branch[i];
        assert_int_equal(consumer_submit(&k[i], r.e, &p, NULL), REALM_OK);
    }
    for (unsigned i = 0; i < BRANCHES; i++) {
        consumer_wait(&k[i]);
        assert_memory_equal(k[i].ids, want[i] + TRUNK + 2, N_NEW * sizeof **want);
        assert_int_equal(k[i].prompt_tokens, 2);
        check_tokens(branch[i], want[i], TRUNK + 2 + N_NEW);
        consumer_close(&k[i]);
    }
    realm_engine_get_stats(r.e, &st); /* the trunk, and each branch's own last page */
    assert_int_equal(st.kv_pages_used, PAGES_FOR(TRUNK) + BRANCHES);
    check_tokens(trunk, want[0], TRUNK);
    realm_context_release(trunk); /* its pages stay the branches' */
    generate(&r, &k[0], branch[5], NULL, 0, 1);
    consumer_close(&k[0]);
    for (unsigned i = 0; i < BRANCHES; i++) realm_context_release(branch[i]);
    realm_engine_get_stats(r.e, &st);
    assert_int_equal(st.kv_pages_used, 0);
    oracle_close(&truth);
    engine_run_close(&r);
}

static void forks_are_quick(void **state) {
    (void)state;
    enum { N = 2000, TIMES = 2000 };
    engine_run r;
    static realm_token tokens[N];
    static realm_context *f[TIMES];
    engine_run_open(&r, &long_llama, NULL);
    fill_prompt(tokens, N, 1);
    realm_context *c = context_of(&r, tokens, N);
    realm_logits_release(forward(&r, c, NULL, 0, 1, false));
    realm_engine_stats before, after;
    realm_engine_get_stats(r.e, &before);
    uint64_t start = realm_clock_ns();
    for (unsigned i = 0; i < TIMES; i++) assert_int_equal(realm_context_fork(c, &f[i], NULL), REALM_OK);
    uint64_t took = realm_clock_ns() - start;
    realm_engine_get_stats(r.e, &after);
    print_message("fork of a context of %d tokens: %.2f us\n", N, (double)took / 1000 / TIMES);
    assert_int_equal(before.kv_pages_used, after.kv_pages_used);
    assert_int_equal(before.steps, after.steps);
    for (unsigned i = 0; i < TIMES; i++) realm_context_release(f[i]);
    realm_context_release(c);
    engine_run_close(&r);
}

static void busy_and_wrong(void **state) {
    (void)state;
    engine_run r;
    held stop;
    realm_error err;
    realm_token tokens[600];
    static consumer k, none;
    fill_prompt(tokens, 600, 2);
    engine_run_open(&r, &tiny_llama, NULL);
    realm_context *c = context_of(&r, tokens, 50), *f;
    realm_account *other;
    assert_int_equal(realm_account_open(r.e, NULL, NULL, &other, NULL), REALM_OK);
    engine_stop(&stop, &r);
    realm_generation_params p = greedy(r.a, tokens + 50, 3, 5);
    p.context = c;
    assert_int_equal(consumer_submit(&k, r.e, &p, &err), REALM_OK);
    assert_int_equal(realm_context_append(c, tokens, 1, &err), REALM_E_BUSY);
    assert_int_equal(realm_context_truncate(c, 1, &err), REALM_E_BUSY);
    assert_int_equal(realm_context_fork(c, &f, &err), REALM_E_BUSY);
    assert_null(f);
    assert_int_equal(consumer_submit(&none, r.e, &p, &err), REALM_E_BUSY);
    realm_context_info info;
    realm_context_get_info(c, &info);
    assert_true(info.busy);
    assert_int_equal(info.n_tokens, 53);
    assert_int_equal(info.n_computed, 0);
    assert_int_equal(realm_context_get_tokens(c, 50, tokens + 599, 1), 1);
    held_go(&stop);
    consumer_wait(&k);
    assert_int_equal(realm_context_append(c, tokens, 1, &err), REALM_OK); /* idle as soon as END can be seen */
    consumer_close(&k);

#define REFUSED(code, word, change)                                                   \
    do {                                                                              \
        realm_context_get_info(c, &info);                                             \
        const uint32_t before = info.n_tokens;                                        \
        p = greedy(r.a, tokens, 10, 5);                                               \
        p.context = c;                                                                \
        change;                                                                       \
        assert_int_equal(consumer_submit(&none, r.e, &p, &err), code);                \
        if (!strstr(err.text, word)) fail_msg("\"%s\" lacks \"%s\"", err.text, word); \
        realm_context_get_info(c, &info);                                             \
        assert_int_equal(info.n_tokens, before);                                      \
        assert_false(info.busy);                                                      \
    } while (0)
    realm_token wrong = (realm_token)TINY_VOCAB;
    REFUSED(REALM_E_INVALID, "account", p.account = other);
    REFUSED(REALM_E_INVALID, "prompt_logprobs", p.prompt_logprobs = true);
    REFUSED(REALM_E_RANGE, "token 0", (p.prompt = &wrong, p.n_prompt = 1));
    REFUSED(REALM_E_CONTEXT, "most", p.n_prompt = 460);
    REFUSED(REALM_E_CONTEXT, "room", p.n_prompt = 512 - info.n_tokens);
    REFUSED(REALM_E_RANGE, "n_rows", p.forward = true);
    REFUSED(REALM_E_RANGE, "n_rows", (p.forward = true, p.n_rows = REALM_FORWARD_ROWS + 1));
    REFUSED(REALM_E_RANGE, "run_ahead", p.run_ahead = REALM_RUN_AHEAD_MAX + 1);
    realm_account_set_limits(r.a, &(realm_account_limits){.kv_tokens = 64});
    REFUSED(REALM_E_QUOTA, "kv_tokens", (void)0);
    realm_account_set_limits(r.a, &(realm_account_limits){0});
#undef REFUSED
    assert_int_equal(realm_context_append(c, &wrong, 1, &err), REALM_E_RANGE);
    wrong = -1;
    assert_int_equal(realm_context_append(c, &wrong, 1, &err), REALM_E_RANGE);
    assert_int_equal(realm_context_append(c, tokens, 512, &err), REALM_E_CONTEXT);
    assert_int_equal(realm_context_truncate(c, info.n_tokens + 1, &err), REALM_E_RANGE);
    /* An empty context has nothing to compute; a full one can still be computed. */
    assert_int_equal(realm_context_truncate(c, 0, &err), REALM_OK);
    p = greedy(r.a, NULL, 0, 5);
    p.context = c;
    assert_int_equal(consumer_submit(&none, r.e, &p, &err), REALM_E_RANGE);
    assert_int_equal(realm_context_append(c, tokens, 512, &err), REALM_OK);
    realm_logits_release(forward(&r, c, NULL, 0, 3, false));
    assert_int_equal(consumer_submit(&none, r.e, &p, &err), REALM_E_CONTEXT);
    realm_context_release(c);
    realm_account_close(other);
    engine_run_close(&r);
}

/* Rows bit for bit those of the oracle, whatever was computed before and however many; hidden states give the logits.
 */
static void forward_rows(void **state) {
    (void)state;
    static const uint32_t n_rows[] = {1, 2, 33, 64};
    engine_run r;
    realm_token tokens[300];
    const uint32_t n_vocab = TINY_VOCAB;
    engine_run_open(&r, &tiny_llama, &(realm_engine_config){.chunk_tokens = 40});
    oracle_open_tiny(&truth, r.file);
    fill_prompt(tokens, 300, 8);
    const float *out = tiny_find(r.file, "output.weight");
    assert_non_null(out);
    for (size_t i = 0; i < REALM_ARRAY_LEN(n_rows); i++) {
        realm_context *c = context_of(&r, tokens, 130);
        uint32_t n = 130;
        for (unsigned again = 0; again < 4; again++) { /* all, all once more, one token more, many more */
            uint32_t more = again < 2 ? 0 : again == 2 ? 1 : 80;
            realm_logits *l = forward(&r, c, tokens + n, more, n_rows[i], true);
            n += more;
            assert_int_equal(realm_logits_rows(l), n_rows[i]);
            assert_null(realm_logits_row(l, n_rows[i]));
            for (uint32_t k = 0; k < n_rows[i]; k++) {
                const float *row = realm_logits_row(l, k);
                assert_memory_equal(row, oracle_logits(&truth, tokens, n - n_rows[i] + k + 1), n_vocab * sizeof *row);
                size_t d;
                const float *h = realm_logits_hidden(l, k, &d);
                assert_int_equal(d, 64);
                for (uint32_t j = 0; j < n_vocab; j += 17) {
                    double sum = 0;
                    for (size_t x = 0; x < d; x++) sum += (double)out[j * d + x] * (double)h[x];
                    assert_float_equal(sum, row[j], 1e-4);
                }
            }
            realm_logits_release(l);
        }
        realm_context_release(c);
    }
    /* Without a context, too. */
    realm_logits *l = forward(&r, NULL, tokens, 77, 5, false);
    assert_memory_equal(realm_logits_row(l, 4), oracle_logits(&truth, tokens, 77), n_vocab * sizeof(float));
    assert_null(realm_logits_hidden(l, 0, NULL));
    realm_logits_release(l);
    oracle_close(&truth);
    engine_run_close(&r);
}

static void rows_of_ones_own(void **state) {
    (void)state;
    engine_run r;
    realm_error err;
    realm_logits *l;
    static float rows[2 * TINY_VOCAB];
    engine_run_open(&r, &tiny_llama, NULL);
    double sum[2] = {0, 0}, entropy[2] = {0, 0};
    for (unsigned i = 0; i < 2 * TINY_VOCAB; i++) {
        rows[i] = (float)((i * 7919) % 1000) / 100.0f - (i < TINY_VOCAB ? 3.0f : 50.0f);
        sum[i / TINY_VOCAB] += exp((double)rows[i]);
    }
    for (unsigned i = 0; i < 2 * TINY_VOCAB; i++) {
        double p = exp((double)rows[i]) / sum[i / TINY_VOCAB];
        entropy[i / TINY_VOCAB] -= p * log(p);
    }
    assert_int_equal(realm_logits_open(r.e, rows, 2, &l, &err), REALM_OK);
    for (unsigned i = 0; i < 2; i++) {
        assert_float_equal(realm_logits_log_sum_exp(l, i), log(sum[i]), 1e-4);
        assert_float_equal(realm_logits_entropy(l, i), entropy[i], 1e-3);
        realm_top_logprob top[40], all[TINY_VOCAB];
        const float *x = rows + i * TINY_VOCAB;
        assert_int_equal(realm_logits_top(l, i, 40, top), 40);
        assert_int_equal(realm_logits_top(l, i, 5000, all), TINY_VOCAB);
        assert_memory_equal(top, all, sizeof top);
        for (unsigned j = 0; j < TINY_VOCAB; j++) {
            assert_float_equal(all[j].logprob, (float)((double)x[all[j].id] - log(sum[i])), 1e-4);
            if (j > 0)
                assert_true(all[j].logprob < all[j - 1].logprob ||
                            (all[j].logprob == all[j - 1].logprob && all[j].id > all[j - 1].id));
        }
        realm_token id;
        float logprob;
        assert_int_equal(realm_logits_sample(l, i, NULL, &id, &logprob, &err), REALM_OK);
        assert_int_equal(id, all[0].id);
        assert_float_equal(logprob, all[0].logprob, 1e-5);
    }
    /* Changed in place: one token is left, then none. */
    for (unsigned j = 0; j < TINY_VOCAB; j++) realm_logits_row(l, 0)[j] = j == 77 ? 1.0f : -INFINITY;
    realm_token id;
    assert_int_equal(realm_logits_sample(l, 0, NULL, &id, NULL, &err), REALM_OK);
    assert_int_equal(id, 77);
    realm_chain *chain;
    realm_stage stage = {.kind = REALM_STAGE_KIND_TEMPERATURE, .u.temperature = 2.0f};
    assert_int_equal(realm_chain_open(&stage, 1, 9, TINY_VOCAB, &chain, &err), REALM_OK);
    assert_int_equal(realm_logits_sample(l, 0, chain, &id, NULL, &err), REALM_OK);
    assert_int_equal(id, 77);
    assert_float_equal(realm_logits_entropy(l, 0), 0, 1e-6);
    realm_logits_row(l, 0)[77] = NAN;
    assert_int_equal(realm_logits_sample(l, 0, chain, &id, NULL, &err), REALM_E_FORMAT);
    realm_chain_close(chain);
    assert_true(isnan(realm_logits_log_sum_exp(l, 0)));
    assert_true(isnan(realm_logits_entropy(l, 0)));
    assert_int_equal(realm_logits_top(l, 0, 5, (realm_top_logprob[5]){{0}}), 0);
    assert_int_equal(realm_logits_sample(l, 2, NULL, &id, NULL, &err), REALM_E_RANGE);
    realm_logits_release(l);
    assert_int_equal(realm_logits_open(r.e, rows, 0, &l, &err), REALM_E_RANGE);
    assert_int_equal(realm_logits_open(r.e, rows, REALM_FORWARD_ROWS + 1, &l, &err), REALM_E_RANGE);
    engine_run_close(&r);
}

/* A program in the loop: one forward pass per token. */
static void lockstep(void **state) {
    (void)state;
    enum { N_NEW = 300 };
    engine_run r;
    realm_token want[400];
    engine_run_open(&r, &tiny_llama, NULL);
    oracle_open_tiny(&truth, r.file);
    fill_prompt(want, 50, 4);
    oracle_continue(&truth, want, 50, N_NEW);
    realm_context *c = context_of(&r, want, 49);
    realm_logits_release(forward(&r, c, NULL, 0, 1, false));
    realm_engine_stats before, after;
    realm_engine_get_stats(r.e, &before);
    uint64_t start = realm_clock_ns();
    for (uint32_t i = 0; i < N_NEW; i++) {
        realm_token id;
        realm_logits *l = forward(&r, c, &want[49 + i], 1, 1, false);
        assert_int_equal(realm_logits_sample(l, 0, NULL, &id, NULL, NULL), REALM_OK);
        assert_int_equal(id, want[50 + i]);
        realm_logits_release(l);
    }
    uint64_t took = realm_clock_ns() - start;
    realm_engine_get_stats(r.e, &after);
    const uint64_t unasked = after.guesses - after.guesses_right; /* at the end */
    assert_int_equal(after.steps - before.steps, N_NEW + unasked);
    print_message("one forward pass in lockstep: %.1f us, of which the step %.1f us\n", (double)took / 1000 / N_NEW,
                  (double)(after.step_ns - before.step_ns) / 1000 / N_NEW);
    realm_context_release(c);
    oracle_close(&truth);
    engine_run_close(&r);
}

static void without_memory(void **state) {
    (void)state;
    engine_run r;
    realm_token tokens[100];
    fill_prompt(tokens, 100, 6);
    engine_run_open(&r, &tiny_llama, NULL);
    realm_context *c = context_of(&r, tokens, 40);
    realm_logits_release(forward(&r, c, NULL, 0, 1, false));
    int failures = 0;
    for (int64_t n = 0;; n++) {
        realm_error err = {0};
        realm_context *f = NULL, *o = NULL;
        realm_logits *l = NULL;
        realm_generation *g = NULL;
        realm_generation_params p = {.account = r.a, .prompt = tokens + 40, .n_prompt = 60, .forward = true};
        p.n_rows = 3;
        p.hidden = true;
        float row[TINY_VOCAB] = {0};
        realm_alloc_inject_failure(n, false);
        realm_status s = realm_context_open(r.e, r.a, &o, &err);
        if (s == REALM_OK) s = realm_context_append(o, tokens, 70, &err);
        if (s == REALM_OK) s = realm_context_fork(c, &f, &err);
        if (s == REALM_OK) s = realm_logits_open(r.e, row, 1, &l, &err);
        p.context = f;
        if (s == REALM_OK) s = realm_generation_submit(r.e, &p, &g, &err);
        realm_alloc_inject_failure(-1, false);
        if (s != REALM_OK) {
            assert_int_equal(s, REALM_E_NOMEM);
            assert_int_equal(err.code, REALM_E_NOMEM);
            if (f) check_tokens(f, tokens, 40);
            failures++;
        }
        realm_generation_release(g);
        realm_logits_release(l);
        realm_context_release(f);
        realm_context_release(o);
        if (s == REALM_OK) break;
    }
    assert_true(failures >= 9);
    realm_context_release(c);
    engine_run_close(&r);
}

int main(void) {
    long_llama = tiny_llama;
    long_llama.n_ctx = 4096;
    const struct CMUnitTest tests[] = {cmocka_unit_test(a_context_goes_on), cmocka_unit_test(branches),
                                       cmocka_unit_test(forks_are_quick),   cmocka_unit_test(busy_and_wrong),
                                       cmocka_unit_test(forward_rows),      cmocka_unit_test(rows_of_ones_own),
                                       cmocka_unit_test(lockstep),          cmocka_unit_test(without_memory)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
