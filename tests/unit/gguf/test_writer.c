/* What the writer writes is read back equal; what a file cannot hold is refused; no allocation failure loses anything.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <unistd.h>

#include <cmocka.h>

#include "gguf/walk.h"
#include "support/scratch.h"

static const float norm[8] = {1, 2, 3, 4, 5, 6, 7, 8};

/* Everything the writer has; the first failure ends it. */
static realm_status build(realm_gguf_writer *w) {
    static const realm_gguf_str tokens[] = {{"<s>", 3}, {"", 0}, {"a\0b", 3}};
    static const int32_t types[] = {3, 1, -1};
    static uint8_t blocks[3 * 34];
    const uint64_t matrix[] = {32, 3}, vector[] = {8};
    for (size_t i = 0; i < sizeof blocks; i++) blocks[i] = (uint8_t)(i * 7);
    realm_status s = realm_gguf_put_str(w, "general.architecture", "llama", 5);
    if (s == REALM_OK) s = realm_gguf_put_u32(w, "llama.block_count", 2);
    if (s == REALM_OK) s = realm_gguf_put_f32(w, "llama.rope.freq_base", 10000.0f);
    if (s == REALM_OK) s = realm_gguf_put_bool(w, "flag", true);
    if (s == REALM_OK) s = realm_gguf_put_strs(w, "tokenizer.ggml.tokens", tokens, 3);
    if (s == REALM_OK) s = realm_gguf_put_array(w, "tokenizer.ggml.token_type", REALM_GGUF_I32, types, 3);
    if (s == REALM_OK) s = realm_gguf_put_array(w, "none", REALM_GGUF_F64, NULL, 0);
    if (s == REALM_OK) s = realm_gguf_put_tensor(w, "token_embd.weight", REALM_TYPE_Q8_0, 2, matrix, blocks);
    if (s == REALM_OK) s = realm_gguf_put_tensor(w, "output_norm.weight", REALM_TYPE_F32, 1, vector, norm);
    return s;
}

static void check(const realm_gguf *g, uint32_t version, uint32_t alignment) {
    uint32_t u = 0;
    float f = 0;
    bool flag = false;
    realm_gguf_str s;
    realm_gguf_iter it;
    assert_int_equal(realm_gguf_version(g), version);
    assert_int_equal(realm_gguf_alignment(g), alignment);
    assert_int_equal(realm_gguf_key_count(g), alignment == 32 ? 7 : 8);
    assert_int_equal(realm_gguf_get_u32(g, "llama.block_count", true, &u, NULL), REALM_OK);
    assert_int_equal(u, 2);
    assert_int_equal(realm_gguf_get_f32(g, "llama.rope.freq_base", true, &f, NULL), REALM_OK);
    assert_true(f == 10000.0f);
    assert_int_equal(realm_gguf_get_bool(g, "flag", true, &flag, NULL), REALM_OK);
    assert_true(flag);
    realm_gguf_iter_init(&it, realm_gguf_find(g, "tokenizer.ggml.tokens"));
    assert_true(realm_gguf_iter_next(&it, &s) && s.len == 3 && memcmp(s.data, "<s>", 3) == 0);
    assert_true(realm_gguf_iter_next(&it, &s) && s.len == 0);
    assert_true(realm_gguf_iter_next(&it, &s) && s.len == 3 && memcmp(s.data, "a\0b", 3) == 0);
    assert_int_equal(realm_gguf_array_i64(realm_gguf_find(g, "tokenizer.ggml.token_type"), 2), -1);
    assert_int_equal(realm_gguf_array_len(realm_gguf_find(g, "none")), 0);
    const realm_gguf_tensor *t = realm_gguf_tensor_find(g, "output_norm.weight");
    assert_int_equal(t->n_bytes, sizeof norm);
    assert_memory_equal(t->data, norm, sizeof norm);
    t = realm_gguf_tensor_find(g, "token_embd.weight");
    assert_int_equal(t->n_bytes, 102);
    assert_int_equal(((const uint8_t *)t->data)[101], (101 * 7) & 255);
}

