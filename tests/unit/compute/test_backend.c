/* The CPU backend as a whole: a small transformer through the vtable against the same computed in double precision;
 * bit for bit the same result whatever the chunks, the company in the batch and the number of threads; refusals. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "compute/cpu/plan.h"
#include "support/random.h"

#define LAYERS 2u
#define TOKENS_MOST 420u
#define VOCAB 50u
#define DIM 64u
#define FF 96u
#define PAGES 64u
#define MAX_ROWS 300u
#define MAX_OUT 300u

/* ---- a small model ----------------------------------------------------------------------------------------------- */

typedef struct shape {
    uint32_t n_head, n_kv, head_dim, rope_dims, window[LAYERS];
    realm_rope_style style;
    bool head_norms, factors;
    float softcap;
    realm_act act;
    const char *type; /* of the matrices */
} shape;

static const shape shapes[] = {
    {4, 2, 16, 16, {0, 0}, REALM_ROPE_PAIRS, false, false, 0, REALM_ACT_SILU, "F32"},
    {6, 2, 24, 16, {40, 0}, REALM_ROPE_HALVES, true, false, 0, REALM_ACT_GELU_TANH, "F32"},
    {3, 1, 32, 32, {0, 130}, REALM_ROPE_HALVES, true, true, 4, REALM_ACT_SILU, "F32"},
    {9, 3, 64, 64, {1, 64}, REALM_ROPE_PAIRS, false, true, 0, REALM_ACT_SILU, "Q8_0"},
};

enum { V_X, V_Q, V_K, V_V, V_A, V_T, V_G, V_OUT, V_LOGITS, N_VALUES };
enum { W_EMBED, W_OUT, W_FIRST };
enum { W_GAIN1, W_Q, W_K, W_V, W_BIAS_V, W_QG, W_KG, W_O, W_GAIN2, W_GATE, W_UP, W_DOWN, W_GAIN3, W_PER_LAYER };
#define N_WEIGHTS (W_FIRST + LAYERS * W_PER_LAYER + 1)
#define W_FACTORS (N_WEIGHTS - 1)
#define OPS_MOST (3 + LAYERS * 8)

typedef struct matrix {
    uint32_t rows, cols;
    void *data;    /* in the file's type */
    double *exact; /* what it says */
    realm_weight *w;
} matrix;

typedef struct model {
    const shape *s;
    realm_backend *b;
    matrix w[N_WEIGHTS];
    realm_kv *kv;
    realm_value_desc values[N_VALUES];
    realm_op ops[OPS_MOST];
    realm_plan_desc desc;
    realm_plan *plan;
} model;

static matrix *layer_w(model *m, uint32_t layer, uint32_t which) {
    return &m->w[W_FIRST + layer * W_PER_LAYER + which];
}

static void fill_matrix(model *m, matrix *x, uint32_t rows, uint32_t cols, const char *type, unsigned use, float middle,
                        float spread) {
    const realm_type_info *t = realm_type_find(type);
    uint64_t row_bytes;
    realm_error err = {0};
    assert_true(realm_type_row_bytes(t, cols, &row_bytes));
    *x = (matrix){.rows = rows, .cols = cols};
    x->data = malloc(rows * row_bytes);
    x->exact = malloc(rows * cols * sizeof *x->exact);
    float *f = malloc(cols * sizeof *f);
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t c = 0; c < cols; c++) f[c] = middle + random_float(spread);
        t->quantize(f, (char *)x->data + r * row_bytes, cols);
        t->dequantize((char *)x->data + r * row_bytes, f, cols);
        for (uint32_t c = 0; c < cols; c++) x->exact[r * cols + c] = (double)f[c];
    }
    free(f);
    realm_weight_desc d = {.type = t, .rows = rows, .cols = cols, .data = x->data, .use = use};
    assert_int_equal(m->b->v->weight_open(m->b, &d, &x->w, &err), REALM_OK);
    assert_true(m->b->v->weight_bytes(x->w) > 0);
}

static void make_weights(model *m) {
    const shape *s = m->s;
    uint32_t q = s->n_head * s->head_dim, kv = s->n_kv * s->head_dim;
    float narrow = 1.5f / sqrtf(DIM);
    fill_matrix(m, &m->w[W_EMBED], VOCAB, DIM, s->type, REALM_WEIGHT_ROWS | REALM_WEIGHT_LINEAR, 0, 1);
    fill_matrix(m, &m->w[W_OUT], 1, DIM, "F32", REALM_WEIGHT_VECTOR, 1, 0.3f);
    fill_matrix(m, &m->w[W_FACTORS], 1, s->rope_dims / 2, "F16", REALM_WEIGHT_VECTOR, 2, 1);
    for (uint32_t i = 0; i < LAYERS; i++) {
        fill_matrix(m, layer_w(m, i, W_GAIN1), 1, DIM, "F32", REALM_WEIGHT_VECTOR, 1, 0.3f);
        fill_matrix(m, layer_w(m, i, W_Q), q, DIM, s->type, REALM_WEIGHT_LINEAR, 0, 2 * narrow);
        fill_matrix(m, layer_w(m, i, W_K), kv, DIM, s->type, REALM_WEIGHT_LINEAR, 0, 2 * narrow);
        fill_matrix(m, layer_w(m, i, W_V), kv, DIM, s->type, REALM_WEIGHT_LINEAR, 0, narrow);
        fill_matrix(m, layer_w(m, i, W_BIAS_V), 1, kv, "F32", REALM_WEIGHT_VECTOR, 0, 0.5f);
        fill_matrix(m, layer_w(m, i, W_QG), 1, s->head_dim, "F32", REALM_WEIGHT_VECTOR, 1, 0.3f);
        fill_matrix(m, layer_w(m, i, W_KG), 1, s->head_dim, "F32", REALM_WEIGHT_VECTOR, 1, 0.3f);
        fill_matrix(m, layer_w(m, i, W_O), DIM, q, s->type, REALM_WEIGHT_LINEAR, 0, narrow);
        fill_matrix(m, layer_w(m, i, W_GAIN2), 1, DIM, "F32", REALM_WEIGHT_VECTOR, 1, 0.3f);
        fill_matrix(m, layer_w(m, i, W_GATE), FF, DIM, s->type, REALM_WEIGHT_LINEAR, 0, narrow);
        fill_matrix(m, layer_w(m, i, W_UP), FF, DIM, s->type, REALM_WEIGHT_LINEAR, 0, narrow);
        fill_matrix(m, layer_w(m, i, W_DOWN), DIM, FF, s->type, REALM_WEIGHT_LINEAR, 0, narrow);
        fill_matrix(m, layer_w(m, i, W_GAIN3), 1, DIM, "F32", REALM_WEIGHT_VECTOR, 1, 0.3f);
    }
}

