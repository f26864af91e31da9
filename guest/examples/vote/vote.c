/* vote: self-consistency. Several answers are sampled at once, and the one that most of them agree on is given.
 *
 * The samples run side by side in the host's batch: seven of them cost little more time than one. What counts as a vote
 * is the last word of an answer's first sentence; the winner's whole sentence is the answer, then comes the tally.
 */
#include "realm_guest.h"
#include "realm_text.h"

enum { VOTES = 7, ANSWER_MAX = 1024, EVENTS = 64 };

typedef struct ballot {
    int32_t generation;
    char bytes[ANSWER_MAX];
    size_t len; /* of the answer, then of its first sentence */
    char word[64];
    size_t word_len;
    uint32_t count; /* of this word, at its first ballot */
} ballot;

static ballot ballots[VOTES];
static realm_guest_event events[EVENTS];
static char text[16384], out_bytes[4096];

static bool is_letter(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || (unsigned char)c > 0x7f;
}

/* Cuts the answer to its first sentence and takes that one's last word, in lower case. */
static void read_ballot(ballot *b) {
    size_t n = 0;
    for (; n < b->len && b->bytes[n] != '\n'; n++)
        if (n > 0 && (b->bytes[n] == '.' || b->bytes[n] == '!' || b->bytes[n] == '?') &&
            (n + 1 == b->len || !is_letter(b->bytes[n + 1]))) {
            n++;
            break;
        }
    b->len = n;
    size_t to = n;
    while (to > 0 && !is_letter(b->bytes[to - 1])) to--;
    size_t from = to;
    while (from > 0 && is_letter(b->bytes[from - 1])) from--;
    for (size_t i = from; i < to && b->word_len < sizeof b->word; i++) {
        char c = b->bytes[i];
        b->word[b->word_len++] = c >= 'A' && c <= 'Z' ? (char)(c + ('a' - 'A')) : c;
    }
}

static bool same_word(const ballot *a, const ballot *b) {
    size_t i = 0;
    while (i < a->word_len && i < b->word_len && a->word[i] == b->word[i]) i++;
    return i == a->word_len && i == b->word_len;
}

static ballot *ballot_of(int32_t generation) {
    for (size_t i = 0; i < VOTES; i++)
        if (ballots[i].generation == generation) return &ballots[i];
    return NULL;
}

REALM_EXPORT(realm_main) int32_t realm_main(void) {
    int32_t prompt = realm_prompt_own();
    if (prompt < 0) return prompt;
    for (uint32_t i = 0; i < VOTES; i++) {
        realm_generate_options options = {
            .size = sizeof options,
            .set = REALM_SET_MAX_TOKENS | REALM_SET_TEMPERATURE | REALM_SET_SEED,
            .max_tokens = 32,
            .temperature = 0.9f,
            .seed = i + 1,
        };
        ballots[i].generation = realm_generate(prompt, &options, REALM_MODE_EVENTS);
        if (ballots[i].generation < 0) return ballots[i].generation;
    }
    for (uint32_t running = VOTES; running > 0;) {
        int32_t n = realm_wait(0, events, EVENTS, text, sizeof text, -1);
        if (n < 0) return n;
        for (int32_t e = 0; e < n; e++) {
            ballot *b = ballot_of(events[e].handle);
            for (uint32_t i = 0; b && i < events[e].text_len && b->len < ANSWER_MAX; i++)
                b->bytes[b->len++] = text[events[e].text_at + i];
            if (events[e].kind != REALM_EVENT_KIND_END) continue;
            if (events[e].status < 0) return events[e].status;
            running--;
        }
    }
    ballot *winner = NULL;
    for (size_t i = 0; i < VOTES; i++) {
        read_ballot(&ballots[i]);
        ballot *first = &ballots[0];
        while (!same_word(first, &ballots[i])) first++;
        first->count++;
    }
    for (size_t i = 0; i < VOTES; i++)
        if (ballots[i].word_len && (!winner || ballots[i].count > winner->count)) winner = &ballots[i];
    if (!winner) return REALM_E_FORMAT;
    realm_text out = REALM_TEXT_IN(out_bytes);
    realm_text_add(&out, winner->bytes, winner->len);
    realm_text_puts(&out, "\n\nvotes:");
    for (size_t i = 0; i < VOTES; i++) {
        if (!ballots[i].count) continue;
        realm_text_putc(&out, ' ');
        realm_text_add(&out, ballots[i].word, ballots[i].word_len);
        realm_text_putc(&out, ' ');
        realm_text_int(&out, ballots[i].count);
    }
    return realm_text_emit(&out);
}
