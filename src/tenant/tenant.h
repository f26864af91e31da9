/* tenant/tenant.h - joins engine and sandbox: models, tenants, requests, the ledger.
 *
 *   runtime   everything one process serves: models with their engines, the sandbox's workers, the store
 *   tenant    a customer as the running server sees it: limits, program, engine accounts; reference counted
 *   request   one client request, admitted against its tenant's limits and counted once in the ledger
 *   run       one running program inside a request: one per choice and prompt
 *
 *      api --request_open--> admitted --run_start--> instance of the tenant's program starts with the input
 *          the program starts generations, emits text; in pipe mode tokens bypass it
 *      api <--on_ready + run_poll-- events, END last --> run_release, request_close --> ledger
 *
 * A run's END event is handed out only after its tokens are in the ledger (or the store has failed, which is logged and
 * retried), so whatever a client was told it used is on disk. All functions may be called from any thread.
 */
#ifndef REALM_TENANT_TENANT_H
#define REALM_TENANT_TENANT_H

#include "base/base.h"
#include "base/buf.h"
#include "engine/engine.h"
#include "store/store.h"
#include "template/template.h"

#define REALM_MODEL_ID_MAX 128u         /* bytes of a model id */
#define REALM_MODELS_MAX 16u            /* served at once */
#define REALM_RUN_INPUT_MAX (32u << 20) /* bytes of a run's input document */

typedef struct realm_runtime realm_runtime;
typedef struct realm_tenant realm_tenant;
typedef struct realm_request realm_request;
typedef struct realm_run realm_run;

/* ---- runtime ----------------------------------------------------------------------------------------------------- */

typedef struct realm_runtime_config {
    const char *state_dir; /* store, compiled programs; NULL: nothing is kept, tenants live in memory */
    const char
        *compiler_path; /* program that compiles modules in a child: `realm`; NULL: looked for (docs/embedding.md) */
    uint32_t n_workers; /* sandbox worker threads; 0: as many as cores, at most 8 */
    uint32_t
        max_instances;  /* running programs at once; 0: 1024, fewer where a limit of virtual memory leaves no room */
    uint32_t n_threads; /* of the compute pool that all models share; 0: one per core */
    uint64_t program_bytes; /* compiled code of programs that no request uses: past it, those unused for longest are
                               dropped until their next request; 0: 256 MiB */
} realm_runtime_config;

/* Opens store, sandbox and compute pool and starts the threads; models and tenants come later. Fails with what the
 * first of them says (realm_store_open, realm_sandbox_open ...); *out is then untouched and nothing is left behind. */
REALM_WARN_UNUSED realm_status realm_runtime_open(realm_runtime **out, const realm_runtime_config *config,
                                                  realm_error *err);
/* Cancels what runs, waits for it, writes the ledger. Requests and tenants must have been closed before. */
void realm_runtime_close(realm_runtime *rt);
realm_store *realm_runtime_store(realm_runtime *rt); /* borrowed, as long as the runtime */

/* Checks and compiles a module as a server would, without one: what `realm program check` prints goes to `describe`
 * (NULL: not wanted). `state_dir` (NULL: none) is where the artifact is kept for a server. */
REALM_WARN_UNUSED realm_status realm_runtime_check_program(const char *state_dir, const char *compiler_path,
                                                           const void *wasm, size_t len, const realm_limits *limits,
                                                           realm_buf *describe, bool json, realm_error *err);

/* ---- models ------------------------------------------------------------------------------------------------------ */

typedef struct realm_model_config {
    realm_engine_config engine;
    uint64_t weight_budget_bytes; /* memory for weights, the rest streams (model/model.h); 0: all are resident */
    const char *chat_template;    /* NULL: the file's own */
} realm_model_config;

typedef struct realm_model_info {
    const char *id;
    const char *path;
    int64_t created_s; /* the file's modification time */
    bool has_template;
    const realm_hparams *hparams;
    uint64_t weight_bytes;
} realm_model_info;

/* Loads a file under an id; blocks for as long as it takes, beside requests for other models. REALM_E_EXISTS when the
 * id is taken; REALM_E_CANCELLED: `progress` gave up. */
REALM_WARN_UNUSED realm_status realm_runtime_add_model(realm_runtime *rt, const char *id, const char *path,
                                                       const realm_model_config *config, realm_model_progress progress,
                                                       void *user, realm_error *err);
/* Takes a model away: from here on no id finds it, who holds it goes on, and once nobody does its memory is given back,
 * with the contexts that tenants saved on it. The id is free at once. REALM_E_NOT_FOUND. */
REALM_WARN_UNUSED realm_status realm_runtime_retire_model(realm_runtime *rt, const char *id, realm_error *err);
size_t realm_runtime_model_count(realm_runtime *rt);

