/* realm/realm.h - Realm inside your own program: one copy of a model's weights, many tenants, each with its own
 * WebAssembly program in its own sandbox.
 *
 *     realm *r;
 *     realm_error err = {0};
 *     realm_open(&r, NULL, &err);
 *     realm_model_load(r, "smollm2", "smollm2-135m-instruct-q4_1.gguf", NULL, &err);
 *     realm_tenant_add(r, "alpha", NULL, 0, &err);                 // the default program
 *     realm_job_params p = REALM_JOB_PARAMS_INIT;
 *     p.tenant = "alpha";
 *     p.prompt = "What is the capital of France?";
 *     realm_job *job;
 *     realm_job_start(r, &p, &job, &err);
 *     realm_job_wait(job, print_piece, NULL, NULL, &err);          // text arrives as it is generated
 *     realm_job_close(job);
 *     realm_close(r);
 *
 * Link with -lrealm (pkg-config realm). Handles are opaque. Every fallible function returns a realm_status (status.h)
 * and fills the optional, caller-owned realm_error. Unless said otherwise functions may be called from any thread and
 * strings are UTF-8, NUL-terminated and copied. The library starts threads of its own, installs the signal handlers
 * that Wasmtime needs for traps (SIGSEGV, SIGILL, SIGFPE, SIGBUS; others' handlers are chained) and writes log lines to
 * stderr unless realm_set_log was called.
 */
#ifndef REALM_REALM_H
#define REALM_REALM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "realm/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct realm realm;
typedef struct realm_job realm_job;

/* ---- the whole -----------------------------------------------------------------------------------------------------
 */

/* Zero-initialise; set `size` to sizeof: without it the structure is refused with REALM_E_INVALID, here and below.
 * Later versions append fields, and take structures of earlier ones with the new fields unset. */
typedef struct realm_config {
    size_t size;
    const char *state_dir;     /* tenants, ledger, compiled programs; NULL: nothing outlives the process */
    const char *compiler_path; /* the `realm` program, run as a child to compile tenants' modules under limits; NULL:
                                  the one of the library's installation prefix, else `realm` on PATH */
    uint32_t n_workers;        /* threads that run programs; 0: one per core, at most 8 */
    uint32_t n_threads;        /* for matrix products, of all models together; 0: one per core */
} realm_config;

/* `config` may be NULL. On success *out is the caller's until realm_close, on failure NULL. */
realm_status realm_open(realm **out, const realm_config *config, realm_error *err);
/* Cancels what runs, writes the ledger, frees everything. Close jobs first. NULL-safe. */
void realm_close(realm *r);
/* "0.1.0"; static. */
const char *realm_version(void);
/* Where log lines go (level 0 debug, 1 info, 2 warning, 3 error) and from which level on; NULL: stderr. Before
 * realm_open. */
void realm_set_log(int least_level, void (*sink)(void *user, int level, const char *line, size_t len), void *user);

/* ---- models --------------------------------------------------------------------------------------------------------
 */

typedef struct realm_load_config { /* zero-initialise; set `size` */
    size_t size;
    uint64_t kv_bytes;         /* memory for KV pages; 0: enough for max_generations at moderate length */
    uint32_t n_ctx;            /* longest sequence; 0: what the model was trained for */
    uint32_t max_generations;  /* in the batch at once; 0: 64 */
    const char *chat_template; /* Jinja source; NULL: the file's own */
    /* While weights are prepared; on the calling thread. May be NULL. */
    void (*progress)(void *user, uint64_t done_bytes, uint64_t total_bytes);
    void *user;
    /* Memory for weights; 0: all are resident. With less than all the layers stream from the file. REALM_E_LIMIT says
     * how much is needed at least. */
    uint64_t weight_budget_bytes;
} realm_load_config;

/* Loads a GGUF file under an id of the caller's choice; every tenant uses this one copy. `config` may be NULL. Blocks
 * while loading. REALM_E_FORMAT, REALM_E_UNSUPPORTED: the text says what is wrong with the file. */
realm_status realm_model_load(realm *r, const char *id, const char *path, const realm_load_config *config,
                              realm_error *err);

/* ---- tenants -------------------------------------------------------------------------------------------------------
 */

