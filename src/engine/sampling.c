/* engine/sampling.c - from a row of logits to a token.
 *
 * The vocabulary is long (262,144 for Gemma) and rows come by the dozen in each step, so nothing here sorts it. A row
 * is read in plain loops over a few lanes that compilers turn into vector code:
 *
 *      logits --bias, penalties--> adjusted --greedy--> the first best
 *                                     |
 *                                     +-- exp((x - max) / T) --> weights --+-- all of them: one running sum
 *                                     +-- top-k: a buffer of 2k, cut to    +-- top-p without k: those above a cut that
 *                                         the best k when it is full           is lowered until they hold the mass
 *
 * Candidates are cut to k, or to the fewest that hold the mass p, by quickselect over (weight, then lower id first):
 * the order is total, so the set is exact and the same whatever the vector width. Token i of a generation uses number i
 * of the stream that its seed names (Philox 4x32-10, Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC
 * 2011), so a text does not depend on who shared its steps, nor on being preempted.
 *
 * A logit that is not a number counts as minus infinity; a row without a finite best fails.
 */
#include <float.h>
#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "engine/internal.h"

#define LANES 16u
#define MIN_TEMPERATURE 1e-6f /* below it sampling is greedy: differences of logits would overflow */

realm_status realm_sampler_init(realm_sampler *s, size_t n_vocab, realm_error *err) {
    *s = (realm_sampler){.n_vocab = n_vocab};
    s->adjusted = realm_calloc(n_vocab, sizeof *s->adjusted);
    s->weight = realm_calloc(n_vocab, sizeof *s->weight);
    s->count = realm_calloc(n_vocab, sizeof *s->count);
    s->cand = realm_calloc(n_vocab, sizeof *s->cand);
    if (s->adjusted && s->weight && s->count && s->cand) return REALM_OK;
    realm_sampler_release(s);
    return realm_error_set(err, REALM_E_NOMEM, "no memory for sampling over %zu tokens", n_vocab);
}

void realm_sampler_release(realm_sampler *s) {
    realm_free(s->adjusted);
    realm_free(s->weight);
    realm_free(s->count);
    realm_free(s->cand);
    *s = (realm_sampler){0};
}

/* ---- random numbers --------------------------------------------------------------------------------------------- */

double realm_random_uniform(uint64_t seed, uint64_t i) {
    uint32_t c[4] = {(uint32_t)i, (uint32_t)(i >> 32), 0, 0};
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

/* ---- vector loops ----------------------------------------------------------------------------------------------- */

static float max_of(const float *x, size_t n) {
    float m[LANES];
    for (size_t l = 0; l < LANES; l++) m[l] = -INFINITY;
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (size_t l = 0; l < LANES; l++) m[l] = x[i + l] > m[l] ? x[i + l] : m[l];
    float best = -INFINITY;
    for (; i < n; i++) best = x[i] > best ? x[i] : best;
    for (size_t l = 0; l < LANES; l++) best = m[l] > best ? m[l] : best;
    return best;
}

static realm_token first_equal(const float *x, size_t n, float v) {
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        int hit = 0;
        for (size_t l = 0; l < LANES; l++) hit |= x[i + l] == v;
        if (hit) break;
    }
    while (i < n && x[i] != v) i++;
    return (realm_token)i;
}

/* exp for x <= 0, to about two units in the last place; 0 below -87 and for NaN. Range reduction and
 * polynomial as in the Cephes library's expf (Moshier, netlib.org/cephes). */
static inline float exp_negative(float x) {
    const float c = x > -87.0f ? x : -87.0f;
    const float shifted = c * 1.44269504088896341f + 12582912.0f; /* rounds to an integer in the low bits */
    const float n = shifted - 12582912.0f;
    const float r = c - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    union {
        int32_t i;
        float f;
    } scale = {.i = (((int32_t)n + 127) << 23) & -(int32_t)(x > -87.0f)}; /* a mask, so that there is no branch */
    return p * scale.f;
}

#define BLOCK 256u /* float sums stay this short */

/* w[i] = exp((x[i] - max) * inv_t); returns the sum. w may be NULL. Exponentials and sums are separate loops, as only
 * the first kind is a plain loop that compilers vectorise. */
