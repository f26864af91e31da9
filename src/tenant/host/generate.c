/* tenant/host/generate.c - host calls that start, follow and end generations.
 *
 * A generation in events mode is polled by wait(): whatever the engine has produced since goes to the program in one
 * copy, so a free-running program is woken once per batch of tokens. In pipe mode the run hands the tokens to the
 * client and the program hears of the end alone. Both are released when their handle is closed, and all that are left
 * when the instance ends.
 *
 *   EVENTS: generate --submit--> engine --on_ready--> instance woken --wait--> events
 *   PIPE:   generate --submit--> engine --on_ready--> run notified --realm_run_poll--> client
 *           its END --realm_host_pipe_ended--> instance woken
 */
#include <math.h>
#include <string.h>

#include "base/utf8.h"
#include "tenant/host/host.h"

/* ---- options ---- */

typedef struct options { /* what a program asked for, on top of the request's own parameters */
    realm_generation_params params;
    bool chat;
    host_context *context; /* or NULL */
    const host_model *sampler_model, *grammar_model;
    size_t charged; /* what copies of these take */
    uint64_t held;
    realm_gguf_str stop[REALM_STOP_MAX];
    realm_logit_bias *bias;
} options;

static void options_release(options *o) { realm_free(o->bias); }

static realm_status read_stops(realm_call *call, const realm_generate_options *g, options *o) {
    realm_host *h = host_of(call);
    if (g->n_stop > REALM_STOP_MAX)
        return realm_error_set(&h->error, REALM_E_RANGE, "options: at most %u stop strings", REALM_STOP_MAX);
    const unsigned char *list = realm_call_memory(call, g->stop, (uint64_t)g->n_stop * sizeof(realm_bytes));
    if (!list) return realm_error_set(&h->error, REALM_E_RANGE, "options: the stop list is not all inside the memory");
    for (uint32_t i = 0; i < g->n_stop; i++) {
        realm_bytes b;
        memcpy(&b, list + i * sizeof b, sizeof b);
        if (b.len == 0 || b.len > REALM_STOP_BYTES_MAX)
            return realm_error_set(&h->error, REALM_E_RANGE, "options: stop string %u must have 1 to %u bytes", i,
                                   REALM_STOP_BYTES_MAX);
        const char *text = realm_call_memory(call, b.ptr, b.len);
        if (!text)
            return realm_error_set(&h->error, REALM_E_RANGE, "options: stop string %u is not all inside the memory", i);
        o->stop[i] = (realm_gguf_str){text, (size_t)b.len}; /* the engine copies it at submit */
    }
    o->params.stop = o->stop;
    o->params.n_stop = g->n_stop;
    return REALM_OK;
}

static realm_status read_bias(realm_call *call, const realm_generate_options *g, options *o) {
    realm_host *h = host_of(call);
    if (g->n_bias > REALM_LOGIT_BIAS_MAX)
        return realm_error_set(&h->error, REALM_E_RANGE, "options: at most %u biased tokens", REALM_LOGIT_BIAS_MAX);
    const unsigned char *list = realm_call_memory(call, g->bias, (uint64_t)g->n_bias * sizeof(realm_bias));
    if (!list) return realm_error_set(&h->error, REALM_E_RANGE, "options: the bias list is not all inside the memory");
    if (!(o->bias = realm_calloc((size_t)g->n_bias + 1, sizeof *o->bias)))
        return realm_error_set(&h->error, REALM_E_NOMEM, "out of memory");
    for (uint32_t i = 0; i < g->n_bias; i++) {
        realm_bias b;
        memcpy(&b, list + i * sizeof b, sizeof b);
        o->bias[i] = (realm_logit_bias){.id = b.token, .bias = b.bias};
    }
    o->params.sampling.bias = o->bias;
    o->params.sampling.n_bias = g->n_bias;
    return REALM_OK;
}

