#include "cli/serve_config.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/file.h"
#include "cli/args.h"

#define CONFIG_MAX REALM_YAML_BYTES_MAX
#define KEY_FILE_MAX 4096u
#define TEMPLATE_MAX ((size_t)1 << 20) /* what is too long is said where it is compiled */
#define PROGRAM_MAX ((size_t)128 << 20)

#define SPILL_BYTES_DEFAULT (UINT64_C(256) << 20) /* of each model */

void serve_config_init(serve_config *c) {
    *c = (serve_config){.listen = "127.0.0.1:8080",
                        .admin_listen = "127.0.0.1:8081",
                        .log_level = REALM_LOG_INFO,
                        .drain_seconds = 30,
                        .engine.spill_bytes = SPILL_BYTES_DEFAULT};
    realm_http_limits_init(&c->http);
}

void serve_model_release(serve_model *m) {
    realm_free(m->id);
    realm_free(m->file);
    realm_free(m->chat_template);
    for (size_t i = 0; i < m->n_prefixes; i++) realm_free(m->prefixes[i]);
    *m = (serve_model){0};
}

void serve_config_release(serve_config *c) {
    for (size_t i = 0; i < c->n_models; i++) serve_model_release(&c->models[i]);
    for (size_t i = 0; i < c->n_tenants; i++) {
        realm_free(c->tenants[i].key_file);
        realm_free(c->tenants[i].program);
    }
    realm_free(c->tenants);
    realm_free(c->state);
    realm_free(c->spill_dir);
    realm_free(c->models_dir);
    realm_free(c->dir);
    realm_json_doc_close(c->doc);
    *c = (serve_config){0};
}

static realm_status no_memory(realm_error *err) { return realm_error_set(err, REALM_E_NOMEM, "out of memory"); }

/* A path of the file, as seen from the working directory. */
static realm_status read_path(const serve_config *c, const realm_json *v, char **out, realm_error *err) {
    const char *s = "";
    realm_status st = realm_json_cstr(v, &s, err);
    if (st != REALM_OK) return st;
    if (!*s) return realm_json_error(v, REALM_E_INVALID, err, "must not be empty");
    realm_free(*out);
    *out = s[0] == '/' || !c->dir[0] ? realm_strdup(s) : realm_path_join(c->dir, s);
    return *out ? REALM_OK : no_memory(err);
}

static realm_status opt_path(const serve_config *c, const realm_json *root, const char *key, char **out,
                             realm_error *err) {
    realm_json v;
    return realm_json_get_set(root, key, &v) ? read_path(c, &v, out, err) : REALM_OK;
}

/* Numbers of a section, by name: X(field, least, most). */
#define HTTP_LIMITS(X)                         \
    X(head_bytes, 1024, 1 << 20)               \
    X(fields, 8, REALM_HTTP_FIELDS_MAX)        \
    X(target_bytes, 64, 1 << 16)               \
    X(body_bytes, 1024, 32 << 20)              \
    X(chunk_line_bytes, 18, 4096)              \
    X(head_ms, 100, 3600000)                   \
    X(body_ms, 100, 3600000)                   \
    X(idle_ms, 100, 3600000)                   \
    X(write_ms, 100, 3600000)                  \
    X(connections, 1, 1000000)                 \
    X(bodies_bytes, 1 << 20, INT64_C(1) << 46) \
    X(out_bytes, 16384, 16 << 20)
#define ENGINE_LIMITS(X)         \
    X(n_ctx, 0, INT32_MAX)       \
    X(max_generations, 0, 65536) \
    X(max_queued, 0, 1000000)    \
    X(chunk_tokens, 0, 65536)

