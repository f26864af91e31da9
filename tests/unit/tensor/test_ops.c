/* Every op against a plain definition in double precision, on random shapes, at every level that the machine has; and
 * that neither threads, nor slices, nor the rows beside a row show in it. */
#include <math.h>

#include "fixture.h"
#include "support/random.h"

static float random_value(void) { return (float)random_below(20001) / 5000.0f - 2.0f; }

static float *random_values(size_t n) {
    float *v = malloc(n * sizeof *v);
    for (size_t i = 0; i < n; i++) v[i] = random_value();
    return v;
}

static void near(const char *what, const float *got, const double *want, size_t n, double relative) {
    double scale = 1e-6;
    for (size_t i = 0; i < n; i++) scale = fmax(scale, fabs(want[i]));
    for (size_t i = 0; i < n; i++)
        if (!(fabs((double)got[i] - want[i]) <= relative * scale)) {
            print_error("%s: value %zu is %g, not %g (of %g)\n", what, i, (double)got[i], want[i], scale);
            fail();
        }
}

static double half(double x) { return (double)realm_f16_to_f32(realm_f32_to_f16((float)x)); }

typedef struct ops_run {
    tensor_run t;
    realm_tensor *x, *y;
    float *in, *out;
    double *want;
    uint32_t m, cols;
} ops_run;

/* a (m, cols) random, out (m, out_cols). */
static void begin(ops_run *r, uint32_t m, uint32_t cols, uint32_t out_cols) {
    r->m = m;
    r->cols = cols;
    r->in = random_values((size_t)m * cols);
    r->out = malloc(sizeof(float) * m * out_cols);
    r->want = calloc((size_t)m * out_cols, sizeof *r->want);
    r->x = tensor_of(&r->t, m, cols, r->in);
    r->y = tensor_make(&r->t, m, out_cols);
}

/* Runs, compares, and runs again row by row where the op allows that (rows_of_b: b has m rows, too). */
static void finish(ops_run *r, const char *what, const realm_tensor_op *op, double relative) {
    realm_tensor_info info;
    realm_tensor_get_info(r->y, &info);
    tensor_do(&r->t, op, 1);
    tensor_get(r->y, 0, info.rows * info.cols, r->out);
    near(what, r->out, r->want, (size_t)(info.rows * info.cols), relative);
    realm_tensor_release(r->x);
    realm_tensor_release(r->y);
    free(r->in);
    free(r->out);
    free(r->want);
}

static void check_products(ops_run *r) {
    for (int round = 0; round < 6; round++) {
        uint32_t m = 1 + random_below(20), k = 1 + random_below(90), n = 1 + random_below(70);
        begin(r, m, k, n);
        float *b = random_values((size_t)n * k);
        const bool plain = round % 2 != 0;
        for (uint32_t i = 0; i < m; i++)
            for (uint32_t j = 0; j < n; j++)
                for (uint32_t l = 0; l < k; l++)
                    r->want[i * n + j] +=
                        (double)r->in[i * k + l] * (double)(plain ? b[(size_t)l * n + j] : b[(size_t)j * k + l]);
        realm_tensor *w = plain ? tensor_of(&r->t, k, n, b) : tensor_of(&r->t, n, k, b);
        realm_tensor_op op = {
            .kind = plain ? REALM_TENSOR_MATMUL_PLAIN : REALM_TENSOR_MATMUL, .out = r->y, .a = r->x, .b = w};
        finish(r, "matmul", &op, 1e-5);
        realm_tensor_release(w);
        free(b);
    }
}

static void check_rows(ops_run *r) {
    uint32_t m = 1 + random_below(9), cols = 1 + random_below(100);
    begin(r, m, cols, cols);
    float *table = random_values((size_t)13 * cols);
    int32_t ids[9];
    for (uint32_t i = 0; i < m; i++) {
        ids[i] = (int32_t)random_below(13);
        for (uint32_t j = 0; j < cols; j++) r->want[i * cols + j] = 1.5 * (double)table[(uint32_t)ids[i] * cols + j];
    }
    realm_tensor *t = tensor_of(&r->t, 13, cols, table);
    realm_tensor_op op = {
        .kind = REALM_TENSOR_GET_ROWS, .out = r->y, .a = t, .u.get_rows = {.ids = ids, .n = m, .scale = 1.5f}};
    finish(r, "get rows", &op, 1e-6);
    realm_tensor_release(t);
    free(table);
}

