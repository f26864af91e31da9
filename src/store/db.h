/* store/db.h - inside the folder: the SQLite connection and the few calls that everything here is made of.
 *
 * Statements are prepared once per connection and kept in a small table by their text; values are always bound. One
 * writer connection behind a mutex, and one reader so that a key look-up never waits for a ledger commit. A private
 * in-memory store has the writer alone.
 *
 * What tenants themselves put in (values, models) is in a file of its own, data.db: SQLite has one writer per file, so
 * a tenant that writes without pause, each time waiting for the disk, never holds up the ledger.
 *
 * A file that was removed or replaced under a running server fails each write until it is back: SQLite would go on
 * writing to what nobody can open any more.
 */
#ifndef REALM_STORE_DB_H
#define REALM_STORE_DB_H

#include <sqlite3.h>
#include <sys/types.h>

#include "base/thread.h"
#include "store/store.h"

#define DB_STATEMENTS_MAX 48u
#define DB_SECRET_BYTES 32u
#define DB_IN_MEMORY ":memory:" /* the path of a private store */

typedef struct db {
    sqlite3 *h;
    realm_mutex mu;
    char *path;   /* NULL: in memory */
    dev_t device; /* of the file that the first transaction found there; mu */
    ino_t inode;  /* 0: none has */
    struct {
        const char *sql; /* the literal's address is its identity */
        sqlite3_stmt *st;
    } cache[DB_STATEMENTS_MAX];
    unsigned n_cached;
} db;

struct realm_store {
    db write, read;           /* realm.db */
    db data_write, data_read; /* data.db */
    db *reader, *data_reader; /* the two readers, or the writers for a store in memory */
    uint8_t secret[DB_SECRET_BYTES];
    uint64_t local_changes; /* guarded by write.mu */
};

/* Locks the connection and readies a statement; unlock with db_end, which also resets it. */
REALM_WARN_UNUSED realm_status db_begin(db *d, const char *sql, sqlite3_stmt **st, realm_error *err);
void db_end(db *d, sqlite3_stmt *st);
/* The same for a caller that holds the lock already. */
REALM_WARN_UNUSED realm_status db_prepare(db *d, const char *sql, sqlite3_stmt **st, realm_error *err);
/* Runs a statement that returns no row. */
REALM_WARN_UNUSED realm_status db_run(db *d, sqlite3_stmt *st, realm_error *err);
/* One step: *row says whether there is one. */
REALM_WARN_UNUSED realm_status db_step(db *d, sqlite3_stmt *st, bool *row, realm_error *err);
REALM_WARN_UNUSED realm_status db_open(db *d, const char *path, int flags, realm_error *err);
void db_close(db *d);
REALM_WARN_UNUSED realm_status db_exec(db *d, const char *sql, realm_error *err);
/* Lock, BEGIN IMMEDIATE; then COMMIT (or ROLLBACK when s is a failure) and unlock, returning the first failure. */
REALM_WARN_UNUSED realm_status db_transaction(db *d, realm_error *err);
realm_status db_finish(db *d, realm_status s, realm_error *err);

/* data.c: opens data.db and drops what belongs to tenants that are gone. */
REALM_WARN_UNUSED realm_status data_open(realm_store *store, const char *dir, realm_error *err);
void data_close(realm_store *store);
/* Removes all that a tenant has put in. */
REALM_WARN_UNUSED realm_status data_forget(realm_store *store, int64_t tenant_id, realm_error *err);

void db_bind_text(sqlite3_stmt *st, int i, const char *s);
void db_copy_text(sqlite3_stmt *st, int col, char *out, size_t cap);

#endif