/* A model that is served; whoever holds it may use it also when it was retired meanwhile. */
typedef struct tenant_model realm_served;
realm_served *realm_runtime_hold(realm_runtime *rt, const char *id); /* NULL when no model has this id */
/* All of them, in the order added, each to be released; returns how many. */
size_t realm_runtime_hold_all(realm_runtime *rt, realm_served *out[REALM_MODELS_MAX]);
void realm_served_release(realm_served *m);                               /* NULL-safe; does not block */
void realm_served_get_info(const realm_served *m, realm_model_info *out); /* pointers live as long as the model */
realm_engine *realm_served_engine(const realm_served *m);                 /* likewise */
/* Computes the text's tokens once and keeps them for all tenants (realm_engine_publish_prefix): control tokens in it
 * are parsed, as in a chat template's own text. Blocks for as long as it takes. */
REALM_WARN_UNUSED realm_status realm_runtime_publish_prefix(realm_runtime *rt, const char *id, const char *text,
                                                            size_t len, realm_error *err);
/* What a chat template is rendered over; borrowed. */
typedef struct realm_conversation {
    const char *messages; /* JSON array */
    size_t messages_len;
    const char *tools; /* JSON array, or NULL */
    size_t tools_len;
    const char *args; /* JSON object of further variables (realm_template_input), or NULL */
    size_t args_len;
    bool add_generation_prompt;
} realm_conversation;

/* Renders the model's chat template, appended to `text`. `spans` (freed with realm_free) says which parts are the
 * template's own (control tokens are parsed there) and which came from messages. REALM_E_UNSUPPORTED: the model has no
 * template. REALM_E_INVALID: the template refused the messages or arguments; REALM_E_TOO_LARGE: they are more than it
 * may work on. */
REALM_WARN_UNUSED realm_status realm_served_apply_template(const realm_served *m, const realm_conversation *c,
                                                           realm_buf *text, realm_text_span **spans, size_t *n_spans,
                                                           realm_error *err);

/* ---- tenants ----------------------------------------------------------------------------------------------------- */

/* Whose key this is. REALM_E_UNAUTHENTICATED for an unknown, revoked or expired one. The tenant is held until released.
 * Keys made or revoked by other processes take effect within a second. */
REALM_WARN_UNUSED realm_status realm_runtime_authenticate(realm_runtime *rt, const char *key, size_t key_len,
                                                          realm_tenant **out, realm_error *err);
/* By name, for embedding and `realm run`. */
REALM_WARN_UNUSED realm_status realm_runtime_tenant(realm_runtime *rt, const char *name, realm_tenant **out,
                                                    realm_error *err);
/* Reads tenants' rows again now, instead of within the quarter of a second that it takes by itself. */
void realm_runtime_reload(realm_runtime *rt);
void realm_tenant_release(realm_tenant *t); /* NULL-safe */
const char *realm_tenant_name(const realm_tenant *t);
realm_runtime *realm_tenant_runtime(const realm_tenant *t); /* borrowed */
/* Checks and compiles a module as this tenant's program from the next run on; running ones finish on the old one. With
 * wasm NULL the default program. Not written to the store, and kept whatever the store says later. */
REALM_WARN_UNUSED realm_status realm_tenant_set_program(realm_tenant *t, const void *wasm, size_t len,
                                                        realm_error *err);
/* A program for single runs (realm_run_params.program) besides the tenant's own: checked and compiled as that is. */
typedef struct realm_program realm_program;
REALM_WARN_UNUSED realm_status realm_tenant_open_program(realm_tenant *t, const void *wasm, size_t len,
                                                         realm_program **out, realm_error *err);
void realm_tenant_close_program(realm_program *p); /* NULL-safe; runs that have begun keep it */
/* What an answer of this model must look like, for realm_run_params.generation.grammar (a run takes a copy); closed
 * with realm_grammar_state_close while the model is still held. Takes up to seconds: not for an I/O thread. Fails as
 * realm_grammar_compile does for this tenant. */
REALM_WARN_UNUSED realm_status realm_tenant_grammar(realm_tenant *t, realm_served *m, realm_grammar_kind kind,
                                                    const char *text, size_t len, realm_grammar_state **out,
                                                    realm_error *err);

/* ---- requests ---------------------------------------------------------------------------------------------------- */

typedef struct realm_rate {                /* for x-ratelimit-* and retry-after */
    uint32_t limit, remaining;             /* requests per minute; limit 0: none */
    uint32_t reset_ms;                     /* until full again */
    uint32_t retry_after_ms;               /* when refused: until one would be admitted */
    uint64_t token_limit, token_remaining; /* tokens per minute; limit 0: none */
    uint32_t token_reset_ms;
} realm_rate;

/* Takes one request from requests_per_minute, before anything is done for it: whatever becomes of it, it counts.
 * REALM_E_RATE, REALM_E_QUOTA: a limit of the tenant (the text says which; `rate` is filled on success and failure, may
 * be NULL). Any thread, also one that may not block. */
REALM_WARN_UNUSED realm_status realm_tenant_admit(realm_tenant *t, realm_rate *rate, realm_error *err);
/* A request that was admitted begins; it holds the model. REALM_E_RATE, REALM_E_QUOTA: its tenant's tokens were used up
 * meanwhile, or on this day before the server started. `rate` as above. */
REALM_WARN_UNUSED realm_status realm_request_open(realm_tenant *t, realm_served *m, realm_rate *rate,
                                                  realm_request **out, realm_error *err);
