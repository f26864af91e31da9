/* store/tenants.c - tenants, their limits, programs, arguments and environment. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/str.h"
#include "base/utf8.h"
#include "crypto/crypto.h"
#include "store/db.h"

typedef struct limit_row {
    const char *name;
    size_t offset;
    uint64_t least, most;
} limit_row;

static const limit_row limit_rows[] = {
#define X(field, type, def, least, most, text) {#field, offsetof(realm_limits, field), least, most},
    REALM_TENANT_LIMITS(X)
#undef X
};

static uint64_t *limit_at(realm_limits *l, const limit_row *r) { return (uint64_t *)(void *)((char *)l + r->offset); }

void realm_limits_init(realm_limits *l) {
#define X(field, type, def, least, most, text) l->field = def;
    REALM_TENANT_LIMITS(X)
#undef X
}

static const limit_row *find_limit(const char *name) {
    for (size_t i = 0; i < REALM_ARRAY_LEN(limit_rows); i++)
        if (strcmp(limit_rows[i].name, name) == 0) return &limit_rows[i];
    return NULL;
}

realm_status realm_limits_set(realm_limits *l, const char *name, const char *value, realm_error *err) {
    char shown[64];
    const limit_row *r = find_limit(name);
    if (!r)
        return realm_error_set(err, REALM_E_NOT_FOUND, "no limit is called \"%s\"",
                               realm_escape(shown, sizeof shown, name, strlen(name)));
    char *end;
    errno = 0;
    unsigned long long v = strtoull(value, &end, 10);
    bool digits = value[0] >= '0' && value[0] <= '9' && *end == '\0' && errno == 0;
    if (!digits || v < r->least || v > r->most)
        return realm_error_set(err, REALM_E_RANGE, "limit %s: \"%s\" is not a whole number from %llu to %llu", name,
                               realm_escape(shown, sizeof shown, value, strlen(value)), (unsigned long long)r->least,
                               (unsigned long long)r->most);
    *limit_at(l, r) = v;
    return REALM_OK;
}

static realm_status check_name(const char *name, realm_error *err) {
    size_t n = strlen(name);
    bool ok = n > 0 && n <= REALM_TENANT_NAME_MAX;
    for (size_t i = 0; i < n && ok; i++) {
        char c = name[i];
        bool alnum = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
        ok = alnum || (i > 0 && (c == '.' || c == '_' || c == '-'));
    }
    if (ok) return REALM_OK;
    char shown[96];
    return realm_error_set(err, REALM_E_INVALID,
                           "tenant name \"%s\": 1 to %u of a-z A-Z 0-9 . _ - and a letter or digit first",
                           realm_escape(shown, sizeof shown, name, n), REALM_TENANT_NAME_MAX);
}

static realm_status no_such(const char *name, realm_error *err) {
    char shown[96];
    return realm_error_set(err, REALM_E_NOT_FOUND, "no tenant is called \"%s\"",
                           realm_escape(shown, sizeof shown, name, strlen(name)));
}

/* Every limit has a row, so that a later version's defaults change no tenant; the caller holds the lock. */
static realm_status write_limits(db *d, int64_t id, const realm_limits *limits, realm_error *err) {
    sqlite3_stmt *st;
    realm_limits l = *limits;
    for (size_t i = 0; i < REALM_ARRAY_LEN(limit_rows); i++) {
        realm_status s = db_prepare(d, "INSERT OR REPLACE INTO tenant_limit VALUES(?1, ?2, ?3)", &st, err);
        if (s != REALM_OK) return s;
        sqlite3_bind_int64(st, 1, id);
        db_bind_text(st, 2, limit_rows[i].name);
        sqlite3_bind_int64(st, 3, (int64_t)*limit_at(&l, &limit_rows[i]));
        if ((s = db_run(d, st, err)) != REALM_OK) return s;
    }
    return REALM_OK;
}

static realm_status read_limits(db *d, int64_t id, realm_limits *l, realm_error *err) {
    sqlite3_stmt *st;
    bool row;
    realm_limits_init(l);
    realm_status s = db_prepare(d, "SELECT name, value FROM tenant_limit WHERE tenant_id = ?1", &st, err);
    if (s != REALM_OK) return s;
    sqlite3_bind_int64(st, 1, id);
    while ((s = db_step(d, st, &row, err)) == REALM_OK && row) {
        const char *name = (const char *)sqlite3_column_text(st, 0);
        const limit_row *r = name ? find_limit(name) : NULL;
        if (!r) continue; /* of a newer version */
        uint64_t v = (uint64_t)sqlite3_column_int64(st, 1);
        *limit_at(l, r) = REALM_MAX(r->least, REALM_MIN(v, r->most));
    }
    sqlite3_reset(st);
    sqlite3_clear_bindings(st);
    return s;
}

