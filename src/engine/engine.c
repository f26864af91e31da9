/* engine/engine.c - the engine's thread: intake, step, publication.
 *
 *      loop:  intake    inbox -> queues (under mu; sleeps here while nothing can be done)
 *             sweep, admit, build        schedule.c
 *             run       one forward pass over the batch
 *             sample    the wanted rows, over the backend's threads when there are several
 *             commit    tokens into generations, ends
 *             publish   counts under mu, all at once; then events, generation by generation; then callbacks: while a
 *                       step follows by a compute thread that waits for it, as waking a consumer is a system call
 *             lend      when nothing is left to compute: the thread, to whoever answers these events (config.idle)
 *
 * Counts come before events, so a consumer that has seen an end finds its tokens counted. A step that fails ends the
 * generations that were in it with the backend's error; the engine goes on with the others. Arrays are sized at opening
 * by max_generations, max_queued and chunk_tokens; all that the loop itself allocates are records of pages, 256 at a
 * time, and memory for pages that leave the pool.
 */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/log.h"
#include "crypto/crypto.h"
#include "engine/internal.h"

#define MAX_GENERATIONS_DEFAULT 64u
#define MAX_QUEUED_DEFAULT 1024u
#define CHUNK_TOKENS_DEFAULT 256u
#define MAX_GENERATIONS_MOST 4096u
#define MAX_QUEUED_MOST (1u << 20)
#define CHUNK_TOKENS_MOST 8192u
#define PAGES_MOST (1u << 24)
#define SPILL_DIR_BYTES_DEFAULT (UINT64_C(16) << 30)
#define PARALLEL_MIN_LOGITS 65536u /* below this much work waking threads costs more than it saves */

void realm_engine_wake_locked(realm_engine *e) {
    e->wake = true;
    if (e->lending) /* nobody waits for the condition: the thread is at work for others */
        e->config.idle.recall(e->config.idle.user);
    else
        realm_cond_signal(&e->cond);
}

void realm_engine_wake(realm_engine *e) {
    realm_mutex_lock(&e->mu);
    realm_engine_wake_locked(e);
    realm_mutex_unlock(&e->mu);
}

void realm_engine_touch(realm_engine *e, realm_generation *g) {
    if (g->touched) return;
    g->touched = true;
    e->touched[e->n_touched++] = g;
}

/* A parked one is in no list any more. */
void realm_engine_retire(realm_engine *e, realm_generation *g) {
    if (g->state != REALM_GEN_PARKED) realm_schedule_unlink(e, g);
    realm_mask_drop(g);
    if (!g->context) realm_seq_keep_pages(&e->pool, g->s, 0);
    g->state = REALM_GEN_ENDED;
    e->n_ended += g->finish == REALM_FINISH_STOP || g->finish == REALM_FINISH_LENGTH;
    e->n_cancelled += g->finish == REALM_FINISH_CANCELLED;
    e->n_failed += g->finish == REALM_FINISH_ERROR;
    e->progress = true;
    realm_engine_touch(e, g);
}

void realm_engine_end(realm_engine *e, realm_generation *g, realm_finish finish, realm_status status,
                      const char *text) {
    if (g->guess) {
        realm_guess_drop(e, g);
        return;
    }
    if (g->state == REALM_GEN_ENDED) return;
    realm_generation_finish(g, finish, status, text);
    realm_engine_finished(e, g);
}

void realm_engine_finished(realm_engine *e, realm_generation *g) {
    if (realm_generation_settles(g)) {
        realm_engine_retire(e, g);
        return;
    }
    realm_schedule_unlink(e, g);
    realm_seq_unpin(&e->pool, g->s);
    g->state = REALM_GEN_PARKED;
    g->next_parked = e->parked;
    e->parked = g;
    e->n_parked++;
    realm_engine_touch(e, g);
}

/* ---- a step ----------------------------------------------------------------------------------------------------- */

