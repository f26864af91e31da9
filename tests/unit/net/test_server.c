/* A server on loopback with a small handler, driven through raw sockets: what happens to connections. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/thread.h"
#include "net/bad_requests.h"
#include "net/net.h"

/* ---- the handler: GET /echo answers its own target; POST /echo its body; /wait answers when released from another
 * thread, /begun goes on then with what it has begun; /flood streams 64 MiB as fast as room allows; /early answers
 * before the body; /p0 to /p3 join a party; /late answers 503 where it is ---- */

static struct {
    realm_server *s;
    unsigned short port;
    _Atomic int open, closed, complete, errors;
    realm_mutex mu;
    realm_exchange *waiting; /* under mu */
    _Atomic int released;
    _Atomic uint64_t flooded;
    realm_http_party party[4]; /* of paths that begin with /p0 to /p3 */
} T;

typedef struct call {
    int what;
    uint64_t left;
} call;
enum { ECHO_CALL, WAIT_CALL, BEGUN_CALL, FLOOD_CALL, STREAM_CALL };

static void on_head(void *user, realm_exchange *x) {
    (void)user;
    atomic_fetch_add(&T.open, 1);
    const realm_http_head *h = realm_exchange_head(x);
    call *c = realm_calloc(1, sizeof *c);
    realm_exchange_set_user(x, c);
    if (h->path.len > 6 && memcmp(h->path.data, "/fail-", 6) == 0)
        realm_alloc_inject_failure(atoi(h->path.data + 6), false);
    if (h->path.len >= 3 && h->path.data[1] == 'p' && h->path.data[2] >= '0' && h->path.data[2] < '4' &&
        !realm_exchange_join(x, &T.party[h->path.data[2] - '0']))
        realm_exchange_respond(x, 429, "text/plain", "crowded", 7);
    if (realm_http_str_is(h->path, "/early")) realm_exchange_respond(x, 401, "text/plain", "early", 5);
    if (realm_http_str_is(h->path, "/late") && realm_exchange_is_late(x))
        realm_exchange_respond(x, 503, "text/plain", "late", 4);
    if (realm_http_str_is(h->path, "/small")) realm_exchange_limit_body(x, 10);
}

static void on_wake(void *user, realm_exchange *x) {
    (void)user;
    call *c = realm_exchange_get_user(x);
    if (c->what == WAIT_CALL && atomic_load(&T.released)) realm_exchange_respond(x, 200, "text/plain", "waited", 6);
    if (c->what == BEGUN_CALL && atomic_load(&T.released)) {
        realm_exchange_write(x, "two", 3);
        realm_exchange_finish(x);
    }
    static const char block[1000];
    while (c->what == FLOOD_CALL && c->left && realm_exchange_room(x) >= sizeof block) {
        realm_exchange_write(x, block, sizeof block);
        c->left -= sizeof block;
        atomic_fetch_add(&T.flooded, sizeof block);
    }
    if (c->what == FLOOD_CALL && !c->left) realm_exchange_finish(x);
}

static void on_request(void *user, realm_exchange *x) {
    const realm_http_head *h = realm_exchange_head(x);
    call *c = realm_exchange_get_user(x);
    size_t len;
    char *body = realm_exchange_take_body(x, &len);
    bool begun = realm_http_str_is(h->path, "/begun");
    if (begun) {
        realm_exchange_start(x, 200, "text/plain");
        realm_exchange_write(x, "one", 3);
    }
    if (begun || realm_http_str_is(h->path, "/wait")) {
        c->what = begun ? BEGUN_CALL : WAIT_CALL;
        realm_mutex_lock(&T.mu);
        T.waiting = x;
        realm_mutex_unlock(&T.mu);
    } else if (realm_http_str_is(h->path, "/flood")) {
        c->what = FLOOD_CALL;
        c->left = 64000000;
        realm_exchange_start(x, 200, "application/octet-stream");
        on_wake(user, x);
    } else if (realm_http_str_is(h->path, "/stream")) {
        realm_exchange_field(x, "x-good", "1");
        realm_exchange_field(x, "x-bad", "1\r\nx-injected: 1");
        realm_exchange_start(x, 200, "text/plain");
        realm_exchange_write(x, "one", 3);
        realm_exchange_write(x, "", 0);
        realm_exchange_write(x, "twotwotwotwotwotwo", 18);
        realm_exchange_finish(x);
    } else if (len) {
        realm_exchange_respond(x, 200, "text/plain", body, len);
    } else {
        realm_exchange_respond(x, 200, "text/plain", h->path.data, h->path.len);
    }
    realm_free(body);
}

