/* What the tests of this folder share: a small import table, a sandbox, running a module to its end. */
#ifndef TESTS_UNIT_SANDBOX_FIXTURE_H
#define TESTS_UNIT_SANDBOX_FIXTURE_H

#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/thread.h"
#include "sandbox/sandbox.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED true /* memory is not what it would be */
#else
#define SANITIZED false
#endif
#define PATIENCE_NS (60 * REALM_NS_PER_S) /* a test that needs longer has failed */

/* cmocka puts its own handlers of fault signals in place for every test; Wasmtime's, by which a program's fault becomes
 * a trap, are put back when a test starts an instance. */
static const int FAULTS[] = {SIGSEGV, SIGILL, SIGFPE, SIGBUS};
static struct sigaction fault_actions[4];

static void faults_remember(void) {
    for (int i = 0; i < 4; i++) sigaction(FAULTS[i], NULL, &fault_actions[i]);
}

static void faults_restore(void) {
    for (int i = 0; i < 4; i++) sigaction(FAULTS[i], &fault_actions[i], NULL);
}

/* One running instance, as a test sees it. */
typedef struct run {
    realm_mutex mu;
    realm_cond cond;
    bool done;
    int n_done;
    realm_instance *instance;
    realm_instance_result result;
    char text[REALM_ERROR_TEXT_MAX];
    char answer[4096];
    size_t answer_len;
    int answer_refusals; /* on_answer answers AGAIN so often */
    atomic_int events;   /* what wait() consumes */
    atomic_int waits;    /* how often wait()'s callback ran */
    atomic_int order;    /* what order() gives next, and takes; 0: it waits */
    /* How often order, heavy, moves, rests and asks were done on a lender's thread, on a worker. */
    atomic_int lent[5], not_lent[5];
    realm_lender *asked;          /* by asks(): its owner is called back */
    atomic_int deferred, flushed; /* by order 1 */
    /* CPU time from the taking of an order until the program asks again, all orders; of those that it began and ended
     * on the same thread. Its own thread's, until `carried_out` says how many orders there were. */
    uint64_t order_cpu_ns, order_from_ns;
    pthread_t order_thread;
    atomic_uint carried_out;
    atomic_ullong told_ns;   /* what on_cpu was told, in all */
    atomic_ullong burned_ns; /* CPU time that burn() used */
    atomic_int calls;        /* of where() and burn() */
    atomic_int long_calls;   /* of burn(), where calls may be long */
    atomic_int idle_calls;   /* of the host, by a thread that has idle time alone */
} run;

/* Whatever takes a lock must not be done there: the thread may lose its processor for seconds. */
static void note_policy(run *r) {
    if (sched_getscheduler(0) == SCHED_IDLE) atomic_fetch_add(&r->idle_calls, 1);
}

/* ---- imports ---- */

static realm_call_result t_add(realm_call *call, const uint64_t *args, int32_t *result) {
    (void)call;
    *result = (int32_t)(args[0] + args[1]);
    return REALM_CALL_DONE;
}

static realm_call_result t_touch(realm_call *call, const uint64_t *args, int32_t *result) {
    unsigned char *p = realm_call_memory(call, args[0], args[1]);
    *result = p ? REALM_OK : REALM_E_RANGE;
    if (p && args[1]) p[0] = p[args[1] - 1] = 1; /* a wrong answer above would fault here */
    return REALM_CALL_DONE;
}

static realm_call_result t_kinds(realm_call *call, const uint64_t *args, int32_t *result) {
    float f;
    double d;
    uint32_t bits = (uint32_t)args[3];
    (void)call;
    memcpy(&f, &bits, sizeof f);
    memcpy(&d, &args[4], sizeof d);
    *result = args[0] == UINT32_C(0xfffffffe) && args[1] == UINT32_C(0xfffffffd) && (int64_t)args[2] == -4 &&
              f == 1.5f && d == -2.5;
    return REALM_CALL_DONE;
}

