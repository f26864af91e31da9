/* compute/cpu/ref/attention.c - one split of attention and the merging of splits: the definition.
 *
 * Softmax over splits after Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018), and, for the
 * merging of partial outputs, Dao et al., "FlashAttention" (2022), section 3.1.
 */
#include <math.h>

#include "compute/cpu/kernels.h"

#define PAGE REALM_KV_PAGE_TOKENS

static float score(const float *q, const uint16_t *k, uint32_t t, uint32_t head_dim) {
    float sum[2] = {0};
    for (uint32_t d = 0; d < head_dim; d++) sum[d % 2] += q[d] * realm_f16_to_f32(k[d * PAGE + t]);
    return sum[0] + sum[1];
}

static void attend_split(const realm_attend_args *a) {
    for (uint32_t i = 0; i < a->n_q; i++) {
        float *s = a->scores + i * REALM_SPLIT_TOKENS, *o = a->o + (size_t)i * a->v_dim;
        float m = -INFINITY, l = 0;
        for (uint32_t d = 0; d < a->v_dim; d++) o[d] = 0;
        for (uint32_t t = a->begin[i]; t < a->end[i]; t++) {
            s[t] = score(a->q + (size_t)i * a->head_dim, a->k[t / PAGE], t % PAGE, a->head_dim);
            if (a->softcap > 0) s[t] = a->softcap * tanhf(s[t] / a->softcap);
            if (a->mask) s[t] += a->mask[i][t];
            m = fmaxf(m, s[t]);
        }
        if (a->mask && m == -INFINITY) { /* not even one */
            a->m[i] = m;
            a->l[i] = 0;
            continue;
        }
        for (uint32_t t = a->begin[i]; t < a->end[i]; t++) {
            float p = expf(s[t] - m);
            const uint16_t *v = a->v[t / PAGE] + (size_t)(t % PAGE) * a->v_dim;
            l += p;
            for (uint32_t d = 0; d < a->v_dim; d++) o[d] += p * realm_f16_to_f32(v[d]);
        }
        a->m[i] = m;
        a->l[i] = l;
    }
}

static void merge_split(float *m, float *l, float *o, float m2, float l2, const float *o2, uint32_t v_dim) {
    if (!(l2 != 0)) return;
    float top = fmaxf(*m, m2);
    float a = *l != 0 ? expf(*m - top) : 0, b = expf(m2 - top);
    for (uint32_t d = 0; d < v_dim; d++) o[d] = o[d] * a + o2[d] * b;
    *l = *l * a + l2 * b;
    *m = top;
}

void realm_attention_kernels_init_ref(realm_attention_kernels *k) {
    *k = (realm_attention_kernels){.attend_split = attend_split, .merge_split = merge_split};
}
