/* engine/generation.c - a generation's life: submit, a sampled token, the end, cancel, release.
 *
 * What is submitted is checked whole, gets all the memory that it will ever need on the caller's thread, and is handed
 * to the engine's thread through its inbox. What it says lies in events.c, its text in text.c, taking tokens back in
 * rewind.c.
 *
 * A forward pass has no text: its rows stand in an object of their own and its one event is END.
 */
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
    g->constrained = st == REALM_OK && g->max_new > 0 && realm_chain_has_grammar(g->chain);
    return st;
}

/* How many tokens it may add to n. */
static uint32_t room_for_new(const realm_engine *e, const realm_generation_params *p, uint32_t n) {
    if (p->forward || p->prompt_only) return 0;
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
    /* Cancelled ones do not count, but no more of them than the limit may wait to be swept: they hold places. */
    const uint32_t most = a->limits.generations, n = a->n_generations - a->n_leaving;
    if (most > 0 && (n >= most || a->n_leaving > most))
        return realm_error_set(err, REALM_E_CROWDED,
                               "limit generations: %u are running or queued and %u being cancelled, %u are allowed", n,
                               a->n_leaving, most);
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
        realm_engine_wake_locked(e);
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

/* ---- a token, the end ------------------------------------------------------------------------------------------- */

void realm_generation_finish(realm_generation *g, realm_finish finish, realm_status status, const char *text) {
    g->finish = finish;
    g->status = status;
    snprintf(g->status_text, sizeof g->status_text, "%.*s", (int)sizeof g->status_text - 1, text ? text : "");
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
    realm_text_push(g, id);
    if (g->finish == REALM_FINISH_NONE && realm_chain_must_end(g->chain))
        realm_generation_finish(g, REALM_FINISH_STOP, REALM_OK, NULL);
    if (g->finish == REALM_FINISH_NONE && realm_generation_length(g) == g->max_new)
        realm_generation_finish(g, REALM_FINISH_LENGTH, REALM_OK, NULL);
}

/* ---- cancel, release -------------------------------------------------------------------------------------------- */

void realm_generation_cancel(realm_generation *g) {
    realm_engine *e = g->e;
    atomic_store_explicit(&g->cancel, true, memory_order_relaxed);
    realm_mutex_lock(&e->mu);
    if (!g->leaving && !g->gone) {
        g->leaving = true;
        g->account->n_leaving++;
    }
    realm_engine_wake_locked(e);
    realm_mutex_unlock(&e->mu);
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
