/* cli/main.c - the `realm` program: finds the command and runs it. */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/base.h"
#include "base/str.h"
#include "cli/args.h"
#include "cli/cli.h"

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *text; /* NULL: not for people */
} commands[] = {
    {"serve", realm_cmd_serve, "serve models to tenants over HTTP"},
    {"run", realm_cmd_run, "one request in this process"},
    {"chat", realm_cmd_chat, "a conversation in this process"},
    {"info", realm_cmd_info, "what a model file is"},
    {"models", realm_cmd_models, "list, pull and remove models"},
    {"pipeline", realm_cmd_pipeline, "run or check a pipeline of models"},
    {"tenant", realm_cmd_tenant, "create, list, show, set, delete tenants"},
    {"key", realm_cmd_key, "create, list, revoke API keys"},
    {"usage", realm_cmd_usage, "what each tenant has used"},
    {"program", realm_cmd_program, "check a WebAssembly program"},
    {"bench", realm_cmd_bench, "measure tokens per second on this machine"},
};

static int help(FILE *to) {
    fputs("usage: realm COMMAND [ARGUMENTS]\n\n", to);
    for (size_t i = 0; i < REALM_ARRAY_LEN(commands); i++)
        if (commands[i].text) fprintf(to, "  %-9s %s\n", commands[i].name, commands[i].text);
    fputs("\n`realm COMMAND --help` says more. Exit status: 0 done, 1 failed, 2 usage.\n", to);
    return to == stdout ? realm_printed("help") : REALM_EXIT_USAGE;
}

int main(int argc, char **argv) {
    if (argc < 2) return help(stderr);
    signal(SIGXFSZ, SIG_IGN); /* a file at its limit is a write that fails, as a full disk is */
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0)
        return help(stdout);
    if (strcmp(argv[1], "--version") == 0) {
        puts("realm " REALM_VERSION);
        return realm_printed("--version");
    }
    for (size_t i = 0; i < REALM_ARRAY_LEN(commands); i++)
        if (strcmp(argv[1], commands[i].name) == 0) return commands[i].run(argc - 1, argv + 1);
    char shown[128];
    fprintf(stderr, "realm: no command \"%s\"\n", realm_escape(shown, sizeof shown, argv[1], strlen(argv[1])));
    return help(stderr);
}
