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
 * the threads, so that the quick ones of others never wait behind minutes of work. A tenant may have so many of each
 * kind under way; past that, and past the length of the queue, the answer is REALM_E_BUSY.
 */
#include "base/alloc.h"
#include "tenant/internal.h"

#define JOBS_THREADS 4u
#define JOBS_HEAVY_THREADS 2u
#define JOBS_QUEUED_MAX 1024u

typedef struct job_list {
    tenant_job *first, **end;
    uint32_t n;
} job_list;

struct tenant_jobs {
    realm_mutex mu;
    realm_cond work;
    job_list quick, heavy;
    uint32_t heavy_running;
    bool stop;
    pthread_t threads[JOBS_THREADS];
    uint32_t n_threads;
};

static void list_init(job_list *l) {
    l->first = NULL;
    l->end = &l->first;
    l->n = 0;
}

static void list_push(job_list *l, tenant_job *job) {
    job->next = NULL;
    *l->end = job;
    l->end = &job->next;
    l->n++;
}

static tenant_job *list_pop(job_list *l) {
    tenant_job *job = l->first;
    if (!job) return NULL;
    l->first = job->next;
    if (!l->first) l->end = &l->first;
    l->n--;
    return job;
}

/* The next job that may run now; `mu` is held. */
static tenant_job *take(tenant_jobs *p) {
    tenant_job *job = list_pop(&p->quick);
    if (!job && p->heavy_running < JOBS_HEAVY_THREADS && (job = list_pop(&p->heavy))) p->heavy_running++;
    return job;
}

static void *pool_thread(void *arg) {
    tenant_jobs *p = arg;
    realm_mutex_lock(&p->mu);
    for (;;) {
        tenant_job *job = take(p);
        if (!job && p->stop && !p->heavy.first) break;
        if (!job) {
            realm_cond_wait(&p->work, &p->mu);
            continue;
        }
        bool heavy = job->heavy;
        realm_mutex_unlock(&p->mu);
        job->work(job);
        /* relaxed: a count that only bounds */
        atomic_fetch_sub_explicit(&job->tenant->jobs[heavy], 1, memory_order_relaxed);
        /* release: the call that finds it done sees what the work wrote */
        atomic_store_explicit(&job->done, true, memory_order_release);
        if (job->instance) realm_instance_wake(job->instance);
        job_release(job);
        realm_mutex_lock(&p->mu);
        if (heavy) {
            p->heavy_running--;
            if (p->heavy.first || p->stop) realm_cond_broadcast(&p->work);
        }
    }
    realm_mutex_unlock(&p->mu);
    return NULL;
}

realm_status jobs_open(tenant_jobs **out, realm_error *err) {
    tenant_jobs *p = realm_calloc(1, sizeof *p);
    if (!p) return realm_error_set(err, REALM_E_NOMEM, "runtime: out of memory");
    realm_mutex_init(&p->mu, REALM_RANK_QUEUE);
    realm_cond_init(&p->work);
    list_init(&p->quick);
    list_init(&p->heavy);
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
    atomic_uint *own = &job->tenant->jobs[job->heavy];
    if (atomic_fetch_add_explicit(own, 1, memory_order_relaxed) >= JOBS_PER_TENANT) {
        atomic_fetch_sub_explicit(own, 1, memory_order_relaxed);
        return realm_error_set(err, REALM_E_BUSY, "%u calls of this tenant are waiting for %s already", JOBS_PER_TENANT,
                               KIND[job->heavy]);
    }
    job_list *l = job->heavy ? &p->heavy : &p->quick;
    realm_status s = REALM_OK;
    realm_mutex_lock(&p->mu);
    if (p->stop)
        s = realm_error_set(err, REALM_E_CLOSED, "the server is closing");
    else if (l->n >= JOBS_QUEUED_MAX)
        s = realm_error_set(err, REALM_E_BUSY, "%u calls are waiting for %s already", JOBS_QUEUED_MAX,
                            KIND[job->heavy]);
    if (s == REALM_OK) {
        atomic_fetch_add_explicit(&job->refs, 1, memory_order_relaxed);
        list_push(l, job);
        realm_cond_signal(&p->work);
    }
    realm_mutex_unlock(&p->mu);
    if (s != REALM_OK) atomic_fetch_sub_explicit(own, 1, memory_order_relaxed);
    return s;
}

void job_release(tenant_job *job) {
    /* acq_rel: whoever drops the last reference sees what the other did */
    if (!job || atomic_fetch_sub_explicit(&job->refs, 1, memory_order_acq_rel) != 1) return;
    realm_tenant *t = job->tenant;
    realm_instance_release(job->instance);
    job->free(job);
    realm_tenant_release(t);
}
