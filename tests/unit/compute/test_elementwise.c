/* Row kernels: ref against double precision, every level of this machine against ref: bit for bit where the table
 * promises it, closely elsewhere; lengths that fill no register; values at the edges. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "compute/cpu/kernels.h"
#include "support/random.h"

#define MOST 1100u
#define GUARD 12345.0f

static void fill(float *x, size_t n, float amplitude) {
    for (size_t i = 0; i < n; i++) x[i] = random_float(amplitude);
}

static const size_t lengths[] = {1, 2, 7, 8, 9, 15, 16, 17, 31, 48, 64, 72, 100, 256, 576, 640, 1000, 1029};

/* Calls check(level's kernels, ref's) for every level that this machine has, ref itself included. */
static void each_level(void (*check)(const realm_row_kernels *k, const realm_row_kernels *ref)) {
    static realm_cpu_kernels k, ref;
    realm_cpu_kernels_init(&ref, REALM_CPU_SCALAR);
    for (int l = REALM_CPU_SCALAR; l <= (int)realm_cpu_detect(); l++) {
        rng = 7;
        realm_cpu_kernels_init(&k, (realm_cpu_level)l);
        check(&k.row, &ref.row);
    }
}

static float x[MOST], y[MOST], z[MOST], g[MOST], w[MOST];

