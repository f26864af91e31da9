#include "base/alloc.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/base.h"

static _Thread_local int64_t inject_after = -1;
static _Thread_local bool inject_sticky;
static _Thread_local int64_t n_allocs;

static bool injected(void) {
    n_allocs++;
    if (inject_after < 0) return false;
    if (inject_after > 0) {
        inject_after--;
        return false;
    }
    if (!inject_sticky) inject_after = -1;
    return true;
}

void realm_alloc_inject_failure(int64_t after, bool sticky) {
    inject_after = after;
    inject_sticky = sticky;
    n_allocs = 0;
}

int64_t realm_alloc_count(void) { return n_allocs; }

void *realm_malloc(size_t size) { return injected() ? NULL : malloc(size ? size : 1); }

void *realm_calloc(size_t n, size_t size) {
    if (injected()) return NULL;
    return n && size ? calloc(n, size) : calloc(1, 1);
}

void *realm_realloc_array(void *p, size_t n, size_t size) {
    size_t bytes;
    if (!realm_mul_size(n, size, &bytes) || injected()) return NULL;
    return realloc(p, bytes ? bytes : 1);
}

void *realm_malloc_aligned(size_t size, size_t align) {
    void *p = NULL;
    if (injected() || posix_memalign(&p, align, size ? size : 1) != 0) return NULL;
    return p;
}

char *realm_strndup(const char *s, size_t len) {
    size_t size;
    if (!realm_add_size(len, 1, &size)) return NULL;
    char *p = realm_malloc(size);
    if (!p) return NULL;
    memcpy(p, s, len);
    p[len] = '\0';
    return p;
}

char *realm_strdup(const char *s) { return realm_strndup(s, strlen(s)); }

void realm_free(void *p) { free(p); }

void *realm_pages_map(size_t size) {
    if (size == 0 || injected()) return NULL;
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return NULL;
#ifdef MADV_HUGEPAGE
    if (size >= (size_t)2 << 20) (void)madvise(p, size, MADV_HUGEPAGE);
#endif
    return p;
}

void realm_pages_unmap(void *p, size_t size) {
    if (p) (void)munmap(p, size);
}