static void check_norm(ops_run *r) {
    uint32_t m = 1 + random_below(9), len = 1 + random_below(70), groups = 1 + random_below(4);
    begin(r, m, len * groups, len * groups);
    float *gain = random_values(len);
    for (uint32_t g = 0; g < m * groups; g++) {
        double sum = 0;
        for (uint32_t i = 0; i < len; i++) sum += (double)r->in[g * len + i] * (double)r->in[g * len + i];
        for (uint32_t i = 0; i < len; i++)
            r->want[g * len + i] = (double)r->in[g * len + i] / sqrt(sum / len + 1e-5) * (double)gain[i];
    }
    realm_tensor *t = tensor_of(&r->t, 1, len, gain);
    realm_tensor_op op = {.kind = REALM_TENSOR_RMS_NORM, .out = r->y, .a = r->x, .b = t, .u.eps = 1e-5f};
    finish(r, "rms norm", &op, 1e-5);
    realm_tensor_release(t);
    free(gain);
}

static void check_elementwise(ops_run *r) {
    for (int kind = 0; kind < 8; kind++) {
        uint32_t m = 1 + random_below(9), cols = 1 + random_below(600), one_row = kind == 1 || kind == 3;
        begin(r, m, cols, cols);
        float *z = random_values((size_t)m * cols);
        realm_tensor *t = tensor_of(&r->t, one_row ? 1 : m, cols, z);
        realm_tensor_op op = {.out = r->y, .a = r->x, .b = t};
        for (uint32_t i = 0; i < m * cols; i++) {
            double x = (double)r->in[i], y = (double)z[one_row ? i % cols : i];
            double u = 0.79788456080286535588 * (x + 0.044715 * x * x * x);
            r->want[i] = kind < 2    ? x + y
                         : kind < 4  ? x * y
                         : kind == 4 ? x / (1 + exp(-x)) * y
                         : kind == 5 ? 0.5 * x * (1 + tanh(u)) * y
                         : kind == 6 ? x / (1 + exp(-x))
                                     : x * -0.37;
        }
        op.kind = kind < 2    ? REALM_TENSOR_ADD
                  : kind < 4  ? REALM_TENSOR_MUL
                  : kind == 5 ? REALM_TENSOR_GELU
                  : kind == 7 ? REALM_TENSOR_SCALE
                              : REALM_TENSOR_SILU;
        if (kind >= 6) op.b = NULL;
        if (kind == 7) op.u.scale = -0.37f;
        finish(r, "elementwise", &op, 2e-6);
        realm_tensor_release(t);
        free(z);
    }
}

static void check_softmax(ops_run *r) {
    uint32_t m = 1 + random_below(9), cols = 1 + random_below(300);
    begin(r, m, cols, cols);
    for (uint32_t i = 0; i < m; i++) {
        double sum = 0;
        for (uint32_t j = 0; j < cols; j++) sum += exp((double)r->in[i * cols + j]);
        for (uint32_t j = 0; j < cols; j++) r->want[i * cols + j] = exp((double)r->in[i * cols + j]) / sum;
    }
    realm_tensor_op op = {.kind = REALM_TENSOR_SOFTMAX, .out = r->y, .a = r->x};
    finish(r, "softmax", &op, 1e-5);

    begin(r, m, cols, 1);
    for (uint32_t i = 0; i < m; i++)
        for (uint32_t j = 1; j < cols; j++)
            if (r->in[i * cols + j] > r->in[i * cols + (uint32_t)r->want[i]]) r->want[i] = j;
    op = (realm_tensor_op){.kind = REALM_TENSOR_ARGMAX, .out = r->y, .a = r->x};
    finish(r, "argmax", &op, 0);
}

