/* tokenizer/fixture.h - what the tests of this folder share: opening files, building small ones, random text. */
#ifndef TESTS_TOKENIZER_FIXTURE_H
#define TESTS_TOKENIZER_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/utf8.h"
#include "tokenizer/tokenizer.h"

#define DATA "tests/data/tokenizer/"
#define UNUSED_FN __attribute__((unused))

UNUSED_FN static uint32_t next_random(uint64_t *state) { /* PCG32 */
    uint64_t s = *state;
    *state = s * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    uint32_t x = (uint32_t)(((s >> 18) ^ s) >> 27);
    unsigned rot = (unsigned)(s >> 59);
    return x >> rot | x << (-rot & 31);
}

/* Path of a real model in the cache; the test fails when it is not there. */
UNUSED_FN static const char *cached_model(const char *name) {
    static char path[1024];
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (cache && *cache)
        snprintf(path, sizeof path, "%s/realm/models/%s", cache, name);
    else
        snprintf(path, sizeof path, "%s/.cache/realm/models/%s", home ? home : "", name);
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("%s is not there: run tools/fetch-models", path);
    fclose(f);
    return path;
}

UNUSED_FN static realm_tokenizer *open_file(const char *path) {
    realm_gguf *g;
    realm_tokenizer *t;
    realm_error err = {0};
    if (realm_gguf_open(&g, path, &err) != REALM_OK) fail_msg("%s: %s", path, err.text);
    if (realm_tokenizer_open(&t, g, &err) != REALM_OK) fail_msg("%s: %s", path, err.text);
    realm_gguf_close(g); /* the tokenizer keeps copies */
    return t;
}

UNUSED_FN static realm_gguf_str str(const char *s) { return (realm_gguf_str){s, strlen(s)}; }

/* A file in the making. */
typedef struct builder {
    const char *model, *pre, *name;
    realm_gguf_str tokens[700];
    int32_t types[700];
    float scores[700];
    realm_gguf_str merges[64];
    size_t n, n_types, n_scores, n_merges;
    char texts[300][8];
    struct {
        const char *key;
        uint32_t value;
        bool is_bool;
    } keys[8];
    size_t n_keys;
} builder;

UNUSED_FN static int32_t add(builder *b, const char *text, int32_t type, float score) {
    b->tokens[b->n] = str(text);
    b->types[b->n] = type;
    b->scores[b->n] = score;
    b->n_types = b->n_scores = b->n + 1;
    return (int32_t)b->n++;
}

UNUSED_FN static void set(builder *b, const char *key, uint32_t value, bool is_bool) {
    b->keys[b->n_keys].key = key;
    b->keys[b->n_keys].value = value;
    b->keys[b->n_keys++].is_bool = is_bool;
}

/* <unk> <s> </s> and the 256 byte tokens, as SentencePiece numbers them. */
UNUSED_FN static void start_spm(builder *b) {
    memset(b, 0, sizeof *b);
    b->model = "llama";
    add(b, "<unk>", REALM_TOKEN_UNKNOWN, 0);
    add(b, "<s>", REALM_TOKEN_CONTROL, 0);
    add(b, "</s>", REALM_TOKEN_CONTROL, 0);
    for (unsigned i = 0; i < 256; i++) {
        snprintf(b->texts[i], sizeof b->texts[i], "<0x%02X>", i);
        add(b, b->texts[i], REALM_TOKEN_BYTE, 0);
    }
}

/* The 256 characters of the byte-level alphabet. */
UNUSED_FN static void start_bpe(builder *b, const char *pre) {
    memset(b, 0, sizeof *b);
    b->model = "gpt2";
    b->pre = pre;
    uint32_t next = 256;
    for (unsigned i = 0; i < 256; i++) {
        bool printable = (i >= 0x21 && i <= 0x7E) || (i >= 0xA1 && i <= 0xAC) || i >= 0xAE;
        realm_utf8_encode(printable ? i : next++, b->texts[i]);
        add(b, b->texts[i], REALM_TOKEN_NORMAL, 0);
    }
}

UNUSED_FN static void merge(builder *b, const char *pair) { b->merges[b->n_merges++] = str(pair); }

