/* What a pipeline's file may say: accepted ones with what is read of them, rejected ones with line, place and reason.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "pipeline/pipeline.h"

static const char whole[] =
    "name: whole\n"
    "description: every key\n"
    "inputs:\n"
    "  must:\n"
    "  text: a text\n"
    "  list: [1, two, {three: 3}]\n"
    "  more: {default: 7, description: a number}\n"
    "models: {small: a-name, large: files/large.gguf}\n"
    "defaults: {model: small, temperature: 0, max_tokens: 9}\n"
    "limits: {calls: 10, tokens: 1000, seconds: 60, output_bytes: 10000, parallel: 2}\n"
    "steps:\n"
    "  - id: a\n"
    "    foreach: inputs.list\n"
    "    n: 2\n"
    "    system: \"{{ index }}\"\n"
    "    prompt: \"{{ item }} {{ inputs.must }}\"\n"
    "    top_p: 0.5\n"
    "    top_k: 4\n"
    "    min_p: 0.1\n"
    "    frequency_penalty: -1\n"
    "    presence_penalty: 1\n"
    "    repeat_penalty: 1.1\n"
    "    seed: -4\n"
    "    stop: [x, \"\\n\"]\n"
    "    retry: 2\n"
    "    fallback: [large, small]\n"
    "    expect: text != '' and index >= 0\n"
    "  - id: b\n"
    "    vote: a\n"
    "    key: text | lower\n"
    "  - id: c\n"
    "    model: large\n"
    "    program: ../p.wasm\n"
    "    when: steps.b.votes > 1 and not steps.a.skipped\n"
    "    messages:\n"
    "      - {role: system, content: be brief}\n"
    "      - {role: user, content: \"{% for t in steps.a.texts %}{{ loop.index }}{{ t }}{% endfor %}\"}\n"
    "      - {role: assistant, content: so}\n"
    "  - id: d\n"
    "    after: [c]\n"
    "    text: \"{% set x = range(3) %}{{ x }}{{ steps.b.text.split(',')[0] }}\"\n"
    "output: {one: \"{{ steps.d.text }}\", two: \"{{ inputs.more }}\"}\n";

static void test_every_key(void **state) {
    (void)state;
    realm_pipeline *p;
    realm_error err = {0};
    realm_buf problems, out;
    realm_buf_init(&problems, 1 << 16);
    realm_buf_init(&out, 1 << 16);
    if (realm_pipeline_parse(&p, whole, strlen(whole), "dir/", &problems, &err) != REALM_OK)
        fail_msg("%s", problems.data);
    assert_int_equal(problems.len, 0);
    assert_int_equal(realm_pipeline_model_count(p), 2);
    assert_string_equal(realm_pipeline_model_at(p, 0).source, "a-name");
    assert_string_equal(realm_pipeline_model_at(p, 1).source, "dir/files/large.gguf");
    assert_int_equal(realm_pipeline_model_at(p, 1).line, 8);
    assert_int_equal(realm_pipeline_step_count(p), 4);
    const char *path;
    unsigned line;
    assert_true(realm_pipeline_program_at(p, 0, &path, &line));
    assert_string_equal(path, "dir/../p.wasm");
    assert_int_equal(line, 31);
    assert_false(realm_pipeline_program_at(p, 1, &path, &line));
    assert_int_equal(realm_pipeline_describe(p, true, &out), REALM_OK);
    static const char want[] =
        "{\"name\":\"whole\",\"description\":\"every key\",\"inputs\":[{\"name\":\"must\",\"required\":true},"
        "{\"name\":\"text\",\"required\":false,\"default\":\"a text\"},{\"name\":\"list\",\"required\":false,"
        "\"default\":[1,\"two\",{\"three\":3}]},{\"name\":\"more\",\"required\":false,\"default\":7}],"
        "\"models\":[{\"id\":\"small\",\"source\":\"a-name\"},{\"id\":\"large\",\"source\":\"dir/files/large.gguf\"}],"
        "\"steps\":[{\"id\":\"a\",\"kind\":\"call\",\"model\":\"small\",\"after\":[]},"
        "{\"id\":\"b\",\"kind\":\"vote\",\"after\":[\"a\"]},"
        "{\"id\":\"c\",\"kind\":\"call\",\"model\":\"large\",\"after\":[\"a\",\"b\"]},"
        "{\"id\":\"d\",\"kind\":\"text\",\"after\":[\"b\",\"c\"]}],"
        "\"limits\":{\"calls\":10,\"tokens\":1000,\"seconds\":60,\"output_bytes\":10000,\"parallel\":2}}\n";
    assert_string_equal(out.data, want);
    realm_buf_reset(&out);
    assert_int_equal(realm_pipeline_describe(p, false, &out), REALM_OK);
    assert_non_null(strstr(out.data, "step   c                large, after a b\n"));
    realm_buf_release(&out);
    realm_buf_release(&problems);
    realm_pipeline_close(p);
}

static void test_json_is_read_too(void **state) {
    (void)state;
    static const char text[] =
        "{\"steps\": [\n\t{\"id\": \"a\", \"model\": \"m\", \"prompt\": \"\\u00e9 \\\"x\\\" \\/\"}\n]}";
    static const char bad[] = "{\"steps\": [\n  {\"id\": \"a\", \"model\": \"m\",\n   \"promt\": \"x\"}\n]}";
    realm_pipeline *p;
    realm_error err = {0};
    if (realm_pipeline_parse(&p, text, strlen(text), "", NULL, &err) != REALM_OK) fail_msg("%s", err.text);
    realm_pipeline_close(p);
    assert_int_equal(realm_pipeline_parse(&p, bad, strlen(bad), "", NULL, &err), REALM_E_INVALID);
    assert_string_equal(err.text, "line 3: steps[0].promt: unknown key");
    assert_null(p);
}

#define CALL "steps: [{id: a, model: m, prompt: x"

static const struct {
    const char *text, *problem;
} rejected[] = {
    {"", "line 1: steps: is required"},
    {"[]", "must be an object, is an array"},
    {"steps: [", "line 2"},
    {"steps: []", "line 1: steps: there are none"},
    {"steps: x", "steps: must be an array, is a string"},
    {"steps:\n  - x", "line 2: steps[0]: must be an object"},
    {"step: []\nsteps: [{id: a, text: x}]", "line 1: step: unknown key"},
    {"name: 7\nsteps: [{id: a, text: x}]", "name: must be a string"},
    {"steps: [{text: x}]", "steps[0].id: is required"},
    {"steps: [{id: a-b, text: x}]", "steps[0].id: a name has"},
    {"steps: [{id: 1a, text: x}]", "steps[0].id: a name has"},
    {"steps: [{id: '', text: x}]", "steps[0].id: a name has"},
    {"steps:\n  - {id: a, text: x}\n  - {id: a, text: y}", "line 3: steps[1].id: a step of this id stands in line 2"},
    /* what a step is */
    {"steps: [{id: a}]", "a model is missing"},
    {"steps: [{id: a, model: m}]", "one of prompt and messages"},
    {"steps: [{id: a, model: m, prompt: x, messages: []}]", "one of prompt and messages"},
    {"steps: [{id: a, model: m, messages: []}]", "1 to 32 messages"},
    {"steps: [{id: a, model: m, messages: [{role: user}]}]", "messages[0].content: is required"},
    {"steps: [{id: a, model: m, messages: [{role: boss, content: x}]}]", "messages[0].role: must be one of"},
    {"steps: [{id: a, model: m, messages: [{role: user, content: x, name: y}]}]", "messages[0].name: unknown key"},
    {"steps: [{id: a, model: m, messages: [{role: user, content: x}], system: y}]", "system: goes with prompt"},
    {"steps: [{id: a, model: m, system: y, prompt: x, raw: true}]", "raw: goes with prompt alone"},
    {"steps: [{id: a, model: '', prompt: x}]", "model: a model's name"},
    {"steps: [{id: a, model: 3, prompt: x}]", "model: must be a string"},
    {"models: {m: n}\nsteps: [{id: a, model: n, prompt: x}]", "line 2: steps[0].model: \"n\" is not among"},
    {"models: {m: n}\n" CALL ", fallback: k}]", "steps[0].fallback: \"k\" is not among"},
    {CALL ", fallback: []}]", "fallback: must have 1 to 4"},
    {"models: {m: ''}\n" CALL "}]", "models.m: a model's id"},
    {"models: {m: [x]}\n" CALL "}]", "models.m: must be a string"},
    {"models: [m]\n" CALL "}]", "models: must be an object"},
    {"steps: [{id: a, text: x, vote: a}]", "a text or a vote"},
    {"steps: [{id: a, text: x, model: m}]", "model: is for steps that call a model"},
    {"steps: [{id: a, text: x, temperature: 1}]", "temperature: is for steps that call"},
    {"steps: [{id: a, text: x, key: text}]", "key: goes with vote"},
    {"steps: [{id: a, vote: b}]", "steps[0].vote: no step is called \"b\""},
    {"steps: [{id: a, vote: 3}]", "steps[0].vote: must be a string"},
    {"steps: [{id: a, text: x}, {id: b, vote: a, foreach: [1]}]", "foreach: a vote is one"},
    /* parameters */
    {CALL ", temperature: 2.1}]", "temperature: must be from 0 to 2"},
    {CALL ", temperature: hot}]", "temperature: must be a number"},
    {CALL ", top_p: 0}]", "top_p: must be from"},
    {CALL ", top_k: -1}]", "top_k: must be from 0"},
    {CALL ", max_tokens: 0}]", "max_tokens: must be from 1"},
    {CALL ", n: 65}]", "n: must be from 1 to 64"},
    {CALL ", retry: 9}]", "retry: must be from 0 to 8"},
    {CALL ", stop: [a, b, c, d, e]}]", "stop: at most 4"},
    {CALL ", stop: ''}]", "stop: must have 1 to"},
    {CALL ", stop: 3}]", "stop: must be a string"},
    {CALL ", seed: 1.5}]", "seed: must be an integer"},
    {CALL ", raw: 1}]", "raw: must be a boolean"},
    {"defaults: {prompt: x}\n" CALL "}]", "defaults.prompt: unknown key"},
    {"defaults: {temperature: -1}\n" CALL "}]", "defaults.temperature: must be from"},
    {"limits: {calls: 0}\n" CALL "}]", "limits.calls: must be from 1 to 4096"},
    {"limits: {bytes: 1}\n" CALL "}]", "limits.bytes: unknown key"},
    {"limits: 3\n" CALL "}]", "limits: must be an object"},
    {"inputs: [x]\n" CALL "}]", "inputs: must be an object"},
    {"inputs: {x-y: 1}\n" CALL "}]", "inputs.x-y: a name has"},
    {"inputs: {x: {defaut: 1}}\n" CALL "}]", "inputs.x.defaut: unknown key"},
    /* templates and expressions */
    {"steps:\n  - id: a\n    text: |\n      one\n      {{ two\n", "line 3: steps[0].text: line 2"},
    {"steps: [{id: a, text: '{% if %}'}]", "steps[0].text: line 1"},
    {"steps: [{id: a, text: 7}]", "steps[0].text: must be a template"},
    {"steps: [{id: a, text: '{% include \"/etc/passwd\" %}'}]", "steps[0].text: line 1"},
    {"steps: [{id: a, text: x, when: '{{ true }}'}]", "when: is an expression: without"},
    {"steps: [{id: a, text: x, when: true}]", "when: must be a string with an expression"},
    {"steps: [{id: a, text: x, when: 'true or'}]", "when: line 1"},
    {"steps: [{id: a, text: x, foreach: 3}]", "foreach: must be a string with an expression"},
    {"steps: [{id: a, text: x, foreach: '{% x %}'}]", "foreach: is an expression"},
    /* references */
    {"steps: [{id: a, text: '{{ question }}'}]", "\"question\" is not defined"},
    {"steps: [{id: a, text: '{{ inputs.q }}'}]", "steps[0].text: no input is called \"q\""},
    {"steps: [{id: a, text: '{{ inputs }}'}]", "say which, as in inputs.NAME"},
    {"steps: [{id: a, text: '{{ steps }}'}]", "say which, as in steps.ID.text"},
    {"steps: [{id: a, text: '{{ steps.b.text }}'}]", "no step is called \"b\""},
    {"steps: [{id: a, text: '{{ steps[inputs] }}'}]", "say which"},
    {"steps: [{id: a, text: x}, {id: b, text: '{{ steps.a }}'}]", "steps.a: say what of it"},
    {"steps: [{id: a, text: x}, {id: b, text: '{{ steps.a.txt }}'}]", "but no \"txt\""},
    {"steps: [{id: a, text: '{{ item }}'}]", "\"item\" is not defined"},
    {"steps: [{id: a, text: '{{ text }}'}]", "\"text\" is not defined"},
    {CALL ", expect: item}]", "\"item\" is not defined; there are inputs.NAME and steps.ID.text and text here"},
    {CALL ", when: text}]", "\"text\" is not defined"},
    {"steps: [{id: a, text: x}]\noutput: '{{ steps.b.text }}'", "line 2: output: no step is called \"b\""},
    {"steps: [{id: a, text: x}]\noutput: {b: 3}", "output.b: must be a template"},
    {"steps: [{id: a, text: x}]\noutput: {}", "output: there are none"},
    {"steps: [{id: a, text: x}]\noutput: [x]", "output: must be a template, is an array"},
    {"steps: [{id: a, text: x, after: b}]", "after: must be an array"},
    {"steps: [{id: a, text: x, after: [b]}]", "after[0]: no step is called \"b\""},
    /* circles */
    {"steps: [{id: a, text: '{{ steps.a.text }}'}]", "line 1: a waits for a"},
    {"steps:\n  - {id: a, text: '{{ steps.c.text }}'}\n  - {id: b, text: '{{ steps.a.text }}'}\n"
     "  - {id: c, text: '{{ steps.b.text }}'}",
     "line 2: a waits for c waits for b waits for a"},
    {"steps:\n  - {id: z, text: '{{ steps.a.text }}'}\n  - {id: a, text: x, when: steps.b.skipped}\n"
     "  - {id: b, text: x, after: [a]}",
     "line 3: a waits for b waits for a"},
    {"steps: [{id: a, vote: a}]", "a waits for a"},
};

