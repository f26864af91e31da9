/* A tensor service over the CPU backend, and lists that are waited for. */
#ifndef TESTS_TENSOR_FIXTURE_H
#define TESTS_TENSOR_FIXTURE_H

#include "support/tiny_model.h"
#include "tensor/tensor.h"

typedef struct tensor_run {
    realm_backend *b;
    realm_tensor_service *s;
    realm_tensor_budget *budget;
    bool borrowed; /* the backend */
} tensor_run;

__attribute__((unused)) static void tensor_run_open(tensor_run *r, realm_backend *b, uint32_t threads,
                                                    const char *level) {
    realm_error err = {0};
    *r = (tensor_run){.b = b, .borrowed = b != NULL};
    realm_backend_config config = {.n_threads = threads, .cpu_level = level};
    if (!b && realm_backend_open_cpu(&r->b, &config, &err) != REALM_OK) model_run_fail("backend", &err);
    if (realm_tensor_service_open(r->b, &r->s, &err) != REALM_OK) model_run_fail("service", &err);
    if (realm_tensor_budget_open(UINT64_C(1) << 32, &r->budget, &err) != REALM_OK) model_run_fail("budget", &err);
}

/* Everything that was charged has come back. */
__attribute__((unused)) static void tensor_run_close(tensor_run *r) {
    realm_tensor_usage u;
    realm_tensor_service_close(r->s);
    realm_tensor_budget_usage(r->budget, &u);
    assert_int_equal(u.bytes, 0);
    realm_tensor_budget_close(r->budget);
    if (!r->borrowed) realm_backend_close(r->b);
}

__attribute__((unused)) static realm_tensor *tensor_make(tensor_run *r, uint64_t rows, uint64_t cols) {
    realm_error err = {0};
    realm_tensor *t;
    if (realm_tensor_new(r->budget, 2, (uint64_t[]){rows, cols}, &t, &err) != REALM_OK) model_run_fail("tensor", &err);
    return t;
}

__attribute__((unused)) static realm_tensor *tensor_of(tensor_run *r, uint64_t rows, uint64_t cols, const float *v) {
    realm_error err = {0};
    realm_tensor *t = tensor_make(r, rows, cols);
    if (realm_tensor_write(t, 0, rows * cols, v, &err) != REALM_OK) model_run_fail("write", &err);
    return t;
}

__attribute__((unused)) static realm_tensor *tensor_weight(realm_model *m, const char *name) {
    realm_error err = {0};
    realm_tensor *t;
    if (realm_tensor_of_weight(m, name, strlen(name), NULL, NULL, &t, &err) != REALM_OK) model_run_fail(name, &err);
    return t;
}

/* The end of a list, for the thread that waits for it. */
typedef struct waiter {
    realm_mutex mu;
    realm_cond cond;
    bool done;
    realm_status status;
    realm_error err;
} waiter;

__attribute__((unused)) static void waiter_init(waiter *w) {
    *w = (waiter){0};
    realm_mutex_init(&w->mu, REALM_RANK_LEAF);
    realm_cond_init(&w->cond);
}

__attribute__((unused)) static void waiter_done(void *user, realm_status status, const realm_error *err) {
    waiter *w = user;
    realm_mutex_lock(&w->mu);
    w->status = status;
    w->err = *err;
    w->done = true;
    realm_cond_signal(&w->cond);
    realm_mutex_unlock(&w->mu);
}

__attribute__((unused)) static realm_status waiter_wait(waiter *w, realm_error *err) {
    realm_mutex_lock(&w->mu);
    while (!w->done) realm_cond_wait(&w->cond, &w->mu);
    realm_mutex_unlock(&w->mu);
    if (w->status != REALM_OK && err) *err = w->err;
    realm_cond_destroy(&w->cond);
    realm_mutex_destroy(&w->mu);
    return w->status;
}

__attribute__((unused)) static realm_status tensor_try(tensor_run *r, const realm_tensor_op *ops, size_t n,
                                                       realm_error *err) {
    waiter w;
    realm_tensor_job *j;
    waiter_init(&w);
    realm_status s = realm_tensor_submit(r->s, r->budget, ops, n, waiter_done, &w, &j, err);
    if (s != REALM_OK) return s;
    s = waiter_wait(&w, err);
    realm_tensor_job_release(j);
    return s;
}

__attribute__((unused)) static void tensor_do(tensor_run *r, const realm_tensor_op *ops, size_t n) {
    realm_error err = {0};
    if (tensor_try(r, ops, n, &err) != REALM_OK) model_run_fail("list", &err);
}

__attribute__((unused)) static void tensor_get(const realm_tensor *t, uint64_t first, uint64_t n, float *out) {
    realm_error err = {0};
    if (realm_tensor_read(t, first, n, out, &err) != REALM_OK) model_run_fail("read", &err);
}

#endif
