/* tenant/host/tensor.h - inside the folder: an instance's tensors, the list it waits for, the layers it has pinned. */
#ifndef REALM_TENANT_HOST_TENSOR_H
#define REALM_TENANT_HOST_TENSOR_H

#include "tenant/host/host.h"
#include "tensor/tensor.h"

#define HOST_PINS_MAX 64u /* pinned layers of an instance, each counted as often as it was pinned */

typedef struct host_pin {
    const host_model *model;
    uint32_t layer;
} host_pin;

typedef struct host_tensor_work { /* a list under way; one at a time, since its program is suspended */
    realm_host *host;
    realm_tensor_job *job;
    realm_tensor *own[3]; /* operands that the call made for itself */
    host_pin pin;         /* what the list pins; model NULL: nothing */
    bool pinned;          /* it did, and the instance has not taken the pin over; written before `done` */
    atomic_bool done;
    realm_error error; /* code REALM_OK when it went well; written before `done` */
} host_tensor_work;

typedef struct host_tensor { /* what a handle stands for */
    realm_tensor *t;
    bool denied; /* a weight of a model that is not the tenant's own: reading it needs read_weights */
} host_tensor;

struct host_tensors { /* made with an instance's first call of the group */
    host_tensor_work work;
    host_pin pins[HOST_PINS_MAX];
    uint32_t n_pins;
};

/* The instance's state; NULL with h->error. */
host_tensors *host_tensors_of(realm_host *h);
/* True once host_tensor_start was called by this call: it was resumed because of the list, not of its model. */
bool host_tensor_started(realm_call *call);
/* Submits a list and suspends the program; or fails. */
realm_call_result host_tensor_start(realm_call *call, const realm_tensor_op *ops, size_t n, const char *what,
                                    int32_t *result);
/* When the call runs again: true when the list went well; else *state is what to return. */
bool host_tensor_done(realm_call *call, const char *what, realm_call_result *state, int32_t *result);
/* Drops the operands that a call made for itself. */
void host_tensor_forget_own(realm_host *h);
/* A weight of a model by its name in the file, which keeps the model loaded for as long as it lives. */
realm_status host_weight_open(realm_host *h, const host_model *model, const char *name, size_t len, realm_tensor **out);
/* What a call that makes a tensor ends with: its handle, or, with the tensor released, that failure. `model` NULL: of
 * no model. */
realm_call_result host_tensor_give(realm_host *h, realm_tensor *t, const host_model *model, int32_t *result);

/* weights.c: calls that copy weights. They check and charge, then one of the first two suspends the program; when
 * the call runs again host_copy_go_on moves on what has been read, until all is at `out`. */
bool host_copy_started(realm_call *call);
realm_call_result host_copy_layer(realm_call *call, const host_model *m, const realm_model_tensor *const *list,
                                  size_t n_list, uint64_t total_bytes, int32_t *result);
/* Values [first, first + n) of a weight, which were checked by realm_tensor_check_read. */
realm_call_result host_copy_values(realm_call *call, realm_tensor *t, uint64_t first, uint64_t n, int32_t *result);
realm_call_result host_copy_go_on(realm_call *call, uint64_t out, const char *what, int32_t *result);

/* The tenant stored the model itself. */
bool host_model_is_own(const host_model *model);

#endif
