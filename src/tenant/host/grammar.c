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
    realm_free(g);
}

/* A handle for a state, which is taken over, and the bytes that are held for it. */
static realm_call_result give(realm_host *h, const host_model *model, realm_grammar_state *state, uint64_t held,
                              int32_t *result) {
    host_grammar *g = realm_malloc(sizeof *g);
    if (!g) {
        host_let_go_bytes(h, held);
        realm_grammar_state_close(state);
        return host_fail(h, result, REALM_E_NOMEM, "out of memory");
    }
    *g = (host_grammar){.model = model, .state = state, .held = held};
    if (!host_slot_take(h, HOST_GRAMMAR, g, result)) return REALM_CALL_DONE;
    host_grammar_free(h, g);
    return host_failed(h, result);
}

/* ---- compiling ---- */

typedef struct compile_job {
    tenant_job job;
    tenant_model *m;
    bool keeps_model; /* a stored one, which the job keeps loaded itself: its program may end meanwhile */
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
    if (j->keeps_model) model_let_go(job->tenant, j->m);
    realm_free(j->text);
    realm_free(j);
}

/* grammar_compile(kind, text, len) */
realm_call_result host_grammar_compile(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    realm_call_result state;
    if (realm_call_resumed(call)) {
        compile_job *j = (compile_job *)host_job_done(call, &state, result);
        if (!j) return state;
        realm_grammar_state *made = j->state;
        const uint64_t held = j->held;
        j->state = NULL;
        j->held = 0;
        host_job_end(h);
        return give(h, h->model, made, held, result);
    }
    if (args[0] < REALM_GRAMMAR_JSON_SCHEMA || args[0] > REALM_GRAMMAR_LARK)
        return host_fail(h, result, REALM_E_INVALID, "grammar_compile: there is no kind %u", (unsigned)args[0]);
    if (args[2] > REALM_GRAMMAR_BYTES_MAX)
        return host_fail(h, result, REALM_E_LIMIT, "grammar_compile: at most %u bytes", REALM_GRAMMAR_BYTES_MAX);
    const char *text = host_range(call, args[1], args[2], "grammar_compile", result);
    if (!text) return REALM_CALL_DONE;
    const uint64_t held = HOST_GRAMMAR_BYTES + HOST_GRAMMAR_BYTES_PER_BYTE * args[2];
    if (host_hold_bytes(h, held, "a grammar")) return host_failed(h, result);
    compile_job *j = realm_calloc(1, sizeof *j);
    if (!j || !(j->text = realm_strndup(text, (size_t)args[2]))) {
        realm_free(j);
        host_let_go_bytes(h, held);
        return host_fail(h, result, REALM_E_NOMEM, "grammar_compile: out of memory");
    }
    j->held = held;
    j->len = (size_t)args[2];
    j->kind = (realm_grammar_kind)args[0];
    j->m = h->model->m;
    j->job.work = compile_work;
    j->job.free = compile_free;
    realm_tenant *t = realm_run_request(h->run)->tenant;
    job_init(&j->job, t, realm_call_instance(call), true);
    j->keeps_model = h->model != &h->models[0] && !(h->model->id & MODEL_ID_SERVER);
    if (j->keeps_model) model_hold_again(t, j->m);
    return host_job_start(call, &j->job, result);
}

/* ---- states ---- */

realm_call_result host_grammar_fork(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    realm_grammar_state *made = NULL;
    host_grammar *g = host_need(h, args[0], HOST_GRAMMAR, "grammar_fork", result);
    if (!g) return REALM_CALL_DONE;
    if (host_hold_bytes(h, g->held, "a grammar")) return host_failed(h, result);
    if (realm_grammar_state_fork(g->state, &made, &h->error)) {
        host_let_go_bytes(h, g->held);
        return host_failed(h, result);
    }
    return give(h, g->model, made, g->held, result);
}

realm_call_result host_grammar_accept(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    realm_tokens t = {0};
    size_t n = 0;
    host_grammar *g = host_need(h, args[0], HOST_GRAMMAR, "grammar_accept", result);
    if (!g) return REALM_CALL_DONE;
    if (host_take_tokens(call, "grammar_accept", g->model, args[1], args[2], &t) ||
        realm_grammar_state_accept(g->state, t.ids, t.len, &n, &h->error))
        host_failed(h, result);
    else
        *result = (int32_t)n;
    realm_tokens_release(&t);
    return REALM_CALL_DONE;
}

realm_call_result host_grammar_rollback(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    host_grammar *g = host_need(h, args[0], HOST_GRAMMAR, "grammar_rollback", result);
    if (!g) return REALM_CALL_DONE;
    if (realm_grammar_state_rollback(g->state, (size_t)args[1], &h->error)) return host_failed(h, result);
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
