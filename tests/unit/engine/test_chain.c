/* Every stage of a chain against a plain definition in double precision over the whole vocabulary: the definition gives
 * each token's probability, 4,000 draws are held against it. And what a chain remembers: rewound, forked, copied it
 * draws what it drew. */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "engine/internal.h"
#include "support/random.h"

#define V_MAX 3000u
#define DRAWS 4000u

/* ---- definitions ------------------------------------------------------------------------------------------------ */

typedef struct model { /* logits and what is left, by definition */
    size_t n;
    double x[V_MAX];
    bool out[V_MAX];
    const realm_token *tokens;
    size_t n_prompt, n_tokens;
    double coin; /* XTC's */
    double mu;   /* mirostat's */
    bool greedy;
} model;

static void probabilities(const model *m, double *p) {
    double max = -INFINITY, sum = 0;
    for (size_t i = 0; i < m->n; i++)
        if (!m->out[i] && m->x[i] > max) max = m->x[i];
    for (size_t i = 0; i < m->n; i++) sum += p[i] = m->out[i] ? 0 : exp(m->x[i] - max);
    for (size_t i = 0; i < m->n; i++) p[i] /= sum;
}

static const double *sort_key;
static int by_key(const void *a, const void *b) { /* larger first, then lower id */
    int32_t i = *(const int32_t *)a, j = *(const int32_t *)b;
    if (sort_key[i] != sort_key[j]) return sort_key[i] > sort_key[j] ? -1 : 1;
    return i < j ? -1 : 1;
}

/* Keeps the first tokens in the order of `key` until their probabilities sum to `mass`; with `count`, that many. */
static void keep_first(model *m, const double *key, double mass, size_t count) {
    static double p[V_MAX];
    static int32_t order[V_MAX];
    size_t left = 0;
    probabilities(m, p);
    for (size_t i = 0; i < m->n; i++)
        if (!m->out[i]) order[left++] = (int32_t)i;
    sort_key = key;
    qsort(order, left, sizeof *order, by_key);
    double run = 0;
    size_t kept = 0;
    while (kept < left && (count ? kept < count : run < mass)) run += p[order[kept++]];
    for (size_t i = kept; i < left; i++) m->out[order[i]] = true;
}

static void define_dry(model *m, const realm_stage *s) {
    static size_t longest[V_MAX];
    const size_t last_n = s->u.dry.last_n, n = m->n_tokens;
    const size_t from = last_n && n > last_n ? n - last_n : 0;
    memset(longest, 0, sizeof longest);
    for (size_t next = from + 1; next < n; next++) { /* `next` followed tokens[next - k .. next) */
        size_t k = 0;
        while (k < next - from && m->tokens[next - 1 - k] == m->tokens[n - 1 - k]) {
            bool breaker = false;
            for (size_t b = 0; b < s->u.dry.n_breakers; b++) breaker |= s->u.dry.breakers[b] == m->tokens[n - 1 - k];
            if (breaker) break;
            k++;
        }
        if (k > longest[m->tokens[next]]) longest[m->tokens[next]] = k;
    }
    for (size_t t = 0; t < m->n; t++) {
        bool breaker = false;
        for (size_t b = 0; b < s->u.dry.n_breakers; b++) breaker |= s->u.dry.breakers[b] == (realm_token)t;
        if (!breaker && longest[t] >= s->u.dry.allowed)
            m->x[t] -=
                (double)s->u.dry.multiplier * pow((double)s->u.dry.base, (double)(longest[t] - s->u.dry.allowed));
    }
}

