/* sandbox/internal.h - inside the folder: the objects behind sandbox.h and the functions between its files.
 *
 *   engine.c    configuration of Wasmtime, the linker, opening and closing
 *   sched.c     workers and lenders, ready queue, clock thread
 *   background.c  programs in debt: idle workers, porters
 *   long.c      host calls that take long, in turns of owners
 *   instance.c  one instance from start to end
 *   call.c      host calls: what an import's callback sees
 *   program.c   modules to programs
 *   compile.c   the child process that compiles
 *   cache.c     compiled programs on disk
 *   module.c    sections of a module (module.h)
 *
 * Locks (all of rank LEAF, never two at once): `programs_mu` guards the list of programs, `instances_mu` the list of
 * instances, `ready_mu` the ready queue, `long_mu` the turns of long calls, `timer_mu` the heap of deadlines and the
 * clock thread's sleep, `mu` of an inbox what those who take from it share. An idle worker takes none of them but that
 * of its own inbox, which idle workers alone take: it may lose its processor for seconds, whatever it holds.
 */
#ifndef REALM_SANDBOX_INTERNAL_H
#define REALM_SANDBOX_INTERNAL_H

#include <semaphore.h>
#include <stdatomic.h>
#include <wasm.h>
#include <wasmtime.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/rota.h"
#include "base/str.h"
#include "base/thread.h"
#include "crypto/crypto.h"
#include "sandbox/module.h"
#include "sandbox/sandbox.h"

/* Between two epochs: how long a program runs before it may be put back. */
#define REALM_TICK_NS (1 * REALM_NS_PER_MS)
/* Credit of CPU time: a program earns a third of the time that passes, up to REALM_SOFT_NS, and spends what it uses.
 * One in debt runs in the background. */
#define REALM_SOFT_NS (3 * REALM_NS_PER_MS)
#define REALM_DEBT_NS (6 * REALM_NS_PER_MS) /* at most, so that a burst is forgotten in time */
#define REALM_EARN_DIV 3
#define REALM_TELL_NS REALM_NS_PER_MS /* CPU time that comes together before on_cpu is told */
#define REALM_CALL_STATE_BYTES 64
#define REALM_DEFERRED_MAX 64u /* calls that wait for a lender's finish */
/* Between two epochs while only instances run whose slices are brief (realm_instance_is_brief): the clock's thread
 * takes a processor from somebody each time. */
#define REALM_SLOW_TICK_NS (16 * REALM_NS_PER_MS)
#define REALM_LONG_NS (4 * REALM_NS_PER_MS) /* a host call that took so long is followed by others of the kind */
#define REALM_LONG_CALLS 16u                /* so many */
#define REALM_CODE_NS (4 * REALM_NS_PER_MS) /* CPU time after which an idle worker hands a program back */
#define REALM_BRIEF_NS REALM_TICK_NS        /* longest slice that counts as brief */
/* So many brief slices must follow one that was not, until an instance counts as brief: one that a worker ran, one that
 * had to move from a lender to a worker for a call, one that held a lender up. */
#define REALM_BRIEF_AFTER_LONG 2u
#define REALM_BRIEF_AFTER_MOVE 8u
#define REALM_BRIEF_AFTER_HOLD 32u
/* And these count only after so many times as long as the lender was held up: waits of no length cost nothing. */
#define REALM_BARRED_TIMES 32u

/* Wasmtime's pool gives an instance the memory that another one had. The thread sanitizer does not see the locks by
 * which it does that, as it is not built with it, so it is told. */
#ifdef __SANITIZE_THREAD__
void __tsan_acquire(void *address);
void __tsan_release(void *address);
#define REALM_POOL_GAVE(sandbox) __tsan_acquire(sandbox)
#define REALM_POOL_TAKES(sandbox) __tsan_release(sandbox)
#else
#define REALM_POOL_GAVE(sandbox) ((void)(sandbox))
#define REALM_POOL_TAKES(sandbox) ((void)(sandbox))
#endif

/* What must be the same where a module is compiled and where it runs. */
typedef struct realm_tuning {
    uint64_t reservation_bytes; /* address space of a memory slot */
    uint64_t guard_bytes;
    uint32_t signals; /* 0 or 1 */
    uint32_t wasm_stack_bytes;
} realm_tuning;

/* Where a host call stands; written by whichever thread runs the instance. */
typedef enum realm_call_phase {
    REALM_CALL_NONE,    /* no asynchronous call is open */
    REALM_CALL_TODO,    /* a worker must run the callback now */
    REALM_CALL_WAITING, /* a worker must run it after a wake-up */
    REALM_CALL_FINISHED /* the fiber takes the result when it is polled */
} realm_call_phase;

