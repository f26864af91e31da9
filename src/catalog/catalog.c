/* catalog/catalog.c - the folder of models: which names stand for which files. */
#include "catalog/catalog.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/file.h"
#include "base/log.h"
#include "base/str.h"
#include "catalog/internal.h"
#include "gguf/gguf.h"

#define STAMP_MAX (REALM_CATALOG_URL_MAX + 256u)
#define FILES_MAX 4096u /* models that are listed of a folder */

static realm_status no_memory(realm_error *err) { return realm_error_set(err, REALM_E_NOMEM, "out of memory"); }

realm_status catalog_errno(realm_error *err, const char *path, int e) {
    char shown[256];
    realm_status s = e == ENOENT || e == ENOTDIR               ? REALM_E_NOT_FOUND
                     : e == EACCES || e == EPERM || e == EROFS ? REALM_E_DENIED
                     : e == ELOOP || e == ENXIO                ? REALM_E_INVALID
                     : e == ENOMEM                             ? REALM_E_NOMEM
                                                               : REALM_E_IO;
    return realm_error_set(err, s, "%s: %s", realm_escape(shown, sizeof shown, path, strlen(path)),
                           e == ELOOP ? "is a link" : strerror(e));
}

/* ---- names ------------------------------------------------------------------------------------------------------- */

static bool is_name(const char *s, size_t len) {
    if (len == 0 || len > REALM_CATALOG_NAME_MAX || !isalnum((unsigned char)s[0])) return false;
    for (size_t i = 0; i < len; i++)
        if (!isalnum((unsigned char)s[i]) && s[i] != '.' && s[i] != '_' && s[i] != '-') return false;
    return true;
}

realm_status realm_catalog_check_name(const char *name, realm_error *err) {
    char shown[96];
    if (is_name(name, strlen(name))) return REALM_OK;
    return realm_error_set(err, REALM_E_INVALID,
                           "\"%s\": a model's name has 1 to %u of a-z A-Z 0-9 . _ - and begins with a letter or digit",
                           realm_escape(shown, sizeof shown, name, strlen(name)), REALM_CATALOG_NAME_MAX);
}

/* Length of the name when `file` is <before>NAME<after>, else 0. */
static size_t name_in(const char *file, const char *before, const char *after) {
    size_t len = strlen(file), b = strlen(before), a = strlen(after);
    if (len <= a + b || strncmp(file, before, b) != 0 || strcmp(file + len - a, after) != 0) return 0;
    return is_name(file + b, len - a - b) ? len - a - b : 0;
}

char *catalog_path(const char *dir, const char *before, const char *name, const char *after) {
    size_t len = strlen(before) + strlen(name) + strlen(after) + 1;
    char *file = realm_malloc(len);
    if (!file) return NULL;
    snprintf(file, len, "%s%s%s", before, name, after);
    char *path = realm_path_join(dir, file);
    realm_free(file);
    return path;
}

/* A model's file may be a link, but not out of its folder. */
static realm_status check_inside(const char *dir, const char *path, realm_error *err) {
    char *root = realpath(dir, NULL), *file = root ? realpath(path, NULL) : NULL;
    realm_status s = REALM_OK;
    size_t len = root ? strlen(root) : 0;
    if (!file)
        s = catalog_errno(err, path, errno);
    else if (strncmp(file, root, len) != 0 || (file[len] != '/' && len > 1))
        s = realm_error_set(err, REALM_E_DENIED, "%s: a link out of the models folder", path);
    free(file); /* realpath's */
    free(root);
    return s;
}

/* ---- stamps and locks -------------------------------------------------------------------------------------------- */

static char *stamp_path(const char *path) {
    size_t len = strlen(path) + 4;
    char *p = realm_malloc(len);
    if (p) snprintf(p, len, "%s.ok", path);
    return p;
}

void catalog_stamp_read(const char *path, catalog_stamp *out) {
    struct stat st;
    char *file = stamp_path(path), *text = NULL, sha[65] = "";
    size_t len;
    long long size, mtime;
    unsigned long long inode;
    int at = 0;
    realm_error ignored = {0};
    *out = (catalog_stamp){0};
    if (file && stat(path, &st) == 0 && realm_file_read(file, STAMP_MAX, &text, &len, &ignored) == REALM_OK &&
        sscanf(text, "%lld %lld %llu %64s%n", &size, &mtime, &inode, sha, &at) == 4 && size == st.st_size &&
        mtime == st.st_mtime && inode == st.st_ino && catalog_sha256(sha, out->sha256)) {
        const char *source = text + at + (text[at] == ' ');
        snprintf(out->source, sizeof out->source, "%.*s", (int)strcspn(source, "\n"), source);
    }
    realm_free(text);
    realm_free(file);
}

