/* tenant/models.c - opening a model with all that serving it takes: file, tokenizer, template, weights, engine.
 *
 * idle.c lends its engine's thread to programs; stored.c and files.c are about those that tenants store themselves.
 */
#include <string.h>
#include <sys/stat.h>

#include "base/alloc.h"
#include "base/log.h"
#include "tenant/internal.h"

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

static realm_status open_engine(realm_runtime *rt, tenant_model *m, const realm_engine_config *config,
                                realm_error *err) {
    realm_engine_config c = *config;
    realm_status s = idle_open(rt, &m->idle, &c, err);
    return s == REALM_OK ? realm_engine_open(&m->engine, rt->backend, m->model, m->tokenizer, &c, err) : s;
}

void model_end_lending(tenant_model *m) {
    if (!m->engine) return;
    realm_engine_end_idle(m->engine);
    idle_settle(m->idle); /* who is woken may let go of the last that is left of a program */
}

realm_status model_load(realm_runtime *rt, const char *id, const char *path, const realm_model_config *config,
                        realm_model_progress progress, void *user, tenant_model **out, realm_error *err) {
    size_t id_len = strlen(id);
    if (id_len == 0 || id_len > REALM_MODEL_ID_MAX)
        return realm_error_set(err, REALM_E_INVALID, "model id: 1 to %u bytes", REALM_MODEL_ID_MAX);
    tenant_model *m = realm_calloc(1, sizeof *m);
    if (!m) return realm_error_set(err, REALM_E_NOMEM, "%s: out of memory", id);
    realm_mutex_init(&m->vocab_mu, REALM_RANK_LEAF);
    m->rt = rt;
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