static void describe_layer(model *m, uint32_t i, realm_op *op) {
    const shape *s = m->s;
    op[0] = (realm_op){.kind = REALM_OP_LINEAR,
                       .u.linear = {.x = V_X,
                                    .gain = layer_w(m, i, W_GAIN1)->w,
                                    .eps = 1e-5f,
                                    .n_weights = 3,
                                    .w = {layer_w(m, i, W_Q)->w, layer_w(m, i, W_K)->w, layer_w(m, i, W_V)->w},
                                    .bias = {NULL, NULL, layer_w(m, i, W_BIAS_V)->w},
                                    .y = {V_Q, V_K, V_V}}};
    op[1] = (realm_op){.kind = REALM_OP_ROPE_KV,
                       .u.rope_kv = {.q = V_Q,
                                     .k = V_K,
                                     .v = V_V,
                                     .layer = i,
                                     .n_head = s->n_head,
                                     .n_kv_head = s->n_kv,
                                     .head_dim = s->head_dim,
                                     .q_gain = s->head_norms ? layer_w(m, i, W_QG)->w : NULL,
                                     .k_gain = s->head_norms ? layer_w(m, i, W_KG)->w : NULL,
                                     .eps = 1e-6f,
                                     .style = s->style,
                                     .rope_dims = s->rope_dims,
                                     .base = i == 0 ? 10000.0f : 1000000.0f,
                                     .freq_scale = 1,
                                     .factors = s->factors ? m->w[W_FACTORS].w : NULL}};
    op[2] = (realm_op){.kind = REALM_OP_ATTENTION,
                       .u.attention = {.q = V_Q,
                                       .out = V_A,
                                       .layer = i,
                                       .n_head = s->n_head,
                                       .n_kv_head = s->n_kv,
                                       .head_dim = s->head_dim,
                                       .window = s->window[i],
                                       .scale = 0.3f,
                                       .softcap = s->softcap}};
    op[3] = (realm_op){
        .kind = REALM_OP_LINEAR,
        .u.linear = {
            .x = V_A, .n_weights = 1, .w = {layer_w(m, i, W_O)->w}, .y = {V_X}, .epilogue = REALM_EPILOGUE_ADD}};
    op[4] = (realm_op){.kind = REALM_OP_LINEAR,
                       .u.linear = {.x = V_X,
                                    .gain = layer_w(m, i, W_GAIN2)->w,
                                    .eps = 1e-5f,
                                    .n_weights = 2,
                                    .w = {layer_w(m, i, W_GATE)->w, layer_w(m, i, W_UP)->w},
                                    .y = {V_G},
                                    .epilogue = REALM_EPILOGUE_GATE,
                                    .act = s->act}};
    op[5] = (realm_op){.kind = REALM_OP_LINEAR,
                       .u.linear = {.x = V_G, .n_weights = 1, .w = {layer_w(m, i, W_DOWN)->w}, .y = {V_T}}};
    op[6] = (realm_op){.kind = REALM_OP_NORM_ADD,
                       .u.norm_add = {.x = V_T, .y = V_X, .gain = layer_w(m, i, W_GAIN3)->w, .eps = 1e-5f}};
}

static void describe(model *m) {
    const shape *s = m->s;
    uint32_t cols[N_VALUES] = {DIM,
                               s->n_head * s->head_dim,
                               s->n_kv * s->head_dim,
                               s->n_kv * s->head_dim,
                               s->n_head * s->head_dim,
                               DIM,
                               FF,
                               DIM,
                               VOCAB};
    for (uint32_t i = 0; i < N_VALUES; i++)
        m->values[i] = (realm_value_desc){cols[i], i >= V_OUT ? REALM_ROWS_OUT : REALM_ROWS_BATCH};
    uint32_t n = 0;
    m->ops[n++] = (realm_op){.kind = REALM_OP_EMBED, .u.embed = {.w = m->w[W_EMBED].w, .y = V_X, .scale = 1.5f}};
    for (uint32_t i = 0; i < LAYERS; i++, n += 7) describe_layer(m, i, &m->ops[n]);
    m->ops[n++] = (realm_op){.kind = REALM_OP_GATHER, .u.gather = {.x = V_X, .y = V_OUT}};
    m->ops[n++] = (realm_op){.kind = REALM_OP_LINEAR,
                             .u.linear = {.x = s == &shapes[1] ? V_X : V_OUT, /* the op itself gathers, too */
                                          .gain = m->w[W_OUT].w,
                                          .eps = 1e-5f,
                                          .n_weights = 1,
                                          .w = {m->w[W_EMBED].w},
                                          .y = {V_LOGITS}}};
    m->desc = (realm_plan_desc){.values = m->values,
                                .n_values = N_VALUES,
                                .ops = m->ops,
                                .n_ops = n,
                                .max_rows = MAX_ROWS,
                                .max_out = MAX_OUT,
                                .logits = V_LOGITS,
                                .kv = m->kv};
}

