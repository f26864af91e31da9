/* sandbox/call.c - host calls: from Wasmtime's callbacks to the import table's and back.
 *
 * Imports that never suspend are synchronous "unchecked" functions: arguments are read straight from the array that the
 * compiled code filled. Imports that may suspend are asynchronous ones. For those:
 *
 *     program calls -> async_entry on the fiber: runs the callback there (or leaves it TODO: for OFF_FIBER, on a
 *                      lender's thread what is not BRIEF, with an idle worker always)
 *        DONE    -> FINISHED: the continuation, polled at once, hands over the result
 *        SUSPEND -> WAITING:  the continuation says "not yet", the fiber yields to the worker, which parks the instance
 *     after a wake-up the worker runs the callback again on its own stack (realm_call_run) and resumes the fiber only
 *     when it is DONE: a wake-up that changes nothing costs no switch.
 *        MOVE    -> TODO again: on a lender's thread, which hands the instance to a worker
 *        LONG    -> TODO again: on any other than a thread for long calls, which gets the instance (long.c)
 *
 * While the program is suspended its memory cannot grow or move, so the address taken at the start of an asynchronous
 * call stays right until the program runs again; synchronous calls look it up at first use.
 */
#include <stdio.h>
#include <string.h>

#include "sandbox/internal.h"

/* ---- what callbacks use ---- */

void *realm_call_user(const realm_call *call) { return call->instance->params.user; }
realm_instance *realm_call_instance(const realm_call *call) { return call->instance; }
bool realm_call_lent(const realm_call *call) { return call->instance->lender; }
bool realm_call_may_be_long(const realm_call *call) { return call->instance->long_call; }

bool realm_call_defer(const realm_call *call, void (*fn)(void *user), void *user) {
    realm_lender *l = call->instance->lender;
    if (!l) return false;
    realm_mutex_lock(&l->mu);
    bool room = l->n_deferred < REALM_DEFERRED_MAX;
    if (room) {
        l->deferred[l->n_deferred].fn = fn;
        l->deferred[l->n_deferred++].user = user;
    }
    realm_mutex_unlock(&l->mu);
    return room;
}

bool realm_call_resumed(const realm_call *call) { return call->resumed; }
void *realm_call_state(realm_call *call) { return call->state; }
void realm_call_wake_at(realm_call *call, uint64_t deadline_ns) { call->wake_at_ns = deadline_ns; }

bool realm_call_cancelled(const realm_call *call) {
    return atomic_load_explicit(&call->instance->cancelled, memory_order_acquire);
}

realm_call_result realm_call_fail(realm_call *call, const char *fmt, ...) {
    char text[REALM_ERROR_TEXT_MAX];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    realm_error_set(&call->instance->fail, REALM_E_PROGRAM, "%s", text);
    return REALM_CALL_TRAP;
}

/* The start function may call before the instance's exports were looked up, so the memory is found by the caller. */
static void find_memory(realm_call *c) {
    realm_instance *i = c->instance;
    if (!i->has_memory) {
        wasmtime_extern_t item;
        if (!wasmtime_caller_export_get(c->caller, "memory", 6, &item)) return;
        if (item.kind == WASMTIME_EXTERN_MEMORY) {
            i->memory = item.of.memory;
            i->has_memory = true;
        }
        wasmtime_extern_delete(&item);
        if (!i->has_memory) return;
    }
    wasmtime_context_t *ctx = wasmtime_caller_context(c->caller);
    c->base = wasmtime_memory_data(ctx, &i->memory);
    c->size = wasmtime_memory_data_size(ctx, &i->memory);
}

void *realm_call_memory(const realm_call *call, uint64_t ptr, uint64_t len) {
    realm_call *c = (realm_call *)call; /* the lookup is cached in it */
    uint64_t end;
    if (!c->base && c->caller) find_memory(c);
    if (!c->base || !realm_add_u64(ptr, len, &end) || end > c->size) return NULL;
    return c->base + ptr;
}

/* ---- synchronous imports ---- */

void realm_call_return(realm_call *call, uint64_t bits) { call->bits = bits; }

/* An f32 is the low half of `bits`. */
static void give_raw(const realm_call *c, wasmtime_val_raw_t *out) {
    out->i64 = 0;
    switch (c->import->result) {
    case 0:
    case 'i': out->i32 = c->value; break;
    default: out->i64 = (int64_t)c->bits; break;
    }
}

