/* bench/models.c - two models busy at once: on one backend in turns, on a backend each, and one after the other.
 *
 * Each round decodes the same number of tokens of both models in the three ways, in turn, so that what else the machine
 * does falls on all of them; printed are medians, and the median of the rounds' ratios to "one after the other".
 *
 *     build/bench/models A.gguf B.gguf [tokens] [rounds]
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/thread.h"
#include "engine/engine.h"

#define ROUNDS_MAX 64u

typedef struct waiter {
    realm_mutex mu;
    realm_cond cond;
    bool ready;
} waiter;

static void on_ready(void *user) {
    waiter *w = user;
    realm_mutex_lock(&w->mu);
    w->ready = true;
    realm_cond_signal(&w->cond);
    realm_mutex_unlock(&w->mu);
}

static void die(const char *what, const realm_error *err) {
    fprintf(stderr, "bench-models: %s: %s\n", what, err->text);
    exit(1);
}

typedef struct served { /* one model, on one backend */
    realm_gguf *g;
    realm_tokenizer *t;
    realm_model *m;
    realm_engine *e;
    realm_account *a;
    realm_generation *gen;
    waiter w;
} served;

static void serve(served *s, realm_backend *b, const char *path) {
    realm_error err = {0};
    const realm_engine_config config = {.n_ctx = 512, .max_generations = 4};
    const realm_account_limits limits = {0};
    if (realm_gguf_open(&s->g, path, &err) || realm_tokenizer_open(&s->t, s->g, &err) ||
        realm_model_open(&s->m, b, s->g, NULL, &err) || realm_engine_open(&s->e, b, s->m, s->t, &config, &err) ||
        realm_account_open(s->e, &limits, NULL, &s->a, &err))
        die(path, &err);
    realm_mutex_init(&s->w.mu, REALM_RANK_LEAF);
    realm_cond_init(&s->w.cond);
}

static void unserve(served *s) {
    realm_account_close(s->a);
    realm_engine_close(s->e);
    realm_model_close(s->m);
    realm_tokenizer_close(s->t);
    realm_gguf_close(s->g);
}

static void start(served *s, uint32_t n_tokens) {
    realm_error err = {0};
    const realm_token prompt[] = {10, 20, 30, 40};
    realm_generation_params p = {.account = s->a,
                                 .prompt = prompt,
                                 .n_prompt = REALM_ARRAY_LEN(prompt),
                                 .max_tokens = n_tokens,
                                 .ignore_end = true,
                                 .on_ready = on_ready,
                                 .user = &s->w};
    realm_sampling_init(&p.sampling);
    p.sampling.temperature = 0;
    if (realm_generation_submit(s->e, &p, &s->gen, &err)) die("submit", &err);
}

static void wait_end(served *s) {
    realm_event_batch b;
    realm_event_batch_init(&b);
    for (bool ended = false; !ended;) {
        realm_mutex_lock(&s->w.mu);
        while (!s->w.ready) realm_cond_wait(&s->w.cond, &s->w.mu);
        s->w.ready = false;
        realm_mutex_unlock(&s->w.mu);
        size_t n = realm_generation_poll(s->gen, &b);
        ended = n > 0 && b.events[n - 1].kind == REALM_EVENT_END;
    }
    realm_event_batch_release(&b);
    realm_generation_release(s->gen);
}

static double seconds(served *a, served *b, bool together, uint32_t n_tokens) {
    uint64_t t0 = realm_clock_ns();
    start(a, n_tokens);
    if (!together) wait_end(a);
    start(b, n_tokens);
    if (together) wait_end(a);
    wait_end(b);
    return (double)(realm_clock_ns() - t0) / 1e9;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(const double *v, uint32_t n) {
    double sorted[ROUNDS_MAX];
    memcpy(sorted, v, n * sizeof *v);
    qsort(sorted, n, sizeof *sorted, by_value);
    return sorted[n / 2];
}

int main(int argc, char **argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: %s A.gguf B.gguf [tokens] [rounds]\n", argv[0]);
        return 2;
    }
    const uint32_t n_tokens = argc > 3 ? (uint32_t)strtoul(argv[3], NULL, 10) : 100;
    uint32_t rounds = argc > 4 ? (uint32_t)strtoul(argv[4], NULL, 10) : 9;
    if (rounds == 0 || rounds > ROUNDS_MAX) rounds = 9;
    realm_error err = {0};
    realm_backend *b[3];
    for (int i = 0; i < 3; i++)
        if (realm_backend_open_cpu(&b[i], &(realm_backend_config){0}, &err)) die("backend", &err);
    served shared[2] = {0}, apart[2] = {0};
    for (int i = 0; i < 2; i++) {
        serve(&shared[i], b[0], argv[1 + i]);
        serve(&apart[i], b[1 + i], argv[1 + i]);
    }
    static const char *const names[3] = {"one after the other", "at once, one backend in turns",
                                         "at once, a backend each"};
    double s[3][ROUNDS_MAX], ratio[3][ROUNDS_MAX];
    for (uint32_t i = 0; i <= rounds; i++) { /* the first is not counted */
        const uint32_t at = i > 0 ? i - 1 : 0;
        for (uint32_t k = 0; k < 3; k++) {
            const uint32_t way = (k + i) % 3;
            s[way][at] = way == 2 ? seconds(&apart[0], &apart[1], true, n_tokens)
                                  : seconds(&shared[0], &shared[1], way == 1, n_tokens);
        }
        for (uint32_t k = 0; k < 3; k++) ratio[k][at] = s[k][at] / s[0][at];
    }
    realm_turn_stats t;
    realm_backend_turn_get_stats(b[0], &t);
    for (uint32_t k = 0; k < 3; k++)
        printf("%-30s %.2f s for %u tokens of each   %.2fx\n", names[k], median(s[k], rounds), n_tokens,
               median(ratio[k], rounds));
    printf("turns of the shared one: %llu, of which %llu waited %.2f ms each\n", (unsigned long long)t.turns,
           (unsigned long long)t.waits, t.waits ? (double)t.wait_ns / 1e6 / (double)t.waits : 0);
    for (int i = 0; i < 2; i++) {
        unserve(&shared[i]);
        unserve(&apart[i]);
    }
    for (int i = 0; i < 3; i++) realm_backend_close(b[i]);
    return 0;
}
