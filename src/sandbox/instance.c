/* sandbox/instance.c - one instance, from being queued to on_done.
 *
 *     MAKE -> START -> [INIT] -> MAIN -----------------------------------> end
 *                            \-> NEW -> ALLOC -> GENERATE -> ANSWER -----> end
 *                                  \_ no realm_alloc: memory grows _/
 *
 * Each step but ANSWER is one Wasmtime future (a call on the instance's fiber); one live future per store. A worker
 * polls it until it is ready (next step), waits for a host call (park) or was put back by the epoch (queue again).
 * Whatever went wrong ends in instance_end, the only place that frees the store, and the only one that calls on_done.
 *
 * Of one in the background, idle workers poll the future, and porters do the rest (background.c).
 *
 * A lender runs an instance in the same way, but leaves to the workers what is not brief: a call without the flag, a
 * slice that was put back, the end.
 *
 * CPU time. Most wake-ups last microseconds, so their end is measured by the monotonic clock, which needs no system
 * call; only a slice that lasts for a tick, or comes to a host call that may take long, is measured by the thread's CPU
 * clock, read when it began: a worker which lost the processor to another thread does not charge that to the program,
 * and a program that spins where the tick comes late (while all are brief, or on a busy machine) pays for all that it
 * used. A lender does not read that clock, a system call of some 8 us between two steps of a model, whose code is in no
 * cache then: who holds one up pays for two ticks at most, and counts as brief only after 32 times as long.
 */
#include <stdio.h>
#include <string.h>

#include "sandbox/internal.h"

#define CPU_MS_DEFAULT 1000u
#define GRACE_MS_DEFAULT 1000u
#define LEAST_CODE (-4095) /* what generate returns down to this is a code where it is no address */

/* ---- references, wake, cancel ---- */

realm_instance *realm_instance_retain(realm_instance *i) {
    atomic_fetch_add_explicit(&i->refs, 1, memory_order_relaxed);
    return i;
}

void realm_instance_release(realm_instance *i) {
    /* acq_rel: everything that was done under other references happens before the memory goes. */
    if (!i || atomic_fetch_sub_explicit(&i->refs, 1, memory_order_acq_rel) != 1) return;
    realm_free(i->prompt);
    realm_free(i);
}

void realm_instance_wake(realm_instance *i) {
    /* seq_cst throughout: what the waker wrote before must be seen by the worker that then looks. */
    int state = atomic_load(&i->state);
    for (;;) {
        if (state == REALM_INST_PARKED) {
            if (!atomic_compare_exchange_weak(&i->state, &state, REALM_INST_QUEUED)) continue;
            realm_sched_push(i->sandbox, i);
            return;
        }
        if (state != REALM_INST_RUNNING) return; /* queued, notified or ended: nothing to add */
        if (atomic_compare_exchange_weak(&i->state, &state, REALM_INST_NOTIFIED)) return;
    }
}

void realm_instance_kill(realm_instance *i, realm_status why) {
    int none = 0;
    atomic_compare_exchange_strong(&i->kill, &none, (int)why); /* the first reason counts */
    if (realm_long_withdraw(i->sandbox, i))
        realm_sched_push(i->sandbox, i);
    else if (!realm_background_kill(i->sandbox, i))
        realm_instance_wake(i);
}

void realm_instance_cancel(realm_instance *i) {
    if (atomic_exchange(&i->cancelled, true)) return;
    realm_sandbox *s = i->sandbox;
    uint64_t grace_ms = i->params.cancel_grace_ms ? i->params.cancel_grace_ms : GRACE_MS_DEFAULT;
    realm_mutex_lock(&s->timer_mu);
    if (atomic_load(&i->state) != REALM_INST_ENDED) {
        i->grace_ns = realm_clock_ns() + grace_ms * REALM_NS_PER_MS;
        realm_timer_update(s, i);
    }
    realm_mutex_unlock(&s->timer_mu);
    realm_instance_wake(i);
}

void realm_instance_fill_kill(realm_instance *i) {
    if (i->fail.code) return;
    realm_status why = (realm_status)atomic_load_explicit(&i->kill, memory_order_acquire);
    switch (why) {
    case REALM_E_TIMEOUT:
        realm_error_set(&i->fail, why, "the program ran longer than wall_ms (%llu ms)",
                        (unsigned long long)i->params.wall_ms);
        break;
    case REALM_E_CANCELLED: realm_error_set(&i->fail, why, "cancelled, and the program did not end by itself"); break;
    case REALM_E_CLOSED: realm_error_set(&i->fail, why, "the server is shutting down"); break;
    default: realm_error_set(&i->fail, why, "ended by the host"); break;
    }
}

