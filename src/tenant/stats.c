/* tenant/stats.c - what a running server counts, for those who watch it. */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "tenant/internal.h"

void realm_runtime_get_stats(realm_runtime *rt, realm_runtime_stats *out) {
    realm_sandbox_stats programs;
    realm_tensor_usage tensors;
    realm_sandbox_get_stats(rt->sandbox, &programs);
    realm_tensor_service_usage(rt->tensors, &tensors, NULL, 0, NULL);
    *out = (realm_runtime_stats){
        .requests = atomic_load(&rt->requests),
        .requests_aborted = atomic_load(&rt->aborted),
        .requests_refused = atomic_load(&rt->refused),
        .requests_active = atomic_load(&rt->requests_active),
        .runs_active = atomic_load(&rt->runs_active),
        .instances = programs.instances,
        .instances_ready = {programs.ready[0], programs.ready[1]},
        .instances_started = programs.started,
        .instances_ended = programs.ended,
        .instances_failed = programs.failed,
        .instance_start_ns = programs.start_ns,
        .instance_starts_timed = programs.starts_timed,
        .programs_compiled = programs.compiled,
        .programs_from_cache = programs.cache_hits,
        .program_bytes = programs.code_bytes,
        .program_failures = atomic_load(&rt->failures),
        .tensor_lists = tensors.lists,
        .tensor_ops = tensors.ops,
        .tensor_ns = tensors.device_ns,
        .ledger_writes = atomic_load(&rt->ledger_writes),
        .ledger_failures = atomic_load(&rt->ledger_failures),
    };
    jobs_queued(rt->jobs, out->jobs_queued);
    realm_backend_turn_get_stats(rt->backend, &out->turns);
    realm_mutex_lock(&rt->cpu_mu);
    out->program_cpu_ns = rt->cpu_ns;
    realm_mutex_unlock(&rt->cpu_mu);
    realm_mutex_lock(&rt->mu);
    for (realm_tenant *t = rt->tenants; t; t = t->next) {
        out->tenants++;
        realm_mutex_lock(&t->mu);
        out->runs_awaiting += t->n_starting;
        realm_mutex_unlock(&t->mu);
    }
    realm_mutex_unlock(&rt->mu);
}

void realm_served_get_stats(const realm_served *m, realm_model_stats *out) {
    realm_engine_get_stats(m->engine, &out->engine);
    realm_engine_counts(m->engine, &out->tokens, NULL, 0, NULL);
    realm_model_get_stream_stats(m->model, &out->stream);
}

/* ---- tenants ----------------------------------------------------------------------------------------------------- */

/* runtime.mu is held. */
static void take_tenant(realm_tenant *t, realm_tenant_stats *to) {
    realm_tensor_usage tensors;
    realm_tensor_budget_usage(t->tensors, &tensors);
    to->id = t->id;
    memcpy(to->name, t->name, sizeof to->name);
    to->tensor_bytes = tensors.bytes;
    realm_mutex_lock(&t->mu);
    to->used = t->used;
    for (size_t i = 0; i < REALM_MODELS_MAX; i++)
        if (t->accounts[i]) to->generations += realm_account_generations(t->accounts[i]);
    realm_mutex_unlock(&t->mu);
    for (const tenant_model *m = t->stored; m; m = m->next)
        if (m->account) to->generations += realm_account_generations(m->account);
}

static int by_name(const void *a, const void *b) {
    const realm_tenant_stats *x = a, *y = b;
    int order = strcmp(x->name, y->name);
    return order ? order : (x->id < y->id) - (x->id > y->id); /* the last one first */
}

realm_status realm_runtime_tenant_stats(realm_runtime *rt, realm_tenant_stats **out, size_t *n, realm_error *err) {
    size_t count = 0, kept = 0;
    *n = 0;
    realm_mutex_lock(&rt->mu);
    for (const realm_tenant *t = rt->tenants; t; t = t->next) count++;
    realm_tenant_stats *list = *out = realm_calloc(count + 1, sizeof *list);
    count = 0;
    if (list)
        for (realm_tenant *t = rt->tenants; t; t = t->next)
            if (!t->gone) take_tenant(t, &list[count++]);
    realm_mutex_unlock(&rt->mu);
    if (!list) return realm_error_set(err, REALM_E_NOMEM, "out of memory");
    qsort(list, count, sizeof *list, by_name);
    for (size_t i = 0; i < count; i++)
        if (kept == 0 || strcmp(list[kept - 1].name, list[i].name) != 0) list[kept++] = list[i];
    for (size_t i = 0; i < kept; i++) {
        realm_status s = realm_store_data_bytes(rt->store, list[i].id, &list[i].storage_bytes, err);
        if (s == REALM_OK) continue;
        realm_free(list);
        *out = NULL;
        return s;
    }
    *n = kept;
    return REALM_OK;
}
