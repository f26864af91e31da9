/* Limits of a tenant that count over time or over all its requests, each met: what is under it works, the first over it
 * is refused by name, another tenant does not notice, and it passes. (Limits of one instance: test_host.c,
 * test_hostile.c.) Nothing here waits for longer than the refusal itself said. */
#include "tenant/client.h"
#include "tenant/internal.h"

static realm_tenant *other;

static realm_tenant *limited(const char *tenant, const char *name, const char *value) {
    realm_error err = {0};
    realm_tenant_row row;
    realm_store *store = realm_runtime_store(rt);
    realm_tenant *t = tenant_with(tenant, NULL, NULL);
    if (realm_store_tenant_find(store, tenant, &row, &err) || realm_limits_set(&row.limits, name, value, &err) ||
        realm_store_tenant_set(store, tenant, &row.limits, NULL, 0, &err))
        fail_msg("%s", err.text);
    realm_runtime_reload(rt);
    return t;
}

static realm_run_params request_for(uint32_t max_tokens) {
    realm_run_params p = text_request();
    p.generation.max_tokens = max_tokens;
    return p;
}

static void other_is_served(void) {
    client c;
    complete(&c, other, request_for(8));
    expect_ok(&c);
    assert_int_equal(c.n_tokens, 8);
    end(&c);
}

static realm_status admit_and_open(realm_tenant *t, realm_rate *rate, realm_request **r, realm_error *err) {
    realm_status s = realm_tenant_admit(t, rate, err);
    return s == REALM_OK ? request_on(t, "tiny", rate, r, err) : s;
}

/* Opens requests, each of `tokens` tokens (0: nothing is run), until one is refused; how many were not. */
static unsigned until_refused(realm_tenant *t, uint32_t tokens, realm_status code, const char *limit,
                              realm_rate *rate) {
    for (unsigned n = 0; n < 100000; n++) {
        realm_error err = {0};
        realm_request *r = NULL;
        client c;
        realm_status s = admit_and_open(t, rate, &r, &err);
        if (s == code) {
            if (!strstr(err.text, limit)) fail_msg("%s", err.text);
            return n;
        }
        assert_int_equal(s, REALM_OK);
        realm_request_close(r);
        if (tokens == 0) continue;
        complete(&c, t, request_for(tokens)); /* a second request: these limits are of tokens */
        expect_ok(&c);
        end(&c);
    }
    fail_msg("%s was never reached", limit);
    return 0;
}

/* Admitted again within the time that the refusal named, and a little. */
static void passes(realm_tenant *t, const realm_rate *rate) {
    realm_error err = {0};
    realm_request *r = NULL;
    realm_rate now;
    uint64_t begun = realm_clock_ns();
    assert_true(rate->retry_after_ms > 0 && rate->retry_after_ms < 30000);
    assert_int_equal(admit_and_open(t, &now, &r, &err), REALM_E_RATE);
    assert_true(now.retry_after_ms <= rate->retry_after_ms);
    usleep(now.retry_after_ms * 1000 + 1000);
    if (admit_and_open(t, NULL, &r, &err))
        fail_msg("still refused after %llu ms: %s", (unsigned long long)((realm_clock_ns() - begun) / REALM_NS_PER_MS),
                 err.text);
    realm_request_close(r);
}

static void requests_per_minute(void **state) {
    (void)state;
    realm_rate rate;
    realm_tenant *t = limited("asks", "requests_per_minute", "300");
    unsigned n = until_refused(t, 0, REALM_E_RATE, "requests_per_minute: 300", &rate);
    assert_true(n >= 300 && n < 600); /* what was saved up, and what came in meanwhile */
    assert_int_equal(rate.limit, 300);
    assert_int_equal(rate.remaining, 0);
    other_is_served();
    limited("asks", "requests_per_minute", "300"); /* written again: that is no way to a full bucket */
    (void)until_refused(t, 0, REALM_E_RATE, "requests_per_minute", &rate);
    passes(t, &rate);
    realm_tenant_release(t);
    realm_tenant_release(t);
}

static void tokens_per_minute(void **state) {
    (void)state;
    realm_rate rate;
    realm_tenant *t = limited("talks", "tokens_per_minute", "3000");
    unsigned n = until_refused(t, 200, REALM_E_RATE, "tokens_per_minute: 3000", &rate);
    assert_true(n >= 14 && n < 60); /* 204 or so each; the debt of the last one is what has to pass */
    assert_int_equal(rate.token_limit, 3000);
    assert_int_equal(rate.token_remaining, 0);
    other_is_served();
    passes(t, &rate);
    realm_tenant_release(t);
}

