/* Handles, budgets and lists: what is refused and how it is said, who may touch what while a list is pending, order and
 * fairness between budgets, cancelling, pins, lack of memory. The test holds the backend's turn where it wants a list
 * to stay pending. */
#include <math.h>

#include "base/clock.h"
#include "fixture.h"
#include "support/random.h"

typedef struct two { /* a run and some tensors */
    tensor_run r;
    realm_tensor *a, *b, *c, *row, *one;
} two;

static void open_two(two *x) {
    tensor_run_open(&x->r, NULL, 2, NULL);
    x->a = tensor_make(&x->r, 4, 64);
    x->b = tensor_make(&x->r, 4, 64);
    x->c = tensor_make(&x->r, 8, 32);
    x->row = tensor_make(&x->r, 1, 64);
    x->one = tensor_make(&x->r, 4, 1);
}

static void close_two(two *x) {
    realm_tensor *const all[] = {x->a, x->b, x->c, x->row, x->one};
    for (size_t i = 0; i < REALM_ARRAY_LEN(all); i++) realm_tensor_release(all[i]);
    tensor_run_close(&x->r);
}

typedef struct on_model { /* a run beside a small model of 8-bit weights */
    tiny_model *tiny;
    model_run m;
    tensor_run r;
} on_model;

static void open_on_model(on_model *x) {
    tiny_spec spec = tiny_llama;
    realm_error err = {0};
    realm_gguf *g;
    spec.type = REALM_TYPE_Q8_0;
    x->tiny = tiny_make(&spec);
    assert_int_equal(realm_gguf_open_memory(&g, x->tiny->file, x->tiny->file_len, &err), REALM_OK);
    model_run_open(&x->m, g, 2, 8, 1);
    tensor_run_open(&x->r, x->m.b, 0, NULL);
}

static void handles(void **state) {
    (void)state;
    tensor_run r;
    realm_error err = {0};
    realm_tensor *t;
    realm_tensor_info info;
    tensor_run_open(&r, NULL, 1, NULL);
    assert_int_equal(realm_tensor_new(r.budget, 0, (uint64_t[]){1}, &t, &err), REALM_E_RANGE);
    assert_int_equal(realm_tensor_new(r.budget, 5, (uint64_t[]){1, 1, 1, 1, 1}, &t, &err), REALM_E_RANGE);
    assert_int_equal(realm_tensor_new(r.budget, 2, (uint64_t[]){3, 0}, &t, &err), REALM_E_RANGE);
    assert_int_equal(realm_tensor_new(r.budget, 1, (uint64_t[]){UINT64_MAX}, &t, &err), REALM_E_RANGE);
    assert_int_equal(realm_tensor_new(r.budget, 4, (uint64_t[]){UINT64_C(1) << 32, UINT64_C(1) << 32, 2, 1}, &t, &err),
                     REALM_E_RANGE);
    /* More than the budget: what is left is said. */
    assert_int_equal(realm_tensor_new(r.budget, 2, (uint64_t[]){1u << 24, 1u << 24}, &t, &err), REALM_E_LIMIT);
    assert_non_null(strstr(err.text, "4294967296 of 4294967296 bytes"));
    assert_null(t);
    assert_int_equal(realm_tensor_new(r.budget, 3, (uint64_t[]){2, 3, 5}, &t, &err), REALM_OK);
    realm_tensor_get_info(t, &info);
    assert_int_equal(info.rows, 6);
    assert_int_equal(info.cols, 5);
    assert_int_equal(info.bytes, 120);
    float v[31] = {0};
    for (uint32_t i = 0; i < 30; i++) {
        tensor_get(t, i, 1, v);
        assert_true(v[0] == 0);
        v[i] = (float)i;
    }
    assert_int_equal(realm_tensor_write(t, 3, 5, (float[]){1, 2, 3, 4, 5}, &err), REALM_OK);
    tensor_get(t, 2, 4, v);
    assert_true(v[0] == 0 && v[1] == 1 && v[3] == 3);
    assert_int_equal(realm_tensor_write(t, 30, 1, v, &err), REALM_E_RANGE);
    assert_int_equal(realm_tensor_read(t, 1, 30, v, &err), REALM_E_RANGE);
    assert_int_equal(realm_tensor_read(t, UINT64_MAX, 2, v, &err), REALM_E_RANGE);
    assert_int_equal(realm_tensor_read(t, 30, 0, v, &err), REALM_OK);
    realm_tensor_usage u;
    realm_tensor_budget_usage(r.budget, &u);
    assert_true(u.bytes >= 120);
    /* A budget outlives its handle while tensors hold it. */
    realm_tensor_budget *small;
    assert_int_equal(realm_tensor_budget_open(5000, &small, &err), REALM_OK);
    realm_tensor *s, *more;
    assert_int_equal(realm_tensor_new(small, 1, (uint64_t[]){1000}, &s, &err), REALM_OK);
    assert_int_equal(realm_tensor_new(small, 1, (uint64_t[]){1000}, &more, &err), REALM_E_LIMIT);
    realm_tensor_budget_set_limit(small, 10000);
    assert_int_equal(realm_tensor_new(small, 1, (uint64_t[]){1000}, &more, &err), REALM_OK);
    realm_tensor_budget_set_limit(small, 100);
    realm_tensor_release(more);
    assert_int_equal(realm_tensor_new(small, 1, (uint64_t[]){1}, &more, &err), REALM_E_LIMIT);
    realm_tensor_budget_close(small);
    realm_tensor_release(s);
    realm_tensor_release(t);
    tensor_run_close(&r);
}

static uint32_t n_released;
static void count_release(void *user) {
    assert_ptr_equal(user, &n_released);
    n_released++;
}

