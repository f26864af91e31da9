/* Passes that are computed before they are asked for: whatever a program then asks, its rows are the oracle's, its
 * tokens are counted once, and nothing stays behind. */
#include <stdatomic.h>
#include <string.h>

#include "base/alloc.h"
#include "support/oracle.h"
#include "support/random.h"

#define CONTEXTS 5u
#define LEN_MAX 400u

static _Thread_local oracle truth;

typedef struct sequence { /* what a context should be */
    realm_context *c;
    realm_token tokens[512];
    uint32_t n;
} sequence;

static _Thread_local uint64_t asked; /* tokens of all passes of the test */

/* One pass over `n` more tokens; checks its row, and returns its most likely token. */
static realm_token pass(engine_run *r, sequence *s, const realm_token *more, uint32_t n) {
    static _Thread_local consumer k;
    realm_token best;
    realm_error err = {0};
    realm_generation_params p = greedy(r->a, more, n, 1);
    p.context = s->c;
    p.forward = true;
    p.n_rows = 1;
    if (consumer_submit(&k, r->e, &p, &err) != REALM_OK) model_run_fail("submit", &err);
    for (uint32_t i = 0; i < n; i++) s->tokens[s->n++] = more[i];
    consumer_wait(&k);
    assert_int_equal(k.finish, REALM_FINISH_STOP);
    asked += k.prompt_tokens;
    realm_logits *l = realm_generation_take_logits(k.g);
    assert_int_equal(realm_logits_sample(l, 0, NULL, &best, NULL, NULL), REALM_OK);
    assert_int_equal(best, oracle_next(&truth, s->tokens, s->n));
    if (random_below(2))
        assert_memory_equal(realm_logits_look(l, 0), oracle_logits(&truth, s->tokens, s->n),
                            TINY_VOCAB * sizeof(float));
    realm_logits_row(l, 0)[7] = 1e9f;
    realm_token changed;
    assert_int_equal(realm_logits_sample(l, 0, NULL, &changed, NULL, NULL), REALM_OK);
    assert_int_equal(changed, 7);
    consumer_close(&k);
    realm_logits_release(l);
    return best;
}

static void begin(engine_run *r, sequence *s, uint32_t n, unsigned salt) {
    realm_token prompt[64];
    s->n = 0;
    fill_prompt(prompt, n, salt);
    assert_int_equal(realm_context_open(r->e, r->a, &s->c, NULL), REALM_OK);
    (void)pass(r, s, prompt, n);
}

static realm_token most_likely(const sequence *s) { return oracle_next(&truth, s->tokens, s->n); }

static realm_token unlikely(const sequence *s, unsigned k) {
    return (realm_token)(((unsigned)most_likely(s) + k) % TINY_VOCAB);
}

static realm_engine_stats stats(engine_run *r) {
    realm_engine_stats st;
    realm_engine_get_stats(r->e, &st);
    return st;
}

/* The engine drops a guess after its context has gone. */
static void wait_for_no_pages(engine_run *r) {
    for (unsigned i = 0; i < 20000 && stats(r).kv_pages_used > 0; i++) usleep(500);
    assert_int_equal(stats(r).kv_pages_used, 0);
}

static void open_all(engine_run *r, const realm_engine_config *config, uint64_t seed) {
    rng = seed;
    asked = 0;
    engine_run_open(r, &tiny_llama, config);
    oracle_open_tiny(&truth, r->file);
}

static void close_all(engine_run *r) {
    oracle_close(&truth);
    engine_run_close(r);
}

/* Follows the most likely token for n passes. */
static void follow(engine_run *r, sequence *s, uint32_t n) {
    realm_token next = most_likely(s);
    for (uint32_t i = 0; i < n; i++) next = pass(r, s, &next, 1);
}

