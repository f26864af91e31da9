/* A thread that lends itself: what it runs, and what it leaves to the workers. */
#include "fixture.h"

enum { ORDER, HEAVY, MOVES, RESTS, ASKS };

static realm_sandbox *box;
static realm_lender *lender;

static int done_orders(run *r) { return atomic_load(&r->lent[ORDER]) + atomic_load(&r->not_lent[ORDER]); }

/* Until the program has taken n orders. */
static void await_orders(run *r, int n) {
    uint64_t until = realm_clock_ns() + PATIENCE_NS;
    while (done_orders(r) < n) {
        if (realm_clock_ns() > until) fail_msg("the program does not take its orders");
        usleep(100);
    }
}

static void give(run *r, int order) {
    atomic_store(&r->order, order);
    realm_instance_wake(r->instance);
}

/* To a worker, so often that its record is brief. On a busy machine a worker may lose the processor in a slice, which
 * then counts as long: so many that this does not matter. */
static void make_brief(run *r) {
    int n = done_orders(r);
    for (int i = 0; i < 40; i++) {
        give(r, 1);
        await_orders(r, n + i + 1);
    }
}

/* Gives orders between begin and run until this thread has carried one out. That may fail: a worker that was about to
 * sleep can be faster, or a slice have been long. */
static void give_until_lent(run *r, int order, const atomic_int *count) {
    uint64_t until = realm_clock_ns() + PATIENCE_NS;
    int before = atomic_load(count), n = done_orders(r);
    while (atomic_load(count) == before) {
        if (realm_clock_ns() > until) fail_msg("the lender never ran it");
        realm_lender_begin(lender);
        give(r, order);
        realm_lender_run(lender, 0);
        await_orders(r, ++n);
        usleep(500);
    }
}

static void end(run *r, int32_t value) {
    give(r, 9);
    run_wait(r);
    realm_lender_finish(lender);
    assert_int_equal(r->result.status, REALM_OK);
    assert_int_equal(r->result.value, value);
    assert_int_equal(r->n_done, 1);
}

static void start_with(run *r, uint64_t cpu_ms_per_wake) {
    realm_program *p = open_program(box, "orders");
    realm_instance_params params = {.cpu_ms_per_wake = cpu_ms_per_wake};
    run_start(r, p, params);
    realm_program_release(p);
}

static void start(run *r) { start_with(r, 200); }

static void test_runs_what_is_brief(void **state) {
    run r;
    (void)state;
    start(&r);
    make_brief(&r);
    assert_int_equal(atomic_load(&r.lent[ORDER]), 0);
    give_until_lent(&r, 1, &r.lent[ORDER]);
    /* What it deferred is kept for the flush, and done once. */
    assert_int_equal(atomic_load(&r.deferred), atomic_load(&r.lent[ORDER]));
    assert_int_equal(atomic_load(&r.flushed), 0);
    assert_true(realm_lender_has_rest(lender));
    realm_lender_finish(lender);
    assert_false(realm_lender_has_rest(lender));
    assert_int_equal(atomic_load(&r.flushed), atomic_load(&r.deferred));
    end(&r, 0);
}

static void test_new_ones_are_the_workers(void **state) {
    run r;
    (void)state;
    realm_lender_begin(lender);
    start(&r);
    realm_lender_run(lender, 0);
    give(&r, 1);
    await_orders(&r, 1);
    assert_int_equal(atomic_load(&r.lent[ORDER]), 0);
    end(&r, 0);
}

/* The order is taken here, the call that follows runs on a worker, and its result arrives. */
static void leaves(int order, int which) {
    run r;
    start(&r);
    make_brief(&r);
    int calls = atomic_load(&r.not_lent[which]);
    give_until_lent(&r, order, &r.lent[ORDER]);
    give(&r, 1); /* by when the call has come back */
    uint64_t until = realm_clock_ns() + PATIENCE_NS;
    while (atomic_load(&r.order) != 0 && realm_clock_ns() < until) usleep(100);
    calls = atomic_load(&r.not_lent[which]) - calls;
    assert_int_equal(atomic_load(&r.lent[which]), 0);
    assert_true(calls >= 1);
    end(&r, 7 * calls);
}

