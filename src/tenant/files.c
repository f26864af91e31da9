/* tenant/files.c - the files of models that tenants stored: where they lie, what the store lists, what is left over.
 *
 *      host call writes a file --model_store--> <models>/<tenant>/<hash>.gguf and a row for each id
 *      rows --model_remove--> gone, and the file with the last of them
 *
 * A row always has its file: the file is moved into place before the row is written, and deleted after the last row is.
 * What a process that ended between the two, or in the middle of writing, left behind is swept up by the next one: all
 * that nobody holds (base/file.h), as whoever stores a model holds its file until the row is there. The folder of a
 * tenant that was deleted goes once nobody uses it.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/file.h"
#include "crypto/crypto.h"
#include "tenant/internal.h"

static char *tenant_dir(const realm_tenant *t) {
    char name[24];
    snprintf(name, sizeof name, "%lld", (long long)t->id);
    return realm_path_join(t->rt->models_dir, name);
}

char *model_path(const realm_tenant *t, const char *sha256) {
    char name[80];
    char *dir = tenant_dir(t), *path = NULL;
    snprintf(name, sizeof name, "%s.gguf", sha256);
    if (dir) path = realm_path_join(dir, name);
    realm_free(dir);
    return path;
}

void without_path(realm_error *err, const char *path) {
    size_t n = strlen(path), len = strlen(err->text);
    if (len > n + 2 && !strncmp(err->text, path, n) && !strncmp(err->text + n, ": ", 2))
        memmove(err->text, err->text + n + 2, len - n - 1);
}

static realm_status sync_dir(const char *dir, realm_error *err) {
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int e = fd < 0 || fsync(fd) != 0 ? errno : 0;
    if (fd >= 0) close(fd);
    return e ? realm_error_set(err, REALM_E_IO, "the model cannot be stored: %s", strerror(e)) : REALM_OK;
}

static realm_status hash_file(const char *path, uint8_t digest[REALM_SHA256_BYTES], uint64_t *bytes, realm_error *err) {
    realm_mapping m;
    realm_status s = realm_mapping_open(&m, path, err);
    if (s != REALM_OK) return s;
    *bytes = m.size;
    s = realm_sha256(m.data, m.size, digest);
    realm_mapping_close(&m);
    return s == REALM_OK ? s : realm_error_set(err, s, "SHA-256 failed");
}

/* An id that is free for this file: the chosen one, or the first of those in its hash. */
static realm_status list_model(realm_tenant *t, uint32_t id, uint64_t quota_bytes,
                               const uint8_t digest[REALM_SHA256_BYTES], realm_model_row *row, realm_error *err) {
    if (id) {
        row->id = id;
        return realm_store_model_add(t->rt->store, t->id, quota_bytes, row, err);
    }
    realm_status s = REALM_E_EXISTS;
    for (size_t at = 0; at < REALM_SHA256_BYTES && s == REALM_E_EXISTS; at += 4) {
        uint32_t v = (uint32_t)digest[at] << 24 | (uint32_t)digest[at + 1] << 16 | (uint32_t)digest[at + 2] << 8 |
                     digest[at + 3];
        row->id = v & MODEL_ID_CHOSEN_MAX ? v & MODEL_ID_CHOSEN_MAX : 1;
        s = realm_store_model_add(t->rt->store, t->id, quota_bytes, row, err);
    }
    return s;
}

/* Whether ids name the file: one that is loaded and that none names goes when nobody holds it. */
static void set_removed(realm_tenant *t, const char *sha256, bool removed) {
    realm_mutex_lock(&t->rt->mu);
    for (tenant_model *m = t->stored; m; m = m->next)
        if (!strcmp(m->sha256, sha256)) m->removed = removed;
    realm_mutex_unlock(&t->rt->mu);
}

realm_status model_store(realm_tenant *t, const char *path, uint32_t id, uint64_t quota_bytes, uint32_t *made,
                         realm_error *err) {
    uint8_t digest[REALM_SHA256_BYTES];
    realm_model_row row = {0};
    realm_gguf *g = NULL;
    bool used = false;
    char *dir = tenant_dir(t), *to = NULL;
    realm_status s = REALM_OK;
    if (!dir) {
        s = realm_error_set(err, REALM_E_NOMEM, "out of memory");
        goto done;
    }
    if ((s = realm_gguf_open(&g, path, err)) != REALM_OK) goto done;
    if ((s = realm_gguf_check_metadata(g, err)) != REALM_OK) goto done;
    if ((s = hash_file(path, digest, &row.bytes, err)) != REALM_OK) goto done;
    realm_hex(digest, sizeof digest, row.sha256);
    if (!(to = model_path(t, row.sha256))) {
        s = realm_error_set(err, REALM_E_NOMEM, "out of memory");
        goto done;
    }
    realm_mutex_lock(&t->files_mu);
    /* First the file, then the row: a row always has its file. */
    if (rename(path, to) != 0)
        s = realm_error_set(err, REALM_E_IO, "the model cannot be stored: %s", strerror(errno));
    else
        s = sync_dir(dir, err);
    if (s == REALM_OK) s = list_model(t, id, quota_bytes, digest, &row, err);
    if (s != REALM_OK && realm_store_model_used(t->rt->store, t->id, row.sha256, &used, NULL) == REALM_OK && !used)
        (void)unlink(to);
    realm_mutex_unlock(&t->files_mu);
    if (s == REALM_OK) set_removed(t, row.sha256, false);
    *made = row.id;
done:
    if (s != REALM_OK) {
        without_path(err, path);
        (void)unlink(path);
    }
    realm_gguf_close(g);
    realm_free(to);
    realm_free(dir);
    return s;
}

