/* Calls wait for workers by tenant: whose turn it is, how many there may be, and that none is lost. */
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "api/fake_tenant.h"
#include "api/internal.h"

enum { N_TENANTS = 5, N_CALLS = 4000, N_WORKERS = 4 };

static realm_tenant *tenant(uintptr_t i) { return (realm_tenant *)(i << 8); } /* is compared, never looked at */

static api_call *call(uintptr_t of, const char *id) {
    api_call *c = calloc(1, sizeof *c);
    assert_non_null(c);
    c->tenant = tenant(of);
    strncpy(c->id, id, sizeof c->id - 1);
    return c;
}

static void push(call_queue *q, uintptr_t of, const char *id) {
    assert_int_equal(call_queue_push(q, call(of, id)), REALM_OK);
}

/* The next one's id; the worker is done with it at once. */
static void expect(call_queue *q, const char *id) {
    api_call *c = call_queue_pop_wait(q);
    assert_non_null(c);
    assert_string_equal(c->id, id);
    call_queue_done(q, c->tenant);
    free(c);
}

static void tenants_take_turns(void **state) {
    (void)state;
    call_queue q;
    call_queue_init(&q, 2, 100);
    push(&q, 1, "a1");
    push(&q, 1, "a2");
    push(&q, 1, "a3");
    push(&q, 1, "a4");
    push(&q, 2, "b1");
    push(&q, 0, "nobody's");
    push(&q, 2, "b2");
    expect(&q, "a1");
    expect(&q, "b1");
    push(&q, 3, "c1"); /* late, and yet only behind those whose turn came before */
    expect(&q, "nobody's");
    expect(&q, "a2");
    expect(&q, "b2");
    expect(&q, "c1");
    expect(&q, "a3");
    push(&q, 2, "b3");
    expect(&q, "a4");
    expect(&q, "b3");
    call_queue_shut(&q);
    assert_null(call_queue_pop_wait(&q));
    call_queue_release(&q);
}

static void a_tenant_has_half_of_the_workers(void **state) {
    (void)state;
    call_queue q;
    call_queue_init(&q, 4, 100);
    for (int i = 0; i < 3; i++) push(&q, 1, "a");
    api_call *one = call_queue_pop_wait(&q), *two = call_queue_pop_wait(&q);
    assert_true(one->tenant == tenant(1) && two->tenant == tenant(1));
    push(&q, 2, "b"); /* the third of the other one is before it and has to wait */
    expect(&q, "b");
    call_queue_done(&q, one->tenant);
    expect(&q, "a");
    call_queue_done(&q, two->tenant);
    free(one);
    free(two);
    call_queue_release(&q);
    call_queue_init(&q, 1, 100); /* half of one is one */
    push(&q, 1, "a");
    expect(&q, "a");
    call_queue_release(&q);
}

static void a_tenant_has_half_of_the_places(void **state) {
    (void)state;
    call_queue q;
    api_call *more;
    call_queue_init(&q, 2, 8);
    for (int i = 0; i < 4; i++) push(&q, 1, "a");
    more = call(1, "a");
    assert_int_equal(call_queue_push(&q, more), REALM_E_AGAIN);
    for (uintptr_t i = 2; i < 6; i++) push(&q, i, "other");
    free(more);
    more = call(9, "z");
    assert_int_equal(call_queue_push(&q, more), REALM_E_AGAIN); /* all are taken */
    expect(&q, "a");
    assert_int_equal(call_queue_push(&q, more), REALM_OK);
    call_queue_shut(&q);
    api_call *late = call(1, "late");
    assert_int_equal(call_queue_push(&q, late), REALM_E_CLOSED);
    free(late);
    api_call *c;
    int n = 0;
    while ((c = call_queue_pop_wait(&q))) { /* those that wait are still served */
        call_queue_done(&q, c->tenant);
        free(c);
        n++;
    }
    assert_int_equal(n, 8);
    call_queue_release(&q);
}

typedef struct shared {
    call_queue q;
    _Atomic int at_work[N_TENANTS + 1], served[N_TENANTS + 1], too_many;
} shared;

static void *serve(void *arg) {
    shared *s = arg;
    api_call *c;
    while ((c = call_queue_pop_wait(&s->q))) {
        const realm_tenant *t = c->tenant;
        uintptr_t i = (uintptr_t)t >> 8;
        if (atomic_fetch_add(&s->at_work[i], 1) >= N_WORKERS / 2) atomic_fetch_add(&s->too_many, 1);
        atomic_fetch_add(&s->served[i], 1);
        free(c);
        atomic_fetch_sub(&s->at_work[i], 1);
        call_queue_done(&s->q, t);
    }
    return NULL;
}

static void none_is_lost(void **state) {
    (void)state;
    static shared s;
    pthread_t workers[N_WORKERS];
    call_queue_init(&s.q, N_WORKERS, 64);
    for (int i = 0; i < N_WORKERS; i++)
        assert_int_equal(realm_thread_start(&workers[i], "worker", serve, &s, NULL), REALM_OK);
    for (int i = 0; i < N_CALLS; i++) {
        api_call *c = call(1 + (uintptr_t)i % N_TENANTS, "x");
        while (call_queue_push(&s.q, c) == REALM_E_AGAIN) sched_yield();
    }
    call_queue_shut(&s.q);
    for (int i = 0; i < N_WORKERS; i++) pthread_join(workers[i], NULL);
    for (int i = 1; i <= N_TENANTS; i++) assert_int_equal(atomic_load(&s.served[i]), N_CALLS / N_TENANTS);
    assert_int_equal(atomic_load(&s.too_many), 0);
    call_queue_release(&s.q);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tenants_take_turns),
        cmocka_unit_test(a_tenant_has_half_of_the_workers),
        cmocka_unit_test(a_tenant_has_half_of_the_places),
        cmocka_unit_test(none_is_lost),
    };
    return cmocka_run_group_tests_name("calls that wait", tests, NULL, NULL);
}
