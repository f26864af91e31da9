/* sandbox/engine.c - how Wasmtime is configured, and the life of a sandbox.
 *
 * Choices, and why:
 *   - Cranelift alone; core modules; SIMD, bulk memory, tail calls and memory64 on; threads, shared memory, multiple
 *     memories, exceptions and garbage collection off. Not Wasmtime's WASI: what a program can do is the import table.
 *   - The pooling allocator, so that an instance costs microseconds: slots for every instance are reserved as address
 *     space at start. A slot of 4 GiB lets 32-bit programs run without bounds checks in code; where so much address
 *     space cannot be had the slots are as large as the largest memory allowed, and checks are compiled in.
 *   - A slot's first 64 KiB stay resident and are zeroed by the processor when it is reused; the rest goes back to the
 *     kernel. That keeps parallel starts off the lock of the address space.
 *   - Epochs, not fuel: about 10% instead of 25% of a program's speed, and the clock thread decides the slice.
 *   - No unwind tables are registered: backtraces come from Wasmtime's own tables.
 */
#include <limits.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "sandbox/internal.h"

#define SLOT_BYTES (UINT64_C(4) << 30)
#define GUARD_BYTES (UINT64_C(32) << 20)
#define ADDRESS_SPACE_MAX (UINT64_C(64) << 40) /* of the 128 TiB that a process has */
#define RESIDENT_BYTES (64u << 10)
#define WASM_STACK_BYTES (512u << 10)
#define HOST_STACK_BYTES (512u << 10) /* what host calls on the fiber may use */
#define TABLES_PER_INSTANCE 2u
#define INSTANCES_DEFAULT 1024u
#define INSTANCES_LEAST 8u /* that the default may become */
#define INSTANCES_MAX 65536u
#define WORKERS_MAX 64u

void realm_one_line(char *out, size_t cap, const char *s, size_t len) {
    char clean[REALM_ERROR_TEXT_MAX];
    size_t n = 0;
    for (size_t i = 0; i < len && n + 3 < sizeof clean; i++) {
        if (s[i] != '\n') {
            clean[n++] = s[i];
            continue;
        }
        if (i + 1 < len && s[i + 1] == '\n') { /* the causes follow: keep the first, without its heading and number */
            const char *colon = memchr(s + i, ':', len - i);
            if (!colon || strncmp(s + i + 2, "Caused by", 9)) break;
            clean[n++] = ':';
            i = (size_t)(colon - s);
            while (i + 1 < len &&
                   (s[i + 1] == '\n' || s[i + 1] == ' ' || (s[i + 1] >= '0' && s[i + 1] <= '9') || s[i + 1] == ':'))
                i++;
        }
        clean[n++] = ' ';
        while (i + 1 < len && s[i + 1] == ' ') i++;
    }
    while (n > 0 && clean[n - 1] == ' ') n--;
    realm_escape(out, cap, clean, n);
}

realm_status realm_wasmtime_error(wasmtime_error_t *e, realm_status code, const char *where, realm_error *err) {
    wasm_byte_vec_t msg;
    char line[REALM_ERROR_TEXT_MAX - 64];
    wasmtime_error_message(e, &msg);
    realm_one_line(line, sizeof line, msg.data, msg.size);
    wasm_byte_vec_delete(&msg);
    wasmtime_error_delete(e);
    return realm_error_set(err, code, "%s: %s", where, line);
}