static void define(model *m, const realm_stage *s) {
    static double p[V_MAX], key[V_MAX];
    double best = 0, entropy = 0;
    probabilities(m, p);
    for (size_t i = 0; i < m->n; i++) {
        if (p[i] > best) best = p[i];
        if (p[i] > 0) entropy -= p[i] * log(p[i]);
    }
    switch (s->kind) {
    case REALM_STAGE_KIND_PENALTIES: {
        const size_t last_n = s->u.penalties.last_n, from = last_n && m->n_tokens > last_n ? m->n_tokens - last_n : 0;
        for (size_t t = 0; t < m->n; t++) {
            size_t all = 0, own = 0;
            for (size_t i = from; i < m->n_tokens; i++) {
                all += m->tokens[i] == (realm_token)t;
                own += m->tokens[i] == (realm_token)t && i >= m->n_prompt;
            }
            if (all)
                m->x[t] =
                    m->x[t] > 0 ? m->x[t] / (double)s->u.penalties.repeat : m->x[t] * (double)s->u.penalties.repeat;
            if (own) m->x[t] -= (double)own * (double)s->u.penalties.frequency + (double)s->u.penalties.presence;
        }
        break;
    }
    case REALM_STAGE_KIND_DRY: define_dry(m, s); break;
    case REALM_STAGE_KIND_BIAS:
        for (size_t i = 0; i < s->u.bias.n; i++) m->x[s->u.bias.at[i].id] += (double)s->u.bias.at[i].bias;
        break;
    case REALM_STAGE_KIND_MASK:
        for (size_t t = 0; t < m->n; t++) m->out[t] |= !(s->u.mask.bits[t / 8] >> t % 8 & 1);
        break;
    case REALM_STAGE_KIND_TEMPERATURE:
        if (s->u.temperature == 0) {
            keep_first(m, m->x, 0, 1);
            m->greedy = true;
        }
        for (size_t t = 0; t < m->n && s->u.temperature != 0; t++) m->x[t] /= (double)s->u.temperature;
        break;
    case REALM_STAGE_KIND_TOP_K:
        if (s->u.top_k > 0) keep_first(m, m->x, 0, s->u.top_k);
        break;
    case REALM_STAGE_KIND_TOP_P:
        if (s->u.top_p < 1) keep_first(m, m->x, (double)s->u.top_p, 0);
        break;
    case REALM_STAGE_KIND_MIN_P:
        for (size_t t = 0; t < m->n; t++) m->out[t] |= p[t] < (double)s->u.min_p * best;
        break;
    case REALM_STAGE_KIND_TYPICAL:
        for (size_t t = 0; t < m->n; t++) key[t] = p[t] > 0 ? -fabs(-log(p[t]) - entropy) : -INFINITY;
        if (s->u.typical < 1) keep_first(m, key, (double)s->u.typical, 0);
        break;
    case REALM_STAGE_KIND_XTC: {
        size_t reach = 0, last = 0;
        if (m->coin >= (double)s->u.xtc.probability) break;
        for (size_t t = 0; t < m->n; t++) {
            if (m->out[t] || p[t] < (double)s->u.xtc.threshold) continue;
            if (reach++ == 0 || m->x[t] <= m->x[last]) last = t;
        }
        for (size_t t = 0; t < m->n && reach >= 2; t++)
            if (!m->out[t] && p[t] >= (double)s->u.xtc.threshold && t != last) m->out[t] = true;
        break;
    }
    case REALM_STAGE_KIND_MIROSTAT: {
        bool any = false;
        size_t top = 0;
        for (size_t t = 0; t < m->n; t++) {
            if (p[t] > p[top]) top = t;
            any |= p[t] > 0 && -log2(p[t]) <= m->mu;
        }
        for (size_t t = 0; t < m->n; t++) m->out[t] |= any ? p[t] <= 0 || -log2(p[t]) > m->mu : t != top;
        break;
    }
    case REALM_STAGE_KIND_GRAMMAR: fail();
    }
}

/* ---- chains ----------------------------------------------------------------------------------------------------- */

static const realm_token breakers[] = {50, 3, 41, 50, 17};
static const realm_logit_bias bias[] = {{5, 3.5f}, {7, -100}, {5, -0.5f}, {20, 2}};
static uint8_t many_bits[(V_MAX + 7) / 8], few_bits[(V_MAX + 7) / 8];
static size_t vocab;

