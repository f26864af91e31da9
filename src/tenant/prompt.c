/* tenant/prompt.c - a model's chat template over a conversation, with the template's control tokens told apart. */
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "tenant/internal.h"

realm_status template_open_for(const realm_tokenizer *tok, const char *source, size_t len, realm_template **out,
                               realm_error *err) {
    size_t n = realm_tokenizer_vocab_size(tok), n_control = 0;
    for (size_t i = 0; i < n; i++) n_control += realm_tokenizer_attr(tok, (realm_token)i) == REALM_TOKEN_CONTROL;
    realm_template_str *control = realm_calloc(n_control + 1, sizeof *control);
    if (!control) return realm_error_set(err, REALM_E_NOMEM, "chat template: out of memory");
    size_t k = 0;
    for (size_t i = 0; i < n && k < n_control; i++) {
        if (realm_tokenizer_attr(tok, (realm_token)i) != REALM_TOKEN_CONTROL) continue;
        realm_gguf_str text = realm_tokenizer_text(tok, (realm_token)i);
        if (text.len > 0) control[k++] = (realm_template_str){text.data, text.len};
    }
    realm_template_tokens tokens = {.control = control, .n_control = k};
    realm_token bos = realm_tokenizer_bos(tok), eos = realm_tokenizer_eos(tok);
    if (bos >= 0) {
        realm_gguf_str text = realm_tokenizer_text(tok, bos);
        tokens.bos = (realm_template_str){text.data, text.len};
    }
    if (eos >= 0) {
        realm_gguf_str text = realm_tokenizer_text(tok, eos);
        tokens.eos = (realm_template_str){text.data, text.len};
    }
    realm_status s = realm_template_open(out, source, len, &tokens, err);
    realm_free(control);
    return s;
}

realm_status realm_served_apply_template(const realm_served *m, const realm_conversation *c, realm_buf *text,
                                         realm_text_span **spans, size_t *n_spans, realm_error *err) {
    if (!m->template && m->template_error)
        return realm_error_set(err, REALM_E_UNSUPPORTED, "model \"%s\": its chat template cannot be used: %s", m->id,
                               m->template_error);
    if (!m->template)
        return realm_error_set(err, REALM_E_UNSUPPORTED,
                               "model \"%s\" has no chat template; it can only continue a text (/v1/completions, "
                               "realm run --raw)",
                               m->id);
    realm_template_input in = {.messages = {c->messages, c->messages_len},
                               .tools = {c->tools, c->tools ? c->tools_len : 0},
                               .args = {c->args, c->args ? c->args_len : 0},
                               .add_generation_prompt = c->add_generation_prompt,
                               .now_unix = realm_clock_wall_s()};
    realm_template_spans found = {0};
    realm_status s = realm_template_render(m->template, &in, text, &found, err);
    /* The conversation is too much for the template's bounds: no limit of the tenant's, nor of its program's. */
    if (s == REALM_E_LIMIT) s = err ? (err->code = REALM_E_TOO_LARGE) : REALM_E_TOO_LARGE;
    if (s != REALM_OK) return s;
    realm_text_span *out = realm_calloc(found.len + 1, sizeof *out);
    if (!out) {
        realm_template_spans_release(&found);
        return realm_error_set(err, REALM_E_NOMEM, "chat template: out of memory");
    }
    for (size_t i = 0; i < found.len; i++)
        out[i] = (realm_text_span){found.items[i].start, found.items[i].len, found.items[i].special};
    *spans = out;
    *n_spans = found.len;
    realm_template_spans_release(&found);
    return REALM_OK;
}