/* Takes one event, or waits for one. */
static realm_call_result t_wait(realm_call *call, const uint64_t *args, int32_t *result) {
    run *r = realm_call_user(call);
    (void)args;
    atomic_fetch_add(&r->waits, 1);
    int n = atomic_load(&r->events);
    while (n > 0 && !atomic_compare_exchange_weak(&r->events, &n, n - 1)) {
    }
    if (n > 0) {
        *result = 1;
        return REALM_CALL_DONE;
    }
    if (realm_call_cancelled(call)) {
        *result = REALM_E_CANCELLED;
        return REALM_CALL_DONE;
    }
    return REALM_CALL_SUSPEND;
}

/* Ends args[0] milliseconds after it began; 1 if it was ever suspended. */
static realm_call_result t_sleep(realm_call *call, const uint64_t *args, int32_t *result) {
    uint64_t *until = realm_call_state(call);
    if (!realm_call_resumed(call)) {
        assert_true(*until == 0);
        *until = realm_clock_ns() + args[0] * REALM_NS_PER_MS;
    }
    if (realm_clock_ns() < *until) {
        realm_call_wake_at(call, *until);
        return REALM_CALL_SUSPEND;
    }
    *result = realm_call_resumed(call);
    return REALM_CALL_DONE;
}

static realm_call_result t_fail(realm_call *call, const uint64_t *args, int32_t *result) {
    (void)result;
    return realm_call_fail(call, "asked to fail with %d", (int)args[0]);
}

static realm_call_result t_exit(realm_call *call, const uint64_t *args, int32_t *result) {
    (void)call;
    *result = (int32_t)args[0];
    return REALM_CALL_EXIT;
}

static realm_call_result t_i64(realm_call *call, const uint64_t *args, int32_t *result) {
    (void)args;
    (void)result;
    realm_call_return(call, UINT64_C(0x123456789abcdef0));
    return REALM_CALL_DONE;
}

static realm_call_result t_f32(realm_call *call, const uint64_t *args, int32_t *result) {
    (void)args;
    (void)result;
    realm_call_return(call, 0x3fc00000); /* 1.5 */
    return REALM_CALL_DONE;
}

static realm_call_result t_f64(realm_call *call, const uint64_t *args, int32_t *result) {
    (void)result;
    realm_call_return(call, args[0]); /* what it was given */
    return REALM_CALL_DONE;
}

static realm_call_result t_none(realm_call *call, const uint64_t *args, int32_t *result) {
    (void)call;
    (void)args;
    *result = 77; /* to nobody */
    return REALM_CALL_DONE;
}

static realm_program *again_program; /* what t_again starts another instance of */
static atomic_int again_inner;       /* and how many of those have ended */
static void again_done(void *user, realm_instance *instance, const realm_instance_result *result) {
    (void)user;
    (void)instance;
    atomic_fetch_add(&again_inner, result->status == REALM_OK && result->value == 0);
}

/* See test_host_calls_inside_host_calls. The inner instance has no run: for it, 0. */
static realm_call_result t_again(realm_call *call, const uint64_t *args, int32_t *result) {
    int *runs = realm_call_state(call);
    realm_instance *self = realm_call_instance(call), *other = NULL;
    (void)args;
    if (!realm_call_user(call)) return REALM_CALL_DONE;
    for (int k = 0; k < 5; k++) realm_instance_wake(self);
    if (*runs == 0) {
        realm_instance_params p = {.on_done = again_done};
        if (realm_instance_start(again_program, &p, &other, NULL)) return REALM_CALL_DONE;
        realm_instance_release(other);
        realm_instance_cancel(self);
    }
    if (++*runs < 3 || atomic_load(&again_inner) == 0) {
        *runs = *runs > 2 ? 2 : *runs;
        return REALM_CALL_SUSPEND;
    }
    *result = realm_call_cancelled(call) && realm_call_resumed(call) ? *runs : -1;
    return REALM_CALL_DONE;
}

