/* engine/generation.c - what a consumer holds: submit, cancel, release, poll; and the text of a generation.
 *
 * Events lie in a list of fixed size in the generation, filled by the engine's thread at the end of a step and emptied
 * by poll, which copies them into the consumer's batch: the batch's memory grows once and is then reused, the engine's
 * never grows. The engine gives a generation its turn only when the list has room for what a step may add (`room`); a
 * list without it marks the generation paused, and the poll that empties it wakes the engine.
 *
 * Text goes detokeniser --whole characters--> held --all but a possible start of a stop string--> events. The earliest
 * stop string found ends the generation; what stands behind its start is never shown.
 *
 * A forward pass has none of this: its rows stand in an object of their own and its one event is END.
 *
 * Run ahead. The tokens after the last confirmed one can be taken back: rewind drops their events at once, under g->mu,
 * and leaves a note; the engine's thread, before its next step, cuts the sequence, brings the text's state back to
 * where it was (it keeps the state at the last rewind and pushes the tokens since then again) and goes on. An end that
 * not all tokens of have been confirmed only parks the generation, so that it can go on too.
 *
 * The consumer's callback runs on the engine's thread without any lock held, between two flags under g->mu, so that
 * release can wait for it to be over.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/utf8.h"
#include "engine/internal.h"

/* ---- submit ----------------------------------------------------------------------------------------------------- */

static realm_status check_params(const realm_engine *e, const realm_generation_params *p, realm_error *err) {
    if (!p->account || p->account->e != e || (p->share && (p->share->e != e || p->share->account != p->account)))
        return realm_error_set(err, REALM_E_INVALID, "the account or prompt share is not of this engine");
    if (p->context && (p->context->account != p->account || p->share || p->prompt_logprobs))
        return realm_error_set(err, REALM_E_INVALID,
                               "a context must be its account's own, without share and "
                               "prompt_logprobs");
    if (p->n_prompt == 0 && !p->context) return realm_error_set(err, REALM_E_RANGE, "the prompt is empty");
    if (p->n_prompt > e->n_ctx || (p->n_prompt == e->n_ctx && !p->forward))
        return realm_error_set(err, REALM_E_CONTEXT,
                               "the prompt has %zu tokens, the context of %u leaves no room for an answer", p->n_prompt,
                               e->n_ctx);
    for (size_t i = 0; i < p->n_prompt; i++)
        if (p->prompt[i] < 0 || (uint32_t)p->prompt[i] >= e->n_vocab)
            return realm_error_set(err, REALM_E_RANGE, "prompt token %zu is %d, the vocabulary has %u", i, p->prompt[i],
                                   e->n_vocab);
    if (p->forward) {
        if (p->share || p->prompt_logprobs)
            return realm_error_set(err, REALM_E_INVALID, "a forward pass has neither share nor prompt_logprobs");
        if (p->n_rows == 0 || p->n_rows > REALM_FORWARD_ROWS)
            return realm_error_set(err, REALM_E_RANGE, "n_rows is %u, it must be 1 to %u", p->n_rows,
                                   REALM_FORWARD_ROWS);
        return REALM_OK;
    }
    if (p->run_ahead > REALM_RUN_AHEAD_MAX)
        return realm_error_set(err, REALM_E_RANGE, "run_ahead is %u, at most %u are taken", p->run_ahead,
                               REALM_RUN_AHEAD_MAX);
    if (p->n_stop > REALM_STOP_MAX)
        return realm_error_set(err, REALM_E_RANGE, "%zu stop strings, at most %u are taken", p->n_stop, REALM_STOP_MAX);
    for (size_t i = 0; i < p->n_stop; i++) {
        if (p->stop[i].len == 0 || p->stop[i].len > REALM_STOP_BYTES_MAX)
            return realm_error_set(err, REALM_E_RANGE, "stop string %zu has %zu bytes, it must have 1 to %u", i,
                                   p->stop[i].len, REALM_STOP_BYTES_MAX);
        if (!realm_utf8_valid(p->stop[i].data, p->stop[i].len))
            return realm_error_set(err, REALM_E_RANGE, "stop string %zu is not valid UTF-8", i);
    }
    if (p->top_logprobs > REALM_TOP_LOGPROBS_MAX)
        return realm_error_set(err, REALM_E_RANGE, "top_logprobs is %u, at most %u are given", p->top_logprobs,
                               REALM_TOP_LOGPROBS_MAX);
    if (p->grammar && realm_grammar_state_vocab_size(p->grammar) != e->n_vocab)
        return realm_error_set(err, REALM_E_INVALID, "the grammar is for a model with another vocabulary");
    if (p->chain && p->chain->n_vocab != e->n_vocab)
        return realm_error_set(err, REALM_E_INVALID, "the sampler is for a model with another vocabulary");
    if (p->chain && p->grammar && p->chain->n_stages == REALM_STAGES_MAX)
        return realm_error_set(err, REALM_E_LIMIT, "the sampler's %u stages leave no place for a grammar",
                               REALM_STAGES_MAX);
    return realm_sampling_check(&p->sampling, e->n_vocab, err);
}

