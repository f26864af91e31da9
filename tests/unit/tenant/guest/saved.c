/* A context kept between requests: field "text" says "save", "open" or "drop". Opening says how many tokens it has and
 * goes on from there. */
#include "realm_guest.h"

static char op[16], text[512];

REALM_EXPORT(realm_main) int32_t realm_main(void) {
    int32_t n = realm_input(REALM_LITERAL("text"), op, sizeof op), c;
    if (n < 0) return n;
    if (op[0] == 'd') return realm_context_drop(REALM_LITERAL("kept"));
    if (op[0] == 's') {
        int32_t p = realm_prompt_own();
        realm_guest_event e;
        if ((c = realm_context_new()) < 0) return c;
        if ((n = realm_context_append_prompt(c, p)) < 0) return n;
        int32_t f = realm_forward(c, NULL, 0, 1, 0);
        if ((n = realm_wait(f, &e, 1, NULL, 0, -1)) < 0) return n;
        return realm_context_save(c, REALM_LITERAL("kept"));
    }
    realm_generate_options o = {.size = sizeof o,
                                .set = REALM_SET_MAX_TOKENS | REALM_SET_FLAGS | REALM_SET_CONTEXT,
                                .max_tokens = 16,
                                .flags = REALM_GENERATE_IGNORE_END};
    if ((c = realm_context_open(REALM_LITERAL("kept"))) < 0) return c;
    o.context = c;
    n = realm_generate(0, &o, REALM_MODE_PIPE);
    if (n < 0) return n;
    realm_guest_event e;
    n = realm_wait(n, &e, 1, text, sizeof text, -1);
    return n < 0 ? n : 0;
}
