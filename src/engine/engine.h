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
 * `on_ready`, called on the engine's thread or one of the backend's, that there is something where there was nothing.
 * When the list is full the generation skips its turn: a slow reader slows only itself. Stop strings, incomplete
 * characters and end tokens are dealt with here, so the consumer sees text that can be shown and the count is exact.
 *
 * A context is a token sequence that outlives generations: each continues it and gives it back. A forward pass is a
 * generation that samples nothing and leaves its logits in an object of their own, so that a program can sample, mask
 * or verify by itself. Pages of KV are found again by their account under a keyed hash (prefix cache), and leave the
 * pool for memory or a file when others need the room (suspended); neither changes a token.
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
#define REALM_FORWARD_ROWS 64u     /* rows of a forward pass whose logits are kept at most */
#define REALM_RUN_AHEAD_MAX 64u
#define REALM_SAMPLING_ORDER_MAX 12u /* with bias, a grammar and mirostat it is a chain */

typedef struct realm_engine realm_engine;
typedef struct realm_account realm_account;
typedef struct realm_generation realm_generation;
typedef struct realm_prompt_share realm_prompt_share;
typedef struct realm_context realm_context;
typedef struct realm_logits realm_logits;

/* Programs that decide on every token answer within microseconds: less than it takes to wake a thread for them. So a
 * thread that has told consumers lends itself to whoever runs these, while that is brief. Each expect is followed by
 * one run, on the same thread; recall comes at any time between, or shortly after. */
typedef struct realm_engine_lending {
    void *user;
    void (*expect)(void *user); /* consumers will be told now */
    void (*run)(void *user);    /* no lock held; returns soon after a recall. NULL: nobody is lent */
    void (*recall)(void *user); /* any thread, with the engine's lock held: there is something to compute */
} realm_engine_lending;

typedef struct realm_engine_config {
    /* Memory for KV pages; 0: enough for max_generations at full length, at most a quarter of the machine's memory. It
     * is committed as pages are first used. Sequences longer than all pages together are not taken: n_ctx is cut. */
    uint64_t kv_bytes;
    uint32_t n_ctx;            /* longest sequence; 0: what the model was trained for */
    uint32_t max_generations;  /* decoding or prefilling at once; default 64 */
    uint32_t max_queued;       /* waiting beyond that; past it submit answers REALM_E_BUSY; default 1024 */
    uint32_t chunk_tokens;     /* prompt tokens of one step at most; default 256 */
    uint64_t spill_bytes;      /* memory for KV pages that left the pool; 0: none */
    const char *spill_dir;     /* beyond it, a file without a name in this folder; NULL: none. Read while opening */
    uint64_t spill_dir_bytes;  /* its size at most; default 16 GiB. Pages past both are computed again when needed */
    realm_engine_lending idle; /* the engine's thread, when all that it could go on with waits for those it has told */
    /* The host thread of the backend that tells consumers beside the steps (vtable's aside). The next step begins
     * without it and gets it back where it is then; a recall says that a whole step has passed. */
    realm_engine_lending aside;
} realm_engine_config;

/* Takes the backend, model and tokenizer as borrowed; they outlive the engine. Starts the engine's thread, which takes
 * a turn on the backend for each step, so that several engines can share one. */
REALM_WARN_UNUSED realm_status realm_engine_open(realm_engine **out, realm_backend *b, const realm_model *m,
                                                 const realm_tokenizer *t, const realm_engine_config *config,
                                                 realm_error *err);
/* From its return on neither config.idle nor config.aside is called any more. For whoever goes before the engine does.
 */
void realm_engine_end_idle(realm_engine *e);
/* Cancels what runs and joins the thread: a step that is under way is finished and counted, none comes after it.
 * Accounts can still be asked. From the thread that closes the engine. */
void realm_engine_stop(realm_engine *e);
/* Stops and frees it. Generations and accounts must have been released before. */
void realm_engine_close(realm_engine *e);

const realm_tokenizer *realm_engine_tokenizer(const realm_engine *e);
uint32_t realm_engine_context_length(const realm_engine *e);

/* ---- accounts: whom tokens and pages are charged to -------------------------------------------------------------- */

typedef struct realm_account_limits {
    /* Running or queued at once; past it submit answers REALM_E_CROWDED; 0: no limit. One that was cancelled counts no
     * more, though its END is yet to come; as many of those may be on their way out besides. */
    uint32_t generations;
    /* Tokens held in KV at once, counted in whole pages, shared pages once; 0: no limit. A prompt (with max_tokens,
     * when given) that can never fit is refused; generations that do not fit beside each other take turns; one that
     * fills the limit alone ends with LENGTH. Idle contexts are suspended and cached prefixes forgotten before that:
     * neither makes a request fail. */
    uint64_t kv_tokens;
    uint32_t weight;            /* share of the engine, and of the room outside the pool, relative to other accounts;
                                   0 as 100 */
    uint64_t tokens_per_second; /* prompt and completion tokens, a token bucket of one second's worth; 0: no limit. At
                                   the limit generations miss turns, they do not end */
} realm_account_limits;

