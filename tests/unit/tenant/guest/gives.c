/* The pair, with an end for each case that field "text" names: "cope" answers although a generation failed, "tell"
 * returns the failure's code instead, "code" that of a call, "bytes" answers with what is no UTF-8. */
#include "realm_guest.h"

static char op[16], room[256];

REALM_EXPORT(realm_new) int32_t realm_new(void) { return 0; }

/* A generation that the host ends: its grammar forbids what the program puts in its place. */
static int32_t fail(void) {
    realm_guest_event e[8];
    int32_t other[] = {261}, n; /* "b" */
    int32_t grammar = realm_grammar_compile(REALM_GRAMMAR_REGEX, REALM_LITERAL("a+"));
    realm_generate_options o = {.size = sizeof o,
                                .set = REALM_SET_MAX_TOKENS | REALM_SET_GRAMMAR,
                                .max_tokens = 8,
                                .grammar = grammar,
                                .run_ahead = 4};
    int32_t g = realm_generate(realm_prompt_own(), &o, REALM_MODE_AHEAD);
    if (g < 0 || (n = realm_wait(g, e, 8, room, sizeof room, -1)) < 0) return 0;
    if (realm_rewind(g, 0, other, 1) < 0) return 0;
    do n = realm_wait(g, e, 8, room, sizeof room, -1);
    while (n > 0 && e[n - 1].kind != REALM_EVENT_KIND_END);
    return n > 0 && e[n - 1].finish == REALM_END_ERROR ? e[n - 1].status : 0;
}

REALM_EXPORT(generate) uintptr_t generate(const char *text, size_t len, int32_t model, const void *options) {
    (void)text;
    (void)len;
    (void)options;
    if (realm_input(REALM_LITERAL("text"), op, sizeof op) < 0) return 0;
    if (op[0] == 'b') return (uintptr_t)"\xff\xfe";
    if (op[1] == 'o' && op[2] == 'd') return (uintptr_t)realm_model_use(model + 99);
    int32_t failed = fail();
    if (failed >= 0) return (uintptr_t)"it did not fail";
    return op[0] == 't' ? (uintptr_t)failed : (uintptr_t)"coped";
}
