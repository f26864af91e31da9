/* base/alloc.h - every heap allocation of Realm goes through here.
 *
 * The wrappers exist so that tests can make the n-th allocation fail and check that each site returns REALM_E_NOMEM
 * with nothing lost; in production they are malloc and free. All functions may be called from any thread.
 */
#ifndef REALM_BASE_ALLOC_H
#define REALM_BASE_ALLOC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* NULL on failure. A size of 0 gives a valid pointer of at least one byte. */
void *realm_malloc(size_t size);
/* Zeroed memory for n objects; NULL on failure and when n * size overflows. */
void *realm_calloc(size_t n, size_t size);
/* Resizes to n objects; on failure or overflow NULL, and `p` stays valid. */
void *realm_realloc_array(void *p, size_t n, size_t size);
/* Alignment a power of two >= sizeof(void *); freed with realm_free. */
void *realm_malloc_aligned(size_t size, size_t align);
/* Copies with a terminating NUL; NULL on failure. */
char *realm_strdup(const char *s);
char *realm_strndup(const char *s, size_t len);
/* NULL-safe. */
void realm_free(void *p);

/* Zeroed, page-aligned memory straight from the kernel, with transparent huge pages asked for where they help
 * (size >= 2 MiB). NULL on failure. Unmap with the same size. */
void *realm_pages_map(size_t size);
void realm_pages_unmap(void *p, size_t size);

/* Makes the allocation after `after` further successful ones fail on this thread, and every one after that while
 * `sticky`; a negative `after` turns injection off. For tests. */
void realm_alloc_inject_failure(int64_t after, bool sticky);
/* Number of allocations this thread has made since injection was last set: the loop bound of such tests. */
int64_t realm_alloc_count(void);

#endif
