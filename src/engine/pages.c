/* engine/pages.c - who holds which page, and which page has a slot of the pool.
 *
 * A page is charged to its owner while somebody holds it and it is in the pool; holders of a shared page belong to the
 * same owner (or the page is public and charged to nobody), so it is counted once. Content that moves, to make room
 * or to come back, moves on the engine's thread with the lock free: the page is marked `moving`, no list has it
 * meanwhile, and whoever lets go of it last leaves the rest to the mover.
 *
 * A slot that another owner's content was in is overwritten with zeros before it is handed out, so that nothing of one
 * tenant is ever readable by another's kernels, whatever their bugs. The free slots are a stack: one tends to go back
 * to who had it, which saves that work.
 *
 * To make room, cached pages go first (they cost at most a computation that the request would have had to pay without
 * the cache), then idle ones are suspended. An owner at its limit gives up its own and nobody else's. In a step content
 * is copied for a few milliseconds; what must be moved beyond that is for the next one (LATER).
 *
 * The room outside the pool is shared too: where there is none left, who has less of it for its weight takes it from
 * who has most for its own.
 */
#include <assert.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "engine/pages.h"

#define SLAB_PAGES 256u

struct realm_page_slab {
    realm_page_slab *next;
    realm_page pages[SLAB_PAGES];
};

/* ---- lists; all under the lock ----------------------------------------------------------------------------------- */

static void list_add(realm_page_list *l, realm_page *p, int k) {
    p->link[k].next = NULL;
    p->link[k].prev = l->tail;
    if (l->tail)
        l->tail->link[k].next = p;
    else
        l->head = p;
    l->tail = p;
    l->n++;
}

static void list_remove(realm_page_list *l, realm_page *p, int k) {
    if (p->link[k].prev)
        p->link[k].prev->link[k].next = p->link[k].next;
    else
        l->head = p->link[k].next;
    if (p->link[k].next)
        p->link[k].next->link[k].prev = p->link[k].prev;
    else
        l->tail = p->link[k].prev;
    l->n--;
}

/* The owners that have pages outside the pool. */
static void note_away(realm_page_pool *p, realm_page_owner *o, bool any) {
    if (any) {
        o->prev_away = NULL;
        o->next_away = p->owners_away;
        if (p->owners_away) p->owners_away->prev_away = o;
        p->owners_away = o;
        return;
    }
    if (o->next_away) o->next_away->prev_away = o->prev_away;
    if (o->prev_away)
        o->prev_away->next_away = o->next_away;
    else
        p->owners_away = o->next_away;
}

static realm_page_list *lists_of(realm_page_pool *p, realm_page_owner *o, realm_page_state state,
                                 realm_page_list **owners) {
    switch (state) {
    case REALM_PAGE_IDLE: *owners = &o->idle; return &p->idle;
    case REALM_PAGE_CACHED: *owners = &o->cached; return &p->cached;
    case REALM_PAGE_AWAY: *owners = &o->away; return &p->away;
    case REALM_PAGE_UNLISTED: break;
    }
    return NULL;
}

static void set_state(realm_page_pool *p, realm_page *g, realm_page_state state) {
    realm_page_owner *o = g->owner;
    realm_page_list *list, *owners;
    if (g->state == state) return;
    if ((list = lists_of(p, o, g->state, &owners))) {
        list_remove(list, g, 0);
        list_remove(owners, g, 1);
        if (g->state == REALM_PAGE_AWAY && o->away.n == 0) note_away(p, o, false);
    }
    g->state = state;
    if ((list = lists_of(p, o, state, &owners))) {
        list_add(list, g, 0);
        list_add(owners, g, 1);
        if (state == REALM_PAGE_AWAY && o->away.n == 1) note_away(p, o, true);
    }
}

