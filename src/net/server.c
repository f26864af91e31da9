/* Listeners, I/O threads and their loop.
 *
 * Every thread has an epoll, a listener of its own per address (SO_REUSEPORT: the kernel spreads new connections), an
 * eventfd for others to wake it, and six lists of timers. A round of the loop:
 *
 *      epoll_wait -> sockets -> wake-ups -> timers -> free what died -> command
 *
 * A server that is out of descriptors must not spin on a listener that stays readable: each thread holds one spare
 * descriptor; it is given up to accept and close the connection that waits, and where even that fails accepting pauses
 * for a moment.
 *
 * A server that drains goes on accepting: who comes is told so (503, and the connection's end) by the handler, which is
 * what a balancer's probe of /ready asks for, rather than finding nobody. Only what was there before is waited for.
 *
 * A crowd that holds connections takes no place from who comes with a key: what serves no party's exchange is closed
 * for a newcomer once all places are taken (conn_displace).
 *
 * SO_REUSEPORT would also let a second server of the same user bind the same port and take half of the connections. So
 * each address is first bound without it, once, to see that nobody listens there.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/log.h"
#include "net/internal.h"

#define BACKLOG 1024
#define EVENTS_MAX 256
#define ACCEPTS_MAX 64   /* of one listener in one round */
#define WAKES_MAX 4096   /* in one round */
#define REFUSED_MAX 128u /* connections past the limit that still get a 503 */
#define ACCEPT_PAUSE_MS 100u
#define NOT_SENT_BYTES (128 << 10) /* kept small so that a slow reader is noticed early */

/* ---- timers ---- */

static void timer_unlink(conn *c) {
    if (c->timer == TIMER_NONE) return;
    timer_list *l = &c->t->timers[c->timer];
    if (c->timer_prev)
        c->timer_prev->timer_next = c->timer_next;
    else
        l->first = c->timer_next;
    if (c->timer_next)
        c->timer_next->timer_prev = c->timer_prev;
    else
        l->last = c->timer_prev;
    c->timer = TIMER_NONE;
    c->timer_prev = c->timer_next = NULL;
}

void io_timer_set(conn *c, timer_kind kind) {
    timer_unlink(c);
    if (kind == TIMER_NONE) return;
    timer_list *l = &c->t->timers[kind];
    c->timer = kind;
    c->deadline_ns = c->t->now_ns + l->ns;
    c->timer_prev = l->last;
    if (l->last)
        l->last->timer_next = c;
    else
        l->first = c;
    l->last = c;
}

static int wait_ms(const io_thread *t) {
    uint64_t next = t->accept_again_ns ? t->accept_again_ns : UINT64_MAX;
    for (int k = 0; k < N_TIMERS; k++)
        if (t->timers[k].first) next = REALM_MIN(next, t->timers[k].first->deadline_ns);
    if (next == UINT64_MAX) return -1;
    if (next <= t->now_ns) return 0;
    uint64_t ms = (next - t->now_ns + REALM_NS_PER_MS - 1) / REALM_NS_PER_MS;
    return ms > 60000 ? 60000 : (int)ms;
}

static void run_timers(io_thread *t) {
    for (int k = 0; k < N_TIMERS; k++) {
        conn *c;
        while ((c = t->timers[k].first) && c->deadline_ns <= t->now_ns) {
            conn_timeout(c);
            if (t->timers[k].first == c && c->deadline_ns <= t->now_ns) timer_unlink(c); /* never twice in a round */
        }
    }
}

/* ---- wake-ups ---- */

static void ring(io_thread *t) {
    uint64_t one = 1;
    ssize_t n = write(t->wake_fd, &one, sizeof one);
    (void)n; /* full means that it is signalled already */
}

void realm_exchange_wake(realm_exchange *x) {
    io_thread *t = x->c->t;
    bool was_empty = false;
    realm_mutex_lock(&t->wake_mu);
    if (!x->queued) {
        x->queued = true;
        x->wake_prev = t->wake_last;
        x->wake_next = NULL;
        was_empty = t->wake_first == NULL;
        if (t->wake_last)
            t->wake_last->wake_next = x;
        else
            t->wake_first = x;
        t->wake_last = x;
    }
    realm_mutex_unlock(&t->wake_mu);
    if (was_empty) ring(t);
}

static void unqueue(io_thread *t, realm_exchange *x) {
    if (x->wake_prev)
        x->wake_prev->wake_next = x->wake_next;
    else
        t->wake_first = x->wake_next;
    if (x->wake_next)
        x->wake_next->wake_prev = x->wake_prev;
    else
        t->wake_last = x->wake_prev;
    x->queued = false;
    x->wake_prev = x->wake_next = NULL;
}

