/* tenant/served.c - the models that the server serves: added, held, retired.
 *
 *      add --> [served, held or not] --retire--> [found by no id; who holds it goes on] --nobody does--> taken apart:
 *
 *      saved contexts go --> engine stops --> the ledger has its tokens --> accounts close, slot is free --> memory
 *
 * The sweeper does that. Where the ledger cannot be written the model waits for a time when it can: no token is lost
 * for the room. A program knows a model by a number that is given out once, so it never takes one for another.
 */
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/log.h"
#include "tenant/internal.h"

/* ---- added and found --------------------------------------------------------------------------------------------- */

/* rt->mu is held. */
static tenant_model *find(const realm_runtime *rt, const char *id) {
    for (size_t i = 0; i < REALM_MODELS_MAX; i++)
        if (rt->models[i] && !rt->models[i]->removed && strcmp(rt->models[i]->id, id) == 0) return rt->models[i];
    return NULL;
}

realm_status realm_runtime_add_model(realm_runtime *rt, const char *id, const char *path,
                                     const realm_model_config *config, realm_model_progress progress, void *user,
                                     realm_error *err) {
    static const realm_model_config defaults;
    realm_error local = {0};
    if (!err) err = &local;
    tenant_model *m = NULL;
    realm_status s = model_load(rt, id, path, config ? config : &defaults, progress, user, &m, err);
    if (s != REALM_OK) return s;
    realm_mutex_lock(&rt->mu);
    uint32_t slot = 0;
    while (slot < REALM_MODELS_MAX && rt->models[slot]) slot++;
    if (find(rt, id)) {
        s = realm_error_set(err, REALM_E_EXISTS, "a model is called \"%s\" already", id);
    } else if (slot == REALM_MODELS_MAX || rt->n_server_ids > MODEL_ID_CHOSEN_MAX) {
        s = realm_error_set(err, REALM_E_LIMIT, "%s: at most %u models are served", id, REALM_MODELS_MAX);
    } else {
        m->slot = slot;
        m->server_id = MODEL_ID_SERVER | (int32_t)rt->n_server_ids++;
        rt->models[slot] = m;
    }
    realm_mutex_unlock(&rt->mu);
    if (s != REALM_OK) model_free(m);
    return s;
}

size_t realm_runtime_model_count(realm_runtime *rt) {
    size_t n = 0;
    realm_mutex_lock(&rt->mu);
    for (size_t i = 0; i < REALM_MODELS_MAX; i++) n += rt->models[i] && !rt->models[i]->removed;
    realm_mutex_unlock(&rt->mu);
    return n;
}

realm_served *realm_runtime_hold(realm_runtime *rt, const char *id) {
    realm_mutex_lock(&rt->mu);
    tenant_model *m = find(rt, id);
    if (m) m->users++;
    realm_mutex_unlock(&rt->mu);
    return m;
}

tenant_model *runtime_hold_server_id(realm_runtime *rt, int32_t server_id) {
    tenant_model *m = NULL;
    realm_mutex_lock(&rt->mu);
    for (size_t i = 0; i < REALM_MODELS_MAX && !m; i++)
        if (rt->models[i] && !rt->models[i]->removed && rt->models[i]->server_id == server_id) m = rt->models[i];
    if (m) m->users++;
    realm_mutex_unlock(&rt->mu);
    return m;
}

size_t realm_runtime_hold_all(realm_runtime *rt, realm_served *out[REALM_MODELS_MAX]) {
    size_t n = 0;
    realm_mutex_lock(&rt->mu);
    for (size_t i = 0; i < REALM_MODELS_MAX; i++) {
        tenant_model *m = rt->models[i];
        size_t at = n;
        if (!m || m->removed) continue;
        for (; at > 0 && out[at - 1]->server_id > m->server_id; at--) out[at] = out[at - 1];
        out[at] = m;
        m->users++;
        n++;
    }
    realm_mutex_unlock(&rt->mu);
    return n;
}

tenant_model *model_hold_again(tenant_model *m) {
    realm_mutex_lock(&m->rt->mu);
    m->users++;
    realm_mutex_unlock(&m->rt->mu);
    return m;
}

void realm_served_release(realm_served *m) {
    if (!m) return;
    realm_runtime *rt = m->rt; /* it may be gone with the lock */
    realm_mutex_lock(&rt->mu);
    m->users--;
    m->used_ns = realm_clock_ns();
    realm_mutex_unlock(&rt->mu);
}

void realm_served_get_info(const realm_served *m, realm_model_info *out) {
    *out = (realm_model_info){.id = m->id,
                              .path = m->path,
                              .created_s = m->created_s,
                              .has_template = m->template != NULL,
                              .hparams = realm_model_hparams(m->model),
                              .weight_bytes = realm_model_weight_bytes(m->model)};
}

