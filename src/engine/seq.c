/* engine/seq.c - a token sequence: tokens, the pages that hold what was computed of them, and which are pinned.
 *
 * A sequence belongs to one holder at a time: an idle context (its lock) or a generation (the engine's thread).
 */
#include "base/alloc.h"
#include "engine/pages.h"

bool realm_seq_reserve(realm_seq *s, uint32_t n_tokens) {
    uint32_t n_pages = realm_pages_for(n_tokens);
    if (n_tokens > s->cap_tokens) {
        realm_token *p = realm_realloc_array(s->tokens, n_tokens, sizeof *p);
        if (!p) return false;
        s->tokens = p;
        s->cap_tokens = n_tokens;
    }
    if (n_pages > s->cap_pages) {
        realm_page **pages = realm_realloc_array(s->pages, n_pages, sizeof(realm_page *));
        if (pages) s->pages = pages;
        uint32_t *slots = pages ? realm_realloc_array(s->slots, n_pages, sizeof *slots) : NULL;
        if (!slots) return false;
        s->slots = slots;
        s->cap_pages = n_pages;
    }
    return true;
}

void realm_seq_release(realm_page_pool *p, realm_seq *s) {
    realm_seq_keep_pages(p, s, 0);
    realm_free(s->tokens);
    realm_free(s->pages);
    realm_free(s->slots);
    *s = (realm_seq){0};
}

void realm_seq_truncate(realm_page_pool *p, realm_seq *s, uint32_t n_tokens) {
    s->n_tokens = n_tokens;
    if (s->n_past > n_tokens) s->n_past = n_tokens;
    realm_seq_keep_pages(p, s, realm_pages_for(s->n_past));
}

void realm_seq_add_page(realm_seq *s, realm_page *page, bool pinned) {
    s->pages[s->n_pages] = page;
    s->slots[s->n_pages++] = pinned ? page->slot : REALM_SLOT_NONE;
    s->n_unpinned += !pinned;
}
