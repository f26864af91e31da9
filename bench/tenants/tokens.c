/* bench/tenants/tokens.c - what a program in the loop costs per token, on a real model, with and without the sandbox.
 *
 * The same request (greedy, a fixed number of tokens) in every mode, in turn, many short rounds, so that what the
 * machine does besides hits all modes alike; what is compared is one mode with the bare engine of the same round.
 * "On the engine's path" is the time that the engine's thread spends between two steps on telling consumers: the only
 * part of a program's turn that others wait for. */
#include "bench.h"

#define TOKENS 24u
#define ROUNDS 60u
#define MANY 16u
#define MANY_TOKENS 32u
#define MANY_ROUNDS 10u

typedef struct turn { /* per token, of one generation from its first token to its last */
    double wall_us, cpu_us, path_us, lent_us;
} turn;

typedef struct stamp {
    uint64_t wall, cpu, path, lent;
} stamp;

static stamp now(bench *b) {
    realm_engine_stats st;
    realm_engine_get_stats(b->engine, &st);
    return (stamp){realm_clock_ns(), cpu_ns(), st.notify_ns, st.lent_ns};
}

static turn between(stamp a, stamp z, double n) {
    return (turn){(double)(z.wall - a.wall) / 1e3 / n, (double)(z.cpu - a.cpu) / 1e3 / n,
                  (double)(z.path - a.path) / 1e3 / n, (double)(z.lent - a.lent) / 1e3 / n};
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
    stamp first = {0}, last = {0};
    c->ready = false;
    if (realm_generation_submit(b->engine, &p, &g, &err)) die("submit", &err);
    for (bool ended = false; !ended;) {
        client_wait(c);
        while (realm_generation_poll(g, &c->batch) > 0) {
            ended = c->batch.events[c->batch.n_events - 1].kind == REALM_EVENT_END;
            last = now(b);
            if (!first.wall) first = last;
        }
    }
    realm_generation_release(g);
    return between(first, last, TOKENS - 1);
}

static turn by_program(bench *b, realm_tenant *t, client *c) {
    stamp first = {0}, last = {0};
    uint32_t n = 0;
    client_begin(c, t, TOKENS);
    for (bool ended = false; !ended;) {
        client_wait(c);
        ended = client_poll(c);
        if (c->n_tokens == n) continue; /* the end alone, behind the ledger */
        n = c->n_tokens;
        last = now(b);
        if (!first.wall) first = last;
    }
    return between(first, last, TOKENS - 1);
}

typedef struct mode {
    const char *what, *program; /* NULL: the default one */
    double goal_us;             /* on the engine's path */
    realm_tenant *tenant;
    samples path, lent, share;
} mode;

static void bench_modes(bench *b, realm_account *a) {
    static mode modes[] = {
        {.what = "pipe", .goal_us = NAN},
        {.what = "free run", .program = "bench/guest/reader0.wasm", .goal_us = 2},
        {.what = "run ahead", .program = "bench/guest/ahead.wasm", .goal_us = 2},
        {.what = "lockstep", .program = "bench/guest/lockstep.wasm", .goal_us = 10},
    };
    static samples wall, path;
    client c;
    char text[96];
    client_init(&c);
    for (size_t m = 0; m < REALM_ARRAY_LEN(modes); m++) {
        modes[m].tenant = tenant_open(b, (const char *[]){"pipe", "free", "ahead", "lockstep"}[m], modes[m].program);
        (void)by_program(b, modes[m].tenant, &c); /* what is made on first use */
    }
    for (unsigned r = 0; r < ROUNDS; r++) {
        turn base = by_engine(b, a, &c);
        sample_add(&wall, base.wall_us);
        sample_add(&path, base.path_us);
        for (size_t k = 0; k < REALM_ARRAY_LEN(modes); k++) {
            mode *m = &modes[(k + r) % REALM_ARRAY_LEN(modes)];
            turn t = by_program(b, m->tenant, &c);
            sample_add(&m->path, t.path_us);
            sample_add(&m->lent, t.lent_us);
            sample_add(&m->share, 100 * (t.wall_us - base.wall_us) / base.wall_us);
        }
    }
    report("a token of one tenant, bare engine", "us", NAN, median(&wall), NAN, false);
    report("on the engine's path, bare engine", "us a token", NAN, median(&path), NAN, false);
    for (size_t k = 0; k < REALM_ARRAY_LEN(modes); k++) {
        mode *m = &modes[k];
        snprintf(text, sizeof text, "on the engine's path, %s", m->what);
        report(text, "us a token", median(&m->path), median(&path), m->goal_us, false);
        if (median(&m->lent) > 0) {
            snprintf(text, sizeof text, "the program on the engine's thread, %s", m->what);
            report(text, "us a token", median(&m->lent), NAN, NAN, false);
        }
        snprintf(text, sizeof text, "whole cost of %s", m->what);
        report(text, "% of a step", median(&m->share), NAN, 1, false);
        realm_tenant_release(m->tenant);
    }
    client_release(&c);
}