static realm_status write_program(db *d, int64_t id, const void *wasm, size_t len, char sha256[65], realm_error *err) {
    sqlite3_stmt *st;
    realm_status s;
    sha256[0] = '\0';
    if (len > 0) {
        uint8_t digest[REALM_SHA256_BYTES];
        if ((s = realm_sha256(wasm, len, digest)) != REALM_OK) return realm_error_set(err, s, "store: SHA-256 failed");
        realm_hex(digest, sizeof digest, sha256);
        if ((s = db_prepare(d, "INSERT OR IGNORE INTO program VALUES(?1, ?2)", &st, err)) != REALM_OK) return s;
        db_bind_text(st, 1, sha256);
        sqlite3_bind_blob64(st, 2, wasm, len, SQLITE_STATIC);
        if ((s = db_run(d, st, err)) != REALM_OK) return s;
    }
    if ((s = db_prepare(d, "UPDATE tenant SET program = ?2 WHERE id = ?1", &st, err)) != REALM_OK) return s;
    sqlite3_bind_int64(st, 1, id);
    db_bind_text(st, 2, sha256);
    return db_run(d, st, err);
}

static realm_status drop_unused_programs(db *d, realm_error *err) {
    return db_exec(d, "DELETE FROM program WHERE sha256 NOT IN (SELECT program FROM tenant WHERE deleted_s = 0)", err);
}

/* ---- arguments and environment ---- */

enum { STRINGS_ARGS, STRINGS_ENV }; /* tenant_string.kind */

realm_status realm_strings_add(realm_strings *l, const char *text, size_t len, realm_error *err) {
    if (l->n == REALM_STRINGS_MAX || len >= sizeof l->text - l->len)
        return realm_error_set(err, REALM_E_LIMIT, "at most %u strings of %u bytes together", REALM_STRINGS_MAX,
                               REALM_STRINGS_BYTES_MAX);
    if (memchr(text, 0, len) || !realm_utf8_valid(text, len))
        return realm_error_set(err, REALM_E_FORMAT, "a string is not UTF-8 or holds a NUL byte");
    memcpy(l->text + l->len, text, len);
    l->text[l->len + len] = '\0';
    l->len += (uint32_t)len + 1;
    l->n++;
    return REALM_OK;
}

bool realm_strings_unset_env(realm_strings *l, const char *name, size_t len) {
    for (uint32_t at = 0; at < l->len;) {
        uint32_t size = (uint32_t)strlen(l->text + at) + 1;
        if (size > len && !memcmp(l->text + at, name, len) && l->text[at + len] == '=') {
            memmove(l->text + at, l->text + at + size, l->len - at - size);
            l->len -= size;
            l->n--;
            return true;
        }
        at += size;
    }
    return false;
}

realm_status realm_strings_set_env(realm_strings *l, const char *text, size_t len, realm_error *err) {
    const char *equals = memchr(text, '=', len);
    char shown[96];
    if (!equals || equals == text)
        return realm_error_set(err, REALM_E_INVALID, "\"%s\" is not of the form NAME=VALUE",
                               realm_escape(shown, sizeof shown, text, len));
    (void)realm_strings_unset_env(l, text, (size_t)(equals - text));
    return realm_strings_add(l, text, len, err);
}

static realm_status write_strings(db *d, int64_t id, int kind, const realm_strings *l, realm_error *err) {
    sqlite3_stmt *st;
    realm_status s = db_prepare(d, "DELETE FROM tenant_string WHERE tenant_id = ?1 AND kind = ?2", &st, err);
    if (s != REALM_OK) return s;
    sqlite3_bind_int64(st, 1, id);
    sqlite3_bind_int(st, 2, kind);
    s = db_run(d, st, err);
    for (uint32_t i = 0, at = 0; s == REALM_OK && i < l->n; i++) {
        if ((s = db_prepare(d, "INSERT INTO tenant_string VALUES(?1, ?2, ?3, ?4)", &st, err)) != REALM_OK) break;
        sqlite3_bind_int64(st, 1, id);
        sqlite3_bind_int(st, 2, kind);
        sqlite3_bind_int64(st, 3, i);
        db_bind_text(st, 4, l->text + at);
        s = db_run(d, st, err);
        at += (uint32_t)strlen(l->text + at) + 1;
    }
    return s;
}

