/* engine/text.c - from tokens to the text that a generation shows.
 *
 * Text goes detokeniser --whole characters--> held --all but a possible start of a stop string--> events. The earliest
 * stop string found ends the generation; what stands behind its start is never shown.
 *
 * One that runs ahead can be brought back to an earlier token: it keeps the state at the last rewind (`base`) and
 * pushes the tokens since then again.
 */
#include <string.h>

#include "engine/internal.h"

/* Where the earliest stop string starts in text, or len. */
static size_t find_stop(const realm_generation *g, const char *text, size_t len) {
    size_t first = len;
    for (size_t i = 0; i < g->n_stop; i++) {
        size_t window = first + g->stop[i].len - 1 < len ? first + g->stop[i].len - 1 : len;
        const char *p = memmem(text, window, g->stop[i].data, g->stop[i].len);
        if (p) first = (size_t)(p - text);
    }
    return first;
}

/* Length of the longest end of text that a stop string starts with. */
static size_t partial_stop(const realm_generation *g, const char *text, size_t len) {
    size_t longest = 0;
    for (size_t i = 0; i < g->n_stop; i++) {
        size_t n = g->stop[i].len - 1 < len ? g->stop[i].len - 1 : len;
        for (; n > longest; n--)
            if (memcmp(text + len - n, g->stop[i].data, n) == 0) longest = n;
    }
    return longest;
}

static void text_failed(realm_generation *g) {
    realm_generation_finish(g, REALM_FINISH_ERROR, REALM_E_INTERNAL, "a token's text exceeds its bound");
}

/* Run ahead: says of held bytes that are new whether a forced token brought them. */
static void note_unseen(realm_generation *g, bool forced) {
    while (g->base && g->unseen.len < g->held.len)
        if (realm_buf_append(&g->unseen, forced ? "\1" : "\0", 1) != REALM_OK) break; /* it is as large as held */
}

static void push(realm_generation *g, realm_token id, bool forced) {
    if (realm_detok_push(&g->detok, id, &g->held) != REALM_OK) {
        text_failed(g);
        return;
    }
    note_unseen(g, forced);
    size_t len = g->held.len - g->carry;
    const char *text = len > 0 ? g->held.data + g->carry : "";
    size_t stop = g->n_stop > 0 ? find_stop(g, text, len) : len;
    if (stop < len) {
        g->held.len = g->shown = g->carry + stop;
        if (g->base) g->unseen.len = g->held.len;
        g->detok.n_held = 0;
        realm_generation_finish(g, REALM_FINISH_STOP, REALM_OK, NULL);
        return;
    }
    g->shown = g->carry + (g->n_stop > 0 ? len - partial_stop(g, text, len) : len);
}

void realm_text_push(realm_generation *g, realm_token id) { push(g, id, false); }

static void consume(realm_generation *g, size_t n) {
    realm_buf_consume(&g->held, n);
    if (g->base) realm_buf_consume(&g->unseen, n);
    g->carry = g->carry > n ? g->carry - n : 0;
    g->shown = 0;
}

/* Moves the first n held bytes to the pending text; both were made large enough at submit. */
static void show(realm_generation *g, realm_event *ev, size_t n) {
    ev->text_at = (uint32_t)g->text.len;
    ev->text_len = (uint32_t)n;
    if (n == 0) return;
    if (!g->base) {
        if (realm_buf_append(&g->text, g->held.data, n) != REALM_OK) ev->text_len = 0;
    } else {
        for (size_t i = 0; i < n; i++)
            if (!g->unseen.data[i] && realm_buf_append(&g->text, g->held.data + i, 1) != REALM_OK) break;
        ev->text_len = (uint32_t)g->text.len - ev->text_at;
    }
    consume(g, n);
}

void realm_text_show(realm_generation *g, realm_event *ev) { show(g, ev, g->shown); }

void realm_text_show_rest(realm_generation *g, realm_event *ev) {
    if (realm_detok_finish(&g->detok, &g->held) != REALM_OK) return;
    note_unseen(g, false);
    show(g, ev, g->held.len);
}

/* ---- run ahead --------------------------------------------------------------------------------------------------- */

static bool copy_text(realm_buf *to, const realm_buf *from) {
    realm_buf_reset(to);
    return from->len == 0 || realm_buf_append(to, from->data, from->len) == REALM_OK;
}

void realm_text_replay(realm_generation *g, uint32_t n) {
    const realm_text_mark *base = g->base;
    g->detok = base->detok;
    g->carry = base->carry;
    if (!copy_text(&g->held, &base->held) || !copy_text(&g->unseen, &base->unseen)) text_failed(g);
    for (uint32_t i = base->n; i < n && g->finish == REALM_FINISH_NONE; i++) {
        realm_text_push(g, g->s->tokens[g->n_prompt + i]);
        consume(g, g->shown); /* it was shown before */
    }
}

void realm_text_force(realm_generation *g, realm_token id) {
    push(g, id, true);
    size_t kept = 0, carry = 0;
    for (size_t i = 0; i < g->held.len; i++) {
        if (i < g->shown && g->unseen.data[i]) continue;
        carry += i < g->shown;
        g->held.data[kept] = g->held.data[i];
        g->unseen.data[kept++] = g->unseen.data[i];
    }
    g->carry = carry;
    g->held.len = g->unseen.len = kept;
    g->shown = 0;
}

void realm_text_set_base(realm_generation *g) {
    realm_text_mark *base = g->base;
    base->n = realm_generation_length(g);
    base->detok = g->detok;
    base->carry = g->carry;
    if (!copy_text(&base->held, &g->held) || !copy_text(&base->unseen, &g->unseen)) text_failed(g);
}
