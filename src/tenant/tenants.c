/* tenant/tenants.c - tenants as the running server sees them: found by key, admitted by their limits.
 *
 * A tenant's row is read from the store when it is first needed and again when the store has changed (the ledger's
 * thread looks four times a second); a key is looked up in the store for every request, so a revoked one is refused at
 * once. A tenant deleted from the store stays here until its last request is gone and the ledger has its counts. Its
 * models and files are removed by a thread that nobody waits for, however many they are.
 */
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/log.h"
#include "crypto/crypto.h"
#include "tenant/internal.h"

#define REPLACED_MAX 8 /* programs of one tenant, one after the other, while a request waits for them */

/* ---- the table --------------------------------------------------------------------------------------------------- */

static void tenant_free(realm_tenant *t) {
    if (!t) return;
    saved_drop_all(t, NULL);
    while (t->stored) {
        tenant_model *m = t->stored;
        t->stored = m->next;
        model_free(m);
    }
    for (size_t i = 0; i < REALM_MODELS_MAX; i++)
        if (t->accounts[i]) realm_account_close(t->accounts[i]);
    realm_program_release(t->program);
    realm_tensor_budget_close(t->tensors);
    realm_free(t->args);
    realm_free(t->env);
    realm_mutex_destroy(&t->files_mu);
    realm_mutex_destroy(&t->mu);
    realm_free(t);
}

/* Keeps a list as long as it is, NULL when it is empty; false when there is no memory, and the old one stays. */
static bool keep_strings(realm_strings **to, const realm_strings *from) {
    realm_strings *copy = NULL;
    size_t bytes = offsetof(realm_strings, text) + from->len;
    if (from->n > 0) {
        if (!(copy = realm_malloc(bytes))) return false;
        memcpy(copy, from, bytes);
    }
    realm_free(*to);
    *to = copy;
    return true;
}

realm_account_limits tenant_account_limits(const realm_limits *l) {
    return (realm_account_limits){.generations = (uint32_t)l->generations,
                                  .kv_tokens = l->kv_tokens,
                                  .weight = (uint32_t)l->weight,
                                  .tokens_per_second = l->tokens_per_second};
}

/* Takes over what a row says. The stored program is opened when it is next needed. */
static void apply_row(realm_tenant *t, const realm_tenant_row *row) {
    realm_mutex_lock(&t->mu);
    t->limits = row->limits;
    if (!keep_strings(&t->args, &row->args) || !keep_strings(&t->env, &row->env))
        realm_log_error("tenant", "%s: no memory for its arguments and environment: the old ones stay", row->name);
    if (!t->program_set && strcmp(t->program_sha256, row->program_sha256) != 0) {
        memcpy(t->program_sha256, row->program_sha256, sizeof t->program_sha256);
        realm_program_release(t->program);
        t->program = NULL;
        realm_error_clear(&t->program_error);
    }
    realm_tensor_budget_set_limit(t->tensors, t->limits.tensor_bytes);
    realm_account_limits al = tenant_account_limits(&t->limits);
    for (size_t i = 0; i < REALM_MODELS_MAX; i++)
        if (t->accounts[i]) realm_account_set_limits(t->accounts[i], &al);
    realm_mutex_unlock(&t->mu);
}

/* And for the models that it stored; rt->mu is held. */
static void apply_to_stored(realm_tenant *t, const realm_limits *l) {
    realm_account_limits al = tenant_account_limits(l);
    for (tenant_model *m = t->stored; m; m = m->next)
        if (m->account) realm_account_set_limits(m->account, &al);
}

/* Finds or makes the tenant of a row, with a reference. */
static realm_status hold(realm_runtime *rt, const realm_tenant_row *row, realm_tenant **out, realm_error *err) {
    realm_mutex_lock(&rt->mu);
    realm_tenant *t = rt->tenants;
    while (t && t->id != row->id) t = t->next;
    if (!t) {
        t = realm_calloc(1, sizeof *t);
        if (!t || realm_tensor_budget_open(row->limits.tensor_bytes, &t->tensors, NULL) != REALM_OK) {
            realm_mutex_unlock(&rt->mu);
            realm_free(t);
            return realm_error_set(err, REALM_E_NOMEM, "tenant: out of memory");
        }
        t->rt = rt;
        t->id = row->id;
        memcpy(t->name, row->name, sizeof t->name);
        realm_mutex_init(&t->mu, REALM_RANK_TENANT);
        realm_mutex_init(&t->files_mu, REALM_RANK_TENANT);
        t->request_credit = t->token_credit = INFINITY; /* full; clamped to the limit at first use */
        apply_row(t, row);
        t->stale = true; /* it may have changed since the caller read it, and reread() has not seen this one */
        t->next = rt->tenants;
        rt->tenants = t;
    }
    /* relaxed: the count is only compared with 0 under runtime.mu */
    atomic_fetch_add_explicit(&t->refs, 1, memory_order_relaxed);
    realm_mutex_unlock(&rt->mu);
    *out = t;
    return REALM_OK;
}