static void generation_free(realm_generation *g) {
    realm_chain_close(g->chain);
    realm_free(g->stop_bytes);
    realm_seq_release(&g->e->pool, &g->own);
    if (g->base) {
        realm_buf_release(&g->base->held);
        realm_buf_release(&g->base->unseen);
    }
    realm_free(g->base);
    realm_free(g->forced);
    realm_logits_release(g->logits);
    realm_context_release(g->context);
    if (g->events != g->small_events) realm_free(g->events);
    realm_free(g->top);
    realm_buf_release(&g->held);
    realm_buf_release(&g->unseen);
    realm_buf_release(&g->text);
    realm_cond_destroy(&g->callback_done);
    realm_mutex_destroy(&g->mu);
    realm_free(g);
}

static realm_status copy_stops(realm_generation *g, const realm_generation_params *p, size_t *longest) {
    size_t total = 0;
    *longest = 0;
    for (size_t i = 0; i < p->n_stop; i++) {
        total += p->stop[i].len; /* at most REALM_STOP_MAX * REALM_STOP_BYTES_MAX */
        if (p->stop[i].len > *longest) *longest = p->stop[i].len;
    }
    g->stop_bytes = realm_malloc(total);
    if (!g->stop_bytes) return REALM_E_NOMEM;
    char *at = g->stop_bytes;
    for (size_t i = 0; i < p->n_stop; i++) {
        memcpy(at, p->stop[i].data, p->stop[i].len);
        g->stop[i] = (realm_gguf_str){at, p->stop[i].len};
        at += p->stop[i].len;
    }
    g->n_stop = p->n_stop;
    return REALM_OK;
}

/* What shows text: buffers, events, stop strings. */
static realm_status prepare_text(realm_generation *g, const realm_generation_params *p) {
    size_t longest;
    g->logprobs = p->logprobs;
    g->prompt_logprobs = p->prompt_logprobs;
    g->n_top = p->logprobs || p->prompt_logprobs ? p->top_logprobs : 0;
    g->ignore_end = p->ignore_end;
    g->run_ahead = p->run_ahead;
    g->cap_events = p->prompt_logprobs ? REALM_EVENTS_PENDING_PROMPT : REALM_EVENTS_PENDING;
    realm_detok_init(&g->detok, g->e->tokenizer, p->special_text);
    if (copy_stops(g, p, &longest) != REALM_OK) return REALM_E_NOMEM;
    /* Every byte of a token may become a replacement character of three; a few may have been waiting. After a rewind
     * what was held before it may wait too. */
    g->text_step_max = (p->run_ahead > 0 ? 2 : 1) * longest + 3 * (g->e->max_piece + 16);
    realm_buf_init(&g->held, g->text_step_max);
    realm_buf_init(&g->text, REALM_TEXT_PENDING + g->text_step_max);
    if (realm_buf_reserve(&g->held, g->held.max) != REALM_OK || realm_buf_reserve(&g->text, g->text.max) != REALM_OK)
        return REALM_E_NOMEM;
    if (p->run_ahead > 0) {
        g->base = realm_calloc(1, sizeof *g->base);
        if (!g->base) return REALM_E_NOMEM;
        g->base->detok = g->detok;
        realm_buf_init(&g->unseen, g->held.max);
        realm_buf_init(&g->base->held, g->held.max);
        realm_buf_init(&g->base->unseen, g->held.max);
        if (realm_buf_reserve(&g->unseen, g->held.max) != REALM_OK ||
            realm_buf_reserve(&g->base->held, g->held.max) != REALM_OK ||
            realm_buf_reserve(&g->base->unseen, g->held.max) != REALM_OK)
            return REALM_E_NOMEM;
    }
    g->events = realm_calloc(g->cap_events, sizeof *g->events);
    if (!g->events) return REALM_E_NOMEM;
    if (g->n_top > 0) {
        g->top = realm_calloc((size_t)g->cap_events * g->n_top, sizeof *g->top);
        if (!g->top) return REALM_E_NOMEM;
    }
    return REALM_OK;
}

