/* sandbox/sandbox.h - WebAssembly programs: checked, compiled in a child process, run on fibers by a few workers.
 *
 *   sandbox    engine, import table, W workers, 2W for programs in debt, W + 1 for calls that take long,
 *              one clock thread, the cache of compiled programs
 *   program    one checked and compiled module; reference counted, so that a tenant's program is swapped while
 *              instances of the old one still run
 *   instance   one running copy: own store, own linear memory, own fiber; thrown away at its end
 *   call       one host call of an instance, as an import's callback sees it
 *
 *     realm_instance_start
 *            |
 *            v        worker takes it                     import: REALM_CALL_SUSPEND
 *         QUEUED --------------------------> RUNNING --------------------------------> PARKED
 *            ^                               |  |  ^                                      |
 *            |   time slice over, others     |  |  | realm_instance_wake meanwhile:       | realm_instance_wake, timer
 *            +---------- ready --------------+  |  | requeued instead of parked           |
 *            ^                                  |                                         |
 *            +----------------------------------|-----------------------------------------+
 *                                               v
 *                                             ENDED -> on_done (returned, trapped, ended by a limit or by cancel)
 *
 * A program cannot hold a worker: when its time slice is over and others are ready it goes to the end of the queue; one
 * that uses more than a third of a processor goes on in the background, its own code at the lowest priority; and past
 * its limit of CPU time between two waits it is ended. Nothing that a program does ends the process.
 *
 * Besides the workers, a thread that has nothing else to do may lend itself (realm_lender): it runs instances that were
 * brief so far, in place of a worker that would have to be woken for each.
 *
 * This is the only folder that includes wasmtime.h. It knows nothing of models, tenants or requests: what a program can
 * do is the import table that the layer above hands to realm_sandbox_open. All functions may be called from any thread
 * unless said otherwise.
 */
#ifndef REALM_SANDBOX_SANDBOX_H
#define REALM_SANDBOX_SANDBOX_H

#include "base/base.h"
#include "base/buf.h"

#define REALM_MODULE_BYTES_MAX (32u << 20)    /* a module's file */
#define REALM_MODULE_FUNCTIONS_MAX 50000u     /* functions that it defines */
#define REALM_MODULE_IMPORTS_MAX 1024u        /* imports, each a function of the table */
#define REALM_MODULE_EXPORTS_MAX 4096u        /* exports */
#define REALM_MODULE_TABLE_MAX 65536u         /* elements of a table at its start */
#define REALM_IMPORT_ARGS_MAX 16u             /* parameters of an import */
#define REALM_ANSWER_BYTES_MAX (1u << 20)     /* NUL-terminated answer of a `generate` export */
#define REALM_ARTIFACT_BYTES_MAX (512u << 20) /* a compiled module */

typedef struct realm_sandbox realm_sandbox;
typedef struct realm_program realm_program;
typedef struct realm_instance realm_instance;
typedef struct realm_call realm_call;

/* ---- imports: what programs can call ----------------------------------------------------------------------------- */

typedef enum realm_call_result {
    REALM_CALL_DONE,    /* *result is what the program gets */
    REALM_CALL_SUSPEND, /* park the instance; the callback runs again, with the same arguments, when it is woken */
    REALM_CALL_TRAP,    /* ends the program; realm_call_fail gave the reason. For programming errors alone */
    REALM_CALL_EXIT,    /* ends the program as if its entry point had returned *result, wherever it is */
    REALM_CALL_MOVE,    /* a BRIEF import on a lender's thread alone: run the callback again on a worker */
    REALM_CALL_LONG     /* an import with a flag, unless realm_call_may_be_long: run the callback again where it is */
} realm_call_result;

/* A host function. `args` holds one 64-bit value per parameter: integers and pointers zero-extended, floats as their
 * bits. Runs on a worker; never blocks. `*result` is 0 at entry, and what an import that returns an i32 returns; one
 * that returns another type calls realm_call_return. */
typedef realm_call_result (*realm_import_fn)(realm_call *call, const uint64_t *args, int32_t *result);

enum realm_import_flags {
    REALM_IMPORT_SUSPENDS = 1, /* may answer REALM_CALL_SUSPEND */
    /* Runs on the worker's own stack instead of the program's fiber, for about 0.3 us more: for anything that recurses
     * or calls into large libraries. May also answer REALM_CALL_SUSPEND. */
    REALM_IMPORT_OFF_FIBER = 2,
    /* Of those with another flag: takes microseconds and never waits for the lender's own work, so it may run on a
     * thread that is lent (realm_lender). Without it the instance goes on with a worker. Imports without any flag run
     * where the program runs, be it at the lowest priority: they are brief and take no lock. */
    REALM_IMPORT_BRIEF = 4
};

