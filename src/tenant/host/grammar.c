/* tenant/host/grammar.c - host calls of grammars: which tokens may come next.
 *
 * Compiling is a job: it may take as long as its limits allow, and a model's vocabulary is prepared with the first one.
 */
#include <string.h>

#include "tenant/host/host.h"

void host_grammar_free(realm_host *h, void *object) {
    host_grammar *g = object;
    host_let_go_bytes(h, g->held);
    realm_grammar_state_close(g->state);
    realm_tokens_release(&g->along);
    realm_free(g);
}

/* ---- compiling ---- */

typedef struct compile_job {
    tenant_job job;
    const host_model *model; /* the program's; the work itself looks at `m` alone */
    tenant_model *m;         /* held: the program may end meanwhile */
    realm_grammar_kind kind;
    char *text;
    size_t len;
    uint64_t held; /* of the tenant's tensor_bytes, for the state; until the program takes it over */
    realm_grammar_state *state;
} compile_job;

static void compile_work(tenant_job *job) {
    compile_job *j = (compile_job *)job;
    realm_grammar_vocab *vocab;
    realm_grammar *g = NULL;
    realm_status st = model_vocab(j->m, &vocab, &job->error);
    if (!st) st = realm_grammar_compile(vocab, (uint64_t)job->tenant->id, j->kind, j->text, j->len, &g, &job->error);
    if (!st) st = realm_grammar_state_open(g, &j->state, &job->error);
    realm_grammar_release(g); /* the state holds it */
    if (st) realm_error_prefix(&job->error, "grammar_compile");
}

static void compile_free(tenant_job *job) {
    compile_job *j = (compile_job *)job;
    realm_grammar_state_close(j->state);
    realm_tensor_budget_refund(job->tenant->tensors, j->held);
    realm_served_release(j->m);
    realm_free(j->text);
    realm_free(j);
}

realm_call_result host_grammar_begin(realm_call *call, const host_model *model, realm_grammar_kind kind,
                                     const char *text, size_t len, int32_t *result) {
    realm_host *h = host_of(call);
    const uint64_t held = HOST_GRAMMAR_BYTES + HOST_GRAMMAR_BYTES_PER_BYTE * (uint64_t)len;
    if (host_hold_bytes(h, held, "a grammar")) return host_failed(h, result);
    compile_job *j = realm_calloc(1, sizeof *j);
    if (!j || !(j->text = realm_strndup(text, len))) {
        realm_free(j);
        host_let_go_bytes(h, held);
        return host_fail(h, result, REALM_E_NOMEM, "grammar_compile: out of memory");
    }
    j->held = held;
    j->len = len;
    j->kind = kind;
    j->model = model;
    j->m = model_hold_again(model->m);
    j->job.work = compile_work;
    j->job.free = compile_free;
    job_init(&j->job, realm_run_request(h->run)->tenant, realm_call_instance(call), true);
    return host_job_start(call, &j->job, result);
}

host_grammar *host_grammar_made(realm_call *call, realm_call_result *state, int32_t *result) {
    realm_host *h = host_of(call);
    compile_job *j = (compile_job *)host_job_done(call, state, result);
    if (!j) return NULL;
    host_grammar *g = realm_malloc(sizeof *g);
    if (g) {
        *g = (host_grammar){.model = j->model, .state = j->state, .held = j->held};
        j->state = NULL;
        j->held = 0;
    } else {
        *state = host_fail(h, result, REALM_E_NOMEM, "grammar_compile: out of memory");
    }
    host_job_end(h);
    return g;
}

/* grammar_compile(kind, text, len) */
realm_call_result host_grammar_compile(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    if (realm_call_resumed(call)) {
        realm_call_result state;
        host_grammar *g = host_grammar_made(call, &state, result);
        return g ? host_handle_give(h, HOST_GRAMMAR, g, result) : state;
    }
    if (args[0] < REALM_GRAMMAR_JSON_SCHEMA || args[0] > REALM_GRAMMAR_LARK)
        return host_fail(h, result, REALM_E_INVALID, "grammar_compile: there is no kind %u", (unsigned)args[0]);
    if (args[2] > REALM_GRAMMAR_BYTES_MAX)
        return host_fail(h, result, REALM_E_LIMIT, "grammar_compile: at most %u bytes", REALM_GRAMMAR_BYTES_MAX);
    const char *text = host_range(call, args[1], args[2], "grammar_compile", result);
    if (!text) return REALM_CALL_DONE;
    return host_grammar_begin(call, h->model, (realm_grammar_kind)args[0], text, (size_t)args[2], result);
}

/* ---- states ---- */

