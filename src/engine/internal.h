/* engine/internal.h - what the engine's files share: generations, accounts, shares, pages, the step under way.
 *
 * Who may touch what (each struct repeats it):
 *
 *   engine->mu   the inbox, everything that other threads count or close (rank ENGINE)
 *   context->mu  one context's tokens and pages while it is idle, and who makes it busy (rank CONTEXT)
 *   pool.mu      who holds which page (rank PAGES; pages.h)
 *   g->mu        one generation's pending events and its callback's life (rank LEAF)
 *   the engine's thread alone: all else. Slots of pages, queues, the batch, text that is held back.
 *
 * A generation's life:
 *
 *      submit --> INBOX --intake--> QUEUED --admit--> RUNNING --end--> ENDED
 *                                     ^                 |  (prefill until one token is left to compute, then decode)
 *                                     +----preempt------+  (its KV leaves the pool, or is computed again: same tokens)
 *                                     ^                 |
 *                                     +-rewind- PARKED <+  (run ahead: an end that can still be taken back)
 *
 * RUNNING with `waits_share` set waits for a sibling to finish the common prompt. `end` may come in every state.
 */
#ifndef REALM_ENGINE_INTERNAL_H
#define REALM_ENGINE_INTERNAL_H

#include <stdatomic.h>

#include "base/clock.h"
#include "base/rota.h"
#include "base/thread.h"
#include "engine/engine.h"
#include "engine/fair.h"
#include "engine/pages.h"
#include "engine/sampling.h"

#define REALM_EVENTS_PENDING 64u         /* events of a generation that its consumer may lag behind */
#define REALM_EVENTS_PENDING_PROMPT 256u /* the same with prompt_logprobs */
#define REALM_TEXT_PENDING 4096u         /* bytes of text, besides what one token may add */
#define REALM_PIECE_BYTES_MAX 65536u     /* longest token text that an engine serves */
#define REALM_EXTRA_OUT_ROWS 64u         /* rows of a step whose logits are wanted beside each generation's last */
#define REALM_MASK_THREADS_MAX 4u
#define REALM_FEW_ROWS 64u /* a forward pass of so many tokens at most is served like decoding */

typedef struct realm_foresight { /* guess.c: how well passes can be told beforehand */
    uint32_t at;                 /* tokens before the one that `best` is a guess for; 0: there is no guess */
    realm_token best;
    uint32_t streak;        /* passes in a row that it was right for */
    float lately, long_run; /* of how many: about of the last 8, of the last 128 */
    uint32_t n_passes;      /* whose most likely token might have been looked for */
} realm_foresight;

/* ---- accounts, account.c ---------------------------------------------------------------------------------------- */

struct realm_account {
    realm_engine *e;
    realm_page_owner owner;
    /* engine->mu */
    realm_account_limits limits;
    realm_token_counts counts;
    uint32_t n_generations, refs;
    uint32_t n_leaving; /* of them, those that their consumers cancelled, which the engine has yet to end */
    /* engine's thread */
    realm_generation *queue_head, *queue_tail;
    uint32_t n_queued, n_running;
    realm_share share;
    uint32_t step_rows;
    realm_token_counts delta;
    bool in_ring, skip;
    uint32_t slow_masks;       /* so many tokens' masks are computed beside the steps: one took long lately */
    realm_foresight foresight; /* of its contexts: what the next one begins with */
};

/* Under engine->mu. The last reference frees. */
void realm_account_unref_locked(realm_account *a);
static inline uint32_t realm_account_weight(const realm_account_limits *l) { return l->weight ? l->weight : 100; }

/* ---- shares, share.c -------------------------------------------------------------------------------------------- */

struct realm_prompt_share {
    realm_engine *e;
    realm_account *account;
    /* engine->mu */
    uint32_t refs;       /* handle and generations */
    realm_token *prompt; /* of the first generation submitted; then fixed */
    size_t n_prompt;
    /* engine's thread */
    realm_generation *leader; /* computes the prompt now */
    realm_page **pages;       /* room for the prompt's; allocated with `prompt` */
    uint32_t n_pages;         /* > 0: the prompt's KV is here */
    bool counted;             /* the prompt has been charged */
};

