/* Tries every handle number that another instance could hold, with every call that takes one; says "none" when none was
 * taken. Run alone it holds no handle itself. */
#include "realm_guest.h"

static realm_guest_event events[4];
static realm_guest_usage usage;
static char text[4096];

REALM_EXPORT(realm_main) int32_t realm_main(void) {
    uint32_t taken = 0;
    for (int32_t tag = 0; tag < 300; tag++)
        for (int32_t slot = 0; slot < 4; slot++)
            for (int32_t bits = 6; bits <= 12; bits += 3) { /* however many of them name the slot */
                int32_t h = tag << bits | slot;
                if (h == 0) continue;
                taken += realm_cancel(h) != REALM_E_INVALID;
                taken += realm_close(h) != REALM_E_INVALID;
                taken += realm_usage(h, &usage) != REALM_E_INVALID;
                taken += realm_wait(h, events, 4, text, sizeof text, 0) != REALM_E_INVALID;
                taken += realm_generate(h, NULL, REALM_MODE_EVENTS) != REALM_E_INVALID;
                taken += realm_prompt_get_text(h, text, sizeof text) != REALM_E_INVALID;
            }
    return taken ? realm_emit(REALM_LITERAL("taken")) : realm_emit(REALM_LITERAL("none")) < 0;
}
