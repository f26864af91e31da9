/* Random operations on contexts of two accounts, in an engine whose pool is far too small for them, with the prefix
 * cache and a spill that is too small as well: every token and every count as a plain list of tokens and the oracle
 * say. */
#include <math.h>

#include "support/oracle.h"
#include "support/random.h"
#include "support/scratch.h"

#define CONTEXTS 12u
#define OPS 200u
#define LEN_MAX 230u

typedef struct model_context { /* what a context should be */
    realm_context *c;
    unsigned owner;
    realm_token tokens[512];
    uint32_t n;
} model_context;

static oracle truth;
static void check(const model_context *m) {
    realm_token got[512];
    realm_context_info info;
    realm_context_get_info(m->c, &info);
    assert_int_equal(info.n_tokens, m->n);
    assert_true(info.n_computed <= m->n);
    assert_int_equal(info.pages, (info.n_computed + REALM_KV_PAGE_TOKENS - 1) / REALM_KV_PAGE_TOKENS);
    assert_false(info.busy);
    assert_int_equal(realm_context_get_tokens(m->c, 0, got, 512), m->n);
    assert_memory_equal(got, m->tokens, m->n * sizeof *got);
}

/* Few different texts, so that the cache has something to find. */
static uint32_t some_tokens(realm_token *out, uint32_t most) {
    uint32_t n = 1 + random_below(most);
    fill_prompt(out, n, random_below(3));
    return n;
}

/* Generations and forward passes on some of the contexts at once. */
static void run_some(engine_run *r, realm_account *const *accounts, model_context *m) {
    static consumer k[CONTEXTS];
    bool on[CONTEXTS] = {false}, forward[CONTEXTS];
    uint32_t n_new[CONTEXTS], n_rows[CONTEXTS];
    for (unsigned i = 0; i < CONTEXTS; i++) {
        if (!m[i].c || random_below(3) == 0) continue;
        realm_token more[40];
        uint32_t n = random_below(2) ? some_tokens(more, 40) : 0;
        if (m[i].n + n == 0 || m[i].n + n > LEN_MAX) continue;
        realm_generation_params p = greedy(accounts[m[i].owner], more, n, n_new[i] = 1 + random_below(12));
        p.context = m[i].c;
        if ((forward[i] = random_below(2))) {
            p.forward = true;
            p.n_rows = n_rows[i] = 1 + random_below(REALM_MIN(m[i].n + n, 40));
        }
        realm_error err = {0};
        if (consumer_submit(&k[i], r->e, &p, &err) != REALM_OK) model_run_fail("submit", &err);
        memcpy(m[i].tokens + m[i].n, more, n * sizeof *more);
        m[i].n += n;
        on[i] = true;
    }
    for (unsigned i = 0; i < CONTEXTS; i++) {
        if (!on[i]) continue;
        consumer_wait(&k[i]);
        if (forward[i]) {
            assert_int_equal(k[i].finish, REALM_FINISH_STOP);
            realm_logits *l = realm_generation_take_logits(k[i].g);
            for (uint32_t row = 0; row < n_rows[i]; row += 1 + n_rows[i] / 3)
                assert_memory_equal(realm_logits_row(l, row),
                                    oracle_logits(&truth, m[i].tokens, m[i].n - n_rows[i] + row + 1),
                                    TINY_VOCAB * sizeof(float));
            realm_logits_release(l);
        } else {
            assert_int_equal(k[i].finish, REALM_FINISH_LENGTH);
            oracle_continue(&truth, m[i].tokens, m[i].n, n_new[i]);
            assert_memory_equal(k[i].ids, m[i].tokens + m[i].n, n_new[i] * sizeof *k[i].ids);
            m[i].n += n_new[i];
        }
        consumer_close(&k[i]);
        check(&m[i]);
    }
}

