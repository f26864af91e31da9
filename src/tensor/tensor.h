/* tensor/tensor.h - tensors by handle, and the service that computes with them: what programs that write their own
 * forward pass call.
 *
 * A tensor is a reference counted handle on host data: float32 values of its own, charged to a budget, or a weight of a
 * model by its name in the file, which is not copied. Ops are submitted as lists and run in order by the service's
 * thread, which takes turns on the backend with the engines, a few milliseconds at a time, and serves the budgets that
 * have something to do in rotation: one tenant's long list holds up neither steps nor other tenants.
 *
 *      program --submit(list)--> checked whole --> [budget's queue] --slice--> backend turn --slice--> ... --> on_done
 *
 * A list is checked completely before anything of it runs: kinds, shapes, ranges, aliasing; the error names op and
 * operand ("op 3 (matmul): a has 64 columns, the weight 576"). What runs then can only fail by a lack of memory, the
 * device, a layer that does not fit, or because it was cancelled; the ops before the one that failed are done, it and
 * those behind it may have written part of their outputs.
 *
 * Numerics: the ops are the plan's (compute.h: same kernels, activations quantised for quantised weights, K and V
 * rounded to half), so that a forward pass written with them gives the engine's tokens; each row of a result depends on
 * its own row of the inputs alone, whatever is in the same op.
 *
 * Threads: all functions any thread. Submit, read and write of one tensor are for one thread at a time (an instance is
 * one); while a list that uses a tensor is pending, writing it is REALM_E_BUSY, and so is reading one that the list
 * writes.
 */
#ifndef REALM_TENSOR_TENSOR_H
#define REALM_TENSOR_TENSOR_H

#include "base/base.h"
#include "compute/compute.h"
#include "model/model.h"

#define REALM_TENSOR_MAX_DIMS 4u
#define REALM_TENSOR_MAX_OPS 4096u  /* of one list */
#define REALM_TENSOR_MAX_IDS 65536u /* of one GET_ROWS */
#define REALM_TENSOR_MAX_JOBS 1024u /* lists pending in a service; past it submit answers REALM_E_BUSY */
#define REALM_TENSOR_MAX_ROWS (1u << 24)
#define REALM_TENSOR_MAX_COLS (1u << 24)

/* ---- budgets ----------------------------------------------------------------------------------------------------- */

/* Bounds the memory of the tensors that are charged to it (one per tenant), and is whom the service is fair to.
 * Reference counted: tensors and pending lists hold it. */
typedef struct realm_tensor_budget realm_tensor_budget;

typedef struct realm_tensor_usage {
    uint64_t bytes, limit_bytes;
    uint64_t ops;       /* done so far */
    uint64_t device_ns; /* time its ops held the device so far */
    uint32_t lists;     /* queued or running now */
} realm_tensor_usage;

/* With one reference, the caller's. REALM_E_NOMEM. */
REALM_WARN_UNUSED realm_status realm_tensor_budget_open(uint64_t limit_bytes, realm_tensor_budget **out,
                                                        realm_error *err);
void realm_tensor_budget_close(realm_tensor_budget *b); /* drops the caller's reference; NULL-safe */
/* A lower limit takes nothing away; it holds for what comes. */
void realm_tensor_budget_set_limit(realm_tensor_budget *b, uint64_t limit_bytes);
void realm_tensor_budget_usage(realm_tensor_budget *b, realm_tensor_usage *out);
/* For memory that is no tensor's but counts as one. REALM_E_LIMIT, and nothing is charged, when it does not fit; `what`
 * begins the text. */
REALM_WARN_UNUSED realm_status realm_tensor_budget_charge(realm_tensor_budget *b, uint64_t bytes, const char *what,
                                                          realm_error *err);
void realm_tensor_budget_refund(realm_tensor_budget *b, uint64_t bytes);

/* ---- tensors ----------------------------------------------------------------------------------------------------- */

typedef struct realm_tensor realm_tensor;

/* dims[n - 1] is the fastest (C order): a matrix is (rows, cols). Ops see a tensor as rows of dims[n - 1] values. */
typedef struct realm_tensor_info {
    uint32_t n_dims;
    uint64_t dims[REALM_TENSOR_MAX_DIMS]; /* unused ones are 1 */
    uint64_t rows, cols;                  /* cols = dims[n_dims - 1], rows = the product of the others */
    const realm_type_info *type;          /* F32 but for weights */
    uint64_t bytes;                       /* of the data, in `type` */
    bool is_weight;
    uint32_t layer; /* of a weight; else REALM_LAYER_NONE */
} realm_tensor_info;

