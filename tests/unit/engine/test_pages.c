/* The pool by itself: where pages go when memory for them fails, whose pages make room for whom, what is counted. */
#include "engine/pages.h"
#include "support/engine_run.h"

typedef struct fixture {
    engine_run r; /* for its backend and model; the engine is idle */
    realm_page_pool p;
    realm_page_owner a, b;
} fixture;

static void open_pool(fixture *f, uint32_t n_pages, uint32_t spill_pages) {
    realm_kv *kv;
    engine_run_open(&f->r, &tiny_llama, &(realm_engine_config){.max_generations = 1});
    assert_int_equal(realm_model_kv_open(f->r.m, n_pages, &kv, NULL), REALM_OK);
    assert_int_equal(realm_pool_init(&f->p, f->r.b, kv, n_pages, NULL), REALM_OK);
    assert_int_equal(realm_spill_init(&f->p.spill, f->p.page_bytes, spill_pages * f->p.page_bytes, NULL, 0, NULL),
                     REALM_OK);
    f->a = (realm_page_owner){.id = 1, .max = UINT32_MAX, .has_secret = true};
    f->b = (realm_page_owner){.id = 2, .max = UINT32_MAX};
}

static void close_pool(fixture *f) {
    assert_int_equal(f->p.n_free, f->p.n);
    assert_int_equal(f->a.held + f->a.pinned + f->a.suspended + f->b.held + f->b.pinned + f->b.suspended, 0);
    assert_int_equal(f->p.spill.memory_used, 0);
    realm_pool_release(&f->p);
    engine_run_close(&f->r);
}

/* A sequence of n pages with content that says which page it is, unpinned. */
static realm_seq make_seq(fixture *f, realm_page_owner *o, uint32_t n, int mark) {
    realm_seq s = {0};
    assert_true(realm_seq_reserve(&s, n * REALM_KV_PAGE_TOKENS));
    for (uint32_t i = 0; i < n; i++) {
        realm_page *g;
        assert_int_equal(realm_page_take(&f->p, o, &g), REALM_PAGE_OK);
        void *content = test_malloc(f->p.page_bytes);
        memset(content, mark + (int)i, f->p.page_bytes);
        f->r.b->v->kv_write_page(f->r.b, f->p.kv, g->slot, content);
        test_free(content);
        realm_seq_add_page(&s, g, true);
    }
    s.n_tokens = s.n_past = n * REALM_KV_PAGE_TOKENS;
    for (uint32_t i = 0; i < s.n_tokens; i++) s.tokens[i] = mark + (int)i;
    realm_prefix_note(&f->p, o, &s);
    realm_seq_unpin(&f->p, &s);
    return s;
}

static bool says(fixture *f, const realm_page *g, int mark) {
    unsigned char *content = test_malloc(f->p.page_bytes);
    f->r.b->v->kv_read_page(f->r.b, f->p.kv, g->slot, content);
    bool same = content[0] == mark && memcmp(content, content + 1, f->p.page_bytes - 1) == 0;
    test_free(content);
    return same;
}

static void no_memory_to_move(void **state) {
    (void)state;
    fixture f;
    open_pool(&f, 3, 8);
    realm_seq s = make_seq(&f, &f.a, 3, 40), t;
    realm_page *g;
    realm_alloc_inject_failure(0, true); /* the page's content finds no memory: it is lost, the taker has its slot */
    assert_int_equal(realm_page_take(&f.p, &f.b, &g), REALM_PAGE_OK);
    realm_alloc_inject_failure(-1, false);
    assert_true(says(&f, g, 0)); /* another owner's content was in it */
    assert_int_equal(f.p.dropped, 1);
    assert_int_equal(f.p.n_suspended, 0);
    assert_int_equal(f.p.spill.memory_used, 0);
    assert_int_equal(s.pages[2]->place, REALM_PAGE_LOST); /* a sequence's end goes first */
    t = make_seq(&f, &f.b, 1, 80);
    assert_int_equal(s.pages[1]->place, REALM_PAGE_IN_MEMORY);
    assert_int_equal(f.a.suspended, 1);
    assert_int_equal(realm_page_pin(&f.p, s.pages[2]), REALM_PAGE_IS_LOST);
    assert_int_equal(realm_page_pin(&f.p, s.pages[0]), REALM_PAGE_OK);
    assert_int_equal(realm_page_pin(&f.p, s.pages[1]), REALM_PAGE_OK); /* b's idle one makes way */
    assert_true(says(&f, s.pages[0], 40) && says(&f, s.pages[1], 41));
    assert_int_equal(t.pages[0]->place, REALM_PAGE_IN_MEMORY);
    assert_int_equal(realm_page_pin(&f.p, t.pages[0]), REALM_PAGE_NONE_FREE); /* all others are pinned */
    s.slots[0] = s.pages[0]->slot, s.slots[1] = s.pages[1]->slot, s.n_unpinned = 1;
    realm_seq_release(&f.p, &s);
    assert_int_equal(realm_page_pin(&f.p, t.pages[0]), REALM_PAGE_OK);
    assert_true(says(&f, t.pages[0], 80));
    t.slots[0] = t.pages[0]->slot, t.n_unpinned = 0;
    realm_seq_release(&f.p, &t);
    realm_seq u = {0};
    assert_true(realm_seq_reserve(&u, REALM_KV_PAGE_TOKENS));
    realm_seq_add_page(&u, g, true);
    realm_seq_release(&f.p, &u);
    realm_pool_forget(&f.p, &f.a);
    close_pool(&f);
}

