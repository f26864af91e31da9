/* Holds as many of something as it may, named by the request's field "op", and says how many; then one more after one
 * of them was closed. */
#include "realm_guest.h"

static int32_t handles[4096], tokens[60000];
static char text[256];
static int32_t prompt;

static void put_number(uint32_t v) {
    char digits[12];
    size_t at = sizeof digits;
    do digits[--at] = (char)('0' + v % 10);
    while (v /= 10);
    realm_emit(digits + at, sizeof digits - at);
}

static int32_t one(char op, int32_t of) {
    realm_sampler_stage stage = {.kind = REALM_STAGE_GRAMMAR, .handle = of};
    switch (op) {
    case 'g':
        return of ? realm_grammar_fork(of) : realm_grammar_compile(REALM_GRAMMAR_REGEX, REALM_LITERAL("[a-z]{9}+"));
    case 's': return realm_sampler_new(&stage, 1, 1);
    case 'a': return realm_grammar_accept(of, tokens, 1000);
    case 't': {
        int32_t n = realm_sampler_accept(of, tokens, 1000);
        return n ? n : 1;
    }
    case 'm': {
        realm_generate_options o = {.size = sizeof o, .set = REALM_SET_SAMPLER, .sampler = of};
        return realm_generate(prompt, &o, REALM_MODE_EVENTS);
    }
    case 'c': return realm_context_fork(of);
    case 'p': {
        int32_t h = realm_prompt_tokens(tokens, 60000), n = h > 0 ? realm_prompt_get_text(h, text, 0) : h;
        return n < 0 ? n : h;
    }
    default: return -1;
    }
}

REALM_EXPORT(realm_main) int32_t realm_main(void) {
    char op[16];
    int32_t n = realm_input(REALM_LITERAL("op"), op, sizeof op), of = 0, h;
    uint32_t count = 0;
    if (n <= 0) return -1;
    if ((op[0] == 's' || op[0] == 'm') && (of = one('g', 0)) < 0) return of;
    if (op[0] == 'm' && ((of = one('s', of)) < 0 || (prompt = realm_prompt_own()) < 0)) return of;
    if (op[0] == 'a' || op[0] == 't') {
        if ((n = realm_encode(REALM_LITERAL("abab"), 0, tokens, 4)) < 1) return n;
        for (uint32_t i = 1; i < 1000; i++) tokens[i] = tokens[0];
        if ((of = realm_grammar_compile(REALM_GRAMMAR_REGEX, REALM_LITERAL("(.|\n)*"))) < 0) return of;
    }
    if (op[0] == 't' && (of = one('s', of)) < 0) return of;
    if (op[0] == 'c' || op[0] == 'p') {
        if ((n = realm_model_find(REALM_LITERAL("wide"))) < 0 || (n = realm_model_use(n)) < 0) return n;
        for (uint32_t i = 0; i < 60000; i++) tokens[i] = 2;
    }
    if (op[0] == 'c') {
        if ((of = realm_context_new()) < 0) return of;
        if ((n = realm_context_append(of, tokens, 60000)) < 0) return n;
    }
    while ((h = one(op[0], of)) > 0) {
        handles[count++] = h;
        if (op[0] == 'g') of = handles[0];
    }
    put_number(count);
    realm_emit(" ", 1);
    if (h != REALM_E_LIMIT) return h;
    if ((n = realm_last_error(text, sizeof text)) > 0) realm_emit(text, (size_t)n);
    if (op[0] == 't') return 0;
    if ((n = op[0] == 'a' ? realm_grammar_rollback(of, 1000) : realm_close(handles[count - 1])) < 0) return n;
    h = one(op[0], of);
    return h < 0 ? h : 0;
}
