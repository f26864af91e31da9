/* How the next token is drawn: the sampler fields of a generation request, checked, into the engine's.
 *
 * The OpenAI API's own, and those that local servers take besides, under the names, ranges and defaults that
 * llama.cpp's server documents (tools/server/README.md there), but for two things: nothing samples differently unless
 * it was asked for, so temperature 1 alone is the default, and temperature comes before the stages that cut, not behind
 * them. `samplers` gives any other order.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "api/internal.h"
#include "base/alloc.h"

#define BREAKERS_MAX 32u /* strings */
#define BREAKER_BYTES_MAX 64u
#define LEAST_MASS 1e-6f /* the APIs allow a nucleus of 0: the best token alone */

/* A look-back as the reference counts it: -1 everything, 0 nothing, else so many tokens. False in *any for nothing. */
static bool read_look_back(const realm_json *root, const char *name, int64_t usual, uint32_t *out, bool *any,
                           api_error *e) {
    int64_t n = usual;
    if (!api_opt_int(root, name, -1, INT32_MAX, &n, NULL, e)) return false;
    *any = n != 0;
    *out = n < 0 ? 0 : (uint32_t)n;
    return true;
}

static bool read_penalties(const realm_json *r, realm_sampling *s, api_error *e) {
    bool any = true;
    if (!api_opt_float(r, "frequency_penalty", -2, 2, &s->frequency_penalty, e) ||
        !api_opt_float(r, "presence_penalty", -2, 2, &s->presence_penalty, e) ||
        !api_opt_float(r, "repeat_penalty", 0.01, 100, &s->repeat_penalty, e) ||
        !read_look_back(r, "repeat_last_n", -1, &s->penalty_last_n, &any, e))
        return false;
    if (any) return true;
    s->frequency_penalty = s->presence_penalty = 0;
    s->repeat_penalty = 1;
    return true;
}

static bool read_cuts(const realm_json *r, realm_sampling *s, api_error *e) {
    int64_t top_k = 0;
    if (!api_opt_float(r, "top_p", 0, 1, &s->top_p, e) || !api_opt_float(r, "min_p", 0, 1, &s->min_p, e) ||
        !api_opt_float(r, "typical_p", 0, 1, &s->typical_p, e) ||
        !api_opt_float(r, "xtc_probability", 0, 1, &s->xtc_probability, e) ||
        !api_opt_float(r, "xtc_threshold", 0, 1, &s->xtc_threshold, e) ||
        !api_opt_int(r, "top_k", 0, INT32_MAX, &top_k, NULL, e))
        return false;
    s->top_k = (uint32_t)top_k;
    s->top_p = fmaxf(s->top_p, LEAST_MASS);
    s->typical_p = fmaxf(s->typical_p, LEAST_MASS);
    return true;
}

/* Version 2 alone: what takes its place in version 1 has no definition that is worth a second stage. */
static bool read_mirostat(const realm_json *r, realm_sampling *s, api_error *e) {
    int64_t version = 0;
    float tau = 5;
    realm_json v;
    if (!api_opt_int(r, "mirostat", 0, 2, &version, NULL, e) || !api_opt_float(r, "mirostat_tau", 0, 1000, &tau, e) ||
        !api_opt_float(r, "mirostat_eta", 0, 1000, &s->mirostat_eta, e))
        return false;
    if (version == 0) return true;
    if (version == 1) {
        (void)realm_json_get(r, "mirostat", &v);
        return api_error_field(e, &v, "unsupported_parameter", "version 1 is not supported; send 2, or 0 for none");
    }
    if (!(tau > 0)) {
        (void)realm_json_get(r, "mirostat_tau", &v);
        return api_error_field(e, &v, "invalid_value", "must be above 0");
    }
    s->mirostat_tau = tau;
    return true;
}

/* Tokens whose text holds one of the strings. */
static bool find_breakers(gen_request *q, const realm_gguf_str *strings, size_t n_strings, api_error *e) {
    const realm_tokenizer *t = realm_engine_tokenizer(q->engine);
    const size_t n_vocab = realm_tokenizer_vocab_size(t);
    size_t cap = 0, n = 0;
    for (size_t id = 0; id < n_vocab; id++) {
        const char *piece = "";
        size_t len = 0;
        bool breaks = false;
        if (realm_tokenizer_piece(t, (realm_token)id, false, &piece, &len) != REALM_OK) continue;
        for (size_t i = 0; i < n_strings && !breaks; i++)
            breaks = memmem(piece, len, strings[i].data, strings[i].len) != NULL;
        if (!breaks) continue;
        if (n == cap) {
            cap = cap ? 2 * cap : 256;
            realm_token *more = realm_realloc_array(q->breakers, cap, sizeof *more);
            if (!more) return api_error_status(e, REALM_E_NOMEM, NULL);
            q->breakers = more;
        }
        q->breakers[n++] = (realm_token)id;
    }
    q->gen.sampling.dry_breakers = q->breakers;
    q->gen.sampling.n_dry_breakers = n;
    return true;
}

