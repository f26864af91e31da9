/* The ledger beside a store that somebody else is writing: what is counted is kept at once, whoever dies meanwhile, and
 * is in the ledger once when the store is free. */
#include <dirent.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "store/db.h"
#include "support/scratch.h"

static char dir[SCRATCH_MAX];
static int64_t tenant;

static realm_store *open_store(void) {
    realm_store *s = NULL;
    realm_error err = {0};
    if (realm_store_open(&s, dir, &err) != REALM_OK) fail_msg("%s", err.text);
    return s;
}

static int make_dir(void **state) {
    (void)state;
    realm_tenant_row row;
    snprintf(dir, sizeof dir, "late");
    if (!scratch_dir(dir)) return -1;
    realm_store *s = open_store();
    realm_status made = realm_store_tenant_create(s, "one", NULL, NULL, 0, &row, NULL);
    realm_store_close(s);
    tenant = row.id;
    return made;
}

static int remove_dir(void **state) {
    (void)state;
    char cmd[96];
    snprintf(cmd, sizeof cmd, "rm -rf '%s'", dir);
    return system(cmd);
}

/* A connection of another program, which holds the file's only place for a writer. */
static sqlite3 *hold(void) {
    char path[96];
    sqlite3 *h = NULL;
    snprintf(path, sizeof path, "%s/realm.db", dir);
    assert_int_equal(sqlite3_open(path, &h), SQLITE_OK);
    assert_int_equal(sqlite3_exec(h, "BEGIN IMMEDIATE", NULL, NULL, NULL), SQLITE_OK);
    return h;
}

static void let_go(sqlite3 *h) { assert_int_equal(sqlite3_close(h), SQLITE_OK); }

static void use(realm_store *s, uint64_t tokens) {
    realm_error err = {0};
    const realm_usage_entry e = {tenant, {.requests = 1, .completion_tokens = tokens}};
    const realm_usage total = {.completion_tokens = tokens};
    if (realm_store_usage_add(s, &e, 1, &total, &err) != REALM_OK) fail_msg("%s", err.text);
    assert_int_equal(err.code, REALM_OK);
}

static bool sum_usage(void *user, const char *name, const realm_usage *u) {
    (void)name;
    realm_usage_add(user, u);
    return true;
}

static void expect(uint64_t requests, uint64_t tokens) {
    realm_store *s = open_store();
    realm_usage u = {0}, engine;
    assert_int_equal(realm_store_usage_each(s, NULL, 0, sum_usage, &u, NULL), REALM_OK);
    assert_int_equal(realm_store_usage_engine(s, &engine, NULL), REALM_OK);
    assert_int_equal(u.requests, requests);
    assert_int_equal(u.completion_tokens, tokens);
    assert_int_equal(engine.completion_tokens, tokens);
    realm_store_close(s);
}

/* The files that hold counts; `path` is the last one's. */
static int files(char path[160]) {
    int n = 0;
    DIR *d = opendir(dir);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) {
        if (strncmp(e->d_name, "late-", 5) != 0) continue;
        n++;
        if (path) snprintf(path, 160, "%s/%.90s", dir, e->d_name);
    }
    closedir(d);
    return n;
}

static int noted(void) {
    realm_store *s = open_store();
    sqlite3_stmt *st;
    bool row;
    assert_int_equal(db_begin(&s->write, "SELECT count(*) FROM late_taken", &st, NULL), REALM_OK);
    assert_int_equal(db_step(&s->write, st, &row, NULL), REALM_OK);
    int n = sqlite3_column_int(st, 0);
    db_end(&s->write, st);
    realm_store_close(s);
    return n;
}

