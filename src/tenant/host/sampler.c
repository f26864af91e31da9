/* tenant/host/sampler.c - host calls of samplers: chains that a program describes and the host runs. */
#include <string.h>

#include "tenant/host/host.h"

static const char WHAT[] = "a sampler's grammar";

void host_sampler_free(realm_host *h, void *object) {
    host_sampler *s = object;
    host_copy_pay_back(h, s->charged, s->held);
    realm_chain_close(s->chain);
    realm_free(s);
}

realm_status host_copy_pay(realm_host *h, size_t charged, uint64_t held, const char *what) {
    realm_status st = host_charge_text(h, charged);
    if (!st && (st = host_hold_bytes(h, held, what))) h->prompt_bytes -= charged;
    return st;
}

void host_copy_pay_back(realm_host *h, size_t charged, uint64_t held) {
    h->prompt_bytes -= charged;
    host_let_go_bytes(h, held);
}

/* A handle for a chain, which is taken over with what was paid for it. */
static realm_call_result give(realm_host *h, const host_model *model, realm_chain *chain, size_t charged, uint64_t held,
                              int32_t *result) {
    host_sampler *s = realm_malloc(sizeof *s);
    if (!s) {
        host_copy_pay_back(h, charged, held);
        realm_chain_close(chain);
        return host_fail(h, result, REALM_E_NOMEM, "out of memory");
    }
    *s = (host_sampler){.model = model, .chain = chain, .charged = charged, .held = held};
    return host_handle_give(h, HOST_SAMPLER, s, result);
}

realm_status host_sampler_moved(realm_host *h, host_sampler *s, const realm_token *ids, size_t n) {
    if (!realm_chain_has_grammar(s->chain)) return REALM_OK;
    const uint64_t bytes = host_grammar_growth(s->model, ids, n);
    realm_status st = host_hold_bytes(h, bytes, "a grammar's text");
    if (!st) s->held += bytes;
    return st;
}

_Static_assert(sizeof(realm_bias) == sizeof(realm_logit_bias), "a program's list of biases is taken as it is");

typedef struct stages { /* being read */
    realm_stage at[REALM_STAGES_MAX];
    void *copies[REALM_STAGES_MAX]; /* of lists, aligned */
    size_t n;
    size_t bytes;  /* of what the chain will keep of them */
    uint64_t held; /* for its grammars */
} stages;

static void stages_release(stages *s) {
    for (size_t i = 0; i < REALM_STAGES_MAX; i++) realm_free(s->copies[i]);
}

/* A list of a stage: n items of `size` bytes. */
static const void *take_list(realm_call *call, stages *s, const realm_sampler_stage *from, uint64_t max, size_t size) {
    realm_host *h = host_of(call);
    if (from->n > max) {
        realm_error_set(&h->error, REALM_E_LIMIT, "sampler_new: stage %zu: %u are more than the %llu that are taken",
                        s->n, from->n, (unsigned long long)max);
        return NULL;
    }
    const void *p = realm_call_memory(call, from->data, (uint64_t)from->n * size);
    if (!p) {
        realm_error_set(&h->error, REALM_E_RANGE, "sampler_new: the list of stage %zu is not all inside the memory",
                        s->n);
        return NULL;
    }
    void *copy = realm_malloc((size_t)from->n * size);
    if (!copy) {
        realm_error_set(&h->error, REALM_E_NOMEM, "out of memory");
        return NULL;
    }
    memcpy(copy, p, (size_t)from->n * size);
    s->copies[s->n] = copy;
    s->bytes += (size_t)from->n * size;
    return copy;
}

