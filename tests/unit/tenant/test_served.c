/* The server's models come and go: one that is retired is found by nobody new, answers what has begun, and is then gone
 * with all that hangs on it; no token is lost, and nobody takes one model for another. */
#include "tenant/client.h"
#include "tenant/internal.h"

static const realm_model_config SMALL = {.engine = {.n_ctx = 256, .max_generations = 4}};

static void add(const char *id) {
    realm_error err = {0};
    if (realm_runtime_add_model(rt, id, tiny_path, &SMALL, NULL, NULL, &err)) fail_msg("%s", err.text);
}

static void retire(const char *id) {
    realm_error err = {0};
    if (realm_runtime_retire_model(rt, id, &err)) fail_msg("%s", err.text);
}

/* In memory: served, or retired and held. */
static uint32_t in_memory(void) {
    uint32_t n = 0;
    realm_mutex_lock(&rt->mu);
    for (size_t i = 0; i < REALM_MODELS_MAX; i++) n += rt->models[i] != NULL;
    realm_mutex_unlock(&rt->mu);
    return n;
}

static void until_in_memory(uint32_t n) {
    const uint64_t until = realm_clock_ns() + PATIENCE_NS;
    while (in_memory() != n) {
        if (realm_clock_ns() > until) fail_msg("%u models are in memory, not %u", in_memory(), n);
        realm_runtime_reload(rt); /* the maintenance thread has been round */
    }
}

static char *answer_on(realm_tenant *t, const char *model) {
    client c;
    begin_on(&c, t, model, text_request());
    follow(&c, 0);
    expect_ok(&c);
    char *text = strdup(c.text);
    end(&c);
    return text;
}

static void what_has_begun_is_answered(void **state) {
    (void)state;
    client c = {0};
    realm_error err = {0};
    realm_request *r = NULL;
    realm_served *all[REALM_MODELS_MAX];
    realm_tenant *t = tenant_with("asks", NULL, NULL);
    add("second");
    assert_int_equal(realm_runtime_add_model(rt, "second", tiny_path, &SMALL, NULL, NULL, &err), REALM_E_EXISTS);
    char *same = answer_on(t, "tiny");
    /* A request that is admitted, of which nothing runs yet. */
    realm_mutex_init(&c.mu, REALM_RANK_LEAF);
    realm_cond_init(&c.cond);
    if (request_on(t, "second", NULL, &c.request, &err)) fail_msg("%s", err.text);
    retire("second");
    assert_int_equal(realm_runtime_retire_model(rt, "second", &err), REALM_E_NOT_FOUND);
    assert_null(realm_runtime_hold(rt, "second"));
    assert_int_equal(request_on(t, "second", NULL, &r, &err), REALM_E_NOT_FOUND);
    assert_int_equal(realm_runtime_publish_prefix(rt, "second", "abc", 3, &err), REALM_E_NOT_FOUND);
    assert_int_equal(realm_runtime_model_count(rt), 1);
    assert_int_equal(realm_runtime_hold_all(rt, all), 1);
    realm_served_release(all[0]);
    realm_runtime_reload(rt);
    realm_runtime_reload(rt);
    assert_int_equal(in_memory(), 2);
    realm_run_params p = text_request();
    p.on_ready = on_ready;
    p.user = &c;
    if (realm_run_start(c.request, &p, &c.run, &err)) fail_msg("%s", err.text);
    follow(&c, 0);
    expect_ok(&c);
    assert_string_equal(c.text, same);
    assert_int_equal(in_memory(), 2);
    end(&c);
    until_in_memory(1);
    ledger_agrees();
    free(same);
    realm_tenant_release(t);
}

/* Its id is free while the old one is still in use; each keeps its own. */
static void an_id_is_free_at_once(void **state) {
    (void)state;
    realm_served *all[REALM_MODELS_MAX];
    realm_model_info info;
    realm_tenant *t = tenant_with("asks", NULL, NULL);
    add("second");
    realm_served *old = realm_runtime_hold(rt, "second");
    retire("second");
    add("third");
    add("second");
    assert_int_equal(in_memory(), 4);
    assert_int_equal(realm_runtime_hold_all(rt, all), 3);
    static const char *const order[] = {"tiny", "third", "second"};
    for (size_t i = 0; i < 3; i++) {
        realm_served_get_info(all[i], &info);
        assert_string_equal(info.id, order[i]);
        assert_ptr_not_equal(all[i], old);
        realm_served_release(all[i]);
    }
    free(answer_on(t, "second"));
    const int32_t was = old->server_id;
    realm_served_release(old);
    until_in_memory(3);
    add("fourth"); /* in the place that is free again, and yet last, and no program's old number is its */
    assert_int_equal(realm_runtime_hold_all(rt, all), 4);
    realm_served_get_info(all[3], &info);
    assert_string_equal(info.id, "fourth");
    assert_null(runtime_hold_server_id(rt, was));
    for (size_t i = 0; i < 4; i++) realm_served_release(all[i]);
    free(answer_on(t, "fourth")); /* an account of its own, not that of the one whose place it has */
    retire("second");
    retire("third");
    retire("fourth");
    until_in_memory(1);
    ledger_agrees();
    realm_tenant_release(t);
}

static void text_on(client *c, realm_tenant *t, const char *model, const char *input) {
    begin_on(c, t, model, with_input(input));
    follow(c, 0);
    free(c->text);
    c->text = NULL;
    end(c);
}

