/* pipeline/run.h - one run of a pipeline: what its steps have come to so far. Inside the folder. */
#ifndef REALM_PIPELINE_RUN_H
#define REALM_PIPELINE_RUN_H

#include "base/thread.h"
#include "pipeline/internal.h"

#define PIPELINE_VALUES_MAX ((size_t)256 << 20) /* bytes of what templates see: texts, escaped */

typedef enum branch_state { BRANCH_PENDING, BRANCH_RUNNING, BRANCH_DONE } branch_state;
typedef struct pipe_branch {
    branch_state state;
    char *item; /* JSON; NULL: no foreach */
    char *text; /* DONE */
    size_t len;
    realm_finish finish;
    uint32_t model, attempts; /* of the last attempt, and how many were begun */
} pipe_branch;

typedef enum step_state { STEP_WAITING, STEP_RUNNING, STEP_DONE } step_state;
typedef struct pipe_step_run {
    step_state state;
    bool skipped;
    pipe_branch *branches;
    uint32_t n_branches, n_done;
    uint32_t votes; /* VOTE: of the winner */
    uint64_t prompt_tokens, completion_tokens;
    uint64_t begin_ns, end_ns;
} pipe_step_run;

typedef struct pipe_call { /* a slot for a call that is running */
    struct pipe_run *r;
    uint32_t step, branch;
    bool crowded; /* others were running beside it at some time */
    realm_request *request;
    realm_run *run; /* NULL: the slot is free */
    realm_buf text;
    realm_event_batch batch;
} pipe_call;

typedef struct pipe_run {
    const realm_pipeline *p;
    realm_tenant *tenant;
    const realm_pipeline_watch *watch;
    realm_buf inputs;         /* JSON object */
    pipe_step_run *steps;     /* p->n_steps */
    realm_program **programs; /* p->n_steps; NULL: the tenant's */
    pipe_call *calls;         /* limits.parallel slots */
    uint32_t n_running;       /* calls */
    uint32_t parallel;        /* how many may run: fewer than the limit for a while once the tenant has said so */
    uint32_t n_done;          /* steps */
    uint64_t n_calls, prompt_tokens, completion_tokens, reserved_tokens, bytes;
    uint64_t begin_ns, deadline_ns;
    realm_mutex mu;
    realm_cond cond;
    bool ready; /* mu: some call has events */
} pipe_run;

/* values.c: reads the inputs as the pipeline declares them. */
REALM_WARN_UNUSED realm_status pipe_read_inputs(pipe_run *r, const realm_pipeline_input *inputs, size_t n,
                                                realm_error *err);
/* Renders one template over {"inputs":...,"steps":...} and, for a branch, item and index, and with `text` (may be NULL)
 * the text. */
REALM_WARN_UNUSED realm_status pipe_render_for(const pipe_run *r, const realm_template *t, const pipe_branch *branch,
                                               uint32_t index, const char *text, size_t len, realm_buf *out,
                                               realm_error *err);
/* The pipeline's output, once all steps have ended. */
REALM_WARN_UNUSED realm_status pipe_output_text(const pipe_run *r, realm_buf *out, realm_error *err);
REALM_WARN_UNUSED realm_status pipe_report(const pipe_run *r, const realm_buf *output, realm_buf *out);

#endif