void io_wake_forget(realm_exchange *x) {
    io_thread *t = x->c->t;
    realm_mutex_lock(&t->wake_mu);
    if (x->queued) unqueue(t, x);
    realm_mutex_unlock(&t->wake_mu);
}

static realm_exchange *next_wake(io_thread *t) {
    realm_mutex_lock(&t->wake_mu);
    realm_exchange *x = t->wake_first;
    if (x) unqueue(t, x);
    realm_mutex_unlock(&t->wake_mu);
    return x;
}

static void run_wakes(io_thread *t) {
    for (int i = 0; i < WAKES_MAX; i++) {
        realm_exchange *x = next_wake(t);
        if (!x) return;
        conn_wake(x->c);
    }
    ring(t); /* the list may not be empty: come back after the sockets had their turn */
}

static void address_text(const struct sockaddr_storage *a, char *out, size_t cap) {
    char ip[INET6_ADDRSTRLEN] = "?";
    if (a->ss_family == AF_INET6) {
        const struct sockaddr_in6 *s = (const void *)a;
        (void)inet_ntop(AF_INET6, &s->sin6_addr, ip, sizeof ip);
        (void)snprintf(out, cap, "[%s]:%u", ip, ntohs(s->sin6_port));
    } else {
        const struct sockaddr_in *s = (const void *)a;
        (void)inet_ntop(AF_INET, &s->sin_addr, ip, sizeof ip);
        (void)snprintf(out, cap, "%s:%u", ip, ntohs(s->sin_port));
    }
}

/* ---- accepting ---- */

static void accept_all(io_thread *t, listener *l) {
    for (int i = 0; i < ACCEPTS_MAX; i++) {
        int fd = accept4(l->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EAGAIN || errno == EWOULDBLOCK) return;
            if (errno == EINTR || errno == ECONNABORTED || errno == EPROTO) continue;
            count(&t->n.refused, 1);
            if ((errno == EMFILE || errno == ENFILE) && t->spare_fd >= 0) {
                close(t->spare_fd);
                fd = accept4(l->fd, NULL, NULL, SOCK_CLOEXEC);
                if (fd >= 0) close(fd);
                t->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
                if (fd >= 0) continue;
            }
            t->accept_again_ns = t->now_ns + ACCEPT_PAUSE_MS * REALM_NS_PER_MS;
            return;
        }
        int on = 1, low = NOT_SENT_BYTES;
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &low, sizeof low);
        /* per listener: a crowd at one does not lock the operator out of the other */
        uint32_t n = atomic_load_explicit(&t->s->listen[l->index].connections, memory_order_relaxed);
        uint32_t cap = t->s->limits.connections;
        bool full = n >= cap && !conn_displace(t, l->index);
        count(&t->n.accepted, 1);
        if (full) count(&t->n.refused, 1);
        if (full && n >= cap + REFUSED_MAX)
            close(fd);
        else
            conn_open(t, fd, l->index, full);
    }
}

static void listen_events(io_thread *t, uint32_t events) {
    for (size_t i = 0; i < t->s->n_listen; i++) {
        if (t->listeners[i].fd < 0) continue;
        struct epoll_event e = {.events = events, .data.ptr = &t->listeners[i]};
        (void)epoll_ctl(t->epoll_fd, EPOLL_CTL_MOD, t->listeners[i].fd, &e);
    }
}

/* ---- the loop ---- */

const char *io_date(io_thread *t) {
    int64_t now = realm_clock_wall_s();
    if (now != t->date_s) {
        static const char days[] = "SunMonTueWedThuFriSat", months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
        time_t s = (time_t)now;
        struct tm tm = {0};
        gmtime_r(&s, &tm);
        (void)snprintf(t->date, sizeof t->date, "%.3s, %02d %.3s %04d %02d:%02d:%02d GMT", days + 3 * tm.tm_wday,
                       tm.tm_mday, months + 3 * tm.tm_mon, 1900 + tm.tm_year, tm.tm_hour, tm.tm_min, tm.tm_sec);
        t->date_s = now;
    }
    return t->date;
}

static void obey(io_thread *t) {
    /* acquire: what the commander wrote before is seen */
    int command = atomic_load_explicit(&t->s->command, memory_order_acquire);
    if (command != IO_RUN && !t->draining) {
        for (size_t i = 0; i < t->s->n_listen; i++) accept_all(t, &t->listeners[i]); /* those are not late */
        t->draining = true;
        for (conn *c = t->conns, *next; c; c = next) {
            next = c->next;
            conn_drain(c);
        }
        /* release: pairs with realm_server_drain, which then finds all connections counted */
        atomic_fetch_add_explicit(&t->s->draining, 1, memory_order_release);
    }
    if (command == IO_STOP)
        while (t->conns) conn_kill(t->conns);
}