static void on_close(void *user, realm_exchange *x, bool complete) {
    (void)user;
    realm_mutex_lock(&T.mu);
    if (T.waiting == x) T.waiting = NULL;
    realm_mutex_unlock(&T.mu);
    realm_free(realm_exchange_get_user(x));
    atomic_fetch_add(&T.closed, 1);
    if (complete) atomic_fetch_add(&T.complete, 1);
}

static void on_error(void *user, realm_exchange *x, unsigned status, const char *why) {
    (void)user;
    atomic_fetch_add(&T.errors, 1);
    realm_exchange_field(x, "x-request-id", "r1");
    realm_exchange_respond(x, status, "text/plain", why, strlen(why));
}

static int start(const realm_http_limits *limits, unsigned threads) {
    memset(&T, 0, sizeof T);
    realm_mutex_init(&T.mu, REALM_RANK_QUEUE);
    static const realm_listen listen = {"127.0.0.1:0", 7};
    static const char *const names[] = {"realm.example"};
    realm_server_config config = {.listen = &listen,
                                  .n_listen = 1,
                                  .n_threads = threads,
                                  .names = names,
                                  .n_names = 1,
                                  .handler = {NULL, on_head, on_request, on_wake, on_close, on_error}};
    if (limits) config.limits = *limits;
    realm_error err = {0};
    if (realm_server_open(&T.s, &config, &err) != REALM_OK) fail_msg("%s", err.text);
    const char *a = realm_server_address(T.s, 0);
    assert_memory_equal(a, "127.0.0.1:", 10);
    T.port = (unsigned short)atoi(a + 10);
    return 0;
}

static void stop(void) {
    realm_server_close(T.s);
    realm_mutex_destroy(&T.mu);
}

/* ---- a client ---- */

static int dial_small(int receive_bytes) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    if (receive_bytes) setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive_bytes, sizeof receive_bytes);
    struct sockaddr_in a = {
        .sin_family = AF_INET, .sin_port = htons(T.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    return fd;
}
static int dial(void) { return dial_small(0); }

static void say(int fd, const char *bytes, size_t len) {
    while (len) {
        ssize_t n = send(fd, bytes, len, MSG_NOSIGNAL);
        if (n <= 0) return; /* refused meanwhile */
        bytes += n;
        len -= (size_t)n;
    }
}

/* Everything until the server closes or `ms` pass without a byte; returns the length, -1 after a reset. */
static long hear(int fd, char *out, size_t cap, int ms) {
    size_t n = 0;
    while (n + 1 < cap) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (poll(&p, 1, ms) <= 0) break;
        ssize_t got = recv(fd, out + n, cap - n - 1, 0);
        if (got < 0) return -1;
        if (got == 0) break;
        n += (size_t)got;
    }
    out[n] = '\0';
    return (long)n;
}

/* What comes within 3 s, and what follows it closely. */
static long hear_soon(int fd, char *out, size_t cap) {
    struct pollfd p = {.fd = fd, .events = POLLIN};
    (void)poll(&p, 1, 3000);
    return hear(fd, out, cap, 30);
}

static void ask(const char *request, char *out, size_t cap) {
    int fd = dial();
    say(fd, request, strlen(request));
    assert_true(hear(fd, out, cap, 3000) >= 0);
    close(fd);
}

static unsigned status_of(const char *answer) {
    return strncmp(answer, "HTTP/1.1 ", 9) == 0 ? (unsigned)atoi(answer + 9) : 0;
}

static void wait_for(_Atomic int *n, int value) {
    for (int i = 0; i < 500 && atomic_load(n) < value; i++) nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    assert_true(atomic_load(n) >= value);
}

#define HOST "Host: localhost\r\n"
#define CLOSE "Connection: close\r\n"

static int count_of(const char *text, const char *part) {
    int n = 0;
    for (; (text = strstr(text, part)); text++) n++;
    return n;
}

static void ask_bad(void *user, const char *what, const char *bytes, size_t len, unsigned status, bool body) {
    (void)user;
    (void)body;
    char out[4096];
    int fd = dial();
    say(fd, bytes, len);
    long n = hear(fd, out, sizeof out, 3000);
    if (n < 0 || status_of(out) != status) fail_msg("%s: %ld %s, not %u", what, n, out, status);
    if (!strstr(out, "Connection: close") || !strstr(out, "x-request-id")) fail_msg("%s: %s", what, out);
    /* exactly one answer: nothing of the rest was taken for a second request */
    if (count_of(out, "\r\nDate: ") != 1) fail_msg("%s: %s", what, out);
    close(fd);
}

static void malformed_requests_get_one_answer_and_are_closed(void **state) {
    (void)state;
    start(NULL, 1);
    size_t n = each_bad_request(ask_bad, NULL);
    assert_true(n > 700);
    assert_int_equal(atomic_load(&T.errors), (int)n);
    char out[512];
    ask("GET /alive HTTP/1.1\r\n" HOST CLOSE "\r\n", out, sizeof out);
    assert_int_equal(status_of(out), 200);
    stop();
}