struct realm_call {
    realm_instance *instance;
    const realm_import *import;
    wasmtime_caller_t *caller; /* while the callback of a synchronous import runs; NULL otherwise */
    uint8_t *base;             /* the program's memory, NULL: not looked up yet */
    uint64_t size;
    realm_call_phase phase;
    bool resumed;
    realm_call_result outcome;
    int32_t value; /* what an i32 import returns, or the program's exit */
    uint64_t bits; /* what any other import returns */
    uint64_t args[REALM_IMPORT_ARGS_MAX];
    wasmtime_val_t *results; /* where an asynchronous call's result goes */
    wasm_trap_t **trap;
    uint64_t wake_at_ns;
    _Alignas(8) unsigned char state[REALM_CALL_STATE_BYTES];
};

/* Scheduling state of an instance; transitions in the drawing of sandbox.h. NOTIFIED is RUNNING with a wake-up that
 * came meanwhile. ASIDE and AWAY: queued for an idle worker, and with one (background.c); what comes next is its own
 * code, which has no use for a wake-up. */
enum {
    REALM_INST_QUEUED,
    REALM_INST_RUNNING,
    REALM_INST_NOTIFIED,
    REALM_INST_PARKED,
    REALM_INST_ASIDE,
    REALM_INST_AWAY,
    REALM_INST_ENDED
};

/* Which step of its life the instance is in. */
typedef enum realm_inst_step {
    REALM_STEP_MAKE,     /* nothing exists yet */
    REALM_STEP_START,    /* instantiation, the module's start function */
    REALM_STEP_INIT,     /* _initialize */
    REALM_STEP_MAIN,     /* realm_main or _start */
    REALM_STEP_NEW,      /* realm_new */
    REALM_STEP_ALLOC,    /* realm_alloc */
    REALM_STEP_GENERATE, /* generate */
    REALM_STEP_ANSWER,   /* handing over the answer */
    REALM_STEP_END       /* nothing is left to run: what remains is a worker's */
} realm_inst_step;

typedef struct realm_idler realm_idler; /* an idle worker */

struct realm_lender {
    realm_sandbox *sandbox;
    _Atomic(pthread_t) thread;      /* since the first begin */
    atomic_bool recalled;           /* its owner has work */
    atomic_bool running;            /* between begin and the end of run */
    _Atomic(realm_instance *) rest; /* put down; queued for whoever finishes */
    realm_mutex mu;                 /* LEAF: what follows */
    struct {
        void (*fn)(void *user);
        void *user;
    } deferred[REALM_DEFERRED_MAX];
    uint32_t n_deferred;
};

struct realm_instance {
    realm_rota_item turn; /* long_mu; first */
    bool waits_turn;      /* long_mu */
    realm_sandbox *sandbox;
    realm_program *program;
    realm_instance_params params;
    atomic_uint refs;
    atomic_int state;
    atomic_int kill; /* realm_status: why it must end, or 0 */
    atomic_bool cancelled;
    realm_instance *next_ready;          /* ready queue, porters' inbox */
    realm_instance *next_idle;           /* idle workers' inbox, what they left */
    realm_instance *prev_all, *next_all; /* every instance */

    /* deadlines, under timer_mu */
    uint64_t wall_ns, grace_ns, wake_ns; /* 0: none */
    uint64_t heap_key;
    uint32_t heap_at; /* 1-based place in the heap; 0: not in it */

    /* owned by the worker or lender that runs it */
    realm_inst_step step;
    realm_lender *lender;     /* NULL: a worker */
    bool put_down;            /* once already: it goes on to its next wait */
    uint32_t brief_needed;    /* brief slices until it counts as brief */
    uint64_t barred_until_ns; /* those that began before do not count */
    bool long_slice;          /* counted in n_long */
    int32_t value;            /* of its entry point, at its end */
    wasmtime_store_t *store;
    wasmtime_context_t *context;
    wasmtime_instance_t handle;
    wasmtime_memory_t memory;
    bool has_memory;
    wasmtime_call_future_t *future;
    wasmtime_func_t func;
    wasmtime_val_t args[4], results[1];
    wasm_trap_t *trap;
    wasmtime_error_t *error;
    realm_call call;
    char *prompt;
    char *answer;
    size_t answer_len;
    uint64_t prompt_at;
    bool wake_set;                   /* wake_ns was given a value */
    bool background;                 /* in debt */
    _Atomic(realm_idler *) idler;    /* AWAY: with whom */
    bool away;                       /* an idle worker polls it, or did and nobody has looked at what came of it */
    bool long_call;                  /* its call is for a thread for long calls, or runs there */
    const realm_import *long_import; /* whose call took long; its next so many are taken to be long, too */
    uint32_t long_left;
    bool code_done;          /* the future was complete */
    uint64_t away_cpu_ns;    /* thread time when it began; then, what it took */
    int64_t credit_ns;       /* see REALM_SOFT_NS */
    uint64_t credit_at_ns;   /* what was earned until then is in it */
    uint64_t slice_start_ns; /* since a worker took it */
    bool by_thread;          /* the slice saw a tick, or a host call that may be long */
    uint64_t slice_cpu_ns;   /* thread time when the slice began; 0: on a lender's thread */
    uint64_t host_ns;        /* of the slice, in host calls off the fiber */
    uint64_t wake_cpu_ns;    /* CPU time of earlier slices since the last wait */
    uint64_t cpu_ns;         /* all */
    uint64_t told_ns;        /* of that and the slice that runs, on_cpu was told */
    uint64_t slow_ns;        /* in the background: with idle workers, and in the slices between */
    bool slice_slow, ticked; /* it began in the background; a tick came */
    uint64_t spared_ns;      /* of the slice, what does not count against the credit */
    uint64_t start_ns;
    realm_error fail;   /* why the host ended it */
    bool exited;        /* it ended itself, with exit_value */
    int32_t exit_value; /* as if its entry point had returned it */
};

