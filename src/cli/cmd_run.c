/* cli/cmd_run.c - `realm run` and `realm chat`: one request, or a conversation, in this process.
 *
 * Both use the embedding API (realm/realm.h) and nothing below it, so they take the path of a served request: tenant
 * "local", its program in its sandbox, the engine, the ledger (in memory). What is wrong with an argument for the chat
 * template is said here too, before a model is loaded for it.
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "base/file.h"
#include "cli/args.h"
#include "cli/cli.h"
#include "data/data.h"
#include "realm/realm.h"
#include "template/template.h"

#define PROMPT_MAX ((size_t)16 << 20)
#define PROGRAM_MAX ((size_t)32 << 20)
#define DEFAULT_MODEL "smollm2"

enum {
    OPT_MODEL = 1,
    OPT_MODELS_DIR,
    OPT_MAX_TOKENS,
    OPT_TEMPERATURE,
    OPT_SEED,
    OPT_RAW,
    OPT_PROGRAM,
    OPT_TEMPLATE_ARG,
    OPT_THREADS,
    OPT_WEIGHT_BUDGET,
    OPT_LOG
};
static const realm_option options[] = {{"--raw", OPT_RAW, false}, /* first, so that chat can leave it out */
                                       {"--model", OPT_MODEL, true},
                                       {"--models-dir", OPT_MODELS_DIR, true},
                                       {"--max-tokens", OPT_MAX_TOKENS, true},
                                       {"--temperature", OPT_TEMPERATURE, true},
                                       {"--seed", OPT_SEED, true},
                                       {"--program", OPT_PROGRAM, true},
                                       {"--template-arg", OPT_TEMPLATE_ARG, true},
                                       {"--threads", OPT_THREADS, true},
                                       {"--weight-budget", OPT_WEIGHT_BUDGET, true},
                                       {"--log", OPT_LOG, false},
                                       {0}};

typedef struct run_args {
    const char *model, *models_dir, *program;
    uint64_t max_tokens, seed, threads, weight_budget;
    double temperature;
    bool raw, log;
    const char *prompt;
    const char *template_args[REALM_TEMPLATE_ARGS_MAX]; /* NAME=JSON */
    size_t n_template_args;
} run_args;

static void progress(void *user, uint64_t done, uint64_t total) {
    (void)user;
    if (!isatty(STDERR_FILENO)) return;
    fprintf(stderr, "\rloading %3d%%", total ? (int)(done * 100 / total) : 100);
    if (done >= total) fputs("\r             \r", stderr);
}

/* Opens Realm with one model, tenant "local" and its program. */
static realm_status open_local(const run_args *a, realm **out, realm_error *err) {
    char *path = NULL, *self = realm_self_path(), *wasm = NULL;
    size_t len = 0;
    realm *r = NULL;
    realm_set_log(a->log ? 0 : 3, NULL, NULL); /* what a request fails with is in its error */
    realm_config config = {.size = sizeof config, .compiler_path = self, .n_threads = (uint32_t)a->threads};
    realm_load_config load = {
        .size = sizeof load, .max_generations = 1, .progress = progress, .weight_budget_bytes = a->weight_budget};
    realm_status s = realm_find_model(a->model, a->models_dir, &path, err);
    if (s == REALM_OK && a->program) s = realm_file_read(a->program, PROGRAM_MAX, &wasm, &len, err);
    if (s == REALM_OK) s = realm_open(&r, &config, err);
    if (s == REALM_OK) s = realm_model_load(r, "local", path, &load, err);
    if (s == REALM_OK && (s = realm_tenant_add(r, "local", wasm, len, err)) != REALM_OK && a->program)
        realm_error_prefix(err, "%s", a->program);
    realm_free(wasm);
    realm_free(self);
    realm_free(path);
    if (s != REALM_OK) {
        realm_close(r);
        return s;
    }
    *out = r;
    return REALM_OK;
}

static volatile sig_atomic_t interrupted;

static void on_interrupt(int sig) {
    (void)sig;
    interrupted = 1;
}

typedef struct sink {
    realm_buf *keep; /* NULL: only print */
    bool broken;     /* stdout is gone */
} sink;

static bool on_text(void *user, const char *text, size_t len) {
    sink *to = user;
    if (to->keep) (void)realm_buf_append(to->keep, text, len);
    if (fwrite(text, 1, len, stdout) != len || fflush(stdout) != 0) to->broken = true;
    return !to->broken && !interrupted;
}

/* As one JSON object; nothing where there are none. */
static void write_template_args(const run_args *a, realm_buf *out) {
    for (size_t i = 0; i < a->n_template_args; i++) {
        const char *name = a->template_args[i], *equals = strchr(name, '=');
        (void)realm_buf_puts(out, i ? ",\"" : "{\"");
        realm_json_escape(out, name, (size_t)(equals - name));
        (void)realm_buf_printf(out, "\":%s", equals + 1);
    }
    if (a->n_template_args > 0) (void)realm_buf_putc(out, '}');
}

