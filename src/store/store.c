/* store/store.c - opening, schema, the server secret, change detection, and the statement helpers of db.h. */
#include "store/store.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/file.h"
#include "crypto/crypto.h"
#include "store/db.h"

#define SCHEMA_VERSION 4
#define TEXT_OF(number) #number
#define TEXT(number) TEXT_OF(number)
#define BUSY_TIMEOUT_MS 5000
#define LEDGER_TIMEOUT_MS 5 /* what a change of the command line takes */

static const char schema[] =
    "CREATE TABLE IF NOT EXISTS tenant("
    " id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, program TEXT NOT NULL DEFAULT '',"
    " created_s INTEGER NOT NULL, deleted_s INTEGER NOT NULL DEFAULT 0);"
    "CREATE UNIQUE INDEX IF NOT EXISTS tenant_name ON tenant(name) WHERE deleted_s = 0;"
    "CREATE TABLE IF NOT EXISTS tenant_limit("
    " tenant_id INTEGER NOT NULL, name TEXT NOT NULL, value INTEGER NOT NULL,"
    " PRIMARY KEY(tenant_id, name)) WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS tenant_string(" /* since 2; kind 0 arguments, 1 environment */
    " tenant_id INTEGER NOT NULL, kind INTEGER NOT NULL, place INTEGER NOT NULL, value TEXT NOT NULL,"
    " PRIMARY KEY(tenant_id, kind, place)) WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS program(sha256 TEXT PRIMARY KEY, wasm BLOB NOT NULL) WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS api_key("
    " id TEXT PRIMARY KEY, tenant_id INTEGER NOT NULL, admin INTEGER NOT NULL, mac BLOB NOT NULL,"
    " created_s INTEGER NOT NULL, expires_s INTEGER NOT NULL, revoked_s INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS ledger("
    " tenant_id INTEGER NOT NULL, minute_s INTEGER NOT NULL, requests INTEGER NOT NULL, aborted INTEGER NOT NULL,"
    " prompt INTEGER NOT NULL, cached INTEGER NOT NULL, completion INTEGER NOT NULL,"
    " program_cpu_ns INTEGER NOT NULL DEFAULT 0, tensor_ns INTEGER NOT NULL DEFAULT 0," /* since 3 */
    " PRIMARY KEY(tenant_id, minute_s)) WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS engine_counter("
    " id INTEGER PRIMARY KEY CHECK(id = 1), prompt INTEGER NOT NULL, cached INTEGER NOT NULL,"
    " completion INTEGER NOT NULL, program_cpu_ns INTEGER NOT NULL DEFAULT 0,"
    " tensor_ns INTEGER NOT NULL DEFAULT 0);"
    "CREATE TABLE IF NOT EXISTS late_taken(id TEXT PRIMARY KEY) WITHOUT ROWID;" /* since 4 */
    "INSERT OR IGNORE INTO engine_counter(id, prompt, cached, completion) VALUES(1, 0, 0, 0);";

/* What tables of earlier versions lack; tables that are missing altogether come with the schema. */
static const struct {
    int since;
    const char *sql;
} upgrades[] = {
    {3, "ALTER TABLE ledger ADD COLUMN program_cpu_ns INTEGER NOT NULL DEFAULT 0;"
        "ALTER TABLE ledger ADD COLUMN tensor_ns INTEGER NOT NULL DEFAULT 0;"
        "ALTER TABLE engine_counter ADD COLUMN program_cpu_ns INTEGER NOT NULL DEFAULT 0;"
        "ALTER TABLE engine_counter ADD COLUMN tensor_ns INTEGER NOT NULL DEFAULT 0;"},
};

/* ---- statements -------------------------------------------------------------------------------------------------- */

static realm_status failed(db *d, int rc, realm_error *err) {
    realm_status s;
    switch (rc & 0xff) {
    case SQLITE_NOMEM: s = REALM_E_NOMEM; break;
    case SQLITE_BUSY:
    case SQLITE_LOCKED: s = REALM_E_BUSY; break;
    case SQLITE_PERM:
    case SQLITE_READONLY:
    case SQLITE_AUTH: s = REALM_E_DENIED; break;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB: s = REALM_E_FORMAT; break;
    case SQLITE_CONSTRAINT: s = REALM_E_EXISTS; break;
    default: s = REALM_E_IO; break;
    }
    const int e = d->h && s == REALM_E_IO ? sqlite3_system_errno(d->h) : 0;
    return realm_error_set(err, s, "store: %s%s%s", d->h ? sqlite3_errmsg(d->h) : sqlite3_errstr(rc), e ? ": " : "",
                           e ? strerror(e) : "");
}