static void model_open(model *m, const shape *s, const char *level, uint32_t threads) {
    realm_error err = {0};
    memset(m, 0, sizeof *m);
    m->s = s;
    rng = 11;
    assert_int_equal(
        realm_backend_open_cpu(&m->b, &(realm_backend_config){.n_threads = threads, .cpu_level = level}, &err),
        REALM_OK);
    assert_int_equal(m->b->n_threads, threads);
    assert_string_equal(m->b->name + 4, level);
    make_weights(m);
    realm_kv_desc kv = {.n_layers = LAYERS, .n_kv_head = s->n_kv, .head_dim = s->head_dim, .n_pages = PAGES};
    assert_int_equal(m->b->v->kv_open(m->b, &kv, &m->kv, &err), REALM_OK);
    /* Nothing that was not written may be read: NaN everywhere. */
    for (size_t i = 0; i < m->kv->page_halves * PAGES; i++) m->kv->pages[i] = 0x7e01;
    describe(m);
    assert_int_equal(m->b->v->plan_open(m->b, &m->desc, &m->plan, &err), REALM_OK);
}

static void model_close(model *m) {
    m->b->v->plan_close(m->b, m->plan);
    m->b->v->kv_close(m->b, m->kv);
    for (uint32_t i = 0; i < N_WEIGHTS; i++) {
        m->b->v->weight_close(m->b, m->w[i].w);
        free(m->w[i].data);
        free(m->w[i].exact);
    }
    realm_backend_close(m->b);
}

/* ---- the same in double precision -------------------------------------------------------------------------------- */

static void product(const matrix *w, const double *x, double *y) {
    for (uint32_t r = 0; r < w->rows; r++) {
        y[r] = 0;
        for (uint32_t c = 0; c < w->cols; c++) y[r] += w->exact[r * w->cols + c] * x[c];
    }
}

static void norm(const double *x, const matrix *gain, double eps, double *y, uint32_t n) {
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) sum += x[i] * x[i];
    for (uint32_t i = 0; i < n; i++) y[i] = x[i] / sqrt(sum / n + eps) * gain->exact[i];
}

static void rotate(model *m, double *x, uint32_t pos, uint32_t layer) {
    const shape *s = m->s;
    for (uint32_t i = 0; i < s->rope_dims / 2; i++) {
        double angle = pos * pow(layer == 0 ? 1e4 : 1e6, -2.0 * i / s->rope_dims);
        if (s->factors) angle /= m->w[W_FACTORS].exact[i];
        double *a = s->style == REALM_ROPE_PAIRS ? &x[2 * i] : &x[i];
        double *b = s->style == REALM_ROPE_PAIRS ? &x[2 * i + 1] : &x[i + s->rope_dims / 2], xa = *a, xb = *b;
        *a = xa * cos(angle) - xb * sin(angle);
        *b = xa * sin(angle) + xb * cos(angle);
    }
}

static double past_k[LAYERS][TOKENS_MOST][256], past_v[LAYERS][TOKENS_MOST][256];

static double to_half(double x) { return (double)realm_f16_to_f32(realm_f32_to_f16((float)x)); }

static void attention(model *m, const double *q, uint32_t pos, uint32_t layer, double *out) {
    const shape *s = m->s;
    uint32_t window = s->window[layer], from = window > 0 && pos + 1 > window ? pos + 1 - window : 0, d = s->head_dim;
    for (uint32_t h = 0; h < s->n_head; h++) {
        uint32_t kv = h / (s->n_head / s->n_kv) * d;
        double p[TOKENS_MOST], top = -INFINITY, sum = 0;
        for (uint32_t t = from; t <= pos; t++) {
            p[t] = 0;
            for (uint32_t i = 0; i < d; i++) p[t] += 0.3f * q[h * d + i] * past_k[layer][t][kv + i];
            if (s->softcap > 0) p[t] = s->softcap * tanh(p[t] / s->softcap);
            top = fmax(top, p[t]);
        }
        for (uint32_t t = from; t <= pos; t++) sum += p[t] = exp(p[t] - top);
        for (uint32_t i = 0; i < d; i++) {
            out[h * d + i] = 0;
            for (uint32_t t = from; t <= pos; t++) out[h * d + i] += p[t] / sum * past_v[layer][t][kv + i];
        }
    }
}

