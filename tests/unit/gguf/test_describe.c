/* The description of a file in both forms, and the checks on metadata. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>
#include <jansson.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "gguf/bytes.h"
#include "gguf/gguf.h"

static char *describe(const realm_gguf *g, bool json) {
    realm_buf out;
    realm_error err = {0};
    realm_buf_init(&out, 1 << 20);
    if (realm_gguf_describe(g, json, 0, &out, &err) != REALM_OK) fail_msg("%s", err.text);
    return realm_buf_take(&out, NULL);
}

static json_t *describe_json(const realm_gguf *g) {
    char *text = describe(g, true);
    json_error_t e;
    json_t *j = json_loads(text, JSON_REJECT_DUPLICATES, &e);
    if (!j) fail_msg("%s at %d: %s", e.text, e.position, text);
    realm_free(text);
    return j;
}

static json_int_t number(const json_t *j, const char *key) {
    const json_t *v = json_object_get(j, key);
    if (!json_is_integer(v)) fail_msg("%s is no integer", key);
    return json_integer_value(v);
}

static void a_llama_file_is_described(void **state) {
    (void)state;
    realm_gguf *g;
    realm_error err = {0};
    assert_int_equal(realm_gguf_open(&g, "tests/data/gguf/llama.gguf", &err), REALM_OK);
    assert_int_equal(realm_gguf_check_metadata(g, &err), REALM_OK);
    json_t *j = describe_json(g);
    assert_string_equal(json_string_value(json_object_get(j, "architecture")), "llama");
    assert_string_equal(json_string_value(json_object_get(j, "name")), "tiny \"test\" \\x5C model");
    assert_int_equal(number(j, "parameters"), 8 * 32 + 2 * (32 * 32 + 32));
    assert_int_equal(number(j, "block_count"), 2);
    assert_int_equal(number(j, "embedding_length"), 32);
    assert_int_equal(number(j, "head_count"), 4);
    assert_int_equal(number(j, "head_count_kv"), 2);
    assert_int_equal(number(j, "context_length"), 128);
    assert_int_equal(number(j, "feed_forward_length"), 64);
    assert_int_equal(number(j, "vocab_size"), 8);
    assert_true(json_is_null(json_object_get(j, "key_length")));
    const json_t *tokenizer = json_object_get(j, "tokenizer");
    assert_string_equal(json_string_value(json_object_get(tokenizer, "model")), "llama");
    assert_string_equal(json_string_value(json_object_get(tokenizer, "pre")), "default");
    assert_int_equal(number(tokenizer, "tokens"), 8);
    assert_int_equal(number(tokenizer, "eos_token_id"), 2);
    assert_int_equal(number(json_object_get(j, "chat_template"), "bytes"), 50);
    const json_t *tensors = json_object_get(j, "tensors"), *memory = json_object_get(j, "memory");
    json_int_t total = 8 * 34 + 2 * (32 * 18 + 32 * 4);
    assert_int_equal(number(tensors, "count"), 5);
    assert_int_equal(number(tensors, "bytes"), total);
    assert_int_equal(number(memory, "weights_bytes"), total);
    assert_int_equal(number(memory, "kv_bytes_per_token"), 2 * 2 * 2 * 8 * 2); /* k and v, layers, heads, size, f16 */
    assert_int_equal(number(memory, "kv_bytes_full_context"), 128 * 128);
    size_t i;
    const json_t *t;
    json_int_t count = 0, sum = 0;
    json_array_foreach(json_object_get(tensors, "types"), i, t) {
        count += number(t, "count");
        sum += number(t, "bytes");
    }
    assert_int_equal(count, 5);
    assert_int_equal(sum, total);
    assert_int_equal(json_array_size(json_object_get(tensors, "shapes")), 3); /* the two layers are one entry each */
    assert_int_equal(json_array_size(json_object_get(j, "metadata")), realm_gguf_key_count(g));
    json_decref(j);
    char *text = describe(g, false);
    assert_non_null(strstr(text, "architecture        llama\n"));
    assert_non_null(strstr(text, "128 bytes per token in F16, 16.0 KiB for a full context"));
    assert_non_null(strstr(text, "blk.*.attn_q.weight"));
    realm_free(text);
    realm_gguf_close(g);
}

static void every_value_type_is_valid_json(void **state) {
    (void)state;
    realm_gguf *g;
    assert_int_equal(realm_gguf_open(&g, "tests/data/gguf/all-types.gguf", NULL), REALM_OK);
    char *text = describe(g, true);
    assert_non_null(strstr(text, "18446744073709551615"));
    realm_free(text);
    realm_gguf_close(g);
}