/* Takes what other threads left; false when the thread is to end. */
static bool intake(realm_engine *e) {
    realm_mutex_lock(&e->mu);
    while (!e->progress && !e->wake) {
        if (e->next_wake_ns == 0)
            realm_cond_wait(&e->cond, &e->mu);
        else if (!realm_cond_wait_until(&e->cond, &e->mu, e->next_wake_ns))
            break;
    }
    e->wake = false;
    e->stopping = e->shut;
    realm_generation *g = e->inbox_head;
    e->inbox_head = e->inbox_tail = NULL;
    for (realm_generation *next; g; g = next) {
        next = g->next;
        realm_schedule_enqueue(e, g, false);
        if (!g->context) continue;
        g->next_parked = e->asked;
        e->asked = g;
    }
    for (uint32_t i = 0; i < e->n_ring; i++) {
        uint64_t limit = e->ring[i]->limits.kv_tokens;
        uint64_t pages = limit / REALM_KV_PAGE_TOKENS;
        e->ring[i]->owner.max = limit == 0 || pages > UINT32_MAX ? UINT32_MAX : (uint32_t)pages;
        e->ring[i]->share.weight = e->ring[i]->owner.weight = realm_account_weight(&e->ring[i]->limits);
        e->ring[i]->share.tokens_per_second = e->ring[i]->limits.tokens_per_second;
    }
    bool go_on = !e->stopping || e->n_ring > 0 || e->parked;
    realm_mutex_unlock(&e->mu);
    e->progress = false;
    return go_on;
}

typedef struct sample_work {
    realm_engine *e;
    uint32_t n_workers;
} sample_work;

/* A forward pass's: nothing is drawn. */
static void give_row(realm_sampler *s, realm_sample_job *job) {
    if (!job->lent) memcpy(job->copy_to, job->logits, s->n_vocab * sizeof *job->copy_to);
    if (job->look) realm_sampler_run(s, job); /* without a chain: the most likely */
    if (!job->look || job->status != REALM_OK) job->id = -1;
    job->status = REALM_OK;
}

static void sample_part(void *user, uint32_t worker) {
    const sample_work *w = user;
    uint64_t before = realm_clock_ns();
    for (uint32_t i = worker; i < w->e->n_jobs; i += w->n_workers) {
        realm_sample_job *job = &w->e->jobs[i];
        if (job->copy_to)
            give_row(&w->e->samplers[worker], job);
        else
            realm_sampler_run(&w->e->samplers[worker], job);
        const uint64_t now = realm_clock_ns();
        job->took_ns = now - before;
        before = now;
    }
}

/* Those that wanted one row find it where it is. */
static void lend_rows(realm_engine *e) {
    for (uint32_t i = 0; i < e->batch.n_seqs; i++) {
        const realm_generation *g = e->batch_gens[i];
        if (g->n_rows != 1 || g->n_jobs != 1) continue;
        realm_logits_lend(g->logits, e->backend->v->logits(e->plan, g->first_job));
        e->jobs[g->first_job].lent = true;
    }
}

static void sample(realm_engine *e) {
    for (uint32_t i = 0; i < e->n_jobs; i++) {
        e->jobs[i].logits = e->backend->v->logits(e->plan, i);
        e->jobs[i].lent = false;
    }
    lend_rows(e);
    sample_work work = {e, REALM_MIN(e->n_jobs, e->n_samplers)};
    if (work.n_workers <= 1 || (uint64_t)e->n_jobs * e->n_vocab < PARALLEL_MIN_LOGITS) {
        work.n_workers = 1;
        sample_part(&work, 0);
    } else {
        e->backend->v->parallel(e->backend, work.n_workers, sample_part, &work);
    }
}

/* Hidden states are still in the plan. */
static void keep_hidden(realm_engine *e, realm_generation *g) {
    const size_t d = realm_model_hparams(e->model)->d_model;
    const uint64_t before = realm_clock_ns();
    for (uint32_t i = 0; i < g->n_jobs; i++) {
        realm_sample_job *job = &e->jobs[g->first_job + i];
        size_t at = (size_t)(job->copy_to - g->logits->rows) / e->n_vocab;
        job->status = realm_model_hidden(e->model, e->plan, g->first_job + i, g->logits->hidden + at * d, &job->error);
    }
    if (g->n_jobs > 0) e->jobs[g->first_job].took_ns += realm_clock_ns() - before;
}

