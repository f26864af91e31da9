/* tools/abi-gen.c - writes what guests know of the host from the two places that define it.
 *
 * The calls come from the table of src/tenant/host/abi.h, compiled in; constants and structures from
 * include/realm/abi.h, read as text, for a C program cannot ask the preprocessor for names. The reader knows the small
 * part of C that this header uses (numeric #defines, structures of scalars, arrays and nothing else, comments) and
 * refuses whatever it does not know, so nothing is left out in silence. Three things make what it writes sound:
 *
 *   - a structure with hidden padding is refused, so a layout follows from the order and the widths of its fields in
 *     every language, and its size proves it;
 *   - `abi-gen --layouts` writes C assertions of every constant, size and offset as read here: they are compiled for
 * the host, for wasm32 and for wasm64;
 *   - the Go, Rust and AssemblyScript files assert the sizes (and where the language can, the offsets) when they are
 *     compiled.
 *
 * The letters of each call's parameters are held against its C declaration.
 *
 *   abi-gen            writes the files, from the root of a checkout
 *   abi-gen --check    writes nothing; says which file is out of date, and fails
 *   abi-gen --layouts  the assertions, to stdout
 */
#include <ctype.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "realm/status.h"
#include "tenant/host/abi.h"

#define HEADER "include/realm/abi.h"
enum { NAME_MAX_ = 64, FIELDS_MAX = 32, ITEMS_MAX = 256, PARAMS_MAX = 12, COMMENT_MAX = 2048, LINE_WIDTH = 120 };

/* ---- the calls ---- */

typedef struct call {
    const char *group, *name, *letters, *declaration, *text;
    unsigned flags;
} call;

#define ROW(group, name, params, flags, declaration, text) {#group, #name, params, #declaration, text, flags},
static const call CALLS[] = {REALM_ABI_CALLS(ROW)};
#undef ROW
enum { N_CALLS = sizeof CALLS / sizeof *CALLS };

static const struct group {
    const char *name, *title;
} GROUPS[] = {
#define ROW(name, title) {#name, title},
    REALM_ABI_GROUPS(ROW)
#undef ROW
};
enum { N_GROUPS = sizeof GROUPS / sizeof *GROUPS };

static const struct code {
    const char *name, *text;
    int value;
} CODES[] = {
#define ROW(name, value, text) {#name, text, value},
    REALM_STATUS_LIST(ROW)
#undef ROW
};
enum { N_CODES = sizeof CODES / sizeof *CODES };

/* ---- scalars and how each language writes them ---- */

typedef enum lang { C, GO, RUST, AS, N_LANGS } lang;

static const struct scalar {
    const char *in[N_LANGS]; /* NULL: not in structures */
    unsigned size;           /* 0: as wide as a pointer, for parameters alone */
    char letter;
} SCALARS[] = {
    {{"int32_t", "int32", "i32", "i32"}, 4, 'i'}, {{"uint32_t", "uint32", "u32", "u32"}, 4, 'i'},
    {{"int64_t", "int64", "i64", "i64"}, 8, 'l'}, {{"uint64_t", "uint64", "u64", "u64"}, 8, 'l'},
    {{"float", "float32", "f32", "f32"}, 4, 'f'}, {{"size_t", "uint32", "usize", "usize"}, 0, 'p'},
    {{"char", "byte", "u8", "u8"}, 1, 0},         {{"void", NULL, "u8", "u8"}, 0, 0},
};
enum { N_SCALARS = sizeof SCALARS / sizeof *SCALARS };

typedef struct field {
    const struct scalar *type;
    char name[NAME_MAX_];
    unsigned array, offset; /* array 0: none */
    char comment[COMMENT_MAX];
} field;

typedef enum kind { COMMENT, CONSTANT, STRUCT } kind;

typedef struct item {
    kind kind;
    char name[NAME_MAX_]; /* as in C */
    char comment[COMMENT_MAX];
    uint64_t value; /* CONSTANT */
    bool is_unsigned;
    field fields[FIELDS_MAX]; /* STRUCT */
    unsigned n_fields, size;
} item;

