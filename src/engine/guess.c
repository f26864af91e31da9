/* engine/guess.c - the next pass of a program in lockstep, computed before it asks.
 *
 * A program in lockstep looks at a row of logits, decides on a token and submits the next pass; until then the engine
 * has nothing to compute for it: alone it leaves the machine idle for a moment per token, beside others it misses every
 * second step. But what it will ask for can mostly be told: it asked for the most likely token the last times. So when
 * its pass ends, the pass behind the most likely token goes into the next step, while the program still decides. If it
 * then asks for exactly that, its pass has ended already, and the one after it goes into the next step; if it asks for
 * anything else, the guess is dropped and nothing else has happened: rows do not depend on how they were batched.
 *
 *      pass ends --> guess: RUNNING --its step--> GUESSED --the program asks for it--> the pass ends, next guess
 *                      |                             |
 *                      +-----------------------------+--asks for something else, the context is let go, nothing asked
 *                                                       in KEEP_NS, room is needed--> dropped
 *
 * The guess is a generation of the engine's own, one of a context, with a sequence of its own that has the context's
 * pages. It writes behind what the context has computed, in the same page, or into a page that the context gets when
 * the guess comes true. It has no consumer, counts neither against limits nor in the ledger, and is charged to its
 * account's share of the machine like any row; the tokens are charged when the program asks for them.
 *
 * Whether to guess. A wrong guess in a step that others need anyway costs a column; where the step is for guesses
 * alone, the program waits for it to end. So beside others half of the last passes have to have been foreseeable;
 * alone, where a wrong guess costs a step and a right one saves some hundredths of one, nearly all of the last hundred
 * and the last few without exception. A new context begins with what its account's others were like.
 */
#include <assert.h>
#include <string.h>

#include "base/alloc.h"
#include "engine/internal.h"

/* How long a computed one waits to be asked for; of all no more do than generations may run, the oldest go. */
#define KEEP_NS (100 * REALM_NS_PER_MS)
#define STREAK_ALONE 16u
#define ALONE 0.985f
#define BESIDE 0.5f
#define LOOK 0.25f /* below it the most likely token is looked for in one of LOOK_EVERY passes */
#define LOOK_EVERY 8u

void realm_foresight_init(realm_foresight *f) { *f = (realm_foresight){.lately = BESIDE, .long_run = ALONE}; }

bool realm_guess_looks(realm_generation *g) {
    if (g->guess) return true;
    if (!g->context || g->n_rows != 1 || g->logits->hidden) return false;
    realm_foresight *f = &g->context->foresight;
    if (f->n_passes == 0) *f = g->account->foresight;
    f->n_passes++;
    return f->lately >= LOOK || f->n_passes % LOOK_EVERY == 1;
}

/* ---- life -------------------------------------------------------------------------------------------------------- */

void realm_guess_drop(realm_engine *e, realm_generation *guess) {
    realm_generation **link = &e->guesses;
    while (*link != guess) link = &(*link)->next_parked;
    *link = guess->next_parked;
    if (guess->state == REALM_GEN_RUNNING) realm_schedule_unlink(e, guess);
    guess->state = REALM_GEN_ENDED;
    e->progress = true; /* something may fit now */
    realm_seq_keep_pages(&e->pool, guess->s, 0);
    realm_mutex_lock(&e->mu);
    if (guess->foresees) guess->foresees->guess = NULL;
    realm_mutex_unlock(&e->mu);
    realm_generation_unref(guess);
}

bool realm_guess_drop_all(realm_engine *e, const realm_account *a) {
    bool any = false;
    for (realm_generation *g = e->guesses, *next; g; g = next) {
        next = g->next_parked;
        if (a && g->account != a) continue;
        realm_guess_drop(e, g);
        any = true;
    }
    return any;
}

