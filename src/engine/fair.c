/* engine/fair.c - a step for everybody that is nobody's burden.
 *
 * What is promised: with accounts 1 .. n active, each one's time between tokens is that of its weighted share of the
 * machine, alone_i * W / w_i, where alone_i is a step with its rows only, w_i its weight and W the sum of weights. A
 * step serves all accounts at once, so its predicted time may not exceed the smallest of these. Within that time:
 *
 *      1. every account gets one of its generations' turns (or a prompt row), whatever it takes to compute
 *      2. then the account that has been served least for its weight is next, again and again: a turn, or a block of
 *         its prompt, until nothing more fits or nothing more is wanted
 *
 * So a step with one generation for each account holds them all, an account alone has the machine to itself, and a
 * flood is left out by turns: its generations rotate. What each was served is counted in measured time, the step's
 * fixed part divided by weight among those that were in it (virtual counters: Sheng et al., "Fairness in serving large
 * language models", OSDI 2024). Credit is not hoarded: an account that comes back, and one that gets all it wants, is
 * lifted to the least served of those that were left wanting.
 *
 * Costs are learned from steps: time = fixed + rows + rows with logits + positions looked back on. Only ratios matter
 * here, so a machine that slows down as a whole changes nothing. A Kalman filter over factors on a prior made of what
 * a step moves through memory, on relative errors; steps that were disturbed are left out. Steps that are all
 * alike do not tell the fixed part from that of a row: when the filter is in doubt about the step that the promise
 * rests on, every eighth step is there to learn: by turns a small one, with all turns
 * of its account and the first ones of the others, and one larger than allowed. That is needed for some time at the
 * start, and seldom later.
 *
 * Sampling is measured generation by generation, as what it takes is up to who asks: a slow grammar, a long chain. Each
 * account is charged its own, and expected to take as much again when the next step is planned. A turn whose sampling
 * is slow may wait while others that want more have had less. It can still take a step past the promise, for all in it;
 * then its account misses steps, until the others have had their parts of as much time, and they share these as if it
 * were not there. Nobody waits for that longer than its own share of the machine would make it wait.
 *
 * Tokens per second are a bucket of one second's worth, filled by the clock: an account with less than one token in it
 * misses its turns until there is one.
 */
#include "engine/fair.h"

#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"

#define SLACK 1.1                         /* of the promise: costs are predicted, not known */
#define STALL_NS (50.0 * REALM_NS_PER_MS) /* of prompts beside decoding, also of the same account */
#define STALL_MIN_ROWS 32u
#define BLOCK_ROWS 16u     /* of a prompt, granted at a time */
#define SAMPLING_LEAST 0.1 /* of the promise: left for sampling where computing takes more than is promised */
#define DEBT_MOST 0.25     /* of the promise */
#define SLOW_SAMPLING 0.5  /* of its account's part of the promise */

/* ---- costs ------------------------------------------------------------------------------------------------------ */

#define PRIOR_BYTES_PER_NS 10.0 /* the first step corrects it */
#define NOISE 0.02              /* variance of a step's relative time */
#define DRIFT 2e-5              /* by which a factor may change from step to step */
#define SURE_MOST 1.0
#define FIRST_STEPS 4u
#define GATE 9.0    /* variances */
#define OFF_MOST 4u /* steps in a row */
#define UNSURE 0.25
#define DOUBT_MOST 0.004 /* of what the promise rests on: above it a step now and then is there to learn */
#define ASK_EVERY 8u
#define ASK_LARGER 1.5

void realm_cost_init(realm_cost_model *m, double weight_bytes, double kv_token_bytes) {
    const double fixed = weight_bytes / PRIOR_BYTES_PER_NS, position = kv_token_bytes / PRIOR_BYTES_PER_NS;
    *m = (realm_cost_model){.prior = {fixed, 0.1 * fixed, 0.02 * fixed, position, 0.1 * position}};
    for (uint32_t i = 0; i < REALM_COST_TERMS; i++) {
        m->factor[i] = 1;
        m->cov[i][i] = SURE_MOST;
    }
}

double realm_cost_fixed(const realm_cost_model *m) { return m->prior[0] * m->factor[0]; }

