/* tenant/host/host.h - inside the folder: the state behind one instance's host calls.
 *
 * Handles are (tag << 12 | slot) with a tag that changes whenever a slot is given out, so that one that was closed, or
 * made up, is told apart from one that is open. They mean nothing outside their instance.
 *
 * Threads: the worker that runs the instance owns everything, except what other threads touch under `mu`: the list of
 * generations (cancel) and how the pipe ended. `mu` is taken inside run->mu, so nothing of run.h is called under it.
 */
#ifndef REALM_TENANT_HOST_H
#define REALM_TENANT_HOST_H

#include <stdatomic.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/thread.h"
#include "tenant/host/abi.h"
#include "tenant/internal.h"

#define HOST_SLOT_BITS 12u /* the limit `handles` is at most this many */
#define HOST_SLOTS_AT_FIRST 16u
#define HOST_TAG_MAX ((1u << (31 - HOST_SLOT_BITS)) - 1)
#define HOST_TEXT_BYTES_MAX (4u << 20)    /* text of one encode, decode or prompt */
#define HOST_TEXT_BYTES_BRIEF (32u << 10) /* that take a millisecond or two: more is for a thread for long calls */
#define HOST_PROMPT_BYTES_MAX (64u << 20) /* text and tokens of all prompts of an instance */
#define HOST_MODELS_MAX 16u               /* that an instance uses */
#define HOST_SAMPLER_TOKEN_BYTES 16u      /* of memory for a token in a sampler's history */
#define HOST_CONTEXT_TOKEN_BYTES 5u       /* for a token of a context: itself, its part of the lists of pages */
#define HOST_CONTEXT_BYTES 1024u          /* for a context beside its tokens */
/* What a grammar's state counts as, of `tensor_bytes`: its automata and their caches, which the library does not tell.
 * An estimate: it covered most schemas, expressions and Lark grammars that were looked at after a few hundred tokens;
 * one schema of 8 KB took half as much again. */
#define HOST_GRAMMAR_BYTES (256u << 10)
#define HOST_GRAMMAR_BYTES_PER_BYTE 96u /* of its text */
#define HOST_GRAMMAR_BYTES_ALONG 24u    /* for a byte of the text that it has been moved along: 20 to 26, measured */
#define HOST_EVENTS_MAX 4096u           /* of one wait */
#define HOST_RANDOM_MAX (64u << 10)     /* bytes of one random */
#define HOST_NAME_MAX 256u              /* bytes of a field's name */
#define HOST_LOG_BYTES_MAX 1000u        /* of a line; longer ones are cut */
#define HOST_LOG_BURST 100u             /* lines at once, and then */
#define HOST_LOG_PER_S 10u              /* a second; more are dropped and counted */

/* A model that the instance uses. It stays so until the instance ends: what belongs to it just points at it. */
typedef struct host_model {
    int32_t id; /* as the program named it; 0: the request's own, always the first */
    tenant_model *m;
    realm_account *account;
} host_model;

typedef struct host_prompt {
    const host_model *model;
    realm_tokens tokens;
    char *text; /* NULL: made from the tokens when asked for */
    size_t text_len;
    realm_text_span *spans; /* of `text`, where the template's control tokens are marked */
    size_t n_spans;
    size_t charged; /* against HOST_PROMPT_BYTES_MAX */
} host_prompt;

typedef struct host_context {
    const host_model *model;
    realm_context *c;
    size_t charged; /* against HOST_PROMPT_BYTES_MAX: the most tokens that it had room for */
} host_context;

typedef struct host_sampler {
    const host_model *model;
    realm_chain *chain;
    size_t charged; /* against HOST_PROMPT_BYTES_MAX: the tokens that it has seen */
    uint64_t held;  /* of the tenant's tensor_bytes: its grammars, and what they were moved along */
} host_sampler;

/* A draw with a grammar is not brief: on a lender's thread it answers REALM_CALL_MOVE. */
static inline bool host_sampler_moves(const realm_call *call, const host_sampler *s) {
    return s && realm_call_lent(call) && realm_chain_has_grammar(s->chain);
}

