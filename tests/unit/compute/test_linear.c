/* Packed matrix products: the scalar definition against a product in double precision over dequantised weights, and
 * every instruction set, column count and team size against the scalar definition, bit for bit. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "compute/cpu/kernels.h"
#include "compute/cpu/pack.h"

static const realm_type types[] = {REALM_TYPE_F32,  REALM_TYPE_F16,  REALM_TYPE_BF16, REALM_TYPE_Q4_0,
                                   REALM_TYPE_Q4_1, REALM_TYPE_Q5_0, REALM_TYPE_Q5_1, REALM_TYPE_Q8_0,
                                   REALM_TYPE_Q4_K, REALM_TYPE_Q5_K, REALM_TYPE_Q6_K};
#define N_TYPES REALM_ARRAY_LEN(types)

static uint64_t rng = 0x9e3779b97f4a7c15u;
static uint32_t next(void) { /* xorshift64* */
    rng ^= rng >> 12;
    rng ^= rng << 25;
    rng ^= rng >> 27;
    return (uint32_t)(rng * UINT64_C(0x2545f4914f6cdd1d) >> 32);
}
static uint32_t below(uint32_t n) { return next() % n; }
static float uniform(void) { return (float)(int32_t)next() * 0x1p-31f; }
static float *floats(size_t n, float scale) {
    float *x = realm_malloc_aligned(n * sizeof *x + 64, 64);
    assert_non_null(x);
    for (size_t i = 0; i < n; i++) x[i] = uniform() * scale;
    return x;
}

/* Kernels of a level: products of that level, everything else from ref, so that products alone are compared. */
static realm_cpu_kernels kernels[REALM_CPU_VNNI + 1];
static realm_cpu_level best;

static int setup(void **state) {
    (void)state;
    best = realm_cpu_detect();
    for (int l = 0; l <= (int)best; l++) {
        realm_cpu_kernels *k = &kernels[l];
        realm_row_kernels_init_ref(&k->row);
        realm_linear_kernels_init_ref(&k->linear);
#if defined(__x86_64__)
        if (l >= REALM_CPU_AVX2) realm_linear_kernels_init_avx2(&k->linear);
        if (l >= REALM_CPU_AVX512) realm_linear_kernels_init_avx512(&k->linear);
        if (l >= REALM_CPU_VNNI) realm_linear_kernels_init_vnni(&k->linear);
#endif
    }
    return 0;
}

typedef struct weight {
    realm_weight w;
    void *data;
} weight;

/* How the weights of a test are drawn. */
typedef enum fill { FILL_UNIFORM, FILL_ZERO, FILL_EQUAL, FILL_HUGE, FILL_TINY, FILL_EXTREME, FILLS } fill;

static weight weight_make(realm_team *team, realm_type type, uint32_t rows, uint32_t k, fill how) {
    const realm_type_info *info = realm_type_get(type);
    assert_non_null(info);
    uint64_t row_bytes;
    assert_true(realm_type_row_bytes(info, k, &row_bytes));
    weight out = {.w = {.type = info, .rows = rows, .cols = k, .use = REALM_WEIGHT_LINEAR}};
    out.data = realm_malloc((size_t)row_bytes * rows);
    assert_non_null(out.data);
    float *x = floats(k, how == FILL_HUGE ? 3e4f : how == FILL_TINY ? 1e-6f : 1.0f);
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t i = 0; i < k; i++) {
            if (how == FILL_ZERO)
                x[i] = 0.0f;
            else if (how == FILL_EQUAL)
                x[i] = 0.25f;
            else if (how == FILL_EXTREME)
                x[i] = below(2) ? 1.0f : -1.0f; /* codes at both ends */
            else
                x[i] = uniform() * (how == FILL_HUGE ? 3e4f : how == FILL_TINY ? 1e-6f : 1.0f);
        }
        assert_non_null(info->quantize);
        info->quantize(x, (uint8_t *)out.data + r * row_bytes, k);
    }
    realm_free(x);
    realm_weight_desc desc = {info, rows, k, out.data, REALM_WEIGHT_LINEAR};
    realm_error err;
    assert_int_equal(realm_cpu_pack(team, &desc, &out.w.packed, &err), REALM_OK);
    assert_true(realm_cpu_packed_bytes(out.w.packed) >= rows / 16 * row_bytes);
    return out;
}
static void weight_release(weight *w) {
    realm_cpu_unpack(w->w.packed);
    realm_free(w->data);
}

