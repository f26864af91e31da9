/* Copies weights of the model "wide" into its memory, as the request's field "op" says: the first layer as it is in the
 * file, or the values of one tensor. Emits the sum of their words. */
#include "realm_guest.h"

static uint32_t words[4u << 20];

REALM_EXPORT(realm_main) int32_t realm_main(void) {
    char op[16], digits[24];
    int32_t n = realm_input(REALM_LITERAL("op"), op, sizeof op), model = realm_model_find(REALM_LITERAL("wide"));
    if (n <= 0 || model < 0) return model < 0 ? model : n;
    if (op[0] == 'l') {
        n = realm_memory64_load_layer(model, 0, words, sizeof words);
        n = n < 0 ? n : n / 4;
    } else {
        int32_t w = realm_tensor_weight(model, REALM_LITERAL("blk.0.ffn_gate.weight"));
        realm_guest_tensor info;
        if (w < 0) return w;
        if ((n = realm_tensor_info(w, &info)) < 0) return n;
        n = realm_tensor_read(w, 0, (float *)words, (uint32_t)(info.dims[0] * info.dims[1]));
    }
    if (n < 0) return n;
    uint64_t sum = 0;
    for (int32_t i = 0; i < n; i++) sum += words[i];
    size_t at = sizeof digits;
    do digits[--at] = (char)('0' + sum % 10);
    while (sum /= 10);
    return realm_emit(digits + at, sizeof digits - at) < 0;
}
