/* The runs of a call: one for each choice, a few at a time.
 *
 *      gen_read, gen_start (worker)       gen_wake (I/O thread, again and again)
 *      read, check; admit, start some --> poll every run while the client keeps up --> choice ends --> start the next
 *                                                                                  --> all ended: finish
 *
 * The answer begins with the first event, not with the request: until then whatever goes wrong is an HTTP status, after
 * that it is an error object in the stream. A run that a limit of its tenant refuses while siblings run is put back and
 * tried again when one has ended, so `n` may be larger than the number of generations that a tenant may have in flight.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "api/internal.h"
#include "base/alloc.h"
#include "base/clock.h"

#define ROOM_MIN ((size_t)8 << 10) /* of the out ring, to take another batch */

static void on_ready(void *user) {
    api_call *c = user;
    realm_mutex_lock(&c->mu);
    if (c->x) realm_exchange_wake(c->x);
    realm_mutex_unlock(&c->mu);
}

/* Seeds of the choices: the request's own for the first, then mixed with the index. */
static uint64_t seed_of(uint64_t seed, uint32_t index) {
    return index == 0 ? seed : realm_mix_u64(seed + index * UINT64_C(0x9E3779B97F4A7C15));
}

static realm_status start_choice(api_call *c, gen_choice *ch, realm_error *err) {
    gen_request *q = &c->gen;
    const gen_prompt *p = ch->prompt;
    realm_buf input;
    realm_buf_init(&input, REALM_RUN_INPUT_MAX);
    realm_status s = gen_write_input(q, p, &input);
    if (s != REALM_OK) {
        realm_buf_release(&input);
        return realm_error_set(err, s == REALM_E_NOMEM ? s : REALM_E_RANGE, "the request is too large");
    }
    realm_run_params rp = {.input = input.data,
                           .input_len = input.len,
                           .kind = p->kind,
                           .prompt = p->text,
                           .prompt_len = p->len,
                           .template_args = q->template_args.data,
                           .template_args_len = q->template_args.len,
                           .parse_special = q->parse_special,
                           .tokens = p->tokens,
                           .n_tokens = p->n_tokens,
                           .generation = q->gen,
                           .on_ready = on_ready,
                           .user = c};
    rp.generation.sampling.seed = seed_of(q->seed, ch->index % q->n_runs);
    s = realm_run_start(c->request, &rp, &ch->run, err);
    realm_buf_release(&input);
    if (s != REALM_OK) return s;
    ch->state = CHOICE_RUNNING;
    ch->beside = c->n_running > 0;
    for (uint32_t i = 0; i < c->n_choices && c->n_running == 1; i++)
        if (c->choices[i].state == CHOICE_RUNNING) c->choices[i].beside = true;
    c->n_running++;
    return REALM_OK;
}

/* Starts pending choices while there may be more in parallel. */
static realm_status start_some(api_call *c, realm_error *err) {
    for (uint32_t i = 0; i < c->n_choices && c->n_running < c->parallel; i++) {
        gen_choice *ch = &c->choices[i];
        if (ch->state != CHOICE_PENDING) continue;
        realm_status s = start_choice(c, ch, err);
        if (s == REALM_E_CROWDED && c->n_running > 0) {
            c->parallel = c->n_running;
            return REALM_OK;
        }
        if (s != REALM_OK) return s;
    }
    return REALM_OK;
}

/* {"id":...,"object":...,"created":...,"model":..., : what answers and chunks begin with. */
static void write_head(api_call *c, const char *object) {
    realm_buf_reset(&c->head);
    realm_buf_printf(&c->head, "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%lld,\"model\":%s,", c->gen_id, object,
                     (long long)c->created_s, c->model_json);
}

