/* The pool for what blocks: every job runs once, heavy and quick ones leave threads to each other, tenants take turns,
 * a full queue says so, what touches files is freed by the pool, and what is queued when the pool stops is finished. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "tenant/internal.h"

#define PATIENCE_NS (60 * REALM_NS_PER_S)

typedef struct gate { /* opens once; jobs wait at it */
    realm_mutex mu;
    realm_cond cond;
    bool open;
    int inside, ran, freed;
    const realm_tenant *order[64]; /* whose job ran when */
    pthread_t freed_by;
} gate;

typedef struct gated {
    tenant_job job;
    gate *g;
    bool wait;
} gated;

static void gate_init(gate *g) {
    memset(g, 0, sizeof *g);
    realm_mutex_init(&g->mu, REALM_RANK_LEAF);
    realm_cond_init(&g->cond);
}

static void work(tenant_job *job) {
    gated *j = (gated *)job;
    realm_mutex_lock(&j->g->mu);
    j->g->inside++;
    realm_cond_broadcast(&j->g->cond);
    while (j->wait && !j->g->open) realm_cond_wait(&j->g->cond, &j->g->mu);
    j->g->inside--;
    if (j->g->ran < (int)REALM_ARRAY_LEN(j->g->order)) j->g->order[j->g->ran] = job->tenant;
    j->g->ran++;
    realm_cond_broadcast(&j->g->cond);
    realm_mutex_unlock(&j->g->mu);
}

static void free_job(tenant_job *job) {
    gated *j = (gated *)job;
    realm_mutex_lock(&j->g->mu);
    j->g->freed++;
    j->g->freed_by = pthread_self();
    realm_cond_broadcast(&j->g->cond);
    realm_mutex_unlock(&j->g->mu);
    free(j);
}

static realm_status submit(tenant_jobs *p, realm_tenant *t, gate *g, bool heavy, bool wait, realm_error *err) {
    gated *j = calloc(1, sizeof *j);
    j->g = g;
    j->wait = wait;
    j->job.work = work;
    j->job.free = free_job;
    job_init(&j->job, t, NULL, heavy);
    realm_status s = jobs_submit(p, &j->job, err);
    job_release(&j->job);
    return s;
}

static void until(gate *g, const int *count, int n) {
    const uint64_t deadline_ns = realm_clock_ns() + PATIENCE_NS;
    realm_mutex_lock(&g->mu);
    while (*count < n)
        if (!realm_cond_wait_until(&g->cond, &g->mu, deadline_ns)) fail_msg("%d, not %d", *count, n);
    realm_mutex_unlock(&g->mu);
}

static void open_gate(gate *g) {
    realm_mutex_lock(&g->mu);
    g->open = true;
    realm_cond_broadcast(&g->cond);
    realm_mutex_unlock(&g->mu);
}

static void heavy_jobs_leave_room(void **state) {
    (void)state;
    realm_error err = {0};
    tenant_jobs *p;
    realm_tenant a = {0}, b = {0}, c = {0};
    gate heavy, quick;
    gate_init(&heavy);
    gate_init(&quick);
    assert_int_equal(jobs_open(&p, &err), REALM_OK);
    for (int i = 0; i < 8; i++) assert_int_equal(submit(p, i % 2 ? &a : &c, &heavy, true, true, &err), REALM_OK);
    until(&heavy, &heavy.inside, 2);
    for (int i = 0; i < 32; i++) assert_int_equal(submit(p, &b, &quick, false, false, &err), REALM_OK);
    until(&quick, &quick.freed, 32); /* though the heavy ones are stuck */
    assert_int_equal(heavy.ran, 0);
    assert_int_equal(heavy.inside, 2);
    open_gate(&heavy);
    jobs_stop(p); /* finishes the other six */
    assert_int_equal(heavy.ran, 8);
    assert_int_equal(heavy.freed, 8);
    assert_int_equal(a.refs + b.refs + c.refs, 0);
    assert_int_equal(submit(p, &a, &quick, false, false, &err), REALM_E_CLOSED);
    jobs_close(p);
}