static void test_leaves_what_is_not_brief(void **state) {
    (void)state;
    leaves(2, HEAVY);
    leaves(3, MOVES);
    leaves(6, RESTS);
}

/* An order that is a program's last, given to new ones until one took it on this thread; it ends in the same way with a
 * worker. Its limit is short, since one that spins comes to it in the background: beside others who leave no processor
 * idle it has a few milliseconds in a second there. */
static void ends_lent(int order, realm_status status, const char *text) {
    uint64_t until = realm_clock_ns() + PATIENCE_NS;
    for (bool lent = false; !lent;) {
        run r;
        if (realm_clock_ns() > until) fail_msg("the lender never ran it");
        start_with(&r, 6);
        make_brief(&r);
        realm_lender_begin(lender);
        give(&r, order);
        realm_lender_run(lender, 0);
        run_wait(&r);
        realm_lender_finish(lender);
        lent = atomic_load(&r.lent[ORDER]) > 0;
        assert_int_equal(r.result.status, status);
        assert_non_null(strstr(r.text, text));
        assert_int_equal(r.n_done, 1);
    }
}

/* It was brief until now, and spins: put back at the next tick, it ends by its limit with a worker. */
static void test_is_not_kept(void **state) {
    (void)state;
    ends_lent(4, REALM_E_LIMIT, "cpu_ms_per_wake (6 ms)");
}

/* A fault in a program is a trap on this thread too. */
static void test_traps(void **state) {
    (void)state;
    ends_lent(5, REALM_E_PROGRAM, "out of bounds");
}

/* Its owner is called back while it runs one program after the other: it returns with programs still ready. */
typedef struct caller {
    pthread_t thread;
    atomic_bool stop;
    run *runs;
    int n;
} caller;

static void *keep_busy(void *arg) {
    caller *c = arg;
    while (!atomic_load(&c->stop))
        for (int i = 0; i < c->n; i++) {
            atomic_store(&c->runs[i].order, 1);
            realm_instance_wake(c->runs[i].instance);
        }
    return NULL;
}

static void test_comes_back(void **state) {
    enum { N = 8 };
    static run runs[N];
    caller c = {.runs = runs, .n = N};
    realm_error err = {0};
    (void)state;
    for (int i = 0; i < N; i++) start(&runs[i]);
    for (int i = 0; i < N; i++) make_brief(&runs[i]);
    assert_int_equal(realm_thread_start(&c.thread, "caller", keep_busy, &c, &err), REALM_OK);
    for (int i = 0; i < 200; i++) {
        realm_lender_begin(lender);
        realm_lender_recall(lender);
        realm_lender_run(lender, 0); /* or the test hangs */
        realm_lender_finish(lender); /* one may have been put down */
    }
    atomic_store(&c.stop, true);
    pthread_join(c.thread, NULL);
    for (int i = 0; i < N; i++) end(&runs[i], 0);
}

static void *finish(void *user) {
    run *r = user;
    (void)r;
    realm_lender_finish(lender);
    assert_false(realm_lender_has_rest(lender));
    return NULL;
}

/* A program whose call gives its lender's owner work is put down there, and another thread goes on with it: not twice.
 * Whatever wakes or ends it meanwhile waits until then. */
static void test_is_put_down(void **state) {
    realm_error err = {0};
    (void)state;
    enum { GOES_ON, IS_WOKEN, IS_CANCELLED, N };
    for (int then = 0; then < N; then++) {
        uint64_t until = realm_clock_ns() + PATIENCE_NS;
        for (bool kept = false; !kept;) {
            pthread_t thread;
            run r;
            if (realm_clock_ns() > until) fail_msg("the lender never ran it");
            start(&r);
            make_brief(&r);
            r.asked = lender;
            realm_lender_begin(lender);
            give(&r, 7);
            realm_lender_run(lender, 0);
            if (atomic_load(&r.lent[ASKS]) > 0) { /* else a worker had it, or a tick moved it there */
                assert_true(realm_lender_has_rest(lender));
                assert_int_equal(atomic_load(&r.lent[ASKS]), 1);
                if (then == IS_WOKEN) give(&r, 1);
                if (then == IS_CANCELLED) realm_instance_cancel(r.instance);
                usleep(1000);
                assert_int_equal(atomic_load(&r.lent[ASKS]) + atomic_load(&r.not_lent[ASKS]), 1);
                assert_int_equal(realm_thread_start(&thread, "finisher", finish, &r, &err), REALM_OK);
                pthread_join(thread, NULL);
                /* To its next wait on that thread, if no tick came on the way; and then the call that was made by a
                 * thread that does not lend itself went on there as any. */
                kept = atomic_load(&r.lent[ASKS]) == 2;
            }
            end(&r, 14);
        }
    }
}

