/* Contexts, forward passes and logits, rightly and wrongly. The tenant may save two contexts. */
#include "probe.h"

#define VOCAB 320
#define N 12

static int32_t prompt[64], n_prompt, greedy[N], ids[64];
static realm_guest_event events[64];
static float row[VOCAB], values[64];

/* The end event of one generation or forward pass; its tokens in `out`. */
static int32_t drain(int32_t g, int32_t *out, int32_t *n) {
    *n = 0;
    for (;;) {
        int32_t k = realm_wait(g, events, 64, text, sizeof text, -1);
        if (k < 0) return k;
        for (int32_t i = 0; i < k; i++) {
            if (events[i].kind == REALM_EVENT_KIND_END) return (int32_t)events[i].finish;
            out[(*n)++] = events[i].token;
        }
    }
}

static const realm_generate_options plain = {.size = sizeof plain,
                                             .set = REALM_SET_MAX_TOKENS | REALM_SET_FLAGS,
                                             .max_tokens = N,
                                             .flags = REALM_GENERATE_IGNORE_END};

/* What the engine makes of the prompt by itself. */
static int32_t by_itself(void) {
    int32_t p = realm_prompt_own(), n;
    n_prompt = realm_prompt_get_tokens(p, prompt, 64);
    TRUE(n_prompt > 2);
    int32_t g = realm_generate(p, &plain, REALM_MODE_EVENTS);
    IS(drain(g, greedy, &n), REALM_END_LENGTH);
    IS(n, N);
    IS(realm_close(g), 0);
    IS(realm_close(p), 0);
    return 1;
}

static int32_t sequences(void) {
    realm_guest_context s;
    int32_t c = realm_context_new();
    TRUE(c > 0);
    IS(realm_context_append(c, prompt, (size_t)n_prompt), n_prompt);
    IS(realm_context_stat(c, &s), 0);
    IS(s.n_tokens, n_prompt);
    IS(s.n_computed, 0);
    IS(s.busy, 0);
    IS(realm_context_get_tokens(c, 0, ids, 64), n_prompt);
    for (int32_t i = 0; i < n_prompt; i++) IS(ids[i], prompt[i]);
    IS(realm_context_get_tokens(c, 2, ids, 1), 1);
    IS(ids[0], prompt[2]);
    IS(realm_context_get_tokens(c, 1000, ids, 64), 0);
    IS(realm_context_get_tokens(c, 0, (int32_t *)(void *)(EDGE - 8), 3), REALM_E_RANGE);
    IS(realm_context_truncate(c, (uint32_t)n_prompt + 1), REALM_E_RANGE);
    IS(realm_context_truncate(c, 2), 0);
    IS(realm_context_append(c, prompt + 2, (size_t)n_prompt - 2), n_prompt);
    ids[0] = VOCAB;
    IS(realm_context_append(c, ids, 1), REALM_E_RANGE);
    IS(realm_context_append(c, (int32_t *)(void *)PAST, 1), REALM_E_RANGE);
    int32_t p = realm_prompt_own();
    IS(realm_context_append_prompt(c, p), 2 * n_prompt);
    IS(realm_context_append_prompt(c, c), REALM_E_INVALID);
    IS(realm_context_append_prompt(p, p), REALM_E_INVALID);
    IS(realm_context_stat(c, (realm_guest_context *)(void *)(EDGE - 23)), REALM_E_RANGE);
    for (int i = 0; i < 64; i++) ids[i] = 260;
    int32_t len = 0;
    for (int i = 0; i < 8 && len >= 0; i++) len = realm_context_append(c, ids, 64);
    IS(len, REALM_E_CONTEXT); /* longer than the model's context: refused, and it stays as it was */
    IS(realm_context_stat(c, &s), 0);
    TRUE(s.n_tokens <= 256);
    IS(realm_close(c), 0);
    IS(realm_context_fork(c), REALM_E_INVALID);
    IS(realm_close(p), 0);
    return 1;
}

/* Lockstep: each token drawn from the rows of a forward pass; the same tokens as the engine by itself. */
static int32_t lockstep(void) {
    realm_guest_context s;
    realm_guest_usage u;
    int32_t c = realm_context_new(), n;
    TRUE(c > 0);
    int32_t f = realm_forward(c, prompt, (size_t)n_prompt, 1, 0);
    TRUE(f > 0);
    for (int i = 0; i < N; i++) {
        int32_t f_status = drain(f, ids, &n);
        IS(f_status, REALM_END_STOP);
        IS(n, 0);
        int32_t token = realm_logits_sample(f, 0, 0, NULL);
        IS(token, greedy[i]);
        IS(realm_usage(f, &u), 0);
        IS(u.prompt, i ? 1 : n_prompt);
        IS(u.completion, 0);
        IS(realm_close(f), 0);
        f = realm_forward(c, &token, 1, 1, 0);
        TRUE(f > 0);
    }
    IS(drain(f, ids, &n), REALM_END_STOP);
    IS(realm_wait(f, events, 64, text, sizeof text, -1), REALM_E_CLOSED);
    IS(realm_context_stat(c, &s), 0);
    IS(s.n_tokens, n_prompt + N);
    IS(s.n_computed, n_prompt + N);
    TRUE(s.pages > 0);
    IS(realm_close(f), 0);
    IS(realm_close(c), 0);
    return 1;
}

