/* compute/cpu/team.c - the threads that walk a plan together.
 *
 *                     run: job + 1                       job unchanged for JOB_SPIN_NS
 *        +--------+ -------------> +---------+   +------+ ---------------------> +--------+
 *        | waits  |                | joins,  |   | spins|                        | sleeps | futex on job
 *        +--------+ <------------- | runs fn |   +------+ <--------------------- +--------+
 *                    leaves        +---------+            run: job + 1
 *
 * A run begins with its caller alone, at once; the others join as they come. So nobody waits for a thread that sleeps,
 * that the system has put elsewhere, or that is at work aside (below): it takes its part from the phase that it finds.
 * A phase is what lies between two barriers. Who joins late walks through what is over without doing it: claims give
 * it nothing and barriers let it pass, until it stands where the others are (realm_worker.behind).
 *
 *        gate:   phase (32) | open (1) | members (15) | arrived (16)
 *                join       open, and not all members have arrived (the phase would end under it): members + 1
 *                barrier    arrived + 1; the last one sets the counter of claims to 0 and the gate to phase + 1
 *                end        the caller closes the gate; members leave; the last to leave tells the caller
 *
 * Three words are waited for: `job` counts runs and is what idle threads look at, `phase` is the gate's and what
 * members look at, `left` counts runs whose caller had to wait at the end. The gate is ahead of `phase` and `job` for a
 * moment: who joins then may be at its next barrier before those who wait at this one know, so a member waits for the
 * phase that it is to be, not for any change. All are waited for in the same way: spin for some tens of microseconds (a
 * barrier inside a step is usually a fraction of one), then sleep in the kernel on the word itself. A thread that is
 * about to sleep first adds itself to the word's count of sleepers; whoever changes the word reads that count
 * afterwards. Both sides use sequentially consistent operations, so either the sleeper sees the new word (the futex
 * compares it again) or the changer sees the sleeper: no wake-up is lost, and no system call is made while nobody
 * sleeps.
 *
 * Where there are fewer cores than threads, spinning would only keep the others from running: it is off then.
 *
 * Aside. A thread that spins for the next job also takes a small task that somebody posts (`aside`), which costs the
 * poster two atomic operations instead of the system call that waking a thread takes. The word goes FREE -> FILLING ->
 * POSTED -> FREE; the poster takes it back when all threads turn out to sleep or to be at such a task already, by the
 * same order as above: a thread counts itself as one of those, then looks at `aside`; the poster writes `aside`, then
 * looks at the counts.
 */
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/thread.h"
#include "compute/cpu/cpu.h"

#define CACHE_LINE 64
#define SPIN_NS (40 * REALM_NS_PER_US)
/* For the next job: longer than sampling takes and a program that decides on the next token itself. */
#define JOB_SPIN_NS (250 * REALM_NS_PER_US)
#define SPINS_PER_CLOCK 64u /* looks at the word between two looks at the clock */
#define THREADS_MAX 1024u
#define SCRATCH_ALIGN 4096u

typedef struct waited_word {
    _Alignas(CACHE_LINE) _Atomic uint32_t value;
    _Atomic uint32_t sleepers;
} waited_word;

typedef struct seat { /* a worker and what belongs to its thread, on its own cache lines */
    _Alignas(CACHE_LINE) realm_worker worker;
    pthread_t thread;
    bool started;
} seat;

enum { ASIDE_FREE, ASIDE_FILLING, ASIDE_POSTED };

#define GATE_MEMBER (UINT64_C(1) << 16)
#define GATE_OPEN (UINT64_C(1) << 31)
static inline uint32_t gate_phase(uint64_t g) { return (uint32_t)(g >> 32); }
static inline uint32_t gate_members(uint64_t g) { return (uint32_t)(g >> 16) & 0x7fffu; }
static inline uint32_t gate_arrived(uint64_t g) { return (uint32_t)g & 0xffffu; }
static inline uint64_t gate_of(uint32_t phase, uint64_t open, uint32_t members) {
    return (uint64_t)phase << 32 | open | members * GATE_MEMBER;
}

