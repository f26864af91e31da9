/* Fields of a generation request: every one that the API documents is known by name, checked for type and range, and
 * then either honoured, accepted as a hint (where the API says that it is one), or refused by name. A field that nobody
 * documents is refused too: silence would let a client believe in it.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "api/internal.h"
#include "base/alloc.h"
#include "base/utf8.h"

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
    HINT_CACHE, /* prompt_cache_options */
    HINT_PREDICTION,
    GRAMMAR, /* a language that is not read here: refused, saying what to send instead */
    REFUSED  /* not there: anything but null is refused by name */
} how;

static const struct field {
    const char *name;
    where in;
    how treat;
} fields[] = {
    {"model", BOTH, READ},
    {"messages", CHAT, READ},
    {"chat_template_kwargs", CHAT, READ},
    {"prompt", TEXT, READ},
    {"stream", BOTH, READ},
    {"stream_options", BOTH, READ},
    {"n", BOTH, READ},
    {"max_tokens", BOTH, READ},
    {"max_completion_tokens", CHAT, READ},
    {"temperature", BOTH, READ},
    {"top_p", BOTH, READ},
    {"top_k", BOTH, READ},
    {"min_p", BOTH, READ},
    {"frequency_penalty", BOTH, READ},
    {"presence_penalty", BOTH, READ},
    {"repeat_penalty", BOTH, READ},
    {"repeat_last_n", BOTH, READ},
    {"stop", BOTH, READ},
    {"seed", BOTH, READ},
    {"logit_bias", BOTH, READ},
    {"logprobs", BOTH, READ},
    {"top_logprobs", CHAT, READ},
    {"echo", TEXT, READ},
    {"best_of", TEXT, READ},
    {"suffix", TEXT, READ},
    {"parse_special", BOTH, READ},
    {"ignore_eos", BOTH, READ},
    {"response_format", CHAT, READ},
    {"modalities", CHAT, READ},
    {"tool_choice", CHAT, READ},
    {"parallel_tool_calls", CHAT, HINT_BOOL}, /* without tools it says nothing */
    {"user", BOTH, HINT_STR},
    {"safety_identifier", CHAT, HINT_STR},
    {"prompt_cache_key", CHAT, HINT_STR},
    {"prompt_cache_retention", CHAT, HINT_RETENTION},
    {"prompt_cache_options", CHAT, HINT_CACHE},
    {"metadata", CHAT, HINT_META},
    {"store", CHAT, HINT_BOOL},
    {"service_tier", CHAT, HINT_TIER},
    {"reasoning_effort", CHAT, HINT_EFFORT},
    {"verbosity", CHAT, HINT_VERBOSITY},
    {"prediction", CHAT, HINT_PREDICTION},
    {"typical_p", BOTH, READ},
    {"dry_multiplier", BOTH, READ},
    {"dry_base", BOTH, READ},
    {"dry_allowed_length", BOTH, READ},
    {"dry_penalty_last_n", BOTH, READ},
    {"dry_sequence_breakers", BOTH, READ},
    {"xtc_probability", BOTH, READ},
    {"xtc_threshold", BOTH, READ},
    {"mirostat", BOTH, READ},
    {"mirostat_tau", BOTH, READ},
    {"mirostat_eta", BOTH, READ},
    {"samplers", BOTH, READ},
    {"json_schema", BOTH, READ},
    {"grammar", BOTH, GRAMMAR},
    {"tools", CHAT, REFUSED},
    {"functions", CHAT, REFUSED},
    {"function_call", CHAT, REFUSED},
    {"audio", CHAT, REFUSED},
    {"moderation", CHAT, REFUSED},
    {"web_search_options", CHAT, REFUSED},
};

/* Every reader: false with *e filled. */

