/* data/data.h - JSON and YAML as one read-only tree, and a streaming JSON writer.
 *
 * Everything structured that comes from outside (requests, tools, the configuration file) is parsed here into a
 * document, checked by typed accessors, and read through borrowed values. A value knows the way to it from the root, so
 * that every accessor can name what is wrong by its path ("messages[2].content: must be a string, is a number") and,
 * for YAML, by its line. Answers are not built as trees: the writer appends them to a buffer.
 *
 *      text --realm_json_parse / realm_yaml_parse--> realm_json_doc --realm_json_root--> realm_json (value + path)
 *      realm_json_writer --> realm_buf
 *
 * Strictness (RFC 8259 and more): UTF-8 only, no duplicate keys, no NaN or infinities, no trailing bytes, no comments;
 * bounded in bytes, depth and number of values. An integer beyond 64 bits is a real in JSON and refused in YAML.
 * `\u0000` is allowed inside string values (lengths are carried; realm_json_cstr refuses it) and refused in keys.
 *
 * A document is immutable: any number of threads may read it. The only folder that includes jansson and libyaml.
 */
#ifndef REALM_DATA_DATA_H
#define REALM_DATA_DATA_H

#include "base/base.h"
#include "base/buf.h"

#define REALM_JSON_DEPTH_MAX 64u         /* nested arrays and objects */
#define REALM_JSON_BYTES_MAX (32u << 20) /* default limit of a text */
#define REALM_JSON_VALUES_MAX (1u << 20) /* default limit of values in a text; an object counts as 8 */
#define REALM_YAML_BYTES_MAX (1u << 20)
#define REALM_YAML_ALIASES_MAX 64u
#define REALM_JSON_PATH_MAX 256u /* bytes that hold a path with its NUL; longer ones are cut */

typedef struct realm_json_doc realm_json_doc;

typedef enum realm_json_kind {
    REALM_JSON_NONE, /* no value: what a failed look-up leaves */
    REALM_JSON_NULL,
    REALM_JSON_BOOL,
    REALM_JSON_INT,
    REALM_JSON_REAL, /* written with a fraction or an exponent */
    REALM_JSON_STRING,
    REALM_JSON_ARRAY,
    REALM_JSON_OBJECT
} realm_json_kind;

typedef struct realm_json_limits { /* 0: the default above */
    size_t max_bytes, max_values;
    unsigned max_depth;
} realm_json_limits;

/* A value inside a document and the way to it. Passed around by pointer, copied freely; `up` points to the caller's own
 * variable for the parent, which must stay in scope while this one is used. Read the fields, never write them. */
typedef struct realm_json {
    const realm_json_doc *doc;
    const void *node;            /* NULL: REALM_JSON_NONE */
    const struct realm_json *up; /* NULL for the root */
    const char *key; /* member's name when the parent is an object, NUL-terminated, lives with the document */
    size_t index;    /* element's index when the parent is an array */
} realm_json;

/* ---- parsing ----------------------------------------------------------------------------------------------------- */

/* REALM_E_FORMAT with "line L, column C: what" for text that is not strict JSON (duplicate keys included);
 * REALM_E_LIMIT for size, depth or number of values; REALM_E_NOMEM. `text` is not needed afterwards. */
REALM_WARN_UNUSED realm_status realm_json_parse(realm_json_doc **out, const char *text, size_t len,
                                                const realm_json_limits *limits, realm_error *err);
/* One YAML 1.2 document (core schema: plain null, true, false, integers and reals; everything else is a string) of at
 * most REALM_YAML_BYTES_MAX. Tags, merge keys, keys that are no plain strings, duplicate keys, .nan and .inf are
 * refused; aliases are expanded within limits. An empty document is an empty object. Errors as for JSON. Values know
 * their line. */
REALM_WARN_UNUSED realm_status realm_yaml_parse(realm_json_doc **out, const char *text, size_t len, realm_error *err);
void realm_json_doc_close(realm_json_doc *doc); /* NULL-safe */
realm_json realm_json_root(const realm_json_doc *doc);

/* ---- looking around ---------------------------------------------------------------------------------------------- */

realm_json_kind realm_json_kind_of(const realm_json *v);
/* "an object", "a string" ... */
const char *realm_json_kind_name(realm_json_kind kind);
/* Elements of an array, members of an object, 0 for anything else. */
size_t realm_json_len(const realm_json *v);
/* The member's value; false, and *out of kind NONE that still knows its path, when `object` has none of this name or is
 * no object. JSON null counts as present. */
bool realm_json_get(const realm_json *object, const char *key, realm_json *out);
/* As realm_json_get, but null counts as absent: how optional fields of requests are read. */
bool realm_json_get_set(const realm_json *object, const char *key, realm_json *out);
bool realm_json_at(const realm_json *array, size_t index, realm_json *out);
/* Members in the order of the text: start with a zeroed iterator; false at the end. out->key is the name. */
typedef struct realm_json_iter {
    void *at;
    bool started;
} realm_json_iter;
bool realm_json_next(const realm_json *object, realm_json_iter *it, realm_json *out);
/* "messages[0].content", "" for the root; cut at cap. Returns `out`. */
const char *realm_json_path(const realm_json *v, char *out, size_t cap);
/* Line of the value (of the member's key) in YAML, 0 in JSON. */
unsigned realm_json_line(const realm_json *v);
/* True when the string value is exactly `s`. */
bool realm_json_is(const realm_json *v, const char *s);

