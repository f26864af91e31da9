/* The plan of steps against a machine that is simulated: its own true costs (not the form that the model assumes, with
 * noise and outliers), its own clock. What each account waits is held against the promise: at most 1.2 times what a
 * step of its own would take, times the sum of weights by its weight. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "engine/fair.h"
#include "support/random.h"

#define GENS_MAX 400u
#define ACCOUNTS_MAX 40u
#define CHUNK 256u

typedef struct gen {
    bool alive;
    uint32_t account, past, left; /* rows of its prompt that are left; 1: decodes */
    uint32_t n_tokens;
    double submitted, first, last; /* times of its tokens, ns */
} gen;

typedef struct sim {
    realm_fair f;
    realm_share shares[ACCOUNTS_MAX];
    gen gens[GENS_MAX];
    realm_want wants[GENS_MAX];
    uint32_t which[GENS_MAX], n_gens;
    double now, noise;
    uint64_t tokens[ACCOUNTS_MAX], rows[ACCOUNTS_MAX], step_rows[ACCOUNTS_MAX];
    double sample_ns[ACCOUNTS_MAX]; /* what sampling a row of theirs takes */
    double lost;                    /* ns for which somebody else had the processor: nobody's share */
    double longest_step;
    bool still; /* contexts do not grow */
} sim;

/* A step of 8 ms that a few rows ride along in, then pay for; logits dear, a long context too. */
static double row_price = 1; /* of other machines: a fast processor at slow memory, or the other way round */
static double true_cost(double rows, double out, double ctx_one, double ctx_many) {
    if (rows == 0) return 0;
    double ns = 8e6 + row_price * (0.35e6 * out + 700 * ctx_one + 60 * ctx_many);
    return ns + row_price * (rows <= 4 ? 0.15e6 * rows : 0.6e6 + 0.5e6 * (rows - 4));
}

static void sim_open(sim *s) {
    memset(s, 0, sizeof *s);
    s->noise = 0.1;
    assert_int_equal(realm_fair_init(&s->f, ACCOUNTS_MAX, 90e6, 20e3, NULL), REALM_OK);
    for (uint32_t i = 0; i < ACCOUNTS_MAX; i++) s->shares[i].weight = 100;
}

static void sim_close(sim *s) { realm_fair_release(&s->f); }

static uint32_t add(sim *s, uint32_t account, uint32_t past, uint32_t prompt) {
    assert_true(s->n_gens < GENS_MAX);
    s->gens[s->n_gens] = (gen){.alive = true, .account = account, .past = past, .left = prompt, .submitted = s->now};
    return s->n_gens++;
}

/* Time of a step in which only this account's rows are. */
static double alone(const sim *s, uint32_t account) {
    double rows = 0, out = 0, ctx_one = 0, ctx_many = 0, prompt = CHUNK;
    for (uint32_t i = 0; i < s->n_gens; i++) {
        const gen *g = &s->gens[i];
        if (!g->alive || g->account != account) continue;
        double n = fmin(g->left, g->left == 1 ? 1 : prompt);
        if (g->left > 1) prompt -= n;
        rows += n;
        out += n == g->left;
        *(n == 1 ? &ctx_one : &ctx_many) += n * g->past + n * (n + 1) / 2;
    }
    return true_cost(rows, out, ctx_one, ctx_many) + out * s->sample_ns[account];
}

