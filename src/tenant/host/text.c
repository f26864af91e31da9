/* tenant/host/text.c - host calls about text: tokens, and prompts.
 *
 * A prompt is made once and used by handle; its tokens never cross into the program's memory unless asked for. What
 * counts for safety: text that a client wrote never becomes control tokens. Where a template made the prompt, the
 * template's own parts are marked and only they are parsed.
 */
#include <string.h>

#include "tenant/host/host.h"

/* One more than fits, so that too long a prompt is told apart from one that just fits. */
static size_t max_tokens(const host_model *model) { return host_context_length(model) + 1; }

/* ---- encode, decode ---- */

static bool flags_ok(realm_host *h, const char *call, uint64_t flags, uint64_t known, int32_t *result) {
    if (!(flags & ~known)) return true;
    host_fail(h, result, REALM_E_UNSUPPORTED, "%s: unknown flags 0x%x", call, (unsigned)(flags & ~known));
    return false;
}

static unsigned encode_flags(uint64_t flags) {
    return (flags & REALM_TEXT_ADD_SPECIAL ? REALM_ENCODE_ADD_SPECIAL : 0u) |
           (flags & REALM_TEXT_PARSE_SPECIAL ? REALM_ENCODE_PARSE_SPECIAL : 0u) |
           (flags & REALM_TEXT_CONTINUES ? REALM_ENCODE_CONTINUES : 0u);
}

static const char *take_text(realm_call *call, const char *name, uint64_t ptr, uint64_t len, int32_t *result) {
    if (len > HOST_TEXT_BYTES_MAX) {
        host_fail(host_of(call), result, REALM_E_LIMIT, "%s: at most %u bytes of text", name, HOST_TEXT_BYTES_MAX);
        return NULL;
    }
    return host_range(call, ptr, len, name, result);
}

realm_call_result host_encode(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    realm_tokens t = {0};
    if (!flags_ok(h, "encode", args[2], 7, result)) return REALM_CALL_DONE;
    const char *text = take_text(call, "encode", args[0], args[1], result);
    if (!text) return REALM_CALL_DONE;
    if (host_is_long(call, args[1])) return REALM_CALL_LONG;
    if (realm_tokenizer_encode(host_tokenizer(h->model), text, (size_t)args[1], encode_flags(args[2]),
                               HOST_TEXT_BYTES_MAX + 16ul, &t, &h->error))
        host_failed(h, result);
    else
        host_give(call, args[3], args[4], t.ids, t.len * sizeof *t.ids, sizeof *t.ids, result);
    realm_tokens_release(&t);
    return REALM_CALL_DONE;
}

realm_status host_take_tokens(realm_call *call, const char *name, const host_model *model, uint64_t ptr, uint64_t n,
                              realm_tokens *out) {
    realm_host *h = host_of(call);
    size_t vocab = realm_tokenizer_vocab_size(host_tokenizer(model));
    if (n > HOST_TEXT_BYTES_MAX / sizeof(realm_token))
        return realm_error_set(&h->error, REALM_E_LIMIT, "%s: at most %zu tokens", name,
                               HOST_TEXT_BYTES_MAX / sizeof(realm_token));
    const unsigned char *from = realm_call_memory(call, ptr, n * sizeof(realm_token));
    if (!from)
        return realm_error_set(&h->error, REALM_E_RANGE, "%s: %llu tokens at %llu are not all inside the memory", name,
                               (unsigned long long)n, (unsigned long long)ptr);
    if (!(out->ids = realm_calloc((size_t)n + 1, sizeof *out->ids)))
        return realm_error_set(&h->error, REALM_E_NOMEM, "%s: out of memory", name);
    out->cap = (size_t)n + 1;
    out->len = (size_t)n;
    if (n) memcpy(out->ids, from, (size_t)n * sizeof *out->ids);
    for (size_t i = 0; i < n; i++)
        if (out->ids[i] < 0 || (size_t)out->ids[i] >= vocab)
            return realm_error_set(&h->error, REALM_E_RANGE, "%s: token %zu is %d, the vocabulary has %zu", name, i,
                                   out->ids[i], vocab);
    return REALM_OK;
}

realm_call_result host_decode(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    realm_tokens t = {0};
    realm_buf b;
    if (!flags_ok(h, "decode", args[2], REALM_TEXT_SPECIAL, result)) return REALM_CALL_DONE;
    if (host_is_long(call, args[1])) return REALM_CALL_LONG;
    realm_buf_init(&b, HOST_PROMPT_BYTES_MAX);
    if (host_take_tokens(call, "decode", h->model, args[0], args[1], &t) ||
        realm_tokenizer_decode(host_tokenizer(h->model), t.ids, t.len, args[2] & REALM_TEXT_SPECIAL, &b, &h->error))
        host_failed(h, result);
    else
        host_give(call, args[3], args[4], b.data, b.len, 1, result);
    realm_buf_release(&b);
    realm_tokens_release(&t);
    return REALM_CALL_DONE;
}

