/* engine/masks.c - masks of grammars that take long, computed beside the steps.
 *
 *      step: a mask took MASK_LONG_NS --> its account is slow: for its next MASKS_ASIDE tokens
 *
 *      list_wants ---- asked for ---> its account's turn --a thread of the few--> ready: the row is in the next step
 *          ^                             |                      |                    |
 *          |                             +---- rewound, ended: dropped ---------------+
 *          +--- until then all its rows but the one that a token is drawn from are
 *
 * Which tokens may come next does not depend on the logits, so a mask can be computed as soon as the token before it is
 * known. Most take microseconds, and are computed with the row, by whoever draws (sampling.c). One of an ambiguous
 * grammar may take tens of milliseconds of processor time, until it is given up (grammar.h); for as long as that the
 * step would wait, and everybody in it. So the generations of an account that had one lately sit out until theirs is
 * there, and the others go on; what they then lose of the processors is up to the machine's scheduler. Threads take
 * turns between accounts (base/rota.h).
 *
 * The thread works on a copy of the grammar's state, so that its generation may be rewound or ended at any time. What
 * it has prepared on the way makes later masks quicker, so its copy replaces the original with the mask
 * (realm_mask_use).
 */
#include "base/alloc.h"
#include "engine/internal.h"

#define MASK_LONG_NS (4 * REALM_NS_PER_MS)
#define MASKS_ASIDE 256u

struct realm_mask {
    realm_rota_item turn; /* masks_mu; first */
    bool waits, dropped;  /* masks_mu */
    uint64_t owner;
    realm_grammar_state *state;
    uint32_t *bits;
    /* set before `ready` */
    realm_status status;
    realm_error error;
    uint64_t took_ns;
    atomic_bool ready;
};

static void mask_free(realm_mask *m) {
    realm_grammar_state_close(m->state);
    realm_free(m->bits);
    realm_free(m);
}

/* ---- threads ----------------------------------------------------------------------------------------------------- */

static void *masks_main(void *arg) {
    realm_engine *e = arg;
    realm_thread_be_modest();
    realm_mutex_lock(&e->masks_mu);
    for (;;) {
        realm_mask *m;
        while (!(m = (realm_mask *)realm_rota_take(&e->mask_turns)) && !e->masks_stop)
            realm_cond_wait(&e->masks_cond, &e->masks_mu);
        if (!m) break;
        m->waits = false;
        realm_mutex_unlock(&e->masks_mu);
        const uint64_t before = realm_clock_thread_ns(), owner = m->owner;
        m->status = realm_grammar_state_mask(m->state, m->bits, &m->error);
        m->took_ns = realm_clock_thread_ns() - before;
        realm_mutex_lock(&e->masks_mu);
        realm_rota_done(&e->mask_turns, owner);
        const bool dropped = m->dropped;
        /* release: the engine's thread sees what came of it, and may free it from now on */
        if (!dropped) atomic_store_explicit(&m->ready, true, memory_order_release);
        realm_mutex_unlock(&e->masks_mu);
        if (dropped)
            mask_free(m);
        else
            realm_engine_wake(e);
        realm_mutex_lock(&e->masks_mu);
    }
    realm_mutex_unlock(&e->masks_mu);
    return NULL;
}

/* When the first is asked for: most engines never need them. */
static bool start_threads(realm_engine *e) {
    const uint32_t n = REALM_MIN(REALM_MAX(e->n_samplers / 2, 1u), REALM_MASK_THREADS_MAX);
    if (e->n_mask_threads > 0) return true;
    realm_rota_init(&e->mask_turns, n, n);
    while (e->n_mask_threads < n &&
           realm_thread_start(&e->mask_threads[e->n_mask_threads], "realm-masks", masks_main, e, NULL) == REALM_OK)
        e->n_mask_threads++;
    return e->n_mask_threads > 0;
}

void realm_masks_stop(realm_engine *e) {
    realm_mutex_lock(&e->masks_mu);
    e->masks_stop = true;
    realm_cond_broadcast(&e->masks_cond);
    realm_mutex_unlock(&e->masks_mu);
    for (uint32_t i = 0; i < e->n_mask_threads; i++) (void)pthread_join(e->mask_threads[i], NULL);
    e->n_mask_threads = 0;
}

/* ---- the engine's thread ----------------------------------------------------------------------------------------- */

/* NULL where there is no memory, or no thread: then it is computed with the row. */
static realm_mask *ask(realm_engine *e, const realm_account *a, const realm_grammar_state *from) {
    realm_mask *m = start_threads(e) ? realm_calloc(1, sizeof *m) : NULL;
    if (!m) return NULL;
    m->bits = realm_calloc((e->n_vocab + 31) / 32, sizeof *m->bits);
    if (!m->bits || realm_grammar_state_fork(from, &m->state, NULL) != REALM_OK) {
        mask_free(m);
        return NULL;
    }
    m->owner = (uintptr_t)a;
    m->waits = true;
    realm_mutex_lock(&e->masks_mu);
    realm_rota_push(&e->mask_turns, &m->turn, m->owner);
    realm_cond_signal(&e->masks_cond);
    realm_mutex_unlock(&e->masks_mu);
    return m;
}

void realm_mask_drop(realm_generation *g) {
    realm_engine *e = g->e;
    realm_mask *m = g->mask;
    if (!m) return;
    g->mask = NULL;
    g->chain->ready = NULL; /* a stage before the grammar may have drawn */
    realm_mutex_lock(&e->masks_mu);
    const bool busy = !m->waits && !atomic_load_explicit(&m->ready, memory_order_acquire);
    if (m->waits) realm_rota_remove(&e->mask_turns, &m->turn);
    m->dropped = true; /* then its thread frees it */
    realm_mutex_unlock(&e->masks_mu);
    if (!busy) mask_free(m);
}

bool realm_mask_awaited(realm_generation *g) {
    if (!g->constrained) return false;
    if (!g->mask && g->account->slow_masks > 0) g->mask = ask(g->e, g->account, realm_chain_grammar(g->chain));
    return g->mask && !atomic_load_explicit(&g->mask->ready, memory_order_acquire);
}

void realm_mask_note(realm_generation *g) {
    realm_account *a = g->account;
    if (!g->constrained) return;
    const uint64_t took = REALM_MAX(g->chain->mask_ns, g->mask ? g->mask->took_ns : 0);
    g->chain->mask_ns = 0;
    realm_mask_drop(g);
    if (took >= MASK_LONG_NS)
        a->slow_masks = MASKS_ASIDE;
    else
        a->slow_masks -= a->slow_masks > 0;
}

realm_status realm_mask_use(realm_mask *m, realm_stage *stage, const uint32_t **bits, realm_error *err) {
    realm_grammar_state *own = (realm_grammar_state *)(uintptr_t)stage->u.grammar;
    *bits = m->bits;
    stage->u.grammar = m->state;
    m->state = own;
    if (m->status != REALM_OK) *err = m->error;
    return m->status;
}