static void what_is_written_is_read_back(void **state) {
    (void)state;
    static const uint32_t alignments[] = {8, 32, 64, 4096, 65536};
    for (uint32_t version = 2; version <= 3; version++) {
        for (size_t i = 0; i < REALM_ARRAY_LEN(alignments); i++) {
            realm_gguf_writer *w;
            realm_error err = {0};
            void *data;
            size_t len;
            realm_gguf *g;
            assert_int_equal(realm_gguf_writer_open(&w, version, alignments[i], &err), REALM_OK);
            assert_int_equal(build(w), REALM_OK);
            if (realm_gguf_writer_finish(w, &data, &len, &err) != REALM_OK) fail_msg("%s", err.text);
            realm_gguf_writer_close(w);
            assert_int_equal(len % alignments[i], 0);
            assert_int_equal(walk_copy(data, len, &err), REALM_OK);
            assert_int_equal(realm_gguf_open_memory(&g, data, len, &err), REALM_OK);
            check(g, version, alignments[i]);
            realm_gguf_close(g);
            realm_free(data);
        }
    }
}

static void a_saved_file_opens(void **state) {
    (void)state;
    char path[SCRATCH_MAX] = "gguf";
    realm_gguf_writer *w;
    realm_gguf *g;
    realm_error err = {0};
    int fd = scratch_file(path);
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(realm_gguf_writer_open(&w, 3, 32, &err), REALM_OK);
    assert_int_equal(build(w), REALM_OK);
    if (realm_gguf_writer_save(w, path, &err) != REALM_OK) fail_msg("%s", err.text);
    assert_int_equal(realm_gguf_writer_save(w, "/no/such/folder/x.gguf", &err), REALM_E_NOT_FOUND);
    realm_gguf_writer_close(w);
    if (realm_gguf_open(&g, path, &err) != REALM_OK) fail_msg("%s", err.text);
    check(g, 3, 32);
    realm_gguf_close(g);
    unlink(path);
}

static void what_a_file_cannot_hold_is_refused(void **state) {
    (void)state;
    realm_gguf_writer *w = NULL;
    realm_error err = {0};
    void *data = NULL;
    size_t len;
    char long_name[REALM_GGUF_MAX_NAME + 2];
    const uint64_t part[] = {48}, zero[] = {32, 0}, huge[] = {UINT64_C(1) << 62, 8}, fine[] = {8};
    memset(long_name, 'n', sizeof long_name - 1);
    long_name[sizeof long_name - 1] = '\0';
    assert_int_equal(realm_gguf_writer_open(&w, 1, 32, &err), REALM_E_INVALID);
    assert_int_equal(realm_gguf_writer_open(&w, 4, 32, &err), REALM_E_INVALID);
    assert_int_equal(realm_gguf_writer_open(&w, 3, 0, &err), REALM_E_INVALID);
    assert_int_equal(realm_gguf_writer_open(&w, 3, 24, &err), REALM_E_INVALID);
    assert_int_equal(realm_gguf_writer_open(&w, 3, 1u << 20, &err), REALM_E_INVALID);
    assert_null(w);
    assert_int_equal(realm_gguf_writer_open(&w, 3, 32, &err), REALM_OK);
    assert_int_equal(realm_gguf_put_u32(w, "", 1), REALM_E_INVALID);
    assert_int_equal(realm_gguf_put_u32(w, long_name, 1), REALM_E_INVALID);
    assert_int_equal(realm_gguf_put_str(w, "k", "x", (size_t)1 << 40), REALM_E_INVALID);
    assert_int_equal(realm_gguf_put_array(w, "k", REALM_GGUF_STRING, "x", 1), REALM_E_INVALID);
    assert_int_equal(realm_gguf_put_array(w, "k", REALM_GGUF_U64, "x", SIZE_MAX / 4), REALM_E_INVALID);
    assert_int_equal(realm_gguf_put_tensor(w, "t", REALM_TYPE_Q4_0, 1, part, norm), REALM_E_INVALID);
    assert_int_equal(realm_gguf_put_tensor(w, "t", REALM_TYPE_Q4_0, 2, zero, norm), REALM_E_INVALID);
    assert_int_equal(realm_gguf_put_tensor(w, "t", REALM_TYPE_F32, 2, huge, norm), REALM_E_INVALID);
    assert_int_equal(realm_gguf_put_tensor(w, "t", REALM_TYPE_F32, 0, fine, norm), REALM_E_INVALID);
    assert_int_equal(realm_gguf_put_tensor(w, "t", REALM_TYPE_F32, 5, fine, norm), REALM_E_INVALID);
    assert_int_equal(realm_gguf_put_tensor(w, "t", (realm_type)4, 1, fine, norm), REALM_E_INVALID);
    assert_int_equal(realm_gguf_put_tensor(w, "t", REALM_TYPE_F32, 1, fine, NULL), REALM_E_INVALID);
    assert_int_equal(realm_gguf_put_tensor(w, "", REALM_TYPE_F32, 1, fine, norm), REALM_E_INVALID);
    /* Nothing of the refused calls is in the file. */
    assert_int_equal(realm_gguf_writer_finish(w, &data, &len, &err), REALM_OK);
    realm_gguf *g;
    assert_int_equal(realm_gguf_open_memory(&g, data, len, &err), REALM_OK);
    assert_int_equal(realm_gguf_key_count(g) + realm_gguf_tensor_count(g), 0);
    realm_gguf_close(g);
    realm_free(data);
    /* A name put twice is seen at the end. */
    assert_int_equal(realm_gguf_put_u32(w, "k", 1), REALM_OK);
    assert_int_equal(realm_gguf_put_u32(w, "k", 2), REALM_OK);
    assert_int_equal(realm_gguf_writer_finish(w, &data, &len, &err), REALM_E_FORMAT);
    assert_non_null(strstr(err.text, "twice"));
    realm_gguf_writer_close(w);
    realm_gguf_writer_close(NULL);
}

