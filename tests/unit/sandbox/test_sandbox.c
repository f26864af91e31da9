/* Instances: every way to start, wait, be woken and end, and that one program cannot hold up another. */
#include <sys/resource.h>

#include "fixture.h"
#include "support/held.h"

static realm_sandbox *box;

static const realm_instance_params DEFAULTS = {0};

static void returns(const char *name, int32_t value) {
    run r = run_module(box, name, DEFAULTS);
    if (r.result.status) fail_msg("%s: %s", name, r.text);
    assert_int_equal(r.result.value, value);
    assert_int_equal(r.n_done, 1);
}

static run expect_failure(const char *name, realm_instance_params params, realm_status status, const char *text) {
    run r = run_module(box, name, params);
    assert_int_equal(r.result.status, status);
    if (!strstr(r.text, text)) fail_msg("%s: \"%s\" does not say \"%s\"", name, r.text, text);
    assert_null(strchr(r.text, '\n'));
    return r;
}

static void test_returns(void **state) {
    (void)state;
    returns("answer", 42);
    run r = run_module(box, "answer", DEFAULTS);
    assert_int_equal(r.result.memory_bytes, 65536);
    assert_true(r.result.start_ns > 0);
}

static void test_arguments(void **state) {
    (void)state;
    returns("args", 1);
}

static void test_pointers(void **state) {
    (void)state;
    returns("pointers", 1 | 2 | 4 | 1 << 10);
    returns("pointers64", 1 | 2);
}

static void test_traps(void **state) {
    (void)state;
    expect_failure("trap_start", DEFAULTS, REALM_E_PROGRAM, "unreachable");
    expect_failure("recurse", DEFAULTS, REALM_E_PROGRAM, "call stack exhausted");
    expect_failure("divide", DEFAULTS, REALM_E_PROGRAM, "integer division by zero");
    expect_failure("host_trap", DEFAULTS, REALM_E_PROGRAM, "asked to fail with 5");
    returns("answer", 42);
}

static void test_memory_limit(void **state) {
    (void)state;
    realm_instance_params p = {.memory_bytes = 10 * 65536};
    run r = run_module(box, "grow", p);
    assert_int_equal(r.result.value, 10);
    assert_int_equal(r.result.memory_bytes, 10 * 65536);
    returns("grow", 1024); /* the sandbox's 64 MiB */
    realm_instance_params small = {.memory_bytes = 65536};
    expect_failure("dirty", small, REALM_E_PROGRAM, "memory");
}

static void test_cpu_limit(void **state) {
    (void)state;
    static const char *const spinners[] = {"spin", "spin_start", "spin_host", "spin_bulk"};
    realm_instance_params p = {.cpu_ms_per_wake = 60};
    for (size_t i = 0; i < REALM_ARRAY_LEN(spinners); i++) {
        run r = expect_failure(spinners[i], p, REALM_E_LIMIT, "cpu_ms_per_wake (60 ms)");
        assert_true(r.result.cpu_ns >= 55 * REALM_NS_PER_MS);
        assert_true(r.result.cpu_ns < 2000 * REALM_NS_PER_MS);
    }
}

static uint64_t await_told(run *r, uint64_t ns) {
    uint64_t until = realm_clock_ns() + PATIENCE_NS, told;
    while ((told = atomic_load(&r->told_ns)) < ns) {
        if (realm_clock_ns() > until) fail_msg("told of %llu ns", (unsigned long long)told);
        usleep(200);
    }
    return told;
}

/* CPU time is told while it is used: of a program that never waits, and of one that uses a little each time. */
static void test_cpu_is_told(void **state) {
    (void)state;
    run r;
    realm_instance_params p = {.cpu_ms_per_wake = 600000};
    realm_program *spin = open_program(box, "spin"), *waits = open_program(box, "wait_forever");
    run_start(&r, spin, p);
    uint64_t some = await_told(&r, 1);
    await_told(&r, some + 5 * REALM_NS_PER_MS);
    assert_false(run_ended(&r));
    realm_instance_cancel(r.instance);
    run_wait(&r);
    run_start(&r, waits, DEFAULTS);
    await_waits(&r, 1);
    for (uint64_t until = realm_clock_ns() + PATIENCE_NS; atomic_load(&r.told_ns) == 0;) {
        int before = atomic_load(&r.waits);
        atomic_fetch_add(&r.events, 1000);
        realm_instance_wake(r.instance);
        await_waits(&r, before + 1000);
        if (realm_clock_ns() > until) fail_msg("nothing was told");
    }
    assert_true(atomic_load(&r.told_ns) >= REALM_NS_PER_MS); /* not with every wake-up */
    realm_instance_cancel(r.instance);
    run_wait(&r);
    realm_program_release(waits);
    realm_program_release(spin);
}

