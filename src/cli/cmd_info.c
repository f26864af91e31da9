/* cli/cmd_info.c - `realm info FILE`: what a model file is, without reading its weights.
 *
 * The container is checked when it is opened, the metadata against what holds for every architecture; whatever fails is
 * one line on stderr. Nothing is printed on stdout unless both hold.
 */
#include <string.h>

#include "base/str.h"
#include "cli/args.h"
#include "cli/cli.h"
#include "gguf/gguf.h"
#include "model/model.h"

#define OUTPUT_MAX ((size_t)64 << 20)

/* By the shapes; 0 for a file that is no model that could be served. */
static uint64_t least_weights(const realm_gguf *g) {
    const realm_backend_config config = {.n_threads = 1};
    realm_model_memory need = {0};
    realm_backend *b;
    realm_error ignored = {0};
    if (realm_backend_open_cpu(&b, &config, &ignored) != REALM_OK) return 0;
    if (realm_model_measure(b, g, &need, &ignored) != REALM_OK) need.least_budget = 0;
    realm_backend_close(b);
    return need.least_budget;
}

int realm_cmd_info(int argc, char **argv) {
    static const char usage[] = "usage: realm info [--output json] FILE\n";
    static const char help[] = "\nChecks a GGUF model file and says what it is: architecture, shapes, tensor types,\n"
                               "tokenizer, chat template, the memory it needs, its metadata. Weights are not read.\n\n";
    realm_args args = {.command = "info",
                       .usage = usage,
                       .help = help,
                       .words_max = 1,
                       .prints_data = true,
                       .argc = argc,
                       .argv = argv};
    const char *value;
    if (realm_args_next(&args, &value) < 0) return args.status;
    if (args.n_words == 0) return realm_args_usage(&args, "a file is missing", "");
    const char *path = args.words[0];

    realm_error err = {0};
    realm_gguf *g = NULL;
    realm_buf out;
    realm_buf_init(&out, OUTPUT_MAX);
    realm_status s = realm_gguf_open(&g, path, &err);
    if (s == REALM_OK) {
        char shown[256];
        s = realm_gguf_check_metadata(g, &err);
        if (s == REALM_OK) s = realm_gguf_describe(g, args.json, least_weights(g), &out, &err);
        if (s != REALM_OK) realm_error_prefix(&err, "%s", realm_escape(shown, sizeof shown, path, strlen(path)));
    }
    realm_gguf_close(g);
    if (s == REALM_OK) return realm_print("info", &out);
    realm_buf_release(&out);
    return realm_fail("info", &err);
}