static realm_stage stage(realm_stage_kind kind, float a, float b, float c, uint32_t n) {
    realm_stage s = {.kind = kind};
    switch (kind) {
    case REALM_STAGE_KIND_PENALTIES:
        s.u.penalties.last_n = n;
        s.u.penalties.repeat = a;
        s.u.penalties.frequency = b;
        s.u.penalties.presence = c;
        break;
    case REALM_STAGE_KIND_DRY:
        s.u.dry.last_n = n;
        s.u.dry.allowed = (uint32_t)c;
        s.u.dry.multiplier = a;
        s.u.dry.base = b;
        s.u.dry.breakers = breakers;
        s.u.dry.n_breakers = REALM_ARRAY_LEN(breakers);
        break;
    case REALM_STAGE_KIND_BIAS:
        s.u.bias.at = bias;
        s.u.bias.n = REALM_ARRAY_LEN(bias);
        break;
    case REALM_STAGE_KIND_MASK:
        s.u.mask.bits = n ? few_bits : many_bits;
        s.u.mask.n_bytes = (vocab + 7) / 8;
        break;
    case REALM_STAGE_KIND_TEMPERATURE: s.u.temperature = a; break;
    case REALM_STAGE_KIND_TOP_K: s.u.top_k = n; break;
    case REALM_STAGE_KIND_TOP_P: s.u.top_p = a; break;
    case REALM_STAGE_KIND_MIN_P: s.u.min_p = a; break;
    case REALM_STAGE_KIND_TYPICAL: s.u.typical = a; break;
    case REALM_STAGE_KIND_XTC:
        s.u.xtc.probability = a;
        s.u.xtc.threshold = b;
        break;
    case REALM_STAGE_KIND_MIROSTAT:
        s.u.mirostat.tau = a;
        s.u.mirostat.eta = b;
        break;
    case REALM_STAGE_KIND_GRAMMAR: fail();
    }
    return s;
}

#define PEN(a, b, c, n) stage(REALM_STAGE_KIND_PENALTIES, a, b, c, n)
#define DRY(a, b, c, n) stage(REALM_STAGE_KIND_DRY, a, b, c, n)
#define BIAS stage(REALM_STAGE_KIND_BIAS, 0, 0, 0, 0)
#define MASK(few) stage(REALM_STAGE_KIND_MASK, 0, 0, 0, few)
#define TEMP(t) stage(REALM_STAGE_KIND_TEMPERATURE, t, 0, 0, 0)
#define TOP_K(k) stage(REALM_STAGE_KIND_TOP_K, 0, 0, 0, k)
#define TOP_P(p) stage(REALM_STAGE_KIND_TOP_P, p, 0, 0, 0)
#define MIN_P(p) stage(REALM_STAGE_KIND_MIN_P, p, 0, 0, 0)
#define TYPICAL(p) stage(REALM_STAGE_KIND_TYPICAL, p, 0, 0, 0)
#define XTC(p, t) stage(REALM_STAGE_KIND_XTC, p, t, 0, 0)
#define MIRO(tau, eta) stage(REALM_STAGE_KIND_MIROSTAT, tau, eta, 0, 0)

/* Draws many times from the same state (each rewound) and holds the counts against the definition. With XTC the coin
 * falls anew each time: both halves are counted apart. */
