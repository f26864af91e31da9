/* Answers with the prompt that it is given, as a program of the other kind. */
#include "realm_guest.h"

REALM_EXPORT(realm_new) int32_t realm_new(void) { return 0; }

REALM_EXPORT(generate) const char *generate(const char *prompt, size_t len, int32_t model, const void *options) {
    (void)len, (void)model, (void)options;
    return prompt;
}