static void weights(void **state) {
    (void)state;
    realm_error err = {0};
    on_model on;
    open_on_model(&on);
    realm_tensor *t, *x = tensor_make(&on.r, 2, 64), *y = tensor_make(&on.r, 2, 96), *e = tensor_make(&on.r, 2, 64);
    realm_tensor *norm = tensor_weight(on.m.m, "blk.0.attn_norm.weight"),
                 *embed = tensor_weight(on.m.m, "token_embd.weight");
    assert_int_equal(realm_tensor_of_weight(on.m.m, "blk.9.ffn_up", 12, count_release, &n_released, &t, &err),
                     REALM_E_NOT_FOUND);
    assert_non_null(strstr(err.text, "blk.9.ffn_up"));
    assert_int_equal(realm_tensor_of_weight(on.m.m, "blk.2.ffn_up.weight", 19, count_release, &n_released, &t, &err),
                     REALM_OK);
    realm_tensor_info info;
    realm_tensor_get_info(t, &info);
    assert_int_equal(info.rows, 96);
    assert_int_equal(info.cols, 64);
    assert_int_equal(info.dims[0], 96);
    assert_int_equal(info.layer, 2);
    assert_int_equal(info.type->type, REALM_TYPE_Q8_0);
    assert_true(info.is_weight);
    float v[3 * 64];
    assert_int_equal(realm_tensor_read(t, 64, 2 * 64, v, &err), REALM_OK);
    assert_memory_equal(v, tiny_find(on.tiny, "blk.2.ffn_up.weight") + 64, 2 * 64 * sizeof *v);
    assert_int_equal(realm_tensor_read(t, 1, 64, v, &err), REALM_E_RANGE);
    assert_int_equal(realm_tensor_read(t, 95 * 64, 128, v, &err), REALM_E_RANGE);
    assert_int_equal(realm_tensor_write(t, 0, 64, v, &err), REALM_E_INVALID);
    const struct {
        realm_tensor_op op;
        const char *text;
    } bad[] = {
        {{.kind = REALM_TENSOR_MATMUL, .out = t, .a = x, .b = t}, "op 0 (matmul): out is a weight"},
        {{.kind = REALM_TENSOR_MATMUL, .out = y, .a = t, .b = t}, "a is a weight"},
        {{.kind = REALM_TENSOR_MATMUL_PLAIN, .out = x, .a = y, .b = t}, "b is a weight; those have"},
        {{.kind = REALM_TENSOR_MATMUL, .out = y, .a = x, .b = norm}, "out has 96 columns, not 1"},
        {{.kind = REALM_TENSOR_RMS_NORM, .out = x, .a = x, .b = t}, "b has 96 rows, not one"},
    };
    for (size_t i = 0; i < REALM_ARRAY_LEN(bad); i++) {
        if (tensor_try(&on.r, &bad[i].op, 1, &err) != REALM_E_INVALID || !strstr(err.text, bad[i].text)) {
            print_error("\"%s\" is not \"%s\"\n", err.text, bad[i].text);
            fail();
        }
    }
    /* The embedding of a model with an output of its own is for look-up alone. */
    realm_tensor *logits = tensor_make(&on.r, 2, TINY_VOCAB);
    assert_int_equal(
        tensor_try(&on.r, &(realm_tensor_op){.kind = REALM_TENSOR_MATMUL, .out = logits, .a = x, .b = embed}, 1, &err),
        REALM_E_UNSUPPORTED);
    int32_t ids[2] = {3, TINY_VOCAB};
    realm_tensor_op rows = {.kind = REALM_TENSOR_GET_ROWS, .out = e, .a = embed, .u.get_rows = {.ids = ids, .n = 2}};
    assert_int_equal(tensor_try(&on.r, &rows, 1, &err), REALM_E_RANGE);
    assert_non_null(strstr(err.text, "id 1 is 320; a has 320 rows"));
    ids[1] = -1;
    assert_int_equal(tensor_try(&on.r, &rows, 1, &err), REALM_E_RANGE);
    ids[1] = TINY_VOCAB - 1;
    tensor_do(&on.r, &rows, 1);
    tensor_get(e, 0, 128, v);
    assert_memory_equal(v + 64, tiny_find(on.tiny, "token_embd.weight") + (TINY_VOCAB - 1) * 64, 64 * sizeof *v);

    /* The model's holder hears of the last reference, also of one that a list had. */
    waiter w;
    realm_tensor_job *j;
    realm_tensor_op op = {.kind = REALM_TENSOR_MATMUL, .out = y, .a = x, .b = t};
    waiter_init(&w);
    realm_backend_turn_begin(on.m.b);
    assert_int_equal(realm_tensor_submit(on.r.s, on.r.budget, &op, 1, waiter_done, &w, &j, &err), REALM_OK);
    assert_int_equal(n_released, 0);
    realm_tensor_release(t);
    assert_int_equal(n_released, 0);
    realm_backend_turn_end(on.m.b);
    assert_int_equal(waiter_wait(&w, &err), REALM_OK);
    realm_tensor_job_release(j);
    realm_tensor *const all[] = {x, y, e, norm, embed, logits};
    for (size_t i = 0; i < REALM_ARRAY_LEN(all); i++) realm_tensor_release(all[i]);
    tensor_run_close(&on.r); /* joins */
    assert_int_equal(n_released, 1);
    model_run_close(&on.m);
    tiny_free(on.tiny);
}

