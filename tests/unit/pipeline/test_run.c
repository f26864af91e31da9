/* Pipelines over two tiny random models: what runs, in which order, what it is counted as, and every limit at its
 * limit. What a model says is rubbish but always the same, so a call is compared with the same call alone. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/file.h"
#include "data/data.h"
#include "pipeline/pipeline.h"
#include "sandbox/sandbox.h"
#include "support/request.h"
#include "support/scratch.h"
#include "support/tiny_model.h"

static realm_runtime *rt;
static realm_tenant *tenant;
static char dir[SCRATCH_MAX] = "pipeline";

/* cmocka takes the fault signals for itself in every test; programs' traps need Wasmtime's handlers. */
static const int FAULTS[] = {SIGSEGV, SIGILL, SIGFPE, SIGBUS};
static struct sigaction fault_actions[4];
static void faults(bool restore) {
    for (int i = 0; i < 4; i++)
        sigaction(FAULTS[i], restore ? &fault_actions[i] : NULL, restore ? NULL : &fault_actions[i]);
}

typedef struct ran { /* what came of a run */
    realm_status status;
    realm_error err;
    realm_buf output, report;
    realm_json_doc *doc; /* of the report */
} ran;

static void run_with(ran *r, const char *text, const realm_pipeline_input *inputs, size_t n,
                     const realm_pipeline_watch *watch) {
    realm_pipeline *p;
    memset(r, 0, sizeof *r);
    realm_buf_init(&r->output, 1 << 24);
    realm_buf_init(&r->report, 1 << 24);
    faults(true);
    if (realm_pipeline_parse(&p, text, strlen(text), "", NULL, &r->err) != REALM_OK) fail_msg("%s", r->err.text);
    r->status = realm_pipeline_run(p, tenant, inputs, n, watch, &r->output, &r->report, &r->err);
    realm_pipeline_close(p);
    if (r->status != REALM_OK) return;
    if (realm_json_parse(&r->doc, r->report.data, r->report.len, NULL, &r->err) != REALM_OK)
        fail_msg("%s: %s", r->err.text, r->report.data);
}

static void drop(ran *r) {
    realm_buf_release(&r->output);
    realm_buf_release(&r->report);
    realm_json_doc_close(r->doc);
}

static void expect_output(const char *text, const char *want) {
    ran r;
    run_with(&r, text, NULL, 0, NULL);
    if (r.status != REALM_OK) fail_msg("%s", r.err.text);
    assert_string_equal(r.output.data ? r.output.data : "", want);
    drop(&r);
}

static void expect_error(const char *text, realm_status status, const char *why) {
    ran r;
    run_with(&r, text, NULL, 0, NULL);
    if (r.status != status || !strstr(r.err.text, why))
        fail_msg("%s: %s, expected %s with \"%s\"", realm_status_name(r.status), r.err.text, realm_status_name(status),
                 why);
    assert_int_equal(r.err.code, status);
    drop(&r);
}

/* What the model says to this prompt. */
static char *alone(const char *model, const char *prompt, int seed, const char *params) {
    char text[1024];
    ran r;
    snprintf(text, sizeof text, "steps: [{id: a, model: %s, raw: true, prompt: %s, max_tokens: 12, seed: %d%s}]", model,
             prompt, seed, params);
    run_with(&r, text, NULL, 0, NULL);
    if (r.status != REALM_OK) fail_msg("%s", r.err.text);
    char *said = strdup(r.output.data ? r.output.data : "");
    drop(&r);
    return said;
}

static realm_json get(const realm_json *v, const char *key) {
    realm_json out;
    if (!realm_json_get(v, key, &out)) fail_msg("no %s", key);
    return out;
}

static int64_t number(const realm_json *object, const char *key) {
    realm_json v = get(object, key);
    int64_t n = -1;
    assert_int_equal(realm_json_int(&v, 0, INT64_MAX, &n, NULL), REALM_OK);
    return n;
}

static bool take_usage(void *user, const char *name, const realm_usage *u) {
    if (strcmp(name, "local") == 0) *(realm_usage *)user = *u;
    return true;
}

