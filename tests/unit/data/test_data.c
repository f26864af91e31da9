/* JSON and YAML: what is accepted, what is refused and with which words, and that what is written reads back equal. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/utf8.h"
#include "data/data.h"

static realm_json_doc *parse(const char *text) {
    realm_json_doc *d;
    realm_error err = {0};
    if (realm_json_parse(&d, text, strlen(text), NULL, &err) != REALM_OK) fail_msg("%s: %s", text, err.text);
    return d;
}

static realm_json_doc *yaml(const char *text) {
    realm_json_doc *d;
    realm_error err = {0};
    if (realm_yaml_parse(&d, text, strlen(text), &err) != REALM_OK) fail_msg("%s: %s", text, err.text);
    return d;
}

static void assert_dump(const realm_json_doc *d, const char *expected) {
    realm_buf b;
    realm_buf_init(&b, 1 << 20);
    realm_json root = realm_json_root(d);
    assert_int_equal(realm_json_dump(&root, &b), REALM_OK);
    assert_string_equal(b.data, expected);
    realm_buf_release(&b);
}

static void json_refuses(void **state) {
    (void)state;
    static const struct {
        const char *text;
        realm_status status;
        const char *says; /* part of the message */
    } bad[] = {
        {"", REALM_E_FORMAT, "line 1"},
        {"{", REALM_E_FORMAT, "line 1"},
        {"{\"a\":1,\n\"a\":2}", REALM_E_FORMAT, "line 2, column 3: duplicate object key"},
        {"[1,]", REALM_E_FORMAT, "column 4"},
        {"[NaN]", REALM_E_FORMAT, "invalid token"},
        {"[Infinity]", REALM_E_FORMAT, "invalid token"},
        {"[-Infinity]", REALM_E_FORMAT, "invalid token"},
        {"[1e999]", REALM_E_FORMAT, "real number overflow"},
        {"[1e999, 9223372036854775808]", REALM_E_FORMAT, "real number overflow"},
        {"[9223372036854775808, 1e999]", REALM_E_FORMAT, "too big integer"},
        {"[-9223372036854775809, x]", REALM_E_FORMAT, "too big negative integer"},
        {"[\"\xff\"]", REALM_E_FORMAT, "0xff"},
        {"[\"\xc0\x80\"]", REALM_E_FORMAT, ""},
        {"[\"\\ud800\"]", REALM_E_FORMAT, "invalid Unicode"},
        {"[\"\\udc00\\ud800\"]", REALM_E_FORMAT, "invalid Unicode"},
        {"{\"a\\u0000b\":1}", REALM_E_FORMAT, "NUL"},
        {"{} {}", REALM_E_FORMAT, "end of file expected"},
        {"{}x", REALM_E_FORMAT, "end of file expected"},
        {"[01]", REALM_E_FORMAT, ""},
        {"[.5]", REALM_E_FORMAT, ""},
        {"[1.]", REALM_E_FORMAT, ""},
        {"[+1]", REALM_E_FORMAT, ""},
        {"[0x10]", REALM_E_FORMAT, ""},
        {"['a']", REALM_E_FORMAT, ""},
        {"[\"a\nb\"]", REALM_E_FORMAT, "newline"},
        {"// c\n{}", REALM_E_FORMAT, ""},
        {"\xef\xbb\xbf{}", REALM_E_FORMAT, ""},
        {"tru", REALM_E_FORMAT, ""},
    };
    for (size_t i = 0; i < REALM_ARRAY_LEN(bad); i++) {
        realm_json_doc *d = (void *)1;
        realm_error err = {0};
        realm_status s = realm_json_parse(&d, bad[i].text, strlen(bad[i].text), NULL, &err);
        if (s != bad[i].status) fail_msg("%s: status %d, %s", bad[i].text, s, err.text);
        assert_null(d);
        assert_true(realm_utf8_valid(err.text, strlen(err.text)));
        if (!strstr(err.text, bad[i].says)) fail_msg("%s: %s", bad[i].text, err.text);
    }
    realm_json_doc *d;
    assert_int_equal(realm_json_parse(&d, "{}\0", 3, NULL, NULL), REALM_E_FORMAT); /* a NUL is a trailing byte */
}

