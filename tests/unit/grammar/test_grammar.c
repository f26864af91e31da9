/* Random walks under masks: whatever is generated under a schema is JSON that the schema's own definition accepts
 * (a small checker below, with jansson and PCRE2), under an expression matches it; end tokens come only where the text
 * is complete; forks and rollbacks are as fresh states. And texts that are wrong or hostile: refused in time, with
 * their place. */
#include <jansson.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "base/clock.h"
#include "gguf/gguf.h"
#include "grammar/grammar.h"
#include "support/random.h"

#define STEPS_MAX 900u

typedef struct vocabulary {
    realm_tokenizer *t;
    realm_grammar_vocab *v;
    size_t n;
    uint32_t *bits, *other;
} vocabulary;

static vocabulary words[2]; /* byte-level BPE and SentencePiece */

static int open_vocabularies(void **state) {
    static const char *const files[] = {"tests/data/tokenizer/llama-bpe.gguf", "tests/data/tokenizer/spm.gguf"};
    (void)state;
    for (size_t i = 0; i < 2; i++) {
        realm_gguf *g;
        realm_error err = {0};
        if (realm_gguf_open(&g, files[i], &err) != REALM_OK) return -1;
        if (realm_tokenizer_open(&words[i].t, g, &err) != REALM_OK) return -1;
        realm_gguf_close(g);
        if (realm_grammar_vocab_open(&words[i].v, words[i].t, &err) != REALM_OK) return -1;
        words[i].n = realm_tokenizer_vocab_size(words[i].t);
        words[i].bits = calloc((words[i].n + 31) / 32, 4);
        words[i].other = calloc((words[i].n + 31) / 32, 4);
    }
    return 0;
}

static int close_vocabularies(void **state) {
    (void)state;
    for (size_t i = 0; i < 2; i++) {
        realm_grammar_vocab_close(words[i].v);
        realm_tokenizer_close(words[i].t);
        free(words[i].bits);
        free(words[i].other);
    }
    return 0;
}

static bool has(const uint32_t *bits, realm_token t) { return bits[t / 32] >> (t % 32) & 1; }

/* Those that were given up hold the places for compiling until they end by their own budgets, which on a busy machine
 * is long after the caller was told. They do end. `*took`: the last try. */
static realm_status compile_when_free(const vocabulary *w, realm_grammar_kind kind, const char *text, size_t len,
                                      realm_grammar **g, uint64_t *took, realm_error *err) {
    const uint64_t until = realm_clock_ns() + UINT64_C(300000000000);
    uint64_t start;
    realm_status s;
    do {
        start = realm_clock_ns();
        s = realm_grammar_compile(w->v, 0, kind, text, len, g, err);
        *took = realm_clock_ns() - start;
    } while (s == REALM_E_BUSY && start < until);
    return s;
}

static realm_grammar *compile(const vocabulary *w, realm_grammar_kind kind, const char *text) {
    realm_grammar *g = NULL;
    realm_error err = {0};
    uint64_t took;
    if (compile_when_free(w, kind, text, strlen(text), &g, &took, &err) != REALM_OK) fail_msg("%s: %s", text, err.text);
    return g;
}

/* ---- a JSON Schema, by definition ------------------------------------------------------------------------------- */

static bool matches(const char *pattern, const char *s, size_t len, bool whole) {
    int code;
    PCRE2_SIZE at;
    pcre2_code *re = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                                   PCRE2_UTF | (whole ? PCRE2_ANCHORED | PCRE2_ENDANCHORED : 0), &code, &at, NULL);
    assert_non_null(re);
    pcre2_match_data *m = pcre2_match_data_create_from_pattern(re, NULL);
    bool ok = pcre2_match(re, (PCRE2_SPTR)s, len, 0, 0, m, NULL) >= 0;
    pcre2_match_data_free(m);
    pcre2_code_free(re);
    return ok;
}

static size_t characters(const char *s) {
    size_t n = 0;
    for (; *s; s++) n += ((unsigned char)*s & 0xc0) != 0x80;
    return n;
}

static bool is_type(const json_t *v, const char *type) {
    if (strcmp(type, "null") == 0) return json_is_null(v);
    if (strcmp(type, "boolean") == 0) return json_is_boolean(v);
    if (strcmp(type, "integer") == 0)
        return json_is_integer(v) || (json_is_real(v) && floor(json_real_value(v)) == json_real_value(v));
    if (strcmp(type, "number") == 0) return json_is_number(v);
    if (strcmp(type, "string") == 0) return json_is_string(v);
    if (strcmp(type, "array") == 0) return json_is_array(v);
    return strcmp(type, "object") == 0 && json_is_object(v);
}

static bool valid(const json_t *root, const json_t *schema, const json_t *v);

static bool valid_object(const json_t *root, const json_t *schema, const json_t *v) {
    const json_t *properties = json_object_get(schema, "properties"), *required = json_object_get(schema, "required");
    const json_t *more = json_object_get(schema, "additionalProperties");
    const char *key;
    json_t *item;
    size_t i;
    json_array_foreach((json_t *)(uintptr_t)required, i, item) if (!json_object_get(v, json_string_value(item))) {
        return false;
    }
    json_object_foreach((json_t *)(uintptr_t)v, key, item) {
        const json_t *own = json_object_get(properties, key);
        if (own && !valid(root, own, item)) return false;
        if (!own && more && !valid(root, more, item)) return false;
    }
    return true;
}

