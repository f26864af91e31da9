/* store/ledger.c - what each tenant used, by the minute, and the engine's own counters.
 *
 * Deltas of all tenants and of the engine go in with one transaction, taken from the engine at one step boundary, so at
 * any moment, after kill -9 too, the tenants' sum equals the engine's counters.
 */
#include <string.h>

#include "base/clock.h"
#include "store/db.h"

static void add_columns(sqlite3_stmt *st, int from, realm_usage *u) {
    u->requests += (uint64_t)sqlite3_column_int64(st, from);
    u->aborted_requests += (uint64_t)sqlite3_column_int64(st, from + 1);
    u->prompt_tokens += (uint64_t)sqlite3_column_int64(st, from + 2);
    u->cached_tokens += (uint64_t)sqlite3_column_int64(st, from + 3);
    u->completion_tokens += (uint64_t)sqlite3_column_int64(st, from + 4);
}

realm_status realm_store_usage_add(realm_store *store, const realm_usage_entry *entries, size_t n,
                                   const realm_usage *engine, realm_error *err) {
    db *d = &store->write;
    sqlite3_stmt *st;
    int64_t minute_s = realm_clock_wall_s() / 60 * 60;
    realm_status s = db_transaction(d, err);
    if (s != REALM_OK) return s;
    for (size_t i = 0; i < n && s == REALM_OK; i++) {
        const realm_usage *u = &entries[i].delta;
        s = db_prepare(d,
                       "INSERT INTO ledger VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT DO UPDATE SET"
                       " requests = requests + ?3, aborted = aborted + ?4, prompt = prompt + ?5,"
                       " cached = cached + ?6, completion = completion + ?7",
                       &st, err);
        if (s != REALM_OK) break;
        sqlite3_bind_int64(st, 1, entries[i].tenant_id);
        sqlite3_bind_int64(st, 2, minute_s);
        sqlite3_bind_int64(st, 3, (int64_t)u->requests);
        sqlite3_bind_int64(st, 4, (int64_t)u->aborted_requests);
        sqlite3_bind_int64(st, 5, (int64_t)u->prompt_tokens);
        sqlite3_bind_int64(st, 6, (int64_t)u->cached_tokens);
        sqlite3_bind_int64(st, 7, (int64_t)u->completion_tokens);
        s = db_run(d, st, err);
    }
    if (s == REALM_OK && engine)
        s = db_prepare(d,
                       "UPDATE engine_counter SET prompt = prompt + ?1, cached = cached + ?2,"
                       " completion = completion + ?3 WHERE id = 1",
                       &st, err);
    if (s == REALM_OK && engine) {
        sqlite3_bind_int64(st, 1, (int64_t)engine->prompt_tokens);
        sqlite3_bind_int64(st, 2, (int64_t)engine->cached_tokens);
        sqlite3_bind_int64(st, 3, (int64_t)engine->completion_tokens);
        s = db_run(d, st, err);
    }
    return db_finish(d, s, err);
}

realm_status realm_store_usage_each(realm_store *store, const char *tenant, int64_t since_s,
                                    bool (*fn)(void *user, const char *name, const realm_usage *u), void *user,
                                    realm_error *err) {
    /* Tenants that share a name over time (one deleted, one new) are one line. */
    db *d = store->reader;
    char after[REALM_TENANT_NAME_MAX + 1] = "";
    for (;;) {
        sqlite3_stmt *st;
        bool row;
        realm_usage u = {0};
        realm_status s = db_begin(d,
                                  "SELECT t.name, ifnull(sum(l.requests), 0), ifnull(sum(l.aborted), 0),"
                                  " ifnull(sum(l.prompt), 0), ifnull(sum(l.cached), 0), ifnull(sum(l.completion), 0)"
                                  " FROM tenant t LEFT JOIN ledger l ON l.tenant_id = t.id AND l.minute_s >= ?2"
                                  " WHERE t.name > ?1 AND (?3 IS NULL OR t.name = ?3)"
                                  " AND (t.deleted_s = 0 OR l.tenant_id IS NOT NULL)"
                                  " GROUP BY t.name ORDER BY t.name LIMIT 1",
                                  &st, err);
        if (s != REALM_OK) return s;
        db_bind_text(st, 1, after);
        sqlite3_bind_int64(st, 2, since_s / 60 * 60);
        if (tenant) db_bind_text(st, 3, tenant);
        s = db_step(d, st, &row, err);
        if (s == REALM_OK && row) {
            db_copy_text(st, 0, after, sizeof after);
            add_columns(st, 1, &u);
        }
        db_end(d, st);
        if (s != REALM_OK || !row) return s;
        if (!fn(user, after, &u)) return REALM_OK;
    }
}

realm_status realm_store_usage_engine(realm_store *store, realm_usage *out, realm_error *err) {
    db *d = store->reader;
    sqlite3_stmt *st;
    bool row;
    *out = (realm_usage){0};
    realm_status s = db_begin(d, "SELECT 0, 0, prompt, cached, completion FROM engine_counter", &st, err);
    if (s != REALM_OK) return s;
    s = db_step(d, st, &row, err);
    if (s == REALM_OK && row) add_columns(st, 0, out);
    db_end(d, st);
    return s;
}

realm_status realm_store_usage_tokens(realm_store *store, int64_t tenant_id, int64_t since_s, uint64_t *tokens,
                                      realm_error *err) {
    db *d = store->reader;
    sqlite3_stmt *st;
    bool row;
    realm_status s = db_begin(
        d, "SELECT ifnull(sum(prompt + completion), 0) FROM ledger WHERE tenant_id = ?1 AND minute_s >= ?2", &st, err);
    if (s != REALM_OK) return s;
    sqlite3_bind_int64(st, 1, tenant_id);
    sqlite3_bind_int64(st, 2, since_s / 60 * 60);
    s = db_step(d, st, &row, err);
    if (s == REALM_OK) *tokens = row ? (uint64_t)sqlite3_column_int64(st, 0) : 0;
    db_end(d, st);
    return s;
}
