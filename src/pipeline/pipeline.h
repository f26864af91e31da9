/* pipeline/pipeline.h - several model calls that depend on each other, written down in YAML or JSON.
 *
 *      file --realm_pipeline_open--> steps and what each refers to --realm_pipeline_run--> output
 *
 *                                    +--> branch 0 --+
 *      inputs --> [draft: small] ----+--> branch 1 --+--> [vote] --> [refine: large] --> output
 *                                    +--> branch 2 --+
 *
 * The order of steps is that of their references: a step starts when every step that it mentions has ended, so steps
 * that do not mention each other run at the same time, in the engine's batch. Every model call is a request of one
 * tenant (tenant/tenant.h): its limits hold, its program runs (or the step's own), its ledger counts. Templates are
 * those of src/template: bounded, without I/O. A text that a model or an input brings is plain text in every prompt: it
 * cannot become a control token. docs/pipelines.md describes the format.
 *
 * Everything is bounded by the limits below and by those that the file sets within them; at a limit the pipeline ends
 * with an error that names it. A pipeline is immutable once open; it may be run any number of times, by any thread.
 */
#ifndef REALM_PIPELINE_PIPELINE_H
#define REALM_PIPELINE_PIPELINE_H

#include "base/base.h"
#include "base/buf.h"
#include "tenant/tenant.h"

#define REALM_PIPELINE_STEPS_MAX 64u
#define REALM_PIPELINE_MODELS_MAX 16u
#define REALM_PIPELINE_INPUTS_MAX 64u
#define REALM_PIPELINE_NAME_MAX 64u               /* bytes of a name of an input or a step */
#define REALM_PIPELINE_INPUT_BYTES_MAX (1u << 20) /* of one input */
#define REALM_PIPELINE_MESSAGES_MAX 32u           /* of one step */
#define REALM_PIPELINE_BRANCHES_MAX 64u           /* of one step: items times n */
#define REALM_PIPELINE_RETRY_MAX 8u
#define REALM_PIPELINE_FALLBACKS_MAX 4u
#define REALM_PIPELINE_PROBLEMS_MAX 32u /* that are said of one file */
/* X(key of `limits`, default, most) */
#define REALM_PIPELINE_LIMITS(X)                                                                            \
    X(calls, 256, 4096)                /* of models, further attempts included */                           \
    X(tokens, 65536, 1 << 30)          /* prompt and completion of all calls; looked at before each call */ \
    X(seconds, 600, 86400)             /* from start to end */                                              \
    X(output_bytes, 4 << 20, 64 << 20) /* of all steps' texts together, and of the output */                \
    X(parallel, 8, 64)                 /* calls at the same time */

typedef struct realm_pipeline realm_pipeline;

/* Reads and checks a file. Each problem, up to REALM_PIPELINE_PROBLEMS_MAX, is one line "line N: where: what" in
 * `problems` (may be NULL); the first is the error, which starts with the path. REALM_E_FORMAT: not YAML;
 * REALM_E_INVALID: anything that does not hold of a pipeline. *out is the caller's until realm_pipeline_close. */
REALM_WARN_UNUSED realm_status realm_pipeline_open(realm_pipeline **out, const char *path, realm_buf *problems,
                                                   realm_error *err);
/* The same from memory; files that it names are looked for in `dir` ("" or with a '/' at its end). */
REALM_WARN_UNUSED realm_status realm_pipeline_parse(realm_pipeline **out, const char *text, size_t len, const char *dir,
                                                    realm_buf *problems, realm_error *err);
void realm_pipeline_close(realm_pipeline *p); /* NULL-safe; not running */

typedef struct realm_pipeline_model { /* strings live as long as the pipeline */
    const char *id;                   /* under which the runtime must have it */
    const char *source;               /* name in the catalogue, or path */
    unsigned line;                    /* that mentions it first */
} realm_pipeline_model;
size_t realm_pipeline_model_count(const realm_pipeline *p);
realm_pipeline_model realm_pipeline_model_at(const realm_pipeline *p, size_t i);
size_t realm_pipeline_step_count(const realm_pipeline *p);
/* Path and line of each step's own program, i from 0; false at the end. */
bool realm_pipeline_program_at(const realm_pipeline *p, size_t i, const char **path, unsigned *line);
/* Appends what the file is: inputs, models, steps with what they wait for, limits; lines, or one JSON object. */
REALM_WARN_UNUSED realm_status realm_pipeline_describe(const realm_pipeline *p, bool json, realm_buf *out);

/* A value given for an input; as text, or as JSON where the default is no string. */
typedef struct realm_pipeline_input {
    const char *name, *value;
    size_t len;
} realm_pipeline_input;

typedef enum realm_pipeline_event {
    REALM_PIPELINE_STARTED,
    REALM_PIPELINE_ENDED,
    REALM_PIPELINE_TICK
} realm_pipeline_event;
typedef struct realm_pipeline_progress {
    realm_pipeline_event event;
    const char *step;     /* STARTED, ENDED */
    bool skipped;         /* ENDED */
    uint32_t steps_ended; /* of realm_pipeline_step_count */
    uint32_t calls_running;
    uint64_t tokens; /* so far */
} realm_pipeline_progress;

typedef struct realm_pipeline_watch {
    /* On the running thread, when something happened and five times a second. False cancels: REALM_E_CANCELLED. */
    bool (*progress)(void *user, const realm_pipeline_progress *p);
    void *user;
} realm_pipeline_watch;

/* Runs it as `tenant`; blocks until the end. `output` gets the text, or the JSON object where `output` in the file is
 * one; `report` (may be NULL) a JSON object with the output, each step's texts, counts and times, and the sums. Errors
 * of a step start with its id. REALM_E_INVALID: inputs; REALM_E_LIMIT: of the pipeline or the tenant; REALM_E_TIMEOUT.
 */
REALM_WARN_UNUSED realm_status realm_pipeline_run(const realm_pipeline *p, realm_tenant *tenant,
                                                  const realm_pipeline_input *inputs, size_t n_inputs,
                                                  const realm_pipeline_watch *watch, realm_buf *output,
                                                  realm_buf *report, realm_error *err);

#endif