static void commit(realm_engine *e, realm_generation *g) {
    realm_seq *s = g->s;
    const uint32_t full = s->n_past / REALM_KV_PAGE_TOKENS;
    s->n_past += g->step_rows;
    if (g->guess) {
        realm_guess_commit(e, g);
        return;
    }
    if (g->share && g->share->leader == g && s->n_past >= g->n_prompt) realm_share_fill(g->share, g);
    if (s->n_past / REALM_KV_PAGE_TOKENS > full) realm_prefix_note(&e->pool, &g->account->owner, s);
    for (uint32_t i = 0; g->n_rows > 0 && i < g->n_jobs; i++) {
        const realm_sample_job *job = &e->jobs[g->first_job + i];
        if (job->status != REALM_OK) realm_engine_end(e, g, REALM_FINISH_ERROR, job->status, job->error.text);
    }
    if (g->n_rows > 0) {
        if (s->n_past < s->n_tokens || g->state == REALM_GEN_ENDED) return;
        if (g->n_rows == 1) g->logits->best = e->jobs[g->first_job].id;
        realm_engine_end(e, g, REALM_FINISH_STOP, REALM_OK, NULL);
        if (g->context) realm_guess_next(e, g->context, g->logits->best);
        return;
    }
    if (s->n_past < s->n_tokens) return;
    if (g->max_new == 0) {
        realm_engine_end(e, g, REALM_FINISH_LENGTH, REALM_OK, NULL);
        return;
    }
    if (g->n_jobs == 0) return;
    const realm_sample_job *job = &e->jobs[g->first_job + g->n_jobs - 1];
    realm_mask_note(g);
    if (job->status != REALM_OK) {
        realm_engine_end(e, g, REALM_FINISH_ERROR, job->status, job->error.text);
        return;
    }
    g->account->delta.completion++;
    realm_generation_accept(g, job->id);
    if (g->finish != REALM_FINISH_NONE) realm_engine_finished(e, g);
}

/* Of the step: each generation's sampling goes to its account, the rest by rows. */
static void charge_time(realm_engine *e, uint64_t began, uint64_t computed) {
    const uint64_t now = realm_clock_ns();
    for (uint32_t i = 0; i < e->n_wants; i++) {
        const realm_generation *g = e->running[i]; /* still as when the step was built */
        for (uint32_t j = 0; e->wants[i].used > 0 && j < g->n_jobs; j++)
            e->wants[i].sample_ns += (double)e->jobs[g->first_job + j].took_ns;
    }
    realm_fair_charge(&e->fair, e->wants, e->n_wants, (double)(computed - began), (double)(now - computed), now);
}

static void run_step(realm_engine *e) {
    realm_error err = {0};
    uint64_t start = realm_clock_ns();
    realm_logits_keep(e, ++e->n_runs - 2);
    realm_backend_turn_begin(e->backend);
    const uint64_t own = realm_clock_ns();
    realm_status s = e->backend->v->run(e->backend, e->plan, &e->batch, &err);
    e->progress = true;
    if (s != REALM_OK) {
        realm_backend_turn_end(e->backend);
        realm_log_warn("engine", "a step of %u rows failed: %s", e->batch.n_rows, err.text);
        for (uint32_t i = 0; i < e->batch.n_seqs; i++) {
            realm_generation *g = e->batch_gens[i];
            g->n_jobs = 0;
            g->step_rows = 0;
            realm_engine_end(e, g, REALM_FINISH_ERROR, s, err.text);
        }
        return;
    }
    const uint64_t computed = realm_clock_ns();
    sample(e);
    for (uint32_t i = 0; i < e->batch.n_seqs; i++)
        if (e->batch_gens[i]->n_rows > 0 && e->batch_gens[i]->logits->hidden) keep_hidden(e, e->batch_gens[i]);
    realm_backend_turn_end(e->backend);
    charge_time(e, own, computed);
    for (uint32_t i = 0; i < e->batch.n_seqs; i++) commit(e, e->batch_gens[i]);
    e->step_ns = realm_clock_ns() - start;
}

