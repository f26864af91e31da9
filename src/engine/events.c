/* engine/events.c - what a generation has to say: pending events, filled by the engine, emptied by poll.
 *
 * Events lie in a list of fixed size in the generation, filled by the engine's thread at the end of a step and emptied
 * by poll, which copies them into the consumer's batch: the batch's memory grows once and is then reused, the engine's
 * never grows. The engine gives a generation its turn only when the list has room for what a step may add (`room`); a
 * list without it marks the generation paused, and the poll that empties it wakes the engine.
 *
 * The consumer's callback runs without any lock held, on the engine's thread or on one that had nothing to do, between
 * two flags under g->mu, so that release can wait for it to be over.
 */
#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "engine/internal.h"

/* ---- the consumer's side ---------------------------------------------------------------------------------------- */

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
        b->status = realm_error_set(&b->error, REALM_E_NOMEM, "no memory to take %u events", g->n_events);
        realm_mutex_unlock(&g->mu);
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
            realm_text_show(g, &ev);
            add_event(g, &ev, g->logprobs ? job : NULL);
            g->n_published++;
        }
    }
}

/* Under g->mu. */
static void add_end_event(realm_generation *g) {
    realm_event ev = {.kind = REALM_EVENT_END, .finish = g->finish, .id = g->end_id};
    if (g->n_rows == 0) realm_text_show_rest(g, &ev);
    add_event(g, &ev, NULL);
}

bool realm_generation_publish(realm_generation *g) {
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
    return call;
}

void realm_generation_call(realm_generation *g) {
    g->on_ready(g->user);
    realm_mutex_lock(&g->mu);
    g->in_callback = false;
    realm_cond_broadcast(&g->callback_done);
    realm_mutex_unlock(&g->mu);
}