struct realm_program {
    atomic_uint refs; /* from 1 to 0 under programs_mu, so that one that is found there stays */
    realm_sandbox *sandbox;
    realm_program *next; /* programs_mu */
    wasmtime_module_t *module;
    wasmtime_instance_pre_t *pre;
    realm_arena arena; /* what `m` points to */
    realm_module m;
    uint64_t size_bytes, artifact_bytes, compile_ns;
    bool from_cache;
    char sha256[REALM_SHA256_HEX];
};

/* Instances that are ready, first in, first out, and the workers that take them. */
typedef struct realm_ready {
    realm_sandbox *sandbox;
    realm_cond cond;
    realm_instance *head, *tail;
    atomic_uint n;     /* read by the epoch callback without the lock: a hint */
    uint32_t n_asleep; /* workers in realm_cond_wait */
    bool waking;       /* one of them has been signalled and is not up yet */
    pthread_t *workers;
    uint32_t n_started;
} realm_ready;

/* What anybody may fill without a lock, first in, first out. The semaphore counts what is in it, and one more for each
 * thread that is to end. */
typedef struct realm_inbox {
    _Atomic(realm_instance *) pushed; /* the newest first */
    atomic_uint n;
    sem_t sem;
    realm_mutex mu;
    realm_instance *head, *tail; /* taken over from `pushed`; under mu */
    bool idle;                   /* linked through next_idle */
} realm_inbox;

struct realm_idler {
    realm_sandbox *sandbox;
    pthread_t thread;
    _Atomic(pid_t) tid;
    atomic_bool hurried; /* somebody raised its priority */
};

/* How often the epoch advances: not at all, every REALM_SLOW_TICK_NS, every REALM_TICK_NS. */
typedef enum realm_pace { REALM_PACE_STILL, REALM_PACE_SLOW, REALM_PACE_FAST } realm_pace;

struct realm_sandbox {
    wasm_engine_t *engine;
    wasmtime_linker_t *linker;
    realm_tuning tuning;
    const realm_import *imports;
    size_t n_imports;
    uint32_t abi_major;
    uint32_t max_instances;
    uint64_t max_memory_bytes;
    char *compiler_path, *cache_dir;
    uint8_t cache_secret[REALM_SHA256_BYTES];

    realm_mutex programs_mu;
    realm_program *programs; /* every one, so that a module that is open already is shared */
    uint64_t code_bytes;     /* of their artifacts */

    realm_mutex instances_mu;
    realm_cond empty_cond; /* close: no instance is left */
    realm_instance *all;
    uint32_t n_instances; /* queued, running, parked */
    uint32_t n_ending;    /* in or after on_done */
    bool closing;

    realm_mutex ready_mu;
    realm_ready ready;
    uint32_t n_lenders; /* between begin and run */
    bool stopping;

    realm_inbox idle, porters;       /* for idle workers, for porters */
    _Atomic(realm_instance *) stale; /* what idle workers took too late, with a reference each */
    realm_idler *idlers;
    pthread_t *porter_threads;
    uint32_t n_idlers, n_porters; /* started */

    realm_mutex long_mu;
    realm_cond long_cond;
    realm_rota long_turns;
    pthread_t long_threads[REALM_ROTA_PLACES_MAX];
    uint32_t n_long_threads;
    bool long_stop;

