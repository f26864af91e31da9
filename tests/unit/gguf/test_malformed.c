/* Files that must be refused, each for its reason: the cases of the threat model by name, then everything that a small
 * file turns into when it is cut at every byte, when every field is set to an extreme, and under random bytes. Whatever
 * opens in the end must be fully walkable. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

#include "gguf/bytes.h"
#include "gguf/walk.h"

#define D(...) ((const uint64_t[4]){__VA_ARGS__})

/* --- header --- */
static void empty_file(bytes *b) { (void)b; }
static void wrong_magic(bytes *b) {
    b_header(b, 0, 0);
    b->p[0] = 'g';
}
static void version_0(bytes *b) {
    b_header(b, 0, 0);
    b->p[4] = 0;
}
static void version_1(bytes *b) {
    b_header(b, 0, 0);
    b->p[4] = 1;
}
static void version_4(bytes *b) {
    b_header(b, 0, 0);
    b->p[4] = 4;
}
static void big_endian(bytes *b) {
    b_header(b, 0, 0);
    b->p[4] = 0;
    b->p[7] = 3;
}
static void tensor_count_2_60(bytes *b) {
    b_header(b, UINT64_C(1) << 60, 0);
    b_zeros(b, 4096);
}
static void tensor_count_all_ones(bytes *b) { b_header(b, UINT64_MAX, 0); }
/* CVE-2024-21802, CVE-2025-53630: counts whose product with a record's size wraps to something small. */
static void tensor_count_wraps(bytes *b) {
    b_header(b, UINT64_MAX / 33 + 1, 0);
    b_zeros(b, 4096);
}
static void key_count_2_60(bytes *b) {
    b_header(b, 0, UINT64_C(1) << 60);
    b_zeros(b, 4096);
}
static void key_count_all_ones(bytes *b) { b_header(b, 0, UINT64_MAX); }
static void more_keys_than_fit(bytes *b) {
    b_header(b, 0, 1000);
    b_zeros(b, 999 * 14);
}
static void keys_and_tensors_share_the_room(bytes *b) {
    b_header(b, 30, 70);
    b_zeros(b, 70 * 14 + 29 * 33);
}

/* --- keys --- */
static void empty_key(bytes *b) {
    b_header(b, 0, 1);
    b_key_u32(b, "", 1);
}
static void nul_in_key(bytes *b) {
    b_header(b, 0, 1);
    b_strn(b, "general\0x", 9);
    b_u32(b, REALM_GGUF_U32);
    b_u32(b, 1);
}
static void long_key(bytes *b) {
    static char key[REALM_GGUF_MAX_NAME + 1];
    memset(key, 'k', sizeof key);
    b_header(b, 0, 1);
    b_strn(b, key, sizeof key);
    b_u32(b, REALM_GGUF_U32);
    b_u32(b, 1);
}
static void duplicate_key(bytes *b) {
    b_header(b, 0, 3);
    b_key_u32(b, "twice", 1);
    b_key_u32(b, "other", 1);
    b_key_u32(b, "twice", 1);
}
static void key_of_1_gib_in_160_bytes(bytes *b) {
    b_header(b, 0, 1);
    b_u64(b, UINT64_C(1) << 30);
    b_zeros(b, 160 - b->n);
}
static void key_length_all_ones(bytes *b) {
    b_header(b, 0, 1);
    b_u64(b, UINT64_MAX);
    b_zeros(b, 64);
}

