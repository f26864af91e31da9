/* tokenizer/special.c - tokens that are matched as whole texts, and the set that ends a generation.
 *
 * Matching. The texts of control, unknown and user-defined tokens stand sorted; the longest that starts at a place is
 * found by narrowing the range of candidates byte by byte. A bitmap of first byte pairs turns nearly every place away
 * before that. User-defined tokens always count; control ones only in text that the caller vouches for.
 *
 * Ends. A file names EOS and sometimes EOT; instruction models end their turns with tokens that no key names, so their
 * well-known texts are looked up too. Texts in `always` are control tokens whatever the file's types say: old
 * converters wrote them as normal or user-defined, which would let message text forge the end of a turn. Texts in
 * `when_control` also occur as ordinary vocabulary (Gemma's "</s>" is an HTML tag), so the file's type decides.
 */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/str.h"
#include "tokenizer/internal.h"

static int compare_texts(const void *a, const void *b, void *user) {
    const realm_vocab *v = user;
    realm_gguf_str x = realm_vocab_text(v, *(const realm_token *)a), y = realm_vocab_text(v, *(const realm_token *)b);
    int c = memcmp(x.data, y.data, REALM_MIN(x.len, y.len));
    return c ? c : (x.len > y.len) - (x.len < y.len);
}

static bool is_special(const realm_tokenizer *t, uint32_t id) {
    uint8_t a = t->attr[id];
    return a == REALM_TOKEN_CONTROL || a == REALM_TOKEN_UNKNOWN || a == REALM_TOKEN_USER_DEFINED;
}

realm_status realm_specials_init(realm_tokenizer *t, realm_error *err) {
    realm_specials *x = &t->specials;
    uint32_t n = 0;
    for (uint32_t i = 0; i < t->vocab.n; i++) n += is_special(t, i);
    x->ids = realm_calloc(n, sizeof *x->ids);
    if (!x->ids) return realm_error_set(err, REALM_E_NOMEM, "out of memory for %u special tokens", n);
    for (uint32_t i = 0; i < t->vocab.n; i++) {
        realm_gguf_str text = realm_vocab_text(&t->vocab, (realm_token)i);
        if (!is_special(t, i) || text.len == 0) continue;
        if (text.len > REALM_TOKENIZER_MAX_SPECIAL)
            return realm_error_set(err, REALM_E_LIMIT,
                                   "tokenizer.ggml.tokens: special token %u has %zu bytes, at most %u are read", i,
                                   text.len, REALM_TOKENIZER_MAX_SPECIAL);
        x->ids[x->n++] = (realm_token)i;
        unsigned char a = (unsigned char)text.data[0];
        if (text.len > 1) {
            size_t two = (size_t)a << 8 | (unsigned char)text.data[1];
            x->two[two / 64] |= UINT64_C(1) << two % 64;
        } else {
            memset(&x->two[(size_t)a * 4], 0xFF, 4 * sizeof x->two[0]);
        }
    }
    qsort_r(x->ids, x->n, sizeof *x->ids, compare_texts, &t->vocab);
    uint32_t at = 0;
    for (unsigned b = 0; b < 256; b++) {
        x->first[b] = at;
        while (at < x->n && (unsigned char)realm_vocab_text(&t->vocab, x->ids[at]).data[0] == b) at++;
    }
    x->first[256] = at;
    return REALM_OK;
}

