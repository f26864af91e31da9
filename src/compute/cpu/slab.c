/* compute/cpu/slab.c - memory for packed weights: many of them in one mapping, so that the kernel can use huge pages.
 *
 * A decode step reads every weight once. Most weights of a small model are less than one huge page (2 MiB); with a
 * mapping each, they would sit on 4 KiB pages and every step would pay a page walk per 4 KiB (measured on SmolLM2's
 * shape: 12% of a step). So they are laid one after the other into chunks:
 *
 *     chunk 0  | w | w | w |  w  | w | free |      chunk 1  | one weight larger than CHUNK_BYTES / 2 |
 *
 * Nothing is reused inside a chunk; it is unmapped when the last of its weights has been given back. Models are loaded
 * and unloaded whole, so that is soon enough: what an unloaded model leaves behind is at most the chunk that it shared
 * with the one loaded after it.
 */
#include "base/alloc.h"
#include "compute/cpu/cpu.h"

#define CHUNK_BYTES ((size_t)32 << 20)
#define ITEM_ALIGN 4096u
#define FIRST_CHUNKS 8u

typedef struct slab_chunk {
    char *base;
    size_t bytes, used;
    uint32_t n_items;
} slab_chunk;

struct realm_slab {
    slab_chunk *chunks;
    size_t n, cap;
};

realm_slab *realm_slab_open(void) { return realm_calloc(1, sizeof(realm_slab)); }

void realm_slab_close(realm_slab *s) {
    if (!s) return;
    for (size_t i = 0; i < s->n; i++) realm_pages_unmap(s->chunks[i].base, s->chunks[i].bytes);
    realm_free(s->chunks);
    realm_free(s);
}

static slab_chunk *add_chunk(realm_slab *s, size_t bytes) {
    if (s->n == s->cap) {
        size_t cap = s->cap ? 2 * s->cap : FIRST_CHUNKS;
        slab_chunk *more = realm_realloc_array(s->chunks, cap, sizeof *more);
        if (!more) return NULL;
        s->chunks = more;
        s->cap = cap;
    }
    char *base = realm_pages_map(bytes);
    if (!base) return NULL;
    s->chunks[s->n] = (slab_chunk){.base = base, .bytes = bytes};
    return &s->chunks[s->n++];
}

void *realm_slab_take(realm_slab *s, size_t bytes) {
    uint64_t size;
    if (bytes == 0 || !realm_align_u64(bytes, ITEM_ALIGN, &size)) return NULL;
    slab_chunk *c = NULL;
    for (size_t i = 0; i < s->n && !c; i++)
        if (s->chunks[i].bytes - s->chunks[i].used >= size) c = &s->chunks[i];
    if (!c) c = add_chunk(s, size > CHUNK_BYTES / 2 ? (size_t)size : CHUNK_BYTES);
    if (!c) return NULL;
    void *p = c->base + c->used;
    c->used += (size_t)size;
    c->n_items++;
    return p;
}

void realm_slab_give(realm_slab *s, void *p) {
    if (!p) return;
    for (size_t i = 0; i < s->n; i++) {
        slab_chunk *c = &s->chunks[i];
        if ((uintptr_t)p < (uintptr_t)c->base || (uintptr_t)p >= (uintptr_t)c->base + c->bytes) continue;
        if (--c->n_items > 0) return;
        realm_pages_unmap(c->base, c->bytes);
        *c = s->chunks[--s->n];
        return;
    }
}
