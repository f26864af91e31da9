/* cli/cmd_bench.c - `realm bench`: tokens per second of a model on this machine.
 *
 * Drives the model's plan over the backend as the engine does, without queues, sandboxes or sockets: prompts in chunks,
 * of which the last one's last row gives logits; decoding with one row per sequence, the next token being the best one.
 * Three kinds of test:
 *
 *     ppN       N prompt tokens into an empty context, all timed
 *     tgN@D     N tokens decoded after D that are not timed
 *     bB@P+N    B sequences with prompts of P (not timed), N tokens decoded together; tokens of all of them per second
 *
 * Prompts are fixed pseudo-random ids; speed does not depend on them. Every test is run once before it is timed.
 */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "cli/args.h"
#include "cli/cli.h"
#include "model/model.h"

#define CHUNK_TOKENS 256u
#define REPEAT_MOST 1000u
#define TOKENS_MOST (1u << 20)
#define BATCH_MOST 4096u
#define OUTPUT_MAX ((size_t)1 << 20)

typedef struct test {
    char name[48];
    uint32_t n_prompt, n_gen, depth, batch;
} test;

typedef struct bench {
    realm_gguf *g;
    realm_backend *b;
    realm_model *m;
    realm_kv *kv;
    realm_plan *plan;
    uint32_t n_vocab, per_seq; /* pages of a sequence */
    uint32_t *pages;           /* (batch, per_seq) */
    int32_t *prompt;           /* tokens of a prompt */
    int32_t *next;             /* (batch) */
    realm_batch_seq *seqs;
    uint32_t *out_rows;
    bool terminal;
} bench;

static int32_t best_token(const float *x, uint32_t n) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return (int32_t)best;
}

typedef struct pick {
    bench *b;
    uint32_t n, workers;
} pick;

static void pick_part(void *user, uint32_t worker) {
    const pick *p = user;
    for (uint32_t i = worker; i < p->n; i += p->workers)
        p->b->next[i] = best_token(p->b->b->v->logits(p->b->plan, i), p->b->n_vocab);
}

static realm_status prefill(bench *b, uint32_t seq, uint32_t n, realm_error *err) {
    for (uint32_t past = 0; past < n;) {
        uint32_t rows = REALM_MIN(CHUNK_TOKENS, n - past), last = rows - 1;
        realm_batch_seq s = {.n_rows = rows, .n_past = past, .pages = b->pages + (size_t)seq * b->per_seq};
        realm_batch batch = {.n_rows = rows,
                             .tokens = b->prompt + past,
                             .n_seqs = 1,
                             .seqs = &s,
                             .n_out = past + rows == n,
                             .out_rows = &last};
        realm_status st = b->b->v->run(b->b, b->plan, &batch, err);
        if (st != REALM_OK) return st;
        past += rows;
    }
    pick_part(&(pick){b, n > 0, 1}, 0);
    if (seq > 0) b->next[seq] = b->next[0];
    return REALM_OK;
}

static realm_status decode(bench *b, uint32_t n_seqs, uint32_t past, uint32_t n, realm_error *err) {
    for (uint32_t step = 0; step < n; step++) {
        for (uint32_t i = 0; i < n_seqs; i++) {
            b->seqs[i] = (realm_batch_seq){
                .first_row = i, .n_rows = 1, .n_past = past + step, .pages = b->pages + (size_t)i * b->per_seq};
            b->out_rows[i] = i;
        }
        realm_batch batch = {.n_rows = n_seqs,
                             .tokens = b->next,
                             .n_seqs = n_seqs,
                             .seqs = b->seqs,
                             .n_out = n_seqs,
                             .out_rows = b->out_rows};
        realm_status st = b->b->v->run(b->b, b->plan, &batch, err);
        if (st != REALM_OK) return st;
        pick p = {b, n_seqs, REALM_MIN(n_seqs, REALM_MAX(b->b->n_threads, 1u))};
        if (p.workers > 1)
            b->b->v->parallel(b->b, p.workers, pick_part, &p);
        else
            pick_part(&p, 0);
    }
    return REALM_OK;
}