wasm_config_t *realm_engine_config_new(const realm_tuning *t, bool parallel) {
    wasm_config_t *c = wasm_config_new();
    if (!c) return NULL;
    wasmtime_config_strategy_set(c, WASMTIME_STRATEGY_CRANELIFT);
    wasmtime_config_cranelift_opt_level_set(c, WASMTIME_OPT_LEVEL_SPEED);
    wasmtime_config_cranelift_debug_verifier_set(c, false);
    wasmtime_config_parallel_compilation_set(c, parallel);
    wasmtime_config_epoch_interruption_set(c, true);
    wasmtime_config_native_unwind_info_set(c, false);
    wasmtime_config_signals_based_traps_set(c, t->signals != 0);
    wasmtime_config_wasm_memory64_set(c, true);
    wasmtime_config_wasm_multi_memory_set(c, false);
    wasmtime_config_wasm_simd_set(c, true);
    wasmtime_config_wasm_relaxed_simd_set(c, true);
    wasmtime_config_wasm_relaxed_simd_deterministic_set(c, true);
    wasmtime_config_wasm_tail_call_set(c, true);
    wasmtime_config_memory_reservation_set(c, t->reservation_bytes);
    wasmtime_config_memory_guard_size_set(c, t->guard_bytes);
    wasmtime_config_memory_may_move_set(c, false);
    wasmtime_config_memory_init_cow_set(c, true);
    wasmtime_config_max_wasm_stack_set(c, t->wasm_stack_bytes);
    wasmtime_config_async_stack_size_set(c, t->wasm_stack_bytes + HOST_STACK_BYTES);
    return c;
}

