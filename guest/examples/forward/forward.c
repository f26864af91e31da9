/* forward: a whole transformer in a program. It asks the host for nothing but tensor operations: weights by name,
 * matrix products, norms, rotations, attention; the KV cache, the order of layers and the choice of tokens are its own.
 * For a llama-family model its greedy answer is the engine's, token for token.
 *
 *      x = embedding rows of the tokens
 *      per layer:  h = norm(x);  q, k, v = Wq h, Wk h, Wv h;  rotate q, k;  keep k, v;  x += Wo attention(q, K, V)
 *                  h = norm(x);  x += Wdown (silu(Wgate h) * Wup h)
 *      logits = Wout norm(x of the last row);  next token = argmax
 *
 * One list of operations computes a step, so the program is suspended once for each. The prompt goes in chunks.
 */
#include "realm_guest.h"

enum { LAYERS_MAX = 128, CHUNK = 64, CONTEXT_MAX = 512, ANSWER_DEFAULT = 64, OPS_MAX = 8 + 20 * LAYERS_MAX };

typedef struct layer {
    int32_t attn_norm, wq, wk, wv, wo, ffn_norm, gate, up, down; /* weights */
    int32_t keys, values;                                        /* (CONTEXT_MAX, n_kv_head * head_dim) */
} layer;

static layer layers[LAYERS_MAX];
static uint32_t n_layers, n_head, n_kv_head, head_dim, d_model, d_ff, n_vocab;
static float rope_base, norm_eps;
static int32_t embed, out_norm, output;                          /* weights */
static int32_t x, h, q, k, v, att, gate, up, last, logits, best; /* activations */
static realm_guest_tensor_op ops[OPS_MAX];
static uint32_t n_ops;
static char info[16384], text[512];
static int32_t tokens[CONTEXT_MAX];

/* Ends the program with the host's line about what failed. */
static int32_t failed(int32_t code) {
    int32_t n = realm_last_error(text, sizeof text);
    if (n > 0) realm_log(3, text, (size_t)n);
    return code < 0 ? code : REALM_E_INVALID;
}

/* ---- what the model is ---- */

static bool starts(const char *at, const char *with) {
    while (*with)
        if (*at++ != *with++) return false;
    return true;
}

/* The number that follows `path` in the model's description; 0 when it is not there. */
static double number(const char *path) {
    const char *at = info;
    while (*at && !starts(at, path)) at++;
    if (!*at) return 0;
    at += realm_strlen(path);
    double value = 0, scale = 1;
    for (; *at >= '0' && *at <= '9'; at++) value = value * 10 + (*at - '0');
    if (*at == '.')
        for (at++; *at >= '0' && *at <= '9'; at++) value += (*at - '0') * (scale /= 10);
    if (*at == 'e') {
        bool negative = *++at == '-';
        int exponent = 0;
        if (*at == '-' || *at == '+') at++;
        for (; *at >= '0' && *at <= '9'; at++) exponent = exponent * 10 + (*at - '0');
        for (; exponent > 0; exponent--) value = negative ? value / 10 : value * 10;
    }
    return value;
}

static int32_t describe(void) {
    int32_t n = realm_get_model_info(0, info, sizeof info - 1);
    if (n < 0 || n >= (int32_t)sizeof info) return n < 0 ? n : REALM_E_RANGE;
    info[n] = 0;
    n_layers = (uint32_t)number("\"block_count\":");
    n_head = (uint32_t)number("\"head_count\":");
    n_kv_head = (uint32_t)number("\"head_count_kv\":");
    d_model = (uint32_t)number("\"embedding_length\":");
    d_ff = (uint32_t)number("\"feed_forward_length\":");
    n_vocab = (uint32_t)number("\"vocab_size\":");
    head_dim = (uint32_t)number("\"key_length\":");
    if (head_dim == 0 && n_head > 0) head_dim = d_model / n_head;
    rope_base = (float)number("\"llama.rope.freq_base\",\"type\":\"f32\",\"value\":");
    if (rope_base == 0) rope_base = 10000;
    norm_eps = (float)number("\"llama.attention.layer_norm_rms_epsilon\",\"type\":\"f32\",\"value\":");
    return n_layers > 0 && n_layers <= LAYERS_MAX && n_head > 0 && n_kv_head > 0 ? 0 : REALM_E_UNSUPPORTED;
}