/* More stack than a fiber has. */
static realm_call_result t_deep(realm_call *call, const uint64_t *args, int32_t *result) {
    volatile char big[3 << 20];
    (void)call;
    for (size_t i = 0; i < sizeof big; i += 4096) big[i] = (char)args[0];
    *result = big[sizeof big / 2 / 4096 * 4096] == (char)args[0];
    return REALM_CALL_DONE;
}

/* Uses args[0] milliseconds of CPU time. */
static realm_call_result t_burn(realm_call *call, const uint64_t *args, int32_t *result) {
    run *r = realm_call_user(call);
    uint64_t from = realm_clock_thread_ns(), used;
    (void)result;
    do used = realm_clock_thread_ns() - from;
    while (used < args[0] * REALM_NS_PER_MS);
    atomic_fetch_add(&r->calls, 1);
    atomic_fetch_add(&r->long_calls, realm_call_may_be_long(call));
    atomic_fetch_add(&r->burned_ns, used);
    return REALM_CALL_DONE;
}

static realm_call_result t_where(realm_call *call, const uint64_t *args, int32_t *result) {
    run *r = realm_call_user(call);
    (void)args;
    (void)result;
    note_policy(r);
    atomic_fetch_add(&r->calls, 1);
    return REALM_CALL_DONE;
}

/* Is in the call until the gate opens. */
static struct {
    realm_mutex mu;
    realm_cond cond;
    bool open;
    int inside;
} gate;

static realm_call_result t_long(realm_call *call, const uint64_t *args, int32_t *result) {
    (void)args;
    if (!realm_call_may_be_long(call)) return REALM_CALL_LONG;
    realm_mutex_lock(&gate.mu);
    gate.inside++;
    realm_cond_broadcast(&gate.cond);
    while (!gate.open) realm_cond_wait(&gate.cond, &gate.mu);
    gate.inside--;
    realm_mutex_unlock(&gate.mu);
    *result = realm_call_resumed(call) ? -1 : 1;
    return REALM_CALL_DONE;
}

static realm_call_result note(const realm_call *call, int which) {
    run *r = realm_call_user(call);
    atomic_fetch_add(realm_call_lent(call) ? &r->lent[which] : &r->not_lent[which], 1);
    return REALM_CALL_DONE;
}

static void flushed(void *user) { atomic_fetch_add(&((run *)user)->flushed, 1); }

static realm_call_result t_order(realm_call *call, const uint64_t *args, int32_t *result) {
    run *r = realm_call_user(call);
    (void)args;
    if (r->order_from_ns && !realm_call_resumed(call)) {
        if (pthread_equal(r->order_thread, pthread_self()))
            r->order_cpu_ns += realm_clock_thread_ns() - r->order_from_ns;
        r->order_from_ns = 0;
        atomic_fetch_add(&r->carried_out, 1);
    }
    *result = atomic_exchange(&r->order, 0);
    if (*result) {
        r->order_thread = pthread_self();
        r->order_from_ns = realm_clock_thread_ns();
    }
    if (*result == 1 && realm_call_defer(call, flushed, r)) atomic_fetch_add(&r->deferred, 1);
    return *result ? note(call, 0) : REALM_CALL_SUSPEND;
}

static realm_call_result t_heavy(realm_call *call, const uint64_t *args, int32_t *result) {
    *result = (int32_t)args[0] + 1;
    return note(call, 1);
}

static realm_call_result t_moves(realm_call *call, const uint64_t *args, int32_t *result) {
    if (realm_call_lent(call)) return REALM_CALL_MOVE;
    *result = realm_call_resumed(call) ? -1 : (int32_t)args[0] + 1;
    return note(call, 2);
}