static void tokens_per_day(void **state) {
    (void)state;
    realm_error err = {0};
    realm_rate rate;
    realm_request *r = NULL;
    realm_tenant *t = limited("daily", "tokens_per_day", "100");
    unsigned n = until_refused(t, 20, REALM_E_QUOTA, "tokens_per_day: 100", &rate);
    assert_true(n >= 3 && n <= 6);
    assert_true(rate.retry_after_ms <= 86400000u);
    other_is_served();
    realm_tenant_release(limited("daily", "tokens_per_day", "1000000")); /* the operator is asked for more */
    assert_int_equal(request_on(t, "tiny", NULL, &r, &err), REALM_OK);
    realm_request_close(r);
    realm_tenant_release(t);
}

/* Over all requests of a tenant together: two that hold a generation each leave none for a third, until they go. */
static void generations(void **state) {
    (void)state;
    client held[2], c;
    realm_tenant_release(limited("starts", "generations", "2"));
    realm_tenant *t = tenant_with("starts", TEST_WASM "/guest", "stuck");
    for (int i = 0; i < 2; i++) {
        begin(&held[i], t, request_for(0));
        follow(&held[i], 7); /* "started" */
    }
    complete(&c, t, request_for(0));
    assert_int_equal(c.status, REALM_E_CROWDED);
    assert_non_null(strstr(c.error, "generations: 2"));
    end(&c);
    other_is_served();
    for (int i = 0; i < 2; i++) {
        realm_run_cancel(held[i].run);
        follow(&held[i], 0);
        end(&held[i]);
    }
    realm_engine_stats st;
    do /* a cancelled generation counts until the engine's next step */
        realm_engine_get_stats(engine_of(rt, "tiny"), &st);
    while (st.running + st.queued > 0);
    begin(&c, t, request_for(0));
    follow(&c, 7);
    realm_run_cancel(c.run);
    follow(&c, 0);
    if (c.finish != REALM_FINISH_CANCELLED) fail_msg("%d: %s", c.status, c.error);
    end(&c);
    realm_tenant_release(t);
}

/* Of the 64 places for programs one tenant alone gets half, the next one half of the rest; then there is room again. */
static void places(void **state) {
    (void)state;
    static client held[33], c;
    realm_error err = {0};
    realm_tenant *t[2] = {tenant_with("waits", TEST_WASM "/guest", "stuck"),
                          tenant_with("waits-too", TEST_WASM "/guest", "stuck")};
    for (int k = 0; k < 2; k++) {
        const int most = k == 0 ? 32 : 1;
        for (int i = 0; i < most; i++) begin(&held[k ? 32 : i], t[k], request_for(0));
        if (k > 0) continue;
        realm_run_params p = request_for(0);
        realm_request *r;
        realm_run *run;
        assert_int_equal(request_on(t[k], "tiny", NULL, &r, &err), REALM_OK);
        assert_int_equal(realm_run_start(r, &p, &run, &err), REALM_E_CROWDED);
        assert_non_null(strstr(err.text, "32 programs of your requests are running, and 32 more may run"));
        realm_request_close(r);
    }
    for (int i = 0; i < 33; i++) realm_run_cancel(held[i].run);
    for (int i = 0; i < 33; i++) {
        follow(&held[i], 0);
        assert_int_equal(held[i].finish, REALM_FINISH_CANCELLED);
        end(&held[i]);
    }
    begin(&c, t[0], request_for(0));
    follow(&c, 7);
    realm_run_cancel(c.run);
    follow(&c, 0);
    end(&c);
    assert_int_equal(atomic_load(&rt->instances), 0);
    assert_int_equal(atomic_load(&t[0]->instances), 0);
    for (int k = 0; k < 2; k++) realm_tenant_release(t[k]);
}

static void kv_tokens(void **state) {
    (void)state;
    client c;
    realm_tenant *t = limited("holds", "kv_tokens", "64");
    complete(&c, t, request_for(200)); /* can never fit */
    assert_int_equal(c.status, REALM_E_QUOTA);
    assert_non_null(strstr(c.error, "kv_tokens"));
    end(&c);
    other_is_served();
    complete(&c, t, request_for(40));
    expect_ok(&c);
    assert_int_equal(c.n_tokens, 40);
    end(&c);
    complete(&c, t, request_for(0)); /* without a length of its own it ends where the limit is */
    expect_ok(&c);
    assert_int_equal(c.finish, REALM_FINISH_LENGTH);
    assert_true(c.n_tokens >= 40 && c.n_tokens <= 64);
    end(&c);
    realm_tenant_release(t);
}

int main(int argc, char **argv) {
    if (is_compiler(argc, argv)) return compile(argv);
    if (open_runtime()) return 1;
    other = tenant_with("other", NULL, NULL);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(requests_per_minute),
        cmocka_unit_test(tokens_per_minute),
        cmocka_unit_test(tokens_per_day),
        cmocka_unit_test(generations),
        cmocka_unit_test(places),
        cmocka_unit_test(kv_tokens),
    };
    int failed = cmocka_run_group_tests_name("limits over time", tests, NULL, NULL);
    realm_tenant_release(other);
    return close_runtime(failed);
}
