/* tenant/run.c - one running program inside a request, from its start to its END event.
 *
 *      realm_run_start           instance ends              ledger has it            polled
 *            |                        |                          |                      |
 *            v     emit, pipe, poll   v       ledger_enqueue     v    output drained    v
 *         RUNNING -----------------> ENDED ------------------> DURABLE --------------> DONE
 *                    run_instance_done           run_durable            realm_run_poll
 *
 * Two sources feed a poll: text that the program emitted (a bounded list here) and, in pipe mode, the events of one
 * generation, which are moved from the engine's list straight into the caller's batch. Emitted output comes first, then
 * the pipe, so their order is the order in which the program caused them.
 */
#include <string.h>

#include "base/alloc.h"
#include "base/log.h"
#include "base/utf8.h"
#include "tenant/internal.h"

#define RUN_EVENTS_MAX 4096u
#define RUN_ARENA_MAX ((size_t)256 << 20)

static void notify(realm_run *run) {
    realm_mutex_lock(&run->notify_mu);
    if (run->on_ready) run->on_ready(run->on_ready_user);
    realm_mutex_unlock(&run->notify_mu);
}

static void run_unref(realm_run *run) {
    /* acq_rel: as for requests */
    if (atomic_fetch_sub_explicit(&run->refs, 1, memory_order_acq_rel) != 1) return;
    realm_instance_release(run->instance);
    realm_program_release(run->program);
    realm_free(run->events);
    realm_buf_release(&run->text);
    realm_grammar_state_close((realm_grammar_state *)(uintptr_t)run->params.generation.grammar);
    realm_arena_release(&run->arena);
    realm_mutex_destroy(&run->notify_mu);
    realm_mutex_destroy(&run->mu);
    if (run->request) {
        atomic_fetch_sub_explicit(&run->request->tenant->rt->runs_active, 1, memory_order_relaxed);
        request_release(run->request);
    }
    realm_free(run);
}

/* ---- start ------------------------------------------------------------------------------------------------------- */

static bool copy_bytes(realm_arena *a, const char **p, size_t len) {
    if (!*p) return true;
    *p = realm_arena_strndup(a, *p, len);
    return *p != NULL;
}

/* Deep copy of what the parameters point at: the caller may let go of it while the program still runs. */
static bool copy_params(realm_run *run, const realm_run_params *p) {
    realm_arena *a = &run->arena;
    run->params = *p;
    realm_run_params *c = &run->params;
    c->generation.grammar = NULL;
    if (p->generation.grammar) {
        realm_grammar_state *own;
        if (realm_grammar_state_fork(p->generation.grammar, &own, NULL) != REALM_OK) return false;
        c->generation.grammar = own;
    }
    if (!copy_bytes(a, &c->input, c->input_len) || !copy_bytes(a, &c->prompt, c->prompt_len) ||
        !copy_bytes(a, &c->template_args, c->template_args_len))
        return false;
    if (c->n_tokens > 0) {
        realm_token *ids = realm_arena_array(a, c->n_tokens, sizeof *ids);
        if (!ids) return false;
        memcpy(ids, c->tokens, c->n_tokens * sizeof *ids);
        c->tokens = ids;
    }
    realm_generation_params *g = &c->generation;
    if (g->sampling.n_bias > 0) {
        realm_logit_bias *bias = realm_arena_array(a, g->sampling.n_bias, sizeof *bias);
        if (!bias) return false;
        memcpy(bias, g->sampling.bias, g->sampling.n_bias * sizeof *bias);
        g->sampling.bias = bias;
    }
    if (g->sampling.n_dry_breakers > 0) {
        realm_token *breakers = realm_arena_array(a, g->sampling.n_dry_breakers, sizeof *breakers);
        if (!breakers) return false;
        memcpy(breakers, g->sampling.dry_breakers, g->sampling.n_dry_breakers * sizeof *breakers);
        g->sampling.dry_breakers = breakers;
    }
    if (g->n_stop > 0) {
        realm_gguf_str *stop = realm_arena_array(a, g->n_stop, sizeof *stop);
        if (!stop) return false;
        for (size_t i = 0; i < g->n_stop; i++) {
            stop[i] = g->stop[i];
            if (!copy_bytes(a, &stop[i].data, stop[i].len)) return false;
        }
        g->stop = stop;
    }
    return true;
}

