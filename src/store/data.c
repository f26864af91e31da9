/* store/data.c - what tenants themselves put in: named values, and which model files they have under which ids.
 *
 * Every write changes the tenant's sum of bytes in the same transaction, so the quota holds whatever runs side by side,
 * in this process or another, and after a crash. The model files themselves are the caller's.
 */
#include <string.h>

#include "base/alloc.h"
#include "base/file.h"
#include "store/db.h"

static const char schema[] =
    "CREATE TABLE IF NOT EXISTS value("
    " tenant_id INTEGER NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, UNIQUE(tenant_id, key));"
    "CREATE TABLE IF NOT EXISTS model("
    " tenant_id INTEGER NOT NULL, id INTEGER NOT NULL, sha256 TEXT NOT NULL, bytes INTEGER NOT NULL,"
    " PRIMARY KEY(tenant_id, id)) WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS storage(tenant_id INTEGER PRIMARY KEY, bytes INTEGER NOT NULL);";

/* ---- opening ----------------------------------------------------------------------------------------------------- */

static realm_status is_gone(realm_store *store, int64_t tenant_id, bool *gone, realm_error *err) {
    sqlite3_stmt *st;
    bool row;
    db *d = store->reader;
    realm_status s = db_begin(d, "SELECT 1 FROM tenant WHERE id = ?1 AND deleted_s = 0", &st, err);
    if (s != REALM_OK) return s;
    sqlite3_bind_int64(st, 1, tenant_id);
    s = db_step(d, st, &row, err);
    db_end(d, st);
    *gone = s == REALM_OK && !row;
    return s;
}

/* Tenants whose deletion did not get as far as their data. */
static realm_status forget_the_gone(realm_store *store, realm_error *err) {
    db *d = &store->data_write;
    for (int64_t after = INT64_MIN;;) {
        sqlite3_stmt *st;
        bool row, gone = false;
        realm_status s = db_begin(d, "SELECT min(tenant_id) FROM storage WHERE tenant_id > ?1", &st, err);
        if (s != REALM_OK) return s;
        sqlite3_bind_int64(st, 1, after);
        s = db_step(d, st, &row, err);
        bool end = s != REALM_OK || !row || sqlite3_column_type(st, 0) == SQLITE_NULL;
        if (!end) after = sqlite3_column_int64(st, 0);
        db_end(d, st);
        if (end) return s;
        s = is_gone(store, after, &gone, err);
        if (s == REALM_OK && gone) s = data_forget(store, after, err);
        if (s != REALM_OK) return s;
    }
}

realm_status data_open(realm_store *store, const char *dir, realm_error *err) {
    db *d = &store->data_write;
    char *path = dir ? realm_path_join(dir, "data.db") : realm_strdup(DB_IN_MEMORY);
    if (!path) return realm_error_set(err, REALM_E_NOMEM, "store: out of memory");
    realm_status s = db_open(d, path, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, err);
    /* FULL: what a program was told is stored outlives a loss of power too. */
    if (s == REALM_OK) s = db_exec(d, "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL", err);
    if (s == REALM_OK) s = db_exec(d, schema, err); /* what is there is only looked at */
    store->data_reader = d;
    if (s == REALM_OK && dir && (s = db_open(&store->data_read, path, SQLITE_OPEN_READWRITE, err)) == REALM_OK)
        store->data_reader = &store->data_read;
    realm_free(path);
    return s == REALM_OK ? forget_the_gone(store, err) : s;
}

void data_close(realm_store *store) {
    db_close(&store->data_read);
    db_close(&store->data_write);
}

/* ---- the sum of bytes -------------------------------------------------------------------------------------------- */

/* The caller holds the lock of `d`. */
static realm_status bytes_locked(db *d, int64_t tenant_id, uint64_t *bytes, realm_error *err) {
    sqlite3_stmt *st;
    bool row;
    realm_status s = db_prepare(d, "SELECT bytes FROM storage WHERE tenant_id = ?1", &st, err);
    if (s != REALM_OK) return s;
    sqlite3_bind_int64(st, 1, tenant_id);
    s = db_step(d, st, &row, err);
    *bytes = s == REALM_OK && row ? (uint64_t)sqlite3_column_int64(st, 0) : 0;
    sqlite3_reset(st);
    sqlite3_clear_bindings(st);
    return s;
}

