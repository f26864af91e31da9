/* pipeline/internal.h - what a pipeline is once it is read.
 *
 *   parse.c   the file's tree to steps; every problem is noted, none ends the reading
 *   graph.c   references to dependencies: what is unknown, what goes in circles
 *   render.c  templates and expressions over what is known so far
 *   run.c     the calls
 */
#ifndef REALM_PIPELINE_INTERNAL_H
#define REALM_PIPELINE_INTERNAL_H

#include "base/arena.h"
#include "data/data.h"
#include "pipeline/pipeline.h"
#include "template/template.h"

#define PIPELINE_ARENA_MAX ((size_t)64 << 20)
#define PIPELINE_OUTPUTS_MAX 32u /* members of an output object */
#define PIPELINE_STOP_MAX 4u

typedef struct pipe_message {
    const char *role;
    realm_template *content;
} pipe_message;

typedef struct pipe_params { /* fields of the OpenAI API, and those that local servers have besides */
    uint32_t max_tokens;
    realm_sampling sampling;
    realm_gguf_str stop[PIPELINE_STOP_MAX];
    size_t n_stop;
} pipe_params;

typedef enum pipe_kind { PIPE_CALL, PIPE_TEXT, PIPE_VOTE } pipe_kind;

typedef struct pipe_step {
    const char *id;
    unsigned line;
    pipe_kind kind;
    uint64_t after;                 /* bit i: waits for step i */
    realm_template *when, *foreach; /* NULL: not given, as below */
    const char *items;              /* foreach as a list: JSON */
    /* CALL */
    uint32_t model, fallback[REALM_PIPELINE_FALLBACKS_MAX];
    size_t n_fallback;
    const char *program; /* path; NULL: the tenant's */
    bool raw;            /* the one message is text to go on with */
    pipe_message messages[REALM_PIPELINE_MESSAGES_MAX];
    size_t n_messages;
    uint32_t n, retry;
    pipe_params params;
    realm_template *expect;
    /* TEXT, VOTE */
    realm_template *text, *key;
    const char *vote_id;
    uint32_t vote; /* index of that step */
} pipe_step;

typedef struct pipe_input {
    const char *name;
    const char *value;   /* JSON of the default; NULL: must be given */
    bool is_text;        /* what is given is text, not JSON */
    const char *comment; /* NULL: none */
} pipe_input;

typedef struct pipe_output {
    const char *name; /* NULL: the output is this text */
    realm_template *text;
} pipe_output;

struct realm_pipeline {
    realm_arena arena; /* all strings */
    const char *name, *comment;
    realm_template **templates; /* all of them, to be closed */
    size_t n_templates, cap_templates;
    realm_pipeline_model models[REALM_PIPELINE_MODELS_MAX];
    size_t n_models;
    pipe_input inputs[REALM_PIPELINE_INPUTS_MAX];
    size_t n_inputs;
    pipe_step *steps; /* REALM_PIPELINE_STEPS_MAX of them */
    size_t n_steps;
    pipe_output outputs[PIPELINE_OUTPUTS_MAX];
    size_t n_outputs;
    struct {
#define PIPE_LIMIT(name, standard, most) int64_t name;
        REALM_PIPELINE_LIMITS(PIPE_LIMIT)
#undef PIPE_LIMIT
    } limits;
};

/* ---- while reading ---- */

typedef struct pipe_ref { /* a name in a template, or in `after` and `vote` */
    const char *name;     /* "steps.draft.text" */
    const char *where;    /* "line 3: steps[0].prompt" */
    uint32_t step;        /* that has it; n_steps and more: the output */
    const char *also;     /* names that are known there besides, " item index " */
} pipe_ref;

typedef struct pipe_reading {
    realm_pipeline *p;
    const char *dir;
    realm_buf *problems; /* NULL: not wanted */
    size_t n_problems;
    realm_error first;
    pipe_ref *refs;
    size_t n_refs, cap_refs;
    bool no_memory;
    pipe_params defaults;
    const char *default_model;
} pipe_reading;

/* Notes a problem: "line N: path: text". */
void pipe_problem(pipe_reading *r, const realm_json *at, const char *fmt, ...) REALM_PRINTF(3, 4);
/* The same where the tree is gone: `where` is what comes before the text. */
void pipe_problem_at(pipe_reading *r, const char *where, const char *fmt, ...) REALM_PRINTF(3, 4);
void pipe_add_ref(pipe_reading *r, const realm_json *at, uint32_t step, const char *name, const char *also);
/* Resolves references into `after`, then looks for circles. */
void pipe_resolve(pipe_reading *r);

/* ---- render.c ---- */

typedef enum pipe_form {
    PIPE_FORM_TEXT,  /* a template */
    PIPE_FORM_JSON,  /* an expression, rendered as JSON */
    PIPE_FORM_TRUTH, /* an expression, rendered as 1 or nothing */
    PIPE_FORM_VALUE  /* an expression, rendered as text */
} pipe_form;
/* Compiles the string `at` and notes what it refers to. NULL when that is a problem, which is noted. The template is
 * the pipeline's. */
realm_template *pipe_compile(pipe_reading *r, const realm_json *at, pipe_form form, uint32_t step, const char *also);
/* Appends the result over `values`, a JSON object. */
REALM_WARN_UNUSED realm_status pipe_render(const realm_template *t, const realm_buf *values, realm_buf *out,
                                           realm_error *err);

#endif
