/* pipeline/parse.c - a pipeline's file, read to its end whatever is wrong with it.
 *
 * JSON is read as the YAML that it is, so that lines are known there too. A problem is noted and reading goes on; what
 * could not be read keeps its neutral value, so that one mistake does not cause others to be seen. The pipeline is
 * handed out only if there were none.
 */
#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/file.h"
#include "base/str.h"
#include "pipeline/internal.h"

#define MAX_TOKENS_DEFAULT 512u

/* ---- problems ---------------------------------------------------------------------------------------------------- */

static void note(pipe_reading *r, const realm_error *why) {
    if (r->n_problems++ == 0) r->first = (realm_error){REALM_E_INVALID, ""};
    if (r->n_problems == 1) memcpy(r->first.text, why->text, sizeof why->text);
    if (!r->problems || r->n_problems > REALM_PIPELINE_PROBLEMS_MAX) return;
    (void)realm_buf_puts(r->problems, why->text);
    (void)realm_buf_putc(r->problems, '\n');
}

void pipe_problem(pipe_reading *r, const realm_json *at, const char *fmt, ...) {
    char text[REALM_ERROR_TEXT_MAX];
    realm_error why = {0};
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    realm_json_error(at, REALM_E_INVALID, &why, "%s", text);
    note(r, &why);
}

void pipe_problem_at(pipe_reading *r, const char *where, const char *fmt, ...) {
    char text[REALM_ERROR_TEXT_MAX];
    realm_error why = {0};
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    realm_error_set(&why, REALM_E_INVALID, "%s: %s", where, text);
    note(r, &why);
}

/* True when the accessor was content; else its words are a problem. */
static bool good(pipe_reading *r, realm_status s, const realm_error *why) {
    if (s == REALM_E_NOMEM) r->no_memory = true;
    if (s != REALM_OK && s != REALM_E_NOMEM) note(r, why);
    return s == REALM_OK;
}

/* False, with a problem, when it is no object; every key that is not listed is a problem. */
static bool only(pipe_reading *r, const realm_json *object, const char *const *names, size_t n) {
    realm_error why = {0};
    if (!good(r, realm_json_expect(object, REALM_JSON_OBJECT, &why), &why)) return false;
    realm_json_iter it = {0};
    for (realm_json v; realm_json_next(object, &it, &v);) {
        size_t i = 0;
        while (i < n && strcmp(v.key, names[i]) != 0) i++;
        if (i == n) pipe_problem(r, &v, "unknown key");
    }
    return true;
}

/* ---- small things ------------------------------------------------------------------------------------------------ */

static const char *keep(pipe_reading *r, const char *s, size_t len) {
    char *copy = realm_arena_strndup(&r->p->arena, s, len);
    if (!copy) r->no_memory = true;
    return copy ? copy : "";
}

/* A string of the arena; NULL when it is absent or wrong. */
static const char *opt_text(pipe_reading *r, const realm_json *object, const char *key) {
    realm_json v;
    realm_error why = {0};
    const char *s;
    if (!realm_json_get_set(object, key, &v) || !good(r, realm_json_cstr(&v, &s, &why), &why)) return NULL;
    return keep(r, s, strlen(s));
}

static bool is_identifier(const char *s) {
    size_t len = strlen(s);
    if (len == 0 || len > REALM_PIPELINE_NAME_MAX || isdigit((unsigned char)s[0])) return false;
    for (size_t i = 0; i < len; i++)
        if (!isalnum((unsigned char)s[i]) && s[i] != '_') return false;
    return true;
}

/* What templates call it; the message wants to know what it is. */
static void check_identifier(pipe_reading *r, const realm_json *at, const char *name) {
    if (!is_identifier(name))
        pipe_problem(r, at, "a name has 1 to %u of a-z A-Z 0-9 _ and does not begin with a digit",
                     REALM_PIPELINE_NAME_MAX);
}

static void opt_u32(pipe_reading *r, const realm_json *object, const char *key, int64_t least, int64_t most,
                    uint32_t *out) {
    int64_t v = *out;
    realm_error why = {0};
    if (good(r, realm_json_opt_int(object, key, least, most, &v, &why), &why)) *out = (uint32_t)v;
}

static void opt_float(pipe_reading *r, const realm_json *object, const char *key, double least, double most,
                      float *out) {
    double v = (double)*out;
    realm_error why = {0};
    if (good(r, realm_json_opt_real(object, key, least, most, &v, &why), &why)) *out = (float)v;
}

