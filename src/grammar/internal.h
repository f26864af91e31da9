/* grammar/internal.h - what the folder's files share.
 *
 *   vocab.c     tokens as the matcher wants them; the watch over calls that take too long
 *   turns.c     whose text is compiled now
 *   compile.c   a text to a grammar, on a thread of its own, within limits; errors with their place
 *   place.c     looks at texts before the library does, and finds the part of a schema that it refuses
 *   state.c     a place in a grammar
 */
#ifndef REALM_GRAMMAR_INTERNAL_H
#define REALM_GRAMMAR_INTERNAL_H

#include <llguidance.h>
#include <stdatomic.h>
#include <time.h>

#include "base/thread.h"
#include "grammar/grammar.h"
#include "grammar/turns.h"

#define REALM_GRAMMAR_VALUES_MAX 20000u /* JSON values of a schema */
#define REALM_GRAMMAR_DEFS_MAX 2000u    /* definitions, brackets of each kind of a Lark grammar */
#define REALM_GRAMMAR_CALL_CPU_MS 50u   /* processor time of one call on a state */
#define REALM_GRAMMAR_CALLS_MAX 256u    /* watched at the same time */

/* ---- vocab.c ----------------------------------------------------------------------------------------------------- */

typedef struct grammar_call {            /* one on a state, under way */
    const LlgCancellationHandle *handle; /* NULL: the place is free */
    clockid_t cpu;                       /* of its thread */
    uint64_t until_ns;                   /* on that clock */
} grammar_call;

struct realm_grammar_vocab {
    const realm_tokenizer *t;
    LlgTokenizer *llg;
    size_t n_vocab;
    realm_token *ends; /* (n_ends) */
    size_t n_ends;
    grammar_turns turns; /* of what is compiled for it */
    /* mu */
    realm_mutex mu;  /* leaf */
    realm_cond work; /* for the watch */
    grammar_call calls[REALM_GRAMMAR_CALLS_MAX];
    uint32_t n_calls;
    bool called, watching, shut; /* since the watch last looked; it is looking; it is to end */
    pthread_t watch;
};

/* A call that the watch cancels once its thread has worked too long on it. Returns its place, or -1 when there are too
 * many already, which then wait for nobody and are not watched. */
int grammar_call_begin(realm_grammar_vocab *v, const LlgCancellationHandle *handle);
void grammar_call_end(realm_grammar_vocab *v, int place);

/* ---- compile.c --------------------------------------------------------------------------------------------------- */

struct realm_grammar {
    atomic_uint refs;
    realm_grammar_vocab *vocab;
    realm_mutex mu; /* leaf: one state, or the start, may be copied by several threads at once */
    LlgMatcher *start;
};

/* What the library says, as one line without its decoration. */
realm_status grammar_error(realm_error *err, realm_status otherwise, const char *text);
/* Builds a matcher; its error, if any, is the library's. */
LlgMatcher *grammar_build(const realm_grammar_vocab *v, realm_grammar_kind kind, const char *text);

/* ---- place.c ----------------------------------------------------------------------------------------------------- */

/* Depth and number of JSON values, Lark definitions and brackets. */
REALM_WARN_UNUSED realm_status grammar_check_text(realm_grammar_kind kind, const char *text, size_t len,
                                                  realm_error *err);
/* Path ("#/properties/a") of the innermost part of a schema that `refused` is about: the one whose replacement by
 * `true` makes the library say something else. Tries until the deadline. `path` is "#" where nothing closer is found.
 */
void grammar_find_path(const realm_grammar_vocab *v, const char *text, size_t len, const char *refused,
                       uint64_t deadline_ns, char *path, size_t path_size);

#endif
