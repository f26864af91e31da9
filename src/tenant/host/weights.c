/* tenant/host/weights.c - weights copied out of model files into a program's memory.
 *
 * A file's pages may have to be read from a disk first, and whoever touches them waits for it. So a thread of the pool
 * copies (or dequantises) them piece by piece into a buffer, and the program's worker, which must never wait, moves
 * each piece on:
 *
 *      call --host_copy_start--> job: a piece --program woken--> host_copy_go_on: into its memory
 *      and the job again, until all is there
 *
 * Between two pieces the job stands behind those of other tenants. It holds what it reads from: its program may be
 * ended meanwhile, and a stored model unloaded.
 */
#include <string.h>

#include "tenant/host/tensor.h"

#define PIECE_BYTES ((uint64_t)4 << 20)

typedef struct copy_job {
    tenant_job job;
    /* The bytes of a layer's tensors, as they are in the file: */
    tenant_model *m; /* held when it could be unloaded */
    const realm_model_tensor *const *list;
    size_t n_list, at;
    uint64_t offset; /* in list[at] */
    /* or values of one weight, by whole rows: */
    realm_tensor *t; /* held */
    uint64_t first;

    char *piece;
    uint64_t len, cap;     /* of the piece */
    uint64_t given, total; /* bytes */
    uint64_t unit;         /* bytes of what the call's result counts */
} copy_job;

typedef struct copy_state { /* of the call */
    bool started;
} copy_state;

static void copy_free(tenant_job *job) {
    copy_job *j = (copy_job *)job;
    realm_served_release(j->m);
    realm_tensor_release(j->t);
    realm_free(j->piece);
    realm_free(j);
}

static void fill_from_layer(copy_job *j) {
    while (j->len < j->cap && j->at < j->n_list) {
        const realm_gguf_tensor *f = j->list[j->at]->file;
        const uint64_t n = REALM_MIN(j->cap - j->len, f->n_bytes - j->offset);
        memcpy(j->piece + j->len, (const char *)f->data + j->offset, (size_t)n);
        j->len += n;
        j->offset += n;
        if (j->offset < f->n_bytes) continue;
        j->at++;
        j->offset = 0;
    }
}

static void copy_work(tenant_job *job) {
    copy_job *j = (copy_job *)job;
    if (!j->piece && !(j->piece = realm_malloc((size_t)j->cap))) {
        realm_error_set(&job->error, REALM_E_NOMEM, "no memory for %llu bytes of weights", (unsigned long long)j->cap);
        return;
    }
    j->len = 0;
    if (j->list) {
        fill_from_layer(j);
        return;
    }
    const uint64_t bytes = REALM_MIN(j->cap, j->total - j->given), n = bytes / sizeof(float);
    if (realm_tensor_read(j->t, j->first, n, (float *)(void *)j->piece, &job->error)) return;
    j->first += n;
    j->len = bytes;
}

/* With everything but what is copied from; NULL with h->error. */
static copy_job *copy_open(realm_call *call, uint64_t total, uint64_t cap, uint64_t unit) {
    realm_host *h = host_of(call);
    copy_job *j = realm_calloc(1, sizeof *j);
    if (!j) {
        realm_error_set(&h->error, REALM_E_NOMEM, "no memory for a copy of weights");
        return NULL;
    }
    j->total = total;
    j->cap = REALM_MIN(total, cap);
    j->unit = unit;
    j->job.work = copy_work;
    j->job.free = copy_free;
    job_init(&j->job, realm_run_request(h->run)->tenant, realm_call_instance(call), true);
    ((copy_state *)realm_call_state(call))->started = true;
    return j;
}

bool host_copy_started(realm_call *call) { return ((const copy_state *)realm_call_state(call))->started; }

realm_call_result host_copy_layer(realm_call *call, const host_model *m, const realm_model_tensor *const *list,
                                  size_t n_list, uint64_t total, int32_t *result) {
    realm_host *h = host_of(call);
    copy_job *j = copy_open(call, total, PIECE_BYTES, 1);
    if (!j) return host_failed(h, result);
    j->list = list;
    j->n_list = n_list;
    j->m = model_hold_again(m->m);
    return host_job_start(call, &j->job, result);
}

realm_call_result host_copy_values(realm_call *call, realm_tensor *t, uint64_t first, uint64_t n, int32_t *result) {
    realm_host *h = host_of(call);
    realm_tensor_info info;
    realm_tensor_get_info(t, &info);
    const uint64_t row = info.cols * sizeof(float);
    copy_job *j = copy_open(call, n * sizeof(float), REALM_MAX(PIECE_BYTES / row * row, row), sizeof(float));
    if (!j) return host_failed(h, result);
    j->t = realm_tensor_retain(t);
    j->first = first;
    return host_job_start(call, &j->job, result);
}

realm_call_result host_copy_go_on(realm_call *call, uint64_t out, const char *what, int32_t *result) {
    realm_host *h = host_of(call);
    realm_call_result state;
    copy_job *j = (copy_job *)host_job_done(call, &state, result);
    if (!j) return state;
    void *to = host_range(call, out + j->given, j->len, what, result); /* was in range, and memory does not shrink */
    if (to) memcpy(to, j->piece, (size_t)j->len);
    j->given += j->len;
    if (to && j->given < j->total) return host_job_again(call, result);
    if (to) *result = (int32_t)(j->total / j->unit);
    host_job_end(h);
    return REALM_CALL_DONE;
}
