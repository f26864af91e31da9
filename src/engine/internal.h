/* engine/internal.h - what the engine's files share: generations, accounts, shares, pages, the step under way.
 *
 * Who may touch what (each struct repeats it):
 *
 *   engine->mu   the inbox, everything that other threads count or close (rank ENGINE)
 *   g->mu        one generation's pending events and its callback's life (rank LEAF)
 *   the engine's thread alone: all else. Pages, queues, the batch, text that is held back.
 *
 * A generation's life:
 *
 *      submit --> INBOX --intake--> QUEUED --admit--> RUNNING --end--> ENDED
 *                                     ^                 |  prefill: n_past + 1 < n_tokens; decode: n_past + 1 ==
 * n_tokens
 *                                     +----preempt------+  (its KV is dropped and computed again: same tokens)
 *
 * RUNNING with `waits_share` set waits for a sibling to finish the common prompt. `end` may come in every state.
 */
#ifndef REALM_ENGINE_INTERNAL_H
#define REALM_ENGINE_INTERNAL_H

#include <stdatomic.h>

#include "base/clock.h"
#include "base/thread.h"
#include "engine/engine.h"
#include "engine/sampling.h"

#define REALM_EVENTS_PENDING 64u         /* events of a generation that its consumer may lag behind */
#define REALM_EVENTS_PENDING_PROMPT 256u /* the same with prompt_logprobs */
#define REALM_TEXT_PENDING 4096u         /* bytes of text, besides what one token may add */
#define REALM_PIECE_BYTES_MAX 65536u     /* longest token text that an engine serves */
#define REALM_PROMPT_OUT_ROWS 32u        /* rows of a step whose logits only prompt_logprobs wants */

/* ---- pages.c ---------------------------------------------------------------------------------------------------- */

typedef struct realm_page {
    uint32_t refs;
    uint64_t last_owner;    /* account id that wrote to it last; 0: never used */
    realm_account *account; /* charged while refs > 0 */
} realm_page;

typedef struct realm_page_pool { /* engine's thread */
    realm_backend *backend;
    realm_kv *kv;
    uint64_t page_bytes;
    uint32_t n, n_free;
    uint32_t *free_list;
    realm_page *pages;
} realm_page_pool;

typedef enum realm_page_result { REALM_PAGE_OK, REALM_PAGE_NONE_FREE, REALM_PAGE_ACCOUNT_LIMIT } realm_page_result;

REALM_WARN_UNUSED realm_status realm_pool_init(realm_page_pool *p, realm_backend *b, realm_kv *kv, uint32_t n_pages,
                                               realm_error *err);
void realm_pool_release(realm_page_pool *p);
/* A page for the account's own use, zeroed if another account wrote to it before. */
realm_page_result realm_page_take(realm_page_pool *p, realm_account *a, uint32_t *page);
void realm_page_ref(realm_page_pool *p, uint32_t page);
void realm_page_unref(realm_page_pool *p, uint32_t page);
/* Makes *page writable by one holder: a shared page is copied (copy on write). */
realm_page_result realm_page_own(realm_page_pool *p, realm_account *a, uint32_t *page);
static inline uint32_t realm_pages_for(uint64_t n_tokens) {
    return (uint32_t)((n_tokens + REALM_KV_PAGE_TOKENS - 1) / REALM_KV_PAGE_TOKENS);
}

/* ---- accounts, account.c ---------------------------------------------------------------------------------------- */

struct realm_account {
    realm_engine *e;
    uint64_t id; /* never used twice */
    bool has_secret;
    uint8_t secret[REALM_CACHE_SECRET_BYTES]; /* keys the prefix cache */
    /* engine->mu */
    realm_account_limits limits;
    realm_token_counts counts;
    uint32_t n_generations, refs;
    /* engine's thread */
    realm_generation *queue_head, *queue_tail;
    uint32_t n_queued, n_running;
    uint32_t pages, max_pages; /* held; UINT32_MAX: no limit */
    uint32_t step_rows;
    uint32_t n_ended; /* in this iteration, still in n_generations */
    realm_token_counts delta;
    bool in_ring, skip;
};

/* Under engine->mu. The last reference frees. */
void realm_account_unref_locked(realm_account *a);

/* ---- shares, share.c -------------------------------------------------------------------------------------------- */

struct realm_prompt_share {
    realm_engine *e;
    realm_account *account;
    /* engine->mu */
    uint32_t refs;       /* handle and generations */
    realm_token *prompt; /* of the first generation submitted; then fixed */
    size_t n_prompt;
    realm_prompt_share *next_dead;
    /* engine's thread */
    realm_generation *leader;        /* computes the prompt now */
    uint32_t *pages;                 /* room for the prompt's; allocated with `prompt` */
    uint32_t n_pages;                /* > 0: the prompt's KV is here */
    bool counted;                    /* the prompt has been charged */
    realm_prompt_share *next, *prev; /* of those that hold pages */
};

void realm_share_unref_locked(realm_prompt_share *s);
/* Keeps the leader's pages of the prompt. */
void realm_share_fill(realm_prompt_share *s, const realm_generation *g);
/* Gives the share's pages to a sibling that has none. */
void realm_share_fork(realm_prompt_share *s, realm_generation *g);
void realm_share_drop_pages(realm_prompt_share *s);
void realm_share_free(realm_prompt_share *s); /* engine's thread, or after it ended */

/* ---- generations, generation.c ---------------------------------------------------------------------------------- */

