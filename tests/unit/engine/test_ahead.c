/* Run ahead: a reader that confirms, takes back and puts in tokens gets what a generation of the final sequence would
 * have given, text and stop strings included. */
#include "support/oracle.h"

static oracle truth;

/* Everything that a reader knows: what it took, and the text that came with it. */
typedef struct reader {
    realm_generation *g;
    realm_event_batch batch;
    sem_t ready;
    realm_token ids[512]; /* generated tokens as they stand now */
    uint32_t n;
    char text[4096];
    size_t len, text_at[512]; /* text_at[i]: length of the text before token i's event */
    realm_finish finish;
    realm_token end_id;
    uint32_t n_ends;
} reader;

static void reader_ready(void *user) { sem_post(&((reader *)user)->ready); }

static void reader_open(reader *r, realm_engine *e, realm_generation_params p) {
    *r = (reader){0};
    sem_init(&r->ready, 0, 0);
    realm_event_batch_init(&r->batch);
    p.on_ready = reader_ready;
    p.user = r;
    realm_error err = {0};
    if (realm_generation_submit(e, &p, &r->g, &err) != REALM_OK) model_run_fail("submit", &err);
}

static void reader_close(reader *r) {
    realm_generation_release(r->g);
    realm_event_batch_release(&r->batch);
    sem_destroy(&r->ready);
}

static void reader_take(reader *r) {
    size_t n = realm_generation_poll(r->g, &r->batch);
    for (size_t i = 0; i < n; i++) {
        const realm_event *ev = &r->batch.events[i];
        r->text_at[r->n] = r->len;
        if (ev->text_len > 0) memcpy(r->text + r->len, r->batch.text.data + ev->text_at, ev->text_len);
        r->len += ev->text_len;
        if (ev->kind == REALM_EVENT_TOKEN) {
            r->ids[r->n++] = ev->id;
        } else {
            r->finish = ev->finish;
            r->end_id = ev->id;
            r->n_ends++;
        }
    }
}

/* Until there are n tokens, or an end. */
static void reader_wait(reader *r, uint32_t n) {
    reader_take(r);
    while (r->n < n && r->finish == REALM_FINISH_NONE) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += 20;
        if (sem_timedwait(&r->ready, &until) != 0) fail_msg("no event for 20 s");
        reader_take(r);
    }
}

static void reader_rewind(reader *r, uint32_t n_keep, const realm_token *tokens, uint32_t n) {
    realm_error err = {0};
    if (realm_generation_rewind(r->g, n_keep, tokens, n, &err) != REALM_OK) model_run_fail("rewind", &err);
    if (n_keep < r->n) r->len = r->text_at[n_keep];
    r->n = n_keep;
    for (uint32_t i = 0; i < n; i++) {
        r->text_at[r->n] = r->len;
        r->ids[r->n++] = tokens[i];
    }
    r->finish = REALM_FINISH_NONE;
}

static void reader_confirm(reader *r, uint32_t n) { realm_generation_confirm(r->g, n, r->finish != REALM_FINISH_NONE); }

