/* The team: whoever comes shares a job, at whatever point, barriers order memory, claims hand out each item once, and
 * nothing is lost when threads sleep between jobs, are busy aside or are more than the cores. Run under the thread
 * sanitizer too. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "compute/cpu/cpu.h"
#include "support/cores.h"

#define ITEMS 1000u
#define THREADS_MOST 5u

typedef struct shared {
    uint32_t plain[THREADS_MOST]; /* written by one worker, read by all after a barrier */
    uint32_t taken[ITEMS];
    _Atomic uint32_t errors, ran;
} shared;

static realm_team *open_team(uint32_t n) {
    realm_team *t;
    realm_error err = {0};
    assert_int_equal(realm_team_open(&t, n, 1000, &err), REALM_OK);
    assert_int_equal(realm_team_size(t), n);
    return t;
}

/* All threads of the team are in this run, which is the run-th since s->ran was 0, before anybody goes on. */
static void meet(const realm_worker *w, shared *s) {
    uint32_t n = atomic_fetch_add(&s->ran, 1), all = (n / w->n + 1) * w->n;
    while (atomic_load(&s->ran) < all) sched_yield();
    if (realm_worker_is_behind(w)) atomic_fetch_add(&s->errors, 1);
}

static void job(realm_worker *w, void *user) {
    shared *s = user;
    meet(w, s);
    if (((uintptr_t)w->scratch & 63u) || w->scratch_bytes < 1000) atomic_fetch_add(&s->errors, 1);
    memset(w->scratch, (int)w->id, w->scratch_bytes);
    for (uint32_t round = 1; round <= 20; round++) {
        s->plain[w->id] += round;
        realm_worker_barrier(w);
        for (uint32_t i = 0; i < w->n; i++)
            if (s->plain[i] != s->plain[w->id]) atomic_fetch_add(&s->errors, 1);
        realm_worker_barrier(w);
        uint32_t begin, end, grain = round % 7 + 1;
        while (realm_worker_claim(w, ITEMS - round, grain, &begin, &end)) {
            if (begin >= end || end - begin > grain) atomic_fetch_add(&s->errors, 1);
            for (uint32_t i = begin; i < end; i++) s->taken[i]++;
        }
        realm_worker_barrier(w);
    }
    for (size_t i = 0; i < w->scratch_bytes; i++)
        if (((const uint8_t *)w->scratch)[i] != w->id) atomic_fetch_add(&s->errors, 1);
    /* and a claim as the last thing of a job: the next job starts afresh */
    uint32_t begin, end;
    while (realm_worker_claim(w, ITEMS, 3, &begin, &end))
        for (uint32_t i = begin; i < end; i++) s->taken[i]++;
}

static void jobs_run_on_all_and_share_all(void **state) {
    (void)state;
    for (uint32_t n = 1; n <= THREADS_MOST; n++) {
        realm_team *t = open_team(n);
        shared s = {0};
        for (uint32_t run = 1; run <= 10; run++) {
            realm_team_run(t, job, &s);
            assert_int_equal(atomic_load(&s.ran), run * n);
            for (uint32_t i = 0; i < ITEMS - 20; i++) assert_int_equal(s.taken[i], 21 * run);
            for (uint32_t i = 0; i < n; i++) assert_int_equal(s.plain[i], 210 * run);
        }
        assert_int_equal(atomic_load(&s.errors), 0);
        realm_team_close(t);
    }
}

static void sleepers_wake(void **state) {
    (void)state;
    realm_team *t = open_team(3);
    shared s = {0};
    for (uint32_t run = 1; run <= 20; run++) {
        struct timespec pause = {.tv_nsec = 100000 + 50000 * (run % 3)}; /* beyond the time that they spin */
        nanosleep(&pause, NULL);
        realm_team_run(t, job, &s);
        assert_int_equal(atomic_load(&s.ran), run * 3);
    }
    assert_int_equal(atomic_load(&s.errors), 0);
    realm_team_close(t);
}

