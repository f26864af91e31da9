/* Messages and prompts: checked, and in the one shape that programs and templates read.
 *
 * Messages are rewritten: `developer` becomes `system` (what templates know), content parts of type text become one
 * string (joined with line breaks), null members go. The text of messages is never changed and never logged.
 */
#include <string.h>

#include "api/internal.h"
#include "base/alloc.h"

bool api_read_token(const realm_json *v, size_t n_vocab, realm_token *out, api_error *e) {
    int64_t id = 0;
    API_CHECK(realm_json_int(v, 0, (int64_t)n_vocab - 1, &id, &err_), v);
    *out = (realm_token)id;
    return true;
}

/* What a part of type text may hold: its text, and where a prefix worth keeping ends, which is a hint. */
static bool check_text_part(const realm_json *part, api_error *e) {
    static const char *const known[] = {"type", "text", "prompt_cache_breakpoint"}, *const marks[] = {"mode", "ttl"};
    realm_json at = *part, mark, v;
    API_CHECK(realm_json_only(part, known, 3, &at, &err_), &at);
    if (!realm_json_get_set(part, "prompt_cache_breakpoint", &mark)) return true;
    at = mark;
    API_CHECK(realm_json_only(&mark, marks, 2, &at, &err_), &at);
    (void)realm_json_get(&mark, "mode", &v);
    if (!API_ONE_OF(&v, "explicit")) return false;
    return !realm_json_get_set(&mark, "ttl", &v) || API_ONE_OF(&v, "30m", "12h");
}

bool api_write_content(const realm_json *content, realm_json_writer *w, api_error *e) {
    const char *s = "";
    size_t len = 0;
    if (realm_json_kind_of(content) == REALM_JSON_STRING) {
        if (w) realm_json_write_value(w, content);
        return true;
    }
    if (realm_json_kind_of(content) != REALM_JSON_ARRAY)
        return api_error_field(e, content, "invalid_type", "must be a string or an array of parts, is %s",
                               realm_json_kind_name(realm_json_kind_of(content)));
    realm_buf joined;
    realm_buf_init(&joined, REALM_RUN_INPUT_MAX);
    bool ok = true;
    realm_json part, type, text;
    for (size_t i = 0; ok && realm_json_at(content, i, &part); i++) {
        realm_error err = {0};
        (void)realm_json_get(&part, "type", &type);
        if (realm_json_expect(&part, REALM_JSON_OBJECT, &err) != REALM_OK)
            ok = api_error_value(e, &part, &err);
        else if (realm_json_str(&type, &s, &len, &err) != REALM_OK)
            ok = api_error_value(e, &type, &err);
        else if (!realm_json_is(&type, "text"))
            ok = api_error_field(e, &type, "unsupported_content", "only parts of type \"text\" are supported");
        else if (!check_text_part(&part, e))
            ok = false;
        else if (realm_json_get(&part, "text", &text), realm_json_str(&text, &s, &len, &err) != REALM_OK)
            ok = api_error_value(e, &text, &err);
        if (!ok) break;
        if (i > 0) realm_buf_putc(&joined, '\n');
        realm_buf_append(&joined, s, len);
    }
    if (ok && realm_json_len(content) == 0)
        ok = api_error_field(e, content, "invalid_value", "must have at least one part");
    if (ok && realm_buf_status(&joined) != REALM_OK) ok = api_error_buf(e, realm_buf_status(&joined));
    if (ok && w) realm_json_write_str(w, joined.data ? joined.data : "", joined.len);
    realm_buf_release(&joined);
    return ok;
}