/* Things of the program's that the options name; whether they fit the model is seen when it is known. */
static realm_status read_handles(realm_host *h, const realm_generate_options *g, options *o) {
    if (g->set & REALM_SET_SAMPLER) {
        const host_sampler *s = host_get(h, (uint64_t)(uint32_t)g->sampler, HOST_SAMPLER);
        if (!s) return realm_error_set(&h->error, REALM_E_INVALID, "options: %d is no open sampler", g->sampler);
        o->params.chain = s->chain;
        o->sampler_model = s->model;
        o->charged += s->charged;
        o->held += s->held;
    }
    if (g->set & REALM_SET_GRAMMAR) {
        const host_grammar *s = host_get(h, (uint64_t)(uint32_t)g->grammar, HOST_GRAMMAR);
        if (!s) return realm_error_set(&h->error, REALM_E_INVALID, "options: %d is no open grammar", g->grammar);
        o->params.grammar = s->state;
        o->grammar_model = s->model;
        o->held += s->held;
    }
    if (g->set & REALM_SET_CONTEXT && !(o->context = host_get(h, (uint64_t)(uint32_t)g->context, HOST_CONTEXT)))
        return realm_error_set(&h->error, REALM_E_INVALID, "options: %d is no open context", g->context);
    return REALM_OK;
}

/* The request's own parameters with what the program set; ranges are the engine's to check. */
static realm_status read_options(realm_call *call, uint64_t ptr, options *o) {
    realm_host *h = host_of(call);
    memset(o, 0, sizeof *o);
    realm_run_generation_params(h->run, &o->params);
    if (ptr == 0) return REALM_OK;
    realm_generate_options g = {0};
    uint32_t size = 0;
    const void *from = realm_call_memory(call, ptr, sizeof size);
    if (from) memcpy(&size, from, sizeof size);
    if (!from || size < 2 * sizeof size || !(from = realm_call_memory(call, ptr, size)))
        return realm_error_set(&h->error, REALM_E_RANGE, "options: a structure of %u bytes at %llu cannot be read",
                               size, (unsigned long long)ptr);
    memcpy(&g, from, REALM_MIN((size_t)size, sizeof g));
    if (g.set & ~0xffffu)
        return realm_error_set(&h->error, REALM_E_UNSUPPORTED, "options: unknown fields 0x%x are set",
                               g.set & ~0xffffu);
    const uint32_t known =
        REALM_GENERATE_LOGPROBS | REALM_GENERATE_IGNORE_END | REALM_GENERATE_SPECIAL_TEXT | REALM_GENERATE_CHAT;
    if (g.flags & ~known)
        return realm_error_set(&h->error, REALM_E_UNSUPPORTED, "options: unknown flags 0x%x", g.flags & ~known);
    realm_generation_params *p = &o->params;
    realm_sampling *s = &p->sampling;
    if (g.set & REALM_SET_MAX_TOKENS) {
        p->max_tokens = g.max_tokens;
        p->prompt_only = false;
    }
    if (g.set & REALM_SET_TEMPERATURE) s->temperature = g.temperature;
    if (g.set & REALM_SET_TOP_K) s->top_k = g.top_k;
    if (g.set & REALM_SET_TOP_P) s->top_p = g.top_p;
    if (g.set & REALM_SET_MIN_P) s->min_p = g.min_p;
    if (g.set & REALM_SET_REPEAT_PENALTY) s->repeat_penalty = g.repeat_penalty;
    if (g.set & REALM_SET_FREQUENCY_PENALTY) s->frequency_penalty = g.frequency_penalty;
    if (g.set & REALM_SET_PRESENCE_PENALTY) s->presence_penalty = g.presence_penalty;
    if (g.set & REALM_SET_PENALTY_LAST_N) s->penalty_last_n = g.penalty_last_n;
    if (g.set & REALM_SET_SEED) s->seed = g.seed;
    if (g.set & REALM_SET_FLAGS) {
        p->logprobs = g.flags & REALM_GENERATE_LOGPROBS;
        p->ignore_end = g.flags & REALM_GENERATE_IGNORE_END;
        p->special_text = g.flags & REALM_GENERATE_SPECIAL_TEXT;
    }
    o->chat = g.flags & REALM_GENERATE_CHAT;
    p->run_ahead = g.run_ahead; /* looked at in that mode alone */
    realm_status st = read_handles(h, &g, o);
    if (!st && (g.set & REALM_SET_STOP)) st = read_stops(call, &g, o);
    if (!st && (g.set & REALM_SET_BIAS)) st = read_bias(call, &g, o);
    return st;
}

