/* tools/abi-gen/main.c - writes what guests know of the host from the two places that define it.
 *
 * The calls come from the table of src/tenant/host/abi.h, constants and structures from include/realm/abi.h (read.c).
 * What makes it sound: a layout is the same in every language (read.c), the SDKs assert it when they are compiled
 * (sdk.c), and `--layouts` writes C assertions of every constant, size and offset as read, which are compiled for the
 * host, for wasm32 and for wasm64 (doc.c). The letters of each call's parameters are held against its C declaration.
 *
 *   abi-gen            writes the files, from the root of a checkout
 *   abi-gen --check    writes nothing; says which file is out of date, and fails
 *   abi-gen --layouts  the assertions, to stdout
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "abi-gen.h"

static const struct file {
    const char *path;
    void (*put)(writer *o);
} FILES[] = {
    {"guest/c/realm_calls.h", put_c},        {"guest/go/abi/abi.go", put_go}, {"guest/rust/src/abi.rs", put_rust},
    {"guest/assemblyscript/abi.ts", put_as}, {"docs/abi.md", put_doc},
};

static bool is_current(const char *path, const writer *o) {
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
        writer o = {0};
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
        writer o = {0};
        put_layouts(&o);
        fwrite(o.data, 1, o.len, stdout);
        free(o.data);
    }
    return current ? 0 : 1;
}
