/* A tenant is deleted while something that its program began is still under way: a step of a generation in each mode,
 * one that stands still, one that has come to an end that may be taken back, saved contexts, a list of tensor
 * operations, jobs, the opening of its program. It stays in memory until that is over and the ledger has it, and then
 * it goes, whether the client reads its END or leaves; so it does when the runtime is closed meanwhile.
 *
 * Nothing moves while a test looks, because it has the device's turn: the engine stands before it with a step in its
 * hands, and programs go on. That is not so where the engine is held inside a consumer's callback (`held` in
 * support/engine_run.h): its thread may be promised to a program then, which no worker runs meanwhile. */
#include "support/engine_run.h"
#include "tenant/client.h"
#include "tenant/internal.h"

typedef enum leave { READS_END, CANCELS, LEAVES, N_WAYS } leave;

static const struct form {
    const char *name;     /* of guest/leaver.c */
    bool at_device;       /* what it began waits for the device; else it has said "!" and nothing of it moves */
    bool prompt;          /* a prompt's tokens are charged at least */
    uint32_t completions; /* charged, that of the step under way when the client goes too */
    uint32_t steps;       /* that were before */
} FORMS[] = {{"pipe", true, true, 1, 0},     {"events", true, true, 1, 0},   {"ahead", true, true, 1, 0},
             {"whole", true, true, 1, 0},    {"lockstep", true, true, 0, 0}, {"lockstep", true, true, 0, 40},
             {"tensors", true, false, 0, 0}, {"stalled", false, true, 1, 0}, {"parked", false, true, 5, 0},
             {"lent", false, true, 5, 0},    {"saved", false, true, 1, 0}};

static realm_tenant *holder; /* of what keeps the engine, or the threads for jobs, busy */
static char dir[SCRATCH_MAX] = "test-deleted";

/* ---- what is there ----------------------------------------------------------------------------------------------- */

typedef struct sight {
    bool there, swept; /* gone from the store, unused, and its models and files removed */
    unsigned refs;
} sight;

static sight see(int64_t id) {
    sight s = {0};
    realm_mutex_lock(&rt->mu);
    for (const realm_tenant *t = rt->tenants; t; t = t->next) {
        if (t->id != id) continue;
        s = (sight){.there = true, .swept = t->gone && t->forgotten, .refs = atomic_load(&t->refs)};
    }
    realm_mutex_unlock(&rt->mu);
    return s;
}

static void pause_until(uint64_t until, const char *what) {
    if (realm_clock_ns() > until) fail_msg("%s", what);
    usleep(200);
}

/* Looked at by the ledger's thread and the sweeper, and all they find is that it is in use. */
static void stays(int64_t id, bool swept) {
    const uint64_t until = realm_clock_ns() + PATIENCE_NS;
    for (; swept && !see(id).swept; realm_runtime_reload(rt)) pause_until(until, "nobody sweeps up behind it");
    for (int i = 0; i < 3; i++) {
        realm_runtime_reload(rt);
        const sight s = see(id);
        assert_true(s.there);
        assert_int_equal(s.swept, swept);
        if (!swept) assert_true(s.refs > 0);
    }
}

static void goes(int64_t id) {
    const uint64_t until = realm_clock_ns() + PATIENCE_NS;
    for (; see(id).there; realm_runtime_reload(rt)) pause_until(until, "a deleted tenant stays");
}

static void nothing_of_it_is_left(void) {
    realm_engine_stats e;
    const uint64_t until = realm_clock_ns() + PATIENCE_NS;
    nothing_is_left();
    for (;; pause_until(until, "contexts or pages are left")) {
        realm_engine_get_stats(engine_of(rt, "tiny"), &e);
        if (e.contexts == 0 && e.kv_pages_used == 0) break;
    }
    realm_runtime_reload(rt);
    ledger_agrees();
}

/* ---- what is held ------------------------------------------------------------------------------------------------ */

static realm_backend *device; /* whose turn this test has */

static void hold_device(void) {
    device = rt->backend;
    realm_backend_turn_begin(device);
}

static void let_go_device(void) {
    realm_backend_turn_end(device);
    device = NULL;
}

static void await_at_device(void) {
    const uint64_t until = realm_clock_ns() + PATIENCE_NS;
    realm_turn_stats stats;
    for (;; pause_until(until, "nobody wants the device")) {
        realm_backend_turn_get_stats(device, &stats);
        if (stats.waiting > 0) return;
    }
}

static struct { /* jobs wait at it */
    realm_mutex mu;
    realm_cond cond;
    bool open;
    unsigned inside;
} gate;