static void check_chain(const realm_stage *stages, size_t n, const float *x, const realm_token *tokens, size_t n_prompt,
                        size_t n_tokens, int which) {
    static double p[2][V_MAX];
    static unsigned count[2][V_MAX];
    static model m[2];
    realm_chain *c;
    realm_error err = {0};
    realm_sampler w;
    int xtc = -1;
    unsigned drawn[2] = {0};
    assert_int_equal(realm_sampler_init(&w, vocab, NULL), REALM_OK);
    if (realm_chain_open(stages, n, 11 + (uint64_t)which, vocab, &c, &err) != REALM_OK) fail_msg("%s", err.text);
    assert_int_equal(realm_chain_accept(c, tokens, n_prompt, true, NULL), REALM_OK);
    assert_int_equal(realm_chain_accept(c, tokens + n_prompt, n_tokens - n_prompt, false, NULL), REALM_OK);
    for (size_t i = 0; i < n; i++)
        if (stages[i].kind == REALM_STAGE_KIND_XTC) xtc = (int)i;
    for (int half = 0; half < 2; half++) {
        m[half] = (model){.n = vocab, .tokens = tokens, .n_prompt = n_prompt, .n_tokens = n_tokens, .coin = half};
        for (size_t i = 0; i < vocab; i++) m[half].x[i] = (double)x[i];
        for (size_t i = 0; i < n && !m[half].greedy; i++) {
            if (stages[i].kind == REALM_STAGE_KIND_MIROSTAT) m[half].mu = 2 * (double)stages[i].u.mirostat.tau;
            define(&m[half], &stages[i]);
        }
        bool draws = false;
        for (size_t i = 0; i < n; i++) draws |= stages[i].kind >= REALM_STAGE_KIND_TEMPERATURE;
        if (!draws) keep_first(&m[half], m[half].x, 0, 1);
        probabilities(&m[half], p[half]);
    }
    memset(count, 0, sizeof count);
    for (unsigned i = 0; i < DRAWS; i++) {
        realm_sample_job job = {.logits = x, .chain = c, .target = -1};
        int half = 1;
        c->n_drawn = n_tokens - n_prompt + i; /* another number each time */
        if (c->keeps_surprise) {
            assert_int_equal(realm_chain_reserve(c, 1, NULL), REALM_OK);
            c->mu[c->n_drawn] = 2 * stages[n - 1].u.mirostat.tau;
        }
        if (xtc >= 0)
            half = realm_random_uniform(11 + (uint64_t)which, c->n_drawn, (uint32_t)xtc + 1) >=
                   (double)stages[xtc].u.xtc.probability;
        realm_sampler_run(&w, &job);
        if (job.status != REALM_OK) fail_msg("chain %d: %s", which, job.error.text);
        if (p[half][job.id] < 1e-12) fail_msg("chain %d drew %d of probability %g", which, job.id, p[half][job.id]);
        count[half][job.id]++;
        drawn[half]++;
        assert_int_equal(realm_chain_rewind(c, 1, NULL), REALM_OK);
        for (size_t k = 0; k < vocab; k++) assert_int_equal(w.count[k], 0);
    }
    for (int half = 0; half < 2; half++) {
        double chi = 0, rare_want = 0, rare_got = 0;
        unsigned cells = 0;
        for (size_t i = 0; i < vocab; i++) {
            double want = p[half][i] * drawn[half];
            if (want < 8) {
                rare_want += want;
                rare_got += count[half][i];
                continue;
            }
            chi += (count[half][i] - want) * (count[half][i] - want) / want;
            cells++;
        }
        if (rare_want >= 8) {
            chi += (rare_got - rare_want) * (rare_got - rare_want) / rare_want;
            cells++;
        }
        double df = cells > 1 ? cells - 1 : 1;
        if (drawn[half] > 0 && chi > df + 6 * sqrt(2 * df) + 3)
            fail_msg("chain %d: chi-square %.1f of %u", which, chi, cells);
    }
    realm_chain_close(c);
    realm_sampler_release(&w);
}

static float logits[V_MAX];
static realm_token history[400];

static void prepare(size_t n, float spread) {
    vocab = n;
    for (size_t i = 0; i < n; i++) logits[i] = spread * random_normal();
    for (size_t i = 0; i < REALM_ARRAY_LEN(history); i++)
        history[i] = (realm_token)(random_below(4) ? random_below(4) : random_below(60));
    /* The end repeats an earlier stretch of nine, which a three in between may cut. */
    for (size_t i = 0; i < 9; i++) history[391 + i] = history[100 + i] = (realm_token)(i == 2 ? 3 : 10 + i);
    history[109] = 30;
    memset(many_bits, 0, sizeof many_bits);
    memset(few_bits, 0, sizeof few_bits);
    for (size_t t = 0; t < n; t++) {
        many_bits[t / 8] |= (uint8_t)((random_below(3) > 0) << t % 8);
        few_bits[t / 8] |= (uint8_t)((random_below(200) == 0 || t == 5) << t % 8);
    }
}