static realm_usage ledger(void) {
    realm_usage u = {0};
    assert_int_equal(realm_store_usage_each(realm_runtime_store(rt), "local", 0, take_usage, &u, NULL), REALM_OK);
    return u;
}

/* ---- what runs ---- */

static void test_text_alone(void **state) {
    (void)state;
    expect_output("steps: [{id: a, text: 'x'}]", "x");
    expect_output(
        "inputs: {n: [1, 2]}\nsteps:\n  - {id: b, text: '<{{ steps.a.text }}>'}\n  - {id: a, foreach: "
        "'inputs.n', text: '{{ item * 10 }}{{ index }}'}\noutput: '{{ steps.b.text }} {{ steps.a.texts[1] }}'",
        "<100\n201> 201");
    expect_output("steps: [{id: a, foreach: [x, {k: [3]}, null], text: '{{ item }}'}]", "x\n{'k': [3]}\nNone");
    expect_output(
        "steps: [{id: a, foreach: '[]', text: x}, {id: b, text: '[{{ steps.a.text }}]{{ steps.a.texts | length }}'}]",
        "[]0");
    expect_output(
        "steps: [{id: a, when: 'false', text: x}, {id: b, when: 'steps.a.skipped', text: 'b{{ steps.a.text }}'}]", "b");
    expect_output("steps: [{id: a, text: x}]\noutput: {one: '{{ steps.a.text }}', two: '\"'}",
                  "{\"one\":\"x\",\"two\":\"\\\"\"}");
    expect_output("steps: [{id: a, foreach: [' Yes', no, 'yes '], text: '{{ item }}'}, {id: v, vote: a}]\n"
                  "output: '{{ steps.v.text | trim }} {{ steps.v.votes }}'",
                  "Yes 2");
    expect_output("steps: [{id: a, foreach: [b7, a9, c9], text: '{{ item }}'}, {id: v, vote: a, key: 'text[1]'}]",
                  "a9");
    expect_output("steps: [{id: a, when: 'false', text: x}, {id: v, vote: a}]\noutput: '{{ steps.v.votes }}'", "0");
}

static void test_calls_at_once_are_the_calls_alone(void **state) {
    (void)state;
    static const char both[] =
        "steps:\n"
        "  - {id: a, model: one, raw: true, foreach: [abc, 'the d', bcd], prompt: '{{ item }}', max_tokens: 12, seed: "
        "5, temperature: 0}\n"
        "  - {id: b, model: two, raw: true, prompt: 'abc', max_tokens: 12, seed: 5, temperature: 0}\n"
        "  - {id: c, model: two, raw: true, prompt: 'q{{ steps.b.text | length }}', max_tokens: 12, temperature: 0}\n";
    char *want[] = {alone("one", "abc", 5, ", temperature: 0"), alone("one", "the d", 5, ", temperature: 0"),
                    alone("one", "bcd", 5, ", temperature: 0"), alone("two", "abc", 5, ", temperature: 0")};
    assert_string_not_equal(want[0], want[3]); /* two models */
    realm_usage before = ledger(), after;
    ran r;
    run_with(&r, both, NULL, 0, NULL);
    if (r.status != REALM_OK) fail_msg("%s", r.err.text);
    realm_json root = realm_json_root(r.doc), steps = get(&root, "steps"), usage = get(&root, "usage"), a, b, c, texts,
               t;
    assert_true(realm_json_at(&steps, 0, &a) && realm_json_at(&steps, 1, &b) && realm_json_at(&steps, 2, &c));
    texts = get(&a, "texts");
    for (size_t i = 0; i < 3; i++) {
        const char *s;
        assert_true(realm_json_at(&texts, i, &t));
        assert_int_equal(realm_json_cstr(&t, &s, NULL), REALM_OK);
        assert_string_equal(s, want[i]);
    }
    assert_int_equal(number(&a, "calls"), 3);
    texts = get(&b, "texts");
    assert_true(realm_json_at(&texts, 0, &t) && realm_json_is(&t, want[3]));
    /* its sums are those of the ledger */
    after = ledger();
    assert_int_equal(number(&usage, "calls"), 5);
    assert_int_equal(after.requests - before.requests, 5);
    assert_int_equal(after.prompt_tokens - before.prompt_tokens, number(&usage, "prompt_tokens"));
    assert_int_equal(after.completion_tokens - before.completion_tokens, number(&usage, "completion_tokens"));
    assert_int_equal(number(&a, "completion_tokens") + number(&b, "completion_tokens") +
                         number(&c, "completion_tokens"),
                     number(&usage, "completion_tokens"));
    assert_int_equal(number(&usage, "total_tokens"),
                     number(&usage, "prompt_tokens") + number(&usage, "completion_tokens"));
    drop(&r);
    for (size_t i = 0; i < 4; i++) free(want[i]);
}

