/* POST /tokenize, /detokenize, /apply-template: what a model's tokenizer and template do, without generating. On a
 * worker. `model` may be left out when one model is loaded.
 */
#include <string.h>

#include "api/internal.h"
#include "base/alloc.h"

#define CHECK(call, value)                            \
    do {                                              \
        realm_error err_ = {0};                       \
        if ((call) != REALM_OK) {                     \
            api_error_value(&c->error, value, &err_); \
            goto done;                                \
        }                                             \
    } while (0)

typedef struct text_request {
    realm_json_doc *doc;
    realm_json root;
    realm_served *served; /* held */
    realm_engine *engine; /* its */
} text_request;

static bool open_request(api_call *c, text_request *t, const char *const *known, size_t n_known) {
    api_error *e = &c->error;
    realm_error err = {0};
    *t = (text_request){0};
    if (!api_read_body(c->body, c->body_len, &t->doc, e)) return false;
    t->root = realm_json_root(t->doc);
    realm_json v = t->root;
    if (realm_json_only(&t->root, known, n_known, &v, &err) != REALM_OK) return api_error_value(e, &v, &err);
    if (realm_json_get_set(&t->root, "model", &v)) {
        const char *model;
        if (realm_json_cstr(&v, &model, &err) != REALM_OK) return api_error_value(e, &v, &err);
        t->served = realm_runtime_hold(c->api->rt, model);
        if (!t->served) return api_error_model(e, model, strlen(model));
    } else {
        realm_served *all[REALM_MODELS_MAX];
        const size_t n = realm_runtime_hold_all(c->api->rt, all);
        for (size_t i = n == 1; i < n; i++) realm_served_release(all[i]);
        if (n != 1)
            return api_error_field(e, &v, "missing_required_parameter", "is required: more than one model is loaded");
        t->served = all[0];
    }
    t->engine = realm_served_engine(t->served);
    return true;
}

static void close_request(text_request *t) {
    realm_json_doc_close(t->doc);
    realm_served_release(t->served);
}

void text_tokenize(api_call *c) {
    static const char *const known[] = {"model", "content", "add_special", "parse_special"};
    text_request t;
    realm_tokens ids = {0};
    realm_json v;
    const char *s = "";
    size_t len = 0;
    bool add = false, parse = false;
    if (!open_request(c, &t, known, REALM_ARRAY_LEN(known))) goto done;
    (void)realm_json_get_set(&t.root, "content", &v);
    CHECK(realm_json_str(&v, &s, &len, &err_), &v);
    if (!api_opt_bool(&t.root, "add_special", &add, &c->error) ||
        !api_opt_bool(&t.root, "parse_special", &parse, &c->error))
        goto done;
    realm_error err = {0};
    unsigned flags = (add ? REALM_ENCODE_ADD_SPECIAL : 0u) | (parse ? REALM_ENCODE_PARSE_SPECIAL : 0u);
    realm_status st =
        realm_tokenizer_encode(realm_engine_tokenizer(t.engine), s, len, flags, API_TOKENS_MAX, &ids, &err);
    if (st != REALM_OK) {
        api_error_status(&c->error, st, &err);
        goto done;
    }
    realm_json_writer w;
    realm_json_writer_init(&w, &c->reply);
    realm_json_begin_object(&w);
    realm_json_key(&w, "tokens");
    realm_json_begin_array(&w);
    for (size_t i = 0; i < ids.len; i++) realm_json_write_int(&w, ids.ids[i]);
    realm_json_end_array(&w);
    realm_json_end_object(&w);
done:
    realm_tokens_release(&ids);
    close_request(&t);
}

static void reply_text(api_call *c, const char *key, const realm_buf *text) {
    realm_json_writer w;
    realm_json_writer_init(&w, &c->reply);
    realm_json_begin_object(&w);
    realm_json_key(&w, key);
    realm_json_write_str(&w, text->data ? text->data : "", text->len);
    realm_json_end_object(&w);
}

void text_detokenize(api_call *c) {
    static const char *const known[] = {"model", "tokens"};
    text_request t;
    realm_token *ids = NULL;
    realm_buf text;
    realm_json v, item;
    realm_buf_init(&text, API_REPLY_MAX);
    if (!open_request(c, &t, known, REALM_ARRAY_LEN(known))) goto done;
    (void)realm_json_get_set(&t.root, "tokens", &v);
    CHECK(realm_json_expect(&v, REALM_JSON_ARRAY, &err_), &v);
    size_t n = realm_json_len(&v), n_vocab = realm_tokenizer_vocab_size(realm_engine_tokenizer(t.engine));
    ids = realm_calloc(n, sizeof *ids);
    if (!ids) {
        api_error_status(&c->error, REALM_E_NOMEM, NULL);
        goto done;
    }
    for (size_t i = 0; i < n; i++) {
        (void)realm_json_at(&v, i, &item);
        if (!api_read_token(&item, n_vocab, &ids[i], &c->error)) goto done;
    }
    realm_error err = {0};
    realm_status st = realm_tokenizer_decode(realm_engine_tokenizer(t.engine), ids, n, true, &text, &err);
    if (st != REALM_OK) {
        api_error_status(&c->error, st, &err);
        goto done;
    }
    reply_text(c, "content", &text);
done:
    realm_buf_release(&text);
    realm_free(ids);
    close_request(&t);
}

void text_apply_template(api_call *c) {
    static const char *const known[] = {"model", "messages", "tools", "add_generation_prompt", "chat_template_kwargs"};
    text_request t;
    realm_buf messages, tools, args, prompt;
    realm_text_span *spans = NULL;
    size_t n_spans = 0;
    bool generation = true;
    realm_json v;
    realm_buf_init(&messages, REALM_RUN_INPUT_MAX);
    realm_buf_init(&tools, REALM_RUN_INPUT_MAX);
    realm_buf_init(&args, REALM_RUN_INPUT_MAX);
    realm_buf_init(&prompt, REALM_RUN_INPUT_MAX);
    if (!open_request(c, &t, known, REALM_ARRAY_LEN(known))) goto done;
    if (!api_opt_bool(&t.root, "add_generation_prompt", &generation, &c->error) ||
        !api_write_template_args(&t.root, &args, &c->error))
        goto done;
    (void)realm_json_get_set(&t.root, "messages", &v);
    if (!api_write_messages(&v, &messages, &c->error)) goto done;
    if (realm_json_get_set(&t.root, "tools", &v)) {
        CHECK(realm_json_expect(&v, REALM_JSON_ARRAY, &err_), &v);
        if (realm_json_dump(&v, &tools) != REALM_OK) {
            api_error_buf(&c->error, realm_buf_status(&tools));
            goto done;
        }
    }
    realm_error err = {0};
    const realm_conversation conversation = {.messages = messages.data,
                                             .messages_len = messages.len,
                                             .tools = tools.data,
                                             .tools_len = tools.len,
                                             .args = args.data,
                                             .args_len = args.len,
                                             .add_generation_prompt = generation};
    realm_status st = realm_served_apply_template(t.served, &conversation, &prompt, &spans, &n_spans, &err);
    if (st != REALM_OK) {
        api_error_status(&c->error, st, &err);
        goto done;
    }
    reply_text(c, "prompt", &prompt);
done:
    realm_free(spans);
    realm_buf_release(&messages);
    realm_buf_release(&tools);
    realm_buf_release(&args);
    realm_buf_release(&prompt);
    close_request(&t);
}
