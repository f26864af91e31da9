/* cli/cmd_tenant.c - `realm tenant create / list / show / set / delete`: works on the state folder, server or not. */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/file.h"
#include "base/str.h"
#include "cli/args.h"
#include "cli/cli.h"
#include "cli/listing.h"
#include "sandbox/sandbox.h"
#include "tenant/tenant.h"

#define OUTPUT_MAX ((size_t)1 << 20)
#define SETTINGS_MAX 32u

enum { OPT_STATE = 1, OPT_PROGRAM, OPT_SET, OPT_DEFAULT_PROGRAM, OPT_ARG, OPT_NO_ARGS, OPT_ENV };
static const realm_option options[] = {{"--state", OPT_STATE, true},
                                       {"--program", OPT_PROGRAM, true},
                                       {"--default-program", OPT_DEFAULT_PROGRAM, false},
                                       {"--arg", OPT_ARG, true},
                                       {"--no-args", OPT_NO_ARGS, false},
                                       {"--env", OPT_ENV, true},
                                       {"--set", OPT_SET, true},
                                       {0}};

static const char usage[] =
    "usage: realm tenant create NAME [--program FILE.wasm] [--arg TEXT]... [--env NAME=VALUE]... "
    "[--set LIMIT=VALUE]...\n"
    "       realm tenant set NAME [--program FILE.wasm | --default-program] "
    "[--arg TEXT... | --no-args] [--env NAME[=VALUE]]... [--set LIMIT=VALUE]...\n"
    "       realm tenant list | show NAME | delete NAME\n";

typedef struct tenant_args {
    const char *state, *program;
    bool default_program;
    const char *settings[SETTINGS_MAX];
    size_t n_settings;
    const char *args[REALM_STRINGS_MAX], *env[REALM_STRINGS_MAX];
    size_t n_args, n_env;
    bool no_args;
} tenant_args;

static void write_strings(realm_json_writer *w, const char *key, const realm_strings *l) {
    realm_json_key(w, key);
    realm_json_begin_array(w);
    for (uint32_t at = 0; at < l->len; at += (uint32_t)strlen(l->text + at) + 1) realm_json_write_cstr(w, l->text + at);
    realm_json_end_array(w);
}

static void show_strings(realm_buf *out, const char *key, const realm_strings *l) {
    for (uint32_t at = 0; at < l->len; at += (uint32_t)strlen(l->text + at) + 1) {
        char shown[REALM_STRINGS_BYTES_MAX];
        const char *text = realm_escape(shown, sizeof shown, l->text + at, strlen(l->text + at));
        (void)realm_buf_printf(out, "%-8s %s\n", key, text);
    }
}

