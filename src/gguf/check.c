/* gguf/check.c - the conventions of metadata that hold for every architecture (GGUF specification, "Standardized
 * key-value pairs"): numbers that are counts are positive integers, other numbers are finite, the arrays of a tokenizer
 * agree in length, token ids lie inside the vocabulary.
 *
 * What a particular architecture needs beyond this is checked where it is built (src/model, src/tokenizer); this is
 * what `realm info` and a catalogue can say of any file.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "gguf/internal.h"

#define KEY_MAX 160

/* Keys under "<architecture>." that count something; `per_layer` ones may be an array with one number per layer, in
 * which zero is a layer that has none. */
static const struct count_key {
    const char *name;
    bool per_layer;
} count_keys[] = {
    {"block_count", false},
    {"context_length", false},
    {"embedding_length", false},
    {"vocab_size", false},
    {"feed_forward_length", true},
    {"attention.head_count", true},
    {"attention.head_count_kv", true},
    {"attention.key_length", false},
    {"attention.value_length", false},
    {"rope.dimension_count", false},
};

/* Keys under "<architecture>." whose float must be above zero. */
static const char *const positive_keys[] = {"attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon",
                                            "rope.freq_base", "rope.scaling.factor"};

static const char *const id_keys[] = {"tokenizer.ggml.bos_token_id",     "tokenizer.ggml.eos_token_id",
                                      "tokenizer.ggml.eot_token_id",     "tokenizer.ggml.eom_token_id",
                                      "tokenizer.ggml.unknown_token_id", "tokenizer.ggml.seperator_token_id",
                                      "tokenizer.ggml.padding_token_id", "tokenizer.ggml.separator_token_id",
                                      "tokenizer.ggml.cls_token_id",     "tokenizer.ggml.mask_token_id"};

static realm_status check_per_layer(const realm_gguf_value *v, const char *key, uint32_t n_layers, realm_error *err) {
    realm_gguf_value_type e = realm_gguf_array_type(v);
    if (realm_gguf_scalar_bytes(e) == 0 || e == REALM_GGUF_BOOL || e == REALM_GGUF_F32 || e == REALM_GGUF_F64)
        return realm_error_set(err, REALM_E_FORMAT, "key %s is an array of %s, not of integers", key,
                               realm_gguf_type_name(e));
    if (realm_gguf_array_len(v) < n_layers)
        return realm_error_set(err, REALM_E_FORMAT, "key %s has %llu numbers for %u layers", key,
                               (unsigned long long)realm_gguf_array_len(v), n_layers);
    for (uint64_t i = 0; i < realm_gguf_array_len(v); i++) {
        int64_t n = realm_gguf_array_i64(v, i);
        if (n < 0 || n > UINT32_MAX)
            return realm_error_set(err, REALM_E_FORMAT, "key %s holds %lld at position %llu", key, (long long)n,
                                   (unsigned long long)i);
    }
    return REALM_OK;
}

static realm_status check_counts(const realm_gguf *g, const char *arch, realm_error *err) {
    uint32_t n_layers = 0;
    for (size_t i = 0; i < REALM_ARRAY_LEN(count_keys); i++) {
        char key[KEY_MAX];
        (void)snprintf(key, sizeof key, "%s.%s", arch, count_keys[i].name);
        const realm_gguf_value *v = realm_gguf_find(g, key);
        if (!v) continue;
        realm_status s;
        if (count_keys[i].per_layer && v->type == REALM_GGUF_ARRAY) {
            s = check_per_layer(v, key, n_layers, err);
        } else {
            uint32_t n = 0;
            s = realm_gguf_get_u32(g, key, true, &n, err);
            if (s == REALM_OK && n == 0) s = realm_error_set(err, REALM_E_FORMAT, "key %s is 0", key);
            if (i == 0) n_layers = n;
        }
        if (s != REALM_OK) return s;
    }
    return REALM_OK;
}