static void late(realm_worker *w, void *user) {
    shared *s = user;
    meet(w, s);
    for (int i = 0; i < 3; i++) {
        if (w->id == (uint32_t)i % w->n) {
            struct timespec pause = {.tv_nsec = 2000000};
            nanosleep(&pause, NULL);
        }
        s->plain[w->id]++;
        realm_worker_barrier(w);
        if (s->plain[0] != s->plain[w->n - 1]) atomic_fetch_add(&s->errors, 1);
        realm_worker_barrier(w);
    }
}

static void barrier_waits_for_the_late(void **state) {
    (void)state;
    realm_team *t = open_team(2);
    shared s = {0};
    realm_team_run(t, late, &s);
    assert_int_equal(atomic_load(&s.errors), 0);
    assert_int_equal(s.plain[0], 3);
    realm_team_close(t);
}

/* What phase k writes depends on all that phase k - 1 wrote, wherever and by whomever. */
enum { PHASES = 40, CELLS = 64 };
typedef struct chain {
    uint64_t cell[2][CELLS];
    _Atomic uint32_t came_late, came;
    atomic_bool hold; /* who is aside stays there */
    _Atomic uint64_t aside_ns;
} chain;

static uint64_t next_cell(const uint64_t *from, uint32_t i, uint32_t phase) {
    return from[i] * 6364136223846793005u + from[(i + 1 + phase) % CELLS] + phase;
}

static void walk_chain(realm_worker *w, void *user) {
    chain *c = user;
    atomic_fetch_add(&c->came, w->id > 0);
    atomic_fetch_add(&c->came_late, realm_worker_is_behind(w));
    for (uint32_t phase = 0, begin, end; phase < PHASES; phase++) {
        const uint64_t *from = c->cell[phase % 2];
        uint64_t *to = c->cell[1 - phase % 2];
        while (realm_worker_claim(w, CELLS, phase % 5 + 1, &begin, &end))
            for (uint32_t i = begin; i < end; i++) to[i] = next_cell(from, i, phase);
        realm_worker_barrier(w);
    }
}

static void be_busy(void *user) {
    chain *c = user;
    const uint64_t until = realm_clock_ns() + atomic_load(&c->aside_ns);
    while (atomic_load(&c->hold) || realm_clock_ns() < until) continue;
}

static void chain_holds(chain *c) {
    uint64_t expected[2][CELLS];
    for (uint32_t i = 0; i < CELLS; i++) expected[0][i] = i;
    for (uint32_t phase = 0; phase < PHASES; phase++)
        for (uint32_t i = 0; i < CELLS; i++) expected[1 - phase % 2][i] = next_cell(expected[phase % 2], i, phase);
    assert_memory_equal(c->cell[PHASES % 2], expected[PHASES % 2], sizeof expected[0]);
    for (uint32_t i = 0; i < CELLS; i++) c->cell[0][i] = i;
}

/* A thread that is at work aside when a run begins takes part from where it finds the others. */
static void the_late_join_where_the_others_are(void **state) {
    (void)state;
    static chain c;
    for (uint32_t i = 0; i < CELLS; i++) c.cell[0][i] = i;
    for (uint32_t n = 2; n <= THREADS_MOST; n++) {
        realm_team *t = open_team(n);
        for (uint32_t run = 0; run < 3000; run++) {
            atomic_store(&c.aside_ns, run % 61 * 500); /* one that was posted before may still be at it */
            (void)realm_team_aside(t, be_busy, &c);
            realm_team_run(t, walk_chain, &c);
            chain_holds(&c);
        }
        realm_team_close(t);
    }
    assert_true(atomic_load(&c.came_late) > 0); /* of 12,000 runs */
    assert_true(atomic_load(&c.came) > atomic_load(&c.came_late));
}

/* Far more threads than cores, in runs so short that they come and go all the time: the system takes the processor from
 * them wherever they are, also from the one that ends a phase, between what it tells to those who join and what it
 * tells to those who wait. Nobody gets past a barrier before all have come: each cell of a phase is made once, from
 * what the phase before has made. */
enum { CROWD = 16, CROWD_MS = 1500 };
static void a_crowd_comes_and_goes(void **state) {
    (void)state;
    static chain c;
    realm_team *t = open_team(CROWD);
    for (uint32_t i = 0; i < CELLS; i++) c.cell[0][i] = i;
    const uint64_t until = realm_clock_ns() + CROWD_MS * REALM_NS_PER_MS;
    while (realm_clock_ns() < until) {
        realm_team_run(t, walk_chain, &c);
        chain_holds(&c);
    }
    assert_true(atomic_load(&c.came_late) > 0);
    realm_team_close(t);
}