static void test_wall_limit(void **state) {
    (void)state;
    realm_instance_params p = {.wall_ms = 40};
    expect_failure("wait_forever", p, REALM_E_TIMEOUT, "wall_ms (40 ms)");
    p.cpu_ms_per_wake = 60000;
    expect_failure("spin", p, REALM_E_TIMEOUT, "wall_ms (40 ms)");
}

/* More spinning programs than workers: others still run, wait and end. */
static void test_spinners_hold_nobody_up(void **state) {
    (void)state;
    run spin[4];
    realm_program *p = open_program(box, "spin");
    realm_instance_params hog = {.cpu_ms_per_wake = 60000};
    for (int i = 0; i < 4; i++) run_start(&spin[i], p, hog);
    for (int i = 0; i < 20; i++) returns("answer", 42);
    returns("wait_timer", 3);
    for (int i = 0; i < 4; i++) {
        assert_false(run_ended(&spin[i]));
        realm_instance_cancel(spin[i].instance);
    }
    for (int i = 0; i < 4; i++) {
        run_wait(&spin[i]);
        assert_int_equal(spin[i].result.status, REALM_E_CANCELLED);
    }
    realm_program_release(p);
}

/* While every processor has something better to do, a program that spins hardly runs. */
static atomic_bool busy_stop;
static void *be_busy(void *arg) {
    volatile uint64_t n = 0;
    (void)arg;
    while (!atomic_load_explicit(&busy_stop, memory_order_relaxed)) n++;
    return NULL;
}

/* Part of a processor that a spinning program gets for 300 ms. */
static double share_of_spinner(realm_program *p) {
    run r;
    realm_instance_params hog = {.cpu_ms_per_wake = 60000, .wall_ms = 300};
    uint64_t t0 = realm_clock_ns();
    run_start(&r, p, hog);
    run_wait(&r);
    assert_int_equal(r.result.status, REALM_E_TIMEOUT);
    return (double)r.result.cpu_ns / (double)(realm_clock_ns() - t0);
}

/* One busy thread for each processor. */
static pthread_t busy[64];
static long n_busy;
static void busy_start(void) {
    realm_error err = {0};
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    if (n < 1 || n > 64) n = 64;
    atomic_store(&busy_stop, false);
    for (n_busy = 0; n_busy < n; n_busy++)
        assert_int_equal(realm_thread_start(&busy[n_busy], "busy", be_busy, NULL, &err), REALM_OK);
}

static void busy_end(void) {
    atomic_store(&busy_stop, true);
    while (n_busy > 0) pthread_join(busy[--n_busy], NULL);
}

static void test_spinner_in_the_background(void **state) {
    (void)state;
    double share = 1;
    realm_program *p = open_program(box, "spin");
    busy_start();
    /* The kernel may leave it alone on a processor for a while: what counts is that it can be kept off. */
    for (int k = 0; k < 6 && share > 0.3; k++) share = share_of_spinner(p);
    busy_end();
    if (getpriority(PRIO_PROCESS, 0) < 10) assert_true(share <= 0.3);
    realm_program_release(p);
}

/* In the background too, nothing but its own code runs on idle time: run_wait looks at where calls and reports ran. */
static void test_calls_from_the_background(void **state) {
    (void)state;
    run r;
    realm_program *p = open_program(box, "calls");
    run_start(&r, p, (realm_instance_params){.cpu_ms_per_wake = 600000});
    await_told(&r, 12 * REALM_NS_PER_MS); /* in debt since 3 */
    int before = atomic_load(&r.calls);
    for (uint64_t until = realm_clock_ns() + PATIENCE_NS; atomic_load(&r.calls) < before + 100;) {
        if (realm_clock_ns() > until) fail_msg("it makes no calls");
        usleep(200);
    }
    realm_instance_cancel(r.instance);
    run_wait(&r);
    assert_true(r.result.slow_ns > 0);
    realm_program_release(p);
}

