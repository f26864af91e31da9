/* Host calls, end to end: real programs in real sandboxes over the engine of a tiny random model. */
#include "tenant/client.h"

static void probe(const char *program) {
    client c;
    realm_tenant *t = tenant_with(program, TEST_WASM "/guest", program);
    complete(&c, t, text_request());
    expect_ok(&c);
    if (c.len != 2 || strcmp(c.text, "ok") != 0) fail_msg("%s: %s", program, c.text);
    assert_int_equal(c.n_tokens, 0);
    end(&c);
    realm_tenant_release(t);
}

static void test_every_call(void **state) {
    (void)state;
    probe("probe");
}

static void test_every_call_with_64_bits(void **state) {
    (void)state;
    probe("probe64");
}

static void meet(client *c, const char *what, const char *limit, const char *value) {
    char tenant[64];
    snprintf(tenant, sizeof tenant, "meets-%s", what);
    set_limit(tenant, limit, value);
    realm_tenant *t = tenant_with(tenant, TEST_WASM "/guest", "limits");
    complete(c, t, with_text(what));
    realm_tenant_release(t);
}

static void test_limits(void **state) {
    (void)state;
    client c;
    meet(&c, "handles", "handles", "37");
    expect_ok(&c);
    assert_string_equal(c.text, "37");
    end(&c);
    meet(&c, "emit", "output_bytes", "12345");
    assert_int_equal(c.status, REALM_E_LIMIT);
    assert_non_null(strstr(c.error, "output_bytes: 12345"));
    assert_int_equal(c.len, 12340); /* as many whole ones as fit */
    end(&c);
    meet(&c, "pipe", "output_bytes", "5");
    expect_ok(&c);
    assert_int_equal(c.finish, REALM_FINISH_LENGTH);
    assert_true(c.len > 0 && c.len <= 5);
    end(&c);
    meet(&c, "read", "read_bytes", "10000"); /* rows of 320 floats */
    expect_ok(&c);
    assert_string_equal(c.text, "7");
    end(&c);
    meet(&c, "keep", "tensor_bytes", "10000");
    expect_ok(&c);
    assert_string_equal(c.text, "7");
    end(&c);
    meet(&c, "wall", "wall_ms", "50");
    assert_int_equal(c.status, REALM_E_TIMEOUT);
    end(&c);
}

static atomic_uint logged;
static void count_lines(void *user, realm_log_level level, const char *line, size_t len) {
    (void)user;
    (void)level;
    (void)len;
    if (strstr(line, "xxxxxxxxxx")) atomic_fetch_add(&logged, 1);
}

static void test_log_bytes(void **state) {
    (void)state;
    client c;
    realm_log_configure(REALM_LOG_DEBUG, count_lines, NULL);
    meet(&c, "log", "log_bytes", "5999");
    realm_log_configure(REALM_LOG_INFO, NULL, NULL);
    expect_ok(&c);
    end(&c);
    assert_int_equal(atomic_load(&logged), 5);
}

static void test_contexts(void **state) {
    (void)state;
    set_limit("probe_contexts", "contexts", "2");
    set_limit("probe_contexts64", "contexts", "2");
    probe("probe_contexts");
    probe("probe_contexts64");
}

static void test_sampling(void **state) {
    (void)state;
    probe("probe_sampling");
    probe("probe_sampling64");
}

static void test_events(void **state) {
    (void)state;
    probe("probe_events");
    probe("probe_events64");
}

static void test_store(void **state) {
    (void)state;
    set_limit("probe_store", "storage_bytes", "3145728");
    set_limit("probe_store64", "storage_bytes", "3145728");
    probe("probe_store");
    probe("probe_store64");
}

/* Eight requests of one tenant write side by side: nothing is lost, and another tenant sees none of it. */
static void test_store_together(void **state) {
    (void)state;
    enum { N = 8 };
    client c[N];
    int most = 0;
    realm_tenant *t = tenant_with("counts", TEST_WASM "/guest", "counter"),
                 *u = tenant_with("counts-too", TEST_WASM "/guest", "counter");
    for (int i = 0; i < N; i++) begin(&c[i], t, text_request());
    for (int i = 0; i < N; i++) {
        follow(&c[i], 0);
        expect_ok(&c[i]);
        most = REALM_MAX(most, atoi(c[i].text));
        end(&c[i]);
    }
    assert_int_equal(most, N * 20);
    complete(&c[0], u, text_request());
    expect_ok(&c[0]);
    assert_string_equal(c[0].text, "0020");
    end(&c[0]);
    realm_tenant_release(t);
    realm_tenant_release(u);
}

static char *plain_answer(void);

static realm_status ask_saved(realm_tenant *t, const char *what, char **text) {
    client c;
    complete(&c, t, with_text(what));
    realm_status st = c.status;
    if (text) *text = strdup(c.text ? c.text : "");
    end(&c);
    return st;
}

