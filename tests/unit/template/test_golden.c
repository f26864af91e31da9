/* Every template of tests/data/template against what Python's jinja2 makes of it (generate.py there), and the pieces
 * of each result: they cover it, each special one is a control token, and no control token that came in with a message
 * is special. And of every character, whether it is a digit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "template/template.h"

#define DATA "tests/data/template/"

static realm_template_str str_of(const json_t *v) {
    return (realm_template_str){json_string_value(v), json_string_length(v)};
}

static char *read_template(const char *name, size_t *len) {
    char path[256];
    snprintf(path, sizeof path, DATA "%s.jinja", name);
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    char *text = malloc(1 << 16);
    assert_non_null(text);
    *len = fread(text, 1, 1 << 16, f);
    fclose(f);
    return text;
}

/* Length of the common beginning, stepped back a little to show where it is. */
static size_t first_difference(const char *a, const char *b) {
    size_t n = 0;
    while (a[n] && a[n] == b[n]) n++;
    return n < 10 ? 0 : n - 10;
}

static void check_spans(const realm_template_spans *spans, const realm_buf *out, const json_t *control) {
    size_t at = 0;
    for (size_t i = 0; i < spans->len; i++) {
        const realm_template_span *s = &spans->items[i];
        assert_int_equal(s->start, at);
        assert_true(s->len > 0);
        at += s->len;
        assert_true(at <= out->len);
        if (!s->special) continue;
        bool known = false;
        size_t k;
        json_t *token;
        json_array_foreach(control, k, token) {
            known |= json_string_length(token) == s->len &&
                     memcmp(json_string_value(token), out->data + s->start, s->len) == 0;
        }
        assert_true(known);
    }
    assert_int_equal(at, out->len);
}

static void golden(void **state) {
    (void)state;
    json_error_t why;
    json_t *cases = json_load_file(DATA "golden.json", 0, &why);
    assert_non_null(cases);
    size_t i, wrong = 0;
    json_t *c;
    json_array_foreach(cases, i, c) {
        size_t len;
        const char *name = json_string_value(json_object_get(c, "template"));
        char *source = read_template(name, &len);
        json_t *control = json_object_get(c, "control");
        realm_template_str texts[32];
        for (size_t k = 0; k < json_array_size(control); k++) texts[k] = str_of(json_array_get(control, k));
        realm_template_tokens tokens = {str_of(json_object_get(c, "bos")), str_of(json_object_get(c, "eos")), texts,
                                        json_array_size(control)};
        realm_template *t;
        realm_error err = {0};
        if (realm_template_open(&t, source, len, &tokens, &err) != REALM_OK) fail_msg("%s: %s", name, err.text);

        realm_template_input in = {
            .messages = str_of(json_object_get(c, "messages")),
            .tools = str_of(json_object_get(c, "tools")),
            .args = str_of(json_object_get(c, "args")),
            .add_generation_prompt = json_is_true(json_object_get(c, "add_generation_prompt")),
            .now_unix = json_integer_value(json_object_get(c, "now")),
        };
        realm_buf out;
        realm_buf_init(&out, 1 << 20);
        realm_template_spans spans = {0};
        realm_status s = realm_template_render(t, &in, &out, &spans, &err);
        json_t *text = json_object_get(c, "text");
        json_t *error = json_object_get(c, "error");
        if (text) {
            if (s != REALM_OK) {
                print_error("case %zu, %s: %s\n", i, name, err.text);
                wrong++;
            } else if (out.len != json_string_length(text) || memcmp(out.data, json_string_value(text), out.len) != 0) {
                const char *want = json_string_value(text), *got = out.data ? out.data : "";
                size_t same = first_difference(want, got);
                print_error("case %zu, %s, at byte %zu: expected '%.60s', got '%.60s'\n", i, name, same, want + same,
                            got + same);
                wrong++;
            } else {
                check_spans(&spans, &out, control);
            }
        } else {
            assert_int_equal(s, REALM_E_INVALID);
            if (error) assert_string_equal(err.text, json_string_value(error));
            assert_int_equal(out.len, 0);
        }
        realm_template_spans_release(&spans);
        realm_buf_release(&out);
        realm_template_close(t);
        free(source);
    }
    assert_int_equal(wrong, 0);
    assert_true(i > 80);
    json_decref(cases);
}