void realm_share_unref(realm_prompt_share *s);
/* Keeps the leader's pages of the prompt. */
void realm_share_fill(realm_prompt_share *s, const realm_generation *g);
/* Gives the share's pages to a sibling that has none. */
void realm_share_fork(realm_prompt_share *s, realm_generation *g);

/* ---- contexts, context.c ----------------------------------------------------------------------------------------- */

struct realm_context {
    realm_engine *e;
    realm_account *account;
    atomic_uint refs;
    realm_context *next_published; /* engine->mu */
    realm_mutex mu;
    /* mu */
    uint64_t edits; /* counts changes of the tokens */
    bool busy;      /* `seq` is the generation's; `shown` says what was there before */
    realm_seq seq;  /* idle: nothing is pinned */
    realm_context_info shown;
    /* whoever makes it busy hands them to the engine's thread; `guess` is cleared under engine->mu */
    realm_foresight foresight;
    realm_generation *guess;
};

/* Makes the context busy and appends the prompt, with room for what is to be generated; REALM_E_BUSY, REALM_E_RANGE
 * (nothing to compute, or no room left), REALM_E_NOMEM: it is then as before. */
REALM_WARN_UNUSED realm_status realm_context_begin(realm_context *c, const realm_generation_params *p,
                                                   realm_error *err);
/* After begin, when the engine never heard of it: as if that had not been. */
void realm_context_undo_begin(realm_context *c, uint32_t n_prompt);
/* Engine's thread: back to idle, what is pinned is let go. */
void realm_context_end(realm_context *c);
/* Engine's thread: the same for a parked generation, unless its reader has rewound it meanwhile. */
void realm_context_lend(realm_context *c, realm_generation *g);

/* ---- logits, logits.c -------------------------------------------------------------------------------------------- */

typedef struct realm_spare_sampler {
    struct realm_spare_sampler *next;
    realm_sampler sampler;
} realm_spare_sampler;

struct realm_logits {
    realm_engine *e;
    realm_logits *next;                  /* engine->spare_mu: spare ones, or those with a lent row */
    _Atomic(float *) lent;               /* the plan's row in place of `rows`; cleared under spare_mu */
    uint64_t lent_run;                   /* spare_mu: of the run that made it */
    realm_token best;                    /* the most likely of the first row as it was computed; -1: not looked for */
    uint32_t cap_rows, n_rows, n_hidden; /* n_hidden: rows of hidden states, 0 or n_rows */
    float *rows;                         /* (cap_rows, n_vocab) */
    float *hidden;                       /* (n_hidden, d_model) or NULL */
};
/* Rows to be filled in. */
REALM_WARN_UNUSED realm_logits *realm_logits_new(realm_engine *e, uint32_t n_rows, bool hidden);
/* Engine's thread. One row, as it is in the plan after run n_runs, instead of a copy; realm_logits_keep makes the
 * copies of those that are still there of run `until` and before, which the plan is about to write over. */
void realm_logits_lend(realm_logits *l, float *row);
void realm_logits_keep(realm_engine *e, uint64_t until);
void realm_logits_free_spare(realm_engine *e);

/* ---- generations: generation.c, events.c, text.c, rewind.c ------------------------------------------------------ */

typedef enum realm_gen_state {
    REALM_GEN_QUEUED,
    REALM_GEN_RUNNING,
    REALM_GEN_PARKED,
    REALM_GEN_GUESSED, /* a guess that is computed */
    REALM_GEN_ENDED
} realm_gen_state;

typedef struct realm_text_mark { /* the text's state after n generated tokens */
    uint32_t n;
    realm_detok detok;
    realm_buf held, unseen;
    size_t carry;
} realm_text_mark;

