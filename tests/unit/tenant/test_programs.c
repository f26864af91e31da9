/* Programs that tenants stored: of compiled code of idle ones at most so much is kept, and whoever asks next gets it
 * back; one that is replaced just when somebody asks for it is the new one. */
#include <sched.h>

#include "tenant/client.h"
#include "tenant/internal.h"

enum { TENANTS = 40 };

static uint64_t code_bytes(void) {
    realm_runtime_stats s;
    realm_runtime_get_stats(rt, &s);
    return s.program_bytes;
}

/* The stored program of tenant i: the same module with a custom section of its own, so another file. */
static realm_tenant *stored_tenant(unsigned i) {
    char name[32];
    size_t n = 0;
    realm_error err = {0};
    realm_tenant *t = NULL;
    char *wasm = read_file(TEST_GUESTS, "shout", &n), *own = malloc(n + 8);
    const char section[] = {0, 4, 2, 'n', 'o', (char)i};
    memcpy(own, wasm, n);
    memcpy(own + n, section, sizeof section);
    snprintf(name, sizeof name, "tenant%u", i);
    if (realm_store_tenant_create(realm_runtime_store(rt), name, NULL, own, n + sizeof section, NULL, &err) ||
        realm_runtime_tenant(rt, name, &t, &err))
        fail_msg("%s", err.text);
    realm_free(wasm);
    free(own);
    return t;
}

static void test_bounded(void **state) {
    client c;
    realm_tenant *t[TENANTS];
    (void)state;
    uint64_t before = code_bytes(), one = 0;
    for (unsigned i = 0; i < TENANTS; i++) {
        t[i] = stored_tenant(i);
        complete(&c, t[i], text_request());
        expect_ok(&c);
        end(&c);
        if (i == 0) one = code_bytes() - before;
    }
    assert_true(one > 1000 && TENANTS * one > 2 * program_bytes);
    uint64_t until = realm_clock_ns() + PATIENCE_NS;
    while (code_bytes() > program_bytes) {
        realm_runtime_reload(rt); /* makes the ledger's thread go round */
        if (realm_clock_ns() > until) fail_msg("%llu bytes of compiled code stay", (unsigned long long)code_bytes());
    }
    /* those that were dropped are back at the next request, and what is used last is kept */
    for (unsigned i = 0; i < TENANTS; i++) {
        complete(&c, t[i], text_request());
        expect_ok(&c);
        end(&c);
    }
    for (unsigned i = 0; i < TENANTS; i++) realm_tenant_release(t[i]);
}

/* The one that was asked for first, long before all others, is running still: dropping it would free nothing. */
static void test_what_runs_is_kept(void **state) {
    (void)state;
    client holder, c;
    realm_error err = {0};
    realm_tenant *first = NULL, *t[TENANTS];
    size_t n = 0;
    char *wasm = read_file(TEST_WASM "/guest", "stuck", &n);
    if (realm_store_tenant_create(realm_runtime_store(rt), "first", NULL, wasm, n, NULL, &err) ||
        realm_runtime_tenant(rt, "first", &first, &err))
        fail_msg("%s", err.text);
    realm_free(wasm);
    begin(&holder, first, text_request());
    follow(&holder, 1); /* "started" */
    const realm_program *program = first->program;
    assert_non_null(program);
    const uint64_t before = code_bytes();
    uint64_t one = 0;
    unsigned made = 0;
    for (; made < 2 || (made < TENANTS && made * one < program_bytes + one); made++) {
        t[made] = stored_tenant(made + TENANTS);
        complete(&c, t[made], text_request());
        expect_ok(&c);
        end(&c);
        if (made == 0) one = code_bytes() - before;
    }
    assert_true(made < TENANTS);
    const uint64_t until = realm_clock_ns() + PATIENCE_NS;
    while (code_bytes() > program_bytes) {
        realm_runtime_reload(rt);
        if (realm_clock_ns() > until) fail_msg("%llu bytes of compiled code stay", (unsigned long long)code_bytes());
    }
    assert_ptr_equal(first->program, program);
    assert_null(t[0]->program);
    realm_run_cancel(holder.run);
    follow(&holder, 0);
    end(&holder);
    realm_tenant_release(first);
    while (made > 0) realm_tenant_release(t[--made]);
}

