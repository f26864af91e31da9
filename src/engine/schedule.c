/* engine/schedule.c - who runs in the next step, with how many tokens, on which pages.
 *
 *      sweep   cancelled and overdue generations end, wherever they are
 *      admit   queue -> running, while there are places and pages; the account with the fewest running goes first,
 *              equals take turns
 *      build   what every running generation could compute is put before fair.c, which says what of it goes into
 *              the step: tokens that are decoded, parts of prompts; tokens of small forward passes count as decoding,
 *              as a program in the loop waits for each. Then pages are found for that, the oldest first
 *
 * An account of which nothing runs is not kept out by others that fill all places or pages: the one that runs most
 * gives way with its youngest (`make_place`).
 *
 * Pages. A generation takes pages as its tokens need them; those of a context, a share or the prefix cache are pinned,
 * and brought back into the pool where they had left it, before it runs (`settle`); where one is lost it computes from
 * there again. Taking makes room by itself as long as there are pages on which nobody runs (pages.c). One that cannot
 * have a page waits for its turn, younger ones get none before it does. When nothing of the scope (the pool, or the
 * account that is at its limit) can run, and no content is on its way, `relieve` makes room: the youngest holder is
 * preempted and goes to the front of its account's queue. Its pages become idle, so that they are suspended if the room
 * is needed, or are let go, whichever costs less by what was measured; then its tokens, prompt and generated, are
 * computed again as a prompt. Rows do not depend on how they are batched, so its text goes on as if nothing had
 * happened, and nothing is charged twice. A generation that alone fills its account's kv_tokens ends there with LENGTH.
 * The oldest always finishes, so there is progress.
 *
 * Slow readers. A generation without room for events is stalled: it keeps its place, but when others wait for places or
 * pages and it has been stalled for STALL_GRACE_NS, it is preempted too and not admitted before it has been read.
 */
#include <assert.h>

#include "engine/internal.h"

#define STALL_GRACE_NS (250 * REALM_NS_PER_MS)
#define MOVE_NS (10 * REALM_NS_PER_MS) /* of a step, for content of pages copied out of the pool and back */

/* ---- lists ------------------------------------------------------------------------------------------------------ */

static void ring_add(realm_engine *e, realm_account *a) {
    if (a->in_ring) return;
    assert(e->n_ring < e->cap_ring + e->config.max_generations);
    e->ring[e->n_ring++] = a;
    a->in_ring = true;
}

static void ring_remove_if_idle(realm_engine *e, realm_account *a) {
    if (!a->in_ring || a->n_queued + a->n_running > 0) return;
    uint32_t at = 0;
    while (e->ring[at] != a) at++;
    for (uint32_t i = at; i + 1 < e->n_ring; i++) e->ring[i] = e->ring[i + 1];
    e->n_ring--;
    if (e->admit_turn > at) e->admit_turn--;
    a->in_ring = false;
}

void realm_schedule_enqueue(realm_engine *e, realm_generation *g, bool front) {
    realm_account *a = g->account;
    g->state = REALM_GEN_QUEUED;
    if (front) {
        g->next = a->queue_head;
        a->queue_head = g;
        if (!a->queue_tail) a->queue_tail = g;
    } else {
        g->next = NULL;
        if (a->queue_tail)
            a->queue_tail->next = g;
        else
            a->queue_head = g;
        a->queue_tail = g;
    }
    a->n_queued++;
    ring_add(e, a);
}

static void unlink_queued(realm_generation *g) {
    realm_account *a = g->account;
    realm_generation *before = NULL;
    for (realm_generation *q = a->queue_head; q != g; q = q->next) before = q;
    if (before)
        before->next = g->next;
    else
        a->queue_head = g->next;
    if (a->queue_tail == g) a->queue_tail = before;
    g->next = NULL;
    a->n_queued--;
}

static void unlink_running(realm_engine *e, realm_generation *g) {
    uint32_t at = 0;
    while (e->running[at] != g) at++;
    for (uint32_t i = at; i + 1 < e->n_running; i++) e->running[i] = e->running[i + 1];
    e->n_running--;
    g->account->n_running--;
    if (g->share && g->share->leader == g) g->share->leader = NULL;
    g->waits_share = false;
}