static void refused(void **state) {
    (void)state;
    two x;
    realm_error err = {0};
    open_two(&x);
    realm_tensor *a = x.a, *b = x.b, *c = x.c, *row = x.row, *one = x.one;
    const struct {
        realm_tensor_op op;
        realm_status status;
        const char *text;
    } cases[] = {
        {{.kind = (realm_tensor_op_kind)99}, REALM_E_INVALID, "unknown kind 99"},
        {{.kind = REALM_TENSOR_ADD, .out = b, .b = a}, REALM_E_INVALID, "a is missing"},
        {{.kind = REALM_TENSOR_ADD, .out = b, .a = a}, REALM_E_INVALID, "b is missing"},
        {{.kind = REALM_TENSOR_ADD, .a = a, .b = a}, REALM_E_INVALID, "out is missing"},
        {{.kind = REALM_TENSOR_ADD, .out = b, .a = a, .b = c}, REALM_E_INVALID, "b has 32 columns, a 64"},
        {{.kind = REALM_TENSOR_ADD, .out = c, .a = a, .b = a}, REALM_E_INVALID, "out has 32 columns, not 64"},
        {{.kind = REALM_TENSOR_ADD, .out = b, .a = a, .b = a, .m = 5}, REALM_E_RANGE, "a has 4 rows, 5 are needed"},
        {{.kind = REALM_TENSOR_MUL, .out = row, .a = a, .b = a}, REALM_E_RANGE, "out has 1 rows, 4 are needed"},
        {{.kind = REALM_TENSOR_ADD, .out = b, .a = a, .b = a, .c = a}, REALM_E_INVALID, "takes no operand c"},
        {{.kind = REALM_TENSOR_MATMUL, .out = a, .a = a, .b = b}, REALM_E_INVALID, "out has 64 columns, not 4"},
        {{.kind = REALM_TENSOR_MATMUL, .out = one, .a = a, .b = c}, REALM_E_INVALID, "a has 64 columns, b needs 32"},
        {{.kind = REALM_TENSOR_MATMUL, .out = one, .a = one, .b = one}, REALM_E_INVALID, "out has 1 columns, not 4"},
        {{.kind = REALM_TENSOR_MATMUL_PLAIN, .out = b, .a = a, .b = b}, REALM_E_INVALID, "b needs 4"},
        {{.kind = REALM_TENSOR_MATMUL, .out = one, .a = one, .b = row}, REALM_E_INVALID, "b needs 64"},
        {{.kind = REALM_TENSOR_RMS_NORM, .out = a, .a = a, .b = row, .u.eps = -1}, REALM_E_INVALID, "eps -1"},
        {{.kind = REALM_TENSOR_RMS_NORM, .out = c, .a = c, .b = row, .u.eps = 1}, REALM_E_INVALID, "no multiple"},
        {{.kind = REALM_TENSOR_RMS_NORM, .out = row, .a = row, .b = row}, REALM_E_INVALID, "out is also b"},
        {{.kind = REALM_TENSOR_SCALE, .out = a, .a = a, .u.scale = NAN}, REALM_E_INVALID, "the scale is not finite"},
        {{.kind = REALM_TENSOR_SOFTMAX, .out = a, .a = a, .b = b}, REALM_E_INVALID, "takes no operand b"},
        {{.kind = REALM_TENSOR_SILU, .out = a, .a = a, .b = row}, REALM_E_RANGE, "b has 1 rows, 4 are needed"},
        {{.kind = REALM_TENSOR_ARGMAX, .out = b, .a = a}, REALM_E_INVALID, "out has 64 columns, not 1"},
        {{.kind = REALM_TENSOR_ARGMAX, .out = one, .a = one}, REALM_E_INVALID, "out is also a"},
        {{.kind = REALM_TENSOR_GET_ROWS, .out = b, .a = a}, REALM_E_INVALID, "no row is asked for"},
        {{.kind = REALM_TENSOR_ROPE, .out = a, .a = a, .u.rope = {.head_dim = 48, .base = 1}},
         REALM_E_INVALID,
         "no heads of 48"},
        {{.kind = REALM_TENSOR_ROPE, .out = a, .a = a, .u.rope = {.head_dim = 16, .rope_dims = 18, .base = 1}},
         REALM_E_INVALID,
         "18 of 16 values"},
        {{.kind = REALM_TENSOR_ROPE, .out = a, .a = a, .u.rope = {.head_dim = 16, .base = 0}},
         REALM_E_INVALID,
         "base 0"},
        {{.kind = REALM_TENSOR_ROPE, .out = a, .a = a, .u.rope = {.head_dim = 16, .base = 1, .first_pos = INT32_MAX}},
         REALM_E_RANGE,
         "position 2147483647"},
        {{.kind = REALM_TENSOR_ROPE, .out = a, .a = a, .b = row, .u.rope = {.head_dim = 16, .base = 1}},
         REALM_E_INVALID,
         "64 factors, not 8"},
        {{.kind = REALM_TENSOR_COPY, .out = b, .a = a, .u.copy = {3, 2, 0}}, REALM_E_RANGE, "rows 3 + 2 of a"},
        {{.kind = REALM_TENSOR_COPY, .out = b, .a = a, .u.copy = {0, 2, 3}}, REALM_E_RANGE, "rows 3 + 2 of out"},
        {{.kind = REALM_TENSOR_COPY, .out = b, .a = a, .u.copy = {UINT64_MAX, 2, 0}}, REALM_E_RANGE, "of a"},
        {{.kind = REALM_TENSOR_COPY, .out = b, .a = a, .u.copy = {0, UINT64_MAX, 0}}, REALM_E_RANGE, "of a"},
        {{.kind = REALM_TENSOR_COPY, .out = b, .a = a, .u.copy = {0, 0, 0}}, REALM_E_INVALID, "no row"},
        {{.kind = REALM_TENSOR_COPY, .out = a, .a = a, .u.copy = {0, 2, 1}}, REALM_E_INVALID, "overlap"},
        {{.kind = REALM_TENSOR_COPY, .out = c, .a = a, .u.copy = {0, 1, 0}}, REALM_E_INVALID, "32 columns, not 64"},
        {{.kind = REALM_TENSOR_PIN, .a = a}, REALM_E_INVALID, "not a weight of a layer"},
#define ATTENTION(o, q, k, v, mask, ...)                                                                            \
    {                                                                                                               \
        .kind = REALM_TENSOR_ATTENTION, .out = o, .a = q, .b = k, .c = v, .d = mask, .u.attention = { __VA_ARGS__ } \
    }
        {ATTENTION(b, a, c, c, NULL, .n_head = 4, .n_kv_head = 3, .head_dim = 16), REALM_E_INVALID, "cannot share"},
        {ATTENTION(b, a, c, c, NULL, .n_head = 4, .n_kv_head = 0, .head_dim = 16), REALM_E_INVALID, "cannot share"},
        {ATTENTION(b, a, c, c, NULL, .n_head = 4, .n_kv_head = 2, .head_dim = 15), REALM_E_INVALID, "must be even"},
        {ATTENTION(b, a, c, c, NULL, .n_head = 2, .n_kv_head = 1, .head_dim = 16), REALM_E_INVALID, "a has 64 columns"},
        {ATTENTION(b, a, c, c, NULL, .n_head = 65536, .n_kv_head = 1, .head_dim = 16), REALM_E_LIMIT,
         "65536 heads of 16 values: at most 262144"},
        {ATTENTION(b, a, c, a, NULL, .n_head = 4, .n_kv_head = 2, .head_dim = 16), REALM_E_INVALID, "c has 64 columns"},
        {ATTENTION(a, a, c, c, NULL, .n_head = 4, .n_kv_head = 2, .head_dim = 16), REALM_E_INVALID, "out is also a"},
        {ATTENTION(b, a, c, c, NULL, .n_head = 4, .n_kv_head = 2, .head_dim = 16, .t = 9), REALM_E_RANGE,
         "9 are needed"},
        {ATTENTION(b, a, c, c, NULL, .n_head = 4, .n_kv_head = 2, .head_dim = 16, .n_past = 5), REALM_E_RANGE,
         "position 8 of 8"},
        {ATTENTION(b, a, c, c, NULL, .n_head = 4, .n_kv_head = 2, .head_dim = 16, .n_past = 1, .full = true),
         REALM_E_INVALID, "neither"},
        {ATTENTION(b, a, c, c, c, .n_head = 4, .n_kv_head = 2, .head_dim = 16), REALM_E_INVALID,
         "d has 32 columns, not 8"},
        {ATTENTION(b, a, c, c, NULL, .n_head = 4, .n_kv_head = 2, .head_dim = 16, .scale = INFINITY), REALM_E_INVALID,
         "the scale"},
        {ATTENTION(b, a, c, c, NULL, .n_head = 4, .n_kv_head = 2, .head_dim = 16, .softcap = -1), REALM_E_INVALID,
         "softcap -1"},
    };
    /* Behind an op that is right, so that the number in the text is not always 0, and nothing of the list has run. */
    float v[64] = {1, 2, 3}, got[64];
    assert_int_equal(realm_tensor_write(a, 0, 64, v, &err), REALM_OK);
    for (size_t i = 0; i < REALM_ARRAY_LEN(cases); i++) {
        realm_tensor_op list[2] = {{.kind = REALM_TENSOR_SCALE, .out = a, .a = a, .u.scale = 5}, cases[i].op};
        memset(&err, 0, sizeof err);
        realm_status s = tensor_try(&x.r, list, 2, &err);
        if (s != cases[i].status || !strstr(err.text, cases[i].text) || strncmp(err.text, "op 1 (", 6) != 0) {
            print_error("case %zu: %s \"%s\", not %s \"%s\"\n", i, realm_status_name(s), err.text,
                        realm_status_name(cases[i].status), cases[i].text);
            fail();
        }
        tensor_get(a, 0, 64, got);
        assert_memory_equal(got, v, sizeof v);
    }
    waiter w;
    realm_tensor_job *j;
    realm_tensor_op *many = calloc(REALM_TENSOR_MAX_OPS + 1, sizeof *many);
    waiter_init(&w);
    assert_int_equal(realm_tensor_submit(x.r.s, x.r.budget, many, 0, waiter_done, &w, &j, &err), REALM_E_INVALID);
    assert_int_equal(realm_tensor_submit(x.r.s, x.r.budget, many, REALM_TENSOR_MAX_OPS + 1, waiter_done, &w, &j, &err),
                     REALM_E_LIMIT);
    free(many);
    close_two(&x);
}

