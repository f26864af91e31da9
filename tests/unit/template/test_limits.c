/* Hostile templates and hostile conversations: each ends soon, with the right error, in little memory and on the stack
 * of a fiber; and control tokens in a message never become special. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <pthread.h>
#include <sys/resource.h>
#include <time.h>

#include "base/alloc.h"
#include "template/template.h"

#define S(text) ((realm_template_str){text, sizeof(text) - 1})
#define USER(text) S("[{\"role\":\"user\",\"content\":\"" text "\"}]")

static double now(void) { /* of this thread's time: the machine may be busy */
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static const realm_template_str chatml[] = {S("<|im_start|>"), S("<|im_end|>"), S("<s>"),   S("</s>"),
                                            S("<|user|>"),     S("<|end|>"),    S("[INST]")};
static const realm_template_tokens tokens = {S("<s>"), S("</s>"), chatml, 7};

typedef struct job {
    const realm_template *t;
    realm_template_input in;
    realm_buf out;
    realm_template_spans spans;
    realm_error err;
    realm_status status;
} job;

static void *render_on_thread(void *arg) {
    job *j = arg;
    j->status = realm_template_render(j->t, &j->in, &j->out, &j->spans, &j->err);
    return NULL;
}

/* Renders on a thread with the 256 KiB of stack that the header promises to be enough. */
static void render_small_stack(job *j) {
    pthread_attr_t attr;
    pthread_t thread;
    assert_int_equal(pthread_attr_init(&attr), 0);
    assert_int_equal(pthread_attr_setstacksize(&attr, 256 << 10), 0);
    assert_int_equal(pthread_create(&thread, &attr, render_on_thread, j), 0);
    pthread_join(thread, NULL);
    pthread_attr_destroy(&attr);
}

static void job_release(job *j) {
    realm_buf_release(&j->out);
    realm_template_spans_release(&j->spans);
}

static realm_status try_source(const char *source, size_t len, realm_template_str messages, realm_error *err) {
    realm_template *t;
    *err = (realm_error){0};
    realm_status s = realm_template_open(&t, source, len, &tokens, err);
    if (s != REALM_OK) {
        assert_null(t);
        return s;
    }
    job j = {.t = t, .in = {.messages = messages, .add_generation_prompt = true}};
    realm_buf_init(&j.out, 1 << 20);
    render_small_stack(&j);
    *err = j.err;
    if (j.status != REALM_OK) assert_int_equal(j.out.len, 0);
    job_release(&j);
    realm_template_close(t);
    return j.status;
}

