/* engine/share.c - a prompt computed once for siblings (n choices of one request).
 *
 *      empty --first sibling admitted--> led (the others wait) --prompt done: fill--> full --fork--> each sibling
 *        ^                                 |                                            |
 *        +------------leader ended---------+-------- pages needed elsewhere: drop ------+
 *
 * A sibling forks all pages of the prompt and computes the prompt's last token again: that gives it the logits that its
 * first token is drawn from, for the price of one row, and no logits need to be kept. It writes into the last page, so
 * it gets a copy of that one. The prompt is charged to the account once, whatever happens to the leader.
 *
 * A share dies when its handle and all its generations are gone; its pages go back on the engine's thread.
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
    e->n_shares++;
    realm_mutex_unlock(&e->mu);
    *out = s;
    return REALM_OK;
}

void realm_share_unref_locked(realm_prompt_share *s) {
    if (--s->refs > 0) return;
    s->next_dead = s->e->dead_shares;
    s->e->dead_shares = s;
}

void realm_prompt_share_close(realm_prompt_share *s) {
    if (!s) return;
    realm_engine *e = s->e;
    realm_mutex_lock(&e->mu);
    realm_share_unref_locked(s);
    realm_mutex_unlock(&e->mu);
    realm_engine_wake(e);
}

void realm_share_fill(realm_prompt_share *s, const realm_generation *g) {
    uint32_t n = realm_pages_for(g->n_prompt);
    s->leader = NULL;
    memcpy(s->pages, g->pages, n * sizeof *s->pages);
    for (uint32_t i = 0; i < n; i++) realm_page_ref(&s->e->pool, s->pages[i]);
    s->n_pages = n;
    s->prev = NULL;
    s->next = s->e->shares_with_pages;
    if (s->next) s->next->prev = s;
    s->e->shares_with_pages = s;
}

void realm_share_fork(realm_prompt_share *s, realm_generation *g) {
    memcpy(g->pages, s->pages, s->n_pages * sizeof *s->pages);
    for (uint32_t i = 0; i < s->n_pages; i++) realm_page_ref(&s->e->pool, s->pages[i]);
    g->n_pages = s->n_pages;
    g->n_past = g->n_prompt - 1;
}

void realm_share_drop_pages(realm_prompt_share *s) {
    if (s->n_pages == 0) return;
    for (uint32_t i = 0; i < s->n_pages; i++) realm_page_unref(&s->e->pool, s->pages[i]);
    s->n_pages = 0;
    if (s->prev)
        s->prev->next = s->next;
    else
        s->e->shares_with_pages = s->next;
    if (s->next) s->next->prev = s->prev;
    s->next = s->prev = NULL;
}

void realm_share_free(realm_prompt_share *s) {
    realm_share_drop_pages(s);
    realm_engine *e = s->e;
    realm_mutex_lock(&e->mu);
    realm_account_unref_locked(s->account);
    e->n_shares--;
    realm_mutex_unlock(&e->mu);
    realm_free(s->pages);
    realm_free(s->prompt);
    realm_free(s);
}