/* Its own chain, which has seen the prompt: without one of the caller's, all tokens so far. */
static realm_status prepare_chain(realm_generation *g, const realm_generation_params *p) {
    realm_seq *s = g->s;
    const size_t n_seen = p->chain ? p->n_prompt : s->n_tokens;
    realm_status st = p->chain ? realm_chain_fork(p->chain, &g->chain, NULL)
                               : realm_chain_from_sampling(&p->sampling, g->e->n_vocab, &g->chain, NULL);
    if (st == REALM_OK && p->grammar) st = realm_chain_add_grammar(g->chain, p->grammar, NULL);
    if (st == REALM_OK) st = realm_chain_reserve(g->chain, n_seen + g->max_new, NULL);
    if (st == REALM_OK) st = realm_chain_accept(g->chain, s->tokens + s->n_tokens - n_seen, n_seen, true, NULL);
    if (st == REALM_OK) g->chain_tail = g->chain->n_tail;
    return st;
}

/* How many tokens it may add to n. */
static uint32_t room_for_new(const realm_engine *e, const realm_generation_params *p, uint32_t n) {
    if (p->forward) return 0;
    return p->max_tokens > 0 && p->max_tokens < e->n_ctx - n ? p->max_tokens : e->n_ctx - n;
}

/* A generation with all the memory that it will ever need; a context is busy with it. */
static realm_generation *generation_new(realm_engine *e, const realm_generation_params *p) {
    realm_generation *g = realm_calloc(1, sizeof *g);
    if (!g) return NULL;
    realm_mutex_init(&g->mu, REALM_RANK_LEAF);
    realm_cond_init(&g->callback_done);
    g->e = e;
    g->account = p->account;
    g->share = p->share;
    g->deadline_ns = p->deadline_ns;
    g->on_ready = p->on_ready;
    g->user = p->user;
    g->end_id = -1;
    atomic_init(&g->cancel, false);
    atomic_init(&g->refs, 2);
    if (p->context) {
        g->context = realm_context_retain(p->context);
        g->s = &p->context->seq;
    } else {
        g->s = &g->own;
        uint32_t n = (uint32_t)p->n_prompt;
        if (!realm_seq_reserve(&g->own, n + room_for_new(e, p, n))) goto fail; /* at most n_ctx */
        memcpy(g->own.tokens, p->prompt, n * sizeof *g->own.tokens);
        g->own.n_tokens = n;
    }
    g->n_prompt = g->s->n_tokens;
    g->max_new = room_for_new(e, p, g->n_prompt);
    g->n_rows = p->forward ? p->n_rows : 0;
    uint32_t computed = REALM_MIN(g->s->n_past, g->n_prompt - REALM_MAX(g->n_rows, 1u));
    g->n_charge = g->n_prompt - computed;
    if (p->forward) {
        g->events = g->small_events;
        g->cap_events = REALM_ARRAY_LEN(g->small_events);
        g->logits = realm_logits_new(e, p->n_rows, p->hidden);
        if (!g->logits) goto fail;
    } else if (prepare_text(g, p) != REALM_OK || prepare_chain(g, p) != REALM_OK) {
        goto fail;
    }
    return g;
fail:
    generation_free(g);
    return NULL;
}

/* Under engine->mu: the prompt of the first generation is the share's. */
static realm_status join_share(realm_prompt_share *s, const realm_generation_params *p, realm_token **prompt,
                               realm_page ***pages, realm_error *err) {
    if (!s->prompt) {
        s->prompt = *prompt;
        s->pages = *pages;
        s->n_prompt = p->n_prompt;
        *prompt = NULL;
        *pages = NULL;
    } else if (s->n_prompt != p->n_prompt || memcmp(s->prompt, p->prompt, p->n_prompt * sizeof *p->prompt) != 0) {
        return realm_error_set(err, REALM_E_INVALID, "siblings of a prompt share must have the same prompt");
    }
    s->refs++;
    return REALM_OK;
}