typedef struct host_grammar {
    const host_model *model;
    realm_grammar_state *state;
    realm_tokens along;   /* that it was moved along */
    uint64_t along_bytes; /* what these take; what a rollback frees the library keeps, for the next */
    uint64_t along_held;  /* the most that was; in `held` */
    uint64_t held;        /* of the tenant's tensor_bytes */
} host_grammar;

/* Rows of logits, and the hidden states with them. */
typedef struct host_rows {
    realm_logits *logits; /* NULL: not there yet */
    uint64_t charged;     /* of `tensor_bytes` */
} host_rows;

typedef struct host_logits { /* rows that a program computed itself: tensor_logits */
    const host_model *model;
    host_rows rows;
} host_logits;

typedef struct host_generation {
    realm_host *host;
    const host_model *model;
    realm_generation *g;
    int32_t handle;
    bool pipe;
    bool ahead;          /* waits for confirm() */
    bool forward;        /* a forward pass: `rows` are what it is for */
    bool delivered;      /* the program has seen its end */
    bool on_context;     /* it runs on one of the program's contexts */
    atomic_bool leaving; /* its handle is being closed, once it has ended: its events wake the instance */
    uint32_t n_seen;     /* ahead: generated tokens that the program has been given, or has forced */
    size_t charged;      /* for its copy of a sampler or grammar, as these are */
    uint64_t held;
    host_rows rows;
    realm_event_batch batch; /* polled; `next` is the first event that the program has not seen */
    size_t next;
    uint32_t counted_prompt, counted_cached, counted_completion; /* reported to the run */
    /* Under mu, for a pipe: */
    bool pipe_ended;
    realm_finish pipe_finish;
    realm_error pipe_error;
    realm_guest_usage pipe_usage;
} host_generation;

/* X(kind, function that frees an object of it): what a handle can name. */
#define HOST_KINDS(X)                   \
    X(PROMPT, host_prompt_free)         \
    X(GENERATION, host_generation_free) \
    X(CONTEXT, host_context_free)       \
    X(SAMPLER, host_sampler_free)       \
    X(GRAMMAR, host_grammar_free)       \
    X(TENSOR, host_tensor_free)         \
    X(LOGITS, host_logits_free)

#define HOST_KIND(kind, free) HOST_##kind,
typedef enum host_kind { HOST_FREE, HOST_KINDS(HOST_KIND) } host_kind;
#undef HOST_KIND

typedef struct host_slot {
    host_kind kind;
    uint32_t tag;
    void *object;
} host_slot;

typedef struct host_wasi host_wasi;       /* wasi.c */
typedef struct host_nn host_nn;           /* nn.c */
typedef struct host_tensors host_tensors; /* tensor.c */

struct realm_host {
    realm_run *run;
    realm_mutex mu;
    _Atomic(realm_instance *) instance;
    atomic_bool cancelled;
    host_model models[HOST_MODELS_MAX];
    uint32_t n_models;
    const host_model *model;      /* in use: see model_use */
    host_slot *slots;             /* grows up to the limit `handles`; changed by the worker alone, under mu */
    uint32_t n_slots, first_free; /* no slot before first_free is free */
    uint32_t next_tag;
    uint32_t next_wait; /* slot at which wait() on any starts looking */
    host_prompt own;    /* the request's own prompt, once asked for */
    bool own_made;
    size_t prompt_bytes;
    realm_json_doc *input;
    bool finish_set;
    tenant_job *job;   /* what a suspended call waits for */
    realm_error error; /* of the last call that failed */
    uint64_t opened_ns;
    uint64_t log_credit_ns; /* time of logging that is saved up */
    uint64_t log_at_ns;
    uint32_t log_dropped;
    uint64_t tensor_bytes;          /* of the limit of this name: held now */
    uint64_t ring_at, ring_len;     /* the registered ring in the program's memory; 0: none */
    uint64_t log_bytes, read_bytes; /* of the limits of these names: used */
    host_tensors *tensors;          /* once a call of that group needs it */
    host_wasi *wasi;                /* once the program has printed something */
    uint8_t wasi_closed;            /* bit per descriptor */
    host_nn *nn;                    /* once the program has loaded a graph */
};

