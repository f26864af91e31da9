/* Tenants, keys and the ledger on a store on disk: what is written is read back by another connection, what is wrong is
 * refused by name, and a process that dies in the middle leaves sums that agree. */
#include <dirent.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>
#include <sqlite3.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/file.h"
#include "store/db.h"
#include "support/scratch.h"

static char dir[SCRATCH_MAX];

static int make_dir(void **state) {
    (void)state;
    snprintf(dir, sizeof dir, "store");
    return scratch_dir(dir) ? 0 : -1;
}

static int remove_dir(void **state) {
    (void)state;
    char cmd[96];
    snprintf(cmd, sizeof cmd, "rm -rf '%s'", dir);
    return system(cmd);
}

static realm_store *open_store(void) {
    realm_store *s = NULL;
    realm_error err = {0};
    if (realm_store_open(&s, dir, &err) != REALM_OK) fail_msg("%s", err.text);
    return s;
}

static bool count_rows(void *user, const realm_tenant_row *row) {
    (void)row;
    ++*(int *)user;
    return true;
}

static void tenants_are_kept(void **state) {
    (void)state;
    realm_store *a = open_store(), *b = open_store();
    realm_error err = {0};
    realm_limits l;
    realm_limits_init(&l);
    assert_int_equal(realm_limits_set(&l, "kv_tokens", "4096", &err), REALM_OK);
    assert_int_equal(realm_limits_set(&l, "no_such", "1", &err), REALM_E_NOT_FOUND);
    static const char *const bad[] = {"", "-1", "1.5", " 1", "99999999999999999999", "0x10", "1k"};
    for (size_t i = 0; i < REALM_ARRAY_LEN(bad); i++)
        assert_int_equal(realm_limits_set(&l, "generations", bad[i], &err), REALM_E_RANGE);

    uint64_t v0, v1;
    assert_int_equal(realm_store_version(b, &v0, &err), REALM_OK);
    realm_tenant_row row, got;
    assert_int_equal(realm_store_tenant_create(a, "alpha", &l, "\0asm", 4, &row, &err), REALM_OK);
    assert_int_equal(realm_store_version(b, &v1, &err), REALM_OK);
    assert_true(v0 != v1);
    assert_int_equal(realm_store_tenant_create(b, "alpha", NULL, NULL, 0, NULL, &err), REALM_E_EXISTS);
    static const char *const bad_names[] = {"", ".a", "a b", "-a", "../x", "a'; DROP TABLE tenant;--", "\xff"};
    for (size_t i = 0; i < REALM_ARRAY_LEN(bad_names); i++)
        assert_int_equal(realm_store_tenant_create(a, bad_names[i], NULL, NULL, 0, NULL, &err), REALM_E_INVALID);
    assert_int_equal(realm_store_tenant_find(b, "alpha", &got, &err), REALM_OK);
    assert_int_equal(got.id, row.id);
    assert_int_equal(got.limits.kv_tokens, 4096);
    assert_int_equal(got.limits.generations, 64);
    void *wasm;
    size_t len;
    assert_int_equal(realm_store_program_get(b, got.program_sha256, &wasm, &len, &err), REALM_OK);
    assert_int_equal(len, 4);
    assert_memory_equal(wasm, "\0asm", 4);
    realm_free(wasm);
    assert_int_equal(realm_store_tenant_set(b, "alpha", NULL, "", 0, &err), REALM_OK);
    assert_int_equal(realm_store_program_get(b, got.program_sha256, &wasm, &len, &err), REALM_E_NOT_FOUND);
    assert_int_equal(realm_store_tenant_create(a, "beta", NULL, NULL, 0, NULL, &err), REALM_OK);
    int n = 0;
    assert_int_equal(realm_store_tenant_each(b, count_rows, &n, &err), REALM_OK);
    assert_int_equal(n, 2);
    assert_int_equal(realm_store_tenant_delete(a, "beta", &err), REALM_OK);
    assert_int_equal(realm_store_tenant_delete(a, "beta", &err), REALM_E_NOT_FOUND);
    assert_int_equal(realm_store_tenant_find(b, "beta", &got, &err), REALM_E_NOT_FOUND);
    realm_store_close(a);
    realm_store_close(b);
}

/* Also in a folder that others may look into. */
static void files_are_for_their_owner_alone(void **state) {
    (void)state;
    const mode_t before = umask(022);
    assert_int_equal(chmod(dir, 0755), 0);
    realm_store *s = open_store();
    assert_int_equal(realm_store_tenant_create(s, "owner", NULL, NULL, 0, NULL, NULL), REALM_OK);
    umask(before);
    DIR *d = opendir(dir);
    assert_non_null(d);
    int n = 0;
    for (struct dirent *e; (e = readdir(d));) {
        struct stat st;
        if (e->d_name[0] == '.') continue;
        assert_int_equal(fstatat(dirfd(d), e->d_name, &st, 0), 0);
        if (st.st_mode & 077) fail_msg("%s: %o", e->d_name, (unsigned)st.st_mode & 0777);
        n++;
    }
    closedir(d);
    assert_true(n >= 5); /* two databases, what SQLite has beside them, the secret; no name that was for a moment */
    realm_store_close(s);
}

