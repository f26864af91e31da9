/* Direct ops that are cut into many slices: against the scalar definition bit for bit where it is one, and that no
 * slice holds the device for much of the whole. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "compute/cpu/kernels.h"
#include "support/random.h"

static float *values(size_t n) {
    float *v = malloc(n * sizeof *v);
    for (size_t i = 0; i < n; i++) v[i] = (float)(2 * random_unit() - 1);
    return v;
}

static realm_backend *backend(uint32_t threads, const char *level) {
    realm_error err = {0};
    realm_backend *b;
    if (realm_backend_open_cpu(&b, &(realm_backend_config){.n_threads = threads, .cpu_level = level}, &err) == REALM_OK)
        return b;
    assert_non_null(level); /* not on this machine */
    return NULL;
}

static uint64_t thread_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* All slices. The kept memory begins as NaNs; *longest is the processor time of the longest slice as a part of all. */
static uint64_t run(realm_backend *b, const realm_direct *op, double *longest) {
    realm_error err = {0};
    realm_direct_cut cut;
    assert_int_equal(b->v->direct_cut(b, op, &cut, &err), REALM_OK);
    void *kept = cut.kept_bytes > 0 ? realm_malloc_aligned((size_t)cut.kept_bytes, 64) : NULL;
    if (kept) memset(kept, 0xff, (size_t)cut.kept_bytes);
    uint64_t all = 0, most = 0;
    for (uint64_t i = 0; i < cut.n_slices; i++) {
        const uint64_t begin = thread_ns();
        if (b->v->direct(b, op, i, kept, &err) != REALM_OK) fail_msg("%s", err.text);
        const uint64_t ns = thread_ns() - begin;
        all += ns;
        if (ns > most) most = ns;
    }
    if (longest) *longest = (double)most / (double)all;
    realm_free(kept);
    return cut.n_slices;
}

/* ---- results ----------------------------------------------------------------------------------------------------- */

/* Runs of outputs and of inputs, the last ones shorter, rows that are no whole tiles. */
static void products(void **state) {
    (void)state;
    static const char *const levels[] = {"scalar", "avx2", "avx512", "vnni"};
    static const struct {
        uint32_t m, n, k;
    } shapes[] = {{3, 41, 2 * REALM_DIRECT_SUM + 77}, {21, 700, 1999}, {1, 5, REALM_DIRECT_SUM}, {2, 1, 30000}};
    for (size_t s = 0; s < REALM_ARRAY_LEN(shapes); s++) {
        const uint32_t m = shapes[s].m, n = shapes[s].n, k = shapes[s].k;
        float *x = values((size_t)m * k), *w = values((size_t)n * k), *plain = malloc((size_t)n * k * sizeof *plain);
        float *want = calloc((size_t)m * n, sizeof *want), *y = malloc((size_t)m * n * sizeof *y);
        for (uint32_t j = 0; j < n; j++)
            for (uint32_t i = 0; i < k; i++) plain[(size_t)i * n + j] = w[(size_t)j * k + i];
        for (uint32_t r = 0; r < m; r++)
            for (uint32_t j = 0; j < n; j++)
                for (uint32_t first = 0; first < k; first += REALM_DIRECT_SUM) {
                    float f = 0;
                    for (uint32_t i = first; i < REALM_MIN(k, first + REALM_DIRECT_SUM); i++)
                        f = fmaf(w[(size_t)j * k + i], x[(size_t)r * k + i], f);
                    want[(size_t)r * n + j] = first == 0 ? f : want[(size_t)r * n + j] + f;
                }
        for (size_t l = 0; l < REALM_ARRAY_LEN(levels); l++) {
            realm_backend *b = backend(1 + (uint32_t)l % 3, levels[l]);
            for (int p = 0; b && p < 2; p++) {
                const realm_direct op = {.kind = REALM_DIRECT_MATMUL,
                                         .m = m,
                                         .cols = n,
                                         .x = x,
                                         .y = y,
                                         .u.matmul = {.b = p ? plain : w, .k = k, .plain = p}};
                memset(y, 0xff, (size_t)m * n * sizeof *y);
                const uint64_t n_slices = run(b, &op, NULL);
                assert_true(n_slices >= (k > REALM_DIRECT_SUM || n > 600 ? 4 : 2));
                assert_memory_equal(y, want, (size_t)m * n * sizeof *y);
            }
            realm_backend_close(b);
        }
        free(x), free(w), free(plain), free(want), free(y);
    }
}