/* --- values --- */
static void unknown_value_type(bytes *b) {
    b_header(b, 0, 1);
    b_key(b, "k", 13);
    b_u64(b, 0);
}
static void value_type_all_ones(bytes *b) {
    b_header(b, 0, 1);
    b_key(b, "k", UINT32_MAX);
    b_u64(b, 0);
}
static void string_of_1_gib_in_160_bytes(bytes *b) {
    b_header(b, 0, 1);
    b_key(b, "k", REALM_GGUF_STRING);
    b_u64(b, UINT64_C(1) << 30);
    b_zeros(b, 160 - b->n);
}
static void string_length_wraps(bytes *b) {
    b_header(b, 0, 1);
    b_key(b, "k", REALM_GGUF_STRING);
    b_u64(b, UINT64_MAX - 40);
    b_zeros(b, 64);
}
static void bool_of_2(bytes *b) {
    b_header(b, 0, 1);
    b_key(b, "k", REALM_GGUF_BOOL);
    b_u8(b, 2);
}
static void bool_of_2_in_array(bytes *b) {
    b_header(b, 0, 1);
    b_array(b, "k", REALM_GGUF_BOOL, 3);
    b_raw(b, "\1\0\2", 3);
}
/* CVE-2024-21836: n times the element's size wraps. */
static void array_size_wraps(bytes *b) {
    b_header(b, 0, 1);
    b_array(b, "k", REALM_GGUF_U64, (UINT64_C(1) << 61) + 1);
    b_zeros(b, 64);
}
static void array_of_2_60_strings(bytes *b) {
    b_header(b, 0, 1);
    b_array(b, "k", REALM_GGUF_STRING, UINT64_C(1) << 60);
    b_zeros(b, 64);
}
/* CVE-2025-49847: a token longer than INT32_MAX; CVE-2025-52566: a length that is negative as a signed number. */
static void token_length_above_int32(bytes *b) {
    b_header(b, 0, 1);
    b_array(b, "tokenizer.ggml.tokens", REALM_GGUF_STRING, 2);
    b_str(b, "a");
    b_u64(b, 0x80000000u);
    b_zeros(b, 64);
}
static void token_length_negative(bytes *b) {
    b_header(b, 0, 1);
    b_array(b, "tokenizer.ggml.tokens", REALM_GGUF_STRING, 2);
    b_str(b, "a");
    b_u64(b, 0xffffffffffffff80u);
    b_zeros(b, 64);
}
static void unknown_element_type(bytes *b) {
    b_header(b, 0, 1);
    b_array(b, "k", 99, 1);
    b_u64(b, 0);
}
static void arrays_too_deep(bytes *b) {
    b_header(b, 0, 1);
    b_array(b, "k", REALM_GGUF_ARRAY, 1);
    for (int i = 0; i < 3; i++) {
        b_u32(b, REALM_GGUF_ARRAY);
        b_u64(b, 1);
    }
    b_u32(b, REALM_GGUF_U8);
    b_u64(b, 1);
    b_u8(b, 1);
}
static void arrays_100000_deep(bytes *b) {
    b_header(b, 0, 1);
    b_array(b, "k", REALM_GGUF_ARRAY, 1);
    for (int i = 0; i < 100000; i++) {
        b_u32(b, REALM_GGUF_ARRAY);
        b_u64(b, 1);
    }
}
static void nested_array_of_2_60(bytes *b) {
    b_header(b, 0, 1);
    b_array(b, "k", REALM_GGUF_ARRAY, 2);
    b_u32(b, REALM_GGUF_F32);
    b_u64(b, 0);
    b_u32(b, REALM_GGUF_F32);
    b_u64(b, UINT64_C(1) << 60);
    b_zeros(b, 64);
}

/* --- alignment --- */
static void alignment(bytes *b, uint32_t v) {
    b_header(b, 1, 1);
    b_key_u32(b, "general.alignment", v);
    b_tensor(b, "t", 1, D(4), REALM_TYPE_F32, 0);
    b_data(b, 64, 64);
}
static void alignment_0(bytes *b) { alignment(b, 0); }
static void alignment_1(bytes *b) { alignment(b, 1); }
static void alignment_3(bytes *b) { alignment(b, 3); }
static void alignment_48(bytes *b) { alignment(b, 48); }
static void alignment_2_17(bytes *b) { alignment(b, 1u << 17); }
static void alignment_2_30(bytes *b) { alignment(b, 1u << 30); }
static void alignment_all_ones(bytes *b) { alignment(b, UINT32_MAX); }
static void alignment_is_u64(bytes *b) {
    b_header(b, 0, 1);
    b_key(b, "general.alignment", REALM_GGUF_U64);
    b_u64(b, 32);
}
static void alignment_is_a_string(bytes *b) {
    b_header(b, 0, 1);
    b_key(b, "general.alignment", REALM_GGUF_STRING);
    b_str(b, "32");
}
static void alignment_is_an_array(bytes *b) {
    b_header(b, 0, 1);
    b_array(b, "general.alignment", REALM_GGUF_U32, 0);
    b_u32(b, 0);
}