static void comes_true(void **state) {
    (void)state;
    engine_run r;
    static sequence s, t;
    realm_token_counts counts;
    open_all(&r, NULL, 1);
    begin(&r, &s, 20, 1);
    follow(&r, &s, 15);
    assert_int_equal(stats(&r).guesses, 0);
    follow(&r, &s, 120);
    const realm_engine_stats st = stats(&r);
    assert_in_range(st.guesses_right, 60, 119); /* all, unless this thread was kept from asking for long */
    assert_true(st.guesses >= st.guesses_right);
    realm_account_counts(r.a, &counts);
    assert_int_equal(counts.prompt, 20 + 135);
    assert_int_equal(counts.prompt, asked);
    assert_int_equal(counts.completion, 0);
    begin(&r, &t, 9, 2); /* another context is trusted from its first pass on */
    follow(&r, &t, 10);
    assert_in_range(stats(&r).guesses_right - st.guesses_right, 5, 11);
    realm_context_release(s.c);
    realm_context_release(t.c);
    wait_for_no_pages(&r);
    assert_false(realm_account_is_busy(r.a));
    close_all(&r);
}

/* After a wrong one nothing is guessed any more for long. */
static void comes_to_nothing(void **state) {
    (void)state;
    engine_run r;
    static sequence s;
    open_all(&r, NULL, 2);
    begin(&r, &s, 5, 3);
    uint64_t wrong = 0;
    for (unsigned round = 0; round < 4; round++) {
        follow(&r, &s, 20);
        const uint64_t before = stats(&r).guesses;
        realm_token other = unlikely(&s, 1);
        (void)pass(&r, &s, &other, 1);
        wrong += stats(&r).guesses > before || round == 0;
        assert_int_equal(realm_context_truncate(s.c, s.n -= 2, NULL), REALM_OK);
    }
    assert_int_equal(wrong, 1);
    const uint64_t before = stats(&r).guesses;
    follow(&r, &s, 300); /* and then it is */
    assert_true(stats(&r).guesses > before);
    realm_context_release(s.c);
    wait_for_no_pages(&r);
    close_all(&r);
}

/* Pages of a context whose next pass is there already: shared with nobody as far as can be seen, forked as ever. */
static void forks(void **state) {
    (void)state;
    engine_run r;
    static sequence s, f;
    realm_context_info info;
    open_all(&r, NULL, 3);
    begin(&r, &s, 40, 4);
    follow(&r, &s, 30);
    for (unsigned i = 0; i < 40; i++) {
        realm_context_get_info(s.c, &info);
        assert_int_equal(info.shared_pages, 0);
        assert_int_equal(info.n_computed, s.n);
        assert_false(info.busy);
        f = s;
        assert_int_equal(realm_context_fork(s.c, &f.c, NULL), REALM_OK);
        realm_context_get_info(s.c, &info);
        assert_int_equal(info.shared_pages, info.pages);
        realm_token other = unlikely(&f, 1 + i % 3);
        if (i % 2) (void)pass(&r, &f, &other, 1);
        follow(&r, &s, 1);
        if (i % 4 > 1) follow(&r, &f, 2);
        realm_context_release(f.c);
    }
    assert_true(stats(&r).guesses_right >= 14 + 20);
    realm_context_release(s.c);
    wait_for_no_pages(&r);
    close_all(&r);
}

/* Whoever needs the pages gets them. */
static void gives_way(void **state) {
    (void)state;
    engine_run r;
    static sequence s;
    static consumer k;
    static realm_token prompt[6 * REALM_KV_PAGE_TOKENS];
    const uint64_t bytes = page_bytes_of(&tiny_llama);
    open_all(&r, &(realm_engine_config){.kv_bytes = 8 * bytes, .spill_bytes = 8 * bytes}, 4);
    begin(&r, &s, 60, 5);
    follow(&r, &s, 60);
    fill_prompt(prompt, REALM_ARRAY_LEN(prompt), 6);
    for (unsigned i = 0; i < 3; i++) {
        assert_true(stats(&r).guesses_right > 0);
        realm_generation_params p = greedy(r.a, prompt, REALM_ARRAY_LEN(prompt), 8);
        assert_int_equal(consumer_submit(&k, r.e, &p, NULL), REALM_OK);
        consumer_wait(&k);
        assert_int_equal(k.finish, REALM_FINISH_LENGTH);
        consumer_close(&k);
        follow(&r, &s, 10);
    }
    assert_true(stats(&r).suspends > 0);
    realm_context_release(s.c);
    wait_for_no_pages(&r);
    close_all(&r);
}

