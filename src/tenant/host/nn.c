/* tenant/host/nn.c - wasi-nn as runtimes with a GGML backend offer it, over the generations of generate.c.
 *
 *     load_by_name -> graph        a model of this server, by its id ("default": the request's own)
 *     init_execution_context       a prompt, settings, and what came of them
 *     set_input 0 / 1              the prompt as UTF-8 / settings as JSON
 *     compute                      a whole generation, then get_output
 *     compute_single               one token, then get_output_single; EndOfSequence when there is none
 *     get_output 0 / 1             text / {"input_tokens", "output_tokens"}
 *
 * A program written for such a runtime runs unchanged, and its generations are everybody's: batched, counted in the
 * tenant's ledger, cancelled with the request; a wait parks the instance. Settings that the program leaves out are the
 * request's own. As there, the text of control tokens in a prompt is parsed: the program writes the chat template
 * itself. Unlike there, the text of the token that ended the answer is not part of it, and settings that would be
 * ignored although the answer depends on them (a GBNF grammar, an image) are refused.
 *
 * Behaviour and numbers: the witx file of wasi-nn; the documentation and the behaviour of WasmEdge's GGML plugin.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "base/utf8.h"
#include "crypto/crypto.h"
#include "tenant/host/abi_nn.h"
#include "tenant/host/host.h"

/* nn_errno; from END_OF_SEQUENCE on of the GGML backend. */
enum {
    NN_OK = 0,
    NN_INVALID_ARGUMENT = 1,
    NN_INVALID_ENCODING = 2,
    NN_BUSY = 4,
    NN_RUNTIME_ERROR = 5,
    NN_UNSUPPORTED = 6,
    NN_TOO_LARGE = 7,
    NN_END_OF_SEQUENCE = 100,
    NN_CONTEXT_FULL = 101,
    NN_PROMPT_TOO_LONG = 102,
    NN_MODEL_NOT_FOUND = 103
};

#define GRAPHS_MAX 16u
#define CONTEXTS_MAX 16u
#define CONFIG_BYTES_MAX (64u << 10)
#define TENSOR_BYTES 20u /* dimensions, their number, type, data, its length */
#define TENSOR_TYPES 6u
#define ENCODING_GGML 6u
#define SINGLE_AHEAD \
    8u /* tokens that the engine may be ahead of compute_single: what fini_single throws away at most */
#define INPUT_PROMPT 0u
#define INPUT_CONFIG 1u

typedef struct nn_config { /* what JSON set; the rest is the request's */
    bool has_temperature, has_top_p, has_min_p, has_repeat, has_presence, has_frequency;
    double temperature, top_p, min_p, repeat, presence, frequency;
    int64_t top_k, last_n; /* -1: not set */
    int64_t n_predict;     /* < 0: no limit; only with has_n_predict */
    bool has_n_predict, has_seed, ignore_eos, stream_stdout;
    int64_t seed;
    char *reverse; /* a string that ends compute; NULL: none */
    char *schema;  /* what the answer keeps to, JSON; NULL: anything */
} nn_config;

typedef struct nn_context {
    bool used;
    uint32_t graph;
    nn_config config;
    host_grammar *grammar; /* of the settings' schema, once it is compiled; NULL: not yet, or none */
    realm_tokens input;
    bool input_set;
    bool too_long;  /* the prompt that was set: said when it is computed, where programs look for that */
    int32_t handle; /* of the running generation, or 0. Looked up each time: the program may have closed it */
    uint32_t max_tokens;
    realm_buf out;     /* of compute */
    realm_buf single;  /* of the last compute_single */
    uint32_t n_output; /* tokens */
    int32_t end;       /* what the next compute_single answers: the generation ended with a last piece of text; or 0 */
} nn_context;

typedef struct nn_graph {
    const host_model *model; /* NULL: free */
    nn_config config;        /* what contexts of it start with */
} nn_graph;

struct host_nn {
    nn_graph graphs[GRAPHS_MAX];
    nn_context contexts[CONTEXTS_MAX];
};

/* ---- small things ---- */