/* One step; its time in ns, 0 when nobody could run. */
static double step(sim *s) {
    uint32_t n = 0;
    double rows = 0, out = 0, ctx_one = 0, ctx_many = 0, sampling = 0;
    for (uint32_t i = 0; i < s->n_gens; i++) {
        gen *g = &s->gens[i];
        if (!g->alive) continue;
        s->which[n] = i;
        s->wants[n++] = (realm_want){.share = &s->shares[g->account],
                                     .order = i + 1,
                                     .n_rows = g->left,
                                     .is_short = g->left == 1,
                                     .n_past = g->past,
                                     .n_out = 1};
    }
    memset(s->step_rows, 0, sizeof s->step_rows);
    realm_fair_plan(&s->f, s->wants, n, CHUNK, (uint64_t)s->now);
    for (uint32_t i = 0; i < n; i++) {
        realm_want *w = &s->wants[i];
        gen *g = &s->gens[s->which[i]];
        assert_true(w->granted <= w->n_rows);
        w->used = w->charged = w->granted;
        rows += w->used;
        out += w->used == g->left;
        if (w->used == g->left && s->sample_ns[g->account] > 0)
            w->sample_ns = s->sample_ns[g->account] * (0.9 + 0.2 * random_unit());
        sampling += w->sample_ns;
        if (w->used > 0)
            *(w->used == 1 ? &ctx_one : &ctx_many) += w->used * (double)g->past + w->used * (w->used + 1.0) / 2;
        s->step_rows[g->account] += w->used;
        s->rows[g->account] += w->used;
    }
    if (rows == 0) return 0;
    double ns = true_cost(rows, out, ctx_one, ctx_many) * (1 + s->noise * (random_unit() - 0.5) * 2);
    const double undisturbed = ns;
    if (s->noise > 0 && random_unit() < 0.01) ns *= 5;
    s->lost += ns - undisturbed;
    s->now += ns + sampling;
    if (undisturbed + sampling > s->longest_step) s->longest_step = undisturbed + sampling;
    for (uint32_t i = 0; i < n; i++) {
        gen *g = &s->gens[s->which[i]];
        if (s->wants[i].used == 0) continue;
        if (!s->still) g->past += s->wants[i].used;
        g->left -= s->wants[i].used;
        if (g->left > 0) continue;
        g->left = 1;
        if (g->n_tokens++ == 0) g->first = s->now;
        g->last = s->now;
        s->tokens[g->account]++;
    }
    realm_fair_charge(&s->f, s->wants, n, ns, sampling, (uint64_t)s->now);
    return ns + sampling;
}

/* Mean time between tokens of an account's generations over `steps`, by what its own share of the machine would give.
 * Contexts stay as long as they are. */
static void ratios(sim *s, uint32_t steps, uint32_t n_accounts, double *ratio) {
    double want[ACCOUNTS_MAX], weights = 0, begin = s->now - s->lost;
    uint32_t count[ACCOUNTS_MAX] = {0};
    memset(s->tokens, 0, sizeof s->tokens);
    for (uint32_t a = 0; a < n_accounts; a++) {
        want[a] = alone(s, a);
        if (want[a] > 0) weights += s->shares[a].weight;
    }
    for (uint32_t i = 0; i < s->n_gens; i++) count[s->gens[i].account] += s->gens[i].alive;
    s->still = true;
    for (uint32_t i = 0; i < steps; i++) assert_true(step(s) > 0);
    s->still = false;
    for (uint32_t a = 0; a < n_accounts; a++) {
        if (count[a] == 0) continue;
        double between = (s->now - s->lost - begin) * count[a] / (double)s->tokens[a];
        ratio[a] = between / (want[a] * weights / s->shares[a].weight);
    }
}

/* Learns for some steps; then no account waits longer than `most` of its fair time. */
static void expect_fair(sim *s, const char *what, size_t which, uint32_t n_accounts, int learn, uint32_t steps,
                        double most) {
    double ratio[ACCOUNTS_MAX];
    for (int i = 0; i < learn; i++) (void)step(s);
    ratios(s, steps, n_accounts, ratio);
    for (uint32_t a = 0; a < n_accounts; a++)
        if (!(ratio[a] <= most))
            fail_msg("%s %zu: account %u of %u waits %.2f of its fair time", what, which, a, n_accounts, ratio[a]);
}

