/* bench/tenants/sandbox.c - what the sandbox costs by itself: starting, being called, being woken; with and without it.
 *
 * Everything is measured in one run, so that figures can be compared with each other: the "without" column does the
 * same work as plain C, through a function pointer and through a queue and a condition variable. */
#include <stdatomic.h>

#include "bench.h"
#include "tenant/host/abi.h"

#define AT_ONCE 256u
#define START_ROUNDS 20u
#define CALLS 1000000u
/* Of those that change threads in the background: so few that their program stays out of it. */
#define CALLS_BRIEF 2000u
#define SUSPENSIONS 1000u
#define EVENTS 20000u
#define WAKES 200u
#define WAKE_GAP_NS (2 * REALM_NS_PER_MS)

typedef struct job {
    realm_mutex mu;
    realm_cond cond;
    uint32_t running;
    atomic_uint_fast64_t events;
    uint64_t taken;      /* events */
    samples made, first; /* us: making the instance; from the call that starts it to its first host call */
} job;

/* ---- imports ---- */

static realm_call_result b_add(realm_call *call, const uint64_t *args, int32_t *result) {
    (void)call;
    *result = (int32_t)(args[0] + args[1]);
    return REALM_CALL_DONE;
}

static realm_call_result b_touch(realm_call *call, const uint64_t *args, int32_t *result) {
    const unsigned char *p = realm_call_memory(call, args[0], args[1]);
    *result = p ? p[0] : REALM_E_RANGE;
    return REALM_CALL_DONE;
}

/* An event each time it is run again: one suspension per call. */
static realm_call_result b_wait(realm_call *call, const uint64_t *args, int32_t *result) {
    (void)args;
    if (!realm_call_resumed(call)) {
        realm_instance_wake(
            realm_call_instance(call)); /* the event comes at once: what is timed is the way there and back */
        return REALM_CALL_SUSPEND;
    }
    *result = 1;
    return REALM_CALL_DONE;
}

/* Takes one of the job's events, or waits for one from another thread. */
static realm_call_result b_event(realm_call *call, const uint64_t *args, int32_t *result) {
    job *j = realm_call_user(call);
    (void)args;
    uint64_t n = atomic_load(&j->events);
    while (n > 0 && !atomic_compare_exchange_weak(&j->events, &n, n - 1)) {
    }
    if (n == 0) return REALM_CALL_SUSPEND;
    realm_mutex_lock(&j->mu);
    j->taken++;
    realm_cond_signal(&j->cond);
    realm_mutex_unlock(&j->mu);
    *result = 1;
    return REALM_CALL_DONE;
}

/* Of the default program, as far as it comes: the first host call of an instance ends it. */
typedef struct starting {
    job *j;
    uint64_t called_ns, first_ns;
    realm_instance *i;
} starting;

static realm_call_result b_first(realm_call *call, const uint64_t *args, int32_t *result) {
    starting *s = realm_call_user(call);
    (void)args;
    if (!s->first_ns) s->first_ns = realm_clock_ns();
    *result = REALM_E_CANCELLED;
    return REALM_CALL_DONE;
}

#define FIRST(group, id, types, options, c_params, text) {"realm", #id, types, false, options, b_first, 0},
static const realm_import DEFAULT_IMPORTS[] = {REALM_ABI_CALLS(FIRST)};
#undef FIRST

static const realm_import IMPORTS[] = {
    {"b", "add", "ii", false, 0, b_add, 0},
    {"b", "touch", "pp", false, 0, b_touch, 0},
    {"b", "add_async", "ii", false, REALM_IMPORT_SUSPENDS, b_add, 0},
    {"b", "add_off", "ii", false, REALM_IMPORT_OFF_FIBER, b_add, 0},
    {"b", "wait", "i", false, REALM_IMPORT_SUSPENDS, b_wait, 0},
    {"b", "event", "i", false, REALM_IMPORT_SUSPENDS, b_event, 0},
};

/* ---- running ---- */

static realm_program *open_program(realm_sandbox *s, const char *name) {
    char path[512], *data = NULL;
    size_t n = 0;
    realm_error err = {0};
    realm_program *p = NULL;
    realm_program_limits l = {.trusted = true};
    snprintf(path, sizeof path, BENCH_BUILD "/%s.wasm", name);
    if (realm_file_read(path, REALM_MODULE_BYTES_MAX, &data, &n, &err) || realm_program_open(s, data, n, &l, &p, &err))
        die(path, &err);
    realm_free(data);
    return p;
}

static realm_sandbox *open_sandbox(uint32_t workers, const realm_import *imports, size_t n) {
    realm_error err = {0};
    realm_sandbox *s = NULL;
    realm_sandbox_config c = {
        .n_workers = workers, .max_instances = AT_ONCE * 2, .imports = imports, .n_imports = n, .abi_major = 1};
    if (realm_sandbox_open(&s, &c, &err)) die("open", &err);
    return s;
}