static void stages_by_definition(void **state) {
    (void)state;
    static const size_t sizes[] = {70, V_MAX};
    for (size_t z = 0; z < 2; z++) {
        prepare(sizes[z], 2.5f);
        const realm_stage chains[][6] = {
            {{0}},
            {BIAS},
            {PEN(1.5f, 0.2f, 0.3f, 0)},
            {TEMP(1)},
            {PEN(1.3f, 0, 0, 64), TEMP(0.8f)},
            {PEN(1, 0.5f, -0.5f, 100), TEMP(1)},
            {DRY(0.8f, 1.75f, 2, 0), TEMP(1)},
            {DRY(2, 1.5f, 6, 350), TEMP(1)},
            {DRY(1, 1.2f, 1, 50), TEMP(0.7f)},
            {BIAS, TEMP(1)},
            {MASK(0), TEMP(1)},
            {MASK(1), TEMP(1)},
            {MASK(1), TEMP(0)},
            {MASK(0)},
            {TOP_K(1)},
            {TOP_K(12), TEMP(1.5f)},
            {TOP_K(12), TOP_K(5), TEMP(2)},
            {TEMP(0.5f), TEMP(3)},
            {TOP_P(0.7f)},
            {TEMP(2), TOP_P(0.95f), TOP_P(0.5f)},
            {MIN_P(0.1f)},
            {TEMP(1.5f), TOP_P(0.98f), MIN_P(0.05f)},
            {TOP_P(0.9f), MIN_P(0.2f), TEMP(1.7f)},
            {TYPICAL(0.3f)},
            {TYPICAL(0.9f), TEMP(0.6f)},
            {TEMP(1.4f), TOP_K(30), TYPICAL(0.6f)},
            {XTC(0.5f, 0.05f)},
            {TOP_K(20), XTC(0.7f, 0.1f), TEMP(1.2f)},
            {XTC(1, 0), TEMP(1)},
            {XTC(0.5f, 0.6f)},
            {TOP_K(8), XTC(1, 0.01f), MIN_P(0.3f)},
            {MIRO(3, 0.1f)},
            {TEMP(1.5f), MIRO(1, 0.5f)},
            {TOP_K(25), MIRO(2, 0.1f)},
            {MIRO(0.001f, 0.1f)},
            {TOP_K(20), BIAS, TEMP(1)},
            {TOP_P(0.9f), MASK(0), TEMP(0.9f)},
            {TEMP(2), BIAS, PEN(1.2f, 0.1f, 0, 0), TOP_K(40)},
            {TOP_K(30), DRY(0.5f, 1.3f, 1, 0), TEMP(1)},
            {BIAS, MASK(0), PEN(1.1f, 0, 0, 0), TEMP(0.8f), TOP_K(40), TOP_P(0.9f)},
            {MASK(1), TOP_P(0.8f), TEMP(1.3f)},
            {TOP_P(0.999999f), XTC(0.5f, 0.02f), TYPICAL(0.95f), MIN_P(0.01f), TEMP(1)},
        };
        for (size_t i = 0; i < REALM_ARRAY_LEN(chains); i++) {
            size_t n = 0;
            while (n < 6 && chains[i][n].kind != 0) n++;
            if (z == 0 && (i == 11 || i == 12 || i == 40)) few_bits[1] |= 0x1f;
            check_chain(chains[i], n, logits, history, 250, 400, (int)(100 * z + i));
        }
    }
}