static void random_operations(void **state) {
    (void)state;
    static const uint8_t secrets[2][REALM_CACHE_SECRET_BYTES] = {"one", "two"};
    static model_context m[CONTEXTS];
    const uint64_t bytes = page_bytes_of(&tiny_llama);
    uint64_t cached = 0;
    char dir[SCRATCH_MAX] = "test-random";
    assert_non_null(scratch_dir(dir));
    for (unsigned seed = 1; seed <= 4; seed++) {
        engine_run r;
        realm_account *a[2];
        realm_engine_config config = {.kv_bytes = 14 * bytes,
                                      .chunk_tokens = 8u << seed,
                                      .spill_bytes = (seed % 2) * 6 * bytes,
                                      .spill_dir = seed > 2 ? dir : NULL,
                                      .spill_dir_bytes = 9 * bytes};
        rng = seed * 977;
        engine_run_open(&r, &tiny_llama, &config);
        oracle_open_tiny(&truth, r.file);
        for (unsigned i = 0; i < 2; i++)
            assert_int_equal(
                realm_account_open(r.e, &(realm_account_limits){.kv_tokens = i ? 9 * 32 : 0}, secrets[i], &a[i], NULL),
                REALM_OK);
        memset(m, 0, sizeof m);
        for (unsigned op = 0; op < OPS; op++) {
            model_context *x = &m[random_below(CONTEXTS)], *y = &m[random_below(CONTEXTS)];
            realm_token more[60];
            uint32_t n;
            switch (random_below(8)) {
            case 0:
                if (x->c) break;
                x->owner = random_below(2);
                x->n = 0;
                assert_int_equal(realm_context_open(r.e, a[x->owner], &x->c, NULL), REALM_OK);
                break;
            case 1:
                if (!x->c || random_below(2)) break;
                realm_context_release(x->c);
                x->c = NULL;
                break;
            case 2:
            case 3:
                n = some_tokens(more, 60);
                if (!x->c || x->n + n > LEN_MAX) break;
                assert_int_equal(realm_context_append(x->c, more, n, NULL), REALM_OK);
                memcpy(x->tokens + x->n, more, n * sizeof *more);
                x->n += n;
                break;
            case 4:
                if (!x->c || x->n == 0) break;
                x->n -= random_below(REALM_MIN(x->n, 70) + 1);
                assert_int_equal(realm_context_truncate(x->c, x->n, NULL), REALM_OK);
                break;
            case 5:
                if (!x->c || y->c) break;
                *y = *x;
                assert_int_equal(realm_context_fork(x->c, &y->c, NULL), REALM_OK);
                check(y);
                break;
            default: run_some(&r, a, m);
            }
            if (x->c) check(x);
        }
        realm_engine_stats st;
        realm_engine_get_stats(r.e, &st);
        print_message("seed %u: %llu pages suspended, %llu resumed, %llu lost\n", seed, (unsigned long long)st.suspends,
                      (unsigned long long)st.resumes, (unsigned long long)st.dropped);
        assert_true(st.suspends + st.dropped > 20);
        realm_token_counts total, each[3];
        realm_account *const all[] = {r.a, a[0], a[1]};
        realm_engine_counts(r.e, &total, all, 3, each);
        cached += total.cached;
        assert_int_equal(total.prompt, each[0].prompt + each[1].prompt + each[2].prompt);
        assert_int_equal(total.completion, each[0].completion + each[1].completion + each[2].completion);
        for (unsigned i = 0; i < CONTEXTS; i++) realm_context_release(m[i].c);
        realm_engine_get_stats(r.e, &st);
        assert_int_equal(st.kv_pages_used, 0);
        assert_int_equal(st.suspended_pages, 0);
        realm_account_close(a[0]);
        realm_account_close(a[1]);
        oracle_close(&truth);
        engine_run_close(&r);
    }
    assert_true(cached > 0);
    assert_int_equal(rmdir(dir), 0);
}

/* Several threads fork, read and let go of contexts while the engine moves their pages: for the sanitizers. */
typedef struct forker {
    realm_context *c;
    const realm_token *want;
    uint32_t n;
    uint64_t seed;
    atomic_bool *stop;
    uint64_t forks;
} forker;