static void check_rope(ops_run *r) {
    for (int style = 0; style < 2; style++) {
        uint32_t m = 1 + random_below(9), heads = 1 + random_below(4), dim = 2 * (1 + random_below(20));
        uint32_t dims = 2 * (1 + random_below(dim / 2)), first = random_below(5000);
        begin(r, m, heads * dim, heads * dim);
        float factors[20];
        for (uint32_t i = 0; i < dims / 2; i++) factors[i] = 1 + (float)random_below(8);
        for (uint32_t i = 0; i < m * heads; i++)
            for (uint32_t j = 0; j < dim; j++) {
                const float *x = r->in + (size_t)i * dim;
                double *y = r->want + (size_t)i * dim;
                y[j] = (double)x[j];
                if (j >= dims / 2) continue;
            }
        for (uint32_t i = 0; i < m * heads; i++)
            for (uint32_t j = 0; j < dims / 2; j++) {
                const float *x = r->in + (size_t)i * dim;
                double *y = r->want + (size_t)i * dim;
                double angle = (first + i / heads) * pow(10000, -2.0 * j / dims) * 0.5 / (double)factors[j];
                uint32_t a = style ? j : 2 * j, b = style ? j + dims / 2 : 2 * j + 1;
                y[a] = (double)x[a] * cos(angle) - (double)x[b] * sin(angle);
                y[b] = (double)x[a] * sin(angle) + (double)x[b] * cos(angle);
            }
        realm_tensor *t = tensor_of(&r->t, 1, dims / 2, factors);
        realm_tensor_op op = {.kind = REALM_TENSOR_ROPE,
                              .out = r->y,
                              .a = r->x,
                              .b = t,
                              .u.rope = {.head_dim = dim,
                                         .rope_dims = dims,
                                         .first_pos = first,
                                         .base = 10000,
                                         .freq_scale = 0.5f,
                                         .style = style ? REALM_ROPE_HALVES : REALM_ROPE_PAIRS}};
        finish(r, "rope", &op, 1e-5);
        realm_tensor_release(t);
    }
}

typedef enum attention_kind { CAUSAL, WINDOW, FULL, MASKED, CAPPED, ATTENTION_KINDS } attention_kind;

static void check_attention(ops_run *r, attention_kind kind, uint32_t most_t) {
    const uint32_t n_kv = 1 + random_below(3), heads = n_kv * (1 + random_below(5)), dim = 2 * (1 + random_below(24));
    const uint32_t m = 1 + random_below(30);
    const uint32_t past = kind == FULL || kind == MASKED ? 0 : random_below(most_t);
    const uint32_t t = kind == FULL || kind == MASKED ? 1 + random_below(most_t) : past + m + random_below(3);
    const uint32_t window = kind == WINDOW ? 1 + random_below(40) : 0;
    begin(r, m, heads * dim, heads * dim);
    float *k = random_values((size_t)t * n_kv * dim), *v = random_values((size_t)t * n_kv * dim);
    float *mask = random_values((size_t)m * t);
    for (size_t i = 0; i < (size_t)m * t; i++)
        if (random_below(3) == 0) mask[i] = -INFINITY;
    for (uint32_t j = 0; j < t; j++) mask[j] = -INFINITY; /* row 0 sees nothing */
    double *s = malloc(sizeof *s * t);
    for (uint32_t i = 0; i < m; i++)
        for (uint32_t h = 0; h < heads; h++) {
            const uint32_t kv = h / (heads / n_kv), end = kind == FULL || kind == MASKED ? t : past + i + 1;
            const uint32_t from = window > 0 && end > window ? end - window : 0;
            const float *q = r->in + ((size_t)i * heads + h) * dim;
            double *o = r->want + ((size_t)i * heads + h) * dim, top = -INFINITY, sum = 0;
            for (uint32_t p = from; p < end; p++) {
                s[p] = 0;
                for (uint32_t d = 0; d < dim; d++)
                    s[p] += (double)(q[d] * 0.3f) * half((double)k[((size_t)p * n_kv + kv) * dim + d]);
                if (kind == CAPPED) s[p] = 2.5 * tanh(s[p] / 2.5);
                if (kind == MASKED) s[p] += (double)mask[(size_t)i * t + p];
                top = fmax(top, s[p]);
            }
            for (uint32_t p = from; p < end && isfinite(top); p++) {
                double e = exp(s[p] - top);
                sum += e;
                for (uint32_t d = 0; d < dim; d++) o[d] += e * half((double)v[((size_t)p * n_kv + kv) * dim + d]);
            }
            for (uint32_t d = 0; d < dim && isfinite(top); d++) o[d] /= sum;
        }
    realm_tensor *tk = tensor_of(&r->t, t, n_kv * dim, k), *tv = tensor_of(&r->t, t, n_kv * dim, v);
    realm_tensor *tm = tensor_of(&r->t, m, t, mask);
    realm_tensor_op op = {.kind = REALM_TENSOR_ATTENTION,
                          .out = r->y,
                          .a = r->x,
                          .b = tk,
                          .c = tv,
                          .d = kind == MASKED ? tm : NULL,
                          .u.attention = {.n_head = heads,
                                          .n_kv_head = n_kv,
                                          .head_dim = dim,
                                          .n_past = past,
                                          .window = window,
                                          .full = kind == FULL || kind == MASKED,
                                          .scale = 0.3f,
                                          .softcap = kind == CAPPED ? 2.5f : 0}};
    finish(r, "attention", &op, 3e-5);
    realm_tensor_release(tk);
    realm_tensor_release(tv);
    realm_tensor_release(tm);
    free(k);
    free(v);
    free(mask);
    free(s);
}

