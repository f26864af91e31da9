/* Puts model files together byte by byte, as no writer would. */
#ifndef REALM_TESTS_GGUF_BYTES_H
#define REALM_TESTS_GGUF_BYTES_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "gguf/gguf.h"

typedef struct bytes {
    unsigned char *p;
    size_t n, cap;
} bytes;

static void b_raw(bytes *b, const void *data, size_t n) {
    if (b->cap - b->n < n) {
        b->cap = 2 * (b->n + n) + 64;
        b->p = realloc(b->p, b->cap);
        if (!b->p) abort();
    }
    if (n) memcpy(b->p + b->n, data, n);
    b->n += n;
}
static void b_u8(bytes *b, uint8_t v) { b_raw(b, &v, 1); }
static void b_u32(bytes *b, uint32_t v) { b_raw(b, &v, 4); }
static void b_u64(bytes *b, uint64_t v) { b_raw(b, &v, 8); }
static void b_f32(bytes *b, float v) { b_raw(b, &v, 4); }
static void b_strn(bytes *b, const char *s, size_t n) {
    b_u64(b, n);
    b_raw(b, s, n);
}
static void b_str(bytes *b, const char *s) { b_strn(b, s, strlen(s)); }
static void b_zeros(bytes *b, size_t n) {
    while (n--) b_u8(b, 0);
}
static void b_header(bytes *b, uint64_t n_tensors, uint64_t n_keys) {
    b_raw(b, "GGUF", 4);
    b_u32(b, 3);
    b_u64(b, n_tensors);
    b_u64(b, n_keys);
}
static void b_key(bytes *b, const char *key, uint32_t type) {
    b_str(b, key);
    b_u32(b, type);
}
static void b_key_u32(bytes *b, const char *key, uint32_t v) {
    b_key(b, key, REALM_GGUF_U32);
    b_u32(b, v);
}
static void b_array(bytes *b, const char *key, uint32_t element, uint64_t n) {
    b_key(b, key, REALM_GGUF_ARRAY);
    b_u32(b, element);
    b_u64(b, n);
}
/* A record with up to four dimensions; the rest of `dims` is not written. */
static void b_tensor(bytes *b, const char *name, uint32_t n_dims, const uint64_t dims[4], uint32_t type,
                     uint64_t offset) {
    b_str(b, name);
    b_u32(b, n_dims);
    for (uint32_t d = 0; d < n_dims && d < 4; d++) b_u64(b, dims[d]);
    b_u32(b, type);
    b_u64(b, offset);
}
/* Padding to the alignment, then n bytes of tensor data. */
static void b_data(bytes *b, size_t alignment, size_t n) {
    b_zeros(b, (alignment - b->n % alignment) % alignment);
    b_zeros(b, n);
}

#endif
