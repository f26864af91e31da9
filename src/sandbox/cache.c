/* sandbox/cache.c - compiled programs on disk, believed only when this server wrote them.
 *
 * An artifact is machine code: loading one that somebody else made would run their code outside the sandbox. Each file
 * therefore carries an HMAC-SHA-256 under a secret that lies beside the files with mode 0600, over its own name and its
 * content; anything that does not match is a miss, and is compiled again and replaced. The name is a hash of the
 * module, the version of Wasmtime, the processor's features and the configuration.
 *
 *     file:  "realmcw1" | HMAC (32 bytes) | name (64 hex digits) | artifact
 *
 * The folder is bounded: past a number of files or bytes the oldest go. What a process that was killed had not written
 * to the end goes when the next begins.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/stat.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "base/file.h"
#include "base/log.h"
#include "sandbox/internal.h"

#define HEAD_BYTES (8 + REALM_SHA256_BYTES)
#define KEY_BYTES (REALM_SHA256_HEX - 1)
#define FILES_MAX 1024u
#define BYTES_MAX (UINT64_C(2) << 30)

static const char MAGIC[8] = {'r', 'e', 'a', 'l', 'm', 'c', 'w', '1'};

/* The secret: read when it is private to this user, else made anew. */
static realm_status secret_open(realm_sandbox *s, const char *path, realm_error *err) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd >= 0) {
        struct stat sb;
        uint8_t extra;
        bool good = !fstat(fd, &sb) && S_ISREG(sb.st_mode) && !(sb.st_mode & 077) && sb.st_uid == geteuid() &&
                    read(fd, s->cache_secret, REALM_SHA256_BYTES) == REALM_SHA256_BYTES && read(fd, &extra, 1) == 0;
        close(fd);
        if (good) return REALM_OK;
        realm_log_warn("sandbox", "the secret of the program cache is not private or not whole: made anew");
    }
    realm_status st = realm_random_bytes(s->cache_secret, sizeof s->cache_secret);
    if (st) return realm_error_set(err, st, "no randomness for the program cache");
    return realm_file_replace(path, s->cache_secret, sizeof s->cache_secret, 0600, err);
}

/* Removes what realm_file_replace had begun, and nobody is at any more. */
static void sweep(const char *dir) {
    DIR *d = opendir(dir);
    if (!d) return;
    for (struct dirent *e; (e = readdir(d));) {
        const char *end = strrchr(e->d_name, '.');
        char *path = end && strlen(end) == 7 ? realm_path_join(dir, e->d_name) : NULL; /* .XXXXXX */
        int held = path ? realm_file_claim(path) : -1;
        if (held >= 0) (void)unlink(path);
        if (held >= 0) close(held);
        realm_free(path);
    }
    closedir(d);
}

realm_status realm_cache_open(realm_sandbox *s, realm_error *err) {
    if (!s->cache_dir) return REALM_OK;
    realm_status st = realm_dir_make(s->cache_dir, err);
    if (st) return st;
    char *path = realm_path_join(s->cache_dir, "secret");
    if (!path) return realm_error_set(err, REALM_E_NOMEM, "no memory for a path");
    st = secret_open(s, path, err);
    realm_free(path);
    if (!st) sweep(s->cache_dir);
    return st ? realm_error_prefix(err, "program cache") : REALM_OK;
}

void realm_cache_key(const realm_sandbox *s, const char *sha256, char out[REALM_SHA256_HEX]) {
    char text[512];
    uint8_t digest[REALM_SHA256_BYTES];
    unsigned a = 0, b = 0, c = 0, d = 0, e = 0, f = 0, g = 0, h = 0;
#if defined(__x86_64__)
    __get_cpuid(1, &a, &b, &c, &d);
    __get_cpuid_count(7, 0, &e, &f, &g, &h);
    b = 0;            /* holds the number of the core that was asked */
    c &= ~(1u << 27); /* what the system enabled is in Wasmtime's own check */
#endif
    snprintf(text, sizeof text, "%s|%s|%x.%x.%x.%x.%x.%x.%x|%lx.%lx|%llu.%llu.%u.%u", sha256, WASMTIME_VERSION, a, c, d,
             e, f, g, h, getauxval(AT_HWCAP), getauxval(AT_HWCAP2), (unsigned long long)s->tuning.reservation_bytes,
             (unsigned long long)s->tuning.guard_bytes, s->tuning.signals, s->tuning.wasm_stack_bytes);
    if (realm_sha256(text, strlen(text), digest)) memset(digest, 0, sizeof digest); /* cannot fail for these sizes */
    realm_hex(digest, sizeof digest, out);
}