/* Mirostat's surprise over a run of draws, against the definition kept beside it. */
static void mirostat_follows(void **state) {
    (void)state;
    prepare(800, 2);
    realm_stage s[] = {TEMP(1.2f), MIRO(2.5f, 0.3f)};
    realm_chain *c;
    realm_sampler w;
    static double p[V_MAX];
    static model m;
    double mu = 5;
    assert_int_equal(realm_sampler_init(&w, vocab, NULL), REALM_OK);
    assert_int_equal(realm_chain_open(s, 2, 3, vocab, &c, NULL), REALM_OK);
    for (int i = 0; i < 300; i++) {
        for (size_t k = 0; k < vocab; k++) logits[k] = 2 * random_normal();
        m = (model){.n = vocab, .mu = mu};
        for (size_t k = 0; k < vocab; k++) m.x[k] = (double)logits[k];
        define(&m, &s[0]);
        define(&m, &s[1]);
        probabilities(&m, p);
        assert_true(fabs((double)realm_chain_mu(c) - mu) < 1e-3);
        realm_sample_job job = {.logits = logits, .chain = c, .target = -1};
        realm_sampler_run(&w, &job);
        assert_int_equal(job.status, REALM_OK);
        mu = (double)realm_chain_mu(c); /* float's own, so that errors do not add up; checked against the next line */
        double want = m.mu - 0.3 * (-log2(p[job.id]) - 2.5);
        if (p[job.id] > 0) assert_true(fabs(want - mu) < 1e-3);
    }
    realm_chain_close(c);
    realm_sampler_release(&w);
}

static realm_token draw(realm_sampler *w, realm_chain *c, const float *x) {
    realm_sample_job job = {.logits = x, .chain = c, .target = -1};
    realm_sampler_run(w, &job);
    if (job.status != REALM_OK) fail_msg("%s", job.error.text);
    return job.id;
}

/* Rewinding, forking and replaying give the same tokens; and no draw allocates once room was reserved. */
static void memory_of_a_chain(void **state) {
    (void)state;
    prepare(500, 2);
    enum { STEPS = 60 };
    static float rows[STEPS][500];
    const realm_stage s[] = {PEN(1.2f, 0.1f, 0.1f, 40), DRY(0.8f, 1.7f, 2, 0), TEMP(1.1f), XTC(0.3f, 0.05f),
                             MIRO(3, 0.2f)};
    realm_chain *c, *fork = NULL, *fresh;
    realm_sampler w;
    realm_token first[STEPS];
    for (size_t i = 0; i < STEPS; i++)
        for (size_t k = 0; k < vocab; k++) rows[i][k] = 2 * random_normal();
    assert_int_equal(realm_sampler_init(&w, vocab, NULL), REALM_OK);
    assert_int_equal(realm_chain_open(s, 5, 9, vocab, &c, NULL), REALM_OK);
    assert_int_equal(realm_chain_accept(c, history, 100, true, NULL), REALM_OK);
    assert_int_equal(realm_chain_reserve(c, STEPS, NULL), REALM_OK);
    realm_alloc_inject_failure(0, true);
    for (size_t i = 0; i < STEPS; i++) first[i] = draw(&w, c, rows[i]);
    realm_alloc_inject_failure(-1, false);
    for (int round = 0; round < 40; round++) {
        size_t to = random_below(STEPS);
        assert_int_equal(realm_chain_rewind(c, STEPS - to, NULL), REALM_OK);
        realm_chain_close(fork);
        assert_int_equal(realm_chain_fork(c, &fork, NULL), REALM_OK);
        for (size_t i = to; i < STEPS; i++) assert_int_equal(draw(&w, c, rows[i]), first[i]);
        for (size_t i = to; i < STEPS; i++) assert_int_equal(draw(&w, fork, rows[i]), first[i]);
    }
    assert_int_equal(realm_chain_rewind(c, STEPS + 1, NULL), REALM_E_RANGE);    /* not into the prompt */
    assert_int_equal(realm_chain_open(s, 5, 9, vocab, &fresh, NULL), REALM_OK); /* grows by itself */
    assert_int_equal(realm_chain_accept(fresh, history, 100, true, NULL), REALM_OK);
    for (size_t i = 0; i < STEPS; i++) assert_int_equal(draw(&w, fresh, rows[i]), first[i]);
    realm_token bad = (realm_token)vocab;
    assert_int_equal(realm_chain_accept(c, &bad, 1, true, NULL), REALM_E_RANGE);
    bad = -1;
    assert_int_equal(realm_chain_accept(c, &bad, 1, false, NULL), REALM_E_RANGE);
    realm_chain_close(c);
    realm_chain_close(fork);
    realm_chain_close(fresh);
    realm_sampler_release(&w);
}

