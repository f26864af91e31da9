/* catalog/catalog.h - names for model files: which are there, where others can be had, how they get here.
 *
 *      MODELS/NAME.gguf       a model that is installed, usable as `--model NAME`
 *      MODELS/NAME.gguf.ok    its stamp: "SIZE MTIME INODE SHA256 SOURCE", as of when the hash was computed
 *      MODELS/.NAME.part      what has arrived of one that is being fetched
 *      MODELS/.NAME.pull      locked while somebody fetches it; says what the part is of
 *      MODELS/index.yaml      the operator's index: origins that may be asked, models that can be pulled
 *      CACHE/...              a second folder that is only looked into (what tools/fetch-models keeps)
 *
 *      pull: [nothing] --lock, fetch--> part --size and SHA-256 agree, the GGUF is sound--> fsync, rename --> installed
 *               ^  a wrong hash or a bad file: the part goes     |  cut, disk full, killed: the part stays, and the
 *               +------------------------------------------------+  next pull goes on from its end
 *
 * So a file under its final name is whole and checked, whatever happened. Names are letters, digits, '.', '_' and '-',
 * beginning with a letter or digit: a name is never a way to somewhere else. Links that lead out of the folder are
 * refused, as is what is no regular file. Downloads go to the origins (scheme, host and port) that the index lists and
 * nowhere else, redirects included; https, and http where the host is this machine.
 *
 * index.yaml (unknown keys are errors that name their line):
 *
 *      origins: [ "https://models.example.org" ]
 *      indexes: [ "https://models.example.org/realm/index.yaml" ]   # more, of those origins: `models` alone
 *      models:
 *        - name: tiny                      # required
 *          description: for tests
 *          url: "https://models.example.org/tiny.gguf"       # one of url, parts, file
 *          parts:                                            # joined in order
 *            - { url: "https://models.example.org/tiny.1", size: 1048576 }
 *          file: /srv/models/tiny.gguf                       # copied; relative to the index
 *          sha256: 64 hexadecimal digits   # required with url and parts
 *          size: 98362432                  # bytes; optional
 *
 * In an index that was itself fetched, URLs may be relative to its own and `file` is refused.
 *
 * The only folder that includes libcurl. Functions block; any thread, a catalog by one thread at a time. Any number of
 * processes may work on a folder.
 */
#ifndef REALM_CATALOG_CATALOG_H
#define REALM_CATALOG_CATALOG_H

#include "base/base.h"

#define REALM_CATALOG_NAME_MAX 128u          /* bytes of a name */
#define REALM_CATALOG_MODELS_MAX 1024u       /* in all indexes together */
#define REALM_CATALOG_ORIGINS_MAX 32u        /* and as many indexes */
#define REALM_CATALOG_PARTS_MAX 64u          /* of one model */
#define REALM_CATALOG_URL_MAX 2048u          /* bytes of an URL */
#define REALM_CATALOG_BYTES_MAX (1ull << 41) /* of a model */
#define REALM_CATALOG_INDEX_MAX (1u << 20)   /* bytes of an index */
#define REALM_CATALOG_REDIRECTS_MAX 5u       /* followed one after the other */
#define REALM_CATALOG_SHA256_HEX 65u         /* with NUL */

typedef struct realm_catalog realm_catalog;

typedef struct realm_catalog_config {
    const char *models_dir; /* need not be there */
    const char *cache_dir;  /* NULL: none */
    unsigned tries;         /* in a row that bring nothing before a download is given up; 0: 4 */
    unsigned wait_ms;       /* before the second try, doubled for each further one; 0: 500 */
} realm_catalog_config;

/* Opens the folder and reads its index.yaml where there is one; nothing is fetched. Errors of the index name its line.
 * *out is the caller's until realm_catalog_close. */
REALM_WARN_UNUSED realm_status realm_catalog_open(realm_catalog **out, const realm_catalog_config *config,
                                                  realm_error *err);
void realm_catalog_close(realm_catalog *c); /* NULL-safe */

