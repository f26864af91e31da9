/* engine/pages.c - who holds which page of the KV pool.
 *
 *      free --take--> held by one --ref (fork)--> shared --own by a writer--> copy held by one
 *        ^              |                           |
 *        +---unref------+-------------unref---------+
 *
 * A page is charged to one account while anybody holds it; holders of a shared page belong to the same account, so it
 * is counted once. A page that another account wrote to is overwritten with zeros before it is handed out, so that
 * nothing of one tenant is ever readable by another's kernels, whatever their bugs. The free list is a stack: a page
 * tends to go back to who had it, which saves that work.
 */
#include <assert.h>

#include "base/alloc.h"
#include "engine/internal.h"

realm_status realm_pool_init(realm_page_pool *p, realm_backend *b, realm_kv *kv, uint32_t n_pages, realm_error *err) {
    *p = (realm_page_pool){.backend = b, .kv = kv, .n = n_pages, .n_free = n_pages};
    p->page_bytes = b->v->kv_page_bytes(kv);
    p->free_list = realm_calloc(n_pages, sizeof *p->free_list);
    p->pages = realm_calloc(n_pages, sizeof *p->pages);
    if (!p->free_list || !p->pages) {
        realm_pool_release(p);
        return realm_error_set(err, REALM_E_NOMEM, "no memory for a table of %u KV pages", n_pages);
    }
    for (uint32_t i = 0; i < n_pages; i++) p->free_list[i] = n_pages - 1 - i; /* page 0 on top */
    return REALM_OK;
}

void realm_pool_release(realm_page_pool *p) {
    realm_free(p->free_list);
    realm_free(p->pages);
    p->free_list = NULL;
    p->pages = NULL;
}

realm_page_result realm_page_take(realm_page_pool *p, realm_account *a, uint32_t *page) {
    if (a->pages >= a->max_pages) return REALM_PAGE_ACCOUNT_LIMIT;
    if (p->n_free == 0) return REALM_PAGE_NONE_FREE;
    uint32_t id = p->free_list[--p->n_free];
    realm_page *g = &p->pages[id];
    assert(g->refs == 0);
    if (g->last_owner != 0 && g->last_owner != a->id) p->backend->v->kv_zero_page(p->backend, p->kv, id);
    *g = (realm_page){.refs = 1, .last_owner = a->id, .account = a};
    a->pages++;
    *page = id;
    return REALM_PAGE_OK;
}

void realm_page_ref(realm_page_pool *p, uint32_t page) { p->pages[page].refs++; }

void realm_page_unref(realm_page_pool *p, uint32_t page) {
    realm_page *g = &p->pages[page];
    assert(g->refs > 0);
    if (--g->refs > 0) return;
    g->account->pages--;
    g->account = NULL;
    p->free_list[p->n_free++] = page;
}

realm_page_result realm_page_own(realm_page_pool *p, realm_account *a, uint32_t *page) {
    if (p->pages[*page].refs == 1) return REALM_PAGE_OK;
    uint32_t copy;
    realm_page_result r = realm_page_take(p, a, &copy);
    if (r != REALM_PAGE_OK) return r;
    p->backend->v->kv_copy_page(p->backend, p->kv, copy, *page);
    realm_page_unref(p, *page);
    *page = copy;
    return REALM_PAGE_OK;
}