static void test_messages_go_through_the_template(void **state) {
    (void)state;
    char *want = alone("one", "'S:sys|U:abc|A:'", 0, ", temperature: 0");
    expect_output("steps: [{id: a, model: one, system: sys, prompt: abc, max_tokens: 12, temperature: 0}]", want);
    expect_output(
        "steps: [{id: a, model: one, max_tokens: 12, temperature: 0, messages: [{role: system, content: sys}, "
        "{role: user, content: '{{ \"abc\" }}'}]}]",
        want);
    free(want);
}

static void test_n_gives_different_answers_and_the_same_twice(void **state) {
    (void)state;
    static const char text[] = "steps: [{id: a, model: one, raw: true, prompt: abc, n: 4, max_tokens: 8, seed: 3}]";
    ran first, second;
    run_with(&first, text, NULL, 0, NULL);
    run_with(&second, text, NULL, 0, NULL);
    assert_int_equal(first.status, REALM_OK);
    assert_string_equal(first.output.data, second.output.data);
    realm_json root = realm_json_root(first.doc), steps = get(&root, "steps"), a, texts, x, y;
    assert_true(realm_json_at(&steps, 0, &a));
    texts = get(&a, "texts");
    assert_int_equal(realm_json_len(&texts), 4);
    assert_true(realm_json_at(&texts, 0, &x) && realm_json_at(&texts, 1, &y));
    const char *s = "";
    assert_int_equal(realm_json_cstr(&x, &s, NULL), REALM_OK);
    assert_false(realm_json_is(&y, s));
    drop(&first);
    drop(&second);
}

static void test_expect_retry_fallback(void **state) {
    (void)state;
    char *two = alone("two", "abc", 0, ", temperature: 0");
    char text[1024];
    ran r;
    /* Only the second model's answer is accepted: two attempts of the first, one of the other. */
    snprintf(text, sizeof text,
             "inputs: {want: ''}\nsteps: [{id: a, model: one, fallback: two, retry: 1, raw: true, prompt: abc, "
             "max_tokens: 12, "
             "temperature: 0, expect: text == inputs.want}]");
    realm_pipeline_input in = {"want", two, strlen(two)};
    run_with(&r, text, &in, 1, NULL);
    if (r.status != REALM_OK) fail_msg("%s", r.err.text);
    assert_string_equal(r.output.data, two);
    realm_json root = realm_json_root(r.doc), steps = get(&root, "steps"), a, model;
    assert_true(realm_json_at(&steps, 0, &a));
    assert_int_equal(number(&a, "calls"), 3);
    model = get(&a, "model");
    assert_true(realm_json_is(&model, "two"));
    drop(&r);
    free(two);
    expect_error("steps: [{id: a, text: x}, {id: b, model: one, fallback: two, retry: 1, foreach: [x, y], raw: true, "
                 "prompt: abc, "
                 "max_tokens: 2, expect: 'index == 0'}]",
                 REALM_E_INVALID, "b[1]: attempt 4 of 4, two: the answer is not what expect asks for");
    expect_error("steps: [{id: b, model: one, raw: true, prompt: abc, max_tokens: 2, expect: 'text + 1 > 2'}]",
                 REALM_E_INVALID, "b: expect: line 1");
}