/* Puts a page into the list where it belongs. */
static void relist(realm_page_pool *p, realm_page *g) {
    realm_page_state state = REALM_PAGE_UNLISTED;
    if (!g->moving && g->pins == 0 && g->place != REALM_PAGE_LOST) {
        if (g->place != REALM_PAGE_IN_POOL)
            state = REALM_PAGE_AWAY;
        else if (g->refs == 0)
            state = REALM_PAGE_CACHED;
        else if (!g->owner->is_public)
            state = REALM_PAGE_IDLE;
    }
    set_state(p, g, state);
}

static realm_page *page_new(realm_page_pool *p) {
    if (!p->free_pages) {
        realm_page_slab *slab = realm_calloc(1, sizeof *slab);
        if (!slab) return NULL;
        slab->next = p->slabs;
        p->slabs = slab;
        for (uint32_t i = 0; i < SLAB_PAGES; i++) {
            slab->pages[i].link[0].next = p->free_pages;
            p->free_pages = &slab->pages[i];
        }
    }
    realm_page *g = p->free_pages;
    p->free_pages = g->link[0].next;
    return g;
}

/* A page that nobody holds. */
static void page_free(realm_page_pool *p, realm_page *g, void **garbage) {
    assert(g->refs == 0 && g->pins == 0 && !g->moving);
    set_state(p, g, REALM_PAGE_UNLISTED);
    if (g->findable) realm_page_hide(p, g);
    if (g->place == REALM_PAGE_IN_POOL)
        p->free_slots[p->n_free++] = g->slot;
    else
        realm_spill_free(&p->spill, &g->spilled, garbage);
    memset(g, 0, sizeof *g);
    g->link[0].next = p->free_pages;
    p->free_pages = g;
}

void realm_page_ref_locked(realm_page_pool *p, realm_page *g) {
    if (g->refs++ > 0) return;
    g->owner->held++; /* it was cached, so it is in the pool */
    relist(p, g);
}

static void unref(realm_page_pool *p, realm_page *g, void **garbage) {
    assert(g->refs > 0);
    if (--g->refs > 0) return;
    if (g->place == REALM_PAGE_IN_POOL) g->owner->held--;
    if (g->moving) { /* the mover frees it; the owner may be gone by then */
        if (g->findable) realm_page_hide(p, g);
        return;
    }
    if (g->place == REALM_PAGE_IN_POOL && g->findable)
        relist(p, g);
    else
        page_free(p, g, garbage);
}

static void unpin(realm_page_pool *p, realm_page *g) {
    assert(g->pins > 0);
    if (--g->pins > 0) return;
    g->owner->pinned--;
    relist(p, g);
}

static void pin(realm_page_pool *p, realm_page *g) {
    if (g->pins++ > 0) return;
    g->owner->pinned++;
    relist(p, g);
}

/* ---- making room; the engine's thread, under the lock, which is given up while content moves --------------------- */

static void note_move(realm_page_pool *p, uint64_t start_ns) {
    double took = (double)(realm_clock_ns() - start_ns);
    p->move_ns = p->move_ns > 0 ? 0.75 * p->move_ns + 0.25 * took : took;
}

/* Whether this step has time for one more. */
static bool may_move(realm_page_pool *p) {
    if (p->n_moved == 0 || realm_clock_ns() <= p->move_until_ns) return true;
    p->cut_short = true;
    return false;
}

/* It is held, and outside the pool or on the way there. */
static void lose(realm_page_pool *p, realm_page *g, void **garbage) {
    g->place = REALM_PAGE_LOST;
    relist(p, g);
    realm_spill_free(&p->spill, &g->spilled, garbage);
    if (g->findable) realm_page_hide(p, g);
    p->dropped++;
}

/* Room for one of o's pages where there is none: whoever has most outside the pool for its weight, and more than o will
 * have for its own, loses the page that was suspended first. So each has room by its weight, if it wants it. */