/* Logits of one token at `pos`, whose predecessors have been computed. */
static void oracle(model *m, int32_t token, uint32_t pos, double *logits) {
    const shape *s = m->s;
    double x[DIM], t[DIM], q[600], k[256], v[256], a[600], g[FF], up[FF];
    uint32_t d = s->head_dim;
    for (uint32_t i = 0; i < DIM; i++) x[i] = 1.5 * m->w[W_EMBED].exact[(uint32_t)token * DIM + i];
    for (uint32_t l = 0; l < LAYERS; l++) {
        norm(x, layer_w(m, l, W_GAIN1), 1e-5, t, DIM);
        product(layer_w(m, l, W_Q), t, q);
        product(layer_w(m, l, W_K), t, k);
        product(layer_w(m, l, W_V), t, v);
        for (uint32_t i = 0; i < s->n_kv * d; i++)
            past_v[l][pos][i] = to_half(v[i] + layer_w(m, l, W_BIAS_V)->exact[i]);
        for (uint32_t h = 0; h < s->n_head; h++) {
            if (s->head_norms) norm(q + h * d, layer_w(m, l, W_QG), 1e-6, q + h * d, d);
            rotate(m, q + h * d, pos, l);
        }
        for (uint32_t h = 0; h < s->n_kv; h++) {
            if (s->head_norms) norm(k + h * d, layer_w(m, l, W_KG), 1e-6, k + h * d, d);
            rotate(m, k + h * d, pos, l);
        }
        for (uint32_t i = 0; i < s->n_kv * d; i++) past_k[l][pos][i] = to_half(k[i]);
        attention(m, q, pos, l, a);
        product(layer_w(m, l, W_O), a, t);
        for (uint32_t i = 0; i < DIM; i++) x[i] += t[i];
        norm(x, layer_w(m, l, W_GAIN2), 1e-5, t, DIM);
        product(layer_w(m, l, W_GATE), t, g);
        product(layer_w(m, l, W_UP), t, up);
        for (uint32_t i = 0; i < FF; i++) {
            double z = g[i];
            g[i] = s->act == REALM_ACT_SILU ? z / (1 + exp(-z)) * up[i]
                                            : 0.5 * z * (1 + tanh(sqrt(2 / M_PI) * (z + 0.044715 * z * z * z))) * up[i];
        }
        product(layer_w(m, l, W_DOWN), g, t);
        norm(t, layer_w(m, l, W_GAIN3), 1e-5, t, DIM);
        for (uint32_t i = 0; i < DIM; i++) x[i] += t[i];
    }
    norm(x, &m->w[W_OUT], 1e-5, t, DIM);
    product(&m->w[W_EMBED], t, logits);
}

/* ---- sequences --------------------------------------------------------------------------------------------------- */

typedef struct sequence {
    int32_t tokens[TOKENS_MOST];
    uint32_t n_tokens, n_past;
    uint32_t pages[(TOKENS_MOST + REALM_KV_PAGE_TOKENS - 1) / REALM_KV_PAGE_TOKENS];
    float logits[TOKENS_MOST][VOCAB];
} sequence;

static sequence seqs[4], again;

/* Pages of sequence `which` of at most 4, in no order. */
static void sequence_init(sequence *s, uint32_t which, uint32_t n) {
    memset(s, 0, sizeof *s);
    s->n_tokens = n;
    for (uint32_t i = 0; i < n; i++) s->tokens[i] = (int32_t)(random_bits() % VOCAB);
    for (uint32_t i = 0; i < REALM_ARRAY_LEN(s->pages); i++) s->pages[i] = (i * 4 + which) * 37 % PAGES;
}

/* Runs the next n[i] tokens of each sequence in one batch, every row wanted out. */
static void step(model *m, sequence **s, const uint32_t *n, uint32_t n_seqs) {
    int32_t tokens[MAX_ROWS];
    uint32_t out_rows[MAX_OUT], rows = 0;
    realm_batch_seq bs[4];
    realm_error err = {0};
    for (uint32_t i = 0; i < n_seqs; i++) {
        bs[i] = (realm_batch_seq){.first_row = rows, .n_rows = n[i], .n_past = s[i]->n_past, .pages = s[i]->pages};
        for (uint32_t r = 0; r < n[i]; r++, rows++) {
            tokens[rows] = s[i]->tokens[s[i]->n_past + r];
            out_rows[rows] = rows;
        }
    }
    realm_batch b = {
        .n_rows = rows, .tokens = tokens, .n_seqs = n_seqs, .seqs = bs, .n_out = rows, .out_rows = out_rows};
    assert_int_equal(m->b->v->run(m->b, m->plan, &b, &err), REALM_OK);
    for (uint32_t i = 0; i < n_seqs; i++)
        for (uint32_t r = 0; r < n[i]; r++, s[i]->n_past++)
            memcpy(s[i]->logits[s[i]->n_past], m->b->v->logits(m->plan, bs[i].first_row + r), VOCAB * sizeof(float));
}

/* The whole sequence in chunks of `chunk` tokens. */
static void run_chunked(model *m, sequence *s, uint32_t chunk) {
    s->n_past = 0;
    while (s->n_past < s->n_tokens) {
        uint32_t n = REALM_MIN(chunk, s->n_tokens - s->n_past);
        step(m, &s, &n, 1);
    }
}

static const char *level_name(int level) { return realm_cpu_level_name((realm_cpu_level)level); }

