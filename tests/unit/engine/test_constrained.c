/* Generations under a grammar in a running engine: whatever the logits are, the text has the form and ends by itself;
 * rewound it goes on in the form; what cannot be is an error, never text without the grammar. */
#include "support/engine_run.h"

static realm_grammar_vocab *vocab;

static realm_grammar_state *state_of(engine_run *r, realm_grammar_kind kind, const char *text) {
    realm_grammar *g;
    realm_grammar_state *s;
    realm_error err = {0};
    if (!vocab && realm_grammar_vocab_open(&vocab, r->t, &err) != REALM_OK) fail_msg("%s", err.text);
    if (realm_grammar_compile(vocab, 0, kind, text, strlen(text), &g, &err) != REALM_OK) fail_msg("%s", err.text);
    assert_int_equal(realm_grammar_state_open(g, &s, NULL), REALM_OK);
    realm_grammar_release(g);
    return s;
}

static void close_all(engine_run *r) {
    realm_grammar_vocab_close(vocab);
    vocab = NULL;
    engine_run_close(r);
}

static bool three_and_two(const char *t, size_t len) { /* [0-9]{3}-[a-z]{2}, or yes, or no */
    if (len == 3 && memcmp(t, "yes", 3) == 0) return true;
    if (len == 2 && memcmp(t, "no", 2) == 0) return true;
    if (len != 6 || t[3] != '-') return false;
    for (int i = 0; i < 3; i++)
        if (t[i] < '0' || t[i] > '9') return false;
    return t[4] >= 'a' && t[4] <= 'z' && t[5] >= 'a' && t[5] <= 'z';
}

static void text_has_the_form(void **unused) {
    (void)unused;
    engine_run r;
    engine_run_open(&r, &tiny_llama, NULL);
    realm_grammar_state *s = state_of(&r, REALM_GRAMMAR_KIND_REGEX, "yes|no|[0-9]{3}-[a-z]{2}");
    enum { N = 24 };
    static consumer c[N];
    realm_token prompt[9];
    for (unsigned i = 0; i < N; i++) {
        fill_prompt(prompt, 9, i);
        realm_generation_params p = greedy(r.a, prompt, 9, 0);
        p.sampling.temperature = i % 3 == 0 ? 0 : 3;
        p.sampling.top_k = i % 2 ? 5 : 0;
        p.sampling.seed = i;
        p.ignore_end = i % 4 == 0; /* the form ends it all the same */
        p.grammar = s;
        assert_int_equal(consumer_submit(&c[i], r.e, &p, NULL), REALM_OK);
    }
    realm_grammar_state_close(s); /* each has its copy */
    for (unsigned i = 0; i < N; i++) {
        consumer_wait(&c[i]);
        assert_int_equal(c[i].finish, REALM_FINISH_STOP);
        if (!three_and_two(c[i].text, c[i].text_len)) fail_msg("%.*s", (int)c[i].text_len, c[i].text);
        consumer_close(&c[i]);
    }
    close_all(&r);
}

