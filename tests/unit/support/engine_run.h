/* support/engine_run.h - an engine over a tiny model, and generations run to their end, for tests. */
#ifndef TESTS_SUPPORT_ENGINE_RUN_H
#define TESTS_SUPPORT_ENGINE_RUN_H

#include <pthread.h>
#include <semaphore.h>

#include "base/clock.h"
#include "engine/engine.h"
#include "support/tiny_model.h"

typedef struct engine_run {
    tiny_model *file;
    realm_gguf *g;
    realm_backend *b;
    realm_model *m;
    realm_tokenizer *t;
    realm_engine *e;
    realm_account *a; /* without limits */
} engine_run;

__attribute__((unused)) static void engine_run_open(engine_run *r, const tiny_spec *spec,
                                                    const realm_engine_config *config) {
    realm_error err = {0};
    realm_backend_config bc = {.n_threads = 2};
    *r = (engine_run){.file = tiny_make(spec)};
    if (realm_gguf_open_memory(&r->g, r->file->file, r->file->file_len, &err) != REALM_OK) model_run_fail("gguf", &err);
    if (realm_backend_open_cpu(&r->b, &bc, &err) != REALM_OK) model_run_fail("backend", &err);
    if (realm_model_open(&r->m, r->b, r->g, NULL, &err) != REALM_OK) model_run_fail("model", &err);
    if (realm_tokenizer_open(&r->t, r->g, &err) != REALM_OK) model_run_fail("tokenizer", &err);
    if (realm_engine_open(&r->e, r->b, r->m, r->t, config, &err) != REALM_OK) model_run_fail("engine", &err);
    if (realm_account_open(r->e, NULL, NULL, &r->a, &err) != REALM_OK) model_run_fail("account", &err);
}

__attribute__((unused)) static void engine_run_close(engine_run *r) {
    realm_account_close(r->a);
    realm_engine_close(r->e);
    realm_tokenizer_close(r->t);
    realm_model_close(r->m);
    realm_backend_close(r->b);
    realm_gguf_close(r->g);
    tiny_free(r->file);
}

/* KV memory of a page of this model's. */
__attribute__((unused)) static uint64_t page_bytes_of(const tiny_spec *spec) {
    engine_run r;
    realm_engine_stats st;
    engine_run_open(&r, spec, &(realm_engine_config){.max_generations = 1});
    realm_engine_get_stats(r.e, &st);
    engine_run_close(&r);
    return st.kv_page_bytes;
}

/* A consumer: counts its wake-ups, collects events. */
typedef struct consumer {
    realm_generation *g;
    realm_event_batch batch;
    pthread_mutex_t mu;
    pthread_cond_t ready;
    bool is_ready;
    int32_t ids[1024];
    float logprobs[1024];
    size_t n_ids, n_prompt_events, n_events;
    char text[8192];
    size_t text_len;
    realm_finish finish; /* NONE until END was seen */
    realm_token end_id;
    realm_status status;
    uint32_t prompt_tokens, completion_tokens;
} consumer;

static void consumer_ready(void *user) {
    consumer *c = user;
    pthread_mutex_lock(&c->mu);
    c->is_ready = true;
    pthread_cond_signal(&c->ready);
    pthread_mutex_unlock(&c->mu);
}

static void consumer_init(consumer *c) {
    memset(c, 0, sizeof *c);
    pthread_mutex_init(&c->mu, NULL);
    pthread_cond_init(&c->ready, NULL);
    realm_event_batch_init(&c->batch);
}

__attribute__((unused)) static realm_status consumer_submit(consumer *c, realm_engine *e,
                                                            const realm_generation_params *p, realm_error *err) {
    realm_generation_params q = *p;
    consumer_init(c);
    q.on_ready = consumer_ready;
    q.user = c;
    return realm_generation_submit(e, &q, &c->g, err);
}

