/* engine/account.c - accounts: limits, counts, and the rule that sums agree.
 *
 * While a step runs, what it charges is kept in the engine thread's own `delta`; at the step's end all deltas and the
 * engine's total move under one lock (realm_engine's publish), so whoever reads sees either all of a step or none of
 * it.
 */
#include <string.h>

#include "base/alloc.h"
#include "crypto/crypto.h"
#include "engine/internal.h"

realm_status realm_account_open(realm_engine *e, const realm_account_limits *limits, const uint8_t *cache_secret,
                                realm_account **out, realm_error *err) {
    *out = NULL;
    realm_account *a = realm_calloc(1, sizeof *a);
    if (!a) return realm_error_set(err, REALM_E_NOMEM, "no memory for an account");
    a->e = e;
    a->refs = 1;
    if (limits) a->limits = *limits;
    realm_foresight_init(&a->foresight);
    a->owner.max = UINT32_MAX;
    a->owner.weight = realm_account_weight(&a->limits);
    a->owner.has_secret = cache_secret != NULL;
    if (cache_secret) memcpy(a->owner.secret, cache_secret, sizeof a->owner.secret);
    realm_mutex_lock(&e->mu);
    a->owner.id = ++e->next_account_id;
    realm_mutex_unlock(&e->mu);
    *out = a;
    return REALM_OK;
}

void realm_account_set_limits(realm_account *a, const realm_account_limits *limits) {
    realm_mutex_lock(&a->e->mu);
    a->limits = *limits;
    realm_mutex_unlock(&a->e->mu);
    realm_engine_wake(a->e); /* something may fit now */
}

void realm_account_unref_locked(realm_account *a) {
    if (--a->refs > 0) return;
    realm_pool_forget(&a->e->pool, &a->owner);
    realm_secret_wipe(a->owner.secret, sizeof a->owner.secret);
    realm_free(a);
}

void realm_account_close(realm_account *a) {
    if (!a) return;
    realm_engine *e = a->e;
    realm_mutex_lock(&e->mu);
    realm_account_unref_locked(a);
    realm_mutex_unlock(&e->mu);
}

void realm_account_counts(const realm_account *a, realm_token_counts *out) {
    realm_mutex_lock(&a->e->mu);
    *out = a->counts;
    realm_mutex_unlock(&a->e->mu);
}

uint32_t realm_account_generations(const realm_account *a) {
    realm_mutex_lock(&a->e->mu);
    uint32_t n = a->n_generations - a->n_leaving;
    realm_mutex_unlock(&a->e->mu);
    return n;
}

bool realm_account_is_busy(const realm_account *a) {
    realm_mutex_lock(&a->e->mu);
    bool busy = a->n_generations > 0;
    realm_mutex_unlock(&a->e->mu);
    return busy;
}

void realm_engine_counts(realm_engine *e, realm_token_counts *total, realm_account *const *accounts, size_t n,
                         realm_token_counts *each) {
    realm_mutex_lock(&e->mu);
    *total = e->total;
    for (size_t i = 0; i < n; i++) each[i] = accounts[i]->counts;
    realm_mutex_unlock(&e->mu);
}