/* Float32 zeros. REALM_E_RANGE for sizes that are 0, too many or too large, REALM_E_LIMIT past the budget (the text
 * says how much is left), REALM_E_NOMEM. The caller has one reference. */
REALM_WARN_UNUSED realm_status realm_tensor_new(realm_tensor_budget *b, uint32_t n_dims, const uint64_t *dims,
                                                realm_tensor **out, realm_error *err);
/* A weight of a model, by its name in the file (`name` need not end with a NUL); takes no budget. The model stays open
 * while the tensor lives: `release` (may be NULL) is called with `user` when the last reference is dropped, on whatever
 * thread that happens, so that the caller can hold the model that long. On failure it is not called.
 * REALM_E_NOT_FOUND names the tensor. */
REALM_WARN_UNUSED realm_status realm_tensor_of_weight(realm_model *m, const char *name, size_t len,
                                                      void (*release)(void *user), void *user, realm_tensor **out,
                                                      realm_error *err);
realm_tensor *realm_tensor_retain(realm_tensor *t); /* returns t */
void realm_tensor_release(realm_tensor *t);         /* NULL-safe */
void realm_tensor_get_info(const realm_tensor *t, realm_tensor_info *out);

/* Values [first, first + n) in C order. Of a weight they are dequantised from the file and must be whole rows.
 * REALM_E_RANGE outside the tensor or within a row of a weight; REALM_E_BUSY while a pending list writes it;
 * REALM_E_UNSUPPORTED for a type that cannot be dequantised. */
REALM_WARN_UNUSED realm_status realm_tensor_read(const realm_tensor *t, uint64_t first, uint64_t n, float *out,
                                                 realm_error *err);
/* Whether these are values that can be read, without reading them: of ranges and rows. */
REALM_WARN_UNUSED realm_status realm_tensor_check_read(const realm_tensor *t, uint64_t first, uint64_t n,
                                                       realm_error *err);
/* REALM_E_INVALID for a weight, REALM_E_RANGE outside, REALM_E_BUSY while a pending list uses it. */
REALM_WARN_UNUSED realm_status realm_tensor_write(realm_tensor *t, uint64_t first, uint64_t n, const float *values,
                                                  realm_error *err);

/* ---- ops --------------------------------------------------------------------------------------------------------- */

/* Shapes as (rows, cols) of realm_tensor_info. `out`, and every operand but weights, is a float32 tensor. In place
 * means that out may be that operand; otherwise they must differ. Which operands an op has: a, b, c, d in the order
 * below. */
typedef enum realm_tensor_op_kind {
    /* out(m, n) = a(m, k) b(n, k)^T. b: a weight of a layer or the output (quantised or float), or a float32 tensor
     * (REALM_DIRECT_SUM inputs at a time). The token embedding too where it is also the output. */
    REALM_TENSOR_MATMUL,
    /* out(m, n) = a(m, k) b(k, n), b a float32 tensor */
    REALM_TENSOR_MATMUL_PLAIN,
    /* out(m, cols) = rows ids[0..m) of a (a weight or a float32 tensor), times `scale` (0 counts as 1) */
    REALM_TENSOR_GET_ROWS,
    /* out = a / sqrt(mean(a^2) + eps) * b over groups of b's length, which divides a's cols (the cols themselves, or a
     * head). b: a weight of one row, or a float32 tensor of one row. In place. */
    REALM_TENSOR_RMS_NORM,
    /* out = a + b, out = a * b. b: a's shape, or one row (also a weight of one row: a bias). In place a, and b when of
     * a's shape. */
    REALM_TENSOR_ADD,
    REALM_TENSOR_MUL,
    /* out = a * scale. In place. */
    REALM_TENSOR_SCALE,
    /* out = act(a), times b where given: a SwiGLU or GeGLU is one op. x / (1 + exp(-x)); the tanh approximation. In
     * place a or b. */
    REALM_TENSOR_SILU,
    REALM_TENSOR_GELU,
    /* Over each row. In place. */
    REALM_TENSOR_SOFTMAX,
    /* Rotates each head of a (m, heads * head_dim): row i is at position first_pos + i. b: NULL or the frequency
     * factors (rope_dims / 2), a weight or a tensor. In place. */
    REALM_TENSOR_ROPE,
    /* out(m, n_head * head_dim) from q = a (m, n_head * head_dim), k = b and v = c (t or more rows, n_kv_head *
     * head_dim). Row i sees positions 0 .. n_past + i (of those the last `window`, when given), with `full` all t. d:
     * NULL or a mask (m, t), added to the scores; -infinity hides. */
    REALM_TENSOR_ATTENTION,
    /* out(m, 1) = index of the greatest value of each row of a(m, cols), the first of equals */
    REALM_TENSOR_ARGMAX,
    /* rows [row, row + n_rows) of a to rows [out_row, ...) of out, same cols: how a program keeps its own KV */
    REALM_TENSOR_COPY,
    /* Brings the layer of a weight a in and pins it (realm_model_layer_pin); undone unless the list ends with REALM_OK
     * and on_done was told so. No out. */
    REALM_TENSOR_PIN
} realm_tensor_op_kind;