static int32_t rows(void) {
    realm_guest_logit_stats st;
    realm_guest_token top[8];
    realm_bias bias[2] = {{5, 100}, {7, -3}};
    unsigned char bits[VOCAB / 8];
    float logprob = 1;
    int32_t c = realm_context_new(), n;
    int32_t f = realm_forward(c, prompt, (size_t)n_prompt, 2, REALM_FORWARD_HIDDEN);
    TRUE(f > 0);
    int32_t early = realm_logits_stats(f, 0, &st); /* it may have ended already, but its end was not seen */
    IS(early, REALM_E_AGAIN);
    IS(drain(f, ids, &n), REALM_END_STOP);
    IS(realm_logits_read(f, 1, row, VOCAB - 1), VOCAB); /* does not fit: neither written nor charged */
    IS(realm_logits_read(f, 1, row, VOCAB), VOCAB);
    int32_t best = 0;
    for (int32_t i = 0; i < VOCAB; i++) best = row[i] > row[best] ? i : best;
    IS(realm_logits_stats(f, 1, &st), 0);
    IS(st.best, best);
    IS(st.best, greedy[0]);
    TRUE(st.entropy > 0 && st.entropy < 6 && st.best_logprob < 0 && st.log_sum_exp > row[best]);
    IS(realm_logits_top(f, 1, 8, top, 7), 8);
    IS(realm_logits_top(f, 1, 8, top, 8), 8);
    IS(top[0].token, best);
    for (int i = 0; i < 8; i++) ids[i] = top[i].token;
    IS(realm_logits_gather(f, 1, ids, 8, values), 8);
    for (int i = 0; i < 8; i++) {
        float d = values[i] - top[i].logprob;
        TRUE(d < 1e-4f && d > -1e-4f && (i == 0 || top[i].logprob <= top[i - 1].logprob));
    }
    IS(realm_logits_sample(f, 1, 0, &logprob), best);
    TRUE(logprob < 0 && logprob > st.best_logprob - 1e-3f);
    IS(realm_hidden_read(f, 1, values, 64), 64);
    float sum = 0;
    for (int i = 0; i < 64; i++) sum += values[i] * values[i];
    TRUE(sum > 0);
    IS(realm_hidden_read(f, 0, values, 63), 64);
    IS(realm_logits_bias(f, 1, bias, 2), 0);
    IS(realm_logits_sample(f, 1, 0, NULL), 5);
    for (int i = 0; i < VOCAB / 8; i++) bits[i] = 0;
    bits[9 / 8] |= 1 << 9 % 8;
    IS(realm_logits_mask(f, 1, bits, sizeof bits), 0);
    IS(realm_logits_sample(f, 1, 0, NULL), 9);
    bits[9 / 8] = 0;
    IS(realm_logits_mask(f, 1, bits, sizeof bits), 0);
    IS(realm_logits_sample(f, 1, 0, NULL), REALM_E_FORMAT); /* nothing is left */
    IS(realm_logits_stats(f, 1, &st), REALM_E_FORMAT);
    IS(realm_logits_stats(f, 0, &st), 0); /* the other row is as it was */
    /* what is wrong */
    bias[1].token = VOCAB;
    IS(realm_logits_bias(f, 0, bias, 2), REALM_E_RANGE);
    int32_t before = st.best;
    IS(realm_logits_stats(f, 0, &st), 0);
    IS(st.best, before); /* the first of the two did not count either */
    bias[1] = (realm_bias){3, __builtin_inff()};
    IS(realm_logits_bias(f, 0, bias, 2), REALM_E_RANGE);
    IS(realm_logits_bias(f, 0, bias, 5000), REALM_E_LIMIT);
    IS(realm_logits_mask(f, 0, bits, sizeof bits - 1), REALM_E_RANGE);
    IS(realm_logits_sample(f, 2, 0, NULL), REALM_E_RANGE);
    IS(realm_logits_sample(f, 0, 12345, NULL), REALM_E_INVALID);
    IS(realm_logits_sample(c, 0, 0, NULL), REALM_E_INVALID);
    IS(realm_logits_top(f, 0, 257, top, 8), REALM_E_LIMIT);
    IS(realm_logits_gather(f, 0, ids, 5000, values), REALM_E_LIMIT);
    ids[3] = -1;
    IS(realm_logits_gather(f, 0, ids, 8, values), REALM_E_RANGE);
    IS(realm_close(f), 0);
    IS(realm_forward(c, NULL, 0, 0, 0), REALM_E_RANGE);
    IS(realm_forward(c, NULL, 0, 65, 0), REALM_E_RANGE);
    IS(realm_forward(c, NULL, 0, 1, 2), REALM_E_UNSUPPORTED);
    IS(realm_forward(c, (int32_t *)(void *)PAST, 2, 1, 0), REALM_E_RANGE);
    f = realm_forward(c, NULL, 0, 1, 0); /* all are computed: the last one again, for its row */
    TRUE(f > 0);
    IS(drain(f, ids, &n), REALM_END_STOP);
    IS(realm_logits_sample(f, 0, 0, NULL), greedy[0]);
    IS(realm_hidden_read(f, 0, values, 64), REALM_E_NOT_FOUND);
    IS(realm_close(f), 0);
    int32_t empty = realm_context_new();
    f = realm_forward(empty, NULL, 0, 1, 0); /* nothing to compute */
    TRUE(f < 0);
    IS(realm_close(empty), 0);
    IS(realm_close(c), 0);
    return 1;
}