static bool write_message(const realm_json *m, realm_json_writer *w, api_error *e) {
    static const char *const roles[] = {"developer", "system", "user", "assistant", "tool", "function"};
    API_CHECK(realm_json_expect(m, REALM_JSON_OBJECT, &err_), m);
    realm_json v, content, name;
    size_t role = 0;
    (void)realm_json_get(m, "role", &v);
    API_CHECK(realm_json_enum(&v, roles, REALM_ARRAY_LEN(roles), &role, &err_), &v);
    if (role >= 4) return api_error_field(e, &v, "unsupported_parameter", "tools are not supported by this server");
    realm_json_iter it = {0};
    while (realm_json_next(m, &it, &v)) {
        if (strcmp(v.key, "role") == 0 || strcmp(v.key, "content") == 0 || strcmp(v.key, "name") == 0) continue;
        if (realm_json_kind_of(&v) == REALM_JSON_NULL) continue;
        /* what clients send back of an answer of ours, or of another server's */
        if (role == 3 && (strcmp(v.key, "annotations") == 0 || strcmp(v.key, "refusal") == 0)) continue;
        static const char *const tools[] = {"tool_calls", "tool_call_id", "function_call", "audio"};
        for (size_t i = 0; i < REALM_ARRAY_LEN(tools); i++)
            if (strcmp(v.key, tools[i]) == 0)
                return api_error_field(e, &v, "unsupported_parameter", "is not supported by this server");
        return api_error_field(e, &v, "unknown_parameter", "unknown field");
    }
    realm_json_begin_object(w);
    realm_json_key(w, "role");
    realm_json_write_cstr(w, role == 0 ? "system" : roles[role]);
    if (realm_json_get_set(m, "name", &name)) {
        const char *s;
        API_CHECK(realm_json_cstr(&name, &s, &err_), &name);
        realm_json_key(w, "name");
        realm_json_write_value(w, &name);
    }
    realm_json_key(w, "content");
    if (!realm_json_get_set(m, "content", &content)) {
        return api_error_field(e, &content, "missing_required_parameter", "is required");
    }
    if (!api_write_content(&content, w, e)) return false;
    realm_json_end_object(w);
    return true;
}

bool api_write_messages(const realm_json *messages, realm_buf *out, api_error *e) {
    API_CHECK(realm_json_expect(messages, REALM_JSON_ARRAY, &err_), messages);
    if (realm_json_len(messages) == 0)
        return api_error_field(e, messages, "invalid_value", "must have at least one message");
    realm_json_writer w;
    realm_json_writer_init(&w, out);
    realm_json_begin_array(&w);
    realm_json m;
    for (size_t i = 0; realm_json_at(messages, i, &m); i++)
        if (!write_message(&m, &w, e)) return false;
    realm_json_end_array(&w);
    return realm_buf_status(out) == REALM_OK || api_error_buf(e, realm_buf_status(out));
}

bool api_write_template_args(const realm_json *root, realm_buf *out, api_error *e) {
    realm_json v, arg;
    if (!realm_json_get_set(root, "chat_template_kwargs", &v)) return true;
    API_CHECK(realm_json_expect(&v, REALM_JSON_OBJECT, &err_), &v);
    if (realm_json_len(&v) > REALM_TEMPLATE_ARGS_MAX)
        return api_error_field(e, &v, "invalid_value", "at most %u arguments are accepted", REALM_TEMPLATE_ARGS_MAX);
    realm_json_iter it = {0};
    while (realm_json_next(&v, &it, &arg))
        if (realm_template_arg_reserved(arg.key, strlen(arg.key)))
            return api_error_field(e, &arg, "invalid_value", "is not for an argument to set");
    const realm_status s = realm_json_dump(&v, out);
    return s == REALM_OK || api_error_buf(e, s);
}

bool gen_read_messages(gen_request *q, api_error *e) {
    realm_json v;
    (void)realm_json_get_set(&q->root, "messages", &v);
    if (!api_write_messages(&v, &q->messages, e) || !api_write_template_args(&q->root, &q->template_args, e))
        return false;
    q->prompts = realm_calloc(1, sizeof *q->prompts);
    if (!q->prompts) return api_error_status(e, REALM_E_NOMEM, NULL);
    q->prompts[0] = (gen_prompt){.kind = REALM_PROMPT_MESSAGES, .text = q->messages.data, .len = q->messages.len};
    q->n_prompts = 1;
    return true;
}

/* An array of token ids into q->tokens at *used. */
static bool read_tokens(gen_request *q, const realm_json *v, gen_prompt *p, size_t *used, api_error *e) {
    size_t n = realm_json_len(v), n_vocab = realm_tokenizer_vocab_size(realm_engine_tokenizer(q->engine));
    realm_json item;
    *p = (gen_prompt){.kind = REALM_PROMPT_TOKENS, .tokens = q->tokens + *used, .n_tokens = n, .value = *v};
    for (size_t i = 0; i < n; i++) {
        (void)realm_json_at(v, i, &item);
        if (!api_read_token(&item, n_vocab, &q->tokens[*used + i], e)) return false;
    }
    *used += n;
    return true;
}

/* A text of which no token comes cannot be continued; an empty one gives a token where the model begins texts with one.
 */