void realm_schedule_unlink(realm_engine *e, realm_generation *g) {
    if (g->state == REALM_GEN_QUEUED)
        unlink_queued(g);
    else
        unlink_running(e, g);
    ring_remove_if_idle(e, g->account);
}

/* Whether moving its pages out and in again costs less than computing its tokens again. */
static bool worth_moving(realm_engine *e, const realm_generation *g) {
    if (e->config.spill_bytes == 0 && !e->config.spill_dir) return false;
    const realm_work again = {.rows = g->s->n_past, .ctx_many = 0.5 * g->s->n_past * g->s->n_past};
    const double move_ns = realm_pool_move_ns(&e->pool);
    return move_ns <= 0 || e->fair.cost.n == 0 || 2 * move_ns * g->s->n_pages < realm_cost_of(&e->fair.cost, &again);
}

static void preempt(realm_engine *e, realm_generation *g) {
    if (worth_moving(e, g))
        realm_seq_unpin(&e->pool, g->s);
    else
        realm_seq_keep_pages(&e->pool, g->s, 0);
    unlink_running(e, g);
    realm_schedule_enqueue(e, g, true);
    e->progress = true;
}

/* ---- sweep ------------------------------------------------------------------------------------------------------ */

static void wake_at(realm_engine *e, uint64_t t) {
    if (e->next_wake_ns == 0 || t < e->next_wake_ns) e->next_wake_ns = t;
}

/* Where its reader has rewound it; true when that ended it again. */
static bool rewind_one(realm_engine *e, realm_generation *g) {
    if (!realm_generation_apply_rewind(g)) return false;
    realm_engine_touch(e, g);
    e->progress = true;
    if (g->finish == REALM_FINISH_NONE) return false;
    realm_engine_finished(e, g);
    return true;
}

/* True when it ended. A rewind that came before a cancel is what the reader wants to find in the context. */
static bool sweep_one(realm_engine *e, realm_generation *g, uint64_t now) {
    if (rewind_one(e, g)) return true;
    if (e->stopping || atomic_load_explicit(&g->cancel, memory_order_relaxed)) {
        realm_engine_end(e, g, REALM_FINISH_CANCELLED, REALM_OK, NULL);
        return true;
    }
    if (g->deadline_ns == 0) return false;
    if (now >= g->deadline_ns) {
        realm_engine_end(e, g, REALM_FINISH_ERROR, REALM_E_TIMEOUT, "the deadline has passed");
        return true;
    }
    wake_at(e, g->deadline_ns);
    return false;
}

/* Ends that can be taken back: they are, or they become final. */
static void sweep_parked(realm_engine *e, uint64_t now) {
    for (realm_generation **link = &e->parked, *g; (g = *link);) {
        const bool over = e->stopping || atomic_load_explicit(&g->cancel, memory_order_relaxed) ||
                          (g->deadline_ns != 0 && now >= g->deadline_ns);
        if (over) realm_generation_close(g);
        if (realm_generation_apply_rewind(g)) { /* also when it is over: its context is then in its hands again */
            *link = g->next_parked;
            e->n_parked--;
            realm_schedule_enqueue(e, g, true);
            realm_engine_touch(e, g);
            e->progress = true;
            if (g->finish != REALM_FINISH_NONE) realm_engine_finished(e, g);
        } else if (over || realm_generation_settles(g)) {
            *link = g->next_parked;
            e->n_parked--;
            realm_engine_retire(e, g);
        } else {
            if (g->deadline_ns != 0) wake_at(e, g->deadline_ns);
            link = &g->next_parked;
        }
    }
}

void realm_schedule_sweep(realm_engine *e, uint64_t now) {
    e->next_wake_ns = 0;
    realm_guess_sweep(e, now);
    sweep_parked(e, now);
    for (uint32_t i = 0; i < e->n_running;)
        if (e->running[i]->guess || !sweep_one(e, e->running[i], now)) i++;
    for (uint32_t i = 0; i < e->n_ring;) {
        realm_account *a = e->ring[i];
        for (realm_generation *g = a->queue_head, *next; g; g = next) {
            next = g->next;
            (void)sweep_one(e, g, now);
        }
        if (i < e->n_ring && e->ring[i] == a) i++;
    }
}

/* ---- admission -------------------------------------------------------------------------------------------------- */

/* Pages on which nobody runs now and that it needs to hold its tokens and the next one. A fork writes to one page of
 * the share's. */