static int run_one(realm *r, const run_args *a, const char *messages, realm_buf *answer, realm_error *err) {
    realm_job_params p = REALM_JOB_PARAMS_INIT;
    realm_buf template_args;
    realm_buf_init(&template_args, PROMPT_MAX);
    write_template_args(a, &template_args);
    p.tenant = "local";
    p.prompt = messages ? NULL : a->prompt;
    p.messages_json = messages;
    p.template_args_json = template_args.data;
    p.raw = a->raw;
    p.max_tokens = (uint32_t)a->max_tokens;
    p.temperature = (float)a->temperature;
    p.seed = a->seed;
    realm_job *job;
    sink to = {.keep = answer};
    realm_status s = realm_buf_status(&template_args);
    s = s == REALM_OK ? realm_job_start(r, &p, &job, err)
                      : realm_error_set(err, s, "the template's arguments are too long");
    realm_buf_release(&template_args);
    if (s == REALM_OK) {
        s = realm_job_wait(job, on_text, &to, NULL, err);
        realm_job_close(job);
    }
    if (s == REALM_OK && to.broken) s = realm_error_set(err, REALM_E_IO, "standard output: %s", strerror(errno));
    if (s == REALM_OK) putchar('\n');
    return s == REALM_OK ? REALM_EXIT_DONE : REALM_EXIT_FAILED;
}

/* All of stdin. */
static realm_status read_stdin(realm_buf *out, realm_error *err) {
    char piece[65536];
    for (;;) {
        size_t n = fread(piece, 1, sizeof piece, stdin);
        if (n > 0 && realm_buf_append(out, piece, n) != REALM_OK)
            return realm_error_set(err, realm_buf_status(out), "standard input: at most %zu bytes", PROMPT_MAX);
        if (n == 0) break;
    }
    if (ferror(stdin)) return realm_error_set(err, REALM_E_IO, "standard input: %s", strerror(errno));
    if (out->data && memchr(out->data, '\0', out->len))
        return realm_error_set(err, REALM_E_INVALID, "standard input holds a NUL byte");
    return REALM_OK;
}

/* NAME=JSON, each name once. */
static bool take_template_arg(realm_args *args, const char *text, run_args *a) {
    const size_t len = strcspn(text, "=");
    const char *wrong = NULL;
    realm_json_doc *doc = NULL;
    if (len == 0 || text[len] == '\0' || realm_json_parse(&doc, text + len + 1, strlen(text + len + 1), NULL, NULL))
        wrong = "--template-arg takes NAME=JSON, not ";
    else if (realm_template_arg_reserved(text, len))
        wrong = "--template-arg: is not for an argument to set: ";
    for (size_t i = 0; i < a->n_template_args && !wrong; i++)
        if (strncmp(a->template_args[i], text, len + 1) == 0) wrong = "--template-arg: given before: ";
    if (!wrong && a->n_template_args == REALM_ARRAY_LEN(a->template_args)) wrong = "too many arguments of a template: ";
    realm_json_doc_close(doc);
    if (wrong) return (void)realm_args_usage(args, wrong, text), false;
    a->template_args[a->n_template_args++] = text;
    return true;
}

/* Reads the arguments into `a`; false when the command ends now with args->status. */
static bool read_args(realm_args *args, run_args *a) {
    const char *value;
    *a = (run_args){.model = DEFAULT_MODEL};
    for (int id; (id = realm_args_next(args, &value)) != 0;) {
        bool ok = true;
        switch (id) {
        case OPT_MODEL: a->model = value; break;
        case OPT_MODELS_DIR: a->models_dir = value; break;
        case OPT_PROGRAM: a->program = value; break;
        case OPT_TEMPLATE_ARG: ok = take_template_arg(args, value, a); break;
        case OPT_RAW: a->raw = true; break;
        case OPT_LOG: a->log = true; break;
        case OPT_MAX_TOKENS: ok = realm_args_u64(args, "--max-tokens", value, 1, 1u << 24, &a->max_tokens); break;
        case OPT_SEED: ok = realm_args_u64(args, "--seed", value, 0, UINT64_MAX, &a->seed); break;
        case OPT_THREADS: ok = realm_args_u64(args, "--threads", value, 1, 1024, &a->threads); break;
        case OPT_WEIGHT_BUDGET: ok = realm_args_size(args, "--weight-budget", value, &a->weight_budget); break;
        case OPT_TEMPERATURE: ok = realm_args_double(args, "--temperature", value, 0, 100, &a->temperature); break;
        default: ok = false;
        }
        if (!ok) return false;
    }
    if (a->raw && a->n_template_args > 0)
        return (void)realm_args_usage(args, "--raw has no template for ", a->template_args[0]), false;
    a->prompt = args->words[0];
    return true;
}

#define COMMON_HELP                                                                                 \
    "  --model M          a GGUF file, or an id in the models folder (default " DEFAULT_MODEL ")\n" \
    "  --models-dir DIR   that folder (default $XDG_DATA_HOME/realm/models)\n"                      \
    "  --max-tokens N     longest answer (default: until the model ends)\n"                         \
    "  --temperature T    0 takes the most probable token each time (default)\n"                    \
    "  --seed N           the same seed gives the same text\n"                                      \
    "  --program FILE     a tenant's WebAssembly program instead of the default one\n"              \
    "  --template-arg A   a variable for the model's chat template, NAME=JSON, once for each\n"     \
    "  --threads N        for matrix products (default: one per core)\n"                            \
    "  --weight-budget S  memory for weights, like 200M or 6G: the rest streams from the file\n"    \
    "  --log              what the program logs, to standard error\n"

