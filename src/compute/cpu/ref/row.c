/* compute/cpu/ref/row.c - norms, activations, rotation and conversion of one row: the definitions. */
#include <math.h>

#include "compute/cpu/kernels.h"

static float sum_of_squares(const float *x, size_t k) {
    float lane[REALM_SUM_LANES] = {0};
    for (size_t i = 0; i < k; i++) lane[i % REALM_SUM_LANES] += x[i] * x[i];
    for (uint32_t half = REALM_SUM_LANES / 2; half > 0; half /= 2)
        for (uint32_t j = 0; j < half; j++) lane[j] += lane[j + half];
    return lane[0];
}

static float inverse_rms(const float *x, float eps, size_t k) {
    return 1.0f / sqrtf(sum_of_squares(x, k) / (float)k + eps);
}

static void rms_norm_row(const float *x, const float *gain, float eps, float *y, size_t k) {
    float inv = inverse_rms(x, eps, k);
    for (size_t i = 0; i < k; i++) y[i] = gain ? x[i] * inv * gain[i] : x[i] * inv;
}

static void norm_add_row(const float *x, const float *gain, float eps, float *y, size_t k) {
    float inv = inverse_rms(x, eps, k);
    for (size_t i = 0; i < k; i++) y[i] += x[i] * inv * gain[i];
}

static void scale_row(float *y, float s, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] *= s;
}

static void add_row(float *y, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] += x[i];
}

static void act_mul(realm_act act, float *gate, const float *up, size_t n) {
    if (act == REALM_ACT_SILU) {
        for (size_t i = 0; i < n; i++) gate[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
    } else {
        for (size_t i = 0; i < n; i++) {
            float x = gate[i];
            float u = 0.79788456080286535588f * (x + 0.044715f * x * x * x);
            gate[i] = x / (1.0f + expf(-2.0f * u)) * up[i];
        }
    }
}

static void rope_row(realm_rope_style style, float *x, const float *cs, uint32_t dims) {
    uint32_t pairs = dims / 2;
    for (uint32_t i = 0; i < pairs; i++) {
        float *a = style == REALM_ROPE_PAIRS ? &x[2 * i] : &x[i];
        float *b = style == REALM_ROPE_PAIRS ? &x[2 * i + 1] : &x[i + pairs];
        float c = cs[i], s = cs[pairs + i], xa = *a, xb = *b;
        *a = xa * c - xb * s;
        *b = xa * s + xb * c;
    }
}

static void store_half(const float *src, uint16_t *dst, size_t n, size_t stride) {
    for (size_t i = 0; i < n; i++) dst[i * stride] = realm_f32_to_f16(src[i]);
}

void realm_row_kernels_init_ref(realm_row_kernels *k) {
    *k = (realm_row_kernels){.rms_norm_row = rms_norm_row,
                             .norm_add_row = norm_add_row,
                             .scale_row = scale_row,
                             .add_row = add_row,
                             .act_mul = act_mul,
                             .rope_row = rope_row,
                             .store_half = store_half};
}
