/* What programs use besides tokens: their CPU time, however they end, and the device time of their tensor calls. It
 * stands in the ledger when their END is handed out, under their tenant alone, and adds up to what was counted in all.
 */
#include "tenant/client.h"
#include "tenant/internal.h"

#define MS REALM_NS_PER_MS

static realm_usage used[8]; /* by tenant; what take_usage fills in */
static realm_usage sum;
static const char *wanted;

static bool take_usage(void *user, const char *name, const realm_usage *u) {
    realm_usage_add(&sum, u);
    if (wanted && strcmp(name, wanted) == 0) *(realm_usage *)user = *u;
    return true;
}

/* What the store says, read as another process would; again when a running program was charged between two reads. */
static realm_usage stored_usage_of(const char *tenant) {
    realm_error err = {0};
    realm_usage u, before, engine;
    realm_store *store;
    if (realm_store_open(&store, state_dir, &err)) fail_msg("%s", err.text);
    wanted = tenant;
    do {
        u = sum = (realm_usage){0};
        assert_int_equal(realm_store_usage_engine(store, &before, NULL), REALM_OK);
        assert_int_equal(realm_store_usage_each(store, NULL, 0, take_usage, &u, NULL), REALM_OK);
        assert_int_equal(realm_store_usage_engine(store, &engine, NULL), REALM_OK);
    } while (before.program_cpu_ns != engine.program_cpu_ns);
    assert_int_equal(sum.program_cpu_ns, engine.program_cpu_ns);
    assert_int_equal(sum.tensor_ns, engine.tensor_ns);
    assert_int_equal(sum.prompt_tokens, engine.prompt_tokens);
    assert_int_equal(sum.completion_tokens, engine.completion_tokens);
    realm_store_close(store);
    return u;
}

static uint64_t cpu_of(const char *tenant) { return stored_usage_of(tenant).program_cpu_ns; }

static void programs_are_charged_however_they_end(void **state) {
    (void)state;
    client c;
    static const struct {
        const char *name, *does;
        realm_status status;
        uint64_t least_ns;
    } CASES[] = {{"returns", "handles", REALM_OK, 1},
                 {"traps", "trap", REALM_E_PROGRAM, 1},
                 {"spins", "spin", REALM_E_LIMIT, 200 * MS}};
    realm_tenant *quiet = tenant_with("quiet", NULL, NULL);
    complete(&c, quiet, text_request());
    expect_ok(&c);
    end(&c);
    const uint64_t before = cpu_of("quiet");
    assert_true(before > 0); /* the default program is one too */
    for (size_t i = 0; i < REALM_ARRAY_LEN(CASES); i++) {
        realm_tenant *t = tenant_with(CASES[i].name, TEST_WASM "/guest", "hostile");
        if (CASES[i].status == REALM_E_LIMIT) set_limit(CASES[i].name, "cpu_ms_per_wake", "200");
        complete(&c, t, with_text(CASES[i].does));
        assert_int_equal(c.status, CASES[i].status);
        used[i] = stored_usage_of(CASES[i].name); /* END has been told: it is there */
        if (used[i].program_cpu_ns < CASES[i].least_ns)
            fail_msg("%s: %llu ns", CASES[i].name, (unsigned long long)used[i].program_cpu_ns);
        if (CASES[i].status == REALM_E_LIMIT) assert_true(used[i].program_cpu_ns < 2 * CASES[i].least_ns); /* once */
        end(&c);
        realm_tenant_release(t);
    }
    for (size_t i = 0; i < REALM_ARRAY_LEN(CASES); i++) /* each to its own, once */
        assert_int_equal(cpu_of(CASES[i].name), used[i].program_cpu_ns);
    assert_int_equal(cpu_of("quiet"), before);
    realm_tenant_release(quiet);
}

static uint64_t await_cpu(const char *tenant, uint64_t ns) {
    uint64_t until = realm_clock_ns() + PATIENCE_NS, used_ns;
    while ((used_ns = cpu_of(tenant)) < ns) {
        if (realm_clock_ns() > until) fail_msg("%s: %llu ns", tenant, (unsigned long long)used_ns);
        usleep(10000);
    }
    return used_ns;
}