static void forward_pass_agrees_with_double(void **state) {
    (void)state;
    static model m;
    for (uint32_t i = 0; i < REALM_ARRAY_LEN(shapes); i++)
        for (int level = REALM_CPU_SCALAR; level <= (int)realm_cpu_detect(); level++) {
            model_open(&m, &shapes[i], level_name(level), 2);
            sequence_init(&seqs[0], 1, level == REALM_CPU_SCALAR ? 160 : 290);
            run_chunked(&m, &seqs[0], 97);
            double worst = 0, sum = 0;
            for (uint32_t t = 0; t < seqs[0].n_tokens; t++) {
                double want[VOCAB];
                oracle(&m, seqs[0].tokens[t], t, want);
                for (uint32_t j = 0; j < VOCAB; j++) {
                    double e = fabs(seqs[0].logits[t][j] - want[j]);
                    assert_true(isfinite(e));
                    worst = fmax(worst, e);
                    sum += e * e;
                }
            }
            /* Float weights: roundings of a half can flip. Q8_0: activations have 8 bits. Logits are about +-10. */
            bool exact = strcmp(shapes[i].type, "F32") == 0;
            assert_true(worst < (exact ? 0.01 : 1.5));
            assert_true(sqrt(sum / seqs[0].n_tokens / VOCAB) < (exact ? 2e-4 : 0.25));
            model_close(&m);
        }
}

static void assert_same(const sequence *a, const sequence *b) {
    for (uint32_t t = 0; t < a->n_tokens; t++) assert_memory_equal(a->logits[t], b->logits[t], sizeof a->logits[t]);
}

static void company_and_threads_change_no_bit(void **state) {
    (void)state;
    static model m;
    for (uint32_t i = 0; i < REALM_ARRAY_LEN(shapes); i++)
        for (int level = realm_cpu_detect() > REALM_CPU_SCALAR ? REALM_CPU_AVX2 : REALM_CPU_SCALAR;
             level <= (int)realm_cpu_detect(); level++)
            for (uint32_t threads = 1; threads <= 3; threads++) {
                model_open(&m, &shapes[i], level_name(level), threads);
                if (threads == 1) {
                    sequence_init(&seqs[0], 0, 290);
                    run_chunked(&m, &seqs[0], 1);
                }
                again = seqs[0];
                run_chunked(&m, &again, threads == 1 ? 290 : 37);
                assert_same(&again, &seqs[0]);
                run_chunked(&m, &again, 130);
                assert_same(&again, &seqs[0]);
                /* in company: two others that start at other times and move at other speeds */
                sequence_init(&seqs[1], 1, 60), sequence_init(&seqs[2], 2, 300);
                again.n_past = 0;
                for (uint32_t round = 0; again.n_past < again.n_tokens; round++) {
                    sequence *all[3] = {&seqs[1], &again, &seqs[2]}, *s[3];
                    uint32_t speeds[3] = {3, 1 + round % 5 * 7, 11 + round % 2}, n[3], used = 0;
                    for (uint32_t j = 0; j < 3; j++) {
                        uint32_t left = all[j]->n_tokens - all[j]->n_past;
                        if (left == 0 || (j == 0 && round < 2)) continue;
                        s[used] = all[j];
                        n[used++] = REALM_MIN(speeds[j], left);
                    }
                    step(&m, s, n, used);
                }
                assert_same(&again, &seqs[0]);
                model_close(&m);
            }
}

static void pages_copy_and_clear(void **state) {
    (void)state;
    static model m;
    model_open(&m, &shapes[0], realm_cpu_level_name(realm_cpu_detect()), 2);
    sequence_init(&seqs[0], 0, 80);
    run_chunked(&m, &seqs[0], 80);
    /* a fork at token 50 with its own copy of the second page gives the same as going on */
    again = seqs[0];
    again.n_past = 50;
    again.pages[1] = 61, again.pages[2] = 62;
    m.b->v->kv_copy_page(m.b, m.kv, 61, seqs[0].pages[1]);
    uint32_t n = 30;
    sequence *s = &again;
    step(&m, &s, &n, 1);
    assert_same(&again, &seqs[0]);
    assert_int_equal(m.b->v->kv_page_bytes(m.kv), LAYERS * 2 * 2 * 16 * REALM_KV_PAGE_TOKENS * 2);
    const size_t page_bytes = m.kv->page_halves * sizeof *m.kv->pages;
    uint16_t *copy = test_malloc(page_bytes);
    m.b->v->kv_read_page(m.b, m.kv, 61, copy);
    assert_memory_equal(copy, m.kv->pages + 61 * m.kv->page_halves, page_bytes);
    m.b->v->kv_zero_page(m.b, m.kv, 61);
    for (size_t i = 0; i < m.kv->page_halves; i++) assert_int_equal(m.kv->pages[61 * m.kv->page_halves + i], 0);
    assert_int_equal(m.kv->pages[60 * m.kv->page_halves + m.kv->page_halves - 1], 0x7e01); /* its neighbours stay */
    assert_true(m.kv->pages[62 * m.kv->page_halves] != 0);
    m.b->v->kv_write_page(m.b, m.kv, 61, copy);
    assert_memory_equal(copy, m.kv->pages + 61 * m.kv->page_halves, page_bytes);
    assert_int_equal(m.kv->pages[60 * m.kv->page_halves + m.kv->page_halves - 1], 0x7e01);
    test_free(copy);
    model_close(&m);
}

