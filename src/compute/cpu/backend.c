/* compute/cpu/backend.c - the CPU behind the backend vtable: opening, weights, and what reads results. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "compute/cpu/pack.h"
#include "compute/cpu/plan.h"

#define FIRST_SCRATCH_BYTES ((size_t)256 << 10)
#define VECTOR_ALIGN 64u

static cpu_backend *cpu(realm_backend *b) { return (cpu_backend *)(void *)b; }

/* ---- weights ----------------------------------------------------------------------------------------------------- */

static void weight_close(realm_backend *b, realm_weight *w) {
    (void)b;
    if (!w) return;
    if (w->packed) realm_cpu_unpack(w->packed);
    realm_free(w->vector);
    realm_free(w);
}

static realm_status open_vector(realm_weight *w, const realm_weight_desc *d, realm_error *err) {
    size_t bytes;
    if (d->rows != 1)
        return realm_error_set(err, REALM_E_INVALID, "a vector of %llu rows", (unsigned long long)d->rows);
    if (!realm_mul_size((size_t)d->cols, sizeof(float), &bytes) ||
        !(w->vector = realm_malloc_aligned(bytes, VECTOR_ALIGN)))
        return realm_error_set(err, REALM_E_NOMEM, "no memory for a vector of %llu values",
                               (unsigned long long)d->cols);
    d->type->dequantize(d->data, w->vector, (size_t)d->cols);
    return REALM_OK;
}

static realm_status weight_open(realm_backend *b, const realm_weight_desc *d, realm_weight **out, realm_error *err) {
    const unsigned all = REALM_WEIGHT_ROWS | REALM_WEIGHT_LINEAR | REALM_WEIGHT_VECTOR | REALM_WEIGHT_STREAMED;
    const bool streamed = (d->use & REALM_WEIGHT_STREAMED) != 0;
    uint64_t row_bytes, bytes;
    *out = NULL;
    if (!d->type || !d->data || d->rows == 0 || d->cols == 0 || d->use == 0 || (d->use & ~all))
        return realm_error_set(err, REALM_E_INVALID, "a weight without type, data, rows, columns or use");
    if (streamed && d->use != (REALM_WEIGHT_STREAMED | REALM_WEIGHT_LINEAR))
        return realm_error_set(err, REALM_E_INVALID, "a streamed weight is for products alone, not use %u", d->use);
    if (!realm_type_row_bytes(d->type, d->cols, &row_bytes) || !realm_mul_u64(row_bytes, d->rows, &bytes) ||
        bytes > SIZE_MAX)
        return realm_error_set(err, REALM_E_INVALID, "%llu x %llu values of type %s are no whole blocks or too many",
                               (unsigned long long)d->rows, (unsigned long long)d->cols, d->type->name);
    if (!d->type->dequantize && (d->use & (REALM_WEIGHT_ROWS | REALM_WEIGHT_VECTOR)))
        return realm_error_set(err, REALM_E_UNSUPPORTED, "tensor type %s cannot be looked up by rows", d->type->name);
    if (d->cols > UINT32_MAX || ((d->use & REALM_WEIGHT_LINEAR) && d->rows > UINT32_MAX))
        return realm_error_set(err, REALM_E_LIMIT, "a weight of %llu x %llu values is too large",
                               (unsigned long long)d->rows, (unsigned long long)d->cols);
    realm_weight *w = realm_malloc(sizeof *w);
    if (!w) return realm_error_set(err, REALM_E_NOMEM, "no memory for a weight");
    *w = (realm_weight){.type = d->type, .rows = d->rows, .cols = d->cols, .use = d->use};
    realm_status s = REALM_OK;
    if (d->use & (REALM_WEIGHT_ROWS | REALM_WEIGHT_STREAMED)) w->raw = d->data;
    if (d->use & REALM_WEIGHT_VECTOR) s = open_vector(w, d, err);
    if (s == REALM_OK && streamed)
        s = realm_cpu_pack_shape(d, &w->packed, err);
    else if (s == REALM_OK && (d->use & REALM_WEIGHT_LINEAR))
        s = realm_cpu_pack(cpu(b)->team, d, &w->packed, err);
    if (s != REALM_OK) {
        weight_close(b, w);
        return s;
    }
    *out = w;
    return REALM_OK;
}

static uint64_t weight_bytes(const realm_weight *w) {
    if (w->use & REALM_WEIGHT_STREAMED) return realm_cpu_packed_bytes(w->packed);
    return sizeof *w + (w->packed ? realm_cpu_packed_bytes(w->packed) : 0) + (w->vector ? w->cols * sizeof(float) : 0);
}

/* ---- slots of streamed weights ----------------------------------------------------------------------------------- */

struct realm_slot {
    char *map;
    size_t bytes;
};

static realm_status slot_open(realm_backend *b, uint64_t bytes, realm_slot **out, realm_error *err) {
    (void)b;
    *out = NULL;
    realm_slot *s = bytes > 0 && bytes <= SIZE_MAX ? realm_malloc(sizeof *s) : NULL;
    char *map = s ? realm_pages_map((size_t)bytes) : NULL;
    if (!map) {
        realm_free(s);
        return realm_error_set(err, REALM_E_NOMEM, "no memory for %llu bytes of streamed weights",
                               (unsigned long long)bytes);
    }
    *s = (realm_slot){.map = map, .bytes = (size_t)bytes};
    *out = s;
    return REALM_OK;
}