static bool prepare(api_call *c) {
    gen_request *q = &c->gen;
    api_error *e = &c->error;
    c->created_s = realm_clock_wall_s();
    api_random_id(c->gen_id, sizeof c->gen_id, q->chat ? "chatcmpl-" : "cmpl-", 16);
    realm_buf name;
    realm_buf_init(&name, 8 * REALM_MODEL_ID_MAX);
    realm_json_writer w;
    realm_json_writer_init(&w, &name);
    realm_json_write_cstr(&w, q->model);
    c->model_json = realm_buf_status(&name) == REALM_OK ? realm_buf_take(&name, NULL) : NULL;
    realm_buf_release(&name);
    c->n_choices = (uint32_t)(q->n_runs * q->n_prompts);
    c->parallel = API_PARALLEL_MAX;
    c->choices = realm_calloc(c->n_choices, sizeof *c->choices);
    if (!c->model_json || !c->choices) return api_error_status(e, REALM_E_NOMEM, NULL);
    for (uint32_t i = 0; i < c->n_choices; i++) {
        gen_choice *ch = &c->choices[i];
        ch->index = i;
        ch->prompt = &q->prompts[i / q->n_runs];
        realm_buf_init(&ch->text, API_REPLY_MAX);
        realm_buf_init(&ch->logprobs, API_REPLY_MAX);
        for (int k = 0; k < 3; k++) realm_buf_init(&ch->legacy[k], API_REPLY_MAX);
    }
    write_head(c, q->stream && q->chat ? "chat.completion.chunk" : q->chat ? "chat.completion" : "text_completion");
    return realm_buf_status(&c->head) == REALM_OK || api_error_status(e, realm_buf_status(&c->head), NULL);
}

bool gen_read(api_call *c) {
    gen_request_init(&c->gen, c->route == ROUTE_CHAT);
    bool ok = gen_request_read(&c->gen, c->api->rt, c->body, c->body_len, &c->error);
    realm_free(c->body); /* the tree has all of it */
    c->body = NULL;
    return ok;
}

/* What a run failed with; what is too long is the prompt, and a grammar is the client's where it sent one. */
static void run_error(api_call *c, realm_status s, const realm_error *err) {
    if (s == REALM_E_GRAMMAR && c->gen.constrained) {
        gen_grammar_error(&c->gen, err, &c->error);
        return;
    }
    api_error_status(&c->error, s, err);
    if (s == REALM_E_CONTEXT)
        (void)snprintf(c->error.param, sizeof c->error.param, "%s", c->gen.chat ? "messages" : "prompt");
}

void gen_start(api_call *c) {
    gen_request *q = &c->gen;
    api_error *e = &c->error;
    realm_error err = {0};
    realm_status s = realm_request_open(c->tenant, q->served, &c->rate, &c->request, &err);
    if (s == REALM_OK && ((q->constrained && !gen_request_constrain(q, c->tenant, e)) || !prepare(c))) return;
    if (s == REALM_OK) {
        /* A share is for one prompt: several prompts are computed and counted one by one. */
        if (q->n_prompts == 1) realm_request_expect_runs(c->request, q->n_runs);
        s = start_some(c, &err);
    }
    if (s == REALM_OK) return;
    run_error(c, s, &err);
    api_error_rate(e, s, &c->rate);
}

void gen_release(api_call *c) {
    for (uint32_t i = 0; i < c->n_choices && c->choices; i++) {
        gen_choice *ch = &c->choices[i];
        realm_run_release(ch->run);
        realm_buf_release(&ch->text);
        realm_buf_release(&ch->logprobs);
        for (int k = 0; k < 3; k++) realm_buf_release(&ch->legacy[k]);
    }
    realm_free(c->choices);
    c->choices = NULL;
    c->n_choices = 0;
    realm_request_close(c->request);
    c->request = NULL;
    realm_free(c->model_json);
    c->model_json = NULL;
    gen_request_release(&c->gen);
}

/* ---- the answer ---- */

/* Stops everything and says why (c->error): as an HTTP status, or as the last thing in the stream. */
static void give_up(api_call *c) {
    for (uint32_t i = 0; i < c->n_choices; i++)
        if (c->choices[i].state == CHOICE_RUNNING) realm_run_cancel(c->choices[i].run);
    if (!c->streaming) {
        api_answer_error(c);
        return;
    }
    api_log_error(c);
    realm_buf_reset(&c->piece);
    realm_buf_puts(&c->piece, "data: ");
    api_error_write(&c->error, &c->piece);
    realm_buf_puts(&c->piece, "\n\ndata: [DONE]\n\n");
    reply_send(c);
    realm_exchange_finish(c->x);
    metrics_answered(c, c->error.status);
    c->phase = CALL_ENDED;
}