static void only_wanted_rows_come_out(void **state) {
    (void)state;
    static model m;
    for (uint32_t shape_at = 0; shape_at < 2; shape_at++) {
        model_open(&m, &shapes[shape_at], realm_cpu_level_name(realm_cpu_detect()), 2);
        sequence_init(&seqs[0], 0, 40);
        run_chunked(&m, &seqs[0], 40);
        uint32_t out_rows[] = {3, 17, 39};
        realm_batch_seq bs = {.n_rows = 40, .pages = seqs[0].pages};
        realm_batch b = {
            .n_rows = 40, .tokens = seqs[0].tokens, .n_seqs = 1, .seqs = &bs, .n_out = 3, .out_rows = out_rows};
        assert_int_equal(m.b->v->run(m.b, m.plan, &b, NULL), REALM_OK);
        for (uint32_t i = 0; i < 3; i++)
            assert_memory_equal(m.b->v->logits(m.plan, i), seqs[0].logits[out_rows[i]], VOCAB * sizeof(float));
        assert_ptr_equal(m.b->v->value(m.plan, V_LOGITS), m.b->v->logits(m.plan, 0));
        assert_null(m.b->v->value(m.plan, N_VALUES));
        b.n_out = 0; /* the middle of a prompt */
        assert_int_equal(m.b->v->run(m.b, m.plan, &b, NULL), REALM_OK);
        model_close(&m);
    }
}

/* ---- refusals ---------------------------------------------------------------------------------------------------- */

/* Changes one thing of a good plan; false when there is no such change. */
static bool spoil(model *m, uint32_t what) {
    realm_op *op = m->ops + 1; /* those of the first layer */
    realm_op_linear *qkv = &op[0].u.linear, *o = &op[3].u.linear, *gate = &op[4].u.linear;
    realm_op_rope_kv *rope = &op[1].u.rope_kv;
    realm_op_attention *att = &op[2].u.attention;
    realm_op_norm_add *add = &op[6].u.norm_add;
    realm_op_gather *gather = &op[7 * LAYERS].u.gather;
    switch (what) {
    case 0: m->desc.n_ops = 0; return true;
    case 1: m->desc.n_values = 0; return true;
    case 2: m->desc.max_rows = 0; return true;
    case 3: m->desc.max_out = MAX_ROWS + 1; return true;
    case 4: m->desc.logits = V_X; return true;
    case 5: m->desc.logits = N_VALUES; return true;
    case 6: m->desc.kv = NULL; return true;
    case 7: m->values[V_T].cols = 0; return true;
    case 8: m->values[V_T].cols = DIM + 1; return true;
    case 9: m->values[V_X].rows = REALM_ROWS_OUT; return true;
    case 10: m->values[V_LOGITS].rows = REALM_ROWS_BATCH; return true;
    case 11: m->values[V_Q].rows = REALM_ROWS_OUT; return true;
    case 12: m->ops[0].u.embed.w = NULL; return true;
    case 13: m->ops[0].u.embed.w = layer_w(m, 0, W_Q)->w; return true;
    case 14: m->ops[0].u.embed.scale = NAN; return true;
    case 15: m->ops[0].u.embed.y = 99; return true;
    case 16: m->ops[0].kind = (realm_op_kind)77; return true;
    case 17: qkv->n_weights = 0; return true;
    case 18: qkv->n_weights = 4; return true;
    case 19: qkv->w[1] = NULL; return true;
    case 20: qkv->w[1] = layer_w(m, 0, W_GAIN1)->w; return true;
    case 21: qkv->w[1] = layer_w(m, 0, W_DOWN)->w; return true;
    case 22: qkv->bias[0] = layer_w(m, 0, W_QG)->w; return true;
    case 23: qkv->bias[2] = layer_w(m, 0, W_Q)->w; return true;
    case 24: qkv->gain = layer_w(m, 0, W_QG)->w; return true;
    case 25: qkv->eps = -1; return true;
    case 26: qkv->y[1] = V_V; return true;
    case 27: qkv->y[0] = V_X; return true;
    case 28: qkv->x = V_T; return true;  /* not yet written */
    case 29: o->y[0] = V_T; return true; /* added to before it is written */
    case 30: o->epilogue = (realm_epilogue)9; return true;
    case 31: o->n_weights = 2, o->w[1] = o->w[0], o->y[1] = V_T; return true;
    case 32: gate->n_weights = 1; return true;
    case 33: gate->w[1] = layer_w(m, 0, W_Q)->w; return true;
    case 34: gate->act = (realm_act)5; return true;
    case 35: rope->layer = LAYERS; return true;
    case 36: rope->n_head = 5; return true;
    case 37: rope->n_kv_head = 1; return true;
    case 38: rope->head_dim = 32; return true;
    case 39: rope->rope_dims = 7; return true;
    case 40: rope->rope_dims = rope->head_dim + 2; return true;
    case 41: rope->base = 0; return true;
    case 42: rope->style = (realm_rope_style)3; return true;
    case 43: rope->factors = layer_w(m, 0, W_GAIN1)->w; return true;
    case 44: rope->q_gain = layer_w(m, 0, W_GAIN1)->w; return true;
    case 45: rope->v = V_X; return true;
    case 46: att->out = V_Q; return true;
    case 47: att->scale = INFINITY; return true;
    case 48: att->softcap = -1; return true;
    case 49: att->n_head = 0; return true;
    case 50: add->gain = NULL; return true;
    case 51: add->y = V_T; return true;
    case 52: add->eps = NAN; return true;
    case 53: m->desc.n_ops--; return true; /* nothing writes the logits */
    case 54: rope->k = V_T; return true;
    case 55: rope->freq_scale = NAN; return true;
    case 56: rope->q = V_K; return true;
    case 57: gather->y = 99; return true;
    case 58: gather->x = 99; return true;
    case 59: gather->x = V_G; return true; /* other columns */
    case 60: gather->x = V_OUT; return true;
    case 61: gather->y = V_T; return true; /* a row per token */
    case 62: gather->x = V_LOGITS, gather->y = V_LOGITS; return true;
    default: return false;
    }
}