/* ---- typed reading -------------------------------------------------------------------------------------------------
 * REALM_E_INVALID "path: must be X, is Y" for a wrong type, REALM_E_RANGE "path: must be from A to B" for a value out
 * of range, REALM_E_NOT_FOUND "path: is required" for a value of kind NONE. YAML errors start with "line N: ". Outputs
 * are untouched on failure. Strings are borrowed from the document and NUL-terminated.
 */

REALM_WARN_UNUSED realm_status realm_json_expect(const realm_json *v, realm_json_kind kind, realm_error *err);
REALM_WARN_UNUSED realm_status realm_json_str(const realm_json *v, const char **s, size_t *len, realm_error *err);
/* A string without NUL inside; REALM_E_INVALID otherwise. */
REALM_WARN_UNUSED realm_status realm_json_cstr(const realm_json *v, const char **s, realm_error *err);
REALM_WARN_UNUSED realm_status realm_json_bool(const realm_json *v, bool *out, realm_error *err);
/* Integers only: 1.0 and 1e3 are refused. */
REALM_WARN_UNUSED realm_status realm_json_int(const realm_json *v, int64_t least, int64_t most, int64_t *out,
                                              realm_error *err);
/* Integers and reals. */
REALM_WARN_UNUSED realm_status realm_json_real(const realm_json *v, double least, double most, double *out,
                                               realm_error *err);
/* Index in `names` of a string value; REALM_E_RANGE lists them. */
REALM_WARN_UNUSED realm_status realm_json_enum(const realm_json *v, const char *const *names, size_t n, size_t *out,
                                               realm_error *err);

/* The same for a member that may be absent or null: *out keeps what it held. REALM_E_INVALID when `object` is no
 * object. */
REALM_WARN_UNUSED realm_status realm_json_opt_bool(const realm_json *object, const char *key, bool *out,
                                                   realm_error *err);
REALM_WARN_UNUSED realm_status realm_json_opt_int(const realm_json *object, const char *key, int64_t least,
                                                  int64_t most, int64_t *out, realm_error *err);
REALM_WARN_UNUSED realm_status realm_json_opt_real(const realm_json *object, const char *key, double least, double most,
                                                   double *out, realm_error *err);
REALM_WARN_UNUSED realm_status realm_json_opt_cstr(const realm_json *object, const char *key, const char **out,
                                                   realm_error *err);

/* REALM_E_UNSUPPORTED "path: unknown key" when the object has a member whose name is not listed; `unknown` (may be
 * NULL) is set to it. */
REALM_WARN_UNUSED realm_status realm_json_only(const realm_json *object, const char *const *names, size_t n,
                                               realm_json *unknown, realm_error *err);
/* Writes "path: <formatted>" (with the line for YAML) and returns `code`: for checks of the caller's own. */
realm_status realm_json_error(const realm_json *v, realm_status code, realm_error *err, const char *fmt, ...)
    REALM_PRINTF(4, 5);

/* Appends the value as compact JSON, members in their order, reals in the shortest form that reads back equal. */
REALM_WARN_UNUSED realm_status realm_json_dump(const realm_json *v, realm_buf *out);

/* ---- writing -------------------------------------------------------------------------------------------------------
 * Appends to a buffer; commas are put in by the writer. Failures stay in the buffer (realm_buf_status). Keys and values
 * must alternate and nesting must match, at most REALM_JSON_DEPTH_MAX deep: programming errors, asserted. One thread at
 * a time.
 */

typedef struct realm_json_writer {
    realm_buf *out;
    uint64_t comma; /* bit d: a value was written at depth d */
    unsigned depth;
    bool after_key;
} realm_json_writer;

void realm_json_writer_init(realm_json_writer *w, realm_buf *out);
void realm_json_begin_object(realm_json_writer *w);
void realm_json_end_object(realm_json_writer *w);
void realm_json_begin_array(realm_json_writer *w);
void realm_json_end_array(realm_json_writer *w);
void realm_json_key(realm_json_writer *w, const char *key);
/* Malformed UTF-8 becomes U+FFFD. */
void realm_json_write_str(realm_json_writer *w, const char *s, size_t len);
void realm_json_write_cstr(realm_json_writer *w, const char *s); /* NULL: null */
void realm_json_write_int(realm_json_writer *w, int64_t v);
void realm_json_write_uint(realm_json_writer *w, uint64_t v);
void realm_json_write_real(realm_json_writer *w, double v); /* null when not finite */
void realm_json_write_float(realm_json_writer *w, float v); /* shortest that reads back equal as a float */
void realm_json_write_bool(realm_json_writer *w, bool v);
void realm_json_write_null(realm_json_writer *w);
/* A value that is JSON already. */
void realm_json_write_raw(realm_json_writer *w, const char *json, size_t len);
void realm_json_write_value(realm_json_writer *w, const realm_json *v);
/* Only the escaped inside of a string, without quotes. */
void realm_json_escape(realm_buf *out, const char *s, size_t len);

#endif