/* ---- CPU time ---- */

static uint64_t cpu_limit_ns(const realm_instance *i) { return i->params.cpu_ms_per_wake * REALM_NS_PER_MS; }

/* Since the slice began; see the essay. */
static uint64_t slice_cpu(const realm_instance *i) {
    if (!i->by_thread || !i->slice_cpu_ns) {
        uint64_t age = realm_clock_ns() - i->slice_start_ns;
        if (!i->slice_cpu_ns) return REALM_MIN(age, 2 * REALM_TICK_NS);
        if (age < REALM_TICK_NS) return age;
    }
    return realm_clock_thread_ns() - i->slice_cpu_ns;
}

static bool over_cpu_limit(realm_instance *i, uint64_t slice) {
    if (i->wake_cpu_ns + slice <= cpu_limit_ns(i)) return false;
    realm_error_set(&i->fail, REALM_E_LIMIT,
                    "the program used more than cpu_ms_per_wake (%llu ms) of CPU time between two waits",
                    (unsigned long long)i->params.cpu_ms_per_wake);
    return true;
}

static bool has_brief_record(const realm_instance *i) { return i->brief_needed == 0; }

static void note_slice(realm_instance *i, uint64_t t) {
    if (t < REALM_BRIEF_NS) {
        i->brief_needed -= i->brief_needed > 0 && i->slice_start_ns >= i->barred_until_ns;
        return;
    }
    i->brief_needed = REALM_MAX(i->brief_needed, i->lender ? REALM_BRIEF_AFTER_HOLD : REALM_BRIEF_AFTER_LONG);
    if (i->lender) i->barred_until_ns = i->slice_start_ns + (realm_clock_ns() - i->slice_start_ns) * REALM_BARRED_TIMES;
}

bool realm_instance_is_brief(const realm_instance *i) {
    return has_brief_record(i) && !i->background && i->call.phase == REALM_CALL_WAITING &&
           (i->call.import->flags & REALM_IMPORT_BRIEF) &&
           (i->step == REALM_STEP_MAIN || i->step == REALM_STEP_GENERATE);
}

/* A failure that the fiber is to be told takes memory, so it is told by a porter. */
bool realm_instance_is_code(const realm_instance *i) {
    return i->future && !i->code_done && !atomic_load_explicit(&i->kill, memory_order_acquire) &&
           (i->call.phase == REALM_CALL_NONE ||
            (i->call.phase == REALM_CALL_FINISHED && i->call.outcome == REALM_CALL_DONE));
}

void realm_instance_earn(realm_instance *i) {
    uint64_t now = realm_clock_ns(), earned = (now - i->credit_at_ns) / REALM_EARN_DIV;
    int64_t room = (int64_t)REALM_SOFT_NS - i->credit_ns;
    i->credit_ns += earned < (uint64_t)room ? (int64_t)earned : room;
    i->credit_at_ns = now;
}

/* Of what a slice used before its first tick, what does not count against its credit: a program cannot be put back in
 * the middle of a host call, and one that was served by a long one is not for that a program that spins. */
static uint64_t spared(const realm_instance *i, uint64_t used) {
    return used > 2 * REALM_TICK_NS ? REALM_MIN(used - 2 * REALM_TICK_NS, i->host_ns) : 0;
}

static void slice_begin(realm_instance *i) {
    realm_instance_earn(i);
    i->slice_start_ns = i->credit_at_ns;
    i->slice_slow = i->background;
    i->slice_cpu_ns = i->lender ? 0 : realm_clock_thread_ns();
    i->host_ns = 0;
    i->by_thread = i->ticked = false;
    realm_sched_slice_begin(i->sandbox, i, has_brief_record(i));
}

/* It has used `total` so far: tells what nobody was told yet, if that is worth a call. */
static void tell_cpu(realm_instance *i, uint64_t total, uint64_t least) {
    uint64_t ns = total - i->told_ns;
    if (ns < least) return;
    i->told_ns = total;
    if (i->params.on_cpu) i->params.on_cpu(i->params.user, ns);
}

static void charge(realm_instance *i, uint64_t t, uint64_t spared_ns, bool slow) {
    realm_sched_slice_end(i->sandbox, i);
    note_slice(i, t);
    i->wake_cpu_ns += t;
    i->cpu_ns += t;
    if (slow) i->slow_ns += t;
    i->credit_ns -= (int64_t)(t - spared_ns);
    if (i->credit_ns < -(int64_t)REALM_DEBT_NS) i->credit_ns = -(int64_t)REALM_DEBT_NS;
    tell_cpu(i, i->cpu_ns, REALM_TELL_NS);
}

