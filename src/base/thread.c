#include "base/thread.h"

#include <assert.h>
#include <errno.h>
#include <sched.h>
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

void realm_thread_be_modest(void) {
    struct sched_param none = {0};
    (void)sched_setscheduler(0, SCHED_BATCH, &none);
}
