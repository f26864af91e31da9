/* tensor/service.c - the thread that runs lists of ops, a slice at a time.
 *
 *      submit --> [lane of the budget] --+
 *                                        |      turn: slices of the first list of the first lane, TURN_NS at most
 *      lanes: A -> B -> C  (rotation) ---+--->  then the lane goes to the end; a list that is over leaves it
 *
 * A slice is a part of one op as the backend cuts it (compute.h), a few milliseconds at most, so the device is given up
 * often: an engine's step waits for one turn at most, a tenant's list for one turn of each other tenant's. What an op's
 * slices leave for each other is the list's, charged to its budget when it is submitted and there from the first slice
 * that needs it. Streamed weights are brought in for the slices that need them. Pins are the one step that runs without
 * the device.
 *
 * A list holds its tensors, and the marks that make them busy, until it is over; the marks go before on_done, so that
 * the program that it wakes finds its tensors readable.
 */
#include <assert.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "tensor/internal.h"

#define TURN_NS (2 * REALM_NS_PER_MS)
/* Of what an op's slices leave for each other: mappings of this size go from list to list, since touching fresh memory
 * costs more than a small product. Slices read nothing there that they have not written. */
#define SPARE_BYTES ((size_t)8 << 20)

struct realm_tensor_job {
    atomic_uint refs; /* the caller's, the service's */
    atomic_bool cancelled;
    realm_tensor_service *service;
    realm_tensor_budget *budget;
    realm_tensor_job *next; /* of its lane */
    uint64_t charged;

    realm_mutex mu; /* held while on_done runs */
    bool deaf;      /* mu: the caller is gone */
    realm_tensor_done on_done;
    void *user;

    size_t n, at;   /* steps; the one that is under way */
    uint64_t slice; /* of it, next */
    uint64_t kept_bytes;
    void *kept;   /* what the step's slices leave for each other: the most that a step needs, from the first on */
    int32_t *ids; /* of all GET_ROWS */
    tensor_step *steps;
};

struct realm_tensor_service {
    realm_backend *backend;
    realm_mutex mu;
    realm_cond work;
    bool stop;
    uint32_t n_jobs;
    uint64_t ops, device_ns;           /* of all budgets, also of those that are gone */
    realm_tensor_budget *first, *last; /* lanes with something to do, in rotation */
    void *spare;                       /* SPARE_BYTES; the thread's own, NULL: none, or a list has it */
    pthread_t thread;
    bool joined; /* of whoever closes it */
};

/* ---- jobs -------------------------------------------------------------------------------------------------------- */

static void job_unref(realm_tensor_job *j) {
    if (atomic_fetch_sub_explicit(&j->refs, 1, memory_order_acq_rel) != 1) return;
    realm_mutex_destroy(&j->mu);
    realm_free(j);
}

static void mark(tensor_step *s) {
    for (uint32_t i = 0; i < TENSOR_OPERANDS; i++) {
        realm_tensor *t = s->held[i];
        if (!t) continue;
        (void)realm_tensor_retain(t);
        atomic_fetch_add_explicit(i == 0 ? &t->written : &t->used, 1, memory_order_relaxed);
    }
}

static void unmark(realm_tensor_job *j) {
    for (size_t k = 0; k < j->n; k++)
        for (uint32_t i = 0; i < TENSOR_OPERANDS; i++) {
            realm_tensor *t = j->steps[k].held[i];
            /* release: who finds it readable sees what was written */
            if (t) atomic_fetch_sub_explicit(i == 0 ? &t->written : &t->used, 1, memory_order_release);
        }
}

/* Everything that the list holds but the job itself. */
static void job_let_go(realm_tensor_job *j) {
    for (size_t k = 0; k < j->n; k++) {
        for (uint32_t i = 0; i < TENSOR_OPERANDS; i++) realm_tensor_release(j->steps[k].held[i]);
        realm_free(j->steps[k].vector);
    }
    realm_free(j->steps);
    realm_free(j->ids);
    realm_tensor_budget_refund(j->budget, j->charged);
    realm_tensor_budget_close(j->budget);
}

/* Pins are the caller's to undo only once it has been told that they are there. */
static void undo_pins(realm_tensor_job *j) {
    for (size_t k = 0; k < j->at; k++)
        if (j->steps[k].pin) {
            realm_status st = realm_model_layer_unpin(j->steps[k].model, j->steps[k].layer, NULL);
            assert(st == REALM_OK);
            (void)st;
        }
}

