/* store/ledger.c - what each tenant used, by the minute, and the engine's own counters.
 *
 * Deltas of all tenants and of the engine go in with one transaction, each counter of theirs taken at one moment, so at
 * any time, after kill -9 too, the tenants' sum equals the engine's counters. Where somebody else is writing the file,
 * the deltas wait beside it (late.c), likewise all or none.
 */
#include <string.h>

#include "base/clock.h"
#include "store/db.h"

void realm_usage_add(realm_usage *sum, const realm_usage *delta) {
#define ADD(field) sum->field += delta->field;
    REALM_USAGE_FIELDS(ADD)
#undef ADD
}

/* Columns of a query from `at` on, in the order of REALM_USAGE_FIELDS. */
static realm_usage take_columns(sqlite3_stmt *st, int at) {
    realm_usage u;
#define TAKE(field) u.field = (uint64_t)sqlite3_column_int64(st, at++);
    REALM_USAGE_FIELDS(TAKE)
#undef TAKE
    return u;
}

/* Parameters from `at` on, likewise. */
static void bind_columns(sqlite3_stmt *st, int at, const realm_usage *u){
#define BIND(field) sqlite3_bind_int64(st, at++, (int64_t)u->field);
    REALM_USAGE_FIELDS(BIND)
#undef BIND
}

realm_status ledger_add(db *d, const late_row *rows, size_t n, const realm_usage *engine, realm_error *err) {
    sqlite3_stmt *st;
    realm_status s = REALM_OK;
    for (size_t i = 0; i < n && s == REALM_OK; i++) {
        s = db_prepare(d,
                       "INSERT INTO ledger(tenant_id, minute_s, requests, prompt, cached, completion, aborted,"
                       " program_cpu_ns, tensor_ns) VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)"
                       " ON CONFLICT DO UPDATE SET requests = requests + ?3, prompt = prompt + ?4,"
                       " cached = cached + ?5, completion = completion + ?6, aborted = aborted + ?7,"
                       " program_cpu_ns = program_cpu_ns + ?8, tensor_ns = tensor_ns + ?9",
                       &st, err);
        if (s != REALM_OK) break;
        sqlite3_bind_int64(st, 1, rows[i].tenant_id);
        sqlite3_bind_int64(st, 2, rows[i].minute_s);
        bind_columns(st, 3, &rows[i].usage);
        s = db_run(d, st, err);
    }
    if (s == REALM_OK && engine)
        s = db_prepare(d,
                       "UPDATE engine_counter SET prompt = prompt + ?1, cached = cached + ?2,"
                       " completion = completion + ?3, program_cpu_ns = program_cpu_ns + ?4,"
                       " tensor_ns = tensor_ns + ?5 WHERE id = 1",
                       &st, err);
    if (s == REALM_OK && engine) {
        sqlite3_bind_int64(st, 1, (int64_t)engine->prompt_tokens);
        sqlite3_bind_int64(st, 2, (int64_t)engine->cached_tokens);
        sqlite3_bind_int64(st, 3, (int64_t)engine->completion_tokens);
        sqlite3_bind_int64(st, 4, (int64_t)engine->program_cpu_ns);
        sqlite3_bind_int64(st, 5, (int64_t)engine->tensor_ns);
        s = db_run(d, st, err);
    }
    return s;
}

/* What waits goes in with what is new. */
static realm_status write_now(realm_store *store, const realm_usage_entry *entries, size_t n, int64_t minute_s,
                              const realm_usage *engine, realm_error *err) {
    db *d = store->ledger;
    realm_status s = db_transaction(d, err);
    if (s != REALM_OK) return s;
    s = late_add(store, d, err);
    for (size_t i = 0; i < n && s == REALM_OK; i++) {
        const late_row row = {entries[i].tenant_id, minute_s, entries[i].delta};
        s = ledger_add(d, &row, 1, NULL, err);
    }
    if (s == REALM_OK) s = ledger_add(d, NULL, 0, engine, err);
    if ((s = db_finish(d, s, err)) == REALM_OK) late_done(store);
    return s;
}

realm_status realm_store_usage_add(realm_store *store, const realm_usage_entry *entries, size_t n,
                                   const realm_usage *engine, realm_error *err) {
    const int64_t minute_s = realm_clock_wall_s() / 60 * 60;
    realm_mutex_lock(&store->late.mu);
    realm_status s = write_now(store, entries, n, minute_s, engine, err);
    if (s == REALM_E_BUSY && store->dir) {
        realm_error_clear(err);
        s = late_keep(store, entries, n, minute_s, engine, err);
    }
    realm_mutex_unlock(&store->late.mu);
    return s;
}

bool realm_store_usage_waits(realm_store *store) {
    realm_mutex_lock(&store->late.mu);
    bool waits = store->late.n > 0;
    realm_mutex_unlock(&store->late.mu);
    return waits;
}

realm_status realm_store_usage_each(realm_store *store, const char *tenant, int64_t since_s,
                                    bool (*fn)(void *user, const char *name, const realm_usage *u), void *user,
                                    realm_error *err) {
    /* One statement, so all rows are of one moment. Summed by tenant in the order in which the ledger lies, then by
     * name: tenants that share one over time (one deleted, one new) are one line. */
    db *d = store->reader;
    sqlite3_stmt *st;
    bool row, more = true;
    realm_status s = db_begin(d,
                              "SELECT name, sum(requests), sum(prompt), sum(cached), sum(completion), sum(aborted),"
                              " sum(program_cpu_ns), sum(tensor_ns) FROM"
                              " (SELECT t.name, t.deleted_s, l.tenant_id, sum(l.requests) requests,"
                              "   sum(l.prompt) prompt, sum(l.cached) cached, sum(l.completion) completion,"
                              "   sum(l.aborted) aborted, sum(l.program_cpu_ns) program_cpu_ns,"
                              "   sum(l.tensor_ns) tensor_ns"
                              "  FROM tenant t LEFT JOIN ledger l ON l.tenant_id = t.id AND l.minute_s >= ?1"
                              "  WHERE ?2 IS NULL OR t.name = ?2 GROUP BY t.id)"
                              " WHERE deleted_s = 0 OR tenant_id IS NOT NULL GROUP BY name ORDER BY name",
                              &st, err);
    if (s != REALM_OK) return s;
    sqlite3_bind_int64(st, 1, since_s / 60 * 60);
    if (tenant) db_bind_text(st, 2, tenant);
    while (more && (s = db_step(d, st, &row, err)) == REALM_OK && row) {
        char name[REALM_TENANT_NAME_MAX + 1];
        db_copy_text(st, 0, name, sizeof name);
        const realm_usage u = take_columns(st, 1); /* the sum of no rows is NULL, which reads as 0 */
        more = fn(user, name, &u);
    }
    db_end(d, st);
    return s;
}

realm_status realm_store_usage_engine(realm_store *store, realm_usage *out, realm_error *err) {
    db *d = store->reader;
    sqlite3_stmt *st;
    bool row;
    *out = (realm_usage){0};
    realm_status s =
        db_begin(d, "SELECT 0, prompt, cached, completion, 0, program_cpu_ns, tensor_ns FROM engine_counter", &st, err);
    if (s != REALM_OK) return s;
    s = db_step(d, st, &row, err);
    if (s == REALM_OK && row) *out = take_columns(st, 0);
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
