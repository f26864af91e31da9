/* tokenizer/open.c - a tokenizer from the tables of a GGUF file.
 *
 * The reader has checked that keys, strings and arrays lie inside the file; here they are checked against each other:
 * one score and one type per token, ids inside the vocabulary, merges whose parts and result are tokens. What is kept
 * is a copy, sized by the file and by the limits in internal.h.
 *
 *   tokenizer.ggml.model            "gpt2" (byte-level BPE) or "llama" (SentencePiece)
 *   tokenizer.ggml.pre              pre-tokenizer of "gpt2"; absent: "default"
 *   tokenizer.ggml.tokens           texts; of "gpt2" in the byte-level alphabet, of "llama" with U+2581 for spaces
 *   tokenizer.ggml.scores           "llama": required
 *   tokenizer.ggml.token_type       attributes; absent: all normal
 *   tokenizer.ggml.merges           "gpt2": "left right" by rank
 *   tokenizer.ggml.{bos,eos,unknown,eot,eom}_token_id, add_{bos,eos}_token, add_space_prefix
 *
 * tokenizer.ggml.remove_extra_whitespaces concerns unigram models and is not read.
 */
#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "base/str.h"
#include "base/utf8.h"
#include "tokenizer/internal.h"

#define TOKENS "tokenizer.ggml.tokens"
#define SCORES "tokenizer.ggml.scores"
#define TYPES "tokenizer.ggml.token_type"
#define MERGES "tokenizer.ggml.merges"

/* An array key of n elements (any number for n == 0). `strings` or numbers. *out is NULL when it is absent and not
 * required. */
static realm_status get_array(const realm_gguf *g, const char *key, bool strings, bool required, uint64_t n,
                              const realm_gguf_value **out, realm_error *err) {
    const realm_gguf_value *v = realm_gguf_find(g, key);
    *out = v;
    if (!v) return required ? realm_error_set(err, REALM_E_FORMAT, "%s is missing", key) : REALM_OK;
    if (realm_gguf_type(v) != REALM_GGUF_ARRAY) return realm_error_set(err, REALM_E_FORMAT, "%s is no array", key);
    realm_gguf_value_type type = realm_gguf_array_type(v);
    if (strings ? type != REALM_GGUF_STRING : type == REALM_GGUF_STRING || type == REALM_GGUF_ARRAY)
        return realm_error_set(err, REALM_E_FORMAT, "%s is no array of %s", key, strings ? "strings" : "numbers");
    if (n && realm_gguf_array_len(v) != n)
        return realm_error_set(err, REALM_E_FORMAT, "%s has %llu elements, " TOKENS " has %llu", key,
                               (unsigned long long)realm_gguf_array_len(v), (unsigned long long)n);
    return REALM_OK;
}

static realm_status read_types(realm_tokenizer *t, const realm_gguf_value *types, realm_error *err) {
    for (uint32_t i = 0; i < t->vocab.n; i++) {
        int64_t type = types ? realm_gguf_array_i64(types, i) : REALM_TOKEN_NORMAL;
        if (type < 0 || type > REALM_TOKEN_BYTE)
            return realm_error_set(err, REALM_E_FORMAT, TYPES ": token %u has the unknown type %lld", i,
                                   (long long)type);
        t->attr[i] = type == 0 ? REALM_TOKEN_NORMAL : (uint8_t)type; /* 0: undefined */
    }
    return REALM_OK;
}

/* Scores become integers that grow as the score falls, so that one heap serves both families. */
static realm_status read_scores(realm_tokenizer *t, const realm_gguf_value *scores, realm_error *err) {
    t->order = realm_calloc(t->vocab.n, sizeof *t->order);
    if (!t->order) return realm_error_set(err, REALM_E_NOMEM, "out of memory for " SCORES);
    for (uint32_t i = 0; i < t->vocab.n; i++) {
        float score = (float)realm_gguf_array_f64(scores, i) + 0.0f; /* no negative zero */
        if (!isfinite(score))
            return realm_error_set(err, REALM_E_FORMAT, SCORES ": the score of token %u is no finite number", i);
        uint32_t bits;
        memcpy(&bits, &score, sizeof bits);
        t->order[i] = bits & 0x80000000u ? bits : ~(bits | 0x80000000u);
    }
    return REALM_OK;
}

