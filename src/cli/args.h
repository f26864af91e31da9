/* cli/args.h - one way for all commands to read their arguments and to say what is wrong with them.
 *
 * A command lists its options; realm_args_next hands them out one by one and keeps the other words. "--name VALUE" and
 * "--name=VALUE" are the same, "--" ends options, "--help" prints the usage and help on stdout, "--output text|json" is
 * understood where the command says that it prints data.
 */
#ifndef REALM_CLI_ARGS_H
#define REALM_CLI_ARGS_H

#include "base/base.h"
#include "base/buf.h"
#include "catalog/catalog.h"
#include "store/store.h"

#define REALM_EXIT_DONE 0
#define REALM_EXIT_FAILED 1
#define REALM_EXIT_USAGE 2
#define REALM_ARGS_WORDS_MAX 2u

typedef struct realm_option {
    const char *name; /* "--threads" */
    int id;           /* > 0 */
    bool takes_value;
} realm_option;

typedef struct realm_args {
    const char *command;         /* "tenant": for messages */
    const char *usage;           /* "usage: realm tenant create NAME ...\n" */
    const char *help;            /* the rest of --help */
    const realm_option *options; /* up to one without a name; NULL: none */
    size_t words_max;            /* that are no options, REALM_ARGS_WORDS_MAX at most */
    bool prints_data;            /* takes --output */
    int argc;                    /* of the command, whose name is argv[0] */
    char **argv;
    /* What realm_args_next found; zero before. */
    const char *words[REALM_ARGS_WORDS_MAX];
    size_t n_words;
    bool json;
    int status; /* the command's exit status, where it is to end */
    int at;
    bool only_words;
} realm_args;

/* The next option's id with its value (NULL for a flag), 0 at the end, -1 when the command is to end now with
 * args->status (help was printed, or a usage error said). */
int realm_args_next(realm_args *args, const char **value);
/* Prints "realm: <command>: <what><arg escaped>" and the usage; returns args->status, now REALM_EXIT_USAGE. */
int realm_args_usage(realm_args *args, const char *what, const char *arg);

/* What a command does, by its first word. */
typedef struct realm_action {
    const char *name;
    const char *wants; /* "a file": what its second word is; NULL: it has none */
} realm_action;
/* After the last option: which of n actions the words say, or -1 after a usage message. */
int realm_args_action(realm_args *args, const realm_action *actions, size_t n);

/* "6G", "1.5G", "200MiB", "4096": bytes, with K, M, G or T for 1024 and so on; false for anything else and less than 1.
 */
bool realm_size_parse(const char *text, uint64_t *out);
/* A size, a whole number or a number within bounds; false after a usage message naming the option. */
bool realm_args_size(realm_args *args, const char *option, const char *text, uint64_t *out);
bool realm_args_u64(realm_args *args, const char *option, const char *text, uint64_t least, uint64_t most,
                    uint64_t *out);
/* A day "2027-01-31", or with its time "2027-01-31T12:00:00", UTC, as seconds since 1970; false for what is none. */
bool realm_time_parse(const char *text, int64_t *out_s);
bool realm_args_double(realm_args *args, const char *option, const char *text, double least, double most, double *out);

/* "realm: <command>: <text>" on stderr; returns REALM_EXIT_FAILED. */
int realm_fail(const char *command, const realm_error *err);
/* After the last write to stdout: 0, or REALM_EXIT_FAILED with a message when not all of it could be written. */
int realm_printed(const char *command);
/* Writes to stdout; REALM_EXIT_FAILED with a message when that fails, else 0. Releases the buffer. */
int realm_print(const char *command, realm_buf *out);

/* --state, else $XDG_STATE_HOME/realm; freed with realm_free, NULL when memory is out or HOME is not set. */
char *realm_state_dir(const char *given);
/* The store in the folder of tenants, keys and the ledger. */
REALM_WARN_UNUSED realm_status realm_open_store(const char *state_dir, realm_store **out, realm_error *err);
/* The catalogue over --models-dir, else $XDG_DATA_HOME/realm/models, and the download cache. */
REALM_WARN_UNUSED realm_status realm_open_catalog(const char *models_dir, realm_catalog **out, realm_error *err);
/* A model's file from what a user typed: a path with a '/' or ending in .gguf, else a name of the catalogue. */
REALM_WARN_UNUSED realm_status realm_find_model(const char *name_or_file, const char *models_dir, char **path,
                                                realm_error *err);
/* This program's own file, for the child that compiles modules; freed with realm_free, NULL when unknown. */
char *realm_self_path(void);

#endif
