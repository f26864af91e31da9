/* shout: answers in upper case, as it comes, and signs.
 *
 * Shows events mode: the program reads the tokens' text in batches and hands its own version to the client.
 */
#include "realm_guest.h"

static realm_guest_event events[64];
static char text[16384];

static const char SIGNATURE[] = "\n\n-- SHOUTED BY REALM";

REALM_EXPORT(realm_main) int32_t realm_main(void) {
    int32_t prompt = realm_prompt_own();
    if (prompt < 0) return prompt;
    int32_t generation = realm_generate(prompt, NULL, REALM_MODE_EVENTS);
    if (generation < 0) return generation;
    for (;;) {
        int32_t n = realm_wait(generation, events, 64, text, sizeof text, -1);
        if (n < 0) return n;
        /* The texts of a batch stand one after the other: one emit for all of them. */
        const realm_guest_event *last = &events[n - 1];
        size_t len = last->text_at + last->text_len;
        for (size_t i = 0; i < len; i++)
            if (text[i] >= 'a' && text[i] <= 'z') text[i] -= 'a' - 'A';
        int32_t status = len ? realm_emit(text, len) : 0;
        if (status < 0) return status;
        if (last->kind != REALM_EVENT_KIND_END) continue;
        if (last->status < 0) return last->status;
        status = realm_emit(REALM_LITERAL(SIGNATURE));
        return status < 0 ? status : 0;
    }
}
