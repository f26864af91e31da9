/* tenant/idle.c - the engine's thread runs programs while it has nothing else to do.
 *
 *      engine's thread, idle --begin--> expects programs --run--> [ they look at rows, submit, emit ] --> next step
 *                                                                     |
 *                        readers of what they emitted are woken <-----+  by a compute thread that spins for the next
 *                                                                        step (backend's `aside`), or before the step
 *
 * Waking a reader is a system call, which would be added to every token of a program that decides on each. One flush is
 * handed to a compute thread at a time; while that has not ended the engine's thread makes its own.
 */
#include "base/alloc.h"
#include "tenant/internal.h"

struct model_idle {
    realm_lender *lender;
    realm_backend *backend;
    realm_mutex mu;
    bool handed; /* mu: a flush, to a compute thread */
    realm_cond flushed;
};

static void expect_programs(void *user) { realm_lender_begin(((model_idle *)user)->lender); }
static void recall(void *user) { realm_lender_recall(((model_idle *)user)->lender); }

static void take_back(model_idle *i) {
    realm_mutex_lock(&i->mu);
    i->handed = false;
    realm_cond_broadcast(&i->flushed);
    realm_mutex_unlock(&i->mu);
}

static void flush_aside(void *user) {
    model_idle *i = user;
    realm_lender_flush(i->lender);
    take_back(i);
}

/* False: there is no thread for it. */
static bool hand_over(model_idle *i) {
    const struct realm_backend_vtable *v = i->backend->v;
    if (!v->aside) return false;
    realm_mutex_lock(&i->mu);
    const bool first = !i->handed;
    i->handed = true;
    realm_mutex_unlock(&i->mu);
    if (!first) return false;
    if (v->aside(i->backend, flush_aside, i)) return true;
    take_back(i);
    return false;
}

static void run_programs(void *user) {
    model_idle *i = user;
    realm_lender_run(i->lender);
    if (realm_lender_has_deferred(i->lender) && !hand_over(i)) realm_lender_flush(i->lender);
}

realm_status idle_open(realm_runtime *rt, model_idle **out, realm_engine_idle *calls, realm_error *err) {
    model_idle *i = realm_calloc(1, sizeof *i);
    if (!i) return realm_error_set(err, REALM_E_NOMEM, "out of memory");
    realm_status s = realm_lender_open(rt->sandbox, &i->lender, err);
    if (s != REALM_OK) {
        realm_free(i);
        return s;
    }
    i->backend = rt->backend;
    realm_mutex_init(&i->mu, REALM_RANK_LEAF);
    realm_cond_init(&i->flushed);
    *calls = (realm_engine_idle){i, expect_programs, run_programs, recall};
    *out = i;
    return REALM_OK;
}

void idle_settle(model_idle *i) {
    realm_mutex_lock(&i->mu);
    while (i->handed) realm_cond_wait(&i->flushed, &i->mu);
    realm_mutex_unlock(&i->mu);
}

void idle_close(model_idle *i) {
    if (!i) return;
    idle_settle(i); /* its engine has ended; a compute thread may still be at it */
    realm_lender_close(i->lender);
    realm_cond_destroy(&i->flushed);
    realm_mutex_destroy(&i->mu);
    realm_free(i);
}
