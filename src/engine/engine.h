/* engine/engine.h - one thread that turns everybody's generations into steps.
 *
 *      submit --> [queue] --admit--> prefill (chunks) --> decode --> ended
 *                    |                  |                  |  ^
 *                    +---- cancel ------+------ cancel ----+  +-- paused while its reader is slow
 *
 * The engine owns the model's KV pages and the plan, and batches the prompts and the decoding of all generations into
 * the same steps (continuous batching; a prompt is fed in chunks so that it never holds up the others for long). It
 * knows accounts, whom it charges and in turn serves fairly; it knows nothing of programs, sockets or databases.
 *
 * A generation talks to its consumer through a bounded list of events under one short lock; the consumer is told by
 * `on_ready`, called on the engine's thread, that there is something where there was nothing. When the list is full the
 * generation skips its turn: a slow reader slows only itself. Stop strings, incomplete characters and end tokens are
 * dealt with here, so the consumer sees text that can be shown and the count is exact.
 *
 * All functions may be called from any thread unless said otherwise.
 */
#ifndef REALM_ENGINE_ENGINE_H
#define REALM_ENGINE_ENGINE_H

#include "base/base.h"
#include "engine/sampler.h"
#include "model/model.h"
#include "tokenizer/tokenizer.h"

#define REALM_TOP_LOGPROBS_MAX 20u
#define REALM_STOP_MAX 16u         /* stop strings of a generation */
#define REALM_STOP_BYTES_MAX 1024u /* bytes of one */
#define REALM_FORWARD_ROWS 64u /* rows of a forward pass whose logits are kept at most */
#define REALM_RUN_AHEAD_MAX 64u

typedef struct realm_engine realm_engine;
typedef struct realm_account realm_account;
typedef struct realm_generation realm_generation;
typedef struct realm_prompt_share realm_prompt_share;
typedef struct realm_context realm_context;
typedef struct realm_logits realm_logits;

typedef struct realm_engine_config {
    /* Memory for KV pages; 0: enough for max_generations at full length, at most a quarter of the machine's memory. It
     * is committed as pages are first used. Sequences longer than all pages together are not taken: n_ctx is cut. */
    uint64_t kv_bytes;
    uint32_t n_ctx;           /* longest sequence; 0: what the model was trained for */
    uint32_t max_generations; /* decoding or prefilling at once; default 64 */
    uint32_t max_queued;      /* waiting beyond that; past it submit answers REALM_E_BUSY; default 1024 */
    uint32_t chunk_tokens;    /* prompt tokens of one step at most; default 256 */
} realm_engine_config;

/* Takes the backend, model and tokenizer as borrowed; they outlive the engine. Starts the engine's thread, which takes a
 * turn on the backend for each step, so that several engines can share one. */
REALM_WARN_UNUSED realm_status realm_engine_open(realm_engine **out, realm_backend *b, const realm_model *m,
                                                 const realm_tokenizer *t, const realm_engine_config *config,
                                                 realm_error *err);
/* Cancels what runs and joins the thread. Generations and accounts must have been released before. */
void realm_engine_close(realm_engine *e);

const realm_tokenizer *realm_engine_tokenizer(const realm_engine *e);
uint32_t realm_engine_context_length(const realm_engine *e);

/* ---- accounts: whom tokens and pages are charged to ----------------------------------------------------------------
 */

typedef struct realm_account_limits {
    uint32_t generations; /* running or queued at once; past it submit answers REALM_E_LIMIT; 0: no limit */
    /* Tokens held in KV at once, counted in whole pages, shared pages once; 0: no limit. A prompt (with max_tokens,
     * when given) that can never fit is refused; generations that do not fit beside each other take turns; one that
     * fills the limit alone ends with LENGTH. */
    uint64_t kv_tokens;
} realm_account_limits;

typedef struct realm_token_counts {
    uint64_t prompt;     /* prompt tokens of generations that were admitted, cached ones included */
    uint64_t cached;     /* of those, not computed again */
    uint64_t completion; /* tokens sampled, end tokens included */
} realm_token_counts;

REALM_WARN_UNUSED realm_status realm_account_open(realm_engine *e, const realm_account_limits *limits,
                                                  realm_account **out, realm_error *err);
void realm_account_set_limits(realm_account *a, const realm_account_limits *limits);
void realm_account_close(realm_account *a); /* after its generations were released */
/* Counts since opening, as of the last finished step. */
void realm_account_counts(const realm_account *a, realm_token_counts *out);
uint32_t realm_account_generations(const realm_account *a);

/* The engine's own totals and those of the given accounts, all as of the same step boundary: summed over all accounts
 * they are equal (the ledger's check). */
void realm_engine_counts(realm_engine *e, realm_token_counts *total, realm_account *const *accounts, size_t n,
                         realm_token_counts *each);

typedef struct realm_engine_stats {
    uint64_t steps, rows;     /* since start */
    uint64_t step_ns;         /* time spent in steps */
    uint32_t running, queued; /* generations now */
    uint32_t kv_pages, kv_pages_used;
    uint64_t kv_page_bytes, weight_bytes;
    uint64_t ended, cancelled, failed; /* generations since start, each in one of the three */
} realm_engine_stats;
void realm_engine_get_stats(realm_engine *e, realm_engine_stats *out);

/* ---- generations ---------------------------------------------------------------------------------------------------
 */

/* Order of application: bias, penalties (repeat, then frequency and presence), then greedy when temperature is 0, else
 * temperature, top-k, top-p (nucleus), min-p, draw. Fields at their neutral value cost nothing. */
