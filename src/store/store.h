/* store/store.h - tenants, keys and the ledger, durable.
 *
 * SQLite in WAL mode today; the functions say nothing of it, so that another database fits behind them. Several
 * processes may use one store (a server and the command line). Secrets are kept as HMAC-SHA-256 under a server secret
 * that lives beside the database; a key is shown once, when it is made. Any thread; calls may block on the disk, so
 * they do not belong on an I/O or engine thread (realm_store_key_find is the exception: one indexed read).
 */
#ifndef REALM_STORE_STORE_H
#define REALM_STORE_STORE_H

#include "base/base.h"
#include "base/buf.h"

#define REALM_TENANT_NAME_MAX 64u /* [A-Za-z0-9][A-Za-z0-9._-]* */
#define REALM_KEY_TEXT_MAX 80u    /* "rk_" and 256 random bits in hex, with NUL */

/* X(field, type, default, least, most, text): limits of a tenant, settable by name; 0 means none where least is 0. */
#define REALM_TENANT_LIMITS(X)                                                                                  \
    X(requests_per_minute, uint64_t, 0, 0, 1000000000, "requests admitted per minute; 0: no limit")             \
    X(tokens_per_minute, uint64_t, 0, 0, 1000000000000, "prompt and completion tokens per minute; 0: no limit") \
    X(tokens_per_day, uint64_t, 0, 0, 1000000000000, "prompt and completion tokens per UTC day; 0: no limit")   \
    X(generations, uint64_t, 64, 1, 65536, "generations in flight")                                             \
    X(kv_tokens, uint64_t, 0, 0, 1000000000, "tokens held in KV memory; 0: no limit")                           \
    X(memory_bytes, uint64_t, 67108864, 65536, 4294967296, "linear memory of a program instance")               \
    X(cpu_ms_per_wake, uint64_t, 1000, 1, 3600000, "CPU time of a program between two waits")                   \
    X(weight, uint64_t, 100, 1, 10000, "share of the engine relative to other tenants")

typedef struct realm_limits {
#define REALM_LIMIT_FIELD(field, type, def, least, most, text) type field;
    REALM_TENANT_LIMITS(REALM_LIMIT_FIELD)
#undef REALM_LIMIT_FIELD
} realm_limits;
void realm_limits_init(realm_limits *l);
/* Sets one by name from text; REALM_E_NOT_FOUND names the limit, REALM_E_RANGE its bounds. */
REALM_WARN_UNUSED realm_status realm_limits_set(realm_limits *l, const char *name, const char *value, realm_error *err);

#define REALM_STRINGS_MAX 64u         /* of one list */
#define REALM_STRINGS_BYTES_MAX 4096u /* of one list, with the NULs */

/* A program's arguments, or its environment (NAME=VALUE): valid UTF-8, each with a NUL, one after the other. */
typedef struct realm_strings {
    uint32_t n, len;
    char text[REALM_STRINGS_BYTES_MAX];
} realm_strings;
/* REALM_E_LIMIT, REALM_E_FORMAT (not UTF-8, or a NUL inside). */
REALM_WARN_UNUSED realm_status realm_strings_add(realm_strings *l, const char *text, size_t len, realm_error *err);
/* Adds NAME=VALUE, in place of what the name was before; REALM_E_INVALID when it is not of that form. */
REALM_WARN_UNUSED realm_status realm_strings_set_env(realm_strings *l, const char *text, size_t len, realm_error *err);
/* Removes a name of the environment; false when it is not there. */
bool realm_strings_unset_env(realm_strings *l, const char *name, size_t len);

typedef struct realm_store realm_store;

/* `dir` is made if absent (mode 0700). NULL: a private store in memory. */
REALM_WARN_UNUSED realm_status realm_store_open(realm_store **out, const char *dir, realm_error *err);
void realm_store_close(realm_store *s); /* NULL-safe */
/* Changes whenever another connection or this one changed tenants or keys: poll it to drop caches. */
REALM_WARN_UNUSED realm_status realm_store_version(realm_store *s, uint64_t *version, realm_error *err);

/* ---- tenants ---- */
typedef struct realm_tenant_row {
    int64_t id; /* never reused */
    char name[REALM_TENANT_NAME_MAX + 1];
    realm_limits limits;
    char program_sha256[65]; /* "" : the default program */
    realm_strings args, env; /* what a WASI program gets */
    int64_t created_s;
} realm_tenant_row;

/* REALM_E_INVALID: the name; REALM_E_EXISTS. `program` (may be NULL) is stored by content. */
REALM_WARN_UNUSED realm_status realm_store_tenant_create(realm_store *s, const char *name, const realm_limits *limits,
                                                         const void *program, size_t program_len, realm_tenant_row *out,
                                                         realm_error *err);
