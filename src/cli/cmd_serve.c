/* cli/cmd_serve.c - `realm serve`: the server process, from its configuration to its last exchange.
 *
 *      configuration -> store, runtime -> tenants -> listeners open (/health answers, /ready says 503)
 *        -> models load, one after the other -> ready -> signals: SIGHUP reads the configuration again (reload),
 *        SIGTERM or SIGINT drains (a second one does not wait) -> everything closed, exit 0
 *
 * Signals are blocked in every thread and taken by this one with sigtimedwait, so no handler runs anywhere.
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "api/api.h"
#include "base/alloc.h"
#include "base/clock.h"
#include "base/log.h"
#include "cli/args.h"
#include "cli/cli.h"
#include "cli/serve_config.h"
#include "cli/serve_models.h"

enum {
    OPT_CONFIG = 1,
    OPT_STATE,
    OPT_LISTEN,
    OPT_ADMIN,
    OPT_MODEL,
    OPT_MODELS_DIR,
    OPT_THREADS,
    OPT_WEIGHT_BUDGET,
    OPT_KV_BYTES,
    OPT_SPILL_BYTES,
    OPT_SPILL_DIR,
    OPT_LOG_LEVEL
};
static const realm_option options[] = {{"--config", OPT_CONFIG, true},
                                       {"--state", OPT_STATE, true},
                                       {"--listen", OPT_LISTEN, true},
                                       {"--admin-listen", OPT_ADMIN, true},
                                       {"--model", OPT_MODEL, true},
                                       {"--models-dir", OPT_MODELS_DIR, true},
                                       {"--threads", OPT_THREADS, true},
                                       {"--weight-budget", OPT_WEIGHT_BUDGET, true},
                                       {"--kv-bytes", OPT_KV_BYTES, true},
                                       {"--spill-bytes", OPT_SPILL_BYTES, true},
                                       {"--spill-dir", OPT_SPILL_DIR, true},
                                       {"--log-level", OPT_LOG_LEVEL, true},
                                       {0}};

static const char usage[] = "usage: realm serve [--config FILE] [--state DIR] [--listen A:P] [--admin-listen A:P]\n"
                            "                   [--model ID=FILE]... [--models-dir DIR] [--threads N]\n"
                            "                   [--weight-budget SIZE] [--kv-bytes SIZE] [--spill-bytes SIZE]\n"
                            "                   [--spill-dir DIR] [--log-level LEVEL]\n";
static const char help[] =
    "Serves models to tenants over HTTP until SIGTERM.\n"
    "  --config FILE      YAML; the options below override it; SIGHUP reads it again\n"
    "  --state DIR        store, compiled programs (default $XDG_STATE_HOME/realm)\n"
    "  --listen A:P       where tenants ask (default 127.0.0.1:8080; port 0: any free one, printed)\n"
    "  --admin-listen A:P health, metrics, /admin/v1 (default 127.0.0.1:8081; `off`: not at all)\n"
    "  --model ID=FILE    a model and its id; may be repeated; with ID alone it is looked for in the models folder\n"
    "  --models-dir DIR   that folder (default $XDG_DATA_HOME/realm/models)\n"
    "  --threads N        threads that compute (default one per core)\n"
    "  --weight-budget S  memory for each model's weights, like 200M or 6G: the rest streams from the file\n"
    "  --kv-bytes S       memory for each model's KV pages (default: for 64 answers at full length, at most a quarter\n"
    "                     of the machine's)\n"
    "  --spill-bytes S    memory for each model's KV pages of idle contexts that had to leave it (default 256M)\n"
    "  --spill-dir DIR    beyond that, a file without a name in this folder (default: none, they are computed again)\n"
    "  --log-level LEVEL  debug, info, warn, error (default info); what programs log shows with debug alone\n";

#define OTHER_DESCRIPTORS 256u /* that are no connections of tenants: models, stores, programs, the admin listener */