/* By id without touching the store; NULL when not loaded yet. */
static realm_tenant *find_loaded(realm_runtime *rt, int64_t id) {
    realm_mutex_lock(&rt->mu);
    realm_tenant *t = rt->tenants;
    while (t && t->id != id) t = t->next;
    if (t) atomic_fetch_add_explicit(&t->refs, 1, memory_order_relaxed);
    realm_mutex_unlock(&rt->mu);
    return t;
}

realm_status realm_runtime_authenticate(realm_runtime *rt, const char *key, size_t key_len, realm_tenant **out,
                                        realm_error *err) {
    realm_key_row k;
    realm_tenant_row row;
    realm_status s = realm_store_key_find(rt->store, key, key_len, &k, err);
    if (s != REALM_OK) return s;
    if (k.admin || k.tenant_id == 0)
        return realm_error_set(err, REALM_E_UNAUTHENTICATED, "this is an admin key; it belongs to no tenant");
    if ((*out = find_loaded(rt, k.tenant_id))) return REALM_OK;
    s = realm_store_tenant_get(rt->store, k.tenant_id, &row, err);
    if (s == REALM_E_NOT_FOUND) return realm_error_set(err, REALM_E_UNAUTHENTICATED, "this key is not valid");
    return s == REALM_OK ? hold(rt, &row, out, err) : s;
}

realm_status realm_runtime_tenant(realm_runtime *rt, const char *name, realm_tenant **out, realm_error *err) {
    realm_tenant_row row;
    realm_status s = realm_store_tenant_find(rt->store, name, &row, err);
    return s == REALM_OK ? hold(rt, &row, out, err) : s;
}

void realm_tenant_release(realm_tenant *t) {
    if (!t) return;
    /* release: what this holder did is seen by whoever finds the count at 0 */
    atomic_fetch_sub_explicit(&t->refs, 1, memory_order_release);
}

const char *realm_tenant_name(const realm_tenant *t) { return t->name; }
realm_runtime *realm_tenant_runtime(const realm_tenant *t) { return t->rt; }

/* Reads rows again: all, or those that may not be what the store says. */
static void reread(realm_runtime *rt, bool all) {
    realm_mutex_lock(&rt->mu);
    realm_tenant *t = rt->tenants;
    for (;;) { /* the list only loses entries on this thread, so `next` stays valid */
        while (t && !all && !t->stale) t = t->next;
        if (!t) break;
        atomic_fetch_add_explicit(&t->refs, 1, memory_order_relaxed);
        realm_mutex_unlock(&rt->mu);
        realm_tenant_row row;
        realm_status s = realm_store_tenant_get(rt->store, t->id, &row, NULL);
        if (s == REALM_OK) apply_row(t, &row);
        realm_mutex_lock(&rt->mu);
        if (s == REALM_OK) apply_to_stored(t, &row.limits);
        if (s == REALM_E_NOT_FOUND) t->gone = true;
        t->stale = s != REALM_OK && s != REALM_E_NOT_FOUND; /* next time again */
        realm_tenant *next = t->next;
        realm_tenant_release(t);
        t = next;
    }
    realm_mutex_unlock(&rt->mu);
}

/* What is left to do once nobody uses it: of a deleted tenant its models and files go, of others the models that were
 * removed while a program held them. */
static bool has_leftovers(const realm_tenant *t) {
    if (t->gone) return !t->forgotten && atomic_load_explicit(&t->refs, memory_order_acquire) == 0;
    for (const tenant_model *m = t->stored; m; m = m->next)
        if (m->removed && m->state == MODEL_READY && m->users == 0) return true;
    return false;
}

static bool any_leftovers(realm_runtime *rt) {
    realm_mutex_lock(&rt->mu);
    const realm_tenant *t = rt->tenants;
    while (t && !has_leftovers(t)) t = t->next;
    const bool any = t || models_any_unused(rt);
    realm_mutex_unlock(&rt->mu);
    return any;
}

