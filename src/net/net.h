/* net/net.h - sockets to exchanges: an event loop per I/O thread and strict HTTP/1.1.
 *
 *      listener (one per thread and address, SO_REUSEPORT)
 *        -> connection: bytes in -> http1 -> head --on_head--> body --on_request--> answer -> bytes out
 *                         any thread --realm_exchange_wake--> on_wake on the connection's thread
 *
 * A connection lives on the I/O thread that accepted it, and so do its exchanges: one at a time, in the order of the
 * requests (pipelined ones wait in the socket). Every callback runs on that thread and must not block; every function
 * that takes an exchange belongs there too, except realm_exchange_wake. The folder knows nothing of what is served: it
 * hands whole requests to a handler, and asks the same handler to word the errors that it finds by itself.
 *
 * An exchange from head to end:
 *
 *      HEAD --on_head--> BODY --on_request--> ANSWER --respond | start, write.., finish--> ENDED --on_close-->
 *        |                 |                     |
 *        +----on_error-----+                     +-- peer gone, reader stalled, server closing --on_close-->
 *
 * Bounded in everything: head, fields, target, body, chunk lines, connections, buffered bodies, time
 * (realm_http_limits). What is bounded for all together is shared between parties, which are the handler's to know (a
 * tenant's exchanges are one): nobody may have more of it than would then be free.
 *
 *      connections    who has joined a party keeps its place until its exchange ends; all others, idle, lingering or
 *                     still sending a head, give theirs to newcomers when all are taken, who has waited longest first
 *      bodies         those of up to REALM_BODY_SMALL are always read
 */
#ifndef REALM_NET_NET_H
#define REALM_NET_NET_H

#include "base/base.h"
#include "base/buf.h"

#include <stdatomic.h>

#define REALM_HTTP_FIELDS_MAX 128u
#define REALM_LISTENERS_MAX 8u
#define REALM_IO_THREADS_MAX 64u
#define REALM_ADDRESS_TEXT_MAX 80u

typedef struct realm_server realm_server;
typedef struct realm_exchange realm_exchange;

typedef struct realm_http_str {
    const char *data;
    size_t len;
} realm_http_str;

typedef struct realm_http_field {
    realm_http_str name; /* in lower case */
    realm_http_str value;
} realm_http_field;

/* A request's head, checked. Lives as long as the exchange. */
typedef struct realm_http_head {
    realm_http_str method;
    realm_http_str path;  /* as sent, from the first '/', without the query; "*" for OPTIONS * */
    realm_http_str query; /* after '?', empty without */
    realm_http_str host;  /* without the port; from the target where that is absolute */
    const realm_http_field *fields;
    size_t n_fields;
    unsigned minor; /* HTTP/1.minor: 0 or 1 */
    bool has_length, chunked;
    uint64_t content_length;
    bool keep_alive, expect_continue;
} realm_http_head;

/* The value of a field that occurs once; false when it is absent or repeated (`count` says how often, may be NULL). */
bool realm_http_find(const realm_http_head *h, const char *lower_name, realm_http_str *value, size_t *count);
bool realm_http_str_is(realm_http_str s, const char *text);
/* Without regard to the case of ASCII letters. */
bool realm_http_str_is_nocase(realm_http_str s, const char *text);

/* A body of at most so many bytes is read whatever others there are, so that who uploads much, and slowly, is in the
 * way of nobody's ordinary requests; `connections` bounds how many there are. */
#define REALM_BODY_SMALL ((size_t)64 << 10)

/* Every field 0 means its default. */
typedef struct realm_http_limits {
    uint32_t head_bytes;       /* 32 KiB; past it 431 */
    uint32_t fields;           /* 128, at most REALM_HTTP_FIELDS_MAX; past it 431 */
    uint32_t target_bytes;     /* 8 KiB; past it 414 */
    uint64_t body_bytes;       /* 32 MiB; past it 413 */
    uint32_t chunk_line_bytes; /* 64 */
    uint32_t head_ms;          /* 10 s from its first byte to finish a head; past it 408 */
    uint32_t body_ms;          /* 30 s without progress in a body; past it 408 */
    uint32_t idle_ms;          /* 75 s between requests, and before the first one */
    uint32_t write_ms;         /* 60 s in which a client takes nothing of what is waiting for it */
    uint32_t connections;      /* 10,240 of each listener; past it 503, where none can be closed for it */
    uint64_t bodies_bytes;     /* 1 GiB buffered of all bodies together; past it 503 for those that are not small; 429
                                * for those of a party that would have more than were left */
    uint32_t out_bytes;        /* 64 KiB: what realm_exchange_room starts from */
} realm_http_limits;
void realm_http_limits_init(realm_http_limits *l); /* the defaults */

/* Exchanges that belong together, and what they hold. The handler's, zeroed at first; outlives its exchanges. */
typedef struct realm_http_party {
    _Atomic uint32_t exchanges;
    _Atomic uint64_t bodies_bytes;
} realm_http_party;

/* Whether a party that holds `own` may have `more` of what there is `most` of and all together hold `all` of. */
static inline bool realm_http_fair(uint64_t own, uint64_t all, uint64_t more, uint64_t most) {
    return all <= most && more <= most - all && own + more <= most - all;
}

