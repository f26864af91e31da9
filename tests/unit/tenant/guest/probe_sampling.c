/* Samplers and grammars, rightly and wrongly. */
#include "probe.h"

#define VOCAB 320
#define N 12

static int32_t ids[64], more[64], n_ids;
static realm_guest_event events[64];
static unsigned char bits[VOCAB / 8];

/* Ends when the generation does: its finish, its tokens in `out`, its text in buf. */
static int32_t drain(int32_t g, int32_t *out, int32_t *n, size_t *len) {
    *n = 0;
    *len = 0;
    for (;;) {
        int32_t k = realm_wait(g, events, 64, buf + *len, sizeof buf - *len, -1);
        if (k < 0) return k;
        for (int32_t i = 0; i < k; i++) {
            *len += events[i].text_len;
            if (events[i].kind == REALM_EVENT_KIND_END) return (int32_t)events[i].finish;
            out[(*n)++] = events[i].token;
        }
    }
}

static int32_t rows_of(int32_t *c) {
    int32_t p = realm_prompt_own();
    n_ids = realm_prompt_get_tokens(p, ids, 64);
    realm_close(p);
    *c = realm_context_new();
    int32_t f = realm_forward(*c, ids, (size_t)n_ids, 1, 0);
    if (f > 0) realm_wait(f, events, 64, text, sizeof text, -1);
    return f;
}