/* Terminal escapes, quotes, line ends, bytes that are no UTF-8, NUL, NaN: none reaches the output as it is. */
static void hostile_bytes_are_escaped(void **state) {
    (void)state;
    static const char evil[] = "\x1b[2J\"\\\n\r\x00\xff\xc2\x9b\xed\xa0\x80</script>";
    bytes b = {0};
    realm_gguf *g;
    realm_error err = {0};
    const uint64_t dims[4] = {8};
    b_header(&b, 1, 7);
    b_key(&b, "general.architecture", REALM_GGUF_STRING);
    b_strn(&b, evil, sizeof evil - 1);
    b_key(&b, "general.name", REALM_GGUF_STRING);
    b_strn(&b, evil, sizeof evil - 1);
    b_key(&b, "\x1b]0;key\x07\"", REALM_GGUF_STRING);
    b_strn(&b, evil, sizeof evil - 1);
    b_array(&b, "strings", REALM_GGUF_STRING, 1);
    b_strn(&b, evil, sizeof evil - 1);
    b_key(&b, "nan", REALM_GGUF_F32);
    b_f32(&b, NAN);
    b_array(&b, "inf", REALM_GGUF_F32, 1);
    b_f32(&b, -INFINITY);
    b_key(&b, "tokenizer.chat_template", REALM_GGUF_U8);
    b_u8(&b, 9);
    b_tensor(&b, "blk.7.\x1b[31m\"\\", 1, dims, REALM_TYPE_F32, 0);
    b_data(&b, 32, 32);
    if (realm_gguf_open_memory(&g, b.p, b.n, &err) != REALM_OK) fail_msg("%s", err.text);
    json_t *j = describe_json(g);
    assert_null(strpbrk(json_string_value(json_object_get(j, "architecture")), "\x1b\n\r"));
    json_decref(j);
    for (int json = 0; json < 2; json++) {
        char *text = describe(g, json);
        for (const char *p = text; *p; p++)
            if (((unsigned char)*p < 0x20 && *p != '\n') || *p == '\x7f') fail_msg("byte %d in: %s", *p, text);
        assert_null(strstr(text, "\xc2\x9b"));
        assert_null(strstr(text, "\xff"));
        realm_free(text);
    }
    assert_int_equal(realm_gguf_check_metadata(g, &err), REALM_E_FORMAT);
    assert_null(strchr(err.text, '\x1b'));
    realm_gguf_close(g);
    free(b.p);
}

/* Thousands of distinct shapes and keys: the lists are cut and say so. */
static void long_lists_are_cut(void **state) {
    (void)state;
    enum { N = 3000 };
    bytes b = {0};
    realm_gguf *g;
    realm_error err = {0};
    char name[32];
    const uint64_t dims[4] = {8};
    b_header(&b, N, N);
    for (uint32_t i = 0; i < N; i++) {
        (void)snprintf(name, sizeof name, "k%u", i);
        b_key_u32(&b, name, i);
    }
    for (uint32_t i = 0; i < N; i++) {
        (void)snprintf(name, sizeof name, "t%u", i);
        b_tensor(&b, name, 1, dims, REALM_TYPE_F32, 32u * i);
    }
    b_data(&b, 32, 32 * N);
    if (realm_gguf_open_memory(&g, b.p, b.n, &err) != REALM_OK) fail_msg("%s", err.text);
    json_t *j = describe_json(g);
    const json_t *tensors = json_object_get(j, "tensors");
    assert_int_equal(json_array_size(json_object_get(tensors, "shapes")) + (size_t)number(tensors, "more"), N);
    assert_int_equal(json_array_size(json_object_get(j, "metadata")) + (size_t)number(j, "metadata_more"), N);
    assert_true(number(tensors, "more") > 0 && number(j, "metadata_more") > 0);
    json_decref(j);
    realm_buf small;
    realm_buf_init(&small, 1000);
    assert_int_equal(realm_gguf_describe(g, true, 0, &small, &err), REALM_E_LIMIT);
    realm_buf_release(&small);
    realm_gguf_close(g);
    free(b.p);
}

