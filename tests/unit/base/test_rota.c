/* Whose turn it is: the order among owners, places that one of them may have, removal anywhere, random use against the
 * rule written down plainly, and threads that share a few places. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/rota.h"
#include "base/thread.h"
#include "support/random.h"

typedef struct item {
    realm_rota_item turn; /* first */
    char name[8];
} item;

static item *push(realm_rota *t, item *x, uint64_t owner, const char *name) {
    snprintf(x->name, sizeof x->name, "%s", name);
    realm_rota_push(t, &x->turn, owner);
    return x;
}

static const char *take(realm_rota *t) {
    const item *x = (const item *)realm_rota_take(t);
    return x ? x->name : "nobody";
}

/* Takes and is done at once. */
static void expect(realm_rota *t, const char *name) {
    const item *x = (const item *)realm_rota_take(t);
    assert_non_null(x);
    assert_string_equal(x->name, name);
    realm_rota_done(t, x->turn.owner);
}

static void owners_take_turns(void **state) {
    (void)state;
    realm_rota t;
    item x[9];
    realm_rota_init(&t, 1, 1);
    assert_string_equal(take(&t), "nobody");
    push(&t, &x[0], 1, "a1");
    push(&t, &x[1], 1, "a2");
    push(&t, &x[2], 1, "a3");
    push(&t, &x[3], 1, "a4");
    push(&t, &x[4], 2, "b1");
    push(&t, &x[5], 0, "c1");
    push(&t, &x[6], 2, "b2");
    assert_int_equal(t.n_waiting, 7);
    assert_int_equal(realm_rota_waiting(&t, 1), 4);
    assert_int_equal(realm_rota_waiting(&t, 7), 0);
    expect(&t, "a1");
    expect(&t, "b1");
    push(&t, &x[7], 3, "d1"); /* late, and yet only behind those whose turn came before */
    expect(&t, "c1");
    expect(&t, "a2");
    expect(&t, "b2");
    expect(&t, "d1");
    expect(&t, "a3");
    push(&t, &x[8], 2, "b3");
    expect(&t, "a4");
    expect(&t, "b3");
    assert_int_equal(t.n_waiting + t.n_placed, 0);
    assert_string_equal(take(&t), "nobody");
}

static void who_has_least_comes_first(void **state) {
    (void)state;
    realm_rota t;
    item x[8];
    realm_rota_init(&t, 4, 2);
    push(&t, &x[0], 1, "a1");
    push(&t, &x[1], 1, "a2");
    push(&t, &x[2], 1, "a3");
    assert_string_equal(take(&t), "a1");
    assert_string_equal(take(&t), "a2");
    assert_string_equal(take(&t), "nobody"); /* of four places it has two */
    assert_int_equal(realm_rota_placed(&t, 1), 2);
    push(&t, &x[3], 2, "b1");
    push(&t, &x[4], 2, "b2");
    push(&t, &x[5], 3, "c1");
    assert_string_equal(take(&t), "b1");
    assert_string_equal(take(&t), "c1");
    assert_string_equal(take(&t), "nobody"); /* all are taken */
    realm_rota_done(&t, 1);
    push(&t, &x[6], 4, "d1"); /* has none; a3 and b2, whose turns came before, are second ones */
    assert_string_equal(take(&t), "d1");
    realm_rota_done(&t, 3);
    assert_string_equal(take(&t), "a3");
    realm_rota_done(&t, 4);
    assert_string_equal(take(&t), "b2");
    realm_rota_init(&t, 1, 0); /* half of one place is one */
    push(&t, &x[0], 1, "a1");
    assert_string_equal(take(&t), "a1");
}

static void some_are_taken_back(void **state) {
    (void)state;
    realm_rota t;
    item x[8];
    realm_rota_init(&t, 1, 1);
    push(&t, &x[0], 1, "a1");
    push(&t, &x[1], 1, "a2");
    push(&t, &x[2], 1, "a3");
    push(&t, &x[3], 2, "b1");
    push(&t, &x[4], 3, "c1");
    push(&t, &x[5], 3, "c2");
    realm_rota_remove(&t, &x[0].turn); /* the first: its owner's next has its turn */
    realm_rota_remove(&t, &x[2].turn); /* the last of an owner: the next one is behind a2 */
    realm_rota_remove(&t, &x[4].turn); /* the first whose owner is the last */
    realm_rota_remove(&t, &x[3].turn); /* the only one */
    assert_int_equal(t.n_waiting, 2);
    push(&t, &x[6], 1, "a4");
    push(&t, &x[7], 4, "d1");
    expect(&t, "a2");
    expect(&t, "c2");
    expect(&t, "d1");
    expect(&t, "a4");
    push(&t, &x[0], 1, "a5"); /* the only one there is, and the last */
    realm_rota_remove(&t, &x[0].turn);
    assert_string_equal(take(&t), "nobody");
    push(&t, &x[0], 1, "a6");
    expect(&t, "a6");
}

/* ---- against the rule, written down plainly ---- */

enum { OWNERS = 6, ITEMS = 40 };

typedef struct model { /* of owners in turn, and of each what it has waiting */
    int turn[OWNERS], n_turns, waiting[OWNERS][ITEMS], n[OWNERS], placed[OWNERS], n_placed;
} model;

static void drop_turn(model *m, int at) {
    memmove(&m->turn[at], &m->turn[at + 1], (size_t)(--m->n_turns - at) * sizeof m->turn[0]);
}

static void drop_item(model *m, int owner, int at) {
    memmove(&m->waiting[owner][at], &m->waiting[owner][at + 1], (size_t)(--m->n[owner] - at) * sizeof(int));
}