static realm_status read_strings(db *d, int64_t id, int kind, realm_strings *l, realm_error *err) {
    sqlite3_stmt *st;
    bool row;
    l->n = l->len = 0;
    realm_status s =
        db_prepare(d, "SELECT value FROM tenant_string WHERE tenant_id = ?1 AND kind = ?2 ORDER BY place", &st, err);
    if (s != REALM_OK) return s;
    sqlite3_bind_int64(st, 1, id);
    sqlite3_bind_int(st, 2, kind);
    while ((s = db_step(d, st, &row, err)) == REALM_OK && row) {
        const char *text = (const char *)sqlite3_column_text(st, 0);
        if ((s = realm_strings_add(l, text ? text : "", text ? strlen(text) : 0, err)) != REALM_OK) break;
    }
    sqlite3_reset(st);
    sqlite3_clear_bindings(st);
    return s;
}

#define TENANT_COLUMNS "id, name, program, created_s"

static realm_status fill_row(db *d, sqlite3_stmt *st, realm_tenant_row *out, realm_error *err) {
    out->id = sqlite3_column_int64(st, 0);
    db_copy_text(st, 1, out->name, sizeof out->name);
    db_copy_text(st, 2, out->program_sha256, sizeof out->program_sha256);
    out->created_s = sqlite3_column_int64(st, 3);
    realm_status s = read_limits(d, out->id, &out->limits, err);
    if (s == REALM_OK) s = read_strings(d, out->id, STRINGS_ARGS, &out->args, err);
    return s == REALM_OK ? read_strings(d, out->id, STRINGS_ENV, &out->env, err) : s;
}

/* The caller holds the lock. */
static realm_status find_locked(db *d, const char *name, realm_tenant_row *out, realm_error *err) {
    sqlite3_stmt *st;
    bool row;
    realm_status s = db_prepare(d, "SELECT " TENANT_COLUMNS " FROM tenant WHERE name = ?1 AND deleted_s = 0", &st, err);
    if (s != REALM_OK) return s;
    db_bind_text(st, 1, name);
    s = db_step(d, st, &row, err);
    if (s == REALM_OK) s = row ? fill_row(d, st, out, err) : no_such(name, err);
    sqlite3_reset(st);
    sqlite3_clear_bindings(st);
    return s;
}

realm_status realm_store_tenant_create(realm_store *store, const char *name, const realm_limits *limits,
                                       const void *program, size_t program_len, realm_tenant_row *out,
                                       realm_error *err) {
    db *d = &store->write;
    sqlite3_stmt *st;
    realm_tenant_row row = {.created_s = realm_clock_wall_s()};
    realm_status s = check_name(name, err);
    if (s != REALM_OK) return s;
    if ((s = db_transaction(d, err)) != REALM_OK) return s;
    s = db_prepare(d, "INSERT INTO tenant(name, created_s) VALUES(?1, ?2)", &st, err);
    if (s == REALM_OK) {
        db_bind_text(st, 1, name);
        sqlite3_bind_int64(st, 2, row.created_s);
        s = db_run(d, st, err);
        if (s == REALM_E_EXISTS) realm_error_set(err, s, "a tenant called \"%s\" exists", name);
    }
    if (s == REALM_OK) {
        row.id = sqlite3_last_insert_rowid(d->h);
        snprintf(row.name, sizeof row.name, "%s", name);
        if (limits)
            row.limits = *limits;
        else
            realm_limits_init(&row.limits);
        s = write_limits(d, row.id, &row.limits, err);
    }
    if (s == REALM_OK && program && program_len > 0)
        s = write_program(d, row.id, program, program_len, row.program_sha256, err);
    if (s == REALM_OK) atomic_fetch_add(&store->local_changes, 1);
    s = db_finish(d, s, err);
    if (s == REALM_OK && out) *out = row;
    return s;
}

realm_status realm_store_tenant_find(realm_store *store, const char *name, realm_tenant_row *out, realm_error *err) {
    db *d = store->finder;
    realm_mutex_lock(&d->mu);
    realm_status s = find_locked(d, name, out, err);
    realm_mutex_unlock(&d->mu);
    return s;
}

realm_status realm_store_tenant_get(realm_store *store, int64_t id, realm_tenant_row *out, realm_error *err) {
    db *d = store->finder;
    sqlite3_stmt *st;
    bool row;
    realm_status s = db_begin(d, "SELECT " TENANT_COLUMNS " FROM tenant WHERE id = ?1 AND deleted_s = 0", &st, err);
    if (s != REALM_OK) return s;
    sqlite3_bind_int64(st, 1, id);
    s = db_step(d, st, &row, err);
    if (s == REALM_OK)
        s = row ? fill_row(d, st, out, err)
                : realm_error_set(err, REALM_E_NOT_FOUND, "tenant %lld is gone", (long long)id);
    db_end(d, st);
    return s;
}