/* Takes what is there; true once END was seen. */
static bool consumer_poll(consumer *c) {
    if (c->finish != REALM_FINISH_NONE) return true;
    size_t n = realm_generation_poll(c->g, &c->batch);
    c->n_events += n;
    for (size_t i = 0; i < n; i++) {
        const realm_event *ev = &c->batch.events[i];
        assert_true(c->finish == REALM_FINISH_NONE); /* END is the last */
        assert_true(c->text_len + ev->text_len < sizeof c->text);
        memcpy(c->text + c->text_len, (c->batch.text.data ? c->batch.text.data : "") + ev->text_at, ev->text_len);
        c->text_len += ev->text_len;
        if (ev->kind == REALM_EVENT_TOKEN) {
            assert_true(c->n_ids < 1024);
            c->logprobs[c->n_ids] = ev->logprob;
            c->ids[c->n_ids++] = ev->id;
        } else if (ev->kind == REALM_EVENT_PROMPT) {
            c->n_prompt_events++;
        } else {
            c->finish = ev->finish;
            c->end_id = ev->id;
            c->status = c->batch.status;
        }
        c->prompt_tokens = c->batch.prompt_tokens;
        c->completion_tokens = c->batch.completion_tokens;
    }
    return c->finish != REALM_FINISH_NONE;
}

/* Reads to the end; fails the test after 20 seconds without an event. */
__attribute__((unused)) static void consumer_wait(consumer *c) {
    while (!consumer_poll(c)) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += 20;
        pthread_mutex_lock(&c->mu);
        while (!c->is_ready)
            if (pthread_cond_timedwait(&c->ready, &c->mu, &until) != 0) {
                pthread_mutex_unlock(&c->mu);
                print_error("no event for 20 s\n");
                fail();
            }
        c->is_ready = false;
        pthread_mutex_unlock(&c->mu);
    }
}

__attribute__((unused)) static void consumer_close(consumer *c) {
    realm_generation_release(c->g);
    realm_event_batch_release(&c->batch);
    pthread_cond_destroy(&c->ready);
    pthread_mutex_destroy(&c->mu);
}

/* Parameters for a greedy generation of n tokens from a prompt, end tokens ignored. */
__attribute__((unused)) static realm_generation_params greedy(realm_account *a, const realm_token *prompt, size_t n,
                                                              uint32_t max_tokens) {
    realm_generation_params p = {
        .account = a, .prompt = prompt, .n_prompt = n, .max_tokens = max_tokens, .ignore_end = true};
    realm_sampling_init(&p.sampling);
    p.sampling.temperature = 0;
    return p;
}

/* A prompt that depends on `salt`. */
__attribute__((unused)) static void fill_prompt(realm_token *ids, size_t n, unsigned salt) {
    for (size_t i = 0; i < n; i++) ids[i] = (realm_token)((i * 31 + salt * 97 + i * i * (salt % 7 + 1)) % TINY_VOCAB);
}

/* The engine's thread stopped inside the callback of a generation's first event, so that a test can submit several, or
 * look at counts, with nothing moving. Where it is lent to programs, it may be promised to one when it stops: no worker
 * runs that one meanwhile, so who waits for the program before held_go waits for ever. */
typedef struct held {
    realm_generation *g;
    sem_t entered, go;
    bool passed;
} held;

static void held_ready(void *user) {
    held *h = user;
    if (h->passed) return;
    h->passed = true;
    sem_post(&h->entered);
    while (sem_wait(&h->go) != 0) continue;
}

__attribute__((unused)) static void held_submit(held *h, realm_engine *e, const realm_generation_params *p) {
    realm_generation_params q = *p;
    *h = (held){0};
    sem_init(&h->entered, 0, 0);
    sem_init(&h->go, 0, 0);
    q.on_ready = held_ready;
    q.user = h;
    assert_int_equal(realm_generation_submit(e, &q, &h->g, NULL), REALM_OK);
}

/* Returns with the engine stopped at this generation's first event. */
__attribute__((unused)) static void held_wait(held *h) {
    while (sem_wait(&h->entered) != 0) continue;
}

__attribute__((unused)) static void held_go(held *h) {
    sem_post(&h->go);
    realm_generation_release(h->g);
    sem_destroy(&h->entered);
    sem_destroy(&h->go);
}

/* Stops the engine now; held_go lets it go on. */
__attribute__((unused)) static void engine_stop(held *h, engine_run *r) {
    realm_token one = 1;
    realm_generation_params p = greedy(r->a, &one, 1, 1);
    held_submit(h, r->e, &p);
    held_wait(h);
}

#endif