bool api_read_body(const char *body, size_t len, realm_json_doc **out, api_error *e) {
    realm_error err = {0};
    realm_status s = realm_json_parse(out, body, len, NULL, &err);
    if (s == REALM_OK) return true;
    if (s == REALM_E_NOMEM) return api_error_status(e, s, &err);
    return api_error_set(e, 400, "invalid_json", NULL, "the body is not acceptable JSON: %s", err.text);
}

bool api_opt_bool(const realm_json *root, const char *name, bool *out, api_error *e) {
    realm_json v;
    if (realm_json_get_set(root, name, &v)) API_CHECK(realm_json_bool(&v, out, &err_), &v);
    return true;
}

bool api_opt_int(const realm_json *root, const char *name, int64_t least, int64_t most, int64_t *out, bool *set,
                 api_error *e) {
    realm_json v;
    bool there = realm_json_get_set(root, name, &v);
    if (set) *set = there;
    if (there) API_CHECK(realm_json_int(&v, least, most, out, &err_), &v);
    return true;
}

bool api_opt_float(const realm_json *root, const char *name, double least, double most, float *out, api_error *e) {
    realm_json v;
    double d;
    if (!realm_json_get_set(root, name, &v)) return true;
    API_CHECK(realm_json_real(&v, least, most, &d, &err_), &v);
    *out = (float)d;
    return true;
}

bool api_one_of(const realm_json *v, const char *const *names, size_t n, api_error *e) {
    size_t which;
    API_CHECK(realm_json_enum(v, names, n, &which, &err_), v);
    return true;
}

static bool check_metadata(const realm_json *v, api_error *e) {
    API_CHECK(realm_json_expect(v, REALM_JSON_OBJECT, &err_), v);
    if (realm_json_len(v) > 16) return api_error_field(e, v, "invalid_value", "at most 16 pairs are accepted");
    realm_json_iter it = {0};
    realm_json item;
    while (realm_json_next(v, &it, &item)) {
        const char *s;
        size_t len = 0;
        API_CHECK(realm_json_str(&item, &s, &len, &err_), &item);
        if (realm_utf8_count(item.key, strlen(item.key)) > 64 || realm_utf8_count(s, len) > 512)
            return api_error_field(e, &item, "invalid_value", "keys have at most 64 characters, values 512");
    }
    return true;
}

static bool check_cache_options(const realm_json *v, api_error *e) {
    static const char *const known[] = {"mode", "ttl"};
    realm_json at = *v, item;
    API_CHECK(realm_json_only(v, known, 2, &at, &err_), &at);
    if (realm_json_get_set(v, "mode", &item) && !API_ONE_OF(&item, "implicit", "explicit")) return false;
    return !realm_json_get_set(v, "ttl", &item) || API_ONE_OF(&item, "30m");
}

static bool check_prediction(const realm_json *v, api_error *e) {
    static const char *const known[] = {"type", "content"};
    realm_json at = *v, item;
    API_CHECK(realm_json_only(v, known, 2, &at, &err_), &at);
    (void)realm_json_get(v, "type", &item);
    if (!API_ONE_OF(&item, "content")) return false;
    (void)realm_json_get(v, "content", &item);
    return api_write_content(&item, NULL, e);
}