static void one_less(job *j) {
    realm_mutex_lock(&j->mu);
    j->running--;
    realm_cond_signal(&j->cond);
    realm_mutex_unlock(&j->mu);
}

static void on_done(void *user, realm_instance *i, const realm_instance_result *r) {
    (void)i;
    if (r->status) fprintf(stderr, "bench-tenants: %s\n", r->text);
    one_less(user);
}

static void on_started(void *user, realm_instance *i, const realm_instance_result *r) {
    starting *s = user;
    (void)i;
    realm_mutex_lock(&s->j->mu);
    sample_add(&s->j->made, (double)r->start_ns / 1e3);
    sample_add(&s->j->first, (double)(s->first_ns - s->called_ns) / 1e3);
    realm_mutex_unlock(&s->j->mu);
    one_less(s->j);
}

static realm_instance *begin(job *j, realm_program *p, void *user,
                             void (*done)(void *, realm_instance *, const realm_instance_result *)) {
    realm_instance *i = NULL;
    realm_error err = {0};
    realm_instance_params params = {
        .user = user, .on_done = done, .memory_bytes = 64u << 20, .cpu_ms_per_wake = 600000};
    realm_mutex_lock(&j->mu);
    j->running++;
    realm_mutex_unlock(&j->mu);
    if (realm_instance_start(p, &params, &i, &err)) die("start", &err);
    return i;
}

static void await(job *j) {
    realm_mutex_lock(&j->mu);
    while (j->running > 0) realm_cond_wait(&j->cond, &j->mu);
    realm_mutex_unlock(&j->mu);
}

/* ---- parts ---- */

static void start_together(job *j, realm_program *p, unsigned n) {
    static starting s[AT_ONCE];
    for (unsigned k = 0; k < n; k++) {
        s[k] = (starting){.j = j, .called_ns = realm_clock_ns()};
        s[k].i = begin(j, p, &s[k], on_started);
    }
    await(j);
    for (unsigned k = 0; k < n; k++) realm_instance_release(s[k].i);
}

static void bench_start(job *j) {
    realm_sandbox *s = open_sandbox(0, DEFAULT_IMPORTS, REALM_ARRAY_LEN(DEFAULT_IMPORTS));
    realm_program *p = open_program(s, "guest/default");
    start_together(j, p, AT_ONCE); /* memory that is there from the second on */
    j->made.n = j->first.n = 0;
    for (unsigned r = 0; r < START_ROUNDS * 16; r++) start_together(j, p, 1);
    report("instance start, default program, alone: made, median", "us", sample_at(&j->made, 0.5), NAN, 20, false);
    report("from the call to its first host call, median", "us", sample_at(&j->first, 0.5), NAN, NAN, false);
    j->made.n = j->first.n = 0;
    for (unsigned r = 0; r < REALM_MIN(START_ROUNDS, SAMPLES_MAX / AT_ONCE); r++) start_together(j, p, AT_ONCE);
    report("256 at once: made, median", "us", sample_at(&j->made, 0.5), NAN, 20, false);
    report("256 at once: made, p99", "us", sample_at(&j->made, 0.99), NAN, 200, false);
    report("256 at once: call to first host call, median (with the queue)", "us", sample_at(&j->first, 0.5), NAN, NAN,
           false);
    report("256 at once: call to first host call, p99 (with the queue)", "us", sample_at(&j->first, 0.99), NAN, NAN,
           false);
    realm_program_release(p);
    realm_sandbox_close(s);
}

/* One instance that makes a million calls. */
static double calls(realm_sandbox *s, job *j, const char *name, uint64_t n) {
    realm_program *p = open_program(s, name);
    uint64_t best = UINT64_MAX;
    for (int k = 0; k < (n == CALLS ? 5 : 200); k++) {
        uint64_t t0 = realm_clock_ns();
        realm_instance *i = begin(j, p, j, on_done);
        await(j);
        best = REALM_MIN(best, realm_clock_ns() - t0);
        realm_instance_release(i);
    }
    realm_program_release(p);
    return (double)best / (double)n;
}

static double plain_calls(uint64_t n) {
    realm_import_fn volatile fn = b_add;
    uint64_t args[2] = {1, 2}, best = UINT64_MAX;
    for (int k = 0; k < 5; k++) {
        uint64_t t0 = realm_clock_ns();
        int32_t r = 0;
        for (uint64_t c = 0; c < n; c++) {
            fn(NULL, args, &r);
            args[0] = (uint64_t)(uint32_t)r;
        }
        best = REALM_MIN(best, realm_clock_ns() - t0);
    }
    return (double)best / (double)n;
}

/* The same without a sandbox: a thread that waits on a condition variable. */
typedef struct plain {
    realm_mutex mu;
    realm_cond event, taken_cond;
    uint64_t events, taken;
    bool stop;
    pthread_t thread;
} plain;

