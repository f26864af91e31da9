/* The answers of /v1/chat/completions: one object, or chunks. */
#include <string.h>

#include "api/internal.h"

/* data: {head "choices":[{"index":I,"delta":... */
static void chunk_begin(api_call *c, const gen_choice *ch) {
    realm_buf_puts(&c->piece, "data: ");
    realm_buf_append(&c->piece, c->head.data, c->head.len);
    realm_buf_printf(&c->piece, "\"choices\":[{\"index\":%u,\"delta\":", ch->index);
}

/* ... ,"logprobs":L,"finish_reason":F}]} */
static void chunk_end(api_call *c, const realm_event *logprobs_of, const char *finish) {
    realm_buf *b = &c->piece;
    realm_buf_puts(b, ",\"logprobs\":");
    if (logprobs_of) {
        realm_buf_puts(b, "{\"content\":[");
        logprobs_chat_entry(c, logprobs_of, b);
        realm_buf_puts(b, "],\"refusal\":null}");
    } else {
        realm_buf_puts(b, "null");
    }
    if (finish)
        realm_buf_printf(b, ",\"finish_reason\":\"%s\"}]", finish);
    else
        realm_buf_puts(b, ",\"finish_reason\":null}]");
    realm_buf_puts(b, c->gen.include_usage ? ",\"usage\":null}\n\n" : "}\n\n");
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
    if (c->piece.len) gen_send(c);
}

void chat_end(api_call *c, gen_choice *ch) {
    if (!c->gen.stream) return;
    open_choice(c, ch);
    chunk_begin(c, ch);
    realm_buf_puts(&c->piece, "{}");
    chunk_end(c, NULL, gen_finish_name(ch->finish));
    gen_send(c);
}

void chat_finish(api_call *c) {
    if (c->gen.stream) {
        if (!c->gen.include_usage) return;
        realm_buf_puts(&c->piece, "data: ");
        realm_buf_append(&c->piece, c->head.data, c->head.len);
        realm_buf_puts(&c->piece, "\"choices\":[],");
        gen_write_usage(c, &c->piece);
        realm_buf_puts(&c->piece, "}\n\n");
        gen_send(c);
        return;
    }
    realm_buf *b = &c->reply;
    realm_buf_append(b, c->head.data, c->head.len);
    realm_buf_puts(b, "\"choices\":[");
    for (uint32_t i = 0; i < c->n_choices; i++) {
        const gen_choice *ch = &c->choices[i];
        realm_status s = realm_buf_status(&ch->text);
        if (s == REALM_OK) s = realm_buf_status(&ch->logprobs);
        if (s != REALM_OK) {
            api_error_status(&c->error, s, NULL);
            return;
        }
        if (i) realm_buf_putc(b, ',');
        realm_buf_printf(b, "{\"index\":%u,\"message\":{\"role\":\"assistant\",\"content\":\"", ch->index);
        realm_json_escape(b, ch->text.data ? ch->text.data : "", ch->text.len);
        realm_buf_puts(b, "\",\"refusal\":null,\"annotations\":[]},\"logprobs\":");
        if (c->gen.logprobs) {
            realm_buf_puts(b, "{\"content\":[");
            realm_buf_append(b, ch->logprobs.data, ch->logprobs.len);
            realm_buf_puts(b, "],\"refusal\":null}");
        } else {
            realm_buf_puts(b, "null");
        }
        realm_buf_printf(b, ",\"finish_reason\":\"%s\"}", gen_finish_name(ch->finish));
    }
    realm_buf_puts(b, "],");
    gen_write_usage(c, b);
    realm_buf_puts(b, ",\"service_tier\":\"default\",\"system_fingerprint\":\"realm-" REALM_VERSION "\"}");
}
