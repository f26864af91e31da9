/* grammar/turns.c - places among those that compile, given out in turn. */
#include "grammar/turns.h"

void grammar_turns_init(grammar_turns *t) {
    *t = (grammar_turns){0};
    realm_mutex_init(&t->mu, REALM_RANK_LEAF);
    realm_cond_init(&t->moved);
}

void grammar_turns_release(grammar_turns *t) {
    realm_cond_destroy(&t->moved);
    realm_mutex_destroy(&t->mu);
}

static uint32_t places_of(const grammar_turns *t, uint64_t owner) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < t->n; i++) n += t->owners[i] == owner;
    return n;
}

static void remove_waiter(grammar_turns *t, const grammar_waiter *w) {
    grammar_waiter **link = &t->first;
    while (*link != w) link = &(*link)->next;
    *link = w->next;
}

/* Gives free places to those whose turn it is; the lock is held. */
static void grant(grammar_turns *t) {
    while (t->n < GRAMMAR_PLACES) {
        grammar_waiter *best = NULL;
        uint32_t fewest = GRAMMAR_PLACES_OF_OWNER;
        for (grammar_waiter *w = t->first; w; w = w->next) {
            const uint32_t n = places_of(t, w->owner);
            if (n >= fewest) continue;
            best = w;
            fewest = n;
        }
        if (!best) return;
        remove_waiter(t, best);
        t->owners[t->n++] = best->owner;
        best->granted = true;
        realm_cond_broadcast(&t->moved);
    }
}

realm_status grammar_turns_take(grammar_turns *t, uint64_t owner, uint64_t deadline_ns, realm_error *err) {
    grammar_waiter own = {.owner = owner}, **link = &t->first;
    uint32_t waiting = 0;
    bool in_time = true;
    realm_mutex_lock(&t->mu);
    for (; *link; link = &(*link)->next) waiting += (*link)->owner == owner;
    if (waiting < GRAMMAR_WAITING_OF_OWNER) {
        *link = &own;
        grant(t);
        while (!own.granted && in_time) in_time = realm_cond_wait_until(&t->moved, &t->mu, deadline_ns);
        if (!own.granted) remove_waiter(t, &own);
    }
    realm_mutex_unlock(&t->mu);
    if (own.granted) return REALM_OK;
    if (in_time)
        return realm_error_set(err, REALM_E_BUSY, "%u grammars of this client wait to be compiled already", waiting);
    return realm_error_set(err, REALM_E_BUSY, "too many grammars are being compiled");
}

void grammar_turns_give(grammar_turns *t, uint64_t owner) {
    realm_mutex_lock(&t->mu);
    uint32_t i = 0;
    while (t->owners[i] != owner) i++;
    t->owners[i] = t->owners[--t->n];
    grant(t);
    realm_cond_broadcast(&t->moved);
    realm_mutex_unlock(&t->mu);
}

void grammar_turns_wait_idle(grammar_turns *t) {
    realm_mutex_lock(&t->mu);
    while (t->n > 0) realm_cond_wait(&t->moved, &t->mu);
    realm_mutex_unlock(&t->mu);
}
