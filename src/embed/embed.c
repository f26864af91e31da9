/* embed/embed.c - include/realm/realm.h over the runtime: the same path as a served request, without sockets. */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/file.h"
#include "base/log.h"
#include "base/thread.h"
#include "base/utf8.h"
#include "data/data.h"
#include "realm/realm.h"
#include "template/template.h"
#include "tenant/tenant.h"

#define INPUT_MAX ((size_t)32 << 20)

struct realm {
    realm_runtime *rt;
};

struct realm_job {
    realm_tenant *tenant;
    realm_request *request;
    realm_run *run;
    realm_mutex mu;
    realm_cond ready;
    bool is_ready, waited;
};

REALM_API const char *realm_version(void) { return REALM_VERSION; }

static struct {
    void (*sink)(void *user, int level, const char *line, size_t len);
    void *user;
} log_target; /* set before threads start, as base/log.h asks */

static void forward_log(void *user, realm_log_level level, const char *line, size_t len) {
    (void)user;
    log_target.sink(log_target.user, (int)level, line, len);
}

REALM_API void realm_set_log(int least_level, void (*sink)(void *user, int level, const char *line, size_t len),
                             void *user) {
    log_target.sink = sink;
    log_target.user = user;
    realm_log_configure((realm_log_level)REALM_MAX(0, REALM_MIN(least_level, 3)), sink ? forward_log : NULL, NULL);
}

/* The installed program beside the library, else the first `realm` on PATH; NULL when there is none. */
static char *find_compiler(void) {
    static const char installed[] = REALM_PREFIX "/bin/realm";
    if (access(installed, X_OK) == 0) return realm_strdup(installed);
    const char *path = getenv("PATH");
    while (path && *path) {
        size_t n = strcspn(path, ":");
        char *dir = realm_strndup(path, n), *file = dir ? realm_path_join(dir, "realm") : NULL;
        realm_free(dir);
        if (file && n > 0 && access(file, X_OK) == 0) return file;
        realm_free(file);
        path += n + (path[n] == ':');
    }
    return NULL;
}

/* Copies what a caller's structure has of the fields known here; those that came after its version are zero. One
 * without its size would be read as empty, and what was set in it silently forgotten. `first` is the size of the first
 * version, of which there are two at most as yet. */
static realm_status take_struct(void *to, size_t to_size, size_t first, const void *from, size_t size, const char *name,
                                realm_error *err) {
    if (size < to_size && size != first) return realm_error_set(err, REALM_E_INVALID, "%s: size is not set", name);
    memset(to, 0, to_size);
    memcpy(to, from, REALM_MIN(size, to_size)); /* a later version's fields lie behind */
    return REALM_OK;
}
#define TAKE(to, first, from, name, err) take_struct(&(to), sizeof(to), first, from, (from)->size, name, err)

static realm_status missing(const char *what, realm_error *err) {
    return realm_error_set(err, REALM_E_INVALID, "%s: is required", what);
}

REALM_API realm_status realm_open(realm **out, const realm_config *config, realm_error *err) {
    realm_config c = {0};
    *out = NULL;
    if (config && TAKE(c, sizeof c, config, "realm_config", err) != REALM_OK) return REALM_E_INVALID;
    realm *r = realm_calloc(1, sizeof *r);
    if (!r) return realm_error_set(err, REALM_E_NOMEM, "out of memory");
    char *found = c.compiler_path ? NULL : find_compiler();
    realm_runtime_config rc = {.state_dir = c.state_dir,
                               .compiler_path = c.compiler_path ? c.compiler_path : found,
                               .n_workers = c.n_workers,
                               .n_threads = c.n_threads};
    realm_status s = realm_runtime_open(&r->rt, &rc, err);
    realm_free(found);
    if (s != REALM_OK) {
        realm_free(r);
        return s;
    }
    *out = r;
    return REALM_OK;
}

REALM_API void realm_close(realm *r) {
    if (!r) return;
    realm_runtime_close(r->rt);
    realm_free(r);
}

static bool on_progress(void *user, uint64_t done, uint64_t total) {
    const realm_load_config *c = user;
    c->progress(c->user, done, total);
    return true;
}