void realm_guess_sweep(realm_engine *e, uint64_t now_ns) {
    uint32_t n = 0;
    realm_mutex_lock(&e->mu);
    for (realm_generation *g = e->guesses; g; g = g->next_parked)
        if (!g->foresees) g->deadline_ns = 0;
    realm_mutex_unlock(&e->mu);
    for (realm_generation *g = e->guesses, *next; g; g = next) {
        next = g->next_parked;
        const bool blocked = g->state == REALM_GEN_RUNNING && g->blocked != REALM_PAGE_OK;
        if (e->stopping || blocked || now_ns >= g->deadline_ns || ++n > e->config.max_generations)
            realm_guess_drop(e, g);
        else if (g->state == REALM_GEN_GUESSED && (e->next_wake_ns == 0 || g->deadline_ns < e->next_wake_ns))
            e->next_wake_ns = g->deadline_ns;
    }
}

uint32_t realm_guess_running(const realm_engine *e) {
    uint32_t n = 0;
    for (const realm_generation *g = e->guesses; g; g = g->next_parked) n += g->state == REALM_GEN_RUNNING;
    return n;
}

/* With the context's tokens and pages; NULL without memory. The context is busy with a pass that has ended. */
static realm_generation *guess_new(realm_engine *e, realm_context *c) {
    realm_generation *g = realm_calloc(1, sizeof *g);
    if (!g) return NULL;
    realm_mutex_init(&g->mu, REALM_RANK_LEAF);
    realm_cond_init(&g->callback_done);
    atomic_init(&g->cancel, false);
    atomic_init(&g->refs, 1);
    g->e = e;
    g->account = c->account;
    g->guess = true;
    g->n_rows = 1;
    g->s = &g->own;
    g->own.guess = true;
    realm_mutex_lock(&e->mu);
    c->account->refs++;
    realm_mutex_unlock(&e->mu);
    if (!realm_seq_reserve(&g->own, c->seq.cap_tokens)) {
        realm_generation_unref(g);
        return NULL;
    }
    memcpy(g->own.tokens, c->seq.tokens, c->seq.n_tokens * sizeof *g->own.tokens);
    g->own.n_tokens = c->seq.n_tokens;
    realm_seq_share_pages(&e->pool, &g->own, &c->seq);
    realm_seq_pin_present(&e->pool, &g->own); /* all, as the context ran: none is lost before the guess's step */
    g->own.n_past = c->seq.n_past;
    g->foresees = c;
    g->next_parked = e->guesses;
    e->guesses = g;
    c->guess = g; /* nobody else looks while the context is busy */
    return g;
}

/* ---- when to guess ----------------------------------------------------------------------------------------------- */

/* Whether there is a next step without guesses. */
static bool others_run(const realm_engine *e) {
    for (uint32_t i = 0; i < e->n_running; i++) {
        const realm_generation *g = e->running[i];
        if (g->n_rows == 0 && !g->stalled && !g->waits_share) return true;
    }
    return false;
}

/* Room that nobody else waits for. Accounts with a limit of tokens a second have no use for speed. */
static bool has_room(realm_engine *e, const realm_context *c) {
    const realm_seq *s = &c->seq;
    uint32_t n = e->n_running + 1;
    for (uint32_t i = 0; i < e->n_ring; i++) n += e->ring[i]->n_queued;
    for (uint32_t i = 0; i < e->n_running; i++)
        if (e->running[i]->blocked != REALM_PAGE_OK) return false;
    if (n > e->config.max_generations || s->n_tokens >= e->n_ctx || s->n_past != s->n_tokens) return false;
    if (c->account->share.tokens_per_second > 0) return false;
    if (s->n_tokens < s->n_pages * REALM_KV_PAGE_TOKENS) return true;
    return c->account->owner.max == UINT32_MAX && realm_pool_available(&e->pool) > n;
}

static void begin(realm_engine *e, realm_context *c, realm_token next) {
    realm_generation *g = c->guess ? c->guess : guess_new(e, c);
    if (!g) return;
    const uint32_t n = g->own.n_tokens + 1;
    if (!g->logits) g->logits = realm_logits_new(e, 1, false);
    if (!g->logits || (n > g->own.cap_tokens && !realm_seq_reserve(&g->own, REALM_MIN(2 * n, e->n_ctx)))) {
        realm_guess_drop(e, g);
        return;
    }
    g->own.tokens[g->own.n_tokens++] = next;
    g->n_prompt = n;
    g->n_priced = g->own.n_past;
    g->lent_edits = c->edits; /* nobody else changes them while it is busy */
    g->deadline_ns = UINT64_MAX;
    realm_schedule_start_guess(e, g);
}