static void clear_leftovers(realm_runtime *rt) {
    for (;;) {
        realm_mutex_lock(&rt->mu);
        realm_tenant *t = rt->tenants;
        while (t && !has_leftovers(t)) t = t->next;
        if (t) atomic_fetch_add_explicit(&t->refs, 1, memory_order_relaxed);
        bool gone = t && t->gone;
        if (gone) t->forgotten = true;
        realm_mutex_unlock(&rt->mu);
        if (!t) return;
        if (gone) saved_drop_all(t, NULL);
        if (gone)
            models_forget(t);
        else
            models_unload_idle(t, true);
        realm_tenant_release(t);
    }
}

void *sweeper_thread(void *arg) {
    realm_runtime *rt = arg;
    realm_mutex_lock(&rt->mu);
    while (!rt->stop) {
        const bool leftovers = rt->sweep_leftovers, folders = rt->sweep_folders;
        if (!leftovers && !folders) {
            realm_cond_wait(&rt->sweep, &rt->mu);
            continue;
        }
        rt->sweep_leftovers = rt->sweep_folders = false;
        realm_mutex_unlock(&rt->mu);
        clear_leftovers(rt);
        models_take_apart_unused(rt);
        if (folders) models_sweep_deleted(rt);
        realm_mutex_lock(&rt->mu);
    }
    realm_mutex_unlock(&rt->mu);
    return NULL;
}

/* Lets go of those that are gone, unused and fully in the ledger. */
static void free_gone(realm_runtime *rt) {
    realm_mutex_lock(&rt->mu);
    bool any = false;
    for (const realm_tenant *t = rt->tenants; t; t = t->next) any |= t->gone;
    realm_mutex_unlock(&rt->mu);
    if (!any) return;
    ledger_flush(rt);
    realm_mutex_lock(&rt->flush_mu);
    realm_mutex_lock(&rt->mu);
    realm_tenant **link = &rt->tenants, *dead = NULL, *t;
    while ((t = *link)) {
        if (t->gone && t->forgotten && !t->stored && atomic_load_explicit(&t->refs, memory_order_acquire) == 0 &&
            ledger_has_all(t)) {
            *link = t->next;
            t->next = dead;
            dead = t;
        } else {
            link = &t->next;
        }
    }
    realm_mutex_unlock(&rt->mu);
    realm_mutex_unlock(&rt->flush_mu);
    while (dead) {
        t = dead;
        dead = t->next;
        tenant_free(t);
    }
}

void tenants_refresh(realm_runtime *rt) {
    uint64_t version;
    const bool changed = realm_store_version(rt->store, &version, NULL) == REALM_OK && version != rt->store_version;
    if (changed) rt->store_version = version;
    reread(rt, changed);
    const bool leftovers = any_leftovers(rt);
    if (changed || leftovers) {
        realm_mutex_lock(&rt->mu);
        rt->sweep_folders |= changed;
        rt->sweep_leftovers |= leftovers;
        realm_cond_signal(&rt->sweep);
        realm_mutex_unlock(&rt->mu);
    }
    free_gone(rt);
}

void realm_runtime_reload(realm_runtime *rt) {
    realm_mutex_lock(&rt->mu);
    uint64_t wanted = ++rt->reload_wanted;
    realm_cond_broadcast(&rt->work);
    while (rt->reload_done < wanted && !rt->stop) realm_cond_wait(&rt->reloaded, &rt->mu);
    realm_mutex_unlock(&rt->mu);
}

void tenants_close(realm_runtime *rt) {
    while (rt->tenants) {
        realm_tenant *t = rt->tenants;
        rt->tenants = t->next;
        tenant_free(t);
    }
}

/* ---- accounts and programs --------------------------------------------------------------------------------------- */

realm_status tenant_open_account(realm_tenant *t, realm_engine *e, const char *model, const realm_account_limits *al,
                                 realm_account **out, realm_error *err) {
    uint8_t secret[REALM_CACHE_SECRET_BYTES];
    char name[32 + REALM_MODEL_ID_MAX];
    snprintf(name, sizeof name, "%lld/%s", (long long)t->id, model); /* ids are never used twice, names are */
    realm_status s = realm_store_derive(t->rt->store, "prefix cache", name, secret, err);
    if (s == REALM_OK) s = realm_account_open(e, al, secret, out, err);
    realm_secret_wipe(secret, sizeof secret);
    return s;
}

