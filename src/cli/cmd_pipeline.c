/* cli/cmd_pipeline.c - `realm pipeline check FILE` and `run FILE`: pipelines at the command line.
 *
 * A run is a process of its own: the pipeline's models in one runtime, tenant "local", its ledger in memory or, with
 * --state, in the store that `realm usage` reads.
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/str.h"
#include "cli/args.h"
#include "cli/cli.h"
#include "pipeline/pipeline.h"

#define OUTPUT_MAX ((size_t)512 << 20)
#define PROBLEMS_MAX ((size_t)1 << 20)
#define PROGRAM_MAX ((size_t)32 << 20)
#define QUIET_NS (2 * REALM_NS_PER_S) /* what is quicker needs no progress */

enum { OPT_INPUT = 1, OPT_MODEL, OPT_MODELS_DIR, OPT_THREADS, OPT_STATE };
static const realm_option options[] = {{"--input", OPT_INPUT, true},           {"--model", OPT_MODEL, true},
                                       {"--models-dir", OPT_MODELS_DIR, true}, {"--threads", OPT_THREADS, true},
                                       {"--state", OPT_STATE, true},           {0}};

static const char usage[] = "usage: realm pipeline check FILE [--model ID=FILE]...\n"
                            "       realm pipeline run FILE [--input NAME=VALUE]... [--model ID=FILE]...\n"
                            "                          [--threads N] [--state DIR]\n";
static const char help[] =
    "\nSteps that call models, as a YAML or JSON file says (docs/pipelines.md). check says what the file is, or\n"
    "everything that is wrong with it; run prints its output.\n\n"
    "  --input NAME=VALUE   an input; NAME=@FILE reads it from a file, NAME=@- from standard input\n"
    "  --model ID=FILE      what a model of the file stands for here: a GGUF file or a name of the catalogue\n"
    "  --models-dir DIR     the models folder (default $XDG_DATA_HOME/realm/models)\n"
    "  --threads N          threads that compute (default one per core)\n"
    "  --state DIR          keep the ledger there (tenant local; default: nowhere)\n";

typedef struct pipeline_args {
    const char *file, *models_dir, *state;
    const char *models[REALM_PIPELINE_MODELS_MAX], *inputs[REALM_PIPELINE_INPUTS_MAX];
    size_t n_models, n_inputs;
    uint64_t threads;
} pipeline_args;

/* The file of a model of the pipeline: as --model says, else the path or name that the pipeline gives. */
static realm_status model_file(const pipeline_args *a, const realm_pipeline_model *m, char **path, realm_error *err) {
    const char *source = m->source;
    size_t len = strlen(m->id);
    for (size_t i = 0; i < a->n_models; i++)
        if (strncmp(a->models[i], m->id, len) == 0 && a->models[i][len] == '=') source = a->models[i] + len + 1;
    realm_status s = realm_find_model(source, a->models_dir, path, err);
    if (s == REALM_OK && access(*path, R_OK) != 0) {
        s = realm_error_set(err, REALM_E_NOT_FOUND, "%s: %s", *path, strerror(errno));
        realm_free(*path);
        *path = NULL;
    }
    return s;
}

/* --model of an id that the pipeline does not have is a mistake. */
static realm_status check_ids(const pipeline_args *a, const realm_pipeline *p, realm_error *err) {
    for (size_t i = 0; i < a->n_models; i++) {
        size_t k = 0, len = strcspn(a->models[i], "=");
        while (k < realm_pipeline_model_count(p) && (strlen(realm_pipeline_model_at(p, k).id) != len ||
                                                     strncmp(realm_pipeline_model_at(p, k).id, a->models[i], len) != 0))
            k++;
        char shown[128];
        if (k == realm_pipeline_model_count(p))
            return realm_error_set(err, REALM_E_INVALID, "--model: the pipeline has no model \"%s\"",
                                   realm_escape(shown, sizeof shown, a->models[i], len));
    }
    return REALM_OK;
}