/* Under engine->mu. */
static realm_status admit_to_queue(realm_engine *e, const realm_generation_params *p, const realm_generation *g,
                                   realm_error *err) {
    const realm_account *a = p->account;
    if (e->shut) return realm_error_set(err, REALM_E_CLOSED, "the engine is closing");
    if (a->limits.generations > 0 && a->n_generations >= a->limits.generations)
        return realm_error_set(err, REALM_E_CROWDED, "limit generations: %u are running or queued, %u are allowed",
                               a->n_generations, a->limits.generations);
    /* The last token sampled needs no place in the KV. */
    uint64_t held = (uint64_t)g->n_prompt + (p->max_tokens > 0 && g->max_new > 0 ? g->max_new - 1 : 0);
    uint64_t pages = realm_pages_for(held);
    if (a->limits.kv_tokens > 0 && pages > a->limits.kv_tokens / REALM_KV_PAGE_TOKENS)
        return realm_error_set(err, REALM_E_QUOTA,
                               "limit kv_tokens: %llu tokens would be held (in pages of %u), "
                               "%llu are allowed",
                               (unsigned long long)(pages * REALM_KV_PAGE_TOKENS), REALM_KV_PAGE_TOKENS,
                               (unsigned long long)a->limits.kv_tokens);
    if (e->n_alive >= e->cap_ring)
        return realm_error_set(err, REALM_E_BUSY, "%u generations are running or waiting already", e->n_alive);
    return REALM_OK;
}

/* Hands it to the engine's thread. */
static realm_status enqueue(realm_engine *e, const realm_generation_params *p, realm_generation *g, realm_error *err) {
    realm_token *share_prompt = NULL;
    realm_page **share_pages = NULL;
    realm_status s;
    if (p->share) {
        share_prompt = realm_calloc(p->n_prompt, sizeof *share_prompt);
        share_pages = realm_calloc(realm_pages_for(p->n_prompt), sizeof(realm_page *));
        if (!share_prompt || !share_pages) {
            s = realm_error_set(err, REALM_E_NOMEM, "no memory for a prompt share");
            goto done;
        }
        memcpy(share_prompt, p->prompt, p->n_prompt * sizeof *share_prompt);
    }
    realm_mutex_lock(&e->mu);
    s = admit_to_queue(e, p, g, err);
    if (s == REALM_OK && p->share) s = join_share(p->share, p, &share_prompt, &share_pages, err);
    if (s == REALM_OK) {
        e->n_alive++;
        p->account->n_generations++;
        p->account->refs++;
        if (e->inbox_tail)
            e->inbox_tail->next = g;
        else
            e->inbox_head = g;
        e->inbox_tail = g;
        e->wake = true;
        realm_cond_signal(&e->cond);
    }
    realm_mutex_unlock(&e->mu);
done:
    realm_free(share_prompt);
    realm_free(share_pages);
    return s;
}

realm_status realm_generation_submit(realm_engine *e, const realm_generation_params *p, realm_generation **out,
                                     realm_error *err) {
    *out = NULL;
    realm_context *c = p->context;
    realm_status s = check_params(e, p, err);
    if (s != REALM_OK) return s;
    if (!c && p->forward && p->n_rows > p->n_prompt)
        return realm_error_set(err, REALM_E_RANGE, "n_rows is %u, there are %zu tokens", p->n_rows, p->n_prompt);
    if (c && (s = realm_context_begin(c, p, err)) != REALM_OK) return s;
    realm_generation *g = generation_new(e, p);
    s = g ? enqueue(e, p, g, err) : realm_error_set(err, REALM_E_NOMEM, "no memory for a generation");
    if (s == REALM_OK) {
        *out = g;
        return REALM_OK;
    }
    if (c) realm_context_undo_begin(c, (uint32_t)p->n_prompt);
    if (g) generation_free(g);
    return s;
}

/* ---- the consumer's side ---------------------------------------------------------------------------------------- */

void realm_generation_cancel(realm_generation *g) {
    atomic_store_explicit(&g->cancel, true, memory_order_relaxed);
    realm_engine_wake(g->e);
}