static wasm_trap_t *make_trap(realm_instance *i) {
    const char *text = i->fail.text[0] ? i->fail.text : "ended by the host";
    return wasmtime_trap_new(text, strlen(text));
}

static void note_exit(const realm_call *c) {
    c->instance->exited = true;
    c->instance->exit_value = c->value;
}

/* What a letter of the import table is to Wasmtime. */
static wasm_valkind_t import_kind(const realm_import *im, char letter) {
    switch (letter) {
    case 'p': return im->wide ? WASM_I64 : WASM_I32;
    case 'l': return WASM_I64;
    case 'f': return WASM_F32;
    case 'd': return WASM_F64;
    default: return WASM_I32;
    }
}

/* A value as its parameter's letter asks: 32-bit ones without what the upper half may hold. */
static uint64_t raw_arg(char letter, bool wide, const wasmtime_val_raw_t *v) {
    switch (letter) {
    case 'p': return wide ? (uint64_t)v->i64 : (uint32_t)v->i32;
    case 'l': return (uint64_t)v->i64;
    case 'f': {
        uint32_t bits;
        memcpy(&bits, &v->f32, sizeof bits);
        return bits;
    }
    case 'd': {
        uint64_t bits;
        memcpy(&bits, &v->f64, sizeof bits);
        return bits;
    }
    default: return (uint32_t)v->i32;
    }
}

static uint64_t val_arg(char letter, const wasmtime_val_t *v) {
    wasmtime_val_raw_t raw;
    memset(&raw, 0, sizeof raw);
    switch (v->kind) {
    case WASMTIME_I64: raw.i64 = v->of.i64; break;
    case WASMTIME_F32: raw.f32 = v->of.f32; break;
    case WASMTIME_F64: raw.f64 = v->of.f64; break;
    default: raw.i32 = v->of.i32; break;
    }
    return raw_arg(letter, v->kind == WASMTIME_I64, &raw);
}

static void give_val(const realm_call *c, wasmtime_val_t *out) {
    wasmtime_val_raw_t raw;
    give_raw(c, &raw);
    out->kind = import_kind(c->import, c->import->result);
    switch (out->kind) {
    case WASM_I64: out->of.i64 = raw.i64; break;
    case WASM_F32: out->of.f32 = raw.f32; break;
    case WASM_F64: out->of.f64 = raw.f64; break;
    default: out->of.i32 = raw.i32; break;
    }
}

static realm_call *call_open(const realm_import *im, wasmtime_caller_t *caller) {
    realm_instance *i = wasmtime_context_get_data(wasmtime_caller_context(caller));
    realm_call *c = &i->call;
    c->instance = i;
    c->import = im;
    c->caller = caller;
    c->base = NULL;
    c->phase = REALM_CALL_NONE;
    c->resumed = false;
    c->value = 0;
    c->bits = 0;
    return c;
}

static wasm_trap_t *sync_entry(void *env, wasmtime_caller_t *caller, wasmtime_val_raw_t *io, size_t n) {
    const realm_import *im = env;
    realm_call *c = call_open(im, caller);
    (void)n;
    for (size_t k = 0; im->params[k]; k++) c->args[k] = raw_arg(im->params[k], im->wide, &io[k]);
    realm_call_result r = im->fn(c, c->args, &c->value);
    c->caller = NULL;
    if (r == REALM_CALL_DONE) {
        if (im->result != 'v') give_raw(c, &io[0]);
        return NULL;
    }
    if (r == REALM_CALL_EXIT) note_exit(c);
    if (r == REALM_CALL_SUSPEND || r == REALM_CALL_MOVE || r == REALM_CALL_LONG)
        realm_call_fail(c, "%s.%s may not suspend", im->module, im->name);
    return make_trap(c->instance);
}

/* ---- asynchronous imports ---- */

static void settle(realm_call *c, realm_call_result r) {
    c->outcome = r;
    c->instance->long_call = r == REALM_CALL_LONG;
    c->phase = r == REALM_CALL_SUSPEND                          ? REALM_CALL_WAITING
               : (r == REALM_CALL_MOVE || r == REALM_CALL_LONG) ? REALM_CALL_TODO
                                                                : REALM_CALL_FINISHED;
}

