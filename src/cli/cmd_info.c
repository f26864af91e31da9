/* cli/cmd_info.c - `realm info FILE`: what a model file is, without reading its weights.
 *
 * The container is checked when it is opened, the metadata against what holds for every architecture; whatever fails is
 * one line on stderr. Nothing is printed on stdout unless both hold.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "base/str.h"
#include "cli/cli.h"
#include "gguf/gguf.h"

#define OUTPUT_MAX ((size_t)64 << 20)

static const char usage[] = "usage: realm info [--output text|json] FILE\n";
static const char help[] = "\n"
                           "Checks a GGUF model file and says what it is: architecture, shapes, tensor types,\n"
                           "tokenizer, chat template, the memory it needs, its metadata. Weights are not read.\n"
                           "\n"
                           "  --output json   one JSON object instead of text\n"
                           "  --help          this text\n";

static int usage_error(const char *what, const char *arg) {
    char shown[256];
    fprintf(stderr, "realm: info: %s%s\n%s", what, realm_escape(shown, sizeof shown, arg, strlen(arg)), usage);
    return 2;
}

static int failed(const realm_error *err) {
    fprintf(stderr, "realm: info: %s\n", err->text[0] ? err->text : realm_status_text(err->code));
    return 1;
}

static int print(const char *data, size_t len) {
    if (fwrite(data, 1, len, stdout) == len && fflush(stdout) == 0) return 0;
    fprintf(stderr, "realm: info: standard output: %s\n", strerror(errno));
    return 1;
}

static int describe(const char *path, bool json) {
    realm_error err = {0};
    realm_gguf *g = NULL;
    realm_buf out;
    char shown[256];
    realm_status s = realm_gguf_open(&g, path, &err);
    if (s != REALM_OK) return failed(&err);
    realm_buf_init(&out, OUTPUT_MAX);
    s = realm_gguf_check_metadata(g, &err);
    if (s == REALM_OK) s = realm_gguf_describe(g, json, &out, &err);
    int status;
    if (s == REALM_OK) {
        status = print(out.data, out.len);
    } else {
        (void)realm_error_prefix(&err, "%s", realm_escape(shown, sizeof shown, path, strlen(path)));
        status = failed(&err);
    }
    realm_buf_release(&out);
    realm_gguf_close(g);
    return status;
}

int realm_cmd_info(int argc, char **argv) {
    const char *path = NULL;
    bool json = false, options = true;
    for (int i = 1; i < argc; i++) {
        const char *arg = argv[i], *value = NULL;
        if (!options || arg[0] != '-' || arg[1] == '\0') {
            if (path) return usage_error("more than one file: ", arg);
            path = arg;
            continue;
        }
        if (strcmp(arg, "--") == 0) {
            options = false;
        } else if (strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0) {
            int status = print(usage, sizeof usage - 1);
            return status ? status : print(help, sizeof help - 1);
        } else if (strcmp(arg, "--output") == 0 || strncmp(arg, "--output=", 9) == 0) {
            value = arg[8] == '=' ? arg + 9 : i + 1 < argc ? argv[++i] : "";
            json = strcmp(value, "json") == 0;
            if (!json && strcmp(value, "text") != 0) return usage_error("--output takes text or json, not ", value);
        } else {
            return usage_error("unknown option ", arg);
        }
    }
    if (!path) return usage_error("no file given", "");
    return describe(path, json);
}