/* A generation that goes on beside them: then guesses are cheap, and many are made. */
static void keep_running(engine_run *r, consumer *k) {
    static const realm_token prompt[] = {1, 2, 3};
    realm_generation_params p = greedy(r->a, prompt, REALM_ARRAY_LEN(prompt), 0);
    if (k->g) {
        (void)consumer_poll(k);
        if (k->finish == REALM_FINISH_NONE) {
            if (k->n_ids > 900) k->n_ids = k->n_events = k->text_len = 0;
            return;
        }
        consumer_close(k);
    }
    assert_int_equal(consumer_submit(k, r->e, &p, NULL), REALM_OK);
}

static void random_programs(void **state) {
    (void)state;
    static sequence s[CONTEXTS];
    static consumer other;
    uint64_t right = 0, wrong = 0;
    for (unsigned seed = 1; seed <= 3; seed++) {
        engine_run r;
        const uint64_t bytes = page_bytes_of(&tiny_llama);
        realm_token_counts counts;
        memset(s, 0, sizeof s);
        memset(&other, 0, sizeof other);
        open_all(&r, &(realm_engine_config){.kv_bytes = (seed == 3 ? 40 : 400) * bytes, .spill_bytes = 40 * bytes},
                 seed * 31);
        for (unsigned i = 0; i < 900; i++) {
            sequence *x = &s[random_below(CONTEXTS)], *y = &s[random_below(CONTEXTS)];
            realm_token more[40];
            if (seed > 1) keep_running(&r, &other);
            if (!x->c) {
                begin(&r, x, 1 + random_below(60), random_below(4));
                continue;
            }
            if (x->n > LEN_MAX) {
                realm_context_release(x->c);
                x->c = NULL;
                continue;
            }
            switch (random_below(16)) {
            case 0:
                if (y->c) break;
                *y = *x;
                assert_int_equal(realm_context_fork(x->c, &y->c, NULL), REALM_OK);
                break;
            case 1:
                x->n -= random_below(REALM_MIN(x->n, 40));
                assert_int_equal(realm_context_truncate(x->c, x->n, NULL), REALM_OK);
                break;
            case 2:
                fill_prompt(more, 3, i);
                assert_int_equal(realm_context_append(x->c, more, 3, NULL), REALM_OK);
                memcpy(x->tokens + x->n, more, 3 * sizeof *more);
                x->n += 3;
                (void)pass(&r, x, NULL, 0);
                break;
            case 3:
                realm_context_release(x->c);
                x->c = NULL;
                break;
            case 4:
                fill_prompt(more, 40, i);
                (void)pass(&r, x, more, 1 + random_below(39));
                break;
            case 5: /* what was most likely, but not from where it was */
                more[0] = most_likely(x);
                x->n--;
                assert_int_equal(realm_context_truncate(x->c, x->n, NULL), REALM_OK);
                assert_int_equal(realm_context_append(x->c, x->tokens + x->n, 1, NULL), REALM_OK);
                x->n++;
                (void)pass(&r, x, more, 1);
                break;
            default: more[0] = random_below(8) ? most_likely(x) : unlikely(x, 1); (void)pass(&r, x, more, 1);
            }
        }
        const realm_engine_stats st = stats(&r);
        right += st.guesses_right;
        wrong += st.guesses - st.guesses_right;
        if (seed == 1) {
            realm_account_counts(r.a, &counts);
            assert_int_equal(counts.prompt, asked);
        } else {
            consumer_close(&other);
        }
        for (unsigned i = 0; i < CONTEXTS; i++) realm_context_release(s[i].c);
        wait_for_no_pages(&r);
        close_all(&r);
    }
    print_message("%llu guesses were right, %llu wrong\n", (unsigned long long)right, (unsigned long long)wrong);
    assert_true(right > 100 && wrong > 10);
}