/* What tenants saved on it goes with it, and is not found on another of its name. */
static void saved_contexts_go_with_it(void **state) {
    (void)state;
    client c;
    realm_tenant *t = tenant_with("saves", TEST_WASM "/guest", "saved");
    add("second");
    text_on(&c, t, "second", "{\"text\":\"save\"}");
    assert_int_equal(c.status, REALM_OK);
    text_on(&c, t, "tiny", "{\"text\":\"save\"}");
    assert_int_equal(c.status, REALM_OK);
    assert_non_null(t->saved);
    retire("second");
    until_in_memory(1);
    add("second");
    text_on(&c, t, "second", "{\"text\":\"open\"}");
    assert_int_equal(c.status, REALM_E_NOT_FOUND);
    text_on(&c, t, "tiny", "{\"text\":\"open\"}");
    assert_int_equal(c.status, REALM_OK);
    retire("second");
    until_in_memory(1);
    ledger_agrees();
    realm_tenant_release(t);
}

/* A program that is at work when a model goes: it finds it no more, or has it until it ends. */
static void programs_keep_what_they_use(void **state) {
    (void)state;
    client c;
    realm_error err = {0};
    realm_tenant *t = tenant_with("uses", TEST_WASM "/guest", "late");
    add("second");
    text_on(&c, t, "tiny", "{\"model\":\"second\"}");
    assert_int_equal(c.status, REALM_OK);
    retire("second");
    text_on(&c, t, "tiny", "{\"model\":\"second\"}");
    assert_int_equal(c.status, REALM_E_NOT_FOUND);
    until_in_memory(1);
    /* A weight holds its model, whoever of the program is left. */
    add("second");
    realm_served *m = realm_runtime_hold(rt, "second");
    realm_tensor *w;
    static const char name[] = "blk.0.ffn_up.weight";
    assert_non_null(m);
    if (realm_tensor_of_weight(m->model, name, sizeof name - 1, (void (*)(void *))realm_served_release, m, &w, &err))
        fail_msg("%s", err.text);
    retire("second");
    realm_runtime_reload(rt);
    realm_runtime_reload(rt);
    assert_int_equal(in_memory(), 2);
    realm_tensor_release(w);
    until_in_memory(1);
    realm_tenant_release(t);
}

/* ---- all at once ---- */

enum { N_ASKING = 4, ROUNDS = 12 };

typedef struct asking {
    pthread_t thread;
    realm_tenant *t;
    atomic_bool *stop;
    uint32_t answered, not_found, other;
} asking;

static void *ask_on(void *arg) {
    asking *a = arg;
    realm_event_batch b;
    realm_event_batch_init(&b);
    while (!atomic_load(a->stop)) {
        client c = {0};
        realm_error err = {0};
        realm_mutex_init(&c.mu, REALM_RANK_LEAF);
        realm_cond_init(&c.cond);
        realm_run_params p = text_request();
        p.on_ready = on_ready;
        p.user = &c;
        realm_status s = request_on(a->t, "comes", NULL, &c.request, &err);
        if (s == REALM_OK) s = realm_run_start(c.request, &p, &c.run, &err);
        bool ended = s != REALM_OK;
        while (!ended) {
            realm_mutex_lock(&c.mu);
            while (!c.ready) realm_cond_wait(&c.cond, &c.mu);
            c.ready = false;
            realm_mutex_unlock(&c.mu);
            while (!ended && realm_run_poll(c.run, &b) > 0) ended = b.events[b.n_events - 1].kind == REALM_EVENT_END;
        }
        if (s == REALM_OK) s = b.status;
        *(s == REALM_OK ? &a->answered : s == REALM_E_NOT_FOUND ? &a->not_found : &a->other) += 1;
        realm_run_release(c.run);
        realm_request_close(c.request);
        realm_cond_destroy(&c.cond);
        realm_mutex_destroy(&c.mu);
    }
    realm_event_batch_release(&b);
    return NULL;
}

static void requests_while_models_come_and_go(void **state) {
    (void)state;
    asking a[N_ASKING] = {0};
    atomic_bool stop = false;
    faults(true);
    for (size_t i = 0; i < N_ASKING; i++) {
        a[i] = (asking){.t = tenant_with(i % 2 ? "asks" : "asks-too", NULL, NULL), .stop = &stop};
        assert_int_equal(pthread_create(&a[i].thread, NULL, ask_on, &a[i]), 0);
    }
    for (int i = 0; i < ROUNDS; i++) {
        add("comes");
        free(answer_on(a[0].t, "comes"));
        retire("comes");
    }
    atomic_store(&stop, true);
    for (size_t i = 0; i < N_ASKING; i++) {
        pthread_join(a[i].thread, NULL);
        assert_int_equal(a[i].other, 0);
        realm_tenant_release(a[i].t);
    }
    until_in_memory(1);
    ledger_agrees();
}

int main(int argc, char **argv) {
    if (is_compiler(argc, argv)) return compile(argv);
    if (open_runtime()) return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_has_begun_is_answered),        cmocka_unit_test(an_id_is_free_at_once),
        cmocka_unit_test(saved_contexts_go_with_it),         cmocka_unit_test(programs_keep_what_they_use),
        cmocka_unit_test(requests_while_models_come_and_go),
    };
    return close_runtime(cmocka_run_group_tests_name("served", tests, NULL, NULL));
}