static void test_rejected(void **state) {
    (void)state;
    for (size_t i = 0; i < REALM_ARRAY_LEN(rejected); i++) {
        realm_pipeline *p;
        realm_error err = {0};
        realm_buf problems;
        realm_buf_init(&problems, 1 << 16);
        realm_status s = realm_pipeline_parse(&p, rejected[i].text, strlen(rejected[i].text), "", &problems, &err);
        if (s == REALM_OK || !problems.data || !strstr(problems.data, rejected[i].problem))
            fail_msg("%s\nsays \"%s\", expected \"%s\"", rejected[i].text, problems.data ? problems.data : "nothing",
                     rejected[i].problem);
        assert_null(p);
        assert_int_equal(strncmp(problems.data, "line ", 5), 0);
        assert_int_equal(strncmp(problems.data, err.text, strlen(err.text)), 0); /* the first is the error */
        realm_buf_release(&problems);
    }
}

static void test_all_problems_are_said(void **state) {
    (void)state;
    static const char text[] =
        "inputs: {a b: 1}\nlimit: 3\nsteps:\n  - id: a\n    model: m\n    prompt: \"{{ x }}{{ y }}\"\n"
        "    temprature: 1\n    retry: 99\n  - {id: a, text: 3}\n";
    static const char *const want[] = {"line 2: limit",          "line 1: inputs.a b",  "line 7: steps[0].temprature",
                                       "line 8: steps[0].retry", "line 9: steps[1].id", "line 9: steps[1].text",
                                       "\"x\" is not",           "\"y\" is not"};
    realm_pipeline *p;
    realm_buf problems;
    realm_buf_init(&problems, 1 << 16);
    assert_int_equal(realm_pipeline_parse(&p, text, strlen(text), "", &problems, NULL), REALM_E_INVALID);
    size_t lines = 0;
    for (const char *at = problems.data; (at = strchr(at, '\n')); at++) lines++;
    assert_int_equal(lines, REALM_ARRAY_LEN(want));
    for (size_t i = 0; i < REALM_ARRAY_LEN(want); i++)
        if (!strstr(problems.data, want[i])) fail_msg("\"%s\" is not in\n%s", want[i], problems.data);
    realm_buf_release(&problems);
}