struct realm_generation {
    /* fixed at submit */
    realm_engine *e;
    realm_account *account;
    realm_prompt_share *share;
    realm_context *context;
    realm_gguf_str stop[REALM_STOP_MAX];
    char *stop_bytes;
    size_t n_stop;
    uint32_t n_prompt, max_new,
        n_top;       /* n_prompt: tokens before the first generated one, those of a context included */
    uint32_t n_rows; /* forward: rows of logits wanted; 0: a generation */
    uint32_t run_ahead;
    bool logprobs, prompt_logprobs, ignore_end;
    bool guess;           /* the engine's own, guess.c: without a consumer */
    uint64_t deadline_ns; /* of a guess: when it is dropped */
    void (*on_ready)(void *user);
    void *user;
    uint32_t cap_events;
    size_t text_step_max; /* bytes that one token and the end may add to the text at most */

    atomic_bool cancel; /* relaxed: a flag that is read at every step, nothing is published through it */
    atomic_uint refs;   /* consumer, engine */
    /* engine->mu */
    bool leaving; /* cancelled, and no longer counted against the account's limit */
    bool gone;    /* has ended, and is counted nowhere */

    /* engine's thread */
    realm_gen_state state;
    realm_generation *next; /* inbox or account's queue */
    uint64_t seq;           /* order of first admission; 0: not yet */
    realm_chain *chain;     /* a worker's while a step is sampled */
    uint32_t chain_tail;    /* generated tokens in it at submit */
    bool constrained;       /* it has a grammar, and tokens are drawn */
    bool awaits_mask;       /* when the step was built */
    realm_mask *mask;       /* for the next token, computed beside the steps; NULL: with its row */
    realm_seq own;          /* without a context */
    realm_seq *s;           /* its tokens and pages: `own`, or those of the context until END is published */
    uint32_t n_new;         /* tokens sampled, end token and those of a rewind included */
    uint32_t n_charge;      /* prompt tokens to be charged when it is admitted first */
    uint32_t prompt_events;
    bool waits_share, stalled, settles, touched; /* settles: its pages are to be pinned before it runs */
    realm_page_result blocked;
    uint64_t stalled_since_ns;
    uint32_t step_rows, first_job, n_jobs;
    uint32_t n_priced; /* leading tokens that counted against tokens_per_second */
    bool token_shown;  /* this step's sampled token becomes an event */
    uint32_t prompt_charged, cached_charged;
    realm_detok detok;
    realm_buf held; /* text that may be the start of a stop string; its first `shown` bytes go out with this step */
    /* Run ahead: a byte for each held one, not 0 where a forced token brought it; and how many held bytes are past
     * being looked for stop strings in, waiting for an event. */
    realm_buf unseen;
    size_t shown, carry;
    realm_finish finish;
    realm_token end_id;
    realm_status status;
    char status_text[160];
    realm_text_mark *base;         /* run ahead: the text's state at the last rewind, or at the start */
    realm_generation *next_parked; /* or the next guess; or while it is taken in, the next on a context */
    realm_context *foresees;       /* engine->mu: a guess's context; NULL: that is gone */

    /* g->mu */
    realm_mutex mu;
    realm_cond callback_done;
    bool released, in_callback, paused;
    realm_event *events; /* (cap_events) */
    uint32_t n_events;
    realm_buf text;
    realm_top_logprob *top; /* (cap_events * n_top) */
    uint32_t n_pending_top;
    bool end_pushed;
    bool final; /* has ended for good */
    bool lent;  /* parked: its context is idle, and may still be taken back */
    uint64_t lent_edits;
    uint32_t counted_prompt, counted_cached, counted_new;
    uint32_t n_published, n_confirmed; /* generated tokens */
    bool rewinding;                    /* asked for, and not yet done by the engine */
    uint32_t rewind_keep;
    realm_token *forced;
    uint32_t n_forced;
    realm_logits *logits;        /* forward; filled in by the engine's thread before END, then to be taken */
    realm_event small_events[2]; /* forward: all there will be */
};

/* Tokens generated so far that are part of the sequence. */
static inline uint32_t realm_generation_length(const realm_generation *g) { return g->s->n_tokens - g->n_prompt; }

void realm_generation_unref(realm_generation *g);
/* Takes a sampled token: text, stop strings, end. Engine's thread. */
void realm_generation_accept(realm_generation *g, realm_token id);
/* Decides the end; pages, queue and publication are the caller's (realm_engine_end). */
void realm_generation_finish(realm_generation *g, realm_finish finish, realm_status status, const char *text);

