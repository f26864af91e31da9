/* engine/sampling.c - from a row of logits to a token, stage by stage.
 *
 *      logits --penalties, DRY, bias, masks--> adjusted copy --+
 *                                                              |  exp((x - max) / T): weights
 *      all tokens --top-k, top-p, min-p, typical, XTC--> list of candidates --draw--> token
 *
 * A row under way is a dense row of logits, a temperature, and what is left: all tokens or a list. Weights are computed
 * when a stage needs them and thrown away when logits, temperature or the set change. A stage that cuts picks the
 * cheapest way from where the row is: top-k of all tokens keeps a buffer of 2k, top-p without k lowers a cut until what
 * is above it holds the mass, min-p alone compares logits, a mask of few tokens lists them without copying the row.
 *
 * Token i of a generation uses number i of the stream that its seed names (Philox 4x32-10, Salmon et al., "Parallel
 * random numbers: as easy as 1, 2, 3", SC 2011), so a text does not depend on who shared its steps, nor on being
 * preempted.
 *
 * A logit that is not a number counts as minus infinity; a row without a finite best among what is left fails.
 */
#include <float.h>
#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "engine/sampling.h"

#define MIN_TEMPERATURE 1e-6f /* below it sampling is greedy: differences of logits would overflow */
#define FEW_OF_ALL 16u        /* a mask that leaves less than one token in so many makes a list */

realm_status realm_sampler_init(realm_sampler *s, size_t n_vocab, realm_error *err) {
    *s = (realm_sampler){.n_vocab = n_vocab};
    s->adjusted = realm_calloc(n_vocab, sizeof *s->adjusted);
    s->weight = realm_calloc(n_vocab, sizeof *s->weight);
    s->count = realm_calloc(n_vocab, sizeof *s->count);
    s->bits = realm_calloc((n_vocab + 31) / 32, sizeof *s->bits);
    s->cand = realm_calloc(n_vocab, sizeof *s->cand);
    if (s->adjusted && s->weight && s->count && s->bits && s->cand) return REALM_OK;
    realm_sampler_release(s);
    return realm_error_set(err, REALM_E_NOMEM, "no memory for sampling over %zu tokens", n_vocab);
}

void realm_sampler_release(realm_sampler *s) {
    realm_free(s->adjusted);
    realm_free(s->weight);
    realm_free(s->count);
    realm_free(s->bits);
    realm_free(s->cand);
    *s = (realm_sampler){0};
}

double realm_random_uniform(uint64_t seed, uint64_t i, uint32_t stream) {
    uint32_t c[4] = {(uint32_t)i, (uint32_t)(i >> 32), stream, 0};
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = UINT64_C(0xD2511F53) * c[0], p1 = UINT64_C(0xCD9E8D57) * c[2];
        uint32_t next[4] = {(uint32_t)(p1 >> 32) ^ c[1] ^ k0, (uint32_t)p1, (uint32_t)(p0 >> 32) ^ c[3] ^ k1,
                            (uint32_t)p0};
        memcpy(c, next, sizeof c);
        k0 += UINT32_C(0x9E3779B9);
        k1 += UINT32_C(0xBB67AE85);
    }
    uint64_t bits = ((uint64_t)c[0] << 32 | c[1]) >> 11;
    return (double)bits * 0x1p-53;
}

/* ---- a row under way -------------------------------------------------------------------------------------------- */

typedef struct row {
    realm_sampler *s;
    realm_chain *chain;
    const float *x; /* (n_vocab) logits in force: the caller's, or s->adjusted */
    size_t n;       /* n_vocab */
    float temperature;
    float max;       /* of what is left, or above it when a cut took the best; used when `settled` */
    size_t max_near; /* realm_row_max: where it is, when settled and not listed */
    bool settled;    /* max is known */
    bool listed;     /* what is left is s->cand[0 .. n_cand) */
    size_t n_cand;
    bool weighed; /* weights are in force: in s->weight, or in the candidates when listed */
    double mass;  /* their sum, when weighed */
    bool chosen;  /* a stage has drawn */
    realm_token id;
    const char *failure; /* no token can be chosen, why */
    realm_status failed;
} row;