static item items[ITEMS_MAX];
static unsigned n_items;

/* ---- reading the header ---- */

static const char *text_start, *at;

static void die(const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    fputs("abi-gen: ", stderr);
    vfprintf(stderr, fmt, args);
    fputc('\n', stderr);
    va_end(args);
    exit(1);
}

static void refuse(const char *what) {
    unsigned line = 1;
    for (const char *p = text_start; p < at; p++) line += *p == '\n';
    die(HEADER ":%u: %s", line, what);
}

static char *read_file(const char *path) {
    FILE *f = fopen(path, "rb");
    if (!f) return NULL;
    char *data = NULL;
    size_t len = 0, got;
    do {
        char *more = realloc(data, len + 65536 + 1);
        if (!more) die("out of memory");
        data = more;
        got = fread(data + len, 1, 65536, f);
        len += got;
    } while (got);
    fclose(f);
    data[len] = 0;
    return data;
}

static void skip_blanks(void) {
    for (;; at++) {
        if (at[0] == '\\' && at[1] == '\n')
            at++;
        else if (*at != ' ' && *at != '\t')
            return;
    }
}

static void skip_space(void) {
    while (isspace((unsigned char)*at)) at++;
}

static bool take(const char *word) {
    size_t n = strlen(word);
    if (strncmp(at, word, n) != 0) return false;
    if (isalnum((unsigned char)word[n - 1]) && (isalnum((unsigned char)at[n]) || at[n] == '_')) return false;
    at += n;
    return true;
}

static void take_name(char *out) {
    size_t n = 0;
    while (isalnum((unsigned char)*at) || *at == '_') {
        if (n + 1 >= NAME_MAX_) refuse("a name is too long");
        out[n++] = *at++;
    }
    if (!n) refuse("a name is missing");
    out[n] = 0;
}

/* A comment as one line of text, its stars and line breaks gone; appended to what is there. */
static void take_comment(char *out) {
    const char *end = strstr(at, "*/");
    if (!end) refuse("a comment does not end");
    size_t n = strlen(out);
    bool gap = n > 0;
    for (at += 2; at < end; at++) {
        if (*at == '\n') {
            gap = true;
            while (isspace((unsigned char)at[1])) at++;
            while (at + 1 < end && at[1] == '*') at++;
        } else if (*at == ' ') {
            gap = true;
        } else {
            if (n + 3 >= COMMENT_MAX) refuse("a comment is too long");
            if (gap && n) out[n++] = ' ';
            gap = false;
            out[n++] = *at;
        }
    }
    out[n] = 0;
    at = end + 2;
}

static void take_trailing_comment(char *out) {
    skip_blanks();
    if (!strncmp(at, "/*", 2)) take_comment(out);
}

static item *add(kind what) {
    if (n_items == ITEMS_MAX) refuse("too many constants and structures for abi-gen");
    item *it = &items[n_items++];
    *it = (item){.kind = what};
    return it;
}

static void read_define(void) {
    skip_blanks();
    char name[NAME_MAX_];
    take_name(name);
    skip_blanks();
    if (*at == '\n' && !strcmp(name, "REALM_ABI_H")) return; /* the guard */
    if (strncmp(name, "REALM_", 6) != 0) refuse("a constant whose name does not start with REALM_");
    if (!isdigit((unsigned char)*at)) refuse("a constant that is not a number");
    char *end;
    item *it = add(CONSTANT);
    memcpy(it->name, name, sizeof name);
    it->value = strtoull(at, &end, 0);
    at = end;
    it->is_unsigned = take("u");
    if (it->value > (it->is_unsigned ? UINT32_MAX : INT32_MAX)) refuse("a constant of more than 32 bits");
    take_trailing_comment(it->comment);
    skip_blanks();
    if (*at != '\n') refuse("something stands behind a constant's value");
}

static const struct scalar *take_scalar(void) {
    for (unsigned i = 0; i < N_SCALARS; i++)
        if (take(SCALARS[i].in[C])) return &SCALARS[i];
    refuse("a type that abi-gen does not know");
    return NULL;
}