static void gate_work(tenant_job *job) {
    (void)job;
    realm_mutex_lock(&gate.mu);
    gate.inside++;
    realm_cond_broadcast(&gate.cond);
    while (!gate.open) realm_cond_wait(&gate.cond, &gate.mu);
    gate.inside--;
    realm_cond_broadcast(&gate.cond);
    realm_mutex_unlock(&gate.mu);
}

static void gate_free(tenant_job *job) { realm_free(job); }

static void await_inside(unsigned n) {
    const uint64_t until = realm_clock_ns() + PATIENCE_NS;
    realm_mutex_lock(&gate.mu);
    while (gate.inside != n)
        if (!realm_cond_wait_until(&gate.cond, &gate.mu, until)) fail_msg("%u jobs, not %u", gate.inside, n);
    realm_mutex_unlock(&gate.mu);
}

/* All threads for quick jobs, or both for heavy ones, of which a tenant gets one. */
static void hold_jobs(bool heavy) {
    realm_error err = {0};
    realm_tenant *second = tenant_with("second", NULL, NULL);
    const unsigned n = heavy ? 2 : 4;
    for (unsigned i = 0; i < n; i++) {
        tenant_job *j = realm_calloc(1, sizeof *j);
        j->work = gate_work;
        j->free = gate_free;
        job_init(j, i ? second : holder, NULL, heavy);
        assert_int_equal(jobs_submit(rt->jobs, j, &err), REALM_OK);
        job_release(j);
    }
    realm_tenant_release(second);
    await_inside(n);
}

static void let_go_jobs(void) {
    realm_mutex_lock(&gate.mu);
    gate.open = true;
    realm_cond_broadcast(&gate.cond);
    realm_mutex_unlock(&gate.mu);
    await_inside(0);
    gate.open = false;
}

static struct { /* the engine, inside a callback */
    held at;
    bool on;
} engine_held;

static realm_account *account_of_holder(void) {
    realm_error err = {0};
    realm_account *a = NULL;
    realm_served *m = realm_runtime_hold(rt, "tiny");
    assert_int_equal(tenant_account(holder, m, &a, &err), REALM_OK);
    realm_served_release(m);
    return a;
}

static void hold_engine(void) {
    engine_run r = {.e = engine_of(rt, "tiny"), .a = account_of_holder()};
    engine_stop(&engine_held.at, &r);
    engine_held.on = true;
}

static void let_go_engine(void) {
    engine_held.on = false;
    held_go(&engine_held.at);
}

static struct { /* the runtime, on a thread of its own */
    pthread_t thread;
    bool on;
} closing;

static void *close_it(void *user) {
    realm_runtime_close(user);
    return NULL;
}

static void begin_closing(void) {
    realm_tenant_release(holder);
    assert_int_equal(pthread_create(&closing.thread, NULL, close_it, rt), 0);
    closing.on = true;
}

static void open_again(void) {
    (void)pthread_join(closing.thread, NULL);
    closing.on = false;
    rt = NULL;
    if (open_runtime()) fail_msg("the runtime does not open");
    holder = tenant_with("holder", NULL, NULL);
}

/* After each test: one that has failed leaves nothing standing still, and the next one runs. */
static int let_go(void **state) {
    (void)state;
    if (device) let_go_device();
    if (engine_held.on) let_go_engine();
    if (gate.inside) let_go_jobs();
    if (closing.on) open_again();
    return 0;
}

/* ---- deleted ----------------------------------------------------------------------------------------------------- */

static void delete(const char *name) {
    realm_error err = {0};
    if (realm_store_tenant_delete(realm_runtime_store(rt), name, &err)) fail_msg("%s", err.text);
}

static void go(client *c, leave way) {
    if (way != LEAVES) realm_run_cancel(c->run);
    if (way == READS_END) {
        follow(c, 0);
        assert_int_equal(c->finish, REALM_FINISH_CANCELLED);
    }
    end(c);
}

static void await_steps(uint32_t n) {
    const uint64_t until = realm_clock_ns() + PATIENCE_NS;
    realm_engine_stats e;
    realm_engine_get_stats(engine_of(rt, "tiny"), &e);
    for (const uint64_t last = e.steps + n; e.steps < last; realm_engine_get_stats(engine_of(rt, "tiny"), &e))
        pause_until(until, "no steps");
}

/* A program of a tenant of this name has begun its work, and the engine stands before the device; the client has gone
 * and the tenant is deleted. Returns its id. */
static int64_t left_behind(const struct form *f, const char *name, leave way) {
    client c, other;
    realm_tenant *t = tenant_with(name, TEST_WASM "/guest", "leaver");
    const int64_t id = t->id;
    const bool at_first = f->at_device && f->steps == 0;
    if (at_first) hold_device();
    begin(&c, t, with_text(f->name));
    if (!f->at_device) follow(&c, 1);
    if (f->steps) await_steps(f->steps);
    if (!at_first) hold_device();
    if (!f->at_device) begin(&other, holder, text_request());
    await_at_device();
    go(&c, way);
    delete (name);
    realm_tenant_release(t);
    if (!f->at_device) end(&other);
    return id;
}

