/* cli/cmd_program.c - `realm program check FILE.wasm`: what a server would say of a module; nothing of it is run.
 *
 * The same file holds the child that a server starts to compile modules (`program compile-child IN OUT`), which is not
 * for people.
 */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/file.h"
#include "cli/args.h"
#include "cli/cli.h"
#include "sandbox/sandbox.h"
#include "tenant/tenant.h"

#define OUTPUT_MAX ((size_t)64 << 20)

int realm_cmd_program(int argc, char **argv) {
    if (argc >= 2 && strcmp(argv[1], "compile-child") == 0) realm_sandbox_compile_child(argc - 2, argv + 2);
    static const char usage[] = "usage: realm program check FILE.wasm\n";
    static const char help[] = "\nImports, exports, limits, size and compile time of a WebAssembly program, or why it\n"
                               "would be refused.\n\n";
    realm_args args = {.command = "program",
                       .usage = usage,
                       .help = help,
                       .words_max = 2,
                       .prints_data = true,
                       .argc = argc,
                       .argv = argv};
    const char *value;
    if (realm_args_next(&args, &value) < 0) return args.status;
    if (realm_args_action(&args, &(realm_action){"check", "a file"}, 1) < 0) return args.status;
    const char *path = args.words[1];

    realm_error err = {0};
    char *wasm = NULL, *self = realm_self_path();
    size_t len = 0;
    realm_buf out;
    realm_buf_init(&out, OUTPUT_MAX);
    realm_status s = realm_file_read(path, REALM_MODULE_BYTES_MAX, &wasm, &len, &err);
    if (s == REALM_OK) {
        s = realm_runtime_check_program(NULL, self, wasm, len, NULL, &out, args.json, &err);
        if (s != REALM_OK) realm_error_prefix(&err, "%s", path);
    }
    realm_free(wasm);
    realm_free(self);
    if (s == REALM_OK && args.json) s = realm_buf_putc(&out, '\n');
    if (s == REALM_OK) return realm_print("program check", &out);
    realm_buf_release(&out);
    return realm_fail("program check", &err);
}
