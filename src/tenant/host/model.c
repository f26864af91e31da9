/* tenant/host/model.c - host calls about models: the server's by name, the tenant's own by number.
 *
 * Ids: 0 is the request's own model; the server's models have a bit that no tenant can choose; the rest are numbers of
 * models that this tenant stored. What touches files or the database is a job: an image is handed over in pieces, each
 * copied before the program is suspended, and values of a tensor come back the same way, so neither is in memory twice
 * as a whole.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "tenant/host/host.h"

#define PIECE_BYTES ((size_t)4 << 20)  /* of an image */
#define PIECE_VALUES ((size_t)1 << 18) /* of a tensor */
#define TENSOR_NAME_MAX REALM_GGUF_MAX_NAME
#define INFO_BYTES_MAX ((size_t)16 << 20)

const realm_tokenizer *host_tokenizer(const host_model *model) { return model->m->tokenizer; }

size_t host_context_length(const host_model *model) { return realm_engine_context_length(model->m->engine); }

/* ---- the models of an instance ---- */

typedef struct hold_job {
    tenant_job job;
    uint32_t id;
    tenant_model *m; /* held; NULL: a stored one that is still to be found */
    realm_account *account;
} hold_job;

static void hold_work(tenant_job *job) {
    hold_job *j = (hold_job *)job;
    if (j->m) {
        (void)!tenant_account(job->tenant, j->m, &j->account, &job->error);
        return;
    }
    if (model_hold(job->tenant, j->id, &j->m, &job->error) == REALM_OK) j->account = j->m->account;
}

static void hold_free(tenant_job *job) {
    hold_job *j = (hold_job *)job;
    realm_served_release(j->m);
    realm_free(j);
}

static realm_call_result no_model(realm_host *h, uint64_t id, int32_t *result) {
    return host_fail(h, result, REALM_E_NOT_FOUND, "there is no model %d", (int32_t)(uint32_t)id);
}

/* One that the instance has already. */
static const host_model *held(const realm_host *h, uint64_t id) {
    for (uint32_t i = 0; i < h->n_models; i++)
        if ((uint64_t)h->models[i].id == id || (id != 0 && (uint64_t)h->models[i].m->server_id == id))
            return &h->models[i];
    return NULL;
}

/* Holds one of the server's; NULL when the id names none of them. */
static tenant_model *hold_server(realm_host *h, uint64_t id) {
    const host_model *own = held(h, id);
    if (own) return own->m->server_id ? model_hold_again(own->m) : NULL;
    return id & MODEL_ID_SERVER && id <= INT32_MAX ? runtime_hold_server_id(realm_run_runtime(h->run), (int32_t)id)
                                                   : NULL;
}

static const host_model *keep(realm_host *h, hold_job *j) {
    for (uint32_t i = 0; i < h->n_models; i++) /* another id of the same file */
        if (h->models[i].m == j->m) return &h->models[i];
    host_model *made = &h->models[h->n_models++];
    *made = (host_model){.id = (int32_t)j->id, .m = j->m, .account = j->account};
    j->m = NULL; /* the instance's from here on */
    return made;
}

realm_call_result host_model_get(realm_call *call, uint64_t id, const host_model **out, int32_t *result) {
    realm_host *h = host_of(call);
    realm_call_result state;
    *out = NULL;
    if (h->job) {
        hold_job *done = (hold_job *)host_job_done(call, &state, result);
        if (!done) return state;
        *out = keep(h, done);
        host_job_end(h);
        return REALM_CALL_DONE;
    }
    if ((*out = held(h, id))) return REALM_CALL_DONE;
    tenant_model *server = hold_server(h, id);
    if (!server && id > MODEL_ID_CHOSEN_MAX) return no_model(h, id, result);
    hold_job *j = h->n_models < HOST_MODELS_MAX ? realm_calloc(1, sizeof *j) : NULL;
    if (!j) {
        realm_served_release(server);
        if (h->n_models < HOST_MODELS_MAX) return host_fail(h, result, REALM_E_NOMEM, "out of memory");
        return host_fail(h, result, REALM_E_LIMIT, "a program uses at most %u models", HOST_MODELS_MAX);
    }
    j->id = (uint32_t)id;
    j->m = server;
    j->job.work = hold_work;
    j->job.free = hold_free;
    /* One of the server's is there already: that must not wait behind others' loading. */
    job_init(&j->job, realm_run_request(h->run)->tenant, realm_call_instance(call), !server);
    return host_job_start(call, &j->job, result);
}