realm_status model_remove(realm_tenant *t, uint32_t id, realm_error *err) {
    realm_model_row row;
    bool last = false;
    realm_mutex_lock(&t->files_mu);
    realm_status s = realm_store_model_remove(t->rt->store, t->id, id, &row, &last, err);
    char *path = s == REALM_OK && last ? model_path(t, row.sha256) : NULL;
    if (path) (void)unlink(path); /* should it stay, the next start sweeps it up */
    realm_mutex_unlock(&t->files_mu);
    realm_free(path);
    if (s != REALM_OK || !last) return s;
    set_removed(t, row.sha256, true);
    models_unload_idle(t, true);
    return REALM_OK;
}

/* Removes what nothing names from one tenant's folder, and the folder once it is empty. */
static void sweep_tenant(realm_runtime *rt, const char *dir, int64_t tenant_id) {
    DIR *d = opendir(dir);
    if (!d) return;
    for (struct dirent *e; (e = readdir(d));) {
        char sha[65];
        bool used = false;
        realm_status s = REALM_OK;
        char *path = e->d_name[0] == '.' ? NULL : realm_path_join(dir, e->d_name);
        const int held = path ? realm_file_claim(path) : -1;
        if (held >= 0 && strlen(e->d_name) == 64 + 5) { /* a finished file: its name is its hash */
            memcpy(sha, e->d_name, 64);
            sha[64] = '\0';
            s = realm_store_model_used(rt->store, tenant_id, sha, &used, NULL);
        }
        if (held >= 0 && s == REALM_OK && !used) (void)unlink(path);
        if (held >= 0) close(held);
        realm_free(path);
    }
    closedir(d);
    (void)rmdir(dir); /* only when it is empty */
}

/* Calls fn for the folder of each tenant that has one. */
static void each_folder(realm_runtime *rt, void (*fn)(realm_runtime *rt, const char *dir, int64_t tenant_id)) {
    DIR *d = rt->models_dir ? opendir(rt->models_dir) : NULL;
    if (!d) return;
    for (struct dirent *e; (e = readdir(d));) {
        char *end, *dir;
        long long id = strtoll(e->d_name, &end, 10);
        if (id <= 0 || *end || !(dir = realm_path_join(rt->models_dir, e->d_name))) continue;
        fn(rt, dir, id);
        realm_free(dir);
    }
    closedir(d);
}

void models_sweep(realm_runtime *rt) { each_folder(rt, sweep_tenant); }

static void remove_folder(const char *dir) {
    DIR *d = opendir(dir);
    if (!d) return;
    for (struct dirent *e; (e = readdir(d));) {
        char *path = e->d_name[0] == '.' ? NULL : realm_path_join(dir, e->d_name);
        if (path) (void)unlink(path);
        realm_free(path);
    }
    closedir(d);
    (void)rmdir(dir);
}

/* One that is loaded is seen to when its last request is gone (models_forget). Ids are never used twice, so one that
 * the store does not know will not come back. */
static void remove_deleted(realm_runtime *rt, const char *dir, int64_t tenant_id) {
    realm_tenant_row row;
    realm_mutex_lock(&rt->mu);
    const realm_tenant *t = rt->tenants;
    while (t && t->id != tenant_id) t = t->next;
    realm_mutex_unlock(&rt->mu);
    if (!t && realm_store_tenant_get(rt->store, tenant_id, &row, NULL) == REALM_E_NOT_FOUND) remove_folder(dir);
}

void models_sweep_deleted(realm_runtime *rt) { each_folder(rt, remove_deleted); }

void models_forget(realm_tenant *t) {
    models_unload_idle(t, false);
    char *dir = t->rt->models_dir ? tenant_dir(t) : NULL;
    if (dir) remove_folder(dir);
    realm_free(dir);
}