typedef struct realm_http_handler {
    void *user;
    /* The head is there and the body is not. May answer at once (the body is then not read), set user data, lower the
     * body limit and join a party. */
    void (*on_head)(void *user, realm_exchange *x);
    /* The whole body is there; not called when on_head answered. Answer now or after wake-ups. */
    void (*on_request)(void *user, realm_exchange *x);
    /* realm_exchange_wake was called since the last time, or there is room again after there was none. */
    void (*on_wake)(void *user, realm_exchange *x);
    /* Exactly once for every exchange that reached on_head, on_error or both: drop what hangs on it. `complete` when
     * the whole answer was handed to the kernel. Nothing may be called on `x` after. */
    void (*on_close)(void *user, realm_exchange *x, bool complete);
    /* The request is refused by this folder with `status`: answer with realm_exchange_respond, wording `why` (a static
     * text). The connection closes afterwards. May come instead of on_head, or between on_head and on_request. */
    void (*on_error)(void *user, realm_exchange *x, unsigned status, const char *why);
} realm_http_handler;

typedef struct realm_listen {
    const char *address; /* "127.0.0.1:8080", "[::1]:0", "localhost:8080"; port 0: any free one */
    int tag;             /* told by realm_exchange_tag */
} realm_listen;

typedef struct realm_server_config {
    const realm_listen *listen; /* at most REALM_LISTENERS_MAX */
    size_t n_listen;
    unsigned n_threads; /* 0: half the cores, from 1 to 4 */
    realm_http_limits limits;
    /* Host names besides `localhost` and addresses that requests to listeners on loopback may carry (against DNS
     * rebinding). Copied. */
    const char *const *names;
    size_t n_names;
    realm_http_handler handler;
} realm_server_config;

/* Whether a text has the form of realm_listen.address. */
bool realm_server_is_address(const char *text);
/* Binds every address on every thread and starts serving. REALM_E_INVALID: an address that cannot be parsed;
 * REALM_E_EXISTS: in use; REALM_E_DENIED, REALM_E_IO. */
REALM_WARN_UNUSED realm_status realm_server_open(realm_server **out, const realm_server_config *config,
                                                 realm_error *err);
/* The address that a listener is bound to, with its real port. Any thread. */
const char *realm_server_address(const realm_server *s, size_t listener);
/* Closes idle connections and lets exchanges end; true once none is left, false at the deadline (monotonic). Who
 * connects from then on is late (realm_exchange_is_late): its exchanges are the handler's to refuse, and nobody waits
 * for them to end. Listeners are closed by realm_server_stop. Any thread that is not one of the server's. */
bool realm_server_drain(realm_server *s, uint64_t deadline_ns);
/* Ends every exchange (on_close, not complete) and the threads: the handler is not called any more, and nothing is left
 * of the server but its numbers. Twice is once; NULL-safe. */
void realm_server_stop(realm_server *s);
/* Stops it. Nobody may look at its numbers any more. NULL-safe. */
void realm_server_close(realm_server *s);

typedef struct realm_server_stats {
    uint64_t accepted, refused; /* connections since start; refused: past the limit or out of descriptors */
    uint64_t displaced;         /* closed for newcomers */
    uint64_t requests;          /* heads that were read, good or bad */
    uint64_t bytes_in, bytes_out;
    uint64_t answers[6]; /* by first digit of the status; [0]: ended without */
    uint64_t timeouts;   /* heads, bodies, readers; not idle connections */
    uint32_t connections, exchanges;
    uint64_t bodies_bytes;
} realm_server_stats;
/* Any thread. */
void realm_server_get_stats(const realm_server *s, realm_server_stats *out);

/* ---- exchanges --------------------------------------------------------------------------------------------------- */

/* NULL in on_error when the head was bad. */
const realm_http_head *realm_exchange_head(const realm_exchange *x);
/* Moves the whole body out, in on_request or after; NUL-terminated, freed by the caller with realm_free, on any thread.
 * Not counted in bodies_bytes any more. NULL when memory is out. */
char *realm_exchange_take_body(realm_exchange *x, size_t *len);
void realm_exchange_limit_body(realm_exchange *x, uint64_t max_bytes);
/* In on_head, once. False: the party has as many exchanges on this listener's connections as would be left. */
REALM_WARN_UNUSED bool realm_exchange_join(realm_exchange *x, realm_http_party *p);
int realm_exchange_tag(const realm_exchange *x);
/* It came on a connection that was not there, or had asked nothing yet, when draining began. */
bool realm_exchange_is_late(const realm_exchange *x);
void realm_exchange_set_user(realm_exchange *x, void *user);
void *realm_exchange_get_user(const realm_exchange *x);
/* Any thread, from a handler's data that keeps `x` from being closed meanwhile: on_wake will run on the exchange's
 * thread. Several before it runs are one. Never blocks, never fails. */
void realm_exchange_wake(realm_exchange *x);

/* Adds a field to the answer that has not started yet. Names and values with control characters are dropped (no
 * response splitting). */
void realm_exchange_field(realm_exchange *x, const char *name, const char *value);
/* The whole answer. Content-Length, Date and Connection are added here; for HEAD the body is left out. */
void realm_exchange_respond(realm_exchange *x, unsigned status, const char *content_type, const void *body, size_t len);
/* An answer in pieces: start, write any number of times, finish. Chunked in HTTP/1.1, ended by closing in 1.0. */
void realm_exchange_start(realm_exchange *x, unsigned status, const char *content_type);
void realm_exchange_write(realm_exchange *x, const void *data, size_t len);
void realm_exchange_finish(realm_exchange *x);
/* Gives up: the connection is cut, so that the client sees an answer that is not complete. */
void realm_exchange_abort(realm_exchange *x);
/* Bytes that fit before the client is called slow. Stop producing where it is short: on_wake follows once half of
 * out_bytes is free again, provided that more than half waited. Writing more is no error, but past 16 MiB over it the
 * connection is cut. */
size_t realm_exchange_room(const realm_exchange *x);

#endif