static void assert_same_bits(const float *a, const float *b, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (isnan(a[i]) && isnan(b[i])) continue; /* a NaN's payload is nobody's business */
        uint32_t ua, ub;
        memcpy(&ua, &a[i], 4);
        memcpy(&ub, &b[i], 4);
        if (ua != ub) fail_msg("element %zu: %.9g is not %.9g", i, (double)a[i], (double)b[i]);
    }
}

/* ---- single kernels --------------------------------------------------------------------------------------------- */

static void fill_row(float *x, uint32_t k, unsigned how) {
    for (uint32_t i = 0; i < k; i++) {
        switch (how % 6) {
        case 0: x[i] = uniform(); break;
        case 1: x[i] = uniform() * powf(10.0f, (float)((int)below(60) - 30)); break;
        case 2: x[i] = 0.0f; break;
        case 3: x[i] = i % 32 == 7 ? -1e30f : 1e-3f; break;
        case 4: x[i] = (float)((int)below(255) - 127) * (below(2) ? 0.5f : 1.0f); break; /* ties of rounding */
        default: x[i] = uniform() * 1e-40f; break;                                       /* denormal */
        }
    }
}

static void test_quantize_column(void **state) {
    (void)state;
    const uint32_t k = 256;
    size_t bytes = (size_t)REALM_LINEAR_MAX_COLS * k / 32 * REALM_LINEAR_COL_BYTES;
    uint8_t *want = realm_calloc(1, bytes), *got = realm_calloc(1, bytes);
    float *x = floats(k, 1.0f);
    for (int l = REALM_CPU_SCALAR + 1; l <= (int)best; l++)
        for (uint32_t n_cols = 1; n_cols <= REALM_LINEAR_MAX_COLS; n_cols++)
            for (unsigned how = 0; how < 12; how++) {
                uint32_t col = below(n_cols);
                fill_row(x, k, how);
                memset(want, 0xa5, bytes);
                memset(got, 0xa5, bytes);
                kernels[0].linear.quantize_column(x, k, want, col, n_cols);
                kernels[l].linear.quantize_column(x, k, got, col, n_cols);
                assert_memory_equal(want, got, bytes);
            }
    /* values: scale and codes of a known block, sums with their signs, poison of what is not finite */
    for (uint32_t i = 0; i < k; i++) x[i] = i < 32 ? (float)i - 10.0f : i == 40 ? NAN : i == 70 ? -INFINITY : 1.0f;
    x[31] = 127.0f;
    for (int l = 0; l <= (int)best; l++) {
        kernels[l].linear.quantize_column(x, k, got, 0, 1);
        float d, dsum, poison[2];
        int32_t neg[3];
        memcpy(&d, got + 32, 4);
        memcpy(&dsum, got + 36, 4);
        memcpy(neg, got + 40, 12);
        memcpy(&poison[0], got + 52 + 32, 4);
        memcpy(&poison[1], got + 104 + 32, 4);
        assert_true(d == 1.0f);
        int32_t sum = 0, first = 0;
        for (int i = 0; i < 32; i++) {
            assert_int_equal((int8_t)got[i], (int)x[i]);
            sum += (int)x[i];
            if (i < 16) first += (int)x[i];
        }
        assert_int_equal(neg[0], -sum);
        assert_int_equal(neg[1], -first);
        assert_int_equal(neg[2], first - sum);
        assert_true(dsum == (float)sum);
        assert_true(isnan(poison[0]) && isnan(poison[1]));
    }
    realm_free(x);
    realm_free(want);
    realm_free(got);
}

static void test_store_row(void **state) {
    (void)state;
    float *acc = floats(80, 1.0f), *bias = floats(80, 1.0f), *y0 = floats(80, 1.0f);
    for (int l = 1; l <= (int)best; l++)
        for (uint32_t n = 1; n <= 70; n++)
            for (int mode = 0; mode < 4; mode++) {
                float want[80], got[80];
                memcpy(want, y0, sizeof want);
                memcpy(got, y0, sizeof got);
                kernels[0].linear.store_row(want, acc, mode & 1 ? bias : NULL, n, mode & 2);
                kernels[l].linear.store_row(got, acc, mode & 1 ? bias : NULL, n, mode & 2);
                assert_same_bits(want, got, 80); /* also that nothing behind n changed */
            }
    realm_free(acc);
    realm_free(bias);
    realm_free(y0);
}