static double exp_all(const float *x, size_t n, float max, float inv_t, float *w) {
    float own[BLOCK];
    double total = 0;
    for (size_t at = 0; at < n; at += BLOCK) {
        const size_t len = n - at < BLOCK ? n - at : BLOCK;
        float *v = w ? w + at : own;
        for (size_t i = 0; i < len; i++) v[i] = exp_negative((x[at + i] - max) * inv_t);
        float sum[LANES] = {0};
        size_t i = 0;
        for (; i + LANES <= len; i += LANES)
            for (size_t l = 0; l < LANES; l++) sum[l] += v[i + l];
        for (; i < len; i++) sum[0] += v[i];
        for (size_t l = 0; l < LANES; l++) total += (double)sum[l];
    }
    return total;
}

/* ---- candidates ------------------------------------------------------------------------------------------------- */

static inline bool before(realm_candidate a, realm_candidate b) { return a.x > b.x || (a.x == b.x && a.id < b.id); }

static inline void swap(realm_candidate *a, realm_candidate *b) {
    realm_candidate t = *a;
    *a = *b;
    *b = t;
}

/* Puts a pivot into its place within [lo, hi) and returns the place: those before it are before it in the order. */
static size_t partition(realm_candidate *c, size_t lo, size_t hi) {
    size_t mid = lo + (hi - lo) / 2, last = hi - 1;
    if (before(c[mid], c[lo])) swap(&c[mid], &c[lo]);
    if (before(c[last], c[lo])) swap(&c[last], &c[lo]);
    if (before(c[mid], c[last])) swap(&c[mid], &c[last]); /* the median of three stands last */
    realm_candidate pivot = c[last];
    size_t at = lo;
    for (size_t i = lo; i < last; i++)
        if (before(c[i], pivot)) swap(&c[i], &c[at++]);
    swap(&c[at], &c[last]);
    return at;
}

/* Moves the best k of n to the front, in no order. */
static void select_best(realm_candidate *c, size_t n, size_t k) {
    size_t lo = 0, hi = n;
    while (hi - lo > 1) {
        size_t at = partition(c, lo, hi);
        if (at == k) return;
        if (at < k)
            lo = at + 1;
        else
            hi = at;
    }
}

/* The fewest best candidates whose weights sum to at least `mass`, moved to the front; at least one. */
static size_t select_mass(realm_candidate *c, size_t n, double mass) {
    size_t lo = 0, hi = n;
    while (hi - lo > 1) {
        size_t at = partition(c, lo, hi);
        double sum = 0;
        for (size_t i = lo; i <= at; i++) sum += (double)c[i].x;
        if (sum < mass) { /* all up to the pivot belong, and more */
            mass -= sum;
            lo = at + 1;
        } else {
            hi = at; /* the pivot may be the last one that belongs */
            sum -= (double)c[at].x;
            if (sum < mass) { /* it is */
                return at + 1;
            }
        }
    }
    return hi > lo ? lo + 1 : (lo > 0 ? lo : 1);
}

/* The k best of x, in no order; returns how many (fewer only when fewer are above minus infinity). `c` has room for
 * max(2k, k + LANES), or n when that is less. */
static size_t gather_best(const float *x, size_t n, size_t k, realm_candidate *c) {
    size_t cap = 2 * k > k + LANES ? 2 * k : k + LANES, len = 0;
    float least = -INFINITY;
    for (size_t i = 0; i < n; i += LANES) {
        size_t end = i + LANES < n ? i + LANES : n;
        if (end - i == LANES) {
            int hit = 0;
            for (size_t l = 0; l < LANES; l++) hit |= x[i + l] > least;
            if (!hit) continue;
        }
        for (size_t j = i; j < end; j++) {
            if (!(x[j] > least)) continue;
            c[len++] = (realm_candidate){x[j], (realm_token)j};
            if (len < cap) continue;
            select_best(c, len, k);
            len = k;
            least = c[0].x;
            for (size_t l = 1; l < k; l++) least = c[l].x < least ? c[l].x : least;
        }
    }
    if (len > k) {
        select_best(c, len, k);
        len = k;
    }
    return len;
}