static void stalls_and_goes_on(void **state) {
    (void)state;
    engine_run r;
    static reader k;
    static consumer other;
    realm_token want[200];
    engine_run_open(&r, &tiny_llama, NULL);
    oracle_open_tiny(&truth, r.file);
    fill_prompt(want, 40, 2);
    oracle_continue(&truth, want, 40, 60);
    realm_generation_params p = greedy(r.a, want, 40, 60), q = greedy(r.a, want, 40, 50);
    p.run_ahead = 7;
    reader_open(&k, r.e, p);
    reader_wait(&k, 7);
    for (unsigned i = 0; i < 2; i++) { /* others have run long since: it has not gone on */
        assert_int_equal(consumer_submit(&other, r.e, &q, NULL), REALM_OK);
        consumer_wait(&other);
        consumer_close(&other);
    }
    reader_take(&k);
    assert_int_equal(k.n, 7);
    reader_confirm(&k, 3);
    reader_wait(&k, 10);
    assert_int_equal(k.n, 10);
    reader_confirm(&k, 2); /* never goes back */
    realm_error err;
    assert_int_equal(realm_generation_rewind(k.g, 2, NULL, 0, &err), REALM_E_RANGE);
    assert_int_equal(realm_generation_rewind(k.g, 11, NULL, 0, &err), REALM_E_RANGE);
    assert_int_equal(realm_generation_rewind(k.g, 5, (realm_token[1]){-1}, 1, &err), REALM_E_RANGE);
    assert_int_equal(realm_generation_rewind(k.g, 5, want, 56, &err), REALM_E_RANGE);
    reader_confirm(&k, 1000); /* all there are */
    while (k.finish == REALM_FINISH_NONE) {
        reader_wait(&k, k.n + 1);
        reader_confirm(&k, k.n);
    }
    assert_int_equal(k.finish, REALM_FINISH_LENGTH);
    assert_int_equal(k.n, 60);
    assert_memory_equal(k.ids, want + 40, 60 * sizeof *want);
    assert_int_equal(realm_generation_rewind(k.g, 60, NULL, 0, &err), REALM_E_CLOSED);
    reader_close(&k);
    p = greedy(r.a, want, 40, 5);
    reader_open(&k, r.e, p);
    reader_wait(&k, 6);
    assert_int_equal(realm_generation_rewind(k.g, 2, NULL, 0, &err), REALM_E_INVALID);
    reader_close(&k);
    oracle_close(&truth);
    engine_run_close(&r);
}

/* Random confirming, rewinding and forcing, on a context and without one; after the end too. */
static void random_readers(void **state) {
    (void)state;
    enum { ROUNDS = 40, N_NEW = 50 };
    engine_run r;
    static reader k;
    static realm_token seq[300];
    engine_run_open(&r, &tiny_llama, &(realm_engine_config){.chunk_tokens = 16});
    oracle_open_tiny(&truth, r.file);
    uint64_t rng = 12345;
#define RANDOM(n) ((uint32_t)((rng = rng * UINT64_C(6364136223846793005) + 1442695040888963407) >> 33) % (n))
    for (unsigned round = 0; round < ROUNDS; round++) {
        const uint32_t n_prompt = 1 + RANDOM(70);
        realm_context *c = NULL;
        uint64_t forced_tokens = 0;
        uint32_t confirmed = 0, rewinds = 0;
        fill_prompt(seq, n_prompt, round);
        realm_generation_params p = greedy(r.a, seq, n_prompt, N_NEW);
        p.run_ahead = 1 + RANDOM(20);
        if (round % 2) {
            assert_int_equal(realm_context_open(r.e, r.a, &c, NULL), REALM_OK);
            p.context = c;
        }
        reader_open(&k, r.e, p);
        for (;;) {
            reader_wait(&k, k.n + 1);
            if (RANDOM(3) == 0 && rewinds < 12) {
                realm_token forced[4];
                uint32_t keep = confirmed + RANDOM(k.n - confirmed + 1), n = RANDOM(5);
                if (n > N_NEW - keep) n = N_NEW - keep;
                for (uint32_t i = 0; i < n; i++) forced[i] = (realm_token)(3 + RANDOM(TINY_VOCAB - 3));
                reader_rewind(&k, keep, forced, n);
                confirmed = keep + n;
                forced_tokens += n;
                rewinds++;
            } else if (RANDOM(4) > 0 || k.finish != REALM_FINISH_NONE) {
                if (k.finish != REALM_FINISH_NONE && RANDOM(2)) continue;
                confirmed = k.n - RANDOM(k.n - confirmed + 1);
                if (k.finish != REALM_FINISH_NONE || k.n - confirmed >= p.run_ahead) confirmed = k.n;
                reader_confirm(&k, confirmed);
                if (k.finish != REALM_FINISH_NONE) break;
            } else if (k.n - confirmed >= p.run_ahead) {
                reader_confirm(&k, confirmed = k.n);
            }
            /* Every token is forced, or greedy after those before it: checked at the end. */
        }
        assert_int_equal(k.finish, REALM_FINISH_LENGTH);
        assert_int_equal(k.n, N_NEW);
        (void)realm_generation_poll(k.g, &k.batch);
        assert_true(k.batch.completion_tokens >= N_NEW - forced_tokens);
        assert_int_equal(k.batch.prompt_tokens, n_prompt + forced_tokens);
        if (c) {
            realm_context_info info;
            do realm_context_get_info(c, &info);
            while (info.busy);
            assert_int_equal(info.n_tokens, n_prompt + N_NEW);
            realm_token got[300];
            assert_int_equal(realm_context_get_tokens(c, n_prompt, got, 300), N_NEW);
            assert_memory_equal(got, k.ids, N_NEW * sizeof *got);
            realm_context_release(c);
        }
        reader_close(&k);
    }
    realm_token_counts total, each;
    realm_engine_counts(r.e, &total, &r.a, 1, &each);
    assert_memory_equal(&total, &each, sizeof total);
    oracle_close(&truth);
    engine_run_close(&r);
}

