/* The specification's pair: realm_new and generate, over realm_host_generate. */
#include "realm_guest.h"

static char prompt[1024], answer[2048];

REALM_EXPORT(realm_new) int32_t realm_new(void) { return 0; }

REALM_EXPORT(realm_alloc) void *realm_alloc(size_t len) { return len <= sizeof prompt ? prompt : NULL; }

REALM_EXPORT(generate)
const char *generate(const char *text, size_t len, int32_t model, const realm_generate_options *options) {
    static const char HEAD[] = "answer:";
    for (size_t i = 0; i < sizeof HEAD - 1; i++) answer[i] = HEAD[i];
    int32_t n = realm_host_generate(model, text, len, options, answer + sizeof HEAD - 1, sizeof answer - sizeof HEAD);
    if (n < 0) return NULL;
    answer[sizeof HEAD - 1 + (size_t)n] = 0;
    return answer;
}
