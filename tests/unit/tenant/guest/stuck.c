/* Holds a generation that never ends: it may be one token ahead, and no token is ever confirmed. Used to be cancelled.
 */
#include "realm_guest.h"

static realm_guest_event event;
static char text[4096];

REALM_EXPORT(realm_main) int32_t realm_main(void) {
    realm_generate_options o = {.size = sizeof o,
                                .set = REALM_SET_MAX_TOKENS | REALM_SET_FLAGS,
                                .max_tokens = 0,
                                .flags = REALM_GENERATE_IGNORE_END,
                                .run_ahead = 1};
    int32_t g = realm_generate(realm_prompt_own(), &o, REALM_MODE_AHEAD);
    if (g < 0) return g;
    int32_t n = realm_wait(g, &event, 1, text, sizeof text, -1);
    if (n < 0) return n;
    realm_emit(REALM_LITERAL("started"));
    n = realm_wait(g, &event, 1, text, sizeof text, -1);
    return n < 0 ? n : -1;
}
