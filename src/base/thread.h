/* base/thread.h - threads, ranked mutexes and conditions.
 *
 * Lock ranks: a thread may take a mutex only if its rank is greater than that of every mutex it holds. Builds with
 * REALM_DEBUG check this and abort on a violation (a programming error). The ranks of all locks stand in one list here
 * so that the order can be read in one place.
 */
#ifndef REALM_BASE_THREAD_H
#define REALM_BASE_THREAD_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/base.h"

typedef enum realm_lock_rank {
    REALM_RANK_API = 10,     /* tables of the protocol adapters */
    REALM_RANK_RUNTIME = 20, /* tenant table, program table */
    REALM_RANK_TENANT = 30,  /* one tenant's limits and counters */
    REALM_RANK_REQUEST = 40, /* one request's output ring */
    REALM_RANK_SANDBOX = 50, /* handles behind one instance's host calls */
    REALM_RANK_ENGINE = 60,  /* one generation's event ring */
    REALM_RANK_CONTEXT = 65, /* one context of the engine */
    REALM_RANK_LEDGER = 68,  /* what waits to be written to the store's ledger */
    REALM_RANK_STORE = 70,   /* the store's connection */
    REALM_RANK_NOTIFY = 75,  /* held while a consumer's on_ready runs */
    REALM_RANK_QUEUE = 80,   /* what waits for threads of a pool */
    REALM_RANK_PAGES = 85,   /* who holds which KV page */
    REALM_RANK_LEAF = 90     /* anything that calls nothing while held */
} realm_lock_rank;

typedef struct realm_mutex {
    pthread_mutex_t m;
    int rank;
} realm_mutex;

void realm_mutex_init(realm_mutex *mu, realm_lock_rank rank);
void realm_mutex_destroy(realm_mutex *mu);
void realm_mutex_lock(realm_mutex *mu);
void realm_mutex_unlock(realm_mutex *mu);

typedef struct realm_cond {
    pthread_cond_t c; /* on the monotonic clock */
} realm_cond;

void realm_cond_init(realm_cond *c);
void realm_cond_destroy(realm_cond *c);
/* As pthread_cond_wait; the rank stays held. */
void realm_cond_wait(realm_cond *c, realm_mutex *mu);
/* Waits until the monotonic deadline; false when it passed. */
bool realm_cond_wait_until(realm_cond *c, realm_mutex *mu, uint64_t deadline_ns);
void realm_cond_signal(realm_cond *c);
void realm_cond_broadcast(realm_cond *c);

/* Starts a joinable thread with all signals blocked, named for debuggers (15 bytes at most). */
REALM_WARN_UNUSED realm_status realm_thread_start(pthread_t *t, const char *name, void *(*fn)(void *), void *arg,
                                                  realm_error *err);
/* From now on this thread takes the processor from nobody when it is woken: whoever wakes it, an engine's thread
 * between two steps, goes on. It runs as soon as a processor has nothing else to do, at the latest at the next tick,
 * with the same share as any other thread. Where the system does not allow it, nothing changes. */
void realm_thread_be_modest(void);

#endif