realm_call_result host_token_piece(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    const char *bytes = NULL;
    size_t n = 0;
    if (!flags_ok(h, "token_piece", args[1], REALM_TEXT_SPECIAL, result)) return REALM_CALL_DONE;
    if (args[0] > INT32_MAX ||
        realm_tokenizer_piece(host_tokenizer(h->model), (realm_token)args[0], args[1] & REALM_TEXT_SPECIAL, &bytes, &n))
        return host_fail(h, result, REALM_E_RANGE, "token_piece: there is no token %d", (int32_t)(uint32_t)args[0]);
    return host_give(call, args[2], args[3], bytes, n, 1, result);
}

/* ---- prompts ---- */

void host_prompt_release(realm_host *h, host_prompt *p) {
    realm_tokens_release(&p->tokens);
    realm_free(p->text);
    realm_free(p->spans);
    h->prompt_bytes -= p->charged;
    memset(p, 0, sizeof *p);
}

void host_prompt_free(realm_host *h, void *object) {
    if (object == &h->own) return; /* once made it stays */
    host_prompt_release(h, object);
    realm_free(object);
}

static realm_status too_long(realm_host *h, const host_model *model) {
    return realm_error_set(&h->error, REALM_E_CONTEXT, "the prompt is longer than the context of %zu tokens",
                           host_context_length(model));
}

/* Text with marked spans to tokens. A template writes the begin token itself where its model wants one; where it leaves
 * that to the tokenizer, it is put in front. */
static realm_status encode_rendered(realm_host *h, const host_model *model, const char *text, size_t len,
                                    const realm_text_span *spans, size_t n_spans, realm_tokens *out) {
    const realm_tokenizer *t = host_tokenizer(model);
    realm_token bos = realm_tokenizer_bos(t);
    realm_status st = REALM_OK;
    bool add = realm_tokenizer_adds_bos(t) && bos >= 0;
    if (add && n_spans > 0 && spans[0].special && spans[0].len > 0) {
        realm_gguf_str s = realm_tokenizer_text(t, bos);
        size_t at = spans[0].start;
        add = !(s.len <= len - at && !memcmp(text + at, s.data, s.len));
    }
    if (add) st = realm_tokens_push(out, bos);
    if (st) return realm_error_set(&h->error, st, "out of memory");
    st = realm_tokenizer_encode_spans(t, text, len, spans, n_spans, 0, max_tokens(model), out, &h->error);
    return st == REALM_E_LIMIT ? too_long(h, model) : st;
}

static realm_status apply_template(realm_host *h, const realm_conversation *c, host_prompt *out) {
    realm_buf b;
    realm_buf_init(&b, HOST_PROMPT_BYTES_MAX);
    realm_status st = realm_served_apply_template(out->model->m, c, &b, &out->spans, &out->n_spans, &h->error);
    if (!st) out->text = realm_buf_take(&b, &out->text_len);
    realm_buf_release(&b);
    if (!st && !out->text) st = realm_error_set(&h->error, REALM_E_NOMEM, "out of memory");
    /* The request asked for control tokens in its messages' own text. */
    if (!st && realm_run_get_params(h->run)->parse_special)
        for (size_t i = 0; i < out->n_spans; i++) out->spans[i].special = true;
    return st ? st : encode_rendered(h, out->model, out->text, out->text_len, out->spans, out->n_spans, &out->tokens);
}

static realm_status text_prompt(realm_host *h, const char *text, size_t len, unsigned flags, host_prompt *out) {
    if (!(out->text = realm_strndup(text, len))) return realm_error_set(&h->error, REALM_E_NOMEM, "out of memory");
    out->text_len = len;
    realm_status st = realm_tokenizer_encode(host_tokenizer(out->model), text, len, flags, max_tokens(out->model),
                                             &out->tokens, &h->error);
    return st == REALM_E_LIMIT ? too_long(h, out->model) : st;
}

realm_status host_charge_text(realm_host *h, size_t n) {
    if (n > HOST_PROMPT_BYTES_MAX - h->prompt_bytes)
        return realm_error_set(&h->error, REALM_E_LIMIT,
                               "the prompts, contexts and samplers of a program may take %u bytes together",
                               HOST_PROMPT_BYTES_MAX);
    h->prompt_bytes += n;
    return REALM_OK;
}

/* Counts a prompt's memory; the last step of making one. */
static realm_status charge(realm_host *h, host_prompt *p) {
    size_t n = p->text_len + p->tokens.cap * sizeof *p->tokens.ids + p->n_spans * sizeof *p->spans;
    realm_status st = host_charge_text(h, n);
    if (!st) p->charged = n;
    return st;
}

