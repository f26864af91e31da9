/* tensor/tensor.c - budgets, handles, and reading and writing their values. */
#include <string.h>

#include "base/alloc.h"
#include "tensor/internal.h"

#define MAPPED_BYTES ((size_t)1 << 20) /* values from here on are mapped, and zeroed as they are touched */
#define DATA_ALIGN 64u

/* ---- budgets ----------------------------------------------------------------------------------------------------- */

realm_status realm_tensor_budget_open(uint64_t limit_bytes, realm_tensor_budget **out, realm_error *err) {
    realm_tensor_budget *b = realm_calloc(1, sizeof *b);
    *out = b;
    if (!b) return realm_error_set(err, REALM_E_NOMEM, "no memory for a tensor budget");
    atomic_init(&b->refs, 1);
    atomic_init(&b->limit_bytes, limit_bytes);
    return REALM_OK;
}

/* relaxed: whoever retains has a reference already */
void tensor_budget_retain(realm_tensor_budget *b) { atomic_fetch_add_explicit(&b->refs, 1, memory_order_relaxed); }

void realm_tensor_budget_close(realm_tensor_budget *b) {
    /* acq_rel: the last one sees what the others did */
    if (b && atomic_fetch_sub_explicit(&b->refs, 1, memory_order_acq_rel) == 1) realm_free(b);
}

void realm_tensor_budget_set_limit(realm_tensor_budget *b, uint64_t limit_bytes) {
    atomic_store_explicit(&b->limit_bytes, limit_bytes, memory_order_relaxed);
}

void realm_tensor_budget_usage(realm_tensor_budget *b, realm_tensor_usage *out) {
    *out = (realm_tensor_usage){.bytes = atomic_load_explicit(&b->bytes, memory_order_relaxed),
                                .limit_bytes = atomic_load_explicit(&b->limit_bytes, memory_order_relaxed),
                                .ops = atomic_load_explicit(&b->ops, memory_order_relaxed),
                                .device_ns = atomic_load_explicit(&b->device_ns, memory_order_relaxed),
                                .lists = atomic_load_explicit(&b->lists, memory_order_relaxed)};
}

/* relaxed: a count that guards nothing but itself */
realm_status realm_tensor_budget_charge(realm_tensor_budget *b, uint64_t bytes, const char *what, realm_error *err) {
    uint64_t limit = atomic_load_explicit(&b->limit_bytes, memory_order_relaxed);
    uint64_t used = atomic_load_explicit(&b->bytes, memory_order_relaxed);
    do {
        if (used > limit || bytes > limit - used)
            return realm_error_set(err, REALM_E_LIMIT, "%s of %llu bytes: %llu of %llu bytes for tensors are left",
                                   what, (unsigned long long)bytes,
                                   (unsigned long long)(used < limit ? limit - used : 0), (unsigned long long)limit);
    } while (!atomic_compare_exchange_weak_explicit(&b->bytes, &used, used + bytes, memory_order_relaxed,
                                                    memory_order_relaxed));
    return REALM_OK;
}

void realm_tensor_budget_refund(realm_tensor_budget *b, uint64_t bytes) {
    atomic_fetch_sub_explicit(&b->bytes, bytes, memory_order_relaxed);
}

/* ---- handles ----------------------------------------------------------------------------------------------------- */

realm_status realm_tensor_new(realm_tensor_budget *b, uint32_t n_dims, const uint64_t *dims, realm_tensor **out,
                              realm_error *err) {
    *out = NULL;
    if (n_dims == 0 || n_dims > REALM_TENSOR_MAX_DIMS)
        return realm_error_set(err, REALM_E_RANGE, "a tensor of %u dimensions: 1 to %u", n_dims, REALM_TENSOR_MAX_DIMS);
    realm_tensor_info info = {.n_dims = n_dims,
                              .dims = {1, 1, 1, 1},
                              .rows = 1,
                              .cols = dims[n_dims - 1],
                              .type = realm_type_get(REALM_TYPE_F32),
                              .layer = REALM_LAYER_NONE};
    for (uint32_t i = 0; i < n_dims; i++) {
        info.dims[i] = dims[i];
        if (dims[i] == 0) return realm_error_set(err, REALM_E_RANGE, "dimension %u of a tensor is 0", i);
        if (i + 1 < n_dims && (!realm_mul_u64(info.rows, dims[i], &info.rows) || info.rows > REALM_TENSOR_MAX_ROWS))
            return realm_error_set(err, REALM_E_RANGE, "a tensor of more than %u rows", REALM_TENSOR_MAX_ROWS);
    }
    if (info.cols > REALM_TENSOR_MAX_COLS)
        return realm_error_set(err, REALM_E_RANGE, "a tensor of more than %u columns", REALM_TENSOR_MAX_COLS);
    info.bytes = info.rows * info.cols * sizeof(float); /* 2^24 * 2^24 * 4 at most */
    const uint64_t charged = info.bytes + sizeof(realm_tensor);
    realm_status s = realm_tensor_budget_charge(b, charged, "a tensor", err);
    if (s != REALM_OK) return s;
    realm_tensor *t = realm_calloc(1, sizeof *t);
    const bool mapped = info.bytes >= MAPPED_BYTES;
    float *data = NULL;
    if (t && info.bytes <= SIZE_MAX)
        data = mapped ? realm_pages_map((size_t)info.bytes) : realm_malloc_aligned((size_t)info.bytes, DATA_ALIGN);
    if (!data) {
        realm_free(t);
        realm_tensor_budget_refund(b, charged);
        return realm_error_set(err, REALM_E_NOMEM, "no memory for a tensor of %llu bytes",
                               (unsigned long long)info.bytes);
    }
    if (!mapped) memset(data, 0, (size_t)info.bytes);
    atomic_init(&t->refs, 1);
    t->info = info;
    t->budget = b;
    t->data = data;
    t->mapped = mapped;
    t->charged = charged;
    tensor_budget_retain(b);
    *out = t;
    return REALM_OK;
}

