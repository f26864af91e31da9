/* engine/logits.c - rows of logits that belong to a program: kept from a forward pass, or its own.
 *
 * A lockstep program has a row of the whole vocabulary made for every token, so the last few buffers that were given
 * back are kept for the next forward pass instead of being mapped and cleared by the kernel each time. And where the
 * program will run on the engine's thread before the next step, it is lent the plan's own row: mostly it has drawn its
 * token and closed the pass by then, and nothing was copied. Whoever else looks at such a row makes its copy first.
 * Draws need a sampler's workspace; a few of those are kept too, one is used by one draw at a time.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "engine/internal.h"

#define SPARE_LOGITS 16u /* of one row each */

realm_logits *realm_logits_new(realm_engine *e, uint32_t n_rows, bool hidden) {
    const size_t d = realm_model_hparams(e->model)->d_model;
    realm_logits *l = NULL;
    if (n_rows == 1) {
        realm_mutex_lock(&e->spare_mu);
        if ((l = e->spare_logits)) {
            e->spare_logits = l->next;
            e->n_spare_logits--;
        }
        realm_mutex_unlock(&e->spare_mu);
    }
    if (!l) {
        l = realm_calloc(1, sizeof *l);
        if (!l) return NULL;
        l->e = e;
        l->cap_rows = n_rows;
        l->rows = realm_malloc((size_t)n_rows * e->n_vocab * sizeof *l->rows); /* at most 64 of 2^24 */
    }
    l->next = NULL;
    atomic_init(&l->lent, NULL);
    l->best = -1;
    l->n_rows = n_rows;
    l->n_hidden = hidden ? n_rows : 0;
    if (hidden) l->hidden = realm_malloc(n_rows * d * sizeof *l->hidden);
    if (!l->rows || (hidden && !l->hidden)) {
        l->cap_rows = 0;
        realm_logits_release(l);
        return NULL;
    }
    return l;
}

/* ---- lent rows --------------------------------------------------------------------------------------------------- */

void realm_logits_lend(realm_logits *l, float *row) {
    realm_engine *e = l->e;
    realm_mutex_lock(&e->spare_mu);
    atomic_store_explicit(&l->lent, row, memory_order_release);
    l->lent_run = e->n_runs;
    l->next = e->lent_logits;
    e->lent_logits = l;
    realm_mutex_unlock(&e->spare_mu);
}

/* Under spare_mu. */
static void unlend(realm_logits *l) {
    realm_logits **link = &l->e->lent_logits;
    while (*link != l) link = &(*link)->next;
    *link = l->next;
    l->next = NULL;
    atomic_store_explicit(&l->lent, NULL, memory_order_release);
}

static void keep(realm_logits *l) {
    memcpy(l->rows, atomic_load_explicit(&l->lent, memory_order_relaxed), l->e->n_vocab * sizeof *l->rows);
    unlend(l);
}

void realm_logits_keep(realm_engine *e, uint64_t until) {
    realm_mutex_lock(&e->spare_mu);
    for (realm_logits *l = e->lent_logits, *next; l; l = next) {
        next = l->next;
        if (l->lent_run <= until) keep(l);
    }
    realm_mutex_unlock(&e->spare_mu);
}

static void forget_lent(realm_logits *l) {
    realm_mutex_lock(&l->e->spare_mu);
    if (atomic_load_explicit(&l->lent, memory_order_relaxed)) unlend(l);
    realm_mutex_unlock(&l->e->spare_mu);
}

/* The plan's row for the engine's thread, which does not overwrite it meanwhile; a copy for any other. */
static float *lent_row(realm_logits *l, float *lent) {
    if (pthread_equal(pthread_self(), l->e->thread)) return lent;
    realm_mutex_lock(&l->e->spare_mu);
    if (atomic_load_explicit(&l->lent, memory_order_relaxed)) keep(l);
    realm_mutex_unlock(&l->e->spare_mu);
    return l->rows;
}

void realm_logits_release(realm_logits *l) {
    if (!l) return;
    if (atomic_load_explicit(&l->lent, memory_order_acquire)) forget_lent(l);
    realm_free(l->hidden);
    l->hidden = NULL;
    if (l->cap_rows == 1) {
        realm_engine *e = l->e;
        realm_mutex_lock(&e->spare_mu);
        bool keep = e->n_spare_logits < SPARE_LOGITS;
        if (keep) {
            l->next = e->spare_logits;
            e->spare_logits = l;
            e->n_spare_logits++;
        }
        realm_mutex_unlock(&e->spare_mu);
        if (keep) return;
    }
    realm_free(l->rows);
    realm_free(l);
}

void realm_logits_free_spare(realm_engine *e) {
    for (realm_logits *l = e->spare_logits, *next; l; l = next) {
        next = l->next;
        realm_free(l->rows);
        realm_free(l);
    }
    e->spare_logits = NULL;
    for (realm_spare_sampler *w = e->spare_samplers, *next; w; w = next) {
        next = w->next;
        realm_sampler_release(&w->sampler);
        realm_free(w);
    }
    e->spare_samplers = NULL;
}

