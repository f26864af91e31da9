/* The default program: what a tenant has until it brings its own.
 *
 * The request's own prompt and parameters, tokens straight to the client. The program sleeps from the start of the
 * generation to its end, so it costs nothing per token.
 */
#include "realm_guest.h"

REALM_EXPORT(realm_main) int32_t realm_main(void) {
    realm_guest_event end;
    int32_t prompt = realm_prompt_own();
    if (prompt < 0) return prompt;
    int32_t generation = realm_generate(prompt, NULL, REALM_MODE_PIPE);
    if (generation < 0) return generation;
    int32_t n = realm_wait(generation, &end, 1, NULL, 0, -1);
    if (n < 0) return n;
    return end.status;
}
