/* tokenizer/split.c - the pre-tokenizers of byte-level BPE: text to words.
 *
 * Published as regular expressions, of which the engines disagree (Unicode data, white space, limits) and which are
 * matched against text of strangers. There are two patterns and their variants, so they are written out here; a test
 * holds this file against PCRE2 running the patterns as published.
 *
 *   GPT-2    's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 *   Llama 3  (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|
 *            \s*[\r\n]+|\s+(?!\S)|\s+
 *   Qwen 2   as Llama 3 with \p{N} in place of \p{N}{1,3}
 *   SmolLM   \p{N} stands alone; GPT-2's pattern on each stretch between, as if it were a text of its own
 *   default  [\p{P}$+<=>^~|]+ stands alone; GPT-2's pattern between; numbers apart from the space before them, ASCII
 *            digits by three
 *
 * A pattern that runs "on each stretch between" sees the end of its text there, which is what class_at() reports.
 * Every branch looks at a character a bounded number of times: a run of white space is measured at most three times
 * (up to its last line break, then up to its last character, then the rest), everything else once.
 */
#include <string.h>

#include <utf8proc.h>

#include "base/utf8.h"
#include "tokenizer/internal.h"

typedef enum char_class { END, LETTER, NUMBER, SPACE, OTHER } char_class;

enum { L = LETTER, N = NUMBER, S = SPACE, O = OTHER };
static const uint8_t ascii_class[128] = {
    O, O, O, O, O, O, O, O, O, S, S, S, S, S, O, O, /* 0x09 to 0x0D */
    O, O, O, O, O, O, O, O, O, O, O, O, O, O, O, O, /**/
    S, O, O, O, O, O, O, O, O, O, O, O, O, O, O, O, /**/
    N, N, N, N, N, N, N, N, N, N, O, O, O, O, O, O, /**/
    O, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, /**/
    L, L, L, L, L, L, L, L, L, L, L, O, O, O, O, O, /**/
    O, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, /**/
    L, L, L, L, L, L, L, L, L, L, L, O, O, O, O, O, /**/
};

/* Property White_Space above ASCII (PropList.txt). */
static bool is_wide_space(uint32_t c) {
    return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
           c == 0x202F || c == 0x205F || c == 0x3000;
}

static char_class class_of(uint32_t c) {
    if (c < 128) return (char_class)ascii_class[c];
    if (is_wide_space(c)) return SPACE;
    switch (utf8proc_category((utf8proc_int32_t)c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO: return LETTER;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO: return NUMBER;
    default: return OTHER;
    }
}

/* [\p{P}$+<=>^~|] */
static bool is_punctuation(uint32_t c) {
    if (c < 128 && memchr("$+<=>^~|", (int)c, 8) && c != 0) return true;
    utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)c);
    return k >= UTF8PROC_CATEGORY_PC && k <= UTF8PROC_CATEGORY_PO;
}

typedef struct cursor {
    realm_split_rule rule;
    const char *s;
    size_t len;
} cursor;

/* Class of the character at `at`, its size in *size; a malformed byte is OTHER. END at the end of what the rule's
 * pattern sees. */
static inline char_class class_at(const cursor *k, size_t at, size_t *size) {
    *size = 0;
    if (at >= k->len) return END;
    unsigned char b = (unsigned char)k->s[at];
    uint32_t c = b;
    size_t n = 1;
    char_class class;
    if (b < 128) {
        class = (char_class)ascii_class[b];
    } else {
        n = realm_utf8_decode(k->s + at, k->len - at, &c);
        class = n ? class_of(c) : OTHER;
        if (n == 0) {
            n = 1;
            c = 0xFFFD;
        }
    }
    if (k->rule == REALM_SPLIT_DIGITS && class == NUMBER) return END;
    if (k->rule == REALM_SPLIT_DEFAULT && class == OTHER && is_punctuation(c)) return END;
    *size = n;
    return class;
}