/* The two are for the service's thread. */
static realm_status take_kept(realm_tensor_job *j, realm_error *err) {
    realm_tensor_service *s = j->service;
    if (j->kept_bytes <= SPARE_BYTES && s->spare) {
        j->kept = s->spare;
        s->spare = NULL;
        return REALM_OK;
    }
    if (j->kept_bytes <= SIZE_MAX) j->kept = realm_pages_map(REALM_MAX((size_t)j->kept_bytes, SPARE_BYTES));
    if (j->kept) return REALM_OK;
    return realm_error_set(err, REALM_E_NOMEM, "no memory for an op that needs %llu bytes beside its operands",
                           (unsigned long long)j->kept_bytes);
}

static void give_kept(realm_tensor_job *j) {
    realm_tensor_service *s = j->service;
    if (!j->kept) return;
    if (j->kept_bytes <= SPARE_BYTES && !s->spare)
        s->spare = j->kept;
    else
        realm_pages_unmap(j->kept, REALM_MAX((size_t)j->kept_bytes, SPARE_BYTES));
    j->kept = NULL;
}

static void finish(realm_tensor_job *j, realm_status status, const realm_error *err) {
    give_kept(j);
    realm_tensor_budget_refund(j->budget,
                               j->kept_bytes); /* before on_done: whoever is told may need the room at once */
    j->charged -= j->kept_bytes;
    j->kept_bytes = 0;
    unmark(j);
    realm_mutex_lock(&j->mu);
    const bool told = !j->deaf;
    if (told) j->on_done(j->user, status, err);
    realm_mutex_unlock(&j->mu);
    if (!told || status != REALM_OK) undo_pins(j);
    job_let_go(j);
    job_unref(j);
}

/* ---- slices ------------------------------------------------------------------------------------------------------ */

static realm_status run_slice(realm_tensor_job *j, realm_error *err) {
    tensor_step *s = &j->steps[j->at];
    realm_backend *b = j->service->backend;
    realm_status st = REALM_OK;
    if (s->cut.kept_bytes > 0 && !j->kept) st = take_kept(j, err);
    if (st == REALM_OK && s->model) st = realm_model_layer_need(s->model, s->layer, err);
    if (st == REALM_OK) {
        st = b->v->direct(b, &s->d, j->slice, j->kept, err);
        if (s->model) realm_model_layer_done(s->model, s->layer);
    }
    if (st != REALM_OK) {
        realm_error_prefix(err, "op %zu", j->at);
        return st;
    }
    if (++j->slice < s->cut.n_slices) return REALM_OK;
    j->slice = 0;
    j->at++;
    return REALM_OK;
}

/* Slices of a list until it is over or has had the device for long enough: *held_ns. */
static realm_status run_turn(realm_tensor_job *j, uint64_t *held_ns, realm_error *err) {
    realm_status st = REALM_OK;
    if (j->at < j->n && j->steps[j->at].pin) {
        st = realm_model_layer_pin(j->steps[j->at].model, j->steps[j->at].layer, err);
        if (st != REALM_OK) {
            realm_error_prefix(err, "op %zu", j->at);
            return st;
        }
        j->at++;
        return REALM_OK;
    }
    realm_backend *b = j->service->backend;
    realm_backend_turn_begin(b);
    const uint64_t begin = realm_clock_ns();
    uint64_t now = begin;
    /* relaxed: a flag that orders nothing */
    while (st == REALM_OK && j->at < j->n && !j->steps[j->at].pin && now - begin < TURN_NS &&
           !atomic_load_explicit(&j->cancelled, memory_order_relaxed)) {
        st = run_slice(j, err);
        now = realm_clock_ns();
    }
    realm_backend_turn_end(b);
    *held_ns = now - begin;
    return st;
}

/* ---- the thread -------------------------------------------------------------------------------------------------- */

static void append_lane(realm_tensor_service *s, realm_tensor_budget *lane) {
    lane->next_lane = NULL;
    if (s->last)
        s->last->next_lane = lane;
    else
        s->first = lane;
    s->last = lane;
}

/* The first list of the next lane; NULL when there is none and none will come. Locked. */
static realm_tensor_job *next_job(realm_tensor_service *s) {
    while (!s->first && !s->stop) realm_cond_wait(&s->work, &s->mu);
    return s->first ? s->first->first : NULL;
}

/* relaxed: written under the service's lock, read without it by whoever can do with numbers of several moments */
static void charge(realm_tensor_service *s, realm_tensor_budget *b, uint64_t ops, uint64_t held_ns) {
    s->ops += ops;
    s->device_ns += held_ns;
    atomic_fetch_add_explicit(&b->ops, ops, memory_order_relaxed);
    atomic_fetch_add_explicit(&b->device_ns, held_ns, memory_order_relaxed);
}

