/* The whole path below the sockets on a real model: tenants with programs of their own in one batch, limits, cancel,
 * shared prompts, programs swapped under load, and a ledger whose sums equal the engine's counters throughout. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/thread.h"
#include "sandbox/sandbox.h"
#include "support/model_run.h"
#include "support/request.h"
#include "support/scratch.h"
#include "tenant/tenant.h"

#define QUESTION "[{\"role\":\"user\",\"content\":\"What is the capital of France? Answer in one sentence.\"}]"
#define ANSWER "The capital of France is Paris."

static realm_runtime *rt;
static char state_dir[SCRATCH_MAX];

typedef struct asked { /* one run and what came of it */
    realm_tenant *tenant;
    realm_request *request;
    realm_run *run;
    realm_mutex mu;
    realm_cond cond;
    bool ready;
    realm_event_batch batch;
    char text[16384];
    size_t len;
    uint32_t n_tokens; /* events with an id */
    realm_finish finish;
} asked;

static void on_ready(void *user) {
    asked *a = user;
    realm_mutex_lock(&a->mu);
    a->ready = true;
    realm_cond_signal(&a->cond);
    realm_mutex_unlock(&a->mu);
}

static realm_run_params params_of(asked *a, const char *messages, uint32_t max_tokens) {
    static char input[4096];
    snprintf(input, sizeof input, "{\"endpoint\":\"chat\",\"model\":\"m\",\"messages\":%s}", messages);
    realm_run_params p = {.input = input,
                          .input_len = strlen(input),
                          .kind = REALM_PROMPT_MESSAGES,
                          .prompt = messages,
                          .prompt_len = strlen(messages),
                          .on_ready = on_ready,
                          .user = a};
    realm_sampling_init(&p.generation.sampling);
    p.generation.sampling.temperature = 0;
    p.generation.max_tokens = max_tokens;
    return p;
}

static void asked_init(asked *a) {
    memset(a, 0, sizeof *a);
    realm_mutex_init(&a->mu, REALM_RANK_LEAF);
    realm_cond_init(&a->cond);
    realm_event_batch_init(&a->batch);
}

static void start(asked *a, const char *tenant, const char *messages, uint32_t max_tokens) {
    realm_error err = {0};
    asked_init(a);
    if (realm_runtime_tenant(rt, tenant, &a->tenant, &err) != REALM_OK) fail_msg("tenant: %s", err.text);
    if (request_on(a->tenant, "m", NULL, &a->request, &err) != REALM_OK) fail_msg("request: %s", err.text);
    realm_run_params p = params_of(a, messages, max_tokens);
    if (realm_run_start(a->request, &p, &a->run, &err) != REALM_OK) fail_msg("run: %s", err.text);
}

/* Polls once, waiting for something to poll; true when END came. */
static bool poll_once(asked *a) {
    size_t n = realm_run_poll(a->run, &a->batch);
    if (n == 0) {
        uint64_t deadline = realm_clock_ns() + 60 * REALM_NS_PER_S;
        realm_mutex_lock(&a->mu);
        while (!a->ready)
            if (!realm_cond_wait_until(&a->cond, &a->mu, deadline)) fail_msg("nothing came for a minute");
        a->ready = false;
        realm_mutex_unlock(&a->mu);
    }
    for (size_t i = 0; i < n; i++) {
        const realm_event *e = &a->batch.events[i];
        if (e->kind == REALM_EVENT_END) {
            a->finish = e->finish;
            return true;
        }
        a->n_tokens += e->id >= 0;
        assert_true(a->len + e->text_len < sizeof a->text);
        memcpy(a->text + a->len, a->batch.text.data + e->text_at, e->text_len);
        a->len += e->text_len;
    }
    return false;
}

static void finish(asked *a) {
    while (!poll_once(a)) continue;
}

static void drop(asked *a) {
    realm_run_release(a->run);
    realm_request_close(a->request);
    realm_tenant_release(a->tenant);
    realm_event_batch_release(&a->batch);
    realm_cond_destroy(&a->cond);
    realm_mutex_destroy(&a->mu);
}