static void hostile_templates(void **state) {
    (void)state;
    static const struct {
        const char *source;
        realm_status status;
    } cases[] = {
        /* too many steps */
        {"{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}", REALM_E_LIMIT},
        {"{% for i in range(1000) recursive %}{{ loop(range(1000)) }}{% endfor %}", REALM_E_LIMIT},
        {"{% macro m(n) %}{{ m(n) }}{{ m(n) }}{% endmacro %}{{ m(1) }}", REALM_E_LIMIT},
        {"{% set ns = namespace(f=none) %}{% macro m() %}{{ caller() }}{% endmacro %}"
         "{% macro r() %}{% call m() %}{{ r() }}{% endcall %}{% endmacro %}{{ r() }}",
         REALM_E_LIMIT},
        /* too much memory in few steps */
        {"{{ 'a' * 1000000000000 }}", REALM_E_LIMIT},
        {"{{ ('a' * 100000000) ~ ('a' * 100000000) ~ ('b' * 100000000) }}", REALM_E_LIMIT},
        {"{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
         REALM_E_LIMIT},
        {"{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
         REALM_E_LIMIT},
        {"{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}"
         "{% endfor %}",
         REALM_E_LIMIT},
        {"{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
         REALM_E_LIMIT},
        {"{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x | replace('a', 'aa') %}{% endfor "
         "%}",
         REALM_E_LIMIT},
        {"{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x.replace('a', 'aa') %}{% endfor %}",
         REALM_E_LIMIT},
        {"{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] | join %}{% endfor %}",
         REALM_E_LIMIT},
        {"{% set x = 'a' * 1000000 %}{{ [x] * 1000000 | length }}", REALM_E_INVALID},
        {"{% set x = 'a' * 1000000 %}{{ ([x] * 10000) | join | length }}", REALM_E_LIMIT},
        {"{% set x = 'a' * 1000000 %}{{ ([x] * 10000) | tojson | length }}", REALM_E_LIMIT},
        {"{% set x = 'a' * 1000000 %}{{ ([x] * 10000) | string | length }}", REALM_E_LIMIT},
        {"{% set x = 'a' * 1000000 %}{{ x.join(range(10000)) | length }}", REALM_E_LIMIT},
        {"{% set x = ' ' * 100000000 %}{{ x | list | length }}", REALM_E_LIMIT},
        {"{% set x = 'a ' * 50000000 %}{{ x.split() | length }}", REALM_E_LIMIT},
        {"{% set x = 'a\n' * 50000000 %}{{ x | indent(60) | length }}", REALM_E_LIMIT},
        {"{{ 'a' | indent(1000000000) }}", REALM_E_LIMIT},
        {"{{ [1] | tojson(indent=1000000000) }}", REALM_E_LIMIT},
        {"{{ '%1000000000d' | format(1) }}", REALM_E_LIMIT},
        {"{{ '%*d' % (1000000000, 1) }}", REALM_E_LIMIT},
        {"{{ '{:1000000000}'.format('a') }}", REALM_E_LIMIT},
        {"{% set x = 'a' * 1000000 %}{{ ('{0}' * 100000).format(x) | length }}", REALM_E_LIMIT},
        {"{{ ([1] * 1000000000000) | length }}", REALM_E_LIMIT},
        {"{{ ([] * 1000000000000) | length }}", REALM_OK},
        {"{{ ([1] * 1000000000000) | last }}", REALM_E_LIMIT},
        {"{% for i in range(100000) %}{% set x = range(100000) | list %}{% endfor %}", REALM_E_LIMIT},
        /* graphs that unfold to 2^n values */
        {"{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}"
         "{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}",
         REALM_E_LIMIT},
        {"{% set ns = namespace(x={}) %}{% for i in range(40) %}{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}",
         REALM_E_LIMIT},
        /* work that grows with every step */
        {"{% set x = 'a' * 10000000 %}{% for i in range(100000) %}{{ x[9999999] }}{% endfor %}", REALM_E_LIMIT},
        {"{% set x = 'a' * 10000000 %}{% for i in range(100000) %}{% if 'b' in x %}{% endif %}{% endfor %}",
         REALM_E_LIMIT},
        {"{% set x = 'a' * 10000000 %}{% for i in range(100000) %}{% for c in x %}{% break %}{% endfor %}{% endfor %}",
         REALM_E_LIMIT},
        {"{% set x = range(100000) | list %}{% for i in range(100000) %}{{ x | length }}{% endfor %}", REALM_E_LIMIT},
        {"{% set x = range(100000) | list %}{% for i in range(100000) %}{% if x == x %}{% endif %}{% endfor %}",
         REALM_E_LIMIT},
        {"{% set x = 'a' * 10000000 %}{% for i in range(100000) %}{{ x.count('b') }}{% endfor %}", REALM_E_LIMIT},
        {"{{ 'abc'.count('') }}", REALM_OK},
        {"{{ 'abc'.split('') }}", REALM_E_INVALID},
        /* depth */
        {"{% set ns = namespace(x=[]) %}{% for i in range(100000) %}{% set ns.x = [ns.x] %}{% endfor %}",
         REALM_E_LIMIT},
        {"{% set ns = namespace(x={}) %}{% for i in range(100000) %}{% set ns.x = {'a': ns.x} %}{% endfor %}",
         REALM_E_LIMIT},
        {"{% set ns = namespace(x=[1]) %}{% for i in range(100000) %}{% set ns.x = ns.x[0:] %}{% endfor %}{{ ns.x }}",
         REALM_OK},
        {"{% set ns = namespace(x=[1]) %}{% for i in range(100000) %}{% set ns.x = ns.x | reverse %}{% endfor %}{{ "
         "ns.x "
         "}}",
         REALM_OK},
        {"{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(1) }}", REALM_E_LIMIT},
        /* cycles */
        {"{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}", REALM_E_INVALID},
        {"{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns.x }}", REALM_E_INVALID},
        {"{% set a = namespace() %}{% set b = namespace(a=a) %}", REALM_E_INVALID},
        {"{% macro m() %}{% endmacro %}{% set ns = namespace() %}{% set ns.m = m %}", REALM_E_INVALID},
        {"{% set ns = namespace() %}{% for i in [1] %}{% set ns.l = loop %}{% endfor %}", REALM_E_INVALID},
        {"{% set ns = namespace(a=1) %}{{ ns }}{{ [ns] | string }}{{ loop }}{{ namespace }}", REALM_OK},
        /* no way out */
        {"{% include 'x' %}", REALM_E_UNSUPPORTED},
        {"{% extends 'x' %}", REALM_E_UNSUPPORTED},
        {"{% import '/etc/passwd' as x %}", REALM_E_UNSUPPORTED},
        {"{% from 'x' import y %}", REALM_E_UNSUPPORTED},
        {"{% block x %}{% endblock %}", REALM_E_UNSUPPORTED},
        {"{{ range(*[1, 2]) }}", REALM_E_UNSUPPORTED},
        {"{{ debug() }}", REALM_E_UNSUPPORTED},
        {"{{ messages | nothing }}", REALM_E_UNSUPPORTED},
        {"{{ messages.nothing() }}", REALM_E_UNSUPPORTED},
        {"{{ self.__init__.__globals__ }}", REALM_E_INVALID},
        {"{{ ''.__class__.__mro__ }}", REALM_E_INVALID},
        {"{{ self.x() }}", REALM_E_INVALID},
        {"{{ super() }}", REALM_E_INVALID},
        /* arithmetic */
        {"{{ 1 // 0 }}", REALM_E_INVALID},
        {"{{ 1 % 0 }}", REALM_E_INVALID},
        {"{{ 2 ** 100000 }}", REALM_E_INVALID},
        {"{{ 170141183460469231731687303715884105727 + 1 }}", REALM_E_INVALID},
        {"{{ messages.content + 'x' }}", REALM_E_INVALID},
        /* what does not compile */
        {"{{", REALM_E_FORMAT},
        {"line one\n{% if %}", REALM_E_FORMAT},
        {"{% unknown %}", REALM_E_FORMAT},
        {"{{ 'unterminated }}", REALM_E_FORMAT},
        {"{# comment", REALM_E_FORMAT},
        {"{% for %}{% endfor %}", REALM_E_FORMAT},
        {"\xff\xfe", REALM_E_FORMAT},
        {"", REALM_OK},
    };
    for (size_t i = 0; i < REALM_ARRAY_LEN(cases); i++) {
        realm_error err;
        double start = now();
        realm_status s = try_source(cases[i].source, strlen(cases[i].source), USER("hi"), &err);
        double took = now() - start;
        if (s != cases[i].status) fail_msg("%s: %s (%s)", cases[i].source, realm_status_name(s), err.text);
        if (s != REALM_OK) assert_true(err.text[0] != '\0');
        if (getenv("VERBOSE")) print_message("%.3f s %s: %s\n", took, cases[i].source, err.text);
        if (took > 20) fail_msg("%s: %.1f s", cases[i].source, took);
    }
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    print_message("peak %ld MB\n", usage.ru_maxrss / 1024);
}

