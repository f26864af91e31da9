/* engine/context.c - token sequences that outlive generations, and prefixes that the operator publishes.
 *
 * An idle context is its lock's: any thread edits tokens and gives pages back, which is a matter of counting
 * references. A generation that is submitted with it takes the sequence over as it is, nothing is copied, and the
 * engine's thread hands it back before END can be seen. `shown` is what others are told meanwhile: the tokens up to
 * the prompt's end, which no generation changes.
 *
 * A published prefix is a context of the account `everybody`, computed once and kept as long as the engine: its full
 * pages have keys that every account's sequences can find (prefix.c), and they never leave the pool.
 */
#include <string.h>

#include "base/alloc.h"
#include "engine/internal.h"

/* ---- life -------------------------------------------------------------------------------------------------------- */

static realm_context *context_new(realm_account *a) {
    realm_context *c = realm_calloc(1, sizeof *c);
    if (!c) return NULL;
    c->e = a->e;
    c->account = a;
    atomic_init(&c->refs, 1);
    realm_foresight_init(&c->foresight);
    realm_mutex_init(&c->mu, REALM_RANK_CONTEXT);
    return c;
}

static void context_count(realm_context *c) {
    realm_mutex_lock(&c->e->mu);
    c->account->refs++;
    c->e->n_contexts++;
    realm_mutex_unlock(&c->e->mu);
}

realm_status realm_context_open(realm_engine *e, realm_account *a, realm_context **out, realm_error *err) {
    *out = NULL;
    if (a->e != e) return realm_error_set(err, REALM_E_INVALID, "the account is not of this engine");
    realm_context *c = context_new(a);
    if (!c) return realm_error_set(err, REALM_E_NOMEM, "no memory for a context");
    context_count(c);
    *out = c;
    return REALM_OK;
}

realm_context *realm_context_retain(realm_context *c) {
    /* relaxed: who retains holds it already */
    atomic_fetch_add_explicit(&c->refs, 1, memory_order_relaxed);
    return c;
}

void realm_context_release(realm_context *c) {
    /* acq_rel: the last holder sees all that the others did before it frees. */
    if (!c || atomic_fetch_sub_explicit(&c->refs, 1, memory_order_acq_rel) != 1) return;
    realm_engine *e = c->e;
    bool had_pages = c->seq.n_pages > 0;
    realm_seq_release(&e->pool, &c->seq);
    realm_mutex_lock(&e->mu);
    if (c->guess) {
        c->guess->foresees = NULL; /* the engine drops it */
        had_pages = true;
    }
    realm_account_unref_locked(c->account);
    e->n_contexts--;
    realm_mutex_unlock(&e->mu);
    realm_mutex_destroy(&c->mu);
    realm_free(c);
    if (had_pages) realm_engine_wake(e); /* something may fit now */
}

/* ---- editing ----------------------------------------------------------------------------------------------------- */

static realm_status refuse_busy(realm_error *err) {
    return realm_error_set(err, REALM_E_BUSY, "a generation or forward pass runs on the context");
}

static realm_status check_tokens(const realm_engine *e, const realm_token *tokens, size_t n, realm_error *err) {
    for (size_t i = 0; i < n; i++)
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= e->n_vocab)
            return realm_error_set(err, REALM_E_RANGE, "token %zu is %d, the vocabulary has %u", i, tokens[i],
                                   e->n_vocab);
    return REALM_OK;
}

/* Idle, c->mu held: room for so many tokens, with some to spare, as programs append one at a time. */
static realm_status reserve(realm_context *c, uint64_t n, realm_error *err) {
    if (n > c->e->n_ctx)
        return realm_error_set(err, REALM_E_CONTEXT, "the context would have %llu tokens, %u are the most",
                               (unsigned long long)n, c->e->n_ctx);
    if (n <= c->seq.cap_tokens) return REALM_OK;
    uint64_t cap = REALM_MAX(n, (uint64_t)c->seq.cap_tokens * 2);
    if (!realm_seq_reserve(&c->seq, (uint32_t)REALM_MIN(cap, c->e->n_ctx)))
        return realm_error_set(err, REALM_E_NOMEM, "no memory for a context of %llu tokens", (unsigned long long)n);
    return REALM_OK;
}