REALM_API realm_status realm_model_load(realm *r, const char *id, const char *path, const realm_load_config *config,
                                        realm_error *err) {
    realm_load_config c = {0};
    if (config && TAKE(c, sizeof c, config, "realm_load_config", err) != REALM_OK) return REALM_E_INVALID;
    if (!id || !path) return missing(id ? "path" : "id", err);
    realm_model_config mc = {.engine = {.kv_bytes = c.kv_bytes, .n_ctx = c.n_ctx, .max_generations = c.max_generations},
                             .chat_template = c.chat_template,
                             .weight_budget_bytes = c.weight_budget_bytes};
    return realm_runtime_add_model(r->rt, id, path, &mc, c.progress ? on_progress : NULL, &c, err);
}

/* ---- tenants ----------------------------------------------------------------------------------------------------- */

REALM_API realm_status realm_tenant_add(realm *r, const char *name, const void *wasm, size_t len, realm_error *err) {
    realm_store *store = realm_runtime_store(r->rt);
    realm_tenant_row row;
    if (!name) return missing("name", err);
    realm_status s = realm_store_tenant_find(store, name, &row, NULL);
    bool made = false;
    if (s == REALM_E_NOT_FOUND) made = !(s = realm_store_tenant_create(store, name, NULL, NULL, 0, &row, err));
    if (s == REALM_E_EXISTS) s = REALM_OK; /* another process was quicker */
    if (s != REALM_OK) return s;
    realm_tenant *t;
    if ((s = realm_runtime_tenant(r->rt, name, &t, err)) != REALM_OK) return s;
    /* Refused here and now when it does not compile; kept in the store only after that. */
    s = realm_tenant_set_program(t, wasm, wasm ? len : 0, err);
    realm_tenant_release(t);
    if (s == REALM_OK) return realm_store_tenant_set(store, name, NULL, wasm ? wasm : "", wasm ? len : 0, err);
    /* A tenant that is there for this module alone does not stay behind with the default program: unless another thread
     * has given it one meanwhile. */
    if (made && !realm_store_tenant_find(store, name, &row, NULL) && !row.program_sha256[0] &&
        !realm_store_tenant_delete(store, name, NULL))
        realm_runtime_reload(r->rt);
    return s;
}

REALM_API realm_status realm_tenant_limit(realm *r, const char *name, const char *limit, uint64_t value,
                                          realm_error *err) {
    realm_store *store = realm_runtime_store(r->rt);
    realm_tenant_row row;
    char text[24];
    if (!name || !limit) return missing(name ? "limit" : "name", err);
    snprintf(text, sizeof text, "%llu", (unsigned long long)value);
    realm_status s = realm_store_tenant_find(store, name, &row, err);
    if (s == REALM_OK) s = realm_limits_set(&row.limits, limit, text, err);
    if (s == REALM_OK) s = realm_store_tenant_set(store, name, &row.limits, NULL, 0, err);
    if (s == REALM_OK) realm_runtime_reload(r->rt);
    return s;
}

typedef struct usage_search {
    const char *name;
    realm_tenant_usage *out;
} usage_search;

static bool take_usage(void *user, const char *name, const realm_usage *u) {
    usage_search *search = user;
    if (strcmp(name, search->name) != 0) return true;
    *search->out = (realm_tenant_usage){.size = search->out->size,
                                        .requests = u->requests,
                                        .aborted_requests = u->aborted_requests,
                                        .prompt_tokens = u->prompt_tokens,
                                        .cached_tokens = u->cached_tokens,
                                        .completion_tokens = u->completion_tokens,
                                        .program_cpu_ns = u->program_cpu_ns,
                                        .tensor_ns = u->tensor_ns};
    return false;
}

REALM_API realm_status realm_tenant_get_usage(realm *r, const char *name, realm_tenant_usage *out, realm_error *err) {
    realm_store *store = realm_runtime_store(r->rt);
    realm_tenant_row row;
    realm_tenant_usage usage = {.size = out->size};
    usage_search search = {name, &usage};
    if (usage.size < sizeof usage) return realm_error_set(err, REALM_E_INVALID, "realm_tenant_usage: size is not set");
    if (!name) return missing("name", err);
    realm_status s = realm_store_tenant_find(store, name, &row, err);
    if (s == REALM_OK) s = realm_store_usage_each(store, name, 0, take_usage, &search, err);
    memcpy(out, &usage, sizeof usage);
    return s;
}