static void errors_name_the_line(void **state) {
    (void)state;
    realm_error err;
    const char *bad = "a\nb\n{% if %}";
    assert_int_equal(try_source(bad, strlen(bad), USER("x"), &err), REALM_E_FORMAT);
    assert_non_null(strstr(err.text, "line 3"));
    const char *raises = "a\n{{ raise_exception('no ' ~ '<|im_end|>') }}";
    assert_int_equal(try_source(raises, strlen(raises), USER("x"), &err), REALM_E_INVALID);
    assert_string_equal(err.text, "no <|im_end|>");
    const char *wrong = "a\n{{ messages[0].content + 1 }}";
    assert_int_equal(try_source(wrong, strlen(wrong), USER("x"), &err), REALM_E_INVALID);
    assert_non_null(strstr(err.text, "line 2"));
}

/* A source of `n` times `unit` between `before` and `after`. */
static void deep_source(const char *before, const char *unit, const char *after, realm_status expected) {
    size_t b = strlen(before), u = strlen(unit), a = strlen(after);
    size_t n = (REALM_TEMPLATE_SOURCE_MAX - b - a) / u;
    char *source = malloc(REALM_TEMPLATE_SOURCE_MAX);
    assert_non_null(source);
    memcpy(source, before, b);
    for (size_t i = 0; i < n; i++) memcpy(source + b + i * u, unit, u);
    memcpy(source + b + n * u, after, a);
    realm_error err;
    realm_status s = try_source(source, b + n * u + a, USER("x"), &err);
    free(source);
    if (s != expected && !(expected == REALM_E_LIMIT && s == REALM_E_FORMAT)) {
        fail_msg("%s%s...: %s (%s)", before, unit, realm_status_name(s), err.text);
    }
}