static void answers_are_framed(void **state) {
    (void)state;
    start(NULL, 2);
    char out[4096];
    ask("GET /a?b HTTP/1.1\r\n" HOST CLOSE "\r\n", out, sizeof out);
    assert_non_null(strstr(out, "Content-Length: 2\r\n"));
    assert_non_null(strstr(out, "Date: "));
    assert_non_null(strstr(out, "\r\n\r\n/a"));
    ask("HEAD /abc HTTP/1.1\r\n" HOST CLOSE "\r\n", out, sizeof out);
    assert_non_null(strstr(out, "Content-Length: 4\r\n"));
    assert_string_equal(strstr(out, "\r\n\r\n"), "\r\n\r\n");
    ask("GET /stream HTTP/1.1\r\n" HOST CLOSE "\r\n", out, sizeof out);
    assert_non_null(strstr(out, "Transfer-Encoding: chunked\r\n"));
    assert_non_null(strstr(out, "x-good: 1\r\n"));
    assert_null(strstr(out, "x-injected"));
    assert_string_equal(strstr(out, "\r\n\r\n"), "\r\n\r\n3\r\none\r\n12\r\ntwotwotwotwotwotwo\r\n0\r\n\r\n");
    ask("GET /stream HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", out, sizeof out);
    assert_null(strstr(out, "chunked"));
    assert_string_equal(strstr(out, "\r\n\r\n"), "\r\n\r\nonetwotwotwotwotwotwo");
    ask("POST /echo HTTP/1.1\r\n" HOST CLOSE "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", out,
        sizeof out);
    assert_string_equal(strstr(out, "\r\n\r\n"), "\r\n\r\nabcde");
    stop();
}

static void pipelined_requests_are_answered_in_order(void **state) {
    (void)state;
    start(NULL, 1);
    int fd = dial();
    char request[65536], *p = request;
    for (int i = 0; i < 500; i++) {
        p += sprintf(p, "GET /number-%d HTTP/1.1\r\n" HOST "\r\n", i);
        if (i % 50 == 7) p += sprintf(p, "POST / HTTP/1.1\r\n" HOST "Content-Length: 3\r\n\r\nb%02d", i % 100);
    }
    p += sprintf(p, "GET /last HTTP/1.1\r\n" HOST CLOSE "\r\n");
    say(fd, request, (size_t)(p - request));
    char *out = malloc(1 << 20), *at = out;
    assert_true(hear(fd, out, 1 << 20, 3000) > 0);
    for (int i = 0; i < 500; i++) {
        char expect[32];
        snprintf(expect, sizeof expect, "\r\n\r\n/number-%d", i);
        at = strstr(at, expect);
        assert_non_null(at);
        at += strlen(expect);
        if (i % 50 == 7) {
            snprintf(expect, sizeof expect, "\r\n\r\nb%02d", i % 100);
            at = strstr(at, expect);
            assert_non_null(at);
        }
    }
    assert_non_null(strstr(at, "/last"));
    close(fd);
    free(out);
    stop();
}

static void expectations_and_early_answers(void **state) {
    (void)state;
    start(NULL, 1);
    char out[4096];
    int fd = dial();
    const char *head = "POST /echo HTTP/1.1\r\n" HOST CLOSE "Content-Length: 2\r\nExpect: 100-continue\r\n\r\n";
    say(fd, head, strlen(head));
    hear(fd, out, sizeof out, 200);
    assert_string_equal(out, "HTTP/1.1 100 Continue\r\n\r\n");
    say(fd, "hi", 2);
    hear(fd, out, sizeof out, 1000);
    assert_int_equal(status_of(out), 200);
    close(fd);
    /* a short unwanted body is read and thrown away, the connection goes on */
    ask("POST /early HTTP/1.1\r\n" HOST "Content-Length: 21\r\n\r\nGET /x HTTP/1.1\r\n\r\n\r\n"
        "GET /next HTTP/1.1\r\n" HOST CLOSE "\r\n",
        out, sizeof out);
    assert_int_equal(status_of(out), 401);
    assert_non_null(strstr(out, "\r\n\r\n/next"));
    assert_null(strstr(out, "/x"));
    /* one whose end would have to be guessed is not */
    ask("POST /early HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\n" HOST "\r\n",
        out, sizeof out);
    assert_int_equal(status_of(out), 401);
    assert_non_null(strstr(out, "Connection: close"));
    assert_null(strstr(out, "/x"));
    ask("POST /early HTTP/1.1\r\n" HOST "Content-Length: 5\r\nExpect: 100-continue\r\n\r\n", out, sizeof out);
    assert_int_equal(status_of(out), 401);
    assert_non_null(strstr(out, "Connection: close"));
    /* the handler's own limit, by length and by chunks */
    ask("POST /small HTTP/1.1\r\n" HOST "Content-Length: 11\r\n\r\n", out, sizeof out);
    assert_int_equal(status_of(out), 413);
    ask("POST /small HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n9\r\n123456789\r\n2\r\n", out, sizeof out);
    assert_int_equal(status_of(out), 413);
    /* a refusal reaches the client although it is still sending megabytes */
    fd = dial();
    char *big = calloc(1, 1 << 20);
    head = "POST / HTTP/1.1\r\n" HOST "Content-Length: 99999999\r\n\r\n";
    say(fd, head, strlen(head));
    for (int i = 0; i < 8; i++) say(fd, big, 1 << 20);
    assert_true(hear(fd, out, sizeof out, 3000) > 0);
    assert_int_equal(status_of(out), 413);
    close(fd);
    free(big);
    stop();
}

