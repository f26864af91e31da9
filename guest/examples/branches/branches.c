/* branches: the three most likely beginnings of the answer, each with how it goes on; and how often the tenant asked.
 */
#include "realm_guest.h"
#include "realm_text.h"

enum { BRANCHES = 3 };

static char line_bytes[2048];

static int32_t show(int32_t trunk, int number, const realm_guest_token *first) {
    realm_text line = REALM_TEXT_IN(line_bytes);
    realm_text_int(&line, number);
    realm_text_puts(&line, ". ");
    realm_text_int(&line, (int64_t)(first->logprob * 1000.0f));
    realm_text_puts(&line, "/1000 nats: ");
    int32_t n = realm_decode(&first->token, 1, REALM_TEXT_SPECIAL, line.at + line.len, line.max - line.len);
    if (n < 0) return n;
    line.len += (size_t)n;
    int32_t branch = realm_context_fork(trunk);
    if (branch < 0) return branch;
    int32_t status = realm_context_append(branch, &first->token, 1);
    if (status < 0) return status;
    realm_generate_options options = {
        .size = sizeof options,
        .set = REALM_SET_MAX_TOKENS | REALM_SET_TEMPERATURE | REALM_SET_CONTEXT,
        .max_tokens = 8, /* and temperature 0 */
        .context = branch,
    };
    if ((status = realm_text_generate(&line, 0, &options, NULL)) < 0) return status;
    realm_close(branch);
    realm_text_puts(&line, "\n");
    return realm_text_emit(&line);
}

REALM_EXPORT(realm_main) int32_t realm_main(void) {
    int32_t prompt = realm_prompt_own();
    if (prompt < 0) return prompt;
    int32_t trunk = realm_context_new(), status;
    if (trunk < 0) return trunk;
    if ((status = realm_context_append_prompt(trunk, prompt)) < 0) return status;
    int32_t pass = realm_forward(trunk, NULL, 0, 1, 0);
    if (pass < 0) return pass;
    realm_guest_event end;
    if ((status = realm_wait(pass, &end, 1, NULL, 0, -1)) < 0) return status;
    if (end.status < 0) return end.status;
    realm_guest_token top[BRANCHES];
    int32_t n = realm_logits_top(pass, 0, BRANCHES, top, BRANCHES);
    if (n < 0) return n;
    for (int32_t i = 0; i < n; i++)
        if ((status = show(trunk, i + 1, &top[i])) < 0) return status;
    unsigned char asked = 0;
    status = realm_store_get(REALM_LITERAL("asked"), &asked, 1);
    if (status < 0 && status != REALM_E_NOT_FOUND) return status;
    asked++;
    if ((status = realm_store_put(REALM_LITERAL("asked"), &asked, 1)) < 0) return status;
    realm_text line = REALM_TEXT_IN(line_bytes);
    realm_text_puts(&line, "asked ");
    realm_text_int(&line, asked);
    realm_text_puts(&line, " times");
    return realm_text_emit(&line);
}