static realm_call_result answer(int32_t *result, int32_t e) {
    *result = e;
    return REALM_CALL_DONE;
}

/* What went wrong stays for last_error and for the client, should the program give up. */
static int32_t failed(realm_host *h, int32_t e) {
    if (h->error.code == REALM_OK) h->error.code = REALM_E_INTERNAL;
    realm_run_set_error(h->run, &h->error);
    return e;
}

static int32_t bad_argument(realm_host *h, const char *what) {
    realm_error_set(&h->error, REALM_E_INVALID, "wasi-nn: %s", what);
    return failed(h, NN_INVALID_ARGUMENT);
}

static int32_t code_of(realm_host *h, realm_status st) {
    switch (st) {
    case REALM_E_LIMIT:
    case REALM_E_QUOTA:
    case REALM_E_CROWDED:
    case REALM_E_BUSY: return failed(h, NN_BUSY);
    case REALM_E_RANGE:
    case REALM_E_INVALID: return failed(h, NN_INVALID_ARGUMENT);
    case REALM_E_GRAMMAR:
    case REALM_E_FORMAT: return failed(h, NN_INVALID_ENCODING);
    case REALM_E_UNSUPPORTED: return failed(h, NN_UNSUPPORTED);
    case REALM_E_NOT_FOUND: return failed(h, NN_MODEL_NOT_FOUND);
    default: return failed(h, NN_RUNTIME_ERROR);
    }
}

static bool put_u32(realm_call *call, uint64_t at, uint32_t v) {
    void *to = realm_call_memory(call, at, sizeof v);
    if (to) memcpy(to, &v, sizeof v);
    return to != NULL;
}

static void config_release(nn_config *c) {
    realm_free(c->reverse);
    realm_free(c->schema);
    c->reverse = c->schema = NULL;
}

static realm_status config_copy(nn_config *to, const nn_config *from, realm_error *err) {
    *to = *from;
    to->reverse = from->reverse ? realm_strdup(from->reverse) : NULL;
    to->schema = from->schema ? realm_strdup(from->schema) : NULL;
    if ((!from->reverse || to->reverse) && (!from->schema || to->schema)) return REALM_OK;
    config_release(to);
    return realm_error_set(err, REALM_E_NOMEM, "wasi-nn: out of memory");
}

static void drop_grammar(realm_host *h, nn_context *c) {
    if (c->grammar) host_grammar_free(h, c->grammar);
    c->grammar = NULL;
}

static void stop_generation(realm_host *h, nn_context *c) {
    if (c->handle) (void)host_handle_close(h, (uint64_t)c->handle);
    c->handle = 0;
    c->end = NN_OK;
}

static host_generation *running(realm_host *h, const nn_context *c) {
    return c->handle ? host_get(h, (uint64_t)c->handle, HOST_GENERATION) : NULL;
}

static void context_release(realm_host *h, nn_context *c) {
    if (!c->used) return;
    stop_generation(h, c);
    drop_grammar(h, c);
    config_release(&c->config);
    realm_tokens_release(&c->input);
    realm_buf_release(&c->out);
    realm_buf_release(&c->single);
    memset(c, 0, sizeof *c);
}

void host_nn_close(realm_host *h) {
    if (!h->nn) return;
    for (uint32_t i = 0; i < CONTEXTS_MAX; i++) context_release(h, &h->nn->contexts[i]);
    for (uint32_t i = 0; i < GRAPHS_MAX; i++) config_release(&h->nn->graphs[i].config);
    realm_free(h->nn);
    h->nn = NULL;
}

static nn_context *find_context(realm_host *h, uint64_t id) {
    if (!h->nn || id >= CONTEXTS_MAX || !h->nn->contexts[id].used) return NULL;
    return &h->nn->contexts[id];
}

/* ---- settings ---- */

static realm_status read_number(const realm_json *o, const char *key, bool *has, double *out, realm_error *err) {
    realm_json v;
    if (!realm_json_get_set(o, key, &v)) return REALM_OK;
    *has = true;
    return realm_json_real(&v, -1e9, 1e9, out, err);
}

