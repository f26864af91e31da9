/* bench/sandbox.c - what the sandbox costs: starting, being called, being woken; with and without it.
 *
 * Everything is measured in one run with one worker, so that figures can be compared with each other: the "without"
 * lines do the same work as plain C, through a function pointer and through a queue and a condition variable.
 *
 *     build/bench/sandbox [rounds]          `make bench-sandbox` builds its modules too
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/thread.h"
#include "sandbox/sandbox.h"

#ifndef BENCH_WASM
#define BENCH_WASM "build/wasm/bench"
#endif
#define AT_ONCE 256

typedef struct job {
    realm_mutex mu;
    realm_cond cond;
    uint32_t running;
    atomic_uint_fast64_t events;
    uint64_t taken; /* events */
    uint64_t start_ns[1 << 16];
    uint32_t n_starts;
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

static const realm_import IMPORTS[] = {
    {"b", "add", "ii", false, 0, b_add, 0},
    {"b", "touch", "pp", false, 0, b_touch, 0},
    {"b", "add_async", "ii", false, REALM_IMPORT_SUSPENDS, b_add, 0},
    {"b", "add_off", "ii", false, REALM_IMPORT_OFF_FIBER, b_add, 0},
    {"b", "wait", "i", false, REALM_IMPORT_SUSPENDS, b_wait, 0},
    {"b", "event", "i", false, REALM_IMPORT_SUSPENDS, b_event, 0},
};

/* ---- running ---- */

static void die(const char *what, const realm_error *err) {
    fprintf(stderr, "bench-sandbox: %s: %s\n", what, err->text);
    exit(1);
}

static realm_program *open_program(realm_sandbox *s, const char *name) {
    char path[512], *data = NULL;
    size_t n = 0;
    realm_error err = {0};
    realm_program *p = NULL;
    realm_program_limits l = {.trusted = true};
    snprintf(path, sizeof path, "%s/%s.wasm", BENCH_WASM, name);
    if (realm_file_read(path, REALM_MODULE_BYTES_MAX, &data, &n, &err) || realm_program_open(s, data, n, &l, &p, &err))
        die(path, &err);
    realm_free(data);
    return p;
}

static void on_done(void *user, realm_instance *i, const realm_instance_result *r) {
    job *j = user;
    (void)i;
    if (r->status) fprintf(stderr, "bench-sandbox: %s\n", r->text);
    realm_mutex_lock(&j->mu);
    if (j->n_starts < 1 << 16) j->start_ns[j->n_starts++] = r->start_ns;
    j->running--;
    realm_cond_signal(&j->cond);
    realm_mutex_unlock(&j->mu);
}