static int model_take(model *m, int places, int most) {
    int best = -1;
    if (m->n_placed == places) return -1;
    for (int i = 0; i < m->n_turns; i++)
        if (m->placed[m->turn[i]] < most && (best < 0 || m->placed[m->turn[i]] < m->placed[m->turn[best]])) best = i;
    if (best < 0) return -1;
    const int owner = m->turn[best], id = m->waiting[owner][0];
    drop_turn(m, best);
    drop_item(m, owner, 0);
    if (m->n[owner] > 0) m->turn[m->n_turns++] = owner;
    m->placed[owner]++;
    m->n_placed++;
    return id;
}

static void as_the_rule_says(void **state) {
    (void)state;
    for (int round = 0; round < 200; round++) {
        realm_rota t;
        realm_rota_item x[ITEMS];
        bool used[ITEMS] = {0}; /* waits */
        model m = {0};
        const int places = 1 + (int)random_below(6), most = 1 + (int)random_below((uint32_t)places);
        realm_rota_init(&t, (uint32_t)places, (uint32_t)most);
        for (int i = 0; i < 300; i++) {
            const int id = (int)random_below(ITEMS), owner = (int)random_below(OWNERS);
            switch (random_below(4)) {
            case 0:
            case 1: /* push, or take back */
                if (!used[id]) {
                    realm_rota_push(&t, &x[id], (uint64_t)owner);
                    if (m.n[owner]++ == 0) m.turn[m.n_turns++] = owner;
                    m.waiting[owner][m.n[owner] - 1] = id;
                    used[id] = true;
                } else if (random_below(3) == 0) {
                    const int of = (int)x[id].owner;
                    int at = 0, turn = 0;
                    realm_rota_remove(&t, &x[id]);
                    while (m.waiting[of][at] != id) at++;
                    drop_item(&m, of, at);
                    while (m.turn[turn] != of) turn++;
                    if (m.n[of] == 0) drop_turn(&m, turn);
                    used[id] = false;
                }
                break;
            case 2: {
                const int want = model_take(&m, places, most);
                realm_rota_item *got = realm_rota_take(&t);
                assert_int_equal(got ? (int)(got - x) : -1, want);
                if (got) used[want] = false;
                break;
            }
            default:
                if (m.placed[owner] == 0) break;
                realm_rota_done(&t, (uint64_t)owner);
                m.placed[owner]--;
                m.n_placed--;
            }
            uint32_t waiting = 0;
            for (int k = 0; k < OWNERS; k++) {
                assert_int_equal(realm_rota_waiting(&t, (uint64_t)k), m.n[k]);
                assert_int_equal(realm_rota_placed(&t, (uint64_t)k), m.placed[k]);
                waiting += (uint32_t)m.n[k];
            }
            assert_int_equal(t.n_waiting, waiting);
        }
    }
}

/* ---- threads ---- */

enum { N_THREADS = 12, N_EACH = 2000, PLACES = 4, MOST = 2 };

typedef struct shared {
    realm_mutex mu;
    realm_cond moved;
    realm_rota turns;
    int inside[N_THREADS / 3], all, too_many;
} shared;

typedef struct waiter {
    realm_rota_item turn; /* first */
    bool granted;
} waiter;

typedef struct visitor {
    pthread_t thread;
    shared *s;
    uint64_t owner;
} visitor;

static void grant(shared *s) {
    for (waiter *w; (w = (waiter *)realm_rota_take(&s->turns));) w->granted = true;
    realm_cond_broadcast(&s->moved);
}

static void *visit(void *arg) {
    const visitor *v = arg;
    shared *s = v->s;
    for (int i = 0; i < N_EACH; i++) {
        waiter w = {0};
        realm_mutex_lock(&s->mu);
        realm_rota_push(&s->turns, &w.turn, v->owner);
        grant(s);
        if (i % 7 == 0 && !w.granted) { /* loses patience */
            realm_rota_remove(&s->turns, &w.turn);
            realm_mutex_unlock(&s->mu);
            continue;
        }
        while (!w.granted) realm_cond_wait(&s->moved, &s->mu);
        s->too_many += ++s->inside[v->owner] > MOST || ++s->all > PLACES;
        realm_mutex_unlock(&s->mu);
        realm_mutex_lock(&s->mu);
        s->inside[v->owner]--;
        s->all--;
        realm_rota_done(&s->turns, v->owner);
        grant(s);
        realm_mutex_unlock(&s->mu);
    }
    return NULL;
}

static void threads_share_places(void **state) {
    (void)state;
    static shared s;
    static visitor v[N_THREADS];
    realm_mutex_init(&s.mu, REALM_RANK_LEAF);
    realm_cond_init(&s.moved);
    realm_rota_init(&s.turns, PLACES, MOST);
    for (int i = 0; i < N_THREADS; i++) {
        v[i] = (visitor){.s = &s, .owner = (uint64_t)i / 3};
        assert_int_equal(realm_thread_start(&v[i].thread, "visitor", visit, &v[i], NULL), REALM_OK);
    }
    for (int i = 0; i < N_THREADS; i++) pthread_join(v[i].thread, NULL);
    assert_int_equal(s.too_many, 0);
    assert_int_equal(s.turns.n_waiting + s.turns.n_placed, 0);
    assert_null(s.turns.first);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(owners_take_turns),    cmocka_unit_test(who_has_least_comes_first),
        cmocka_unit_test(some_are_taken_back),  cmocka_unit_test(as_the_rule_says),
        cmocka_unit_test(threads_share_places),
    };
    return cmocka_run_group_tests_name("rota", tests, NULL, NULL);
}
