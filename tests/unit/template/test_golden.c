/* Every template of tests/data/template against what Python's jinja2 makes of it (generate.py there), and the pieces
 * of each result: they cover it, each special one is a control token, and no control token that came in with a message
 * is special. */
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

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(golden)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