/* ---- start ---- */

static void events_ready(void *user) {
    host_generation *g = user;
    realm_instance *i = atomic_load_explicit(&g->host->instance, memory_order_acquire);
    if (i) realm_instance_wake(i);
}

static void pipe_ready(void *user) {
    host_generation *g = user;
    if (atomic_load_explicit(&g->leaving, memory_order_acquire))
        events_ready(user);
    else
        realm_run_pipe_ready(g->host->run);
}

static bool has_pipe(const realm_host *h) {
    for (uint32_t i = 0; i < h->n_slots; i++) {
        const host_generation *g = host_at(h, i, HOST_GENERATION);
        if (g && g->pipe && !g->delivered) return true;
    }
    return false;
}

static realm_status check_models(realm_host *h, const host_model *model, const options *o) {
    realm_status st = REALM_OK;
    if (o->sampler_model) st = host_same_model(h, o->sampler_model, "the sampler", model);
    if (!st && o->grammar_model) st = host_same_model(h, o->grammar_model, "the grammar", model);
    if (!st && o->context) st = host_same_model(h, o->context->model, "the context", model);
    return st;
}

/* Gives a new generation its handle and submits it; with `run_ahead` set in the parameters it waits for confirm(). */
static realm_status submit(realm_host *h, host_generation *g, const realm_generation_params *p) {
    realm_status st = host_slot_take(h, HOST_GENERATION, g, &g->handle);
    if (st) {
        host_generation_free(h, g);
        return st;
    }
    realm_generation *made = NULL;
    st = realm_generation_submit(g->model->m->engine, p, &made, &h->error);
    realm_mutex_lock(&h->mu);
    g->g = made;
    /* A cancel that came before the generation was in the list did not see it. */
    if (!st && atomic_load_explicit(&h->cancelled, memory_order_acquire)) realm_generation_cancel(made);
    realm_mutex_unlock(&h->mu);
    if (!st && g->pipe && (st = realm_run_pipe(h->run, made)))
        realm_error_set(&h->error, st, "generate: another generation is piped to the client");
    if (st) {
        g->pipe = false; /* it never became the run's */
        host_handle_close(h, (uint64_t)g->handle);
    }
    return st;
}

static host_generation *generation_new(realm_host *h, const host_model *model) {
    host_generation *g = realm_calloc(1, sizeof *g);
    if (!g) {
        realm_error_set(&h->error, REALM_E_NOMEM, "out of memory");
        return NULL;
    }
    g->host = h;
    g->model = model;
    realm_event_batch_init(&g->batch);
    return g;
}

/* On success the generation has a handle and, for a pipe, is the run's. */
static realm_status start(realm_host *h, const host_model *model, options *o, const realm_tokens *prompt, bool pipe,
                          host_generation **out) {
    realm_generation_params *p = &o->params;
    realm_status st = check_models(h, model, o);
    if (!st && o->context)
        st = host_context_reserve(h, o->context,
                                  prompt->len + (p->max_tokens ? p->max_tokens : host_context_length(model)));
    if (st) return st;
    host_generation *g = generation_new(h, model);
    if (!g) return h->error.code;
    if ((st = host_copy_pay(h, o->charged, o->held, "a generation's grammar"))) {
        host_generation_free(h, g);
        return st;
    }
    g->charged = o->charged;
    g->held = o->held;
    g->pipe = pipe;
    g->ahead = p->run_ahead > 0;
    p->account = model->account;
    p->prompt = prompt->ids;
    p->n_prompt = prompt->len;
    p->on_ready = pipe ? pipe_ready : events_ready;
    p->user = g;
    if (o->context) {
        g->on_context = true;
        p->context = o->context->c;
        p->prompt_logprobs = false; /* of what is behind other tokens there are none to tell */
    }
    /* Siblings of a request share its own prompt's pages; any other prompt has nothing to share. */
    if (o->context || !h->own_made || model->m != h->own.model->m || prompt->len != h->own.tokens.len ||
        memcmp(prompt->ids, h->own.tokens.ids, prompt->len * sizeof *prompt->ids) != 0)
        p->share = NULL;
    if ((st = submit(h, g, p))) return st;
    *out = g;
    return REALM_OK;
}

