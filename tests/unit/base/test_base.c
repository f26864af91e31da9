/* Error text, checked arithmetic, arena, buffer, UTF-8, queue: the small parts everything stands on. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/arena.h"
#include "base/base.h"
#include "base/buf.h"
#include "base/str.h"
#include "base/thread.h"
#include "base/utf8.h"

static void error_text_is_prefixed_and_cut(void **state) {
    (void)state;
    realm_error err = {0};
    assert_int_equal(realm_error_set(&err, REALM_E_FORMAT, "bad %d", 7), REALM_E_FORMAT);
    assert_int_equal(realm_error_prefix(&err, "file %s", "x"), REALM_E_FORMAT);
    assert_string_equal(err.text, "file x: bad 7");
    char big[2 * REALM_ERROR_TEXT_MAX];
    memset(big, 'a', sizeof big - 1);
    big[sizeof big - 1] = '\0';
    realm_error_prefix(&err, "%s", big);
    assert_int_equal(strlen(err.text), REALM_ERROR_TEXT_MAX - 1);
    realm_error_set(&err, REALM_E_IO, "%s", big);
    realm_error_prefix(&err, "p");
    assert_int_equal(strlen(err.text), REALM_ERROR_TEXT_MAX - 1);
    assert_memory_equal(err.text, "p: aaa", 6);
}

static void arithmetic_reports_overflow(void **state) {
    (void)state;
    size_t r = 5;
    uint64_t u = 5;
    assert_false(realm_mul_size(SIZE_MAX, 2, &r));
    assert_int_equal(r, 5);
    assert_true(realm_mul_size(3, 4, &r));
    assert_int_equal(r, 12);
    assert_false(realm_align_u64(UINT64_MAX, 32, &u));
    assert_true(realm_align_u64(33, 32, &u));
    assert_int_equal(u, 64);
}

static void arena_survives_every_failed_allocation(void **state) {
    (void)state;
    for (int64_t fail = 0; fail < 3; fail++) {
        realm_arena a;
        realm_arena_init(&a, 1 << 20);
        realm_alloc_inject_failure(fail, false);
        int got = 0;
        for (int i = 0; i < 200; i++) {
            char *p = realm_arena_alloc(&a, 100);
            if (!p) continue;
            got++;
            for (int k = 0; k < 100; k++) assert_int_equal(p[k], 0);
            memset(p, 1, 100);
        }
        realm_alloc_inject_failure(-1, false);
        assert_int_equal(got, 199);
        assert_non_null(realm_arena_alloc(&a, 1 << 19));
        assert_null(realm_arena_alloc(&a, 1 << 20));
        realm_arena_release(&a);
    }
}

static void buffer_stops_at_its_maximum(void **state) {
    (void)state;
    realm_buf b;
    realm_buf_init(&b, 10);
    assert_int_equal(realm_buf_puts(&b, "12345"), REALM_OK);
    assert_int_equal(realm_buf_printf(&b, "%s", "678901"), REALM_E_LIMIT);
    assert_string_equal(b.data, "12345");
    assert_int_equal(realm_buf_puts(&b, "67890"), REALM_OK);
    assert_int_equal(realm_buf_status(&b), REALM_E_LIMIT);
    realm_buf_consume(&b, 3);
    assert_string_equal(b.data, "4567890");
    realm_buf_release(&b);
}

static void utf8_follows_rfc_3629(void **state) {
    (void)state;
    static const char *const bad[] = {"\xC0\x80",         "\xE0\x80\x80",     "\xED\xA0\x80", "\xF0\x80\x80\x80",
                                      "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\x80",         "\xC3"};
    for (size_t i = 0; i < REALM_ARRAY_LEN(bad); i++) assert_false(realm_utf8_valid(bad[i], strlen(bad[i])));
    for (uint32_t c = 0; c <= 0x110000; c++) {
        char s[4];
        size_t n = realm_utf8_encode(c, s);
        uint32_t back;
        if (c > 0x10FFFF || (c >= 0xD800 && c < 0xE000)) {
            assert_int_equal(n, 0);
            continue;
        }
        assert_int_equal(realm_utf8_decode(s, n, &back), n);
        assert_int_equal(back, c);
        for (size_t cut = 1; cut < n; cut++) assert_int_equal(realm_utf8_complete_prefix(s, cut), 0);
        assert_int_equal(realm_utf8_complete_prefix(s, n), n);
    }
    assert_int_equal(realm_utf8_complete_prefix("a\xFF", 2), 2);
    assert_int_equal(realm_utf8_complete_prefix("a\xE0\x80", 3), 3); /* can never become well-formed */
}

static void escaping_shows_bytes_and_cuts(void **state) {
    (void)state;
    char out[16];
    assert_string_equal(realm_escape(out, sizeof out, "a\n\\\xC3\xA9", 5), "a\\x0A\\x5C\xC3\xA9");
    assert_string_equal(realm_escape(out, sizeof out, "0123456789abcdefg", 17), "0123456789ab...");
    assert_string_equal(realm_escape(out, sizeof out, "0123456789abcde", 15), "0123456789abcde");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(error_text_is_prefixed_and_cut),
        cmocka_unit_test(arithmetic_reports_overflow),
        cmocka_unit_test(arena_survives_every_failed_allocation),
        cmocka_unit_test(buffer_stops_at_its_maximum),
        cmocka_unit_test(utf8_follows_rfc_3629),
        cmocka_unit_test(escaping_shows_bytes_and_cuts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