uint64_t host_own_bytes(const realm_host *h) {
    const realm_run_params *p = realm_run_get_params(h->run);
    return h->own_made ? 0 : (uint64_t)p->prompt_len + p->template_args_len + p->n_tokens;
}

static realm_status make_own(realm_host *h) {
    if (h->own_made) return REALM_OK;
    const realm_run_params *p = realm_run_get_params(h->run);
    host_prompt *o = &h->own;
    realm_status st = REALM_OK;
    o->model = &h->models[0];
    switch (p->kind) {
    case REALM_PROMPT_MESSAGES: {
        const realm_conversation c = realm_run_conversation(h->run);
        st = apply_template(h, &c, o);
        break;
    }
    case REALM_PROMPT_TEXT:
        st = text_prompt(h, p->prompt, p->prompt_len,
                         REALM_ENCODE_ADD_SPECIAL | (p->parse_special ? REALM_ENCODE_PARSE_SPECIAL : 0u), o);
        break;
    case REALM_PROMPT_TOKENS:
        if (p->n_tokens >= max_tokens(o->model)) st = too_long(h, o->model);
        for (size_t i = 0; !st && i < p->n_tokens; i++)
            if ((st = realm_tokens_push(&o->tokens, p->tokens[i]))) realm_error_set(&h->error, st, "out of memory");
        break;
    }
    if (!st) st = charge(h, o);
    if (st)
        host_prompt_release(h, o);
    else
        h->own_made = true;
    return st;
}

/* The text of a prompt that came as tokens; kept, and counted, as that of others. */
static realm_status need_text(realm_host *h, host_prompt *p) {
    if (p->text) return REALM_OK;
    realm_buf b;
    realm_buf_init(&b, HOST_PROMPT_BYTES_MAX);
    realm_status st =
        realm_tokenizer_decode(host_tokenizer(p->model), p->tokens.ids, p->tokens.len, true, &b, &h->error);
    size_t n = b.len;
    if (!st) st = host_charge_text(h, n);
    if (!st && (p->text = realm_buf_take(&b, &p->text_len))) {
        p->charged += n;
    } else if (!st) {
        h->prompt_bytes -= n;
        st = realm_error_set(&h->error, REALM_E_NOMEM, "out of memory");
    }
    realm_buf_release(&b);
    return st;
}

static realm_call_result give_prompt(realm_host *h, host_prompt *made, realm_status st, int32_t *result) {
    host_prompt *p = NULL;
    if (!st) st = charge(h, made);
    if (!st && !(p = realm_malloc(sizeof *p))) st = realm_error_set(&h->error, REALM_E_NOMEM, "out of memory");
    if (!st) {
        *p = *made;
        st = host_slot_take(h, HOST_PROMPT, p, result);
    }
    if (!st) return REALM_CALL_DONE;
    host_prompt_release(h, made);
    realm_free(p);
    return host_failed(h, result);
}

realm_call_result host_prompt_own(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    (void)args;
    if (host_is_long(call, host_own_bytes(h))) return REALM_CALL_LONG;
    if (make_own(h) || host_slot_take(h, HOST_PROMPT, &h->own, result)) return host_failed(h, result);
    return REALM_CALL_DONE;
}

realm_call_result host_prompt_chat(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    host_prompt made = {.model = h->model};
    if (!flags_ok(h, "prompt_chat", args[4], REALM_CHAT_ANSWER, result)) return REALM_CALL_DONE;
    const char *messages = take_text(call, "prompt_chat", args[0], args[1], result);
    if (!messages) return REALM_CALL_DONE;
    const char *tools = args[3] ? take_text(call, "prompt_chat", args[2], args[3], result) : NULL;
    if (args[3] && !tools) return REALM_CALL_DONE;
    if (host_is_long(call, args[1] + args[3])) return REALM_CALL_LONG;
    /* Nothing in it is the client's but by the program's hand: not the request's template_args either. */
    const realm_conversation c = {.messages = messages,
                                  .messages_len = (size_t)args[1],
                                  .tools = tools,
                                  .tools_len = (size_t)args[3],
                                  .add_generation_prompt = args[4] & REALM_CHAT_ANSWER};
    realm_status st = apply_template(h, &c, &made);
    return give_prompt(h, &made, st, result);
}

realm_call_result host_prompt_text(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    host_prompt made = {.model = h->model};
    if (!flags_ok(h, "prompt_text", args[2], 7, result)) return REALM_CALL_DONE;
    const char *text = take_text(call, "prompt_text", args[0], args[1], result);
    if (!text) return REALM_CALL_DONE;
    if (host_is_long(call, args[1])) return REALM_CALL_LONG;
    realm_status st = text_prompt(h, text, (size_t)args[1], encode_flags(args[2]), &made);
    return give_prompt(h, &made, st, result);
}

