/* tenant/abi.h - the one table of what programs can call.
 *
 * From it come the import table of both modules (`realm` with 32-bit and `realm64` with 64-bit pointers and lengths),
 * the declarations of the functions behind it, and the check that docs/abi.md and guest/realm_guest.h list the same.
 * Constants and structures are in include/realm/abi.h.
 */
#ifndef REALM_TENANT_ABI_H
#define REALM_TENANT_ABI_H

#include "realm/abi.h"
#include "sandbox/sandbox.h"

/* X(name, parameters, flags): letters of realm_import.params; every call returns an i32. OFF_FIBER for what runs a
 * parser, a template or a tokenizer, or submits to the engine. */
#define REALM_ABI_CALLS(X)                                   \
    X(abi_version, "", 0)                                    \
    X(limits_get, "pp", 0)                                   \
    X(last_error, "pp", 0)                                   \
    X(log, "ipp", 0)                                         \
    X(clock_ms, "ip", 0)                                     \
    X(random, "pp", 0)                                       \
    X(input, "pppp", REALM_IMPORT_OFF_FIBER)                 \
    X(emit, "pp", REALM_IMPORT_SUSPENDS)                     \
    X(finish, "i", 0)                                        \
    X(encode, "ppipp", REALM_IMPORT_OFF_FIBER)               \
    X(decode, "ppipp", REALM_IMPORT_OFF_FIBER)               \
    X(token_piece, "iipp", 0)                                \
    X(prompt_own, "", REALM_IMPORT_OFF_FIBER)                \
    X(prompt_chat, "ppppi", REALM_IMPORT_OFF_FIBER)          \
    X(prompt_text, "ppi", REALM_IMPORT_OFF_FIBER)            \
    X(prompt_tokens, "pp", REALM_IMPORT_OFF_FIBER)           \
    X(prompt_get_text, "ipp", REALM_IMPORT_OFF_FIBER)        \
    X(prompt_get_tokens, "ipp", 0)                           \
    X(generate, "ipi", REALM_IMPORT_OFF_FIBER)               \
    X(wait, "ippppi", REALM_IMPORT_SUSPENDS)                 \
    X(usage, "ip", 0)                                        \
    X(cancel, "i", 0)                                        \
    X(close, "i", REALM_IMPORT_OFF_FIBER)                    \
    X(realm_host_generate, "ippppp", REALM_IMPORT_OFF_FIBER) \
    X(realm_stream_token, "ipp", REALM_IMPORT_SUSPENDS)

#define REALM_ABI_DECLARE(name, params, flags) \
    realm_call_result host_##name(realm_call *call, const uint64_t *args, int32_t *result);
REALM_ABI_CALLS(REALM_ABI_DECLARE)
#undef REALM_ABI_DECLARE

#endif
