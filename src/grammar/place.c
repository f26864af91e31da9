/* grammar/place.c - looks at a text before the library does, and says where a schema is wrong.
 *
 * The library recurses into brackets and definitions; how deep a text can take it is bounded here by a scan that does
 * not recurse: depth and number of values in JSON (whose faults are otherwise the library's to report), the number of
 * definitions and of opening brackets in Lark, whose strings and expressions are not told apart for that.
 *
 * The library does not say where in a schema something is wrong. That is found by trying: without a member the library
 * says the same again unless the fault lies in that member; then the search goes on inside it, or inside the definition
 * that it refers to. Each step costs a compilation, so their number and time are bounded; a path cut short by that is
 * shorter, not wrong.
 */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "grammar/internal.h"

#define TRIES_MAX 200u
#define JUMPS_MAX 8u /* references may go round */

/* ---- a scan over JSON ------------------------------------------------------------------------------------------- */

typedef struct json_scan {
    const char *p, *end;
} json_scan;

static void skip_blank(json_scan *s) {
    while (s->p < s->end && (*s->p == ' ' || *s->p == '\t' || *s->p == '\n' || *s->p == '\r')) s->p++;
}

/* From the opening quote to behind the closing one. */
static void skip_string(json_scan *s) {
    for (s->p++; s->p < s->end && *s->p != '"'; s->p++)
        if (*s->p == '\\' && s->p + 1 < s->end) s->p++;
    if (s->p < s->end) s->p++;
}

/* Over one value of any depth, as far as brackets and strings go; malformed text gives some end. */
static void skip_value(json_scan *s) {
    size_t depth = 0;
    skip_blank(s);
    do {
        if (s->p == s->end) return;
        char c = *s->p;
        if (c == '"') {
            skip_string(s);
            continue;
        }
        if (c == '{' || c == '[') depth++;
        if (c == '}' || c == ']') {
            if (depth == 0) return;
            depth--;
        }
        if (depth == 0 && (c == ',' || c == ':')) return;
        s->p++;
    } while (depth > 0 || (s->p < s->end && !strchr(",:]} \t\r\n", *s->p)));
}

static realm_status check_json(const char *text, size_t len, realm_error *err) {
    json_scan s = {text, text + len};
    size_t depth = 0, values = 0;
    while (s.p < s.end) {
        char c = *s.p;
        if (c == '"') {
            skip_string(&s);
            continue;
        }
        if (c == '{' || c == '[') depth++;
        if ((c == '}' || c == ']') && depth > 0) depth--;
        if (c == '{' || c == '[' || c == ',') values++;
        if (depth > REALM_GRAMMAR_DEPTH_MAX)
            return realm_error_set(err, REALM_E_LIMIT, "the schema is nested deeper than %u levels at byte %zu",
                                   REALM_GRAMMAR_DEPTH_MAX, (size_t)(s.p - text));
        if (values > REALM_GRAMMAR_VALUES_MAX)
            return realm_error_set(err, REALM_E_LIMIT, "the schema has more than %u values at byte %zu",
                                   REALM_GRAMMAR_VALUES_MAX, (size_t)(s.p - text));
        s.p++;
    }
    return REALM_OK;
}

static realm_status check_lark(const char *text, size_t len, realm_error *err) {
    static const char counted[] = ":([{";
    size_t count[sizeof counted - 1] = {0};
    for (size_t i = 0; i < len; i++) {
        const char *c = memchr(counted, text[i], sizeof counted - 1);
        if (c && ++count[c - counted] > REALM_GRAMMAR_DEFS_MAX)
            return realm_error_set(err, REALM_E_LIMIT, "the grammar has more than %u of '%c' at byte %zu",
                                   REALM_GRAMMAR_DEFS_MAX, *c, i);
    }
    return REALM_OK;
}

realm_status grammar_check_text(realm_grammar_kind kind, const char *text, size_t len, realm_error *err) {
    switch (kind) {
    case REALM_GRAMMAR_KIND_JSON_SCHEMA: return check_json(text, len, err);
    case REALM_GRAMMAR_KIND_LARK: return check_lark(text, len, err);
    case REALM_GRAMMAR_KIND_REGEX: break; /* the parser of expressions has a nesting limit of its own */
    }
    return REALM_OK;
}

/* ---- the place of an error -------------------------------------------------------------------------------------- */

typedef struct member { /* of an object or array */
    const char *key;    /* NULL in an array */
    size_t key_len, index;
    const char *value;
    size_t value_len;
} member;

/* The next member behind s; false at the end. */
static bool next_member(json_scan *s, bool object, size_t index, member *m) {
    skip_blank(s);
    if (s->p < s->end && *s->p == ',') s->p++;
    skip_blank(s);
    if (s->p >= s->end || *s->p == '}' || *s->p == ']') return false;
    *m = (member){.index = index};
    if (object) {
        if (*s->p != '"') return false;
        m->key = s->p + 1;
        skip_string(s);
        m->key_len = (size_t)(s->p - m->key) - 1;
        skip_blank(s);
        if (s->p >= s->end || *s->p != ':') return false;
        s->p++;
        skip_blank(s);
    }
    m->value = s->p;
    skip_value(s);
    m->value_len = (size_t)(s->p - m->value);
    return m->value_len > 0;
}

typedef enum verdict { SAME, OTHER, NOTHING } verdict;