static bool in_ranges(const json_t *ranges, uint32_t c) {
    size_t i;
    json_t *r;
    json_array_foreach(ranges, i, r) {
        if (c < json_integer_value(json_array_get(r, 0))) return false;
        if (c <= json_integer_value(json_array_get(r, 1))) return true;
    }
    return false;
}

static size_t put_utf8(char *out, uint32_t c) {
    if (c < 0x80) return (size_t)sprintf(out, "%c", (int)c);
    if (c < 0x800) return (size_t)sprintf(out, "%c%c", (int)(0xc0 | c >> 6), (int)(0x80 | (c & 63)));
    if (c < 0x10000)
        return (size_t)sprintf(out, "%c%c%c", (int)(0xe0 | c >> 12), (int)(0x80 | (c >> 6 & 63)),
                               (int)(0x80 | (c & 63)));
    return (size_t)sprintf(out, "%c%c%c%c", (int)(0xf0 | c >> 18), (int)(0x80 | (c >> 12 & 63)),
                           (int)(0x80 | (c >> 6 & 63)), (int)(0x80 | (c & 63)));
}

/* Whether each character from `from` on is decimal, a digit, numeric, against Python's methods. */
static void check_digits(const realm_template *t, const json_t *golden_ranges, uint32_t from, uint32_t n) {
    static const char *const methods[] = {"isdecimal", "isdigit", "isnumeric"};
    realm_error err = {0};
    realm_buf values, out;
    realm_buf_init(&values, 1 << 20);
    realm_buf_init(&out, 1 << 20);
    (void)realm_buf_puts(&values, "{\"text\":\"");
    for (uint32_t c = from; c < from + n; c++) {
        char utf8[5];
        size_t len = put_utf8(utf8, c);
        if (c < ' ' || c == '"' || c == '\\') len = 0, (void)realm_buf_printf(&values, "\\u%04x", c);
        (void)realm_buf_append(&values, utf8, len);
    }
    (void)realm_buf_puts(&values, "\"}");
    realm_template_input in = {.values = {values.data, values.len}};
    if (realm_template_render(t, &in, &out, NULL, &err) != REALM_OK) fail_msg("from U+%04X: %s", from, err.text);
    assert_int_equal(out.len, 3 * n);
    for (uint32_t i = 0; i < 3 * n; i++) {
        const uint32_t c = from + i / 3;
        const bool is = in_ranges(json_object_get(golden_ranges, methods[i % 3]), c);
        if ((out.data[i] == '1') != is) fail_msg("U+%04X %s %s", c, is ? "" : "not", methods[i % 3]);
    }
    realm_buf_release(&values);
    realm_buf_release(&out);
}

/* In the planes of most scripts and of ideographs. Of the others what Python knew then: later versions of Unicode have
 * more digits there. */
static void digits(void **state) {
    (void)state;
    static const char SOURCE[] =
        "{% for c in text %}{{ '1' if c.isdecimal() else '0' }}{{ '1' if c.isdigit() else '0' }}"
        "{{ '1' if c.isnumeric() else '0' }}{% endfor %}";
    enum { BLOCK = 0x800 };
    realm_error err = {0};
    realm_template *t;
    json_error_t why;
    json_t *ranges = json_load_file(DATA "digits.json", 0, &why), *r;
    assert_non_null(ranges);
    if (realm_template_open(&t, SOURCE, sizeof SOURCE - 1, NULL, &err) != REALM_OK) fail_msg("%s", err.text);
    for (uint32_t c = 0; c < 0x30000; c += BLOCK)
        if (c >> 16 != 1 && c != 0xd800) check_digits(t, ranges, c, BLOCK);
    size_t i, n = 0;
    json_array_foreach(json_object_get(ranges, "isnumeric"), i, r) {
        const json_int_t from = json_integer_value(json_array_get(r, 0)), to = json_integer_value(json_array_get(r, 1));
        if (from >> 16 != 1) continue;
        check_digits(t, ranges, (uint32_t)from, (uint32_t)(to - from + 1));
        n++;
    }
    assert_true(n > 40);
    realm_template_close(t);
    json_decref(ranges);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(golden), cmocka_unit_test(digits)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