/* The lane has had its turn. Locked. */
static void rotate(realm_tensor_service *s, bool over) {
    realm_tensor_budget *lane = s->first;
    s->first = lane->next_lane;
    if (!s->first) s->last = NULL;
    if (over) {
        lane->first = lane->first->next;
        if (!lane->first) lane->last = NULL;
        s->n_jobs--;
        atomic_fetch_sub_explicit(&lane->lists, 1, memory_order_relaxed);
    }
    if (lane->first) append_lane(s, lane);
}

static void *service_main(void *arg) {
    realm_tensor_service *s = arg;
    realm_mutex_lock(&s->mu);
    for (realm_tensor_job *j; (j = next_job(s)) != NULL;) {
        bool stop = s->stop;
        realm_mutex_unlock(&s->mu);
        realm_error err = {0};
        realm_status st = REALM_OK;
        uint64_t held_ns = 0;
        const size_t at = j->at;
        if (!stop && !atomic_load_explicit(&j->cancelled, memory_order_relaxed)) st = run_turn(j, &held_ns, &err);
        bool over = st != REALM_OK || j->at == j->n;
        if (!over && (stop || atomic_load_explicit(&j->cancelled, memory_order_relaxed))) {
            st = realm_error_set(&err, REALM_E_CANCELLED, "cancelled before op %zu of %zu was over", j->at, j->n);
            over = true;
        }
        /* Out of its lane first: what a list's end lets go may be the budget that is the lane. */
        realm_mutex_lock(&s->mu);
        charge(s, j->budget, j->at - at, held_ns); /* before whoever waits for the list hears of it */
        rotate(s, over);
        realm_mutex_unlock(&s->mu);
        if (over) finish(j, st, &err);
        realm_mutex_lock(&s->mu);
    }
    realm_mutex_unlock(&s->mu);
    return NULL;
}

realm_status realm_tensor_service_open(realm_backend *b, realm_tensor_service **out, realm_error *err) {
    *out = NULL;
    realm_tensor_service *s = realm_calloc(1, sizeof *s);
    if (!s) return realm_error_set(err, REALM_E_NOMEM, "no memory for a tensor service");
    s->backend = b;
    realm_mutex_init(&s->mu, REALM_RANK_QUEUE);
    realm_cond_init(&s->work);
    realm_status st = realm_thread_start(&s->thread, "realm-tensor", service_main, s, err);
    if (st != REALM_OK) {
        realm_cond_destroy(&s->work);
        realm_mutex_destroy(&s->mu);
        realm_free(s);
        return st;
    }
    *out = s;
    return REALM_OK;
}

void realm_tensor_service_stop(realm_tensor_service *s) {
    if (s->joined) return;
    realm_mutex_lock(&s->mu);
    s->stop = true;
    realm_cond_signal(&s->work);
    realm_mutex_unlock(&s->mu);
    pthread_join(s->thread, NULL);
    s->joined = true;
}

void realm_tensor_service_close(realm_tensor_service *s) {
    if (!s) return;
    realm_tensor_service_stop(s);
    if (s->spare) realm_pages_unmap(s->spare, SPARE_BYTES);
    realm_cond_destroy(&s->work);
    realm_mutex_destroy(&s->mu);
    realm_free(s);
}

void realm_tensor_service_usage(realm_tensor_service *s, realm_tensor_usage *total, realm_tensor_budget *const *budgets,
                                size_t n, realm_tensor_usage *each) {
    realm_mutex_lock(&s->mu);
    *total = (realm_tensor_usage){.ops = s->ops, .device_ns = s->device_ns, .lists = s->n_jobs};
    for (size_t i = 0; i < n; i++) realm_tensor_budget_usage(budgets[i], &each[i]);
    realm_mutex_unlock(&s->mu);
}

/* ---- submitting -------------------------------------------------------------------------------------------------- */