static uint32_t pages_wanted(const realm_generation *g) {
    uint32_t want = realm_seq_pages_wanted(&g->e->pool, g->s, (uint64_t)g->s->n_tokens + (g->n_rows == 0)), have = 0;
    if (g->s->n_pages == 0 && g->share && !g->prompt_logprobs && (g->share->n_pages > 0 || g->share->leader))
        have = realm_pages_for(g->n_prompt) - 1;
    return want > have ? want - have : 0;
}

/* Pages promised to running generations (of an account, or of all). */
static uint32_t pages_reserved(const realm_engine *e, const realm_account *a) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < e->n_running; i++)
        if (!a || e->running[i]->account == a) sum += pages_wanted(e->running[i]);
    return sum < UINT32_MAX ? (uint32_t)sum : UINT32_MAX;
}

/* The first that could start: one that was preempted for its slow reader waits until it has been read. */
static realm_generation *first_ready(realm_account *a) {
    for (realm_generation *g = a->queue_head; g; g = g->next) {
        if (!g->stalled || realm_generation_room(g) > 0) return g;
    }
    return NULL;
}

/* Preempts a generation whose reader has been slow for long; otherwise says when to look again. */
static bool preempt_stalled(realm_engine *e, uint64_t now) {
    for (uint32_t i = e->n_running; i-- > 0;) {
        realm_generation *g = e->running[i];
        if (!g->stalled) continue;
        if (realm_generation_room(g) > 0) {
            g->stalled = false;
            continue;
        }
        if (now >= g->stalled_since_ns + STALL_GRACE_NS) {
            preempt(e, g);
            return true;
        }
        wake_at(e, g->stalled_since_ns + STALL_GRACE_NS);
    }
    return false;
}

/* An account of which nothing runs gets a place, or pages, from the one that runs most; false when that has but one. */
static bool make_place(realm_engine *e, const realm_account *a) {
    realm_generation *victim = NULL;
    if (a->n_running > 0) return false;
    for (uint32_t i = 0; i < e->n_running; i++) { /* by age: the youngest comes last */
        realm_generation *g = e->running[i];
        if (g->account->n_running > 1 && (!victim || g->account->n_running >= victim->account->n_running)) victim = g;
    }
    if (!victim) return false;
    preempt(e, victim);
    return true;
}

static realm_account *next_account(realm_engine *e, realm_generation **g, uint32_t *index) {
    realm_account *best = NULL;
    for (uint32_t i = 0; i < e->n_ring; i++) {
        uint32_t at = (e->admit_turn + i) % e->n_ring;
        realm_account *a = e->ring[at];
        if (a->skip || a->n_queued == 0 || (best && a->n_running >= best->n_running)) continue;
        realm_generation *first = first_ready(a);
        if (!first) continue;
        best = a;
        *g = first;
        *index = at;
    }
    return best;
}

/* Continues what is computed with what the prefix cache has; the wanted rows stay to be computed. */
static void use_cache(realm_engine *e, realm_generation *g, bool charge) {
    realm_seq *s = g->s;
    const uint32_t most = s->n_tokens - REALM_MAX(g->n_rows, 1u);
    if (s->n_past > most) s->n_past = most;
    if (g->prompt_logprobs || g->waits_share) return;
    uint32_t n = realm_prefix_take(&e->pool, &g->account->owner, &e->everybody->owner, s, most);
    if (!charge || g->prompt_charged == 0) return;
    g->cached_charged = n;
    g->account->delta.cached += n;
}

static void start(realm_engine *e, realm_generation *g) {
    realm_account *a = g->account;
    const bool first = g->seq == 0;
    unlink_queued(g);
    g->waits_share = g->share && !g->prompt_logprobs;
    if (first) {
        g->seq = ++e->next_seq;
        if (!g->share || !g->share->counted) {
            g->prompt_charged = g->n_charge;
            a->delta.prompt += g->n_charge;
            if (g->share) g->share->counted = true;
        }
        realm_engine_touch(e, g);
    }
    use_cache(e, g, first);
    uint32_t at = e->n_running++;
    for (; at > 0 && e->running[at - 1]->seq > g->seq; at--) e->running[at] = e->running[at - 1];
    e->running[at] = g;
    a->n_running++;
    g->state = REALM_GEN_RUNNING;
    g->stalled = false;
    e->progress = true;
}

