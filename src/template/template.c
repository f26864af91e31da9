/* template/template.c - the C side of chat templates: hands everything to the Rust skin over minijinja (deps/src) and
 * takes the result back. The functions declared here are deps/src/template.rs's; the structs must match. */
#include "template/template.h"

#include <string.h>

#include "base/alloc.h"

typedef struct deps_input {
    realm_template_str messages, tools, args, values;
    bool add_generation_prompt;
    int64_t now_unix;
} deps_input;

typedef int (*deps_take)(void *user, const char *text, size_t len, const realm_template_span *spans, size_t n_spans);

int rdeps_template_open(realm_template_str source, realm_template_str bos, realm_template_str eos,
                        const realm_template_str *control, size_t n_control, realm_template **out, char *error,
                        size_t error_cap);
void rdeps_template_close(realm_template *t);
int rdeps_template_render(const realm_template *t, const deps_input *in, size_t max_output, deps_take take, void *user,
                          char *error, size_t error_cap);
int rdeps_template_names(const realm_template *t, void (*take)(void *user, const char *name, size_t len), void *user,
                         char *error, size_t error_cap);
bool rdeps_template_arg_reserved(realm_template_str name);

bool realm_template_arg_reserved(const char *name, size_t len) {
    return rdeps_template_arg_reserved((realm_template_str){name, len});
}

void realm_template_spans_release(realm_template_spans *s) {
    if (!s) return;
    realm_free(s->items);
    *s = (realm_template_spans){0};
}

realm_status realm_template_open(realm_template **out, const char *source, size_t len,
                                 const realm_template_tokens *tokens, realm_error *err) {
    static const realm_template_tokens none;
    *out = NULL;
    if (!tokens) tokens = &none;
    if (len > REALM_TEMPLATE_SOURCE_MAX) {
        return realm_error_set(err, REALM_E_LIMIT, "%zu bytes, a template has at most %u", len,
                               REALM_TEMPLATE_SOURCE_MAX);
    }
    realm_error why = {0};
    why.code = (realm_status)rdeps_template_open((realm_template_str){source, len}, tokens->bos, tokens->eos,
                                                 tokens->control, tokens->n_control, out, why.text, sizeof why.text);
    if (why.code == REALM_OK) return REALM_OK;
    if (err) *err = why;
    return why.code;
}

realm_status realm_template_each_name(const realm_template *t, void (*fn)(void *user, const char *name, size_t len),
                                      void *user, realm_error *err) {
    realm_error why = {0};
    why.code = (realm_status)rdeps_template_names(t, fn, user, why.text, sizeof why.text);
    if (why.code != REALM_OK && err) *err = why;
    return why.code;
}

void realm_template_close(realm_template *t) { rdeps_template_close(t); }

/* Where the result goes; called once, from inside the render call, when nothing can fail any more but memory. */
typedef struct taker {
    realm_buf *out;
    realm_template_spans *spans;
} taker;

static int take_result(void *user, const char *text, size_t len, const realm_template_span *spans, size_t n_spans) {
    taker *t = user;
    realm_template_span *copy = NULL;
    if (t->spans && n_spans) {
        copy = realm_calloc(n_spans, sizeof *copy);
        if (!copy) return REALM_E_NOMEM;
        memcpy(copy, spans, n_spans * sizeof *copy);
    }
    realm_status s = realm_buf_reserve(t->out, len);
    if (s == REALM_OK) s = realm_buf_append(t->out, text, len);
    if (s != REALM_OK) {
        realm_free(copy);
        return s;
    }
    if (t->spans) {
        realm_template_spans_release(t->spans);
        *t->spans = (realm_template_spans){copy, n_spans};
    }
    return REALM_OK;
}

realm_status realm_template_render(const realm_template *t, const realm_template_input *in, realm_buf *out,
                                   realm_template_spans *spans, realm_error *err) {
    size_t size;
    if (!realm_add_size(in->messages.len, in->tools.len, &size) || !realm_add_size(size, in->args.len, &size) ||
        !realm_add_size(size, in->values.len, &size) || size > REALM_TEMPLATE_INPUT_MAX) {
        return realm_error_set(err, REALM_E_LIMIT, "what the template is to work on is longer than %u bytes",
                               REALM_TEMPLATE_INPUT_MAX);
    }
    if (realm_buf_status(out) != REALM_OK) return realm_error_set(err, out->failed, "the output buffer has failed");

    const deps_input input = {in->messages, in->tools, in->args, in->values, in->add_generation_prompt, in->now_unix};
    taker to = {out, spans};
    size_t room = REALM_MIN(out->max - out->len, (size_t)REALM_TEMPLATE_OUTPUT_MAX);
    realm_error why = {0};
    why.code = (realm_status)rdeps_template_render(t, &input, room, take_result, &to, why.text, sizeof why.text);
    if (why.code == REALM_OK) return REALM_OK;
    if (!why.text[0]) {
        realm_error_set(&why, why.code, "the rendered conversation: %s", realm_status_text(why.code));
    }
    if (err) *err = why;
    return why.code;
}
