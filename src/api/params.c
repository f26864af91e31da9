/* Fields of a generation request: every one that the API documents is known by name, checked for type and range, and
 * then either honoured, accepted as a hint (where the API says that it is one), or refused by name. A field that nobody
 * documents is refused too: silence would let a client believe in it.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "api/internal.h"
#include "base/alloc.h"

/* How a field is treated; `both`, chat or completion. */
typedef enum where { BOTH, CHAT, TEXT } where;
typedef enum how {
    READ,     /* looked at by a function below */
    HINT_STR, /* a hint: a string */
    HINT_BOOL,
    HINT_META,   /* object of at most 16 strings */
    HINT_TIER,   /* service_tier */
    HINT_EFFORT, /* reasoning_effort */
    HINT_VERBOSITY,
    HINT_RETENTION,
    HINT_PREDICTION,
    NEUTRAL, /* a sampler that is not there: its neutral number alone is accepted */
    SIDE,    /* a number that matters only beside one of NEUTRAL */
    REFUSED  /* not there: anything but null is refused by name */
} how;

static const struct field {
    const char *name;
    where in;
    how treat;
    double neutral;
} fields[] = {
    {"model", BOTH, READ, 0},
    {"messages", CHAT, READ, 0},
    {"prompt", TEXT, READ, 0},
    {"stream", BOTH, READ, 0},
    {"stream_options", BOTH, READ, 0},
    {"n", BOTH, READ, 0},
    {"max_tokens", BOTH, READ, 0},
    {"max_completion_tokens", CHAT, READ, 0},
    {"temperature", BOTH, READ, 0},
    {"top_p", BOTH, READ, 0},
    {"top_k", BOTH, READ, 0},
    {"min_p", BOTH, READ, 0},
    {"frequency_penalty", BOTH, READ, 0},
    {"presence_penalty", BOTH, READ, 0},
    {"repeat_penalty", BOTH, READ, 0},
    {"repeat_last_n", BOTH, READ, 0},
    {"stop", BOTH, READ, 0},
    {"seed", BOTH, READ, 0},
    {"logit_bias", BOTH, READ, 0},
    {"logprobs", BOTH, READ, 0},
    {"top_logprobs", CHAT, READ, 0},
    {"echo", TEXT, READ, 0},
    {"best_of", TEXT, READ, 0},
    {"suffix", TEXT, READ, 0},
    {"parse_special", BOTH, READ, 0},
    {"ignore_eos", BOTH, READ, 0},
    {"response_format", CHAT, READ, 0},
    {"modalities", CHAT, READ, 0},
    {"tool_choice", CHAT, READ, 0},
    {"parallel_tool_calls", CHAT, HINT_BOOL, 0}, /* without tools it says nothing */
    {"user", BOTH, HINT_STR, 0},
    {"safety_identifier", CHAT, HINT_STR, 0},
    {"prompt_cache_key", CHAT, HINT_STR, 0},
    {"prompt_cache_retention", CHAT, HINT_RETENTION, 0},
    {"metadata", CHAT, HINT_META, 0},
    {"store", CHAT, HINT_BOOL, 0},
    {"service_tier", CHAT, HINT_TIER, 0},
    {"reasoning_effort", CHAT, HINT_EFFORT, 0},
    {"verbosity", CHAT, HINT_VERBOSITY, 0},
    {"prediction", CHAT, HINT_PREDICTION, 0},
    {"typical_p", BOTH, NEUTRAL, 1},
    {"dry_multiplier", BOTH, NEUTRAL, 0},
    {"dry_base", BOTH, SIDE, 0},
    {"dry_allowed_length", BOTH, SIDE, 0},
    {"dry_penalty_last_n", BOTH, SIDE, 0},
    {"xtc_probability", BOTH, NEUTRAL, 0},
    {"xtc_threshold", BOTH, SIDE, 0},
    {"mirostat", BOTH, NEUTRAL, 0},
    {"mirostat_tau", BOTH, SIDE, 0},
    {"mirostat_eta", BOTH, SIDE, 0},
    {"dry_sequence_breakers", BOTH, REFUSED, 0},
    {"grammar", BOTH, REFUSED, 0},
    {"tools", CHAT, REFUSED, 0},
    {"functions", CHAT, REFUSED, 0},
    {"function_call", CHAT, REFUSED, 0},
    {"audio", CHAT, REFUSED, 0},
    {"web_search_options", CHAT, REFUSED, 0},
};