/* What is said about a field that is not read by a function of its own. */
static bool check_other(const struct field *f, const realm_json *v, api_error *e) {
    bool b;
    const char *s;
    switch (f->treat) {
    case READ: return true;
    case HINT_BOOL: API_CHECK(realm_json_bool(v, &b, &err_), v); return true;
    case HINT_STR: API_CHECK(realm_json_str(v, &s, NULL, &err_), v); return true;
    case HINT_META: return check_metadata(v, e);
    case HINT_TIER: return API_ONE_OF(v, "auto", "default", "flex", "scale", "priority", "fast");
    case HINT_EFFORT: return API_ONE_OF(v, "none", "minimal", "low", "medium", "high", "xhigh", "max");
    case HINT_VERBOSITY: return API_ONE_OF(v, "low", "medium", "high");
    case HINT_RETENTION: return API_ONE_OF(v, "in-memory", "in_memory", "24h");
    case HINT_CACHE: return check_cache_options(v, e);
    case HINT_PREDICTION: return check_prediction(v, e);
    case GRAMMAR:
        return api_error_field(e, v, "unsupported_parameter",
                               "grammars in GBNF are not supported; send a JSON Schema as json_schema");
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
    const int64_t least = q->chat ? 1 : 0; /* 0: the prompt alone, for its log-probabilities */
    if (!api_opt_int(&q->root, "max_tokens", least, UINT32_MAX, &old, &has_old, e) ||
        !api_opt_int(&q->root, "max_completion_tokens", 1, UINT32_MAX, &now, &has_new, e))
        return false;
    if (has_old && has_new && old != now)
        return api_error_set(e, 400, "invalid_value", "max_tokens",
                             "max_tokens and max_completion_tokens differ; send one of them");
    q->gen.max_tokens = (uint32_t)(has_new ? now : has_old ? old : q->chat ? 0 : 16);
    q->gen.prompt_only = has_old && old == 0;
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
        API_CHECK(realm_json_str(at, &s, &len, &err_), at);
        if (len == 0 || len > REALM_STOP_BYTES_MAX)
            return api_error_field(e, at, "invalid_value", "must have 1 to %u bytes", REALM_STOP_BYTES_MAX);
        q->stop[i] = (realm_gguf_str){s, len};
    }
    q->n_stop = n;
    return true;
}

static bool read_logprobs(gen_request *q, api_error *e) {
    int64_t top = 0;
    bool set;
    if (q->chat) {
        if (!api_opt_bool(&q->root, "logprobs", &q->logprobs, e)) return false;
        if (!api_opt_int(&q->root, "top_logprobs", 0, REALM_TOP_LOGPROBS_MAX, &top, &set, e)) return false;
        if (set && !q->logprobs)
            return api_error_set(e, 400, "invalid_value", "top_logprobs", "top_logprobs needs logprobs to be true");
    } else {
        if (!api_opt_int(&q->root, "logprobs", 0, 5, &top, &q->logprobs, e)) return false;
    }
    q->top_logprobs = (uint32_t)top;
    q->gen.logprobs = q->logprobs;
    q->gen.top_logprobs = (uint32_t)top;
    q->gen.prompt_logprobs = q->logprobs && q->echo;
    return true;
}

static bool read_stream(gen_request *q, api_error *e) {
    realm_json v;
    if (!api_opt_bool(&q->root, "stream", &q->stream, e)) return false;
    if (!realm_json_get_set(&q->root, "stream_options", &v)) return true;
    if (!q->stream) return api_error_field(e, &v, "invalid_value", "is for requests with \"stream\": true");
    static const char *const known[] = {"include_usage", "include_obfuscation"};
    realm_json unknown = v;
    API_CHECK(realm_json_only(&v, known, 2, &unknown, &err_), &unknown);
    bool ignored = false; /* a hint: padding against guessing from packet sizes, which we do not send */
    return api_opt_bool(&v, "include_usage", &q->include_usage, e) &&
           api_opt_bool(&v, "include_obfuscation", &ignored, e);
}

static bool read_counts(gen_request *q, api_error *e) {
    int64_t n = 1, best;
    if (!api_opt_int(&q->root, "n", 1, 128, &n, NULL, e)) return false;
    best = n;
    if (!api_opt_int(&q->root, "best_of", 1, 128, &best, NULL, e)) return false;
    if (best < n)
        return api_error_set(e, 400, "invalid_value", "best_of", "best_of: must be at least n, which is %lld",
                             (long long)n);
    if (best > n && q->stream)
        return api_error_set(e, 400, "invalid_value", "best_of",
                             "best_of: which answers are the best is known at the end; they cannot be streamed");
    q->n = (uint32_t)n;
    q->n_runs = (uint32_t)best;
    q->gen.logprobs |= best > n;
    return true;
}