static void read_struct(void) {
    item *it = add(STRUCT);
    skip_blanks();
    take_name(it->name);
    skip_blanks();
    if (!take("{")) refuse("{ is missing");
    take_trailing_comment(it->comment);
    unsigned widest = 1;
    for (skip_space(); !take("}"); skip_space()) {
        const struct scalar *type = take_scalar();
        if (type->size < 4) refuse("structures hold numbers of 32 or 64 bits alone");
        do {
            if (it->n_fields == FIELDS_MAX) refuse("too many fields");
            field *f = &it->fields[it->n_fields++];
            skip_space();
            take_name(f->name);
            f->type = type;
            if (take("[")) {
                char *end;
                f->array = (unsigned)strtoul(at, &end, 10);
                at = end;
                if (!f->array || !take("]")) refuse("an array's length is not a number");
            }
            f->offset = it->size;
            if (it->size % type->size) refuse("hidden padding in front of this field: make it a field");
            it->size += type->size * (f->array ? f->array : 1);
            skip_space();
        } while (take(","));
        if (!take(";")) refuse("; is missing");
        if (type->size > widest) widest = type->size;
        take_trailing_comment(it->fields[it->n_fields - 1].comment);
    }
    if (it->size % widest) refuse("hidden padding at the end of this structure: make it a field");
    skip_blanks();
    char name[NAME_MAX_];
    take_name(name);
    if (strcmp(name, it->name) != 0) refuse("a structure's two names differ");
    if (!take(";")) refuse("; is missing");
}

static void read_header(void) {
    char *text = read_file(HEADER);
    if (!text) die("cannot read " HEADER " (run it from the root of a checkout)");
    text_start = at = text;
    bool first = true;
    for (skip_space(); *at; skip_space()) {
        if (!strncmp(at, "/*", 2)) {
            item *it = add(COMMENT);
            take_comment(it->comment);
            if (first) n_items--; /* the essay at the top is C's own */
            first = false;
        } else if (take("#define"))
            read_define();
        else if (take("typedef")) {
            skip_space();
            if (!take("struct")) refuse("a typedef that is no structure");
            read_struct();
        } else if (take("#include") || take("#ifndef") || take("#endif"))
            at += strcspn(at, "\n");
        else
            refuse("abi-gen does not know what this is");
    }
    free(text);
}

/* ---- parameters of calls ---- */

typedef struct param {
    char name[NAME_MAX_], type[NAME_MAX_]; /* type: a scalar's or a structure's name */
    bool pointer, is_const;
    const struct scalar *scalar; /* NULL: a structure */
    char letter;
} param;

static const struct scalar *scalar_of(const char *name) {
    for (unsigned i = 0; i < N_SCALARS; i++)
        if (!strcmp(SCALARS[i].in[C], name)) return &SCALARS[i];
    return NULL;
}

static bool is_struct(const char *name) {
    for (unsigned i = 0; i < n_items; i++)
        if (items[i].kind == STRUCT && !strcmp(items[i].name, name)) return true;
    return false;
}

