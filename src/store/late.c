/* store/late.c - counts that wait until the ledger can be written.
 *
 * SQLite has one writer per file. While another process is it (a tool that changes tenants, a backup, somebody's open
 * transaction), what was used is kept beside the database instead of waited with:
 *
 *                    realm.db is busy: late_keep                   it is free: late_add, COMMIT, late_done
 *      (nothing) -------------------------------> waits -----------------------------------------------> (nothing)
 *                                                 |    ^                                                    ^
 *                                                 +----+ late_keep                                          |
 *                                  the process ends: the file stays, the next to open the store: late_collect
 *
 * All that waits is added up by tenant and minute and written to the file late-ID as a whole, each time anew: to
 * another name, then renamed, so that whenever the process is killed one whole file is there. It is not synced, like
 * the database's own log: it outlives the process, not the machine's power. The transaction that takes the counts into
 * the ledger notes ID in the table late_taken; only then the file goes. So a file whose ID is there has been taken, and
 * each count is in the ledger once wherever this was cut short. Whoever has such a file locks it (flock), which ends
 * with its process: a file that can be locked, and is still the one of that name, has lost its owner.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "crypto/crypto.h"
#include "store/db.h"

#define LATE_ROWS_MAX 65536u
#define LATE_PREFIX "late-"
#define LATE_NEW ".new" /* behind the name of a file that is being written */
#define TELL_AFTER_NS REALM_NS_PER_S

#define ONE(field) +1
enum { N_FIELDS = 0 REALM_USAGE_FIELDS(ONE) };
#undef ONE

/* The file: a head, rows, the SHA-256 of both; in the machine's byte order. A row is two numbers and then the fields of
 * realm_usage; a file of a version that knew fewer of them, which were the first ones, can be read. */
typedef struct late_head {
    char magic[8];
    uint32_t n_fields, n_rows;
    realm_usage engine;
} late_head;
static const char MAGIC[8] = "RLMLATE1";
#define HEAD_FIXED offsetof(late_head, engine)
#define ROW_FIXED offsetof(late_row, usage)
_Static_assert(sizeof(realm_usage) == 8 * N_FIELDS && sizeof(late_row) == 16 + 8 * N_FIELDS, "no padding");

static char *path_of(const realm_store *store, const char *id, const char *suffix) {
    char name[sizeof LATE_PREFIX + LATE_ID_LEN + sizeof LATE_NEW];
    snprintf(name, sizeof name, LATE_PREFIX "%s%s", id, suffix);
    return realm_path_join(store->dir, name);
}

/* ---- keeping ----------------------------------------------------------------------------------------------------- */

static int by_tenant_and_minute(const void *a, const void *b) {
    const late_row *x = a, *y = b;
    if (x->tenant_id != y->tenant_id) return x->tenant_id < y->tenant_id ? -1 : 1;
    return (x->minute_s > y->minute_s) - (x->minute_s < y->minute_s);
}

/* Sorts rows and adds up those of one tenant and time. */
static size_t merge(late_row *rows, size_t n) {
    size_t kept = 0;
    if (n) qsort(rows, n, sizeof *rows, by_tenant_and_minute);
    for (size_t i = 0; i < n; i++) {
        if (kept > 0 && by_tenant_and_minute(&rows[kept - 1], &rows[i]) == 0)
            realm_usage_add(&rows[kept - 1].usage, &rows[i].usage);
        else
            rows[kept++] = rows[i];
    }
    return kept;
}

/* Within the bound, if need be by the hour or the UTC day instead of the minute. */
static size_t merge_to_fit(late_row *rows, size_t n) {
    static const int64_t COARSER_S[] = {3600, 86400};
    n = merge(rows, n);
    for (size_t i = 0; n > LATE_ROWS_MAX && i < REALM_ARRAY_LEN(COARSER_S); i++) {
        for (size_t k = 0; k < n; k++) rows[k].minute_s -= rows[k].minute_s % COARSER_S[i];
        n = merge(rows, n);
    }
    return n;
}

static bool write_whole(int fd, const void *data, size_t len) {
    for (size_t done = 0; done < len;) {
        ssize_t n = write(fd, (const char *)data + done, len - done);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        done += (size_t)n;
    }
    return true;
}