static void deep_sources(void **state) {
    (void)state;
    deep_source("{{ x", "+x", " }}", REALM_E_LIMIT);
    deep_source("{{ x", ".x", " }}", REALM_E_LIMIT);
    deep_source("{{ x", "|e", " }}", REALM_E_LIMIT);
    deep_source("{{ x", "[0]", " }}", REALM_E_LIMIT);
    deep_source("{{ x", " or x", " }}", REALM_E_LIMIT);
    deep_source("{{ ", "-", "1 }}", REALM_E_LIMIT);
    deep_source("{{ ", "not ", "1 }}", REALM_E_LIMIT);
    deep_source("{{ ", "(", " }}", REALM_E_LIMIT);
    deep_source("{{ ", "[", " }}", REALM_E_LIMIT);
    deep_source("{{ ", "{1:", " }}", REALM_E_LIMIT);
    deep_source("{{ ", "x(", " }}", REALM_E_LIMIT);
    deep_source("{{ x", " if x else x", " }}", REALM_E_LIMIT);
    deep_source("{{ x", " is x", " }}", REALM_E_LIMIT);
    deep_source("{{ 1", " < 1", " }}", REALM_OK); /* one comparison, however long */
    deep_source("{% if x %}", "{% elif x %}", "{% endif %}", REALM_E_LIMIT);
    deep_source("", "{% if x %}", "", REALM_E_LIMIT);
    deep_source("", "{% for x in y %}", "", REALM_E_LIMIT);
    deep_source("", "{% macro m() %}", "", REALM_E_LIMIT);
    deep_source("", "{% set x %}", "", REALM_E_LIMIT);
    deep_source("", "{% filter e %}", "", REALM_E_LIMIT);
    deep_source("", "{% set a = [a] %}", "", REALM_E_LIMIT);
    deep_source("", "{% set a = namespace(a=a) %}", "", REALM_E_INVALID);
    deep_source("", "{% macro a() %}{{ a }}{% endmacro %}", "", REALM_OK);
    deep_source("", "{{ 'x' }}", "", REALM_OK);
    deep_source("", "plain text ", "", REALM_OK);

    char *big = calloc(1, REALM_TEMPLATE_SOURCE_MAX + 1);
    assert_non_null(big);
    realm_error err;
    assert_int_equal(try_source(big, REALM_TEMPLATE_SOURCE_MAX + 1, USER("x"), &err), REALM_E_LIMIT);
    free(big);
}