/* And the run does not wait for it. */
static void nobody_waits_for_who_is_aside(void **state) {
    (void)state;
    static chain c;
    if (usable_cores() < 2) skip(); /* nobody spins there */
    realm_team *t = open_team(2);
    bool any = false;
    for (uint32_t i = 0; i < CELLS; i++) c.cell[0][i] = i;
    for (int i = 0; i < 100; i++) {
        shared s = {0};
        realm_team_run(t, job, &s); /* it is awake now */
        atomic_store(&c.came, 0);
        atomic_store(&c.hold, true);
        bool taken = realm_team_aside(t, be_busy, &c);
        for (int run = 0; run < 3; run++) {
            realm_team_run(t, walk_chain, &c);
            chain_holds(&c);
        }
        if (taken) {
            any = true;
            assert_int_equal(atomic_load(&c.came), 0);
            assert_false(realm_team_aside(t, be_busy, &c)); /* nobody spins for it */
        }
        atomic_store(&c.hold, false);
    }
    assert_true(any);
    realm_team_close(t);
}

typedef struct clocks {
    shared s;
    uint64_t at[2];
} clocks;

static void clock_of_worker(realm_worker *w, void *user) {
    clocks *c = user;
    meet(w, &c->s);
    c->at[w->id] = realm_clock_thread_ns();
}

static void idle_threads_sleep(void **state) {
    (void)state;
    realm_team *t = open_team(2);
    clocks before = {0}, after = {0};
    realm_team_run(t, clock_of_worker, &before);
    struct timespec pause = {.tv_nsec = 100000000};
    nanosleep(&pause, NULL);
    realm_team_run(t, clock_of_worker, &after);
    assert_true(after.at[1] - before.at[1] < 20 * REALM_NS_PER_MS);
    realm_team_close(t);
}

/* Posted from two threads, between runs of a third: each task runs once, on a thread of the team, or is refused. */
enum { POSTS = 3000 };
typedef struct poster {
    realm_team *t;
    pthread_t thread, self; /* the same, for those who start it and for itself */
    _Atomic uint32_t ran, taken;
    _Atomic bool over;
    _Atomic uint32_t own; /* ran on the poster's own thread */
} poster;

static void count_aside(void *user) {
    poster *p = user;
    if (pthread_equal(pthread_self(), p->self)) atomic_fetch_add(&p->own, 1);
    atomic_fetch_add(&p->ran, 1);
}

static void *post(void *user) {
    poster *p = user;
    p->self = pthread_self();
    for (int i = 0; i < POSTS; i++)
        if (realm_team_aside(p->t, count_aside, p)) {
            uint32_t n = atomic_fetch_add(&p->taken, 1) + 1;
            if (i % 3 == 0) /* as the engine does */
                while (atomic_load(&p->ran) < n) sched_yield();
        }
    atomic_store(&p->over, true);
    return NULL;
}

static void nothing(realm_worker *w, void *user) { (void)w, (void)user; }

static void tasks_aside(void **state) {
    const struct timespec pause = {.tv_nsec = 200000}; /* the team sleeps meanwhile */
    poster p[2];
    shared s;
    uint32_t runs = 0, taken = 0;
    (void)state;
    for (uint32_t n = 1; n <= 2; n++) {
        realm_team *t = open_team(n);
        s = (shared){.errors = 0};
        for (int i = 0; i < 2; i++) {
            p[i] = (poster){.t = t};
            assert_int_equal(realm_thread_start(&p[i].thread, "poster", post, &p[i], NULL), REALM_OK);
        }
        for (; !atomic_load(&p[0].over) || !atomic_load(&p[1].over); runs++) {
            realm_team_run(t, runs % 2 ? job : nothing, &s);
            if (runs % 5 == 0) nanosleep(&pause, NULL);
        }
        for (int i = 0; i < 2; i++) {
            pthread_join(p[i].thread, NULL);
            while (atomic_load(&p[i].ran) < atomic_load(&p[i].taken)) sched_yield();
            assert_int_equal(atomic_load(&p[i].ran), atomic_load(&p[i].taken));
            assert_int_equal(atomic_load(&p[i].own), 0);
            taken += atomic_load(&p[i].taken);
        }
        if (n == 1) assert_int_equal(taken, 0);
        assert_int_equal(atomic_load(&s.errors), 0);
        realm_team_close(t);
    }
}

