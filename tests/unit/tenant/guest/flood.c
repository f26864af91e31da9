/* Emits a million bytes, numbered, as fast as it may. */
#include "realm_guest.h"

static char line[100001];

REALM_EXPORT(realm_main) int32_t realm_main(void) {
    for (int i = 0; i < 10; i++) {
        for (int k = 0; k < 100000; k++) line[k] = (char)('0' + i);
        int32_t n = realm_emit(line, 100000);
        if (n != 100000) return n < 0 ? n : -1;
    }
    return 0;
}