/* --- tensors --- */
static void one_tensor(bytes *b, const char *name, uint32_t n_dims, const uint64_t dims[4], uint32_t type,
                       uint64_t offset) {
    b_header(b, 1, 0);
    b_tensor(b, name, n_dims, dims, type, offset);
    b_data(b, 32, 256);
}
static void empty_tensor_name(bytes *b) { one_tensor(b, "", 1, D(4), REALM_TYPE_F32, 0); }
static void nul_in_tensor_name(bytes *b) {
    b_header(b, 1, 0);
    b_strn(b, "a\0b", 3);
    b_u32(b, 1);
    b_u64(b, 4);
    b_u32(b, REALM_TYPE_F32);
    b_u64(b, 0);
    b_data(b, 32, 64);
}
static void long_tensor_name(bytes *b) {
    static char name[REALM_GGUF_MAX_NAME + 2];
    memset(name, 'n', sizeof name - 1);
    one_tensor(b, name, 1, D(4), REALM_TYPE_F32, 0);
}
static void duplicate_tensor(bytes *b) {
    b_header(b, 2, 0);
    b_tensor(b, "same", 1, D(8), REALM_TYPE_F32, 0);
    b_tensor(b, "same", 1, D(8), REALM_TYPE_F32, 32);
    b_data(b, 32, 64);
}
static void no_dimensions(bytes *b) { one_tensor(b, "t", 0, D(0), REALM_TYPE_F32, 0); }
/* CVE-2024-21802 and its kin: n_dims writes past a fixed array. */
static void five_dimensions(bytes *b) { one_tensor(b, "t", 5, D(1, 1, 1, 1), REALM_TYPE_F32, 0); }
static void dimensions_all_ones(bytes *b) { one_tensor(b, "t", UINT32_MAX, D(1, 1, 1, 1), REALM_TYPE_F32, 0); }
static void zero_dimension(bytes *b) { one_tensor(b, "t", 2, D(4, 0), REALM_TYPE_F32, 0); }
static void zero_first_dimension(bytes *b) { one_tensor(b, "t", 1, D(0), REALM_TYPE_F32, 0); }
/* CVE-2025-0315: huge dimensions. */
static void huge_dimension(bytes *b) { one_tensor(b, "t", 1, D(UINT64_C(1) << 62), REALM_TYPE_F32, 0); }
static void dimension_all_ones(bytes *b) { one_tensor(b, "t", 1, D(UINT64_MAX), REALM_TYPE_I8, 0); }
static void dimensions_wrap_to_zero(bytes *b) {
    one_tensor(b, "t", 2, D(UINT64_C(1) << 32, UINT64_C(1) << 32), REALM_TYPE_I8, 0);
}
static void dimensions_wrap_to_small(bytes *b) {
    one_tensor(b, "t", 4, D(UINT64_C(1) << 21, UINT64_C(1) << 21, UINT64_C(1) << 21, 3), REALM_TYPE_I8, 0);
}
/* CVE-2026-33298: values fit, bytes do not. */
static void bytes_overflow(bytes *b) { one_tensor(b, "t", 2, D(UINT64_C(1) << 30, UINT64_C(1) << 31), 0, 0); }
/* Blocks make bytes fewer than values: the bytes fit 64 bits, the values do not. */
static void values_overflow(bytes *b) { one_tensor(b, "t", 2, D(UINT64_C(1) << 62, 5), REALM_TYPE_IQ1_S, 0); }
/* CVE-2025-53630 and its bypass CVE-2026-27940: sizes that wrap only once padding or the next offset is added. */
static void padding_wraps(bytes *b) {
    b_header(b, 2, 0);
    b_tensor(b, "a", 1, D(UINT64_MAX - 15), REALM_TYPE_I8, 0);
    b_tensor(b, "b", 1, D(4), REALM_TYPE_F32, 0);
    b_data(b, 32, 64);
}
static void sum_of_sizes_wraps(bytes *b) {
    b_header(b, 3, 0);
    b_tensor(b, "a", 1, D(UINT64_C(1) << 62), REALM_TYPE_I16, 0);
    b_tensor(b, "b", 1, D(UINT64_C(1) << 62), REALM_TYPE_I16, UINT64_C(1) << 63);
    b_tensor(b, "c", 1, D(32), REALM_TYPE_I8, 0);
    b_data(b, 32, 64);
}
static void row_is_part_of_a_block(bytes *b) { one_tensor(b, "t", 2, D(48, 2), REALM_TYPE_Q4_0, 0); }
static void withdrawn_type(bytes *b) { one_tensor(b, "t", 1, D(32), 4, 0); }
static void unknown_type(bytes *b) { one_tensor(b, "t", 1, D(32), 1000, 0); }
static void type_all_ones(bytes *b) { one_tensor(b, "t", 1, D(32), UINT32_MAX, 0); }
static void offset_unaligned(bytes *b) { one_tensor(b, "t", 1, D(4), REALM_TYPE_F32, 4); }
static void offset_past_the_end(bytes *b) { one_tensor(b, "t", 1, D(4), REALM_TYPE_F32, 4096); }
static void offset_wraps(bytes *b) { one_tensor(b, "t", 1, D(16), REALM_TYPE_F32, UINT64_MAX - 31); }
/* CVE-2024-39720, CVE-2026-7482: offset inside, end outside. */
static void size_past_the_end(bytes *b) { one_tensor(b, "t", 1, D(64), REALM_TYPE_F32, 32); }
static void data_missing(bytes *b) {
    b_header(b, 1, 0);
    b_tensor(b, "t", 1, D(1), REALM_TYPE_F32, 0);
}
static void same_offset(bytes *b) {
    b_header(b, 2, 0);
    b_tensor(b, "a", 1, D(8), REALM_TYPE_F32, 0);
    b_tensor(b, "b", 1, D(8), REALM_TYPE_F32, 0);
    b_data(b, 32, 64);
}
static void overlap_by_one_byte(bytes *b) {
    b_header(b, 2, 0);
    b_tensor(b, "a", 1, D(33), REALM_TYPE_I8, 0);
    b_tensor(b, "b", 1, D(8), REALM_TYPE_F32, 32);
    b_data(b, 32, 96);
}
static void overlap_out_of_order(bytes *b) {
    b_header(b, 4, 0);
    b_tensor(b, "a", 1, D(8), REALM_TYPE_F32, 96);
    b_tensor(b, "b", 1, D(8), REALM_TYPE_F32, 0);
    b_tensor(b, "c", 1, D(17), REALM_TYPE_F32, 32);
    b_tensor(b, "d", 1, D(8), REALM_TYPE_F32, 128);
    b_data(b, 32, 256);
}
static void overlap_contained(bytes *b) {
    b_header(b, 3, 0);
    b_tensor(b, "a", 1, D(64), REALM_TYPE_F32, 0);
    b_tensor(b, "b", 1, D(8), REALM_TYPE_F32, 128);
    b_tensor(b, "c", 1, D(8), REALM_TYPE_F32, 64);
    b_data(b, 32, 256);
}

