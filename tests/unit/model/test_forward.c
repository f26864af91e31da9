/* The plan against an independent forward pass in float64, on tiny random models of each architecture.
 *
 * `naive` below is written from the papers, position by position, with nothing in common with the code under test but
 * the file's values; K and V are rounded to half as the contract of compute.h says. With float weights the results
 * must agree to float accuracy in the worst case; with quantised ones activations are rounded to int8 by contract
 * (which random weights amplify more than trained ones), so there the root mean square of the error is held against the
 * spread of the logits.
 */
#include <math.h>

#include "support/tiny_model.h"

#define N_TOKENS 75u /* crosses two page boundaries */

typedef struct naive {
    const tiny_model *m;
    double k[8][N_TOKENS][256], v[8][N_TOKENS][256];
} naive;

static const float *block(const tiny_model *m, uint32_t i, const char *suffix) {
    char name[64];
    snprintf(name, sizeof name, "blk.%u.%s", i, suffix);
    return tiny_find(m, name);
}

static void mat(const float *w, const float *bias, uint32_t rows, uint32_t cols, const double *x, double *y) {
    for (uint32_t r = 0; r < rows; r++) {
        double sum = bias ? (double)bias[r] : 0;
        for (uint32_t c = 0; c < cols; c++) sum += (double)w[(size_t)r * cols + c] * x[c];
        y[r] = sum;
    }
}

static void rms(const double *x, const float *gain, uint32_t n, double *y) {
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) sum += x[i] * x[i];
    double scale = 1 / sqrt(sum / n + (double)1e-5f);
    for (uint32_t i = 0; i < n; i++) y[i] = x[i] * scale * (double)gain[i];
}

static void rotate(double *x, uint32_t dim, uint32_t pos, double base, double scale, const float *factors,
                   bool halves) {
    for (uint32_t i = 0; i < dim / 2; i++) {
        double angle = pos * pow(base, -2.0 * i / dim) * scale / (factors ? (double)factors[i] : 1);
        uint32_t a = halves ? i : 2 * i, b = halves ? i + dim / 2 : 2 * i + 1;
        double xa = x[a], xb = x[b];
        x[a] = xa * cos(angle) - xb * sin(angle);
        x[b] = xa * sin(angle) + xb * cos(angle);
    }
}

static double half(double x) { return (double)realm_f16_to_f32(realm_f32_to_f16((float)x)); }

static void naive_token(naive *n, int32_t token, uint32_t pos, double *logits) {
    const tiny_model *m = n->m;
    const tiny_spec *s = &m->spec;
    const bool gemma = strcmp(s->arch, "gemma3") == 0;
    const uint32_t hd = s->head_dim, nq = s->heads * hd, nkv = s->kv_heads * hd;
    double x[512], h[512], q[512], a[512], t[512], g[512], u[512];
    const float *embed = tiny_find(m, "token_embd.weight");
    for (uint32_t i = 0; i < s->d; i++)
        x[i] = (double)embed[(size_t)token * s->d + i] * (gemma ? sqrt((double)s->d) : 1);
    for (uint32_t l = 0; l < s->layers; l++) {
        const uint32_t pattern = s->pattern ? s->pattern : 6;
        const bool local = gemma && s->window > 0 && (l + 1) % pattern != 0;
        const double base = local ? 10000.0 : (double)s->rope_base;
        const double scale = s->rope_factor > 0 && !local ? 1 / (double)s->rope_factor : 1;
        double *k = n->k[l][pos], *v = n->v[l][pos];
        rms(x, block(m, l, "attn_norm.weight"), s->d, h);
        mat(block(m, l, "attn_q.weight"), block(m, l, "attn_q.bias"), nq, s->d, h, q);
        mat(block(m, l, "attn_k.weight"), block(m, l, "attn_k.bias"), nkv, s->d, h, k);
        mat(block(m, l, "attn_v.weight"), block(m, l, "attn_v.bias"), nkv, s->d, h, v);
        for (uint32_t i = 0; i < s->heads; i++) {
            if (gemma) rms(q + i * hd, block(m, l, "attn_q_norm.weight"), hd, q + i * hd);
            rotate(q + i * hd, hd, pos, base, scale, tiny_find(m, "rope_freqs.weight"), gemma);
        }
        for (uint32_t i = 0; i < s->kv_heads; i++) {
            if (gemma) rms(k + i * hd, block(m, l, "attn_k_norm.weight"), hd, k + i * hd);
            rotate(k + i * hd, hd, pos, base, scale, tiny_find(m, "rope_freqs.weight"), gemma);
        }
        for (uint32_t i = 0; i < nkv; i++) {
            k[i] = half(k[i]);
            v[i] = half(v[i]);
        }
        for (uint32_t i = 0; i < s->heads; i++) {
            const uint32_t kvh = i / (s->heads / s->kv_heads);
            const uint32_t from = local && pos + 1 > s->window ? pos + 1 - s->window : 0;
            double sum = 0, out[256] = {0}, score[N_TOKENS], max = -INFINITY;
            for (uint32_t p = from; p <= pos; p++) {
                score[p] = 0;
                for (uint32_t j = 0; j < hd; j++) score[p] += q[i * hd + j] * n->k[l][p][kvh * hd + j];
                score[p] /= sqrt((double)hd);
                if (score[p] > max) max = score[p];
            }
            for (uint32_t p = from; p <= pos; p++) {
                double w = exp(score[p] - max);
                sum += w;
                for (uint32_t j = 0; j < hd; j++) out[j] += w * n->v[l][p][kvh * hd + j];
            }
            for (uint32_t j = 0; j < hd; j++) a[i * hd + j] = out[j] / sum;
        }
        mat(block(m, l, "attn_output.weight"), block(m, l, "attn_output.bias"), s->d, nq, a, t);
        if (gemma) rms(t, block(m, l, "post_attention_norm.weight"), s->d, t);
        for (uint32_t i = 0; i < s->d; i++) x[i] += t[i];
        rms(x, block(m, l, "ffn_norm.weight"), s->d, h);
        mat(block(m, l, "ffn_gate.weight"), NULL, s->ff, s->d, h, g);
        mat(block(m, l, "ffn_up.weight"), NULL, s->ff, s->d, h, u);
        for (uint32_t i = 0; i < s->ff; i++) {
            double y = g[i];
            double act =
                gemma ? 0.5 * y * (1 + tanh(0.79788456080286535588 * (y + 0.044715 * y * y * y))) : y / (1 + exp(-y));
            g[i] = act * u[i];
        }
        mat(block(m, l, "ffn_down.weight"), NULL, s->d, s->ff, g, t);
        if (gemma) rms(t, block(m, l, "post_ffw_norm.weight"), s->d, t);
        for (uint32_t i = 0; i < s->d; i++) x[i] += t[i];
    }
    rms(x, tiny_find(m, "output_norm.weight"), s->d, h);
    const float *out = tiny_find(m, "output.weight");
    mat(out ? out : embed, NULL, TINY_VOCAB, s->d, h, logits);
}