static realm_status read_count(const realm_json *o, const char *key, int64_t *out, realm_error *err) {
    realm_json v;
    return realm_json_get_set(o, key, &v) ? realm_json_int(&v, INT32_MIN, UINT32_MAX, out, err) : REALM_OK;
}

/* What would change the answer and is not done here: said, not ignored. */
static realm_status refuse_others(const realm_json *o, realm_error *err) {
    static const char *const REFUSED[] = {"grammar", "image", "mmproj", "tts", "embedding"};
    for (size_t i = 0; i < REALM_ARRAY_LEN(REFUSED); i++) {
        realm_json v;
        bool yes = true;
        if (!realm_json_get_set(o, REFUSED[i], &v)) continue;
        if (realm_json_kind_of(&v) == REALM_JSON_BOOL && realm_json_bool(&v, &yes, err)) return err->code;
        const char *s = "";
        size_t n = 1;
        if (realm_json_kind_of(&v) == REALM_JSON_STRING && realm_json_str(&v, &s, &n, err)) return err->code;
        if (yes && n) return realm_error_set(err, REALM_E_UNSUPPORTED, "\"%s\" is not supported", REFUSED[i]);
    }
    return REALM_OK;
}

/* A string in place of `*out`; an empty one is none. */
static realm_status read_text(const realm_json *o, const char *key, size_t max, char **out, realm_error *err) {
    realm_json v;
    const char *text = "";
    if (!realm_json_get_set(o, key, &v)) return REALM_OK;
    realm_status st = realm_json_cstr(&v, &text, err);
    if (st) return st;
    if (strlen(text) > max) return realm_json_error(&v, REALM_E_RANGE, err, "at most %zu bytes", max);
    realm_free(*out);
    *out = NULL;
    if (*text && !(*out = realm_strdup(text))) return realm_error_set(err, REALM_E_NOMEM, "out of memory");
    return REALM_OK;
}

static realm_status read_flags(const realm_json *o, nn_config *c, realm_error *err) {
    realm_json v;
    realm_status st = REALM_OK;
    if (realm_json_get_set(o, "ignore-eos", &v)) st = realm_json_bool(&v, &c->ignore_eos, err);
    if (!st && realm_json_get_set(o, "stream-stdout", &v)) st = realm_json_bool(&v, &c->stream_stdout, err);
    if (!st && realm_json_get_set(o, "n-predict", &v)) {
        c->has_n_predict = true;
        st = realm_json_int(&v, INT32_MIN, INT32_MAX, &c->n_predict, err);
    }
    if (!st && realm_json_get_set(o, "seed", &v)) {
        c->has_seed = true;
        st = realm_json_int(&v, INT64_MIN, INT64_MAX, &c->seed, err);
    }
    if (!st) st = read_text(o, "reverse-prompt", REALM_STOP_BYTES_MAX, &c->reverse, err);
    if (!st) st = read_text(o, "json-schema", CONFIG_BYTES_MAX, &c->schema, err);
    return st;
}

/* Adds what a JSON object sets; keys that say nothing about the answer (threads, batch sizes, logging ...) and unknown
 * ones are ignored, as there. */
static realm_status read_config(const char *text, size_t len, nn_config *c, realm_error *err) {
    realm_json_doc *doc = NULL;
    realm_status st = realm_json_parse(&doc, text, len, NULL, err);
    if (st) return realm_error_prefix(err, "wasi-nn settings"), REALM_E_FORMAT;
    realm_json root = realm_json_root(doc);
    st = realm_json_expect(&root, REALM_JSON_OBJECT, err);
    if (!st) st = refuse_others(&root, err);
    if (!st) st = read_number(&root, "temperature", &c->has_temperature, &c->temperature, err);
    if (!st) st = read_number(&root, "temp", &c->has_temperature, &c->temperature, err);
    if (!st) st = read_number(&root, "top-p", &c->has_top_p, &c->top_p, err);
    if (!st) st = read_number(&root, "min-p", &c->has_min_p, &c->min_p, err);
    if (!st) st = read_number(&root, "repeat-penalty", &c->has_repeat, &c->repeat, err);
    if (!st) st = read_number(&root, "presence-penalty", &c->has_presence, &c->presence, err);
    if (!st) st = read_number(&root, "frequency-penalty", &c->has_frequency, &c->frequency, err);
    if (!st) st = read_count(&root, "top-k", &c->top_k, err);
    if (!st) st = read_count(&root, "last-n-penalty", &c->last_n, err);
    if (!st) st = read_flags(&root, c, err);
    realm_json_doc_close(doc);
    if (st) realm_error_prefix(err, "wasi-nn settings");
    return st;
}

