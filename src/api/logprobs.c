/* Log-probabilities, in the shape of chat ({"token","logprob","bytes","top_logprobs"} per token) and in the legacy one
 * of completions (four parallel lists). They are those of the model before temperature, penalties and masks.
 *
 * A token need not be valid UTF-8 by itself. Chat gives its bytes beside a text in which they are replaced; the legacy
 * shape writes `bytes:\xNN...`. An impossible token's minus infinity is written as -9999.0, as the original API does.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "api/internal.h"
#include "base/utf8.h"

typedef struct piece {
    const char *bytes;
    size_t len;
} piece;

static piece piece_of(const api_call *c, realm_token id, bool special) {
    piece p = {"", 0};
    if (realm_tokenizer_piece(realm_engine_tokenizer(c->gen.engine), id, special, &p.bytes, &p.len) != REALM_OK)
        p = (piece){"", 0};
    return p;
}

static void write_value(realm_json_writer *w, float logprob) {
    realm_json_write_float(w, isfinite(logprob) ? logprob : -9999.0f);
}

static void write_chat_token(const api_call *c, realm_json_writer *w, realm_token id, float logprob) {
    piece p = piece_of(c, id, true);
    realm_json_key(w, "token");
    realm_json_write_str(w, p.bytes, p.len);
    realm_json_key(w, "logprob");
    write_value(w, logprob);
    realm_json_key(w, "bytes");
    realm_json_begin_array(w);
    for (size_t i = 0; i < p.len; i++) realm_json_write_int(w, (unsigned char)p.bytes[i]);
    realm_json_end_array(w);
}

void logprobs_chat_entry(const api_call *c, const realm_event *e, realm_buf *out) {
    realm_json_writer w;
    realm_json_writer_init(&w, out);
    realm_json_begin_object(&w);
    write_chat_token(c, &w, e->id, e->logprob);
    realm_json_key(&w, "top_logprobs");
    realm_json_begin_array(&w);
    for (uint32_t i = 0; i < e->n_top; i++) {
        const realm_top_logprob *t = &c->batch.top[e->top_at + i];
        realm_json_begin_object(&w);
        write_chat_token(c, &w, t->id, t->logprob);
        realm_json_end_object(&w);
    }
    realm_json_end_array(&w);
    realm_json_end_object(&w);
}

/* The token's text, or bytes:\xNN; as a string, or as a key. */
static void write_legacy_token(const api_call *c, realm_json_writer *w, realm_token id, bool key) {
    piece p = piece_of(c, id, true);
    realm_buf text;
    realm_buf_init(&text, 64u << 10);
    if (realm_utf8_valid(p.bytes, p.len) && !(key && memchr(p.bytes, '\0', p.len))) {
        realm_buf_append(&text, p.bytes, p.len);
    } else {
        realm_buf_puts(&text, "bytes:");
        for (size_t i = 0; i < p.len; i++) realm_buf_printf(&text, "\\x%02x", (unsigned char)p.bytes[i]);
    }
    if (key)
        realm_json_key(w, text.data ? text.data : "");
    else
        realm_json_write_str(w, text.data ? text.data : "", text.len);
    realm_buf_release(&text);
}

static bool same_text(const api_call *c, realm_token a, realm_token b) {
    piece p = piece_of(c, a, true), q = piece_of(c, b, true);
    return p.len == q.len && memcmp(p.bytes, q.bytes, p.len) == 0;
}

static bool text_seen(const api_call *c, const realm_top_logprob *top, uint32_t n, realm_token id) {
    for (uint32_t i = 0; i < n; i++)
        if (same_text(c, top[i].id, id)) return true;
    return false;
}

static void comma(realm_buf *b) {
    if (b->len) realm_buf_putc(b, ',');
}

void logprobs_legacy_entry(const api_call *c, const realm_event *e, bool control, realm_buf *tokens, realm_buf *values,
                           realm_buf *tops, realm_buf *offsets, uint64_t *offset) {
    bool first = e->kind == REALM_EVENT_PROMPT && isnan(e->logprob); /* nothing comes before it: null */
    realm_json_writer w;
    comma(tokens);
    realm_json_writer_init(&w, tokens);
    write_legacy_token(c, &w, e->id, false);
    comma(values);
    realm_json_writer_init(&w, values);
    if (first)
        realm_json_write_null(&w);
    else
        write_value(&w, e->logprob);
    comma(tops);
    realm_json_writer_init(&w, tops);
    if (first) {
        realm_json_write_null(&w);
    } else {
        /* The best, and the token itself where it is not among them. Two tokens may have one text: the better is kept.
         */
        realm_json_begin_object(&w);
        bool own = false;
        for (uint32_t i = 0; i < e->n_top; i++) {
            const realm_top_logprob *t = &c->batch.top[e->top_at + i];
            if (text_seen(c, &c->batch.top[e->top_at], i, t->id)) continue;
            own |= same_text(c, t->id, e->id);
            write_legacy_token(c, &w, t->id, true);
            write_value(&w, t->logprob);
        }
        if (!own) {
            write_legacy_token(c, &w, e->id, true);
            write_value(&w, e->logprob);
        }
        realm_json_end_object(&w);
    }
    comma(offsets);
    realm_buf_printf(offsets, "%llu", (unsigned long long)*offset);
    /* characters that begin in this token */
    piece p = piece_of(c, e->id, control);
    *offset += realm_utf8_count(p.bytes, p.len);
}