realm_status realm_tensor_of_weight(realm_model *m, const char *name, size_t len, void (*release)(void *user),
                                    void *user, realm_tensor **out, realm_error *err) {
    *out = NULL;
    const realm_model_tensor *w = realm_model_tensor_find(m, name, len);
    if (!w)
        return realm_error_set(err, REALM_E_NOT_FOUND, "the model has no tensor \"%.*s\"", (int)REALM_MIN(len, 128u),
                               name);
    realm_tensor *t = realm_calloc(1, sizeof *t);
    if (!t) return realm_error_set(err, REALM_E_NOMEM, "no memory for a tensor handle");
    const realm_gguf_tensor *f = w->file;
    atomic_init(&t->refs, 1);
    t->info = (realm_tensor_info){.n_dims = f->n_dims,
                                  .dims = {1, 1, 1, 1},
                                  .rows = f->dims[1] * f->dims[2] * f->dims[3], /* checked when the file was opened */
                                  .cols = f->dims[0],
                                  .type = f->type,
                                  .bytes = f->n_bytes,
                                  .is_weight = true,
                                  .layer = w->layer};
    for (uint32_t i = 0; i < f->n_dims; i++) t->info.dims[i] = f->dims[f->n_dims - 1 - i];
    t->model = m;
    t->weight = w;
    t->release = release;
    t->user = user;
    *out = t;
    return REALM_OK;
}

realm_tensor *realm_tensor_retain(realm_tensor *t) {
    atomic_fetch_add_explicit(&t->refs, 1, memory_order_relaxed);
    return t;
}

void realm_tensor_release(realm_tensor *t) {
    if (!t || atomic_fetch_sub_explicit(&t->refs, 1, memory_order_acq_rel) != 1) return;
    if (t->mapped)
        realm_pages_unmap(t->data, (size_t)t->info.bytes);
    else
        realm_free(t->data);
    if (t->budget) {
        realm_tensor_budget_refund(t->budget, t->charged);
        realm_tensor_budget_close(t->budget);
    }
    if (t->release) t->release(t->user);
    realm_free(t);
}

void realm_tensor_get_info(const realm_tensor *t, realm_tensor_info *out) { *out = t->info; }

/* ---- values ------------------------------------------------------------------------------------------------------ */

static realm_status check_range(const realm_tensor *t, uint64_t first, uint64_t n, realm_error *err) {
    const uint64_t all = t->info.rows * t->info.cols;
    if (first <= all && n <= all - first) return REALM_OK;
    return realm_error_set(err, REALM_E_RANGE, "values %llu + %llu of a tensor of %llu", (unsigned long long)first,
                           (unsigned long long)n, (unsigned long long)all);
}

realm_status realm_tensor_check_read(const realm_tensor *t, uint64_t first, uint64_t n, realm_error *err) {
    realm_status s = check_range(t, first, n, err);
    if (s == REALM_OK && t->info.is_weight && (first % t->info.cols != 0 || n % t->info.cols != 0))
        s = realm_error_set(err, REALM_E_RANGE, "a weight is read by rows of %llu values",
                            (unsigned long long)t->info.cols);
    return s;
}

realm_status realm_tensor_read(const realm_tensor *t, uint64_t first, uint64_t n, float *out, realm_error *err) {
    realm_status s = realm_tensor_check_read(t, first, n, err);
    if (s != REALM_OK) return s;
    if (t->info.is_weight) return realm_model_tensor_rows(t->weight, first / t->info.cols, n / t->info.cols, out, err);
    /* acquire: pairs with the end of the job that wrote it */
    if (atomic_load_explicit(&t->written, memory_order_acquire) > 0)
        return realm_error_set(err, REALM_E_BUSY, "a pending list writes this tensor");
    memcpy(out, t->data + first, (size_t)n * sizeof *out);
    return REALM_OK;
}

realm_status realm_tensor_write(realm_tensor *t, uint64_t first, uint64_t n, const float *values, realm_error *err) {
    if (t->info.is_weight) return realm_error_set(err, REALM_E_INVALID, "a weight cannot be written");
    realm_status s = check_range(t, first, n, err);
    if (s != REALM_OK) return s;
    if (atomic_load_explicit(&t->used, memory_order_acquire) > 0 ||
        atomic_load_explicit(&t->written, memory_order_acquire) > 0)
        return realm_error_set(err, REALM_E_BUSY, "a pending list uses this tensor");
    memcpy(t->data + first, values, (size_t)n * sizeof *values);
    return REALM_OK;
}
