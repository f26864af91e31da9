/* catalog/pull.c - a model comes here: into a part, under a lock, checked, then renamed.
 *
 * The hash runs along with the bytes, so a finished download is checked without reading it again; what an earlier pull
 * left is read once to take the hash up where it was. The part belongs to what the lock file says (the SHA-256 that was
 * expected when it was begun): when the index has changed its mind the part is started anew.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/file.h"
#include "base/str.h"
#include "catalog/internal.h"
#include "crypto/crypto.h"

#define TRIES 4u
#define WAIT_MS 500u
#define WAIT_MS_MAX 30000u
#define COPY_BYTES ((size_t)1 << 20)

typedef struct pull {
    realm_catalog *c;
    const catalog_model *m;
    const catalog_origins *origins;
    const realm_catalog_watch *watch;
    char *part; /* path */
    int fd;
    realm_sha256_stream *hash; /* of the first `have` bytes */
    uint64_t have, fetched;
    uint64_t part_at, part_bytes; /* of the part of the model that is being fetched; 0: not known */
    uint64_t total;               /* 0: not known */
    bool useless;                 /* what came is no part of the model */
} pull;

static realm_status no_memory(realm_error *err) { return realm_error_set(err, REALM_E_NOMEM, "out of memory"); }

static bool is_url(const char *s) { return strncmp(s, "https://", 8) == 0 || strncmp(s, "http://", 7) == 0; }

/* ---- the part ---------------------------------------------------------------------------------------------------- */

/* Takes the hash of bytes [have, end) of the part. */
static realm_status hash_part(pull *p, uint64_t end, realm_error *err) {
    char *buffer = realm_malloc(COPY_BYTES);
    if (!buffer) return no_memory(err);
    realm_status s = REALM_OK;
    while (s == REALM_OK && p->have < end) {
        ssize_t n = pread(p->fd, buffer, REALM_MIN(COPY_BYTES, (size_t)(end - p->have)), (off_t)p->have);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            s = n < 0 ? catalog_errno(err, p->part, errno)
                      : realm_error_set(err, REALM_E_IO, "%s: has become shorter", p->part);
            break;
        }
        if ((s = realm_sha256_update(p->hash, buffer, (size_t)n)) != REALM_OK) (void)no_memory(err);
        p->have += (uint64_t)n;
    }
    realm_free(buffer);
    return s;
}

/* Cuts the part to `at` bytes and takes their hash. */
static realm_status rewind_to(pull *p, uint64_t at, realm_error *err) {
    if (ftruncate(p->fd, (off_t)at) != 0) return catalog_errno(err, p->part, errno);
    realm_sha256_close(p->hash);
    p->have = 0;
    if (realm_sha256_open(&p->hash) != REALM_OK) return no_memory(err);
    return hash_part(p, at, err);
}

static realm_status append(void *user, const void *data, size_t len, realm_error *err) {
    pull *p = user;
    uint64_t end = p->part_bytes ? p->part_at + p->part_bytes : REALM_CATALOG_BYTES_MAX;
    if (len > end - p->have) {
        p->useless = true;
        return realm_error_set(err, REALM_E_FORMAT, "more than the %llu bytes that were expected come",
                               (unsigned long long)(end - p->part_at));
    }
    for (const char *at = data; len > 0;) {
        ssize_t n = pwrite(p->fd, at, len, (off_t)p->have);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return catalog_errno(err, p->part, n < 0 ? errno : ENOSPC);
        if (realm_sha256_update(p->hash, at, (size_t)n) != REALM_OK) return no_memory(err);
        p->have += (uint64_t)n;
        p->fetched += (uint64_t)n;
        at += n;
        len -= (size_t)n;
    }
    if (p->watch->progress && !p->watch->progress(p->watch->user, p->have, REALM_MAX(p->total, p->have)))
        return realm_error_set(err, REALM_E_CANCELLED, "stopped; the same command goes on from here");
    return REALM_OK;
}

static void show_bytes(char out[24], uint64_t n) {
    if (n < 10u << 20)
        snprintf(out, 24, "%llu KiB", (unsigned long long)(n + 1023) >> 10);
    else
        snprintf(out, 24, "%llu MiB", (unsigned long long)n >> 20);
}

/* Says so at once when what is missing cannot fit. */
static realm_status check_room(const pull *p, realm_error *err) {
    struct statvfs v;
    char need[24], room[24];
    if (p->total <= p->have || fstatvfs(p->fd, &v) != 0) return REALM_OK;
    uint64_t free_bytes = (uint64_t)v.f_bavail * v.f_frsize;
    if (p->total - p->have <= free_bytes) return REALM_OK;
    show_bytes(need, p->total - p->have);
    show_bytes(room, free_bytes);
    return realm_error_set(err, REALM_E_IO, "%s: %s are needed, %s are free on the disk", p->c->models_dir, need, room);
}

