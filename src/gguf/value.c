/* gguf/value.c - reading an opened file: by position, by name, and as typed scalars. Everything was checked on open. */
#include <math.h>
#include <string.h>

#include "gguf/internal.h"

uint32_t realm_gguf_version(const realm_gguf *g) { return g->version; }
uint64_t realm_gguf_alignment(const realm_gguf *g) { return g->alignment; }
uint64_t realm_gguf_file_size(const realm_gguf *g) { return g->size; }

size_t realm_gguf_tensor_count(const realm_gguf *g) { return g->n_tensors; }
const realm_gguf_tensor *realm_gguf_tensor_at(const realm_gguf *g, size_t index) { return &g->tensors[index]; }
void realm_gguf_drop_pages(const realm_gguf *g, const realm_gguf_tensor *t) {
    realm_mapping_drop(&g->mapping, t->data, (size_t)t->n_bytes);
}
const realm_gguf_tensor *realm_gguf_tensor_find(const realm_gguf *g, const char *name) {
    size_t i = realm_gguf_index_find(&g->tensor_index, name, strlen(name));
    return i == SIZE_MAX ? NULL : &g->tensors[i];
}

size_t realm_gguf_key_count(const realm_gguf *g) { return g->n_entries; }
realm_gguf_str realm_gguf_key_at(const realm_gguf *g, size_t index) { return g->entries[index].key; }
const realm_gguf_value *realm_gguf_value_at(const realm_gguf *g, size_t index) { return &g->entries[index].value; }
const realm_gguf_value *realm_gguf_find(const realm_gguf *g, const char *key) {
    size_t i = realm_gguf_index_find(&g->key_index, key, strlen(key));
    return i == SIZE_MAX ? NULL : &g->entries[i].value;
}

realm_gguf_value_type realm_gguf_type(const realm_gguf_value *v) { return v->type; }
realm_gguf_value_type realm_gguf_array_type(const realm_gguf_value *v) { return v->element; }
uint64_t realm_gguf_array_len(const realm_gguf_value *v) { return v->type == REALM_GGUF_ARRAY ? v->n : 0; }

/* An integer from the mapping as sign and magnitude-preserving 64 bits: *negative says that *bits is an int64_t below
 * zero. False for types that are no integers. */
static bool read_integer(realm_gguf_value_type type, const unsigned char *p, uint64_t *bits, bool *negative) {
    *negative = false;
    switch (type) {
#define UNSIGNED(tag, ctype)     \
    case tag: {                  \
        ctype v;                 \
        memcpy(&v, p, sizeof v); \
        *bits = (uint64_t)v;     \
        return true;             \
    }
#define SIGNED(tag, ctype)            \
    case tag: {                       \
        ctype v;                      \
        memcpy(&v, p, sizeof v);      \
        *bits = (uint64_t)(int64_t)v; \
        *negative = v < 0;            \
        return true;                  \
    }
        UNSIGNED(REALM_GGUF_U8, uint8_t)
        UNSIGNED(REALM_GGUF_U16, uint16_t)
        UNSIGNED(REALM_GGUF_U32, uint32_t)
        UNSIGNED(REALM_GGUF_U64, uint64_t)
        UNSIGNED(REALM_GGUF_BOOL, uint8_t)
        SIGNED(REALM_GGUF_I8, int8_t)
        SIGNED(REALM_GGUF_I16, int16_t)
        SIGNED(REALM_GGUF_I32, int32_t)
        SIGNED(REALM_GGUF_I64, int64_t)
#undef UNSIGNED
#undef SIGNED
    default: return false;
    }
}

static bool read_float(realm_gguf_value_type type, const unsigned char *p, double *out) {
    if (type == REALM_GGUF_F32) {
        float f;
        memcpy(&f, p, sizeof f);
        *out = f;
        return true;
    }
    if (type == REALM_GGUF_F64) memcpy(out, p, sizeof *out);
    return type == REALM_GGUF_F64;
}

/* The value of `key`; NULL with REALM_OK in *s when it is absent and may be. */
static const realm_gguf_value *lookup(const realm_gguf *g, const char *key, bool required, realm_status *s,
                                      realm_error *err) {
    const realm_gguf_value *v = realm_gguf_find(g, key);
    *s = v || !required ? REALM_OK : realm_error_set(err, REALM_E_NOT_FOUND, "the model has no key %s", key);
    return v;
}

