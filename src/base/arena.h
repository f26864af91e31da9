/* base/arena.h - memory that is allocated forwards and freed whole.
 *
 * A request's parsed fields, a step's scratch lists: many small objects with one end of life. Chunks come from
 * realm_malloc and double in size up to 1 MiB; nothing is freed before reset or release. One thread at a time.
 */
#ifndef REALM_BASE_ARENA_H
#define REALM_BASE_ARENA_H

#include <stddef.h>

typedef struct realm_arena {
    struct realm_arena_chunk *chunks; /* newest first */
    size_t used_bytes;                /* sum over all chunks, for limits */
    size_t max_bytes;                 /* allocation past this returns NULL */
} realm_arena;

void realm_arena_init(realm_arena *a, size_t max_bytes);
/* 16-byte aligned, zeroed; NULL at the limit or when memory is out. */
void *realm_arena_alloc(realm_arena *a, size_t size);
/* Checked n * size. */
void *realm_arena_array(realm_arena *a, size_t n, size_t size);
/* Copy with a terminating NUL. */
char *realm_arena_strndup(realm_arena *a, const char *s, size_t len);
void realm_arena_release(realm_arena *a);

#endif
