/* Any bytes as a module: the sections are read or refused with one line of text. Nothing is compiled. */
#include <stdlib.h>
#include <string.h>

#include "sandbox/module.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const realm_import IMPORTS[] = {{"t", "add", "ii", false, 0, NULL, 0},
                                       {"t", "wait", "i", false, 0, NULL, 0},
                                       {"t64", "touch", "pp", true, 0, NULL, 0}};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    realm_module m;
    realm_arena arena;
    realm_error err = {0};
    realm_arena_init(&arena, 64u << 20);
    realm_status st = realm_module_read(&m, &arena, data, size, IMPORTS, REALM_ARRAY_LEN(IMPORTS), 64u << 20, 1, &err);
    if (st && (!err.text[0] || strchr(err.text, '\n'))) abort(); /* a refusal says why, in one line */
    for (size_t i = 0; !st && i < m.n_imports; i++)
        if (!m.imports[i].module || !m.imports[i].name || !m.imports[i].type) abort();
    for (size_t i = 0; !st && i < m.n_exports; i++)
        if (!m.exports[i].name || !m.exports[i].type) abort();
    realm_arena_release(&arena);
    return 0;
}