static void charge(realm_engine *e, realm_generation *g) {
    realm_account *a = g->account;
    a->counts.prompt += a->delta.prompt;
    a->counts.cached += a->delta.cached;
    a->counts.completion += a->delta.completion;
    if (a != e->everybody) { /* published prefixes are nobody's */
        e->total.prompt += a->delta.prompt;
        e->total.cached += a->delta.cached;
        e->total.completion += a->delta.completion;
    }
    a->delta = (realm_token_counts){0};
    if (g->state != REALM_GEN_ENDED) return;
    a->n_generations--;
    a->n_leaving -= g->leaving;
    e->n_alive--;
    g->leaving = false;
    g->gone = true;
}

/* Idle before its END can be seen. */
static void give_back_context(realm_generation *g) {
    realm_context *c = g->context;
    if (!c || g->s == &g->own) return; /* lent already */
    if (g->state == REALM_GEN_PARKED) {
        realm_context_lend(c, g);
    } else if (g->state == REALM_GEN_ENDED) {
        g->s = &g->own;
        realm_context_end(c);
        if (g->run_ahead > 0) return; /* a rewind may be looking at it */
        g->context = NULL;
        realm_context_release(c);
    }
}

/* Under mu: lends this thread when nobody has anything to compute but those who will be told now; otherwise the one
 * that tells them. */
static void begin_lending(realm_engine *e) {
    const realm_engine_lending *idle = &e->config.idle, *aside = &e->config.aside;
    e->calls_lent = false;
    if (e->lending_aside) aside->recall(aside->user); /* for a whole step */
    if (e->idle_ended || e->n_touched == 0) return;
    if (e->n_ring > 0) {
        e->calls_lent = aside->run && e->backend->v->aside && !e->lending_aside;
        e->lending_aside |= e->calls_lent;
    } else if (idle->run && !e->wake && !e->stopping) {
        e->lending = true;
        idle->expect(idle->user);
    }
}

/* Under mu. */
static void end_lending(realm_engine *e, bool *which) {
    *which = false;
    realm_cond_broadcast(&e->unlent);
}

static void lend(realm_engine *e) {
    uint64_t start = realm_clock_ns();
    e->config.idle.run(e->config.idle.user);
    e->lent_ns += realm_clock_ns() - start;
    realm_mutex_lock(&e->mu);
    end_lending(e, &e->lending);
    realm_mutex_unlock(&e->mu);
}

void realm_engine_end_idle(realm_engine *e) {
    realm_mutex_lock(&e->mu);
    e->idle_ended = true;
    realm_engine_wake_locked(e);
    while (e->lending || e->lending_aside) realm_cond_wait(&e->unlent, &e->mu);
    realm_mutex_unlock(&e->mu);
}

static void make_calls(realm_engine *e) {
    for (uint32_t i = 0; i < e->n_calls; i++) {
        const realm_consumer_call c = e->calls[i];
        realm_generation_call(c.g);
        if (c.ended) realm_generation_unref(c.g);
    }
}

static void make_calls_aside(void *user) {
    realm_engine *e = user;
    const bool lent = e->calls_lent;
    if (lent) e->config.aside.expect(e->config.aside.user);
    make_calls(e);
    realm_mutex_lock(&e->mu);
    e->calling = false;
    realm_cond_signal(&e->called);
    realm_mutex_unlock(&e->mu);
    if (!lent) return;
    const uint64_t start = realm_clock_ns();
    e->config.aside.run(e->config.aside.user);
    const uint64_t took = realm_clock_ns() - start;
    realm_mutex_lock(&e->mu);
    e->stats.aside_ns += took;
    end_lending(e, &e->lending_aside);
    realm_mutex_unlock(&e->mu);
}