/* Replaces the file by one with these counts; *fd is the new one, locked. */
static realm_status write_file(const realm_store *store, const char *id, const late_row *rows, size_t n,
                               const realm_usage *engine, int *fd, realm_error *err) {
    late_head head = {.n_fields = N_FIELDS, .n_rows = (uint32_t)n, .engine = *engine};
    uint8_t digest[REALM_SHA256_BYTES];
    realm_sha256_stream *sum = NULL;
    char *path = path_of(store, id, ""), *fresh = path_of(store, id, LATE_NEW);
    int f = -1;
    memcpy(head.magic, MAGIC, sizeof head.magic);
    realm_status s = path && fresh ? realm_sha256_open(&sum) : REALM_E_NOMEM;
    if (s == REALM_OK) s = realm_sha256_update(sum, &head, sizeof head);
    if (s == REALM_OK) s = realm_sha256_update(sum, rows, n * sizeof *rows);
    if (s == REALM_OK) s = realm_sha256_finish(sum, digest);
    realm_sha256_close(sum);
    if (s != REALM_OK) {
        realm_error_set(err, s, "store: out of memory");
        goto done;
    }
    f = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (f < 0 || flock(f, LOCK_EX | LOCK_NB) != 0 || !write_whole(f, &head, sizeof head) ||
        !write_whole(f, rows, n * sizeof *rows) || !write_whole(f, digest, sizeof digest) || rename(fresh, path) != 0) {
        s = realm_error_set(err, REALM_E_IO, "store: %s: %s", path, strerror(errno));
        if (f >= 0) {
            (void)unlink(fresh);
            close(f);
        }
        goto done;
    }
    *fd = f;
done:
    realm_free(path);
    realm_free(fresh);
    return s;
}

realm_status late_keep(realm_store *store, const realm_usage_entry *entries, size_t n, int64_t minute_s,
                       const realm_usage *engine, realm_error *err) {
    late_counts *late = &store->late;
    const uint64_t now_ns = realm_clock_ns();
    const bool first = late->n == 0;
    realm_usage total = late->engine;
    int fd = -1;
    if (n == 0 && engine) return realm_error_set(err, REALM_E_BUSY, "store: busy");
    if (n == 0) return REALM_OK; /* all that there is waits already */
    late_row *rows = realm_calloc(late->n + n, sizeof *rows);
    realm_status s = rows ? REALM_OK : realm_error_set(err, REALM_E_NOMEM, "store: out of memory");
    if (s == REALM_OK && first) {
        uint8_t id[LATE_ID_LEN / 2];
        s = realm_random_bytes(id, sizeof id);
        if (s != REALM_OK) realm_error_set(err, s, "store: no randomness");
        realm_hex(id, sizeof id, late->id);
    }
    if (s != REALM_OK) goto fail;
    if (!first) memcpy(rows, late->rows, late->n * sizeof *rows);
    for (size_t i = 0; i < n; i++) rows[late->n + i] = (late_row){entries[i].tenant_id, minute_s, entries[i].delta};
    n = merge_to_fit(rows, late->n + n);
    if (engine) realm_usage_add(&total, engine);
    if (n > LATE_ROWS_MAX) {
        s = realm_error_set(err, REALM_E_LIMIT, "store: busy, and what %zu tenants used does not fit beside it", n);
        goto fail;
    }
    if ((s = write_file(store, late->id, rows, n, &total, &fd, err)) != REALM_OK) goto fail;
    if (first) {
        late->since_ns = now_ns;
        late->told = false;
    } else {
        close(late->fd); /* of the file that was replaced */
    }
    realm_free(late->rows);
    late->rows = rows;
    late->n = n;
    late->engine = total;
    late->fd = fd;
    if (!late->told && now_ns - late->since_ns >= TELL_AFTER_NS) {
        realm_log_warn("ledger", "%s is locked by another process: counts wait in " LATE_PREFIX "%s until it is free",
                       store->ledger->path, late->id);
        late->told = true;
    }
    return REALM_OK;
fail:
    realm_free(rows);
    return s;
}

/* ---- taking ------------------------------------------------------------------------------------------------------ */

static realm_status note_taken(db *d, const char *id, realm_error *err) {
    sqlite3_stmt *st;
    realm_status s = db_prepare(d, "INSERT INTO late_taken VALUES(?1)", &st, err);
    if (s != REALM_OK) return s;
    db_bind_text(st, 1, id);
    return db_run(d, st, err);
}