/* ---- check ------------------------------------------------------------------------------------------------------- */

/* What the file alone does not show: models and programs that are not there or not usable. */
static void check_files(const pipeline_args *a, const realm_pipeline *p, realm_buf *problems) {
    char *self = realm_self_path();
    for (size_t i = 0; i < realm_pipeline_model_count(p); i++) {
        realm_pipeline_model m = realm_pipeline_model_at(p, i);
        realm_error err = {0};
        char *path = NULL;
        if (model_file(a, &m, &path, &err) != REALM_OK)
            (void)realm_buf_printf(problems, "line %u: model %s: %s\n", m.line, m.id, err.text);
        realm_free(path);
    }
    const char *path;
    unsigned line;
    for (size_t i = 0; realm_pipeline_program_at(p, i, &path, &line); i++) {
        realm_error err = {0};
        char *wasm = NULL;
        size_t len;
        realm_status s = realm_file_read(path, PROGRAM_MAX, &wasm, &len, &err);
        if (s == REALM_OK) s = realm_runtime_check_program(NULL, self, wasm, len, NULL, NULL, false, &err);
        if (s != REALM_OK) (void)realm_buf_printf(problems, "line %u: program %s: %s\n", line, path, err.text);
        realm_free(wasm);
    }
    realm_free(self);
}

static int check(const pipeline_args *a, bool json) {
    realm_pipeline *p = NULL;
    realm_error err = {0};
    realm_buf problems, out;
    char shown[256];
    realm_buf_init(&problems, PROBLEMS_MAX);
    realm_buf_init(&out, OUTPUT_MAX);
    realm_status s = realm_pipeline_open(&p, a->file, &problems, &err);
    if (s == REALM_OK) s = check_ids(a, p, &err);
    if (s == REALM_OK) check_files(a, p, &problems);
    if (s == REALM_OK && problems.len == 0) s = realm_pipeline_describe(p, json, &out);
    realm_pipeline_close(p);
    int status = REALM_EXIT_FAILED;
    if (problems.len > 0) {
        realm_escape(shown, sizeof shown, a->file, strlen(a->file));
        for (char *at = problems.data, *end; (end = strchr(at, '\n')); at = end + 1)
            fprintf(stderr, "realm: pipeline check: %s: %.*s\n", shown, (int)(end - at), at);
    } else if (s != REALM_OK) {
        (void)realm_fail("pipeline check", &err);
    } else {
        status = realm_print("pipeline check", &out);
        realm_buf_init(&out, OUTPUT_MAX);
    }
    realm_buf_release(&problems);
    realm_buf_release(&out);
    return status;
}

/* ---- run --------------------------------------------------------------------------------------------------------- */

static volatile sig_atomic_t interrupted;

static void on_interrupt(int sig) {
    (void)sig;
    interrupted = 1;
}

typedef struct run_view {
    uint64_t begin_ns;
    size_t n_steps;
    bool terminal, drawn;
} run_view;

static bool on_progress(void *user, const realm_pipeline_progress *p) {
    run_view *v = user;
    if (realm_clock_ns() - v->begin_ns < QUIET_NS) return !interrupted;
    if (v->terminal) {
        fprintf(stderr, "\r%" PRIu32 " of %zu steps, %" PRIu32 " calls running, %" PRIu64 " tokens\033[K",
                p->steps_ended, v->n_steps, p->calls_running, p->tokens);
        v->drawn = true;
    } else if (p->event == REALM_PIPELINE_ENDED) {
        fprintf(stderr, "realm: pipeline: %s %s (%" PRIu32 " of %zu)\n", p->step, p->skipped ? "skipped" : "done",
                p->steps_ended, v->n_steps);
    }
    return !interrupted;
}

static bool on_loading(void *user, uint64_t done, uint64_t total) {
    if (!isatty(STDERR_FILENO)) return !interrupted;
    fprintf(stderr, "\rloading %s %3d%%\033[K", (const char *)user, total ? (int)(done * 100 / total) : 100);
    if (done >= total) fputs("\r\033[K", stderr);
    return !interrupted;
}