/* A path from the file's folder. */
static const char *keep_path(pipe_reading *r, const char *path) {
    if (path[0] == '/' || !r->dir[0]) return keep(r, path, strlen(path));
    char *joined = realm_path_join(r->dir, path);
    if (!joined) r->no_memory = true;
    const char *kept = joined ? keep(r, joined, strlen(joined)) : "";
    realm_free(joined);
    return kept;
}

/* ---- models ------------------------------------------------------------------------------------------------------ */

static bool is_path(const char *s) {
    size_t len = strlen(s);
    return strchr(s, '/') || (len > 5 && strcmp(s + len - 5, ".gguf") == 0);
}

/* Index of the model of this id. */
static bool find_model(const realm_pipeline *p, const char *id, uint32_t *index) {
    for (uint32_t i = 0; i < p->n_models; i++) {
        if (strcmp(p->models[i].id, id) != 0) continue;
        *index = i;
        return true;
    }
    return false;
}

static bool add_model(pipe_reading *r, const realm_json *at, const char *id, const char *source, uint32_t *index) {
    realm_pipeline *p = r->p;
    if (p->n_models == REALM_PIPELINE_MODELS_MAX) {
        pipe_problem(r, at, "more than %u models", REALM_PIPELINE_MODELS_MAX);
        return false;
    }
    p->models[p->n_models] = (realm_pipeline_model){
        keep(r, id, strlen(id)), is_path(source) ? keep_path(r, source) : keep(r, source, strlen(source)),
        realm_json_line(at)};
    *index = (uint32_t)p->n_models++;
    return true;
}

/* The `models` of the file: names for use in it, and what they stand for. */
static void read_models(pipe_reading *r, const realm_json *root) {
    realm_json map;
    realm_error why = {0};
    uint32_t index;
    if (!realm_json_get_set(root, "models", &map) || !good(r, realm_json_expect(&map, REALM_JSON_OBJECT, &why), &why))
        return;
    realm_json_iter it = {0};
    for (realm_json v; realm_json_next(&map, &it, &v);) {
        const char *source;
        if (!good(r, realm_json_cstr(&v, &source, &why), &why)) continue;
        if (!*v.key || strlen(v.key) > REALM_MODEL_ID_MAX || !*source)
            pipe_problem(r, &v, "a model's id has 1 to %u bytes, and stands for a name or a file", REALM_MODEL_ID_MAX);
        else
            (void)add_model(r, &v, v.key, source, &index);
    }
}

/* A model as a step names it: an id of `models`, or with no such list a name or a file. */
static bool use_model(pipe_reading *r, const realm_json *at, const char *id, bool listed, uint32_t *index) {
    if (find_model(r->p, id, index)) return true;
    if (listed) {
        char shown[96];
        pipe_problem(r, at, "\"%s\" is not among the file's models", realm_escape(shown, sizeof shown, id, strlen(id)));
        return false;
    }
    if (!*id || strlen(id) > REALM_MODEL_ID_MAX) {
        pipe_problem(r, at, "a model's name has 1 to %u bytes", REALM_MODEL_ID_MAX);
        return false;
    }
    return add_model(r, at, id, id, index);
}

/* ---- inputs ------------------------------------------------------------------------------------------------------ */

static void read_input(pipe_reading *r, const realm_json *v) {
    static const char *const known[] = {"default", "description"};
    realm_pipeline *p = r->p;
    if (p->n_inputs == REALM_PIPELINE_INPUTS_MAX) {
        pipe_problem(r, v, "more than %u inputs", REALM_PIPELINE_INPUTS_MAX);
        return;
    }
    pipe_input *in = &p->inputs[p->n_inputs];
    check_identifier(r, v, v->key);
    *in = (pipe_input){.name = keep(r, v->key, strlen(v->key)), .is_text = true};
    p->n_inputs++;
    realm_json standard = *v;
    if (realm_json_kind_of(v) == REALM_JSON_OBJECT) {
        (void)only(r, v, known, REALM_ARRAY_LEN(known));
        in->comment = opt_text(r, v, "description");
        if (!realm_json_get_set(v, "default", &standard)) return;
    }
    realm_json_kind kind = realm_json_kind_of(&standard);
    if (kind == REALM_JSON_NULL) return;
    in->is_text = kind == REALM_JSON_STRING;
    realm_buf text;
    realm_buf_init(&text, REALM_PIPELINE_INPUT_BYTES_MAX);
    realm_status s = realm_json_dump(&standard, &text);
    if (s == REALM_OK)
        in->value = keep(r, text.data, text.len);
    else if (s == REALM_E_NOMEM)
        r->no_memory = true;
    else
        pipe_problem(r, &standard, "more than %u bytes", REALM_PIPELINE_INPUT_BYTES_MAX);
    realm_buf_release(&text);
}