static void slice_end(realm_instance *i) {
    uint64_t t = slice_cpu(i);
    charge(i, t, i->ticked ? i->spared_ns : spared(i, t), i->slice_slow);
}

/* An idle worker had it, or would have. False: it has used what it may, and has not come to an end. */
static bool take_back(realm_instance *i) {
    i->away = false;
    charge(i, i->away_cpu_ns, 0, true);
    return i->code_done || !over_cpu_limit(i, 0);
}

/* On the program's fiber, when the epoch has advanced. */
static wasmtime_error_t *on_epoch(wasmtime_context_t *context, void *data, uint64_t *delta,
                                  wasmtime_update_deadline_kind_t *kind) {
    realm_instance *i = data;
    (void)context;
    *delta = 1;
    *kind = WASMTIME_UPDATE_DEADLINE_CONTINUE;
    if (i->away) { /* whatever there is to be done about it, a porter does it */
        if (atomic_load_explicit(&i->kill, memory_order_relaxed) ||
            realm_clock_thread_ns() - i->away_cpu_ns >= REALM_CODE_NS)
            *kind = WASMTIME_UPDATE_DEADLINE_YIELD;
        return NULL;
    }
    if (atomic_load_explicit(&i->kill, memory_order_acquire)) {
        realm_instance_fill_kill(i);
        return wasmtime_error_new(i->fail.text);
    }
    uint64_t age = realm_clock_ns() - i->slice_start_ns;
    if (i->lender && (age >= REALM_BRIEF_NS || atomic_load_explicit(&i->lender->recalled, memory_order_relaxed))) {
        *kind = WASMTIME_UPDATE_DEADLINE_YIELD;
        return NULL;
    }
    /* An instance that was parked for long sees the deadline of then at once: its slice is young. */
    if (age < REALM_TICK_NS / 2) return NULL;
    i->by_thread = true;
    realm_sched_slice_long(i->sandbox, i);
    uint64_t slice = slice_cpu(i);
    if (!i->ticked) i->spared_ns = spared(i, slice);
    i->ticked = true;
    tell_cpu(i, i->cpu_ns + slice, REALM_TELL_NS);
    if (over_cpu_limit(i, slice)) return wasmtime_error_new(i->fail.text);
    bool sink = (int64_t)(slice - i->spared_ns) > i->credit_ns;
    if (sink || atomic_load_explicit(&i->sandbox->ready.n, memory_order_relaxed) > 0)
        *kind = WASMTIME_UPDATE_DEADLINE_YIELD;
    if (sink) i->background = true; /* where it is queued next */
    return NULL;
}

/* ---- the end ---- */

static void list_remove(realm_sandbox *s, realm_instance *i) {
    if (i->prev_all)
        i->prev_all->next_all = i->next_all;
    else
        s->all = i->next_all;
    if (i->next_all) i->next_all->prev_all = i->prev_all;
}

static void instance_end(realm_instance *i) {
    realm_sandbox *s = i->sandbox;
    realm_instance_result result = {
        .status = i->fail.code, .value = i->fail.code ? 0 : i->value, .text = i->fail.text, .start_ns = i->start_ns};
    if (i->future) wasmtime_call_future_delete(i->future);
    i->future = NULL;
    if (i->trap) wasm_trap_delete(i->trap);
    if (i->error) wasmtime_error_delete(i->error);
    i->trap = NULL;
    i->error = NULL;
    if (i->store && i->has_memory) result.memory_bytes = wasmtime_memory_data_size(i->context, &i->memory);
    REALM_POOL_TAKES(s);
    if (i->store) wasmtime_store_delete(i->store);
    i->store = NULL;
    i->context = NULL;
    realm_free(i->answer);
    i->answer = NULL;
    realm_program_release(i->program); /* now, not with the last reference, which may outlive the sandbox */
    i->program = NULL;
    slice_end(i);
    tell_cpu(i, i->cpu_ns, 1);
    result.cpu_ns = i->cpu_ns;
    result.slow_ns = i->slow_ns;
    atomic_store(&i->state, REALM_INST_ENDED);
    realm_timer_remove(s, i);
    atomic_fetch_add_explicit(&s->ended, 1, memory_order_relaxed);
    if (result.status) atomic_fetch_add_explicit(&s->failed, 1, memory_order_relaxed);
    /* Its place is free before on_done, which may start the next; close waits for both. */
    realm_mutex_lock(&s->instances_mu);
    list_remove(s, i);
    s->n_instances--;
    s->n_ending++;
    realm_mutex_unlock(&s->instances_mu);
    if (i->params.on_done) i->params.on_done(i->params.user, i, &result);
    realm_mutex_lock(&s->instances_mu);
    if (--s->n_ending + s->n_instances == 0) realm_cond_broadcast(&s->empty_cond);
    realm_mutex_unlock(&s->instances_mu);
    realm_instance_release(i);
}

