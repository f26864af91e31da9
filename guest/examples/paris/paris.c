/* paris: the smallest program that asks the model something: one question in, one answer out, whatever the client says.
 *
 * realm_host_generate is a whole generation in one call. While it runs the program sleeps on the host, and the batch is
 * everybody's.
 */
#include "realm_guest.h"

static char answer[4096];

REALM_EXPORT(realm_main) int32_t realm_main(void) {
    realm_generate_options options = {.size = sizeof options,
                                      .set = REALM_SET_MAX_TOKENS | REALM_SET_TEMPERATURE,
                                      .max_tokens = 32, /* and temperature 0 */
                                      .flags = REALM_GENERATE_CHAT};
    int32_t n = realm_host_generate(0, REALM_LITERAL("What is the capital of France? Answer in one sentence."),
                                    &options, answer, sizeof answer);
    return n < 0 ? n : realm_emit(answer, (size_t)n);
}