/* The parameters of a call, whose letters must be those of the table. */
static unsigned params_of(const call *c, param *out) {
    char text[1024];
    snprintf(text, sizeof text, "%s", c->declaration);
    size_t len = strlen(text);
    if (text[0] != '(' || text[len - 1] != ')') die("%s: the declaration is not in parentheses", c->name);
    text[len - 1] = 0;
    unsigned n = 0;
    if (strcmp(text + 1, "void") != 0) {
        char *rest = NULL;
        for (char *part = strtok_r(text + 1, ",", &rest); part; part = strtok_r(NULL, ",", &rest)) {
            if (n == PARAMS_MAX) die("%s: too many parameters", c->name);
            param *p = &out[n++];
            memset(p, 0, sizeof *p);
            char *s = part + strspn(part, " ");
            if (!strncmp(s, "const ", 6)) p->is_const = true, s += 6;
            size_t k = strcspn(s, " ");
            snprintf(p->type, sizeof p->type, "%.*s", (int)k, s);
            s += k + strspn(s + k, " ");
            if (*s == '*') p->pointer = true, s++;
            snprintf(p->name, sizeof p->name, "%s", s);
            p->scalar = scalar_of(p->type);
            if (!p->name[0] || strspn(p->name, "abcdefghijklmnopqrstuvwxyz_0123456789") != strlen(p->name))
                die("%s: cannot read the parameter '%s'", c->name, part);
            if (!p->scalar && !(p->pointer && is_struct(p->type))) die("%s: unknown type %s", c->name, p->type);
            p->letter = p->pointer ? 'p' : p->scalar->letter;
            if (!p->letter) die("%s: %s is no parameter", c->name, p->type);
        }
    }
    bool same = strlen(c->letters) == n;
    for (unsigned i = 0; same && i < n; i++) same = c->letters[i] == out[i].letter;
    if (!same) die("%s: the declaration %s does not have the letters \"%s\"", c->name, c->declaration, c->letters);
    return n;
}

/* ---- writing ---- */

typedef struct out {
    char *data;
    size_t len, cap;
} out;