#define REALM_CACHE_SECRET_BYTES 32u

typedef struct realm_token_counts {
    uint64_t prompt;     /* prompt tokens of generations that were admitted, cached ones included; those of a context
                            that are computed for the first time, and tokens that a rewind forced */
    uint64_t cached;     /* of those, found in the prefix cache and not computed again */
    uint64_t completion; /* tokens sampled, end tokens included */
} realm_token_counts;

/* cache_secret: REALM_CACHE_SECRET_BYTES bytes, copied: full pages of the account's sequences stay findable under a
 * hash keyed with it. NULL: no prefix cache for this account. Two accounts with one secret do not find each other's. */
REALM_WARN_UNUSED realm_status realm_account_open(realm_engine *e, const realm_account_limits *limits,
                                                  const uint8_t *cache_secret, realm_account **out, realm_error *err);
void realm_account_set_limits(realm_account *a, const realm_account_limits *limits);
void realm_account_close(realm_account *a); /* after its generations and contexts were released */
/* Counts since opening, as of the last finished step. */
void realm_account_counts(const realm_account *a, realm_token_counts *out);
uint32_t realm_account_generations(const realm_account *a); /* running or queued, without those cancelled */
/* Whether its counts may still grow by themselves: one that was cancelled and released is charged for the step that it
 * is in, and counts until the engine has ended it. */
bool realm_account_is_busy(const realm_account *a);

/* The engine's own totals and those of the given accounts, all as of the same step boundary: summed over all accounts
 * they are equal (the ledger's check). */
void realm_engine_counts(realm_engine *e, realm_token_counts *total, realm_account *const *accounts, size_t n,
                         realm_token_counts *each);

typedef struct realm_engine_stats {
    uint64_t steps, rows; /* since start */
    uint64_t step_ns;     /* time spent in steps */
    uint64_t notify_ns;   /* time spent handing events to consumers, on_ready included, as of the step before */
    uint64_t lent_ns;     /* time in config.idle.run, as of the step before */
    uint64_t aside_ns;    /* time in config.aside.run, beside the steps */
    uint64_t guesses, guesses_right; /* passes computed before they were asked for; and then asked for */
    uint32_t running, queued;        /* generations now */
    uint32_t kv_pages, kv_pages_used;
    uint64_t kv_page_bytes, weight_bytes;
    uint64_t ended, cancelled, failed; /* generations since start, each in one of the three */
    uint32_t contexts;
    uint32_t kv_pages_cached;                 /* besides those used: held by nobody, kept for the prefix cache */
    uint32_t suspended_pages;                 /* held, outside the pool */
    uint64_t suspended_bytes, suspended_disk; /* in memory, in the file */
    uint64_t suspends, resumes, dropped;      /* pages since start; dropped: had to be computed again */
    uint64_t prefix_asked, prefix_found;      /* times the prefix cache was asked, and had something */
} realm_engine_stats;
void realm_engine_get_stats(realm_engine *e, realm_engine_stats *out);

/* Computes a prefix once and keeps its full pages for everybody until the engine closes: pages charged to nobody. For
 * the operator. Waits for the computation, and for those of others: one is published at a time. Pages that a published
 * prefix has already are its too. REALM_E_RANGE: no full page, or a token out of range; REALM_E_CONTEXT: too long;
 * REALM_E_LIMIT: published prefixes would take more than half of the pool. On failure nothing of it is published. */
REALM_WARN_UNUSED realm_status realm_engine_publish_prefix(realm_engine *e, const realm_token *tokens, size_t n,
                                                           realm_error *err);

/* ---- contexts: a token sequence and its KV pages, owned by an account ----------------------------------------------
 *
 *      idle <--- END published ---- busy       idle: any thread may append, truncate, fork
 *        +---- generation submitted --^        busy: a generation or forward pass runs on it, these give REALM_E_BUSY
 *
 * Pages of idle contexts are moved to memory outside the pool, or to disk, when the pool or the account's kv_tokens
 * needs them, and come back with the next use. A context longer than the engine's is never made: REALM_E_CONTEXT.
 */

/* An empty one, charged to `a`, with one reference, the caller's. REALM_E_INVALID: the account is not of this engine;
 * REALM_E_NOMEM. */
REALM_WARN_UNUSED realm_status realm_context_open(realm_engine *e, realm_account *a, realm_context **out,
                                                  realm_error *err);