realm_status tenant_account(realm_tenant *t, const tenant_model *m, realm_account **out, realm_error *err) {
    realm_account **own = &t->accounts[m->slot];
    realm_status s = REALM_OK;
    realm_mutex_lock(&t->mu);
    *out = *own;
    realm_mutex_unlock(&t->mu);
    if (*out) return s;
    /* Not while a flush takes its snapshot: it would see the engine's total with this account's tokens, not them. */
    realm_mutex_lock(&t->rt->flush_mu);
    realm_mutex_lock(&t->mu);
    if (!*own) {
        realm_account_limits al = tenant_account_limits(&t->limits);
        s = tenant_open_account(t, m->engine, m->id, &al, own, err);
    }
    *out = *own;
    realm_mutex_unlock(&t->mu);
    realm_mutex_unlock(&t->rt->flush_mu);
    return s;
}

/* The program when it is there, or why it never will be; t->mu is held. REALM_E_AGAIN: it must be opened first. */
static realm_status program_now(realm_tenant *t, realm_program **out, realm_error *err) {
    t->program_used_ns = realm_clock_ns();
    *out = t->program ? realm_program_retain(t->program) : NULL;
    if (!*out && t->program_sha256[0] == '\0') *out = realm_program_retain(t->rt->default_program);
    if (*out) return REALM_OK;
    if (t->program_error.code == REALM_OK) return REALM_E_AGAIN;
    if (err) *err = t->program_error;
    return t->program_error.code;
}

/* Opens the stored program: blocks for as long as compiling takes, so only the pool does it. REALM_E_NOT_FOUND: it has
 * been replaced in the store. */
static realm_status open_program(realm_tenant *t, realm_program **out, realm_error *err) {
    char sha[65];
    uint64_t memory_bytes;
    realm_program *p = NULL;
    realm_mutex_lock(&t->mu);
    realm_status now = program_now(t, out, err);
    memcpy(sha, t->program_sha256, sizeof sha);
    memory_bytes = t->limits.memory_bytes;
    realm_mutex_unlock(&t->mu);
    if (now != REALM_E_AGAIN) return now;

    realm_error local = {0};
    void *wasm = NULL;
    size_t len = 0;
    uint64_t cpu_ns = 0;
    realm_program_limits pl = {.memory_bytes = memory_bytes, .compile_cpu_ns = &cpu_ns};
    realm_status s = realm_store_program_get(t->rt->store, sha, &wasm, &len, &local);
    if (s == REALM_OK) s = realm_program_open(t->rt->sandbox, wasm, len, &pl, &p, &local);
    realm_free(wasm);
    ledger_charge_cpu(t, cpu_ns); /* of a module that is refused too */
    if (s != REALM_OK && s != REALM_E_NOT_FOUND) {
        realm_error_prefix(&local, "program of tenant %s", t->name);
        realm_log_error("tenant", "%s", local.text);
        /* A refusal is final for these bytes, and the tenant's own affair; running out of something may pass. */
        if (s == REALM_E_FORMAT || s == REALM_E_UNSUPPORTED || s == REALM_E_LIMIT || s == REALM_E_INVALID)
            s = local.code = REALM_E_PROGRAM;
    }
    realm_mutex_lock(&t->mu);
    if (strcmp(sha, t->program_sha256) == 0 && !t->program_set) {
        if (s == REALM_E_PROGRAM) t->program_error = local;
        if (s == REALM_OK && !t->program) t->program = realm_program_retain(p);
    }
    realm_mutex_unlock(&t->mu);
    if (s != REALM_OK) *err = local;
    *out = p;
    return s;
}

static void program_free(tenant_job *job) { realm_free(job); }

/* Those that wait for the program, who came first is first; none does any more. */
static realm_run *take_starting(realm_tenant *t) {
    realm_run *last, *list = NULL;
    realm_mutex_lock(&t->mu);
    last = t->starting;
    t->starting = NULL;
    t->n_starting = 0;
    realm_mutex_unlock(&t->mu);
    while (last) {
        realm_run *before = last->next_waiting;
        last->next_waiting = list;
        list = last;
        last = before;
    }
    return list;
}