static realm_status load_models(const pipeline_args *a, const realm_pipeline *p, realm_runtime *rt, realm_error *err) {
    realm_model_config mc = {.engine = {.max_generations = 64}};
    for (size_t i = 0; i < realm_pipeline_model_count(p); i++) {
        realm_pipeline_model m = realm_pipeline_model_at(p, i);
        char *path = NULL;
        realm_status s = model_file(a, &m, &path, err);
        if (s == REALM_OK) s = realm_runtime_add_model(rt, m.id, path, &mc, on_loading, (void *)(uintptr_t)m.id, err);
        realm_free(path);
        if (s != REALM_OK) {
            realm_error_prefix(err, "model %s", m.id);
            return s;
        }
    }
    return REALM_OK;
}

static realm_status open_tenant(realm_runtime *rt, realm_tenant **out, realm_error *err) {
    realm_tenant_row row;
    realm_store *store = realm_runtime_store(rt);
    realm_status s = realm_store_tenant_find(store, "local", &row, NULL);
    if (s == REALM_E_NOT_FOUND) s = realm_store_tenant_create(store, "local", NULL, NULL, 0, &row, err);
    return s == REALM_OK || s == REALM_E_EXISTS ? realm_runtime_tenant(rt, "local", out, err) : s;
}

/* NAME=VALUE, NAME=@FILE, NAME=@-; what is read from a file is kept in `files`. */
static realm_status read_inputs(const pipeline_args *a, realm_pipeline_input *inputs, char **names, char **files,
                                realm_error *err) {
    for (size_t i = 0; i < a->n_inputs; i++) {
        const char *text = a->inputs[i], *equals = strchr(text, '=');
        if (!equals) return realm_error_set(err, REALM_E_INVALID, "--input takes NAME=VALUE");
        if (!(names[i] = realm_strndup(text, (size_t)(equals - text))))
            return realm_error_set(err, REALM_E_NOMEM, "out of memory");
        inputs[i] = (realm_pipeline_input){names[i], equals + 1, strlen(equals + 1)};
        if (equals[1] != '@') continue;
        if (strcmp(equals + 2, "-") == 0) {
            realm_buf in;
            realm_buf_init(&in, REALM_PIPELINE_INPUT_BYTES_MAX);
            char piece[65536];
            for (size_t n; (n = fread(piece, 1, sizeof piece, stdin)) > 0;) (void)realm_buf_append(&in, piece, n);
            realm_status s = realm_buf_status(&in);
            if (s == REALM_OK) files[i] = realm_buf_take(&in, &inputs[i].len);
            realm_buf_release(&in);
            if (s != REALM_OK || !files[i])
                return realm_error_set(err, s == REALM_OK ? REALM_E_NOMEM : s, "standard input: at most %u bytes",
                                       REALM_PIPELINE_INPUT_BYTES_MAX);
        } else {
            realm_status s =
                realm_file_read(equals + 2, REALM_PIPELINE_INPUT_BYTES_MAX, &files[i], &inputs[i].len, err);
            if (s != REALM_OK) return s;
        }
        inputs[i].value = files[i];
    }
    return REALM_OK;
}