void realm_guess_next(realm_engine *e, realm_context *c, realm_token best) {
    realm_foresight *f = &c->foresight;
    f->at = best >= 0 ? c->seq.n_tokens : 0;
    f->best = best;
    const bool likely =
        others_run(e) ? f->streak > 0 && f->lately >= BESIDE : f->streak >= STREAK_ALONE && f->long_run >= ALONE;
    const bool ends = best < 0 || realm_tokenizer_is_end(e->tokenizer, best); /* behind it programs seldom go on */
    if (likely && !ends && !e->stopping && has_room(e, c))
        begin(e, c, best);
    else if (c->guess)
        realm_guess_drop(e, c->guess);
}

/* ---- its step, and what became of it ----------------------------------------------------------------------------- */

void realm_guess_commit(realm_engine *e, realm_generation *guess) {
    assert(guess->n_jobs == 1 && guess->own.n_past == guess->own.n_tokens);
    guess->logits->best = e->jobs[guess->first_job].id;
    realm_schedule_unlink(e, guess);
    guess->state = REALM_GEN_GUESSED;
    guess->deadline_ns = realm_clock_ns() + KEEP_NS;
    guess->step_rows = guess->n_jobs = 0;
    e->n_guesses++;
}

static void note(realm_foresight *f, bool right) {
    const float was = right ? 1.0f : 0.0f;
    f->streak = right ? f->streak + 1 : 0;
    f->lately += (was - f->lately) / 8;
    f->long_run += (was - f->long_run) / 128;
}

/* What its context's account does next is told from what it did last. */
static void learn(realm_foresight *f, const realm_generation *g) {
    if (f->at == 0) return;
    const bool right = g->n_rows == 1 && g->n_prompt == f->at + 1 && g->s->tokens[f->at] == f->best;
    f->at = 0;
    note(f, right);
    note(&g->account->foresight, right);
}

/* Whether what was computed is what it wants. */
static bool comes_true(const realm_generation *guess, const realm_generation *g) {
    const realm_seq *s = g->s, *have = &guess->own;
    return guess->state == REALM_GEN_GUESSED && g->n_rows == 1 && !g->logits->hidden && s->n_tokens == have->n_tokens &&
           s->n_past + 1 == s->n_tokens && g->context->edits == guess->lent_edits + 1 &&
           s->tokens[s->n_tokens - 1] == have->tokens[s->n_tokens - 1] &&
           !atomic_load_explicit(&g->cancel, memory_order_relaxed);
}

static void take_over(realm_engine *e, realm_generation *g, realm_generation *guess) {
    realm_context *c = g->context;
    realm_seq *s = g->s;
    realm_logits *rows = g->logits;
    realm_seq_share_pages(&e->pool, s, &guess->own);
    s->n_past = s->n_tokens;
    if (s->n_past % REALM_KV_PAGE_TOKENS == 0) realm_prefix_note(&e->pool, &g->account->owner, s);
    g->logits = guess->logits;
    guess->logits = rows;
    e->n_guesses_right++;
    g->seq = ++e->next_seq;
    g->prompt_charged = g->n_charge;
    g->account->delta.prompt += g->n_charge;
    realm_engine_end(e, g, REALM_FINISH_STOP, REALM_OK, NULL);
    realm_guess_next(e, c, g->logits->best);
}

bool realm_guess_settle(realm_engine *e) {
    bool any = false;
    for (realm_generation *g = e->asked, *next; g; g = next) {
        next = g->next_parked;
        realm_context *c = g->context;
        realm_generation *guess = c->guess;
        learn(&c->foresight, g);
        if (!guess) continue;
        if (comes_true(guess, g) && !e->stopping) {
            take_over(e, g, guess);
            any = true;
            continue;
        }
        realm_guess_drop(e, guess);
    }
    e->asked = NULL;
    return any;
}
