/* The engine's thread while it has nothing to compute: when it is lent, and that it comes back. And the compute thread
 * that tells consumers: it is lent too, and no step waits for it. */
#include "support/cores.h"
#include "support/engine_run.h"

/* What config.idle points to: the part of whoever runs programs. */
typedef struct idle {
    pthread_mutex_t mu;
    pthread_cond_t changed;
    int expects, runs, recalls;
    bool inside; /* between expect and the end of run */
    bool keep;   /* run returns only after a recall */
    bool recalled;
    realm_engine *e; /* for again() */
    realm_account *a;
    int again;                      /* generations that run submits itself, one per run */
    void (*during)(struct idle *i); /* called by run, on the engine's thread */
    realm_logits *rows;             /* what `during` took, and saw */
    const float *at;
    float seen[TINY_VOCAB];
    consumer c;
} idle;

static void expect(void *user) {
    idle *i = user;
    pthread_mutex_lock(&i->mu);
    assert_false(i->inside);
    i->inside = true;
    i->recalled = false;
    i->expects++;
    pthread_cond_broadcast(&i->changed);
    pthread_mutex_unlock(&i->mu);
}

static void again(idle *i) {
    realm_token prompt[] = {1, 2, 3};
    realm_generation_params p = greedy(i->a, prompt, 3, 2);
    if (i->again < 0) return;
    if (i->c.g) { /* the one before has ended: that is why this runs */
        assert_true(consumer_poll(&i->c));
        consumer_close(&i->c);
        i->c.g = NULL;
    }
    if (i->again-- > 0) assert_int_equal(consumer_submit(&i->c, i->e, &p, NULL), REALM_OK);
}

static void run(void *user) {
    idle *i = user;
    pthread_mutex_lock(&i->mu);
    assert_true(i->inside);
    i->runs++;
    pthread_cond_broadcast(&i->changed);
    while (i->keep && !i->recalled) pthread_cond_wait(&i->changed, &i->mu);
    pthread_mutex_unlock(&i->mu);
    if (i->during)
        i->during(i);
    else if (i->again > 0 || i->c.g)
        again(i);
    pthread_mutex_lock(&i->mu);
    i->inside = false;
    pthread_cond_broadcast(&i->changed);
    pthread_mutex_unlock(&i->mu);
}

static void recall(void *user) {
    idle *i = user;
    pthread_mutex_lock(&i->mu);
    i->recalls++;
    i->recalled = true;
    pthread_cond_broadcast(&i->changed);
    pthread_mutex_unlock(&i->mu);
}

static void open_idle(engine_run *r, idle *i) {
    *i = (idle){0};
    pthread_mutex_init(&i->mu, NULL);
    pthread_cond_init(&i->changed, NULL);
    realm_engine_config config = {.idle = {i, expect, run, recall}};
    engine_run_open(r, &tiny_llama, &config);
    i->e = r->e;
    i->a = r->a;
}

static int count(idle *i, const int *what) {
    pthread_mutex_lock(&i->mu);
    int n = *what;
    pthread_mutex_unlock(&i->mu);
    return n;
}

static void await_inside(idle *i, bool inside) {
    pthread_mutex_lock(&i->mu);
    while (i->inside != inside) pthread_cond_wait(&i->changed, &i->mu);
    pthread_mutex_unlock(&i->mu);
}

/* run has begun: what there was to tell has been told. */
static void await_run(idle *i) {
    pthread_mutex_lock(&i->mu);
    while (i->runs == 0) pthread_cond_wait(&i->changed, &i->mu);
    pthread_mutex_unlock(&i->mu);
}

static void generate(engine_run *r, uint32_t n) {
    realm_token prompt[] = {4, 5, 6};
    realm_generation_params p = greedy(r->a, prompt, 3, n);
    consumer c;
    assert_int_equal(consumer_submit(&c, r->e, &p, NULL), REALM_OK);
    consumer_wait(&c);
    assert_int_equal(c.n_ids, n);
    consumer_close(&c);
}