static void counting_does_not_wait(void **state) {
    (void)state;
    realm_store *s = open_store();
    use(s, 1);
    assert_false(realm_store_usage_waits(s));
    assert_int_equal(files(NULL), 0);
    sqlite3 *h = hold();
    const uint64_t begin_ns = realm_clock_ns();
    for (int i = 0; i < 10; i++) use(s, 10);
    assert_true(realm_clock_ns() - begin_ns < 4 * REALM_NS_PER_S); /* waiting for the writer would be 5 s for each */
    assert_true(realm_store_usage_waits(s));
    assert_int_equal(realm_store_usage_add(s, NULL, 0, NULL, NULL), REALM_OK); /* nothing new, and still not free */
    const realm_usage nobodys = {.prompt_tokens = 1};
    assert_int_equal(realm_store_usage_add(s, NULL, 0, &nobodys, NULL), REALM_E_BUSY);
    assert_int_equal(files(NULL), 1);
    expect(1, 1); /* another process reads the store meanwhile; what waits is not its to take */
    assert_int_equal(files(NULL), 1);
    let_go(h);
    assert_int_equal(realm_store_usage_add(s, NULL, 0, NULL, NULL), REALM_OK);
    assert_false(realm_store_usage_waits(s));
    assert_int_equal(files(NULL), 0);
    expect(11, 101);
    h = hold();
    use(s, 100);
    let_go(h);
    use(s, 1000); /* what is new takes along what waits */
    assert_int_equal(files(NULL), 0);
    realm_store_close(s);
    expect(13, 1201);
    assert_int_equal(noted(), 0); /* of nothing that is gone */
}

/* The minute in which something was used stays its minute. */
static void times_are_kept(void **state) {
    (void)state;
    realm_store *s = open_store();
    realm_usage total = {0};
    realm_error err = {0};
    uint64_t tokens;
    sqlite3 *h = hold();
    for (int64_t minute = 0; minute < 3; minute++) {
        const realm_usage_entry e = {tenant, {.prompt_tokens = 1}};
        for (int twice = 0; twice < 2; twice++)
            assert_int_equal(late_keep(s, &e, 1, 60000000 + 60 * minute, &e.delta, &err), REALM_OK);
    }
    assert_int_equal(s->late.n, 3);
    /* too many of them: by the hour, then by the day */
    enum { N = 40000 };
    realm_usage_entry *many = realm_calloc(N, sizeof *many);
    assert_non_null(many);
    for (int64_t i = 0; i < N; i++) many[i] = (realm_usage_entry){1000 + i, {.prompt_tokens = 1}};
    for (int64_t minute = 0; minute < 3; minute++)
        assert_int_equal(late_keep(s, many, N, 60000000 + 60 * minute, NULL, &err), REALM_OK);
    assert_int_equal(s->late.n, N + 1); /* 60000000 is 2400 s into its hour */
    assert_int_equal(late_keep(s, many, N, 60000000 + 3600, NULL, &err), REALM_OK);
    assert_int_equal(s->late.n, N + 1);
    for (int64_t i = 0; i < N; i++) many[i].tenant_id += N;
    assert_int_equal(late_keep(s, many, N, 60000000, NULL, &err), REALM_E_LIMIT); /* and nothing has changed */
    assert_int_equal(s->late.n, N + 1);
    realm_free(many);
    let_go(h);
    assert_int_equal(realm_store_usage_add(s, NULL, 0, NULL, &err), REALM_OK);
    const int64_t day_s = 60000000 / 86400 * 86400;
    assert_int_equal(realm_store_usage_tokens(s, tenant, day_s, &tokens, &err), REALM_OK);
    assert_int_equal(tokens, 6);
    assert_int_equal(realm_store_usage_tokens(s, tenant, day_s + 60, &tokens, &err), REALM_OK);
    assert_int_equal(tokens, 0);
    assert_int_equal(realm_store_usage_tokens(s, 1000, day_s, &tokens, &err), REALM_OK);
    assert_int_equal(tokens, 4);
    assert_int_equal(realm_store_usage_engine(s, &total, &err), REALM_OK);
    assert_int_equal(total.prompt_tokens, 6);
    realm_store_close(s);
}