static void terms(const realm_cost_model *m, const realm_work *w, double *x) {
    const double amount[REALM_COST_TERMS] = {1, w->rows, w->out, w->ctx_one, w->ctx_many};
    for (uint32_t i = 0; i < REALM_COST_TERMS; i++) x[i] = m->prior[i] * amount[i];
}

double realm_cost_of(const realm_cost_model *m, const realm_work *work) {
    double x[REALM_COST_TERMS], sum = 0;
    terms(m, work, x);
    for (uint32_t i = 1; i < REALM_COST_TERMS; i++) sum += x[i] * m->factor[i];
    return sum;
}

double realm_cost_doubt(const realm_cost_model *m, const realm_work *work) {
    double x[REALM_COST_TERMS], var = 0;
    const double ns = realm_cost_fixed(m) + realm_cost_of(m, work);
    terms(m, work, x);
    for (uint32_t i = 0; i < REALM_COST_TERMS; i++)
        for (uint32_t j = 0; j < REALM_COST_TERMS; j++) var += m->cov[i][j] * x[i] / ns * x[j] / ns;
    return var;
}

static void rescale(realm_cost_model *m, double by) {
    for (uint32_t i = 0; i < REALM_COST_TERMS; i++) m->prior[i] *= by;
}

/* Whether this time is taken for what the steps cost. The first ones set the scale, by the fastest of them. A time far
 * off what is known is a disturbance, unless it comes again and again: then what was known is doubted. */
static bool believe(realm_cost_model *m, double times, double off, double var) {
    if (m->n < FIRST_STEPS) {
        if (m->n++ == 0 || times < 1) rescale(m, times);
        return false;
    }
    if (off * off <= GATE * var) {
        m->n_off = 0;
        return true;
    }
    if (++m->n_off < OFF_MOST) return false;
    for (uint32_t i = 0; i < REALM_COST_TERMS; i++) m->cov[i][i] = fmax(m->cov[i][i], UNSURE);
    m->n_off = 0;
    return true;
}

static double within(uint32_t i, double factor) {
    const double least = i == 0 ? 0.1 : 0.01, most = i == 0 ? 5 : 20;
    return fmin(fmax(factor, least), most);
}

/* A factor that would leave its bounds is put on the nearer one, and the others go to where they are expected given
 * that: left alone they would go on explaining, step after step, what this one cannot. */
static void keep_within_bounds(realm_cost_model *m) {
    for (uint32_t k = 0; k < 2 * REALM_COST_TERMS; k++) {
        const uint32_t i = k % REALM_COST_TERMS;
        const double off = m->factor[i] - within(i, m->factor[i]);
        if (off == 0) continue;
        for (uint32_t j = 0; j < REALM_COST_TERMS; j++) m->factor[j] -= m->cov[j][i] / m->cov[i][i] * off;
    }
    for (uint32_t i = 0; i < REALM_COST_TERMS; i++) m->factor[i] = within(i, m->factor[i]);
}

void realm_cost_learn(realm_cost_model *m, const realm_work *work, double ns) {
    double x[REALM_COST_TERMS], px[REALM_COST_TERMS] = {0}, var = NOISE, predicted = 0;
    if (!(ns > 0) || !isfinite(ns)) return;
    terms(m, work, x);
    for (uint32_t i = 0; i < REALM_COST_TERMS; i++) {
        x[i] /= ns;
        predicted += x[i] * m->factor[i];
    }
    for (uint32_t i = 0; i < REALM_COST_TERMS; i++) {
        for (uint32_t j = 0; j < REALM_COST_TERMS; j++) px[i] += m->cov[i][j] * x[j];
        var += px[i] * x[i];
    }
    const double off = fmax(1 - predicted, -1);
    if (!believe(m, 1 / predicted, off, var)) return;
    for (uint32_t i = 0; i < REALM_COST_TERMS; i++) {
        m->factor[i] += px[i] / var * off;
        for (uint32_t j = 0; j < REALM_COST_TERMS; j++) m->cov[i][j] -= px[i] * px[j] / var;
        m->cov[i][i] = fmin(m->cov[i][i] + DRIFT, SURE_MOST);
    }
    keep_within_bounds(m);
}

