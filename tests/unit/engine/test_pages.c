/* The pool by itself: where pages go when memory for them fails, whose pages make room for whom, what is counted. */
#include "engine/pages.h"
#include "support/engine_run.h"
#include "support/scratch.h"

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
    assert_int_equal(
        realm_spill_init(&f->p.spill, &f->p.mu, f->p.page_bytes, spill_pages * f->p.page_bytes, NULL, 0, NULL),
        REALM_OK);
    f->a = (realm_page_owner){.id = 1, .max = UINT32_MAX, .weight = 100, .has_secret = true};
    f->b = (realm_page_owner){.id = 2, .max = UINT32_MAX, .weight = 100};
}

static void close_pool(fixture *f) {
    assert_int_equal(f->p.n_free, f->p.n);
    assert_int_equal(f->a.held + f->a.pinned + f->a.away.n + f->b.held + f->b.pinned + f->b.away.n, 0);
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
    assert_int_equal(f.p.away.n, 0);
    assert_int_equal(f.p.spill.memory_used, 0);
    assert_int_equal(s.pages[2]->place, REALM_PAGE_LOST); /* a sequence's end goes first */
    t = make_seq(&f, &f.b, 1, 80);
    assert_int_equal(s.pages[1]->place, REALM_PAGE_IN_MEMORY);
    assert_int_equal(f.a.away.n, 1);
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
    assert_int_equal(f.a.away.n, 2);
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
    assert_int_equal(realm_seq_own(&f.p, &f.a, &own, 1), REALM_PAGE_OK);
    assert_ptr_not_equal(own.pages[1], kept);
    own.slots[1] = own.pages[1]->slot;
    realm_pages_unref(&f.p, &kept, 1);
    realm_seq_release(&f.p, &own);
    realm_pool_forget(&f.p, &f.a);
    close_pool(&f);
}

/* Puts a file behind the pool's memory for pages. */
static void open_file(fixture *f, uint32_t memory_pages, uint32_t file_pages) {
    char dir[SCRATCH_MAX] = "pages";
    realm_spill_release(&f->p.spill);
    assert_non_null(scratch_dir(dir));
    assert_int_equal(realm_spill_init(&f->p.spill, &f->p.mu, f->p.page_bytes, memory_pages * f->p.page_bytes, dir,
                                      file_pages * f->p.page_bytes, NULL),
                     REALM_OK);
    assert_int_equal(rmdir(dir), 0);
}

/* Waits until the file's thread has nothing to do any more. */
static void drain(fixture *f) {
    for (bool busy = true; busy; sched_yield()) {
        realm_mutex_lock(&f->p.mu);
        busy = f->p.spill.reads.head || f->p.spill.writes.head;
        for (size_t i = 0; i < REALM_ARRAY_LEN(f->p.spill.jobs); i++)
            busy |= f->p.spill.jobs[i].started && !f->p.spill.jobs[i].done;
        realm_mutex_unlock(&f->p.mu);
    }
}

/* As the engine does, which is woken in between. */
static realm_page_result pin_at_last(fixture *f, realm_page *g) {
    realm_page_result r;
    while ((r = realm_page_pin(&f->p, g)) == REALM_PAGE_LATER) sched_yield();
    return r;
}

static void pin_all(fixture *f, realm_seq *s, int mark) {
    for (uint32_t i = 0; i < s->n_pages; i++) {
        if (s->slots[i] != REALM_SLOT_NONE) continue;
        assert_int_equal(pin_at_last(f, s->pages[i]), REALM_PAGE_OK);
        s->slots[i] = s->pages[i]->slot;
        s->n_unpinned--;
        assert_true(says(f, s->pages[i], mark + (int)i));
    }
}

