/* best_of_n: several answers from one computed prompt, and the one that the model itself finds most likely is given.
 *
 * The prompt is computed once, in a context. Each candidate is a fork of it: the pages of the prompt are shared, only
 * what a candidate adds is its own. All are decoded at once, in the host's batch. The judge is the mean log-probability
 * of a candidate's tokens before temperature: an answer that the dice led astray has tokens that the model did not
 * believe in.
 */
#include "realm_guest.h"
#include "realm_text.h"

enum { CANDIDATES = 5, ANSWER_MAX = 4096, EVENTS = 64 };

typedef struct candidate {
    int32_t generation;
    char bytes[ANSWER_MAX];
    size_t len;
    uint32_t tokens;
    double logprob; /* sum */
} candidate;

static candidate candidates[CANDIDATES];
static realm_guest_event events[EVENTS];
static char text[16384], out_bytes[ANSWER_MAX + 512];

/* The request's prompt, computed and waiting. */
static int32_t open_trunk(void) {
    int32_t prompt = realm_prompt_own();
    if (prompt < 0) return prompt;
    int32_t trunk = realm_context_new();
    if (trunk < 0) return trunk;
    int32_t status = realm_context_append_prompt(trunk, prompt);
    if (status < 0) return status;
    int32_t pass = realm_forward(trunk, NULL, 0, 1, 0);
    if (pass < 0) return pass;
    status = realm_wait(pass, events, 1, NULL, 0, -1);
    realm_close(pass);
    return status < 0 ? status : events[0].status < 0 ? events[0].status : trunk;
}

static int32_t start(candidate *c, int32_t trunk, uint64_t seed) {
    int32_t fork = realm_context_fork(trunk);
    if (fork < 0) return fork;
    realm_generate_options options = {
        .size = sizeof options,
        .set = REALM_SET_TEMPERATURE | REALM_SET_SEED | REALM_SET_FLAGS | REALM_SET_CONTEXT,
        .temperature = 1.0f,
        .seed = seed,
        .flags = REALM_GENERATE_LOGPROBS,
        .context = fork,
    };
    c->generation = realm_generate(0, &options, REALM_MODE_EVENTS);
    return c->generation;
}

static void take(const realm_guest_event *e) {
    candidate *c = candidates;
    while (c->generation != e->handle) c++;
    for (uint32_t i = 0; i < e->text_len && c->len < ANSWER_MAX; i++) c->bytes[c->len++] = text[e->text_at + i];
    if (e->kind != REALM_EVENT_KIND_TOKEN) return;
    c->tokens++;
    c->logprob += (double)e->logprob;
}

static double score(const candidate *c) { return c->tokens ? c->logprob / c->tokens : -1000; }

REALM_EXPORT(realm_main) int32_t realm_main(void) {
    int32_t trunk = open_trunk(), status = trunk;
    for (uint32_t i = 0; i < CANDIDATES && status >= 0; i++) status = start(&candidates[i], trunk, i + 1);
    for (uint32_t running = CANDIDATES; running > 0 && status >= 0;) {
        status = realm_wait(0, events, EVENTS, text, sizeof text, -1);
        for (int32_t e = 0; e < status; e++) {
            take(&events[e]);
            running -= events[e].kind == REALM_EVENT_KIND_END;
            if (events[e].status < 0) return events[e].status;
        }
    }
    if (status < 0) return status;
    const candidate *best = &candidates[0];
    for (size_t i = 1; i < CANDIDATES; i++)
        if (score(&candidates[i]) > score(best)) best = &candidates[i];
    realm_text out = REALM_TEXT_IN(out_bytes);
    realm_text_add(&out, best->bytes, best->len);
    realm_text_puts(&out, "\n\nscores:");
    for (size_t i = 0; i < CANDIDATES; i++) {
        realm_text_puts(&out, " ");
        realm_text_fixed(&out, score(&candidates[i]));
        if (&candidates[i] == best) realm_text_puts(&out, "*");
    }
    return realm_text_emit(&out);
}
