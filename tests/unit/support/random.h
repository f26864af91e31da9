/* support/random.h - numbers for test data, the same in every run: a linear congruential generator modulo 2^64 with
 * Knuth's constants, of which the upper bits are used. A test sets `rng`, each thread its own, where it wants to begin
 * anew.
 */
#ifndef TESTS_UNIT_SUPPORT_RANDOM_H
#define TESTS_UNIT_SUPPORT_RANDOM_H

#include <stdint.h>

static _Thread_local uint64_t rng = 1;

static inline uint64_t random_next(void) {
    return rng = rng * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
}
/* Below 2^31, below n, in [0, 1), in [-amplitude, amplitude). */
static inline uint32_t random_bits(void) { return (uint32_t)(random_next() >> 33); }
static inline uint32_t random_below(uint32_t n) { return random_bits() % n; }
static inline double random_unit(void) { return (double)(random_next() >> 40) * 0x1p-24; }
static inline float random_float(float amplitude) {
    return ((float)random_bits() / (float)(1u << 30) - 1.0f) * amplitude;
}
/* About normal, of deviation 1: a sum of four uniform ones. */
static inline float random_normal(void) {
    float sum = 0;
    for (int i = 0; i < 4; i++) sum += (float)random_unit() - 0.5f;
    return sum * 1.7f;
}

#endif