static void append(realm_context *c, const realm_token *tokens, size_t n) {
    if (n > 0) memcpy(c->seq.tokens + c->seq.n_tokens, tokens, n * sizeof *tokens);
    c->seq.n_tokens += (uint32_t)n;
    c->edits++;
}

realm_status realm_context_append(realm_context *c, const realm_token *tokens, size_t n, realm_error *err) {
    realm_status s = check_tokens(c->e, tokens, n, err);
    if (s != REALM_OK) return s;
    realm_mutex_lock(&c->mu);
    s = c->busy ? refuse_busy(err) : reserve(c, (uint64_t)c->seq.n_tokens + n, err);
    if (s == REALM_OK) append(c, tokens, n);
    realm_mutex_unlock(&c->mu);
    return s;
}

realm_status realm_context_truncate(realm_context *c, size_t n_tokens, realm_error *err) {
    realm_status s = REALM_OK;
    realm_mutex_lock(&c->mu);
    if (c->busy)
        s = refuse_busy(err);
    else if (n_tokens > c->seq.n_tokens)
        s = realm_error_set(err, REALM_E_RANGE, "the context has %u tokens, %zu cannot be kept", c->seq.n_tokens,
                            n_tokens);
    if (s == REALM_OK) {
        realm_seq_truncate(&c->e->pool, &c->seq, (uint32_t)n_tokens);
        c->edits++;
    }
    realm_mutex_unlock(&c->mu);
    return s;
}

realm_status realm_context_fork(realm_context *c, realm_context **out, realm_error *err) {
    *out = NULL;
    realm_context *f = context_new(c->account);
    if (!f) return realm_error_set(err, REALM_E_NOMEM, "no memory for a context");
    realm_status s = REALM_OK;
    realm_mutex_lock(&c->mu);
    const realm_seq *from = &c->seq;
    if (c->busy) {
        s = refuse_busy(err);
    } else if (!realm_seq_reserve(&f->seq, from->n_tokens)) {
        s = realm_error_set(err, REALM_E_NOMEM, "no memory for a context of %u tokens", from->n_tokens);
    } else {
        append(f, from->tokens, from->n_tokens);
        realm_seq_share_pages(&c->e->pool, &f->seq, from);
        f->seq.n_past = from->n_past;
    }
    realm_mutex_unlock(&c->mu);
    if (s != REALM_OK) {
        realm_seq_release(&c->e->pool, &f->seq);
        realm_mutex_destroy(&f->mu);
        realm_free(f);
        return s;
    }
    context_count(f);
    *out = f;
    return REALM_OK;
}

/* ---- asking ------------------------------------------------------------------------------------------------------ */

/* c->mu held, idle. */
static void look(realm_context *c, realm_context_info *out) {
    *out = (realm_context_info){
        .n_tokens = c->seq.n_tokens, .n_computed = c->seq.n_past, .pages = c->seq.n_pages, .busy = c->busy};
    realm_mutex_lock(&c->e->pool.mu);
    for (uint32_t i = 0; i < c->seq.n_pages; i++) {
        out->shared_pages += c->seq.pages[i]->refs - c->seq.pages[i]->guesses > 1;
        out->suspended |= c->seq.pages[i]->place != REALM_PAGE_IN_POOL;
    }
    realm_mutex_unlock(&c->e->pool.mu);
}

void realm_context_get_info(const realm_context *c, realm_context_info *out) {
    realm_context *d = (realm_context *)(uintptr_t)c; /* only its lock changes */
    realm_mutex_lock(&d->mu);
    if (d->busy)
        *out = d->shown;
    else
        look(d, out);
    realm_mutex_unlock(&d->mu);
}

