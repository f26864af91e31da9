/* bench/kernels.c - the CPU backend without a model file: whole steps and single ops at the shapes of real models.
 *
 *   build/bench/kernels [threads [level [type [depth [rounds [model [M]]]]]]]
 *                       e.g. build/bench/kernels 2 vnni Q4_1 0 50 Smol 1
 *
 * Weights are random, of `type` in the layers and Q8_0 in the head, every layer with its own memory, so a step reads
 * what a real one reads. Decode is M sequences of one new token each, all at position `depth`; prefill one sequence of
 * 512. Each op is timed in a plan that holds it once per layer (with that layer's weights and pages) and nothing else
 * but what it takes to have a legal plan, whose own time is subtracted. Beside each figure: bytes that must move
 * (weights, K and V) over the time, and operations (2 per multiply-add) over the time. The first line has the
 * bandwidth that a plain read reaches in the same process at the same moment. Figures are of the best round (the floor
 * is what is asked for), and for whole steps the median too: machines are shared.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../tests/unit/support/random.h"
#include "base/alloc.h"
#include "base/clock.h"
#include "compute/compute.h"

#define ROUNDS_MOST 1001
#define COLD_BYTES ((size_t)128 << 20)
#define ENOUGH_NS (100 * REALM_NS_PER_MS) /* for one figure */
#define ROWS_MOST 512u
#define LAYERS_MOST 32u

typedef struct shape {
    const char *name;
    uint32_t dim, ff, n_head, n_kv, head_dim, n_layers, n_vocab, window;
    bool post_norms;
    realm_act act;
} shape;

static const shape shapes[] = {
    {"SmolLM2-135M", 576, 1536, 9, 3, 64, 30, 49152, 0, false, REALM_ACT_SILU},
    {"Gemma3-270M", 640, 2048, 4, 1, 256, 18, 262144, 512, true, REALM_ACT_GELU_TANH},
};

enum { V_X, V_Q, V_K, V_V, V_A, V_T, V_G, V_LOGITS, N_VALUES };
enum { W_QKV_Q, W_QKV_K, W_QKV_V, W_O, W_GATE, W_UP, W_DOWN, W_MATRICES };
enum { OP_QKV, OP_ROPE, OP_ATTENTION, OP_O, OP_GATE, OP_DOWN, OP_NORM_ADD, OP_HEAD, OP_KINDS };
static const char *const op_names[] = {"qkv", "rope_kv", "attention", "o", "gate_up", "down", "norm_add", "head"};

typedef struct bench {
    const shape *s;
    realm_backend *b;
    realm_kv *kv;
    realm_weight *layer[LAYERS_MOST][W_MATRICES], *gain, *head, *tiny_head;
    realm_weight *rows[N_VALUES]; /* 16 rows that fill a value, so that ops can read it */
    uint64_t matrix_bytes[W_MATRICES], head_bytes;
    realm_value_desc values[N_VALUES];
    uint32_t n_pages_per_seq;
    uint32_t *pages, only; /* only: the one batch size to time, 0 for all */
    int rounds;
    uint64_t *cold; /* COLD_BYTES to read between rounds */
} bench;

static void die(const realm_error *err) {
    fprintf(stderr, "bench/kernels: %s\n", err->text);
    exit(1);
}

/* A weight of random values; for ROWS the data stays allocated for the life of the program. */
static realm_weight *weight(bench *x, const char *type, uint64_t rows, uint64_t cols, unsigned use, uint64_t *bytes) {
    realm_error err = {0};
    const realm_type_info *t = realm_type_find(type);
    uint64_t row_bytes;
    if (!t || !t->quantize || !realm_type_row_bytes(t, cols, &row_bytes)) {
        realm_error_set(&err, REALM_E_UNSUPPORTED, "no rows of %llu values of type %s", (unsigned long long)cols, type);
        die(&err);
    }
    char *data = realm_malloc(rows * row_bytes);
    float *f = realm_malloc(cols * sizeof *f);
    if (!data || !f) exit(1);
    for (uint64_t r = 0; r < rows; r++) { /* quantising is slow: a few rows, again and again */
        if (r >= 16) {
            memcpy(data + r * row_bytes, data + r % 16 * row_bytes, row_bytes);
            continue;
        }
        for (uint64_t c = 0; c < cols; c++) f[c] = random_float(0.05f);
        t->quantize(f, data + r * row_bytes, cols);
    }
    realm_weight *w;
    realm_weight_desc d = {.type = t, .rows = rows, .cols = cols, .data = data, .use = use};
    if (x->b->v->weight_open(x->b, &d, &w, &err) != REALM_OK) die(&err);
    if (bytes) *bytes = rows * row_bytes;
    realm_free(f);
    if (!(use & REALM_WEIGHT_ROWS)) realm_free(data);
    return w;
}

