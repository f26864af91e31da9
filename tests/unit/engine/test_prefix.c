/* The prefix cache and pages outside the pool: they save work and change no token; what one account has shows nothing
 * to another. */
#include <dirent.h>
#include <fcntl.h>

#include "engine/internal.h"
#include "support/oracle.h"
#include "support/scratch.h"

static const uint8_t secret_a[REALM_CACHE_SECRET_BYTES] = "the secret of tenant a", secret_b[32] = "tenant b's secret";
static oracle truth;

static uint64_t page_bytes(void) {
    static uint64_t bytes;
    if (!bytes) bytes = page_bytes_of(&tiny_llama);
    return bytes;
}

static realm_account *account(engine_run *r, const uint8_t *secret, uint64_t kv_tokens) {
    realm_account *a;
    assert_int_equal(realm_account_open(r->e, &(realm_account_limits){.kv_tokens = kv_tokens}, secret, &a, NULL),
                     REALM_OK);
    return a;
}

/* Generates after `prompt`, holds the tokens against `want` (NULL, without a context: ask the oracle); returns how many
 * were cached. */
static uint32_t run(engine_run *r, realm_account *a, realm_context *c, const realm_token *prompt, size_t n,
                    const realm_token *want, uint32_t n_new) {
    static consumer k;
    realm_error err = {0};
    realm_token true_end[512];
    if (!want) {
        memcpy(true_end, prompt, n * sizeof *prompt);
        oracle_continue(&truth, true_end, (uint32_t)n, n_new);
        want = true_end + n;
    }
    realm_generation_params p = greedy(a, prompt, n, n_new);
    p.context = c;
    if (consumer_submit(&k, r->e, &p, &err) != REALM_OK) model_run_fail("submit", &err);
    consumer_wait(&k);
    assert_int_equal(k.finish, REALM_FINISH_LENGTH);
    assert_int_equal(k.n_ids, n_new);
    assert_memory_equal(k.ids, want, n_new * sizeof *want);
    uint32_t cached = k.batch.cached_tokens;
    if (!c) assert_int_equal(k.prompt_tokens, n);
    consumer_close(&k);
    return cached;
}

static void hits_and_misses(void **state) {
    (void)state;
    engine_run r;
    realm_token want[300], other[300];
    engine_run_open(&r, &tiny_llama, NULL);
    oracle_open_tiny(&truth, r.file);
    fill_prompt(want, 200, 1);
    oracle_continue(&truth, want, 200, 40);
    memcpy(other, want, sizeof other);
    other[70] = (other[70] + 1) % (realm_token)TINY_VOCAB;
    oracle_continue(&truth, other, 200, 10);
    realm_account *a = account(&r, secret_a, 0), *b = account(&r, secret_b, 0), *same = account(&r, secret_a, 0);
    assert_int_equal(run(&r, a, NULL, want, 200, want + 200, 40), 0);
    assert_int_equal(run(&r, a, NULL, want, 200, want + 200, 40), 192);
    assert_int_equal(run(&r, a, NULL, want, 193, NULL, 5), 192);
    assert_int_equal(run(&r, a, NULL, want, 192, NULL, 5), 160);       /* one token stays to be computed */
    assert_int_equal(run(&r, a, NULL, want, 239, want + 239, 1), 224); /* what was generated can be found as well */
    assert_int_equal(run(&r, a, NULL, other, 200, other + 200, 10),
                     64); /* the third page differs, so do all after it */
    assert_int_equal(run(&r, a, NULL, other, 200, other + 200, 10), 192);
    assert_int_equal(run(&r, b, NULL, want, 200, want + 200, 40), 0);    /* equal tokens, another account */
    assert_int_equal(run(&r, same, NULL, want, 200, want + 200, 40), 0); /* even with the same secret */
    assert_int_equal(run(&r, r.a, NULL, want, 200, want + 200, 40), 0);  /* without one there is no cache */
    assert_int_equal(run(&r, r.a, NULL, want, 200, want + 200, 40), 0);
    realm_token_counts n;
    realm_account_counts(a, &n);
    assert_int_equal(n.cached, 192 + 192 + 160 + 224 + 64 + 192);
    assert_int_equal(n.prompt, 4 * 200 + 193 + 192 + 239);

    /* A context continues its own pages with the account's. */
    realm_context *c;
    assert_int_equal(realm_context_open(r.e, a, &c, NULL), REALM_OK);
    assert_int_equal(realm_context_append(c, want, 49, NULL), REALM_OK);
    want[50] = oracle_next(&truth, want, 50);
    assert_int_equal(run(&r, a, c, want + 49, 1, want + 50, 1), 32);
    assert_int_equal(realm_context_truncate(c, 50, NULL), REALM_OK);
    fill_prompt(want, 200, 1);
    assert_int_equal(run(&r, a, c, want + 50, 150, want + 200, 20), 192 - 50);
    realm_context_release(c);

    /* Closing an account forgets its pages. */
    realm_engine_stats st;
    realm_account_close(same);
    realm_account_close(a);
    realm_account_close(b);
    do realm_engine_get_stats(r.e, &st); /* the engine's thread may still hold the last generation */
    while (st.kv_pages_used + st.kv_pages_cached > 0);
    oracle_close(&truth);
    engine_run_close(&r);
}