static bool valid_array(const json_t *root, const json_t *schema, const json_t *v) {
    const json_t *min = json_object_get(schema, "minItems"), *max = json_object_get(schema, "maxItems"),
                 *first = json_object_get(schema, "prefixItems"), *items = json_object_get(schema, "items");
    size_t n = json_array_size(v);
    if (min && n < (size_t)json_integer_value(min)) return false;
    if (max && n > (size_t)json_integer_value(max)) return false;
    for (size_t i = 0; i < n; i++) {
        const json_t *own = i < json_array_size(first) ? json_array_get(first, i) : items;
        if (own && !valid(root, own, json_array_get(v, i))) return false;
    }
    return true;
}

static bool valid_scalar(const json_t *schema, const json_t *v) {
    const json_t *k;
    if (json_is_number(v)) {
        double x = json_number_value(v);
        if ((k = json_object_get(schema, "minimum")) && x < json_number_value(k)) return false;
        if ((k = json_object_get(schema, "maximum")) && x > json_number_value(k)) return false;
        if ((k = json_object_get(schema, "exclusiveMinimum")) && x <= json_number_value(k)) return false;
        if ((k = json_object_get(schema, "exclusiveMaximum")) && x >= json_number_value(k)) return false;
        if ((k = json_object_get(schema, "multipleOf")) && json_integer_value(v) % json_integer_value(k) != 0)
            return false;
    }
    if (json_is_string(v)) {
        const char *s = json_string_value(v);
        if ((k = json_object_get(schema, "minLength")) && characters(s) < (size_t)json_integer_value(k)) return false;
        if ((k = json_object_get(schema, "maxLength")) && characters(s) > (size_t)json_integer_value(k)) return false;
        if ((k = json_object_get(schema, "pattern")) && !matches(json_string_value(k), s, strlen(s), false))
            return false;
    }
    return true;
}

static const json_t *resolve(const json_t *root, const char *ref) {
    char path[200];
    assert_true(ref[0] == '#' && strlen(ref) < sizeof path);
    strcpy(path, ref + 1);
    for (char *part = strtok(path, "/"); part; part = strtok(NULL, "/")) root = json_object_get(root, part);
    assert_non_null(root);
    return root;
}

static bool valid(const json_t *root, const json_t *schema, const json_t *v) {
    const json_t *k;
    json_t *item;
    size_t i, fits = 0;
    if (json_is_boolean(schema)) return json_is_true(schema);
    if ((k = json_object_get(schema, "$ref")) && !valid(root, resolve(root, json_string_value(k)), v)) return false;
    if ((k = json_object_get(schema, "type"))) {
        bool any = json_is_string(k) && is_type(v, json_string_value(k));
        json_array_foreach((json_t *)(uintptr_t)k, i, item) any |= is_type(v, json_string_value(item));
        if (!any) return false;
    }
    if ((k = json_object_get(schema, "const")) && !json_equal((json_t *)(uintptr_t)k, (json_t *)(uintptr_t)v))
        return false;
    if ((k = json_object_get(schema, "enum"))) {
        json_array_foreach((json_t *)(uintptr_t)k, i, item) fits += (size_t)json_equal(item, (json_t *)(uintptr_t)v);
        if (fits == 0) return false;
    }
    json_array_foreach(json_object_get(schema, "allOf"), i, item) if (!valid(root, item, v)) { return false; }
    if ((k = json_object_get(schema, "anyOf"))) {
        fits = 0;
        json_array_foreach((json_t *)(uintptr_t)k, i, item) fits += valid(root, item, v);
        if (fits == 0) return false;
    }
    if ((k = json_object_get(schema, "oneOf"))) {
        fits = 0;
        json_array_foreach((json_t *)(uintptr_t)k, i, item) fits += valid(root, item, v);
        if (fits != 1) return false;
    }
    return valid_scalar(schema, v) && (!json_is_object(v) || valid_object(root, schema, v)) &&
           (!json_is_array(v) || valid_array(root, schema, v));
}

/* ---- walks ------------------------------------------------------------------------------------------------------ */

/* A token that the mask allows: at first any, later rather one that closes something. */
static realm_token pick(const vocabulary *w, const uint32_t *bits, unsigned step) {
    static const char closers[] = "\"}]";
    if (random_below(60) < step) {
        for (size_t i = 0; i < w->n; i++)
            if (has(bits, (realm_token)i) && realm_tokenizer_is_end(w->t, (realm_token)i)) return (realm_token)i;
        for (const char *c = closers; *c; c++)
            for (size_t i = 0; i < w->n; i++) {
                const char *bytes;
                size_t len;
                if (!has(bits, (realm_token)i)) continue;
                assert_int_equal(realm_tokenizer_piece(w->t, (realm_token)i, false, &bytes, &len), REALM_OK);
                if (len == 1 && *bytes == *c) return (realm_token)i;
            }
    }
    size_t start = random_below((uint32_t)w->n);
    for (size_t i = 0; i < w->n; i++) {
        realm_token t = (realm_token)((start + i) % w->n);
        if (has(bits, t)) return t;
    }
    fail_msg("nothing is allowed");
    return -1;
}