realm_status db_prepare(db *d, const char *sql, sqlite3_stmt **st, realm_error *err) {
    for (unsigned i = 0; i < d->n_cached; i++) {
        if (d->cache[i].sql != sql) continue;
        *st = d->cache[i].st;
        return REALM_OK;
    }
    if (d->n_cached == DB_STATEMENTS_MAX) return realm_error_set(err, REALM_E_INTERNAL, "store: statement table full");
    int rc = sqlite3_prepare_v3(d->h, sql, -1, SQLITE_PREPARE_PERSISTENT, st, NULL);
    if (rc != SQLITE_OK) return failed(d, rc, err);
    d->cache[d->n_cached].sql = sql;
    d->cache[d->n_cached++].st = *st;
    return REALM_OK;
}

realm_status db_begin(db *d, const char *sql, sqlite3_stmt **st, realm_error *err) {
    realm_mutex_lock(&d->mu);
    realm_status s = db_prepare(d, sql, st, err);
    if (s != REALM_OK) realm_mutex_unlock(&d->mu);
    return s;
}

void db_end(db *d, sqlite3_stmt *st) {
    sqlite3_reset(st);
    sqlite3_clear_bindings(st);
    realm_mutex_unlock(&d->mu);
}

realm_status db_step(db *d, sqlite3_stmt *st, bool *row, realm_error *err) {
    int rc = sqlite3_step(st);
    *row = rc == SQLITE_ROW;
    return rc == SQLITE_ROW || rc == SQLITE_DONE ? REALM_OK : failed(d, rc, err);
}

realm_status db_run(db *d, sqlite3_stmt *st, realm_error *err) {
    bool row;
    realm_status s = db_step(d, st, &row, err);
    sqlite3_reset(st);
    sqlite3_clear_bindings(st);
    return s;
}

realm_status db_exec(db *d, const char *sql, realm_error *err) {
    int rc = sqlite3_exec(d->h, sql, NULL, NULL, NULL);
    return rc == SQLITE_OK ? REALM_OK : failed(d, rc, err);
}

static realm_status check_in_place(db *d, realm_error *err) {
    struct stat at;
    if (!d->path) return REALM_OK;
    if (stat(d->path, &at) != 0) return realm_error_set(err, REALM_E_IO, "store: %s: %s", d->path, strerror(errno));
    if (at.st_dev == d->device && at.st_ino == d->inode) return REALM_OK;
    return realm_error_set(err, REALM_E_IO, "store: %s is another file than the one that was opened", d->path);
}

realm_status db_transaction(db *d, realm_error *err) {
    realm_mutex_lock(&d->mu);
    realm_status s = check_in_place(d, err);
    if (s == REALM_OK) s = db_exec(d, "BEGIN IMMEDIATE", err);
    if (s != REALM_OK) realm_mutex_unlock(&d->mu);
    return s;
}

realm_status db_finish(db *d, realm_status s, realm_error *err) {
    if (s == REALM_OK) s = db_exec(d, "COMMIT", err);
    if (s != REALM_OK && !sqlite3_get_autocommit(d->h)) sqlite3_exec(d->h, "ROLLBACK", NULL, NULL, NULL);
    realm_mutex_unlock(&d->mu);
    return s;
}

void db_bind_text(sqlite3_stmt *st, int i, const char *s) { sqlite3_bind_text(st, i, s, -1, SQLITE_TRANSIENT); }

