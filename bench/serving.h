/* bench/serving.h - what the benchmarks that run engines share: opening one for a model file, waiting for whatever
 * generations have to say, and medians. */
#ifndef BENCH_SERVING_H
#define BENCH_SERVING_H

#include "base/thread.h"
#include "engine/engine.h"

#define BENCH_ROUNDS_MAX 64u

/* Prints and ends the program. */
void bench_die(const char *what, const realm_error *err);

/* A model file on a backend, with an engine. */
typedef struct bench_served {
    realm_gguf *g;
    realm_tokenizer *t;
    realm_model *m;
    realm_engine *e;
} bench_served;

void bench_serve(bench_served *s, realm_backend *b, const char *path, const realm_engine_config *config);
void bench_unserve(bench_served *s);

/* Where generations report: on_ready of their parameters, with the reader as its user. */
typedef struct bench_reader {
    realm_mutex mu;
    realm_cond cond;
    bool ready;
} bench_reader;

void bench_reader_init(bench_reader *r);
void bench_on_ready(void *user);
void bench_wait(bench_reader *r); /* until one of them has something; polling is the caller's */

/* A greedy generation of n_tokens tokens (0: as many as fit), whatever ends the text. */
realm_generation *bench_start(realm_engine *e, realm_account *a, bench_reader *r, const realm_token *prompt,
                              uint32_t n_prompt, uint32_t n_tokens);

/* n <= BENCH_ROUNDS_MAX */
double bench_median(const double *v, uint32_t n);

#endif