/* First index in [lo, hi) whose text's byte at `depth` is >= b; texts of exactly `depth` bytes sort before. */
static uint32_t lower_bound(const realm_tokenizer *t, uint32_t lo, uint32_t hi, size_t depth, unsigned b) {
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        realm_gguf_str text = realm_vocab_text(&t->vocab, t->specials.ids[mid]);
        if (text.len <= depth || (unsigned char)text.data[depth] < b)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

realm_token realm_specials_match(const realm_tokenizer *t, const char *s, size_t len, size_t control_len) {
    const realm_specials *x = &t->specials;
    if (len == 0) return -1;
    unsigned char a = (unsigned char)s[0];
    if (len > 1) {
        size_t two = (size_t)a << 8 | (unsigned char)s[1];
        if (!(x->two[two / 64] >> two % 64 & 1)) return -1;
    }
    realm_token best = -1;
    uint32_t lo = x->first[a], hi = x->first[a + 1];
    for (size_t depth = 1; lo < hi; depth++) {
        /* All of [lo, hi) start with s[0 .. depth); one that is just that sorts first. */
        realm_token id = x->ids[lo];
        if (realm_vocab_text(&t->vocab, id).len == depth) {
            if (t->attr[id] == REALM_TOKEN_USER_DEFINED || depth <= control_len) best = id;
            lo++;
        }
        if (depth >= len) break;
        unsigned b = (unsigned char)s[depth];
        lo = lower_bound(t, lo, hi, depth, b);
        hi = lower_bound(t, lo, hi, depth, b + 1);
    }
    return best;
}

/* --- which tokens end a generation ----------------------------------------------------------------------------- */

static const char *const always[] = {"<|im_end|>",
                                     "<end_of_turn>",
                                     "<|eot_id|>",
                                     "<|eom_id|>",
                                     "<|end|>",
                                     "<|endoftext|>",
                                     "<|end_of_text|>",
                                     "<|return|>",
                                     "<|call|>",
                                     "<|calls|>",
                                     "<|flush|>",
                                     "<end_of_utterance>",
                                     "<\xEF\xBD\x9C"
                                     "end\xE2\x96\x81of\xE2\x96\x81"
                                     "sentence\xEF\xBD\x9C>"};
static const char *const when_control[] = {"</s>",          "<eos>",        "<EOT>",       "_<EOT>",      "[EOT]",
                                           "[EOS]",         "<turn|>",      "<|fim_pad|>", "<fim_pad>",   "<fim-pad>",
                                           "<|repo_name|>", "<|fim_repo|>", "<reponame>",  "<|file_sep|>"};
static const char *const keys[] = {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id",
                                   "tokenizer.ggml.fim_pad_token_id", "tokenizer.ggml.fim_rep_token_id",
                                   "tokenizer.ggml.fim_sep_token_id"};

static realm_token find(const realm_tokenizer *t, const char *text) {
    return realm_tokenizer_find(t, text, strlen(text));
}

/* White space behind the special tokens of Phi-3 belongs to them; files have no key for it, the name says it. */
static void mark_rstrip(realm_tokenizer *t, const realm_gguf *g) {
    realm_gguf_str name = {0};
    if (realm_gguf_get_str(g, "general.name", false, &name, NULL) != REALM_OK) return;
    bool phi3 = false;
    for (size_t i = 0; i + 4 <= name.len; i++) {
        if (strncasecmp(name.data + i, "phi", 3) != 0) continue;
        size_t at = i + 3 + (name.data[i + 3] == '-');
        phi3 |= at < name.len && name.data[at] == '3';
    }
    if (!phi3) return;
    for (uint32_t i = 0; i < t->vocab.n; i++)
        if (is_special(t, i)) t->flags[i] |= REALM_TOKEN_RSTRIP;
    const char *const not_these[] = {"<unk>", "<s>", "<|endoftext|>"};
    for (size_t i = 0; i < REALM_ARRAY_LEN(not_these); i++) {
        realm_token id = find(t, not_these[i]);
        if (id >= 0) t->flags[id] &= (uint8_t)~REALM_TOKEN_RSTRIP;
    }
}

realm_status realm_specials_mark(realm_tokenizer *t, const realm_gguf *g, bool has_types, realm_error *err) {
    for (size_t i = 0; i < REALM_ARRAY_LEN(always); i++) {
        realm_token id = find(t, always[i]);
        if (id < 0) continue;
        t->attr[id] = REALM_TOKEN_CONTROL;
        t->flags[id] |= REALM_TOKEN_ENDS;
    }
    for (size_t i = 0; i < REALM_ARRAY_LEN(when_control); i++) {
        realm_token id = find(t, when_control[i]);
        if (id >= 0 && t->attr[id] == REALM_TOKEN_CONTROL) t->flags[id] |= REALM_TOKEN_ENDS;
    }
    /* In OpenAI's harmony format <|end|> closes a message inside a turn. */
    realm_token end = find(t, "<|end|>");
    bool call = find(t, "<|call|>") >= 0 || find(t, "<|calls|>") >= 0;
    if (end >= 0 && call && (find(t, "<|return|>") >= 0 || find(t, "<|flush|>") >= 0))
        t->flags[end] &= (uint8_t)~REALM_TOKEN_ENDS;

    for (size_t i = 0; i < REALM_ARRAY_LEN(keys); i++) {
        uint32_t id = UINT32_MAX;
        if (!realm_gguf_find(g, keys[i])) continue;
        realm_status s = realm_gguf_get_u32(g, keys[i], true, &id, err);
        if (s != REALM_OK) return s;
        if (id >= t->vocab.n)
            return realm_error_set(err, REALM_E_FORMAT, "%s: token %u is outside the vocabulary of %u", keys[i], id,
                                   t->vocab.n);
        t->flags[id] |= REALM_TOKEN_ENDS;
    }
    if (t->eos >= 0) t->flags[t->eos] |= REALM_TOKEN_ENDS;
    if (!has_types) { /* then only the keys say what a control token is */
        if (t->bos >= 0) t->attr[t->bos] = REALM_TOKEN_CONTROL;
        if (t->eos >= 0) t->attr[t->eos] = REALM_TOKEN_CONTROL;
        if (t->unk >= 0 && t->attr[t->unk] == REALM_TOKEN_NORMAL) t->attr[t->unk] = REALM_TOKEN_UNKNOWN;
    }
    mark_rstrip(t, g);
    return REALM_OK;
}
