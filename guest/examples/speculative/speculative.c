/* speculative: the model's own greedy answer in fewer forward passes, by guessing and checking.
 *
 * Where the answer repeats what was said before (quotations, code, names), the next tokens can be looked up: the last
 * two tokens are searched in the text so far, and what followed them there is the guess. One forward pass over the
 * guess gives the model's own choice at every place of it. The part on which both agree is kept, with one token more,
 * and the context is truncated to it. What the client gets is what it would have got, token by token.
 */
#include "realm_guest.h"
#include "realm_text.h"

enum { TOKENS_MAX = 8192, GUESS_MAX = 10, ANSWER_MAX = 200 };

static int32_t tokens[TOKENS_MAX]; /* prompt and answer; the last one is not in the context yet */
static int32_t n_tokens;
static char held[64]; /* the bytes of a character that is not complete */
static size_t n_held;

/* What followed the last two tokens, the last time that they stood together. */
static int32_t guess(int32_t *out) {
    for (int32_t at = n_tokens - 3; at >= 0; at--) {
        if (tokens[at] != tokens[n_tokens - 2] || tokens[at + 1] != tokens[n_tokens - 1]) continue;
        int32_t n = 0;
        while (n < GUESS_MAX && at + 2 + n < n_tokens) out[n] = tokens[at + 2 + n], n++;
        return n;
    }
    return 0;
}

/* Bytes of complete characters in front. */
static size_t complete(const char *bytes, size_t n) {
    size_t at = 0;
    while (at < n) {
        unsigned char c = (unsigned char)bytes[at];
        size_t len = c < 0x80 ? 1 : c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : 2;
        if (at + len > n) break;
        at += len;
    }
    return at;
}

/* Hands a token's text out; 1 for a control token, which has none and ends the answer. */
static int32_t say(int32_t token) {
    int32_t n = realm_token_piece(token, 0, held + n_held, sizeof held - n_held);
    if (n <= 0) return n < 0 ? n : 1;
    if ((size_t)n > sizeof held - n_held) return REALM_E_RANGE;
    n_held += (size_t)n;
    size_t whole = complete(held, n_held);
    int32_t status = whole ? realm_emit(held, whole) : 0;
    for (size_t i = whole; i < n_held; i++) held[i - whole] = held[i];
    n_held -= whole;
    return status < 0 ? status : 0;
}

REALM_EXPORT(realm_main) int32_t realm_main(void) {
    int32_t prompt = realm_prompt_own();
    if (prompt < 0) return prompt;
    n_tokens = realm_prompt_get_tokens(prompt, tokens, TOKENS_MAX);
    if (n_tokens < 0) return n_tokens;
    if (n_tokens < 2 || n_tokens + ANSWER_MAX > TOKENS_MAX) return REALM_E_RANGE;
    int32_t context = realm_context_new();
    if (context < 0) return context;
    int32_t status = realm_context_append(context, tokens, (size_t)n_tokens - 1);
    if (status < 0) return status;

    uint32_t passes = 0, answered = 0, agreed = 0;
    for (bool ended = false; !ended && answered < ANSWER_MAX;) {
        int32_t batch[1 + GUESS_MAX];
        batch[0] = tokens[n_tokens - 1];
        int32_t n = guess(batch + 1), kept = 0;
        int32_t pass = realm_forward(context, batch, 1 + (size_t)n, 1 + (uint32_t)n, 0);
        if (pass < 0) return pass;
        realm_guest_event end;
        if ((status = realm_wait(pass, &end, 1, NULL, 0, -1)) < 0) return status;
        if (end.status < 0) return end.status;
        passes++;
        for (bool agree = true; agree && !ended && answered < ANSWER_MAX; kept++) {
            int32_t token = realm_logits_sample(pass, (uint32_t)kept, 0, NULL);
            if (token < 0) return token;
            if ((status = say(token)) < 0) return status;
            ended = status == 1;
            agree = kept < n && token == batch[1 + kept];
            tokens[n_tokens++] = token;
            answered += !ended;
            agreed += agree;
        }
        realm_close(pass);
        /* the context holds the whole guess: the agreed part stays, the token behind it comes with the next pass */
        if ((status = realm_context_truncate(context, (uint32_t)n_tokens - 1)) < 0) return status;
    }
    static char sign_bytes[128];
    realm_text sign = REALM_TEXT_IN(sign_bytes);
    realm_text_puts(&sign, "\n\n-- ");
    realm_text_int(&sign, answered);
    realm_text_puts(&sign, " tokens in ");
    realm_text_int(&sign, passes);
    realm_text_puts(&sign, " passes, ");
    realm_text_int(&sign, agreed);
    realm_text_puts(&sign, " of them guessed");
    return realm_text_emit(&sign);
}
