/* tensor/check.c - what a program asks for, held against the operands before anything runs.
 *
 * A program's numbers are trusted in nothing: every size is compared with the tensors' own, in 64 bits, so that the
 * backend can go by the step without looking again. Tensors have memory of their own and are not views of each other,
 * so aliasing is a question of handles: an output that is also an operand is allowed where the op works in place.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "tensor/internal.h"

#define HEADS_MAX 65536u
#define HEAD_DIM_MAX 4096u
#define ATTENTION_COLS_MAX (1u << 18) /* all heads of a row: what is done at once is some positions of one row */

typedef struct checker {
    const realm_tensor_op *op;
    size_t index;
    const char *name;
    tensor_step *step;
    uint64_t m; /* rows of a to work on */
    realm_error *err;
} checker;

static realm_status bad(const checker *c, realm_status code, const char *fmt, ...) REALM_PRINTF(3, 4);
static realm_status bad(const checker *c, realm_status code, const char *fmt, ...) {
    char text[256];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return realm_error_set(c->err, code, "op %zu (%s): %s", c->index, c->name, text);
}

#define TRY(expr)                                      \
    do {                                               \
        realm_status try_status = (expr);              \
        if (try_status != REALM_OK) return try_status; \
    } while (0)

typedef unsigned long long ull;

/* A float32 tensor with `cols` columns (0: any) and at least `rows` rows. */
static realm_status values(const checker *c, const char *what, const realm_tensor *t, uint64_t rows, uint64_t cols) {
    if (!t) return bad(c, REALM_E_INVALID, "%s is missing", what);
    if (t->info.is_weight) return bad(c, REALM_E_INVALID, "%s is a weight; it must be a tensor of values", what);
    if (cols > 0 && t->info.cols != cols)
        return bad(c, REALM_E_INVALID, "%s has %llu columns, not %llu", what, (ull)t->info.cols, (ull)cols);
    if (t->info.rows < rows)
        return bad(c, REALM_E_RANGE, "%s has %llu rows, %llu are needed", what, (ull)t->info.rows, (ull)rows);
    return REALM_OK;
}

/* a, of which m rows are worked on, and out with as many. */
static realm_status in_and_out(checker *c, uint64_t out_cols) {
    TRY(values(c, "a", c->op->a, 1, 0));
    c->m = c->op->m ? c->op->m : c->op->a->info.rows;
    TRY(values(c, "a", c->op->a, c->m, 0));
    TRY(values(c, "out", c->op->out, c->m, out_cols));
    c->step->d.x = c->op->a->data;
    c->step->d.y = c->op->out->data;
    c->step->d.cols = (uint32_t)c->op->out->info.cols;
    c->step->d.m = c->m;
    return REALM_OK;
}

static realm_status apart(const checker *c, const char *what, const realm_tensor *t) {
    return t == c->op->out ? bad(c, REALM_E_INVALID, "out is also %s", what) : REALM_OK;
}

static realm_status none(const checker *c, const char *what, const realm_tensor *t) {
    return t ? bad(c, REALM_E_INVALID, "it takes no operand %s", what) : REALM_OK;
}

static realm_status need_finite(const checker *c, const char *what, float v) {
    return isfinite(v) ? REALM_OK : bad(c, REALM_E_INVALID, "%s is not finite", what);
}

/* One row of floats: a tensor's, the file's own where it is float32, or dequantised. */
static realm_status vector(const checker *c, const char *what, const realm_tensor *t, const float **out) {
    if (t->info.rows != 1) return bad(c, REALM_E_INVALID, "%s has %llu rows, not one", what, (ull)t->info.rows);
    if (!t->info.is_weight) {
        *out = t->data;
        return REALM_OK;
    }
    if (t->info.type->type == REALM_TYPE_F32) {
        *out = t->weight->file->data;
        return REALM_OK;
    }
    float *copy = realm_calloc((size_t)t->info.cols, sizeof *copy);
    if (!copy) return bad(c, REALM_E_NOMEM, "no memory for %s", what);
    realm_status s = realm_model_tensor_rows(t->weight, 0, 1, copy, c->err);
    if (s != REALM_OK) {
        realm_free(copy);
        realm_error_prefix(c->err, "op %zu (%s): %s", c->index, c->name, what);
        return s;
    }
    c->step->vector = copy;
    *out = copy;
    return REALM_OK;
}

/* ---- ops --------------------------------------------------------------------------------------------------------- */

