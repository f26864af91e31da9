/* tokenizer/encode.c - text to ids.
 *
 *   text     | special | fragment | special | fragment |      special tokens are cut out first (special.c),
 *   fragment | word | word | word |                           each fragment between is cut into words,
 *   word     | token | token |                                each word is merged by itself (merge.c).
 *
 * BPE words come from the pre-tokenizer. SentencePiece has no words: a fragment merges as a whole. But nothing merges
 * across a place where no token of the vocabulary could reach across, and "x U+2581" with most x is such a place, so
 * fragments are cut there: the ids are the same, the heaps are small, and memory no longer grows with the text.
 *
 * Where SentencePiece files ask for a space prefix, it goes before the text and again before each fragment that
 * follows a special token, user-defined ones included: what the reference does, and what such models saw in training.
 */
#include <string.h>

#include "base/alloc.h"
#include "base/utf8.h"
#include "tokenizer/internal.h"

void realm_tokens_release(realm_tokens *t) {
    realm_free(t->ids);
    *t = (realm_tokens){0};
}

realm_status realm_tokens_push(realm_tokens *t, realm_token id) {
    if (t->len == t->cap) {
        size_t cap = t->cap < 64 ? 64 : t->cap + t->cap / 2;
        realm_token *ids = realm_realloc_array(t->ids, cap, sizeof *ids);
        if (!ids) return REALM_E_NOMEM;
        t->ids = ids;
        t->cap = cap;
    }
    t->ids[t->len++] = id;
    return REALM_OK;
}

static realm_status text_append(realm_scratch *w, const char *s, size_t len) {
    if (len > w->text_cap - w->text_len) {
        size_t cap = REALM_MAX(2 * w->text_cap, w->text_len + len);
        cap = REALM_MAX(cap, (size_t)256);
        char *p = realm_realloc_array(w->text, cap, 1);
        if (!p) return REALM_E_NOMEM;
        w->text = p;
        w->text_cap = cap;
    }
    memcpy(w->text + w->text_len, s, len);
    w->text_len += len;
    return REALM_OK;
}

/* --- BPE ------------------------------------------------------------------------------------------------------- */

/* The normal token that stands for exactly these bytes, whatever the merges give; *id is -1 when there is none. */
static realm_status whole_word(const realm_tokenizer *t, realm_scratch *w, const char *word, size_t len,
                               realm_token *id) {
    *id = -1;
    if (len > t->max_piece) return REALM_OK;
    w->text_len = 0;
    for (size_t i = 0; i < len; i++) {
        unsigned char b = (unsigned char)word[i];
        realm_status s = text_append(w, (const char *)t->encoded[b], t->encoded_len[b]);
        if (s != REALM_OK) return s;
    }
    *id = realm_tokenizer_find(t, w->text, w->text_len);
    if (*id >= 0 && !realm_token_mergeable(t, *id)) *id = -1;
    return REALM_OK;
}

static realm_status encode_bpe(const realm_tokenizer *t, realm_scratch *w, const char *s, size_t len) {
    for (size_t at = 0, n; at < len; at += n) {
        n = realm_split_word(t->rule, s + at, len - at);
        realm_token id = -1;
        realm_status st = t->ignore_merges ? whole_word(t, w, s + at, n, &id) : REALM_OK;
        if (st == REALM_OK) st = id >= 0 ? realm_scratch_push(w, id) : realm_merge_word(t, w, s + at, n);
        if (st != REALM_OK) return st;
    }
    return REALM_OK;
}

/* --- SentencePiece --------------------------------------------------------------------------------------------- */

static realm_status encode_spm(const realm_tokenizer *t, realm_scratch *w, const char *s, size_t len, bool prefix) {
    realm_status st;
    bool after_space = prefix;
    w->text_len = 0;
    if (prefix && (st = text_append(w, REALM_SPM_SPACE, REALM_SPM_SPACE_LEN)) != REALM_OK) return st;
    for (size_t at = 0; at < len;) {
        size_t n = 1;
        bool space = s[at] == ' ';
        if (!space && (unsigned char)s[at] >= 0x80) {
            n = realm_utf8_decode(s + at, len - at, NULL);
            if (n == 0) n = 1;
            space = n == REALM_SPM_SPACE_LEN && memcmp(s + at, REALM_SPM_SPACE, n) == 0;
        }
        if (space && !after_space && w->text_len && !t->joins[(unsigned char)w->text[w->text_len - 1]]) {
            if ((st = realm_merge_word(t, w, w->text, w->text_len)) != REALM_OK) return st;
            w->text_len = 0;
        }
        st = space ? text_append(w, REALM_SPM_SPACE, REALM_SPM_SPACE_LEN) : text_append(w, s + at, n);
        if (st != REALM_OK) return st;
        after_space = space;
        at += n;
    }
    return realm_merge_word(t, w, w->text, w->text_len);
}

/* --- texts ----------------------------------------------------------------------------------------------------- */