/* Cached pages give way to whatever needs the room: neither the pool nor kv_tokens ever refuses because of them. */
static void the_cache_gives_way(void **state) {
    (void)state;
    enum { PAGES = 8 };
    engine_run r;
    realm_token want[3][260];
    engine_run_open(&r, &tiny_llama, &(realm_engine_config){.kv_bytes = PAGES * page_bytes()});
    oracle_open_tiny(&truth, r.file);
    realm_account *a = account(&r, secret_a, 6 * REALM_KV_PAGE_TOKENS), *b = account(&r, secret_b, 0);
    for (unsigned i = 0; i < 3; i++) {
        fill_prompt(want[i], 180, i);
        oracle_continue(&truth, want[i], 180, 13);
    }
    realm_engine_stats st;
    for (unsigned i = 0; i < 6; i++) {
        /* Six pages are all that the account may have; the rest of the one before is gone by then. */
        assert_int_equal(run(&r, a, NULL, want[i % 3], 180, want[i % 3] + 180, 13), 0);
        realm_engine_get_stats(r.e, &st);
        assert_int_equal(st.kv_pages_cached, 6);
    }
    assert_int_equal(run(&r, a, NULL, want[2], 180, want[2] + 180, 13), 160);
    /* Another account takes seven of the pool's eight; what is left is the start of the chain. */
    assert_int_equal(run(&r, b, NULL, want[1], 180, want[1] + 180, 13), 0);
    realm_engine_get_stats(r.e, &st);
    assert_int_equal(st.kv_pages_cached, PAGES);
    assert_int_equal(run(&r, a, NULL, want[2], 180, want[2] + 180, 13), 64);
    realm_account_close(a);
    realm_account_close(b);
    oracle_close(&truth);
    engine_run_close(&r);
}

static const struct realm_backend_vtable *original;
static struct realm_backend_vtable patched;
static int fail_in; /* steps until one fails */

static realm_status failing_run(realm_backend *b, realm_plan *p, const realm_batch *batch, realm_error *err) {
    if (fail_in > 0 && --fail_in == 0) return realm_error_set(err, REALM_E_DEVICE, "the device is gone");
    return original->run(b, p, batch, err);
}

