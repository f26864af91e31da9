/* store/store.h - tenants, keys and the ledger, durable.
 *
 * SQLite in WAL mode today; the functions say nothing of it, so that another database fits behind them. Several
 * processes may use one store (a server and the command line). Secrets are kept as HMAC-SHA-256 under a server secret
 * that lives beside the database; a key is shown once, when it is made. Any thread; calls may block on the disk, so
 * they do not belong on an I/O or engine thread (realm_store_key_find and realm_store_tenant_get are the exception: a
 * few indexed reads, on a connection that nothing longer uses).
 */
#ifndef REALM_STORE_STORE_H
#define REALM_STORE_STORE_H

#include "base/base.h"
#include "base/buf.h"

#define REALM_TENANT_NAME_MAX 64u /* [A-Za-z0-9][A-Za-z0-9._-]* */
#define REALM_KEY_TEXT_MAX 80u    /* "rk_" and 256 random bits in hex, with NUL */

/* X(field, type, default, least, most, text): limits of a tenant, settable by name. */
#define REALM_TENANT_LIMITS(X)                                                                                         \
    X(requests_per_minute, uint64_t, 0, 0, 1000000000, "requests admitted per minute; 0: no limit")                    \
    X(tokens_per_minute, uint64_t, 0, 0, 1000000000000, "prompt and completion tokens per minute; 0: no limit")        \
    X(tokens_per_day, uint64_t, 0, 0, 1000000000000, "prompt and completion tokens per UTC day; 0: no limit")          \
    X(tokens_per_second, uint64_t, 0, 0, 1000000000,                                                                   \
      "the same per second, by waiting instead of refusing; 0: no limit")                                              \
    X(generations, uint64_t, 64, 1, 65536, "generations in flight")                                                    \
    X(kv_tokens, uint64_t, 0, 0, 1000000000, "tokens held in KV memory; 0: no limit")                                  \
    X(contexts, uint64_t, 16, 0, 65536, "contexts saved by name")                                                      \
    X(memory_bytes, uint64_t, 67108864, 65536, 4294967296, "linear memory of a program instance")                      \
    X(cpu_ms_per_wake, uint64_t, 1000, 1, 3600000, "CPU time of a program between two waits")                          \
    X(wall_ms, uint64_t, 3600000, 0, 604800000, "life of a program instance; 0: no limit")                             \
    X(handles, uint64_t, 1024, 1, 4096, "handles open at once in an instance")                                         \
    X(output_bytes, uint64_t, 67108864, 0, 1099511627776, "text that an instance may give to the client")              \
    X(log_bytes, uint64_t, 1048576, 0, 1099511627776, "text that an instance may log")                                 \
    X(read_bytes, uint64_t, 67108864, 0, 1099511627776, "logits, hidden states and tensors that an instance may read") \
    X(tensor_bytes, uint64_t, 268435456, 0, 1099511627776,                                                             \
      "tensors and grammars of a tenant at once; kept logits of an instance")                                          \
    X(storage_bytes, uint64_t, 268435456, 0, 1099511627776, "keys, values and model files in the tenant's store")      \
    X(read_weights, uint64_t, 0, 0, 1, "whether programs may read the weights of the server's models (1) or not (0)")  \
    X(weight, uint64_t, 100, 1, 10000,                                                                                 \
      "share of the engine, and of the room for suspended KV pages, relative to other tenants")

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

/* `dir` is made if absent (mode 0700). NULL: a private store in memory. Takes in counts that a process left when it
 * ended while the store was busy; REALM_E_BUSY when it still is, for seconds. A store that needs nothing done is opened
 * whoever writes to it. */
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
/* Removes the tenant, its keys and its data; its ledger stays. */
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
/* A secret of one's own for a purpose and a name: HMAC-SHA-256 under the server secret, so that it is the same after a
 * restart and says nothing of it. */
REALM_WARN_UNUSED realm_status realm_store_derive(realm_store *store, const char *purpose, const char *name,
                                                  uint8_t out[32], realm_error *err);

/* The row of a key text that is valid now; REALM_E_UNAUTHENTICATED otherwise, in time that does not depend on how much
 * of it matched. */
REALM_WARN_UNUSED realm_status realm_store_key_find(realm_store *s, const char *key, size_t len, realm_key_row *out,
                                                    realm_error *err);
REALM_WARN_UNUSED realm_status realm_store_key_revoke(realm_store *s, const char *id_or_key, realm_error *err);
REALM_WARN_UNUSED realm_status realm_store_key_each(realm_store *s, bool (*fn)(void *user, const realm_key_row *row),
                                                    void *user, realm_error *err);

/* ---- what tenants put in: values and the list of their models ---- */
/* Both count against one quota, which the caller gives with each write: keys and values by their bytes, a model file
 * once however many ids it has. Writes are on disk when they return. */
#define REALM_VALUE_KEY_MAX 256u
#define REALM_VALUE_BYTES_MAX (1u << 20)

/* REALM_E_NOT_FOUND. *value is freed with realm_free. */
REALM_WARN_UNUSED realm_status realm_store_value_get(realm_store *s, int64_t tenant_id, const char *key, size_t key_len,
                                                     void **value, size_t *len, realm_error *err);