/* host.c */
realm_host *host_of(realm_call *call);
/* What a failed call returns: keeps the text for last_error and for the run, sets *result. */
realm_call_result host_fail(realm_host *h, int32_t *result, realm_status code, const char *fmt, ...) REALM_PRINTF(4, 5);
/* The same with h->error filled already. */
realm_call_result host_failed(realm_host *h, int32_t *result);
/* Copies bytes out: *result is what is needed, in units; nothing is written when that is more than `max` of them. All
 * of a buffer must be memory, however little of it is used: a program that claims more has lost track of something. */
realm_call_result host_give(realm_call *call, uint64_t out, uint64_t max, const void *data, size_t len, size_t unit,
                            int32_t *result);
/* The program's bytes, or NULL with *result set. */
void *host_range(realm_call *call, uint64_t ptr, uint64_t len, const char *what, int32_t *result);
/* The same for `max` elements of `unit` bytes. */
void *host_room(realm_call *call, uint64_t out, uint64_t max, size_t unit, const char *what, int32_t *result);
/* For calls that block: submits `job` (taken over, also on failure) and suspends. */
realm_call_result host_job_start(realm_call *call, tenant_job *job, int32_t *result);
/* When the call runs again: the finished job, valid until host_job_end or the next job; or NULL with *state what to
 * return. A job that failed is a failed call. */
tenant_job *host_job_done(realm_call *call, realm_call_result *state, int32_t *result);
void host_job_end(realm_host *h);
/* Submits the finished job again, for work that comes in pieces. */
realm_call_result host_job_again(realm_call *call, int32_t *result);
/* A free slot; REALM_E_LIMIT when as many are open as the tenant may. */
realm_status host_slot_take(realm_host *h, host_kind kind, void *object, int32_t *handle);
/* What a call that makes such an object ends with: its handle, or, with the object freed, that failure. */
realm_call_result host_handle_give(realm_host *h, host_kind kind, void *object, int32_t *result);
/* NULL when the handle is not open or of another kind. */
void *host_get(realm_host *h, uint64_t handle, host_kind kind);
/* The same of a slot, for going through all: NULL when it is free or of another kind. */
void *host_at(const realm_host *h, uint32_t slot, host_kind kind);
/* Takes the handle out and frees its object; false when it is not open. */
bool host_handle_close(realm_host *h, uint64_t handle);
/* For whoever is about to close it: cancels a generation that runs on a context and says whether it has ended, so that
 * the context is free. False: the instance is woken for another look. */
bool host_generation_left(realm_call *call, host_generation *g);
/* Charges n bytes of `read_bytes`; REALM_E_LIMIT, and nothing is charged, when that is too much. */
realm_status host_charge_read(realm_host *h, uint64_t n, const char *call);
/* The same for `tensor_bytes`, which are given back. */
realm_status host_charge_tensor(realm_host *h, uint64_t n, const char *call);
/* The same of the tenant's `tensor_bytes`, for all its instances and their tensors together. */
realm_status host_hold_bytes(realm_host *h, uint64_t n, const char *what);
void host_let_go_bytes(realm_host *h, uint64_t n);
/* The object of a handle, or NULL with *result set: the text says what it should have been. */
void *host_need(realm_host *h, uint64_t handle, host_kind kind, const char *call, int32_t *result);
/* Whether a thing of one model can be used with another's; REALM_E_INVALID says what belongs to which. */
realm_status host_same_model(realm_host *h, const host_model *a, const char *what, const host_model *b);

#define HOST_FREE_DECLARE(kind, free) void free(realm_host *h, void *object);
HOST_KINDS(HOST_FREE_DECLARE)
#undef HOST_FREE_DECLARE

/* A line of the program's for the log, where the budget allows it and the log shows such lines. */
void host_log_line(realm_host *h, realm_log_level said, const char *text, size_t len);

/* wasi.c */
void host_wasi_close(realm_host *h); /* writes what has no newline yet */

/* nn.c */
void host_nn_close(realm_host *h);

/* tensor.c */
void host_tensors_close(realm_host *h); /* stops what is computed, unpins layers */