/* It is dropped with the engine; and where nobody asks, so that idle pages can be moved again. */
static void is_let_go(void **state) {
    (void)state;
    engine_run r;
    static sequence s;
    realm_context_info info;
    open_all(&r, NULL, 5);
    begin(&r, &s, 10, 7);
    follow(&r, &s, 2 * REALM_KV_PAGE_TOKENS - 10);
    for (unsigned i = 0; i < 20000 && stats(&r).guesses == stats(&r).guesses_right; i++) usleep(500);
    assert_true(stats(&r).guesses > stats(&r).guesses_right);
    realm_context_get_info(s.c, &info);
    assert_int_equal(info.pages, 2); /* and the guess has a third */
    for (unsigned i = 0; i < 20000 && stats(&r).kv_pages_used > 2; i++) usleep(500);
    assert_int_equal(stats(&r).kv_pages_used, 2);
    const uint64_t right = stats(&r).guesses_right;
    follow(&r, &s, 10);
    assert_true(stats(&r).guesses_right > right);
    assert_int_equal(realm_context_truncate(s.c, 0, NULL), REALM_OK); /* all pages are the guess's now */
    realm_context_release(s.c);
    wait_for_no_pages(&r);
    begin(&r, &s, 10, 7);
    follow(&r, &s, 30);
    realm_context_release(s.c); /* and the engine closes at once */
    close_all(&r);
}

/* There are no more of them than there may be generations, each has a row and tokens of its own. */
static void are_few(void **state) {
    (void)state;
    engine_run r;
    static sequence s[6];
    open_all(&r, &(realm_engine_config){.max_generations = 2}, 8);
    begin(&r, &s[0], 10, 0);
    follow(&r, &s[0], 60);
    assert_true(stats(&r).guesses_right > 0);
    for (unsigned i = 1; i < REALM_ARRAY_LEN(s); i++) begin(&r, &s[i], 10, i);
    for (unsigned i = 0; i < REALM_ARRAY_LEN(s); i++) follow(&r, &s[i], 1);
    const uint64_t right = stats(&r).guesses_right;
    for (unsigned i = REALM_ARRAY_LEN(s); i-- > 0;) follow(&r, &s[i], 1);
    assert_in_range(stats(&r).guesses_right - right, 0, 2);
    for (unsigned i = 0; i < REALM_ARRAY_LEN(s); i++) realm_context_release(s[i].c);
    wait_for_no_pages(&r);
    close_all(&r);
}

/* Steps that fail, before the plan or after it: passes that were asked for say so, guesses are gone, and rows that
 * are looked at two passes later are as they were. */
static const struct realm_backend_vtable *working;
static atomic_uint until_failure;

static realm_status failing_run(realm_backend *b, realm_plan *p, const realm_batch *batch, realm_error *err) {
    const unsigned left = atomic_load(&until_failure);
    if (left > 0) atomic_store(&until_failure, left - 1);
    if (left == 2) return realm_error_set(err, REALM_E_DEVICE, "the device is gone");
    realm_status s = working->run(b, p, batch, err);
    return left == 1 ? realm_error_set(err, REALM_E_DEVICE, "the device was gone") : s;
}

static void survives_failures(void **state) {
    (void)state;
    enum { KEPT = 3 };
    static struct realm_backend_vtable patched;
    static consumer k;
    static sequence s;
    static float want[KEPT][TINY_VOCAB];
    realm_logits *kept[KEPT] = {NULL};
    engine_run r;
    unsigned failures = 0;
    open_all(&r, NULL, 10);
    working = r.b->v;
    patched = *working;
    patched.run = failing_run;
    r.b->v = &patched; /* before the first step */
    begin(&r, &s, 10, 9);
    follow(&r, &s, 40);
    for (unsigned i = 0; i < 300; i++) {
        realm_logits **l = &kept[i % KEPT];
        if (*l) assert_memory_equal(realm_logits_look(*l, 0), want[i % KEPT], sizeof *want);
        realm_logits_release(*l);
        *l = NULL;
        if (random_below(12) == 0) atomic_store(&until_failure, 2 + random_below(3));
        const realm_token next = most_likely(&s);
        realm_generation_params p = greedy(r.a, &next, 1, 1);
        p.context = s.c;
        p.forward = true;
        p.n_rows = 1;
        assert_int_equal(consumer_submit(&k, r.e, &p, NULL), REALM_OK);
        s.tokens[s.n++] = next;
        consumer_wait(&k);
        if (k.finish == REALM_FINISH_STOP) {
            *l = realm_generation_take_logits(k.g);
            memcpy(want[i % KEPT], oracle_logits(&truth, s.tokens, s.n), sizeof *want);
        } else {
            assert_int_equal(k.status, REALM_E_DEVICE);
            failures++;
        }
        consumer_close(&k);
    }
    assert_true(failures > 5);
    assert_true(stats(&r).guesses_right > 60);
    for (unsigned i = 0; i < KEPT; i++) realm_logits_release(kept[i]);
    realm_context_release(s.c);
    wait_for_no_pages(&r);
    close_all(&r);
}

