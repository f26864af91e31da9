/* Walks everything that an opened file offers, as a trusting caller would: a sanitizer build then shows what the reader
 * failed to check. Used by the unit tests and the fuzzer; a broken promise aborts. */
#ifndef REALM_TESTS_GGUF_WALK_H
#define REALM_TESTS_GGUF_WALK_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "gguf/gguf.h"

static volatile uint64_t walk_sink;

static void walk_require(bool promise) {
    if (!promise) abort();
}

static void walk_bytes(const void *data, uint64_t n) {
    const unsigned char *p = data;
    uint64_t sum = 0;
    for (uint64_t i = 0; i < n; i++) sum += p[i];
    walk_sink += sum;
}

static void walk_name(realm_gguf_str name) {
    walk_require(name.len > 0 && name.len <= REALM_GGUF_MAX_NAME && !memchr(name.data, 0, name.len));
    walk_bytes(name.data, name.len);
}

static void walk_key(const realm_gguf *g, size_t i) {
    char name[REALM_GGUF_MAX_NAME + 1];
    realm_gguf_str key = realm_gguf_key_at(g, i), s = {0};
    const realm_gguf_value *v = realm_gguf_value_at(g, i);
    uint32_t u = 0;
    float f = 0;
    bool b = false;
    walk_name(key);
    memcpy(name, key.data, key.len);
    name[key.len] = '\0';
    walk_require(realm_gguf_find(g, name) == v);
    walk_sink += (uint64_t)(realm_gguf_get_u32(g, name, true, &u, NULL) == REALM_OK);
    walk_sink += (uint64_t)(realm_gguf_get_f32(g, name, true, &f, NULL) == REALM_OK);
    walk_sink += (uint64_t)(realm_gguf_get_bool(g, name, true, &b, NULL) == REALM_OK);
    if (realm_gguf_get_str(g, name, true, &s, NULL) == REALM_OK) walk_bytes(s.data, s.len);
    if (realm_gguf_type(v) != REALM_GGUF_ARRAY) return;
    realm_gguf_value_type e = realm_gguf_array_type(v);
    uint64_t n = realm_gguf_array_len(v), seen = 0;
    if (e == REALM_GGUF_STRING) {
        realm_gguf_iter it;
        for (realm_gguf_iter_init(&it, v); realm_gguf_iter_next(&it, &s); seen++) walk_bytes(s.data, s.len);
        walk_require(seen == n);
    } else if (e != REALM_GGUF_ARRAY) {
        for (uint64_t k = 0; k < n; k++) {
            walk_sink += (uint64_t)realm_gguf_array_i64(v, k);
            walk_sink += (uint64_t)(realm_gguf_array_f64(v, k) > 0);
        }
    }
}

static void walk_tensor(const realm_gguf *g, size_t i, const unsigned char *data, size_t size) {
    char name[REALM_GGUF_MAX_NAME + 1];
    const realm_gguf_tensor *t = realm_gguf_tensor_at(g, i);
    uint64_t expected, rows = 1;
    walk_name(t->name);
    memcpy(name, t->name.data, t->name.len);
    name[t->name.len] = '\0';
    walk_require(realm_gguf_tensor_find(g, name) == t);
    walk_require(t->n_dims >= 1 && t->n_dims <= REALM_GGUF_MAX_DIMS);
    for (uint32_t d = 0; d < REALM_GGUF_MAX_DIMS; d++) {
        walk_require(t->dims[d] > 0 && (d < t->n_dims || t->dims[d] == 1));
        if (d) walk_require(realm_mul_u64(rows, t->dims[d], &rows));
    }
    walk_require(realm_type_row_bytes(t->type, t->dims[0], &expected) && realm_mul_u64(expected, rows, &expected));
    walk_require(expected == t->n_bytes && expected > 0 && expected <= size);
    const unsigned char *start = t->data;
    walk_require(start >= data && (size_t)(start - data) <= size - expected);
    walk_require((uint64_t)(start - data) % realm_gguf_alignment(g) == 0);
    walk_bytes(start, expected);
    for (size_t k = 0; k < i && k < 64; k++) {
        const realm_gguf_tensor *o = realm_gguf_tensor_at(g, k);
        const unsigned char *other = o->data;
        walk_require(other + o->n_bytes <= start || start + t->n_bytes <= other);
    }
    if (t->type->dequantize && t->dims[0] <= 1u << 16) {
        float *row = malloc((size_t)t->dims[0] * sizeof *row);
        walk_require(row != NULL);
        t->type->dequantize(start + (rows - 1) * (t->n_bytes / rows), row, (size_t)t->dims[0]);
        free(row);
    }
}

/* `data` and `size` are what the file was opened from. */
static void walk_gguf(const realm_gguf *g, const void *data, size_t size) {
    walk_require(realm_gguf_file_size(g) == size);
    walk_require(realm_gguf_version(g) == 2 || realm_gguf_version(g) == 3);
    for (size_t i = 0; i < realm_gguf_key_count(g); i++) walk_key(g, i);
    for (size_t i = 0; i < realm_gguf_tensor_count(g); i++) walk_tensor(g, i, data, size);
    for (int json = 0; json < 2; json++) {
        realm_buf out;
        realm_buf_init(&out, (size_t)64 << 20);
        walk_require(realm_gguf_describe(g, json, 0, &out, NULL) == REALM_OK);
        walk_bytes(out.data, out.len);
        realm_buf_release(&out);
    }
    walk_sink += (uint64_t)(realm_gguf_check_metadata(g, NULL) == REALM_OK);
}

/* Opens an exact-size heap copy of the bytes (so that a read past the end is seen), walks it if it opens, and returns
 * the status. A failure must come with one line of text. */
static realm_status walk_copy(const void *data, size_t size, realm_error *err) {
    unsigned char *copy = realm_malloc_aligned(size, 16);
    realm_gguf *g = NULL;
    walk_require(copy != NULL);
    if (size) memcpy(copy, data, size);
    realm_error_clear(err);
    realm_status s = realm_gguf_open_memory(&g, copy, size, err);
    walk_require((s == REALM_OK) == (g != NULL));
    if (s == REALM_OK)
        walk_gguf(g, copy, size);
    else
        walk_require(err->code == s && err->text[0] && !strchr(err->text, '\n'));
    realm_gguf_close(g);
    realm_free(copy);
    return s;
}

#endif
