/* Sampling against definitions that sort the whole vocabulary and compute in double. */
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

#define DRAWS 10000u

static const float *sort_key;
static int by_key(const void *a, const void *b) {
    int32_t i = *(const int32_t *)a, j = *(const int32_t *)b;
    if (sort_key[i] != sort_key[j]) return sort_key[i] > sort_key[j] ? -1 : 1;
    return i < j ? -1 : 1;
}

/* Probabilities of each token by definition: sort, soften, cut to k, to the nucleus, to min-p, normalise. */
static void define(const float *logits, size_t n, const realm_sampling *s, double *p) {
    int32_t *order = malloc(n * sizeof *order);
    for (size_t i = 0; i < n; i++) order[i] = (int32_t)i;
    sort_key = logits;
    qsort(order, n, sizeof *order, by_key);
    size_t len = s->top_k > 0 && s->top_k < n ? s->top_k : n;
    double sum = 0, run = 0;
    for (size_t i = 0; i < n; i++) p[i] = 0;
    for (size_t i = 0; i < len; i++)
        sum += p[order[i]] = exp(((double)logits[order[i]] - (double)logits[order[0]]) / (double)s->temperature);
    if (s->top_p < 1) {
        size_t kept = 0;
        while (kept < len && run < (double)s->top_p * sum) run += p[order[kept++]];
        for (size_t i = kept; i < len; i++) p[order[i]] = 0;
        len = kept;
    }
    sum = 0;
    for (size_t i = 0; i < len; i++) {
        if (p[order[i]] < (double)s->min_p) p[order[i]] = 0;
        sum += p[order[i]];
    }
    for (size_t i = 0; i < n; i++) p[i] /= sum;
    free(order);
}

/* The chain of fixed fields. */
static realm_chain *chain_for(const realm_sampling *s, size_t n_vocab) {
    realm_chain *c;
    assert_int_equal(realm_sampling_check(s, n_vocab, NULL), REALM_OK);
    assert_int_equal(realm_chain_from_sampling(s, n_vocab, &c, NULL), REALM_OK);
    return c;
}

static realm_sample_job job_for(const float *logits, realm_chain *chain) {
    return (realm_sample_job){.logits = logits, .chain = chain, .target = -1};
}

/* Draws DRAWS tokens and holds their counts against the definition: chi-square within six standard deviations of its
 * mean, and nothing that has probability zero. Rare tokens are taken together. */
static void check_distribution(const float *logits, size_t n, const realm_sampling *s) {
    realm_sampler w;
    assert_int_equal(realm_sampler_init(&w, n, NULL), REALM_OK);
    double *p = malloc(n * sizeof *p);
    unsigned *count = calloc(n, sizeof *count);
    realm_chain *chain = chain_for(s, n);
    define(logits, n, s, p);
    for (unsigned i = 0; i < DRAWS; i++) {
        realm_sample_job job = job_for(logits, chain);
        realm_sampler_run(&w, &job);
        assert_int_equal(job.status, REALM_OK);
        assert_in_range(job.id, 0, n - 1);
        if (p[job.id] == 0) fail_msg("token %d was drawn, it has probability 0", job.id);
        count[job.id]++;
    }
    double chi = 0, rare_want = 0, rare_got = 0;
    unsigned cells = 0;
    for (size_t i = 0; i < n; i++) {
        double want = p[i] * DRAWS;
        if (want < 8) {
            rare_want += want;
            rare_got += count[i];
            continue;
        }
        chi += (count[i] - want) * (count[i] - want) / want;
        cells++;
    }
    if (rare_want >= 8) {
        chi += (rare_got - rare_want) * (rare_got - rare_want) / rare_want;
        cells++;
    }
    double df = cells > 1 ? cells - 1 : 1;
    if (chi > df + 6 * sqrt(2 * df) + 3) fail_msg("chi-square %.1f with %u cells", chi, cells);
    free(p);
    free(count);
    realm_chain_close(chain);
    realm_sampler_release(&w);
}

