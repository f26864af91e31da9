/* support/model_run.h - a model file opened over the CPU backend, and logits of a token sequence, for tests. */
#ifndef TESTS_SUPPORT_MODEL_RUN_H
#define TESTS_SUPPORT_MODEL_RUN_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "model/model.h"

#define MODEL_RUN_PAGES 96u

typedef struct model_run {
    realm_backend *b;
    realm_gguf *g;
    realm_model *m;
    realm_kv *kv;
    realm_plan *plan;
    uint32_t pages[MODEL_RUN_PAGES];
} model_run;

/* Path of a model of the test set in the cache, or NULL where it has not been fetched (the test then skips). */
__attribute__((unused)) static const char *cached_model(const char *name) {
    static char path[1024];
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (cache && *cache)
        snprintf(path, sizeof path, "%s/realm/models/%s", cache, name);
    else
        snprintf(path, sizeof path, "%s/.cache/realm/models/%s", home ? home : "", name);
    return access(path, R_OK) == 0 ? path : NULL;
}

static void model_run_fail(const char *what, const realm_error *err) {
    print_error("%s: %s (%s)\n", what, err->text, realm_status_name(err->code));
    fail();
}

/* Takes over `g`. weight_budget as in realm_model_options. */
__attribute__((unused)) static void model_run_open_budget(model_run *r, realm_gguf *g, uint32_t n_threads,
                                                          uint32_t max_rows, uint32_t max_out, uint64_t weight_budget) {
    const realm_model_options options = {.weight_budget_bytes = weight_budget};
    realm_error err = {0};
    realm_backend_config config = {.n_threads = n_threads};
    *r = (model_run){.g = g};
    if (realm_backend_open_cpu(&r->b, &config, &err) != REALM_OK) model_run_fail("backend", &err);
    if (realm_model_open(&r->m, r->b, g, &options, &err) != REALM_OK) model_run_fail("model", &err);
    if (realm_model_kv_open(r->m, MODEL_RUN_PAGES, &r->kv, &err) != REALM_OK) model_run_fail("kv", &err);
    if (realm_model_plan_open(r->m, r->kv, max_rows, max_out, &r->plan, &err) != REALM_OK) model_run_fail("plan", &err);
    /* Pages out of order, so that a kernel that takes them for neighbours is found out. */
    for (uint32_t i = 0; i < MODEL_RUN_PAGES; i++) r->pages[i] = (i * 37 + 11) % MODEL_RUN_PAGES;
}

__attribute__((unused)) static void model_run_open(model_run *r, realm_gguf *g, uint32_t n_threads, uint32_t max_rows,
                                                   uint32_t max_out) {
    model_run_open_budget(r, g, n_threads, max_rows, max_out, 0);
}

__attribute__((unused)) static void model_run_close(model_run *r) {
    r->b->v->plan_close(r->b, r->plan);
    r->b->v->kv_close(r->b, r->kv);
    realm_model_close(r->m);
    realm_gguf_close(r->g);
    realm_backend_close(r->b);
}

/* Runs tokens [from, from + n) of one sequence whose first `from` tokens are in the KV; wants the last n_out rows. */
__attribute__((unused)) static void model_run_step(model_run *r, const int32_t *tokens, uint32_t from, uint32_t n,
                                                   uint32_t n_out) {
    realm_error err = {0};
    realm_batch_seq seq = {.first_row = 0, .n_rows = n, .n_past = from, .pages = r->pages};
    uint32_t *out = calloc(n_out + 1, sizeof *out);
    for (uint32_t i = 0; i < n_out; i++) out[i] = n - n_out + i;
    realm_batch batch = {
        .n_rows = n, .tokens = tokens + from, .n_seqs = 1, .seqs = &seq, .n_out = n_out, .out_rows = out};
    if (r->b->v->run(r->b, r->plan, &batch, &err) != REALM_OK) model_run_fail("run", &err);
    free(out);
}

__attribute__((unused)) static const float *model_run_logits(model_run *r, uint32_t i) {
    return r->b->v->logits(r->plan, i);
}

#endif