static void scratch_grows(void **state) {
    (void)state;
    realm_error err = {0};
    realm_team *t = open_team(3);
    assert_int_equal(realm_team_reserve(t, 100000, &err), REALM_OK);
    shared s = {0};
    realm_team_run(t, job, &s);
    assert_int_equal(atomic_load(&s.errors), 0);
    assert_int_equal(realm_team_reserve(t, SIZE_MAX - 10, &err), REALM_E_NOMEM);
    assert_int_equal(realm_team_reserve(t, SIZE_MAX / 2, &err), REALM_E_NOMEM);
    realm_alloc_inject_failure(0, false);
    assert_int_equal(realm_team_reserve(t, 1000000, &err), REALM_E_NOMEM);
    realm_alloc_inject_failure(-1, false);
    realm_team_run(t, job, &s); /* the old scratch is still there */
    assert_int_equal(atomic_load(&s.errors), 0);
    realm_team_close(t);
}

static void opening_survives_failed_allocations(void **state) {
    (void)state;
    realm_team *t;
    realm_error err = {0};
    for (int64_t after = 0;; after++) {
        realm_alloc_inject_failure(after, false);
        realm_status s = realm_team_open(&t, 2, 1000, &err);
        realm_alloc_inject_failure(-1, false);
        if (s == REALM_OK) {
            assert_true(after > 0);
            realm_team_close(t);
            break;
        }
        assert_int_equal(s, REALM_E_NOMEM);
        assert_null(t);
    }
    assert_int_equal(realm_team_open(&t, 1u << 30, 0, &err), REALM_E_LIMIT);
    realm_team_close(NULL);
}

static void slab_gives_back(void **state) {
    (void)state;
    realm_slab *s = realm_slab_open();
    uint8_t *p[40];
    size_t sizes[] = {1, 4096, 100000, 3 << 20, 20 << 20};
    for (int round = 0; round < 3; round++) {
        for (size_t i = 0; i < REALM_ARRAY_LEN(p); i++) {
            size_t n = sizes[(i + (size_t)round) % REALM_ARRAY_LEN(sizes)];
            p[i] = realm_slab_take(s, n);
            assert_non_null(p[i]);
            assert_int_equal((uintptr_t)p[i] % 4096, 0);
            assert_true(p[i][0] == 0 && p[i][n - 1] == 0);
            p[i][0] = p[i][n - 1] = (uint8_t)(i + 1);
        }
        for (size_t i = 0; i < REALM_ARRAY_LEN(p); i++) { /* nobody wrote into another's */
            size_t at = (i * 7 + 3) % REALM_ARRAY_LEN(p), n = sizes[(at + (size_t)round) % REALM_ARRAY_LEN(sizes)];
            assert_true(p[at][0] == at + 1 && p[at][n - 1] == at + 1);
            realm_slab_give(s, p[at]);
        }
    }
    realm_slab_give(s, NULL);
    assert_null(realm_slab_take(s, 0));
    assert_null(realm_slab_take(s, SIZE_MAX - 5));
    realm_alloc_inject_failure(0, true);
    assert_null(realm_slab_take(s, 100));
    realm_alloc_inject_failure(-1, false);
    assert_non_null(realm_slab_take(s, 100));
    realm_slab_close(s);
    realm_slab_close(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(jobs_run_on_all_and_share_all),
        cmocka_unit_test(sleepers_wake),
        cmocka_unit_test(barrier_waits_for_the_late),
        cmocka_unit_test(the_late_join_where_the_others_are),
        cmocka_unit_test(a_crowd_comes_and_goes),
        cmocka_unit_test(nobody_waits_for_who_is_aside),
        cmocka_unit_test(idle_threads_sleep),
        cmocka_unit_test(tasks_aside),
        cmocka_unit_test(scratch_grows),
        cmocka_unit_test(opening_survives_failed_allocations),
        cmocka_unit_test(slab_gives_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