static void make_tenant(const char *name, const char *wasm_file, const char *limit, const char *value) {
    realm_error err = {0};
    realm_limits limits;
    char *wasm = NULL;
    size_t len = 0;
    realm_limits_init(&limits);
    if (limit) assert_int_equal(realm_limits_set(&limits, limit, value, &err), REALM_OK);
    if (wasm_file && realm_file_read(wasm_file, 1 << 20, &wasm, &len, &err) != REALM_OK) fail_msg("%s", err.text);
    if (realm_store_tenant_create(realm_runtime_store(rt), name, &limits, wasm, len, NULL, &err) != REALM_OK)
        fail_msg("%s", err.text);
    realm_free(wasm);
}

static bool add_usage(void *user, const char *name, const realm_usage *u) {
    (void)name;
    realm_usage *sum = user;
    sum->requests += u->requests;
    sum->aborted_requests += u->aborted_requests;
    sum->prompt_tokens += u->prompt_tokens;
    sum->cached_tokens += u->cached_tokens;
    sum->completion_tokens += u->completion_tokens;
    return true;
}

static realm_usage usage_of(const char *tenant) {
    realm_usage u = {0};
    assert_int_equal(realm_store_usage_each(realm_runtime_store(rt), tenant, 0, add_usage, &u, NULL), REALM_OK);
    return u;
}

static void ledger_equals_engine(void) {
    realm_usage sum = usage_of(NULL), engine;
    assert_int_equal(realm_store_usage_engine(realm_runtime_store(rt), &engine, NULL), REALM_OK);
    assert_int_equal(sum.prompt_tokens, engine.prompt_tokens);
    assert_int_equal(sum.completion_tokens, engine.completion_tokens);
}

static int open_runtime(void **state) {
    (void)state;
    realm_error err = {0};
    snprintf(state_dir, sizeof state_dir, "tenant");
    if (!scratch_dir(state_dir)) return -1;
    realm_log_configure(REALM_LOG_ERROR, NULL, NULL);
    /* The thread sanitizer leaves no address space for many instances. */
    realm_runtime_config rc = {.state_dir = state_dir, .compiler_path = "/proc/self/exe", .max_instances = 64};
    realm_model_config mc = {.engine = {.n_ctx = 1024}};
    const char *path = cached_model("smollm2-135m-instruct-q4_1.gguf");
    if (!path) {
        fprintf(stderr, "the model is not in the cache: run tools/fetch-models\n");
        return -1;
    }
    if (realm_runtime_open(&rt, &rc, &err) != REALM_OK ||
        realm_runtime_add_model(rt, "m", path, &mc, NULL, NULL, &err) != REALM_OK) {
        fprintf(stderr, "%s\n", err.text);
        return -1;
    }
    return 0;
}

static int close_runtime(void **state) {
    (void)state;
    char cmd[96];
    realm_runtime_close(rt);
    snprintf(cmd, sizeof cmd, "rm -rf '%s'", state_dir);
    return system(cmd);
}

/* ---- tests ------------------------------------------------------------------------------------------------------- */

static void three_programs_share_a_batch(void **state) {
    (void)state;
    make_tenant("plain", NULL, NULL, NULL);
    make_tenant("shout", TEST_GUESTS "/shout.wasm", NULL, NULL);
    make_tenant("redact", TEST_GUESTS "/redact.wasm", NULL, NULL);
    asked a[3];
    static const char *const names[] = {"plain", "shout", "redact"};
    for (int i = 0; i < 3; i++) start(&a[i], names[i], QUESTION, 32);
    for (int i = 0; i < 3; i++) {
        finish(&a[i]);
        assert_int_equal(a[i].finish, REALM_FINISH_STOP);
        /* END comes after the ledger has it: what the batch says is what the store says, now. */
        realm_usage u = usage_of(names[i]);
        assert_int_equal(u.requests, 1);
        assert_int_equal(u.prompt_tokens, a[i].batch.prompt_tokens);
        assert_int_equal(u.completion_tokens, a[i].batch.completion_tokens);
        assert_true(u.prompt_tokens > 10 && u.completion_tokens == 8);
    }
    assert_string_equal(a[0].text, ANSWER);
    assert_non_null(strstr(a[1].text, "THE CAPITAL OF FRANCE IS PARIS."));
    assert_true(strncmp(a[2].text, ANSWER, 10) == 0);
    ledger_equals_engine();
    for (int i = 0; i < 3; i++) drop(&a[i]);
}

