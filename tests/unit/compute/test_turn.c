/* Turns: one at a time, in the order of asking, and who ends one and asks again stands behind those who wait. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <sched.h>
#include <string.h>

#include "compute/compute.h"

#define THREADS 4u
#define TURNS 200u

static realm_backend *open_backend(void) {
    realm_backend *b;
    assert_int_equal(realm_backend_open_cpu(&b, &(realm_backend_config){.n_threads = 2}, NULL), REALM_OK);
    return b;
}

typedef struct line {
    realm_backend *b;
    char text[16]; /* written with the turn alone */
    size_t n;
    uint32_t inside, worst;
    uint64_t runs;
} line;

typedef struct customer {
    line *l;
    char name;
} customer;

static void *ask_once(void *arg) {
    customer *c = arg;
    realm_backend_turn_begin(c->l->b);
    c->l->text[c->l->n++] = c->name;
    realm_backend_turn_end(c->l->b);
    return NULL;
}

static void until_waiting(realm_backend *b, uint32_t n) {
    realm_turn_stats s;
    do {
        sched_yield();
        realm_backend_turn_get_stats(b, &s);
    } while (s.waiting < n);
}

static void in_order(void **state) {
    (void)state;
    line l = {.b = open_backend()};
    customer c[THREADS];
    pthread_t t[THREADS];
    realm_turn_stats s;
    realm_backend_turn_begin(l.b);
    for (uint32_t i = 0; i < THREADS; i++) {
        c[i] = (customer){&l, (char)('a' + i)};
        assert_int_equal(realm_thread_start(&t[i], "customer", ask_once, &c[i], NULL), REALM_OK);
        until_waiting(l.b, i + 1);
    }
    assert_int_equal(l.n, 0);
    realm_backend_turn_end(l.b);
    realm_backend_turn_begin(l.b); /* behind all of them */
    l.text[l.n++] = 'z';
    realm_backend_turn_end(l.b);
    for (uint32_t i = 0; i < THREADS; i++) pthread_join(t[i], NULL);
    assert_string_equal(l.text, "abcdz");
    realm_backend_turn_get_stats(l.b, &s);
    assert_int_equal(s.turns, THREADS + 2);
    assert_true(s.waits >= THREADS && s.waits <= THREADS + 1);
    assert_true(s.wait_ns > 0 && s.held_ns > 0);
    assert_int_equal(s.waiting, 0);
    realm_backend_close(l.b);
}

static void add(void *user, uint32_t i) { __atomic_fetch_add((uint64_t *)user, i, __ATOMIC_RELAXED); }

/* The team serves whichever thread has the turn. */
static void *ask_often(void *arg) {
    line *l = arg;
    for (uint32_t i = 0; i < TURNS; i++) {
        realm_backend_turn_begin(l->b);
        if (++l->inside > l->worst) l->worst = l->inside;
        uint64_t sum = 0;
        l->b->v->parallel(l->b, 10, add, &sum);
        l->runs += sum == 45;
        l->inside--;
        realm_backend_turn_end(l->b);
    }
    return NULL;
}

static void one_at_a_time(void **state) {
    (void)state;
    line l = {.b = open_backend()};
    pthread_t t[THREADS];
    realm_turn_stats s;
    for (uint32_t i = 0; i < THREADS; i++)
        assert_int_equal(realm_thread_start(&t[i], "customer", ask_often, &l, NULL), REALM_OK);
    for (uint32_t i = 0; i < THREADS; i++) pthread_join(t[i], NULL);
    assert_int_equal(l.worst, 1);
    assert_int_equal(l.runs, THREADS * TURNS);
    realm_backend_turn_get_stats(l.b, &s);
    assert_int_equal(s.turns, THREADS * TURNS);
    realm_backend_close(l.b);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(in_order), cmocka_unit_test(one_at_a_time)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
