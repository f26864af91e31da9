/* Programs that misbehave, one test each: what becomes of them, and what other tenants notice.
 *
 * While each of them is at work another tenant decodes through the pipe. What is checked of it does not depend on how
 * fast or busy this machine is today: it gets a token in every step (the engine never waits for anybody's program), and
 * its inter-token time beside the attack is compared with that beside as many threads that spin at the lowest priority
 * there is, medians of phases in turn, with room for noise and some more chances. */
#include <sched.h>

#include "tenant/client.h"

#define TOKENS 40u /* of the victim: fewer than an engine keeps for a slow reader */
#define DECODES 25u
#define PHASES 3u
#define SLOWER 2.5 /* than beside threads of the lowest priority */
#define CHANCES 5u

static realm_tenant *victim, *evil;

/* ---- the victim ---- */

typedef struct measure {
    double token_ns; /* from the request to its last token, per token */
    double steps;    /* of the engine, per token */
} measure;

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(double *v, size_t n) {
    qsort(v, n, sizeof *v, by_value);
    return v[n / 2];
}

static uint64_t steps_now(void) {
    realm_engine_stats st;
    realm_engine_get_stats(engine_of(rt, "tiny"), &st);
    return st.steps;
}

static measure decode(void) {
    client c;
    realm_event_batch b;
    uint64_t begun = realm_clock_ns(), last = 0, first_step = 0, last_step = 0, until = begun + PATIENCE_NS;
    realm_run_params p = text_request();
    p.generation.max_tokens = TOKENS;
    realm_event_batch_init(&b);
    begin(&c, victim, p);
    while (c.finish == REALM_FINISH_NONE) {
        realm_mutex_lock(&c.mu);
        while (!c.ready)
            if (!realm_cond_wait_until(&c.cond, &c.mu, until)) fail_msg("the victim does not go on");
        c.ready = false;
        realm_mutex_unlock(&c.mu);
        uint32_t had = c.n_tokens;
        while (realm_run_poll(c.run, &b) > 0) take(&c, &b);
        if (c.n_tokens == had) continue; /* the end, which waits for the ledger */
        last = realm_clock_ns();
        last_step = steps_now();
        if (!first_step) first_step = last_step;
    }
    expect_ok(&c);
    assert_int_equal(c.n_tokens, TOKENS);
    realm_event_batch_release(&b);
    end(&c);
    return (measure){(double)(last - begun) / TOKENS, (double)(last_step - first_step) / TOKENS};
}

/* ---- the attack ---- */

static void attack_begin(client *c, const char *what) { begin(c, evil, with_text(what)); }

static void leave(client *c) { /* as a client that hangs up */
    realm_run_cancel(c->run);
    follow(c, 0);
    end(c);
}

/* What the victim sees for a while: medians of decodes one after the other. A program's first milliseconds are as good
 * as anybody's (sandbox.h: then it goes on in the background), so the first decodes beside an attack are not the rule.
 */
static measure for_a_while(void) {
    double token_ns[DECODES], steps[DECODES];
    for (unsigned i = 0; i < DECODES; i++) {
        measure m = decode();
        token_ns[i] = m.token_ns;
        steps[i] = m.steps;
    }
    return (measure){median(token_ns, DECODES), median(steps, DECODES)};
}

/* What a program that spins may cost at most: a thread that does so where others hardly notice. */
typedef struct spinners {
    pthread_t threads[8];
    unsigned n;
    atomic_bool stop;
} spinners;

static void *spin(void *user) {
    spinners *s = user;
    struct sched_param none = {0};
    if (sched_setscheduler(0, SCHED_IDLE, &none)) (void)!nice(19);
    while (!atomic_load_explicit(&s->stop, memory_order_relaxed)) continue;
    return NULL;
}

static void spinners_begin(spinners *s, unsigned n) {
    *s = (spinners){.n = n};
    for (unsigned i = 0; i < n; i++)
        assert_int_equal(realm_thread_start(&s->threads[i], "spinner", spin, s, NULL), REALM_OK);
}

static void spinners_end(spinners *s) {
    atomic_store(&s->stop, true);
    for (unsigned i = 0; i < s->n; i++) pthread_join(s->threads[i], NULL);
}

/* Runs `n` attackers during every other phase. They are at work once they have said so ("!"). */
static void compare(const char *what, unsigned n, bool compute_too) {
    enum { N_MAX = 8 };
    static client c[N_MAX];
    double ratio = 0, steps = 0;
    for (unsigned chance = 0; chance < CHANCES; chance++) {
        double beside[PHASES], during[PHASES];
        spinners s;
        steps = 0;
        for (unsigned k = 0; k < PHASES; k++) {
            spinners_begin(&s, n);
            beside[k] = for_a_while().token_ns;
            spinners_end(&s);
            for (unsigned i = 0; i < n; i++) attack_begin(&c[i], what);
            for (unsigned i = 0; i < n; i++) follow(&c[i], 1);
            measure m = for_a_while();
            during[k] = m.token_ns;
            steps = REALM_MAX(steps, m.steps);
            for (unsigned i = 0; i < n; i++) {
                if (c[i].finish != REALM_FINISH_NONE) fail_msg("%s ended early: %d: %s", what, c[i].status, c[i].error);
                realm_run_cancel(c[i].run);
            }
            for (unsigned i = 0; i < n; i++) leave(&c[i]);
        }
        ratio = median(during, PHASES) / median(beside, PHASES);
        if (steps <= 1.5 && (compute_too || ratio <= SLOWER)) break;
    }
    if (steps > 1.5) fail_msg("%s: a token only every %.2f steps", what, steps);
    /* A flood of generations is computed too, in the same steps; its share is the scheduler's to bound. */

    if (!compute_too && ratio > SLOWER)
        fail_msg("%s: other tenants' tokens take %.1f times as long as beside spinning threads", what, ratio);
    nothing_is_left();
}