static bool check_text(const gen_request *q, const gen_prompt *p, api_error *e) {
    if (p->len > 0) return true;
    realm_error err = {0};
    realm_tokens ids = {0};
    realm_status s = realm_tokenizer_encode(realm_engine_tokenizer(q->engine), p->text, 0, REALM_ENCODE_ADD_SPECIAL,
                                            API_TOKENS_MAX, &ids, &err);
    const bool none = ids.len == 0;
    realm_tokens_release(&ids);
    if (s != REALM_OK) return api_error_status(e, s, &err);
    return !none || api_error_field(e, &p->value, "invalid_value", "must not be empty with this model");
}

/* string | [string, ...] | [token, ...] | [[token, ...], ...] */
bool gen_read_prompts(gen_request *q, api_error *e) {
    realm_json first, item;
    realm_json *v = &q->prompt_root;
    (void)realm_json_get_set(&q->root, "prompt", v);
    realm_json_kind kind = realm_json_kind_of(v);
    if (kind != REALM_JSON_STRING && kind != REALM_JSON_ARRAY) {
        if (kind != REALM_JSON_NONE)
            return api_error_field(e, v, "invalid_type",
                                   "must be a string, an array of strings, of tokens, or of token arrays");
        return api_error_field(e, v, "missing_required_parameter", "is required");
    }
    bool list = kind == REALM_JSON_ARRAY;
    if (list && !realm_json_at(v, 0, &first)) return api_error_field(e, v, "invalid_value", "must not be empty");
    realm_json_kind inner = list ? realm_json_kind_of(&first) : REALM_JSON_STRING;
    bool one = !list || inner == REALM_JSON_INT;
    if (inner != REALM_JSON_STRING && inner != REALM_JSON_INT && inner != REALM_JSON_ARRAY)
        return api_error_field(e, &first, "invalid_type", "must be a string, a token or an array of tokens, is %s",
                               realm_json_kind_name(inner));
    size_t n = one ? 1 : realm_json_len(v), n_tokens = inner == REALM_JSON_INT ? realm_json_len(v) : 0, used = 0;
    if (n > API_CHOICES_MAX)
        return api_error_field(e, v, "invalid_value", "at most %u prompts are accepted", API_CHOICES_MAX);
    for (size_t i = 0; inner == REALM_JSON_ARRAY && i < n; i++) {
        (void)realm_json_at(v, i, &item);
        n_tokens += realm_json_len(&item); /* bounded by the parser's limit of values */
    }
    q->prompts = realm_calloc(n, sizeof *q->prompts);
    q->tokens = realm_calloc(n_tokens, sizeof *q->tokens);
    if (!q->prompts || !q->tokens) return api_error_status(e, REALM_E_NOMEM, NULL);
    q->n_prompts = n;
    for (size_t i = 0; i < n; i++) {
        gen_prompt *p = &q->prompts[i];
        item = *v;
        if (!one) (void)realm_json_at(v, i, &item);
        if (inner == REALM_JSON_STRING) {
            *p = (gen_prompt){.kind = REALM_PROMPT_TEXT, .value = item};
            API_CHECK(realm_json_str(&item, &p->text, &p->len, &err_), &item);
            if (!check_text(q, p, e)) return false;
            continue;
        }
        API_CHECK(realm_json_expect(&item, REALM_JSON_ARRAY, &err_), &item);
        if (realm_json_len(&item) == 0) return api_error_field(e, &item, "invalid_value", "must not be empty");
        if (!read_tokens(q, &item, p, &used, e)) return false;
    }
    return true;
}

realm_status gen_write_input(const gen_request *q, const gen_prompt *p, realm_buf *out) {
    realm_json_writer w;
    realm_json_writer_init(&w, out);
    realm_json_begin_object(&w);
    realm_json_key(&w, "endpoint");
    realm_json_write_cstr(&w, q->chat ? "chat" : "completion");
    realm_json_iter it = {0};
    realm_json v;
    while (realm_json_next(&q->root, &it, &v)) {
        if (realm_json_kind_of(&v) == REALM_JSON_NULL) continue;
        realm_json_key(&w, v.key);
        if (strcmp(v.key, "messages") == 0)
            realm_json_write_raw(&w, q->messages.data, q->messages.len);
        else
            realm_json_write_value(&w, strcmp(v.key, "prompt") == 0 ? &p->value : &v);
    }
    realm_json_end_object(&w);
    return realm_buf_status(out);
}