static void definitions(void **state) {
    (void)state;
    static const char *const levels[] = {"scalar", "avx2", "avx512", "vnni"};
    for (size_t i = 0; i < REALM_ARRAY_LEN(levels); i++) {
        realm_error err = {0};
        realm_backend *b;
        const uint32_t threads = 1 + (uint32_t)i % 3;
        if (realm_backend_open_cpu(&b, &(realm_backend_config){.n_threads = threads, .cpu_level = levels[i]}, &err) !=
            REALM_OK)
            continue; /* not on this machine */
        ops_run r = {0};
        tensor_run_open(&r.t, b, 0, NULL);
        for (int round = 0; round < 6; round++) {
            check_products(&r);
            check_rows(&r);
            check_norm(&r);
            check_elementwise(&r);
            check_softmax(&r);
            check_rope(&r);
            for (int kind = 0; kind < ATTENTION_KINDS; kind++)
                check_attention(&r, (attention_kind)kind, round % 2 ? 40 : 400);
        }
        tensor_run_close(&r.t);
        realm_backend_close(b);
    }
}

/* Large enough for several slices and turns: bit for bit what each row gives alone, whatever the number of threads. */
static void slices(void **state) {
    (void)state;
    enum { M = 700, K = 512, N = 640 };
    float *a = random_values((size_t)M * K), *w = random_values((size_t)N * K);
    float *want = malloc(sizeof(float) * M * N), *got = malloc(sizeof(float) * M * N);
    for (uint32_t threads = 1; threads <= 3; threads++) {
        tensor_run t;
        tensor_run_open(&t, NULL, threads, NULL);
        realm_tensor *ta = tensor_of(&t, M, K, a), *tw = tensor_of(&t, N, K, w), *ty = tensor_make(&t, M, N);
        realm_tensor_op op = {.kind = REALM_TENSOR_MATMUL, .out = ty, .a = ta, .b = tw};
        tensor_do(&t, &op, 1);
        tensor_get(ty, 0, (uint64_t)M * N, threads == 1 ? want : got);
        if (threads > 1) assert_memory_equal(got, want, sizeof(float) * M * N);
        realm_tensor *one = tensor_make(&t, 1, K), *row = tensor_make(&t, 1, N);
        for (uint32_t i = 0; i < M; i += 233) {
            realm_tensor_op each[2] = {{.kind = REALM_TENSOR_COPY, .out = one, .a = ta, .u.copy = {i, 1, 0}},
                                       {.kind = REALM_TENSOR_MATMUL, .out = row, .a = one, .b = tw}};
            tensor_do(&t, each, 2);
            tensor_get(row, 0, N, got);
            assert_memory_equal(got, want + (size_t)i * N, N * sizeof *got);
        }
        realm_tensor *const all[] = {ta, tw, ty, one, row};
        for (size_t i = 0; i < REALM_ARRAY_LEN(all); i++) realm_tensor_release(all[i]);
        tensor_run_close(&t);
    }
    free(a);
    free(w);
    free(want);
    free(got);
}