/* "unreachable executed, in function work (below main)": what went wrong, and where, without addresses. */
static void describe_trap(realm_instance *i, const wasm_frame_vec_t *frames, const char *what) {
    char where[192] = "";
    size_t n = 0;
    for (size_t k = 0; k < frames->size && k < 3; k++) {
        const wasm_name_t *name = wasmtime_frame_func_name(frames->data[k]);
        char text[64];
        if (name && name->size)
            realm_escape(text, sizeof text, name->data, name->size);
        else
            snprintf(text, sizeof text, "#%u", wasm_frame_func_index(frames->data[k]));
        int w = snprintf(where + n, sizeof where - n, "%s%s", k ? ", called by " : " in function ", text);
        if (w < 0 || (size_t)w >= sizeof where - n) break;
        n += (size_t)w;
    }
    realm_error_set(&i->fail, REALM_E_PROGRAM, "the program trapped: %s%s", what, where);
}

/* The last future ended in a trap or error: says so in `fail`, unless the host itself had a reason. */
static void take_failure(realm_instance *i) {
    wasm_frame_vec_t frames;
    if (i->fail.code) return;
    if (i->exited) {
        if (i->program->m.kind == REALM_PROGRAM_GENERATE && i->exit_value >= 0)
            realm_error_set(&i->fail, REALM_E_PROGRAM, "the program ended before it had an answer");
        return;
    }
    if (i->trap) {
        static const char *const TEXTS[] = {
            [WASMTIME_TRAP_CODE_STACK_OVERFLOW] = "call stack exhausted",
            [WASMTIME_TRAP_CODE_MEMORY_OUT_OF_BOUNDS] = "memory access out of bounds",
            [WASMTIME_TRAP_CODE_TABLE_OUT_OF_BOUNDS] = "table access out of bounds",
            [WASMTIME_TRAP_CODE_INDIRECT_CALL_TO_NULL] = "indirect call to null",
            [WASMTIME_TRAP_CODE_BAD_SIGNATURE] = "indirect call with a wrong signature",
            [WASMTIME_TRAP_CODE_INTEGER_OVERFLOW] = "integer overflow",
            [WASMTIME_TRAP_CODE_INTEGER_DIVISION_BY_ZERO] = "integer division by zero",
            [WASMTIME_TRAP_CODE_BAD_CONVERSION_TO_INTEGER] = "float that does not fit an integer",
            [WASMTIME_TRAP_CODE_UNREACHABLE_CODE_REACHED] = "unreachable executed",
        };
        wasmtime_trap_code_t code = 0;
        const char *what = NULL;
        char line[256];
        if (wasmtime_trap_code(i->trap, &code) && code < REALM_ARRAY_LEN(TEXTS)) what = TEXTS[code];
        if (!what) {
            wasm_byte_vec_t msg;
            wasm_trap_message(i->trap, &msg);
            realm_one_line(line, sizeof line, msg.data, msg.size ? msg.size - 1 : 0);
            wasm_byte_vec_delete(&msg);
            what = line;
        }
        wasm_trap_trace(i->trap, &frames);
        describe_trap(i, &frames, what);
        wasm_frame_vec_delete(&frames);
    } else if (i->error) {
        realm_wasmtime_error(i->error, REALM_E_PROGRAM,
                             i->step == REALM_STEP_START ? "cannot start the program" : "the program failed", &i->fail);
        i->error = NULL;
    }
}

/* ---- steps ---- */

static realm_status step_make(realm_instance *i) {
    realm_sandbox *s = i->sandbox;
    i->store = wasmtime_store_new(s->engine, i, NULL);
    if (!i->store) return realm_error_set(&i->fail, REALM_E_NOMEM, "no memory for a program instance");
    i->context = wasmtime_store_context(i->store);
    wasmtime_store_limiter(i->store, (int64_t)i->params.memory_bytes, REALM_MODULE_TABLE_MAX, 1, -1, 1);
    wasmtime_store_epoch_deadline_callback(i->store, on_epoch, i, NULL);
    wasmtime_context_set_epoch_deadline(i->context, 1);
    i->step = REALM_STEP_START;
    i->future = wasmtime_instance_pre_instantiate_async(i->program->pre, i->context, &i->handle, &i->trap, &i->error);
    return REALM_OK;
}

