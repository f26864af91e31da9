/* engine/pages.h - KV pages as the engine's files see them, and token sequences over them.
 *
 * A page is what was computed for 32 tokens of one sequence, wherever it lies: in a slot of the backend's pool, in
 * memory outside it, in a file, or nowhere any more (lost: its tokens are computed again). Sequences hold pages by
 * reference; while one runs its pages are pinned: in the pool, in a slot that does not change.
 *
 *      take --> pinned <--pin / unpin--> idle --evict--> suspended --pin--> pinned
 *                                         |  (held, LRU)       |
 *                       last unref, keyed |                    +--> lost   (no room, or another's by right, or its
 *                                         |                                 file failed)
 *                                         v
 *                                       cached --evict--> free     (held by nobody, found by its key)
 *
 * Who may do what: references are counted by any thread, under the pool's lock, which is held for a few list operations
 * and never while content moves. Taking, pinning, evicting, and so every change of a slot, are the engine thread's.
 */
#ifndef REALM_ENGINE_PAGES_H
#define REALM_ENGINE_PAGES_H

#include "base/thread.h"
#include "compute/compute.h"
#include "tokenizer/tokenizer.h"

#define REALM_PAGE_KEY_BYTES 32u
#define REALM_SLOT_NONE UINT32_MAX

static inline uint32_t realm_pages_for(uint64_t n_tokens) {
    return (uint32_t)((n_tokens + REALM_KV_PAGE_TOKENS - 1) / REALM_KV_PAGE_TOKENS);
}

/* ---- spill.c: room for pages outside the pool -------------------------------------------------------------------- */

typedef enum realm_page_place {
    REALM_PAGE_IN_POOL,
    REALM_PAGE_IN_MEMORY,
    REALM_PAGE_IN_FILE,
    REALM_PAGE_LOST
} realm_page_place;

typedef struct realm_spill_job realm_spill_job;

typedef struct realm_spilled { /* one page's content; the pool's lock */
    realm_page_place place;    /* IN_MEMORY, IN_FILE or LOST */
    void *memory;
    uint32_t file_slot;
    uint64_t checksum;
    realm_spill_job *job; /* IN_FILE: on the way there or back */
    bool failed;          /* IN_FILE: it could not be written, or is not as it was */
} realm_spilled;

#define REALM_SPILL_WRITES 8u /* pages on their way into the file at once, each with a buffer */
#define REALM_SPILL_READS 4u  /* and out of it */

struct realm_spill_job { /* the pool's lock; `content` of one under way is the thread's that moves it */
    realm_spilled *of;   /* NULL: nobody wants it any more */
    bool reads, started, done;
    uint32_t file_slot;
    uint64_t checksum;
    void *content;         /* (page_bytes) */
    realm_spill_job *next; /* in the queue, or free */
};

typedef struct realm_spill_queue {
    realm_spill_job *head, *tail;
} realm_spill_queue;

typedef struct realm_spill {
    uint64_t page_bytes, memory_max;
    uint32_t file_max;            /* slots */
    int fd;                       /* -1: no file */
    realm_mutex *mu;              /* the pool's lock */
    void (*on_moved)(void *user); /* the file's thread, without a lock: something that was waited for has been moved */
    void *user;
    pthread_t thread; /* reads and writes the file */
    bool threaded;
    /* mu */
    uint64_t memory_used;
    uint32_t file_end, n_free_slots, cap_free_slots; /* slots below file_end that are free again */
    uint32_t *free_slots;
    uint32_t file_used;
    bool file_failed; /* writing has failed: no more is tried */
    bool shut, waited_for;
    realm_cond work;
    realm_spill_job jobs[REALM_SPILL_WRITES + REALM_SPILL_READS]; /* those that write come first */
    realm_spill_job *free_writes, *free_reads;
    realm_spill_queue writes, reads;
    double io_ns; /* running mean of writing or reading a page; 0: unknown */
} realm_spill;

typedef enum realm_spill_result {
    REALM_SPILL_OK,
    REALM_SPILL_FULL, /* no room */
    REALM_SPILL_BUSY, /* not yet: on_moved says when to ask again */
    REALM_SPILL_LOST  /* it cannot be had back */
} realm_spill_result;

/* `mu` is the pool's lock; s->on_moved may be set before pages move. `dir` NULL: no file, no thread.
 * REALM_E_IO names the folder in which none can be made. */
REALM_WARN_UNUSED realm_status realm_spill_init(realm_spill *s, realm_mutex *mu, uint64_t page_bytes,
                                                uint64_t memory_bytes, const char *dir, uint64_t dir_bytes,
                                                realm_error *err);
void realm_spill_release(realm_spill *s);
/* Engine's thread. Storing a page: reserve room, copy its content without the lock (false: no memory for it), then
 * start, or free. Until then nothing of `out` is anybody else's. */