static void decoding(void **state) {
    (void)state;
    static const struct {
        uint32_t n, gens[6], weight[6], ctx[6];
    } cases[] = {
        {2, {64, 1}, {100, 100}, {200, 200}},
        {2, {64, 1}, {100, 300}, {200, 200}},
        {2, {64, 1}, {300, 100}, {200, 200}},
        {2, {64, 1}, {1000, 1}, {200, 200}},
        {2, {1, 1}, {100, 100}, {100, 100}},
        {2, {32, 32}, {100, 100}, {100, 100}},
        {2, {32, 32}, {100, 400}, {100, 100}},
        {2, {64, 4}, {100, 100}, {200, 2000}},
        {3, {64, 64, 1}, {100, 100, 100}, {200, 200, 200}},
        {4, {64, 2, 1, 8}, {100, 50, 200, 100}, {100, 900, 300, 600}},
        {6, {64, 1, 1, 1, 1, 1}, {100, 100, 100, 100, 100, 100}, {200, 200, 200, 200, 200, 200}},
        {6, {20, 20, 20, 20, 20, 20}, {100, 200, 300, 100, 100, 100}, {200, 200, 200, 200, 200, 200}},
    };
    for (size_t k = 0; k < REALM_ARRAY_LEN(cases); k++) {
        static sim s;
        sim_open(&s);
        for (uint32_t a = 0; a < cases[k].n; a++) {
            s.shares[a].weight = cases[k].weight[a];
            for (uint32_t g = 0; g < cases[k].gens[a]; g++) (void)add(&s, a, cases[k].ctx[a], 1);
        }
        expect_fair(&s, "case", k, cases[k].n, 100, 1500, 1.2);
        sim_close(&s);
    }
}

/* Random accounts, weights, generations, contexts; on machines where a step's fixed part is nearly all of it, too,
 * which is where rows were once taken for thirty times as dear as they are, and few of them planned from then on.
 *
 * Why 1.2: a step is planned for 1.1 times the promise (SLACK), and an account's turn may be one step late where its
 * generations rotate. What is left is for prices that are known to within a few percent under noise of 10%. The
 * worst of 38,000 other cases waited 1.17 times its share. */
static void anything(void **state) {
    static const uint64_t seeds[] = {1, 77, 222, 245, 258, 278, 288, 308, 322, 399};
    (void)state;
    for (int round = 0; round < 60 * (int)REALM_ARRAY_LEN(seeds); round++) {
        static sim s;
        if (round % 60 == 0) rng = seeds[round / 60];
        sim_open(&s);
        row_price = round % 3 == 0 ? 0.1 : round % 3 == 1 ? 1 : 2;
        uint32_t n = 2 + (uint32_t)(random_unit() * 6);
        for (uint32_t a = 0; a < n; a++) {
            s.shares[a].weight = 50 + (uint32_t)(random_unit() * 250);
            uint32_t gens = 1 + (uint32_t)(random_unit() * random_unit() * random_unit() * 50);
            for (uint32_t g = 0; g < gens; g++) (void)add(&s, a, 20 + (uint32_t)(random_unit() * 500), 1);
        }
        expect_fair(&s, "round", (size_t)round, n, 100, 800, 1.2);
        sim_close(&s);
    }
    row_price = 1;
}

/* One whose sampling is slow has its weighted share of the machine's time, as others have theirs. */
static void slow_sampling(void **state) {
    (void)state;
    static const struct {
        uint32_t n, gens[4], weight[4];
        double sample_ms[4];
    } cases[] = {
        {2, {1, 1}, {100, 100}, {50, 0}},
        {2, {1, 1}, {100, 300}, {50, 0.1}},
        {2, {1, 1}, {300, 100}, {50, 0.1}},
        {2, {8, 1}, {100, 100}, {20, 0.1}},
        {2, {1, 16}, {100, 100}, {30, 0.1}},
        {2, {4, 4}, {100, 100}, {40, 40}},
        {2, {32, 32}, {100, 100}, {0.2, 0.2}},
        {3, {1, 1, 1}, {100, 100, 100}, {50, 50, 0.1}},
        {3, {4, 16, 1}, {100, 100, 100}, {50, 0.1, 0.1}},
        {4, {1, 2, 4, 1}, {100, 50, 200, 100}, {50, 5, 0.5, 0}},
    };
    for (size_t k = 0; k < REALM_ARRAY_LEN(cases); k++) {
        static sim s;
        sim_open(&s);
        for (uint32_t a = 0; a < cases[k].n; a++) {
            s.shares[a].weight = cases[k].weight[a];
            s.sample_ns[a] = cases[k].sample_ms[a] * 1e6;
            for (uint32_t g = 0; g < cases[k].gens[a]; g++) (void)add(&s, a, 200, 1);
        }
        expect_fair(&s, "case", k, cases[k].n, 200, 1500, 1.2);
        sim_close(&s);
    }
    /* Anybody. The turns of several slow ones may come together, so the bound is looser. */
    for (int round = 0; round < 60; round++) {
        static sim s;
        sim_open(&s);
        uint32_t n = 2 + (uint32_t)(random_unit() * 4);
        for (uint32_t a = 0; a < n; a++) {
            s.shares[a].weight = 50 + (uint32_t)(random_unit() * 250);
            s.sample_ns[a] = 50e6 * pow(random_unit(), 6);
            uint32_t gens = 1 + (uint32_t)(random_unit() * random_unit() * random_unit() * 20);
            for (uint32_t g = 0; g < gens; g++) (void)add(&s, a, 20 + (uint32_t)(random_unit() * 500), 1);
        }
        expect_fair(&s, "round", (size_t)round, n, 200, 1500, 1.4);
        sim_close(&s);
    }
}