/* Opens the program and lets go of the runs that came meanwhile, with it or with the reason why there is none. */
static void program_work(tenant_job *job) {
    realm_tenant *t = job->tenant;
    realm_program *p = NULL;
    realm_status s = open_program(t, &p, &job->error);
    for (int n = 0; s == REALM_E_NOT_FOUND && n < REPLACED_MAX; n++) {
        realm_error_clear(&job->error);
        realm_runtime_reload(t->rt); /* then its row is the one that is there now */
        s = open_program(t, &p, &job->error);
    }
    realm_run *list = take_starting(t);
    while (list) {
        realm_run *run = list;
        list = run->next_waiting;
        run->next_waiting = NULL;
        run_program_ready(run, s == REALM_OK ? p : NULL, &job->error);
    }
    realm_program_release(p);
}

/* Nobody will open the program: the run that would have seen to it fails, those that came behind it end with its error.
 */
static realm_status abandon(realm_tenant *t, realm_run *run, realm_status why, realm_error *err) {
    realm_error local = {.code = why};
    if (err) local = *err;
    realm_run *list = take_starting(t);
    while (list) {
        realm_run *each = list;
        list = each->next_waiting;
        each->next_waiting = NULL;
        if (each != run) run_program_ready(each, NULL, &local);
    }
    return why;
}

realm_status tenant_program(realm_tenant *t, realm_run *run, realm_program **out, realm_error *err) {
    realm_mutex_lock(&t->mu);
    realm_status s = program_now(t, out, err);
    bool first = s == REALM_E_AGAIN && !t->starting;
    if (s == REALM_E_AGAIN && t->n_starting == STARTING_MAX)
        s = realm_error_set(err, REALM_E_BUSY, "%u requests wait for the tenant's program to be compiled",
                            STARTING_MAX);
    if (s == REALM_E_AGAIN) {
        run->next_waiting = t->starting;
        t->starting = run;
        t->n_starting++;
    }
    realm_mutex_unlock(&t->mu);
    if (s != REALM_E_AGAIN || !first) return s;
    tenant_job *j = realm_calloc(1, sizeof *j);
    realm_status queued = j ? REALM_OK : realm_error_set(err, REALM_E_NOMEM, "run: out of memory");
    if (j) {
        j->work = program_work;
        j->free = program_free;
        job_init(j, t, NULL, true);
        queued = jobs_submit(t->rt->jobs, j, err);
        job_release(j);
    }
    return queued == REALM_OK ? s : abandon(t, run, queued, err);
}

realm_status realm_tenant_open_program(realm_tenant *t, const void *wasm, size_t len, realm_program **out,
                                       realm_error *err) {
    realm_mutex_lock(&t->mu);
    uint64_t cpu_ns = 0;
    realm_program_limits pl = {.memory_bytes = t->limits.memory_bytes, .compile_cpu_ns = &cpu_ns};
    realm_mutex_unlock(&t->mu);
    realm_status s = realm_program_open(t->rt->sandbox, wasm, len, &pl, out, err);
    if (cpu_ns > 0) { /* not during a flush, which may have begun before there was this tenant */
        realm_mutex_lock(&t->rt->flush_mu);
        ledger_charge_cpu(t, cpu_ns);
        realm_mutex_unlock(&t->rt->flush_mu);
    }
    return s;
}

void realm_tenant_close_program(realm_program *p) { realm_program_release(p); }

realm_status realm_tenant_set_program(realm_tenant *t, const void *wasm, size_t len, realm_error *err) {
    realm_program *p = NULL;
    realm_status s = REALM_OK;
    if (wasm)
        s = realm_tenant_open_program(t, wasm, len, &p, err);
    else
        p = realm_program_retain(t->rt->default_program);
    if (s != REALM_OK) return s;
    realm_mutex_lock(&t->mu);
    realm_program *old = t->program;
    t->program = p;
    t->program_set = true;
    realm_mutex_unlock(&t->mu);
    realm_program_release(old);
    return REALM_OK;
}

/* ---- admission --------------------------------------------------------------------------------------------------- */

/* Brings a bucket of `limit` per minute up to date. */
static void refill(double *credit, uint64_t *at_ns, uint64_t limit, uint64_t now_ns) {
    double since_s = *at_ns ? (double)(now_ns - *at_ns) / 1e9 : 0;
    *credit = fmin(*credit + since_s * (double)limit / 60.0, (double)limit);
    *at_ns = now_ns;
}

static uint32_t wait_ms(double missing, uint64_t per_minute) {
    return (uint32_t)fmin(ceil(missing * 60000.0 / (double)per_minute), 86400000.0);
}

static int64_t today_s(void) { return realm_clock_wall_s() / 86400 * 86400; }

/* Loads today's tokens from the ledger when the limit asks for them, and starts anew at midnight UTC. Not under the
 * tenant's lock: programs' workers take that, and the database may be slow. Under that of flushes, so that no tokens
 * reach the ledger between reading it and counting on from there. */