/* A sequence of forced tokens, each rewinding what had been generated, then free: the free ones are what the oracle
 * says. */
static void tokens_after_forced(void **state) {
    (void)state;
    engine_run r;
    static reader k;
    realm_token seq[200];
    engine_run_open(&r, &tiny_llama, NULL);
    oracle_open_tiny(&truth, r.file);
    for (unsigned round = 0; round < 6; round++) {
        fill_prompt(seq, 30, round);
        realm_generation_params p = greedy(r.a, seq, 30, 60);
        p.run_ahead = 4 + round;
        reader_open(&k, r.e, p);
        uint32_t n = 0;
        for (unsigned i = 0; i < 5; i++) {
            reader_wait(&k, n + 3);
            realm_token forced[2] = {(realm_token)(20 + i), (realm_token)(90 + round)};
            uint32_t keep = n + i % 3;
            reader_rewind(&k, keep, forced, 1 + i % 2);
            /* what is there now must be: greedy up to keep, then forced */
            oracle_continue(&truth, seq, 30 + n, keep - n);
            assert_memory_equal(k.ids, seq + 30, keep * sizeof *seq);
            memcpy(seq + 30 + keep, forced, (1 + i % 2) * sizeof *seq);
            n = keep + 1 + i % 2;
        }
        while (k.finish == REALM_FINISH_NONE) {
            reader_wait(&k, k.n + 1);
            reader_confirm(&k, k.n);
        }
        assert_int_equal(k.n, 60);
        oracle_continue(&truth, seq, 30 + n, 60 - n);
        assert_memory_equal(k.ids, seq + 30, 60 * sizeof *seq);
        reader_close(&k);
    }
    oracle_close(&truth);
    engine_run_close(&r);
}

/* A bias makes the generation say `id` again and again. */
static realm_generation_params always(realm_account *a, realm_logit_bias *bias, realm_token id, uint32_t max_tokens) {
    static const realm_token prompt[3] = {5, 6, 7};
    realm_generation_params p = greedy(a, prompt, 3, max_tokens);
    *bias = (realm_logit_bias){id, 100};
    p.sampling.bias = bias;
    p.sampling.n_bias = 1;
    return p;
}

#define TEXT_IS(k, s)                      \
    do {                                   \
        (k)->text[(k)->len] = '\0';        \
        assert_string_equal((k)->text, s); \
    } while (0)

