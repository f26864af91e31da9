/* compute/turn.c - who has the device: strictly in the order of asking.
 *
 *      begin:  free and nobody waits -> held          end:  somebody waits -> hand over to the first, wake it alone
 *              else join the line, sleep                    else -> free
 *
 * A turn is handed over while it is held, never let go in between, so that a thread that ends a turn and asks for the
 * next one at once stands behind everybody who waited. Each waiter sleeps on a condition of its own: a hand-over wakes
 * one thread.
 */
#include <assert.h>

#include "base/clock.h"
#include "compute/compute.h"

struct realm_turn_waiter {
    realm_turn_waiter *next;
    realm_cond cond;
    bool mine;
};

void realm_turn_init(realm_turn *t) {
    *t = (realm_turn){0};
    realm_mutex_init(&t->mu, REALM_RANK_LEAF);
}

void realm_turn_release(realm_turn *t) {
    assert(!t->held && !t->first);
    realm_mutex_destroy(&t->mu);
}

void realm_backend_turn_begin(realm_backend *b) {
    realm_turn *t = &b->turn;
    realm_mutex_lock(&t->mu);
    if (t->held) {
        realm_turn_waiter me = {0};
        uint64_t asked = realm_clock_ns();
        realm_cond_init(&me.cond);
        if (t->last)
            t->last->next = &me;
        else
            t->first = &me;
        t->last = &me;
        t->stats.waiting++;
        while (!me.mine) realm_cond_wait(&me.cond, &t->mu);
        realm_cond_destroy(&me.cond);
        t->stats.waits++;
        t->stats.wait_ns += realm_clock_ns() - asked;
    }
    t->held = true;
    t->since_ns = realm_clock_ns();
    realm_mutex_unlock(&t->mu);
}

void realm_backend_turn_end(realm_backend *b) {
    realm_turn *t = &b->turn;
    realm_mutex_lock(&t->mu);
    assert(t->held);
    t->stats.turns++;
    t->stats.held_ns += realm_clock_ns() - t->since_ns;
    realm_turn_waiter *next = t->first;
    if (next) {
        t->first = next->next;
        if (!t->first) t->last = NULL;
        t->stats.waiting--;
        next->mine = true; /* under the lock: `next` is gone once it has seen this */
        realm_cond_signal(&next->cond);
    } else {
        t->held = false;
    }
    realm_mutex_unlock(&t->mu);
}

void realm_backend_turn_get_stats(realm_backend *b, realm_turn_stats *out) {
    realm_mutex_lock(&b->turn.mu);
    *out = b->turn.stats;
    realm_mutex_unlock(&b->turn.mu);
}