/* A context outlives its request, and is another tenant's in no way. */
static void test_saved_contexts(void **state) {
    (void)state;
    char *text, *plain = plain_answer();
    realm_tenant *t = tenant_with("saves", TEST_WASM "/guest", "saved"),
                 *u = tenant_with("steals", TEST_WASM "/guest", "saved");
    assert_int_equal(ask_saved(t, "open", NULL), REALM_E_NOT_FOUND);
    assert_int_equal(ask_saved(t, "save", NULL), REALM_OK);
    assert_int_equal(ask_saved(u, "open", NULL), REALM_E_NOT_FOUND);
    assert_int_equal(ask_saved(u, "drop", NULL), REALM_E_NOT_FOUND);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(ask_saved(t, "open", &text), REALM_OK);
        assert_string_equal(text, plain);
        free(text);
    }
    assert_int_equal(ask_saved(t, "drop", NULL), REALM_OK);
    assert_int_equal(ask_saved(t, "open", NULL), REALM_E_NOT_FOUND);
    assert_int_equal(ask_saved(t, "save", NULL), REALM_OK); /* stays: the tenant is deleted with it */
    realm_tenant_release(t);
    realm_tenant_release(u);
    assert_int_equal(realm_store_tenant_delete(realm_runtime_store(rt), "saves", NULL), REALM_OK);
    realm_engine_stats stats;
    uint64_t until = realm_clock_ns() + PATIENCE_NS;
    do { /* the ledger's thread lets go of it once its last run has */
        realm_runtime_reload(rt);
        realm_engine_get_stats(engine_of(rt, "tiny"), &stats);
    } while (stats.contexts > 0 && realm_clock_ns() < until);
    assert_int_equal(stats.contexts, 0);
    free(plain);
}

/* The first requests of a tenant come while its stored program is being compiled: none waits in realm_run_start, all
 * are served, and a module that cannot be used ends each with the reason. */
static void test_stored_programs(void **state) {
    (void)state;
    enum { N = 8 };
    client c[N];
    realm_error err = {0};
    size_t n = 0;
    char *wasm = read_file(TEST_WASM "/guest", "counter", &n);
    realm_store *store = realm_runtime_store(rt);
    realm_tenant *t = tenant_with("stored", NULL, NULL), *u = tenant_with("broken", NULL, NULL);
    assert_int_equal(realm_store_tenant_set(store, "stored", NULL, wasm, n, &err), REALM_OK);
    assert_int_equal(realm_store_tenant_set(store, "broken", NULL, wasm, n - 20, &err), REALM_OK);
    realm_free(wasm);
    realm_runtime_reload(rt);
    for (int i = 0; i < N; i++) begin(&c[i], t, text_request());
    realm_run_cancel(c[3].run);
    for (int i = 0; i < N; i++) {
        follow(&c[i], 0);
        if (i == 3)
            assert_int_equal(c[i].finish, REALM_FINISH_CANCELLED);
        else
            expect_ok(&c[i]);
        end(&c[i]);
    }
    complete(&c[0], u, text_request()); /* before it is known */
    assert_int_equal(c[0].status, REALM_E_PROGRAM);
    assert_non_null(strstr(c[0].error, "program of tenant broken"));
    end(&c[0]);
    realm_request *r;
    realm_run *run;
    realm_run_params p = text_request();
    assert_int_equal(request_on(u, "tiny", NULL, &r, &err), REALM_OK);
    assert_int_equal(realm_run_start(r, &p, &run, &err), REALM_E_PROGRAM); /* and after */
    realm_request_close(r);
    realm_tenant_release(t);
    realm_tenant_release(u);
}

/* The text that the engine makes of the request, for comparison. */
static char *plain_answer(void) {
    client c;
    realm_tenant *t = tenant_with("plain", NULL, NULL);
    complete(&c, t, text_request());
    expect_ok(&c);
    assert_int_equal(c.finish, REALM_FINISH_LENGTH);
    assert_int_equal(c.n_tokens, 16);
    assert_int_equal(c.completion_tokens, 16);
    assert_true(c.prompt_tokens >= 2);
    char *text = strdup(c.text);
    end(&c);
    realm_tenant_release(t);
    return text;
}

static void test_examples(void **state) {
    (void)state;
    client c;
    char *plain = plain_answer();
    for (char *p = plain; *p; p++)
        if (*p >= 'a' && *p <= 'z') *p = (char)(*p - 32);
    realm_tenant *t = tenant_with("shouts", TEST_GUESTS, "shout");
    complete(&c, t, text_request());
    expect_ok(&c);
    assert_int_equal(c.completion_tokens, 16); /* counted, though the tokens never reached the client */
    assert_memory_equal(c.text, plain, strlen(plain));
    assert_string_equal(c.text + strlen(plain), "\n\n-- SHOUTED BY REALM");
    end(&c);
    realm_tenant_release(t);
    free(plain);
}