static void a_full_queue_says_so(void **state) {
    (void)state;
    realm_error err = {0};
    tenant_jobs *p;
    enum { TENANTS = 40 };
    static realm_tenant t[TENANTS];
    gate g;
    int accepted = 0, refused = 0;
    gate_init(&g);
    assert_int_equal(jobs_open(&p, &err), REALM_OK);
    for (uint32_t i = 0; i < JOBS_PER_TENANT; i++) assert_int_equal(submit(p, &t[0], &g, false, true, &err), REALM_OK);
    assert_int_equal(submit(p, &t[0], &g, false, true, &err), REALM_E_BUSY);
    assert_non_null(strstr(err.text, "this tenant"));
    accepted = (int)JOBS_PER_TENANT;
    refused = 1;
    until(&g, &g.inside, 4);
    for (int i = 1; i < TENANTS; i++)
        for (uint32_t k = 0; k < JOBS_PER_TENANT; k++) {
            realm_status s = submit(p, &t[i], &g, false, true, &err);
            assert_true(s == REALM_OK || s == REALM_E_BUSY);
            *(s == REALM_OK ? &accepted : &refused) += 1;
        }
    /* The queue, what its threads have taken, and one each of the seven tenants that come when it is full. */
    assert_int_equal(accepted, 1024 + 4 + 7);
    assert_null(strstr(err.text, "this tenant"));
    assert_non_null(strstr(err.text, "calls are waiting"));
    open_gate(&g);
    until(&g, &g.freed, accepted + refused);
    assert_int_equal(g.ran, accepted);
    jobs_stop(p);
    jobs_close(p);
    for (int i = 0; i < TENANTS; i++) assert_int_equal(t[i].refs, 0);
}

/* One tenant has the queue full of jobs that take long; of the two threads for heavy ones it has one. */
static void one_tenant_leaves_a_heavy_thread(void **state) {
    (void)state;
    realm_error err = {0};
    tenant_jobs *p;
    realm_tenant greedy = {0}, other = {0};
    gate stuck, free_one;
    gate_init(&stuck);
    gate_init(&free_one);
    assert_int_equal(jobs_open(&p, &err), REALM_OK);
    for (uint32_t i = 0; i < JOBS_PER_TENANT; i++)
        assert_int_equal(submit(p, &greedy, &stuck, true, true, &err), REALM_OK);
    assert_int_equal(submit(p, &greedy, &stuck, true, true, &err), REALM_E_BUSY);
    until(&stuck, &stuck.inside, 1);
    assert_int_equal(submit(p, &other, &free_one, true, false, &err), REALM_OK);
    until(&free_one, &free_one.freed, 1);
    assert_int_equal(stuck.ran, 0);
    assert_int_equal(stuck.inside, 1);
    open_gate(&stuck);
    jobs_stop(p);
    assert_int_equal(stuck.ran, JOBS_PER_TENANT);
    jobs_close(p);
}