static void is_charged(const struct form *f, const realm_usage *u) {
    assert_int_equal(u->requests, 1);
    assert_int_equal(u->aborted_requests, 1);
    assert_int_equal(u->prompt_tokens > 0, f->prompt);
    assert_int_equal(u->completion_tokens, f->completions);
}

static const char *name_of(const struct form *f, leave way) {
    static const char *const WAYS[] = {"reads", "cancels", "leaves"};
    static char name[64];
    size_t n = (size_t)snprintf(name, sizeof name, "%s-%u-%s", f->name, f->steps, WAYS[way]);
    for (size_t i = 0; i < n; i++)
        if (name[i] == ' ') name[i] = '-';
    return name;
}

static void while_the_engine_stands(void **state) {
    (void)state;
    for (size_t i = 0; i < REALM_ARRAY_LEN(FORMS); i++)
        for (leave way = 0; way < N_WAYS; way++) {
            const char *name = name_of(&FORMS[i], way);
            const int64_t id = left_behind(&FORMS[i], name, way);
            stays(id, true);
            let_go_device();
            goes(id);
            const realm_usage u = usage_of(name);
            is_charged(&FORMS[i], &u);
            nothing_of_it_is_left();
        }
}

/* Of several choices one computes the prompt, the others wait for it. */
static void while_choices_share_a_prompt(void **state) {
    (void)state;
    enum { N = 3 };
    realm_error err = {0};
    realm_request *r;
    realm_run *runs[N];
    const realm_run_params p = with_text("pipe");
    realm_tenant *t = tenant_with("choices", TEST_WASM "/guest", "leaver");
    const int64_t id = t->id;
    faults(true);
    assert_int_equal(request_on(t, "tiny", NULL, &r, &err), REALM_OK);
    realm_request_expect_runs(r, N);
    hold_device();
    for (int i = 0; i < N; i++) assert_int_equal(realm_run_start(r, &p, &runs[i], &err), REALM_OK);
    await_at_device();
    for (int i = 0; i < N; i++) realm_run_release(runs[i]);
    realm_request_close(r);
    delete ("choices");
    realm_tenant_release(t);
    stays(id, true);
    let_go_device();
    goes(id);
    const realm_usage u = usage_of("choices");
    assert_int_equal(u.requests, 1);
    assert_int_equal(u.aborted_requests, 1);
    assert_true(u.prompt_tokens > 0 && u.completion_tokens > 0);
    nothing_of_it_is_left();
}

static void while_its_job_waits(void **state) {
    (void)state;
    static const struct form JOBS[] = {{.name = "quick job"}, {.name = "heavy job"}};
    client c;
    for (size_t i = 0; i < REALM_ARRAY_LEN(JOBS); i++)
        for (leave way = 0; way < N_WAYS; way++) {
            const char *name = name_of(&JOBS[i], way);
            const uint64_t until = realm_clock_ns() + PATIENCE_NS;
            uint32_t queued[2] = {0};
            realm_tenant *t = tenant_with(name, TEST_WASM "/guest", "leaver");
            const int64_t id = t->id;
            hold_jobs(i);
            begin(&c, t, with_text(JOBS[i].name));
            follow(&c, 1);
            for (; queued[i] == 0; jobs_queued(rt->jobs, queued)) pause_until(until, "its job does not wait");
            go(&c, way);
            delete (name);
            realm_tenant_release(t);
            nothing_is_left();
            stays(id, false); /* the job holds it */
            let_go_jobs();
            goes(id);
            nothing_of_it_is_left();
        }
}

/* Its program is opened by a job that finds no row any more. */
static void while_its_program_is_opened(void **state) {
    (void)state;
    client c;
    realm_error err = {0};
    for (leave way = CANCELS; way < N_WAYS; way++) {
        const char *name = way == LEAVES ? "opens-leaves" : "opens-cancels";
        size_t n = 0;
        char *wasm = read_file(TEST_WASM "/guest", "leaver", &n);
        realm_tenant *t;
        if (realm_store_tenant_create(realm_runtime_store(rt), name, NULL, wasm, n, NULL, &err))
            fail_msg("%s", err.text);
        realm_free(wasm);
        if (realm_runtime_tenant(rt, name, &t, &err)) fail_msg("%s", err.text);
        const int64_t id = t->id;
        hold_jobs(true);
        begin(&c, t, with_text("pipe"));
        delete (name);
        realm_tenant_release(t);
        go(&c, way);
        stays(id, false);
        let_go_jobs();
        goes(id);
        nothing_of_it_is_left();
    }
}

