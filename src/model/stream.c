/* model/stream.c - the layers of a model that is larger than its budget come and go.
 *
 *                 need: miss            loaded                      another layer needs the slot
 *      ABSENT ----------------> LOADING -------> READY ------------------------------------------> ABSENT
 *             prefetch: helper                     |  ^ need (hit), pin: used and pinned layers stay
 *             pin                                  +--+
 *
 * A layer's packed weights lie in a slot; all slots have the size of the largest layer, so that any layer fits where
 * another was, and memory is neither mapped nor given back while a model runs: a slot's first use maps it. Who asks for
 * a layer takes the slot under the lock, so the helper thread has nothing to allocate and cannot fail. A layer is
 * loaded tensor by tensor, by whoever takes the next one on: the helper beside the step that is running and, once the
 * step has come there, the whole team for what is left.
 *
 * Which layer gives way: the one with the least stamp. A use by name stamps upwards from the middle (least recently
 * used goes first), a plan's walk downwards: it needs the layers 0, 1, ... n - 1, 0, ..., so of those resident the one
 * walked last is needed last, and giving up that one is what an oracle would do (Belady, "A study of replacement
 * algorithms", 1966). With strict LRU a walk over n layers in n - 1 slots would hit nothing.
 *
 * The mapping's pages of a layer are given back once it is packed, so what a model takes is its budget; whether they
 * are read again from disk or from the page cache is the kernel's decision.
 */
#include <assert.h>
#include <string.h>

#include "base/alloc.h"
#include "base/thread.h"
#include "model/internal.h"

#define STAMP_MIDDLE (UINT64_C(1) << 63)

typedef enum layer_state { ABSENT, LOADING, READY } layer_state;

typedef struct stream_layer {
    const realm_model_tensor *const *tensors;
    size_t n_tensors;
    uint64_t packed_bytes, file_bytes; /* of the weights that stream */
    layer_state state;
    uint32_t users, pins;
    uint64_t stamp;
    realm_slot *slot; /* not ABSENT */
    size_t next;      /* LOADING: the first tensor that nobody has taken on */
    uint32_t loaders; /* who are at one */
} stream_layer;

struct realm_stream {
    realm_backend *backend;
    const realm_gguf *g;
    uint32_t n_layers, n_slots, n_mapped, n_pinned;
    uint64_t slot_bytes;
    realm_residency residency; /* for plans; user is this */

    realm_mutex mu; /* all below, and of the layers what changes */
    realm_cond changed;
    realm_slot **mapped; /* (n_slots), of which n_mapped are there */
    realm_slot **free;   /* (n_slots) */
    uint32_t n_free;
    uint64_t warm, cold; /* next stamps */
    realm_model_stream_stats stats;

    pthread_t helper;
    bool helper_started, stop;
    stream_layer *wanted; /* the helper is to load it; NULL once it is READY */
    realm_cond work;
    stream_layer layers[];
};

/* ---- loading ----------------------------------------------------------------------------------------------------- */

static bool streams(const realm_model_tensor *t) { return (t->use & REALM_WEIGHT_STREAMED) != 0; }

static uint64_t slot_align(uint64_t bytes) {
    return (bytes + REALM_SLOT_ALIGN - 1) / REALM_SLOT_ALIGN * REALM_SLOT_ALIGN;
}

/* The weights are the model's own; tensors show them as read-only. */
static realm_weight *weight_of(const realm_model_tensor *t) { return (realm_weight *)(uintptr_t)t->weight; }

static void load_tensor(const realm_stream *s, const stream_layer *l, size_t index, bool turn) {
    const realm_model_tensor *t = l->tensors[index];
    if (!streams(t)) return;
    uint64_t at = 0;
    for (size_t i = 0; i < index; i++)
        if (streams(l->tensors[i])) at += slot_align(s->backend->v->weight_bytes(l->tensors[i]->weight));
    realm_status st = s->backend->v->weight_load(s->backend, weight_of(t), l->slot, at, turn, NULL);
    assert(st == REALM_OK); /* the slot is large enough by construction */
    (void)st;
    realm_gguf_drop_pages(s->g, t->file);
}

