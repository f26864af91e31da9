/* engine/rewind.c - run ahead: tokens after the last confirmed one can be taken back.
 *
 * Rewind drops their events at once, under g->mu, and leaves a note; the engine's thread, before its next step, cuts
 * the sequence, brings text (text.c) and chain back to where they were and goes on. An end that not all tokens of have
 * been confirmed only parks the generation, so that it can go on too.
 */
#include <string.h>

#include "base/alloc.h"
#include "engine/internal.h"

/* ---- the consumer's side ---------------------------------------------------------------------------------------- */

void realm_generation_confirm(realm_generation *g, uint32_t n, bool end) {
    realm_mutex_lock(&g->mu);
    uint32_t most = g->rewinding ? g->n_confirmed : g->n_published;
    bool goes_on = REALM_MIN(n, most) > g->n_confirmed && g->paused;
    g->n_confirmed = REALM_MAX(g->n_confirmed, REALM_MIN(n, most));
    bool over = end && g->end_pushed && !g->final && n >= g->n_published;
    if (over) g->final = true;
    if (goes_on) g->paused = false;
    realm_mutex_unlock(&g->mu);
    if (goes_on || over) realm_engine_wake(g->e);
}

/* Under g->mu: events of dropped tokens that nobody has seen. */
static void drop_events(realm_generation *g, uint32_t n_keep) {
    uint32_t n = g->n_published;
    while (g->n_events > 0) {
        const realm_event *ev = &g->events[g->n_events - 1];
        if (ev->kind == REALM_EVENT_PROMPT || (ev->kind == REALM_EVENT_TOKEN && n <= n_keep)) break;
        n -= ev->kind == REALM_EVENT_TOKEN;
        g->text.len = ev->text_at;
        g->n_pending_top = ev->top_at;
        g->n_events--;
    }
}

static realm_status check_rewind(const realm_generation *g, uint32_t n_keep, const realm_token *tokens, size_t n,
                                 realm_error *err) {
    if (g->run_ahead == 0) return realm_error_set(err, REALM_E_INVALID, "the generation does not run ahead");
    for (size_t i = 0; i < n; i++)
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= g->e->n_vocab)
            return realm_error_set(err, REALM_E_RANGE, "token %zu is %d, the vocabulary has %u", i, tokens[i],
                                   g->e->n_vocab);
    if (n_keep > g->max_new || n > g->max_new - n_keep)
        return realm_error_set(err, REALM_E_RANGE, "%u tokens and %zu more, at most %u are generated", n_keep, n,
                               g->max_new);
    return REALM_OK;
}

/* Under g->mu, and the context's lock where there is one. */
static realm_status note_rewind(realm_generation *g, uint32_t n_keep, const realm_token *tokens, size_t n,
                                realm_error *err) {
    if (n_keep < g->n_confirmed || n_keep > g->n_published)
        return realm_error_set(err, REALM_E_RANGE, "rewind to %u, between %u and %u it can be", n_keep, g->n_confirmed,
                               g->n_published);
    if (g->final || atomic_load_explicit(&g->cancel, memory_order_relaxed))
        return realm_error_set(err, REALM_E_CLOSED, "the generation has ended");
    if (g->lent && (g->context->busy || g->context->edits != g->lent_edits))
        return realm_error_set(err, REALM_E_CLOSED, "the generation has ended and its context has gone on");
    if (n > 0) {
        realm_token *forced = realm_realloc_array(g->forced, g->n_forced + n, sizeof *forced);
        if (!forced) return realm_error_set(err, REALM_E_NOMEM, "no memory for %zu tokens", n);
        memcpy(forced + g->n_forced, tokens, n * sizeof *forced);
        g->forced = forced;
    }
    if (g->lent) g->context->busy = true;
    g->lent = false;
    drop_events(g, n_keep);
    if (!g->rewinding) g->rewind_keep = n_keep; /* else it is where the tokens forced before end */
    g->rewinding = true;
    g->n_forced += (uint32_t)n;
    g->n_published = g->n_confirmed = n_keep + (uint32_t)n;
    g->end_pushed = g->paused = false;
    return REALM_OK;
}

