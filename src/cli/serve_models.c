/* cli/serve_models.c - models of a server are loaded before it is ready, and follow its configuration from then on.
 *
 *      serve_models_first --------> load each --> served
 *      serve_models_again --> [the last configuration read] --thread--> served, not in it: retire
 *                                                                       in it, not served: load --> served
 *                                                                       both: publish prefixes that are new
 *
 * Loading takes from a second to minutes, so it has a thread of its own once requests are being answered: signals are
 * heard meanwhile. A model that fails to load then is said and left out; the server goes on. One that is retired
 * answers what it has begun, and gives its memory back after that (tenant/served.c).
 */
#include "cli/serve_models.h"

#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/thread.h"

struct serve_models {
    realm_runtime *rt;
    atomic_bool stop;
    serve_model served[REALM_MODELS_MAX]; /* of whoever loads: one thread at a time */
    size_t n_served;

    realm_mutex mu;
    realm_cond work;
    serve_config *next; /* mu: to be looked at */
    bool stopping;      /* mu */
    pthread_t thread;
    bool started;
};

void serve_say(const char *fmt, ...) {
    char line[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    fprintf(stderr, "realm: %s\n", line); /* stderr is not buffered: one write */
}

/* ---- one model ---- */

/* A signal that was taken, or before the first is waited for. */
static bool asked_to_stop(const serve_models *l) {
    sigset_t pending;
    if (atomic_load_explicit(&l->stop, memory_order_relaxed)) return true;
    return sigpending(&pending) == 0 && (sigismember(&pending, SIGTERM) == 1 || sigismember(&pending, SIGINT) == 1);
}

typedef struct load {
    const serve_models *l;
    const char *id;
    int shown; /* tenths said so far */
} load;

static bool on_progress(void *user, uint64_t done, uint64_t total) {
    load *now = user;
    if (asked_to_stop(now->l)) {
        serve_say("stopped while loading %s", now->id);
        return false;
    }
    int tenth = total ? (int)(done * 10 / total) : 10;
    if (tenth <= now->shown) return true;
    now->shown = tenth;
    if (isatty(STDERR_FILENO))
        fprintf(stderr, "\rrealm: loading %s %d%%%s", now->id, tenth * 10, tenth == 10 ? "\r\033[K" : "");
    else if (tenth == 5)
        serve_say("loading %s: 50%%", now->id);
    return true;
}

static realm_status publish(serve_models *l, const char *id, const char *prefix, size_t number, realm_error *err) {
    realm_status st = realm_runtime_publish_prefix(l->rt, id, prefix, strlen(prefix), err);
    if (st != REALM_OK) realm_error_prefix(err, "model %s, prefix %zu", id, number);
    return st;
}

/* Loads a model and keeps what the configuration says of it, out of `m`. A prefix that fails leaves the model served.
 */
static realm_status load_model(serve_models *l, serve_model *m, const realm_engine_config *engine, realm_error *err) {
    uint64_t t0 = realm_clock_ns();
    load now = {l, m->id, 0};
    realm_model_config mc = {
        .engine = *engine, .weight_budget_bytes = m->weight_budget, .chat_template = m->chat_template};
    if (l->n_served == REALM_MODELS_MAX)
        return realm_error_set(err, REALM_E_LIMIT, "model %s: at most %u models", m->id, REALM_MODELS_MAX);
    serve_say("loading %s from %s", m->id, m->file);
    realm_status st = realm_runtime_add_model(l->rt, m->id, m->file, &mc, on_progress, &now, err);
    if (st != REALM_OK) {
        realm_error_prefix(err, "model %s", m->id);
        return st;
    }
    serve_model *to = &l->served[l->n_served++];
    *to = *m;
    *m = (serve_model){0};
    for (size_t k = 0; st == REALM_OK && k < to->n_prefixes; k++) st = publish(l, to->id, to->prefixes[k], k + 1, err);
    realm_served *served = st == REALM_OK ? realm_runtime_hold(l->rt, to->id) : NULL;
    if (served) {
        realm_model_info info;
        realm_served_get_info(served, &info);
        serve_say("loaded %s: %s, %u layers, %" PRIu64 " MiB of weights, context %u, in %.1f s%s", to->id,
                  info.hparams->arch, info.hparams->n_layers, info.weight_bytes >> 20,
                  realm_engine_context_length(realm_served_engine(served)), (double)(realm_clock_ns() - t0) / 1e9,
                  info.has_template ? "" : "; it has no chat template");
        realm_served_release(served);
    }
    return st;
}

realm_status serve_models_first(serve_models *l, serve_config *c, realm_error *err) {
    realm_status st = REALM_OK;
    for (size_t i = 0; st == REALM_OK && i < c->n_models; i++) st = load_model(l, &c->models[i], &c->engine, err);
    return st;
}

/* ---- a configuration that was read again ---- */

static serve_model *find(serve_model *list, size_t n, const char *id) {
    for (size_t i = 0; i < n; i++)
        if (list[i].id && strcmp(list[i].id, id) == 0) return &list[i];
    return NULL;
}

static bool has_prefix(const serve_model *m, const char *prefix) {
    for (size_t i = 0; i < m->n_prefixes; i++)
        if (strcmp(m->prefixes[i], prefix) == 0) return true;
    return false;
}

/* Prefixes that are new are published, as far as there is room for them; those that are gone stay. */
static void add_prefixes(serve_models *l, serve_model *served, serve_model *fresh) {
    size_t n_added = 0, n_gone = 0;
    for (size_t i = 0; i < served->n_prefixes; i++) n_gone += !has_prefix(fresh, served->prefixes[i]);
    for (size_t i = 0; i < fresh->n_prefixes; i++) {
        realm_error err = {0};
        if (has_prefix(served, fresh->prefixes[i]) || asked_to_stop(l)) continue;
        if (served->n_prefixes == SERVE_PREFIXES_MAX) {
            serve_say("model %s: prefix %zu waits for the next start: there are %u already", served->id, i + 1,
                      SERVE_PREFIXES_MAX);
        } else if (publish(l, served->id, fresh->prefixes[i], i + 1, &err) != REALM_OK) {
            serve_say("prefix not published: %s", err.text);
        } else {
            served->prefixes[served->n_prefixes++] = fresh->prefixes[i];
            fresh->prefixes[i] = NULL;
            n_added++;
        }
    }
    if (n_added) serve_say("model %s: %zu prefixes published", served->id, n_added);
    if (n_gone) serve_say("model %s: %zu prefixes are kept until the next start", served->id, n_gone);
}

/* Those that the configuration does not name any more. */
static void retire(serve_models *l, serve_config *c) {
    for (size_t i = 0; i < l->n_served;) {
        serve_model *m = &l->served[i];
        if (find(c->models, c->n_models, m->id)) {
            i++;
            continue;
        }
        if (realm_runtime_retire_model(l->rt, m->id, NULL) == REALM_OK)
            serve_say("model %s is not in the configuration any more: it takes no new requests", m->id);
        serve_model_release(m);
        memmove(m, m + 1, (--l->n_served - i) * sizeof *m);
    }
}

static void look_at(serve_models *l, serve_config *c) {
    retire(l, c);
    for (size_t i = 0; i < c->n_models && !asked_to_stop(l); i++) {
        serve_model *m = &c->models[i], *served = find(l->served, l->n_served, m->id);
        realm_error err = {0};
        if (!served) {
            realm_status st = load_model(l, m, &c->engine, &err);
            if (st != REALM_OK && st != REALM_E_CANCELLED) serve_say("not taken: %s", err.text);
            continue;
        }
        if (strcmp(served->file, m->file) != 0) serve_say("model %s: the next start takes its file", m->id);
        if (served->weight_budget != m->weight_budget)
            serve_say("model %s: the next start takes its weight_budget", m->id);
        if (!served->chat_template != !m->chat_template ||
            (m->chat_template && strcmp(served->chat_template, m->chat_template) != 0))
            serve_say("model %s: the next start takes its chat_template", m->id);
        add_prefixes(l, served, m);
    }
}

static void drop_config(serve_config *c) {
    if (c) serve_config_release(c);
    realm_free(c);
}

static void *thread_main(void *arg) {
    serve_models *l = arg;
    realm_mutex_lock(&l->mu);
    while (!l->stopping) {
        serve_config *c = l->next;
        l->next = NULL;
        if (!c) {
            realm_cond_wait(&l->work, &l->mu);
            continue;
        }
        realm_mutex_unlock(&l->mu);
        look_at(l, c);
        drop_config(c);
        realm_mutex_lock(&l->mu);
    }
    realm_mutex_unlock(&l->mu);
    return NULL;
}

void serve_models_again(serve_models *l, serve_config *fresh) {
    realm_error err = {0};
    realm_mutex_lock(&l->mu);
    serve_config *old = l->next;
    l->next = fresh;
    if (!l->started) l->started = realm_thread_start(&l->thread, "realm-loader", thread_main, l, &err) == REALM_OK;
    realm_cond_signal(&l->work);
    realm_mutex_unlock(&l->mu);
    drop_config(old);
    if (err.code) serve_say("models of the configuration not taken: %s", err.text);
}

/* ---- open, close ---- */

realm_status serve_models_open(serve_models **out, realm_runtime *rt, realm_error *err) {
    serve_models *l = *out = realm_calloc(1, sizeof *l);
    if (!l) return realm_error_set(err, REALM_E_NOMEM, "out of memory");
    l->rt = rt;
    realm_mutex_init(&l->mu, REALM_RANK_LEAF);
    realm_cond_init(&l->work);
    return REALM_OK;
}

void serve_models_close(serve_models *l) {
    if (!l) return;
    atomic_store_explicit(&l->stop, true, memory_order_relaxed);
    realm_mutex_lock(&l->mu);
    l->stopping = true;
    realm_cond_signal(&l->work);
    realm_mutex_unlock(&l->mu);
    if (l->started) pthread_join(l->thread, NULL);
    drop_config(l->next);
    for (size_t i = 0; i < l->n_served; i++) serve_model_release(&l->served[i]);
    realm_cond_destroy(&l->work);
    realm_mutex_destroy(&l->mu);
    realm_free(l);
}