static void norm(const realm_row_kernels *k, const realm_row_kernels *ref) {
    for (size_t c = 0; c < REALM_ARRAY_LEN(lengths); c++) {
        size_t n = lengths[c];
        fill(x, n, 3), fill(g, n, 2), fill(w, n, 1);
        float eps = c % 2 ? 1e-5f : 1e-6f;
        double sum = 0;
        for (size_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
        double inv = 1 / sqrt(sum / (double)n + (double)eps);
        for (int gained = 0; gained < 2; gained++) {
            memset(y, 0, sizeof y);
            y[n] = GUARD;
            ref->rms_norm_row(x, gained ? g : NULL, eps, z, n);
            k->rms_norm_row(x, gained ? g : NULL, eps, y, n);
            assert_memory_equal(y, z, n * sizeof *y);
            assert_true(y[n] == GUARD);
            for (size_t i = 0; i < n; i++) {
                double want = x[i] * inv * (gained ? (double)g[i] : 1);
                assert_true(fabs(y[i] - want) <= 1e-6 * fabs(want) + 1e-30);
            }
        }
        memcpy(y, x, n * sizeof *y); /* in place */
        k->rms_norm_row(y, NULL, eps, y, n);
        ref->rms_norm_row(x, NULL, eps, z, n);
        assert_memory_equal(y, z, n * sizeof *y);
        memcpy(y, w, n * sizeof *y), memcpy(z, w, n * sizeof *z);
        y[n] = GUARD;
        k->norm_add_row(x, g, eps, y, n);
        ref->norm_add_row(x, g, eps, z, n);
        assert_memory_equal(y, z, n * sizeof *y);
        assert_true(y[n] == GUARD);
        for (size_t i = 0; i < n; i++) assert_true(fabs(z[i] - (w[i] + x[i] * inv * g[i])) < 1e-5);
    }
    memset(x, 0, sizeof x); /* a row of zeros stays zeros */
    k->rms_norm_row(x, NULL, 1e-5f, y, 64);
    for (size_t i = 0; i < 64; i++) assert_true(y[i] == 0);
}

static void norms_agree(void **state) {
    (void)state;
    each_level(norm);
}

static void sums(const realm_row_kernels *k, const realm_row_kernels *ref) {
    (void)ref;
    for (size_t c = 0; c < REALM_ARRAY_LEN(lengths); c++) {
        size_t n = lengths[c];
        fill(x, n, 3), fill(y, n, 2);
        memcpy(z, y, sizeof z);
        y[n] = GUARD;
        k->add_row(y, x, n);
        for (size_t i = 0; i < n; i++) assert_true(y[i] == z[i] + x[i]);
        memcpy(z, y, sizeof z);
        k->scale_row(y, 25.298221f, n);
        for (size_t i = 0; i < n; i++) assert_true(y[i] == z[i] * 25.298221f);
        assert_true(y[n] == GUARD);
    }
}

static void sums_and_scales_are_exact(void **state) {
    (void)state;
    each_level(sums);
}

static double act_of(realm_act act, double v) {
    if (act == REALM_ACT_SILU) return v / (1 + exp(-v));
    return 0.5 * v * (1 + tanh(sqrt(2 / M_PI) * (v + 0.044715 * v * v * v)));
}

static void activation(const realm_row_kernels *k, const realm_row_kernels *ref) {
    (void)ref;
    static const float amplitudes[] = {0.01f, 1, 6, 40, 300};
    for (int act = REALM_ACT_SILU; act <= REALM_ACT_GELU_TANH; act++)
        for (size_t a = 0; a < REALM_ARRAY_LEN(amplitudes); a++)
            for (size_t c = 0; c < REALM_ARRAY_LEN(lengths); c++) {
                size_t n = lengths[c];
                fill(x, n, amplitudes[a]), fill(g, n, 2);
                memcpy(y, x, sizeof y);
                y[n] = GUARD;
                k->act_mul((realm_act)act, y, g, n);
                assert_true(y[n] == GUARD);
                for (size_t i = 0; i < n; i++) {
                    double want = act_of((realm_act)act, x[i]) * g[i];
                    /* the exponent itself is a float: its rounding shows where the result is nearly nothing */
                    double bound = 4e-7 * (1 + fabs((double)x[i]) * (1 + x[i] * x[i] * 0.1)) * fabs(want) + 1e-12;
                    assert_true(isfinite(y[i]) && fabs(y[i] - want) <= bound);
                }
            }
    float edge[3] = {NAN, INFINITY, 0}, one[3] = {1, 1, 1};
    k->act_mul(REALM_ACT_SILU, edge, one, 3);
    assert_true(isnan(edge[0]) && edge[1] == INFINITY && edge[2] == 0);
}

static void activations_agree(void **state) {
    (void)state;
    each_level(activation);
}

/* The same element gives the same bits wherever in a row it stands. */
static void alone(const realm_row_kernels *k, const realm_row_kernels *ref) {
    (void)ref;
    for (int act = REALM_ACT_SILU; act <= REALM_ACT_GELU_TANH; act++) {
        fill(x, 100, 5), fill(g, 100, 2);
        memcpy(y, x, sizeof y), memcpy(z, x, sizeof z);
        k->act_mul((realm_act)act, y, g, 100);
        for (size_t i = 0; i < 100; i++) k->act_mul((realm_act)act, z + i, g + i, 1);
        assert_memory_equal(y, z, 100 * sizeof *y);
    }
}

static void an_element_is_the_same_anywhere(void **state) {
    (void)state;
    each_level(alone);
}

static void rotation(const realm_row_kernels *k, const realm_row_kernels *ref) {
    static const uint32_t dims[] = {0, 2, 4, 6, 14, 16, 18, 32, 34, 64, 80, 96, 128, 256};
    for (int style = REALM_ROPE_PAIRS; style <= REALM_ROPE_HALVES; style++)
        for (size_t c = 0; c < REALM_ARRAY_LEN(dims); c++) {
            uint32_t n = dims[c], pairs = n / 2;
            fill(x, n, 3);
            for (uint32_t i = 0; i < pairs; i++) {
                float angle = random_float(10);
                w[i] = cosf(angle), w[pairs + i] = sinf(angle);
            }
            memcpy(y, x, sizeof y), memcpy(z, x, sizeof z);
            y[n] = GUARD;
            k->rope_row((realm_rope_style)style, y, w, n);
            ref->rope_row((realm_rope_style)style, z, w, n);
            assert_memory_equal(y, z, n * sizeof *y);
            assert_true(y[n] == GUARD);
            for (uint32_t i = 0; i < pairs; i++) {
                uint32_t ia = style == REALM_ROPE_PAIRS ? 2 * i : i,
                         ib = style == REALM_ROPE_PAIRS ? 2 * i + 1 : i + pairs;
                double a = x[ia], b = x[ib], cosine = w[i], sine = w[pairs + i];
                assert_true(fabs(y[ia] - (a * cosine - b * sine)) < 1e-6);
                assert_true(fabs(y[ib] - (a * sine + b * cosine)) < 1e-6);
            }
        }
}

static void rotations_are_exact(void **state) {
    (void)state;
    each_level(rotation);
}

static void halves(const realm_row_kernels *k, const realm_row_kernels *ref) {
    (void)ref;
    static uint16_t h[MOST * 4];
    for (size_t c = 0; c < REALM_ARRAY_LEN(lengths); c++)
        for (size_t stride = 1; stride <= 3; stride += 2) {
            size_t n = lengths[c];
            fill(x, n, powf(10, (float)(c % 12) - 6));
            if (n > 4) x[0] = 1e9f, x[1] = -0.0f, x[2] = 65519.0f, x[3] = 6e-8f;
            memset(h, 0x5a, sizeof h);
            k->store_half(x, h, n, stride);
            for (size_t i = 0; i < REALM_ARRAY_LEN(h); i++)
                assert_int_equal(h[i], i % stride == 0 && i / stride < n ? realm_f32_to_f16(x[i / stride]) : 0x5a5a);
        }
}

static void halves_are_rounded_to_even(void **state) {
    (void)state;
    each_level(halves);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(norms_agree),         cmocka_unit_test(sums_and_scales_are_exact),
        cmocka_unit_test(activations_agree),   cmocka_unit_test(an_element_is_the_same_anywhere),
        cmocka_unit_test(rotations_are_exact), cmocka_unit_test(halves_are_rounded_to_even),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