/* ---- what does not ---- */

static void test_errors_name_the_step(void **state) {
    (void)state;
    expect_error("steps: [{id: a, text: x}, {id: b, text: '{{ steps.a.text.nothing() }}'}]", REALM_E_UNSUPPORTED,
                 "b: line 1");
    expect_error("steps: [{id: a, text: '{{ raise_exception(\"no\") }}'}]", REALM_E_INVALID, "a: no");
    expect_error(
        "steps: [{id: a, text: '{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}'}]",
        REALM_E_LIMIT, "a: line 1");
    expect_error("steps: [{id: a, foreach: '3', text: x}]", REALM_E_INVALID,
                 "a: foreach: must be a list, is an integer");
    expect_error("steps: [{id: a, foreach: 'range(65)', text: x}]", REALM_E_LIMIT, "a: foreach: 65 branches");
    expect_error("steps: [{id: a, model: three, prompt: x}]", REALM_E_NOT_FOUND, "a: no model is called \"three\"");
    expect_error("inputs: {x: null}\nsteps: [{id: a, text: x}]", REALM_E_INVALID, "input x is required");
    expect_error("steps: [{id: a, model: one, prompt: x, program: /nowhere.wasm}]", REALM_E_NOT_FOUND,
                 "a: /nowhere.wasm");
    expect_error("steps: [{id: a, model: one, prompt: x, program: /etc/passwd}]", REALM_E_FORMAT, "a: /etc/passwd");
}

static void test_inputs(void **state) {
    (void)state;
    static const char text[] =
        "inputs: {a: null, b: dflt, c: [1]}\nsteps: [{id: s, text: '{{ inputs.a }} {{ inputs.b }} {{ inputs.c[0] }}'}]";
    static const struct {
        realm_pipeline_input in[3];
        size_t n;
        const char *want;
        realm_status status;
    } cases[] = {
        {{{"a", "x</s>", 5}}, 1, "x</s> dflt 1", REALM_OK},
        {{{"a", "x", 1}, {"b", "{{ y }}", 7}, {"c", "[\"z\"]", 5}}, 3, "x {{ y }} z", REALM_OK},
        {{{"a", "x", 1}, {"a", "y", 1}}, 2, "input a is given twice", REALM_E_INVALID},
        {{{"a", "x", 1}, {"c", "[", 1}}, 2, "input c: its default is no text", REALM_E_FORMAT},
        {{{"a", "\xff", 1}}, 1, "input a: not UTF-8", REALM_E_INVALID},
        {{{"d", "x", 1}}, 1, "no input is called \"d\"", REALM_E_INVALID},
        {{{"b", "x", 1}}, 1, "input a is required", REALM_E_INVALID},
    };
    for (size_t i = 0; i < REALM_ARRAY_LEN(cases); i++) {
        ran r;
        run_with(&r, text, cases[i].in, cases[i].n, NULL);
        if (r.status != cases[i].status) fail_msg("case %zu: %s", i, r.err.text);
        if (r.status == REALM_OK)
            assert_string_equal(r.output.data, cases[i].want);
        else
            assert_non_null(strstr(r.err.text, cases[i].want));
        drop(&r);
    }
    char *large = calloc(1, REALM_PIPELINE_INPUT_BYTES_MAX + 1);
    memset(large, 'x', REALM_PIPELINE_INPUT_BYTES_MAX + 1);
    realm_pipeline_input in = {"a", large, REALM_PIPELINE_INPUT_BYTES_MAX + 1};
    ran r;
    run_with(&r, text, &in, 1, NULL);
    assert_int_equal(r.status, REALM_E_LIMIT);
    drop(&r);
    free(large);
}

static bool stop_at_once(void *user, const realm_pipeline_progress *p) {
    int *n = user;
    assert_true(p->event == REALM_PIPELINE_TICK || p->step != NULL);
    return ++*n < 2;
}