/* Computed in part, it is not there for anybody; what is published besides, and with it in common, is. */
static void published_whole_or_not(void **state) {
    (void)state;
    engine_run r;
    realm_error err;
    realm_token want[150];
    engine_run_open(&r, &tiny_llama, &(realm_engine_config){.kv_bytes = 24 * page_bytes(), .chunk_tokens = 32});
    original = r.b->v;
    patched = *original;
    patched.run = failing_run;
    r.b->v = &patched; /* before the first step: from then on the engine looks at the table until it sleeps */
    oracle_open_tiny(&truth, r.file);
    fill_prompt(want, 128, 1);
    oracle_continue(&truth, want, 128, 20);
    assert_int_equal(realm_engine_publish_prefix(r.e, want, 32, &err), REALM_OK);
    fail_in = 2;
    assert_int_equal(realm_engine_publish_prefix(r.e, want, 128, &err), REALM_E_DEVICE);
    assert_int_equal(run(&r, r.a, NULL, want, 148, NULL, 2), 32);
    realm_engine_stats st;
    do realm_engine_get_stats(r.e, &st);
    while (st.kv_pages_used + st.kv_pages_cached > 1);
    /* Nothing of the failure counts against the room for them, nor does what they have in common. */
    for (unsigned i = 0; i < 8; i++) assert_int_equal(realm_engine_publish_prefix(r.e, want, 128, &err), REALM_OK);
    assert_int_equal(realm_engine_publish_prefix(r.e, want, 64, &err), REALM_OK);
    assert_int_equal(run(&r, r.a, NULL, want, 148, NULL, 2), 128);
    realm_engine_get_stats(r.e, &st);
    assert_int_equal(st.contexts, 2);
    oracle_close(&truth);
    engine_run_close(&r);
}

typedef struct publisher {
    engine_run *r;
    realm_token tokens[7 * 32];
    realm_status status;
    sem_t started;
    pthread_t thread;
} publisher;

static void *publisher_main(void *arg) {
    publisher *p = arg;
    sem_post(&p->started);
    p->status = realm_engine_publish_prefix(p->r->e, p->tokens, REALM_ARRAY_LEN(p->tokens), NULL);
    return NULL;
}

/* Two at the same time, and room for one. */
static void published_at_once(void **state) {
    (void)state;
    engine_run r;
    static publisher p[2];
    held stop;
    realm_engine_stats st;
    engine_run_open(&r, &tiny_llama, &(realm_engine_config){.kv_bytes = 24 * page_bytes()});
    engine_stop(&stop, &r);
    for (unsigned i = 0; i < 2; i++) {
        p[i].r = &r;
        fill_prompt(p[i].tokens, REALM_ARRAY_LEN(p[i].tokens), i + 1);
        sem_init(&p[i].started, 0, 0);
        assert_int_equal(pthread_create(&p[i].thread, NULL, publisher_main, &p[i]), 0);
        while (sem_wait(&p[i].started) != 0) continue;
        do realm_engine_get_stats(r.e, &st); /* the first one waits for the engine */
        while (st.queued == 0);
    }
    held_go(&stop);
    for (unsigned i = 0; i < 2; i++) {
        pthread_join(p[i].thread, NULL);
        sem_destroy(&p[i].started);
    }
    assert_int_equal(p[0].status, REALM_OK);
    assert_int_equal(p[1].status, REALM_E_LIMIT);
    engine_run_close(&r);
}

static void published(void **state) {
    (void)state;
    engine_run r;
    realm_error err;
    realm_token want[300], other[300];
    engine_run_open(&r, &tiny_llama, &(realm_engine_config){.kv_bytes = 24 * page_bytes()});
    oracle_open_tiny(&truth, r.file);
    fill_prompt(want, 200, 1);
    oracle_continue(&truth, want, 200, 20);
    memcpy(other, want, sizeof other);
    fill_prompt(other + 100, 100, 9);
    oracle_continue(&truth, other, 200, 20);
    assert_int_equal(realm_engine_publish_prefix(r.e, want, 31, &err), REALM_E_RANGE);
    assert_int_equal(realm_engine_publish_prefix(r.e, want, 13 * 32, &err), REALM_E_LIMIT);
    assert_int_equal(realm_engine_publish_prefix(r.e, (realm_token[32]){-1}, 32, &err), REALM_E_RANGE);
    assert_int_equal(realm_engine_publish_prefix(r.e, want, 100, &err), REALM_OK);
    realm_account *a = account(&r, secret_a, 7 * 32), *b = account(&r, secret_b, 0);
    assert_int_equal(run(&r, r.a, NULL, want, 200, want + 200, 20), 96); /* without a cache of its own */
    assert_int_equal(run(&r, a, NULL, want, 200, want + 200, 20), 96);
    assert_int_equal(run(&r, a, NULL, want, 200, want + 200, 20), 192); /* its own pages behind the published ones */
    assert_int_equal(run(&r, b, NULL, want, 200, want + 200, 20), 96);
    assert_int_equal(run(&r, b, NULL, other, 200, other + 200, 20), 96);
    assert_int_equal(realm_engine_publish_prefix(r.e, other, 140, &err), REALM_OK);
    assert_int_equal(run(&r, a, NULL, other, 200, other + 200, 20), 128);
    /* They are charged to nobody, and stay whatever tenants do. */
    for (unsigned i = 0; i < 10; i++) {
        fill_prompt(other, 200, 20 + i);
        oracle_continue(&truth, other, 200, 2);
        run(&r, b, NULL, other, 200, other + 200, 2);
    }
    assert_int_equal(run(&r, r.a, NULL, want, 200, want + 200, 20), 96);
    realm_account *const all[] = {r.a, a, b};
    realm_token_counts total, each[3];
    realm_engine_counts(r.e, &total, all, 3, each);
    assert_int_equal(total.prompt, each[0].prompt + each[1].prompt + each[2].prompt);
    assert_int_equal(total.cached, each[0].cached + each[1].cached + each[2].cached);
    realm_account_close(a);
    realm_account_close(b);
    oracle_close(&truth);
    engine_run_close(&r);
}