/* From here on locked. Loads what nobody else has taken on; the layer is READY when the last one is done. */
static void load(realm_stream *s, stream_layer *l, bool turn) {
    while (l->state == LOADING && l->next < l->n_tensors) {
        const size_t index = l->next++;
        l->loaders++;
        realm_mutex_unlock(&s->mu);
        load_tensor(s, l, index, turn);
        realm_mutex_lock(&s->mu);
        l->loaders--;
    }
    if (l->state != LOADING || l->loaders > 0) return;
    l->state = READY;
    if (s->wanted == l) s->wanted = NULL;
    s->stats.bytes_read += l->file_bytes;
    s->stats.bytes_resident += l->packed_bytes;
    s->stats.layers_resident++;
    realm_cond_broadcast(&s->changed);
}

static void give_up(realm_stream *s, stream_layer *l) {
    for (size_t i = 0; i < l->n_tensors; i++)
        if (streams(l->tensors[i]))
            (void)s->backend->v->weight_load(s->backend, weight_of(l->tensors[i]), NULL, 0, false, NULL);
    s->free[s->n_free++] = l->slot;
    l->slot = NULL;
    l->state = ABSENT;
    s->stats.evictions++;
    s->stats.layers_resident--;
    s->stats.bytes_resident -= l->packed_bytes;
}

static stream_layer *victim(realm_stream *s) {
    stream_layer *best = NULL;
    for (uint32_t i = 0; i < s->n_layers; i++) {
        stream_layer *l = &s->layers[i];
        if (l->state == READY && l->users == 0 && l->pins == 0 && (!best || l->stamp < best->stamp)) best = l;
    }
    return best;
}

/* A slot for `l`, which becomes LOADING. REALM_E_AGAIN: none now, but one when something that is under way is over. */
static realm_status take_slot(realm_stream *s, stream_layer *l, realm_error *err) {
    realm_status st = REALM_E_AGAIN;
    if (s->n_free == 0 && s->n_mapped < s->n_slots) {
        st = s->backend->v->slot_open(s->backend, s->slot_bytes, &s->mapped[s->n_mapped], err);
        if (st == REALM_OK) s->free[s->n_free++] = s->mapped[s->n_mapped++];
    }
    if (s->n_free == 0) {
        stream_layer *old = victim(s);
        if (old) give_up(s, old);
    }
    if (s->n_free == 0) return st;
    realm_error_clear(err);
    l->slot = s->free[--s->n_free];
    l->state = LOADING;
    l->next = 0;
    l->stamp = s->warm++; /* what was brought in and not used yet is not the first to go */
    return REALM_OK;
}

static bool under_way(const realm_stream *s) {
    for (uint32_t i = 0; i < s->n_layers; i++)
        if (s->layers[i].state == LOADING || s->layers[i].users > 0) return true;
    return false;
}

/* Makes the layer READY with one user more. */
static realm_status bring(realm_stream *s, stream_layer *l, bool turn, realm_error *err) {
    bool counted = false;
    while (l->state == ABSENT) {
        realm_status st = take_slot(s, l, err);
        if (st == REALM_E_AGAIN || (st == REALM_E_NOMEM && under_way(s))) {
            realm_cond_wait(&s->changed, &s->mu);
            continue;
        }
        if (st != REALM_OK) return st;
        s->stats.misses++;
        counted = true;
    }
    l->users++;
    if (!counted) s->stats.hits++;
    load(s, l, turn);
    while (l->state == LOADING) realm_cond_wait(&s->changed, &s->mu);
    realm_error_clear(err);
    return REALM_OK;
}

/* The layer behind this one, unless the helper is busy or there is no slot to be had. */
static void prefetch(realm_stream *s, uint32_t layer) {
    stream_layer *next = &s->layers[layer + 1 < s->n_layers ? layer + 1 : 0];
    if (!s->helper_started || s->wanted || next->state != ABSENT) return;
    realm_error ignored = {0};
    if (take_slot(s, next, &ignored) != REALM_OK) return;
    s->stats.prefetched++;
    s->wanted = next;
    realm_cond_signal(&s->work);
}

