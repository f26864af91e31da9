/* Values of a document: looking around, typed reading with errors that name the way.
 *
 * A realm_json is a node and a pointer to the caller's realm_json of its parent; paths are built only when an error
 * needs one, by walking up.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/str.h"
#include "data/internal.h"

#define PATH_LEVELS (REALM_JSON_DEPTH_MAX + 8u)

static const json_t *node_of(const realm_json *v) { return v->node; }

realm_json_kind realm_json_kind_of(const realm_json *v) {
    const json_t *n = node_of(v);
    if (!n) return REALM_JSON_NONE;
    switch (json_typeof(n)) {
    case JSON_OBJECT: return REALM_JSON_OBJECT;
    case JSON_ARRAY: return REALM_JSON_ARRAY;
    case JSON_STRING: return REALM_JSON_STRING;
    case JSON_INTEGER: return REALM_JSON_INT;
    case JSON_REAL: return REALM_JSON_REAL;
    case JSON_TRUE:
    case JSON_FALSE: return REALM_JSON_BOOL;
    case JSON_NULL: break;
    }
    return REALM_JSON_NULL;
}

const char *realm_json_kind_name(realm_json_kind kind) {
    static const char *const names[] = {"missing",  "null",     "a boolean", "an integer", "a fractional number",
                                        "a string", "an array", "an object"};
    return (size_t)kind < REALM_ARRAY_LEN(names) ? names[kind] : "unknown";
}

size_t realm_json_len(const realm_json *v) {
    const json_t *n = node_of(v);
    return json_is_array(n) ? json_array_size(n) : json_is_object(n) ? json_object_size(n) : 0;
}

bool realm_json_get(const realm_json *object, const char *key, realm_json *out) {
    *out = (realm_json){.doc = object->doc, .up = object, .key = key};
    const json_t *n = node_of(object);
    if (json_is_object(n)) out->node = json_object_get(n, key);
    return out->node != NULL;
}

bool realm_json_get_set(const realm_json *object, const char *key, realm_json *out) {
    if (!realm_json_get(object, key, out)) return false;
    if (json_is_null(node_of(out))) {
        out->node = NULL;
        return false;
    }
    return true;
}

bool realm_json_at(const realm_json *array, size_t index, realm_json *out) {
    *out = (realm_json){.doc = array->doc, .up = array, .index = index};
    const json_t *n = node_of(array);
    if (json_is_array(n)) out->node = json_array_get(n, index);
    return out->node != NULL;
}

bool realm_json_next(const realm_json *object, realm_json_iter *it, realm_json *out) {
    json_t *n = (json_t *)(uintptr_t)object->node; /* jansson's iterators take a mutable object and leave it as it is */
    if (!json_is_object(n)) return false;
    it->at = it->started ? json_object_iter_next(n, it->at) : json_object_iter(n);
    it->started = true;
    if (!it->at) return false;
    *out = (realm_json){
        .doc = object->doc, .node = json_object_iter_value(it->at), .up = object, .key = json_object_iter_key(it->at)};
    return true;
}

const char *realm_json_path(const realm_json *v, char *out, size_t cap) {
    const realm_json *way[PATH_LEVELS];
    size_t n = 0;
    for (; v && v->up && n < PATH_LEVELS; v = v->up) way[n++] = v;
    size_t at = 0;
    if (cap) out[0] = '\0';
    while (n > 0 && at + 1 < cap) {
        const realm_json *step = way[--n];
        int w;
        if (step->key) {
            char name[128];
            realm_escape(name, sizeof name, step->key, strlen(step->key));
            w = snprintf(out + at, cap - at, "%s%s", at ? "." : "", name);
        } else {
            w = snprintf(out + at, cap - at, "[%zu]", step->index);
        }
        at += w < 0 ? 0 : REALM_MIN((size_t)w, cap - at - 1);
    }
    /* A cut may have split a character; error texts are UTF-8. */
    for (size_t i = at; i > 0 && at + 1 >= cap && ((unsigned char)out[i - 1] & 0x80); i--) out[i - 1] = '\0';
    return out;
}

unsigned realm_json_line(const realm_json *v) {
    for (; v && v->doc && v->doc->lines; v = v->up) {
        if (!v->up) return 1;
        for (size_t i = 0; i < v->doc->n_lines; i++) {
            const realm_json_line_entry *e = &v->doc->lines[i];
            if (e->container != v->up->node) continue;
            if (v->key ? e->key && strcmp(e->key, v->key) == 0 : !e->key && e->index == v->index) return e->line;
        }
        /* a member that is not there: the line of the object that lacks it */
    }
    return 0;
}

bool realm_json_is(const realm_json *v, const char *s) {
    const json_t *n = node_of(v);
    size_t len = strlen(s);
    return json_is_string(n) && json_string_length(n) == len && memcmp(json_string_value(n), s, len) == 0;
}

realm_status realm_json_error(const realm_json *v, realm_status code, realm_error *err, const char *fmt, ...) {
    if (!err) return code;
    char path[REALM_JSON_PATH_MAX], text[REALM_ERROR_TEXT_MAX];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    realm_json_path(v, path, sizeof path);
    realm_error_set(err, code, "%s", text);
    if (path[0])
        realm_error_prefix(err, "%s", path);
    else if (!v->doc || !v->doc->lines)
        realm_error_prefix(err, "the document");
    unsigned line = realm_json_line(v);
    if (line) realm_error_prefix(err, "line %u", line);
    return code;
}

static realm_status wrong_kind(const realm_json *v, const char *must, realm_error *err) {
    realm_json_kind k = realm_json_kind_of(v);
    if (k == REALM_JSON_NONE) return realm_json_error(v, REALM_E_NOT_FOUND, err, "is required");
    return realm_json_error(v, REALM_E_INVALID, err, "must be %s, is %s", must, realm_json_kind_name(k));
}