/* Once for each time that nothing is left, not between tokens. */
static void test_only_when_idle(void **state) {
    engine_run r;
    idle i;
    (void)state;
    open_idle(&r, &i);
    for (int k = 1; k <= 3; k++) {
        generate(&r, 20);
        await_inside(&i, false);
        assert_int_equal(count(&i, &i.expects), k);
    }
    engine_run_close(&r);
    assert_int_equal(i.expects, i.runs);
}

/* Not when another generation waits for its next step: the engine is stopped at the end of one's step, with the other
 * queued behind it. */
static void test_not_while_others_wait(void **state) {
    engine_run r;
    idle i;
    held h;
    (void)state;
    open_idle(&r, &i);
    i.keep = true; /* a thread that was lent would not come back without a recall */
    engine_stop(&h, &r);
    realm_token prompt[] = {4, 5, 6};
    realm_generation_params p = greedy(r.a, prompt, 3, 30);
    consumer c;
    assert_int_equal(consumer_submit(&c, r.e, &p, NULL), REALM_OK);
    held_go(&h);
    consumer_wait(&c);
    assert_int_equal(c.n_ids, 30);
    consumer_close(&c);
    realm_engine_end_idle(r.e);
    engine_run_close(&r);
}

/* A lent thread is called back by new work, by a cancel and by the end. */
static void test_comes_back(void **state) {
    engine_run r;
    idle i;
    (void)state;
    open_idle(&r, &i);
    i.keep = true;
    generate(&r, 3);
    for (int k = 0; k < 5; k++) {
        await_inside(&i, true);
        generate(&r, 3);
    }
    await_inside(&i, true);
    assert_true(count(&i, &i.recalls) >= 5);
    realm_engine_end_idle(r.e);
    assert_false(i.inside);
    int n = i.expects;
    generate(&r, 3);
    assert_int_equal(i.expects, n);
    engine_run_close(&r);
}

/* What runs on the lent thread submits to the engine and is told there. */
static void test_submits_from_there(void **state) {
    engine_run r;
    idle i;
    (void)state;
    open_idle(&r, &i);
    i.again = 50;
    generate(&r, 3);
    pthread_mutex_lock(&i.mu);
    while (i.runs < 51) pthread_cond_wait(&i.changed, &i.mu);
    pthread_mutex_unlock(&i.mu);
    await_inside(&i, false);
    realm_engine_end_idle(r.e);
    assert_int_equal(i.again, -1);
    realm_engine_stats st;
    realm_engine_get_stats(r.e, &st);
    assert_int_equal(st.ended, 51);
    assert_true(st.lent_ns > 0);
    engine_run_close(&r);
}

static void forward(engine_run *r, consumer *c, realm_token first) {
    realm_token tokens[] = {first, 7, 8};
    realm_generation_params p = greedy(r->a, tokens, 3, 0);
    p.forward = true;
    p.n_rows = 1;
    assert_int_equal(consumer_submit(c, r->e, &p, NULL), REALM_OK);
}

/* The row of a forward pass by an engine that has nobody to lend its thread to. */
static void plain_row(realm_token first, float *out) {
    engine_run r;
    consumer c;
    engine_run_open(&r, &tiny_llama, NULL);
    forward(&r, &c, first);
    consumer_wait(&c);
    realm_logits *l = realm_generation_take_logits(c.g);
    memcpy(out, realm_logits_row(l, 0), TINY_VOCAB * sizeof *out);
    realm_logits_release(l);
    consumer_close(&c);
    engine_run_close(&r);
}

static void look_at_row(idle *i) {
    if (i->rows || !i->c.g || !consumer_poll(&i->c)) return;
    i->rows = realm_generation_take_logits(i->c.g);
    i->at = realm_logits_row(i->rows, 0);
    memcpy(i->seen, i->at, sizeof i->seen);
}

