/* tenant/models.c - models: opening one with all that serving it takes, and those that tenants stored themselves.
 *
 * A stored model is a file in its tenant's folder, named by its hash, and a row in the store for each id that names it.
 * It is loaded by whoever first uses it and belongs to this tenant alone: its own engine with the one account, in its
 * tenant's list.
 *
 *                 model_hold: none holds it yet            loaded                    last model_let_go
 *      (on disk) -------------------------------> LOADING --------> READY, held <-----------------------> READY, idle
 *          ^                                         | cannot be                model_hold                   |
 *          +-----------------------------------------+                                                       |
 *          +---------------------- UNLOADING <---------------------------------------------------------------+
 *             ledger has its tokens            make_room (the one idle for longest), models_unload_idle
 *
 * How many are loaded at once is bounded, per tenant and in all. Unloading takes the ledger's lock, so that no flush
 * sees an engine half gone, and leaves the tokens that are not in the ledger yet with the tenant.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "crypto/crypto.h"
#include "tenant/internal.h"

#define STORED_GENERATIONS_MAX 16u
#define STORED_KV_BYTES ((uint64_t)128 << 20)
#define SWEEP_AGE_S 3600 /* younger files may be another process's that is about to list them */

/* ---- opening ----------------------------------------------------------------------------------------------------- */

/* Its engine has ended; a compute thread may still be waking readers. */
static void idle_close(model_idle *i) {
    if (!i) return;
    realm_mutex_lock(&i->mu);
    while (i->flushing) realm_cond_wait(&i->flushed, &i->mu);
    realm_mutex_unlock(&i->mu);
    realm_lender_close(i->lender);
    realm_cond_destroy(&i->flushed);
    realm_mutex_destroy(&i->mu);
    realm_free(i);
}

void model_free(tenant_model *m) {
    if (!m) return;
    if (m->account) realm_account_close(m->account);
    realm_engine_close(m->engine);
    idle_close(m->idle);
    realm_grammar_vocab_close(m->vocab);
    realm_mutex_destroy(&m->vocab_mu);
    realm_template_close(m->template);
    realm_free(m->template_error);
    realm_tokenizer_close(m->tokenizer);
    realm_model_close(m->model);
    realm_gguf_close(m->gguf);
    realm_free(m->path);
    realm_free(m);
}

/* Reads the file's template, or the operator's. */
static realm_status open_template(tenant_model *m, const char *override, realm_error *err) {
    realm_gguf_str source = {0};
    if (override) {
        source = (realm_gguf_str){override, strlen(override)};
    } else {
        realm_status s = realm_gguf_get_str(m->gguf, "tokenizer.chat_template", false, &source, err);
        if (s != REALM_OK) return s;
    }
    if (source.len == 0) return REALM_OK;
    realm_status s = template_open_for(m->tokenizer, source.data, source.len, &m->template, err);
    if (s != REALM_OK && !override) {
        /* The model still completes text; the chat endpoint says why it cannot be used. */
        realm_log_warn("model", "%s: chat template not usable: %s", m->id, err->text);
        m->template_error = realm_strdup(err->text); /* without memory for it the text is shorter */
        realm_error_clear(err);
        return REALM_OK;
    }
    if (s != REALM_OK) realm_error_prefix(err, "chat template");
    return s;
}

/* Programs that decide on each token run on the engine's thread while it waits for nothing but them. */
static void expect_programs(void *user) { realm_lender_begin(((model_idle *)user)->lender); }
static void recall(void *user) { realm_lender_recall(((model_idle *)user)->lender); }

static void flush_aside(void *user) {
    model_idle *i = user;
    realm_lender_flush(i->lender);
    realm_mutex_lock(&i->mu);
    i->flushing = false;
    realm_cond_broadcast(&i->flushed);
    realm_mutex_unlock(&i->mu);
}