static bool claim_room(realm_page_pool *p, const realm_page_owner *o, void **garbage) {
    realm_page_owner *most = p->owners_away;
    for (realm_page_owner *q = most; q; q = q->next_away)
        if ((uint64_t)q->away.n * most->weight > (uint64_t)most->away.n * q->weight) most = q;
    if (!most || (uint64_t)most->away.n * o->weight <= ((uint64_t)o->away.n + 1) * most->weight) return false;
    lose(p, most->away.head, garbage);
    return true;
}

static realm_page_result suspend(realm_page_pool *p, realm_page *g) {
    void *garbage = NULL;
    if (!may_move(p)) return REALM_PAGE_LATER;
    realm_spill_result room = realm_spill_reserve(&p->spill, &g->spilled);
    if (room == REALM_SPILL_FULL && claim_room(p, g->owner, &garbage))
        room = realm_spill_reserve(&p->spill, &g->spilled);
    if (room == REALM_SPILL_BUSY) goto done;
    bool stored = room == REALM_SPILL_OK;
    if (stored) {
        g->moving = true;
        relist(p, g);
        realm_mutex_unlock(&p->mu);
        uint64_t start = realm_clock_ns();
        stored = realm_spill_copy(&p->spill, &g->spilled, p->backend, p->kv, g->slot);
        note_move(p, start);
        realm_mutex_lock(&p->mu);
        g->moving = false;
        p->n_moved++;
    }
    if (g->refs == 0) { /* let go meanwhile */
        realm_spill_free(&p->spill, &g->spilled, &garbage);
        page_free(p, g, &garbage);
        goto done;
    }
    p->free_slots[p->n_free++] = g->slot;
    g->owner->held--;
    if (stored) {
        g->place = g->spilled.place;
        realm_spill_start(&p->spill, &g->spilled);
        relist(p, g);
        p->suspends++;
    } else {
        lose(p, g, &garbage);
    }
done:
    realm_spill_collect(garbage);
    return room == REALM_SPILL_BUSY ? REALM_PAGE_LATER : REALM_PAGE_OK;
}

static realm_page_result evict(realm_page_pool *p, realm_page *g) {
    void *none = NULL; /* it is in the pool */
    if (g->refs > 0) return suspend(p, g);
    page_free(p, g, &none);
    return REALM_PAGE_OK;
}

static realm_page_result make_room(realm_page_pool *p, realm_page_owner *o) {
    for (;;) {
        realm_page *victim;
        if (o->max != UINT32_MAX && o->held + o->cached.n >= o->max) {
            victim = o->cached.head ? o->cached.head : o->idle.head;
            if (!victim) return REALM_PAGE_OWNER_LIMIT;
        } else if (p->n_free == 0) {
            victim = p->cached.head ? p->cached.head : p->idle.head;
            if (!victim) return REALM_PAGE_NONE_FREE;
        } else {
            return REALM_PAGE_OK;
        }
        realm_page_result r = evict(p, victim);
        if (r != REALM_PAGE_OK) return r;
    }
}

void realm_pool_begin_step(realm_page_pool *p, uint64_t move_until_ns) {
    p->move_until_ns = move_until_ns;
    p->n_moved = 0;
    p->cut_short = false;
}

double realm_pool_move_ns(realm_page_pool *p) {
    realm_mutex_lock(&p->mu);
    const realm_spill *s = &p->spill;
    const bool to_file = s->fd >= 0 && s->page_bytes > s->memory_max - s->memory_used;
    const double ns = p->move_ns > 0 && to_file ? p->move_ns + s->io_ns : p->move_ns;
    realm_mutex_unlock(&p->mu);
    return ns;
}

