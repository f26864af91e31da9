/* grammar/turns.h - who may compile now: a few places for which threads wait, shared between owners (base/rota.h).
 *
 *      take --> [waits] --a place--> compiles --> give
 *                  |
 *                  +-- REALM_E_BUSY: too many of this owner wait, or it waited too long
 *
 * One owner has at most half of the places, so a compilation that runs into its limit of time, and holds its place
 * beyond, is in nobody else's way. Any thread.
 */
#ifndef REALM_GRAMMAR_TURNS_H
#define REALM_GRAMMAR_TURNS_H

#include "base/rota.h"
#include "base/thread.h"

#define GRAMMAR_PLACES 4u
#define GRAMMAR_PLACES_OF_OWNER 2u
#define GRAMMAR_WAITING_OF_OWNER 8u

typedef struct grammar_turns {
    realm_mutex mu; /* leaf */
    realm_cond moved;
    realm_rota turns;
} grammar_turns;

void grammar_turns_init(grammar_turns *t);
void grammar_turns_release(grammar_turns *t); /* nobody waits or compiles */
/* Waits for a place until the monotonic deadline. REALM_E_BUSY says why there is none. */
REALM_WARN_UNUSED realm_status grammar_turns_take(grammar_turns *t, uint64_t owner, uint64_t deadline_ns,
                                                  realm_error *err);
/* Gives one of the owner's places back. The last access of the caller: who waits for all to be given back may release
 * the turns right after. */
void grammar_turns_give(grammar_turns *t, uint64_t owner);
/* Waits until no place is taken. */
void grammar_turns_wait_idle(grammar_turns *t);

#endif