static void busy(void **state) {
    (void)state;
    two x;
    realm_error err = {0};
    float v[256] = {0};
    waiter w;
    realm_tensor_job *j;
    open_two(&x);
    realm_tensor_op op = {.kind = REALM_TENSOR_SCALE, .out = x.b, .a = x.a, .u.scale = 2};
    waiter_init(&w);
    v[0] = 21;
    assert_int_equal(realm_tensor_write(x.a, 0, 256, v, &err), REALM_OK);
    realm_backend_turn_begin(x.r.b);
    assert_int_equal(realm_tensor_submit(x.r.s, x.r.budget, &op, 1, waiter_done, &w, &j, &err), REALM_OK);
    assert_int_equal(realm_tensor_read(x.a, 0, 1, v, &err), REALM_OK);
    assert_int_equal(realm_tensor_write(x.a, 0, 1, v, &err), REALM_E_BUSY);
    assert_int_equal(realm_tensor_read(x.b, 0, 1, v, &err), REALM_E_BUSY);
    assert_int_equal(realm_tensor_write(x.b, 0, 1, v, &err), REALM_E_BUSY);
    assert_int_equal(realm_tensor_read(x.c, 0, 1, v, &err), REALM_OK);
    realm_backend_turn_end(x.r.b);
    assert_int_equal(waiter_wait(&w, &err), REALM_OK);
    tensor_get(x.b, 0, 1, v); /* at once when on_done has been called */
    assert_true(v[0] == 42);
    assert_int_equal(realm_tensor_write(x.a, 0, 1, v, &err), REALM_OK);
    realm_tensor_job_release(j);
    close_two(&x);
}