/* Whether pages allow it to start now; may end it. */
typedef enum fit { FITS, WAITS_FOR_POOL, WAITS_FOR_ACCOUNT, ENDED } fit;
static fit pages_allow(realm_engine *e, realm_generation *g) {
    realm_account *a = g->account;
    uint32_t want = pages_wanted(g);
    if (a->owner.max != UINT32_MAX) {
        uint64_t used = (uint64_t)a->owner.pinned + pages_reserved(e, a);
        if (a->n_running > 0 && used + want > a->owner.max) return WAITS_FOR_ACCOUNT;
        if (a->n_running == 0 && realm_pages_for(g->n_prompt) > a->owner.max) { /* the limit was lowered */
            realm_engine_end(e, g, REALM_FINISH_ERROR, REALM_E_QUOTA, "limit kv_tokens: the prompt is longer");
            return ENDED;
        }
    }
    if (e->n_running == 0) return FITS; /* alone it fits, or it would not have been taken */
    uint64_t promised = pages_reserved(e, NULL);
    if (g->seq != 0) promised += e->n_running; /* it was preempted: do not come back to be thrown out again */
    return (uint64_t)want + promised <= realm_pool_available(&e->pool) ? FITS : WAITS_FOR_POOL;
}

void realm_schedule_start_guess(realm_engine *e, realm_generation *guess) {
    guess->seq = ++e->next_seq;
    guess->state = REALM_GEN_RUNNING;
    e->running[e->n_running++] = guess;
    guess->account->n_running++;
    ring_add(e, guess->account);
    e->progress = true;
}

void realm_schedule_admit(realm_engine *e, uint64_t now) {
    for (uint32_t i = 0; i < e->n_ring; i++) e->ring[i]->skip = false;
    for (;;) {
        realm_generation *g = NULL;
        uint32_t at = 0;
        realm_account *a = next_account(e, &g, &at);
        if (!a) return;
        if (e->n_running == e->config.max_generations) {
            if (!realm_guess_drop_all(e, NULL) && !preempt_stalled(e, now) && !make_place(e, a)) return;
            continue;
        }
        switch (pages_allow(e, g)) {
        case FITS:
            e->admit_turn = at + 1;
            start(e, g);
            break;
        case WAITS_FOR_ACCOUNT: a->skip = !realm_guess_drop_all(e, a); break;
        case WAITS_FOR_POOL:
            if (!realm_guess_drop_all(e, NULL) && !preempt_stalled(e, now) && !make_place(e, a)) return;
            break;
        case ENDED: break;
        }
    }
}

/* ---- building a step -------------------------------------------------------------------------------------------- */

typedef struct builder {
    realm_engine *e;
    uint32_t n_rows, n_extra_out, n_short_extra;
    uint64_t starved_seq; /* oldest generation that the pool refused a page; younger ones get none */
} builder;

static realm_page_result refused(builder *b, realm_generation *g, realm_page_result r) {
    g->blocked = r;
    if (g->guess)
        b->e->progress = true; /* it waits for no page: the next sweep drops it */
    else if (r == REALM_PAGE_NONE_FREE && g->seq < b->starved_seq)
        b->starved_seq = g->seq;
    return r;
}

/* Pins what it holds and brings back what is outside the pool; true when all of it is there. Where a page is lost, its
 * tokens and those after it are computed again. */
static bool settle(builder *b, realm_generation *g) {
    realm_page_pool *pool = &b->e->pool;
    realm_seq *s = g->s;
    if (s->n_unpinned == 0) return true;
    realm_seq_pin_present(pool, s);
    for (uint32_t i = 0; i < s->n_pages && s->n_unpinned > 0; i++) {
        if (s->slots[i] != REALM_SLOT_NONE) continue;
        realm_page_result r = g->seq <= b->starved_seq ? realm_page_pin(pool, s->pages[i]) : REALM_PAGE_NONE_FREE;
        if (r == REALM_PAGE_IS_LOST) {
            realm_seq_keep_pages(pool, s, i);
            break;
        }
        if (r != REALM_PAGE_OK) {
            (void)refused(b, g, r);
            for (i++; r == REALM_PAGE_LATER && i < s->n_pages; i++) realm_page_fetch(pool, s->pages[i]);
            return false;
        }
        s->slots[i] = s->pages[i]->slot;
        s->n_unpinned--;
    }
    return true;
}