/* REALM_E_INVALID: a key of no bytes, too many, or with a NUL; REALM_E_LIMIT: too long a value, or the quota. */
REALM_WARN_UNUSED realm_status realm_store_value_put(realm_store *s, int64_t tenant_id, uint64_t quota_bytes,
                                                     const char *key, size_t key_len, const void *value, size_t len,
                                                     realm_error *err);
REALM_WARN_UNUSED realm_status realm_store_value_delete(realm_store *s, int64_t tenant_id, const char *key,
                                                        size_t key_len, realm_error *err);
/* Keys that start with `prefix` and come behind `after` (NULL: all), in the order of their bytes, each with a NUL
 * behind it, as many as `out` can hold. REALM_E_RANGE when there is one but `out` has no room for it. */
REALM_WARN_UNUSED realm_status realm_store_value_list(realm_store *s, int64_t tenant_id, const char *prefix,
                                                      size_t prefix_len, const char *after, size_t after_len,
                                                      realm_buf *out, realm_error *err);
/* Bytes that count against the quota now. */
REALM_WARN_UNUSED realm_status realm_store_data_bytes(realm_store *s, int64_t tenant_id, uint64_t *bytes,
                                                      realm_error *err);

typedef struct realm_model_row {
    uint32_t id;
    char sha256[65];
    uint64_t bytes;
} realm_model_row;
#define REALM_MODEL_IDS_MAX 256u /* of a tenant */
/* Lists a file under an id. REALM_E_EXISTS: the id names another file (the same one is fine); REALM_E_LIMIT. */
REALM_WARN_UNUSED realm_status realm_store_model_add(realm_store *s, int64_t tenant_id, uint64_t quota_bytes,
                                                     const realm_model_row *row, realm_error *err);
REALM_WARN_UNUSED realm_status realm_store_model_find(realm_store *s, int64_t tenant_id, uint32_t id,
                                                      realm_model_row *out, realm_error *err);
/* *last: no other id of this tenant names the file, which may go. */
REALM_WARN_UNUSED realm_status realm_store_model_remove(realm_store *s, int64_t tenant_id, uint32_t id,
                                                        realm_model_row *out, bool *last, realm_error *err);
/* Whether any id of the tenant names the file. */
REALM_WARN_UNUSED realm_status realm_store_model_used(realm_store *s, int64_t tenant_id, const char *sha256, bool *used,
                                                      realm_error *err);

/* ---- ledger ---- */
/* X(field): what is counted of a tenant, under the name that it has wherever it is shown.
 *   program_cpu_ns   CPU time of its programs and of their host calls, whatever they ended with
 *   tensor_ns        time for which tensor calls of its programs held the device
 * New ones come last: files of the store have these in order (late.c). */
#define REALM_USAGE_FIELDS(X) \
    X(requests)               \
    X(prompt_tokens)          \
    X(cached_tokens)          \
    X(completion_tokens)      \
    X(aborted_requests)       \
    X(program_cpu_ns)         \
    X(tensor_ns)

typedef struct realm_usage { /* also a delta */
#define REALM_USAGE_FIELD(field) uint64_t field;
    REALM_USAGE_FIELDS(REALM_USAGE_FIELD)
#undef REALM_USAGE_FIELD
} realm_usage;
void realm_usage_add(realm_usage *sum, const realm_usage *delta);
typedef struct realm_usage_entry {
    int64_t tenant_id;
    realm_usage delta;
} realm_usage_entry;

/* One transaction: adds each delta to its tenant's row of the current minute, and what was counted in all, by the
 * engines, the sandbox and the tensor service, to the engine's counters (which have no requests; NULL: nothing). All or
 * nothing. It does not wait for other processes that write: while one holds the store, the deltas are kept in a file
 * beside it, in which they outlive this process, and go in with the next call that finds it free, or when the store is
 * next opened; until then nobody sees them. REALM_OK says they are in either. */
REALM_WARN_UNUSED realm_status realm_store_usage_add(realm_store *s, const realm_usage_entry *entries, size_t n,
                                                     const realm_usage *engine, realm_error *err);
/* Whether some are in that file: with no entries the call above tries to take them in. */
bool realm_store_usage_waits(realm_store *s);
/* Sums per tenant since `since_s` (0: all), of one tenant or all (NULL), in order of name, all as they were at one
 * moment; until fn says false. It is called while the store is being read and may not use it. */
REALM_WARN_UNUSED realm_status realm_store_usage_each(realm_store *s, const char *tenant, int64_t since_s,
                                                      bool (*fn)(void *user, const char *name, const realm_usage *u),
                                                      void *user, realm_error *err);
REALM_WARN_UNUSED realm_status realm_store_usage_engine(realm_store *s, realm_usage *out, realm_error *err);
/* Tokens (prompt and completion) of a tenant since a time: for daily limits after a restart. */
REALM_WARN_UNUSED realm_status realm_store_usage_tokens(realm_store *s, int64_t tenant_id, int64_t since_s,
                                                        uint64_t *tokens, realm_error *err);

#endif
