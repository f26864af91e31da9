/* bench/tokens.c - what a program in the loop costs per token, on a real model, with and without the sandbox.
 *
 * The same request (greedy, a fixed number of tokens) three ways, in turn, several rounds in one run: straight from the
 * engine, through the default program (tokens go to the client by the pipe), and through a program that reads every
 * token and emits its own text. What is compared is the time
 * from the first token to the last, and the processor time of the process meanwhile.
 *
 *     build/bench/tokens MODEL.gguf [tokens] [rounds]
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/thread.h"
#include "sandbox/sandbox.h"
#include "tenant/tenant.h"

#define PROMPT "Once upon a time"
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

static void await(waiter *w) {
    realm_mutex_lock(&w->mu);
    while (!w->ready) realm_cond_wait(&w->cond, &w->mu);
    w->ready = false;
    realm_mutex_unlock(&w->mu);
}

static void die(const char *what, const realm_error *err) {
    fprintf(stderr, "bench-tokens: %s: %s\n", what, err->text);
    exit(1);
}

static uint64_t process_cpu_ns(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return ((uint64_t)u.ru_utime.tv_sec + (uint64_t)u.ru_stime.tv_sec) * REALM_NS_PER_S +
           ((uint64_t)u.ru_utime.tv_usec + (uint64_t)u.ru_stime.tv_usec) * REALM_NS_PER_US;
}

typedef struct sample {
    double wall_us, cpu_us; /* per token */
} sample;

/* From the first token to the last: what a request costs once (prompt, instance, ledger) is left out. */
typedef struct token_span {
    uint64_t t0, t1, cpu0, cpu1;
} token_span;

static void note(token_span *s) {
    s->t1 = realm_clock_ns();
    s->cpu1 = process_cpu_ns();
    if (s->t0) return;
    s->t0 = s->t1;
    s->cpu0 = s->cpu1;
}

static sample done(const token_span *s, uint32_t n) {
    return (sample){(double)(s->t1 - s->t0) / 1e3 / (n - 1), (double)(s->cpu1 - s->cpu0) / 1e3 / (n - 1)};
}

static void params_init(realm_generation_params *g, uint32_t n) {
    memset(g, 0, sizeof *g);
    realm_sampling_init(&g->sampling);
    g->sampling.temperature = 0;
    g->max_tokens = n;
    g->ignore_end = true;
}

static sample by_engine(realm_engine *e, realm_account *a, waiter *w, uint32_t n) {
    realm_error err = {0};
    realm_tokens ids = {0};
    realm_generation *g = NULL;
    realm_event_batch b;
    realm_generation_params p;
    params_init(&p, n);
    realm_event_batch_init(&b);
    token_span span = {0};
    if (realm_tokenizer_encode(realm_engine_tokenizer(e), PROMPT, strlen(PROMPT), REALM_ENCODE_ADD_SPECIAL, 64, &ids,
                               &err))
        die("encode", &err);
    p.account = a;
    p.prompt = ids.ids;
    p.n_prompt = ids.len;
    p.on_ready = on_ready;
    p.user = w;
    if (realm_generation_submit(e, &p, &g, &err)) die("submit", &err);
    for (bool ended = false; !ended;) {
        await(w);
        while (realm_generation_poll(g, &b) > 0) {
            ended = b.events[b.n_events - 1].kind == REALM_EVENT_END;
            if (!ended || b.n_events > 1) note(&span);
        }
    }
    sample s = done(&span, n);
    realm_generation_release(g);
    realm_event_batch_release(&b);
    realm_tokens_release(&ids);
    return s;
}

