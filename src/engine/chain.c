/* engine/chain.c - a sampler chain: its stages, and what they remember of the tokens so far.
 *
 *      open, fork, from_sampling  -->  [ stages | history ]  <-- accept (prompt or generated), drawn, rewind
 *
 * The history is one list of tokens, prompt ones marked, kept only when a stage looks back (penalties, DRY); mirostat's
 * running surprise is kept for each generated token, and a grammar rolls back by itself. So rewinding by n tokens gives
 * exactly the chain of n tokens ago, and the number of the next draw with it: what is drawn again from the same logits
 * is the same token. Lists grow by doubling unless room was reserved, as the engine does before a generation starts.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "engine/sampling.h"

static const char *const stage_names[] = {[REALM_STAGE_KIND_PENALTIES] = "penalties",
                                          [REALM_STAGE_KIND_DRY] = "dry",
                                          [REALM_STAGE_KIND_BIAS] = "bias",
                                          [REALM_STAGE_KIND_MASK] = "mask",
                                          [REALM_STAGE_KIND_GRAMMAR] = "grammar",
                                          [REALM_STAGE_KIND_TEMPERATURE] = "temperature",
                                          [REALM_STAGE_KIND_TOP_K] = "top_k",
                                          [REALM_STAGE_KIND_TOP_P] = "top_p",
                                          [REALM_STAGE_KIND_MIN_P] = "min_p",
                                          [REALM_STAGE_KIND_TYPICAL] = "typical",
                                          [REALM_STAGE_KIND_XTC] = "xtc",
                                          [REALM_STAGE_KIND_MIROSTAT] = "mirostat"};

/* ---- ranges ----------------------------------------------------------------------------------------------------- */

typedef struct range_check { /* of one stage; the first failure counts */
    size_t at;
    const char *name;
    realm_error *err;
    realm_status status;
} range_check;

static void check(range_check *c, bool ok, const char *field, double v, const char *range) {
    if (ok || c->status != REALM_OK) return;
    c->status = realm_error_set(c->err, REALM_E_RANGE, "stage %zu (%s): %s is %g, it must be %s", c->at, c->name, field,
                                v, range);
}

static void check_between(range_check *c, const char *field, float v, float lo, float hi, const char *range) {
    check(c, v >= lo && v <= hi, field, (double)v, range);
}

static void check_token(range_check *c, const char *field, realm_token id, size_t n_vocab) {
    check(c, id >= 0 && (size_t)id < n_vocab, field, (double)id, "a token of the vocabulary");
}

static void check_mask(range_check *c, const realm_stage *s, size_t n_vocab) {
    const size_t want = (n_vocab + 7) / 8;
    check(c, s->u.mask.n_bytes == want, "the number of bytes", (double)s->u.mask.n_bytes, "one bit for each token");
    if (c->status != REALM_OK) return;
    bool any = false;
    for (size_t t = 0; t < n_vocab && !any; t++) any = s->u.mask.bits[t / 8] >> t % 8 & 1;
    check(c, any, "the number of tokens left", 0, "1 or more");
}