/* No idle time is needed to end a program that had nothing else: not for those that wait for it. A thread that has one
 * comes to that within seconds at the worst. */
enum { MANY = 40 };
static void end_in_the_background(bool wall) {
    static run runs[MANY];
    realm_program *p = open_program(box, "spin");
    const uint64_t wall_ms = 3000;
    uint64_t from = realm_clock_ns();
    realm_instance_params spin = {.cpu_ms_per_wake = 600000, .cancel_grace_ms = 1, .wall_ms = wall ? wall_ms : 0};
    int left = MANY;
    for (int i = 0; i < MANY; i++) run_start(&runs[i], p, spin);
    for (int i = 0; i < MANY; i++) /* in debt */
        while (atomic_load(&runs[i].told_ns) < 5 * REALM_NS_PER_MS && !run_ended(&runs[i])) usleep(200);
    busy_start();
    if (!wall) from = realm_clock_ns();
    for (int i = 0; i < MANY && !wall; i++) realm_instance_cancel(runs[i].instance);
    const uint64_t until = from + (wall ? wall_ms * REALM_NS_PER_MS : 0) + 3 * REALM_NS_PER_S;
    while (left > 2 && realm_clock_ns() < until) {
        usleep(1000);
        left = 0;
        for (int i = 0; i < MANY; i++) left += !run_ended(&runs[i]);
    }
    bool late = left > 2; /* as many as there are idle workers */
    for (int i = 0; i < MANY; i++) run_wait(&runs[i]);
    busy_end();
    if (late) fail_msg("%d are left", left);
    realm_program_release(p);
}

static void test_ends_in_the_background(void **state) {
    (void)state;
    end_in_the_background(false);
    end_in_the_background(true);
}

/* Naps do not make a program that works nearly all the time one that behaves. */
static void test_naps_are_no_excuse(void **state) {
    (void)state;
    realm_instance_params p = {.wall_ms = 300};
    run r = expect_failure("naps", p, REALM_E_TIMEOUT, "wall_ms");
    assert_true(r.result.cpu_ns - r.result.slow_ns < 140 * REALM_NS_PER_MS); /* a third, and a little */
    r = run_module(box, "works_little", DEFAULTS);
    assert_int_equal(r.result.status, REALM_OK);
    assert_int_equal(r.result.slow_ns, 0);
}

/* A host call is not interrupted by ticks. What it uses is the program's all the same: it is charged, and it may be
 * more than the program may use. */
static void test_long_host_calls(void **state) {
    (void)state;
    run r = expect_failure("burns", (realm_instance_params){.wall_ms = 900}, REALM_E_TIMEOUT, "wall_ms");
    assert_true(r.result.cpu_ns >= atomic_load(&r.burned_ns) && atomic_load(&r.burned_ns) >= 30 * REALM_NS_PER_MS);
    /* After the first it is known to be long. */
    assert_true(atomic_load(&r.calls) >= 2);
    assert_int_equal(atomic_load(&r.long_calls), atomic_load(&r.calls) - 1);
    r = expect_failure("burns", (realm_instance_params){.cpu_ms_per_wake = 20}, REALM_E_LIMIT,
                       "cpu_ms_per_wake (20 ms)");
    assert_true(r.result.cpu_ns >= 30 * REALM_NS_PER_MS);
}

static void await_inside(int n) {
    const uint64_t until = realm_clock_ns() + PATIENCE_NS;
    realm_mutex_lock(&gate.mu);
    while (gate.inside < n)
        if (!realm_cond_wait_until(&gate.cond, &gate.mu, until)) fail_msg("%d are in the call", gate.inside);
    assert_int_equal(gate.inside, n);
    realm_mutex_unlock(&gate.mu);
}

