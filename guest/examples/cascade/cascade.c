/* cascade: a small model answers, and where it is not sure of its words a larger one is asked.
 *
 * How sure it is, is the mean log-probability of its answer's tokens. Most questions then cost what the small model
 * costs. The small model is the request's own; the large one is called by its name, and is the same for all tenants.
 */
#include "realm_guest.h"
#include "realm_text.h"

static const char LARGE[] = "gemma3";
static const double SURE = -0.3; /* nats a token: three quarters of the probability on what was said */

static const char EXAMPLES[] = "Question: What is the capital of Spain?\nAnswer: Madrid\n\n"
                               "Question: How many legs does a spider have?\nAnswer: 8\n\n"
                               "Question: Who wrote Hamlet?\nAnswer: William Shakespeare\n\n"
                               "Question: ";

static char prompt_bytes[16384], room[16384], answer_bytes[1024];

/* The answer of the model in use, and how sure it was. */
static int32_t ask(const realm_text *question, realm_text *answer, double *sure) {
    realm_bytes stop = {.ptr = (uintptr_t)"\n", .len = 1};
    realm_generate_options options = {
        .size = sizeof options,
        .set = REALM_SET_MAX_TOKENS | REALM_SET_TEMPERATURE | REALM_SET_STOP | REALM_SET_FLAGS,
        .max_tokens = 24, /* and temperature 0 */
        .flags = REALM_GENERATE_LOGPROBS,
        .stop = (uintptr_t)&stop,
        .n_stop = 1,
    };
    int32_t prompt = realm_prompt_text(question->at, question->len, REALM_TEXT_ADD_SPECIAL);
    if (prompt < 0) return prompt;
    realm_score score = {0};
    answer->len = 0;
    int32_t status = realm_text_generate(answer, prompt, &options, &score);
    realm_close(prompt);
    *sure = score.tokens ? score.logprob / score.tokens : 0;
    return status;
}

REALM_EXPORT(realm_main) int32_t realm_main(void) {
    realm_text question = REALM_TEXT_IN(prompt_bytes), answer = REALM_TEXT_IN(answer_bytes);
    realm_text_puts(&question, EXAMPLES);
    int32_t status = realm_text_question(&question, room, sizeof room);
    if (status < 0) return status;
    realm_text_puts(&question, "\nAnswer:");
    if (question.cut) return REALM_E_RANGE;

    double sure = 0, large_sure = 0;
    if ((status = ask(&question, &answer, &sure)) < 0) return status;
    bool handed_on = sure < SURE;
    if (handed_on) {
        int32_t large = realm_model_find(REALM_LITERAL(LARGE));
        if (large < 0) return large;
        if ((status = realm_model_use(large)) < 0) return status;
        if ((status = ask(&question, &answer, &large_sure)) < 0) return status;
    }
    while (answer.len > 0 && *answer.at == ' ') answer.at++, answer.len--, answer.max--;
    realm_text_puts(&answer, "\n\n-- small model: ");
    realm_text_fixed(&answer, sure);
    realm_text_puts(&answer, handed_on ? " a token, not sure; large model: " : " a token, sure");
    if (handed_on) realm_text_fixed(&answer, large_sure);
    return realm_text_emit(&answer);
}