/* Every level, type, column count and a run of panels, over all ways to fill weights and rows. */
static void test_products_match_ref(void **state) {
    (void)state;
    for (size_t t = 0; t < N_TYPES; t++)
        for (unsigned how = 0; how < FILLS; how++) {
            const realm_pack_layout *layout = realm_pack_layout_of(types[t]);
            bool is_float = realm_pack_is_float(layout);
            uint32_t k = layout->block_len == 256 ? 256 * (1 + below(3)) : 32 * (1 + below(16));
            if (is_float) k += below(31);
            uint32_t n_panels = 1 + below(6);
            weight w = weight_make(NULL, types[t], n_panels * 16 - below(16), k, (fill)how);
            for (uint32_t n_cols = 1; n_cols <= REALM_LINEAR_MAX_COLS; n_cols++) {
                size_t tile_bytes = (size_t)n_cols * k * 4 + 4096;
                uint8_t *tile = realm_malloc_aligned(tile_bytes, 64);
                float *x = floats(k, 1.0f);
                for (uint32_t c = 0; c < n_cols; c++) {
                    fill_row(x, k, how == FILL_EXTREME ? 3 : how + c);
                    if (how == FILL_EXTREME) /* greatest sums: every |q| = 127 */
                        for (uint32_t i = 0; i < k; i++) x[i] = c % 2 ? -1.0f : below(2) ? 1.0f : -1.0f;
                    if (is_float)
                        for (uint32_t i = 0; i < k; i++) memcpy(tile + ((size_t)i * n_cols + c) * 4, &x[i], 4);
                    else
                        kernels[0].linear.quantize_column(x, k, tile, c, n_cols);
                }
                size_t stride = n_panels * 16 + 5;
                float *want = floats(stride * n_cols, 1.0f), *got = floats(stride * n_cols, 1.0f);
                for (int l = 0; l <= (int)best; l++) {
                    for (size_t i = 0; i < stride * n_cols; i++) got[i] = -7.0f;
                    kernels[l].linear.product[layout->kind][n_cols - 1](w.w.packed->panels, w.w.packed->panel_bytes,
                                                                        n_panels, k, tile, n_cols, l % 2, got, stride);
                    if (l == 0) memcpy(want, got, stride * n_cols * sizeof *want);
                    assert_same_bits(want, got, stride * n_cols);
                }
                realm_free(want);
                realm_free(got);
                realm_free(x);
                realm_free(tile);
            }
            weight_release(&w);
        }
}

/* ---- the op ------------------------------------------------------------------------------------------------------ */

typedef struct op_run {
    const realm_cpu_kernels *kernels;
    const realm_linear_args *args;
} op_run;
static void op_worker(realm_worker *w, void *user) {
    op_run *r = user;
    realm_cpu_linear(w, r->kernels, r->args);
}
static void run_op(realm_team *team, const realm_cpu_kernels *k, realm_linear_args args) {
    args.quantized = realm_malloc_aligned(realm_linear_quantized_bytes(args.n_rows, args.w[0]->cols), 64);
    assert_non_null(args.quantized);
    op_run r = {k, &args};
    realm_team_run(team, op_worker, &r);
    realm_free(args.quantized);
}
static realm_team *team_make(uint32_t n) {
    realm_team *t;
    realm_error err;
    assert_int_equal(realm_team_open(&t, n, realm_linear_scratch_bytes(8192), &err), REALM_OK);
    return t;
}

/* The definition against doubles. Only the rounding of activations (half a step of their block's scale) and of the
 * float sums may separate them, and both have a bound. */