/* Calls that take long hold no worker; of one owner they hold all places but one, so that another's finds one. */
static void test_long_calls_in_turns(void **state) {
    (void)state;
    enum { OWN = 5, PLACES = 3 };
    static run own[OWN], other;
    realm_program *p = open_program(box, "long");
    const realm_instance_params params = {.owner = 1, .cancel_grace_ms = 1, .cpu_ms_per_wake = 600000};
    realm_mutex_init(&gate.mu, REALM_RANK_LEAF);
    realm_cond_init(&gate.cond);
    gate.open = false;
    for (int i = 0; i < OWN; i++) run_start(&own[i], p, params);
    await_inside(PLACES - 1);
    for (int i = 0; i < 20; i++) returns("answer", 42);
    returns("wait_timer", 3);
    await_inside(PLACES - 1);
    realm_instance_params theirs = params;
    theirs.owner = 2;
    run_start(&other, p, theirs);
    await_inside(PLACES);
    for (int i = 0; i < OWN; i++) realm_instance_cancel(own[i].instance);
    const uint64_t until = realm_clock_ns() + PATIENCE_NS;
    for (int ended = 0; ended < OWN - (PLACES - 1);) { /* those that wait for their turn */
        if (realm_clock_ns() > until) fail_msg("%d have ended", ended);
        usleep(200);
        ended = 0;
        for (int i = 0; i < OWN; i++) ended += run_ended(&own[i]);
    }
    realm_mutex_lock(&gate.mu);
    gate.open = true;
    realm_cond_broadcast(&gate.cond);
    realm_mutex_unlock(&gate.mu);
    for (int i = 0; i < OWN; i++) run_wait(&own[i]);
    run_wait(&other);
    assert_int_equal(other.result.status, REALM_OK);
    assert_int_equal(other.result.value, 6);
    for (int i = 0; i < OWN; i++) run_start(&own[i], p, params); /* through the open gate */
    for (int i = 0; i < OWN; i++) {
        run_wait(&own[i]);
        assert_int_equal(own[i].result.value, 6);
    }
    realm_program_release(p);
    realm_cond_destroy(&gate.cond);
    realm_mutex_destroy(&gate.mu);
}

static void test_cancel(void **state) {
    (void)state;
    run r;
    realm_program *polite = open_program(box, "wait_polite"), *rude = open_program(box, "wait_forever");
    run_start(&r, polite, DEFAULTS);
    await_waits(&r, 1);
    realm_instance_cancel(r.instance);
    realm_instance_cancel(r.instance);
    run_wait(&r);
    assert_int_equal(r.result.status, REALM_OK);
    assert_int_equal(r.result.value, REALM_E_CANCELLED);
    realm_instance_params p = {.cancel_grace_ms = 30};
    run_start(&r, rude, p);
    await_waits(&r, 1);
    realm_instance_cancel(r.instance);
    run_wait(&r);
    assert_int_equal(r.result.status, REALM_E_CANCELLED);
    run_start(&r, polite, DEFAULTS); /* before it has started */
    realm_instance_cancel(r.instance);
    run_wait(&r);
    assert_int_equal(r.result.status, REALM_OK);
    realm_program_release(polite);
    realm_program_release(rude);
}

static void wake_ten(const char *name) {
    run r;
    realm_program *p = open_program(box, name);
    run_start(&r, p, DEFAULTS);
    for (int i = 0; i < 10; i++) {
        realm_instance_wake(r.instance); /* without an event: it waits on */
        atomic_fetch_add(&r.events, 1);
        realm_instance_wake(r.instance);
        if (i % 3 == 0) usleep(300);
    }
    run_wait(&r);
    assert_int_equal(r.result.status, REALM_OK);
    assert_int_equal(r.result.value, 10);
    realm_program_release(p);
}

static void test_wake(void **state) {
    (void)state;
    wake_ten("wait");
    wake_ten("wait_off");
    returns("wait_timer", 3);
    returns("wait_start", 7);
    returns("grow_wait", 0);
    returns("deep_off", 1);
}

/* Four threads wake eight instances as fast as they can: no wake-up is lost, none comes twice. */
enum { WAKERS = 4, SLEEPERS = 8, ROUNDS = 60 };
typedef struct waking {
    run *runs;
    int from;
} waking;

static void *wake_all(void *arg) {
    waking *w = arg;
    for (int n = 0; n < ROUNDS; n++)
        for (int i = 0; i < SLEEPERS; i++) {
            run *r = &w->runs[(i + w->from) % SLEEPERS];
            realm_instance_wake(r->instance);
        }
    return NULL;
}