typedef struct flags {
    const char *config, *state, *listen, *admin, *models_dir;
    const char *models[REALM_MODELS_MAX];
    size_t n_models;
    const char *spill_dir;
    uint64_t threads, weight_budget, kv_bytes, spill_bytes;
    realm_log_level log_level;
    bool has_threads, has_kv, has_spill, has_log;
} flags;

typedef struct serving {
    serve_config config;
    sigset_t signals;
    realm_runtime *rt;
    realm_api *api;
    realm_server *server;
    serve_models *models;
} serving;

static bool is_address(realm_args *args, const char *option, const char *text) {
    if (realm_server_is_address(text)) return true;
    char what[96];
    (void)snprintf(what, sizeof what, "%s takes an address like 127.0.0.1:8080 or [::1]:8080, not ", option);
    (void)realm_args_usage(args, what, text);
    return false;
}

/* False when the command ends now with args->status. */
static bool read_flags(realm_args *args, flags *f) {
    const char *value;
    for (int id; (id = realm_args_next(args, &value)) != 0;) {
        switch (id) {
        case OPT_CONFIG: f->config = value; break;
        case OPT_STATE: f->state = value; break;
        case OPT_LISTEN:
            if (!is_address(args, "--listen", f->listen = value)) return false;
            break;
        case OPT_ADMIN:
            f->admin = value;
            if (strcmp(value, "off") != 0 && !is_address(args, "--admin-listen", value)) return false;
            break;
        case OPT_MODELS_DIR: f->models_dir = value; break;
        case OPT_THREADS:
            if (!realm_args_u64(args, "--threads", value, 1, 1024, &f->threads)) return false;
            f->has_threads = true;
            break;
        case OPT_WEIGHT_BUDGET:
            if (!realm_args_size(args, "--weight-budget", value, &f->weight_budget)) return false;
            break;
        case OPT_KV_BYTES:
            if (!realm_args_size(args, "--kv-bytes", value, &f->kv_bytes)) return false;
            f->has_kv = true;
            break;
        case OPT_SPILL_BYTES:
            if (!realm_args_size(args, "--spill-bytes", value, &f->spill_bytes)) return false;
            f->has_spill = true;
            break;
        case OPT_SPILL_DIR: f->spill_dir = value; break;
        case OPT_LOG_LEVEL:
            if (!(f->has_log = serve_config_log_level(value, &f->log_level))) {
                (void)realm_args_usage(args, "--log-level takes debug, info, warn or error, not ", value);
                return false;
            }
            break;
        case OPT_MODEL:
            if (!value[0] || strcspn(value, "=") - 1 >= REALM_MODEL_ID_MAX ||
                strchr(value, '=') == value + strlen(value) - 1) {
                (void)realm_args_usage(args, "--model takes ID=FILE or a model's name, not ", value);
                return false;
            }
            if (f->n_models == REALM_MODELS_MAX) {
                (void)realm_args_usage(args, "too many models: ", value);
                return false;
            }
            f->models[f->n_models++] = value;
            break;
        default: return false;
        }
    }
    return true;
}

/* The file, then the flags over it. */
static realm_status read_config(serve_config *c, const flags *f, realm_error *err) {
    serve_config_init(c);
    realm_status st = f->config ? serve_config_read(c, f->config, f->models_dir, err) : REALM_OK;
    if (st != REALM_OK) return st;
    if (f->listen) c->listen = f->listen;
    if (f->admin) c->admin_listen = f->admin;
    if (f->has_log) c->log_level = f->log_level;
    if (f->has_kv) c->engine.kv_bytes = f->kv_bytes;
    if (f->has_spill) c->engine.spill_bytes = f->spill_bytes;
    c->engine.spill_dir = f->spill_dir ? f->spill_dir : c->spill_dir;
    if (f->has_threads) c->threads = (int64_t)f->threads;
    if (f->models_dir && !f->config && !(c->models_dir = realm_strdup(f->models_dir)))
        return realm_error_set(err, REALM_E_NOMEM, "out of memory");
    if (f->state || !c->state) {
        realm_free(c->state);
        c->state = realm_state_dir(f->state);
        if (!c->state)
            return realm_error_set(err, REALM_E_INVALID, "no folder for the state: give --state, or set HOME");
    }
    for (size_t i = 0; st == REALM_OK && i < f->n_models; i++) st = serve_config_add_model(c, f->models[i], err);
    for (size_t i = 0; i < c->n_models; i++)
        if (c->models[i].weight_budget == 0) c->models[i].weight_budget = f->weight_budget;
    return st;
}