static void fail(row *r, realm_status status, const char *why) {
    if (r->failure) return;
    r->failed = status;
    r->failure = why;
}

/* The largest logit left; false when nothing finite is. */
static bool settle(row *r) {
    if (r->settled) return true;
    if (r->listed) {
        r->max = -INFINITY;
        for (size_t i = 0; i < r->n_cand; i++) {
            float x = r->x[r->s->cand[i].id];
            r->max = x > r->max ? x : r->max;
        }
    } else {
        r->max = realm_row_max(r->x, r->n, &r->max_near);
    }
    r->settled = isfinite(r->max);
    if (!r->settled) fail(r, REALM_E_FORMAT, "no token with a finite logit is left to choose");
    return r->settled;
}

static double mass_of(const realm_candidate *c, size_t len) {
    double sum = 0;
    for (size_t i = 0; i < len; i++) sum += (double)c[i].x;
    return sum;
}

static void soften(row *r) {
    const float inv_t = 1.0f / r->temperature;
    for (size_t i = 0; i < r->n_cand; i++) {
        realm_candidate *c = &r->s->cand[i];
        c->x = realm_exp_negative((r->x[c->id] - r->max) * inv_t);
    }
}

static void list(row *r, size_t n_cand) {
    r->listed = true;
    r->n_cand = n_cand;
}

/* Weights of what is left; false when nothing is. */
static bool weigh(row *r) {
    if (!settle(r)) return false;
    if (r->weighed) return true;
    if (r->listed) {
        soften(r);
        r->mass = mass_of(r->s->cand, r->n_cand);
    } else {
        r->mass = realm_row_exp(r->x, r->n, r->max, 1.0f / r->temperature, r->s->weight);
    }
    r->weighed = true;
    return true;
}

/* The candidates whose weights are in force stay; their sum is taken anew. */
static void keep(row *r, size_t n_cand) {
    list(r, n_cand);
    r->mass = mass_of(r->s->cand, n_cand);
    r->weighed = true;
}

/* A row of logits that may be changed, temperature applied. */
static float *own_logits(row *r) {
    float *y = r->s->adjusted;
    if (r->x != y) {
        memcpy(y, r->x, r->n * sizeof *y);
        r->x = y;
    }
    if (r->temperature != 1.0f) {
        const float inv_t = 1.0f / r->temperature;
        for (size_t i = 0; i < r->n; i++) y[i] *= inv_t;
        r->temperature = 1.0f;
    }
    r->settled = r->weighed = false;
    return y;
}

/* ---- stages that change logits ---------------------------------------------------------------------------------- */

static realm_token token_of(realm_token entry) { return entry < 0 ? ~entry : entry; }

/* Repeat: Keskar et al. 2019 (CTRL), over prompt and generated tokens. Frequency and presence: as the OpenAI API
 * documents them, over generated tokens. All look back over the last last_n tokens, or over all. */
static void apply_penalties(row *r, const realm_stage *stage) {
    const realm_chain *c = r->chain;
    const uint32_t n = c->n_tokens, last_n = stage->u.penalties.last_n;
    const float repeat = stage->u.penalties.repeat, frequency = stage->u.penalties.frequency,
                presence = stage->u.penalties.presence;
    const uint32_t from = last_n != 0 && n > last_n ? n - last_n : 0;
    uint32_t *count = r->s->count;
    if (from == n || (repeat == 1.0f && frequency == 0.0f && presence == 0.0f)) return;
    float *y = own_logits(r);
    if (repeat != 1.0f) {
        for (uint32_t i = from; i < n; i++) {
            size_t id = (size_t)token_of(c->tokens[i]);
            if (count[id]++ != 0) continue;
            y[id] = y[id] > 0.0f ? y[id] / repeat : y[id] * repeat;
        }
        for (uint32_t i = from; i < n; i++) count[token_of(c->tokens[i])] = 0;
    }
    if (frequency == 0.0f && presence == 0.0f) return;
    for (uint32_t i = from; i < n; i++)
        if (c->tokens[i] >= 0) count[c->tokens[i]]++;
    for (uint32_t i = from; i < n; i++) {
        if (c->tokens[i] < 0) continue;
        size_t id = (size_t)c->tokens[i];
        if (count[id] == 0) continue;
        y[id] -= (float)count[id] * frequency + presence;
        count[id] = 0;
    }
}