static realm_status check_matmul(checker *c) {
    const realm_tensor *w = c->op->b;
    TRY(none(c, "c", c->op->c));
    TRY(none(c, "d", c->op->d));
    TRY(in_and_out(c, 0));
    if (!w) return bad(c, REALM_E_INVALID, "b is missing");
    const bool plain = c->op->kind == REALM_TENSOR_MATMUL_PLAIN;
    const uint64_t k = plain ? w->info.rows : w->info.cols, n = plain ? w->info.cols : w->info.rows;
    if (c->op->a->info.cols != k)
        return bad(c, REALM_E_INVALID, "a has %llu columns, b needs %llu", (ull)c->op->a->info.cols, (ull)k);
    TRY(values(c, "out", c->op->out, c->m, n));
    TRY(apart(c, "a", c->op->a));
    TRY(apart(c, "b", w));
    if (!w->info.is_weight) {
        c->step->d.kind = REALM_DIRECT_MATMUL;
        c->step->d.u.matmul.b = w->data;
        c->step->d.u.matmul.k = (uint32_t)k;
        c->step->d.u.matmul.plain = plain;
        return REALM_OK;
    }
    if (plain) return bad(c, REALM_E_INVALID, "b is a weight; those have their rows as outputs (matmul)");
    if (!(w->weight->use & REALM_WEIGHT_LINEAR))
        return bad(c, REALM_E_UNSUPPORTED, "b is not a weight that the model multiplies with");
    c->step->d.kind = REALM_DIRECT_LINEAR;
    c->step->d.u.linear = w->weight->weight;
    if (w->weight->use & REALM_WEIGHT_STREAMED) {
        c->step->model = w->model;
        c->step->layer = w->weight->layer;
    }
    return REALM_OK;
}

static realm_status check_get_rows(checker *c) {
    const realm_tensor *a = c->op->a;
    const uint32_t n = c->op->u.get_rows.n;
    TRY(none(c, "b", c->op->b));
    TRY(none(c, "c", c->op->c));
    TRY(none(c, "d", c->op->d));
    if (!a) return bad(c, REALM_E_INVALID, "a is missing");
    if (n == 0 || !c->op->u.get_rows.ids) return bad(c, REALM_E_INVALID, "no row is asked for");
    if (n > REALM_TENSOR_MAX_IDS) return bad(c, REALM_E_LIMIT, "%u rows: at most %u", n, REALM_TENSOR_MAX_IDS);
    TRY(values(c, "out", c->op->out, n, a->info.cols));
    TRY(apart(c, "a", a));
    TRY(need_finite(c, "the scale", c->op->u.get_rows.scale));
    for (uint32_t i = 0; i < n; i++)
        if (c->op->u.get_rows.ids[i] < 0 || (uint64_t)c->op->u.get_rows.ids[i] >= a->info.rows)
            return bad(c, REALM_E_RANGE, "id %u is %d; a has %llu rows", i, c->op->u.get_rows.ids[i],
                       (ull)a->info.rows);
    if (!a->info.type->dequantize)
        return bad(c, REALM_E_UNSUPPORTED, "a is of type %s, which cannot be dequantised", a->info.type->name);
    c->step->d.kind = REALM_DIRECT_ROWS;
    c->step->d.y = c->op->out->data;
    c->step->d.cols = (uint32_t)a->info.cols;
    c->step->d.u.rows.type = a->info.type;
    c->step->d.u.rows.data = a->info.is_weight ? a->weight->file->data : a->data;
    c->step->d.u.rows.ids = c->op->u.get_rows.ids;
    c->step->d.u.rows.scale = c->op->u.get_rows.scale != 0 ? c->op->u.get_rows.scale : 1.0f;
    c->step->d.m = n;
    return REALM_OK;
}

static realm_status check_rms_norm(checker *c) {
    TRY(none(c, "c", c->op->c));
    TRY(none(c, "d", c->op->d));
    TRY(in_and_out(c, c->op->a ? c->op->a->info.cols : 0));
    uint64_t len = c->op->b ? c->op->b->info.cols : c->op->a->info.cols, groups = c->op->a->info.cols / len;
    if (len * groups != c->op->a->info.cols)
        return bad(c, REALM_E_INVALID, "the %llu columns of a are no multiple of b's %llu", (ull)c->op->a->info.cols,
                   (ull)len);
    if (!isfinite(c->op->u.eps) || c->op->u.eps < 0) return bad(c, REALM_E_INVALID, "eps %g", (double)c->op->u.eps);
    if (c->op->b) {
        TRY(apart(c, "b", c->op->b));
        TRY(vector(c, "b", c->op->b, &c->step->d.u.norm.gain));
    }
    c->step->d.kind = REALM_DIRECT_NORM;
    c->step->d.u.norm.eps = c->op->u.eps;
    c->step->d.cols = (uint32_t)len;
    c->step->d.m = c->m * groups;
    return REALM_OK;
}