static void text_and_stops(void **state) {
    (void)state;
    engine_run r;
    static reader k;
    realm_logit_bias bias;
    const realm_token A = TINY_PIECE(1), AB = TINY_PIECE(4), EURO = TINY_PIECE(7), B = TINY_PIECE(2), C = TINY_PIECE(3);
    engine_run_open(&r, &tiny_llama, NULL);

    /* The same text again after a rewind, nothing twice. */
    realm_generation_params p = always(r.a, &bias, A, 6);
    p.run_ahead = 3;
    reader_open(&k, r.e, p);
    reader_wait(&k, 3);
    TEXT_IS(&k, "aaa");
    reader_rewind(&k, 1, NULL, 0); /* which confirms the one, so that there will be four */
    reader_wait(&k, 4);
    TEXT_IS(&k, "aaaa");
    reader_rewind(&k, 2, &EURO, 1); /* forced text is the reader's own affair */
    reader_confirm(&k, 3);
    reader_wait(&k, 6);
    TEXT_IS(&k, "aaaaa");
    assert_int_equal(k.ids[2], EURO);
    reader_close(&k);

    /* "ab" + "c" would stop; the rewind puts something between. */
    realm_gguf_str stop = {"abc", 3};
    p = always(r.a, &bias, A, 5);
    p.run_ahead = 5;
    p.stop = &stop;
    p.n_stop = 1;
    reader_open(&k, r.e, p);
    reader_wait(&k, 2);
    reader_rewind(&k, 1, &AB, 1); /* "a" is held back by the stop string, shown with what follows */
    reader_wait(&k, 5);
    TEXT_IS(&k, "a"
                "aaa"); /* of a|ab|aaa the forced "ab" is not shown */
    assert_int_equal(k.finish, REALM_FINISH_LENGTH);
    reader_close(&k);

    /* A stop string over the border between forced and generated tokens. */
    p = always(r.a, &bias, C, 5);
    p.run_ahead = 5;
    p.stop = &stop;
    p.n_stop = 1;
    reader_open(&k, r.e, p);
    reader_wait(&k, 3);
    reader_rewind(&k, 2, &AB, 1);
    reader_wait(&k, 5);
    assert_int_equal(k.finish, REALM_FINISH_STOP);
    assert_int_equal(k.n, 4);
    TEXT_IS(&k, "cc");
    /* Taken back: the tokens go, the stop is forgotten. */
    reader_rewind(&k, 3, &B, 1);
    reader_wait(&k, 5);
    assert_int_equal(k.finish, REALM_FINISH_LENGTH);
    assert_int_equal(k.n, 5);
    assert_in_range(k.n_ends, 2, 3); /* the first answer may have come to its end before it was rewound */
    reader_close(&k);

    /* A stop string that a forced token completes ends it as well. */
    p = always(r.a, &bias, A, 9);
    p.run_ahead = 5;
    p.stop = &stop;
    p.n_stop = 1;
    reader_open(&k, r.e, p);
    reader_wait(&k, 2);
    reader_rewind(&k, 1, (realm_token[2]){B, C}, 2);
    reader_wait(&k, 9);
    assert_int_equal(k.finish, REALM_FINISH_STOP);
    assert_int_equal(k.n, 3);
    TEXT_IS(&k, "");
    reader_close(&k);

    /* Half a character that is taken back leaves nothing behind. */
    p = always(r.a, &bias, TINY_BYTE(0xe2), 4);
    p.run_ahead = 4;
    reader_open(&k, r.e, p);
    reader_wait(&k, 2);
    reader_rewind(&k, 0, (realm_token[1]){A}, 1);
    reader_wait(&k, 4);
    TEXT_IS(&k, "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd");
    reader_close(&k);
    engine_run_close(&r);
}

/* An end token, its END seen by the reader, and the generation goes on all the same, on its context too as long as
 * nobody has used that since; an account's place stays taken until the end is confirmed. */