static void distributions(void **state) {
    (void)state;
    static float small[40], large[8000];
    for (size_t i = 0; i < REALM_ARRAY_LEN(small); i++) small[i] = 2 * random_normal();
    for (size_t i = 0; i < REALM_ARRAY_LEN(large); i++) large[i] = 4 * random_normal();
    small[3] = small[4] = small[5]; /* ties */
    for (int which = 0; which < 2; which++) {
        const float *x = which ? large : small;
        size_t n = which ? REALM_ARRAY_LEN(large) : REALM_ARRAY_LEN(small);
        static const struct {
            float t, top_p, min_p;
            uint32_t k;
        } cases[] = {{1, 1, 0, 0},       {0.5f, 1, 0, 0},     {2, 1, 0, 0},       {1, 1, 0, 1},
                     {1, 1, 0, 5},       {0.7f, 1, 0, 20},    {1, 0.9f, 0, 0},    {1, 0.3f, 0, 0},
                     {1, 0.0001f, 0, 0}, {1.5f, 0.95f, 0, 0}, {1, 1, 0.05f, 0},   {0.8f, 0.9f, 0.02f, 12},
                     {1, 0.8f, 0, 15},   {1, 0.5f, 0, 33},    {1, 0.9f, 0.1f, 0}, {3, 1, 0, 5000}};
        for (size_t i = 0; i < REALM_ARRAY_LEN(cases); i++) {
            if (which && cases[i].k == 0 && i > 8) continue; /* the whole vocabulary often enough: time */
            realm_sampling s;
            realm_sampling_init(&s);
            s.temperature = cases[i].t;
            s.top_k = cases[i].k;
            s.top_p = cases[i].top_p;
            s.min_p = cases[i].min_p;
            s.seed = 7 + i;
            check_distribution(x, n, &s);
            if (which && cases[i].k == 0) break;
        }
    }
}

/* On a long vocabulary: the cut sets themselves. Each draw must lie in the defined set, and with the weights made equal
 * by a high temperature the whole set is hit. */
static void cut_sets(void **state) {
    (void)state;
    enum { V = 20000 };
    static float x[V];
    static double p[V];
    static unsigned hit[V];
    for (size_t i = 0; i < V; i++) x[i] = (float)(int)(random_normal() * 40) / 8; /* many ties */
    static const struct {
        uint32_t k;
        float top_p, t;
    } cases[] = {{50, 1, 1000},    {7, 1, 1000},        {300, 0.5f, 1000},
                 {0, 0.01f, 1000}, {9990, 0.01f, 1000}, {0, 0.2f, 0.6f}};
    realm_sampler w;
    assert_int_equal(realm_sampler_init(&w, V, NULL), REALM_OK);
    for (size_t c = 0; c < REALM_ARRAY_LEN(cases); c++) {
        realm_sampling s;
        realm_sampling_init(&s);
        s.temperature = cases[c].t;
        s.top_k = cases[c].k;
        s.top_p = cases[c].top_p;
        define(x, V, &s, p);
        size_t in_set = 0, hits = 0;
        memset(hit, 0, sizeof hit);
        for (size_t i = 0; i < V; i++) in_set += p[i] > 0;
        realm_chain *chain = chain_for(&s, V);
        for (unsigned i = 0; i < 4000; i++) {
            realm_sample_job job = job_for(x, chain);
            realm_sampler_run(&w, &job);
            if (p[job.id] == 0) fail_msg("case %zu: token %d is not in the set of %zu", c, job.id, in_set);
            hits += hit[job.id]++ == 0;
        }
        realm_chain_close(chain);
        if (in_set <= 300) assert_int_equal(hits, in_set);
    }
    realm_sampler_release(&w);
}

static void greedy_and_ties(void **state) {
    (void)state;
    static const size_t sizes[] = {1, 2, 15, 16, 17, 31, 100, 4096, 5000};
    for (size_t k = 0; k < REALM_ARRAY_LEN(sizes); k++) {
        size_t n = sizes[k];
        float *x = malloc(n * sizeof *x);
        realm_sampler w;
        assert_int_equal(realm_sampler_init(&w, n, NULL), REALM_OK);
        realm_sampling s;
        realm_sampling_init(&s);
        s.temperature = 0;
        realm_chain *chain = chain_for(&s, n);
        for (int round = 0; round < 50; round++) {
            size_t best = 0;
            for (size_t i = 0; i < n; i++) x[i] = (float)(int)(random_normal() * 3);
            for (size_t i = 1; i < n; i++)
                if (x[i] > x[best]) best = i;
            realm_sample_job job = job_for(x, round % 2 ? chain : NULL);
            realm_sampler_run(&w, &job);
            assert_int_equal(job.id, best);
        }
        realm_chain_close(chain);
        free(x);
        realm_sampler_release(&w);
    }
}