/* ---- more of everything than there is room for --------------------------------------------------------------------
 */

/* Called on the engine's thread at the end of a pass, when the next one is in its list already: all that may wait comes
 * now, each of an account of its own. */
typedef struct crowd {
    engine_run *r;
    realm_account *a[2];
    consumer k[2];
    sem_t there;
} crowd;

static void crowd_in(void *user) {
    static const realm_token prompt[] = {4, 5, 6};
    crowd *c = user;
    for (unsigned i = 0; i < REALM_ARRAY_LEN(c->a); i++) {
        realm_generation_params p = greedy(c->a[i], prompt, REALM_ARRAY_LEN(prompt), 5);
        assert_int_equal(consumer_submit(&c->k[i], c->r->e, &p, NULL), REALM_OK);
    }
    sem_post(&c->there);
}

static void is_one_too_many(void **state) {
    (void)state;
    static struct realm_backend_vtable plain;
    static crowd c;
    static sequence s;
    engine_run r;
    open_all(&r, &(realm_engine_config){.max_generations = 1, .max_queued = 1}, 6);
    plain = *r.b->v;
    plain.aside = NULL;
    r.b->v = &plain; /* before the first step */
    c.r = &r;
    sem_init(&c.there, 0, 0);
    for (unsigned i = 0; i < REALM_ARRAY_LEN(c.a); i++)
        assert_int_equal(realm_account_open(r.e, NULL, NULL, &c.a[i], NULL), REALM_OK);
    begin(&r, &s, 10, 8);
    follow(&r, &s, 30);
    assert_true(stats(&r).guesses_right > 0);
    assert_int_equal(realm_context_truncate(s.c, s.n, NULL), REALM_OK); /* what was guessed is for before this */
    realm_token next = most_likely(&s);
    realm_generation_params p = greedy(r.a, &next, 1, 1);
    realm_generation *g;
    p.context = s.c;
    p.forward = true;
    p.n_rows = 1;
    p.on_ready = crowd_in;
    p.user = &c;
    assert_int_equal(realm_generation_submit(r.e, &p, &g, NULL), REALM_OK);
    s.tokens[s.n++] = next;
    while (sem_wait(&c.there) != 0) continue;
    realm_generation_release(g);
    for (unsigned i = 0; i < REALM_ARRAY_LEN(c.a); i++) {
        consumer_wait(&c.k[i]);
        assert_int_equal(c.k[i].finish, REALM_FINISH_LENGTH);
        consumer_close(&c.k[i]);
        realm_account_close(c.a[i]);
    }
    follow(&r, &s, 20);
    realm_context_release(s.c);
    wait_for_no_pages(&r);
    sem_destroy(&c.there);
    close_all(&r);
}

/* Programs that follow the most likely token, mostly; one that forks, cuts and lets go of their contexts at any moment;
 * and generations that need nearly all pages. */
#define PROGRAMS 4u
#define PASSES 500u
#define STREAMS 3u

typedef struct shared_context {
    pthread_mutex_t mu; /* held while a pass is submitted, so that it is known over which tokens */
    realm_context *c;
} shared_context;

static struct {
    engine_run r;
    realm_account *a[2];
    shared_context s[PROGRAMS];
    atomic_uint at_work;
    atomic_ullong asked[2];
} town;