static void json_is_bounded(void **state) {
    (void)state;
    char text[600];
    realm_json_doc *d;
    realm_error err = {0};
    for (unsigned depth = 60; depth < 70; depth++) {
        memset(text, '[', depth);
        memset(text + depth, ']', depth);
        realm_status s = realm_json_parse(&d, text, 2 * depth, NULL, &err);
        assert_int_equal(s, depth <= REALM_JSON_DEPTH_MAX ? REALM_OK : REALM_E_LIMIT);
        realm_json_doc_close(d);
    }
    assert_string_equal(err.text, "line 1, column 65: nested deeper than 64");
    d = parse("[\"[[[[[[[\\\"[[[[\",\"{{{{{{{,,,,,:::\"]"); /* brackets in strings do not count */
    realm_json_doc_close(d);
    realm_json_limits limits = {.max_values = 10};
    assert_int_equal(realm_json_parse(&d, "[1,2,3,4,5,6,7,8]", 17, &limits, &err), REALM_OK);
    realm_json_doc_close(d);
    assert_int_equal(realm_json_parse(&d, "[1,2,3,4,5,6,7,8,9,10]", 22, &limits, &err), REALM_E_LIMIT);
    limits = (realm_json_limits){.max_bytes = 4};
    assert_int_equal(realm_json_parse(&d, "[1,2]", 5, &limits, &err), REALM_E_LIMIT);
}

/* Beyond 64 bits: whoever reads the field says so, strings that look alike are left alone. */
static void integers_too_large(void **state) {
    (void)state;
    realm_json_doc *d =
        parse("{\"n\":18446744073709551616,\"m\":[-9223372036854775809],\"s\":\"\\\"9223372036854775808\","
              "\"i\":9223372036854775807,\"f\":0.12345678901234567890123,\"e\":1e0000000000000000000001}");
    realm_json root = realm_json_root(d), m, v;
    realm_error err = {0};
    int64_t i = 42;
    double r;
    const char *s;
    assert_true(realm_json_get(&root, "n", &v));
    assert_int_equal(realm_json_int(&v, 1, 128, &i, &err), REALM_E_RANGE);
    assert_string_equal(err.text, "n: must be from 1 to 128, is 1.84467e+19");
    assert_int_equal(realm_json_real(&v, 0, 1e30, &r, &err), REALM_OK);
    assert_true(r == 0x1p64);
    assert_true(realm_json_get(&root, "m", &m) && realm_json_at(&m, 0, &v));
    assert_int_equal(realm_json_int(&v, INT64_MIN, INT64_MAX, &i, &err), REALM_E_RANGE);
    assert_int_equal(i, 42);
    assert_int_equal(realm_json_opt_cstr(&root, "s", &s, &err), REALM_OK);
    assert_string_equal(s, "\"9223372036854775808");
    assert_int_equal(realm_json_opt_int(&root, "i", 0, INT64_MAX, &i, &err), REALM_OK);
    assert_true(i == INT64_MAX);
    assert_int_equal(realm_json_opt_real(&root, "f", 0, 1, &r, &err), REALM_OK);
    assert_true(r == 0.12345678901234567890123);
    assert_int_equal(realm_json_opt_real(&root, "e", 0, 10, &r, &err), REALM_OK);
    assert_true(r == 10);
    realm_json_doc_close(d);
}