/* Rows of many lengths, few different values, minus infinity and NaN among them: the first of the greatest. */
static void greatest_of_long_rows(void **state) {
    (void)state;
    enum { MOST = 10000 };
    float *x = test_malloc(MOST * sizeof *x);
    srand(7);
    for (int round = 0; round < 300; round++) {
        const size_t n = 1 + (size_t)rand() % MOST;
        const int spread = 1 + rand() % (round % 2 ? 5 : 100000);
        for (size_t i = 0; i < n; i++) {
            const int r = rand() % spread;
            x[i] = r == 1 ? -INFINITY : r == 2 ? NAN : (float)-r;
        }
        size_t first = 0, near = SIZE_MAX;
        float best = -INFINITY;
        for (size_t i = 0; i < n; i++)
            if (x[i] > best) best = x[first = i];
        assert_true(realm_row_max(x, n, &near) == best);
        assert_true(near <= first);
        if (best > -INFINITY) assert_int_equal(realm_row_find(x, n, near, best), first);
    }
    test_free(x);
}

static void random_numbers(void **state) {
    (void)state;
    /* The published known answer of Philox 4x32-10 for a zero counter and key: 6627e8d5 e169c58d ... */
    assert_true(realm_random_uniform(0, 0, 0) == (double)(UINT64_C(0x6627e8d5e169c58d) >> 11) * 0x1p-53);
    double sum = 0, squares = 0;
    for (uint64_t i = 0; i < 100000; i++) {
        double u = realm_random_uniform(42, i, 0);
        assert_true(u >= 0 && u < 1);
        sum += u;
        squares += u * u;
    }
    assert_true(fabs(sum / 100000 - 0.5) < 0.005);
    assert_true(fabs(squares / 100000 - 1.0 / 3) < 0.005);
    assert_true(realm_random_uniform(1, 5, 0) != realm_random_uniform(2, 5, 0));
    assert_true(realm_random_uniform(1, 5, 0) != realm_random_uniform(1, 5, 1));
    assert_true(realm_random_uniform(UINT64_C(1) << 40, 5, 0) != realm_random_uniform(0, 5, 0));
}

static void penalties_and_bias(void **state) {
    (void)state;
    enum { V = 500, N = 60, PROMPT = 25 };
    static float x[V];
    realm_token tokens[N];
    realm_sampler w;
    assert_int_equal(realm_sampler_init(&w, V, NULL), REALM_OK);
    for (int round = 0; round < 200; round++) {
        for (size_t i = 0; i < V; i++) x[i] = random_normal();
        for (size_t i = 0; i < N; i++) tokens[i] = (realm_token)((unsigned)(random_normal() * 1000 + 5000) % 80);
        realm_logit_bias bias[3] = {{5, 2.0f}, {70, -1.5f}, {5, 0.25f}};
        realm_sampling s;
        realm_sampling_init(&s);
        s.temperature = 0;
        s.repeat_penalty = round % 3 == 0 ? 1.0f : 1.3f;
        s.frequency_penalty = round % 2 ? 0.1f : 0.0f;
        s.presence_penalty = round % 5 ? -0.4f : 0.0f;
        s.penalty_last_n = (uint32_t)(round % 4) * 20; /* 0: all; 20; 40: some of the prompt; 60 */
        s.bias = bias;
        s.n_bias = round % 7 ? 3 : 0;
        double y[V];
        for (size_t i = 0; i < V; i++) y[i] = (double)x[i];
        for (size_t i = 0; i < s.n_bias; i++) y[bias[i].id] += (double)bias[i].bias;
        size_t from = s.penalty_last_n && s.penalty_last_n < N ? N - s.penalty_last_n : 0;
        for (realm_token id = 0; id < V; id++) {
            unsigned all = 0, generated = 0;
            for (size_t i = from; i < N; i++) {
                all += tokens[i] == id;
                generated += tokens[i] == id && i >= PROMPT;
            }
            if (all) y[id] = y[id] > 0 ? y[id] / (double)s.repeat_penalty : y[id] * (double)s.repeat_penalty;
            if (generated) y[id] -= generated * (double)s.frequency_penalty + (double)s.presence_penalty;
        }
        size_t best = 0;
        for (size_t i = 1; i < V; i++)
            if (y[i] > y[best]) best = i;
        realm_chain *chain = chain_for(&s, V);
        assert_int_equal(realm_chain_accept(chain, tokens, PROMPT, true, NULL), REALM_OK);
        assert_int_equal(realm_chain_accept(chain, tokens + PROMPT, N - PROMPT, false, NULL), REALM_OK);
        realm_sample_job job = job_for(x, chain);
        job.logprob = true;
        realm_sampler_run(&w, &job);
        realm_chain_close(chain);
        assert_int_equal(job.id, best);
        /* The log-probability is that of the logits before all this. */
        double sum = 0;
        for (size_t i = 0; i < V; i++) sum += exp((double)x[i]);
        assert_true(fabs((double)job.id_logprob - ((double)x[best] - log(sum))) < 1e-5);
        for (size_t i = 0; i < V; i++) assert_int_equal(w.count[i], 0);
    }
    realm_sampler_release(&w);
}