realm_status catalog_stamp_write(const char *path, const char *sha256, const char *source, realm_error *err) {
    struct stat st;
    char text[STAMP_MAX], *file = stamp_path(path);
    if (!file) return no_memory(err);
    realm_status s = REALM_OK;
    if (stat(path, &st) != 0) {
        s = catalog_errno(err, path, errno);
    } else {
        if (strchr(source, '\n')) source = ""; /* a path may hold anything */
        int n = snprintf(text, sizeof text, "%lld %lld %llu %s%s%.*s\n", (long long)st.st_size, (long long)st.st_mtime,
                         (unsigned long long)st.st_ino, sha256, *source ? " " : "", (int)REALM_CATALOG_URL_MAX, source);
        s = realm_file_replace(file, text, (size_t)n, 0644, err);
    }
    realm_free(file);
    return s;
}

realm_status catalog_lock(const char *path, bool wait, const realm_catalog_watch *watch, int *out, realm_error *err) {
    for (;;) {
        struct stat held, named;
        int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY, 0600);
        if (fd < 0) return catalog_errno(err, path, errno);
        if (fstat(fd, &held) != 0 || !S_ISREG(held.st_mode)) {
            close(fd);
            return realm_error_set(err, REALM_E_INVALID, "%s: not a regular file", path);
        }
        int got = flock(fd, LOCK_EX | LOCK_NB);
        if (got != 0 && errno == EWOULDBLOCK) {
            if (!wait) {
                close(fd);
                return realm_error_set(err, REALM_E_BUSY, "it is being pulled");
            }
            if (watch && watch->waiting) watch->waiting(watch->user);
            while ((got = flock(fd, LOCK_EX)) != 0 && errno == EINTR) continue;
        }
        if (got != 0) {
            int e = errno;
            close(fd);
            return catalog_errno(err, path, e);
        }
        /* Whoever had it before may have removed the name: then this is a lock that nobody else will find. */
        if (stat(path, &named) == 0 && named.st_ino == held.st_ino && named.st_dev == held.st_dev) {
            *out = fd;
            return REALM_OK;
        }
        close(fd);
    }
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

realm_status realm_catalog_open(realm_catalog **out, const realm_catalog_config *config, realm_error *err) {
    realm_error local = {0};
    char *file = NULL, *text = NULL;
    size_t len = 0;
    if (!err) err = &local;
    *out = NULL;
    realm_catalog *c = realm_calloc(1, sizeof *c);
    if (!c) return no_memory(err);
    c->tries = config->tries;
    c->wait_ms = config->wait_ms;
    c->models_dir = realm_strdup(config->models_dir);
    if (config->cache_dir) c->cache_dir = realm_strdup(config->cache_dir);
    file = realm_path_join(config->models_dir, "index.yaml");
    realm_status s = REALM_OK;
    if (!c->models_dir || (config->cache_dir && !c->cache_dir) || !file) s = no_memory(err);
    if (s == REALM_OK) s = realm_file_read(file, REALM_CATALOG_INDEX_MAX, &text, &len, err);
    if (s == REALM_OK && (s = catalog_index_add(&c->index, text, len, file, false, err)) != REALM_OK)
        realm_error_prefix(err, "%s", file);
    if (s == REALM_E_NOT_FOUND && !text) { /* no index: nothing can be pulled by name alone */
        realm_error_clear(err);
        s = REALM_OK;
    }
    realm_free(text);
    realm_free(file);
    if (s != REALM_OK)
        realm_catalog_close(c);
    else
        *out = c;
    return s;
}

void realm_catalog_close(realm_catalog *c) {
    if (!c) return;
    catalog_index_release(&c->index);
    realm_free(c->models_dir);
    realm_free(c->cache_dir);
    realm_free(c);
}

/* ---- finding ----------------------------------------------------------------------------------------------------- */

/* NAME.gguf in `dir`, else the only model there that begins with NAME; *path stays NULL when there is none. */
static realm_status find_in(const char *dir, const char *name, char **path, realm_error *err) {
    struct stat st;
    size_t len = strlen(name), found = 0;
    char *exact = catalog_path(dir, "", name, ".gguf");
    if (!exact) return no_memory(err);
    if (lstat(exact, &st) == 0) {
        *path = exact;
        return check_inside(dir, exact, err);
    }
    realm_free(exact);
    DIR *d = opendir(dir);
    if (!d) return REALM_OK;
    for (struct dirent *e; (e = readdir(d));) {
        if (name_in(e->d_name, "", ".gguf") == 0 || strncmp(e->d_name, name, len) != 0) continue;
        found++;
        realm_free(*path);
        *path = realm_path_join(dir, e->d_name);
    }
    closedir(d);
    if (found == 1 && *path) return check_inside(dir, *path, err);
    if (found == 1) return no_memory(err);
    if (found == 0) return REALM_OK;
    return realm_error_set(err, REALM_E_INVALID, "%zu models in %s begin with \"%s\": name one", found, dir, name);
}

