/* JSON out: the streaming writer, and a sub-tree as text.
 *
 * Both append to a realm_buf, whose failure state (its maximum, no memory) is looked at once at the end. Escapes are
 * the least that RFC 8259 asks for: quote, backslash and controls; everything else is UTF-8 as it is, so an SSE line
 * never holds a line break.
 */
#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "data/internal.h"

void realm_json_escape(realm_buf *out, const char *s, size_t len) {
    static const char hex[] = "0123456789abcdef";
    size_t from = 0, i = 0;
    while (i < len) {
        unsigned char c = (unsigned char)s[i];
        if (c >= 0x20 && c < 0x80 && c != '"' && c != '\\') {
            i++;
            continue;
        }
        if (c >= 0x80) {
            size_t n = realm_utf8_decode(s + i, len - i, NULL);
            if (n) {
                i += n;
                continue;
            }
        }
        if (i > from) realm_buf_append(out, s + from, i - from);
        char esc[6] = {'\\', 0};
        size_t n = 2;
        switch (c) {
        case '"': esc[1] = '"'; break;
        case '\\': esc[1] = '\\'; break;
        case '\b': esc[1] = 'b'; break;
        case '\f': esc[1] = 'f'; break;
        case '\n': esc[1] = 'n'; break;
        case '\r': esc[1] = 'r'; break;
        case '\t': esc[1] = 't'; break;
        default:
            if (c < 0x20) {
                memcpy(esc, "\\u00", 4);
                esc[4] = hex[c >> 4];
                esc[5] = hex[c & 15];
                n = 6;
            } else { /* malformed byte: U+FFFD */
                memcpy(esc, "\xEF\xBF\xBD", 3);
                n = 3;
            }
        }
        realm_buf_append(out, esc, n);
        from = ++i;
    }
    if (len > from) realm_buf_append(out, s + from, len - from);
}

/* Shortest of the precisions least..17 that reads back as the same value; a radix character that a locale changed is
 * set right. Always with a fraction or exponent, so that it stays a real. */
static void real_text(realm_buf *out, double v, bool single) {
    char t[40];
    for (int digits = single ? 6 : 15; digits <= 17; digits++) {
        snprintf(t, sizeof t, "%.*g", digits, v);
        double back = strtod(t, NULL);
        if (single ? (float)back == (float)v : back == v) break;
    }
    bool real = false;
    for (char *p = t; *p; p++) {
        if (*p == 'e') real = true;
        if (strchr("0123456789-+e", *p)) continue;
        *p = '.';
        real = true;
    }
    realm_buf_puts(out, t);
    if (!real) realm_buf_puts(out, ".0");
}

static void quoted(realm_buf *out, const char *s, size_t len) {
    realm_buf_putc(out, '"');
    realm_json_escape(out, s, len);
    realm_buf_putc(out, '"');
}

/* Depth is bounded by the parsers. */
static void dump(const json_t *n, realm_buf *out) {
    switch (json_typeof(n)) {
    case JSON_NULL: realm_buf_puts(out, "null"); return;
    case JSON_TRUE: realm_buf_puts(out, "true"); return;
    case JSON_FALSE: realm_buf_puts(out, "false"); return;
    case JSON_INTEGER: realm_buf_printf(out, "%" JSON_INTEGER_FORMAT, json_integer_value(n)); return;
    case JSON_REAL: real_text(out, json_real_value(n), false); return;
    case JSON_STRING: quoted(out, json_string_value(n), json_string_length(n)); return;
    case JSON_ARRAY:
        realm_buf_putc(out, '[');
        for (size_t i = 0; i < json_array_size(n); i++) {
            if (i) realm_buf_putc(out, ',');
            dump(json_array_get(n, i), out);
        }
        realm_buf_putc(out, ']');
        return;
    case JSON_OBJECT: break;
    }
    json_t *o = (json_t *)(uintptr_t)n; /* jansson's iterators take a mutable object and leave it as it is */
    bool first = true;
    realm_buf_putc(out, '{');
    for (void *it = json_object_iter(o); it; it = json_object_iter_next(o, it)) {
        if (!first) realm_buf_putc(out, ',');
        first = false;
        const char *key = json_object_iter_key(it);
        quoted(out, key, strlen(key));
        realm_buf_putc(out, ':');
        dump(json_object_iter_value(it), out);
    }
    realm_buf_putc(out, '}');
}

