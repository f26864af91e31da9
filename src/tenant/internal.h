/* tenant/internal.h - the objects of this folder and who guards what.
 *
 *      runtime --owns--> models (each with its engine), tenants, sandbox, store, ledger and sweeper threads
 *      request --holds--> tenant, model;   run --holds--> request;   an instance that still runs --holds--> run
 *
 * So whoever is released first, the rest stays until the last user is gone. Lock order is that of base/thread.h:
 * runtime.mu, then tenant.mu, then run.mu, then what the sandbox and the engine lock.
 */
#ifndef REALM_TENANT_INTERNAL_H
#define REALM_TENANT_INTERNAL_H

#include <stdatomic.h>

#include "base/arena.h"
#include "base/rota.h"
#include "base/thread.h"
#include "data/data.h"
#include "sandbox/sandbox.h"
#include "template/template.h"
#include "tenant/run.h"
#include "tenant/tenant.h"
#include "tensor/tensor.h"

#define STORED_LOADED_MAX 16u           /* models that tenants stored, loaded at once */
#define STORED_LOADED_PER_TENANT 4u     /* of these, of one tenant */
#define STARTING_MAX 1024u              /* runs of a tenant that wait for its program to be compiled */
#define MODEL_ID_SERVER 0x40000000      /* bit of the ids of the server's models: no tenant can choose it */
#define MODEL_ID_CHOSEN_MAX 0x3fffffffu /* ids of stored models are 1 to this */

typedef struct tenant_model tenant_model;   /* to the outside a realm_served */
typedef struct saved_context saved_context; /* saved.c */
typedef enum model_state { MODEL_READY, MODEL_LOADING, MODEL_UNLOADING } model_state;

typedef struct model_idle model_idle; /* idle.c */

struct tenant_model {
    realm_runtime *rt;
    char id[REALM_MODEL_ID_MAX + 1];
    char *path;
    int64_t created_s;
    realm_gguf *gguf;
    realm_model *model;
    realm_tokenizer *tokenizer;
    realm_engine *engine;
    model_idle *idle;
    realm_template *template;   /* NULL: the file has none that can be used */
    char *template_error;       /* why not; NULL: it has none */
    realm_token_counts flushed; /* engine totals that are in the ledger; flush_mu */

    model_state state; /* runtime.mu, like the following */
    uint32_t users;    /* requests, instances and jobs that hold it */
    uint64_t used_ns;  /* when the last one let go */
    bool removed;      /* no id names it any more: goes when nobody holds it */

    /* Of one that the server serves. */
    int32_t server_id; /* by which programs know it; 0: a stored one */
    uint32_t slot;     /* in the runtime's list, and of the tenants' accounts */

    /* Of one that a tenant stored; its engine has that tenant's account alone. */
    char sha256[65];
    realm_account *account;
    tenant_model *next;          /* of its tenant's list; runtime.mu */
    realm_token_counts snapshot; /* flush_mu */

    realm_mutex vocab_mu;
    realm_grammar_vocab *vocab; /* vocab_mu; for grammars, made when the first is compiled */
};

/* ---- jobs.c: what blocks, off the sandbox's workers -------------------------------------------------------------- */

#define JOBS_PER_TENANT 32u /* of each kind, queued or running */

typedef struct tenant_jobs tenant_jobs;
typedef struct tenant_job tenant_job;
struct tenant_job {                /* the first member of what a job is about */
    realm_rota_item turn;          /* first */
    tenant_job *next;              /* of those to be freed */
    void (*work)(tenant_job *job); /* on a thread of the pool */
    void (*free)(tenant_job *job); /* any thread, once; but see free_blocks */
    realm_tenant *tenant;          /* held */
    realm_instance *instance;      /* woken when done; held; NULL: nobody */
    atomic_uint refs;              /* the submitter's and the pool's */
    atomic_bool done;
    bool heavy;
    bool free_blocks;  /* `free` touches files: always on a thread of the pool; set by the caller */
    tenant_jobs *pool; /* once submitted */
    realm_error error; /* of the work; code REALM_OK when it went well */
};

REALM_WARN_UNUSED realm_status jobs_open(tenant_jobs **out, realm_error *err);
/* Finishes what is queued and joins the threads; from then on submitting is REALM_E_CLOSED. NULL-safe. */
void jobs_stop(tenant_jobs *p);
void jobs_close(tenant_jobs *p); /* after jobs_stop; NULL-safe */
/* With one reference, the caller's; `work` and `free` are set by the caller. */
void job_init(tenant_job *job, realm_tenant *t, realm_instance *instance, bool heavy);
/* REALM_E_BUSY: too many wait already, the text says whose. */
REALM_WARN_UNUSED realm_status jobs_submit(tenant_jobs *p, tenant_job *job, realm_error *err);
void job_release(tenant_job *job);               /* NULL-safe */
void jobs_queued(tenant_jobs *p, uint32_t n[2]); /* that wait: quick ones, heavy ones */