static void *fork_and_drop(void *arg) {
    forker *f = arg;
    realm_context *mine[4] = {NULL};
    realm_token got[300];
    while (!atomic_load(f->stop)) {
        f->seed = f->seed * UINT64_C(6364136223846793005) + 1442695040888963407;
        unsigned i = (unsigned)(f->seed >> 40) % 4;
        realm_context_release(mine[i]);
        mine[i] = NULL;
        if (realm_context_fork(f->c, &mine[i], NULL) != REALM_OK) continue;
        f->forks++;
        realm_context_info info;
        realm_context_get_info(mine[i], &info);
        if (info.n_tokens != f->n || realm_context_get_tokens(mine[i], 0, got, 300) != f->n ||
            memcmp(got, f->want, f->n * sizeof *got) != 0 ||
            realm_context_truncate(mine[i], (f->seed >> 50) % f->n, NULL) != REALM_OK)
            return "a fork differs";
    }
    for (unsigned i = 0; i < 4; i++) realm_context_release(mine[i]);
    return NULL;
}

static void threads(void **state) {
    (void)state;
    enum { N = 3, LEN = 150, ROUNDS = 40 };
    engine_run r;
    const uint64_t bytes = page_bytes_of(&tiny_llama);
    static consumer k;
    static realm_token want[N][LEN + 1], other[250];
    engine_run_open(&r, &tiny_llama, &(realm_engine_config){.kv_bytes = 10 * bytes, .spill_bytes = 8 * bytes});
    oracle_open_tiny(&truth, r.file);
    static const uint8_t secret[REALM_CACHE_SECRET_BYTES] = "s";
    realm_account *a;
    assert_int_equal(realm_account_open(r.e, NULL, secret, &a, NULL), REALM_OK);
    forker f[N];
    pthread_t t[N];
    atomic_bool stop = false;
    for (unsigned i = 0; i < N; i++) {
        fill_prompt(want[i], LEN, i);
        oracle_continue(&truth, want[i], LEN, 1);
        f[i] = (forker){.want = want[i], .n = LEN, .seed = i, .stop = &stop};
        assert_int_equal(realm_context_open(r.e, a, &f[i].c, NULL), REALM_OK);
        assert_int_equal(realm_context_append(f[i].c, want[i], LEN, NULL), REALM_OK);
        assert_int_equal(pthread_create(&t[i], NULL, fork_and_drop, &f[i]), 0);
    }
    for (unsigned round = 0; round < ROUNDS; round++) {
        realm_context *c;
        unsigned i = round % N;
        if (realm_context_fork(f[i].c, &c, NULL) != REALM_OK) fail();
        realm_generation_params p = greedy(a, NULL, 0, 1);
        p.context = c;
        assert_int_equal(consumer_submit(&k, r.e, &p, NULL), REALM_OK);
        consumer_wait(&k);
        assert_int_equal(k.ids[0], want[i][LEN]);
        consumer_close(&k);
        realm_context_release(c);
        fill_prompt(other, 250, 50 + round); /* pushes the others out */
        p = greedy(r.a, other, 250, 1);
        assert_int_equal(consumer_submit(&k, r.e, &p, NULL), REALM_OK);
        consumer_wait(&k);
        assert_int_equal(k.finish, REALM_FINISH_LENGTH);
        consumer_close(&k);
    }
    atomic_store(&stop, true);
    for (unsigned i = 0; i < N; i++) {
        void *wrong;
        assert_int_equal(pthread_join(t[i], &wrong), 0);
        assert_null(wrong);
        realm_context_release(f[i].c);
    }
    realm_engine_stats st;
    realm_engine_get_stats(r.e, &st);
    assert_int_equal(st.kv_pages_used, 0);
    assert_int_equal(st.suspended_bytes, 0);
    realm_account_close(a);
    oracle_close(&truth);
    engine_run_close(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(random_operations), cmocka_unit_test(threads)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