static void mask(const vocabulary *w, realm_grammar_state *s, uint32_t *bits) {
    realm_error err = {0};
    if (realm_grammar_state_mask(s, bits, &err) != REALM_OK) fail_msg("mask: %s", err.text);
    (void)w;
}

/* Ends are in the mask exactly where the state says that it can end. */
static void check_ends(const vocabulary *w, const realm_grammar_state *s, const uint32_t *bits) {
    for (size_t i = 0; i < w->n; i++)
        if (realm_tokenizer_is_end(w->t, (realm_token)i))
            assert_int_equal(has(bits, (realm_token)i), realm_grammar_state_can_end(s));
}

/* accept agrees with the mask, tried on a fork. */
static void check_accept(const vocabulary *w, const realm_grammar_state *s, const uint32_t *bits) {
    realm_grammar_state *f;
    size_t n;
    realm_token t = (realm_token)random_below((uint32_t)w->n);
    const char *bytes;
    size_t len;
    assert_int_equal(realm_tokenizer_piece(w->t, t, false, &bytes, &len), REALM_OK);
    if (len == 0 && !realm_tokenizer_is_end(w->t, t)) return;
    assert_int_equal(realm_grammar_state_fork(s, &f, NULL), REALM_OK);
    assert_int_equal(realm_grammar_state_accept(f, &t, 1, &n, NULL), REALM_OK);
    assert_int_equal(n, has(bits, t));
    realm_grammar_state_close(f);
}

static size_t walk(const vocabulary *w, realm_grammar *g, char *text, size_t cap) {
    realm_grammar_state *s;
    size_t len = 0;
    unsigned step = 0;
    assert_int_equal(realm_grammar_state_open(g, &s, NULL), REALM_OK);
    for (;; step++) {
        mask(w, s, w->bits);
        check_ends(w, s, w->bits);
        if (step % 16 == 3) check_accept(w, s, w->bits);
        if (step == STEPS_MAX) fail_msg("no end after %.*s", (int)len, text);
        realm_token t = pick(w, w->bits, step);
        size_t n;
        assert_int_equal(realm_grammar_state_accept(s, &t, 1, &n, NULL), REALM_OK);
        assert_int_equal(n, 1);
        if (realm_tokenizer_is_end(w->t, t)) break;
        const char *bytes;
        size_t n_bytes;
        assert_int_equal(realm_tokenizer_piece(w->t, t, false, &bytes, &n_bytes), REALM_OK);
        assert_true(len + n_bytes < cap);
        memcpy(text + len, bytes, n_bytes);
        len += n_bytes;
        if (realm_grammar_state_must_end(s)) { /* only ends are left */
            assert_true(realm_grammar_state_can_end(s));
            mask(w, s, w->bits);
            for (size_t i = 0; i < w->n; i++)
                assert_int_equal(has(w->bits, (realm_token)i), realm_tokenizer_is_end(w->t, (realm_token)i));
            break;
        }
    }
    assert_true(realm_grammar_state_can_end(s));
    text[len] = 0;
    realm_grammar_state_close(s);
    return len;
}