/* REALM_E_INVALID unless `name` can be a model's name. */
REALM_WARN_UNUSED realm_status realm_catalog_check_name(const char *name, realm_error *err);

/* The file of a model: NAME.gguf in the models folder, else the one model there whose name begins with NAME, else the
 * same in the cache. *path is freed with realm_free. REALM_E_NOT_FOUND; REALM_E_INVALID for a name that is none, that
 * several begin with; REALM_E_DENIED for a link out of the folder. */
REALM_WARN_UNUSED realm_status realm_catalog_find(const realm_catalog *c, const char *name, char **path,
                                                  realm_error *err);

typedef enum realm_catalog_state {
    REALM_CATALOG_INSTALLED, /* in the models folder */
    REALM_CATALOG_CACHED,    /* in the cache */
    REALM_CATALOG_BROKEN,    /* a file is there that is no usable model; `problem` says why */
    REALM_CATALOG_PARTIAL,   /* a pull was begun */
    REALM_CATALOG_AVAILABLE  /* an index has it */
} realm_catalog_state;

typedef struct realm_catalog_entry { /* strings live until the callback returns */
    const char *name;
    realm_catalog_state state;
    const char *path;         /* of the file that is there; NULL: none */
    const char *architecture; /* "": not known */
    uint32_t context_length;  /* 0: not known */
    uint64_t bytes;           /* of the file, or as the index says; 0: not known */
    uint64_t have_bytes;      /* PARTIAL: so many are here */
    const char *sha256;       /* "": not known */
    const char *source;       /* URL or path it came or would come from; "": not known */
    const char *description;  /* of the index; "" */
    const char *problem;      /* BROKEN */
} realm_catalog_entry;

/* Every model in order of name: files first, then what can be pulled. Indexes that cannot be had are logged. */
REALM_WARN_UNUSED realm_status realm_catalog_each(realm_catalog *c,
                                                  void (*fn)(void *user, const realm_catalog_entry *entry), void *user,
                                                  realm_error *err);

typedef struct realm_catalog_source { /* what to pull where the index is not asked */
    const char *location;             /* a file, or an https URL; its own origin is allowed then */
    const char *sha256;               /* required for a URL */
} realm_catalog_source;

typedef struct realm_catalog_watch {
    /* As bytes come; total 0: not known yet. False ends the pull with REALM_E_CANCELLED; the part stays. */
    bool (*progress)(void *user, uint64_t done_bytes, uint64_t total_bytes);
    /* Another pull of this model is being waited for. */
    void (*waiting)(void *user);
    void *user;
} realm_catalog_watch;

typedef struct realm_catalog_pulled {
    uint64_t bytes;         /* of the model */
    uint64_t fetched_bytes; /* that came this time */
    char sha256[REALM_CATALOG_SHA256_HEX];
    bool was_there; /* nothing had to be done */
} realm_catalog_pulled;

/* Installs a model under a name: from `source`, or with NULL from where the indexes say. A model of that name that is
 * there is replaced when its SHA-256 is another. `watch` and its functions may be NULL. REALM_E_NOT_FOUND: no index has
 * it, or the server has no such file; REALM_E_DENIED: an origin that is not configured; REALM_E_FORMAT: the hash or the
 * size is another, or the file is no sound GGUF; REALM_E_IO: network or disk, the text says which; REALM_E_LIMIT. */
REALM_WARN_UNUSED realm_status realm_catalog_pull(realm_catalog *c, const char *name,
                                                  const realm_catalog_source *source, const realm_catalog_watch *watch,
                                                  realm_catalog_pulled *out, realm_error *err);

/* Deletes an installed model, its stamp and what was left of a pull; *freed_bytes (may be NULL) says how much that was.
 * REALM_E_BUSY while it is being pulled; REALM_E_DENIED for one in the cache. Servers that have the file open keep it.
 */
REALM_WARN_UNUSED realm_status realm_catalog_remove(realm_catalog *c, const char *name, uint64_t *freed_bytes,
                                                    realm_error *err);

#endif