/* Every reader: false with *e filled. CHECK runs an accessor of data.h. */
#define CHECK(call, value)                                               \
    do {                                                                 \
        realm_error err_ = {0};                                          \
        if ((call) != REALM_OK) return api_error_value(e, value, &err_); \
    } while (0)

static bool opt_bool(const realm_json *root, const char *name, bool *out, api_error *e) {
    realm_json v;
    if (realm_json_get_set(root, name, &v)) CHECK(realm_json_bool(&v, out, &err_), &v);
    return true;
}

static bool opt_int(const realm_json *root, const char *name, int64_t least, int64_t most, int64_t *out, bool *set,
                    api_error *e) {
    realm_json v;
    bool there = realm_json_get_set(root, name, &v);
    if (set) *set = there;
    if (there) CHECK(realm_json_int(&v, least, most, out, &err_), &v);
    return true;
}

static bool opt_float(const realm_json *root, const char *name, double least, double most, float *out, api_error *e) {
    realm_json v;
    double d;
    if (!realm_json_get_set(root, name, &v)) return true;
    CHECK(realm_json_real(&v, least, most, &d, &err_), &v);
    *out = (float)d;
    return true;
}

static bool one_of(const realm_json *v, const char *const *names, size_t n, api_error *e) {
    size_t which;
    CHECK(realm_json_enum(v, names, n, &which, &err_), v);
    return true;
}
#define ONE_OF(v, ...) \
    one_of(v, (const char *const[]){__VA_ARGS__}, sizeof((const char *[]){__VA_ARGS__}) / sizeof(char *), e)

static bool check_metadata(const realm_json *v, api_error *e) {
    CHECK(realm_json_expect(v, REALM_JSON_OBJECT, &err_), v);
    if (realm_json_len(v) > 16) return api_error_field(e, v, "invalid_value", "at most 16 pairs are accepted");
    realm_json_iter it = {0};
    realm_json item;
    while (realm_json_next(v, &it, &item)) {
        const char *s;
        size_t len = 0;
        CHECK(realm_json_str(&item, &s, &len, &err_), &item);
        if (strlen(item.key) > 64 || len > 512)
            return api_error_field(e, &item, "invalid_value", "keys have at most 64 bytes, values 512");
    }
    return true;
}

/* What is said about a field that is not read by a function of its own. */
static bool check_other(const struct field *f, const realm_json *v, api_error *e) {
    bool b;
    const char *s;
    double d = 0;
    switch (f->treat) {
    case READ: return true;
    case HINT_BOOL: CHECK(realm_json_bool(v, &b, &err_), v); return true;
    case HINT_STR: CHECK(realm_json_str(v, &s, NULL, &err_), v); return true;
    case HINT_META: return check_metadata(v, e);
    case HINT_TIER: return ONE_OF(v, "auto", "default", "flex", "scale", "priority");
    case HINT_EFFORT: return ONE_OF(v, "none", "minimal", "low", "medium", "high", "xhigh");
    case HINT_VERBOSITY: return ONE_OF(v, "low", "medium", "high");
    case HINT_RETENTION: return ONE_OF(v, "in-memory", "in_memory", "24h");
    case HINT_PREDICTION: CHECK(realm_json_expect(v, REALM_JSON_OBJECT, &err_), v); return true;
    case SIDE: CHECK(realm_json_real(v, -1e9, 1e9, &d, &err_), v); return true;
    case NEUTRAL:
        CHECK(realm_json_real(v, -1e9, 1e9, &d, &err_), v);
        if (d == f->neutral) return true;
        return api_error_field(e, v, "unsupported_parameter", "this sampler is not supported; leave it out or send %g",
                               f->neutral);
    case REFUSED: break;
    }
    return api_error_field(e, v, "unsupported_parameter", "is not supported by this server");
}

static bool check_fields(const gen_request *q, api_error *e) {
    realm_json_iter it = {0};
    realm_json v;
    while (realm_json_next(&q->root, &it, &v)) {
        const struct field *f = NULL;
        for (size_t i = 0; i < REALM_ARRAY_LEN(fields) && !f; i++)
            if (strcmp(fields[i].name, v.key) == 0 && (fields[i].in == BOTH || fields[i].in == (q->chat ? CHAT : TEXT)))
                f = &fields[i];
        if (!f) return api_error_field(e, &v, "unknown_parameter", "unknown field");
        if (realm_json_kind_of(&v) == REALM_JSON_NULL) continue; /* null is "not given" */
        if (!check_other(f, &v, e)) return false;
    }
    return true;
}