/* End of the run of `class` that starts at `at`. */
static size_t run_end(const cursor *k, size_t at, char_class class) {
    size_t size;
    while (class_at(k, at, &size) == class) at += size;
    return at;
}

/* Length of 's 't 're 've 'm 'll 'd at the start, else 0. Ignoring case, U+017F LATIN SMALL LETTER LONG S is an s. */
static size_t contraction(const cursor *k, bool any_case) {
    if (k->len < 2 || k->s[0] != '\'') return 0;
    unsigned char fold = any_case ? 0x20 : 0;
    unsigned char a = (unsigned char)k->s[1] | fold;
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    if (k->len < 3) return 0;
    if (any_case && (unsigned char)k->s[1] == 0xC5 && (unsigned char)k->s[2] == 0xBF) return 3;
    unsigned char b = (unsigned char)k->s[2] | fold;
    return ((a == 'r' || a == 'v') && b == 'e') || (a == 'l' && b == 'l') ? 3 : 0;
}

/* \s+(?!\S)|\s+ on a run that ends at `end`, whose last character has `last` bytes: all of it at the end of the text,
 * else all but the last character, which goes with what follows, and that alone when it is alone. */
static size_t white_space(const cursor *k, size_t end, size_t last) {
    size_t size;
    if (class_at(k, end, &size) == END || end == last) return end;
    return end - last;
}

static size_t gpt2_word(const cursor *k) {
    size_t n = contraction(k, false);
    if (n) return n;
    size_t size, next_size;
    char_class class = class_at(k, 0, &size);
    if (class != SPACE) return run_end(k, size, class);
    if (k->s[0] == ' ') {
        char_class next = class_at(k, 1, &next_size);
        if (next != SPACE && next != END) return run_end(k, 1 + next_size, next);
    }
    size_t end = 0, last = size;
    while (class_at(k, end, &size) == SPACE) {
        end += size;
        last = size;
    }
    return white_space(k, end, last);
}

static size_t llama3_word(const cursor *k, unsigned digits) {
    size_t n = contraction(k, true);
    if (n) return n;
    size_t size, next_size;
    char_class class = class_at(k, 0, &size);
    bool breaks = k->s[0] == '\r' || k->s[0] == '\n';
    if (class == LETTER) return run_end(k, size, LETTER);
    if (class == NUMBER) {
        size_t end = size;
        for (unsigned i = 1; i < digits && class_at(k, end, &size) == NUMBER; i++) end += size;
        return end;
    }
    char_class next = class_at(k, size, &next_size);
    if (next == LETTER && !breaks) return run_end(k, size + next_size, LETTER);
    if (class == OTHER || (k->s[0] == ' ' && next == OTHER)) {
        size_t end = run_end(k, size, OTHER);
        while (end < k->len && (k->s[end] == '\r' || k->s[end] == '\n')) end++;
        return end;
    }
    size_t end = 0, last = size, after_break = 0;
    while (class_at(k, end, &size) == SPACE) {
        if (k->s[end] == '\r' || k->s[end] == '\n') after_break = end + size;
        end += size;
        last = size;
    }
    return after_break ? after_break : white_space(k, end, last);
}

/* Numbers under the default rule: a space before them alone, three ASCII digits together, other stretches whole. */
static bool three_digits(const cursor *k, size_t at) {
    for (size_t i = at; i < at + 3; i++)
        if (i >= k->len || k->s[i] < '0' || k->s[i] > '9') return false;
    return true;
}

static size_t default_word(const cursor *k) {
    size_t size;
    char_class class = class_at(k, 0, &size);
    if (class == END) { /* a run of punctuation */
        size_t at = 0, n;
        uint32_t c;
        while (at < k->len && (n = realm_utf8_decode(k->s + at, k->len - at, &c)) && is_punctuation(c)) at += n;
        return at;
    }
    if (class == NUMBER) {
        if (three_digits(k, 0)) return 3;
        size_t at = 0;
        do at += size;
        while (!three_digits(k, at) && class_at(k, at, &size) == NUMBER);
        return at;
    }
    if (k->s[0] == ' ' && class_at(k, 1, &size) == NUMBER) return 1;
    return gpt2_word(k);
}