static bool take_a_second(void *user, const realm_pipeline_progress *p) {
    struct timespec t = {1, 50000000};
    (void)user;
    if (p->event == REALM_PIPELINE_STARTED) nanosleep(&t, NULL);
    return true;
}

static void test_limits(void **state) {
    (void)state;
#define ONE "model: one, raw: true, prompt: abc"
    expect_error("limits: {calls: 3}\nsteps: [{id: a, " ONE ", n: 4, max_tokens: 2}]", REALM_E_LIMIT,
                 "a[3]: limit calls: 3 were made");
    expect_output("limits: {calls: 3}\nsteps: [{id: a, " ONE
                  ", n: 3, max_tokens: 2}]\noutput: '{{ steps.a.texts | length }}'",
                  "3");
    expect_error("limits: {tokens: 11}\nsteps: [{id: a, " ONE ", max_tokens: 12}]", REALM_E_LIMIT,
                 "a: limit tokens: 0 of 11 are used");
    /* room for one call at a time: they take turns */
    expect_output("limits: {tokens: 70}\nsteps: [{id: a, " ONE ", n: 4, max_tokens: 12, stop: nothing}]\n"
                  "output: '{{ steps.a.texts | length }}'",
                  "4");
}

static void test_more_limits(void **state) {
    (void)state;
    expect_error("limits: {output_bytes: 4}\nsteps: [{id: a, text: '12345'}]", REALM_E_LIMIT, "a: ");
    expect_error("limits: {output_bytes: 5}\nsteps: [{id: a, text: '123'}, {id: b, text: '456'}]", REALM_E_LIMIT,
                 "b: limit output_bytes");
    expect_error(
        "limits: {output_bytes: 5}\nsteps: [{id: a, text: '123'}]\noutput: '{{ steps.a.text }}{{ steps.a.text }}'",
        REALM_E_LIMIT, "output");
    expect_error("limits: {output_bytes: 3}\nsteps: [{id: a, " ONE ", max_tokens: 200}]", REALM_E_LIMIT,
                 "a: limit output_bytes");
    int n = 0;
    ran r;
    realm_pipeline_watch watch = {stop_at_once, &n};
    run_with(&r, "steps: [{id: a, " ONE ", max_tokens: 400, n: 8}]", NULL, 0, &watch);
    assert_int_equal(r.status, REALM_E_CANCELLED);
    drop(&r);
    watch.progress = take_a_second;
    run_with(&r, "limits: {seconds: 1}\nsteps: [{id: a, " ONE ", max_tokens: 400, n: 8}]", NULL, 0, &watch);
    assert_int_equal(r.status, REALM_E_TIMEOUT);
    assert_string_equal(r.err.text, "limit seconds: it has run for 1 s");
    drop(&r);
}

static void set_limit(const char *name, const char *value) {
    realm_tenant_row row;
    realm_error err = {0};
    realm_store *store = realm_runtime_store(rt);
    assert_int_equal(realm_store_tenant_find(store, "local", &row, &err), REALM_OK);
    assert_int_equal(realm_limits_set(&row.limits, name, value, &err), REALM_OK);
    assert_int_equal(realm_store_tenant_set(store, "local", &row.limits, NULL, 0, &err), REALM_OK);
    realm_runtime_reload(rt);
}

/* What the tests before have cancelled still counts as a generation until its step is over, and a program that has not
 * heard of it yet may still submit one. */
static void nothing_is_left(void) {
    for (bool left = true; left; usleep(1000)) {
        realm_runtime_stats programs; /* looked at first: without one nothing more is submitted */
        realm_engine_stats one, two;
        realm_runtime_get_stats(rt, &programs);
        realm_engine_get_stats(engine_of(rt, "one"), &one);
        realm_engine_get_stats(engine_of(rt, "two"), &two);
        left = programs.instances + one.running + one.queued + two.running + two.queued > 0;
    }
}