#define NAME(field, least, most) #field,
#define READ(field, least, most)                                             \
    if (st == REALM_OK) {                                                    \
        int64_t value = (int64_t)to->field;                                  \
        st = realm_json_opt_int(&section, #field, least, most, &value, err); \
        to->field = (__typeof__(to->field))value;                            \
    }

static realm_status read_http(serve_config *c, const realm_json *root, realm_error *err) {
    static const char *const known[] = {HTTP_LIMITS(NAME)};
    realm_http_limits *to = &c->http;
    realm_json section;
    if (!realm_json_get_set(root, "http", &section)) return REALM_OK;
    realm_status st = realm_json_only(&section, known, REALM_ARRAY_LEN(known), NULL, err);
    HTTP_LIMITS(READ)
    return st;
}

/* A number of bytes, or a text like "6G". */
static realm_status opt_size(const realm_json *object, const char *key, uint64_t *out, realm_error *err) {
    realm_json v;
    if (!realm_json_get_set(object, key, &v)) return REALM_OK;
    if (realm_json_kind_of(&v) == REALM_JSON_STRING) {
        const char *text = "";
        realm_status st = realm_json_cstr(&v, &text, err);
        if (st != REALM_OK || realm_size_parse(text, out)) return st;
        return realm_json_error(&v, REALM_E_INVALID, err, "must be a size like 200M or 6G");
    }
    int64_t bytes = 0;
    realm_status st = realm_json_int(&v, 0, INT64_C(1) << 60, &bytes, err);
    if (st == REALM_OK) *out = (uint64_t)bytes;
    return st;
}

static realm_status read_engine(serve_config *c, const realm_json *root, realm_error *err) {
    static const char *const known[] = {ENGINE_LIMITS(NAME) "kv_bytes", "spill_bytes", "spill_dir", "spill_dir_bytes"};
    realm_engine_config *to = &c->engine;
    realm_json section;
    if (!realm_json_get_set(root, "engine", &section)) return REALM_OK;
    realm_status st = realm_json_only(&section, known, REALM_ARRAY_LEN(known), NULL, err);
    ENGINE_LIMITS(READ)
    if (st == REALM_OK) st = opt_size(&section, "kv_bytes", &to->kv_bytes, err);
    if (st == REALM_OK) st = opt_size(&section, "spill_bytes", &to->spill_bytes, err);
    if (st == REALM_OK) st = opt_size(&section, "spill_dir_bytes", &to->spill_dir_bytes, err);
    if (st == REALM_OK) st = opt_path(c, &section, "spill_dir", &c->spill_dir, err);
    return st;
}

static realm_status read_prefixes(const realm_json *model, serve_model *to, realm_error *err) {
    realm_json list, v;
    if (!realm_json_get_set(model, "prefixes", &list)) return REALM_OK;
    realm_status st = realm_json_expect(&list, REALM_JSON_ARRAY, err);
    for (size_t i = 0; st == REALM_OK && realm_json_at(&list, i, &v); i++) {
        if (to->n_prefixes == SERVE_PREFIXES_MAX)
            return realm_json_error(&v, REALM_E_LIMIT, err, "at most %u prefixes", SERVE_PREFIXES_MAX);
        const char *text = "";
        st = realm_json_cstr(&v, &text, err);
        if (st == REALM_OK && !(to->prefixes[to->n_prefixes++] = realm_strdup(text))) st = no_memory(err);
    }
    return st;
}

static serve_model *find_model(serve_config *c, const char *id) {
    for (size_t i = 0; i < c->n_models; i++)
        if (c->models[i].id && strcmp(c->models[i].id, id) == 0) return &c->models[i];
    return NULL;
}

/* A file with a template in the place of the model's own. */
static realm_status read_template(const serve_config *c, const realm_json *model, serve_model *to, realm_error *err) {
    realm_json v;
    realm_error why = {0};
    char *path = NULL;
    size_t len = 0;
    if (!realm_json_get_set(model, "chat_template", &v)) return REALM_OK;
    realm_status st = read_path(c, &v, &path, err);
    if (st == REALM_OK && (st = realm_file_read(path, TEMPLATE_MAX, &to->chat_template, &len, &why)) != REALM_OK)
        realm_json_error(&v, st, err, "%s", why.text);
    if (st == REALM_OK && (len == 0 || strlen(to->chat_template) != len))
        st = realm_json_error(&v, REALM_E_INVALID, err, "%s: is empty or holds a NUL byte", path);
    realm_free(path);
    return st;
}

static realm_status read_models(serve_config *c, const realm_json *root, realm_error *err) {
    static const char *const known[] = {"id", "file", "weight_budget", "chat_template", "prefixes"};
    realm_json list, m, v;
    if (!realm_json_get_set(root, "models", &list)) return REALM_OK;
    realm_status st = realm_json_expect(&list, REALM_JSON_ARRAY, err);
    for (size_t i = 0; st == REALM_OK && realm_json_at(&list, i, &m); i++) {
        if (c->n_models == REALM_MODELS_MAX)
            return realm_json_error(&m, REALM_E_LIMIT, err, "at most %u models", REALM_MODELS_MAX);
        serve_model *to = &c->models[c->n_models++];
        const char *id = "";
        st = realm_json_only(&m, known, REALM_ARRAY_LEN(known), NULL, err);
        if (st == REALM_OK) st = opt_size(&m, "weight_budget", &to->weight_budget, err);
        if (st == REALM_OK) st = read_template(c, &m, to, err);
        if (st == REALM_OK) st = read_prefixes(&m, to, err);
        (void)realm_json_get(&m, "id", &v);
        if (st == REALM_OK) st = realm_json_cstr(&v, &id, err);
        if (st == REALM_OK && (!*id || strlen(id) > REALM_MODEL_ID_MAX))
            st = realm_json_error(&v, REALM_E_RANGE, err, "must have 1 to %u bytes", REALM_MODEL_ID_MAX);
        if (st == REALM_OK && find_model(c, id))
            st = realm_json_error(&v, REALM_E_EXISTS, err, "a model of this id stands above already");
        if (st == REALM_OK && !(to->id = realm_strdup(id))) st = no_memory(err);
        if (st != REALM_OK) break;
        /* a path from the file's folder; without one, or with a bare name that is no file there, the catalogue's */
        const char *name = id;
        realm_error why = {0};
        if (realm_json_get_set(&m, "file", &v)) {
            st = read_path(c, &v, &to->file, err);
            if (st != REALM_OK || access(to->file, F_OK) == 0) continue;
            st = realm_json_cstr(&v, &name, err);
            if (st != REALM_OK || strchr(name, '/')) continue;
        }
        realm_free(to->file);
        st = realm_find_model(name, c->models_dir, &to->file, &why);
        if (st != REALM_OK) realm_json_error(&v, st, err, "%s", why.text);
    }
    return st;
}

static realm_status read_limits(const realm_json *tenant, realm_limits *to, realm_error *err) {
    realm_json limits, v;
    realm_limits_init(to);
    if (!realm_json_get_set(tenant, "limits", &limits)) return REALM_OK;
    realm_status st = realm_json_expect(&limits, REALM_JSON_OBJECT, err);
    realm_json_iter it = {0};
    while (st == REALM_OK && realm_json_next(&limits, &it, &v)) {
        int64_t value = 0;
        char text[32];
        realm_error why = {0};
        st = realm_json_int(&v, 0, INT64_MAX, &value, err);
        (void)snprintf(text, sizeof text, "%lld", (long long)value);
        if (st == REALM_OK && (st = realm_limits_set(to, v.key, text, &why)) != REALM_OK)
            realm_json_error(&v, st, err, "%s", why.text);
    }
    return st;
}

/* `args`: a list of strings. */
static realm_status read_args(const realm_json *tenant, realm_strings *args, realm_error *err) {
    realm_json list, v;
    if (!realm_json_get_set(tenant, "args", &list)) return REALM_OK;
    realm_status st = realm_json_expect(&list, REALM_JSON_ARRAY, err);
    for (size_t i = 0; st == REALM_OK && realm_json_at(&list, i, &v); i++) {
        const char *s = "";
        realm_error why = {0};
        if ((st = realm_json_cstr(&v, &s, err)) == REALM_OK &&
            (st = realm_strings_add(args, s, strlen(s), &why)) != REALM_OK)
            realm_json_error(&v, st, err, "%s", why.text);
    }
    return st;
}

/* `env`: names with strings. */
static realm_status read_env(const realm_json *tenant, realm_strings *env, realm_error *err) {
    realm_json list, v;
    realm_json_iter it = {0};
    if (!realm_json_get_set(tenant, "env", &list)) return REALM_OK;
    realm_status st = realm_json_expect(&list, REALM_JSON_OBJECT, err);
    while (st == REALM_OK && realm_json_next(&list, &it, &v)) {
        const char *s = "";
        char pair[REALM_STRINGS_BYTES_MAX];
        realm_error why = {0};
        if ((st = realm_json_cstr(&v, &s, err)) != REALM_OK) break;
        int n = snprintf(pair, sizeof pair, "%s=%s", v.key, s);
        if (strchr(v.key, '='))
            st = realm_error_set(&why, REALM_E_INVALID, "a name must not hold '='");
        else if (n < 0 || (size_t)n >= sizeof pair)
            st = realm_error_set(&why, REALM_E_LIMIT, "name and value have at most %u bytes", REALM_STRINGS_BYTES_MAX);
        else
            st = realm_strings_set_env(env, pair, (size_t)n, &why);
        if (st != REALM_OK) realm_json_error(&v, st, err, "%s", why.text);
    }
    return st;
}

static realm_status read_tenants(serve_config *c, const realm_json *root, realm_error *err) {
    static const char *const known[] = {"name", "key_file", "program", "args", "env", "limits"};
    realm_json list, t, v;
    if (!realm_json_get_set(root, "tenants", &list)) return REALM_OK;
    realm_status st = realm_json_expect(&list, REALM_JSON_ARRAY, err);
    if (st != REALM_OK) return st;
    c->tenants = realm_calloc(realm_json_len(&list), sizeof *c->tenants);
    if (!c->tenants) return no_memory(err);
    for (size_t i = 0; st == REALM_OK && realm_json_at(&list, i, &t); i++) {
        serve_tenant *to = &c->tenants[c->n_tenants++];
        st = realm_json_only(&t, known, REALM_ARRAY_LEN(known), NULL, err);
        (void)realm_json_get(&t, "name", &v);
        if (st == REALM_OK) st = realm_json_cstr(&v, &to->name, err);
        if (st == REALM_OK) st = opt_path(c, &t, "key_file", &to->key_file, err);
        if (st == REALM_OK) st = opt_path(c, &t, "program", &to->program, err);
        if (st == REALM_OK) st = read_args(&t, &to->args, err);
        if (st == REALM_OK) st = read_env(&t, &to->env, err);
        if (st == REALM_OK) st = read_limits(&t, &to->limits, err);
        for (size_t k = 0; st == REALM_OK && k < i; k++)
            if (strcmp(c->tenants[k].name, to->name) == 0)
                st = realm_json_error(&v, REALM_E_EXISTS, err, "this tenant stands above already");
    }
    return st;
}

static realm_status read_names(serve_config *c, const realm_json *root, realm_error *err) {
    realm_json list, v;
    if (!realm_json_get_set(root, "host_names", &list)) return REALM_OK;
    realm_status st = realm_json_expect(&list, REALM_JSON_ARRAY, err);
    for (size_t i = 0; st == REALM_OK && realm_json_at(&list, i, &v); i++) {
        if (c->n_names == SERVE_NAMES_MAX)
            return realm_json_error(&v, REALM_E_LIMIT, err, "at most %u names", SERVE_NAMES_MAX);
        st = realm_json_cstr(&v, &c->names[c->n_names++], err);
    }
    return st;
}

bool serve_config_log_level(const char *name, realm_log_level *out) {
    static const char *const names[] = {"debug", "info", "warn", "error"}; /* in the order of realm_log_level */
    for (size_t i = 0; i < REALM_ARRAY_LEN(names); i++) {
        if (strcmp(name, names[i]) != 0) continue;
        *out = (realm_log_level)i;
        return true;
    }
    return false;
}

static realm_status read_log_level(serve_config *c, const realm_json *root, realm_error *err) {
    const char *name = NULL;
    realm_json v;
    if (!realm_json_get_set(root, "log_level", &v)) return REALM_OK;
    realm_status st = realm_json_cstr(&v, &name, err);
    if (st == REALM_OK && !serve_config_log_level(name, &c->log_level))
        st = realm_json_error(&v, REALM_E_RANGE, err, "must be debug, info, warn or error");
    return st;
}

realm_status serve_config_read(serve_config *c, const char *path, const char *models_dir, realm_error *err) {
    static const char *const known[] = {"listen",        "admin_listen", "state",      "models_dir",    "models",
                                        "tenants",       "threads",      "io_threads", "api_threads",   "workers",
                                        "host_names",    "http",         "engine",     "max_instances", "drain_seconds",
                                        "program_bytes", "log_level"};
    char *text = NULL;
    size_t len = 0;
    realm_status st = realm_file_read(path, CONFIG_MAX, &text, &len, err);
    if (st != REALM_OK) return st;
    st = realm_yaml_parse(&c->doc, text, len, err);
    realm_free(text);
    const char *slash = strrchr(path, '/');
    c->dir = slash ? realm_strndup(path, (size_t)(slash - path) + 1) : realm_strdup("");
    if (st == REALM_OK && !c->dir) st = no_memory(err);
    if (st == REALM_OK) {
        realm_json root = realm_json_root(c->doc);
        st = realm_json_only(&root, known, REALM_ARRAY_LEN(known), NULL, err);
        if (st == REALM_OK) st = realm_json_opt_cstr(&root, "listen", &c->listen, err);
        if (st == REALM_OK) st = realm_json_opt_cstr(&root, "admin_listen", &c->admin_listen, err);
        if (st == REALM_OK) st = opt_path(c, &root, "state", &c->state, err);
        if (st == REALM_OK) st = opt_path(c, &root, "models_dir", &c->models_dir, err);
        if (st == REALM_OK && models_dir) {
            realm_free(c->models_dir);
            if (!(c->models_dir = realm_strdup(models_dir))) st = no_memory(err);
        }
        if (st == REALM_OK) st = realm_json_opt_int(&root, "threads", 0, 1024, &c->threads, err);
        if (st == REALM_OK) st = realm_json_opt_int(&root, "io_threads", 0, REALM_IO_THREADS_MAX, &c->io_threads, err);
        if (st == REALM_OK) st = realm_json_opt_int(&root, "api_threads", 0, 16, &c->api_threads, err);
        if (st == REALM_OK) st = realm_json_opt_int(&root, "workers", 0, 1024, &c->workers, err);
        if (st == REALM_OK) st = realm_json_opt_int(&root, "max_instances", 0, 65536, &c->max_instances, err);
        if (st == REALM_OK)
            st = realm_json_opt_int(&root, "program_bytes", 0, INT64_C(1) << 46, &c->program_bytes, err);
        if (st == REALM_OK) st = realm_json_opt_int(&root, "drain_seconds", 0, 86400, &c->drain_seconds, err);
        if (st == REALM_OK) st = read_log_level(c, &root, err);
        if (st == REALM_OK) st = read_http(c, &root, err);
        if (st == REALM_OK) st = read_engine(c, &root, err);
        if (st == REALM_OK) st = read_models(c, &root, err);
        if (st == REALM_OK) st = read_names(c, &root, err);
        if (st == REALM_OK) st = read_tenants(c, &root, err);
    }
    if (st != REALM_OK) realm_error_prefix(err, "%s", path);
    return st;
}

void serve_config_differences(const serve_config *running, const serve_config *fresh, realm_buf *out) {
#define DIFFER(name, differs) \
    if (differs) (void)realm_buf_printf(out, ", %s", name)
#define NUMBER(field) DIFFER(#field, running->field != fresh->field)
#define HTTP(field, least, most) DIFFER("http." #field, running->http.field != fresh->http.field);
#define ENGINE(field, least, most) DIFFER("engine." #field, running->engine.field != fresh->engine.field);
#define TEXT(name, field) DIFFER(name, strcmp(running->field ? running->field : "", fresh->field ? fresh->field : ""))
    TEXT("listen", listen);
    TEXT("admin_listen", admin_listen);
    TEXT("state", state);
    NUMBER(threads);
    NUMBER(io_threads);
    NUMBER(api_threads);
    NUMBER(workers);
    NUMBER(max_instances);
    NUMBER(program_bytes);
    NUMBER(log_level);
    HTTP_LIMITS(HTTP)
    ENGINE_LIMITS(ENGINE)
    NUMBER(engine.kv_bytes);
    NUMBER(engine.spill_bytes);
    NUMBER(engine.spill_dir_bytes);
    TEXT("engine.spill_dir", engine.spill_dir);
    bool names = running->n_names != fresh->n_names;
    for (size_t i = 0; !names && i < running->n_names; i++) names = strcmp(running->names[i], fresh->names[i]) != 0;
    DIFFER("host_names", names);
#undef DIFFER
#undef NUMBER
#undef HTTP
#undef ENGINE
#undef TEXT
}

realm_status serve_config_add_model(serve_config *c, const char *text, realm_error *err) {
    const char *equals = strchr(text, '=');
    size_t id_len = equals ? (size_t)(equals - text) : strlen(text);
    if (id_len == 0 || id_len > REALM_MODEL_ID_MAX)
        return realm_error_set(err, REALM_E_INVALID, "--model takes ID=FILE, with an id of 1 to %u bytes",
                               REALM_MODEL_ID_MAX);
    char *id = realm_strndup(text, id_len), *file = NULL;
    realm_status st = id ? realm_find_model(equals ? equals + 1 : text, c->models_dir, &file, err) : no_memory(err);
    serve_model *m = st == REALM_OK ? find_model(c, id) : NULL;
    if (m && m->by_option) st = realm_error_set(err, REALM_E_EXISTS, "--model names \"%s\" twice", id);
    if (st == REALM_OK && !m && c->n_models == REALM_MODELS_MAX)
        st = realm_error_set(err, REALM_E_LIMIT, "at most %u models are served", REALM_MODELS_MAX);
    if (st != REALM_OK) {
        realm_free(id);
        realm_free(file);
        return st;
    }
    if (!m) m = &c->models[c->n_models++];
    realm_free(m->id);
    realm_free(m->file);
    m->id = id;
    m->file = file;
    m->by_option = true;
    return REALM_OK;
}

static realm_status apply_tenant(const serve_tenant *t, realm_store *store, realm_error *err) {
    char *program = NULL, *key = NULL;
    size_t program_len = 0, key_len = 0;
    realm_tenant_row row;
    realm_status st = REALM_OK;
    if (t->program) st = realm_file_read(t->program, PROGRAM_MAX, &program, &program_len, err);
    if (st == REALM_OK && t->key_file) st = realm_file_read(t->key_file, KEY_FILE_MAX, &key, &key_len, err);
    if (st == REALM_OK) {
        realm_error ignored = {0};
        st = realm_store_tenant_find(store, t->name, &row, &ignored);
        if (st == REALM_E_NOT_FOUND)
            st = realm_store_tenant_create(store, t->name, &t->limits, program, program_len, &row, err);
        else if (st == REALM_OK)
            st = realm_store_tenant_set(store, t->name, &t->limits, program ? program : "", program_len, err);
        else if (err)
            *err = ignored;
    }
    if (st == REALM_OK) st = realm_store_tenant_set_strings(store, t->name, &t->args, &t->env, err);
    if (st == REALM_OK && key) {
        char *from = key;
        while (key_len && isspace((unsigned char)key[key_len - 1])) key[--key_len] = '\0';
        while (isspace((unsigned char)*from)) from++;
        st = realm_store_key_import(store, t->name, from, err);
    }
    if (key) explicit_bzero(key, key_len);
    realm_free(key);
    realm_free(program);
    if (st != REALM_OK) realm_error_prefix(err, "tenant %s", t->name);
    return st;
}

realm_status serve_config_apply_tenants(const serve_config *c, realm_store *store, realm_error *err) {
    realm_status st = REALM_OK;
    for (size_t i = 0; st == REALM_OK && i < c->n_tenants; i++) st = apply_tenant(&c->tenants[i], store, err);
    return st;
}
