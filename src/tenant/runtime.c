/* tenant/runtime.c - opening and closing everything one process serves; models and their templates. */
#include <string.h>

#include "base/alloc.h"
#include "base/file.h"
#include "base/log.h"
#include "gen/default_program.h"
#include "realm/abi.h"
#include "tenant/internal.h"

#define PROGRAM_CACHE "programs" /* below the state folder */
#define PROGRAM_BYTES_DEFAULT (UINT64_C(256) << 20)
#define MODELS_DIR "tenants" /* likewise: a folder per tenant with the models it stored */

realm_status realm_runtime_open(realm_runtime **out, const realm_runtime_config *config, realm_error *err) {
    realm_runtime *rt = realm_calloc(1, sizeof *rt);
    char *cache = NULL;
    realm_status s;
    if (!rt) return realm_error_set(err, REALM_E_NOMEM, "runtime: out of memory");
    realm_mutex_init(&rt->mu, REALM_RANK_RUNTIME);
    realm_mutex_init(&rt->flush_mu, REALM_RANK_API);
    realm_mutex_init(&rt->cpu_mu, REALM_RANK_LEAF);
    realm_cond_init(&rt->work);
    realm_cond_init(&rt->reloaded);
    realm_cond_init(&rt->model_loaded);
    realm_cond_init(&rt->sweep);
    if (config->state_dir && !(rt->models_dir = realm_path_join(config->state_dir, MODELS_DIR))) {
        s = realm_error_set(err, REALM_E_NOMEM, "runtime: out of memory");
        goto fail;
    }
    if ((s = realm_store_open(&rt->store, config->state_dir, err)) != REALM_OK) goto fail;
    if (config->state_dir && !(cache = realm_path_join(config->state_dir, PROGRAM_CACHE))) {
        s = realm_error_set(err, REALM_E_NOMEM, "runtime: out of memory");
        goto fail;
    }
    rt->program_bytes = config->program_bytes ? config->program_bytes : PROGRAM_BYTES_DEFAULT;
    realm_sandbox_config sc = {.n_workers = config->n_workers,
                               .max_instances = config->max_instances,
                               .compiler_path = config->compiler_path,
                               .cache_dir = cache,
                               .abi_major = REALM_ABI_MAJOR};
    sc.imports = realm_host_imports(&sc.n_imports);
    if ((s = realm_sandbox_open(&rt->sandbox, &sc, err)) != REALM_OK) goto fail;
    realm_backend_config bc = {.n_threads = config->n_threads};
    if ((s = realm_backend_open_cpu(&rt->backend, &bc, err)) != REALM_OK) goto fail;
    if ((s = realm_tensor_service_open(rt->backend, &rt->tensors, err)) != REALM_OK) goto fail;
    realm_program_limits own = {.trusted = true};
    s = realm_program_open(rt->sandbox, realm_default_program, realm_default_program_len, &own, &rt->default_program,
                           err);
    if (s != REALM_OK) {
        realm_error_prefix(err, "default program");
        goto fail;
    }
    if ((s = jobs_open(&rt->jobs, err)) != REALM_OK) goto fail;
    models_sweep(rt);
    models_sweep_deleted(rt);
    if ((s = realm_store_version(rt->store, &rt->store_version, err)) != REALM_OK) goto fail;
    if ((s = realm_thread_start(&rt->maintenance, "realm-ledger", ledger_thread, rt, err)) != REALM_OK) goto fail;
    rt->maintenance_started = true;
    if ((s = realm_thread_start(&rt->sweeper, "realm-sweeper", sweeper_thread, rt, err)) != REALM_OK) goto fail;
    rt->sweeper_started = true;
    realm_free(cache);
    *out = rt;
    return REALM_OK;
fail:
    realm_free(cache);
    realm_runtime_close(rt);
    return s;
}

void realm_runtime_close(realm_runtime *rt) {
    if (!rt) return;
    /* Instances that nobody waits for any more still hold runs, accounts and generations: they end first. */
    realm_sandbox *sandbox = rt->sandbox;
    if (rt->maintenance_started) {
        realm_mutex_lock(&rt->mu);
        rt->stop = true;
        realm_cond_broadcast(&rt->work);
        realm_cond_broadcast(&rt->sweep);
        realm_mutex_unlock(&rt->mu);
        pthread_join(rt->maintenance, NULL);
        if (rt->sweeper_started) pthread_join(rt->sweeper, NULL);
    }
    jobs_stop(rt->jobs); /* they hold instances and tenants */
    size_t n = atomic_load_explicit(&rt->n_models, memory_order_acquire);
    for (size_t i = 0; i < n; i++) model_end_lending(rt->models[i]);
    for (realm_tenant *t = rt->tenants; t; t = t->next)
        for (tenant_model *m = t->stored; m; m = m->next) model_end_lending(m);
    for (realm_tenant *t = rt->tenants; t; t = t->next) {
        realm_program_release(t->program);
        t->program = NULL;
    }
    realm_program_release(rt->default_program);
    realm_sandbox_close(sandbox);
    jobs_close(rt->jobs);
    if (rt->tensors) ledger_flush(rt);       /* everything is there */
    realm_tensor_service_close(rt->tensors); /* what it still computed held models and tenants */
    tenants_close(rt);
    for (size_t i = 0; i < n; i++) model_free(rt->models[i]);
    realm_backend_close(rt->backend);
    realm_store_close(rt->store);
    realm_cond_destroy(&rt->work);
    realm_cond_destroy(&rt->reloaded);
    realm_cond_destroy(&rt->model_loaded);
    realm_cond_destroy(&rt->sweep);
    realm_free(rt->models_dir);
    realm_mutex_destroy(&rt->cpu_mu);
    realm_mutex_destroy(&rt->flush_mu);
    realm_mutex_destroy(&rt->mu);
    realm_free(rt);
}