/* ---- weights and activations ---- */

static int32_t first_failure;

static int32_t note(int32_t handle) {
    if (handle < 0 && first_failure == 0) first_failure = handle;
    return handle;
}

static int32_t of_layer(uint32_t i, const char *name) {
    return note(realm_memory64_load_tensor(0, i, name, realm_strlen(name)));
}

static int32_t by_name(const char *name) { return note(realm_tensor_weight(0, name, realm_strlen(name))); }

static int32_t matrix(uint32_t rows, uint32_t cols) {
    uint64_t dims[2] = {rows, cols};
    return note(realm_tensor_new(dims, 2));
}

static int32_t open_all(void) {
    embed = by_name("token_embd.weight");
    out_norm = by_name("output_norm.weight");
    output = realm_tensor_weight(0, REALM_LITERAL("output.weight"));
    if (output < 0) output = embed; /* tied */
    for (uint32_t i = 0; i < n_layers; i++)
        layers[i] = (layer){.attn_norm = of_layer(i, "attn_norm.weight"),
                            .wq = of_layer(i, "attn_q.weight"),
                            .wk = of_layer(i, "attn_k.weight"),
                            .wv = of_layer(i, "attn_v.weight"),
                            .wo = of_layer(i, "attn_output.weight"),
                            .ffn_norm = of_layer(i, "ffn_norm.weight"),
                            .gate = of_layer(i, "ffn_gate.weight"),
                            .up = of_layer(i, "ffn_up.weight"),
                            .down = of_layer(i, "ffn_down.weight"),
                            .keys = matrix(CONTEXT_MAX, n_kv_head * head_dim),
                            .values = matrix(CONTEXT_MAX, n_kv_head * head_dim)};
    x = matrix(CHUNK, d_model);
    h = matrix(CHUNK, d_model);
    q = matrix(CHUNK, n_head * head_dim);
    k = matrix(CHUNK, n_kv_head * head_dim);
    v = matrix(CHUNK, n_kv_head * head_dim);
    att = matrix(CHUNK, n_head * head_dim);
    gate = matrix(CHUNK, d_ff);
    up = matrix(CHUNK, d_ff);
    last = matrix(1, d_model);
    logits = matrix(1, n_vocab);
    best = matrix(1, 1);
    return first_failure;
}

/* ---- a step ---- */

static realm_guest_tensor_op *op(uint32_t kind, int32_t out, int32_t a, int32_t b, uint64_t rows) {
    realm_guest_tensor_op *o = &ops[n_ops++];
    *o = (realm_guest_tensor_op){.kind = kind, .out = out, .a = a, .b = b, .m = rows};
    return o;
}

static void norm(int32_t out, int32_t in, int32_t gain, uint64_t rows) {
    op(REALM_TENSOR_OP_RMS_NORM, out, in, gain, rows)->eps = norm_eps;
}

static void matmul(int32_t out, int32_t in, int32_t weight, uint64_t rows) {
    op(REALM_TENSOR_OP_MATMUL, out, in, weight, rows);
}

static void rotate(int32_t t, uint32_t past, uint64_t rows) {
    realm_guest_tensor_op *o = op(REALM_TENSOR_OP_ROPE, t, t, 0, rows);
    o->head_dim = head_dim;
    o->first = past;
    o->base = rope_base;
}

static void keep(int32_t cache, int32_t in, uint32_t past, uint64_t rows) {
    realm_guest_tensor_op *o = op(REALM_TENSOR_OP_COPY, cache, in, 0, 0);
    o->n_rows = rows;
    o->out_row = past;
}