/* The ledger and the numbers of a tenant follow a program while it runs. */
static void a_client_that_leaves_is_charged(void **state) {
    (void)state;
    client c;
    realm_error err = {0};
    realm_tenant_stats *list;
    size_t n;
    uint64_t told = 0;
    realm_tenant *t = tenant_with("leaves", TEST_WASM "/guest", "hostile");
    set_limit("leaves", "cpu_ms_per_wake", "600000");
    begin(&c, t, with_text("spin"));
    follow(&c, 1);
    uint64_t some = await_cpu("leaves", 1);
    uint64_t more = await_cpu("leaves", some + 5 * MS);
    if (realm_runtime_tenant_stats(rt, &list, &n, &err)) fail_msg("%s", err.text);
    for (size_t i = 0; i < n; i++)
        if (strcmp(list[i].name, "leaves") == 0) told = list[i].used.program_cpu_ns;
    assert_true(told >= more);
    realm_free(list);
    assert_int_equal(c.finish, REALM_FINISH_NONE); /* it has not ended */
    realm_run_cancel(c.run);
    follow(&c, 0); /* ended after its period of grace */
    assert_int_equal(c.finish, REALM_FINISH_CANCELLED);
    realm_usage u = stored_usage_of("leaves");
    assert_true(u.program_cpu_ns > more);
    assert_int_equal(u.aborted_requests, 1);
    end(&c);
    realm_tenant_release(t);
}

static void store_program(const char *tenant, const void *wasm, size_t len) {
    realm_error err = {0};
    realm_tenant_row row;
    realm_store *s = realm_runtime_store(rt);
    if (realm_store_tenant_find(s, tenant, &row, &err) ||
        realm_store_tenant_set(s, tenant, &row.limits, wasm, len, &err))
        fail_msg("%s", err.text);
    realm_runtime_reload(rt);
}

/* Compiling is charged to whom it is done for; what is compiled already costs nobody anything. */
static void compiling_is_charged(void **state) {
    (void)state;
    /* (memory (export "memory") 1) (func (export "realm_main") (result i32)): without a result, which only the compiler
     * sees */
    static const unsigned char WRONG[] = {0,    'a', 's', 'm', 1,   0,   0,   0,   1,   5,   1, 0x60, 0,   1,
                                          0x7f, 3,   2,   1,   0,   5,   3,   1,   0,   1,   7, 23,   2,   10,
                                          'r',  'e', 'a', 'l', 'm', '_', 'm', 'a', 'i', 'n', 0, 0,    6,   'm',
                                          'e',  'm', 'o', 'r', 'y', 2,   0,   10,  4,   1,   2, 0,    0x0b};
    client c;
    realm_error err = {0};
    realm_tenant *first = tenant_with("first", TEST_WASM "/guest", "probe_tensors"),
                 *second = tenant_with("second", TEST_WASM "/guest", "probe_tensors"), *third;
    realm_runtime_reload(rt);
    assert_true(cpu_of("first") > MS);
    assert_int_equal(cpu_of("second"), 0);
    third = tenant_with("third", NULL, NULL);
    store_program("third", WRONG, sizeof WRONG);
    complete(&c, third, text_request()); /* compiled with the first request, by the pool */
    assert_int_equal(c.status, REALM_E_PROGRAM);
    assert_non_null(strstr(c.error, "does not compile"));
    end(&c);
    const uint64_t refused = cpu_of("third");
    assert_true(refused > 0);
    realm_run_params again = text_request();
    realm_request *request;
    realm_run *run;
    if (request_on(third, "tiny", NULL, &request, &err)) fail_msg("%s", err.text);
    assert_int_equal(realm_run_start(request, &again, &run, &err), REALM_E_PROGRAM);
    realm_request_close(request);
    realm_runtime_reload(rt);
    assert_int_equal(cpu_of("third"), refused); /* once */
    realm_tenant_release(first);
    realm_tenant_release(second);
    realm_tenant_release(third);
}

static void tensor_calls_are_charged(void **state) {
    (void)state;
    client c;
    realm_tenant *t = tenant_with("computes", TEST_WASM "/guest", "probe_tensors");
    complete(&c, t, text_request());
    expect_ok(&c);
    end(&c);
    realm_usage u = stored_usage_of("computes");
    assert_true(u.tensor_ns > 0 && u.program_cpu_ns > 0);
    assert_int_equal(u.tensor_ns, sum.tensor_ns); /* nobody else has any */
    realm_tenant_release(t);
}