/* Makes the pages of rows [n_past, n_past + want) its own; how many rows it may write. */
static uint32_t own_written(builder *b, realm_generation *g, uint32_t want) {
    realm_seq *s = g->s;
    for (uint32_t at = s->n_past / REALM_KV_PAGE_TOKENS;
         at < s->n_pages && (uint64_t)at * REALM_KV_PAGE_TOKENS < (uint64_t)s->n_past + want; at++) {
        if (!realm_seq_shares(&b->e->pool, s, at)) continue;
        realm_page_result r =
            g->seq <= b->starved_seq ? realm_seq_own(&b->e->pool, &g->account->owner, s, at) : REALM_PAGE_NONE_FREE;
        if (r != REALM_PAGE_OK) {
            (void)refused(b, g, r);
            uint32_t start = at * REALM_KV_PAGE_TOKENS;
            return start > s->n_past ? start - s->n_past : 0;
        }
    }
    return want;
}

/* How many of `want` rows its pages can take after taking new ones. */
static uint32_t cover(builder *b, realm_generation *g, uint32_t want) {
    realm_seq *s = g->s;
    want = own_written(b, g, want);
    while (g->blocked == REALM_PAGE_OK && (uint64_t)s->n_pages * REALM_KV_PAGE_TOKENS < (uint64_t)s->n_past + want) {
        realm_page_result r =
            g->seq <= b->starved_seq ? realm_seq_take_page(&b->e->pool, &g->account->owner, s) : REALM_PAGE_NONE_FREE;
        if (r != REALM_PAGE_OK) (void)refused(b, g, r);
    }
    uint32_t room = s->n_pages * REALM_KV_PAGE_TOKENS - s->n_past;
    return REALM_MIN(want, room);
}

static void give_rows(builder *b, realm_generation *g, uint32_t n) {
    g->step_rows += n;
    g->account->step_rows += n;
    b->n_rows += n;
}

/* A sibling of a share: forks the common prompt when it is there, computes it when nobody does. True: goes on waiting.
 */
static bool waits_for_share(realm_engine *e, realm_generation *g) {
    realm_prompt_share *s = g->share;
    if (!g->waits_share) return false;
    if (s->n_pages == 0 && s->leader) return true;
    g->waits_share = false;
    if (s->n_pages > 0 && g->s->n_pages == 0) {
        realm_share_fork(s, g);
    } else if (s->n_pages == 0) {
        s->leader = g;
        use_cache(e, g, g->cached_charged == 0 && g->n_new == 0);
    }
    return false;
}

static bool can_run(realm_engine *e, realm_generation *g, uint64_t now) {
    if (realm_generation_room(g) > 0) {
        g->stalled = false;
        return true;
    }
    if (!g->stalled) g->stalled_since_ns = now;
    g->stalled = true;
    if (now < g->stalled_since_ns + STALL_GRACE_NS) wake_at(e, g->stalled_since_ns + STALL_GRACE_NS); /* for admit */
    return false;
}

static uint32_t rows_left(const realm_generation *g) { return g->s->n_tokens - g->s->n_past; }

/* Decoding, or a forward pass of few tokens: not held up by prompts. */
static bool is_short(const realm_generation *g) {
    return rows_left(g) == 1 || (g->n_rows > 0 && rows_left(g) <= REALM_FEW_ROWS);
}

/* How many of its next n rows can be computed in view of the rows wanted out of them, which a step has room for. */
static uint32_t limit_out(builder *b, realm_generation *g, uint32_t n) {
    const uint32_t left = REALM_EXTRA_OUT_ROWS - b->n_extra_out, from = g->s->n_past + g->step_rows;
    if (g->n_rows > 0) {
        const uint32_t first_out = g->s->n_tokens - g->n_rows, end = from + n;
        uint32_t out = end > first_out ? end - REALM_MAX(first_out, from) : 0;
        if (out > left) {
            n -= out - left;
            out = left;
        }
        b->n_extra_out += out;
    } else if (g->prompt_logprobs && g->s->n_past < g->n_prompt) {
        uint32_t room = realm_generation_room(g);
        room = room > g->step_rows ? room - g->step_rows : 0;
        n = REALM_MIN(n, REALM_MIN(room, left));
        b->n_extra_out += n;
    }
    return n;
}