static void read_inputs(pipe_reading *r, const realm_json *root) {
    realm_json map;
    realm_error why = {0};
    if (!realm_json_get_set(root, "inputs", &map) || !good(r, realm_json_expect(&map, REALM_JSON_OBJECT, &why), &why))
        return;
    realm_json_iter it = {0};
    for (realm_json v; realm_json_next(&map, &it, &v);) read_input(r, &v);
}

/* ---- parameters -------------------------------------------------------------------------------------------------- */

#define PARAMS                                                                                                         \
    "max_tokens", "temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repeat_penalty", \
        "seed", "stop"

static void read_stop(pipe_reading *r, const realm_json *object, pipe_params *to) {
    realm_json v, item;
    realm_error why = {0};
    if (!realm_json_get_set(object, "stop", &v)) return;
    bool list = realm_json_kind_of(&v) == REALM_JSON_ARRAY;
    size_t n = list ? realm_json_len(&v) : 1;
    if (n > PIPELINE_STOP_MAX) {
        pipe_problem(r, &v, "at most %u strings", PIPELINE_STOP_MAX);
        return;
    }
    to->n_stop = 0;
    for (size_t i = 0; i < n; i++) {
        const realm_json *at = &v;
        const char *s;
        size_t len;
        if (list) {
            (void)realm_json_at(&v, i, &item);
            at = &item;
        }
        if (!good(r, realm_json_str(at, &s, &len, &why), &why)) continue;
        if (len == 0 || len > REALM_STOP_BYTES_MAX)
            pipe_problem(r, at, "must have 1 to %u bytes", REALM_STOP_BYTES_MAX);
        else
            to->stop[to->n_stop++] = (realm_gguf_str){keep(r, s, len), len};
    }
}

static void read_params(pipe_reading *r, const realm_json *object, pipe_params *to) {
    realm_sampling *s = &to->sampling;
    realm_error why = {0};
    int64_t seed = (int64_t)s->seed;
    opt_u32(r, object, "max_tokens", 1, 1 << 24, &to->max_tokens);
    opt_float(r, object, "temperature", 0, 2, &s->temperature);
    opt_float(r, object, "top_p", 1e-6, 1, &s->top_p);
    opt_float(r, object, "min_p", 0, 1, &s->min_p);
    opt_float(r, object, "frequency_penalty", -2, 2, &s->frequency_penalty);
    opt_float(r, object, "presence_penalty", -2, 2, &s->presence_penalty);
    opt_float(r, object, "repeat_penalty", 0.01, 100, &s->repeat_penalty);
    opt_u32(r, object, "top_k", 0, INT32_MAX, &s->top_k);
    if (good(r, realm_json_opt_int(object, "seed", INT64_MIN, INT64_MAX, &seed, &why), &why)) s->seed = (uint64_t)seed;
    read_stop(r, object, to);
}

static void read_defaults(pipe_reading *r, const realm_json *root) {
    static const char *const known[] = {"model", PARAMS};
    realm_json v;
    r->defaults.max_tokens = MAX_TOKENS_DEFAULT;
    realm_sampling_init(&r->defaults.sampling);
    if (!realm_json_get_set(root, "defaults", &v) || !only(r, &v, known, REALM_ARRAY_LEN(known))) return;
    r->default_model = opt_text(r, &v, "model");
    read_params(r, &v, &r->defaults);
}