/* redact over an answer that is steered by a bias to "ab", "c" and " ": the words "abc" and "ab" are hidden. */
static void test_redact(void **state) {
    (void)state;
    client c;
    realm_tenant *t = tenant_with("redacts", TEST_GUESTS, "redact");
    static const char INPUT[] =
        "{\"endpoint\":\"completion\",\"prompt\":\"abc abc\",\"metadata\":{\"redact\":\"xyz, ABC,q\"}}";
    realm_logit_bias bias[] = {{TINY_PIECE(4), 100}, {TINY_PIECE(3), 100}, {TINY_PIECE(0), 100}};
    realm_run_params p = text_request();
    p.input = INPUT;
    p.input_len = sizeof INPUT - 1;
    p.generation.sampling.bias = bias;
    p.generation.sampling.n_bias = 3;
    p.generation.sampling.temperature = 8; /* about equally likely */
    p.generation.max_tokens = 200;
    client plain;
    realm_tenant *u = tenant_with("plain", NULL, NULL);
    int hidden = 0;
    for (uint64_t seed = 1; seed < 8; seed++) {
        p.generation.sampling.seed = seed;
        complete(&c, t, p);
        complete(&plain, u, p);
        expect_ok(&c);
        expect_ok(&plain);
        char *want = strdup(plain.text); /* the same by hand: whole words "abc" become asterisks */
        for (char *w = want; *w;) {
            size_t n = strcspn(w, " ");
            if (n == 3 && !memcmp(w, "abc", 3)) memset(w, '*', 3), hidden++;
            w += n;
            w += strspn(w, " ");
        }
        assert_string_equal(c.text, want);
        free(want);
        end(&c);
        end(&plain);
    }
    assert_true(hidden > 10);
    realm_tenant_release(t);
    realm_tenant_release(u);
}

static void test_generate_pair(void **state) {
    (void)state;
    client c;
    char *plain = plain_answer();
    realm_tenant *t = tenant_with("classic", TEST_WASM "/guest", "classic");
    complete(&c, t, text_request());
    expect_ok(&c);
    assert_memory_equal(c.text, "answer:", 7);
    assert_string_equal(c.text + 7, plain); /* handed back unchanged, the prompt is the request's own */
    assert_int_equal(c.completion_tokens, 16);
    end(&c);
    realm_tenant_release(t);
    free(plain);
}

static void test_slow_reader(void **state) {
    (void)state;
    client c;
    realm_tenant *t = tenant_with("floods", TEST_WASM "/guest", "flood");
    begin(&c, t, text_request());
    usleep(20000); /* it fills what there is room for, and waits */
    follow(&c, 0);
    expect_ok(&c);
    assert_int_equal(c.len, 1000000);
    for (size_t i = 0; i < c.len; i++)
        if (c.text[i] != (char)('0' + i / 100000)) fail_msg("byte %zu is %c", i, c.text[i]);
    end(&c);
    realm_tenant_release(t);
}

/* What a program emitted is handed over with its memory; how much the reader's batch may hold is the reader's. */
static void test_a_batch_keeps_its_bound(void **state) {
    (void)state;
    client c;
    realm_event_batch b;
    const uint64_t until = realm_clock_ns() + PATIENCE_NS;
    realm_tenant *t = tenant_with("speaks", TEST_WASM "/guest", "late");
    realm_event_batch_init(&b);
    const size_t bound = b.text.max;
    begin(&c, t, text_request());
    while (realm_run_poll(c.run, &b) == 0) assert_true(realm_clock_ns() < until);
    assert_int_equal(b.text.len, 4);
    assert_int_equal(b.text.max, bound);
    realm_event_batch_release(&b);
    follow(&c, 0);
    expect_ok(&c);
    end(&c);
    realm_tenant_release(t);
}

static void test_cancel(void **state) {
    (void)state;
    client c;
    realm_tenant *t = tenant_with("stuck", TEST_WASM "/guest", "stuck");
    begin(&c, t, text_request());
    follow(&c, 7);
    realm_run_cancel(c.run);
    follow(&c, 0);
    assert_int_equal(c.finish, REALM_FINISH_CANCELLED);
    assert_true(c.prompt_tokens >= 2);
    end(&c);
    begin(&c, t, text_request()); /* and at once */
    realm_run_cancel(c.run);
    follow(&c, 0);
    assert_int_equal(c.finish, REALM_FINISH_CANCELLED);
    end(&c);
    begin(&c, t, text_request()); /* and by going away */
    end(&c);
    realm_tenant_release(t);
    t = tenant_with("plain", NULL, NULL); /* in pipe mode */
    realm_run_params p = text_request();
    p.generation.max_tokens = 0;
    begin(&c, t, p);
    follow(&c, 1);
    realm_run_cancel(c.run);
    follow(&c, 0);
    assert_int_equal(c.finish, REALM_FINISH_CANCELLED);
    end(&c);
    realm_tenant_release(t);
    nothing_is_left();
}