/* Wasmtime panics when its reservations fail, so they are tried first. */
static bool address_space_fits(uint64_t bytes) {
    if (bytes > ADDRESS_SPACE_MAX) return false;
    void *p = mmap(NULL, (size_t)bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return false;
    munmap(p, (size_t)bytes);
    return true;
}

static bool tuning_fits(const realm_tuning *t, uint64_t max_memory_bytes, uint32_t n) {
    uint64_t slot = REALM_MAX(t->reservation_bytes, max_memory_bytes) + t->guard_bytes;
    uint64_t rest = TABLES_PER_INSTANCE * (REALM_MODULE_TABLE_MAX * UINT64_C(16)) + t->wasm_stack_bytes +
                    HOST_STACK_BYTES + (UINT64_C(64) << 10);
    return address_space_fits((slot + rest) * n + (UINT64_C(1) << 30));
}

/* Whole slots where there is address space for them, else as much as a memory may have. A number of instances that
 * nobody asked for gives way to a limit of virtual memory, or to what an emulator has (valgrind: 128 GiB). */
static bool choose_tuning(realm_sandbox *s, bool may_be_fewer) {
    realm_tuning *t = &s->tuning;
    t->wasm_stack_bytes = WASM_STACK_BYTES;
    t->guard_bytes = GUARD_BYTES;
    for (uint32_t n = s->max_instances;; n /= 2) {
        s->max_instances = n;
        t->reservation_bytes = SLOT_BYTES;
        if (tuning_fits(t, s->max_memory_bytes, n)) return true;
        t->reservation_bytes = s->max_memory_bytes;
        if (tuning_fits(t, s->max_memory_bytes, n)) return true;
        if (!may_be_fewer || n / 2 < INSTANCES_LEAST) return false;
    }
}

static realm_status engine_open(realm_sandbox *s, bool may_be_fewer, realm_error *err) {
    realm_tuning *t = &s->tuning;
    if (!choose_tuning(s, may_be_fewer))
        return realm_error_set(err, REALM_E_NOMEM,
                               "no address space for %u program instances of %llu bytes: lower max_instances or raise "
                               "the limit of virtual memory",
                               s->max_instances, (unsigned long long)s->max_memory_bytes);
    wasm_config_t *c = realm_engine_config_new(t, false);
    wasmtime_pooling_allocation_config_t *pool = wasmtime_pooling_allocation_config_new();
    if (!c || !pool) return realm_error_set(err, REALM_E_NOMEM, "no memory for the sandbox's engine");
    wasmtime_pooling_allocation_config_total_core_instances_set(pool, s->max_instances);
    wasmtime_pooling_allocation_config_total_memories_set(pool, s->max_instances);
    wasmtime_pooling_allocation_config_total_tables_set(pool, s->max_instances * TABLES_PER_INSTANCE);
    wasmtime_pooling_allocation_config_total_stacks_set(pool, s->max_instances);
    wasmtime_pooling_allocation_config_max_memories_per_module_set(pool, 1);
    wasmtime_pooling_allocation_config_max_tables_per_module_set(pool, TABLES_PER_INSTANCE);
    wasmtime_pooling_allocation_config_table_elements_set(pool, REALM_MODULE_TABLE_MAX);
    wasmtime_pooling_allocation_config_max_memory_size_set(pool, (size_t)s->max_memory_bytes);
    wasmtime_pooling_allocation_config_max_core_instance_size_set(pool, 4u << 20);
    wasmtime_pooling_allocation_config_linear_memory_keep_resident_set(pool, RESIDENT_BYTES);
    wasmtime_pooling_allocation_config_table_keep_resident_set(pool, 4096);
    wasmtime_pooling_allocation_config_max_unused_warm_slots_set(pool, 128);
    wasmtime_pooling_allocation_strategy_set(c, pool);
    wasmtime_pooling_allocation_config_delete(pool);
    s->engine = wasm_engine_new_with_config(c);
    return s->engine ? REALM_OK : realm_error_set(err, REALM_E_INTERNAL, "cannot start the sandbox's engine");
}

realm_status realm_sandbox_open(realm_sandbox **out, const realm_sandbox_config *config, realm_error *err) {
    *out = NULL;
    uint64_t page = REALM_WASM_PAGE;
    realm_sandbox *s = realm_calloc(1, sizeof *s);
    if (!s) return realm_error_set(err, REALM_E_NOMEM, "no memory for the sandbox");
    realm_mutex_init(&s->programs_mu, REALM_RANK_LEAF);
    realm_mutex_init(&s->instances_mu, REALM_RANK_LEAF);
    realm_mutex_init(&s->ready_mu, REALM_RANK_LEAF);
    realm_mutex_init(&s->long_mu, REALM_RANK_LEAF);
    realm_mutex_init(&s->idle.mu, REALM_RANK_LEAF);
    realm_mutex_init(&s->porters.mu, REALM_RANK_LEAF);
    sem_init(&s->idle.sem, 0, 0);
    sem_init(&s->porters.sem, 0, 0);
    s->idle.idle = true;
    realm_mutex_init(&s->timer_mu, REALM_RANK_LEAF);
    realm_cond_init(&s->ready.cond);
    realm_cond_init(&s->empty_cond);
    realm_cond_init(&s->timer_cond);
    realm_cond_init(&s->long_cond);
    s->imports = config->imports;
    s->n_imports = config->n_imports;
    s->abi_major = config->abi_major;
    s->tuning.signals = !config->no_signals;
    s->max_instances = config->max_instances ? config->max_instances : INSTANCES_DEFAULT;
    s->max_memory_bytes = config->max_memory_bytes ? config->max_memory_bytes : SLOT_BYTES;
    s->n_workers = config->n_workers;
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    if (!s->n_workers) s->n_workers = cores < 1 ? 1 : cores > 8 ? 8 : (uint32_t)cores;
    realm_status st = REALM_OK;
    if (s->max_instances > INSTANCES_MAX || s->n_workers > WORKERS_MAX || s->max_memory_bytes > SLOT_BYTES ||
        s->max_memory_bytes < page) {
        st = realm_error_set(err, REALM_E_RANGE,
                             "the sandbox takes at most %u instances, %u workers and %llu to %llu bytes of memory",
                             INSTANCES_MAX, WORKERS_MAX, (unsigned long long)page, (unsigned long long)SLOT_BYTES);
        goto fail;
    }
    s->max_memory_bytes -= s->max_memory_bytes % page;
    s->heap = realm_calloc((size_t)s->max_instances + 1, sizeof *s->heap);
    s->ready.workers = realm_calloc(s->n_workers, sizeof *s->ready.workers);
    s->idlers = realm_calloc(s->n_workers, sizeof *s->idlers);
    s->porter_threads = realm_calloc(s->n_workers, sizeof *s->porter_threads);
    s->compiler_path = config->compiler_path ? realm_strdup(config->compiler_path) : NULL;
    s->cache_dir = config->cache_dir ? realm_strdup(config->cache_dir) : NULL;
    if (!s->heap || !s->ready.workers || !s->idlers || !s->porter_threads ||
        (config->compiler_path && !s->compiler_path) || (config->cache_dir && !s->cache_dir)) {
        st = realm_error_set(err, REALM_E_NOMEM, "no memory for the sandbox");
        goto fail;
    }
    if ((st = realm_cache_open(s, err))) goto fail;
    if ((st = engine_open(s, config->max_instances == 0, err))) goto fail;
    if (!(s->linker = wasmtime_linker_new(s->engine))) {
        st = realm_error_set(err, REALM_E_NOMEM, "no memory for the sandbox's linker");
        goto fail;
    }
    if ((st = realm_linker_define(s, err))) goto fail;
    if ((st = realm_sched_start(s, err))) goto fail;
    *out = s;
    return REALM_OK;
fail:
    realm_sandbox_close(s);
    return st;
}

void realm_sandbox_close(realm_sandbox *s) {
    if (!s) return;
    realm_mutex_lock(&s->instances_mu);
    s->closing = true;
    for (;;) {
        /* Killing takes other locks: one at a time, with a reference, lock dropped. */
        realm_instance *next = s->all;
        while (next && atomic_load_explicit(&next->kill, memory_order_acquire)) next = next->next_all;
        if (!next) break;
        realm_instance_retain(next);
        realm_mutex_unlock(&s->instances_mu);
        realm_instance_kill(next, REALM_E_CLOSED);
        realm_instance_release(next);
        realm_mutex_lock(&s->instances_mu);
    }
    while (s->n_instances + s->n_ending > 0) realm_cond_wait(&s->empty_cond, &s->instances_mu);
    realm_mutex_unlock(&s->instances_mu);
    realm_sched_stop(s);
    if (s->linker) wasmtime_linker_delete(s->linker);
    if (s->engine) wasm_engine_delete(s->engine);
    realm_cond_destroy(&s->long_cond);
    realm_cond_destroy(&s->timer_cond);
    realm_cond_destroy(&s->empty_cond);
    realm_cond_destroy(&s->ready.cond);
    realm_mutex_destroy(&s->timer_mu);
    sem_destroy(&s->porters.sem);
    sem_destroy(&s->idle.sem);
    realm_mutex_destroy(&s->porters.mu);
    realm_mutex_destroy(&s->idle.mu);
    realm_mutex_destroy(&s->long_mu);
    realm_mutex_destroy(&s->ready_mu);
    realm_mutex_destroy(&s->instances_mu);
    realm_mutex_destroy(&s->programs_mu);
    realm_free(s->cache_dir);
    realm_free(s->compiler_path);
    realm_free(s->porter_threads);
    realm_free(s->idlers);
    realm_free(s->ready.workers);
    realm_free(s->heap);
    explicit_bzero(s->cache_secret, sizeof s->cache_secret);
    realm_free(s);
}

void realm_sandbox_get_stats(realm_sandbox *s, realm_sandbox_stats *out) {
    memset(out, 0, sizeof *out);
    out->max_instances = s->max_instances;
    realm_mutex_lock(&s->instances_mu);
    out->instances = s->n_instances;
    realm_mutex_unlock(&s->instances_mu);
    out->ready[0] = atomic_load_explicit(&s->ready.n, memory_order_relaxed);
    out->ready[1] = atomic_load_explicit(&s->idle.n, memory_order_relaxed) +
                    atomic_load_explicit(&s->porters.n, memory_order_relaxed);
    realm_mutex_lock(&s->programs_mu);
    out->code_bytes = s->code_bytes;
    realm_mutex_unlock(&s->programs_mu);
    out->started = atomic_load_explicit(&s->started, memory_order_relaxed);
    out->ended = atomic_load_explicit(&s->ended, memory_order_relaxed);
    out->failed = atomic_load_explicit(&s->failed, memory_order_relaxed);
    out->start_ns = atomic_load_explicit(&s->start_ns, memory_order_relaxed);
    out->starts_timed = atomic_load_explicit(&s->starts_timed, memory_order_relaxed);
    out->compiled = atomic_load_explicit(&s->compiled, memory_order_relaxed);
    out->cache_hits = atomic_load_explicit(&s->cache_hits, memory_order_relaxed);
}