typedef struct realm_tensor_op {
    realm_tensor_op_kind kind;
    realm_tensor *out;
    realm_tensor *a, *b, *c, *d;
    /* Work on the first `m` rows of a (and out) only; 0: all. out may have more rows than are written. */
    uint64_t m;
    union {
        struct {
            const int32_t *ids; /* copied; each within a's rows */
            uint32_t n;
            float scale;
        } get_rows;
        float eps;   /* RMS_NORM */
        float scale; /* SCALE */
        struct {
            uint32_t head_dim, rope_dims; /* rope_dims 0: head_dim */
            uint32_t first_pos;
            float base, freq_scale; /* freq_scale 0 counts as 1 */
            realm_rope_style style;
        } rope;
        struct {
            uint32_t n_head, n_kv_head, head_dim;
            uint32_t t; /* positions of k and v; 0: all their rows */
            uint32_t n_past;
            uint32_t window; /* 0: none */
            bool full;
            float scale, softcap; /* softcap 0: none */
        } attention;
        struct {
            uint64_t row, n_rows, out_row;
        } copy;
    } u;
} realm_tensor_op;

/* ---- the service ------------------------------------------------------------------------------------------------- */

typedef struct realm_tensor_service realm_tensor_service;
typedef struct realm_tensor_job realm_tensor_job;

/* One thread beside the backend's. The backend outlives the service. */
REALM_WARN_UNUSED realm_status realm_tensor_service_open(realm_backend *b, realm_tensor_service **out,
                                                         realm_error *err);
/* Cancels what is pending (on_done is called) and joins the thread: slices that are under way are finished and counted,
 * and none comes after them. Its usage can still be asked. From the thread that closes the service. */
void realm_tensor_service_stop(realm_tensor_service *s);
/* Stops and frees it. Jobs must have been released before. */
void realm_tensor_service_close(realm_tensor_service *s); /* NULL-safe */
/* What the service did since it was opened (bytes are 0), and each of the given budgets, as of one moment: summed over
 * all budgets that were used with it they are equal (the ledger's check). */
void realm_tensor_service_usage(realm_tensor_service *s, realm_tensor_usage *total, realm_tensor_budget *const *budgets,
                                size_t n, realm_tensor_usage *each);

/* Called once for every list that was taken, on the service's thread: status, and for a failure its text. Must not
 * block nor release the job. */
typedef void (*realm_tensor_done)(void *user, realm_status status, const realm_error *err);

/* Checks and queues a list; what it takes while pending is charged to the budget, too: a few hundred bytes per op, and
 * for products with float32 tensors and attention a few MiB (realm_direct_cut), once for the list. Lists of one budget
 * run in the order submitted. Tensors are retained until it ends, ids copied. REALM_E_INVALID, _RANGE and _UNSUPPORTED
 * name op and operand; REALM_E_LIMIT: too many ops or ids; REALM_E_BUSY: the service has too many lists;
 * REALM_E_INVALID also for a budget that was used with another service. On failure nothing was queued and on_done is
 * not called. *out is the caller's to release. */
REALM_WARN_UNUSED realm_status realm_tensor_submit(realm_tensor_service *s, realm_tensor_budget *budget,
                                                   const realm_tensor_op *ops, size_t n, realm_tensor_done on_done,
                                                   void *user, realm_tensor_job **out, realm_error *err);
/* Stops it before its next slice; on_done comes with REALM_E_CANCELLED unless it was done already. */
void realm_tensor_job_cancel(realm_tensor_job *j);
/* Cancels if still pending and drops the caller's hold: after it returns on_done is not running and is not called any
 * more. Not from inside on_done. NULL-safe. */
void realm_tensor_job_release(realm_tensor_job *j);

#endif
