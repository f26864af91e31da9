/* Tensors and layers of the request's model, rightly and wrongly; products and attention against a loop of its own. */
#include "probe.h"

enum { M = 3, K = 64, N = 5, T = 7, HEADS = 2, DIM = 32 };

static float a[M * K], b[K * N], out[M * N], want[M * N];
static float q[M * HEADS * DIM], keys[T * DIM], vals[T * DIM], att[M * HEADS * DIM];
static uint32_t seed = 1;

static float random_value(void) {
    seed = seed * 1664525u + 1013904223u;
    return (float)(seed >> 8) / (float)(1u << 23) - 1.0f;
}

static void fill(float *to, size_t n) {
    for (size_t i = 0; i < n; i++) to[i] = random_value();
}

static bool near(float x, float y) {
    float d = x > y ? x - y : y - x;
    return d < 2e-3f;
}

static float exponential(float x) { /* of x <= 0 */
    float term = 1, sum = 1, z = -x / 16;
    for (int i = 1; i < 20; i++) sum += term *= z / (float)i;
    for (int i = 0; i < 4; i++) sum *= sum;
    return 1 / sum;
}

static int32_t matrix(uint64_t rows, uint64_t cols) {
    uint64_t dims[2] = {rows, cols};
    return realm_tensor_new(dims, 2);
}

static int32_t products(void) {
    fill(a, M * K);
    fill(b, K * N);
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) {
            want[i * N + j] = 0;
            for (int k = 0; k < K; k++) want[i * N + j] += a[i * K + k] * b[k * N + j];
        }
    IS(realm_candle_matmul(a, sizeof a, b, sizeof b, M, K, N, out), 0);
    for (int i = 0; i < M * N; i++) TRUE(near(out[i], want[i]));
    IS(realm_candle_matmul(a, sizeof a - 4, b, sizeof b, M, K, N, out), REALM_E_RANGE);
    IS(realm_candle_matmul(a, sizeof a, b, sizeof b, M, K, N, (float *)(EDGE - 4)), REALM_E_RANGE);
    IS(realm_candle_matmul(a, sizeof a, b, sizeof b, 0, K, N, out), REALM_E_RANGE);
    IS(realm_candle_matmul(a, sizeof a, b, sizeof b, 0xffffffffu, 0xffffffffu, 0xffffffffu, out), REALM_E_RANGE);
    return 1;
}

static int32_t handles(void) {
    realm_guest_tensor info;
    int32_t t = matrix(M, K);
    TRUE(t > 0);
    IS(realm_tensor_info(t, &info), 0);
    TRUE(info.n_dims == 2 && info.dims[0] == M && info.dims[1] == K && info.type == 0 && info.weight == 0);
    IS(realm_tensor_write(t, 0, a, M * K), 0);
    IS(realm_tensor_write(t, 1, a, M * K), REALM_E_RANGE);
    IS(realm_tensor_write(t, ~0ull, a, 1), REALM_E_RANGE);
    IS(realm_tensor_read(t, K, out, N), N);
    for (int i = 0; i < N; i++) TRUE(out[i] == a[K + i]);
    IS(realm_tensor_read(t, M * K - 1, out, 2), REALM_E_RANGE);
    IS(realm_tensor_read(t, 0, (float *)PAST, 1), REALM_E_RANGE);
    uint64_t dims[4] = {1ull << 40, 1ull << 40, 1, 1};
    TRUE(realm_tensor_new(dims, 2) < 0);
    TRUE(realm_tensor_new(dims, 0) < 0);
    TRUE(realm_tensor_new(dims, 5) < 0);
    dims[0] = 1u << 20;
    dims[1] = 1u << 20;
    TRUE(realm_tensor_new(dims, 2) < 0); /* 4 TiB */
    IS(realm_close(t), 0);
    IS(realm_tensor_read(t, 0, out, 1), REALM_E_INVALID);
    return 1;
}