size_t realm_context_get_tokens(const realm_context *c, size_t from, realm_token *out, size_t max) {
    realm_context *d = (realm_context *)(uintptr_t)c;
    realm_mutex_lock(&d->mu);
    size_t n = d->busy ? d->shown.n_tokens : d->seq.n_tokens;
    n = from < n ? REALM_MIN(n - from, max) : 0;
    if (n > 0) memcpy(out, d->seq.tokens + from, n * sizeof *out);
    realm_mutex_unlock(&d->mu);
    return n;
}

/* ---- generations ------------------------------------------------------------------------------------------------- */

realm_status realm_context_begin(realm_context *c, const realm_generation_params *p, realm_error *err) {
    realm_status s = REALM_OK;
    realm_mutex_lock(&c->mu);
    const uint64_t n = (uint64_t)c->seq.n_tokens + p->n_prompt, n_ctx = c->e->n_ctx;
    const uint64_t more = p->forward ? 0 : p->max_tokens > 0 ? p->max_tokens : n_ctx;
    if (c->busy)
        s = refuse_busy(err);
    else if (n < (p->forward ? p->n_rows : 1u))
        s = realm_error_set(err, REALM_E_RANGE, "the context has %llu tokens with the prompt, %u are to be computed",
                            (unsigned long long)n, p->forward ? p->n_rows : 1u);
    else if (!p->forward && n == n_ctx)
        s = realm_error_set(err, REALM_E_CONTEXT, "the context has %llu tokens, %llu leave no room for an answer",
                            (unsigned long long)n, (unsigned long long)n_ctx);
    else
        s = reserve(c, n > n_ctx ? n : REALM_MIN(n + more, n_ctx), err);
    if (s == REALM_OK) {
        append(c, p->prompt, p->n_prompt);
        c->busy = true;
        look(c, &c->shown);
    }
    realm_mutex_unlock(&c->mu);
    return s;
}

void realm_context_undo_begin(realm_context *c, uint32_t n_prompt) {
    realm_mutex_lock(&c->mu);
    c->seq.n_tokens -= n_prompt; /* none of them is computed */
    c->edits--;
    c->busy = false;
    realm_mutex_unlock(&c->mu);
}

void realm_context_end(realm_context *c) {
    realm_seq_unpin(&c->e->pool, &c->seq);
    realm_mutex_lock(&c->mu);
    realm_seq_truncate(&c->e->pool, &c->seq, c->seq.n_tokens);
    c->busy = false;
    realm_mutex_unlock(&c->mu);
}

void realm_context_lend(realm_context *c, realm_generation *g) {
    realm_seq_unpin(&c->e->pool, &c->seq);
    realm_mutex_lock(&c->mu);
    realm_mutex_lock(&g->mu);
    bool lend = g->lent = !g->rewinding;
    realm_mutex_unlock(&g->mu);
    if (lend) {
        realm_seq_truncate(&c->e->pool, &c->seq, c->seq.n_tokens);
        g->lent_edits = c->edits;
        g->s = &g->own;
        c->busy = false;
    }
    realm_mutex_unlock(&c->mu);
}

/* ---- published prefixes ------------------------------------------------------------------------------------------ */

typedef struct waiter {
    realm_mutex mu;
    realm_cond cond;
    bool ready;
} waiter;

static void wake_waiter(void *user) {
    waiter *w = user;
    realm_mutex_lock(&w->mu);
    w->ready = true;
    realm_cond_signal(&w->cond);
    realm_mutex_unlock(&w->mu);
}