static void errors_name_the_way(void **state) {
    (void)state;
    realm_json_doc *d =
        parse("{\"messages\":[{\"role\":\"user\"},{\"role\":7,\"b\\u001b\":true}],\"n\":1.0,\"t\":3,\"z\":null,"
              "\"s\":\"a\\u0000b\"}");
    realm_json root = realm_json_root(d), messages, m, v;
    realm_error err = {0};
    const char *s;
    int64_t i = 42;
    double r;
    bool b;
    assert_true(realm_json_get(&root, "messages", &messages));
    assert_int_equal(realm_json_len(&messages), 2);
    assert_true(realm_json_at(&messages, 1, &m));
    assert_false(realm_json_at(&messages, 2, &v));
    assert_true(realm_json_get(&m, "role", &v));
    assert_int_equal(realm_json_cstr(&v, &s, &err), REALM_E_INVALID);
    assert_string_equal(err.text, "messages[1].role: must be a string, is an integer");
    assert_false(realm_json_get(&m, "content", &v));
    assert_int_equal(realm_json_str(&v, &s, NULL, &err), REALM_E_NOT_FOUND);
    assert_string_equal(err.text, "messages[1].content: is required");
    assert_int_equal(realm_json_opt_int(&root, "n", 1, 128, &i, &err), REALM_E_INVALID);
    assert_string_equal(err.text, "n: must be an integer, is a fractional number");
    assert_int_equal(realm_json_opt_int(&root, "t", 4, 128, &i, &err), REALM_E_RANGE);
    assert_string_equal(err.text, "t: must be from 4 to 128, is 3");
    assert_int_equal(realm_json_opt_real(&root, "t", 0, 2, &r, &err), REALM_E_RANGE);
    assert_string_equal(err.text, "t: must be from 0 to 2, is 3");
    assert_int_equal(realm_json_opt_bool(&root, "t", &b, &err), REALM_E_INVALID);
    assert_int_equal(realm_json_opt_int(&root, "z", 0, 1, &i, &err), REALM_OK);
    assert_int_equal(realm_json_opt_int(&root, "absent", 0, 1, &i, &err), REALM_OK);
    assert_int_equal(i, 42);
    assert_int_equal(realm_json_opt_int(&messages, "absent", 0, 1, &i, &err), REALM_E_INVALID);
    assert_int_equal(realm_json_opt_cstr(&root, "s", &s, &err), REALM_E_INVALID);
    size_t len;
    assert_true(realm_json_get(&root, "s", &v));
    assert_int_equal(realm_json_str(&v, &s, &len, &err), REALM_OK);
    assert_int_equal(len, 3);
    assert_memory_equal(s, "a\0b", 4);
    static const char *const known[] = {"role"};
    realm_json bad;
    assert_int_equal(realm_json_only(&m, known, 1, &bad, &err), REALM_E_UNSUPPORTED);
    assert_string_equal(err.text, "messages[1].b\\x1B: unknown key");
    static const char *const roles[] = {"system", "user"};
    size_t which;
    assert_true(realm_json_at(&messages, 0, &m));
    assert_true(realm_json_get(&m, "role", &v));
    assert_int_equal(realm_json_enum(&v, roles, 2, &which, &err), REALM_OK);
    assert_int_equal(which, 1);
    assert_int_equal(realm_json_enum(&v, roles, 1, &which, &err), REALM_E_RANGE);
    assert_string_equal(err.text, "messages[0].role: must be one of 'system', is 'user'");
    assert_int_equal(realm_json_expect(&root, REALM_JSON_ARRAY, &err), REALM_E_INVALID);
    assert_string_equal(err.text, "the document: must be an array, is an object");
    char path[8];
    assert_true(realm_json_get(&m, "role", &v));
    assert_string_equal(realm_json_path(&v, path, sizeof path), "message");
    realm_json_doc_close(d);
}

static void dump_reads_back(void **state) {
    (void)state;
    static const char *const texts[] = {
        "{\"b\":1,\"a\":[true,false,null,-0.0,0.1,1e300,5e-324,1.0],\"\":{}}",
        "[\"\\u0000\\u001f\\\"\\\\/\\b\\f\\n\\r\\t\\u007f\xC3\xA9\xE2\x80\xA8\"]",
        "[9223372036854775807,-9223372036854775808,3.0]",
        "\"x\"",
    };
    static const char *const dumps[] = {
        "{\"b\":1,\"a\":[true,false,null,-0.0,0.1,1e+300,4.94065645841247e-324,1.0],\"\":{}}",
        "[\"\\u0000\\u001f\\\"\\\\/\\b\\f\\n\\r\\t\x7f\xC3\xA9\xE2\x80\xA8\"]",
        "[9223372036854775807,-9223372036854775808,3.0]",
        "\"x\"",
    };
    for (size_t i = 0; i < REALM_ARRAY_LEN(texts); i++) {
        realm_json_doc *d = parse(texts[i]);
        assert_dump(d, dumps[i]);
        realm_json_doc_close(d);
        d = parse(dumps[i]);
        assert_dump(d, dumps[i]);
        realm_json_doc_close(d);
    }
}