/* What an account sees of time is the number of rows computed for it; over many trials it is the same whether or not
 * another account has just computed the same text. */
static void nothing_shows(void **state) {
    (void)state;
    enum { TRIALS = 200 };
    engine_run r;
    realm_token want[120];
    engine_run_open(&r, &tiny_llama, NULL);
    oracle_open_tiny(&truth, r.file);
    realm_account *a = account(&r, secret_a, 0), *b = account(&r, secret_b, 0);
    uint64_t rows[2] = {0, 0};
    for (unsigned i = 0; i < TRIALS; i++) {
        fill_prompt(want, 100, 1000 + i);
        oracle_continue(&truth, want, 100, 1);
        if (i % 2) assert_int_equal(run(&r, a, NULL, want, 100, want + 100, 1), 0);
        realm_engine_stats before, after;
        realm_engine_get_stats(r.e, &before);
        assert_int_equal(run(&r, b, NULL, want, 100, want + 100, 1), 0);
        realm_engine_get_stats(r.e, &after);
        rows[i % 2] += after.rows - before.rows;
    }
    assert_int_equal(rows[0], rows[1]);
    realm_account_close(a);
    realm_account_close(b);
    oracle_close(&truth);
    engine_run_close(&r);
}

/* ---- outside the pool -------------------------------------------------------------------------------------------- */

/* The file that the engine has no name for any more. */
static int spill_fd(const char *dir) {
    DIR *d = opendir("/proc/self/fd");
    assert_non_null(d);
    int found = -1;
    for (struct dirent *e; (e = readdir(d));) {
        char path[64], target[512];
        snprintf(path, sizeof path, "/proc/self/fd/%.20s", e->d_name);
        ssize_t n = readlink(path, target, sizeof target - 1);
        if (n <= 0) continue;
        target[n] = '\0';
        if (strstr(target, dir) && strstr(target, "(deleted)")) found = atoi(e->d_name);
    }
    closedir(d);
    return found;
}