void realm_call_run(realm_call *c) {
    if (c->phase == REALM_CALL_WAITING) c->resumed = true; /* and stays so when it moves to a worker */
    c->wake_at_ns = 0;
    settle(c, c->import->fn(c, c->args, &c->value));
}

/* Polled on the fiber: at once after async_entry, then whenever the worker resumes it. */
static bool async_poll(void *env) {
    realm_instance *i = env;
    realm_call *c = &i->call;
    if (c->phase != REALM_CALL_FINISHED) {
        if (!atomic_load_explicit(&i->kill, memory_order_acquire)) return false;
        /* Still waiting, and to be ended: the worker resumed the fiber for this alone. */
        realm_instance_fill_kill(i);
        c->outcome = REALM_CALL_TRAP;
    }
    c->phase = REALM_CALL_NONE;
    if (c->outcome == REALM_CALL_EXIT) note_exit(c);
    if (c->outcome == REALM_CALL_TRAP || c->outcome == REALM_CALL_EXIT)
        *c->trap = make_trap(i);
    else if (c->import->result != 'v')
        give_val(c, &c->results[0]);
    return true;
}

static void async_entry(void *env, wasmtime_caller_t *caller, const wasmtime_val_t *args, size_t n_args,
                        wasmtime_val_t *results, size_t n_results, wasm_trap_t **trap,
                        wasmtime_async_continuation_t *continuation) {
    const realm_import *im = env;
    realm_call *c = call_open(im, caller);
    (void)n_results;
    for (size_t k = 0; k < n_args; k++) c->args[k] = val_arg(im->params[k], &args[k]);
    c->results = results;
    c->trap = trap;
    c->wake_at_ns = 0;
    memset(c->state, 0, sizeof c->state);
    find_memory(c);
    c->caller = NULL;
    c->instance->long_call = realm_instance_expects_long(c->instance);
    if (c->instance->long_call || im->flags & REALM_IMPORT_OFF_FIBER || c->instance->away ||
        (c->instance->lender && !(im->flags & REALM_IMPORT_BRIEF)))
        c->phase = REALM_CALL_TODO;
    else
        settle(c, im->fn(c, c->args, &c->value));
    continuation->callback = async_poll;
    continuation->env = c->instance;
    continuation->finalizer = NULL;
}

/* ---- the linker ---- */

static wasm_functype_t *import_type(const realm_import *im) {
    wasm_valtype_t *params[REALM_IMPORT_ARGS_MAX], *results[1];
    size_t n = strlen(im->params), n_results = im->result == 'v' ? 0 : 1;
    for (size_t k = 0; k < n; k++) params[k] = wasm_valtype_new(import_kind(im, im->params[k]));
    if (n_results) results[0] = wasm_valtype_new(import_kind(im, im->result));
    wasm_valtype_vec_t pv, rv;
    wasm_valtype_vec_new(&pv, n, params);
    wasm_valtype_vec_new(&rv, n_results, results);
    return wasm_functype_new(&pv, &rv);
}

realm_status realm_linker_define(realm_sandbox *s, realm_error *err) {
    for (size_t k = 0; k < s->n_imports; k++) {
        const realm_import *im = &s->imports[k];
        size_t n = strlen(im->params);
        if (n > REALM_IMPORT_ARGS_MAX || strspn(im->params, "pilfd") != n ||
            (im->result && !strchr("pilfdv", im->result)))
            return realm_error_set(err, REALM_E_INVALID, "import %s.%s: bad parameters \"%s\" or result '%c'",
                                   im->module, im->name, im->params, im->result);
        wasm_functype_t *type = import_type(im);
        if (!type) return realm_error_set(err, REALM_E_NOMEM, "no memory for the import table");
        bool async = im->flags & (REALM_IMPORT_SUSPENDS | REALM_IMPORT_OFF_FIBER);
        wasmtime_error_t *e =
            async ? wasmtime_linker_define_async_func(s->linker, im->module, strlen(im->module), im->name,
                                                      strlen(im->name), type, async_entry, (void *)im, NULL)
                  : wasmtime_linker_define_func_unchecked(s->linker, im->module, strlen(im->module), im->name,
                                                          strlen(im->name), type, sync_entry, (void *)im, NULL);
        wasm_functype_delete(type);
        if (e) return realm_wasmtime_error(e, REALM_E_INVALID, "import table", err);
    }
    return REALM_OK;
}