/* While a request runs it, a program that was dropped goes on; and tenants with the same module share it. */
static void test_running_and_shared(void **state) {
    enum { RUNS = 16 };
    static client c[RUNS];
    realm_tenant *t[RUNS];
    realm_error err = {0};
    char name[32];
    size_t n = 0;
    (void)state;
    char *wasm = read_file(TEST_GUESTS, "shout", &n);
    for (unsigned i = 0; i < RUNS; i++) {
        snprintf(name, sizeof name, "same%u", i);
        if (realm_store_tenant_create(realm_runtime_store(rt), name, NULL, wasm, n, NULL, &err) ||
            realm_runtime_tenant(rt, name, &t[i], &err))
            fail_msg("%s", err.text);
    }
    realm_free(wasm);
    uint64_t before = code_bytes();
    for (unsigned i = 0; i < RUNS; i++) begin(&c[i], t[i], text_request());
    assert_true(code_bytes() <= before + 200000); /* one module, not sixteen */
    realm_runtime_reload(rt);
    for (unsigned i = 0; i < RUNS; i++) {
        follow(&c[i], 0);
        expect_ok(&c[i]);
        end(&c[i]);
        realm_tenant_release(t[i]);
    }
}

/* ---- changes of the store at a bad moment ---- */

static void (*before_get)(const char *sha256), (*after_find)(const char *name);

realm_status __real_realm_store_program_get(realm_store *s, const char *sha256, void **wasm, size_t *len,
                                            realm_error *err);
realm_status __wrap_realm_store_program_get(realm_store *s, const char *sha256, void **wasm, size_t *len,
                                            realm_error *err);
realm_status __wrap_realm_store_program_get(realm_store *s, const char *sha256, void **wasm, size_t *len,
                                            realm_error *err) {
    if (before_get) before_get(sha256);
    return __real_realm_store_program_get(s, sha256, wasm, len, err);
}

realm_status __real_realm_store_tenant_find(realm_store *s, const char *name, realm_tenant_row *out, realm_error *err);
realm_status __wrap_realm_store_tenant_find(realm_store *s, const char *name, realm_tenant_row *out, realm_error *err);
realm_status __wrap_realm_store_tenant_find(realm_store *s, const char *name, realm_tenant_row *out, realm_error *err) {
    realm_status status = __real_realm_store_tenant_find(s, name, out, err);
    if (after_find) after_find(name);
    return status;
}

static int replacements;

/* Another file each time: the one that was asked for is not in the store any more. */
static void replace(const char *sha256) {
    size_t n = 0;
    (void)sha256;
    if (replacements == 0) return;
    char *wasm = read_file(TEST_GUESTS, "shout", &n), *own = malloc(n + 8);
    const char section[] = {0, 4, 2, 'n', 'o', (char)(100 + replacements--)};
    memcpy(own, wasm, n);
    memcpy(own + n, section, sizeof section);
    assert_int_equal(realm_store_tenant_set(realm_runtime_store(rt), "swaps", NULL, own, n + sizeof section, NULL), 0);
    realm_free(wasm);
    free(own);
}

/* A request that comes when its tenant's program is being replaced, and again, is answered by the last one. */
static void test_replaced_while_it_is_opened(void **state) {
    client c;
    (void)state;
    size_t n = 0;
    realm_error err = {0};
    realm_tenant *t = NULL;
    char *wasm = read_file(TEST_GUESTS, "shout", &n);
    if (realm_store_tenant_create(realm_runtime_store(rt), "swaps", NULL, wasm, n - 1, NULL, &err) || /* cut: refused */
        realm_runtime_tenant(rt, "swaps", &t, &err))
        fail_msg("%s", err.text);
    realm_free(wasm);
    replacements = 3;
    before_get = replace;
    complete(&c, t, text_request());
    before_get = NULL;
    expect_ok(&c);
    end(&c);
    assert_int_equal(replacements, 0);
    realm_tenant_release(t);
}

static void limit_meanwhile(const char *name) {
    realm_tenant_row row;
    after_find = NULL;
    realm_store *store = realm_runtime_store(rt);
    assert_int_equal(realm_store_tenant_find(store, name, &row, NULL), REALM_OK);
    row.limits.handles = 77;
    assert_int_equal(realm_store_tenant_set(store, name, &row.limits, NULL, 0, NULL), REALM_OK);
    realm_runtime_reload(rt); /* and the server has been round, when it did not know the tenant */
}