static void list_want(realm_want *w, const realm_generation *g) {
    w->n_rows = rows_left(g) - g->awaits_mask;
    w->n_past = g->s->n_past;
    w->n_out = g->n_rows > 0 ? g->n_rows : 1;
    w->is_short = is_short(g);
}

/* What each running generation could compute now; e->wants[i] is that of e->running[i]. Those whose pages are pinned
 * come first, so that bringing back the others' does not hold them up for long. */
static void list_wants(builder *b, uint64_t now) {
    realm_engine *e = b->e;
    bool settles = false;
    for (uint32_t i = 0; i < e->n_running; i++) {
        realm_generation *g = e->running[i];
        e->wants[i] = (realm_want){.share = &g->account->share, .order = g->seq};
        g->awaits_mask = realm_mask_awaited(g);
        g->settles = false;
        if (g->awaits_mask && rows_left(g) == 1) continue;
        g->settles = !waits_for_share(e, g) && can_run(e, g, now) && g->s->n_unpinned > 0;
        settles |= g->settles;
        if (g->settles || g->waits_share || g->stalled) continue;
        list_want(&e->wants[i], g);
    }
    for (uint32_t i = 0; settles && i < e->n_running; i++)
        if (e->running[i]->settles && settle(b, e->running[i])) list_want(&e->wants[i], e->running[i]);
}

/* Finds pages for what was granted. A small forward pass goes whole or waits for the next step. */
static void give_granted_rows(builder *b) {
    realm_engine *e = b->e;
    for (uint32_t i = 0; i < e->n_running; i++) {
        realm_generation *g = e->running[i];
        const realm_want *w = &e->wants[i];
        uint32_t n = w->granted;
        if (n == 0 || (w->is_short && n > 1 && b->n_short_extra + n > REALM_FEW_ROWS)) continue;
        if (g->n_rows > 0 || !w->is_short) n = limit_out(b, g, n);
        if (n > 0) n = cover(b, g, n);
        if (w->is_short && n > 1) b->n_short_extra += n;
        give_rows(b, g, n);
    }
}

/* Makes room where nothing of the scope runs: of account `a`, or of the pool. True when something changed. */
static bool relieve(realm_engine *e, realm_account *a, realm_page_result why) {
    realm_generation *needy = NULL, *victim = NULL;
    for (uint32_t i = 0; i < e->n_running; i++) {
        realm_generation *g = e->running[i];
        if (g->guess || (a && g->account != a)) continue;
        if (g->blocked == REALM_PAGE_LATER) return false; /* pages are on their way */
        if (g->blocked == why && !needy) needy = g;
    }
    if (!needy) return false;
    for (uint32_t i = 0; i < e->n_running; i++) { /* the youngest, one with a slow reader before others */
        realm_generation *g = e->running[i];
        if ((a && g->account != a) || g == needy || g->s->n_pages == g->s->n_unpinned) continue;
        if (!victim || g->stalled || !victim->stalled) victim = g;
    }
    if (victim) {
        preempt(e, victim);
    } else if (needy->n_new > 0) {
        realm_engine_end(e, needy, REALM_FINISH_LENGTH, REALM_OK, NULL);
    } else {
        realm_engine_end(e, needy, REALM_FINISH_ERROR, why == REALM_PAGE_OWNER_LIMIT ? REALM_E_QUOTA : REALM_E_BUSY,
                         why == REALM_PAGE_OWNER_LIMIT ? "limit kv_tokens: the prompt does not fit"
                                                       : "the prompt does not fit into the KV memory");
    }
    return true;
}

/* Nobody waits for a page that a guess holds. True: some were dropped. */
static bool drop_guesses(realm_engine *e) {
    for (uint32_t i = 0; i < e->n_running; i++) {
        const realm_generation *g = e->running[i];
        if (g->guess) continue;
        if (g->blocked == REALM_PAGE_NONE_FREE && realm_guess_drop_all(e, NULL)) return true;
        if (g->blocked == REALM_PAGE_OWNER_LIMIT && realm_guess_drop_all(e, g->account)) return true;
    }
    return false;
}

