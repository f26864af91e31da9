/* tenant/runtime.c - opening and closing everything one process serves. */
#include "base/alloc.h"
#include "base/file.h"
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
    realm_sandbox_stats programs;
    realm_sandbox_get_stats(rt->sandbox, &programs);
    rt->max_instances = programs.max_instances;
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

/* A step, or a slice of a list, may be under way for a program that has ended: it is counted when it is over. */
static void stop_computing(realm_runtime *rt) {
    for (size_t i = 0; i < REALM_MODELS_MAX; i++)
        if (rt->models[i]) realm_engine_stop(rt->models[i]->engine);
    for (realm_tenant *t = rt->tenants; t; t = t->next)
        for (tenant_model *m = t->stored; m; m = m->next) realm_engine_stop(m->engine);
    if (rt->tensors) realm_tensor_service_stop(rt->tensors); /* what it still computed held models and tenants */
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
        realm_cond_broadcast(&rt->reloaded); /* no row is read again: who waits for one goes on with what there is */
        realm_mutex_unlock(&rt->mu);
        pthread_join(rt->maintenance, NULL);
        if (rt->sweeper_started) pthread_join(rt->sweeper, NULL);
    }
    jobs_stop(rt->jobs); /* they hold instances and tenants */
    for (size_t i = 0; i < REALM_MODELS_MAX; i++)
        if (rt->models[i]) model_end_lending(rt->models[i]);
    for (realm_tenant *t = rt->tenants; t; t = t->next)
        for (tenant_model *m = t->stored; m; m = m->next) model_end_lending(m);
    for (realm_tenant *t = rt->tenants; t; t = t->next) {
        realm_program_release(t->program);
        t->program = NULL;
    }
    realm_program_release(rt->default_program);
    realm_sandbox_close(sandbox);
    jobs_close(rt->jobs);
    stop_computing(rt);
    if (rt->tensors) ledger_flush(rt); /* everything is there */
    realm_tensor_service_close(rt->tensors);
    tenants_close(rt);
    for (size_t i = 0; i < REALM_MODELS_MAX; i++) model_free(rt->models[i]);
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