static bool read_breakers(gen_request *q, api_error *e) {
    realm_gguf_str strings[BREAKERS_MAX] = {{"\n", 1}, {":", 1}, {"\"", 1}, {"*", 1}};
    size_t n = 4;
    realm_json v, item;
    if (realm_json_get_set(&q->root, "dry_sequence_breakers", &v)) {
        API_CHECK(realm_json_expect(&v, REALM_JSON_ARRAY, &err_), &v);
        n = realm_json_len(&v);
        if (n > BREAKERS_MAX)
            return api_error_field(e, &v, "invalid_value", "at most %u strings are accepted", BREAKERS_MAX);
        for (size_t i = 0; i < n; i++) {
            (void)realm_json_at(&v, i, &item);
            API_CHECK(realm_json_str(&item, &strings[i].data, &strings[i].len, &err_), &item);
            if (strings[i].len == 0 || strings[i].len > BREAKER_BYTES_MAX)
                return api_error_field(e, &item, "invalid_value", "must have 1 to %u bytes", BREAKER_BYTES_MAX);
        }
    }
    /* It is a walk over the vocabulary: for those who have a use for it. */
    return q->gen.sampling.dry_multiplier == 0 || find_breakers(q, strings, n, e);
}

static bool read_dry(gen_request *q, api_error *e) {
    const realm_json *r = &q->root;
    realm_sampling *s = &q->gen.sampling;
    int64_t allowed = s->dry_allowed;
    bool any = true;
    if (!api_opt_float(r, "dry_multiplier", 0, 1000, &s->dry_multiplier, e) ||
        !api_opt_float(r, "dry_base", 1, 1000, &s->dry_base, e) ||
        !api_opt_int(r, "dry_allowed_length", 1, INT32_MAX, &allowed, NULL, e) ||
        !read_look_back(r, "dry_penalty_last_n", 64, &s->dry_last_n, &any, e))
        return false;
    s->dry_allowed = (uint32_t)allowed;
    if (!any) s->dry_multiplier = 0;
    return read_breakers(q, e);
}

static bool read_order(const realm_json *r, realm_sampling *s, api_error *e) {
    static const char *const names[] = {"penalties", "dry", "temperature", "top_k", "typ_p", "top_p", "min_p", "xtc"};
    static const realm_stage_kind kinds[] = {
        REALM_STAGE_KIND_PENALTIES, REALM_STAGE_KIND_DRY,   REALM_STAGE_KIND_TEMPERATURE, REALM_STAGE_KIND_TOP_K,
        REALM_STAGE_KIND_TYPICAL,   REALM_STAGE_KIND_TOP_P, REALM_STAGE_KIND_MIN_P,       REALM_STAGE_KIND_XTC};
    realm_json v, item;
    if (!realm_json_get_set(r, "samplers", &v)) return true;
    API_CHECK(realm_json_expect(&v, REALM_JSON_ARRAY, &err_), &v);
    const size_t n = realm_json_len(&v);
    if (n == 0 || n > REALM_SAMPLING_ORDER_MAX)
        return api_error_field(e, &v, "invalid_value", "must have 1 to %u names", REALM_SAMPLING_ORDER_MAX);
    for (size_t i = 0; i < n; i++) {
        size_t which = 0;
        (void)realm_json_at(&v, i, &item);
        API_CHECK(realm_json_enum(&item, names, REALM_ARRAY_LEN(names), &which, &err_), &item);
        s->order[i] = kinds[which];
    }
    s->n_order = (uint32_t)n;
    return true;
}

static bool read_logit_bias(gen_request *q, api_error *e) {
    realm_json v, item;
    if (!realm_json_get_set(&q->root, "logit_bias", &v)) return true;
    API_CHECK(realm_json_expect(&v, REALM_JSON_OBJECT, &err_), &v);
    size_t n = realm_json_len(&v), n_vocab = realm_tokenizer_vocab_size(realm_engine_tokenizer(q->engine)), i = 0;
    if (n == 0) return true;
    if (n > REALM_LOGIT_BIAS_MAX)
        return api_error_field(e, &v, "invalid_value", "at most %u tokens are accepted", REALM_LOGIT_BIAS_MAX);
    q->bias = realm_calloc(n, sizeof *q->bias);
    if (!q->bias) return api_error_status(e, REALM_E_NOMEM, NULL);
    realm_json_iter it = {0};
    while (realm_json_next(&v, &it, &item)) {
        double bias;
        size_t digits = strspn(item.key, "0123456789"),
               id = digits && digits < 10 ? strtoul(item.key, NULL, 10) : n_vocab;
        if (item.key[digits] || (digits > 1 && item.key[0] == '0') || id >= n_vocab)
            return api_error_field(e, &item, "invalid_value", "is not a token id; the vocabulary has %zu", n_vocab);
        API_CHECK(realm_json_real(&item, -100, 100, &bias, &err_), &item);
        q->bias[i++] = (realm_logit_bias){(realm_token)id, (float)bias};
    }
    q->gen.sampling.bias = q->bias;
    q->gen.sampling.n_bias = n;
    return true;
}

bool gen_read_sampling(gen_request *q, api_error *e) {
    realm_sampling *s = &q->gen.sampling;
    const realm_json *r = &q->root;
    int64_t seed = 0;
    realm_sampling_init(s);
    if (!api_opt_float(r, "temperature", 0, 2, &s->temperature, e) || !read_penalties(r, s, e) || !read_cuts(r, s, e) ||
        !read_mirostat(r, s, e) || !read_dry(q, e) || !read_order(r, s, e) || !read_logit_bias(q, e) ||
        !api_opt_int(r, "seed", INT64_MIN, INT64_MAX, &seed, &q->has_seed, e))
        return false;
    q->seed = q->has_seed ? (uint64_t)seed : api_random_u64();
    return true;
}
