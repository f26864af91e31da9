/* bench/tenants/tokens.c - what a program in the loop costs per token, on a real model, with and without the sandbox.
 *
 * The same request (greedy, a fixed number of tokens) in every mode, in turn, many short rounds, so that what the
 * machine does besides hits all modes alike; what is compared is one mode with the bare engine of the same round.
 * "On the engine's path" is the time that the engine's thread spends between two steps on telling consumers: the only
 * part of a program's turn that others wait for. In lockstep somebody has a turn in every step, whoever decides: beside
 * the program stands the same loop as part of the host (native.c), and what is between the two is the sandbox. "At
 * work" is that turn, on the engine's thread where there was nothing to compute, on a compute thread beside the step
 * where the next pass was guessed. */
#include "bench.h"

/* Short ones: what the machine does besides comes and goes within tenths of a second, and is to meet all modes alike.
 */
#define TOKENS 20u
#define ENDS 4u /* tokens at either end that are not looked at */
#define MANY 16u
#define MANY_TOKENS 32u
#define MANY_ROUNDS 10u

typedef struct turn { /* per step, of one generation */
    double step_us;   /* from step to step */
    double path_us, lent_us;
} turn;

/* A generation as its client sees it, without its ends: how late the first and the last tokens come says nothing of
 * what a step costs. Steps are the engine's own count, as tokens may come by the handful. */
typedef struct arrivals {
    realm_engine *engine;
    realm_engine_stats first, last;
    uint64_t first_ns, last_ns;
} arrivals;

static arrivals arrivals_begin(realm_engine *engine) { return (arrivals){.engine = engine}; }

/* `n` tokens have come by now. */
static void arrived(arrivals *a, uint32_t n) {
    if (n < ENDS || n > TOKENS - ENDS) return;
    a->last_ns = realm_clock_ns();
    realm_engine_get_stats(a->engine, &a->last);
    if (a->first_ns) return;
    a->first_ns = a->last_ns;
    a->first = a->last;
}

static turn arrivals_end(const arrivals *a) {
    const double n = (double)(a->last.steps - a->first.steps) * 1e3;
    return (turn){(double)(a->last_ns - a->first_ns) / n, (double)(a->last.notify_ns - a->first.notify_ns) / n,
                  (double)(a->last.lent_ns + a->last.aside_ns - a->first.lent_ns - a->first.aside_ns) / n};
}

/* Straight from the engine, read by this thread. */
static turn by_engine(bench *b, realm_account *a, client *c) {
    realm_error err = {0};
    realm_token prompt[] = {28, 29, 30, 31};
    realm_generation *g = NULL;
    realm_generation_params p = {.account = a,
                                 .prompt = prompt,
                                 .n_prompt = 4,
                                 .max_tokens = TOKENS,
                                 .ignore_end = true,
                                 .on_ready = client_on_ready,
                                 .user = c};
    realm_sampling_init(&p.sampling);
    p.sampling.temperature = 0;
    arrivals seen = arrivals_begin(b->engine);
    uint32_t n = 0;
    c->ready = false;
    if (realm_generation_submit(b->engine, &p, &g, &err)) die("submit", &err);
    for (bool ended = false; !ended;) {
        client_wait(c);
        while (realm_generation_poll(g, &c->batch) > 0) {
            ended = c->batch.events[c->batch.n_events - 1].kind == REALM_EVENT_END;
            n += (uint32_t)c->batch.n_events - ended;
            arrived(&seen, n);
        }
    }
    realm_generation_release(g);
    return arrivals_end(&seen);
}

static turn by_program(bench *b, realm_tenant *t, client *c) {
    uint32_t n = 0;
    arrivals seen = arrivals_begin(b->engine);
    client_begin(c, t, TOKENS);
    for (bool ended = false; !ended;) {
        client_wait(c);
        ended = client_poll(c);
        if (c->n_tokens > n) arrived(&seen, c->n_tokens);
        n = c->n_tokens;
    }
    return arrivals_end(&seen);
}

static turn by_host(native *host, client *c) {
    arrivals seen = arrivals_begin(native_engine(host));
    c->ready = false;
    native_begin(host, c, TOKENS);
    for (uint32_t n = 0, now; n < TOKENS; n = now) {
        client_wait(c);
        native_turn(host);
        if ((now = native_tokens(host)) > n) arrived(&seen, now);
    }
    native_end(host);
    return arrivals_end(&seen);
}

typedef struct mode {
    const char *what, *program; /* NULL: the default one */
    double goal_us;             /* on the engine's path */
    realm_tenant *tenant;       /* NULL: not a program's */
    samples path, lent, step;
} mode;

