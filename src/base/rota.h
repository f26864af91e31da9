/* base/rota.h - whose turn it is, where many owners want a few places.
 *
 *      first -> [A1] -> [B1] -> [C1]      the next of each owner, in the order of their turns
 *                |       |
 *               [A2]    [B2]              behind it the owner's others, in the order they came
 *
 *      push --> waits --take--> has a place --done-->
 *                 +----remove-->
 *
 * A free place goes to the owner who has fewest of them, and of several to the one whose turn is first; the owner's
 * next goes to the end of the turns. No owner has more than `most` places. So whatever one owner sends, and however
 * long it keeps its places, another's first is placed before any second, and waits for one of each who came before.
 *
 * What waits is linked through its item: nothing is allocated. Nothing blocks either, and there is no lock: the
 * caller's is held throughout. When too many wait is the caller's to say.
 */
#ifndef REALM_BASE_ROTA_H
#define REALM_BASE_ROTA_H

#include "base/base.h"

#define REALM_ROTA_PLACES_MAX 16u

typedef struct realm_rota_item realm_rota_item;
struct realm_rota_item { /* in what waits, and not to be moved while it does */
    uint64_t owner;
    realm_rota_item *behind;      /* this owner's next */
    realm_rota_item *next, *last; /* of an owner's first alone: the first of the next owner; this owner's last */
    uint32_t n;                   /* likewise: how many of this owner wait, with it */
};

typedef struct realm_rota {
    realm_rota_item *first, **end; /* end: where the next is put */
    uint32_t n_waiting, n_placed;
    uint32_t places, most;                  /* places in all, of one owner */
    uint64_t placed[REALM_ROTA_PLACES_MAX]; /* (n_placed) owners of those that have places */
} realm_rota;

/* 1 to REALM_ROTA_PLACES_MAX places, of which an owner has at most `most`, at least 1. It is not to be moved. */
void realm_rota_init(realm_rota *t, uint32_t places, uint32_t most);
uint32_t realm_rota_waiting(const realm_rota *t, uint64_t owner); /* how many of this owner's wait */
uint32_t realm_rota_placed(const realm_rota *t, uint64_t owner);  /* how many have places */
/* Waits from now on; linked until it is taken or removed. */
void realm_rota_push(realm_rota *t, realm_rota_item *x, uint64_t owner);
/* Gives a place to the one whose turn it is; NULL: none is free, or none waits that may have one. */
realm_rota_item *realm_rota_take(realm_rota *t);
/* Takes back one that waits; its owner keeps its turn. */
void realm_rota_remove(realm_rota *t, realm_rota_item *x);
/* A place of this owner is free again; what had it may be gone. */
void realm_rota_done(realm_rota *t, uint64_t owner);

#endif
