/* Reading what the reference package of the format wrote (tests/data/gguf, generator beside them), typed access, and
 * paths that are no model files. */
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "gguf/bytes.h"
#include "gguf/walk.h"
#include "support/scratch.h"

static realm_gguf *open_file(const char *path) {
    realm_gguf *g = NULL;
    realm_error err = {0};
    if (realm_gguf_open(&g, path, &err) != REALM_OK) fail_msg("%s", err.text);
    return g;
}

static void assert_str(realm_gguf_str s, const char *expected, size_t len) {
    assert_int_equal(s.len, len);
    assert_memory_equal(s.data, expected, len);
}

static void check_all_types(const char *path, uint32_t version) {
    realm_gguf *g = open_file(path);
    assert_int_equal(realm_gguf_version(g), version);
    assert_int_equal(realm_gguf_alignment(g), 64);
    assert_int_equal(realm_gguf_key_count(g), 22);
    assert_str(realm_gguf_key_at(g, 2), "t.u8", 4);
    uint32_t u = 0;
    float f = 0;
    bool flag = false;
    realm_gguf_str s;
    static const struct {
        const char *key;
        uint32_t value;
    } fits[] = {{"t.u8", 200}, {"t.u16", 60000}, {"t.u32", 4000000000u}};
    for (size_t i = 0; i < REALM_ARRAY_LEN(fits); i++) {
        assert_int_equal(realm_gguf_get_u32(g, fits[i].key, true, &u, NULL), REALM_OK);
        assert_int_equal(u, fits[i].value);
    }
    static const struct {
        const char *key, *text;
    } no_u32[] = {{"t.i8", "negative (-100)"},
                  {"t.i16", "negative (-30000)"},
                  {"t.i32", "negative (-2000000000)"},
                  {"t.i64", "negative (-9223372036854775808)"},
                  {"t.u64", "too large (18446744073709551615)"},
                  {"t.f32", "type f32, not an integer"},
                  {"t.true", "type bool, not an integer"},
                  {"t.string", "type string, not an integer"},
                  {"t.ints", "type array, not an integer"}};
    for (size_t i = 0; i < REALM_ARRAY_LEN(no_u32); i++) {
        realm_error err = {0};
        u = 77;
        assert_int_equal(realm_gguf_get_u32(g, no_u32[i].key, false, &u, &err), REALM_E_FORMAT);
        assert_int_equal(u, 77);
        assert_non_null(strstr(err.text, no_u32[i].key));
        if (!strstr(err.text, no_u32[i].text)) fail_msg("%s", err.text);
    }
    assert_int_equal(realm_gguf_get_f32(g, "t.f32", true, &f, NULL), REALM_OK);
    assert_true(f == 0.1f);
    assert_int_equal(realm_gguf_get_f32(g, "t.f64", true, &f, NULL), REALM_E_FORMAT); /* 1e300 */
    assert_int_equal(realm_gguf_get_bool(g, "t.true", true, &flag, NULL), REALM_OK);
    assert_true(flag);
    assert_int_equal(realm_gguf_get_bool(g, "t.false", true, &flag, NULL), REALM_OK);
    assert_false(flag);
    assert_int_equal(realm_gguf_get_str(g, "t.string", true, &s, NULL), REALM_OK);
    assert_str(s,
               "Gr\xc3\xbc\xc3\x9f"
               "e, \xe4\xb8\x96\xe7\x95\x8c\n\0end",
               20);
    assert_int_equal(realm_gguf_get_str(g, "t.empty", true, &s, NULL), REALM_OK);
    assert_int_equal(s.len, 0);

    const realm_gguf_value *v = realm_gguf_find(g, "t.strings");
    assert_int_equal(realm_gguf_type(v), REALM_GGUF_ARRAY);
    assert_int_equal(realm_gguf_array_type(v), REALM_GGUF_STRING);
    assert_int_equal(realm_gguf_array_len(v), 4);
    realm_gguf_iter it;
    realm_gguf_iter_init(&it, v);
    assert_true(realm_gguf_iter_next(&it, &s) && s.len == 0);
    assert_true(realm_gguf_iter_next(&it, &s));
    assert_str(s, "a", 1);
    assert_true(realm_gguf_iter_next(&it, &s));
    assert_str(s, "\xc3\xa9\xc3\xa8", 4);
    assert_true(realm_gguf_iter_next(&it, &s) && s.len == 300);
    assert_false(realm_gguf_iter_next(&it, &s));
    assert_false(realm_gguf_iter_next(&it, &s));
    v = realm_gguf_find(g, "t.ints");
    realm_gguf_iter_init(&it, v); /* not of strings */
    assert_false(realm_gguf_iter_next(&it, &s));
    assert_int_equal(realm_gguf_array_i64(v, 0), -1);
    assert_int_equal(realm_gguf_array_i64(v, 2), 2147483647);
    assert_true(realm_gguf_array_f64(v, 0) == -1.0);
    v = realm_gguf_find(g, "t.floats");
    assert_true(realm_gguf_array_f64(v, 1) == -2.0);
    v = realm_gguf_find(g, "t.bytes");
    assert_int_equal(realm_gguf_array_i64(v, 2), 255);
    v = realm_gguf_find(g, "t.nested");
    assert_int_equal(realm_gguf_array_type(v), REALM_GGUF_ARRAY);
    assert_int_equal(realm_gguf_array_len(v), 2);

    assert_int_equal(realm_gguf_tensor_count(g), 5);
    const realm_gguf_tensor *t = realm_gguf_tensor_find(g, "cube");
    assert_ptr_equal(t, realm_gguf_tensor_at(g, 2));
    assert_int_equal(t->n_dims, 4);
    assert_int_equal(t->dims[0], 5);
    assert_int_equal(t->dims[3], 2);
    assert_int_equal(t->n_bytes, 480);
    assert_true(((const float *)t->data)[119] == 119.0f);
    t = realm_gguf_tensor_find(g, "matrix.f16");
    assert_int_equal(t->type->type, REALM_TYPE_F16);
    float row[64];
    t->type->dequantize(t->data, row, 12);
    assert_true(row[11] == 11.0f);
    t = realm_gguf_tensor_find(g, "q8"); /* two rows of 64; value k is (k mod 61 - 30) / 8 */
    t->type->dequantize((const uint8_t *)t->data + t->n_bytes / 2, row, 64);
    for (int k = 0; k < 64; k++)
        assert_true(fabsf(row[k] - (float)((64 + k) % 61 - 30) / 8) < 0.5f * 30 / 8 / 127 + 0.01f);
    assert_null(realm_gguf_tensor_find(g, "cub"));
    assert_null(realm_gguf_tensor_find(g, ""));
    assert_null(realm_gguf_find(g, "t.u"));
    realm_gguf_close(g);
}