realm_status realm_store_tenant_set(realm_store *store, const char *name, const realm_limits *limits,
                                    const void *program, size_t program_len, realm_error *err) {
    db *d = &store->write;
    realm_tenant_row row;
    realm_status s = db_transaction(d, err);
    if (s != REALM_OK) return s;
    s = find_locked(d, name, &row, err);
    if (s == REALM_OK && limits) s = write_limits(d, row.id, limits, err);
    if (s == REALM_OK && program) s = write_program(d, row.id, program, program_len, row.program_sha256, err);
    if (s == REALM_OK && program) s = drop_unused_programs(d, err);
    if (s == REALM_OK) atomic_fetch_add(&store->local_changes, 1);
    return db_finish(d, s, err);
}

realm_status realm_store_tenant_set_strings(realm_store *store, const char *name, const realm_strings *args,
                                            const realm_strings *env, realm_error *err) {
    db *d = &store->write;
    realm_tenant_row row;
    realm_status s = db_transaction(d, err);
    if (s != REALM_OK) return s;
    s = find_locked(d, name, &row, err);
    if (s == REALM_OK && args) s = write_strings(d, row.id, STRINGS_ARGS, args, err);
    if (s == REALM_OK && env) s = write_strings(d, row.id, STRINGS_ENV, env, err);
    if (s == REALM_OK) atomic_fetch_add(&store->local_changes, 1);
    return db_finish(d, s, err);
}

realm_status realm_store_tenant_delete(realm_store *store, const char *name, realm_error *err) {
    db *d = &store->write;
    sqlite3_stmt *st;
    realm_tenant_row row;
    realm_status s = db_transaction(d, err);
    if (s != REALM_OK) return s;
    s = find_locked(d, name, &row, err);
    static const char *const steps[] = {"UPDATE tenant SET deleted_s = ?2 WHERE id = ?1",
                                        "UPDATE api_key SET revoked_s = ?2 WHERE tenant_id = ?1 AND revoked_s = 0"};
    for (size_t i = 0; i < REALM_ARRAY_LEN(steps) && s == REALM_OK; i++) {
        if ((s = db_prepare(d, steps[i], &st, err)) != REALM_OK) break;
        sqlite3_bind_int64(st, 1, row.id);
        sqlite3_bind_int64(st, 2, realm_clock_wall_s());
        s = db_run(d, st, err);
    }
    if (s == REALM_OK) s = drop_unused_programs(d, err);
    if (s == REALM_OK) atomic_fetch_add(&store->local_changes, 1);
    s = db_finish(d, s, err);
    /* Should this fail or the process end here, the next opening of the store does it. */
    return s == REALM_OK ? data_forget(store, row.id, err) : s;
}

realm_status realm_store_tenant_each(realm_store *store, bool (*fn)(void *user, const realm_tenant_row *row),
                                     void *user, realm_error *err) {
    /* One row at a time by name, so that fn may use the store. */
    db *d = store->reader;
    char after[REALM_TENANT_NAME_MAX + 1] = "";
    for (;;) {
        sqlite3_stmt *st;
        bool row;
        realm_tenant_row r;
        realm_status s =
            db_begin(d, "SELECT " TENANT_COLUMNS " FROM tenant WHERE name > ?1 AND deleted_s = 0 ORDER BY name LIMIT 1",
                     &st, err);
        if (s != REALM_OK) return s;
        db_bind_text(st, 1, after);
        s = db_step(d, st, &row, err);
        if (s == REALM_OK && row) s = fill_row(d, st, &r, err);
        db_end(d, st);
        if (s != REALM_OK || !row) return s;
        if (!fn(user, &r)) return REALM_OK;
        memcpy(after, r.name, sizeof after);
    }
}

realm_status realm_store_program_get(realm_store *store, const char *sha256, void **wasm, size_t *len,
                                     realm_error *err) {
    db *d = store->reader;
    sqlite3_stmt *st;
    bool row;
    realm_status s = db_begin(d, "SELECT wasm FROM program WHERE sha256 = ?1", &st, err);
    if (s != REALM_OK) return s;
    db_bind_text(st, 1, sha256);
    s = db_step(d, st, &row, err);
    if (s == REALM_OK && !row) s = realm_error_set(err, REALM_E_NOT_FOUND, "no program %s in the store", sha256);
    if (s == REALM_OK) {
        size_t n = (size_t)sqlite3_column_bytes(st, 0);
        void *p = realm_malloc(n);
        if (p && n) memcpy(p, sqlite3_column_blob(st, 0), n);
        if (!p) s = realm_error_set(err, REALM_E_NOMEM, "store: out of memory");
        *wasm = p;
        *len = n;
    }
    db_end(d, st);
    return s;
}