realm_store *realm_runtime_store(realm_runtime *rt) { return rt->store; }

realm_status realm_runtime_check_program(const char *state_dir, const char *compiler_path, const void *wasm, size_t len,
                                         const realm_limits *limits, realm_buf *describe, bool json, realm_error *err) {
    realm_sandbox *sandbox = NULL;
    realm_program *program = NULL;
    char *cache = state_dir ? realm_path_join(state_dir, PROGRAM_CACHE) : NULL;
    realm_sandbox_config sc = {.n_workers = 1,
                               .max_instances = 1,
                               .compiler_path = compiler_path,
                               .cache_dir = cache,
                               .abi_major = REALM_ABI_MAJOR};
    sc.imports = realm_host_imports(&sc.n_imports);
    realm_program_limits pl = {.memory_bytes = limits ? limits->memory_bytes : 0};
    realm_status s = realm_sandbox_open(&sandbox, &sc, err);
    if (s == REALM_OK) s = realm_program_open(sandbox, wasm, len, &pl, &program, err);
    if (s == REALM_OK && describe) s = realm_program_describe(program, json, realm_host_import_group, describe);
    realm_program_release(program);
    realm_sandbox_close(sandbox);
    realm_free(cache);
    return s;
}

/* ---- models ------------------------------------------------------------------------------------------------------ */

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
    size_t n = atomic_load_explicit(&rt->n_models, memory_order_relaxed);
    if (runtime_model(rt, id, NULL)) {
        s = realm_error_set(err, REALM_E_EXISTS, "a model is called \"%s\" already", id);
    } else if (n == RUNTIME_MODELS_MAX) {
        s = realm_error_set(err, REALM_E_LIMIT, "%s: at most %u models are served", id, RUNTIME_MODELS_MAX);
    } else {
        rt->models[n] = m;
        /* release: readers of the count see the model */
        atomic_store_explicit(&rt->n_models, n + 1, memory_order_release);
    }
    realm_mutex_unlock(&rt->mu);
    if (s != REALM_OK) model_free(m);
    return s;
}

tenant_model *runtime_model(const realm_runtime *rt, const char *id, size_t *index) {
    size_t n = atomic_load_explicit(&rt->n_models, memory_order_acquire);
    for (size_t i = 0; i < n; i++) {
        if (strcmp(rt->models[i]->id, id) != 0) continue;
        if (index) *index = i;
        return rt->models[i];
    }
    return NULL;
}

size_t realm_runtime_model_count(const realm_runtime *rt) {
    return atomic_load_explicit(&rt->n_models, memory_order_acquire);
}

realm_status realm_runtime_model_at(const realm_runtime *rt, size_t i, realm_model_info *out) {
    if (i >= realm_runtime_model_count(rt)) return REALM_E_RANGE;
    const tenant_model *m = rt->models[i];
    *out = (realm_model_info){.id = m->id,
                              .path = m->path,
                              .created_s = m->created_s,
                              .has_template = m->template != NULL,
                              .hparams = realm_model_hparams(m->model),
                              .weight_bytes = realm_model_weight_bytes(m->model)};
    return REALM_OK;
}

realm_engine *realm_runtime_engine(const realm_runtime *rt, const char *id) {
    tenant_model *m = runtime_model(rt, id, NULL);
    return m ? m->engine : NULL;
}

realm_status realm_tenant_grammar(realm_tenant *t, const char *model_id, realm_grammar_kind kind, const char *text,
                                  size_t len, realm_grammar_state **out, realm_error *err) {
    tenant_model *m = runtime_model(t->rt, model_id, NULL);
    realm_grammar_vocab *vocab;
    realm_grammar *g = NULL;
    *out = NULL;
    if (!m) return realm_error_set(err, REALM_E_NOT_FOUND, "there is no model %s", model_id);
    realm_status s = model_vocab(m, &vocab, err);
    if (s == REALM_OK) s = realm_grammar_compile(vocab, (uint64_t)t->id, kind, text, len, &g, err);
    if (s == REALM_OK) s = realm_grammar_state_open(g, out, err);
    realm_grammar_release(g); /* the state holds it */
    return s;
}

realm_status realm_runtime_publish_prefix(realm_runtime *rt, const char *id, const char *text, size_t len,
                                          realm_error *err) {
    const tenant_model *m = runtime_model(rt, id, NULL);
    realm_tokens tokens = {0};
    if (!m) return realm_error_set(err, REALM_E_NOT_FOUND, "no model has the id %s", id);
    realm_status s =
        realm_tokenizer_encode(m->tokenizer, text, len, REALM_ENCODE_ADD_SPECIAL | REALM_ENCODE_PARSE_SPECIAL,
                               realm_engine_context_length(m->engine), &tokens, err);
    if (s == REALM_OK) s = realm_engine_publish_prefix(m->engine, tokens.ids, tokens.len, err);
    realm_tokens_release(&tokens);
    return s;
}