/* True: what was planned is to be planned again. */
static bool relieve_all(builder *b) {
    realm_engine *e = b->e;
    if (drop_guesses(e)) return true;
    if (b->n_rows == 0 && relieve(e, NULL, REALM_PAGE_NONE_FREE)) return true;
    for (uint32_t i = 0; i < e->n_ring; i++) {
        realm_account *a = e->ring[i];
        if (a->step_rows == 0 && relieve(e, a, REALM_PAGE_OWNER_LIMIT)) return true;
    }
    return false;
}

/* Writes one generation's rows into the batch and its wanted rows into the jobs. */
static void lay_out(realm_engine *e, realm_generation *g) {
    realm_batch *batch = &e->batch;
    const realm_seq *s = g->s;
    e->batch_gens[batch->n_seqs] = g;
    e->batch_seqs[batch->n_seqs++] = (realm_batch_seq){
        .first_row = batch->n_rows, .n_rows = g->step_rows, .n_past = g->s->n_past, .pages = g->s->slots};
    g->first_job = e->n_jobs;
    for (uint32_t r = 0; r < g->step_rows; r++) {
        uint32_t pos = s->n_past + r, row = batch->n_rows++;
        e->batch_tokens[row] = s->tokens[pos];
        realm_token target = -1;
        if (g->n_rows > 0) {
            if (pos + g->n_rows < s->n_tokens) continue;
        } else if (pos + 1 < s->n_tokens) {
            if (!g->prompt_logprobs || pos + 1 >= g->n_prompt || pos + 1 < g->prompt_events) continue;
            target = s->tokens[pos + 1];
        } else if (g->max_new == 0) {
            continue; /* the prompt alone */
        }
        assert(e->n_jobs < e->max_out);
        e->batch_out[batch->n_out++] = row;
        realm_sample_job *job = &e->jobs[e->n_jobs++];
        job->copy_to = g->n_rows > 0 ? realm_logits_row(g->logits, pos + g->n_rows - s->n_tokens) : NULL;
        job->chain = g->chain;
        if (g->mask && target < 0) g->chain->ready = g->mask;
        job->look = g->n_rows == 1 && realm_guess_looks(g);
        job->target = target;
        job->logprob = target >= 0 || g->logprobs;
        job->n_top = g->n_top;
    }
    g->n_jobs = e->n_jobs - g->first_job;
    if (g->guess) return;
    if (g->n_jobs > 0 || (g->prompt_logprobs && g->prompt_events == 0)) realm_engine_touch(e, g);
}

void realm_schedule_build(realm_engine *e, uint64_t now) {
    builder b;
    realm_pool_begin_step(&e->pool, now + MOVE_NS);
    do {
        b = (builder){.e = e, .starved_seq = UINT64_MAX};
        for (uint32_t i = 0; i < e->n_ring; i++) e->ring[i]->step_rows = 0;
        for (uint32_t i = 0; i < e->n_running; i++) {
            e->running[i]->step_rows = 0;
            e->running[i]->blocked = REALM_PAGE_OK;
        }
        list_wants(&b, now);
        realm_fair_plan(&e->fair, e->wants, e->n_running, e->config.chunk_tokens, now);
        give_granted_rows(&b);
    } while (relieve_all(&b));
    e->progress |= e->pool.cut_short;
    if (e->fair.wake_ns != 0) wake_at(e, e->fair.wake_ns);
    e->n_wants = e->n_running;
    for (uint32_t i = 0; i < e->n_wants; i++) {
        realm_generation *g = e->running[i];
        const uint32_t end = g->s->n_past + g->step_rows;
        assert(e->wants[i].share == &g->account->share && g->step_rows <= e->wants[i].granted);
        e->wants[i].used = g->step_rows;
        if (end <= g->n_priced) continue; /* computed again after a preemption */
        e->wants[i].charged = REALM_MIN(end - g->n_priced, g->step_rows);
        g->n_priced = end;
    }

    e->batch = (realm_batch){.tokens = e->batch_tokens, .seqs = e->batch_seqs, .out_rows = e->batch_out};
    e->n_jobs = 0;
    for (uint32_t i = 0; i < e->n_running; i++)
        if (e->running[i]->step_rows > 0 && is_short(e->running[i])) lay_out(e, e->running[i]);
    for (uint32_t i = 0; i < e->n_running; i++)
        if (e->running[i]->step_rows > 0 && !is_short(e->running[i])) lay_out(e, e->running[i]);
}
