/* Things that come at a bad moment: a program that is ended between a pin and hearing of it, one that fails when what
 * it said has been read already, one that wants another model while others load theirs. */
#include "tenant/client.h"
#include "tenant/internal.h"

#define WALL_MS "300"
#define N_BUSY 2 /* as many as workers */

/* ---- programs whose worker is held in on_ready ---- */

typedef struct gate {
    client c;
    bool reached, open;
} gate;

static void wait_at_gate(void *user) {
    gate *g = user;
    realm_mutex_lock(&g->c.mu);
    g->reached = g->c.ready = true;
    realm_cond_broadcast(&g->c.cond);
    while (!g->open) realm_cond_wait(&g->c.cond, &g->c.mu);
    g->c.ready = true;
    realm_cond_broadcast(&g->c.cond);
    realm_mutex_unlock(&g->c.mu);
}

static void start_at_gate(gate *g, realm_tenant *t, const char *input) {
    realm_error err = {0};
    realm_run_params p = text_request();
    memset(g, 0, sizeof *g);
    realm_mutex_init(&g->c.mu, REALM_RANK_LEAF);
    realm_cond_init(&g->c.cond);
    faults(true);
    p.input = input;
    p.input_len = strlen(input);
    p.on_ready = wait_at_gate;
    p.user = g;
    if (request_on(t, "tiny", NULL, &g->c.request, &err)) fail_msg("%s", err.text);
    if (realm_run_start(g->c.request, &p, &g->c.run, &err)) fail_msg("%s", err.text);
}

static void reach_gate(gate *g) {
    const uint64_t until = realm_clock_ns() + PATIENCE_NS;
    realm_mutex_lock(&g->c.mu);
    while (!g->reached)
        if (!realm_cond_wait_until(&g->c.cond, &g->c.mu, until)) fail_msg("the program does not get there");
    realm_mutex_unlock(&g->c.mu);
}

static void open_gate(gate *g) {
    realm_mutex_lock(&g->c.mu);
    g->open = true;
    realm_cond_broadcast(&g->c.cond);
    realm_mutex_unlock(&g->c.mu);
}

/* ---- a pin that its program never hears of ---- */

static uint32_t pinned(void) {
    realm_model_stream_stats s;
    realm_model_get_stream_stats(rt->models[0]->model, &s);
    return s.layers_pinned;
}

static void limit_wall(const char *tenant) {
    realm_error err = {0};
    realm_tenant_row row;
    realm_store *store = realm_runtime_store(rt);
    if (realm_store_tenant_find(store, tenant, &row, &err) || realm_limits_set(&row.limits, "wall_ms", WALL_MS, &err) ||
        realm_store_tenant_set(store, tenant, &row.limits, NULL, 0, &err))
        fail_msg("%s", err.text);
    realm_runtime_reload(rt);
}

/* One program is about to pin a layer; both workers are then held by others, so that the layer is pinned and the
 * program past its time before anybody can run it again. */
static void ended_before_it_hears_of_its_pin(void **state) {
    (void)state;
    gate pins, busy[N_BUSY];
    realm_tenant *t = tenant_with("pins", TEST_WASM "/guest", "late"),
                 *other = tenant_with("busy", TEST_WASM "/guest", "late");
    limit_wall("pins");
    assert_int_equal(pinned(), 0);
    start_at_gate(&pins, t, "{\"layer\":0}");
    const uint64_t past = realm_clock_ns() + 2 * (uint64_t)atoi(WALL_MS) * REALM_NS_PER_MS;
    reach_gate(&pins);
    for (size_t i = 0; i < N_BUSY; i++) start_at_gate(&busy[i], other, "{}");
    open_gate(&pins); /* it goes on to the pin; behind it both workers are taken */
    for (size_t i = 0; i < N_BUSY; i++) reach_gate(&busy[i]);
    /* On a slow machine its time may be up before the pin, or it hears of it after all: that too leaves nothing. */
    while (realm_clock_ns() < past) usleep(1000);
    for (size_t i = 0; i < N_BUSY; i++) open_gate(&busy[i]);
    follow(&pins.c, 0);
    end(&pins.c);
    for (size_t i = 0; i < N_BUSY; i++) {
        follow(&busy[i].c, 0);
        expect_ok(&busy[i].c);
        end(&busy[i].c);
    }
    assert_int_equal(pinned(), 0);
    realm_tenant_release(other);
    realm_tenant_release(t);
}

/* ---- a caller that lets go of its grammar before the program has begun ---- */

static void a_run_has_its_grammar_for_itself(void **state) {
    (void)state;
    static const char pattern[] = "(yes|no)";
    gate busy[N_BUSY];
    client c;
    realm_error err = {0};
    realm_grammar_state *grammar = NULL;
    realm_tenant *t = tenant_with("asks", NULL, NULL), *other = tenant_with("busy", TEST_WASM "/guest", "late");
    for (size_t i = 0; i < N_BUSY; i++) start_at_gate(&busy[i], other, "{}");
    for (size_t i = 0; i < N_BUSY; i++) reach_gate(&busy[i]);
    realm_served *model = realm_runtime_hold(rt, "tiny");
    if (realm_tenant_grammar(t, model, REALM_GRAMMAR_KIND_REGEX, pattern, sizeof pattern - 1, &grammar, &err))
        fail_msg("%s", err.text);
    realm_run_params p = text_request();
    p.generation.grammar = grammar;
    p.generation.ignore_end = false;
    begin(&c, t, p);
    realm_grammar_state_close(grammar);
    realm_served_release(model); /* as a client's connection may end: its program has not begun */
    for (size_t i = 0; i < N_BUSY; i++) open_gate(&busy[i]);
    follow(&c, 0);
    expect_ok(&c);
    if (strcmp(c.text, "yes") != 0 && strcmp(c.text, "no") != 0) fail_msg("%s", c.text);
    end(&c);
    for (size_t i = 0; i < N_BUSY; i++) {
        follow(&busy[i].c, 0);
        expect_ok(&busy[i].c);
        end(&busy[i].c);
    }
    realm_tenant_release(other);
    realm_tenant_release(t);
}

