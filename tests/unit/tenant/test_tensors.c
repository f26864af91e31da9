/* Tensors by handle, end to end: programs in sandboxes that compute on the backend of a tiny model, in 32 and 64 bits.
 */
#include "tenant/client.h"

static void probe(const char *program) {
    client c;
    realm_tenant *t = tenant_with(program, TEST_WASM "/guest", program);
    complete(&c, t, text_request());
    expect_ok(&c);
    if (strcmp(c.text, "ok") != 0) fail_msg("%s: %s", program, c.text);
    end(&c);
    realm_tenant_release(t);
}

static void test_calls(void **state) {
    (void)state;
    probe("probe_tensors");
}

static void test_calls_with_64_bits(void **state) {
    (void)state;
    probe("probe_tensors64");
}

int main(int argc, char **argv) {
    if (is_compiler(argc, argv)) return compile(argv);
    if (open_runtime()) return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_calls),
        cmocka_unit_test(test_calls_with_64_bits),
    };
    return close_runtime(cmocka_run_group_tests_name("tensors", tests, NULL, NULL));
}