realm_page_result realm_page_take(realm_page_pool *p, realm_page_owner *o, realm_page **page) {
    realm_mutex_lock(&p->mu);
    realm_page_result r = make_room(p, o);
    realm_page *g = r == REALM_PAGE_OK ? page_new(p) : NULL;
    if (!g) {
        realm_mutex_unlock(&p->mu);
        return r == REALM_PAGE_OK ? REALM_PAGE_NONE_FREE : r;
    }
    uint32_t slot = p->free_slots[--p->n_free];
    const bool foreign = p->slot_owner[slot] != 0 && p->slot_owner[slot] != o->id;
    p->slot_owner[slot] = o->id;
    *g = (realm_page){.refs = 1, .pins = 1, .place = REALM_PAGE_IN_POOL, .slot = slot, .owner = o};
    o->held++;
    o->pinned++;
    realm_mutex_unlock(&p->mu);
    if (foreign) p->backend->v->kv_zero_page(p->backend, p->kv, slot);
    *page = g;
    return REALM_PAGE_OK;
}

/* Back into the pool. The caller holds the page, so nobody frees it meanwhile. */
static realm_page_result resume(realm_page_pool *p, realm_page *g) {
    void *garbage = NULL;
    const void *content;
    if (!may_move(p)) return REALM_PAGE_LATER;
    realm_spill_result got = realm_spill_fetch(&p->spill, &g->spilled, false, &content);
    if (got == REALM_SPILL_BUSY) return REALM_PAGE_LATER;
    g->moving = true; /* it is nobody's to lose */
    relist(p, g);
    realm_page_result r = got == REALM_SPILL_OK ? make_room(p, g->owner) : REALM_PAGE_IS_LOST;
    if (r == REALM_PAGE_OK) { /* again: what was stored to make room may have its buffer */
        got = realm_spill_fetch(&p->spill, &g->spilled, false, &content);
        if (got == REALM_SPILL_BUSY) r = REALM_PAGE_LATER;
        if (got == REALM_SPILL_LOST) r = REALM_PAGE_IS_LOST;
    }
    if (r == REALM_PAGE_OK) {
        uint32_t slot = p->free_slots[--p->n_free];
        realm_mutex_unlock(&p->mu);
        uint64_t start = realm_clock_ns();
        p->backend->v->kv_write_page(p->backend, p->kv, slot, content);
        note_move(p, start);
        realm_mutex_lock(&p->mu);
        realm_spill_free(&p->spill, &g->spilled, &garbage);
        g->place = REALM_PAGE_IN_POOL;
        g->slot = slot;
        p->slot_owner[slot] = g->owner->id; /* not before: another's content is in a slot that was not written */
        g->owner->held++;
        p->resumes++;
        p->n_moved++;
    }
    g->moving = false;
    if (r == REALM_PAGE_IS_LOST) lose(p, g, &garbage);
    relist(p, g);
    realm_spill_collect(garbage);
    return r;
}

realm_page_result realm_page_pin(realm_page_pool *p, realm_page *g) {
    realm_page_result r = REALM_PAGE_OK;
    realm_mutex_lock(&p->mu);
    if (g->place == REALM_PAGE_LOST)
        r = REALM_PAGE_IS_LOST;
    else if (g->place != REALM_PAGE_IN_POOL)
        r = resume(p, g);
    if (r == REALM_PAGE_OK) pin(p, g);
    realm_mutex_unlock(&p->mu);
    return r;
}

void realm_page_fetch(realm_page_pool *p, realm_page *g) {
    const void *unused;
    realm_spill_result r = REALM_SPILL_OK;
    realm_mutex_lock(&p->mu);
    if (g->place == REALM_PAGE_IN_FILE) r = realm_spill_fetch(&p->spill, &g->spilled, true, &unused);
    realm_mutex_unlock(&p->mu);
    (void)r; /* pin will say */
}

/* Under the lock: whether others hold it whom a write by this sequence would concern. */
static bool held_by_others(const realm_seq *s, const realm_page *g) {
    if (!s->guess) return g->refs > 1;
    return g->guesses > 1 || g->refs - g->guesses > 1;
}

