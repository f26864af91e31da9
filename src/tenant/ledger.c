/* tenant/ledger.c - from the engines' counters to the store.
 *
 * The engines count every token as it is computed, per account and in total; the tensor service likewise what its lists
 * take of the device, and the sandbox what programs take of processors, in portions of a millisecond, and at their end
 * the rest. A flush takes a snapshot of each of them at one moment (an engine's step boundary), subtracts what is in
 * the store already and adds the rest in one transaction, which waits for nobody: beside a store that somebody else is
 * writing, the counts are kept in a file. When that fails (disk full) nothing is marked as written and the next flush
 * carries it. Runs that ended wait here, so that all that end within one flush share its transaction.
 */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/log.h"
#include "tenant/internal.h"

#define FLUSH_PERIOD_NS (100 * REALM_NS_PER_MS)
#define REFRESH_PERIOD_NS (250 * REALM_NS_PER_MS)
#define COMPLAIN_PERIOD_NS (10 * REALM_NS_PER_S)

static realm_token_counts minus(realm_token_counts a, realm_token_counts b) {
    return (realm_token_counts){a.prompt - b.prompt, a.cached - b.cached, a.completion - b.completion};
}

static void add(realm_usage *u, realm_token_counts c) {
    u->prompt_tokens += c.prompt;
    u->cached_tokens += c.cached;
    u->completion_tokens += c.completion;
}

typedef struct snapshot { /* of one flush */
    size_t n;             /* tenants, each held */
    realm_tenant **tenants;
    realm_token_counts *counts;             /* (n, REALM_MODELS_MAX) */
    realm_usage_entry *entries;             /* (n) */
    realm_account **accounts;               /* (n), scratch */
    realm_token_counts *each;               /* (n), scratch */
    tenant_model *models[REALM_MODELS_MAX]; /* none goes meanwhile: that takes flush_mu */
    realm_token_counts totals[REALM_MODELS_MAX];
    tenant_spent *spent;           /* (n) */
    uint64_t cpu_ns, tensor_ns;    /* of all */
    realm_tensor_budget **budgets; /* (n), scratch */
    realm_tensor_usage *tensors;   /* (n), scratch */
} snapshot;

static void snapshot_release(snapshot *p) {
    for (size_t i = 0; i < p->n && p->tenants; i++) realm_tenant_release(p->tenants[i]);
    realm_free(p->tenants);
    realm_free(p->counts);
    realm_free(p->entries);
    realm_free(p->accounts);
    realm_free(p->each);
    realm_free(p->spent);
    realm_free(p->budgets);
    realm_free(p->tensors);
}

/* Tokens of the models that a tenant stored: of those loaded since the last flush, and what unloaded ones left. Their
 * engines have this tenant's account alone, so its counts are the engine's. flush_mu is held: none is unloaded. */
static realm_token_counts snapshot_stored(realm_runtime *rt, realm_tenant *t) {
    realm_token_counts sum = t->carried;
    realm_mutex_lock(&rt->mu);
    for (tenant_model *m = t->stored; m; m = m->next) {
        if (!m->account) continue; /* being loaded */
        realm_account_counts(m->account, &m->snapshot);
        realm_token_counts d = minus(m->snapshot, m->flushed);
        sum.prompt += d.prompt;
        sum.cached += d.cached;
        sum.completion += d.completion;
    }
    realm_mutex_unlock(&rt->mu);
    return sum;
}

static void stored_flushed(realm_runtime *rt, realm_tenant *t) {
    t->carried = (realm_token_counts){0};
    realm_mutex_lock(&rt->mu);
    for (tenant_model *m = t->stored; m; m = m->next) m->flushed = m->snapshot;
    realm_mutex_unlock(&rt->mu);
}

static bool snapshot_tenants(realm_runtime *rt, snapshot *p) {
    realm_mutex_lock(&rt->mu);
    size_t n = 0, i = 0;
    for (realm_tenant *t = rt->tenants; t; t = t->next) n++;
    p->tenants = realm_calloc(n + 1, sizeof *p->tenants);
    if (p->tenants) {
        for (realm_tenant *t = rt->tenants; t; t = t->next) {
            atomic_fetch_add_explicit(&t->refs, 1, memory_order_relaxed);
            p->tenants[i++] = t;
        }
        p->n = n;
    }
    memcpy(p->models, rt->models, sizeof p->models);
    realm_mutex_unlock(&rt->mu);
    p->counts = realm_calloc(n + 1, REALM_MODELS_MAX * sizeof *p->counts);
    p->entries = realm_calloc(n + 1, sizeof *p->entries);
    p->accounts = realm_calloc(n + 1, sizeof *p->accounts);
    p->each = realm_calloc(n + 1, sizeof *p->each);
    p->spent = realm_calloc(n + 1, sizeof *p->spent);
    p->budgets = realm_calloc(n + 1, sizeof *p->budgets);
    p->tensors = realm_calloc(n + 1, sizeof *p->tensors);
    return p->tenants && p->counts && p->entries && p->accounts && p->each && p->spent && p->budgets && p->tensors;
}