static sample by_program(realm_tenant *t, const char *model, waiter *w, uint32_t n) {
    realm_error err = {0};
    realm_request *r = NULL;
    realm_run *run = NULL;
    realm_event_batch b;
    static const char INPUT[] = "{\"endpoint\":\"completion\",\"prompt\":\"" PROMPT "\"}";
    realm_run_params p = {.input = INPUT,
                          .input_len = sizeof INPUT - 1,
                          .kind = REALM_PROMPT_TEXT,
                          .prompt = PROMPT,
                          .prompt_len = sizeof PROMPT - 1,
                          .on_ready = on_ready,
                          .user = w};
    params_init(&p.generation, n);
    realm_event_batch_init(&b);
    w->ready = false;
    token_span span = {0};
    if (realm_request_open(t, model, NULL, &r, &err) || realm_run_start(r, &p, &run, &err)) die("run", &err);
    for (bool ended = false; !ended;) {
        await(w);
        while (realm_run_poll(run, &b) > 0) {
            ended = b.events[b.n_events - 1].kind == REALM_EVENT_END;
            if (!ended || b.n_events > 1) note(&span);
        }
    }
    sample s = done(&span, n);
    if (b.status) die("run", &b.error);
    realm_run_release(run);
    realm_request_close(r);
    realm_event_batch_release(&b);
    return s;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* The median of a round's differences to the engine of the same round. */
static void print_row(const char *what, const sample *s, const sample *base, unsigned n) {
    double wall[ROUNDS_MAX], cpu[ROUNDS_MAX], wall_more[ROUNDS_MAX], cpu_more[ROUNDS_MAX];
    for (unsigned i = 0; i < n; i++) {
        wall[i] = s[i].wall_us;
        cpu[i] = s[i].cpu_us;
        wall_more[i] = s[i].wall_us - base[i].wall_us;
        cpu_more[i] = s[i].cpu_us - base[i].cpu_us;
    }
    qsort(wall, n, sizeof *wall, by_value);
    qsort(cpu, n, sizeof *cpu, by_value);
    qsort(wall_more, n, sizeof *wall_more, by_value);
    qsort(cpu_more, n, sizeof *cpu_more, by_value);
    printf("%-28s %10.1f us a token %+9.1f   %10.1f us of CPU %+9.1f\n", what, wall[n / 2], wall_more[n / 2],
           cpu[n / 2], cpu_more[n / 2]);
}

static realm_tenant *tenant(realm_runtime *rt, const char *name, const char *program) {
    realm_error err = {0};
    realm_tenant_row row;
    realm_tenant *t = NULL;
    char *wasm = NULL;
    size_t n = 0;
    if (realm_store_tenant_create(realm_runtime_store(rt), name, NULL, NULL, 0, &row, &err) ||
        realm_runtime_tenant(rt, name, &t, &err))
        die(name, &err);
    if (program && (realm_file_read(program, 1u << 20, &wasm, &n, &err) || realm_tenant_set_program(t, wasm, n, &err)))
        die(program, &err);
    realm_free(wasm);
    return t;
}

int main(int argc, char **argv) {
    if (argc == 5 && !strcmp(argv[2], "compile-child")) return realm_sandbox_compile_child(argc - 3, argv + 3);
    uint32_t n = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 64;
    unsigned rounds = argc > 3 ? (unsigned)strtoul(argv[3], NULL, 10) : 9;
    if (argc < 2 || n < 2 || rounds == 0 || rounds > ROUNDS_MAX) {
        fprintf(stderr, "usage: tokens MODEL.gguf [tokens] [rounds]\n");
        return 2;
    }
    realm_error err = {0};
    realm_runtime *rt = NULL;
    realm_account *a = NULL;
    realm_runtime_config config = {.compiler_path = "/proc/self/exe"};
    waiter w = {0};
    realm_mutex_init(&w.mu, REALM_RANK_LEAF);
    realm_cond_init(&w.cond);
    if (realm_runtime_open(&rt, &config, &err) || realm_runtime_add_model(rt, "model", argv[1], NULL, NULL, NULL, &err))
        die("open", &err);
    realm_tenant *plain = tenant(rt, "plain", NULL), *reads = tenant(rt, "reads", BENCH_GUEST);
    realm_engine *e = realm_runtime_engine(rt, "model");
    if (realm_account_open(e, NULL, NULL, &a, &err)) die("account", &err);
    static sample engine[ROUNDS_MAX], pipe[ROUNDS_MAX], events[ROUNDS_MAX];
    by_engine(e, a, &w, n); /* what is made on first use */
    for (unsigned i = 0; i < rounds; i++) {
        for (unsigned k = 0; k < 3; k++) /* each is first in a third of the rounds */
            switch ((i + k) % 3) {
            case 0: engine[i] = by_engine(e, a, &w, n); break;
            case 1: pipe[i] = by_program(plain, "model", &w, n); break;
            default: events[i] = by_program(reads, "model", &w, n); break;
            }
    }
    printf("%u tokens, %u rounds in turn; medians, and medians of the differences to the engine in the same round\n", n,
           rounds);
    print_row("engine alone", engine, engine, rounds);
    print_row("default program (pipe)", pipe, engine, rounds);
    print_row("program reads every token", events, engine, rounds);
    realm_account_close(a);
    realm_tenant_release(plain);
    realm_tenant_release(reads);
    realm_runtime_close(rt);
    return 0;
}