static void block(const layer *l, uint32_t past, uint32_t n) {
    norm(h, x, l->attn_norm, n);
    matmul(q, h, l->wq, n);
    matmul(k, h, l->wk, n);
    matmul(v, h, l->wv, n);
    rotate(q, past, n);
    rotate(k, past, n);
    keep(l->keys, k, past, n);
    keep(l->values, v, past, n);
    realm_guest_tensor_op *a = op(REALM_TENSOR_OP_ATTENTION, att, q, l->keys, n);
    a->c = l->values;
    a->n_head = n_head;
    a->n_kv_head = n_kv_head;
    a->head_dim = head_dim;
    a->first = past;
    a->t = past + n;
    a->scale = 1.0f / __builtin_sqrtf((float)head_dim);
    matmul(h, att, l->wo, n);
    op(REALM_TENSOR_OP_ADD, x, x, h, n);
    norm(h, x, l->ffn_norm, n);
    matmul(gate, h, l->gate, n);
    matmul(up, h, l->up, n);
    op(REALM_TENSOR_OP_SILU, gate, gate, up, n);
    matmul(h, gate, l->down, n);
    op(REALM_TENSOR_OP_ADD, x, x, h, n);
}

/* Computes n tokens behind `past` and, when they are the last so far, the next one. */
static int32_t step(uint32_t past, uint32_t n, bool last_chunk, int32_t *next) {
    n_ops = 0;
    realm_guest_tensor_op *o = op(REALM_TENSOR_OP_GET_ROWS, x, embed, 0, 0);
    o->ids = (uint64_t)(uintptr_t)(tokens + past);
    o->n_ids = n;
    for (uint32_t i = 0; i < n_layers; i++) block(&layers[i], past, n);
    if (last_chunk) {
        o = op(REALM_TENSOR_OP_COPY, last, x, 0, 0);
        o->row = n - 1;
        o->n_rows = 1;
        norm(last, last, out_norm, 1);
        matmul(logits, last, output, 1);
        op(REALM_TENSOR_OP_ARGMAX, best, logits, 0, 1);
    }
    int32_t code = realm_tensor_run(ops, n_ops);
    if (code < 0 || !last_chunk) return code;
    float id;
    code = realm_tensor_read(best, 0, &id, 1);
    if (code >= 0) *next = (int32_t)id;
    return code < 0 ? code : 0;
}

static uint32_t answer_tokens(void) {
    static const char *const NAMES[] = {"max_completion_tokens", "max_tokens"};
    for (uint32_t i = 0; i < 2; i++) {
        int32_t n = realm_input(NAMES[i], realm_strlen(NAMES[i]), text, sizeof text);
        uint32_t value = 0;
        for (int32_t at = 0; at < n && text[at] >= '0' && text[at] <= '9' && value < CONTEXT_MAX; at++)
            value = value * 10 + (uint32_t)(text[at] - '0');
        if (value > 0) return value;
    }
    return ANSWER_DEFAULT;
}

REALM_EXPORT(realm_main) int32_t realm_main(void) {
    int32_t code = describe();
    if (code < 0 || (code = open_all()) < 0) return failed(code);
    int32_t prompt = realm_prompt_own();
    int32_t n_prompt = prompt < 0 ? prompt : realm_prompt_get_tokens(prompt, tokens, CONTEXT_MAX);
    if (n_prompt <= 0 || n_prompt >= CONTEXT_MAX) return n_prompt < 0 ? failed(n_prompt) : REALM_E_RANGE;

    uint32_t past = 0, n = (uint32_t)n_prompt, limit = answer_tokens();
    int32_t next = 0;
    for (uint32_t produced = 0; produced < limit && n < CONTEXT_MAX; produced++) {
        while (past < n) {
            uint32_t count = n - past < CHUNK ? n - past : CHUNK;
            if ((code = step(past, count, past + count == n, &next)) < 0) return failed(code);
            past += count;
        }
        int32_t len = realm_token_piece(next, 0, text, sizeof text);
        if (len <= 0) { /* a control token: the end of the answer */
            realm_finish(REALM_END_STOP);
            return 0;
        }
        if ((code = realm_stream_token(next, text, (size_t)len)) < 0) return failed(code);
        tokens[n++] = next;
    }
    realm_finish(REALM_END_LENGTH);
    return 0;
}
