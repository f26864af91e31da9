/* compute/cpu/kv.c - the pool of KV pages: one mapping, committed by the kernel as pages are first written. */
#include <string.h>

#include "base/alloc.h"
#include "compute/cpu/plan.h"

#define HEAD_DIM_MAX 4096u

realm_status cpu_kv_open(realm_backend *b, const realm_kv_desc *desc, realm_kv **out, realm_error *err) {
    (void)b;
    *out = NULL;
    if (desc->n_layers == 0 || desc->n_kv_head == 0 || desc->n_pages == 0)
        return realm_error_set(err, REALM_E_INVALID, "KV of %u layers, %u heads, %u pages: none may be 0",
                               desc->n_layers, desc->n_kv_head, desc->n_pages);
    if (desc->head_dim == 0 || desc->head_dim % 2 != 0 || desc->head_dim > HEAD_DIM_MAX)
        return realm_error_set(err, REALM_E_UNSUPPORTED, "KV heads of %u values: must be even and at most %u",
                               desc->head_dim, HEAD_DIM_MAX);
    uint32_t v_dim = (desc->head_dim + REALM_HEAD_PAD - 1) / REALM_HEAD_PAD * REALM_HEAD_PAD;
    size_t block = (size_t)REALM_KV_PAGE_TOKENS * (desc->head_dim + v_dim), page, bytes;
    if (!realm_mul_size(block, desc->n_layers, &page) || !realm_mul_size(page, desc->n_kv_head, &page) ||
        !realm_mul_size(page, sizeof(uint16_t) * (size_t)desc->n_pages, &bytes))
        return realm_error_set(err, REALM_E_NOMEM, "%u KV pages are more than the address space", desc->n_pages);
    realm_kv *kv = realm_malloc(sizeof *kv);
    uint16_t *pages = kv ? realm_pages_map(bytes) : NULL;
    if (!pages) {
        realm_free(kv);
        return realm_error_set(err, REALM_E_NOMEM, "no memory for %u KV pages of %zu bytes", desc->n_pages,
                               page * sizeof(uint16_t));
    }
    *kv = (realm_kv){.n_layers = desc->n_layers,
                     .n_kv_head = desc->n_kv_head,
                     .head_dim = desc->head_dim,
                     .v_dim = v_dim,
                     .n_pages = desc->n_pages,
                     .block_halves = block,
                     .page_halves = page,
                     .pages = pages,
                     .map_bytes = bytes};
    *out = kv;
    return REALM_OK;
}

void cpu_kv_close(realm_backend *b, realm_kv *kv) {
    (void)b;
    if (!kv) return;
    realm_pages_unmap(kv->pages, kv->map_bytes);
    realm_free(kv);
}

uint64_t cpu_kv_page_bytes(const realm_kv *kv) { return kv->page_halves * sizeof(uint16_t); }

void cpu_kv_zero_page(realm_backend *b, realm_kv *kv, uint32_t page) {
    (void)b;
    if (page >= kv->n_pages) return;
    memset(cpu_kv_k(kv, page, 0, 0), 0, kv->page_halves * sizeof(uint16_t));
}

void cpu_kv_copy_page(realm_backend *b, realm_kv *kv, uint32_t dst, uint32_t src) {
    (void)b;
    if (dst >= kv->n_pages || src >= kv->n_pages || dst == src) return;
    memcpy(cpu_kv_k(kv, dst, 0, 0), cpu_kv_k(kv, src, 0, 0), kv->page_halves * sizeof(uint16_t));
}

void cpu_kv_read_page(realm_backend *b, const realm_kv *kv, uint32_t page, void *out) {
    (void)b;
    if (page >= kv->n_pages) return;
    memcpy(out, cpu_kv_k(kv, page, 0, 0), kv->page_halves * sizeof(uint16_t));
}

void cpu_kv_write_page(realm_backend *b, realm_kv *kv, uint32_t page, const void *in) {
    (void)b;
    if (page >= kv->n_pages) return;
    memcpy(cpu_kv_k(kv, page, 0, 0), in, kv->page_halves * sizeof(uint16_t));
}
