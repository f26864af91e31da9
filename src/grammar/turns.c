/* grammar/turns.c - places among those that compile, for which threads wait. */
#include "grammar/turns.h"

typedef struct waiter {   /* on the stack of the thread that waits */
    realm_rota_item turn; /* first */
    bool granted;
} waiter;

void grammar_turns_init(grammar_turns *t) {
    realm_rota_init(&t->turns, GRAMMAR_PLACES, GRAMMAR_PLACES_OF_OWNER);
    realm_mutex_init(&t->mu, REALM_RANK_LEAF);
    realm_cond_init(&t->moved);
}

void grammar_turns_release(grammar_turns *t) {
    realm_cond_destroy(&t->moved);
    realm_mutex_destroy(&t->mu);
}

/* Gives free places to those whose turn it is; the lock is held. */
static void grant(grammar_turns *t) {
    for (waiter *w; (w = (waiter *)realm_rota_take(&t->turns));) w->granted = true;
    realm_cond_broadcast(&t->moved);
}

realm_status grammar_turns_take(grammar_turns *t, uint64_t owner, uint64_t deadline_ns, realm_error *err) {
    waiter own = {0};
    bool in_time = true;
    realm_mutex_lock(&t->mu);
    const uint32_t waiting = realm_rota_waiting(&t->turns, owner);
    if (waiting < GRAMMAR_WAITING_OF_OWNER) {
        realm_rota_push(&t->turns, &own.turn, owner);
        grant(t);
        while (!own.granted && in_time) in_time = realm_cond_wait_until(&t->moved, &t->mu, deadline_ns);
        if (!own.granted) realm_rota_remove(&t->turns, &own.turn);
    }
    realm_mutex_unlock(&t->mu);
    if (own.granted) return REALM_OK;
    if (in_time)
        return realm_error_set(err, REALM_E_BUSY, "%u grammars of this client wait to be compiled already", waiting);
    return realm_error_set(err, REALM_E_BUSY, "too many grammars are being compiled");
}

void grammar_turns_give(grammar_turns *t, uint64_t owner) {
    realm_mutex_lock(&t->mu);
    realm_rota_done(&t->turns, owner);
    grant(t);
    realm_mutex_unlock(&t->mu);
}

void grammar_turns_wait_idle(grammar_turns *t) {
    realm_mutex_lock(&t->mu);
    while (t->turns.n_placed > 0) realm_cond_wait(&t->moved, &t->mu);
    realm_mutex_unlock(&t->mu);
}
