/* bench/fairness.c - a quiet tenant beside a flooding one: time between its tokens and to its first one.
 *
 * In each round the quiet account generates alone; then the other floods (many generations that decode, or prompts one
 * after the other) and the quiet one does the same again. Its fair share of the machine is half of it, so the promise
 * is a time between tokens of at most 1.2 * 2 * (that alone), and the flood's likewise by its own. Rounds are short, so
 * that what else the machine does falls on both halves; printed are medians of rounds, and of their ratios.
 *
 *     build/bench/fairness MODEL.gguf [generations] [rounds]
 */
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "serving.h"

#define FLOOD_MAX 256u
#define QUIET_TOKENS 40u
#define QUIET_PROMPT 100u
#define FLOOD_PROMPT 32u
#define LONG_PROMPT 1500u
#define FLOOD_STEPS 24u /* tokens of each flooding generation that its own rate is taken from */

typedef struct stream {
    realm_generation *g;
    uint32_t n;
    uint64_t first_ns, last_ns;
    bool ended;
} stream;

typedef struct bench {
    bench_served s;
    realm_account *quiet, *loud;
    bench_reader r;
    realm_event_batch batch;
    stream one, flood[FLOOD_MAX];
    uint32_t n_flood;
    bool prompts; /* the flood is one long prompt after the other */
    uint32_t salt;
} bench;

static void start(bench *b, stream *s, realm_account *a, uint32_t n_prompt, uint32_t n_tokens) {
    static realm_token prompt[LONG_PROMPT];
    const uint32_t n_vocab = (uint32_t)realm_tokenizer_vocab_size(b->s.t);
    b->salt++;
    for (uint32_t i = 0; i < n_prompt; i++) prompt[i] = (realm_token)((i * 31 + b->salt * 977) % n_vocab);
    *s = (stream){.g = bench_start(b->s.e, a, &b->r, prompt, n_prompt, n_tokens)};
}

static void poll_one(bench *b, stream *s) {
    if (!s->g || s->ended) return;
    size_t n = realm_generation_poll(s->g, &b->batch);
    for (size_t i = 0; i < n; i++) {
        if (b->batch.events[i].kind == REALM_EVENT_END) s->ended = true;
        if (b->batch.events[i].kind != REALM_EVENT_TOKEN) continue;
        s->last_ns = realm_clock_ns();
        if (s->n++ == 0) s->first_ns = s->last_ns;
    }
}

static void drop(stream *s) {
    if (s->g) realm_generation_release(s->g);
    *s = (stream){0};
}

static void poll_all(bench *b) {
    bench_wait(&b->r);
    poll_one(b, &b->one);
    for (uint32_t i = 0; i < b->n_flood; i++) {
        poll_one(b, &b->flood[i]);
        if (b->prompts && b->flood[i].ended) {
            drop(&b->flood[i]);
            start(b, &b->flood[i], b->loud, LONG_PROMPT, 1);
        }
    }
}

/* Time to the first token, and between the others, in ms. */
static void quiet(bench *b, double *first_ms, double *between_ms) {
    const uint64_t begin = realm_clock_ns();
    start(b, &b->one, b->quiet, QUIET_PROMPT, QUIET_TOKENS);
    while (!b->one.ended) poll_all(b);
    *first_ms = (double)(b->one.first_ns - begin) / 1e6;
    *between_ms = (double)(b->one.last_ns - b->one.first_ns) / 1e6 / (QUIET_TOKENS - 1);
    drop(&b->one);
}

static uint64_t flood_tokens(const bench *b) {
    uint64_t n = 0;
    for (uint32_t i = 0; i < b->n_flood; i++) n += b->flood[i].n;
    return n;
}

/* Time between the tokens of one flooding generation, on the mean of all. */
static double flood_rate(bench *b) {
    const uint64_t before = flood_tokens(b), begin = realm_clock_ns();
    while (flood_tokens(b) < before + (uint64_t)FLOOD_STEPS * b->n_flood) poll_all(b);
    return (double)(realm_clock_ns() - begin) / 1e6 * b->n_flood / (double)(flood_tokens(b) - before);
}