void realm_generation_unref(realm_generation *g) {
    /* acq_rel: the last holder sees all that the other wrote before it frees. */
    if (atomic_fetch_sub_explicit(&g->refs, 1, memory_order_acq_rel) != 1) return;
    realm_engine *e = g->e;
    if (g->share) realm_share_unref(g->share);
    realm_mutex_lock(&e->mu);
    realm_account_unref_locked(g->account);
    realm_mutex_unlock(&e->mu);
    generation_free(g);
}

void realm_generation_release(realm_generation *g) {
    if (!g) return;
    realm_mutex_lock(&g->mu);
    g->released = true;
    while (g->in_callback) realm_cond_wait(&g->callback_done, &g->mu);
    bool alive = !g->final;
    realm_mutex_unlock(&g->mu);
    if (alive) realm_generation_cancel(g);
    realm_generation_unref(g);
}

void realm_event_batch_init(realm_event_batch *b) {
    *b = (realm_event_batch){0};
    realm_buf_init(&b->text, SIZE_MAX / 2);
}

void realm_event_batch_release(realm_event_batch *b) {
    realm_free(b->events);
    realm_free(b->top);
    realm_buf_release(&b->text);
    *b = (realm_event_batch){0};
}

/* Room in the batch for what is pending. */
static bool batch_fits(realm_event_batch *b, const realm_generation *g) {
    if (b->cap_events < g->n_events) {
        realm_event *p = realm_realloc_array(b->events, g->cap_events, sizeof *p);
        if (!p) return false;
        b->events = p;
        b->cap_events = g->cap_events;
    }
    if (b->cap_top < g->n_pending_top) {
        size_t cap = (size_t)g->cap_events * g->n_top;
        realm_top_logprob *p = realm_realloc_array(b->top, cap, sizeof *p);
        if (!p) return false;
        b->top = p;
        b->cap_top = cap;
    }
    return realm_buf_reserve(&b->text, g->text.len) == REALM_OK;
}

size_t realm_generation_poll(realm_generation *g, realm_event_batch *b) {
    b->n_events = b->n_top = 0;
    b->status = REALM_OK;
    realm_error_clear(&b->error);
    realm_buf_reset(&b->text);
    realm_mutex_lock(&g->mu);
    if (!batch_fits(b, g)) {
        realm_mutex_unlock(&g->mu);
        b->status = realm_error_set(&b->error, REALM_E_NOMEM, "no memory to take %u events", g->n_events);
        realm_buf_reset(&b->text);
        return 0;
    }
    if (g->n_events > 0) memcpy(b->events, g->events, g->n_events * sizeof *b->events);
    if (g->n_pending_top > 0) memcpy(b->top, g->top, g->n_pending_top * sizeof *b->top);
    if (g->text.len > 0) (void)realm_buf_append(&b->text, g->text.data, g->text.len); /* reserved above */
    b->n_events = g->n_events;
    b->n_top = g->n_pending_top;
    b->prompt_tokens = g->counted_prompt;
    b->cached_tokens = g->counted_cached;
    b->completion_tokens = g->counted_new;
    if (g->end_pushed && g->status != REALM_OK) b->status = realm_error_set(&b->error, g->status, "%s", g->status_text);
    g->n_events = g->n_pending_top = 0;
    realm_buf_reset(&g->text);
    bool was_paused = g->paused;
    g->paused = false;
    realm_mutex_unlock(&g->mu);
    if (was_paused) realm_engine_wake(g->e);
    return b->n_events;
}

realm_logits *realm_generation_take_logits(realm_generation *g) {
    realm_logits *l = NULL;
    realm_mutex_lock(&g->mu);
    if (g->end_pushed && g->finish == REALM_FINISH_STOP) {
        l = g->logits;
        g->logits = NULL;
    }
    realm_mutex_unlock(&g->mu);
    return l;
}