static void *helper_main(void *arg) {
    realm_stream *s = arg;
    realm_mutex_lock(&s->mu);
    while (!s->stop) {
        stream_layer *l = s->wanted;
        if (l && l->next < l->n_tensors)
            load(s, l, false);
        else
            realm_cond_wait(&s->work, &s->mu);
    }
    realm_mutex_unlock(&s->mu);
    return NULL;
}

/* ---- use --------------------------------------------------------------------------------------------------------- */

static realm_status need(realm_stream *s, uint32_t layer, realm_error *err) {
    realm_mutex_lock(&s->mu);
    realm_status st = bring(s, &s->layers[layer], true, err);
    if (st == REALM_OK) prefetch(s, layer);
    realm_mutex_unlock(&s->mu);
    if (st != REALM_OK) realm_error_prefix(err, "layer %u", layer);
    return st;
}

static void done(realm_stream *s, uint32_t layer, bool walked) {
    realm_mutex_lock(&s->mu);
    stream_layer *l = &s->layers[layer];
    assert(l->users > 0);
    l->stamp = walked ? s->cold-- : s->warm++;
    l->users--;
    realm_cond_broadcast(&s->changed);
    realm_mutex_unlock(&s->mu);
}

static realm_status walk_need(void *user, uint32_t layer, realm_error *err) { return need(user, layer, err); }
static void walk_done(void *user, uint32_t layer) { done(user, layer, true); }

const realm_residency *realm_stream_residency(const realm_stream *s) { return s->n_slots > 0 ? &s->residency : NULL; }

static realm_status check_layer(const realm_model *m, uint32_t layer, realm_error *err) {
    if (layer < m->hp.n_layers) return REALM_OK;
    return realm_error_set(err, REALM_E_RANGE, "layer %u of %u", layer, m->hp.n_layers);
}

realm_status realm_model_layer_need(realm_model *m, uint32_t layer, realm_error *err) {
    realm_status st = check_layer(m, layer, err);
    return st == REALM_OK && m->stream->n_slots > 0 ? need(m->stream, layer, err) : st;
}

void realm_model_layer_done(realm_model *m, uint32_t layer) {
    if (m->stream->n_slots > 0) done(m->stream, layer, false);
}

realm_status realm_model_layer_pin(realm_model *m, uint32_t layer, realm_error *err) {
    realm_stream *s = m->stream;
    realm_status st = check_layer(m, layer, err);
    if (st != REALM_OK) return st;
    realm_mutex_lock(&s->mu);
    stream_layer *l = &s->layers[layer];
    if (l->pins == UINT32_MAX) {
        st = realm_error_set(err, REALM_E_LIMIT, "layer %u is pinned too often", layer);
    } else if (s->n_slots > 0 && l->pins == 0 && s->n_pinned + 1 >= s->n_slots) {
        st = realm_error_set(
            err, REALM_E_LIMIT,
            "layer %u cannot be pinned: the weight budget holds %u layers, %u are pinned, and one place "
            "must be left",
            layer, s->n_slots, s->n_pinned);
    } else {
        /* Counted first, so that pins of several threads together leave a slot. */
        if (l->pins++ == 0) s->n_pinned++;
        if (s->n_slots > 0) {
            st = bring(s, l, false, err);
            if (st == REALM_OK) {
                l->stamp = s->warm++;
                l->users--;
            } else if (--l->pins == 0) {
                s->n_pinned--;
            }
            realm_cond_broadcast(&s->changed);
        }
    }
    realm_mutex_unlock(&s->mu);
    return st;
}

