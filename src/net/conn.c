/* One connection: its states, what is read and when, what is written.
 *
 *                 +--------------------------- next request ---------------------------+
 *                 v                                                                    |
 *   conn_open -> [no exchange] --bytes--> X_HEAD --head--> X_BODY --body--> X_ANSWER --sent--+
 *                 |  idle 75 s            | 10 s            | 30 s           |               | last one
 *                 v                       v 408, 4xx        v 408, 4xx       v cut           v
 *               closed               answered, last     answered, last    conn_kill     CONN_LINGER -> closed
 *
 * Nothing is read while an exchange is being answered: pipelined requests wait in the kernel, which is the backpressure
 * towards the client. An exchange ends when the kernel has taken its last byte.
 *
 * Has the client gone? A FIN alone does not say: a client may close its sending side and wait for the answer (that is
 * allowed), or it may have gone (then the work should stop). The two differ in what happens to a byte that we send: a
 * closed socket answers with RST. A connection that sent FIN is therefore probed with bytes that are right for the
 * client that waits, and flush out the one that left, one at a time: before the answer has begun those that every
 * answer starts with, "HTTP/1.1 ", and between two pieces of a chunked one leading zeros of the next piece's size.
 *
 * Lingering close: closing a socket with unread input makes the kernel send RST, which may destroy the answer before
 * the client has read it. So after the last answer the sending side is closed and input is thrown away for a moment.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/alloc.h"
#include "net/internal.h"

#define REFILLS_MAX 8u          /* times that a handler is asked for more in a row */
#define DISPLACE_LOOKS_MAX 256u /* at connections that wait for the same, for one that is nobody's */

/* Zeros in front of a chunk's size: with the size's own digits no more than what parsers that count digits take (16).
 */
#define CHUNK_PROBES_MAX 8u

static const char probe_text[] = "HTTP/1.1 ";

void conn_out(conn *c, const void *data, size_t len) {
    if (len && realm_buf_append(&c->out, data, len) != REALM_OK) c->doomed = true;
}

/* ---- life ---- */

static void set_events(conn *c, uint32_t events) {
    if (c->events == events) return;
    struct epoll_event e = {.events = events, .data.ptr = c};
    if (epoll_ctl(c->t->epoll_fd, EPOLL_CTL_MOD, c->fd, &e) == 0)
        c->events = events;
    else
        c->doomed = true;
}

static void drop_exchange(conn *c, bool complete) {
    realm_exchange *x = c->x;
    if (!x) return;
    exchange_leave(x);
    if (x->announced) {
        count(&c->t->n.answers[complete && x->status / 100 < 6 ? x->status / 100 : 0], 1);
        c->t->s->handler.on_close(c->t->s->handler.user, x, complete);
    }
    c->x = NULL;
    exchange_release(x);
    atomic_fetch_sub_explicit(&c->t->n.exchanges, 1, memory_order_relaxed);
}

void conn_kill(conn *c) {
    if (c->state == CONN_DEAD) return;
    c->state = CONN_DEAD;
    io_timer_set(c, TIMER_NONE);
    drop_exchange(c, false);
    close(c->fd); /* leaves epoll by itself: the descriptor was never duplicated */
    realm_buf_release(&c->in);
    realm_buf_release(&c->out);
    atomic_fetch_sub_explicit(&c->t->s->connections, 1, memory_order_relaxed);
    if (!c->late) atomic_fetch_sub_explicit(&c->t->s->owed, 1, memory_order_relaxed);
    atomic_fetch_sub_explicit(&c->t->s->listen[c->listener].connections, 1, memory_order_relaxed);
    /* events of this round may still point here: freed after it (io_loop) */
    if (c->prev)
        c->prev->next = c->next;
    else
        c->t->conns = c->next;
    if (c->next) c->next->prev = c->prev;
    c->prev = NULL;
    c->next = c->t->dead;
    c->t->dead = c;
}

static bool new_exchange(conn *c) {
    realm_exchange *x = realm_calloc(1, sizeof *x);
    if (!x) return false;
    const realm_http_limits *l = &c->t->s->limits;
    x->c = c;
    x->body_max = l->body_bytes;
    realm_http1_head_init(&x->parser, l);
    realm_buf_init(&x->body, (size_t)REALM_MIN(l->body_bytes, SIZE_MAX / 2));
    realm_buf_init(&x->extra, 16u << 10);
    c->x = x;
    atomic_fetch_add_explicit(&c->t->n.exchanges, 1, memory_order_relaxed);
    return true;
}