/* What is not tokens. A tenant that is not in the snapshot has spent nothing: before its first request it needs an
 * account, for which it waits until this flush is over. */
static void snapshot_spent(realm_runtime *rt, snapshot *p) {
    realm_tensor_usage total;
    realm_mutex_lock(&rt->cpu_mu);
    p->cpu_ns = rt->cpu_ns;
    for (size_t i = 0; i < p->n; i++) p->spent[i].cpu_ns = p->tenants[i]->cpu_ns;
    realm_mutex_unlock(&rt->cpu_mu);
    for (size_t i = 0; i < p->n; i++) p->budgets[i] = p->tenants[i]->tensors;
    realm_tensor_service_usage(rt->tensors, &total, p->budgets, p->n, p->tensors);
    p->tensor_ns = total.device_ns;
    for (size_t i = 0; i < p->n; i++) {
        p->spent[i].tensor_ns = p->tensors[i].device_ns;
        p->spent[i].requests = atomic_load(&p->tenants[i]->requests);
        p->spent[i].aborted = atomic_load(&p->tenants[i]->aborted);
    }
}

void ledger_charge_cpu(realm_tenant *t, uint64_t ns) {
    realm_mutex_lock(&t->rt->cpu_mu);
    t->cpu_ns += ns;
    t->rt->cpu_ns += ns;
    realm_mutex_unlock(&t->rt->cpu_mu);
}

bool ledger_has_all(realm_tenant *t) {
    static const realm_token_counts none;
    realm_runtime *rt = t->rt;
    realm_tensor_usage total, tensors;
    bool all = memcmp(&t->carried, &none, sizeof none) == 0;
    for (size_t i = 0; i < REALM_MODELS_MAX && all; i++) {
        realm_token_counts c = {0};
        /* Asked first: what is not busy is not charged any more. */
        if (t->accounts[i] && realm_account_is_busy(t->accounts[i])) return false;
        if (t->accounts[i]) realm_account_counts(t->accounts[i], &c);
        all = memcmp(&c, &t->flushed[i], sizeof c) == 0;
    }
    realm_tensor_service_usage(rt->tensors, &total, &t->tensors, 1, &tensors);
    realm_mutex_lock(&rt->cpu_mu);
    const uint64_t cpu_ns = t->cpu_ns;
    realm_mutex_unlock(&rt->cpu_mu);
    const tenant_spent now = {.requests = atomic_load(&t->requests),
                              .aborted = atomic_load(&t->aborted),
                              .cpu_ns = cpu_ns,
                              .tensor_ns = tensors.device_ns};
    return all && tensors.lists == 0 && memcmp(&now, &t->spent_flushed, sizeof now) == 0;
}