UNUSED_FN static void *built_bytes(const builder *b, size_t *len) {
    realm_gguf_writer *w;
    realm_error err = {0};
    void *data;
    assert_int_equal(realm_gguf_writer_open(&w, 3, 32, &err), REALM_OK);
    assert_int_equal(realm_gguf_put_str(w, "general.architecture", "llama", 5), REALM_OK);
    if (b->name) assert_int_equal(realm_gguf_put_str(w, "general.name", b->name, strlen(b->name)), REALM_OK);
    if (b->model) assert_int_equal(realm_gguf_put_str(w, "tokenizer.ggml.model", b->model, strlen(b->model)), REALM_OK);
    if (b->pre) assert_int_equal(realm_gguf_put_str(w, "tokenizer.ggml.pre", b->pre, strlen(b->pre)), REALM_OK);
    assert_int_equal(realm_gguf_put_strs(w, "tokenizer.ggml.tokens", b->tokens, b->n), REALM_OK);
    if (b->n_types)
        assert_int_equal(realm_gguf_put_array(w, "tokenizer.ggml.token_type", REALM_GGUF_I32, b->types, b->n_types),
                         REALM_OK);
    if (b->n_scores)
        assert_int_equal(realm_gguf_put_array(w, "tokenizer.ggml.scores", REALM_GGUF_F32, b->scores, b->n_scores),
                         REALM_OK);
    if (b->n_merges || !b->model || strcmp(b->model, "gpt2") == 0)
        assert_int_equal(realm_gguf_put_strs(w, "tokenizer.ggml.merges", b->merges, b->n_merges), REALM_OK);
    for (size_t i = 0; i < b->n_keys; i++)
        assert_int_equal(b->keys[i].is_bool ? realm_gguf_put_bool(w, b->keys[i].key, b->keys[i].value)
                                            : realm_gguf_put_u32(w, b->keys[i].key, b->keys[i].value),
                         REALM_OK);
    if (realm_gguf_writer_finish(w, &data, len, &err) != REALM_OK) fail_msg("%s", err.text);
    realm_gguf_writer_close(w);
    return data;
}

UNUSED_FN static realm_status open_built(const builder *b, realm_tokenizer **t, realm_error *err) {
    size_t len;
    void *data = built_bytes(b, &len);
    realm_gguf *g;
    *err = (realm_error){0};
    if (realm_gguf_open_memory(&g, data, len, err) != REALM_OK) fail_msg("%s", err->text);
    realm_status s = realm_tokenizer_open(t, g, err);
    realm_gguf_close(g);
    realm_free(data);
    return s;
}

/* Random well-formed UTF-8 of at most n characters; `cap` is 4n at least. */
UNUSED_FN static size_t random_text(uint64_t *seed, char *to, unsigned n) {
    static const char *const parts[] = {" ",
                                        "  ",
                                        "\n",
                                        "\r\n",
                                        "\t",
                                        "'s",
                                        "'LL",
                                        "the",
                                        "ing",
                                        "12",
                                        "3",
                                        "a",
                                        "B",
                                        "_",
                                        "...",
                                        "(",
                                        "\xC3\xA9",
                                        "\xE4\xB8\xAD",
                                        "\xF0\x9F\x98\x80",
                                        "e\xCC\x81",
                                        "\xC2\xA0",
                                        "<",
                                        "|",
                                        ">"};
    size_t len = 0;
    for (unsigned left = 1 + next_random(seed) % n; left > 0; left--) {
        if (next_random(seed) % 4) {
            const char *p = parts[next_random(seed) % (sizeof parts / sizeof *parts)];
            memcpy(to + len, p, strlen(p));
            len += strlen(p);
        } else {
            uint32_t c;
            size_t k;
            do c = next_random(seed) % (next_random(seed) % 2 ? 0x3000 : 0x110000);
            while ((k = realm_utf8_encode(c, to + len)) == 0);
            len += k;
        }
    }
    return len;
}

UNUSED_FN static realm_tokens encode(const realm_tokenizer *t, const char *s, size_t len, unsigned flags) {
    realm_tokens out = {0};
    realm_error err = {0};
    if (realm_tokenizer_encode(t, s, len, flags, SIZE_MAX, &out, &err) != REALM_OK) fail_msg("%s", err.text);
    return out;
}

#endif