/* Ranges of numbers are the engine's to check; here is what the program's memory and handles have to do with it. */
static realm_status take_stage(realm_call *call, const realm_sampler_stage *f, stages *s) {
    realm_host *h = host_of(call);
    realm_stage *to = &s->at[s->n];
    size_t vocab = realm_tokenizer_vocab_size(host_tokenizer(h->model));
    const host_grammar *g;
    to->kind = (realm_stage_kind)f->kind;
    switch (f->kind) {
    case REALM_STAGE_PENALTIES:
        to->u.penalties.last_n = f->n;
        to->u.penalties.repeat = f->a;
        to->u.penalties.frequency = f->b;
        to->u.penalties.presence = f->c;
        break;
    case REALM_STAGE_DRY:
        to->u.dry.last_n = f->n;
        to->u.dry.allowed = f->m;
        to->u.dry.multiplier = f->a;
        to->u.dry.base = f->b;
        break;
    case REALM_STAGE_BIAS:
        if (!(to->u.bias.at = take_list(call, s, f, REALM_LOGIT_BIAS_MAX, sizeof(realm_bias)))) return h->error.code;
        to->u.bias.n = f->n;
        break;
    case REALM_STAGE_MASK:
        if (!(to->u.mask.bits = take_list(call, s, f, (vocab + 7) / 8, 1))) return h->error.code;
        to->u.mask.n_bytes = f->n;
        break;
    case REALM_STAGE_GRAMMAR:
        if (!(g = host_get(h, (uint64_t)(uint32_t)f->handle, HOST_GRAMMAR)))
            return realm_error_set(&h->error, REALM_E_INVALID, "sampler_new: stage %zu: %d is no open grammar", s->n,
                                   f->handle);
        if (host_same_model(h, g->model, "the grammar", h->model)) return h->error.code;
        to->u.grammar = g->state;
        s->held += g->held;
        break;
    case REALM_STAGE_TEMPERATURE: to->u.temperature = f->a; break;
    case REALM_STAGE_TOP_K: to->u.top_k = f->n; break;
    case REALM_STAGE_TOP_P: to->u.top_p = f->a; break;
    case REALM_STAGE_MIN_P: to->u.min_p = f->a; break;
    case REALM_STAGE_TYPICAL: to->u.typical = f->a; break;
    case REALM_STAGE_XTC:
        to->u.xtc.probability = f->a;
        to->u.xtc.threshold = f->b;
        break;
    case REALM_STAGE_MIROSTAT:
        to->u.mirostat.tau = f->a;
        to->u.mirostat.eta = f->b;
        break;
    default:
        return realm_error_set(&h->error, REALM_E_UNSUPPORTED, "sampler_new: stage %zu is of kind %u, which is unknown",
                               s->n, f->kind);
    }
    s->n++;
    return REALM_OK;
}

/* sampler_new(stages, n, seed) */
realm_call_result host_sampler_new(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    realm_chain *chain = NULL;
    stages s = {0};
    realm_sampler_stage one;
    realm_status st = REALM_OK;
    if (args[1] > REALM_STAGES_MAX)
        return host_fail(h, result, REALM_E_LIMIT, "sampler_new: at most %u stages", REALM_STAGES_MAX);
    const unsigned char *from = host_range(call, args[0], args[1] * sizeof one, "sampler_new", result);
    if (!from) return REALM_CALL_DONE;
    for (size_t i = 0; i < args[1] && !st; i++) {
        memcpy(&one, from + i * sizeof one, sizeof one); /* may not be aligned */
        st = take_stage(call, &one, &s);
    }
    if (!st) st = host_copy_pay(h, s.bytes, s.held, WHAT);
    if (!st && (st = realm_chain_open(s.at, s.n, args[2], realm_tokenizer_vocab_size(host_tokenizer(h->model)), &chain,
                                      &h->error))) {
        host_copy_pay_back(h, s.bytes, s.held);
        realm_error_prefix(&h->error, "sampler_new");
    }
    stages_release(&s);
    return st ? host_failed(h, result) : give(h, h->model, chain, s.bytes, s.held, result);
}

realm_call_result host_sampler_fork(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    realm_chain *chain = NULL;
    host_sampler *s = host_need(h, args[0], HOST_SAMPLER, "sampler_fork", result);
    if (!s) return REALM_CALL_DONE;
    if (host_copy_pay(h, s->charged, s->held, WHAT)) return host_failed(h, result);
    if (realm_chain_fork(s->chain, &chain, &h->error)) {
        host_copy_pay_back(h, s->charged, s->held);
        return host_failed(h, result);
    }
    return give(h, s->model, chain, s->charged, s->held, result);
}

static realm_call_result take_note(realm_call *call, const uint64_t *args, const char *what, bool prompt,
                                   int32_t *result) {
    realm_host *h = host_of(call);
    realm_tokens t = {0};
    host_sampler *s = host_need(h, args[0], HOST_SAMPLER, what, result);
    if (!s) return REALM_CALL_DONE;
    if (host_sampler_moves(call, s)) return REALM_CALL_MOVE;
    realm_status st = host_take_tokens(call, what, s->model, args[1], args[2], &t);
    size_t bytes = t.len * HOST_SAMPLER_TOKEN_BYTES;
    if (!st) st = host_charge_text(h, bytes);
    if (!st) s->charged += bytes;
    if (!st) st = host_sampler_moved(h, s, t.ids, t.len);
    if (!st) st = realm_chain_accept(s->chain, t.ids, t.len, prompt, &h->error);
    realm_tokens_release(&t);
    return st ? host_failed(h, result) : REALM_CALL_DONE;
}

realm_call_result host_sampler_accept(realm_call *call, const uint64_t *args, int32_t *result) {
    return take_note(call, args, "sampler_accept", false, result);
}

realm_call_result host_sampler_prompt(realm_call *call, const uint64_t *args, int32_t *result) {
    return take_note(call, args, "sampler_prompt", true, result);
}