static void cancel_and_release_count_as_aborted(void **state) {
    (void)state;
    make_tenant("leaver", NULL, NULL, NULL);
    asked a;
    start(&a, "leaver", QUESTION, 0);
    while (a.n_tokens == 0) assert_false(poll_once(&a));
    realm_run_cancel(a.run);
    finish(&a);
    assert_int_equal(a.finish, REALM_FINISH_CANCELLED);
    drop(&a);
    start(&a, "leaver", QUESTION, 0);
    while (a.n_tokens == 0) assert_false(poll_once(&a));
    drop(&a); /* gone without a word */
    realm_usage u = {0};
    for (int i = 0; i < 100 && u.aborted_requests < 2; i++) {
        usleep(50000);
        u = usage_of("leaver");
    }
    assert_int_equal(u.requests, 2);
    assert_int_equal(u.aborted_requests, 2);
    realm_engine_stats st;
    const uint64_t until = realm_clock_ns() + 60 * REALM_NS_PER_S;
    do /* the engine lets go of it with its next look */
        realm_engine_get_stats(engine_of(rt, "m"), &st);
    while (st.running + st.kv_pages_used > 0 && realm_clock_ns() < until);
    assert_int_equal(st.running, 0);
    assert_int_equal(st.kv_pages_used, 0);
    ledger_equals_engine();
}

static void limits_refuse_and_say_which(void **state) {
    (void)state;
    realm_error err = {0};
    realm_tenant *t;
    realm_request *r[1];
    realm_rate rate;
    make_tenant("slow", NULL, "requests_per_minute", "2");
    assert_int_equal(realm_runtime_tenant(rt, "slow", &t, &err), REALM_OK);
    assert_int_equal(request_on(t, "nothing", NULL, &r[0], &err), REALM_E_NOT_FOUND);
    assert_non_null(strstr(err.text, "nothing"));
    assert_int_equal(realm_tenant_admit(t, &rate, &err), REALM_OK);
    assert_int_equal(rate.limit, 2);
    assert_int_equal(rate.remaining, 1);
    assert_int_equal(realm_tenant_admit(t, &rate, &err), REALM_OK);
    assert_int_equal(realm_tenant_admit(t, &rate, &err), REALM_E_RATE);
    assert_non_null(strstr(err.text, "requests_per_minute"));
    assert_true(rate.retry_after_ms > 20000 && rate.retry_after_ms <= 30000);
    assert_int_equal(request_on(t, "m", &rate, &r[0], &err), REALM_OK); /* one of the two */
    assert_int_equal(rate.limit, 2);
    assert_int_equal(rate.remaining, 0);
    realm_request_close(r[0]);
    realm_tenant_release(t);
    assert_int_equal(usage_of("slow").requests, 0); /* nothing ran */

    make_tenant("spent", NULL, "tokens_per_day", "20");
    asked a;
    start(&a, "spent", QUESTION, 4);
    finish(&a);
    assert_int_equal(a.finish, REALM_FINISH_LENGTH);
    assert_int_equal(request_on(a.tenant, "m", &rate, &r[0], &err), REALM_E_QUOTA);
    assert_non_null(strstr(err.text, "tokens_per_day"));
    realm_error_clear(&err);
    assert_int_equal(realm_tenant_admit(a.tenant, &rate, &err), REALM_E_QUOTA); /* this day is known by now */
    assert_non_null(strstr(err.text, "tokens_per_day"));
    drop(&a);

    make_tenant("narrow", NULL, "kv_tokens", "32");
    start(&a, "narrow", QUESTION, 64);
    finish(&a);
    assert_int_equal(a.finish, REALM_FINISH_ERROR);
    assert_int_equal(a.batch.status, REALM_E_QUOTA);
    assert_non_null(strstr(a.batch.error.text, "kv_tokens"));
    drop(&a);
    assert_int_equal(usage_of("narrow").requests, 0); /* refused, not served */
}