static realm_status call_export(realm_instance *i, realm_inst_step step, const char *name, size_t n_args,
                                size_t n_results) {
    wasmtime_extern_t item;
    i->step = step;
    if (!wasmtime_instance_export_get(i->context, &i->handle, name, strlen(name), &item))
        return realm_error_set(&i->fail, REALM_E_INTERNAL, "export %s is gone", name);
    i->func = item.of.func;
    bool is_func = item.kind == WASMTIME_EXTERN_FUNC;
    wasmtime_extern_delete(&item);
    if (!is_func) return realm_error_set(&i->fail, REALM_E_INTERNAL, "export %s is not a function", name);
    i->results[0] = (wasmtime_val_t){.kind = WASMTIME_I32}; /* what `_start` returned: 0 */
    i->future =
        wasmtime_func_call_async(i->context, &i->func, i->args, n_args, i->results, n_results, &i->trap, &i->error);
    return REALM_OK;
}

/* A pointer or length as the program's memory wants it. */
static wasmtime_val_t address(const realm_instance *i, uint64_t v) {
    wasmtime_val_t out = {.kind = i->program->m.memory64 ? WASMTIME_I64 : WASMTIME_I32};
    if (i->program->m.memory64)
        out.of.i64 = (int64_t)v;
    else
        out.of.i32 = (int32_t)(uint32_t)v;
    return out;
}

static uint64_t result_address(const realm_instance *i) {
    return i->results[0].kind == WASMTIME_I64 ? (uint64_t)i->results[0].of.i64 : (uint32_t)i->results[0].of.i32;
}

static void take_memory(realm_instance *i) {
    wasmtime_extern_t item;
    if (i->has_memory || !wasmtime_instance_export_get(i->context, &i->handle, "memory", 6, &item)) return;
    i->memory = item.of.memory;
    i->has_memory = item.kind == WASMTIME_EXTERN_MEMORY;
    wasmtime_extern_delete(&item);
}

/* NULL unless [at, at + len) is inside. Only while no future is alive. */
static uint8_t *memory_range(realm_instance *i, uint64_t at, uint64_t len) {
    uint64_t end;
    if (!i->has_memory || !realm_add_u64(at, len, &end) || end > wasmtime_memory_data_size(i->context, &i->memory))
        return NULL;
    return wasmtime_memory_data(i->context, &i->memory) + at;
}

static realm_status place_by_growing(realm_instance *i) {
    uint64_t pages = ((uint64_t)i->params.prompt_len + REALM_WASM_PAGE) / REALM_WASM_PAGE, before = 0;
    wasmtime_error_t *e = wasmtime_memory_grow(i->context, &i->memory, pages, &before);
    if (e) {
        wasmtime_error_delete(e);
        return realm_error_set(&i->fail, REALM_E_LIMIT,
                               "no room for a prompt of %zu bytes in the program's memory (limit memory_bytes, %llu)",
                               i->params.prompt_len, (unsigned long long)i->params.memory_bytes);
    }
    i->prompt_at = before * REALM_WASM_PAGE;
    return REALM_OK;
}

static realm_status step_generate(realm_instance *i) {
    size_t n = i->params.prompt_len;
    if (i->program->m.has_alloc && i->prompt_at == 0)
        return realm_error_set(&i->fail, REALM_E_PROGRAM, "realm_alloc has no memory for a prompt of %zu bytes", n);
    uint8_t *to = memory_range(i, i->prompt_at, (uint64_t)n + 1);
    if (!to)
        return realm_error_set(&i->fail, REALM_E_PROGRAM,
                               "realm_alloc returned %llu, where %zu bytes do not fit in the program's memory",
                               (unsigned long long)i->prompt_at, n + 1);
    if (n) memcpy(to, i->params.prompt, n);
    to[n] = 0; /* so that programs may treat it as a C string */
    i->args[0] = address(i, i->prompt_at);
    i->args[1] = address(i, n);
    i->args[2] = (wasmtime_val_t){.kind = WASMTIME_I32, .of.i32 = i->params.model_id};
    i->args[3] = address(i, 0);
    return call_export(i, REALM_STEP_GENERATE, "generate", 4, 1);
}

