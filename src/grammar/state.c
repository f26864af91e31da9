/* grammar/state.c - a place in a grammar.
 *
 *      open, fork --> [ matcher | end token seen ] --accept--> ... --rollback--> ...
 *
 * The library follows the text; end tokens are kept here. One is allowed where the text is complete, and behind it
 * nothing is allowed any more. Each state has the library's caches for itself, so states of one grammar run in parallel
 * and one that reaches a limit takes no other along. A call that the library gave up (a limit, the watch) leaves the
 * state failed: every later call gives the same error, nothing becomes unconstrained.
 */
#include <string.h>

#include "base/alloc.h"
#include "grammar/internal.h"

struct realm_grammar_state {
    realm_grammar *g;
    LlgMatcher *m;
    LlgCancellationHandle *cancel;
    size_t n_tokens; /* without the end token */
    bool ended;
};

/* What the library gave up is the grammar's fault, limits too; that it broke is not. */
static realm_status failure(const realm_grammar_state *s, realm_error *err) {
    if (llg_matcher_is_cancelled(s->m))
        return realm_error_set(err, REALM_E_GRAMMAR, "the grammar needs more than %u ms for one token",
                               REALM_GRAMMAR_CALL_CPU_MS);
    const char *text = llg_matcher_get_error(s->m);
    realm_error why = {0};
    realm_status status = grammar_error(&why, REALM_E_GRAMMAR, text ? text : "the grammar failed");
    return realm_error_set(err, status == REALM_E_LIMIT ? REALM_E_GRAMMAR : status, "%s", why.text);
}

static bool is_end(const realm_grammar_vocab *v, realm_token id) {
    for (size_t i = 0; i < v->n_ends; i++)
        if (v->ends[i] == id) return true;
    return false;
}

/* Takes over the matcher, also on failure. */
static realm_status state_new(realm_grammar *g, LlgMatcher *m, realm_grammar_state **out, realm_error *err) {
    realm_grammar_state *s = m ? realm_calloc(1, sizeof *s) : NULL;
    if (!s) {
        if (m) llg_free_matcher(m);
        return realm_error_set(err, REALM_E_NOMEM, "no memory for a grammar's state");
    }
    s->g = realm_grammar_retain(g);
    s->m = m;
    s->cancel = llg_matcher_get_cancellation_handle(m);
    *out = s;
    return REALM_OK;
}

realm_status realm_grammar_state_open(realm_grammar *g, realm_grammar_state **out, realm_error *err) {
    *out = NULL;
    realm_mutex_lock(&g->mu);
    LlgMatcher *m = llg_clone_matcher(g->start);
    realm_mutex_unlock(&g->mu);
    return state_new(g, m, out, err);
}

realm_status realm_grammar_state_fork(const realm_grammar_state *from, realm_grammar_state **out, realm_error *err) {
    *out = NULL;
    realm_mutex_lock(&from->g->mu);
    LlgMatcher *m = llg_clone_matcher(from->m);
    realm_mutex_unlock(&from->g->mu);
    realm_status status = state_new(from->g, m, out, err);
    if (status != REALM_OK) return status;
    (*out)->n_tokens = from->n_tokens;
    (*out)->ended = from->ended;
    return REALM_OK;
}

void realm_grammar_state_close(realm_grammar_state *s) {
    if (!s) return;
    llg_free_cancellation_handle(s->cancel);
    llg_free_matcher(s->m);
    realm_grammar_release(s->g);
    realm_free(s);
}

size_t realm_grammar_state_vocab_size(const realm_grammar_state *s) { return s->g->vocab->n_vocab; }