static int32_t samplers(void) {
    int32_t c, f = rows_of(&c);
    TRUE(f > 0);
    realm_guest_logit_stats st;
    IS(realm_logits_stats(f, 0, &st), 0);
    int32_t s = realm_sampler_new(NULL, 0, 1);
    TRUE(s > 0);
    IS(realm_logits_sample(f, 0, s, NULL), st.best);
    IS(realm_close(s), 0);
    /* bias and mask decide */
    realm_bias bias = {77, 100};
    realm_sampler_stage stages[] = {
        {.kind = REALM_STAGE_BIAS, .n = 1, .data = (uint64_t)(uintptr_t)&bias},
        {.kind = REALM_STAGE_TEMPERATURE, .a = 1},
    };
    s = realm_sampler_new(stages, 2, 5);
    TRUE(s > 0);
    IS(realm_logits_sample(f, 0, s, NULL), 77);
    IS(realm_close(s), 0);
    bits[33 / 8] = 1 << 33 % 8;
    stages[0] = (realm_sampler_stage){.kind = REALM_STAGE_MASK, .n = sizeof bits, .data = (uint64_t)(uintptr_t)bits};
    s = realm_sampler_new(stages, 2, 5);
    TRUE(s > 0);
    IS(realm_logits_sample(f, 0, s, NULL), 33);
    IS(realm_close(s), 0);
    /* one seed, one sequence; a fork goes on as the original does */
    stages[0] = (realm_sampler_stage){.kind = REALM_STAGE_PENALTIES, .a = 1.3f};
    s = realm_sampler_new(stages, 2, 42);
    int32_t t = realm_sampler_new(stages, 2, 42), u = realm_sampler_new(stages, 2, 43), differs = 0;
    for (int i = 0; i < 8; i++) {
        int32_t token = realm_logits_sample(f, 0, s, NULL);
        TRUE(token >= 0);
        IS(realm_logits_sample(f, 0, t, NULL), token);
        differs += realm_logits_sample(f, 0, u, NULL) != token;
    }
    TRUE(differs > 0);
    int32_t v = realm_sampler_fork(s);
    TRUE(v > 0);
    for (int i = 0; i < 8; i++) IS(realm_logits_sample(f, 0, v, NULL), realm_logits_sample(f, 0, s, NULL));
    ids[0] = 5;
    IS(realm_sampler_accept(v, ids, 1), 0);
    ids[0] = VOCAB;
    IS(realm_sampler_accept(v, ids, 1), REALM_E_RANGE);
    IS(realm_sampler_accept(v, (int32_t *)(void *)PAST, 1), REALM_E_RANGE);
    IS(realm_sampler_accept(f, ids, 0), REALM_E_INVALID);
    IS(realm_close(t), 0);
    IS(realm_close(u), 0);
    IS(realm_close(v), 0);
    IS(realm_sampler_fork(v), REALM_E_INVALID);
    /* every stage at once, and what is wrong with one */
    realm_sampler_stage all[] = {
        {.kind = REALM_STAGE_PENALTIES, .n = 64, .a = 1.1f, .b = 0.1f, .c = 0.1f},
        {.kind = REALM_STAGE_DRY, .m = 2, .a = 0.8f, .b = 1.75f},
        {.kind = REALM_STAGE_TYPICAL, .a = 0.95f},
        {.kind = REALM_STAGE_TOP_K, .n = 40},
        {.kind = REALM_STAGE_TOP_P, .a = 0.95f},
        {.kind = REALM_STAGE_MIN_P, .a = 0.05f},
        {.kind = REALM_STAGE_XTC, .a = 0.5f, .b = 0.1f},
        {.kind = REALM_STAGE_TEMPERATURE, .a = 0.8f},
    };
    t = realm_sampler_new(all, 8, 9);
    TRUE(t > 0);
    TRUE(realm_logits_sample(f, 0, t, NULL) >= 0);
    IS(realm_close(t), 0);
    all[4].a = 7;
    IS(realm_sampler_new(all, 8, 9), REALM_E_RANGE);
    TRUE(error_says("top_p"));
    all[4] = (realm_sampler_stage){.kind = REALM_STAGE_MIROSTAT, .a = 5, .b = 0.1f};
    IS(realm_sampler_new(all, 8, 9), REALM_E_RANGE); /* not the last */
    all[4].kind = 99;
    IS(realm_sampler_new(all, 8, 9), REALM_E_UNSUPPORTED);
    IS(realm_sampler_new(all, 17, 9), REALM_E_LIMIT);
    IS(realm_sampler_new((realm_sampler_stage *)(void *)(EDGE - 39), 1, 9), REALM_E_RANGE);
    all[0] = (realm_sampler_stage){.kind = REALM_STAGE_BIAS, .n = 2, .data = ~UINT64_C(0) - 3};
    IS(realm_sampler_new(all, 1, 9), REALM_E_RANGE);
    all[0].n = 5000;
    IS(realm_sampler_new(all, 1, 9), REALM_E_LIMIT);
    all[0] = (realm_sampler_stage){.kind = REALM_STAGE_MASK, .n = 3, .data = (uint64_t)(uintptr_t)bits};
    IS(realm_sampler_new(all, 1, 9), REALM_E_RANGE);
    all[0] = (realm_sampler_stage){.kind = REALM_STAGE_GRAMMAR, .handle = s};
    IS(realm_sampler_new(all, 1, 9), REALM_E_INVALID);
    IS(realm_close(s), 0);
    IS(realm_close(f), 0);
    IS(realm_close(c), 0);
    return 1;
}