void host_models_close(realm_host *h) {
    for (uint32_t i = 1; i < h->n_models; i++) realm_served_release(h->models[i].m); /* the first is the request's */
}

realm_call_result host_model_use(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    const host_model *model;
    realm_call_result state = host_model_get(call, args[0], &model, result);
    if (!model) return state;
    *result = h->model->id;
    h->model = model;
    return REALM_CALL_DONE;
}

/* ---- jobs on stored models ---- */

typedef struct file_job {
    tenant_job job;
    uint32_t id;
    uint64_t quota_bytes;
    /* Storing: the file that is being written, what of the quota is kept for it, and the next piece. */
    uint64_t reserved_bytes;
    int fd;
    char *path;
    char *piece;
    size_t piece_len;
    bool last;
    /* Reading: the file, and the tensor. */
    tenant_model *server; /* held; NULL: `own` is read */
    realm_gguf *own;
    const realm_gguf *gguf; /* of either */
    const realm_gguf_tensor *tensor;
    char name[TENSOR_NAME_MAX + 1];
    uint64_t n_values, at;
    float *values;
    size_t n_read;
    realm_buf text;
} file_job;

static void unreserve(file_job *j) {
    atomic_fetch_sub_explicit(&j->job.tenant->storing_bytes, j->reserved_bytes, memory_order_relaxed);
    j->reserved_bytes = 0;
}

static void file_free(tenant_job *job) {
    file_job *j = (file_job *)job;
    if (j->path) (void)unlink(j->path);
    if (j->fd >= 0) close(j->fd);
    unreserve(j);
    realm_free(j->path);
    realm_free(j->piece);
    realm_free(j->values);
    realm_gguf_close(j->own);
    realm_served_release(j->server);
    realm_buf_release(&j->text);
    realm_free(j);
}

static file_job *file_job_open(realm_call *call, void (*work)(tenant_job *), bool heavy, int32_t *result) {
    realm_host *h = host_of(call);
    file_job *j = realm_calloc(1, sizeof *j);
    if (!j) {
        host_fail(h, result, REALM_E_NOMEM, "out of memory");
        return NULL;
    }
    j->fd = -1;
    j->quota_bytes = realm_run_limits(h->run)->storage_bytes;
    j->job.work = work;
    j->job.free = file_free;
    j->job.free_blocks = true;
    realm_buf_init(&j->text, INFO_BYTES_MAX);
    job_init(&j->job, realm_run_request(h->run)->tenant, realm_call_instance(call), heavy);
    return j;
}

/* Opens the file that an id names. */
static realm_status open_stored(file_job *j) {
    realm_tenant *t = j->job.tenant;
    realm_error *err = &j->job.error;
    realm_model_row row;
    realm_status s = realm_store_model_find(t->rt->store, t->id, j->id, &row, err);
    if (s != REALM_OK) return s;
    char *path = t->rt->models_dir ? model_path(t, row.sha256) : NULL;
    if (!path) return realm_error_set(err, REALM_E_NOMEM, "out of memory");
    s = realm_gguf_open(&j->own, path, err);
    realm_free(path);
    j->gguf = j->own;
    return s == REALM_OK ? s : realm_error_set(err, s, "model %u cannot be read", j->id);
}

/* False when there is none of this id. Whether a stored one is there is seen when it is opened. */
static bool name_model(realm_host *h, uint64_t id, file_job *j) {
    j->id = (uint32_t)id;
    j->server = hold_server(h, id);
    j->gguf = j->server ? j->server->gguf : NULL;
    return j->server || id <= MODEL_ID_CHOSEN_MAX;
}

/* ---- finding, and telling about ---- */

static void find_work(tenant_job *job) {
    file_job *j = (file_job *)job;
    realm_model_row row;
    (void)!realm_store_model_find(job->tenant->rt->store, job->tenant->id, j->id, &row, &job->error);
}

/* 1 to MODEL_ID_CHOSEN_MAX in decimal, as it is written; 0 for anything else. */
static uint32_t number_of(const char *name, size_t len) {
    uint64_t v = 0;
    if (len == 0 || len > 10 || name[0] == '0') return 0;
    for (size_t i = 0; i < len; i++) {
        if (name[i] < '0' || name[i] > '9') return 0;
        v = v * 10 + (uint64_t)(name[i] - '0');
    }
    return v <= MODEL_ID_CHOSEN_MAX ? (uint32_t)v : 0;
}

