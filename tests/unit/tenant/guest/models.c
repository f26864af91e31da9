/* One operation on stored models, as the fields "op", "id" and "image" (hex) of the request say. */
#include "realm_guest.h"

static char hex[12u << 20], image[6u << 20], text[256];

static int32_t number(const char *name) {
    char digits[16];
    int32_t n = realm_input(name, realm_strlen(name), digits, sizeof digits), v = 0;
    for (int32_t i = 0; i < n; i++) v = v * 10 + digits[i] - '0';
    return v;
}

static int nibble(char c) { return c <= '9' ? c - '0' : c - 'a' + 10; }

static int32_t store(int32_t id) {
    int32_t n = realm_input(REALM_LITERAL("image"), hex, sizeof hex);
    if (n < 0) return n;
    for (int32_t i = 0; i < n / 2; i++) image[i] = (char)(nibble(hex[2 * i]) << 4 | nibble(hex[2 * i + 1]));
    n = realm_store_model(image, (size_t)n / 2, id);
    return n < 0 ? n : 0;
}

static int32_t run(int32_t id) {
    realm_generate_options o = {.size = sizeof o,
                                .set = REALM_SET_MAX_TOKENS | REALM_SET_FLAGS,
                                .max_tokens = 8,
                                .flags = REALM_GENERATE_IGNORE_END};
    int32_t n = realm_host_generate(id, REALM_LITERAL("abc abc"), &o, text, sizeof text);
    if (n >= 0) realm_emit(text, (size_t)n);
    return n < 0 ? n : 0;
}

/* All of the models 1 .. id at once. */
static int32_t hold(int32_t id) {
    for (int32_t i = 1; i <= id; i++) {
        int32_t n = realm_model_use(i);
        if (n < 0) return n;
    }
    return 0;
}

REALM_EXPORT(realm_main) int32_t realm_main(void) {
    char op[8];
    int32_t n = realm_input(REALM_LITERAL("op"), op, sizeof op), id = number("id");
    if (n < 0) return n;
    switch (op[0]) {
    case 's': return store(id);
    case 'r': return run(id);
    case 'h': return hold(id);
    case 'd': return realm_remove_model(id);
    default: return -1;
    }
}