static int run(const pipeline_args *a, bool json) {
    realm_pipeline *p = NULL;
    realm_runtime *rt = NULL;
    realm_tenant *tenant = NULL;
    realm_error err = {0};
    realm_buf output, report;
    realm_pipeline_input inputs[REALM_PIPELINE_INPUTS_MAX];
    char *names[REALM_PIPELINE_INPUTS_MAX] = {0}, *files[REALM_PIPELINE_INPUTS_MAX] = {0}, *self = realm_self_path();
    realm_buf_init(&output, OUTPUT_MAX);
    realm_buf_init(&report, OUTPUT_MAX);
    realm_log_configure(REALM_LOG_WARN, NULL, NULL);
    realm_runtime_config rc = {.state_dir = a->state, .compiler_path = self, .n_threads = (uint32_t)a->threads};
    realm_status s = realm_pipeline_open(&p, a->file, NULL, &err);
    if (s == REALM_OK) s = check_ids(a, p, &err);
    if (s == REALM_OK) s = read_inputs(a, inputs, names, files, &err);
    if (s == REALM_OK) s = realm_runtime_open(&rt, &rc, &err);
    if (s == REALM_OK) s = load_models(a, p, rt, &err);
    if (s == REALM_OK) s = open_tenant(rt, &tenant, &err);
    if (s == REALM_OK) {
        struct sigaction act = {.sa_handler = on_interrupt, .sa_flags = (int)SA_RESETHAND};
        run_view v = {realm_clock_ns(), realm_pipeline_step_count(p), isatty(STDERR_FILENO) == 1, false};
        realm_pipeline_watch watch = {on_progress, &v};
        sigaction(SIGINT, &act, NULL);
        sigaction(SIGTERM, &act, NULL);
        s = realm_pipeline_run(p, tenant, inputs, a->n_inputs, &watch, &output, json ? &report : NULL, &err);
        if (v.drawn) fputs("\r\033[K", stderr);
    }
    realm_tenant_release(tenant);
    if (rt) realm_runtime_close(rt);
    realm_pipeline_close(p);
    for (size_t i = 0; i < a->n_inputs; i++) {
        realm_free(names[i]);
        realm_free(files[i]);
    }
    realm_free(self);
    int status = REALM_EXIT_FAILED;
    if (s == REALM_OK) {
        realm_buf *shown = json ? &report : &output;
        if (shown->len == 0 || shown->data[shown->len - 1] != '\n') (void)realm_buf_putc(shown, '\n');
        status = realm_print("pipeline run", shown);
        realm_buf_init(shown, 0);
    } else {
        (void)realm_fail("pipeline run", &err);
    }
    realm_buf_release(&output);
    realm_buf_release(&report);
    return status;
}

int realm_cmd_pipeline(int argc, char **argv) {
    realm_args args = {.command = "pipeline",
                       .usage = usage,
                       .help = help,
                       .options = options,
                       .words_max = 2,
                       .prints_data = true,
                       .argc = argc,
                       .argv = argv};
    const char *value;
    pipeline_args a = {0};
    for (int id; (id = realm_args_next(&args, &value)) != 0;) {
        switch (id) {
        case OPT_MODELS_DIR: a.models_dir = value; break;
        case OPT_STATE: a.state = value; break;
        case OPT_THREADS:
            if (!realm_args_u64(&args, "--threads", value, 1, 1024, &a.threads)) return args.status;
            break;
        case OPT_INPUT:
            if (!strchr(value, '=')) return realm_args_usage(&args, "--input takes NAME=VALUE, not ", value);
            if (a.n_inputs == REALM_ARRAY_LEN(a.inputs)) return realm_args_usage(&args, "too many inputs: ", value);
            a.inputs[a.n_inputs++] = value;
            break;
        case OPT_MODEL:
            if (!strchr(value, '=')) return realm_args_usage(&args, "--model takes ID=FILE, not ", value);
            if (a.n_models == REALM_ARRAY_LEN(a.models)) return realm_args_usage(&args, "too many models: ", value);
            a.models[a.n_models++] = value;
            break;
        default: return args.status;
        }
    }
    enum { CHECK, RUN };
    static const realm_action actions[] = {[CHECK] = {"check", "a file"}, [RUN] = {"run", "a file"}};
    int action = realm_args_action(&args, actions, REALM_ARRAY_LEN(actions));
    if (action < 0) return args.status;
    if (action == CHECK && (a.n_inputs || a.threads || a.state))
        return realm_args_usage(&args, "--input, --threads and --state are for run, not ", args.words[0]);
    a.file = args.words[1];
    return action == RUN ? run(&a, args.json) : check(&a, args.json);
}