void db_copy_text(sqlite3_stmt *st, int col, char *out, size_t cap) {
    const char *s = (const char *)sqlite3_column_text(st, col);
    size_t n = s ? strnlen(s, cap - 1) : 0;
    if (n) memcpy(out, s, n);
    out[n] = '\0';
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

/* Makes the file that SQLite would make readable for everybody; what it puts beside it gets the same mode. By another
 * name at first: closing a descriptor of a database gives up the locks that this process holds on it. */
static bool make_private(const char *path) {
    static const char end[] = ".XXXXXX";
    const size_t len = strlen(path);
    char *fresh = realm_malloc(len + sizeof end);
    if (!fresh) return false;
    memcpy(fresh, path, len);
    memcpy(fresh + len, end, sizeof end);
    int fd = access(path, F_OK) != 0 ? mkstemp(fresh) : -1; /* 0600 */
    if (fd >= 0) {
        close(fd);
        (void)link(fresh, path); /* unless somebody was faster */
        (void)unlink(fresh);
    }
    realm_free(fresh);
    return true;
}

realm_status db_open(db *d, const char *path, int flags, realm_error *err) {
    if ((flags & SQLITE_OPEN_CREATE) && strcmp(path, DB_IN_MEMORY) != 0 && !make_private(path))
        return realm_error_set(err, REALM_E_NOMEM, "store: out of memory");
    realm_mutex_init(&d->mu, REALM_RANK_STORE);
    int rc = sqlite3_open_v2(path, &d->h, flags | SQLITE_OPEN_NOMUTEX, NULL);
    if (rc != SQLITE_OK) return failed(d, rc, err);
    if (strcmp(path, DB_IN_MEMORY) != 0 && !(d->path = realm_strdup(path)))
        return realm_error_set(err, REALM_E_NOMEM, "store: out of memory");
    struct stat at;
    if (d->path && stat(d->path, &at) != 0)
        return realm_error_set(err, REALM_E_IO, "store: %s: %s", path, strerror(errno));
    if (d->path) {
        d->device = at.st_dev;
        d->inode = at.st_ino;
    }
    sqlite3_busy_timeout(d->h, BUSY_TIMEOUT_MS);
    return REALM_OK;
}

void db_close(db *d) {
    if (!d->h) return;
    for (unsigned i = 0; i < d->n_cached; i++) sqlite3_finalize(d->cache[i].st);
    sqlite3_close(d->h);
    realm_free(d->path);
    realm_mutex_destroy(&d->mu);
}

/* 0: a new file; the caller holds the lock. */
static realm_status schema_version(db *d, int *version, realm_error *err) {
    sqlite3_stmt *st;
    bool row;
    realm_status s = db_prepare(d, "PRAGMA user_version", &st, err);
    if (s != REALM_OK) return s;
    s = db_step(d, st, &row, err);
    *version = s == REALM_OK && row ? sqlite3_column_int(st, 0) : 0;
    sqlite3_reset(st);
    return s;
}

/* Brings the file to this version, inside a transaction, so that of two processes one finds it done. */
static realm_status make_schema(db *d, realm_error *err) {
    int version;
    realm_status s = schema_version(d, &version, err);
    if (s != REALM_OK || version == SCHEMA_VERSION) return s;
    if (version > SCHEMA_VERSION)
        return realm_error_set(err, REALM_E_UNSUPPORTED,
                               "store: written by a newer version (schema %d, this one knows %d)", version,
                               SCHEMA_VERSION);
    for (size_t i = 0; s == REALM_OK && version > 0 && i < REALM_ARRAY_LEN(upgrades); i++)
        if (version < upgrades[i].since) s = db_exec(d, upgrades[i].sql, err);
    if (s == REALM_OK) s = db_exec(d, schema, err);
    return s == REALM_OK ? db_exec(d, "PRAGMA user_version=" TEXT(SCHEMA_VERSION), err) : s;
}

/* The secret is made by whoever comes first: written whole to a private name, then linked, which fails for the second.
 */
static realm_status load_secret(realm_store *store, const char *dir, realm_error *err) {
    if (!dir) {
        realm_status s = realm_random_bytes(store->secret, sizeof store->secret);
        return s == REALM_OK ? s : realm_error_set(err, s, "store: no randomness");
    }
    char *path = realm_path_join(dir, "secret");
    char *tmp = realm_path_join(dir, "secret.XXXXXX");
    char *data = NULL;
    size_t len = 0;
    realm_status s = REALM_OK;
    if (!path || !tmp) {
        s = realm_error_set(err, REALM_E_NOMEM, "store: out of memory");
        goto done;
    }
    if (access(path, F_OK) != 0) {
        s = realm_random_bytes(store->secret, sizeof store->secret);
        if (s != REALM_OK) {
            realm_error_set(err, s, "store: no randomness");
            goto done;
        }
        int fd = mkostemp(tmp, O_CLOEXEC);
        bool ok = fd >= 0 && write(fd, store->secret, sizeof store->secret) == (ssize_t)sizeof store->secret &&
                  fsync(fd) == 0;
        if (fd >= 0) close(fd);
        if (ok && link(tmp, path) != 0 && errno != EEXIST) ok = false;
        int e = errno;
        if (fd >= 0) (void)unlink(tmp);
        if (!ok) {
            s = realm_error_set(err, REALM_E_IO, "store: %s: %s", path, strerror(e));
            goto done;
        }
    }
    s = realm_file_read(path, DB_SECRET_BYTES, &data, &len, err);
    if (s == REALM_OK && len != DB_SECRET_BYTES)
        s = realm_error_set(err, REALM_E_FORMAT, "store: %s: %zu bytes where %u belong", path, len, DB_SECRET_BYTES);
    if (s == REALM_OK) memcpy(store->secret, data, DB_SECRET_BYTES);
done:
    realm_free(data);
    realm_free(tmp);
    realm_free(path);
    return s;
}

/* A file of this version is only read: whoever wants to know something need not wait for a writer. */
static realm_status ready_schema(db *d, realm_error *err) {
    int version;
    realm_mutex_lock(&d->mu);
    realm_status s = schema_version(d, &version, err);
    realm_mutex_unlock(&d->mu);
    if (s != REALM_OK || version == SCHEMA_VERSION) return s;
    if ((s = db_transaction(d, err)) != REALM_OK) return s;
    return db_finish(d, make_schema(d, err), err);
}

realm_status realm_store_open(realm_store **out, const char *dir, realm_error *err) {
    realm_status s = dir ? realm_dir_make(dir, err) : REALM_OK; /* which says what it was by itself */
    if (s != REALM_OK) return s;
    realm_store *store = realm_calloc(1, sizeof *store);
    char *path = NULL;
    if (!store) return realm_error_set(err, REALM_E_NOMEM, "store: out of memory");
    realm_mutex_init(&store->late.mu, REALM_RANK_LEDGER);
    if (dir && !(store->dir = realm_strdup(dir))) {
        s = realm_error_set(err, REALM_E_NOMEM, "store: out of memory");
        goto fail;
    }
    path = dir ? realm_path_join(dir, "realm.db") : realm_strdup(DB_IN_MEMORY);
    if (!path) {
        s = realm_error_set(err, REALM_E_NOMEM, "store: out of memory");
        goto fail;
    }
    const int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE;
    if ((s = db_open(&store->write, path, flags, err)) != REALM_OK) goto fail;
    if ((s = db_exec(&store->write, "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL", err)) != REALM_OK) goto fail;
    if ((s = ready_schema(&store->write, err)) != REALM_OK) goto fail;
    store->reader = store->finder = store->ledger = &store->write;
    if (dir) {
        if ((s = db_open(&store->read, path, SQLITE_OPEN_READWRITE, err)) != REALM_OK) goto fail;
        if ((s = db_open(&store->find, path, SQLITE_OPEN_READWRITE, err)) != REALM_OK) goto fail;
        if ((s = db_open(&store->count, path, SQLITE_OPEN_READWRITE, err)) != REALM_OK) goto fail;
        if ((s = db_exec(&store->count, "PRAGMA synchronous=NORMAL", err)) != REALM_OK) goto fail;
        sqlite3_busy_timeout(store->count.h, LEDGER_TIMEOUT_MS);
        store->reader = &store->read;
        store->finder = &store->find;
        store->ledger = &store->count;
        if ((s = late_collect(store, err)) != REALM_OK) goto fail;
    }
    if ((s = load_secret(store, dir, err)) != REALM_OK) goto fail;
    if ((s = data_open(store, dir, err)) != REALM_OK) goto fail;
    realm_free(path);
    *out = store;
    return REALM_OK;
fail:
    if (dir) realm_error_prefix(err, "%s", dir);
    realm_free(path);
    realm_store_close(store);
    return s;
}

void realm_store_close(realm_store *store) {
    if (!store) return;
    data_close(store);
    late_release(store);
    db_close(&store->count);
    db_close(&store->find);
    db_close(&store->read);
    db_close(&store->write);
    realm_mutex_destroy(&store->late.mu);
    realm_free(store->dir);
    realm_secret_wipe(store->secret, sizeof store->secret);
    realm_free(store);
}

realm_status realm_store_version(realm_store *store, uint64_t *version, realm_error *err) {
    sqlite3_stmt *st;
    bool row;
    uint64_t foreign = 0;
    db *d = store->ledger; /* to it `write` is foreign; its own commits say nothing of tenants and keys */
    realm_status s = db_begin(d, "PRAGMA data_version", &st, err);
    if (s != REALM_OK) return s;
    const uint64_t local = atomic_load(&store->local_changes);
    s = db_step(d, st, &row, err);
    if (s == REALM_OK && row) foreign = (uint64_t)sqlite3_column_int64(st, 0);
    db_end(d, st);
    if (s == REALM_OK) *version = foreign << 32 ^ local;
    return s;
}
