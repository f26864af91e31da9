/* Every type against the reference's golden vectors (tests/data/quant, readable, generator beside them), the bounds of
 * a round trip, and hostile values. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "quant/quant.h"

#define MAX_VALUES 256
#define MAX_BLOCK 512

static uint64_t random_state = 88172645463325252u;
static uint64_t random_u64(void) { /* xorshift64 */
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    return random_state ^= random_state << 17;
}
/* In [-1, 1). */
static float random_unit(void) { return (float)((double)(random_u64() >> 11) / 4503599627370496.0 - 1.0); }

static unsigned hex_digit(char c) { return c <= '9' ? (unsigned)(c - '0') : (unsigned)(c - 'a' + 10); }

static size_t read_bytes(const char *hex, uint8_t *out, size_t cap) {
    size_t n = strlen(hex) / 2;
    assert_true(n <= cap);
    for (size_t i = 0; i < n; i++) out[i] = (uint8_t)(hex_digit(hex[2 * i]) << 4 | hex_digit(hex[2 * i + 1]));
    return n;
}

static size_t read_floats(const char *hex, float *out, size_t cap) {
    size_t n = strlen(hex) / 8;
    assert_true(n <= cap);
    for (size_t i = 0; i < n; i++) {
        char word[9] = {0};
        memcpy(word, hex + 8 * i, 8);
        uint32_t bits = (uint32_t)strtoul(word, NULL, 16);
        memcpy(&out[i], &bits, 4);
    }
    return n;
}

static void check_golden_line(const realm_type_info *info, const char *kind, const char *a, const char *b) {
    uint8_t row[MAX_BLOCK + 1], got_row[MAX_BLOCK];
    float values[MAX_VALUES], got[MAX_VALUES];
    bool reading = strcmp(kind, "dequantize") == 0;
    size_t bytes = read_bytes(reading ? a : b, row + 1, MAX_BLOCK),
           n = read_floats(reading ? b : a, values, MAX_VALUES);
    uint64_t expected;
    assert_true(realm_type_row_bytes(info, n, &expected));
    assert_int_equal(bytes, expected);
    if (reading) { /* row + 1: a row needs no alignment */
        info->dequantize(row + 1, got, n);
        assert_memory_equal(got, values, n * sizeof *got);
    } else {
        assert_string_equal(kind, "quantize");
        info->quantize(values, got_row, n);
        assert_memory_equal(got_row, row + 1, bytes);
    }
}

static void golden(const char *name) {
    char path[128];
    static char kind[16], a[8192], b[8192];
    const realm_type_info *info = realm_type_find(name);
    assert_non_null(info);
    (void)snprintf(path, sizeof path, "tests/data/quant/%s.txt", name);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    int lines = 0;
    for (; fscanf(f, "%15s %8191s %8191s", kind, a, b) == 3; lines++) check_golden_line(info, kind, a, b);
    assert_true(feof(f));
    fclose(f);
    assert_true(lines >= 4);
}

static void every_type_equals_the_reference(void **state) {
    (void)state;
    static const char *const names[] = {"f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k", "q5_k", "q6_k"};
    for (size_t i = 0; i < REALM_ARRAY_LEN(names); i++) golden(names[i]);
}

/* One weight of each place in a block, by hand: what no round trip would notice is a layout that is wrong both ways. */
static void nibbles_stand_where_the_format_says(void **state) {
    (void)state;
    uint8_t block[18] = {0x00, 0x3c}; /* d = 1 */
    float v[32];
    for (int i = 0; i < 16; i++) block[2 + i] = 0x88;
    block[2 + 3] = 0xf1; /* value 3 is 1 - 8, value 19 is 15 - 8 */
    realm_type_get(REALM_TYPE_Q4_0)->dequantize(block, v, 32);
    for (int i = 0; i < 32; i++) assert_true(v[i] == (i == 3 ? -7.0f : i == 19 ? 7.0f : 0.0f));
}

/* Largest error of a round trip in units of the block's largest magnitude, for random blocks of several shapes. */
static void round_trip(const char *name, double bound, double mean_bound) {
    const realm_type_info *info = realm_type_find(name);
    double worst = 0, square = 0, energy = 0;
    for (int round = 0; round < 400; round++) {
        float x[MAX_VALUES], y[MAX_VALUES], amax = 0;
        uint8_t row[8 * MAX_BLOCK];
        double scale = pow(10, 3 * fabsf(random_unit())); /* at least 1: no scale becomes a subnormal binary16 */
        for (int i = 0; i < MAX_VALUES; i++) {
            float u = random_unit();
            x[i] = (float)(scale * (round % 3 == 0 ? u * u * u : round % 3 == 1 ? u : fabsf(u)));
        }
        info->quantize(x, row, MAX_VALUES);
        info->dequantize(row, y, MAX_VALUES);
        for (int i = 0; i < MAX_VALUES; i++) amax = fmaxf(amax, fabsf(x[i]));
        for (int i = 0; i < MAX_VALUES; i++) {
            double e = fabs((double)x[i] - (double)y[i]);
            worst = fmax(worst, e / amax);
            square += e * e / (scale * scale);
            energy += (double)x[i] * (double)x[i] / (scale * scale);
        }
    }
    if (worst > bound || square > mean_bound * energy)
        fail_msg("%s: worst error %g (bound %g), mean square %g (bound %g)", name, worst, bound, square / energy,
                 mean_bound);
}