/* Generations on contexts; forks share their trunk and go their own ways. */
static int32_t generations(void) {
    realm_guest_context s;
    realm_generate_options o = plain;
    int32_t c = realm_context_new(), p = realm_prompt_own(), n;
    o.set |= REALM_SET_CONTEXT;
    o.context = c;
    int32_t g = realm_generate(0, &o, REALM_MODE_EVENTS);
    TRUE(g < 0); /* nothing there to go on from */
    IS(realm_generate(0, &plain, REALM_MODE_EVENTS), REALM_E_INVALID);
    g = realm_generate(p, &o, REALM_MODE_EVENTS);
    TRUE(g > 0);
    IS(drain(g, ids, &n), REALM_END_LENGTH);
    IS(n, N);
    for (int i = 0; i < N; i++) IS(ids[i], greedy[i]);
    IS(realm_context_stat(c, &s), 0);
    IS(s.busy, 0);
    IS(s.n_tokens, n_prompt + N);
    IS(realm_context_get_tokens(c, (uint32_t)n_prompt, ids, 64), N);
    for (int i = 0; i < N; i++) IS(ids[i], greedy[i]);
    IS(realm_close(g), 0);
    IS(realm_context_truncate(c, (uint32_t)n_prompt + 4), 0);
    int32_t fork[4], gs[4];
    for (int i = 0; i < 4; i++) {
        fork[i] = realm_context_fork(c);
        TRUE(fork[i] > 0);
    }
    IS(realm_context_stat(fork[0], &s), 0);
    TRUE(s.pages > 0);
    IS(s.shared_pages, s.pages);
    for (int i = 1; i < 4; i++) {
        int32_t token = 260 + i;
        IS(realm_context_append(fork[i], &token, 1), n_prompt + 5);
    }
    for (int i = 0; i < 4; i++) {
        o.context = fork[i];
        o.max_tokens = N - 4;
        gs[i] = realm_generate(0, &o, REALM_MODE_EVENTS);
        TRUE(gs[i] > 0);
    }
    for (int i = 0; i < 4; i++) {
        IS(drain(gs[i], ids, &n), REALM_END_LENGTH);
        if (i == 0) /* without an own token: as the trunk would have gone on */
            for (int k = 0; k < N - 4; k++) IS(ids[k], greedy[k + 4]);
        IS(realm_close(gs[i]), 0);
        IS(realm_close(fork[i]), 0);
    }
    /* closed while it runs: the generation keeps what it needs */
    o.context = realm_context_fork(c);
    o.max_tokens = 20;
    g = realm_generate(0, &o, REALM_MODE_EVENTS);
    IS(realm_close(o.context), 0);
    IS(drain(g, ids, &n), REALM_END_LENGTH);
    IS(n, 20);
    IS(realm_close(g), 0);
    IS(realm_generate(0, &o, REALM_MODE_EVENTS), REALM_E_INVALID); /* closed */
    o.context = p;
    IS(realm_generate(p, &o, REALM_MODE_EVENTS), REALM_E_INVALID);
    /* busy, for as long as a token waits to be confirmed */
    o.context = c;
    o.run_ahead = 1;
    g = realm_generate(0, &o, REALM_MODE_AHEAD);
    TRUE(g > 0);
    IS(realm_wait(g, events, 64, text, sizeof text, -1), 1);
    IS(realm_context_stat(c, &s), 0);
    IS(s.busy, 1);
    IS(realm_context_append(c, prompt, 1), REALM_E_BUSY);
    IS(realm_context_truncate(c, 1), REALM_E_BUSY);
    IS(realm_context_fork(c), REALM_E_BUSY);
    IS(realm_context_save(c, REALM_LITERAL("busy")), REALM_E_BUSY);
    IS(realm_generate(0, &o, REALM_MODE_EVENTS), REALM_E_BUSY);
    IS(realm_forward(c, prompt, 1, 1, 0), REALM_E_BUSY);
    IS(realm_cancel(g), 0);
    IS(drain(g, ids, &n), REALM_END_CANCELLED);
    IS(realm_context_append(c, prompt, 1), n_prompt + 6); /* 4 were kept, one was generated */
    IS(realm_close(g), 0);
    IS(realm_close(c), 0);
    IS(realm_close(p), 0);
    return 1;
}