realm_status realm_catalog_find(const realm_catalog *c, const char *name, char **path, realm_error *err) {
    const char *dirs[] = {c->models_dir, c->cache_dir};
    *path = NULL;
    realm_status s = realm_catalog_check_name(name, err);
    for (size_t i = 0; i < REALM_ARRAY_LEN(dirs) && s == REALM_OK && !*path; i++)
        if (dirs[i]) s = find_in(dirs[i], name, path, err);
    if (s == REALM_OK && *path) return s;
    realm_free(*path);
    *path = NULL;
    if (s != REALM_OK) return s;
    return realm_error_set(err, REALM_E_NOT_FOUND, "no model \"%s\" in %s%s%s", name, c->models_dir,
                           catalog_index_find(&c->index, name) ? ": `realm models pull` gets it" : "",
                           c->cache_dir ? " or in the download cache" : "");
}

/* ---- listing ----------------------------------------------------------------------------------------------------- */

realm_status catalog_inspect(const char *path, realm_catalog_entry *e, char arch[65], realm_error *err) {
    realm_gguf *g;
    realm_error ignored = {0};
    arch[0] = '\0';
    realm_status s = realm_gguf_open(&g, path, err);
    if (s != REALM_OK) return s;
    s = realm_gguf_check_metadata(g, err);
    _Static_assert(REALM_GGUF_MAX_ARCHITECTURE == 64, "arch[65]");
    if (realm_gguf_architecture(g, arch) && e) {
        char key[96];
        snprintf(key, sizeof key, "%s.context_length", arch);
        (void)!realm_gguf_get_u32(g, key, false, &e->context_length, &ignored);
    }
    realm_gguf_close(g);
    return s;
}

typedef struct file_name { /* of a folder */
    char name[REALM_CATALOG_NAME_MAX + 1];
    const char *dir;
    realm_catalog_state state;
} file_name;

typedef struct listing {
    file_name *files;
    size_t n;
} listing;

static bool known(const listing *l, const char *name) {
    for (size_t i = 0; i < l->n; i++)
        if (strcmp(l->files[i].name, name) == 0) return true;
    return false;
}

static void read_folder(listing *l, const char *dir, const char *before, const char *after, realm_catalog_state state) {
    DIR *d = opendir(dir);
    if (!d) return;
    for (struct dirent *e; l->n < FILES_MAX && (e = readdir(d));) {
        size_t len = name_in(e->d_name, before, after);
        if (!len) continue;
        file_name *f = &l->files[l->n];
        memcpy(f->name, e->d_name + strlen(before), len);
        f->name[len] = '\0';
        if (known(l, f->name)) continue;
        f->dir = dir;
        f->state = state;
        l->n++;
    }
    closedir(d);
}

static int by_name(const void *a, const void *b) {
    const file_name *x = a, *y = b;
    return strcmp(x->name, y->name);
}

static realm_status tell_file(const realm_catalog *c, const file_name *f,
                              void (*fn)(void *user, const realm_catalog_entry *entry), void *user, realm_error *err) {
    const catalog_model *m = catalog_index_find(&c->index, f->name);
    bool part = f->state == REALM_CATALOG_PARTIAL;
    realm_catalog_entry e = {.name = f->name,
                             .state = f->state,
                             .architecture = "",
                             .sha256 = part && m ? m->sha256 : "",
                             .source = part && m ? m->file ? m->file : m->parts[0].url : "",
                             .description = m && m->description ? m->description : "",
                             .bytes = part && m ? m->bytes : 0};
    catalog_stamp stamp;
    char arch[65];
    realm_error why = {0};
    struct stat st = {0};
    char *path = catalog_path(f->dir, part ? "." : "", f->name, part ? ".part" : ".gguf");
    if (!path) return no_memory(err);
    if (part) {
        if (lstat(path, &st) == 0) e.have_bytes = (uint64_t)st.st_size;
        fn(user, &e);
        realm_free(path);
        return REALM_OK;
    }
    e.path = path;
    if (check_inside(f->dir, path, &why) != REALM_OK || catalog_inspect(path, &e, arch, &why) != REALM_OK) {
        e.state = REALM_CATALOG_BROKEN;
        e.problem = why.text;
    } else {
        e.architecture = arch;
        catalog_stamp_read(path, &stamp);
        e.sha256 = stamp.sha256;
        e.source = stamp.source;
    }
    if (stat(path, &st) == 0) e.bytes = (uint64_t)st.st_size;
    fn(user, &e);
    realm_free(path);
    return REALM_OK;
}

