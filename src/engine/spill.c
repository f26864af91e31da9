/* engine/spill.c - where pages go that leave the pool: memory up to a budget, then a file without a name.
 *
 * Room is reserved and given back under the pool's lock; content is moved by the engine's thread without it. The file
 * is opened unlinked, so it is gone when the process is, however it ends. A page in it carries a checksum: a disk that
 * is full, fails or lies costs a computation, never a wrong token. After the first write that fails nothing more is
 * written.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/file.h"
#include "base/log.h"
#include "engine/pages.h"

#define FILE_SLOTS_MOST (1u << 26)

static int open_unnamed(const char *dir) {
    int fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd >= 0) return fd;
    char *path = realm_path_join(dir, "realm-kv-XXXXXX"); /* a file system without O_TMPFILE */
    if (!path) return -1;
    fd = mkostemp(path, O_CLOEXEC);
    if (fd >= 0) (void)unlink(path);
    realm_free(path);
    return fd;
}

realm_status realm_spill_init(realm_spill *s, uint64_t page_bytes, uint64_t memory_bytes, const char *dir,
                              uint64_t dir_bytes, realm_error *err) {
    *s = (realm_spill){.page_bytes = page_bytes, .memory_max = memory_bytes, .fd = -1};
    if (!dir) return REALM_OK;
    uint64_t slots = dir_bytes / page_bytes;
    s->file_max = slots < FILE_SLOTS_MOST ? (uint32_t)slots : FILE_SLOTS_MOST;
    s->bounce = realm_malloc(page_bytes);
    if (!s->bounce) return realm_error_set(err, REALM_E_NOMEM, "no memory for moving KV pages");
    s->fd = open_unnamed(dir);
    if (s->fd < 0)
        return realm_error_set(err, REALM_E_IO, "no file for KV pages can be made in %s: %s", dir, strerror(errno));
    return REALM_OK;
}

void realm_spill_release(realm_spill *s) {
    if (s->fd >= 0) (void)close(s->fd);
    realm_free(s->bounce);
    realm_free(s->free_slots);
    *s = (realm_spill){.fd = -1};
}

void realm_spill_reserve(realm_spill *s, realm_spilled *out) {
    *out = (realm_spilled){.place = REALM_PAGE_LOST};
    if (s->page_bytes <= s->memory_max - s->memory_used) {
        s->memory_used += s->page_bytes;
        out->place = REALM_PAGE_IN_MEMORY;
        return;
    }
    if (s->fd < 0 || s->file_failed) return;
    if (s->n_free_slots > 0) {
        out->file_slot = s->free_slots[--s->n_free_slots];
    } else {
        if (s->file_end == s->file_max) return;
        if (s->file_end == s->cap_free_slots) { /* so that giving back never needs memory */
            uint32_t cap = s->cap_free_slots ? 2 * s->cap_free_slots : 1024;
            uint32_t *p = realm_realloc_array(s->free_slots, cap, sizeof *p);
            if (!p) return;
            s->free_slots = p;
            s->cap_free_slots = cap;
        }
        out->file_slot = s->file_end++;
    }
    s->file_used++;
    out->place = REALM_PAGE_IN_FILE;
}

void realm_spill_free(realm_spill *s, realm_spilled *what, void **garbage) {
    if (what->place == REALM_PAGE_IN_MEMORY) {
        s->memory_used -= s->page_bytes;
        if (what->memory) {
            memcpy(what->memory, garbage, sizeof *garbage);
            *garbage = what->memory;
        }
    } else if (what->place == REALM_PAGE_IN_FILE) {
        s->free_slots[s->n_free_slots++] = what->file_slot;
        s->file_used--;
    }
    *what = (realm_spilled){.place = REALM_PAGE_LOST};
}

void realm_spill_collect(void *garbage) {
    while (garbage) {
        void *next;
        memcpy(&next, garbage, sizeof next);
        realm_free(garbage);
        garbage = next;
    }
}

/* Against disks that err, not against forgery: nobody else has the file. Four lanes of multiply and rotate (the mixing
 * constants are the odd ones of splitmix64). */
static uint64_t checksum(const void *data, size_t len) {
    const unsigned char *p = data;
    uint64_t lane[4] = {1, 2, 3, 4};
    size_t i = 0;
    for (; i + 32 <= len; i += 32)
        for (unsigned k = 0; k < 4; k++) {
            uint64_t x;
            memcpy(&x, p + i + 8 * k, sizeof x);
            lane[k] = (lane[k] ^ x) * UINT64_C(0x9e3779b97f4a7c15);
            lane[k] ^= lane[k] >> 29;
        }
    uint64_t h = len;
    for (unsigned k = 0; k < 4; k++) h = (h ^ lane[k]) * UINT64_C(0xbf58476d1ce4e5b9);
    for (; i < len; i++) h = (h ^ p[i]) * UINT64_C(0x94d049bb133111eb);
    return h ^ h >> 31;
}

static bool write_all(int fd, const char *p, size_t len, off_t at) {
    while (len > 0) {
        ssize_t n = pwrite(fd, p, len, at);
        if (n < 0 && errno == EINTR) continue;
        if (n == 0) errno = ENOSPC;
        if (n <= 0) return false;
        p += n;
        at += n;
        len -= (size_t)n;
    }
    return true;
}

static bool read_all(int fd, char *p, size_t len, off_t at) {
    while (len > 0) {
        ssize_t n = pread(fd, p, len, at);
        if (n < 0 && errno == EINTR) continue;
        if (n == 0) errno = ENODATA;
        if (n <= 0) return false;
        p += n;
        at += n;
        len -= (size_t)n;
    }
    return true;
}

bool realm_spill_store(realm_spill *s, realm_spilled *to, realm_backend *b, const realm_kv *kv, uint32_t slot) {
    if (to->place == REALM_PAGE_IN_MEMORY) {
        to->memory = realm_malloc(s->page_bytes);
        if (to->memory) b->v->kv_read_page(b, kv, slot, to->memory);
        return to->memory != NULL;
    }
    b->v->kv_read_page(b, kv, slot, s->bounce);
    to->checksum = checksum(s->bounce, s->page_bytes);
    if (write_all(s->fd, s->bounce, s->page_bytes, (off_t)(to->file_slot * s->page_bytes))) return true;
    realm_log_warn("engine", "KV pages can no longer be written to the file: %s; they are computed again instead",
                   strerror(errno));
    s->file_failed = true;
    return false;
}

bool realm_spill_load(realm_spill *s, const realm_spilled *from, realm_backend *b, realm_kv *kv, uint32_t slot) {
    const void *content = from->memory;
    if (from->place == REALM_PAGE_IN_FILE) {
        if (!read_all(s->fd, s->bounce, s->page_bytes, (off_t)(from->file_slot * s->page_bytes))) {
            realm_log_warn("engine", "a KV page cannot be read from the file: %s; it is computed again",
                           strerror(errno));
            return false;
        }
        if (checksum(s->bounce, s->page_bytes) != from->checksum) {
            realm_log_warn("engine", "a KV page in the file is damaged; it is computed again");
            return false;
        }
        content = s->bounce;
    }
    b->v->kv_write_page(b, kv, slot, content);
    return true;
}
