/* router: what a question is about decides which model answers it.
 *
 * The request's own model names the topic, in one word after a few examples; the table says which model is good at it.
 * A topic that is not in the table stays with the request's own model.
 */
#include "realm_guest.h"
#include "realm_text.h"

static const struct {
    const char *topic, *model;
} ROUTES[] = {{"geography", "gemma3"}};

static const char TOPICS[] = "Question: What is the capital of Spain?\nTopic: geography\n\n"
                             "Question: What is the chemical symbol of iron?\nTopic: science\n\n"
                             "Question: Which sea is south of France?\nTopic: geography\n\n"
                             "Question: Who discovered radium?\nTopic: science\n\n"
                             "Question: What is the longest river in Africa?\nTopic: geography\n\n"
                             "Question: How many bones does a human have?\nTopic: science\n\n";

static const char ANSWERS[] = "Question: What is the capital of Spain?\nAnswer: Madrid\n\n"
                              "Question: How many legs does a spider have?\nAnswer: 8\n\n"
                              "Question: Who wrote Hamlet?\nAnswer: William Shakespeare\n\n";

static char question_bytes[8192], prompt_bytes[16384], room[16384], topic_bytes[64], answer_bytes[1024];
static realm_text question = REALM_TEXT_IN(question_bytes);

/* One line of the model in use behind examples, the question and a word that asks for it. */
static int32_t complete(const char *examples, const char *word, realm_text *out) {
    realm_text text = REALM_TEXT_IN(prompt_bytes);
    realm_text_puts(&text, examples);
    realm_text_puts(&text, "Question: ");
    realm_text_add(&text, question.at, question.len);
    realm_text_puts(&text, word);
    if (text.cut) return REALM_E_RANGE;
    realm_bytes stop = {.ptr = (uintptr_t)"\n", .len = 1};
    realm_generate_options options = {
        .size = sizeof options,
        .set = REALM_SET_MAX_TOKENS | REALM_SET_TEMPERATURE | REALM_SET_STOP,
        .max_tokens = 24, /* and temperature 0 */
        .stop = (uintptr_t)&stop,
        .n_stop = 1,
    };
    int32_t prompt = realm_prompt_text(text.at, text.len, REALM_TEXT_ADD_SPECIAL);
    if (prompt < 0) return prompt;
    int32_t status = realm_text_generate(out, prompt, &options, NULL);
    realm_close(prompt);
    while (out->len > 0 && *out->at == ' ') out->at++, out->len--, out->max--;
    return status;
}

REALM_EXPORT(realm_main) int32_t realm_main(void) {
    realm_text topic = REALM_TEXT_IN(topic_bytes), answer = REALM_TEXT_IN(answer_bytes);
    int32_t status = realm_text_question(&question, room, sizeof room);
    if (status < 0) return status;
    if ((status = complete(TOPICS, "\nTopic:", &topic)) < 0) return status;
    const char *model = NULL;
    for (size_t i = 0; i < sizeof ROUTES / sizeof *ROUTES; i++)
        if (realm_text_is(&topic, ROUTES[i].topic)) model = ROUTES[i].model;
    if (model) {
        int32_t id = realm_model_find(model, realm_strlen(model));
        if (id < 0) return id;
        if ((status = realm_model_use(id)) < 0) return status;
    }
    if ((status = complete(ANSWERS, "\nAnswer:", &answer)) < 0) return status;
    realm_text_puts(&answer, "\n\n-- ");
    realm_text_add(&answer, topic.at, topic.len);
    realm_text_puts(&answer, ": ");
    realm_text_puts(&answer, model ? model : "the request's own model");
    return realm_text_emit(&answer);
}
