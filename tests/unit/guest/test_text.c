/* guest/c/realm_text.h, compiled for the host: texts that do not fit, JSON that is none, and JSON of every kind. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "realm/abi.h"
#include "realm/status.h"

/* What the header takes from realm_guest.h, whose imports there are only in a sandbox. */
#define REALM_GUEST_H
#define REALM_LITERAL(s) (s), (sizeof(s) - 1)
static const char *request_messages, *request_prompt;
static size_t realm_strlen(const char *s) { return strlen(s); }
static int32_t realm_emit(const char *text, size_t len) {
    (void)text;
    return (int32_t)len;
}
static int32_t realm_input(const char *name, size_t name_len, char *out, size_t max) {
    const char *value = name_len == 8 && !memcmp(name, "messages", 8) ? request_messages : request_prompt;
    if (!value) return REALM_E_NOT_FOUND;
    size_t n = strlen(value);
    if (n <= max) memcpy(out, value, n);
    return (int32_t)n;
}
static int32_t realm_generate(int32_t prompt, const realm_generate_options *options, uint32_t mode) {
    (void)prompt, (void)options, (void)mode;
    return REALM_E_UNSUPPORTED;
}
static int32_t realm_wait(int32_t h, realm_guest_event *e, size_t n, char *text, size_t max, int32_t timeout_ms) {
    (void)h, (void)e, (void)n, (void)text, (void)max, (void)timeout_ms;
    return REALM_E_UNSUPPORTED;
}
static int32_t realm_close(int32_t handle) { return handle; }
#include "../../../guest/c/realm_text.h"

#define IS(t, s) assert_true(realm_text_is(&(t), s))

static void test_text(void **state) {
    (void)state;
    char bytes[16];
    realm_text t = REALM_TEXT_IN(bytes);
    realm_text_int(&t, -9223372036854775807 - 1 + 9223372036854775800);
    realm_text_putc(&t, '|');
    realm_text_fixed(&t, -0.005);
    IS(t, "-8|-0.01");
    assert_int_equal(realm_text_emit(&t), 8);
    realm_text_puts(&t, "too long"); /* exactly the room */
    assert_false(t.cut);
    realm_text_putc(&t, 'x');
    assert_true(t.cut);
    IS(t, "-8|-0.01too long");
    assert_int_equal(realm_text_emit(&t), REALM_E_RANGE);
    assert_int_equal(realm_text_find(&t, "too", 0), 8);
    assert_true(realm_text_find(&t, "too", 9) == SIZE_MAX);
    t.len = 0;
    realm_text_fixed(&t, 12.999);
    IS(t, "13.00");
    t.len = 0;
    realm_text_json(&t, "\"\n\x01", 3);
    IS(t, "\"\\\"\\n\\u0001\"");
}

static bool valid(const char *text) {
    realm_json v;
    size_t n = strlen(text);
    char *fitted = realm_calloc(n + !n, 1); /* no NUL behind it: the sanitizer sees a byte too far */
    assert_non_null(fitted);
    memcpy(fitted, text, n);
    bool ok = realm_json_parse(fitted, n, &v);
    realm_free(fitted);
    return ok;
}

static void test_valid(void **state) {
    (void)state;
    static const char *const GOOD[] = {
        "{}",  "[]", " [ 1 , -2.5e+3,0 ]\n", "\"\\u00e9\\n\"", "true", "{\"a\":{\"b\":[null,false]},\"c\":\"\"}",
        "0.1", "-0"};
    static const char *const BAD[] = {"",    "{",    "[1,]",    "[1 2]",     "{\"a\"}", "{\"a\":}",   "{a:1}",
                                      "'a'", "\"a",  "\"\\x\"", "\"\\u12\"", "\"\n\"",  "01",         "1.",
                                      ".5",  "1e",   "-",       "tru",       "[1]]",    "{\"a\":1,}", "nul",
                                      "[1}", "\"\\", "+1",      "1 2",       "\\",      "{\"a\":1"};
    for (size_t i = 0; i < sizeof GOOD / sizeof *GOOD; i++)
        if (!valid(GOOD[i])) fail_msg("refused: %s", GOOD[i]);
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++)
        if (valid(BAD[i])) fail_msg("taken: %s", BAD[i]);
    char deep[200];
    memset(deep, '[', 100);
    memset(deep + 100, ']', 100);
    realm_json v;
    assert_false(realm_json_parse(deep, 200, &v));
    assert_true(realm_json_parse(deep + 80, 40, &v));
}

