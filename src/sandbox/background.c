/* sandbox/background.c - programs in debt: idle workers, and porters between them and everything else.
 *
 *      worker: over its credit
 *         |
 *         v         own code comes next        +------+   code until it calls,     +------+
 *      realm_background_push ----------------> | ASIDE | --- ends, was long ------> | AWAY |
 *         |    ^                               +------+     an idle worker          +------+
 *         |    |                                  |                                     |
 *         |    | still in debt                    | killed                              v
 *         +----|--------------------------------->+---------------------------> QUEUED, porters' inbox
 *              |                                                                        |
 *              +---- porter: charges it, runs its call, ends it <-----------------------+
 *
 * Idle workers have the policy for idle time: while a processor is idle they run at full speed, and while others need
 * all of them each gets a few milliseconds once in a second or so. A lock that one of them held then would be held for
 * as long, and nothing raises it: the kernel lends priority to who holds a lock among real-time threads alone, and a
 * process that is not privileged may not take a thread out of that policy, not even its own. So an idle worker runs
 * programs' own code and nothing else: no host call but those that have no flag and take no lock, no charge, no end.
 * All that is a porter's, a thread like any worker. What passes between the two is pushed without a lock and counted by
 * a semaphore, and the lock by which idle workers take turns at their inbox is theirs alone. What is left is what the
 * allocator, Wasmtime and the kernel lock for themselves, where code traps, makes a call or touches new memory.
 *
 * Each of a program's calls, and each REALM_CODE_NS of its code, costs a change of thread: a program with many short
 * calls that does not want that has a third of a processor without it.
 *
 * One that is to end does not wait for idle time. In the inbox it changes to the porters at once, and what is left of
 * it there, a reference, is dropped when an idle worker comes by (`stale`). With an idle worker it comes out at the
 * next tick that finds it on a processor; where the process may, it is raised for that.
 */
#include <errno.h>
#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include "sandbox/internal.h"

#define SLOW_NICE 19

/* ---- inbox ---- */

static realm_instance **link_of(const realm_inbox *q, realm_instance *i) {
    return q->idle ? &i->next_idle : &i->next_ready;
}

/* Release: who takes it over sees what was written before. */
static void stack_push(_Atomic(realm_instance *) *top, realm_instance *i, realm_instance **next) {
    realm_instance *old = atomic_load_explicit(top, memory_order_relaxed);
    do *next = old;
    while (!atomic_compare_exchange_weak_explicit(top, &old, i, memory_order_release, memory_order_relaxed));
}

static void inbox_push(realm_inbox *q, realm_instance *i) {
    atomic_fetch_add_explicit(&q->n, 1, memory_order_relaxed);
    stack_push(&q->pushed, i, link_of(q, i));
    sem_post(&q->sem);
}

/* Turns what was pushed round and hangs it behind the rest; under mu. */
static void take_over(realm_inbox *q) {
    realm_instance *i = atomic_exchange_explicit(&q->pushed, NULL, memory_order_acquire), *first = NULL, *last = i;
    while (i) {
        realm_instance *older = *link_of(q, i);
        *link_of(q, i) = first;
        first = i;
        i = older;
    }
    if (!first) return;
    if (q->tail)
        *link_of(q, q->tail) = first;
    else
        q->head = first;
    q->tail = last;
}

/* What is there, or NULL. */
static realm_instance *inbox_get(realm_inbox *q) {
    realm_mutex_lock(&q->mu);
    if (!q->head) take_over(q);
    realm_instance *i = q->head;
    if (i) {
        q->head = *link_of(q, i);
        if (!q->head) q->tail = NULL;
        atomic_fetch_sub_explicit(&q->n, 1, memory_order_relaxed);
    }
    realm_mutex_unlock(&q->mu);
    return i;
}

/* Waits for one; NULL: this thread is to end. */
static realm_instance *inbox_take(realm_inbox *q) {
    while (sem_wait(&q->sem) && errno == EINTR) {
    }
    return inbox_get(q);
}

/* ---- idle workers ---- */

/* The policy for idle time: the kernel counts a processor that runs nothing else as free, so it moves others there at
 * once, which a low priority alone does not do. Where neither works, programs that spin are merely less polite. */
static void be_idle(void) {
    struct sched_param none = {0};
    if (sched_setscheduler(0, SCHED_IDLE, &none)) (void)setpriority(PRIO_PROCESS, (id_t)gettid(), SLOW_NICE);
}

/* Where it is allowed (CAP_SYS_NICE, RLIMIT_NICE); it goes back by itself. */
static void hurry(realm_idler *w) {
    struct sched_param none = {0};
    pid_t tid = atomic_load_explicit(&w->tid, memory_order_relaxed);
    if (tid && sched_setscheduler(tid, SCHED_BATCH, &none) == 0)
        atomic_store_explicit(&w->hurried, true, memory_order_relaxed);
}

