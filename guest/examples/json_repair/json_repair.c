/* json_repair: whatever the model writes, the client gets valid JSON.
 *
 * Grammars make a model write JSON from the start; this is the way for when that is not wanted: the answer is free
 * text, and a lenient reader takes out of it the value that it means. Prose and fences around it go, missing quotes,
 * commas and brackets come, and an answer that was cut off is closed where it ends. The reader writes as it reads, so
 * that what it writes is JSON by construction. Where there is no value at all, the model is shown its answer and asked
 * again.
 */
#include "realm_guest.h"
#include "realm_text.h"

enum { ATTEMPTS = 3, TEXT_MAX = 16384, DEPTH_MAX = 32 };

static char answer_bytes[TEXT_MAX], json_bytes[2 * TEXT_MAX], chat_bytes[4 * TEXT_MAX];
static realm_text answer = REALM_TEXT_IN(answer_bytes), json = REALM_TEXT_IN(json_bytes);

/* ---- the lenient reader: `at` moves over the answer, what it means goes to `json` ---- */

static const char *at, *end;

static bool is_space(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }
static bool is_word(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-' ||
           c == '+' || c == '.' || (unsigned char)c > 0x7f;
}

static void skip_space(void) {
    while (at < end && is_space(*at)) at++;
}

/* A string in either kind of quotes; one that never ends, ends with the answer. */
static void read_string(void) {
    char quote = *at++;
    static char said[TEXT_MAX];
    size_t n = 0;
    for (; at < end && *at != quote; at++) {
        char c = *at;
        if (c == '\\' && at + 1 < end) {
            c = *++at;
            if (c == 'n') c = '\n';
            if (c == 't') c = '\t';
            if (c == 'u') { /* stays as it is when it is whole */
                const char *hex = at + 1;
                bool whole = end - hex >= 4;
                for (int i = 0; whole && i < 4; i++)
                    whole = (hex[i] >= '0' && hex[i] <= '9') || ((hex[i] | 0x20) >= 'a' && (hex[i] | 0x20) <= 'f');
                if (whole) {
                    realm_text one = {.at = said + n, .max = sizeof said - n};
                    char quoted[8] = {'"', '\\', 'u', hex[0], hex[1], hex[2], hex[3], '"'};
                    realm_text_json_value(&one, (realm_json){quoted, quoted + sizeof quoted});
                    n += one.len;
                    at += 4;
                    continue;
                }
            }
        }
        if (n < sizeof said) said[n++] = c;
    }
    if (at < end) at++;
    realm_text_json(&json, said, n);
}

/* A bare word: a number or a constant as itself, whichever way it is spelt, anything else as a string. */
static void read_word(void) {
    static const struct {
        const char *spelt, *json;
    } WORDS[] = {{"true", "true"}, {"True", "true"}, {"false", "false"}, {"False", "false"},
                 {"null", "null"}, {"None", "null"}, {"nil", "null"}};
    const char *from = at;
    while (at < end && is_word(*at)) at++;
    realm_text word = {.at = (char *)from, .len = (size_t)(at - from)};
    for (size_t i = 0; i < sizeof WORDS / sizeof *WORDS; i++)
        if (realm_text_is(&word, WORDS[i].spelt)) {
            realm_text_puts(&json, WORDS[i].json);
            return;
        }
    if (realm_json_skip_number(from, at) == at)
        realm_text_add(&json, from, word.len);
    else
        realm_text_json(&json, from, word.len);
}

static void read_value(int depth) {
    skip_space();
    if (at == end || depth > DEPTH_MAX) {
        realm_text_puts(&json, "null");
        at = depth > DEPTH_MAX ? end : at;
        return;
    }
    if (*at == '"' || *at == '\'') {
        read_string();
        return;
    }
    if (*at != '{' && *at != '[') {
        if (is_word(*at)) {
            read_word();
        } else {
            realm_text_puts(&json, "null");
            if (*at != ',' && *at != '}' && *at != ']') at++;
        }
        return;
    }
    bool object = *at == '{';
    char close = object ? '}' : ']';
    realm_text_putc(&json, *at++);
    for (bool first = true;; first = false) {
        skip_space();
        while (at < end && (*at == ',' || is_space(*at))) at++; /* none, one or too many */
        if (at == end || *at == close || *at == '}' || *at == ']') break;
        if (!first) realm_text_putc(&json, ',');
        if (object) {
            if (*at == '"' || *at == '\'') {
                read_string();
            } else {
                const char *from = at;
                while (at < end && is_word(*at)) at++;
                if (at == from) at++;
                realm_text_json(&json, from, (size_t)(at - from));
            }
            skip_space();
            realm_text_putc(&json, ':');
            if (at < end && (*at == ':' || *at == '=')) at++;
        }
        read_value(depth + 1);
    }
    if (at < end && *at == close) at++;
    realm_text_putc(&json, close);
}

/* The first object or array of the answer; false when there is none. */
static bool repair(void) {
    at = answer.at;
    end = answer.at + answer.len;
    while (at < end && *at != '{' && *at != '[') at++;
    if (at == end) return false;
    read_value(0);
    return true;
}

/* ---- asking ---- */

/* The conversation so far, the answer, and a word about it. */
static int32_t prompt_again(void) {
    static const char WORD[] = "There is no JSON in that. Answer again with one JSON value and nothing else.";
    realm_text chat = REALM_TEXT_IN(chat_bytes);
    int32_t n = realm_text_input(&chat, "messages");
    if (n < 2) return n < 0 ? n : REALM_E_FORMAT;
    chat.len--; /* the bracket at its end */
    realm_text_puts(&chat, ",{\"role\":\"assistant\",\"content\":");
    realm_text_json(&chat, answer.at, answer.len);
    realm_text_puts(&chat, "},{\"role\":\"user\",\"content\":");
    realm_text_json(&chat, REALM_LITERAL(WORD));
    realm_text_puts(&chat, "}]");
    return chat.cut ? REALM_E_RANGE : realm_prompt_chat(chat.at, chat.len, NULL, 0, REALM_CHAT_ANSWER);
}

REALM_EXPORT(realm_main) int32_t realm_main(void) {
    for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
        int32_t prompt = attempt ? prompt_again() : realm_prompt_own();
        if (prompt < 0) return prompt;
        answer.len = 0;
        int32_t status = realm_text_generate(&answer, prompt, NULL, NULL);
        if (status < 0) return status;
        if (!repair()) continue;
        realm_json all;
        if (json.cut || !realm_json_parse(json.at, json.len, &all)) return REALM_E_INTERNAL; /* a fault of the reader */
        return realm_text_emit(&json);
    }
    return REALM_E_FORMAT;
}