/* The answer, or what a program gives instead of one: as elsewhere, a negative code. */
static realm_status take_answer(realm_instance *i) {
    uint64_t at = result_address(i), size = wasmtime_memory_data_size(i->context, &i->memory);
    int64_t code = i->program->m.memory64 ? (int64_t)at : (int32_t)(uint32_t)at;
    if (at >= size && code < 0 && code >= LEAST_CODE) {
        i->exited = true;
        i->exit_value = (int32_t)code;
        return REALM_E_PROGRAM;
    }
    if (at == 0) return realm_error_set(&i->fail, REALM_E_PROGRAM, "generate returned no answer (a null pointer)");
    if (at >= size)
        return realm_error_set(&i->fail, REALM_E_PROGRAM, "generate returned %llu, outside the program's memory",
                               (unsigned long long)at);
    const char *text = (const char *)wasmtime_memory_data(i->context, &i->memory) + at;
    size_t room = (size_t)REALM_MIN(size - at, (uint64_t)REALM_ANSWER_BYTES_MAX + 1);
    const char *nul = memchr(text, 0, room);
    if (!nul)
        return realm_error_set(&i->fail, room > REALM_ANSWER_BYTES_MAX ? REALM_E_LIMIT : REALM_E_PROGRAM,
                               "the answer of generate has no NUL byte within %zu bytes", room);
    i->answer_len = (size_t)(nul - text);
    i->answer = realm_strndup(text, i->answer_len);
    if (!i->answer) return realm_error_set(&i->fail, REALM_E_NOMEM, "no memory for the answer");
    i->step = REALM_STEP_ANSWER;
    return REALM_OK;
}

/* Poll now; park; queue again, or move to a worker; leave the rest to who finishes for the lender; end. */
typedef enum progress { GO_ON, WAIT, AGAIN, PUT_DOWN, END } progress;

static realm_status step_entry(realm_instance *i) {
    switch (i->program->m.kind) {
    case REALM_PROGRAM_MAIN: return call_export(i, REALM_STEP_MAIN, "realm_main", 0, 1);
    case REALM_PROGRAM_COMMAND: return call_export(i, REALM_STEP_MAIN, "_start", 0, 0);
    default: return call_export(i, REALM_STEP_NEW, "realm_new", 0, 1);
    }
}

/* A future is complete: what comes after its step. */
static progress next_step(realm_instance *i) {
    wasmtime_call_future_delete(i->future);
    i->future = NULL;
    if (i->trap || i->error) {
        take_failure(i);
        return END;
    }
    switch (i->step) {
    case REALM_STEP_START:
        REALM_POOL_GAVE(i->sandbox);
        take_memory(i);
        if (i->program->m.has_init) return call_export(i, REALM_STEP_INIT, "_initialize", 0, 0) ? END : GO_ON;
        return step_entry(i) ? END : GO_ON;
    case REALM_STEP_INIT: return step_entry(i) ? END : GO_ON;
    case REALM_STEP_NEW:
        if (i->results[0].of.i32 < 0) {
            realm_error_set(&i->fail, REALM_E_PROGRAM, "realm_new returned %d", i->results[0].of.i32);
            return END;
        }
        if (i->program->m.has_alloc) {
            i->args[0] = address(i, (uint64_t)i->params.prompt_len + 1);
            return call_export(i, REALM_STEP_ALLOC, "realm_alloc", 1, 1) ? END : GO_ON;
        }
        return place_by_growing(i) || step_generate(i) ? END : GO_ON;
    case REALM_STEP_ALLOC: i->prompt_at = result_address(i); return step_generate(i) ? END : GO_ON;
    case REALM_STEP_GENERATE: return take_answer(i) ? END : GO_ON;
    default: return END;
    }
}

/* A lender leaves it to a worker. */
static bool must_move(const realm_instance *i) { return i->lender && !(i->call.import->flags & REALM_IMPORT_BRIEF); }

/* Its lender has work now, very likely from the call that was just made. */
static bool may_put_down(const realm_instance *i) {
    const realm_lender *l = i->lender;
    return l && !i->put_down && atomic_load_explicit(&l->recalled, memory_order_relaxed) &&
           i->call.phase == REALM_CALL_FINISHED && i->call.outcome == REALM_CALL_DONE &&
           !atomic_load_explicit(&l->rest, memory_order_relaxed);
}

bool realm_instance_expects_long(realm_instance *i) {
    if (i->call.import != i->long_import || i->long_left == 0) return false;
    i->long_left--;
    return true;
}