/* Fields that name what this server cannot do yet, in the one value that asks for nothing. */
static bool read_plain(const gen_request *q, api_error *e) {
    realm_json v, item;
    const char *s = "";
    size_t len = 0;
    if (realm_json_get_set(&q->root, "suffix", &v)) {
        API_CHECK(realm_json_str(&v, &s, &len, &err_), &v);
        if (len) return api_error_field(e, &v, "unsupported_parameter", "inserting before a suffix is not supported");
    }
    if (realm_json_get_set(&q->root, "tool_choice", &v) && !realm_json_is(&v, "none"))
        return api_error_field(e, &v, "unsupported_parameter", "tools are not supported; only \"none\" is accepted");
    if (realm_json_get_set(&q->root, "modalities", &v)) {
        API_CHECK(realm_json_expect(&v, REALM_JSON_ARRAY, &err_), &v);
        for (size_t i = 0; realm_json_at(&v, i, &item); i++)
            if (!realm_json_is(&item, "text"))
                return api_error_field(e, &item, "unsupported_parameter", "only \"text\" is supported");
    }
    return true;
}

void gen_request_init(gen_request *q, bool chat) {
    *q = (gen_request){.chat = chat, .n = 1, .n_runs = 1};
    realm_buf_init(&q->messages, REALM_RUN_INPUT_MAX);
    realm_buf_init(&q->template_args, REALM_RUN_INPUT_MAX);
}

void gen_request_release(gen_request *q) {
    realm_json_doc_close(q->doc);
    realm_buf_release(&q->messages);
    realm_buf_release(&q->template_args);
    realm_grammar_state_close(q->grammar);
    realm_free(q->bias);
    realm_free(q->breakers);
    realm_free(q->prompts);
    realm_free(q->tokens);
    realm_served_release(q->served); /* after its grammar */
    *q = (gen_request){0};
}

bool gen_request_read(gen_request *q, realm_runtime *rt, const char *body, size_t len, api_error *e) {
    if (!api_read_body(body, len, &q->doc, e)) return false;
    q->root = realm_json_root(q->doc);
    realm_json v;
    if (realm_json_kind_of(&q->root) != REALM_JSON_OBJECT)
        return api_error_set(e, 400, "invalid_type", NULL, "the body must be a JSON object, is %s",
                             realm_json_kind_name(realm_json_kind_of(&q->root)));
    (void)realm_json_get_set(&q->root, "model", &v);
    API_CHECK(realm_json_cstr(&v, &q->model, &err_), &v);
    q->served = realm_runtime_hold(rt, q->model);
    if (!q->served) return api_error_model(e, q->model, strlen(q->model));
    q->engine = realm_served_engine(q->served);
    if (!check_fields(q, e) || !read_max_tokens(q, e) || !gen_read_sampling(q, e) || !read_stop(q, e) ||
        !api_opt_bool(&q->root, "echo", &q->echo, e) || !read_logprobs(q, e) || !read_stream(q, e) ||
        !read_counts(q, e) || !read_plain(q, e) || !api_opt_bool(&q->root, "parse_special", &q->parse_special, e) ||
        !api_opt_bool(&q->root, "ignore_eos", &q->gen.ignore_end, e))
        return false;
    q->gen.stop = q->stop;
    q->gen.n_stop = q->n_stop;
    if (!(q->chat ? gen_read_messages(q, e) : gen_read_prompts(q, e))) return false;
    if (q->n_runs * q->n_prompts > API_CHOICES_MAX)
        return api_error_set(e, 400, "invalid_value", q->n_runs > q->n ? "best_of" : "n",
                             "%s times the number of prompts is %zu, at most %u are accepted",
                             q->n_runs > q->n ? "best_of" : "n", q->n_runs * q->n_prompts, API_CHOICES_MAX);
    return gen_read_format(q, e);
}