static void know_today(realm_tenant *t) {
    uint64_t spent = 0;
    realm_mutex_lock(&t->mu);
    const bool wanted = t->limits.tokens_per_day > 0 && !(t->day_known && t->day_s == today_s());
    realm_mutex_unlock(&t->mu);
    if (!wanted) return;
    realm_mutex_lock(&t->rt->flush_mu);
    const int64_t day_s = today_s();
    if (realm_store_usage_tokens(t->rt->store, t->id, day_s, &spent, NULL) == REALM_OK) {
        realm_mutex_lock(&t->mu);
        t->day_tokens = spent;
        t->day_s = day_s;
        t->day_known = true;
        realm_mutex_unlock(&t->mu);
    }
    realm_mutex_unlock(&t->rt->flush_mu);
}

/* What stands against a request now; `take`: it takes its place in the bucket of requests, where nothing does. */
static realm_status admit(realm_tenant *t, bool take, realm_rate *rate, realm_error *err) {
    realm_status s = REALM_OK;
    realm_rate r = {0};
    uint64_t now_ns = realm_clock_ns();
    realm_mutex_lock(&t->mu);
    const realm_limits *l = &t->limits;
    if (l->requests_per_minute) {
        refill(&t->request_credit, &t->request_credit_ns, l->requests_per_minute, now_ns);
        if (take && t->request_credit < 1) {
            r.retry_after_ms = wait_ms(1 - t->request_credit, l->requests_per_minute);
            s = realm_error_set(err, REALM_E_RATE, "requests_per_minute: %llu are allowed",
                                (unsigned long long)l->requests_per_minute);
        }
    }
    if (s == REALM_OK && l->tokens_per_minute) {
        refill(&t->token_credit, &t->token_credit_ns, l->tokens_per_minute, now_ns);
        if (t->token_credit <= 0) {
            r.retry_after_ms = wait_ms(1 - t->token_credit, l->tokens_per_minute);
            s = realm_error_set(err, REALM_E_RATE, "tokens_per_minute: %llu are allowed",
                                (unsigned long long)l->tokens_per_minute);
        }
    }
    if (s == REALM_OK && l->tokens_per_day && t->day_s == today_s() && t->day_tokens >= l->tokens_per_day) {
        r.retry_after_ms = (uint32_t)((t->day_s + 86400 - realm_clock_wall_s()) * 1000);
        s = realm_error_set(err, REALM_E_QUOTA, "tokens_per_day: %llu are allowed",
                            (unsigned long long)l->tokens_per_day);
    }
    if (l->requests_per_minute) {
        if (take && s == REALM_OK) t->request_credit -= 1;
        r.limit = (uint32_t)l->requests_per_minute;
        r.remaining = (uint32_t)fmax(0, t->request_credit);
        r.reset_ms = wait_ms((double)l->requests_per_minute - t->request_credit, l->requests_per_minute);
    }
    if (l->tokens_per_minute) {
        refill(&t->token_credit, &t->token_credit_ns, l->tokens_per_minute, now_ns);
        r.token_limit = l->tokens_per_minute;
        r.token_remaining = (uint64_t)fmax(0, t->token_credit);
        r.token_reset_ms = wait_ms((double)l->tokens_per_minute - t->token_credit, l->tokens_per_minute);
    }
    realm_mutex_unlock(&t->mu);
    if (s != REALM_OK) atomic_fetch_add_explicit(&t->rt->refused, 1, memory_order_relaxed);
    if (rate) *rate = r;
    return s;
}

realm_status realm_tenant_admit(realm_tenant *t, realm_rate *rate, realm_error *err) {
    return admit(t, true, rate, err);
}

realm_status tenant_admitted(realm_tenant *t, realm_rate *rate, realm_error *err) {
    know_today(t);
    return admit(t, false, rate, err);
}

void tenant_spend(realm_tenant *t, const realm_usage *u) {
    const uint64_t n = u->prompt_tokens + u->completion_tokens;
    realm_mutex_lock(&t->mu);
    realm_usage_add(&t->used, u);
    if (t->limits.tokens_per_minute) {
        refill(&t->token_credit, &t->token_credit_ns, t->limits.tokens_per_minute, realm_clock_ns());
        t->token_credit -= (double)n;
    }
    if (t->day_known) t->day_tokens += n;
    realm_mutex_unlock(&t->mu);
}