static void degenerate(void **state) {
    (void)state;
    prepare(100, 1);
    realm_sampler w;
    float x[100];
    assert_int_equal(realm_sampler_init(&w, vocab, NULL), REALM_OK);
    for (int which = 0; which < 12; which++) {
        const realm_stage stages[12][2] = {{TEMP(1)},     {TEMP(0)},       {TOP_K(5)},     {TOP_P(0.5f)},
                                           {MIN_P(0.5f)}, {TYPICAL(0.5f)}, {XTC(1, 0.1f)}, {MIRO(2, 0.1f)},
                                           {MASK(0)},     {MASK(1)},       {BIAS},         {TOP_K(3), BIAS}};
        realm_chain *c;
        size_t n = which == 11 ? 2 : 1;
        assert_int_equal(realm_chain_open(stages[which], n, 1, vocab, &c, NULL), REALM_OK);
        for (int bad = 0; bad < 6; bad++) {
            for (size_t i = 0; i < vocab; i++)
                x[i] = bad == 0   ? NAN
                       : bad == 1 ? -INFINITY
                       : bad == 2 ? INFINITY
                       : bad == 3 ? 1.0f
                       : bad == 4 ? FLT_MAX
                                  : -FLT_MAX;
            if (bad == 3) x[17] = INFINITY;
            if (bad >= 4) x[5] = 0;
            realm_sample_job job = {.logits = x, .chain = c, .target = -1};
            realm_sampler_run(&w, &job);
            if (bad < 4) {
                assert_int_equal(job.status, REALM_E_FORMAT);
                assert_true(job.error.text[0] != 0);
            } else if (job.status == REALM_OK) {
                assert_in_range(job.id, 0, vocab - 1);
                if (bad == 5 && which < 5) assert_int_equal(job.id, 5);
            } else {
                assert_int_equal(job.status, REALM_E_FORMAT);
            }
        }
        realm_chain_close(c);
    }
    /* Masks that leave only what the model forbids, and masks that exclude each other. */
    for (size_t i = 0; i < vocab; i++) x[i] = few_bits[i / 8] >> i % 8 & 1 ? -INFINITY : 1;
    realm_stage s[2] = {MASK(1), TEMP(1)};
    realm_chain *c;
    assert_int_equal(realm_chain_open(s, 2, 1, vocab, &c, NULL), REALM_OK);
    realm_sample_job job = {.logits = x, .chain = c, .target = -1};
    realm_sampler_run(&w, &job);
    assert_int_equal(job.status, REALM_E_FORMAT);
    realm_chain_close(c);
    static uint8_t rest[(V_MAX + 7) / 8];
    for (size_t i = 0; i < sizeof rest; i++) rest[i] = (uint8_t)~few_bits[i];
    s[1] = MASK(1);
    s[1].u.mask.bits = rest;
    assert_int_equal(realm_chain_open(s, 2, 1, vocab, &c, NULL), REALM_OK);
    for (size_t i = 0; i < vocab; i++) x[i] = 0;
    job = (realm_sample_job){.logits = x, .chain = c, .target = -1};
    realm_sampler_run(&w, &job);
    assert_int_equal(job.status, REALM_E_INVALID);
    assert_string_equal(job.error.text, "the masks leave no token to choose");
    realm_chain_close(c);
    realm_sampler_release(&w);
}