/* Their readers are woken by a compute thread that waits for the next step, if there is one. */
static void run_programs(void *user) {
    model_idle *i = user;
    const struct realm_backend_vtable *v = i->backend->v;
    realm_lender_run(i->lender);
    if (!realm_lender_has_deferred(i->lender)) return;
    realm_mutex_lock(&i->mu);
    bool mine = !i->flushing; /* else the thread that is at it takes these too, or is about to end and this one does */
    i->flushing = true;
    realm_mutex_unlock(&i->mu);
    if (mine && v->aside && v->aside(i->backend, flush_aside, i)) return;
    if (mine)
        flush_aside(i);
    else
        realm_lender_flush(i->lender);
}

static realm_status open_engine(realm_runtime *rt, tenant_model *m, const realm_engine_config *config,
                                realm_error *err) {
    realm_engine_config c = *config;
    if (!(m->idle = realm_calloc(1, sizeof *m->idle))) return realm_error_set(err, REALM_E_NOMEM, "out of memory");
    m->idle->backend = rt->backend;
    realm_mutex_init(&m->idle->mu, REALM_RANK_LEAF);
    realm_cond_init(&m->idle->flushed);
    realm_status s = realm_lender_open(rt->sandbox, &m->idle->lender, err);
    if (s != REALM_OK) return s;
    c.idle = (realm_engine_idle){m->idle, expect_programs, run_programs, recall};
    return realm_engine_open(&m->engine, rt->backend, m->model, m->tokenizer, &c, err);
}

void model_end_lending(tenant_model *m) {
    if (m->engine) realm_engine_end_idle(m->engine);
}

realm_status model_load(realm_runtime *rt, const char *id, const char *path, const realm_model_config *config,
                        realm_model_progress progress, void *user, tenant_model **out, realm_error *err) {
    size_t id_len = strlen(id);
    if (id_len == 0 || id_len > REALM_MODEL_ID_MAX)
        return realm_error_set(err, REALM_E_INVALID, "model id: 1 to %u bytes", REALM_MODEL_ID_MAX);
    tenant_model *m = realm_calloc(1, sizeof *m);
    if (!m) return realm_error_set(err, REALM_E_NOMEM, "%s: out of memory", id);
    realm_mutex_init(&m->vocab_mu, REALM_RANK_LEAF);
    memcpy(m->id, id, id_len + 1);
    struct stat st;
    if (stat(path, &st) == 0) m->created_s = st.st_mtime;
    realm_status s = REALM_OK;
    if (!(m->path = realm_strdup(path))) {
        s = realm_error_set(err, REALM_E_NOMEM, "%s: out of memory", id);
        goto fail;
    }
    const realm_model_options mo = {
        .weight_budget_bytes = config->weight_budget_bytes, .progress = progress, .user = user};
    if ((s = realm_gguf_open(&m->gguf, path, err)) != REALM_OK) goto fail;
    if ((s = realm_tokenizer_open(&m->tokenizer, m->gguf, err)) != REALM_OK) goto prefix;
    if ((s = open_template(m, config->chat_template, err)) != REALM_OK) goto prefix;
    if ((s = realm_model_open(&m->model, rt->backend, m->gguf, &mo, err)) != REALM_OK) goto prefix;
    if (realm_tokenizer_vocab_size(m->tokenizer) > realm_model_hparams(m->model)->n_vocab) {
        s = realm_error_set(err, REALM_E_FORMAT, "the tokenizer has %zu tokens, the embedding %u rows",
                            realm_tokenizer_vocab_size(m->tokenizer), realm_model_hparams(m->model)->n_vocab);
        goto prefix;
    }
    if ((s = open_engine(rt, m, &config->engine, err)) != REALM_OK) goto prefix;
    *out = m;
    return REALM_OK;
prefix:
    realm_error_prefix(err, "%s", path);
fail:
    model_free(m);
    return s;
}

realm_status model_vocab(tenant_model *m, realm_grammar_vocab **out, realm_error *err) {
    realm_status s = REALM_OK;
    realm_mutex_lock(&m->vocab_mu);
    if (!m->vocab) s = realm_grammar_vocab_open(&m->vocab, m->tokenizer, err);
    *out = m->vocab;
    realm_mutex_unlock(&m->vocab_mu);
    return s;
}

/* ---- files ------------------------------------------------------------------------------------------------------- */