static realm_call_result t_rests(realm_call *call, const uint64_t *args, int32_t *result) {
    *result = (int32_t)args[0] + 1;
    return note(call, 3);
}

static realm_call_result t_asks(realm_call *call, const uint64_t *args, int32_t *result) {
    run *r = realm_call_user(call);
    *result = (int32_t)args[0] + 1;
    if (r->asked) realm_lender_recall(r->asked);
    return note(call, 4);
}

static const realm_import IMPORTS[] = {
    {"t", "add", "ii", false, 0, t_add, 0},
    {"t", "touch", "pp", false, 0, t_touch, 0},
    {"t64", "touch", "pp", true, 0, t_touch, 0},
    {"t", "kinds", "iplfd", false, 0, t_kinds, 0},
    {"t", "wait", "i", false, REALM_IMPORT_SUSPENDS, t_wait, 0},
    {"t", "wait_off", "i", false, REALM_IMPORT_OFF_FIBER, t_wait, 0},
    {"t", "sleep", "i", false, REALM_IMPORT_SUSPENDS, t_sleep, 0},
    {"t", "fail", "i", false, 0, t_fail, 0},
    {"t", "fail_late", "i", false, REALM_IMPORT_OFF_FIBER, t_fail, 0},
    {"t", "deep", "i", false, REALM_IMPORT_OFF_FIBER, t_deep, 0},
    {"t", "exit", "i", false, 0, t_exit, 'v'},
    {"t", "exit_late", "i", false, REALM_IMPORT_OFF_FIBER, t_exit, 'v'},
    {"t", "i64", "", false, 0, t_i64, 'l'},
    {"t", "i64_late", "", false, REALM_IMPORT_OFF_FIBER, t_i64, 'l'},
    {"t", "f32", "", false, 0, t_f32, 'f'},
    {"t", "f32_late", "", false, REALM_IMPORT_OFF_FIBER, t_f32, 'f'},
    {"t", "f64", "d", false, 0, t_f64, 'd'},
    {"t", "f64_late", "d", false, REALM_IMPORT_OFF_FIBER, t_f64, 'd'},
    {"t", "none", "i", false, 0, t_none, 'v'},
    {"t", "none_late", "i", false, REALM_IMPORT_OFF_FIBER, t_none, 'v'},
    {"t", "again", "i", false, REALM_IMPORT_SUSPENDS, t_again, 0},
    {"t", "burn", "i", false, REALM_IMPORT_OFF_FIBER, t_burn, 0},
    {"t", "long", "i", false, REALM_IMPORT_SUSPENDS, t_long, 0},
    {"t", "where", "i", false, REALM_IMPORT_SUSPENDS, t_where, 0},
    {"t", "where_off", "i", false, REALM_IMPORT_OFF_FIBER, t_where, 0},
    {"t", "order", "", false, REALM_IMPORT_SUSPENDS | REALM_IMPORT_BRIEF, t_order, 0},
    {"t", "heavy", "i", false, REALM_IMPORT_OFF_FIBER, t_heavy, 0},
    {"t", "moves", "i", false, REALM_IMPORT_OFF_FIBER | REALM_IMPORT_BRIEF, t_moves, 0},
    {"t", "rests", "i", false, REALM_IMPORT_SUSPENDS, t_rests, 0},
    {"t", "asks", "i", false, REALM_IMPORT_OFF_FIBER | REALM_IMPORT_BRIEF, t_asks, 0},
};

/* ---- sandbox and programs ---- */

static realm_sandbox *open_sandbox(uint32_t workers, uint32_t instances, const char *cache) {
    realm_error err = {0};
    realm_sandbox *s = NULL;
    realm_sandbox_config c = {.n_workers = workers,
                              .max_instances = instances,
                              .max_memory_bytes = 64u << 20,
                              .compiler_path = "/proc/self/exe",
                              .cache_dir = cache,
                              .imports = IMPORTS,
                              .n_imports = REALM_ARRAY_LEN(IMPORTS),
                              .abi_major = 1};
    if (realm_sandbox_open(&s, &c, &err)) fail_msg("%s", err.text);
    return s;
}