static const struct refused {
    const char *name;
    void (*build)(bytes *b);
    realm_status status;
    const char *text; /* part of the message */
} refused[] = {
#define FORMAT(name, text) {#name, name, REALM_E_FORMAT, text}
#define UNSUPPORTED(name, text) {#name, name, REALM_E_UNSUPPORTED, text}
    FORMAT(empty_file, "magic"),
    FORMAT(wrong_magic, "not a GGUF"),
    UNSUPPORTED(version_0, "version 0"),
    UNSUPPORTED(version_1, "version 1"),
    UNSUPPORTED(version_4, "version 4"),
    UNSUPPORTED(big_endian, "big-endian"),
    FORMAT(tensor_count_2_60, "byte 8: 1152921504606846976 tensors"),
    FORMAT(tensor_count_all_ones, "tensors"),
    FORMAT(tensor_count_wraps, "tensors"),
    FORMAT(key_count_2_60, "byte 16: 1152921504606846976 keys"),
    FORMAT(key_count_all_ones, "keys"),
    FORMAT(more_keys_than_fit, "1000 keys"),
    FORMAT(keys_and_tensors_share_the_room, "30 tensors"),
    FORMAT(empty_key, "byte 24: a key is empty"),
    FORMAT(nul_in_key, "NUL"),
    FORMAT(long_key, "1025 bytes"),
    FORMAT(duplicate_key, "twice"),
    FORMAT(key_of_1_gib_in_160_bytes, "1073741824 bytes"),
    FORMAT(key_length_all_ones, "are left"),
    FORMAT(unknown_value_type, "unknown value type 13"),
    FORMAT(value_type_all_ones, "unknown value type"),
    FORMAT(string_of_1_gib_in_160_bytes, "key k: at byte 37: a string value of 1073741824 bytes"),
    FORMAT(string_length_wraps, "are left"),
    FORMAT(bool_of_2, "bool of 2"),
    FORMAT(bool_of_2_in_array, "at byte 51: a bool of 2"),
    FORMAT(array_size_wraps, "an array of 2305843009213693953 elements"),
    FORMAT(array_of_2_60_strings, "an array of 1152921504606846976 elements"),
    FORMAT(token_length_above_int32, "2147483648 bytes"),
    FORMAT(token_length_negative, "are left"),
    FORMAT(unknown_element_type, "element type 99"),
    FORMAT(arrays_too_deep, "nested more than 4 deep"),
    FORMAT(arrays_100000_deep, "nested more than 4 deep"),
    FORMAT(nested_array_of_2_60, "an array of 1152921504606846976 elements"),
    FORMAT(alignment_0, "general.alignment is 0"),
    FORMAT(alignment_1, "general.alignment is 1"),
    FORMAT(alignment_3, "general.alignment is 3"),
    FORMAT(alignment_48, "general.alignment is 48"),
    FORMAT(alignment_2_17, "general.alignment is 131072"),
    FORMAT(alignment_2_30, "general.alignment is 1073741824"),
    FORMAT(alignment_all_ones, "general.alignment is 4294967295"),
    FORMAT(alignment_is_u64, "of type u64"),
    FORMAT(alignment_is_a_string, "of type string"),
    FORMAT(alignment_is_an_array, "of type array"),
    FORMAT(empty_tensor_name, "name is empty"),
    FORMAT(nul_in_tensor_name, "NUL"),
    FORMAT(long_tensor_name, "1025 bytes"),
    FORMAT(duplicate_tensor, "tensor same occurs twice"),
    FORMAT(no_dimensions, "0 dimensions"),
    FORMAT(five_dimensions, "5 dimensions"),
    FORMAT(dimensions_all_ones, "4294967295 dimensions"),
    FORMAT(zero_dimension, "dimension 1 of tensor t is 0"),
    FORMAT(zero_first_dimension, "dimension 0 of tensor t is 0"),
    FORMAT(huge_dimension, "overflow"),
    FORMAT(dimension_all_ones, "overflow"),
    FORMAT(dimensions_wrap_to_zero, "overflow"),
    FORMAT(dimensions_wrap_to_small, "overflow"),
    FORMAT(bytes_overflow, "overflow"),
    FORMAT(values_overflow, "overflow"),
    FORMAT(padding_wraps, "overflow"),
    FORMAT(sum_of_sizes_wraps, "overflow"),
    FORMAT(row_is_part_of_a_block, "48 values, no multiple of the 32"),
    UNSUPPORTED(withdrawn_type, "unknown type 4"),
    UNSUPPORTED(unknown_type, "unknown type 1000"),
    UNSUPPORTED(type_all_ones, "unknown type 4294967295"),
    FORMAT(offset_unaligned, "no multiple of the alignment"),
    FORMAT(offset_past_the_end, "past the file"),
    FORMAT(offset_wraps, "past the file"),
    FORMAT(size_past_the_end, "past the file"),
    FORMAT(data_missing, "past the file"),
    FORMAT(same_offset, "overlap"),
    FORMAT(overlap_by_one_byte, "tensors a and b overlap"),
    FORMAT(overlap_out_of_order, "tensors c and a overlap"),
    FORMAT(overlap_contained, "tensors a and c overlap"),
};