static void test_the_tenants_limits_hold(void **state) {
    (void)state;
    nothing_is_left();
    set_limit("generations", "1"); /* eight calls that have to take turns */
    expect_output("steps: [{id: a, " ONE ", n: 8, max_tokens: 6}]\noutput: '{{ steps.a.texts | length }}'", "8");
    set_limit("generations", "64");
    set_limit("requests_per_minute", "1");
    expect_error("steps: [{id: a, " ONE ", max_tokens: 6}, {id: b, after: [a], " ONE ", max_tokens: 6}]", REALM_E_RATE,
                 "b: requests_per_minute");
    set_limit("requests_per_minute", "1000000");
}

static bool lift(void *user, const realm_pipeline_progress *p) {
    uint32_t *most = user;
    if (p->event == REALM_PIPELINE_ENDED && strcmp(p->step, "a") == 0) set_limit("generations", "64");
    if (p->event == REALM_PIPELINE_TICK && p->steps_ended > 0) *most = REALM_MAX(*most, p->calls_running);
    return true;
}

/* Calls that the tenant's limit has kept from running beside each other do so again when it is gone. */
static void test_crowded_calls_spread_again(void **state) {
    (void)state;
    uint32_t most = 0;
    ran r;
    realm_pipeline_watch watch = {lift, &most};
    nothing_is_left();
    set_limit("generations", "1");
    run_with(&r,
             "steps: [{id: a, " ONE ", n: 4, max_tokens: 6}, {id: b, after: [a], " ONE ", n: 16, max_tokens: 40}]\n"
             "output: '{{ steps.b.texts | length }}'",
             NULL, 0, &watch);
    if (r.status != REALM_OK) fail_msg("%s", r.err.text);
    assert_string_equal(r.output.data, "16");
    assert_in_range(most, 4, 8);
    drop(&r);
}

static int begin(void) {
    realm_error err = {0};
    realm_tenant_row row;
    char path[SCRATCH_MAX + 32];
    realm_runtime_config config = {
        .compiler_path = "/proc/self/exe", .n_workers = 2, .max_instances = 64, .n_threads = 1};
    realm_model_config model = {.engine = {.n_ctx = 512, .max_generations = 16},
                                .chat_template = "{% for m in messages %}{{ 'S:' if m.role == 'system' else 'U:' }}"
                                                 "{{ m.content }}|{% endfor %}A:"};
    if (!scratch_dir(dir) || realm_runtime_open(&rt, &config, &err)) return fprintf(stderr, "%s\n", err.text), 1;
    for (int i = 1; i <= 2; i++) {
        tiny_spec spec = tiny_llama;
        spec.seed = (uint64_t)i;
        tiny_model *m = tiny_make(&spec);
        snprintf(path, sizeof path, "%s/%d.gguf", dir, i);
        if (realm_file_replace(path, m->file, m->file_len, 0600, &err) ||
            realm_runtime_add_model(rt, i == 1 ? "one" : "two", path, &model, NULL, NULL, &err))
            return fprintf(stderr, "%s\n", err.text), 1;
        unlink(path);
        tiny_free(m);
    }
    rmdir(dir);
    if (realm_store_tenant_create(realm_runtime_store(rt), "local", NULL, NULL, 0, &row, &err) ||
        realm_runtime_tenant(rt, "local", &tenant, &err))
        return fprintf(stderr, "%s\n", err.text), 1;
    faults(false);
    return 0;
}

int main(int argc, char **argv) {
    if (argc == 5 && !strcmp(argv[2], "compile-child")) realm_sandbox_compile_child(2, argv + 3);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text_alone),
        cmocka_unit_test(test_calls_at_once_are_the_calls_alone),
        cmocka_unit_test(test_messages_go_through_the_template),
        cmocka_unit_test(test_n_gives_different_answers_and_the_same_twice),
        cmocka_unit_test(test_expect_retry_fallback),
        cmocka_unit_test(test_errors_name_the_step),
        cmocka_unit_test(test_inputs),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_more_limits),
        cmocka_unit_test(test_the_tenants_limits_hold),
        cmocka_unit_test(test_crowded_calls_spread_again),
    };
    if (begin()) return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    realm_tenant_release(tenant);
    realm_runtime_close(rt);
    return failed;
}