/* All with weight >= cut, in order of id. */
static size_t gather_above(const float *w, size_t n, float cut, realm_candidate *c, double *sum) {
    size_t len = 0;
    double total = 0;
    for (size_t i = 0; i < n; i += LANES) {
        size_t end = i + LANES < n ? i + LANES : n;
        if (end - i == LANES) {
            int hit = 0;
            for (size_t l = 0; l < LANES; l++) hit |= w[i + l] >= cut;
            if (!hit) continue;
        }
        for (size_t j = i; j < end; j++) {
            if (!(w[j] >= cut)) continue;
            c[len++] = (realm_candidate){w[j], (realm_token)j};
            total += (double)w[j];
        }
    }
    *sum = total;
    return len;
}

/* ---- steps ------------------------------------------------------------------------------------------------------ */

static bool has_penalties(const realm_sampling *p) {
    return p->repeat_penalty != 1.0f || p->frequency_penalty != 0.0f || p->presence_penalty != 0.0f;
}

/* Repeat: Keskar et al. 2019 (CTRL), over prompt and generated tokens. Frequency and presence: as the OpenAI API
 * documents them, over generated tokens. Both look back over the last penalty_last_n tokens, or over all. */
static void apply_penalties(realm_sampler *s, const realm_sample_job *job) {
    const realm_sampling *p = job->sampling;
    size_t from = 0;
    if (p->penalty_last_n != 0 && job->n_tokens > p->penalty_last_n) from = job->n_tokens - p->penalty_last_n;
    if (p->repeat_penalty != 1.0f) {
        for (size_t i = from; i < job->n_tokens; i++) {
            size_t id = (size_t)job->tokens[i];
            if (s->count[id]++ != 0) continue;
            float x = s->adjusted[id];
            s->adjusted[id] = x > 0.0f ? x / p->repeat_penalty : x * p->repeat_penalty;
        }
        for (size_t i = from; i < job->n_tokens; i++) s->count[job->tokens[i]] = 0;
    }
    if (p->frequency_penalty == 0.0f && p->presence_penalty == 0.0f) return;
    if (from < job->n_prompt) from = job->n_prompt;
    for (size_t i = from; i < job->n_tokens; i++) s->count[job->tokens[i]]++;
    for (size_t i = from; i < job->n_tokens; i++) {
        size_t id = (size_t)job->tokens[i];
        if (s->count[id] == 0) continue;
        s->adjusted[id] -= (float)s->count[id] * p->frequency_penalty + p->presence_penalty;
        s->count[id] = 0;
    }
}