/* As many descriptors as the system allows, and no more connections than that leaves: who comes when all are taken is
 * given the place of an idle one, which a server without descriptors could not do. How many files may be open. */
static uint64_t fit_descriptors(serve_config *c) {
    struct rlimit r;
    if (getrlimit(RLIMIT_NOFILE, &r) != 0) return UINT64_MAX;
    const rlim_t before = r.rlim_cur;
    r.rlim_cur = r.rlim_max;
    if (before < r.rlim_max && setrlimit(RLIMIT_NOFILE, &r) != 0) r.rlim_cur = before;
    const uint64_t left = r.rlim_cur > 2 * OTHER_DESCRIPTORS ? r.rlim_cur - OTHER_DESCRIPTORS : r.rlim_cur / 2;
    c->http.connections = (uint32_t)REALM_MIN(c->http.connections, left);
    return r.rlim_cur;
}

static realm_status open_server(serving *s, realm_error *err) {
    const serve_config *c = &s->config;
    bool admin = strcmp(c->admin_listen, "off") != 0;
    const realm_listen listen[2] = {{c->listen, REALM_API_PUBLIC}, {c->admin_listen, REALM_API_ADMIN}};
    realm_api_config ac = {.n_workers = (unsigned)c->api_threads, .held_bytes = c->http.bodies_bytes};
    realm_status st = realm_api_open(&s->api, s->rt, &ac, err);
    if (st != REALM_OK) return st;
    realm_api_set_state(s->api, REALM_API_STARTING);
    realm_server_config sc = {.listen = listen,
                              .n_listen = admin ? 2 : 1,
                              .n_threads = (unsigned)c->io_threads,
                              .limits = c->http,
                              .names = c->names,
                              .n_names = c->n_names,
                              .handler = realm_api_handler(s->api)};
    st = realm_server_open(&s->server, &sc, err);
    if (st != REALM_OK) return st;
    realm_api_set_server(s->api, s->server);
    serve_say("listening on http://%s", realm_server_address(s->server, 0));
    if (admin) serve_say("admin on http://%s", realm_server_address(s->server, 1));
    return REALM_OK;
}

/* Takes what a running server can of the file: tenants, keys and drain_seconds now, new models beside the requests.
 * Says what of it waits for the next start. */
static void reload(serving *s, const flags *f) {
    realm_error err = {0};
    realm_buf other;
    serve_config *fresh = realm_calloc(1, sizeof *fresh);
    if (!fresh) {
        serve_say("configuration not taken: out of memory");
        return;
    }
    realm_status st = read_config(fresh, f, &err);
    if (st == REALM_OK) st = serve_config_apply_tenants(fresh, realm_runtime_store(s->rt), &err);
    if (st != REALM_OK) {
        serve_say("configuration not taken: %s", err.text);
        serve_config_release(fresh);
        realm_free(fresh);
        return;
    }
    realm_runtime_reload(s->rt);
    s->config.drain_seconds = fresh->drain_seconds;
    (void)fit_descriptors(fresh);
    realm_buf_init(&other, 4096);
    serve_config_differences(&s->config, fresh, &other);
    serve_say("configuration read again: %zu tenants%s%.*s", fresh->n_tenants,
              other.len ? "; the next start takes: " : "", other.len ? (int)other.len - 2 : 0,
              other.len ? other.data + 2 : "");
    realm_buf_release(&other);
    serve_models_again(s->models, fresh);
}

