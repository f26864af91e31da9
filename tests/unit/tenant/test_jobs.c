/* The pool for what blocks: every job runs once, heavy ones leave threads to quick ones, a full queue says so, and what
 * is queued when the pool stops is finished. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tenant/internal.h"

typedef struct gate { /* opens once; jobs wait at it */
    realm_mutex mu;
    realm_cond cond;
    bool open;
    int inside, ran, freed;
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
    j->g->ran++;
    realm_cond_broadcast(&j->g->cond);
    realm_mutex_unlock(&j->g->mu);
}

static void free_job(tenant_job *job) {
    gated *j = (gated *)job;
    realm_mutex_lock(&j->g->mu);
    j->g->freed++;
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
    realm_mutex_lock(&g->mu);
    while (*count < n) realm_cond_wait(&g->cond, &g->mu);
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
    realm_tenant a = {0}, b = {0};
    gate heavy, quick;
    gate_init(&heavy);
    gate_init(&quick);
    assert_int_equal(jobs_open(&p, &err), REALM_OK);
    for (int i = 0; i < 8; i++) assert_int_equal(submit(p, &a, &heavy, true, true, &err), REALM_OK);
    until(&heavy, &heavy.inside, 2);
    for (int i = 0; i < 32; i++) assert_int_equal(submit(p, &b, &quick, false, false, &err), REALM_OK);
    until(&quick, &quick.freed, 32); /* though the heavy ones are stuck */
    assert_int_equal(heavy.ran, 0);
    assert_int_equal(heavy.inside, 2);
    open_gate(&heavy);
    jobs_stop(p); /* finishes the other six */
    assert_int_equal(heavy.ran, 8);
    assert_int_equal(heavy.freed, 8);
    assert_int_equal(a.refs + b.refs, 0);
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
    assert_int_equal(accepted, 1024 + 4); /* the queue, and what its threads have taken */
    assert_null(strstr(err.text, "this tenant"));
    open_gate(&g);
    until(&g, &g.freed, accepted + refused);
    assert_int_equal(g.ran, accepted);
    jobs_stop(p);
    jobs_close(p);
    for (int i = 0; i < TENANTS; i++) assert_int_equal(t[i].jobs[0] + t[i].refs, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(heavy_jobs_leave_room),
        cmocka_unit_test(a_full_queue_says_so),
    };
    return cmocka_run_group_tests_name("jobs", tests, NULL, NULL);
}