realm_status ledger_write(realm_runtime *rt, realm_error *err) {
    snapshot p = {0};
    realm_status s = REALM_OK;
    realm_usage engine = {0};
    size_t n_entries = 0;
    if (!snapshot_tenants(rt, &p)) {
        snapshot_release(&p);
        return realm_error_set(err, REALM_E_NOMEM, "out of memory");
    }
    for (size_t m = 0; m < REALM_MODELS_MAX; m++) {
        size_t n = 0;
        if (!p.models[m]) continue;
        /* Accounts are made under flush_mu, which is held: those that are there now are all there are. */
        for (size_t i = 0; i < p.n; i++)
            if (p.tenants[i]->accounts[m]) p.accounts[n++] = p.tenants[i]->accounts[m];
        realm_engine_counts(p.models[m]->engine, &p.totals[m], p.accounts, n, p.each);
        for (size_t i = 0, k = 0; i < p.n; i++)
            if (p.tenants[i]->accounts[m]) p.counts[i * REALM_MODELS_MAX + m] = p.each[k++];
        add(&engine, minus(p.totals[m], p.models[m]->flushed));
    }
    snapshot_spent(rt, &p);
    engine.program_cpu_ns = p.cpu_ns - rt->cpu_flushed;
    engine.tensor_ns = p.tensor_ns - rt->tensor_flushed;
    for (size_t i = 0; i < p.n; i++) {
        realm_tenant *t = p.tenants[i];
        const tenant_spent *spent = &p.spent[i], *had = &t->spent_flushed;
        realm_usage_entry e = {.tenant_id = t->id};
        for (size_t m = 0; m < REALM_MODELS_MAX; m++)
            add(&e.delta, minus(p.counts[i * REALM_MODELS_MAX + m], t->flushed[m]));
        realm_token_counts stored = snapshot_stored(rt, t);
        add(&e.delta, stored);
        add(&engine, stored);
        e.delta.requests = spent->requests - had->requests;
        e.delta.aborted_requests = spent->aborted - had->aborted;
        e.delta.program_cpu_ns = spent->cpu_ns - had->cpu_ns;
        e.delta.tensor_ns = spent->tensor_ns - had->tensor_ns;
        static const realm_usage zero;
        if (memcmp(&e.delta, &zero, sizeof zero) != 0) p.entries[n_entries++] = e;
    }
    if (n_entries || realm_store_usage_waits(rt->store)) {
        s = realm_store_usage_add(rt->store, p.entries, n_entries, n_entries ? &engine : NULL, err);
        if (s == REALM_OK && !realm_store_usage_waits(rt->store))
            atomic_fetch_add_explicit(&rt->ledger_writes, 1, memory_order_relaxed);
    }
    if (s == REALM_OK && n_entries) {
        for (size_t m = 0; m < REALM_MODELS_MAX; m++)
            if (p.models[m]) p.models[m]->flushed = p.totals[m];
        rt->cpu_flushed = p.cpu_ns;
        rt->tensor_flushed = p.tensor_ns;
        for (size_t i = 0, k = 0; i < p.n; i++) {
            realm_tenant *t = p.tenants[i];
            memcpy(t->flushed, &p.counts[i * REALM_MODELS_MAX], sizeof t->flushed);
            stored_flushed(rt, t);
            t->spent_flushed = p.spent[i];
            if (k < n_entries && p.entries[k].tenant_id == t->id) tenant_spend(t, &p.entries[k++].delta);
        }
    }
    snapshot_release(&p);
    return s;
}

void ledger_flush(realm_runtime *rt) {
    realm_error err = {0};
    realm_mutex_lock(&rt->flush_mu);
    realm_status s = ledger_write(rt, &err);
    if (s != REALM_OK) {
        atomic_fetch_add_explicit(&rt->ledger_failures, 1, memory_order_relaxed);
        uint64_t now_ns = realm_clock_ns();
        if (now_ns >= rt->complain_ns) {
            realm_log_error("ledger", "not written, will be tried again: %s", err.text);
            rt->complain_ns = now_ns + COMPLAIN_PERIOD_NS;
        }
    }
    realm_mutex_unlock(&rt->flush_mu);
}

/* Releases every run of a list from its wait. */
static void all_durable(realm_run *list) {
    while (list) {
        realm_run *run = list;
        list = run->next_waiting;
        run_durable(run);
    }
}

void ledger_enqueue(realm_runtime *rt, realm_run *run) {
    realm_mutex_lock(&rt->mu);
    bool stopped = rt->stop;
    if (!stopped) {
        run->next_waiting = rt->waiting;
        rt->waiting = run;
        realm_cond_signal(&rt->work);
    }
    realm_mutex_unlock(&rt->mu);
    if (stopped) { /* the runtime is closing: its last flush follows */
        run->next_waiting = NULL;
        all_durable(run);
    }
}

void *ledger_thread(void *arg) {
    realm_runtime *rt = arg;
    uint64_t refresh_ns = realm_clock_ns() + REFRESH_PERIOD_NS;
    for (;;) {
        realm_mutex_lock(&rt->mu);
        if (!rt->waiting && !rt->stop && rt->reload_done == rt->reload_wanted)
            realm_cond_wait_until(&rt->work, &rt->mu, realm_clock_ns() + FLUSH_PERIOD_NS);
        realm_run *list = rt->waiting;
        rt->waiting = NULL;
        bool stop = rt->stop;
        uint64_t reload = rt->reload_wanted;
        bool asked = reload != rt->reload_done;
        realm_mutex_unlock(&rt->mu);
        ledger_flush(rt);
        all_durable(list);
        if (stop && !list) return NULL;
        if (asked || realm_clock_ns() >= refresh_ns) {
            tenants_refresh(rt);
            tenants_trim_programs(rt);
            refresh_ns = realm_clock_ns() + REFRESH_PERIOD_NS;
            realm_mutex_lock(&rt->mu);
            rt->reload_done = reload;
            realm_cond_broadcast(&rt->reloaded);
            realm_mutex_unlock(&rt->mu);
        }
    }
}