static void close_run(bench *b) {
    if (b->plan) b->b->v->plan_close(b->b, b->plan);
    if (b->kv) b->b->v->kv_close(b->b, b->kv);
    realm_free(b->pages);
    realm_free(b->prompt);
    realm_free(b->next);
    realm_free(b->seqs);
    realm_free(b->out_rows);
    b->plan = NULL;
    b->kv = NULL;
    b->pages = b->out_rows = NULL;
    b->prompt = b->next = NULL;
    b->seqs = NULL;
}

/* KV, plan and arrays for one test. */
static realm_status open_run(bench *b, const test *t, realm_error *err) {
    uint32_t tokens = t->n_prompt + t->n_gen + t->depth;
    b->per_seq = (tokens + REALM_KV_PAGE_TOKENS - 1) / REALM_KV_PAGE_TOKENS;
    uint64_t n_pages = (uint64_t)b->per_seq * t->batch;
    if (n_pages > UINT32_MAX) return realm_error_set(err, REALM_E_RANGE, "more tokens than a KV pool can hold");
    b->pages = realm_calloc(n_pages, sizeof *b->pages);
    b->prompt = realm_calloc(tokens, sizeof *b->prompt);
    b->next = realm_calloc(t->batch, sizeof *b->next);
    b->seqs = realm_calloc(t->batch, sizeof *b->seqs);
    b->out_rows = realm_calloc(t->batch, sizeof *b->out_rows);
    if (!b->pages || !b->prompt || !b->next || !b->seqs || !b->out_rows)
        return realm_error_set(err, REALM_E_NOMEM, "no memory for %u tokens", tokens);
    for (uint32_t i = 0; i < n_pages; i++) b->pages[i] = i;
    uint64_t r = 1;
    for (uint32_t i = 0; i < tokens; i++) {
        r = r * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        b->prompt[i] = (int32_t)((r >> 33) % b->n_vocab);
    }
    realm_status s = realm_model_kv_open(b->m, (uint32_t)n_pages, &b->kv, err);
    if (s != REALM_OK) return s;
    return realm_model_plan_open(b->m, b->kv, REALM_MAX(CHUNK_TOKENS, t->batch), t->batch, &b->plan, err);
}

/* Tokens per second of one run. */
static realm_status sample(bench *b, const test *t, double *rate, realm_error *err) {
    uint32_t past = t->n_gen > 0 ? t->depth + t->n_prompt : 0, tokens = t->n_gen * t->batch;
    for (uint32_t i = 0; i < t->batch; i++) b->next[i] = b->prompt[0];
    realm_status s = REALM_OK;
    for (uint32_t i = 0; i < t->batch && past > 0 && s == REALM_OK; i++) s = prefill(b, i, past, err);
    if (s != REALM_OK) return s;
    uint64_t start = realm_clock_ns();
    if (t->n_gen > 0) {
        s = decode(b, t->batch, past, t->n_gen, err);
    } else {
        tokens = t->n_prompt;
        s = prefill(b, 0, t->n_prompt, err);
    }
    uint64_t ns = realm_clock_ns() - start;
    *rate = (double)tokens * 1e9 / (double)REALM_MAX(ns, 1u);
    return s;
}

static double median(const double *x, uint32_t n) {
    double sorted[REPEAT_MOST];
    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = i;
        for (; at > 0 && sorted[at - 1] > x[i]; at--) sorted[at] = sorted[at - 1];
        sorted[at] = x[i];
    }
    return n % 2 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
}

static void progress(const bench *b, const char *what, uint32_t done, uint32_t of) {
    if (b->terminal) fprintf(stderr, "\r\033[K%s %u/%u", what, done, of);
}

