/* A choice of /v1/chat/completions, whole and in pieces. */
#include <string.h>

#include "api/internal.h"

/* ... "choices":[{"index":I,"delta": ... */
static void chunk_begin(api_call *c, const gen_choice *ch) {
    reply_chunk_begin(c);
    realm_buf_printf(&c->piece, "{\"index\":%u,\"delta\":", ch->index);
}

/* "logprobs":{...} of entries, or of one event, or null */
static void write_logprobs(const api_call *c, realm_buf *b, const realm_buf *entries, const realm_event *one) {
    if (!entries && !one) {
        realm_buf_puts(b, ",\"logprobs\":null");
        return;
    }
    realm_buf_puts(b, ",\"logprobs\":{\"content\":[");
    if (one)
        logprobs_chat_entry(c, one, b);
    else
        realm_buf_append(b, entries->data, entries->len);
    realm_buf_puts(b, "],\"refusal\":null}");
}

static void chunk_end(api_call *c, const realm_event *logprobs_of, const char *finish) {
    write_logprobs(c, &c->piece, NULL, logprobs_of);
    reply_chunk_end(c, finish);
}

static void open_choice(api_call *c, gen_choice *ch) {
    if (ch->opened) return;
    ch->opened = true;
    chunk_begin(c, ch);
    realm_buf_puts(&c->piece, "{\"role\":\"assistant\",\"content\":\"\",\"refusal\":null}");
    chunk_end(c, NULL, NULL);
}

void chat_event(api_call *c, gen_choice *ch, const realm_event *e) {
    if (e->kind != REALM_EVENT_TOKEN) return;
    const char *text = c->batch.text.data ? c->batch.text.data + e->text_at : "";
    bool logprobs = c->gen.logprobs && e->id >= 0;
    if (!c->gen.stream) {
        realm_buf_append(&ch->text, text, e->text_len);
        if (!logprobs) return;
        if (ch->logprobs.len) realm_buf_putc(&ch->logprobs, ',');
        logprobs_chat_entry(c, e, &ch->logprobs);
        return;
    }
    open_choice(c, ch);
    if (e->text_len || logprobs) {
        chunk_begin(c, ch);
        realm_buf_puts(&c->piece, "{\"content\":\"");
        realm_json_escape(&c->piece, text, e->text_len);
        realm_buf_puts(&c->piece, "\"}");
        chunk_end(c, logprobs ? e : NULL, NULL);
    }
    if (c->piece.len) reply_send(c);
}

void chat_end(api_call *c, gen_choice *ch) {
    if (!c->gen.stream) return;
    open_choice(c, ch);
    chunk_begin(c, ch);
    realm_buf_puts(&c->piece, "{}");
    chunk_end(c, NULL, reply_finish_name(ch->finish));
    reply_send(c);
}

void chat_write_choice(const api_call *c, const gen_choice *ch, realm_buf *b) {
    realm_buf_printf(b, "{\"index\":%u,\"message\":{\"role\":\"assistant\",\"content\":\"", ch->index);
    realm_json_escape(b, ch->text.data ? ch->text.data : "", ch->text.len);
    realm_buf_puts(b, "\",\"refusal\":null,\"annotations\":[]}");
    write_logprobs(c, b, c->gen.logprobs ? &ch->logprobs : NULL, NULL);
}
