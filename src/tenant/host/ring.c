/* tenant/host/ring.c - host calls of the event ring: events in the program's own memory, without a copy of its own.
 *
 *      header | n_slots events | text_bytes bytes          head, tail, text_head, text_tail count up and wrap at 2^32
 *
 * The host writes only inside ring_wait. Between two calls the program may have changed any of it, freed the memory or
 * put something else there, so every call reads the header anew and believes nothing: the sizes must fit the registered
 * bytes, the counts must not be further apart than the ring is large. What is written stays inside the registered range
 * whatever they say.
 */
#include <string.h>

#include "tenant/host/host.h"

typedef struct ring { /* one that was found in order */
    host_sink sink;
    realm_event_ring head; /* copy of the header, put back at the end */
    unsigned char *slots, *text;
    bool too_large; /* a text that will never fit */
} ring;

static realm_status check_header(realm_host *h, const realm_event_ring *r, uint64_t len) {
    if (!realm_is_pow2(r->n_slots) || !realm_is_pow2(r->text_bytes))
        return realm_error_set(&h->error, REALM_E_INVALID,
                               "ring: n_slots is %u and text_bytes %u, they must be powers of two", r->n_slots,
                               r->text_bytes);
    uint64_t want = sizeof *r + (uint64_t)r->n_slots * sizeof(realm_guest_event) + r->text_bytes;
    if (want > len)
        return realm_error_set(&h->error, REALM_E_RANGE,
                               "ring: %u slots and %u bytes of text take %llu bytes, not %llu", r->n_slots,
                               r->text_bytes, (unsigned long long)want, (unsigned long long)len);
    /* Distances of counts that wrap. */
    if (r->head - r->tail > r->n_slots || r->text_head - r->text_tail > r->text_bytes)
        return realm_error_set(&h->error, REALM_E_INVALID, "ring: the counts are further apart than the ring is large");
    return REALM_OK;
}

/* ring_set(ring, len) */
realm_call_result host_ring_set(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    realm_event_ring r;
    if (args[0] == 0 && args[1] == 0) {
        h->ring_at = h->ring_len = 0;
        return REALM_CALL_DONE;
    }
    const void *from = host_range(call, args[0], args[1], "ring_set", result);
    if (!from) return REALM_CALL_DONE;
    if (args[0] == 0 || args[1] < sizeof r)
        return host_fail(h, result, REALM_E_RANGE, "ring_set: a ring has at least %zu bytes, and none at 0", sizeof r);
    memcpy(&r, from, sizeof r);
    if (check_header(h, &r, args[1])) return host_failed(h, result);
    h->ring_at = args[0];
    h->ring_len = args[1];
    return REALM_CALL_DONE;
}

static bool put(host_sink *s, realm_guest_event *e, const char *text) {
    ring *r = (ring *)s;
    realm_event_ring *q = &r->head;
    uint32_t at = q->text_head, left = q->text_bytes - at % q->text_bytes;
    if (e->text_len > q->text_bytes) {
        r->too_large = true;
        return false;
    }
    if (q->head - q->tail == q->n_slots) return false;
    if (e->text_len > left) at += left; /* a text does not wrap: it begins at the start */
    if (at + e->text_len - q->text_tail > q->text_bytes) return false;
    if (e->text_len) memcpy(r->text + at % q->text_bytes, text, e->text_len);
    e->text_at = at;
    memcpy(r->slots + q->head % q->n_slots * sizeof *e, e, sizeof *e);
    q->text_head = at + e->text_len;
    q->head++;
    return true;
}

/* ring_wait(timeout_ms) */
realm_call_result host_ring_wait(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    uint64_t *deadline = realm_call_state(call);
    ring r = {.sink = {.put = put}};
    if (!h->ring_len) return host_fail(h, result, REALM_E_INVALID, "ring_wait: no ring is registered");
    unsigned char *at = host_range(call, h->ring_at, h->ring_len, "ring_wait", result);
    if (!at) return REALM_CALL_DONE;
    memcpy(&r.head, at, sizeof r.head);
    if (check_header(h, &r.head, h->ring_len)) return host_failed(h, result);
    r.slots = at + sizeof r.head;
    r.text = r.slots + (size_t)r.head.n_slots * sizeof(realm_guest_event);
    if (atomic_load_explicit(&h->cancelled, memory_order_acquire) || realm_call_cancelled(call))
        return host_fail(h, result, REALM_E_CANCELLED, "ring_wait: the request was cancelled");
    bool unread = r.head.head != r.head.tail;
    bool running = host_collect(h, NULL, &r.sink);
    memcpy(at, &r.head, sizeof r.head);
    if (r.sink.n > 0 || unread) {
        *result = (int32_t)r.sink.n;
        return REALM_CALL_DONE;
    }
    if (!running) return host_fail(h, result, REALM_E_NOT_FOUND, "ring_wait: no generation is running");
    if (r.too_large)
        return host_fail(h, result, REALM_E_RANGE, "ring_wait: the text of the next event does not fit in %u bytes",
                         r.head.text_bytes);
    if (r.sink.full) /* slots are free, so unread text is in the way that no event points at */
        return host_fail(h, result, REALM_E_INVALID, "ring: there is no unread event, but unread text");
    if (host_time_is_up(call, deadline, (int32_t)(uint32_t)args[0])) return REALM_CALL_DONE;
    return REALM_CALL_SUSPEND;
}