typedef struct tenant_spent { /* of a tenant, besides tokens; or by all */
    uint64_t requests, aborted, cpu_ns, tensor_ns;
} tenant_spent;

struct realm_tenant {
    realm_runtime *rt;
    realm_tenant *next; /* runtime.mu */
    int64_t id;
    char name[REALM_TENANT_NAME_MAX + 1];
    atomic_uint refs; /* acquired under runtime.mu, so 0 under runtime.mu stays 0 */
    bool gone;        /* runtime.mu: deleted from the store */
    bool stale;       /* runtime.mu: what is known of its row may be old */
    bool forgotten;   /* runtime.mu: and its models and files are gone too */

    realm_tensor_budget *tensors;
    tenant_model *stored;               /* runtime.mu: those loaded, or about to be */
    realm_token_counts carried;         /* flush_mu: of stored models that were unloaded, not yet in the ledger */
    saved_context *saved;               /* mu */
    atomic_uint_fast64_t storing_bytes; /* of images that its programs are storing: at most storage_bytes, once more */
    realm_mutex files_mu; /* what the store lists and what is in the tenant's folder agree outside of it */

    realm_mutex mu;
    realm_limits limits;       /* mu */
    realm_strings *args, *env; /* mu: NULL when there are none */
    char program_sha256[65];   /* mu: of the store's row; what `program` was opened from, unless set directly */
    bool program_set;          /* mu: by realm_tenant_set_program, which the store does not override */
    realm_program *program;    /* mu */
    uint64_t program_used_ns;  /* mu: when a request last asked for it */
    realm_run *starting;       /* mu: runs that wait until it is opened, the last first; a job does that */
    uint32_t n_starting;       /* mu */
    realm_error program_error; /* mu: why the stored program could not be opened */
    realm_account *accounts[REALM_MODELS_MAX]; /* by model, made when first used: under
                                                  flush_mu and mu, read under either */
    double request_credit;                     /* mu: token bucket of requests_per_minute */
    uint64_t request_credit_ns;
    double token_credit; /* mu: token bucket of tokens_per_minute */
    uint64_t token_credit_ns;
    int64_t day_s; /* mu: start of the UTC day that day_tokens counts */
    uint64_t day_tokens;
    bool day_known;

    realm_usage used; /* mu: in the ledger since the server started */

    atomic_uint instances;                  /* its part of runtime.instances */
    atomic_uint_fast64_t requests, aborted; /* since start */
    uint64_t cpu_ns;                        /* runtime.cpu_mu: of its programs, since start */
    /* What is in the ledger already; flush_mu. */
    tenant_spent spent_flushed;
    realm_token_counts flushed[REALM_MODELS_MAX];
};

struct realm_runtime {
    realm_store *store;
    realm_sandbox *sandbox;
    realm_backend *backend; /* of all models and the tensor service, in turns */
    realm_program *default_program;
    uint64_t program_bytes; /* most compiled code that is kept for tenants */
    tenant_jobs *jobs;
    realm_tensor_service *tensors; /* computes lists of operations, in turns with the engines */
    char *models_dir;              /* NULL without a state folder */

    realm_mutex mu;
    tenant_model *models[REALM_MODELS_MAX]; /* by slot, NULL: free; written under flush_mu too once it has accounts */
    uint32_t n_server_ids;                  /* given out */
    realm_tenant *tenants;
    uint64_t store_version;
    realm_run *waiting; /* runs whose END waits for the ledger */
    uint64_t reload_wanted, reload_done;
    bool stop;
    bool sweep_leftovers, sweep_folders; /* there is something for the sweeper */
    realm_cond work, reloaded, model_loaded, sweep;
    pthread_t maintenance, sweeper;
    bool maintenance_started, sweeper_started;

    realm_mutex flush_mu; /* one flush at a time; before runtime.mu in the order */
    uint64_t complain_ns; /* flush_mu: when a failed flush is logged again */
    atomic_uint_fast64_t ledger_writes, ledger_failures;
    realm_mutex cpu_mu; /* LEAF: tenants' cpu_ns add up to this one */
    uint64_t cpu_ns;
    uint64_t cpu_flushed, tensor_flushed; /* flush_mu */
    atomic_uint_fast64_t requests, aborted, refused, failures;
    atomic_uint requests_active, runs_active;
    uint32_t max_instances;
    atomic_uint instances; /* of tenants' runs, from before they start to after they end */
};

