/* What handlers call on an exchange: reading the request, writing the answer.
 *
 * Answers go to the connection's out buffer; it is handed to the kernel when the callback has returned, so that all
 * pieces written in one callback leave in one packet.
 */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "net/internal.h"

const realm_http_head *realm_exchange_head(const realm_exchange *x) { return x->has_head ? &x->head : NULL; }

void exchange_count_body(realm_exchange *x) {
    /* wraps around where it is less; relaxed: a budget, not a lock */
    const uint64_t more = (uint64_t)x->body.cap - x->body_counted;
    if (more == 0) return;
    atomic_fetch_add_explicit(&x->c->t->s->bodies_bytes, more, memory_order_relaxed);
    if (x->party) atomic_fetch_add_explicit(&x->party->bodies_bytes, more, memory_order_relaxed);
    x->body_counted = x->body.cap;
}

bool realm_exchange_join(realm_exchange *x, realm_http_party *p) {
    const realm_server *s = x->c->t->s;
    _Atomic uint32_t *all = &x->c->t->s->listen[x->c->listener].joined;
    /* first counted, then looked at, so that of two at the limit at most one is let in */
    const uint32_t joined = atomic_fetch_add_explicit(all, 1, memory_order_relaxed);
    const uint32_t own = atomic_fetch_add_explicit(&p->exchanges, 1, memory_order_relaxed);
    if (realm_http_fair(own, joined, 1, s->limits.connections)) {
        x->party = p;
        return true;
    }
    atomic_fetch_sub_explicit(all, 1, memory_order_relaxed);
    atomic_fetch_sub_explicit(&p->exchanges, 1, memory_order_relaxed);
    return false;
}

/* Before on_close, after which the party may be gone. */
void exchange_leave(realm_exchange *x) {
    if (!x->party) return;
    realm_buf_release(&x->body);
    exchange_count_body(x);
    atomic_fetch_sub_explicit(&x->c->t->s->listen[x->c->listener].joined, 1, memory_order_relaxed);
    atomic_fetch_sub_explicit(&x->party->exchanges, 1, memory_order_relaxed);
    x->party = NULL;
}

char *realm_exchange_take_body(realm_exchange *x, size_t *len) {
    char *p = realm_buf_take(&x->body, len);
    exchange_count_body(x);
    return p;
}

void realm_exchange_limit_body(realm_exchange *x, uint64_t max_bytes) {
    x->body_max = REALM_MIN(x->body_max, max_bytes);
}
int realm_exchange_tag(const realm_exchange *x) { return x->c->t->s->listen[x->c->listener].tag; }
bool realm_exchange_is_late(const realm_exchange *x) { return x->c->late; }
void realm_exchange_set_user(realm_exchange *x, void *user) { x->user = user; }
void *realm_exchange_get_user(const realm_exchange *x) { return x->user; }

void exchange_release(realm_exchange *x) {
    io_wake_forget(x);
    realm_buf_release(&x->body);
    exchange_count_body(x);
    realm_buf_release(&x->extra);
    realm_free(x->head_bytes);
    realm_free(x->fields);
    realm_free(x);
}

static bool printable(const char *s) {
    for (; *s; s++)
        if ((unsigned char)*s < 0x20 || *s == 0x7f) return false;
    return true;
}

void realm_exchange_field(realm_exchange *x, const char *name, const char *value) {
    if (x->started || !printable(name) || !printable(value)) return;
    realm_buf_printf(&x->extra, "%s: %s\r\n", name, value);
}

/* Standard phrase of a status. */
static const char *reason(unsigned status) {
    switch (status) {
    case 100: return "Continue";
    case 200: return "OK";
    case 201: return "Created";
    case 204: return "No Content";
    case 400: return "Bad Request";
    case 401: return "Unauthorized";
    case 403: return "Forbidden";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 408: return "Request Timeout";
    case 409: return "Conflict";
    case 411: return "Length Required";
    case 413: return "Content Too Large";
    case 414: return "URI Too Long";
    case 415: return "Unsupported Media Type";
    case 417: return "Expectation Failed";
    case 422: return "Unprocessable Content";
    case 429: return "Too Many Requests";
    case 431: return "Request Header Fields Too Large";
    case 500: return "Internal Server Error";
    case 501: return "Not Implemented";
    case 503: return "Service Unavailable";
    case 505: return "HTTP Version Not Supported";
    default: return "Status";
    }
}

