/* YAML text to the same tree, for the configuration file.
 *
 * libyaml's events are turned into jansson nodes; each member and element leaves its line in the document's table. The
 * core schema of YAML 1.2 decides what a plain scalar is, so `127.0.0.1:8080` and `yes` are strings and `0x10` is 16.
 * An alias shares the anchored node; the sum of all expanded sizes is bounded, which is what stops a billion laughs
 * (the tree itself stays small, but whoever walks it does not). libyaml has no hook for its own allocations: they are
 * bounded by the text's size and freed before this returns.
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "base/alloc.h"
#include "base/str.h"
#include "data/internal.h"

typedef struct anchor {
    char *name;
    json_t *node; /* owned reference */
    size_t size;  /* values in it, aliases expanded */
    unsigned height;
} anchor;

typedef struct reader {
    yaml_parser_t parser;
    realm_json_doc *doc;
    anchor *anchors;
    size_t n_anchors, n_aliases;
    size_t values; /* expanded so far */
    realm_error *err;
    realm_status status;
} reader;

/* A node just read: its reference is the holder's. */
typedef struct built {
    json_t *node;
    size_t size;
    unsigned height, line;
} built;

static bool fail(reader *r, realm_status code, size_t line0, size_t column0, const char *what) {
    if (r->status == REALM_OK)
        r->status = realm_error_set(r->err, code, "line %zu, column %zu: %s", line0 + 1, column0 + 1, what);
    return false;
}
static bool fail_at(reader *r, realm_status code, const yaml_event_t *e, const char *what) {
    return fail(r, code, e->start_mark.line, e->start_mark.column, what);
}
static bool no_memory(reader *r) {
    if (r->status == REALM_OK) r->status = realm_error_set(r->err, REALM_E_NOMEM, "out of memory");
    return false;
}

static bool next_event(reader *r, yaml_event_t *e) {
    if (yaml_parser_parse(&r->parser, e)) return true;
    const yaml_parser_t *p = &r->parser;
    if (p->error == YAML_MEMORY_ERROR) return no_memory(r);
    char what[256];
    const char *problem = p->problem ? p->problem : "not YAML";
    realm_escape(what, sizeof what, problem, strlen(problem));
    return fail(r, REALM_E_FORMAT, p->problem_mark.line, p->problem_mark.column, what);
}

static bool add_line(reader *r, const json_t *container, const char *key, size_t index, unsigned line) {
    realm_json_doc *d = r->doc;
    if (d->n_lines == d->cap_lines) {
        size_t cap = d->cap_lines ? d->cap_lines * 2 : 64;
        realm_json_line_entry *p = realm_realloc_array(d->lines, cap, sizeof *p);
        if (!p) return no_memory(r);
        d->lines = p;
        d->cap_lines = cap;
    }
    d->lines[d->n_lines++] = (realm_json_line_entry){container, key, index, line};
    return true;
}

/* [-+]?[0-9]+ */
static bool is_decimal(const char *s) {
    if (*s == '-' || *s == '+') s++;
    return *s && strspn(s, "0123456789") == strlen(s);
}

/* [-+]? ( \. [0-9]+ | [0-9]+ ( \. [0-9]* )? ) ( [eE] [-+]? [0-9]+ )? */
static bool is_real(const char *s) {
    if (*s == '-' || *s == '+') s++;
    size_t whole = strspn(s, "0123456789"), fraction = 0;
    s += whole;
    if (*s == '.') {
        fraction = strspn(s + 1, "0123456789");
        s += 1 + fraction;
    }
    if (whole + fraction == 0) return false;
    if (*s == 'e' || *s == 'E') {
        s++;
        if (*s == '-' || *s == '+') s++;
        size_t digits = strspn(s, "0123456789");
        if (!digits) return false;
        s += digits;
    }
    return *s == '\0';
}

static bool is_word(const char *s, const char *a, const char *b, const char *c) {
    return strcmp(s, a) == 0 || strcmp(s, b) == 0 || strcmp(s, c) == 0;
}