static void each_known_attack_is_refused_for_its_reason(void **state) {
    (void)state;
    for (size_t i = 0; i < REALM_ARRAY_LEN(refused); i++) {
        bytes b = {0};
        realm_error err = {0};
        refused[i].build(&b);
        realm_status s = walk_copy(b.p, b.n, &err);
        if (s != refused[i].status || !strstr(err.text, refused[i].text))
            fail_msg("%s: %s: %s", refused[i].name, realm_status_name(s), err.text);
        free(b.p);
    }
}

/* More keys or tensors than the limits, in files that could hold so many. */
static void counts_past_the_limits_are_refused(void **state) {
    (void)state;
    size_t size = (size_t)40 << 20;
    unsigned char *p = calloc(size, 1);
    realm_error err = {0};
    realm_gguf *g;
    bytes b = {0};
    assert_non_null(p);
    b_header(&b, REALM_GGUF_MAX_TENSORS + 1, 0);
    b_header(&b, 0, REALM_GGUF_MAX_KEYS + 1);
    for (int i = 0; i < 2; i++) {
        memcpy(p, b.p + 24 * i, 24);
        assert_int_equal(realm_gguf_open_memory(&g, p, size, &err), REALM_E_FORMAT);
        assert_non_null(strstr(err.text, "1048577"));
    }
    free(b.p);
    free(p);
}