    realm_mutex timer_mu;
    realm_cond timer_cond;
    realm_instance **heap; /* [1 .. n_heap], least key first */
    uint32_t n_heap;
    uint64_t timer_sleeps_until_ns;
    bool timer_stop;
    atomic_int pace;               /* of the clock thread, realm_pace */
    atomic_uint n_running, n_long; /* instances; of them, those whose slice is not expected to be brief */
    atomic_uint n_slices;          /* begun: whether anything ran since the last tick; wraps */

    pthread_t timer;
    uint32_t n_workers; /* of each kind: workers, idle workers, porters */
    bool timer_started;

    atomic_ullong started, ended, failed, start_ns, starts_timed, compiled, cache_hits;
};

/* engine.c */
wasm_config_t *realm_engine_config_new(const realm_tuning *t, bool parallel);
/* Takes the error, frees it, writes its first line. */
realm_status realm_wasmtime_error(wasmtime_error_t *e, realm_status code, const char *where, realm_error *err);
/* One line without control bytes; the text up to the first blank line. */
void realm_one_line(char *out, size_t cap, const char *s, size_t len);

/* sched.c */
realm_status realm_sched_start(realm_sandbox *s, realm_error *err);
void realm_sched_stop(realm_sandbox *s); /* no instance is left */
void realm_sched_push(realm_sandbox *s, realm_instance *i);
/* A slice begins (ends): the clock thread ticks as its kind needs. */
void realm_sched_slice_begin(realm_sandbox *s, realm_instance *i, bool brief);
void realm_sched_slice_end(realm_sandbox *s, realm_instance *i);
/* The slice turned out to be long. */
void realm_sched_slice_long(realm_sandbox *s, realm_instance *i);
/* Puts the instance where its least deadline says; the caller holds timer_mu. */
void realm_timer_update(realm_sandbox *s, realm_instance *i);
void realm_timer_set_wake(realm_sandbox *s, realm_instance *i, uint64_t at_ns);
void realm_timer_remove(realm_sandbox *s, realm_instance *i);

/* background.c */
realm_status realm_background_start(realm_sandbox *s, realm_error *err);
void realm_background_stop(realm_sandbox *s);
/* Whoever has it: to an idle worker if its own code comes next, to a porter otherwise. */
void realm_background_push(realm_sandbox *s, realm_instance *i);
/* After `kill` was set: false if it is neither ASIDE nor AWAY. */
bool realm_background_kill(realm_sandbox *s, realm_instance *i);

/* long.c */
realm_status realm_long_start(realm_sandbox *s, realm_error *err);
void realm_long_stop(realm_sandbox *s);
/* Whoever has it: false if it was killed, and is to go on elsewhere. */
bool realm_long_push(realm_sandbox *s, realm_instance *i);
/* After `kill` was set: true if it waited for its turn; the caller has it now. */
bool realm_long_withdraw(realm_sandbox *s, realm_instance *i);

/* instance.c */
/* Took it from the queue: a worker (lender NULL) or a lender. */
void realm_instance_run(realm_instance *i, realm_lender *lender);
/* On an idle worker: its own code, until it calls, ends, or has run for long enough. */
void realm_instance_run_code(realm_instance *i);
/* Whoever has it: nothing but its own code comes next. */
bool realm_instance_is_code(const realm_instance *i);
/* When it makes a call: whether that is taken to be long. */
bool realm_instance_expects_long(realm_instance *i);
/* Whoever has it: it may run on a thread that is lent. */
bool realm_instance_is_brief(const realm_instance *i);
void realm_instance_kill(realm_instance *i, realm_status why);
/* Adds what it has earned; whoever has it: the worker that runs it, or who puts it into a queue. */
void realm_instance_earn(realm_instance *i);
/* Records why the host ends it, from `kill`. */
void realm_instance_fill_kill(realm_instance *i);

/* call.c */
realm_status realm_linker_define(realm_sandbox *s, realm_error *err);
/* Runs the open call's callback on this thread's stack; the phase says what came of it. */
void realm_call_run(realm_call *c);

/* compile.c */
/* And sets what limits->compile_cpu_ns points at. */
realm_status realm_compile(realm_sandbox *s, const void *wasm, size_t len, const realm_program_limits *limits,
                           char **artifact, size_t *artifact_len, realm_error *err);

/* cache.c: a miss is REALM_E_NOT_FOUND without error text; a file that was not written by this server is a miss too,
 * and logged. */
realm_status realm_cache_open(realm_sandbox *s, realm_error *err);
void realm_cache_key(const realm_sandbox *s, const char *sha256, char out[REALM_SHA256_HEX]);
realm_status realm_cache_get(realm_sandbox *s, const char *key, char **artifact, size_t *len, const char **payload);
void realm_cache_put(realm_sandbox *s, const char *key, const char *artifact, size_t len);

#endif