struct realm_request {
    realm_tenant *tenant;
    tenant_model *model; /* held */
    realm_account *account;
    realm_prompt_share *share;
    atomic_uint refs; /* the caller's and one per run */
    atomic_bool counted, aborted;
};

typedef enum run_state {
    RUN_RUNNING, /* the instance may still do something */
    RUN_ENDED,   /* it has ended; the END event waits for the ledger */
    RUN_DURABLE, /* END can be handed out once output is drained */
    RUN_DONE     /* END was handed out */
} run_state;

struct realm_run {
    realm_request *request;
    atomic_uint refs;        /* the caller's and the instance's */
    realm_run *next_waiting; /* for its program, under tenant.mu; in the end for the ledger, under runtime.mu */
    realm_arena arena;       /* copies of the parameters */
    realm_run_params params;
    realm_program *program;
    realm_limits limits;   /* of the tenant when the run started */
    realm_words args, env; /* the same; in the arena */
    realm_instance *instance;
    size_t answer_at; /* of a `generate` program's answer: what was emitted; its worker only */

    realm_mutex mu;
    run_state state;
    bool cancelled, blocked;
    realm_host *host;
    realm_generation *pipe;
    realm_event *events; /* emitted, not yet polled */
    size_t n_events, cap_events;
    realm_buf text;
    uint64_t output_bytes; /* of text that went out, or waits to */
    bool pipe_cut;         /* the pipe has reached output_bytes: nothing more of it goes out */
    uint32_t prompt_tokens, cached_tokens, completion_tokens; /* reported; the running pipe's are added when polled */
    uint32_t pipe_prompt, pipe_cached, pipe_completion;       /* of the running pipe, as last polled */
    realm_finish finish;
    bool finish_set;
    realm_error error;   /* of the last failed generation or host call */
    realm_status status; /* final */

    realm_mutex notify_mu; /* held while on_ready runs; guards `on_ready` */
    void (*on_ready)(void *user);
    void *on_ready_user;
};

/* saved.c: contexts by name, of one tenant and model; names are the caller's to bound */
/* Keeps a fork of `c`, in place of what has the name. REALM_E_LIMIT: the tenant's `contexts`; REALM_E_BUSY. */
REALM_WARN_UNUSED realm_status saved_put(realm_tenant *t, const tenant_model *m, const char *name, size_t len,
                                         realm_context *c, realm_error *err);
/* A fork of it. REALM_E_NOT_FOUND. */
REALM_WARN_UNUSED realm_status saved_get(realm_tenant *t, const tenant_model *m, const char *name, size_t len,
                                         realm_context **out, realm_error *err);
REALM_WARN_UNUSED realm_status saved_drop(realm_tenant *t, const tenant_model *m, const char *name, size_t len,
                                          realm_error *err);
void saved_drop_all(realm_tenant *t, const tenant_model *m); /* of one model, or of all (NULL) */

/* models.c */
/* The model's tokens as grammars want them; takes long the first time. */
REALM_WARN_UNUSED realm_status model_vocab(tenant_model *m, realm_grammar_vocab **out, realm_error *err);
/* Opens a file with everything that serving it takes. `err` is not NULL. */
REALM_WARN_UNUSED realm_status model_load(realm_runtime *rt, const char *id, const char *path,
                                          const realm_model_config *config, realm_model_progress progress, void *user,
                                          tenant_model **out, realm_error *err);
void model_free(tenant_model *m); /* NULL-safe */
/* Its engine's thread runs no program any more, and none is heard of through it: before the sandbox goes. */
void model_end_lending(tenant_model *m);

/* idle.c */
/* Fills in `idle` and `aside` of what the engine is opened with; closed after the engine. */
REALM_WARN_UNUSED realm_status idle_open(realm_runtime *rt, model_idle **out, realm_engine_config *config,
                                         realm_error *err);
void idle_settle(model_idle *i); /* waits until readers that are being woken have been */
void idle_close(model_idle *i);  /* NULL-safe */

/* stored.c: models that tenants stored. All of it blocks, but where said, and is for threads of the pool. */
/* Finds the tenant's model by id, loads it if need be and holds it (until realm_served_release). REALM_E_NOT_FOUND,
 * REALM_E_BUSY (all that may be loaded are in use), or why it cannot be loaded. */