/* Arguments and environment as they are when the run starts; tenant->mu is held. */
static bool copy_words(realm_run *run, const realm_tenant *t) {
    static const char NAME[] = "program";
    const realm_strings *args = t->args, *env = t->env;
    size_t args_len = sizeof NAME + (args ? args->len : 0);
    char *text = realm_arena_alloc(&run->arena, args_len);
    if (!text) return false;
    memcpy(text, NAME, sizeof NAME);
    if (args) memcpy(text + sizeof NAME, args->text, args->len);
    run->args = (realm_words){.text = text, .len = args_len, .n = 1 + (args ? args->n : 0)};
    if (!env) return true;
    char *copy = realm_arena_strndup(&run->arena, env->text, env->len);
    run->env = (realm_words){.text = copy, .len = env->len, .n = env->n};
    return copy != NULL;
}

/* Nothing of the program runs any more, or it never began: `text` says why, where status is not REALM_OK. */
static void run_ended(realm_run *run, realm_status status, int32_t value, const char *text) {
    realm_mutex_lock(&run->mu);
    realm_host *host = run->host;
    run->host = NULL; /* from here on nobody else calls it */
    run->pipe = NULL;
    realm_mutex_unlock(&run->mu);
    realm_host_close(host); /* its generations report what they used, and go */
    realm_mutex_lock(&run->mu);
    run->prompt_tokens += run->pipe_prompt;
    run->cached_tokens += run->pipe_cached;
    run->completion_tokens += run->pipe_completion;
    run->pipe_prompt = run->pipe_cached = run->pipe_completion = 0;
    run->status = status;
    if (status != REALM_OK) {
        realm_error_set(&run->error, status, "%s", text);
        if (status != REALM_E_CANCELLED)
            atomic_fetch_add_explicit(&run->request->tenant->rt->failures, 1, memory_order_relaxed);
    } else if (value < 0) {
        /* The program gave up: with the failure of its last host call where that is what it returned. */
        run->status = (realm_status)value;
        if (run->error.code != run->status)
            realm_error_set(&run->error, REALM_E_PROGRAM, "the program returned %d (%s)", (int)value,
                            realm_status_text(run->status));
        run->status = run->error.code;
        /* Of a handle that the program used too late or too early, not of the server: no client is to try again. */
        if (value == REALM_E_CLOSED || value == REALM_E_AGAIN || value == REALM_E_CANCELLED)
            run->status = run->error.code = REALM_E_PROGRAM;
    }
    if (run->status == REALM_OK && run->finish == REALM_FINISH_ERROR) run->status = run->error.code;
    if (run->cancelled)
        run->finish = REALM_FINISH_CANCELLED;
    else if (run->status != REALM_OK)
        run->finish = REALM_FINISH_ERROR;
    else if (run->finish == REALM_FINISH_NONE)
        run->finish = REALM_FINISH_STOP;
    run->state = RUN_ENDED;
    /* What failed before anything was computed or shown was refused, not served. */
    bool refused = run->finish == REALM_FINISH_ERROR && run->prompt_tokens == 0 && run->output_bytes == 0;
    bool cancelled = run->cancelled;
    realm_mutex_unlock(&run->mu);
    if (!refused) request_count(run->request, cancelled);
    ledger_enqueue(run->request->tenant->rt, run);
}

static void give_place(realm_run *run) {
    realm_tenant *t = run->request->tenant;
    atomic_fetch_sub_explicit(&t->instances, 1, memory_order_relaxed);
    atomic_fetch_sub_explicit(&t->rt->instances, 1, memory_order_relaxed);
}

/* One of the places for instances. A tenant may have no more of them than are then left for others, so one whose
 * programs all wait ends at half, and who comes new finds room. Counted first, then looked at, so that of two at the
 * limit one at most gets it; relaxed, as these are numbers alone. */
static realm_status take_place(realm_run *run, realm_error *err) {
    realm_tenant *t = run->request->tenant;
    const uint32_t most = t->rt->max_instances,
                   all = atomic_fetch_add_explicit(&t->rt->instances, 1, memory_order_relaxed),
                   own = atomic_fetch_add_explicit(&t->instances, 1, memory_order_relaxed);
    if (all < most && own < most - all) return REALM_OK;
    give_place(run);
    if (all >= most)
        return realm_error_set(err, REALM_E_BUSY, "%u program instances are running, as many as are allowed", most);
    return realm_error_set(err, REALM_E_CROWDED,
                           "%u programs of your requests are running, and %u more may run: they are left for others",
                           own, most - all);
}