/* A special token's id; *out keeps its value when the key is absent. */
static realm_status read_id(const realm_tokenizer *t, const realm_gguf *g, const char *key, realm_token *out,
                            realm_error *err) {
    uint32_t id;
    if (!realm_gguf_find(g, key)) return REALM_OK;
    realm_status s = realm_gguf_get_u32(g, key, true, &id, err);
    if (s != REALM_OK) return s;
    if (id >= t->vocab.n)
        return realm_error_set(err, REALM_E_FORMAT, "%s: token %u is outside the vocabulary of %u", key, id,
                               t->vocab.n);
    *out = (realm_token)id;
    return REALM_OK;
}

static realm_status read_special_ids(realm_tokenizer *t, const realm_gguf *g, bool has_types, realm_error *err) {
    realm_status s;
    t->bos = t->eos = t->unk = -1;
    if (!t->bpe) { /* SentencePiece's own numbering, where these tokens are what it says they are */
        const struct {
            realm_token id, *to;
            uint8_t attr;
            const char *text;
        } usual[] = {{0, &t->unk, REALM_TOKEN_UNKNOWN, "<unk>"},
                     {1, &t->bos, REALM_TOKEN_CONTROL, "<s>"},
                     {2, &t->eos, REALM_TOKEN_CONTROL, "</s>"}};
        for (size_t i = 0; i < REALM_ARRAY_LEN(usual); i++) {
            if ((uint32_t)usual[i].id >= t->vocab.n) continue;
            bool is = has_types ? t->attr[usual[i].id] == usual[i].attr
                                : realm_tokenizer_find(t, usual[i].text, strlen(usual[i].text)) == usual[i].id;
            if (is) *usual[i].to = usual[i].id;
        }
    }
    if ((s = read_id(t, g, "tokenizer.ggml.bos_token_id", &t->bos, err)) != REALM_OK) return s;
    if ((s = read_id(t, g, "tokenizer.ggml.eos_token_id", &t->eos, err)) != REALM_OK) return s;
    if ((s = read_id(t, g, "tokenizer.ggml.unknown_token_id", &t->unk, err)) != REALM_OK) return s;

    bool bos = t->add_bos && t->bos >= 0, eos = false;
    if ((s = realm_gguf_get_bool(g, "tokenizer.ggml.add_bos_token", false, &bos, err)) != REALM_OK) return s;
    if ((s = realm_gguf_get_bool(g, "tokenizer.ggml.add_eos_token", false, &eos, err)) != REALM_OK) return s;
    if (bos && t->bos < 0)
        return realm_error_set(err, REALM_E_FORMAT, "tokenizer.ggml.add_bos_token is set, but no key names the token");
    if (eos && t->eos < 0)
        return realm_error_set(err, REALM_E_FORMAT, "tokenizer.ggml.add_eos_token is set, but no key names the token");
    t->add_bos = bos;
    t->add_eos = eos;
    return REALM_OK;
}

/* --- bytes and pieces ------------------------------------------------------------------------------------------ */

/* GPT-2's byte-level alphabet: printable Latin-1 bytes are themselves, the others U+0100, U+0101, ... in order. */
static void byte_alphabet(realm_tokenizer *t, int16_t byte_of[0x144]) {
    uint32_t next = 0x100;
    memset(byte_of, 0xFF, 0x144 * sizeof byte_of[0]);
    for (unsigned b = 0; b < 256; b++) {
        bool printable = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
        uint32_t c = printable ? b : next++;
        char utf8[4];
        t->encoded_len[b] = (uint8_t)realm_utf8_encode(c, utf8);
        memcpy(t->encoded[b], utf8, 2);
        byte_of[c] = (int16_t)b;
    }
}

/* The value of "<0xHH>", or -1. */
static int byte_token_value(realm_gguf_str s) {
    if (s.len != 6 || memcmp(s.data, "<0x", 3) != 0 || s.data[5] != '>') return -1;
    int v = 0;
    for (int i = 3; i < 5; i++) {
        char c = s.data[i];
        int digit = -1;
        if (c >= '0' && c <= '9') digit = c - '0';
        if (c >= 'A' && c <= 'F') digit = c - 'A' + 10;
        if (c >= 'a' && c <= 'f') digit = c - 'a' + 10;
        if (digit < 0) return -1;
        v = v * 16 + digit;
    }
    return v;
}