realm_status realm_json_expect(const realm_json *v, realm_json_kind kind, realm_error *err) {
    return realm_json_kind_of(v) == kind ? REALM_OK : wrong_kind(v, realm_json_kind_name(kind), err);
}

realm_status realm_json_str(const realm_json *v, const char **s, size_t *len, realm_error *err) {
    const json_t *n = node_of(v);
    if (!json_is_string(n)) return wrong_kind(v, "a string", err);
    *s = json_string_value(n);
    if (len) *len = json_string_length(n);
    return REALM_OK;
}

realm_status realm_json_cstr(const realm_json *v, const char **s, realm_error *err) {
    const char *text = "";
    size_t len = 0;
    realm_status st = realm_json_str(v, &text, &len, err);
    if (st != REALM_OK) return st;
    if (memchr(text, '\0', len)) return realm_json_error(v, REALM_E_INVALID, err, "must not contain U+0000");
    *s = text;
    return REALM_OK;
}

realm_status realm_json_bool(const realm_json *v, bool *out, realm_error *err) {
    const json_t *n = node_of(v);
    if (!json_is_boolean(n)) return wrong_kind(v, "a boolean", err);
    *out = json_is_true(n);
    return REALM_OK;
}

realm_status realm_json_int(const realm_json *v, int64_t least, int64_t most, int64_t *out, realm_error *err) {
    const json_t *n = node_of(v);
    if (json_is_real(n) && fabs(json_real_value(n)) >= 0x1p63) /* 2^63 and more are no 64-bit integers */
        return realm_json_error(v, REALM_E_RANGE, err, "must be from %lld to %lld, is %g", (long long)least,
                                (long long)most, json_real_value(n));
    if (!json_is_integer(n)) return wrong_kind(v, "an integer", err);
    int64_t i = json_integer_value(n);
    if (i < least || i > most) {
        if (most == INT64_MAX)
            return realm_json_error(v, REALM_E_RANGE, err, "must be at least %lld, is %lld", (long long)least,
                                    (long long)i);
        return realm_json_error(v, REALM_E_RANGE, err, "must be from %lld to %lld, is %lld", (long long)least,
                                (long long)most, (long long)i);
    }
    *out = i;
    return REALM_OK;
}

realm_status realm_json_real(const realm_json *v, double least, double most, double *out, realm_error *err) {
    const json_t *n = node_of(v);
    if (!json_is_number(n)) return wrong_kind(v, "a number", err);
    double d = json_number_value(n);
    /* written so that a NaN, which no parser lets in, would be refused too */
    if (!(d >= least && d <= most))
        return realm_json_error(v, REALM_E_RANGE, err, "must be from %g to %g, is %g", least, most, d);
    *out = d;
    return REALM_OK;
}

realm_status realm_json_enum(const realm_json *v, const char *const *names, size_t n, size_t *out, realm_error *err) {
    const char *s = "";
    size_t len = 0;
    realm_status st = realm_json_str(v, &s, &len, err);
    if (st != REALM_OK) return st;
    char list[256] = "";
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        if (realm_json_is(v, names[i])) {
            *out = i;
            return REALM_OK;
        }
        int w = snprintf(list + at, sizeof list - at, "%s'%s'", i ? ", " : "", names[i]);
        at += w < 0 ? 0 : REALM_MIN((size_t)w, sizeof list - at - 1);
    }
    char is[64];
    return realm_json_error(v, REALM_E_RANGE, err, "must be one of %s, is '%s'", list,
                            realm_escape(is, sizeof is, s, len));
}

static realm_status member(const realm_json *object, const char *key, realm_json *out, bool *there, realm_error *err) {
    realm_status s = realm_json_expect(object, REALM_JSON_OBJECT, err);
    if (s != REALM_OK) return s;
    *there = realm_json_get_set(object, key, out);
    return REALM_OK;
}

realm_status realm_json_opt_bool(const realm_json *object, const char *key, bool *out, realm_error *err) {
    realm_json v;
    bool there;
    realm_status s = member(object, key, &v, &there, err);
    return s == REALM_OK && there ? realm_json_bool(&v, out, err) : s;
}

realm_status realm_json_opt_int(const realm_json *object, const char *key, int64_t least, int64_t most, int64_t *out,
                                realm_error *err) {
    realm_json v;
    bool there;
    realm_status s = member(object, key, &v, &there, err);
    return s == REALM_OK && there ? realm_json_int(&v, least, most, out, err) : s;
}

realm_status realm_json_opt_real(const realm_json *object, const char *key, double least, double most, double *out,
                                 realm_error *err) {
    realm_json v;
    bool there;
    realm_status s = member(object, key, &v, &there, err);
    return s == REALM_OK && there ? realm_json_real(&v, least, most, out, err) : s;
}

realm_status realm_json_opt_cstr(const realm_json *object, const char *key, const char **out, realm_error *err) {
    realm_json v;
    bool there;
    realm_status s = member(object, key, &v, &there, err);
    return s == REALM_OK && there ? realm_json_cstr(&v, out, err) : s;
}

realm_status realm_json_only(const realm_json *object, const char *const *names, size_t n, realm_json *unknown,
                             realm_error *err) {
    realm_status s = realm_json_expect(object, REALM_JSON_OBJECT, err);
    if (s != REALM_OK) return s;
    realm_json_iter it = {0};
    realm_json v;
    while (realm_json_next(object, &it, &v)) {
        size_t i = 0;
        while (i < n && strcmp(v.key, names[i]) != 0) i++;
        if (i < n) continue;
        if (unknown) *unknown = v;
        return realm_json_error(&v, REALM_E_UNSUPPORTED, err, "unknown key");
    }
    return REALM_OK;
}
