/* The table of host calls has both of its halves, and structures keep the layouts that programs were compiled with.
 * That bindings and documents say the same as the table is what tools/abi-gen --check is for. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/file.h"
#include "gen/abi_layouts.h"
#include "store/store.h"
#include "tenant/host/abi.h"
#include "tenant/run.h"

#define ROW(...) +1
enum { N_ROWS = 0 REALM_ABI_CALLS(ROW) };
#undef ROW

static void test_twins(void **state) {
    (void)state;
    size_t n = 0, narrow = 0, wide = 0, wasi = 0;
    const realm_import *t = realm_host_imports(&n);
    for (size_t i = 0; i < n; i++) {
        narrow += !strcmp(t[i].module, "realm");
        wide += !strcmp(t[i].module, "realm64");
        wasi += !strcmp(t[i].module, "wasi_snapshot_preview1");
        assert_true(t[i].wide == !strcmp(t[i].module, "realm64"));
        for (size_t k = 0; k < i; k++) assert_false(!strcmp(t[i].module, t[k].module) && !strcmp(t[i].name, t[k].name));
    }
    assert_int_equal(narrow, N_ROWS);
    assert_int_equal(wide, N_ROWS);
    assert_int_equal(wasi, 46); /* all of preview 1 */
}

/* Every import has a group to show, and what is none has not. */
static void test_groups(void **state) {
    (void)state;
    size_t n = 0;
    const realm_import *t = realm_host_imports(&n);
    for (size_t i = 0; i < n; i++)
        if (!realm_host_import_group(t[i].module, t[i].name)) fail_msg("%s.%s has no group", t[i].module, t[i].name);
    assert_string_equal(realm_host_import_group("realm64", "emit"), "Input and output");
    assert_null(realm_host_import_group("realm", "read_minds"));
    assert_null(realm_host_import_group("elsewhere", "emit"));
}

/* Programs that exist were compiled with these layouts. */
static void test_layouts(void **state) {
    (void)state;
    assert_int_equal(sizeof(realm_generate_options), 96);
    assert_int_equal(offsetof(realm_generate_options, max_tokens), 8);
    assert_int_equal(offsetof(realm_generate_options, flags), 44);
    assert_int_equal(offsetof(realm_generate_options, seed), 48);
    assert_int_equal(offsetof(realm_generate_options, n_stop), 72);
    assert_int_equal(sizeof(realm_guest_event), 32);
    assert_int_equal(offsetof(realm_guest_event, status), 28);
    assert_int_equal(sizeof(realm_guest_usage), 12);
    assert_int_equal(offsetof(realm_generate_options, sampler), 80);
    assert_int_equal(sizeof(realm_guest_limits), 88);
    assert_int_equal(offsetof(realm_guest_limits, read_bytes), 48);
    assert_int_equal(sizeof(realm_event_ring), 24);
    assert_int_equal(sizeof(realm_sampler_stage), 40);
    assert_int_equal(offsetof(realm_sampler_stage, data), 32);
    assert_int_equal(sizeof(realm_guest_context), 24);
    assert_int_equal(sizeof(realm_guest_tensor), 48);
    assert_int_equal(sizeof(realm_guest_tensor_op), 120);
    assert_int_equal(offsetof(realm_guest_tensor_op, ids), 80);
    assert_int_equal(sizeof(realm_stream_stats), 56);
    assert_int_equal(offsetof(realm_guest_limits, memory_bytes), 16);
    assert_int_equal(sizeof(realm_bytes), 16);
    assert_int_equal(sizeof(realm_bias), 8);
}

static void test_limits_document(void **state) {
    (void)state;
    realm_error err = {0};
    char *doc = NULL, line[160];
    size_t n = 0, rows = 0;
    if (realm_file_read("docs/limits.md", 1u << 20, &doc, &n, &err)) fail_msg("%s", err.text);
#define X(field, type, def, least, most, text)                                                      \
    snprintf(line, sizeof line, "| `%s` | %s | %s | %s | %s |", #field, #def, #least, #most, text); \
    if (!strstr(doc, line)) fail_msg("docs/limits.md has no row \"%s\"", line);
    REALM_TENANT_LIMITS(X)
#undef X
#define X(field, type, def, least, most, text) rows++;
    REALM_TENANT_LIMITS(X)
#undef X
    char *table = strstr(doc, "\n| `"), *end = table ? strstr(table, "\n\n") : NULL; /* the page has others behind it */
    if (end) *end = '\0';
    for (const char *at = table; at && (at = strstr(at, "\n| `")); at++) rows--;
    assert_int_equal(rows, 0);
    realm_free(doc);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_limits_document),
        cmocka_unit_test(test_twins),
        cmocka_unit_test(test_groups),
        cmocka_unit_test(test_layouts),
    };
    return cmocka_run_group_tests_name("abi", tests, NULL, NULL);
}