/* Of the first n rows that a want could compute. */
static realm_work work_of(const realm_want *w, uint32_t n) {
    const double rows = n, positions = rows * w->n_past + rows * (rows + 1) / 2;
    const uint32_t last = w->n_rows - n; /* rows left behind */
    realm_work work = {.rows = rows, .out = w->n_out > last ? w->n_out - last : 0};
    if (n == 1)
        work.ctx_one = positions;
    else
        work.ctx_many = positions;
    return work;
}

static double cost_of(const realm_fair *f, const realm_want *w, uint32_t n) {
    const realm_work work = work_of(w, n);
    return n == 0 ? 0 : realm_cost_of(&f->cost, &work) + work.out * w->share->sample_ns;
}

/* ---- a plan ----------------------------------------------------------------------------------------------------- */

enum { SHORT, PROMPT };

realm_status realm_fair_init(realm_fair *f, uint32_t max_accounts, double weight_bytes, double kv_token_bytes,
                             realm_error *err) {
    *f = (realm_fair){.cap = max_accounts};
    realm_cost_init(&f->cost, weight_bytes, kv_token_bytes);
    f->active = realm_calloc(max_accounts, sizeof *f->active);
    return f->active ? REALM_OK : realm_error_set(err, REALM_E_NOMEM, "no memory for %u accounts", max_accounts);
}

void realm_fair_release(realm_fair *f) {
    realm_free(f->active);
    *f = (realm_fair){0};
}

static void fill_bucket(realm_share *s, uint64_t now) {
    const double rate = (double)s->tokens_per_second;
    if (s->bucket_ns == 0)
        s->bucket = rate;
    else if (now > s->bucket_ns)
        s->bucket = fmin(s->bucket + rate * (double)(now - s->bucket_ns) / (double)REALM_NS_PER_S, rate);
    s->bucket_ns = now;
}

static void wake_at(realm_fair *f, uint64_t at) {
    if (f->wake_ns == 0 || at < f->wake_ns) f->wake_ns = at;
}

/* False when it has to wait, until when is noted. */
static bool may_go(realm_fair *f, realm_share *s, uint64_t now) {
    if (now >= s->held_until_ns) s->held_until_ns = 0;
    if (s->held_until_ns != 0) {
        f->held_weights += s->weight;
        wake_at(f, s->held_until_ns);
        return false;
    }
    if (s->tokens_per_second == 0) return true;
    fill_bucket(s, now);
    if (s->bucket >= 1) return true;
    const uint64_t at = now + 1 + (uint64_t)((1 - s->bucket) * (double)REALM_NS_PER_S / (double)s->tokens_per_second);
    wake_at(f, at);
    return false;
}

/* First sight of an account in this step. */
static void enter(realm_fair *f, realm_share *s, uint64_t now) {
    s->first[SHORT] = s->first[PROMPT] = s->last[SHORT] = s->last[PROMPT] = NULL;
    s->alone_ns = s->pending_ns = s->used_ns = s->sampled_ns = s->sampling_ns = 0;
    s->n_granted = 0;
    s->done = s->left_out = s->limited = false;
    s->active = may_go(f, s, now);
    if (!s->active) return;
    s->prompt_first = s->tokens_per_second > 0 && !s->prompt_first;
    if (s->last_step + 1 != f->step && s->served_ns < f->floor_ns) s->served_ns = f->floor_ns;
    s->last_step = f->step;
    if (f->n_active < f->cap) f->active[f->n_active++] = s;
}

static void sort_wants(realm_fair *f, realm_want *wants, uint32_t n, uint64_t now) {
    f->n_active = 0;
    f->held_weights = 0;
    f->wake_ns = 0;
    for (uint32_t i = 0; i < n; i++) wants[i].share->alone_ns = -1; /* not seen yet */
    for (uint32_t i = 0; i < n; i++) {
        realm_want *w = &wants[i];
        realm_share *s = w->share;
        w->granted = w->used = w->charged = 0;
        w->sample_ns = 0;
        w->next = NULL;
        if (w->n_rows == 0) continue;
        if (s->alone_ns < 0) enter(f, s, now);
        if (!s->active) continue;
        const int kind = w->is_short ? SHORT : PROMPT;
        if (s->last[kind])
            s->last[kind]->next = w;
        else
            s->first[kind] = w;
        s->last[kind] = w;
    }
}