REALM_WARN_UNUSED realm_status realm_store_tenant_find(realm_store *s, const char *name, realm_tenant_row *out,
                                                       realm_error *err);
REALM_WARN_UNUSED realm_status realm_store_tenant_get(realm_store *s, int64_t id, realm_tenant_row *out,
                                                      realm_error *err);
/* `limits` NULL keeps them; `program` NULL keeps it, with len 0 and a non-NULL pointer sets the default program. */
REALM_WARN_UNUSED realm_status realm_store_tenant_set(realm_store *s, const char *name, const realm_limits *limits,
                                                      const void *program, size_t program_len, realm_error *err);
/* Sets the arguments or the environment of its program; NULL keeps them. */
REALM_WARN_UNUSED realm_status realm_store_tenant_set_strings(realm_store *s, const char *name,
                                                              const realm_strings *args, const realm_strings *env,
                                                              realm_error *err);
/* Removes the tenant and its keys; its ledger stays. */
REALM_WARN_UNUSED realm_status realm_store_tenant_delete(realm_store *s, const char *name, realm_error *err);
/* Calls fn for each in order of name; fn returning false stops. */
REALM_WARN_UNUSED realm_status realm_store_tenant_each(realm_store *s,
                                                       bool (*fn)(void *user, const realm_tenant_row *row), void *user,
                                                       realm_error *err);
/* The module's bytes, freed with realm_free. */
REALM_WARN_UNUSED realm_status realm_store_program_get(realm_store *s, const char *sha256, void **wasm, size_t *len,
                                                       realm_error *err);

/* ---- keys ---- */
typedef struct realm_key_row {
    char id[17];       /* public part, hex */
    int64_t tenant_id; /* 0 for an admin key */
    char tenant[REALM_TENANT_NAME_MAX + 1];
    bool admin, revoked;
    int64_t created_s, expires_s; /* 0: never */
} realm_key_row;

/* Makes a key; `key` receives its text, the only time it is seen. */
REALM_WARN_UNUSED realm_status realm_store_key_create(realm_store *s, const char *tenant, bool admin, int64_t expires_s,
                                                      char key[REALM_KEY_TEXT_MAX], realm_key_row *out,
                                                      realm_error *err);
/* Registers a key whose text the operator chose (configuration's key_file); at least 16 bytes. The same text again for
 * the same tenant is fine. */
REALM_WARN_UNUSED realm_status realm_store_key_import(realm_store *s, const char *tenant, const char *key,
                                                      realm_error *err);
/* The row of a key text that is valid now; REALM_E_UNAUTHENTICATED otherwise, in time that does not depend on how much
 * of it matched. */
REALM_WARN_UNUSED realm_status realm_store_key_find(realm_store *s, const char *key, size_t len, realm_key_row *out,
                                                    realm_error *err);
REALM_WARN_UNUSED realm_status realm_store_key_revoke(realm_store *s, const char *id_or_key, realm_error *err);
REALM_WARN_UNUSED realm_status realm_store_key_each(realm_store *s, bool (*fn)(void *user, const realm_key_row *row),
                                                    void *user, realm_error *err);

/* ---- ledger ---- */
typedef struct realm_usage { /* also a delta */
    uint64_t requests, aborted_requests;
    uint64_t prompt_tokens, cached_tokens, completion_tokens;
} realm_usage;
typedef struct realm_usage_entry {
    int64_t tenant_id;
    realm_usage delta;
} realm_usage_entry;

/* One transaction: adds each delta to its tenant's row of the current minute, and the engine's own deltas to its
 * counters. All or nothing. */
REALM_WARN_UNUSED realm_status realm_store_usage_add(realm_store *s, const realm_usage_entry *entries, size_t n,
                                                     const realm_usage *engine, realm_error *err);
/* Sums per tenant since `since_s` (0: all), of one tenant or all (NULL), in order of name. */
REALM_WARN_UNUSED realm_status realm_store_usage_each(realm_store *s, const char *tenant, int64_t since_s,
                                                      bool (*fn)(void *user, const char *name, const realm_usage *u),
                                                      void *user, realm_error *err);
REALM_WARN_UNUSED realm_status realm_store_usage_engine(realm_store *s, realm_usage *out, realm_error *err);
/* Tokens (prompt and completion) of a tenant since a time: for daily limits after a restart. */
REALM_WARN_UNUSED realm_status realm_store_usage_tokens(realm_store *s, int64_t tenant_id, int64_t since_s,
                                                        uint64_t *tokens, realm_error *err);

#endif
