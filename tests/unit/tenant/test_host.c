/* Host calls, end to end: real programs in real sandboxes over the engine of a tiny random model. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
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
#include "support/tiny_model.h"
#include "tenant/run.h"
#include "tenant/tenant.h"

#define PATIENCE_NS (60 * REALM_NS_PER_S)

static realm_runtime *rt;
static char model_path[] = "/tmp/realm-test-host-XXXXXX";

/* cmocka takes the fault signals for itself in every test; programs' traps need Wasmtime's handlers. */
static const int FAULTS[] = {SIGSEGV, SIGILL, SIGFPE, SIGBUS};
static struct sigaction fault_actions[4];
static void faults(bool restore) {
    for (int i = 0; i < 4; i++)
        sigaction(FAULTS[i], restore ? &fault_actions[i] : NULL, restore ? NULL : &fault_actions[i]);
}

typedef struct client {
    realm_tenant *tenant;
    realm_request *request;
    realm_run *run;
    realm_mutex mu;
    realm_cond cond;
    bool ready;
    char *text;
    size_t len, cap;
    uint32_t n_tokens; /* events with an id */
    realm_finish finish;
    realm_status status;
    char error[REALM_ERROR_TEXT_MAX];
    uint32_t prompt_tokens, completion_tokens;
} client;

static void on_ready(void *user) {
    client *c = user;
    realm_mutex_lock(&c->mu);
    c->ready = true;
    realm_cond_signal(&c->cond);
    realm_mutex_unlock(&c->mu);
}

static char *read_file(const char *dir, const char *name, size_t *len) {
    char path[256], *data = NULL;
    realm_error err = {0};
    snprintf(path, sizeof path, "%s/%s.wasm", dir, name);
    if (realm_file_read(path, REALM_MODULE_BYTES_MAX, &data, len, &err)) fail_msg("%s", err.text);
    return data;
}

static realm_tenant *tenant_with(const char *name, const char *dir, const char *program) {
    realm_error err = {0};
    realm_tenant_row row;
    realm_tenant *t = NULL;
    realm_status st = realm_store_tenant_create(realm_runtime_store(rt), name, NULL, NULL, 0, &row, &err);
    if (st && st != REALM_E_EXISTS) fail_msg("%s", err.text);
    if (realm_runtime_tenant(rt, name, &t, &err)) fail_msg("%s", err.text);
    if (program) {
        size_t n = 0;
        char *wasm = read_file(dir, program, &n);
        if (realm_tenant_set_program(t, wasm, n, &err)) fail_msg("%s: %s", program, err.text);
        realm_free(wasm);
    }
    return t;
}

static realm_run_params text_request(void) {
    static const char INPUT[] = "{\"endpoint\":\"completion\",\"prompt\":\"abc abc\",\"text\":\"a\\\"b\\n\\u20ac!\","
                                "\"list\":[1,2.5,1],\"nothing\":null}";
    realm_run_params p = {
        .input = INPUT, .input_len = sizeof INPUT - 1, .kind = REALM_PROMPT_TEXT, .prompt = "abc abc", .prompt_len = 7};
    realm_sampling_init(&p.generation.sampling);
    p.generation.sampling.temperature = 0;
    p.generation.max_tokens = 16;
    p.generation.ignore_end = true;
    return p;
}

static void begin(client *c, realm_tenant *t, realm_run_params p) {
    realm_error err = {0};
    memset(c, 0, sizeof *c);
    realm_mutex_init(&c->mu, REALM_RANK_LEAF);
    realm_cond_init(&c->cond);
    faults(true);
    c->tenant = t;
    p.on_ready = on_ready;
    p.user = c;
    if (realm_request_open(t, "tiny", NULL, &c->request, &err)) fail_msg("%s", err.text);
    if (realm_run_start(c->request, &p, &c->run, &err)) fail_msg("%s", err.text);
}

