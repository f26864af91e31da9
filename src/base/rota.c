/* base/rota.c - owners in a ring, each with a list: see rota.h for the rule and the drawing. */
#include "base/rota.h"

void realm_rota_init(realm_rota *t, uint32_t places, uint32_t most) {
    *t = (realm_rota){.places = REALM_MIN(places, REALM_ROTA_PLACES_MAX), .most = REALM_MAX(most, 1u)};
    t->end = &t->first;
}

static realm_rota_item *first_of(const realm_rota *t, uint64_t owner) {
    realm_rota_item *x = t->first;
    while (x && x->owner != owner) x = x->next;
    return x;
}

uint32_t realm_rota_waiting(const realm_rota *t, uint64_t owner) {
    const realm_rota_item *x = first_of(t, owner);
    return x ? x->n : 0;
}

uint32_t realm_rota_placed(const realm_rota *t, uint64_t owner) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < t->n_placed; i++) n += t->placed[i] == owner;
    return n;
}

/* The first of an owner becomes the last to have a turn. */
static void append(realm_rota *t, realm_rota_item *x) {
    x->next = NULL;
    *t->end = x;
    t->end = &x->next;
}

static void unlink_first(realm_rota *t, realm_rota_item **link) {
    realm_rota_item *x = *link;
    *link = x->next;
    if (t->end == &x->next) t->end = link;
}

/* The one behind an owner's first takes over what that knows of the others; NULL when there is none. */
static realm_rota_item *follower(const realm_rota_item *x) {
    if (!x->behind) return NULL;
    x->behind->last = x->last;
    x->behind->n = x->n - 1;
    return x->behind;
}

void realm_rota_push(realm_rota *t, realm_rota_item *x, uint64_t owner) {
    realm_rota_item *first = first_of(t, owner);
    *x = (realm_rota_item){.owner = owner, .last = x, .n = 1};
    t->n_waiting++;
    if (!first) {
        append(t, x);
        return;
    }
    first->last->behind = x;
    first->last = x;
    first->n++;
}

realm_rota_item *realm_rota_take(realm_rota *t) {
    realm_rota_item **best = NULL;
    uint32_t fewest = t->most;
    if (t->n_placed == t->places) return NULL;
    /* No longer than there are places: whoever has none is the one. */
    for (realm_rota_item **link = &t->first; *link && fewest > 0; link = &(*link)->next) {
        const uint32_t n = realm_rota_placed(t, (*link)->owner);
        if (n >= fewest) continue;
        best = link;
        fewest = n;
    }
    if (!best) return NULL;
    realm_rota_item *x = *best, *next = follower(x);
    unlink_first(t, best);
    if (next) append(t, next);
    t->n_waiting--;
    t->placed[t->n_placed++] = x->owner;
    return x;
}

void realm_rota_remove(realm_rota *t, realm_rota_item *x) {
    realm_rota_item **link = &t->first;
    while ((*link)->owner != x->owner) link = &(*link)->next;
    realm_rota_item *first = *link, *before = first;
    t->n_waiting--;
    if (first != x) {
        while (before->behind != x) before = before->behind;
        before->behind = x->behind;
        if (first->last == x) first->last = before;
        first->n--;
        return;
    }
    realm_rota_item *next = follower(x);
    if (!next) {
        unlink_first(t, link);
        return;
    }
    next->next = x->next;
    *link = next;
    if (t->end == &x->next) t->end = &next->next;
}

void realm_rota_done(realm_rota *t, uint64_t owner) {
    uint32_t i = 0;
    while (t->placed[i] != owner) i++;
    t->placed[i] = t->placed[--t->n_placed];
}