realm_engine *realm_served_engine(const realm_served *m) { return m->engine; }

/* ---- retired ----------------------------------------------------------------------------------------------------- */

realm_status realm_runtime_retire_model(realm_runtime *rt, const char *id, realm_error *err) {
    realm_mutex_lock(&rt->mu);
    tenant_model *m = find(rt, id);
    if (m) m->removed = true;
    realm_mutex_unlock(&rt->mu);
    return m ? REALM_OK : realm_error_set(err, REALM_E_NOT_FOUND, "no model is called \"%s\"", id);
}

/* Closes the tenants' accounts with it and frees its slot, once the ledger has what they count. */
static bool leave_ledger(realm_runtime *rt, tenant_model *m) {
    realm_error err = {0};
    realm_mutex_lock(&rt->flush_mu);
    const bool written = ledger_write(rt, &err) == REALM_OK;
    realm_mutex_lock(&rt->mu);
    for (realm_tenant *t = rt->tenants; t && written; t = t->next) {
        realm_mutex_lock(&t->mu);
        realm_account_close(t->accounts[m->slot]);
        t->accounts[m->slot] = NULL;
        t->flushed[m->slot] = (realm_token_counts){0};
        realm_mutex_unlock(&t->mu);
    }
    if (written)
        rt->models[m->slot] = NULL;
    else
        m->state = MODEL_READY; /* is tried again */
    realm_mutex_unlock(&rt->mu);
    realm_mutex_unlock(&rt->flush_mu);
    return written;
}

/* For the one who has set it UNLOADING. */
static void take_apart(tenant_model *m) {
    realm_runtime *rt = m->rt;
    realm_mutex_lock(&rt->mu);
    for (realm_tenant *t = rt->tenants; t; t = t->next) saved_drop_all(t, m);
    realm_mutex_unlock(&rt->mu);
    realm_engine_stop(m->engine); /* a step for a generation that was cancelled is counted */
    if (!leave_ledger(rt, m)) return;
    realm_log_info("model", "%s was retired and is not in memory any more", m->id);
    model_free(m);
}

/* rt->mu is held. */
static tenant_model *find_unused(const realm_runtime *rt, size_t from) {
    for (size_t i = from; i < REALM_MODELS_MAX; i++) {
        tenant_model *m = rt->models[i];
        if (m && m->removed && m->state == MODEL_READY && m->users == 0) return m;
    }
    return NULL;
}

bool models_any_unused(const realm_runtime *rt) { return find_unused(rt, 0) != NULL; }

void models_take_apart_unused(realm_runtime *rt) {
    for (size_t from = 0; from < REALM_MODELS_MAX;) { /* each slot once: one that has to wait does so until next time */
        realm_mutex_lock(&rt->mu);
        tenant_model *m = find_unused(rt, from);
        if (m) m->state = MODEL_UNLOADING;
        realm_mutex_unlock(&rt->mu);
        if (!m) return;
        from = m->slot + 1;
        take_apart(m);
    }
}

/* ---- used -------------------------------------------------------------------------------------------------------- */

realm_status realm_tenant_grammar(realm_tenant *t, realm_served *m, realm_grammar_kind kind, const char *text,
                                  size_t len, realm_grammar_state **out, realm_error *err) {
    realm_grammar_vocab *vocab;
    realm_grammar *g = NULL;
    *out = NULL;
    realm_status s = model_vocab(m, &vocab, err);
    if (s == REALM_OK) s = realm_grammar_compile(vocab, (uint64_t)t->id, kind, text, len, &g, err);
    if (s == REALM_OK) s = realm_grammar_state_open(g, out, err);
    realm_grammar_release(g); /* the state holds it */
    return s;
}

realm_status realm_runtime_publish_prefix(realm_runtime *rt, const char *id, const char *text, size_t len,
                                          realm_error *err) {
    tenant_model *m = realm_runtime_hold(rt, id);
    realm_tokens tokens = {0};
    if (!m) return realm_error_set(err, REALM_E_NOT_FOUND, "no model has the id %s", id);
    realm_status s =
        realm_tokenizer_encode(m->tokenizer, text, len, REALM_ENCODE_ADD_SPECIAL | REALM_ENCODE_PARSE_SPECIAL,
                               realm_engine_context_length(m->engine), &tokens, err);
    if (s == REALM_OK) s = realm_engine_publish_prefix(m->engine, tokens.ids, tokens.len, err);
    realm_tokens_release(&tokens);
    realm_served_release(m);
    return s;
}