/* The request's parameters with the settings; numbers below 0 count as 0, as there. */
static realm_status apply_config(const nn_config *c, bool single, realm_generation_params *p, realm_gguf_str *stop) {
    realm_sampling *s = &p->sampling;
    if (c->has_temperature) s->temperature = (float)fmax(0, c->temperature);
    if (c->top_k >= 0) s->top_k = (uint32_t)c->top_k;
    if (c->has_top_p) s->top_p = (float)c->top_p;
    if (c->has_top_p && c->top_p <= 0) { /* of nothing, the most likely token stays */
        s->top_p = 1;
        s->top_k = 1;
    }
    if (c->has_min_p) s->min_p = (float)fmax(0, c->min_p);
    if (c->has_repeat) s->repeat_penalty = c->repeat > 0 ? (float)c->repeat : 1;
    if (c->has_presence) s->presence_penalty = (float)fmax(0, c->presence);
    if (c->has_frequency) s->frequency_penalty = (float)fmax(0, c->frequency);
    if (c->last_n >= 0) s->penalty_last_n = (uint32_t)c->last_n;
    if (c->has_seed) {
        s->seed = (uint64_t)c->seed;
        if (c->seed < 0 && realm_random_bytes(&s->seed, sizeof s->seed)) return REALM_E_IO;
    }
    if (c->ignore_eos) p->ignore_end = true;
    if (single) return REALM_OK; /* where the program itself looks at every token */
    if (c->has_n_predict) p->max_tokens = c->n_predict < 0 ? 0 : (uint32_t)c->n_predict;
    if (c->reverse) {
        *stop = (realm_gguf_str){c->reverse, strlen(c->reverse)};
        p->stop = stop;
        p->n_stop = 1;
    }
    return REALM_OK;
}

/* ---- graphs and contexts ---- */

/* The id of a model by what a program calls it; -1 when there is none. */
static int64_t model_id(const realm_host *h, const char *name, size_t len) {
    static const char DEFAULT[] = "default";
    char text[REALM_MODEL_ID_MAX + 1];
    if (len == sizeof DEFAULT - 1 && !memcmp(name, DEFAULT, len)) return 0;
    if (len > REALM_MODEL_ID_MAX || memchr(name, 0, len)) return -1;
    memcpy(text, name, len);
    text[len] = 0;
    const int32_t id = host_server_id(h, text);
    return id ? id : -1;
}

static int32_t add_graph(realm_call *call, const host_model *model, const nn_config *config, uint64_t out) {
    realm_host *h = host_of(call);
    if (!h->nn && !(h->nn = realm_calloc(1, sizeof *h->nn))) {
        realm_error_set(&h->error, REALM_E_NOMEM, "wasi-nn: out of memory");
        return failed(h, NN_RUNTIME_ERROR);
    }
    for (uint32_t i = 0; i < GRAPHS_MAX; i++) {
        nn_graph *g = &h->nn->graphs[i];
        if (g->model) continue;
        if (config_copy(&g->config, config, &h->error)) return failed(h, NN_RUNTIME_ERROR);
        g->model = model;
        put_u32(call, out, i);
        return NN_OK;
    }
    realm_error_set(&h->error, REALM_E_LIMIT, "wasi-nn: %u graphs are loaded, as many as are allowed", GRAPHS_MAX);
    return failed(h, NN_BUSY);
}