static bool read_max_tokens(gen_request *q, api_error *e) {
    int64_t old = 0, now = 0;
    bool has_old, has_new;
    if (!opt_int(&q->root, "max_tokens", 1, UINT32_MAX, &old, &has_old, e) ||
        !opt_int(&q->root, "max_completion_tokens", 1, UINT32_MAX, &now, &has_new, e))
        return false;
    if (has_old && has_new && old != now)
        return api_error_set(e, 400, "invalid_value", "max_tokens",
                             "max_tokens and max_completion_tokens differ; send one of them");
    q->gen.max_tokens = (uint32_t)(has_new ? now : has_old ? old : q->chat ? 0 : 16);
    return true;
}

static bool read_sampling(gen_request *q, api_error *e) {
    realm_sampling *s = &q->gen.sampling;
    const realm_json *r = &q->root;
    int64_t top_k = 0, last_n = 0, seed = 0;
    realm_sampling_init(s);
    if (!opt_float(r, "temperature", 0, 2, &s->temperature, e) || !opt_float(r, "top_p", 0, 1, &s->top_p, e) ||
        !opt_float(r, "min_p", 0, 1, &s->min_p, e) ||
        !opt_float(r, "frequency_penalty", -2, 2, &s->frequency_penalty, e) ||
        !opt_float(r, "presence_penalty", -2, 2, &s->presence_penalty, e) ||
        !opt_float(r, "repeat_penalty", 0.01, 100, &s->repeat_penalty, e) ||
        !opt_int(r, "top_k", 0, INT32_MAX, &top_k, NULL, e) ||
        !opt_int(r, "repeat_last_n", 0, INT32_MAX, &last_n, NULL, e) ||
        !opt_int(r, "seed", INT64_MIN, INT64_MAX, &seed, &q->has_seed, e))
        return false;
    if (s->top_p <= 0) s->top_p = 1e-6f; /* the API allows 0: the best token alone */
    s->top_k = (uint32_t)top_k;
    s->penalty_last_n = (uint32_t)last_n;
    q->seed = q->has_seed ? (uint64_t)seed : api_random_u64();
    return true;
}

static bool read_stop(gen_request *q, api_error *e) {
    realm_json v, item;
    if (!realm_json_get_set(&q->root, "stop", &v)) return true;
    bool list = realm_json_kind_of(&v) == REALM_JSON_ARRAY;
    size_t n = list ? realm_json_len(&v) : 1;
    if (n > REALM_ARRAY_LEN(q->stop)) return api_error_field(e, &v, "invalid_value", "at most 4 strings are accepted");
    for (size_t i = 0; i < n; i++) {
        const realm_json *at = &v;
        if (list) {
            (void)realm_json_at(&v, i, &item);
            at = &item;
        }
        const char *s = "";
        size_t len = 0;
        CHECK(realm_json_str(at, &s, &len, &err_), at);
        if (len == 0 || len > REALM_STOP_BYTES_MAX)
            return api_error_field(e, at, "invalid_value", "must have 1 to %u bytes", REALM_STOP_BYTES_MAX);
        q->stop[i] = (realm_gguf_str){s, len};
    }
    q->n_stop = n;
    return true;
}

static bool read_logit_bias(gen_request *q, api_error *e) {
    realm_json v, item;
    if (!realm_json_get_set(&q->root, "logit_bias", &v)) return true;
    CHECK(realm_json_expect(&v, REALM_JSON_OBJECT, &err_), &v);
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
        CHECK(realm_json_real(&item, -100, 100, &bias, &err_), &item);
        q->bias[i++] = (realm_logit_bias){(realm_token)id, (float)bias};
    }
    q->gen.sampling.bias = q->bias;
    q->gen.sampling.n_bias = n;
    return true;
}

static bool read_logprobs(gen_request *q, api_error *e) {
    int64_t top = 0;
    bool set;
    if (q->chat) {
        if (!opt_bool(&q->root, "logprobs", &q->logprobs, e)) return false;
        if (!opt_int(&q->root, "top_logprobs", 0, REALM_TOP_LOGPROBS_MAX, &top, &set, e)) return false;
        if (set && !q->logprobs)
            return api_error_set(e, 400, "invalid_value", "top_logprobs", "top_logprobs needs logprobs to be true");
    } else {
        if (!opt_int(&q->root, "logprobs", 0, 5, &top, &q->logprobs, e)) return false;
    }
    q->top_logprobs = (uint32_t)top;
    q->gen.logprobs = q->logprobs;
    q->gen.top_logprobs = (uint32_t)top;
    q->gen.prompt_logprobs = q->logprobs && q->echo;
    return true;
}

