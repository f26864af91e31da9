/* edit: an answer that is edited while it is written. Where the model writes one word it gets another, and goes on from
 * there as if it had chosen that itself. The engine runs ahead meanwhile: it waits for the program only where the
 * program is more than eight tokens behind. */
#include "realm_guest.h"
#include "realm_text.h"

#define WORD "Paris"
#define OTHER "Lyon"
enum { TOKENS_MAX = 64, WORD_LEN = sizeof WORD - 1 };

static char text_bytes[4096];
static uint32_t ends[TOKENS_MAX]; /* ends[i]: of the text behind token i */

/* Puts the other word in the place of the one at `at`; the new number of tokens, or a negative code. */
static int32_t rewrite(int32_t answer, realm_text *text, size_t at) {
    char with[256];
    int32_t tokens[TOKENS_MAX];
    uint32_t keep = 0;
    while (ends[keep] <= at) keep++;
    uint32_t from = keep ? ends[keep - 1] : 0; /* the word may begin inside a token */
    realm_text piece = REALM_TEXT_IN(with);
    realm_text_add(&piece, text->at + from, at - from);
    realm_text_puts(&piece, OTHER);
    int32_t n = realm_encode(piece.at, piece.len, REALM_TEXT_CONTINUES, tokens, TOKENS_MAX - keep);
    if (n < 0) return n;
    int32_t status = realm_rewind(answer, keep, tokens, (size_t)n);
    if (status < 0) return status;
    text->len = from;
    realm_text_add(text, piece.at, piece.len);
    for (int32_t i = 0; i < n; i++) ends[keep + (uint32_t)i] = (uint32_t)text->len;
    return (int32_t)keep + n;
}

REALM_EXPORT(realm_main) int32_t realm_main(void) {
    realm_generate_options options = {.size = sizeof options,
                                      .set = REALM_SET_MAX_TOKENS | REALM_SET_TEMPERATURE,
                                      .max_tokens = TOKENS_MAX, /* and temperature 0 */
                                      .run_ahead = 8};
    realm_text text = REALM_TEXT_IN(text_bytes);
    int32_t prompt = realm_prompt_own();
    if (prompt < 0) return prompt;
    int32_t answer = realm_generate(prompt, &options, REALM_MODE_AHEAD), n_tokens = 0;
    if (answer < 0) return answer;
    size_t given = 0; /* to the client */
    for (bool ended = false; !ended;) {
        realm_guest_event events[16];
        int32_t n = realm_wait(answer, events, 16, text.at + text.len, text.max - text.len, -1), status;
        if (n < 0) return n;
        for (int32_t i = 0; i < n; i++) {
            text.len += events[i].text_len;
            if (events[i].kind == REALM_EVENT_KIND_TOKEN) ends[n_tokens++] = (uint32_t)text.len;
            ended = events[i].kind == REALM_EVENT_KIND_END;
        }
        if (events[n - 1].status < 0) return events[n - 1].status;
        size_t at = realm_text_find(&text, WORD, given);
        if (at != SIZE_MAX) {
            if ((n_tokens = rewrite(answer, &text, at)) < 0) return n_tokens;
            ended = false; /* an end behind it is none */
        }
        /* What can be no beginning of the word any more stays. */
        size_t safe = ended ? text.len : text.len < WORD_LEN ? 0 : text.len - (WORD_LEN - 1);
        uint32_t sure = 0;
        while (sure < (uint32_t)n_tokens && ends[sure] <= safe) sure++;
        size_t to = ended ? text.len : sure ? ends[sure - 1] : 0;
        if ((status = realm_confirm(answer, sure)) < 0) return status;
        if (to > given && (status = realm_emit(text.at + given, to - given)) < 0) return status;
        if (to > given) given = to;
    }
    return 0;
}