static int32_t attention(void) {
    fill(q, M * HEADS * DIM);
    fill(keys, T * DIM);
    fill(vals, T * DIM);
    const float scale = 0.25f;
    int32_t tq = matrix(M, HEADS * DIM), tk = matrix(T, DIM), tv = matrix(T, DIM), to = matrix(M, HEADS * DIM);
    union {
        float f;
        uint32_t u;
    } bits = {scale};
    IS(realm_tensor_write(tq, 0, q, M * HEADS * DIM), 0);
    IS(realm_tensor_write(tk, 0, keys, T * DIM), 0);
    IS(realm_tensor_write(tv, 0, vals, T * DIM), 0);
    IS(realm_attention_forward(tq, tk, tv, 0, to, HEADS, 1, DIM, bits.u), 0);
    IS(realm_tensor_read(to, 0, att, M * HEADS * DIM), M * HEADS * DIM);
    for (int i = 0; i < M; i++)
        for (int h = 0; h < HEADS; h++) {
            float w[T], top = -1e30f, sum = 0;
            int n = T - M + i + 1; /* the last row sees all */
            for (int t = 0; t < n; t++) {
                w[t] = 0;
                for (int d = 0; d < DIM; d++) w[t] += q[(i * HEADS + h) * DIM + d] * keys[t * DIM + d];
                w[t] *= scale;
                if (w[t] > top) top = w[t];
            }
            for (int t = 0; t < n; t++) sum += w[t] = exponential(w[t] - top);
            for (int d = 0; d < DIM; d++) {
                float y = 0;
                for (int t = 0; t < n; t++) y += w[t] / sum * vals[t * DIM + d];
                TRUE(near(y, att[(i * HEADS + h) * DIM + d]));
            }
        }
    IS(realm_attention_forward(tk, tq, tv, 0, to, HEADS, 1, DIM, bits.u), REALM_E_RANGE);
    IS(realm_attention_forward(tq, tk, 99, 0, to, HEADS, 1, DIM, bits.u), REALM_E_INVALID);
    return 1;
}

static int32_t lists(void) {
    int32_t x = matrix(2, 4), y = matrix(2, 4);
    const float values[8] = {1, 2, 3, 4, -1, 5, 0, 2};
    float got[8];
    IS(realm_tensor_write(x, 0, values, 8), 0);
    realm_guest_tensor_op ops[3] = {{.kind = REALM_TENSOR_OP_SCALE, .out = y, .a = x, .scale = 2},
                                    {.kind = REALM_TENSOR_OP_ADD, .out = y, .a = y, .b = x},
                                    {.kind = REALM_TENSOR_OP_SOFTMAX, .out = x, .a = x}};
    IS(realm_tensor_run(ops, 3), 0);
    IS(realm_tensor_read(y, 0, got, 8), 8);
    for (int i = 0; i < 8; i++) TRUE(near(got[i], 3 * values[i]));
    IS(realm_tensor_read(x, 0, got, 8), 8);
    TRUE(near(got[0] + got[1] + got[2] + got[3], 1) && got[3] > got[2]);
    /* One wrong operation, and none of the list has run. */
    ops[2].kind = 999;
    IS(realm_tensor_run(ops, 3), REALM_E_UNSUPPORTED);
    TRUE(error_says("op 2"));
    ops[2] = (realm_guest_tensor_op){.kind = REALM_TENSOR_OP_ADD, .flags = 1, .out = y, .a = y, .b = x};
    IS(realm_tensor_run(ops, 3), REALM_E_UNSUPPORTED);
    TRUE(error_says("op 2: unknown flags 0x1"));
    ops[2] = (realm_guest_tensor_op){.kind = REALM_TENSOR_OP_ADD, .out = y, .a = y, .b = 12345};
    IS(realm_tensor_run(ops, 3), REALM_E_INVALID);
    TRUE(error_says("op 2: b is 12345"));
    ops[2] =
        (realm_guest_tensor_op){.kind = REALM_TENSOR_OP_GET_ROWS, .out = y, .a = x, .ids = 0xfffffff0u, .n_ids = 2};
    IS(realm_tensor_run(ops, 3), REALM_E_RANGE);
    IS(realm_tensor_read(y, 0, got, 8), 8);
    for (int i = 0; i < 8; i++) TRUE(near(got[i], 3 * values[i]));
    IS(realm_tensor_run((realm_guest_tensor_op *)PAST, 1), REALM_E_RANGE);
    IS(realm_tensor_run(ops, 1u << 20), REALM_E_LIMIT);
    IS(realm_tensor_run(ops, 0), 0);
    return 1;
}