/* Inside a transaction: forgets the ids whose files are gone. */
static realm_status tidy(realm_store *store, db *d, realm_error *err) {
    for (char after[LATE_ID_LEN + 1] = "";;) {
        sqlite3_stmt *st;
        bool row;
        realm_status s = db_prepare(d, "SELECT id FROM late_taken WHERE id > ?1 ORDER BY id LIMIT 1", &st, err);
        if (s != REALM_OK) return s;
        db_bind_text(st, 1, after);
        s = db_step(d, st, &row, err);
        if (s == REALM_OK && row) db_copy_text(st, 0, after, sizeof after);
        sqlite3_reset(st);
        sqlite3_clear_bindings(st);
        if (s != REALM_OK || !row) return s;
        char *path = path_of(store, after, "");
        if (!path) return realm_error_set(err, REALM_E_NOMEM, "store: out of memory");
        bool gone = access(path, F_OK) != 0 && errno == ENOENT;
        realm_free(path);
        if (!gone) continue;
        if ((s = db_prepare(d, "DELETE FROM late_taken WHERE id = ?1", &st, err)) != REALM_OK) return s;
        db_bind_text(st, 1, after);
        if ((s = db_run(d, st, err)) != REALM_OK) return s;
    }
}

realm_status late_add(realm_store *store, db *d, realm_error *err) {
    const late_counts *late = &store->late;
    if (late->n == 0) return REALM_OK;
    realm_status s = ledger_add(d, late->rows, late->n, &late->engine, err);
    if (s == REALM_OK) s = tidy(store, d, err);
    return s == REALM_OK ? note_taken(d, late->id, err) : s;
}

void late_done(realm_store *store) {
    late_counts *late = &store->late;
    if (late->n == 0) return;
    char *path = path_of(store, late->id, "");
    if (path) (void)unlink(path); /* should it stay, its id is noted */
    realm_free(path);
    if (late->told)
        realm_log_info("ledger", "%s is free again: what was counted for %.1f s is in the ledger", store->ledger->path,
                       (double)(realm_clock_ns() - late->since_ns) / (double)REALM_NS_PER_S);
    late_release(store);
}

void late_release(realm_store *store) {
    late_counts *late = &store->late;
    if (late->n > 0) close(late->fd); /* which unlocks it */
    realm_free(late->rows);
    late->rows = NULL;
    late->n = 0;
    late->engine = (realm_usage){0};
}

/* ---- what processes left behind ---------------------------------------------------------------------------------- */

/* Reads a file's counts; *rows is freed with realm_free. REALM_E_FORMAT: it is not one, or not whole. */
static realm_status parse(const char *data, size_t len, late_row **rows, size_t *n, realm_usage *engine,
                          realm_error *err) {
    late_head head = {0};
    uint8_t digest[REALM_SHA256_BYTES];
    if (len < HEAD_FIXED) return realm_error_set(err, REALM_E_FORMAT, "%zu bytes are too few", len);
    memcpy(&head, data, HEAD_FIXED);
    if (memcmp(head.magic, MAGIC, sizeof MAGIC) != 0) return realm_error_set(err, REALM_E_FORMAT, "not counts");
    if (head.n_fields == 0 || head.n_fields > N_FIELDS || head.n_rows > LATE_ROWS_MAX)
        return realm_error_set(err, REALM_E_FORMAT, "%u rows of %u fields", head.n_rows, head.n_fields);
    const size_t fields = 8 * (size_t)head.n_fields, row = ROW_FIXED + fields;
    const size_t covered = HEAD_FIXED + fields + row * head.n_rows;
    if (len != covered + sizeof digest)
        return realm_error_set(err, REALM_E_FORMAT, "%zu bytes where %zu belong", len, covered + sizeof digest);
    realm_status s = realm_sha256(data, covered, digest);
    if (s != REALM_OK) return realm_error_set(err, s, "SHA-256 failed");
    if (memcmp(digest, data + covered, sizeof digest) != 0)
        return realm_error_set(err, REALM_E_FORMAT, "the checksum is another");
    if (!(*rows = realm_calloc(head.n_rows, sizeof **rows)))
        return realm_error_set(err, REALM_E_NOMEM, "out of memory");
    *n = head.n_rows;
    *engine = (realm_usage){0};
    memcpy(engine, data + HEAD_FIXED, fields);
    for (size_t i = 0; i < *n; i++) memcpy(&(*rows)[i], data + HEAD_FIXED + fields + i * row, row);
    return REALM_OK;
}