realm_call_result host_generate(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    static const realm_tokens none;
    host_generation *g;
    options o;
    host_prompt *p = args[0] ? host_need(h, args[0], HOST_PROMPT, "generate", result) : NULL;
    if (args[0] && !p) return REALM_CALL_DONE;
    if (args[2] > REALM_MODE_AHEAD)
        return host_fail(h, result, REALM_E_INVALID, "generate: there is no mode %u", (unsigned)args[2]);
    bool pipe = args[2] == REALM_MODE_PIPE;
    if (pipe && has_pipe(h))
        return host_fail(h, result, REALM_E_BUSY, "generate: another generation is piped to the client");
    realm_status st = read_options(call, args[1], &o);
    if (!st && !p && !o.context)
        st = realm_error_set(&h->error, REALM_E_INVALID, "generate: there is neither a prompt nor a context");
    if (args[2] != REALM_MODE_AHEAD) o.params.run_ahead = 0;
    if (!st && args[2] == REALM_MODE_AHEAD && (o.params.run_ahead == 0 || o.params.run_ahead > REALM_RUN_AHEAD_MAX))
        st = realm_error_set(&h->error, REALM_E_RANGE, "options: run_ahead is %u, it must be 1 to %u",
                             o.params.run_ahead, REALM_RUN_AHEAD_MAX);
    if (!pipe) o.params.prompt_logprobs = false; /* wait() has no event for them */
    if (!st) st = start(h, p ? p->model : o.context->model, &o, p ? &p->tokens : &none, pipe, &g);
    options_release(&o);
    if (st) return host_failed(h, result);
    *result = g->handle;
    return REALM_CALL_DONE;
}

realm_status host_forward_start(realm_host *h, host_context *c, const realm_tokens *tokens, uint32_t n_rows,
                                bool hidden, int32_t *handle) {
    const realm_hparams *hp = realm_model_hparams(c->model->m->model);
    if (host_context_reserve(h, c, tokens->len)) return h->error.code;
    host_generation *g = generation_new(h, c->model);
    if (!g) return h->error.code;
    g->forward = g->on_context = true;
    realm_generation_params p = {.account = c->model->account,
                                 .prompt = tokens->ids,
                                 .n_prompt = tokens->len,
                                 .context = c->c,
                                 .forward = true,
                                 .n_rows = n_rows,
                                 .hidden = hidden,
                                 .on_ready = events_ready,
                                 .user = g};
    realm_sampling_init(&p.sampling);
    uint64_t row = (hp->n_vocab + (hidden ? hp->d_model : 0u)) * sizeof(float);
    uint64_t bytes = row * REALM_MIN(n_rows, REALM_FORWARD_ROWS);
    realm_status st = host_charge_tensor(h, bytes, "forward");
    if (st) {
        host_generation_free(h, g);
        return st;
    }
    g->rows.charged = bytes;
    if (!(st = submit(h, g, &p))) *handle = g->handle;
    return st;
}

/* ---- following ---- */

/* Tells the run what a generation has used since it was last told. */
static void report(realm_host *h, host_generation *g) {
    const realm_event_batch *b = &g->batch;
    uint32_t prompt = b->prompt_tokens - g->counted_prompt, cached = b->cached_tokens - g->counted_cached,
             completion = b->completion_tokens - g->counted_completion;
    if (g->pipe || !(prompt | cached | completion)) return;
    realm_run_count(h->run, prompt, cached, completion);
    g->counted_prompt += prompt;
    g->counted_cached += cached;
    g->counted_completion += completion;
}

/* Makes sure that the next event is in the batch; false when there is none yet. */
static bool fill(realm_host *h, host_generation *g) {
    if (g->next < g->batch.n_events) return true;
    g->next = 0;
    size_t n = realm_generation_poll(g->g, &g->batch);
    report(h, g);
    return n > 0;
}