/* Nothing is lost where nobody is in the way. */
static void full_batches(void **state) {
    (void)state;
    static sim s;
    sim_open(&s);
    for (uint32_t g = 0; g < 64; g++) (void)add(&s, 0, 100, 1);
    for (int i = 0; i < 300; i++) {
        (void)step(&s);
        assert_int_equal(s.step_rows[0], 64);
    }
    sim_close(&s);
    sim_open(&s);
    for (uint32_t a = 0; a < 16; a++) (void)add(&s, a, 100 + 20 * a, 1);
    for (int i = 0; i < 300; i++) {
        (void)step(&s);
        for (uint32_t a = 0; a < 16; a++) assert_int_equal(s.step_rows[a], 1);
    }
    sim_close(&s);
    sim_open(&s); /* a prompt alone goes in whole chunks */
    (void)add(&s, 0, 0, 5 * CHUNK);
    for (int i = 0; i < 5; i++) {
        (void)step(&s);
        assert_int_equal(s.step_rows[0], CHUNK);
    }
    assert_int_equal(s.tokens[0], 1);
    sim_close(&s);
}

/* Of a flooding account every generation goes on: none waits for more than its round. */
static void rotation(void **state) {
    (void)state;
    static sim s;
    sim_open(&s);
    for (uint32_t g = 0; g < 64; g++) (void)add(&s, 0, 100, 1);
    (void)add(&s, 1, 100, 1);
    for (int i = 0; i < 500; i++) (void)step(&s);
    uint32_t least = UINT32_MAX, most = 0;
    for (uint32_t g = 0; g < 64; g++) {
        least = s.gens[g].n_tokens < least ? s.gens[g].n_tokens : least;
        most = s.gens[g].n_tokens > most ? s.gens[g].n_tokens : most;
    }
    assert_true(least > 0 && most - least <= 1);
    assert_int_equal(s.gens[64].n_tokens, 500); /* the quiet one is in every step */
    sim_close(&s);
}

/* A long prompt of one account, the decoding of another: neither waits for longer than its share. */
static void prompts(void **state) {
    (void)state;
    static sim s;
    sim_open(&s);
    (void)add(&s, 1, 200, 1);
    for (int i = 0; i < 100; i++) (void)step(&s);
    double quiet_alone = alone(&s, 1), begin = s.now - s.lost;
    uint64_t before = s.tokens[1];
    uint32_t g = add(&s, 0, 0, 4000);
    uint32_t steps = 0;
    for (; s.gens[g].n_tokens == 0; steps++) (void)step(&s);
    assert_int_equal(s.tokens[1] - before, steps);
    const double took = s.now - s.lost - begin, between = took / steps;
    if (between > 1.2 * 2 * quiet_alone) fail_msg("decoding beside a prompt: %.2f", between / (2 * quiet_alone));
    double whole = 0; /* the prompt with the machine to itself */
    for (uint32_t past = 0; past < 4000; past += CHUNK)
        whole += true_cost(CHUNK, past + CHUNK >= 4000, 0, CHUNK * (past + CHUNK / 2.0));
    if (took > 1.2 * 2 * whole + 2e7) fail_msg("the prompt: %.2f", took / (2 * whole));
    sim_close(&s);

    /* A quiet account comes with a prompt of one chunk while another decodes 64: its first token, again and again. */
    sim_open(&s);
    for (uint32_t i = 0; i < 64; i++) (void)add(&s, 0, 200, 1);
    for (int i = 0; i < 100; i++) (void)step(&s);
    for (int round = 0; round < 20; round++) {
        g = add(&s, 1, 0, CHUNK);
        double fair = 2 * alone(&s, 1);
        s.longest_step = 0;
        begin = s.now - s.lost;
        while (s.gens[g].n_tokens == 0) (void)step(&s);
        const double first = s.now - s.lost - begin;
        if (first > 1.2 * fair + true_cost(CHUNK, 1, 0, 0) + s.longest_step)
            fail_msg("first token after %.2f of its fair time", first / fair);
        s.gens[g].alive = false;
        for (int i = 0; i < 30; i++) (void)step(&s);
    }
    sim_close(&s);
}