static void test_wake_from_many_threads(void **state) {
    (void)state;
    static run runs[SLEEPERS];
    pthread_t threads[WAKERS];
    waking w[WAKERS];
    realm_error err = {0};
    realm_program *p = open_program(box, "wait");
    for (int i = 0; i < SLEEPERS; i++) run_start(&runs[i], p, DEFAULTS);
    for (int k = 0; k < WAKERS; k++) {
        w[k] = (waking){.runs = runs, .from = k};
        assert_int_equal(realm_thread_start(&threads[k], "waker", wake_all, &w[k], &err), REALM_OK);
    }
    for (int n = 0; n < 10; n++)
        for (int i = 0; i < SLEEPERS; i++) {
            atomic_fetch_add(&runs[i].events, 1);
            realm_instance_wake(runs[i].instance);
        }
    for (int k = 0; k < WAKERS; k++) pthread_join(threads[k], NULL);
    for (int i = 0; i < SLEEPERS; i++) {
        run_wait(&runs[i]);
        assert_int_equal(runs[i].result.value, 10);
        assert_int_equal(atomic_load(&runs[i].events), 0);
        assert_int_equal(runs[i].n_done, 1);
    }
    realm_program_release(p);
}

static void test_generate_pair(void **state) {
    (void)state;
    realm_instance_params p = {.prompt = "What is the capital of France?", .prompt_len = 30, .model_id = 9};
    static const char *const same[] = {"gen", "gen_grow", "gen64"};
    for (size_t i = 0; i < REALM_ARRAY_LEN(same); i++) {
        run r = run_module(box, same[i], p);
        if (r.result.status) fail_msg("%s: %s", same[i], r.text);
        assert_int_equal(r.answer_len, p.prompt_len);
        assert_memory_equal(r.answer, p.prompt, p.prompt_len);
    }
    realm_instance_params none = {.model_id = 9};
    assert_int_equal(run_module(box, "gen", none).answer_len, 0);
    expect_failure("gen_outside", p, REALM_E_PROGRAM, "returned 65536, outside");
    expect_failure("gen_endless", p, REALM_E_PROGRAM, "no NUL byte");
    expect_failure("gen_alloc_bad", p, REALM_E_PROGRAM, "realm_alloc returned 4294967292");
    expect_failure("gen_alloc_none", p, REALM_E_PROGRAM, "realm_alloc has no memory");
    static const char *const codes[] = {"gen_code", "gen_code64"}; /* no address, but what realm_main would return */
    for (size_t i = 0; i < REALM_ARRAY_LEN(codes); i++) {
        run r = run_module(box, codes[i], p);
        if (r.result.status) fail_msg("%s: %s", codes[i], r.text);
        assert_int_equal(r.result.value, -13);
    }
    static char big[400000];
    memset(big, 'a', sizeof big);
    realm_instance_params much = {.prompt = big, .prompt_len = sizeof big, .model_id = 9};
    expect_failure("gen_grow", much, REALM_E_LIMIT, "no room for a prompt of 400000 bytes");
    expect_failure("gen", much, REALM_E_PROGRAM, "do not fit");
}

static void test_answer_waits_for_its_reader(void **state) {
    (void)state;
    run r;
    realm_program *p = open_program(box, "gen");
    realm_instance_params params = {.prompt = "later",
                                    .prompt_len = 5,
                                    .model_id = 9,
                                    .user = &r,
                                    .on_cpu = on_cpu,
                                    .on_done = on_done,
                                    .on_answer = on_answer};
    realm_error err = {0};
    run_init(&r);
    r.answer_refusals = 3;
    assert_int_equal(realm_instance_start(p, &params, &r.instance, &err), REALM_OK);
    uint64_t until = realm_clock_ns() + PATIENCE_NS;
    while (!run_ended(&r) && realm_clock_ns() < until) {
        realm_instance_wake(r.instance);
        usleep(500);
    }
    run_wait(&r);
    assert_int_equal(r.answer_len, 5);
    assert_true(r.answer_refusals < 0);
    realm_program_release(p);
}

static void test_bounded(void **state) {
    (void)state;
    run r[3], extra;
    realm_error err = {0};
    realm_sandbox *s = open_sandbox(1, 3, NULL);
    realm_program *p = open_program(s, "wait_polite");
    for (int i = 0; i < 3; i++) run_start(&r[i], p, DEFAULTS);
    run_init(&extra);
    realm_instance_params params = {.user = &extra, .on_cpu = on_cpu, .on_done = on_done};
    assert_int_equal(realm_instance_start(p, &params, &extra.instance, &err), REALM_E_BUSY);
    assert_null(extra.instance);
    for (int i = 0; i < 3; i++) {
        atomic_fetch_add(&r[i].events, 1);
        realm_instance_wake(r[i].instance);
        run_wait(&r[i]);
    }
    assert_false(extra.done);
    realm_program_release(p);
    realm_sandbox_close(s);
}