/* The end of a generation, as the run should know it. A failure is the program's to deal with: it is the request's
 * where the program returns its code. */
static void note_end(realm_host *h, realm_finish finish, const realm_error *why) {
    if (finish == REALM_FINISH_ERROR) {
        h->error = *why;
        realm_run_set_error(h->run, why);
    }
    if (!h->finish_set && (finish == REALM_FINISH_STOP || finish == REALM_FINISH_LENGTH))
        realm_run_set_finish(h->run, finish);
}

/* What the end event of a generation or forward pass brings with it. */
static void ended(realm_host *h, host_generation *g, const realm_event *end) {
    g->delivered = true;
    if (g->forward) g->rows.logits = realm_generation_take_logits(g->g);
    if (!g->forward || end->finish == REALM_FINISH_ERROR) note_end(h, end->finish, &g->batch.error);
}

static uint32_t end_code(realm_finish f) {
    switch (f) {
    case REALM_FINISH_STOP: return REALM_END_STOP;
    case REALM_FINISH_LENGTH: return REALM_END_LENGTH;
    case REALM_FINISH_CANCELLED: return REALM_END_CANCELLED;
    default: return REALM_END_ERROR;
    }
}

static bool put(host_sink *s, realm_guest_event *e, const char *text) {
    if (s->put(s, e, text)) {
        s->n++;
        return true;
    }
    s->full = true;
    return false;
}

static void collect_pipe(realm_host *h, host_generation *g, host_sink *s) {
    realm_mutex_lock(&h->mu);
    bool ended = g->pipe_ended;
    realm_mutex_unlock(&h->mu);
    if (!ended) return;
    realm_guest_event e = {
        .handle = g->handle, .kind = REALM_EVENT_KIND_END, .token = -1, .finish = end_code(g->pipe_finish)};
    if (g->pipe_finish == REALM_FINISH_ERROR) e.status = (int32_t)g->pipe_error.code;
    if (!put(s, &e, "")) return;
    if (g->pipe_finish == REALM_FINISH_ERROR) h->error = g->pipe_error;
    g->delivered = true; /* the run itself noted how it ended */
}

static void collect(realm_host *h, host_generation *g, host_sink *s) {
    if (g->pipe) {
        collect_pipe(h, g, s);
        return;
    }
    while (!g->delivered && fill(h, g)) {
        const realm_event *from = &g->batch.events[g->next];
        bool end = from->kind == REALM_EVENT_END;
        realm_guest_event e = {.handle = g->handle,
                               .kind = end ? REALM_EVENT_KIND_END : REALM_EVENT_KIND_TOKEN,
                               .token = end ? -1 : from->id,
                               .logprob = from->logprob,
                               .text_len = from->text_len};
        if (end) {
            e.finish = end_code(from->finish);
            e.status = from->finish == REALM_FINISH_ERROR ? (int32_t)g->batch.status : 0;
        }
        if (from->kind != REALM_EVENT_PROMPT && !put(s, &e, g->batch.text.data + from->text_at)) return;
        g->next++;
        g->n_seen += from->kind == REALM_EVENT_TOKEN;
        if (end) ended(h, g, from);
    }
}

/* False when there is none that could still bring anything. */
bool host_collect(realm_host *h, host_generation *one, host_sink *s) {
    if (one) {
        collect(h, one, s);
        return true;
    }
    bool any = false;
    uint32_t first = h->next_wait;
    for (uint32_t k = 0; k < h->n_slots; k++) {
        uint32_t i = (first + k) % h->n_slots;
        host_generation *g = host_at(h, i, HOST_GENERATION);
        if (!g || g->delivered) continue;
        any = true;
        size_t before = s->n;
        collect(h, g, s);
        if (s->n > before) h->next_wait = i + 1; /* the next one goes first next time */
    }
    return any;
}

typedef struct array { /* the sink of wait(): an array in the program's memory, and a text buffer */
    host_sink sink;
    unsigned char *events;
    size_t max;
    char *text;
    size_t text_len, text_max;
} array;

