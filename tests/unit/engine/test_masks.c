/* Masks that take long: nobody else waits for them, and they change no token. The function that computes a mask is
 * wrapped: it can be made to take long, to lose its processor, to stop at a gate, or to fail. */
#include <sched.h>

#include "support/engine_run.h"

#define LONG_NS (5 * REALM_NS_PER_MS) /* more than a step computes by itself a second time */

static realm_grammar_vocab *vocab;
static atomic_bool slow, dozing, broken;
static atomic_int n_masks, n_aside; /* of them, those beside the steps */

static struct {
    pthread_mutex_t mu;
    pthread_cond_t cond;
    bool closed;
    int inside;
} gate = {.mu = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};

realm_status __real_realm_grammar_state_mask(realm_grammar_state *s, uint32_t *bits, realm_error *err);
realm_status __wrap_realm_grammar_state_mask(realm_grammar_state *s, uint32_t *bits, realm_error *err);
realm_status __wrap_realm_grammar_state_mask(realm_grammar_state *s, uint32_t *bits, realm_error *err) {
    const bool aside = sched_getscheduler(0) == SCHED_BATCH; /* the policy of those threads */
    atomic_fetch_add(&n_masks, 1);
    atomic_fetch_add(&n_aside, aside);
    for (uint64_t from = realm_clock_thread_ns(); atomic_load(&slow) && realm_clock_thread_ns() - from < LONG_NS;) {
    }
    if (atomic_load(&dozing)) (void)nanosleep(&(struct timespec){.tv_nsec = LONG_NS}, NULL);
    pthread_mutex_lock(&gate.mu);
    gate.inside++;
    pthread_cond_broadcast(&gate.cond);
    while (aside && gate.closed) pthread_cond_wait(&gate.cond, &gate.mu);
    gate.inside--;
    pthread_mutex_unlock(&gate.mu);
    if (aside && atomic_load(&broken)) return realm_error_set(err, REALM_E_GRAMMAR, "it broke");
    return __real_realm_grammar_state_mask(s, bits, err);
}

static void gate_set(bool closed) {
    pthread_mutex_lock(&gate.mu);
    gate.closed = closed;
    pthread_cond_broadcast(&gate.cond);
    pthread_mutex_unlock(&gate.mu);
}

static void gate_await(int inside) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 20;
    pthread_mutex_lock(&gate.mu);
    while (gate.inside < inside)
        if (pthread_cond_timedwait(&gate.cond, &gate.mu, &until) != 0) {
            pthread_mutex_unlock(&gate.mu);
            fail_msg("no mask is computed beside the steps");
        }
    pthread_mutex_unlock(&gate.mu);
}

static realm_grammar_state *state_of(engine_run *r, const char *text) {
    realm_grammar *g;
    realm_grammar_state *s;
    realm_error err = {0};
    if (!vocab && realm_grammar_vocab_open(&vocab, r->t, &err) != REALM_OK) fail_msg("%s", err.text);
    if (realm_grammar_compile(vocab, 0, REALM_GRAMMAR_KIND_REGEX, text, strlen(text), &g, &err) != REALM_OK)
        fail_msg("%s", err.text);
    assert_int_equal(realm_grammar_state_open(g, &s, NULL), REALM_OK);
    realm_grammar_release(g);
    return s;
}

static void open_engine(engine_run *r) {
    engine_run_open(r, &tiny_llama, NULL);
    atomic_store(&slow, true);
    atomic_store(&dozing, false);
    atomic_store(&broken, false);
    atomic_store(&n_masks, 0);
    atomic_store(&n_aside, 0);
}

static void close_engine(engine_run *r) {
    realm_grammar_vocab_close(vocab);
    vocab = NULL;
    engine_run_close(r);
}

static void begin(consumer *c, engine_run *r, const realm_grammar_state *g, unsigned salt) {
    realm_token prompt[40];
    fill_prompt(prompt, 40, salt);
    realm_generation_params p = greedy(r->a, prompt, 40, 0);
    p.sampling.temperature = 2;
    p.sampling.seed = salt;
    p.grammar = g;
    assert_int_equal(consumer_submit(c, r->e, &p, NULL), REALM_OK);
}

static void others_go_on(void **unused) {
    (void)unused;
    engine_run r;
    realm_account *other;
    static consumer c[2], o;
    realm_token prompt[9];
    open_engine(&r);
    assert_int_equal(realm_account_open(r.e, NULL, NULL, &other, NULL), REALM_OK);
    realm_grammar_state *s = state_of(&r, "[a-z]{20}");
    gate_set(true);
    begin(&c[0], &r, s, 1);
    gate_await(1); /* its first mask was computed with the row, and was slow */
    /* Of the account's next one the prompt is computed, and it waits for its turn. */
    begin(&c[1], &r, s, 2);
    fill_prompt(prompt, 9, 3);
    realm_generation_params p = greedy(other, prompt, 9, 60);
    assert_int_equal(consumer_submit(&o, r.e, &p, NULL), REALM_OK);
    consumer_wait(&o);
    assert_int_equal(o.n_ids, 60);
    for (int i = 0; i < 2; i++) assert_false(consumer_poll(&c[i]));
    assert_int_equal(c[0].n_ids, 1);
    assert_int_equal(c[1].n_ids, 0);
    gate_set(false);
    for (int i = 0; i < 2; i++) {
        consumer_wait(&c[i]);
        assert_int_equal(c[i].finish, REALM_FINISH_STOP);
        assert_int_equal(c[i].text_len, 20);
        consumer_close(&c[i]);
    }
    consumer_close(&o);
    realm_grammar_state_close(s);
    realm_account_close(other);
    close_engine(&r);
}