static void a_program_that_spins(void **state) {
    (void)state;
    compare("spin", 4, false);
}

static void a_program_that_never_polls(void **state) {
    (void)state;
    compare("never polls", 4, false);
}

static void a_program_that_floods_generations(void **state) {
    (void)state;
    compare("generations", 1, true);
}

/* ---- how they end ---- */

static void ends_as(const char *what, realm_status status, const char *says) {
    client c;
    attack_begin(&c, what);
    follow(&c, 0);
    assert_int_equal(c.status, status);
    if (says && !strstr(c.error, says)) fail_msg("%s: %s", what, c.error);
    end(&c);
    assert_true(decode().token_ns > 0); /* and the next one is served */
    nothing_is_left();
}

static void spinning_is_ended(void **state) {
    (void)state;
    set_limit("evil", "cpu_ms_per_wake", "50");
    ends_as("spin", REALM_E_LIMIT, "cpu_ms_per_wake (50 ms)");
    set_limit("evil", "cpu_ms_per_wake", "20000");
}

static void recursion_is_ended(void **state) {
    (void)state;
    ends_as("recurse", REALM_E_PROGRAM, "call stack exhausted");
}

static void a_trap_is_told(void **state) {
    (void)state;
    ends_as("trap", REALM_E_PROGRAM, "unreachable executed");
}

/* What says of a handle that it is closed does not say so of the server, which clients would ask again. */
static void a_closed_handle_is_the_programs_fault(void **state) {
    (void)state;
    ends_as("waits again", REALM_E_PROGRAM, "wait: the generation has ended");
}

static void a_million_log_lines(void **state) {
    (void)state;
    ends_as("logs", REALM_OK, NULL);
}

static void handles_have_a_limit(void **state) {
    (void)state;
    ends_as("handles", REALM_OK, NULL);
}

/* Memory grows to the limit and no further; the page count is what it said. */
static void memory_has_a_limit(void **state) {
    (void)state;
    client c;
    set_limit("evil", "memory_bytes", "1048576");
    attack_begin(&c, "grow");
    follow(&c, 0);
    expect_ok(&c);
    assert_true(c.len > 4 && c.len < 16); /* 16 pages, of which the program had some at its start */
    end(&c);
    set_limit("evil", "memory_bytes", "67108864");
    attack_begin(&c, "grow");
    follow(&c, 0);
    expect_ok(&c);
    assert_true(c.len > 1000 && c.len < 1024);
    end(&c);
    nothing_is_left();
}

/* It is ended after its time of grace, though it goes on asking; until then nobody waits for it. */
static void a_program_that_is_deaf_to_cancel(void **state) {
    (void)state;
    client c;
    attack_begin(&c, "deaf");
    follow(&c, 1);
    realm_run_cancel(c.run);
    measure m = decode();
    assert_true(m.steps <= 1.5);
    follow(&c, 0);
    assert_int_equal(c.finish, REALM_FINISH_CANCELLED);
    end(&c);
    nothing_is_left();
}

/* A start function that traps or never returns. */
static void programs_that_misbehave_at_their_start(void **state) {
    (void)state;
    client c;
    realm_tenant *t = tenant_with("traps", TEST_WASM "/test", "trap_start");
    begin(&c, t, text_request());
    follow(&c, 0);
    assert_int_equal(c.status, REALM_E_PROGRAM);
    assert_non_null(strstr(c.error, "unreachable executed"));
    end(&c);
    realm_tenant_release(t);
    t = tenant_with("turns", TEST_WASM "/test", "spin_start");
    begin(&c, t, text_request());
    measure m = decode();
    assert_true(m.steps <= 1.5);
    leave(&c);
    realm_tenant_release(t);
    nothing_is_left();
}

/* The number of a handle of another tenant's program that is running now. */
static void handles_of_others_are_none(void **state) {
    (void)state;
    client holder;
    attack_begin(&holder, "deaf"); /* holds a prompt and a generation */
    follow(&holder, 1);
    client c;
    realm_tenant *t = tenant_with("forger", TEST_WASM "/guest", "forger");
    begin(&c, t, text_request());
    follow(&c, 0);
    expect_ok(&c);
    assert_string_equal(c.text, "none");
    end(&c);
    realm_tenant_release(t);
    assert_int_equal(holder.finish, REALM_FINISH_NONE); /* nothing was done to it */
    leave(&holder);
    nothing_is_left();
}

int main(int argc, char **argv) {
    if (is_compiler(argc, argv)) return compile(argv);
    if (open_runtime()) return 1;
    victim = tenant_with("victim", NULL, NULL);
    evil = tenant_with("evil", TEST_WASM "/guest", "hostile");
    set_limit("evil", "cpu_ms_per_wake", "20000");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_program_that_spins),
        cmocka_unit_test(a_program_that_never_polls),
        cmocka_unit_test(a_program_that_floods_generations),
        cmocka_unit_test(spinning_is_ended),
        cmocka_unit_test(recursion_is_ended),
        cmocka_unit_test(a_trap_is_told),
        cmocka_unit_test(a_closed_handle_is_the_programs_fault),
        cmocka_unit_test(a_million_log_lines),
        cmocka_unit_test(handles_have_a_limit),
        cmocka_unit_test(memory_has_a_limit),
        cmocka_unit_test(a_program_that_is_deaf_to_cancel),
        cmocka_unit_test(programs_that_misbehave_at_their_start),
        cmocka_unit_test(handles_of_others_are_none),
    };
    int failed = cmocka_run_group_tests_name("hostile programs", tests, NULL, NULL);
    realm_tenant_release(victim);
    realm_tenant_release(evil);
    return close_runtime(failed);
}
