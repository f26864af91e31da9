/* A double of tenant.h for tests of src/api: no model, no sandbox, but runs that behave as the request asks them to.
 *
 * Tokens are bytes (ids 0-255); 256 is the control token "<|end|>". A run answers "Hi \xC3\xA9!" one byte a token, from
 * a thread of its own, unless its input says otherwise:
 *   @wait     nothing happens until it is cancelled        @long      20,000 tokens of 'x'
 *   @program  fails at once as a trapped program           @midfail   two tokens, then the device fails
 *   @range    the prompt does not fit the context          @emit      text without token ids
 *   @quota    it needs more than the tenant may ever hold
 *
 * Keys are "admin" and the names of tenants: "tenant", "other", and "limited", whose every request is past a limit; the
 * model "limited" is found to be past one when a request begins. With "broken" the store fails.
 */
#ifndef TESTS_API_FAKE_TENANT_H
#define TESTS_API_FAKE_TENANT_H

#include <math.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

#include "base/alloc.h"
#include "base/thread.h"
#include "tenant/tenant.h"

#define FAKE_VOCAB 257

static struct {
    _Atomic int running, most_running, cancelled, started, refused, released, requests, tenants, admitted, compiled,
        counted, held, hold;
    _Atomic int max_running; /* 0: no limit */
    _Atomic int lift_after;  /* > 0: so many are refused before one that is not goes on, without that limit then */
    _Atomic uint64_t produced;
    _Atomic uint64_t seeds[64];
    char input[8192], template_args[1024]; /* of the last run */
    realm_generation_params params;
    realm_token breakers[4]; /* of them, the first of DRY's */
    _Atomic int expected;
    _Atomic int fail_after; /* > 0: this many allocations later one fails on the worker's thread */
} F;