/* Writes the bytes of an ordinary token's text at `to`, at most text.len of them. Characters outside the byte-level
 * alphabet stand for themselves. */
static size_t piece_of(const realm_tokenizer *t, const int16_t byte_of[0x144], realm_gguf_str text, char *to) {
    size_t n = 0;
    for (size_t at = 0; at < text.len;) {
        uint32_t c = 0;
        size_t size = realm_utf8_decode(text.data + at, text.len - at, &c);
        if (t->bpe && size && c < 0x144 && byte_of[c] >= 0) {
            to[n++] = (char)byte_of[c];
        } else if (!t->bpe && c == 0x2581) {
            to[n++] = ' ';
        } else {
            if (size == 0) size = 1;
            memcpy(to + n, text.data + at, size);
            n += size;
        }
        at += REALM_MAX(size, (size_t)1);
    }
    return n;
}

static realm_status build_pieces(realm_tokenizer *t, realm_error *err) {
    const realm_vocab *v = &t->vocab;
    int16_t byte_of[0x144];
    byte_alphabet(t, byte_of);
    t->pieces.bytes = realm_malloc(v->texts.start[v->n]);
    t->pieces.start = realm_calloc((size_t)v->n + 1, sizeof *t->pieces.start);
    if (!t->pieces.bytes || !t->pieces.start) return realm_error_set(err, REALM_E_NOMEM, "out of memory for pieces");
    for (unsigned b = 0; b < 256; b++) t->byte_ids[b] = -1;
    t->max_piece = 1;
    uint32_t at = 0;
    for (uint32_t i = 0; i < v->n; i++) {
        realm_gguf_str text = realm_vocab_text(v, (realm_token)i);
        char *to = t->pieces.bytes + at;
        size_t n = text.len;
        if (t->attr[i] == REALM_TOKEN_BYTE) {
            int b = byte_token_value(text);
            if (b < 0) {
                char shown[64];
                return realm_error_set(err, REALM_E_FORMAT, TYPES ": token %u is of type byte, but its text is \"%s\"",
                                       i, realm_escape(shown, sizeof shown, text.data, text.len));
            }
            to[0] = (char)b;
            n = 1;
            t->byte_ids[b] = (realm_token)i;
        } else if (t->attr[i] == REALM_TOKEN_NORMAL || t->attr[i] == REALM_TOKEN_UNUSED ||
                   (!t->bpe && t->attr[i] == REALM_TOKEN_USER_DEFINED)) {
            n = piece_of(t, byte_of, text, to);
        } else if (n) {
            memcpy(to, text.data, n);
        }
        t->max_piece = REALM_MAX(t->max_piece, (uint32_t)n);
        at += (uint32_t)n;
        t->pieces.start[i + 1] = at;
    }
    return REALM_OK;
}

/* The token of each byte: of BPE the byte's character; of SentencePiece <0xHH>, else the character itself. */
static void find_byte_ids(realm_tokenizer *t) {
    for (unsigned b = 0; b < 256; b++) {
        char self = (char)b;
        realm_token id;
        if (t->bpe) {
            id = realm_tokenizer_find(t, (const char *)t->encoded[b], t->encoded_len[b]);
            if (id < 0) id = t->byte_ids[b];
        } else {
            char text[8] = {'<', '0', 'x', "0123456789ABCDEF"[b >> 4], "0123456789ABCDEF"[b & 15], '>'};
            id = t->byte_ids[b];
            if (id < 0) id = realm_tokenizer_find(t, text, 6);
            if (id < 0) id = realm_tokenizer_find(t, &self, 1);
        }
        if (id >= 0 && t->attr[id] != REALM_TOKEN_BYTE && !realm_token_mergeable(t, id)) id = -1;
        t->byte_ids[b] = id;
    }
}

