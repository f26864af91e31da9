/* tenant/jobs.c - a few threads for what blocks: the database, model files, compiling.
 *
 *      host call --jobs_submit--> [queue] --work--> done --> instance woken --> host call goes on, reads the result
 *          |                                          |
 *          +------- job_release (instance ended) -----+---- the last of the two frees it
 *
 * A sandbox worker never waits for a disk: the call copies what it needs into a job, suspends its program, and finds
 * the job done when it is woken. A job outlives its program when that is ended meanwhile, so it holds nothing of it but
 * the instance to wake.
 *
 * Two kinds: quick ones (a transaction) and heavy ones (loading a model, compiling), which may occupy only a part of
 * the threads, so that the quick ones of others never wait behind minutes of work; nor do the heavy ones wait until
 * there are no quick ones. No tenant holds up another: of each kind the tenants that have something waiting take turns
 * (base/rota.h), a tenant runs one heavy job at a time, and it may have so many of each kind under way. Past that, and
 * past the length of the queue, the answer is REALM_E_BUSY; one waiting job of each tenant is always taken.
 *
 * A job whose `free` touches files as well is freed by a thread of the pool, whoever lets go of it last.
 */
#include "base/alloc.h"
#include "tenant/internal.h"

#define JOBS_THREADS 4u
#define JOBS_HEAVY_THREADS 2u
#define JOBS_HEAVY_OF_TENANT 1u /* run at a time */
#define JOBS_QUEUED_MAX 1024u

struct tenant_jobs {
    realm_mutex mu;
    realm_cond work;
    realm_rota turns[2]; /* of tenants: for quick jobs, for heavy ones */
    tenant_job *garbage; /* to be freed here */
    bool stop;
    pthread_t threads[JOBS_THREADS];
    uint32_t n_threads;
};

/* The next job that may run now; `mu` is held. A heavy one first: they have a part of the threads at most, and however
 * many quick ones come it is theirs. */
static tenant_job *take(tenant_jobs *p) {
    realm_rota_item *x = realm_rota_take(&p->turns[true]);
    return (tenant_job *)(x ? x : realm_rota_take(&p->turns[false]));
}

static uint64_t owner_of(const tenant_job *job) { return (uintptr_t)job->tenant; }

static void ended(tenant_jobs *p, const tenant_job *job) {
    realm_rota_done(&p->turns[job->heavy], owner_of(job));
    if (job->heavy && (p->turns[true].n_waiting > 0 || p->stop)) realm_cond_broadcast(&p->work);
}

/* ---- threads ----------------------------------------------------------------------------------------------------- */

static void job_free(tenant_job *job) {
    realm_tenant *t = job->tenant;
    job->free(job);
    realm_tenant_release(t);
}

/* Drops a reference; true when it was the last, and freeing is left to do. */
static bool drop(tenant_job *job) {
    /* acq_rel: whoever drops the last reference sees what the other did */
    if (atomic_fetch_sub_explicit(&job->refs, 1, memory_order_acq_rel) != 1) return false;
    realm_instance_release(job->instance);
    return true;
}

static void *pool_thread(void *arg) {
    tenant_jobs *p = arg;
    realm_mutex_lock(&p->mu);
    for (;;) {
        tenant_job *old = p->garbage;
        if (old) { /* before what waits, so that there is never more of it than of finished jobs */
            p->garbage = old->next;
            realm_mutex_unlock(&p->mu);
            job_free(old);
            realm_mutex_lock(&p->mu);
            continue;
        }
        tenant_job *job = take(p);
        if (!job && p->stop && p->turns[true].n_waiting == 0) break;
        if (!job) {
            realm_cond_wait(&p->work, &p->mu);
            continue;
        }
        realm_mutex_unlock(&p->mu);
        job->work(job);
        realm_mutex_lock(&p->mu);
        ended(p, job); /* before its program is told: the next call finds it gone */
        realm_mutex_unlock(&p->mu);
        /* release: the call that finds it done sees what the work wrote */
        atomic_store_explicit(&job->done, true, memory_order_release);
        if (job->instance) realm_instance_wake(job->instance);
        if (drop(job)) job_free(job);
        realm_mutex_lock(&p->mu);
    }
    realm_mutex_unlock(&p->mu);
    return NULL;
}

