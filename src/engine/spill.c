/* engine/spill.c - where pages go that leave the pool: memory up to a budget, then a file without a name.
 *
 *      reserve --> copy --> start --> [queue] --file's thread--> in the file
 *                                        |                          | fetch
 *                 fetch: from the buffer +      done <--file's thread-- [queue]
 *
 * Room is reserved and given back under the pool's lock; content is copied by the engine's thread without it. The file
 * is read and written by a thread of its own, so that a disk that is slow or full holds up nobody who does not need it:
 * a page on its way out lies in one of a few buffers, from which it can be had back at once, and where all of these are
 * in use the engine asks again when one is free. Reading comes before writing, since somebody waits for it.
 *
 * The file is opened unlinked, so it is gone when the process is, however it ends. A page in it carries a checksum: a
 * disk that is full, fails or lies costs a computation, never a wrong token. After the first write that fails nothing
 * more is written.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
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

/* ---- the file -----------------------------------------------------------------------------------------------------
 */

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

/* ---- jobs; under the lock ---------------------------------------------------------------------------------------- */

static void queue_add(realm_spill_queue *q, realm_spill_job *job) {
    job->next = NULL;
    if (q->tail)
        q->tail->next = job;
    else
        q->head = job;
    q->tail = job;
}

/* It may be in none. */
static void queue_remove(realm_spill_queue *q, realm_spill_job *job) {
    realm_spill_job *before = NULL, *at = q->head;
    while (at && at != job) {
        before = at;
        at = at->next;
    }
    if (!at) return;
    if (before)
        before->next = job->next;
    else
        q->head = job->next;
    if (q->tail == job) q->tail = before;
}

static void give_job(realm_spill *s, realm_spill_job *job) {
    realm_spill_job **list = job->reads ? &s->free_reads : &s->free_writes;
    job->of = NULL;
    job->started = job->done = false;
    job->next = *list;
    *list = job;
}

static void free_slot(realm_spill *s, uint32_t slot) {
    s->free_slots[s->n_free_slots++] = slot;
    s->file_used--;
}

/* ---- the file's thread ------------------------------------------------------------------------------------------- */

static bool move(const realm_spill *s, realm_spill_job *job) {
    const off_t at = (off_t)(job->file_slot * s->page_bytes);
    if (!job->reads) {
        job->checksum = checksum(job->content, s->page_bytes);
        if (write_all(s->fd, job->content, s->page_bytes, at)) return true;
        realm_log_warn("engine", "KV pages can no longer be written to the file: %s; they are computed again instead",
                       strerror(errno));
        return false;
    }
    if (!read_all(s->fd, job->content, s->page_bytes, at)) {
        realm_log_warn("engine", "a KV page cannot be read from the file: %s; it is computed again", strerror(errno));
        return false;
    }
    if (checksum(job->content, s->page_bytes) == job->checksum) return true;
    realm_log_warn("engine", "a KV page in the file is damaged; it is computed again");
    return false;
}

/* Under the lock. */
static void finish(realm_spill *s, realm_spill_job *job, bool good) {
    realm_spilled *of = job->of;
    s->file_failed |= !job->reads && !good;
    if (of) of->failed = !good;
    if (of && job->reads) { /* the buffer is the page's until it is taken */
        job->done = true;
        return;
    }
    if (of) {
        of->checksum = job->checksum;
        of->job = NULL;
    } else if (!job->reads) {
        free_slot(s, job->file_slot);
    }
    give_job(s, job);
}

static void *spill_main(void *arg) {
    realm_spill *s = arg;
    realm_mutex_lock(s->mu);
    while (!s->shut) {
        realm_spill_queue *q = s->reads.head ? &s->reads : &s->writes;
        realm_spill_job *job = q->head;
        if (!job) {
            realm_cond_wait(&s->work, s->mu);
            continue;
        }
        queue_remove(q, job);
        job->started = true;
        realm_mutex_unlock(s->mu);
        const uint64_t began = realm_clock_ns();
        const bool good = move(s, job);
        const double took = (double)(realm_clock_ns() - began);
        realm_mutex_lock(s->mu);
        s->io_ns = s->io_ns > 0 ? 0.75 * s->io_ns + 0.25 * took : took;
        finish(s, job, good);
        if (!s->waited_for || !s->on_moved) continue;
        s->waited_for = false;
        realm_mutex_unlock(s->mu);
        s->on_moved(s->user);
        realm_mutex_lock(s->mu);
    }
    realm_mutex_unlock(s->mu);
    return NULL;
}

/* ---- life -------------------------------------------------------------------------------------------------------- */

realm_status realm_spill_init(realm_spill *s, realm_mutex *mu, uint64_t page_bytes, uint64_t memory_bytes,
                              const char *dir, uint64_t dir_bytes, realm_error *err) {
    *s = (realm_spill){.page_bytes = page_bytes, .memory_max = memory_bytes, .fd = -1, .mu = mu};
    if (!dir) return REALM_OK;
    uint64_t slots = dir_bytes / page_bytes;
    s->file_max = slots < FILE_SLOTS_MOST ? (uint32_t)slots : FILE_SLOTS_MOST;
    for (uint32_t i = REALM_ARRAY_LEN(s->jobs); i-- > 0;) {
        realm_spill_job *job = &s->jobs[i];
        job->content = realm_malloc(page_bytes);
        if (!job->content) return realm_error_set(err, REALM_E_NOMEM, "no memory for moving KV pages");
        job->reads = i >= REALM_SPILL_WRITES;
        give_job(s, job);
    }
    s->fd = open_unnamed(dir);
    if (s->fd < 0)
        return realm_error_set(err, REALM_E_IO, "no file for KV pages can be made in %s: %s", dir, strerror(errno));
    realm_cond_init(&s->work);
    realm_status status = realm_thread_start(&s->thread, "realm-spill", spill_main, s, err);
    s->threaded = status == REALM_OK;
    if (!s->threaded) realm_cond_destroy(&s->work);
    return status;
}

