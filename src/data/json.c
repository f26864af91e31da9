/* JSON text to tree.
 *
 * jansson does the grammar (UTF-8, duplicate keys, number overflow, trailing bytes). What it lacks is done in one pass
 * over the bytes before it: depth (its own limit is 2,048) and number of values, so that a body of "[[[[..." or
 * "[0,0,0,..." is refused before it costs memory forty times its size.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "base/str.h"
#include "data/internal.h"

/* jansson reports a failed allocation inside its scanner as whatever token it then did not see; this remembers what it
 * really was, so that a good request is never called malformed. */
static _Thread_local bool memory_ran_out;

static void *counted_malloc(size_t size) {
    void *p = realm_malloc(size);
    if (!p) memory_ran_out = true;
    return p;
}

static void set_alloc(void) {
    json_malloc_t m;
    json_free_t f;
    json_get_alloc_funcs(&m, &f);
    /* A program that embeds Realm and has set its own functions keeps them. */
    if (m == malloc && f == free) json_set_alloc_funcs(counted_malloc, realm_free);
}

void realm_json_library_init(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    (void)pthread_once(&once, set_alloc);
}

realm_json_doc *realm_json_doc_new(void) {
    realm_json_library_init();
    return realm_calloc(1, sizeof(realm_json_doc));
}

void realm_json_doc_close(realm_json_doc *doc) {
    if (!doc) return;
    json_decref(doc->root);
    realm_free(doc->lines);
    realm_free(doc);
}

realm_json realm_json_root(const realm_json_doc *doc) { return (realm_json){.doc = doc, .node = doc->root}; }

/* Counts depth and values outside of strings. Text that is no JSON may be counted wrongly here, but never too low in
 * depth or number for what jansson would accept of it. */
static realm_status scan(const char *text, size_t len, size_t max_values, unsigned max_depth, realm_error *err) {
    size_t values = 1, line = 1, line_start = 0;
    unsigned depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < len; i++) {
        char c = text[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
            continue;
        }
        switch (c) {
        case '"': in_string = true; break;
        case '\n':
            line++;
            line_start = i + 1;
            break;
        case '[':
        case '{':
            values += c == '{' ? 8 : 1;
            if (++depth > max_depth)
                return realm_error_set(err, REALM_E_LIMIT, "line %zu, column %zu: nested deeper than %u", line,
                                       i - line_start + 1, max_depth);
            break;
        case ']':
        case '}':
            if (depth) depth--;
            break;
        case ',': values++; break;
        case ':': values += 2; break;
        default: break;
        }
        if (values > max_values)
            return realm_error_set(err, REALM_E_LIMIT, "line %zu, column %zu: more than %zu values", line,
                                   i - line_start + 1, max_values);
    }
    return REALM_OK;
}

/* Whether an integer of these digits is beyond 64 bits. */
static bool is_too_large(const char *digits, size_t n, bool negative) {
    static const char most[] = "9223372036854775807", least[] = "9223372036854775808";
    return n > sizeof most - 1 || (n == sizeof most - 1 && memcmp(digits, negative ? least : most, n) > 0);
}

/* A copy in which integers beyond 64 bits are reals ("e0" behind them): they are then numbers that no field
 * takes for an integer, and whoever reads the field can say which one it is. NULL without memory, or when there is
 * none. */
static char *widen_integers(const char *text, size_t len, size_t *wide_len) {
    realm_buf b;
    size_t from = 0;
    bool in_string = false;
    realm_buf_init(&b, 2 * len + 16);
    for (size_t i = 0; i < len; i++) {
        const char c = text[i];
        if (c == '"') in_string = !in_string;
        if (in_string && c == '\\') i++;
        if (in_string || c < '0' || c > '9') continue;
        size_t end = i;
        while (end < len && text[end] >= '0' && text[end] <= '9') end++;
        const bool integer = end == len || !strchr(".eE", text[end]);
        const bool fraction = i > 0 && strchr(".eE", text[i - 1]);
        const bool exponent = i > 1 && strchr("+-", text[i - 1]) && strchr("eE", text[i - 2]);
        if (integer && !fraction && !exponent && is_too_large(text + i, end - i, i > 0 && text[i - 1] == '-')) {
            realm_buf_append(&b, text + from, end - from);
            realm_buf_puts(&b, "e0");
            from = end;
        }
        i = end - 1;
    }
    if (from > 0) realm_buf_append(&b, text + from, len - from);
    *wide_len = b.len;
    if (from > 0 && realm_buf_status(&b) == REALM_OK) return realm_buf_take(&b, NULL);
    memory_ran_out = realm_buf_status(&b) != REALM_OK;
    realm_buf_release(&b);
    return NULL;
}

static json_t *load(const char *text, size_t len, json_error_t *je) {
    const size_t flags = JSON_REJECT_DUPLICATES | JSON_DECODE_ANY | JSON_ALLOW_NUL;
    json_t *root = json_loadb(len ? text : "", len, flags, je);
    if (root || memory_ran_out || json_error_code(je) != json_error_numeric_overflow) return root;
    size_t wide_len = 0;
    char *wide = widen_integers(text, len, &wide_len);
    json_error_t unused;
    if (wide) root = json_loadb(wide, wide_len, flags, &unused);
    realm_free(wide);
    return root;
}

realm_status realm_json_parse(realm_json_doc **out, const char *text, size_t len, const realm_json_limits *limits,
                              realm_error *err) {
    *out = NULL;
    size_t max_bytes = limits && limits->max_bytes ? limits->max_bytes : REALM_JSON_BYTES_MAX;
    size_t max_values = limits && limits->max_values ? limits->max_values : REALM_JSON_VALUES_MAX;
    unsigned max_depth = limits && limits->max_depth ? limits->max_depth : REALM_JSON_DEPTH_MAX;
    if (len > max_bytes) return realm_error_set(err, REALM_E_LIMIT, "%zu bytes, at most %zu are read", len, max_bytes);
    realm_status s = scan(text, len, max_values, max_depth, err);
    if (s != REALM_OK) return s;

    realm_json_doc *doc = realm_json_doc_new();
    if (!doc) return realm_error_set(err, REALM_E_NOMEM, "out of memory");
    json_error_t je = {.text = ""};
    memory_ran_out = false;
    doc->root = load(text, len, &je);
    if (doc->root) {
        *out = doc;
        return REALM_OK;
    }
    realm_json_doc_close(doc);
    if (memory_ran_out || je.text[0] == '\0' || json_error_code(&je) == json_error_out_of_memory)
        return realm_error_set(err, REALM_E_NOMEM, "out of memory");
    char what[JSON_ERROR_TEXT_LENGTH * 2];
    realm_escape(what, sizeof what, je.text, strnlen(je.text, sizeof je.text));
    return realm_error_set(err, REALM_E_FORMAT, "line %d, column %d: %s", je.line, je.column, what);
}