/* More idle contexts than the pool has room for: in memory, in a file, in neither, and in a file that is damaged. */
static void idle_contexts_leave(void **state) {
    (void)state;
    enum { N = 6, LEN = 90 };
    static const struct {
        uint32_t memory_pages, file_pages;
        bool damage, cut;
    } rooms[] = {{100, 0, false, false}, {4, 100, false, false}, {0, 0, false, false},
                 {0, 5, false, false},   {0, 100, true, false},  {0, 100, false, true}};
    char dir[SCRATCH_MAX] = "test-spill";
    assert_non_null(scratch_dir(dir));
    static realm_token want[N][LEN + 20];
    for (size_t k = 0; k < REALM_ARRAY_LEN(rooms); k++) {
        engine_run r;
        realm_engine_config config = {.kv_bytes = 8 * page_bytes(),
                                      .spill_bytes = rooms[k].memory_pages * page_bytes(),
                                      .spill_dir = rooms[k].file_pages > 0 ? dir : NULL,
                                      .spill_dir_bytes = rooms[k].file_pages * page_bytes()};
        engine_run_open(&r, &tiny_llama, &config);
        oracle_open_tiny(&truth, r.file);
        realm_context *c[N], *f;
        for (unsigned i = 0; i < N; i++) {
            fill_prompt(want[i], LEN, i);
            oracle_continue(&truth, want[i], LEN, 20);
            assert_int_equal(realm_context_open(r.e, r.a, &c[i], NULL), REALM_OK);
            run(&r, r.a, c[i], want[i], LEN, want[i] + LEN, 5);
        }
        realm_engine_stats st;
        realm_context_info info;
        realm_engine_get_stats(r.e, &st);
        assert_int_equal(st.kv_pages_used, 8);
        assert_int_equal(st.suspended_bytes, REALM_MIN(10, rooms[k].memory_pages) * page_bytes());
        assert_int_equal(st.suspended_disk,
                         REALM_MIN(10 - REALM_MIN(10, rooms[k].memory_pages), rooms[k].file_pages) * page_bytes());
        assert_int_equal(st.suspended_pages + st.dropped, 10);
        realm_context_get_info(c[0], &info);
        assert_true(info.suspended);
        realm_context_get_info(c[N - 1], &info);
        assert_false(info.suspended);
        if (rooms[k].damage || rooms[k].cut) {
            int fd = spill_fd(dir);
            assert_true(fd >= 0);
            if (rooms[k].cut)
                assert_int_equal(ftruncate(fd, (off_t)(3 * page_bytes() / 2)), 0);
            else
                for (unsigned p = 0; p < 10; p += 2)
                    assert_int_equal(pwrite(fd, "x", 1, (off_t)(p * page_bytes() + 700)), 1);
        }
        for (unsigned round = 0; round < 2; round++) { /* two of them share what is suspended */
            for (unsigned i = 0; i < N; i++) {
                assert_int_equal(realm_context_fork(c[i], &f, NULL), REALM_OK);
                run(&r, r.a, f, NULL, 0, want[i] + LEN + 5 + 7 * round, 5);
                realm_context_release(f);
                run(&r, r.a, c[i], NULL, 0, want[i] + LEN + 5 + 7 * round, 7);
            }
        }
        realm_engine_get_stats(r.e, &st);
        if (rooms[k].memory_pages == 100) {
            assert_true(st.resumes >= 10);
            assert_int_equal(st.dropped, 0);
        }
        for (unsigned i = 0; i < N; i++) realm_context_release(c[i]);
        realm_engine_get_stats(r.e, &st);
        assert_int_equal(st.kv_pages_used, 0);
        assert_int_equal(st.suspended_pages, 0);
        assert_int_equal(st.suspended_bytes + st.suspended_disk, 0);
        oracle_close(&truth);
        engine_run_close(&r);
    }
    assert_int_equal(rmdir(dir), 0); /* nothing in it had a name */
    engine_run r;
    engine_run_open(&r, &tiny_llama, NULL);
    realm_engine *e;
    realm_error err;
    assert_int_equal(realm_engine_open(&e, r.b, r.m, r.t, &(realm_engine_config){.spill_dir = dir}, &err), REALM_E_IO);
    assert_non_null(strstr(err.text, dir));
    engine_run_close(&r);
}