realm_context *realm_context_retain(realm_context *c); /* returns c */
void realm_context_release(realm_context *c);          /* NULL-safe; the last one gives the pages back */
/* Tokens behind the others, to be computed by the next generation or forward pass. REALM_E_CONTEXT (too long),
 * REALM_E_RANGE (a token that the vocabulary lacks), REALM_E_BUSY, REALM_E_NOMEM; the context is then as before. */
REALM_WARN_UNUSED realm_status realm_context_append(realm_context *c, const realm_token *tokens, size_t n,
                                                    realm_error *err);
/* Keeps the first n_tokens. REALM_E_RANGE: there are fewer; REALM_E_BUSY. */
REALM_WARN_UNUSED realm_status realm_context_truncate(realm_context *c, size_t n_tokens, realm_error *err);
/* Shares all pages, copy on write: time is that of counting references (no KV is copied). REALM_E_BUSY, REALM_E_NOMEM.
 */
REALM_WARN_UNUSED realm_status realm_context_fork(realm_context *c, realm_context **out, realm_error *err);
typedef struct realm_context_info {
    uint32_t n_tokens, n_computed, pages, shared_pages; /* shared: held by others too */
    bool busy;
    bool suspended; /* some of its pages are outside the pool */
} realm_context_info;
/* Of a busy context both say what was there when the generation was submitted, its prompt included. */
void realm_context_get_info(const realm_context *c, realm_context_info *out);
/* Copies tokens [from, from + max) as far as there are; returns how many. */
size_t realm_context_get_tokens(const realm_context *c, size_t from, realm_token *out, size_t max);

/* ---- generations ------------------------------------------------------------------------------------------------- */

/* Order of application: bias, penalties (repeat, then frequency and presence), DRY, then greedy when temperature is 0,
 * else temperature, top-k, typical, top-p (nucleus), min-p, XTC, draw; or as `order` says. Mirostat stands in for
 * everything between temperature and draw. Fields at their neutral value cost nothing. What each stage does is said in
 * sampler.h. */
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
    float typical_p;       /* (0, 1]; 1: all */
    float xtc_probability; /* [0, 1]; 0: none */
    float xtc_threshold;   /* [0, 1] */
    float dry_multiplier;  /* 0 .. 1000; 0: none */
    float dry_base;        /* 1 .. 1000 */
    uint32_t dry_allowed;  /* 1 or more */
    uint32_t dry_last_n;   /* 0: all */
    const realm_token *dry_breakers;
    size_t n_dry_breakers;
    float mirostat_tau; /* (0, 1000] bits; 0: none */
    float mirostat_eta; /* 0 .. 1000 */
    /* 0, or: these stages alone, in this order, each with the fields above: penalties, DRY, temperature, top-k,
     * typical, top-p, min-p, XTC. Bias stays the first, and mirostat leaves out those that cut. */
    uint32_t n_order;
    realm_stage_kind order[REALM_SAMPLING_ORDER_MAX];
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
    bool logprobs;             /* events carry logprob; log-softmax of the logits before anything is applied */
    uint32_t top_logprobs;     /* and this many best */
    bool prompt_logprobs;      /* prompt tokens become events too (kind PROMPT), the first without a logprob */
    bool prompt_only;          /* ends behind the prompt, with LENGTH; max_tokens is not looked at */
    bool ignore_end;           /* end tokens are tokens like others */
    bool special_text;         /* control tokens show in the text */
    realm_prompt_share *share; /* NULL, or siblings with the same prompt: computed and counted once */
    uint64_t deadline_ns;      /* monotonic; 0: none; past it the generation ends with REALM_E_TIMEOUT */
    /* NULL, or: the prompt (may be empty then) is appended to it and so is what is generated (every token that has an
     * event); busy until END was published. At least one token must be there to compute; when all are computed already,
     * the last is computed again. Not with `share` or `prompt_logprobs`. Held until then. */
    realm_context *context;
    bool forward; /* computes the tokens, samples nothing; max_tokens, sampling, stop are not looked at; STOP at END */
    uint32_t n_rows; /* forward: logits kept of the last n_rows tokens, 1 .. REALM_FORWARD_ROWS, at most all tokens;
                        those that were computed already are computed again */
    bool hidden;     /* forward: and the hidden states after the final norm */
    const realm_chain *chain;           /* NULL: `sampling` says how. Copied */
    const realm_grammar_state *grammar; /* NULL or copied: applied before `sampling` or `chain` */
    /* 0, or: at most so many generated tokens beyond what was confirmed, then the generation waits (1 ..
     * REALM_RUN_AHEAD_MAX). Its END may be taken back by a rewind until it is confirmed; it counts as one of the
     * account's generations until then. */
    uint32_t run_ahead;
    void (*on_ready)(void *user); /* one call at a time; must not block nor call the engine; never after release
                                     returned */
    void *user;
} realm_generation_params;

