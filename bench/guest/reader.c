/* A program that reads every token and hands its own text to the client: letters turned by VARIANT places. Built with
 * sixteen values of VARIANT into sixteen different programs. */
#include "realm_guest.h"

#ifndef VARIANT
#define VARIANT 0
#endif

static realm_guest_event events[64];
static char text[16384];

REALM_EXPORT(realm_main) int32_t realm_main(void) {
    int32_t prompt = realm_prompt_own();
    if (prompt < 0) return prompt;
    int32_t generation = realm_generate(prompt, NULL, REALM_MODE_EVENTS);
    if (generation < 0) return generation;
    for (;;) {
        int32_t n = realm_wait(generation, events, 64, text, sizeof text, -1);
        if (n < 0) return n;
        const realm_guest_event *last = &events[n - 1];
        size_t len = last->text_at + last->text_len;
        for (size_t i = 0; i < len; i++)
            if (text[i] >= 'a' && text[i] <= 'z') text[i] = (char)('a' + (text[i] - 'a' + VARIANT) % 26);
        int32_t status = len ? realm_emit(text, len) : 0;
        if (status < 0) return status;
        if (last->kind == REALM_EVENT_KIND_END) return last->status;
    }
}
