/* What the tests of programs share: a runtime over the engine of a tiny random model, tenants with modules, and a
 * client that reads a run to its end. A test's main begins with
 *
 *     if (is_compiler(argc, argv)) return compile(argv);
 *     if (open_runtime()) return 1;
 *
 * and ends with close_runtime. */
#ifndef TESTS_UNIT_TENANT_CLIENT_H
#define TESTS_UNIT_TENANT_CLIENT_H

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
#include "support/request.h"
#include "support/scratch.h"
#include "support/tiny_model.h"
#include "tenant/run.h"
#include "tenant/tenant.h"

#define PATIENCE_NS (60 * REALM_NS_PER_S)

static realm_runtime *rt;
static uint64_t program_bytes; /* of realm_runtime_config; set it before open_runtime */
static const char *state_dir;  /* NULL: tenants live in memory. Set before open_runtime */
static realm_engine_config tiny_engine = {.n_ctx = 256, .max_generations = 16}; /* likewise */
static char tiny_path[SCRATCH_MAX] = "test-host";

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

static inline realm_tenant *tenant_with(const char *name, const char *dir, const char *program) {
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

/* Of a tenant, which is made where there is none; for what begins from now on. */
__attribute__((unused)) static void set_limit(const char *tenant, const char *name, const char *value) {
    realm_error err = {0};
    realm_tenant_row row;
    realm_store *s = realm_runtime_store(rt);
    realm_tenant_release(tenant_with(tenant, NULL, NULL));
    if (realm_store_tenant_find(s, tenant, &row, &err) || realm_limits_set(&row.limits, name, value, &err) ||
        realm_store_tenant_set(s, tenant, &row.limits, NULL, 0, &err))
        fail_msg("%s", err.text);
    realm_runtime_reload(rt);
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

/* The same with another input, which lasts until the run has started. */
__attribute__((unused)) static realm_run_params with_input(const char *json) {
    realm_run_params p = text_request();
    p.input = json;
    p.input_len = strlen(json);
    return p;
}

/* A request that tells a program what to do; lasts until the next one. */
__attribute__((unused)) static realm_run_params with_text(const char *what) {
    static char json[256];
    snprintf(json, sizeof json, "{\"endpoint\":\"completion\",\"prompt\":\"abc abc\",\"text\":\"%s\"}", what);
    return with_input(json);
}

static void begin_on(client *c, realm_tenant *t, const char *model, realm_run_params p) {
    realm_error err = {0};
    memset(c, 0, sizeof *c);
    realm_mutex_init(&c->mu, REALM_RANK_LEAF);
    realm_cond_init(&c->cond);
    faults(true);
    c->tenant = t;
    p.on_ready = on_ready;
    p.user = c;
    if (request_on(t, model, NULL, &c->request, &err)) fail_msg("%s", err.text);
    if (realm_run_start(c->request, &p, &c->run, &err)) fail_msg("%s", err.text);
}

static void begin(client *c, realm_tenant *t, realm_run_params p) { begin_on(c, t, "tiny", p); }

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

__attribute__((unused)) static void complete(client *c, realm_tenant *t, realm_run_params p) {
    begin(c, t, p);
    follow(c, 0);
}

__attribute__((unused)) static void expect_ok(const client *c) {
    if (c->status || c->finish == REALM_FINISH_ERROR) fail_msg("%d: %s", c->status, c->error);
}

/* Waits for what ends behind clients that have gone. */
__attribute__((unused)) static void nothing_is_left(void) {
    realm_runtime_stats s;
    realm_engine_stats e;
    for (uint64_t until = realm_clock_ns() + PATIENCE_NS;; usleep(1000)) {
        realm_runtime_get_stats(rt, &s);
        realm_engine_get_stats(engine_of(rt, "tiny"), &e);
        if (s.instances == 0 && s.runs_active == 0 && s.requests_active == 0 && e.running + e.queued == 0) return;
        if (realm_clock_ns() > until)
            fail_msg("%u instances, %u runs, %u requests, %u generations are left", s.instances, s.runs_active,
                     s.requests_active, e.running + e.queued);
    }
}

static bool add_usage(void *user, const char *name, const realm_usage *u) {
    (void)name;
    realm_usage_add(user, u);
    return true;
}

/* What the ledger says of a tenant; NULL: of all. */
__attribute__((unused)) static realm_usage usage_of(const char *tenant) {
    realm_usage u = {0};
    assert_int_equal(realm_store_usage_each(realm_runtime_store(rt), tenant, 0, add_usage, &u, NULL), REALM_OK);
    return u;
}

/* All tenants together have had what the engine has served. */
__attribute__((unused)) static void ledger_agrees(void) {
    realm_usage engine, sum = usage_of(NULL);
    assert_int_equal(realm_store_usage_engine(realm_runtime_store(rt), &engine, NULL), REALM_OK);
    assert_int_equal(sum.prompt_tokens, engine.prompt_tokens);
    assert_int_equal(sum.completion_tokens, engine.completion_tokens);
}

static void write_model(void) {
    realm_error err = {0};
    tiny_model *m = tiny_make(&tiny_llama);
    int fd = access(tiny_path, F_OK) == 0 ? -1 : scratch_file(tiny_path); /* the runtime may be opened again */
    if (fd >= 0) close(fd);
    if (realm_file_replace(tiny_path, m->file, m->file_len, 0600, &err)) exit(1);
    tiny_free(m);
}

static bool is_compiler(int argc, char **argv) { return argc == 5 && !strcmp(argv[2], "compile-child"); }
static int compile(char **argv) { realm_sandbox_compile_child(2, argv + 3); }

/* The tiny model under the id "tiny". */
static realm_status add_tiny(realm_error *err) {
    realm_model_config model = {
        .engine = tiny_engine,
        .chat_template = "{% for m in messages %}{% if not m.content %}{{ raise_exception('no content') }}{% endif %}"
                         "{{ m.content + '</s>' }}{% endfor %}{% if add_generation_prompt %}a:{% endif %}"};
    return realm_runtime_add_model(rt, "tiny", tiny_path, &model, NULL, NULL, err);
}

/* Opens the runtime with it; 0, or 1 with a line on stderr. */
static int open_runtime(void) {
    realm_error err = {0};
    realm_runtime_config config = {.state_dir = state_dir,
                                   .compiler_path = "/proc/self/exe",
                                   .n_workers = 2,
                                   .max_instances = 64,
                                   .n_threads = 1,
                                   .program_bytes = program_bytes};
    write_model();
    if (realm_runtime_open(&rt, &config, &err) || add_tiny(&err)) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    faults(false);
    return 0;
}

static int close_runtime(int failed) {
    realm_runtime_close(rt);
    unlink(tiny_path);
    return failed;
}

#endif
