/* The table of host calls, docs/abi.md, guest/realm_guest.h and the structures say the same. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/file.h"
#include "tenant/abi.h"
#include "tenant/run.h"

typedef struct row {
    const char *name, *params;
} row;

#define ROW(group, name, params, flags, declaration, text) {#name, params},
static const row ROWS[] = {REALM_ABI_CALLS(ROW)};
#undef ROW

static char *read_text(const char *path) {
    char *text = NULL;
    size_t n = 0;
    realm_error err = {0};
    if (realm_file_read(path, 1u << 20, &text, &n, &err)) fail_msg("%s", err.text);
    return text;
}

static size_t count(const char *text, const char *part) {
    size_t n = 0;
    for (const char *at = text; (at = strstr(at, part)); at += strlen(part)) n++;
    return n;
}

static void test_document(void **state) {
    (void)state;
    char *doc = read_text("docs/abi.md"), line[128];
    for (size_t i = 0; i < REALM_ARRAY_LEN(ROWS); i++) {
        int n = snprintf(line, sizeof line, "\n| `%s` | ", ROWS[i].name);
        for (const char *p = ROWS[i].params; *p; p++) n += snprintf(line + n, sizeof line - (size_t)n, "%c ", *p);
        snprintf(line + n, sizeof line - (size_t)n, "| ");
        if (count(doc, line) != 1) fail_msg("docs/abi.md has no line that starts with \"%s\"", line + 1);
    }
    /* and nothing else: every row of a function table is one of ours */
    size_t rows = 0, tables = 0;
    for (const char *at = strstr(doc, "## Functions"); at && (at = strchr(at, '\n')) && strncmp(at, "\n## Limits", 10);
         at++) {
        rows += !strncmp(at, "\n| `", 4) && strncmp(at, "\n| `REALM_MODE", 14);
        tables += !strncmp(at, "\n| function", 11);
    }
    assert_int_equal(rows, REALM_ARRAY_LEN(ROWS));
    assert_true(tables > 3);
    snprintf(line, sizeof line, "Version %d.%d.", REALM_ABI_MAJOR, REALM_ABI_MINOR);
    assert_int_equal(count(doc, line), 1);
    realm_free(doc);
}

/* Letters of a C parameter list as the guest header writes it: pointers and size_t are p, the rest i. */
static void letters_of(const char *from, const char *to, char *out, size_t cap) {
    size_t n = 0;
    if (!memchr(from, ' ', (size_t)(to - from)) && !strncmp(from, "void", 4)) {
        out[0] = 0;
        return;
    }
    for (const char *at = from; at < to && n + 1 < cap;) {
        const char *end = memchr(at, ',', (size_t)(to - at));
        if (!end) end = to;
        char one[128];
        snprintf(one, sizeof one, "%.*s", (int)(end - at), at);
        out[n++] = strchr(one, '*') || strstr(one, "size_t") ? 'p' : 'i';
        at = end + 1;
    }
    out[n] = 0;
}

static void test_guest_header(void **state) {
    (void)state;
    char *h = read_text("guest/realm_guest.h"), what[128], letters[32];
    for (size_t i = 0; i < REALM_ARRAY_LEN(ROWS); i++) {
        snprintf(what, sizeof what, "REALM_IMPORT(%s);", ROWS[i].name);
        assert_int_equal(count(h, what), 1);
        const char *open;
        for (open = strstr(h, what); open > h && strncmp(open, "\nint32_t ", 9); open--) {
        }
        open = strchr(open, '(') + 1;
        letters_of(open, strchr(open, ')'), letters, sizeof letters);
        if (strcmp(letters, ROWS[i].params) != 0)
            fail_msg("guest/realm_guest.h declares %s with %s, the table says %s", ROWS[i].name, letters,
                     ROWS[i].params);
    }
    assert_int_equal(count(h, "REALM_IMPORT("), REALM_ARRAY_LEN(ROWS) + 2); /* and its two definitions */
    realm_free(h);
}

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
    assert_int_equal(narrow, REALM_ARRAY_LEN(ROWS));
    assert_int_equal(wide, REALM_ARRAY_LEN(ROWS));
    assert_int_equal(wasi, 46); /* all of preview 1 */
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
    assert_int_equal(sizeof(realm_tensor_op), 88);
    assert_int_equal(offsetof(realm_tensor_op, ids), 56);
    assert_int_equal(sizeof(realm_stream_stats), 56);
    assert_int_equal(offsetof(realm_guest_limits, memory_bytes), 16);
    assert_int_equal(sizeof(realm_bytes), 16);
    assert_int_equal(sizeof(realm_bias), 8);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_document),
        cmocka_unit_test(test_guest_header),
        cmocka_unit_test(test_twins),
        cmocka_unit_test(test_layouts),
    };
    return cmocka_run_group_tests_name("abi", tests, NULL, NULL);
}
