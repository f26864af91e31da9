/* By a model's id, as those have it who ask: a request, and its engine, for tests that retire none. */
#ifndef REALM_TEST_REQUEST_H
#define REALM_TEST_REQUEST_H

#include "tenant/tenant.h"

static inline realm_status request_on(realm_tenant *t, const char *model, realm_rate *rate, realm_request **out,
                                      realm_error *err) {
    realm_served *m = realm_runtime_hold(realm_tenant_runtime(t), model);
    if (!m) return realm_error_set(err, REALM_E_NOT_FOUND, "no model is called \"%s\"", model);
    realm_status s = realm_request_open(t, m, rate, out, err);
    realm_served_release(m);
    return s;
}

static inline realm_engine *engine_of(realm_runtime *rt, const char *model) {
    realm_served *m = realm_runtime_hold(rt, model);
    realm_engine *e = m ? realm_served_engine(m) : NULL;
    realm_served_release(m);
    return e;
}

#endif