/* A small file with a bit of everything. */
static void build_base(bytes *b) {
    b_header(b, 3, 10);
    b_key(b, "general.architecture", REALM_GGUF_STRING);
    b_str(b, "llama");
    b_key_u32(b, "general.alignment", 32);
    b_key_u32(b, "llama.block_count", 2);
    b_key(b, "llama.rope.freq_base", REALM_GGUF_F32);
    b_f32(b, 10000.0f);
    b_key(b, "flag", REALM_GGUF_BOOL);
    b_u8(b, 1);
    b_array(b, "tokenizer.ggml.tokens", REALM_GGUF_STRING, 3);
    b_str(b, "a");
    b_str(b, "");
    b_str(b, "\xe2\x96\x81xyz");
    b_array(b, "tokenizer.ggml.scores", REALM_GGUF_F32, 3);
    for (int i = 0; i < 3; i++) b_f32(b, (float)-i);
    b_array(b, "bools", REALM_GGUF_BOOL, 2);
    b_raw(b, "\0\1", 2);
    b_array(b, "nested", REALM_GGUF_ARRAY, 2);
    for (int i = 0; i < 2; i++) {
        b_u32(b, REALM_GGUF_U16);
        b_u64(b, 1);
        b_raw(b, "\1\2", 2);
    }
    b_key(b, "big", REALM_GGUF_U64);
    b_u64(b, UINT64_MAX);
    b_tensor(b, "token_embd.weight", 2, D(32, 3), REALM_TYPE_Q8_0, 0);
    b_tensor(b, "blk.0.attn_norm.weight", 1, D(8), REALM_TYPE_F32, 192);
    b_tensor(b, "blk.0.attn_q.weight", 2, D(32, 2), REALM_TYPE_Q4_0, 128);
    b_data(b, 32, 224);
}

static void the_base_of_the_mutations_opens(void **state) {
    (void)state;
    bytes b = {0};
    realm_error err = {0};
    build_base(&b);
    if (walk_copy(b.p, b.n, &err) != REALM_OK) fail_msg("%s", err.text);
    free(b.p);
}

static void cut_at_every_byte_it_is_refused(void **state) {
    (void)state;
    bytes b = {0};
    realm_error err = {0};
    build_base(&b);
    for (size_t n = 0; n < b.n; n++)
        if (walk_copy(b.p, n, &err) != REALM_E_FORMAT) fail_msg("cut to %zu bytes: %s", n, err.text);
    free(b.p);
}