/* ---- jobs -------------------------------------------------------------------------------------------------------- */

static void on_ready(void *user) {
    realm_job *job = user;
    realm_mutex_lock(&job->mu);
    job->is_ready = true;
    realm_cond_signal(&job->ready);
    realm_mutex_unlock(&job->mu);
}

static void write_messages(realm_json_writer *w, const realm_job_params *p) {
    if (p->messages_json) {
        realm_json_write_raw(w, p->messages_json, strlen(p->messages_json));
        return;
    }
    realm_json_begin_array(w);
    realm_json_begin_object(w);
    realm_json_key(w, "role");
    realm_json_write_cstr(w, "user");
    realm_json_key(w, "content");
    realm_json_write_cstr(w, p->prompt);
    realm_json_end_object(w);
    realm_json_end_array(w);
}

/* The document that the tenant's program reads: what the same request would be over HTTP. */
static realm_status write_input(const realm_job_params *p, const char *model, realm_buf *out, realm_buf *messages) {
    realm_json_writer w;
    if (!p->raw) {
        realm_json_writer_init(&w, messages);
        write_messages(&w, p);
        if (realm_buf_status(messages) != REALM_OK) return realm_buf_status(messages);
    }
    realm_json_writer_init(&w, out);
    realm_json_begin_object(&w);
    realm_json_key(&w, "endpoint");
    realm_json_write_cstr(&w, p->raw ? "completion" : "chat");
    realm_json_key(&w, "model");
    realm_json_write_cstr(&w, model);
    realm_json_key(&w, p->raw ? "prompt" : "messages");
    if (p->raw)
        realm_json_write_cstr(&w, p->prompt);
    else
        realm_json_write_raw(&w, messages->data, messages->len);
    if (p->max_tokens) {
        realm_json_key(&w, "max_tokens");
        realm_json_write_uint(&w, p->max_tokens);
    }
    realm_json_key(&w, "temperature");
    realm_json_write_float(&w, p->temperature);
    if (p->template_args_json) {
        realm_json_key(&w, "chat_template_kwargs");
        realm_json_write_raw(&w, p->template_args_json, strlen(p->template_args_json));
    }
    realm_json_end_object(&w);
    return realm_buf_status(out);
}

/* A caller's text as JSON of this kind; *doc is the caller's on success. */
static realm_status read_json(const char *text, realm_json_kind kind, realm_json_doc **doc, realm_error *err) {
    realm_status s = realm_json_parse(doc, text, strlen(text), NULL, err);
    if (s != REALM_OK) return s;
    const realm_json root = realm_json_root(*doc);
    if ((s = realm_json_expect(&root, kind, err)) != REALM_OK) realm_json_doc_close(*doc);
    return s;
}

static realm_status check_messages(const char *text, realm_error *err) {
    realm_json_doc *doc;
    realm_status s = read_json(text, REALM_JSON_ARRAY, &doc, err);
    if (s != REALM_OK) return realm_error_prefix(err, "messages_json"), s;
    realm_json_doc_close(doc);
    return REALM_OK;
}

static realm_status check_template_args(const char *text, realm_error *err) {
    realm_json_doc *doc;
    realm_json arg;
    realm_json_iter it = {0};
    realm_status s = read_json(text, REALM_JSON_OBJECT, &doc, err);
    if (s != REALM_OK) return realm_error_prefix(err, "template_args_json"), s;
    const realm_json root = realm_json_root(doc);
    if (realm_json_len(&root) > REALM_TEMPLATE_ARGS_MAX)
        s = realm_error_set(err, REALM_E_RANGE, "at most %u are taken", REALM_TEMPLATE_ARGS_MAX);
    while (s == REALM_OK && realm_json_next(&root, &it, &arg))
        if (realm_template_arg_reserved(arg.key, strlen(arg.key)))
            s = realm_json_error(&arg, REALM_E_INVALID, err, "is not for an argument to set");
    realm_json_doc_close(doc);
    if (s != REALM_OK) realm_error_prefix(err, "template_args_json");
    return s;
}