/* The one behind the last that had a turn comes first. */
static void rotate(realm_share *s) {
    realm_want *before = NULL, *w = s->first[SHORT];
    while (w && w->order <= s->cursor) {
        before = w;
        w = w->next;
    }
    if (!w || !before) return;
    s->last[SHORT]->next = s->first[SHORT];
    before->next = NULL;
    s->last[SHORT] = before;
    s->first[SHORT] = w;
}

static void add_work(realm_work *sum, realm_work w) {
    sum->rows += w.rows;
    sum->out += w.out;
    sum->ctx_one += w.ctx_one;
    sum->ctx_many += w.ctx_many;
}

/* A step with all that this account wants, and nothing else. */
static void measure_alone(const realm_fair *f, realm_share *s, uint32_t prompt_rows) {
    s->alone = (realm_work){0};
    for (const realm_want *w = s->first[SHORT]; w; w = w->next) add_work(&s->alone, work_of(w, w->n_rows));
    for (const realm_want *w = s->first[PROMPT]; w && prompt_rows > 0; w = w->next) {
        uint32_t n = REALM_MIN(w->n_rows, prompt_rows);
        add_work(&s->alone, work_of(w, n));
        prompt_rows -= n;
    }
    s->alone_ns = realm_cost_fixed(&f->cost) + realm_cost_of(&f->cost, &s->alone) + s->alone.out * s->sample_ns;
}

typedef struct plan {
    realm_fair *f;
    double ns, most_ns;
    uint32_t prompt_rows; /* left */
} plan;

static void grant(plan *p, realm_share *s, realm_want *w, uint32_t n) {
    const double ns = cost_of(p->f, w, w->granted + n) - cost_of(p->f, w, w->granted);
    w->granted += n;
    s->n_granted += n;
    s->sampling_ns += work_of(w, w->granted).out * s->sample_ns; /* it is granted its last rows once */
    s->pending_ns += ns / s->weight;
    p->ns += ns;
    if (w->is_short) {
        s->cursor = w->order;
        s->first[SHORT] = w->next;
        return;
    }
    p->prompt_rows -= n;
    if (w->granted == w->n_rows) s->first[PROMPT] = w->next;
}

static uint32_t bucket_rows(realm_share *s, uint32_t n) {
    if (s->tokens_per_second == 0) return n;
    const double left = s->bucket - s->n_granted;
    if (left >= n) return n;
    s->limited = true;
    return left >= 1 ? (uint32_t)left : 0;
}

/* The next turn or block of an account; without `force` only if it fits. Where tokens_per_second leaves it but a few
 * rows, decoding and prompts have them by turns. */
static void serve(plan *p, realm_share *s, bool force) {
    realm_want *w = s->first[SHORT];
    uint32_t n;
    if (w && !(s->prompt_first && s->first[PROMPT])) {
        if (!force && (bucket_rows(s, 1) == 0 || p->ns + cost_of(p->f, w, w->n_rows) > p->most_ns))
            s->done = true;
        else
            grant(p, s, w, w->n_rows);
        return;
    }
    w = s->first[PROMPT];
    n = w ? REALM_MIN(w->n_rows - w->granted, force ? 1u : BLOCK_ROWS) : 0;
    n = REALM_MIN(bucket_rows(s, n), p->prompt_rows);
    if (!force && n > 0) {
        const double ns = cost_of(p->f, w, w->granted + n) - cost_of(p->f, w, w->granted);
        if (p->ns + ns > p->most_ns) { /* what still fits is the last */
            s->done = true;
            n = ns > 0 && p->most_ns > p->ns ? (uint32_t)((p->most_ns - p->ns) / ns * n) : 0;
        }
    }
    if (n == 0)
        s->done = true;
    else
        grant(p, s, w, n);
}

/* How much longer sampling took for an account than its part of `left`. */
static double beyond_part(const realm_fair *f, const realm_share *s, double sampling_ns, double left) {
    return fmax(sampling_ns - left * s->weight / f->weights, 0);
}

