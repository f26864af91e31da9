/* pipeline/run.c - runs a pipeline: one thread that starts what can start and waits for what runs.
 *
 *      step    WAITING --all that it mentions has ended--> RUNNING --every branch DONE--> DONE
 *                 |                 (begin_step)                        (end_branch)       ^
 *                 +------------ `when` is false: skipped ----------------------------------+
 *
 *      branch  PENDING --start_call--> RUNNING --END, accepted--> DONE
 *                 ^                       |
 *                 +-- another attempt ----+--no attempt left--> the pipeline fails
 *
 * Calls run in the engines and sandboxes on other threads; this one sleeps until a call has something to read, at most
 * a fifth of a second, so that a watcher can draw and cancel. When the pipeline ends, however it ends, the calls that
 * still run are released, which cancels them; what they used is in the ledger.
 */
#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/file.h"
#include "pipeline/run.h"

#define TICK_NS (200 * REALM_NS_PER_MS)
#define PROGRAM_MAX ((size_t)32 << 20)

static realm_status no_memory(realm_error *err) { return realm_error_set(err, REALM_E_NOMEM, "out of memory"); }

static realm_status tell(pipe_run *r, realm_pipeline_event event, uint32_t step, realm_error *err) {
    if (!r->watch || !r->watch->progress) return REALM_OK;
    bool tick = event == REALM_PIPELINE_TICK;
    realm_pipeline_progress now = {.event = event,
                                   .step = tick ? NULL : r->p->steps[step].id,
                                   .skipped = !tick && r->steps[step].skipped,
                                   .steps_ended = r->n_done,
                                   .calls_running = r->n_running,
                                   .tokens = r->prompt_tokens + r->completion_tokens};
    if (r->watch->progress(r->watch->user, &now)) return REALM_OK;
    return realm_error_set(err, REALM_E_CANCELLED, "stopped");
}

/* "answers[2]: why" where a step has branches, else "answers: why". */
static realm_status in_step(const pipe_run *r, uint32_t step, uint32_t branch, realm_status s, realm_error *err) {
    if (r->steps[step].n_branches > 1)
        realm_error_prefix(err, "%s[%u]", r->p->steps[step].id, branch);
    else
        realm_error_prefix(err, "%s", r->p->steps[step].id);
    return s;
}

/* ---- branches that end ------------------------------------------------------------------------------------------- */

static realm_status end_step(pipe_run *r, uint32_t step, realm_error *err) {
    r->steps[step].state = STEP_DONE;
    r->steps[step].end_ns = realm_clock_ns();
    r->n_done++;
    return tell(r, REALM_PIPELINE_ENDED, step, err);
}

/* Takes the text. */
static realm_status end_branch(pipe_run *r, uint32_t step, uint32_t branch, realm_buf *text, realm_error *err) {
    pipe_step_run *s = &r->steps[step];
    pipe_branch *b = &s->branches[branch];
    if (!(b->text = realm_buf_take(text, &b->len))) return no_memory(err);
    b->state = BRANCH_DONE;
    s->n_done++;
    return s->n_done == s->n_branches ? end_step(r, step, err) : REALM_OK;
}

static realm_status count_bytes(pipe_run *r, size_t len, realm_error *err) {
    r->bytes += len;
    if (r->bytes <= (uint64_t)r->p->limits.output_bytes) return REALM_OK;
    return realm_error_set(err, REALM_E_LIMIT, "limit output_bytes: the texts have more than %lld bytes",
                           (long long)r->p->limits.output_bytes);
}

/* ---- calls ------------------------------------------------------------------------------------------------------- */

static void on_ready(void *user) {
    pipe_run *r = user;
    realm_mutex_lock(&r->mu);
    r->ready = true;
    realm_cond_signal(&r->cond);
    realm_mutex_unlock(&r->mu);
}

/* Seeds of branches and attempts: the step's own for the first, mixed with their number for the others. */
static uint64_t seed_of(uint64_t seed, uint32_t branch, uint32_t attempt) {
    if (branch == 0 && attempt == 0) return seed;
    return realm_mix_u64(seed + ((uint64_t)attempt << 32 | branch) * UINT64_C(0x9E3779B97F4A7C15));
}

static uint32_t attempts_of(const pipe_step *s) { return (uint32_t)(1 + s->n_fallback) * (s->retry + 1); }