/* Inside a transaction: takes `minus` off and adds `plus`. Shrinking is always allowed. */
static realm_status account(db *d, int64_t tenant_id, uint64_t plus, uint64_t minus, uint64_t quota, realm_error *err) {
    sqlite3_stmt *st;
    uint64_t now;
    realm_status s = bytes_locked(d, tenant_id, &now, err);
    if (s != REALM_OK) return s;
    uint64_t then = now - REALM_MIN(now, minus) + plus;
    if (plus > minus && then > quota)
        return realm_error_set(err, REALM_E_LIMIT, "storage_bytes: %llu bytes are stored, %llu more do not fit in %llu",
                               (unsigned long long)now, (unsigned long long)(plus - minus), (unsigned long long)quota);
    if ((s = db_prepare(d, "INSERT OR REPLACE INTO storage VALUES(?1, ?2)", &st, err)) != REALM_OK) return s;
    sqlite3_bind_int64(st, 1, tenant_id);
    sqlite3_bind_int64(st, 2, (int64_t)then);
    return db_run(d, st, err);
}

realm_status realm_store_data_bytes(realm_store *store, int64_t tenant_id, uint64_t *bytes, realm_error *err) {
    db *d = store->data_reader;
    realm_mutex_lock(&d->mu);
    realm_status s = bytes_locked(d, tenant_id, bytes, err);
    realm_mutex_unlock(&d->mu);
    return s;
}

realm_status data_forget(realm_store *store, int64_t tenant_id, realm_error *err) {
    static const char *const steps[] = {"DELETE FROM value WHERE tenant_id = ?1",
                                        "DELETE FROM model WHERE tenant_id = ?1",
                                        "DELETE FROM storage WHERE tenant_id = ?1"};
    db *d = &store->data_write;
    realm_status s = db_transaction(d, err);
    if (s != REALM_OK) return s;
    for (size_t i = 0; i < REALM_ARRAY_LEN(steps) && s == REALM_OK; i++) {
        sqlite3_stmt *st;
        if ((s = db_prepare(d, steps[i], &st, err)) != REALM_OK) break;
        sqlite3_bind_int64(st, 1, tenant_id);
        s = db_run(d, st, err);
    }
    return db_finish(d, s, err);
}

/* ---- values ------------------------------------------------------------------------------------------------------ */

static realm_status check_key(const char *key, size_t len, realm_error *err) {
    if (len == 0 || len > REALM_VALUE_KEY_MAX)
        return realm_error_set(err, REALM_E_INVALID, "a key has 1 to %u bytes", REALM_VALUE_KEY_MAX);
    if (memchr(key, 0, len)) return realm_error_set(err, REALM_E_INVALID, "a key holds no NUL");
    return REALM_OK;
}

static void bind_key(sqlite3_stmt *st, int64_t tenant_id, const char *key, size_t len) {
    sqlite3_bind_int64(st, 1, tenant_id);
    sqlite3_bind_blob64(st, 2, key, len, SQLITE_STATIC);
}

realm_status realm_store_value_get(realm_store *store, int64_t tenant_id, const char *key, size_t key_len, void **value,
                                   size_t *len, realm_error *err) {
    db *d = store->data_reader;
    sqlite3_stmt *st;
    bool row;
    realm_status s = check_key(key, key_len, err);
    if (s == REALM_OK) s = db_begin(d, "SELECT value FROM value WHERE tenant_id = ?1 AND key = ?2", &st, err);
    if (s != REALM_OK) return s;
    bind_key(st, tenant_id, key, key_len);
    s = db_step(d, st, &row, err);
    if (s == REALM_OK && !row) s = realm_error_set(err, REALM_E_NOT_FOUND, "there is no such key");
    if (s == REALM_OK) {
        size_t n = (size_t)sqlite3_column_bytes(st, 0);
        char *p = realm_malloc(n);
        if (p && n) memcpy(p, sqlite3_column_blob(st, 0), n);
        if (!p) s = realm_error_set(err, REALM_E_NOMEM, "store: out of memory");
        *value = p;
        *len = n;
    }
    db_end(d, st);
    return s;
}

/* Bytes of a key's row, 0 when there is none; inside a transaction. */
static realm_status row_bytes(db *d, int64_t tenant_id, const char *key, size_t key_len, uint64_t *bytes,
                              realm_error *err) {
    sqlite3_stmt *st;
    bool row;
    *bytes = 0;
    realm_status s = db_prepare(d, "SELECT length(value) FROM value WHERE tenant_id = ?1 AND key = ?2", &st, err);
    if (s != REALM_OK) return s;
    bind_key(st, tenant_id, key, key_len);
    s = db_step(d, st, &row, err);
    if (s == REALM_OK && row) *bytes = key_len + (uint64_t)sqlite3_column_int64(st, 0);
    sqlite3_reset(st);
    sqlite3_clear_bindings(st);
    return s;
}