static int32_t in_generations(void) {
    realm_sampler_stage stages[] = {{.kind = REALM_STAGE_TOP_K, .n = 20}, {.kind = REALM_STAGE_TEMPERATURE, .a = 1.5f}};
    int32_t p = realm_prompt_own(), s = realm_sampler_new(stages, 2, 7), n, m;
    size_t len;
    realm_generate_options o = {.size = sizeof o,
                                .set = REALM_SET_MAX_TOKENS | REALM_SET_FLAGS | REALM_SET_SAMPLER,
                                .max_tokens = N,
                                .flags = REALM_GENERATE_IGNORE_END,
                                .sampler = s};
    int32_t g = realm_generate(p, &o, REALM_MODE_EVENTS);
    TRUE(g > 0);
    IS(drain(g, ids, &n, &len), REALM_END_LENGTH);
    IS(realm_close(g), 0);
    g = realm_generate(p, &o, REALM_MODE_EVENTS); /* the sampler's state was copied: the same again */
    IS(drain(g, more, &m, &len), REALM_END_LENGTH);
    IS(m, n);
    for (int32_t i = 0; i < n; i++) IS(more[i], ids[i]);
    IS(realm_close(g), 0);
    IS(realm_close(s), 0);
    IS(realm_generate(p, &o, REALM_MODE_EVENTS), REALM_E_INVALID);
    TRUE(error_says("sampler"));
    /* a grammar makes the text what it says, whatever the model would have said */
    int32_t gr = realm_grammar_compile(REALM_GRAMMAR_REGEX, REALM_LITERAL("abc|abcd"));
    TRUE(gr > 0);
    o.set = REALM_SET_MAX_TOKENS | REALM_SET_GRAMMAR;
    o.grammar = gr;
    for (int round = 0; round < 2; round++) {
        g = realm_generate(p, &o, REALM_MODE_EVENTS);
        TRUE(g > 0);
        IS(drain(g, ids, &n, &len), REALM_END_STOP);
        TRUE((len == 3 || len == 4) && same(buf, "abcd", len));
        IS(realm_close(g), 0);
    }
    o.set = REALM_SET_MAX_TOKENS | REALM_SET_SAMPLER;
    realm_sampler_stage constrained[] = {{.kind = REALM_STAGE_GRAMMAR, .handle = gr},
                                         {.kind = REALM_STAGE_TEMPERATURE, .a = 1}};
    o.sampler = realm_sampler_new(constrained, 2, 3);
    TRUE(o.sampler > 0);
    g = realm_generate(p, &o, REALM_MODE_EVENTS);
    TRUE(g > 0);
    IS(drain(g, ids, &n, &len), REALM_END_STOP);
    TRUE((len == 3 || len == 4) && same(buf, "abcd", len));
    IS(realm_close(g), 0);
    IS(realm_close(o.sampler), 0);
    IS(realm_close(gr), 0);
    IS(realm_close(p), 0);
    return 1;
}

static int32_t allowed(int32_t token) { return bits[token / 8] >> token % 8 & 1; }

static int32_t grammars(void) {
    int32_t g = realm_grammar_compile(REALM_GRAMMAR_REGEX, REALM_LITERAL("(abc)+"));
    TRUE(g > 0);
    IS(realm_grammar_state(g), 0);
    IS(realm_grammar_mask(g, bits, sizeof bits), sizeof bits);
    TRUE(allowed(260) && allowed(263)); /* "a", "ab" */
    TRUE(!allowed(261) && !allowed(2)); /* "b", and the end */
    IS(realm_grammar_mask(g, bits, 3), sizeof bits);
    int32_t path[] = {263, 262, 260, 262}; /* "ab" "c" "a" and, wrongly, "c" */
    int32_t f = realm_grammar_fork(g);
    TRUE(f > 0);
    IS(realm_grammar_accept(g, path, 4), 3);
    IS(realm_grammar_state(g), 0);
    IS(realm_grammar_rollback(g, 1), 0);
    IS(realm_grammar_state(g), REALM_GRAMMAR_CAN_END);
    IS(realm_grammar_mask(g, bits, sizeof bits), sizeof bits);
    TRUE(allowed(2) && allowed(260) && !allowed(262));
    IS(realm_grammar_state(f), 0); /* the fork did not move */
    IS(realm_grammar_accept(f, path + 1, 1), 0);
    TRUE(realm_grammar_rollback(g, 100) < 0);
    IS(realm_close(g), 0);
    IS(realm_grammar_accept(g, path, 1), REALM_E_INVALID);
    IS(realm_close(f), 0);
    static const char SCHEMA[] = "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"boolean\"}},"
                                 "\"required\":[\"a\"],\"additionalProperties\":false}";
    g = realm_grammar_compile(REALM_GRAMMAR_JSON_SCHEMA, SCHEMA, sizeof SCHEMA - 1);
    TRUE(g > 0);
    IS(realm_close(g), 0);
    g = realm_grammar_compile(REALM_GRAMMAR_LARK, REALM_LITERAL("start: \"a\" | \"b\" \"c\""));
    TRUE(g > 0);
    IS(realm_close(g), 0);
    TRUE(realm_grammar_compile(REALM_GRAMMAR_REGEX, REALM_LITERAL("(((")) < 0);
    TRUE(error_says("grammar_compile"));
    TRUE(realm_grammar_compile(REALM_GRAMMAR_JSON_SCHEMA, REALM_LITERAL("{\"type\":7}")) < 0);
    TRUE(realm_grammar_compile(REALM_GRAMMAR_JSON_SCHEMA, REALM_LITERAL("{]")) < 0);
    IS(realm_grammar_compile(0, "a", 1), REALM_E_INVALID);
    IS(realm_grammar_compile(4, "a", 1), REALM_E_INVALID);
    IS(realm_grammar_compile(REALM_GRAMMAR_REGEX, PAST, 1), REALM_E_RANGE);
    IS(realm_grammar_compile(REALM_GRAMMAR_REGEX, EDGE - 1, 2), REALM_E_RANGE);
    IS(realm_grammar_compile(REALM_GRAMMAR_REGEX, buf, 1u << 20), REALM_E_LIMIT);
    return 1;
}