static realm_status run_test(bench *b, const test *t, uint32_t repeat, bool json, bool first, realm_buf *out,
                             realm_error *err) {
    double rates[REPEAT_MOST], unused;
    realm_status s = open_run(b, t, err);
    if (s == REALM_OK) {
        test warm = *t; /* touches weights and pages; short, as nothing else needs warming */
        warm.n_gen = REALM_MIN(warm.n_gen, 4u);
        if (warm.n_gen > 0) warm.depth = warm.n_prompt = REALM_MIN(warm.depth + warm.n_prompt, 16u) / 2;
        s = sample(b, &warm, &unused, err);
    }
    for (uint32_t i = 0; i < repeat && s == REALM_OK; i++) {
        progress(b, t->name, i + 1, repeat);
        s = sample(b, t, &rates[i], err);
    }
    close_run(b);
    if (b->terminal) fputs("\r\033[K", stderr);
    if (s != REALM_OK) return s;
    if (!json) {
        (void)realm_buf_printf(out, "%-12s %10.1f tokens/s", t->name, median(rates, repeat));
        double least = rates[0], most = rates[0];
        for (uint32_t i = 1; i < repeat; i++) {
            least = REALM_MIN(least, rates[i]);
            most = REALM_MAX(most, rates[i]);
        }
        (void)realm_buf_printf(out, "   (%.1f to %.1f, %u runs)\n", least, most, repeat);
        return realm_buf_status(out);
    }
    (void)realm_buf_printf(out,
                           "%s\n  {\"test\": \"%s\", \"n_prompt\": %u, \"n_gen\": %u, \"depth\": %u, \"batch\": %u, "
                           "\"tokens_per_second\": %.3f, \"samples\": [",
                           first ? "[" : ",", t->name, t->n_prompt, t->n_gen, t->depth, t->batch,
                           median(rates, repeat));
    for (uint32_t i = 0; i < repeat; i++) (void)realm_buf_printf(out, "%s%.3f", i ? ", " : "", rates[i]);
    (void)realm_buf_puts(out, "]}");
    return realm_buf_status(out);
}

static bool loading(void *user, uint64_t done, uint64_t total) {
    const bench *b = user;
    if (b->terminal && total > 0) fprintf(stderr, "\r\033[Kloading %u%%", (unsigned)(done * 100 / total));
    return true;
}

static realm_status open_model(bench *b, const char *name, uint32_t threads, uint64_t weight_budget, realm_error *err) {
    char *path = NULL;
    realm_backend_config config = {.n_threads = threads};
    realm_status s = realm_find_model(name, NULL, &path, err);
    if (s != REALM_OK) return s;
    s = realm_gguf_open(&b->g, path, err);
    if (s == REALM_OK) s = realm_backend_open_cpu(&b->b, &config, err);
    const realm_model_options options = {.weight_budget_bytes = weight_budget, .progress = loading, .user = b};
    if (s == REALM_OK) s = realm_model_open(&b->m, b->b, b->g, &options, err);
    if (s == REALM_OK) b->n_vocab = realm_model_hparams(b->m)->n_vocab;
    if (b->terminal) fputs("\r\033[K", stderr);
    realm_free(path);
    return s;
}

/* What the options ask for: both kinds without a batch are two tests, nothing is pp512 and tg128. */
static size_t choose_tests(uint64_t prompt, uint64_t gen, uint64_t depth, uint64_t batch, test tests[2]) {
    const uint32_t p = (uint32_t)prompt, n = (uint32_t)gen, d = (uint32_t)depth, b = (uint32_t)batch;
    size_t count = 0;
    if (b > 0) {
        tests[0] = (test){.n_prompt = p, .n_gen = n, .depth = d, .batch = b};
        snprintf(tests[0].name, sizeof tests[0].name, "b%u@%u+%u", b, p + d, n);
        return 1;
    }
    if (p > 0) {
        snprintf(tests[count].name, sizeof tests[count].name, "pp%u", p);
        tests[count].n_prompt = p;
        tests[count++].batch = 1;
    }
    if (n > 0) {
        if (d > 0)
            snprintf(tests[count].name, sizeof tests[count].name, "tg%u@%u", n, d);
        else
            snprintf(tests[count].name, sizeof tests[count].name, "tg%u", n);
        tests[count].n_gen = n;
        tests[count].depth = d;
        tests[count++].batch = 1;
    }
    return count;
}

