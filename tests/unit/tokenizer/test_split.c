/* The written-out pre-tokenizers against PCRE2 running the patterns as published, on random Unicode strings. */
#include "fixture.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <utf8proc.h>

#include "base/clock.h"
#include "tokenizer/internal.h"

#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define LIKE_LLAMA3(numbers)                                                                                 \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" numbers "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" \
    "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

#define MAX 512

/* Patterns that cut one after the other: each sees every piece of the one before as a text of its own. */
static const struct {
    realm_split_rule rule;
    const char *patterns[4];
} rules[] = {
    {REALM_SPLIT_GPT2, {GPT2}},
    {REALM_SPLIT_DIGITS, {"\\p{N}", GPT2}},
    {REALM_SPLIT_LLAMA3, {LIKE_LLAMA3("\\p{N}{1,3}")}},
    {REALM_SPLIT_QWEN2, {LIKE_LLAMA3("\\p{N}")}},
    {REALM_SPLIT_DEFAULT, {"[\\p{P}\\$\\+<=>\\^~\\|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]"}},
};

static pcre2_code *compile(const char *pattern) {
    int error;
    PCRE2_SIZE at;
    pcre2_code *c = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP, &error, &at, NULL);
    if (!c) fail_msg("%s: error %d at %zu", pattern, error, (size_t)at);
    (void)pcre2_jit_compile(c, PCRE2_JIT_COMPLETE);
    return c;
}

/* Cuts s at both ends of every match; ends[0..n) are the ends of the pieces, offset by `base`. */
static size_t cut(pcre2_code *c, pcre2_match_data *m, const char *s, size_t len, size_t base, size_t *ends) {
    size_t n = 0, at = 0;
    while (at < len && pcre2_match(c, (PCRE2_SPTR)s, len, at, PCRE2_NO_UTF_CHECK, m, NULL) > 0) {
        PCRE2_SIZE *v = pcre2_get_ovector_pointer(m);
        if (v[0] > at) ends[n++] = base + v[0];
        ends[n++] = base + v[1];
        at = v[1];
    }
    if (at < len) ends[n++] = base + len;
    return n;
}

static bool matches(pcre2_code *c, pcre2_match_data *m, uint32_t code_point) {
    char s[4];
    size_t len = realm_utf8_encode(code_point, s);
    return len && pcre2_match(c, (PCRE2_SPTR)s, len, 0, 0, m, NULL) > 0;
}

/* Code points that PCRE2 and utf8proc class alike. They may differ only where PCRE2's Unicode has no character yet,
 * and on U+180E, which PCRE2 keeps as white space after Unicode 6.3 moved it. */
static uint32_t *common_alphabet(size_t *n) {
    pcre2_code *letter = compile("\\p{L}"), *number = compile("\\p{N}"), *space = compile("\\s"),
               *none = compile("\\p{Cn}"), *punctuation = compile("\\p{P}");
    pcre2_match_data *m = pcre2_match_data_create(4, NULL);
    uint32_t *all = malloc(0x110000 * sizeof *all);
    size_t differ = 0;
    *n = 0;
    for (uint32_t c = 0; c < 0x110000; c++) {
        if (c >= 0xD800 && c < 0xE000) continue;
        utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)c);
        bool l = k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_LO;
        bool d = k >= UTF8PROC_CATEGORY_ND && k <= UTF8PROC_CATEGORY_NO;
        bool p = k >= UTF8PROC_CATEGORY_PC && k <= UTF8PROC_CATEGORY_PO;
        bool s = (k >= UTF8PROC_CATEGORY_ZS && k <= UTF8PROC_CATEGORY_ZP) || (c >= 9 && c <= 13) || c == 0x85;
        if (matches(letter, m, c) == l && matches(number, m, c) == d && matches(space, m, c) == s &&
            matches(punctuation, m, c) == p) {
            all[(*n)++] = c;
        } else {
            differ++;
            if (c != 0x180E && !matches(none, m, c)) fail_msg("U+%04X is classed otherwise by PCRE2", c);
        }
    }
    assert_true(differ < 20000);
    pcre2_match_data_free(m);
    pcre2_code *codes[] = {letter, number, space, none, punctuation};
    for (size_t i = 0; i < 5; i++) pcre2_code_free(codes[i]);
    return all;
}