static void fail(api_call *c, realm_status s, const realm_error *err) {
    run_error(c, s, err);
    give_up(c);
}

/* What an answer that is given as a whole has gathered of a choice. */
static uint64_t gathered(const gen_choice *ch) {
    uint64_t n = ch->text.len + ch->logprobs.len;
    for (int k = 0; k < 3; k++) n += ch->legacy[k].len;
    return n;
}

static void choice_begin(api_call *c, gen_choice *ch) {
    if (ch->any) return;
    ch->any = true;
    if (!c->gen.chat) completion_begin(c, ch);
}

/* False when the call has ended by it. */
static bool choice_ended(api_call *c, gen_choice *ch, const realm_event *e) {
    realm_event_batch *b = &c->batch;
    ch->prompt_tokens = b->prompt_tokens;
    ch->cached_tokens = b->cached_tokens;
    ch->completion_tokens = b->completion_tokens;
    c->n_running--;
    if (e->finish == REALM_FINISH_ERROR || e->finish == REALM_FINISH_CANCELLED) {
        realm_status s = e->finish == REALM_FINISH_CANCELLED ? REALM_E_CANCELLED : b->status;
        if (s == REALM_E_CROWDED && !ch->any && ch->beside && b->prompt_tokens == 0) {
            realm_run_release(ch->run); /* there is room when a sibling has ended, which may be so already */
            ch->run = NULL;
            ch->state = CHOICE_PENDING;
            c->parallel = REALM_MAX(c->n_running, 1);
            return true;
        }
        ch->state = CHOICE_DONE;
        fail(c, s == REALM_OK ? REALM_E_INTERNAL : s, &b->error);
        return false;
    }
    ch->state = CHOICE_DONE;
    ch->finish = e->finish;
    c->n_done++;
    /* One more than before may run: what crowded them may be over. Where it is not, that one is refused and waits. */
    c->parallel = REALM_MIN(c->parallel + 1, API_PARALLEL_MAX);
    choice_begin(c, ch);
    if (c->gen.chat)
        chat_end(c, ch);
    else
        completion_end(c, ch);
    return true;
}

/* Takes what a run has; false when the call has ended. */
static bool poll_choice(api_call *c, gen_choice *ch) {
    while (ch->state == CHOICE_RUNNING) {
        if (c->gen.stream && realm_exchange_room(c->x) < ROOM_MIN) return true; /* on_wake comes when there is room */
        const uint64_t before = gathered(ch);
        if (realm_run_poll(ch->run, &c->batch) == 0) return true;
        for (size_t i = 0; i < c->batch.n_events; i++) {
            const realm_event *e = &c->batch.events[i];
            if (e->kind == REALM_EVENT_END) return choice_ended(c, ch, e);
            if (e->kind == REALM_EVENT_TOKEN) metrics_first_token(c);
            if (e->kind == REALM_EVENT_TOKEN && e->id >= 0 && isfinite(e->logprob)) {
                ch->logprob_sum += (double)e->logprob;
                ch->n_scored++;
            }
            choice_begin(c, ch);
            if (c->gen.chat)
                chat_event(c, ch, e);
            else
                completion_event(c, ch, e);
        }
        if (!c->gen.stream && !party_hold(c, gathered(ch) - before)) {
            give_up(c);
            return false;
        }
    }
    return true;
}

static void finish(api_call *c) {
    if (!c->gen.stream) {
        reply_whole(c);
        api_answer(c);
        return;
    }
    reply_stream_end(c);
    metrics_answered(c, 200);
    c->phase = CALL_ENDED;
}

void gen_wake(api_call *c) {
    for (uint32_t i = 0; i < c->n_choices; i++) {
        if (!poll_choice(c, &c->choices[i])) return;
        realm_error err = {0};
        realm_status s = start_some(c, &err);
        if (s != REALM_OK) {
            fail(c, s, &err);
            return;
        }
    }
    if (c->n_done == c->n_choices) finish(c);
}