/* An account that was idle, or got all it wanted, has no claim to more than its share afterwards. */
static void no_hoarding(void **state) {
    (void)state;
    for (int which = 0; which < 3; which++) {
        static sim s;
        sim_open(&s);
        s.still = true; /* all rows cost the same, so that rows can be counted instead of time */
        for (uint32_t i = 0; i < 40; i++) (void)add(&s, 0, 200, 1);
        uint32_t quiet = which == 0 ? UINT32_MAX : add(&s, 1, 200, 1); /* never there; small; small, then gone */
        for (int i = 0; i < 1000; i++) (void)step(&s);
        if (which == 2) s.gens[quiet].alive = false;
        for (int i = 0; i < 300; i++) (void)step(&s);
        for (uint32_t i = 0; i < 40; i++) (void)add(&s, 1, 200, 1);
        for (int window = 0; window < 4; window++) { /* from the very first steps */
            memset(s.rows, 0, sizeof s.rows);
            for (int i = 0; i < 10; i++) (void)step(&s);
            double part = (double)s.rows[0] / (double)(s.rows[0] + s.rows[1]);
            if (part < 0.45 || part > 0.55)
                fail_msg("%d: the account that was there has %.2f of the rows", which, part);
        }
        sim_close(&s);
    }
}

/* Arrivals and departures at random: nobody starves, and the machine is shared by weight while all want more. */
static void arrivals(void **state) {
    (void)state;
    static sim s;
    sim_open(&s);
    s.shares[0].weight = 200;
    for (int i = 0; i < 6000; i++) {
        for (uint32_t a = 0; a < 5; a++)
            if (random_unit() < 0.02) {
                uint32_t at = 0;
                while (at < s.n_gens && s.gens[at].alive) at++;
                if (at == s.n_gens && at < GENS_MAX) s.n_gens++;
                if (at < GENS_MAX)
                    s.gens[at] = (gen){.alive = true,
                                       .account = a,
                                       .left = 1 + (uint32_t)(random_unit() * 700),
                                       .submitted = s.now,
                                       .last = s.now};
            }
        if (step(&s) == 0) s.now += 1e6;
        for (uint32_t g = 0; g < s.n_gens; g++) {
            gen *q = &s.gens[g];
            if (!q->alive) continue;
            if (q->n_tokens > 60) q->alive = false;
            if (s.now - (q->last > q->submitted ? q->last : q->submitted) > 60e9) fail_msg("a generation starves");
        }
    }
    for (uint32_t g = 0; g < s.n_gens; g++) s.gens[g].alive = false;
    for (uint32_t a = 0; a < 5; a++)
        for (uint32_t g = 0; g < 30; g++) {
            uint32_t at = a * 30 + g;
            s.gens[at] = (gen){.alive = true, .account = a, .past = 200, .left = 1};
            if (at >= s.n_gens) s.n_gens = at + 1;
        }
    memset(s.rows, 0, sizeof s.rows);
    s.noise = 0;
    /* All within one step's bound: everybody runs in each. Make them want more than fits: the fifth has one row. */
    for (uint32_t g = 1; g < 30; g++) s.gens[4 * 30 + g].alive = false;
    for (int i = 0; i < 1000; i++) (void)step(&s);
    double first = (double)s.rows[0];
    for (uint32_t a = 1; a < 4; a++) {
        double by = first / (double)s.rows[a];
        if (by < 1.0 || by > 2.3) fail_msg("weight 200 has %.2f times the rows of weight 100", by);
    }
    sim_close(&s);
}