/* What the library says of the text without this member (an element of an array is replaced by `true`). */
static verdict without(const realm_grammar_vocab *v, const char *text, size_t len, const member *m, char *scratch,
                       const char *refused) {
    size_t from = (size_t)((m->key ? m->key - 1 : m->value) - text), to = (size_t)(m->value - text) + m->value_len;
    if (m->key) { /* with the comma behind it, or the one before it */
        json_scan s = {text + to, text + len};
        skip_blank(&s);
        if (s.p < s.end && *s.p == ',') {
            to = (size_t)(s.p - text) + 1;
        } else {
            while (from > 0 && strchr(" \t\r\n", text[from - 1])) from--;
            from -= from > 0 && text[from - 1] == ',';
        }
    }
    size_t at = from;
    memcpy(scratch, text, from);
    if (!m->key) {
        memcpy(scratch + at, "true", 4);
        at += 4;
    }
    memcpy(scratch + at, text + to, len - to);
    scratch[at + len - to] = 0;
    LlgMatcher *trial = grammar_build(v, REALM_GRAMMAR_KIND_JSON_SCHEMA, scratch);
    const char *now = llg_matcher_get_error(trial);
    if (!now && llg_matcher_compute_mask(trial) != 0) now = llg_matcher_get_error(trial);
    const verdict said = !now ? NOTHING : strcmp(now, refused) != 0 ? OTHER : SAME;
    llg_free_matcher(trial);
    return said;
}

/* Appends "/key" as RFC 6901 writes it; false when there is no room. */
static bool extend_path(char *path, size_t size, const member *m) {
    size_t at = strlen(path);
    if (!m->key) return (size_t)snprintf(path + at, size - at, "/%zu", m->index) < size - at;
    if (at + 2 + 2 * m->key_len > size) return false;
    path[at++] = '/';
    for (size_t i = 0; i < m->key_len; i++) {
        const char c = m->key[i];
        if (c == '~' || c == '/') path[at++] = '~';
        path[at++] = c == '~' ? '0' : c == '/' ? '1' : c;
    }
    path[at] = 0;
    return true;
}

/* The value that a reference like "#/$defs/a" names; false where it names none. */
static bool follow(const char *text, size_t len, const char *ref, size_t ref_len, json_scan *out) {
    json_scan s = {text, text + len};
    size_t at = 1;
    if (ref_len == 0 || ref[0] != '#') return false;
    for (skip_blank(&s); at < ref_len; at++) {
        const char *name = ref + at + 1;
        const char *slash = memchr(name, '/', ref_len - at - 1);
        const size_t n = slash ? (size_t)(slash - name) : ref_len - at - 1;
        member m = {0};
        bool found = false;
        if (ref[at] != '/' || s.p >= s.end || *s.p != '{') return false;
        s.p++;
        for (size_t i = 0; !found && next_member(&s, true, i, &m); i++)
            found = m.key_len == n && memcmp(m.key, name, n) == 0;
        if (!found) return false;
        s = (json_scan){m.value, m.value + m.value_len};
        at += n;
    }
    *out = s;
    return true;
}

typedef struct search {
    const realm_grammar_vocab *v;
    const char *text, *refused;
    size_t len;
    char *scratch;
    unsigned tries;
    uint64_t deadline_ns;
} search;

/* The member of the value at `s` that the refusal is about: one without which nothing is refused, or else the first
 * without which something else is. */
static bool find_member(search *f, json_scan s, member *out) {
    const bool object = *s.p == '{';
    bool found = false;
    member m;
    s.p++;
    for (size_t i = 0; next_member(&s, object, i, &m); i++) {
        if (++f->tries > TRIES_MAX || realm_clock_ns() + 200 * REALM_NS_PER_MS > f->deadline_ns) break;
        verdict said = without(f->v, f->text, f->len, &m, f->scratch, f->refused);
        if (said == SAME || (said == OTHER && found)) continue;
        *out = m;
        found = true;
        if (said == NOTHING) break;
    }
    return found;
}

void grammar_find_path(const realm_grammar_vocab *v, const char *text, size_t len, const char *refused,
                       uint64_t deadline_ns, char *path, size_t path_size) {
    json_scan s = {text, text + len}, target;
    char *same = realm_strdup(refused); /* the library's text goes with the matcher */
    search f = {v, text, same, len, realm_malloc(len + 8), 0, deadline_ns};
    member m;
    unsigned jumped = 0;
    snprintf(path, path_size, "#");
    skip_blank(&s);
    while (f.scratch && same && s.p < s.end && (*s.p == '{' || *s.p == '[') && find_member(&f, s, &m)) {
        static const char ref[] = "$ref";
        const bool jumps = m.key && m.key_len == sizeof ref - 1 && memcmp(m.key, ref, sizeof ref - 1) == 0 &&
                           m.value_len > 2 && m.value_len < path_size &&
                           follow(text, len, m.value + 1, m.value_len - 2, &target) && ++jumped <= JUMPS_MAX;
        if (jumps) {
            snprintf(path, path_size, "%.*s", (int)m.value_len - 2, m.value + 1);
            s = target;
            continue;
        }
        if (!extend_path(path, path_size, &m)) break;
        s = (json_scan){m.value, m.value + m.value_len};
    }
    realm_free(same);
    realm_free(f.scratch);
}
