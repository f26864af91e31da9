/* net/internal.h - an I/O thread, its connections, their exchanges: what the files of this folder share.
 *
 *   server.c    listeners, threads, the loop, timers, wake-ups from other threads
 *   conn.c      one connection: bytes in, states, bytes out
 *   exchange.c  what handlers call
 *   http1.c     the parser
 *
 * Everything of a connection belongs to its thread. Shared are: the wake list (one short lock), the counters and the
 * command word (atomics).
 */
#ifndef REALM_NET_INTERNAL_H
#define REALM_NET_INTERNAL_H

#include <stdatomic.h>

#include "base/buf.h"
#include "base/thread.h"
#include "net/http1.h"
#include "net/net.h"

#define OUT_BYTES_MAX ((size_t)256 << 20)       /* an answer in one piece */
#define OUT_OVER_MAX ((size_t)16 << 20)         /* what a handler may write past out_bytes */
#define DISCARD_BYTES_MAX ((uint64_t)256 << 10) /* of an unwanted body, to keep its connection */
#define READ_BYTES ((size_t)64 << 10)           /* taken from a socket at a time, of a body */
#define READ_HEAD_BYTES ((size_t)16 << 10)      /* and before there is one: whose bytes they are is not known yet */
#define LINGER_MS 2000u
#define PROBE_MS 2000u

typedef struct io_thread io_thread;
typedef struct conn conn;

/* What epoll's data points to starts with one of these. */
typedef enum source_kind { SOURCE_LISTENER, SOURCE_WAKE, SOURCE_CONN } source_kind;

typedef struct listener {
    source_kind kind;
    int fd; /* -1: not open */
    size_t index;
} listener;

/* Every list has one timeout, so its connections stand in order of their deadline and arming costs O(1). */
typedef enum timer_kind {
    TIMER_IDLE,
    TIMER_HEAD,
    TIMER_BODY,
    TIMER_WRITE,
    TIMER_LINGER,
    TIMER_PROBE,
    N_TIMERS
} timer_kind;
#define TIMER_NONE N_TIMERS

typedef struct timer_list {
    conn *first, *last;
    uint64_t ns;
} timer_list;

typedef enum exchange_state { X_HEAD, X_BODY, X_ANSWER } exchange_state;

struct realm_exchange {
    conn *c;
    exchange_state state;
    bool announced; /* on_close is owed */
    bool started, finished, chunked, head_only;
    bool was_full; /* more than half of out_bytes waited: on_wake is owed once it is less */
    unsigned status;
    void *user;
    realm_http1_head parser;
    realm_http1_chunks chunks;
    bool has_head;
    realm_http_head head;
    char *head_bytes; /* what head's strings point into */
    realm_http_field *fields;
    realm_buf body;
    size_t body_counted; /* in the server's and the party's bodies_bytes */
    realm_http_party *party;
    uint64_t body_max, body_left;
    realm_buf extra; /* fields of the answer */
    /* wake list, under the thread's wake_mu */
    bool queued;
    realm_exchange *wake_prev, *wake_next;
};

typedef enum conn_state { CONN_OPEN, CONN_LINGER, CONN_DEAD } conn_state;

struct conn {
    source_kind kind;
    int fd;
    io_thread *t;
    size_t listener;
    conn_state state;
    bool close_after; /* the current exchange is the last */
    bool hup;         /* the peer has sent FIN; bytes before it may still be unread */
    bool eof;         /* and they have been read */
    bool doomed;      /* cut at the next safe point */
    bool late;        /* draining does not wait for it */
    bool used;        /* a request has come */
    unsigned probed;  /* bytes of what comes next that were sent ahead (see probe in conn.c) */
    uint32_t events;  /* epoll's mask */
    uint64_t discard; /* bytes of an unwanted body still to come */
    size_t lingered;
    realm_buf in, out;
    size_t out_at;     /* of out, already sent */
    realm_exchange *x; /* NULL between requests */
    timer_kind timer;
    uint64_t deadline_ns;
    conn *timer_prev, *timer_next;
    conn *prev, *next; /* all of the thread, or its dead ones */
};

typedef struct io_counters {
    _Atomic uint64_t accepted, refused, displaced, requests, bytes_in, bytes_out, timeouts, answers[6];
    _Atomic uint32_t exchanges;
} io_counters;

typedef enum io_command { IO_RUN, IO_DRAIN, IO_STOP } io_command;

struct io_thread {
    realm_server *s;
    pthread_t thread;
    bool running; /* to be joined */
    int epoll_fd, wake_fd, spare_fd;
    source_kind wake_source;
    listener listeners[REALM_LISTENERS_MAX];
    bool draining;
    uint64_t accept_again_ns; /* accepting is paused until then; 0: it is not */
    uint64_t now_ns;
    timer_list timers[N_TIMERS];
    conn *conns, *dead;
    realm_mutex wake_mu;
    realm_exchange *wake_first, *wake_last;
    int64_t date_s;
    char date[40];
    char input[READ_BYTES]; /* of the connection that is read from, until it is looked at */
    io_counters n;
};

struct realm_server {
    realm_http_limits limits;
    realm_http_handler handler;
    size_t n_listen;
    struct {
        char address[REALM_ADDRESS_TEXT_MAX];
        int tag;
        bool loopback;
        _Atomic uint32_t connections, joined; /* joined: of those, with an exchange of a party */
    } listen[REALM_LISTENERS_MAX];
    char **names;
    size_t n_names;
    _Atomic int command;
    _Atomic uint32_t connections;
    _Atomic uint32_t owed;     /* of those, that are not late */
    _Atomic uint32_t draining; /* threads that know of it */
    _Atomic uint64_t bodies_bytes;
    unsigned n_threads;
    io_thread *threads;
};

static inline void count(_Atomic uint64_t *n, uint64_t by) {
    atomic_fetch_add_explicit(n, by, memory_order_relaxed); /* statistics order nothing */
}
static inline size_t conn_pending(const conn *c) { return c->out.len - c->out_at; }

/* server.c */
void io_timer_set(conn *c, timer_kind kind); /* TIMER_NONE: off */
void io_wake_forget(realm_exchange *x);
const char *io_date(io_thread *t);

/* conn.c */
/* Takes the descriptor; closes it when there is no memory. `refuse`: answer 503 and close. */
void conn_open(io_thread *t, int fd, size_t listener_index, bool refuse);
void conn_event(conn *c, uint32_t events);
void conn_wake(conn *c);
void conn_timeout(conn *c);
/* Takes what has come. What is idle then is closed, or late if nothing has been asked on it yet. */
void conn_drain(conn *c);
/* Closes a connection of the listener that is nobody's: idle, lingering, reading a head or giving an answer to who has
 * joined no party. False when there is none on this thread. */
bool conn_displace(io_thread *t, size_t listener_index);
void conn_kill(conn *c);
/* Appends to what waits for the peer; dooms the connection when memory is out. */
void conn_out(conn *c, const void *data, size_t len);

/* exchange.c */
void exchange_release(realm_exchange *x); /* frees; the connection's x is the caller's to clear */
void exchange_count_body(realm_exchange *x);
void exchange_leave(realm_exchange *x);

#endif
