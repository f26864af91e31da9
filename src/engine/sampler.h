/* engine/sampler.h - how a token is drawn from logits: a chain of stages with its history. Part of engine.h.
 *
 * A chain is described once and holds what its stages remember: the tokens seen (penalties, DRY), mirostat's running
 * surprise, a place in a grammar, the number of the next draw. The same stages, history and seed draw the same token,
 * whatever else runs: draw i takes number i of a counter-based generator keyed by the seed. A generation takes a copy,
 * so a chain can start many. One thread at a time for each chain.
 */
#ifndef REALM_ENGINE_SAMPLER_H
#define REALM_ENGINE_SAMPLER_H

#include "base/base.h"
#include "grammar/grammar.h"
#include "tokenizer/tokenizer.h"

#define REALM_STAGES_MAX 16u /* of one chain */
#define REALM_LOGIT_BIAS_MAX 4096u

typedef struct realm_logit_bias {
    realm_token id;
    float bias; /* -100 .. 100 */
} realm_logit_bias;

typedef enum realm_stage_kind { /* the numbers of REALM_STAGE_* in realm/abi.h */
                                REALM_STAGE_KIND_PENALTIES = 1,
                                REALM_STAGE_KIND_DRY,
                                REALM_STAGE_KIND_BIAS,
                                REALM_STAGE_KIND_MASK,
                                REALM_STAGE_KIND_GRAMMAR,
                                REALM_STAGE_KIND_TEMPERATURE,
                                REALM_STAGE_KIND_TOP_K,
                                REALM_STAGE_KIND_TOP_P,
                                REALM_STAGE_KIND_MIN_P,
                                REALM_STAGE_KIND_TYPICAL,
                                REALM_STAGE_KIND_XTC,
                                REALM_STAGE_KIND_MIROSTAT
} realm_stage_kind;

typedef struct realm_stage {
    realm_stage_kind kind;
    union {
        /* Repeat divides positive and multiplies negative logits of tokens in the window (prompt and generated);
         * frequency and presence subtract per and for generated tokens. */
        struct {
            uint32_t last_n; /* 0: all */
            float repeat, frequency, presence;
        } penalties;
        /* "Don't repeat yourself": a token that would extend a repetition of n >= allowed tokens loses
         * multiplier * base^(n - allowed). */
        struct {
            uint32_t last_n, allowed;
            float multiplier, base;
            const realm_token *breakers; /* repetitions do not reach across these; copied */
            size_t n_breakers;
        } dry;
        struct {
            const realm_logit_bias *at; /* copied */
            size_t n;
        } bias;
        struct {
            const uint8_t *bits; /* bit t % 8 of byte t / 8; copied; at least one token must be left */
            size_t n_bytes;
        } mask;
        const realm_grammar_state *grammar; /* copied */
        float temperature;                  /* 0: greedy, the chain ends there */
        uint32_t top_k;                     /* 0: all */
        float top_p, min_p, typical;
        struct {
            float probability, threshold;
        } xtc;
        struct {
            float tau, eta; /* version 2; draws, so it is the last stage */
        } mirostat;
    } u;
} realm_stage;

typedef struct realm_chain realm_chain;

/* REALM_E_RANGE names the stage and field. A chain draws where a stage deals in probabilities (temperature and those
 * listed behind it), by 1 where no temperature is given; else it takes the best of what the other stages left: without
 * stages it is greedy. */
REALM_WARN_UNUSED realm_status realm_chain_open(const realm_stage *stages, size_t n, uint64_t seed, size_t n_vocab,
                                                realm_chain **out, realm_error *err);
REALM_WARN_UNUSED realm_status realm_chain_fork(const realm_chain *c, realm_chain **out, realm_error *err);
void realm_chain_close(realm_chain *c); /* NULL-safe */
/* Whether a draw asks a grammar, which takes longer than the rest, and how long is the grammar's to say. */
bool realm_chain_has_grammar(const realm_chain *c);
/* Tokens that were not drawn with it: prompt ones (which the grammar does not see) or generated ones. REALM_E_INVALID
 * when the grammar does not allow a generated one. */
REALM_WARN_UNUSED realm_status realm_chain_accept(realm_chain *c, const realm_token *tokens, size_t n, bool prompt,
                                                  realm_error *err);

#endif
