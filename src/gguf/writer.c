/* gguf/writer.c - builds a GGUF file in memory: metadata is encoded as it is added, tensors are remembered and copied
 * at the end.
 *
 * Layout as in reader.c. The result is opened with the reader before it is handed out, so that a writer can never
 * produce what Realm would refuse (a name used twice, a size past a limit). Meant for tests, conversions of small files
 * and tools; a file is held in memory once more while it is written.
 */
#include <string.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "base/file.h"
#include "gguf/internal.h"

#define DEFAULT_ALIGNMENT 32u

typedef struct pending_tensor {
    char *name;
    realm_type type;
    uint32_t n_dims;
    uint64_t dims[REALM_GGUF_MAX_DIMS];
    uint64_t n_bytes;
    const void *data; /* borrowed */
} pending_tensor;

struct realm_gguf_writer {
    uint32_t version, alignment;
    realm_buf keys; /* encoded */
    uint64_t n_keys;
    pending_tensor *tensors;
    size_t n_tensors, cap_tensors;
};

static void put_u32(realm_buf *b, uint32_t v) { (void)realm_buf_append(b, &v, sizeof v); }
static void put_u64(realm_buf *b, uint64_t v) { (void)realm_buf_append(b, &v, sizeof v); }
static void put_bytes(realm_buf *b, const char *s, size_t len) {
    put_u64(b, len);
    if (len) (void)realm_buf_append(b, s, len);
}

/* Closes one key: counts it, or takes back what a failed append left of it. */
static realm_status end_key(realm_gguf_writer *w, size_t start) {
    realm_status s = realm_buf_status(&w->keys);
    if (s == REALM_OK) {
        w->n_keys++;
        return REALM_OK;
    }
    w->keys.failed = REALM_OK;
    w->keys.len = start;
    return s;
}

static bool name_ok(const char *name) {
    size_t len = strlen(name);
    return len > 0 && len <= REALM_GGUF_MAX_NAME;
}

static realm_status put_scalar(realm_gguf_writer *w, const char *key, realm_gguf_value_type type, const void *v) {
    size_t start = w->keys.len;
    if (!name_ok(key)) return REALM_E_INVALID;
    put_bytes(&w->keys, key, strlen(key));
    put_u32(&w->keys, type);
    (void)realm_buf_append(&w->keys, v, realm_gguf_scalar_bytes(type));
    return end_key(w, start);
}

realm_status realm_gguf_writer_open(realm_gguf_writer **out, uint32_t version, uint32_t alignment, realm_error *err) {
    *out = NULL;
    if (version < 2 || version > 3)
        return realm_error_set(err, REALM_E_INVALID, "GGUF version %u; versions 2 and 3 are written", version);
    if (!realm_is_pow2(alignment) || alignment < REALM_GGUF_MIN_ALIGNMENT || alignment > REALM_GGUF_MAX_ALIGNMENT)
        return realm_error_set(err, REALM_E_INVALID, "alignment %u, not a power of two in %u..%u", alignment,
                               REALM_GGUF_MIN_ALIGNMENT, REALM_GGUF_MAX_ALIGNMENT);
    realm_gguf_writer *w = realm_calloc(1, sizeof *w);
    if (!w) return realm_error_set(err, REALM_E_NOMEM, "out of memory");
    w->version = version;
    w->alignment = alignment;
    realm_buf_init(&w->keys, SIZE_MAX / 4);
    if (alignment != DEFAULT_ALIGNMENT) {
        realm_status s = realm_gguf_put_u32(w, "general.alignment", alignment);
        if (s != REALM_OK) {
            realm_gguf_writer_close(w);
            return realm_error_set(err, s, "%s", realm_status_text(s));
        }
    }
    *out = w;
    return REALM_OK;
}

void realm_gguf_writer_close(realm_gguf_writer *w) {
    if (!w) return;
    for (size_t i = 0; i < w->n_tensors; i++) realm_free(w->tensors[i].name);
    realm_free(w->tensors);
    realm_buf_release(&w->keys);
    realm_free(w);
}

realm_status realm_gguf_put_u32(realm_gguf_writer *w, const char *key, uint32_t v) {
    return put_scalar(w, key, REALM_GGUF_U32, &v);
}

realm_status realm_gguf_put_f32(realm_gguf_writer *w, const char *key, float v) {
    return put_scalar(w, key, REALM_GGUF_F32, &v);
}

realm_status realm_gguf_put_bool(realm_gguf_writer *w, const char *key, bool v) {
    uint8_t byte = v;
    return put_scalar(w, key, REALM_GGUF_BOOL, &byte);
}

realm_status realm_gguf_put_str(realm_gguf_writer *w, const char *key, const char *s, size_t len) {
    size_t start = w->keys.len;
    if (!name_ok(key) || len > REALM_GGUF_MAX_STRING) return REALM_E_INVALID;
    put_bytes(&w->keys, key, strlen(key));
    put_u32(&w->keys, REALM_GGUF_STRING);
    put_bytes(&w->keys, s, len);
    return end_key(w, start);
}

realm_status realm_gguf_put_strs(realm_gguf_writer *w, const char *key, const realm_gguf_str *s, size_t n) {
    size_t start = w->keys.len;
    if (!name_ok(key)) return REALM_E_INVALID;
    for (size_t i = 0; i < n; i++)
        if (s[i].len > REALM_GGUF_MAX_STRING) return REALM_E_INVALID;
    put_bytes(&w->keys, key, strlen(key));
    put_u32(&w->keys, REALM_GGUF_ARRAY);
    put_u32(&w->keys, REALM_GGUF_STRING);
    put_u64(&w->keys, n);
    for (size_t i = 0; i < n; i++) put_bytes(&w->keys, s[i].data, s[i].len);
    return end_key(w, start);
}