realm_call_result host_grammar_fork(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    realm_grammar_state *made = NULL;
    host_grammar *g = host_need(h, args[0], HOST_GRAMMAR, "grammar_fork", result), *copy;
    if (!g) return REALM_CALL_DONE;
    if (host_hold_bytes(h, g->held, "a grammar")) return host_failed(h, result);
    if (realm_grammar_state_fork(g->state, &made, &h->error)) {
        host_let_go_bytes(h, g->held);
        return host_failed(h, result);
    }
    realm_token *along = realm_calloc(g->along.len + 1, sizeof *along);
    if (along && (copy = realm_malloc(sizeof *copy))) {
        *copy = *g;
        copy->state = made;
        copy->along = (realm_tokens){.ids = along, .len = g->along.len, .cap = g->along.len + 1};
        if (g->along.len) memcpy(along, g->along.ids, g->along.len * sizeof *along);
        return host_handle_give(h, HOST_GRAMMAR, copy, result);
    }
    realm_free(along);
    host_let_go_bytes(h, g->held);
    realm_grammar_state_close(made);
    return host_fail(h, result, REALM_E_NOMEM, "grammar_fork: out of memory");
}

uint64_t host_grammar_growth(const host_model *model, const realm_token *ids, size_t n) {
    uint64_t bytes = 0;
    const char *piece;
    size_t len;
    for (size_t i = 0; i < n; i++)
        if (!realm_tokenizer_piece(host_tokenizer(model), ids[i], false, &piece, &len)) bytes += len;
    return bytes * HOST_GRAMMAR_BYTES_ALONG;
}

/* Room for n tokens more, before there are any: in its list, and of the tenant's budget what is more than it ever had.
 */
static realm_status reserve(realm_host *h, host_grammar *g, const realm_token *ids, size_t n) {
    const uint64_t bytes = g->along_bytes + host_grammar_growth(g->model, ids, n);
    if (g->along.len + n > g->along.cap) {
        const size_t cap = REALM_MAX(g->along.len + n, 2 * g->along.cap);
        realm_token *p = realm_realloc_array(g->along.ids, cap, sizeof *p);
        if (!p) return realm_error_set(&h->error, REALM_E_NOMEM, "grammar_accept: out of memory");
        g->along.ids = p;
        g->along.cap = cap;
    }
    if (bytes <= g->along_held) return REALM_OK;
    if (host_hold_bytes(h, bytes - g->along_held, "a grammar's text")) return h->error.code;
    g->held += bytes - g->along_held;
    g->along_held = bytes;
    return REALM_OK;
}

realm_call_result host_grammar_accept(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    realm_tokens t = {0};
    size_t n = 0;
    host_grammar *g = host_need(h, args[0], HOST_GRAMMAR, "grammar_accept", result);
    if (!g) return REALM_CALL_DONE;
    if (host_take_tokens(call, "grammar_accept", g->model, args[1], args[2], &t) || reserve(h, g, t.ids, t.len) ||
        realm_grammar_state_accept(g->state, t.ids, t.len, &n, &h->error))
        host_failed(h, result);
    else
        *result = (int32_t)n;
    if (n) memcpy(g->along.ids + g->along.len, t.ids, n * sizeof *t.ids);
    g->along.len += n;
    g->along_bytes += host_grammar_growth(g->model, t.ids, n);
    realm_tokens_release(&t);
    return REALM_CALL_DONE;
}

realm_call_result host_grammar_rollback(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    host_grammar *g = host_need(h, args[0], HOST_GRAMMAR, "grammar_rollback", result);
    if (!g) return REALM_CALL_DONE;
    if (realm_grammar_state_rollback(g->state, (size_t)args[1], &h->error)) return host_failed(h, result);
    g->along.len -= (size_t)args[1];
    g->along_bytes -= host_grammar_growth(g->model, g->along.ids + g->along.len, (size_t)args[1]);
    return REALM_CALL_DONE;
}

realm_call_result host_grammar_mask(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    host_grammar *g = host_need(h, args[0], HOST_GRAMMAR, "grammar_mask", result);
    if (!g) return REALM_CALL_DONE;
    size_t n = realm_tokenizer_vocab_size(host_tokenizer(g->model));
    uint32_t *bits = realm_calloc((n + 31) / 32, sizeof *bits);
    if (!bits) return host_fail(h, result, REALM_E_NOMEM, "grammar_mask: out of memory");
    if (realm_grammar_state_mask(g->state, bits, &h->error)) {
        host_failed(h, result);
    } else {
        for (size_t i = 0; i < (n + 31) / 32; i++) { /* words to bytes, the first bits first */
            const uint32_t word = bits[i];
            for (size_t k = 0; k < 4; k++) ((unsigned char *)bits)[4 * i + k] = (unsigned char)(word >> 8 * k);
        }
        host_give(call, args[1], args[2], bits, (n + 7) / 8, 1, result);
    }
    realm_free(bits);
    return REALM_CALL_DONE;
}

realm_call_result host_grammar_state(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    host_grammar *g = host_need(h, args[0], HOST_GRAMMAR, "grammar_state", result);
    if (!g) return REALM_CALL_DONE;
    *result = (realm_grammar_state_can_end(g->state) ? REALM_GRAMMAR_CAN_END : 0) |
              (realm_grammar_state_must_end(g->state) ? REALM_GRAMMAR_MUST_END : 0);
    return REALM_CALL_DONE;
}