static void malformed_plans_are_refused(void **state) {
    (void)state;
    static model m;
    model_open(&m, &shapes[0], realm_cpu_level_name(realm_cpu_detect()), 1);
    for (uint32_t what = 0;; what++) {
        realm_plan *p = (realm_plan *)&m;
        realm_error err = {0};
        describe(&m);
        if (!spoil(&m, what)) {
            assert_int_equal(what, 63);
            break;
        }
        realm_status s = m.b->v->plan_open(m.b, &m.desc, &p, &err);
        if (s != REALM_E_INVALID) print_error("case %u: %d\n", what, s);
        assert_int_equal(s, REALM_E_INVALID);
        assert_null(p);
        assert_true(err.code == REALM_E_INVALID && err.text[0]);
    }
    model_close(&m);
}

static void malformed_batches_are_refused(void **state) {
    (void)state;
    static model m;
    model_open(&m, &shapes[0], realm_cpu_level_name(realm_cpu_detect()), 2);
    for (uint32_t what = 0; what < 17; what++) {
        int32_t tokens[8] = {1, 2, 3, 4, 5, 6, 7, 8};
        uint32_t pages[2] = {3, 4}, out_rows[3] = {1, 5, 7};
        realm_batch_seq bs[2] = {{.n_rows = 5, .n_past = 30, .pages = pages}, {5, 3, 0, pages}};
        realm_batch b = {8, tokens, 2, bs, 3, out_rows};
        switch (what) {
        case 0: b.n_rows = 0; break;
        case 1: b.n_rows = MAX_ROWS + 1; break;
        case 2: b.n_out = MAX_OUT + 1; break;
        case 3: tokens[7] = -1; break;
        case 4: tokens[0] = (int32_t)VOCAB; break;
        case 5: out_rows[2] = 8; break;
        case 6: out_rows[1] = 1; break;
        case 7: b.n_seqs = 1; break;
        case 8: bs[1].first_row = 4; break;
        case 9: bs[1].n_rows = 4; break;
        case 10: bs[1].n_rows = 0; break;
        case 11: bs[0].n_past = UINT32_MAX - 2; break;
        case 12: pages[1] = PAGES; break;
        case 13: pages[0] = UINT32_MAX; break;
        case 14: b.n_seqs = 0; break;
        case 15: bs[1].n_rows = UINT32_MAX; break;
        case 16: bs[0].first_row = 1; break;
        }
        realm_error err = {0};
        assert_int_equal(m.b->v->run(m.b, m.plan, &b, &err), REALM_E_INVALID);
        assert_true(err.text[0]);
        for (size_t i = 0; i < m.kv->page_halves * PAGES; i++) assert_int_equal(m.kv->pages[i], 0x7e01);
    }
    model_close(&m);
}

static void odd_weights_and_kv_are_refused(void **state) {
    (void)state;
    realm_backend *b;
    realm_weight *w;
    realm_kv *kv;
    realm_error err = {0};
    static const float data[64];
    assert_int_equal(realm_backend_open_cpu(&b, &(realm_backend_config){.n_threads = 1}, &err), REALM_OK);
    const realm_type_info *f32 = realm_type_find("F32"), *q8 = realm_type_find("Q8_0"), *i64 = realm_type_find("I64");
    realm_weight_desc d[] = {
        {f32, 1, 64, data, 0},
        {f32, 1, 64, data, 8},
        {NULL, 1, 64, data, REALM_WEIGHT_VECTOR},
        {f32, 1, 64, NULL, REALM_WEIGHT_VECTOR},
        {f32, 0, 64, data, REALM_WEIGHT_LINEAR},
        {f32, 1, 0, data, REALM_WEIGHT_LINEAR},
        {f32, 2, 32, data, REALM_WEIGHT_VECTOR},
        {q8, 1, 33, data, REALM_WEIGHT_ROWS},
        {f32, UINT64_MAX / 2, 64, data, REALM_WEIGHT_LINEAR},
        {f32, 1, UINT64_MAX / 2, data, REALM_WEIGHT_VECTOR},
    };
    for (size_t i = 0; i < REALM_ARRAY_LEN(d); i++) {
        assert_int_equal(b->v->weight_open(b, &d[i], &w, &err), REALM_E_INVALID);
        assert_null(w);
    }
    realm_weight_desc whole = {i64, 1, 8, data, REALM_WEIGHT_VECTOR};
    assert_int_equal(b->v->weight_open(b, &whole, &w, &err), REALM_E_UNSUPPORTED);
    whole.use = REALM_WEIGHT_LINEAR;
    assert_int_equal(b->v->weight_open(b, &whole, &w, &err), REALM_E_UNSUPPORTED);
    assert_non_null(strstr(err.text, "I64"));
    realm_weight_desc huge = {f32, 1, UINT64_C(1) << 33, data, REALM_WEIGHT_ROWS};
    assert_int_equal(b->v->weight_open(b, &huge, &w, &err), REALM_E_LIMIT);

    realm_kv_desc kvs[] = {{0, 1, 64, 4}, {1, 0, 64, 4}, {1, 1, 0, 4}, {1, 1, 63, 4}, {1, 1, 64, 0}, {1, 1, 8192, 4}};
    for (size_t i = 0; i < REALM_ARRAY_LEN(kvs); i++) {
        assert_int_not_equal(b->v->kv_open(b, &kvs[i], &kv, &err), REALM_OK);
        assert_null(kv);
    }
    realm_kv_desc vast = {UINT32_MAX, UINT32_MAX, 4096, UINT32_MAX};
    assert_int_equal(b->v->kv_open(b, &vast, &kv, &err), REALM_E_NOMEM);
    realm_backend_close(b);
    realm_backend_close(NULL);
}