static void cancelled(void **state) {
    (void)state;
    two x;
    realm_error err = {0};
    waiter w[3];
    realm_tensor_job *j[3];
    open_two(&x);
    realm_tensor_op op = {.kind = REALM_TENSOR_SCALE, .out = x.b, .a = x.a, .u.scale = 2};
    realm_backend_turn_begin(x.r.b);
    for (int i = 0; i < 3; i++) {
        waiter_init(&w[i]);
        assert_int_equal(realm_tensor_submit(x.r.s, x.r.budget, &op, 1, waiter_done, &w[i], &j[i], &err), REALM_OK);
    }
    realm_tensor_job_cancel(j[1]);
    realm_tensor_job_release(j[2]); /* nothing is called for it */
    realm_backend_turn_end(x.r.b);
    assert_int_equal(waiter_wait(&w[0], &err), REALM_OK);
    assert_int_equal(waiter_wait(&w[1], &err), REALM_E_CANCELLED);
    assert_non_null(strstr(err.text, "op 0 of 1"));
    realm_tensor_job_cancel(j[0]); /* over already */
    realm_tensor_job_release(j[0]);
    realm_tensor_job_release(j[1]);
    /* A service that closes cancels what waits. */
    waiter_init(&w[0]);
    realm_backend_turn_begin(x.r.b);
    assert_int_equal(realm_tensor_submit(x.r.s, x.r.budget, &op, 1, waiter_done, &w[0], &j[0], &err), REALM_OK);
    realm_tensor_job_cancel(j[0]);
    realm_backend_turn_end(x.r.b);
    assert_int_equal(waiter_wait(&w[0], &err), REALM_E_CANCELLED);
    realm_tensor_job_release(j[0]);
    close_two(&x);
    assert_false(w[2].done);
}

static void *stop_service(void *user) {
    realm_tensor_service_stop(user);
    return NULL;
}

/* It is stopped while a list has the next turn: that is computed and counted. */
static void stopped(void **state) {
    (void)state;
    two x;
    realm_error err = {0};
    waiter w;
    realm_tensor_job *j;
    realm_turn_stats device;
    realm_tensor_usage total, own;
    pthread_t stopper;
    const uint64_t until = realm_clock_ns() + 60 * REALM_NS_PER_S;
    open_two(&x);
    realm_tensor_op op = {.kind = REALM_TENSOR_SCALE, .out = x.b, .a = x.a, .u.scale = 2};
    waiter_init(&w);
    realm_backend_turn_begin(x.r.b);
    assert_int_equal(realm_tensor_submit(x.r.s, x.r.budget, &op, 1, waiter_done, &w, &j, &err), REALM_OK);
    do {
        realm_backend_turn_get_stats(x.r.b, &device);
        assert_true(realm_clock_ns() < until);
    } while (device.waiting == 0);
    assert_int_equal(pthread_create(&stopper, NULL, stop_service, x.r.s), 0);
    realm_backend_turn_end(x.r.b);
    assert_int_equal(pthread_join(stopper, NULL), 0);
    assert_true(w.done);
    assert_int_equal(waiter_wait(&w, &err), REALM_OK);
    realm_tensor_service_usage(x.r.s, &total, &x.r.budget, 1, &own);
    assert_int_equal(total.ops, 1);
    assert_int_equal(own.ops, 1);
    assert_int_equal(total.lists, 0);
    assert_true(total.device_ns > 0 && own.device_ns == total.device_ns);
    realm_tensor_job_release(j);
    close_two(&x);
}

typedef struct order {
    realm_mutex mu;
    char text[64];
    size_t n;
} order;

typedef struct order_user {
    order *o;
    char name;
    waiter *last;
} order_user;

static void order_done(void *user, realm_status status, const realm_error *err) {
    order_user *u = user;
    realm_mutex_lock(&u->o->mu);
    u->o->text[u->o->n++] = u->name;
    realm_mutex_unlock(&u->o->mu);
    if (u->last) waiter_done(u->last, status, err);
}

/* Four lists of one tenant, then one of another and one of a third: the others' come after the first of the four, and
 * each tenant's in their order. A turn is one list's at most. */
static void rotation(void **state) {
    (void)state;
    tensor_run r;
    realm_error err = {0};
    tensor_run_open(&r, NULL, 2, NULL);
    realm_tensor_budget *other[2];
    for (int i = 0; i < 2; i++) assert_int_equal(realm_tensor_budget_open(1 << 20, &other[i], &err), REALM_OK);
    realm_tensor *x = tensor_make(&r, 1, 64);
    realm_tensor_op op = {.kind = REALM_TENSOR_SCALE, .out = x, .a = x, .u.scale = 2};
    order o = {0};
    waiter last;
    realm_mutex_init(&o.mu, REALM_RANK_LEAF);
    waiter_init(&last);
    order_user users[6] = {{&o, 'a', NULL},  {&o, 'b', NULL}, {&o, 'c', NULL},
                           {&o, 'd', &last}, {&o, 'X', NULL}, {&o, 'Y', NULL}};
    realm_tensor_job *j[6];
    realm_backend_turn_begin(r.b);
    for (int i = 0; i < 6; i++)
        assert_int_equal(
            realm_tensor_submit(r.s, i < 4 ? r.budget : other[i - 4], &op, 1, order_done, &users[i], &j[i], &err),
            REALM_OK);
    realm_backend_turn_end(r.b);
    assert_int_equal(waiter_wait(&last, &err), REALM_OK);
    for (int i = 0; i < 6; i++) realm_tensor_job_release(j[i]);
    assert_string_equal(o.text, "aXYbcd");
    realm_mutex_destroy(&o.mu);
    realm_tensor_usage u;
    realm_tensor_budget_usage(other[0], &u);
    assert_int_equal(u.ops, 1);
    realm_tensor_release(x);
    tensor_run_close(&r);
    for (int i = 0; i < 2; i++) realm_tensor_budget_close(other[i]);
}