static realm_status begin(void *user, uint64_t at, uint64_t total, realm_error *err) {
    pull *p = user;
    if (total && p->part_bytes && total != p->part_bytes) {
        p->useless = true;
        return realm_error_set(err, REALM_E_FORMAT, "the server has %llu bytes, %llu were expected",
                               (unsigned long long)total, (unsigned long long)p->part_bytes);
    }
    if (total > REALM_CATALOG_BYTES_MAX)
        return realm_error_set(err, REALM_E_LIMIT, "%llu bytes, a model has at most %llu", (unsigned long long)total,
                               REALM_CATALOG_BYTES_MAX);
    if (!p->m->bytes) p->total = total;
    realm_status s = p->part_at + at < p->have ? rewind_to(p, p->part_at + at, err) : REALM_OK;
    return s == REALM_OK ? check_room(p, err) : s;
}

/* ---- its sources ------------------------------------------------------------------------------------------------- */

static void wait_ms(unsigned ms) {
    struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};
    while (nanosleep(&t, &t) != 0 && errno == EINTR) continue;
}

static realm_status fetch_part(pull *p, const catalog_part *part, realm_error *err) {
    catalog_sink sink = {begin, append, p};
    unsigned tries = p->c->tries ? p->c->tries : TRIES, failed = 0;
    for (;;) {
        uint64_t before = p->have, from = p->have - p->part_at;
        bool again = false;
        realm_error_clear(err);
        realm_status s = catalog_fetch(p->origins, part->url, from, &sink, &again, err);
        if (s == REALM_E_RANGE && from > 0) { /* the file is shorter than what we have of it */
            if ((s = rewind_to(p, p->part_at, err)) != REALM_OK) return s;
            continue;
        }
        if (s == REALM_OK || !again) return s;
        if (p->have > before) failed = 0;
        if (++failed >= tries) {
            if (p->have > p->part_at) {
                char had[24];
                show_bytes(had, p->have);
                realm_error_prefix(err, "cut off after %s (the same command goes on from there)", had);
            }
            return s;
        }
        unsigned ms = (p->c->wait_ms ? p->c->wait_ms : WAIT_MS) << REALM_MIN(failed - 1, 10u);
        wait_ms(REALM_MIN(ms, WAIT_MS_MAX));
    }
}

static realm_status fetch_all(pull *p, realm_error *err) {
    uint64_t at = 0;
    for (size_t i = 0; i < p->m->n_parts; at += p->m->parts[i++].bytes) {
        const catalog_part *part = &p->m->parts[i];
        uint64_t end = at + part->bytes;
        if (part->bytes && p->have >= end) continue;
        p->part_at = at;
        p->part_bytes = part->bytes;
        realm_status s = fetch_part(p, part, err);
        if (s != REALM_OK) return s;
        if (part->bytes && p->have != end) {
            p->useless = true;
            return realm_error_set(err, REALM_E_FORMAT, "%llu bytes came, %llu were expected",
                                   (unsigned long long)(p->have - at), (unsigned long long)part->bytes);
        }
    }
    return REALM_OK;
}

static realm_status copy_file(pull *p, realm_error *err) {
    const char *path = p->m->file;
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0) return catalog_errno(err, path, errno);
    char *buffer = realm_malloc(COPY_BYTES), shown[256];
    realm_status s = REALM_OK;
    if (!buffer)
        s = no_memory(err);
    else if (fstat(fd, &st) != 0)
        s = catalog_errno(err, path, errno);
    else if (!S_ISREG(st.st_mode))
        s = realm_error_set(err, REALM_E_INVALID, "%s: not a regular file",
                            realm_escape(shown, sizeof shown, path, strlen(path)));
    if (s == REALM_OK) {
        p->part_bytes = p->m->bytes;
        p->total = (uint64_t)st.st_size;
        s = rewind_to(p, 0, err);
    }
    if (s == REALM_OK) s = check_room(p, err);
    while (s == REALM_OK) {
        ssize_t n = read(fd, buffer, COPY_BYTES);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) s = catalog_errno(err, path, errno);
        if (n <= 0) break;
        s = append(p, buffer, (size_t)n, err);
    }
    realm_free(buffer);
    close(fd);
    return s;
}

/* ---- the whole --------------------------------------------------------------------------------------------------- */