static void keys_open_and_close(void **state) {
    (void)state;
    realm_store *a = open_store(), *b = open_store();
    realm_error err = {0};
    char key[REALM_KEY_TEXT_MAX], key2[REALM_KEY_TEXT_MAX], admin[REALM_KEY_TEXT_MAX];
    realm_key_row row, got;
    assert_int_equal(realm_store_tenant_create(a, "keys", NULL, NULL, 0, NULL, &err), REALM_OK);
    assert_int_equal(realm_store_key_create(a, "keys", false, 0, key, &row, &err), REALM_OK);
    assert_int_equal(realm_store_key_create(a, "keys", false, 0, key2, NULL, &err), REALM_OK);
    assert_int_equal(realm_store_key_create(a, NULL, true, 0, admin, NULL, &err), REALM_OK);
    assert_string_not_equal(key, key2);
    assert_int_equal(realm_store_key_create(a, "nobody", false, 0, key2, NULL, &err), REALM_E_NOT_FOUND);
    assert_int_equal(realm_store_key_find(b, key, strlen(key), &got, &err), REALM_OK);
    assert_string_equal(got.tenant, "keys");
    assert_false(got.admin);
    assert_int_equal(realm_store_key_find(b, admin, strlen(admin), &got, &err), REALM_OK);
    assert_true(got.admin);
    for (size_t i = 0; key[i]; i++) {
        char changed[REALM_KEY_TEXT_MAX];
        memcpy(changed, key, sizeof changed);
        changed[i] ^= 1;
        assert_int_equal(realm_store_key_find(b, changed, strlen(changed), &got, &err), REALM_E_UNAUTHENTICATED);
    }
    assert_int_equal(realm_store_key_find(b, "' OR 1=1 --", 11, &got, &err), REALM_E_UNAUTHENTICATED);
    assert_int_equal(realm_store_key_find(b, row.id, strlen(row.id), &got, &err), REALM_E_UNAUTHENTICATED);
    assert_int_equal(realm_store_key_revoke(b, row.id, &err), REALM_OK);
    assert_int_equal(realm_store_key_find(a, key, strlen(key), &got, &err), REALM_E_UNAUTHENTICATED);
    assert_int_equal(realm_store_key_revoke(b, key, &err), REALM_E_NOT_FOUND);

    assert_int_equal(realm_store_key_create(a, "keys", false, realm_clock_wall_s() - 1, key, NULL, &err), REALM_OK);
    assert_int_equal(realm_store_key_find(a, key, strlen(key), &got, &err), REALM_E_UNAUTHENTICATED);

    assert_int_equal(realm_store_key_import(a, "keys", "too-short", &err), REALM_E_RANGE);
    assert_int_equal(realm_store_key_import(a, "keys", "a chosen key of some length", &err), REALM_E_INVALID);
    for (int twice = 0; twice < 2; twice++)
        assert_int_equal(realm_store_key_import(a, "keys", "a-chosen-key-of-some-length", &err), REALM_OK);
    assert_int_equal(realm_store_tenant_create(a, "other", NULL, NULL, 0, NULL, &err), REALM_OK);
    assert_int_equal(realm_store_key_import(a, "other", "a-chosen-key-of-some-length", &err), REALM_E_EXISTS);
    assert_int_equal(realm_store_tenant_delete(a, "keys", &err), REALM_OK);
    assert_int_equal(realm_store_key_find(a, "a-chosen-key-of-some-length", 27, &got, &err), REALM_E_UNAUTHENTICATED);
    /* also one that was made at the moment of the deletion, and so not revoked by it */
    char path[96];
    sqlite3 *h;
    snprintf(path, sizeof path, "%s/realm.db", dir);
    assert_int_equal(sqlite3_open(path, &h), SQLITE_OK);
    assert_int_equal(sqlite3_exec(h, "UPDATE api_key SET revoked_s = 0", NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(h);
    assert_int_equal(realm_store_key_find(a, "a-chosen-key-of-some-length", 27, &got, &err), REALM_E_UNAUTHENTICATED);
    assert_int_equal(realm_store_key_find(a, admin, strlen(admin), &got, &err), REALM_OK);
    realm_store_close(a);
    realm_store_close(b);
}

typedef struct lookup { /* what begins every request, on a thread of its own */
    realm_store *store;
    const char *key;
    realm_mutex mu;
    realm_cond moved;
    bool done;
    realm_status status;
} lookup;

static void *look_up(void *arg) {
    lookup *l = arg;
    realm_key_row key;
    realm_tenant_row tenant;
    realm_status s = realm_store_key_find(l->store, l->key, strlen(l->key), &key, NULL);
    if (s == REALM_OK) s = realm_store_tenant_get(l->store, key.tenant_id, &tenant, NULL);
    realm_mutex_lock(&l->mu);
    l->status = s;
    l->done = true;
    realm_cond_signal(&l->moved);
    realm_mutex_unlock(&l->mu);
    return NULL;
}

/* While somebody reads on, as the sum of a year of the ledger does, keys are found. */
static void keys_wait_for_no_reader(void **state) {
    (void)state;
    realm_store *a = open_store();
    realm_error err = {0};
    char key[REALM_KEY_TEXT_MAX];
    lookup l = {.store = a, .key = key};
    pthread_t t;
    sqlite3_stmt *st;
    assert_int_equal(realm_store_tenant_create(a, "keys", NULL, NULL, 0, NULL, &err), REALM_OK);
    assert_int_equal(realm_store_key_create(a, "keys", false, 0, key, NULL, &err), REALM_OK);
    realm_mutex_init(&l.mu, REALM_RANK_LEAF);
    realm_cond_init(&l.moved);
    assert_int_equal(db_begin(a->reader, "SELECT count(*) FROM ledger", &st, &err), REALM_OK);
    assert_int_equal(realm_thread_start(&t, "look-up", look_up, &l, &err), REALM_OK);
    const uint64_t until = realm_clock_ns() + 20 * REALM_NS_PER_S;
    realm_mutex_lock(&l.mu);
    while (!l.done && realm_cond_wait_until(&l.moved, &l.mu, until)) {
    }
    const bool in_time = l.done;
    realm_mutex_unlock(&l.mu);
    db_end(a->reader, st);
    pthread_join(t, NULL);
    assert_true(in_time);
    assert_int_equal(l.status, REALM_OK);
    realm_store_close(a);
}

static void secrets_stay_out_of_the_files(void **state) {
    (void)state;
    realm_store *a = open_store();
    realm_error err = {0};
    char key[REALM_KEY_TEXT_MAX], cmd[256], path[96];
    assert_int_equal(realm_store_tenant_create(a, "quiet", NULL, NULL, 0, NULL, &err), REALM_OK);
    assert_int_equal(realm_store_key_create(a, "quiet", false, 0, key, NULL, &err), REALM_OK);
    realm_store_close(a);
    snprintf(cmd, sizeof cmd, "grep -rqaF '%s' '%s'", key + 3, dir);
    assert_int_not_equal(system(cmd), 0);
    struct stat st;
    snprintf(path, sizeof path, "%s/secret", dir);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(realm_file_replace(path, "short", 5, 0600, &err), REALM_OK);
    assert_int_equal(realm_store_open(&a, dir, &err), REALM_E_FORMAT);
    assert_non_null(strstr(err.text, "secret"));
}

static const char *nth(const realm_strings *l, uint32_t n) {
    const char *at = l->text;
    while (n-- > 0) at += strlen(at) + 1;
    return at;
}

static void arguments_and_environment(void **state) {
    (void)state;
    realm_error err = {0};
    realm_strings args = {0}, env = {0};
    realm_tenant_row row;
    uint64_t before, after;
    realm_store *a = open_store();
    assert_int_equal(realm_store_tenant_create(a, "one", NULL, NULL, 0, &row, &err), REALM_OK);
    assert_int_equal(realm_store_tenant_find(a, "one", &row, &err), REALM_OK);
    assert_int_equal(row.args.n + row.env.n, 0);
    assert_int_equal(realm_strings_add(&args, "-v", 2, &err), REALM_OK);
    assert_int_equal(realm_strings_add(&args, "", 0, &err), REALM_OK);
    assert_int_equal(realm_strings_set_env(&env, "A=1", 3, &err), REALM_OK);
    assert_int_equal(realm_strings_set_env(&env, "AB==2", 5, &err), REALM_OK);
    assert_int_equal(realm_strings_set_env(&env, "A=3", 3, &err), REALM_OK); /* in place of the first */
    assert_int_equal(realm_store_version(a, &before, &err), REALM_OK);
    assert_int_equal(realm_store_tenant_set_strings(a, "one", &args, &env, &err), REALM_OK);
    assert_int_equal(realm_store_version(a, &after, &err), REALM_OK);
    assert_true(before != after); /* a server sees it */
    assert_int_equal(realm_store_tenant_set_strings(a, "two", &args, NULL, &err), REALM_E_NOT_FOUND);
    realm_store_close(a);
    a = open_store();
    assert_int_equal(realm_store_tenant_find(a, "one", &row, &err), REALM_OK);
    assert_int_equal(row.args.n, 2);
    assert_string_equal(nth(&row.args, 0), "-v");
    assert_string_equal(nth(&row.args, 1), "");
    assert_int_equal(row.env.n, 2);
    assert_string_equal(nth(&row.env, 0), "AB==2");
    assert_string_equal(nth(&row.env, 1), "A=3");
    assert_true(realm_strings_unset_env(&row.env, "AB", 2));
    assert_false(realm_strings_unset_env(&row.env, "AB", 2));
    args.n = args.len = 0;
    assert_int_equal(realm_store_tenant_set_strings(a, "one", &args, &row.env, &err), REALM_OK);
    assert_int_equal(realm_store_tenant_find(a, "one", &row, &err), REALM_OK);
    assert_int_equal(row.args.n, 0);
    assert_int_equal(row.env.n, 1);
    /* bounded, and text */
    assert_int_equal(realm_strings_set_env(&env, "=x", 2, &err), REALM_E_INVALID);
    assert_int_equal(realm_strings_set_env(&env, "x", 1, &err), REALM_E_INVALID);
    assert_int_equal(realm_strings_add(&args, "a\0b", 3, &err), REALM_E_FORMAT);
    assert_int_equal(realm_strings_add(&args, "\xff", 1, &err), REALM_E_FORMAT);
    for (uint32_t i = 0; i < REALM_STRINGS_MAX; i++) assert_int_equal(realm_strings_add(&args, "x", 1, &err), REALM_OK);
    assert_int_equal(realm_strings_add(&args, "x", 1, &err), REALM_E_LIMIT);
    char big[REALM_STRINGS_BYTES_MAX];
    memset(big, 'x', sizeof big);
    env.n = env.len = 0;
    assert_int_equal(realm_strings_add(&env, big, sizeof big, &err), REALM_E_LIMIT);
    assert_int_equal(realm_strings_add(&env, big, sizeof big - 1, &err), REALM_OK);
    assert_int_equal(realm_store_tenant_set_strings(a, "one", &args, &env, &err), REALM_OK);
    assert_int_equal(realm_store_tenant_find(a, "one", &row, &err), REALM_OK);
    assert_int_equal(row.args.n, REALM_STRINGS_MAX);
    assert_int_equal(row.env.len, REALM_STRINGS_BYTES_MAX);
    realm_store_close(a);
}

static bool sum_usage(void *user, const char *name, const realm_usage *u) {
    (void)name;
    realm_usage_add(user, u);
    return true;
}

/* A store of an earlier version gets what it lacks, and keeps what it has. These are the tables as those versions made
 * them, with a tenant and what it has used. */
static void older_store(void **state) {
    (void)state;
    static const char FIRST[] =
        "CREATE TABLE tenant(id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL,"
        " program TEXT NOT NULL DEFAULT '', created_s INTEGER NOT NULL, deleted_s INTEGER NOT NULL DEFAULT 0);"
        "CREATE UNIQUE INDEX tenant_name ON tenant(name) WHERE deleted_s = 0;"
        "CREATE TABLE tenant_limit(tenant_id INTEGER NOT NULL, name TEXT NOT NULL, value INTEGER NOT NULL,"
        " PRIMARY KEY(tenant_id, name)) WITHOUT ROWID;"
        "CREATE TABLE program(sha256 TEXT PRIMARY KEY, wasm BLOB NOT NULL) WITHOUT ROWID;"
        "CREATE TABLE api_key(id TEXT PRIMARY KEY, tenant_id INTEGER NOT NULL, admin INTEGER NOT NULL,"
        " mac BLOB NOT NULL, created_s INTEGER NOT NULL, expires_s INTEGER NOT NULL,"
        " revoked_s INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;"
        "CREATE TABLE ledger(tenant_id INTEGER NOT NULL, minute_s INTEGER NOT NULL, requests INTEGER NOT NULL,"
        " aborted INTEGER NOT NULL, prompt INTEGER NOT NULL, cached INTEGER NOT NULL, completion INTEGER NOT NULL,"
        " PRIMARY KEY(tenant_id, minute_s)) WITHOUT ROWID;"
        "CREATE TABLE engine_counter(id INTEGER PRIMARY KEY CHECK(id = 1), prompt INTEGER NOT NULL,"
        " cached INTEGER NOT NULL, completion INTEGER NOT NULL);"
        "INSERT INTO tenant VALUES(1, 'one', '', 1700000000, 0);"
        "INSERT INTO ledger VALUES(1, 1700000040, 3, 1, 100, 10, 50);"
        "INSERT INTO engine_counter VALUES(1, 100, 10, 50);"
        "PRAGMA user_version=1;";
    static const char SECOND[] =
        "CREATE TABLE tenant_string(tenant_id INTEGER NOT NULL, kind INTEGER NOT NULL, place INTEGER NOT NULL,"
        " value TEXT NOT NULL, PRIMARY KEY(tenant_id, kind, place)) WITHOUT ROWID;"
        "INSERT INTO tenant_string VALUES(1, 0, 0, '-v');"
        "PRAGMA user_version=2;";
    for (uint32_t version = 1; version <= 2; version++) {
        realm_error err = {0};
        realm_tenant_row row;
        char path[320];
        sqlite3 *h = NULL;
        snprintf(path, sizeof path, "%s/realm.db", dir);
        unlink(path);
        assert_int_equal(sqlite3_open(path, &h), SQLITE_OK);
        assert_int_equal(sqlite3_exec(h, FIRST, NULL, NULL, NULL), SQLITE_OK);
        if (version == 2) assert_int_equal(sqlite3_exec(h, SECOND, NULL, NULL, NULL), SQLITE_OK);
        sqlite3_close(h);
        for (int again = 0; again < 2; again++) { /* the second time there is nothing left to do */
            realm_store *a = open_store();
            realm_usage u = {0}, engine;
            assert_int_equal(realm_store_tenant_find(a, "one", &row, &err), REALM_OK);
            assert_int_equal(row.args.n, version - 1);
            realm_usage_entry e = {1, {.requests = 1, .program_cpu_ns = 7, .tensor_ns = 5}};
            if (realm_store_usage_add(a, &e, 1, &e.delta, &err)) fail_msg("%s", err.text);
            assert_int_equal(realm_store_usage_each(a, "one", 0, sum_usage, &u, &err), REALM_OK);
            assert_int_equal(realm_store_usage_engine(a, &engine, &err), REALM_OK);
            const uint64_t n = (uint64_t)again + 1;
            assert_int_equal(u.requests, 3 + n);
            assert_int_equal(u.aborted_requests, 1);
            assert_int_equal(u.prompt_tokens, 100);
            assert_int_equal(u.cached_tokens, 10);
            assert_int_equal(u.completion_tokens, 50);
            assert_int_equal(u.program_cpu_ns, 7 * n);
            assert_int_equal(u.tensor_ns, 5 * n);
            assert_int_equal(engine.prompt_tokens, 100);
            assert_int_equal(engine.program_cpu_ns, 7 * n);
            assert_int_equal(engine.tensor_ns, 5 * n);
            realm_store_close(a);
        }
    }
}

static void newer_store(void **state) {
    (void)state;
    realm_error err = {0};
    char path[320];
    sqlite3 *h = NULL;
    realm_store *a = open_store();
    realm_store_close(a);
    snprintf(path, sizeof path, "%s/realm.db", dir);
    assert_int_equal(sqlite3_open(path, &h), SQLITE_OK);
    assert_int_equal(sqlite3_exec(h, "PRAGMA user_version=1000", NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(h);
    assert_int_equal(realm_store_open(&a, dir, &err), REALM_E_UNSUPPORTED);
    assert_non_null(strstr(err.text, "schema 1000"));
}

static void ledger_agrees_after_kill(void **state) {
    (void)state;
    realm_error err = {0};
    realm_store *a = open_store();
    realm_tenant_row t[2];
    assert_int_equal(realm_store_tenant_create(a, "one", NULL, NULL, 0, &t[0], &err), REALM_OK);
    assert_int_equal(realm_store_tenant_create(a, "two", NULL, NULL, 0, &t[1], &err), REALM_OK);
    realm_store_close(a);
    uint64_t last = 0;
    for (int round = 0; round < 5; round++) {
        int ready[2];
        assert_int_equal(pipe(ready), 0);
        pid_t pid = fork();
        if (pid == 0) {
            realm_store *s = NULL;
            if (realm_store_open(&s, dir, NULL) != REALM_OK) _exit(1);
            for (uint64_t i = 0;; i++) {
                realm_usage_entry e[2] = {
                    {t[0].id, {.requests = 1, .prompt_tokens = 7, .completion_tokens = i, .program_cpu_ns = 2}},
                    {t[1].id, {.prompt_tokens = 3, .cached_tokens = 1, .program_cpu_ns = i}}};
                realm_usage total = {
                    .prompt_tokens = 10, .cached_tokens = 1, .completion_tokens = i, .program_cpu_ns = 2 + i};
                if (realm_store_usage_add(s, e, 2, &total, NULL) != REALM_OK) _exit(2);
                if (i == 20 && write(ready[1], "x", 1) != 1) _exit(3);
            }
        }
        char c;
        assert_int_equal(read(ready[0], &c, 1), 1);
        kill(pid, SIGKILL);
        int status;
        waitpid(pid, &status, 0);
        assert_true(WIFSIGNALED(status));
        close(ready[0]);
        close(ready[1]);
        a = open_store();
        realm_usage sum = {0}, engine = {0};
        assert_int_equal(realm_store_usage_each(a, NULL, 0, sum_usage, &sum, &err), REALM_OK);
        assert_int_equal(realm_store_usage_engine(a, &engine, &err), REALM_OK);
        assert_int_equal(sum.prompt_tokens, engine.prompt_tokens);
        assert_int_equal(sum.cached_tokens, engine.cached_tokens);
        assert_int_equal(sum.completion_tokens, engine.completion_tokens);
        assert_int_equal(sum.program_cpu_ns, engine.program_cpu_ns);
        assert_true(sum.requests >= last + 21);
        last = sum.requests;
        uint64_t tokens;
        realm_usage one = {0};
        assert_int_equal(realm_store_usage_tokens(a, t[0].id, 0, &tokens, &err), REALM_OK);
        assert_int_equal(realm_store_usage_each(a, "one", 0, sum_usage, &one, &err), REALM_OK);
        assert_int_equal(tokens, one.prompt_tokens + one.completion_tokens);
        realm_store_close(a);
    }
}

typedef struct report {
    sqlite3 *other;
    size_t n_rows;
    struct {
        char name[REALM_TENANT_NAME_MAX + 1];
        uint64_t requests;
    } rows[8];
} report;

/* Notes the row; meanwhile another process counts a request of each tenant. */
static bool note_and_count(void *user, const char *name, const realm_usage *u) {
    report *r = user;
    assert_true(r->n_rows < REALM_ARRAY_LEN(r->rows));
    snprintf(r->rows[r->n_rows].name, sizeof r->rows[r->n_rows].name, "%s", name);
    r->rows[r->n_rows++].requests = u->requests;
    assert_int_equal(sqlite3_exec(r->other, "UPDATE ledger SET requests = requests + 1", NULL, NULL, NULL), SQLITE_OK);
    return r->n_rows < REALM_ARRAY_LEN(r->rows);
}

/* A report over tenants is of one moment, whatever is counted while it is read; tenants that have shared a name are one
 * row, and one that was deleted without having used anything is none. */
static void a_report_is_of_one_moment(void **state) {
    (void)state;
    static const char *const names[] = {"c", "a", "b", "a"};
    report r = {0};
    char path[320];
    realm_store *a = open_store();
    snprintf(path, sizeof path, "%s/realm.db", dir);
    assert_int_equal(sqlite3_open(path, &r.other), SQLITE_OK);
    realm_tenant_row t;
    realm_error err = {0};
    for (size_t i = 0; i < REALM_ARRAY_LEN(names); i++) {
        assert_int_equal(realm_store_tenant_create(a, names[i], NULL, NULL, 0, &t, &err), REALM_OK);
        const realm_usage_entry e = {t.id, {.requests = 1}};
        assert_int_equal(realm_store_usage_add(a, &e, 1, NULL, &err), REALM_OK);
        if (i == 1) assert_int_equal(realm_store_tenant_delete(a, names[i], &err), REALM_OK);
    }
    assert_int_equal(realm_store_tenant_create(a, "idle", NULL, NULL, 0, &t, &err), REALM_OK);
    assert_int_equal(realm_store_tenant_create(a, "gone", NULL, NULL, 0, &t, &err), REALM_OK);
    assert_int_equal(realm_store_tenant_delete(a, "gone", &err), REALM_OK);
    uint64_t counted = 1;
    for (int round = 0; round < 3; round++) {
        r.n_rows = 0;
        assert_int_equal(realm_store_usage_each(a, NULL, 0, note_and_count, &r, &err), REALM_OK);
        assert_int_equal(r.n_rows, 4);
        static const char *const order[] = {"a", "b", "c", "idle"};
        const uint64_t requests[] = {2 * counted, counted, counted, 0};
        for (size_t i = 0; i < r.n_rows; i++) {
            assert_string_equal(r.rows[i].name, order[i]);
            assert_int_equal(r.rows[i].requests, requests[i]);
        }
        counted += r.n_rows;
    }
    r.n_rows = 0;
    assert_int_equal(realm_store_usage_each(a, "a", 0, note_and_count, &r, &err), REALM_OK);
    assert_int_equal(r.n_rows, 1);
    assert_int_equal(r.rows[0].requests, 2 * counted);
    r.n_rows = 0;
    assert_int_equal(realm_store_usage_each(a, NULL, INT64_C(1) << 40, note_and_count, &r, &err), REALM_OK);
    assert_int_equal(r.n_rows, 4);
    assert_int_equal(r.rows[0].requests, 0);
    r.n_rows = REALM_ARRAY_LEN(r.rows) - 1; /* it is full with the first */
    assert_int_equal(realm_store_usage_each(a, NULL, 0, note_and_count, &r, &err), REALM_OK);
    realm_store_close(a);
    sqlite3_close(r.other);
}

static void damaged_files_are_refused(void **state) {
    (void)state;
    realm_error err = {0};
    realm_store *a;
    char path[96], junk[8192];
    memset(junk, 'j', sizeof junk);
    snprintf(path, sizeof path, "%s/realm.db", dir);
    assert_int_equal(realm_file_replace(path, junk, sizeof junk, 0600, &err), REALM_OK);
    assert_int_equal(realm_store_open(&a, dir, &err), REALM_E_FORMAT);
    assert_int_equal(realm_store_open(&a, "/dev/null/x", &err), REALM_E_NOT_FOUND);
}

/* A file that was moved away or replaced takes no writes, which SQLite would make to nobody's file, until it is back.
 */
static void files_are_written_in_place(void **state) {
    (void)state;
    realm_error err = {0};
    realm_tenant_row t;
    char path[300], away[300];
    realm_store *a = open_store();
    assert_int_equal(realm_store_tenant_create(a, "one", NULL, NULL, 0, &t, &err), REALM_OK);
    assert_int_equal(realm_store_value_put(a, t.id, 100, "k", 1, "v", 1, &err), REALM_OK);
    realm_usage_entry e = {t.id, {.requests = 1, .prompt_tokens = 7}};
    const realm_usage total = {.prompt_tokens = 7};
    static const char *const files[] = {"realm.db", "data.db"};
    for (size_t i = 0; i < REALM_ARRAY_LEN(files); i++) {
        snprintf(path, sizeof path, "%s/%s", dir, files[i]);
        snprintf(away, sizeof away, "%s/away", dir);
        for (int replaced = 0; replaced < 2; replaced++) {
            assert_int_equal(rename(path, away), 0);
            FILE *f = replaced ? fopen(path, "w") : NULL;
            if (f) fclose(f);
            realm_status s = i == 0 ? realm_store_usage_add(a, &e, 1, &total, &err)
                                    : realm_store_value_put(a, t.id, 100, "k", 1, "w", 1, &err);
            assert_int_equal(s, REALM_E_IO);
            if (!strstr(err.text, replaced ? "another file" : files[i])) fail_msg("%s", err.text);
            assert_int_equal(rename(away, path), 0);
        }
    }
    assert_int_equal(realm_store_usage_add(a, &e, 1, &total, &err), REALM_OK);
    realm_store_close(a);
    a = open_store();
    realm_usage sum = {0};
    assert_int_equal(realm_store_usage_each(a, NULL, 0, sum_usage, &sum, &err), REALM_OK);
    assert_int_equal(sum.prompt_tokens, 7);
    void *v = NULL;
    size_t len = 0;
    assert_int_equal(realm_store_value_get(a, t.id, "k", 1, &v, &len, &err), REALM_OK);
    assert_true(len == 1 && *(char *)v == 'v');
    realm_free(v);
    realm_store_close(a);
}

/* What a server and the command line do with a store, once; the first thing that fails ends it. */
static realm_status use_store(const char *name) {
    realm_error err = {0};
    realm_store *a = NULL;
    realm_tenant_row t;
    realm_key_row k;
    char key[REALM_KEY_TEXT_MAX];
    void *value = NULL;
    size_t len = 0;
    const realm_usage total = {.prompt_tokens = 7};
    realm_status s = realm_store_open(&a, dir, &err);
    if (s == REALM_OK) s = realm_store_tenant_create(a, name, NULL, "program", 7, &t, &err);
    if (s == REALM_OK) s = realm_store_key_create(a, name, false, 0, key, &k, &err);
    if (s == REALM_OK) s = realm_store_key_find(a, key, strlen(key), &k, &err);
    if (s == REALM_OK) s = realm_store_program_get(a, t.program_sha256, &value, &len, &err);
    realm_free(value);
    value = NULL;
    if (s == REALM_OK) s = realm_store_value_put(a, t.id, 100, "k", 1, "v", 1, &err);
    if (s == REALM_OK) s = realm_store_value_get(a, t.id, "k", 1, &value, &len, &err);
    realm_free(value);
    realm_usage_entry e = {t.id, {.requests = 1, .prompt_tokens = 7}};
    if (s == REALM_OK) s = realm_store_usage_add(a, &e, 1, &total, &err);
    if (s == REALM_OK) s = realm_store_tenant_delete(a, name, &err);
    realm_store_close(a);
    return s;
}

static void memory_may_run_out(void **state) {
    (void)state;
    realm_error err = {0};
    char name[32];
    for (int64_t n = 0;; n++) {
        snprintf(name, sizeof name, "short-%lld", (long long)n);
        realm_alloc_inject_failure(n, false);
        realm_status s = use_store(name);
        bool failed = realm_alloc_count() > n;
        realm_alloc_inject_failure(-1, false);
        if (s != (failed ? REALM_E_NOMEM : REALM_OK)) fail_msg("allocation %lld: %d", (long long)n, s);
        if (!failed) break;
    }
    realm_store *a = open_store();
    realm_usage sum = {0}, engine = {0};
    assert_int_equal(realm_store_usage_each(a, NULL, 0, sum_usage, &sum, &err), REALM_OK);
    assert_int_equal(realm_store_usage_engine(a, &engine, &err), REALM_OK);
    assert_int_equal(sum.prompt_tokens, engine.prompt_tokens);
    realm_store_close(a);
}

static void memory_stores_are_apart(void **state) {
    (void)state;
    realm_store *a, *b;
    realm_tenant_row row;
    char key[REALM_KEY_TEXT_MAX];
    realm_key_row k;
    assert_int_equal(realm_store_open(&a, NULL, NULL), REALM_OK);
    assert_int_equal(realm_store_open(&b, NULL, NULL), REALM_OK);
    assert_int_equal(realm_store_tenant_create(a, "local", NULL, NULL, 0, &row, NULL), REALM_OK);
    assert_int_equal(realm_store_key_create(a, "local", false, 0, key, NULL, NULL), REALM_OK);
    assert_int_equal(realm_store_key_find(a, key, strlen(key), &k, NULL), REALM_OK);
    assert_int_equal(realm_store_key_find(b, key, strlen(key), &k, NULL), REALM_E_UNAUTHENTICATED);
    assert_int_equal(realm_store_tenant_find(b, "local", &row, NULL), REALM_E_NOT_FOUND);
    realm_store_close(a);
    realm_store_close(b);
}

static uint64_t data_bytes(realm_store *s, int64_t tenant) {
    uint64_t n = 0;
    assert_int_equal(realm_store_data_bytes(s, tenant, &n, NULL), REALM_OK);
    return n;
}

/* What a value, its key and a list of keys may not be. */
static void values_have_bounds(void **state) {
    (void)state;
    realm_store *a = open_store();
    realm_error err = {0};
    realm_tenant_row t;
    void *v;
    size_t n;
    static char big[REALM_VALUE_BYTES_MAX + 1], key[REALM_VALUE_KEY_MAX + 1];
    memset(key, 'k', sizeof key);
    assert_int_equal(realm_store_tenant_create(a, "bounds", NULL, NULL, 0, &t, &err), REALM_OK);
    const uint64_t quota = 4 * sizeof big;
    assert_int_equal(realm_store_value_put(a, t.id, quota, "v", 1, big, sizeof big, &err), REALM_E_LIMIT);
    assert_int_equal(realm_store_value_put(a, t.id, quota, "v", 1, big, sizeof big - 1, &err), REALM_OK);
    const struct {
        const char *key;
        size_t len;
    } bad[] = {{"", 0}, {"a\0b", 3}, {key, sizeof key}};
    for (size_t i = 0; i < REALM_ARRAY_LEN(bad); i++) {
        assert_int_equal(realm_store_value_put(a, t.id, quota, bad[i].key, bad[i].len, "x", 1, &err), REALM_E_INVALID);
        assert_int_equal(realm_store_value_get(a, t.id, bad[i].key, bad[i].len, &v, &n, &err), REALM_E_INVALID);
        assert_int_equal(realm_store_value_delete(a, t.id, bad[i].key, bad[i].len, &err), REALM_E_INVALID);
    }
    assert_int_equal(realm_store_value_put(a, t.id, quota, key, sizeof key - 1, "x", 1, &err), REALM_OK);
    assert_int_equal(realm_store_value_delete(a, t.id, "no", 2, &err), REALM_E_NOT_FOUND);
    realm_buf out;
    realm_buf_init(&out, 16);
    assert_int_equal(realm_store_value_list(a, t.id, key, sizeof key, NULL, 0, &out, &err), REALM_E_INVALID);
    assert_int_equal(realm_store_value_list(a, t.id, NULL, 0, key, sizeof key, &out, &err), REALM_E_INVALID);
    /* a list that has no room for its first key says so; one with room for some has those */
    assert_int_equal(realm_store_value_list(a, t.id, "k", 1, NULL, 0, &out, &err), REALM_E_RANGE);
    assert_int_equal(realm_store_value_put(a, t.id, quota, "a", 1, "x", 1, &err), REALM_OK);
    assert_int_equal(realm_store_value_list(a, t.id, NULL, 0, NULL, 0, &out, &err), REALM_OK);
    assert_int_equal(out.len, 2);
    assert_memory_equal(out.data, "a", 2);
    realm_buf_release(&out);
    realm_store_close(a);
}

static void values_are_kept_and_counted(void **state) {
    (void)state;
    realm_store *a = open_store(), *b = open_store();
    realm_error err = {0};
    realm_tenant_row t, u;
    void *v;
    size_t n;
    assert_int_equal(realm_store_tenant_create(a, "values", NULL, NULL, 0, &t, &err), REALM_OK);
    assert_int_equal(realm_store_tenant_create(a, "others", NULL, NULL, 0, &u, &err), REALM_OK);
    assert_int_equal(realm_store_value_put(a, t.id, 100, "key", 3, "0123456789", 10, &err), REALM_OK);
    assert_int_equal(realm_store_value_get(b, t.id, "key", 3, &v, &n, &err), REALM_OK); /* another connection */
    assert_int_equal(n, 10);
    assert_memory_equal(v, "0123456789", 10);
    realm_free(v);
    assert_int_equal(realm_store_value_get(b, u.id, "key", 3, &v, &n, &err), REALM_E_NOT_FOUND);
    assert_int_equal(data_bytes(b, t.id), 13);
    /* The quota holds between connections; a failed write changes nothing. */
    static char filler[90];
    assert_int_equal(realm_store_value_put(b, t.id, 100, "more", 4, filler, 84, &err), REALM_E_LIMIT);
    assert_non_null(strstr(err.text, "storage_bytes"));
    assert_int_equal(realm_store_value_put(b, t.id, 100, "more", 4, filler, 83, &err), REALM_OK);
    assert_int_equal(realm_store_value_put(a, t.id, 100, "key", 3, "0123456789x", 11, &err), REALM_E_LIMIT);
    assert_int_equal(realm_store_value_get(a, t.id, "key", 3, &v, &n, &err), REALM_OK);
    assert_int_equal(n, 10);
    realm_free(v);
    assert_int_equal(realm_store_value_put(a, t.id, 5, "key", 3, "0", 1, &err), REALM_OK); /* less is always allowed */
    assert_int_equal(data_bytes(b, t.id), 91);
    realm_store_close(b);
    realm_store_close(a);
    a = open_store();
    assert_int_equal(realm_store_value_get(a, t.id, "key", 3, &v, &n, &err), REALM_OK);
    assert_int_equal(n, 1);
    realm_free(v);
    assert_int_equal(realm_store_tenant_delete(a, "values", &err), REALM_OK);
    assert_int_equal(data_bytes(a, t.id), 0);
    assert_int_equal(realm_store_value_get(a, t.id, "key", 3, &v, &n, &err), REALM_E_NOT_FOUND);
    /* Data of a tenant whose deletion was cut short goes when the store is next opened. */
    assert_int_equal(realm_store_value_put(a, t.id, 100, "key", 3, "0", 1, &err), REALM_OK);
    assert_int_equal(realm_store_value_put(a, u.id, 100, "key", 3, "0", 1, &err), REALM_OK);
    realm_store_close(a);
    a = open_store();
    assert_int_equal(data_bytes(a, t.id), 0);
    assert_int_equal(data_bytes(a, u.id), 4);
    realm_store_close(a);
}

static void models_are_counted_once(void **state) {
    (void)state;
    realm_store *s = open_store();
    realm_error err = {0};
    realm_tenant_row t;
    realm_model_row got, one = {.id = 1, .sha256 = "aa", .bytes = 50}, two = {.id = 2, .sha256 = "aa", .bytes = 50},
                         other = {.id = 1, .sha256 = "bb", .bytes = 10}, third = {.id = 3, .sha256 = "bb", .bytes = 51};
    bool last, used;
    assert_int_equal(realm_store_tenant_create(s, "models", NULL, NULL, 0, &t, &err), REALM_OK);
    assert_int_equal(realm_store_model_add(s, t.id, 49, &one, &err), REALM_E_LIMIT);
    assert_int_equal(realm_store_model_add(s, t.id, 100, &one, &err), REALM_OK);
    assert_int_equal(realm_store_model_add(s, t.id, 100, &one, &err), REALM_OK); /* again: nothing new */
    assert_int_equal(realm_store_model_add(s, t.id, 100, &two, &err), REALM_OK);
    assert_int_equal(data_bytes(s, t.id), 50);
    assert_int_equal(realm_store_model_add(s, t.id, 100, &other, &err), REALM_E_EXISTS);
    assert_int_equal(realm_store_model_add(s, t.id, 100, &third, &err), REALM_E_LIMIT);
    assert_int_equal(
        realm_store_value_put(s, t.id, 100, "k", 1, "0123456789012345678901234567890123456789012345678", 49, &err),
        REALM_OK); /* one quota for both */
    assert_int_equal(realm_store_value_put(s, t.id, 100, "l", 1, "", 0, &err), REALM_E_LIMIT);
    assert_int_equal(realm_store_model_find(s, t.id, 2, &got, &err), REALM_OK);
    assert_string_equal(got.sha256, "aa");
    assert_int_equal(realm_store_model_find(s, t.id + 1000, 2, &got, &err), REALM_E_NOT_FOUND);
    assert_int_equal(realm_store_model_remove(s, t.id, 1, &got, &last, &err), REALM_OK);
    assert_false(last);
    assert_int_equal(data_bytes(s, t.id), 100);
    assert_int_equal(realm_store_model_remove(s, t.id, 1, &got, &last, &err), REALM_E_NOT_FOUND);
    assert_int_equal(realm_store_model_used(s, t.id, "aa", &used, &err), REALM_OK);
    assert_true(used);
    assert_int_equal(realm_store_model_remove(s, t.id, 2, &got, &last, &err), REALM_OK);
    assert_true(last);
    assert_int_equal(data_bytes(s, t.id), 50);
    for (uint32_t i = 0; i < REALM_MODEL_IDS_MAX; i++) {
        one.id = 10 + i;
        assert_int_equal(realm_store_model_add(s, t.id, 100, &one, &err), REALM_OK);
    }
    one.id = 9;
    assert_int_equal(realm_store_model_add(s, t.id, 100, &one, &err), REALM_E_LIMIT);
    realm_store_close(s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(values_are_kept_and_counted, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(values_have_bounds, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(models_are_counted_once, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(tenants_are_kept, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(files_are_for_their_owner_alone, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(keys_open_and_close, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(keys_wait_for_no_reader, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(secrets_stay_out_of_the_files, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(arguments_and_environment, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(older_store, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(newer_store, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(ledger_agrees_after_kill, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(a_report_is_of_one_moment, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(damaged_files_are_refused, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(files_are_written_in_place, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(memory_may_run_out, make_dir, remove_dir),
        cmocka_unit_test(memory_stores_are_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
