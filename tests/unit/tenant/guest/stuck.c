/* Waits for a generation in events mode and never reads past the first token; used to be cancelled. */
#include "realm_guest.h"

static realm_guest_event event;
static char text[4096];

REALM_EXPORT(realm_main) int32_t realm_main(void) {
    int32_t p = realm_prompt_own();
    realm_generate_options o = {.size = sizeof o,
                                .set = REALM_SET_MAX_TOKENS | REALM_SET_FLAGS,
                                .max_tokens = 0,
                                .flags = REALM_GENERATE_IGNORE_END};
    int32_t g = realm_generate(p, &o, REALM_MODE_EVENTS);
    if (g < 0) return g;
    int32_t n = realm_wait(g, &event, 1, text, sizeof text, -1);
    if (n < 0) return n;
    realm_emit(REALM_LITERAL("started"));
    for (;;) {
        n = realm_wait(g, &event, 1, text, sizeof text, -1);
        if (n < 0) return n;
        if (event.kind == REALM_EVENT_KIND_END) g = realm_generate(p, &o, REALM_MODE_EVENTS);
        if (g < 0) return g;
    }
}