realm_status realm_store_value_put(realm_store *store, int64_t tenant_id, uint64_t quota_bytes, const char *key,
                                   size_t key_len, const void *value, size_t len, realm_error *err) {
    db *d = &store->data_write;
    sqlite3_stmt *st;
    uint64_t old;
    realm_status s = check_key(key, key_len, err);
    if (s != REALM_OK) return s;
    if (len > REALM_VALUE_BYTES_MAX)
        return realm_error_set(err, REALM_E_LIMIT, "a value has at most %u bytes", REALM_VALUE_BYTES_MAX);
    if ((s = db_transaction(d, err)) != REALM_OK) return s;
    s = row_bytes(d, tenant_id, key, key_len, &old, err);
    if (s == REALM_OK) s = account(d, tenant_id, key_len + len, old, quota_bytes, err);
    if (s == REALM_OK)
        s = db_prepare(d, "INSERT INTO value VALUES(?1, ?2, ?3) ON CONFLICT DO UPDATE SET value = ?3", &st, err);
    if (s == REALM_OK) {
        bind_key(st, tenant_id, key, key_len);
        sqlite3_bind_blob64(st, 3, len ? value : "", len, SQLITE_STATIC);
        s = db_run(d, st, err);
    }
    return db_finish(d, s, err);
}

realm_status realm_store_value_delete(realm_store *store, int64_t tenant_id, const char *key, size_t key_len,
                                      realm_error *err) {
    db *d = &store->data_write;
    sqlite3_stmt *st;
    uint64_t old;
    realm_status s = check_key(key, key_len, err);
    if (s != REALM_OK) return s;
    if ((s = db_transaction(d, err)) != REALM_OK) return s;
    s = row_bytes(d, tenant_id, key, key_len, &old, err);
    if (s == REALM_OK && old == 0) s = realm_error_set(err, REALM_E_NOT_FOUND, "there is no such key");
    if (s == REALM_OK) s = account(d, tenant_id, 0, old, 0, err);
    if (s == REALM_OK) s = db_prepare(d, "DELETE FROM value WHERE tenant_id = ?1 AND key = ?2", &st, err);
    if (s == REALM_OK) {
        bind_key(st, tenant_id, key, key_len);
        s = db_run(d, st, err);
    }
    return db_finish(d, s, err);
}

realm_status realm_store_value_list(realm_store *store, int64_t tenant_id, const char *prefix, size_t prefix_len,
                                    const char *after, size_t after_len, realm_buf *out, realm_error *err) {
    db *d = store->data_reader;
    sqlite3_stmt *st;
    bool row;
    if (prefix_len > REALM_VALUE_KEY_MAX || after_len > REALM_VALUE_KEY_MAX)
        return realm_error_set(err, REALM_E_INVALID, "a key has 1 to %u bytes", REALM_VALUE_KEY_MAX);
    realm_status s = db_begin(
        d, "SELECT key FROM value WHERE tenant_id = ?1 AND key >= ?2 AND key > ?3 ORDER BY tenant_id, key", &st, err);
    if (s != REALM_OK) return s;
    bind_key(st, tenant_id, prefix_len ? prefix : "", prefix_len);
    sqlite3_bind_blob64(st, 3, after_len ? after : "", after_len, SQLITE_STATIC); /* no key is empty */
    while ((s = db_step(d, st, &row, err)) == REALM_OK && row) {
        size_t n = (size_t)sqlite3_column_bytes(st, 0);
        const char *key = sqlite3_column_blob(st, 0);
        if (n < prefix_len || (prefix_len && memcmp(key, prefix, prefix_len) != 0)) break; /* behind all that have it */
        if (n + 1 > out->max - out->len) {
            if (out->len == 0)
                s = realm_error_set(err, REALM_E_RANGE, "the next key needs %zu bytes, there is room for %zu", n + 1,
                                    out->max);
            break;
        }
        if (realm_buf_append(out, key, n) != REALM_OK || realm_buf_putc(out, 0) != REALM_OK) {
            s = realm_error_set(err, REALM_E_NOMEM, "store: out of memory");
            break;
        }
    }
    db_end(d, st);
    return s;
}

/* ---- models ------------------------------------------------------------------------------------------------------ */

static realm_status find_locked(db *d, int64_t tenant_id, uint32_t id, realm_model_row *out, bool *found,
                                realm_error *err) {
    sqlite3_stmt *st;
    realm_status s = db_prepare(d, "SELECT sha256, bytes FROM model WHERE tenant_id = ?1 AND id = ?2", &st, err);
    if (s != REALM_OK) return s;
    sqlite3_bind_int64(st, 1, tenant_id);
    sqlite3_bind_int64(st, 2, id);
    s = db_step(d, st, found, err);
    if (s == REALM_OK && *found) {
        *out = (realm_model_row){.id = id, .bytes = (uint64_t)sqlite3_column_int64(st, 1)};
        db_copy_text(st, 0, out->sha256, sizeof out->sha256);
    }
    sqlite3_reset(st);
    sqlite3_clear_bindings(st);
    return s;
}