static bool read_stream(gen_request *q, api_error *e) {
    realm_json v;
    if (!opt_bool(&q->root, "stream", &q->stream, e)) return false;
    if (!realm_json_get_set(&q->root, "stream_options", &v)) return true;
    if (!q->stream) return api_error_field(e, &v, "invalid_value", "is for requests with \"stream\": true");
    static const char *const known[] = {"include_usage", "include_obfuscation"};
    realm_json unknown = v;
    CHECK(realm_json_only(&v, known, 2, &unknown, &err_), &unknown);
    bool ignored = false; /* a hint: padding against guessing from packet sizes, which we do not send */
    return opt_bool(&v, "include_usage", &q->include_usage, e) && opt_bool(&v, "include_obfuscation", &ignored, e);
}

static bool read_counts(gen_request *q, api_error *e) {
    int64_t n = 1, best;
    if (!opt_int(&q->root, "n", 1, 128, &n, NULL, e)) return false;
    best = n;
    if (!opt_int(&q->root, "best_of", 1, 128, &best, NULL, e)) return false;
    if (best != n)
        return api_error_set(e, 400, "unsupported_parameter", "best_of",
                             "best_of: only the value of n is supported (it is %lld)", (long long)n);
    q->n = (uint32_t)n;
    return true;
}

/* Fields that name what this server cannot do yet, in the one value that asks for nothing. */
static bool read_plain(const gen_request *q, api_error *e) {
    realm_json v, item;
    const char *s = "";
    size_t len = 0;
    if (realm_json_get_set(&q->root, "suffix", &v)) {
        CHECK(realm_json_str(&v, &s, &len, &err_), &v);
        if (len) return api_error_field(e, &v, "unsupported_parameter", "inserting before a suffix is not supported");
    }
    if (realm_json_get_set(&q->root, "tool_choice", &v) && !realm_json_is(&v, "none"))
        return api_error_field(e, &v, "unsupported_parameter", "tools are not supported; only \"none\" is accepted");
    if (realm_json_get_set(&q->root, "modalities", &v)) {
        CHECK(realm_json_expect(&v, REALM_JSON_ARRAY, &err_), &v);
        for (size_t i = 0; realm_json_at(&v, i, &item); i++)
            if (!realm_json_is(&item, "text"))
                return api_error_field(e, &item, "unsupported_parameter", "only \"text\" is supported");
    }
    return true;
}

/* {"name","schema","description","strict"}: the object into *v, on which the schema hangs. */
static bool read_json_schema(const realm_json *format, realm_json *v, realm_json *schema, api_error *e) {
    static const char *const known[] = {"name", "schema", "description", "strict"};
    realm_json name, unknown;
    (void)realm_json_get(format, "json_schema", v);
    CHECK(realm_json_expect(v, REALM_JSON_OBJECT, &err_), v);
    unknown = *v;
    CHECK(realm_json_only(v, known, 4, &unknown, &err_), &unknown);
    const char *s = "";
    size_t len = 0;
    bool strict = false; /* a schema is always kept to */
    (void)realm_json_get(v, "name", &name);
    CHECK(realm_json_str(&name, &s, &len, &err_), &name);
    if (len == 0 || len > 64) return api_error_field(e, &name, "invalid_value", "must have 1 to 64 bytes");
    if (realm_json_get_set(v, "description", &name)) CHECK(realm_json_str(&name, &s, &len, &err_), &name);
    if (!opt_bool(v, "strict", &strict, e)) return false;
    (void)realm_json_get(v, "schema", schema);
    CHECK(realm_json_expect(schema, REALM_JSON_OBJECT, &err_), schema);
    return true;
}

static bool read_format(gen_request *q, api_error *e) {
    realm_json *v = &q->format, item;
    if (!realm_json_get_set(&q->root, "response_format", v)) return true;
    CHECK(realm_json_expect(v, REALM_JSON_OBJECT, &err_), v);
    (void)realm_json_get(v, "type", &item);
    if (!ONE_OF(&item, "text", "json_object", "json_schema")) return false;
    const bool schema = realm_json_is(&item, "json_schema"), text = realm_json_is(&item, "text");
    static const char *const known[] = {"type", "json_schema"};
    realm_json unknown = *v;
    CHECK(realm_json_only(v, known, schema ? 2 : 1, &unknown, &err_), &unknown);
    q->constrained = !text;
    q->has_schema = schema;
    return !schema || read_json_schema(v, &q->json_schema, &q->schema, e);
}