/* The tenant's account with a model may have to be made first: waits for that. */
static realm_call_result load_named(realm_call *call, uint64_t name, uint64_t len, uint64_t out,
                                    const nn_config *config, int32_t *result) {
    realm_host *h = host_of(call);
    const char *text = realm_call_memory(call, name, len);
    const host_model *model;
    int32_t e = NN_OK;
    if (!text || !realm_call_memory(call, out, sizeof(uint32_t)))
        return answer(result, bad_argument(h, "outside the memory"));
    int64_t id = model_id(h, text, (size_t)len);
    if (id < 0) {
        char shown[96];
        realm_error_set(&h->error, REALM_E_NOT_FOUND, "wasi-nn: no model is called \"%s\"",
                        realm_escape(shown, sizeof shown, text, (size_t)REALM_MIN(len, UINT64_C(200))));
        return answer(result, failed(h, NN_MODEL_NOT_FOUND));
    }
    realm_call_result state = host_model_get(call, (uint64_t)id, &model, &e);
    if (model) return answer(result, add_graph(call, model, config, out));
    return state == REALM_CALL_DONE ? answer(result, code_of(h, (realm_status)e)) : state;
}

static const nn_config NOTHING_SET = {.top_k = -1, .last_n = -1};

/* (builders, n, encoding, target, graph): models come from the operator, not from programs' memory. */
realm_call_result nn_load(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    realm_error_set(&h->error, REALM_E_UNSUPPORTED, "wasi-nn: load takes no model files here, use load_by_name");
    return answer(result, failed(h, args[2] == ENCODING_GGML ? NN_UNSUPPORTED : NN_INVALID_ENCODING));
}

realm_call_result nn_load_by_name(realm_call *call, const uint64_t *args, int32_t *result) {
    return load_named(call, args[0], args[1], args[2], &NOTHING_SET, result);
}

realm_call_result nn_load_by_name_with_config(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    nn_config c = NOTHING_SET;
    const char *text = args[3] <= CONFIG_BYTES_MAX ? realm_call_memory(call, args[2], args[3]) : NULL;
    if (!text) return answer(result, bad_argument(h, "settings are outside the memory or longer than 64 KiB"));
    realm_status st = read_config(text, (size_t)args[3], &c, &h->error);
    realm_call_result state =
        st ? answer(result, code_of(h, st)) : load_named(call, args[0], args[1], args[4], &c, result);
    config_release(&c);
    return state;
}

realm_call_result nn_init_execution_context(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    if (!h->nn || args[0] >= GRAPHS_MAX || !h->nn->graphs[args[0]].model)
        return answer(result, bad_argument(h, "there is no such graph"));
    if (!realm_call_memory(call, args[1], sizeof(uint32_t)))
        return answer(result, bad_argument(h, "outside the memory"));
    for (uint32_t i = 0; i < CONTEXTS_MAX; i++) {
        nn_context *c = &h->nn->contexts[i];
        if (c->used) continue;
        if (config_copy(&c->config, &h->nn->graphs[args[0]].config, &h->error))
            return answer(result, failed(h, NN_RUNTIME_ERROR));
        c->used = true;
        c->graph = (uint32_t)args[0];
        realm_buf_init(&c->out, HOST_TEXT_BYTES_MAX);
        realm_buf_init(&c->single, HOST_TEXT_BYTES_MAX);
        put_u32(call, args[1], i);
        return answer(result, NN_OK);
    }
    realm_error_set(&h->error, REALM_E_LIMIT, "wasi-nn: %u contexts are open, as many as are allowed", CONTEXTS_MAX);
    return answer(result, failed(h, NN_BUSY));
}

realm_call_result nn_finalize_execution_context(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    nn_context *c = find_context(h, args[0]);
    if (!c) return answer(result, bad_argument(h, "there is no such context"));
    context_release(h, c);
    return answer(result, NN_OK);
}

/* Takes its contexts with it. */
realm_call_result nn_unload(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    if (!h->nn || args[0] >= GRAPHS_MAX || !h->nn->graphs[args[0]].model)
        return answer(result, bad_argument(h, "there is no such graph"));
    for (uint32_t i = 0; i < CONTEXTS_MAX; i++)
        if (h->nn->contexts[i].graph == args[0]) context_release(h, &h->nn->contexts[i]);
    config_release(&h->nn->graphs[args[0]].config);
    h->nn->graphs[args[0]].model = NULL;
    return answer(result, NN_OK);
}

