/* tools/abi-gen/words.c - text that is being written, and names as each language writes them. */
#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "abi-gen.h"

void put(writer *o, const char *fmt, ...) {
    for (;;) {
        va_list args;
        va_start(args, fmt);
        int n = vsnprintf(o->data + o->len, o->cap - o->len, fmt, args);
        va_end(args);
        if (n < 0) die("cannot format");
        if ((size_t)n < o->cap - o->len) {
            o->len += (size_t)n;
            return;
        }
        o->cap = o->cap * 2 + (size_t)n + 4096;
        o->data = realloc(o->data, o->cap);
        if (!o->data) die("out of memory");
    }
}

void put_wrapped(writer *o, const char *lead, const char *text) {
    size_t room = LINE_WIDTH - strlen(lead);
    while (*text) {
        size_t n = strlen(text);
        if (n > room)
            for (n = room; n > 0 && text[n] != ' '; n--) {
            }
        if (!n) n = strcspn(text, " ");
        put(o, "%s%.*s\n", lead, (int)n, text);
        text += n;
        text += strspn(text, " ");
    }
}

void put_c_comment(writer *o, const char *text) {
    if (strlen(text) + 6 <= LINE_WIDTH) {
        put(o, "/* %s */\n", text);
        return;
    }
    size_t from = o->len;
    put_wrapped(o, " * ", text);
    o->data[from] = '/';
    o->data[from + 1] = '*';
    o->data[from + 2] = ' ';
    o->len--;
    put(o, " */\n");
}

const char *bare(const char *name) { return strncmp(name, "realm_", 6) ? name : name + 6; }

const char *camel(const char *name) {
    static char ring[16][NAME_MAX_];
    static unsigned turn;
    char *to = ring[turn++ % 16], *start = to;
    static const char *const WHOLE[] = {"abi", "id", "cpu", "kv", "json", "rms", "xtc", "dry", "io", "ok"};
    static const char *const WRITTEN[] = {"ABI", "ID", "CPU", "KV", "JSON", "RMS", "XTC", "DRY", "IO", "OK"};
    while (*name) {
        size_t n = strcspn(name, "_");
        bool whole = false;
        for (size_t i = 0; i < sizeof WHOLE / sizeof *WHOLE; i++)
            if (strlen(WHOLE[i]) == n && !strncasecmp(name, WHOLE[i], n)) {
                to += sprintf(to, "%s", WRITTEN[i]);
                whole = true;
            }
        for (size_t i = 0; !whole && i < n; i++)
            *to++ = (char)(i ? tolower((unsigned char)name[i]) : toupper((unsigned char)name[i]));
        name += n;
        name += *name == '_';
    }
    *to = 0;
    return start;
}

const char *lower_camel(const char *name) {
    const char *rest = strchr(name, '_');
    if (!rest) return name;
    static char ring[8][NAME_MAX_];
    static unsigned turn;
    char *to = ring[turn++ % 8];
    snprintf(to, NAME_MAX_, "%.*s%s", (int)(rest - name), name, camel(rest + 1));
    return to;
}

const char *safe(lang l, const char *name) {
    static const char *const KEPT[N_LANGS] = {[C] = "",
                                              [GO] = " type func map range ",
                                              [RUST] = " type ref in move match use loop ",
                                              [AS] = " in of function new delete "};
    static char ring[8][NAME_MAX_ + 3];
    static unsigned turn;
    char *to = ring[turn++ % 8];
    snprintf(to, NAME_MAX_ + 3, " %s ", name);
    bool kept = strstr(KEPT[l], to);
    snprintf(to, NAME_MAX_ + 3, "%s%s", name, kept ? "_" : "");
    return to;
}

/* A comment that names constants as C does, in the language's own names. */
static const char *in_words_of(lang l, const char *text) {
    static char to[2 * COMMENT_MAX];
    size_t n = 0;
    while (*text && n + NAME_MAX_ < sizeof to) {
        size_t len = 0;
        while (isalnum((unsigned char)text[len]) || text[len] == '_') len++;
        if (l != C && len > 6 && !strncmp(text, "REALM_", 6) && text[len - 1] != '_') {
            char name[NAME_MAX_];
            snprintf(name, sizeof name, "%.*s", (int)(len - 6), text + 6);
            n += (size_t)sprintf(to + n, "%s", l == GO ? camel(name) : name);
            text += len;
        } else {
            to[n++] = *text++;
            while (len-- > 1 && n + 1 < sizeof to) to[n++] = *text++;
        }
    }
    to[n] = 0;
    return to;
}

void put_comment(writer *o, lang l, const char *lead, const char *text) { put_wrapped(o, lead, in_words_of(l, text)); }

void put_title(writer *o, lang l, const char *title) {
    if (l == C)
        put(o, "\n/* ---- %s ---- */\n", title);
    else
        put(o, "\n// ---- %s ----\n", title);
}