/* A weight in several runs of outputs gives each row what it gives it alone, in one. */
static void weights(void **state) {
    (void)state;
    enum { M = 45, N = 8200, K = 512 };
    realm_error err = {0};
    realm_backend *b = backend(1, NULL);
    float *x = values((size_t)M * K), *rows = values((size_t)N * K), *y = malloc(sizeof(float) * M * N);
    float *alone = malloc(sizeof(float) * N);
    realm_weight *w;
    assert_int_equal(
        b->v->weight_open(
            b,
            &(realm_weight_desc){
                .type = realm_type_get(REALM_TYPE_F32), .rows = N, .cols = K, .data = rows, .use = REALM_WEIGHT_LINEAR},
            &w, &err),
        REALM_OK);
    realm_direct op = {.kind = REALM_DIRECT_LINEAR, .m = M, .cols = N, .x = x, .y = y, .u.linear = w};
    assert_true(run(b, &op, NULL) >= 4);
    op.m = 1;
    op.y = alone;
    for (uint32_t r = 0; r < M; r++) {
        op.x = x + (size_t)r * K;
        assert_int_equal(run(b, &op, NULL), 1);
        assert_memory_equal(alone, y + (size_t)r * N, sizeof(float) * N);
    }
    b->v->weight_close(b, w);
    realm_backend_close(b);
    free(x), free(rows), free(y), free(alone);
}

typedef struct attention_case {
    uint32_t m, t, n_past, n_head, n_kv_head, dim, window;
    bool full, masked;
    uint32_t least; /* slices */
} attention_case;

/* One query at a time, split by split: what attention.c is to give however it is shared and cut. */
static void attend_plainly(const realm_cpu_kernels *k, const realm_direct *op, float *want) {
    enum { S = REALM_SPLIT_TOKENS };
    const uint32_t dim = op->u.attention.head_dim, n_head = op->u.attention.n_head, t = op->u.attention.t;
    const uint32_t n_kv = op->u.attention.n_kv_head,
                   v_dim = (dim + REALM_HEAD_PAD - 1) / REALM_HEAD_PAD * REALM_HEAD_PAD;
    const size_t block = (size_t)REALM_KV_PAGE_TOKENS * (dim + v_dim);
    uint16_t *pages = realm_malloc_aligned(REALM_SPLIT_PAGES * block * sizeof *pages, 64);
    float *scratch = realm_malloc_aligned(sizeof(float) * (S + (size_t)v_dim * (REALM_KV_PAGE_TOKENS + 2) + dim), 64);
    float *o = scratch + S, *o2 = o + v_dim, *page = o2 + v_dim, *q = page + (size_t)REALM_KV_PAGE_TOKENS * v_dim;
    for (uint64_t i = 0; i < op->m * n_head; i++) {
        const uint32_t row = (uint32_t)(i / n_head), kv = (uint32_t)(i % n_head) / (n_head / n_kv);
        const uint32_t pos = op->u.attention.full ? t - 1 : op->u.attention.n_past + row, w = op->u.attention.window;
        const uint32_t from = w > 0 && pos >= w ? pos + 1 - w : 0;
        float m = -INFINITY, l = 0;
        for (uint32_t d = 0; d < dim; d++) q[d] = op->x[i * dim + d] * op->u.attention.scale;
        for (uint32_t base = from / S * S; base <= pos; base += S) {
            memset(pages, 0, REALM_SPLIT_PAGES * block * sizeof *pages);
            realm_attend_args a = {.n_q = 1, .head_dim = dim, .v_dim = v_dim, .q = q, .scores = scratch, .page = page};
            for (uint32_t p = 0; p < REALM_SPLIT_PAGES; p++) {
                a.k[p] = pages + p * block;
                a.v[p] = a.k[p] + (size_t)dim * REALM_KV_PAGE_TOKENS;
            }
            for (uint32_t at = base; at < REALM_MIN(base + S, t); at++) {
                uint16_t *to = pages + (at - base) / REALM_KV_PAGE_TOKENS * block;
                const size_t src = ((size_t)at * n_kv + kv) * dim, in = at % REALM_KV_PAGE_TOKENS;
                k->row.store_half(op->u.attention.k + src, to + in, dim, REALM_KV_PAGE_TOKENS);
                k->row.store_half(op->u.attention.v + src, to + (size_t)dim * REALM_KV_PAGE_TOKENS + in * v_dim, dim,
                                  1);
            }
            const float *mask[1] = {op->u.attention.mask ? op->u.attention.mask + (size_t)row * t + base : NULL};
            const uint32_t begin = from > base ? from - base : 0, end = REALM_MIN(S, pos + 1 - base);
            float m2, l2;
            a.begin = &begin, a.end = &end, a.mask = mask[0] ? mask : NULL;
            a.m = base == from / S * S ? &m : &m2, a.l = a.m == &m ? &l : &l2, a.o = a.m == &m ? o : o2;
            k->attention.attend_split(&a);
            if (a.m != &m) k->attention.merge_split(&m, &l, o, m2, l2, o2, v_dim);
        }
        for (uint32_t d = 0; d < dim; d++) want[i * dim + d] = o[d] * (l == 0 ? 0 : 1.0f / l);
    }
    realm_free(pages);
    realm_free(scratch);
}