REALM_WARN_UNUSED realm_spill_result realm_spill_reserve(realm_spill *s, realm_spilled *out); /* under the lock */
REALM_WARN_UNUSED bool realm_spill_copy(realm_spill *s, realm_spilled *to, realm_backend *b, const realm_kv *kv,
                                        uint32_t slot);
void realm_spill_start(realm_spill *s, realm_spilled *to); /* under the lock; `to` stays where it is from now on */
/* Engine's thread, under the lock: its content, valid until it is freed or more is stored; BUSY while it is read from
 * the file. `ahead`: only begins to read it where that keeps nobody from reading. */
REALM_WARN_UNUSED realm_spill_result realm_spill_fetch(realm_spill *s, realm_spilled *from, bool ahead,
                                                       const void **content);
/* Under the lock: gives room back. Memory is put into the chain `*garbage`, freed by realm_spill_collect. */
void realm_spill_free(realm_spill *s, realm_spilled *what, void **garbage);
void realm_spill_collect(void *garbage);

/* ---- pages.c ----------------------------------------------------------------------------------------------------- */

typedef struct realm_page realm_page;
typedef struct realm_page_owner realm_page_owner;

typedef struct realm_page_list { /* least recently used first */
    realm_page *head, *tail;
    uint32_t n;
} realm_page_list;

typedef enum realm_page_state {
    REALM_PAGE_UNLISTED,
    REALM_PAGE_IDLE,
    REALM_PAGE_CACHED,
    REALM_PAGE_AWAY
} realm_page_state;

struct realm_page {   /* the pool's lock */
    uint32_t refs;    /* sequences and shares that hold it */
    uint32_t pins;    /* of running generations */
    uint32_t guesses; /* of refs: of sequences that are only guessed, which share nothing as far as others can see */
    uint32_t slot;    /* IN_POOL */
    realm_page_place place;
    realm_page_state state;
    bool moving;  /* the engine's thread is moving its content */
    bool has_key; /* all its tokens are computed and `key` says which */
    bool findable;
    realm_spilled spilled; /* outside the pool */
    realm_page_owner *owner;
    uint8_t key[REALM_PAGE_KEY_BYTES];
    realm_page *hash_next;
    struct {
        realm_page *next, *prev;
    } link[2]; /* in the pool's list and in the owner's; the first also chains free ones */
};

struct realm_page_owner { /* a part of each account */
    uint64_t id;          /* never used twice, not 0 */
    bool is_public;       /* its findable pages are everybody's and stay */
    bool has_secret;
    uint8_t secret[32];
    /* engine's thread */
    uint32_t max;    /* pages in the pool; UINT32_MAX: no limit */
    uint32_t weight; /* of its part of the room outside the pool; not 0 */
    /* the pool's lock */
    uint32_t held, pinned; /* pages in the pool that somebody holds, that somebody runs on; shared ones once */
    realm_page_list idle, cached, away;      /* away: held, suspended */
    realm_page_owner *next_away, *prev_away; /* of those that have some away */
};

typedef struct realm_page_slab realm_page_slab;
typedef struct realm_page_pool {
    realm_backend *backend;
    realm_kv *kv;
    uint64_t page_bytes;
    uint32_t n; /* slots */
    uint32_t table_mask;
    realm_spill spill;
    double move_ns;         /* engine's thread: running mean of copying a page out or in; 0: unknown */
    uint64_t move_until_ns; /* engine's thread: past it no more pages are moved in this step, but one */
    uint32_t n_moved;       /* in this step */
    bool cut_short;         /* some were not, for that */
    char model[96];         /* a part of keys */
    realm_mutex mu;
    /* mu */
    uint32_t n_free;
    uint32_t *free_slots;
    uint64_t *slot_owner; /* id of whose content was in it last; 0: never used */
    realm_page_slab *slabs;
    realm_page *free_pages;
    realm_page_list idle, cached, away;
    realm_page_owner *owners_away;
    realm_page **table; /* findable pages by key */
    uint32_t n_public;
    uint64_t suspends, resumes, dropped;
    uint64_t prefix_asked, prefix_found;
} realm_page_pool;

typedef enum realm_page_result {
    REALM_PAGE_OK,
    REALM_PAGE_NONE_FREE,
    REALM_PAGE_OWNER_LIMIT,
    REALM_PAGE_IS_LOST,
    REALM_PAGE_LATER /* content has to be moved first: in the next step, or when spill's on_moved says */
} realm_page_result;

/* Takes over kv, also on failure. */
REALM_WARN_UNUSED realm_status realm_pool_init(realm_page_pool *p, realm_backend *b, realm_kv *kv, uint32_t n_pages,
                                               realm_error *err);
void realm_pool_release(realm_page_pool *p); /* whatever is in it */
/* Forgets what an owner has cached; any thread. After it nothing in the pool names the owner, if nobody holds pages. */
void realm_pool_forget(realm_page_pool *p, realm_page_owner *o);
/* Pages that could be had: free, cached or idle. */
uint32_t realm_pool_available(realm_page_pool *p);

