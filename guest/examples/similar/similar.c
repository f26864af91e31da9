/* similar: notes that are found by what they mean. Each line of the prompt but the last is a note, kept in the tenant's
 * store with its embedding: the hidden state that a forward pass leaves behind its last token. The last line is
 * compared with all that there are, those of earlier requests too; its pass is under way while the notes are kept.
 */
#include "realm_guest.h"
#include "realm_text.h"

enum { WIDTH_MAX = 4096, TOKENS_MAX = 512, KEYS_BYTES = 4096 };

static float asked[WIDTH_MAX], kept[WIDTH_MAX];
static char question[2048], room[1024], keys[KEYS_BYTES];

/* Starts the pass that embeds a text; it goes on without its context's handle. */
static int32_t start(const char *text, size_t len) {
    static int32_t tokens[TOKENS_MAX];
    int32_t n = realm_encode(text, len, REALM_TEXT_ADD_SPECIAL, tokens, TOKENS_MAX);
    if (n < 0 || n > TOKENS_MAX) return n < 0 ? n : REALM_E_RANGE;
    int32_t context = realm_context_new();
    if (context < 0) return context;
    int32_t pass = realm_forward(context, tokens, (size_t)n, 1, REALM_FORWARD_HIDDEN);
    realm_close(context);
    return pass;
}

/* The embedding that a pass leaves behind; returns how many values it has. */
static int32_t finish(int32_t pass, float *out) {
    realm_guest_event end;
    int32_t status = realm_wait(pass, &end, 1, NULL, 0, -1);
    if (status < 0 || end.status < 0) return status < 0 ? status : end.status;
    int32_t n = realm_hidden_read(pass, 0, out, WIDTH_MAX);
    realm_close(pass);
    return n > WIDTH_MAX ? REALM_E_RANGE : n;
}

/* How like a kept one is to what was asked: the cosine, squared with its sign. */
static float likeness(int32_t width) {
    float both = 0, own = 0;
    for (int32_t i = 0; i < width; i++) {
        both += asked[i] * kept[i];
        own += kept[i] * kept[i];
    }
    return (both < 0 ? -both : both) * both / own;
}

static int32_t find(realm_text *best, int32_t width, int32_t *n_notes) {
    char last[256];
    size_t last_len = 0;
    float most = 0;
    for (;;) {
        int32_t n = realm_store_list(REALM_LITERAL("note/"), last, last_len, keys, KEYS_BYTES);
        if (n <= 0) return n;
        for (int32_t from = 0; from < n; from += (int32_t)last_len + 1) {
            const char *key = keys + from;
            last_len = realm_strlen(key);
            for (size_t i = 0; i < last_len; i++) last[i] = key[i];
            int32_t bytes = realm_store_get(key, last_len, kept, sizeof kept);
            if (bytes < 0) return bytes;
            if (bytes != width * (int32_t)sizeof *kept) continue; /* another model's */
            float like = likeness(width);
            if ((*n_notes)++ && like <= most) continue;
            most = like;
            best->len = 0;
            realm_text_add(best, key + 5, last_len - 5);
        }
    }
}

static int32_t keep(const char *note, size_t len) {
    realm_text key = REALM_TEXT_IN(room);
    int32_t pass = start(note, len);
    if (pass < 0) return pass;
    int32_t width = finish(pass, asked);
    if (width < 0) return width;
    realm_text_puts(&key, "note/");
    realm_text_add(&key, note, len);
    return realm_store_put(key.at, key.len, asked, (size_t)width * sizeof *asked);
}

REALM_EXPORT(realm_main) int32_t realm_main(void) {
    realm_text q = REALM_TEXT_IN(question), line = REALM_TEXT_IN(room);
    int32_t status = realm_text_input(&q, "prompt"), n_notes = 0;
    if (status < 0) return status;
    size_t last = 0, to;
    while ((to = realm_text_find(&q, "\n", last)) != SIZE_MAX) last = to + 1;
    int32_t question_pass = start(q.at + last, q.len - last);
    if (question_pass < 0) return question_pass;
    for (size_t from = 0; from < last; from = to + 1) {
        to = realm_text_find(&q, "\n", from);
        if ((status = keep(q.at + from, to - from)) < 0) return status;
    }
    int32_t width = finish(question_pass, asked);
    if (width < 0) return width;
    if ((status = find(&line, width, &n_notes)) < 0) return status;
    realm_text_puts(&line, " (1 of ");
    realm_text_int(&line, n_notes);
    realm_text_puts(&line, ")");
    return realm_text_emit(&line);
}