static void hosts_are_checked_on_loopback(void **state) {
    (void)state;
    start(NULL, 1);
    char out[1024];
    static const struct {
        const char *host;
        unsigned status;
    } cases[] = {{"localhost:1", 200},
                 {"127.0.0.1", 200},
                 {"[::1]:80", 200},
                 {"Realm.Example:8080", 200},
                 {"evil.example", 403},
                 {"localhost.evil.example", 403},
                 {"", 403},
                 {"realm.example.evil", 403}};
    for (size_t i = 0; i < REALM_ARRAY_LEN(cases); i++) {
        char request[256];
        snprintf(request, sizeof request, "GET / HTTP/1.1\r\nHost: %s\r\n" CLOSE "\r\n", cases[i].host);
        ask(request, out, sizeof out);
        if (status_of(out) != cases[i].status) fail_msg("%s: %s", cases[i].host, out);
    }
    ask("GET http://evil.example/ HTTP/1.1\r\n" HOST "\r\n", out, sizeof out);
    assert_int_equal(status_of(out), 403);
    stop();
}

static void half_closed_clients_get_their_answer(void **state) {
    (void)state;
    start(NULL, 1);
    char out[1024];
    int fd = dial();
    const char *r = "GET /a HTTP/1.1\r\n" HOST "\r\nGET /b HTTP/1.1\r\n" HOST "\r\n";
    say(fd, r, strlen(r));
    shutdown(fd, SHUT_WR);
    hear(fd, out, sizeof out, 2000);
    assert_non_null(strstr(out, "\r\n\r\n/a"));
    assert_non_null(strstr(out, "\r\n\r\n/b"));
    close(fd);
    static const char *const cut[] = {"GET / HT", "GET / HTTP/1.1\r\nHost: localhost\r\n",
                                      "POST / HTTP/1.1\r\n" HOST "Content-Length: 5\r\n\r\nab",
                                      "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n"};
    for (size_t i = 0; i < REALM_ARRAY_LEN(cut); i++) { /* what is not whole is refused */
        fd = dial();
        say(fd, cut[i], strlen(cut[i]));
        shutdown(fd, SHUT_WR);
        assert_true(hear(fd, out, sizeof out, 2000) > 0);
        assert_int_equal(status_of(out), 400);
        close(fd);
    }
    /* and while the answer takes its time: the probe's bytes belong to the answer */
    fd = dial();
    r = "GET /wait HTTP/1.1\r\n" HOST "\r\n";
    say(fd, r, strlen(r));
    shutdown(fd, SHUT_WR);
    long n = hear(fd, out, sizeof out, 300);
    assert_true(n >= 1 && n <= 9);
    assert_memory_equal(out, "HTTP/1.1 ", (size_t)n);
    atomic_store(&T.released, 1);
    realm_mutex_lock(&T.mu);
    realm_exchange_wake(T.waiting);
    realm_mutex_unlock(&T.mu);
    hear(fd, out + n, sizeof out - (size_t)n, 2000);
    assert_int_equal(status_of(out), 200);
    assert_non_null(strstr(out, "\r\n\r\nwaited"));
    close(fd);
    /* or has begun: they belong to the next piece */
    atomic_store(&T.released, 0);
    fd = dial();
    r = "GET /begun HTTP/1.1\r\n" HOST "\r\n";
    say(fd, r, strlen(r));
    shutdown(fd, SHUT_WR);
    n = hear(fd, out, sizeof out, 300);
    assert_true(n > 9);
    out[n] = 0;
    assert_non_null(strstr(out, "\r\n\r\n3\r\none\r\n0"));
    atomic_store(&T.released, 1);
    realm_mutex_lock(&T.mu);
    realm_exchange_wake(T.waiting);
    realm_mutex_unlock(&T.mu);
    hear(fd, out + n, sizeof out - (size_t)n, 2000);
    const char *next = strstr(out, "\r\none\r\n0");
    assert_non_null(next);
    next += 7;
    assert_string_equal(next + strspn(next, "0"), "3\r\ntwo\r\n0\r\n\r\n");
    close(fd);
    stop();
}