/* What a plain scalar is (YAML 1.2.2, section 10.3.2). */
static json_t *plain(reader *r, const yaml_event_t *e) {
    const char *s = (const char *)e->data.scalar.value;
    size_t len = e->data.scalar.length;
    if (len == 0 || strcmp(s, "~") == 0 || is_word(s, "null", "Null", "NULL")) return json_null();
    if (is_word(s, "true", "True", "TRUE")) return json_true();
    if (is_word(s, "false", "False", "FALSE")) return json_false();
    int base = is_decimal(s)                                                                               ? 10
               : strncmp(s, "0x", 2) == 0 && len > 2 && strspn(s + 2, "0123456789abcdefABCDEF") == len - 2 ? 16
               : strncmp(s, "0o", 2) == 0 && len > 2 && strspn(s + 2, "01234567") == len - 2               ? 8
                                                                                                           : 0;
    if (base) {
        errno = 0;
        long long v = strtoll(base == 8 || base == 16 ? s + 2 : s, NULL, base);
        if (errno == ERANGE) {
            fail_at(r, REALM_E_FORMAT, e, "integer does not fit 64 bits");
            return NULL;
        }
        return json_integer(v);
    }
    if (is_real(s)) {
        double d = strtod(s, NULL);
        if (!isfinite(d)) {
            fail_at(r, REALM_E_FORMAT, e, "number too large");
            return NULL;
        }
        return json_real(d);
    }
    const char *u = *s == '-' || *s == '+' ? s + 1 : s;
    if (is_word(u, ".inf", ".Inf", ".INF") || is_word(s, ".nan", ".NaN", ".NAN")) {
        fail_at(r, REALM_E_FORMAT, e, "infinities and NaN are not accepted");
        return NULL;
    }
    return json_stringn(s, len);
}

static bool read_node(reader *r, yaml_event_t *e, unsigned depth, built *out);

static bool read_sequence(reader *r, unsigned depth, built *out) {
    for (;;) {
        yaml_event_t e;
        if (!next_event(r, &e)) return false;
        bool end = e.type == YAML_SEQUENCE_END_EVENT, ok = true;
        built item = {0};
        if (!end) ok = read_node(r, &e, depth + 1, &item);
        yaml_event_delete(&e);
        if (end) return true;
        if (!ok) return false;
        if (json_array_append_new(out->node, item.node) != 0) return no_memory(r);
        if (!add_line(r, out->node, NULL, json_array_size(out->node) - 1, item.line)) return false;
        out->size += item.size;
        out->height = REALM_MAX(out->height, item.height + 1);
    }
}

static bool read_pair(reader *r, const yaml_event_t *key, unsigned depth, built *out) {
    if (key->type != YAML_SCALAR_EVENT || key->data.scalar.tag || key->data.scalar.anchor)
        return fail_at(r, REALM_E_FORMAT, key, "keys must be plain strings");
    const char *name = (const char *)key->data.scalar.value;
    char what[160], shown[96];
    realm_escape(shown, sizeof shown, name, key->data.scalar.length);
    if (strlen(name) != key->data.scalar.length) return fail_at(r, REALM_E_FORMAT, key, "U+0000 in a key");
    if (strcmp(name, "<<") == 0 && key->data.scalar.plain_implicit)
        return fail_at(r, REALM_E_FORMAT, key, "merge keys are not supported");
    if (json_object_get(out->node, name)) {
        (void)snprintf(what, sizeof what, "duplicate key '%s'", shown);
        return fail_at(r, REALM_E_FORMAT, key, what);
    }
    yaml_event_t e;
    if (!next_event(r, &e)) return false;
    built value = {0};
    bool ok = read_node(r, &e, depth + 1, &value);
    yaml_event_delete(&e);
    if (!ok) return false;
    if (json_object_set_new(out->node, name, value.node) != 0) return no_memory(r);
    out->size += value.size;
    out->height = REALM_MAX(out->height, value.height + 1);
    const char *kept = json_object_iter_key(json_object_iter_at(out->node, name));
    return add_line(r, out->node, kept, 0, (unsigned)key->start_mark.line + 1);
}

static bool read_mapping(reader *r, unsigned depth, built *out) {
    for (;;) {
        yaml_event_t e;
        if (!next_event(r, &e)) return false;
        bool end = e.type == YAML_MAPPING_END_EVENT;
        bool ok = end || read_pair(r, &e, depth, out);
        yaml_event_delete(&e);
        if (end || !ok) return ok;
    }
}

static bool read_alias(reader *r, const yaml_event_t *e, unsigned depth, built *out) {
    if (++r->n_aliases > REALM_YAML_ALIASES_MAX) return fail_at(r, REALM_E_LIMIT, e, "too many aliases");
    const char *name = (const char *)e->data.alias.anchor;
    for (size_t i = r->n_anchors; i-- > 0;) { /* the latest of that name */
        const anchor *a = &r->anchors[i];
        if (strcmp(a->name, name) != 0) continue;
        if (depth + a->height > REALM_JSON_DEPTH_MAX) return fail_at(r, REALM_E_LIMIT, e, "nested too deep");
        out->node = json_incref(a->node);
        out->size = a->size;
        out->height = a->height;
        return true;
    }
    /* also an anchor inside its own node: it is known only once the node is complete */
    return fail_at(r, REALM_E_FORMAT, e, "alias of an unknown anchor");
}