realm_page_result realm_seq_own(realm_page_pool *p, realm_page_owner *o, realm_seq *s, uint32_t at) {
    realm_page *g = s->pages[at], *copy;
    realm_mutex_lock(&p->mu);
    bool alone = g->has_key ? g->refs == 1 : !held_by_others(s, g);
    if (alone) {
        if (g->findable) realm_page_hide(p, g);
        g->has_key = false;
    }
    realm_mutex_unlock(&p->mu);
    if (alone) return REALM_PAGE_OK;
    realm_page_result r = realm_page_take(p, o, &copy);
    if (r != REALM_PAGE_OK) return r;
    p->backend->v->kv_copy_page(p->backend, p->kv, copy->slot, g->slot);
    void *garbage = NULL;
    realm_mutex_lock(&p->mu);
    unpin(p, g);
    g->guesses -= s->guess;
    unref(p, g, &garbage);
    copy->guesses = s->guess;
    realm_mutex_unlock(&p->mu);
    realm_spill_collect(garbage);
    s->pages[at] = copy;
    s->slots[at] = copy->slot;
    return REALM_PAGE_OK;
}

bool realm_seq_shares(realm_page_pool *p, const realm_seq *s, uint32_t at) {
    realm_mutex_lock(&p->mu);
    bool shared = held_by_others(s, s->pages[at]) || s->pages[at]->has_key;
    realm_mutex_unlock(&p->mu);
    return shared;
}

void realm_pages_ref(realm_page_pool *p, realm_page *const *pages, uint32_t n) {
    realm_mutex_lock(&p->mu);
    for (uint32_t i = 0; i < n; i++) realm_page_ref_locked(p, pages[i]);
    realm_mutex_unlock(&p->mu);
}

void realm_pages_unref(realm_page_pool *p, realm_page *const *pages, uint32_t n) {
    void *garbage = NULL;
    realm_mutex_lock(&p->mu);
    for (uint32_t i = n; i-- > 0;) unref(p, pages[i], &garbage); /* a chain's end is used up first */
    realm_mutex_unlock(&p->mu);
    realm_spill_collect(garbage);
}

/* ---- sequences' part of it --------------------------------------------------------------------------------------- */

void realm_seq_unpin(realm_page_pool *p, realm_seq *s) {
    realm_mutex_lock(&p->mu);
    for (uint32_t i = s->n_pages; i-- > 0;) {
        if (s->slots[i] == REALM_SLOT_NONE) continue;
        unpin(p, s->pages[i]);
        s->slots[i] = REALM_SLOT_NONE;
        s->n_unpinned++;
    }
    realm_mutex_unlock(&p->mu);
}

void realm_seq_keep_pages(realm_page_pool *p, realm_seq *s, uint32_t n) {
    void *garbage = NULL;
    if (s->n_pages > n) {
        realm_mutex_lock(&p->mu);
        for (uint32_t i = s->n_pages; i-- > n;) {
            if (s->slots[i] != REALM_SLOT_NONE)
                unpin(p, s->pages[i]);
            else
                s->n_unpinned--;
            s->pages[i]->guesses -= s->guess;
            unref(p, s->pages[i], &garbage);
        }
        realm_mutex_unlock(&p->mu);
        s->n_pages = n;
        realm_spill_collect(garbage);
    }
    if (s->n_past > (uint64_t)s->n_pages * REALM_KV_PAGE_TOKENS) s->n_past = s->n_pages * REALM_KV_PAGE_TOKENS;
}

realm_page_result realm_seq_take_page(realm_page_pool *p, realm_page_owner *o, realm_seq *s) {
    realm_page *page;
    realm_page_result r = realm_page_take(p, o, &page);
    if (r != REALM_PAGE_OK) return r;
    realm_mutex_lock(&p->mu);
    page->guesses = s->guess;
    realm_mutex_unlock(&p->mu);
    realm_seq_add_page(s, page, true);
    return r;
}

