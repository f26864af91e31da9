/* support/oracle.h - what the engine should say, from plan runs of one token each over one sequence: no scheduler, no
 * pages that move, no cache. Keeps its last sequence, so that asking for neighbours of it is cheap. */
#ifndef TESTS_SUPPORT_ORACLE_H
#define TESTS_SUPPORT_ORACLE_H

#include "support/engine_run.h"

#define ORACLE_TOKENS (MODEL_RUN_PAGES * REALM_KV_PAGE_TOKENS)

typedef struct oracle {
    model_run r;
    int32_t tokens[ORACLE_TOKENS];
    uint32_t n; /* computed */
    uint32_t n_vocab;
} oracle;

/* Takes over g. */
__attribute__((unused)) static void oracle_open(oracle *o, realm_gguf *g) {
    model_run_open(&o->r, g, 1, 1, 1);
    o->n = 0;
    o->n_vocab = realm_model_hparams(o->r.m)->n_vocab;
}

__attribute__((unused)) static void oracle_open_tiny(oracle *o, const tiny_model *file) {
    realm_error err = {0};
    realm_gguf *g;
    if (realm_gguf_open_memory(&g, file->file, file->file_len, &err) != REALM_OK) model_run_fail("gguf", &err);
    oracle_open(o, g);
}

static void oracle_close(oracle *o) { model_run_close(&o->r); }

/* The logits after tokens[0 .. n); valid until the next call. */
static const float *oracle_logits(oracle *o, const int32_t *tokens, uint32_t n) {
    assert_in_range(n, 1, ORACLE_TOKENS);
    uint32_t same = 0;
    while (same < o->n && same < n && o->tokens[same] == tokens[same]) same++;
    if (same == n) same--; /* its logits are wanted */
    memcpy(o->tokens + same, tokens + same, (n - same) * sizeof *tokens);
    for (uint32_t i = same; i < n; i++) model_run_step(&o->r, o->tokens, i, 1, 1);
    o->n = n;
    return model_run_logits(&o->r, 0);
}

/* The greedy token after tokens[0 .. n). */
static int32_t oracle_next(oracle *o, const int32_t *tokens, uint32_t n) {
    const float *l = oracle_logits(o, tokens, n);
    int32_t best = 0;
    for (int32_t j = 1; j < (int32_t)o->n_vocab; j++)
        if (l[j] > l[best]) best = j;
    return best;
}

/* Continues tokens[0 .. n) greedily by n_new in place. */
__attribute__((unused)) static void oracle_continue(oracle *o, int32_t *tokens, uint32_t n, uint32_t n_new) {
    for (uint32_t i = n; i < n + n_new; i++) tokens[i] = oracle_next(o, tokens, i);
}

#endif
