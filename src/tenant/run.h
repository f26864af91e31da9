/* tenant/run.h - inside the folder: what a run offers to the host imports of its program, and the reverse.
 *
 *                    sandbox worker                                   api's thread
 *      program -> host import -> realm_run_emit --> [output, bounded] --> realm_run_poll
 *                            \-> realm_run_pipe: generation's events --> realm_run_poll (program not woken per token)
 *
 * Host imports (host/) hold the per-instance state (handles, last error, log budget) in a realm_host; runs (run.c)
 * hold what outlives the instance: parameters, output, counts.
 */
#ifndef REALM_TENANT_RUN_H
#define REALM_TENANT_RUN_H

#include "sandbox/sandbox.h"
#include "tenant/tenant.h"

#define REALM_RUN_OUTPUT_MAX (64u << 10) /* bytes of emitted text that wait for the reader */

typedef struct realm_host realm_host;

/* ---- run.c, called by host imports on a sandbox worker (or, where said, any thread) ------------------------------ */

/* The run's parameters; pointers inside live as long as the run. */
const realm_run_params *realm_run_get_params(const realm_run *run);
/* What the chat template is rendered over for the request's own prompt, which is of kind MESSAGES. */
realm_conversation realm_run_conversation(const realm_run *run);
realm_request *realm_run_request(const realm_run *run);
realm_runtime *realm_run_runtime(const realm_run *run);
const realm_limits *realm_run_limits(const realm_run *run);
/* What a WASI program gets: arguments ("program", then the tenant's) and NAME=VALUE, each with a NUL. */
typedef struct realm_words {
    const char *text;
    size_t len;
    uint32_t n;
} realm_words;
const realm_words *realm_run_args(const realm_run *run);
const realm_words *realm_run_env(const realm_run *run);

/* Hands text to the client. All or nothing: REALM_E_AGAIN when it does not fit now (realm_host_drained follows once
 * there is room), REALM_E_LIMIT past the tenant's output_bytes and when it is longer than REALM_RUN_OUTPUT_MAX,
 * REALM_E_CANCELLED. `id` -1 for text that
 * is no token. Text must be well-formed UTF-8 (REALM_E_FORMAT). `call`: the host call that it is done in, which may put
 * off waking the reader; NULL: none. */
REALM_WARN_UNUSED realm_status realm_run_emit(realm_run *run, realm_token id, const char *text, size_t len,
                                              const realm_call *call);

/* The request's own generation parameters with account, share and deadline filled in; the host sets prompt, on_ready
 * and user before it submits. */
void realm_run_generation_params(realm_run *run, realm_generation_params *out);

/* From now on realm_run_poll hands out this generation's events (after output emitted before) until its END, then calls
 * realm_host_pipe_ended. One at a time: REALM_E_BUSY. The run does not own it: the host releases it, after
 * realm_host_pipe_ended or after realm_run_unpipe. The generation's on_ready must call realm_run_pipe_ready. */
REALM_WARN_UNUSED realm_status realm_run_pipe(realm_run *run, realm_generation *g);
void realm_run_unpipe(realm_run *run);
void realm_run_pipe_ready(realm_run *run); /* engine thread */

/* Adds what a generation used to the run's counts: deltas since the host's last report. Pipe generations are counted by
 * realm_run_poll itself. */
void realm_run_count(realm_run *run, uint32_t prompt, uint32_t cached, uint32_t completion);

/* How the answer ends when the program returns 0: the last generation's finish unless set here. */
void realm_run_set_finish(realm_run *run, realm_finish finish);
/* Remembers why a generation or host call failed, for the END event when the program then gives up. */
void realm_run_set_error(realm_run *run, const realm_error *err);

/* ---- host.c, called by runs -------------------------------------------------------------------------------------- */

/* The import table for realm_sandbox_open: every function of docs/abi.md. Static. */
const realm_import *realm_host_imports(size_t *n);
/* What an import is part of, for people: the title of its group in docs/abi.md, or the interface that it is of. NULL
 * for one that does not exist. */
const char *realm_host_import_group(const char *module, const char *name);
/* State for one instance; `user` of its calls. */
REALM_WARN_UNUSED realm_status realm_host_open(realm_host **out, realm_run *run, realm_error *err);
/* Once it has an instance, so that it can be woken. */
void realm_host_set_instance(realm_host *h, realm_instance *instance);
/* Cancels and releases every generation and handle. The instance has ended. NULL-safe. */
void realm_host_close(realm_host *h);
/* Any thread: room in the output again; the pipe's generation ended; the run was cancelled (generations are cancelled,
 * waits answer REALM_E_CANCELLED). They wake the instance. */
void realm_host_drained(realm_host *h);
void realm_host_pipe_ended(realm_host *h, realm_finish finish, const realm_event_batch *last);
void realm_host_cancel(realm_host *h);

#endif