static realm_status check_params(const realm_job_params *p, realm_error *err) {
    if (!p->tenant) return missing("tenant", err);
    if (!p->prompt == !p->messages_json)
        return realm_error_set(err, REALM_E_INVALID, "one of prompt and messages_json is required");
    if (p->raw && !p->prompt) return realm_error_set(err, REALM_E_INVALID, "raw needs prompt");
    if (p->raw && p->template_args_json)
        return realm_error_set(err, REALM_E_INVALID, "template_args_json: with raw there is no template");
    if (p->prompt && !realm_utf8_valid(p->prompt, strlen(p->prompt)))
        return realm_error_set(err, REALM_E_INVALID, "prompt: is not valid UTF-8");
    if (p->n_stop > REALM_STOP_MAX)
        return realm_error_set(err, REALM_E_RANGE, "%zu stop strings, at most %u are taken", p->n_stop, REALM_STOP_MAX);
    for (size_t i = 0; i < p->n_stop; i++)
        if (!p->stop || !p->stop[i]) return realm_error_set(err, REALM_E_INVALID, "stop string %zu is NULL", i);
    realm_status s = p->messages_json ? check_messages(p->messages_json, err) : REALM_OK;
    if (s == REALM_OK && p->template_args_json) s = check_template_args(p->template_args_json, err);
    return s;
}

/* The model of this id, or the first; held. */
static realm_status hold_model(realm *r, const char *id, realm_served **out, realm_error *err) {
    realm_served *all[REALM_MODELS_MAX];
    *out = NULL;
    if (id) {
        *out = realm_runtime_hold(r->rt, id);
        return *out ? REALM_OK : realm_error_set(err, REALM_E_NOT_FOUND, "no model is called \"%s\"", id);
    }
    const size_t n = realm_runtime_hold_all(r->rt, all);
    for (size_t i = 1; i < n; i++) realm_served_release(all[i]);
    if (n > 0) *out = all[0];
    return n > 0 ? REALM_OK : realm_error_set(err, REALM_E_NOT_FOUND, "no model is loaded");
}

static realm_status start_on(realm *r, realm_job *job, const realm_job_params *p, realm_served *m, realm_error *err) {
    realm_status s;
    realm_model_info info;
    realm_served_get_info(m, &info);
    if ((s = realm_runtime_tenant(r->rt, p->tenant, &job->tenant, err)) != REALM_OK) return s;
    if ((s = realm_tenant_admit(job->tenant, NULL, err)) != REALM_OK) return s;
    if ((s = realm_request_open(job->tenant, m, NULL, &job->request, err)) != REALM_OK) return s;

    realm_buf input, messages;
    realm_gguf_str *stop = realm_calloc(p->n_stop + 1, sizeof *stop);
    realm_buf_init(&input, INPUT_MAX);
    realm_buf_init(&messages, INPUT_MAX);
    s = stop ? write_input(p, info.id, &input, &messages) : REALM_E_NOMEM;
    if (s != REALM_OK) {
        realm_error_set(err, s, "prompt: %s", realm_status_text(s));
        goto done;
    }
    for (size_t i = 0; i < p->n_stop; i++) stop[i] = (realm_gguf_str){p->stop[i], strlen(p->stop[i])};
    realm_run_params rp = {.input = input.data,
                           .input_len = input.len,
                           .kind = p->raw ? REALM_PROMPT_TEXT : REALM_PROMPT_MESSAGES,
                           .prompt = p->raw ? p->prompt : messages.data,
                           .prompt_len = p->raw ? strlen(p->prompt) : messages.len,
                           .template_args = p->template_args_json,
                           .template_args_len = p->template_args_json ? strlen(p->template_args_json) : 0,
                           .on_ready = on_ready,
                           .user = job};
    realm_sampling_init(&rp.generation.sampling);
    rp.generation.max_tokens = p->max_tokens;
    rp.generation.sampling.temperature = p->temperature;
    rp.generation.sampling.top_k = p->top_k;
    rp.generation.sampling.top_p = p->top_p;
    rp.generation.sampling.min_p = p->min_p;
    rp.generation.sampling.repeat_penalty = p->repeat_penalty;
    rp.generation.sampling.seed = p->seed;
    rp.generation.stop = stop;
    rp.generation.n_stop = p->n_stop;
    if ((s = realm_sampling_check(&rp.generation.sampling, info.hparams->n_vocab, err)) != REALM_OK) goto done;
    s = realm_run_start(job->request, &rp, &job->run, err);
done:
    realm_free(stop);
    realm_buf_release(&input);
    realm_buf_release(&messages);
    return s;
}