static void every_value_type_is_read(void **state) {
    (void)state;
    check_all_types("tests/data/gguf/all-types.gguf", 3);
    check_all_types("tests/data/gguf/version2.gguf", 2);
}

static void absent_keys_keep_the_default_or_name_themselves(void **state) {
    (void)state;
    realm_gguf *g = open_file("tests/data/gguf/llama.gguf");
    realm_error err = {0};
    uint32_t u = 5;
    float f = 2;
    bool flag = true;
    realm_gguf_str s = {"x", 1};
    assert_int_equal(realm_gguf_get_u32(g, "no.such", false, &u, &err), REALM_OK);
    assert_int_equal(realm_gguf_get_f32(g, "no.such", false, &f, &err), REALM_OK);
    assert_int_equal(realm_gguf_get_bool(g, "no.such", false, &flag, &err), REALM_OK);
    assert_int_equal(realm_gguf_get_str(g, "no.such", false, &s, &err), REALM_OK);
    assert_true(u == 5 && f == 2.0f && flag && s.len == 1 && err.text[0] == '\0');
    assert_int_equal(realm_gguf_get_u32(g, "no.such", true, &u, &err), REALM_E_NOT_FOUND);
    assert_non_null(strstr(err.text, "no.such"));
    assert_int_equal(realm_gguf_get_f32(g, "llama.block_count", true, &f, &err), REALM_E_FORMAT);
    assert_int_equal(realm_gguf_get_bool(g, "llama.block_count", true, &flag, &err), REALM_E_FORMAT);
    assert_int_equal(realm_gguf_get_str(g, "llama.block_count", true, &s, &err), REALM_E_FORMAT);
    realm_gguf_close(g);
}