realm_status realm_logits_open(realm_engine *e, const float *rows, size_t n_rows, realm_logits **out,
                               realm_error *err) {
    *out = NULL;
    if (n_rows == 0 || n_rows > REALM_FORWARD_ROWS)
        return realm_error_set(err, REALM_E_RANGE, "%zu rows of logits, they must be 1 to %u", n_rows,
                               REALM_FORWARD_ROWS);
    realm_logits *l = realm_logits_new(e, (uint32_t)n_rows, false);
    if (!l) return realm_error_set(err, REALM_E_NOMEM, "no memory for %zu rows of logits", n_rows);
    memcpy(l->rows, rows, n_rows * e->n_vocab * sizeof *rows);
    *out = l;
    return REALM_OK;
}

size_t realm_logits_rows(const realm_logits *l) { return l->n_rows; }

static float *row_of(realm_logits *l, size_t row) {
    if (row >= l->n_rows) return NULL;
    float *lent = atomic_load_explicit(&l->lent, memory_order_acquire);
    return lent ? lent_row(l, lent) : l->rows + row * l->e->n_vocab;
}

const float *realm_logits_look(realm_logits *l, size_t row) { return row_of(l, row); }

float *realm_logits_row(realm_logits *l, size_t row) {
    if (row == 0) l->best = -1;
    return row_of(l, row);
}

const float *realm_logits_hidden(const realm_logits *l, size_t row, size_t *d_model) {
    const size_t d = realm_model_hparams(l->e->model)->d_model;
    if (d_model) *d_model = d;
    return row < l->n_hidden ? l->hidden + row * d : NULL;
}

/* ---- reading a row ----------------------------------------------------------------------------------------------- */

static realm_spare_sampler *borrow(realm_engine *e) {
    realm_mutex_lock(&e->spare_mu);
    realm_spare_sampler *w = e->spare_samplers;
    if (w) e->spare_samplers = w->next;
    realm_mutex_unlock(&e->spare_mu);
    if (w) return w;
    w = realm_calloc(1, sizeof *w);
    if (w && realm_sampler_init(&w->sampler, e->n_vocab, NULL) != REALM_OK) {
        realm_sampler_release(&w->sampler);
        realm_free(w);
        w = NULL;
    }
    return w;
}

static void give_back(realm_engine *e, realm_spare_sampler *w) {
    realm_mutex_lock(&e->spare_mu);
    w->next = e->spare_samplers;
    e->spare_samplers = w;
    realm_mutex_unlock(&e->spare_mu);
}

realm_status realm_logits_sample(realm_logits *l, size_t row, realm_chain *chain, realm_token *id, float *logprob,
                                 realm_error *err) {
    if (row == 0 && !chain && !logprob && l->best >= 0) {
        *id = l->best;
        return REALM_OK;
    }
    const float *x = row_of(l, row);
    if (!x) return realm_error_set(err, REALM_E_RANGE, "row %zu of %u", row, l->n_rows);
    realm_spare_sampler *w = borrow(l->e);
    if (!w) return realm_error_set(err, REALM_E_NOMEM, "no memory to draw from %u logits", l->e->n_vocab);
    realm_sample_job job = {.logits = x, .chain = chain, .target = -1, .logprob = logprob != NULL};
    realm_sampler_run(&w->sampler, &job);
    give_back(l->e, w);
    if (job.status != REALM_OK) return realm_error_set(err, job.status, "%s", job.error.text);
    *id = job.id;
    if (logprob) *logprob = job.id_logprob;
    return REALM_OK;
}

static float log_sum_exp(const float *x, size_t n) {
    const float max = realm_row_max(x, n, NULL);
    return isfinite(max) ? max + (float)log(realm_row_exp(x, n, max, 1.0f, NULL)) : NAN;
}

float realm_logits_log_sum_exp(realm_logits *l, size_t row) {
    const float *x = row_of(l, row);
    return x ? log_sum_exp(x, l->e->n_vocab) : NAN;
}

/* H = log Z - sum p x, with p = exp(x) / Z. */
float realm_logits_entropy(realm_logits *l, size_t row) {
    const float *x = row_of(l, row);
    const float lse = x ? log_sum_exp(x, l->e->n_vocab) : NAN;
    if (isnan(lse)) return NAN;
    double sum = 0;
    for (size_t i = 0; i < l->e->n_vocab; i++)
        if (x[i] > lse - 87.0f) sum += exp((double)(x[i] - lse)) * (double)(lse - x[i]);
    return (float)sum;
}

static int compare(const void *a, const void *b) {
    const realm_candidate *x = a, *y = b;
    return realm_candidate_before(*x, *y) ? -1 : realm_candidate_before(*y, *x);
}

size_t realm_logits_top(realm_logits *l, size_t row, size_t k, realm_top_logprob *out) {
    const size_t n = l->e->n_vocab;
    const float *x = row_of(l, row);
    const float lse = x ? log_sum_exp(x, n) : NAN;
    if (isnan(lse) || k == 0) return 0;
    if (k > n) k = n;
    realm_candidate *c = realm_calloc(REALM_MAX(2 * k, k + REALM_SELECT_LANES), sizeof *c);
    if (!c) return 0;
    size_t len = realm_gather_best(x, n, k, c);
    qsort(c, len, sizeof *c, compare);
    for (size_t i = 0; i < len; i++) out[i] = (realm_top_logprob){c[i].id, c[i].x - lse};
    realm_free(c);
    return len;
}