static const char *const schemas[] = {
    "true",
    "{}",
    "{\"type\":\"object\"}",
    "{\"type\":\"null\"}",
    "{\"type\":\"boolean\"}",
    "{\"type\":\"integer\"}",
    "{\"type\":\"integer\",\"minimum\":-3,\"maximum\":12}",
    "{\"type\":\"number\",\"minimum\":0,\"exclusiveMaximum\":1.5}",
    "{\"type\":\"integer\",\"multipleOf\":7}",
    "{\"type\":\"string\"}",
    "{\"type\":\"string\",\"minLength\":3,\"maxLength\":5}",
    "{\"type\":\"string\",\"pattern\":\"^[a-z]{2,4}-[0-9]+$\"}",
    "{\"type\":\"string\",\"enum\":[\"red\",\"green\",\"bl\\\"ue\",\"\"]}",
    "{\"enum\":[1,\"two\",null,[3],{\"four\":5}]}",
    "{\"const\":{\"a\":[1,2,{\"b\":null}]}}",
    "{\"type\":[\"string\",\"null\"]}",
    "{\"type\":\"array\"}",
    "{\"type\":\"array\",\"items\":{\"type\":\"integer\"},\"minItems\":2,\"maxItems\":4}",
    "{\"type\":\"array\",\"prefixItems\":[{\"type\":\"string\"},{\"type\":\"boolean\"}],\"items\":{\"type\":\"null\"}}",
    "{\"type\":\"array\",\"prefixItems\":[{\"type\":\"integer\"}],\"items\":false,\"minItems\":1}",
    "{\"type\":\"object\",\"properties\":{\"name\":{\"type\":\"string\"},\"age\":{\"type\":\"integer\",\"minimum\":0}},"
    "\"required\":[\"name\",\"age\"],\"additionalProperties\":false}",
    "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"string\"},\"b\":{\"type\":\"boolean\"}},"
    "\"additionalProperties\":false}",
    "{\"type\":\"object\",\"additionalProperties\":{\"type\":\"integer\"}}",
    "{\"type\":\"object\",\"properties\":{\"x\":{\"type\":\"number\"}},\"required\":[\"x\"]}",
    "{\"anyOf\":[{\"type\":\"integer\"},{\"type\":\"array\",\"items\":{\"type\":\"boolean\"}}]}",
    "{\"oneOf\":[{\"type\":\"string\"},{\"type\":\"integer\"}]}",
    "{\"allOf\":[{\"type\":\"object\",\"properties\":{\"p\":{\"type\":\"integer\"}},\"required\":[\"p\"]},"
    "{\"type\":\"object\",\"properties\":{\"q\":{\"type\":\"null\"}},\"required\":[\"q\"]}]}",
    "{\"$defs\":{\"node\":{\"type\":\"object\",\"properties\":{\"v\":{\"type\":\"integer\"},\"next\":{\"anyOf\":"
    "[{\"$ref\":\"#/$defs/"
    "node\"},{\"type\":\"null\"}]}},\"required\":[\"v\",\"next\"],\"additionalProperties\":false}},"
    "\"$ref\":\"#/$defs/node\"}",
    "{\"type\":\"object\",\"properties\":{\"children\":{\"type\":\"array\",\"items\":{\"$ref\":\"#\"}}},"
    "\"required\":[\"children\"],\"additionalProperties\":false}",
    "{\"type\":\"object\",\"properties\":{\"tool\":{\"const\":\"search\"},\"arguments\":{\"type\":\"object\","
    "\"properties\":{\"query\":{\"type\":\"string\",\"maxLength\":20},\"n\":{\"type\":\"integer\",\"minimum\":1,"
    "\"maximum\":9}},\"required\":[\"query\"],\"additionalProperties\":false}},\"required\":[\"tool\",\"arguments\"],"
    "\"additionalProperties\":false}",
    "{\"title\":\"T\",\"description\":\"d\",\"type\":\"object\",\"properties\":{\"\\u00e9\\\"k\":{\"type\":\"string\","
    "\"maxLength\":4}},\"required\":[\"\\u00e9\\\"k\"],\"additionalProperties\":false}",
};

static void schemas_hold(void **state) {
    (void)state;
    static char text[1 << 16];
    for (size_t i = 0; i < REALM_ARRAY_LEN(schemas); i++) {
        json_error_t je;
        json_t *schema = json_loads(schemas[i], JSON_DECODE_ANY, &je);
        assert_non_null(schema);
        for (size_t w = 0; w < 2; w++) {
            realm_grammar *g = compile(&words[w], REALM_GRAMMAR_KIND_JSON_SCHEMA, schemas[i]);
            for (int round = 0; round < 3; round++) {
                size_t len = walk(&words[w], g, text, sizeof text);
                json_t *v = json_loadb(text, len, JSON_DECODE_ANY | JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, &je);
                if (!v && strstr(je.text, "real number overflow")) continue; /* JSON, but no number of this machine */
                if (!v) fail_msg("%s gave %s: %s", schemas[i], text, je.text);
                json_decref(v);
                v = json_loadb(text, len, JSON_DECODE_ANY | JSON_ALLOW_NUL, &je);
                if (!v) continue; /* an integer beyond 64 bits */
                if (!valid(schema, schema, v)) fail_msg("%s gave %s", schemas[i], text);
                json_decref(v);
            }
            realm_grammar_release(g);
        }
        json_decref(schema);
    }
}

static void expressions_hold(void **state) {
    (void)state;
    static const char *const patterns[] = {"[a-z]{1,8}(foo|bar){2,3}x",
                                           "(ab|a)(bc|c)?",
                                           "\\d{4}-\\d{2}-\\d{2}",
                                           "[^a]{1,6}",
                                           "(yes|no|maybe)",
                                           "a*b*c*",
                                           "([A-Za-z]{1,9} ){2}[A-Z]{1,9}\\.",
                                           "\xc3\xa4\xe2\x82\xac?",
                                           ""};
    static char text[1 << 16];
    for (size_t i = 0; i < REALM_ARRAY_LEN(patterns); i++)
        for (size_t w = 0; w < 2; w++) {
            realm_grammar *g = compile(&words[w], REALM_GRAMMAR_KIND_REGEX, patterns[i]);
            char whole[200];
            snprintf(whole, sizeof whole, "(*UCP)(?s:%s)", patterns[i]);
            for (int round = 0; round < 4; round++) {
                size_t len = walk(&words[w], g, text, sizeof text);
                if (!matches(whole, text, len, true)) fail_msg("%s gave %s", patterns[i], text);
            }
            realm_grammar_release(g);
        }
}