static void *plain_taker(void *arg) {
    plain *p = arg;
    realm_mutex_lock(&p->mu);
    while (!p->stop) {
        if (p->events == 0) {
            realm_cond_wait(&p->event, &p->mu);
            continue;
        }
        p->events--;
        p->taken++;
        realm_cond_signal(&p->taken_cond);
    }
    realm_mutex_unlock(&p->mu);
    return NULL;
}

static void plain_give(plain *p, bool stop) {
    realm_mutex_lock(&p->mu);
    p->events++;
    p->stop = stop;
    realm_mutex_unlock(&p->mu);
    realm_cond_signal(&p->event);
}

/* One event to the program or the thread that waits for it, and back: two threads asleep in turn. */
static void give_event(job *j, realm_instance *i) {
    atomic_fetch_add(&j->events, 1);
    realm_instance_wake(i);
}

static void bench_events(realm_sandbox *s, job *j) {
    plain p = {0};
    realm_error err = {0};
    realm_mutex_init(&p.mu, REALM_RANK_LEAF);
    realm_cond_init(&p.event);
    realm_cond_init(&p.taken_cond);
    if (realm_thread_start(&p.thread, "taker", plain_taker, &p, &err)) die("thread", &err);
    realm_program *program = open_program(s, "wasm/bench/event");
    static samples with, without, wake[2], cpu[2]; /* [1]: the program's */
    atomic_store(&j->events, 0);
    j->taken = 0;
    realm_instance *i = begin(j, program, j, on_done);
    for (unsigned k = 0; k < SAMPLES_MAX; k++) {
        uint64_t t0 = realm_clock_ns();
        uint64_t had = k;
        give_event(j, i);
        realm_mutex_lock(&j->mu);
        while (j->taken <= had) realm_cond_wait(&j->cond, &j->mu);
        realm_mutex_unlock(&j->mu);
        uint64_t t1 = realm_clock_ns();
        plain_give(&p, false);
        realm_mutex_lock(&p.mu);
        while (p.taken <= had) realm_cond_wait(&p.taken_cond, &p.mu);
        realm_mutex_unlock(&p.mu);
        sample_add(&with, (double)(t1 - t0) / 1e3);
        sample_add(&without, (double)(realm_clock_ns() - t1) / 1e3);
    }
    /* What the waker pays: it works on between two events, as the engine does. */
    for (unsigned k = 0; k < WAKES; k++) {
        for (unsigned m = 0; m < 2; m++) {
            uint64_t until = realm_clock_ns() + WAKE_GAP_NS;
            while (realm_clock_ns() < until) continue;
            bool program_turn = (k + m) % 2;
            uint64_t t0 = realm_clock_ns(), c0 = realm_clock_thread_ns();
            if (program_turn)
                give_event(j, i);
            else
                plain_give(&p, false);
            sample_add(&cpu[program_turn], (double)(realm_clock_thread_ns() - c0) / 1e3);
            sample_add(&wake[program_turn], (double)(realm_clock_ns() - t0) / 1e3);
        }
    }
    report("event to a parked program and back (without: to a thread)", "us", median(&with), median(&without), NAN,
           false);
    report("waking it, on the path of a waker that works on", "us", median(&wake[1]), median(&wake[0]), NAN, false);
    report("the same, processor time of the waker", "us", median(&cpu[1]), median(&cpu[0]), NAN, false);
    while (j->running > 0) { /* its last events */
        give_event(j, i);
        realm_mutex_lock(&j->mu);
        bool ended = j->running == 0;
        realm_mutex_unlock(&j->mu);
        if (ended) break;
    }
    realm_instance_release(i);
    realm_program_release(program);
    plain_give(&p, true);
    pthread_join(p.thread, NULL);
}

void bench_sandbox(void) {
    job *j = realm_calloc(1, sizeof *j);
    if (!j) exit(1);
    realm_mutex_init(&j->mu, REALM_RANK_REQUEST);
    realm_cond_init(&j->cond);
    report_note("a program by itself");
    bench_start(j);
    realm_sandbox *s = open_sandbox(1, IMPORTS, REALM_ARRAY_LEN(IMPORTS));
    double plain_ns = plain_calls(CALLS);
    report("host call (without: through a pointer)", "ns", calls(s, j, "wasm/bench/call", CALLS), plain_ns, NAN, false);
    report("host call that reads the program's memory", "ns", calls(s, j, "wasm/bench/call_memory", CALLS), plain_ns,
           NAN, false);
    report("host call that could suspend, and does not", "ns", calls(s, j, "wasm/bench/call_async", CALLS_BRIEF),
           plain_ns, NAN, false);
    report("host call off the fiber", "ns", calls(s, j, "wasm/bench/call_off", CALLS_BRIEF), plain_ns, NAN, false);
    report("host call that suspends and is woken", "ns", calls(s, j, "wasm/bench/wait", SUSPENSIONS), NAN, NAN, false);
    bench_events(s, j);
    realm_sandbox_close(s);
    realm_free(j);
}