static void an_end_taken_back(void **state) {
    (void)state;
    engine_run r;
    static reader k;
    realm_logit_bias bias;
    realm_error err;
    engine_run_open(&r, &tiny_llama, NULL);
    realm_generation_params p = always(r.a, &bias, 2, 8);
    realm_context *c;
    realm_context_info info;
    realm_engine_stats st;
    assert_int_equal(realm_context_open(r.e, r.a, &c, NULL), REALM_OK);
    p.run_ahead = 4;
    p.ignore_end = false;
    p.context = c;
    reader_open(&k, r.e, p);
    for (unsigned i = 0; i < 3; i++) {
        reader_wait(&k, 8);
        assert_int_equal(k.finish, REALM_FINISH_STOP);
        assert_int_equal(k.end_id, 2);
        assert_int_equal(k.n, i);
        assert_int_equal(k.n_ends, i + 1);
        assert_int_equal(realm_account_generations(r.a), 1);
        realm_engine_get_stats(r.e, &st);
        assert_int_equal(st.running + st.queued, 0);
        realm_context_get_info(c, &info);
        assert_false(info.busy);
        assert_int_equal(info.n_tokens, 3 + i);
        if (i < 2) reader_rewind(&k, i, (realm_token[1]){50}, 1);
    }
    reader_confirm(&k, 2); /* END as well: it is final */
    assert_int_equal(realm_generation_rewind(k.g, 2, NULL, 0, &err), REALM_E_CLOSED);
    while (realm_account_generations(r.a) > 0) continue;
    assert_int_equal(realm_generation_poll(k.g, &k.batch), 0);
    reader_close(&k);

    /* The context has gone on: the end stays. What was refused on it has changed nothing. */
    assert_int_equal(realm_context_truncate(c, 0, &err), REALM_OK);
    reader_open(&k, r.e, p);
    reader_wait(&k, 8);
    realm_generation *refused;
    realm_account_set_limits(r.a, &(realm_account_limits){.generations = 1});
    assert_int_equal(realm_generation_submit(r.e, &p, &refused, &err), REALM_E_CROWDED);
    realm_account_set_limits(r.a, &(realm_account_limits){0});
    realm_context_get_info(c, &info);
    assert_int_equal(info.n_tokens, 3);
    reader_rewind(&k, 0, NULL, 0);
    reader_wait(&k, 8);
    assert_int_equal(realm_context_append(c, (realm_token[1]){9}, 1, &err), REALM_OK);
    assert_int_equal(realm_generation_rewind(k.g, 0, NULL, 0, &err), REALM_E_CLOSED);
    reader_close(&k);
    while (realm_account_generations(r.a) > 0) continue;

    /* Rewound and released, or cancelled: it goes away, and the context is free. */
    for (unsigned i = 0; i < 20; i++) {
        assert_int_equal(realm_context_truncate(c, 0, &err), REALM_OK);
        reader_open(&k, r.e, p);
        reader_wait(&k, 8);
        reader_rewind(&k, 0, (realm_token[1]){50}, 1);
        if (i % 2) {
            realm_generation_cancel(k.g);
            reader_wait(&k, 8);
            assert_true(k.finish == REALM_FINISH_CANCELLED || k.finish == REALM_FINISH_STOP);
        }
        reader_close(&k);
        while (realm_account_generations(r.a) > 0) continue;
        do realm_context_get_info(c, &info);
        while (info.busy);
    }
    /* Nor does an unconfirmed end outlive its deadline. */
    p.deadline_ns = realm_clock_ns() + 30 * REALM_NS_PER_MS;
    reader_open(&k, r.e, p);
    reader_wait(&k, 8);
    while (realm_account_generations(r.a) > 0) continue;
    assert_int_equal(realm_generation_poll(k.g, &k.batch), 0);
    reader_close(&k);
    realm_context_release(c);
    engine_run_close(&r);
}

/* A cancel, or a reader that goes, right behind a rewind: the context has what the rewind left, not what it dropped. */
static void rewound_and_cancelled(void **state) {
    (void)state;
    engine_run r;
    static reader k;
    realm_token prompt[40], got[64];
    engine_run_open(&r, &tiny_llama, NULL);
    fill_prompt(prompt, 40, 2);
    for (unsigned round = 0; round < 4; round++) {
        const bool goes = round & 1, whole = round & 2; /* whole: the forced tokens are all that may be generated */
        realm_context *c;
        realm_context_info info;
        held h;
        assert_int_equal(realm_context_open(r.e, r.a, &c, NULL), REALM_OK);
        realm_generation_params p = greedy(r.a, prompt, 40, whole ? 5 : 30);
        p.run_ahead = 3;
        p.context = c;
        reader_open(&k, r.e, p);
        reader_wait(&k, 3);
        engine_stop(&h, &r);
        reader_rewind(&k, 2, (realm_token[]){7, 8, 9}, 3);
        if (goes)
            reader_close(&k);
        else
            realm_generation_cancel(k.g);
        held_go(&h);
        if (!goes) {
            while (k.finish == REALM_FINISH_NONE) reader_wait(&k, k.n + 1);
            assert_int_equal(k.finish, whole ? REALM_FINISH_LENGTH : REALM_FINISH_CANCELLED);
        }
        do realm_context_get_info(c, &info);
        while (info.busy);
        assert_int_equal(realm_context_get_tokens(c, 40, got, 64), 5);
        assert_int_equal(got[0], k.ids[0]);
        assert_int_equal(got[1], k.ids[1]);
        assert_memory_equal(got + 2, ((realm_token[]){7, 8, 9}), 3 * sizeof *got);
        if (!goes) reader_close(&k);
        realm_context_release(c);
    }
    engine_run_close(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(stalls_and_goes_on),  cmocka_unit_test(random_readers),
                                       cmocka_unit_test(tokens_after_forced), cmocka_unit_test(text_and_stops),
                                       cmocka_unit_test(an_end_taken_back),   cmocka_unit_test(rewound_and_cancelled)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