/* Computes what the context lacks; waits for it. */
static realm_status compute(realm_context *c, realm_error *err) {
    waiter w = {.ready = false};
    realm_event_batch batch;
    realm_generation *g;
    realm_generation_params p = {
        .account = c->account, .context = c, .forward = true, .n_rows = 1, .on_ready = wake_waiter, .user = &w};
    realm_mutex_init(&w.mu, REALM_RANK_LEAF);
    realm_cond_init(&w.cond);
    realm_event_batch_init(&batch);
    realm_status s = realm_generation_submit(c->e, &p, &g, err);
    if (s == REALM_OK) {
        realm_mutex_lock(&w.mu);
        while (!w.ready) realm_cond_wait(&w.cond, &w.mu);
        realm_mutex_unlock(&w.mu);
        (void)realm_generation_poll(g, &batch);
        if (batch.n_events == 0)
            s = realm_error_set(err, batch.status, "%s", batch.error.text);
        else if (batch.events[0].finish == REALM_FINISH_CANCELLED)
            s = realm_error_set(err, REALM_E_CLOSED, "the engine is closing");
        else if (batch.status != REALM_OK)
            s = realm_error_set(err, batch.status, "%s", batch.error.text);
        realm_generation_release(g);
    }
    realm_event_batch_release(&batch);
    realm_cond_destroy(&w.cond);
    realm_mutex_destroy(&w.mu);
    return s;
}

/* How many of the prefix's pages are those of one that is published already. */
static uint32_t pages_there(const realm_engine *e, const realm_token *tokens, uint32_t n) {
    uint32_t most = 0;
    for (const realm_context *o = e->published; o; o = o->next_published) {
        uint32_t same = 0;
        while (same < n && same < o->seq.n_tokens && o->seq.tokens[same] == tokens[same]) same++;
        most = REALM_MAX(most, same / REALM_KV_PAGE_TOKENS);
    }
    return most;
}

/* With e->publishing set. Its pages can be found while they are computed; where that fails they are hidden again. */
static realm_status publish(realm_engine *e, const realm_token *tokens, uint32_t n, realm_error *err) {
    realm_context *c = NULL;
    const uint32_t there = pages_there(e, tokens, n), more = n / REALM_KV_PAGE_TOKENS - there;
    if (more == 0) return REALM_OK;
    const uint64_t pages = (uint64_t)e->n_published_pages + more;
    if (pages > e->pool.n / 2)
        return realm_error_set(err, REALM_E_LIMIT, "published prefixes would take %llu of %u KV pages",
                               (unsigned long long)pages, e->pool.n);
    realm_status s = realm_context_open(e, e->everybody, &c, err);
    if (s == REALM_OK) s = realm_context_append(c, tokens, n, err);
    if (s == REALM_OK) s = compute(c, err);
    if (s != REALM_OK) {
        if (c) realm_prefix_hide(&e->pool, &c->seq, there);
        realm_context_release(c);
        return s;
    }
    realm_mutex_lock(&e->mu);
    c->next_published = e->published;
    e->published = c;
    e->n_published_pages += more;
    realm_mutex_unlock(&e->mu);
    return REALM_OK;
}

realm_status realm_engine_publish_prefix(realm_engine *e, const realm_token *tokens, size_t n, realm_error *err) {
    const size_t n_full = n / REALM_KV_PAGE_TOKENS * REALM_KV_PAGE_TOKENS;
    if (n_full == 0)
        return realm_error_set(err, REALM_E_RANGE, "a prefix of %zu tokens has no full page of %u", n,
                               REALM_KV_PAGE_TOKENS);
    if (n_full > e->n_ctx)
        return realm_error_set(err, REALM_E_CONTEXT, "the prefix has %zu tokens, a context at most %u", n, e->n_ctx);
    realm_mutex_lock(&e->mu);
    while (e->publishing) realm_cond_wait(&e->published_cond, &e->mu);
    e->publishing = true;
    realm_mutex_unlock(&e->mu);
    realm_status s = publish(e, tokens, (uint32_t)n_full, err);
    realm_mutex_lock(&e->mu);
    e->publishing = false;
    realm_cond_signal(&e->published_cond);
    realm_mutex_unlock(&e->mu);
    return s;
}
