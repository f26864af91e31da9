/* engine/sampling.h - what sampling.c, select.c and chain.c share with each other and with the engine. Internal.
 *
 *   chain.c      the chain itself: stages, checks, what it remembers
 *   sampling.c   one row through a chain
 *   select.c     the loops over rows and candidates that it is made of
 */
#ifndef REALM_ENGINE_SAMPLING_H
#define REALM_ENGINE_SAMPLING_H

#include "engine/engine.h"

/* ---- select.c: rows of logits and lists of candidates ------------------------------------------------------------ */

#define REALM_SELECT_LANES 16u

typedef struct realm_candidate {
    float x; /* logit, weight or score */
    realm_token id;
} realm_candidate;

/* The order of candidates: larger first, equals by lower id. Total, so the best k are one set. */
static inline bool realm_candidate_before(realm_candidate a, realm_candidate b) {
    return a.x > b.x || (a.x == b.x && a.id < b.id);
}

/* Largest of x(n) that is a number; -INFINITY without one. `near` (or NULL): where to begin to look for the first that
 * has it, at most a few thousand values before it. */
float realm_row_max(const float *x, size_t n, size_t *near);
/* First index of value v from `at` on, n without one. */
size_t realm_row_find(const float *x, size_t n, size_t at, float v);
/* w[i] = exp((x[i] - max) * inv_t), 0 for NaN and below e^-87; returns the sum. w may be NULL. */
double realm_row_exp(const float *x, size_t n, float max, float inv_t, float *w);
/* The same for one. x <= 0. */
float realm_exp_negative(float x);
/* The k best of x, in no order; returns how many (fewer only when fewer are above minus infinity). `c` has room for
 * max(2k, k + REALM_SELECT_LANES). */
size_t realm_gather_best(const float *x, size_t n, size_t k, realm_candidate *c);
/* All with x >= cut, in order of id, and their sum. */
size_t realm_gather_above(const float *x, size_t n, float cut, realm_candidate *c, double *sum);
/* All whose bit is set, in order of id; `bits` has (n + 31) / 32 words. */
size_t realm_gather_set(const float *x, size_t n, const uint32_t *bits, realm_candidate *c);
/* Writes minus infinity where the bit is clear. */
void realm_row_mask(float *x, size_t n, const uint32_t *bits);
size_t realm_bits_count(const uint32_t *bits, size_t n);
/* Moves the best k of n to the front, in no order. */
void realm_select_best(realm_candidate *c, size_t n, size_t k);
/* Moves the fewest best candidates whose weights sum to at least `mass` to the front; at least one. Returns how many.
 * A candidate's weight is weight[id], or its own x where `weight` is NULL. */
size_t realm_select_mass(realm_candidate *c, size_t n, const float *weight, double mass);

/* ---- chain.c ----------------------------------------------------------------------------------------------------- */

typedef struct realm_mask realm_mask; /* masks.c: computed beforehand */

struct realm_chain { /* one thread at a time */
    size_t n_vocab;
    uint64_t seed;
    uint32_t n_stages;
    realm_stage stages[REALM_STAGES_MAX]; /* pointers in them are owned; a mask is padded to whole words */
    uint64_t n_drawn;                     /* generated tokens, drawn or accepted: the number of the next draw */
    uint32_t n_tail;                      /* of them, those since the last prompt token */
    /* Tokens seen, a prompt token t as ~t; kept only where a stage looks back. */
    bool keeps_tokens, keeps_surprise;
    bool draws; /* some stage deals in probabilities; without one the chain is greedy */
    realm_token *tokens;
    uint32_t n_tokens, cap_tokens;
    uint32_t *match; /* (cap_tokens) DRY's workspace */
    float *mu;       /* mirostat's allowed surprise before each generated token; (cap_mu) */
    uint32_t cap_mu;
    float next_mu;     /* of the draw under way */
    bool must_end;     /* a grammar allows nothing more */
    realm_mask *ready; /* of the first grammar, for the draw under way; NULL: to be computed */
    uint64_t mask_ns;  /* what the longest mask took that draws have computed, since somebody looked */
};

/* The chain of a request's fixed fields. `s` has been checked. */
REALM_WARN_UNUSED realm_status realm_chain_from_sampling(const realm_sampling *s, size_t n_vocab, realm_chain **out,
                                                         realm_error *err);
/* Puts a grammar before all other stages; its state is copied. REALM_E_LIMIT when the chain is full. */
REALM_WARN_UNUSED realm_status realm_chain_add_grammar(realm_chain *c, const realm_grammar_state *g, realm_error *err);
/* Room for n more tokens, so that neither accept nor a draw allocates. */
REALM_WARN_UNUSED realm_status realm_chain_reserve(realm_chain *c, size_t n, realm_error *err);
/* Forgets the last n generated tokens. REALM_E_RANGE past those since the last prompt token. */
REALM_WARN_UNUSED realm_status realm_chain_rewind(realm_chain *c, size_t n, realm_error *err);
/* The first grammar's, NULL without one. */
const realm_grammar_state *realm_chain_grammar(const realm_chain *c);
/* A mask that is there, for the state that is in the stage; valid as long as it. */
REALM_WARN_UNUSED realm_status realm_mask_use(realm_mask *m, realm_stage *stage, const uint32_t **bits,
                                              realm_error *err);
/* Whether a grammar's text is complete and nothing more may come: the generation ends without an end token. */
bool realm_chain_must_end(const realm_chain *c);
/* Mirostat's allowed surprise for the next draw, in bits. */
float realm_chain_mu(const realm_chain *c);
/* After a draw. */
REALM_WARN_UNUSED realm_status realm_chain_drawn(realm_chain *c, realm_token id, realm_error *err);

/* ---- sampling.c -------------------------------------------------------------------------------------------------- */

typedef struct realm_sampler { /* one thread's workspace */
    size_t n_vocab;
    float *adjusted;       /* (n_vocab) logits after bias, penalties, masks */
    float *weight;         /* (n_vocab) unnormalised probabilities */
    uint32_t *count;       /* (n_vocab) occurrences in the look-back window; zero between calls */
    uint32_t *bits;        /* ((n_vocab + 31) / 32) a grammar's mask */
    realm_candidate *cand; /* (n_vocab) */
} realm_sampler;

typedef struct realm_sample_job {
    const float *logits; /* (n_vocab) */
    realm_chain *chain;  /* moves on by the token drawn; NULL: greedy */
    realm_token target;  /* >= 0: draw nothing, say this token's log-probability (prompt_logprobs) */
    bool logprob;
    uint32_t n_top;
    float *copy_to; /* forward pass: draw nothing, copy the row */
    bool lent;      /* the row itself was lent instead */
    bool look;      /* copied or lent: say the most likely token all the same; id is -1 without one */
    /* results */
    uint64_t took_ns;    /* its thread, by the clock */
    realm_status status; /* REALM_E_FORMAT: no finite logit to choose; else what a stage failed with */
    realm_error error;
    realm_token id;
    float id_logprob;
    realm_top_logprob top[REALM_TOP_LOGPROBS_MAX];
} realm_sample_job;

REALM_WARN_UNUSED realm_status realm_sampler_init(realm_sampler *s, size_t n_vocab, realm_error *err);
void realm_sampler_release(realm_sampler *s);
void realm_sampler_run(realm_sampler *s, realm_sample_job *job);
/* Uniform in [0, 1): number i of stream `stream` of this seed. Stream 0 draws tokens, stream k is for stage k - 1. */
double realm_random_uniform(uint64_t seed, uint64_t i, uint32_t stream);

#endif
