/* tokenizer/vocab.c - the texts of all tokens in one block, and an index from text to id.
 *
 * The index is open addressing over at most half of its slots. Its hash is a polynomial with a random base modulo
 * 2^61 - 1 (Carter and Wegman's universal family; Karp and Rabin's fingerprints), chosen for one property: the hash of
 * two strings joined is hash(left) * base^len(right) + hash(right). The merge loop of SentencePiece asks for the token
 * of every pair of neighbours, and answers "none" mostly; with this it does so from numbers it already has. A hit is
 * confirmed by comparing bytes, so a collision costs time and never a wrong token.
 */
#include <string.h>
#include <sys/random.h>

#include "base/alloc.h"
#include "base/str.h"
#include "tokenizer/internal.h"

#define PRIME ((UINT64_C(1) << 61) - 1)
#define KEY "tokenizer.ggml.tokens"

__extension__ typedef unsigned __int128 u128;

/* a * b mod 2^61 - 1 for a, b below the prime. */
static inline uint64_t mul_mod(uint64_t a, uint64_t b) {
    u128 p = (u128)a * b;
    uint64_t r = (uint64_t)(p & PRIME) + (uint64_t)(p >> 61);
    return r >= PRIME ? r - PRIME : r;
}

static inline uint64_t add_mod(uint64_t a, uint64_t b) {
    uint64_t r = a + b;
    return r >= PRIME ? r - PRIME : r;
}

uint64_t realm_vocab_hash(const realm_vocab *v, uint64_t before, const char *s, size_t len) {
    uint64_t h = before;
    for (size_t i = 0; i < len; i++) h = add_mod(mul_mod(h, v->base), (uint64_t)(unsigned char)s[i] + 1);
    return h;
}

uint64_t realm_vocab_join(const realm_vocab *v, uint64_t left, uint64_t right, size_t right_len) {
    return add_mod(mul_mod(left, v->power[right_len]), right);
}

static inline size_t slot_of(const realm_vocab *v, uint64_t hash) {
    return (size_t)((hash * UINT64_C(0x9E3779B97F4A7C15)) >> v->shift);
}

/* The slot with this text, or the free one where it belongs. */
static inline realm_vocab_slot *probe(const realm_vocab *v, uint64_t hash, const char *s, size_t len) {
    for (size_t i = slot_of(v, hash);; i = (i + 1) & v->mask) {
        realm_vocab_slot *slot = &v->slots[i];
        if (slot->id < 0) return slot;
        if (slot->tag != (uint32_t)hash) continue;
        realm_gguf_str text = realm_vocab_text(v, slot->id);
        if (text.len == len && memcmp(text.data, s, len) == 0) return slot;
    }
}

realm_token realm_vocab_find(const realm_vocab *v, uint64_t hash, const char *s, size_t len) {
    return probe(v, hash, s, len)->id;
}

/* Copies the texts; checks their number and lengths. */
static realm_status copy_texts(realm_vocab *v, const realm_gguf_value *tokens, realm_error *err) {
    uint64_t n = realm_gguf_array_len(tokens);
    if (n == 0) return realm_error_set(err, REALM_E_FORMAT, KEY ": the vocabulary is empty");
    if (n > REALM_TOKENIZER_MAX_VOCAB)
        return realm_error_set(err, REALM_E_LIMIT, KEY ": %llu tokens, at most %u are read", (unsigned long long)n,
                               REALM_TOKENIZER_MAX_VOCAB);
    v->n = (uint32_t)n;
    uint64_t total = 0;
    realm_gguf_iter it;
    realm_gguf_str s;
    realm_gguf_iter_init(&it, tokens);
    for (uint32_t i = 0; realm_gguf_iter_next(&it, &s); i++) {
        if (s.len > REALM_TOKENIZER_MAX_TEXT)
            return realm_error_set(err, REALM_E_LIMIT, KEY ": token %u has %zu bytes, at most %u are read", i, s.len,
                                   REALM_TOKENIZER_MAX_TEXT);
        total += s.len;
        v->max_len = REALM_MAX(v->max_len, (uint32_t)s.len);
    }
    if (total > REALM_TOKENIZER_MAX_TEXTS)
        return realm_error_set(err, REALM_E_LIMIT, KEY ": %llu bytes of text, at most %u are read",
                               (unsigned long long)total, REALM_TOKENIZER_MAX_TEXTS);
    v->texts.bytes = realm_malloc((size_t)total);
    v->texts.start = realm_calloc((size_t)n + 1, sizeof *v->texts.start);
    if (!v->texts.bytes || !v->texts.start) return realm_error_set(err, REALM_E_NOMEM, "out of memory for " KEY);
    uint32_t at = 0, i = 0;
    realm_gguf_iter_init(&it, tokens);
    while (realm_gguf_iter_next(&it, &s)) {
        if (s.len) memcpy(v->texts.bytes + at, s.data, s.len);
        at += (uint32_t)s.len;
        v->texts.start[++i] = at;
    }
    return REALM_OK;
}