/* ---- input ---- */

static const host_model *model_of(const realm_host *h, const nn_context *c) { return h->nn->graphs[c->graph].model; }

static void begin_output(realm_host *h, nn_context *c) {
    stop_generation(h, c);
    c->n_output = 0;
    realm_buf_reset(&c->out);
    realm_buf_reset(&c->single);
}

static int32_t set_prompt(realm_host *h, nn_context *c, const char *text, size_t len) {
    size_t max = host_context_length(model_of(h, c));
    begin_output(h, c);
    c->input_set = c->too_long = false;
    c->input.len = 0;
    realm_status st =
        realm_tokenizer_encode(host_tokenizer(model_of(h, c)), text, len,
                               REALM_ENCODE_ADD_SPECIAL | REALM_ENCODE_PARSE_SPECIAL, max, &c->input, &h->error);
    if (st && st != REALM_E_LIMIT) return code_of(h, st);
    c->too_long = st || c->input.len >= max;
    if (c->too_long) c->input.len = 0;
    c->input_set = true;
    return NN_OK;
}

/* All of it, or, where something of it is refused, nothing. */
static int32_t set_config(realm_host *h, nn_context *c, const char *text, size_t len) {
    nn_config next;
    realm_status st = config_copy(&next, &c->config, &h->error);
    if (st) return failed(h, NN_RUNTIME_ERROR);
    if ((st = read_config(text, len, &next, &h->error))) {
        config_release(&next);
        return code_of(h, st);
    }
    drop_grammar(h, c); /* the schema may be another one */
    config_release(&c->config);
    c->config = next;
    return NN_OK;
}

/* (context, index, tensor) */
realm_call_result nn_set_input(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    nn_context *c = find_context(h, args[0]);
    const unsigned char *tensor = realm_call_memory(call, args[2], TENSOR_BYTES);
    uint32_t t[5]; /* dimensions, n, type, data, n */
    if (!c) return answer(result, bad_argument(h, "there is no such context"));
    if (!tensor) return answer(result, bad_argument(h, "the tensor is outside the memory"));
    memcpy(t, tensor, sizeof t);
    const char *data = realm_call_memory(call, t[3], t[4]);
    if (!realm_call_memory(call, t[0], (uint64_t)t[1] * sizeof(uint32_t)) || !data || (t[2] & 0xff) >= TENSOR_TYPES)
        return answer(result, bad_argument(h, "the tensor's parts are outside the memory, or its type is unknown"));
    if (args[1] > INPUT_CONFIG) return answer(result, bad_argument(h, "inputs are 0 (prompt) and 1 (settings)"));
    if (args[1] == INPUT_CONFIG) {
        if (t[4] > CONFIG_BYTES_MAX) return answer(result, bad_argument(h, "settings have at most 64 KiB"));
        return answer(result, set_config(h, c, data, t[4]));
    }
    if (t[4] > HOST_TEXT_BYTES_MAX || !realm_utf8_valid(data, t[4]))
        return answer(result, bad_argument(h, "a prompt is UTF-8 of at most 4 MiB"));
    if (host_is_long(call, t[4])) return REALM_CALL_LONG;
    return answer(result, set_prompt(h, c, data, t[4]));
}

/* ---- generating ---- */

/* True once the grammar of the settings' schema is there, or none is asked for; else the call returns *state. */
static bool grammar_ready(realm_call *call, nn_context *c, realm_call_result *state, int32_t *result) {
    realm_host *h = host_of(call);
    if (c->grammar || !c->config.schema || !c->input_set || c->too_long) return true;
    if (realm_call_resumed(call))
        c->grammar = host_grammar_made(call, state, result);
    else
        *state = host_grammar_begin(call, model_of(h, c), REALM_GRAMMAR_JSON_SCHEMA, c->config.schema,
                                    strlen(c->config.schema), result);
    if (c->grammar) return true;
    if (*state == REALM_CALL_DONE) {
        bool wrong = *result == REALM_E_FORMAT; /* the schema, which is well encoded */
        *result = code_of(h, (realm_status)*result);
        if (wrong) *result = NN_INVALID_ARGUMENT;
    }
    return false;
}