static int32_t weights(void) {
    realm_guest_tensor info;
    static char layer[1u << 20];
    realm_stream_stats stats;
    int32_t w = realm_tensor_weight(0, REALM_LITERAL("token_embd.weight"));
    TRUE(w > 0);
    IS(realm_tensor_info(w, &info), 0);
    TRUE(info.weight == 1 && info.n_dims == 2);
    IS(realm_tensor_read(w, 0, out, 1), REALM_E_DENIED);
    IS(realm_tensor_write(w, 0, a, 1), REALM_E_INVALID);
    IS(realm_tensor_weight(0, REALM_LITERAL("no.such.weight")), REALM_E_NOT_FOUND);
    IS(realm_tensor_weight(77, REALM_LITERAL("token_embd.weight")), REALM_E_NOT_FOUND);
    TRUE(realm_memory64_load_tensor(0, 0, REALM_LITERAL("attn_q.weight")) > 0);
    IS(realm_memory64_load_tensor(0, 4000, REALM_LITERAL("attn_q.weight")), REALM_E_NOT_FOUND);
    IS(realm_memory64_load_layer(0, 0, layer, sizeof layer), REALM_E_DENIED);
    IS(realm_memory64_load_layer(0, 0, NULL, 0), 0);
    IS(realm_memory64_unload_layer(0, 0), 0);
    IS(realm_memory64_unload_layer(0, 0), REALM_E_INVALID);
    IS(realm_memory64_load_layer(0, 4000, NULL, 0), REALM_E_RANGE);
    IS(realm_memory64_get_stats(&stats, sizeof stats), sizeof stats);
    TRUE(stats.bytes_resident > 0 && stats.bytes_budget >= stats.bytes_resident);
    return 1;
}

/* Rows of one's own are sampled like those of a forward pass. */
static int32_t rows(void) {
    realm_guest_limits limits;
    realm_guest_token top[2];
    IS(realm_limits_get(&limits, sizeof limits), sizeof limits);
    int32_t t = matrix(2, limits.vocabulary), narrow = matrix(2, limits.vocabulary - 1);
    const float peak = 9;
    IS(realm_tensor_write(t, 5, &peak, 1), 0);
    IS(realm_tensor_write(t, limits.vocabulary + 7, &peak, 1), 0);
    int32_t l = realm_tensor_logits(t);
    TRUE(l > 0);
    IS(realm_logits_sample(l, 0, 0, NULL), 5);
    IS(realm_logits_sample(l, 1, 0, NULL), 7);
    IS(realm_logits_top(l, 1, 2, top, 2), 2);
    TRUE(top[0].token == 7 && top[0].logprob > top[1].logprob);
    IS(realm_logits_sample(l, 2, 0, NULL), REALM_E_RANGE);
    IS(realm_tensor_logits(narrow), REALM_E_RANGE);
    IS(realm_tensor_logits(l), REALM_E_INVALID);
    IS(realm_close(l), 0);
    IS(realm_logits_sample(l, 0, 0, NULL), REALM_E_INVALID);
    return 1;
}

PROBE(rows, products, handles, attention, lists, weights)
