/* tenant/host/logits.c - host calls of forward passes: submitting one, and what can be done with the rows it leaves.
 *
 * Rows stay on the host: a program asks for a draw, the best tokens, a few log-probabilities, or changes a row in
 * place. Only logits_read and hidden_read copy whole rows out, and those bytes are counted (`read_bytes`); what rows
 * hold on the host counts as `tensor_bytes`.
 */
#include <math.h>
#include <string.h>

#include "tenant/host/host.h"

#define TOP_MAX 256u
#define GATHER_MAX 4096u

/* ---- forward ---- */

realm_call_result host_forward(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    realm_tokens t = {0};
    host_context *c = host_need(h, args[0], HOST_CONTEXT, "forward", result);
    if (!c) return REALM_CALL_DONE;
    if (args[4] & ~(uint64_t)REALM_FORWARD_HIDDEN)
        return host_fail(h, result, REALM_E_UNSUPPORTED, "forward: unknown flags 0x%x", (unsigned)args[4]);
    if (host_take_tokens(call, "forward", c->model, args[1], args[2], &t) ||
        host_forward_start(h, c, &t, (uint32_t)args[3], args[4] & REALM_FORWARD_HIDDEN, result))
        host_failed(h, result);
    realm_tokens_release(&t);
    return REALM_CALL_DONE;
}

/* ---- rows ---- */

typedef struct row {
    const host_model *model;
    realm_logits *logits;
    size_t at, n; /* vocabulary */
} row;

/* The row that a call is about; false with *result set. */
static bool find_row(realm_host *h, const uint64_t *args, const char *call, row *out, int32_t *result) {
    const host_logits *own = host_get(h, args[0], HOST_LOGITS);
    const host_generation *g = host_get(h, args[0], HOST_GENERATION);
    if (!own && (!g || !g->forward)) {
        host_fail(h, result, REALM_E_INVALID, "%s: %d is no open forward pass", call, (int32_t)(uint32_t)args[0]);
        return false;
    }
    realm_logits *logits = own ? own->rows.logits : g->rows.logits;
    if (!logits) {
        host_fail(h, result, g->delivered ? REALM_E_CLOSED : REALM_E_AGAIN, "%s: the forward pass has %s", call,
                  g->delivered ? "no rows" : "not ended");
        return false;
    }
    *out = (row){.model = own ? own->model : g->model, .logits = logits, .at = (size_t)args[1]};
    out->n = realm_tokenizer_vocab_size(host_tokenizer(out->model));
    if (out->at < realm_logits_rows(logits)) return true;
    host_fail(h, result, REALM_E_RANGE, "%s: row %d of %zu", call, (int32_t)(uint32_t)args[1],
              realm_logits_rows(logits));
    return false;
}

realm_call_result host_hidden_read(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    row r;
    size_t d = 0;
    if (!find_row(h, args, "hidden_read", &r, result)) return REALM_CALL_DONE;
    const float *x = realm_logits_hidden(r.logits, r.at, &d);
    if (!x) return host_fail(h, result, REALM_E_NOT_FOUND, "hidden_read: the forward pass kept no hidden states");
    if (d <= args[3] && host_charge_read(h, d * sizeof *x, "hidden_read")) return host_failed(h, result);
    return host_give(call, args[2], args[3], x, d * sizeof *x, sizeof *x, result);
}

realm_call_result host_logits_read(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    row r;
    if (!find_row(h, args, "logits_read", &r, result)) return REALM_CALL_DONE;
    if (r.n <= args[3] && host_charge_read(h, r.n * sizeof(float), "logits_read")) return host_failed(h, result);
    const float *x = realm_logits_look(r.logits, r.at);
    return host_give(call, args[2], args[3], x, r.n * sizeof *x, sizeof *x, result);
}

realm_call_result host_logits_sample(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    row r;
    float logprob = 0;
    void *to = NULL;
    realm_token id = -1;
    if (!find_row(h, args, "logits_sample", &r, result)) return REALM_CALL_DONE;
    host_sampler *s = args[2] ? host_need(h, args[2], HOST_SAMPLER, "logits_sample", result) : NULL;
    if (args[2] && !s) return REALM_CALL_DONE;
    if (host_sampler_moves(call, s)) return REALM_CALL_MOVE;
    if (args[3] && !(to = host_range(call, args[3], sizeof logprob, "logits_sample", result))) return REALM_CALL_DONE;
    if (s && (host_same_model(h, s->model, "the sampler", r.model) || host_charge_text(h, HOST_SAMPLER_TOKEN_BYTES)))
        return host_failed(h, result);
    if (s) s->charged += HOST_SAMPLER_TOKEN_BYTES;
    if (realm_logits_sample(r.logits, r.at, s ? s->chain : NULL, &id, to ? &logprob : NULL, &h->error) ||
        (s && host_sampler_moved(h, s, &id, 1)))
        return host_failed(h, result);
    if (to) memcpy(to, &logprob, sizeof logprob);
    *result = id;
    return REALM_CALL_DONE;
}

