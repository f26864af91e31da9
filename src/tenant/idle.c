/* tenant/idle.c - threads run programs for which another thread would have to be woken.
 *
 *      engine's thread: begin, tells consumers, run [ they look at rows, draw, submit the next pass ], next step
 *                                                                                 |
 *      compute thread:                    finish [ what they do after that; readers are woken ] -> joins the step
 *
 *      compute thread:  begin, tells consumers, run [ programs that follow ], finish [ readers ] -> joins the step
 *
 * Above, nothing is left to compute but what these programs ask for; below, the next step goes on without them. In both
 * a step that begins does not wait for the compute thread: it joins when it is through. A compute thread that spins for
 * the next step takes such a task without being woken (the backend's `aside`); it runs programs that are brief, takes
 * no new one after a tenth of a millisecond, and leaves what is more to the workers.
 *
 * One finish is handed over at a time; while that has not ended, or where no thread spins, the engine's thread makes
 * its own.
 */
#include "base/alloc.h"
#include "base/clock.h"
#include "tenant/internal.h"

#define ASIDE_NS (100 * REALM_NS_PER_US)

struct model_idle {
    realm_lender *lender; /* the engine's thread */
    realm_lender *aside;  /* a compute thread */
    realm_backend *backend;
    realm_mutex mu;
    bool handed; /* mu: a finish, to a compute thread */
    realm_cond finished;
};

static void expect_programs(void *user) { realm_lender_begin(((model_idle *)user)->lender); }
static void recall(void *user) { realm_lender_recall(((model_idle *)user)->lender); }

static void expect_aside(void *user) { realm_lender_begin(((model_idle *)user)->aside); }
static void recall_aside(void *user) { realm_lender_recall(((model_idle *)user)->aside); }

static void run_aside(void *user) {
    model_idle *i = user;
    realm_lender_run(i->aside, ASIDE_NS);
    realm_lender_finish(i->aside);
}

static void take_back(model_idle *i) {
    realm_mutex_lock(&i->mu);
    i->handed = false;
    realm_cond_broadcast(&i->finished);
    realm_mutex_unlock(&i->mu);
}

static void finish_aside(void *user) {
    model_idle *i = user;
    realm_lender_finish(i->lender);
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
    if (v->aside(i->backend, finish_aside, i)) return true;
    take_back(i);
    return false;
}

static void run_programs(void *user) {
    model_idle *i = user;
    realm_lender_run(i->lender, 0);
    if (realm_lender_has_rest(i->lender) && !hand_over(i)) realm_lender_finish(i->lender);
}

realm_status idle_open(realm_runtime *rt, model_idle **out, realm_engine_config *config, realm_error *err) {
    model_idle *i = realm_calloc(1, sizeof *i);
    if (!i) return realm_error_set(err, REALM_E_NOMEM, "out of memory");
    realm_status s = realm_lender_open(rt->sandbox, &i->lender, err);
    if (s == REALM_OK) s = realm_lender_open(rt->sandbox, &i->aside, err);
    if (s != REALM_OK) {
        realm_lender_close(i->lender);
        realm_free(i);
        return s;
    }
    i->backend = rt->backend;
    realm_mutex_init(&i->mu, REALM_RANK_LEAF);
    realm_cond_init(&i->finished);
    config->idle = (realm_engine_lending){i, expect_programs, run_programs, recall};
    config->aside = (realm_engine_lending){i, expect_aside, run_aside, recall_aside};
    *out = i;
    return REALM_OK;
}

void idle_settle(model_idle *i) {
    realm_mutex_lock(&i->mu);
    while (i->handed) realm_cond_wait(&i->finished, &i->mu);
    realm_mutex_unlock(&i->mu);
}

void idle_close(model_idle *i) {
    if (!i) return;
    idle_settle(i); /* its engine has ended; a compute thread may still be at it */
    realm_lender_close(i->lender);
    realm_lender_close(i->aside);
    realm_cond_destroy(&i->finished);
    realm_mutex_destroy(&i->mu);
    realm_free(i);
}
