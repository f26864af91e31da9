/* tenant/host/abi_nn.h - the table of wasi-nn (`wasi_ephemeral_nn`), with the calls that runtimes with a GGML backend
 * add.
 *
 * Signatures: the witx file of wasi-nn, and the imports of the published crates wasi-nn and wasmedge-wasi-nn.
 */
#ifndef REALM_TENANT_ABI_NN_H
#define REALM_TENANT_ABI_NN_H

#include "sandbox/sandbox.h"

/* X(name, parameters, flags): each returns an i32, 0 or an error of wasi-nn. */
#define REALM_NN_CALLS(X)                                        \
    X(load, "ppiip", 0)                                          \
    X(load_by_name, "ppp", REALM_IMPORT_SUSPENDS)                \
    X(load_by_name_with_config, "ppppp", REALM_IMPORT_OFF_FIBER) \
    X(init_execution_context, "ip", REALM_IMPORT_SUSPENDS)       \
    X(set_input, "iip", REALM_IMPORT_OFF_FIBER)                  \
    X(compute, "i", REALM_IMPORT_OFF_FIBER)                      \
    X(compute_single, "i", REALM_IMPORT_OFF_FIBER)               \
    X(get_output, "iippp", 0)                                    \
    X(get_output_single, "iippp", 0)                             \
    X(fini_single, "i", REALM_IMPORT_OFF_FIBER)                  \
    X(finalize_execution_context, "i", REALM_IMPORT_OFF_FIBER)   \
    X(unload, "i", REALM_IMPORT_OFF_FIBER)

#define REALM_NN_DECLARE(name, params, flags) \
    realm_call_result nn_##name(realm_call *call, const uint64_t *args, int32_t *result);
REALM_NN_CALLS(REALM_NN_DECLARE)
#undef REALM_NN_DECLARE

#endif
