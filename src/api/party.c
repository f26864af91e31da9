/* What the calls of one tenant hold together: connections, bodies, answers, threads.
 *
 * There is so much of each for all. A tenant may have no more of it than would then be left for others (net.h,
 * realm_http_fair), so one that opens what it can ends at half, the next one at half of the rest, and who comes new
 * finds room. A call belongs to its tenant's party from its head, as soon as its key is known, to its end.
 *
 *      receiving the body    net counts it for the party's exchanges
 *      working, answering    party_hold counts it here: the body when it is handed over, the answer as it is gathered
 */
#include <string.h>

#include "api/internal.h"
#include "base/alloc.h"

static api_party **bucket_of(realm_api *api, const realm_tenant *t) {
    /* mixed: allocators give addresses that differ in few bits */
    return &api->parties[realm_mix_u64((uintptr_t)t) % API_PARTY_BUCKETS];
}

static api_party *take(realm_api *api, const realm_tenant *t) {
    api_party **first = bucket_of(api, t);
    realm_mutex_lock(&api->parties_mu);
    api_party *p = *first;
    while (p && p->tenant != t) p = p->next;
    if (!p && (p = realm_calloc(1, sizeof *p))) {
        p->tenant = t;
        p->next = *first;
        *first = p;
    }
    if (p) p->n_calls++;
    realm_mutex_unlock(&api->parties_mu);
    return p;
}

static bool crowded(api_error *e, const char *what) {
    api_error_set(e, 429, "rate_limit_exceeded", NULL, "%s; try again when some have ended", what);
    e->retry_after_ms = 1000;
    return false;
}

bool party_join(api_call *c) {
    api_party *p = take(c->api, c->tenant);
    if (!p) return api_error_status(&c->error, REALM_E_NOMEM, NULL);
    c->party = p;
    return realm_exchange_join(c->x, &p->exchanges) ||
           crowded(&c->error, "too many of your requests are open at the same time");
}

void party_leave(api_call *c) {
    realm_api *api = c->api;
    api_party *p = c->party;
    if (!p) return;
    /* relaxed: budgets, not locks */
    atomic_fetch_sub_explicit(&api->held_bytes, c->held, memory_order_relaxed);
    atomic_fetch_sub_explicit(&p->held_bytes, c->held, memory_order_relaxed);
    c->held = 0;
    c->party = NULL;
    realm_mutex_lock(&api->parties_mu);
    bool last = --p->n_calls == 0;
    api_party **link = bucket_of(api, p->tenant);
    while (last && *link != p) link = &(*link)->next;
    if (last) *link = p->next;
    realm_mutex_unlock(&api->parties_mu);
    if (last) realm_free(p);
}

bool party_hold(api_call *c, uint64_t bytes) {
    realm_api *api = c->api;
    api_party *p = c->party;
    if (!p) return true; /* an operator's */
    /* first counted, then looked at, so that of two at the limit at most one is let in */
    const uint64_t all = atomic_fetch_add_explicit(&api->held_bytes, bytes, memory_order_relaxed);
    const uint64_t own = atomic_fetch_add_explicit(&p->held_bytes, bytes, memory_order_relaxed);
    c->held += bytes;
    if (c->held <= REALM_BODY_SMALL || realm_http_fair(own, all, bytes, api->held_most)) return true;
    c->held -= bytes;
    atomic_fetch_sub_explicit(&api->held_bytes, bytes, memory_order_relaxed);
    atomic_fetch_sub_explicit(&p->held_bytes, bytes, memory_order_relaxed);
    if (!realm_http_fair(0, 0, 2 * (c->held + bytes), api->held_most))
        return api_error_set(&c->error, 413, "body_too_large", NULL,
                             "the request and its answer are too large to be kept");
    if (!realm_http_fair(0, all, bytes, api->held_most)) return api_error_status(&c->error, REALM_E_BUSY, NULL);
    return crowded(&c->error, "bodies and answers of your requests hold too much memory");
}

bool party_take_thread(api_call *c) {
    realm_api *api = c->api;
    realm_mutex_lock(&api->lent_mu);
    const bool any = api->n_lent < API_LENT_MAX, fair = realm_http_fair(c->party->n_lent, api->n_lent, 1, API_LENT_MAX);
    if (fair) c->party->n_lent++, api->n_lent++;
    realm_mutex_unlock(&api->lent_mu);
    if (fair) return true;
    return any ? crowded(&c->error, "too many of your schemas are being compiled")
               : api_error_status(&c->error, REALM_E_BUSY, NULL);
}

void party_give_thread(api_call *c) {
    realm_mutex_lock(&c->api->lent_mu);
    c->party->n_lent--;
    realm_mutex_unlock(&c->api->lent_mu);
}