/* Sixteen tenants at once: seconds for all, and the engine's path per token. */
static double many_at_once(bench *b, realm_tenant *const *t, client *c, double *path_us) {
    stamp first = now(b);
    uint32_t n = 0;
    for (unsigned i = 0; i < MANY; i++) client_begin(&c[i], t[i], MANY_TOKENS);
    for (unsigned i = 0; i < MANY; i++) {
        client_finish(&c[i]);
        n += c[i].completion_tokens;
    }
    stamp last = now(b);
    *path_us = (double)(last.path - first.path) / 1e3 / n;
    return (double)n * 1e9 / (double)(last.wall - first.wall);
}

static void bench_sixteen(bench *b) {
    static client c[MANY];
    realm_tenant *with[MANY], *pipe[MANY];
    static samples ratio, speed, plain, path_with, path_pipe;
    char name[32], program[64];
    for (unsigned i = 0; i < MANY; i++) {
        client_init(&c[i]);
        snprintf(name, sizeof name, "with%u", i);
        snprintf(program, sizeof program, "bench/guest/reader%u.wasm", i);
        with[i] = tenant_open(b, name, program);
        snprintf(name, sizeof name, "plain%u", i);
        pipe[i] = tenant_open(b, name, NULL);
    }
    double path;
    (void)many_at_once(b, with, c, &path);
    (void)many_at_once(b, pipe, c, &path);
    for (unsigned r = 0; r < MANY_ROUNDS; r++) {
        double v[2];
        for (unsigned k = 0; k < 2; k++) {
            bool programs = (r + k) % 2;
            v[programs] = many_at_once(b, programs ? with : pipe, c, &path);
            sample_add(programs ? &path_with : &path_pipe, path);
        }
        sample_add(&speed, v[1]);
        sample_add(&plain, v[0]);
        sample_add(&ratio, v[1] / v[0]);
    }
    report("tokens/s of 16 tenants, 16 programs (without: in pipe mode)", "t/s", median(&speed), median(&plain), NAN,
           true);
    report("the same as a ratio, of the same round", "x", median(&ratio), NAN, 0.98, true);
    report("on the engine's path with 16 (without: in pipe mode)", "us a token", median(&path_with), median(&path_pipe),
           2, false);
    for (unsigned i = 0; i < MANY; i++) {
        realm_tenant_release(with[i]);
        realm_tenant_release(pipe[i]);
        client_release(&c[i]);
    }
}

void bench_tokens(bench *b) {
    realm_error err = {0};
    realm_account *a = NULL;
    if (realm_account_open(b->engine, NULL, NULL, &a, &err)) die("account", &err);
    report_note("a program in the loop, SmolLM2");
    bench_modes(b, a);
    bench_sixteen(b);
    realm_account_close(a);
}
