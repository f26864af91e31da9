/* Attention over one split: every level against double precision; a query's result is the same bits whatever else is
 * in the call; what a query does not see may hold anything, NaN too; merged splits equal one softmax over all. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "compute/cpu/kernels.h"
#include "support/random.h"

#define QUERIES REALM_ATTEND_QUERIES
#define SPLIT REALM_SPLIT_TOKENS
#define PAGE REALM_KV_PAGE_TOKENS
#define DIM_MOST 256u
#define HALF_NAN 0x7e01u

static _Alignas(64) float scores[QUERIES * SPLIT], page[PAGE * DIM_MOST];
static float q[QUERIES * DIM_MOST], m[QUERIES], l[QUERIES], o[QUERIES * DIM_MOST];
static float m1[QUERIES], l1[QUERIES], o1[DIM_MOST];
static uint16_t k[REALM_SPLIT_PAGES][PAGE * DIM_MOST], v[REALM_SPLIT_PAGES][PAGE * DIM_MOST];
static uint32_t begin[QUERIES], end[QUERIES];

static realm_attend_args args_of(uint32_t n_q, uint32_t dim, float softcap) {
    realm_attend_args a = {.n_q = n_q,
                           .head_dim = dim,
                           .v_dim = (dim + REALM_HEAD_PAD - 1) / REALM_HEAD_PAD * REALM_HEAD_PAD,
                           .q = q,
                           .begin = begin,
                           .end = end,
                           .softcap = softcap,
                           .scores = scores,
                           .page = page,
                           .m = m,
                           .l = l,
                           .o = o};
    for (uint32_t i = 0; i < REALM_SPLIT_PAGES; i++) a.k[i] = k[i], a.v[i] = v[i];
    return a;
}

/* Random K and V where some query looks, NaN everywhere else. */
static void fill(const realm_attend_args *a, float amplitude) {
    for (uint32_t i = 0; i < a->n_q * a->head_dim; i++) q[i] = random_float(amplitude / sqrtf((float)a->head_dim));
    memset(scores, 0xff, sizeof scores); /* NaN too */
    memset(page, 0xff, sizeof page);
    memset(o, 0xff, sizeof o);
    for (uint32_t t = 0; t < SPLIT; t++) {
        bool seen = false;
        for (uint32_t i = 0; i < a->n_q; i++) seen |= begin[i] <= t && t < end[i];
        for (uint32_t d = 0; d < a->head_dim; d++)
            k[t / PAGE][d * PAGE + t % PAGE] = seen ? realm_f32_to_f16(random_float(1)) : HALF_NAN;
        for (uint32_t d = 0; d < a->v_dim; d++)
            v[t / PAGE][t % PAGE * a->v_dim + d] = !seen             ? HALF_NAN
                                                   : d < a->head_dim ? realm_f32_to_f16(random_float(2))
                                                                     : 0;
    }
}

static double score(const realm_attend_args *a, uint32_t i, uint32_t t) {
    double s = 0;
    for (uint32_t d = 0; d < a->head_dim; d++)
        s += (double)a->q[i * a->head_dim + d] * (double)realm_f16_to_f32(k[t / PAGE][d * PAGE + t % PAGE]);
    return a->softcap > 0 ? a->softcap * tanh(s / a->softcap) : s;
}

static void check_query(const realm_attend_args *a, uint32_t i) {
    if (begin[i] >= end[i]) {
        assert_true(m[i] == -INFINITY && l[i] == 0);
        for (uint32_t d = 0; d < a->v_dim; d++) assert_true(o[i * a->v_dim + d] == 0);
        return;
    }
    double top = -INFINITY, sum = 0;
    for (uint32_t t = begin[i]; t < end[i]; t++) top = fmax(top, score(a, i, t));
    double out[DIM_MOST] = {0};
    for (uint32_t t = begin[i]; t < end[i]; t++) {
        double p = exp(score(a, i, t) - top);
        sum += p;
        for (uint32_t d = 0; d < a->head_dim; d++)
            out[d] += p * (double)realm_f16_to_f32(v[t / PAGE][t % PAGE * a->v_dim + d]);
    }
    assert_true(fabs(m[i] - top) < 1e-4);
    double scale = exp((double)m[i] - top); /* m is a float: what is relative to it is exact */
    assert_true(fabs(l[i] * scale - sum) < 2e-5 * sum);
    for (uint32_t d = 0; d < a->head_dim; d++)
        assert_true(fabs(o[i * a->v_dim + d] * scale - out[d]) < 1e-4 * (1 + sum * 0.1));
}

