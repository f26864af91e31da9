/* gguf/reader.c - one pass over the header that checks everything the rest of Realm relies on.
 *
 * A file (the ggml project's GGUF specification, versions 2 and 3, little-endian, nothing in it aligned but the tensor
 * data):
 *
 *     "GGUF"  u32 version  u64 n_tensors  u64 n_keys
 *     n_keys  of  string key, u32 type, value        string: u64 length, bytes; array: u32 type, u64 n, elements
 *     n_tensors of string name, u32 n_dims, u64 dims[n_dims], u32 type, u64 offset
 *     padding to `general.alignment` (32 where the key is absent), then the tensor data, offsets relative to here
 *
 * Each field is compared with what is left of the file before it is used, so a count of 2^60 costs one comparison.
 * Counts are compared with the fewest bytes that so many records take before memory for them is asked for; that keeps
 * the index to a small multiple of the file. Nesting of arrays is bounded, each nested array takes twelve bytes, names
 * are hashed with a random key: time is linear in the file (tensors out of order add a sort). Reading order is
 *
 *     open -> parse_header -> parse_keys -> read_alignment -> parse_tensors -> place_tensors -> check_overlap
 */
#include <string.h>

#include "base/alloc.h"
#include "base/str.h"
#include "gguf/internal.h"

#define DEFAULT_ALIGNMENT 32u
#define MIN_KEY_BYTES 14u    /* length, one byte of name, type, one byte of value */
#define MIN_TENSOR_BYTES 33u /* length, one byte of name, n_dims, one dimension, type, offset */

typedef struct cursor {
    const unsigned char *data;
    size_t at, size;
    realm_error *err;
} cursor;

static realm_status truncated(const cursor *c, const char *what) {
    return realm_error_set(c->err, REALM_E_FORMAT, "at byte %zu: the file ends inside %s", c->at, what);
}

static realm_status take(cursor *c, void *out, size_t n, const char *what) {
    if (c->size - c->at < n) return truncated(c, what);
    memcpy(out, c->data + c->at, n);
    c->at += n;
    return REALM_OK;
}

static realm_status take_str(cursor *c, realm_gguf_str *out, const char *what) {
    uint64_t len = 0;
    size_t start = c->at;
    realm_status s = take(c, &len, sizeof len, what);
    if (s != REALM_OK) return s;
    if (len > c->size - c->at)
        return realm_error_set(c->err, REALM_E_FORMAT, "at byte %zu: %s of %llu bytes, but %zu are left", start, what,
                               (unsigned long long)len, c->size - c->at);
    if (len > REALM_GGUF_MAX_STRING)
        return realm_error_set(c->err, REALM_E_FORMAT, "at byte %zu: %s of %llu bytes, at most %u are read", start,
                               what, (unsigned long long)len, REALM_GGUF_MAX_STRING);
    *out = (realm_gguf_str){(const char *)c->data + c->at, (size_t)len};
    c->at += (size_t)len;
    return REALM_OK;
}

/* A key or a tensor's name: 1..REALM_GGUF_MAX_NAME bytes without NUL, so that it can be looked up as a C string. */
static realm_status take_name(cursor *c, realm_gguf_str *out, const char *what) {
    size_t start = c->at;
    realm_status s = take_str(c, out, what);
    if (s != REALM_OK) return s;
    if (out->len == 0) return realm_error_set(c->err, REALM_E_FORMAT, "at byte %zu: %s is empty", start, what);
    if (out->len > REALM_GGUF_MAX_NAME)
        return realm_error_set(c->err, REALM_E_FORMAT, "at byte %zu: %s of %zu bytes, at most %u are read", start, what,
                               out->len, REALM_GGUF_MAX_NAME);
    if (memchr(out->data, '\0', out->len))
        return realm_error_set(c->err, REALM_E_FORMAT, "at byte %zu: %s holds a NUL byte", start, what);
    return REALM_OK;
}