static int32_t begin(realm_host *h, nn_context *c, bool single) {
    realm_generation_params p;
    realm_gguf_str stop;
    if (c->too_long) {
        realm_error_set(&h->error, REALM_E_CONTEXT, "wasi-nn: the prompt is longer than the context of %zu tokens",
                        (size_t)host_context_length(model_of(h, c)));
        return failed(h, NN_PROMPT_TOO_LONG);
    }
    if (!c->input_set || c->input.len == 0) return bad_argument(h, "compute: the prompt was not set, or is empty");
    begin_output(h, c);
    realm_run_generation_params(h->run, &p);
    p.prompt_logprobs = false;
    if (apply_config(&c->config, single, &p, &stop)) {
        realm_error_set(&h->error, REALM_E_IO, "wasi-nn: no randomness for a seed");
        return failed(h, NN_RUNTIME_ERROR);
    }
    if (c->grammar) p.grammar = c->grammar->state;
    if (single) p.run_ahead = SINGLE_AHEAD;
    c->max_tokens = p.max_tokens;
    host_generation *g;
    realm_status st = host_generation_start(h, model_of(h, c), &p, &c->input, &g);
    if (st) return code_of(h, st);
    c->handle = g->handle;
    return NN_OK;
}

/* What the end of a generation is to the program; the generation goes. */
static int32_t finish(realm_host *h, nn_context *c, const realm_event *end, int32_t at_end) {
    int32_t e = at_end;
    bool full = end->finish == REALM_FINISH_LENGTH && (c->max_tokens == 0 || c->n_output < c->max_tokens);
    if (full) e = NN_CONTEXT_FULL;
    if (end->finish == REALM_FINISH_CANCELLED) {
        realm_error_set(&h->error, REALM_E_CANCELLED, "wasi-nn: the request was cancelled");
        e = failed(h, NN_RUNTIME_ERROR);
    }
    if (end->finish == REALM_FINISH_ERROR) e = code_of(h, h->error.code);
    stop_generation(h, c);
    return e;
}

/* stream-stdout: the runtime prints what compute generates, and what is printed is for the log. */
static void print_out(realm_host *h, const realm_buf *out) {
    for (size_t at = 0; at < out->len;) {
        const char *line = out->data + at, *end = memchr(line, '\n', out->len - at);
        size_t n = end ? (size_t)(end - line) : out->len - at;
        host_log_line(h, REALM_LOG_INFO, line, n);
        at += n + 1;
    }
}

static bool cancelled(realm_call *call, realm_host *h) {
    return atomic_load_explicit(&h->cancelled, memory_order_acquire) || realm_call_cancelled(call);
}

static int32_t give_up(realm_host *h, nn_context *c) {
    stop_generation(h, c);
    realm_error_set(&h->error, REALM_E_CANCELLED, "wasi-nn: the request was cancelled");
    return failed(h, NN_RUNTIME_ERROR);
}

realm_call_result nn_compute(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    nn_context *c = find_context(h, args[0]);
    const realm_event *e;
    if (!c) return answer(result, bad_argument(h, "there is no such context"));
    if (!realm_call_resumed(call) || h->job) {
        realm_call_result state;
        if (c->config.has_n_predict && c->config.n_predict == 0 && c->input_set && !c->too_long) {
            begin_output(h, c);
            return answer(result, NN_OK);
        }
        if (!grammar_ready(call, c, &state, result)) return state;
        int32_t st = begin(h, c, false);
        if (st) return answer(result, st);
    }
    host_generation *g = running(h, c);
    if (!g) return answer(result, bad_argument(h, "the generation was closed"));
    while ((e = host_generation_next(h, g))) {
        realm_buf_append(&c->out, g->batch.text.data + e->text_at, e->text_len);
        c->n_output = g->batch.completion_tokens;
        if (e->kind != REALM_EVENT_END) continue;
        /* As there, the string that ended it is part of the text. */
        if (e->finish == REALM_FINISH_STOP && e->id < 0 && c->config.reverse)
            realm_buf_puts(&c->out, c->config.reverse);
        if (c->config.stream_stdout) print_out(h, &c->out);
        int32_t code = finish(h, c, e, NN_OK);
        return answer(result, realm_buf_status(&c->out) ? NN_TOO_LARGE : code);
    }
    if (cancelled(call, h)) return answer(result, give_up(h, c));
    return REALM_CALL_SUSPEND;
}