static char *tenant_dir(const realm_tenant *t) {
    char name[24];
    snprintf(name, sizeof name, "%lld", (long long)t->id);
    return realm_path_join(t->rt->models_dir, name);
}

char *model_path(const realm_tenant *t, const char *sha256) {
    char name[80];
    char *dir = tenant_dir(t), *path = NULL;
    snprintf(name, sizeof name, "%s.gguf", sha256);
    if (dir) path = realm_path_join(dir, name);
    realm_free(dir);
    return path;
}

/* Where a file lies is not for its tenant to know. */
static void without_path(realm_error *err, const char *path) {
    size_t n = strlen(path), len = strlen(err->text);
    if (len > n + 2 && !strncmp(err->text, path, n) && !strncmp(err->text + n, ": ", 2))
        memmove(err->text, err->text + n + 2, len - n - 1);
}

static realm_status sync_dir(const char *dir, realm_error *err) {
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int e = fd < 0 || fsync(fd) != 0 ? errno : 0;
    if (fd >= 0) close(fd);
    return e ? realm_error_set(err, REALM_E_IO, "the model cannot be stored: %s", strerror(e)) : REALM_OK;
}

static realm_status hash_file(const char *path, uint8_t digest[REALM_SHA256_BYTES], uint64_t *bytes, realm_error *err) {
    realm_mapping m;
    realm_status s = realm_mapping_open(&m, path, err);
    if (s != REALM_OK) return s;
    *bytes = m.size;
    s = realm_sha256(m.data, m.size, digest);
    realm_mapping_close(&m);
    return s == REALM_OK ? s : realm_error_set(err, s, "SHA-256 failed");
}

/* An id that is free for this file: the chosen one, or the first of those in its hash. */
static realm_status list_model(realm_tenant *t, uint32_t id, uint64_t quota_bytes,
                               const uint8_t digest[REALM_SHA256_BYTES], realm_model_row *row, realm_error *err) {
    if (id) {
        row->id = id;
        return realm_store_model_add(t->rt->store, t->id, quota_bytes, row, err);
    }
    realm_status s = REALM_E_EXISTS;
    for (size_t at = 0; at < REALM_SHA256_BYTES && s == REALM_E_EXISTS; at += 4) {
        uint32_t v = (uint32_t)digest[at] << 24 | (uint32_t)digest[at + 1] << 16 | (uint32_t)digest[at + 2] << 8 |
                     digest[at + 3];
        row->id = v & MODEL_ID_CHOSEN_MAX ? v & MODEL_ID_CHOSEN_MAX : 1;
        s = realm_store_model_add(t->rt->store, t->id, quota_bytes, row, err);
    }
    return s;
}

realm_status model_store(realm_tenant *t, const char *path, uint32_t id, uint64_t quota_bytes, uint32_t *made,
                         realm_error *err) {
    uint8_t digest[REALM_SHA256_BYTES];
    realm_model_row row = {0};
    realm_gguf *g = NULL;
    bool used = false;
    char *dir = tenant_dir(t), *to = NULL;
    realm_status s = REALM_OK;
    if (!dir) {
        s = realm_error_set(err, REALM_E_NOMEM, "out of memory");
        goto done;
    }
    if ((s = realm_gguf_open(&g, path, err)) != REALM_OK) goto done;
    if ((s = realm_gguf_check_metadata(g, err)) != REALM_OK) goto done;
    if ((s = hash_file(path, digest, &row.bytes, err)) != REALM_OK) goto done;
    realm_hex(digest, sizeof digest, row.sha256);
    if (!(to = model_path(t, row.sha256))) {
        s = realm_error_set(err, REALM_E_NOMEM, "out of memory");
        goto done;
    }
    realm_mutex_lock(&t->files_mu);
    /* First the file, then the row: a row always has its file. */
    if (rename(path, to) != 0)
        s = realm_error_set(err, REALM_E_IO, "the model cannot be stored: %s", strerror(errno));
    else
        s = sync_dir(dir, err);
    if (s == REALM_OK) s = list_model(t, id, quota_bytes, digest, &row, err);
    if (s != REALM_OK && realm_store_model_used(t->rt->store, t->id, row.sha256, &used, NULL) == REALM_OK && !used)
        (void)unlink(to);
    realm_mutex_unlock(&t->files_mu);
    *made = row.id;
done:
    if (s != REALM_OK) {
        without_path(err, path);
        (void)unlink(path);
    }
    realm_gguf_close(g);
    realm_free(to);
    realm_free(dir);
    return s;
}