/* b of a's shape, or one row that is the same for all. */
static realm_status second(checker *c, const float **z, bool *one_row) {
    const realm_tensor *b = c->op->b;
    if (!b) return bad(c, REALM_E_INVALID, "b is missing");
    if (b->info.cols != c->op->a->info.cols)
        return bad(c, REALM_E_INVALID, "b has %llu columns, a %llu", (ull)b->info.cols, (ull)c->op->a->info.cols);
    *one_row = b->info.rows == 1;
    if (*one_row) {
        if (c->m > 1) TRY(apart(c, "b, which every row needs", b));
        return vector(c, "b", b, z);
    }
    TRY(values(c, "b", b, c->m, 0));
    *z = b->data;
    return REALM_OK;
}

static realm_status check_add_mul(checker *c) {
    TRY(none(c, "c", c->op->c));
    TRY(none(c, "d", c->op->d));
    TRY(in_and_out(c, c->op->a ? c->op->a->info.cols : 0));
    if (c->op->kind == REALM_TENSOR_ADD) {
        c->step->d.kind = REALM_DIRECT_ADD;
        TRY(second(c, &c->step->d.u.add.z, &c->step->d.u.add.one_row));
    } else {
        c->step->d.kind = REALM_DIRECT_MUL;
        TRY(second(c, &c->step->d.u.mul.z, &c->step->d.u.mul.one_row));
    }
    return REALM_OK;
}

static realm_status check_one(checker *c, realm_direct_kind kind) {
    TRY(none(c, "b", c->op->b));
    TRY(none(c, "c", c->op->c));
    TRY(none(c, "d", c->op->d));
    TRY(in_and_out(c, c->op->a ? c->op->a->info.cols : 0));
    c->step->d.kind = kind;
    return REALM_OK;
}

static realm_status check_act(checker *c) {
    TRY(none(c, "c", c->op->c));
    TRY(none(c, "d", c->op->d));
    TRY(in_and_out(c, c->op->a ? c->op->a->info.cols : 0));
    c->step->d.kind = REALM_DIRECT_ACT;
    c->step->d.u.act.act = c->op->kind == REALM_TENSOR_SILU ? REALM_ACT_SILU : REALM_ACT_GELU_TANH;
    if (c->op->b) {
        TRY(values(c, "b", c->op->b, c->m, c->op->a->info.cols));
        c->step->d.u.act.z = c->op->b->data;
    }
    return REALM_OK;
}

static realm_status check_argmax(checker *c) {
    TRY(none(c, "b", c->op->b));
    TRY(none(c, "c", c->op->c));
    TRY(none(c, "d", c->op->d));
    TRY(in_and_out(c, 1));
    TRY(apart(c, "a", c->op->a));
    c->step->d.kind = REALM_DIRECT_ARGMAX;
    c->step->d.cols = (uint32_t)c->op->a->info.cols;
    return REALM_OK;
}

static realm_status check_rope(checker *c) {
    const uint32_t head_dim = c->op->u.rope.head_dim;
    const uint32_t dims = c->op->u.rope.rope_dims ? c->op->u.rope.rope_dims : head_dim;
    TRY(none(c, "c", c->op->c));
    TRY(none(c, "d", c->op->d));
    TRY(in_and_out(c, c->op->a ? c->op->a->info.cols : 0));
    if (head_dim == 0 || c->op->a->info.cols % head_dim != 0)
        return bad(c, REALM_E_INVALID, "the %llu columns of a are no heads of %u", (ull)c->op->a->info.cols, head_dim);
    if (dims % 2 != 0 || dims > head_dim) return bad(c, REALM_E_INVALID, "%u of %u values to rotate", dims, head_dim);
    if (c->m > INT32_MAX || c->op->u.rope.first_pos > INT32_MAX - (uint32_t)c->m)
        return bad(c, REALM_E_RANGE, "position %u", c->op->u.rope.first_pos);
    if (!isfinite(c->op->u.rope.base) || c->op->u.rope.base <= 0)
        return bad(c, REALM_E_INVALID, "base %g", (double)c->op->u.rope.base);
    TRY(need_finite(c, "the frequency scale", c->op->u.rope.freq_scale));
    if (c->op->u.rope.style != REALM_ROPE_PAIRS && c->op->u.rope.style != REALM_ROPE_HALVES)
        return bad(c, REALM_E_INVALID, "unknown style %d", (int)c->op->u.rope.style);
    c->step->d.kind = REALM_DIRECT_ROPE;
    c->step->d.u.rope.head_dim = head_dim;
    c->step->d.u.rope.rope_dims = dims;
    c->step->d.u.rope.first_pos = c->op->u.rope.first_pos;
    c->step->d.u.rope.base = c->op->u.rope.base;
    c->step->d.u.rope.freq_scale = c->op->u.rope.freq_scale != 0 ? c->op->u.rope.freq_scale : 1.0f;
    c->step->d.u.rope.style = c->op->u.rope.style;
    if (c->op->b) {
        if (c->op->b->info.cols != dims / 2)
            return bad(c, REALM_E_INVALID, "b has %llu factors, not %u", (ull)c->op->b->info.cols, dims / 2);
        TRY(apart(c, "b", c->op->b));
        TRY(vector(c, "b", c->op->b, &c->step->d.u.rope.factors));
    }
    return REALM_OK;
}