size_t realm_gguf_scalar_bytes(uint32_t type) {
    static const uint8_t bytes[] = {
        [REALM_GGUF_U8] = 1,  [REALM_GGUF_I8] = 1,  [REALM_GGUF_U16] = 2, [REALM_GGUF_I16] = 2,
        [REALM_GGUF_U32] = 4, [REALM_GGUF_I32] = 4, [REALM_GGUF_F32] = 4, [REALM_GGUF_BOOL] = 1,
        [REALM_GGUF_U64] = 8, [REALM_GGUF_I64] = 8, [REALM_GGUF_F64] = 8};
    return type < sizeof bytes ? bytes[type] : 0;
}

const char *realm_gguf_type_name(uint32_t type) {
    static const char *const names[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                        "bool", "string", "array", "u64", "i64", "f64"};
    return type < REALM_ARRAY_LEN(names) ? names[type] : "?";
}

static realm_status check_bools(const cursor *c, const unsigned char *data, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (data[i] > 1)
            return realm_error_set(c->err, REALM_E_FORMAT, "at byte %zu: a bool of %u", (size_t)(data + i - c->data),
                                   (unsigned)data[i]);
    return REALM_OK;
}

/* `depth` arrays are open around this one. */
static realm_status take_array(cursor *c, realm_gguf_value *v, unsigned depth) {
    size_t start = c->at;
    uint32_t type = 0;
    uint64_t n = 0;
    if (depth >= REALM_GGUF_MAX_NESTING)
        return realm_error_set(c->err, REALM_E_FORMAT, "at byte %zu: arrays nested more than %u deep", start,
                               REALM_GGUF_MAX_NESTING);
    realm_status s = take(c, &type, sizeof type, "an array's element type");
    if (s == REALM_OK) s = take(c, &n, sizeof n, "an array's length");
    if (s != REALM_OK) return s;
    size_t each = realm_gguf_scalar_bytes(type);
    bool scalar = each > 0;
    if (type == REALM_GGUF_STRING)
        each = 8; /* at least */
    else if (type == REALM_GGUF_ARRAY)
        each = 12;
    else if (!scalar)
        return realm_error_set(c->err, REALM_E_FORMAT, "at byte %zu: unknown array element type %u", start, type);
    if (n > (c->size - c->at) / each)
        return realm_error_set(c->err, REALM_E_FORMAT, "at byte %zu: an array of %llu elements, but %zu bytes are left",
                               start, (unsigned long long)n, c->size - c->at);
    v->element = (realm_gguf_value_type)type;
    v->n = n;
    v->data = c->data + c->at;
    if (scalar) {
        c->at += (size_t)n * each; /* fits: n <= left / each */
        return type == REALM_GGUF_BOOL ? check_bools(c, v->data, (size_t)n) : REALM_OK;
    }
    for (uint64_t i = 0; i < n && s == REALM_OK; i++) {
        realm_gguf_str ignored_str;
        realm_gguf_value ignored_value;
        s = type == REALM_GGUF_STRING ? take_str(c, &ignored_str, "a string in an array")
                                      : take_array(c, &ignored_value, depth + 1);
    }
    return s;
}

static realm_status take_value(cursor *c, realm_gguf_value *v) {
    size_t start = c->at;
    uint32_t type = 0;
    realm_status s = take(c, &type, sizeof type, "a value's type");
    if (s != REALM_OK) return s;
    size_t bytes = realm_gguf_scalar_bytes(type);
    *v = (realm_gguf_value){.type = (realm_gguf_value_type)type, .n = 1};
    if (type == REALM_GGUF_ARRAY) return take_array(c, v, 0);
    if (type == REALM_GGUF_STRING) {
        realm_gguf_str str;
        s = take_str(c, &str, "a string value");
        if (s != REALM_OK) return s;
        v->data = (const unsigned char *)str.data;
        v->n = str.len;
        return REALM_OK;
    }
    if (bytes == 0) return realm_error_set(c->err, REALM_E_FORMAT, "at byte %zu: unknown value type %u", start, type);
    if (c->size - c->at < bytes) return truncated(c, "a value");
    v->data = c->data + c->at;
    c->at += bytes;
    return type == REALM_GGUF_BOOL ? check_bools(c, v->data, 1) : REALM_OK;
}