static realm_status wrong_type(const realm_gguf_value *v, const char *key, const char *wanted, realm_error *err) {
    return realm_error_set(err, REALM_E_FORMAT, "key %s is of type %s, not %s", key, realm_gguf_type_name(v->type),
                           wanted);
}

realm_status realm_gguf_get_u32(const realm_gguf *g, const char *key, bool required, uint32_t *out, realm_error *err) {
    realm_status s;
    const realm_gguf_value *v = lookup(g, key, required, &s, err);
    if (!v) return s;
    uint64_t bits;
    bool negative;
    if (v->type == REALM_GGUF_BOOL || !read_integer(v->type, v->data, &bits, &negative))
        return wrong_type(v, key, "an integer", err);
    if (negative) return realm_error_set(err, REALM_E_FORMAT, "key %s is negative (%lld)", key, (long long)bits);
    if (bits > UINT32_MAX)
        return realm_error_set(err, REALM_E_FORMAT, "key %s is too large (%llu)", key, (unsigned long long)bits);
    *out = (uint32_t)bits;
    return REALM_OK;
}

realm_status realm_gguf_get_f32(const realm_gguf *g, const char *key, bool required, float *out, realm_error *err) {
    realm_status s;
    const realm_gguf_value *v = lookup(g, key, required, &s, err);
    if (!v) return s;
    double d;
    if (!read_float(v->type, v->data, &d)) return wrong_type(v, key, "a float", err);
    if (!isfinite(d) || !isfinite((float)d))
        return realm_error_set(err, REALM_E_FORMAT, "key %s is %g, not a finite number", key, d);
    *out = (float)d;
    return REALM_OK;
}

realm_status realm_gguf_get_bool(const realm_gguf *g, const char *key, bool required, bool *out, realm_error *err) {
    realm_status s;
    const realm_gguf_value *v = lookup(g, key, required, &s, err);
    if (!v) return s;
    if (v->type != REALM_GGUF_BOOL) return wrong_type(v, key, "bool", err);
    *out = v->data[0] != 0;
    return REALM_OK;
}

realm_status realm_gguf_get_str(const realm_gguf *g, const char *key, bool required, realm_gguf_str *out,
                                realm_error *err) {
    realm_status s;
    const realm_gguf_value *v = lookup(g, key, required, &s, err);
    if (!v) return s;
    if (v->type != REALM_GGUF_STRING) return wrong_type(v, key, "a string", err);
    *out = (realm_gguf_str){(const char *)v->data, (size_t)v->n};
    return REALM_OK;
}

void realm_gguf_iter_init(realm_gguf_iter *it, const realm_gguf_value *string_array) {
    *it = (realm_gguf_iter){.v = string_array, .at = string_array->data, .index = 0};
}

bool realm_gguf_iter_next(realm_gguf_iter *it, realm_gguf_str *out) {
    if (it->v->type != REALM_GGUF_ARRAY || it->v->element != REALM_GGUF_STRING || it->index >= it->v->n) return false;
    uint64_t len;
    memcpy(&len, it->at, sizeof len);
    *out = (realm_gguf_str){(const char *)it->at + sizeof len, (size_t)len};
    it->at += sizeof len + (size_t)len;
    it->index++;
    return true;
}

int64_t realm_gguf_array_i64(const realm_gguf_value *v, uint64_t i) {
    uint64_t bits = 0;
    bool negative;
    if (!read_integer(v->element, v->data + i * realm_gguf_scalar_bytes(v->element), &bits, &negative)) return 0;
    return !negative && bits > INT64_MAX ? INT64_MAX : (int64_t)bits;
}

double realm_gguf_array_f64(const realm_gguf_value *v, uint64_t i) {
    const unsigned char *p = v->data + i * realm_gguf_scalar_bytes(v->element);
    double d = 0;
    uint64_t bits = 0;
    bool negative;
    if (read_float(v->element, p, &d)) return d;
    if (!read_integer(v->element, p, &bits, &negative)) return 0;
    return negative ? (double)(int64_t)bits : (double)bits;
}