int realm_cmd_run(int argc, char **argv) {
    realm_args args = {.command = "run",
                       .usage = "usage: realm run [--model M] [--max-tokens N] [--temperature T] [--seed N] [--raw]\n"
                                "                 [--program FILE.wasm] [--template-arg NAME=JSON]... [PROMPT]\n",
                       .help =
                           "\nOne request, by the path of a served one. No PROMPT reads standard input.\n\n" COMMON_HELP
                           "  --raw              continue the text: no chat template\n",
                       .options = options,
                       .words_max = 2,
                       .argc = argc,
                       .argv = argv};
    run_args a;
    if (!read_args(&args, &a)) return args.status;
    if (args.n_words > 1) return realm_args_usage(&args, "more than one prompt (quote it): ", args.words[1]);
    int status = REALM_EXIT_FAILED;
    realm_error err = {0};
    realm_buf input;
    realm *r = NULL;
    realm_buf_init(&input, PROMPT_MAX);
    realm_status s = a.prompt ? REALM_OK : read_stdin(&input, &err);
    if (s == REALM_OK && !a.prompt) a.prompt = input.data ? input.data : "";
    if (s == REALM_OK && a.prompt[0] == '\0') s = realm_error_set(&err, REALM_E_INVALID, "the prompt is empty");
    if (s == REALM_OK) s = open_local(&a, &r, &err);
    if (s == REALM_OK) {
        signal(SIGINT, on_interrupt);
        status = run_one(r, &a, NULL, NULL, &err);
    }
    realm_close(r);
    realm_buf_release(&input);
    return err.code == REALM_OK ? status : realm_fail("run", &err);
}

/* One turn: appends the user's message, answers, appends the answer. `turns` is the inside of a JSON array. */
static int turn(realm *r, const run_args *a, realm_buf *turns, const char *line, realm_error *err) {
    realm_buf messages, answer;
    realm_json_writer w;
    realm_buf_init(&messages, PROMPT_MAX);
    realm_buf_init(&answer, PROMPT_MAX);
    if (turns->len > 0) (void)realm_buf_putc(turns, ',');
    (void)realm_buf_puts(turns, "{\"role\":\"user\",\"content\":");
    realm_json_writer_init(&w, turns);
    realm_json_write_cstr(&w, line);
    (void)realm_buf_putc(turns, '}');
    (void)realm_buf_printf(&messages, "[%s]", turns->data ? turns->data : "");
    int status = REALM_EXIT_FAILED;
    if (realm_buf_status(turns) != REALM_OK || realm_buf_status(&messages) != REALM_OK)
        realm_error_set(err, REALM_E_LIMIT, "the conversation is too long");
    else
        status = run_one(r, a, messages.data, &answer, err);
    (void)realm_buf_puts(turns, ",{\"role\":\"assistant\",\"content\":");
    realm_json_writer_init(&w, turns);
    realm_json_write_str(&w, answer.data ? answer.data : "", answer.len);
    (void)realm_buf_putc(turns, '}');
    realm_buf_release(&messages);
    realm_buf_release(&answer);
    return status;
}

int realm_cmd_chat(int argc, char **argv) {
    realm_args args = {.command = "chat",
                       .usage = "usage: realm chat [--model M] [--max-tokens N] [--temperature T] [--seed N]\n"
                                "                  [--program FILE.wasm] [--template-arg NAME=JSON]...\n",
                       .help =
                           "\nA conversation: one line is one message; an empty line or Ctrl-D ends it, Ctrl-C ends\n"
                           "an answer.\n\n" COMMON_HELP,
                       .options = options + 1, /* no --raw */
                       .argc = argc,
                       .argv = argv};
    run_args a;
    if (!read_args(&args, &a)) return args.status;
    int status = REALM_EXIT_DONE;
    realm_error err = {0};
    realm *r = NULL;
    if (open_local(&a, &r, &err) != REALM_OK) return realm_fail("chat", &err);
    realm_buf turns;
    realm_buf_init(&turns, PROMPT_MAX);
    char *line = NULL;
    size_t cap = 0;
    bool tty = isatty(STDIN_FILENO);
    signal(SIGINT, on_interrupt);
    while (status == REALM_EXIT_DONE) {
        if (tty) fputs("> ", stderr);
        ssize_t n = getline(&line, &cap, stdin);
        if (n > 0 && line[n - 1] == '\n') line[--n] = '\0';
        if (n <= 0) break;
        interrupted = 0;
        status = turn(r, &a, &turns, line, &err);
    }
    free(line); /* getline's */
    realm_buf_release(&turns);
    realm_close(r);
    return status == REALM_EXIT_DONE ? status : realm_fail("chat", &err);
}