static realm_status parse_header(realm_gguf *g, cursor *c, uint64_t *n_tensors, uint64_t *n_keys) {
    char magic[4];
    realm_status s = take(c, magic, sizeof magic, "the magic number");
    if (s != REALM_OK) return s;
    if (memcmp(magic, "GGUF", 4) != 0)
        return realm_error_set(c->err, REALM_E_FORMAT, "at byte 0: not a GGUF file (it does not start with \"GGUF\")");
    s = take(c, &g->version, sizeof g->version, "the version");
    if (s != REALM_OK) return s;
    if (g->version != 0 && (g->version & 0xffffu) == 0)
        return realm_error_set(c->err, REALM_E_UNSUPPORTED, "at byte 4: a big-endian GGUF file; convert it");
    if (g->version < 2 || g->version > 3)
        return realm_error_set(c->err, REALM_E_UNSUPPORTED, "at byte 4: GGUF version %u; versions 2 and 3 are read",
                               g->version);
    s = take(c, n_tensors, sizeof *n_tensors, "the tensor count");
    if (s == REALM_OK) s = take(c, n_keys, sizeof *n_keys, "the key count");
    if (s != REALM_OK) return s;
    size_t left = c->size - c->at;
    if (*n_keys > REALM_GGUF_MAX_KEYS || *n_keys > left / MIN_KEY_BYTES)
        return realm_error_set(c->err, REALM_E_FORMAT, "at byte 16: %llu keys in a file of %zu bytes (at most %u)",
                               (unsigned long long)*n_keys, c->size, REALM_GGUF_MAX_KEYS);
    left -= (size_t)*n_keys * MIN_KEY_BYTES;
    if (*n_tensors > REALM_GGUF_MAX_TENSORS || *n_tensors > left / MIN_TENSOR_BYTES)
        return realm_error_set(c->err, REALM_E_FORMAT, "at byte 8: %llu tensors in a file of %zu bytes (at most %u)",
                               (unsigned long long)*n_tensors, c->size, REALM_GGUF_MAX_TENSORS);
    return REALM_OK;
}

static realm_status parse_keys(realm_gguf *g, cursor *c, size_t n_keys) {
    char shown[96];
    g->entries = realm_calloc(n_keys, sizeof *g->entries);
    if (!g->entries) return realm_error_set(c->err, REALM_E_NOMEM, "out of memory for %zu keys", n_keys);
    realm_status s = realm_gguf_index_init(&g->key_index, n_keys, &g->entries->key, sizeof *g->entries, c->err);
    for (size_t i = 0; i < n_keys && s == REALM_OK; i++) {
        realm_gguf_entry *e = &g->entries[i];
        size_t start = c->at;
        s = take_name(c, &e->key, "a key");
        if (s != REALM_OK) return s;
        realm_escape(shown, sizeof shown, e->key.data, e->key.len);
        s = take_value(c, &e->value);
        if (s != REALM_OK) {
            (void)realm_error_prefix(c->err, "key %s", shown);
            return s;
        }
        if (!realm_gguf_index_add(&g->key_index, i))
            return realm_error_set(c->err, REALM_E_FORMAT, "at byte %zu: key %s occurs twice", start, shown);
        g->n_entries = i + 1;
    }
    return s;
}