/* By its thread's time: one that merely lost the processor is not long. That of brief ones is not measured. */
static bool took_long(const realm_instance *i, uint64_t from, uint64_t now) {
    return now - from >= REALM_LONG_NS && i->by_thread && i->slice_cpu_ns &&
           realm_clock_thread_ns() - i->slice_cpu_ns >= REALM_LONG_NS;
}

/* The callback of the open call. One that took longer than the program may is the program's last. */
static void run_call(realm_instance *i) {
    const uint64_t from = realm_clock_ns();
    if (!(i->call.import->flags & REALM_IMPORT_BRIEF) || !has_brief_record(i)) i->by_thread = true;
    realm_call_run(&i->call);
    const uint64_t now = realm_clock_ns();
    i->host_ns += now - from;
    if (i->call.phase != REALM_CALL_FINISHED || i->call.outcome != REALM_CALL_DONE) return;
    if (took_long(i, from, now)) {
        i->long_import = i->call.import;
        i->long_left = REALM_LONG_CALLS;
    }
    if (now - i->slice_start_ns >= REALM_TICK_NS && over_cpu_limit(i, slice_cpu(i))) i->call.outcome = REALM_CALL_TRAP;
}

static progress advance(realm_instance *i) {
    if (i->step == REALM_STEP_END) return END;
    bool killed = atomic_load_explicit(&i->kill, memory_order_acquire) != 0;
    if (killed && (i->step == REALM_STEP_MAKE || i->step == REALM_STEP_ANSWER)) {
        realm_instance_fill_kill(i);
        return END;
    }
    if (i->step == REALM_STEP_MAKE) {
        uint64_t t0 = realm_clock_ns();
        if (step_make(i)) return END;
        bool ready = wasmtime_call_future_poll(i->future);
        i->start_ns = realm_clock_ns() - t0;
        if (ready) {
            atomic_fetch_add_explicit(&i->sandbox->start_ns, i->start_ns, memory_order_relaxed);
            atomic_fetch_add_explicit(&i->sandbox->starts_timed, 1, memory_order_relaxed);
            return next_step(i);
        }
    } else if (i->step == REALM_STEP_ANSWER) {
        if (!i->params.on_answer) return END;
        realm_status st = i->params.on_answer(i->params.user, i->answer, i->answer_len, &i->fail);
        if (st == REALM_E_AGAIN) {
            realm_error_clear(&i->fail);
            return WAIT;
        }
        if (st && !i->fail.code) realm_error_set(&i->fail, st, "the answer could not be delivered");
        return END;
    } else {
        if (i->code_done) {
            i->code_done = false;
            return next_step(i);
        }
        if (!killed && (i->call.phase == REALM_CALL_WAITING || i->call.phase == REALM_CALL_TODO)) {
            if (must_move(i)) return AGAIN;
            const bool was_long = i->long_call;
            run_call(i);
            if (i->call.phase == REALM_CALL_WAITING) return WAIT;
            if (i->call.phase == REALM_CALL_TODO || was_long) return AGAIN; /* its callback, or code, is for others */
            if (may_put_down(i)) return PUT_DOWN;
        }
        if (i->background && realm_instance_is_code(i)) return AGAIN; /* for an idle worker */
        if (wasmtime_call_future_poll(i->future)) return next_step(i);
    }
    switch (i->call.phase) {
    case REALM_CALL_TODO: return i->long_call ? AGAIN : GO_ON;
    case REALM_CALL_WAITING: return WAIT;
    default: return AGAIN; /* the epoch put it back */
    }
}

void realm_instance_run_code(realm_instance *i) {
    i->away_cpu_ns = realm_clock_thread_ns();
    i->code_done = wasmtime_call_future_poll(i->future);
    i->away_cpu_ns = realm_clock_thread_ns() - i->away_cpu_ns;
}