static realm_status was_taken(db *d, const char *id, bool *taken, realm_error *err) {
    sqlite3_stmt *st;
    realm_status s = db_prepare(d, "SELECT 1 FROM late_taken WHERE id = ?1", &st, err);
    if (s != REALM_OK) return s;
    db_bind_text(st, 1, id);
    s = db_step(d, st, taken, err);
    sqlite3_reset(st);
    sqlite3_clear_bindings(st);
    return s;
}

/* The file, locked, or -1 when it is somebody's or no file. */
static int lock_ownerless(const char *path) {
    struct stat locked, named;
    int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) return -1;
    if (fstat(fd, &locked) == 0 && S_ISREG(locked.st_mode) && flock(fd, LOCK_EX | LOCK_NB) == 0 &&
        stat(path, &named) == 0 && named.st_dev == locked.st_dev && named.st_ino == locked.st_ino)
        return fd;
    close(fd);
    return -1;
}

/* Takes one file, which is locked, into the ledger. */
static realm_status collect(realm_store *store, const char *path, const char *id, realm_error *err) {
    db *d = &store->write;
    char *data = NULL;
    size_t len = 0, n = 0;
    late_row *rows = NULL;
    realm_usage engine;
    bool taken = false;
    realm_status s = realm_file_read(path, sizeof(late_head) + LATE_ROWS_MAX * sizeof(late_row) + REALM_SHA256_BYTES,
                                     &data, &len, err);
    if (s == REALM_OK && (s = parse(data, len, &rows, &n, &engine, err)) == REALM_E_FORMAT) {
        realm_log_error("ledger", "%s cannot be taken into the ledger and stays where it is: %s", path,
                        err ? err->text : "damaged");
        realm_error_clear(err);
        s = REALM_OK;
        goto done;
    }
    if (s == REALM_OK) s = db_transaction(d, err);
    if (s != REALM_OK) goto done;
    s = was_taken(d, id, &taken, err);
    if (s == REALM_OK && !taken) s = ledger_add(d, rows, n, &engine, err);
    if (s == REALM_OK && !taken) s = note_taken(d, id, err);
    s = db_finish(d, s, err);
    if (s == REALM_OK) (void)unlink(path);
done:
    realm_free(rows);
    realm_free(data);
    return s;
}

static realm_status tidy_if_any(realm_store *store, realm_error *err) {
    db *d = &store->write;
    sqlite3_stmt *st;
    bool any;
    realm_status s = db_begin(d, "SELECT 1 FROM late_taken LIMIT 1", &st, err);
    if (s != REALM_OK) return s;
    s = db_step(d, st, &any, err);
    db_end(d, st);
    if (s != REALM_OK || !any || (s = db_transaction(d, err)) != REALM_OK) return s;
    return db_finish(d, tidy(store, d, err), err);
}

realm_status late_collect(realm_store *store, realm_error *err) {
    realm_error local = {0};
    realm_status s = REALM_OK;
    if (!err) err = &local;
    DIR *dir = opendir(store->dir);
    if (!dir) return realm_error_set(err, REALM_E_IO, "store: %s", strerror(errno));
    const size_t prefix = strlen(LATE_PREFIX);
    for (struct dirent *e; s == REALM_OK && (e = readdir(dir));) {
        char id[LATE_ID_LEN + 1] = "";
        if (strncmp(e->d_name, LATE_PREFIX, prefix) != 0) continue;
        const size_t hex = strspn(e->d_name + prefix, "0123456789abcdef");
        const char *rest = e->d_name + prefix + hex;
        if (hex != LATE_ID_LEN || (*rest && strcmp(rest, LATE_NEW) != 0)) continue;
        memcpy(id, e->d_name + prefix, LATE_ID_LEN);
        char *path = path_of(store, id, rest);
        if (!path) {
            s = realm_error_set(err, REALM_E_NOMEM, "store: out of memory");
            break;
        }
        int fd = lock_ownerless(path);
        if (fd >= 0 && *rest)
            (void)unlink(path); /* its writer was killed; what it was to replace is there still */
        else if (fd >= 0)
            s = collect(store, path, id, err);
        if (fd >= 0) close(fd);
        realm_free(path);
    }
    closedir(dir);
    return s == REALM_OK ? tidy_if_any(store, err) : s;
}