static void writer_writes(void **state) {
    (void)state;
    realm_buf b;
    realm_buf_init(&b, 4096);
    realm_json_writer w;
    realm_json_writer_init(&w, &b);
    realm_json_begin_object(&w);
    realm_json_key(&w, "a\"");
    realm_json_begin_array(&w);
    realm_json_write_int(&w, INT64_MIN);
    realm_json_write_uint(&w, UINT64_MAX);
    realm_json_begin_array(&w);
    realm_json_end_array(&w);
    realm_json_begin_object(&w);
    realm_json_end_object(&w);
    realm_json_write_bool(&w, true);
    realm_json_write_real(&w, 0.1);
    realm_json_write_float(&w, 0.1f);
    realm_json_write_real(&w, (double)NAN);
    realm_json_write_float(&w, -INFINITY);
    realm_json_end_array(&w);
    realm_json_key(&w, "s");
    realm_json_write_str(&w, "x\0\xff\xF0\x9F\x98", 6);
    realm_json_key(&w, "r");
    realm_json_write_raw(&w, "[1]", 3);
    realm_json_key(&w, "c");
    realm_json_write_cstr(&w, NULL);
    realm_json_end_object(&w);
    assert_int_equal(realm_buf_status(&b), REALM_OK);
    assert_string_equal(b.data,
                        "{\"a\\\"\":[-9223372036854775808,18446744073709551615,[],{},true,0.1,0.1,null,null],"
                        "\"s\":\"x\\u0000\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\",\"r\":[1],\"c\":null}");
    realm_buf_release(&b);
}

static void floats_survive_text(void **state) {
    (void)state;
    uint64_t x = 88172645463325252u;
    for (int i = 0; i < 20000; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        double v;
        float f;
        uint32_t low = (uint32_t)x;
        memcpy(&v, &x, sizeof v);
        memcpy(&f, &low, sizeof f);
        realm_buf b;
        realm_buf_init(&b, 256);
        realm_json_writer w;
        realm_json_writer_init(&w, &b);
        if (isfinite(v)) {
            realm_json_write_real(&w, v);
            assert_true(strtod(b.data, NULL) == v);
            realm_json_doc *d = parse(b.data);
            realm_json root = realm_json_root(d);
            assert_int_equal(realm_json_kind_of(&root), REALM_JSON_REAL);
            realm_json_doc_close(d);
        }
        realm_buf_reset(&b);
        if (isfinite(f)) {
            realm_json_write_float(&w, f);
            assert_true(strtof(b.data, NULL) == f);
        }
        realm_buf_release(&b);
    }
}

static void yaml_core_schema(void **state) {
    (void)state;
    realm_json_doc *d = yaml("# comment\n"
                             "listen: 127.0.0.1:8080\n"
                             "a: [1, -2, 0x10, 0o17, 1.5, 1e3, .5, ~, null, true, False, yes, 012, 1_000]\n"
                             "b: {x: '1', y: \"\\u00e9\"}\nz: |\n  text\n"
                             "c: &anchor {k: v}\n"
                             "d: *anchor\n"
                             "e:\n");
    assert_dump(d, "{\"listen\":\"127.0.0.1:8080\",\"a\":[1,-2,16,15,1.5,1000.0,0.5,null,null,true,false,\"yes\",12,"
                   "\"1_000\"],\"b\":{\"x\":\"1\",\"y\":\"\xC3\xA9\"},\"z\":\"text\\n\",\"c\":{\"k\":\"v\"},"
                   "\"d\":{\"k\":\"v\"},\"e\":null}");
    realm_json_doc_close(d);
    d = yaml("");
    assert_dump(d, "{}");
    realm_json_doc_close(d);
    d = yaml("# nothing\n---\n");
    assert_dump(d, "{}");
    realm_json_doc_close(d);
}

static void yaml_errors_name_the_line(void **state) {
    (void)state;
    realm_json_doc *d = yaml("models:\n"
                             "  - id: a\n"
                             "    fil: x\n"
                             "  - id: true\n"
                             "threads: many\n");
    realm_json root = realm_json_root(d), models, m, v;
    realm_error err = {0};
    static const char *const known[] = {"id", "file"};
    assert_true(realm_json_get(&root, "models", &models));
    assert_true(realm_json_at(&models, 0, &m));
    assert_int_equal(realm_json_only(&m, known, 2, NULL, &err), REALM_E_UNSUPPORTED);
    assert_string_equal(err.text, "line 3: models[0].fil: unknown key");
    assert_true(realm_json_at(&models, 1, &m));
    assert_true(realm_json_get(&m, "id", &v));
    const char *s;
    assert_int_equal(realm_json_cstr(&v, &s, &err), REALM_E_INVALID);
    assert_string_equal(err.text, "line 4: models[1].id: must be a string, is a boolean");
    assert_false(realm_json_get(&m, "file", &v));
    assert_int_equal(realm_json_cstr(&v, &s, &err), REALM_E_NOT_FOUND);
    assert_string_equal(err.text, "line 4: models[1].file: is required");
    int64_t i;
    assert_int_equal(realm_json_opt_int(&root, "threads", 1, 8, &i, &err), REALM_E_INVALID);
    assert_string_equal(err.text, "line 5: threads: must be an integer, is a string");
    realm_json_doc_close(d);
}

