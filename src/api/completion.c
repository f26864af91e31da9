/* A choice of /v1/completions, whole and in pieces of the same shape. */
#include <math.h>
#include <string.h>

#include "api/internal.h"

/* "logprobs":{...} of what the choice has gathered, or null. */
static void write_logprobs(const api_call *c, const gen_choice *ch, realm_buf *b) {
    if (!c->gen.logprobs) {
        realm_buf_puts(b, "\"logprobs\":null");
        return;
    }
    realm_buf_puts(b, "\"logprobs\":{\"tokens\":[");
    realm_buf_append(b, ch->logprobs.data, ch->logprobs.len);
    realm_buf_puts(b, "],\"token_logprobs\":[");
    realm_buf_append(b, ch->legacy[0].data, ch->legacy[0].len);
    if (c->gen.top_logprobs) {
        realm_buf_puts(b, "],\"top_logprobs\":[");
        realm_buf_append(b, ch->legacy[1].data, ch->legacy[1].len);
        realm_buf_puts(b, "]");
    } else {
        realm_buf_puts(b, "],\"top_logprobs\":null");
    }
    realm_buf_puts(b, ",\"text_offset\":[");
    realm_buf_append(b, ch->legacy[2].data, ch->legacy[2].len);
    realm_buf_puts(b, "]}");
}

static void forget_logprobs(gen_choice *ch) {
    realm_buf_reset(&ch->logprobs);
    for (int k = 0; k < 3; k++) realm_buf_reset(&ch->legacy[k]);
}

static void write_choice(const api_call *c, const gen_choice *ch, const char *text, size_t len, realm_buf *b) {
    realm_buf_puts(b, "{\"text\":\"");
    realm_json_escape(b, text, len);
    realm_buf_printf(b, "\",\"index\":%u,", ch->index);
    write_logprobs(c, ch, b);
}

static void send_chunk(api_call *c, gen_choice *ch, const char *text, size_t len, const char *finish) {
    reply_chunk_begin(c);
    write_choice(c, ch, text, len, &c->piece);
    forget_logprobs(ch);
    reply_chunk_end(c, finish);
    reply_send(c);
}

static void add_text(api_call *c, gen_choice *ch, const char *text, size_t len) {
    if (!c->gen.stream)
        realm_buf_append(&ch->text, text, len);
    else if (len || ch->logprobs.len)
        send_chunk(c, ch, text, len, NULL);
}

/* With echo the prompt comes first: the string as it was sent, or what the tokens say. */
void completion_begin(api_call *c, gen_choice *ch) {
    if (!c->gen.echo) return;
    const gen_prompt *p = ch->prompt;
    if (p->kind == REALM_PROMPT_TEXT) {
        add_text(c, ch, p->text, p->len);
        return;
    }
    realm_buf text;
    realm_buf_init(&text, API_REPLY_MAX);
    realm_error err = {0};
    if (realm_tokenizer_decode(realm_engine_tokenizer(c->gen.engine), p->tokens, p->n_tokens, true, &text, &err) ==
        REALM_OK)
        add_text(c, ch, text.data ? text.data : "", text.len);
    else
        realm_exchange_abort(c->x); /* out of memory: the ids were checked */
    realm_buf_release(&text);
}

/* What echo shows of a prompt: all that was sent, tokens as they are written too, but not what was put before it. */
static bool shows_control(const api_call *c, const gen_choice *ch, const realm_event *e) {
    if (e->kind != REALM_EVENT_PROMPT) return false;
    if (ch->prompt->kind != REALM_PROMPT_TEXT) return true;
    const bool first = isnan(e->logprob);
    return c->gen.parse_special && !(first && realm_tokenizer_adds_bos(realm_engine_tokenizer(c->gen.engine)));
}

void completion_event(api_call *c, gen_choice *ch, const realm_event *e) {
    if (c->gen.logprobs && e->id >= 0)
        logprobs_legacy_entry(c, e, shows_control(c, ch, e), &ch->logprobs, &ch->legacy[0], &ch->legacy[1],
                              &ch->legacy[2], &ch->offset);
    if (e->kind == REALM_EVENT_PROMPT) {
        /* echoed text went ahead as one piece; its log-probabilities follow with the next piece */
        return;
    }
    add_text(c, ch, c->batch.text.data ? c->batch.text.data + e->text_at : "", e->text_len);
}

void completion_end(api_call *c, gen_choice *ch) {
    if (c->gen.stream) send_chunk(c, ch, "", 0, reply_finish_name(ch->finish));
}

void completion_write_choice(const api_call *c, const gen_choice *ch, realm_buf *b) {
    write_choice(c, ch, ch->text.data ? ch->text.data : "", ch->text.len, b);
}
