/* bench/serving.c - see serving.h. */
#include "serving.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void bench_die(const char *what, const realm_error *err) {
    fprintf(stderr, "bench: %s: %s\n", what, err->text);
    exit(1);
}

void bench_serve(bench_served *s, realm_backend *b, const char *path, const realm_engine_config *config) {
    realm_error err = {0};
    if (realm_gguf_open(&s->g, path, &err) || realm_tokenizer_open(&s->t, s->g, &err) ||
        realm_model_open(&s->m, b, s->g, NULL, &err) || realm_engine_open(&s->e, b, s->m, s->t, config, &err))
        bench_die(path, &err);
}

void bench_unserve(bench_served *s) {
    realm_engine_close(s->e);
    realm_model_close(s->m);
    realm_tokenizer_close(s->t);
    realm_gguf_close(s->g);
}

void bench_reader_init(bench_reader *r) {
    r->ready = false;
    realm_mutex_init(&r->mu, REALM_RANK_LEAF);
    realm_cond_init(&r->cond);
}

void bench_on_ready(void *user) {
    bench_reader *r = user;
    realm_mutex_lock(&r->mu);
    r->ready = true;
    realm_cond_signal(&r->cond);
    realm_mutex_unlock(&r->mu);
}

void bench_wait(bench_reader *r) {
    realm_mutex_lock(&r->mu);
    while (!r->ready) realm_cond_wait(&r->cond, &r->mu);
    r->ready = false;
    realm_mutex_unlock(&r->mu);
}

realm_generation *bench_start(realm_engine *e, realm_account *a, bench_reader *r, const realm_token *prompt,
                              uint32_t n_prompt, uint32_t n_tokens) {
    realm_error err = {0};
    realm_generation *g;
    realm_generation_params p = {.account = a,
                                 .prompt = prompt,
                                 .n_prompt = n_prompt,
                                 .max_tokens = n_tokens,
                                 .ignore_end = true,
                                 .on_ready = bench_on_ready,
                                 .user = r};
    realm_sampling_init(&p.sampling);
    p.sampling.temperature = 0;
    if (realm_generation_submit(e, &p, &g, &err)) bench_die("submit", &err);
    return g;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(const double *v, uint32_t n) {
    double sorted[BENCH_ROUNDS_MAX];
    memcpy(sorted, v, n * sizeof *v);
    qsort(sorted, n, sizeof *sorted, by_value);
    return sorted[n / 2];
}