/* The device is given up between slices: somebody who waits gets it although the list has much left. */
static void given_up(void **state) {
    (void)state;
    enum { M = 1024, K = 1024 };
    tensor_run r;
    realm_error err = {0};
    waiter w;
    realm_tensor_job *j;
    tensor_run_open(&r, NULL, 2, NULL);
    realm_tensor *x = tensor_make(&r, M, K), *y = tensor_make(&r, M, K);
    static realm_tensor_op ops[2000]; /* seconds, if it were let */
    for (size_t i = 0; i < REALM_ARRAY_LEN(ops); i++)
        ops[i] = (realm_tensor_op){.kind = REALM_TENSOR_MATMUL, .out = y, .a = x, .b = x};
    waiter_init(&w);
    assert_int_equal(realm_tensor_submit(r.s, r.budget, ops, REALM_ARRAY_LEN(ops), waiter_done, &w, &j, &err),
                     REALM_OK);
    for (int i = 0; i < 3; i++) {
        realm_backend_turn_begin(r.b);
        realm_backend_turn_end(r.b);
    }
    realm_tensor_usage u;
    realm_tensor_budget_usage(r.budget, &u);
    assert_true(u.ops < REALM_ARRAY_LEN(ops));
    realm_tensor_job_cancel(j);
    assert_int_equal(waiter_wait(&w, &err), REALM_E_CANCELLED);
    realm_tensor_job_release(j);
    realm_tensor_release(x);
    realm_tensor_release(y);
    tensor_run_close(&r);
}

/* Products of several slices of two tenants, a turn of one after a turn of the other: what the slices of one leave for
 * each other is not the other's, is charged while the list is pending, and comes back after a cancellation too. */
static void kept_apart(void **state) {
    (void)state;
    enum { M = 3, K = 1500, N = 2100 };
    tensor_run r[2];
    realm_error err = {0};
    realm_tensor *x[2], *w[2], *y[2];
    float *values = malloc(sizeof(float) * N * K), *got[2];
    tensor_run_open(&r[0], NULL, 2, NULL);
    r[1] = r[0];
    assert_int_equal(realm_tensor_budget_open(1 << 30, &r[1].budget, &err), REALM_OK);
    for (int i = 0; i < 2; i++) {
        for (size_t k = 0; k < (size_t)N * K; k++) values[k] = (float)((k * (size_t)(7 + i)) % 31) - 15;
        x[i] = tensor_of(&r[i], M, K, values);
        w[i] = tensor_of(&r[i], N, K, values);
        y[i] = tensor_make(&r[i], M, N);
        got[i] = malloc(sizeof(float) * M * N);
        tensor_do(&r[i], &(realm_tensor_op){.kind = REALM_TENSOR_MATMUL, .out = y[i], .a = x[i], .b = w[i]}, 1);
        tensor_get(y[i], 0, (uint64_t)M * N, got[i]);
    }
    waiter end[2];
    realm_tensor_job *j[2];
    realm_tensor_usage before, during;
    realm_tensor_budget_usage(r[1].budget, &before);
    realm_backend_turn_begin(r[0].b);
    for (int i = 0; i < 2; i++) {
        realm_tensor_op ops[6];
        for (int k = 0; k < 6; k++)
            ops[k] = (realm_tensor_op){.kind = REALM_TENSOR_MATMUL, .out = y[i], .a = x[i], .b = w[i]};
        waiter_init(&end[i]);
        assert_int_equal(realm_tensor_submit(r[i].s, r[i].budget, ops, 6, waiter_done, &end[i], &j[i], &err), REALM_OK);
    }
    realm_tensor_budget_usage(r[1].budget, &during);
    assert_true(during.bytes - before.bytes >= 1 << 20);
    realm_backend_turn_end(r[0].b);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(waiter_wait(&end[i], &err), REALM_OK);
        realm_tensor_job_release(j[i]);
        tensor_get(y[i], 0, (uint64_t)M * N, values);
        assert_memory_equal(values, got[i], sizeof(float) * M * N);
    }
    /* No room for it: refused before anything runs. */
    realm_tensor_op op = {.kind = REALM_TENSOR_MATMUL, .out = y[1], .a = x[1], .b = w[1]};
    realm_tensor_budget_set_limit(r[1].budget, before.bytes + (1 << 20));
    assert_int_equal(tensor_try(&r[1], &op, 1, &err), REALM_E_LIMIT);
    realm_tensor_budget_set_limit(r[1].budget, 1 << 30);
    waiter_init(&end[0]);
    static realm_tensor_op many[500];
    for (size_t i = 0; i < REALM_ARRAY_LEN(many); i++) many[i] = op;
    assert_int_equal(
        realm_tensor_submit(r[1].s, r[1].budget, many, REALM_ARRAY_LEN(many), waiter_done, &end[0], &j[0], &err),
        REALM_OK);
    for (int i = 0; i < 2; i++) { /* it has begun */
        realm_backend_turn_begin(r[0].b);
        realm_backend_turn_end(r[0].b);
    }
    realm_tensor_job_cancel(j[0]);
    assert_int_equal(waiter_wait(&end[0], &err), REALM_E_CANCELLED);
    realm_tensor_job_release(j[0]);
    for (int i = 0; i < 2; i++) {
        realm_tensor_release(x[i]);
        realm_tensor_release(w[i]);
        realm_tensor_release(y[i]);
        free(got[i]);
    }
    free(values);
    tensor_run_close(&r[0]); /* joins */
    realm_tensor_budget_usage(r[1].budget, &during);
    assert_int_equal(during.bytes, 0);
    realm_tensor_budget_close(r[1].budget);
}

