/* store/db.h - inside the folder: the SQLite connection and the few calls that everything here is made of.
 *
 * Statements are prepared once per connection and kept in a small table by their text; values are always bound. One
 * connection, each behind a mutex, writes tenants and keys and waits for other processes that do; one writes the
 * ledger, which waits for nobody (late.c); one reads what may take long: sums of the ledger, programs, lists; and one
 * finds keys and tenants, so that a look-up, which every request begins with, waits neither for a commit nor for
 * somebody's sum. A private in-memory store has a single one.
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
#include <stdatomic.h>
#include <sys/types.h>

#include "base/thread.h"
#include "store/store.h"

#define DB_STATEMENTS_MAX 48u
#define DB_SECRET_BYTES 32u
#define LATE_ID_LEN 32u         /* hex digits */
#define DB_IN_MEMORY ":memory:" /* the path of a private store */

typedef struct db {
    sqlite3 *h;
    realm_mutex mu;
    char *path;   /* NULL: in memory */
    dev_t device; /* of the file that was opened */
    ino_t inode;
    struct {
        const char *sql; /* the literal's address is its identity */
        sqlite3_stmt *st;
    } cache[DB_STATEMENTS_MAX];
    unsigned n_cached;
} db;

typedef struct late_row { /* what a tenant used in a minute */
    int64_t tenant_id, minute_s;
    realm_usage usage;
} late_row;

typedef struct late_counts { /* late.c: what waits for the ledger */
    realm_mutex mu;
    late_row *rows;
    size_t n; /* 0: nothing waits, and there is no file */
    realm_usage engine;
    char id[LATE_ID_LEN + 1];
    int fd; /* the file, locked */
    uint64_t since_ns;
    bool told;
} late_counts;

struct realm_store {
    char *dir;                                  /* NULL: in memory */
    db write, read, find, count;                /* realm.db; `count` for the ledger */
    db data_write, data_read;                   /* data.db */
    db *reader, *finder, *ledger, *data_reader; /* those, or the writers for a store in memory */
    late_counts late;                           /* late.mu, also held while the ledger is written */
    uint8_t secret[DB_SECRET_BYTES];
    atomic_uint_fast64_t local_changes; /* of tenants and keys, on `write` */
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
REALM_WARN_UNUSED realm_status db_open(db *d, const char *path, int flags,
                                       realm_error *err); /* waits for other writers for seconds */
void db_close(db *d);
REALM_WARN_UNUSED realm_status db_exec(db *d, const char *sql, realm_error *err);
/* Lock, BEGIN IMMEDIATE; then COMMIT (or ROLLBACK when s is a failure) and unlock, returning the first failure. */
REALM_WARN_UNUSED realm_status db_transaction(db *d, realm_error *err);
realm_status db_finish(db *d, realm_status s, realm_error *err);

/* ledger.c: inside a transaction; `engine` may be NULL. */
REALM_WARN_UNUSED realm_status ledger_add(db *d, const late_row *rows, size_t n, const realm_usage *engine,
                                          realm_error *err);

/* late.c; late.mu is held, but for the last two */
/* Adds to what waits, in memory and in its file; on failure nothing has changed. What nobody used has no row to wait
 * in: REALM_E_BUSY. */
REALM_WARN_UNUSED realm_status late_keep(realm_store *store, const realm_usage_entry *entries, size_t n,
                                         int64_t minute_s, const realm_usage *engine, realm_error *err);
/* Inside a transaction: adds all that waits to the ledger. After its COMMIT late_done must follow. */
REALM_WARN_UNUSED realm_status late_add(realm_store *store, db *d, realm_error *err);
void late_done(realm_store *store);
void late_release(realm_store *store); /* the file stays, for whoever opens the store next */
/* When the store is opened: takes what processes that have ended left. REALM_E_BUSY: a writer holds it up. */
REALM_WARN_UNUSED realm_status late_collect(realm_store *store, realm_error *err);

/* data.c: opens data.db and drops what belongs to tenants that are gone. */
REALM_WARN_UNUSED realm_status data_open(realm_store *store, const char *dir, realm_error *err);
void data_close(realm_store *store);
/* Removes all that a tenant has put in. */
REALM_WARN_UNUSED realm_status data_forget(realm_store *store, int64_t tenant_id, realm_error *err);

void db_bind_text(sqlite3_stmt *st, int i, const char *s);
void db_copy_text(sqlite3_stmt *st, int col, char *out, size_t cap);

#endif
