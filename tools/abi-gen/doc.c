/* tools/abi-gen/doc.c - the tables of docs/abi.md, and what the C compiler is asked to confirm. */
#include <stdlib.h>
#include <string.h>

#include "abi-gen.h"
#include "realm/abi.h"

/* ---- docs/abi.md, between its markers ---- */

#define DOC_BEGIN "<!-- begin: made by tools/abi-gen (make abi) -->\n"
#define DOC_END "<!-- end -->\n"

static void put_cell(writer *o, const char *text) {
    for (; *text; text++) put(o, *text == '|' ? "\\|" : "%c", *text);
}

static void put_doc_body(writer *o) {
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

void put_doc(writer *o) {
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

void put_layouts(writer *o) {
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
