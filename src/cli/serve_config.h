/* cli/serve_config.h - what `realm serve` is told: the YAML file, then the command line over it.
 *
 * Paths in the file are relative to the file's own folder, those on the command line to the working directory.
 */
#ifndef REALM_CLI_SERVE_CONFIG_H
#define REALM_CLI_SERVE_CONFIG_H

#include "base/base.h"
#include "base/log.h"
#include "data/data.h"
#include "net/net.h"
#include "tenant/tenant.h"

#define SERVE_NAMES_MAX 32u
#define SERVE_PREFIXES_MAX 16u /* texts of a model that are computed once for everybody */

typedef struct serve_model {
    char *id, *file;
    bool by_option;         /* named, or its file, on the command line */
    uint64_t weight_budget; /* 0: none */
    char *chat_template;    /* its text; NULL: the model's own */
    char *prefixes[SERVE_PREFIXES_MAX];
    size_t n_prefixes;
} serve_model;
void serve_model_release(serve_model *m);

typedef struct serve_tenant {
    const char *name;
    char *key_file, *program; /* NULL: none; the default one */
    realm_limits limits;
    realm_strings args, env;
} serve_tenant;

typedef struct serve_config {
    realm_json_doc *doc; /* holds the file's strings */
    char *dir;           /* of the file, with '/' or "" */
    const char *listen, *admin_listen;
    char *state, *models_dir; /* NULL: the default */
    serve_model models[REALM_MODELS_MAX];
    size_t n_models;
    serve_tenant *tenants;
    size_t n_tenants;
    const char *names[SERVE_NAMES_MAX];
    size_t n_names;
    realm_log_level log_level;
    int64_t threads, io_threads, api_threads, workers, max_instances, program_bytes, drain_seconds;
    realm_http_limits http;
    realm_engine_config engine; /* spill_dir: the one below */
    char *spill_dir;
} serve_config;

void serve_config_init(serve_config *c);
/* "debug", "info", "warn", "error"; false for anything else. */
bool serve_config_log_level(const char *name, realm_log_level *out);
void serve_config_release(serve_config *c);
/* Reads the file; unknown keys, wrong types and values are errors that name line and key. `models_dir`, of the command
 * line, goes before the file's own; NULL: not given. */
REALM_WARN_UNUSED realm_status serve_config_read(serve_config *c, const char *path, const char *models_dir,
                                                 realm_error *err);
/* "ID=FILE" of the command line, or an id or file that realm_find_model knows. */
REALM_WARN_UNUSED realm_status serve_config_add_model(serve_config *c, const char *text, realm_error *err);
/* Names, after ", ", what is other in `fresh` than in the configuration that a server runs with, and only the next
 * start can take: of each key its name; models and tenants aside. */
void serve_config_differences(const serve_config *running, const serve_config *fresh, realm_buf *out);
/* Creates or sets the file's tenants in the store and imports their keys. Tenants that the file does not name stay. */
REALM_WARN_UNUSED realm_status serve_config_apply_tenants(const serve_config *c, realm_store *store, realm_error *err);

#endif