static char *artifact_path(const realm_sandbox *s, const char *key) {
    char name[REALM_SHA256_HEX + 8];
    snprintf(name, sizeof name, "%s.cwasm", key);
    return realm_path_join(s->cache_dir, name);
}

realm_status realm_cache_get(realm_sandbox *s, const char *key, char **file, size_t *len, const char **payload) {
    if (!s->cache_dir) return REALM_E_NOT_FOUND;
    char *path = artifact_path(s, key);
    char *data = NULL;
    size_t n = 0;
    uint8_t mac[REALM_SHA256_BYTES];
    realm_error why = {0};
    if (!path) return REALM_E_NOT_FOUND;
    realm_status st = realm_file_read(path, REALM_ARTIFACT_BYTES_MAX, &data, &n, &why);
    realm_free(path);
    if (st == REALM_E_NOT_FOUND) return st;
    const char *what = why.text;
    if (!st) {
        what = "it was not written by this server";
        bool good =
            n > HEAD_BYTES + KEY_BYTES && !memcmp(data, MAGIC, sizeof MAGIC) &&
            !memcmp(data + HEAD_BYTES, key, KEY_BYTES) &&
            !realm_hmac_sha256(s->cache_secret, sizeof s->cache_secret, data + HEAD_BYTES, n - HEAD_BYTES, mac) &&
            realm_secret_equal(mac, data + sizeof MAGIC, sizeof mac);
        if (good) {
            *file = data;
            *payload = data + HEAD_BYTES + KEY_BYTES;
            *len = n - HEAD_BYTES - KEY_BYTES;
            return REALM_OK;
        }
    }
    realm_log_warn("sandbox", "compiled program %.16s in the cache is not used: %s", key, what);
    realm_free(data);
    return REALM_E_NOT_FOUND;
}

/* Removes the oldest artifact while there are too many; one pass over the folder finds it. */
static void cache_trim(const realm_sandbox *s) {
    for (unsigned rounds = 0; rounds < 16; rounds++) {
        DIR *d = opendir(s->cache_dir);
        if (!d) return;
        char oldest[NAME_MAX + 1] = "";
        struct timespec oldest_at = {0};
        uint64_t bytes = 0;
        uint32_t files = 0;
        for (struct dirent *e; (e = readdir(d));) {
            struct stat sb;
            size_t n = strlen(e->d_name);
            if (n < 6 || strcmp(e->d_name + n - 6, ".cwasm") ||
                fstatat(dirfd(d), e->d_name, &sb, AT_SYMLINK_NOFOLLOW) || !S_ISREG(sb.st_mode))
                continue;
            files++;
            bytes += (uint64_t)sb.st_size;
            bool older = sb.st_mtim.tv_sec < oldest_at.tv_sec ||
                         (sb.st_mtim.tv_sec == oldest_at.tv_sec && sb.st_mtim.tv_nsec < oldest_at.tv_nsec);
            if (oldest[0] && !older) continue;
            memcpy(oldest, e->d_name, n + 1);
            oldest_at = sb.st_mtim;
        }
        bool over = files > FILES_MAX || (bytes > BYTES_MAX && files > 1);
        if (over) unlinkat(dirfd(d), oldest, 0);
        closedir(d);
        if (!over) return;
    }
}

void realm_cache_put(realm_sandbox *s, const char *key, const char *artifact, size_t len) {
    if (!s->cache_dir) return;
    realm_buf b;
    realm_error why = {0};
    uint8_t mac[REALM_SHA256_BYTES] = {0};
    char *path = artifact_path(s, key);
    realm_buf_init(&b, REALM_ARTIFACT_BYTES_MAX);
    realm_buf_reserve(&b, HEAD_BYTES + KEY_BYTES + len);
    realm_buf_append(&b, MAGIC, sizeof MAGIC);
    realm_buf_append(&b, mac, sizeof mac);
    realm_buf_append(&b, key, KEY_BYTES);
    realm_buf_append(&b, artifact, len);
    realm_status st = path ? realm_buf_status(&b) : REALM_E_NOMEM;
    if (!st)
        st = realm_hmac_sha256(s->cache_secret, sizeof s->cache_secret, b.data + HEAD_BYTES, b.len - HEAD_BYTES, mac);
    if (!st) {
        memcpy(b.data + sizeof MAGIC, mac, sizeof mac);
        st = realm_file_replace(path, b.data, b.len, 0600, &why);
    }
    if (st)
        realm_log_warn("sandbox", "compiled program %.16s was not kept: %s", key,
                       why.text[0] ? why.text : realm_status_text(st));
    else
        cache_trim(s);
    realm_buf_release(&b);
    realm_free(path);
}
