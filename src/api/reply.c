/* What the answers of both endpoints have in common: one object with all choices, or a stream of chunks.
 *
 *      {id, object, created, model, "choices":[ choice, ... ], usage, ...}
 *      data: {id, object, created, model, "choices":[ one choice ], usage null}     for each piece
 *      data: {id, object, created, model, "choices":[], usage}                      at the end, where it was asked for
 *      data: [DONE]
 *
 * What a choice looks like is said by chat.c and completion.c.
 */
#include <math.h>
#include <string.h>

#include "api/internal.h"

const char *reply_finish_name(realm_finish f) {
    switch (f) {
    case REALM_FINISH_LENGTH: return "length";
    case REALM_FINISH_STOP: return "stop";
    default: return NULL;
    }
}

static void write_usage(const api_call *c, realm_buf *out) {
    realm_json_writer writer, *w = &writer;
    uint64_t prompt = 0, cached = 0, completion = 0;
    for (uint32_t i = 0; i < c->n_choices; i++) {
        prompt += c->choices[i].prompt_tokens;
        cached += c->choices[i].cached_tokens;
        completion += c->choices[i].completion_tokens;
    }
    realm_json_writer_init(w, out);
    realm_buf_puts(out, "\"usage\":");
    realm_json_begin_object(w);
    realm_json_key(w, "prompt_tokens");
    realm_json_write_uint(w, prompt);
    realm_json_key(w, "completion_tokens");
    realm_json_write_uint(w, completion);
    realm_json_key(w, "total_tokens");
    realm_json_write_uint(w, prompt + completion);
    realm_json_key(w, "prompt_tokens_details");
    realm_json_begin_object(w);
    realm_json_key(w, "cached_tokens");
    realm_json_write_uint(w, cached);
    realm_json_end_object(w);
    realm_json_key(w, "completion_tokens_details");
    realm_json_begin_object(w);
    realm_json_key(w, "reasoning_tokens");
    realm_json_write_uint(w, 0);
    realm_json_end_object(w);
    realm_json_end_object(w);
}

/* ---- a stream ---------------------------------------------------------------------------------------------------- */

static void begin_stream(api_call *c) {
    if (c->streaming) return;
    c->streaming = true;
    api_put_fields(c);
    realm_exchange_field(c->x, "Cache-Control", "no-cache");
    realm_exchange_field(c->x, "X-Accel-Buffering", "no");
    realm_exchange_start(c->x, 200, "text/event-stream; charset=utf-8");
}

void reply_send(api_call *c) {
    if (realm_buf_status(&c->piece) != REALM_OK) {
        realm_exchange_abort(c->x);
        return;
    }
    begin_stream(c);
    /* one write, so one chunk and one line per event */
    realm_exchange_write(c->x, c->piece.data, c->piece.len);
    realm_buf_reset(&c->piece);
}

void reply_chunk_begin(api_call *c) {
    realm_buf_puts(&c->piece, "data: ");
    realm_buf_append(&c->piece, c->head.data, c->head.len);
    realm_buf_puts(&c->piece, "\"choices\":[");
}

void reply_finish_reason(realm_buf *b, const char *finish) {
    if (finish)
        realm_buf_printf(b, ",\"finish_reason\":\"%s\"}", finish);
    else
        realm_buf_puts(b, ",\"finish_reason\":null}");
}

void reply_chunk_end(api_call *c, const char *finish) {
    reply_finish_reason(&c->piece, finish);
    realm_buf_puts(&c->piece, c->gen.include_usage ? "],\"usage\":null}\n\n" : "]}\n\n");
}

void reply_stream_end(api_call *c) {
    if (c->gen.include_usage) {
        reply_chunk_begin(c);
        realm_buf_puts(&c->piece, "],");
        write_usage(c, &c->piece);
        realm_buf_puts(&c->piece, "}\n\n");
        reply_send(c);
    }
    realm_buf_puts(&c->piece, "data: [DONE]\n\n");
    reply_send(c);
    realm_exchange_finish(c->x);
}

/* ---- one object -------------------------------------------------------------------------------------------------- */

static realm_status gathered(const gen_choice *ch) {
    realm_status s = realm_buf_status(&ch->text);
    if (s == REALM_OK) s = realm_buf_status(&ch->logprobs);
    for (int k = 0; k < 3 && s == REALM_OK; k++) s = realm_buf_status(&ch->legacy[k]);
    return s;
}

static double score(const gen_choice *ch) { return ch->n_scored ? ch->logprob_sum / ch->n_scored : -INFINITY; }

/* With best_of the n of a prompt's runs with the highest log-probability per token stand first, the best at the head.
 */
static void best_first(api_call *c) {
    const uint32_t n = c->gen.n, runs = c->gen.n_runs;
    if (runs == n) return;
    for (uint32_t i = 0; i < c->n_choices; i++) {
        gen_choice *to = &c->choices[i];
        if (i % runs >= n) continue;
        gen_choice *best = to;
        for (uint32_t j = i + 1; j % runs != 0; j++)
            if (score(&c->choices[j]) > score(best)) best = &c->choices[j];
        const gen_choice t = *to;
        *to = *best;
        *best = t;
        to->index = i / runs * n + i % runs;
    }
}

void reply_whole(api_call *c) {
    realm_buf *b = &c->reply;
    best_first(c);
    realm_buf_append(b, c->head.data, c->head.len);
    realm_buf_puts(b, "\"choices\":[");
    for (uint32_t i = 0; i < c->n_choices; i++) {
        const gen_choice *ch = &c->choices[i];
        if (i % c->gen.n_runs >= c->gen.n) continue;
        realm_status s = gathered(ch);
        if (s != REALM_OK) {
            api_error_status(&c->error, s, NULL);
            return;
        }
        if (i) realm_buf_putc(b, ',');
        if (c->gen.chat)
            chat_write_choice(c, ch, b);
        else
            completion_write_choice(c, ch, b);
        reply_finish_reason(b, reply_finish_name(ch->finish));
    }
    realm_buf_puts(b, "],");
    write_usage(c, b);
    if (c->gen.chat) realm_buf_puts(b, ",\"service_tier\":\"default\"");
    realm_buf_puts(b, ",\"system_fingerprint\":\"realm-" REALM_VERSION "\"}");
}