typedef struct realm_import {
    const char *module, *name;
    /* One letter per parameter: 'p' pointer or length (i32, with `wide` i64), 'i' i32, 'l' i64, 'f' f32, 'd' f64. */
    const char *params;
    bool wide;
    unsigned flags; /* realm_import_flags */
    realm_import_fn fn;
    char result; /* 0: an i32; else a letter as in `params`, or 'v': nothing */
} realm_import;

/* Inside a callback only; the same thread. */
void *realm_call_user(const realm_call *call);               /* realm_instance_params.user */
realm_instance *realm_call_instance(const realm_call *call); /* borrowed */
/* Host address of the program's bytes [ptr, ptr + len), or NULL when any of them is outside its memory (checked in
 * 64-bit arithmetic). Valid until the callback returns: fetch it again after a suspension, memory may have grown. */
void *realm_call_memory(const realm_call *call, uint64_t ptr, uint64_t len);
/* What an import whose result is not an i32 returns: an integer, or a float's bits. */
void realm_call_return(realm_call *call, uint64_t bits);
/* Whether a lender's thread runs this, so that REALM_CALL_MOVE may be answered. */
bool realm_call_lent(const realm_call *call);
/* Whether this thread is for calls that take many milliseconds; elsewhere they answer REALM_CALL_LONG at once. */
bool realm_call_may_be_long(const realm_call *call);
/* False for the first run of the callback, true when it runs again after REALM_CALL_SUSPEND. */
bool realm_call_resumed(const realm_call *call);
/* 64 zeroed bytes, 8-aligned, that last from the first run of the callback to REALM_CALL_DONE. */
void *realm_call_state(realm_call *call);
/* With REALM_CALL_SUSPEND: run again at this monotonic time even when nobody wakes the instance. 0: no such time. */
void realm_call_wake_at(realm_call *call, uint64_t deadline_ns);
/* True once realm_instance_cancel was called: waits should return now. */
bool realm_call_cancelled(const realm_call *call);
/* On a lender's thread: has fn(user) called after its run (realm_lender_finish), as waking somebody takes longer than
 * the rest of a brief call. False elsewhere, or when too many wait: the caller does it itself. */
bool realm_call_defer(const realm_call *call, void (*fn)(void *user), void *user);
/* Gives the reason of REALM_CALL_TRAP. Returns REALM_CALL_TRAP. */
realm_call_result realm_call_fail(realm_call *call, const char *fmt, ...) REALM_PRINTF(2, 3);

/* ---- sandbox ----------------------------------------------------------------------------------------------------- */

typedef struct realm_sandbox_config {
    uint32_t n_workers;        /* of each kind; 0: as many as cores, at most 8 */
    uint32_t max_instances;    /* queued, running or parked at once; at most 65536. 0: 1024, or fewer, down to 8, where
                                  there is no address space for so many */
    uint64_t max_memory_bytes; /* linear memory of any instance, whatever its own limit; 0: 4 GiB */
    const char *compiler_path; /* program that is run as `PROGRAM program compile-child IN OUT`; NULL: only trusted
                                  modules and cached artifacts can be opened */
    const char *cache_dir;     /* compiled programs, authenticated; made if absent; NULL: none are kept */
    const realm_import *imports; /* borrowed, must outlive the sandbox */
    size_t n_imports;
    uint32_t abi_major; /* modules that state a later major version are refused */
    bool no_signals;    /* bounds checks in code instead of by SIGSEGV: for sanitizers and hosts that own the signal */
} realm_sandbox_config;

/* Starts the workers. REALM_E_RANGE for a configuration past the bounds above; REALM_E_NOMEM; what the cache's folder
 * or a thread's start says. */
REALM_WARN_UNUSED realm_status realm_sandbox_open(realm_sandbox **out, const realm_sandbox_config *config,
                                                  realm_error *err);
/* Ends what still runs (their on_done is called) and joins the threads. Programs and instances must have been released
 * before or are released from on_done. NULL-safe. */
void realm_sandbox_close(realm_sandbox *s);