/* Hash, size and content; *sha256 is what it is. */
static realm_status check(pull *p, char sha256[REALM_CATALOG_SHA256_HEX], realm_error *err) {
    uint8_t digest[REALM_SHA256_BYTES];
    char arch[65];
    if (realm_sha256_finish(p->hash, digest) != REALM_OK) return no_memory(err);
    realm_hex(digest, sizeof digest, sha256);
    p->useless = true;
    if (p->m->bytes && p->have != p->m->bytes)
        return realm_error_set(err, REALM_E_FORMAT, "it has %llu bytes, %llu were expected",
                               (unsigned long long)p->have, (unsigned long long)p->m->bytes);
    if (p->m->sha256[0] && strcmp(sha256, p->m->sha256) != 0)
        return realm_error_set(err, REALM_E_FORMAT, "its SHA-256 is %.16s..., %.16s... was expected", sha256,
                               p->m->sha256);
    realm_status s = catalog_inspect(p->part, NULL, arch, err);
    if (s == REALM_OK) p->useless = false;
    if (s != REALM_OK) realm_error_prefix(err, "not installed");
    return s;
}

static realm_status install(pull *p, const char *path, realm_error *err) {
    if (fsync(p->fd) != 0) return catalog_errno(err, p->part, errno);
    if (rename(p->part, path) != 0) return catalog_errno(err, path, errno);
    int dir = open(p->c->models_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir >= 0) {
        (void)fsync(dir); /* the name; not all file systems can */
        close(dir);
    }
    return REALM_OK;
}

/* Whether the model is there already; takes the hash of one that came by hand. */
static bool is_there(const char *path, const catalog_model *m, char sha256[REALM_CATALOG_SHA256_HEX]) {
    catalog_stamp stamp;
    realm_mapping map;
    realm_error ignored = {0};
    uint8_t digest[REALM_SHA256_BYTES];
    if (!m->sha256[0] || access(path, R_OK) != 0) return false;
    memcpy(sha256, m->sha256, REALM_CATALOG_SHA256_HEX);
    catalog_stamp_read(path, &stamp);
    if (stamp.sha256[0]) return strcmp(stamp.sha256, m->sha256) == 0;
    if (realm_mapping_open(&map, path, &ignored) != REALM_OK) return false;
    bool same = realm_sha256(map.data, map.size, digest) == REALM_OK;
    realm_mapping_close(&map);
    if (!same) return false;
    realm_hex(digest, sizeof digest, sha256);
    if (strcmp(sha256, m->sha256) != 0) return false;
    (void)!catalog_stamp_write(path, sha256, "", &ignored); /* only saves the next one the hashing */
    return true;
}

/* The part, and how much of it belongs to this model by what the lock file says. */
static realm_status open_part(pull *p, int lock, realm_error *err) {
    char belongs[REALM_CATALOG_SHA256_HEX] = "";
    struct stat st;
    ssize_t n = pread(lock, belongs, sizeof belongs - 1, 0);
    p->fd = open(p->part, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY, 0644);
    if (p->fd < 0 || fstat(p->fd, &st) != 0) return catalog_errno(err, p->part, errno);
    if (!S_ISREG(st.st_mode) || st.st_nlink != 1)
        return realm_error_set(err, REALM_E_INVALID, "%s: not a file of this program's", p->part);
    bool ours = n == sizeof belongs - 1 && p->m->sha256[0] && strcmp(belongs, p->m->sha256) == 0;
    if (ours && (!p->m->bytes || (uint64_t)st.st_size <= p->m->bytes)) return rewind_to(p, (uint64_t)st.st_size, err);
    realm_status s = rewind_to(p, 0, err);
    if (s != REALM_OK) return s;
    size_t len = strlen(p->m->sha256);
    if (ftruncate(lock, 0) != 0) return catalog_errno(err, p->c->models_dir, errno);
    n = pwrite(lock, p->m->sha256, len, 0);
    return n == (ssize_t)len ? REALM_OK : catalog_errno(err, p->c->models_dir, n < 0 ? errno : ENOSPC);
}

static realm_status pull_locked(pull *p, int lock, const char *path, const char *source, realm_catalog_pulled *out,
                                realm_error *err) {
    realm_status s = open_part(p, lock, err);
    if (s != REALM_OK) return s;
    p->total = p->m->bytes;
    s = p->m->file ? copy_file(p, err) : fetch_all(p, err);
    if (s == REALM_OK) s = check(p, out->sha256, err);
    if (s == REALM_OK) s = install(p, path, err);
    out->bytes = p->have;
    out->fetched_bytes = p->fetched;
    /* A copy starts anew anyway. */
    if (p->useless || (s != REALM_OK && p->m->file)) (void)unlink(p->part);
    return s == REALM_OK ? catalog_stamp_write(path, out->sha256, source, err) : s;
}