realm_status realm_vocab_init(realm_vocab *v, const realm_gguf_value *tokens, realm_error *err) {
    *v = (realm_vocab){0};
    realm_status s = copy_texts(v, tokens, err);
    if (s != REALM_OK) return s;

    unsigned bits = 1;
    while ((size_t)1 << bits < 2 * (size_t)v->n) bits++;
    v->shift = 64 - bits;
    v->mask = ((size_t)1 << bits) - 1;
    v->slots = realm_malloc(sizeof *v->slots << bits);
    v->power = realm_calloc((size_t)v->max_len + 1, sizeof *v->power);
    if (!v->slots || !v->power) return realm_error_set(err, REALM_E_NOMEM, "out of memory for the index of " KEY);
    memset(v->slots, 0xFF, sizeof *v->slots << bits);

    if (getrandom(&v->base, sizeof v->base, 0) != (ssize_t)sizeof v->base)
        return realm_error_set(err, REALM_E_IO, "no random bytes from the system");
    v->base = v->base % (PRIME - 512) + 256;
    v->power[0] = 1;
    for (uint32_t i = 1; i <= v->max_len; i++) v->power[i] = mul_mod(v->power[i - 1], v->base);

    for (uint32_t i = 0; i < v->n; i++) {
        realm_gguf_str text = realm_vocab_text(v, (realm_token)i);
        if (text.len == 0) continue;
        uint64_t hash = realm_vocab_hash(v, 0, text.data, text.len);
        realm_vocab_slot *slot = probe(v, hash, text.data, text.len);
        if (slot->id >= 0) {
            char shown[64];
            return realm_error_set(err, REALM_E_FORMAT, KEY ": tokens %d and %u are both \"%s\"", slot->id, i,
                                   realm_escape(shown, sizeof shown, text.data, text.len));
        }
        *slot = (realm_vocab_slot){.tag = (uint32_t)hash, .id = (int32_t)i};
    }
    return REALM_OK;
}

void realm_vocab_release(realm_vocab *v) {
    realm_free(v->slots);
    realm_free(v->power);
    realm_free(v->texts.start);
    realm_free(v->texts.bytes);
    *v = (realm_vocab){0};
}

/* --- pairs that merge ------------------------------------------------------------------------------------------ */

realm_status realm_pairs_init(realm_pairs *p, size_t n, realm_error *err) {
    *p = (realm_pairs){0};
    unsigned bits = 1;
    while ((size_t)1 << bits < 2 * n) bits++;
    p->shift = 64 - bits;
    p->mask = ((size_t)1 << bits) - 1;
    p->slots = realm_malloc(sizeof *p->slots << bits);
    if (!p->slots) return realm_error_set(err, REALM_E_NOMEM, "out of memory for %zu merges", n);
    memset(p->slots, 0xFF, sizeof *p->slots << bits);
    if (getrandom(&p->multiplier, sizeof p->multiplier, 0) != (ssize_t)sizeof p->multiplier)
        return realm_error_set(err, REALM_E_IO, "no random bytes from the system");
    p->multiplier |= 1; /* multiply-shift hashing: Dietzfelbinger et al., 1997 */
    return REALM_OK;
}

void realm_pairs_release(realm_pairs *p) {
    realm_free(p->slots);
    *p = (realm_pairs){0};
}

static inline realm_pair_slot *probe_pair(const realm_pairs *p, uint64_t pair) {
    for (size_t i = (size_t)((pair * p->multiplier) >> p->shift);; i = (i + 1) & p->mask) {
        realm_pair_slot *slot = &p->slots[i];
        if (slot->id < 0 || slot->pair == pair) return slot;
    }
}

static inline uint64_t pair_of(realm_token left, realm_token right) {
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

void realm_pairs_add(realm_pairs *p, realm_token left, realm_token right, uint32_t rank, realm_token id) {
    realm_pair_slot *slot = probe_pair(p, pair_of(left, right));
    if (slot->id < 0) *slot = (realm_pair_slot){.pair = pair_of(left, right), .rank = rank, .id = id};
}

const realm_pair_slot *realm_pairs_find(const realm_pairs *p, realm_token left, realm_token right) {
    const realm_pair_slot *slot = probe_pair(p, pair_of(left, right));
    return slot->id < 0 ? NULL : slot;
}
