/* tokenizer/decode.c - ids to text, whole and as a stream.
 *
 * A token is a string of bytes that may begin or end inside a character. The stream keeps the bytes of an unfinished
 * character (at most three) until the next token, and replaces bytes that can no longer become one by U+FFFD, one for
 * each longest start of a character (Unicode 15, section 3.9, "U+FFFD substitution of maximal subparts"). The whole
 * decode is the same stream, run to its end.
 */
#include <string.h>

#include "base/utf8.h"
#include "tokenizer/internal.h"

size_t realm_tokenizer_vocab_size(const realm_tokenizer *t) { return t->vocab.n; }
const char *realm_tokenizer_kind(const realm_tokenizer *t) { return t->kind; }
realm_token realm_tokenizer_bos(const realm_tokenizer *t) { return t->bos; }
realm_token realm_tokenizer_eos(const realm_tokenizer *t) { return t->eos; }
bool realm_tokenizer_adds_bos(const realm_tokenizer *t) { return t->add_bos; }

static bool known(const realm_tokenizer *t, realm_token id) { return id >= 0 && (uint32_t)id < t->vocab.n; }

bool realm_tokenizer_is_end(const realm_tokenizer *t, realm_token id) {
    return known(t, id) && t->flags[id] & REALM_TOKEN_ENDS;
}

realm_token_attr realm_tokenizer_attr(const realm_tokenizer *t, realm_token id) {
    return known(t, id) ? (realm_token_attr)t->attr[id] : REALM_TOKEN_UNUSED;
}

realm_gguf_str realm_tokenizer_text(const realm_tokenizer *t, realm_token id) {
    return known(t, id) ? realm_vocab_text(&t->vocab, id) : (realm_gguf_str){"", 0};
}

realm_token realm_tokenizer_find(const realm_tokenizer *t, const char *text, size_t len) {
    if (len == 0 || len > t->vocab.max_len) return -1;
    return realm_vocab_find(&t->vocab, realm_vocab_hash(&t->vocab, 0, text, len), text, len);
}

realm_status realm_tokenizer_piece(const realm_tokenizer *t, realm_token id, bool special, const char **bytes,
                                   size_t *len) {
    *bytes = "";
    *len = 0;
    if (!known(t, id)) return REALM_E_RANGE;
    uint8_t a = t->attr[id];
    if (!special && (a == REALM_TOKEN_CONTROL || a == REALM_TOKEN_UNKNOWN)) return REALM_OK;
    *bytes = t->pieces.bytes + t->pieces.start[id];
    *len = t->pieces.start[id + 1] - t->pieces.start[id];
    return REALM_OK;
}

/* --- streaming ------------------------------------------------------------------------------------------------- */

void realm_detok_init(realm_detok *d, const realm_tokenizer *t, bool special) {
    *d = (realm_detok){.t = t, .special = special};
}

/* True when these one to three bytes are a character's start that more bytes could finish. */
static bool unfinished(const char *s, size_t len) { return len <= 3 && realm_utf8_complete_prefix(s, len) == 0; }

/* Moves whole characters from s to out and returns how many bytes it used; what it leaves is unfinished. */
static realm_status put_characters(const char *s, size_t len, realm_buf *out, size_t *used) {
    realm_status st = REALM_OK;
    size_t from = 0, at = 0;
    while (at < len && st == REALM_OK) {
        size_t n = realm_utf8_decode(s + at, len - at, NULL);
        if (n) {
            at += n;
            continue;
        }
        if (unfinished(s + at, len - at)) break;
        st = realm_buf_append(out, s + from, at - from);
        size_t bad = 1;
        while (bad < 3 && bad < len - at && unfinished(s + at, bad + 1)) bad++;
        at += bad;
        from = at;
        if (st == REALM_OK) st = realm_buf_append(out, "\xEF\xBF\xBD", 3);
    }
    if (st == REALM_OK) st = realm_buf_append(out, s + from, at - from);
    *used = at;
    return st;
}

static realm_status push_bytes(realm_detok *d, const char *s, size_t len, realm_buf *out) {
    const size_t before = out->len;
    realm_status st;
    size_t used;
    /* Fill the held bytes up until they are used, then go on in the piece itself. */
    char join[8];
    unsigned n = d->n_held;
    memcpy(join, d->held, n);
    size_t taken = 0;
    while (n > 0 && taken < len) {
        join[n++] = s[taken++];
        if ((st = put_characters(join, n, out, &used)) != REALM_OK) goto fail;
        memmove(join, join + used, n - used);
        n -= (unsigned)used;
    }
    if (taken < len) { /* nothing is held now */
        if ((st = put_characters(s + taken, len - taken, out, &used)) != REALM_OK) goto fail;
        taken += used;
        n = (unsigned)(len - taken);
        memcpy(join, s + taken, n);
    }
    memcpy(d->held, join, n);
    d->n_held = n;
    return REALM_OK;
fail:
    out->len = before;
    if (out->data) out->data[before] = '\0';
    return st;
}

realm_status realm_detok_push(realm_detok *d, realm_token id, realm_buf *out) {
    const char *bytes;
    size_t len;
    realm_status s = realm_tokenizer_piece(d->t, id, d->special, &bytes, &len);
    return s == REALM_OK ? push_bytes(d, bytes, len, out) : s;
}

realm_status realm_detok_finish(realm_detok *d, realm_buf *out) {
    if (d->n_held == 0) return REALM_OK;
    d->n_held = 0; /* they are one character's start, so one replacement */
    return realm_buf_append(out, "\xEF\xBF\xBD", 3);
}

realm_status realm_tokenizer_decode(const realm_tokenizer *t, const realm_token *ids, size_t n, bool special,
                                    realm_buf *out, realm_error *err) {
    realm_detok d;
    realm_detok_init(&d, t, special);
    const size_t before = out->len;
    bool prefixed = !t->bpe && t->add_space_prefix;
    realm_status s = REALM_OK;
    for (size_t i = 0; i < n; i++) {
        const char *bytes;
        size_t len;
        if ((s = realm_tokenizer_piece(t, ids[i], special, &bytes, &len)) != REALM_OK) goto fail;
        if (prefixed && t->attr[ids[i]] != REALM_TOKEN_CONTROL) {
            prefixed = false;
            if (len && bytes[0] == ' ') {
                bytes++;
                len--;
            }
        }
        if ((s = push_bytes(&d, bytes, len, out)) != REALM_OK) goto fail;
    }
    if ((s = realm_detok_finish(&d, out)) != REALM_OK) goto fail;
    return REALM_OK;
fail:
    out->len = before;
    if (out->data) out->data[before] = '\0';
    if (s == REALM_E_RANGE) return realm_error_set(err, s, "a token id is outside the vocabulary of %u", t->vocab.n);
    return realm_error_set(err, s,
                           s == REALM_E_LIMIT ? "the text is longer than %zu bytes"
                                              : "out of memory for a text (at most %zu bytes)",
                           out->max);
}