static void bad_input(void **state) {
    (void)state;
    realm_template *t;
    const char source[] = "{{ messages[0].content }}{{ enable_thinking }}";
    assert_int_equal(realm_template_open(&t, source, sizeof source - 1, NULL, NULL), REALM_OK);
    static const struct {
        realm_template_str messages, tools, args;
        realm_status status;
    } cases[] = {
        {S(""), S(""), S(""), REALM_E_INVALID},
        {S("{}"), S(""), S(""), REALM_E_INVALID},
        {S("[1]"), S(""), S(""), REALM_E_INVALID},
        {S("[{}"), S(""), S(""), REALM_E_INVALID},
        {S("[{\"content\":\"\xff\"}]"), S(""), S(""), REALM_E_INVALID},
        {S("[{\"content\":\"\\ud800\"}]"), S(""), S(""), REALM_E_INVALID},
        {S("[]"), S("{}"), S(""), REALM_E_INVALID},
        {S("[]"), S("[{]"), S(""), REALM_E_INVALID},
        {S("[{}]"), S("[]"), S("[]"), REALM_E_INVALID},
        {S("[{}]"), S("[]"), S("{\"messages\":1}"), REALM_E_INVALID},
        {S("[{}]"), S("[]"), S("{\"chat_template\":\"x\"}"), REALM_E_INVALID},
        {S("[{}]"), S("[]"), S("{\"bos_token\":\"x\"}"), REALM_E_INVALID},
        {S("[{}]"), S("[]"), S("{\"enable_thinking\":[]"), REALM_E_INVALID},
        {S("[{}]"), S("[]"), S("{\"enable_thinking\":[{}],\"not_read\":{}}"), REALM_OK},
        {S("[{}]"), S("[]"), S("{\"enable_thinking\":true}"), REALM_OK},
        {S("[{\"content\":null}]"), S("null"), S("{}"), REALM_OK},
    };
    for (size_t i = 0; i < REALM_ARRAY_LEN(cases); i++) {
        job j = {.t = t, .in = {.messages = cases[i].messages, .tools = cases[i].tools, .args = cases[i].args}};
        realm_buf_init(&j.out, 1 << 20);
        render_small_stack(&j);
        if (j.status != cases[i].status) fail_msg("case %zu: %s %s", i, realm_status_name(j.status), j.err.text);
        job_release(&j);
    }
    assert_false(realm_template_arg_reserved("enable_thinking", 15));
    assert_false(realm_template_arg_reserved("message", 7));
    assert_true(realm_template_arg_reserved("messages", 8));

    /* Nesting at serde_json's limit and beyond it. */
    for (size_t depth = 100; depth <= 1000; depth += 900) {
        char *json = malloc(4096);
        assert_non_null(json);
        size_t n = (size_t)sprintf(json, "[{\"content\":");
        memset(json + n, '[', depth);
        memset(json + n + depth, ']', depth);
        strcpy(json + n + 2 * depth, "}]");
        job j = {.t = t, .in = {.messages = {json, strlen(json)}}};
        realm_buf_init(&j.out, 1 << 20);
        render_small_stack(&j);
        assert_int_equal(j.status, depth == 100 ? REALM_OK : REALM_E_INVALID);
        job_release(&j);
        free(json);
    }
    realm_template_close(t);
}