static void lark_holds(void **state) {
    (void)state;
    static char text[1 << 16];
    static const char grammar[] = "start: sum\nsum: product (\"+\" product)*\nproduct: atom (\"*\" atom)*\n"
                                  "atom: NUMBER | \"(\" sum \")\"\nNUMBER: /[0-9]{1,3}/\n";
    realm_grammar *g = compile(&words[0], REALM_GRAMMAR_KIND_LARK, grammar);
    for (int round = 0; round < 5; round++) {
        realm_grammar_state *s;
        assert_int_equal(realm_grammar_state_open(g, &s, NULL), REALM_OK);
        size_t len = 0, n;
        for (unsigned step = 0; step < 200; step++) {
            mask(&words[0], s, words[0].bits);
            realm_token t = pick(&words[0], words[0].bits, step);
            assert_int_equal(realm_grammar_state_accept(s, &t, 1, &n, NULL), REALM_OK);
            assert_int_equal(n, 1);
            if (realm_tokenizer_is_end(words[0].t, t)) break;
            const char *bytes;
            assert_int_equal(realm_tokenizer_piece(words[0].t, t, false, &bytes, &n), REALM_OK);
            memcpy(text + len, bytes, n);
            len += n;
        }
        int depth = 0;
        for (size_t i = 0; i < len; i++) {
            depth += text[i] == '(';
            depth -= text[i] == ')';
            assert_true(depth >= 0 && strchr("0123456789+*()", text[i]));
        }
        realm_grammar_state_close(s);
    }
    realm_grammar_release(g);
}

/* A state rolled back or forked gives the masks of one that went there directly. */
static void rollback_and_fork(void **state) {
    (void)state;
    const vocabulary *w = &words[0];
    for (size_t which = 18; which < REALM_ARRAY_LEN(schemas); which++) {
        realm_grammar *g = compile(w, REALM_GRAMMAR_KIND_JSON_SCHEMA, schemas[which]);
        realm_grammar_state *s, *fresh, *fork;
        realm_token path[200];
        size_t len = 0, n;
        assert_int_equal(realm_grammar_state_open(g, &s, NULL), REALM_OK);
        for (unsigned step = 0; step < 40; step++) {
            if (len > 0 && random_below(4) == 0) {
                size_t back = 1 + random_below((uint32_t)REALM_MIN(len, (size_t)6));
                assert_int_equal(realm_grammar_state_rollback(s, back, NULL), REALM_OK);
                len -= back;
            }
            mask(w, s, w->bits);
            assert_int_equal(realm_grammar_state_open(g, &fresh, NULL), REALM_OK);
            assert_int_equal(realm_grammar_state_accept(fresh, path, len, &n, NULL), REALM_OK);
            assert_int_equal(n, len);
            mask(w, fresh, w->other);
            assert_memory_equal(w->bits, w->other, (w->n + 31) / 32 * 4);
            assert_int_equal(realm_grammar_state_must_end(s), realm_grammar_state_must_end(fresh));
            realm_grammar_state_close(fresh);
            assert_int_equal(realm_grammar_state_fork(s, &fork, NULL), REALM_OK);
            mask(w, fork, w->other);
            assert_memory_equal(w->bits, w->other, (w->n + 31) / 32 * 4);
            if (realm_grammar_state_must_end(s) && !has(w->bits, realm_tokenizer_eos(w->t))) {
                realm_grammar_state_close(fork);
                break;
            }
            bool any = false;
            for (size_t i = 0; i < (w->n + 31) / 32; i++) any |= w->bits[i] != 0;
            if (any) {
                path[len] = pick(w, w->bits, step);
                assert_int_equal(realm_grammar_state_accept(s, &path[len], 1, &n, NULL), REALM_OK);
                assert_int_equal(n, 1);
                len++;
            }
            mask(w, fork, w->other); /* the fork stays where it was */
            assert_memory_equal(w->bits, w->other, (w->n + 31) / 32 * 4);
            realm_grammar_state_close(fork);
        }
        assert_int_equal(realm_grammar_state_rollback(s, len + 1, NULL), REALM_E_RANGE);
        assert_int_equal(realm_grammar_state_rollback(s, len, NULL), REALM_OK);
        realm_grammar_state_close(s);
        realm_grammar_release(g);
    }
}

/* Behind an end token nothing is allowed; rolled back, all is as before. */
static void ends(void **state) {
    (void)state;
    const vocabulary *w = &words[0];
    realm_grammar *g = compile(w, REALM_GRAMMAR_KIND_REGEX, "a+");
    realm_grammar_state *s;
    size_t n;
    realm_token a = realm_tokenizer_find(w->t, "a", 1), end = realm_tokenizer_eos(w->t), seq[] = {a, a, end, a};
    assert_int_equal(realm_grammar_state_open(g, &s, NULL), REALM_OK);
    assert_false(realm_grammar_state_can_end(s));
    assert_int_equal(realm_grammar_state_accept(s, &end, 1, &n, NULL), REALM_OK);
    assert_int_equal(n, 0);
    assert_int_equal(realm_grammar_state_accept(s, seq, 4, &n, NULL), REALM_OK);
    assert_int_equal(n, 3);
    assert_true(realm_grammar_state_must_end(s));
    mask(w, s, w->bits);
    for (size_t i = 0; i < (w->n + 31) / 32; i++) assert_int_equal(w->bits[i], 0);
    assert_int_equal(realm_grammar_state_rollback(s, 1, NULL), REALM_OK);
    mask(w, s, w->bits);
    assert_true(has(w->bits, a) && has(w->bits, end));
    assert_int_equal(realm_grammar_state_rollback(s, 2, NULL), REALM_OK);
    mask(w, s, w->bits);
    assert_true(has(w->bits, a) && !has(w->bits, end));
    realm_token outside = (realm_token)w->n;
    assert_int_equal(realm_grammar_state_accept(s, &outside, 1, &n, NULL), REALM_E_RANGE);
    outside = -1;
    assert_int_equal(realm_grammar_state_accept(s, &outside, 1, &n, NULL), REALM_E_RANGE);
    realm_grammar_state_close(s);
    realm_grammar_release(g);
}

