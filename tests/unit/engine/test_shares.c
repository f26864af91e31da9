/* Accounts beside each other in a running engine: places, tokens per second, weights never change the text. The shares
 * themselves are measured against a simulated machine in test_fair.c. */
#include "support/engine_run.h"

enum { LONG = 400 };

/* Readers that keep up: all of them polled in turn until the last one has ended. */
static void read_until_end(consumer *all, size_t n, consumer *last) {
    while (!consumer_poll(last)) {
        for (size_t i = 0; i < n; i++) (void)consumer_poll(&all[i]);
        sched_yield();
    }
}

static void finish(consumer *c, size_t n) {
    for (size_t open = n; open > 0;) {
        open = 0;
        for (size_t i = 0; i < n; i++) open += !consumer_poll(&c[i]);
        sched_yield();
    }
}

/* One account fills every place with long generations; another's short one comes in at once and ends long before any of
 * them, whose texts are what they are alone. */
static void a_place_for_everybody(void **state) {
    (void)state;
    enum { FLOOD = 6 };
    engine_run r;
    realm_engine_config config = {.max_generations = 3};
    engine_run_open(&r, &tiny_llama, &config);
    realm_account *quiet;
    assert_int_equal(realm_account_open(r.e, NULL, NULL, &quiet, NULL), REALM_OK);
    realm_token prompt[FLOOD][20];
    static consumer flood[FLOOD], alone, short_one;
    for (unsigned i = 0; i < FLOOD; i++) {
        fill_prompt(prompt[i], 20, i);
        realm_generation_params p = greedy(r.a, prompt[i], 20, LONG);
        assert_int_equal(consumer_submit(&flood[i], r.e, &p, NULL), REALM_OK);
    }
    while (flood[2].n_ids == 0) /* all places are taken */
        for (unsigned i = 0; i < 3; i++) (void)consumer_poll(&flood[i]);
    realm_generation_params p = greedy(quiet, prompt[0], 20, 8);
    assert_int_equal(consumer_submit(&short_one, r.e, &p, NULL), REALM_OK);
    read_until_end(flood, FLOOD, &short_one);
    assert_int_equal(short_one.n_ids, 8);
    for (unsigned i = 0; i < FLOOD; i++) assert_int_equal(flood[i].finish, REALM_FINISH_NONE);
    finish(flood, FLOOD);
    for (unsigned i = 0; i < FLOOD; i++) {
        p = greedy(r.a, prompt[i], 20, LONG);
        assert_int_equal(consumer_submit(&alone, r.e, &p, NULL), REALM_OK);
        finish(&alone, 1);
        assert_int_equal(flood[i].finish, REALM_FINISH_LENGTH);
        assert_int_equal(flood[i].n_ids, LONG);
        assert_memory_equal(flood[i].ids, alone.ids, LONG * sizeof alone.ids[0]);
        assert_int_equal(flood[i].prompt_tokens, 20); /* charged once, however often it gave way */
        consumer_close(&alone);
        consumer_close(&flood[i]);
    }
    consumer_close(&short_one);
    realm_account_close(quiet);
    engine_run_close(&r);
}

/* At the limit turns are missed, nothing ends and nothing is lost; another account is not held up. */
static void tokens_per_second(void **state) {
    (void)state;
    engine_run r;
    engine_run_open(&r, &tiny_llama, NULL);
    realm_account *slow;
    realm_account_limits limits = {.tokens_per_second = 100};
    assert_int_equal(realm_account_open(r.e, &limits, NULL, &slow, NULL), REALM_OK);
    realm_token prompt[30];
    fill_prompt(prompt, 30, 3);
    static consumer c[2];
    realm_generation_params p = greedy(slow, prompt, 30, 150);
    uint64_t start = realm_clock_ns();
    assert_int_equal(consumer_submit(&c[0], r.e, &p, NULL), REALM_OK);
    p.account = r.a;
    assert_int_equal(consumer_submit(&c[1], r.e, &p, NULL), REALM_OK);
    read_until_end(&c[0], 1, &c[1]);
    assert_int_equal(c[0].finish, REALM_FINISH_NONE);
    finish(c, 2);
    /* 30 + 149 tokens were computed, 100 of them at once. */
    assert_true(realm_clock_ns() - start >= UINT64_C(780000000));
    assert_int_equal(c[0].finish, REALM_FINISH_LENGTH);
    assert_int_equal(c[0].n_ids, 150);
    assert_memory_equal(c[0].ids, c[1].ids, 150 * sizeof c[0].ids[0]);
    consumer_close(&c[0]);
    consumer_close(&c[1]);
    realm_account_close(slow);
    engine_run_close(&r);
}