static void run(bench *b, uint32_t n_flood, bool prompts, uint32_t rounds) {
    static double alone[BENCH_ROUNDS_MAX], beside[BENCH_ROUNDS_MAX], ratio[BENCH_ROUNDS_MAX], first[BENCH_ROUNDS_MAX],
        first_beside[BENCH_ROUNDS_MAX], first_ratio[BENCH_ROUNDS_MAX], loud[BENCH_ROUNDS_MAX],
        loud_ratio[BENCH_ROUNDS_MAX], rows[BENCH_ROUNDS_MAX];
    b->prompts = prompts;
    for (uint32_t i = 0; i <= rounds; i++) { /* the first is not counted */
        const uint32_t at = i > 0 ? i - 1 : 0;
        b->n_flood = 0;
        quiet(b, &first[at], &alone[at]);
        for (uint32_t k = 0; k < n_flood; k++)
            start(b, &b->flood[k], b->loud, prompts ? LONG_PROMPT : FLOOD_PROMPT, prompts ? 1 : 0);
        b->n_flood = n_flood;
        if (!prompts) {
            bool all = false;
            while (!all) {
                poll_all(b);
                all = true;
                for (uint32_t k = 0; k < n_flood; k++) all &= b->flood[k].n > 0;
            }
            loud[at] = flood_rate(b);
        }
        const uint64_t before = flood_tokens(b), begin = realm_clock_ns();
        realm_engine_stats stats;
        realm_engine_get_stats(b->s.e, &stats);
        const uint64_t n_rows = stats.rows, n_steps = stats.steps;
        quiet(b, &first_beside[at], &beside[at]);
        realm_engine_get_stats(b->s.e, &stats);
        rows[at] = (double)(stats.rows - n_rows) / (double)(stats.steps - n_steps);
        if (!prompts) {
            double now = (double)(realm_clock_ns() - begin) / 1e6 * n_flood / (double)(flood_tokens(b) - before);
            loud_ratio[at] = now / (2 * loud[at]);
        }
        ratio[at] = beside[at] / (2 * alone[at]);
        first_ratio[at] = first_beside[at] / (2 * first[at]);
        for (uint32_t k = 0; k < n_flood; k++) drop(&b->flood[k]);
        b->n_flood = 0;
    }
    printf("beside %u %s:\n", n_flood,
           prompts ? "prompt(s) of 1,500 tokens, one after the other" : "generations that decode");
    printf("  %.1f rows in a step\n", bench_median(rows, rounds));
    printf("  between tokens  alone %7.2f ms  beside %7.2f ms  %.2f of its fair time\n", bench_median(alone, rounds),
           bench_median(beside, rounds), bench_median(ratio, rounds));
    printf("  first token     alone %7.2f ms  beside %7.2f ms  %.2f of its fair time\n", bench_median(first, rounds),
           bench_median(first_beside, rounds), bench_median(first_ratio, rounds));
    if (!prompts)
        printf("  the flood's own between tokens, alone %.2f ms: %.2f of its fair time\n", bench_median(loud, rounds),
               bench_median(loud_ratio, rounds));
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: %s MODEL.gguf [generations] [rounds]\n", argv[0]);
        return 2;
    }
    uint32_t n = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 64,
             rounds = argc > 3 ? (uint32_t)strtoul(argv[3], NULL, 10) : 5;
    if (n == 0 || n > FLOOD_MAX) n = 64;
    if (rounds == 0 || rounds > BENCH_ROUNDS_MAX) rounds = 5;
    static bench b;
    realm_error err = {0};
    realm_backend *backend;
    const realm_engine_config config = {.n_ctx = 2048, .max_generations = n + 2};
    if (realm_backend_open_cpu(&backend, &(realm_backend_config){0}, &err)) bench_die("backend", &err);
    bench_serve(&b.s, backend, argv[1], &config);
    if (realm_account_open(b.s.e, NULL, NULL, &b.quiet, &err) || realm_account_open(b.s.e, NULL, NULL, &b.loud, &err))
        bench_die("account", &err);
    bench_reader_init(&b.r);
    realm_event_batch_init(&b.batch);
    run(&b, n, false, rounds);
    run(&b, 1, true, rounds);
    realm_event_batch_release(&b.batch);
    realm_account_close(b.quiet);
    realm_account_close(b.loud);
    bench_unserve(&b.s);
    realm_backend_close(backend);
    return 0;
}