/* Whether a text may stand there, byte by byte. */
static bool takes(const vocabulary *w, realm_grammar *g, const char *text) {
    realm_grammar_state *s;
    bool all = true;
    assert_int_equal(realm_grammar_state_open(g, &s, NULL), REALM_OK);
    for (; all && *text; text++) {
        realm_tokens t = {0};
        size_t n;
        assert_int_equal(realm_tokenizer_encode(w->t, text, 1, 0, 8, &t, NULL), REALM_OK);
        assert_int_equal(realm_grammar_state_accept(s, t.ids, t.len, &n, NULL), REALM_OK);
        all = n == t.len;
        realm_tokens_release(&t);
    }
    realm_grammar_state_close(s);
    return all;
}

/* Between tokens of JSON there is a little to be read by, and no run of blanks that uses up an answer. */
static void blanks(void **state) {
    (void)state;
    const vocabulary *w = &words[0];
    char deep[64];
    realm_grammar *g =
        compile(w, REALM_GRAMMAR_KIND_JSON_SCHEMA, " {\"type\":\"array\",\"items\":{\"type\":\"null\"}}");
    assert_true(takes(w, g, "[null,null]"));
    assert_true(takes(w, g, "[ null , null ]"));
    assert_true(takes(w, g, "[\n  null,\r\n\t\tnull\n]"));
    assert_false(takes(w, g, "[\n\n"));
    assert_false(takes(w, g, "[  "));
    assert_false(takes(w, g, "[\t"));
    snprintf(deep, sizeof deep, "[\n%40s", "");
    assert_true(takes(w, g, deep));
    snprintf(deep, sizeof deep, "[\n%41s", "");
    assert_false(takes(w, g, deep));
    realm_grammar_release(g);
    g = compile(w, REALM_GRAMMAR_KIND_JSON_SCHEMA, "{ }");
    assert_true(takes(w, g, "{\"a\": [1, {}]}"));
    assert_false(takes(w, g, "{\n\n"));
    realm_grammar_release(g);
    /* a schema may say otherwise */
    g = compile(w, REALM_GRAMMAR_KIND_JSON_SCHEMA,
                "{\"x-guidance\":{\"whitespace_flexible\":false},\"type\":\"array\"}");
    assert_true(takes(w, g, "[1,"));
    assert_false(takes(w, g, "[1, "));
    realm_grammar_release(g);
}

/* ---- what is refused -------------------------------------------------------------------------------------------- */

static void refused(void **state) {
    (void)state;
    static const struct {
        realm_grammar_kind kind;
        const char *text, *says; /* part of the message */
        realm_status status;
    } cases[] = {
        {REALM_GRAMMAR_KIND_JSON_SCHEMA, "{\"type\":", "column", REALM_E_FORMAT},
        {REALM_GRAMMAR_KIND_JSON_SCHEMA, "", "schema at #", REALM_E_FORMAT},
        {REALM_GRAMMAR_KIND_JSON_SCHEMA, "[1]", "schema", REALM_E_FORMAT},
        {REALM_GRAMMAR_KIND_JSON_SCHEMA, "{\"type\":\"foo\"}", "schema at #/type: Invalid type: foo", REALM_E_FORMAT},
        {REALM_GRAMMAR_KIND_JSON_SCHEMA,
         "{\"properties\":{\"a\":true,\"b/c\":{\"items\":{\"anyOf\":[{\"type\":\"null\"},{\"not\":{}}]}}}}",
         "schema at #/properties/b~1c/items/anyOf/1/not: Unimplemented keys: [\"not\"]", REALM_E_FORMAT},
        {REALM_GRAMMAR_KIND_JSON_SCHEMA, "{\"properties\":{\"a\":{\"type\":\"string\",\"pattern\":\"ab(\"}}}",
         "schema at #/properties/a/pattern: regular expression, character 3: unclosed group", REALM_E_FORMAT},
        {REALM_GRAMMAR_KIND_JSON_SCHEMA,
         "{\"$defs\":{\"ok\":{\"type\":\"null\"},\"b\":{\"items\":{\"type\":\"foo\"}}},\"properties\":{\"x\":{\"$ref\":"
         "\"#/$defs/ok\"},\"y\":{\"$ref\":\"#/$defs/b\"}}}",
         "schema at #/$defs/b/items/type: Invalid type", REALM_E_FORMAT},
        {REALM_GRAMMAR_KIND_JSON_SCHEMA,
         "{\"$defs\":{\"ok\":{\"type\":\"null\"}},\"properties\":{\"x\":{\"$ref\":\"#/$defs/"
         "ok\"},\"y\":{\"type\":\"foo\"}}}",
         "schema at #/properties/y/type: Invalid type", REALM_E_FORMAT},
        {REALM_GRAMMAR_KIND_JSON_SCHEMA, "{\"$ref\":\"#/$defs/none\"}", "schema at #", REALM_E_FORMAT},
        {REALM_GRAMMAR_KIND_JSON_SCHEMA, "{\"$ref\":\"http://example.com/s.json\"}", "schema at #", REALM_E_FORMAT},
        {REALM_GRAMMAR_KIND_JSON_SCHEMA, "{\"$ref\":\"#\"}", "no text can satisfy", REALM_E_FORMAT},
        {REALM_GRAMMAR_KIND_REGEX, "ab(c", "character 3: unclosed group", REALM_E_FORMAT},
        {REALM_GRAMMAR_KIND_REGEX, "(?<=a)b", "regular expression", REALM_E_FORMAT},
        {REALM_GRAMMAR_KIND_LARK, "start: a b", "1(8): unknown name", REALM_E_FORMAT},
        {REALM_GRAMMAR_KIND_LARK, "start: start", "no text can satisfy", REALM_E_FORMAT},
        {REALM_GRAMMAR_KIND_LARK, "", "", REALM_E_FORMAT},
        {REALM_GRAMMAR_KIND_LARK, "start: \"\xff\"", "UTF-8", REALM_E_FORMAT},
    };
    for (size_t i = 0; i < REALM_ARRAY_LEN(cases); i++) {
        realm_grammar *g;
        realm_error err = {0};
        realm_status s =
            realm_grammar_compile(words[0].v, 0, cases[i].kind, cases[i].text, strlen(cases[i].text), &g, &err);
        if (s != cases[i].status || !strstr(err.text, cases[i].says)) fail_msg("%s: %d %s", cases[i].text, s, err.text);
        assert_null(g);
        assert_null(strchr(err.text, '\n'));
    }
    realm_grammar *g;
    assert_int_equal(realm_grammar_compile(words[0].v, 0, (realm_grammar_kind)9, "a", 1, &g, NULL), REALM_E_RANGE);
    assert_int_equal(realm_grammar_compile(words[0].v, 0, REALM_GRAMMAR_KIND_REGEX, "a\0b", 3, &g, NULL),
                     REALM_E_FORMAT);
}