/* Room outside the pool is shared by who wants it: who has less takes it from who has most, the oldest page first. */
static void whose_room(void **state) {
    (void)state;
    for (int with_file = 0; with_file < 2; with_file++) {
        fixture f;
        realm_page *g;
        open_pool(&f, 4, 4);
        if (with_file) open_file(&f, 1, 3);
        f.a.has_secret = false;
        realm_seq a = make_seq(&f, &f.a, 4, 10), b, taken = {0};
        assert_true(realm_seq_reserve(&taken, 4 * REALM_KV_PAGE_TOKENS));
        for (int i = 0; i < 4; i++) { /* all of a's leave the pool: nobody else wants the room */
            assert_int_equal(realm_page_take(&f.p, &f.b, &g), REALM_PAGE_OK);
            realm_seq_add_page(&taken, g, true);
        }
        assert_int_equal(f.a.away.n, 4);
        realm_seq_keep_pages(&f.p, &taken, 0);
        b = make_seq(&f, &f.b, 4, 50);
        for (int i = 0; i < 4; i++) {
            drain(&f); /* the room of a page that goes while it is being written is free only when it is written */
            assert_int_equal(realm_page_take(&f.p, &f.a, &g), REALM_PAGE_OK);
            realm_seq_add_page(&taken, g, true);
        }
        assert_int_equal(f.a.away.n, 2);
        assert_int_equal(f.b.away.n, 2);
        assert_int_equal(f.p.dropped, 4);
        /* Of a the sequence's end went out first; of b what came last found no more room that was not its part. */
        for (int i = 0; i < 4; i++) assert_int_equal(a.pages[i]->place == REALM_PAGE_LOST, i >= 2);
        for (int i = 0; i < 4; i++) assert_int_equal(b.pages[i]->place == REALM_PAGE_LOST, i < 2);
        realm_seq_release(&f.p, &taken);
        realm_seq_keep_pages(&f.p, &a, 2);
        pin_all(&f, &a, 10);
        assert_int_equal(realm_page_pin(&f.p, b.pages[0]), REALM_PAGE_IS_LOST);
        assert_int_equal(pin_at_last(&f, b.pages[3]), REALM_PAGE_OK);
        assert_true(says(&f, b.pages[3], 53));
        b.slots[3] = b.pages[3]->slot;
        b.n_unpinned--;
        realm_seq_release(&f.p, &a);
        realm_seq_release(&f.p, &b);
        close_pool(&f);
    }
}

/* With three times the weight an account has three times the room. */
static void room_by_weight(void **state) {
    (void)state;
    fixture f;
    realm_page *g;
    open_pool(&f, 4, 4);
    f.b.weight = 300;
    realm_seq a = make_seq(&f, &f.a, 4, 10), b, taken = {0};
    assert_true(realm_seq_reserve(&taken, 8 * REALM_KV_PAGE_TOKENS));
    for (int k = 0; k < 2; k++) { /* first all of a's leave the pool, then all of b's */
        for (int i = 0; i < 4; i++) {
            assert_int_equal(realm_page_take(&f.p, k ? &f.a : &f.b, &g), REALM_PAGE_OK);
            realm_seq_add_page(&taken, g, true);
        }
        assert_int_equal(f.a.away.n, k ? 1 : 4);
        assert_int_equal(f.b.away.n, k ? 3 : 0);
        if (k == 0) realm_seq_keep_pages(&f.p, &taken, 0);
        if (k == 0) b = make_seq(&f, &f.b, 4, 50);
    }
    realm_seq_release(&f.p, &taken);
    realm_seq_release(&f.p, &a);
    realm_seq_release(&f.p, &b);
    close_pool(&f);
}

/* A step moves pages for some time, at least one, and then says that there is more to do. */
static void a_step_ends(void **state) {
    (void)state;
    fixture f;
    realm_page *g;
    open_pool(&f, 3, 8);
    realm_seq a = make_seq(&f, &f.a, 3, 10), own = {0};
    assert_true(realm_seq_reserve(&own, 3 * REALM_KV_PAGE_TOKENS));
    for (int i = 0; i < 3; i++) {
        realm_pool_begin_step(&f.p, 1); /* long past */
        assert_int_equal(realm_page_take(&f.p, &f.b, &g), REALM_PAGE_OK);
        realm_seq_add_page(&own, g, true);
        assert_false(f.p.cut_short);
        if (i == 2) continue;
        assert_int_equal(realm_page_take(&f.p, &f.b, &g), REALM_PAGE_LATER);
        assert_true(f.p.cut_short);
    }
    realm_seq_release(&f.p, &own);
    realm_pool_begin_step(&f.p, 1);
    assert_int_equal(realm_page_pin(&f.p, a.pages[0]), REALM_PAGE_OK);
    assert_int_equal(realm_page_pin(&f.p, a.pages[1]), REALM_PAGE_LATER);
    realm_pool_begin_step(&f.p, UINT64_MAX);
    a.slots[0] = a.pages[0]->slot;
    a.n_unpinned--;
    pin_all(&f, &a, 10);
    realm_seq_release(&f.p, &a);
    realm_pool_forget(&f.p, &f.a);
    close_pool(&f);
}