static bool keep_anchor(reader *r, const yaml_char_t *name, const built *b) {
    if (!name) return true;
    if (r->n_anchors >= REALM_YAML_ALIASES_MAX) return fail(r, REALM_E_LIMIT, b->line - 1, 0, "too many anchors");
    char *copy = realm_strdup((const char *)name);
    if (!copy) return no_memory(r);
    r->anchors[r->n_anchors++] = (anchor){copy, json_incref(b->node), b->size, b->height};
    return true;
}

/* On success out->node is the caller's; on failure nothing is left behind. */
static bool read_node(reader *r, yaml_event_t *e, unsigned depth, built *out) {
    *out = (built){.size = 1, .line = (unsigned)e->start_mark.line + 1};
    if (depth > REALM_JSON_DEPTH_MAX) return fail_at(r, REALM_E_LIMIT, e, "nested too deep");
    const yaml_char_t *name = NULL, *tag = NULL;
    bool ok = true;
    switch (e->type) {
    case YAML_ALIAS_EVENT: ok = read_alias(r, e, depth, out); break;
    case YAML_SCALAR_EVENT:
        name = e->data.scalar.anchor;
        tag = e->data.scalar.tag;
        if (tag) break;
        out->node = e->data.scalar.plain_implicit
                        ? plain(r, e)
                        : json_stringn((const char *)e->data.scalar.value, e->data.scalar.length);
        ok = out->node != NULL;
        break;
    case YAML_SEQUENCE_START_EVENT:
        name = e->data.sequence_start.anchor;
        tag = e->data.sequence_start.tag;
        if (tag) break;
        out->height = 1;
        out->node = json_array();
        ok = out->node && read_sequence(r, depth, out);
        break;
    case YAML_MAPPING_START_EVENT:
        name = e->data.mapping_start.anchor;
        tag = e->data.mapping_start.tag;
        if (tag) break;
        out->height = 1;
        out->node = json_object();
        ok = out->node && read_mapping(r, depth, out);
        break;
    default: return fail_at(r, REALM_E_FORMAT, e, "a value was expected");
    }
    if (tag) return fail_at(r, REALM_E_FORMAT, e, "tags are not supported");
    if (!ok && !out->node && r->status == REALM_OK) no_memory(r);
    /* containers were counted by their children; this adds the node itself, and an alias's whole expansion */
    r->values += e->type == YAML_ALIAS_EVENT ? out->size : 1;
    if (ok && r->values > REALM_JSON_VALUES_MAX) ok = fail_at(r, REALM_E_LIMIT, e, "too many values");
    if (ok) ok = keep_anchor(r, name, out);
    if (!ok) {
        json_decref(out->node);
        out->node = NULL;
    }
    return ok;
}

static bool read_document(reader *r) {
    bool seen = false;
    for (;;) {
        yaml_event_t e;
        if (!next_event(r, &e)) return false;
        bool end = false, ok = true;
        switch (e.type) {
        case YAML_STREAM_END_EVENT: end = true; break;
        case YAML_DOCUMENT_START_EVENT:
            if (seen) ok = fail_at(r, REALM_E_FORMAT, &e, "a second document");
            break;
        case YAML_STREAM_START_EVENT:
        case YAML_DOCUMENT_END_EVENT:
        case YAML_NO_EVENT: break;
        default: {
            built root;
            ok = read_node(r, &e, 1, &root);
            if (ok) r->doc->root = root.node;
            seen = true;
        }
        }
        yaml_event_delete(&e);
        if (end || !ok) return ok;
    }
}

realm_status realm_yaml_parse(realm_json_doc **out, const char *text, size_t len, realm_error *err) {
    *out = NULL;
    if (len > REALM_YAML_BYTES_MAX)
        return realm_error_set(err, REALM_E_LIMIT, "%zu bytes, at most %u are read", len, REALM_YAML_BYTES_MAX);
    reader r = {.err = err};
    bool parser = false;
    r.doc = realm_json_doc_new();
    r.anchors = realm_calloc(REALM_YAML_ALIASES_MAX, sizeof *r.anchors);
    if (r.doc && r.anchors) parser = yaml_parser_initialize(&r.parser);
    if (!parser || !add_line(&r, NULL, NULL, 0, 1)) { /* one entry always: it marks the document as YAML */
        no_memory(&r);
        goto done;
    }
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, len);
    yaml_parser_set_encoding(&r.parser, YAML_UTF8_ENCODING);
    if (!read_document(&r)) goto done;
    if (!r.doc->root || json_is_null(r.doc->root)) {
        json_decref(r.doc->root);
        r.doc->root = json_object();
        if (!r.doc->root) no_memory(&r);
    }
done:
    if (parser) yaml_parser_delete(&r.parser);
    for (size_t i = 0; i < r.n_anchors; i++) {
        json_decref(r.anchors[i].node);
        realm_free(r.anchors[i].name);
    }
    realm_free(r.anchors);
    if (r.status != REALM_OK)
        realm_json_doc_close(r.doc);
    else
        *out = r.doc;
    return r.status;
}
