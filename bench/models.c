/* bench/models.c - two models busy at once: on one backend in turns, on a backend each, and one after the other.
 *
 * Each round decodes the same number of tokens of both models in the three ways, in turn, so that what else the machine
 * does falls on all of them; printed are medians, and the median of the rounds' ratios to "one after the other". Of the
 * two ways on one backend also how long a turn holds it, and how long nobody does.
 *
 *     build/bench/models A.gguf B.gguf [tokens] [rounds]
 */
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "serving.h"

typedef struct served { /* one model, on one backend */
    bench_served s;
    realm_account *a;
    realm_generation *gen;
    bench_reader r;
} served;

static void serve(served *s, realm_backend *b, const char *path) {
    realm_error err = {0};
    const realm_engine_config config = {.n_ctx = 512, .max_generations = 4};
    const realm_account_limits limits = {0};
    bench_serve(&s->s, b, path, &config);
    if (realm_account_open(s->s.e, &limits, NULL, &s->a, &err)) bench_die(path, &err);
    bench_reader_init(&s->r);
}

static void unserve(served *s) {
    realm_account_close(s->a);
    bench_unserve(&s->s);
}

static void start(served *s, uint32_t n_tokens) {
    static const realm_token prompt[] = {10, 20, 30, 40};
    s->gen = bench_start(s->s.e, s->a, &s->r, prompt, REALM_ARRAY_LEN(prompt), n_tokens);
}

static void wait_end(served *s) {
    realm_event_batch b;
    realm_event_batch_init(&b);
    for (bool ended = false; !ended;) {
        bench_wait(&s->r);
        size_t n = realm_generation_poll(s->gen, &b);
        ended = n > 0 && b.events[n - 1].kind == REALM_EVENT_END;
    }
    realm_event_batch_release(&b);
    realm_generation_release(s->gen);
}

typedef struct measured {
    double seconds, held_ms, free_ms; /* of all; of a turn; from turn to turn, when nobody held it */
} measured;

static measured measure(served *a, served *b, realm_backend *backend, bool together, uint32_t n_tokens) {
    realm_turn_stats before, after;
    realm_backend_turn_get_stats(backend, &before);
    uint64_t t0 = realm_clock_ns();
    start(a, n_tokens);
    if (!together) wait_end(a);
    start(b, n_tokens);
    if (together) wait_end(a);
    wait_end(b);
    const uint64_t ns = realm_clock_ns() - t0;
    realm_backend_turn_get_stats(backend, &after);
    const double turns = (double)(after.turns - before.turns) * 1e6, held = (double)(after.held_ns - before.held_ns);
    return (measured){(double)ns / 1e9, held / turns, ((double)ns - held) / turns};
}

int main(int argc, char **argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: %s A.gguf B.gguf [tokens] [rounds]\n", argv[0]);
        return 2;
    }
    const uint32_t n_tokens = argc > 3 ? (uint32_t)strtoul(argv[3], NULL, 10) : 100;
    uint32_t rounds = argc > 4 ? (uint32_t)strtoul(argv[4], NULL, 10) : 9;
    if (rounds == 0 || rounds > BENCH_ROUNDS_MAX) rounds = 9;
    realm_error err = {0};
    realm_backend *b[3];
    for (int i = 0; i < 3; i++)
        if (realm_backend_open_cpu(&b[i], &(realm_backend_config){0}, &err)) bench_die("backend", &err);
    served shared[2] = {0}, apart[2] = {0};
    for (int i = 0; i < 2; i++) {
        serve(&shared[i], b[0], argv[1 + i]);
        serve(&apart[i], b[1 + i], argv[1 + i]);
    }
    static const char *const names[3] = {"one after the other", "at once, one backend in turns",
                                         "at once, a backend each"};
    double s[3][BENCH_ROUNDS_MAX], ratio[3][BENCH_ROUNDS_MAX], held[3][BENCH_ROUNDS_MAX], idle[3][BENCH_ROUNDS_MAX];
    for (uint32_t i = 0; i <= rounds; i++) { /* the first is not counted */
        const uint32_t at = i > 0 ? i - 1 : 0;
        for (uint32_t k = 0; k < 3; k++) {
            const uint32_t way = (k + i) % 3;
            const measured m = way == 2 ? measure(&apart[0], &apart[1], b[1], true, n_tokens)
                                        : measure(&shared[0], &shared[1], b[0], way == 1, n_tokens);
            s[way][at] = m.seconds;
            held[way][at] = m.held_ms;
            idle[way][at] = m.free_ms;
        }
        for (uint32_t k = 0; k < 3; k++) ratio[k][at] = s[k][at] / s[0][at];
    }
    for (uint32_t k = 0; k < 3; k++) {
        printf("%-30s %.2f s for %u tokens of each   %.2fx", names[k], bench_median(s[k], rounds), n_tokens,
               bench_median(ratio[k], rounds));
        if (k < 2)
            printf("   turns of %.2f ms, %.3f ms between them", bench_median(held[k], rounds),
                   bench_median(idle[k], rounds));
        printf("\n");
    }
    for (int i = 0; i < 2; i++) {
        unserve(&shared[i]);
        unserve(&apart[i]);
    }
    for (int i = 0; i < 3; i++) realm_backend_close(b[i]);
    return 0;
}
