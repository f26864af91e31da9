/* tensor/internal.h - what the files of this folder share.
 *
 *      tensor.c    budgets, handles, reading and writing values
 *      check.c     realm_tensor_op --> step: everything that can be refused is refused here
 *      service.c   steps --slices--> the backend, in turns; jobs, their order, their ends
 */
#ifndef REALM_TENSOR_INTERNAL_H
#define REALM_TENSOR_INTERNAL_H

#include <stdatomic.h>

#include "base/thread.h"
#include "tensor/tensor.h"

#define TENSOR_OPERANDS 5u /* out, a, b, c, d */

struct realm_tensor_budget {
    atomic_uint refs;
    _Atomic uint64_t bytes, limit_bytes;
    _Atomic uint64_t ops, device_ns; /* written under the service's lock, like the following */
    _Atomic uint32_t lists;
    /* Its lane in the service that it was first used with; under the service's lock. */
    realm_tensor_service *service;
    realm_tensor_budget *next_lane;
    realm_tensor_job *first, *last;
};

void tensor_budget_retain(realm_tensor_budget *b);

struct realm_tensor {
    atomic_uint refs;
    atomic_uint used, written; /* operands, outputs of pending steps */
    realm_tensor_info info;
    /* with values of its own */
    realm_tensor_budget *budget;
    float *data;
    bool mapped; /* data is a mapping */
    uint64_t charged;
    /* a weight */
    realm_model *model;
    const realm_model_tensor *weight;
    void (*release)(void *user);
    void *user;
};

/* A checked op. */
typedef struct tensor_step {
    realm_direct d;
    realm_direct_cut cut;
    realm_model *model; /* whose layer is needed or pinned; NULL: none */
    uint32_t layer;
    bool pin;
    realm_tensor *held[TENSOR_OPERANDS]; /* [0] is written; NULL where there is none */
    float *vector;                       /* a gain, bias or factors that had to be dequantised; owned */
} tensor_step;

/* Checks op number `index` and fills the step. Nothing is retained and only `vector` is allocated; on failure nothing.
 */
REALM_WARN_UNUSED realm_status tensor_check(const realm_tensor_op *op, size_t index, tensor_step *step,
                                            realm_error *err);

#endif