/* Tokens that a program takes back were computed: they count, and so do those that come in their place. */
static void rewound_tokens_count(void **state) {
    (void)state;
    enum { AHEAD = 8, ROUNDS = 12 };
    engine_run r;
    engine_run_open(&r, &tiny_llama, NULL);
    realm_account *slow;
    realm_account_limits limits = {.tokens_per_second = 60};
    assert_int_equal(realm_account_open(r.e, &limits, NULL, &slow, NULL), REALM_OK);
    realm_token prompt[10];
    fill_prompt(prompt, 10, 3);
    static consumer c;
    realm_generation_params p = greedy(slow, prompt, 10, 100);
    p.run_ahead = AHEAD;
    uint64_t start = realm_clock_ns();
    assert_int_equal(consumer_submit(&c, r.e, &p, NULL), REALM_OK);
    for (size_t round = 0; round < ROUNDS; round++) {
        while (c.n_ids < AHEAD * (round + 1)) {
            (void)consumer_poll(&c);
            sched_yield();
        }
        assert_int_equal(realm_generation_rewind(c.g, 0, NULL, 0, NULL), REALM_OK);
    }
    /* 10 + 7 tokens were computed at first, 8 in each further round, 60 of all of them at once. */
    assert_true(realm_clock_ns() - start >= UINT64_C(740000000));
    for (size_t i = AHEAD; i < AHEAD * ROUNDS; i++) assert_int_equal(c.ids[i], c.ids[i - AHEAD]);
    consumer_close(&c);
    realm_account_close(slow);
    engine_run_close(&r);
}

/* Many accounts of all weights with prompts and decoding at once: every text is the one it is alone. */
static void texts_do_not_depend_on_shares(void **state) {
    (void)state;
    enum { N = 12, TOKENS = 60 };
    engine_run r;
    realm_engine_config config = {.max_generations = 24, .chunk_tokens = 40};
    engine_run_open(&r, &tiny_llama, &config);
    realm_account *accounts[4];
    static consumer c[N], alone;
    realm_token prompt[N][160];
    for (uint32_t a = 0; a < 4; a++) {
        realm_account_limits limits = {.weight = 1u + 300u * a};
        assert_int_equal(realm_account_open(r.e, &limits, NULL, &accounts[a], NULL), REALM_OK);
    }
    for (unsigned i = 0; i < N; i++) {
        fill_prompt(prompt[i], 10 + 13 * i, i);
        realm_generation_params p = greedy(accounts[i * i % 4], prompt[i], 10 + 13 * i, TOKENS);
        assert_int_equal(consumer_submit(&c[i], r.e, &p, NULL), REALM_OK);
    }
    finish(c, N);
    for (unsigned i = 0; i < N; i++) {
        realm_generation_params p = greedy(r.a, prompt[i], 10 + 13 * i, TOKENS);
        assert_int_equal(consumer_submit(&alone, r.e, &p, NULL), REALM_OK);
        finish(&alone, 1);
        assert_int_equal(c[i].n_ids, TOKENS);
        assert_memory_equal(c[i].ids, alone.ids, TOKENS * sizeof alone.ids[0]);
        consumer_close(&alone);
        consumer_close(&c[i]);
    }
    for (uint32_t a = 0; a < 4; a++) realm_account_close(accounts[a]);
    engine_run_close(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(a_place_for_everybody), cmocka_unit_test(tokens_per_second),
                                       cmocka_unit_test(rewound_tokens_count),
                                       cmocka_unit_test(texts_do_not_depend_on_shares)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