static double left_for_sampling(const realm_fair *f, double computing_ns) {
    return fmax(f->most_ns - computing_ns, SAMPLING_LEAST * f->most_ns);
}

/* Whether its turn can wait: its sampling is slow, it has been served more than others that want more, and has not
 * waited yet for as long as its share of the machine may make it wait. */
static bool is_ahead(realm_fair *f, const realm_share *s, uint64_t now) {
    const double step = f->most_ns / f->weights; /* a part of it, by its weight */
    if (s->sample_ns <= SLOW_SAMPLING * step * s->weight || s->served_ns <= f->floor_ns + step) return false;
    const uint64_t until = s->turn_ns + (uint64_t)(s->alone_ns * f->weights / s->weight);
    if (now >= until) return false;
    wake_at(f, until);
    return true;
}

/* Of the turns granted so far, what their sampling is expected to take beyond their accounts' parts: others need not
 * leave room for it, as it is paid for afterwards. */
static double expected_beyond(const realm_fair *f, double granted_ns) {
    double sampling = 0, beyond = 0;
    for (uint32_t i = 0; i < f->n_active; i++) sampling += f->active[i]->sampling_ns;
    const double left = left_for_sampling(f, granted_ns - sampling);
    for (uint32_t i = 0; i < f->n_active; i++) beyond += beyond_part(f, f->active[i], f->active[i]->sampling_ns, left);
    return beyond;
}

static realm_share *least_served(const realm_fair *f) {
    realm_share *best = NULL;
    double least = INFINITY;
    for (uint32_t i = 0; i < f->n_active; i++) {
        realm_share *s = f->active[i];
        if (s->done || s->served_ns + s->pending_ns >= least) continue;
        best = s;
        least = s->served_ns + s->pending_ns;
    }
    return best;
}

void realm_fair_plan(realm_fair *f, realm_want *wants, uint32_t n, uint32_t chunk_rows, uint64_t now_ns) {
    plan p = {.f = f, .ns = realm_cost_fixed(&f->cost), .most_ns = INFINITY, .prompt_rows = chunk_rows};
    bool decoding = false;
    f->step++;
    f->weights = 0;
    f->most_ns = INFINITY;
    sort_wants(f, wants, n, now_ns);
    if (f->n_active == 0 && f->held_weights > 0) { /* nobody else is there */
        for (uint32_t i = 0; i < n; i++) wants[i].share->held_until_ns = 0;
        sort_wants(f, wants, n, now_ns);
    }
    for (uint32_t i = 0; i < f->n_active; i++) {
        f->weights += f->active[i]->weight;
        decoding |= f->active[i]->first[SHORT] != NULL;
    }
    if (decoding && f->cost.n > 0) {
        const realm_work row = {.rows = 1};
        const double rows = STALL_NS / realm_cost_of(&f->cost, &row);
        if (rows < p.prompt_rows) p.prompt_rows = REALM_MIN(p.prompt_rows, REALM_MAX((uint32_t)rows, STALL_MIN_ROWS));
    }
    realm_share *tightest = NULL;
    for (uint32_t i = 0; i < f->n_active; i++) {
        realm_share *s = f->active[i];
        measure_alone(f, s, p.prompt_rows);
        rotate(s);
        const double most = SLACK * s->alone_ns * f->weights / s->weight;
        if (f->n_active < 2 || most >= p.most_ns) continue;
        p.most_ns = most;
        tightest = s;
    }
    f->most_ns = p.most_ns;
    const realm_share *least = least_served(f);
    for (uint32_t i = 0; i < f->n_active; i++) {
        realm_share *s = f->active[i];
        s->done = s != least && is_ahead(f, s, now_ns);
        if (!s->done) serve(&p, s, true);
    }
    if (tightest) p.most_ns += expected_beyond(f, p.ns);
    if (tightest && f->step % ASK_EVERY == 0 && realm_cost_doubt(&f->cost, &tightest->alone) > DOUBT_MOST) {
        if (f->step % (2 * ASK_EVERY) == 0) {
            while (!tightest->done) serve(&p, tightest, false);
            return;
        }
        p.most_ns *= ASK_LARGER;
    }
    for (realm_share *s; (s = least_served(f));) serve(&p, s, false);
}