/* The engine is held inside a callback, before it has seen the generation: it ends it without a step. */
static void while_the_engine_is_held(void **state) {
    (void)state;
    client c;
    for (size_t i = 0; i < REALM_ARRAY_LEN(FORMS); i++) {
        if (!FORMS[i].at_device || !FORMS[i].prompt || FORMS[i].steps) continue;
        const char *name = name_of(&FORMS[i], CANCELS);
        realm_served *m = realm_runtime_hold(rt, "tiny");
        realm_tenant *t = tenant_with(name, TEST_WASM "/guest", "leaver");
        const int64_t id = t->id;
        const uint64_t until = realm_clock_ns() + PATIENCE_NS;
        hold_engine();
        begin(&c, t, with_text(FORMS[i].name));
        while (!realm_account_is_busy(t->accounts[m->slot])) pause_until(until, "no generation");
        go(&c, CANCELS);
        delete (name);
        realm_tenant_release(t);
        realm_served_release(m);
        for (int k = 0; k < 3; k++) {
            realm_runtime_reload(rt);
            assert_true(see(id).there);
        }
        let_go_engine();
        goes(id);
        nothing_of_it_is_left();
    }
}

/* ---- and the runtime is closed ----------------------------------------------------------------------------------- */

/* Waits until an engine takes nothing any more; it asks on an account that is in the ledger too. */
static void await_closed(realm_engine *e, realm_account *a) {
    const uint64_t until = realm_clock_ns() + PATIENCE_NS;
    realm_token one = 1;
    realm_generation *g;
    realm_generation_params p = {.account = a, .prompt = &one, .n_prompt = 1};
    realm_sampling_init(&p.sampling);
    for (;; pause_until(until, "the engine is not closed")) {
        realm_status s = realm_generation_submit(e, &p, &g, NULL);
        if (s == REALM_E_CLOSED) break;
        assert_true(s == REALM_OK || s == REALM_E_CROWDED); /* those that it was asked to take stand there too */
        realm_generation_release(g);
    }
}

static void while_the_runtime_closes(void **state) {
    (void)state;
    for (size_t i = 0; i < REALM_ARRAY_LEN(FORMS); i++)
        for (leave way = 0; way < N_WAYS; way++) {
            char name[80];
            snprintf(name, sizeof name, "%s-closed", name_of(&FORMS[i], way));
            left_behind(&FORMS[i], name, way);
            realm_engine *e = engine_of(rt, "tiny");
            realm_account *a = account_of_holder();
            begin_closing();
            await_closed(e, a); /* the last step is not over */
            let_go_device();
            open_again();
            const realm_usage u = usage_of(name);
            is_charged(&FORMS[i], &u);
            ledger_agrees();
        }
}

/* A job of a tenant that is gone waits: it is done before the runtime is. */
static void while_jobs_wait_and_the_runtime_closes(void **state) {
    (void)state;
    client c;
    realm_tenant *t = tenant_with("job-closed", TEST_WASM "/guest", "leaver");
    hold_jobs(true);
    begin(&c, t, with_text("heavy job"));
    follow(&c, 1);
    go(&c, LEAVES);
    delete ("job-closed");
    realm_tenant_release(t);
    begin_closing();
    let_go_jobs();
    open_again();
    assert_int_equal(usage_of("job-closed").aborted_requests, 1);
    ledger_agrees();
}

int main(int argc, char **argv) {
    char remove[SCRATCH_MAX + 16];
    if (is_compiler(argc, argv)) return compile(argv);
    state_dir = scratch_dir(dir);
    if (!state_dir || open_runtime()) return 1;
    realm_mutex_init(&gate.mu, REALM_RANK_LEAF);
    realm_cond_init(&gate.cond);
    holder = tenant_with("holder", NULL, NULL);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(while_the_engine_stands, let_go),
        cmocka_unit_test_teardown(while_the_engine_is_held, let_go),
        cmocka_unit_test_teardown(while_choices_share_a_prompt, let_go),
        cmocka_unit_test_teardown(while_its_job_waits, let_go),
        cmocka_unit_test_teardown(while_its_program_is_opened, let_go),
        cmocka_unit_test_teardown(while_the_runtime_closes, let_go),
        cmocka_unit_test_teardown(while_jobs_wait_and_the_runtime_closes, let_go),
    };
    int failed = cmocka_run_group_tests_name("deleted", tests, NULL, NULL);
    realm_tenant_release(holder);
    failed = close_runtime(failed);
    snprintf(remove, sizeof remove, "rm -rf '%s'", dir);
    return system(remove) ? 1 : failed;
}