static int model_by_name(const void *a, const void *b) {
    const catalog_model *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

realm_status realm_catalog_each(realm_catalog *c, void (*fn)(void *user, const realm_catalog_entry *entry), void *user,
                                realm_error *err) {
    realm_error why = {0};
    if (catalog_index_fetch(&c->index, &why) != REALM_OK)
        realm_log_warn("catalog", "an index is left out: %s", why.text);
    const catalog_index *x = &c->index;
    listing l = {.files = realm_calloc(FILES_MAX, sizeof *l.files)};
    const catalog_model **rest = realm_calloc(x->n_models + 1, sizeof *rest);
    size_t n_rest = 0;
    realm_status s = l.files && rest ? REALM_OK : no_memory(err);
    if (s != REALM_OK) goto done;
    read_folder(&l, c->models_dir, "", ".gguf", REALM_CATALOG_INSTALLED);
    if (c->cache_dir) read_folder(&l, c->cache_dir, "", ".gguf", REALM_CATALOG_CACHED);
    read_folder(&l, c->models_dir, ".", ".part", REALM_CATALOG_PARTIAL);
    for (size_t i = 0; i < x->n_models; i++)
        if (!known(&l, x->models[i].name)) rest[n_rest++] = &x->models[i];
    qsort(l.files, l.n, sizeof *l.files, by_name);
    qsort(rest, n_rest, sizeof(const catalog_model *), model_by_name);
    for (size_t i = 0; s == REALM_OK && i < l.n; i++) s = tell_file(c, &l.files[i], fn, user, err);
    for (size_t i = 0; s == REALM_OK && i < n_rest; i++) {
        const catalog_model *m = rest[i];
        fn(user, &(realm_catalog_entry){.name = m->name,
                                        .state = REALM_CATALOG_AVAILABLE,
                                        .architecture = "",
                                        .bytes = m->bytes,
                                        .sha256 = m->sha256,
                                        .source = m->file ? m->file : m->parts[0].url,
                                        .description = m->description ? m->description : ""});
    }
done:
    realm_free(rest);
    realm_free(l.files);
    return s;
}

/* ---- removing ---------------------------------------------------------------------------------------------------- */

/* Adds what goes to *freed; absent is fine. */
static realm_status remove_file(const realm_catalog *c, const char *before, const char *name, const char *after,
                                uint64_t *freed, bool *there, realm_error *err) {
    struct stat st;
    char *path = catalog_path(c->models_dir, before, name, after);
    realm_status s = path ? REALM_OK : no_memory(err);
    if (path && lstat(path, &st) == 0) {
        if (unlink(path) != 0) {
            s = catalog_errno(err, path, errno);
        } else {
            *there = true;
            if (S_ISREG(st.st_mode) && st.st_nlink == 1) *freed += (uint64_t)st.st_size;
        }
    }
    realm_free(path);
    return s;
}

realm_status realm_catalog_remove(realm_catalog *c, const char *name, uint64_t *freed_bytes, realm_error *err) {
    static const char *const files[][2] = {{"", ".gguf"}, {"", ".gguf.ok"}, {".", ".part"}, {".", ".pull"}};
    realm_error local = {0};
    uint64_t freed = 0;
    bool there = false;
    int lock = -1;
    struct stat st;
    if (!err) err = &local;
    realm_status s = realm_catalog_check_name(name, err);
    if (s != REALM_OK) return s;
    char *lock_path = catalog_path(c->models_dir, ".", name, ".pull");
    if (!lock_path) return no_memory(err);
    if (stat(c->models_dir, &st) == 0) {
        s = catalog_lock(lock_path, false, NULL, &lock, err);
        for (size_t i = 0; s == REALM_OK && i < REALM_ARRAY_LEN(files); i++) {
            bool mine = false;
            s = remove_file(c, files[i][0], name, files[i][1], &freed, &mine, err);
            there |= mine && i < 3; /* the lock is our own */
        }
        if (lock >= 0) close(lock);
    }
    realm_free(lock_path);
    if (s == REALM_OK && !there) {
        char *cached = c->cache_dir ? catalog_path(c->cache_dir, "", name, ".gguf") : NULL;
        if (cached && lstat(cached, &st) == 0)
            s = realm_error_set(err, REALM_E_DENIED, "it is not in the models folder but in a cache: %s", cached);
        else
            s = realm_error_set(err, REALM_E_NOT_FOUND, "no model of this name in %s", c->models_dir);
        realm_free(cached);
    }
    if (s != REALM_OK) realm_error_prefix(err, "%s", name);
    if (freed_bytes) *freed_bytes = freed;
    return s;
}