/* One number per layer, as hybrid models have it. */
static void per_layer_heads_are_summed(void **state) {
    (void)state;
    bytes b = {0};
    realm_gguf *g;
    realm_error err = {0};
    b_header(&b, 0, 6);
    b_key(&b, "general.architecture", REALM_GGUF_STRING);
    b_str(&b, "a");
    b_key_u32(&b, "a.block_count", 3);
    b_key_u32(&b, "a.attention.head_count", 8);
    b_array(&b, "a.attention.head_count_kv", REALM_GGUF_I32, 3);
    b_u32(&b, 0);
    b_u32(&b, 2);
    b_u32(&b, 4);
    b_key_u32(&b, "a.attention.key_length", 16);
    b_key_u32(&b, "a.attention.value_length", 8);
    assert_int_equal(realm_gguf_open_memory(&g, b.p, b.n, &err), REALM_OK);
    if (realm_gguf_check_metadata(g, &err) != REALM_OK) fail_msg("%s", err.text);
    json_t *j = describe_json(g);
    assert_int_equal(number(json_object_get(j, "memory"), "kv_bytes_per_token"), (0 + 2 + 4) * (16 + 8) * 2);
    json_decref(j);
    realm_gguf_close(g);
    free(b.p);
}

static void put_tokens(bytes *b, uint64_t n) {
    b_array(b, "tokenizer.ggml.tokens", REALM_GGUF_STRING, n);
    for (uint64_t i = 0; i < n; i++) b_str(b, "t");
}
static void fine(bytes *b) { put_tokens(b, 2); }
static void no_layers(bytes *b) { b_key_u32(b, "llama.block_count", 0); } /* CVE-2024-8063 */
static void negative_heads(bytes *b) {
    b_key(b, "llama.attention.head_count", REALM_GGUF_I32);
    b_u32(b, (uint32_t)-4);
}
static void huge_context(bytes *b) {
    b_key(b, "llama.context_length", REALM_GGUF_U64);
    b_u64(b, UINT64_C(1) << 60);
}
static void text_embedding(bytes *b) {
    b_key(b, "llama.embedding_length", REALM_GGUF_STRING);
    b_str(b, "576");
}
static void put_float(bytes *b, const char *key, float f) {
    b_key(b, key, REALM_GGUF_F32);
    b_f32(b, f);
}
static void nan_epsilon(bytes *b) { put_float(b, "llama.attention.layer_norm_rms_epsilon", NAN); }
static void negative_epsilon(bytes *b) { put_float(b, "llama.attention.layer_norm_rms_epsilon", -1e-5f); }
static void zero_rope_base(bytes *b) { put_float(b, "llama.rope.freq_base", 0); }
static void infinite_other(bytes *b) { put_float(b, "llama.anything.at.all", INFINITY); }
static void few_layers(bytes *b) { b_array(b, "llama.attention.head_count_kv", REALM_GGUF_U32, 0); }
static void fewer_than_layers(bytes *b) {
    b_key_u32(b, "llama.block_count", 3);
    b_array(b, "llama.attention.head_count_kv", REALM_GGUF_U32, 2);
    b_u32(b, 1);
    b_u32(b, 1);
}
static void text_epsilon(bytes *b) {
    b_key(b, "llama.attention.layer_norm_rms_epsilon", REALM_GGUF_STRING);
    b_str(b, "1e-5");
}
static void negative_layer(bytes *b) {
    b_array(b, "llama.attention.head_count_kv", REALM_GGUF_I64, 1);
    b_u64(b, UINT64_MAX);
}
static void text_layers(bytes *b) { b_array(b, "llama.attention.head_count_kv", REALM_GGUF_STRING, 0); }
static void no_tokens(bytes *b) { put_tokens(b, 0); }
static void numbers_as_tokens(bytes *b) {
    b_array(b, "tokenizer.ggml.tokens", REALM_GGUF_U32, 1);
    b_u32(b, 1);
}
static void bos_outside(bytes *b) {
    put_tokens(b, 3);
    b_key_u32(b, "tokenizer.ggml.bos_token_id", 3);
}
static void eos_negative(bytes *b) {
    put_tokens(b, 3);
    b_key(b, "tokenizer.ggml.eos_token_id", REALM_GGUF_I32);
    b_u32(b, UINT32_MAX);
}
static void fewer_scores(bytes *b) {
    put_tokens(b, 3);
    b_array(b, "tokenizer.ggml.scores", REALM_GGUF_F32, 2);
    b_u64(b, 0);
}
static void text_scores(bytes *b) {
    put_tokens(b, 1);
    b_array(b, "tokenizer.ggml.scores", REALM_GGUF_STRING, 1);
    b_str(b, "");
}
static void more_types(bytes *b) {
    put_tokens(b, 1);
    b_array(b, "tokenizer.ggml.token_type", REALM_GGUF_I32, 2);
    b_u64(b, 0);
}

