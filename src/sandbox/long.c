/* sandbox/long.c - host calls that take long: threads of their own, in turns of owners.
 *
 *      worker: callback --REALM_CALL_LONG, or expected--> its owner's turn --> run again here
 *      run again here, or killed: withdrawn --> QUEUED: its code is a worker's
 *
 * A host call is not interrupted, so one of a hundred milliseconds keeps its thread for as long. On the workers a few
 * of them would keep everybody's programs waiting; here they keep each other waiting, and fairly: an owner has at most
 * all places but one (base/rota.h), so the first of any other has one, or the next that is free.
 *
 * What is long is the callback's to say, before it has done anything, by the length of a text; and what nobody can say
 * beforehand, a mask of a grammar, a template, is taken to be long for a while after one of the kind was.
 */
#include "sandbox/internal.h"

_Static_assert(offsetof(realm_instance, turn) == 0, "an item is its instance");

static void *long_main(void *arg) {
    realm_sandbox *s = arg;
    realm_thread_be_modest();
    realm_mutex_lock(&s->long_mu);
    for (;;) {
        realm_instance *i;
        while (!(i = (realm_instance *)realm_rota_take(&s->long_turns)) && !s->long_stop)
            realm_cond_wait(&s->long_cond, &s->long_mu);
        if (!i) break;
        const uint64_t owner = i->params.owner;
        i->waits_turn = false;
        realm_mutex_unlock(&s->long_mu);
        realm_instance_run(i, NULL);
        realm_mutex_lock(&s->long_mu);
        realm_rota_done(&s->long_turns, owner); /* the place is this thread's to fill: none has to be woken */
    }
    realm_mutex_unlock(&s->long_mu);
    return NULL;
}

bool realm_long_push(realm_sandbox *s, realm_instance *i) {
    realm_mutex_lock(&s->long_mu);
    /* seq_cst: who kills it sets `kill`, then takes this lock. */
    bool pushed = atomic_load(&i->kill) == 0;
    if (pushed) {
        i->waits_turn = true;
        realm_rota_push(&s->long_turns, &i->turn, i->params.owner);
        realm_cond_signal(&s->long_cond);
    }
    realm_mutex_unlock(&s->long_mu);
    return pushed;
}

bool realm_long_withdraw(realm_sandbox *s, realm_instance *i) {
    realm_mutex_lock(&s->long_mu);
    bool waited = i->waits_turn;
    if (waited) realm_rota_remove(&s->long_turns, &i->turn);
    i->waits_turn = false;
    realm_mutex_unlock(&s->long_mu);
    return waited;
}

realm_status realm_long_start(realm_sandbox *s, realm_error *err) {
    const uint32_t n = REALM_MIN(s->n_workers + 1, REALM_ROTA_PLACES_MAX);
    realm_rota_init(&s->long_turns, n, n - 1);
    for (; s->n_long_threads < n; s->n_long_threads++) {
        realm_status st = realm_thread_start(&s->long_threads[s->n_long_threads], "sandbox-long", long_main, s, err);
        if (st) return st;
    }
    return REALM_OK;
}

void realm_long_stop(realm_sandbox *s) {
    realm_mutex_lock(&s->long_mu);
    s->long_stop = true;
    realm_cond_broadcast(&s->long_cond);
    realm_mutex_unlock(&s->long_mu);
    for (uint32_t k = 0; k < s->n_long_threads; k++) pthread_join(s->long_threads[k], NULL);
}
