/* compute/cpu/cpu.h - inside the CPU backend: the team of threads that walks a plan, and the kernel table.
 *
 * The threads of the pool walk the whole op list together; inside an op they share its items (row tiles, weight panels,
 * heads) and between ops that depend on each other they meet at a barrier. So a step costs one wake-up and a barrier
 * per op (about a quarter of a microsecond), not one wake-up per op. It waits for no thread: who comes late joins where
 * the others are.
 */
#ifndef REALM_COMPUTE_CPU_CPU_H
#define REALM_COMPUTE_CPU_CPU_H

#include <stdatomic.h>

#include "compute/compute.h"

/* ---- CPU features ----------------------------------------------------------------------------------------------- */

typedef enum realm_cpu_level { REALM_CPU_SCALAR, REALM_CPU_AVX2, REALM_CPU_AVX512, REALM_CPU_VNNI } realm_cpu_level;

/* Best level that both the processor and the operating system (saved registers) support. Compiled at baseline. */
realm_cpu_level realm_cpu_detect(void);
/* Bytes of the largest cache that the first processor looks into; 0: not known. Reads a few files. */
uint64_t realm_cpu_cache_bytes(void);
const char *realm_cpu_level_name(realm_cpu_level level);

/* ---- the team --------------------------------------------------------------------------------------------------- */

typedef struct realm_team realm_team;

typedef struct realm_worker { /* one thread's view during a run */
    realm_team *team;
    uint32_t id, n;  /* this thread, threads in the team */
    uint32_t behind; /* barriers that the others have passed and this thread has not: it does nothing until then */
    void *scratch;   /* private, 64-byte aligned, scratch_bytes large; content lost between ops */
    size_t scratch_bytes;
} realm_worker;

REALM_WARN_UNUSED realm_status realm_team_open(realm_team **out, uint32_t n_threads, size_t scratch_bytes,
                                               realm_error *err);
void realm_team_close(realm_team *t);
uint32_t realm_team_size(const realm_team *t);
/* Grows every worker's scratch to at least `bytes`. Only while no run is on. On failure the old scratch stays. */
REALM_WARN_UNUSED realm_status realm_team_reserve(realm_team *t, size_t bytes, realm_error *err);
/* Runs fn on the caller, as worker 0, and on each other thread that comes while the caller is in it, perhaps on none;
 * returns when all have returned. So fn shares its work by claims alone, never by the number of a worker. What a thread
 * does outside of a loop of claims it does even while it is behind the others: it must not read there what they may be
 * writing (realm_worker_is_behind). */
void realm_team_run(realm_team *t, void (*fn)(realm_worker *w, void *user), void *user);
/* Hands fn(user) to a thread that spins for the next run; false, and nothing is done, when none does or a run is on. A
 * run that begins meanwhile goes on without that thread. */
bool realm_team_aside(realm_team *t, void (*fn)(void *user), void *user);
/* Every thread that has joined waits until all of them have come. Spins first, then sleeps. */
void realm_worker_barrier(realm_worker *w);
static inline bool realm_worker_is_behind(const realm_worker *w) { return w->behind > 0; }
/* Dynamic sharing of n items: each call hands out the next at most `grain` of them as [*begin, *end); false when none
 * is left. Every worker must call it until false, for the same (n, grain), and there must be a barrier
 * between two such loops (realm_worker_barrier resets the counter). */
bool realm_worker_claim(realm_worker *w, uint32_t n, uint32_t grain, uint32_t *begin, uint32_t *end);

/* ---- memory of packed weights, slab.c ------------------------------------------------------------------------------
 * One thread at a time. What is taken is zeroed, page-aligned, and not moved until it is given back. */
typedef struct realm_slab realm_slab;
realm_slab *realm_slab_open(void); /* NULL without memory */
void realm_slab_close(realm_slab *s);
void *realm_slab_take(realm_slab *s, size_t bytes); /* NULL without memory */
void realm_slab_give(realm_slab *s, void *p);       /* NULL-safe */
/* The one that belongs to a team, for the thread that runs the team; closed with it. */
realm_slab *realm_team_slab(realm_team *t);

typedef struct realm_cpu_kernels realm_cpu_kernels; /* kernels.h: filled by ref, then overwritten level by level */

/* ---- weights ---------------------------------------------------------------------------------------------------- */

/* Packed panels of REALM_PANEL_ROWS rows interleaved for the kernels (pack.h), the file's own rows for look-up, or a
 * dequantised vector, as the use asked. */
#define REALM_PANEL_ROWS 16u

struct realm_weight {
    const realm_type_info *type;
    uint64_t rows, cols;
    unsigned use;
    const void *raw;             /* the file's layout (borrowed), for ROWS and STREAMED */
    struct realm_packed *packed; /* for LINEAR (owned), pack.h */
    float *vector;               /* for VECTOR (owned, 64-byte aligned) */
};

/* ---- LINEAR, in linear.c: called by every worker of the team; returns after its last barrier ----------------------
 * x: (n_rows, cols) float32, or gathered through `gather` (n_rows indices into x's rows). y[i]: (n_rows, rows_i). Rows
 * that are parts of longer ones stand x_stride and y_stride floats apart. */
typedef struct realm_linear_args {
    const float *x;
    const uint32_t *gather;    /* or NULL */
    size_t x_stride, y_stride; /* 0: cols, rows_i */
    uint32_t n_rows;
    const float *gain; /* or NULL */
    float eps;
    uint32_t n_weights;
    const realm_weight *w[REALM_OP_MAX_WEIGHTS];
    const float *bias[REALM_OP_MAX_WEIGHTS];
    float *y[REALM_OP_MAX_WEIGHTS];
    realm_epilogue epilogue;
    realm_act act;
    bool pass_by;    /* the weights are not in the caches and shall not be: a step reads more than those hold */
    void *quantized; /* shared by the team: realm_linear_quantized_bytes(max rows, cols) bytes, 64-byte aligned */
} realm_linear_args;

size_t realm_linear_quantized_bytes(uint32_t n_rows, uint64_t cols);
/* Private scratch that a worker needs for this op at most. */
size_t realm_linear_scratch_bytes(uint64_t max_cols);
void realm_cpu_linear(realm_worker *w, const realm_cpu_kernels *k, const realm_linear_args *a);

/* The shape of a packed weight, without panels. NULL packed and REALM_E_UNSUPPORTED for a type without kernels. */
REALM_WARN_UNUSED realm_status realm_cpu_pack_shape(const realm_weight_desc *desc, struct realm_packed **out,
                                                    realm_error *err);
/* Repacks rows in the file's layout into `memory` (realm_cpu_packed_bytes, page-aligned), which becomes the weight's
 * panels; splits the work over the team, or without one does it on the calling thread. */
void realm_cpu_pack_into(realm_team *team, struct realm_packed *p, const void *data, void *memory);
/* The same of a float32 shape into its panels, from rows that stand `stride` floats apart, or, with `columns`, from the
 * transpose, whose rows (one per input) do. */
void realm_cpu_pack_floats(realm_team *team, struct realm_packed *p, const float *data, size_t stride, bool columns);
/* Shape and panels, in memory of the weight's own. */
REALM_WARN_UNUSED realm_status realm_cpu_pack(realm_team *team, const realm_weight_desc *desc,
                                              struct realm_packed **out, realm_error *err);
void realm_cpu_unpack(struct realm_packed *p);
uint64_t realm_cpu_packed_bytes(const struct realm_packed *p);

#endif