int32_t host_server_id(const realm_host *h, const char *name) {
    tenant_model *m = realm_runtime_hold(realm_run_runtime(h->run), name);
    const int32_t id = m ? m->server_id : 0;
    realm_served_release(m);
    return id;
}

realm_call_result host_model_find(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    realm_call_result state;
    char name[REALM_MODEL_ID_MAX + 1];
    if (realm_call_resumed(call)) {
        file_job *j = (file_job *)host_job_done(call, &state, result);
        if (!j) return state;
        *result = (int32_t)j->id;
        host_job_end(h);
        return REALM_CALL_DONE;
    }
    if (args[1] > REALM_MODEL_ID_MAX)
        return host_fail(h, result, REALM_E_LIMIT, "model_find: a name has at most %u bytes", REALM_MODEL_ID_MAX);
    const char *from = host_range(call, args[0], args[1], "model_find", result);
    if (!from) return REALM_CALL_DONE;
    memcpy(name, from, (size_t)args[1]);
    name[args[1]] = 0;
    if (strlen(name) == args[1] && (*result = host_server_id(h, name))) return REALM_CALL_DONE;
    uint32_t id = number_of(name, (size_t)args[1]);
    if (!id) return host_fail(h, result, REALM_E_NOT_FOUND, "model_find: no model has this name");
    file_job *j = file_job_open(call, find_work, false, result);
    if (!j) return REALM_CALL_DONE;
    j->id = id;
    return host_job_start(call, &j->job, result);
}

static void info_work(tenant_job *job) {
    file_job *j = (file_job *)job;
    if (!j->gguf && open_stored(j)) return;
    (void)!realm_gguf_describe(j->gguf, true, 0, &j->text, &job->error);
}

realm_call_result host_realm_get_model_info(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    realm_call_result state;
    if (realm_call_resumed(call)) {
        file_job *j = (file_job *)host_job_done(call, &state, result);
        if (!j) return state;
        host_give(call, args[1], args[2], j->text.data, j->text.len, 1, result);
        host_job_end(h);
        return REALM_CALL_DONE;
    }
    file_job *j = file_job_open(call, info_work, true, result);
    if (!j) return REALM_CALL_DONE;
    if (!name_model(h, args[0], j)) {
        job_release(&j->job);
        return no_model(h, args[0], result);
    }
    return host_job_start(call, &j->job, result);
}

/* ---- storing and removing ---- */

static realm_status create_file(file_job *j) {
    realm_tenant *t = j->job.tenant;
    realm_error *err = &j->job.error;
    char name[48];
    snprintf(name, sizeof name, "%lld", (long long)t->id);
    char *dir = realm_path_join(t->rt->models_dir, name);
    realm_status s = REALM_OK;
    if (!dir || !(j->path = realm_path_join(dir, "upload-XXXXXX")))
        s = realm_error_set(err, REALM_E_NOMEM, "out of memory");
    else if (realm_dir_make(dir, NULL) != REALM_OK || realm_file_make(j->path, &j->fd, NULL) != REALM_OK)
        s = realm_error_set(err, REALM_E_IO, "the model cannot be stored: %s", strerror(errno));
    realm_free(dir);
    if (s != REALM_OK) {
        realm_free(j->path);
        j->path = NULL;
    }
    return s;
}

static realm_status write_piece(file_job *j) {
    for (size_t done = 0; done < j->piece_len;) {
        ssize_t n = write(j->fd, j->piece + done, j->piece_len - done);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0)
            return realm_error_set(&j->job.error, REALM_E_IO, "the model cannot be stored: %s",
                                   strerror(n < 0 ? errno : EIO));
        done += (size_t)n;
    }
    return REALM_OK;
}

static void store_work(tenant_job *job) {
    file_job *j = (file_job *)job;
    if (!j->path && create_file(j)) return;
    if (write_piece(j) || !j->last) return;
    if (fsync(j->fd) != 0) {
        realm_error_set(&job->error, REALM_E_IO, "the model cannot be stored: %s", strerror(errno));
        return;
    }
    realm_status s = model_store(job->tenant, j->path, j->id, j->quota_bytes, &j->id, &job->error);
    if (s != REALM_OK) realm_error_prefix(&job->error, "realm_store_model");
    realm_free(j->path); /* it has another name now, or is gone */
    j->path = NULL;
    unreserve(j); /* now, not when the job is freed: its program may store the next one at once */
}