static bool coin(void) { return random_normal() > 0; }

/* The fixed fields are the chain that their documentation says: bias, penalties, DRY, then what the order names; the
 * same stages given one by one draw the same tokens. */
static void fixed_fields_are_a_chain(void **state) {
    (void)state;
    enum { V = 300, N = 60 };
    static float x[V];
    static const realm_stage_kind usual[] = {
        REALM_STAGE_KIND_PENALTIES, REALM_STAGE_KIND_DRY,   REALM_STAGE_KIND_TEMPERATURE, REALM_STAGE_KIND_TOP_K,
        REALM_STAGE_KIND_TYPICAL,   REALM_STAGE_KIND_TOP_P, REALM_STAGE_KIND_MIN_P,       REALM_STAGE_KIND_XTC};
    static const realm_token breakers[] = {9, 3};
    realm_logit_bias bias = {5, 2.0f};
    realm_sampler w;
    unsigned changed = 0;
    assert_int_equal(realm_sampler_init(&w, V, NULL), REALM_OK);
    for (unsigned round = 0; round < 300; round++) {
        realm_sampling s;
        realm_stage stages[REALM_STAGES_MAX] = {{.kind = REALM_STAGE_KIND_BIAS, .u.bias = {&bias, 1}}};
        size_t n = 1, n_order = REALM_ARRAY_LEN(usual);
        realm_stage_kind order[REALM_SAMPLING_ORDER_MAX];
        memcpy(order, usual, sizeof usual);
        realm_sampling_init(&s);
        s.bias = &bias;
        s.n_bias = 1;
        s.seed = round;
        s.temperature = coin() ? 1.7f : 0.6f;
        if (coin()) s.repeat_penalty = 1.2f, s.presence_penalty = 0.4f, s.penalty_last_n = 20;
        if (coin()) {
            s.dry_multiplier = 0.9f;
            s.dry_allowed = 1 + round % 2;
            s.dry_last_n = coin() ? 30 : 0;
            s.dry_breakers = breakers;
            s.n_dry_breakers = 2;
        }
        if (coin()) s.top_k = 40;
        if (coin()) s.typical_p = 0.7f;
        if (coin()) s.top_p = 0.8f;
        if (coin()) s.min_p = 0.05f;
        if (coin()) s.xtc_probability = 0.5f, s.xtc_threshold = 0.05f;
        if (round % 3 == 0) s.mirostat_tau = 3, s.mirostat_eta = 0.2f;
        if (round % 2) { /* another order, with a stage left out and one twice */
            for (size_t i = n_order - 1; i > 0; i--) {
                const size_t j = (size_t)(random_normal() * 100 + 1000) % (i + 1);
                const realm_stage_kind t = order[i];
                order[i] = order[j];
                order[j] = t;
            }
            order[0] = order[n_order - 1];
            s.n_order = (uint32_t)n_order;
            memcpy(s.order, order, sizeof order);
        }
        bool draws = false;
        for (size_t i = 0; i < n_order; i++) {
            realm_stage *t = &stages[n];
            *t = (realm_stage){.kind = order[i]};
            if (s.mirostat_tau > 0 && order[i] > REALM_STAGE_KIND_TEMPERATURE) continue;
            switch (order[i]) {
            case REALM_STAGE_KIND_PENALTIES:
                t->u.penalties.last_n = s.penalty_last_n;
                t->u.penalties.repeat = s.repeat_penalty;
                t->u.penalties.presence = s.presence_penalty;
                break;
            case REALM_STAGE_KIND_DRY:
                t->u.dry.last_n = s.dry_last_n;
                t->u.dry.allowed = s.dry_allowed;
                t->u.dry.multiplier = s.dry_multiplier;
                t->u.dry.base = s.dry_base;
                t->u.dry.breakers = breakers;
                t->u.dry.n_breakers = 2;
                break;
            case REALM_STAGE_KIND_TEMPERATURE: t->u.temperature = s.temperature; break;
            case REALM_STAGE_KIND_TOP_K: t->u.top_k = s.top_k; break;
            case REALM_STAGE_KIND_TYPICAL: t->u.typical = s.typical_p; break;
            case REALM_STAGE_KIND_TOP_P: t->u.top_p = s.top_p; break;
            case REALM_STAGE_KIND_MIN_P: t->u.min_p = s.min_p; break;
            default: t->u.xtc.probability = s.xtc_probability, t->u.xtc.threshold = s.xtc_threshold; break;
            }
            /* XTC's chance has a stream for each place in the chain, so a neutral stage must not stand before it. */
            const bool neutral = (order[i] == REALM_STAGE_KIND_PENALTIES && s.repeat_penalty == 1) ||
                                 (order[i] == REALM_STAGE_KIND_DRY && s.dry_multiplier == 0) ||
                                 (order[i] == REALM_STAGE_KIND_TOP_K && s.top_k == 0) ||
                                 (order[i] == REALM_STAGE_KIND_TYPICAL && s.typical_p == 1) ||
                                 (order[i] == REALM_STAGE_KIND_TOP_P && s.top_p == 1) ||
                                 (order[i] == REALM_STAGE_KIND_MIN_P && s.min_p == 0) ||
                                 (order[i] == REALM_STAGE_KIND_XTC && s.xtc_probability == 0);
            draws |= order[i] >= REALM_STAGE_KIND_TEMPERATURE && !neutral;
            n += !neutral;
        }
        if (s.mirostat_tau > 0)
            stages[n++] =
                (realm_stage){.kind = REALM_STAGE_KIND_MIROSTAT, .u.mirostat = {s.mirostat_tau, s.mirostat_eta}};
        else if (!draws)
            stages[n++] = (realm_stage){.kind = REALM_STAGE_KIND_TEMPERATURE, .u.temperature = 1};
        realm_chain *fixed = chain_for(&s, V), *one_by_one, *plain;
        realm_sampling no_more = s;
        no_more.dry_multiplier = no_more.xtc_probability = no_more.mirostat_tau = 0;
        no_more.typical_p = 1;
        plain = chain_for(&no_more, V);
        assert_int_equal(realm_chain_open(stages, n, s.seed, V, &one_by_one, NULL), REALM_OK);
        for (unsigned i = 0; i < N; i++) {
            for (size_t k = 0; k < V; k++)
                x[k] = k < 12 ? 3 + random_normal() : random_normal(); /* few tokens, so texts repeat */
            realm_sample_job a = job_for(x, fixed), b = job_for(x, one_by_one), c = job_for(x, plain);
            realm_sampler_run(&w, &a);
            realm_sampler_run(&w, &b);
            realm_sampler_run(&w, &c);
            assert_int_equal(a.status, REALM_OK);
            assert_int_equal(a.id, b.id);
            changed += a.id != c.id;
        }
        realm_chain_close(fixed);
        realm_chain_close(one_by_one);
        realm_chain_close(plain);
    }
    assert_true(changed > 1000); /* they do something */
    realm_sampler_release(&w);
}