static void clients_that_go_away_end_their_exchange(void **state) {
    (void)state;
    start(NULL, 1);
    char out[128];
    for (int i = 0; i < 20; i++) { /* gone before the answer has begun */
        int fd = dial();
        const char *r = "GET /wait HTTP/1.1\r\n" HOST "\r\n";
        say(fd, r, strlen(r));
        wait_for(&T.open, i + 1);
        close(fd);
        wait_for(&T.closed, i + 1);
    }
    for (int i = 20; i < 40; i++) { /* between two pieces of it */
        char out_of_it[256];
        int fd = dial();
        const char *r = "GET /begun HTTP/1.1\r\n" HOST "\r\n";
        say(fd, r, strlen(r));
        assert_true(hear_soon(fd, out_of_it, sizeof out_of_it) > 0);
        close(fd);
        wait_for(&T.closed, i + 1);
    }
    assert_int_equal(atomic_load(&T.complete), 0);
    int fd = dial(); /* and in the middle of it */
    const char *r = "GET /flood HTTP/1.1\r\n" HOST "\r\n";
    say(fd, r, strlen(r));
    hear(fd, out, sizeof out, 100);
    close(fd);
    wait_for(&T.closed, 41);
    assert_int_equal(atomic_load(&T.complete), 0);
    stop();
}

static void a_slow_reader_slows_only_itself(void **state) {
    (void)state;
    realm_http_limits limits = {.write_ms = 700};
    start(&limits, 1);
    int slow = dial_small(4096);
    const char *r = "GET /flood HTTP/1.1\r\n" HOST "\r\n";
    say(slow, r, strlen(r));
    nanosleep(&(struct timespec){.tv_nsec = 300000000}, NULL);
    uint64_t made = atomic_load(&T.flooded);
    assert_true(made < 4000000); /* of 64 MB: production stopped */
    char out[1024];
    ask("GET /other HTTP/1.1\r\n" HOST CLOSE "\r\n", out, sizeof out);
    assert_int_equal(status_of(out), 200);
    wait_for(&T.closed, 2); /* it takes nothing for write_ms: cut */
    assert_int_equal(atomic_load(&T.complete), 1);
    close(slow);
    int fast = dial();
    say(fast, r, strlen(r));
    char *all = malloc(80 << 20);
    long n = hear(fast, all, 80 << 20, 500);
    assert_true(n > 64000000);
    assert_memory_equal(all + n - 7, "\r\n0\r\n\r\n", 7);
    free(all);
    close(fast);
    stop();
}

static void time_limits_hold(void **state) {
    (void)state;
    realm_http_limits limits = {.head_ms = 300, .body_ms = 300, .idle_ms = 500};
    start(&limits, 1);
    static const char *const parts[] = {"GET / HTTP/1.1\r\nHo",
                                        "POST / HTTP/1.1\r\n" HOST "Content-Length: 5\r\n\r\nab",
                                        "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n5\r\nab"};
    char out[1024];
    for (size_t i = 0; i < REALM_ARRAY_LEN(parts); i++) {
        uint64_t t0 = realm_clock_ns();
        ask(parts[i], out, sizeof out);
        assert_int_equal(status_of(out), 408);
        assert_true(realm_clock_ns() - t0 >= 250 * REALM_NS_PER_MS);
    }
    /* a head that dribbles is not progress; an idle connection is closed without a word */
    int fd = dial();
    const char *dribble = "GET / HTTP/1.1\r\nHost: localhost\r\n";
    uint64_t t0 = realm_clock_ns();
    for (int i = 0; i < 20; i++) {
        say(fd, dribble + i, 1);
        nanosleep(&(struct timespec){.tv_nsec = 30000000}, NULL);
    }
    hear(fd, out, sizeof out, 500);
    assert_int_equal(status_of(out), 408);
    close(fd);
    t0 = realm_clock_ns();
    ask("", out, sizeof out);
    assert_string_equal(out, "");
    assert_true(realm_clock_ns() - t0 >= 450 * REALM_NS_PER_MS);
    stop();
}

/* A request of party `p` whose body does not end: it holds its connection. */
static int hold(int p) {
    char q[128];
    int n = snprintf(q, sizeof q, "POST /p%d HTTP/1.1\r\n" HOST "Content-Length: 5\r\n\r\nab", p), fd = dial();
    const int before = atomic_load(&T.open);
    say(fd, q, (size_t)n);
    wait_for(&T.open, before + 1);
    return fd;
}

static const char next_request[] = "GET /b HTTP/1.1\r\n" HOST CLOSE "\r\n";

