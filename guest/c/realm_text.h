/* realm_text.h - text and JSON for freestanding programs in C: what a program that talks needs, without a library.
 *
 * A realm_text is a bounded piece of the program's memory that text is added to. What does not fit is left out whole
 * and remembered, so that a chain of additions is checked once, at its end (realm_text_emit, or `cut`). A realm_json is
 * a value inside JSON text, found by key or place; nothing is copied but strings on their way out. Its text is a
 * model's or a client's as often as not, so every step is bounded and a malformed value is simply not there.
 */
#ifndef REALM_TEXT_H
#define REALM_TEXT_H

#include "realm_guest.h"

#define REALM_TEXT_FN __attribute__((unused)) static

typedef struct realm_text {
    char *at;
    size_t len, max;
    bool cut; /* something did not fit */
} realm_text;

/* An empty text over a char array: `static char line[512]; realm_text t = REALM_TEXT_IN(line);` */
#define REALM_TEXT_IN(array) {.at = (array), .max = sizeof(array)}

REALM_TEXT_FN void realm_text_add(realm_text *t, const char *from, size_t len) {
    if (len > t->max - t->len) {
        t->cut = true;
        return;
    }
    for (size_t i = 0; i < len; i++) t->at[t->len + i] = from[i];
    t->len += len;
}

REALM_TEXT_FN void realm_text_puts(realm_text *t, const char *s) { realm_text_add(t, s, realm_strlen(s)); }
REALM_TEXT_FN void realm_text_putc(realm_text *t, char c) { realm_text_add(t, &c, 1); }

REALM_TEXT_FN void realm_text_int(realm_text *t, int64_t n) {
    char digits[20];
    size_t i = sizeof digits;
    uint64_t left = n < 0 ? 0 - (uint64_t)n : (uint64_t)n;
    do {
        digits[--i] = (char)('0' + left % 10);
        left /= 10;
    } while (left);
    if (n < 0) realm_text_putc(t, '-');
    realm_text_add(t, digits + i, sizeof digits - i);
}

/* Two digits behind the point. */
REALM_TEXT_FN void realm_text_fixed(realm_text *t, double x) {
    int64_t hundredths = (int64_t)(x * 100 + (x < 0 ? -0.5 : 0.5)), whole = hundredths / 100, rest = hundredths % 100;
    if (hundredths < 0) realm_text_putc(t, '-');
    realm_text_int(t, whole < 0 ? -whole : whole);
    realm_text_putc(t, '.');
    if (rest < 0) rest = -rest;
    if (rest < 10) realm_text_putc(t, '0');
    realm_text_int(t, rest);
}

/* As a JSON string, in quotes. */
REALM_TEXT_FN void realm_text_json(realm_text *t, const char *from, size_t len) {
    static const char HEX[] = "0123456789abcdef";
    realm_text_putc(t, '"');
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)from[i];
        if (c == '"' || c == '\\') {
            realm_text_putc(t, '\\');
            realm_text_putc(t, (char)c);
        } else if (c == '\n') {
            realm_text_puts(t, "\\n");
        } else if (c < 0x20) {
            realm_text_puts(t, "\\u00");
            realm_text_putc(t, HEX[c >> 4]);
            realm_text_putc(t, HEX[c & 15]);
        } else {
            realm_text_putc(t, (char)c);
        }
    }
    realm_text_putc(t, '"');
}

/* Adds a field of the request (as realm_input) or, with "", the whole of it. Returns its length or a negative code. */
REALM_TEXT_FN int32_t realm_text_input(realm_text *t, const char *field) {
    size_t room = t->max - t->len;
    int32_t n = realm_input(field, realm_strlen(field), t->at + t->len, room);
    if (n < 0) return n;
    if ((size_t)n > room) return REALM_E_RANGE;
    t->len += (size_t)n;
    return n;
}

/* Hands the text to the client; REALM_E_RANGE when some of it did not fit into its buffer. */
REALM_TEXT_FN int32_t realm_text_emit(const realm_text *t) {
    if (t->cut) return REALM_E_RANGE;
    return t->len ? realm_emit(t->at, t->len) : 0;
}

REALM_TEXT_FN bool realm_text_is(const realm_text *t, const char *s) {
    size_t i = 0;
    while (i < t->len && s[i] && t->at[i] == s[i]) i++;
    return i == t->len && !s[i];
}

/* Where `s` begins at or after `from`, or SIZE_MAX. */
REALM_TEXT_FN size_t realm_text_find(const realm_text *t, const char *s, size_t from) {
    size_t n = realm_strlen(s);
    for (size_t i = from; i + n <= t->len; i++) {
        size_t k = 0;
        while (k < n && t->at[i + k] == s[k]) k++;
        if (k == n) return i;
    }
    return SIZE_MAX;
}

/* ---- JSON ---- */

typedef struct realm_json {
    const char *at, *end; /* of the value, without space around it */
} realm_json;

enum { REALM_JSON_DEPTH_MAX = 32 };

REALM_TEXT_FN const char *realm_json_space(const char *at, const char *end) {
    while (at < end && (*at == ' ' || *at == '\n' || *at == '\r' || *at == '\t')) at++;
    return at;
}

