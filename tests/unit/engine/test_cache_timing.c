/* Does the time to a first token tell an account what another one has cached? A thousand trials: a coin decides whether
 * the victim computes the prompt that the attacker asks for next, or another one of the same length; the attacker
 * guesses from its own time. The guess must be as good as the coin. As a control it guesses the same of its own cache,
 * two hundred times, where it must be right: so the clock would have told. On a machine with much else to do the clock
 * may not tell for a while: the control has several chances. */
#include "support/engine_run.h"
#include "support/random.h"

#define TRIALS 1000u
#define CONTROL_TRIALS 200u
#define PROMPT 129u /* 128 of it in whole pages */
#define CHANCE 0.58 /* five standard deviations from a half */
#define CERTAIN 0.7 /* chance alone would be five of its standard deviations away */
#define CONTROLS 12u
#define WINDOW 41u

static const uint8_t victims_secret[REALM_CACHE_SECRET_BYTES] = "the victim's secret",
                     attackers_secret[REALM_CACHE_SECRET_BYTES] = "the attacker's secret";

static void fresh_prompt(realm_token *p) {
    for (unsigned i = 0; i < PROMPT; i++) p[i] = (realm_token)(3 + random_bits() % (TINY_VOCAB - 3));
}

/* Time to the first token; *cached: prompt tokens that were not computed. */
static double first_token_ns(engine_run *r, realm_account *a, const realm_token *prompt, uint32_t *cached) {
    static consumer k;
    realm_error err = {0};
    realm_generation_params p = greedy(a, prompt, PROMPT, 1);
    uint64_t begun = realm_clock_ns();
    if (consumer_submit(&k, r->e, &p, &err) != REALM_OK) model_run_fail("submit", &err);
    consumer_wait(&k);
    double took = (double)(realm_clock_ns() - begun);
    assert_int_equal(k.finish, REALM_FINISH_LENGTH);
    *cached = k.batch.cached_tokens;
    consumer_close(&k);
    return took;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Share of right guesses: "cached" when faster than the median of the trials around it, as the machine is not equally
 * fast all the time. */
static double guesses(const double *took, const bool *coin, unsigned trials) {
    double near[WINDOW];
    unsigned right = 0;
    for (unsigned i = 0; i < trials; i++) {
        unsigned first = i < WINDOW / 2 ? 0 : REALM_MIN(i - WINDOW / 2, trials - WINDOW);
        memcpy(near, took + first, sizeof near);
        qsort(near, WINDOW, sizeof *near, by_value);
        right += (took[i] < near[WINDOW / 2]) == coin[i];
    }
    return (double)right / trials;
}

/* The attacker's times after `owner` computed the prompt or another. */
static double trial(engine_run *r, realm_account *owner, realm_account *attacker, unsigned trials, bool may_hit) {
    static double took[TRIALS];
    static bool coin[TRIALS];
    realm_token prompt[PROMPT], other[PROMPT];
    uint32_t cached;
    for (unsigned i = 0; i < trials; i++) {
        fresh_prompt(prompt);
        fresh_prompt(other);
        coin[i] = random_bits() & 1;
        (void)first_token_ns(r, owner, coin[i] ? prompt : other, &cached);
        assert_int_equal(cached, 0);
        took[i] = first_token_ns(r, attacker, prompt, &cached);
        assert_int_equal(cached > 0, may_hit && coin[i]);
    }
    return guesses(took, coin, trials);
}

static void no_more_than_chance(void **state) {
    (void)state;
    engine_run r;
    realm_account *victim, *attacker;
    engine_run_open(&r, &tiny_llama, NULL);
    assert_int_equal(realm_account_open(r.e, NULL, victims_secret, &victim, NULL), REALM_OK);
    assert_int_equal(realm_account_open(r.e, NULL, attackers_secret, &attacker, NULL), REALM_OK);
    double own = 0;
    for (unsigned i = 0; i < CONTROLS && own < CERTAIN; i++) own = trial(&r, attacker, attacker, CONTROL_TRIALS, true);
    double others = trial(&r, victim, attacker, TRIALS, false);
    print_message("right guesses: own cache %.1f%%, another account's %.1f%%\n", 100 * own, 100 * others);
    assert_true(own >= CERTAIN);
    assert_true(others <= CHANCE && others >= 1 - CHANCE);
    realm_account_close(victim);
    realm_account_close(attacker);
    engine_run_close(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(no_more_than_chance)};
    return cmocka_run_group_tests_name("timing of the prefix cache", tests, NULL, NULL);
}