static uint64_t displaced(void) {
    realm_server_stats stats;
    realm_server_get_stats(T.s, &stats);
    return stats.displaced;
}

/* When all are taken who comes is given the place of one that is nobody's, which has waited longest: idle ones, then
 * those whose head or body does not come. */
static void crowds_make_room(void **state) {
    (void)state;
    realm_http_limits limits = {.connections = 10};
    static const char *const crowds[] = {"GET /a HTTP/1.1\r\n" HOST "\r\n", "GET /a HT",
                                         "POST / HTTP/1.1\r\n" HOST "Content-Length: 5\r\n\r\nab",
                                         "POST /early HTTP/1.1\r\n" HOST "Content-Length: 500\r\n\r\nab"};
    for (size_t k = 0; k < REALM_ARRAY_LEN(crowds); k++) {
        start(&limits, 1);
        int fds[10];
        char out[1024];
        for (int i = 0; i < 10; i++) {
            fds[i] = dial();
            say(fds[i], crowds[k], strlen(crowds[k]));
            if (k == 0 || k == 3) hear_soon(fds[i], out, sizeof out);
            if (k == 2) wait_for(&T.open, i + 1);
        }
        for (int i = 0; i < 2; i++) {
            ask(next_request, out, sizeof out);
            if (status_of(out) != 200) fail_msg("crowd %zu: %s", k, out);
        }
        assert_in_range(displaced(), 1, 2);
        struct pollfd first = {.fd = fds[0], .events = POLLIN}, last = {.fd = fds[9], .events = POLLIN};
        assert_int_equal(poll(&first, 1, 3000), 1);
        assert_true(recv(fds[0], out, sizeof out, 0) <= 0);
        assert_int_equal(poll(&last, 1, 0), 0); /* who came last is there */
        for (int i = 0; i < 10; i++) close(fds[i]);
        stop();
    }
}

/* Of ten places one party gets five, the next one three, then one: as many as are left for others. Who has joined keeps
 * its place, and when all ten are held there is a 503. */
static void parties_share_connections(void **state) {
    (void)state;
    realm_http_limits limits = {.connections = 10};
    start(&limits, 1);
    static const int may[] = {5, 3, 1, 1};
    int fds[10], n = 0;
    char out[1024], r[128];
    for (int p = 0; p < 4; p++) {
        for (int i = 0; i < may[p]; i++) fds[n++] = hold(p);
        if (n == 10) break;
        (void)snprintf(r, sizeof r, "GET /p%d HTTP/1.1\r\n" HOST CLOSE "\r\n", p);
        ask(r, out, sizeof out);
        assert_int_equal(status_of(out), 429);
        ask(next_request, out, sizeof out);
        assert_int_equal(status_of(out), 200);
    }
    ask(next_request, out, sizeof out);
    assert_int_equal(status_of(out), 503);
    assert_int_equal(displaced(), 0);
    const int closed = atomic_load(&T.closed);
    for (int i = 0; i < 5; i++) close(fds[i]);
    wait_for(&T.closed, closed + 5);
    assert_int_equal(atomic_load(&T.party[0].exchanges), 0);
    ask("GET /p1 HTTP/1.1\r\n" HOST CLOSE "\r\n", out, sizeof out); /* has three, and five are free */
    assert_int_equal(status_of(out), 200);
    for (int i = 5; i < 10; i++) { /* those that were held end as if there had been nothing */
        say(fds[i], "cde", 3);
        hear_soon(fds[i], out, sizeof out);
        assert_int_equal(status_of(out), 200);
        assert_non_null(strstr(out, "abcde"));
        close(fds[i]);
    }
    stop();
    for (int p = 0; p < 4; p++) assert_int_equal(atomic_load(&T.party[p].exchanges), 0);
}

/* Sends a body of so many bytes but for the last `left`; the connection. */
static int upload(int p, size_t len, size_t left) {
    char head[128], *body = calloc(1, len);
    int fd = dial(),
        n = snprintf(head, sizeof head, "POST /p%d HTTP/1.1\r\n" HOST CLOSE "Content-Length: %zu\r\n\r\n", p, len);
    memset(body, 'x', len);
    say(fd, head, (size_t)n);
    say(fd, body, len - left);
    free(body);
    return fd;
}