/* Generations given the same share, account and prompt compute the prompt once and fork its pages copy on write. The
 * share keeps those pages until closed (its owner's request ends), unless the memory is needed: then later siblings
 * compute the prompt again. The prompt is charged once in any case. With prompt_logprobs a sibling computes for itself.
 * A different prompt is REALM_E_INVALID at submit. */
REALM_WARN_UNUSED realm_status realm_prompt_share_open(realm_engine *e, realm_account *a, realm_prompt_share **out,
                                                       realm_error *err);
void realm_prompt_share_close(realm_prompt_share *s); /* NULL-safe */

/* Queues a generation. REALM_E_RANGE (prompt empty, token out of range, bad sampling field), REALM_E_CONTEXT (too long
 * for it), REALM_E_CROWDED, REALM_E_QUOTA (the account's generations, kv_tokens), REALM_E_BUSY (queue full). */
REALM_WARN_UNUSED realm_status realm_generation_submit(realm_engine *e, const realm_generation_params *p,
                                                       realm_generation **out, realm_error *err);
/* Sets the flag that the scheduler reads at every step, in prefill too; an END event with CANCELLED follows. */
void realm_generation_cancel(realm_generation *g);
/* Drops the consumer's hold: cancels if still running and discards events. After it returns on_ready is not running and
 * is never called again. Not from inside on_ready. */
void realm_generation_release(realm_generation *g);

/* Run ahead. n: of generated tokens, counted from the generation's start, forced ones included; more than there are is
 * taken as all. Never goes back. `end`: END too, where it was published behind the n-th; who has not seen one does not
 * confirm it. */
void realm_generation_confirm(realm_generation *g, uint32_t n, bool end);
/* Keeps the first n_keep generated tokens, puts `tokens` behind them (confirmed by that) and goes on, also from an end
 * that came meanwhile. Events not yet polled of dropped tokens vanish; the next poll starts with what follows the
 * forced tokens (which have no events). Text, stop strings and sampling go on as if the dropped tokens had never been;
 * dropped tokens stay charged, forced ones are charged as prompt. REALM_E_RANGE: n_keep is less than what was confirmed
 * or more than was published, a token that the vocabulary lacks, or more tokens than max_tokens or the context take;
 * REALM_E_INVALID: not a run-ahead generation; REALM_E_CLOSED: it was cancelled, failed, END was
 * confirmed, or its context has been used since END. */
REALM_WARN_UNUSED realm_status realm_generation_rewind(realm_generation *g, uint32_t n_keep, const realm_token *tokens,
                                                       size_t n, realm_error *err);

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

/* ---- logits: rows of a forward pass, or one's own ------------------------------------------------------------------
 *
 * One thread at a time for each object; the engine outlives it.
 */

/* After the END of a forward pass: its rows; the caller's reference. NULL before, when it failed, and the second time.
 */
realm_logits *realm_generation_take_logits(realm_generation *g);
/* Rows of one's own: (n_rows, n_vocab) copied; 1 .. REALM_FORWARD_ROWS. */
REALM_WARN_UNUSED realm_status realm_logits_open(realm_engine *e, const float *rows, size_t n_rows, realm_logits **out,
                                                 realm_error *err);
void realm_logits_release(realm_logits *l); /* NULL-safe */
size_t realm_logits_rows(const realm_logits *l);
const float *realm_logits_look(realm_logits *l, size_t row); /* (n_vocab), valid as long as l; NULL past the end */
float *realm_logits_row(realm_logits *l, size_t row);        /* the same, to be changed */
const float *realm_logits_hidden(const realm_logits *l, size_t row, size_t *d_model); /* NULL without `hidden` */
/* Draws from a row; workspace comes from the engine. *logprob (may be NULL) is of the row as it is now.
 * REALM_E_RANGE: no such row; REALM_E_FORMAT: no finite logit; REALM_E_NOMEM. */
REALM_WARN_UNUSED realm_status realm_logits_sample(realm_logits *l, size_t row, realm_chain *chain /* NULL: greedy */,
                                                   realm_token *id, float *logprob, realm_error *err);
/* The k best, best first; returns how many (k, n_vocab, or those above minus infinity; 0 without memory). */
size_t realm_logits_top(realm_logits *l, size_t row, size_t k, realm_top_logprob *out);
float realm_logits_log_sum_exp(realm_logits *l, size_t row); /* NAN: no such row or no finite logit */
float realm_logits_entropy(realm_logits *l, size_t row);     /* in nats, of the softmax; NAN likewise */

#endif