static void ranges(void **state) {
    (void)state;
    prepare(100, 1);
    static const realm_token bad_breaker[] = {100};
    static const realm_logit_bias bad_bias[] = {{0, 101}}, bad_id[] = {{-1, 0}};
    static const uint8_t none[13] = {0};
    struct {
        realm_stage s;
        const char *says;
    } cases[] = {{PEN(0, 0, 0, 0), "stage 0 (penalties): repeat is 0"},
                 {PEN(INFINITY, 0, 0, 0), "repeat"},
                 {PEN(1, 3, 0, 0), "frequency"},
                 {PEN(1, 0, NAN, 0), "presence"},
                 {DRY(-1, 2, 2, 0), "multiplier"},
                 {DRY(1, 0.5f, 2, 0), "base"},
                 {DRY(1, 2, 0, 0), "allowed"},
                 {DRY(1, 2, 1, 0), "breaker"},
                 {BIAS, "bias"},
                 {BIAS, "token"},
                 {MASK(0), "bytes"},
                 {MASK(0), "tokens left"},
                 {TEMP(-1), "temperature"},
                 {TEMP(NAN), "temperature"},
                 {TEMP(INFINITY), "temperature"},
                 {TOP_P(0), "top_p"},
                 {TOP_P(1.5f), "top_p"},
                 {MIN_P(-0.1f), "min_p"},
                 {TYPICAL(0), "typical"},
                 {XTC(2, 0), "probability"},
                 {XTC(0, NAN), "threshold"},
                 {MIRO(0, 1), "tau"},
                 {MIRO(1, -1), "eta"},
                 {{.kind = (realm_stage_kind)99}, "kind 99"},
                 {{.kind = REALM_STAGE_KIND_GRAMMAR}, "vocabulary"}};
    cases[7].s.u.dry.breakers = bad_breaker;
    cases[7].s.u.dry.n_breakers = 1;
    cases[8].s.u.bias.at = bad_bias;
    cases[8].s.u.bias.n = 1;
    cases[9].s.u.bias.at = bad_id;
    cases[9].s.u.bias.n = 1;
    cases[10].s.u.mask.n_bytes = 12;
    cases[11].s.u.mask.bits = none;
    for (size_t i = 0; i < REALM_ARRAY_LEN(cases); i++) {
        realm_chain *c;
        realm_error err = {0};
        if (realm_chain_open(&cases[i].s, 1, 0, vocab, &c, &err) != REALM_E_RANGE || !strstr(err.text, cases[i].says))
            fail_msg("case %zu: %s", i, err.text);
        assert_null(c);
    }
    realm_chain *c;
    realm_stage many[REALM_STAGES_MAX + 1];
    for (size_t i = 0; i < REALM_ARRAY_LEN(many); i++) many[i] = TOP_K(3);
    assert_int_equal(realm_chain_open(many, REALM_STAGES_MAX + 1, 0, vocab, &c, NULL), REALM_E_RANGE);
    realm_stage early[] = {MIRO(1, 1), TEMP(1)};
    assert_int_equal(realm_chain_open(early, 2, 0, vocab, &c, NULL), REALM_E_RANGE);
    /* Every allocation may fail. */
    const realm_stage all[] = {PEN(1.2f, 0, 0, 0), DRY(1, 2, 2, 0), BIAS, MASK(0), TEMP(1), MIRO(1, 1)};
    for (int64_t after = 0;; after++) {
        realm_alloc_inject_failure(after, false);
        realm_chain *fork = NULL;
        realm_status s = realm_chain_open(all, 6, 0, vocab, &c, NULL);
        if (s == REALM_OK) s = realm_chain_accept(c, history, 20, false, NULL);
        if (s == REALM_OK) s = realm_chain_fork(c, &fork, NULL);
        realm_alloc_inject_failure(-1, false);
        realm_chain_close(fork);
        realm_chain_close(c);
        if (s == REALM_OK) break;
        assert_int_equal(s, REALM_E_NOMEM);
        assert_true(after < 100);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(stages_by_definition), cmocka_unit_test(mirostat_follows),
                                       cmocka_unit_test(memory_of_a_chain), cmocka_unit_test(degenerate),
                                       cmocka_unit_test(ranges)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