static realm_status start(realm *r, realm_job *job, const realm_job_params *p, realm_error *err) {
    realm_served *m;
    realm_status s = check_params(p, err);
    if (s == REALM_OK) s = hold_model(r, p->model, &m, err);
    if (s != REALM_OK) return s;
    s = start_on(r, job, p, m, err);
    realm_served_release(m); /* the request holds it */
    return s;
}

REALM_API realm_status realm_job_start(realm *r, const realm_job_params *params, realm_job **out, realm_error *err) {
    realm_job_params p;
    *out = NULL;
    const size_t first = offsetof(realm_job_params, template_args_json);
    if (TAKE(p, first, params, "realm_job_params", err) != REALM_OK) return REALM_E_INVALID;
    realm_job *job = realm_calloc(1, sizeof *job);
    if (!job) return realm_error_set(err, REALM_E_NOMEM, "job: out of memory");
    realm_mutex_init(&job->mu, REALM_RANK_LEAF);
    realm_cond_init(&job->ready);
    realm_status s = start(r, job, &p, err);
    if (s != REALM_OK) {
        realm_job_close(job);
        return s;
    }
    *out = job;
    return REALM_OK;
}

static void wait_ready(realm_job *job) {
    realm_mutex_lock(&job->mu);
    while (!job->is_ready) realm_cond_wait(&job->ready, &job->mu);
    job->is_ready = false;
    realm_mutex_unlock(&job->mu);
}

REALM_API realm_status realm_job_wait(realm_job *job, bool (*on_text)(void *user, const char *text, size_t len),
                                      void *user, realm_job_result *result, realm_error *err) {
    realm_event_batch b;
    realm_status s = REALM_OK;
    bool ended = false;
    if (job->waited) return realm_error_set(err, REALM_E_INVALID, "job: it was waited for already");
    job->waited = true;
    realm_event_batch_init(&b);
    while (!ended) {
        size_t n = realm_run_poll(job->run, &b);
        if (n == 0) wait_ready(job);
        for (size_t i = 0; i < n; i++) {
            const realm_event *e = &b.events[i];
            if (e->kind == REALM_EVENT_TOKEN && e->text_len > 0 && on_text &&
                !on_text(user, b.text.data + e->text_at, e->text_len)) {
                realm_run_cancel(job->run);
                on_text = NULL;
            }
            if (e->kind != REALM_EVENT_END) continue;
            ended = true;
            if (e->finish != REALM_FINISH_CANCELLED) s = b.status;
            if (s != REALM_OK && err) *err = b.error;
            if (!result) continue;
            *result = (realm_job_result){.end = e->finish == REALM_FINISH_LENGTH      ? REALM_JOB_LENGTH
                                                : e->finish == REALM_FINISH_CANCELLED ? REALM_JOB_CANCELLED
                                                : e->finish == REALM_FINISH_ERROR     ? REALM_JOB_FAILED
                                                                                      : REALM_JOB_STOPPED,
                                         .prompt_tokens = b.prompt_tokens,
                                         .cached_tokens = b.cached_tokens,
                                         .completion_tokens = b.completion_tokens};
        }
    }
    realm_event_batch_release(&b);
    return s;
}

REALM_API void realm_job_cancel(realm_job *job) { realm_run_cancel(job->run); }

REALM_API void realm_job_close(realm_job *job) {
    if (!job) return;
    realm_run_release(job->run);
    realm_request_close(job->request);
    realm_tenant_release(job->tenant);
    realm_cond_destroy(&job->ready);
    realm_mutex_destroy(&job->mu);
    realm_free(job);
}