/* What came first of one tenant does not go before what another has waiting: one thread is left, it serves in turn. */
static void tenants_take_turns(void **state) {
    (void)state;
    realm_error err = {0};
    tenant_jobs *p;
    realm_tenant x = {0}, y = {0}, a = {0}, b = {0}, c = {0};
    const realm_tenant *const turns[] = {&a, &b, &c, &a, &b, &a, &a};
    for (int heavy = 0; heavy < 2; heavy++) {
        gate stuck, until_queued, log;
        gate_init(&stuck);
        gate_init(&until_queued);
        gate_init(&log);
        assert_int_equal(jobs_open(&p, &err), REALM_OK);
        const int held = heavy ? 1 : 3; /* threads that stay where they are */
        for (int i = 0; i < held; i++) assert_int_equal(submit(p, &x, &stuck, heavy, true, &err), REALM_OK);
        assert_int_equal(submit(p, &y, &until_queued, heavy, true, &err), REALM_OK);
        until(&stuck, &stuck.inside, held);
        until(&until_queued, &until_queued.inside, 1);
        for (int i = 0; i < 4; i++) assert_int_equal(submit(p, &a, &log, heavy, false, &err), REALM_OK);
        for (int i = 0; i < 2; i++) assert_int_equal(submit(p, &b, &log, heavy, false, &err), REALM_OK);
        assert_int_equal(submit(p, &c, &log, heavy, false, &err), REALM_OK);
        open_gate(&until_queued);
        until(&log, &log.freed, (int)REALM_ARRAY_LEN(turns));
        for (size_t i = 0; i < REALM_ARRAY_LEN(turns); i++) assert_ptr_equal(log.order[i], turns[i]);
        open_gate(&stuck);
        jobs_stop(p);
        jobs_close(p);
    }
}

/* Quick jobs that never end coming leave no moment in which none waits: one tenant's heavy job runs all the same. */
static void quick_jobs_hold_up_no_heavy_one(void **state) {
    (void)state;
    realm_error err = {0};
    tenant_jobs *p;
    realm_tenant x = {0}, flood = {0}, other = {0};
    gate stuck, until_queued, log;
    gate_init(&stuck);
    gate_init(&until_queued);
    gate_init(&log);
    assert_int_equal(jobs_open(&p, &err), REALM_OK);
    for (int i = 0; i < 3; i++) assert_int_equal(submit(p, &x, &stuck, false, true, &err), REALM_OK);
    assert_int_equal(submit(p, &x, &until_queued, false, true, &err), REALM_OK);
    until(&stuck, &stuck.inside, 3);
    until(&until_queued, &until_queued.inside, 1);
    for (int i = 0; i < 20; i++) assert_int_equal(submit(p, &flood, &log, false, false, &err), REALM_OK);
    assert_int_equal(submit(p, &other, &log, true, false, &err), REALM_OK);
    open_gate(&until_queued); /* one thread serves */
    until(&log, &log.freed, 21);
    assert_ptr_equal(log.order[0], &other);
    open_gate(&stuck);
    jobs_stop(p);
    jobs_close(p);
}

/* A program's worker lets go of a job last: what blocks in `free` is for the pool; afterwards, for whoever is left. */
static void files_are_let_go_by_the_pool(void **state) {
    (void)state;
    realm_error err = {0};
    tenant_jobs *p;
    realm_tenant t = {0};
    gate g;
    gate_init(&g);
    assert_int_equal(jobs_open(&p, &err), REALM_OK);
    for (int after = 0; after < 2; after++) {
        gated *j = calloc(1, sizeof *j);
        j->g = &g;
        j->job.work = work;
        j->job.free = free_job;
        job_init(&j->job, &t, NULL, false);
        j->job.free_blocks = true;
        assert_int_equal(jobs_submit(p, &j->job, &err), REALM_OK);
        until(&g, &g.ran, after + 1);
        while (j->job.refs > 1) sched_yield(); /* the pool's own */
        if (after) jobs_stop(p);
        job_release(&j->job);
        until(&g, &g.freed, after + 1);
        assert_int_equal(!pthread_equal(g.freed_by, pthread_self()), !after);
    }
    jobs_close(p);
    assert_int_equal(t.refs, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(heavy_jobs_leave_room),
        cmocka_unit_test(a_full_queue_says_so),
        cmocka_unit_test(one_tenant_leaves_a_heavy_thread),
        cmocka_unit_test(tenants_take_turns),
        cmocka_unit_test(quick_jobs_hold_up_no_heavy_one),
        cmocka_unit_test(files_are_let_go_by_the_pool),
    };
    return cmocka_run_group_tests_name("jobs", tests, NULL, NULL);
}
