/* model/tensors.c - the tensors of a model by name and by layer. */
#include <string.h>

#include "base/alloc.h"
#include "model/internal.h"

realm_status realm_tensors_init(realm_model *m, realm_error *err) {
    const size_t n = realm_gguf_tensor_count(m->g);
    m->tensors = realm_calloc(n, sizeof *m->tensors);
    m->by_layer = realm_calloc(n, sizeof *m->by_layer);
    m->first_of_layer = realm_calloc((size_t)m->hp.n_layers + 1, sizeof *m->first_of_layer);
    if (!m->tensors || !m->by_layer || !m->first_of_layer)
        return realm_error_set(err, REALM_E_NOMEM, "no memory to bind %zu tensors", n);
    for (size_t i = 0; i < n; i++)
        m->tensors[i] = (realm_model_tensor){.file = realm_gguf_tensor_at(m->g, i), .layer = REALM_LAYER_NONE};
    return REALM_OK;
}

void realm_tensors_index(realm_model *m) {
    const size_t n = realm_gguf_tensor_count(m->g);
    size_t *first = m->first_of_layer;
    for (size_t i = 0; i < n; i++)
        if (m->tensors[i].layer != REALM_LAYER_NONE) first[m->tensors[i].layer + 1]++;
    for (uint32_t i = 0; i < m->hp.n_layers; i++) first[i + 1] += first[i];
    for (size_t i = 0; i < n; i++) /* moves first[layer] to the end of the layer ... */
        if (m->tensors[i].layer != REALM_LAYER_NONE) m->by_layer[first[m->tensors[i].layer]++] = &m->tensors[i];
    for (uint32_t i = m->hp.n_layers; i > 0; i--) first[i] = first[i - 1]; /* ... which is where the next one begins */
    first[0] = 0;
}

void realm_tensors_release(realm_model *m) {
    realm_free(m->tensors);
    realm_free(m->by_layer);
    realm_free(m->first_of_layer);
}

const realm_model_tensor *realm_model_tensor_find(const realm_model *m, const char *name, size_t len) {
    char text[REALM_GGUF_MAX_NAME + 1];
    if (len == 0 || len >= sizeof text || memchr(name, '\0', len)) return NULL;
    memcpy(text, name, len);
    text[len] = '\0';
    const realm_gguf_tensor *t = realm_gguf_tensor_find(m->g, text);
    return t ? &m->tensors[t - realm_gguf_tensor_at(m->g, 0)] : NULL;
}

const realm_model_tensor *const *realm_model_layer_tensors(const realm_model *m, uint32_t layer, size_t *n) {
    *n = 0;
    if (layer >= m->hp.n_layers) return NULL;
    *n = m->first_of_layer[layer + 1] - m->first_of_layer[layer];
    return (const realm_model_tensor *const *)m->by_layer + m->first_of_layer[layer];
}

realm_status realm_model_tensor_rows(const realm_model_tensor *t, uint64_t first, uint64_t n, float *out,
                                     realm_error *err) {
    const realm_gguf_tensor *f = t->file;
    const uint64_t cols = f->dims[0],
                   rows = f->dims[1] * f->dims[2] * f->dims[3]; /* checked when the file was opened */
    uint64_t row_bytes;
    if (first > rows || n > rows - first)
        return realm_error_set(err, REALM_E_RANGE, "rows %llu + %llu of a tensor of %llu", (unsigned long long)first,
                               (unsigned long long)n, (unsigned long long)rows);
    if (!f->type->dequantize || !realm_type_row_bytes(f->type, cols, &row_bytes))
        return realm_error_set(err, REALM_E_UNSUPPORTED, "tensor type %s cannot be dequantised", f->type->name);
    for (uint64_t i = 0; i < n; i++)
        f->type->dequantize((const char *)f->data + (first + i) * row_bytes, out + i * cols, (size_t)cols);
    return REALM_OK;
}