size_t realm_split_word(realm_split_rule rule, const char *s, size_t len) {
    cursor k = {rule, s, len};
    switch (rule) {
    case REALM_SPLIT_DIGITS: {
        uint32_t c;
        size_t size = realm_utf8_decode(s, len, &c);
        if (size && class_of(c) == NUMBER) return size;
        return gpt2_word(&k);
    }
    case REALM_SPLIT_LLAMA3: return llama3_word(&k, 3);
    case REALM_SPLIT_QWEN2: return llama3_word(&k, 1);
    case REALM_SPLIT_DEFAULT: return default_word(&k);
    case REALM_SPLIT_GPT2: break;
    }
    return gpt2_word(&k);
}

/* Names that GGUF files use, by pattern. A name that is not here stands for another pattern. */
static const realm_pretokenizer table[] = {
    {"gpt2/default", REALM_SPLIT_DEFAULT, false, false},
    {"gpt2/gpt-2", REALM_SPLIT_GPT2, false, false},
    {"gpt2/phi-2", REALM_SPLIT_GPT2, false, false},
    {"gpt2/gigachat", REALM_SPLIT_GPT2, false, false},
    {"gpt2/mellum", REALM_SPLIT_GPT2, false, false},
    {"gpt2/mpt", REALM_SPLIT_GPT2, false, false},
    {"gpt2/olmo", REALM_SPLIT_GPT2, false, false},
    {"gpt2/jais", REALM_SPLIT_GPT2, false, false},
    {"gpt2/trillion", REALM_SPLIT_GPT2, false, false},
    {"gpt2/granite-docling", REALM_SPLIT_GPT2, false, false},
    {"gpt2/smollm", REALM_SPLIT_DIGITS, false, false},
    {"gpt2/starcoder", REALM_SPLIT_DIGITS, false, false},
    {"gpt2/refact", REALM_SPLIT_DIGITS, false, false},
    {"gpt2/command-r", REALM_SPLIT_DIGITS, false, false},
    {"gpt2/codeshell", REALM_SPLIT_DIGITS, false, false},
    {"gpt2/exaone", REALM_SPLIT_DIGITS, false, false},
    {"gpt2/minerva-7b", REALM_SPLIT_DIGITS, false, false},
    {"gpt2/llama-bpe", REALM_SPLIT_LLAMA3, true, true},
    {"gpt2/llama3", REALM_SPLIT_LLAMA3, true, true},
    {"gpt2/llama-v3", REALM_SPLIT_LLAMA3, true, true},
    {"gpt2/falcon3", REALM_SPLIT_LLAMA3, true, true},
    {"gpt2/falcon-h1", REALM_SPLIT_LLAMA3, true, true},
    {"gpt2/pixtral", REALM_SPLIT_LLAMA3, true, true},
    {"gpt2/midm-2.0", REALM_SPLIT_LLAMA3, true, true},
    {"gpt2/lfm2", REALM_SPLIT_LLAMA3, true, true},
    {"gpt2/dbrx", REALM_SPLIT_LLAMA3, false, false},
    {"gpt2/smaug-bpe", REALM_SPLIT_LLAMA3, false, false},
    {"gpt2/qwen2", REALM_SPLIT_QWEN2, false, false},
    {"gpt2/deepseek-r1-qwen", REALM_SPLIT_QWEN2, false, false},
    {"gpt2/stablelm2", REALM_SPLIT_QWEN2, false, false},
    {"gpt2/hunyuan", REALM_SPLIT_QWEN2, false, false},
    {"gpt2/solar-open", REALM_SPLIT_QWEN2, false, false},
};

const realm_pretokenizer *realm_pretokenizer_find(const char *name, size_t len) {
    for (size_t i = 0; i < REALM_ARRAY_LEN(table); i++) {
        const char *known = table[i].kind + 5;
        if (strlen(known) == len && memcmp(known, name, len) == 0) return &table[i];
    }
    return NULL;
}