static void free_dead(io_thread *t) {
    while (t->dead) {
        conn *c = t->dead;
        t->dead = c->next;
        realm_free(c);
    }
}

static void *io_loop(void *arg) {
    io_thread *t = arg;
    struct epoll_event events[EVENTS_MAX];
    bool paused = false;
    for (;;) {
        t->now_ns = realm_clock_ns();
        int n = epoll_wait(t->epoll_fd, events, EVENTS_MAX, wait_ms(t));
        t->now_ns = realm_clock_ns();
        for (int i = 0; i < n; i++) {
            source_kind kind = *(const source_kind *)events[i].data.ptr;
            if (kind == SOURCE_CONN) {
                conn_event(events[i].data.ptr, events[i].events);
            } else if (kind == SOURCE_LISTENER) {
                listener *l = events[i].data.ptr;
                if (l->fd >= 0 && !t->accept_again_ns) accept_all(t, l);
            } else {
                uint64_t value;
                ssize_t got = read(t->wake_fd, &value, sizeof value);
                (void)got;
            }
        }
        run_wakes(t);
        run_timers(t);
        if (t->accept_again_ns && t->now_ns >= t->accept_again_ns) t->accept_again_ns = 0;
        if (paused != (t->accept_again_ns != 0)) {
            paused = !paused;
            listen_events(t, paused ? 0 : EPOLLIN);
        }
        obey(t);
        free_dead(t);
        if (atomic_load_explicit(&t->s->command, memory_order_acquire) == IO_STOP) return NULL;
    }
}

/* ---- opening ---- */

static realm_status socket_error(realm_error *err, const char *address, int e) {
    realm_status s = e == EADDRINUSE               ? REALM_E_EXISTS
                     : e == EACCES || e == EPERM   ? REALM_E_DENIED
                     : e == EADDRNOTAVAIL          ? REALM_E_INVALID
                     : e == EMFILE || e == ENFILE  ? REALM_E_LIMIT
                     : e == ENOMEM || e == ENOBUFS ? REALM_E_NOMEM
                                                   : REALM_E_IO;
    return realm_error_set(err, s, "%s: %s", address, strerror(e));
}

/* "host:port" or "[v6]:port" taken apart; the port is behind the last colon. */
static bool host_of(const char *address, char host[REALM_ADDRESS_TEXT_MAX]) {
    const char *colon = strrchr(address, ':');
    size_t n = colon ? (size_t)(colon - address) : 0;
    const char *from = address;
    if (n >= 2 && address[0] == '[' && address[n - 1] == ']') {
        from++;
        n -= 2;
    } else if (colon && memchr(address, ':', n)) {
        n = 0; /* an IPv6 address needs its brackets */
    }
    unsigned long port = 65536;
    if (colon && colon[1] && strspn(colon + 1, "0123456789") == strlen(colon + 1) && strlen(colon + 1) <= 5) {
        port = 0;
        for (const char *p = colon + 1; *p; p++) port = port * 10 + (unsigned long)(*p - '0');
    }
    if (n == 0 || n >= REALM_ADDRESS_TEXT_MAX || port > 65535) return false;
    memcpy(host, from, n);
    host[n] = '\0';
    return true;
}

bool realm_server_is_address(const char *text) {
    char host[REALM_ADDRESS_TEXT_MAX];
    return host_of(text, host);
}

static realm_status resolve(const char *address, struct sockaddr_storage *out, socklen_t *len, realm_error *err) {
    char host[REALM_ADDRESS_TEXT_MAX];
    if (!host_of(address, host))
        return realm_error_set(err, REALM_E_INVALID, "'%s' is not an address like 127.0.0.1:8080 or [::1]:8080",
                               address);
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *found;
    int e = getaddrinfo(host, strrchr(address, ':') + 1, &hints, &found);
    if (e != 0) return realm_error_set(err, REALM_E_INVALID, "%s: %s", address, gai_strerror(e));
    memcpy(out, found->ai_addr, found->ai_addrlen);
    *len = found->ai_addrlen;
    freeaddrinfo(found);
    return REALM_OK;
}

/* A listening socket, or -1 with errno. */
static int bind_socket(const struct sockaddr_storage *a, socklen_t len, bool share) {
    int fd = socket(a->ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    if (fd < 0) return -1;
    bool ok = setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0;
    if (ok && share) ok = setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) == 0;
    if (ok) ok = bind(fd, (const struct sockaddr *)a, len) == 0;
    if (ok && share) ok = listen(fd, BACKLOG) == 0;
    if (ok) return fd;
    int e = errno;
    close(fd);
    errno = e;
    return -1;
}