struct realm_team {
    uint32_t n;
    uint64_t spin_ns;
    size_t scratch_bytes;
    realm_slab *slab;
    void (*fn)(realm_worker *w, void *user); /* written before `job` changes, read after */
    void *user;
    uint32_t run, first_phase; /* of this run: what `job` becomes with it, where the gate was; as fn */
    atomic_bool stop;
    waited_word job, phase, left;
    _Alignas(CACHE_LINE) _Atomic uint32_t aside;
    _Atomic uint32_t away;        /* threads at work on what was posted */
    void (*aside_fn)(void *user); /* written before POSTED, read after */
    void *aside_user;
    _Alignas(CACHE_LINE) _Atomic uint64_t gate;
    _Alignas(CACHE_LINE) _Atomic uint64_t next_item;
    seat seats[];
};

static inline void pause_cpu(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Returns when the word is `target`, which comes after what it is now; what was written before that is visible then. It
 * may be more than one behind: who joined a phase can be through with it before the one that began it has told those
 * who wait for it. */
static void word_wait(waited_word *w, uint32_t target, uint64_t spin_ns) {
    if (spin_ns > 0) {
        uint64_t deadline = 0;
        do {
            for (uint32_t i = 0; i < SPINS_PER_CLOCK; i++) {
                /* acquire: pairs with word_change */
                if (atomic_load_explicit(&w->value, memory_order_acquire) == target) return;
                pause_cpu();
            }
            uint64_t now = realm_clock_ns();
            if (deadline == 0) deadline = now + spin_ns;
            if (now >= deadline) break;
        } while (true);
    }
    atomic_fetch_add_explicit(&w->sleepers, 1, memory_order_seq_cst);
    uint32_t now;
    while ((now = atomic_load_explicit(&w->value, memory_order_seq_cst)) != target)
        /* Returns at once when the word has changed; an interruption or a stray wake-up only loops. */
        syscall(SYS_futex, (uint32_t *)&w->value, FUTEX_WAIT_PRIVATE, now, NULL, NULL, 0);
    atomic_fetch_sub_explicit(&w->sleepers, 1, memory_order_relaxed);
}

static void word_change(waited_word *w, uint32_t value) {
    atomic_store_explicit(&w->value, value, memory_order_seq_cst);
    if (atomic_load_explicit(&w->sleepers, memory_order_seq_cst) > 0)
        syscall(SYS_futex, (uint32_t *)&w->value, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

void realm_worker_barrier(realm_worker *w) {
    realm_team *t = w->team;
    if (w->behind > 0) {
        w->behind--;
        return;
    }
    if (t->n == 1) {
        atomic_store_explicit(&t->next_item, 0, memory_order_relaxed);
        return;
    }
    /* acq_rel: the last to come has seen all that the others wrote, and passes it on through `phase`, and through the
     * gate to those who join. */
    uint64_t g = atomic_fetch_add_explicit(&t->gate, 1, memory_order_acq_rel) + 1;
    if (gate_arrived(g) < gate_members(g)) {
        word_wait(&t->phase, gate_phase(g) + 1, t->spin_ns);
        return;
    }
    /* Nobody else changes the gate now: all members are here, and nobody joins while all have arrived. */
    uint32_t next = gate_phase(g) + 1;
    atomic_store_explicit(&t->next_item, 0, memory_order_relaxed);
    atomic_store_explicit(&t->gate, gate_of(next, GATE_OPEN, gate_members(g)), memory_order_release);
    word_change(&t->phase, next);
}

bool realm_worker_claim(realm_worker *w, uint32_t n, uint32_t grain, uint32_t *begin, uint32_t *end) {
    if (w->behind > 0) return false;
    /* relaxed: items are independent; the barrier after the loop orders what they wrote */
    uint64_t at = atomic_fetch_add_explicit(&w->team->next_item, grain, memory_order_relaxed);
    if (at >= n) return false;
    *begin = (uint32_t)at;
    *end = n - *begin < grain ? n : *begin + grain;
    return true;
}

/* False: no run is on, or its caller is through. */
static bool join(realm_team *t, realm_worker *w) {
    uint64_t g = atomic_load_explicit(&t->gate, memory_order_relaxed);
    for (;;) {
        if (!(g & GATE_OPEN)) return false;
        if (gate_arrived(g) == gate_members(g)) {
            if (t->spin_ns > 0)
                pause_cpu();
            else
                sched_yield(); /* to who ends the phase */
            g = atomic_load_explicit(&t->gate, memory_order_relaxed);
        } else if (atomic_compare_exchange_weak_explicit(&t->gate, &g, g + GATE_MEMBER, memory_order_acquire,
                                                         memory_order_relaxed)) {
            w->behind = gate_phase(g) - t->first_phase;
            return true;
        }
    }
}

static void leave(realm_team *t) {
    uint64_t g = atomic_fetch_sub_explicit(&t->gate, GATE_MEMBER, memory_order_acq_rel);
    if (!(g & GATE_OPEN) && gate_members(g) == 2) /* the caller is alone now, and waits for that */
        word_change(&t->left, atomic_load_explicit(&t->left.value, memory_order_relaxed) + 1);
}

/* Runs what was posted; false when nothing was, or another thread has it. */
static bool take_aside(realm_team *t) {
    uint32_t posted = ASIDE_POSTED;
    if (atomic_load_explicit(&t->aside, memory_order_relaxed) != ASIDE_POSTED ||
        !atomic_compare_exchange_strong(&t->aside, &posted, ASIDE_FILLING))
        return false;
    void (*fn)(void *user) = t->aside_fn;
    void *user = t->aside_user;
    atomic_fetch_add(&t->away, 1);
    atomic_store(&t->aside, ASIDE_FREE); /* the next may be posted while this one runs */
    fn(user);
    atomic_fetch_sub(&t->away, 1);
    return true;
}

/* As word_wait on `job`, and takes what is posted aside. The word as it is then. */
static uint32_t job_wait(realm_team *t, uint32_t old) {
    waited_word *w = &t->job;
    for (;;) {
        uint64_t deadline = 0;
        while (t->spin_ns > 0) {
            for (uint32_t i = 0; i < SPINS_PER_CLOCK; i++) {
                if (take_aside(t)) deadline = 0;
                /* acquire: pairs with word_change */
                uint32_t job = atomic_load_explicit(&w->value, memory_order_acquire);
                if (job != old) return job;
                pause_cpu();
            }
            uint64_t now = realm_clock_ns();
            if (deadline == 0) deadline = now + JOB_SPIN_NS;
            if (now >= deadline) break;
        }
        atomic_fetch_add(&w->sleepers, 1);
        if (atomic_load(&t->aside) != ASIDE_POSTED)
            while (atomic_load(&w->value) == old)
                syscall(SYS_futex, (uint32_t *)&w->value, FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0);
        atomic_fetch_sub_explicit(&w->sleepers, 1, memory_order_relaxed);
        if (take_aside(t)) continue;
        uint32_t job = atomic_load_explicit(&w->value, memory_order_acquire);
        if (job != old) return job;
    }
}

bool realm_team_aside(realm_team *t, void (*fn)(void *user), void *user) {
    uint32_t free = ASIDE_FREE, posted = ASIDE_POSTED;
    if (t->n == 1 || t->spin_ns == 0 || (atomic_load_explicit(&t->gate, memory_order_relaxed) & GATE_OPEN))
        return false; /* who is a member of a run spins for no other */
    if (!atomic_compare_exchange_strong(&t->aside, &free, ASIDE_FILLING)) return false;
    t->aside_fn = fn;
    t->aside_user = user;
    atomic_store(&t->aside, ASIDE_POSTED);
    if (atomic_load(&t->job.sleepers) + atomic_load(&t->away) < t->n - 1) return true;
    return !atomic_compare_exchange_strong(&t->aside, &posted, ASIDE_FREE);
}

static void *worker_main(void *arg) {
    seat *s = arg;
    realm_team *t = s->worker.team;
    for (uint32_t job = 0, run = 0;;) {
        job = job_wait(t, job);
        (void)take_aside(t); /* what the caller of this run posted just before */
        if (atomic_load_explicit(&t->stop, memory_order_relaxed)) return NULL;
        if (!join(t, &s->worker)) continue;
        if (t->run != run) { /* it joins the same one again where it saw its gate before its `job` */
            run = t->run;
            t->fn(&s->worker, t->user);
        }
        leave(t);
    }
}

void realm_team_run(realm_team *t, void (*fn)(realm_worker *w, void *user), void *user) {
    realm_worker *w = &t->seats[0].worker;
    if (t->n == 1) {
        atomic_store_explicit(&t->next_item, 0, memory_order_relaxed);
        fn(w, user);
        return;
    }
    t->fn = fn;
    t->user = user;
    t->run = atomic_load_explicit(&t->job.value, memory_order_relaxed) + 1;
    t->first_phase = gate_phase(atomic_load_explicit(&t->gate, memory_order_relaxed));
    atomic_store_explicit(&t->gate, gate_of(t->first_phase, GATE_OPEN, 1), memory_order_release);
    word_change(&t->job, t->run);
    fn(w, user);
    uint32_t left = atomic_load_explicit(&t->left.value, memory_order_relaxed);
    uint64_t g = atomic_fetch_and_explicit(&t->gate, ~GATE_OPEN, memory_order_acq_rel);
    if (gate_members(g) > 1) word_wait(&t->left, left + 1, t->spin_ns);
    atomic_store_explicit(&t->next_item, 0, memory_order_relaxed);
    atomic_store_explicit(&t->gate, gate_of(gate_phase(g), 0, 0), memory_order_relaxed);
}

uint32_t realm_team_size(const realm_team *t) { return t->n; }
realm_slab *realm_team_slab(realm_team *t) { return t->slab; }

static uint32_t usable_cores(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return (uint32_t)CPU_COUNT(&set);
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (uint32_t)n : 1;
}

realm_status realm_team_reserve(realm_team *t, size_t bytes, realm_error *err) {
    if (bytes <= t->scratch_bytes) return REALM_OK;
    uint64_t size;
    size_t total;
    if (!realm_align_u64(bytes, SCRATCH_ALIGN, &size) || !realm_mul_size((size_t)size, t->n, &total))
        return realm_error_set(err, REALM_E_NOMEM, "scratch of %zu bytes for %u threads is too large", bytes, t->n);
    char *fresh = realm_pages_map(total); /* each thread touches its own part first */
    if (!fresh)
        return realm_error_set(err, REALM_E_NOMEM, "no memory for the scratch of %u threads (%zu bytes each)", t->n,
                               (size_t)size);
    if (t->scratch_bytes > 0) realm_pages_unmap(t->seats[0].worker.scratch, t->scratch_bytes * t->n);
    t->scratch_bytes = (size_t)size;
    for (uint32_t i = 0; i < t->n; i++) {
        t->seats[i].worker.scratch = fresh + (size_t)size * i;
        t->seats[i].worker.scratch_bytes = (size_t)size;
    }
    return REALM_OK;
}

realm_status realm_team_open(realm_team **out, uint32_t n_threads, size_t scratch_bytes, realm_error *err) {
    *out = NULL;
    uint32_t cores = usable_cores();
    uint32_t n = n_threads ? n_threads : REALM_MIN(cores, THREADS_MAX);
    if (n > THREADS_MAX)
        return realm_error_set(err, REALM_E_LIMIT, "%u threads: at most %u are possible", n, THREADS_MAX);
    size_t bytes = sizeof(realm_team) + n * sizeof(seat);
    realm_team *t = realm_malloc_aligned(bytes, CACHE_LINE);
    if (!t) return realm_error_set(err, REALM_E_NOMEM, "no memory for a team of %u threads", n);
    *t = (realm_team){.n = n, .spin_ns = n <= cores ? SPIN_NS : 0};
    for (uint32_t i = 0; i < n; i++) t->seats[i] = (seat){.worker = {.team = t, .id = i, .n = n}};
    realm_status s = realm_team_reserve(t, scratch_bytes, err);
    t->slab = realm_slab_open();
    if (!t->slab && s == REALM_OK) s = realm_error_set(err, REALM_E_NOMEM, "no memory for a team of %u threads", n);
    for (uint32_t i = 1; i < n && s == REALM_OK; i++) {
        char name[24];
        snprintf(name, sizeof name, "compute %u", i);
        s = realm_thread_start(&t->seats[i].thread, name, worker_main, &t->seats[i], err);
        t->seats[i].started = s == REALM_OK;
    }
    if (s != REALM_OK) {
        realm_team_close(t);
        return s;
    }
    *out = t;
    return REALM_OK;
}

void realm_team_close(realm_team *t) {
    if (!t) return;
    atomic_store_explicit(&t->stop, true, memory_order_relaxed);
    word_change(&t->job, atomic_load_explicit(&t->job.value, memory_order_relaxed) + 1);
    for (uint32_t i = 1; i < t->n; i++)
        if (t->seats[i].started) pthread_join(t->seats[i].thread, NULL);
    realm_slab_close(t->slab);
    if (t->scratch_bytes > 0) realm_pages_unmap(t->seats[0].worker.scratch, t->scratch_bytes * t->n);
    realm_free(t);
}