/* Where U+2581 follows another character inside a token, words that end like that character may not be cut there. */
static void find_joins(realm_tokenizer *t) {
    for (uint32_t i = 0; i < t->vocab.n; i++) {
        if (!realm_token_mergeable(t, (realm_token)i)) continue;
        realm_gguf_str s = realm_vocab_text(&t->vocab, (realm_token)i);
        for (const char *p = s.data, *end = s.data + s.len; p < end && (p = memchr(p, 0xE2, (size_t)(end - p))); p++) {
            size_t at = (size_t)(p - s.data);
            if (at == 0 || s.len - at < REALM_SPM_SPACE_LEN || memcmp(p, REALM_SPM_SPACE, REALM_SPM_SPACE_LEN) != 0)
                continue;
            if (at >= REALM_SPM_SPACE_LEN && memcmp(p - REALM_SPM_SPACE_LEN, REALM_SPM_SPACE, REALM_SPM_SPACE_LEN) == 0)
                continue;
            t->joins[(unsigned char)p[-1]] = 1;
        }
    }
}

/* --- merges ---------------------------------------------------------------------------------------------------- */

static realm_status bad_merge(realm_error *err, uint32_t rank, realm_gguf_str s, const char *why) {
    char shown[128];
    return realm_error_set(err, REALM_E_FORMAT, MERGES ": merge %u, \"%s\", %s", rank,
                           realm_escape(shown, sizeof shown, s.data, s.len), why);
}

static realm_status read_merges(realm_tokenizer *t, const realm_gguf_value *merges, realm_error *err) {
    uint64_t n = realm_gguf_array_len(merges);
    if (n > REALM_TOKENIZER_MAX_MERGES)
        return realm_error_set(err, REALM_E_LIMIT, MERGES ": %llu merges, at most %u are read", (unsigned long long)n,
                               REALM_TOKENIZER_MAX_MERGES);
    realm_status s = realm_pairs_init(&t->pairs, (size_t)n, err);
    if (s != REALM_OK) return s;
    const realm_vocab *v = &t->vocab;
    char *joined = realm_malloc(v->max_len); /* the result's text */
    if (!joined) return realm_error_set(err, REALM_E_NOMEM, "out of memory for " MERGES);
    realm_gguf_iter it;
    realm_gguf_str m;
    realm_gguf_iter_init(&it, merges);
    for (uint32_t rank = 0; s == REALM_OK && realm_gguf_iter_next(&it, &m); rank++) {
        const char *space = m.len > 1 ? memchr(m.data + 1, ' ', m.len - 1) : NULL;
        size_t left_len = space ? (size_t)(space - m.data) : 0, right_len = space ? m.len - left_len - 1 : 0;
        if (right_len == 0) {
            s = bad_merge(err, rank, m, "is no pair of two tokens with one space between");
        } else if (left_len + right_len > v->max_len) {
            s = bad_merge(err, rank, m, "gives a text that is no token");
        } else {
            uint64_t lh = realm_vocab_hash(v, 0, m.data, left_len);
            uint64_t rh = realm_vocab_hash(v, 0, space + 1, right_len);
            memcpy(joined, m.data, left_len);
            memcpy(joined + left_len, space + 1, right_len);
            realm_token left = realm_vocab_find(v, lh, m.data, left_len);
            realm_token right = realm_vocab_find(v, rh, space + 1, right_len);
            realm_token id = realm_vocab_find(v, realm_vocab_join(v, lh, rh, right_len), joined, left_len + right_len);
            if (left < 0 || right < 0)
                s = bad_merge(err, rank, m,
                              left < 0 ? "has a left part that is no token" : "has a right part that is no token");
            else if (id < 0)
                s = bad_merge(err, rank, m, "gives a text that is no token");
            else if (realm_token_mergeable(t, id))
                realm_pairs_add(&t->pairs, left, right, rank, id);
        }
    }
    realm_free(joined);
    return s;
}

/* --- open and close -------------------------------------------------------------------------------------------- */