static int next_signal(const serving *s, const struct timespec *timeout) {
    for (;;) {
        int sig = sigtimedwait(&s->signals, NULL, timeout);
        if (sig > 0 || errno != EINTR) return sig;
    }
}

static void drain(serving *s) {
    const struct timespec now = {0};
    uint64_t end = realm_clock_ns() + (uint64_t)s->config.drain_seconds * REALM_NS_PER_S;
    realm_server_stats stats;
    realm_server_get_stats(s->server, &stats);
    serve_say("stopping: %u requests are being answered", stats.exchanges);
    realm_api_set_state(s->api, REALM_API_DRAINING);
    while (!realm_server_drain(s->server, realm_clock_ns() + 100 * REALM_NS_PER_MS)) {
        int sig = next_signal(s, &now);
        if (sig == SIGTERM || sig == SIGINT || realm_clock_ns() >= end) {
            serve_say("not waiting any longer");
            return;
        }
    }
}

static void serve(serving *s, const flags *f) {
    const struct timespec tick = {.tv_sec = 3600};
    for (;;) {
        int sig = next_signal(s, &tick);
        if (sig == SIGHUP) reload(s, f);
        if (sig != SIGTERM && sig != SIGINT) continue;
        drain(s);
        return;
    }
}

int realm_cmd_serve(int argc, char **argv) {
    realm_args args = {
        .command = "serve", .usage = usage, .help = help, .options = options, .argc = argc, .argv = argv};
    flags f = {0};
    serving s = {0};
    realm_error err = {0};
    if (!read_flags(&args, &f)) return args.status;
    int status = REALM_EXIT_DONE;

    sigemptyset(&s.signals);
    sigaddset(&s.signals, SIGTERM);
    sigaddset(&s.signals, SIGINT);
    sigaddset(&s.signals, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &s.signals, NULL); /* before any thread */
    signal(SIGPIPE, SIG_IGN);

    char *self = realm_self_path();
    realm_status st = read_config(&s.config, &f, &err);
    if (st != REALM_OK) goto done;
    realm_log_configure(s.config.log_level, NULL, NULL);
    serve_say("version " REALM_VERSION ", state in %s", s.config.state);
    const uint32_t wanted = s.config.http.connections;
    const uint64_t files = fit_descriptors(&s.config);
    if (s.config.http.connections < wanted)
        serve_say("at most %u connections: %llu files may be open", s.config.http.connections,
                  (unsigned long long)files);
    realm_runtime_config rc = {.state_dir = s.config.state,
                               .compiler_path = self,
                               .n_workers = (uint32_t)s.config.workers,
                               .max_instances = (uint32_t)s.config.max_instances,
                               .program_bytes = (uint64_t)s.config.program_bytes,
                               .n_threads = (uint32_t)s.config.threads};
    if ((st = realm_runtime_open(&s.rt, &rc, &err)) != REALM_OK) goto done;
    if ((st = serve_config_apply_tenants(&s.config, realm_runtime_store(s.rt), &err)) != REALM_OK) goto done;
    if ((st = open_server(&s, &err)) != REALM_OK) goto done;
    if ((st = serve_models_open(&s.models, s.rt, &err)) != REALM_OK) goto done;
    if ((st = serve_models_first(s.models, &s.config, &err)) != REALM_OK) goto done;
    if (realm_runtime_model_count(s.rt) == 0) serve_say("no model is served: give --model ID=FILE");
    realm_api_set_state(s.api, REALM_API_SERVING);
    serve_say("ready");
    serve(&s, &f);
done:
    if (st == REALM_E_CANCELLED) st = REALM_OK; /* asked to stop before there was anything to drain */
    if (st != REALM_OK) status = realm_fail("serve", &err);
    realm_server_stop(s.server);
    serve_models_close(s.models);
    realm_api_close(s.api);
    realm_server_close(s.server);
    if (s.rt) realm_runtime_close(s.rt);
    serve_config_release(&s.config);
    realm_free(self);
    if (st == REALM_OK) serve_say("stopped");
    return status;
}
