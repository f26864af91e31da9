/* tokenizer/merge.c - the merge loop: from single characters (or bytes) to tokens.
 *
 * A word starts as a list of symbols, one per byte (BPE) or per character (SentencePiece). Of all neighbours that may
 * merge, the best is replaced by one symbol, again and again until none may: BPE takes the pair of the lowest rank
 * (Sennrich et al., 2016), SentencePiece the pair whose joined text is the token of the highest score (Kudo and
 * Richardson, 2018, the bpe model type). Equal ones go left to right.
 *
 * Candidates stand in a binary heap. A merge does not search the heap for the candidates it made stale: they are
 * recognised when they come up, because the length of their two symbols no longer adds up. A word of n symbols sees at
 * most 3n candidates, 2n at a time, so the loop is n log n whatever the text.
 */
#include <string.h>

#include "base/alloc.h"
#include "base/utf8.h"
#include "tokenizer/internal.h"

#define NONE UINT32_MAX

realm_status realm_scratch_push(realm_scratch *w, realm_token id) {
    if (w->out->len >= w->max_tokens) return REALM_E_LIMIT;
    return realm_tokens_push(w->out, id);
}

static realm_status reserve(realm_scratch *w, size_t n) {
    if (n <= w->cap) return REALM_OK;
    size_t cap = REALM_MAX(n, 2 * w->cap);
    cap = REALM_MAX(cap, (size_t)64);
    realm_symbol *symbols = realm_realloc_array(w->symbols, cap, sizeof *symbols);
    if (!symbols) return REALM_E_NOMEM;
    w->symbols = symbols;
    realm_candidate *heap = realm_realloc_array(w->heap, 2 * cap, sizeof *heap);
    if (!heap) return REALM_E_NOMEM;
    w->heap = heap;
    w->cap = cap;
    return REALM_OK;
}

/* --- heap ------------------------------------------------------------------------------------------------------ */

static void sift_down(realm_candidate *h, size_t n, size_t i) {
    realm_candidate c = h[i];
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && h[child + 1].key < h[child].key) child++;
        if (c.key <= h[child].key) break;
        h[i] = h[child];
    }
    h[i] = c;
}

static void sift_up(realm_candidate *h, size_t i) {
    realm_candidate c = h[i];
    for (; i > 0 && c.key < h[(i - 1) / 2].key; i = (i - 1) / 2) h[i] = h[(i - 1) / 2];
    h[i] = c;
}

/* --- symbols --------------------------------------------------------------------------------------------------- */

static size_t symbols_of_bytes(const realm_tokenizer *t, realm_symbol *sym, const char *word, size_t len) {
    for (size_t i = 0; i < len; i++)
        sym[i] = (realm_symbol){.start = (uint32_t)i,
                                .len = 1,
                                .prev = (uint32_t)i - 1, /* NONE for the first */
                                .next = (uint32_t)i + 1,
                                .id = t->byte_ids[(unsigned char)word[i]]};
    return len;
}

static size_t count_chars(const char *word, size_t len) {
    size_t n = 0;
    for (size_t at = 0; at < len; n++) {
        size_t size = realm_utf8_decode(word + at, len - at, NULL);
        at += REALM_MAX(size, (size_t)1);
    }
    return n;
}

/* A malformed byte is a symbol of its own, so it can only become a byte token. */
static size_t symbols_of_chars(const realm_tokenizer *t, realm_symbol *sym, const char *word, size_t len) {
    size_t n = 0;
    for (size_t at = 0; at < len; n++) {
        size_t size = realm_utf8_decode(word + at, len - at, NULL);
        if (size == 0) size = 1;
        uint64_t hash = realm_vocab_hash(&t->vocab, 0, word + at, size);
        realm_token id = realm_vocab_find(&t->vocab, hash, word + at, size);
        if (id >= 0 && !realm_token_mergeable(t, id)) id = -1;
        sym[n] = (realm_symbol){.hash = hash,
                                .start = (uint32_t)at,
                                .len = (uint32_t)size,
                                .prev = (uint32_t)n - 1,
                                .next = (uint32_t)n + 1,
                                .id = id};
        at += size;
    }
    return n;
}