static void open_model(bench *x, const char *type, uint32_t depth) {
    const shape *s = x->s;
    realm_error err = {0};
    uint32_t q = s->n_head * s->head_dim, kv = s->n_kv * s->head_dim;
    const uint32_t rows[W_MATRICES] = {q, kv, kv, s->dim, s->ff, s->ff, s->dim};
    const uint32_t cols[W_MATRICES] = {s->dim, s->dim, s->dim, q, s->dim, s->dim, s->ff};
    for (uint32_t l = 0; l < s->n_layers; l++)
        for (uint32_t i = 0; i < W_MATRICES; i++)
            x->layer[l][i] = weight(x, type, rows[i], cols[i], REALM_WEIGHT_LINEAR, &x->matrix_bytes[i]);
    x->gain = weight(x, "F32", 1, s->dim, REALM_WEIGHT_VECTOR, NULL);
    x->head = weight(x, "Q8_0", s->n_vocab, s->dim, REALM_WEIGHT_LINEAR, &x->head_bytes);
    x->tiny_head = weight(x, "F32", 16, s->dim, REALM_WEIGHT_LINEAR, NULL);
    const uint32_t value_cols[N_VALUES] = {s->dim, q, kv, kv, q, s->dim, s->ff, s->n_vocab};
    for (uint32_t i = 0; i < N_VALUES; i++) {
        x->values[i] = (realm_value_desc){value_cols[i], i == V_LOGITS ? REALM_ROWS_OUT : REALM_ROWS_BATCH};
        if (i != V_LOGITS) x->rows[i] = weight(x, "F32", 16, value_cols[i], REALM_WEIGHT_ROWS, NULL);
    }
    x->n_pages_per_seq = (depth + ROWS_MOST) / REALM_KV_PAGE_TOKENS + 1;
    uint32_t n_pages = 32 * ((depth + 1) / REALM_KV_PAGE_TOKENS + 1) + x->n_pages_per_seq;
    realm_kv_desc kd = {.n_layers = s->n_layers, .n_kv_head = s->n_kv, .head_dim = s->head_dim, .n_pages = n_pages};
    if (x->b->v->kv_open(x->b, &kd, &x->kv, &err) != REALM_OK) die(&err);
    for (uint32_t p = 0; p < n_pages; p++) x->b->v->kv_zero_page(x->b, x->kv, p); /* committed, and numbers */
    x->pages = realm_calloc(n_pages, sizeof *x->pages);
    if (!x->pages) exit(1);
    for (uint32_t p = 0; p < n_pages; p++) x->pages[p] = p;
}

/* ---- plans ------------------------------------------------------------------------------------------------------- */