/* What waits for a test to let it go on. */
static void fake_hold_on(void) {
    while (F.hold) nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

struct realm_tenant {
    const char *key;
};
static struct realm_tenant fake_tenants[] = {{"tenant"}, {"other"}, {"limited"}};
struct realm_request {
    int open;
};
struct realm_run {
    pthread_t thread;
    realm_mutex mu;
    realm_cond cond;
    _Atomic bool cancelled;
    bool ended, end_taken, refused;
    realm_run_params p;
    char *input;
    realm_event pending[64];
    realm_top_logprob top[64 * 2];
    char text[256];
    size_t n, n_text;
    realm_finish finish;
    realm_status status;
    const char *why;
    _Atomic uint32_t made, prompt;
};

/* ---- tokenizer and engine ---- */
static char fake_engine, fake_m, fake_limited; /* the engine, and two models */
static realm_served *fake_hold(char *m) {
    F.held++;
    return (realm_served *)m;
}
realm_served *realm_runtime_hold(realm_runtime *rt, const char *id) {
    (void)rt;
    int after = atomic_exchange(&F.fail_after, 0);
    if (after) realm_alloc_inject_failure(after - 1, false);
    if (strcmp(id, "m") == 0) return fake_hold(&fake_m);
    return strcmp(id, "limited") == 0 ? fake_hold(&fake_limited) : NULL;
}
size_t realm_runtime_hold_all(realm_runtime *rt, realm_served *out[REALM_MODELS_MAX]) {
    (void)rt;
    out[0] = fake_hold(&fake_m);
    return 1;
}
void realm_served_release(realm_served *m) { F.held -= m != NULL; }
realm_engine *realm_served_engine(const realm_served *m) {
    (void)m;
    return (realm_engine *)&fake_engine;
}
const realm_tokenizer *realm_engine_tokenizer(const realm_engine *e) { return (const realm_tokenizer *)e; }
size_t realm_tokenizer_vocab_size(const realm_tokenizer *t) {
    (void)t;
    return FAKE_VOCAB;
}
realm_status realm_tokenizer_piece(const realm_tokenizer *t, realm_token id, bool special, const char **b,
                                   size_t *len) {
    static char bytes[256];
    (void)t;
    if (id < 0 || id >= FAKE_VOCAB) return REALM_E_RANGE;
    if (id < 256) bytes[id] = (char)id;
    *b = id < 256 ? &bytes[id] : "<|end|>";
    *len = id < 256 ? 1 : special ? 7 : 0;
    return REALM_OK;
}
bool realm_tokenizer_adds_bos(const realm_tokenizer *t) {
    (void)t;
    return false;
}
realm_status realm_tokenizer_encode(const realm_tokenizer *t, const char *s, size_t len, unsigned flags, size_t max,
                                    realm_tokens *out, realm_error *err) {
    (void)t;
    if (len > max) return realm_error_set(err, REALM_E_LIMIT, "too many tokens");
    out->ids = realm_calloc(len + 1, sizeof *out->ids);
    if (flags & REALM_ENCODE_ADD_SPECIAL) out->ids[out->len++] = 256;
    for (size_t i = 0; i < len;) {
        if (flags & REALM_ENCODE_PARSE_SPECIAL && len - i >= 7 && memcmp(s + i, "<|end|>", 7) == 0) {
            out->ids[out->len++] = 256;
            i += 7;
        } else {
            out->ids[out->len++] = (unsigned char)s[i++];
        }
    }
    return REALM_OK;
}
void realm_tokens_release(realm_tokens *t) { realm_free(t->ids); }
realm_status realm_tokenizer_decode(const realm_tokenizer *t, const realm_token *ids, size_t n, bool special,
                                    realm_buf *out, realm_error *err) {
    (void)err;
    for (size_t i = 0; i < n; i++) {
        const char *b;
        size_t len;
        if (realm_tokenizer_piece(t, ids[i], special, &b, &len) != REALM_OK) return REALM_E_RANGE;
        (void)realm_buf_append(out, b, len);
    }
    return realm_buf_status(out);
}
void realm_sampling_init(realm_sampling *s) {
    *s = (realm_sampling){.temperature = 1,
                          .top_p = 1,
                          .repeat_penalty = 1,
                          .typical_p = 1,
                          .xtc_threshold = 0.1f,
                          .dry_base = 1.75f,
                          .dry_allowed = 2,
                          .mirostat_eta = 0.1f};
}
void realm_event_batch_init(realm_event_batch *b) {
    *b = (realm_event_batch){0};
    realm_buf_init(&b->text, 1 << 20);
}
void realm_event_batch_release(realm_event_batch *b) {
    realm_free(b->events);
    realm_free(b->top);
    realm_buf_release(&b->text);
}

/* ---- runtime, store ---- */
size_t realm_runtime_model_count(realm_runtime *rt) {
    (void)rt;
    return 1;
}
void realm_served_get_info(const realm_served *m, realm_model_info *out) {
    (void)m;
    *out = (realm_model_info){.id = "m", .created_s = 1700000000};
}
realm_store *realm_runtime_store(realm_runtime *rt) { return (realm_store *)rt; }
realm_status realm_store_key_find(realm_store *s, const char *key, size_t len, realm_key_row *out, realm_error *err) {
    (void)s;
    *out = (realm_key_row){.admin = len == 5 && memcmp(key, "admin", 5) == 0};
    bool known = out->admin || (len == 6 && memcmp(key, "tenant", 6) == 0);
    return known ? REALM_OK : realm_error_set(err, REALM_E_UNAUTHENTICATED, "no");
}
realm_status realm_store_usage_each(realm_store *s, const char *tenant, int64_t since,
                                    bool (*fn)(void *, const char *, const realm_usage *), void *user,
                                    realm_error *err) {
    (void)s, (void)err;
    realm_usage u = {.requests = since ? 1 : 5,
                     .prompt_tokens = 10,
                     .cached_tokens = 2,
                     .completion_tokens = 20,
                     .aborted_requests = 1};
    fn(user, "alpha", &u);
    if (!tenant) fn(user, "beta", &u);
    return REALM_OK;
}
realm_status realm_runtime_authenticate(realm_runtime *rt, const char *key, size_t len, realm_tenant **out,
                                        realm_error *err) {
    (void)rt;
    for (size_t i = 0; i < REALM_ARRAY_LEN(fake_tenants); i++) {
        *out = &fake_tenants[i];
        if (strlen((*out)->key) != len || memcmp((*out)->key, key, len) != 0) continue;
        F.tenants++;
        return REALM_OK;
    }
    *out = NULL;
    if (len == 6 && memcmp(key, "broken", len) == 0)
        return realm_error_set(err, REALM_E_FORMAT, "store: /var/lib/realm.db: gone");
    return realm_error_set(err, REALM_E_UNAUTHENTICATED, "no");
}
void realm_tenant_release(realm_tenant *t) { F.tenants -= t != NULL; }
realm_status realm_tenant_admit(realm_tenant *t, realm_rate *rate, realm_error *err) {
    *rate = (realm_rate){.limit = 60, .remaining = 59, .reset_ms = 1000};
    F.admitted++;
    if (strcmp(t->key, "limited") != 0) return REALM_OK;
    rate->remaining = 0;
    rate->retry_after_ms = 2500;
    return realm_error_set(err, REALM_E_RATE, "requests_per_minute: 60 are allowed");
}
const char *realm_tenant_name(const realm_tenant *t) {
    (void)t;
    return "alpha";
}
void realm_runtime_get_stats(realm_runtime *rt, realm_runtime_stats *out) {
    (void)rt;
    F.counted++;
    fake_hold_on();
    *out = (realm_runtime_stats){.requests = 3, .program_cpu_ns = 2000000001, .turns.waits = 9};
}
void realm_served_get_stats(const realm_served *m, realm_model_stats *out) {
    (void)m;
    *out = (realm_model_stats){.engine = {.steps = 7, .weight_bytes = 1000, .suspended_disk = 5},
                               .tokens = {1, 2, 3},
                               .stream = {.misses = UINT64_C(1) << 60}};
}
realm_status realm_runtime_tenant_stats(realm_runtime *rt, realm_tenant_stats **out, size_t *n, realm_error *err) {
    (void)rt, (void)err;
    *out = realm_calloc(2, sizeof **out);
    *n = 2;
    (*out)[0] = (realm_tenant_stats){.name = "acme", .used = {.requests = 4, .program_cpu_ns = 1500000}};
    (*out)[1] = (realm_tenant_stats){.name = "b.c", .storage_bytes = 12};
    return REALM_OK;
}
realm_status realm_served_apply_template(const realm_served *served, const realm_conversation *c, realm_buf *text,
                                         realm_text_span **spans, size_t *n, realm_error *err) {
    (void)served, (void)err;
    *spans = NULL;
    *n = 0;
    return realm_buf_printf(text, "T:%.*s%s%.*s", (int)c->messages_len, c->messages,
                            c->add_generation_prompt ? "+" : "", (int)c->args_len, c->args ? c->args : "");
}
bool realm_template_arg_reserved(const char *name, size_t len) { return len == 8 && !memcmp(name, "messages", 8); }

/* Refuses a schema that says "bad", and holds on for one that says "hold"; the state is its
 * number of bytes. */
realm_status realm_tenant_grammar(realm_tenant *t, realm_served *m, realm_grammar_kind kind, const char *text,
                                  size_t len, realm_grammar_state **out, realm_error *err) {
    (void)t, (void)m;
    *out = NULL;
    F.compiled++;
    if (memmem(text, len, "\"hold\"", 6)) fake_hold_on();
    if (kind != REALM_GRAMMAR_KIND_JSON_SCHEMA) return REALM_E_INTERNAL;
    if (memmem(text, len, "\"bad\"", 5)) return realm_error_set(err, REALM_E_FORMAT, "schema at #/type: Invalid type");
    size_t *state = realm_malloc(sizeof *state);
    if (!state) return realm_error_set(err, REALM_E_NOMEM, "no memory");
    *state = len;
    *out = (realm_grammar_state *)state;
    return REALM_OK;
}
void realm_grammar_state_close(realm_grammar_state *s) { realm_free(s); }

/* ---- requests and runs ---- */
realm_status realm_request_open(realm_tenant *t, realm_served *m, realm_rate *rate, realm_request **out,
                                realm_error *err) {
    (void)t;
    *rate = (realm_rate){60, 59, 1000, 0, 5000, 4000, 12000};
    if (m == (realm_served *)&fake_limited) {
        rate->token_remaining = 0;
        rate->retry_after_ms = 2500;
        return realm_error_set(err, REALM_E_RATE, "tokens_per_minute: 5000 are allowed");
    }
    *out = realm_calloc(1, sizeof **out);
    if (!*out) return realm_error_set(err, REALM_E_NOMEM, "out of memory");
    F.requests++;
    return REALM_OK;
}
void realm_request_expect_runs(realm_request *r, uint32_t n) {
    (void)r;
    F.expected = (int)n;
}
void realm_request_close(realm_request *r) {
    if (!r) return;
    realm_free(r);
    F.requests--;
}

static void fake_push(realm_run *r, realm_event_kind kind, realm_token id, const char *text, size_t len,
                      float logprob) {
    realm_mutex_lock(&r->mu);
    while (r->n == REALM_ARRAY_LEN(r->pending) && !r->cancelled) realm_cond_wait(&r->cond, &r->mu);
    bool was_empty = r->n == 0;
    if (!r->cancelled) {
        realm_event *e = &r->pending[r->n];
        uint32_t n_top = r->p.generation.logprobs && id >= 0 ? REALM_MIN(r->p.generation.top_logprobs, 2u) : 0;
        *e = (realm_event){.kind = kind,
                           .id = id,
                           .logprob = logprob,
                           .text_at = (uint32_t)r->n_text,
                           .text_len = (uint32_t)len,
                           .n_top = n_top,
                           .top_at = (uint32_t)r->n * 2};
        r->top[r->n * 2] = (realm_top_logprob){id, logprob};
        r->top[r->n * 2 + 1] = (realm_top_logprob){'z', -3.5f};
        memcpy(r->text + r->n_text, text, len);
        r->n_text += len;
        r->n++;
        F.produced++;
    }
    realm_mutex_unlock(&r->mu);
    if (was_empty) r->p.on_ready(r->p.user);
}

static void fake_wait(realm_run *r) {
    realm_mutex_lock(&r->mu);
    while (!r->cancelled) realm_cond_wait(&r->cond, &r->mu);
    realm_mutex_unlock(&r->mu);
}

static void fake_lift(realm_run *r) {
    while ((F.refused < F.lift_after || F.running > 1) && !r->cancelled)
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    F.max_running = F.lift_after = F.most_running = 0;
}

static void *fake_run(void *arg) {
    realm_run *r = arg;
    bool fast = strstr(r->input, "@long") != NULL;
    r->finish = REALM_FINISH_STOP;
    r->prompt = 4;
    if (!r->refused && F.lift_after) fake_lift(r);
    if (r->refused) {
        r->finish = REALM_FINISH_ERROR, r->status = REALM_E_CROWDED, r->why = "limit generations: too many";
        r->prompt = 0;
        F.refused++;
    } else if (strstr(r->input, "@wait")) {
        fake_wait(r);
    } else if (strstr(r->input, "@program")) {
        r->finish = REALM_FINISH_ERROR, r->status = REALM_E_PROGRAM, r->why = "trap: unreachable";
    } else if (strstr(r->input, "@grammar")) {
        if (strstr(r->input, "@grammar2")) fake_push(r, REALM_EVENT_TOKEN, '{', "{", 1, -1);
        r->finish = REALM_FINISH_ERROR, r->status = REALM_E_GRAMMAR, r->why = "the grammar needs more than 50 ms";
    } else if (strstr(r->input, "@range")) {
        r->finish = REALM_FINISH_ERROR, r->status = REALM_E_CONTEXT,
        r->why = "the prompt has 9 tokens, the context of 8 leaves no room";
    } else if (strstr(r->input, "@quota")) {
        r->finish = REALM_FINISH_ERROR, r->status = REALM_E_QUOTA,
        r->why = "limit kv_tokens: 160 tokens would be held, 64 are allowed";
    } else if (strstr(r->input, "@emit")) {
        fake_push(r, REALM_EVENT_TOKEN, -1, "HELLO ", 6, 0);
        fake_push(r, REALM_EVENT_TOKEN, -1, "THERE", 5, 0);
    } else {
        static const char answer[] = "Hi \xC3\xA9!";
        if (r->p.generation.prompt_logprobs)
            for (size_t i = 0; i < (r->p.kind == REALM_PROMPT_TOKENS ? r->p.n_tokens : r->p.prompt_len); i++) {
                realm_token id = r->p.kind == REALM_PROMPT_TOKENS ? r->p.tokens[i] : (unsigned char)r->p.prompt[i];
                fake_push(r, REALM_EVENT_PROMPT, id, "", 0, i ? -0.5f : NAN);
            }
        uint32_t n = fast ? 20000 : 6, max = r->p.generation.max_tokens;
        if (max && max < n) n = max, r->finish = REALM_FINISH_LENGTH;
        if (strstr(r->input, "@midfail")) n = 2;
        for (uint32_t i = 0; i < n && !r->cancelled; i++) {
            r->made = i + 1;
            if (fast) {
                fake_push(r, REALM_EVENT_TOKEN, 'x', "x", 1, -1.25f);
                continue;
            }
            /* the text of an incomplete character comes with its last byte */
            unsigned char c = (unsigned char)answer[i];
            const char *text = c == 0xC3 ? "" : c == 0xA9 ? answer + i - 1 : answer + i;
            fake_push(r, REALM_EVENT_TOKEN, c, text, c == 0xC3 ? 0 : c == 0xA9 ? 2 : 1, -1.25f);
            nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
        }
        if (strstr(r->input, "@midfail"))
            r->finish = REALM_FINISH_ERROR, r->status = REALM_E_DEVICE, r->why = "the device is lost";
    }
    realm_mutex_lock(&r->mu);
    r->ended = true;
    realm_mutex_unlock(&r->mu);
    F.running--;
    r->p.on_ready(r->p.user);
    return NULL;
}

realm_status realm_run_start(realm_request *q, const realm_run_params *p, realm_run **out, realm_error *err) {
    (void)q;
    (void)err;
    if (realm_alloc_count() > 0) realm_alloc_inject_failure(-1, false); /* its own do not count */
    realm_run *r = realm_calloc(1, sizeof *r);
    r->p = *p;
    r->input = realm_strndup(p->input, p->input_len);
    /* copies, as the contract says: the caller's memory is not looked at later */
    if (p->prompt) r->p.prompt = realm_strndup(p->prompt, p->prompt_len);
    if (p->n_tokens) {
        realm_token *t = realm_calloc(p->n_tokens, sizeof *t);
        memcpy(t, p->tokens, p->n_tokens * sizeof *t);
        r->p.tokens = t;
    }
    static pthread_mutex_t last = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&last);
    snprintf(F.input, sizeof F.input, "%s", r->input);
    snprintf(F.template_args, sizeof F.template_args, "%.*s", (int)p->template_args_len,
             p->template_args ? p->template_args : "");
    F.params = p->generation;
    for (size_t i = 0; i < REALM_MIN(p->generation.sampling.n_dry_breakers, REALM_ARRAY_LEN(F.breakers)); i++)
        F.breakers[i] = p->generation.sampling.dry_breakers[i];
    pthread_mutex_unlock(&last);
    realm_mutex_init(&r->mu, REALM_RANK_REQUEST);
    realm_cond_init(&r->cond);
    int running = ++F.running;
    if (running > F.most_running) F.most_running = running;
    r->refused = F.max_running && running > F.max_running;
    int k = F.started++;
    F.seeds[k % 64] = p->generation.sampling.seed;
    *out = r;
    return realm_thread_start(&r->thread, "fake", fake_run, r, NULL);
}