void realm_spill_release(realm_spill *s) {
    if (s->threaded) {
        realm_mutex_lock(s->mu);
        s->shut = true;
        realm_cond_signal(&s->work);
        realm_mutex_unlock(s->mu);
        (void)pthread_join(s->thread, NULL);
        realm_cond_destroy(&s->work);
    }
    if (s->fd >= 0) (void)close(s->fd);
    for (uint32_t i = 0; i < REALM_ARRAY_LEN(s->jobs); i++) realm_free(s->jobs[i].content);
    realm_free(s->free_slots);
    *s = (realm_spill){.fd = -1};
}

/* ---- room, and what is on its way; under the lock ---------------------------------------------------------------- */

realm_spill_result realm_spill_reserve(realm_spill *s, realm_spilled *out) {
    *out = (realm_spilled){.place = REALM_PAGE_LOST};
    if (s->page_bytes <= s->memory_max - s->memory_used) {
        s->memory_used += s->page_bytes;
        out->place = REALM_PAGE_IN_MEMORY;
        return REALM_SPILL_OK;
    }
    if (s->fd < 0 || s->file_failed) return REALM_SPILL_FULL;
    if (s->n_free_slots == 0 && s->file_end == s->file_max) return REALM_SPILL_FULL;
    if (!s->free_writes) {
        s->waited_for = true;
        return REALM_SPILL_BUSY;
    }
    if (s->n_free_slots > 0) {
        out->file_slot = s->free_slots[--s->n_free_slots];
    } else {
        if (s->file_end == s->cap_free_slots) { /* so that giving back never needs memory */
            uint32_t cap = s->cap_free_slots ? 2 * s->cap_free_slots : 1024;
            uint32_t *p = realm_realloc_array(s->free_slots, cap, sizeof *p);
            if (!p) return REALM_SPILL_FULL;
            s->free_slots = p;
            s->cap_free_slots = cap;
        }
        out->file_slot = s->file_end++;
    }
    s->file_used++;
    out->place = REALM_PAGE_IN_FILE;
    out->job = s->free_writes;
    s->free_writes = out->job->next;
    return REALM_SPILL_OK;
}

bool realm_spill_copy(realm_spill *s, realm_spilled *to, realm_backend *b, const realm_kv *kv, uint32_t slot) {
    void *content = to->job ? to->job->content : (to->memory = realm_malloc(s->page_bytes));
    if (content) b->v->kv_read_page(b, kv, slot, content);
    return content != NULL;
}

static void begin(realm_spill *s, realm_spilled *of) {
    realm_spill_job *job = of->job;
    job->of = of;
    job->file_slot = of->file_slot;
    job->checksum = of->checksum;
    job->started = job->done = false;
    queue_add(job->reads ? &s->reads : &s->writes, job);
    realm_cond_signal(&s->work);
}

void realm_spill_start(realm_spill *s, realm_spilled *to) {
    if (to->job) begin(s, to);
}

/* A buffer to read into: where need be, that of a page that was read and is not wanted yet. */
static realm_spill_job *take_read(realm_spill *s, bool ahead) {
    realm_spill_job *job = s->free_reads;
    if (job) {
        s->free_reads = job->next;
        return job;
    }
    for (uint32_t i = REALM_SPILL_WRITES; i < REALM_ARRAY_LEN(s->jobs) && !ahead; i++) {
        job = &s->jobs[i];
        if (!job->done) continue;
        job->of->job = NULL;
        return job;
    }
    return NULL;
}

realm_spill_result realm_spill_fetch(realm_spill *s, realm_spilled *from, bool ahead, const void **content) {
    *content = from->memory;
    if (from->place == REALM_PAGE_IN_MEMORY) return REALM_SPILL_OK;
    if (from->failed) return REALM_SPILL_LOST;
    realm_spill_job *job = from->job;
    if (job && (!job->reads || job->done)) {
        *content = job->content;
        return REALM_SPILL_OK;
    }
    s->waited_for |= !ahead;
    if (job || !(from->job = take_read(s, ahead))) return REALM_SPILL_BUSY;
    begin(s, from);
    return REALM_SPILL_BUSY;
}

void realm_spill_free(realm_spill *s, realm_spilled *what, void **garbage) {
    if (what->place == REALM_PAGE_IN_MEMORY) {
        s->memory_used -= s->page_bytes;
        if (what->memory) {
            memcpy(what->memory, garbage, sizeof *garbage);
            *garbage = what->memory;
        }
    } else if (what->place == REALM_PAGE_IN_FILE) {
        realm_spill_job *job = what->job;
        if (job && job->started && !job->done) {
            job->of = NULL; /* its thread gives it back, and the slot that it writes to */
        } else if (job) {
            queue_remove(job->reads ? &s->reads : &s->writes, job);
            give_job(s, job);
        }
        if (!job || !job->started || job->reads) free_slot(s, what->file_slot);
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