/* events.c, engine's thread. Free event slots for rows of this step, 0 when the reader is too far behind (it will wake
 * the engine). */
uint32_t realm_generation_room(realm_generation *g);
/* Publishes this iteration's events; true when its consumer is to be called. */
bool realm_generation_publish(realm_generation *g);
/* Calls it; any thread. */
void realm_generation_call(realm_generation *g);

/* text.c, engine's thread. Takes one token's text in and decides how much of what is held can be shown; finishes with
 * STOP when a stop string is complete, and with an error when the text exceeds its bound. */
void realm_text_push(realm_generation *g, realm_token id);
/* The same for a forced token, which has no event: what can be shown now waits for the next one, without the text of
 * forced tokens. */
void realm_text_force(realm_generation *g, realm_token id);
/* Under g->mu: moves what can be shown, or at the end all that is held, to the pending text as the event's. */
void realm_text_show(realm_generation *g, realm_event *ev);
void realm_text_show_rest(realm_generation *g, realm_event *ev);
/* Brings the text's state to where it was after the first n generated tokens, which lie behind `base`. */
void realm_text_replay(realm_generation *g, uint32_t n);
/* Makes the state of now the one that replays begin from. */
void realm_text_set_base(realm_generation *g);

/* rewind.c, engine's thread. Whether its end, just decided, can no longer be taken back. */
bool realm_generation_settles(realm_generation *g);
void realm_generation_close(realm_generation *g); /* no rewind from now on */
/* Does what a rewind asked for; true when there was one. It may decide an end. */
bool realm_generation_apply_rewind(realm_generation *g);

/* ---- masks.c, engine's thread ------------------------------------------------------------------------------------ */

/* Whether its next token's mask is being computed beside the steps: the row it is drawn from has to wait. */
bool realm_mask_awaited(realm_generation *g);
/* After a token was drawn: what its mask took counts for the account. */
void realm_mask_note(realm_generation *g);
/* Its tokens have changed, or it is over. */
void realm_mask_drop(realm_generation *g);
void realm_masks_stop(realm_engine *e);

/* ---- guess.c, engine's thread ------------------------------------------------------------------------------------ */

void realm_foresight_init(realm_foresight *f);
/* Whether the most likely token of the row that it wants is to be looked for. */
bool realm_guess_looks(realm_generation *g);
/* After a forward pass on a context has ended: what is likely to come next goes into the next step. `best`: the most
 * likely token, -1 if not known. */
void realm_guess_next(realm_engine *e, realm_context *c, realm_token best);
void realm_guess_commit(realm_engine *e, realm_generation *guess); /* after its step */
/* Those in e->asked: passes that were guessed end, other guesses of their contexts are dropped. True: some ended. */
bool realm_guess_settle(realm_engine *e);
void realm_guess_drop(realm_engine *e, realm_generation *guess);
bool realm_guess_drop_all(realm_engine *e, const realm_account *a /* NULL: everybody's */); /* true: there were some */
void realm_guess_sweep(realm_engine *e, uint64_t now_ns);
uint32_t realm_guess_running(const realm_engine *e);

/* ---- the engine, engine.c and schedule.c ------------------------------------------------------------------------ */

typedef struct realm_consumer_call {
    realm_generation *g;
    bool ended; /* for good: the engine lets go of it */
} realm_consumer_call;

struct realm_engine {
    realm_backend *backend;
    const realm_model *model;
    const realm_tokenizer *tokenizer;
    realm_engine_config config; /* resolved */
    uint32_t n_ctx, n_vocab;
    size_t max_piece;
    uint64_t weight_bytes;
    pthread_t thread;
    bool joined; /* of whoever closes it */