static realm_op op_of(const bench *x, int kind, uint32_t l) {
    const shape *s = x->s;
    realm_weight *const *w = x->layer[l];
    realm_op op = {.kind = REALM_OP_LINEAR};
    realm_op_linear *o = &op.u.linear;
    switch (kind) {
    case OP_QKV:
        *o = (realm_op_linear){.x = V_X, .gain = x->gain, .eps = 1e-5f, .n_weights = 3};
        for (int i = 0; i < 3; i++) o->w[i] = w[W_QKV_Q + i], o->y[i] = (realm_value)(V_Q + i);
        break;
    case OP_ROPE:
        op.kind = REALM_OP_ROPE_KV;
        op.u.rope_kv = (realm_op_rope_kv){.q = V_Q,
                                          .k = V_K,
                                          .v = V_V,
                                          .layer = l,
                                          .n_head = s->n_head,
                                          .n_kv_head = s->n_kv,
                                          .head_dim = s->head_dim,
                                          .style = s->post_norms ? REALM_ROPE_HALVES : REALM_ROPE_PAIRS,
                                          .rope_dims = s->head_dim,
                                          .base = 1e5f,
                                          .freq_scale = 1};
        break;
    case OP_ATTENTION:
        op.kind = REALM_OP_ATTENTION;
        op.u.attention = (realm_op_attention){.q = V_Q,
                                              .out = V_A,
                                              .layer = l,
                                              .n_head = s->n_head,
                                              .n_kv_head = s->n_kv,
                                              .head_dim = s->head_dim,
                                              .window = l % 6 != 5 ? s->window : 0,
                                              .scale = 0.125f};
        break;
    case OP_O:
    case OP_DOWN:
        *o = (realm_op_linear){.x = kind == OP_O ? V_A : V_G,
                               .n_weights = 1,
                               .w = {w[kind == OP_O ? W_O : W_DOWN]},
                               .y = {s->post_norms ? V_T : V_X},
                               .epilogue = s->post_norms ? REALM_EPILOGUE_NONE : REALM_EPILOGUE_ADD};
        break;
    case OP_GATE:
        *o = (realm_op_linear){.x = V_X,
                               .gain = x->gain,
                               .eps = 1e-5f,
                               .n_weights = 2,
                               .w = {w[W_GATE], w[W_UP]},
                               .y = {V_G},
                               .epilogue = REALM_EPILOGUE_GATE,
                               .act = s->act};
        break;
    case OP_NORM_ADD:
        op.kind = REALM_OP_NORM_ADD;
        op.u.norm_add = (realm_op_norm_add){.x = V_T, .y = V_X, .gain = x->gain, .eps = 1e-6f};
        break;
    default:
        *o =
            (realm_op_linear){.x = V_X, .gain = x->gain, .eps = 1e-5f, .n_weights = 1, .w = {x->head}, .y = {V_LOGITS}};
    }
    return op;
}

/* Every value filled, then: kind < 0 nothing, a single kind once per layer, or OP_KINDS the whole model. */
static realm_plan *plan_of(bench *x, int kind) {
    static realm_op ops[N_VALUES + 1 + 16 * LAYERS_MOST];
    static const int order[] = {OP_QKV, OP_ROPE, OP_ATTENTION, OP_O, OP_NORM_ADD, OP_GATE, OP_DOWN, OP_NORM_ADD};
    realm_value_desc values[N_VALUES + 1];
    uint32_t n = 0;
    memcpy(values, x->values, sizeof x->values);
    values[N_VALUES] = (realm_value_desc){16, REALM_ROWS_OUT};
    for (uint32_t i = 0; i < (kind == OP_KINDS ? 1u : V_LOGITS); i++)
        ops[n++] = (realm_op){.kind = REALM_OP_EMBED, .u.embed = {.w = x->rows[i], .y = (realm_value)i, .scale = 1}};
    for (uint32_t l = 0; l < x->s->n_layers && kind >= 0 && kind != OP_HEAD; l++)
        for (size_t i = 0; i < REALM_ARRAY_LEN(order); i++) {
            bool post = order[i] == OP_NORM_ADD;
            if ((kind == OP_KINDS && (!post || x->s->post_norms)) || (kind == order[i] && (!post || i < 5)))
                ops[n++] = op_of(x, order[i], l);
        }
    if (kind == OP_HEAD || kind == OP_KINDS)
        ops[n++] = op_of(x, OP_HEAD, 0);
    else
        ops[n++] =
            (realm_op){.kind = REALM_OP_LINEAR,
                       .u.linear = {.x = V_X, .n_weights = 1, .w = {x->tiny_head}, .y = {(realm_value)N_VALUES}}};
    realm_plan_desc d = {.values = values,
                         .n_values = N_VALUES + 1,
                         .ops = ops,
                         .n_ops = n,
                         .max_rows = ROWS_MOST,
                         .max_out = 32,
                         .logits = kind == OP_HEAD || kind == OP_KINDS ? (realm_value)V_LOGITS : (realm_value)N_VALUES,
                         .kv = x->kv};
    realm_plan *p;
    realm_error err = {0};
    if (x->b->v->plan_open(x->b, &d, &p, &err) != REALM_OK) die(&err);
    return p;
}

/* ---- timing ------------------------------------------------------------------------------------------------------ */