static void slot_close(realm_backend *b, realm_slot *s) {
    (void)b;
    if (!s) return;
    realm_pages_unmap(s->map, s->bytes);
    realm_free(s);
}

static realm_status weight_load(realm_backend *b, realm_weight *w, realm_slot *slot, uint64_t offset, bool turn,
                                realm_error *err) {
    if (!(w->use & REALM_WEIGHT_STREAMED))
        return realm_error_set(err, REALM_E_INVALID, "a weight that is not streamed");
    if (!slot) {
        w->packed->panels = NULL;
        return REALM_OK;
    }
    if (offset % REALM_SLOT_ALIGN != 0 || offset > slot->bytes || w->packed->bytes > slot->bytes - offset)
        return realm_error_set(err, REALM_E_INVALID, "%zu bytes of a weight do not fit at %llu of a slot of %zu",
                               w->packed->bytes, (unsigned long long)offset, slot->bytes);
    realm_cpu_pack_into(turn ? cpu(b)->team : NULL, w->packed, w->raw, slot->map + offset);
    return REALM_OK;
}

/* ---- results and host work --------------------------------------------------------------------------------------- */

static float *logits(realm_plan *p, uint32_t i) { return p->data[p->logits] + (size_t)i * p->values[p->logits].cols; }

static const float *value(realm_plan *p, realm_value v) { return v < p->n_values ? p->data[v] : NULL; }

typedef struct host_work {
    uint32_t n;
    void (*fn)(void *user, uint32_t i);
    void *user;
} host_work;

static void host_worker(realm_worker *w, void *user) {
    const host_work *h = user;
    uint32_t begin, end;
    while (realm_worker_claim(w, h->n, 1, &begin, &end)) h->fn(h->user, begin);
}

static void parallel(realm_backend *b, uint32_t n, void (*fn)(void *user, uint32_t i), void *user) {
    if (n == 1) { /* not worth waking anyone */
        fn(user, 0);
        return;
    }
    host_work h = {.n = n, .fn = fn, .user = user};
    if (n > 0) realm_team_run(cpu(b)->team, host_worker, &h);
}

static bool aside(realm_backend *b, void (*fn)(void *user), void *user) {
    return realm_team_aside(cpu(b)->team, fn, user);
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

static void backend_close(realm_backend *b) {
    realm_turn_release(&b->turn);
    cpu_direct_release(cpu(b));
    realm_team_close(cpu(b)->team);
    realm_free(b);
}

static const struct realm_backend_vtable vtable = {
    .close = backend_close,
    .weight_open = weight_open,
    .weight_close = weight_close,
    .weight_bytes = weight_bytes,
    .slot_open = slot_open,
    .slot_close = slot_close,
    .weight_load = weight_load,
    .kv_open = cpu_kv_open,
    .kv_close = cpu_kv_close,
    .kv_page_bytes = cpu_kv_page_bytes,
    .kv_zero_page = cpu_kv_zero_page,
    .kv_copy_page = cpu_kv_copy_page,
    .kv_read_page = cpu_kv_read_page,
    .kv_write_page = cpu_kv_write_page,
    .plan_open = cpu_plan_open,
    .plan_close = cpu_plan_close,
    .run = cpu_plan_run,
    .logits = logits,
    .value = value,
    .parallel = parallel,
    .aside = aside,
    .direct_cut = cpu_direct_cut,
    .direct = cpu_direct,
};

static realm_status choose_level(const char *name, realm_cpu_level *level, realm_error *err) {
    realm_cpu_level best = realm_cpu_detect();
    if (!name || !*name) name = getenv("REALM_CPU");
    *level = best;
    if (!name || !*name) return REALM_OK;
    for (int i = REALM_CPU_SCALAR; i <= REALM_CPU_VNNI; i++) {
        if (strcmp(name, realm_cpu_level_name((realm_cpu_level)i)) != 0) continue;
        *level = (realm_cpu_level)i;
        if (*level <= best) return REALM_OK;
        return realm_error_set(err, REALM_E_UNSUPPORTED, "this machine has no %s (its best is %s)", name,
                               realm_cpu_level_name(best));
    }
    return realm_error_set(err, REALM_E_UNSUPPORTED, "unknown CPU level '%.32s': scalar, avx2, avx512 and vnni exist",
                           name);
}

realm_status realm_backend_open_cpu(realm_backend **out, const realm_backend_config *config, realm_error *err) {
    realm_cpu_level level;
    *out = NULL;
    realm_status s = choose_level(config->cpu_level, &level, err);
    if (s != REALM_OK) return s;
    cpu_backend *b = realm_calloc(1, sizeof *b);
    if (!b) return realm_error_set(err, REALM_E_NOMEM, "no memory for a backend");
    s = realm_team_open(&b->team, config->n_threads, FIRST_SCRATCH_BYTES, err);
    if (s != REALM_OK) {
        realm_free(b);
        return s;
    }
    realm_cpu_kernels_init(&b->kernels, level);
    b->cache_bytes = realm_cpu_cache_bytes();
    snprintf(b->name, sizeof b->name, "cpu/%s", realm_cpu_level_name(level));
    b->base = (realm_backend){.v = &vtable, .name = b->name, .n_threads = realm_team_size(b->team)};
    realm_turn_init(&b->base.turn);
    *out = &b->base;
    return REALM_OK;
}