enum { BARE, HOST, PIPE, FREE, AHEAD, LOCKSTEP, N_MODES };

/* In every round each mode once, and over N_MODES rounds each after every other alike: what one leaves behind in caches
 * and queues is the next one's cost. (A Latin square by steps of 1, 2, ... over the numbers below a prime, less one.)
 */
_Static_assert(N_MODES == 6, "7 is a prime");
static unsigned in_turn(unsigned round, unsigned k) { return (k + 1) * (round % N_MODES + 1) % (N_MODES + 1) - 1; }

/* Of the same rounds: what a step takes longer than without, in percent of one of the bare engine. */
static double whole_cost(const mode *m, const mode *without, const mode *bare, double *error) {
    static samples share;
    share.n = 0;
    for (size_t r = 0; r < m->step.n; r++)
        sample_add(&share, 100 * (m->step.v[r] - without->step.v[r]) / bare->step.v[r]);
    return trimmed_mean(&share, error);
}

static void bench_modes(bench *b, realm_account *a) {
    static mode modes[N_MODES] = {
        [BARE] = {.what = "bare engine", .goal_us = NAN},
        [HOST] = {.what = "lockstep in the host", .goal_us = NAN},
        [PIPE] = {.what = "pipe", .goal_us = NAN},
        [FREE] = {.what = "free run", .program = "bench/guest/reader0.wasm", .goal_us = 2},
        [AHEAD] = {.what = "run ahead", .program = "bench/guest/ahead.wasm", .goal_us = 2},
        [LOCKSTEP] = {.what = "lockstep", .program = "bench/guest/lockstep.wasm", .goal_us = 10},
    };
    native *host = native_open(b->path);
    client c;
    char text[96];
    client_init(&c);
    for (unsigned m = PIPE; m < N_MODES; m++) {
        modes[m].tenant =
            tenant_open(b, (const char *[]){"pipe", "free", "ahead", "lockstep"}[m - PIPE], modes[m].program);
        (void)by_program(b, modes[m].tenant, &c); /* what is made on first use */
    }
    for (unsigned r = 0; r < b->rounds; r++) {
        for (unsigned k = 0; k < N_MODES; k++) {
            mode *m = &modes[in_turn(r, k)];
            turn t = m->tenant           ? by_program(b, m->tenant, &c)
                     : m == &modes[HOST] ? by_host(host, &c)
                                         : by_engine(b, a, &c);
            sample_add(&m->path, t.path_us);
            sample_add(&m->lent, t.lent_us);
            sample_add(&m->step, t.step_us);
        }
    }
    const mode *const bare = &modes[BARE];
    double cost[N_MODES], error[N_MODES], sandbox, sandbox_error; /* before medians put rounds in another order */
    for (unsigned m = HOST; m < N_MODES; m++) cost[m] = whole_cost(&modes[m], bare, bare, &error[m]);
    sandbox = whole_cost(&modes[LOCKSTEP], &modes[HOST], bare, &sandbox_error);
    const double token = median(&modes[BARE].step), path = median(&modes[BARE].path);
    report("a token of one tenant, bare engine", "us", NAN, token, NAN, false);
    report("on the engine's path, bare engine", "us a token", NAN, path, NAN, false);
    for (unsigned m = PIPE; m < N_MODES; m++) {
        snprintf(text, sizeof text, "on the engine's path, %s", modes[m].what);
        report(text, "us a token", median(&modes[m].path), path, modes[m].goal_us, false);
        snprintf(text, sizeof text, "whole cost of %s", modes[m].what);
        report_mean(text, "% of a step", cost[m], error[m], m == LOCKSTEP ? cost[HOST] : NAN, 1);
        realm_tenant_release(modes[m].tenant);
    }
    report_mean("of it the sandbox", "% of a step", sandbox, sandbox_error, NAN, 1);
    const double lent = median(&modes[LOCKSTEP].lent), by_hand = median(&modes[HOST].lent);
    report("at work for a token, lockstep (without: in the host)", "us a token", lent, by_hand, NAN, false);
    report("of it the sandbox", "us a token", lent - by_hand, NAN, NAN, false);
    native_close(host);
    client_release(&c);
}