static void read_limits(pipe_reading *r, const realm_json *root) {
    realm_json v;
    realm_error why = {0};
#define NAME(name, standard, most) #name,
    static const char *const known[] = {REALM_PIPELINE_LIMITS(NAME)};
#undef NAME
#define SET(name, standard, most) r->p->limits.name = standard;
    REALM_PIPELINE_LIMITS(SET)
#undef SET
    if (!realm_json_get_set(root, "limits", &v) || !only(r, &v, known, REALM_ARRAY_LEN(known))) return;
#define READ(name, standard, most) \
    (void)good(r, realm_json_opt_int(&v, #name, 1, most, &r->p->limits.name, &why), &why);
    REALM_PIPELINE_LIMITS(READ)
#undef READ
}

/* ---- steps ------------------------------------------------------------------------------------------------------- */

static const char *const call_keys[] = {"model", "fallback", "program", "prompt", "system", "messages",
                                        "raw",   "n",        "retry",   "expect", PARAMS};

/* Names that the templates of a step know besides inputs and steps. */
static const char *also_of(const realm_json *item) {
    realm_json v;
    bool each = realm_json_get_set(item, "foreach", &v), n = realm_json_get_set(item, "n", &v);
    return each ? "item index" : n ? "index" : "";
}

static realm_template *opt_template(pipe_reading *r, const realm_json *item, const char *key, pipe_form form,
                                    uint32_t step, const char *also) {
    realm_json v;
    return realm_json_get_set(item, key, &v) ? pipe_compile(r, &v, form, step, also) : NULL;
}

static void read_message(pipe_reading *r, const realm_json *m, uint32_t step, const char *also) {
    static const char *const known[] = {"role", "content"};
    static const char *const roles[] = {"system", "user", "assistant"};
    pipe_step *s = &r->p->steps[step];
    realm_json v;
    realm_error why = {0};
    size_t role = 0;
    if (!only(r, m, known, REALM_ARRAY_LEN(known))) return;
    (void)realm_json_get(m, "role", &v);
    (void)good(r, realm_json_enum(&v, roles, REALM_ARRAY_LEN(roles), &role, &why), &why);
    if (!realm_json_get_set(m, "content", &v)) {
        pipe_problem(r, &v, "is required");
        return;
    }
    s->messages[s->n_messages++] = (pipe_message){roles[role], pipe_compile(r, &v, PIPE_FORM_TEXT, step, also)};
}

static void read_prompt(pipe_reading *r, const realm_json *item, uint32_t step, const char *also) {
    pipe_step *s = &r->p->steps[step];
    realm_json prompt, system, messages, raw, m;
    realm_error why = {0};
    bool has_prompt = realm_json_get_set(item, "prompt", &prompt),
         has_system = realm_json_get_set(item, "system", &system);
    bool has_messages = realm_json_get_set(item, "messages", &messages);
    (void)good(r, realm_json_opt_bool(item, "raw", &s->raw, &why), &why);
    (void)realm_json_get(item, "raw", &raw);
    if (has_prompt == has_messages) {
        pipe_problem(r, has_prompt ? &messages : item, "a model needs one of prompt and messages");
        return;
    }
    if (s->raw && (has_system || has_messages)) pipe_problem(r, &raw, "goes with prompt alone");
    if (has_system && has_messages) pipe_problem(r, &system, "goes with prompt, not with messages");
    if (has_prompt) {
        if (has_system)
            s->messages[s->n_messages++] =
                (pipe_message){"system", pipe_compile(r, &system, PIPE_FORM_TEXT, step, also)};
        s->messages[s->n_messages++] = (pipe_message){"user", pipe_compile(r, &prompt, PIPE_FORM_TEXT, step, also)};
        return;
    }
    if (!good(r, realm_json_expect(&messages, REALM_JSON_ARRAY, &why), &why)) return;
    size_t n = realm_json_len(&messages);
    if (n == 0 || n > REALM_PIPELINE_MESSAGES_MAX) {
        pipe_problem(r, &messages, "must have 1 to %u messages", REALM_PIPELINE_MESSAGES_MAX);
        return;
    }
    for (size_t i = 0; i < n; i++)
        if (realm_json_at(&messages, i, &m)) read_message(r, &m, step, also);
}

static void read_fallback(pipe_reading *r, const realm_json *item, bool listed, pipe_step *s) {
    realm_json v, each;
    realm_error why = {0};
    const char *id;
    if (!realm_json_get_set(item, "fallback", &v)) return;
    bool list = realm_json_kind_of(&v) == REALM_JSON_ARRAY;
    size_t n = list ? realm_json_len(&v) : 1;
    if (n == 0 || n > REALM_PIPELINE_FALLBACKS_MAX) {
        pipe_problem(r, &v, "must have 1 to %u models", REALM_PIPELINE_FALLBACKS_MAX);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        if (list) (void)realm_json_at(&v, i, &each);
        const realm_json *at = list ? &each : &v;
        if (good(r, realm_json_cstr(at, &id, &why), &why) && use_model(r, at, id, listed, &s->fallback[s->n_fallback]))
            s->n_fallback++;
    }
}

static void read_call(pipe_reading *r, const realm_json *item, bool listed, uint32_t step) {
    pipe_step *s = &r->p->steps[step];
    realm_json v;
    realm_error why = {0};
    const char *also = also_of(item), *id = r->default_model;
    s->params = r->defaults;
    if (realm_json_get_set(item, "model", &v)) {
        if (good(r, realm_json_cstr(&v, &id, &why), &why)) (void)use_model(r, &v, id, listed, &s->model);
    } else if (id) {
        (void)use_model(r, item, id, listed, &s->model);
    } else {
        pipe_problem(r, item, "a model is missing (here or in defaults)");
    }
    read_fallback(r, item, listed, s);
    read_prompt(r, item, step, also);
    read_params(r, item, &s->params);
    opt_u32(r, item, "n", 1, REALM_PIPELINE_BRANCHES_MAX, &s->n);
    opt_u32(r, item, "retry", 0, REALM_PIPELINE_RETRY_MAX, &s->retry);
    const char *program = opt_text(r, item, "program");
    if (program) s->program = keep_path(r, program);
    s->expect = opt_template(r, item, "expect", PIPE_FORM_TRUTH, step,
                             strstr(also, "item") ? "text item index"
                             : also[0]            ? "text index"
                                                  : "text");
}

static void read_foreach(pipe_reading *r, const realm_json *item, uint32_t step) {
    pipe_step *s = &r->p->steps[step];
    realm_json v;
    if (!realm_json_get_set(item, "foreach", &v)) return;
    if (realm_json_kind_of(&v) != REALM_JSON_ARRAY) {
        s->foreach = pipe_compile(r, &v, PIPE_FORM_JSON, step, "");
        return;
    }
    if (realm_json_len(&v) > REALM_PIPELINE_BRANCHES_MAX) {
        pipe_problem(r, &v, "more than %u items", REALM_PIPELINE_BRANCHES_MAX);
        return;
    }
    realm_buf text;
    realm_buf_init(&text, REALM_PIPELINE_INPUT_BYTES_MAX);
    if (realm_json_dump(&v, &text) == REALM_OK)
        s->items = keep(r, text.data, text.len);
    else
        pipe_problem(r, &v, "more than %u bytes", REALM_PIPELINE_INPUT_BYTES_MAX);
    realm_buf_release(&text);
}

static void read_after(pipe_reading *r, const realm_json *item, uint32_t step) {
    realm_json list, v;
    realm_error why = {0};
    if (!realm_json_get_set(item, "after", &list) || !good(r, realm_json_expect(&list, REALM_JSON_ARRAY, &why), &why))
        return;
    for (size_t i = 0; realm_json_at(&list, i, &v); i++) {
        const char *id;
        if (!good(r, realm_json_cstr(&v, &id, &why), &why)) continue;
        char name[REALM_PIPELINE_NAME_MAX + 2];
        int len = snprintf(name, sizeof name, ">%s", id);
        pipe_add_ref(r, &v, step, keep(r, name, REALM_MIN((size_t)len, sizeof name - 1)), "");
    }
}

static void read_vote(pipe_reading *r, const realm_json *vote, uint32_t step) {
    const char *id;
    realm_error why = {0};
    if (!good(r, realm_json_cstr(vote, &id, &why), &why)) return;
    char name[REALM_PIPELINE_NAME_MAX + 2];
    int len = snprintf(name, sizeof name, ">%s", id);
    pipe_add_ref(r, vote, step, keep(r, name, REALM_MIN((size_t)len, sizeof name - 1)), "");
    r->p->steps[step].vote_id = keep(r, id, strlen(id));
}

static void read_step(pipe_reading *r, const realm_json *item, bool listed) {
    static const char *const common[] = {"id", "when", "after", "foreach", "text", "vote", "key"};
    const char *known[REALM_ARRAY_LEN(common) + REALM_ARRAY_LEN(call_keys)];
    memcpy(known, common, sizeof common);
    memcpy(known + REALM_ARRAY_LEN(common), call_keys, sizeof call_keys);
    realm_pipeline *p = r->p;
    if (!only(r, item, known, REALM_ARRAY_LEN(known))) return;
    if (p->n_steps == REALM_PIPELINE_STEPS_MAX) {
        pipe_problem(r, item, "more than %u steps", REALM_PIPELINE_STEPS_MAX);
        return;
    }
    uint32_t step = (uint32_t)p->n_steps++;
    pipe_step *s = &p->steps[step];
    *s = (pipe_step){.id = "", .line = realm_json_line(item), .n = 1};
    realm_json v, text, vote;
    realm_error why = {0};
    (void)realm_json_get(item, "id", &v);
    const char *id;
    if (good(r, realm_json_cstr(&v, &id, &why), &why)) {
        check_identifier(r, &v, id);
        s->id = keep(r, id, strlen(id));
        for (uint32_t i = 0; i < step; i++)
            if (strcmp(p->steps[i].id, id) == 0)
                pipe_problem(r, &v, "a step of this id stands in line %u already", p->steps[i].line);
    }
    s->when = opt_template(r, item, "when", PIPE_FORM_TRUTH, step, "");
    read_after(r, item, step);
    read_foreach(r, item, step);
    bool has_text = realm_json_get_set(item, "text", &text), has_vote = realm_json_get_set(item, "vote", &vote);
    realm_json key;
    if (realm_json_get_set(item, "key", &key) && !has_vote) pipe_problem(r, &key, "goes with vote");
    if (!has_text && !has_vote) {
        read_call(r, item, listed, step);
        return;
    }
    for (size_t i = 0; i < REALM_ARRAY_LEN(call_keys); i++)
        if (realm_json_get_set(item, call_keys[i], &v))
            pipe_problem(r, &v, "is for steps that call a model, this is a %s", has_text ? "text" : "vote");
    if (has_text && has_vote) pipe_problem(r, &vote, "a step is a text or a vote");
    s->kind = has_text ? PIPE_TEXT : PIPE_VOTE;
    if (has_text) s->text = pipe_compile(r, &text, PIPE_FORM_TEXT, step, also_of(item));
    if (has_vote) {
        read_vote(r, &vote, step);
        s->key = opt_template(r, item, "key", PIPE_FORM_VALUE, step, "text");
        if (realm_json_get_set(item, "foreach", &v)) pipe_problem(r, &v, "a vote is one");
    }
}

/* Steps that vote know now whose texts. */
static void find_votes(realm_pipeline *p) {
    for (size_t i = 0; i < p->n_steps; i++) {
        pipe_step *s = &p->steps[i];
        if (s->kind != PIPE_VOTE) continue;
        for (uint32_t k = 0; s->vote_id && k < p->n_steps; k++)
            if (strcmp(p->steps[k].id, s->vote_id) == 0) s->vote = k;
    }
}

static void read_steps(pipe_reading *r, const realm_json *root, bool listed) {
    realm_json list, item;
    realm_error why = {0};
    (void)realm_json_get(root, "steps", &list);
    if (!good(r, realm_json_expect(&list, REALM_JSON_ARRAY, &why), &why)) return;
    if (realm_json_len(&list) == 0) pipe_problem(r, &list, "there are none");
    for (size_t i = 0; realm_json_at(&list, i, &item); i++) {
        if (i > REALM_PIPELINE_STEPS_MAX) break; /* that was said */
        read_step(r, &item, listed);
    }
}

static void read_output(pipe_reading *r, const realm_json *root) {
    realm_pipeline *p = r->p;
    realm_json v;
    uint32_t step = REALM_PIPELINE_STEPS_MAX;
    if (!realm_json_get_set(root, "output", &v)) return;
    if (realm_json_kind_of(&v) != REALM_JSON_OBJECT) {
        p->outputs[p->n_outputs++].text = pipe_compile(r, &v, PIPE_FORM_TEXT, step, "");
        return;
    }
    if (realm_json_len(&v) == 0) pipe_problem(r, &v, "there are none");
    realm_json_iter it = {0};
    for (realm_json m; realm_json_next(&v, &it, &m);) {
        if (p->n_outputs == PIPELINE_OUTPUTS_MAX) {
            pipe_problem(r, &v, "more than %u outputs", PIPELINE_OUTPUTS_MAX);
            return;
        }
        check_identifier(r, &m, m.key);
        p->outputs[p->n_outputs++] =
            (pipe_output){keep(r, m.key, strlen(m.key)), pipe_compile(r, &m, PIPE_FORM_TEXT, step, "")};
    }
}

/* ---- the whole --------------------------------------------------------------------------------------------------- */

static void read_root(pipe_reading *r, const realm_json *root) {
    static const char *const known[] = {"name",   "description", "inputs", "models",
                                        "limits", "defaults",    "steps",  "output"};
    realm_json v;
    if (!only(r, root, known, REALM_ARRAY_LEN(known))) return;
    r->p->name = opt_text(r, root, "name");
    r->p->comment = opt_text(r, root, "description");
    read_inputs(r, root);
    read_models(r, root);
    read_limits(r, root);
    read_defaults(r, root);
    read_steps(r, root, realm_json_get_set(root, "models", &v));
    read_output(r, root);
    find_votes(r->p);
    pipe_resolve(r);
}

realm_status realm_pipeline_parse(realm_pipeline **out, const char *text, size_t len, const char *dir,
                                  realm_buf *problems, realm_error *err) {
    realm_json_doc *doc = NULL;
    realm_error local = {0};
    *out = NULL;
    if (!err) err = &local;
    realm_status s = realm_yaml_parse(&doc, text, len, err);
    if (s != REALM_OK) {
        if (problems && s != REALM_E_NOMEM) (void)realm_buf_printf(problems, "%s\n", err->text);
        return s;
    }
    pipe_reading r = {.dir = dir, .problems = problems};
    r.p = realm_calloc(1, sizeof *r.p);
    if (r.p) {
        realm_arena_init(&r.p->arena, PIPELINE_ARENA_MAX);
        r.p->steps = realm_calloc(REALM_PIPELINE_STEPS_MAX, sizeof *r.p->steps);
    }
    if (r.p && r.p->steps) {
        realm_json root = realm_json_root(doc);
        read_root(&r, &root);
    } else {
        r.no_memory = true;
    }
    realm_json_doc_close(doc);
    realm_free(r.refs);
    if (r.no_memory)
        s = realm_error_set(err, REALM_E_NOMEM, "out of memory");
    else if (r.n_problems > 0)
        s = realm_error_set(err, REALM_E_INVALID, "%s", r.first.text);
    if (r.n_problems > REALM_PIPELINE_PROBLEMS_MAX && problems)
        (void)realm_buf_printf(problems, "and %zu more\n", r.n_problems - REALM_PIPELINE_PROBLEMS_MAX);
    if (s != REALM_OK)
        realm_pipeline_close(r.p);
    else
        *out = r.p;
    return s;
}

realm_status realm_pipeline_open(realm_pipeline **out, const char *path, realm_buf *problems, realm_error *err) {
    char *text, *dir, shown[256];
    size_t len;
    *out = NULL;
    realm_status s = realm_file_read(path, REALM_YAML_BYTES_MAX, &text, &len, err);
    if (s != REALM_OK) return s;
    const char *slash = strrchr(path, '/');
    dir = realm_strndup(path, slash ? (size_t)(slash - path) + 1 : 0);
    s = dir ? realm_pipeline_parse(out, text, len, dir, problems, err)
            : realm_error_set(err, REALM_E_NOMEM, "out of memory");
    if (s != REALM_OK) realm_error_prefix(err, "%s", realm_escape(shown, sizeof shown, path, strlen(path)));
    realm_free(dir);
    realm_free(text);
    return s;
}

void realm_pipeline_close(realm_pipeline *p) {
    if (!p) return;
    for (size_t i = 0; i < p->n_templates; i++) realm_template_close(p->templates[i]);
    realm_free(p->templates);
    realm_free(p->steps);
    realm_arena_release(&p->arena);
    realm_free(p);
}

size_t realm_pipeline_model_count(const realm_pipeline *p) { return p->n_models; }
realm_pipeline_model realm_pipeline_model_at(const realm_pipeline *p, size_t i) { return p->models[i]; }
size_t realm_pipeline_step_count(const realm_pipeline *p) { return p->n_steps; }

bool realm_pipeline_program_at(const realm_pipeline *p, size_t i, const char **path, unsigned *line) {
    for (size_t k = 0; k < p->n_steps; k++) {
        if (!p->steps[k].program || i-- > 0) continue;
        *path = p->steps[k].program;
        *line = p->steps[k].line;
        return true;
    }
    return false;
}