static void take(client *c, const realm_event_batch *b) {
    for (size_t i = 0; i < b->n_events; i++) {
        const realm_event *e = &b->events[i];
        if (c->len + e->text_len + 1 > c->cap) {
            c->cap = (c->len + e->text_len + 1) * 2;
            c->text = realloc(c->text, c->cap);
        }
        if (e->text_len) memcpy(c->text + c->len, b->text.data + e->text_at, e->text_len);
        c->len += e->text_len;
        if (e->kind == REALM_EVENT_TOKEN && e->id >= 0) c->n_tokens++;
        if (e->kind != REALM_EVENT_END) continue;
        c->finish = e->finish;
        c->status = b->status;
        snprintf(c->error, sizeof c->error, "%s", b->error.text);
    }
    c->prompt_tokens = b->prompt_tokens;
    c->completion_tokens = b->completion_tokens;
}

/* Reads until the end, or until at least `bytes` of text are there. */
static void follow(client *c, size_t bytes) {
    realm_event_batch b;
    uint64_t until = realm_clock_ns() + PATIENCE_NS;
    realm_event_batch_init(&b);
    while (c->finish == REALM_FINISH_NONE && (bytes == 0 || c->len < bytes)) {
        realm_mutex_lock(&c->mu);
        while (!c->ready)
            if (!realm_cond_wait_until(&c->cond, &c->mu, until)) fail_msg("the run does not go on");
        c->ready = false;
        realm_mutex_unlock(&c->mu);
        while (realm_run_poll(c->run, &b) > 0) take(c, &b);
    }
    realm_event_batch_release(&b);
    if (c->text) c->text[c->len] = 0;
}

static void end(client *c) {
    realm_run_release(c->run);
    realm_request_close(c->request);
    free(c->text);
    c->text = NULL;
}

static void complete(client *c, realm_tenant *t, realm_run_params p) {
    begin(c, t, p);
    follow(c, 0);
}

static void expect_ok(const client *c) {
    if (c->status || c->finish == REALM_FINISH_ERROR) fail_msg("%d: %s", c->status, c->error);
}

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
    realm_runtime_stats stats;
    uint64_t until = realm_clock_ns() + PATIENCE_NS;
    do {
        realm_runtime_get_stats(rt, &stats);
        usleep(1000);
    } while (stats.runs_active > 0 && realm_clock_ns() < until);
    assert_int_equal(stats.runs_active, 0); /* nothing is left behind */
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
    assert_int_equal(c.status, REALM_E_RANGE);
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

static void write_model(void) {
    realm_error err = {0};
    tiny_model *m = tiny_make(&tiny_llama);
    int fd = mkstemp(model_path);
    if (fd < 0) exit(1);
    close(fd);
    if (realm_file_replace(model_path, m->file, m->file_len, 0600, &err)) exit(1);
    tiny_free(m);
}

int main(int argc, char **argv) {
    if (argc == 5 && !strcmp(argv[2], "compile-child")) return realm_sandbox_compile_child(argc - 3, argv + 3);
    realm_error err = {0};
    realm_runtime_config config = {.compiler_path = "/proc/self/exe", .n_workers = 2, .max_instances = 64, .n_threads = 1};
    realm_model_config model = {
        .engine = {.n_ctx = 256, .max_generations = 16},
        .chat_template = "{% for m in messages %}{% if not m.content %}{{ raise_exception('no content') }}{% endif %}"
                         "{{ m.content + '</s>' }}{% endfor %}{% if add_generation_prompt %}a:{% endif %}"};
    write_model();
    if (realm_runtime_open(&rt, &config, &err) ||
        realm_runtime_add_model(rt, "tiny", model_path, &model, NULL, NULL, &err)) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    faults(false);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_call),    cmocka_unit_test(test_every_call_with_64_bits),
        cmocka_unit_test(test_examples),      cmocka_unit_test(test_redact),
        cmocka_unit_test(test_generate_pair), cmocka_unit_test(test_slow_reader),
        cmocka_unit_test(test_cancel),        cmocka_unit_test(test_errors_reach_the_client),
        cmocka_unit_test(test_together),
    };
    int failed = cmocka_run_group_tests_name("host calls", tests, NULL, NULL);
    realm_runtime_close(rt);
    unlink(model_path);
    return failed;
}