/* At its kv_tokens an account's own idle contexts make room, nobody else's; only what cannot fit at all is refused. */
static void at_the_limit(void **state) {
    (void)state;
    engine_run r;
    realm_error err;
    static consumer k;
    static realm_token want[3][160];
    engine_run_open(&r, &tiny_llama, &(realm_engine_config){.spill_bytes = 100 * page_bytes()});
    oracle_open_tiny(&truth, r.file);
    realm_account *a = account(&r, NULL, 5 * 32), *b = account(&r, NULL, 0);
    realm_context *c[3];
    for (unsigned i = 0; i < 3; i++) {
        fill_prompt(want[i], 120, i);
        oracle_continue(&truth, want[i], 120, 20);
        assert_int_equal(realm_context_open(r.e, i < 2 ? a : b, &c[i], NULL), REALM_OK);
        run(&r, i < 2 ? a : b, c[i], want[i], 120, want[i] + 120, 5);
    }
    realm_context_info info;
    for (unsigned round = 0; round < 3; round++) {
        for (unsigned i = 0; i < 2; i++) {
            run(&r, a, c[i], NULL, 0, want[i] + 125 + 4 * round, 4);
            realm_context_get_info(c[i], &info);
            assert_false(info.suspended);
            realm_context_get_info(c[1 - i], &info);
            assert_true(info.suspended);
        }
    }
    realm_context_get_info(c[2], &info);
    assert_false(info.suspended);
    realm_generation_params p = greedy(a, want[0], 120, 60);
    assert_int_equal(consumer_submit(&k, r.e, &p, &err), REALM_E_QUOTA);
    for (unsigned i = 0; i < 3; i++) realm_context_release(c[i]);
    realm_account_close(a);
    realm_account_close(b);
    oracle_close(&truth);
    engine_run_close(&r);
}

/* ---- a slow way back --------------------------------------------------------------------------------------------- */

static unsigned n_steps, n_back, first_step, last_step; /* of pages that came back: the steps that were before */

static realm_status counting_run(realm_backend *b, realm_plan *p, const realm_batch *batch, realm_error *err) {
    n_steps++;
    return original->run(b, p, batch, err);
}

static void slow_write(realm_backend *b, realm_kv *kv, uint32_t page, const void *in) {
    nanosleep(&(struct timespec){.tv_nsec = 4000000}, NULL);
    if (n_back++ == 0) first_step = n_steps;
    last_step = n_steps;
    original->kv_write_page(b, kv, page, in);
}

/* A long context comes back page by page, in steps of others who go on meanwhile. */
static void others_go_on_meanwhile(void **state) {
    (void)state;
    enum { LEN = 480, PAGES = LEN / 32 };
    engine_run r;
    static realm_token long_one[LEN], filler[LEN], prompt[20];
    static consumer k, other, alone;
    held stop;
    realm_context *c, *d;
    realm_engine_stats st;
    realm_engine_config config = {.kv_bytes = 20 * page_bytes(), .spill_bytes = 100 * page_bytes()};
    engine_run_open(&r, &tiny_llama, &config);
    original = r.b->v;
    patched = *original;
    patched.run = counting_run;
    patched.kv_write_page = slow_write;
    r.b->v = &patched; /* before the first step, as above */
    fill_prompt(long_one, LEN, 1);
    fill_prompt(filler, LEN, 2);
    fill_prompt(prompt, 20, 3);
    realm_generation_params p = greedy(r.a, long_one, LEN, 6);
    assert_int_equal(consumer_submit(&alone, r.e, &p, NULL), REALM_OK);
    consumer_wait(&alone);
    assert_int_equal(realm_context_open(r.e, r.a, &c, NULL), REALM_OK);
    assert_int_equal(realm_context_open(r.e, r.a, &d, NULL), REALM_OK);
    for (unsigned i = 0; i < 2; i++) { /* the second one drives out most of the first */
        p = greedy(r.a, i ? filler : long_one, LEN, 1);
        p.context = i ? d : c;
        assert_int_equal(consumer_submit(&k, r.e, &p, NULL), REALM_OK);
        consumer_wait(&k);
        consumer_close(&k);
    }
    realm_context_release(d);
    realm_engine_get_stats(r.e, &st);
    assert_int_equal(st.suspended_pages, 2 * PAGES - 20);
    engine_stop(&stop, &r);
    p = greedy(r.a, prompt, 20, 60);
    assert_int_equal(consumer_submit(&other, r.e, &p, NULL), REALM_OK);
    p = greedy(r.a, NULL, 0, 5);
    p.context = c;
    assert_int_equal(consumer_submit(&k, r.e, &p, NULL), REALM_OK);
    held_go(&stop);
    consumer_wait(&k);
    consumer_wait(&other);
    assert_int_equal(n_back, 2 * PAGES - 20);
    assert_in_range(last_step - first_step, 2, n_back);
    assert_int_equal(k.n_ids, 5);
    assert_memory_equal(k.ids, alone.ids + 1, 5 * sizeof k.ids[0]);
    assert_int_equal(other.n_ids, 60);
    consumer_close(&alone);
    consumer_close(&other);
    consumer_close(&k);
    realm_context_release(c);
    engine_run_close(&r);
}