void realm_generation_confirm(realm_generation *g, uint32_t n) {
    realm_mutex_lock(&g->mu);
    uint32_t most = g->rewinding ? g->n_confirmed : g->n_published;
    bool goes_on = REALM_MIN(n, most) > g->n_confirmed && g->paused;
    g->n_confirmed = REALM_MAX(g->n_confirmed, REALM_MIN(n, most));
    bool over = g->end_pushed && !g->final && n >= g->n_published;
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

uint32_t realm_generation_room(realm_generation *g) {
    uint32_t room = 0;
    realm_mutex_lock(&g->mu);
    /* One slot stays for END; the first prompt token's event comes besides its rows'. */
    uint32_t kept = g->prompt_logprobs && g->prompt_events == 0 ? 2 : 1;
    if (g->n_events + kept < g->cap_events && g->text.len + g->text_step_max <= g->text.max)
        room = g->cap_events - g->n_events - kept;
    if (g->n_rows > 0) room = 1;
    if (g->run_ahead > 0 && realm_generation_length(g) >= g->n_confirmed + g->run_ahead) room = 0;
    if (g->released) room = g->cap_events; /* nobody reads; the cancel flag is on its way */
    if (room == 0) g->paused = true;
    realm_mutex_unlock(&g->mu);
    return room;
}

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

void realm_generation_finish(realm_generation *g, realm_finish finish, realm_status status, const char *text) {
    g->finish = finish;
    g->status = status;
    snprintf(g->status_text, sizeof g->status_text, "%.*s", (int)sizeof g->status_text - 1, text ? text : "");
}

static void text_failed(realm_generation *g) {
    realm_generation_finish(g, REALM_FINISH_ERROR, REALM_E_INTERNAL, "a token's text exceeds its bound");
}

/* Run ahead: says of held bytes that are new whether a forced token brought them. */
static void note_unseen(realm_generation *g, bool forced) {
    while (g->base && g->unseen.len < g->held.len)
        if (realm_buf_append(&g->unseen, forced ? "\1" : "\0", 1) != REALM_OK) break; /* it is as large as held */
}

/* Takes one token's text in and decides how much of what is held can be shown; STOP when a stop string is complete. */
static void push_text(realm_generation *g, realm_token id, bool forced) {
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

void realm_generation_accept(realm_generation *g, realm_token id) {
    g->n_new++;
    if (!g->ignore_end && realm_tokenizer_is_end(g->e->tokenizer, id)) {
        g->end_id = id;
        realm_generation_finish(g, REALM_FINISH_STOP, REALM_OK, NULL);
        return;
    }
    g->s->tokens[g->s->n_tokens++] = id;
    g->token_shown = true;
    push_text(g, id, false);
    if (g->finish == REALM_FINISH_NONE && realm_chain_must_end(g->chain))
        realm_generation_finish(g, REALM_FINISH_STOP, REALM_OK, NULL);
    if (g->finish == REALM_FINISH_NONE && realm_generation_length(g) == g->max_new)
        realm_generation_finish(g, REALM_FINISH_LENGTH, REALM_OK, NULL);
}

/* ---- rewinding --------------------------------------------------------------------------------------------------- */

static void consume_held(realm_generation *g, size_t n) {
    realm_buf_consume(&g->held, n);
    if (g->base) realm_buf_consume(&g->unseen, n);
    g->carry = g->carry > n ? g->carry - n : 0;
    g->shown = 0;
}

static bool copy_text(realm_buf *to, const realm_buf *from) {
    realm_buf_reset(to);
    return from->len == 0 || realm_buf_append(to, from->data, from->len) == REALM_OK;
}

/* The text's state after the first n generated tokens, which lie behind `base`. */
static void replay_text(realm_generation *g, uint32_t n) {
    const realm_text_mark *base = g->base;
    g->detok = base->detok;
    g->carry = base->carry;
    if (!copy_text(&g->held, &base->held) || !copy_text(&g->unseen, &base->unseen)) text_failed(g);
    for (uint32_t i = base->n; i < n && g->finish == REALM_FINISH_NONE; i++) {
        push_text(g, g->s->tokens[g->n_prompt + i], false);
        consume_held(g, g->shown); /* it was shown before */
    }
}

/* A forced token has no event: what can be shown now waits for the next one, without the text of forced tokens. */
static void force_text(realm_generation *g, realm_token id) {
    push_text(g, id, true);
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

static void mark_base(realm_generation *g) {
    realm_text_mark *base = g->base;
    base->n = realm_generation_length(g);
    base->detok = g->detok;
    base->carry = g->carry;
    if (!copy_text(&base->held, &g->held) || !copy_text(&base->unseen, &g->unseen)) text_failed(g);
}

/* The tokens that were drawn since, an end token too, are forgotten, the forced ones seen. */
static void rewind_chain(realm_generation *g, uint32_t n_keep, const realm_token *forced, uint32_t n_forced) {
    realm_error err = {0};
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
    replay_text(g, n_keep);
    rewind_chain(g, n_keep, forced, n_forced);
    for (uint32_t i = 0; i < n_forced; i++) {
        g->s->tokens[g->s->n_tokens++] = forced[i];
        if (g->finish == REALM_FINISH_NONE) force_text(g, forced[i]);
    }
    if (g->s->n_past == g->s->n_tokens) g->s->n_past--; /* what comes next is drawn from the last one's logits */
    /* What is computed from here on counts against tokens_per_second, also where other tokens were. */
    g->n_priced = REALM_MIN(g->n_priced, g->n_prompt + n_keep - (n_forced == 0));
    mark_base(g);
    g->prompt_charged += n_forced;
    g->account->delta.prompt += n_forced;
    if (g->finish == REALM_FINISH_NONE && realm_generation_length(g) == g->max_new)
        realm_generation_finish(g, REALM_FINISH_LENGTH, REALM_OK, NULL);
    realm_free(forced);
    return true;
}

/* ---- publication --------------------------------------------------------------------------------------------------
 */

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
    consume_held(g, n);
}

static void add_event(realm_generation *g, const realm_event *ev, const realm_sample_job *job) {
    realm_event *dst = &g->events[g->n_events++];
    *dst = *ev;
    dst->top_at = g->n_pending_top;
    if (!job || g->n_top == 0) return;
    dst->n_top = job->n_top < g->n_top ? job->n_top : g->n_top;
    memcpy(g->top + g->n_pending_top, job->top, dst->n_top * sizeof *g->top);
    g->n_pending_top += dst->n_top;
}

static void add_step_events(realm_generation *g) {
    if (g->prompt_logprobs && g->step_rows > 0 && g->prompt_events == 0) {
        add_event(g, &(realm_event){.kind = REALM_EVENT_PROMPT, .id = g->s->tokens[0], .logprob = NAN}, NULL);
        g->prompt_events = 1;
    }
    for (uint32_t i = 0; i < g->n_jobs; i++) {
        const realm_sample_job *job = &g->e->jobs[g->first_job + i];
        if (job->status != REALM_OK) continue;
        if (job->target >= 0) {
            add_event(g, &(realm_event){.kind = REALM_EVENT_PROMPT, .id = job->id, .logprob = job->id_logprob}, job);
            g->prompt_events++;
        } else if (g->token_shown) {
            realm_event ev = {.kind = REALM_EVENT_TOKEN, .id = job->id};
            if (g->logprobs) ev.logprob = job->id_logprob;
            show(g, &ev, g->shown);
            add_event(g, &ev, g->logprobs ? job : NULL);
            g->n_published++;
        }
    }
}

/* Under g->mu. */
static void add_end_event(realm_generation *g) {
    realm_event ev = {.kind = REALM_EVENT_END, .finish = g->finish, .id = g->end_id};
    if (g->n_rows == 0 && realm_detok_finish(&g->detok, &g->held) == REALM_OK) {
        note_unseen(g, false);
        show(g, &ev, g->held.len);
    }
    add_event(g, &ev, NULL);
}

void realm_generation_publish(realm_generation *g) {
    const bool ended = g->state == REALM_GEN_ENDED || g->state == REALM_GEN_PARKED;
    realm_mutex_lock(&g->mu);
    bool was_empty = g->n_events == 0;
    if (!g->released && !g->end_pushed && (!g->rewinding || g->state == REALM_GEN_ENDED)) {
        if (g->n_rows == 0 && !g->rewinding) add_step_events(g);
        if (ended) add_end_event(g);
    }
    if (ended && !(g->rewinding && g->state == REALM_GEN_PARKED)) g->end_pushed = true;
    if (g->state == REALM_GEN_ENDED) g->final = true;
    g->counted_prompt = g->prompt_charged;
    g->counted_cached = g->cached_charged;
    g->counted_new = g->n_new;
    bool call = was_empty && g->n_events > 0 && !g->released && g->on_ready;
    g->in_callback = call;
    realm_mutex_unlock(&g->mu);
    g->step_rows = g->n_jobs = 0;
    g->token_shown = false;
    g->shown = 0;
    if (!call) return;
    g->on_ready(g->user);
    realm_mutex_lock(&g->mu);
    g->in_callback = false;
    realm_cond_broadcast(&g->callback_done);
    realm_mutex_unlock(&g->mu);
}