static void put(out *o, const char *fmt, ...) {
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

/* Text in lines that start with `lead`. */
static void put_wrapped(out *o, const char *lead, const char *text) {
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

static void put_c_comment(out *o, const char *text) {
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

/* realm_guest_event -> guest_event */
static const char *bare(const char *name) { return strncmp(name, "realm_", 6) ? name : name + 6; }

/* max_tokens, MAX_TOKENS -> MaxTokens; keeps initialisms as Go writes them. */
static const char *camel(const char *name) {
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

static const char *lower_camel(const char *name) {
    const char *rest = strchr(name, '_');
    if (!rest) return name;
    static char ring[8][NAME_MAX_];
    static unsigned turn;
    char *to = ring[turn++ % 8];
    snprintf(to, NAME_MAX_, "%.*s%s", (int)(rest - name), name, camel(rest + 1));
    return to;
}

/* A name that the language keeps for itself gets a line behind it. */
static const char *safe(lang l, const char *name) {
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

static void put_comment(out *o, lang l, const char *lead, const char *text) {
    put_wrapped(o, lead, in_words_of(l, text));
}

static void put_title(out *o, lang l, const char *title) {
    if (l == C)
        put(o, "\n/* ---- %s ---- */\n", title);
    else
        put(o, "\n// ---- %s ----\n", title);
}

#define MADE "made by tools/abi-gen (make abi) from src/tenant/host/abi.h and include/realm/abi.h; do not edit"

static bool has_calls(const char *group) {
    for (unsigned i = 0; i < N_CALLS; i++)
        if (!strcmp(CALLS[i].group, group)) return true;
    return false;
}

/* ---- C ---- */

static const char *c_prefix(const char *name) { return strncmp(name, "realm_", 6) ? "realm_" : ""; }

static void put_c(out *o) {
    put_c_comment(o, "realm_calls.h - the host's functions, for realm_guest.h: " MADE ".");
    put(o, "/* clang-format off */\n");
    for (unsigned g = 0; g < N_GROUPS; g++) {
        if (!has_calls(GROUPS[g].name)) continue;
        put_title(o, C, GROUPS[g].title);
        for (unsigned i = 0; i < N_CALLS; i++) {
            const call *c = &CALLS[i];
            if (strcmp(c->group, GROUPS[g].name) != 0) continue;
            put(o, "\n");
            put_c_comment(o, c->text);
            char line[1024];
            snprintf(line, sizeof line, "int32_t %s%s%s REALM_IMPORT(%s);", c_prefix(c->name), c->name, c->declaration,
                     c->name);
            if (strlen(line) > LINE_WIDTH) { /* break at the last comma that fits */
                size_t n = LINE_WIDTH - 1;
                while (n > 0 && line[n] != ',') n--;
                size_t indent = strcspn(line, "(") + 1;
                put(o, "%.*s,\n%*s%s\n", (int)n, line, (int)indent, "", line + n + 2);
            } else
                put(o, "%s\n", line);
        }
    }
}

/* ---- the three other languages ---- */

static void put_constant(out *o, lang l, const item *it) {
    const char *name = it->name + 6, *type = it->is_unsigned ? "u32" : "i32";
    if (it->comment[0]) put_comment(o, l, l == RUST ? "/// " : "// ", it->comment);
    if (l == GO) put(o, "const %s = %llu\n", camel(name), (unsigned long long)it->value);
    if (l == RUST) put(o, "pub const %s: %s = %llu;\n", name, type, (unsigned long long)it->value);
    if (l == AS) put(o, "export const %s: %s = %llu;\n", name, type, (unsigned long long)it->value);
}

/* gofmt aligns the types of fields that stand without a comment between them. */
static int go_width(const item *it, unsigned k) {
    unsigned from = k, to = k + 1;
    while (from > 0 && !it->fields[from].comment[0]) from--;
    while (to < it->n_fields && !it->fields[to].comment[0]) to++;
    size_t widest = 0;
    for (; from < to; from++) {
        size_t n = strlen(camel(it->fields[from].name));
        if (n > widest) widest = n;
    }
    return (int)widest;
}

static void put_struct(out *o, lang l, const item *it) {
    char name[NAME_MAX_]; /* camel's answers do not last through all fields */
    snprintf(name, sizeof name, "%s", camel(bare(it->name)));
    if (it->comment[0]) put_comment(o, l, l == RUST ? "/// " : "// ", it->comment);
    if (l == GO) put(o, "type %s struct {\n\t_ structs.HostLayout\n\n", name);
    if (l == RUST) put(o, "#[repr(C)]\n#[derive(Clone, Copy, Debug, Default, PartialEq)]\npub struct %s {\n", name);
    if (l == AS) put(o, "@unmanaged\nexport class %s {\n", name);
    for (unsigned k = 0; k < it->n_fields; k++) {
        const field *f = &it->fields[k];
        const char *type = f->type->in[l];
        if (f->comment[0]) put_comment(o, l, l == GO ? "\t// " : l == RUST ? "    /// " : "  // ", f->comment);
        if (l == GO) put(o, "\t%-*s ", go_width(it, k), camel(f->name));
        if (l == GO && f->array) put(o, "[%u]", f->array);
        if (l == GO) put(o, "%s\n", type);
        if (l == RUST && f->array) put(o, "    pub %s: [%s; %u],\n", safe(l, f->name), type, f->array);
        if (l == RUST && !f->array) put(o, "    pub %s: %s,\n", safe(l, f->name), type);
        for (unsigned e = 0; l == AS && e < (f->array ? f->array : 1); e++) {
            char number[16] = "";
            if (f->array) snprintf(number, sizeof number, "%u", e);
            put(o, "  %s%s: %s = 0;\n", f->name, number, type);
        }
    }
    put(o, "}\n");
    if (l == RUST) put(o, "const _: () = assert!(core::mem::size_of::<%s>() == %u);\n", name, it->size);
    if (l == GO) put(o, "\nvar _ = [1]struct{}{}[unsafe.Sizeof(%s{})-%u]\n", name, it->size);
    if (l == AS) put(o, "if (offsetof<%s>() != %u) ERROR(\"%s\");\n", name, it->size, name);
    for (unsigned k = 0; k < it->n_fields; k++) {
        const field *f = &it->fields[k];
        if (l == GO) put(o, "var _ = [1]struct{}{}[unsafe.Offsetof(%s{}.%s)-%u]\n", name, camel(f->name), f->offset);
        if (l == AS)
            put(o, "if (offsetof<%s>(\"%s%s\") != %u) ERROR(\"%s.%s\");\n", name, f->name, f->array ? "0" : "",
                f->offset, name, f->name);
    }
}

/* What stands together in the header stands together here: a comment with the constants that follow it. */
static void put_constants_and_structs(out *o, lang l) {
    for (unsigned i = 0; i < n_items; i++) {
        const item *it = &items[i], *before = i ? it - 1 : NULL;
        bool follows = before && before->kind != STRUCT && it->kind == CONSTANT;
        /* in Go what has a comment of its own stands apart */
        if (!follows || (l == GO && before->kind == CONSTANT && it->comment[0]) ||
            (before->kind == COMMENT && (it->comment[0] || it + 1 == items + n_items)))
            put(o, "\n");
        if (it->kind == COMMENT) put_comment(o, l, "// ", it->comment);
        if (it->kind == CONSTANT) put_constant(o, l, it);
        if (it->kind == STRUCT) put_struct(o, l, it);
    }
}

static int go_code(const struct code *c, char *line, size_t cap) {
    return snprintf(line, cap, "const %s = %d", camel(c->name + 6), c->value);
}

static void put_codes(out *o, lang l) {
    int widest = 0;
    for (unsigned i = 0; i < N_CODES; i++) {
        int n = go_code(&CODES[i], NULL, 0);
        if (n > widest) widest = n;
    }
    put_title(o, l, "Result codes");
    put(o, "\n");
    for (unsigned i = 0; i < N_CODES; i++) {
        const char *name = CODES[i].name + 6;
        char line[128];
        go_code(&CODES[i], line, sizeof line);
        if (l == GO) put(o, "%-*s // %s\n", widest, line, CODES[i].text); /* aligned as gofmt does */
        if (l == RUST) put(o, "/// %s.\npub const %s: i32 = %d;\n", CODES[i].text, name, CODES[i].value);
        if (l == AS) put(o, "// %s.\nexport const %s: i32 = %d;\n", CODES[i].text, name, CODES[i].value);
    }
    if (l == GO)
        put(o, "\n// CodeText says what a result code means.\nfunc CodeText(code int32) string {\n\tswitch code {\n");
    if (l == RUST)
        put(o,
            "\n/// What a result code means.\npub const fn code_text(code: i32) -> &'static str {\n    match code {\n");
    if (l == AS)
        put(o, "\n// What a result code means.\nexport function codeText(code: i32): string {\n  switch (code) {\n");
    for (unsigned i = 0; i < N_CODES; i++) {
        if (l == GO) put(o, "\tcase %d:\n\t\treturn \"%s\"\n", CODES[i].value, CODES[i].text);
        if (l == RUST) put(o, "        %d => \"%s\",\n", CODES[i].value, CODES[i].text);
        if (l == AS) put(o, "    case %d: return \"%s\";\n", CODES[i].value, CODES[i].text);
    }
    if (l == GO) put(o, "\t}\n\treturn \"unknown failure\"\n}\n");
    if (l == RUST) put(o, "        _ => \"unknown failure\",\n    }\n}\n");
    if (l == AS) put(o, "    default: return \"unknown failure\";\n  }\n}\n");
}

static void put_param(out *o, lang l, const param *p) {
    const char *name = safe(l, l == GO ? lower_camel(p->name) : p->name);
    const char *target = p->scalar ? p->scalar->in[l] : camel(bare(p->type));
    if (l == AS)
        put(o, "%s: %s", name, p->pointer ? "usize" : target);
    else if (l == RUST)
        put(o, "%s: %s%s", name, p->pointer ? p->is_const ? "*const " : "*mut " : "", target);
    else if (p->pointer && !target)
        put(o, "%s unsafe.Pointer", name);
    else
        put(o, "%s %s%s", name, p->pointer ? "*" : "", target);
}

static void put_calls(out *o, lang l) {
    if (l == RUST)
        put(o, "\n#[cfg_attr(not(target_pointer_width = \"64\"), link(wasm_import_module = \"realm\"))]\n"
               "#[cfg_attr(target_pointer_width = \"64\", link(wasm_import_module = \"realm64\"))]\nextern \"C\" {\n");
    for (unsigned g = 0; g < N_GROUPS; g++) {
        if (!has_calls(GROUPS[g].name)) continue;
        if (l == RUST)
            put(o, "    // ---- %s ----\n", GROUPS[g].title);
        else
            put_title(o, l, GROUPS[g].title);
        for (unsigned i = 0; i < N_CALLS; i++) {
            const call *c = &CALLS[i];
            if (strcmp(c->group, GROUPS[g].name) != 0) continue;
            param params[PARAMS_MAX];
            unsigned n = params_of(c, params);
            const char *name = c->name;
            put(o, "\n");
            put_comment(o, l, l == RUST ? "    /// " : "// ", c->text);
            if (l == GO) put(o, "//\n//go:wasmimport realm %s\nfunc %s(", name, camel(name));
            if (l == RUST) put(o, "    pub fn %s(", name);
            if (l == AS)
                put(o, "// @ts-ignore: decorator\n@external(\"realm\", \"%s\")\nexport declare function %s(", name,
                    name);
            for (unsigned k = 0; k < n; k++) {
                if (k) put(o, ", ");
                put_param(o, l, &params[k]);
            }
            put(o, l == GO ? ") int32\n" : l == RUST ? ") -> i32;\n" : "): i32;\n");
        }
    }
    if (l == RUST) put(o, "}\n");
}

static void put_go(out *o) {
    put(o, "// Code generated: " MADE ".\n\n");
    put_wrapped(o, "// ",
                "Package abi is the host's interface as it is: functions that take addresses and return codes, "
                "constants and structures. Package realm has the same in Go's own manner.");
    put(o, "package abi\n\nimport (\n\t\"structs\"\n\t\"unsafe\"\n)\n");
    put_constants_and_structs(o, GO);
    put_codes(o, GO);
    put_calls(o, GO);
}

static void put_rust(out *o) {
    put_wrapped(o, "//! ",
                "The host's interface as it is: functions that take addresses and return codes, constants and "
                "structures. The crate's root has the same in Rust's own manner.");
    put(o, "//!\n");
    put_wrapped(o, "//! ", "(" MADE ")");
    put_constants_and_structs(o, RUST);
    put_codes(o, RUST);
    put_calls(o, RUST);
}

static void put_as(out *o) {
    put_wrapped(o, "// ",
                "The host's interface as it is: functions that take addresses and return codes, constants and "
                "structures; index.ts has the same in AssemblyScript's own manner. (" MADE ")");
    put_constants_and_structs(o, AS);
    put_codes(o, AS);
    put_calls(o, AS);
}

/* ---- docs/abi.md, between its markers ---- */

#define DOC_BEGIN "<!-- begin: made by tools/abi-gen (make abi) -->\n"
#define DOC_END "<!-- end -->\n"

static void put_cell(out *o, const char *text) {
    for (; *text; text++) put(o, *text == '|' ? "\\|" : "%c", *text);
}

static void put_doc_body(out *o) {
    put(o, "Version %d.%d.\n\n## Functions\n", REALM_ABI_MAJOR, REALM_ABI_MINOR);
    for (unsigned g = 0; g < N_GROUPS; g++) {
        if (!has_calls(GROUPS[g].name)) continue;
        put(o, "\n### %s\n\n| function | parameters | |\n| --- | --- | --- |\n", GROUPS[g].title);
        for (unsigned i = 0; i < N_CALLS; i++) {
            const call *c = &CALLS[i];
            if (strcmp(c->group, GROUPS[g].name) != 0) continue;
            param params[PARAMS_MAX];
            unsigned n = params_of(c, params);
            put(o, "| `%s` |", c->name);
            for (unsigned k = 0; k < n; k++) put(o, "%s %s `%c`", k ? "," : "", params[k].name, params[k].letter);
            put(o, n ? " | " : " | ");
            put_cell(o, c->text);
            put(o, " |\n");
        }
    }
    put(o, "\n## Structures\n\n| structure | bytes | fields and their offsets |\n| --- | --- | --- |\n");
    for (unsigned i = 0; i < n_items; i++) {
        const item *it = &items[i];
        if (it->kind != STRUCT) continue;
        put(o, "| `%s` | %u |", it->name, it->size);
        for (unsigned k = 0; k < it->n_fields; k++) {
            const field *f = &it->fields[k];
            put(o, "%s `%s", k ? "," : "", f->name);
            if (f->array) put(o, "[%u]", f->array);
            put(o, "` %s %u", f->type->in[RUST], f->offset);
        }
        put(o, " |\n");
    }
    put(o, "\n## Result codes\n\n| code | | |\n| --- | --- | --- |\n");
    for (unsigned i = 0; i < N_CODES; i++) put(o, "| %d | `%s` | %s |\n", CODES[i].value, CODES[i].name, CODES[i].text);
}

static void put_doc(out *o) {
    char *doc = read_file("docs/abi.md");
    if (!doc) die("cannot read docs/abi.md");
    char *begin = strstr(doc, DOC_BEGIN), *end = begin ? strstr(begin, DOC_END) : NULL;
    if (!end) die("docs/abi.md has lost its markers: %s", DOC_BEGIN);
    begin += strlen(DOC_BEGIN);
    put(o, "%.*s\n", (int)(begin - doc), doc);
    put_doc_body(o);
    put(o, "\n%s", end);
    free(doc);
}

/* ---- assertions for the C compiler ---- */

static void put_layouts(out *o) {
    put_c_comment(o, "What tools/abi-gen read in include/realm/abi.h, for the compiler to say that it is so.");
    put(o, "#include <stddef.h>\n#include <stdint.h>\n#include \"realm/abi.h\"\n");
    for (unsigned i = 0; i < n_items; i++) {
        const item *it = &items[i];
        if (it->kind == CONSTANT)
            put(o, "_Static_assert(%s == %llu, \"%s\");\n", it->name, (unsigned long long)it->value, it->name);
        if (it->kind != STRUCT) continue;
        put(o, "_Static_assert(sizeof(%s) == %u, \"%s\");\n", it->name, it->size, it->name);
        for (unsigned k = 0; k < it->n_fields; k++) {
            const field *f = &it->fields[k];
            put(o, "_Static_assert(offsetof(%s, %s) == %u && _Generic(((%s *)0)->%s%s, %s: 1), \"%s.%s\");\n", it->name,
                f->name, f->offset, it->name, f->name, f->array ? "[0]" : "", f->type->in[C], it->name, f->name);
        }
    }
}

/* ---- the files ---- */

static const struct file {
    const char *path;
    void (*put)(out *o);
} FILES[] = {
    {"guest/c/realm_calls.h", put_c},        {"guest/go/abi/abi.go", put_go}, {"guest/rust/src/abi.rs", put_rust},
    {"guest/assemblyscript/abi.ts", put_as}, {"docs/abi.md", put_doc},
};

static bool is_current(const char *path, const out *o) {
    char *have = read_file(path);
    if (!have) {
        fprintf(stderr, "abi-gen: %s is missing: run make abi\n", path);
        return false;
    }
    unsigned line = 1;
    size_t k = 0;
    for (; have[k] && k < o->len && have[k] == o->data[k]; k++) line += have[k] == '\n';
    bool same = k == o->len && !have[k];
    if (!same) fprintf(stderr, "abi-gen: %s is out of date from line %u on: run make abi\n", path, line);
    free(have);
    return same;
}

int main(int argc, char **argv) {
    bool check = argc == 2 && !strcmp(argv[1], "--check"), layouts = argc == 2 && !strcmp(argv[1], "--layouts");
    if (argc > 1 && !check && !layouts) die("usage: abi-gen [--check | --layouts]");
    read_header();
    bool current = true;
    for (unsigned i = 0; !layouts && i < sizeof FILES / sizeof *FILES; i++) {
        out o = {0};
        FILES[i].put(&o);
        if (check)
            current = is_current(FILES[i].path, &o) && current;
        else {
            FILE *f = fopen(FILES[i].path, "wb");
            if (!f || fwrite(o.data, 1, o.len, f) != o.len || fclose(f)) die("cannot write %s", FILES[i].path);
        }
        free(o.data);
    }
    if (layouts) {
        out o = {0};
        put_layouts(&o);
        fwrite(o.data, 1, o.len, stdout);
        free(o.data);
    }
    return current ? 0 : 1;
}