static void test_limits(void **state) {
    (void)state;
    realm_buf text, problems;
    realm_pipeline *p;
    for (size_t n = REALM_PIPELINE_STEPS_MAX; n <= REALM_PIPELINE_STEPS_MAX + 1; n++) {
        realm_buf_init(&text, 1 << 20);
        realm_buf_init(&problems, 1 << 16);
        realm_buf_puts(&text, "steps:\n");
        for (size_t i = 0; i < n; i++) /* the last ones first, each waits for the one after it */
            realm_buf_printf(&text, "  - {id: s%zu, text: \"%s%zu%s\"}\n", i, i + 1 < n ? "{{ steps.s" : "", i + 1,
                             i + 1 < n ? ".text }}" : "");
        realm_status s = realm_pipeline_parse(&p, text.data, text.len, "", &problems, NULL);
        if (n == REALM_PIPELINE_STEPS_MAX) {
            if (s != REALM_OK) fail_msg("%s", problems.data);
        } else {
            assert_int_equal(s, REALM_E_INVALID);
            assert_non_null(strstr(problems.data, "more than 64 steps"));
        }
        realm_pipeline_close(p);
        realm_buf_release(&text);
        realm_buf_release(&problems);
    }
    /* more problems than are said */
    realm_buf_init(&text, 1 << 20);
    realm_buf_init(&problems, 1 << 16);
    realm_buf_puts(&text, "steps: [{id: a, text: x}]\n");
    for (size_t i = 0; i < REALM_PIPELINE_PROBLEMS_MAX + 5; i++) realm_buf_printf(&text, "k%zu: 1\n", i);
    assert_int_equal(realm_pipeline_parse(&p, text.data, text.len, "", &problems, NULL), REALM_E_INVALID);
    assert_non_null(strstr(problems.data, "and 5 more\n"));
    realm_buf_release(&text);
    realm_buf_release(&problems);
}

static void test_allocation_failures(void **state) {
    (void)state;
    bool done = false;
    for (int64_t n = 0; !done; n++) {
        realm_pipeline *p;
        realm_error err = {0};
        realm_alloc_inject_failure(n, false);
        realm_status s = realm_pipeline_parse(&p, whole, strlen(whole), "dir/", NULL, &err);
        done = realm_alloc_count() <= n;
        realm_alloc_inject_failure(-1, false);
        if (done)
            assert_int_equal(s, REALM_OK);
        else if (s != REALM_E_NOMEM)
            fail_msg("allocation %lld: %s %s", (long long)n, realm_status_name(s), err.text);
        realm_pipeline_close(p);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_key), cmocka_unit_test(test_json_is_read_too),
        cmocka_unit_test(test_rejected),  cmocka_unit_test(test_all_problems_are_said),
        cmocka_unit_test(test_limits),    cmocka_unit_test(test_allocation_failures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
