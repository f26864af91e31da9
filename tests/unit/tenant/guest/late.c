/* Says that it is there. Then, as the request's fields ask: uses the model of the name "model", pins the layer "layer".
 */
#include "realm_guest.h"

REALM_EXPORT(realm_main) int32_t realm_main(void) {
    char name[32], digits[8];
    uint32_t layer = 0;
    int32_t n = realm_emit(REALM_LITERAL("here"));
    if (n < 0) return n;
    n = realm_input(REALM_LITERAL("model"), name, sizeof name);
    if (n >= 0 && (n = realm_model_find(name, (size_t)n)) < 0) return n;
    if (n >= 0 && (n = realm_model_use(n)) < 0) return n;
    n = realm_input(REALM_LITERAL("layer"), digits, sizeof digits);
    if (n < 0) return 0;
    for (int32_t i = 0; i < n; i++) layer = layer * 10 + (uint32_t)(digits[i] - '0');
    return realm_memory64_load_layer(0, layer, NULL, 0);
}
