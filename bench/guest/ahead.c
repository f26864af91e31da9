/* Reads every token and accepts it, while the engine is at most eight tokens ahead. */
#include "realm_guest.h"

static realm_guest_event events[64];
static char text[16384];

REALM_EXPORT(realm_main) int32_t realm_main(void) {
    realm_generate_options o = {.size = sizeof o, .run_ahead = 8};
    int32_t prompt = realm_prompt_own();
    if (prompt < 0) return prompt;
    int32_t generation = realm_generate(prompt, &o, REALM_MODE_AHEAD);
    if (generation < 0) return generation;
    for (uint32_t accepted = 0;;) {
        int32_t n = realm_wait(generation, events, 64, text, sizeof text, -1);
        if (n < 0) return n;
        const realm_guest_event *last = &events[n - 1];
        bool ended = last->kind == REALM_EVENT_KIND_END;
        size_t len = last->text_at + last->text_len;
        accepted += (uint32_t)n - ended;
        int32_t status = ended ? 0 : realm_confirm(generation, accepted);
        if (status >= 0 && len) status = realm_emit(text, len);
        if (status < 0) return status;
        if (ended) return last->status;
    }
}
