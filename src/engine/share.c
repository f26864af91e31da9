/* engine/share.c - a prompt computed once for siblings (n choices of one request).
 *
 *      empty --first sibling admitted--> led (the others wait) --prompt done: fill--> full --fork--> each sibling
 *        ^                                 |
 *        +------------leader ended---------+
 *
 * A sibling forks all pages of the prompt and computes the prompt's last token again: that gives it the logits that its
 * first token is drawn from, for the price of one row, and no logits need to be kept. It writes into the last page, so
 * it gets a copy of that one. The prompt is charged to the account once, whatever happens to the leader.
 *
 * Its pages are idle ones while no sibling runs: when the room is needed they are suspended, and if there is no room
 * for that either, siblings find them lost and compute for themselves.
 */
#include <string.h>

#include "base/alloc.h"
#include "engine/internal.h"

realm_status realm_prompt_share_open(realm_engine *e, realm_account *a, realm_prompt_share **out, realm_error *err) {
    *out = NULL;
    realm_prompt_share *s = realm_calloc(1, sizeof *s);
    if (!s) return realm_error_set(err, REALM_E_NOMEM, "no memory for a prompt share");
    s->e = e;
    s->account = a;
    s->refs = 1;
    realm_mutex_lock(&e->mu);
    a->refs++;
    realm_mutex_unlock(&e->mu);
    *out = s;
    return REALM_OK;
}

void realm_share_unref(realm_prompt_share *s) {
    realm_engine *e = s->e;
    realm_mutex_lock(&e->mu);
    bool last = --s->refs == 0;
    realm_mutex_unlock(&e->mu);
    if (!last) return;
    realm_pages_unref(&e->pool, s->pages, s->n_pages);
    realm_mutex_lock(&e->mu);
    realm_account_unref_locked(s->account);
    realm_mutex_unlock(&e->mu);
    realm_free(s->pages);
    realm_free(s->prompt);
    realm_free(s);
    realm_engine_wake(e); /* something may fit now */
}

void realm_prompt_share_close(realm_prompt_share *s) {
    if (s) realm_share_unref(s);
}

void realm_share_fill(realm_prompt_share *s, const realm_generation *g) {
    uint32_t n = realm_pages_for(g->n_prompt);
    s->leader = NULL;
    memcpy(s->pages, g->s->pages, n * sizeof(realm_page *));
    realm_pages_ref(&s->e->pool, s->pages, n);
    s->n_pages = n;
}

void realm_share_fork(realm_prompt_share *s, realm_generation *g) {
    realm_pages_ref(&s->e->pool, s->pages, s->n_pages);
    for (uint32_t i = 0; i < s->n_pages; i++) realm_seq_add_page(g->s, s->pages[i], false);
    g->s->n_past = g->n_prompt - 1;
}