static void pins(void **state) {
    (void)state;
    tiny_spec spec = tiny_llama;
    spec.type = REALM_TYPE_Q8_0;
    spec.layers = 4;
    tiny_model *tiny = tiny_make(&spec);
    realm_error err = {0};
    realm_gguf *g;
    realm_model_memory need;
    realm_model_stream_stats s;
    assert_int_equal(realm_gguf_open_memory(&g, tiny->file, tiny->file_len, &err), REALM_OK);
    tensor_run r;
    tensor_run_open(&r, NULL, 2, NULL);
    assert_int_equal(realm_model_measure(r.b, g, &need, &err), REALM_OK);
    realm_model *m;
    const realm_model_options options = {.weight_budget_bytes = need.fixed_bytes + 2 * need.layer_bytes};
    if (realm_model_open(&m, r.b, g, &options, &err) != REALM_OK) model_run_fail("model", &err);
    realm_tensor *w1 = tensor_weight(m, "blk.1.ffn_up.weight"), *w2 = tensor_weight(m, "blk.2.attn_norm.weight");
    realm_tensor *x = tensor_make(&r, 1, 64), *y = tensor_make(&r, 1, 96);
    realm_tensor_op ops[3] = {{.kind = REALM_TENSOR_PIN, .a = w1},
                              {.kind = REALM_TENSOR_MATMUL, .out = y, .a = x, .b = w1},
                              {.kind = REALM_TENSOR_PIN, .a = w2}};
    tensor_do(&r, ops, 2);
    realm_model_get_stream_stats(m, &s);
    assert_int_equal(s.layers_pinned, 1);
    assert_int_equal(s.misses, 1);
    assert_int_equal(s.hits, 1);
    assert_int_equal(realm_model_layer_unpin(m, 1, &err), REALM_OK);
    /* The second pin finds no place: the list fails there, and what it had pinned is let go. */
    assert_int_equal(tensor_try(&r, ops, 3, &err), REALM_E_LIMIT);
    assert_non_null(strstr(err.text, "op 2: layer 2 cannot be pinned"));
    waiter end;
    waiter_init(&end); /* the service is past the undoing when it has done the next list */
    tensor_do(&r, &ops[1], 1);
    realm_model_get_stream_stats(m, &s);
    assert_int_equal(s.layers_pinned, 0);
    /* Nobody was told. */
    realm_tensor_job *j;
    realm_backend_turn_begin(r.b);
    assert_int_equal(realm_tensor_submit(r.s, r.budget, &ops[1], 1, waiter_done, &end, &j, &err), REALM_OK);
    realm_tensor_job *pin;
    waiter untold;
    waiter_init(&untold);
    assert_int_equal(realm_tensor_submit(r.s, r.budget, ops, 2, waiter_done, &untold, &pin, &err), REALM_OK);
    realm_tensor_job_release(pin);
    realm_backend_turn_end(r.b);
    assert_int_equal(waiter_wait(&end, &err), REALM_OK);
    realm_tensor_job_release(j);
    tensor_do(&r, &ops[1], 1);
    realm_model_get_stream_stats(m, &s);
    assert_int_equal(s.layers_pinned, 0);
    realm_tensor *const all[] = {w1, w2, x, y};
    for (size_t i = 0; i < REALM_ARRAY_LEN(all); i++) realm_tensor_release(all[i]);
    realm_tensor_service_close(r.s);
    realm_model_close(m);
    realm_tensor_budget_close(r.budget);
    realm_backend_close(r.b);
    realm_gguf_close(g);
    tiny_free(tiny);
}

/* Every allocation of the submitting thread fails once: typed, and nothing stays charged, held or busy. */
static void lack_of_memory(void **state) {
    (void)state;
    tensor_run r;
    realm_error err = {0};
    tensor_run_open(&r, NULL, 1, NULL);
    int32_t ids[2] = {0, 1};
    for (int64_t after = 0;; after++) {
        realm_tensor *x = NULL, *y = NULL;
        realm_tensor_job *j = NULL;
        waiter w;
        waiter_init(&w);
        realm_alloc_inject_failure(after, false);
        realm_status s = realm_tensor_new(r.budget, 2, (uint64_t[]){2, 8}, &x, &err);
        if (s == REALM_OK) s = realm_tensor_new(r.budget, 2, (uint64_t[]){1 << 10, 1 << 10}, &y, &err);
        realm_tensor_op op = {.kind = REALM_TENSOR_GET_ROWS, .out = x, .a = x, .u.get_rows = {.ids = ids, .n = 2}};
        op.a = x;
        realm_tensor *z = NULL;
        if (s == REALM_OK) s = realm_tensor_new(r.budget, 2, (uint64_t[]){2, 8}, &z, &err);
        op.out = z;
        if (s == REALM_OK) s = realm_tensor_submit(r.s, r.budget, &op, 1, waiter_done, &w, &j, &err);
        realm_alloc_inject_failure(-1, false);
        if (s == REALM_OK) assert_int_equal(waiter_wait(&w, &err), REALM_OK);
        realm_tensor_job_release(j);
        realm_tensor_release(x);
        realm_tensor_release(y);
        realm_tensor_release(z);
        if (s == REALM_OK) {
            assert_true(after >= 9);
            break;
        }
        assert_int_equal(s, REALM_E_NOMEM);
    }
    tensor_run_close(&r);
}