/* While its mask is computed it may be cancelled, and the engine closed. */
static void it_may_end_meanwhile(void **unused) {
    (void)unused;
    engine_run r;
    static consumer c[3];
    open_engine(&r);
    realm_grammar_state *s = state_of(&r, "[a-z]{20}");
    gate_set(true);
    for (unsigned i = 0; i < 3; i++) begin(&c[i], &r, s, i);
    gate_await(1);
    for (unsigned i = 0; i < 3; i++) realm_generation_cancel(c[i].g);
    for (unsigned i = 0; i < 3; i++) {
        consumer_wait(&c[i]);
        assert_int_equal(c[i].finish, REALM_FINISH_CANCELLED);
        consumer_close(&c[i]);
    }
    gate_set(false);
    begin(&c[0], &r, s, 7);
    while (c[0].n_ids < 2) (void)consumer_poll(&c[0]);
    realm_engine_stop(r.e);
    consumer_close(&c[0]);
    realm_grammar_state_close(s);
    close_engine(&r);
}

static void a_failure_ends_it(void **unused) {
    (void)unused;
    engine_run r;
    static consumer c;
    open_engine(&r);
    realm_grammar_state *s = state_of(&r, "[a-z]{20}");
    atomic_store(&broken, true);
    begin(&c, &r, s, 1);
    consumer_wait(&c);
    assert_int_equal(c.finish, REALM_FINISH_ERROR);
    assert_int_equal(c.status, REALM_E_GRAMMAR);
    assert_int_equal(c.n_ids, 1);
    consumer_close(&c);
    realm_grammar_state_close(s);
    close_engine(&r);
}

/* Texts with masks of either kind, one of them rewound on its way. */
static void texts(bool slowly, char text[6][64]) {
    enum { N = 5 };
    engine_run r;
    static consumer c[N], back;
    realm_token prompt[5], forced = TINY_BYTE('m');
    realm_error err = {0};
    open_engine(&r);
    atomic_store(&slow, slowly);
    realm_grammar_state *s = state_of(&r, "[a-z]{6}-[0-9]{4}|[a-f]+x");
    for (unsigned i = 0; i < N; i++) begin(&c[i], &r, s, i);
    for (unsigned i = 0; i < N; i++) {
        consumer_wait(&c[i]);
        assert_int_equal(c[i].finish, REALM_FINISH_STOP);
        snprintf(text[i], 64, "%.*s", (int)c[i].text_len, c[i].text);
        consumer_close(&c[i]);
    }
    realm_grammar_state_close(s);
    s = state_of(&r, "[k-z]{12}");
    fill_prompt(prompt, 5, 4);
    realm_generation_params p = greedy(r.a, prompt, 5, 0);
    p.sampling.temperature = 2;
    p.grammar = s;
    p.run_ahead = 6;
    assert_int_equal(consumer_submit(&back, r.e, &p, NULL), REALM_OK);
    while (back.n_ids < 3) (void)consumer_poll(&back); /* the fourth may be under way */
    if (realm_generation_rewind(back.g, 2, &forced, 1, &err) != REALM_OK) fail_msg("%s", err.text);
    back.n_ids = back.text_len = 0;
    realm_generation_confirm(back.g, 3, false);
    for (uint32_t confirmed = 3; !consumer_poll(&back);) {
        if (3 + back.n_ids > confirmed) realm_generation_confirm(back.g, confirmed = 3 + (uint32_t)back.n_ids, false);
        sched_yield();
    }
    assert_int_equal(back.finish, REALM_FINISH_STOP);
    assert_int_equal(back.text_len, 9);
    snprintf(text[N], 64, "%.*s", (int)back.text_len, back.text);
    consumer_close(&back);
    realm_grammar_state_close(s);
    close_engine(&r);
}

static void tokens_are_the_same(void **unused) {
    (void)unused;
    static char with_rows[6][64], beside[6][64];
    texts(false, with_rows);
    assert_true(atomic_load(&n_masks) > 0);
    texts(true, beside);
    assert_true(atomic_load(&n_aside) > atomic_load(&n_masks) / 2);
    for (int i = 0; i < 6; i++) assert_string_equal(with_rows[i], beside[i]);
}

/* A thread that was kept from its work has not done much: on a busy machine nobody's grammar is slow for that. */
static void waiting_is_no_work(void **unused) {
    (void)unused;
    engine_run r;
    static consumer c;
    open_engine(&r);
    atomic_store(&slow, false);
    atomic_store(&dozing, true);
    realm_grammar_state *s = state_of(&r, "[a-z]{20}");
    begin(&c, &r, s, 1);
    consumer_wait(&c);
    assert_int_equal(c.finish, REALM_FINISH_STOP);
    assert_true(atomic_load(&n_masks) > 4);
    assert_int_equal(atomic_load(&n_aside), 0);
    consumer_close(&c);
    realm_grammar_state_close(s);
    close_engine(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(others_go_on),       cmocka_unit_test(it_may_end_meanwhile),
        cmocka_unit_test(a_failure_ends_it),  cmocka_unit_test(tokens_are_the_same),
        cmocka_unit_test(waiting_is_no_work),
    };
    return cmocka_run_group_tests_name("masks", tests, NULL, NULL);
}
