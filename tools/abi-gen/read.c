/* tools/abi-gen/read.c - what there is to write: the tables, which are compiled in, and the header, which is read.
 *
 * The header is read as text, for a C program cannot ask the preprocessor for names. The reader knows the small part of
 * C that it uses (numeric #defines, structures of scalars, arrays and nothing else, comments) and refuses whatever it
 * does not know, so nothing is left out in silence. A structure with hidden padding is refused, so a layout follows
 * from the order and the widths of its fields in every language, and its size proves it.
 */
#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "abi-gen.h"
#include "realm/status.h"
#include "tenant/host/abi.h"

#define HEADER "include/realm/abi.h"
enum { ITEMS_MAX = 256 };

/* ---- tables ---- */

#define ROW(group, name, params, flags, declaration, text) {#group, #name, params, #declaration, text},
const call CALLS[] = {REALM_ABI_CALLS(ROW)};
#undef ROW
const unsigned N_CALLS = sizeof CALLS / sizeof *CALLS;

const group GROUPS[] = {
#define ROW(name, title) {#name, title},
    REALM_ABI_GROUPS(ROW)
#undef ROW
};
const unsigned N_GROUPS = sizeof GROUPS / sizeof *GROUPS;

const code CODES[] = {
#define ROW(name, value, text) {#name, text, value},
    REALM_STATUS_LIST(ROW)
#undef ROW
};
const unsigned N_CODES = sizeof CODES / sizeof *CODES;

static const scalar SCALARS[] = {
    {{"int32_t", "int32", "i32", "i32"}, 4, 'i'}, {{"uint32_t", "uint32", "u32", "u32"}, 4, 'i'},
    {{"int64_t", "int64", "i64", "i64"}, 8, 'l'}, {{"uint64_t", "uint64", "u64", "u64"}, 8, 'l'},
    {{"float", "float32", "f32", "f32"}, 4, 'f'}, {{"size_t", "uint32", "usize", "usize"}, 0, 'p'},
    {{"char", "byte", "u8", "u8"}, 1, 0},         {{"void", NULL, "u8", "u8"}, 0, 0},
};
enum { N_SCALARS = sizeof SCALARS / sizeof *SCALARS };

item items[ITEMS_MAX];
unsigned n_items;

/* ---- reading the header ---- */

static const char *text_start, *at;

_Noreturn void die(const char *fmt, ...) {
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

char *read_file(const char *path) {
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

static const scalar *take_scalar(void) {
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
        const scalar *type = take_scalar();
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

void read_header(void) {
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

/* ---- calls ---- */

bool has_calls(const char *name) {
    for (unsigned i = 0; i < N_CALLS; i++)
        if (!strcmp(CALLS[i].group, name)) return true;
    return false;
}

static const scalar *scalar_of(const char *name) {
    for (unsigned i = 0; i < N_SCALARS; i++)
        if (!strcmp(SCALARS[i].in[C], name)) return &SCALARS[i];
    return NULL;
}

static bool is_struct(const char *name) {
    for (unsigned i = 0; i < n_items; i++)
        if (items[i].kind == STRUCT && !strcmp(items[i].name, name)) return true;
    return false;
}

unsigned params_of(const call *c, param *out) {
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
