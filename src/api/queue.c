/* Calls that wait for a worker, those of all tenants in turn (base/rota.h).
 *
 * A tenant has at most half of the workers, and half of the places to wait in. So whatever one tenant sends, and
 * however long it takes to be read, there is room for another's call, and it waits for one of each who are waiting too
 * at most. Calls without a tenant are together, as if they were one's.
 */
#include "api/internal.h"

static uint64_t owner_of(const realm_tenant *t) { return (uintptr_t)t; }

void call_queue_init(call_queue *q, uint32_t n_workers, uint32_t cap) {
    *q = (call_queue){.cap = REALM_MAX(cap, 2u)};
    realm_rota_init(&q->turns, n_workers, n_workers / 2);
    realm_mutex_init(&q->mu, REALM_RANK_QUEUE);
    realm_cond_init(&q->moved);
}

void call_queue_release(call_queue *q) {
    realm_cond_destroy(&q->moved);
    realm_mutex_destroy(&q->mu);
}

void call_queue_shut(call_queue *q) {
    realm_mutex_lock(&q->mu);
    q->shut = true;
    realm_cond_broadcast(&q->moved);
    realm_mutex_unlock(&q->mu);
}

uint32_t call_queue_length(call_queue *q) {
    realm_mutex_lock(&q->mu);
    uint32_t n = q->turns.n_waiting;
    realm_mutex_unlock(&q->mu);
    return n;
}

realm_status call_queue_push(call_queue *q, api_call *c) {
    const uint64_t owner = owner_of(c->tenant);
    realm_status s = REALM_OK;
    realm_mutex_lock(&q->mu);
    if (q->shut) {
        s = REALM_E_CLOSED;
    } else if (q->turns.n_waiting == q->cap || realm_rota_waiting(&q->turns, owner) >= q->cap / 2) {
        s = REALM_E_AGAIN;
    } else {
        realm_rota_push(&q->turns, &c->turn, owner);
        realm_cond_signal(&q->moved);
    }
    realm_mutex_unlock(&q->mu);
    return s;
}

api_call *call_queue_pop_wait(call_queue *q) {
    realm_mutex_lock(&q->mu);
    api_call *c; /* its turn is its first member */
    while (!(c = (api_call *)realm_rota_take(&q->turns)) && !(q->shut && q->turns.n_waiting == 0))
        realm_cond_wait(&q->moved, &q->mu);
    realm_mutex_unlock(&q->mu);
    return c;
}

void call_queue_done(call_queue *q, const realm_tenant *t) {
    realm_mutex_lock(&q->mu);
    realm_rota_done(&q->turns, owner_of(t));
    realm_cond_broadcast(&q->moved); /* calls that had to let others go first, and the workers that found none */
    realm_mutex_unlock(&q->mu);
}