static uint32_t model_of(const pipe_step *s, uint32_t attempt) {
    uint32_t i = attempt / (s->retry + 1);
    return i == 0 ? s->model : s->fallback[i - 1];
}

/* The conversation as JSON, or the text of a raw prompt. */
static realm_status write_prompt(const pipe_run *r, uint32_t step, uint32_t branch, realm_buf *out, realm_error *err) {
    const pipe_step *s = &r->p->steps[step];
    const pipe_branch *b = &r->steps[step].branches[branch];
    realm_json_writer w;
    realm_status st = REALM_OK;
    if (s->raw) return pipe_render_for(r, s->messages[0].content, b, branch, NULL, 0, out, err);
    realm_json_writer_init(&w, out);
    realm_json_begin_array(&w);
    for (size_t i = 0; st == REALM_OK && i < s->n_messages; i++) {
        realm_buf text;
        realm_buf_init(&text, REALM_RUN_INPUT_MAX);
        st = pipe_render_for(r, s->messages[i].content, b, branch, NULL, 0, &text, err);
        realm_json_begin_object(&w);
        realm_json_key(&w, "role");
        realm_json_write_cstr(&w, s->messages[i].role);
        realm_json_key(&w, "content");
        realm_json_write_str(&w, text.data ? text.data : "", text.len);
        realm_json_end_object(&w);
        realm_buf_release(&text);
    }
    realm_json_end_array(&w);
    if (st == REALM_OK && (st = realm_buf_status(out)) != REALM_OK) realm_error_set(err, st, "the prompt is too long");
    return st;
}