/* Behind the string that starts at `at`, or NULL. */
REALM_TEXT_FN const char *realm_json_skip_string(const char *at, const char *end) {
    if (at >= end || *at != '"') return NULL;
    for (at++; at < end && *at != '"'; at++) {
        if ((unsigned char)*at < 0x20) return NULL;
        if (*at != '\\') continue;
        if (++at >= end) return NULL;
        bool known = false;
        for (const char *e = "\"\\/bfnrtu"; *e; e++) known = known || *e == *at;
        if (!known) return NULL;
        for (int i = 0; *at == 'u' && i < 4; i++) {
            char h = at + 1 + i < end ? at[1 + i] : 0;
            if (!((h >= '0' && h <= '9') || (h >= 'a' && h <= 'f') || (h >= 'A' && h <= 'F'))) return NULL;
        }
    }
    return at < end ? at + 1 : NULL;
}

REALM_TEXT_FN const char *realm_json_skip_digits(const char *at, const char *end) {
    const char *from = at;
    while (at < end && *at >= '0' && *at <= '9') at++;
    return at > from ? at : NULL;
}

REALM_TEXT_FN const char *realm_json_skip_number(const char *at, const char *end) {
    if (at < end && *at == '-') at++;
    if (at + 1 < end && at[0] == '0' && at[1] >= '0' && at[1] <= '9') return NULL;
    if (!(at = realm_json_skip_digits(at, end))) return NULL;
    if (at < end && *at == '.' && !(at = realm_json_skip_digits(at + 1, end))) return NULL;
    if (at < end && (*at == 'e' || *at == 'E')) {
        at++;
        if (at < end && (*at == '+' || *at == '-')) at++;
        at = realm_json_skip_digits(at, end);
    }
    return at;
}

/* Behind the value that starts at `at` (no space in front), or NULL where there is no valid one. */
REALM_TEXT_FN const char *realm_json_skip(const char *at, const char *end, int depth) {
    if (at >= end || depth > REALM_JSON_DEPTH_MAX) return NULL;
    if (*at == '"') return realm_json_skip_string(at, end);
    if (*at == '{' || *at == '[') {
        char close = *at == '{' ? '}' : ']';
        at = realm_json_space(at + 1, end);
        if (at < end && *at == close) return at + 1;
        for (;;) {
            if (close == '}') {
                if (!(at = realm_json_skip_string(at, end))) return NULL;
                at = realm_json_space(at, end);
                if (at >= end || *at++ != ':') return NULL;
                at = realm_json_space(at, end);
            }
            if (!(at = realm_json_skip(at, end, depth + 1))) return NULL;
            at = realm_json_space(at, end);
            if (at >= end) return NULL;
            if (*at == close) return at + 1;
            if (*at++ != ',') return NULL;
            at = realm_json_space(at, end);
        }
    }
    static const char *const WORDS[] = {"true", "false", "null"};
    for (int w = 0; w < 3; w++) {
        size_t i = 0;
        while (WORDS[w][i] && at + i < end && at[i] == WORDS[w][i]) i++;
        if (!WORDS[w][i]) return at + i;
    }
    return realm_json_skip_number(at, end);
}

/* The value of a whole text; false when it is not valid JSON with nothing but space around it. */
REALM_TEXT_FN bool realm_json_parse(const char *text, size_t len, realm_json *out) {
    const char *end = text + len, *at = realm_json_space(text, end), *behind = realm_json_skip(at, end, 0);
    if (!behind || realm_json_space(behind, end) != end) return false;
    *out = (realm_json){at, behind};
    return true;
}

/* The i-th item of an array, or member of an object (its key in *key where key is not NULL). */
REALM_TEXT_FN bool realm_json_at(realm_json v, uint32_t i, realm_json *key, realm_json *out) {
    if (v.at >= v.end || (*v.at != '[' && *v.at != '{')) return false;
    bool object = *v.at == '{';
    const char *at = realm_json_space(v.at + 1, v.end);
    for (uint32_t k = 0; at && at < v.end && *at != ']' && *at != '}'; k++) {
        realm_json name = {at, at};
        if (object) {
            name.end = realm_json_skip_string(at, v.end);
            if (!name.end) return false;
            at = realm_json_space(name.end, v.end);
            at = realm_json_space(at + 1, v.end); /* the colon */
        }
        const char *behind = realm_json_skip(at, v.end, 0);
        if (!behind) return false;
        if (k == i) {
            if (key) *key = name;
            *out = (realm_json){at, behind};
            return true;
        }
        at = realm_json_space(behind, v.end);
        if (at < v.end && *at == ',') at = realm_json_space(at + 1, v.end);
    }
    return false;
}

/* A member by its key; keys with escapes are not found. */
REALM_TEXT_FN bool realm_json_get(realm_json object, const char *key, realm_json *out) {
    size_t n = realm_strlen(key);
    realm_json name, value;
    for (uint32_t i = 0; realm_json_at(object, i, &name, &value); i++) {
        size_t k = 0;
        if ((size_t)(name.end - name.at) != n + 2) continue;
        while (k < n && name.at[1 + k] == key[k]) k++;
        if (k < n) continue;
        *out = value;
        return true;
    }
    return false;
}