typedef struct realm_sandbox_stats {
    uint32_t instances;              /* now: queued, running, parked */
    uint32_t max_instances;          /* at once */
    uint32_t ready[2];               /* of them, queued: for the workers, for those in the background */
    uint64_t started, ended, failed; /* since opening; `failed` are those of `ended` whose status was not REALM_OK */
    uint64_t start_ns, starts_timed; /* time to make instances: sum and count */
    uint64_t compiled, cache_hits;   /* programs opened by compiling, and from the cache */
    uint64_t code_bytes;             /* of compiled code, of all programs that are open now */
} realm_sandbox_stats;
void realm_sandbox_get_stats(realm_sandbox *s, realm_sandbox_stats *out);

/* What `PROGRAM program compile-child IN OUT` does: argv is {"IN", "OUT"} as decimal descriptors. Sets its own limits,
 * compiles, writes the artifact or the error, and ends the process: at once, as the compiler's threads are still there
 * and nothing is left to be done at an exit. For the command line alone. */
_Noreturn void realm_sandbox_compile_child(int argc, char **argv);

/* ---- programs ---------------------------------------------------------------------------------------------------- */

typedef enum realm_program_kind {
    REALM_PROGRAM_MAIN,     /* exports realm_main() -> i32 */
    REALM_PROGRAM_GENERATE, /* exports realm_new() -> i32 and generate(ptr, len, model_id, options) -> ptr */
    REALM_PROGRAM_COMMAND   /* exports _start(), as the commands of WASI do */
} realm_program_kind;
/* Of either of the first two that also exports _initialize(), as the reactors of WASI do, that is called first. */

typedef struct realm_program_limits {
    uint64_t memory_bytes;         /* its memory may not start larger than this; 0: the sandbox's maximum */
    uint32_t compile_cpu_s;        /* 0: 30 */
    uint32_t compile_wall_ms;      /* 0: 60,000 */
    uint64_t compile_memory_bytes; /* address space of the child; 0: 2 GiB */
    bool trusted;                  /* part of Realm itself: compiled in this process when the cache has it not */
    uint64_t *compile_cpu_ns;      /* set to what the child took of processors, also where compiling failed; 0: there
                                      was none, as it was open or in the cache. NULL: nobody asks */
} realm_program_limits;

/* Checks a module, compiles it in a child process or takes the artifact from the cache, and prepares its instances. A
 * module that is open already is checked against `limits` and shared. The bytes are not kept. `limits` may be NULL.
 * Blocks for as long as compiling takes: not for a worker or an I/O thread. REALM_E_LIMIT, REALM_E_FORMAT,
 * REALM_E_UNSUPPORTED: the text names the limit, section, import or export at fault. REALM_E_TIMEOUT: compiling took
 * too long. */
REALM_WARN_UNUSED realm_status realm_program_open(realm_sandbox *s, const void *wasm, size_t len,
                                                  const realm_program_limits *limits, realm_program **out,
                                                  realm_error *err);
realm_program *realm_program_retain(realm_program *p); /* returns p */
void realm_program_release(realm_program *p);          /* NULL-safe */
/* How often it is held now: by callers, and once by each instance. */
uint32_t realm_program_holds(const realm_program *p);

typedef struct realm_program_item { /* an import or an export */
    const char *module;             /* NULL for an export */
    const char *name;
    const char *type; /* "func(i32, i32) -> i32", "memory(2 pages)" ... */
} realm_program_item;

typedef struct realm_program_info {
    realm_program_kind kind;
    bool reactor; /* exports _initialize, which is called before the entry point */
    bool memory64;
    bool from_cache;
    uint64_t size_bytes, artifact_bytes;
    uint64_t compile_ns;                         /* 0 from the cache */
    uint64_t memory_min_bytes, memory_max_bytes; /* max 0: none declared */
    uint32_t n_functions;                        /* defined */
    char sha256[65];
    const realm_program_item *imports, *exports; /* valid as long as the program */
    size_t n_imports, n_exports;
} realm_program_info;
void realm_program_get_info(const realm_program *p, realm_program_info *out);
/* The same as one JSON object, or as lines for people. `group` tells what an import belongs to in the words of whoever
 * made the import table; NULL, and NULL from it: nothing is said. */
REALM_WARN_UNUSED realm_status realm_program_describe(const realm_program *p, bool json,
                                                      const char *(*group)(const char *module, const char *name),
                                                      realm_buf *out);

/* ---- instances --------------------------------------------------------------------------------------------------- */

