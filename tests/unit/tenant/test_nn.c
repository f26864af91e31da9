/* Programs that speak wasi-nn, as the GGML backends of other runtimes offer it. */
#include "tenant/client.h"

static _Atomic int printed;

static void count_lines(void *user, realm_log_level level, const char *line, size_t len) {
    (void)user;
    (void)level;
    (void)len;
    if (strstr(line, "program: nn: info: ")) atomic_fetch_add(&printed, 1);
}

static void test_every_call(void **state) {
    client c, plain;
    (void)state;
    realm_tenant *t = tenant_with("nn", TEST_WASM "/guest", "nn"), *p = tenant_with("plain", NULL, NULL);
    realm_run_params six = text_request();
    six.generation.max_tokens = 6;
    complete(&plain, p, six);
    expect_ok(&plain);
    realm_log_configure(REALM_LOG_DEBUG, count_lines, NULL);
    complete(&c, t, text_request());
    realm_log_configure(REALM_LOG_INFO, NULL, NULL);
    expect_ok(&c);
    assert_true(atomic_load(&printed) > 0); /* stream-stdout: what compute makes is printed, which is for the log */
    const char *bar = strchr(c.text, '|'), *second = bar ? strchr(bar + 1, '|') : NULL;
    if (!second || strcmp(second + 1, "ok") != 0) fail_msg("tests/unit/tenant/guest/nn.c: %s", c.text);
    /* the same prompt, greedy: the same tokens, whole and one at a time. Single pieces end where a character does. */
    size_t whole = (size_t)(bar - c.text), single = (size_t)(second - bar - 1);
    assert_int_equal(whole, plain.len);
    assert_memory_equal(c.text, plain.text, whole);
    assert_true(single <= whole);
    assert_memory_equal(bar + 1, plain.text, single);
    /* In the tenant's account, as any other's: compute, two of compute_single (the first was left, with the engine at
     * most 8 ahead), "true" or "false" three times with or without an end token, and two models. */
    assert_in_range(c.completion_tokens, 6 + 6 + 16 + 3 * 4 + 12, 6 + (6 + 8) + 16 + 3 * 6 + 12);
    end(&c);
    end(&plain);
    realm_tenant_release(t);
    realm_tenant_release(p);
}

/* A wait of wasi-nn ends with its request. */
static void test_cancel(void **state) {
    client c[8];
    (void)state;
    realm_tenant *t = tenant_with("nn", TEST_WASM "/guest", "nn");
    for (size_t i = 0; i < 8; i++) begin(&c[i], t, text_request());
    for (size_t i = 0; i < 8; i++) realm_run_cancel(c[i].run);
    for (size_t i = 0; i < 8; i++) {
        follow(&c[i], 0);
        assert_int_equal(c[i].finish, REALM_FINISH_CANCELLED);
        end(&c[i]);
    }
    realm_tenant_release(t);
}

int main(int argc, char **argv) {
    if (is_compiler(argc, argv)) return compile(argv);
    if (open_runtime()) return 1;
    realm_error err = {0};
    realm_model_config other = {.engine = {.n_ctx = 256, .max_generations = 4}};
    if (realm_runtime_add_model(rt, "other", tiny_path, &other, NULL, NULL, &err)) return 1;
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_call), cmocka_unit_test(test_cancel)};
    return close_runtime(cmocka_run_group_tests_name("wasi-nn", tests, NULL, NULL));
}