static realm_status find_kind(realm_tokenizer *t, const realm_gguf *g, realm_error *err) {
    char shown[64];
    realm_gguf_str model = {0}, pre = {"default", 7};
    if (!realm_gguf_find(g, "tokenizer.ggml.model"))
        return realm_error_set(err, REALM_E_FORMAT, "tokenizer.ggml.model is missing: the file has no tokenizer");
    realm_status s = realm_gguf_get_str(g, "tokenizer.ggml.model", true, &model, err);
    if (s != REALM_OK) return s;
    if (model.len == 5 && memcmp(model.data, "llama", 5) == 0) {
        t->kind = "llama";
        t->add_bos = true;
        t->add_space_prefix = true;
        return realm_gguf_get_bool(g, "tokenizer.ggml.add_space_prefix", false, &t->add_space_prefix, err);
    }
    if (model.len != 4 || memcmp(model.data, "gpt2", 4) != 0)
        return realm_error_set(err, REALM_E_UNSUPPORTED, "tokenizer.ggml.model \"%s\" is not supported",
                               realm_escape(shown, sizeof shown, model.data, model.len));
    if ((s = realm_gguf_get_str(g, "tokenizer.ggml.pre", false, &pre, err)) != REALM_OK) return s;
    const realm_pretokenizer *p = realm_pretokenizer_find(pre.data, pre.len);
    if (!p)
        return realm_error_set(err, REALM_E_UNSUPPORTED, "tokenizer.ggml.pre \"%s\" is not supported",
                               realm_escape(shown, sizeof shown, pre.data, pre.len));
    t->bpe = true;
    t->kind = p->kind;
    t->rule = p->rule;
    t->ignore_merges = p->ignore_merges;
    t->add_bos = p->add_bos;
    return REALM_OK;
}

static realm_status load(realm_tokenizer *t, const realm_gguf *g, realm_error *err) {
    const realm_gguf_value *tokens, *scores, *types, *merges;
    realm_status s;
    if ((s = find_kind(t, g, err)) != REALM_OK) return s;
    if ((s = get_array(g, TOKENS, true, true, 0, &tokens, err)) != REALM_OK) return s;
    uint64_t n = realm_gguf_array_len(tokens);
    if ((s = realm_vocab_init(&t->vocab, tokens, err)) != REALM_OK) return s;
    if ((s = get_array(g, TYPES, false, false, n, &types, err)) != REALM_OK) return s;
    if ((s = get_array(g, SCORES, false, !t->bpe, n, &scores, err)) != REALM_OK) return s;
    if ((s = get_array(g, MERGES, true, t->bpe, 0, &merges, err)) != REALM_OK) return s;

    t->attr = realm_calloc(t->vocab.n, 1);
    t->flags = realm_calloc(t->vocab.n, 1);
    if (!t->attr || !t->flags) return realm_error_set(err, REALM_E_NOMEM, "out of memory for " TYPES);
    if ((s = read_types(t, types, err)) != REALM_OK) return s;
    if ((s = read_special_ids(t, g, types != NULL, err)) != REALM_OK) return s;
    if ((s = realm_specials_mark(t, g, types != NULL, err)) != REALM_OK) return s;
    if ((s = realm_specials_init(t, err)) != REALM_OK) return s;
    if ((s = build_pieces(t, err)) != REALM_OK) return s;
    find_byte_ids(t);
    if (t->bpe) return read_merges(t, merges, err);
    if ((s = read_scores(t, scores, err)) != REALM_OK) return s;
    find_joins(t);
    return REALM_OK;
}

realm_status realm_tokenizer_open(realm_tokenizer **out, const realm_gguf *g, realm_error *err) {
    *out = NULL;
    realm_tokenizer *t = realm_calloc(1, sizeof *t);
    if (!t) return realm_error_set(err, REALM_E_NOMEM, "out of memory for the tokenizer");
    realm_status s = load(t, g, err);
    if (s != REALM_OK) {
        realm_tokenizer_close(t);
        return s;
    }
    *out = t;
    return REALM_OK;
}

void realm_tokenizer_close(realm_tokenizer *t) {
    if (!t) return;
    realm_pairs_release(&t->pairs);
    realm_free(t->order);
    realm_free(t->pieces.start);
    realm_free(t->pieces.bytes);
    realm_free(t->specials.ids);
    realm_free(t->flags);
    realm_free(t->attr);
    realm_vocab_release(&t->vocab);
    realm_free(t);
}