/* A process that counts beside a store that is held, and is killed in the middle: what it was told is kept is there. */
static void killed_meanwhile(void **state) {
    (void)state;
    uint64_t requests = 0, tokens = 0;
    for (int round = 0; round < 5; round++) {
        int told[2];
        uint64_t n = 0, i;
        assert_int_equal(pipe(told), 0);
        sqlite3 *h = round == 4 ? NULL : hold(); /* the last round: free and held by turns */
        pid_t pid = fork();
        if (pid == 0) {
            realm_store *s = NULL;
            if (realm_store_open(&s, dir, NULL) != REALM_OK) _exit(1);
            for (uint64_t k = 1;; k++) {
                if (round == 4) h = hold();
                const realm_usage_entry e = {tenant, {.requests = 1, .completion_tokens = 1}};
                if (realm_store_usage_add(s, &e, 1, &e.delta, NULL) != REALM_OK) _exit(2);
                if (write(told[1], &k, sizeof k) != sizeof k) _exit(3);
                if (round == 4) let_go(h);
                if (round == 4 && realm_store_usage_add(s, NULL, 0, NULL, NULL) != REALM_OK) _exit(4);
            }
        }
        close(told[1]);
        while (n < 20 && read(told[0], &i, sizeof i) == sizeof i) n = i;
        kill(pid, SIGKILL);
        while (read(told[0], &i, sizeof i) == sizeof i) n = i;
        int status;
        waitpid(pid, &status, 0);
        assert_true(WIFSIGNALED(status));
        close(told[0]);
        if (h && round < 4) let_go(h);
        realm_store *s = open_store();
        realm_usage u = {0}, engine;
        assert_int_equal(realm_store_usage_each(s, NULL, 0, sum_usage, &u, NULL), REALM_OK);
        assert_int_equal(realm_store_usage_engine(s, &engine, NULL), REALM_OK);
        assert_int_equal(u.completion_tokens, engine.completion_tokens);
        assert_int_equal(u.completion_tokens - tokens, u.requests - requests);
        if (u.requests - requests < n || u.requests - requests > n + 1) /* one may have been kept and not told */
            fail_msg("round %d: told of %llu, %llu are there", round, (unsigned long long)n,
                     (unsigned long long)(u.requests - requests));
        requests = u.requests;
        tokens = u.completion_tokens;
        realm_store_close(s);
        assert_int_equal(files(NULL), 0);
        assert_int_equal(noted(), 0);
    }
}

/* Keeps counts in a file that nobody owns: what a process leaves that ends while the store is held. */
static void leave(uint64_t tokens, char path[160]) {
    realm_store *s = open_store();
    sqlite3 *h = hold();
    use(s, tokens);
    realm_store_close(s);
    let_go(h);
    assert_int_equal(files(path), 1);
}

static void cut_short_between_the_ledger_and_the_file(void **state) {
    (void)state;
    char path[160], *data;
    size_t len;
    realm_store *s = open_store();
    sqlite3 *h = hold();
    use(s, 100);
    assert_int_equal(files(path), 1);
    assert_int_equal(realm_file_read(path, 1 << 20, &data, &len, NULL), REALM_OK);
    let_go(h);
    use(s, 1000);
    assert_int_equal(files(NULL), 0);
    realm_store_close(s);
    assert_int_equal(realm_file_replace(path, data, len, 0600, NULL), REALM_OK); /* as if killed here */
    realm_free(data);
    expect(2, 1100);
    assert_int_equal(files(NULL), 0);
    assert_int_equal(noted(), 0);
}

static void a_held_store_cannot_take_what_was_left(void **state) {
    (void)state;
    realm_store *s = NULL;
    realm_error err = {0};
    leave(10, NULL);
    sqlite3 *h = hold();
    assert_int_equal(realm_store_open(&s, dir, &err), REALM_E_BUSY); /* rather than say too little */
    let_go(h);
    expect(1, 10);
}

static void quiet(void *user, realm_log_level level, const char *line, size_t len) {
    (void)line;
    (void)len;
    if (level == REALM_LOG_ERROR) ++*(int *)user;
}