/* The status line and the fields. `len` is the body's length, or -1 where it is not known. */
static void start(realm_exchange *x, unsigned status, const char *content_type, int64_t len) {
    conn *c = x->c;
    static const char version[] = "HTTP/1.1 ";
    char head[512], framing[64] = "";
    bool old = x->has_head && x->head.minor == 0;
    x->started = true;
    x->status = status;
    if (len >= 0) {
        (void)snprintf(framing, sizeof framing, "Content-Length: %lld\r\n", (long long)len);
    } else if (!x->has_head || old) {
        c->close_after = true; /* the end of the connection ends the answer */
    } else {
        x->chunked = true;
        (void)snprintf(framing, sizeof framing, "Transfer-Encoding: chunked\r\n");
    }
    if (!x->has_head || !x->head.keep_alive || c->t->draining) c->close_after = true;
    /* Answered before the body came: a short one is read and thrown away, so that the connection can be kept. */
    if (x->has_head && x->state == X_HEAD &&
        (x->head.chunked || x->head.content_length > DISCARD_BYTES_MAX ||
         (x->head.content_length > 0 && x->head.expect_continue)))
        c->close_after = true;
    int n = snprintf(head, sizeof head, "%u %s\r\nDate: %s\r\nContent-Type: %s\r\n%s%s", status, reason(status),
                     io_date(c->t), content_type, framing,
                     c->close_after ? "Connection: close\r\n"
                     : old          ? "Connection: keep-alive\r\n"
                                    : "");
    /* part of the version may have gone ahead (see probe in conn.c) */
    conn_out(c, version + c->probed, sizeof version - 1 - c->probed);
    c->probed = 0;
    conn_out(c, head, n < 0 ? 0 : REALM_MIN((size_t)n, sizeof head - 1));
    if (realm_buf_status(&x->extra) != REALM_OK) c->doomed = true; /* an answer without its fields is none */
    conn_out(c, x->extra.data, x->extra.len);
    conn_out(c, "\r\n", 2);
}

void realm_exchange_respond(realm_exchange *x, unsigned status, const char *content_type, const void *body,
                            size_t len) {
    if (x->started) return;
    start(x, status, content_type, (int64_t)len);
    if (!x->head_only) conn_out(x->c, body, len);
    x->finished = true;
}

void realm_exchange_start(realm_exchange *x, unsigned status, const char *content_type) {
    if (!x->started) start(x, status, content_type, -1);
}

void realm_exchange_write(realm_exchange *x, const void *data, size_t len) {
    conn *c = x->c;
    if (!x->started || x->finished || x->head_only || len == 0) return;
    if (conn_pending(c) > c->t->s->limits.out_bytes + OUT_OVER_MAX) {
        c->doomed = true;
        return;
    }
    if (x->chunked) {
        char size[24];
        int n = snprintf(size, sizeof size, "%zx\r\n", len);
        conn_out(c, size, (size_t)n);
        c->probed = 0;
    }
    conn_out(c, data, len);
    if (x->chunked) conn_out(c, "\r\n", 2);
}

void realm_exchange_finish(realm_exchange *x) {
    if (!x->started || x->finished) return;
    if (x->chunked && !x->head_only) conn_out(x->c, "0\r\n\r\n", 5);
    x->finished = true;
}

void realm_exchange_abort(realm_exchange *x) { x->c->doomed = true; }

size_t realm_exchange_room(const realm_exchange *x) {
    size_t cap = x->c->t->s->limits.out_bytes, used = conn_pending(x->c);
    return used < cap ? cap - used : 0;
}