/* The reader throws away what came, forces a token of its own, and the rest still fits. */
static void rewound_it_keeps_the_form(void **unused) {
    (void)unused;
    engine_run r;
    engine_run_open(&r, &tiny_llama, NULL);
    realm_grammar_state *s = state_of(&r, REALM_GRAMMAR_KIND_REGEX, "[xyz]{12}");
    for (unsigned round = 0; round < 6; round++) {
        static consumer c;
        realm_token prompt[5], forced = TINY_BYTE('x' + (int)(round % 3));
        realm_error err = {0};
        fill_prompt(prompt, 5, round);
        realm_generation_params p = greedy(r.a, prompt, 5, 0);
        p.sampling.temperature = 2;
        p.sampling.seed = round;
        p.grammar = s;
        p.run_ahead = 6;
        assert_int_equal(consumer_submit(&c, r.e, &p, NULL), REALM_OK);
        while (c.n_ids < 6) (void)consumer_poll(&c);
        char kept[2] = {c.text[0], c.text[1]};
        if (realm_generation_rewind(c.g, 2, &forced, 1, &err) != REALM_OK) fail_msg("%s", err.text);
        c.n_ids = c.text_len = 0;
        realm_generation_confirm(c.g, 3, false);
        for (uint32_t confirmed = 3; !consumer_poll(&c);) {
            if (3 + c.n_ids > confirmed) realm_generation_confirm(c.g, confirmed = 3 + (uint32_t)c.n_ids, false);
            sched_yield();
        }
        assert_int_equal(c.finish, REALM_FINISH_STOP);
        assert_int_equal(c.text_len, 9); /* 2 kept, 1 forced */
        for (size_t i = 0; i < c.text_len; i++) assert_true(c.text[i] >= 'x' && c.text[i] <= 'z');
        assert_true(kept[0] >= 'x' && kept[1] <= 'z');
        consumer_close(&c);
    }
    /* A token that the form does not allow cannot be forced into it. */
    static consumer c;
    realm_token prompt[5], forced = TINY_BYTE('Q');
    fill_prompt(prompt, 5, 1);
    realm_generation_params p = greedy(r.a, prompt, 5, 0);
    p.grammar = s;
    p.run_ahead = 4;
    assert_int_equal(consumer_submit(&c, r.e, &p, NULL), REALM_OK);
    while (c.n_ids < 4) (void)consumer_poll(&c);
    if (realm_generation_rewind(c.g, 1, &forced, 1, NULL) == REALM_OK) {
        consumer_wait(&c);
        assert_int_equal(c.finish, REALM_FINISH_ERROR);
        assert_int_equal(c.status, REALM_E_INVALID);
    }
    consumer_close(&c);
    realm_grammar_state_close(s);
    close_all(&r);
}

static void refused(void **unused) {
    (void)unused;
    engine_run r;
    engine_run_open(&r, &tiny_llama, NULL);
    realm_error err = {0};
    realm_token prompt[5];
    fill_prompt(prompt, 5, 1);
    realm_generation_params p = greedy(r.a, prompt, 5, 0);
    realm_stage many[REALM_STAGES_MAX];
    for (size_t i = 0; i < REALM_ARRAY_LEN(many); i++) many[i] = (realm_stage){.kind = REALM_STAGE_KIND_TOP_K};
    realm_chain *chain;
    realm_generation *g;
    assert_int_equal(realm_chain_open(many, REALM_STAGES_MAX, 1, TINY_VOCAB, &chain, NULL), REALM_OK);
    realm_grammar_state *s = state_of(&r, REALM_GRAMMAR_KIND_REGEX, "a+");
    p.chain = chain;
    p.grammar = s;
    assert_int_equal(realm_generation_submit(r.e, &p, &g, &err), REALM_E_LIMIT);
    realm_chain_close(chain);
    assert_int_equal(realm_chain_open(many, 1, 1, TINY_VOCAB + 1, &chain, NULL), REALM_OK);
    p.chain = chain;
    p.grammar = NULL;
    assert_int_equal(realm_generation_submit(r.e, &p, &g, &err), REALM_E_INVALID);
    realm_chain_close(chain);
    /* A bias that leaves nothing of what the form allows to be finite is an error. */
    static uint8_t bits[(TINY_VOCAB + 7) / 8];
    bits[TINY_BYTE('b') / 8] = (uint8_t)(1u << TINY_BYTE('b') % 8);
    realm_stage mask = {.kind = REALM_STAGE_KIND_MASK};
    mask.u.mask.bits = bits;
    mask.u.mask.n_bytes = sizeof bits;
    assert_int_equal(realm_chain_open(&mask, 1, 1, TINY_VOCAB, &chain, NULL), REALM_OK);
    p.chain = chain;
    p.grammar = s;
    static consumer c;
    assert_int_equal(consumer_submit(&c, r.e, &p, NULL), REALM_OK);
    consumer_wait(&c);
    assert_int_equal(c.finish, REALM_FINISH_ERROR);
    assert_int_equal(c.status, REALM_E_INVALID);
    assert_int_equal(c.text_len, 0);
    consumer_close(&c);
    realm_chain_close(chain);
    realm_grammar_state_close(s);
    close_all(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(text_has_the_form), cmocka_unit_test(rewound_it_keeps_the_form),
                                       cmocka_unit_test(refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