static void floats_must_be_finite(void **state) {
    (void)state;
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < REALM_ARRAY_LEN(bad); i++) {
        bytes b = {0};
        realm_gguf *g;
        float f = 1;
        realm_error err = {0};
        b_header(&b, 0, 1);
        b_key(&b, "llama.rope.freq_base", REALM_GGUF_F32);
        b_f32(&b, bad[i]);
        assert_int_equal(realm_gguf_open_memory(&g, b.p, b.n, &err), REALM_OK);
        assert_int_equal(realm_gguf_get_f32(g, "llama.rope.freq_base", true, &f, &err), REALM_E_FORMAT);
        assert_non_null(strstr(err.text, "finite"));
        realm_gguf_close(g);
        free(b.p);
    }
}

static void arrays_convert_between_number_types(void **state) {
    (void)state;
    bytes b = {0};
    realm_gguf *g;
    b_header(&b, 0, 2);
    b_array(&b, "u64", REALM_GGUF_U64, 2);
    b_u64(&b, UINT64_MAX);
    b_u64(&b, 3);
    b_array(&b, "i8", REALM_GGUF_I8, 3);
    b_raw(&b, "\x80\xff\x7f", 3);
    assert_int_equal(realm_gguf_open_memory(&g, b.p, b.n, NULL), REALM_OK);
    const realm_gguf_value *v = realm_gguf_find(g, "u64");
    assert_true(realm_gguf_array_i64(v, 0) == INT64_MAX);
    assert_true(realm_gguf_array_f64(v, 0) == 18446744073709551615.0);
    assert_int_equal(realm_gguf_array_i64(v, 1), 3);
    v = realm_gguf_find(g, "i8");
    assert_int_equal(realm_gguf_array_i64(v, 0), -128);
    assert_int_equal(realm_gguf_array_i64(v, 1), -1);
    assert_true(realm_gguf_array_f64(v, 2) == 127.0);
    realm_gguf_close(g);
    free(b.p);
}

/* Many names, found among each other: the index's probing, and time linear in the file. */
static void a_hundred_thousand_keys_are_found(void **state) {
    (void)state;
    enum { N = 100000 };
    bytes b = {0};
    realm_gguf *g;
    realm_error err = {0};
    char key[32];
    b_header(&b, 0, N);
    for (uint32_t i = 0; i < N; i++) {
        (void)snprintf(key, sizeof key, "key.%u", i);
        b_key_u32(&b, key, i);
    }
    if (realm_gguf_open_memory(&g, b.p, b.n, &err) != REALM_OK) fail_msg("%s", err.text);
    for (uint32_t i = 0; i < N; i++) {
        uint32_t u = 0;
        (void)snprintf(key, sizeof key, "key.%u", i);
        assert_int_equal(realm_gguf_get_u32(g, key, true, &u, NULL), REALM_OK);
        assert_int_equal(u, i);
    }
    assert_null(realm_gguf_find(g, "key.100000"));
    realm_gguf_close(g);
    free(b.p);
}

static void tensors_out_of_order_are_read(void **state) {
    (void)state;
    enum { N = 1000 };
    bytes b = {0};
    realm_error err = {0};
    char name[32];
    const uint64_t dims[4] = {8};
    b_header(&b, N, 0);
    for (uint32_t i = 0; i < N; i++) { /* 7 has no common divisor with 1000: every place once */
        (void)snprintf(name, sizeof name, "t%u", i);
        b_tensor(&b, name, 1, dims, REALM_TYPE_F32, 32u * (i * 7 % N));
    }
    b_data(&b, 32, 32 * N);
    if (walk_copy(b.p, b.n, &err) != REALM_OK) fail_msg("%s", err.text);
    free(b.p);
}

static void empty_and_weightless_files_open(void **state) {
    (void)state;
    bytes b = {0};
    realm_error err = {0};
    b_header(&b, 0, 0);
    assert_int_equal(walk_copy(b.p, b.n, &err), REALM_OK);
    free(b.p);
}