/* Every four and eight bytes at every position become each extreme in turn: all counts, lengths, types, dimensions and
 * offsets are among them. */
static void any_field_may_be_extreme(void **state) {
    (void)state;
    static const uint64_t extremes[] = {0,
                                        1,
                                        2,
                                        5,
                                        0x7f,
                                        0xff,
                                        0x7fffffff,
                                        0x80000000,
                                        0xffffffff,
                                        UINT64_C(1) << 32,
                                        UINT64_C(1) << 60,
                                        INT64_MAX,
                                        UINT64_C(1) << 63,
                                        UINT64_MAX - 31,
                                        UINT64_MAX};
    bytes b = {0};
    realm_error err = {0};
    unsigned opened = 0, seen = 0;
    build_base(&b);
    for (size_t at = 0; at + 8 <= b.n; at++) {
        for (size_t i = 0; i < REALM_ARRAY_LEN(extremes); i++) {
            for (size_t width = 4; width <= 8; width += 4) {
                unsigned char keep[8];
                memcpy(keep, b.p + at, 8);
                memcpy(b.p + at, &extremes[i], width);
                opened += walk_copy(b.p, b.n, &err) == REALM_OK;
                seen++;
                memcpy(b.p + at, keep, 8);
            }
        }
    }
    assert_true(opened > 0 && opened < seen);
    free(b.p);
}

static uint32_t next_random(uint32_t *x) { /* xorshift32 */
    *x ^= *x << 13;
    *x ^= *x >> 17;
    return *x ^= *x << 5;
}

static void random_flips_never_hurt(void **state) {
    (void)state;
    bytes b = {0};
    realm_error err = {0};
    unsigned opened = 0;
    uint32_t x = 2463534242u;
    build_base(&b);
    unsigned char *p = malloc(b.n);
    assert_non_null(p);
    for (int round = 0; round < 25000; round++) {
        memcpy(p, b.p, b.n);
        for (uint32_t flips = 1 + next_random(&x) % 4; flips > 0; flips--) {
            uint32_t r = next_random(&x);
            p[r % b.n] = (unsigned char)(r & 0x80000000u ? r >> 16 : p[r % b.n] ^ 1u << (r >> 16 & 7));
        }
        size_t n = next_random(&x) % 8 ? b.n : next_random(&x) % b.n;
        opened += walk_copy(p, n, &err) == REALM_OK;
    }
    assert_true(opened > 1000); /* flips in names, values and weights: the file stays well-formed */
    free(p);
    free(b.p);
}

/* Out of memory at each allocation in turn, then at it and everything after it: the typed error, nothing lost (the
 * sanitizer build counts leaks). */
static void every_allocation_may_fail(void **state) {
    (void)state;
    bytes b = {0};
    build_base(&b);
    for (int sticky = 0; sticky < 2; sticky++) {
        int failures = 0;
        for (int64_t at = 0;; at++) {
            realm_gguf *g = (realm_gguf *)&b;
            realm_error err = {0};
            realm_alloc_inject_failure(at, sticky);
            realm_status s = realm_gguf_open_memory(&g, b.p, b.n, &err);
            int64_t used = realm_alloc_count();
            realm_alloc_inject_failure(-1, false);
            if (s == REALM_OK) {
                assert_true(used <= at);
                realm_gguf_close(g);
                break;
            }
            failures++;
            assert_int_equal(s, REALM_E_NOMEM);
            assert_null(g);
            assert_non_null(strstr(err.text, "memory"));
        }
        assert_true(failures >= 7); /* handle, entries, tensors, offsets, two indexes, the order of the tensors */
    }
    free(b.p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_known_attack_is_refused_for_its_reason),
        cmocka_unit_test(counts_past_the_limits_are_refused),
        cmocka_unit_test(the_base_of_the_mutations_opens),
        cmocka_unit_test(cut_at_every_byte_it_is_refused),
        cmocka_unit_test(any_field_may_be_extreme),
        cmocka_unit_test(random_flips_never_hurt),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