    realm_mutex mu;
    realm_cond cond, published_cond;
    /* mu */
    bool wake, shut;
    bool lending;       /* from idle.expect to the end of idle.run */
    bool idle_ended;    /* nothing is lent any more */
    bool lending_aside; /* from the publication whose calls it is for to the end of aside.run */
    realm_cond unlent;  /* one of both became false */
    bool calling;       /* `calls` are with another thread */
    realm_cond called;  /* calling became false */
    realm_generation *inbox_head, *inbox_tail;
    uint32_t n_alive;       /* generations submitted and not ended */
    uint32_t n_parked_seen; /* of them, those parked at the last publication: neither running nor queued */
    uint64_t next_account_id;
    uint32_t n_contexts;
    realm_context *published;   /* changed by who publishes */
    uint32_t n_published_pages; /* of these */
    bool publishing;            /* one prefix at a time */
    realm_token_counts total;
    realm_engine_stats stats;

    /* engine's thread */
    bool stopping;
    realm_page_pool pool;
    realm_plan *plan;
    uint32_t max_rows, max_out;
    realm_account *everybody; /* whom published prefixes belong to */
    realm_account **ring;     /* accounts with generations, in order of arrival */
    uint32_t n_ring, cap_ring, admit_turn;
    realm_generation **running; /* by seq */
    uint32_t n_running;
    realm_generation **touched; /* to be published */
    uint32_t n_touched;
    realm_consumer_call *calls; /* (cap_ring) to be made now; not the engine's thread's while `calling` */
    uint32_t n_calls;
    bool calls_lent;          /* as calls: who makes them lends itself */
    realm_generation *parked; /* ended, but the end can be taken back */
    uint32_t n_parked;
    realm_generation *guesses; /* running or computed */
    realm_generation *asked;   /* just taken in, those on contexts */
    uint64_t next_seq;
    bool progress;                           /* this iteration changed something */
    uint64_t next_wake_ns;                   /* earliest time that needs a look; 0: none */
    uint64_t n_ended, n_cancelled, n_failed; /* in this iteration */
    uint64_t n_guesses, n_guesses_right;     /* since start */
    uint64_t step_ns, notify_ns, lent_ns;    /* of this step; since start, both */
    uint64_t n_runs;                         /* of the plan */

    /* the step */
    realm_batch batch;
    int32_t *batch_tokens;
    realm_batch_seq *batch_seqs;
    uint32_t *batch_out;
    realm_generation **batch_gens; /* of the sequences */
    realm_fair fair;
    realm_want *wants; /* (max_generations) of the running ones when the step was built */
    uint32_t n_wants;
    realm_sample_job *jobs; /* (max_out) */
    uint32_t n_jobs;
    realm_sampler *samplers;
    uint32_t n_samplers;

    realm_mutex masks_mu; /* LEAF */
    realm_cond masks_cond;
    realm_rota mask_turns; /* of accounts */
    bool masks_stop;
    pthread_t mask_threads[REALM_MASK_THREADS_MAX]; /* engine's thread; then whoever closes it */
    uint32_t n_mask_threads;

    realm_mutex spare_mu; /* LEAF */
    realm_logits *spare_logits, *lent_logits;
    uint32_t n_spare_logits;
    realm_spare_sampler *spare_samplers; /* for programs' draws */
};

void realm_engine_wake(realm_engine *e);
void realm_engine_wake_locked(realm_engine *e); /* the caller holds e->mu */
/* Ends a generation in whatever state; publication follows at the end of the iteration. */
void realm_engine_end(realm_engine *e, realm_generation *g, realm_finish finish, realm_status status, const char *text);
void realm_engine_touch(realm_engine *e, realm_generation *g);
/* Its end was decided (g->finish): out of everything, or parked while that can be taken back. */
void realm_engine_finished(realm_engine *e, realm_generation *g);
void realm_engine_retire(realm_engine *e, realm_generation *g);

/* schedule.c */
void realm_schedule_enqueue(realm_engine *e, realm_generation *g, bool front);
void realm_schedule_unlink(realm_engine *e, realm_generation *g); /* from queue or running */
void realm_schedule_sweep(realm_engine *e, uint64_t now_ns);
void realm_schedule_admit(realm_engine *e, uint64_t now_ns);
void realm_schedule_start_guess(realm_engine *e, realm_generation *guess);
/* Fills e->batch and e->jobs; no rows when nothing can run now. */
void realm_schedule_build(realm_engine *e, uint64_t now_ns);

#endif