/* A program in lockstep while another tenant's generation makes steps anyway: how many of them a token takes. */
static void bench_beside(bench *b) {
    static samples steps;
    client stream, c;
    realm_engine_stats before, after;
    realm_tenant *other = tenant_open(b, "stream", NULL), *t = tenant_open(b, "beside", "bench/guest/lockstep.wasm");
    client_init(&stream);
    client_init(&c);
    for (unsigned r = 0; r < MANY_ROUNDS; r++) {
        client_begin(&stream, other, 4 * MANY_TOKENS);
        while (stream.n_tokens == 0) {
            client_wait(&stream);
            (void)client_poll(&stream);
        }
        client_begin(&c, t, MANY_TOKENS);
        while (c.n_tokens < ENDS) {
            client_wait(&c);
            (void)client_poll(&c);
        }
        const uint32_t first = c.n_tokens;
        realm_engine_get_stats(b->engine, &before);
        client_finish(&c);
        realm_engine_get_stats(b->engine, &after);
        sample_add(&steps, (double)(after.steps - before.steps) / (c.n_tokens - first));
        client_finish(&stream);
    }
    report("in lockstep beside another tenant's stream", "steps a token", median(&steps), NAN, NAN, false);
    realm_tenant_release(other);
    realm_tenant_release(t);
    client_release(&stream);
    client_release(&c);
}

/* Sixteen tenants at once: seconds for all, and the engine's path per token. */
static double many_at_once(bench *b, realm_tenant *const *t, client *c, double *path_us) {
    realm_engine_stats before, after;
    realm_engine_get_stats(b->engine, &before);
    const uint64_t begun = realm_clock_ns();
    uint32_t n = 0;
    for (unsigned i = 0; i < MANY; i++) client_begin(&c[i], t[i], MANY_TOKENS);
    for (unsigned i = 0; i < MANY; i++) {
        client_finish(&c[i]);
        n += c[i].n_tokens;
    }
    const uint64_t ended = realm_clock_ns();
    realm_engine_get_stats(b->engine, &after);
    *path_us = (double)(after.notify_ns - before.notify_ns) / 1e3 / n;
    return (double)n * 1e9 / (double)(ended - begun);
}

enum { IN_PIPE, IN_PROGRAMS, IN_LOCKSTEP, N_KINDS };

static void bench_sixteen(bench *b) {
    static client c[MANY];
    realm_tenant *t[N_KINDS][MANY];
    static samples ratio[N_KINDS], speed[N_KINDS], path[N_KINDS];
    char name[32], program[64];
    double us;
    for (unsigned i = 0; i < MANY; i++) {
        client_init(&c[i]);
        snprintf(name, sizeof name, "plain%u", i);
        t[IN_PIPE][i] = tenant_open(b, name, NULL);
        snprintf(name, sizeof name, "with%u", i);
        snprintf(program, sizeof program, "bench/guest/reader%u.wasm", i);
        t[IN_PROGRAMS][i] = tenant_open(b, name, program);
        snprintf(name, sizeof name, "lockstep%u", i);
        t[IN_LOCKSTEP][i] = tenant_open(b, name, "bench/guest/lockstep.wasm");
    }
    for (unsigned k = 0; k < N_KINDS; k++) (void)many_at_once(b, t[k], c, &us);
    for (unsigned r = 0; r < MANY_ROUNDS; r++) {
        double v[N_KINDS];
        for (unsigned i = 0; i < N_KINDS; i++) {
            const unsigned k = (r + i) % N_KINDS;
            sample_add(&speed[k], v[k] = many_at_once(b, t[k], c, &us));
            sample_add(&path[k], us);
        }
        for (unsigned k = 0; k < N_KINDS; k++) sample_add(&ratio[k], v[k] / v[IN_PIPE]);
    }
    const double plain = median(&speed[IN_PIPE]), plain_path = median(&path[IN_PIPE]);
    report("tokens/s of 16 tenants, 16 programs (without: in pipe mode)", "t/s", median(&speed[IN_PROGRAMS]), plain,
           NAN, true);
    report("the same as a ratio, of the same round", "x", median(&ratio[IN_PROGRAMS]), NAN, 0.98, true);
    report("on the engine's path with 16 (without: in pipe mode)", "us a token", median(&path[IN_PROGRAMS]), plain_path,
           2, false);
    report("tokens/s of 16 tenants, all in lockstep (without: in pipe mode)", "t/s", median(&speed[IN_LOCKSTEP]), plain,
           NAN, true);
    report("the same as a ratio, of the same round", "x", median(&ratio[IN_LOCKSTEP]), NAN, NAN, true);
    for (unsigned i = 0; i < MANY; i++) {
        for (unsigned k = 0; k < N_KINDS; k++) realm_tenant_release(t[k][i]);
        client_release(&c[i]);
    }
}

void bench_tokens(bench *b) {
    realm_error err = {0};
    realm_account *a = NULL;
    if (realm_account_open(b->engine, NULL, NULL, &a, &err)) die("account", &err);
    report_note("a program in the loop, SmolLM2");
    bench_modes(b, a);
    bench_beside(b);
    bench_sixteen(b);
    realm_account_close(a);
}