/* A tenant that changes between being read and being known is known as it is. */
static void test_changed_while_it_is_loaded(void **state) {
    (void)state;
    realm_tenant *t = NULL;
    realm_error err = {0};
    assert_int_equal(realm_store_tenant_create(realm_runtime_store(rt), "late", NULL, NULL, 0, NULL, NULL), REALM_OK);
    after_find = limit_meanwhile;
    if (realm_runtime_tenant(rt, "late", &t, &err)) fail_msg("%s", err.text);
    realm_runtime_reload(rt);
    realm_mutex_lock(&t->mu);
    assert_int_equal(t->limits.handles, 77);
    realm_mutex_unlock(&t->mu);
    realm_tenant_release(t);
}

/* ---- the end ---- */

typedef struct closing {
    realm_runtime *rt;
    realm_mutex mu;
    realm_cond moved;
    bool done;
} closing;

static void *close_it(void *arg) {
    closing *c = arg;
    realm_runtime_close(c->rt);
    realm_mutex_lock(&c->mu);
    c->done = true;
    realm_cond_signal(&c->moved);
    realm_mutex_unlock(&c->mu);
    return NULL;
}

static void reload_work(tenant_job *job) { realm_runtime_reload(job->tenant->rt); }
static void reload_free(tenant_job *job) { realm_free(job); }

typedef bool (*condition)(const realm_runtime *r); /* of runtime.mu */
static bool is_taken(const realm_runtime *r) { return !r->waiting; }
static bool is_asked(const realm_runtime *r) { return r->reload_wanted > r->reload_done; }
static bool is_stopping(const realm_runtime *r) { return r->stop; }

static void until(realm_runtime *r, condition holds) {
    const uint64_t end = realm_clock_ns() + PATIENCE_NS;
    for (bool so = false; !so;) {
        realm_mutex_lock(&r->mu);
        so = holds(r);
        realm_mutex_unlock(&r->mu);
        if (realm_clock_ns() > end) fail_msg("the runtime does not go on");
        if (!so) sched_yield();
    }
}

/* A thread that opens a program waits for its tenant's row, which nobody reads any more: it is told. */
static void test_closed_while_a_row_is_waited_for(void **state) {
    (void)state;
    const realm_runtime_config config = {.n_workers = 1, .max_instances = 1, .n_threads = 1};
    realm_error err = {0};
    closing c = {0};
    realm_tenant *t;
    realm_run ended = {0};
    pthread_t thread;
    realm_mutex_init(&c.mu, REALM_RANK_LEAF);
    realm_cond_init(&c.moved);
    realm_mutex_init(&ended.mu, REALM_RANK_REQUEST);
    realm_mutex_init(&ended.notify_mu, REALM_RANK_NOTIFY);
    atomic_init(&ended.refs, 2);
    if (realm_runtime_open(&c.rt, &config, &err)) fail_msg("%s", err.text);
    if (realm_store_tenant_create(realm_runtime_store(c.rt), "one", NULL, NULL, 0, NULL, &err) ||
        realm_runtime_tenant(c.rt, "one", &t, &err))
        fail_msg("%s", err.text);
    /* The ledger's thread is in the middle of a round when the row is asked for, and finds the runtime stopped behind
     * it. */
    realm_mutex_lock(&c.rt->flush_mu);
    ledger_enqueue(c.rt, &ended);
    until(c.rt, is_taken);
    tenant_job *job = realm_calloc(1, sizeof *job);
    job->work = reload_work;
    job->free = reload_free;
    job_init(job, t, NULL, false);
    assert_int_equal(jobs_submit(c.rt->jobs, job, &err), REALM_OK);
    job_release(job);
    realm_tenant_release(t);
    until(c.rt, is_asked);
    assert_int_equal(realm_thread_start(&thread, "closes", close_it, &c, &err), REALM_OK);
    until(c.rt, is_stopping);
    realm_mutex_unlock(&c.rt->flush_mu);
    const uint64_t end = realm_clock_ns() + PATIENCE_NS;
    realm_mutex_lock(&c.mu);
    while (!c.done && realm_cond_wait_until(&c.moved, &c.mu, end)) {
    }
    assert_true(c.done);
    realm_mutex_unlock(&c.mu);
    pthread_join(thread, NULL);
}

int main(int argc, char **argv) {
    if (is_compiler(argc, argv)) return compile(argv);
    program_bytes = 300000;
    if (open_runtime()) return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_runs_is_kept),          cmocka_unit_test(test_bounded),
        cmocka_unit_test(test_running_and_shared),         cmocka_unit_test(test_replaced_while_it_is_opened),
        cmocka_unit_test(test_changed_while_it_is_loaded), cmocka_unit_test(test_closed_while_a_row_is_waited_for)};
    return close_runtime(cmocka_run_group_tests_name("programs", tests, NULL, NULL));
}