size_t realm_run_poll(realm_run *r, realm_event_batch *b) {
    realm_mutex_lock(&r->mu);
    if (!b->events) {
        b->events = realm_calloc(64, sizeof *b->events);
        b->top = realm_calloc(128, sizeof *b->top);
    }
    realm_buf_reset(&b->text);
    size_t n = r->n;
    memcpy(b->events, r->pending, n * sizeof *b->events);
    memcpy(b->top, r->top, sizeof r->top);
    (void)realm_buf_append(&b->text, r->text, r->n_text);
    r->n = r->n_text = 0;
    if (n == 0 && r->ended && !r->end_taken) {
        r->end_taken = true;
        b->events[n++] = (realm_event){
            .kind = REALM_EVENT_END, .id = -1, .finish = r->cancelled ? REALM_FINISH_CANCELLED : r->finish};
        b->status = r->status;
        if (r->status) realm_error_set(&b->error, r->status, "%s", r->why);
    } else if (n > 0 && r->ended) {
        r->p.on_ready(r->p.user); /* as the real one: from inside poll */
    }
    b->prompt_tokens = r->prompt;
    b->cached_tokens = r->prompt ? 1 : 0;
    b->completion_tokens = r->made + (r->ended && r->finish == REALM_FINISH_STOP ? 1 : 0);
    b->n_events = n;
    realm_cond_signal(&r->cond);
    realm_mutex_unlock(&r->mu);
    return n;
}

void realm_run_cancel(realm_run *r) {
    realm_mutex_lock(&r->mu);
    if (!r->ended && !r->cancelled) F.cancelled++;
    r->cancelled = true;
    realm_cond_broadcast(&r->cond);
    realm_mutex_unlock(&r->mu);
}
void realm_run_release(realm_run *r) {
    if (!r) return;
    realm_run_cancel(r);
    pthread_join(r->thread, NULL);
    realm_mutex_destroy(&r->mu);
    realm_cond_destroy(&r->cond);
    realm_free((void *)(uintptr_t)r->p.prompt);
    if (r->p.n_tokens) realm_free((void *)(uintptr_t)r->p.tokens);
    realm_free(r->input);
    realm_free(r);
    F.released++;
}

#endif