static int32_t saved(void) {
    realm_guest_context s;
    int32_t c = realm_context_new();
    IS(realm_context_append(c, prompt, (size_t)n_prompt), n_prompt);
    IS(realm_context_open(REALM_LITERAL("a")), REALM_E_NOT_FOUND);
    TRUE(error_says("\"a\""));
    IS(realm_context_save(c, REALM_LITERAL("a")), 0);
    IS(realm_context_append(c, prompt, 1), n_prompt + 1);
    IS(realm_context_save(c, REALM_LITERAL("b")), 0);
    IS(realm_context_save(c, REALM_LITERAL("c")), REALM_E_LIMIT);
    TRUE(error_says("contexts: 2"));
    int32_t a = realm_context_open(REALM_LITERAL("a"));
    TRUE(a > 0);
    IS(realm_context_stat(a, &s), 0);
    IS(s.n_tokens, n_prompt);                         /* as it was when saved */
    IS(realm_context_save(c, REALM_LITERAL("a")), 0); /* in its place */
    int32_t b = realm_context_open(REALM_LITERAL("a"));
    IS(realm_context_stat(b, &s), 0);
    IS(s.n_tokens, n_prompt + 1);
    IS(realm_context_drop(REALM_LITERAL("a")), 0);
    IS(realm_context_drop(REALM_LITERAL("a")), REALM_E_NOT_FOUND);
    IS(realm_context_drop(REALM_LITERAL("b")), 0);
    IS(realm_context_save(c, "", 0), REALM_E_INVALID);
    IS(realm_context_save(c, buf, 257), REALM_E_LIMIT);
    IS(realm_context_save(c, PAST, 1), REALM_E_RANGE);
    IS(realm_context_open(PAST, 1), REALM_E_RANGE);
    IS(realm_context_drop(PAST, 1), REALM_E_RANGE);
    IS(realm_context_save(999, REALM_LITERAL("a")), REALM_E_INVALID);
    IS(realm_close(a), 0);
    IS(realm_close(b), 0);
    IS(realm_close(c), 0);
    return 1;
}

/* A generation that is let go of in the middle: its context can be used at once, with the tokens that it had got. */
static int32_t let_go(void) {
    realm_guest_context s;
    for (uint32_t i = 0; i < 40; i++) {
        realm_generate_options o = plain;
        int32_t c = realm_context_new(), n, g;
        uint32_t mode = i % 3 ? REALM_MODE_EVENTS : REALM_MODE_AHEAD; /* pipes are in random.c */
        IS(realm_context_append(c, prompt, (size_t)n_prompt), n_prompt);
        o.set |= REALM_SET_CONTEXT | REALM_SET_MAX_TOKENS;
        o.context = c;
        o.max_tokens = 100;
        o.run_ahead = 5;
        if (i % 4 == 3) {
            TRUE((g = realm_forward(c, NULL, 0, 1, 0)) > 0);
        } else {
            TRUE((g = realm_generate(0, &o, mode)) > 0);
            if (i % 8 < 4) TRUE(realm_wait(g, events, 1, text, sizeof text, -1) == 1);
        }
        IS(realm_close(g), 0);
        IS(realm_close(g), REALM_E_INVALID);
        IS(realm_context_stat(c, &s), 0);
        IS(s.busy, 0);
        TRUE((n = realm_context_append(c, prompt, 1)) > n_prompt);
        IS(realm_context_truncate(c, (uint32_t)n_prompt), 0);
        IS(realm_close(c), 0);
    }
    /* And one that ends because its text found no more room. */
    realm_generate_options o = plain;
    int32_t c = realm_context_new();
    o.set |= REALM_SET_CONTEXT | REALM_SET_MAX_TOKENS;
    o.context = c;
    o.max_tokens = 200;
    IS(realm_host_generate(0, REALM_LITERAL("abc"), &o, text, 3), 3);
    IS(realm_context_truncate(c, 1), 0);
    IS(realm_close(c), 0);
    return 1;
}

PROBE(by_itself, sequences, lockstep, rows, generations, let_go, saved)