static void choices_share_their_prompt(void **state) {
    (void)state;
    enum { N = 4 };
    realm_error err = {0};
    realm_tenant *t;
    realm_request *r;
    asked a[N];
    make_tenant("chooser", NULL, NULL, NULL);
    assert_int_equal(realm_runtime_tenant(rt, "chooser", &t, &err), REALM_OK);
    assert_int_equal(request_on(t, "m", NULL, &r, &err), REALM_OK);
    realm_request_expect_runs(r, N);
    for (int i = 0; i < N; i++) {
        asked_init(&a[i]);
        realm_run_params p = params_of(&a[i], QUESTION, 32);
        assert_int_equal(realm_run_start(r, &p, &a[i].run, &err), REALM_OK);
    }
    uint32_t prompt = 0, completion = 0;
    for (int i = 0; i < N; i++) {
        finish(&a[i]);
        assert_string_equal(a[i].text, ANSWER);
        prompt += a[i].batch.prompt_tokens;
        completion += a[i].batch.completion_tokens;
    }
    realm_usage u = usage_of("chooser");
    assert_int_equal(u.requests, 1);
    assert_int_equal(u.prompt_tokens, prompt);
    assert_int_equal(u.completion_tokens, completion);
    assert_true(prompt < 2 * 42 && completion == N * 8);
    for (int i = 0; i < N; i++) {
        realm_run_release(a[i].run);
        realm_event_batch_release(&a[i].batch);
    }
    realm_request_close(r);
    realm_tenant_release(t);
    ledger_equals_engine();
}

static void programs_are_swapped_under_load(void **state) {
    (void)state;
    enum { N = 12 };
    realm_error err = {0};
    asked a[N];
    char *wasm;
    size_t len;
    make_tenant("swapper", NULL, NULL, NULL);
    assert_int_equal(realm_file_read(TEST_GUESTS "/shout.wasm", 1 << 20, &wasm, &len, &err), REALM_OK);
    for (int i = 0; i < N; i++) {
        start(&a[i], "swapper", QUESTION, 32);
        if (i == N / 2 - 1) assert_int_equal(realm_tenant_set_program(a[i].tenant, wasm, len, &err), REALM_OK);
    }
    for (int i = 0; i < N; i++) {
        finish(&a[i]);
        if (i < N / 2)
            assert_string_equal(a[i].text, ANSWER);
        else
            assert_non_null(strstr(a[i].text, "PARIS"));
        drop(&a[i]);
    }
    realm_free(wasm);
    assert_int_equal(usage_of("swapper").requests, N);
}

static void many_tenants_at_once(void **state) {
    (void)state;
    enum { N = 24 };
    static asked a[N];
    for (int i = 0; i < N; i++) {
        char name[16];
        snprintf(name, sizeof name, "many%d", i);
        make_tenant(name, i % 3 == 1 ? TEST_GUESTS "/shout.wasm" : NULL, NULL, NULL);
        start(&a[i], name, QUESTION, 32);
    }
    for (int i = 0; i < N; i++) {
        finish(&a[i]);
        if (i % 3 != 1) assert_string_equal(a[i].text, ANSWER); /* whoever shares the batch */
        drop(&a[i]);
    }
    ledger_equals_engine();
}

static void a_template_refusal_is_the_clients(void **state) {
    (void)state;
    make_tenant("odd", NULL, NULL, NULL);
    asked a;
    start(&a, "odd", "[1]", 8);
    finish(&a);
    assert_int_equal(a.finish, REALM_FINISH_ERROR);
    assert_true(a.batch.status < 0);
    assert_true(a.batch.error.text[0] != '\0');
    drop(&a);
    assert_int_equal(usage_of("odd").requests, 0);
}

int main(int argc, char **argv) {
    if (argc > 3 && strcmp(argv[1], "program") == 0) realm_sandbox_compile_child(argc - 3, argv + 3);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(three_programs_share_a_batch),      cmocka_unit_test(cancel_and_release_count_as_aborted),
        cmocka_unit_test(limits_refuse_and_say_which),       cmocka_unit_test(choices_share_their_prompt),
        cmocka_unit_test(programs_are_swapped_under_load),   cmocka_unit_test(many_tenants_at_once),
        cmocka_unit_test(a_template_refusal_is_the_clients),
    };
    return cmocka_run_group_tests(tests, open_runtime, close_runtime);
}