static void test_reused_memory_is_clean(void **state) {
    (void)state;
    realm_sandbox *s = open_sandbox(1, 1, NULL); /* one slot: always the same */
    for (int i = 0; i < 20; i++) {
        run r = run_module(s, "dirty", DEFAULTS);
        assert_int_equal(r.result.status, REALM_OK);
        assert_int_equal(r.result.value, 0);
    }
    realm_sandbox_close(s);
}

static void test_close_ends_everything(void **state) {
    (void)state;
    run r[6];
    realm_sandbox *s = open_sandbox(1, 16, NULL);
    realm_program *waits = open_program(s, "wait_forever"), *spins = open_program(s, "spin");
    realm_instance_params hog = {.cpu_ms_per_wake = 60000};
    for (int i = 0; i < 6; i++) run_start(&r[i], i % 2 ? spins : waits, hog);
    realm_program_release(waits);
    realm_program_release(spins);
    realm_sandbox_close(s);
    for (int i = 0; i < 6; i++) {
        assert_int_equal(r[i].n_done, 1);
        assert_int_equal(r[i].result.status, REALM_E_CLOSED);
        realm_instance_release(r[i].instance);
    }
}

/* Ten thousand instances, of programs that return, trap in their start function, touch memory, and wait until they are
 * ended: what the process holds at the end is what it held after the first two thousand. */
static void test_ten_thousand(void **state) {
    (void)state;
    enum { BATCH = 50, KINDS = 4 };
    static const char *const NAMES[KINDS] = {"answer", "trap_start", "dirty", "wait_forever"};
    static run runs[BATCH];
    realm_program *p[KINDS];
    realm_instance_params params = {.cancel_grace_ms = 1};
    realm_sandbox_stats before, after;
    held settled = {0};
    for (int k = 0; k < KINDS; k++) p[k] = open_program(box, NAMES[k]);
    realm_sandbox_get_stats(box, &before);
    for (int n = 0; n < 10000; n += BATCH) {
        for (int i = 0; i < BATCH; i++) run_start(&runs[i], p[i % 10 ? i % 3 : 3], params);
        for (int i = 0; i < BATCH; i += 10) realm_instance_cancel(runs[i].instance);
        for (int i = 0; i < BATCH; i++) {
            static const realm_status ENDS[KINDS] = {REALM_OK, REALM_E_PROGRAM, REALM_OK, REALM_E_CANCELLED};
            run_wait(&runs[i]);
            assert_int_equal(runs[i].result.status, ENDS[i % 10 ? i % 3 : 3]);
        }
        if (n == 2000) settled = measure();
    }
    held now = measure();
    assert_true(SANITIZED || now.rss_kib - settled.rss_kib < 2048);
    assert_true(SANITIZED || now.mappings <= settled.mappings);
    assert_int_equal(now.descriptors, settled.descriptors);
    assert_int_equal(now.threads, settled.threads);
    realm_sandbox_get_stats(box, &after);
    assert_int_equal(after.started - before.started, 10000);
    assert_int_equal(after.instances, 0);
    for (int k = 0; k < KINDS; k++) realm_program_release(p[k]);
}

/* Programs come and go: nothing stays of their code, their tables and the process that compiled them. */
static void test_programs_come_and_go(void **state) {
    (void)state;
    held settled = {0};
    size_t n = 0;
    char *wasm = read_wasm("answer", &n);
    for (int k = 0; k < 400; k++) {
        realm_program *p = NULL;
        realm_error err = {0};
        realm_program_limits limits = {.trusted = k % 8 != 0}; /* every eighth by the child */
        if (realm_program_open(box, wasm, n, &limits, &p, &err)) fail_msg("%s", err.text);
        run r;
        run_start(&r, p, DEFAULTS);
        realm_program_release(p); /* the last to hold it is the instance */
        run_wait(&r);
        assert_int_equal(r.result.value, 42);
        if (k == 100) settled = measure();
    }
    held now = measure();
    assert_true(SANITIZED || now.rss_kib - settled.rss_kib < 2048);
    assert_true(SANITIZED || now.mappings <= settled.mappings + 8);
    assert_int_equal(now.descriptors, settled.descriptors);
    realm_free(wasm);
}