/* Moves on by n tokens that are no end tokens; *n_accepted says by how many. */
static realm_status advance(realm_grammar_state *s, const realm_token *tokens, size_t n, size_t *n_accepted,
                            realm_error *err) {
    *n_accepted = 0;
    if (n == 0) return REALM_OK;
    if (llg_matcher_is_stopped(s->m)) return llg_matcher_is_error(s->m) ? failure(s, err) : REALM_OK;
    const uint32_t *ids = (const uint32_t *)(const void *)tokens; /* checked to be in the vocabulary */
    const int place = grammar_call_begin(s->g->vocab, s->cancel);
    int32_t valid = llg_matcher_validate_tokens(s->m, ids, n);
    if (valid > 0 && llg_matcher_consume_tokens(s->m, ids, (size_t)valid) != 0) valid = -1;
    grammar_call_end(s->g->vocab, place);
    if (valid < 0) return failure(s, err);
    *n_accepted = (size_t)valid;
    s->n_tokens += (size_t)valid;
    return REALM_OK;
}

realm_status realm_grammar_state_accept(realm_grammar_state *s, const realm_token *tokens, size_t n, size_t *n_accepted,
                                        realm_error *err) {
    const realm_grammar_vocab *v = s->g->vocab;
    *n_accepted = 0;
    for (size_t i = 0; i < n; i++)
        if (tokens[i] < 0 || (size_t)tokens[i] >= v->n_vocab)
            return realm_error_set(err, REALM_E_RANGE, "token %zu is %d, the vocabulary has %zu", i, tokens[i],
                                   v->n_vocab);
    if (s->ended) return REALM_OK;
    size_t text = 0;
    while (text < n && !is_end(v, tokens[text])) text++;
    realm_status status = advance(s, tokens, text, n_accepted, err);
    if (status != REALM_OK || *n_accepted < text || text == n) return status;
    if (!realm_grammar_state_can_end(s)) return llg_matcher_is_error(s->m) ? failure(s, err) : REALM_OK;
    s->ended = true;
    ++*n_accepted;
    return REALM_OK;
}

realm_status realm_grammar_state_rollback(realm_grammar_state *s, size_t n, realm_error *err) {
    const size_t seen = s->n_tokens + s->ended;
    if (n > seen)
        return realm_error_set(err, REALM_E_RANGE, "%zu tokens are to be rolled back, %zu were accepted", n, seen);
    if (n == 0) return REALM_OK;
    const size_t text = n - s->ended;
    if (text > 0 && llg_matcher_rollback(s->m, text) != 0) return failure(s, err);
    s->ended = false;
    s->n_tokens -= text;
    return REALM_OK;
}

realm_status realm_grammar_state_mask(realm_grammar_state *s, uint32_t *bits, realm_error *err) {
    const realm_grammar_vocab *v = s->g->vocab;
    const size_t n_words = (v->n_vocab + 31) / 32;
    memset(bits, 0, n_words * sizeof *bits);
    if (s->ended) return REALM_OK;
    bool complete = true;
    if (!llg_matcher_is_stopped(s->m)) {
        const int place = grammar_call_begin(s->g->vocab, s->cancel);
        int32_t r = llg_matcher_get_mask_byte_size(s->m) == n_words * sizeof *bits
                        ? llg_matcher_compute_mask_into(s->m, bits, n_words * sizeof *bits)
                        : -1;
        complete = r == 0 && llg_matcher_is_accepting(s->m);
        grammar_call_end(s->g->vocab, place);
        if (r != 0 || llg_matcher_is_error(s->m)) {
            memset(bits, 0, n_words * sizeof *bits);
            return failure(s, err);
        }
    } else if (llg_matcher_is_error(s->m)) {
        return failure(s, err);
    }
    for (size_t i = 0; i < v->n_ends; i++) {
        const uint32_t bit = UINT32_C(1) << v->ends[i] % 32;
        if (complete)
            bits[v->ends[i] / 32] |= bit;
        else
            bits[v->ends[i] / 32] &= ~bit;
    }
    return REALM_OK;
}

bool realm_grammar_state_can_end(const realm_grammar_state *s) {
    if (s->ended) return true;
    return llg_matcher_is_accepting(s->m); /* false when failed */
}

bool realm_grammar_state_must_end(const realm_grammar_state *s) {
    return s->ended || (llg_matcher_is_stopped(s->m) && !llg_matcher_is_error(s->m));
}