static realm_status used_locked(db *d, int64_t tenant_id, const char *sha256, bool *used, realm_error *err) {
    sqlite3_stmt *st;
    realm_status s = db_prepare(d, "SELECT 1 FROM model WHERE tenant_id = ?1 AND sha256 = ?2", &st, err);
    if (s != REALM_OK) return s;
    sqlite3_bind_int64(st, 1, tenant_id);
    db_bind_text(st, 2, sha256);
    s = db_step(d, st, used, err);
    sqlite3_reset(st);
    sqlite3_clear_bindings(st);
    return s;
}

static realm_status check_count(db *d, int64_t tenant_id, realm_error *err) {
    sqlite3_stmt *st;
    bool row;
    realm_status s = db_prepare(d, "SELECT count(*) FROM model WHERE tenant_id = ?1", &st, err);
    if (s != REALM_OK) return s;
    sqlite3_bind_int64(st, 1, tenant_id);
    s = db_step(d, st, &row, err);
    bool full = s == REALM_OK && row && sqlite3_column_int64(st, 0) >= (int64_t)REALM_MODEL_IDS_MAX;
    sqlite3_reset(st);
    sqlite3_clear_bindings(st);
    return full ? realm_error_set(err, REALM_E_LIMIT, "at most %u model ids are kept", REALM_MODEL_IDS_MAX) : s;
}

static realm_status no_model(uint32_t id, realm_error *err) {
    return realm_error_set(err, REALM_E_NOT_FOUND, "there is no model %u", id);
}

realm_status realm_store_model_add(realm_store *store, int64_t tenant_id, uint64_t quota_bytes,
                                   const realm_model_row *row, realm_error *err) {
    db *d = &store->data_write;
    sqlite3_stmt *st;
    realm_model_row old;
    bool found, used;
    realm_status s = db_transaction(d, err);
    if (s != REALM_OK) return s;
    s = find_locked(d, tenant_id, row->id, &old, &found, err);
    if (s == REALM_OK && found) {
        if (strcmp(old.sha256, row->sha256) != 0)
            s = realm_error_set(err, REALM_E_EXISTS, "model %u is another file", row->id);
        return db_finish(d, s, err);
    }
    if (s == REALM_OK) s = check_count(d, tenant_id, err);
    if (s == REALM_OK) s = used_locked(d, tenant_id, row->sha256, &used, err);
    if (s == REALM_OK) s = account(d, tenant_id, used ? 0 : row->bytes, 0, quota_bytes, err);
    if (s == REALM_OK) s = db_prepare(d, "INSERT INTO model VALUES(?1, ?2, ?3, ?4)", &st, err);
    if (s == REALM_OK) {
        sqlite3_bind_int64(st, 1, tenant_id);
        sqlite3_bind_int64(st, 2, row->id);
        db_bind_text(st, 3, row->sha256);
        sqlite3_bind_int64(st, 4, (int64_t)row->bytes);
        s = db_run(d, st, err);
    }
    return db_finish(d, s, err);
}

realm_status realm_store_model_find(realm_store *store, int64_t tenant_id, uint32_t id, realm_model_row *out,
                                    realm_error *err) {
    db *d = store->data_reader;
    bool found;
    realm_mutex_lock(&d->mu);
    realm_status s = find_locked(d, tenant_id, id, out, &found, err);
    realm_mutex_unlock(&d->mu);
    return s == REALM_OK && !found ? no_model(id, err) : s;
}

realm_status realm_store_model_remove(realm_store *store, int64_t tenant_id, uint32_t id, realm_model_row *out,
                                      bool *last, realm_error *err) {
    db *d = &store->data_write;
    sqlite3_stmt *st;
    bool found, used = true;
    realm_status s = db_transaction(d, err);
    if (s != REALM_OK) return s;
    s = find_locked(d, tenant_id, id, out, &found, err);
    if (s == REALM_OK && !found) s = no_model(id, err);
    if (s == REALM_OK) s = db_prepare(d, "DELETE FROM model WHERE tenant_id = ?1 AND id = ?2", &st, err);
    if (s == REALM_OK) {
        sqlite3_bind_int64(st, 1, tenant_id);
        sqlite3_bind_int64(st, 2, id);
        s = db_run(d, st, err);
    }
    if (s == REALM_OK) s = used_locked(d, tenant_id, out->sha256, &used, err);
    if (s == REALM_OK && !used) s = account(d, tenant_id, 0, out->bytes, 0, err);
    *last = !used;
    return db_finish(d, s, err);
}

realm_status realm_store_model_used(realm_store *store, int64_t tenant_id, const char *sha256, bool *used,
                                    realm_error *err) {
    db *d = store->data_reader;
    realm_mutex_lock(&d->mu);
    realm_status s = used_locked(d, tenant_id, sha256, used, err);
    realm_mutex_unlock(&d->mu);
    return s;
}