realm_status realm_json_dump(const realm_json *v, realm_buf *out) {
    if (v->node)
        dump(v->node, out);
    else
        realm_buf_puts(out, "null");
    return realm_buf_status(out);
}

/* ---- the writer ---- */

void realm_json_writer_init(realm_json_writer *w, realm_buf *out) { *w = (realm_json_writer){.out = out}; }

static void before_value(realm_json_writer *w) {
    if (w->after_key) {
        w->after_key = false;
        return;
    }
    if (w->depth == 0) return;
    uint64_t bit = UINT64_C(1) << (w->depth - 1);
    if (w->comma & bit) realm_buf_putc(w->out, ',');
    w->comma |= bit;
}

static void begin(realm_json_writer *w, char c) {
    before_value(w);
    assert(w->depth < REALM_JSON_DEPTH_MAX);
    realm_buf_putc(w->out, c);
    w->comma &= ~(UINT64_C(1) << w->depth);
    w->depth++;
}

static void end(realm_json_writer *w, char c) {
    assert(w->depth > 0 && !w->after_key);
    w->depth--;
    realm_buf_putc(w->out, c);
}

void realm_json_begin_object(realm_json_writer *w) { begin(w, '{'); }
void realm_json_end_object(realm_json_writer *w) { end(w, '}'); }
void realm_json_begin_array(realm_json_writer *w) { begin(w, '['); }
void realm_json_end_array(realm_json_writer *w) { end(w, ']'); }

void realm_json_key(realm_json_writer *w, const char *key) {
    assert(w->depth > 0 && !w->after_key);
    before_value(w);
    quoted(w->out, key, strlen(key));
    realm_buf_putc(w->out, ':');
    w->after_key = true;
}

void realm_json_write_str(realm_json_writer *w, const char *s, size_t len) {
    before_value(w);
    quoted(w->out, s, len);
}

void realm_json_write_cstr(realm_json_writer *w, const char *s) {
    if (s)
        realm_json_write_str(w, s, strlen(s));
    else
        realm_json_write_null(w);
}

void realm_json_write_int(realm_json_writer *w, int64_t v) {
    before_value(w);
    realm_buf_printf(w->out, "%lld", (long long)v);
}

void realm_json_write_uint(realm_json_writer *w, uint64_t v) {
    before_value(w);
    realm_buf_printf(w->out, "%llu", (unsigned long long)v);
}

void realm_json_write_real(realm_json_writer *w, double v) {
    if (!isfinite(v)) {
        realm_json_write_null(w);
        return;
    }
    before_value(w);
    real_text(w->out, v, false);
}

void realm_json_write_float(realm_json_writer *w, float v) {
    if (!isfinite(v)) {
        realm_json_write_null(w);
        return;
    }
    before_value(w);
    real_text(w->out, (double)v, true);
}

void realm_json_write_bool(realm_json_writer *w, bool v) {
    before_value(w);
    realm_buf_puts(w->out, v ? "true" : "false");
}

void realm_json_write_null(realm_json_writer *w) {
    before_value(w);
    realm_buf_puts(w->out, "null");
}

void realm_json_write_raw(realm_json_writer *w, const char *json, size_t len) {
    before_value(w);
    realm_buf_append(w->out, json, len);
}

void realm_json_write_value(realm_json_writer *w, const realm_json *v) {
    before_value(w);
    if (v->node)
        dump(v->node, w->out);
    else
        realm_buf_puts(w->out, "null");
}