static realm_status write_all(void **data, size_t *len, realm_error *err) {
    realm_gguf_writer *w;
    realm_status s = realm_gguf_writer_open(&w, 3, 64, err);
    if (s != REALM_OK) return s;
    s = build(w);
    if (s == REALM_OK) s = realm_gguf_writer_finish(w, data, len, err);
    realm_gguf_writer_close(w);
    return s;
}

static void every_allocation_may_fail(void **state) {
    (void)state;
    for (int sticky = 0; sticky < 2; sticky++) {
        int failures = 0;
        for (int64_t at = 0;; at++) {
            void *data = NULL;
            size_t len = 0;
            realm_error err = {0};
            realm_alloc_inject_failure(at, sticky);
            realm_status s = write_all(&data, &len, &err);
            int64_t used = realm_alloc_count();
            realm_alloc_inject_failure(-1, false);
            if (s == REALM_OK) {
                assert_true(used <= at);
                realm_free(data);
                break;
            }
            assert_int_equal(s, REALM_E_NOMEM);
            assert_null(data);
            failures++;
        }
        assert_true(failures > 10);
    }
}

/* After a failed put the writer goes on as if it had not been called. */
static void a_failed_put_leaves_no_trace(void **state) {
    (void)state;
    static char big[100000];
    realm_gguf_writer *w;
    realm_gguf *g;
    void *data;
    size_t len;
    assert_int_equal(realm_gguf_writer_open(&w, 3, 32, NULL), REALM_OK);
    assert_int_equal(realm_gguf_put_u32(w, "a", 1), REALM_OK);
    realm_alloc_inject_failure(0, true);
    assert_int_equal(realm_gguf_put_str(w, "b", big, sizeof big), REALM_E_NOMEM);
    realm_alloc_inject_failure(-1, false);
    assert_int_equal(realm_gguf_put_u32(w, "b", 2), REALM_OK);
    assert_int_equal(realm_gguf_writer_finish(w, &data, &len, NULL), REALM_OK);
    assert_int_equal(realm_gguf_open_memory(&g, data, len, NULL), REALM_OK);
    assert_int_equal(realm_gguf_key_count(g), 2);
    realm_gguf_close(g);
    realm_free(data);
    realm_gguf_writer_close(w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_is_read_back),       cmocka_unit_test(a_saved_file_opens),
        cmocka_unit_test(what_a_file_cannot_hold_is_refused), cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(a_failed_put_leaves_no_trace),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