/* With the prompt noted, draws of single rows are those of a generation: the penalties look back over it too. */
static int32_t lockstep(void) {
    int32_t c, n, f = rows_of(&c), drawn[N], p = realm_prompt_own();
    size_t len;
    TRUE(f > 0 && n_ids > 0);
    realm_sampler_stage stages[] = {{.kind = REALM_STAGE_PENALTIES, .a = 1.7f},
                                    {.kind = REALM_STAGE_TEMPERATURE, .a = 1}};
    int32_t s = realm_sampler_new(stages, 2, 11), bare = realm_sampler_new(stages, 2, 11);
    realm_generate_options o = {.size = sizeof o,
                                .set = REALM_SET_SAMPLER | REALM_SET_MAX_TOKENS | REALM_SET_FLAGS,
                                .max_tokens = N,
                                .flags = REALM_GENERATE_IGNORE_END,
                                .sampler = s};
    int32_t g = realm_generate(p, &o, REALM_MODE_EVENTS);
    IS(drain(g, drawn, &n, &len), REALM_END_LENGTH);
    IS(n, N);
    IS(realm_sampler_prompt(s, ids, (size_t)n_ids), 0);
    IS(realm_sampler_prompt(s, NULL, 0), 0);
    int32_t differs = 0;
    for (int i = 0; i < N; i++) {
        int32_t other = realm_logits_sample(f, 0, bare, NULL);
        int32_t token = realm_logits_sample(f, 0, s, NULL);
        IS(token, drawn[i]);
        differs += other != token;
        IS(realm_close(f), 0);
        f = realm_forward(c, &token, 1, 1, 0);
        TRUE(f > 0);
        IS(realm_wait(f, events, 64, text, sizeof text, -1), 1);
    }
    TRUE(differs > 0); /* the prompt counted */
    ids[0] = VOCAB;
    IS(realm_sampler_prompt(s, ids, 1), REALM_E_RANGE);
    IS(realm_sampler_prompt(s, (int32_t *)(void *)PAST, 1), REALM_E_RANGE);
    IS(realm_sampler_prompt(f, ids, 0), REALM_E_INVALID);
    IS(realm_close(f), 0);
    IS(realm_close(s), 0);
    IS(realm_close(bare), 0);
    IS(realm_close(c), 0);
    return 1;
}

PROBE(samplers, lockstep, in_generations, grammars)