static void parties_share_bodies(void **state) {
    (void)state;
    realm_http_limits limits = {.bodies_bytes = 4 << 20};
    start(&limits, 1);
    static char out[3 << 20];
    int held = upload(0, 2000000, 1);
    for (int i = 0; i < 500 && atomic_load(&T.party[0].bodies_bytes) < 1999999; i++)
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    static const struct {
        int party;
        size_t len;
        unsigned status;
    } cases[] = {{0, 1000000, 429}, {0, 60000, 200}, {1, 1000000, 200}, {1, 1500000, 429}, {2, 60000, 200}};
    for (size_t i = 0; i < REALM_ARRAY_LEN(cases); i++) {
        int fd = upload(cases[i].party, cases[i].len, 0);
        assert_true(hear(fd, out, sizeof out, 3000) > 0);
        if (status_of(out) != cases[i].status) fail_msg("case %zu: %u", i, status_of(out));
        close(fd);
    }
    say(held, "x", 1);
    assert_true(hear(held, out, sizeof out, 3000) > 2000000);
    assert_int_equal(status_of(out), 200);
    close(held);
    wait_for(&T.closed, atomic_load(&T.open));
    realm_server_stats stats;
    realm_server_get_stats(T.s, &stats);
    assert_int_equal(stats.bodies_bytes, 0);
    for (int p = 0; p < 3; p++) assert_int_equal(atomic_load(&T.party[p].bodies_bytes), 0);
    stop();
}

