/* grammar/grammar.h - which tokens may come next, for answers that must have a form.
 *
 *   vocab     a tokenizer's tokens as the matcher wants them; one per model, made once
 *   grammar   a compiled JSON Schema, regular expression or Lark grammar; immutable, shared, reference counted
 *   state     a place in it: forked, moved on by tokens, rolled back
 *
 * The matching is llguidance's; this folder is the only one that includes it. Everything that a client can send is
 * bounded: length of the text, depth and number of schema nodes, time to compile, work per mask. A grammar that cannot
 * be compiled or that runs into a limit later is an error: it never becomes unconstrained text. All functions may be
 * called from any thread; one state by one thread at a time. They recurse and allocate: not for a program's fiber.
 */
#ifndef REALM_GRAMMAR_GRAMMAR_H
#define REALM_GRAMMAR_GRAMMAR_H

#include "base/base.h"
#include "tokenizer/tokenizer.h"

#define REALM_GRAMMAR_BYTES_MAX (256u << 10) /* text of a grammar */
#define REALM_GRAMMAR_DEPTH_MAX 64u          /* nesting of a schema */

typedef struct realm_grammar_vocab realm_grammar_vocab;
typedef struct realm_grammar realm_grammar;
typedef struct realm_grammar_state realm_grammar_state;

typedef enum realm_grammar_kind {
    REALM_GRAMMAR_KIND_JSON_SCHEMA = 1,
    REALM_GRAMMAR_KIND_REGEX,
    REALM_GRAMMAR_KIND_LARK
} realm_grammar_kind;

/* `t` is borrowed and outlives it. */
REALM_WARN_UNUSED realm_status realm_grammar_vocab_open(realm_grammar_vocab **out, const realm_tokenizer *t,
                                                        realm_error *err);
void realm_grammar_vocab_close(realm_grammar_vocab *v); /* after its grammars; NULL-safe */

/* REALM_E_FORMAT or REALM_E_LIMIT with the place in the text or the path in the schema; REALM_E_TIMEOUT: 3 seconds of
 * processor time. `owner` is whose text it is, any number: a few texts are compiled at a time, those of one owner in at
 * most half of the places, and owners take turns. REALM_E_BUSY: this owner has too many waiting, no place was to be had
 * within 3 seconds, or the machine has given it less than 3 seconds of processor time in 15. */
REALM_WARN_UNUSED realm_status realm_grammar_compile(realm_grammar_vocab *v, uint64_t owner, realm_grammar_kind kind,
                                                     const char *text, size_t len, realm_grammar **out,
                                                     realm_error *err);
realm_grammar *realm_grammar_retain(realm_grammar *g); /* returns g */
void realm_grammar_release(realm_grammar *g);          /* NULL-safe */

/* A state at the start. It holds its grammar. While nothing else is done with a state several threads may fork it. */
REALM_WARN_UNUSED realm_status realm_grammar_state_open(realm_grammar *g, realm_grammar_state **out, realm_error *err);
REALM_WARN_UNUSED realm_status realm_grammar_state_fork(const realm_grammar_state *s, realm_grammar_state **out,
                                                        realm_error *err);
void realm_grammar_state_close(realm_grammar_state *s); /* NULL-safe */
size_t realm_grammar_state_vocab_size(const realm_grammar_state *s);
/* In all three REALM_E_GRAMMAR: a limit of its work, or nothing can follow; from then on the state gives no other
 * answer.
 *
 * Moves on by the longest allowed start of `tokens`; *n_accepted says by how many. An end token is allowed where the
 * text is complete. REALM_E_RANGE: a token that the vocabulary has not. */
REALM_WARN_UNUSED realm_status realm_grammar_state_accept(realm_grammar_state *s, const realm_token *tokens, size_t n,
                                                          size_t *n_accepted, realm_error *err);
REALM_WARN_UNUSED realm_status realm_grammar_state_rollback(realm_grammar_state *s, size_t n, realm_error *err);
/* Bit t % 32 of word t / 32: token t may come next (end tokens where the text is complete). `bits` has
 * (n_vocab + 31) / 32 words. */
REALM_WARN_UNUSED realm_status realm_grammar_state_mask(realm_grammar_state *s, uint32_t *bits, realm_error *err);
bool realm_grammar_state_can_end(const realm_grammar_state *s);
bool realm_grammar_state_must_end(const realm_grammar_state *s);

#endif