/* A worker: the instance has ended and its memory is gone. */
static void run_instance_done(void *user, realm_instance *instance, const realm_instance_result *result) {
    (void)instance;
    give_place(user);
    run_ended(user, result->status, result->value, result->text);
}

/* Whoever runs the program: while it uses the time, the last of it before run_instance_done. */
static void run_used_cpu(void *user, uint64_t ns) {
    const realm_run *run = user;
    ledger_charge_cpu(run->request->tenant, ns);
}

void run_durable(realm_run *run) {
    realm_mutex_lock(&run->mu);
    run->state = RUN_DURABLE;
    realm_mutex_unlock(&run->mu);
    notify(run);
    run_unref(run); /* the instance's */
}

static realm_status on_answer(void *user, const char *text, size_t len, realm_error *err) {
    realm_run *run = user;
    if (!realm_utf8_valid(text, len)) return realm_error_set(err, REALM_E_PROGRAM, "the answer is not valid UTF-8");
    /* Long answers go out in pieces, as the reader takes them. */
    while (run->answer_at < len) {
        size_t piece = REALM_MIN(len - run->answer_at, REALM_RUN_OUTPUT_MAX / 4);
        if (piece < len - run->answer_at) piece = realm_utf8_complete_prefix(text + run->answer_at, piece);
        realm_status s = realm_run_emit(run, -1, text + run->answer_at, piece, NULL);
        if (s == REALM_E_AGAIN) return s;
        if (s == REALM_E_LIMIT)
            return realm_error_set(err, s, "output_bytes: %llu bytes may be given to the client in all",
                                   (unsigned long long)run->limits.output_bytes);
        if (s != REALM_OK) return realm_error_set(err, s, "answer not taken");
        run->answer_at += piece;
    }
    return REALM_OK;
}

/* The prompt of a `generate` program, as text: the conversation as its template writes it, or the prompt as it is. */
static realm_status prompt_text(realm_run *run, realm_buf *rendered, realm_instance_params *ip, realm_error *err) {
    const realm_run_params *p = &run->params;
    const tenant_model *m = run->request->model;
    realm_status s = REALM_OK;
    ip->prompt = p->prompt;
    ip->prompt_len = p->prompt_len;
    if (p->kind == REALM_PROMPT_TEXT) return s;
    if (p->kind == REALM_PROMPT_MESSAGES) {
        realm_text_span *spans = NULL;
        size_t n_spans;
        const realm_conversation c = realm_run_conversation(run);
        s = realm_served_apply_template(m, &c, rendered, &spans, &n_spans, err);
        realm_free(spans);
    } else {
        s = realm_tokenizer_decode(m->tokenizer, p->tokens, p->n_tokens, true, rendered, err);
    }
    ip->prompt = rendered->data;
    ip->prompt_len = rendered->len;
    return s;
}

/* Starts the instance, which takes over one reference; on failure nothing of it is left. */
static realm_status launch(realm_run *run, realm_error *err) {
    realm_program_info info;
    realm_buf rendered;
    realm_instance_params ip = {.user = run,
                                .owner = (uintptr_t)run->request->tenant,
                                .memory_bytes = run->limits.memory_bytes,
                                .cpu_ms_per_wake = run->limits.cpu_ms_per_wake,
                                .wall_ms = run->limits.wall_ms,
                                .model_id = run->request->model->server_id,
                                .on_answer = on_answer,
                                .on_cpu = run_used_cpu,
                                .on_done = run_instance_done};
    realm_host *host;
    realm_status s = take_place(run, err);
    if (s != REALM_OK) return s;
    if ((s = realm_host_open(&host, run, err)) != REALM_OK) {
        give_place(run);
        return s;
    }
    realm_buf_init(&rendered, REALM_RUN_INPUT_MAX);
    realm_program_get_info(run->program, &info);
    if (info.kind == REALM_PROGRAM_GENERATE) s = prompt_text(run, &rendered, &ip, err);
    /* Under the lock: whoever cancels finds the instance, or is found to have cancelled before there was one. */
    realm_mutex_lock(&run->mu);
    if (s == REALM_OK && run->cancelled) s = realm_error_set(err, REALM_E_CANCELLED, "the request was cancelled");
    run->host = host; /* before its first call */
    if (s == REALM_OK) s = realm_instance_start(run->program, &ip, &run->instance, err);
    if (s == REALM_OK)
        realm_host_set_instance(host, run->instance);
    else
        run->host = NULL;
    realm_mutex_unlock(&run->mu);
    if (s != REALM_OK) {
        realm_host_close(host);
        give_place(run);
    }
    realm_buf_release(&rendered);
    return s;
}