typedef struct text_buf {
    char *p;
    size_t len, cap;
} text_buf;
static void put(text_buf *b, const char *fmt, ...) {
    if (b->cap - b->len < 4096) b->p = realloc(b->p, b->cap = b->cap * 2 + 8192);
    va_list ap;
    va_start(ap, fmt);
    b->len += (size_t)vsnprintf(b->p + b->len, b->cap - b->len, fmt, ap);
    va_end(ap);
}

/* Texts made to cost: an answer of some kind comes in bounded time, and so does each step. */
static void hostile(void **state) {
    (void)state;
    const vocabulary *w = &words[0];
    for (int kind = 0; kind < 17; kind++) {
        text_buf b = {0};
        realm_grammar_kind k = kind < 6    ? REALM_GRAMMAR_KIND_JSON_SCHEMA
                               : kind < 11 ? REALM_GRAMMAR_KIND_REGEX
                                           : REALM_GRAMMAR_KIND_LARK;
        put(&b, "%s", "");
        switch (kind) {
        case 0:
            for (int i = 0; i < 20000; i++) put(&b, "{\"items\":");
            break;
        case 1:
            for (int i = 0; i < 60; i++) put(&b, "{\"items\":");
            put(&b, "true");
            for (int i = 0; i < 60; i++) put(&b, "}");
            break;
        case 2:
            put(&b, "{\"$defs\":{\"z\":{\"type\":\"string\"}");
            for (int i = 0; i < 40; i++)
                put(&b,
                    ",\"d%d\":{\"anyOf\":[{\"$ref\":\"#/$defs/%s%d\"},{\"$ref\":\"#/$defs/d%d\"}],\"minLength\":%d}", i,
                    "d", (i + 1) % 40, (i + 2) % 40, i);
            put(&b, "},\"$ref\":\"#/$defs/d0\"}");
            break;
        case 3:
            put(&b, "{\"allOf\":[");
            for (int i = 0; i < 8; i++) {
                put(&b, "%s{\"anyOf\":[", i ? "," : "");
                for (int j = 0; j < 8; j++)
                    put(&b, "%s{\"type\":\"object\",\"properties\":{\"a%d\":{\"const\":%d}}}", j ? "," : "", j, i);
                put(&b, "]}");
            }
            put(&b, "]}");
            break;
        case 4:
            put(&b, "{\"type\":\"object\",\"additionalProperties\":false,\"properties\":{\"a\":true");
            for (int i = 0; i < 2000; i++) put(&b, ",\"p%d\":{\"type\":\"string\"}", i);
            put(&b, "}}");
            break;
        case 5: put(&b, "{\"type\":\"string\",\"pattern\":\"^(((a{0,999}){0,999}){0,999}b)*$\"}"); break;
        case 6:
            for (int i = 0; i < 100000; i++) put(&b, "(");
            break;
        case 7: put(&b, "((((((a{0,99}){0,99}){0,99}){0,99}){0,99}){0,99}c)*"); break;
        case 8: put(&b, "(a{1000}){1000}"); break;
        case 9:
            for (int i = 0; i < 30000; i++) put(&b, "(ab|cd)");
            break;
        case 10: put(&b, "[a-z]*a[a-z]{900}b"); break;
        case 11:
            put(&b, "start: r0\n");
            for (int i = 0; i < 1900; i++) put(&b, "r%d: r%d\n", i, i + 1);
            put(&b, "r1900: \"x\"\n");
            break;
        case 12:
            put(&b, "start: A0\n");
            for (int i = 0; i < 1900; i++) put(&b, "A%d: A%d\n", i, i + 1);
            put(&b, "A1900: \"x\"\n");
            break;
        case 13:
            put(&b, "start: A0\n");
            for (int i = 0; i < 40; i++) put(&b, "A%d: A%d A%d\n", i, i + 1, i + 1);
            put(&b, "A40: \"x\"\n");
            break;
        case 14:
            put(&b, "start: r0\n");
            for (int i = 0; i < 40; i++) put(&b, "r%d: r%d r%d | \"y\"\n", i, i + 1, i + 1);
            put(&b, "r40: \"x\"\n");
            break;
        case 15:
            put(&b, "start: (\"a\"");
            for (int i = 0; i < 3000; i++) put(&b, "| \"a\" \"b\"*");
            put(&b, ")*\n");
            break;
        default:
            for (int i = 0; i < 3000; i++) put(&b, "a%d: \"x\"\n", i);
            break;
        }
        realm_grammar *g;
        realm_error err = {0};
        uint64_t took;
        realm_status s = compile_when_free(w, k, b.p, b.len, &g, &took, &err);
        if (took > UINT64_C(20000000000)) fail_msg("case %d took %llu ms", kind, (unsigned long long)(took / 1000000));
        if (kind == 0 || kind == 6 || kind == 3 || kind == 13 || kind == 16) assert_int_not_equal(s, REALM_OK);
        if (s != REALM_OK) {
            if (s != REALM_E_FORMAT && s != REALM_E_LIMIT && s != REALM_E_TIMEOUT)
                fail_msg("case %d: %d %s", kind, s, err.text);
            assert_true(err.text[0] != 0);
        } else {
            realm_grammar_state *st;
            assert_int_equal(realm_grammar_state_open(g, &st, NULL), REALM_OK);
            for (int step = 0; step < 20; step++) {
                s = realm_grammar_state_mask(st, w->bits, &err);
                if (s != REALM_OK) {
                    if (s != REALM_E_GRAMMAR) fail_msg("case %d: %d %s", kind, s, err.text);
                    assert_int_equal(realm_grammar_state_mask(st, w->bits, &err), s); /* it stays failed */
                    assert_false(realm_grammar_state_can_end(st) || realm_grammar_state_must_end(st));
                    break;
                }
                realm_token t = pick(w, w->bits, 0);
                size_t n;
                if (realm_tokenizer_is_end(w->t, t)) break;
                s = realm_grammar_state_accept(st, &t, 1, &n, &err);
                if (s != REALM_OK && s != REALM_E_GRAMMAR) fail_msg("case %d: %d %s", kind, s, err.text);
                if (s != REALM_OK) break;
            }
            realm_grammar_state_close(st);
            realm_grammar_release(g);
        }
        free(b.p);
    }
}