static int by_size(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

typedef struct read_job {
    const uint64_t *data;
    size_t words;
    uint64_t sums[64];
} read_job;

static void read_part(void *user, uint32_t i) {
    read_job *r = user;
    uint64_t s[8] = {0};
    const uint64_t *p = r->data + r->words / 64 * i;
    for (size_t j = 0; j + 8 <= r->words / 64; j += 8)
        for (size_t k = 0; k < 8; k++) s[k] += p[j + k];
    r->sums[i] = s[0] + s[1] + s[2] + s[3] + s[4] + s[5] + s[6] + s[7];
}

/* Drives the weights out of the caches: a single op of all layers might fit there, a step does not. */
static void evict(bench *x) {
    if (x->cold) x->b->v->parallel(x->b, 64, read_part, &(read_job){.data = x->cold, .words = COLD_BYTES / 8});
}

/* Microseconds of a step in the best round, `cold` caches before each; the median goes to `median` (may be NULL). */
static double time_step(bench *x, realm_plan *p, uint32_t m, uint32_t depth, bool cold, double *median) {
    int32_t tokens[ROWS_MOST] = {0};
    realm_batch_seq seqs[32];
    uint32_t out[32], n_seqs = m > 32 ? 1 : m, pages = (depth + 1) / REALM_KV_PAGE_TOKENS + 1;
    for (uint32_t i = 0; i < m; i++) tokens[i] = (int32_t)(i % 16);
    for (uint32_t i = 0; i < n_seqs; i++) {
        seqs[i] = (realm_batch_seq){.first_row = i, .n_rows = 1, .n_past = depth, .pages = x->pages + i * pages};
        out[i] = i;
    }
    if (m > 32) seqs[0].n_rows = m, out[0] = m - 1;
    realm_batch b = {.n_rows = m, .tokens = tokens, .n_seqs = n_seqs, .seqs = seqs, .n_out = n_seqs, .out_rows = out};
    uint64_t ns[ROUNDS_MOST], begin = realm_clock_ns();
    realm_error err = {0};
    int n = 0;
    for (int r = -1; r < x->rounds && (n < 3 || realm_clock_ns() - begin < ENOUGH_NS); r++) {
        if (cold) evict(x);
        uint64_t t = realm_clock_ns();
        if (x->b->v->run(x->b, p, &b, &err) != REALM_OK) die(&err);
        if (r >= 0) ns[n++] = realm_clock_ns() - t; /* the first one warms up */
    }
    qsort(ns, (size_t)n, sizeof *ns, by_size);
    if (median) *median = (double)ns[n / 2] / 1e3;
    return (double)ns[0] / 1e3;
}

static double bandwidth(bench *x) {
    uint64_t best = UINT64_MAX;
    for (int i = 0; i < 7; i++) {
        uint64_t t = realm_clock_ns();
        evict(x);
        t = realm_clock_ns() - t;
        best = REALM_MIN(best, t);
    }
    return (double)COLD_BYTES / (double)best;
}

/* Bytes that one layer (or the head) must read, and operations. */
static void cost(const bench *x, int kind, uint32_t m, uint32_t depth, double *bytes, double *ops) {
    const shape *s = x->s;
    const uint64_t *mb = x->matrix_bytes;
    double q = s->n_head * s->head_dim, kv = s->n_kv * s->head_dim, dim = s->dim, ff = s->ff;
    double keys = m > 32 ? (double)depth + (m + 1) / 2.0 : (double)depth + 1, seqs = m > 32 ? 1 : m;
    if (s->window > 0 && keys > s->window) keys = keys / 6 + s->window * 5.0 / 6;
    *bytes = 0, *ops = 0;
    switch (kind) {
    case OP_QKV: *bytes = (double)(mb[0] + mb[1] + mb[2]), *ops = 2 * m * dim * (q + 2 * kv); break;
    case OP_ATTENTION: *bytes = seqs * keys * kv * 4, *ops = 4 * m * keys * q; break;
    case OP_O: *bytes = (double)mb[W_O], *ops = 2 * m * dim * q; break;
    case OP_GATE: *bytes = (double)(mb[W_GATE] + mb[W_UP]), *ops = 4 * m * dim * ff; break;
    case OP_DOWN: *bytes = (double)mb[W_DOWN], *ops = 2 * m * dim * ff; break;
    case OP_HEAD: *bytes = (double)x->head_bytes, *ops = 2 * seqs * dim * s->n_vocab; break;
    default: break;
    }
}

static void report(bench *x, uint32_t depth) {
    static const uint32_t batches[] = {1, 4, 8, 32, 512};
    realm_plan *plans[OP_KINDS + 2];
    for (int k = 0; k < OP_KINDS + 2; k++) plans[k] = plan_of(x, k - 1);
    for (size_t i = 0; i < REALM_ARRAY_LEN(batches); i++) {
        uint32_t m = batches[i], at = m > 32 ? 0 : depth;
        if (x->only > 0 && m != x->only) continue;
        double bytes = 0, ops = 0, gb = bandwidth(x);
        double median, whole = time_step(x, plans[OP_KINDS + 1], m, at, false, &median),
                       base = time_step(x, plans[0], m, at, true, NULL);
        for (int k = 0; k < OP_KINDS; k++) {
            double b, o, n = k == OP_HEAD ? 1 : x->s->n_layers;
            cost(x, k, m, at, &b, &o);
            bytes += b * n, ops += o * n;
        }
        printf(
            "%s M=%u depth %u: %.0f us (median %.0f), %.0f tokens/s, %.1f GB/s, %.0f GOPS (a plain read: %.1f GB/s)\n",
            x->s->name, m, at, whole, median, m / whole * 1e6, bytes / whole / 1e3, ops / whole / 1e3, gb);
        for (int k = 0; k < OP_KINDS; k++) {
            if (k == OP_NORM_ADD && !x->s->post_norms) continue;
            double b, o, n = k == OP_HEAD ? 1 : x->s->n_layers,
                         us = (time_step(x, plans[k + 1], m, at, true, NULL) - base) / n;
            if (us < 0.01) us = 0.01;
            cost(x, k, m, at, &b, &o);
            printf("    %-10s %9.2f us %7.1f GB/s %8.1f GOPS   all: %.0f us\n", op_names[k], us, b / us / 1e3,
                   o / us / 1e3, us * n);
        }
    }
    for (int k = 0; k < OP_KINDS + 2; k++) x->b->v->plan_close(x->b, plans[k]);
}

int main(int argc, char **argv) {
    uint32_t threads = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 0;
    const char *level = argc > 2 ? argv[2] : "", *type = argc > 3 ? argv[3] : "Q4_1";
    uint32_t depth = argc > 4 ? (uint32_t)strtoul(argv[4], NULL, 10) : 0;
    int rounds = argc > 5 ? atoi(argv[5]) : 50;
    setvbuf(stdout, NULL, _IOLBF, 0);
    rounds = rounds < 1 ? 1 : rounds > ROUNDS_MOST ? ROUNDS_MOST : rounds;
    for (size_t i = 0; i < REALM_ARRAY_LEN(shapes); i++) {
        static bench x;
        if (argc > 6 && !strstr(shapes[i].name, argv[6])) continue;
        realm_error err = {0};
        x = (bench){.s = &shapes[i], .rounds = rounds, .only = argc > 7 ? (uint32_t)strtoul(argv[7], NULL, 10) : 0};
        realm_backend_config c = {.n_threads = threads, .cpu_level = level};
        if (realm_backend_open_cpu(&x.b, &c, &err) != REALM_OK) die(&err);
        x.cold = realm_pages_map(COLD_BYTES);
        if (x.cold) memset(x.cold, 1, COLD_BYTES);
        printf("%s, %u threads, %s\n", x.b->name, x.b->n_threads, type);
        open_model(&x, type, depth);
        report(&x, depth);
        for (uint32_t l = 0; l < x.s->n_layers; l++)
            for (uint32_t k = 0; k < W_MATRICES; k++) x.b->v->weight_close(x.b, x.layer[l][k]);
        for (uint32_t k = 0; k < V_LOGITS; k++) x.b->v->weight_close(x.b, x.rows[k]);
        x.b->v->weight_close(x.b, x.head);
        x.b->v->weight_close(x.b, x.tiny_head);
        x.b->v->weight_close(x.b, x.gain);
        x.b->v->kv_close(x.b, x.kv);
        realm_free(x.pages);
        realm_pages_unmap(x.cold, COLD_BYTES);
        realm_backend_close(x.b);
    }
    return 0;
}