/* Has the handler word an error; the connection ends with it. */
static void refuse(conn *c, unsigned status, const char *why) {
    realm_exchange *x = c->x;
    if (x->started) { /* too late to say anything */
        c->doomed = true;
        return;
    }
    c->close_after = true;
    x->state = X_ANSWER;
    x->announced = true;
    const realm_http_handler *h = &c->t->s->handler;
    h->on_error(h->user, x, status, why);
    if (!x->finished) realm_exchange_respond(x, status, "text/plain; charset=utf-8", why, strlen(why));
}

/* ---- bytes out ---- */

/* False when the peer is gone. */
static bool flush(conn *c) {
    while (conn_pending(c) > 0) {
        ssize_t n = send(c->fd, c->out.data + c->out_at, conn_pending(c), MSG_NOSIGNAL);
        if (n < 0) {
            if (errno == EINTR) continue;
            return errno == EAGAIN || errno == EWOULDBLOCK;
        }
        c->out_at += (size_t)n;
        count(&c->t->n.bytes_out, (uint64_t)n);
        if (c->timer == TIMER_WRITE) io_timer_set(c, TIMER_WRITE); /* progress */
    }
    if (c->out.cap > (64u << 10))
        realm_buf_release(&c->out);
    else
        realm_buf_reset(&c->out);
    c->out_at = 0;
    return true;
}

static bool can_probe(const conn *c) {
    const realm_exchange *x = c->x;
    if (!x || conn_pending(c) > 0 || x->finished) return false;
    if (!x->started) return c->probed < sizeof probe_text - 1;
    return x->chunked && !x->head_only && c->probed < CHUNK_PROBES_MAX;
}

static void probe(conn *c) {
    if (!can_probe(c)) return;
    ssize_t n = send(c->fd, c->x->started ? "0" : probe_text + c->probed, 1, MSG_NOSIGNAL);
    if (n == 1)
        c->probed++;
    else if (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)
        c->doomed = true;
}

/* ---- bytes in ---- */