realm_call_result host_prompt_tokens(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    host_prompt made = {.model = h->model};
    realm_status st = host_take_tokens(call, "prompt_tokens", h->model, args[0], args[1], &made.tokens);
    if (!st && made.tokens.len >= max_tokens(h->model)) st = too_long(h, h->model);
    return give_prompt(h, &made, st, result);
}

realm_call_result host_prompt_get_text(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    host_prompt *p = host_need(h, args[0], HOST_PROMPT, "prompt_get_text", result);
    if (!p) return REALM_CALL_DONE;
    if (!p->text && host_is_long(call, p->tokens.len)) return REALM_CALL_LONG;
    if (need_text(h, p)) return host_failed(h, result);
    return host_give(call, args[1], args[2], p->text, p->text_len, 1, result);
}

realm_call_result host_prompt_get_tokens(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    host_prompt *p = host_need(h, args[0], HOST_PROMPT, "prompt_get_tokens", result);
    if (!p) return REALM_CALL_DONE;
    return host_give(call, args[1], args[2], p->tokens.ids, p->tokens.len * sizeof *p->tokens.ids,
                     sizeof *p->tokens.ids, result);
}

/* ---- prompts of realm_host_generate ---- */

static realm_status one_message(realm_host *h, const char *text, size_t len, host_prompt *out) {
    realm_buf b;
    realm_json_writer w;
    realm_buf_init(&b, HOST_PROMPT_BYTES_MAX);
    realm_json_writer_init(&w, &b);
    realm_json_begin_array(&w);
    realm_json_begin_object(&w);
    realm_json_key(&w, "role");
    realm_json_write_cstr(&w, "user");
    realm_json_key(&w, "content");
    realm_json_write_str(&w, text, len);
    realm_json_end_object(&w);
    realm_json_end_array(&w);
    realm_status st = realm_buf_status(&b);
    if (st) {
        realm_error_set(&h->error, st, "out of memory");
    } else {
        const realm_conversation c = {.messages = b.data, .messages_len = b.len, .add_generation_prompt = true};
        st = apply_template(h, &c, out);
    }
    realm_buf_release(&b);
    return st;
}

/* [0, at) plain, the own prompt with its spans, the rest plain. */
static realm_status around_own(realm_host *h, const char *text, size_t len, size_t at, host_prompt *out) {
    const host_prompt *o = &h->own;
    size_t n = 0, end = at + o->text_len;
    realm_text_span *spans = realm_calloc(o->n_spans + 3, sizeof *spans);
    if (!spans) return realm_error_set(&h->error, REALM_E_NOMEM, "out of memory");
    bool parse = realm_run_get_params(h->run)->parse_special;
    if (at > 0) spans[n++] = (realm_text_span){0, at, false};
    for (size_t i = 0; i < o->n_spans; i++)
        spans[n++] = (realm_text_span){at + o->spans[i].start, o->spans[i].len, o->spans[i].special};
    if (!o->n_spans && o->text_len) spans[n++] = (realm_text_span){at, o->text_len, parse};
    if (end < len) spans[n++] = (realm_text_span){end, len - end, false};
    realm_status st = encode_rendered(h, out->model, text, len, spans, n, &out->tokens);
    realm_free(spans);
    return st;
}

static realm_status plain_prompt(realm_host *h, const char *text, size_t len, host_prompt *out) {
    realm_status st = realm_tokenizer_encode(host_tokenizer(out->model), text, len, REALM_ENCODE_ADD_SPECIAL,
                                             max_tokens(out->model), &out->tokens, &h->error);
    return st == REALM_E_LIMIT ? too_long(h, out->model) : st;
}

realm_status host_prompt_from_program(realm_host *h, const host_model *model, const char *text, size_t len,
                                      bool as_chat, host_prompt *out) {
    out->model = model;
    if (as_chat) return one_message(h, text, len, out);
    if (model->m != h->models[0].m) return plain_prompt(h, text, len, out);
    realm_status st = make_own(h);
    if (!st) st = need_text(h, &h->own);
    if (st) return st;
    const host_prompt *o = &h->own;
    bool from_tokens = realm_run_get_params(h->run)->kind == REALM_PROMPT_TOKENS;
    const char *found = o->text_len ? memmem(text, len, o->text, o->text_len) : NULL;
    if (found && o->text_len == len) { /* handed back as it was: exactly the request's own tokens */
        for (size_t i = 0; i < o->tokens.len; i++)
            if (realm_tokens_push(&out->tokens, o->tokens.ids[i]))
                return realm_error_set(&h->error, REALM_E_NOMEM, "out of memory");
        return REALM_OK;
    }
    if (found && !from_tokens) return around_own(h, text, len, (size_t)(found - text), out);
    return plain_prompt(h, text, len, out);
}