typedef struct standstill {
    realm_engine *e;
    bool stood;
    sem_t entered, go;
} standstill;

/* On the file's thread; once. */
static void stand_still(void *user) {
    standstill *s = user;
    if (!s->stood) {
        s->stood = true;
        sem_post(&s->entered);
        while (sem_wait(&s->go) != 0) continue;
    }
    realm_engine_wake(s->e);
}

/* Somebody waits for a page that the disk does not take; who needs none goes on. */
static void others_go_on_without_the_disk(void **state) {
    (void)state;
    enum { N = 5, LEN = 158, SMALL = 20 };
    engine_run r;
    char dir[SCRATCH_MAX] = "test-spill";
    static realm_token want[N][LEN + 2], small[SMALL + 8];
    static consumer waits;
    standstill s = {0};
    realm_context *c[N], *d;
    assert_non_null(scratch_dir(dir));
    engine_run_open(&r, &tiny_llama, &(realm_engine_config){.kv_bytes = 12 * page_bytes(), .spill_dir = dir});
    oracle_open_tiny(&truth, r.file);
    fill_prompt(small, SMALL, 9);
    oracle_continue(&truth, small, SMALL, 8);
    s.e = r.e;
    sem_init(&s.entered, 0, 0);
    sem_init(&s.go, 0, 0);
    realm_mutex_lock(&r.e->pool.mu);
    r.e->pool.spill.on_moved = stand_still;
    r.e->pool.spill.user = &s;
    r.e->pool.spill.waited_for = true;
    realm_mutex_unlock(&r.e->pool.mu);
    assert_int_equal(realm_context_open(r.e, r.a, &d, NULL), REALM_OK);
    assert_int_equal(realm_context_append(d, small, SMALL, NULL), REALM_OK);
    for (unsigned i = 0; i < N; i++) {
        fill_prompt(want[i], LEN, i);
        oracle_continue(&truth, want[i], LEN, 2);
        assert_int_equal(realm_context_open(r.e, r.a, &c[i], NULL), REALM_OK);
        run(&r, r.a, d, NULL, 0, small + SMALL + i, 1); /* its page was used last, and stays */
        if (i < N - 1) run(&r, r.a, c[i], want[i], LEN, want[i] + LEN, 1);
        if (i == 2)
            while (sem_wait(&s.entered) != 0) continue; /* the first page is in the file, and that is all */
    }
    realm_generation_params p = greedy(r.a, want[N - 1], LEN, 1);
    p.context = c[N - 1];
    assert_int_equal(consumer_submit(&waits, r.e, &p, NULL), REALM_OK);
    for (unsigned i = N; i < 8; i++) run(&r, r.a, d, NULL, 0, small + SMALL + i, 1);
    assert_false(consumer_poll(&waits));
    sem_post(&s.go);
    consumer_wait(&waits);
    assert_int_equal(waits.n_ids, 1);
    assert_int_equal(waits.ids[0], want[N - 1][LEN]);
    consumer_close(&waits);
    for (unsigned i = 0; i < N; i++) realm_context_release(c[i]);
    realm_context_release(d);
    oracle_close(&truth);
    engine_run_close(&r);
    assert_int_equal(rmdir(dir), 0);
    sem_destroy(&s.entered);
    sem_destroy(&s.go);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(others_go_on_meanwhile),
                                       cmocka_unit_test(others_go_on_without_the_disk),
                                       cmocka_unit_test(hits_and_misses),
                                       cmocka_unit_test(the_cache_gives_way),
                                       cmocka_unit_test(published),
                                       cmocka_unit_test(published_whole_or_not),
                                       cmocka_unit_test(published_at_once),
                                       cmocka_unit_test(nothing_shows),
                                       cmocka_unit_test(idle_contexts_leave),
                                       cmocka_unit_test(at_the_limit)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