static realm_status pull_model(realm_catalog *c, const catalog_model *m, const catalog_origins *origins,
                               const realm_catalog_watch *watch, realm_catalog_pulled *out, realm_error *err) {
    pull p = {.c = c, .m = m, .origins = origins, .watch = watch, .fd = -1};
    char *path = catalog_path(c->models_dir, "", m->name, ".gguf");
    char *lock_path = catalog_path(c->models_dir, ".", m->name, ".pull");
    int lock = -1;
    struct stat st;
    p.part = catalog_path(c->models_dir, ".", m->name, ".part");
    realm_status s = path && lock_path && p.part ? realm_dir_make(c->models_dir, err) : no_memory(err);
    if (s == REALM_OK) s = catalog_lock(lock_path, true, watch, &lock, err);
    if (s == REALM_OK && is_there(path, m, out->sha256)) {
        out->was_there = true;
        if (stat(path, &st) == 0) out->bytes = (uint64_t)st.st_size;
        (void)unlink(p.part);
    } else if (s == REALM_OK) {
        s = pull_locked(&p, lock, path, m->file ? m->file : m->parts[0].url, out, err);
    }
    /* Nothing to go on with: nor does the lock file need to stay. Under the lock, so that nobody holds another one. */
    if (lock >= 0 && access(p.part, F_OK) != 0) (void)unlink(lock_path);
    if (lock >= 0) close(lock);
    if (p.fd >= 0) close(p.fd);
    realm_sha256_close(p.hash);
    realm_free(p.part);
    realm_free(lock_path);
    realm_free(path);
    return s;
}

/* A model of the catalogue's kind from what a person typed. */
static realm_status from_source(const realm_catalog *c, const char *name, const realm_catalog_source *source,
                                catalog_model *m, catalog_origins *origins, realm_error *err) {
    if (source->sha256 && !catalog_sha256(source->sha256, m->sha256))
        return realm_error_set(err, REALM_E_INVALID, "a SHA-256 is 64 hexadecimal digits");
    if (!(m->name = realm_strdup(name))) return no_memory(err);
    if (!is_url(source->location)) {
        m->file = realm_strdup(source->location);
        return m->file ? REALM_OK : no_memory(err);
    }
    if (!m->sha256[0]) return realm_error_set(err, REALM_E_INVALID, "the SHA-256 of what an URL brings must be given");
    realm_status s = catalog_origins_add(origins, source->location, err);
    for (size_t i = 0; s == REALM_OK && i < c->index.origins.n; i++)
        s = catalog_origins_add(origins, c->index.origins.items[i], err);
    if (s != REALM_OK) return s;
    if (!(m->parts = realm_calloc(1, sizeof *m->parts))) return no_memory(err);
    m->n_parts = 1;
    return catalog_url(origins, NULL, source->location, &m->parts[0].url, err);
}

realm_status realm_catalog_pull(realm_catalog *c, const char *name, const realm_catalog_source *source,
                                const realm_catalog_watch *watch, realm_catalog_pulled *out, realm_error *err) {
    static const realm_catalog_watch nobody;
    realm_catalog_pulled ignored;
    realm_error local = {0}, index_error = {0};
    if (!err) err = &local;
    if (!out) out = &ignored;
    *out = (realm_catalog_pulled){0};
    catalog_model own = {0};
    catalog_origins origins = {0};
    realm_status s = realm_catalog_check_name(name, err);
    if (s != REALM_OK) return s;
    const catalog_model *m = &own;
    if (source) {
        s = from_source(c, name, source, &own, &origins, err);
    } else if (!(m = catalog_index_find(&c->index, name))) {
        s = catalog_index_fetch(&c->index, &index_error);
        if (!(m = catalog_index_find(&c->index, name))) {
            if (s != REALM_OK)
                *err = index_error;
            else
                s = realm_error_set(err, REALM_E_NOT_FOUND, "no index in %s/index.yaml has it", c->models_dir);
        } else {
            s = REALM_OK;
        }
    }
    if (s == REALM_OK) s = pull_model(c, m, source ? &origins : &c->index.origins, watch ? watch : &nobody, out, err);
    if (s != REALM_OK) realm_error_prefix(err, "%s", name);
    catalog_model_release(&own);
    catalog_origins_release(&origins);
    return s;
}