/* A grammar that does not compile is the client's error: the answer is never given without it. */
bool gen_request_constrain(gen_request *q, realm_tenant *t, api_error *e) {
    static const char any_object[] = "{\"type\":\"object\"}";
    realm_buf grammar;
    realm_buf_init(&grammar, REALM_GRAMMAR_BYTES_MAX);
    if (!q->has_schema) {
        realm_buf_puts(&grammar, any_object);
    } else if (realm_json_dump(&q->schema, &grammar) != REALM_OK) {
        const bool large = realm_buf_status(&grammar) == REALM_E_LIMIT;
        realm_buf_release(&grammar);
        if (!large) return api_error_status(e, REALM_E_NOMEM, NULL);
        return api_error_field(e, &q->schema, "invalid_value", "at most %u bytes are taken", REALM_GRAMMAR_BYTES_MAX);
    }
    realm_error err = {0};
    realm_status s = realm_buf_status(&grammar);
    if (s == REALM_OK)
        s = realm_tenant_grammar(t, q->model, REALM_GRAMMAR_KIND_JSON_SCHEMA, grammar.data, grammar.len, &q->grammar,
                                 &err);
    realm_buf_release(&grammar);
    q->gen.grammar = q->grammar;
    switch (s) {
    case REALM_OK: return true;
    case REALM_E_FORMAT:
    case REALM_E_LIMIT:
    case REALM_E_TIMEOUT:
        return api_error_field(e, q->has_schema ? &q->schema : &q->format, "invalid_value", "%s", err.text);
    default: return api_error_status(e, s, &err);
    }
}

void gen_request_init(gen_request *q, bool chat) {
    *q = (gen_request){.chat = chat, .n = 1};
    realm_buf_init(&q->messages, REALM_RUN_INPUT_MAX);
}

void gen_request_release(gen_request *q) {
    realm_json_doc_close(q->doc);
    realm_buf_release(&q->messages);
    realm_grammar_state_close(q->grammar);
    realm_free(q->bias);
    realm_free(q->prompts);
    realm_free(q->tokens);
    *q = (gen_request){0};
}

bool gen_request_read(gen_request *q, realm_runtime *rt, const char *body, size_t len, api_error *e) {
    realm_error err = {0};
    realm_status s = realm_json_parse(&q->doc, body, len, NULL, &err);
    if (s != REALM_OK) {
        realm_error_prefix(&err, "the body is not acceptable JSON");
        return s == REALM_E_NOMEM ? api_error_status(e, s, &err)
                                  : api_error_set(e, 400, "invalid_json", NULL, "%s", err.text);
    }
    q->root = realm_json_root(q->doc);
    realm_json v;
    if (realm_json_kind_of(&q->root) != REALM_JSON_OBJECT)
        return api_error_set(e, 400, "invalid_type", NULL, "the body must be a JSON object, is %s",
                             realm_json_kind_name(realm_json_kind_of(&q->root)));
    (void)realm_json_get_set(&q->root, "model", &v);
    CHECK(realm_json_cstr(&v, &q->model, &err_), &v);
    q->engine = realm_runtime_engine(rt, q->model);
    if (!q->engine) return api_error_model(e, q->model, strlen(q->model));
    if (!check_fields(q, e) || !read_max_tokens(q, e) || !read_sampling(q, e) || !read_stop(q, e) ||
        !read_logit_bias(q, e) || !opt_bool(&q->root, "echo", &q->echo, e) || !read_logprobs(q, e) ||
        !read_stream(q, e) || !read_counts(q, e) || !read_plain(q, e) ||
        !opt_bool(&q->root, "parse_special", &q->parse_special, e) ||
        !opt_bool(&q->root, "ignore_eos", &q->gen.ignore_end, e))
        return false;
    q->gen.stop = q->stop;
    q->gen.n_stop = q->n_stop;
    if (!(q->chat ? gen_read_messages(q, e) : gen_read_prompts(q, e))) return false;
    if (q->n * q->n_prompts > API_CHOICES_MAX)
        return api_error_set(e, 400, "invalid_value", "n",
                             "n times the number of prompts is %zu, at most %u are accepted", q->n * q->n_prompts,
                             API_CHOICES_MAX);
    return read_format(q, e);
}