void run_program_ready(realm_run *run, realm_program *program, const realm_error *why) {
    realm_error err = *why;
    realm_status s = why->code ? why->code : REALM_E_INTERNAL;
    if (program) {
        run->program = realm_program_retain(program);
        s = launch(run, &err);
    }
    if (s != REALM_OK) run_ended(run, s, 0, err.text);
}

realm_status realm_run_start(realm_request *r, const realm_run_params *p, realm_run **out, realm_error *err) {
    realm_run *run = realm_calloc(1, sizeof *run);
    if (!run) return realm_error_set(err, REALM_E_NOMEM, "run: out of memory");
    realm_mutex_init(&run->mu, REALM_RANK_REQUEST);
    realm_mutex_init(&run->notify_mu, REALM_RANK_NOTIFY);
    realm_arena_init(&run->arena, RUN_ARENA_MAX);
    realm_buf_init(&run->text, REALM_RUN_OUTPUT_MAX);
    run->on_ready = p->on_ready;
    run->on_ready_user = p->user;
    atomic_init(&run->refs, 1);
    realm_status s = REALM_OK;
    bool copied = copy_params(run, p);
    realm_mutex_lock(&r->tenant->mu);
    run->limits = r->tenant->limits;
    copied = copied && copy_words(run, r->tenant);
    realm_mutex_unlock(&r->tenant->mu);
    if (!copied) {
        s = realm_error_set(err, REALM_E_NOMEM, "run: out of memory");
        goto fail;
    }
    /* From here on a failure that is seen through the request releases it too. */
    run->request = r;
    atomic_fetch_add_explicit(&r->refs, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&r->tenant->rt->runs_active, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&run->refs, 1, memory_order_relaxed); /* the instance's */
    if (p->program)
        run->program = realm_program_retain(p->program);
    else
        s = tenant_program(r->tenant, run, &run->program, err);
    if (s == REALM_OK) s = launch(run, err);
    /* AGAIN: the program is being compiled, and what becomes of the run is heard as of any that has started. */
    if (s != REALM_OK && s != REALM_E_AGAIN) {
        atomic_fetch_sub_explicit(&run->refs, 1, memory_order_relaxed);
        goto fail;
    }
    *out = run;
    return REALM_OK;
fail:
    run_unref(run);
    return s;
}

/* ---- the reader's side ------------------------------------------------------------------------------------------- */

static bool batch_push(realm_event_batch *b, realm_event e) {
    if (b->n_events == b->cap_events) {
        size_t cap = b->cap_events ? b->cap_events * 2 : 16;
        realm_event *p = realm_realloc_array(b->events, cap, sizeof *p);
        if (!p) return false;
        b->events = p;
        b->cap_events = cap;
    }
    b->events[b->n_events++] = e;
    return true;
}

/* Moves what the program emitted into `b`; run->mu is held. The two change memory, and each keeps its own bound: a pipe
 * may bring more text at once than a program may emit. */
static size_t take_output(realm_run *run, realm_event_batch *b) {
    realm_event *events = b->events;
    size_t cap = b->cap_events;
    realm_buf text = b->text;
    b->events = run->events;
    b->n_events = run->n_events;
    b->cap_events = run->cap_events;
    b->text = run->text;
    b->n_top = 0;
    run->events = events;
    run->cap_events = cap;
    run->n_events = 0;
    run->text = text;
    b->text.max = text.max;
    run->text.max = REALM_RUN_OUTPUT_MAX;
    realm_buf_reset(&run->text);
    return b->n_events;
}

/* How many of the pipe's events may go out before `output_bytes` is reached; there it ends. run->mu is held. */
static size_t within_output(realm_run *run, const realm_event_batch *b, size_t n) {
    for (size_t i = 0; i < n; i++) {
        uint32_t len = b->events[i].text_len;
        if (!run->pipe_cut && len <= run->limits.output_bytes - run->output_bytes) {
            run->output_bytes += len;
            continue;
        }
        run->pipe_cut = true;
        realm_generation_cancel(run->pipe);
        return i;
    }
    return n;
}

