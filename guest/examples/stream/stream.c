/* stream: hands the answer on as it comes, counts its tokens, and signs with what it counted. */
#include "realm_guest.h"
#include "realm_text.h"

static realm_guest_event events[64];
static char text[16384], line[512];

REALM_EXPORT(realm_main) int32_t realm_main(void) {
    realm_text model = REALM_TEXT_IN(line);
    int32_t n = realm_text_input(&model, "model");
    if (n == REALM_E_NOT_FOUND)
        realm_text_puts(&model, "a model");
    else if (n < 0)
        return n;
    int32_t prompt = realm_prompt_own();
    if (prompt < 0) return prompt;
    int32_t answer = realm_generate(prompt, NULL, REALM_MODE_EVENTS);
    if (answer < 0) return answer;
    uint32_t tokens = 0;
    for (bool ended = false; !ended;) {
        n = realm_wait(answer, events, 64, text, sizeof text, -1);
        if (n < 0) return n;
        const realm_guest_event *last = &events[n - 1];
        ended = last->kind == REALM_EVENT_KIND_END;
        if (ended && last->status < 0) return last->status;
        tokens += (uint32_t)n - ended;
        n = realm_emit(text, last->text_at + last->text_len);
        if (n < 0) return n;
    }
    realm_text sign = REALM_TEXT_IN(text);
    realm_text_puts(&sign, "\n\n-- ");
    realm_text_add(&sign, model.at, model.len);
    realm_text_puts(&sign, ": ");
    realm_text_int(&sign, realm_prompt_get_tokens(prompt, NULL, 0));
    realm_text_puts(&sign, " tokens in, ");
    realm_text_int(&sign, tokens);
    realm_text_puts(&sign, " out");
    return realm_text_emit(&sign);
}