/* A pass over what the context has and `more`; sets *s to it all. */
static void shared_pass(shared_context *c, unsigned owner, const realm_token *more, uint32_t n, sequence *s) {
    static _Thread_local consumer k;
    realm_token best;
    realm_error err = {0};
    realm_generation_params p = greedy(town.a[owner], more, n, 1);
    pthread_mutex_lock(&c->mu);
    p.context = s->c = c->c;
    p.forward = true;
    p.n_rows = 1;
    if (consumer_submit(&k, town.r.e, &p, &err) != REALM_OK) model_run_fail("submit", &err);
    s->n = (uint32_t)realm_context_get_tokens(s->c, 0, s->tokens, 512);
    pthread_mutex_unlock(&c->mu);
    if (random_below(30) == 0) realm_generation_cancel(k.g);
    consumer_wait(&k);
    atomic_fetch_add(&town.asked[owner], k.prompt_tokens);
    if (k.finish == REALM_FINISH_CANCELLED) {
        consumer_close(&k);
        shared_pass(c, owner, NULL, 0, s);
        return;
    }
    assert_int_equal(k.finish, REALM_FINISH_STOP);
    realm_logits *l = realm_generation_take_logits(k.g);
    if (random_below(3) == 0) usleep(random_below(300)); /* others' steps */
    assert_memory_equal(realm_logits_look(l, 0), oracle_logits(&truth, s->tokens, s->n), TINY_VOCAB * sizeof(float));
    assert_int_equal(realm_logits_sample(l, 0, NULL, &best, NULL, NULL), REALM_OK);
    assert_int_equal(best, most_likely(s));
    consumer_close(&k);
    realm_logits_release(l);
}

static realm_context *new_context(unsigned owner) {
    realm_context *c;
    realm_token prompt[64];
    const uint32_t n = 1 + random_below(60);
    fill_prompt(prompt, n, random_below(4));
    assert_int_equal(realm_context_open(town.r.e, town.a[owner], &c, NULL), REALM_OK);
    assert_int_equal(realm_context_append(c, prompt, n, NULL), REALM_OK);
    return c;
}

static void *program_main(void *arg) {
    shared_context *c = arg;
    const unsigned at = (unsigned)(c - town.s), owner = at % 2;
    static _Thread_local sequence s;
    oracle_open_tiny(&truth, town.r.file);
    rng = at + 1;
    shared_pass(c, owner, NULL, 0, &s);
    for (unsigned i = 0; i < PASSES; i++) {
        const unsigned k = random_below(40);
        realm_token next = k == 0 ? unlikely(&s, 1) : most_likely(&s);
        shared_pass(c, owner, &next, 1, &s);
        if (k != 1 && s.n < 220) continue;
        pthread_mutex_lock(&c->mu); /* right after the pass: while what may come next is computed */
        realm_context_release(c->c);
        c->c = new_context(owner);
        pthread_mutex_unlock(&c->mu);
        shared_pass(c, owner, NULL, 0, &s);
    }
    oracle_close(&truth);
    atomic_fetch_sub(&town.at_work, 1);
    return NULL;
}

/* What others do to a program's context. */
static void *meddler_main(void *arg) {
    static _Thread_local shared_context f = {.mu = PTHREAD_MUTEX_INITIALIZER};
    static _Thread_local sequence s;
    realm_context_info info;
    (void)arg;
    oracle_open_tiny(&truth, town.r.file);
    rng = 99;
    while (atomic_load(&town.at_work) > 0) {
        const unsigned at = random_below(PROGRAMS), owner = at % 2;
        shared_context *c = &town.s[at];
        bool forked = false;
        pthread_mutex_lock(&c->mu);
        realm_context_get_info(c->c, &info);
        assert_true(info.shared_pages <= info.pages);
        switch (random_below(3)) {
        case 0: forked = realm_context_fork(c->c, &f.c, NULL) == REALM_OK; break;
        case 1:
            if (info.n_tokens > 4 &&
                realm_context_truncate(c->c, info.n_tokens - 1 - random_below(3), NULL) != REALM_OK)
                assert_true(info.busy);
            break;
        default: break;
        }
        pthread_mutex_unlock(&c->mu);
        if (forked) {
            if (random_below(2)) realm_context_get_info(f.c, &info);
            if (info.n_tokens > 0) shared_pass(&f, owner, NULL, 0, &s);
            for (unsigned i = random_below(4); i > 0 && s.n < 240; i--) {
                realm_token next = most_likely(&s);
                shared_pass(&f, owner, &next, 1, &s);
            }
            realm_context_release(f.c);
        }
        usleep(random_below(400));
    }
    oracle_close(&truth);
    return NULL;
}

