/* Any bytes through the tokenizer, two ways by the first byte: as a model file whose tables may be anything (it is
 * refused with one line or encodes and decodes), and as text for a fixed vocabulary, where pieces have to add up to the
 * text, spans must not change it, and a stream must show what the whole decode shows. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/utf8.h"
#include "tokenizer/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool promise) {
    if (!promise) abort();
}

static realm_tokenizer *open_file(const char *path) {
    realm_gguf *g;
    realm_tokenizer *t;
    realm_error err = {0};
    require(realm_gguf_open(&g, path, &err) == REALM_OK && realm_tokenizer_open(&t, g, &err) == REALM_OK);
    realm_gguf_close(g);
    return t;
}

static void stream_equals_whole(const realm_tokenizer *t, const realm_tokens *ids) {
    realm_buf whole, stream;
    realm_buf_init(&whole, 64u << 20);
    realm_buf_init(&stream, 64u << 20);
    require(realm_tokenizer_decode(t, ids->ids, ids->len, true, &whole, NULL) == REALM_OK);
    realm_detok d;
    realm_detok_init(&d, t, true);
    for (size_t i = 0; i < ids->len; i++) require(realm_detok_push(&d, ids->ids[i], &stream) == REALM_OK);
    require(realm_detok_finish(&d, &stream) == REALM_OK);
    require(realm_utf8_valid(whole.data ? whole.data : "", whole.len));
    size_t prefix = stream.len - whole.len; /* SentencePiece's, which the whole decode drops */
    require(prefix <= 1);
    if (prefix == 0 && whole.len) require(memcmp(stream.data, whole.data, whole.len) == 0);
    realm_buf_release(&whole);
    realm_buf_release(&stream);
}

static void as_text(const realm_tokenizer *t, const char *s, size_t len, unsigned flags) {
    realm_tokens ids = {0}, spans = {0};
    realm_error err = {0};
    require(realm_tokenizer_encode(t, s, len, flags, SIZE_MAX, &ids, &err) == REALM_OK);
    stream_equals_whole(t, &ids);
    if (!(flags & (REALM_ENCODE_ADD_SPECIAL | REALM_ENCODE_PARSE_SPECIAL))) {
        size_t third = len / 3;
        realm_text_span cut[3] = {{0, third, false}, {third, third, false}, {2 * third, len - 2 * third, false}};
        require(realm_tokenizer_encode_spans(t, s, len, cut, 3, flags, SIZE_MAX, &spans, &err) == REALM_OK);
        require(spans.len == ids.len && (ids.len == 0 || memcmp(spans.ids, ids.ids, ids.len * sizeof *ids.ids) == 0));
        for (size_t i = 0; i < ids.len; i++) require(realm_tokenizer_attr(t, ids.ids[i]) != REALM_TOKEN_CONTROL);
    }
    realm_tokens_release(&ids);
    realm_tokens_release(&spans);
}

static void as_file(const void *data, size_t size) {
    realm_gguf *g = NULL;
    realm_tokenizer *t = NULL;
    realm_error err = {0};
    if (realm_gguf_open_memory(&g, data, size, &err) == REALM_OK) {
        if (realm_tokenizer_open(&t, g, &err) == REALM_OK) {
            as_text(t, "The <s> 'LL\n\n  12345 \xE2\x96\x81\xF0\x9F\x98\x80\xFF[INST]", 36, 3);
            realm_tokenizer_close(t);
        } else {
            require(t == NULL && err.text[0] != '\0');
        }
        realm_gguf_close(g);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static realm_tokenizer *fixed[2];
    if (!fixed[0]) {
        fixed[0] = open_file("tests/data/tokenizer/llama-bpe.gguf");
        fixed[1] = open_file("tests/data/tokenizer/spm.gguf");
    }
    if (size == 0) return 0;
    if (data[0] == 'G') {                /* so that model files are seeds */
        void *copy = realm_malloc(size); /* where a sanitizer sees its end */
        require(copy != NULL);
        memcpy(copy, data, size);
        as_file(copy, size);
        realm_free(copy);
    } else {
        if (size > 4096) size = 4096; /* many short texts find more than few long ones */
        as_text(fixed[data[0] & 1], (const char *)data + 1, size - 1, data[0] >> 1 & 7);
    }
    return 0;
}