int realm_cmd_bench(int argc, char **argv) {
    enum { MODEL = 1, THREADS, PROMPT, GEN, DEPTH, BATCH, REPEAT, WEIGHT_BUDGET };
    static const realm_option options[] = {{"--model", MODEL, true},
                                           {"--threads", THREADS, true},
                                           {"--prompt", PROMPT, true},
                                           {"--gen", GEN, true},
                                           {"--depth", DEPTH, true},
                                           {"--batch", BATCH, true},
                                           {"--repeat", REPEAT, true},
                                           {"--weight-budget", WEIGHT_BUDGET, true},
                                           {0}};
    static const char usage[] =
        "usage: realm bench --model ID-or-FILE [--threads N] [--prompt N] [--gen N] [--depth N]\n"
        "                   [--batch B] [--repeat R] [--weight-budget SIZE] [--output json]\n";
    static const char help[] = "\nMeasures tokens per second: --prompt N alone is prefill; --gen N is decoding, after\n"
                               "--depth D tokens; --batch B --prompt P --gen N is B sequences decoding together after\n"
                               "prompts of P tokens, all their tokens counted. Without any of them: --prompt 512 and\n"
                               "--gen 128. The figure is the median of R runs (default 3).\n"
                               "--weight-budget S streams the layers through that much memory, like 60M.\n\n";
    realm_args args = {.command = "bench",
                       .usage = usage,
                       .help = help,
                       .options = options,
                       .prints_data = true,
                       .argc = argc,
                       .argv = argv};
    const char *model = NULL, *value;
    uint64_t threads = 0, prompt = 0, gen = 0, depth = 0, batch = 0, repeat = 3, weight_budget = 0;
    for (int id; (id = realm_args_next(&args, &value)) != 0;) {
        bool ok = true;
        switch (id) {
        case -1: return args.status;
        case MODEL: model = value; break;
        case THREADS: ok = realm_args_u64(&args, "--threads", value, 1, 1024, &threads); break;
        case PROMPT: ok = realm_args_u64(&args, "--prompt", value, 1, TOKENS_MOST, &prompt); break;
        case GEN: ok = realm_args_u64(&args, "--gen", value, 1, TOKENS_MOST, &gen); break;
        case DEPTH: ok = realm_args_u64(&args, "--depth", value, 0, TOKENS_MOST, &depth); break;
        case BATCH: ok = realm_args_u64(&args, "--batch", value, 1, BATCH_MOST, &batch); break;
        case REPEAT: ok = realm_args_u64(&args, "--repeat", value, 1, REPEAT_MOST, &repeat); break;
        case WEIGHT_BUDGET: ok = realm_args_size(&args, "--weight-budget", value, &weight_budget); break;
        default: break;
        }
        if (!ok) return args.status;
    }
    if (!model) return realm_args_usage(&args, "--model is missing", "");
    if (batch > 0 && gen == 0) return realm_args_usage(&args, "--batch needs --gen", "");
    if (depth > 0 && gen == 0) return realm_args_usage(&args, "--depth needs --gen", "");
    if (prompt == 0 && gen == 0) prompt = 512, gen = 128;

    bench b = {.terminal = isatty(STDERR_FILENO)};
    test tests[2] = {0};
    size_t n_tests = choose_tests(prompt, gen, depth, batch, tests);
    realm_error err = {0};
    realm_buf out;
    realm_buf_init(&out, OUTPUT_MAX);
    realm_status s = open_model(&b, model, (uint32_t)threads, weight_budget, &err);
    if (s == REALM_OK && !args.json) (void)realm_buf_printf(&out, "%s, %u threads\n", b.b->name, b.b->n_threads);
    for (size_t i = 0; i < n_tests && s == REALM_OK; i++)
        s = run_test(&b, &tests[i], (uint32_t)repeat, args.json, i == 0, &out, &err);
    if (s == REALM_OK && args.json) s = realm_buf_puts(&out, "\n]\n");
    realm_model_close(b.m);
    realm_gguf_close(b.g);
    realm_backend_close(b.b);
    if (s == REALM_OK) return realm_print("bench", &out);
    realm_buf_release(&out);
    if (err.code == REALM_OK) (void)realm_error_set(&err, s, "%s", realm_status_text(s));
    return realm_fail("bench", &err);
}