static uint64_t process_cpu_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * REALM_NS_PER_S + (uint64_t)t.tv_nsec;
}

/* Gives the order, and waits until it has been carried out. */
static void carry_out(run *r, int order) {
    const unsigned before = atomic_load(&r->carried_out);
    const uint64_t until = realm_clock_ns() + PATIENCE_NS;
    give(r, order);
    while (atomic_load(&r->carried_out) == before) {
        if (realm_clock_ns() > until) fail_msg("the program does not carry its orders out");
        usleep(1000);
    }
}

/* It is brief for a while, rests until the clock is slow and its credit is back, and spins. What that used; 0: not
 * known, as it moved to another thread. */
static uint64_t spin_suddenly(run *r, int order) {
    for (int k = 0; k < 4; k++) carry_out(r, 1);
    usleep(40000);
    const uint64_t before = r->order_cpu_ns;
    carry_out(r, order);
    return r->order_cpu_ns - before;
}

/* A program whose slices are brief sees a tick only every 16 ms. One that is brief for a while and then spins for less
 * than that, again and again, pays for it. For more than the two milliseconds that a slice without a clock is charged,
 * but hardly more than its credit: what is beyond it may have to wait for idle time. */
static void test_who_was_brief_pays(void **state) {
    enum { KNOWN_LEAST = 20 };
    static const double SPIN_NS = 4.5e6;
    const uint64_t from = process_cpu_ns(), until = realm_clock_ns() + PATIENCE_NS;
    int order = 512, known = 0;
    run r;
    (void)state;
    start(&r);
    while (known < KNOWN_LEAST) {
        if (realm_clock_ns() > until) fail_msg("it is never left alone");
        const uint64_t used = spin_suddenly(&r, order);
        known += used > 3 * REALM_NS_PER_MS;
        if (used > 0) order = (int)REALM_MAX(16, REALM_MIN(order * SPIN_NS / (double)used, 1 << 20));
    }
    end(&r, 0); /* and what it used has been told to the last */
    const uint64_t used = r.order_cpu_ns, told = atomic_load(&r.told_ns);
    print_message("used %.1f ms, charged %.1f ms\n", (double)used / 1e6, (double)told / 1e6);
    assert_true(told >= used / 10 * 8);
    assert_true(told <= process_cpu_ns() - from);
}

/* What was left in the queue for a lender that takes nothing of it wakes a worker in the end. */
static void test_nothing_is_left(void **state) {
    run r;
    (void)state;
    start(&r);
    make_brief(&r);
    for (int i = 0; i < 50; i++) {
        int n = done_orders(&r);
        realm_lender_begin(lender);
        give(&r, 2); /* its heavy call goes to a worker each time, and it is not brief for some time after that */
        realm_lender_run(lender, 0);
        await_orders(&r, n + 1);
    }
    end(&r, 7 * 50);
}

int main(int argc, char **argv) {
    realm_error err = {0};
    if (argc == 5 && !strcmp(argv[2], "compile-child")) realm_sandbox_compile_child(argc - 3, argv + 3);
    box = open_sandbox(2, 64, NULL);
    if (realm_lender_open(box, &lender, &err)) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    faults_remember();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_runs_what_is_brief),
        cmocka_unit_test(test_new_ones_are_the_workers),
        cmocka_unit_test(test_leaves_what_is_not_brief),
        cmocka_unit_test(test_is_not_kept),
        cmocka_unit_test(test_traps),
        cmocka_unit_test(test_comes_back),
        cmocka_unit_test(test_is_put_down),
        cmocka_unit_test(test_who_was_brief_pays),
        cmocka_unit_test(test_nothing_is_left),
    };
    int failed = cmocka_run_group_tests_name("lender", tests, NULL, NULL);
    realm_lender_close(lender);
    realm_sandbox_close(box);
    return failed;
}