/* What a program of the tenant's reads: the request as it would be over HTTP. */
static void write_input(const pipe_step *s, const char *model, uint64_t seed, const realm_buf *prompt, realm_buf *out) {
    const realm_sampling *p = &s->params.sampling;
    realm_json_writer w;
    realm_json_writer_init(&w, out);
    realm_json_begin_object(&w);
    realm_json_key(&w, "endpoint");
    realm_json_write_cstr(&w, s->raw ? "completion" : "chat");
    realm_json_key(&w, "model");
    realm_json_write_cstr(&w, model);
    realm_json_key(&w, s->raw ? "prompt" : "messages");
    if (s->raw)
        realm_json_write_str(&w, prompt->data ? prompt->data : "", prompt->len);
    else
        realm_json_write_raw(&w, prompt->data, prompt->len);
    realm_json_key(&w, "max_tokens");
    realm_json_write_uint(&w, s->params.max_tokens);
    realm_json_key(&w, "seed");
    realm_json_write_int(&w, (int64_t)seed);
#define REAL(name)             \
    realm_json_key(&w, #name); \
    realm_json_write_float(&w, p->name);
    REAL(temperature)
    REAL(top_p)
    REAL(min_p)
    REAL(frequency_penalty)
    REAL(presence_penalty)
    REAL(repeat_penalty)
#undef REAL
    realm_json_key(&w, "top_k");
    realm_json_write_uint(&w, p->top_k);
    if (s->params.n_stop > 0) {
        realm_json_key(&w, "stop");
        realm_json_begin_array(&w);
        for (size_t i = 0; i < s->params.n_stop; i++)
            realm_json_write_str(&w, s->params.stop[i].data, s->params.stop[i].len);
        realm_json_end_array(&w);
    }
    realm_json_end_object(&w);
}

static void free_call(pipe_call *c) {
    realm_run_release(c->run);
    realm_request_close(c->request);
    realm_buf_release(&c->text);
    realm_event_batch_release(&c->batch);
    *c = (pipe_call){0};
}

static void drop_call(pipe_run *r, pipe_call *c) {
    r->reserved_tokens -= r->p->steps[c->step].params.max_tokens;
    r->n_running--;
    free_call(c);
}

/* Whether the limits allow a further call of this step now: REALM_E_AGAIN where it has to wait for running ones. */
static realm_status allowed(const pipe_run *r, const pipe_step *s, realm_error *err) {
    uint64_t used = r->prompt_tokens + r->completion_tokens;
    if (r->n_running >= r->parallel) return REALM_E_AGAIN;
    if (r->n_calls >= (uint64_t)r->p->limits.calls)
        return realm_error_set(err, REALM_E_LIMIT, "limit calls: %llu were made", (unsigned long long)r->n_calls);
    if (used + r->reserved_tokens + s->params.max_tokens <= (uint64_t)r->p->limits.tokens) return REALM_OK;
    if (r->n_running > 0) return REALM_E_AGAIN;
    return realm_error_set(err, REALM_E_LIMIT, "limit tokens: %llu of %lld are used, the next call may take %u",
                           (unsigned long long)used, (long long)r->p->limits.tokens, s->params.max_tokens);
}

static realm_status open_request(pipe_run *r, const char *model, realm_request **out, realm_error *err) {
    realm_served *m = realm_runtime_hold(realm_tenant_runtime(r->tenant), model);
    if (!m) return realm_error_set(err, REALM_E_NOT_FOUND, "no model is called \"%s\"", model);
    realm_status st = realm_request_open(r->tenant, m, NULL, out, err);
    realm_served_release(m); /* the request holds it */
    return st;
}

static realm_status open_call(pipe_run *r, pipe_call *c, uint32_t model, uint32_t attempt, realm_error *err) {
    const pipe_step *s = &r->p->steps[c->step];
    const char *id = r->p->models[model].id;
    realm_buf prompt, input;
    realm_buf_init(&prompt, REALM_RUN_INPUT_MAX);
    realm_buf_init(&input, REALM_RUN_INPUT_MAX);
    realm_run_params rp = {.kind = s->raw ? REALM_PROMPT_TEXT : REALM_PROMPT_MESSAGES,
                           .generation = {.max_tokens = s->params.max_tokens,
                                          .sampling = s->params.sampling,
                                          .stop = s->params.stop,
                                          .n_stop = s->params.n_stop},
                           .program = r->programs[c->step],
                           .on_ready = on_ready,
                           .user = r};
    rp.generation.sampling.seed = seed_of(s->params.sampling.seed, c->branch, attempt);
    realm_status st = realm_tenant_admit(r->tenant, NULL, err);
    if (st == REALM_OK) st = write_prompt(r, c->step, c->branch, &prompt, err);
    if (st == REALM_OK) {
        write_input(s, id, rp.generation.sampling.seed, &prompt, &input);
        if ((st = realm_buf_status(&input)) != REALM_OK) realm_error_set(err, st, "the prompt is too long");
    }
    if (st == REALM_OK) st = open_request(r, id, &c->request, err);
    if (st == REALM_OK) {
        rp.input = input.data;
        rp.input_len = input.len;
        rp.prompt = prompt.data ? prompt.data : "";
        rp.prompt_len = prompt.len;
        st = realm_run_start(c->request, &rp, &c->run, err);
    }
    realm_buf_release(&prompt);
    realm_buf_release(&input);
    return st;
}

static realm_status start_call(pipe_run *r, uint32_t step, uint32_t branch, realm_error *err) {
    const pipe_step *s = &r->p->steps[step];
    pipe_branch *b = &r->steps[step].branches[branch];
    realm_status st = allowed(r, s, err);
    if (st != REALM_OK) return st;
    pipe_call *c = r->calls;
    while (c->run) c++; /* fewer run than there are slots */
    *c = (pipe_call){.r = r, .step = step, .branch = branch};
    realm_buf_init(&c->text, (size_t)r->p->limits.output_bytes);
    realm_event_batch_init(&c->batch);
    uint32_t model = model_of(s, b->attempts);
    st = open_call(r, c, model, b->attempts, err);
    if (st != REALM_OK) {
        free_call(c);
        if ((st == REALM_E_CROWDED || st == REALM_E_BUSY) &&
            r->n_running > 0) { /* there is room when others have ended */
            r->parallel = r->n_running;
            realm_error_clear(err);
            return REALM_E_AGAIN;
        }
        return st;
    }
    for (int64_t i = 0; r->n_running > 0 && i < r->p->limits.parallel; i++) r->calls[i].crowded = true;
    b->model = model;
    b->attempts++;
    b->state = BRANCH_RUNNING;
    r->n_running++;
    r->n_calls++;
    r->reserved_tokens += s->params.max_tokens;
    return REALM_OK;
}

/* An attempt came to nothing: another one, or the pipeline's end. */
static realm_status attempt_failed(pipe_run *r, uint32_t step, uint32_t branch, realm_status why, realm_error *err) {
    const pipe_step *s = &r->p->steps[step];
    pipe_branch *b = &r->steps[step].branches[branch];
    if (why == REALM_E_CANCELLED) return why;
    if (b->attempts < attempts_of(s)) {
        b->state = BRANCH_PENDING;
        realm_error_clear(err);
        return REALM_OK;
    }
    if (attempts_of(s) > 1)
        realm_error_prefix(err, "attempt %u of %u, %s", b->attempts, attempts_of(s), r->p->models[b->model].id);
    return why;
}

static realm_status accept(pipe_run *r, uint32_t step, uint32_t branch, realm_buf *text, realm_error *err) {
    const pipe_step *s = &r->p->steps[step];
    realm_status st = REALM_OK;
    if (s->expect) {
        realm_buf truth;
        realm_buf_init(&truth, 64);
        const char *data = text->data ? text->data : "";
        st = pipe_render_for(r, s->expect, &r->steps[step].branches[branch], branch, data, text->len, &truth, err);
        if (st != REALM_OK)
            realm_error_prefix(err, "expect");
        else if (truth.len == 0)
            st = attempt_failed(r, step, branch,
                                realm_error_set(err, REALM_E_INVALID, "the answer is not what expect asks for"), err);
        bool refused = truth.len == 0;
        realm_buf_release(&truth);
        if (st != REALM_OK || refused) return st;
    }
    return end_branch(r, step, branch, text, err);
}

static realm_status call_ended(pipe_run *r, pipe_call *c, realm_finish finish, realm_error *err) {
    pipe_step_run *s = &r->steps[c->step];
    uint32_t step = c->step, branch = c->branch;
    realm_status st = finish == REALM_FINISH_CANCELLED ? REALM_E_CANCELLED
                      : finish == REALM_FINISH_ERROR   ? c->batch.status
                                                       : REALM_OK;
    if (st != REALM_OK) *err = c->batch.error;
    if (st == REALM_E_CANCELLED && !err->text[0]) realm_error_set(err, st, "cancelled");
    s->prompt_tokens += c->batch.prompt_tokens;
    s->completion_tokens += c->batch.completion_tokens;
    r->prompt_tokens += c->batch.prompt_tokens;
    r->completion_tokens += c->batch.completion_tokens;
    /* Refused for the tenant's limit beside others: not this call's fault, it takes its turn after one of them. */
    bool put_back = st == REALM_E_CROWDED && c->crowded && c->batch.prompt_tokens == 0 && c->text.len == 0;
    s->branches[branch].finish = finish;
    realm_buf text = c->text;
    c->text = (realm_buf){0};
    drop_call(r, c);
    /* One more than before may run: what crowded them may be over. Where it is not, that one is put back. */
    if (!put_back) r->parallel = REALM_MIN(r->parallel + 1, (uint32_t)r->p->limits.parallel);
    if (st == REALM_OK) {
        st = accept(r, step, branch, &text, err);
    } else if (put_back) {
        s->branches[branch].attempts--;
        s->branches[branch].state = BRANCH_PENDING;
        r->n_calls--;
        r->parallel = REALM_MAX(r->n_running, 1);
        realm_error_clear(err);
        st = REALM_OK;
    } else {
        st = attempt_failed(r, step, branch, st, err);
    }
    realm_buf_release(&text);
    return st == REALM_OK ? st : in_step(r, step, branch, st, err);
}

static realm_status poll_call(pipe_run *r, pipe_call *c, realm_error *err) {
    for (size_t n; (n = realm_run_poll(c->run, &c->batch)) > 0;) {
        for (size_t i = 0; i < n; i++) {
            const realm_event *e = &c->batch.events[i];
            if (e->text_len > 0) {
                realm_status s = count_bytes(r, e->text_len, err);
                if (s == REALM_OK &&
                    realm_buf_append(&c->text, c->batch.text.data + e->text_at, e->text_len) != REALM_OK)
                    s = no_memory(err);
                if (s != REALM_OK) return in_step(r, c->step, c->branch, s, err);
            }
            if (e->kind == REALM_EVENT_END) return call_ended(r, c, e->finish, err);
        }
    }
    return REALM_OK;
}

/* ---- steps ------------------------------------------------------------------------------------------------------- */

static realm_status make_branches(pipe_run *r, uint32_t step, const realm_json *items, realm_error *err) {
    const pipe_step *s = &r->p->steps[step];
    pipe_step_run *to = &r->steps[step];
    size_t n = (items ? realm_json_len(items) : 1) * s->n;
    if (n > REALM_PIPELINE_BRANCHES_MAX)
        return realm_error_set(err, REALM_E_LIMIT, "%zu branches, at most %u are possible", n,
                               REALM_PIPELINE_BRANCHES_MAX);
    if (!(to->branches = realm_calloc(n + 1, sizeof *to->branches))) return no_memory(err);
    to->n_branches = (uint32_t)n;
    for (size_t i = 0; items && i < n; i++) {
        realm_json item;
        realm_buf text;
        realm_buf_init(&text, PIPELINE_VALUES_MAX);
        (void)realm_json_at(items, i / s->n, &item);
        realm_status st = realm_json_dump(&item, &text);
        to->branches[i].item = st == REALM_OK ? realm_buf_take(&text, NULL) : NULL;
        realm_buf_release(&text);
        if (!to->branches[i].item) return no_memory(err);
    }
    return REALM_OK;
}

static realm_status make_items(pipe_run *r, uint32_t step, realm_error *err) {
    const pipe_step *s = &r->p->steps[step];
    if (!s->foreach && !s->items) return make_branches(r, step, NULL, err);
    realm_buf text;
    realm_json_doc *doc = NULL;
    realm_buf_init(&text, PIPELINE_VALUES_MAX);
    realm_status st =
        s->items ? realm_buf_puts(&text, s->items) : pipe_render_for(r, s->foreach, NULL, 0, NULL, 0, &text, err);
    if (st == REALM_OK) st = realm_json_parse(&doc, text.data ? text.data : "", text.len, NULL, err);
    realm_buf_release(&text);
    if (st == REALM_OK) {
        realm_json root = realm_json_root(doc);
        if (realm_json_kind_of(&root) != REALM_JSON_ARRAY)
            st = realm_error_set(err, REALM_E_INVALID, "must be a list, is %s",
                                 realm_json_kind_name(realm_json_kind_of(&root)));
        else
            st = make_branches(r, step, &root, err);
    }
    realm_json_doc_close(doc);
    if (st != REALM_OK) realm_error_prefix(err, "foreach");
    return st;
}

static realm_status run_text(pipe_run *r, uint32_t step, realm_error *err) {
    realm_status st = REALM_OK;
    uint32_t n = r->steps[step].n_branches;
    for (uint32_t b = 0; st == REALM_OK && b < n; b++) {
        realm_buf text;
        realm_buf_init(&text, (size_t)r->p->limits.output_bytes);
        st = pipe_render_for(r, r->p->steps[step].text, &r->steps[step].branches[b], b, NULL, 0, &text, err);
        if (st == REALM_OK) st = count_bytes(r, text.len, err);
        r->steps[step].branches[b].finish = REALM_FINISH_STOP;
        if (st == REALM_OK) st = end_branch(r, step, b, &text, err);
        realm_buf_release(&text);
    }
    return st;
}

/* What two texts must have in common to be one opinion: `key`, or the text without case and outer white space. */
static realm_status vote_key(pipe_run *r, uint32_t step, const pipe_branch *b, realm_buf *out, realm_error *err) {
    const pipe_step *s = &r->p->steps[step];
    if (s->key) {
        realm_status st = pipe_render_for(r, s->key, NULL, 0, b->text, b->len, out, err);
        if (st != REALM_OK) realm_error_prefix(err, "key");
        return st;
    }
    size_t from = 0, to = b->len;
    while (from < to && isspace((unsigned char)b->text[from])) from++;
    while (to > from && isspace((unsigned char)b->text[to - 1])) to--;
    for (size_t i = from; i < to; i++) (void)realm_buf_putc(out, (char)tolower((unsigned char)b->text[i]));
    return realm_buf_status(out) == REALM_OK ? REALM_OK : no_memory(err);
}

/* The first text of those with the most frequent key. */
static realm_status run_vote(pipe_run *r, uint32_t step, realm_error *err) {
    const pipe_step_run *of = &r->steps[r->p->steps[step].vote];
    realm_buf keys[REALM_PIPELINE_BRANCHES_MAX], text;
    uint32_t best = 0, most = 0;
    realm_status st = REALM_OK;
    for (uint32_t i = 0; i < of->n_branches; i++) realm_buf_init(&keys[i], PIPELINE_VALUES_MAX);
    for (uint32_t i = 0; st == REALM_OK && i < of->n_branches; i++)
        st = vote_key(r, step, &of->branches[i], &keys[i], err);
    for (uint32_t i = 0; st == REALM_OK && i < of->n_branches; i++) {
        uint32_t n = 0;
        for (uint32_t k = 0; k < of->n_branches; k++)
            n += keys[i].len == keys[k].len &&
                 (keys[i].len == 0 || memcmp(keys[i].data, keys[k].data, keys[i].len) == 0);
        if (n <= most) continue;
        most = n;
        best = i;
    }
    for (uint32_t i = 0; i < of->n_branches; i++) realm_buf_release(&keys[i]);
    realm_buf_init(&text, (size_t)r->p->limits.output_bytes);
    if (st == REALM_OK && most > 0) {
        r->steps[step].votes = most;
        st = count_bytes(r, of->branches[best].len, err);
        if (st == REALM_OK && realm_buf_append(&text, of->branches[best].text, of->branches[best].len) != REALM_OK)
            st = no_memory(err);
    }
    r->steps[step].branches[0].finish = REALM_FINISH_STOP;
    if (st == REALM_OK) st = end_branch(r, step, 0, &text, err);
    realm_buf_release(&text);
    return st;
}

/* All that it waits for has ended. */
static realm_status begin_step(pipe_run *r, uint32_t step, realm_error *err) {
    const pipe_step *s = &r->p->steps[step];
    pipe_step_run *to = &r->steps[step];
    to->state = STEP_RUNNING;
    to->begin_ns = realm_clock_ns();
    realm_status st = REALM_OK;
    if (s->when) {
        realm_buf truth;
        realm_buf_init(&truth, 64);
        st = pipe_render_for(r, s->when, NULL, 0, NULL, 0, &truth, err);
        to->skipped = truth.len == 0;
        realm_buf_release(&truth);
        if (st != REALM_OK) {
            realm_error_prefix(err, "when");
            return in_step(r, step, 0, st, err);
        }
        if (to->skipped) return end_step(r, step, err);
    }
    if ((st = tell(r, REALM_PIPELINE_STARTED, step, err)) != REALM_OK) return st;
    st = make_items(r, step, err);
    if (st == REALM_OK && to->n_branches == 0) return end_step(r, step, err);
    if (st == REALM_OK && s->kind == PIPE_TEXT) st = run_text(r, step, err);
    if (st == REALM_OK && s->kind == PIPE_VOTE) st = run_vote(r, step, err);
    return st == REALM_OK || st == REALM_E_CANCELLED ? st : in_step(r, step, 0, st, err);
}

/* Begins and starts whatever can be; several rounds, for what ends at once lets others begin. */
static realm_status advance(pipe_run *r, realm_error *err) {
    for (bool moved = true; moved;) {
        moved = false;
        uint64_t done = 0;
        for (uint32_t i = 0; i < r->p->n_steps; i++) done |= (uint64_t)(r->steps[i].state == STEP_DONE) << i;
        for (uint32_t i = 0; i < r->p->n_steps; i++) {
            if (r->steps[i].state != STEP_WAITING || (r->p->steps[i].after & ~done)) continue;
            realm_status s = begin_step(r, i, err);
            if (s != REALM_OK) return s;
            moved = true;
        }
    }
    for (uint32_t i = 0; i < r->p->n_steps; i++) {
        pipe_step_run *s = &r->steps[i];
        for (uint32_t b = 0; s->state == STEP_RUNNING && b < s->n_branches; b++) {
            if (s->branches[b].state != BRANCH_PENDING) continue;
            realm_status st = start_call(r, i, b, err);
            if (st == REALM_E_AGAIN) return REALM_OK;
            if (st != REALM_OK && st != REALM_E_LIMIT &&
                r->steps[i].branches[b].attempts + 1 < attempts_of(&r->p->steps[i])) {
                s->branches[b].attempts++; /* refused counts as an attempt */
                realm_error_clear(err);
                b--;
                continue;
            }
            if (st != REALM_OK) return in_step(r, i, b, st, err);
        }
    }
    return REALM_OK;
}

static realm_status wait_some(pipe_run *r, realm_error *err) {
    uint64_t until = REALM_MIN(realm_clock_ns() + TICK_NS, r->deadline_ns);
    realm_mutex_lock(&r->mu);
    while (!r->ready && realm_cond_wait_until(&r->cond, &r->mu, until)) continue;
    r->ready = false;
    realm_mutex_unlock(&r->mu);
    if (realm_clock_ns() >= r->deadline_ns)
        return realm_error_set(err, REALM_E_TIMEOUT, "limit seconds: it has run for %lld s",
                               (long long)r->p->limits.seconds);
    return tell(r, REALM_PIPELINE_TICK, 0, err);
}

static realm_status loop(pipe_run *r, realm_error *err) {
    realm_status s = advance(r, err);
    while (s == REALM_OK && r->n_done < r->p->n_steps) {
        s = wait_some(r, err);
        for (uint32_t i = 0; s == REALM_OK && i < (uint32_t)r->p->limits.parallel; i++)
            if (r->calls[i].run) s = poll_call(r, &r->calls[i], err);
        if (s == REALM_OK) s = advance(r, err);
    }
    return s;
}

static realm_status open_programs(pipe_run *r, realm_error *err) {
    for (uint32_t i = 0; i < r->p->n_steps; i++) {
        const char *path = r->p->steps[i].program;
        char *wasm;
        size_t len;
        if (!path) continue;
        realm_status s = realm_file_read(path, PROGRAM_MAX, &wasm, &len, err);
        if (s == REALM_OK) {
            s = realm_tenant_open_program(r->tenant, wasm, len, &r->programs[i], err);
            realm_free(wasm);
            if (s != REALM_OK) realm_error_prefix(err, "%s", path);
        }
        if (s != REALM_OK) return in_step(r, i, 0, s, err);
    }
    return REALM_OK;
}

static void release(pipe_run *r) {
    const realm_pipeline *p = r->p;
    for (int64_t i = 0; r->calls && i < p->limits.parallel; i++) free_call(&r->calls[i]);
    for (size_t i = 0; r->programs && i < p->n_steps; i++) realm_tenant_close_program(r->programs[i]);
    for (size_t i = 0; r->steps && i < p->n_steps; i++) {
        for (uint32_t b = 0; b < r->steps[i].n_branches; b++) {
            realm_free(r->steps[i].branches[b].item);
            realm_free(r->steps[i].branches[b].text);
        }
        realm_free(r->steps[i].branches);
    }
    realm_free(r->calls);
    realm_free(r->programs);
    realm_free(r->steps);
    realm_buf_release(&r->inputs);
    realm_cond_destroy(&r->cond);
    realm_mutex_destroy(&r->mu);
}

realm_status realm_pipeline_run(const realm_pipeline *p, realm_tenant *tenant, const realm_pipeline_input *inputs,
                                size_t n_inputs, const realm_pipeline_watch *watch, realm_buf *output,
                                realm_buf *report, realm_error *err) {
    realm_error local = {0};
    if (!err) err = &local;
    pipe_run r = {.p = p, .tenant = tenant, .watch = watch, .parallel = (uint32_t)p->limits.parallel};
    r.begin_ns = realm_clock_ns();
    r.deadline_ns = r.begin_ns + (uint64_t)p->limits.seconds * REALM_NS_PER_S;
    realm_mutex_init(&r.mu, REALM_RANK_LEAF);
    realm_cond_init(&r.cond);
    realm_buf_init(&r.inputs, PIPELINE_VALUES_MAX);
    r.steps = realm_calloc(p->n_steps, sizeof *r.steps);
    r.programs = realm_calloc(p->n_steps, sizeof *r.programs);
    r.calls = realm_calloc((size_t)p->limits.parallel, sizeof *r.calls);
    realm_status s = r.steps && r.programs && r.calls ? pipe_read_inputs(&r, inputs, n_inputs, err) : no_memory(err);
    if (s == REALM_OK) s = open_programs(&r, err);
    if (s == REALM_OK) s = loop(&r, err);
    size_t before = output->len;
    if (s == REALM_OK) s = pipe_output_text(&r, output, err);
    if (s == REALM_OK && output->len - before > (size_t)p->limits.output_bytes)
        s = realm_error_set(err, REALM_E_LIMIT, "limit output_bytes: the output has more than %lld bytes",
                            (long long)p->limits.output_bytes);
    if (s == REALM_OK && report && (s = pipe_report(&r, output, report)) != REALM_OK)
        realm_error_set(err, s, "report: %s", realm_status_text(s));
    release(&r);
    return s;
}