/* Mostly small and often right, now and then anything. */
static uint32_t random_number(void) {
    static const uint32_t numbers[] = {0, 1, 2, 3, 4, 8, 16, 31, 32, 64, 1u << 31, UINT32_MAX};
    return numbers[random_below(random_below(8) ? 10 : REALM_ARRAY_LEN(numbers))];
}

static float any_float(void) {
    static const float numbers[] = {1, 0.5f, 1e-5f, 10000, 0, -1, INFINITY, NAN};
    return numbers[random_below(random_below(8) ? 4 : REALM_ARRAY_LEN(numbers))];
}

/* Lists made at random are refused with an op's number or run; the sanitizers see to the rest. */
static void random_lists(void **state) {
    (void)state;
    realm_error err = {0};
    on_model on;
    open_on_model(&on);
    static const uint64_t shapes[][2] = {{1, 64}, {4, 64}, {8, 64}, {8, 32}, {4, 32}, {1, 32},
                                         {4, 1},  {4, 4},  {64, 4}, {32, 8}, {4, 96}, {4, 8}};
    static const char *const names[] = {"blk.0.attn_q.weight", "blk.1.ffn_norm.weight", "token_embd.weight",
                                        "blk.2.ffn_gate.weight", "blk.0.attn_k.weight"};
    realm_tensor *t[REALM_ARRAY_LEN(shapes) + REALM_ARRAY_LEN(names)];
    size_t n = 0;
    for (size_t i = 0; i < REALM_ARRAY_LEN(shapes); i++) t[n++] = tensor_make(&on.r, shapes[i][0], shapes[i][1]);
    for (size_t i = 0; i < REALM_ARRAY_LEN(names); i++) t[n++] = tensor_weight(on.m.m, names[i]);
    uint32_t ran = 0;
    for (uint32_t round = 0; round < 30000; round++) {
        int32_t ids[4];
        for (int i = 0; i < 4; i++) ids[i] = (int32_t)random_number();
        realm_tensor_op op = {.kind = (realm_tensor_op_kind)random_below(REALM_TENSOR_PIN)};
        realm_tensor **const operands[] = {&op.out, &op.a, &op.b, &op.c, &op.d};
        for (int i = 0; i < 5; i++)
            if (random_below(8) < (i < 2 ? 8u : 4u)) *operands[i] = t[random_below((uint32_t)n)];
        if (op.kind != REALM_TENSOR_ATTENTION && random_below(8)) op.c = op.d = NULL;
        if (random_below(4) == 0) op.out = op.a;
        if (random_below(3) == 0) op.m = random_number();
        switch (op.kind) {
        case REALM_TENSOR_GET_ROWS:
            op.u.get_rows.ids = ids;
            op.u.get_rows.n = random_below(5);
            op.u.get_rows.scale = any_float();
            break;
        case REALM_TENSOR_ROPE:
            op.u.rope.head_dim = random_number();
            op.u.rope.rope_dims = random_number();
            op.u.rope.first_pos = random_number();
            op.u.rope.base = any_float();
            op.u.rope.freq_scale = any_float();
            op.u.rope.style = (realm_rope_style)random_below(3);
            break;
        case REALM_TENSOR_ATTENTION:
            op.u.attention.n_head = random_number();
            op.u.attention.n_kv_head = random_number();
            op.u.attention.head_dim = random_number();
            if (random_below(4)) { /* q of 64 columns, k and v of 32 */
                op.u.attention.n_head = 4;
                op.u.attention.n_kv_head = 2;
                op.u.attention.head_dim = 16;
                op.out = t[random_below(3)];
                op.a = t[random_below(3)];
                op.b = t[3 + random_below(3)];
                op.c = t[3 + random_below(3)];
            }
            op.u.attention.t = random_number();
            op.u.attention.n_past = random_number();
            op.u.attention.window = random_number();
            op.u.attention.full = random_below(2);
            op.u.attention.scale = any_float();
            op.u.attention.softcap = any_float();
            break;
        case REALM_TENSOR_COPY:
            op.u.copy.row = random_number();
            op.u.copy.n_rows = random_below(8) ? random_number() : UINT64_MAX - random_number();
            op.u.copy.out_row = random_number();
            break;
        default: op.u.scale = any_float(); break;
        }
        realm_status s = tensor_try(&on.r, &op, 1, &err);
        ran += s == REALM_OK;
        if (s != REALM_OK && strncmp(err.text, "op 0", 4) != 0) model_run_fail("no op is named", &err);
    }
    print_message("%u of 30000 lists ran\n", ran);
    assert_true(ran > 300);
    for (size_t i = 0; i < n; i++) realm_tensor_release(t[i]);
    tensor_run_close(&on.r);
    model_run_close(&on.m);
    tiny_free(on.tiny);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(handles),  cmocka_unit_test(weights),        cmocka_unit_test(refused),
        cmocka_unit_test(busy),     cmocka_unit_test(cancelled),      cmocka_unit_test(stopped),
        cmocka_unit_test(rotation), cmocka_unit_test(given_up),       cmocka_unit_test(kept_apart),
        cmocka_unit_test(pins),     cmocka_unit_test(lack_of_memory), cmocka_unit_test(random_lists)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