static void is_safe_in_a_crowd(void **state) {
    (void)state;
    static consumer k[STREAMS];
    static realm_token prompt[STREAMS][512];
    uint32_t n[STREAMS], n_new[STREAMS];
    const uint64_t bytes = page_bytes_of(&tiny_llama);
    uint64_t right = 0;
    for (unsigned round = 0; round < 3; round++) {
        pthread_t threads[PROGRAMS], meddler;
        realm_token_counts total, counts[2];
        memset(&town, 0, sizeof town);
        open_all(&town.r,
                 &(realm_engine_config){.kv_bytes = (round == 0 ? 300 : 16) * bytes,
                                        .spill_bytes = round == 1 ? 3 * bytes : 0,
                                        .chunk_tokens = 32,
                                        .max_generations = 4 + round},
                 9 + round);
        for (unsigned i = 0; i < 2; i++)
            assert_int_equal(realm_account_open(town.r.e, NULL, NULL, &town.a[i], NULL), REALM_OK);
        for (unsigned i = 0; i < PROGRAMS; i++) {
            pthread_mutex_init(&town.s[i].mu, NULL);
            town.s[i].c = new_context(i % 2);
        }
        atomic_store(&town.at_work, PROGRAMS);
        for (unsigned i = 0; i < PROGRAMS; i++)
            assert_int_equal(pthread_create(&threads[i], NULL, program_main, &town.s[i]), 0);
        assert_int_equal(pthread_create(&meddler, NULL, meddler_main, NULL), 0);
        uint64_t completion = 0, prompts = 0;
        while (atomic_load(&town.at_work) > 0) {
            for (unsigned i = 0; i < STREAMS; i++) {
                n[i] = 1 + random_below(400);
                n_new[i] = 1 + random_below(80);
                fill_prompt(prompt[i], n[i], random_below(5));
                realm_generation_params p = greedy(town.r.a, prompt[i], n[i], n_new[i]);
                assert_int_equal(consumer_submit(&k[i], town.r.e, &p, NULL), REALM_OK);
            }
            for (unsigned i = 0; i < STREAMS; i++) {
                consumer_wait(&k[i]);
                assert_int_equal(k[i].finish, REALM_FINISH_LENGTH);
                oracle_continue(&truth, prompt[i], n[i], n_new[i]);
                assert_memory_equal(k[i].ids, prompt[i] + n[i], n_new[i] * sizeof *k[i].ids);
                prompts += n[i];
                completion += n_new[i];
                consumer_close(&k[i]);
            }
        }
        for (unsigned i = 0; i < PROGRAMS; i++) pthread_join(threads[i], NULL);
        pthread_join(meddler, NULL);
        const realm_engine_stats st = stats(&town.r);
        print_message("%llu of %llu guesses were right, %llu pages lost\n", (unsigned long long)st.guesses_right,
                      (unsigned long long)st.guesses, (unsigned long long)st.dropped);
        right += st.guesses_right;
        realm_engine_counts(town.r.e, &total, town.a, 2, counts);
        for (unsigned i = 0; i < 2; i++) assert_int_equal(counts[i].prompt, atomic_load(&town.asked[i]));
        assert_int_equal(total.prompt, counts[0].prompt + counts[1].prompt + prompts);
        assert_int_equal(total.completion, completion);
        for (unsigned i = 0; i < PROGRAMS; i++) {
            realm_context_release(town.s[i].c);
            pthread_mutex_destroy(&town.s[i].mu);
        }
        wait_for_no_pages(&town.r);
        for (unsigned i = 0; i < 2; i++) realm_account_close(town.a[i]);
        close_all(&town.r);
    }
    assert_true(right > 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(comes_true),      cmocka_unit_test(comes_to_nothing),
        cmocka_unit_test(forks),           cmocka_unit_test(gives_way),
        cmocka_unit_test(random_programs), cmocka_unit_test(is_let_go),
        cmocka_unit_test(are_few),         cmocka_unit_test(survives_failures),
        cmocka_unit_test(is_one_too_many), cmocka_unit_test(is_safe_in_a_crowd),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