static void call_consumers(realm_engine *e) {
    const struct realm_backend_vtable *v = e->backend->v;
    if (v->aside && e->n_ring > 0 && e->n_calls > 0) {
        e->calling = true; /* without the lock: nobody else looks at it before aside has it */
        if (v->aside(e->backend, make_calls_aside, e)) return;
        e->calling = false;
    }
    make_calls(e);
    if (!e->calls_lent) return;
    realm_mutex_lock(&e->mu);
    end_lending(e, &e->lending_aside);
    realm_mutex_unlock(&e->mu);
}

/* Under mu: those of the step before. They were over before this step's end, as a rule. */
static void await_calls(realm_engine *e) {
    while (e->calling) realm_cond_wait(&e->called, &e->mu);
    e->n_calls = 0;
}

static void publish(realm_engine *e) {
    realm_mutex_lock(&e->mu);
    await_calls(e);
    for (uint32_t i = 0; i < e->n_touched; i++) charge(e, e->touched[i]);
    realm_engine_stats *st = &e->stats;
    if (e->batch.n_rows > 0) {
        st->steps++;
        st->rows += e->batch.n_rows;
        st->step_ns += e->step_ns;
    }
    st->notify_ns = e->notify_ns;
    st->lent_ns = e->lent_ns;
    st->guesses = e->n_guesses;
    st->guesses_right = e->n_guesses_right;
    st->ended += e->n_ended;
    st->cancelled += e->n_cancelled;
    st->failed += e->n_failed;
    st->running = e->n_running - realm_guess_running(e);
    e->n_parked_seen = e->n_parked;
    begin_lending(e);
    const bool lending = e->lending;
    realm_mutex_unlock(&e->mu);
    e->n_ended = e->n_cancelled = e->n_failed = e->step_ns = 0;
    uint64_t start = e->n_touched > 0 ? realm_clock_ns() : 0;
    for (uint32_t i = 0; i < e->n_touched; i++) {
        realm_generation *g = e->touched[i];
        g->touched = false;
        give_back_context(g);
        const bool ended = g->state == REALM_GEN_ENDED;
        if (realm_generation_publish(g))
            e->calls[e->n_calls++] = (realm_consumer_call){g, ended};
        else if (ended)
            realm_generation_unref(g);
    }
    call_consumers(e);
    if (e->n_touched > 0) e->notify_ns += realm_clock_ns() - start;
    e->n_touched = 0;
    if (lending) lend(e);
}

static void *engine_main(void *arg) {
    realm_engine *e = arg;
    while (intake(e)) {
        if (realm_guess_settle(e)) { /* what comes next is computed while its consumers are told */
            e->batch.n_rows = 0;
            publish(e);
        }
        uint64_t now = realm_clock_ns();
        realm_schedule_sweep(e, now);
        realm_schedule_admit(e, now);
        realm_schedule_build(e, now);
        if (e->batch.n_rows > 0) run_step(e);
        publish(e);
    }
    (void)realm_guess_drop_all(e, NULL);
    realm_logits_keep(e, e->n_runs);
    realm_mutex_lock(&e->mu);
    await_calls(e);
    while (e->lending_aside) realm_cond_wait(&e->unlent, &e->mu);
    realm_mutex_unlock(&e->mu);
    return NULL;
}

/* ---- opening and closing ---------------------------------------------------------------------------------------- */

static uint64_t physical_bytes(void) {
    long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGESIZE);
    return pages > 0 && size > 0 ? (uint64_t)pages * (uint64_t)size : (uint64_t)4 << 30;
}

/* Fills in defaults and says how many KV pages there are: as many as all generations at full length need, within a
 * quarter of the machine's memory (pages are committed when first written). */