static realm_status open_listener(realm_server *s, size_t i, const realm_listen *l, realm_error *err) {
    struct sockaddr_storage a = {0};
    socklen_t len;
    realm_status st = resolve(l->address, &a, &len, err);
    if (st != REALM_OK) return st;
    int probe = bind_socket(&a, len, false);
    if (probe < 0) return socket_error(err, l->address, errno);
    close(probe);
    for (unsigned k = 0; k < s->n_threads; k++) {
        io_thread *t = &s->threads[k];
        int fd = bind_socket(&a, len, true);
        if (fd < 0) return socket_error(err, l->address, errno);
        t->listeners[i].fd = fd;
        if (k == 0) { /* the port that stood for 0 */
            len = sizeof a;
            if (getsockname(fd, (struct sockaddr *)&a, &len) != 0) return socket_error(err, l->address, errno);
        }
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = &t->listeners[i]};
        if (epoll_ctl(t->epoll_fd, EPOLL_CTL_ADD, fd, &e) != 0) return socket_error(err, l->address, errno);
    }
    address_text(&a, s->listen[i].address, sizeof s->listen[i].address);
    s->listen[i].tag = l->tag;
    const struct sockaddr_in *v4 = (const void *)&a;
    const struct sockaddr_in6 *v6 = (const void *)&a;
    s->listen[i].loopback =
        a.ss_family == AF_INET ? ntohl(v4->sin_addr.s_addr) >> 24 == 127 : IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr) != 0;
    return REALM_OK;
}

static realm_status init_thread(realm_server *s, io_thread *t, realm_error *err) {
    t->s = s;
    t->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    t->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    t->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    t->wake_source = SOURCE_WAKE;
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = &t->wake_source};
    if (t->epoll_fd < 0 || t->wake_fd < 0 || t->spare_fd < 0 ||
        epoll_ctl(t->epoll_fd, EPOLL_CTL_ADD, t->wake_fd, &e) != 0)
        return socket_error(err, "I/O thread", errno);
    const uint64_t ms[N_TIMERS] = {
        [TIMER_IDLE] = s->limits.idle_ms,   [TIMER_HEAD] = s->limits.head_ms, [TIMER_BODY] = s->limits.body_ms,
        [TIMER_WRITE] = s->limits.write_ms, [TIMER_LINGER] = LINGER_MS,       [TIMER_PROBE] = PROBE_MS};
    for (int k = 0; k < N_TIMERS; k++) t->timers[k].ns = ms[k] * REALM_NS_PER_MS;
    return REALM_OK;
}

static void default_limits(realm_http_limits *l) {
    realm_http_limits d;
    realm_http_limits_init(&d);
#define DEFAULT(field) \
    if (!l->field) l->field = d.field
    DEFAULT(head_bytes);
    DEFAULT(fields);
    DEFAULT(target_bytes);
    DEFAULT(body_bytes);
    DEFAULT(chunk_line_bytes);
    DEFAULT(head_ms);
    DEFAULT(body_ms);
    DEFAULT(idle_ms);
    DEFAULT(write_ms);
    DEFAULT(connections);
    DEFAULT(bodies_bytes);
    DEFAULT(out_bytes);
#undef DEFAULT
}

static realm_status copy_names(realm_server *s, const realm_server_config *config) {
    s->names = realm_calloc(config->n_names, sizeof *s->names);
    if (!s->names) return REALM_E_NOMEM;
    for (size_t i = 0; i < config->n_names; i++, s->n_names++)
        if (!(s->names[i] = realm_strdup(config->names[i]))) return REALM_E_NOMEM;
    return REALM_OK;
}