/* Draws by weight from the candidates: u in [0, 1) of their sum. */
static realm_token draw(const realm_candidate *c, size_t n, double u) {
    double sum = 0, run = 0;
    for (size_t i = 0; i < n; i++) sum += (double)c[i].x;
    double at = u * sum;
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

/* What is softened: exp((x - max) * inv_t). */
typedef struct softening {
    const float *x;
    size_t n;
    float max, inv_t;
} softening;

static void soften(const softening *t, realm_candidate *c, size_t len) {
    for (size_t i = 0; i < len; i++) c[i].x = exp_negative((c[i].x - t->max) * t->inv_t);
}

static double mass_of(const realm_candidate *c, size_t len) {
    double sum = 0;
    for (size_t i = 0; i < len; i++) sum += (double)c[i].x;
    return sum;
}

/* A k that is small beside the vocabulary: without softening all. */
static size_t few_best(const softening *t, uint32_t k, realm_candidate *c) {
    size_t len = gather_best(t->x, t->n, k, c);
    soften(t, c, len);
    return len;
}

/* min-p alone: only those near the best count. The cut by logit is a little low, the caller's by weight is exact. */
static size_t near_best(const softening *t, float temperature, float min_p, realm_candidate *c) {
    double unused;
    size_t len = gather_above(t->x, t->n, t->max + temperature * (logf(min_p) - 0.001f), c, &unused);
    soften(t, c, len);
    return len;
}

static size_t many_best(const float *weight, size_t n, uint32_t k, realm_candidate *c) {
    double unused;
    size_t len = gather_above(weight, n, FLT_MIN, c, &unused);
    if (len <= k) return len;
    select_best(c, len, k);
    return k;
}

/* Candidates that hold at least `mass`: lowers the cut until they do; few passes, as weights fall off fast. */
static size_t heaviest(const float *weight, size_t n, double mass, realm_candidate *c) {
    for (float cut = 1e-3f;; cut = cut > 1e-30f ? cut * 1e-2f : FLT_MIN) {
        double held;
        size_t len = gather_above(weight, n, cut, c, &held);
        if (held >= mass || cut <= FLT_MIN) return len;
    }
}

static realm_token choose(realm_sampler *s, const realm_sample_job *job, const float *x, float max) {
    const realm_sampling *p = job->sampling;
    const size_t n = s->n_vocab;
    if (p->temperature < MIN_TEMPERATURE) return first_equal(x, n, max);
    const softening t = {x, n, max, 1.0f / p->temperature};
    const double u = realm_random_uniform(p->seed, job->index);
    const bool cut_k = p->top_k > 0 && p->top_k < n, cut_p = p->top_p < 1.0f;
    double mass = 0;
    size_t len;
    if (cut_k && n > 4 * LANES && p->top_k <= n / 2 - LANES) {
        len = few_best(&t, p->top_k, s->cand);
        mass = mass_of(s->cand, len);
    } else if (!cut_k && !cut_p && p->min_p > 0.0f) {
        len = near_best(&t, p->temperature, p->min_p, s->cand);
    } else {
        mass = exp_all(x, n, max, t.inv_t, s->weight);
        if (!cut_k && !cut_p) return draw_all(s->weight, n, mass, u);
        len = cut_k ? many_best(s->weight, n, p->top_k, s->cand)
                    : heaviest(s->weight, n, (double)p->top_p * mass, s->cand);
        if (cut_k) mass = mass_of(s->cand, len);
    }
    if (cut_p) len = select_mass(s->cand, len, (double)p->top_p * mass);
    if (p->min_p > 0.0f) { /* the best weight is 1 */
        size_t kept = 0;
        for (size_t i = 0; i < len; i++)
            if (s->cand[i].x >= p->min_p) s->cand[kept++] = s->cand[i];
        len = kept;
    }
    return len > 0 ? draw(s->cand, len, u) : first_equal(x, n, max);
}

static void say_logprobs(realm_sampler *s, realm_sample_job *job, float max) {
    double log_sum = (double)max + log(exp_all(job->logits, s->n_vocab, max, 1.0f, NULL));
    job->id_logprob = (float)((double)job->logits[job->id] - log_sum);
    size_t k = job->n_top, n = 0;
    if (k > s->n_vocab) k = s->n_vocab;
    if (k > 0) {
        realm_candidate small[2 * REALM_TOP_LOGPROBS_MAX + LANES];
        n = gather_best(job->logits, s->n_vocab, k, small);
        for (size_t i = 1; i < n; i++)
            for (size_t j = i; j > 0 && before(small[j], small[j - 1]); j--) swap(&small[j], &small[j - 1]);
        for (size_t i = 0; i < n; i++)
            job->top[i] = (realm_top_logprob){small[i].id, (float)((double)small[i].x - log_sum)};
    }
    job->n_top = (uint32_t)n;
}

void realm_sampler_run(realm_sampler *s, realm_sample_job *job) {
    const realm_sampling *p = job->sampling;
    const float *x = job->logits;
    const float raw_max = max_of(x, s->n_vocab);
    job->failed = !isfinite(raw_max);
    if (job->failed) return;
    if (job->target >= 0) {
        job->id = job->target;
    } else {
        float max = raw_max;
        if (p->n_bias > 0 || has_penalties(p)) {
            memcpy(s->adjusted, x, s->n_vocab * sizeof *x);
            for (size_t i = 0; i < p->n_bias; i++) s->adjusted[p->bias[i].id] += p->bias[i].bias;
            if (has_penalties(p)) apply_penalties(s, job);
            x = s->adjusted;
            max = max_of(x, s->n_vocab);
            job->failed = !isfinite(max);
            if (job->failed) return;
        }
        job->id = choose(s, job, x, max);
    }
    if (job->logprob) say_logprobs(s, job, raw_max);
}

/* ---- parameters ------------------------------------------------------------------------------------------------- */

void realm_sampling_init(realm_sampling *s) {
    *s = (realm_sampling){.temperature = 1.0f, .top_p = 1.0f, .repeat_penalty = 1.0f};
}

static realm_status bad(realm_error *err, const char *field, double v, const char *range) {
    return realm_error_set(err, REALM_E_RANGE, "%s is %g, it must be %s", field, v, range);
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
    return REALM_OK;
}