realm_status model_remove(realm_tenant *t, uint32_t id, realm_error *err) {
    realm_model_row row;
    bool last = false;
    realm_mutex_lock(&t->files_mu);
    realm_status s = realm_store_model_remove(t->rt->store, t->id, id, &row, &last, err);
    char *path = s == REALM_OK && last ? model_path(t, row.sha256) : NULL;
    if (path) (void)unlink(path); /* should it stay, the next start sweeps it up */
    realm_mutex_unlock(&t->files_mu);
    realm_free(path);
    if (s != REALM_OK || !last) return s;
    realm_mutex_lock(&t->rt->mu);
    for (tenant_model *m = t->stored; m; m = m->next)
        if (!strcmp(m->sha256, row.sha256)) m->removed = true;
    realm_mutex_unlock(&t->rt->mu);
    models_unload_idle(t, true);
    return REALM_OK;
}

/* Removes what nothing names from one tenant's folder, and the folder once it is empty. */
static void sweep_tenant(realm_runtime *rt, const char *dir, int64_t tenant_id) {
    DIR *d = opendir(dir);
    if (!d) return;
    for (struct dirent *e; (e = readdir(d));) {
        struct stat st;
        char sha[65];
        bool used = false;
        char *path = e->d_name[0] == '.' ? NULL : realm_path_join(dir, e->d_name);
        if (path && lstat(path, &st) == 0 && st.st_mtime + SWEEP_AGE_S < realm_clock_wall_s()) {
            realm_status s = REALM_OK;
            if (strlen(e->d_name) == 64 + 5) { /* a finished file: its name is its hash */
                memcpy(sha, e->d_name, 64);
                sha[64] = '\0';
                s = realm_store_model_used(rt->store, tenant_id, sha, &used, NULL);
            }
            if (s == REALM_OK && !used) (void)unlink(path);
        }
        realm_free(path);
    }
    closedir(d);
    (void)rmdir(dir); /* only when it is empty */
}

/* Calls fn for the folder of each tenant that has one. */
static void each_folder(realm_runtime *rt, void (*fn)(realm_runtime *rt, const char *dir, int64_t tenant_id)) {
    DIR *d = rt->models_dir ? opendir(rt->models_dir) : NULL;
    if (!d) return;
    for (struct dirent *e; (e = readdir(d));) {
        char *end, *dir;
        long long id = strtoll(e->d_name, &end, 10);
        if (id <= 0 || *end || !(dir = realm_path_join(rt->models_dir, e->d_name))) continue;
        fn(rt, dir, id);
        realm_free(dir);
    }
    closedir(d);
}

void models_sweep(realm_runtime *rt) { each_folder(rt, sweep_tenant); }

static void remove_folder(const char *dir) {
    DIR *d = opendir(dir);
    if (!d) return;
    for (struct dirent *e; (e = readdir(d));) {
        char *path = e->d_name[0] == '.' ? NULL : realm_path_join(dir, e->d_name);
        if (path) (void)unlink(path);
        realm_free(path);
    }
    closedir(d);
    (void)rmdir(dir);
}

/* One that is loaded is seen to when its last request is gone (models_forget). Ids are never used twice, so one that
 * the store does not know will not come back. */
static void remove_deleted(realm_runtime *rt, const char *dir, int64_t tenant_id) {
    realm_tenant_row row;
    realm_mutex_lock(&rt->mu);
    const realm_tenant *t = rt->tenants;
    while (t && t->id != tenant_id) t = t->next;
    realm_mutex_unlock(&rt->mu);
    if (!t && realm_store_tenant_get(rt->store, tenant_id, &row, NULL) == REALM_E_NOT_FOUND) remove_folder(dir);
}