/* `chunk` tokens per step, all logits wanted; largest error as a part of the logits' standard deviation, or its rms. */
static void check(const tiny_spec *spec, uint32_t chunk, double most) {
    const bool quantised = realm_type_get((uint32_t)spec->type)->block_len > 1;
    realm_error err = {0};
    tiny_model *m = tiny_make(spec);
    realm_gguf *g;
    if (realm_gguf_open_memory(&g, m->file, m->file_len, &err) != REALM_OK) model_run_fail("gguf", &err);
    model_run r;
    model_run_open(&r, g, 2, 64, 64);
    naive *n = calloc(1, sizeof *n);
    n->m = m;
    int32_t tokens[N_TOKENS];
    for (uint32_t i = 0; i < N_TOKENS; i++) tokens[i] = (int32_t)((i * 7919 + i * i * 31 + 5) % TINY_VOCAB);
    double worst = 0, errors = 0;
    for (uint32_t from = 0; from < N_TOKENS; from += chunk) {
        uint32_t len = REALM_MIN(chunk, N_TOKENS - from);
        model_run_step(&r, tokens, from, len, len);
        for (uint32_t i = 0; i < len; i++) {
            double want[TINY_VOCAB], sum = 0, squares = 0;
            naive_token(n, tokens[from + i], from + i, want);
            for (uint32_t j = 0; j < TINY_VOCAB; j++) {
                sum += want[j];
                squares += want[j] * want[j];
            }
            double sd = sqrt(squares / TINY_VOCAB - sum * sum / TINY_VOCAB / TINY_VOCAB);
            const float *got = model_run_logits(&r, i);
            for (uint32_t j = 0; j < TINY_VOCAB; j++) {
                double off = fabs((double)got[j] - want[j]) / sd;
                if (!(off <= worst)) worst = off; /* NaN counts */
                errors += off * off;
            }
        }
    }
    const double mean = sqrt(errors / N_TOKENS / TINY_VOCAB);
    print_message("%s type %d chunk %u: error %.2g of the spread, worst %.2g\n", spec->arch, (int)spec->type, chunk,
                  mean, worst);
    assert_true((quantised ? mean : worst) <= most);
    free(n);
    model_run_close(&r);
    tiny_free(m);
}

static void llama(void **state) {
    (void)state;
    tiny_spec s = tiny_llama;
    check(&s, 33, 2e-3);
    s.tied = true;
    check(&s, 64, 2e-3);
    s.bias = s.factors = true;
    s.kv_heads = 4;
    check(&s, 1, 2e-3);
    s.heads = s.kv_heads = 3; /* head_dim * heads differs from d */
    s.head_dim = 32;
    s.rope_factor = 4;
    check(&s, 17, 2e-3);
}

static void gemma3(void **state) {
    (void)state;
    tiny_spec s = {.arch = "gemma3",
                   .layers = 7,
                   .d = 64,
                   .heads = 4,
                   .kv_heads = 1,
                   .head_dim = 32,
                   .ff = 96,
                   .n_ctx = 512,
                   .type = REALM_TYPE_F32,
                   .tied = true,
                   .window = 20,
                   .rope_base = 1000000.0f,
                   .seed = 2};
    check(&s, 40, 2e-3);
    s.pattern = 2;
    s.rope_factor = 8;
    s.tied = false;
    check(&s, 1, 2e-3);
    s.window = 0; /* every layer is global */
    check(&s, 64, 2e-3);
}

static void quantised_types(void **state) {
    (void)state;
    tiny_spec s = tiny_llama;
    s.d = 256;
    s.heads = 8;
    s.head_dim = 32;
    s.ff = 256;
    static const realm_type types[] = {REALM_TYPE_F16,  REALM_TYPE_BF16, REALM_TYPE_Q8_0,
                                       REALM_TYPE_Q4_0, REALM_TYPE_Q4_1, REALM_TYPE_Q5_0,
                                       REALM_TYPE_Q5_1, REALM_TYPE_Q4_K, REALM_TYPE_Q6_K};
    for (size_t i = 0; i < REALM_ARRAY_LEN(types); i++) {
        s.type = types[i];
        check(&s, 48, i < 2 ? 5e-3 : 0.10);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(llama), cmocka_unit_test(gemma3),
                                       cmocka_unit_test(quantised_types)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
