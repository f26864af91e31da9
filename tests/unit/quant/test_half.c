/* binary16 and bfloat16 against definitions by arithmetic: all 65,536 values to float, and from float every value,
 * every midpoint between neighbours, and the floats next to each midpoint. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "quant/quant.h"

static uint32_t bits(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}
static float from_bits(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}

/* The value that IEEE 754 gives a binary16 pattern, by its formula. */
static double f16_value(uint32_t h) {
    int exponent = (int)(h >> 10 & 31), fraction = (int)(h & 1023);
    double sign = h >> 15 ? -1.0 : 1.0;
    if (exponent == 31) return fraction ? NAN : sign * INFINITY;
    if (exponent == 0) return sign * ldexp(fraction, -24);
    return sign * ldexp(1024 + fraction, exponent - 25);
}

static void f16_to_float_is_exact(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = realm_f16_to_f32((uint16_t)h);
        double expected = f16_value(h);
        if (isnan(expected)) {
            assert_true(isnan(f));
        } else {
            assert_true((double)f == expected);
            assert_int_equal(signbit(f) != 0, h >> 15);
        }
    }
}

static void float_to_f16_rounds_to_nearest_even(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 0x7c00; h++) {
        double low = f16_value(h), high = h == 0x7bff ? 65536.0 : f16_value(h + 1);
        float exact = (float)low, middle = (float)((low + high) / 2);
        uint32_t even = h & 1 ? h + 1 : h;
        for (uint32_t sign = 0; sign < 2; sign++) {
            float s = sign ? -1.0f : 1.0f;
            uint32_t top = sign << 15;
            assert_int_equal(realm_f32_to_f16(s * exact), top | h);
            assert_int_equal(realm_f32_to_f16(s * middle), top | even);
            assert_int_equal(realm_f32_to_f16(s * nextafterf(middle, 0.0f)), top | h);
            assert_int_equal(realm_f32_to_f16(s * nextafterf(middle, INFINITY)), top | (h + 1));
        }
    }
}

static void bf16_rounds_to_nearest_even(void **state) {
    (void)state;
    for (uint32_t b = 0; b < 65536; b++) {
        float f = realm_bf16_to_f32((uint16_t)b);
        assert_int_equal(bits(f), b << 16);
        if ((b & 0x7fff) > 0x7f80) {
            assert_true(isnan(f) && isnan(realm_bf16_to_f32(realm_f32_to_bf16(f))));
            continue;
        }
        assert_int_equal(realm_f32_to_bf16(f), b);
        if ((b & 0x7fff) >= 0x7f80) continue;
        uint32_t middle = b << 16 | 0x8000;
        assert_int_equal(realm_f32_to_bf16(from_bits(middle)), b & 1 ? b + 1 : b);
        assert_int_equal(realm_f32_to_bf16(from_bits(middle - 1)), b);
        assert_int_equal(realm_f32_to_bf16(from_bits(middle + 1)), b + 1);
    }
}

static void special_values_survive(void **state) {
    (void)state;
    assert_int_equal(realm_f32_to_f16(INFINITY), 0x7c00);
    assert_int_equal(realm_f32_to_f16(-INFINITY), 0xfc00);
    assert_int_equal(realm_f32_to_f16(3.4e38f), 0x7c00);
    assert_int_equal(realm_f32_to_f16(1e-45f), 0);
    assert_int_equal(realm_f32_to_f16(-1e-45f), 0x8000);
    /* Every NaN stays one, whose payload may have been in the bits that are cut. */
    for (uint32_t payload = 1; payload < 0x800000; payload = payload * 2 + 1) {
        assert_true(isnan(realm_f16_to_f32(realm_f32_to_f16(from_bits(0x7f800000 | payload)))));
        assert_true(isnan(realm_f16_to_f32(realm_f32_to_f16(from_bits(0xff800000 | payload)))));
        assert_true(isnan(realm_bf16_to_f32(realm_f32_to_bf16(from_bits(0x7f800000 | payload)))));
    }
    assert_int_equal(realm_f32_to_bf16(from_bits(0x7f800001)) & 0x7f80, 0x7f80);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(f16_to_float_is_exact),
        cmocka_unit_test(float_to_f16_rounds_to_nearest_even),
        cmocka_unit_test(bf16_rounds_to_nearest_even),
        cmocka_unit_test(special_values_survive),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