static void tokens_per_second(void **state) {
    (void)state;
    static sim s;
    sim_open(&s);
    s.now = 1e9;
    s.shares[0].tokens_per_second = 20;
    (void)add(&s, 0, 0, 30); /* more than the bucket holds */
    (void)add(&s, 0, 0, 1);
    double begin = s.now;
    uint32_t idle = 0;
    while (s.now < begin + 20e9) {
        if (step(&s) > 0) continue;
        assert_true(s.f.wake_ns > (uint64_t)s.now && s.f.wake_ns < (uint64_t)s.now + 100000000);
        s.now = (double)s.f.wake_ns;
        idle++;
    }
    assert_true(idle > 50);
    assert_true(s.rows[0] >= 20 * 20 - 2 && s.rows[0] <= 20 * 20 + 20 + 1);
    /* Another account has the rest of the machine, and every step. */
    (void)add(&s, 1, 100, 1);
    begin = s.now;
    memset(s.rows, 0, sizeof s.rows);
    uint32_t steps = 0;
    for (; s.now < begin + 10e9; steps++) assert_true(step(&s) > 0);
    assert_int_equal(s.rows[1], steps);
    assert_true(s.rows[0] >= 190 && s.rows[0] <= 221);
    /* The limit is lifted. */
    s.shares[0].tokens_per_second = 0;
    memset(s.rows, 0, sizeof s.rows);
    for (int i = 0; i < 50; i++) (void)step(&s);
    assert_int_equal(s.rows[0], 100);
    sim_close(&s);
}

/* Predictions near the truth after some time of mixed steps, outliers among them. */
static void costs(void **state) {
    (void)state;
    realm_cost_model m;
    realm_cost_init(&m, 1e9, 1e3); /* far off */
    for (int i = 0; i < 3000; i++) {
        realm_work w = {.rows = 1 + floor(random_unit() * 40)};
        w.out = w.rows;
        w.ctx_one = w.rows * random_unit() * 1000;
        if (i % 7 == 0) w.ctx_many = 100 * 500 * random_unit();
        if (i % 7 == 0) w.rows += 100;
        double ns = true_cost(w.rows, w.out, w.ctx_one, w.ctx_many) * (0.9 + 0.2 * random_unit());
        realm_cost_learn(&m, &w, random_unit() < 0.02 ? 8 * ns : ns);
    }
    for (int i = 0; i < 300; i++) {
        realm_work w = {.rows = 1 + floor(random_unit() * 40)};
        w.out = w.rows;
        w.ctx_one = w.rows * random_unit() * 1000;
        double truth = true_cost(w.rows, w.out, w.ctx_one, 0);
        double guess = realm_cost_fixed(&m) + realm_cost_of(&m, &w);
        /* The first rows of a step cost less than the others, which the model does not know. */
        if (fabs(guess / truth - 1) > 0.3) fail_msg("%g rows: %.2f of the truth", w.rows, guess / truth);
    }
    realm_work w = {.rows = 1, .out = 1, .ctx_one = 100};
    realm_cost_model before = m;
    realm_cost_learn(&m, &w, 0); /* no such time */
    realm_cost_learn(&m, &w, -1);
    realm_cost_learn(&m, &w, NAN);
    assert_memory_equal(&before, &m, sizeof m);
    for (int i = 0; i < 2000; i++) realm_cost_learn(&m, &w, true_cost(1, 1, 100, 0)); /* all alike: the rest stays */
    realm_work many = {.rows = 30, .out = 30, .ctx_one = 30 * 500};
    double guess = realm_cost_fixed(&m) + realm_cost_of(&m, &many), truth = true_cost(30, 30, 15000, 0);
    if (fabs(guess / truth - 1) > 0.35) fail_msg("forgotten: %.2f of the truth", guess / truth);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(decoding),     cmocka_unit_test(anything),
                                       cmocka_unit_test(full_batches), cmocka_unit_test(rotation),
                                       cmocka_unit_test(prompts),      cmocka_unit_test(no_hoarding),
                                       cmocka_unit_test(arrivals),     cmocka_unit_test(tokens_per_second),
                                       cmocka_unit_test(costs),        cmocka_unit_test(slow_sampling)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