static realm_status resolve_config(realm_engine *e, const realm_engine_config *config, uint32_t *n_pages,
                                   realm_error *err) {
    realm_engine_config *c = &e->config;
    if (config) *c = *config;
    if (c->max_generations == 0) c->max_generations = MAX_GENERATIONS_DEFAULT;
    if (c->max_queued == 0) c->max_queued = MAX_QUEUED_DEFAULT;
    if (c->chunk_tokens == 0) c->chunk_tokens = CHUNK_TOKENS_DEFAULT;
    if (c->n_ctx == 0) c->n_ctx = realm_model_hparams(e->model)->n_ctx_train;
    if (c->max_generations > MAX_GENERATIONS_MOST || c->max_queued > MAX_QUEUED_MOST ||
        c->chunk_tokens > CHUNK_TOKENS_MOST)
        return realm_error_set(err, REALM_E_RANGE,
                               "at most %u generations, %u queued and chunks of %u tokens are supported",
                               MAX_GENERATIONS_MOST, MAX_QUEUED_MOST, CHUNK_TOKENS_MOST);
    realm_kv *probe;
    realm_status s = realm_model_kv_open(e->model, 1, &probe, err);
    if (s != REALM_OK) return s;
    uint64_t page_bytes = e->backend->v->kv_page_bytes(probe);
    e->backend->v->kv_close(e->backend, probe);
    uint64_t pages;
    if (c->kv_bytes > 0) {
        pages = c->kv_bytes / page_bytes;
    } else {
        pages = (uint64_t)c->max_generations * realm_pages_for(c->n_ctx);
        uint64_t fits = physical_bytes() / 4 / page_bytes;
        if (pages > fits) pages = fits;
    }
    if (pages == 0)
        return realm_error_set(err, REALM_E_RANGE, "the KV memory is less than one page of %llu bytes",
                               (unsigned long long)page_bytes);
    if (pages > PAGES_MOST) pages = PAGES_MOST;
    /* Alone a sequence can fill the pool, not more. */
    e->n_ctx = c->n_ctx < pages * REALM_KV_PAGE_TOKENS ? c->n_ctx : (uint32_t)(pages * REALM_KV_PAGE_TOKENS);
    *n_pages = (uint32_t)pages;
    c->kv_bytes = pages * page_bytes;
    return REALM_OK;
}

/* The longest text that a token adds decides how large text buffers are. */
static realm_status measure_pieces(realm_engine *e, realm_error *err) {
    if (realm_tokenizer_vocab_size(e->tokenizer) != e->n_vocab)
        return realm_error_set(err, REALM_E_FORMAT, "the tokenizer has %zu tokens, the model %u",
                               realm_tokenizer_vocab_size(e->tokenizer), e->n_vocab);
    for (uint32_t i = 0; i < e->n_vocab; i++) {
        const char *bytes;
        size_t len;
        realm_status s = realm_tokenizer_piece(e->tokenizer, (realm_token)i, true, &bytes, &len);
        if (s != REALM_OK) return realm_error_set(err, s, "token %u has no text", i);
        if (len > REALM_PIECE_BYTES_MAX)
            return realm_error_set(err, REALM_E_FORMAT, "token %u stands for %zu bytes, at most %u are supported", i,
                                   len, REALM_PIECE_BYTES_MAX);
        if (len > e->max_piece) e->max_piece = len;
    }
    return REALM_OK;
}