void realm_seq_share_pages(realm_page_pool *p, realm_seq *s, const realm_seq *from) {
    uint32_t same = REALM_MIN(s->n_pages, from->n_pages);
    while (same > 0 && s->pages[same - 1] != from->pages[same - 1]) same--;
    realm_seq_keep_pages(p, s, same);
    realm_mutex_lock(&p->mu);
    for (uint32_t i = same; i < from->n_pages; i++) {
        realm_page_ref_locked(p, from->pages[i]);
        from->pages[i]->guesses += s->guess;
        realm_seq_add_page(s, from->pages[i], false);
    }
    realm_mutex_unlock(&p->mu);
}

void realm_seq_pin_present(realm_page_pool *p, realm_seq *s) {
    realm_mutex_lock(&p->mu);
    for (uint32_t i = 0; i < s->n_pages; i++) {
        if (s->slots[i] != REALM_SLOT_NONE || s->pages[i]->place != REALM_PAGE_IN_POOL) continue;
        pin(p, s->pages[i]);
        s->slots[i] = s->pages[i]->slot;
        s->n_unpinned--;
    }
    realm_mutex_unlock(&p->mu);
}

uint32_t realm_seq_pages_wanted(realm_page_pool *p, const realm_seq *s, uint64_t n_tokens) {
    uint32_t want = realm_pages_for(n_tokens);
    if (s->n_unpinned == 0) return want > s->n_pages ? want - s->n_pages : 0;
    realm_mutex_lock(&p->mu);
    uint32_t pinned = 0;
    for (uint32_t i = 0; i < s->n_pages; i++) pinned += s->pages[i]->pins > 0;
    realm_mutex_unlock(&p->mu);
    return want > pinned ? want - pinned : 0;
}

/* ---- the pool ---------------------------------------------------------------------------------------------------- */

realm_status realm_pool_init(realm_page_pool *p, realm_backend *b, realm_kv *kv, uint32_t n_pages, realm_error *err) {
    *p = (realm_page_pool){
        .backend = b, .kv = kv, .n = n_pages, .n_free = n_pages, .spill = {.fd = -1}, .move_until_ns = UINT64_MAX};
    realm_mutex_init(&p->mu, REALM_RANK_PAGES);
    p->page_bytes = b->v->kv_page_bytes(kv);
    p->table_mask = 63;
    while (p->table_mask < n_pages) p->table_mask = 2 * p->table_mask + 1;
    p->free_slots = realm_calloc(n_pages, sizeof *p->free_slots);
    p->slot_owner = realm_calloc(n_pages, sizeof *p->slot_owner);
    p->table = realm_calloc((size_t)p->table_mask + 1, sizeof(realm_page *));
    if (!p->free_slots || !p->slot_owner || !p->table)
        return realm_error_set(err, REALM_E_NOMEM, "no memory for a table of %u KV pages", n_pages);
    for (uint32_t i = 0; i < n_pages; i++) p->free_slots[i] = n_pages - 1 - i; /* slot 0 on top */
    return REALM_OK;
}

void realm_pool_release(realm_page_pool *p) {
    if (!p->kv) return;
    realm_spill_release(&p->spill);
    for (realm_page_slab *s = p->slabs, *next; s; s = next) {
        next = s->next;
        realm_free(s);
    }
    realm_free(p->table);
    realm_free(p->slot_owner);
    realm_free(p->free_slots);
    p->backend->v->kv_close(p->backend, p->kv);
    realm_mutex_destroy(&p->mu);
    *p = (realm_page_pool){0};
}

void realm_pool_forget(realm_page_pool *p, realm_page_owner *o) {
    void *none = NULL;
    realm_mutex_lock(&p->mu);
    while (o->cached.head) page_free(p, o->cached.head, &none);
    realm_mutex_unlock(&p->mu);
}

uint32_t realm_pool_available(realm_page_pool *p) {
    realm_mutex_lock(&p->mu);
    uint32_t n = p->n_free + p->cached.n + p->idle.n;
    realm_mutex_unlock(&p->mu);
    return n;
}