/* A token stands for at most max_piece bytes, so a text of too many bytes is refused before any work. */
static bool cannot_fit(const realm_tokenizer *t, const char *text, size_t len, size_t room) {
    size_t limit;
    if (!realm_mul_size(room, t->max_piece, &limit) || len <= limit) return false;
    size_t n = 0; /* bytes that some token must carry: not dropped, and not swallowed by a token before them */
    for (size_t i = 0; i < len; i++) n += t->byte_ids[(unsigned char)text[i]] >= 0 && !strchr(" \t\n\v\f\r", text[i]);
    return n > limit;
}

static size_t white_space(const char *s, size_t len) {
    size_t n = 0;
    while (n < len && (s[n] == ' ' || (s[n] >= '\t' && s[n] <= '\r'))) n++;
    return n;
}

static realm_status encode_fragment(const realm_tokenizer *t, realm_scratch *w, const char *s, size_t len,
                                    bool after_special) {
    if (len == 0) return REALM_OK;
    return t->bpe ? encode_bpe(t, w, s, len) : encode_spm(t, w, s, len, after_special && t->add_space_prefix);
}

/* Bytes from `at` to the end of the stretch of special spans around it; 0 in a plain one. *span moves forwards. */
static size_t special_len(const realm_text_span *spans, size_t n_spans, size_t *span, size_t at) {
    while (*span < n_spans && at >= spans[*span].start + spans[*span].len) (*span)++;
    if (*span == n_spans || !spans[*span].special) return 0;
    size_t i = *span, end = 0;
    for (; i < n_spans && spans[i].special; i++) end = spans[i].start + spans[i].len;
    return end - at;
}

static realm_status encode_text(const realm_tokenizer *t, realm_scratch *w, const char *text, size_t len,
                                const realm_text_span *spans, size_t n_spans, bool after_special) {
    realm_status s;
    size_t from = 0, span = 0, control_end = 0;
    for (size_t at = 0; at < len;) {
        if (at >= control_end) {
            size_t n = special_len(spans, n_spans, &span, at);
            control_end = at + n;
        }
        realm_token id = realm_specials_match(t, text + at, len - at, control_end - REALM_MIN(at, control_end));
        if (id < 0) {
            at++;
            continue;
        }
        if ((s = encode_fragment(t, w, text + from, at - from, after_special)) != REALM_OK) return s;
        if ((s = realm_scratch_push(w, id)) != REALM_OK) return s;
        at += realm_vocab_text(&t->vocab, id).len;
        if (t->flags[id] & REALM_TOKEN_RSTRIP) at += white_space(text + at, len - at);
        from = at;
        after_special = true;
    }
    return encode_fragment(t, w, text + from, len - from, after_special);
}

static realm_status check_spans(const realm_text_span *spans, size_t n_spans, size_t len, realm_error *err) {
    size_t at = 0;
    for (size_t i = 0; i < n_spans; i++) {
        if (spans[i].start != at || !realm_add_size(at, spans[i].len, &at) || at > len)
            return realm_error_set(err, REALM_E_INVALID, "text span %zu does not continue the one before", i);
    }
    if (at != len) return realm_error_set(err, REALM_E_INVALID, "the text spans end at %zu of %zu bytes", at, len);
    return REALM_OK;
}

realm_status realm_tokenizer_encode_spans(const realm_tokenizer *t, const char *text, size_t len,
                                          const realm_text_span *spans, size_t n_spans, unsigned flags,
                                          size_t max_tokens, realm_tokens *out, realm_error *err) {
    realm_status s = check_spans(spans, n_spans, len, err);
    if (s != REALM_OK) return s;
    if (len > REALM_TOKENIZER_MAX_INPUT)
        return realm_error_set(err, REALM_E_LIMIT, "a text of %zu bytes, at most %u are encoded", len,
                               REALM_TOKENIZER_MAX_INPUT);
    const size_t before = out->len;
    realm_scratch w = {.out = out, .max_tokens = max_tokens};
    if (before > max_tokens || cannot_fit(t, text, len, max_tokens - before)) {
        s = REALM_E_LIMIT;
        goto done;
    }
    if (flags & REALM_ENCODE_ADD_SPECIAL && t->add_bos && (s = realm_scratch_push(&w, t->bos)) != REALM_OK) goto done;
    if ((s = encode_text(t, &w, text, len, spans, n_spans, !(flags & REALM_ENCODE_CONTINUES))) != REALM_OK) goto done;
    if (flags & REALM_ENCODE_ADD_SPECIAL && t->add_eos) s = realm_scratch_push(&w, t->eos);
done:
    realm_free(w.text);
    realm_free(w.heap);
    realm_free(w.symbols);
    if (s == REALM_OK) return REALM_OK;
    out->len = before;
    if (s == REALM_E_LIMIT)
        return realm_error_set(err, s, "a text of %zu bytes has more than %zu tokens", len,
                               max_tokens - REALM_MIN(before, max_tokens));
    return realm_error_set(err, s, "out of memory for the tokens of a text of %zu bytes", len);
}

realm_status realm_tokenizer_encode(const realm_tokenizer *t, const char *text, size_t len, unsigned flags,
                                    size_t max_tokens, realm_tokens *out, realm_error *err) {
    realm_text_span span = {0, len, flags & REALM_ENCODE_PARSE_SPECIAL};
    return realm_tokenizer_encode_spans(t, text, len, &span, 1, flags, max_tokens, out, err);
}
