/* bench/tenants/scale.c - many tenants, many instances: what each holds, and what is left when they are gone. */
#include <dirent.h>

#include "bench.h"

#define TENANTS 1000u
#define ACTIVE 64u
#define PARKED 256u
#define DROPPED 10000u

/* a - b in KiB, which may be negative: memory is given back too. */
static double kib_more(uint64_t a, uint64_t b) { return a > b ? (double)(a - b) / 1024 : -(double)(b - a) / 1024; }

static unsigned count_files(void) {
    unsigned n = 0;
    DIR *d = opendir("/proc/self/fd");
    while (d && readdir(d)) n++;
    if (d) closedir(d);
    return n;
}

static unsigned count_mappings(void) {
    unsigned n = 0;
    FILE *f = fopen("/proc/self/maps", "r");
    for (int ch; f && (ch = fgetc(f)) != EOF;) n += ch == '\n';
    if (f) fclose(f);
    return n;
}

/* Runs `n` requests over the tenants, ACTIVE at a time; the most memory that was resident meanwhile. */
static uint64_t run_over(realm_tenant *const *t, unsigned n_tenants, unsigned n, uint32_t max_tokens) {
    static client c[ACTIVE];
    uint64_t most = 0;
    for (unsigned i = 0; i < ACTIVE; i++) client_init(&c[i]);
    for (unsigned i = 0; i < n + ACTIVE; i++) {
        client *slot = &c[i % ACTIVE];
        if (slot->run) client_finish(slot);
        if (i % ACTIVE == 0) most = REALM_MAX(most, resident_bytes());
        if (i < n) client_begin(slot, t[i % n_tenants], max_tokens);
    }
    for (unsigned i = 0; i < ACTIVE; i++) client_release(&c[i]);
    return most;
}

static void bench_tenants(bench *b) {
    static realm_tenant *t[TENANTS];
    char name[32], program[64];
    uint64_t before = 0;
    for (unsigned i = 0; i < TENANTS; i++) {
        if (i == ACTIVE) { /* what the first requests of all touch, KV pages and workspaces, is nobody's own */
            (void)run_over(t, ACTIVE, ACTIVE, 1);
            before = resident_bytes();
        }
        snprintf(name, sizeof name, "crowd%u", i);
        snprintf(program, sizeof program, "bench/guest/reader%u.wasm", i % 16);
        t[i] = tenant_open(b, name, program);
    }
    (void)run_over(t, TENANTS, TENANTS, 1); /* each has had a request: its account and program are there */
    uint64_t idle = resident_bytes();
    report("memory of an idle tenant that has run its program", "KiB", kib_more(idle, before) / (TENANTS - ACTIVE), NAN,
           64, false);
    uint64_t most = run_over(t, TENANTS, ACTIVE * 4, 32);
    report("1,000 tenants with programs, 64 active, beside the weights", "MiB", kib_more(most, b->rss_model) / 1024,
           NAN, 1024, false);
    for (unsigned i = 0; i < TENANTS; i++) realm_tenant_release(t[i]);
}

static void bench_parked(bench *b) {
    static client c[PARKED];
    realm_tenant *t = tenant_open(b, "parked", "bench/guest/parked.wasm");
    uint64_t before = 0;
    for (unsigned round = 0; round < 2; round++) { /* the first makes what is kept */
        for (unsigned i = 0; i < PARKED; i++) client_init(&c[i]);
        before = resident_bytes();
        for (unsigned i = 0; i < PARKED; i++) {
            client_begin(&c[i], t, 1);
            while (c[i].n_tokens == 0) {
                client_wait(&c[i]);
                if (client_poll(&c[i])) die("parked", &c[i].batch.error);
            }
        }
        uint64_t parked = resident_bytes();
        if (round == 0)
            report("memory of a running instance (one touched page of 64 KiB)", "KiB",
                   kib_more(parked, before) / PARKED, NAN, 164, false);
        for (unsigned i = 0; i < PARKED; i++) {
            realm_run_cancel(c[i].run);
            client_finish(&c[i]);
            client_release(&c[i]);
        }
    }
    realm_tenant_release(t);
}

static void bench_dropped(bench *b) {
    realm_tenant *t[1] = {tenant_open(b, "brief", "wasm/bench/answer.wasm")};
    (void)run_over(t, 1, 512, 1);
    uint64_t rss = resident_bytes();
    unsigned files = count_files(), mappings = count_mappings();
    uint64_t begin = realm_clock_ns();
    (void)run_over(t, 1, DROPPED, 1);
    double each = (double)(realm_clock_ns() - begin) / 1e3 / DROPPED;
    report("10,000 requests whose program returns at once, each", "us", each, NAN, NAN, false);
    report("growth of memory over 10,000 instances", "KiB", kib_more(resident_bytes(), rss), NAN, 1024, false);
    report("growth of descriptors", "", (double)count_files() - files, NAN, 0, false);
    report("growth of mappings", "", (double)count_mappings() - mappings, NAN, 16, false);
    realm_tenant_release(t[0]);
}

#define FORK_TOKENS 2000u
#define FORKS 64u

/* A context whose tokens are all computed, forked again and again: time, and KV pages that it took. */
static void bench_fork(bench *b) {
    static realm_token prompt[FORK_TOKENS];
    static samples took;
    realm_error err = {0};
    realm_account *a = NULL;
    realm_context *c = NULL, *forks[FORKS];
    realm_generation *g = NULL;
    realm_engine_stats before, after;
    client reader;
    client_init(&reader);
    for (unsigned i = 0; i < FORK_TOKENS; i++) prompt[i] = (realm_token)(1000 + i % 5000);
    if (realm_account_open(b->engine, NULL, NULL, &a, &err) || realm_context_open(b->engine, a, &c, &err))
        die("context", &err);
    realm_generation_params p = {.account = a,
                                 .context = c,
                                 .prompt = prompt,
                                 .n_prompt = FORK_TOKENS,
                                 .forward = true,
                                 .n_rows = 1,
                                 .on_ready = client_on_ready,
                                 .user = &reader};
    realm_sampling_init(&p.sampling);
    if (realm_generation_submit(b->engine, &p, &g, &err)) die("forward", &err);
    for (bool ended = false; !ended;) {
        client_wait(&reader);
        while (!ended && realm_generation_poll(g, &reader.batch) > 0)
            ended = reader.batch.events[reader.batch.n_events - 1].kind == REALM_EVENT_END;
    }
    if (reader.batch.status) die("forward", &reader.batch.error);
    realm_generation_release(g);
    realm_engine_get_stats(b->engine, &before);
    for (unsigned i = 0; i < FORKS; i++) {
        uint64_t t0 = realm_clock_ns();
        if (realm_context_fork(c, &forks[i], &err)) die("fork", &err);
        sample_add(&took, (double)(realm_clock_ns() - t0) / 1e3);
    }
    realm_engine_get_stats(b->engine, &after);
    report("fork of a context of 2,000 tokens", "us", median(&took), NAN, 50, false);
    report("KV pages that 64 forks took", "", (double)after.kv_pages_used - before.kv_pages_used, NAN, 0, false);
    for (unsigned i = 0; i < FORKS; i++) realm_context_release(forks[i]);
    realm_context_release(c);
    realm_account_close(a);
    client_release(&reader);
}

void bench_scale(bench *b) {
    report_note("many tenants, many instances");
    bench_parked(b);
    bench_dropped(b);
    bench_tenants(b);
    bench_fork(b);
}
