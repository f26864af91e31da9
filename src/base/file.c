#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/str.h"

static realm_status from_errno(realm_error *err, const char *path, int e) {
    realm_status s = e == ENOENT || e == ENOTDIR ? REALM_E_NOT_FOUND
                     : e == EACCES || e == EPERM ? REALM_E_DENIED
                     : e == ENOMEM               ? REALM_E_NOMEM
                     : e == EISDIR || e == ENXIO ? REALM_E_INVALID
                                                 : REALM_E_IO;
    char shown[256];
    return realm_error_set(err, s, "%s: %s", realm_escape(shown, sizeof shown, path, strlen(path)), strerror(e));
}

/* Opens a regular file; O_NONBLOCK so that a FIFO without a writer does not hang the caller. */
static realm_status open_regular(const char *path, int *fd_out, size_t *size, realm_error *err) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0) return from_errno(err, path, errno);
    struct stat st;
    if (fstat(fd, &st) != 0) {
        int e = errno;
        close(fd);
        return from_errno(err, path, e);
    }
    if (!S_ISREG(st.st_mode)) {
        close(fd);
        char shown[256];
        return realm_error_set(err, REALM_E_INVALID, "%s: not a regular file",
                               realm_escape(shown, sizeof shown, path, strlen(path)));
    }
    *fd_out = fd;
    *size = (size_t)st.st_size;
    return REALM_OK;
}

realm_status realm_mapping_open(realm_mapping *m, const char *path, realm_error *err) {
    *m = (realm_mapping){0};
    int fd;
    size_t size;
    realm_status s = open_regular(path, &fd, &size, err);
    if (s != REALM_OK) return s;
    if (size > 0) {
        void *p = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED) {
            int e = errno;
            close(fd);
            return from_errno(err, path, e);
        }
        m->data = p;
        m->size = size;
    }
    close(fd);
    return REALM_OK;
}

void realm_mapping_close(realm_mapping *m) {
    if (m->data) (void)munmap((void *)(uintptr_t)m->data, m->size);
    *m = (realm_mapping){0};
}

void realm_mapping_drop(const realm_mapping *m, const void *data, size_t len) {
    uintptr_t base = (uintptr_t)m->data, at = (uintptr_t)data;
    if (!m->data || at < base || at - base > m->size || len > m->size - (at - base)) return;
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t first = (at + page - 1) / page * page, end = (at + len) / page * page;
    if (first < end) (void)madvise((void *)first, end - first, MADV_DONTNEED);
}

realm_status realm_file_read(const char *path, size_t max_bytes, char **data, size_t *len, realm_error *err) {
    int fd;
    size_t size, got = 0, bytes;
    realm_status s = open_regular(path, &fd, &size, err);
    if (s != REALM_OK) return s;
    char *p = NULL;
    if (size > max_bytes || !realm_add_size(size, 1, &bytes)) {
        s = realm_error_set(err, REALM_E_LIMIT, "%s: %zu bytes, at most %zu are read", path, size, max_bytes);
        goto done;
    }
    p = realm_malloc(bytes);
    if (!p) {
        s = realm_error_set(err, REALM_E_NOMEM, "%s: out of memory", path);
        goto done;
    }
    while (got < size) {
        ssize_t n = read(fd, p + got, size - got);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            s = from_errno(err, path, errno);
            goto done;
        }
        if (n == 0) break;
        got += (size_t)n;
    }
    p[got] = '\0';
    *data = p;
    *len = got;
    p = NULL;
done:
    realm_free(p);
    close(fd);
    return s;
}

realm_status realm_file_make(char *path, int *fd, realm_error *err) {
    char *end = path + strlen(path) - 6;
    for (;;) {
        struct stat st;
        *fd = mkostemp(path, O_CLOEXEC);
        if (*fd < 0) return from_errno(err, path, errno);
        /* Waits for none but one who has just claimed it, and will have removed it. Where files have no locks it is not
         * held, and none is ever claimed. */
        while (flock(*fd, LOCK_EX) != 0 && errno == EINTR) continue;
        if (fstat(*fd, &st) == 0 && st.st_nlink > 0) return REALM_OK;
        close(*fd);
        memcpy(end, "XXXXXX", 6);
    }
}

int realm_file_claim(const char *path) {
    struct stat held, named;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
    /* Another file may have come under this name meanwhile. */
    if (fd >= 0 && fstat(fd, &held) == 0 && S_ISREG(held.st_mode) && flock(fd, LOCK_EX | LOCK_NB) == 0 &&
        lstat(path, &named) == 0 && named.st_dev == held.st_dev && named.st_ino == held.st_ino)
        return fd;
    if (fd >= 0) close(fd);
    return -1;
}

realm_status realm_file_replace(const char *path, const void *data, size_t len, unsigned mode, realm_error *err) {
    size_t path_len = strlen(path);
    char *tmp = realm_malloc(path_len + 8);
    if (!tmp) return realm_error_set(err, REALM_E_NOMEM, "%s: out of memory", path);
    memcpy(tmp, path, path_len);
    memcpy(tmp + path_len, ".XXXXXX", 8);
    int fd;
    realm_status s = realm_file_make(tmp, &fd, err);
    if (s != REALM_OK) {
        realm_free(tmp);
        return s;
    }
    size_t done = 0;
    while (done < len) {
        ssize_t n = write(fd, (const char *)data + done, len - done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) break;
        done += (size_t)n;
    }
    int e = 0;
    if (done < len || fchmod(fd, (mode_t)mode) != 0 || fsync(fd) != 0) e = errno ? errno : EIO;
    if (!e && rename(tmp, path) != 0) e = errno;
    if (e) {
        (void)unlink(tmp);
        s = from_errno(err, path, e);
    }
    close(fd); /* it was synced: there is nothing left to fail */
    realm_free(tmp);
    return s;
}

realm_status realm_dir_make(const char *path, realm_error *err) {
    size_t len = strlen(path);
    char *p = realm_strndup(path, len);
    if (!p) return realm_error_set(err, REALM_E_NOMEM, "%s: out of memory", path);
    realm_status s = REALM_OK;
    for (size_t i = 1; i <= len; i++) {
        if (i < len && p[i] != '/') continue;
        char keep = p[i];
        p[i] = '\0';
        if (mkdir(p, 0700) != 0 && errno != EEXIST) {
            s = from_errno(err, p, errno);
            break;
        }
        p[i] = keep;
    }
    struct stat st;
    if (s == REALM_OK && len == 0) s = realm_error_set(err, REALM_E_INVALID, "the folder's name is empty");
    if (s == REALM_OK && (stat(path, &st) != 0 || !S_ISDIR(st.st_mode)))
        s = realm_error_set(err, REALM_E_INVALID, "%s: not a directory", path);
    realm_free(p);
    return s;
}

char *realm_path_join(const char *dir, const char *name) {
    size_t d = strlen(dir), n = strlen(name);
    bool slash = d > 0 && dir[d - 1] != '/';
    char *p = realm_malloc(d + n + 2);
    if (!p) return NULL;
    memcpy(p, dir, d);
    if (slash) p[d++] = '/';
    memcpy(p + d, name, n + 1);
    return p;
}