static realm_instance *begin(job *j, realm_program *p) {
    realm_instance *i = NULL;
    realm_error err = {0};
    realm_instance_params params = {
        .user = j, .on_done = on_done, .memory_bytes = 64u << 20, .cpu_ms_per_wake = 600000};
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

static int by_value(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void print_us(const char *what, const uint64_t *sorted, size_t n) {
    printf("%-46s %9.2f us median  %9.2f us p99  %9.2f us max\n", what, (double)sorted[n / 2] / 1e3,
           (double)sorted[n * 99 / 100] / 1e3, (double)sorted[n - 1] / 1e3);
}

static void print_ns(const char *what, uint64_t ns, uint64_t n) {
    printf("%-46s %9.1f ns each\n", what, (double)ns / (double)n);
}

/* ---- parts ---- */

static void bench_start(realm_sandbox *s, job *j, const char *name, unsigned rounds, unsigned at_once,
                        const char *label) {
    realm_program *p = open_program(s, name);
    realm_instance *i[AT_ONCE];
    uint64_t *whole = realm_calloc(rounds, sizeof *whole);
    if (!whole) exit(1);
    j->n_starts = 0;
    unsigned n = 0;
    uint64_t t_all = realm_clock_ns();
    while (n < rounds) {
        uint64_t t0 = realm_clock_ns();
        unsigned k = 0;
        for (; k < at_once && n < rounds; k++, n++) i[k] = begin(j, p);
        await(j);
        whole[n - 1] = (realm_clock_ns() - t0) / k;
        for (unsigned m = 0; m < k; m++) {
            whole[n - 1 - m] = whole[n - 1];
            realm_instance_release(i[m]);
        }
    }
    t_all = realm_clock_ns() - t_all;
    char text[96];
    qsort(j->start_ns, j->n_starts, sizeof *j->start_ns, by_value);
    qsort(whole, rounds, sizeof *whole, by_value);
    snprintf(text, sizeof text, "%s: instance made", label);
    print_us(text, j->start_ns, j->n_starts);
    snprintf(text, sizeof text, "%s: start to end, through the queue", label);
    print_us(text, whole, rounds);
    printf("%-46s %9.0f a second\n", "", (double)rounds * 1e9 / (double)t_all);
    realm_free(whole);
    realm_program_release(p);
}

/* One instance that makes a million calls. */
static void bench_calls(realm_sandbox *s, job *j, const char *name, const char *label, uint64_t n) {
    realm_program *p = open_program(s, name);
    uint64_t best = UINT64_MAX;
    for (int k = 0; k < 5; k++) {
        uint64_t t0 = realm_clock_ns();
        realm_instance *i = begin(j, p);
        await(j);
        best = REALM_MIN(best, realm_clock_ns() - t0);
        realm_instance_release(i);
    }
    print_ns(label, best, n);
    realm_program_release(p);
}

/* This thread hands an event to a parked instance and waits until it was taken: two threads asleep in turn. */
static void bench_events(realm_sandbox *s, job *j, uint64_t n) {
    realm_program *p = open_program(s, "event");
    atomic_store(&j->events, 0);
    j->taken = 0;
    realm_instance *i = begin(j, p);
    uint64_t t0 = realm_clock_ns();
    for (uint64_t k = 0; k < n; k++) {
        atomic_fetch_add(&j->events, 1);
        realm_instance_wake(i);
        realm_mutex_lock(&j->mu);
        while (j->taken <= k) realm_cond_wait(&j->cond, &j->mu);
        realm_mutex_unlock(&j->mu);
    }
    print_ns("event to a parked program and back", realm_clock_ns() - t0, n);
    await(j);
    realm_instance_release(i);
    realm_program_release(p);
}

/* The same without a sandbox: a thread that waits on a condition variable. */
typedef struct plain {
    realm_mutex mu;
    realm_cond event, taken_cond;
    uint64_t events, taken, n;
} plain;

static void *plain_taker(void *arg) {
    plain *p = arg;
    realm_mutex_lock(&p->mu);
    while (p->taken < p->n) {
        while (p->events == 0) realm_cond_wait(&p->event, &p->mu);
        p->events--;
        p->taken++;
        realm_cond_signal(&p->taken_cond);
    }
    realm_mutex_unlock(&p->mu);
    return NULL;
}

static void bench_plain_events(uint64_t n) {
    plain p = {.n = n};
    pthread_t t;
    realm_error err = {0};
    realm_mutex_init(&p.mu, REALM_RANK_LEAF);
    realm_cond_init(&p.event);
    realm_cond_init(&p.taken_cond);
    if (realm_thread_start(&t, "taker", plain_taker, &p, &err)) die("thread", &err);
    uint64_t t0 = realm_clock_ns();
    realm_mutex_lock(&p.mu);
    for (uint64_t k = 0; k < n; k++) {
        p.events++;
        realm_cond_signal(&p.event);
        while (p.taken <= k) realm_cond_wait(&p.taken_cond, &p.mu);
    }
    realm_mutex_unlock(&p.mu);
    print_ns("without sandbox: event to a thread and back", realm_clock_ns() - t0, n);
    pthread_join(t, NULL);
}

static void bench_plain_call(uint64_t n) {
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
    print_ns("without sandbox: call through a pointer", best, n);
}

int main(int argc, char **argv) {
    unsigned rounds = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 20000;
    realm_error err = {0};
    realm_sandbox *s = NULL;
    realm_sandbox_config c = {
        .n_workers = 1, .max_instances = AT_ONCE * 2, .imports = IMPORTS, .n_imports = REALM_ARRAY_LEN(IMPORTS)};
    job *j = realm_calloc(1, sizeof *j);
    if (!j || rounds == 0 || rounds > 1 << 16) return 2;
    realm_mutex_init(&j->mu, REALM_RANK_REQUEST);
    realm_cond_init(&j->cond);
    if (realm_sandbox_open(&s, &c, &err)) die("open", &err);
    bench_start(s, j, "answer", rounds, 1, "one page");
    bench_start(s, j, "answer", rounds, AT_ONCE, "one page, 256 at once");
    bench_start(s, j, "pages16", rounds, 1, "16 pages, all written");
    bench_plain_call(1000000);
    bench_calls(s, j, "call", "host call", 1000000);
    bench_calls(s, j, "call_memory", "host call that reads its memory", 1000000);
    bench_calls(s, j, "call_async", "host call that could suspend, and does not", 1000000);
    bench_calls(s, j, "call_off", "host call off the fiber", 1000000);
    bench_calls(s, j, "wait", "host call that suspends and is woken", 200000);
    for (int k = 0; k < 3; k++) { /* in turn: what the kernel's scheduler does differs by the second */
        bench_plain_events(50000);
        bench_events(s, j, 50000);
    }
    realm_sandbox_close(s);
    realm_free(j);
    return 0;
}
