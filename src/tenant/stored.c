/* tenant/stored.c - models that tenants stored: loaded when they are first used, unloaded when the room is needed.
 *
 * One belongs to its tenant alone: its own engine with the one account, in its tenant's list. Its file is named by its
 * hash (files.c), and so is it: several ids may name the same one.
 *
 *                 model_hold: none holds it yet            loaded                    last one releases
 *      (on disk) -------------------------------> LOADING --------> READY, held <-----------------------> READY, idle
 *          ^                                         | cannot be                model_hold                   |
 *          +-----------------------------------------+                                                       |
 *          +---------------------- UNLOADING <---------------------------------------------------------------+
 *             ledger has its tokens            make_room (the one idle for longest), models_unload_idle
 *
 * How many are loaded at once is bounded, per tenant and in all. Unloading takes the ledger's lock, so that no flush
 * sees an engine half gone, and leaves the tokens that are not in the ledger yet with the tenant.
 */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "tenant/internal.h"

#define STORED_GENERATIONS_MAX 16u
#define STORED_KV_BYTES ((uint64_t)128 << 20)

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
    m->rt = rt;
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