/* text.c */
void host_prompt_release(realm_host *h, host_prompt *p); /* what is in it */
/* Counts memory for text and tokens, of all prompts, contexts and samplers together. */
realm_status host_charge_text(realm_host *h, size_t n);
/* Whether a call over so many bytes of text is to answer REALM_CALL_LONG here. */
static inline bool host_is_long(const realm_call *call, uint64_t bytes) {
    return bytes > HOST_TEXT_BYTES_BRIEF && !realm_call_may_be_long(call);
}
/* Bytes from which the request's own prompt has still to be made. */
uint64_t host_own_bytes(const realm_host *h);
/* A prompt from text that a program hands over as a whole: the request's own prompt inside it keeps its control
 * tokens, everything else is plain. */
realm_status host_prompt_from_program(realm_host *h, const host_model *model, const char *text, size_t len,
                                      bool as_chat, host_prompt *out);
/* The program's token ids, checked against the model's vocabulary; a copy, because its memory may not be aligned. */
realm_status host_take_tokens(realm_call *call, const char *name, const host_model *model, uint64_t ptr, uint64_t n,
                              realm_tokens *out);

/* grammar.c */
/* What the state of a grammar grows by when it is moved along tokens. */
uint64_t host_grammar_growth(const host_model *model, const realm_token *ids, size_t n);
/* Begins to compile a grammar for a model, as a job: the call waits and then asks host_grammar_made. */
realm_call_result host_grammar_begin(realm_call *call, const host_model *model, realm_grammar_kind kind,
                                     const char *text, size_t len, int32_t *result);
/* The grammar, the caller's until host_grammar_free; or NULL with *state what to return. */
host_grammar *host_grammar_made(realm_call *call, realm_call_result *state, int32_t *result);

/* model.c */
/* The model of an id. DONE with *out; DONE with NULL and *result set; SUSPEND while it is got: ask again when the call
 * is resumed. */
realm_call_result host_model_get(realm_call *call, uint64_t id, const host_model **out, int32_t *result);
void host_models_close(realm_host *h);
int32_t host_server_id(const realm_host *h, const char *name); /* of a model that the server serves; 0: none */
const realm_tokenizer *host_tokenizer(const host_model *model);
/* Longest sequence of the model's engine. */
size_t host_context_length(const host_model *model);

/* sampler.c */
/* Counts both kinds of memory that a copy of a sampler or a grammar takes: `charged` as text, `held` of tensor_bytes.
 */
realm_status host_copy_pay(realm_host *h, size_t charged, uint64_t held, const char *what);
void host_copy_pay_back(realm_host *h, size_t charged, uint64_t held);
/* Counts what the sampler's grammars take, if it has some, to be moved along tokens; they stay as long as it does. */
realm_status host_sampler_moved(realm_host *h, host_sampler *s, const realm_token *ids, size_t n);

/* context.c */
/* Counts the memory that the context takes with so many tokens more. */
realm_status host_context_reserve(realm_host *h, host_context *c, uint64_t n_more);

/* generate.c */
/* Where events go: an array or a ring in the program's memory. `put` writes one with its text, or says that there is no
 * room for it now. */
typedef struct host_sink host_sink;
struct host_sink {
    bool (*put)(host_sink *s, realm_guest_event *e, const char *text);
    size_t n;  /* events put */
    bool full; /* one was refused */
};
/* Moves events of one generation (NULL: of all, in turn) into the sink. False when there is none that could still bring
 * any. */
bool host_collect(realm_host *h, host_generation *one, host_sink *s);
/* A deadline of a call that waits, in its state: true when it has passed. */
bool host_time_is_up(realm_call *call, uint64_t *deadline, int32_t timeout_ms);
/* Submits a forward pass over a context; the tokens are appended to it. */
realm_status host_forward_start(realm_host *h, host_context *c, const realm_tokens *tokens, uint32_t n_rows,
                                bool hidden, int32_t *handle);
/* Submits in events mode, for the calls that hide handles from the program; h->error says why not. */
realm_status host_generation_start(realm_host *h, const host_model *model, const realm_generation_params *p,
                                   const realm_tokens *prompt, host_generation **out);
/* The next event, END last, or NULL when there is none yet; valid until the next call. The instance is woken when there
 * is one. What an END says is passed on to the run. */
const realm_event *host_generation_next(realm_host *h, host_generation *g);

#endif