static void test_errors_reach_the_client(void **state) {
    (void)state;
    client c;
    realm_tenant *t = tenant_with("plain", NULL, NULL);
    realm_run_params p = text_request();
    char *big = malloc(4000);
    memset(big, 'e', 4000);
    p.prompt = big;
    p.prompt_len = 4000;
    complete(&c, t, p);
    assert_int_equal(c.finish, REALM_FINISH_ERROR);
    assert_int_equal(c.status, REALM_E_CONTEXT);
    assert_non_null(strstr(c.error, "context"));
    end(&c);
    free(big);
    p = text_request();
    p.kind = REALM_PROMPT_MESSAGES;
    p.prompt = "[{\"role\":\"user\"}]"; /* this template refuses messages without content */
    p.prompt_len = strlen(p.prompt);
    complete(&c, t, p);
    assert_int_equal(c.finish, REALM_FINISH_ERROR);
    assert_int_equal(c.status, REALM_E_INVALID);
    assert_non_null(strstr(c.error, "no content"));
    end(&c);
    realm_tenant_release(t);
}

/* What a generation's failure is to the request is the program's to say; what the program gets wrong is its own. */
static void test_failures_are_the_programs(void **state) {
    (void)state;
    static const struct {
        const char *what;
        realm_status status;
        const char *text;
    } cases[] = {{"cope", REALM_OK, "coped"},
                 {"tell", REALM_E_INVALID, "grammar"},
                 {"code", REALM_E_NOT_FOUND, "there is no model"},
                 {"bytes", REALM_E_PROGRAM, "not valid UTF-8"}};
    realm_tenant *t = tenant_with("gives", TEST_WASM "/guest", "gives");
    for (size_t i = 0; i < REALM_ARRAY_LEN(cases); i++) {
        client c;
        complete(&c, t, with_text(cases[i].what));
        if (c.status != cases[i].status) fail_msg("%s: %s (%s)", cases[i].what, realm_status_name(c.status), c.error);
        if (c.status == REALM_OK)
            assert_string_equal(c.text, cases[i].text);
        else if (!strstr(c.error, cases[i].text))
            fail_msg("%s: %s", cases[i].what, c.error);
        end(&c);
    }
    realm_tenant_release(t);
}

/* Forty requests of four tenants at once, each with its own program. */
static void test_together(void **state) {
    (void)state;
    enum { N = 40 };
    static client c[N];
    realm_tenant *t[] = {tenant_with("plain", NULL, NULL), tenant_with("shouts", TEST_GUESTS, "shout"),
                         tenant_with("classic", TEST_WASM "/guest", "classic"),
                         tenant_with("redacts", TEST_GUESTS, "redact")};
    char *plain = plain_answer();
    for (int i = 0; i < N; i++) begin(&c[i], t[i % 4], text_request());
    for (int i = 0; i < N; i++) {
        follow(&c[i], 0);
        expect_ok(&c[i]);
        assert_int_equal(c[i].completion_tokens, 16);
        if (i % 4 == 0) assert_string_equal(c[i].text, plain);
        if (i % 4 == 2) assert_string_equal(c[i].text + 7, plain);
    }
    for (int i = 0; i < N; i++) end(&c[i]);
    for (int k = 0; k < 4; k++) realm_tenant_release(t[k]);
    free(plain);
}

int main(int argc, char **argv) {
    if (is_compiler(argc, argv)) return compile(argv);
    if (open_runtime()) return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_call),
        cmocka_unit_test(test_every_call_with_64_bits),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_log_bytes),
        cmocka_unit_test(test_saved_contexts),
        cmocka_unit_test(test_stored_programs),
        cmocka_unit_test(test_contexts),
        cmocka_unit_test(test_sampling),
        cmocka_unit_test(test_events),
        cmocka_unit_test(test_store),
        cmocka_unit_test(test_store_together),
        cmocka_unit_test(test_examples),
        cmocka_unit_test(test_redact),
        cmocka_unit_test(test_generate_pair),
        cmocka_unit_test(test_slow_reader),
        cmocka_unit_test(test_a_batch_keeps_its_bound),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_errors_reach_the_client),
        cmocka_unit_test(test_failures_are_the_programs),
        cmocka_unit_test(test_together),
    };
    return close_runtime(cmocka_run_group_tests_name("host calls", tests, NULL, NULL));
}