static bool array_put(host_sink *s, realm_guest_event *e, const char *text) {
    array *a = (array *)s;
    if (s->n == a->max || e->text_len > a->text_max - a->text_len) return false;
    e->text_at = (uint32_t)a->text_len;
    if (e->text_len) memcpy(a->text + a->text_len, text, e->text_len);
    a->text_len += e->text_len;
    memcpy(a->events + s->n * sizeof *e, e, sizeof *e); /* may not be aligned */
    return true;
}

bool host_time_is_up(realm_call *call, uint64_t *deadline, int32_t timeout_ms) {
    if (!realm_call_resumed(call) && timeout_ms >= 0)
        *deadline = realm_clock_ns() + (uint64_t)timeout_ms * REALM_NS_PER_MS;
    if (!*deadline) return false;
    if (realm_clock_ns() >= *deadline) return true;
    realm_call_wake_at(call, *deadline);
    return false;
}

/* wait(handle or 0, events, max events, text, max text, timeout in ms or -1) -> events */
realm_call_result host_wait(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    array a = {.sink = {.put = array_put},
               .max = (size_t)REALM_MIN(args[2], HOST_EVENTS_MAX),
               .text_max = (size_t)REALM_MIN(args[4], UINT32_MAX)};
    if (a.max == 0) return host_fail(h, result, REALM_E_RANGE, "wait: there must be room for one event");
    if (!(a.events = host_room(call, args[1], args[2], sizeof(realm_guest_event), "wait", result)) ||
        !(a.text = host_range(call, args[3], args[4], "wait", result)))
        return REALM_CALL_DONE;
    host_generation *g = NULL;
    if (args[0] != 0) {
        if (!(g = host_need(h, args[0], HOST_GENERATION, "wait", result))) return REALM_CALL_DONE;
        if (g->delivered) return host_fail(h, result, REALM_E_CLOSED, "wait: the generation has ended");
    }
    if (atomic_load_explicit(&h->cancelled, memory_order_acquire) || realm_call_cancelled(call))
        return host_fail(h, result, REALM_E_CANCELLED, "wait: the request was cancelled");
    bool running = host_collect(h, g, &a.sink);
    if (a.sink.n > 0) {
        *result = (int32_t)a.sink.n;
        return REALM_CALL_DONE;
    }
    if (!running) return host_fail(h, result, REALM_E_NOT_FOUND, "wait: no generation is running");
    if (a.sink.full)
        return host_fail(h, result, REALM_E_RANGE, "wait: the text of the next event does not fit in %zu bytes",
                         a.text_max);
    if (host_time_is_up(call, realm_call_state(call), (int32_t)(uint32_t)args[5])) return REALM_CALL_DONE; /* none */
    return REALM_CALL_SUSPEND;
}

realm_call_result host_usage(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    host_generation *g = host_need(h, args[0], HOST_GENERATION, "usage", result);
    if (!g) return REALM_CALL_DONE;
    void *to = host_range(call, args[1], sizeof(realm_guest_usage), "usage", result);
    if (!to) return REALM_CALL_DONE;
    realm_guest_usage u = {g->batch.prompt_tokens, g->batch.cached_tokens, g->batch.completion_tokens};
    realm_mutex_lock(&h->mu);
    if (g->pipe) u = g->pipe_usage;
    realm_mutex_unlock(&h->mu);
    memcpy(to, &u, sizeof u);
    return REALM_CALL_DONE;
}

/* ---- ending ---- */

/* Its pipe, if it is one that has not ended: no poll of the run is in it, or begins with it, from here on. */
static void unpipe(realm_host *h, const host_generation *g) {
    realm_mutex_lock(&h->mu);
    bool piped = g->pipe && !g->pipe_ended;
    realm_mutex_unlock(&h->mu);
    if (piped) realm_run_unpipe(h->run);
}