static void levels_are_chosen(void **state) {
    (void)state;
    const uint64_t cache = realm_cpu_cache_bytes(); /* KiB taken for bytes, or the other way, would show */
    assert_true(cache == 0 || (cache >= 1u << 15 && cache <= UINT64_C(1) << 34));
    realm_backend *b;
    realm_error err = {0};
    assert_int_equal(realm_backend_open_cpu(&b, &(realm_backend_config){.n_threads = 1, .cpu_level = "mmx"}, &err),
                     REALM_E_UNSUPPORTED);
    assert_null(b);
    assert_non_null(strstr(err.text, "mmx"));
    const char *before = getenv("REALM_CPU");
    char *kept = before ? strdup(before) : NULL;
    setenv("REALM_CPU", "scalar", 1);
    assert_int_equal(realm_backend_open_cpu(&b, &(realm_backend_config){.n_threads = 1}, &err), REALM_OK);
    assert_string_equal(b->name, "cpu/scalar");
    realm_backend_close(b);
    setenv("REALM_CPU", "none such", 1);
    assert_int_equal(realm_backend_open_cpu(&b, &(realm_backend_config){.n_threads = 1}, &err), REALM_E_UNSUPPORTED);
    const char *best = realm_cpu_level_name(realm_cpu_detect());
    assert_int_equal(realm_backend_open_cpu(&b, &(realm_backend_config){.n_threads = 1, .cpu_level = best}, &err),
                     REALM_OK);
    assert_string_equal(b->name + 4, best);
    realm_backend_close(b);
    if (kept)
        setenv("REALM_CPU", kept, 1);
    else
        unsetenv("REALM_CPU");
    free(kept);
    if (realm_cpu_detect() < REALM_CPU_VNNI) {
        assert_int_equal(realm_backend_open_cpu(&b, &(realm_backend_config){.n_threads = 1, .cpu_level = "vnni"}, &err),
                         REALM_E_UNSUPPORTED);
        assert_non_null(strstr(err.text, "no vnni"));
    }
}

/* Every allocation of opening fails in turn: REALM_E_NOMEM, nothing lost (the address sanitizer looks). */
static void failed_allocations_lose_nothing(void **state) {
    (void)state;
    static model m;
    realm_error err = {0};
    model_open(&m, &shapes[0], realm_cpu_level_name(realm_cpu_detect()), 2);
    realm_kv_desc kd = {.n_layers = 1, .n_kv_head = 1, .head_dim = 64, .n_pages = 4};
    realm_weight_desc wd = {realm_type_find("F32"), 1, DIM, m.w[W_OUT].data, REALM_WEIGHT_VECTOR | REALM_WEIGHT_LINEAR};
    for (uint32_t what = 0; what < 4; what++) {
        realm_status s = REALM_E_NOMEM;
        for (int64_t after = 0; s != REALM_OK; after++) {
            realm_backend *b = NULL;
            realm_kv *kv = NULL;
            realm_weight *w = NULL;
            realm_plan *p = NULL;
            assert_true(after < 200);
            realm_alloc_inject_failure(after, false);
            switch (what) {
            case 0: s = realm_backend_open_cpu(&b, &(realm_backend_config){.n_threads = 2}, &err); break;
            case 1: s = m.b->v->kv_open(m.b, &kd, &kv, &err); break;
            case 2: s = m.b->v->weight_open(m.b, &wd, &w, &err); break;
            default: s = m.b->v->plan_open(m.b, &m.desc, &p, &err); break;
            }
            realm_alloc_inject_failure(-1, false);
            assert_true(s == REALM_OK || s == REALM_E_NOMEM);
            assert_true((s == REALM_OK) == (b || kv || w || p));
            if (after == 0) assert_int_equal(s, REALM_E_NOMEM);
            realm_backend_close(b);
            m.b->v->kv_close(m.b, kv);
            m.b->v->weight_close(m.b, w);
            m.b->v->plan_close(m.b, p);
        }
    }
    model_close(&m);
}

static void count(void *user, uint32_t i) { ((uint32_t *)user)[i]++; }

static void host_work_is_shared(void **state) {
    (void)state;
    realm_backend *b;
    assert_int_equal(realm_backend_open_cpu(&b, &(realm_backend_config){.n_threads = 3}, NULL), REALM_OK);
    uint32_t done[100] = {0};
    uint32_t ns[] = {0, 1, 2, 100};
    for (uint32_t i = 0; i < 4; i++) b->v->parallel(b, ns[i], count, done);
    assert_int_equal(done[0], 3);
    assert_int_equal(done[1], 2);
    for (uint32_t i = 2; i < 100; i++) assert_int_equal(done[i], 1);
    realm_backend_close(b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forward_pass_agrees_with_double),
        cmocka_unit_test(company_and_threads_change_no_bit),
        cmocka_unit_test(pages_copy_and_clear),
        cmocka_unit_test(only_wanted_rows_come_out),
        cmocka_unit_test(malformed_plans_are_refused),
        cmocka_unit_test(malformed_batches_are_refused),
        cmocka_unit_test(odd_weights_and_kv_are_refused),
        cmocka_unit_test(levels_are_chosen),
        cmocka_unit_test(failed_allocations_lose_nothing),
        cmocka_unit_test(host_work_is_shared),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
