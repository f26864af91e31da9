/* model/bind.c - tensors by name, their shapes held against the hyperparameters, handed to the backend.
 *
 * A family describes its blocks as a table of (suffix, field, rows, cols); this file does the rest. After the backend
 * has repacked a tensor its pages of the mapping are given back, so that the weights are resident once; rows that are
 * looked up later (the embedding) come back from the page cache one by one. At the end every tensor of the file must
 * have been used: one that was not means a variant of the architecture that is not computed here.
 */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/str.h"
#include "model/internal.h"

void realm_binder_init(realm_binder *b, realm_model *m, realm_model_progress progress, void *user) {
    *b = (realm_binder){.m = m, .layer = REALM_LAYER_NONE, .progress = progress, .user = user};
    size_t n = realm_gguf_tensor_count(m->g);
    for (size_t i = 0; i < n; i++) b->total_bytes += realm_gguf_tensor_at(m->g, i)->n_bytes;
}

static realm_status keep(realm_model *m, realm_weight *w) {
    if (m->n_weights == m->cap_weights) {
        size_t cap = m->cap_weights ? m->cap_weights * 2 : 64;
        realm_weight **p = realm_realloc_array(m->weights, cap, sizeof(realm_weight *));
        if (!p) return REALM_E_NOMEM;
        m->weights = p;
        m->cap_weights = cap;
    }
    m->weights[m->n_weights++] = w;
    return REALM_OK;
}

/* The same for (rows, cols) of any use. */
static realm_status bind_matrix(realm_binder *b, const char *name, uint64_t rows, uint64_t cols, unsigned use,
                                realm_presence presence, const realm_weight **out, realm_error *err) {
    realm_model *m = b->m;
    *out = NULL;
    const realm_gguf_tensor *t = realm_gguf_tensor_find(m->g, name);
    if (!t) {
        if (presence == REALM_OPTIONAL) return REALM_OK;
        return realm_error_set(err, REALM_E_FORMAT, "tensor %s is missing", name);
    }
    if (t->dims[0] != cols || t->dims[1] != rows || t->dims[2] != 1 || t->dims[3] != 1)
        return realm_error_set(
            err, REALM_E_FORMAT, "tensor %s is %llu x %llu x %llu x %llu, it must be %llu x %llu by the metadata", name,
            (unsigned long long)t->dims[0], (unsigned long long)t->dims[1], (unsigned long long)t->dims[2],
            (unsigned long long)t->dims[3], (unsigned long long)cols, (unsigned long long)rows);
    /* Streaming in measuring stands for a shape that is not repacked. */
    const bool streamed = (use & REALM_WEIGHT_LINEAR) &&
                          (b->mode == BIND_MEASURE || (b->mode == BIND_STREAM && b->layer != REALM_LAYER_NONE));
    if (streamed) use = REALM_WEIGHT_LINEAR | REALM_WEIGHT_STREAMED;
    realm_weight_desc desc = {.type = t->type, .rows = rows, .cols = cols, .data = t->data, .use = use};
    realm_weight *w = NULL;
    realm_backend_turn_begin(m->backend);
    realm_status s = m->backend->v->weight_open(m->backend, &desc, &w, err);
    realm_backend_turn_end(m->backend);
    if (s != REALM_OK) {
        realm_error_prefix(err, "tensor %s", name);
        return s;
    }
    if (keep(m, w) != REALM_OK) {
        realm_backend_turn_begin(m->backend);
        m->backend->v->weight_close(m->backend, w);
        realm_backend_turn_end(m->backend);
        return realm_error_set(err, REALM_E_NOMEM, "no memory to bind tensor %s", name);
    }
    if (!streamed || b->layer == REALM_LAYER_NONE) m->weight_bytes += m->backend->v->weight_bytes(w);
    realm_model_tensor *mt = &m->tensors[t - realm_gguf_tensor_at(m->g, 0)];
    mt->weight = w;
    mt->use = use;
    mt->layer = b->layer;
    b->done_bytes += t->n_bytes;
    realm_gguf_drop_pages(m->g, t);
    if (b->progress && !b->progress(b->user, b->done_bytes, b->total_bytes))
        return realm_error_set(err, REALM_E_CANCELLED, "given up while it was loaded");
    *out = w;
    return REALM_OK;
}

realm_status realm_bind_vector(realm_binder *b, const char *name, uint64_t n, realm_presence presence,
                               const realm_weight **out, realm_error *err) {
    return bind_matrix(b, name, 1, n, REALM_WEIGHT_VECTOR, presence, out, err);
}

static uint64_t dim_of(const realm_hparams *hp, realm_dim d) {
    switch (d) {
    case REALM_DIM_ONE: return 1;
    case REALM_DIM_MODEL: return hp->d_model;
    case REALM_DIM_FF: return hp->d_ff;
    case REALM_DIM_Q: return (uint64_t)hp->n_head * hp->head_dim;
    case REALM_DIM_KV: return (uint64_t)hp->n_kv_head * hp->head_dim;
    case REALM_DIM_HEAD: return hp->head_dim;
    }
    return 0;
}

realm_status realm_bind_layers(realm_binder *b, const realm_layer_row *rows, size_t n_rows, realm_error *err) {
    realm_model *m = b->m;
    for (uint32_t i = 0; i < m->hp.n_layers; i++) {
        b->layer = i;
        for (size_t r = 0; r < n_rows; r++) {
            const realm_layer_row *row = &rows[r];
            char name[96];
            snprintf(name, sizeof name, "blk.%u.%s", i, row->suffix);
            const realm_weight *w;
            realm_status s = bind_matrix(b, name, dim_of(&m->hp, row->rows), dim_of(&m->hp, row->cols),
                                         row->rows == REALM_DIM_ONE ? REALM_WEIGHT_VECTOR : REALM_WEIGHT_LINEAR,
                                         row->presence, &w, err);
            if (s != REALM_OK) return s;
            memcpy((char *)&m->layers[i] + row->offset, &w, sizeof w);
        }
    }
    b->layer = REALM_LAYER_NONE;
    return REALM_OK;
}

realm_status realm_bind_ends(realm_binder *b, realm_error *err) {
    realm_model *m = b->m;
    const realm_hparams *hp = &m->hp;
    m->hp.tied_output = realm_gguf_tensor_find(m->g, "output.weight") == NULL;
    unsigned use = REALM_WEIGHT_ROWS | (hp->tied_output ? REALM_WEIGHT_LINEAR : 0u);
    realm_status s = bind_matrix(b, "token_embd.weight", hp->n_vocab, hp->d_model, use, REALM_REQUIRED, &m->embed, err);
    if (s == REALM_OK) s = realm_bind_vector(b, "output_norm.weight", hp->d_model, REALM_REQUIRED, &m->out_norm, err);
    m->output = m->embed;
    if (s == REALM_OK && !hp->tied_output)
        s = bind_matrix(b, "output.weight", hp->n_vocab, hp->d_model, REALM_WEIGHT_LINEAR, REALM_REQUIRED, &m->output,
                        err);
    return s;
}

realm_status realm_binder_check_all_used(const realm_binder *b, realm_error *err) {
    size_t n = realm_gguf_tensor_count(b->m->g);
    for (size_t i = 0; i < n; i++) {
        if (b->m->tensors[i].weight) continue;
        const realm_gguf_tensor *t = b->m->tensors[i].file;
        char name[128];
        return realm_error_set(err, REALM_E_UNSUPPORTED, "tensor %s is not known to architecture %s",
                               realm_escape(name, sizeof name, t->name.data, t->name.len), b->m->hp.arch);
    }
    return REALM_OK;
}