REALM_WARN_UNUSED realm_status model_hold(realm_tenant *t, uint32_t id, tenant_model **out, realm_error *err);
/* Unloads models of the tenant that nobody holds: all, or those that were removed. */
void models_unload_idle(realm_tenant *t, bool removed_only);

/* files.c: their files; blocks likewise */
/* The path of a stored file; NULL when memory is out. */
char *model_path(const realm_tenant *t, const char *sha256);
/* Takes the path off the front of a text: where a file lies is not for its tenant to know. */
void without_path(realm_error *err, const char *path);
/* Moves a written and synced file, which the caller holds (base/file.h) until this returns, into place and lists it
 * under `id`, or under one derived from its hash when that is 0. The file at `path` is gone afterwards, also on
 * failure. */
REALM_WARN_UNUSED realm_status model_store(realm_tenant *t, const char *path, uint32_t id, uint64_t quota_bytes,
                                           uint32_t *made, realm_error *err);
REALM_WARN_UNUSED realm_status model_remove(realm_tenant *t, uint32_t id, realm_error *err);
/* Of a tenant that was deleted and that nobody uses: its loaded models and its files. */
void models_forget(realm_tenant *t);
/* The files of tenants that were deleted and that this process never loaded. */
void models_sweep_deleted(realm_runtime *rt);
/* Removes files that no tenant's list names: of deleted tenants, and of a process that ended in the middle. */
void models_sweep(realm_runtime *rt);

/* served.c: the server's models */
tenant_model *model_hold_again(tenant_model *m); /* one that is held; any thread; returns m */
tenant_model *runtime_hold_server_id(realm_runtime *rt, int32_t server_id); /* NULL: there is none */
bool models_any_unused(const realm_runtime *rt);  /* retired ones that nobody holds; runtime.mu is held */
void models_take_apart_unused(realm_runtime *rt); /* blocks; the sweeper's */

/* prompt.c */
/* Compiles a chat template with the control tokens of a vocabulary. */
realm_status template_open_for(const realm_tokenizer *tok, const char *source, size_t len, realm_template **out,
                               realm_error *err);

/* tenants.c; what the ledger's thread does between flushes */
realm_account_limits tenant_account_limits(const realm_limits *l);
/* With a prefix cache under a secret of the tenant's own. `al` NULL: the engine's defaults. */
realm_status tenant_open_account(realm_tenant *t, realm_engine *e, const char *model, const realm_account_limits *al,
                                 realm_account **out, realm_error *err);
/* The tenant's account with a server model's engine; may wait for a flush of the ledger when it is new. */
realm_status tenant_account(realm_tenant *t, const tenant_model *m, realm_account **out, realm_error *err);
/* The program for a run, retained. REALM_E_AGAIN: it has to be opened first, by the pool; run_program_ready follows, on
 * another thread, perhaps at once. */
REALM_WARN_UNUSED realm_status tenant_program(realm_tenant *t, realm_run *run, realm_program **out, realm_error *err);
/* trim.c: drops programs that were not used for longest and that nobody runs, while there is more compiled code than is
 * to be kept. */
void tenants_trim_programs(realm_runtime *rt);
void tenants_refresh(realm_runtime *rt); /* looks whether the store has changed */
/* Removes what deleted tenants leave, which may take long. */
void *sweeper_thread(void *arg);
void tenants_close(realm_runtime *rt);
/* Whether one that realm_tenant_admit let in may begin: its tokens, today's too, which it may have to read. */
realm_status tenant_admitted(realm_tenant *t, realm_rate *rate, realm_error *err);
void tenant_spend(realm_tenant *t, const realm_usage *u); /* is in the ledger */

/* ledger.c */
/* CPU time of a program, or of compiling it. */
void ledger_charge_cpu(realm_tenant *t, uint64_t ns);
/* Nothing that it used is missing from the ledger, and nothing is under way for it; flush_mu is held. */
bool ledger_has_all(realm_tenant *t);
void ledger_flush(realm_runtime *rt);
/* The same where a failure is the caller's to deal with; flush_mu is held. */
REALM_WARN_UNUSED realm_status ledger_write(realm_runtime *rt, realm_error *err);
void ledger_enqueue(realm_runtime *rt, realm_run *run); /* run_durable follows */
void *ledger_thread(void *arg);

/* request.c */
void request_release(realm_request *r);
/* Counts the request in its tenant's ledger, once; and as aborted, once. */
void request_count(realm_request *r, bool aborted);

/* run.c */
void run_durable(realm_run *run);
/* Starts a run that waited for its tenant's program; without one it ends with `why`. */
void run_program_ready(realm_run *run, realm_program *program, const realm_error *why);

#endif
