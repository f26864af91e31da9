/* Answers with the request's own prompt, a line, and a conversation that the program gives to the template itself. */
#include "realm_guest.h"
#include "realm_text.h"

static char text[16384];

static int32_t say(int32_t prompt) {
    if (prompt < 0) return prompt;
    int32_t n = realm_prompt_get_text(prompt, text, sizeof text);
    return n < 0 ? n : realm_emit(text, (size_t)n);
}

REALM_EXPORT(realm_main) int32_t realm_main(void) {
    int32_t status = say(realm_prompt_own());
    if (status < 0 || (status = realm_emit(REALM_LITERAL("\n"))) < 0) return status;
    return say(realm_prompt_chat(REALM_LITERAL("[{\"role\":\"user\",\"content\":\"mine\"}]"), NULL, 0, 0));
}
