/* Memory that runs out, at each allocation in turn, while a request is opened, started, read and closed: it fails with
 * that or goes on without what it lacked, nothing is left behind, and the next one is served. */
#include "tenant/client.h"

static realm_tenant *tenant;

/* A request in which the allocation after `after` further ones of this thread fails; whether one did. */
static bool request_short_of(int64_t after, realm_status *status) {
    realm_error err = {0};
    client c = {.tenant = tenant};
    realm_run_params p = text_request();
    realm_mutex_init(&c.mu, REALM_RANK_LEAF);
    realm_cond_init(&c.cond);
    faults(true);
    p.on_ready = on_ready;
    p.user = &c;
    realm_alloc_inject_failure(after, false);
    *status = request_on(tenant, "tiny", NULL, &c.request, &err);
    if (*status == REALM_OK) *status = realm_run_start(c.request, &p, &c.run, &err);
    bool failed = realm_alloc_count() > after;
    if (*status == REALM_OK) {
        follow(&c, 0);
        failed |= realm_alloc_count() > after;
        *status = c.status;
        if (c.status == REALM_OK) assert_int_equal(c.n_tokens, 16);
    }
    realm_alloc_inject_failure(-1, false);
    end(&c);
    return failed;
}

static void at_every_allocation(void **state) {
    (void)state;
    realm_status status;
    int64_t n = 0, refused = 0;
    for (; request_short_of(n, &status); n++) {
        if (status != REALM_OK && status != REALM_E_NOMEM) fail_msg("allocation %lld: %d", (long long)n, status);
        refused += status == REALM_E_NOMEM;
    }
    assert_int_equal(status, REALM_OK);
    assert_true(refused > 3);
    nothing_is_left();
    realm_engine_stats e;
    realm_engine_get_stats(engine_of(rt, "tiny"), &e);
    assert_int_equal(e.contexts, 0);
}

int main(int argc, char **argv) {
    if (is_compiler(argc, argv)) return compile(argv);
    if (open_runtime()) return 1;
    tenant = tenant_with("short", NULL, NULL);
    const struct CMUnitTest tests[] = {cmocka_unit_test(at_every_allocation)};
    int failed = cmocka_run_group_tests_name("memory that runs out", tests, NULL, NULL);
    realm_tenant_release(tenant);
    return close_runtime(failed);
}
