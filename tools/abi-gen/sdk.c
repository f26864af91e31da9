/* tools/abi-gen/sdk.c - the files of the guest SDKs.
 *
 * C's own header has the calls alone, as it includes the other one. The Go, Rust and AssemblyScript files assert the
 * sizes of structures (and where the language can, the offsets) when they are compiled.
 */
#include <stdio.h>
#include <string.h>

#include "abi-gen.h"

/* ---- C ---- */

static const char *c_prefix(const char *name) { return strncmp(name, "realm_", 6) ? "realm_" : ""; }

void put_c(writer *o) {
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

static void put_constant(writer *o, lang l, const item *it) {
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

static void put_struct(writer *o, lang l, const item *it) {
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
static void put_constants_and_structs(writer *o, lang l) {
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

static int go_code(const code *c, char *line, size_t cap) {
    return snprintf(line, cap, "const %s = %d", camel(c->name + 6), c->value);
}

static void put_codes(writer *o, lang l) {
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

static void put_param(writer *o, lang l, const param *p) {
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

static void put_calls(writer *o, lang l) {
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

void put_go(writer *o) {
    put(o, "// Code generated: " MADE ".\n\n");
    put_wrapped(o, "// ",
                "Package abi is the host's interface as it is: functions that take addresses and return codes, "
                "constants and structures. Package realm has the same in Go's own manner.");
    put(o, "package abi\n\nimport (\n\t\"structs\"\n\t\"unsafe\"\n)\n");
    put_constants_and_structs(o, GO);
    put_codes(o, GO);
    put_calls(o, GO);
}

void put_rust(writer *o) {
    put_wrapped(o, "//! ",
                "The host's interface as it is: functions that take addresses and return codes, constants and "
                "structures. The crate's root has the same in Rust's own manner.");
    put(o, "//!\n");
    put_wrapped(o, "//! ", "(" MADE ")");
    put_constants_and_structs(o, RUST);
    put_codes(o, RUST);
    put_calls(o, RUST);
}

void put_as(writer *o) {
    put_wrapped(o, "// ",
                "The host's interface as it is: functions that take addresses and return codes, constants and "
                "structures; index.ts has the same in AssemblyScript's own manner. (" MADE ")");
    put_constants_and_structs(o, AS);
    put_codes(o, AS);
    put_calls(o, AS);
}