/* Every float under "<arch>." is finite; those of positive_keys are floats above zero. */
static realm_status check_floats(const realm_gguf *g, const char *arch, realm_error *err) {
    char key[KEY_MAX];
    for (size_t i = 0; i < REALM_ARRAY_LEN(positive_keys); i++) {
        float f = 1.0f;
        (void)snprintf(key, sizeof key, "%s.%s", arch, positive_keys[i]);
        realm_status s = realm_gguf_get_f32(g, key, false, &f, err);
        if (s != REALM_OK) return s;
        if (!(f > 0.0f)) return realm_error_set(err, REALM_E_FORMAT, "key %s is %g, not above zero", key, (double)f);
    }
    size_t len = strlen(arch);
    for (size_t i = 0; i < g->n_entries; i++) {
        const realm_gguf_entry *e = &g->entries[i];
        double d = 0;
        float f;
        if (e->key.len <= len || memcmp(e->key.data, arch, len) != 0 || e->key.data[len] != '.') continue;
        if (e->value.type == REALM_GGUF_F64) memcpy(&d, e->value.data, sizeof d);
        if (e->value.type == REALM_GGUF_F32) {
            memcpy(&f, e->value.data, sizeof f);
            d = f;
        }
        if (!isfinite(d))
            return realm_error_set(err, REALM_E_FORMAT, "key %s is %g, not a finite number",
                                   realm_escape(key, sizeof key, e->key.data, e->key.len), d);
    }
    return REALM_OK;
}

static realm_status check_tokenizer(const realm_gguf *g, realm_error *err) {
    static const char *const beside[] = {"tokenizer.ggml.scores", "tokenizer.ggml.token_type"};
    const realm_gguf_value *tokens = realm_gguf_find(g, "tokenizer.ggml.tokens");
    if (!tokens) return REALM_OK;
    if (tokens->type != REALM_GGUF_ARRAY || tokens->element != REALM_GGUF_STRING)
        return realm_error_set(err, REALM_E_FORMAT, "key tokenizer.ggml.tokens is no array of strings");
    if (tokens->n == 0 || tokens->n > INT32_MAX)
        return realm_error_set(err, REALM_E_FORMAT, "key tokenizer.ggml.tokens has %llu tokens",
                               (unsigned long long)tokens->n);
    for (size_t i = 0; i < REALM_ARRAY_LEN(beside); i++) {
        const realm_gguf_value *v = realm_gguf_find(g, beside[i]);
        if (!v) continue;
        if (v->type != REALM_GGUF_ARRAY || realm_gguf_scalar_bytes(v->element) == 0)
            return realm_error_set(err, REALM_E_FORMAT, "key %s is no array of numbers", beside[i]);
        if (v->n != tokens->n)
            return realm_error_set(err, REALM_E_FORMAT, "key %s has %llu entries for %llu tokens", beside[i],
                                   (unsigned long long)v->n, (unsigned long long)tokens->n);
    }
    for (size_t i = 0; i < REALM_ARRAY_LEN(id_keys); i++) {
        uint32_t id = 0;
        realm_status s = realm_gguf_get_u32(g, id_keys[i], false, &id, err);
        if (s != REALM_OK) return s;
        if (id >= tokens->n)
            return realm_error_set(err, REALM_E_FORMAT, "key %s is %u, but there are %llu tokens", id_keys[i], id,
                                   (unsigned long long)tokens->n);
    }
    return REALM_OK;
}

bool realm_gguf_architecture(const realm_gguf *g, char out[REALM_GGUF_MAX_ARCHITECTURE + 1]) {
    const realm_gguf_value *v = realm_gguf_find(g, "general.architecture");
    if (!v || v->type != REALM_GGUF_STRING || v->n == 0 || v->n > REALM_GGUF_MAX_ARCHITECTURE) return false;
    for (uint64_t i = 0; i < v->n; i++) {
        unsigned char c = v->data[i];
        if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_' ||
              c == '.'))
            return false;
    }
    memcpy(out, v->data, (size_t)v->n);
    out[v->n] = '\0';
    return true;
}

realm_status realm_gguf_check_metadata(const realm_gguf *g, realm_error *err) {
    char arch[REALM_GGUF_MAX_ARCHITECTURE + 1], shown[96];
    realm_gguf_str s = {0};
    realm_status status = realm_gguf_get_str(g, "general.architecture", true, &s, err);
    if (status != REALM_OK) return status;
    if (!realm_gguf_architecture(g, arch))
        return realm_error_set(err, REALM_E_FORMAT,
                               "key general.architecture is \"%s\", not a name of 1..%u letters, digits, '-', '_', '.'",
                               realm_escape(shown, sizeof shown, s.data, s.len), REALM_GGUF_MAX_ARCHITECTURE);
    status = check_counts(g, arch, err);
    if (status == REALM_OK) status = check_floats(g, arch, err);
    if (status == REALM_OK) status = check_tokenizer(g, err);
    return status;
}