/* States of one grammar on several threads, and compilations from several. */
static void *walk_on_thread(void *arg) {
    realm_grammar *g = arg;
    vocabulary w = words[0];
    w.bits = calloc((w.n + 31) / 32, 4);
    char *text = malloc(1 << 16);
    realm_grammar_state *s;
    realm_grammar *own = NULL;
    size_t n;
    assert_int_equal(realm_grammar_state_open(g, &s, NULL), REALM_OK);
    assert_int_equal(realm_grammar_compile(w.v, 0, REALM_GRAMMAR_KIND_REGEX, "[0-9]+", 6, &own, NULL), REALM_OK);
    for (int step = 0; step < 40 && !realm_grammar_state_must_end(s); step++) {
        assert_int_equal(realm_grammar_state_mask(s, w.bits, NULL), REALM_OK);
        realm_token t = 0;
        while (!has(w.bits, t)) t++;
        assert_int_equal(realm_grammar_state_accept(s, &t, 1, &n, NULL), REALM_OK);
    }
    realm_grammar_release(own);
    realm_grammar_state_close(s);
    free(text);
    free(w.bits);
    return NULL;
}

static void threads(void **state) {
    (void)state;
    pthread_t t[6];
    realm_grammar *g = compile(&words[0], REALM_GRAMMAR_KIND_JSON_SCHEMA, schemas[27]);
    for (size_t i = 0; i < REALM_ARRAY_LEN(t); i++) assert_int_equal(pthread_create(&t[i], NULL, walk_on_thread, g), 0);
    for (size_t i = 0; i < REALM_ARRAY_LEN(t); i++) pthread_join(t[i], NULL);
    realm_grammar_release(g);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(schemas_hold), cmocka_unit_test(expressions_hold),
                                       cmocka_unit_test(lark_holds),   cmocka_unit_test(rollback_and_fork),
                                       cmocka_unit_test(ends),         cmocka_unit_test(refused),
                                       cmocka_unit_test(hostile),      cmocka_unit_test(threads),
                                       cmocka_unit_test(blanks)};
    return cmocka_run_group_tests(tests, open_vocabularies, close_vocabularies);
}