/* A row that is lent is right, and stays so when the next step overwrites what was lent. */
static void test_lent_rows(void **state) {
    static float want[2][TINY_VOCAB];
    engine_run r;
    idle i;
    consumer second;
    (void)state;
    plain_row(1, want[0]);
    plain_row(2, want[1]);
    for (int on_engine = 0; on_engine < 2; on_engine++) {
        open_idle(&r, &i);
        i.keep = true;
        if (on_engine) i.during = look_at_row;
        forward(&r, &i.c, 1);
        await_run(&i);
        if (on_engine) {
            forward(&r, &second, 2); /* recalls the thread, which looks at the row first */
            consumer_wait(&second);
        } else {
            assert_true(consumer_poll(&i.c));
            look_at_row(&i);
            assert_memory_equal(i.seen, want[0], sizeof i.seen);
            forward(&r, &second, 2);
            consumer_wait(&second);
        }
        assert_memory_equal(i.seen, want[0], sizeof i.seen);
        realm_logits *l = realm_generation_take_logits(second.g);
        assert_memory_equal(realm_logits_row(l, 0), want[1], sizeof i.seen);
        assert_memory_equal(realm_logits_row(i.rows, 0), want[0], sizeof i.seen);
        assert_int_equal(realm_logits_row(i.rows, 0) != i.at, on_engine); /* where it was lent, it is not any more */
        realm_logits_release(l);
        realm_logits_release(i.rows);
        consumer_close(&second);
        consumer_close(&i.c);
        realm_engine_end_idle(r.e);
        engine_run_close(&r);
    }
}

/* The compute thread stays away for steps and steps. */
typedef struct aside {
    atomic_bool inside, ended;
    atomic_int expects, runs, recalls;
    realm_engine *e;
    realm_engine_stats first; /* when consumers are told */
    pthread_t engine, aside;  /* who ran on them, at last */
} aside;

static void note_recall(void *user) { atomic_fetch_add(&((aside *)user)->recalls, 1); }
static void note_thread(void *user) { ((aside *)user)->engine = pthread_self(); }
static void ignore(void *user) { (void)user; }

static void expect_aside(void *user) {
    aside *a = user;
    assert_false(atomic_exchange(&a->inside, true));
    assert_false(atomic_load(&a->ended));
    atomic_fetch_add(&a->expects, 1);
    realm_engine_get_stats(a->e, &a->first);
}

static void run_aside(void *user) {
    aside *a = user;
    realm_engine_stats now;
    const uint64_t until = realm_clock_ns() + 2 * REALM_NS_PER_S;
    do {
        realm_engine_get_stats(a->e, &now);
        if (realm_clock_ns() > until) fail_msg("the engine waits for who tells its consumers");
    } while (now.steps < a->first.steps + 5 && now.ended == a->first.ended);
    atomic_fetch_add(&a->runs, 1);
    a->aside = pthread_self();
    assert_true(atomic_exchange(&a->inside, false));
}

static void test_tells_aside(void **state) {
    engine_run r;
    aside a = {0};
    const realm_engine_config config = {.idle = {&a, note_thread, ignore, ignore},
                                        .aside = {&a, expect_aside, run_aside, note_recall}};
    (void)state;
    if (usable_cores() < 2) skip(); /* nobody spins there */
    engine_run_open(&r, &tiny_llama, &config);
    a.e = r.e;
    /* On a busy machine a thread that spins for the next step may not be there for long. */
    const uint64_t until = realm_clock_ns() + 60 * REALM_NS_PER_S;
    for (int k = 0; k < 20 || (atomic_load(&a.recalls) == 0 && realm_clock_ns() < until); k++) generate(&r, 60);
    realm_engine_end_idle(r.e);
    atomic_store(&a.ended, true);
    assert_true(atomic_load(&a.runs) > 0);
    assert_int_equal(atomic_load(&a.expects), atomic_load(&a.runs));
    assert_true(atomic_load(&a.recalls) > 0); /* some stayed away for steps */
    assert_false(pthread_equal(a.engine, a.aside));
    generate(&r, 60);
    engine_run_close(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lent_rows),
        cmocka_unit_test(test_only_when_idle),
        cmocka_unit_test(test_not_while_others_wait),
        cmocka_unit_test(test_comes_back),
        cmocka_unit_test(test_submits_from_there),
        cmocka_unit_test(test_tells_aside),
    };
    return cmocka_run_group_tests_name("idle", tests, NULL, NULL);
}