bool host_generation_left(realm_call *call, host_generation *g) {
    realm_host *h = host_of(call);
    if (!g->on_context || g->delivered || atomic_load_explicit(&h->cancelled, memory_order_acquire) ||
        realm_call_cancelled(call))
        return true;
    if (!atomic_load_explicit(&g->leaving, memory_order_relaxed)) {
        atomic_store_explicit(&g->leaving, true, memory_order_release);
        unpipe(h, g);
        realm_generation_cancel(g->g);
    }
    realm_mutex_lock(&h->mu);
    bool ended = g->pipe_ended;
    realm_mutex_unlock(&h->mu);
    const realm_event_batch *b = &g->batch; /* of a pipe nothing: the run has its own */
    do ended = ended || (b->n_events > 0 && b->events[b->n_events - 1].kind == REALM_EVENT_END);
    while (!ended && realm_generation_poll(g->g, &g->batch) > 0);
    if (!ended) return false;
    report(h, g);
    g->delivered = true;
    return true;
}

/* Cancels, reports what it has used, releases. */
void host_generation_free(realm_host *h, void *object) {
    host_generation *g = object;
    unpipe(h, g);
    realm_mutex_lock(&h->mu);
    realm_generation *made = g->g;
    g->g = NULL;
    realm_mutex_unlock(&h->mu);
    if (made) {
        if (!g->pipe && !g->delivered) {
            realm_generation_cancel(made);
            realm_generation_poll(made, &g->batch); /* what it has used by now; the account has the exact number */
            report(h, g);
        }
        realm_generation_release(made);
    }
    realm_logits_release(g->rows.logits);
    h->tensor_bytes -= g->rows.charged;
    host_copy_pay_back(h, g->charged, g->held);
    realm_event_batch_release(&g->batch);
    realm_free(g);
}

/* ---- running ahead ---- */

static host_generation *need_ahead(realm_host *h, uint64_t handle, const char *call, int32_t *result) {
    host_generation *g = host_need(h, handle, HOST_GENERATION, call, result);
    if (!g || g->ahead) return g;
    host_fail(h, result, REALM_E_INVALID, "%s: the generation does not run ahead", call);
    return NULL;
}

/* confirm(generation, n) */
realm_call_result host_confirm(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    host_generation *g = need_ahead(h, args[0], "confirm", result);
    if (!g) return REALM_CALL_DONE;
    if (args[1] > g->n_seen)
        return host_fail(h, result, REALM_E_RANGE, "confirm: %u tokens, of which %u were seen", (unsigned)args[1],
                         g->n_seen);
    realm_generation_confirm(g->g, (uint32_t)args[1], g->delivered);
    return REALM_CALL_DONE;
}

/* rewind(generation, n_keep, tokens, n): what the program has not seen yet goes with the rest. */
realm_call_result host_rewind(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    realm_tokens t = {0};
    host_generation *g = need_ahead(h, args[0], "rewind", result);
    if (!g) return REALM_CALL_DONE;
    if (args[1] > g->n_seen)
        return host_fail(h, result, REALM_E_RANGE, "rewind: %u tokens cannot be kept, %u were seen", (unsigned)args[1],
                         g->n_seen);
    realm_status st = host_take_tokens(call, "rewind", g->model, args[2], args[3], &t);
    if (!st) st = realm_generation_rewind(g->g, (uint32_t)args[1], t.ids, t.len, &h->error);
    if (!st) {
        g->next = g->batch.n_events = 0;
        g->delivered = false;
        g->n_seen = (uint32_t)(args[1] + t.len);
    }
    realm_tokens_release(&t);
    return st ? host_failed(h, result) : REALM_CALL_DONE;
}

realm_call_result host_cancel(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    host_generation *g = host_need(h, args[0], HOST_GENERATION, "cancel", result);
    if (!g) return REALM_CALL_DONE;
    realm_generation_cancel(g->g);
    return REALM_CALL_DONE;
}

/* ---- for calls that hide the generation from the program ---- */

realm_status host_generation_start(realm_host *h, const host_model *model, const realm_generation_params *p,
                                   const realm_tokens *prompt, host_generation **out) {
    options o = {.params = *p};
    return start(h, model, &o, prompt, false, out);
}

