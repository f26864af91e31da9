/* Calls that wait for a worker, those of all tenants in turn.
 *
 *      first -> [A1] -> [B1] -> [C1] <- last      the next of each tenant, in the order of their turns
 *                |       |
 *               [A2]    [B2]                      behind it the tenant's others, in the order they came
 *                |
 *               [A3]
 *
 * A worker takes the first whose tenant has not half of the workers already, and the tenant's next goes to the end. So
 * whatever one tenant sends, and however long it takes to be read, another's call waits for one of each who are waiting
 * too at most, and there is room for it: of the places to wait in one tenant has half at most.
 */
#include <string.h>

#include "api/internal.h"

void call_queue_init(call_queue *q, uint32_t n_workers, uint32_t cap) {
    *q = (call_queue){.cap = REALM_MAX(cap, 2u), .most = REALM_MAX(n_workers / 2, 1u)};
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
    uint32_t n = q->n;
    realm_mutex_unlock(&q->mu);
    return n;
}

static void append(call_queue *q, api_call *c) {
    c->next_turn = NULL;
    if (q->last)
        q->last->next_turn = c;
    else
        q->first = c;
    q->last = c;
}

realm_status call_queue_push(call_queue *q, api_call *c) {
    realm_status s = REALM_OK;
    realm_mutex_lock(&q->mu);
    api_call *head = q->first;
    while (head && head->tenant != c->tenant) head = head->next_turn;
    c->behind = NULL;
    c->last_behind = c;
    c->n_behind = 0;
    if (q->shut) {
        s = REALM_E_CLOSED;
    } else if (q->n == q->cap || (head && head->n_behind + 1 >= q->cap / 2)) {
        s = REALM_E_AGAIN;
    } else {
        if (head) {
            head->last_behind->behind = c;
            head->last_behind = c;
            head->n_behind++;
        } else {
            append(q, c);
        }
        q->n++;
        realm_cond_signal(&q->moved);
    }
    realm_mutex_unlock(&q->mu);
    return s;
}

static uint32_t working(const call_queue *q, const realm_tenant *t) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < q->n_working; i++) n += q->working[i] == t;
    return n;
}

/* Takes a call out of the turns, and puts the one behind it at their end; NULL: nobody's turn. */
static api_call *next(call_queue *q) {
    api_call *before = NULL, *c = q->first;
    while (c && working(q, c->tenant) >= q->most) {
        before = c;
        c = c->next_turn;
    }
    if (!c) return NULL;
    if (before)
        before->next_turn = c->next_turn;
    else
        q->first = c->next_turn;
    if (q->last == c) q->last = before;
    api_call *follower = c->behind;
    if (follower) {
        follower->last_behind = c->last_behind;
        follower->n_behind = c->n_behind - 1;
        append(q, follower);
    }
    q->n--;
    return c;
}

api_call *call_queue_pop_wait(call_queue *q) {
    realm_mutex_lock(&q->mu);
    api_call *c;
    while (!(c = next(q)) && !(q->shut && q->n == 0)) realm_cond_wait(&q->moved, &q->mu);
    if (c) q->working[q->n_working++] = c->tenant;
    realm_mutex_unlock(&q->mu);
    return c;
}

void call_queue_done(call_queue *q, const realm_tenant *t) {
    realm_mutex_lock(&q->mu);
    uint32_t i = 0;
    while (q->working[i] != t) i++;
    q->working[i] = q->working[--q->n_working];
    realm_cond_broadcast(&q->moved); /* calls that had to let others go first, and the workers that found none */
    realm_mutex_unlock(&q->mu);
}