/* Room for an image among those that the tenant's programs are storing; relaxed, as it is a number alone. */
static bool reserve(file_job *j, uint64_t n) {
    atomic_uint_fast64_t *storing = &j->job.tenant->storing_bytes;
    uint_fast64_t now = atomic_load_explicit(storing, memory_order_relaxed);
    do {
        if (n > j->quota_bytes || now > j->quota_bytes - n) return false;
    } while (
        !atomic_compare_exchange_weak_explicit(storing, &now, now + n, memory_order_relaxed, memory_order_relaxed));
    j->reserved_bytes = n;
    return true;
}

/* Copies the next piece of the image into the job. */
static bool next_piece(realm_call *call, const uint64_t *args, file_job *j, uint64_t *done, int32_t *result) {
    size_t n = (size_t)REALM_MIN(args[1] - *done, PIECE_BYTES);
    const void *from = host_range(call, args[0] + *done, n, "realm_store_model", result);
    if (!from) return false;
    if (n) memcpy(j->piece, from, n);
    j->piece_len = n;
    *done += n;
    j->last = *done == args[1];
    return true;
}

realm_call_result host_realm_store_model(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    uint64_t *done = realm_call_state(call);
    realm_call_result state;
    if (realm_call_resumed(call)) {
        file_job *j = (file_job *)host_job_done(call, &state, result);
        if (!j) return state;
        if (j->last) {
            *result = (int32_t)j->id;
            host_job_end(h);
            return REALM_CALL_DONE;
        }
        if (next_piece(call, args, j, done, result)) return host_job_again(call, result);
        host_job_end(h);
        return REALM_CALL_DONE;
    }
    if (args[2] > MODEL_ID_CHOSEN_MAX)
        return host_fail(h, result, REALM_E_RANGE, "realm_store_model: ids are 1 to %u, or 0", MODEL_ID_CHOSEN_MAX);
    if (!realm_run_runtime(h->run)->models_dir)
        return host_fail(h, result, REALM_E_UNSUPPORTED, "realm_store_model: this server has no folder for its state");
    if (!host_range(call, args[0], args[1], "realm_store_model", result)) return REALM_CALL_DONE;
    file_job *j = file_job_open(call, store_work, true, result);
    if (!j) return REALM_CALL_DONE;
    j->id = (uint32_t)args[2];
    if (!reserve(j, args[1])) { /* before anything is written; the sum is checked when it is listed */
        const uint64_t quota = j->quota_bytes;
        job_release(&j->job);
        return host_fail(h, result, REALM_E_LIMIT,
                         "realm_store_model: storage_bytes: %llu bytes do not fit in %llu, beside what is being stored",
                         (unsigned long long)args[1], (unsigned long long)quota);
    }
    if (!(j->piece = realm_malloc(PIECE_BYTES))) {
        job_release(&j->job);
        return host_fail(h, result, REALM_E_NOMEM, "realm_store_model: out of memory");
    }
    if (next_piece(call, args, j, done, result)) return host_job_start(call, &j->job, result);
    job_release(&j->job);
    return REALM_CALL_DONE;
}

static void remove_work(tenant_job *job) {
    file_job *j = (file_job *)job;
    (void)!model_remove(job->tenant, j->id, &job->error);
}

realm_call_result host_realm_remove_model(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    realm_call_result state;
    if (realm_call_resumed(call)) {
        if (!host_job_done(call, &state, result)) return state;
        host_job_end(h);
        return REALM_CALL_DONE;
    }
    if (args[0] == 0 || args[0] > MODEL_ID_CHOSEN_MAX)
        return host_fail(h, result, args[0] == 0 || args[0] & MODEL_ID_SERVER ? REALM_E_DENIED : REALM_E_NOT_FOUND,
                         "realm_remove_model: %d is not a model that this tenant stored", (int32_t)(uint32_t)args[0]);
    file_job *j = file_job_open(call, remove_work, true, result);
    if (!j) return REALM_CALL_DONE;
    j->id = (uint32_t)args[0];
    return host_job_start(call, &j->job, result);
}