static realm_status read_alignment(realm_gguf *g, const cursor *c) {
    const realm_gguf_value *v = realm_gguf_find(g, "general.alignment");
    uint32_t alignment = DEFAULT_ALIGNMENT;
    if (v) {
        size_t at = (size_t)(v->data - c->data);
        if (v->type != REALM_GGUF_U32)
            return realm_error_set(c->err, REALM_E_FORMAT, "at byte %zu: general.alignment is of type %s, not u32", at,
                                   realm_gguf_type_name(v->type));
        memcpy(&alignment, v->data, sizeof alignment);
        if (!realm_is_pow2(alignment) || alignment < REALM_GGUF_MIN_ALIGNMENT || alignment > REALM_GGUF_MAX_ALIGNMENT)
            return realm_error_set(c->err, REALM_E_FORMAT,
                                   "at byte %zu: general.alignment is %u, not a power of two in %u..%u", at, alignment,
                                   REALM_GGUF_MIN_ALIGNMENT, REALM_GGUF_MAX_ALIGNMENT);
    }
    g->alignment = alignment;
    return REALM_OK;
}

/* Dimensions, type and size of a tensor; `shown` is its escaped name. */
static realm_status take_shape(cursor *c, realm_gguf_tensor *t, const char *shown) {
    size_t start = c->at;
    uint32_t type = 0;
    realm_status s = take(c, &t->n_dims, sizeof t->n_dims, "a tensor's dimension count");
    if (s != REALM_OK) return s;
    if (t->n_dims < 1 || t->n_dims > REALM_GGUF_MAX_DIMS)
        return realm_error_set(c->err, REALM_E_FORMAT, "at byte %zu: tensor %s has %u dimensions, not 1..%d", start,
                               shown, t->n_dims, REALM_GGUF_MAX_DIMS);
    for (uint32_t d = 0; d < REALM_GGUF_MAX_DIMS; d++) {
        t->dims[d] = 1;
        if (d >= t->n_dims) continue;
        start = c->at;
        s = take(c, &t->dims[d], sizeof t->dims[d], "a tensor's dimensions");
        if (s != REALM_OK) return s;
        if (t->dims[d] == 0)
            return realm_error_set(c->err, REALM_E_FORMAT, "at byte %zu: dimension %u of tensor %s is 0", start, d,
                                   shown);
    }
    start = c->at;
    s = take(c, &type, sizeof type, "a tensor's type");
    if (s != REALM_OK) return s;
    t->type = realm_type_get(type);
    if (!t->type)
        return realm_error_set(c->err, REALM_E_UNSUPPORTED, "at byte %zu: tensor %s is of the unknown type %u", start,
                               shown, type);
    if (t->dims[0] % t->type->block_len != 0)
        return realm_error_set(c->err, REALM_E_FORMAT,
                               "at byte %zu: rows of tensor %s have %llu values, no multiple of the %u of a %s block",
                               start, shown, (unsigned long long)t->dims[0], t->type->block_len, t->type->name);
    /* The number of values must fit as well as the bytes: callers multiply dimensions. */
    uint64_t values = t->dims[0];
    bool fits = realm_type_row_bytes(t->type, t->dims[0], &t->n_bytes);
    for (uint32_t d = 1; d < t->n_dims && fits; d++)
        fits = realm_mul_u64(t->n_bytes, t->dims[d], &t->n_bytes) && realm_mul_u64(values, t->dims[d], &values);
    if (!fits || values > INT64_MAX || t->n_bytes > INT64_MAX)
        return realm_error_set(c->err, REALM_E_FORMAT,
                               "at byte %zu: the dimensions of tensor %s (%llu x %llu x %llu x %llu) overflow", start,
                               shown, (unsigned long long)t->dims[0], (unsigned long long)t->dims[1],
                               (unsigned long long)t->dims[2], (unsigned long long)t->dims[3]);
    return REALM_OK;
}

/* Reads the records; the offset within the tensor data goes to offsets[i], because where that data starts is known
 * only after the last record. */