/* Moves the pipe's events into `b`, its END turned into text and the host told; run->mu is held. */
static size_t take_pipe(realm_run *run, realm_event_batch *b) {
    size_t n = realm_generation_poll(run->pipe, b);
    run->pipe_prompt = b->prompt_tokens;
    run->pipe_cached = b->cached_tokens;
    run->pipe_completion = b->completion_tokens;
    if (n == 0) return n;
    realm_event *end = b->events[n - 1].kind == REALM_EVENT_END ? &b->events[n - 1] : NULL;
    size_t keep = within_output(run, b, n);
    if (!end) return b->n_events = keep;
    realm_finish finish = run->pipe_cut && end->finish != REALM_FINISH_ERROR ? REALM_FINISH_LENGTH : end->finish;
    if (!run->finish_set) run->finish = finish;
    if (finish == REALM_FINISH_ERROR) run->error = b->error;
    run->prompt_tokens += run->pipe_prompt;
    run->cached_tokens += run->pipe_cached;
    run->completion_tokens += run->pipe_completion;
    run->pipe_prompt = run->pipe_cached = run->pipe_completion = 0;
    run->pipe = NULL;
    run->pipe_cut = false;
    if (run->host) realm_host_pipe_ended(run->host, finish, b);
    if (keep == n && end->text_len > 0) {
        end->kind = REALM_EVENT_TOKEN;
        end->finish = REALM_FINISH_NONE;
        end->id = -1;
        end->n_top = 0;
    } else {
        b->n_events = n = REALM_MIN(keep, n - 1);
    }
    return n;
}

size_t realm_run_poll(realm_run *run, realm_event_batch *b) {
    size_t n = 0;
    b->n_events = 0;
    b->n_top = 0;
    realm_buf_reset(&b->text);
    realm_mutex_lock(&run->mu);
    if (run->n_events > 0) {
        n = take_output(run, b);
        if (run->blocked) {
            run->blocked = false;
            if (run->host) realm_host_drained(run->host);
        }
        if (run->pipe || run->state == RUN_DURABLE) notify(run); /* there is more behind it */
    } else if (run->pipe) {
        n = take_pipe(run, b);
        if (n == 0 && b->status == REALM_E_NOMEM) notify(run); /* nothing was taken: asked again */
    }
    if (n == 0 && run->state == RUN_DURABLE && run->n_events == 0) {
        realm_event end = {.kind = REALM_EVENT_END, .finish = run->finish, .id = -1};
        if (batch_push(b, end)) {
            run->state = RUN_DONE;
            b->status = run->status;
            b->error = run->error;
            n = 1;
        } else {
            notify(run);
        }
    }
    b->prompt_tokens = run->prompt_tokens + run->pipe_prompt;
    b->cached_tokens = run->cached_tokens + run->pipe_cached;
    b->completion_tokens = run->completion_tokens + run->pipe_completion;
    realm_mutex_unlock(&run->mu);
    return n;
}

/* run->mu is held. */
static void cancel_locked(realm_run *run) {
    if (run->state != RUN_RUNNING || run->cancelled) return;
    run->cancelled = true;
    if (run->host) realm_host_cancel(run->host);
    if (run->instance) realm_instance_cancel(run->instance);
}

void realm_run_cancel(realm_run *run) {
    realm_mutex_lock(&run->mu);
    cancel_locked(run);
    realm_mutex_unlock(&run->mu);
}

void realm_run_release(realm_run *run) {
    if (!run) return;
    realm_mutex_lock(&run->notify_mu);
    run->on_ready = NULL;
    realm_mutex_unlock(&run->notify_mu);
    realm_mutex_lock(&run->mu);
    cancel_locked(run);
    realm_mutex_unlock(&run->mu);
    run_unref(run);
}

/* ---- the program's side (run.h) ---------------------------------------------------------------------------------- */