static void memory_must_be_aligned(void **state) {
    (void)state;
    bytes b = {0};
    realm_gguf *g = NULL;
    realm_error err = {0};
    b_u8(&b, 0);
    b_header(&b, 0, 0);
    assert_int_equal(realm_gguf_open_memory(&g, b.p + 1, b.n - 1, &err), REALM_E_INVALID);
    assert_null(g);
    free(b.p);
}

/* Nothing that is no regular file is opened, waited for or read without end. */
static void other_kinds_of_file_are_refused(void **state) {
    (void)state;
    char dir[SCRATCH_MAX] = "gguf", fifo[SCRATCH_MAX + 8], empty[SCRATCH_MAX + 8];
    realm_gguf *g = NULL;
    assert_non_null(scratch_dir(dir));
    (void)snprintf(fifo, sizeof fifo, "%s/fifo", dir);
    (void)snprintf(empty, sizeof empty, "%s/empty", dir);
    assert_int_equal(mkfifo(fifo, 0600), 0);
    int fd = open(empty, O_CREAT | O_WRONLY, 0600);
    assert_true(fd >= 0);
    close(fd);
    const struct {
        const char *path;
        realm_status status;
    } cases[] = {{fifo, REALM_E_INVALID},        {dir, REALM_E_INVALID},
                 {"/dev/zero", REALM_E_INVALID}, {"/dev/null", REALM_E_INVALID},
                 {empty, REALM_E_FORMAT},        {"/tmp/no/such/file.gguf", REALM_E_NOT_FOUND},
                 {"Makefile", REALM_E_FORMAT},   {"Makefile/x", REALM_E_NOT_FOUND}};
    for (size_t i = 0; i < REALM_ARRAY_LEN(cases); i++) {
        realm_error err = {0};
        g = (realm_gguf *)dir;
        realm_status s = realm_gguf_open(&g, cases[i].path, &err);
        if (s != cases[i].status) fail_msg("%s: %s: %s", cases[i].path, realm_status_name(s), err.text);
        assert_null(g);
        assert_int_equal(strncmp(err.text, cases[i].path, strlen(cases[i].path)), 0);
    }
    unlink(fifo);
    unlink(empty);
    rmdir(dir);
}

/* CVE-2025-49847 with the bytes really there: a token longer than an int counts. The file is sparse. */
static void a_token_of_2_gib_is_refused(void **state) {
    (void)state;
    char path[SCRATCH_MAX] = "gguf";
    bytes b = {0};
    realm_gguf *g = NULL;
    realm_error err = {0};
    int fd = scratch_file(path);
    assert_true(fd >= 0);
    b_header(&b, 0, 1);
    b_array(&b, "tokenizer.ggml.tokens", REALM_GGUF_STRING, 1);
    b_u64(&b, (uint64_t)REALM_GGUF_MAX_STRING + 1);
    assert_int_equal(write(fd, b.p, b.n), (ssize_t)b.n);
    if (ftruncate(fd, (off_t)b.n + (off_t)REALM_GGUF_MAX_STRING + 1) == 0) { /* some file systems hold no such file */
        assert_int_equal(realm_gguf_open(&g, path, &err), REALM_E_FORMAT);
        assert_non_null(strstr(err.text, "2147483648 bytes, at most 2147483647"));
        assert_int_equal(pwrite(fd, "\xff\xff\xff\x7f", 4, (off_t)b.n - 8), 4);
        assert_int_equal(realm_gguf_open(&g, path, &err), REALM_OK);
        realm_gguf_close(g);
    }
    close(fd);
    unlink(path);
    free(b.p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_value_type_is_read),
        cmocka_unit_test(absent_keys_keep_the_default_or_name_themselves),
        cmocka_unit_test(floats_must_be_finite),
        cmocka_unit_test(arrays_convert_between_number_types),
        cmocka_unit_test(a_hundred_thousand_keys_are_found),
        cmocka_unit_test(tensors_out_of_order_are_read),
        cmocka_unit_test(empty_and_weightless_files_open),
        cmocka_unit_test(memory_must_be_aligned),
        cmocka_unit_test(other_kinds_of_file_are_refused),
        cmocka_unit_test(a_token_of_2_gib_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