/* They are sorted (chain.c), as there may be thousands of them and each is asked for at every token looked back on. */
static bool breaks(const realm_stage *stage, realm_token id) {
    size_t lo = 0, hi = stage->u.dry.n_breakers;
    while (lo < hi) {
        const size_t mid = lo + (hi - lo) / 2;
        if (stage->u.dry.breakers[mid] < id)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < stage->u.dry.n_breakers && stage->u.dry.breakers[lo] == id;
}

/* DRY (p-e-w, github.com/oobabooga/text-generation-webui pull request 5677). For every earlier place whose text up to
 * there ends as the whole text ends, for n tokens without a breaker among them, the token that followed there would
 * extend a repetition of n. All n in one pass: with the text read backwards, n is the longest common start with what
 * stands j tokens on, the Z function (Gusfield, "Algorithms on strings, trees and sequences", 1.4). */
static void apply_dry(row *r, const realm_stage *stage) {
    const realm_chain *c = r->chain;
    const uint32_t last_n = stage->u.dry.last_n, allowed = stage->u.dry.allowed;
    uint32_t n = last_n != 0 && c->n_tokens > last_n ? last_n : c->n_tokens, whole = 0;
    if (n < 2 || stage->u.dry.multiplier == 0.0f) return;
    const realm_token *end = c->tokens + c->n_tokens; /* end[-1 - i]: the i-th from behind */
    while (whole < n && !breaks(stage, token_of(end[-1 - (ptrdiff_t)whole]))) whole++;
    if (whole < allowed) return; /* a longer repetition would reach across a breaker */
    uint32_t *z = c->match, lo = 0, hi = 0;
    uint32_t *longest = r->s->count;
    bool any = false;
    for (uint32_t j = 1; j < n; j++) {
        uint32_t k = j < hi ? REALM_MIN(hi - j, z[j - lo]) : 0;
        while (j + k < n && k < whole &&
               token_of(end[-1 - (ptrdiff_t)k]) == token_of(end[-1 - (ptrdiff_t)j - (ptrdiff_t)k]))
            k++;
        z[j] = k;
        if (j + k > hi) {
            lo = j;
            hi = j + k;
        }
        if (k < allowed) continue;
        realm_token next = token_of(end[-(ptrdiff_t)j]); /* followed there */
        if (k > longest[next]) longest[next] = k;
        any = true;
    }
    if (!any) return;
    float *y = own_logits(r);
    for (uint32_t j = 1; j < n; j++) {
        realm_token next = token_of(end[-(ptrdiff_t)j]);
        const uint32_t k = longest[next];
        longest[next] = 0;
        if (k < allowed || breaks(stage, next)) continue;
        float penalty = stage->u.dry.multiplier * powf(stage->u.dry.base, (float)(k - allowed));
        y[next] -= penalty < FLT_MAX / 4 ? penalty : FLT_MAX / 4;
    }
}

static void apply_bias(row *r, const realm_stage *stage) {
    if (stage->u.bias.n == 0) return;
    float *y = own_logits(r);
    for (size_t i = 0; i < stage->u.bias.n; i++) y[stage->u.bias.at[i].id] += stage->u.bias.at[i].bias;
}

static void apply_mask(row *r, const uint32_t *bits) {
    realm_candidate *c = r->s->cand;
    if (r->listed) {
        size_t kept = 0;
        for (size_t i = 0; i < r->n_cand; i++)
            if (bits[c[i].id / 32] >> (c[i].id % 32) & 1) c[kept++] = c[i];
        r->n_cand = kept;
    } else if (realm_bits_count(bits, r->n) * FEW_OF_ALL < r->n) {
        list(r, realm_gather_set(r->x, r->n, bits, c));
    } else {
        realm_row_mask(own_logits(r), r->n, bits);
    }
    r->settled = r->weighed = false;
    if (r->listed && r->n_cand == 0) fail(r, REALM_E_INVALID, "the masks leave no token to choose");
}

/* ---- stages that cut -------------------------------------------------------------------------------------------- */

/* Fan et al. 2018. */
static void cut_top_k(row *r, uint32_t k) {
    realm_candidate *c = r->s->cand;
    if (k == 0 || k >= (r->listed ? r->n_cand : r->n) || !settle(r)) return;
    if (r->listed) {
        for (size_t i = 0; i < r->n_cand; i++) c[i].x = r->x[c[i].id];
        realm_select_best(c, r->n_cand, k);
        list(r, k);
        r->weighed = false;
    } else if (r->n > 4 * REALM_SELECT_LANES && k <= r->n / 2 - REALM_SELECT_LANES) {
        list(r, realm_gather_best(r->x, r->n, k, c)); /* no need to soften all */
        r->weighed = false;
    } else if (weigh(r)) {
        double unused;
        size_t len = realm_gather_above(r->s->weight, r->n, FLT_MIN, c, &unused);
        if (len > k) realm_select_best(c, len, k);
        keep(r, REALM_MIN(len, (size_t)k));
    }
}

/* Candidates that hold at least `mass`: lowers the cut until they do; few passes, as weights fall off fast. */
static size_t heaviest(const float *weight, size_t n, double mass, realm_candidate *c) {
    for (float cut = 1e-3f;; cut = cut > 1e-30f ? cut * 1e-2f : FLT_MIN) {
        double held;
        size_t len = realm_gather_above(weight, n, cut, c, &held);
        if (held >= mass || cut <= FLT_MIN) return len;
    }
}

/* Holtzman et al. 2019, "The curious case of neural text degeneration": the fewest best that hold p. */
static void cut_top_p(row *r, float p) {
    if (p >= 1.0f || !weigh(r)) return;
    const double mass = (double)p * r->mass;
    size_t len = r->listed ? r->n_cand : heaviest(r->s->weight, r->n, mass, r->s->cand);
    keep(r, realm_select_mass(r->s->cand, len, NULL, mass));
}

/* Nguyen et al. 2024, "Turning up the heat: min-p sampling": at least min_p of the best one's probability. */
static void cut_min_p(row *r, float min_p) {
    realm_candidate *c = r->s->cand;
    if (min_p <= 0.0f || !settle(r)) return;
    if (!r->listed && !r->weighed) {
        double unused; /* the cut by logit is a little low, the one by weight below is exact */
        list(r, realm_gather_above(r->x, r->n, r->max + r->temperature * (logf(min_p) - 0.001f), c, &unused));
    } else if (!r->listed) {
        double unused;
        list(r, realm_gather_above(r->s->weight, r->n, min_p * 0.999f, c, &unused));
    }
    if (!r->weighed) soften(r);
    float best = 0.0f;
    for (size_t i = 0; i < r->n_cand; i++) best = c[i].x > best ? c[i].x : best;
    size_t kept = 0;
    for (size_t i = 0; i < r->n_cand; i++)
        if (c[i].x >= min_p * best) c[kept++] = c[i];
    keep(r, kept);
}

/* Meister et al. 2022, "Locally typical sampling": the fewest whose surprise is nearest to the entropy that hold p. */
static void cut_typical(row *r, float p) {
    realm_candidate *c = r->s->cand;
    float *weight = r->s->weight;
    if (p >= 1.0f || !weigh(r)) return;
    if (!r->listed) {
        double unused;
        list(r, realm_gather_above(weight, r->n, FLT_MIN, c, &unused));
    } else {
        for (size_t i = 0; i < r->n_cand; i++) weight[c[i].id] = c[i].x;
    }
    const double log_mass = log(r->mass);
    const double inv_t = 1.0 / (double)r->temperature;
    double entropy = 0;
    for (size_t i = 0; i < r->n_cand; i++) {
        if (c[i].x == 0.0f) continue;
        entropy += (double)c[i].x * (log_mass - ((double)r->x[c[i].id] - (double)r->max) * inv_t);
    }
    entropy /= r->mass;
    for (size_t i = 0; i < r->n_cand; i++) {
        double surprise = log_mass - ((double)r->x[c[i].id] - (double)r->max) * inv_t;
        c[i].x = c[i].x == 0.0f ? -INFINITY : -(float)fabs(surprise - entropy);
    }
    size_t kept = realm_select_mass(c, r->n_cand, weight, (double)p * r->mass);
    for (size_t i = 0; i < kept; i++) c[i].x = weight[c[i].id];
    keep(r, kept);
}

/* XTC, "exclude top choices" (p-e-w, github.com/oobabooga/text-generation-webui pull request 6335): by chance, all that
 * reach the threshold go but the least likely of them. */
static void cut_xtc(row *r, const realm_stage *stage, uint32_t stream) {
    realm_candidate *c = r->s->cand;
    if (stage->u.xtc.probability <= 0.0f || !weigh(r)) return;
    if (realm_random_uniform(r->chain->seed, r->chain->n_drawn, stream) >= (double)stage->u.xtc.probability) return;
    const double cut = (double)stage->u.xtc.threshold * r->mass;
    if (!r->listed) {
        double unused;
        const size_t len = realm_gather_above(r->s->weight, r->n, (float)(cut > 0 ? cut : FLT_MIN), c, &unused);
        if (len < 2) return;
        realm_select_best(c, len, len - 1); /* the last in the order stands last */
        float *y = own_logits(r);
        for (size_t i = 0; i + 1 < len; i++) y[c[i].id] = -INFINITY;
        return;
    }
    size_t reach = 0, kept = 0;
    realm_candidate last = {INFINITY, 0};
    for (size_t i = 0; i < r->n_cand; i++) {
        if ((double)c[i].x < cut || c[i].x == 0.0f) continue;
        if (reach++ == 0 || realm_candidate_before(last, c[i])) last = c[i];
    }
    if (reach < 2) return;
    for (size_t i = 0; i < r->n_cand; i++)
        if ((double)c[i].x < cut || c[i].x == 0.0f || c[i].id == last.id) c[kept++] = c[i];
    list(r, kept);
    r->settled = r->weighed = false;
}

/* ---- drawing ---------------------------------------------------------------------------------------------------- */

static void greedy(row *r) {
    if (!settle(r)) return;
    r->chosen = true;
    if (!r->listed) {
        r->id = (realm_token)realm_row_find(r->x, r->n, r->max_near, r->max);
        return;
    }
    realm_candidate best = {-INFINITY, 0};
    for (size_t i = 0; i < r->n_cand; i++) {
        realm_candidate c = {r->x[r->s->cand[i].id], r->s->cand[i].id};
        if (i == 0 || realm_candidate_before(c, best)) best = c;
    }
    r->id = best.id;
}

/* Draws by weight from the candidates: u in [0, 1) of their sum. */
static realm_token draw_listed(const realm_candidate *c, size_t n, double u) {
    double run = 0;
    const double at = u * mass_of(c, n);
    for (size_t i = 0; i < n; i++) {
        run += (double)c[i].x;
        if (run > at) return c[i].id;
    }
    return c[n - 1].id; /* rounding at the very end */
}

static realm_token draw_all(const float *w, size_t n, double sum, double u) {
    double at = u * sum, run = 0;
    realm_token last = 0;
    for (size_t i = 0; i < n; i++) {
        if (w[i] == 0.0f) continue;
        last = (realm_token)i;
        run += (double)w[i];
        if (run > at) return last;
    }
    return last;
}

static void draw(row *r) {
    if (!weigh(r)) return;
    const double u = realm_random_uniform(r->chain->seed, r->chain->n_drawn, 0);
    r->chosen = true;
    if (!r->listed)
        r->id = draw_all(r->s->weight, r->n, r->mass, u);
    else if (r->mass > 0)
        r->id = draw_listed(r->s->cand, r->n_cand, u);
    else
        greedy(r); /* all that is left is too far below what was cut away */
}

/* Basu et al. 2020, "Mirostat: a neural text decoding algorithm that directly controls perplexity", version 2 as in its
 * authors' implementation: tokens more surprising than mu bits are cut, one is drawn, and mu moves by eta times how far
 * its surprise among those left is from tau. */
static void mirostat(row *r, const realm_stage *stage) {
    realm_candidate *c = r->s->cand;
    realm_chain *chain = r->chain;
    if (!weigh(r)) return;
    const float mu = realm_chain_mu(chain);
    const double cut = r->mass * exp2(-(double)mu);
    size_t n_cand = r->n_cand, kept = 0;
    double unused;
    if (!r->listed) n_cand = realm_gather_above(r->s->weight, r->n, REALM_MAX((float)cut, FLT_MIN), c, &unused);
    for (size_t i = 0; i < n_cand; i++)
        if ((double)c[i].x >= cut) c[kept++] = c[i];
    if (kept == 0) { /* nothing was moved */
        greedy(r);
        chain->next_mu = mu + stage->u.mirostat.eta * stage->u.mirostat.tau; /* the only one left: no surprise */
        return;
    }
    keep(r, kept);
    draw(r);
    float x = (r->x[r->id] - r->max) / r->temperature;
    double surprise = (log(r->mass) - (double)x) / log(2.0);
    chain->next_mu = mu - stage->u.mirostat.eta * (float)(surprise - (double)stage->u.mirostat.tau);
}

/* ---- a chain ---------------------------------------------------------------------------------------------------- */

static realm_status grammar_mask(row *r, realm_stage *stage, const uint32_t **bits, realm_error *err) {
    realm_chain *c = r->chain;
    realm_mask *ready = c->ready;
    c->ready = NULL;
    if (ready) return realm_mask_use(ready, stage, bits, err);
    const uint64_t before = realm_clock_thread_ns(); /* not that of a machine that lets it wait */
    *bits = r->s->bits;
    realm_status s = realm_grammar_state_mask((realm_grammar_state *)(uintptr_t)stage->u.grammar, r->s->bits, err);
    c->mask_ns = REALM_MAX(c->mask_ns, realm_clock_thread_ns() - before);
    return s;
}

static realm_status run_stage(row *r, uint32_t at, realm_error *err) {
    realm_stage *stage = &r->chain->stages[at];
    switch (stage->kind) {
    case REALM_STAGE_KIND_PENALTIES: apply_penalties(r, stage); break;
    case REALM_STAGE_KIND_DRY: apply_dry(r, stage); break;
    case REALM_STAGE_KIND_BIAS: apply_bias(r, stage); break;
    case REALM_STAGE_KIND_MASK: apply_mask(r, (const uint32_t *)(const void *)stage->u.mask.bits); break;
    case REALM_STAGE_KIND_GRAMMAR: {
        const uint32_t *bits;
        realm_status s = grammar_mask(r, stage, &bits, err);
        if (s != REALM_OK) return s;
        apply_mask(r, bits);
        break;
    }
    case REALM_STAGE_KIND_TEMPERATURE:
        if (stage->u.temperature * r->temperature < MIN_TEMPERATURE)
            greedy(r);
        else if (stage->u.temperature != 1.0f) {
            r->temperature *= stage->u.temperature;
            r->weighed = false;
        }
        break;
    case REALM_STAGE_KIND_TOP_K: cut_top_k(r, stage->u.top_k); break;
    case REALM_STAGE_KIND_TOP_P: cut_top_p(r, stage->u.top_p); break;
    case REALM_STAGE_KIND_MIN_P: cut_min_p(r, stage->u.min_p); break;
    case REALM_STAGE_KIND_TYPICAL: cut_typical(r, stage->u.typical); break;
    case REALM_STAGE_KIND_XTC: cut_xtc(r, stage, at + 1); break;
    case REALM_STAGE_KIND_MIROSTAT: mirostat(r, stage); break;
    }
    return REALM_OK;
}

static realm_status choose(realm_sampler *s, realm_sample_job *job, float raw_max, size_t max_near) {
    realm_chain *chain = job->chain;
    row r = {.s = s,
             .chain = chain,
             .x = job->logits,
             .n = s->n_vocab,
             .temperature = 1,
             .max = raw_max,
             .max_near = max_near,
             .settled = true};
    if (chain && chain->keeps_surprise) chain->next_mu = realm_chain_mu(chain);
    for (uint32_t i = 0; chain && i < chain->n_stages && !r.chosen && !r.failure; i++) {
        realm_status status = run_stage(&r, i, &job->error);
        if (status != REALM_OK) return status;
    }
    if (!r.failure && !r.chosen) {
        if (chain && chain->draws)
            draw(&r);
        else
            greedy(&r);
    }
    if (r.failure) return realm_error_set(&job->error, r.failed, "%s", r.failure);
    job->id = r.id;
    return chain ? realm_chain_drawn(chain, r.id, &job->error) : REALM_OK;
}

static void say_logprobs(realm_sampler *s, realm_sample_job *job, float max) {
    double log_sum = (double)max + log(realm_row_exp(job->logits, s->n_vocab, max, 1.0f, NULL));
    job->id_logprob = (float)((double)job->logits[job->id] - log_sum);
    size_t k = job->n_top, n = 0;
    if (k > s->n_vocab) k = s->n_vocab;
    if (k > 0) {
        realm_candidate small[2 * REALM_TOP_LOGPROBS_MAX + REALM_SELECT_LANES];
        n = realm_gather_best(job->logits, s->n_vocab, k, small);
        for (size_t i = 1; i < n; i++)
            for (size_t j = i; j > 0 && realm_candidate_before(small[j], small[j - 1]); j--) {
                realm_candidate t = small[j];
                small[j] = small[j - 1];
                small[j - 1] = t;
            }
        for (size_t i = 0; i < n; i++)
            job->top[i] = (realm_top_logprob){small[i].id, (float)((double)small[i].x - log_sum)};
    }
    job->n_top = (uint32_t)n;
}

void realm_sampler_run(realm_sampler *s, realm_sample_job *job) {
    size_t max_near;
    const float raw_max = realm_row_max(job->logits, s->n_vocab, &max_near);
    realm_error_clear(&job->error);
    if (!isfinite(raw_max)) {
        job->status = realm_error_set(&job->error, REALM_E_FORMAT, "%s",
                                      raw_max == -INFINITY ? "no token is left to choose: every logit is minus infinity"
                                                           : "the model's output is not finite");
        return;
    }
    job->status = REALM_OK;
    if (job->target >= 0)
        job->id = job->target;
    else
        job->status = choose(s, job, raw_max, max_near);
    if (job->status == REALM_OK && job->logprob) say_logprobs(s, job, raw_max);
}

/* ---- parameters ------------------------------------------------------------------------------------------------- */

void realm_sampling_init(realm_sampling *s) {
    *s = (realm_sampling){.temperature = 1.0f,
                          .top_p = 1.0f,
                          .repeat_penalty = 1.0f,
                          .typical_p = 1.0f,
                          .xtc_threshold = 0.1f,
                          .dry_base = 1.75f,
                          .dry_allowed = 2,
                          .mirostat_eta = 0.1f};
}

static realm_status bad(realm_error *err, const char *field, double v, const char *range) {
    return realm_error_set(err, REALM_E_RANGE, "%s is %g, it must be %s", field, v, range);
}

/* A field that must be from lo to hi. */
static realm_status check_within(realm_error *err, const char *field, float v, float lo, float hi) {
    if (v >= lo && v <= hi) return REALM_OK;
    return realm_error_set(err, REALM_E_RANGE, "%s is %g, it must be from %g to %g", field, (double)v, (double)lo,
                           (double)hi);
}

static realm_status check_order(const realm_sampling *s, realm_error *err) {
    if (s->n_order > REALM_SAMPLING_ORDER_MAX)
        return realm_error_set(err, REALM_E_RANGE, "%u stages, at most %u are taken", s->n_order,
                               REALM_SAMPLING_ORDER_MAX);
    for (uint32_t i = 0; i < s->n_order; i++) {
        const realm_stage_kind k = s->order[i];
        if (k != REALM_STAGE_KIND_PENALTIES && k != REALM_STAGE_KIND_DRY &&
            (k < REALM_STAGE_KIND_TEMPERATURE || k > REALM_STAGE_KIND_XTC))
            return realm_error_set(err, REALM_E_RANGE, "stage %u is of kind %d, which has no order", i, (int)k);
    }
    return REALM_OK;
}

/* DRY, XTC, typical and mirostat. */
static realm_status check_rarer(const realm_sampling *s, size_t n_vocab, realm_error *err) {
    realm_status st = check_within(err, "xtc_probability", s->xtc_probability, 0, 1);
    if (!(s->typical_p > 0.0f && s->typical_p <= 1.0f))
        return bad(err, "typical_p", (double)s->typical_p, "above 0 and at most 1");
    if (st == REALM_OK) st = check_within(err, "xtc_threshold", s->xtc_threshold, 0, 1);
    if (st == REALM_OK) st = check_within(err, "dry_multiplier", s->dry_multiplier, 0, 1000);
    if (st == REALM_OK) st = check_within(err, "dry_base", s->dry_base, 1, 1000);
    if (st == REALM_OK) st = check_within(err, "mirostat_tau", s->mirostat_tau, 0, 1000);
    if (st == REALM_OK) st = check_within(err, "mirostat_eta", s->mirostat_eta, 0, 1000);
    if (st != REALM_OK) return st;
    if (s->dry_allowed == 0) return bad(err, "dry_allowed", 0, "1 or more");
    if (s->n_dry_breakers > n_vocab)
        return realm_error_set(err, REALM_E_RANGE, "%zu breakers, the vocabulary has %zu tokens", s->n_dry_breakers,
                               n_vocab);
    for (size_t i = 0; i < s->n_dry_breakers; i++)
        if (s->dry_breakers[i] < 0 || (size_t)s->dry_breakers[i] >= n_vocab)
            return realm_error_set(err, REALM_E_RANGE, "breaker %d is no token, the vocabulary has %zu",
                                   s->dry_breakers[i], n_vocab);
    return check_order(s, err);
}

realm_status realm_sampling_check(const realm_sampling *s, size_t n_vocab, realm_error *err) {
    if (!(s->temperature >= 0.0f) || !isfinite(s->temperature))
        return bad(err, "temperature", (double)s->temperature, "0 or more");
    if (!(s->top_p > 0.0f && s->top_p <= 1.0f)) return bad(err, "top_p", (double)s->top_p, "above 0 and at most 1");
    if (!(s->min_p >= 0.0f && s->min_p <= 1.0f)) return bad(err, "min_p", (double)s->min_p, "between 0 and 1");
    if (!(s->repeat_penalty > 0.0f) || !isfinite(s->repeat_penalty))
        return bad(err, "repeat_penalty", (double)s->repeat_penalty, "above 0");
    if (!(s->frequency_penalty >= -2.0f && s->frequency_penalty <= 2.0f))
        return bad(err, "frequency_penalty", (double)s->frequency_penalty, "between -2 and 2");
    if (!(s->presence_penalty >= -2.0f && s->presence_penalty <= 2.0f))
        return bad(err, "presence_penalty", (double)s->presence_penalty, "between -2 and 2");
    if (s->n_bias > REALM_LOGIT_BIAS_MAX)
        return realm_error_set(err, REALM_E_RANGE, "logit_bias has %zu entries, at most %u are taken", s->n_bias,
                               REALM_LOGIT_BIAS_MAX);
    for (size_t i = 0; i < s->n_bias; i++) {
        if (s->bias[i].id < 0 || (size_t)s->bias[i].id >= n_vocab)
            return realm_error_set(err, REALM_E_RANGE, "logit_bias names token %d, the vocabulary has %zu",
                                   s->bias[i].id, n_vocab);
        if (!(s->bias[i].bias >= -100.0f && s->bias[i].bias <= 100.0f))
            return bad(err, "logit_bias", (double)s->bias[i].bias, "between -100 and 100");
    }
    return check_rarer(s, n_vocab, err);
}