static void test_definition(void **state) {
    (void)state;
    realm_team *team = team_make(1);
    for (size_t t = 0; t < N_TYPES; t++)
        for (unsigned how = 0; how < FILLS; how++) {
            const realm_type_info *info = realm_type_get(types[t]);
            bool is_float = info->block_len == 1;
            uint32_t k = info->block_len == 256 ? 512 : 160, rows = 37, m = 3;
            weight w = weight_make(team, types[t], rows, k, (fill)how);
            float *x = floats((size_t)m * k, 1.0f), *y = floats((size_t)m * rows, 1.0f), *wf = floats(k, 1.0f);
            uint64_t row_bytes;
            assert_true(realm_type_row_bytes(info, k, &row_bytes));
            run_op(team, &kernels[0], (realm_linear_args){.x = x, .n_rows = m, .n_weights = 1, .w = {&w.w}, .y = {y}});
            for (uint32_t c = 0; c < m; c++)
                for (uint32_t r = 0; r < rows; r++) {
                    info->dequantize((uint8_t *)w.data + r * row_bytes, wf, k);
                    double sum = 0, size = 0, bound = 0;
                    for (uint32_t b = 0; b < k; b += 32) {
                        double amax = 0, wsum = 0;
                        for (uint32_t i = b; i < b + 32; i++) {
                            double xi = (double)x[(size_t)c * k + i];
                            sum += (double)wf[i] * xi;
                            /* the sum is of code * scale + min, each part rounded: K types' parts exceed the whole */
                            size += 16 * fabs((double)wf[i]) + fabs((double)wf[i] * xi);
                            amax = fmax(amax, fabs(xi));
                            wsum += fabs((double)wf[i]);
                        }
                        bound += wsum * amax / 254;
                    }
                    bound = (is_float ? 0 : bound) * 1.0001 + size * 2e-6;
                    double e = fabs((double)y[(size_t)c * rows + r] - sum);
                    if (!(e <= bound))
                        fail_msg("%s fill %u row %u: %g is not %g within %g", info->name, how, r,
                                 (double)y[(size_t)c * rows + r], sum, bound);
                }
            realm_free(x);
            realm_free(y);
            realm_free(wf);
            weight_release(&w);
        }
    realm_team_close(team);
}

/* Random ops with every feature: all levels and team sizes give the rows that the scalar kernels give one at a time. */
static void test_op(void **state) {
    (void)state;
    realm_team *teams[] = {team_make(1), team_make(2), team_make(3)};
    for (unsigned round = 0; round < 60; round++) {
        realm_linear_args a = {
            .eps = 1e-5f, .epilogue = (realm_epilogue)(round % 3), .act = (realm_act)(round / 3 % 2)};
        a.n_weights = a.epilogue == REALM_EPILOGUE_ADD ? 1 : a.epilogue == REALM_EPILOGUE_GATE ? 2 : 1 + below(3);
        uint32_t k = 256 * (1 + below(round % 10 == 0 ? 16 : 3));
        uint32_t m = round % 4 == 0 ? 1 + below(4) : 1 + below(70), n_x = m + 5;
        bool all = k < 800; /* the scalar runs take most of the time */
        uint32_t rows = 1 + below(all ? 150 : 40);
        weight w[3];
        float *y[3], *want[3], *bias[3];
        uint32_t n[3];
        for (uint32_t i = 0; i < a.n_weights; i++) {
            n[i] = a.epilogue == REALM_EPILOGUE_GATE ? rows : 1 + below(rows);
            w[i] = weight_make(teams[i % 3], types[below(N_TYPES)], n[i], k, FILL_UNIFORM);
            a.w[i] = &w[i].w;
            bias[i] = below(2) ? floats(n[i], 1.0f) : NULL;
            a.bias[i] = bias[i];
            y[i] = floats((size_t)m * n[i], 1.0f);
            want[i] = floats((size_t)m * n[i], 1.0f);
        }
        float *x = floats((size_t)n_x * k, 2.0f), *gain = below(2) ? floats(k, 1.0f) : NULL;
        uint32_t gather[80];
        for (uint32_t r = 0; r < m; r++) gather[r] = below(n_x);
        a.gain = gain;
        a.pass_by = below(2);
        bool gathered = below(2);
        for (uint32_t r = 0; r < m; r++) { /* row by row */
            realm_linear_args one = a;
            one.x = x + (size_t)(gathered ? gather[r] : r) * k;
            one.n_rows = 1;
            for (uint32_t i = 0; i < a.n_weights; i++) {
                one.y[i] = want[i] + (size_t)r * n[i];
                for (uint32_t j = 0; j < n[i]; j++) one.y[i][j] = (float)j;
            }
            run_op(teams[0], &kernels[0], one);
        }
        a.x = x;
        a.gather = gathered ? gather : NULL;
        a.n_rows = m;
        for (int l = all ? 0 : 1; l <= (int)best; l++)
            for (size_t t = 0; t < REALM_ARRAY_LEN(teams); t++) {
                for (uint32_t i = 0; i < a.n_weights; i++) {
                    a.y[i] = y[i];
                    for (size_t j = 0; j < (size_t)m * n[i]; j++) y[i][j] = (float)(j % n[i]);
                }
                run_op(teams[t], &kernels[l], a);
                for (uint32_t i = 0; i < (a.epilogue == REALM_EPILOGUE_GATE ? 1 : a.n_weights); i++)
                    assert_same_bits(want[i], y[i], (size_t)m * n[i]);
            }
        realm_free(x);
        realm_free(gain);
        for (uint32_t i = 0; i < a.n_weights; i++) {
            weight_release(&w[i]);
            realm_free(bias[i]);
            realm_free(y[i]);
            realm_free(want[i]);
        }
    }
    for (size_t t = 0; t < REALM_ARRAY_LEN(teams); t++) realm_team_close(teams[t]);
}