const realm_run_params *realm_run_get_params(const realm_run *run) { return &run->params; }
realm_conversation realm_run_conversation(const realm_run *run) {
    const realm_run_params *p = &run->params;
    return (realm_conversation){.messages = p->prompt,
                                .messages_len = p->prompt_len,
                                .args = p->template_args,
                                .args_len = p->template_args_len,
                                .add_generation_prompt = true};
}
realm_request *realm_run_request(const realm_run *run) { return run->request; }
realm_runtime *realm_run_runtime(const realm_run *run) { return run->request->tenant->rt; }
const realm_limits *realm_run_limits(const realm_run *run) { return &run->limits; }
const realm_words *realm_run_args(const realm_run *run) { return &run->args; }
const realm_words *realm_run_env(const realm_run *run) { return &run->env; }

static void notify_kept(void *user) {
    realm_run *run = user;
    notify(run);
    run_unref(run);
}

realm_status realm_run_emit(realm_run *run, realm_token id, const char *text, size_t len, const realm_call *call) {
    if (len > REALM_RUN_OUTPUT_MAX) return REALM_E_LIMIT;
    if (!realm_utf8_valid(text, len)) return REALM_E_FORMAT;
    realm_status s = REALM_OK;
    realm_mutex_lock(&run->mu);
    const bool first = run->n_events == 0; /* else its reader has been told, and not come yet */
    if (run->cancelled) {
        s = REALM_E_CANCELLED;
    } else if (len > run->limits.output_bytes - run->output_bytes) {
        s = REALM_E_LIMIT;
    } else if (run->pipe || run->text.len + len > REALM_RUN_OUTPUT_MAX || run->n_events == RUN_EVENTS_MAX) {
        /* Behind a running pipe too: its text comes first. */
        run->blocked = true;
        s = REALM_E_AGAIN;
    } else {
        if (run->n_events == run->cap_events) {
            size_t cap = run->cap_events ? run->cap_events * 2 : 16;
            realm_event *p = realm_realloc_array(run->events, cap, sizeof *p);
            if (!p)
                s = REALM_E_NOMEM;
            else
                run->events = p, run->cap_events = cap;
        }
        uint32_t at = (uint32_t)run->text.len;
        if (s == REALM_OK) s = realm_buf_append(&run->text, text, len);
        if (s == REALM_OK) {
            run->events[run->n_events++] =
                (realm_event){.kind = REALM_EVENT_TOKEN, .id = id, .text_at = at, .text_len = (uint32_t)len};
            run->output_bytes += len;
        }
    }
    realm_mutex_unlock(&run->mu);
    if (s != REALM_OK || !first) return s;
    atomic_fetch_add_explicit(&run->refs, 1, memory_order_relaxed);
    if (!call || !realm_call_defer(call, notify_kept, run)) notify_kept(run);
    return s;
}

void realm_run_generation_params(realm_run *run, realm_generation_params *out) {
    *out = run->params.generation;
    out->account = run->request->account;
    out->share = run->request->share;
    out->prompt = NULL;
    out->n_prompt = 0;
    out->on_ready = NULL;
    out->user = NULL;
}

realm_status realm_run_pipe(realm_run *run, realm_generation *g) {
    realm_mutex_lock(&run->mu);
    realm_status s = run->pipe ? REALM_E_BUSY : REALM_OK;
    if (s == REALM_OK) run->pipe = g;
    realm_mutex_unlock(&run->mu);
    if (s == REALM_OK) notify(run); /* its first events may have come before it was a pipe */
    return s;
}

void realm_run_unpipe(realm_run *run) {
    realm_mutex_lock(&run->mu);
    run->pipe = NULL;
    run->prompt_tokens += run->pipe_prompt;
    run->cached_tokens += run->pipe_cached;
    run->completion_tokens += run->pipe_completion;
    run->pipe_prompt = run->pipe_cached = run->pipe_completion = 0;
    realm_mutex_unlock(&run->mu);
}

void realm_run_pipe_ready(realm_run *run) { notify(run); }

void realm_run_count(realm_run *run, uint32_t prompt, uint32_t cached, uint32_t completion) {
    realm_mutex_lock(&run->mu);
    run->prompt_tokens += prompt;
    run->cached_tokens += cached;
    run->completion_tokens += completion;
    realm_mutex_unlock(&run->mu);
}

void realm_run_set_finish(realm_run *run, realm_finish finish) {
    realm_mutex_lock(&run->mu);
    run->finish = finish;
    run->finish_set = true;
    realm_mutex_unlock(&run->mu);
}

void realm_run_set_error(realm_run *run, const realm_error *err) {
    realm_mutex_lock(&run->mu);
    run->error = *err;
    realm_mutex_unlock(&run->mu);
}
