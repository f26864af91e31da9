/* Decides on every token itself: one forward pass, one token drawn from its distribution, and so on. */
#include "realm_guest.h"

static realm_guest_event event;
static int32_t ids[4096];
static char text[256], number[16];

static uint32_t tokens_wanted(void) {
    uint32_t n = 0;
    int32_t len = realm_input(REALM_LITERAL("max_tokens"), number, sizeof number);
    for (int32_t i = 0; i < len; i++) n = n * 10 + (uint32_t)(number[i] - '0');
    return n;
}

REALM_EXPORT(realm_main) int32_t realm_main(void) {
    int32_t prompt = realm_prompt_own(), context = realm_context_new();
    if (prompt < 0) return prompt;
    if (context < 0) return context;
    int32_t n = realm_prompt_get_tokens(prompt, ids, 4096);
    if (n < 0) return n;
    int32_t pass = realm_forward(context, ids, (size_t)n, 1, 0);
    for (uint32_t left = tokens_wanted(); left > 0; left--) {
        if (pass < 0) return pass;
        int32_t status = realm_wait(pass, &event, 1, text, sizeof text, -1);
        if (status < 0) return status;
        if (event.status < 0) return event.status;
        if ((ids[0] = realm_logits_sample(pass, 0, 0, NULL)) < 0) return ids[0];
        realm_close(pass);
        if (left > 1) pass = realm_forward(context, ids, 1, 1, 0); /* first: it is computed while the rest is done */
        int32_t len = realm_token_piece(ids[0], 0, text, sizeof text);
        status = len < 0 ? len : realm_stream_token(ids[0], text, (size_t)len);
        if (status < 0 && status != REALM_E_FORMAT) return status; /* half a character is shown by nobody here */
    }
    return 0;
}
