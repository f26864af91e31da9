#include "base/thread.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"

#ifdef REALM_DEBUG
#define HELD_MAX 16
static _Thread_local int held[HELD_MAX];
static _Thread_local int n_held;

static void rank_take(int rank) {
    if (n_held > 0 && held[n_held - 1] >= rank) {
        fprintf(stderr, "lock rank violated: %d taken while %d is held\n", rank, held[n_held - 1]);
        abort();
    }
    assert(n_held < HELD_MAX);
    held[n_held++] = rank;
}

static void rank_drop(int rank) {
    for (int i = n_held - 1; i >= 0; i--) {
        if (held[i] != rank) continue;
        memmove(&held[i], &held[i + 1], (size_t)(n_held - 1 - i) * sizeof held[0]);
        n_held--;
        return;
    }
    abort(); /* unlocked what was not locked */
}
#else
static void rank_take(int rank) { (void)rank; }
static void rank_drop(int rank) { (void)rank; }
#endif

void realm_mutex_init(realm_mutex *mu, realm_lock_rank rank) {
    pthread_mutex_init(&mu->m, NULL);
    mu->rank = (int)rank;
}

void realm_mutex_destroy(realm_mutex *mu) { pthread_mutex_destroy(&mu->m); }

void realm_mutex_lock(realm_mutex *mu) {
    rank_take(mu->rank);
    pthread_mutex_lock(&mu->m);
}

void realm_mutex_unlock(realm_mutex *mu) {
    rank_drop(mu->rank); /* first: once unlocked, another thread may free the mutex */
    pthread_mutex_unlock(&mu->m);
}

void realm_cond_init(realm_cond *c) {
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&c->c, &attr);
    pthread_condattr_destroy(&attr);
}

void realm_cond_destroy(realm_cond *c) { pthread_cond_destroy(&c->c); }
void realm_cond_wait(realm_cond *c, realm_mutex *mu) { pthread_cond_wait(&c->c, &mu->m); }

bool realm_cond_wait_until(realm_cond *c, realm_mutex *mu, uint64_t deadline_ns) {
    struct timespec ts = {.tv_sec = (time_t)(deadline_ns / REALM_NS_PER_S),
                          .tv_nsec = (long)(deadline_ns % REALM_NS_PER_S)};
    return pthread_cond_timedwait(&c->c, &mu->m, &ts) != ETIMEDOUT;
}

void realm_cond_signal(realm_cond *c) { pthread_cond_signal(&c->c); }
void realm_cond_broadcast(realm_cond *c) { pthread_cond_broadcast(&c->c); }

realm_status realm_thread_start(pthread_t *t, const char *name, void *(*fn)(void *), void *arg, realm_error *err) {
    sigset_t all, old;
    sigfillset(&all);
    /* Synchronous faults must stay deliverable: the sandbox turns them into traps. */
    sigdelset(&all, SIGSEGV);
    sigdelset(&all, SIGBUS);
    sigdelset(&all, SIGILL);
    sigdelset(&all, SIGFPE);
    sigdelset(&all, SIGTRAP);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int e = pthread_create(t, NULL, fn, arg);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (e != 0) return realm_error_set(err, REALM_E_NOMEM, "cannot start thread %s: %s", name, strerror(e));
    char short_name[16];
    snprintf(short_name, sizeof short_name, "%s", name);
    (void)pthread_setname_np(*t, short_name);
    return REALM_OK;
}

struct realm_queue {
    realm_mutex mu;
    realm_cond nonempty;
    bool shut;
    size_t head, len, cap;
    void *items[];
};

realm_status realm_queue_open(realm_queue **out, size_t capacity, realm_error *err) {
    size_t bytes;
    realm_queue *q = NULL;
    if (capacity > 0 && realm_mul_size(capacity, sizeof(void *), &bytes) && realm_add_size(bytes, sizeof *q, &bytes))
        q = realm_calloc(1, bytes);
    if (!q) return realm_error_set(err, REALM_E_NOMEM, "no memory for a queue of %zu", capacity);
    q->cap = capacity;
    realm_mutex_init(&q->mu, REALM_RANK_QUEUE);
    realm_cond_init(&q->nonempty);
    *out = q;
    return REALM_OK;
}

void realm_queue_close(realm_queue *q) {
    if (!q) return;
    realm_cond_destroy(&q->nonempty);
    realm_mutex_destroy(&q->mu);
    realm_free(q);
}

realm_status realm_queue_push(realm_queue *q, void *item, bool *was_empty) {
    realm_status s = REALM_OK;
    realm_mutex_lock(&q->mu);
    if (was_empty) *was_empty = q->len == 0;
    if (q->shut) {
        s = REALM_E_CLOSED;
    } else if (q->len == q->cap) {
        s = REALM_E_AGAIN;
    } else {
        q->items[(q->head + q->len++) % q->cap] = item;
        realm_cond_signal(&q->nonempty);
    }
    realm_mutex_unlock(&q->mu);
    return s;
}

static void *take(realm_queue *q) {
    if (q->len == 0) return NULL;
    void *item = q->items[q->head];
    q->head = (q->head + 1) % q->cap;
    q->len--;
    return item;
}

void *realm_queue_pop_wait(realm_queue *q) { return realm_queue_pop_until(q, UINT64_MAX); }

void *realm_queue_pop_until(realm_queue *q, uint64_t deadline_ns) {
    realm_mutex_lock(&q->mu);
    while (q->len == 0 && !q->shut) {
        if (deadline_ns == UINT64_MAX)
            realm_cond_wait(&q->nonempty, &q->mu);
        else if (!realm_cond_wait_until(&q->nonempty, &q->mu, deadline_ns))
            break;
    }
    void *item = take(q);
    realm_mutex_unlock(&q->mu);
    return item;
}

void realm_queue_shut(realm_queue *q) {
    realm_mutex_lock(&q->mu);
    q->shut = true;
    realm_cond_broadcast(&q->nonempty);
    realm_mutex_unlock(&q->mu);
}