static realm_status allocate(realm_engine *e, realm_error *err) {
    const realm_engine_config *c = &e->config;
    e->cap_ring = c->max_generations + c->max_queued;
    e->max_rows = c->max_generations + REALM_FEW_ROWS + c->chunk_tokens;
    e->max_out = c->max_generations + REALM_EXTRA_OUT_ROWS;
    e->n_samplers = REALM_MAX(e->backend->n_threads, 1u);
    e->ring = realm_calloc(e->cap_ring + c->max_generations, sizeof *e->ring); /* guesses' accounts too */
    e->touched = realm_calloc(e->cap_ring, sizeof *e->touched);
    e->calls = realm_calloc(e->cap_ring, sizeof *e->calls);
    e->running = realm_calloc(c->max_generations, sizeof *e->running);
    e->wants = realm_calloc(c->max_generations, sizeof *e->wants);
    e->batch_tokens = realm_calloc(e->max_rows, sizeof *e->batch_tokens);
    e->batch_seqs = realm_calloc(c->max_generations, sizeof *e->batch_seqs);
    e->batch_gens = realm_calloc(c->max_generations, sizeof *e->batch_gens);
    e->batch_out = realm_calloc(e->max_out, sizeof *e->batch_out);
    e->jobs = realm_calloc(e->max_out, sizeof *e->jobs);
    e->samplers = realm_calloc(e->n_samplers, sizeof *e->samplers);
    if (!e->ring || !e->touched || !e->calls || !e->running || !e->wants || !e->batch_tokens || !e->batch_seqs ||
        !e->batch_gens || !e->batch_out || !e->jobs || !e->samplers)
        return realm_error_set(err, REALM_E_NOMEM, "no memory for an engine of %u generations", c->max_generations);
    for (uint32_t i = 0; i < e->n_samplers; i++) {
        realm_status s = realm_sampler_init(&e->samplers[i], e->n_vocab, err);
        if (s != REALM_OK) return s;
    }
    return REALM_OK;
}

static void pages_moved(void *user) { realm_engine_wake(user); }

static realm_status open_spill(realm_engine *e, realm_error *err) {
    realm_engine_config *c = &e->config;
    if (c->spill_dir_bytes == 0) c->spill_dir_bytes = SPILL_DIR_BYTES_DEFAULT;
    realm_status s = realm_spill_init(&e->pool.spill, &e->pool.mu, e->pool.page_bytes, c->spill_bytes, c->spill_dir,
                                      c->spill_dir_bytes, err);
    e->pool.spill.on_moved = pages_moved;
    e->pool.spill.user = e;
    return s;
}

/* The account of published prefixes, and what goes into all keys. */
static realm_status open_everybody(realm_engine *e, realm_error *err) {
    const realm_hparams *hp = realm_model_hparams(e->model);
    uint8_t secret[REALM_CACHE_SECRET_BYTES];
    snprintf(e->pool.model, sizeof e->pool.model, "%s %u %u %u", hp->arch, hp->n_layers, hp->d_model, hp->n_vocab);
    realm_status s = realm_random_bytes(secret, sizeof secret);
    if (s != REALM_OK) return realm_error_set(err, s, "no random bytes for the keys of published prefixes");
    s = realm_account_open(e, NULL, secret, &e->everybody, err);
    if (s == REALM_OK) e->everybody->owner.is_public = true;
    return s;
}

static void engine_free(realm_engine *e) {
    if (e->plan) e->backend->v->plan_close(e->backend, e->plan);
    realm_logits_free_spare(e);
    if (e->everybody) { /* nobody else has one now */
        realm_context *next;
        for (realm_context *p = e->published; p; p = next) {
            next = p->next_published;
            realm_context_release(p);
        }
        realm_account_close(e->everybody);
    }
    realm_pool_release(&e->pool);
    for (uint32_t i = 0; e->samplers && i < e->n_samplers; i++) realm_sampler_release(&e->samplers[i]);
    realm_free(e->samplers);
    realm_free(e->jobs);
    realm_free(e->batch_out);
    realm_free(e->batch_gens);
    realm_free(e->batch_seqs);
    realm_free(e->batch_tokens);
    realm_free(e->wants);
    realm_fair_release(&e->fair);
    realm_free(e->running);
    realm_free(e->calls);
    realm_free(e->touched);
    realm_free(e->ring);
    realm_cond_destroy(&e->masks_cond);
    realm_cond_destroy(&e->called);
    realm_cond_destroy(&e->unlent);
    realm_cond_destroy(&e->published_cond);
    realm_cond_destroy(&e->cond);
    realm_mutex_destroy(&e->masks_mu);
    realm_mutex_destroy(&e->spare_mu);
    realm_mutex_destroy(&e->mu);
    realm_free(e);
}