realm_status realm_server_open(realm_server **out, const realm_server_config *config, realm_error *err) {
    *out = NULL;
    if (config->n_listen == 0 || config->n_listen > REALM_LISTENERS_MAX || config->n_threads > REALM_IO_THREADS_MAX)
        return realm_error_set(err, REALM_E_INVALID, "1 to %u listeners and at most %u I/O threads are possible",
                               REALM_LISTENERS_MAX, REALM_IO_THREADS_MAX);
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned n = config->n_threads ? config->n_threads : cores < 4 ? 1 : cores > 8 ? 4 : (unsigned)cores / 2;
    realm_status st = REALM_E_NOMEM;
    realm_server *s = realm_calloc(1, sizeof *s);
    if (!s) return realm_error_set(err, REALM_E_NOMEM, "out of memory");
    s->limits = config->limits;
    s->handler = config->handler;
    default_limits(&s->limits);
    s->threads = realm_calloc(n, sizeof *s->threads);
    if (!s->threads || copy_names(s, config) != REALM_OK) {
        realm_error_set(err, REALM_E_NOMEM, "out of memory");
        goto fail;
    }
    s->n_threads = n;
    s->n_listen = config->n_listen;
    for (unsigned k = 0; k < n; k++) {
        io_thread *t = &s->threads[k];
        t->epoll_fd = t->wake_fd = t->spare_fd = -1;
        for (size_t i = 0; i < REALM_LISTENERS_MAX; i++) t->listeners[i] = (listener){SOURCE_LISTENER, -1, i};
        realm_mutex_init(&t->wake_mu, REALM_RANK_LEAF);
    }
    for (unsigned k = 0; k < n; k++)
        if ((st = init_thread(s, &s->threads[k], err)) != REALM_OK) goto fail;
    for (size_t i = 0; i < config->n_listen; i++)
        if ((st = open_listener(s, i, &config->listen[i], err)) != REALM_OK) goto fail;
    for (unsigned k = 0; k < n; k++) {
        char name[32];
        (void)snprintf(name, sizeof name, "realm-io-%u", k);
        st = realm_thread_start(&s->threads[k].thread, name, io_loop, &s->threads[k], err);
        if (st != REALM_OK) goto fail;
        s->threads[k].running = true;
    }
    *out = s;
    return REALM_OK;
fail:
    realm_server_close(s);
    return st;
}

const char *realm_server_address(const realm_server *s, size_t i) {
    return i < s->n_listen ? s->listen[i].address : "";
}

/* ---- ending ---- */

static void command(realm_server *s, io_command what) {
    /* release: pairs with obey */
    atomic_store_explicit(&s->command, (int)what, memory_order_release);
    for (unsigned k = 0; k < s->n_threads; k++) ring(&s->threads[k]);
}

bool realm_server_drain(realm_server *s, uint64_t deadline_ns) {
    command(s, IO_DRAIN);
    const struct timespec pause = {.tv_nsec = 5 * 1000 * 1000};
    /* Connections, not only exchanges: a request that is in a socket has no exchange yet. */
    while (atomic_load_explicit(&s->draining, memory_order_acquire) < s->n_threads ||
           atomic_load_explicit(&s->owed, memory_order_relaxed) > 0) {
        if (realm_clock_ns() >= deadline_ns) return false;
        (void)nanosleep(&pause, NULL);
    }
    return true;
}

void realm_server_stop(realm_server *s) {
    if (!s) return;
    command(s, IO_STOP);
    for (unsigned k = 0; k < s->n_threads; k++) {
        io_thread *t = &s->threads[k];
        if (t->running) pthread_join(t->thread, NULL);
        t->running = false;
        for (size_t i = 0; i < REALM_LISTENERS_MAX; i++) {
            if (t->listeners[i].fd >= 0) close(t->listeners[i].fd);
            t->listeners[i].fd = -1;
        }
    }
}

void realm_server_close(realm_server *s) {
    if (!s) return;
    realm_server_stop(s);
    for (unsigned k = 0; k < s->n_threads; k++) {
        io_thread *t = &s->threads[k];
        if (t->epoll_fd >= 0) close(t->epoll_fd);
        if (t->wake_fd >= 0) close(t->wake_fd);
        if (t->spare_fd >= 0) close(t->spare_fd);
        realm_mutex_destroy(&t->wake_mu);
    }
    for (size_t i = 0; i < s->n_names; i++) realm_free(s->names[i]);
    realm_free(s->names);
    realm_free(s->threads);
    realm_free(s);
}

void realm_server_get_stats(const realm_server *s, realm_server_stats *out) {
    *out = (realm_server_stats){0};
    for (unsigned k = 0; k < s->n_threads; k++) {
        const io_counters *n = &s->threads[k].n;
#define SUM(field) out->field += atomic_load_explicit(&n->field, memory_order_relaxed)
        SUM(accepted);
        SUM(refused);
        SUM(displaced);
        SUM(requests);
        SUM(bytes_in);
        SUM(bytes_out);
        SUM(timeouts);
        SUM(exchanges);
        for (int i = 0; i < 6; i++) SUM(answers[i]);
#undef SUM
    }
    out->connections = atomic_load_explicit(&s->connections, memory_order_relaxed);
    out->bodies_bytes = atomic_load_explicit(&s->bodies_bytes, memory_order_relaxed);
}