/* The steps, and the ids as a copy. On failure nothing is left. */
static realm_status make_steps(realm_tensor_job *j, const realm_tensor_op *ops, size_t n, realm_error *err) {
    size_t n_ids = 0, at = 0;
    j->steps = realm_calloc(n, sizeof *j->steps);
    if (!j->steps) return realm_error_set(err, REALM_E_NOMEM, "no memory for a list of %zu ops", n);
    realm_status st = REALM_OK;
    for (; j->n < n; j->n++) {
        tensor_step *step = &j->steps[j->n];
        st = tensor_check(&ops[j->n], j->n, step, err);
        if (st != REALM_OK) break;
        realm_backend *b = j->service->backend;
        if (!step->pin) st = b->v->direct_cut(b, &step->d, &step->cut, err);
        if (st != REALM_OK) {
            realm_free(step->vector);
            realm_error_prefix(err, "op %zu", j->n);
            break;
        }
        j->kept_bytes = REALM_MAX(j->kept_bytes, step->cut.kept_bytes);
        if (ops[j->n].kind == REALM_TENSOR_GET_ROWS) n_ids += ops[j->n].u.get_rows.n;
    }
    j->charged = sizeof *j + n * sizeof *j->steps + n_ids * sizeof *j->ids + j->kept_bytes;
    if (st == REALM_OK && n_ids > 0 && !(j->ids = realm_calloc(n_ids, sizeof *j->ids)))
        st = realm_error_set(err, REALM_E_NOMEM, "no memory for %zu ids", n_ids);
    if (st == REALM_OK) st = realm_tensor_budget_charge(j->budget, j->charged, "a list of ops", err);
    if (st != REALM_OK) {
        for (size_t i = 0; i < j->n; i++) realm_free(j->steps[i].vector);
        realm_free(j->ids);
        realm_free(j->steps);
        return st;
    }
    for (size_t i = 0; i < n; i++) {
        mark(&j->steps[i]);
        if (ops[i].kind != REALM_TENSOR_GET_ROWS) continue;
        memcpy(j->ids + at, ops[i].u.get_rows.ids, ops[i].u.get_rows.n * sizeof *j->ids);
        j->steps[i].d.u.rows.ids = j->ids + at;
        at += ops[i].u.get_rows.n;
    }
    return REALM_OK;
}

static realm_status queue(realm_tensor_service *s, realm_tensor_job *j, realm_error *err) {
    realm_tensor_budget *lane = j->budget;
    realm_status st = REALM_OK;
    realm_mutex_lock(&s->mu);
    if (s->stop) {
        st = realm_error_set(err, REALM_E_CLOSED, "the tensor service is closing");
    } else if (lane->service && lane->service != s) {
        st = realm_error_set(err, REALM_E_INVALID, "this budget is used with another service");
    } else if (s->n_jobs == REALM_TENSOR_MAX_JOBS) {
        st = realm_error_set(err, REALM_E_BUSY, "%u lists of ops are pending already", REALM_TENSOR_MAX_JOBS);
    } else {
        lane->service = s;
        s->n_jobs++;
        atomic_fetch_add_explicit(&lane->lists, 1, memory_order_relaxed);
        if (lane->last) {
            lane->last->next = j;
        } else {
            lane->first = j;
            append_lane(s, lane);
        }
        lane->last = j;
        realm_cond_signal(&s->work);
    }
    realm_mutex_unlock(&s->mu);
    return st;
}

realm_status realm_tensor_submit(realm_tensor_service *s, realm_tensor_budget *budget, const realm_tensor_op *ops,
                                 size_t n, realm_tensor_done on_done, void *user, realm_tensor_job **out,
                                 realm_error *err) {
    *out = NULL;
    if (n == 0) return realm_error_set(err, REALM_E_INVALID, "a list of no ops");
    if (n > REALM_TENSOR_MAX_OPS)
        return realm_error_set(err, REALM_E_LIMIT, "%zu ops in a list: at most %u", n, REALM_TENSOR_MAX_OPS);
    realm_tensor_job *j = realm_calloc(1, sizeof *j);
    if (!j) return realm_error_set(err, REALM_E_NOMEM, "no memory for a list of %zu ops", n);
    j->service = s;
    j->budget = budget;
    j->on_done = on_done;
    j->user = user;
    realm_status st = make_steps(j, ops, n, err);
    if (st != REALM_OK) {
        realm_free(j);
        return st;
    }
    atomic_init(&j->refs, 2);
    realm_mutex_init(&j->mu, REALM_RANK_NOTIFY);
    tensor_budget_retain(budget);
    *out = j; /* before it may be over */
    st = queue(s, j, err);
    if (st != REALM_OK) {
        *out = NULL;
        unmark(j);
        job_let_go(j);
        job_unref(j);
        job_unref(j);
    }
    return st;
}

void realm_tensor_job_cancel(realm_tensor_job *j) { atomic_store_explicit(&j->cancelled, true, memory_order_relaxed); }

void realm_tensor_job_release(realm_tensor_job *j) {
    if (!j) return;
    realm_tensor_job_cancel(j);
    realm_mutex_lock(&j->mu); /* waits for an on_done that is running */
    j->deaf = true;
    realm_mutex_unlock(&j->mu);
    job_unref(j);
}
