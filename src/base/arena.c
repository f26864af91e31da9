#include "base/arena.h"

#include <string.h>

#include "base/alloc.h"
#include "base/base.h"

#define CHUNK_MIN ((size_t)4 << 10)
#define CHUNK_MAX ((size_t)1 << 20)
#define ALIGN ((size_t)16)

struct realm_arena_chunk {
    struct realm_arena_chunk *next;
    size_t size; /* payload bytes */
    size_t used;
    _Alignas(16) unsigned char data[];
};

void realm_arena_init(realm_arena *a, size_t max_bytes) { *a = (realm_arena){.max_bytes = max_bytes}; }

void *realm_arena_alloc(realm_arena *a, size_t size) {
    size_t need;
    if (!realm_add_size(size, ALIGN - 1, &need)) return NULL;
    need &= ~(ALIGN - 1);
    if (need > a->max_bytes || a->used_bytes > a->max_bytes - need) return NULL;
    struct realm_arena_chunk *c = a->chunks;
    if (!c || c->size - c->used < need) {
        size_t payload = c ? REALM_MIN(c->size * 2, CHUNK_MAX) : CHUNK_MIN;
        size_t bytes;
        if (payload < need) payload = need;
        if (!realm_add_size(payload, sizeof *c, &bytes)) return NULL;
        struct realm_arena_chunk *fresh = realm_malloc_aligned(bytes, ALIGN);
        if (!fresh) return NULL;
        fresh->next = c;
        fresh->size = payload;
        fresh->used = 0;
        a->chunks = c = fresh;
    }
    void *p = c->data + c->used;
    c->used += need;
    a->used_bytes += need;
    memset(p, 0, need);
    return p;
}

void *realm_arena_array(realm_arena *a, size_t n, size_t size) {
    size_t bytes;
    return realm_mul_size(n, size, &bytes) ? realm_arena_alloc(a, bytes) : NULL;
}

char *realm_arena_strndup(realm_arena *a, const char *s, size_t len) {
    size_t bytes;
    if (!realm_add_size(len, 1, &bytes)) return NULL;
    char *p = realm_arena_alloc(a, bytes);
    if (p) memcpy(p, s, len);
    return p;
}

void realm_arena_release(realm_arena *a) {
    struct realm_arena_chunk *c = a->chunks;
    while (c) {
        struct realm_arena_chunk *next = c->next;
        realm_free(c);
        c = next;
    }
    a->chunks = NULL;
    a->used_bytes = 0;
}