realm_status realm_gguf_put_array(realm_gguf_writer *w, const char *key, realm_gguf_value_type type, const void *data,
                                  size_t n) {
    size_t start = w->keys.len, bytes;
    if (!name_ok(key) || realm_gguf_scalar_bytes(type) == 0 ||
        !realm_mul_size(n, realm_gguf_scalar_bytes(type), &bytes))
        return REALM_E_INVALID;
    put_bytes(&w->keys, key, strlen(key));
    put_u32(&w->keys, REALM_GGUF_ARRAY);
    put_u32(&w->keys, type);
    put_u64(&w->keys, n);
    if (bytes) (void)realm_buf_append(&w->keys, data, bytes);
    return end_key(w, start);
}

realm_status realm_gguf_put_tensor(realm_gguf_writer *w, const char *name, realm_type type, uint32_t n_dims,
                                   const uint64_t *dims, const void *data) {
    const realm_type_info *info = realm_type_get(type);
    pending_tensor t = {.type = type, .n_dims = n_dims, .data = data};
    if (!name_ok(name) || !info || !data || n_dims < 1 || n_dims > REALM_GGUF_MAX_DIMS) return REALM_E_INVALID;
    if (!realm_type_row_bytes(info, dims[0], &t.n_bytes)) return REALM_E_INVALID;
    for (uint32_t d = 0; d < n_dims; d++) {
        t.dims[d] = dims[d];
        if (dims[d] == 0 || (d > 0 && !realm_mul_u64(t.n_bytes, dims[d], &t.n_bytes))) return REALM_E_INVALID;
    }
    if (w->n_tensors == w->cap_tensors) {
        size_t cap = w->cap_tensors ? 2 * w->cap_tensors : 16;
        pending_tensor *p = realm_realloc_array(w->tensors, cap, sizeof *p);
        if (!p) return REALM_E_NOMEM;
        w->tensors = p;
        w->cap_tensors = cap;
    }
    t.name = realm_strdup(name);
    if (!t.name) return REALM_E_NOMEM;
    w->tensors[w->n_tensors++] = t;
    return REALM_OK;
}

/* Header, keys and tensor records into `head`; the offset behind the last tensor (unpadded) into *data_bytes. */
static realm_status encode_head(const realm_gguf_writer *w, realm_buf *head, uint64_t *data_bytes) {
    uint64_t offset = 0, end = 0;
    (void)realm_buf_append(head, "GGUF", 4);
    put_u32(head, w->version);
    put_u64(head, w->n_tensors);
    put_u64(head, w->n_keys);
    if (w->keys.len) (void)realm_buf_append(head, w->keys.data, w->keys.len);
    for (size_t i = 0; i < w->n_tensors; i++) {
        const pending_tensor *t = &w->tensors[i];
        if (!realm_align_u64(end, w->alignment, &offset) || !realm_add_u64(offset, t->n_bytes, &end))
            return REALM_E_LIMIT;
        put_bytes(head, t->name, strlen(t->name));
        put_u32(head, t->n_dims);
        for (uint32_t d = 0; d < t->n_dims; d++) put_u64(head, t->dims[d]);
        put_u32(head, t->type);
        put_u64(head, offset);
    }
    *data_bytes = end;
    return realm_buf_status(head);
}

realm_status realm_gguf_writer_finish(realm_gguf_writer *w, void **data, size_t *len, realm_error *err) {
    realm_buf head;
    uint64_t data_bytes = 0, data_start = 0, total = 0;
    unsigned char *p = NULL;
    realm_gguf *check = NULL;
    realm_buf_init(&head, SIZE_MAX / 4);
    realm_status s = encode_head(w, &head, &data_bytes);
    if (s == REALM_OK &&
        (!realm_align_u64(head.len, w->alignment, &data_start) || !realm_align_u64(data_bytes, w->alignment, &total) ||
         !realm_add_u64(total, data_start, &total) || total > SIZE_MAX))
        s = REALM_E_LIMIT;
    if (s == REALM_OK && !(p = realm_calloc((size_t)total, 1))) s = REALM_E_NOMEM;
    if (s != REALM_OK) {
        (void)realm_error_set(err, s, "writing a model file of %zu tensors: %s", w->n_tensors, realm_status_text(s));
        goto fail;
    }
    memcpy(p, head.data, head.len);
    unsigned char *at = p + data_start;
    for (size_t i = 0; i < w->n_tensors; i++) {
        const pending_tensor *t = &w->tensors[i];
        uint64_t padded;
        memcpy(at, t->data, (size_t)t->n_bytes);
        at += realm_align_u64(t->n_bytes, w->alignment, &padded) ? padded : 0; /* the sum fitted, so does this */
    }
    s = realm_gguf_open_memory(&check, p, (size_t)total, err);
    if (s != REALM_OK) goto fail;
    realm_gguf_close(check);
    realm_buf_release(&head);
    *data = p;
    *len = (size_t)total;
    return REALM_OK;
fail:
    realm_free(p);
    realm_buf_release(&head);
    return s;
}

realm_status realm_gguf_writer_save(realm_gguf_writer *w, const char *path, realm_error *err) {
    void *data;
    size_t len;
    realm_status s = realm_gguf_writer_finish(w, &data, &len, err);
    if (s != REALM_OK) return s;
    s = realm_file_replace(path, data, len, 0644, err);
    realm_free(data);
    return s;
}