static void whose_pages_go(void **state) {
    (void)state;
    fixture f;
    open_pool(&f, 6, 8);
    realm_seq a = make_seq(&f, &f.a, 2, 10), b = make_seq(&f, &f.b, 2, 20), c = make_seq(&f, &f.a, 1, 30);
    realm_page *g;
    f.a.max = 3; /* at its limit: its own oldest goes, though a slot is free and b's is older than c's */
    assert_int_equal(realm_page_take(&f.p, &f.a, &g), REALM_PAGE_OK);
    assert_int_equal(f.a.held, 3);
    assert_int_equal(a.pages[1]->place, REALM_PAGE_IN_MEMORY);
    assert_int_equal(b.pages[1]->place, REALM_PAGE_IN_POOL);
    realm_seq_keep_pages(&f.p, &c, 0); /* keyed: cached from now on, charged to nobody, and the first to go */
    assert_int_equal(f.a.held, 2);
    assert_int_equal(f.a.cached.n, 1);
    realm_page *h;
    assert_int_equal(realm_page_take(&f.p, &f.a, &h), REALM_PAGE_OK);
    assert_int_equal(f.a.cached.n, 0);
    assert_int_equal(a.pages[0]->place, REALM_PAGE_IN_POOL);
    realm_page *i;
    assert_int_equal(realm_page_take(&f.p, &f.a, &i), REALM_PAGE_OK); /* now the idle one */
    assert_int_equal(f.a.suspended, 2);
    assert_int_equal(realm_page_take(&f.p, &f.a, &(realm_page *){NULL}), REALM_PAGE_OWNER_LIMIT);
    f.a.max = UINT32_MAX;
    realm_seq_release(&f.p, &a);
    realm_seq_release(&f.p, &b);
    realm_seq_release(&f.p, &c);
    realm_seq own = {0};
    assert_true(realm_seq_reserve(&own, 3 * REALM_KV_PAGE_TOKENS));
    realm_seq_add_page(&own, g, true), realm_seq_add_page(&own, h, true), realm_seq_add_page(&own, i, true);
    /* Written to by one of two holders: the other's stays as it was. */
    realm_pages_ref(&f.p, &own.pages[1], 1);
    realm_page *kept = own.pages[1];
    assert_int_equal(realm_page_own(&f.p, &f.a, &own.pages[1]), REALM_PAGE_OK);
    assert_ptr_not_equal(own.pages[1], kept);
    own.slots[1] = own.pages[1]->slot;
    realm_pages_unref(&f.p, &kept, 1);
    realm_seq_release(&f.p, &own);
    realm_pool_forget(&f.p, &f.a);
    close_pool(&f);
}

/* A page that cannot be read back was to have a slot of another owner's: nothing was written there, and whoever gets
 * the slot next, the same owner too, finds zeros. */
static void a_file_that_fails(void **state) {
    (void)state;
    fixture f;
    realm_page *g, *h;
    char dir[] = "/tmp/realm-pages-XXXXXX";
    open_pool(&f, 2, 0);
    realm_spill_release(&f.p.spill);
    assert_non_null(mkdtemp(dir));
    assert_int_equal(realm_spill_init(&f.p.spill, f.p.page_bytes, 0, dir, 4 * f.p.page_bytes, NULL), REALM_OK);
    assert_int_equal(rmdir(dir), 0);
    realm_seq a = make_seq(&f, &f.a, 1, 40), b = make_seq(&f, &f.b, 2, 80);
    assert_int_equal(a.pages[0]->place, REALM_PAGE_IN_FILE);
    realm_seq_release(&f.p, &b);
    assert_int_equal(ftruncate(f.p.spill.fd, 0), 0);
    assert_int_equal(realm_page_pin(&f.p, a.pages[0]), REALM_PAGE_IS_LOST);
    assert_int_equal(f.p.dropped, 1);
    assert_int_equal(f.p.spill.file_used, 0);
    assert_int_equal(realm_page_take(&f.p, &f.a, &g), REALM_PAGE_OK);
    assert_int_equal(realm_page_take(&f.p, &f.a, &h), REALM_PAGE_OK);
    assert_true(says(&f, g, 0) && says(&f, h, 0));
    realm_seq_keep_pages(&f.p, &a, 0);
    realm_seq own = {0};
    assert_true(realm_seq_reserve(&own, 2 * REALM_KV_PAGE_TOKENS));
    realm_seq_add_page(&own, g, true), realm_seq_add_page(&own, h, true);
    realm_seq_release(&f.p, &own);
    realm_seq_release(&f.p, &a);
    close_pool(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(no_memory_to_move), cmocka_unit_test(whose_pages_go),
                                       cmocka_unit_test(a_file_that_fails)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