/* Engine's thread: pages are moved until then, at least one, before LATER is the answer. */
void realm_pool_begin_step(realm_page_pool *p, uint64_t move_until_ns);
/* Engine's thread: what moving a page out, or in, costs by what was measured, in ns; 0: unknown. */
double realm_pool_move_ns(realm_page_pool *p);

/* Engine's thread. A pinned page for the owner's own use, held once, zeroed if another's content was in its slot.
 * Forgets cached pages and suspends idle ones to make room: the owner's own where its limit is what stands against it,
 * else whoever's were least recently used. */
realm_page_result realm_page_take(realm_page_pool *p, realm_page_owner *o, realm_page **page);
/* Engine's thread: brings a page that the caller holds back into the pool and pins it. */
realm_page_result realm_page_pin(realm_page_pool *p, realm_page *page);
/* Engine's thread: one that will be pinned soon is read from the file meanwhile, where nobody else reads. */
void realm_page_fetch(realm_page_pool *p, realm_page *page);
/* Any thread. */
void realm_page_ref_locked(realm_page_pool *p, realm_page *page); /* under the pool's lock */
void realm_pages_ref(realm_page_pool *p, realm_page *const *pages, uint32_t n);
void realm_pages_unref(realm_page_pool *p, realm_page *const *pages, uint32_t n);

/* ---- sequences, seq.c and pages.c -------------------------------------------------------------------------------- */

typedef struct realm_seq {
    realm_token *tokens;
    uint32_t n_tokens, cap_tokens;
    realm_page **pages;
    uint32_t *slots; /* of pinned pages, else REALM_SLOT_NONE */
    uint32_t n_pages, cap_pages;
    uint32_t n_unpinned;
    uint32_t n_past; /* leading tokens that are computed; their pages are there */
    bool guess;      /* guess.c: its holds do not count as sharing */
} realm_seq;

/* Room for n tokens and their pages; false without memory, then nothing has changed. */
REALM_WARN_UNUSED bool realm_seq_reserve(realm_seq *s, uint32_t n_tokens);
void realm_seq_release(realm_page_pool *p, realm_seq *s);
/* Keeps the first n pages, and what they hold of n_past. Pinned pages: engine's thread. */
void realm_seq_keep_pages(realm_page_pool *p, realm_seq *s, uint32_t n);
void realm_seq_truncate(realm_page_pool *p, realm_seq *s, uint32_t n_tokens);
/* A page more: pinned if it has a slot here. There must be room. */
void realm_seq_add_page(realm_seq *s, realm_page *page, bool pinned);
/* A new pinned page behind the others; there must be room. Engine's thread. */
realm_page_result realm_seq_take_page(realm_page_pool *p, realm_page_owner *o, realm_seq *s);
/* Engine's thread: makes page `at` of a sequence, pinned, writable by it: a shared one is copied (copy on write), a
 * findable one is forgotten. A guess may write where its context's sequence is the only other holder: behind what that
 * has computed, and nobody else does while it is there. */
realm_page_result realm_seq_own(realm_page_pool *p, realm_page_owner *o, realm_seq *s, uint32_t at);
bool realm_seq_shares(realm_page_pool *p, const realm_seq *s,
                      uint32_t at); /* engine's thread: own would do something */
/* Makes the pages of `s` those of `from`, from the first one that differs on, unpinned; what `s` had there is let go.
 * There must be room. Pinned pages: engine's thread. */
void realm_seq_share_pages(realm_page_pool *p, realm_seq *s, const realm_seq *from);
void realm_seq_unpin(realm_page_pool *p, realm_seq *s); /* engine's thread */
/* Pages that must become pinned to hold n_tokens: those of other running sequences are already. */
uint32_t realm_seq_pages_wanted(realm_page_pool *p, const realm_seq *s, uint64_t n_tokens);
/* Engine's thread: pins those pages that are in the pool. */
void realm_seq_pin_present(realm_page_pool *p, realm_seq *s);

/* ---- findable pages, prefix.c ------------------------------------------------------------------------------------ */

/* Under the pool's lock: nobody finds it any more. */
void realm_page_hide(realm_page_pool *p, realm_page *page);
/* Engine's thread: full pages of the sequence that have no key yet get one, and can be found. */
void realm_prefix_note(realm_page_pool *p, realm_page_owner *o, realm_seq *s);
/* Any thread: nobody finds the sequence's pages any more, from the one at `from` on. */
void realm_prefix_hide(realm_page_pool *p, realm_seq *s, uint32_t from);
/* Engine's thread: continues what is computed of a sequence with pages that can be found, n_most tokens at most;
 * returns how many tokens that added. */
uint32_t realm_prefix_take(realm_page_pool *p, realm_page_owner *o, realm_page_owner *everybody, realm_seq *s,
                           uint32_t n_most);

#endif