/* A mask that says what causality says gives the same bits; so does any chunk of the rows. */
static void masks_and_chunks(void **state) {
    (void)state;
    enum { T = 300, HEADS = 6, KV = 2, DIM = 32 };
    tensor_run r;
    tensor_run_open(&r, NULL, 2, NULL);
    float *q = random_values((size_t)T * HEADS * DIM), *k = random_values((size_t)T * KV * DIM);
    float *v = random_values((size_t)T * KV * DIM), *mask = calloc((size_t)T * T, sizeof *mask);
    float *want = malloc(sizeof(float) * T * HEADS * DIM), *got = malloc(sizeof(float) * T * HEADS * DIM);
    for (uint32_t i = 0; i < T; i++)
        for (uint32_t j = i + 1; j < T; j++) mask[i * T + j] = -INFINITY;
    realm_tensor *tq = tensor_of(&r, T, HEADS * DIM, q), *tk = tensor_of(&r, T, KV * DIM, k);
    realm_tensor *tv = tensor_of(&r, T, KV * DIM, v), *tm = tensor_of(&r, T, T, mask);
    realm_tensor *ty = tensor_make(&r, T, HEADS * DIM), *part = tensor_make(&r, 64, HEADS * DIM);
    realm_tensor_op op = {.kind = REALM_TENSOR_ATTENTION,
                          .out = ty,
                          .a = tq,
                          .b = tk,
                          .c = tv,
                          .u.attention = {.n_head = HEADS, .n_kv_head = KV, .head_dim = DIM, .scale = 0.2f}};
    tensor_do(&r, &op, 1);
    tensor_get(ty, 0, (uint64_t)T * HEADS * DIM, want);
    op.d = tm;
    op.u.attention.full = true;
    tensor_do(&r, &op, 1);
    tensor_get(ty, 0, (uint64_t)T * HEADS * DIM, got);
    assert_memory_equal(got, want, sizeof(float) * T * HEADS * DIM);
    op.d = NULL;
    op.u.attention.full = false;
    op.a = op.out = part;
    for (uint32_t from = 0; from < T; from += 64) {
        uint32_t n = REALM_MIN(64u, T - from);
        realm_tensor *piece = tensor_make(&r, 64, HEADS * DIM);
        realm_tensor_op both[2] = {{.kind = REALM_TENSOR_COPY, .out = piece, .a = tq, .u.copy = {from, n, 0}}, op};
        both[1].a = piece;
        both[1].m = n;
        both[1].u.attention.n_past = from;
        both[1].u.attention.t = from + n;
        tensor_do(&r, both, 2);
        tensor_get(part, 0, (uint64_t)n * HEADS * DIM, got);
        assert_memory_equal(got, want + (size_t)from * HEADS * DIM, sizeof(float) * n * HEADS * DIM);
        realm_tensor_release(piece);
    }
    realm_tensor *const all[] = {tq, tk, tv, tm, ty, part};
    for (size_t i = 0; i < REALM_ARRAY_LEN(all); i++) realm_tensor_release(all[i]);
    free(q);
    free(k);
    free(v);
    free(mask);
    free(want);
    free(got);
    tensor_run_close(&r);
}

/* Where an op works in place it gives what it gives beside. */
static void in_place(void **state) {
    (void)state;
    enum { M = 5, COLS = 96 };
    tensor_run r;
    tensor_run_open(&r, NULL, 2, NULL);
    float *a = random_values(M * COLS), *b = random_values(M * COLS), want[M * COLS], got[M * COLS];
    static const realm_tensor_op_kind kinds[] = {REALM_TENSOR_RMS_NORM, REALM_TENSOR_ADD,  REALM_TENSOR_MUL,
                                                 REALM_TENSOR_SCALE,    REALM_TENSOR_SILU, REALM_TENSOR_GELU,
                                                 REALM_TENSOR_SOFTMAX,  REALM_TENSOR_ROPE};
    for (size_t i = 0; i < REALM_ARRAY_LEN(kinds); i++)
        for (int which = 0; which < 2; which++) {
            const bool two = kinds[i] == REALM_TENSOR_ADD || kinds[i] == REALM_TENSOR_MUL ||
                             kinds[i] == REALM_TENSOR_SILU || kinds[i] == REALM_TENSOR_GELU;
            if (which == 1 && !two) continue;
            realm_tensor *ta = tensor_of(&r, M, COLS, a), *tb = tensor_of(&r, M, COLS, b),
                         *ty = tensor_make(&r, M, COLS);
            realm_tensor_op op = {.kind = kinds[i], .out = ty, .a = ta, .b = two ? tb : NULL};
            if (kinds[i] == REALM_TENSOR_RMS_NORM) op.u.eps = 1e-5f;
            if (kinds[i] == REALM_TENSOR_SCALE) op.u.scale = 3.0f;
            if (kinds[i] == REALM_TENSOR_ROPE) {
                op.u.rope.head_dim = 32;
                op.u.rope.base = 10000;
            }
            tensor_do(&r, &op, 1);
            tensor_get(ty, 0, M * COLS, want);
            op.out = which ? tb : ta;
            tensor_do(&r, &op, 1);
            tensor_get(op.out, 0, M * COLS, got);
            assert_memory_equal(got, want, sizeof got);
            realm_tensor_release(ta);
            realm_tensor_release(tb);
            realm_tensor_release(ty);
        }
    free(a);
    free(b);
    tensor_run_close(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(definitions), cmocka_unit_test(slices),
                                       cmocka_unit_test(masks_and_chunks), cmocka_unit_test(in_place)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