static realm_status check_attention(checker *c) {
    const realm_tensor_op *op = c->op;
    const uint32_t n_head = op->u.attention.n_head, n_kv_head = op->u.attention.n_kv_head;
    const uint32_t head_dim = op->u.attention.head_dim;
    TRY(in_and_out(c, op->a ? op->a->info.cols : 0));
    if (n_kv_head == 0 || n_head == 0 || n_head > HEADS_MAX || n_head % n_kv_head != 0)
        return bad(c, REALM_E_INVALID, "%u heads cannot share %u key-value heads", n_head, n_kv_head);
    if (head_dim == 0 || head_dim % 2 != 0 || head_dim > HEAD_DIM_MAX)
        return bad(c, REALM_E_INVALID, "heads of %u values: must be even and at most %u", head_dim, HEAD_DIM_MAX);
    if ((uint64_t)n_head * head_dim > ATTENTION_COLS_MAX)
        return bad(c, REALM_E_LIMIT, "%u heads of %u values: at most %u values", n_head, head_dim, ATTENTION_COLS_MAX);
    TRY(values(c, "a", op->a, c->m, (uint64_t)n_head * head_dim));
    TRY(values(c, "b", op->b, 1, (uint64_t)n_kv_head * head_dim));
    const uint64_t t = op->u.attention.t ? op->u.attention.t : op->b->info.rows;
    TRY(values(c, "b", op->b, t, 0));
    TRY(values(c, "c", op->c, t, (uint64_t)n_kv_head * head_dim));
    TRY(apart(c, "a", op->a));
    TRY(apart(c, "b", op->b));
    TRY(apart(c, "c", op->c));
    if (op->u.attention.full && (op->u.attention.n_past > 0 || op->u.attention.window > 0))
        return bad(c, REALM_E_INVALID, "full attention has neither n_past nor a window");
    if (!op->u.attention.full && (op->u.attention.n_past > t || c->m > t - op->u.attention.n_past))
        return bad(c, REALM_E_RANGE, "row %llu would be at position %llu of %llu", (ull)(c->m - 1),
                   (ull)(op->u.attention.n_past + c->m - 1), (ull)t);
    TRY(need_finite(c, "the scale", op->u.attention.scale));
    TRY(need_finite(c, "the softcap", op->u.attention.softcap));
    if (op->u.attention.softcap < 0) return bad(c, REALM_E_INVALID, "softcap %g", (double)op->u.attention.softcap);
    if (op->d) {
        TRY(values(c, "d", op->d, c->m, t));
        TRY(apart(c, "d", op->d));
        c->step->d.u.attention.mask = op->d->data;
    }
    c->step->d.kind = REALM_DIRECT_ATTENTION;
    c->step->d.u.attention.k = op->b->data;
    c->step->d.u.attention.v = op->c->data;
    c->step->d.u.attention.t = (uint32_t)t;
    c->step->d.u.attention.n_head = n_head;
    c->step->d.u.attention.n_kv_head = n_kv_head;
    c->step->d.u.attention.head_dim = head_dim;
    c->step->d.u.attention.full = op->u.attention.full;
    c->step->d.u.attention.n_past = op->u.attention.n_past;
    c->step->d.u.attention.window = op->u.attention.window;
    c->step->d.u.attention.scale = op->u.attention.scale;
    c->step->d.u.attention.softcap = op->u.attention.softcap;
    return REALM_OK;
}