/* Makes the tenant if there is none of this name (a-z A-Z 0-9 . _ -) and gives it a program: a WebAssembly module
 * (docs/programs.md), or the default one with wasm NULL. Running jobs finish on the program they began with.
 * REALM_E_FORMAT, REALM_E_UNSUPPORTED, REALM_E_LIMIT: what of the module was refused; nothing has changed then. */
realm_status realm_tenant_add(realm *r, const char *name, const void *wasm, size_t len, realm_error *err);
/* One limit by name, as `realm tenant set`: requests_per_minute, generations, kv_tokens, memory_bytes ... */
realm_status realm_tenant_limit(realm *r, const char *name, const char *limit, uint64_t value, realm_error *err);

typedef struct realm_tenant_usage { /* set `size` to sizeof; later versions append fields */
    size_t size;
    uint64_t requests, aborted_requests, prompt_tokens, cached_tokens, completion_tokens;
    uint64_t program_cpu_ns; /* CPU time of its programs and of compiling them */
    uint64_t tensor_ns;      /* for how long tensor calls of its programs held the device */
} realm_tenant_usage;
/* What a tenant has used, jobs that have ended included to the last token. Fills in as much of *out as `size` says,
 * with 0 on failure; REALM_E_INVALID for a size that no version has had. */
realm_status realm_tenant_get_usage(realm *r, const char *name, realm_tenant_usage *out, realm_error *err);

/* ---- jobs: one request of a tenant ---------------------------------------------------------------------------------
 */

typedef struct realm_job_params { /* initialise with REALM_JOB_PARAMS_INIT */
    size_t size;
    const char *tenant;        /* required */
    const char *model;         /* NULL: the first one loaded */
    const char *prompt;        /* a user's message (or, with raw, text to continue) */
    const char *messages_json; /* instead of prompt: [{"role":"user","content":"..."}, ...] */
    bool raw;                  /* no chat template */
    uint32_t max_tokens;       /* 0: until the model ends or the context is full */
    float temperature;         /* 0: always the most probable token */
    uint32_t top_k;            /* 0: all */
    float top_p;               /* 1: all */
    float min_p;               /* 0: all */
    float repeat_penalty;      /* 1: none */
    uint64_t seed;
    const char *const *stop; /* n_stop strings that end the answer; not part of it */
    size_t n_stop;
    /* Variables for the model's chat template: {"enable_thinking":false}, at most 32, none that the conversation or the
     * model gives (messages, bos_token ...). NULL: none. Not with raw. */
    const char *template_args_json;
} realm_job_params;
#define REALM_JOB_PARAMS_INIT {.size = sizeof(realm_job_params), .top_p = 1, .repeat_penalty = 1}

/* Starts the tenant's program with this request; returns at once. REALM_E_NOT_FOUND: tenant or model; REALM_E_RATE,
 * REALM_E_QUOTA: which of the tenant's limits; REALM_E_RANGE, REALM_E_INVALID: which parameter. *out is the caller's
 * until realm_job_close; on failure NULL. */
realm_status realm_job_start(realm *r, const realm_job_params *params, realm_job **out, realm_error *err);

typedef enum realm_job_end {
    REALM_JOB_STOPPED, /* the model or the program came to its end */
    REALM_JOB_LENGTH,  /* max_tokens, or the context is full */
    REALM_JOB_CANCELLED,
    REALM_JOB_FAILED
} realm_job_end;

typedef struct realm_job_result {
    realm_job_end end;
    uint32_t prompt_tokens, cached_tokens, completion_tokens;
} realm_job_result;

/* Calls on_text (may be NULL) on this thread with each piece of the answer as it comes: whole characters, not
 * NUL-terminated. Returning false cancels the job. Returns when the job has ended and its tokens are in the ledger;
 * *result may be NULL. A job that failed returns why, a cancelled one REALM_OK. Once per job, one thread: after that
 * REALM_E_INVALID. */
realm_status realm_job_wait(realm_job *job, bool (*on_text)(void *user, const char *text, size_t len), void *user,
                            realm_job_result *result, realm_error *err);
/* From any thread, while the job is open: realm_job_wait returns soon with REALM_JOB_CANCELLED. */
void realm_job_cancel(realm_job *job);
/* Cancels if still running. NULL-safe. */
void realm_job_close(realm_job *job);

#ifdef __cplusplus
}
#endif

#endif