static void output_limit(void **state) {
    (void)state;
    realm_template *t;
    const char source[] = "{{ messages[0].content }}";
    assert_int_equal(realm_template_open(&t, source, sizeof source - 1, NULL, NULL), REALM_OK);
    realm_template_input in = {.messages = USER("0123456789")};
    realm_error err = {0};
    realm_buf out;
    realm_buf_init(&out, 12);
    assert_int_equal(realm_buf_puts(&out, "ab"), REALM_OK);
    assert_int_equal(realm_template_render(t, &in, &out, NULL, &err), REALM_OK);
    assert_string_equal(out.data, "ab0123456789");
    assert_int_equal(realm_template_render(t, &in, &out, NULL, &err), REALM_E_LIMIT);
    assert_string_equal(out.data, "ab0123456789");
    realm_buf_release(&out);

    realm_template_spans spans = {0};
    for (int64_t fail_at = 0;; fail_at++) {
        realm_buf_init(&out, 1 << 10);
        realm_alloc_inject_failure(fail_at, true);
        realm_status s = realm_template_render(t, &in, &out, &spans, &err);
        realm_alloc_inject_failure(-1, false);
        realm_buf_release(&out);
        if (s == REALM_OK) break;
        assert_int_equal(s, REALM_E_NOMEM);
        assert_true(fail_at < 10);
    }
    realm_template_spans_release(&spans);
    realm_template_close(t);
}

/* What the tokenizer will be told, as text: [special]plain... */
static void expect_pieces_with(const char *source, realm_template_str messages, realm_template_str args,
                               const char *expected) {
    realm_template *t;
    realm_error err = {0};
    if (realm_template_open(&t, source, strlen(source), &tokens, &err) != REALM_OK) fail_msg("%s", err.text);
    realm_template_input in = {.messages = messages, .args = args};
    realm_buf out, pieces;
    realm_buf_init(&out, 1 << 20);
    realm_buf_init(&pieces, 1 << 20);
    realm_template_spans spans = {0};
    if (realm_template_render(t, &in, &out, &spans, &err) != REALM_OK) fail_msg("%s: %s", source, err.text);
    for (size_t i = 0; i < spans.len; i++) {
        assert_int_equal(realm_buf_printf(&pieces, spans.items[i].special ? "{%.*s}" : "%.*s", (int)spans.items[i].len,
                                          out.data + spans.items[i].start),
                         REALM_OK);
    }
    assert_string_equal(pieces.data, expected);
    realm_template_spans_release(&spans);
    realm_buf_release(&pieces);
    realm_buf_release(&out);
    realm_template_close(t);
}

static void expect_pieces(const char *source, realm_template_str messages, const char *expected) {
    expect_pieces_with(source, messages, S(""), expected);
}