static void descriptors_may_run_out(void **state) {
    (void)state;
    start(NULL, 1);
    int a = dial();
    char out[1024];
    struct rlimit old, low;
    getrlimit(RLIMIT_NOFILE, &old);
    int extra[4];
    for (int i = 0; i < 4; i++) extra[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const char *r = "GET /a HTTP/1.1\r\n" HOST "\r\n";
    say(a, r, strlen(r));
    hear_soon(a, out, sizeof out);
    low = old;
    low.rlim_cur = (rlim_t)extra[3] + 1;
    setrlimit(RLIMIT_NOFILE, &low);
    int fill[64], n_fill = 0; /* what was closed below that meanwhile */
    while (n_fill < 64 && (fill[n_fill] = dup(a)) >= 0) n_fill++;
    assert_true(n_fill < 64);
    struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons(T.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    for (int i = 0; i < 4; i++) assert_int_equal(connect(extra[i], (struct sockaddr *)&to, sizeof to), 0);
    uint64_t cpu0 = (uint64_t)clock();
    for (int i = 0; i < 4; i++) {
        say(extra[i], r, strlen(r));
        long n = hear(extra[i], out, sizeof out, 300);
        assert_true(n <= 0); /* closed unanswered */
    }
    nanosleep(&(struct timespec){.tv_nsec = 200000000}, NULL);
    assert_true((uint64_t)clock() - cpu0 < CLOCKS_PER_SEC / 5); /* no spinning */
    say(a, r, strlen(r));                                       /* who is connected is served */
    assert_true(hear_soon(a, out, sizeof out) > 0);
    setrlimit(RLIMIT_NOFILE, &old);
    for (int i = 0; i < n_fill; i++) close(fill[i]);
    for (int i = 0; i < 4; i++) close(extra[i]);
    nanosleep(&(struct timespec){.tv_nsec = 200000000}, NULL);
    ask("GET /b HTTP/1.1\r\n" HOST CLOSE "\r\n", out, sizeof out);
    assert_int_equal(status_of(out), 200);
    close(a);
    stop();
}

static void *release_soon(void *arg) {
    (void)arg;
    nanosleep(&(struct timespec){.tv_nsec = 300000000}, NULL);
    atomic_store(&T.released, 1);
    realm_mutex_lock(&T.mu);
    if (T.waiting) realm_exchange_wake(T.waiting);
    realm_mutex_unlock(&T.mu);
    return NULL;
}

static void draining_lets_exchanges_end(void **state) {
    (void)state;
    start(NULL, 2);
    static const char late[] = "GET /late HTTP/1.1\r\n" HOST "\r\n", wait[] = "GET /wait HTTP/1.1\r\n" HOST "\r\n";
    char out[1024];
    int idle = dial(), unused = dial(), busy = dial();
    say(idle, late, sizeof late - 1);
    assert_true(hear_soon(idle, out, sizeof out) > 0);
    assert_int_equal(status_of(out), 200);
    assert_null(strstr(out, "Connection: close"));
    say(busy, wait, sizeof wait - 1);
    wait_for(&T.open, 2);
    assert_false(realm_server_drain(T.s, realm_clock_ns() + 100 * REALM_NS_PER_MS));
    assert_int_equal(hear(idle, out, sizeof out, 3000), 0); /* closed */
    /* who comes now, or has asked nothing before, is told so */
    int silent = dial(), fresh[2] = {unused, dial()};
    for (int i = 0; i < 2; i++) {
        say(fresh[i], late, sizeof late - 1);
        assert_true(hear(fresh[i], out, sizeof out, 3000) > 0);
        assert_int_equal(status_of(out), 503);
        assert_non_null(strstr(out, "Connection: close"));
        close(fresh[i]);
    }
    /* and holds nobody up, who waits for what was there before */
    pthread_t t;
    assert_int_equal(realm_thread_start(&t, "release", release_soon, NULL, NULL), REALM_OK);
    assert_true(realm_server_drain(T.s, realm_clock_ns() + 5000 * REALM_NS_PER_MS));
    pthread_join(t, NULL);
    hear(busy, out, sizeof out, 500);
    assert_int_equal(status_of(out), 200);
    assert_non_null(strstr(out, "Connection: close"));
    close(silent);
    close(idle);
    close(busy);
    stop();
}

/* Each allocation that a request needs after its head fails once, on the I/O thread: the connection may be lost, the
 * server is not. */
static void memory_may_run_out(void **state) {
    (void)state;
    start(NULL, 1);
    int good = 0;
    for (int i = 0; i < 12; i++) {
        char request[512], out[4096];
        snprintf(request, sizeof request,
                 "POST /fail-%d HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n"
                 "5\r\nhello\r\n0\r\n\r\nGET /second HTTP/1.1\r\n" HOST CLOSE "\r\n",
                 i);
        int fd = dial();
        say(fd, request, strlen(request));
        long n = hear(fd, out, sizeof out, 1000);
        good += n > 0 && status_of(out) == 200 && strstr(out, "/second") != NULL;
        assert_true(n <= 0 || status_of(out) == 200 || status_of(out) == 503);
        close(fd);
        unsigned status = 0; /* turns it off; may itself be hit once */
        for (int tries = 0; tries < 3 && status != 200; tries++) {
            static const char off[] = "GET /fail--1 HTTP/1.1\r\n" HOST CLOSE "\r\n";
            fd = dial();
            say(fd, off, sizeof off - 1);
            status = hear(fd, out, sizeof out, 1000) > 0 ? status_of(out) : 0;
            close(fd);
        }
        ask("GET /alive HTTP/1.1\r\n" HOST CLOSE "\r\n", out, sizeof out);
        assert_int_equal(status_of(out), 200);
    }
    assert_true(good > 0 && good < 12);
    stop();
}

static void closing_ends_everything(void **state) {
    (void)state;
    start(NULL, 2);
    int fds[8];
    for (int i = 0; i < 8; i++) {
        fds[i] = dial();
        const char *r = i % 2 ? "GET /wait HTTP/1.1\r\n" HOST "\r\n" : "GET /flood HTTP/1.1\r\n" HOST "\r\n";
        say(fds[i], r, strlen(r));
    }
    wait_for(&T.open, 8);
    stop();
    assert_int_equal(atomic_load(&T.closed), 8);
    for (int i = 0; i < 8; i++) close(fds[i]);
}

static void an_address_in_use_is_refused(void **state) {
    (void)state;
    start(NULL, 2);
    char address[64];
    realm_listen l = {address, 0};
    snprintf(address, sizeof address, "%s", realm_server_address(T.s, 0));
    realm_server *second;
    realm_error err = {0};
    realm_server_config config = {
        .listen = &l, .n_listen = 1, .handler = {NULL, on_head, on_request, on_wake, on_close, on_error}};
    assert_int_equal(realm_server_open(&second, &config, &err), REALM_E_EXISTS);
    static const char *const bad[] = {"",
                                      "8080",
                                      ":8080",
                                      "127.0.0.1",
                                      "127.0.0.1:",
                                      "127.0.0.1:99999",
                                      "127.0.0.1:x",
                                      "::1:80",
                                      "[::1]",
                                      "no.such.host.invalid:80",
                                      "127.0.0.1:-1"};
    for (size_t i = 0; i < REALM_ARRAY_LEN(bad); i++) {
        l.address = bad[i];
        if (realm_server_open(&second, &config, &err) != REALM_E_INVALID) fail_msg("%s", bad[i]);
    }
    stop();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(malformed_requests_get_one_answer_and_are_closed),
        cmocka_unit_test(answers_are_framed),
        cmocka_unit_test(pipelined_requests_are_answered_in_order),
        cmocka_unit_test(expectations_and_early_answers),
        cmocka_unit_test(hosts_are_checked_on_loopback),
        cmocka_unit_test(half_closed_clients_get_their_answer),
        cmocka_unit_test(clients_that_go_away_end_their_exchange),
        cmocka_unit_test(a_slow_reader_slows_only_itself),
        cmocka_unit_test(time_limits_hold),
        cmocka_unit_test(crowds_make_room),
        cmocka_unit_test(parties_share_connections),
        cmocka_unit_test(parties_share_bodies),
        cmocka_unit_test(descriptors_may_run_out),
        cmocka_unit_test(draining_lets_exchanges_end),
        cmocka_unit_test(memory_may_run_out),
        cmocka_unit_test(closing_ends_everything),
        cmocka_unit_test(an_address_in_use_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