static void round_trips_stay_in_bounds(void **state) {
    (void)state;
    round_trip("F32", 0, 0);
    round_trip("F16", 0x1p-11, 1e-7);
    round_trip("BF16", 0x1p-8, 1e-5);
    /* Half a step of the largest block and the rounding of its scale; a whole one at the end of the symmetric formats
     * with the shorter side. */
    round_trip("Q4_0", 1.02 / 8, 0.006);
    round_trip("Q4_1", 2.05 / 15 / 2, 0.0045);
    round_trip("Q5_0", 1.02 / 16, 0.0015);
    round_trip("Q5_1", 2.05 / 31 / 2, 0.001);
    round_trip("Q8_0", 0.5 / 127 + 0x1p-11, 2e-5);
    round_trip("Q4_K", 0.12, 0.0027);
    round_trip("Q5_K", 0.07, 0.0007);
    round_trip("Q6_K", 0.022, 0.00022);
}

/* NaN, infinities and extremes must not trap, loop or be undefined (the sanitizer build watches). */
static void any_float_may_be_quantised(void **state) {
    (void)state;
    static const float odd[] = {NAN, INFINITY, -INFINITY, 3.4e38f, -3.4e38f, 1e-45f, -0.0f, 0.0f, 1.0f};
    for (uint32_t number = 0; number < 64; number++) {
        const realm_type_info *info = realm_type_get(number);
        if (!info || !info->quantize) continue;
        for (int round = 0; round < 200; round++) {
            float x[MAX_VALUES], y[MAX_VALUES];
            uint8_t row[8 * MAX_BLOCK];
            for (int i = 0; i < MAX_VALUES; i++)
                x[i] = round < 9 ? odd[round] : random_u64() % 8 ? random_unit() : odd[random_u64() % 9];
            info->quantize(x, row, MAX_VALUES);
            info->dequantize(row, y, MAX_VALUES);
            if (round == 6 || round == 7) /* zeros stay zeros */
                for (int i = 0; i < MAX_VALUES; i++) assert_true(y[i] == 0.0f);
        }
    }
}

static void any_bytes_may_be_dequantised(void **state) {
    (void)state;
    for (uint32_t number = 0; number < 64; number++) {
        const realm_type_info *info = realm_type_get(number);
        if (!info || !info->dequantize) continue;
        uint64_t bytes;
        assert_true(realm_type_row_bytes(info, MAX_VALUES, &bytes));
        for (int round = 0; round < 100; round++) {
            uint8_t *row = malloc(bytes); /* exactly: the sanitizer build sees a read past the row */
            float *y = malloc(MAX_VALUES * sizeof *y);
            for (uint64_t i = 0; i < bytes; i++) row[i] = (uint8_t)random_u64();
            info->dequantize(row, y, MAX_VALUES);
            free(row);
            free(y);
        }
        info->dequantize(NULL, NULL, 0);
    }
}

static void the_table_is_consistent(void **state) {
    (void)state;
    int n = 0;
    for (uint32_t i = 0; i < 1000; i++) {
        const realm_type_info *info = realm_type_get(i);
        if (!info) continue;
        n++;
        assert_int_equal(info->type, i);
        assert_ptr_equal(realm_type_find(info->name), info);
        assert_true(info->block_len > 0 && info->block_bytes > 0);
        assert_true((info->quantize != NULL) == (info->dequantize != NULL));
    }
    /* The reference's table. */
    FILE *f = fopen("tests/data/quant/types.txt", "r");
    assert_non_null(f);
    unsigned number, block_len, block_bytes;
    char name[32];
    int lines = 0;
    for (; fscanf(f, "%u %31s %u %u", &number, name, &block_len, &block_bytes) == 4; lines++) {
        const realm_type_info *info = realm_type_get(number);
        assert_non_null(info);
        assert_string_equal(info->name, name);
        assert_int_equal(info->block_len, block_len);
        assert_int_equal(info->block_bytes, block_bytes);
    }
    assert_true(feof(f));
    fclose(f);
    assert_int_equal(lines, n);
#define COUNT(name, number, len, bytes) +1
    assert_int_equal(n, 0 REALM_TYPE_LIST(COUNT));
    assert_null(realm_type_get(4));
    assert_null(realm_type_get(UINT32_MAX));
    assert_null(realm_type_find("Q4_2"));
    assert_null(realm_type_find(""));
    assert_int_equal(realm_type_find("q4_k")->type, REALM_TYPE_Q4_K);
}

static void row_bytes_refuse_part_blocks_and_overflow(void **state) {
    (void)state;
    const realm_type_info *q4_k = realm_type_get(REALM_TYPE_Q4_K), *f64 = realm_type_get(REALM_TYPE_F64);
    uint64_t bytes = 7;
    assert_false(realm_type_row_bytes(q4_k, 255, &bytes));
    assert_false(realm_type_row_bytes(f64, UINT64_MAX / 8 + 1, &bytes));
    assert_int_equal(bytes, 7);
    assert_true(realm_type_row_bytes(q4_k, 512, &bytes));
    assert_int_equal(bytes, 288);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_type_equals_the_reference),
        cmocka_unit_test(nibbles_stand_where_the_format_says),
        cmocka_unit_test(round_trips_stay_in_bounds),
        cmocka_unit_test(any_float_may_be_quantised),
        cmocka_unit_test(any_bytes_may_be_dequantised),
        cmocka_unit_test(the_table_is_consistent),
        cmocka_unit_test(row_bytes_refuse_part_blocks_and_overflow),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
