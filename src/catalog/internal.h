/* catalog/internal.h - the parts: index.c knows what can be had, fetch.c gets bytes of a URL, pull.c makes a model of
 * them, catalog.c is the folder. */
#ifndef REALM_CATALOG_INTERNAL_H
#define REALM_CATALOG_INTERNAL_H

#include "catalog/catalog.h"

/* ---- fetch.c: URLs and origins ---- */

typedef struct catalog_origins { /* "https://host:443" each, owned */
    char *items[REALM_CATALOG_ORIGINS_MAX + 1];
    size_t n;
} catalog_origins;
void catalog_origins_release(catalog_origins *o);
/* Adds the origin of a URL, which may be all there is of it. REALM_E_INVALID, REALM_E_LIMIT. */
REALM_WARN_UNUSED realm_status catalog_origins_add(catalog_origins *o, const char *url, realm_error *err);
/* Checks a URL, resolved against `base` (NULL: it must be whole), and that its origin is listed. *out is normal form,
 * freed with realm_free. REALM_E_INVALID, REALM_E_DENIED. */
REALM_WARN_UNUSED realm_status catalog_url(const catalog_origins *o, const char *base, const char *url, char **out,
                                           realm_error *err);

typedef struct catalog_sink {
    /* The body starts at this byte of the whole; `total` is the length of the whole, 0 when the server does not say.
     * An earlier start than asked for means that the server cannot resume. */
    realm_status (*begin)(void *user, uint64_t at, uint64_t total, realm_error *err);
    realm_status (*take)(void *user, const void *data, size_t len, realm_error *err);
    void *user;
} catalog_sink;

/* GETs a URL from byte `from` on. *again (may be NULL): the same might work later. What the sink refuses is returned.
 * A body that ends early is an error after its bytes were handed over. */
REALM_WARN_UNUSED realm_status catalog_fetch(const catalog_origins *o, const char *url, uint64_t from,
                                             const catalog_sink *sink, bool *again, realm_error *err);

/* ---- index.c ---- */

typedef struct catalog_part {
    char *url;
    uint64_t bytes; /* 0: not known, which only a single part may be */
} catalog_part;

typedef struct catalog_model {
    char *name, *description; /* description NULL: none */
    char *file;               /* NULL: from parts */
    catalog_part *parts;
    size_t n_parts;
    char sha256[REALM_CATALOG_SHA256_HEX]; /* "": not checked (file alone) */
    uint64_t bytes;                        /* 0: not known */
} catalog_model;
void catalog_model_release(catalog_model *m);

typedef struct catalog_index {
    catalog_origins origins;
    char *urls[REALM_CATALOG_ORIGINS_MAX];
    size_t n_urls, n_fetched;
    catalog_model *models; /* REALM_CATALOG_MODELS_MAX of them */
    size_t n_models;
} catalog_index;
void catalog_index_release(catalog_index *x);
/* Adds what an index says. `base` is its path, or its URL when it was fetched. On failure nothing was added. */
REALM_WARN_UNUSED realm_status catalog_index_add(catalog_index *x, const char *text, size_t len, const char *base,
                                                 bool fetched, realm_error *err);
/* Fetches the indexes that were not yet; a model that is known already stays as it is. Goes on after a failure and
 * returns the first. */
REALM_WARN_UNUSED realm_status catalog_index_fetch(catalog_index *x, realm_error *err);
const catalog_model *catalog_index_find(const catalog_index *x, const char *name);
/* True for 64 hexadecimal digits, copied in lower case. */
bool catalog_sha256(const char *text, char out[REALM_CATALOG_SHA256_HEX]);

/* ---- catalog.c: the folder ---- */

struct realm_catalog {
    char *models_dir, *cache_dir;
    unsigned tries, wait_ms;
    catalog_index index;
};

typedef struct catalog_stamp {
    char sha256[REALM_CATALOG_SHA256_HEX]; /* "": no stamp, or the file has changed since */
    char source[REALM_CATALOG_URL_MAX + 1];
} catalog_stamp;
/* What is known of DIR/NAME.gguf. */
void catalog_stamp_read(const char *path, catalog_stamp *out);
REALM_WARN_UNUSED realm_status catalog_stamp_write(const char *path, const char *sha256, const char *source,
                                                   realm_error *err);
/* DIR/<before><name><after>, freed with realm_free; NULL when memory is out. */
char *catalog_path(const char *dir, const char *before, const char *name, const char *after);
/* Opens `path` for writing and takes its lock: at once, or with `wait` when it is free (after calling waiting).
 * REALM_E_BUSY. The lock ends with the descriptor; unlink the file before closing it. */
REALM_WARN_UNUSED realm_status catalog_lock(const char *path, bool wait, const realm_catalog_watch *watch, int *fd,
                                            realm_error *err);
/* Opens the file as a model and checks its metadata; `e` (may be NULL) gets what is known, with its strings in `arch`.
 */
REALM_WARN_UNUSED realm_status catalog_inspect(const char *path, realm_catalog_entry *e, char arch[65],
                                               realm_error *err);
realm_status catalog_errno(realm_error *err, const char *path, int e);

#endif