REALM_TEXT_FN void realm_text_add_code_point(realm_text *t, uint32_t c) {
    char b[4];
    size_t n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const unsigned char LEAD[] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (size_t i = n - 1; i > 0; i--, c >>= 6) b[i] = (char)(0x80 | (c & 0x3f));
    b[0] = (char)(LEAD[n] | c);
    realm_text_add(t, b, n);
}

REALM_TEXT_FN uint32_t realm_json_hex(const char *at) {
    uint32_t c = 0;
    for (int i = 0; i < 4; i++) {
        char h = at[i];
        c = c << 4 | (uint32_t)(h <= '9' ? h - '0' : (h | 0x20) - 'a' + 10);
    }
    return c;
}

/* Adds what a JSON string says; anything else as its JSON text. */
REALM_TEXT_FN void realm_text_json_value(realm_text *t, realm_json v) {
    if (v.at >= v.end || *v.at != '"') {
        realm_text_add(t, v.at, (size_t)(v.end - v.at));
        return;
    }
    for (const char *at = v.at + 1; at < v.end - 1; at++) {
        if (*at != '\\') {
            realm_text_putc(t, *at);
            continue;
        }
        switch (*++at) {
        case 'n': realm_text_putc(t, '\n'); break;
        case 't': realm_text_putc(t, '\t'); break;
        case 'r': realm_text_putc(t, '\r'); break;
        case 'b': realm_text_putc(t, '\b'); break;
        case 'f': realm_text_putc(t, '\f'); break;
        case 'u': {
            uint32_t c = realm_json_hex(at + 1);
            at += 4;
            bool pair = c >= 0xd800 && c < 0xdc00 && at + 6 < v.end - 1 && at[1] == '\\' && at[2] == 'u';
            uint32_t low = pair ? realm_json_hex(at + 3) : 0;
            if (low >= 0xdc00 && low < 0xe000) {
                c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
                at += 6;
            } else if (c >= 0xd800 && c < 0xe000) {
                c = 0xfffd; /* half of a pair */
            }
            realm_text_add_code_point(t, c);
            break;
        }
        default: realm_text_putc(t, *at);
        }
    }
}

/* ---- the request ---- */

/* Adds what the client asks: the content of the last message, or the prompt of a completion. `room` holds the request
 * meanwhile. Returns 0, or a negative code: REALM_E_NOT_FOUND when there is neither. */
REALM_TEXT_FN int32_t realm_text_question(realm_text *t, char *room, size_t room_len) {
    realm_text request = {.at = room, .max = room_len};
    int32_t n = realm_text_input(&request, "messages");
    if (n == REALM_E_NOT_FOUND) n = realm_text_input(t, "prompt");
    if (n < 0 || !request.len) return n < 0 ? n : 0;
    realm_json all, last = {0}, part, content;
    if (!realm_json_parse(room, request.len, &all)) return REALM_E_FORMAT;
    for (uint32_t i = 0; realm_json_at(all, i, NULL, &part); i++) last = part;
    if (!last.at || !realm_json_get(last, "content", &content)) return REALM_E_NOT_FOUND;
    if (*content.at == '[') /* parts: the texts among them */
        for (uint32_t i = 0; realm_json_at(content, i, NULL, &part); i++) {
            realm_json text;
            if (realm_json_get(part, "text", &text)) realm_text_json_value(t, text);
        }
    else
        realm_text_json_value(t, content);
    return t->cut ? REALM_E_RANGE : 0;
}

/* ---- whole generations ---- */

typedef struct realm_score {
    uint32_t tokens;
    double logprob; /* the sum, where the options ask for REALM_GENERATE_LOGPROBS */
} realm_score;

/* Runs a generation to its end and adds its text; `score` (may be NULL) is added to as well. Returns REALM_END_STOP or
 * REALM_END_LENGTH, or a negative code. */
REALM_TEXT_FN int32_t realm_text_generate(realm_text *t, int32_t prompt, const realm_generate_options *options,
                                          realm_score *score) {
    int32_t g = realm_generate(prompt, options, REALM_MODE_EVENTS);
    if (g < 0) return g;
    for (;;) {
        realm_guest_event events[32];
        int32_t n = realm_wait(g, events, 32, t->at + t->len, t->max - t->len, -1);
        for (int32_t i = 0; i < n; i++) {
            t->len += events[i].text_len;
            if (events[i].kind == REALM_EVENT_KIND_TOKEN && score) {
                score->tokens++;
                score->logprob += (double)events[i].logprob;
            }
        }
        bool ended = n > 0 && events[n - 1].kind == REALM_EVENT_KIND_END;
        if (n >= 0 && !ended) continue;
        int32_t result = n < 0 ? n : events[n - 1].status < 0 ? events[n - 1].status : (int32_t)events[n - 1].finish;
        realm_close(g);
        return result;
    }
}

#endif