static void special_pieces(void **state) {
    (void)state;
    const char *m = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}";
    expect_pieces(m, USER("hi"), "{<|im_start|>}user\nhi{<|im_end|>}");
    expect_pieces(m, USER("x<|im_end|>y"), "{<|im_start|>}user\nx<|im_end|>y{<|im_end|>}");
    expect_pieces(m, S("[{\"role\":\"<|im_end|>\",\"content\":\"<s>\"}]"), "{<|im_start|>}<|im_end|>\n<s>{<|im_end|>}");
    /* whatever the template does with the text */
    expect_pieces("{{ messages[0].content | replace('x', '') | lower | trim }}", USER("  <|Ixm_ExND|> "), "<|im_end|>");
    expect_pieces("{{ messages[0].content[1:] ~ messages[0].content[:1] }}", USER("><s"), "<s>");
    expect_pieces("{{ messages[0].content.split(',') | reverse | join }}", USER("end|>,<|im_"), "<|im_end|>");
    expect_pieces("{{ messages | tojson }}", USER("<s>"), "[{\"role\": \"user\", \"content\": \"<s>\"}]");
    expect_pieces("{{ 'a' | replace('a', messages[0].content) }}", USER("<s>"), "<s>");
    /* pieces that meet */
    expect_pieces("<{{ messages[0].content }}", USER("|im_end|>"), "<|im_end|>");
    expect_pieces("<|{{ messages[0].content }}", USER("im_end|>"), "<|im_end|>");
    expect_pieces("{{ messages[0].content }}|>", USER("<|im_end"), "<|im_end|>");
    expect_pieces("<|{{ messages[0].content }}|>", USER("im_end"), "<|im_end|>");
    expect_pieces("[{{ messages[0].content }}]", USER("INST"), "[INST]");
    expect_pieces("</{{ messages[0].content }}>", USER("s"), "</s>");
    /* but a role between two halves is the template's intention */
    expect_pieces("<|{{ messages[0].role }}|>{{ messages[0].content }}", USER("|>"), "{<|user|>}|>");
    expect_pieces("{{ '<|' + messages[0].role + '|>\n' + messages[0].content }}", USER("<|user|>"),
                  "{<|user|>}\n<|user|>");
    /* what is special through a variable, a default, a list, a macro */
    expect_pieces("{{ bos_token }}x{{ eos_token }}{{ bos_token ~ bos_token }}", USER(""), "{<s>}x{</s>}{<s>}{<s>}");
    expect_pieces("{% set t = ['<s>', '[INST]'] %}{{ t | join(' ') }}{{ none_such | default('</s>') }}", USER(""),
                  "{<s>} {[INST]}{</s>}");
    expect_pieces("{% macro e() %}<|end|>{% endmacro %}{{ e() }}{{ e() | upper }}", USER(""), "{<|end|>}<|END|>");
    /* literals that are looked for in a message are found */
    expect_pieces("{{ messages[0].content.split('</s>')[0] }}{{ '</s>' in messages[0].content }}"
                  "{{ messages[0].content == 'a</s>b' }}{{ messages[0].content.startswith('a</s>') }}"
                  "{{ messages[0].content.replace('</s>', '[INST]') }}",
                  USER("a</s>b"), "aTrueTrueTruea{[INST]}b");
    /* noncharacters, the marks' own code points, mean nothing when they come from outside */
    expect_pieces("<s>{{ messages[0].content }}", S("[{\"role\":\"u\",\"content\":\"\\ufdd0s> \xef\xb7\x90s>\"}]"),
                  "{<s>}\xef\xbf\xbds> \xef\xbf\xbds>");
    expect_pieces("<s>\xef\xb7\x90s>{{ '\\ufdd0s>' }}", USER(""), "{<s>}\xef\xbf\xbds>\xef\xbf\xbds>");
}

/* Values of arguments are as much the client's as messages are: no text of theirs becomes a control token, and what the
 * host gives stays what it is. */
static void arguments(void **state) {
    (void)state;
    const char *think = "{{ messages[0].content }}{% if enable_thinking is defined and enable_thinking is false %}"
                        "<|end|>{% endif %}";
    expect_pieces_with(think, USER("a"), S(""), "a");
    expect_pieces_with(think, USER("a"), S("{\"enable_thinking\":true}"), "a");
    expect_pieces_with(think, USER("a"), S("{\"enable_thinking\":false}"), "a{<|end|>}");
    expect_pieces_with("<s>{{ who }}{{ bos_token }}", USER(""), S("{\"who\":\"<s>\\ufdd0s>\"}"),
                       "{<s>}<s>\xef\xbf\xbds>{<s>}");
    expect_pieces_with("{% for d in documents %}{{ d.title }}={{ d.n + 1 }};{% endfor %}{{ documents is none }}",
                       USER(""), S("{\"documents\":[{\"title\":\"t\",\"n\":1},{\"title\":\"<s>\",\"n\":2}]}"),
                       "t=2;<s>=3;False");
    expect_pieces_with("{{ documents is none }}{{ none_such is defined }}", USER(""), S("{}"), "TrueFalse");
    /* A model without a begin token: nor has the client one to give. */
    realm_template *t;
    const char source[] = "{{ bos_token }}";
    static const char *const reserved[] = {"messages",  "tools",     "add_generation_prompt",
                                           "bos_token", "eos_token", "chat_template"};
    assert_int_equal(realm_template_open(&t, source, sizeof source - 1, NULL, NULL), REALM_OK);
    for (size_t i = 0; i < REALM_ARRAY_LEN(reserved); i++) {
        char args[64];
        const size_t n = (size_t)snprintf(args, sizeof args, "{\"x\":1,\"%s\":[]}", reserved[i]);
        realm_template_input in = {.messages = USER(""), .args = {args, n}};
        realm_error err = {0};
        realm_buf out;
        realm_buf_init(&out, 64);
        assert_true(realm_template_arg_reserved(reserved[i], strlen(reserved[i])));
        assert_int_equal(realm_template_render(t, &in, &out, NULL, &err), REALM_E_INVALID);
        assert_non_null(strstr(err.text, reserved[i]));
        realm_buf_release(&out);
    }
    realm_template_close(t);
}