static realm_status check_stage(const realm_stage *s, size_t at, size_t n, size_t n_vocab, realm_error *err) {
    if ((int)s->kind < REALM_STAGE_KIND_PENALTIES || s->kind > REALM_STAGE_KIND_MIROSTAT)
        return realm_error_set(err, REALM_E_RANGE, "stage %zu is of kind %d, which is not known", at, (int)s->kind);
    range_check c = {at, stage_names[s->kind], err, REALM_OK};
    switch (s->kind) {
    case REALM_STAGE_KIND_PENALTIES:
        check(&c, s->u.penalties.repeat > 0 && isfinite(s->u.penalties.repeat), "repeat", (double)s->u.penalties.repeat,
              "above 0");
        check_between(&c, "frequency", s->u.penalties.frequency, -2, 2, "between -2 and 2");
        check_between(&c, "presence", s->u.penalties.presence, -2, 2, "between -2 and 2");
        break;
    case REALM_STAGE_KIND_DRY:
        check(&c, s->u.dry.allowed >= 1, "allowed", s->u.dry.allowed, "1 or more");
        check_between(&c, "multiplier", s->u.dry.multiplier, 0, 1000, "between 0 and 1000");
        check_between(&c, "base", s->u.dry.base, 1, 1000, "between 1 and 1000");
        check(&c, s->u.dry.n_breakers <= REALM_LOGIT_BIAS_MAX, "the number of breakers", (double)s->u.dry.n_breakers,
              "at most 4096");
        for (size_t i = 0; c.status == REALM_OK && i < s->u.dry.n_breakers; i++)
            check_token(&c, "a breaker", s->u.dry.breakers[i], n_vocab);
        break;
    case REALM_STAGE_KIND_BIAS:
        check(&c, s->u.bias.n <= REALM_LOGIT_BIAS_MAX, "the number of entries", (double)s->u.bias.n, "at most 4096");
        for (size_t i = 0; c.status == REALM_OK && i < s->u.bias.n; i++) {
            check_token(&c, "a token", s->u.bias.at[i].id, n_vocab);
            check_between(&c, "a bias", s->u.bias.at[i].bias, -100, 100, "between -100 and 100");
        }
        break;
    case REALM_STAGE_KIND_MASK: check_mask(&c, s, n_vocab); break;
    case REALM_STAGE_KIND_GRAMMAR:
        check(&c, s->u.grammar && realm_grammar_state_vocab_size(s->u.grammar) == n_vocab, "the grammar's vocabulary",
              s->u.grammar ? (double)realm_grammar_state_vocab_size(s->u.grammar) : 0, "the model's");
        break;
    case REALM_STAGE_KIND_TEMPERATURE:
        check(&c, s->u.temperature >= 0 && isfinite(s->u.temperature), "temperature", (double)s->u.temperature,
              "0 or more");
        break;
    case REALM_STAGE_KIND_TOP_K: break;
    case REALM_STAGE_KIND_TOP_P:
        check(&c, s->u.top_p > 0 && s->u.top_p <= 1, "top_p", (double)s->u.top_p, "above 0 and at most 1");
        break;
    case REALM_STAGE_KIND_MIN_P: check_between(&c, "min_p", s->u.min_p, 0, 1, "between 0 and 1"); break;
    case REALM_STAGE_KIND_TYPICAL:
        check(&c, s->u.typical > 0 && s->u.typical <= 1, "typical", (double)s->u.typical, "above 0 and at most 1");
        break;
    case REALM_STAGE_KIND_XTC:
        check_between(&c, "probability", s->u.xtc.probability, 0, 1, "between 0 and 1");
        check_between(&c, "threshold", s->u.xtc.threshold, 0, 1, "between 0 and 1");
        break;
    case REALM_STAGE_KIND_MIROSTAT:
        check(&c, s->u.mirostat.tau > 0 && s->u.mirostat.tau <= 1000, "tau", (double)s->u.mirostat.tau,
              "above 0 and at most 1000");
        check_between(&c, "eta", s->u.mirostat.eta, 0, 1000, "between 0 and 1000");
        check(&c, at + 1 == n, "its place", (double)at, "the last");
        break;
    }
    return c.status;
}

/* ---- opening ---------------------------------------------------------------------------------------------------- */