static void attention(void **state) {
    (void)state;
    static const attention_case cases[] = {
        {.m = 3, .t = 5003, .n_past = 5000, .n_head = 8, .n_kv_head = 4, .dim = 64, .least = 6},
        {.m = 300, .t = 2600, .n_past = 2300, .n_head = 6, .n_kv_head = 6, .dim = 80, .window = 200, .least = 3},
        {.m = 700, .t = 700, .n_past = 0, .n_head = 16, .n_kv_head = 16, .dim = 100, .window = 90, .least = 20},
        {.m = 5, .t = 3001, .n_head = 4, .n_kv_head = 4, .dim = 72, .full = true, .masked = true, .least = 4},
        {.m = 2, .t = 300, .n_past = 298, .n_head = 90, .n_kv_head = 90, .dim = 64, .least = 6},
        {.m = 1, .t = 400, .n_past = 399, .n_head = 2000, .n_kv_head = 1, .dim = 130, .least = 4},
    };
    static const char *const levels[] = {"scalar", NULL};
    for (size_t c = 0; c < REALM_ARRAY_LEN(cases); c++) {
        const attention_case *a = &cases[c];
        const size_t n = (size_t)a->m * a->n_head * a->dim, n_kv = (size_t)a->t * a->n_kv_head * a->dim;
        float *x = values(n), *k = values(n_kv), *v = values(n_kv), *mask = values((size_t)a->m * a->t);
        float *y = malloc(n * sizeof *y), *want = malloc(n * sizeof *want);
        for (size_t i = 0; i < (size_t)a->m * a->t; i += 3) mask[i] = -INFINITY;
        for (size_t i = 0; i < a->t; i++) mask[i] = -INFINITY; /* row 0 sees nothing */
        for (size_t l = 0; l < REALM_ARRAY_LEN(levels); l++)
            for (uint32_t threads = 1; threads <= 3; threads += 2) {
                if (levels[l] && c == 2) continue; /* long at this level */
                realm_backend *b = backend(threads, levels[l]);
                realm_cpu_kernels kernels;
                realm_cpu_kernels_init(&kernels, levels[l] ? REALM_CPU_SCALAR : realm_cpu_detect());
                const realm_direct op = {.kind = REALM_DIRECT_ATTENTION,
                                         .m = a->m,
                                         .cols = a->n_head * a->dim,
                                         .x = x,
                                         .y = y,
                                         .u.attention = {.k = k,
                                                         .v = v,
                                                         .t = a->t,
                                                         .n_head = a->n_head,
                                                         .n_kv_head = a->n_kv_head,
                                                         .head_dim = a->dim,
                                                         .full = a->full,
                                                         .n_past = a->n_past,
                                                         .window = a->window,
                                                         .scale = 0.3f,
                                                         .mask = a->masked ? mask : NULL}};
                if (threads == 1) attend_plainly(&kernels, &op, want);
                memset(y, 0xff, n * sizeof *y);
                const uint64_t n_slices = run(b, &op, NULL);
                if (threads == 1 && n_slices < a->least) fail_msg("case %zu: %d slices", c, (int)n_slices);
                if (memcmp(y, want, n * sizeof *y) != 0) fail_msg("case %zu, %u threads: other bits", c, threads);
                realm_backend_close(b);
            }
        free(x), free(k), free(v), free(mask), free(y), free(want);
    }
}

/* One row so long that a slice is a piece of it: the bits of the same values in rows of a few, where that is the same
 * thing, else the definition. */