static void yaml_refuses(void **state) {
    (void)state;
    static const struct {
        const char *text, *says;
    } bad[] = {
        {"a: 1\na: 2\n", "line 2, column 1: duplicate key 'a'"},
        {"a: [1\n", "line 2"},
        {"a: !!str 1\n", "tags are not supported"},
        {"a: .nan\n", "NaN"},
        {"a: -.inf\n", "infinities"},
        {"a: 99999999999999999999\n", "64 bits"},
        {"a: 1e999\n", "too large"},
        {"a: *b\n", "unknown anchor"},
        {"a: &a [*a]\n", "unknown anchor"},
        {"<<: {a: 1}\n", "merge keys"},
        {"? [a]\n: 1\n", "plain strings"},
        {"a: 1\n---\nb: 2\n", "second document"},
        {"a: \xff\n", "line 1"},
        {"\ta: 1\n", "line 1"},
        {"a: b: c\n", "line 1"},
        {"\"a\\0b\": 1\n", "U+0000"},
    };
    for (size_t i = 0; i < REALM_ARRAY_LEN(bad); i++) {
        realm_json_doc *d;
        realm_error err = {0};
        assert_int_not_equal(realm_yaml_parse(&d, bad[i].text, strlen(bad[i].text), &err), REALM_OK);
        assert_null(d);
        if (!strstr(err.text, bad[i].says)) fail_msg("%s: %s", bad[i].text, err.text);
    }
    /* a billion laughs */
    char text[2048];
    size_t at = (size_t)snprintf(text, sizeof text, "a0: &a0 [x,x,x,x,x,x,x,x,x]\n");
    for (int k = 1; k < 9; k++)
        at += (size_t)snprintf(text + at, sizeof text - at, "a%d: &a%d [*a%d,*a%d,*a%d,*a%d,*a%d,*a%d,*a%d]\n", k, k,
                               k - 1, k - 1, k - 1, k - 1, k - 1, k - 1, k - 1);
    realm_json_doc *d;
    realm_error err = {0};
    assert_int_equal(realm_yaml_parse(&d, text, at, &err), REALM_E_LIMIT);
    memset(text, '[', 200);
    assert_int_equal(realm_yaml_parse(&d, text, 200, &err), REALM_E_LIMIT);
}

/* Every allocation fails once: an error and nothing lost (the leak checker of the sanitizer build looks). */
static void allocation_failure_is_survived(void **state) {
    (void)state;
    static const char text[] = "{\"a\":[1,18446744073709551616,2.5,\"three\",{\"b\":null}],\"c\":{\"d\":[[],{}]}}";
    static const char conf[] = "a: &x [1, two, {b: c}]\nd: *x\ne: {f: 1.5}\n";
    for (int kind = 0; kind < 2; kind++)
        for (int64_t fail = 0;; fail++) {
            realm_json_doc *d;
            realm_error err = {0};
            realm_alloc_inject_failure(fail, false);
            realm_status s = kind ? realm_yaml_parse(&d, conf, sizeof conf - 1, &err)
                                  : realm_json_parse(&d, text, sizeof text - 1, NULL, &err);
            bool reached = realm_alloc_count() > fail;
            realm_alloc_inject_failure(-1, false);
            if (s == REALM_OK) {
                realm_json_doc_close(d);
                if (!reached) break;
            } else {
                if (s != REALM_E_NOMEM) fail_msg("allocation %lld: %s", (long long)fail, err.text);
                assert_null(d);
            }
            assert_true(fail < 1000);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(json_refuses),
        cmocka_unit_test(json_is_bounded),
        cmocka_unit_test(integers_too_large),
        cmocka_unit_test(errors_name_the_way),
        cmocka_unit_test(dump_reads_back),
        cmocka_unit_test(writer_writes),
        cmocka_unit_test(floats_survive_text),
        cmocka_unit_test(yaml_core_schema),
        cmocka_unit_test(yaml_errors_name_the_line),
        cmocka_unit_test(yaml_refuses),
        cmocka_unit_test(allocation_failure_is_survived),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