/* Query i computed alone gives the same bits. */
static void check_alone(const realm_attention_kernels *kernels, const realm_attend_args *all, uint32_t i) {
    realm_attend_args a = *all;
    a.n_q = 1;
    a.q += (size_t)i * a.head_dim;
    a.begin += i, a.end += i;
    a.m = m1, a.l = l1, a.o = o1;
    kernels->attend_split(&a);
    assert_memory_equal(m1, &m[i], sizeof(float));
    assert_memory_equal(l1, &l[i], sizeof(float));
    assert_memory_equal(o1, o + (size_t)i * a.v_dim, a.v_dim * sizeof(float));
}

static void ranges(uint32_t n, uint32_t kind) {
    uint32_t from = random_bits() % SPLIT;
    for (uint32_t i = 0; i < n; i++) {
        begin[i] = 0, end[i] = SPLIT;
        if (kind == 1) end[i] = REALM_MIN(from + i / 3 + 1, SPLIT); /* rows of a prompt, three heads each */
        if (kind == 2) begin[i] = random_bits() % (SPLIT + 1), end[i] = random_bits() % (SPLIT + 1);
        if (kind == 3) end[i] = i < n / 2 ? 0 : i + 1;                                /* some see nothing */
        if (kind == 4) begin[i] = i / 2 + 60, end[i] = REALM_MIN(i / 2 + 100, SPLIT); /* a window */
        if (kind == 5) begin[i] = end[i] - 1;                                         /* only the last */
    }
}

static void splits_agree(void **state) {
    (void)state;
    static const uint32_t dims[] = {2, 6, 16, 64, 72, 80, 96, 128, 256};
    static realm_cpu_kernels kernels;
    for (int level = REALM_CPU_SCALAR; level <= (int)realm_cpu_detect(); level++) {
        rng = 3;
        realm_cpu_kernels_init(&kernels, (realm_cpu_level)level);
        for (uint32_t c = 0; c < REALM_ARRAY_LEN(dims); c++)
            for (uint32_t n = 1; n <= QUERIES; n += n < 8 ? 1 : 5)
                for (uint32_t kind = 0; kind < 6; kind++) {
                    if (level == REALM_CPU_SCALAR && n > 3 && n != 9) continue; /* slow, and no blocks to get wrong */
                    float softcap = (n + kind) % 4 == 3 ? 5.0f : 0;
                    realm_attend_args a = args_of(n, dims[c], softcap);
                    ranges(n, kind);
                    fill(&a, kind == 2 ? 30 : 4);
                    kernels.attention.attend_split(&a);
                    for (uint32_t i = 0; i < n; i += 1 + n / 6) check_query(&a, i);
                    for (uint32_t i = 0; i < n; i += 1 + n / 4) check_alone(&kernels.attention, &a, i);
                }
    }
}

static void merged_splits_are_one_softmax(void **state) {
    (void)state;
    static realm_cpu_kernels kernels;
    for (int level = REALM_CPU_SCALAR; level <= (int)realm_cpu_detect(); level++) {
        realm_cpu_kernels_init(&kernels, (realm_cpu_level)level);
        for (uint32_t round = 0; round < 20; round++) {
            float mm = -INFINITY, ll = 0, oo[32], part[32];
            double score_of[6], l_of[6], o_of[6][32], top = -INFINITY, sum = 0;
            memset(oo, 0, sizeof oo);
            for (uint32_t s = 0; s < 6; s++) {
                bool nothing = s == round % 7;
                float ms = nothing ? -INFINITY : random_float(round < 10 ? 5 : 90),
                      ls = nothing ? 0 : 1 + random_float(1);
                for (uint32_t d = 0; d < 32; d++) part[d] = nothing ? 0 : random_float(3);
                kernels.attention.merge_split(&mm, &ll, oo, ms, ls, part, 32);
                score_of[s] = (double)ms, l_of[s] = (double)ls, top = fmax(top, score_of[s]);
                for (uint32_t d = 0; d < 32; d++) o_of[s][d] = (double)part[d];
            }
            double out[32] = {0};
            for (uint32_t s = 0; s < 6; s++) {
                sum += l_of[s] * exp(score_of[s] - top);
                for (uint32_t d = 0; d < 32; d++) out[d] += o_of[s][d] * exp(score_of[s] - top);
            }
            assert_true(mm == (float)top);
            assert_true(fabs(ll - sum) < 1e-5 * sum);
            for (uint32_t d = 0; d < 32; d++) assert_true(fabs(oo[d] - out[d]) < 2e-5);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(splits_agree),
        cmocka_unit_test(merged_splits_are_one_softmax),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