static realm_status parse_tensors(realm_gguf *g, cursor *c, size_t n_tensors, uint64_t *offsets) {
    char shown[96];
    g->tensors = realm_calloc(n_tensors, sizeof *g->tensors);
    if (!g->tensors) return realm_error_set(c->err, REALM_E_NOMEM, "out of memory for %zu tensors", n_tensors);
    realm_status s = realm_gguf_index_init(&g->tensor_index, n_tensors, &g->tensors->name, sizeof *g->tensors, c->err);
    for (size_t i = 0; i < n_tensors && s == REALM_OK; i++) {
        realm_gguf_tensor *t = &g->tensors[i];
        size_t start = c->at;
        s = take_name(c, &t->name, "a tensor's name");
        if (s != REALM_OK) return s;
        realm_escape(shown, sizeof shown, t->name.data, t->name.len);
        s = take_shape(c, t, shown);
        if (s != REALM_OK) return s;
        size_t at = c->at;
        s = take(c, &offsets[i], sizeof offsets[i], "a tensor's offset");
        if (s != REALM_OK) return s;
        if (offsets[i] % g->alignment != 0)
            return realm_error_set(c->err, REALM_E_FORMAT,
                                   "at byte %zu: offset %llu of tensor %s is no multiple of the alignment %llu", at,
                                   (unsigned long long)offsets[i], shown, (unsigned long long)g->alignment);
        if (!realm_gguf_index_add(&g->tensor_index, i))
            return realm_error_set(c->err, REALM_E_FORMAT, "at byte %zu: tensor %s occurs twice", start, shown);
        g->n_tensors = i + 1;
    }
    return s;
}

/* Turns offsets into pointers, once `c` stands behind the last record. */
static realm_status place_tensors(realm_gguf *g, const cursor *c, const uint64_t *offsets) {
    char shown[96];
    uint64_t start;
    if (!realm_align_u64(c->at, g->alignment, &start) || start > g->size) start = g->size;
    g->data_start = (size_t)start;
    size_t room = g->size - g->data_start;
    for (size_t i = 0; i < g->n_tensors; i++) {
        realm_gguf_tensor *t = &g->tensors[i];
        if (offsets[i] > room || t->n_bytes > room - offsets[i])
            return realm_error_set(
                c->err, REALM_E_FORMAT, "tensor %s of %llu bytes at byte %zu + %llu ends past the file's %zu bytes",
                realm_escape(shown, sizeof shown, t->name.data, t->name.len), (unsigned long long)t->n_bytes,
                g->data_start, (unsigned long long)offsets[i], g->size);
        t->data = g->data + g->data_start + (size_t)offsets[i];
    }
    return REALM_OK;
}

static inline const unsigned char *tensor_start(const realm_gguf_tensor *t) { return t->data; }

/* Restores the heap below `root`: the tensor that starts last is at the top. */
static void sift(const realm_gguf_tensor *t, uint32_t *order, size_t root, size_t n) {
    for (size_t child; (child = 2 * root + 1) < n; root = child) {
        if (child + 1 < n && tensor_start(&t[order[child]]) < tensor_start(&t[order[child + 1]])) child++;
        if (tensor_start(&t[order[root]]) >= tensor_start(&t[order[child]])) return;
        uint32_t swap = order[root];
        order[root] = order[child];
        order[child] = swap;
    }
}

static realm_status overlap(const realm_gguf_tensor *a, const realm_gguf_tensor *b, realm_error *err) {
    char shown[2][96];
    return realm_error_set(err, REALM_E_FORMAT, "tensors %s and %s overlap",
                           realm_escape(shown[0], sizeof shown[0], a->name.data, a->name.len),
                           realm_escape(shown[1], sizeof shown[1], b->name.data, b->name.len));
}

/* Writers lay tensors out in order, so one pass is nearly always enough; otherwise a heap sort by start, which no
 * order of the input makes slow and which needs no recursion. */