void realm_instance_run(realm_instance *i, realm_lender *lender) {
    realm_sandbox *s = i->sandbox;
    atomic_store(&i->state, REALM_INST_RUNNING);
    i->lender = lender;
    const bool on_worker = !lender && !i->long_call;
    bool may_go_on = !i->away || take_back(i);
    slice_begin(i);
    for (;;) {
        progress p = may_go_on ? advance(i) : END;
        if (p == GO_ON) continue;
        if (p == END) {
            if (i->step != REALM_STEP_END)
                i->value = i->exited ? i->exit_value : i->step == REALM_STEP_MAIN ? i->results[0].of.i32 : 0;
            i->step = REALM_STEP_END;
            if (!lender) {
                instance_end(i);
                return;
            }
        }
        if (p == WAIT) {
            slice_end(i);
            i->lender = NULL; /* once it is parked it may be in other hands */
            i->put_down = false;
            uint64_t wake_at = i->step == REALM_STEP_ANSWER ? 0 : i->call.wake_at_ns;
            if (wake_at || i->wake_set) realm_timer_set_wake(s, i, wake_at);
            i->wake_set = wake_at != 0;
            int running = REALM_INST_RUNNING;
            /* Before this exchange: once parked, another worker may run and even free it. */
            uint64_t used = i->wake_cpu_ns;
            bool background = i->background;
            i->wake_cpu_ns = 0;
            i->background = i->credit_ns < 0;
            if (atomic_compare_exchange_strong(&i->state, &running, REALM_INST_PARKED)) return;
            i->wake_cpu_ns = used; /* it did not wait */
            i->background = background;
            const atomic_uint *others = background ? &s->porters.n : &s->ready.n;
            if (on_worker && atomic_load_explicit(others, memory_order_relaxed) == 0) {
                atomic_store(&i->state, REALM_INST_RUNNING);
                slice_begin(i);
                continue;
            }
        } else if (p == PUT_DOWN) {
            slice_end(i);
            i->lender = NULL;
            i->put_down = true;
            atomic_store(&i->state, REALM_INST_QUEUED);
            atomic_store(&lender->rest, i); /* from here on it may be in other hands */
            return;
        } else {
            slice_end(i);
            i->lender = NULL;
            if (lender && i->call.phase == REALM_CALL_TODO)
                i->brief_needed = REALM_MAX(i->brief_needed, REALM_BRIEF_AFTER_MOVE);
        }
        atomic_store(&i->state, REALM_INST_QUEUED);
        realm_sched_push(s, i);
        return;
    }
}

realm_status realm_instance_start(realm_program *p, const realm_instance_params *params, realm_instance **out,
                                  realm_error *err) {
    realm_sandbox *s = p->sandbox;
    realm_instance *i = realm_calloc(1, sizeof *i);
    *out = NULL;
    if (!i) return realm_error_set(err, REALM_E_NOMEM, "no memory for a program instance");
    i->sandbox = s;
    i->params = *params;
    realm_instance_params *ip = &i->params;
    if (!ip->memory_bytes || ip->memory_bytes > s->max_memory_bytes) ip->memory_bytes = s->max_memory_bytes;
    if (!ip->cpu_ms_per_wake) ip->cpu_ms_per_wake = CPU_MS_DEFAULT;
    if (ip->cpu_ms_per_wake > UINT32_MAX) ip->cpu_ms_per_wake = UINT32_MAX;
    if (p->m.kind == REALM_PROGRAM_GENERATE && params->prompt_len) {
        if (!(i->prompt = realm_strndup(params->prompt, params->prompt_len))) {
            realm_free(i);
            return realm_error_set(err, REALM_E_NOMEM, "no memory for a program's prompt");
        }
        ip->prompt = i->prompt;
    } else {
        ip->prompt = NULL;
        ip->prompt_len = 0;
    }
    i->brief_needed = REALM_BRIEF_AFTER_LONG;
    atomic_init(&i->refs, 2); /* the caller's and the sandbox's until on_done has returned */
    atomic_init(&i->state, REALM_INST_QUEUED);
    realm_mutex_lock(&s->instances_mu);
    bool closing = s->closing, full = s->n_instances >= s->max_instances;
    if (!closing && !full) {
        s->n_instances++;
        i->next_all = s->all;
        if (s->all) s->all->prev_all = i;
        s->all = i;
    }
    realm_mutex_unlock(&s->instances_mu);
    if (closing || full) {
        realm_free(i->prompt);
        realm_free(i);
        if (closing) return realm_error_set(err, REALM_E_CLOSED, "the server is shutting down");
        return realm_error_set(err, REALM_E_BUSY, "%u program instances are running, as many as are allowed",
                               s->max_instances);
    }
    i->program = realm_program_retain(p);
    if (ip->wall_ms) {
        realm_mutex_lock(&s->timer_mu);
        i->wall_ns = realm_clock_ns() + ip->wall_ms * REALM_NS_PER_MS;
        realm_timer_update(s, i);
        realm_mutex_unlock(&s->timer_mu);
    }
    atomic_fetch_add_explicit(&s->started, 1, memory_order_relaxed);
    *out = i;
    realm_sched_push(s, i);
    return REALM_OK;
}