static void ranges_of_fixed_fields(void **state) {
    (void)state;
    realm_sampling s;
    const realm_token outside = 100;
    realm_error err;
#define WRONG(says, set)                                                      \
    do {                                                                      \
        realm_sampling_init(&s);                                              \
        assert_int_equal(realm_sampling_check(&s, 100, NULL), REALM_OK);      \
        set;                                                                  \
        assert_int_equal(realm_sampling_check(&s, 100, &err), REALM_E_RANGE); \
        if (!strstr(err.text, says)) fail_msg("%s: %s", says, err.text);      \
    } while (0)
    WRONG("typical_p", s.typical_p = 0);
    WRONG("typical_p", s.typical_p = NAN);
    WRONG("xtc_probability", s.xtc_probability = 1.5f);
    WRONG("xtc_threshold", s.xtc_threshold = NAN);
    WRONG("dry_multiplier", s.dry_multiplier = -1);
    WRONG("dry_base", s.dry_base = 0.5f);
    WRONG("dry_allowed", s.dry_allowed = 0);
    WRONG("breaker 100", (s.dry_breakers = &outside, s.n_dry_breakers = 1));
    WRONG("breakers", s.n_dry_breakers = 101);
    WRONG("mirostat_tau", s.mirostat_tau = INFINITY);
    WRONG("mirostat_eta", s.mirostat_eta = -1);
    WRONG("stages", s.n_order = REALM_SAMPLING_ORDER_MAX + 1);
    WRONG("stage 0", (s.n_order = 1, s.order[0] = REALM_STAGE_KIND_GRAMMAR));
    WRONG("stage 0", (s.n_order = 1, s.order[0] = REALM_STAGE_KIND_MIROSTAT));
#undef WRONG
}