static void test_values(void **state) {
    (void)state;
    static const char DOC[] =
        "{\"list\": [10, {\"x\":\"y\"}, \"z\"], \"text\":\"a\\\"\\u00e9\\ud83d\\ude00\\ud83d!\\/\"}";
    char bytes[64];
    realm_text t = REALM_TEXT_IN(bytes);
    realm_json root, list, v, key;
    assert_true(realm_json_parse(REALM_LITERAL(DOC), &root));
    assert_true(realm_json_get(root, "list", &list) && realm_json_at(list, 1, NULL, &v) && realm_json_get(v, "x", &v));
    realm_text_json_value(&t, v);
    IS(t, "y");
    assert_false(realm_json_at(list, 3, NULL, &v));
    assert_false(realm_json_get(root, "lis", &v));
    assert_false(realm_json_get(list, "list", &v));
    assert_true(realm_json_at(root, 1, &key, &v));
    t.len = 0;
    realm_text_json_value(&t, v);
    IS(t, "a\"\xc3\xa9\xf0\x9f\x98\x80\xef\xbf\xbd!/");
}

static void test_question(void **state) {
    (void)state;
    char bytes[32], room[256];
    realm_text t = REALM_TEXT_IN(bytes);
    request_messages = "[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":\"Hi \\\"you\\\"\"}]";
    assert_int_equal(realm_text_question(&t, room, sizeof room), 0);
    IS(t, "Hi \"you\"");
    t.len = 0;
    request_messages = "[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"one\"},{\"type\":\"text\","
                       "\"text\":\" two\"}]}]";
    assert_int_equal(realm_text_question(&t, room, sizeof room), 0);
    IS(t, "one two");
    assert_int_equal(realm_text_question(&t, room, 10), REALM_E_RANGE);
    request_messages = "[]";
    assert_int_equal(realm_text_question(&t, room, sizeof room), REALM_E_NOT_FOUND);
    t.len = 0;
    request_messages = NULL, request_prompt = "Once";
    assert_int_equal(realm_text_question(&t, room, sizeof room), 0);
    IS(t, "Once");
    request_prompt = NULL;
    assert_int_equal(realm_text_question(&t, room, sizeof room), REALM_E_NOT_FOUND);
}

/* Thousands of damaged documents: an answer, and what was taken can be walked. */
static void test_mutations(void **state) {
    (void)state;
    static const char DOC[] = "{\"a\":[1,-2.5e3,{\"b\":\"\\u00e9\\\\\"}],\"c\":null,\"d\":\"x\\n\",\"e\":[[],{}]}";
    uint32_t seed = 1;
    char bytes[256];
    unsigned taken = 0;
    for (int round = 0; round < 20000; round++) {
        seed = seed * 1664525 + 1013904223;
        size_t n = round % 2 ? sizeof DOC - 1 : 1 + (seed >> 8) % (sizeof DOC - 1);
        char *doc = realm_calloc(n, 1);
        assert_non_null(doc);
        memcpy(doc, DOC, n);
        for (int k = 0; k < 1 + round % 3; k++) {
            seed = seed * 1664525 + 1013904223;
            doc[(seed >> 8) % n] = "{}[]\",:\\u0e1.-\n x"[(seed >> 24) % 17];
        }
        realm_json root, v, key;
        if (realm_json_parse(doc, n, &root)) {
            taken++;
            for (uint32_t i = 0; realm_json_at(root, i, &key, &v); i++) {
                realm_text t = REALM_TEXT_IN(bytes);
                realm_text_json_value(&t, v);
                assert_true(t.len <= sizeof bytes);
            }
            (void)realm_json_get(root, "c", &v);
        }
        realm_free(doc);
    }
    assert_true(taken > 100);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text),     cmocka_unit_test(test_valid),     cmocka_unit_test(test_values),
        cmocka_unit_test(test_question), cmocka_unit_test(test_mutations),
    };
    return cmocka_run_group_tests_name("guest text", tests, NULL, NULL);
}
