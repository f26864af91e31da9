/* sandbox/module.h - inside the folder: what a module's sections say, read before anything is compiled. */
#ifndef REALM_SANDBOX_MODULE_H
#define REALM_SANDBOX_MODULE_H

#include "base/arena.h"
#include "sandbox/sandbox.h"

#define REALM_MODULE_TYPES_MAX 10000u
#define REALM_MODULE_NAME_MAX 1024u
#define REALM_MODULE_VALUES_MAX 64u /* parameters, and results, of a function type */
#define REALM_WASM_PAGE 65536u

/* The ABI version that a module was built for stands in this custom section as four bytes, little end first:
 * major << 16 | minor. A module without it is taken to be of major version 1. */
#define REALM_ABI_SECTION "realm.abi"

typedef struct realm_module {
    realm_program_kind kind;
    bool memory64;
    bool has_init;                               /* exports _initialize(), called before the entry point */
    bool has_alloc;                              /* exports realm_alloc(len) -> ptr */
    uint64_t memory_min_pages, memory_max_pages; /* max 0: none declared */
    uint32_t n_functions;
    uint32_t abi; /* 0: not stated */
    realm_program_item *imports, *exports;
    size_t n_imports, n_exports;
} realm_module;

/* Reads the sections of `wasm`, checks them against the limits of sandbox.h and the import table, finds the entry
 * points. Everything in `out` is in `arena`. Instructions are not looked at: validating them is the compiler's work. */
REALM_WARN_UNUSED realm_status realm_module_read(realm_module *out, realm_arena *arena, const void *wasm, size_t len,
                                                 const realm_import *imports, size_t n_imports,
                                                 uint64_t max_memory_bytes, uint32_t abi_major, realm_error *err);

#endif