/* The candidate that merges `left` with its right neighbour; false when they do not merge. */
static inline bool candidate_at(const realm_tokenizer *t, const realm_symbol *sym, const char *word, uint32_t left,
                                realm_candidate *c) {
    const realm_symbol *l = &sym[left], *r = &sym[l->next];
    uint32_t len = l->len + r->len, order;
    if (t->bpe) {
        if (l->id < 0 || r->id < 0) return false;
        const realm_pair_slot *pair = realm_pairs_find(&t->pairs, l->id, r->id);
        if (!pair) return false;
        order = pair->rank;
        c->id = pair->id;
    } else {
        if (len > t->vocab.max_len) return false;
        uint64_t hash = realm_vocab_join(&t->vocab, l->hash, r->hash, r->len);
        c->id = realm_vocab_find(&t->vocab, hash, word + l->start, len);
        if (c->id < 0 || !realm_token_mergeable(t, c->id)) return false;
        order = t->order[c->id];
    }
    c->key = (uint64_t)order << 32 | left;
    c->len = len;
    return true;
}

static void run_merges(const realm_tokenizer *t, realm_scratch *w, const char *word, size_t n) {
    realm_symbol *sym = w->symbols;
    realm_candidate *heap = w->heap;
    size_t n_heap = 0;
    for (uint32_t i = 0; i + 1 < n; i++) n_heap += candidate_at(t, sym, word, i, &heap[n_heap]);
    for (size_t i = n_heap / 2; i-- > 0;) sift_down(heap, n_heap, i);

    while (n_heap > 0) {
        realm_candidate c = heap[0];
        heap[0] = heap[--n_heap];
        if (n_heap > 1) sift_down(heap, n_heap, 0);

        uint32_t at = (uint32_t)c.key;
        realm_symbol *l = &sym[at];
        if (l->len == 0 || l->next == NONE || l->len + sym[l->next].len != c.len) continue;
        realm_symbol *r = &sym[l->next];
        if (!t->bpe) l->hash = realm_vocab_join(&t->vocab, l->hash, r->hash, r->len);
        l->len = c.len;
        l->id = c.id;
        l->next = r->next;
        r->len = 0;
        if (l->next != NONE) {
            sym[l->next].prev = at;
            if (candidate_at(t, sym, word, at, &heap[n_heap])) sift_up(heap, n_heap++);
        }
        if (l->prev != NONE && candidate_at(t, sym, word, l->prev, &heap[n_heap])) sift_up(heap, n_heap++);
    }
}

/* A symbol that is no token: its bytes' tokens; the unknown token once where one of them has none; else nothing. */
static realm_status push_bytes(const realm_tokenizer *t, realm_scratch *w, const char *s, size_t len) {
    bool all = true;
    for (size_t i = 0; i < len; i++) all &= t->byte_ids[(unsigned char)s[i]] >= 0;
    if (!all) return t->bpe || t->unk < 0 ? REALM_OK : realm_scratch_push(w, t->unk);
    for (size_t i = 0; i < len; i++) {
        realm_status s2 = realm_scratch_push(w, t->byte_ids[(unsigned char)s[i]]);
        if (s2 != REALM_OK) return s2;
    }
    return REALM_OK;
}

realm_status realm_merge_word(const realm_tokenizer *t, realm_scratch *w, const char *word, size_t len) {
    if (len == 0) return REALM_OK;
    realm_status s = reserve(w, t->bpe || len < 4096 ? len : count_chars(word, len));
    if (s != REALM_OK) return s;
    size_t n = t->bpe ? symbols_of_bytes(t, w->symbols, word, len) : symbols_of_chars(t, w->symbols, word, len);
    w->symbols[n - 1].next = NONE;
    run_merges(t, w, word, n);
    for (uint32_t i = 0; i != NONE; i = w->symbols[i].next) {
        const realm_symbol *sym = &w->symbols[i];
        s = sym->id >= 0 ? realm_scratch_push(w, sym->id) : push_bytes(t, w, word + sym->start, sym->len);
        if (s != REALM_OK) return s;
    }
    return REALM_OK;
}
