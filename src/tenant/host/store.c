/* tenant/host/store.c - host calls of the tenant's own store: values by key, shared by all its requests.
 *
 * Keys and values are copied into a job before the program is suspended, and a result is copied out when it goes on:
 * the database is touched by the pool's threads alone. Values live in the store under the tenant's number, so no key,
 * however spelled, reaches another tenant's.
 */
#include <string.h>

#include "tenant/host/host.h"

#define LIST_BYTES_MAX (1u << 20) /* of one store_list */

typedef enum store_op { STORE_GET, STORE_PUT, STORE_DELETE, STORE_LIST } store_op;

typedef struct store_job {
    tenant_job job;
    store_op op;
    uint64_t quota_bytes;
    char key[REALM_VALUE_KEY_MAX], after[REALM_VALUE_KEY_MAX];
    size_t key_len, after_len;
    void *value;
    size_t value_len;
    realm_buf list;
} store_job;

static const char *const NAMES[] = {"store_get", "store_put", "store_delete", "store_list"};

static void store_free(tenant_job *job) {
    store_job *j = (store_job *)job;
    realm_free(j->value);
    realm_buf_release(&j->list);
    realm_free(j);
}

static void store_work(tenant_job *job) {
    store_job *j = (store_job *)job;
    realm_store *s = job->tenant->rt->store;
    int64_t id = job->tenant->id;
    realm_error *err = &job->error;
    realm_status st = REALM_OK;
    switch (j->op) {
    case STORE_GET: st = realm_store_value_get(s, id, j->key, j->key_len, &j->value, &j->value_len, err); break;
    case STORE_PUT:
        st = realm_store_value_put(s, id, j->quota_bytes, j->key, j->key_len, j->value, j->value_len, err);
        break;
    case STORE_DELETE: st = realm_store_value_delete(s, id, j->key, j->key_len, err); break;
    case STORE_LIST:
        st = realm_store_value_list(s, id, j->key, j->key_len, j->after, j->after_len, &j->list, err);
        break;
    }
    if (st) realm_error_prefix(err, "%s", NAMES[j->op]);
}

static bool take_key(realm_call *call, store_op op, uint64_t ptr, uint64_t len, char *out, size_t *out_len,
                     int32_t *result) {
    if (len > REALM_VALUE_KEY_MAX) {
        host_fail(host_of(call), result, REALM_E_LIMIT, "%s: a key has at most %u bytes", NAMES[op],
                  REALM_VALUE_KEY_MAX);
        return false;
    }
    const void *from = host_range(call, ptr, len, NAMES[op], result);
    if (from && len) memcpy(out, from, (size_t)len);
    *out_len = (size_t)len;
    return from;
}

/* A job with its key; NULL with *result set. */
static store_job *begin(realm_call *call, store_op op, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    store_job *j = realm_calloc(1, sizeof *j);
    if (!j) {
        host_fail(h, result, REALM_E_NOMEM, "%s: out of memory", NAMES[op]);
        return NULL;
    }
    j->op = op;
    j->quota_bytes = realm_run_limits(h->run)->storage_bytes;
    j->job.work = store_work;
    j->job.free = store_free;
    realm_buf_init(&j->list, LIST_BYTES_MAX);
    job_init(&j->job, realm_run_request(h->run)->tenant, realm_call_instance(call), false);
    if (take_key(call, op, args[0], args[1], j->key, &j->key_len, result)) return j;
    job_release(&j->job);
    return NULL;
}

realm_call_result host_store_get(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_call_result state;
    if (!realm_call_resumed(call)) {
        store_job *j = begin(call, STORE_GET, args, result);
        return j ? host_job_start(call, &j->job, result) : REALM_CALL_DONE;
    }
    store_job *j = (store_job *)host_job_done(call, &state, result);
    if (!j) return state;
    host_give(call, args[2], args[3], j->value, j->value_len, 1, result);
    host_job_end(host_of(call));
    return REALM_CALL_DONE;
}

realm_call_result host_store_put(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_call_result state;
    if (realm_call_resumed(call)) {
        if (!host_job_done(call, &state, result)) return state;
        host_job_end(host_of(call));
        return REALM_CALL_DONE;
    }
    realm_host *h = host_of(call);
    if (args[3] > REALM_VALUE_BYTES_MAX)
        return host_fail(h, result, REALM_E_LIMIT, "store_put: a value has at most %u bytes", REALM_VALUE_BYTES_MAX);
    const void *from = host_range(call, args[2], args[3], "store_put", result);
    store_job *j = from ? begin(call, STORE_PUT, args, result) : NULL;
    if (!j) return REALM_CALL_DONE;
    j->value_len = (size_t)args[3];
    if (!(j->value = realm_malloc(j->value_len))) {
        job_release(&j->job);
        return host_fail(h, result, REALM_E_NOMEM, "store_put: out of memory");
    }
    memcpy(j->value, from, j->value_len);
    return host_job_start(call, &j->job, result);
}

realm_call_result host_store_delete(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_call_result state;
    if (!realm_call_resumed(call)) {
        store_job *j = begin(call, STORE_DELETE, args, result);
        return j ? host_job_start(call, &j->job, result) : REALM_CALL_DONE;
    }
    if (!host_job_done(call, &state, result)) return state;
    host_job_end(host_of(call));
    return REALM_CALL_DONE;
}

realm_call_result host_store_list(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_call_result state;
    if (!realm_call_resumed(call)) {
        if (!host_range(call, args[4], args[5], "store_list", result)) return REALM_CALL_DONE;
        store_job *j = begin(call, STORE_LIST, args, result);
        if (!j) return REALM_CALL_DONE;
        if (!take_key(call, STORE_LIST, args[2], args[3], j->after, &j->after_len, result)) {
            job_release(&j->job);
            return REALM_CALL_DONE;
        }
        j->list.max = (size_t)REALM_MIN(args[5], LIST_BYTES_MAX);
        return host_job_start(call, &j->job, result);
    }
    store_job *j = (store_job *)host_job_done(call, &state, result);
    if (!j) return state;
    host_give(call, args[4], args[5], j->list.data, j->list.len, 1, result);
    host_job_end(host_of(call));
    return REALM_CALL_DONE;
}