static void damaged_files_are_left_alone(void **state) {
    (void)state;
    char path[160], *data;
    size_t len;
    int errors = 0, expected = 0;
    leave(10, path);
    assert_int_equal(realm_file_read(path, 1 << 20, &data, &len, NULL), REALM_OK);
    realm_log_configure(REALM_LOG_INFO, quiet, &errors);
    for (size_t n = 0; n < len; n += 7) {
        assert_int_equal(realm_file_replace(path, data, n, 0600, NULL), REALM_OK);
        expect(0, 0);
        assert_int_equal(errors, ++expected);
    }
    for (size_t i = 0; i < len; i++) {
        data[i] ^= 0x10;
        assert_int_equal(realm_file_replace(path, data, len, 0600, NULL), REALM_OK);
        data[i] ^= 0x10;
        expect(0, 0);
        assert_int_equal(errors, ++expected);
    }
    assert_int_equal(files(NULL), 1);
    assert_int_equal(unlink(path), 0); /* no file: a folder, a link to one that would do, half a name */
    char other[200];
    snprintf(other, sizeof other, "%s/elsewhere", dir);
    assert_int_equal(realm_file_replace(other, data, len, 0600, NULL), REALM_OK);
    assert_int_equal(symlink(other, path), 0);
    expect(0, 0);
    assert_int_equal(unlink(path), 0);
    snprintf(other, sizeof other, "%s.new", path);
    assert_int_equal(realm_file_replace(other, data, len, 0600, NULL), REALM_OK); /* was being written: goes */
    expect(0, 0);
    assert_int_equal(files(NULL), 0);
    snprintf(other, sizeof other, "%s0", path);
    assert_int_equal(realm_file_replace(other, data, len, 0600, NULL), REALM_OK); /* not such a name */
    expect(0, 0);
    assert_int_equal(errors, expected);
    assert_int_equal(unlink(other), 0);
    assert_int_equal(realm_file_replace(path, data, len, 0600, NULL), REALM_OK); /* and whole it is good */
    expect(1, 10);
    realm_log_configure(REALM_LOG_INFO, NULL, NULL);
    realm_free(data);
}

static void memory_may_run_out(void **state) {
    (void)state;
    uint64_t requests = 0;
    sqlite3 *h = hold();
    realm_store *s = open_store();
    for (int64_t n = 0;; n++) {
        const realm_usage_entry e = {tenant, {.requests = 1}};
        const bool waited = realm_store_usage_waits(s);
        realm_alloc_inject_failure(n, false);
        realm_status added = realm_store_usage_add(s, &e, 1, &e.delta, NULL);
        bool failed = realm_alloc_count() > n;
        realm_alloc_inject_failure(-1, false);
        assert_int_equal(added, failed ? REALM_E_NOMEM : REALM_OK);
        if (failed) assert_int_equal(realm_store_usage_waits(s), waited);
        if (!failed && ++requests == 2) break; /* the first, and one that comes to others */
        if (!failed) n = -1;
    }
    realm_store_close(s);
    let_go(h);
    for (int64_t n = 0;; n++) {
        realm_alloc_inject_failure(n, false);
        realm_status opened = realm_store_open(&s, dir, NULL);
        bool failed = realm_alloc_count() > n;
        realm_alloc_inject_failure(-1, false);
        assert_int_equal(opened, failed ? REALM_E_NOMEM : REALM_OK);
        if (!failed) break;
    }
    realm_store_close(s);
    expect(requests, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
#define IN_DIR(f) cmocka_unit_test_setup_teardown(f, make_dir, remove_dir)
        IN_DIR(counting_does_not_wait),
        IN_DIR(times_are_kept),
        IN_DIR(killed_meanwhile),
        IN_DIR(cut_short_between_the_ledger_and_the_file),
        IN_DIR(a_held_store_cannot_take_what_was_left),
        IN_DIR(damaged_files_are_left_alone),
        IN_DIR(memory_may_run_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