static void metadata_that_makes_no_sense_is_refused(void **state) {
    (void)state;
    static const struct {
        void (*build)(bytes *b);
        uint64_t n_keys;
        const char *text; /* NULL: fine */
    } cases[] = {{fine, 1, NULL},
                 {no_layers, 1, "llama.block_count is 0"},
                 {negative_heads, 1, "head_count is negative (-4)"},
                 {huge_context, 1, "context_length is too large"},
                 {text_embedding, 1, "embedding_length is of type string"},
                 {nan_epsilon, 1, "not a finite"},
                 {negative_epsilon, 1, "not above zero"},
                 {zero_rope_base, 1, "not above zero"},
                 {infinite_other, 1, "llama.anything.at.all is inf"},
                 {few_layers, 1, NULL}, /* without a layer count there is nothing to compare with */
                 {fewer_than_layers, 2, "head_count_kv has 2 numbers for 3 layers"},
                 {text_epsilon, 1, "rms_epsilon is of type string"},
                 {negative_layer, 1, "holds -1 at position 0"},
                 {text_layers, 1, "array of string"},
                 {no_tokens, 1, "has 0 tokens"},
                 {numbers_as_tokens, 1, "no array of strings"},
                 {bos_outside, 2, "bos_token_id is 3, but there are 3 tokens"},
                 {eos_negative, 2, "eos_token_id is negative"},
                 {fewer_scores, 2, "scores has 2 entries for 3 tokens"},
                 {text_scores, 2, "scores is no array of numbers"},
                 {more_types, 2, "token_type has 2 entries for 1 tokens"}};
    for (size_t i = 0; i < REALM_ARRAY_LEN(cases); i++) {
        bytes b = {0};
        realm_gguf *g;
        realm_error err = {0};
        b_header(&b, 0, 1 + cases[i].n_keys);
        b_key(&b, "general.architecture", REALM_GGUF_STRING);
        b_str(&b, "llama");
        cases[i].build(&b);
        if (realm_gguf_open_memory(&g, b.p, b.n, &err) != REALM_OK) fail_msg("case %zu: %s", i, err.text);
        realm_status s = realm_gguf_check_metadata(g, &err);
        if (cases[i].text ? s != REALM_E_FORMAT || !strstr(err.text, cases[i].text) : s != REALM_OK)
            fail_msg("case %zu: %s: %s", i, realm_status_name(s), err.text);
        json_decref(describe_json(g)); /* is described all the same */
        realm_gguf_close(g);
        free(b.p);
    }
}

static void the_architecture_is_a_plain_name(void **state) {
    (void)state;
    static const struct {
        const char *name;
        bool ok;
    } cases[] = {{"llama", true},
                 {"qwen2.5_x-y", true},
                 {"", false},
                 {"a b", false},
                 {"a%s", false},
                 {"\xc3\xa9", false},
                 {"0123456789012345678901234567890123456789012345678901234567890123", true},
                 {"01234567890123456789012345678901234567890123456789012345678901234", false}};
    for (size_t i = 0; i < REALM_ARRAY_LEN(cases); i++) {
        bytes b = {0};
        realm_gguf *g;
        char name[REALM_GGUF_MAX_ARCHITECTURE + 1] = "";
        b_header(&b, 0, 1);
        b_key(&b, "general.architecture", REALM_GGUF_STRING);
        b_str(&b, cases[i].name);
        assert_int_equal(realm_gguf_open_memory(&g, b.p, b.n, NULL), REALM_OK);
        assert_int_equal(realm_gguf_architecture(g, name), cases[i].ok);
        assert_string_equal(name, cases[i].ok ? cases[i].name : "");
        assert_int_equal(realm_gguf_check_metadata(g, NULL), cases[i].ok ? REALM_OK : REALM_E_FORMAT);
        realm_gguf_close(g);
        free(b.p);
    }
}

static void every_allocation_may_fail(void **state) {
    (void)state;
    realm_gguf *g;
    assert_int_equal(realm_gguf_open(&g, "tests/data/gguf/llama.gguf", NULL), REALM_OK);
    for (int64_t at = 0;; at++) {
        realm_buf out;
        realm_buf_init(&out, 1 << 20);
        realm_alloc_inject_failure(at, true);
        realm_status s = realm_gguf_describe(g, true, 0, &out, NULL);
        realm_alloc_inject_failure(-1, false);
        realm_buf_release(&out);
        if (s == REALM_OK) {
            assert_true(at > 3);
            break;
        }
        assert_int_equal(s, REALM_E_NOMEM);
    }
    realm_gguf_close(g);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_llama_file_is_described),        cmocka_unit_test(every_value_type_is_valid_json),
        cmocka_unit_test(hostile_bytes_are_escaped),        cmocka_unit_test(long_lists_are_cut),
        cmocka_unit_test(per_layer_heads_are_summed),       cmocka_unit_test(metadata_that_makes_no_sense_is_refused),
        cmocka_unit_test(the_architecture_is_a_plain_name), cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