typedef struct stop {
    sem_t entered, go;
} stop;

static void stopped(void *user) {
    stop *s = user;
    sem_post(&s->entered);
    while (sem_wait(&s->go) != 0) continue;
}

/* A disk that does nothing holds up nobody but who needs it: pages go out as long as there are buffers, come back from
 * these, and then LATER is the answer until the disk goes on. */
static void a_disk_that_stands_still(void **state) {
    (void)state;
    enum { N = REALM_SPILL_WRITES + 4 };
    fixture f;
    realm_page *g;
    stop s;
    sem_init(&s.entered, 0, 0);
    sem_init(&s.go, 0, 0);
    open_pool(&f, N, 0);
    open_file(&f, 0, 100);
    f.a.has_secret = false;
    realm_seq a = make_seq(&f, &f.a, N, 10), own = {0};
    assert_true(realm_seq_reserve(&own, N * REALM_KV_PAGE_TOKENS));
    realm_mutex_lock(&f.p.mu);
    f.p.spill.on_moved = stopped;
    f.p.spill.user = &s;
    f.p.spill.waited_for = true;
    realm_mutex_unlock(&f.p.mu);
    assert_int_equal(realm_page_take(&f.p, &f.b, &g), REALM_PAGE_OK);
    realm_seq_add_page(&own, g, true);
    while (sem_wait(&s.entered) != 0) continue; /* the file's thread, after the first page */
    for (uint32_t i = 0; i < REALM_SPILL_WRITES; i++) {
        assert_int_equal(realm_page_take(&f.p, &f.b, &g), REALM_PAGE_OK);
        realm_seq_add_page(&own, g, true);
    }
    assert_int_equal(realm_page_take(&f.p, &f.b, &g), REALM_PAGE_LATER);
    assert_int_equal(realm_page_pin(&f.p, a.pages[N - 1]), REALM_PAGE_LATER); /* the only one that is in the file */
    realm_seq_release(&f.p, &own);
    assert_int_equal(realm_page_pin(&f.p, a.pages[N - 2]), REALM_PAGE_OK); /* on its way out: back from the buffer */
    assert_true(says(&f, a.pages[N - 2], 10 + N - 2));
    a.slots[N - 2] = a.pages[N - 2]->slot;
    a.n_unpinned--;
    /* Let go on the way out: buffer and room are free again. */
    realm_pages_unref(&f.p, &a.pages[--a.n_pages], 1);
    a.n_unpinned--;
    sem_post(&s.go);
    sem_post(&s.go); /* one waited for a page since */
    drain(&f);
    realm_mutex_lock(&f.p.mu);
    f.p.spill.on_moved = NULL;
    realm_mutex_unlock(&f.p.mu);
    assert_int_equal(f.p.spill.file_used, REALM_SPILL_WRITES - 1);
    pin_all(&f, &a, 10);
    assert_int_equal(f.p.spill.file_used, 0);
    realm_seq_release(&f.p, &a);
    close_pool(&f);
    sem_destroy(&s.entered);
    sem_destroy(&s.go);
}

/* A page that cannot be read back was to have a slot of another owner's: nothing was written there, and whoever gets
 * the slot next, the same owner too, finds zeros. */
static void a_file_that_fails(void **state) {
    (void)state;
    fixture f;
    realm_page *g, *h;
    open_pool(&f, 2, 0);
    open_file(&f, 0, 4);
    realm_seq a = make_seq(&f, &f.a, 1, 40), b = make_seq(&f, &f.b, 2, 80);
    assert_int_equal(a.pages[0]->place, REALM_PAGE_IN_FILE);
    realm_seq_release(&f.p, &b);
    drain(&f);
    assert_int_equal(ftruncate(f.p.spill.fd, 0), 0);
    assert_int_equal(pin_at_last(&f, a.pages[0]), REALM_PAGE_IS_LOST);
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
    const struct CMUnitTest tests[] = {cmocka_unit_test(no_memory_to_move),       cmocka_unit_test(whose_pages_go),
                                       cmocka_unit_test(a_file_that_fails),       cmocka_unit_test(whose_room),
                                       cmocka_unit_test(room_by_weight),          cmocka_unit_test(a_step_ends),
                                       cmocka_unit_test(a_disk_that_stands_still)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