realm_call_result nn_compute_single(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    nn_context *c = find_context(h, args[0]);
    const realm_event *e;
    if (!c) return answer(result, bad_argument(h, "there is no such context"));
    if (c->end) {
        int32_t code = c->end;
        c->end = NN_OK;
        realm_buf_reset(&c->single);
        return answer(result, code);
    }
    if (!running(h, c)) {
        realm_call_result state;
        if (!grammar_ready(call, c, &state, result)) return state;
        int32_t st = begin(h, c, true);
        if (st) return answer(result, st);
    }
    host_generation *g = running(h, c);
    if (!g) return answer(result, bad_argument(h, "the generation was closed"));
    while ((e = host_generation_next(h, g))) {
        if (e->kind == REALM_EVENT_PROMPT) continue;
        realm_buf_reset(&c->single);
        realm_buf_append(&c->single, g->batch.text.data + e->text_at, e->text_len);
        realm_buf_append(&c->out, c->single.data, c->single.len);
        if (e->kind == REALM_EVENT_TOKEN) {
            realm_generation_confirm(g->g, ++c->n_output, false);
            return answer(result, NN_OK);
        }
        c->n_output = g->batch.completion_tokens; /* the end token counts, as in compute */
        int32_t code = finish(h, c, e, NN_END_OF_SEQUENCE);
        if (!c->single.len) return answer(result, code);
        c->end = code;
        return answer(result, NN_OK);
    }
    if (cancelled(call, h)) return answer(result, give_up(h, c));
    return REALM_CALL_SUSPEND;
}

/* Ends what compute_single began; the next one begins anew. */
realm_call_result nn_fini_single(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    nn_context *c = find_context(h, args[0]);
    if (!c) return answer(result, bad_argument(h, "there is no such context"));
    stop_generation(h, c);
    realm_buf_reset(&c->single);
    return answer(result, NN_OK);
}

/* ---- output ---- */

/* (context, index, out, max, written): what does not fit is TOO_LARGE, `written` says how much is needed. */
static int32_t give_output(realm_call *call, const uint64_t *args, bool single) {
    realm_host *h = host_of(call);
    nn_context *c = find_context(h, args[0]);
    char text[96];
    if (!c) return bad_argument(h, "there is no such context");
    if (args[1] > INPUT_CONFIG) return bad_argument(h, "outputs are 0 (text) and 1 (numbers)");
    const realm_buf *from = single ? &c->single : &c->out;
    const char *data = from->data;
    size_t len = from->len;
    if (args[1] == INPUT_CONFIG) {
        int n =
            snprintf(text, sizeof text, "{\"input_tokens\": %zu, \"output_tokens\": %u}", c->input.len, c->n_output);
        data = text;
        len = (size_t)n;
    }
    if (!realm_call_memory(call, args[4], sizeof(uint32_t))) return bad_argument(h, "outside the memory");
    void *to = realm_call_memory(call, args[2], REALM_MIN(args[3], (uint64_t)len));
    if (!to) return bad_argument(h, "outside the memory");
    put_u32(call, args[4], (uint32_t)len);
    if (len > args[3]) {
        realm_error_set(&h->error, REALM_E_RANGE, "wasi-nn: the output has %zu bytes, the buffer %llu", len,
                        (unsigned long long)args[3]);
        return failed(h, NN_TOO_LARGE);
    }
    if (len) memcpy(to, data, len);
    return NN_OK;
}

realm_call_result nn_get_output(realm_call *call, const uint64_t *args, int32_t *result) {
    return answer(result, give_output(call, args, false));
}

realm_call_result nn_get_output_single(realm_call *call, const uint64_t *args, int32_t *result) {
    return answer(result, give_output(call, args, true));
}