typedef struct realm_sampling {
    float temperature;       /* >= 0, finite; 0: greedy */
    uint32_t top_k;          /* 0: all */
    float top_p;             /* (0, 1]; 1: all */
    float min_p;             /* [0, 1]; 0: all */
    float repeat_penalty;    /* > 0; 1: none */
    float frequency_penalty; /* -2 .. 2 */
    float presence_penalty;  /* -2 .. 2 */
    /* Last tokens that penalties look back on, 0: all. Repeat counts prompt and generated tokens in that window, the
     * other two generated ones only. */
    uint32_t penalty_last_n;
    uint64_t seed; /* token i of a generation draws from a counter-based generator keyed by (seed, i) */
    const realm_logit_bias *bias;
    size_t n_bias;
} realm_sampling;
void realm_sampling_init(realm_sampling *s); /* neutral: temperature 1 */
/* Checks every range against the vocabulary; REALM_E_RANGE names the field. */
REALM_WARN_UNUSED realm_status realm_sampling_check(const realm_sampling *s, size_t n_vocab, realm_error *err);

typedef struct realm_generation_params {
    realm_account *account;
    const realm_token *prompt; /* copied; at least one token, each in the vocabulary, fewer than the context length */
    size_t n_prompt;
    uint32_t max_tokens; /* 0: until the context is full */
    realm_sampling sampling;
    const realm_gguf_str *stop; /* copied */
    size_t n_stop;
    bool logprobs;                /* events carry logprob; log-softmax of the logits before anything is applied */
    uint32_t top_logprobs;        /* and this many best */
    bool prompt_logprobs;         /* prompt tokens become events too (kind PROMPT), the first without a logprob */
    bool ignore_end;              /* end tokens are tokens like others */
    bool special_text;            /* control tokens show in the text */
    realm_prompt_share *share;    /* NULL, or siblings with the same prompt: computed and counted once */
    uint64_t deadline_ns;         /* monotonic; 0: none; past it the generation ends with REALM_E_TIMEOUT */
    void (*on_ready)(void *user); /* engine thread; must not block nor call the engine; never after release returned */
    void *user;
} realm_generation_params;

/* Generations given the same share, account and prompt compute the prompt once and fork its pages copy on write. The
 * share keeps those pages until closed (its owner's request ends), unless the memory is needed: then later siblings
 * compute the prompt again. The prompt is charged once in any case. With prompt_logprobs a sibling computes for itself.
 * A different prompt is REALM_E_INVALID at submit. */
REALM_WARN_UNUSED realm_status realm_prompt_share_open(realm_engine *e, realm_account *a, realm_prompt_share **out,
                                                       realm_error *err);
void realm_prompt_share_close(realm_prompt_share *s); /* NULL-safe */

/* Queues a generation. REALM_E_RANGE (prompt empty, too long for the context, token out of range, bad sampling field),
 * REALM_E_LIMIT (account's limits; the text says which), REALM_E_BUSY (queue full). */
REALM_WARN_UNUSED realm_status realm_generation_submit(realm_engine *e, const realm_generation_params *p,
                                                       realm_generation **out, realm_error *err);
/* Sets the flag that the scheduler reads at every step, in prefill too; an END event with CANCELLED follows. */
void realm_generation_cancel(realm_generation *g);
/* Drops the consumer's hold: cancels if still running and discards events. After it returns on_ready is not running and
 * is never called again. Not from inside on_ready. */
void realm_generation_release(realm_generation *g);

/* PROMPT: a prompt token and its log-probability, no text. TOKEN: a sampled token; an end token that ends the
 * generation has no TOKEN event but is counted. END: the last event; `id` is the end token that ended it, or -1. */
typedef enum realm_event_kind { REALM_EVENT_PROMPT, REALM_EVENT_TOKEN, REALM_EVENT_END } realm_event_kind;
typedef enum realm_finish {
    REALM_FINISH_NONE,
    REALM_FINISH_STOP,   /* end token or stop string */
    REALM_FINISH_LENGTH, /* max_tokens or context full */
    REALM_FINISH_CANCELLED,
    REALM_FINISH_ERROR /* status and text in the event batch */
} realm_finish;

typedef struct realm_event {
    realm_event_kind kind;
    realm_finish finish;    /* END */
    realm_token id;         /* PROMPT, TOKEN */
    float logprob;          /* with logprobs; NAN for the first prompt token */
    uint32_t n_top, top_at; /* best tokens: top[top_at .. top_at + n_top) of the batch */
    /* What can be shown now: bytes [text_at, text_at + text_len) of the batch's text. May be empty (a character or a
     * possible stop string is incomplete) and may carry text of earlier tokens. END carries what was held back. */
    uint32_t text_at, text_len;
} realm_event;

typedef struct realm_top_logprob {
    realm_token id;
    float logprob;
} realm_top_logprob;

/* Events handed over together; initialise once, reuse for every poll of one generation, release at the end. */
typedef struct realm_event_batch {
    realm_event *events;
    size_t n_events, cap_events;
    realm_buf text;
    realm_top_logprob *top;
    size_t n_top, cap_top;
    realm_status status; /* why REALM_FINISH_ERROR */
    realm_error error;
    /* Charged for this generation so far; sums over generations are the account's counts. A sibling whose prompt was
     * charged with its prompt share has 0 prompt tokens. */
    uint32_t prompt_tokens, cached_tokens, completion_tokens;
} realm_event_batch;
void realm_event_batch_init(realm_event_batch *b);
void realm_event_batch_release(realm_event_batch *b);
/* Moves all pending events into `b`, replacing its content; returns how many. The END event is the last ever. Without
 * memory for them 0 is returned with b->status REALM_E_NOMEM, and they stay pending. One thread at a time. */
size_t realm_generation_poll(realm_generation *g, realm_event_batch *b);

#endif