const realm_event *host_generation_next(realm_host *h, host_generation *g) {
    if (g->delivered || !fill(h, g)) return NULL;
    const realm_event *e = &g->batch.events[g->next++];
    if (e->kind == REALM_EVENT_END) ended(h, g, e);
    return e;
}

/* ---- the whole of it in one call ---- */

typedef struct whole { /* between the runs of realm_host_generate's callback */
    int32_t handle;
    bool full;
    uint64_t len;
} whole;

static realm_status begin_whole(realm_call *call, const host_model *model, const uint64_t *args, whole *w) {
    realm_host *h = host_of(call);
    host_prompt prompt = {0};
    host_generation *g;
    options o = {0};
    if (args[2] > HOST_TEXT_BYTES_MAX)
        return realm_error_set(&h->error, REALM_E_LIMIT, "realm_host_generate: at most %u bytes of prompt",
                               HOST_TEXT_BYTES_MAX);
    const char *text = realm_call_memory(call, args[1], args[2]);
    if (!text || !realm_call_memory(call, args[4], args[5]))
        return realm_error_set(&h->error, REALM_E_RANGE, "realm_host_generate: %s is not all inside the memory",
                               text ? "the output" : "the prompt");
    realm_status st = read_options(call, args[3], &o);
    o.params.prompt_logprobs = false;
    o.params.run_ahead = 0;
    if (!st) st = host_prompt_from_program(h, model, text, (size_t)args[2], o.chat, &prompt);
    if (!st) st = start(h, model, &o, &prompt.tokens, false, &g);
    if (!st) w->handle = g->handle;
    options_release(&o);
    host_prompt_release(h, &prompt);
    return st;
}

/* Appends an event's text to the output; what does not fit is cut between characters. */
static void append_whole(whole *w, char *out, uint64_t max, const char *text, size_t n) {
    if (n > max - w->len) {
        n = realm_utf8_complete_prefix(text, (size_t)(max - w->len));
        w->full = true;
    }
    if (n) memcpy(out + w->len, text, n);
    w->len += n;
}

realm_call_result host_realm_host_generate(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    whole *w = realm_call_state(call);
    if (!w->handle) { /* not begun: the model may have to be got first */
        const host_model *model;
        realm_call_result state = host_model_get(call, args[0], &model, result);
        if (!model) return state;
        if (host_is_long(call, REALM_MAX(args[2], host_own_bytes(h)))) return REALM_CALL_LONG;
        if (begin_whole(call, model, args, w)) return host_failed(h, result);
    }
    host_generation *g = host_get(h, (uint64_t)(uint32_t)w->handle, HOST_GENERATION);
    char *out = realm_call_memory(call, args[4], args[5]);
    uint64_t max = REALM_MIN(args[5], (uint64_t)INT32_MAX);
    if (!g || !out) return host_fail(h, result, REALM_E_INTERNAL, "realm_host_generate: lost its generation");
    realm_status failed = REALM_OK;
    const realm_event *e;
    while (!w->full && (e = host_generation_next(h, g))) {
        if (e->text_len) append_whole(w, out, max, g->batch.text.data + e->text_at, e->text_len);
        if (e->kind != REALM_EVENT_END) continue;
        if (e->finish == REALM_FINISH_ERROR) failed = g->batch.status;
        if (e->finish == REALM_FINISH_CANCELLED) failed = REALM_E_CANCELLED;
    }
    bool cancelled = atomic_load_explicit(&h->cancelled, memory_order_acquire) || realm_call_cancelled(call);
    if (!g->delivered && !w->full && !cancelled) return REALM_CALL_SUSPEND;
    bool ended = g->delivered;
    if (!host_generation_left(call, g)) return REALM_CALL_SUSPEND;
    if (w->full && !h->finish_set) realm_run_set_finish(h->run, REALM_FINISH_LENGTH);
    host_handle_close(h, (uint64_t)g->handle);
    if (failed == REALM_E_CANCELLED || (cancelled && !ended))
        return host_fail(h, result, REALM_E_CANCELLED, "realm_host_generate: the request was cancelled");
    if (failed) return host_failed(h, result); /* note_end left the text */
    *result = (int32_t)w->len;
    return REALM_CALL_DONE;
}