/* Reads some of what is there. False when the peer is gone. */
static bool fill(conn *c) {
    const size_t most = c->x && c->x->state == X_BODY ? READ_BYTES : READ_HEAD_BYTES;
    for (;;) {
        ssize_t n = recv(c->fd, c->t->input, most, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return errno == EAGAIN || errno == EWOULDBLOCK;
        if (n == 0) c->hup = c->eof = true;
        count(&c->t->n.bytes_in, (uint64_t)n);
        /* kept in a buffer of its size: thousands of heads of a few bytes cost no more than that */
        return realm_buf_append(&c->in, c->t->input, (size_t)n) == REALM_OK;
    }
}

static void linger(conn *c) {
    c->state = CONN_LINGER;
    realm_buf_release(&c->in);
    if (c->eof || shutdown(c->fd, SHUT_WR) != 0) {
        c->doomed = true;
        return;
    }
    io_timer_set(c, TIMER_LINGER);
}

static void linger_read(conn *c) {
    char waste[16384];
    for (int i = 0; i < 16; i++) {
        ssize_t n = recv(c->fd, waste, sizeof waste, 0);
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return;
        c->lingered += n > 0 ? (size_t)n : 0;
        if (n <= 0 || c->lingered > c->t->s->limits.body_bytes) {
            c->doomed = true;
            return;
        }
    }
}

/* ---- the request ---- */

/* The parser's offsets become the handler's strings, in memory of the exchange's own; names in lower case. */
static bool keep_head(conn *c) {
    realm_exchange *x = c->x;
    const realm_http1_head *p = &x->parser;
    x->head_bytes = realm_strndup(c->in.data, p->size);
    x->fields = realm_calloc(p->n_fields, sizeof *x->fields);
    if (!x->head_bytes || !x->fields) return false;
    char *b = x->head_bytes;
    for (uint32_t i = 0; i < p->n_fields; i++) {
        for (uint32_t k = 0; k < p->names[i].len; k++) {
            char *ch = &b[p->names[i].at + k];
            if (*ch >= 'A' && *ch <= 'Z') *ch = (char)(*ch | 0x20);
        }
        x->fields[i] =
            (realm_http_field){{b + p->names[i].at, p->names[i].len}, {b + p->values[i].at, p->values[i].len}};
    }
    /* an absolute target without a path means "/" (RFC 9110, 4.2.3) */
    realm_http_str path = p->path.len ? (realm_http_str){b + p->path.at, p->path.len} : (realm_http_str){"/", 1};
    x->head = (realm_http_head){.method = {b + p->method.at, p->method.len},
                                .path = path,
                                .query = {b + p->query.at, p->query.len},
                                .host = {b + p->host.at, p->host.len},
                                .fields = x->fields,
                                .n_fields = p->n_fields,
                                .minor = p->minor,
                                .has_length = p->has_length,
                                .chunked = p->chunked,
                                .content_length = p->content_length,
                                .keep_alive = p->keep_alive,
                                .expect_continue = p->expect_continue};
    x->has_head = true;
    x->head_only = realm_http_str_is(x->head.method, "HEAD");
    realm_buf_consume(&c->in, p->size);
    return true;
}

/* On loopback a name that is not ours means that a web page has pointed its own name at this machine (DNS rebinding).
 */
static bool host_allowed(const conn *c, realm_http_str host) {
    const realm_server *s = c->t->s;
    if (!s->listen[c->listener].loopback || realm_http1_host_is_local(host)) return true;
    for (size_t i = 0; i < s->n_names; i++)
        if (realm_http_str_is_nocase(host, s->names[i])) return true;
    return false;
}

static void begin(conn *c) {
    realm_exchange *x = c->x;
    realm_server *s = c->t->s;
    count(&c->t->n.requests, 1);
    if (!keep_head(c)) {
        refuse(c, 503, "out of memory");
        return;
    }
    const realm_http_head *h = &x->head;
    if (!host_allowed(c, h->host) && !(h->minor == 0 && h->host.len == 0)) {
        refuse(c, 403, "this server does not serve that host name");
        return;
    }
    if (h->has_length && h->content_length > x->body_max) {
        refuse(c, 413, "the body is too large");
        return;
    }
    bool has_body = h->chunked || h->content_length > 0;
    x->announced = true;
    s->handler.on_head(s->handler.user, x);
    if (c->doomed) return;
    if (x->started) { /* answered without the body */
        x->state = X_ANSWER;
        if (has_body && !c->close_after) c->discard = h->content_length;
        return;
    }
    if (h->has_length && h->content_length > x->body_max) {
        refuse(c, 413, "the body is too large");
        return;
    }
    if (has_body && h->expect_continue && c->in.len == 0) conn_out(c, "HTTP/1.1 100 Continue\r\n\r\n", 25);
    x->state = X_BODY;
    x->body_left = h->content_length;
    if (h->has_length) x->body.max = (size_t)h->content_length; /* what is counted is what is held, not its growth */
    if (h->chunked) realm_http1_chunks_init(&x->chunks, &s->limits, x->body_max);
    io_timer_set(c, TIMER_BODY);
}

static bool keep_body(conn *c, const char *data, size_t len) {
    realm_exchange *x = c->x;
    const uint64_t most = c->t->s->limits.bodies_bytes;
    const size_t room = realm_buf_room(&x->body, len), held = x->body.cap; /* which is counted already */
    if (room > held && x->body.len + len > REALM_BODY_SMALL) {
        const uint64_t more = room - held;
        uint64_t all = atomic_load_explicit(&c->t->s->bodies_bytes, memory_order_relaxed);
        uint64_t own = x->party ? atomic_load_explicit(&x->party->bodies_bytes, memory_order_relaxed) : 0;
        if (!realm_http_fair(0, all, more, most)) {
            refuse(c, 503, "too many request bodies are being read; try again");
            return false;
        }
        if (!realm_http_fair(own, all, more, most)) {
            refuse(c, 429, "too many bodies of your requests are being read; try again when some have ended");
            return false;
        }
    }
    if (realm_buf_append(&x->body, data, len) != REALM_OK) {
        refuse(c, 503, "out of memory");
        return false;
    }
    exchange_count_body(x);
    return true;
}

/* True when the body is whole. */
static bool read_body(conn *c) {
    realm_exchange *x = c->x;
    if (!x->head.chunked) {
        size_t take = (size_t)REALM_MIN((uint64_t)c->in.len, x->body_left);
        if (take) {
            if (!keep_body(c, c->in.data, take)) return false;
            realm_buf_consume(&c->in, take);
            x->body_left -= take;
            io_timer_set(c, TIMER_BODY);
        }
        return x->body_left == 0;
    }
    size_t at = 0;
    realm_http1_result r = REALM_HTTP1_MORE;
    bool ok = true, progress = false;
    while (ok && r == REALM_HTTP1_MORE && at < c->in.len) {
        size_t used = 0, piece, n;
        r = realm_http1_chunks_feed(&x->chunks, c->in.data + at, c->in.len - at, &used, &piece, &n);
        if (n) ok = keep_body(c, c->in.data + at + piece, n);
        progress |= n > 0;
        at += used;
    }
    if (!ok) return false;
    realm_buf_consume(&c->in, at);
    if (progress) io_timer_set(c, TIMER_BODY); /* empty framing is no progress */
    if (r == REALM_HTTP1_BAD) refuse(c, x->chunks.status, x->chunks.why);
    return r == REALM_HTTP1_DONE;
}

/* One step of the drawing above; false when bytes or a wake-up are needed first. */
static bool advance(conn *c) {
    realm_server *s = c->t->s;
    realm_exchange *x = c->x;
    if (!x) {
        if (c->discard) {
            size_t n = (size_t)REALM_MIN((uint64_t)c->in.len, c->discard);
            realm_buf_consume(&c->in, n);
            c->discard -= n;
            if (c->timer != TIMER_HEAD) io_timer_set(c, TIMER_HEAD); /* all of it in the time that a head has */
        }
        if (c->in.len == 0) {
            if (c->eof || (c->t->draining && !c->late && !c->discard)) {
                c->doomed = true;
                return false;
            }
            if (!c->discard && c->timer != TIMER_IDLE) {
                realm_buf_release(&c->in); /* an idle connection costs no buffer */
                io_timer_set(c, TIMER_IDLE);
            }
            return false;
        }
        if (!new_exchange(c)) {
            c->doomed = true;
            return false;
        }
        c->used = true;
        io_timer_set(c, TIMER_HEAD);
        return true;
    }
    switch (x->state) {
    case X_HEAD: {
        realm_http1_result r = realm_http1_head_parse(&x->parser, c->in.data, c->in.len);
        if (r == REALM_HTTP1_MORE) {
            if (!c->eof) return false;
            if (c->in.len <= 2) { /* nothing but the empty line that is ignored */
                c->doomed = true;
                return false;
            }
            refuse(c, 400, "the connection ended inside the head");
        } else if (r == REALM_HTTP1_BAD) {
            count(&c->t->n.requests, 1);
            refuse(c, x->parser.status, x->parser.why);
        } else {
            begin(c);
        }
        return true;
    }
    case X_BODY:
        if (read_body(c)) {
            x->state = X_ANSWER;
            io_timer_set(c, TIMER_NONE);
            s->handler.on_request(s->handler.user, x);
            return true;
        }
        if (x->state == X_ANSWER) return true; /* refused */
        if (c->eof) {
            refuse(c, 400, "the connection ended inside the body");
            return true;
        }
        return false;
    case X_ANSWER:
        if (!x->finished || conn_pending(c) > 0) return false;
        drop_exchange(c, true);
        if (c->close_after)
            linger(c);
        else
            io_timer_set(c, TIMER_NONE);
        return true;
    }
    return false;
}

/* The timer that the present state needs; those of reading are set where they start. */
static void set_timer(conn *c) {
    realm_exchange *x = c->x;
    if (!x || x->state != X_ANSWER) return;
    timer_kind want = conn_pending(c) > 0                     ? TIMER_WRITE
                      : c->hup && (!x->started || x->chunked) ? TIMER_PROBE
                                                              : TIMER_NONE;
    if (c->timer == want) return;
    io_timer_set(c, want);
    if (want == TIMER_PROBE) probe(c);
}

/* Does everything that can be done now. Called after anything happened to the connection. */
static void settle(conn *c) {
    const realm_http_handler *h = &c->t->s->handler;
    size_t half = c->t->s->limits.out_bytes / 2;
    unsigned refills = 0;
    while (!c->doomed && c->state == CONN_OPEN) {
        if (c->x && conn_pending(c) > half) c->x->was_full = true;
        if (!flush(c)) {
            c->doomed = true;
            break;
        }
        realm_exchange *x = c->x;
        if (x && x->was_full && x->started && !x->finished && conn_pending(c) <= half) {
            /* a reader as fast as the handler does not keep the thread for itself: the rest comes with EPOLLOUT */
            if (refills++ == REFILLS_MAX) break;
            x->was_full = false;
            h->on_wake(h->user, x);
            continue;
        }
        if (!advance(c)) break;
    }
    if (c->doomed) {
        conn_kill(c);
        return;
    }
    bool reading = c->state == CONN_LINGER || !c->x || c->x->state != X_ANSWER;
    set_events(c, (reading && !c->eof ? (uint32_t)EPOLLIN : 0u) | (c->hup ? 0u : (uint32_t)EPOLLRDHUP) |
                      (conn_pending(c) > 0 || refills > REFILLS_MAX ? (uint32_t)EPOLLOUT : 0u));
    set_timer(c);
    if (c->doomed) conn_kill(c);
}

/* ---- what happens to a connection ---- */

void conn_open(io_thread *t, int fd, size_t listener_index, bool refused) {
    conn *c = realm_calloc(1, sizeof *c);
    if (!c) {
        close(fd);
        return;
    }
    c->kind = SOURCE_CONN;
    c->fd = fd;
    c->t = t;
    c->listener = listener_index;
    c->timer = TIMER_NONE;
    realm_buf_init(&c->in, t->s->limits.head_bytes + 2 * READ_BYTES);
    realm_buf_init(&c->out, OUT_BYTES_MAX);
    c->next = t->conns;
    if (c->next) c->next->prev = c;
    t->conns = c;
    c->late = t->draining;
    atomic_fetch_add_explicit(&t->s->connections, 1, memory_order_relaxed);
    if (!c->late) atomic_fetch_add_explicit(&t->s->owed, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&t->s->listen[listener_index].connections, 1, memory_order_relaxed);
    c->events = EPOLLIN | EPOLLRDHUP;
    struct epoll_event e = {.events = c->events, .data.ptr = c};
    if (epoll_ctl(t->epoll_fd, EPOLL_CTL_ADD, fd, &e) != 0) {
        conn_kill(c);
        return;
    }
    if (refused) {
        if (new_exchange(c))
            refuse(c, 503, "too many connections");
        else
            c->doomed = true;
    }
    settle(c);
}

void conn_event(conn *c, uint32_t events) {
    if (c->state == CONN_DEAD) return;
    /* HUP without ERR while lingering: the peer has closed too, what it sent before is still to be thrown away */
    if (events & EPOLLERR || (events & EPOLLHUP && c->state != CONN_LINGER)) {
        conn_kill(c);
        return;
    }
    if (c->state == CONN_LINGER) {
        linger_read(c);
    } else {
        bool reading = !c->x || c->x->state != X_ANSWER;
        if ((events & (EPOLLIN | EPOLLRDHUP)) && reading && !c->eof && !fill(c)) c->doomed = true;
        if (events & EPOLLRDHUP) c->hup = true;
    }
    settle(c);
}

void conn_wake(conn *c) {
    if (c->state != CONN_OPEN || !c->x || c->x->state != X_ANSWER || c->x->finished) return;
    c->t->s->handler.on_wake(c->t->s->handler.user, c->x);
    settle(c);
}

void conn_timeout(conn *c) {
    switch (c->timer) {
    case TIMER_HEAD:
    case TIMER_BODY:
        count(&c->t->n.timeouts, 1);
        if (!c->x) { /* an unwanted body that does not come */
            c->doomed = true;
            break;
        }
        io_timer_set(c, TIMER_NONE);
        refuse(c, 408, c->x->state == X_HEAD ? "the head did not arrive in time" : "the body did not arrive in time");
        break;
    case TIMER_PROBE:
        probe(c);
        io_timer_set(c, TIMER_PROBE);
        break;
    case TIMER_WRITE: count(&c->t->n.timeouts, 1); /* fallthrough */
    default: c->doomed = true; break;
    }
    settle(c);
}

bool conn_displace(io_thread *t, size_t listener_index) {
    static const timer_kind order[] = {TIMER_IDLE,  TIMER_LINGER, TIMER_HEAD, TIMER_BODY,
                                       TIMER_WRITE, TIMER_PROBE,  TIMER_IDLE};
    char byte;
    for (size_t k = 0; k < REALM_ARRAY_LEN(order); k++) {
        conn *c = t->timers[order[k]].first, *next;
        for (unsigned looks = 0; c && looks < DISPLACE_LOOKS_MAX; c = next, looks++) {
            next = c->timer_next;
            if (c->listener != listener_index || (c->x && c->x->party)) continue;
            /* not at first one to which a request has come that was not read yet */
            if (k == 0 && recv(c->fd, &byte, 1, MSG_PEEK) > 0) continue;
            count(&t->n.displaced, 1);
            conn_kill(c);
            return true;
        }
    }
    return false;
}

void conn_drain(conn *c) {
    if (c->state != CONN_OPEN || c->x) return;
    if (!c->eof && !fill(c)) c->doomed = true; /* a request may stand in the socket: it is still served */
    if (!c->used && !c->eof && c->in.len == 0) {
        c->late = true;
        atomic_fetch_sub_explicit(&c->t->s->owed, 1, memory_order_relaxed);
    }
    settle(c);
}