/* A callback that wakes and cancels its own instance and starts another of the same program before it answers; and a
 * program each of whose exports, called by the host one inside the other's answer, waits in a host call. */
static void test_host_calls_inside_host_calls(void **state) {
    (void)state;
    run r;
    realm_program *p = again_program = open_program(box, "again");
    run_start(&r, p, DEFAULTS);
    run_wait(&r);
    if (r.result.status) fail_msg("%s", r.text);
    assert_int_equal(r.result.value, 3);
    assert_int_equal(r.n_done, 1);
    assert_int_equal(atomic_load(&again_inner), 1);
    realm_program_release(p);
    p = open_program(box, "gen_wait");
    realm_instance_params params = {.prompt = "deep", .prompt_len = 4, .model_id = 9};
    run_start(&r, p, params);
    for (int k = 0; k < 3; k++) { /* realm_new, realm_alloc, generate */
        atomic_fetch_add(&r.events, 1);
        realm_instance_wake(r.instance);
    }
    run_wait(&r);
    if (r.result.status) fail_msg("%s", r.text);
    assert_int_equal(r.answer_len, 4);
    assert_memory_equal(r.answer, "deep", 4);
    realm_program_release(p);
}

/* WASI's two kinds: a command, and a reactor whose _initialize comes first. Leaving early is returning. */
static void test_commands_and_reactors(void **state) {
    (void)state;
    returns("command", 0);
    returns("reactor", 7);
    returns("exit", -5);       /* from a function that realm_main called */
    returns("exit_start", 11); /* from the start function: there is nothing more to run */
    returns("exit_late", 12);  /* from a call off the fiber */
    returns("results", 1);     /* imports that return i64, f32, f64 and nothing */
    realm_instance_params p = {.prompt = "x", .prompt_len = 1};
    expect_failure("exit_generate", p, REALM_E_PROGRAM, "before it had an answer");
    expect_failure("bad_initialize", DEFAULTS, REALM_E_PROGRAM, "unreachable");
}

/* A program is released while its instances run: they finish on it. */
static void test_swap(void **state) {
    (void)state;
    run r;
    realm_program *old = open_program(box, "wait_polite");
    run_start(&r, old, DEFAULTS);
    realm_program_release(old);
    returns("answer", 42);
    atomic_fetch_add(&r.events, 1);
    realm_instance_wake(r.instance);
    run_wait(&r);
    assert_int_equal(r.result.value, 1);
}

int main(int argc, char **argv) {
    if (argc == 5 && !strcmp(argv[2], "compile-child")) realm_sandbox_compile_child(argc - 3, argv + 3);
    box = open_sandbox(2, 64, NULL);
    faults_remember();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_returns),
        cmocka_unit_test(test_arguments),
        cmocka_unit_test(test_pointers),
        cmocka_unit_test(test_traps),
        cmocka_unit_test(test_memory_limit),
        cmocka_unit_test(test_cpu_is_told),
        cmocka_unit_test(test_cpu_limit),
        cmocka_unit_test(test_wall_limit),
        cmocka_unit_test(test_spinners_hold_nobody_up),
        cmocka_unit_test(test_spinner_in_the_background),
        cmocka_unit_test(test_calls_from_the_background),
        cmocka_unit_test(test_ends_in_the_background),
        cmocka_unit_test(test_naps_are_no_excuse),
        cmocka_unit_test(test_long_host_calls),
        cmocka_unit_test(test_long_calls_in_turns),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_wake),
        cmocka_unit_test(test_wake_from_many_threads),
        cmocka_unit_test(test_generate_pair),
        cmocka_unit_test(test_answer_waits_for_its_reader),
        cmocka_unit_test(test_bounded),
        cmocka_unit_test(test_reused_memory_is_clean),
        cmocka_unit_test(test_close_ends_everything),
        cmocka_unit_test(test_ten_thousand),
        cmocka_unit_test(test_programs_come_and_go),
        cmocka_unit_test(test_host_calls_inside_host_calls),
        cmocka_unit_test(test_commands_and_reactors),
        cmocka_unit_test(test_swap),
    };
    int failed = cmocka_run_group_tests_name("sandbox", tests, NULL, NULL);
    realm_sandbox_close(box);
    return failed;
}
