/* redact: replaces words of a list by asterisks while the answer streams.
 *
 * A word may arrive in pieces ("Par", "is"), so letters are held back until the word is complete; everything else goes
 * on at once. The list is the field "redact" of the request's "metadata" when it is there (words separated by commas),
 * else the one below. Letters are ASCII letters, digits and every byte above 0x7f, so that no character is ever cut.
 */
#include "realm_guest.h"

enum { WORDS_MAX = 64, WORD_BYTES_MAX = 64, LIST_BYTES_MAX = 2048 };

static realm_guest_event events[64];
static char text[16384];
static char out[2 * 16384 + 2 * WORD_BYTES_MAX];
static char list[LIST_BYTES_MAX] = "paris,london,berlin";
static const char *words[WORDS_MAX];
static size_t word_lens[WORDS_MAX];
static size_t n_words;
static char held[WORD_BYTES_MAX]; /* the word that is not complete yet */
static size_t n_held, n_out;
static bool too_long; /* longer than any word of the list: passes through */

static char lower(char c) { return c >= 'A' && c <= 'Z' ? (char)(c + ('a' - 'A')) : c; }

static bool is_letter(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || (unsigned char)c > 0x7f;
}

static bool is_listed(void) {
    for (size_t w = 0; w < n_words; w++) {
        size_t i = 0;
        while (i < n_held && i < word_lens[w] && lower(held[i]) == words[w][i]) i++;
        if (i == n_held && i == word_lens[w]) return true;
    }
    return false;
}

static void put(char c) { out[n_out++] = c; }

static void end_of_word(void) {
    bool hide = !too_long && n_held > 0 && is_listed();
    for (size_t i = 0; i < n_held; i++)
        if (!hide)
            put(held[i]);
        else if (((unsigned char)held[i] & 0xc0) != 0x80) /* one asterisk per character */
            put('*');
    n_held = 0;
    too_long = false;
}

static void feed(char c) {
    if (!is_letter(c)) {
        end_of_word();
        put(c);
    } else if (too_long) {
        put(c);
    } else if (n_held == WORD_BYTES_MAX) {
        for (size_t i = 0; i < n_held; i++) put(held[i]);
        n_held = 0;
        too_long = true;
        put(c);
    } else {
        held[n_held++] = c;
    }
}

/* The value of "redact" in a flat JSON object, in place of the list; strings with escapes are left alone. */
static void read_list(void) {
    static const char KEY[] = "\"redact\"";
    int32_t n = realm_input(REALM_LITERAL("metadata"), text, sizeof text);
    if (n <= 0 || (size_t)n > sizeof text) return;
    for (size_t i = 0; i + sizeof KEY < (size_t)n; i++) {
        size_t k = 0;
        while (k < sizeof KEY - 1 && text[i + k] == KEY[k]) k++;
        if (k < sizeof KEY - 1) continue;
        size_t at = i + k, len = 0;
        while (at < (size_t)n && (text[at] == ':' || text[at] == ' ')) at++;
        if (at >= (size_t)n || text[at++] != '"') return;
        while (at + len < (size_t)n && text[at + len] != '"' && text[at + len] != '\\') len++;
        if (at + len >= (size_t)n || text[at + len] != '"' || len >= sizeof list) return;
        for (size_t c = 0; c < len; c++) list[c] = text[at + c];
        list[len] = 0;
        return;
    }
}

static void split_list(void) {
    size_t at = 0;
    while (n_words < WORDS_MAX) {
        while (list[at] == ',' || list[at] == ' ') at++;
        if (!list[at]) return;
        words[n_words] = &list[at];
        size_t len = 0;
        for (; list[at] && list[at] != ','; at++, len++) list[at] = lower(list[at]);
        while (len > 0 && words[n_words][len - 1] == ' ') len--;
        word_lens[n_words++] = len;
    }
}

REALM_EXPORT(realm_main) int32_t realm_main(void) {
    read_list();
    split_list();
    int32_t prompt = realm_prompt_own();
    if (prompt < 0) return prompt;
    int32_t generation = realm_generate(prompt, NULL, REALM_MODE_EVENTS);
    if (generation < 0) return generation;
    for (;;) {
        int32_t n = realm_wait(generation, events, 64, text, sizeof text, -1);
        if (n < 0) return n;
        const realm_guest_event *last = &events[n - 1];
        size_t len = last->text_at + last->text_len;
        bool ended = last->kind == REALM_EVENT_KIND_END;
        n_out = 0;
        for (size_t i = 0; i < len; i++) feed(text[i]);
        if (ended) end_of_word();
        int32_t status = n_out ? realm_emit(out, n_out) : 0;
        if (status < 0) return status;
        if (ended) return last->status;
    }
}