static void log_probabilities(void **state) {
    (void)state;
    static const size_t sizes[] = {3, 19, 20, 21, 56, 57, 1000, 262144};
    for (size_t k = 0; k < REALM_ARRAY_LEN(sizes); k++) {
        size_t n = sizes[k];
        float *x = malloc(n * sizeof *x);
        int32_t *order = malloc(n * sizeof *order);
        double sum = 0;
        for (size_t i = 0; i < n; i++) {
            x[i] = 5 * random_normal() - 3;
            if (i % 3 == 0) x[i] = (float)(int)x[i];
            sum += exp((double)x[i]);
            order[i] = (int32_t)i;
        }
        sort_key = x;
        qsort(order, n, sizeof *order, by_key);
        realm_sampler w;
        assert_int_equal(realm_sampler_init(&w, n, NULL), REALM_OK);
        for (uint32_t top = 0; top <= REALM_TOP_LOGPROBS_MAX; top += 5) {
            realm_sample_job job = job_for(x, NULL);
            job.target = (realm_token)(n / 2);
            job.logprob = true;
            job.n_top = top;
            realm_sampler_run(&w, &job);
            assert_int_equal(job.id, n / 2);
            assert_true(fabs((double)job.id_logprob - ((double)x[n / 2] - log(sum))) <
                        2e-6 * fabs((double)job.id_logprob) + 2e-6);
            assert_int_equal(job.n_top, top < n ? top : n);
            for (uint32_t i = 0; i < job.n_top; i++) {
                assert_int_equal(job.top[i].id, order[i]);
                assert_true(fabs((double)job.top[i].logprob - ((double)x[order[i]] - log(sum))) < 1e-5);
            }
        }
        realm_sampler_release(&w);
        free(x);
        free(order);
    }
}

static void not_numbers(void **state) {
    (void)state;
    enum { V = 100 };
    float x[V];
    realm_sampler w;
    assert_int_equal(realm_sampler_init(&w, V, NULL), REALM_OK);
    for (int t = 0; t < 4; t++) {
        realm_sampling s;
        realm_sampling_init(&s);
        s.temperature = t == 0 ? 0.0f : t == 3 ? 1e-30f : 1.0f;
        s.top_k = t == 2 ? 10 : 0;
        for (int bad = 0; bad < 4; bad++) {
            for (size_t i = 0; i < V; i++) x[i] = bad == 0 ? NAN : bad == 1 ? -INFINITY : bad == 2 ? INFINITY : NAN;
            if (bad == 3) x[40] = x[60] = -2; /* all but two are not numbers: one of the two */
            realm_chain *chain = chain_for(&s, V);
            for (unsigned i = 0; i < 20; i++) {
                realm_sample_job job = job_for(x, chain);
                realm_sampler_run(&w, &job);
                assert_int_equal(job.status, bad == 3 ? REALM_OK : REALM_E_FORMAT);
                if (bad == 3) assert_true(job.id == 40 || (job.id == 60 && t != 0 && t != 3));
            }
            realm_chain_close(chain);
        }
    }
    realm_sampler_release(&w);
    realm_alloc_inject_failure(2, false);
    assert_int_equal(realm_sampler_init(&w, V, NULL), REALM_E_NOMEM);
    realm_alloc_inject_failure(-1, false);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(distributions),
                                       cmocka_unit_test(cut_sets),
                                       cmocka_unit_test(greedy_and_ties),
                                       cmocka_unit_test(greatest_of_long_rows),
                                       cmocka_unit_test(random_numbers),
                                       cmocka_unit_test(penalties_and_bias),
                                       cmocka_unit_test(fixed_fields_are_a_chain),
                                       cmocka_unit_test(ranges_of_fixed_fields),
                                       cmocka_unit_test(log_probabilities),
                                       cmocka_unit_test(not_numbers)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