realm_status realm_model_layer_unpin(realm_model *m, uint32_t layer, realm_error *err) {
    realm_stream *s = m->stream;
    realm_status st = check_layer(m, layer, err);
    if (st != REALM_OK) return st;
    realm_mutex_lock(&s->mu);
    stream_layer *l = &s->layers[layer];
    if (l->pins == 0)
        st = realm_error_set(err, REALM_E_INVALID, "layer %u is not pinned", layer);
    else if (--l->pins == 0)
        s->n_pinned--;
    realm_cond_broadcast(&s->changed);
    realm_mutex_unlock(&s->mu);
    return st;
}

void realm_model_get_stream_stats(const realm_model *m, realm_model_stream_stats *out) {
    realm_stream *s = m->stream;
    realm_mutex_lock(&s->mu);
    *out = s->stats;
    out->layers_pinned = s->n_pinned;
    realm_mutex_unlock(&s->mu);
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

uint64_t realm_stream_layer_bytes(const realm_model *m, uint32_t layer) {
    size_t n;
    uint64_t bytes = 0;
    const realm_model_tensor *const *t = realm_model_layer_tensors(m, layer, &n);
    for (size_t i = 0; i < n; i++)
        if (streams(t[i])) bytes += slot_align(m->backend->v->weight_bytes(t[i]->weight));
    return bytes;
}

realm_status realm_stream_open(realm_stream **out, const realm_model *m, uint32_t n_slots, uint64_t slot_bytes,
                               uint64_t fixed_bytes, realm_error *err) {
    const uint32_t n = m->hp.n_layers;
    realm_stream *s = realm_calloc(1, sizeof *s + n * sizeof(stream_layer));
    *out = NULL;
    if (!s) return realm_error_set(err, REALM_E_NOMEM, "no memory for %u layers", n);
    realm_mutex_init(&s->mu, REALM_RANK_LEAF);
    realm_cond_init(&s->changed);
    realm_cond_init(&s->work);
    s->backend = m->backend;
    s->g = m->g;
    s->n_layers = n;
    s->n_slots = n_slots;
    s->slot_bytes = slot_bytes;
    s->residency = (realm_residency){.need = walk_need, .done = walk_done, .user = s};
    s->warm = STAMP_MIDDLE;
    s->cold = STAMP_MIDDLE - 1;
    s->stats.bytes_resident = fixed_bytes;
    if (n_slots == 0) s->stats.layers_resident = n;
    realm_status st = REALM_OK;
    for (uint32_t i = 0; i < n; i++) {
        stream_layer *l = &s->layers[i];
        l->tensors = realm_model_layer_tensors(m, i, &l->n_tensors);
        for (size_t k = 0; k < l->n_tensors; k++) {
            if (!streams(l->tensors[k])) continue;
            l->packed_bytes += m->backend->v->weight_bytes(l->tensors[k]->weight);
            l->file_bytes += l->tensors[k]->file->n_bytes;
        }
    }
    if (n_slots > 0) {
        s->mapped = realm_calloc(n_slots, sizeof *s->mapped);
        s->free = realm_calloc(n_slots, sizeof *s->free);
        if (!s->mapped || !s->free) st = realm_error_set(err, REALM_E_NOMEM, "no memory for %u slots", n_slots);
        if (st == REALM_OK && n_slots > 1) {
            st = realm_thread_start(&s->helper, "realm-prefetch", helper_main, s, err);
            s->helper_started = st == REALM_OK;
        }
    }
    if (st != REALM_OK) {
        realm_stream_close(s);
        return st;
    }
    *out = s;
    return REALM_OK;
}

void realm_stream_close(realm_stream *s) {
    if (!s) return;
    if (s->helper_started) {
        realm_mutex_lock(&s->mu);
        s->stop = true;
        realm_cond_signal(&s->work);
        realm_mutex_unlock(&s->mu);
        pthread_join(s->helper, NULL);
    }
    for (uint32_t i = 0; i < s->n_mapped; i++) s->backend->v->slot_close(s->backend, s->mapped[i]);
    realm_free(s->mapped);
    realm_free(s->free);
    realm_cond_destroy(&s->work);
    realm_cond_destroy(&s->changed);
    realm_mutex_destroy(&s->mu);
    realm_free(s);
}
