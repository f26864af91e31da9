/* bench/tenants/native.c - lockstep without a sandbox: what a program of lockstep.wasm's kind does, as part of the
 * host.
 *
 * An engine of its own on a backend of its own. Its thread while there is nothing to compute, or a compute thread while
 * the pass that was guessed is computed, draws the next token from the row of the forward pass that has just ended and
 * submits the pass after it, and tells the reader. That is how programs are served (src/tenant/idle.c), less the
 * program.
 */
#include <sched.h>

#include "../serving.h"
#include "bench.h"

struct native {
    realm_backend *backend;
    bench_served served;
    realm_account *account;
    /* of the request */
    client *reader;
    realm_context *context;
    _Atomic(realm_generation *) pass; /* NULL: none, or its submit has not returned yet */
    realm_event_batch batch;
    atomic_bool ended; /* the pass */
    atomic_uint lent;  /* threads that will look at it */
    atomic_uint n_tokens;
    uint32_t left;
};

static void pass_ready(void *user) {
    native *n = user;
    atomic_store(&n->ended, true);
    if (atomic_load(&n->lent) == 0) client_on_ready(n->reader); /* the reader's thread has to: native_turn */
}
static void tell_reader(void *user) { client_on_ready(((native *)user)->reader); }

static void submit(native *n, const realm_token *tokens, size_t n_tokens) {
    realm_error err = {0};
    realm_generation_params p = {.account = n->account,
                                 .prompt = tokens,
                                 .n_prompt = n_tokens,
                                 .context = n->context,
                                 .forward = true,
                                 .n_rows = 1,
                                 .on_ready = pass_ready,
                                 .user = n};
    realm_generation *pass;
    realm_sampling_init(&p.sampling);
    if (realm_generation_submit(n->served.e, &p, &pass, &err)) die("submit", &err);
    atomic_store(&n->pass, pass);
}

static void expect(void *user) { atomic_fetch_add(&((native *)user)->lent, 1); }
static void recall(void *user) { (void)user; }

/* True: there was something to answer. */
static bool answer(native *n) {
    realm_error err = {0};
    realm_token id;
    if (!atomic_exchange(&n->ended, false)) return false;
    realm_generation *pass;
    while (!(pass = atomic_exchange(&n->pass, NULL))) sched_yield(); /* the first one's client has lost its processor */
    (void)realm_generation_poll(pass, &n->batch);
    realm_logits *row = realm_generation_take_logits(pass);
    if (!row || realm_logits_sample(row, 0, NULL, &id, NULL, &err)) die("a row", &err);
    realm_logits_release(row);
    realm_generation_release(pass);
    atomic_fetch_add(&n->n_tokens, 1);
    if (--n->left > 0) submit(n, &id, 1);
    return true;
}

static void answer_idle(void *user) {
    native *n = user;
    const struct realm_backend_vtable *v = n->backend->v;
    atomic_fetch_sub(&n->lent, 1);
    if (answer(n) && (!v->aside || !v->aside(n->backend, tell_reader, n))) tell_reader(n);
}

static void answer_aside(void *user) {
    native *n = user;
    atomic_fetch_sub(&n->lent, 1);
    if (answer(n)) tell_reader(n);
}

void native_turn(native *n) { (void)answer(n); }

native *native_open(const char *path) {
    realm_error err = {0};
    native *n = realm_calloc(1, sizeof *n);
    if (!n) die("native", &err);
    const realm_engine_config config = {.idle = {n, expect, answer_idle, recall},
                                        .aside = {n, expect, answer_aside, recall}};
    if (realm_backend_open_cpu(&n->backend, &(realm_backend_config){0}, &err)) die("backend", &err);
    bench_serve(&n->served, n->backend, path, &config);
    if (realm_account_open(n->served.e, NULL, NULL, &n->account, &err)) die("account", &err);
    realm_event_batch_init(&n->batch);
    return n;
}

realm_engine *native_engine(native *n) { return n->served.e; }

void native_begin(native *n, client *reader, uint32_t n_tokens) {
    static const realm_token prompt[] = {28, 29, 30, 31};
    realm_error err = {0};
    if (realm_context_open(n->served.e, n->account, &n->context, &err)) die("context", &err);
    n->reader = reader;
    n->left = n_tokens;
    atomic_store(&n->n_tokens, 0);
    submit(n, prompt, REALM_ARRAY_LEN(prompt));
}

uint32_t native_tokens(native *n) { return atomic_load(&n->n_tokens); }

void native_end(native *n) {
    realm_context_release(n->context);
    n->context = NULL;
}

void native_close(native *n) {
    realm_engine_end_idle(n->served.e);
    realm_account_close(n->account);
    bench_unserve(&n->served);
    realm_backend_close(n->backend);
    realm_event_batch_release(&n->batch);
    realm_free(n);
}