/* ---- afterwards ------------------------------------------------------------------------------------------------- */

/* Credit is for those who were left wanting. */
static void lift(realm_fair *f) {
    double least = INFINITY, most = 0;
    for (uint32_t i = 0; i < f->n_active; i++) {
        const realm_share *s = f->active[i];
        if (s->left_out && s->served_ns < least) least = s->served_ns;
        if (s->served_ns > most) most = s->served_ns;
    }
    f->floor_ns = fmax(f->floor_ns, isfinite(least) ? least : most);
    for (uint32_t i = 0; i < f->n_active; i++) {
        realm_share *s = f->active[i];
        if (!s->left_out && s->served_ns < f->floor_ns) s->served_ns = f->floor_ns;
    }
}

/* What a step took beyond the promise because of sampling is owed by those whose sampling took more than their part of
 * what the promise leaves for it; what it took less pays for the debts of all. Whoever owes too much waits while the
 * others have their parts of as much time. */
static void settle_debts(realm_fair *f, double computing_ns, uint64_t now) {
    if (!isfinite(f->most_ns) || f->cost.n < FIRST_STEPS) return;
    const double left = left_for_sampling(f, computing_ns);
    double sampled = 0, over = 0;
    for (uint32_t i = 0; i < f->n_active; i++) {
        const realm_share *s = f->active[i];
        sampled += s->sampled_ns;
        over += beyond_part(f, s, s->sampled_ns, left);
    }
    const double excess = sampled - left;
    for (uint32_t i = 0; i < f->n_active; i++) {
        realm_share *s = f->active[i];
        const double part = excess > 0 ? beyond_part(f, s, s->sampled_ns, left) / over : 1;
        s->debt_ns = fmax(s->debt_ns + excess * part, 0);
        if (s->debt_ns < DEBT_MOST * f->most_ns) continue;
        s->held_until_ns = now + (uint64_t)(s->debt_ns * ((f->weights + f->held_weights) / s->weight - 1));
        s->debt_ns = 0;
    }
}

static void learn_sampling(realm_share *s, const realm_work *work, double ns) {
    if (work->out == 0) return;
    const double row = ns / work->out;
    s->sample_ns = s->sample_ns > 0 ? s->sample_ns + 0.25 * (row - s->sample_ns) : row;
}

void realm_fair_charge(realm_fair *f, realm_want *wants, uint32_t n, double ns, double sampling_ns, uint64_t now_ns) {
    realm_work all = {0};
    double weights = 0, sum = realm_cost_fixed(&f->cost), sampled = 0;
    for (uint32_t i = 0; i < n; i++) sampled += wants[i].sample_ns;
    const double side_by_side = sampled > sampling_ns ? sampling_ns / sampled : 1; /* several threads sample */
    for (uint32_t i = 0; i < n; i++) {
        const realm_want *w = &wants[i];
        realm_share *s = w->share;
        if (w->granted < w->n_rows && !s->limited) s->left_out = true;
        if (w->used == 0) continue;
        const realm_work work = work_of(w, w->used);
        add_work(&all, work);
        const double cost = realm_cost_of(&f->cost, &work);
        if (s->used_ns == 0) weights += s->weight;
        s->used_ns += cost;
        sum += cost;
        s->bucket -= w->charged;
        s->sampled_ns += w->sample_ns * side_by_side;
        learn_sampling(s, &work, w->sample_ns * side_by_side);
    }
    if (all.rows == 0) return;
    ns += sampling_ns - sampled * side_by_side; /* of sampling, what is nobody's own: waking threads, a busy machine */
    const double scale = ns / sum, fixed = realm_cost_fixed(&f->cost) / weights;
    for (uint32_t i = 0; i < f->n_active; i++) {
        realm_share *s = f->active[i];
        if (s->used_ns == 0) continue;
        s->served_ns += scale * (s->used_ns / s->weight + fixed) + s->sampled_ns / s->weight;
        s->turn_ns = now_ns;
    }
    settle_debts(f, sum, now_ns);
    lift(f);
    realm_cost_learn(&f->cost, &all, ns);
}