realm_status realm_generation_rewind(realm_generation *g, uint32_t n_keep, const realm_token *tokens, size_t n,
                                     realm_error *err) {
    realm_status s = check_rewind(g, n_keep, tokens, n, err);
    if (s != REALM_OK) return s;
    realm_context *c = g->context; /* one that runs ahead keeps it */
    if (c) realm_mutex_lock(&c->mu);
    realm_mutex_lock(&g->mu);
    s = note_rewind(g, n_keep, tokens, n, err);
    realm_mutex_unlock(&g->mu);
    if (c) realm_mutex_unlock(&c->mu);
    if (s == REALM_OK) realm_engine_wake(g->e);
    return s;
}

/* ---- the engine's side ------------------------------------------------------------------------------------------ */

/* The tokens that were drawn since, an end token too, are forgotten, the forced ones seen. */
static void rewind_chain(realm_generation *g, uint32_t n_keep, const realm_token *forced, uint32_t n_forced) {
    realm_error err = {0};
    realm_mask_drop(g);
    realm_status s = realm_chain_rewind(g->chain, g->chain->n_tail - g->chain_tail - n_keep, &err);
    if (s == REALM_OK && n_forced > 0) s = realm_chain_accept(g->chain, forced, n_forced, false, &err);
    if (s != REALM_OK) realm_generation_finish(g, REALM_FINISH_ERROR, s, err.text);
}

bool realm_generation_settles(realm_generation *g) {
    if (g->run_ahead == 0 || g->finish == REALM_FINISH_CANCELLED || g->finish == REALM_FINISH_ERROR) return true;
    realm_mutex_lock(&g->mu);
    bool settled = g->final || g->released;
    realm_mutex_unlock(&g->mu);
    return settled;
}

void realm_generation_close(realm_generation *g) {
    realm_mutex_lock(&g->mu);
    g->final = true;
    realm_mutex_unlock(&g->mu);
}

bool realm_generation_apply_rewind(realm_generation *g) {
    if (g->run_ahead == 0) return false;
    realm_mutex_lock(&g->mu);
    bool wanted = g->rewinding;
    realm_token *forced = g->forced;
    uint32_t n_keep = g->rewind_keep, n_forced = g->n_forced;
    g->forced = NULL;
    g->n_forced = 0;
    g->rewinding = false;
    realm_mutex_unlock(&g->mu);
    if (!wanted) return false;

    if (g->context) g->s = &g->context->seq; /* it may have been lent */
    g->finish = REALM_FINISH_NONE;
    g->end_id = -1;
    realm_seq_truncate(&g->e->pool, g->s, g->n_prompt + n_keep);
    realm_text_replay(g, n_keep);
    rewind_chain(g, n_keep, forced, n_forced);
    for (uint32_t i = 0; i < n_forced; i++) {
        g->s->tokens[g->s->n_tokens++] = forced[i];
        if (g->finish == REALM_FINISH_NONE) realm_text_force(g, forced[i]);
    }
    if (g->s->n_past == g->s->n_tokens) g->s->n_past--; /* what comes next is drawn from the last one's logits */
    /* What is computed from here on counts against tokens_per_second, also where other tokens were. */
    g->n_priced = REALM_MIN(g->n_priced, g->n_prompt + n_keep - (n_forced == 0));
    realm_text_set_base(g);
    g->prompt_charged += n_forced;
    g->account->delta.prompt += n_forced;
    if (g->finish == REALM_FINISH_NONE && realm_generation_length(g) == g->max_new)
        realm_generation_finish(g, REALM_FINISH_LENGTH, REALM_OK, NULL);
    realm_free(forced);
    return true;
}