static int compare_tokens(const void *a, const void *b) {
    const realm_token *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

/* Owned copies of what a stage points to; breakers are sorted. On failure the stage owns nothing. */
static realm_status copy_stage(const realm_stage *from, realm_stage *to, size_t n_vocab, realm_error *err) {
    void *copy = NULL;
    *to = *from;
    switch (from->kind) {
    case REALM_STAGE_KIND_DRY:
        copy = realm_calloc(from->u.dry.n_breakers, sizeof *from->u.dry.breakers);
        if (copy && from->u.dry.n_breakers > 0) {
            memcpy(copy, from->u.dry.breakers, from->u.dry.n_breakers * sizeof *from->u.dry.breakers);
            qsort(copy, from->u.dry.n_breakers, sizeof *from->u.dry.breakers, compare_tokens);
        }
        to->u.dry.breakers = copy;
        break;
    case REALM_STAGE_KIND_BIAS:
        copy = realm_calloc(from->u.bias.n, sizeof *from->u.bias.at);
        if (copy && from->u.bias.n > 0) memcpy(copy, from->u.bias.at, from->u.bias.n * sizeof *from->u.bias.at);
        to->u.bias.at = copy;
        break;
    case REALM_STAGE_KIND_MASK:
        copy = realm_calloc((n_vocab + 31) / 32, sizeof(uint32_t));
        if (copy) memcpy(copy, from->u.mask.bits, from->u.mask.n_bytes);
        to->u.mask.bits = copy;
        break;
    case REALM_STAGE_KIND_GRAMMAR: {
        realm_grammar_state *state = NULL;
        realm_status s = realm_grammar_state_fork(from->u.grammar, &state, err);
        to->u.grammar = state;
        return s;
    }
    default: return REALM_OK;
    }
    return copy ? REALM_OK : realm_error_set(err, REALM_E_NOMEM, "no memory for a sampler's stage");
}

static void release_stage(realm_stage *s) {
    switch (s->kind) {
    case REALM_STAGE_KIND_DRY: realm_free((void *)(uintptr_t)s->u.dry.breakers); break;
    case REALM_STAGE_KIND_BIAS: realm_free((void *)(uintptr_t)s->u.bias.at); break;
    case REALM_STAGE_KIND_MASK: realm_free((void *)(uintptr_t)s->u.mask.bits); break;
    case REALM_STAGE_KIND_GRAMMAR: realm_grammar_state_close((realm_grammar_state *)(uintptr_t)s->u.grammar); break;
    default: break;
    }
}

void realm_chain_close(realm_chain *c) {
    if (!c) return;
    for (uint32_t i = 0; i < c->n_stages; i++) release_stage(&c->stages[i]);
    realm_free(c->tokens);
    realm_free(c->match);
    realm_free(c->mu);
    realm_free(c);
}

/* A fresh chain of stages that have been checked. */
static realm_status build(const realm_stage *stages, size_t n, uint64_t seed, size_t n_vocab, realm_chain **out,
                          realm_error *err) {
    realm_chain *c = realm_calloc(1, sizeof *c);
    if (!c) return realm_error_set(err, REALM_E_NOMEM, "no memory for a sampler");
    c->n_vocab = n_vocab;
    c->seed = seed;
    for (size_t i = 0; i < n; i++) {
        realm_status s = copy_stage(&stages[i], &c->stages[i], n_vocab, err);
        if (s != REALM_OK) {
            realm_chain_close(c);
            return s;
        }
        c->n_stages++;
        c->keeps_tokens |= stages[i].kind == REALM_STAGE_KIND_PENALTIES || stages[i].kind == REALM_STAGE_KIND_DRY;
        c->draws |= stages[i].kind >= REALM_STAGE_KIND_TEMPERATURE;
        c->keeps_surprise |= stages[i].kind == REALM_STAGE_KIND_MIROSTAT;
    }
    *out = c;
    return REALM_OK;
}

realm_status realm_chain_open(const realm_stage *stages, size_t n, uint64_t seed, size_t n_vocab, realm_chain **out,
                              realm_error *err) {
    *out = NULL;
    if (n > REALM_STAGES_MAX)
        return realm_error_set(err, REALM_E_RANGE, "%zu stages, at most %u are taken", n, REALM_STAGES_MAX);
    for (size_t i = 0; i < n; i++) {
        realm_status s = check_stage(&stages[i], i, n, n_vocab, err);
        if (s != REALM_OK) return s;
    }
    return build(stages, n, seed, n_vocab, out, err);
}

/* The stage of a kind with a request's fields; false where they are neutral. */
static bool stage_of(const realm_sampling *s, realm_stage_kind kind, realm_stage *to) {
    *to = (realm_stage){.kind = kind};
    switch (kind) {
    case REALM_STAGE_KIND_BIAS:
        to->u.bias.at = s->bias;
        to->u.bias.n = s->n_bias;
        return s->n_bias > 0;
    case REALM_STAGE_KIND_PENALTIES:
        to->u.penalties.last_n = s->penalty_last_n;
        to->u.penalties.repeat = s->repeat_penalty;
        to->u.penalties.frequency = s->frequency_penalty;
        to->u.penalties.presence = s->presence_penalty;
        return s->repeat_penalty != 1.0f || s->frequency_penalty != 0.0f || s->presence_penalty != 0.0f;
    case REALM_STAGE_KIND_DRY:
        to->u.dry.last_n = s->dry_last_n;
        to->u.dry.allowed = s->dry_allowed;
        to->u.dry.multiplier = s->dry_multiplier;
        to->u.dry.base = s->dry_base;
        to->u.dry.breakers = s->dry_breakers;
        to->u.dry.n_breakers = s->n_dry_breakers;
        return s->dry_multiplier > 0.0f;
    case REALM_STAGE_KIND_TEMPERATURE: to->u.temperature = s->temperature; return true;
    case REALM_STAGE_KIND_TOP_K: to->u.top_k = s->top_k; return s->top_k > 0;
    case REALM_STAGE_KIND_TOP_P: to->u.top_p = s->top_p; return s->top_p < 1.0f;
    case REALM_STAGE_KIND_MIN_P: to->u.min_p = s->min_p; return s->min_p > 0.0f;
    case REALM_STAGE_KIND_TYPICAL: to->u.typical = s->typical_p; return s->typical_p < 1.0f;
    case REALM_STAGE_KIND_XTC:
        to->u.xtc.probability = s->xtc_probability;
        to->u.xtc.threshold = s->xtc_threshold;
        return s->xtc_probability > 0.0f;
    case REALM_STAGE_KIND_MIROSTAT:
        to->u.mirostat.tau = s->mirostat_tau;
        to->u.mirostat.eta = s->mirostat_eta;
        return s->mirostat_tau > 0.0f;
    default: return false;
    }
}

static const realm_stage_kind usual_order[] = {
    REALM_STAGE_KIND_PENALTIES, REALM_STAGE_KIND_DRY,   REALM_STAGE_KIND_TEMPERATURE, REALM_STAGE_KIND_TOP_K,
    REALM_STAGE_KIND_TYPICAL,   REALM_STAGE_KIND_TOP_P, REALM_STAGE_KIND_MIN_P,       REALM_STAGE_KIND_XTC};

realm_status realm_chain_from_sampling(const realm_sampling *s, size_t n_vocab, realm_chain **out, realm_error *err) {
    realm_stage stages[REALM_SAMPLING_ORDER_MAX + 3];
    const realm_stage_kind *order = s->n_order > 0 ? s->order : usual_order;
    const size_t n_order = s->n_order > 0 ? s->n_order : REALM_ARRAY_LEN(usual_order);
    const bool mirostat = s->mirostat_tau > 0.0f;
    bool draws = mirostat; /* some stage says that a token is drawn */
    size_t n = 0;
    *out = NULL;
    n += stage_of(s, REALM_STAGE_KIND_BIAS, &stages[n]);
    for (size_t i = 0; i < n_order; i++) {
        if (mirostat && order[i] > REALM_STAGE_KIND_TEMPERATURE) continue;
        draws |= order[i] >= REALM_STAGE_KIND_TEMPERATURE && stage_of(s, order[i], &stages[n]);
        n += stage_of(s, order[i], &stages[n]);
    }
    if (!draws) stages[n++] = (realm_stage){.kind = REALM_STAGE_KIND_TEMPERATURE, .u.temperature = 1.0f};
    n += mirostat && stage_of(s, REALM_STAGE_KIND_MIROSTAT, &stages[n]);
    return build(stages, n, s->seed, n_vocab, out, err);
}

realm_status realm_chain_add_grammar(realm_chain *c, const realm_grammar_state *g, realm_error *err) {
    if (c->n_stages == REALM_STAGES_MAX)
        return realm_error_set(err, REALM_E_LIMIT,
                               "the sampler has %u stages already, which leaves no place for a "
                               "grammar",
                               c->n_stages);
    realm_stage from = {.kind = REALM_STAGE_KIND_GRAMMAR}, own;
    from.u.grammar = g;
    realm_status s = check_stage(&from, 0, c->n_stages + 1, c->n_vocab, err);
    if (s == REALM_OK) s = copy_stage(&from, &own, c->n_vocab, err);
    if (s != REALM_OK) return s;
    memmove(&c->stages[1], &c->stages[0], c->n_stages * sizeof *c->stages);
    c->stages[0] = own;
    c->n_stages++;
    return REALM_OK;
}

float realm_chain_mu(const realm_chain *c) {
    if (c->mu) return c->mu[c->n_drawn];
    return 2 * c->stages[c->n_stages - 1].u.mirostat.tau; /* as the paper starts */
}

/* ---- history ---------------------------------------------------------------------------------------------------- */

static realm_status grow_tokens(realm_chain *c, size_t n) {
    if (!c->keeps_tokens || n <= c->cap_tokens) return REALM_OK;
    if (n > UINT32_MAX / 2) return REALM_E_LIMIT;
    realm_token *tokens = realm_realloc_array(c->tokens, n, sizeof *tokens);
    if (tokens) c->tokens = tokens;
    uint32_t *match = tokens ? realm_realloc_array(c->match, n, sizeof *match) : NULL;
    if (!match) return REALM_E_NOMEM;
    c->match = match;
    c->cap_tokens = (uint32_t)n;
    return REALM_OK;
}

static realm_status grow_mu(realm_chain *c, size_t n) {
    if (!c->keeps_surprise || n <= c->cap_mu) return REALM_OK;
    if (n > UINT32_MAX / 2) return REALM_E_LIMIT;
    float *mu = realm_realloc_array(c->mu, n, sizeof *mu);
    if (!mu) return REALM_E_NOMEM;
    if (!c->mu) mu[0] = realm_chain_mu(c);
    c->mu = mu;
    c->cap_mu = (uint32_t)n;
    return REALM_OK;
}

realm_status realm_chain_reserve(realm_chain *c, size_t n, realm_error *err) {
    realm_status s = grow_tokens(c, c->n_tokens + n);
    if (s == REALM_OK) s = grow_mu(c, c->n_drawn + n + 1); /* that of the next draw too */
    return s == REALM_OK ? s : realm_error_set(err, s, "no memory for a sampler's history of %zu more tokens", n);
}

/* Room for n more, twice what there was when it has to grow. */
static realm_status make_room(realm_chain *c, size_t n, realm_error *err) {
    size_t more = n;
    if (c->keeps_tokens && c->n_tokens + n > c->cap_tokens) more = REALM_MAX(n, (size_t)c->cap_tokens + 64);
    if (c->keeps_surprise && c->n_drawn + n + 1 > c->cap_mu) more = REALM_MAX(more, (size_t)c->cap_mu + 64);
    return realm_chain_reserve(c, more, err);
}

/* Room is there. */
static void note(realm_chain *c, realm_token id, bool prompt) {
    if (c->keeps_tokens) c->tokens[c->n_tokens++] = prompt ? ~id : id;
    if (prompt) {
        c->n_tail = 0;
        return;
    }
    c->n_drawn++;
    c->n_tail++;
}

static realm_grammar_state *grammar_of(realm_stage *s) {
    return s->kind == REALM_STAGE_KIND_GRAMMAR ? (realm_grammar_state *)(uintptr_t)s->u.grammar : NULL;
}

const realm_grammar_state *realm_chain_grammar(const realm_chain *c) {
    for (size_t i = 0; i < c->n_stages; i++)
        if (c->stages[i].kind == REALM_STAGE_KIND_GRAMMAR) return c->stages[i].u.grammar;
    return NULL;
}

bool realm_chain_has_grammar(const realm_chain *c) { return realm_chain_grammar(c); }

/* Takes back what grammars before stage `end` accepted. */
static void undo(realm_chain *c, uint32_t end, size_t n) {
    for (uint32_t i = 0; i < end; i++) {
        realm_grammar_state *g = grammar_of(&c->stages[i]);
        /* Should this fail, the state stays failed and so does every draw. */
        if (g && realm_grammar_state_rollback(g, n, NULL) != REALM_OK) continue;
    }
}

/* Moves all grammars on by all tokens, or none. */
static realm_status accept_grammars(realm_chain *c, const realm_token *tokens, size_t n, realm_error *err) {
    bool must_end = false;
    for (uint32_t i = 0; i < c->n_stages; i++) {
        realm_grammar_state *g = grammar_of(&c->stages[i]);
        if (!g) continue;
        size_t accepted = 0;
        realm_status s = realm_grammar_state_accept(g, tokens, n, &accepted, err);
        if (s == REALM_OK && accepted < n) {
            if (accepted > 0) s = realm_grammar_state_rollback(g, accepted, err);
            if (s == REALM_OK)
                s = realm_error_set(err, REALM_E_INVALID, "the grammar does not allow token %d here", tokens[accepted]);
        }
        if (s != REALM_OK) {
            undo(c, i, n);
            return s;
        }
        must_end |= realm_grammar_state_must_end(g);
    }
    c->must_end = must_end;
    return REALM_OK;
}

realm_status realm_chain_accept(realm_chain *c, const realm_token *tokens, size_t n, bool prompt, realm_error *err) {
    for (size_t i = 0; i < n; i++)
        if (tokens[i] < 0 || (size_t)tokens[i] >= c->n_vocab)
            return realm_error_set(err, REALM_E_RANGE, "token %zu is %d, the vocabulary has %zu", i, tokens[i],
                                   c->n_vocab);
    realm_status s = make_room(c, n, err);
    if (s == REALM_OK && !prompt && n > 0) s = accept_grammars(c, tokens, n, err);
    if (s != REALM_OK) return s;
    for (size_t i = 0; i < n; i++) {
        if (!prompt && c->keeps_surprise) c->mu[c->n_drawn + 1] = c->mu[c->n_drawn];
        note(c, tokens[i], prompt);
    }
    return REALM_OK;
}

realm_status realm_chain_drawn(realm_chain *c, realm_token id, realm_error *err) {
    realm_status s = make_room(c, 1, err);
    if (s == REALM_OK) s = accept_grammars(c, &id, 1, err);
    if (s != REALM_OK) return s;
    if (c->keeps_surprise) c->mu[c->n_drawn + 1] = c->next_mu; /* as mirostat, the last stage, left it */
    note(c, id, false);
    return REALM_OK;
}

realm_status realm_chain_rewind(realm_chain *c, size_t n, realm_error *err) {
    if (n > c->n_tail)
        return realm_error_set(err, REALM_E_RANGE, "%zu tokens are to be taken back, %u were generated", n, c->n_tail);
    if (n == 0) return REALM_OK;
    bool must_end = false;
    for (uint32_t i = 0; i < c->n_stages; i++) {
        realm_grammar_state *g = grammar_of(&c->stages[i]);
        if (!g) continue;
        realm_status s = realm_grammar_state_rollback(g, n, err);
        if (s != REALM_OK) return s;
        must_end |= realm_grammar_state_must_end(g);
    }
    c->must_end = must_end;
    c->n_drawn -= n;
    c->n_tail -= (uint32_t)n;
    if (c->keeps_tokens) c->n_tokens -= (uint32_t)n;
    return REALM_OK;
}

bool realm_chain_must_end(const realm_chain *c) { return c->must_end; }

realm_status realm_chain_fork(const realm_chain *from, realm_chain **out, realm_error *err) {
    *out = NULL;
    realm_chain *c;
    realm_status s = build(from->stages, from->n_stages, from->seed, from->n_vocab, &c, err);
    if (s != REALM_OK) return s;
    if ((s = realm_chain_reserve(c, (size_t)from->n_tokens + from->n_drawn, err)) != REALM_OK) goto fail;
    if (from->keeps_tokens && from->n_tokens > 0) memcpy(c->tokens, from->tokens, from->n_tokens * sizeof *c->tokens);
    if (from->keeps_surprise && from->mu) memcpy(c->mu, from->mu, (size_t)(from->n_drawn + 1) * sizeof *c->mu);
    c->n_tokens = from->n_tokens;
    c->n_drawn = from->n_drawn;
    c->n_tail = from->n_tail;
    c->must_end = from->must_end;
    *out = c;
    return REALM_OK;
fail:
    realm_chain_close(c);
    return s;
}
