/* bench/tenants/bench.h - what the parts of the tenants' bench share: rows, samples, a running client.
 *
 *     sandbox.c   a program by itself: start, host calls, wake-ups
 *     tokens.c    a program in the loop of a real model: cost per token by mode, 16 programs at once
 *     native.c    the same in lockstep without a sandbox
 *     scale.c     many: memory of tenants and instances, what is left of 10,000 of them, forks
 *     report.c    the table, and JSON
 */
#ifndef REALM_BENCH_TENANTS_H
#define REALM_BENCH_TENANTS_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/thread.h"
#include "sandbox/sandbox.h"
#include "tenant/tenant.h"

#ifndef BENCH_BUILD
#define BENCH_BUILD "build"
#endif
#define SAMPLES_MAX 4096u

/* ---- report.c ---- */

/* A line of the table. `without` is the same work with no sandbox, NAN where there is none; `goal` NAN: none, reached
 * when `with` is not above it (not below it where `more` is set). */
void report_open(bool json);
void report(const char *what, const char *unit, double with, double without, double goal, bool more);
/* The same for what was seen many times: `error` is the standard error of `with`. */
void report_mean(const char *what, const char *unit, double with, double error, double without, double goal);
void report_note(const char *text); /* a heading */
void report_close(void);            /* goals that were missed are marked; a bench does not fail */

typedef struct samples {
    double v[SAMPLES_MAX];
    size_t n;
} samples;
void sample_add(samples *s, double v);
double sample_at(samples *s, double share); /* 0.5: the median */
static inline double median(samples *s) { return sample_at(s, 0.5); }
/* Without the tenth at either end; *error is its standard error (Tukey and McLaughlin, Sankhya 25 (1963), 331). */
double trimmed_mean(samples *s, double *error);

/* ---- for runs of the whole runtime ---- */

_Noreturn void die(const char *what, const realm_error *err);

typedef struct bench {
    realm_runtime *rt;
    const char *path; /* of the model */
    realm_engine *engine;
    uint64_t rss_model; /* resident bytes once the model was loaded */
    uint32_t rounds;    /* of every mode of a program in the loop */
} bench;

/* A tenant of this name, made if absent, with a program of the build folder ("guest/default.wasm"; NULL: the default
 * one). */
realm_tenant *tenant_open(bench *b, const char *name, const char *program);

typedef struct client { /* one run, followed by one thread */
    realm_mutex mu;
    realm_cond cond;
    bool ready;
    realm_request *request;
    realm_run *run;
    realm_event_batch batch;
    uint32_t n_tokens, completion_tokens;
    uint64_t first_ns, last_ns; /* of what came to the client */
} client;
void client_init(client *c);
void client_release(client *c);
void client_on_ready(void *user);
void client_wait(client *c); /* until on_ready */
void client_begin(client *c, realm_tenant *t, uint32_t max_tokens);
/* Takes what is there; true when the run has ended and was released. */
bool client_poll(client *c);
void client_finish(client *c);

uint64_t resident_bytes(void);
uint64_t cpu_ns(void); /* of the process */

/* ---- native.c ---- */

typedef struct native native;
native *native_open(const char *path); /* of the model */
realm_engine *native_engine(native *n);
/* One request at a time; the reader is told whenever there are more tokens, the last time when there are n_tokens. */
void native_begin(native *n, client *reader, uint32_t n_tokens);
uint32_t native_tokens(native *n);
void native_turn(native *n); /* after the reader has been told: what no thread was lent for */
void native_end(native *n);
void native_close(native *n);

/* ---- parts ---- */
void bench_sandbox(void);
void bench_tokens(bench *b);
void bench_scale(bench *b);

#endif
