/* tenant/request.c - one client request: opened, counted once, gone when its last run is. */
#include "base/alloc.h"
#include "tenant/internal.h"

realm_status realm_request_open(realm_tenant *t, realm_served *m, realm_rate *rate, realm_request **out,
                                realm_error *err) {
    realm_runtime *rt = t->rt;
    if (rate) *rate = (realm_rate){0};
    realm_request *r = realm_calloc(1, sizeof *r);
    if (!r) return realm_error_set(err, REALM_E_NOMEM, "request: out of memory");
    realm_status s = tenant_account(t, m, &r->account, err);
    if (s == REALM_OK) s = tenant_admitted(t, rate, err);
    if (s != REALM_OK) {
        realm_free(r);
        return s;
    }
    r->tenant = t;
    r->model = model_hold_again(m);
    atomic_init(&r->refs, 1);
    /* relaxed: the caller holds a reference already */
    atomic_fetch_add_explicit(&t->refs, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&rt->requests_active, 1, memory_order_relaxed);
    *out = r;
    return REALM_OK;
}

void realm_request_expect_runs(realm_request *r, uint32_t n_runs) {
    /* Without a share each run computes the prompt itself: slower and counted each time, but not wrong. */
    if (n_runs > 1 && !r->share && realm_prompt_share_open(r->model->engine, r->account, &r->share, NULL) != REALM_OK)
        r->share = NULL;
}

void request_count(realm_request *r, bool aborted) {
    realm_runtime *rt = r->tenant->rt;
    if (!atomic_exchange(&r->counted, true)) {
        atomic_fetch_add_explicit(&r->tenant->requests, 1, memory_order_relaxed);
        atomic_fetch_add_explicit(&rt->requests, 1, memory_order_relaxed);
    }
    if (aborted && !atomic_exchange(&r->aborted, true)) {
        atomic_fetch_add_explicit(&r->tenant->aborted, 1, memory_order_relaxed);
        atomic_fetch_add_explicit(&rt->aborted, 1, memory_order_relaxed);
    }
}

void request_release(realm_request *r) {
    /* acq_rel: whoever drops the last reference sees what the others did */
    if (atomic_fetch_sub_explicit(&r->refs, 1, memory_order_acq_rel) != 1) return;
    realm_prompt_share_close(r->share);
    atomic_fetch_sub_explicit(&r->tenant->rt->requests_active, 1, memory_order_relaxed);
    realm_served_release(r->model);
    realm_tenant_release(r->tenant);
    realm_free(r);
}

void realm_request_close(realm_request *r) {
    if (r) request_release(r);
}
