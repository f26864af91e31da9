/* Nothing runs here: the compiler agrees with tools/abi-gen about every constant, size and offset, for wasm32 and
 * wasm64. */
#include "realm_guest.h"

#include "gen/abi_layouts.h"

REALM_EXPORT(realm_main) int32_t realm_main(void) { return 0; }