typedef enum realm_gen_state { REALM_GEN_QUEUED, REALM_GEN_RUNNING, REALM_GEN_ENDED } realm_gen_state;

struct realm_generation {
    /* fixed at submit */
    realm_engine *e;
    realm_account *account;
    realm_prompt_share *share;
    realm_gguf_str stop[REALM_STOP_MAX];
    char *stop_bytes;
    size_t n_stop;
    uint32_t n_prompt, max_new, n_top;
    bool logprobs, prompt_logprobs, ignore_end;
    uint64_t deadline_ns;
    void (*on_ready)(void *user);
    void *user;
    uint32_t cap_events;
    size_t text_step_max; /* bytes that one token and the end may add to the text at most */

    atomic_bool cancel; /* relaxed: a flag that is read at every step, nothing is published through it */
    atomic_uint refs;   /* consumer, engine */

    /* engine's thread */
    realm_gen_state state;
    realm_generation *next; /* inbox or account's queue */
    uint64_t seq;           /* order of first admission; 0: not yet */
    realm_token *tokens;    /* (n_prompt + max_new) */
    realm_chain *chain;     /* a worker's while a step is sampled */
    uint32_t n_tokens, n_past;
    uint32_t *pages;
    uint32_t n_pages;
    uint32_t n_new; /* tokens sampled, end token included */
    uint32_t prompt_events;
    bool waits_share, stalled, touched;
    realm_page_result blocked;
    uint64_t stalled_since_ns;
    uint32_t step_rows, first_job, n_jobs;
    bool token_shown; /* this step's sampled token becomes an event */
    uint32_t prompt_charged;
    realm_detok detok;
    realm_buf held; /* text that may be the start of a stop string; its first `shown` bytes go out with this step */
    size_t shown;
    realm_finish finish;
    realm_token end_id;
    realm_status status;
    char status_text[160];

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
    uint32_t counted_prompt, counted_cached, counted_new;
};

void realm_generation_unref(realm_generation *g);
/* Free event slots for rows of this step, 0 when the reader is too far behind (it will wake the engine). */
uint32_t realm_generation_room(realm_generation *g);
/* Takes a sampled token: text, stop strings, end. Engine's thread. */
void realm_generation_accept(realm_generation *g, realm_token id);
/* Decides the end; pages, queue and publication are the caller's (realm_engine_end). */
void realm_generation_finish(realm_generation *g, realm_finish finish, realm_status status, const char *text);
/* Publishes this iteration's events and calls back. */
void realm_generation_publish(realm_generation *g);

/* ---- the engine, engine.c and schedule.c ------------------------------------------------------------------------ */

struct realm_engine {
    realm_backend *backend;
    const realm_model *model;
    const realm_tokenizer *tokenizer;
    realm_engine_config config; /* resolved */
    uint32_t n_ctx, n_vocab;
    size_t max_piece;
    uint64_t weight_bytes;
    pthread_t thread;

    realm_mutex mu;
    realm_cond cond;
    /* mu */
    bool wake, shut;
    realm_generation *inbox_head, *inbox_tail;
    realm_prompt_share *dead_shares;
    uint32_t n_alive; /* generations submitted and not ended */
    uint64_t next_account_id;
    uint32_t n_accounts, n_shares;
    realm_token_counts total;
    realm_engine_stats stats;

    /* engine's thread */
    bool stopping;
    realm_page_pool pool;
    realm_plan *plan;
    uint32_t max_rows, max_out;
    realm_account **ring; /* accounts with generations, in order of arrival */
    uint32_t n_ring, cap_ring, admit_turn, prefill_turn;
    realm_generation **running; /* by seq */
    uint32_t n_running;
    realm_generation **touched; /* to be published */
    uint32_t n_touched;
    realm_prompt_share *shares_with_pages;
    uint64_t next_seq;
    bool progress;                           /* this iteration changed something */
    uint64_t next_wake_ns;                   /* earliest time that needs a look; 0: none */
    double row_ns;                           /* running mean of a step's time per prompt row; 0: unknown */
    uint64_t n_ended, n_cancelled, n_failed; /* in this iteration */
    uint64_t step_ns, notify_ns; /* of this step; since start */

    /* the step */
    realm_batch batch;
    int32_t *batch_tokens;
    realm_batch_seq *batch_seqs;
    uint32_t *batch_out;
    realm_generation **batch_gens; /* of the sequences */
    uint32_t n_prefill_rows;
    realm_sample_job *jobs; /* (max_out) */
    uint32_t n_jobs;
    realm_sampler *samplers;
    uint32_t n_samplers;
};

void realm_engine_wake(realm_engine *e);
/* Ends a generation in whatever state; publication follows at the end of the iteration. */
void realm_engine_end(realm_engine *e, realm_generation *g, realm_finish finish, realm_status status, const char *text);
void realm_engine_touch(realm_engine *e, realm_generation *g);

/* schedule.c */
void realm_schedule_enqueue(realm_engine *e, realm_generation *g, bool front);
void realm_schedule_unlink(realm_engine *e, realm_generation *g); /* from queue or running */
void realm_schedule_drop_pages(realm_engine *e, realm_generation *g);
void realm_schedule_sweep(realm_engine *e, uint64_t now_ns);
void realm_schedule_admit(realm_engine *e, uint64_t now_ns);
/* Fills e->batch and e->jobs; no rows when nothing can run now. */
void realm_schedule_build(realm_engine *e, uint64_t now_ns);

#endif