realm_status jobs_open(tenant_jobs **out, realm_error *err) {
    tenant_jobs *p = realm_calloc(1, sizeof *p);
    if (!p) return realm_error_set(err, REALM_E_NOMEM, "runtime: out of memory");
    realm_rota_init(&p->turns[false], JOBS_THREADS, JOBS_THREADS);
    realm_rota_init(&p->turns[true], JOBS_HEAVY_THREADS, JOBS_HEAVY_OF_TENANT);
    realm_mutex_init(&p->mu, REALM_RANK_QUEUE);
    realm_cond_init(&p->work);
    for (; p->n_threads < JOBS_THREADS; p->n_threads++) {
        realm_status s = realm_thread_start(&p->threads[p->n_threads], "realm-jobs", pool_thread, p, err);
        if (s != REALM_OK) {
            jobs_stop(p);
            jobs_close(p);
            return s;
        }
    }
    *out = p;
    return REALM_OK;
}

void jobs_stop(tenant_jobs *p) {
    if (!p) return;
    realm_mutex_lock(&p->mu);
    p->stop = true;
    realm_cond_broadcast(&p->work);
    realm_mutex_unlock(&p->mu);
    for (uint32_t i = 0; i < p->n_threads; i++) pthread_join(p->threads[i], NULL);
    p->n_threads = 0;
}

void jobs_close(tenant_jobs *p) {
    if (!p) return;
    realm_cond_destroy(&p->work);
    realm_mutex_destroy(&p->mu);
    realm_free(p);
}

void job_init(tenant_job *job, realm_tenant *t, realm_instance *instance, bool heavy) {
    /* relaxed: the caller holds a reference already */
    atomic_fetch_add_explicit(&t->refs, 1, memory_order_relaxed);
    job->tenant = t;
    job->instance = instance ? realm_instance_retain(instance) : NULL;
    job->heavy = heavy;
    atomic_init(&job->refs, 1);
    atomic_init(&job->done, false);
}

realm_status jobs_submit(tenant_jobs *p, tenant_job *job, realm_error *err) {
    static const char *const KIND[] = {"store", "loading, storing and compiling"};
    const uint64_t owner = owner_of(job);
    realm_rota *t = &p->turns[job->heavy];
    realm_status s = REALM_OK;
    realm_mutex_lock(&p->mu);
    const uint32_t waiting = realm_rota_waiting(t, owner);
    if (p->stop)
        s = realm_error_set(err, REALM_E_CLOSED, "the server is closing");
    else if (waiting + realm_rota_placed(t, owner) >= JOBS_PER_TENANT)
        s = realm_error_set(err, REALM_E_BUSY, "%u calls of this tenant are waiting for %s already", JOBS_PER_TENANT,
                            KIND[job->heavy]);
    else if (t->n_waiting >= JOBS_QUEUED_MAX && waiting > 0)
        s = realm_error_set(err, REALM_E_BUSY, "%u calls are waiting for %s already", t->n_waiting, KIND[job->heavy]);
    if (s == REALM_OK) {
        atomic_fetch_add_explicit(&job->refs, 1, memory_order_relaxed);
        job->pool = p;
        realm_rota_push(t, &job->turn, owner);
        realm_cond_signal(&p->work);
    }
    realm_mutex_unlock(&p->mu);
    return s;
}

void jobs_queued(tenant_jobs *p, uint32_t n[2]) {
    realm_mutex_lock(&p->mu);
    for (int heavy = 0; heavy < 2; heavy++) n[heavy] = p->turns[heavy].n_waiting;
    realm_mutex_unlock(&p->mu);
}

void job_release(tenant_job *job) {
    if (!job || !drop(job)) return;
    tenant_jobs *p = job->pool;
    bool here = true;
    if (job->free_blocks && p) { /* one that was never submitted has nothing to block for yet */
        realm_mutex_lock(&p->mu);
        if (!p->stop) { /* then its threads end, and nobody is held up any more */
            here = false;
            job->next = p->garbage;
            p->garbage = job;
            realm_cond_signal(&p->work);
        }
        realm_mutex_unlock(&p->mu);
    }
    if (here) job_free(job);
}