static char *read_wasm(const char *name, size_t *len) {
    char path[256], *data = NULL;
    realm_error err = {0};
    snprintf(path, sizeof path, "%s/test/%s.wasm", TEST_WASM, name);
    if (realm_file_read(path, REALM_MODULE_BYTES_MAX, &data, len, &err)) fail_msg("%s: %s", path, err.text);
    return data;
}

static realm_program *open_program(realm_sandbox *s, const char *name) {
    realm_error err = {0};
    realm_program *p = NULL;
    realm_program_limits limits = {.trusted = true};
    size_t n = 0;
    char *wasm = read_wasm(name, &n);
    if (realm_program_open(s, wasm, n, &limits, &p, &err)) fail_msg("%s: %s", name, err.text);
    realm_free(wasm);
    return p;
}

/* ---- running ---- */

static void on_done(void *user, realm_instance *instance, const realm_instance_result *result) {
    run *r = user;
    note_policy(r);
    realm_mutex_lock(&r->mu);
    (void)instance;
    r->result = *result;
    snprintf(r->text, sizeof r->text, "%s", result->text);
    r->done = true;
    r->n_done++;
    realm_cond_broadcast(&r->cond);
    realm_mutex_unlock(&r->mu);
}

static void on_cpu(void *user, uint64_t ns) {
    note_policy(user);
    atomic_fetch_add(&((run *)user)->told_ns, ns);
}

static realm_status on_answer(void *user, const char *text, size_t len, realm_error *err) {
    run *r = user;
    (void)err;
    if (r->answer_refusals-- > 0) return REALM_E_AGAIN;
    if (len > sizeof r->answer) return REALM_E_LIMIT;
    memcpy(r->answer, text, len);
    r->answer_len = len;
    return REALM_OK;
}

static void run_init(run *r) {
    memset(r, 0, sizeof *r);
    realm_mutex_init(&r->mu, REALM_RANK_REQUEST);
    realm_cond_init(&r->cond);
}

static void run_start(run *r, realm_program *p, realm_instance_params params) {
    realm_error err = {0};
    run_init(r);
    faults_restore();
    params.user = r;
    params.on_done = on_done;
    params.on_answer = on_answer;
    params.on_cpu = on_cpu;
    if (realm_instance_start(p, &params, &r->instance, &err)) fail_msg("%s", err.text);
}

static inline bool run_ended(run *r) {
    realm_mutex_lock(&r->mu);
    bool done = r->done;
    realm_mutex_unlock(&r->mu);
    return done;
}

static void run_wait(run *r) {
    uint64_t until = realm_clock_ns() + PATIENCE_NS;
    realm_mutex_lock(&r->mu);
    while (!r->done)
        if (!realm_cond_wait_until(&r->cond, &r->mu, until)) fail_msg("the instance does not end");
    realm_mutex_unlock(&r->mu);
    /* However it ended, all that it used was told, and nothing twice. */
    assert_int_equal(atomic_load(&r->told_ns), r->result.cpu_ns);
    assert_int_equal(atomic_load(&r->idle_calls), 0);
    realm_instance_release(r->instance);
    r->instance = NULL;
}

static inline run run_module(realm_sandbox *s, const char *name, realm_instance_params params) {
    run r;
    realm_program *p = open_program(s, name);
    run_start(&r, p, params);
    realm_program_release(p);
    run_wait(&r);
    return r;
}

/* Waits until wait()'s callback has run n times. */
static inline void await_waits(run *r, int n) {
    uint64_t until = realm_clock_ns() + PATIENCE_NS;
    while (atomic_load(&r->waits) < n) {
        if (realm_clock_ns() > until) fail_msg("the program does not wait");
        usleep(200);
    }
}

#endif