/* The sets that the patterns tell apart are small; each gets its share beside the whole of Unicode. */
static size_t random_string(uint64_t *seed, const uint32_t *all, size_t n_all, char *to) {
    static const char *const common[] = {"'",
                                         "'s",
                                         "'S",
                                         "'ll",
                                         "'lL",
                                         "'RE",
                                         "'ve",
                                         "'\xC5\xBF",
                                         "s",
                                         "t",
                                         "d",
                                         " ",
                                         " ",
                                         "  ",
                                         "\t",
                                         "\n",
                                         "\r",
                                         "\r\n",
                                         "\xC2\xA0",
                                         "\xE3\x80\x80",
                                         "1",
                                         "22",
                                         "333",
                                         "4444",
                                         "\xD9\xA3",
                                         "\xC2\xBD",
                                         "a",
                                         "Z",
                                         "\xC3\xA9",
                                         "\xE4\xB8\xAD",
                                         "\xCC\x81",
                                         "$",
                                         "+",
                                         ".",
                                         ",",
                                         "_",
                                         "\xF0\x9F\x98\x80",
                                         "\xE2\x80\x8D",
                                         "\xE2\x80\xA8",
                                         "\xC2\x85"};
    size_t len = 0;
    for (unsigned n = 1 + next_random(seed) % 24; n > 0; n--) {
        if (next_random(seed) % 5) {
            const char *p = common[next_random(seed) % (sizeof common / sizeof *common)];
            memcpy(to + len, p, strlen(p));
            len += strlen(p);
        } else {
            uint32_t c = all[next_random(seed) % (next_random(seed) % 3 ? 0x3000 : n_all)];
            len += realm_utf8_encode(c, to + len);
        }
    }
    return len;
}

static void as_published(void **state) {
    (void)state;
    size_t n_all;
    uint32_t *all = common_alphabet(&n_all);
    pcre2_match_data *m = pcre2_match_data_create(8, NULL);
    for (size_t r = 0; r < sizeof rules / sizeof *rules; r++) {
        pcre2_code *codes[4] = {0};
        for (size_t i = 0; i < 4 && rules[r].patterns[i]; i++) codes[i] = compile(rules[r].patterns[i]);
        uint64_t seed = 7 + r;
        for (unsigned round = 0; round < 40000; round++) {
            char text[MAX];
            size_t len = random_string(&seed, all, n_all, text), ends[2][MAX], n = 1;
            size_t *from = ends[0], *to = ends[1];
            from[0] = len;
            for (size_t i = 0; i < 4 && codes[i]; i++) {
                size_t start = 0, n_to = 0;
                for (size_t k = 0; k < n; start = from[k++])
                    n_to += cut(codes[i], m, text + start, from[k] - start, start, to + n_to);
                size_t *swap = from;
                from = to;
                to = swap;
                n = n_to;
            }
            size_t at = 0;
            for (size_t k = 0; k < n; k++) {
                size_t word = realm_split_word(rules[r].rule, text + at, len - at);
                if (at + word != from[k])
                    fail_msg("rule %zu, round %u: the word at %zu ends at %zu, not %zu, in \"%.*s\"", r, round, at,
                             at + word, from[k], (int)len, text);
                at += word;
            }
            assert_int_equal(at, len);
        }
        for (size_t i = 0; i < 4; i++) pcre2_code_free(codes[i]);
    }
    pcre2_match_data_free(m);
    free(all);
}

/* Any bytes: words are not empty, stay inside, and well-formed characters are not cut. */
static void any_bytes(void **state) {
    (void)state;
    uint64_t seed = 3;
    for (unsigned round = 0; round < 20000; round++) {
        char s[64];
        size_t len = 1 + next_random(&seed) % sizeof s;
        for (size_t i = 0; i < len; i++)
            s[i] = next_random(&seed) % 2 ? (char)next_random(&seed) : " \n'sl1a\xE2\x80\xA8"[next_random(&seed) % 10];
        bool start[64 + 1] = {0};
        for (size_t i = 0; i < len;) {
            size_t n = realm_utf8_decode(s + i, len - i, NULL);
            start[i] = true;
            i += n ? n : 1;
        }
        start[len] = true;
        for (size_t r = 0; r < sizeof rules / sizeof *rules; r++) {
            for (size_t at = 0; at < len;) {
                size_t n = realm_split_word(rules[r].rule, s + at, len - at);
                assert_in_range(n, 1, len - at);
                at += n;
                assert_true(start[at]);
            }
        }
    }
}

/* A megabyte of what makes backtracking patterns quadratic takes milliseconds; squared, it would take hours. */
static void linear(void **state) {
    (void)state;
    static const char *const units[] = {" ", "\n", "\n ",          " \n",      "\t",         "1",    "a",  "'",
                                        ".", "' ", "\xE2\x80\xA8", "\xD9\xA3", "12\xD9\xA3", "\xF0", "a'", "  x"};
    const size_t len = 1 << 20;
    char *s = malloc(len);
    for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
        for (size_t i = 0; i < len; i++) s[i] = units[u][i % strlen(units[u])];
        for (size_t r = 0; r < sizeof rules / sizeof *rules; r++) {
            uint64_t t0 = realm_clock_thread_ns();
            for (size_t at = 0, n = 0; at < len; n++) {
                at += realm_split_word(rules[r].rule, s + at, len - at);
                if (n % 4096 == 4095 && realm_clock_thread_ns() - t0 > 20 * REALM_NS_PER_S)
                    fail_msg("rule %zu, unit %zu: too slow", r, u);
            }
        }
    }
    free(s);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(as_published), cmocka_unit_test(any_bytes),
                                       cmocka_unit_test(linear)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