void models_sweep_deleted(realm_runtime *rt) { each_folder(rt, remove_deleted); }

/* ---- loading and unloading --------------------------------------------------------------------------------------- */

/* Takes a model that is UNLOADING apart; nothing is held. Its programs are gone, but a step may still be under way for
 * a generation that they left behind: what it computes is counted when it ends, so the engine stops first. */
static void unload(realm_tenant *t, tenant_model *m) {
    realm_runtime *rt = t->rt;
    realm_token_counts now;
    saved_drop_all(t, m);
    realm_engine_stop(m->engine);
    realm_mutex_lock(&rt->flush_mu);
    realm_account_counts(m->account, &now);
    t->carried.prompt += now.prompt - m->flushed.prompt;
    t->carried.cached += now.cached - m->flushed.cached;
    t->carried.completion += now.completion - m->flushed.completion;
    realm_mutex_lock(&rt->mu);
    tenant_model **link = &t->stored;
    while (*link != m) link = &(*link)->next;
    *link = m->next;
    realm_mutex_unlock(&rt->mu);
    realm_mutex_unlock(&rt->flush_mu);
    model_free(m);
}

void models_unload_idle(realm_tenant *t, bool removed_only) {
    realm_runtime *rt = t->rt;
    for (;;) {
        realm_mutex_lock(&rt->mu);
        tenant_model *m = t->stored;
        while (m && (m->state != MODEL_READY || m->users > 0 || (removed_only && !m->removed))) m = m->next;
        if (m) m->state = MODEL_UNLOADING;
        realm_mutex_unlock(&rt->mu);
        if (!m) return;
        unload(t, m);
    }
}

/* The one that nobody has used for longest, of one tenant or of all; rt->mu is held. */
static tenant_model *longest_idle(realm_runtime *rt, realm_tenant *only, realm_tenant **whose) {
    tenant_model *best = NULL;
    for (realm_tenant *t = only ? only : rt->tenants; t; t = only ? NULL : t->next)
        for (tenant_model *m = t->stored; m; m = m->next) {
            if (m->state != MODEL_READY || m->users > 0 || (best && best->used_ns <= m->used_ns)) continue;
            best = m;
            *whose = t;
        }
    return best;
}

/* rt->mu is held; drops it while it unloads one. REALM_E_AGAIN: look again, things have changed. */
static realm_status make_room(realm_tenant *t, realm_error *err) {
    realm_runtime *rt = t->rt;
    uint32_t own = 0, all = 0;
    for (realm_tenant *each = rt->tenants; each; each = each->next)
        for (tenant_model *m = each->stored; m; m = m->next) {
            all++;
            own += each == t;
        }
    if (own < STORED_LOADED_PER_TENANT && all < STORED_LOADED_MAX) return REALM_OK;
    realm_tenant *whose = NULL;
    bool mine = own >= STORED_LOADED_PER_TENANT;
    tenant_model *m = longest_idle(rt, mine ? t : NULL, &whose);
    if (!m)
        return realm_error_set(err, REALM_E_BUSY, "%u stored models are in use%s, as many as may be loaded at once",
                               mine ? own : all, mine ? " by this tenant" : "");
    m->state = MODEL_UNLOADING;
    atomic_fetch_add_explicit(&whose->refs, 1, memory_order_relaxed); /* under runtime.mu */
    realm_mutex_unlock(&rt->mu);
    unload(whose, m);
    realm_tenant_release(whose);
    realm_mutex_lock(&rt->mu);
    return REALM_E_AGAIN;
}