/* A tenant that is deleted while its program runs: what that used is in the ledger before the tenant is forgotten. */
static void deleted_tenants_are_charged(void **state) {
    (void)state;
    client c;
    realm_error err = {0};
    realm_tenant *t = tenant_with("goes", TEST_WASM "/guest", "hostile");
    set_limit("goes", "cpu_ms_per_wake", "50");
    begin(&c, t, with_text("spin"));
    follow(&c, 1);
    if (realm_store_tenant_delete(realm_runtime_store(rt), "goes", &err)) fail_msg("%s", err.text);
    realm_runtime_reload(rt);
    follow(&c, 0);
    end(&c);
    realm_tenant_release(t);
    realm_runtime_reload(rt);
    assert_true(cpu_of("goes") >= 50 * MS);
}

static const realm_tenant_stats *named(const realm_tenant_stats *list, size_t n, const char *name) {
    const realm_tenant_stats *found = NULL;
    for (size_t i = 0; i < n; i++) {
        if (i > 0) assert_true(strcmp(list[i - 1].name, list[i].name) < 0); /* in order, each name once */
        if (strcmp(list[i].name, name) == 0) found = &list[i];
    }
    return found;
}

/* The numbers of the tenants in memory: what the ledger says since the start, and what they hold now. */
static void tenants_in_numbers(void **state) {
    (void)state;
    client c;
    realm_error err = {0};
    realm_tenant_stats *list;
    size_t n;
    realm_store *store = realm_runtime_store(rt);
    realm_tenant *first = tenant_with("twin", NULL, NULL), *second;
    complete(&c, first, text_request());
    end(&c);
    if (realm_store_tenant_delete(store, "twin", &err)) fail_msg("%s", err.text);
    second = tenant_with("twin", TEST_WASM "/guest", "hostile"); /* another one, while the first is still there */
    set_limit("twin", "cpu_ms_per_wake", "20000");
    begin(&c, second, with_text("never polls")); /* so its generation waits, with its list of events full */
    follow(&c, 1);
    if (realm_store_value_put(store, second->id, 1000, "key", 3, "value", 5, &err)) fail_msg("%s", err.text);
    if (realm_runtime_tenant_stats(rt, &list, &n, &err)) fail_msg("%s", err.text);
    const realm_tenant_stats *twin = named(list, n, "twin");
    assert_non_null(twin);
    assert_int_equal(twin->id, second->id);
    assert_int_equal(twin->used.requests, 0); /* what the first has used is not the second's */
    assert_int_equal(twin->generations, 1);
    assert_int_equal(twin->storage_bytes, 8);
    realm_free(list);
    realm_run_cancel(c.run);
    follow(&c, 0);
    end(&c);
    if (realm_runtime_tenant_stats(rt, &list, &n, &err)) fail_msg("%s", err.text);
    twin = named(list, n, "twin");
    assert_non_null(twin);
    assert_int_equal(twin->used.requests, 1);
    assert_int_equal(twin->used.aborted_requests, 1);
    assert_true(twin->used.program_cpu_ns > 0);
    realm_free(list);
    realm_tenant_release(first);
    realm_tenant_release(second);
}

int main(int argc, char **argv) {
    static char dir[SCRATCH_MAX] = "test-usage";
    char remove[SCRATCH_MAX + 16];
    if (is_compiler(argc, argv)) return compile(argv);
    state_dir = scratch_dir(dir);
    if (!state_dir || open_runtime()) return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(programs_are_charged_however_they_end),
        cmocka_unit_test(a_client_that_leaves_is_charged),
        cmocka_unit_test(compiling_is_charged),
        cmocka_unit_test(tensor_calls_are_charged),
        cmocka_unit_test(deleted_tenants_are_charged),
        cmocka_unit_test(tenants_in_numbers),
    };
    int failed = close_runtime(cmocka_run_group_tests_name("usage", tests, NULL, NULL));
    snprintf(remove, sizeof remove, "rm -rf '%s'", dir);
    return system(remove) ? 1 : failed;
}