realm_status realm_engine_open(realm_engine **out, realm_backend *b, const realm_model *m, const realm_tokenizer *t,
                               const realm_engine_config *config, realm_error *err) {
    *out = NULL;
    realm_engine *e = realm_calloc(1, sizeof *e);
    if (!e) return realm_error_set(err, REALM_E_NOMEM, "no memory for an engine");
    realm_mutex_init(&e->mu, REALM_RANK_ENGINE);
    realm_mutex_init(&e->spare_mu, REALM_RANK_LEAF);
    realm_mutex_init(&e->masks_mu, REALM_RANK_LEAF);
    realm_cond_init(&e->masks_cond);
    realm_cond_init(&e->cond);
    realm_cond_init(&e->unlent);
    realm_cond_init(&e->called);
    realm_cond_init(&e->published_cond);
    e->backend = b;
    e->model = m;
    e->tokenizer = t;
    e->n_runs = 1; /* n_runs - 2 is a number */
    e->n_vocab = realm_model_hparams(m)->n_vocab;
    e->weight_bytes = realm_model_weight_bytes(m);
    uint32_t n_pages = 0;
    realm_kv *kv;
    realm_status s = measure_pieces(e, err);
    if (s == REALM_OK) s = resolve_config(e, config, &n_pages, err);
    if (s == REALM_OK) s = allocate(e, err);
    if (s != REALM_OK) goto fail;
    if ((s = realm_model_kv_open(m, n_pages, &kv, err)) != REALM_OK) goto fail;
    if ((s = realm_pool_init(&e->pool, b, kv, n_pages, err)) != REALM_OK) goto fail;
    s = realm_fair_init(&e->fair, e->cap_ring, (double)e->weight_bytes,
                        (double)e->pool.page_bytes / REALM_KV_PAGE_TOKENS, err);
    if (s != REALM_OK) goto fail;
    if ((s = open_spill(e, err)) != REALM_OK) goto fail;
    if ((s = open_everybody(e, err)) != REALM_OK) goto fail;
    if ((s = realm_model_plan_open(m, kv, e->max_rows, e->max_out, &e->plan, err)) != REALM_OK) goto fail;
    e->stats.kv_pages = n_pages;
    e->stats.kv_page_bytes = e->pool.page_bytes;
    e->stats.weight_bytes = e->weight_bytes;
    if ((s = realm_thread_start(&e->thread, "realm-engine", engine_main, e, err)) != REALM_OK) goto fail;
    *out = e;
    return REALM_OK;
fail:
    engine_free(e);
    return s;
}

void realm_engine_stop(realm_engine *e) {
    if (e->joined) return;
    realm_mutex_lock(&e->mu);
    e->shut = true;
    realm_engine_wake_locked(e);
    realm_mutex_unlock(&e->mu);
    (void)pthread_join(e->thread, NULL);
    realm_masks_stop(e);
    e->joined = true;
}

void realm_engine_close(realm_engine *e) {
    if (!e) return;
    realm_engine_stop(e);
    engine_free(e);
}

const realm_tokenizer *realm_engine_tokenizer(const realm_engine *e) { return e->tokenizer; }
uint32_t realm_engine_context_length(const realm_engine *e) { return e->n_ctx; }

void realm_engine_get_stats(realm_engine *e, realm_engine_stats *out) {
    realm_mutex_lock(&e->mu);
    *out = e->stats;
    const uint32_t started = out->running + e->n_parked_seen;
    out->queued = e->n_alive > started ? e->n_alive - started : 0;
    out->contexts = e->n_contexts;
    realm_mutex_unlock(&e->mu);
    realm_page_pool *p = &e->pool;
    realm_mutex_lock(&p->mu);
    out->kv_pages_used = p->n - p->n_free - p->cached.n;
    out->kv_pages_cached = p->cached.n;
    out->suspended_pages = p->away.n;
    out->suspended_bytes = p->spill.memory_used;
    out->suspended_disk = p->spill.file_used * p->page_bytes;
    out->suspends = p->suspends;
    out->resumes = p->resumes;
    out->dropped = p->dropped;
    out->prefix_asked = p->prefix_asked;
    out->prefix_found = p->prefix_found;
    realm_mutex_unlock(&p->mu);
}