/* Nothing that a row holds reaches another row, however bad it is. */
static void test_poison_stays_in_its_row(void **state) {
    (void)state;
    realm_team *team = team_make(2);
    const uint32_t k = 512, rows = 48, m = 11;
    for (size_t t = 0; t < N_TYPES; t++) {
        weight w = weight_make(team, types[t], rows, k, FILL_UNIFORM);
        float *x = floats((size_t)m * k, 1.0f), *y = floats((size_t)m * rows, 1.0f),
              *z = floats((size_t)m * rows, 1.0f);
        for (int l = 0; l <= (int)best; l++) {
            realm_linear_args a = {.x = x, .n_rows = m, .n_weights = 1, .w = {&w.w}, .y = {y}};
            x[4 * k + 100] = 1.0f;
            x[5 * k + 200] = 1.0f;
            run_op(team, &kernels[l], a);
            x[4 * k + 100] = NAN;
            x[5 * k + 200] = INFINITY;
            a.y[0] = z;
            run_op(team, &kernels[l], a);
            for (uint32_t r = 0; r < m; r++) {
                if (r != 4 && r != 5)
                    assert_same_bits(y + (size_t)r * rows, z + (size_t)r * rows, rows);
                else
                    for (uint32_t i = 0; i < rows; i++) assert_true(!isfinite(z[(size_t)r * rows + i]));
            }
        }
        realm_free(x);
        realm_free(y);
        realm_free(z);
        weight_release(&w);
    }
    realm_team_close(team);
}

static void test_pack_errors(void **state) {
    (void)state;
    uint8_t data[512] = {0};
    struct realm_packed *p = (struct realm_packed *)data;
    realm_error err;
    realm_weight_desc d = {realm_type_get(REALM_TYPE_I32), 1, 32, data, REALM_WEIGHT_LINEAR};
    assert_int_equal(realm_cpu_pack(NULL, &d, &p, &err), REALM_E_UNSUPPORTED);
    assert_null(p);
    assert_non_null(strstr(err.text, "I32"));
    d = (realm_weight_desc){realm_type_get(REALM_TYPE_Q4_K), 1, 96, data, REALM_WEIGHT_LINEAR};
    assert_int_equal(realm_cpu_pack(NULL, &d, &p, &err), REALM_E_FORMAT);
    d = (realm_weight_desc){realm_type_get(REALM_TYPE_Q4_0), 0, 32, data, REALM_WEIGHT_LINEAR};
    assert_int_equal(realm_cpu_pack(NULL, &d, &p, &err), REALM_E_UNSUPPORTED);
    d = (realm_weight_desc){realm_type_get(REALM_TYPE_F32), UINT64_MAX, UINT64_MAX, data, REALM_WEIGHT_LINEAR};
    assert_int_equal(realm_cpu_pack(NULL, &d, &p, &err), REALM_E_UNSUPPORTED);
    for (int64_t i = 0;; i++) { /* each allocation fails once */
        d = (realm_weight_desc){realm_type_get(REALM_TYPE_Q4_0), 3, 32, data, REALM_WEIGHT_LINEAR};
        realm_alloc_inject_failure(i, false);
        realm_status s = realm_cpu_pack(NULL, &d, &p, &err);
        realm_alloc_inject_failure(-1, false);
        if (s == REALM_OK) {
            assert_true(i >= 2);
            break;
        }
        assert_int_equal(s, REALM_E_NOMEM);
        assert_null(p);
    }
    realm_cpu_unpack(p);
    realm_cpu_unpack(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quantize_column),
        cmocka_unit_test(test_store_row),
        cmocka_unit_test(test_products_match_ref),
        cmocka_unit_test(test_definition),
        cmocka_unit_test(test_op),
        cmocka_unit_test(test_poison_stays_in_its_row),
        cmocka_unit_test(test_pack_errors),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