/* ---- a tensor's values ---- */

static realm_status find_tensor(file_job *j) {
    realm_error *err = &j->job.error;
    if (!j->gguf && open_stored(j)) return err->code;
    if (!(j->tensor = realm_gguf_tensor_find(j->gguf, j->name)))
        return realm_error_set(err, REALM_E_NOT_FOUND, "realm_get_tensor: the model has no tensor of this name");
    if (!j->tensor->type->dequantize)
        return realm_error_set(err, REALM_E_UNSUPPORTED, "realm_get_tensor: values of type %s cannot be read",
                               j->tensor->type->name);
    j->n_values = 1; /* cannot overflow: the tensor lies inside its file */
    for (uint32_t d = 0; d < j->tensor->n_dims; d++) j->n_values *= j->tensor->dims[d];
    if (!(j->values = realm_malloc(PIECE_VALUES * sizeof *j->values)))
        return realm_error_set(err, REALM_E_NOMEM, "realm_get_tensor: out of memory");
    return REALM_OK;
}

/* The first time only looks; then a piece each time. Rows are whole blocks and follow each other, so values can be
 * counted through. */
static void tensor_work(tenant_job *job) {
    file_job *j = (file_job *)job;
    if (!j->tensor) {
        (void)!find_tensor(j);
        return;
    }
    const realm_type_info *type = j->tensor->type;
    j->n_read = (size_t)REALM_MIN(j->n_values - j->at, PIECE_VALUES / type->block_len * type->block_len);
    type->dequantize((const char *)j->tensor->data + j->at / type->block_len * type->block_bytes, j->values, j->n_read);
    j->at += j->n_read;
}

/* Once its size is known: is there room, and may it be read? */
static bool tensor_fits(realm_call *call, const uint64_t *args, const file_job *j, int32_t *result) {
    realm_host *h = host_of(call);
    uint64_t bytes = j->n_values * sizeof(float);
    if (j->n_values > INT32_MAX / sizeof(float))
        host_fail(h, result, REALM_E_LIMIT, "realm_get_tensor: %llu values are more than one call can give",
                  (unsigned long long)j->n_values);
    else if (args[4] < bytes)
        host_fail(h, result, REALM_E_RANGE, "realm_get_tensor: the tensor needs %llu bytes", (unsigned long long)bytes);
    else if (host_charge_read(h, bytes, "realm_get_tensor"))
        host_failed(h, result);
    else
        return true;
    return false;
}

realm_call_result host_realm_get_tensor(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    realm_call_result state;
    if (realm_call_resumed(call)) {
        file_job *j = (file_job *)host_job_done(call, &state, result);
        if (!j) return state;
        if (j->n_read == 0 && !tensor_fits(call, args, j, result)) {
            host_job_end(h);
            return REALM_CALL_DONE;
        }
        if (j->n_read > 0) {
            void *to =
                realm_call_memory(call, args[3] + (j->at - j->n_read) * sizeof(float), j->n_read * sizeof(float));
            memcpy(to, j->values, j->n_read * sizeof(float)); /* in range: checked before, and memory does not shrink */
        }
        if (j->at < j->n_values) return host_job_again(call, result);
        *result = (int32_t)(j->n_values * sizeof(float));
        host_job_end(h);
        return REALM_CALL_DONE;
    }
    file_job *j = file_job_open(call, tensor_work, true, result);
    const char *name = NULL;
    if (!j) return REALM_CALL_DONE;
    if (!name_model(h, args[0], j))
        no_model(h, args[0], result);
    else if (j->server && !realm_run_limits(h->run)->read_weights)
        host_fail(h, result, REALM_E_DENIED, "realm_get_tensor: read_weights is not granted to this tenant");
    else if (args[2] > TENSOR_NAME_MAX)
        host_fail(h, result, REALM_E_LIMIT, "realm_get_tensor: a name has at most %u bytes", TENSOR_NAME_MAX);
    else if (host_range(call, args[3], args[4], "realm_get_tensor", result))
        name = host_range(call, args[1], args[2], "realm_get_tensor", result);
    if (!name) {
        job_release(&j->job);
        return REALM_CALL_DONE;
    }
    memcpy(j->name, name, (size_t)args[2]);
    return host_job_start(call, &j->job, result);
}