static realm_status check_overlap(const realm_gguf *g, realm_error *err) {
    const realm_gguf_tensor *t = g->tensors;
    size_t n = g->n_tensors, i = 1;
    while (i < n && tensor_start(&t[i - 1]) + t[i - 1].n_bytes <= tensor_start(&t[i])) i++;
    if (i >= n) return REALM_OK;
    uint32_t *order = realm_malloc(n * sizeof *order); /* n <= 2^20 */
    if (!order) return realm_error_set(err, REALM_E_NOMEM, "out of memory for the order of %zu tensors", n);
    for (i = 0; i < n; i++) order[i] = (uint32_t)i;
    for (i = n / 2; i-- > 0;) sift(t, order, i, n);
    for (i = n - 1; i > 0; i--) {
        uint32_t swap = order[0];
        order[0] = order[i];
        order[i] = swap;
        sift(t, order, 0, i);
    }
    realm_status s = REALM_OK;
    for (i = 1; i < n && s == REALM_OK; i++) {
        const realm_gguf_tensor *a = &t[order[i - 1]], *b = &t[order[i]];
        if (tensor_start(a) + a->n_bytes > tensor_start(b)) s = overlap(a, b, err);
    }
    realm_free(order);
    return s;
}

static realm_status parse(realm_gguf *g, realm_error *err) {
    cursor c = {.data = g->data, .size = g->size, .err = err};
    uint64_t n_tensors = 0, n_keys = 0, *offsets = NULL;
    realm_status s = parse_header(g, &c, &n_tensors, &n_keys);
    if (s == REALM_OK) s = parse_keys(g, &c, (size_t)n_keys);
    if (s == REALM_OK) s = read_alignment(g, &c);
    if (s != REALM_OK) return s;
    offsets = realm_calloc((size_t)n_tensors, sizeof *offsets);
    if (!offsets)
        return realm_error_set(err, REALM_E_NOMEM, "out of memory for %llu tensors", (unsigned long long)n_tensors);
    s = parse_tensors(g, &c, (size_t)n_tensors, offsets);
    if (s == REALM_OK) s = place_tensors(g, &c, offsets);
    if (s == REALM_OK) s = check_overlap(g, err);
    realm_free(offsets);
    return s;
}

realm_status realm_gguf_open_memory(realm_gguf **out, const void *data, size_t size, realm_error *err) {
    *out = NULL;
    if ((uintptr_t)data % REALM_GGUF_MIN_ALIGNMENT != 0)
        return realm_error_set(err, REALM_E_INVALID, "the bytes of a model must be aligned to %u",
                               REALM_GGUF_MIN_ALIGNMENT);
    realm_gguf *g = realm_calloc(1, sizeof *g);
    if (!g) return realm_error_set(err, REALM_E_NOMEM, "out of memory");
    g->data = data;
    g->size = size;
    realm_status s = parse(g, err);
    if (s != REALM_OK) {
        realm_gguf_close(g);
        return s;
    }
    *out = g;
    return REALM_OK;
}

realm_status realm_gguf_open(realm_gguf **out, const char *path, realm_error *err) {
    realm_mapping m;
    *out = NULL;
    realm_status s = realm_mapping_open(&m, path, err);
    if (s != REALM_OK) return s;
    /* An empty file has no mapping; any aligned address stands for its no bytes. */
    s = realm_gguf_open_memory(out, m.data ? (const void *)m.data : (const void *)out, m.size, err);
    if (s != REALM_OK) {
        realm_mapping_close(&m);
        char shown[256];
        (void)realm_error_prefix(err, "%s", realm_escape(shown, sizeof shown, path, strlen(path)));
        return s;
    }
    (*out)->mapping = m;
    return REALM_OK;
}

void realm_gguf_close(realm_gguf *g) {
    if (!g) return;
    realm_gguf_index_release(&g->tensor_index);
    realm_gguf_index_release(&g->key_index);
    realm_free(g->tensors);
    realm_free(g->entries);
    realm_mapping_close(&g->mapping);
    realm_free(g);
}