/* ---- a failure after text that was read ---- */

static void counted_once_something_was_shown(void **state) {
    (void)state;
    gate g;
    realm_runtime_stats before, after;
    realm_tenant *t = tenant_with("fails", TEST_WASM "/guest", "late");
    realm_runtime_get_stats(rt, &before);
    start_at_gate(&g, t, "{\"layer\":4000}");
    reach_gate(&g);
    follow(&g.c, 4);
    open_gate(&g);
    follow(&g.c, 0);
    assert_int_equal(g.c.status, REALM_E_RANGE);
    assert_string_equal(g.c.text, "here");
    realm_runtime_get_stats(rt, &after);
    assert_int_equal(after.requests - before.requests, 1);
    end(&g.c);
    realm_tenant_release(t);
}

/* ---- while all threads for heavy jobs are taken ---- */

typedef struct long_job {
    tenant_job job;
    gate *g;
} long_job;

static void work_at_gate(tenant_job *job) { wait_at_gate(((long_job *)job)->g); }
static void long_free(tenant_job *job) { free(job); }

/* Several for each of two tenants, as one has but one of the threads. */
static void take_heavy_threads(gate *g, realm_tenant *const who[2]) {
    enum { N_LONG = 8 }; /* more than there are threads for such */
    realm_error err = {0};
    memset(g, 0, sizeof *g);
    realm_mutex_init(&g->c.mu, REALM_RANK_LEAF);
    realm_cond_init(&g->c.cond);
    for (int i = 0; i < N_LONG; i++) {
        long_job *j = calloc(1, sizeof *j);
        j->g = g;
        j->job.work = work_at_gate;
        j->job.free = long_free;
        job_init(&j->job, who[i % 2], NULL, true);
        if (jobs_submit(rt->jobs, &j->job, &err)) fail_msg("%s", err.text);
        job_release(&j->job);
    }
    reach_gate(g);
}

/* More requests wait for their program to be compiled than may run: those that came last are refused. */
static void first_come_first_started(void **state) {
    (void)state;
    enum { N = 40, SURE = 16 }; /* of the 32 that are a tenant's part, as long as none of before is still ending */
    static gate g;
    static client c[N];
    size_t len = 0;
    realm_error err = {0};
    char *wasm = read_file(TEST_WASM "/guest", "flood", &len);
    realm_tenant *loads[2] = {tenant_with("loads", NULL, NULL), tenant_with("loads-too", NULL, NULL)},
                 *t = tenant_with("first", NULL, NULL);
    assert_int_equal(realm_store_tenant_set(realm_runtime_store(rt), "first", NULL, wasm, len, &err), REALM_OK);
    realm_free(wasm);
    realm_runtime_reload(rt);
    take_heavy_threads(&g, loads);
    for (int i = 0; i < N; i++) begin(&c[i], t, text_request());
    open_gate(&g);
    follow(&c[N - 1], 0);
    assert_int_equal(c[N - 1].status, REALM_E_CROWDED);
    for (int i = 0; i < SURE; i++) {
        follow(&c[i], 1);
        assert_true(c[i].len > 0);
    }
    for (int i = 0; i < N; i++) end(&c[i]);
    realm_tenant_release(loads[0]);
    realm_tenant_release(loads[1]);
    realm_tenant_release(t);
}

static void a_server_model_does_not_wait_for_loading(void **state) {
    (void)state;
    gate g;
    client c;
    realm_tenant *loads[2] = {tenant_with("loads", NULL, NULL), tenant_with("loads-too", NULL, NULL)},
                 *t = tenant_with("uses", TEST_WASM "/guest", "late");
    take_heavy_threads(&g, loads);
    realm_run_params p = text_request();
    p.input = "{\"model\":\"second\"}";
    p.input_len = strlen(p.input);
    complete(&c, t, p);
    expect_ok(&c);
    end(&c);
    open_gate(&g);
    jobs_stop(rt->jobs); /* the gate is this function's; closing the runtime stops them again, which does nothing */
    realm_tenant_release(loads[0]);
    realm_tenant_release(loads[1]);
    realm_tenant_release(t);
}

int main(int argc, char **argv) {
    if (is_compiler(argc, argv)) return compile(argv);
    if (open_runtime()) return 1;
    realm_error err = {0};
    const realm_model_config second = {.engine = {.n_ctx = 64, .max_generations = 2}};
    if (realm_runtime_add_model(rt, "second", tiny_path, &second, NULL, NULL, &err)) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ended_before_it_hears_of_its_pin),         cmocka_unit_test(counted_once_something_was_shown),
        cmocka_unit_test(a_run_has_its_grammar_for_itself),         cmocka_unit_test(first_come_first_started),
        cmocka_unit_test(a_server_model_does_not_wait_for_loading), /* the last: it stops the pool */
    };
    return close_runtime(cmocka_run_group_tests_name("late", tests, NULL, NULL));
}