/* Before the first run is started: says that this many runs with the same prompt will come, so that they compute and
 * count it once. */
void realm_request_expect_runs(realm_request *r, uint32_t n_runs);
/* After its runs were released: counts it in the ledger (as aborted when a run was cancelled before its end). */
void realm_request_close(realm_request *r); /* NULL-safe */

typedef enum realm_prompt_kind { REALM_PROMPT_MESSAGES, REALM_PROMPT_TEXT, REALM_PROMPT_TOKENS } realm_prompt_kind;

typedef struct realm_run_params {
    /* What the program reads: a JSON object, the client's request as validated (field "endpoint": "chat" or
     * "completion"; "messages" or "prompt"; everything else under the names of the OpenAI API). Copied. */
    const char *input;
    size_t input_len;
    /* The same prompt for the host, when the program asks for "the request's own". Copied. */
    realm_prompt_kind kind;
    const char *prompt; /* MESSAGES: JSON array; TEXT: the text */
    size_t prompt_len;
    const char *template_args; /* MESSAGES: JSON object for the chat template, or NULL */
    size_t template_args_len;
    bool parse_special;        /* TEXT, MESSAGES: control tokens' text is parsed */
    const realm_token *tokens; /* TOKENS */
    size_t n_tokens;
    /* What a generation uses unless the program says otherwise. account, prompt, share, on_ready and user are set by
     * the runtime. */
    realm_generation_params generation;
    realm_program *program;       /* NULL: the tenant's */
    void (*on_ready)(void *user); /* any thread; must not block; there is something to poll where there was nothing */
    void *user;
} realm_run_params;

/* Starts the tenant's program on a copy of `p`. It may still have to be compiled: then the run waits for that without a
 * thread, and its END tells of a failure. The run holds the request; *out is the reader's, for one thread at a time,
 * and untouched on failure: REALM_E_NOMEM, REALM_E_BUSY (too many instances, or too many runs wait for the program),
 * and what the program's opening says. */
REALM_WARN_UNUSED realm_status realm_run_start(realm_request *r, const realm_run_params *p, realm_run **out,
                                               realm_error *err);
/* As realm_generation_poll: TOKEN events in pipe mode carry ids and logprobs, text that a program emitted comes as
 * TOKEN events with id -1. Counts are sums over all generations of the run. END's status says why a run failed:
 * REALM_E_PROGRAM with the trap's text, or what its generation or template said. */
size_t realm_run_poll(realm_run *run, realm_event_batch *b);
/* Ends the program and its generations soon; the END event still comes. Any thread, any number of times. */
void realm_run_cancel(realm_run *run);
/* Cancels if still running and waits for no one; on_ready is not called after it returned. NULL-safe. */
void realm_run_release(realm_run *run);

/* ---- numbers ----------------------------------------------------------------------------------------------------- */

typedef struct realm_runtime_stats { /* since start, or now */
    uint64_t requests, requests_aborted, requests_refused;
    uint32_t requests_active, runs_active;
    uint32_t tenants;        /* in memory */
    uint32_t runs_awaiting;  /* their program, which is being opened */
    uint32_t jobs_queued[2]; /* for the threads that may block: quick ones, heavy ones */
    /* programs */
    uint32_t instances, instances_ready[2]; /* ready: for a worker, for one of the background */
    uint64_t instances_started, instances_ended, instances_failed;
    uint64_t instance_start_ns, instance_starts_timed; /* sum and count, for a mean */
    uint64_t programs_compiled, programs_from_cache;
    uint64_t program_bytes;    /* of compiled code in memory */
    uint64_t program_failures; /* runs that ended by a trap or a failure */
    uint64_t program_cpu_ns;   /* of programs and of compiling them */
    /* the device: turns of engines and of tensor calls */
    realm_turn_stats turns;
    uint32_t tensor_lists; /* queued or running */
    uint64_t tensor_ops, tensor_ns;
    /* the ledger */
    uint64_t ledger_writes, ledger_failures;
} realm_runtime_stats;
void realm_runtime_get_stats(realm_runtime *rt, realm_runtime_stats *out);

typedef struct realm_model_stats {
    realm_engine_stats engine;
    realm_token_counts tokens;
    realm_model_stream_stats stream;
} realm_model_stats;
void realm_served_get_stats(const realm_served *m, realm_model_stats *out);

typedef struct realm_tenant_stats {
    int64_t id;
    char name[REALM_TENANT_NAME_MAX + 1];
    realm_usage used;       /* in the ledger since the server started */
    uint32_t generations;   /* running or queued */
    uint64_t tensor_bytes;  /* of its programs' tensors */
    uint64_t storage_bytes; /* values and models that it stored */
} realm_tenant_stats;
/* Of all tenants in memory, in order of name; freed with realm_free. Of several that have had a name the last one.
 * Reads the store: not for an I/O thread. */
REALM_WARN_UNUSED realm_status realm_runtime_tenant_stats(realm_runtime *rt, realm_tenant_stats **out, size_t *n,
                                                          realm_error *err);

#endif