/* Loads into a new object; its place in the list is taken by `m`. */
static realm_status load_stored(realm_tenant *t, tenant_model *m, realm_error *err) {
    realm_model_config config = {.engine = {.kv_bytes = STORED_KV_BYTES, .max_generations = STORED_GENERATIONS_MAX}};
    char name[REALM_TENANT_NAME_MAX + 32];
    snprintf(name, sizeof name, "%s/%.12s", t->name, m->sha256);
    char *path = model_path(t, m->sha256);
    if (!path) return realm_error_set(err, REALM_E_NOMEM, "out of memory");
    tenant_model *made = NULL;
    realm_status s = model_load(t->rt, name, path, &config, NULL, NULL, &made, err);
    if (s == REALM_OK) s = tenant_open_account(t, made->engine, m->sha256, NULL, &made->account, err);
    if (s == REALM_OK) {
        /* Under the lock that apply_to_stored is called with: limits that are new now are read here, or set by it. */
        realm_mutex_lock(&t->rt->mu);
        realm_mutex_lock(&t->mu);
        realm_account_limits al = tenant_account_limits(&t->limits);
        realm_mutex_unlock(&t->mu);
        realm_account_set_limits(made->account, &al);
        memcpy(m->id, made->id, sizeof m->id);
        m->path = made->path;
        m->created_s = made->created_s;
        m->gguf = made->gguf;
        m->model = made->model;
        m->tokenizer = made->tokenizer;
        m->engine = made->engine;
        m->idle = made->idle;
        m->template = made->template;
        m->template_error = made->template_error;
        m->account = made->account;
        realm_mutex_unlock(&t->rt->mu);
        realm_mutex_destroy(&made->vocab_mu);
        realm_free(made); /* its parts have moved */
    } else {
        model_free(made);
        without_path(err, path);
    }
    realm_free(path);
    return s;
}

realm_status model_hold(realm_tenant *t, uint32_t id, tenant_model **out, realm_error *err) {
    realm_runtime *rt = t->rt;
    realm_model_row row;
    realm_status s = realm_store_model_find(rt->store, t->id, id, &row, err);
    if (s != REALM_OK) return s;
    realm_mutex_lock(&rt->mu);
    tenant_model *m;
    for (;;) {
        m = t->stored;
        while (m && (strcmp(m->sha256, row.sha256) != 0 || m->state == MODEL_UNLOADING)) m = m->next;
        if (m && m->state == MODEL_LOADING) {
            realm_cond_wait(&rt->model_loaded, &rt->mu);
            continue;
        }
        if (m) {
            m->users++;
            m->removed = false; /* it was stored again meanwhile */
            realm_mutex_unlock(&rt->mu);
            *out = m;
            return REALM_OK;
        }
        s = make_room(t, err);
        if (s == REALM_OK) break;
        if (s != REALM_E_AGAIN) {
            realm_mutex_unlock(&rt->mu);
            return s;
        }
    }
    if (!(m = realm_calloc(1, sizeof *m))) {
        realm_mutex_unlock(&rt->mu);
        return realm_error_set(err, REALM_E_NOMEM, "out of memory");
    }
    realm_mutex_init(&m->vocab_mu, REALM_RANK_LEAF);
    memcpy(m->sha256, row.sha256, sizeof m->sha256);
    m->state = MODEL_LOADING;
    m->next = t->stored;
    t->stored = m;
    realm_mutex_unlock(&rt->mu);

    s = load_stored(t, m, err);

    realm_mutex_lock(&rt->mu);
    if (s == REALM_OK) {
        m->state = MODEL_READY;
        m->users = 1;
    } else {
        tenant_model **link = &t->stored;
        while (*link != m) link = &(*link)->next;
        *link = m->next;
    }
    realm_cond_broadcast(&rt->model_loaded);
    realm_mutex_unlock(&rt->mu);
    if (s != REALM_OK) {
        model_free(m);
        realm_error_prefix(err, "model %u", id);
        return s;
    }
    *out = m;
    return REALM_OK;
}

void model_hold_again(realm_tenant *t, tenant_model *m) {
    realm_mutex_lock(&t->rt->mu);
    m->users++;
    realm_mutex_unlock(&t->rt->mu);
}

void model_let_go(realm_tenant *t, tenant_model *m) {
    realm_mutex_lock(&t->rt->mu);
    m->users--;
    m->used_ns = realm_clock_ns();
    realm_mutex_unlock(&t->rt->mu);
}

void models_forget(realm_tenant *t) {
    models_unload_idle(t, false);
    char *dir = t->rt->models_dir ? tenant_dir(t) : NULL;
    if (dir) remove_folder(dir);
    realm_free(dir);
}