static void *idler_main(void *arg) {
    realm_idler *w = arg;
    realm_sandbox *s = w->sandbox;
    realm_instance *i;
    be_idle();
    atomic_store_explicit(&w->tid, gettid(), memory_order_relaxed);
    while ((i = inbox_take(&s->idle))) {
        int aside = REALM_INST_ASIDE;
        if (atomic_exchange_explicit(&w->hurried, false, memory_order_relaxed)) be_idle();
        /* Its own reference, or the one of what it has been, keeps it from going here. */
        atomic_store_explicit(&i->idler, w, memory_order_relaxed);
        if (!atomic_compare_exchange_strong(&i->state, &aside, REALM_INST_AWAY)) {
            stack_push(&s->stale, i, &i->next_idle); /* the last one to let go of it frees it: not here */
            continue;
        }
        realm_instance_run_code(i);
        realm_instance_release(i); /* not the last: it has not ended */
        atomic_store(&i->state, REALM_INST_QUEUED);
        inbox_push(&s->porters, i);
    }
    return NULL;
}

/* ---- porters ---- */

static void drop_stale(realm_sandbox *s) {
    realm_instance *i = atomic_exchange_explicit(&s->stale, NULL, memory_order_acquire);
    while (i) {
        realm_instance *next = i->next_idle;
        realm_instance_release(i);
        i = next;
    }
}

static void *porter_main(void *arg) {
    realm_sandbox *s = arg;
    realm_instance *i;
    realm_thread_be_modest();
    while ((i = inbox_take(&s->porters))) {
        realm_instance_run(i, NULL);
        if (atomic_load_explicit(&s->stale, memory_order_relaxed)) drop_stale(s);
    }
    return NULL;
}

/* ---- between them and others ---- */

/* From ASIDE alone: what an idle worker holds of it then is a reference. */
static bool call_back(realm_sandbox *s, realm_instance *i) {
    int aside = REALM_INST_ASIDE;
    if (!atomic_compare_exchange_strong(&i->state, &aside, REALM_INST_QUEUED)) return false;
    inbox_push(&s->porters, i);
    return true;
}

void realm_background_push(realm_sandbox *s, realm_instance *i) {
    if (!realm_instance_is_code(i)) {
        inbox_push(&s->porters, i);
        return;
    }
    /* From here to the porter that gets it back, the clock ticks for it: an idle worker could not ask for that. */
    i->away = true;
    i->away_cpu_ns = 0;
    realm_sched_slice_begin(s, i, false);
    realm_instance_retain(i); /* for the inbox */
    realm_instance_retain(i); /* until the end of this function */
    atomic_store(&i->state, REALM_INST_ASIDE);
    inbox_push(&s->idle, i);
    /* seq_cst: who kills it sets `kill` and then looks at `state`; here it is the other way round. */
    if (atomic_load(&i->kill)) (void)call_back(s, i);
    realm_instance_release(i);
}

bool realm_background_kill(realm_sandbox *s, realm_instance *i) {
    if (call_back(s, i)) return true;
    if (atomic_load(&i->state) != REALM_INST_AWAY) return false;
    realm_idler *w = atomic_load_explicit(&i->idler, memory_order_relaxed);
    if (w) hurry(w);
    return true;
}

realm_status realm_background_start(realm_sandbox *s, realm_error *err) {
    realm_status st;
    for (; s->n_porters < s->n_workers; s->n_porters++)
        if ((st = realm_thread_start(&s->porter_threads[s->n_porters], "sandbox-porter", porter_main, s, err)))
            return st;
    for (; s->n_idlers < s->n_workers; s->n_idlers++) {
        realm_idler *w = &s->idlers[s->n_idlers];
        w->sandbox = s;
        if ((st = realm_thread_start(&w->thread, "sandbox-idle", idler_main, w, err))) return st;
    }
    return REALM_OK;
}

void realm_background_stop(realm_sandbox *s) {
    realm_instance *i;
    for (uint32_t k = 0; k < s->n_idlers; k++) hurry(&s->idlers[k]);
    while ((i = inbox_get(&s->idle))) realm_instance_release(i); /* each one stale; the semaphore runs ahead */
    for (uint32_t k = 0; k < s->n_idlers; k++) sem_post(&s->idle.sem);
    for (uint32_t k = 0; k < s->n_porters; k++) sem_post(&s->porters.sem);
    for (uint32_t k = 0; k < s->n_idlers; k++) pthread_join(s->idlers[k].thread, NULL);
    for (uint32_t k = 0; k < s->n_porters; k++) pthread_join(s->porter_threads[k], NULL);
    drop_stale(s);
}