typedef struct realm_instance_result {
    realm_status status;   /* REALM_OK, REALM_E_PROGRAM (trap), REALM_E_LIMIT (CPU), REALM_E_TIMEOUT (wall time),
                              REALM_E_CANCELLED, REALM_E_NOMEM, REALM_E_CLOSED (sandbox closing) */
    int32_t value;         /* what realm_main returned, or REALM_CALL_EXIT gave; 0 for `generate` and `_start` */
    const char *text;      /* why, when status is not REALM_OK; "" otherwise */
    uint64_t cpu_ns;       /* spent in the program and its host calls */
    uint64_t slow_ns;      /* of that, in the background */
    uint64_t start_ns;     /* spent making the instance */
    uint64_t memory_bytes; /* of linear memory at the end */
} realm_instance_result;

typedef struct realm_instance_params {
    void *user;               /* realm_call_user, on_done, on_answer */
    uint64_t owner;           /* whose it is: owners take turns with long calls */
    uint64_t memory_bytes;    /* linear memory; 0: the sandbox's maximum */
    uint64_t cpu_ms_per_wake; /* CPU time between two waits; 0: 1000 */
    uint64_t wall_ms;         /* 0: no limit */
    uint32_t cancel_grace_ms; /* between cancel and being ended; 0: 1000 */
    /* For REALM_PROGRAM_GENERATE: the arguments of `generate`; copied. */
    const char *prompt;
    size_t prompt_len;
    int32_t model_id;
    /* And its answer, on a worker: takes the whole text and returns REALM_OK, or REALM_E_AGAIN to be called again with
     * the same text after a wake-up, or another failure, which ends the instance. NULL: the answer is dropped. */
    realm_status (*on_answer)(void *user, const char *text, size_t len, realm_error *err);
    /* CPU time while it is used: each time that a millisecond more of it has come together, and the rest before
     * on_done. What it was told adds up to the result's cpu_ns. On a worker or a thread that is lent, which holds no
     * lock; must be brief. NULL: nobody is told. */
    void (*on_cpu)(void *user, uint64_t ns);
    /* Once, on a worker, when the instance has ended and its memory is gone; `result` is valid during the call. */
    void (*on_done)(void *user, realm_instance *instance, const realm_instance_result *result);
} realm_instance_params;

/* Queues a new instance. REALM_E_BUSY when max_instances are there. *out is the caller's reference; on failure on_done
 * is not called. *out is set before any callback runs. */
REALM_WARN_UNUSED realm_status realm_instance_start(realm_program *p, const realm_instance_params *params,
                                                    realm_instance **out, realm_error *err);
/* Runs the callback of a suspended import again; wake-ups that come while the instance runs are not lost, more than one
 * count as one. Cheap, never blocks for long; allowed from any thread that holds a reference. */
void realm_instance_wake(realm_instance *i);
/* Asks the program to end: realm_call_cancelled becomes true and the instance is woken; after the grace period it is
 * ended wherever it is. */
void realm_instance_cancel(realm_instance *i);
realm_instance *realm_instance_retain(realm_instance *i); /* returns i */
/* Does not end it. NULL-safe. */
void realm_instance_release(realm_instance *i);

/* ---- a thread that lends itself ------------------------------------------------------------------------------------
 *
 * The engine's thread tells a program that its forward pass is done and then has nothing to compute before the program
 * has answered. Two wake-ups of a thread lie between the two, tens of microseconds each; none does when the thread that
 * told the program runs it itself.
 *
 *      begin     what is woken from now on is left in the queue for this thread
 *      ...       the owner tells its consumers
 *      run       runs what is ready; returns when nothing is, or soon after the owner was called back: a program that
 *                called it back itself is put down after that call, which is often the next pass of a lockstep loop
 *      finish    goes on with the program that was put down, and makes the calls that were deferred meanwhile; on
 *                another thread, if there is one with time
 *
 * Only instances are taken that ended their last slices within a tick, and only as far as imports that are BRIEF go;
 * whatever is longer, or ends, goes on with a worker. */
typedef struct realm_lender realm_lender;

/* One for each thread that lends itself. Closed before the sandbox, while its thread is not between begin and run. */
REALM_WARN_UNUSED realm_status realm_lender_open(realm_sandbox *s, realm_lender **out, realm_error *err);
void realm_lender_close(realm_lender *l); /* NULL-safe */
/* Both by the thread that lends itself, which holds no lock; a begin is followed by a run, which takes nothing more
 * after most_ns (0: as long as there is something). */
void realm_lender_begin(realm_lender *l);
void realm_lender_run(realm_lender *l, uint64_t most_ns);
/* Any thread; the owner may have begun again. */
bool realm_lender_has_rest(realm_lender *l);
void realm_lender_finish(realm_lender *l);
/* Any thread, any lock held: there is work for the owner. A program that it runs is put back at once. */
void realm_lender_recall(realm_lender *l);

#endif
