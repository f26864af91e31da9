/* Places among those that compile grammars: no owner has more than half, none waits behind another's queue, a queue
 * has an end. */
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "grammar/turns.h"

#define PATIENCE_NS (60 * REALM_NS_PER_S)

typedef struct taker {
    pthread_t thread;
    grammar_turns *turns;
    uint64_t owner;
    atomic_bool in;
    realm_status status;
} taker;

static void *take(void *user) {
    taker *t = user;
    t->status = grammar_turns_take(t->turns, t->owner, realm_clock_ns() + PATIENCE_NS, NULL);
    atomic_store(&t->in, true);
    return NULL;
}

static uint32_t waiting(grammar_turns *t) {
    realm_mutex_lock(&t->mu);
    const uint32_t n = t->turns.n_waiting;
    realm_mutex_unlock(&t->mu);
    return n;
}

/* Returns when it waits behind those that came before it. */
static void start(taker *t, grammar_turns *turns, uint64_t owner) {
    const uint32_t before = waiting(turns);
    *t = (taker){.turns = turns, .owner = owner};
    assert_int_equal(pthread_create(&t->thread, NULL, take, t), 0);
    while (waiting(turns) == before) sched_yield();
}

static void join(taker *t) {
    (void)pthread_join(t->thread, NULL);
    assert_int_equal(t->status, REALM_OK);
}

static void now(grammar_turns *t, uint64_t owner, realm_status expected) {
    assert_int_equal(grammar_turns_take(t, owner, realm_clock_ns(), NULL), expected);
}

static void half_for_each(void **state) {
    (void)state;
    grammar_turns t;
    realm_error err = {0};
    grammar_turns_init(&t);
    now(&t, 1, REALM_OK);
    now(&t, 1, REALM_OK);
    assert_int_equal(grammar_turns_take(&t, 1, realm_clock_ns(), &err), REALM_E_BUSY);
    assert_string_equal(err.text, "too many grammars are being compiled");
    now(&t, 2, REALM_OK);
    now(&t, 2, REALM_OK);
    now(&t, 3, REALM_E_BUSY);
    grammar_turns_give(&t, 1);
    now(&t, 3, REALM_OK);
    grammar_turns_give(&t, 1);
    now(&t, 2, REALM_E_BUSY);
    now(&t, 1, REALM_OK);
    grammar_turns_give(&t, 3);
    grammar_turns_give(&t, 2);
    grammar_turns_give(&t, 2);
    grammar_turns_give(&t, 1);
    grammar_turns_wait_idle(&t);
    grammar_turns_release(&t);
}

/* Of owner 1 eight wait; who comes last, of owner 4, has the first place that comes free. */
static void turns_and_the_end_of_a_queue(void **state) {
    (void)state;
    grammar_turns t;
    realm_error err = {0};
    taker flood[GRAMMAR_WAITING_OF_OWNER], late;
    grammar_turns_init(&t);
    for (uint64_t i = 0; i < GRAMMAR_PLACES; i++) now(&t, 1 + i % 2, REALM_OK);
    for (size_t i = 0; i < REALM_ARRAY_LEN(flood); i++) start(&flood[i], &t, 1);
    assert_int_equal(grammar_turns_take(&t, 1, realm_clock_ns() + PATIENCE_NS, &err), REALM_E_BUSY);
    assert_non_null(strstr(err.text, "8 grammars of this client wait"));
    start(&late, &t, 4);
    grammar_turns_give(&t, 1);
    join(&late);
    for (size_t i = 0; i < REALM_ARRAY_LEN(flood); i++) assert_false(atomic_load(&flood[i].in));
    grammar_turns_give(&t, 4);
    join(&flood[0]);
    for (size_t i = 1; i < REALM_ARRAY_LEN(flood); i++) {
        grammar_turns_give(&t, 1);
        join(&flood[i]); /* in the order they came */
    }
    grammar_turns_give(&t, 1);
    grammar_turns_give(&t, 1);
    grammar_turns_give(&t, 2);
    grammar_turns_give(&t, 2);
    grammar_turns_wait_idle(&t);
    grammar_turns_release(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(half_for_each),
        cmocka_unit_test(turns_and_the_end_of_a_queue),
    };
    return cmocka_run_group_tests_name("turns", tests, NULL, NULL);
}