realm_call_result host_logits_top(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    row r;
    realm_top_logprob top[TOP_MAX];
    realm_guest_token out[TOP_MAX];
    if (!find_row(h, args, "logits_top", &r, result)) return REALM_CALL_DONE;
    if (args[2] > TOP_MAX) return host_fail(h, result, REALM_E_LIMIT, "logits_top: at most %u tokens", TOP_MAX);
    size_t n = realm_logits_top(r.logits, r.at, (size_t)args[2], top);
    for (size_t i = 0; i < n; i++) out[i] = (realm_guest_token){.token = top[i].id, .logprob = top[i].logprob};
    return host_give(call, args[3], args[4], out, n * sizeof *out, sizeof *out, result);
}

realm_call_result host_logits_gather(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    row r;
    realm_tokens t = {0};
    if (!find_row(h, args, "logits_gather", &r, result)) return REALM_CALL_DONE;
    if (args[3] > GATHER_MAX)
        return host_fail(h, result, REALM_E_LIMIT, "logits_gather: at most %u tokens", GATHER_MAX);
    unsigned char *to = host_range(call, args[4], args[3] * sizeof(float), "logits_gather", result);
    if (!to) return REALM_CALL_DONE;
    if (host_take_tokens(call, "logits_gather", r.model, args[2], args[3], &t)) {
        host_failed(h, result);
    } else {
        const float *x = realm_logits_look(r.logits, r.at), lse = realm_logits_log_sum_exp(r.logits, r.at);
        for (size_t i = 0; i < t.len; i++) {
            float p = x[t.ids[i]] - lse;
            memcpy(to + i * sizeof p, &p, sizeof p); /* may not be aligned */
        }
        *result = (int32_t)t.len;
    }
    realm_tokens_release(&t);
    return REALM_CALL_DONE;
}

realm_call_result host_logits_stats(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    row r;
    realm_top_logprob best;
    if (!find_row(h, args, "logits_stats", &r, result)) return REALM_CALL_DONE;
    void *to = host_range(call, args[2], sizeof(realm_guest_logit_stats), "logits_stats", result);
    if (!to) return REALM_CALL_DONE;
    if (realm_logits_top(r.logits, r.at, 1, &best) != 1)
        return host_fail(h, result, REALM_E_FORMAT, "logits_stats: the row has no finite logit");
    realm_guest_logit_stats out = {.best = best.id,
                                   .best_logprob = best.logprob,
                                   .entropy = realm_logits_entropy(r.logits, r.at),
                                   .log_sum_exp = realm_logits_log_sum_exp(r.logits, r.at)};
    memcpy(to, &out, sizeof out);
    return REALM_CALL_DONE;
}

/* ---- changing a row ---- */

realm_call_result host_logits_bias(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    row r;
    if (!find_row(h, args, "logits_bias", &r, result)) return REALM_CALL_DONE;
    if (args[3] > REALM_LOGIT_BIAS_MAX)
        return host_fail(h, result, REALM_E_LIMIT, "logits_bias: at most %u tokens", REALM_LOGIT_BIAS_MAX);
    const unsigned char *from = host_range(call, args[2], args[3] * sizeof(realm_bias), "logits_bias", result);
    if (!from) return REALM_CALL_DONE;
    realm_bias b;
    float *x = args[3] > 0 ? realm_logits_row(r.logits, r.at) : NULL;
    for (int pass = 0; pass < 2; pass++) /* all are checked before the first counts */
        for (size_t i = 0; i < args[3]; i++) {
            memcpy(&b, from + i * sizeof b, sizeof b);
            if (b.token < 0 || (size_t)b.token >= r.n)
                return host_fail(h, result, REALM_E_RANGE, "logits_bias: there is no token %d", b.token);
            if (isnan(b.bias) || b.bias == INFINITY)
                return host_fail(h, result, REALM_E_RANGE, "logits_bias: the bias of token %d is not a number to add",
                                 b.token);
            if (pass) x[b.token] += b.bias;
        }
    return REALM_CALL_DONE;
}

realm_call_result host_logits_mask(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    row r;
    if (!find_row(h, args, "logits_mask", &r, result)) return REALM_CALL_DONE;
    if (args[3] != (r.n + 7) / 8)
        return host_fail(h, result, REALM_E_RANGE, "logits_mask: %llu bytes of bits, the vocabulary takes %zu",
                         (unsigned long long)args[3], (r.n + 7) / 8);
    const unsigned char *bits = host_range(call, args[2], args[3], "logits_mask", result);
    if (!bits) return REALM_CALL_DONE;
    float *x = realm_logits_row(r.logits, r.at);
    for (size_t t = 0; t < r.n; t++)
        if (!(bits[t / 8] >> t % 8 & 1)) x[t] = -INFINITY;
    return REALM_CALL_DONE;
}