static void write_tenant(realm_json_writer *w, const realm_tenant_row *row) {
    realm_json_begin_object(w);
    realm_json_key(w, "name");
    realm_json_write_cstr(w, row->name);
    realm_json_key(w, "created");
    realm_json_write_int(w, row->created_s);
    realm_json_key(w, "program");
    realm_json_write_cstr(w, row->program_sha256[0] ? row->program_sha256 : NULL);
    write_strings(w, "args", &row->args);
    write_strings(w, "env", &row->env);
    realm_json_key(w, "limits");
    realm_json_begin_object(w);
#define X(field, type, def, least, most, text) \
    realm_json_key(w, #field);                 \
    realm_json_write_uint(w, row->limits.field);
    REALM_TENANT_LIMITS(X)
#undef X
    realm_json_end_object(w);
    realm_json_end_object(w);
}

static bool list_one(void *user, const realm_tenant_row *row) {
    realm_listing *l = user;
    if (l->json)
        write_tenant(&l->w, row);
    else
        (void)realm_buf_printf(&l->out, "%-32s %s\n", row->name,
                               row->program_sha256[0] ? row->program_sha256 : "default program");
    return realm_buf_status(&l->out) == REALM_OK;
}

static int list(realm_store *store, bool json) {
    realm_listing l;
    realm_error err = {0};
    realm_listing_begin(&l, json);
    realm_status s = realm_store_tenant_each(store, list_one, &l, &err);
    return realm_listing_end(&l, "tenant list", s, &err);
}

static int show(realm_store *store, const char *name, bool json) {
    realm_tenant_row row;
    realm_error err = {0};
    realm_buf out;
    if (realm_store_tenant_find(store, name, &row, &err) != REALM_OK) return realm_fail("tenant show", &err);
    realm_buf_init(&out, OUTPUT_MAX);
    if (json) {
        realm_json_writer w;
        realm_json_writer_init(&w, &out);
        write_tenant(&w, &row);
        (void)realm_buf_putc(&out, '\n');
    } else {
        (void)realm_buf_printf(&out, "name     %s\nprogram  %s\n", row.name,
                               row.program_sha256[0] ? row.program_sha256 : "default");
        show_strings(&out, "arg", &row.args);
        show_strings(&out, "env", &row.env);
#define X(field, type, def, least, most, text) \
    (void)realm_buf_printf(&out, "%-20s %12llu  %s\n", #field, (unsigned long long)row.limits.field, text);
        REALM_TENANT_LIMITS(X)
#undef X
    }
    return realm_print("tenant show", &out);
}

/* Applies "name=value" to `l`. */
static realm_status apply_setting(const char *setting, realm_limits *l, realm_error *err) {
    const char *eq = strchr(setting, '=');
    if (!eq) return realm_error_set(err, REALM_E_INVALID, "takes LIMIT=VALUE, not %s", setting);
    char name[64];
    snprintf(name, sizeof name, "%.*s", (int)REALM_MIN(eq - setting, 63), setting);
    return realm_limits_set(l, name, eq + 1, err);
}

static realm_status apply_settings(const tenant_args *a, realm_limits *l, realm_error *err) {
    realm_status s = REALM_OK;
    for (size_t i = 0; s == REALM_OK && i < a->n_settings; i++) s = apply_setting(a->settings[i], l, err);
    return s;
}

/* Applies --arg, --no-args and --env to what the tenant has. */
static realm_status apply_strings(const tenant_args *a, realm_strings *args, realm_strings *env, realm_error *err) {
    realm_status s = REALM_OK;
    if (a->n_args || a->no_args) args->n = args->len = 0;
    for (size_t i = 0; s == REALM_OK && i < a->n_args; i++)
        if ((s = realm_strings_add(args, a->args[i], strlen(a->args[i]), err)) != REALM_OK)
            realm_error_prefix(err, "--arg");
    for (size_t i = 0; s == REALM_OK && i < a->n_env; i++) {
        size_t len = strlen(a->env[i]);
        if (!strchr(a->env[i], '='))
            (void)realm_strings_unset_env(env, a->env[i], len);
        else if ((s = realm_strings_set_env(env, a->env[i], len, err)) != REALM_OK)
            realm_error_prefix(err, "--env");
    }
    return s;
}

/* Compiles a module as the server would, so that one that it would refuse never reaches the store. */
static realm_status check_program(const char *state_dir, const char *file, const realm_limits *limits, char **wasm,
                                  size_t *len, realm_error *err) {
    realm_status s = realm_file_read(file, REALM_MODULE_BYTES_MAX, wasm, len, err);
    if (s != REALM_OK) return s;
    char *self = realm_self_path(), *state = realm_state_dir(state_dir);
    s = realm_runtime_check_program(state, self, *wasm, *len, limits, NULL, false, err);
    realm_free(state);
    realm_free(self);
    if (s != REALM_OK) realm_error_prefix(err, "%s", file);
    return s;
}

static int create_or_set(realm_store *store, const tenant_args *a, const char *name, bool create) {
    const char *command = create ? "tenant create" : "tenant set";
    realm_error err = {0};
    realm_tenant_row row = {0};
    realm_limits limits;
    char *wasm = NULL;
    size_t len = 0;
    realm_status s = REALM_OK;
    realm_limits_init(&limits);
    if (!create) {
        s = realm_store_tenant_find(store, name, &row, &err);
        limits = row.limits;
    }
    if (s == REALM_OK) s = apply_settings(a, &limits, &err);
    if (s == REALM_OK) s = apply_strings(a, &row.args, &row.env, &err);
    if (s == REALM_OK && a->program) s = check_program(a->state, a->program, &limits, &wasm, &len, &err);
    if (s == REALM_OK && create)
        s = realm_store_tenant_create(store, name, &limits, wasm, len, NULL, &err);
    else if (s == REALM_OK)
        s = realm_store_tenant_set(store, name, a->n_settings ? &limits : NULL, a->default_program ? "" : wasm, len,
                                   &err);
    if (s == REALM_OK && (a->n_args || a->no_args || a->n_env))
        s = realm_store_tenant_set_strings(store, name, &row.args, &row.env, &err);
    realm_free(wasm);
    return s == REALM_OK ? REALM_EXIT_DONE : realm_fail(command, &err);
}

int realm_cmd_tenant(int argc, char **argv) {
    static const char help[] =
        "\nMakes, shows and changes tenants. A running server takes changes within a second.\n\n"
        "  --program FILE     the tenant's own WebAssembly program (docs/programs.md)\n"
        "  --default-program  back to the built-in one\n"
        "  --arg TEXT         an argument for a WASI program (docs/wasi.md); any replace those before\n"
        "  --no-args          none\n"
        "  --env NAME=VALUE   its environment; NAME alone removes one\n"
        "  --set LIMIT=VALUE  a limit; `realm tenant show NAME` lists them all\n"
        "  --state DIR        where tenants, keys and the ledger are kept\n";
    realm_args args = {.command = "tenant",
                       .usage = usage,
                       .help = help,
                       .options = options,
                       .words_max = 2,
                       .prints_data = true,
                       .argc = argc,
                       .argv = argv};
    tenant_args a = {0};
    const char *value;
    for (int id; (id = realm_args_next(&args, &value)) != 0;) {
        if (id < 0) return args.status;
        if (id == OPT_STATE) a.state = value;
        if (id == OPT_PROGRAM) a.program = value;
        if (id == OPT_DEFAULT_PROGRAM) a.default_program = true;
        if (id == OPT_NO_ARGS) a.no_args = true;
        if (id == OPT_ARG) {
            if (a.n_args == REALM_STRINGS_MAX) return realm_args_usage(&args, "too many arguments: ", value);
            a.args[a.n_args++] = value;
        }
        if (id == OPT_ENV) {
            if (a.n_env == REALM_STRINGS_MAX) return realm_args_usage(&args, "too many variables: ", value);
            a.env[a.n_env++] = value;
        }
        if (id == OPT_SET) {
            if (a.n_settings == SETTINGS_MAX) return realm_args_usage(&args, "too many settings: ", value);
            a.settings[a.n_settings++] = value;
        }
    }
    enum { LIST, CREATE, SET, SHOW, DELETE };
    static const realm_action actions[] = {[LIST] = {"list", NULL},
                                           [CREATE] = {"create", "a tenant's name"},
                                           [SET] = {"set", "a tenant's name"},
                                           [SHOW] = {"show", "a tenant's name"},
                                           [DELETE] = {"delete", "a tenant's name"}};
    int action = realm_args_action(&args, actions, REALM_ARRAY_LEN(actions));
    if (action < 0) return args.status;
    const bool changes = a.program || a.default_program || a.n_args || a.no_args || a.n_env || a.n_settings;
    if (changes && action != CREATE && action != SET)
        return realm_args_usage(&args, "what to change is for create and set, not ", args.words[0]);
    if (action == CREATE && (a.default_program || a.no_args))
        return realm_args_usage(&args, "--default-program and --no-args are for set, not ", args.words[0]);
    for (size_t i = 0; i < a.n_env; i++) /* a name alone removes one */
        if (a.env[i][0] == '=' || !a.env[i][0] || (action == CREATE && !strchr(a.env[i], '=')))
            return realm_args_usage(&args, "--env takes NAME=VALUE, not ", a.env[i]);
    realm_limits ignored;
    realm_limits_init(&ignored);
    for (size_t i = 0; i < a.n_settings; i++) {
        realm_error why = {0};
        if (apply_setting(a.settings[i], &ignored, &why) != REALM_OK)
            return realm_args_usage(&args, "--set: ", why.text);
    }
    if (a.n_args && a.no_args) return realm_args_usage(&args, "one of --arg and --no-args", "");
    if (a.program && a.default_program) return realm_args_usage(&args, "one of --program and --default-program", "");

    realm_error err = {0};
    realm_store *store = NULL;
    const char *name = args.words[1];
    if (realm_open_store(a.state, &store, &err) != REALM_OK) return realm_fail("tenant", &err);
    int status;
    if (action == LIST)
        status = list(store, args.json);
    else if (action == SHOW)
        status = show(store, name, args.json);
    else if (action == CREATE || action == SET)
        status = create_or_set(store, &a, name, action == CREATE);
    else
        status = realm_store_tenant_delete(store, name, &err) == REALM_OK ? REALM_EXIT_DONE
                                                                          : realm_fail("tenant delete", &err);
    realm_store_close(store);
    return status;
}