static realm_status check_copy(checker *c) {
    const realm_tensor_op *op = c->op;
    const uint64_t row = op->u.copy.row, n = op->u.copy.n_rows, to = op->u.copy.out_row;
    TRY(none(c, "b", op->b));
    TRY(none(c, "c", op->c));
    TRY(none(c, "d", op->d));
    TRY(values(c, "a", op->a, 1, 0));
    TRY(values(c, "out", op->out, 1, op->a->info.cols));
    if (n == 0) return bad(c, REALM_E_INVALID, "no row is to be copied");
    if (row > op->a->info.rows || n > op->a->info.rows - row)
        return bad(c, REALM_E_RANGE, "rows %llu + %llu of a, which has %llu", (ull)row, (ull)n, (ull)op->a->info.rows);
    if (to > op->out->info.rows || n > op->out->info.rows - to)
        return bad(c, REALM_E_RANGE, "rows %llu + %llu of out, which has %llu", (ull)to, (ull)n,
                   (ull)op->out->info.rows);
    if (op->a == op->out && row < to + n && to < row + n)
        return bad(c, REALM_E_INVALID, "rows %llu and %llu + %llu of one tensor overlap", (ull)row, (ull)to, (ull)n);
    const size_t cols = (size_t)op->a->info.cols;
    c->step->d.kind = REALM_DIRECT_COPY;
    c->step->d.x = op->a->data + row * cols;
    c->step->d.y = op->out->data + to * cols;
    c->step->d.cols = (uint32_t)cols;
    c->step->d.m = n;
    return REALM_OK;
}

static realm_status check_pin(checker *c) {
    const realm_tensor *a = c->op->a;
    TRY(none(c, "out", c->op->out));
    TRY(none(c, "b", c->op->b));
    TRY(none(c, "c", c->op->c));
    TRY(none(c, "d", c->op->d));
    if (!a || !a->info.is_weight || a->info.layer == REALM_LAYER_NONE)
        return bad(c, REALM_E_INVALID, "a is not a weight of a layer");
    c->step->model = a->model;
    c->step->layer = a->info.layer;
    c->step->pin = true;
    return REALM_OK;
}

static realm_status check_kind(checker *c) {
    switch (c->op->kind) {
    case REALM_TENSOR_MATMUL: c->name = "matmul"; return check_matmul(c);
    case REALM_TENSOR_MATMUL_PLAIN: c->name = "matmul plain"; return check_matmul(c);
    case REALM_TENSOR_GET_ROWS: c->name = "get rows"; return check_get_rows(c);
    case REALM_TENSOR_RMS_NORM: c->name = "rms norm"; return check_rms_norm(c);
    case REALM_TENSOR_ADD: c->name = "add"; return check_add_mul(c);
    case REALM_TENSOR_MUL: c->name = "mul"; return check_add_mul(c);
    case REALM_TENSOR_SCALE:
        c->name = "scale";
        TRY(need_finite(c, "the scale", c->op->u.scale));
        TRY(check_one(c, REALM_DIRECT_SCALE));
        c->step->d.u.scale = c->op->u.scale;
        return REALM_OK;
    case REALM_TENSOR_SILU: c->name = "silu"; return check_act(c);
    case REALM_TENSOR_GELU: c->name = "gelu"; return check_act(c);
    case REALM_TENSOR_SOFTMAX: c->name = "softmax"; return check_one(c, REALM_DIRECT_SOFTMAX);
    case REALM_TENSOR_ROPE: c->name = "rope"; return check_rope(c);
    case REALM_TENSOR_ATTENTION: c->name = "attention"; return check_attention(c);
    case REALM_TENSOR_ARGMAX: c->name = "argmax"; return check_argmax(c);
    case REALM_TENSOR_COPY: c->name = "copy"; return check_copy(c);
    case REALM_TENSOR_PIN: c->name = "pin"; return check_pin(c);
    }
    c->name = "unknown";
    return bad(c, REALM_E_INVALID, "unknown kind %d", (int)c->op->kind);
}

realm_status tensor_check(const realm_tensor_op *op, size_t index, tensor_step *step, realm_error *err) {
    *step = (tensor_step){.layer = REALM_LAYER_NONE};
    checker c = {.op = op, .index = index, .name = "", .step = step, .err = err};
    realm_status s = check_kind(&c);
    if (s != REALM_OK) {
        realm_free(step->vector);
        step->vector = NULL;
        return s;
    }
    realm_tensor *const operands[TENSOR_OPERANDS] = {op->out, op->a, op->b, op->c, op->d};
    memcpy(step->held, operands, sizeof operands);
    return REALM_OK;
}