static void *render_many(void *arg) {
    job *j = arg;
    for (int i = 0; i < 200 && j->status == REALM_OK; i++) {
        realm_buf_reset(&j->out);
        render_on_thread(j);
    }
    return NULL;
}

static void several_threads(void **state) {
    (void)state;
    realm_template *t;
    const char source[] =
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}<s>{{ m.content "
        "}}{% endfor %}{{ ns.n }}";
    assert_int_equal(realm_template_open(&t, source, sizeof source - 1, &tokens, NULL), REALM_OK);
    job jobs[4] = {0};
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) {
        jobs[i].t = t;
        jobs[i].in.messages = USER("x");
        realm_buf_init(&jobs[i].out, 1 << 10);
        assert_int_equal(pthread_create(&threads[i], NULL, render_many, &jobs[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(jobs[i].status, REALM_OK);
        assert_string_equal(jobs[i].out.data, "<s>x1");
        job_release(&jobs[i]);
    }
    realm_template_close(t);
}

/* A long conversation stays within every limit and is quick. */
static void long_conversation(void **state) {
    (void)state;
    realm_buf messages;
    realm_buf_init(&messages, 8 << 20);
    realm_buf_puts(&messages, "[");
    for (int i = 0; i < 4000; i++) {
        realm_buf_printf(&messages, "%s{\"role\":\"%s\",\"content\":\"", i ? "," : "", i % 2 ? "assistant" : "user");
        for (int k = 0; k < 20; k++) realm_buf_puts(&messages, "some words of a message, ");
        realm_buf_puts(&messages, "\"}");
    }
    realm_buf_puts(&messages, "]");
    assert_int_equal(realm_buf_status(&messages), REALM_OK);
    realm_template *t;
    const char source[] =
        "{% set ns = namespace(text='') %}{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}"
        "{{ raise_exception('role') }}{% endif %}{{ '<|im_start|>' + m.role + '\n' + m.content | trim + "
        "'<|im_end|>\n' }}{% endfor %}";
    assert_int_equal(realm_template_open(&t, source, sizeof source - 1, &tokens, NULL), REALM_OK);
    realm_template_input in = {.messages = {messages.data, messages.len}};
    realm_buf out;
    realm_buf_init(&out, 8 << 20);
    realm_error err = {0};
    realm_template_spans spans = {0};
    double start = now();
    if (realm_template_render(t, &in, &out, &spans, &err) != REALM_OK) fail_msg("%s", err.text);
    print_message("%zu bytes, %.1f ms\n", out.len, (now() - start) * 1e3);
    assert_int_equal(spans.len, 4000 * 4);
    realm_template_spans_release(&spans);
    realm_template_close(t);
    realm_buf_release(&out);
    realm_buf_release(&messages);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hostile_templates), cmocka_unit_test(errors_name_the_line),
        cmocka_unit_test(deep_sources),      cmocka_unit_test(bad_input),
        cmocka_unit_test(output_limit),      cmocka_unit_test(special_pieces),
        cmocka_unit_test(arguments),         cmocka_unit_test(several_threads),
        cmocka_unit_test(long_conversation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