static void long_rows(void **state) {
    (void)state;
    enum { SHORT = 1 << 10, N = (1 << 21) + 2 * SHORT };
    realm_backend *b = backend(2, NULL);
    float *x = values(N), *z = values(N), *y = malloc(sizeof(float) * N), *want = malloc(sizeof(float) * N);
    const realm_direct ops[] = {
        {.kind = REALM_DIRECT_ADD, .u.add = {.z = z}},
        {.kind = REALM_DIRECT_MUL, .u.mul = {.z = z}},
        {.kind = REALM_DIRECT_SCALE, .u.scale = 0.7f},
        {.kind = REALM_DIRECT_ACT, .u.act = {.act = REALM_ACT_GELU_TANH, .z = z}},
        {.kind = REALM_DIRECT_ACT, .u.act = {.act = REALM_ACT_SILU}},
        {.kind = REALM_DIRECT_COPY},
    };
    for (size_t i = 0; i < REALM_ARRAY_LEN(ops); i++) {
        realm_direct one = ops[i], many = ops[i];
        one.x = many.x = x;
        one.m = 1, one.cols = N, one.y = y;
        many.m = N / SHORT, many.cols = SHORT, many.y = want;
        memset(y, 0xff, sizeof(float) * N);
        assert_true(run(b, &one, NULL) > 1);
        run(b, &many, NULL);
        assert_memory_equal(y, want, sizeof(float) * N);
    }
    realm_direct one = {.kind = REALM_DIRECT_ADD, .m = 3, .cols = N / 3, .x = x, .y = y};
    one.u.add.z = z, one.u.add.one_row = true;
    one.cols = N / 3;
    run(b, &one, NULL);
    for (uint32_t i = 0; i < N / 3 * 3; i++) assert_true(y[i] == x[i] + z[i % (N / 3)]);

    /* Rotations: heads of a row at one position, against rows of a head each, of which the first is at it. */
    const realm_direct rope = {.kind = REALM_DIRECT_ROPE,
                               .m = 1,
                               .cols = N,
                               .x = x,
                               .y = y,
                               .u.rope = {.head_dim = SHORT,
                                          .rope_dims = 64,
                                          .first_pos = 77,
                                          .base = 10000,
                                          .freq_scale = 1,
                                          .style = REALM_ROPE_HALVES}};
    assert_true(run(b, &rope, NULL) > 1);
    for (uint32_t i = 0; i < N / SHORT; i += 100) {
        realm_direct head = rope;
        head.cols = SHORT, head.x = x + (size_t)i * SHORT, head.y = want;
        run(b, &head, NULL);
        assert_memory_equal(y + (size_t)i * SHORT, want, sizeof(float) * SHORT);
    }

    /* In place. */
    double sum = 0;
    float top = x[0];
    for (uint32_t i = 0; i < N; i++) top = x[i] > top ? x[i] : top;
    for (uint32_t i = 0; i < N; i++) sum += exp((double)x[i] - (double)top);
    memcpy(want, x, sizeof(float) * N);
    assert_true(run(b, &(realm_direct){.kind = REALM_DIRECT_SOFTMAX, .m = 1, .cols = N, .x = x, .y = x}, NULL) > 3);
    for (uint32_t i = 0; i < N; i++) {
        const double p = exp((double)want[i] - (double)top) / sum;
        if (!(fabs((double)x[i] - p) <= 1e-3 * p)) fail_msg("value %u is %g, not %g", i, (double)x[i], p);
    }
    free(x), free(z), free(y), free(want);
    realm_backend_close(b);
}

/* ---- how long the device is held --------------------------------------------------------------------------------- */

/* Of an op of tens of slices none takes a quarter of the processor time of all, packing included. */
static void no_slice_is_long(void **state) {
    (void)state;
    enum { N = 3072, T = 24576 };
    realm_backend *b = backend(1, NULL);
    float *big = values((size_t)N * N), *v = values((size_t)T * 128), *x = values(N * 8),
          *y = malloc(sizeof(float) * N * 8);
    float *row = values((size_t)1 << 22);
    const realm_direct ops[] = {
        {.kind = REALM_DIRECT_MATMUL, .m = 1, .cols = N, .x = x, .y = y, .u.matmul = {.b = big, .k = N}},
        {.kind = REALM_DIRECT_MATMUL, .m = 8, .cols = N, .x = x, .y = y, .u.matmul = {.b = big, .k = N, .plain = true}},
        {.kind = REALM_DIRECT_ATTENTION,
         .m = 2,
         .cols = 128,
         .x = x,
         .y = y,
         .u.attention =
             {.k = v, .v = v, .t = T, .n_head = 2, .n_kv_head = 2, .head_dim = 64, .n_past = T - 2, .scale = 1}},
        {.kind = REALM_DIRECT_SOFTMAX, .m = 1, .cols = 1 << 22, .x = row, .y = row},
    };
    for (size_t i = 0; i < REALM_ARRAY_LEN(ops); i++) {
        double longest;
        run(b, &ops[i], NULL); /* memory touched for the first time */
        const uint64_t n = run(b, &ops[i], &longest);
        if (n < 10 || longest > 0.4) fail_msg("op %zu: the longest of %d slices is %.2f of all", i, (int)n, longest);
    }
    free(big), free(v), free(x), free(y), free(row);
    realm_backend_close(b);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(products), cmocka_unit_test(weights),
                                       cmocka_unit_test(attention), cmocka_unit_test(long_rows),
                                       cmocka_unit_test(no_slice_is_long)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
