/* tests/unit/catalog/http.h - a web server of one thread on loopback that misbehaves as it is told. */
#ifndef TESTS_CATALOG_HTTP_H
#define TESTS_CATALOG_HTTP_H

#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

typedef struct http_server {
    int fd;
    unsigned port;
    pthread_t thread;
    pthread_mutex_t mu;
    /* mu: what it does */
    const char *body;
    size_t len;
    size_t cut;           /* bytes of a body after which the connection ends; SIZE_MAX: never */
    unsigned status;      /* 0: as it should be */
    bool no_ranges;       /* answers with all of it */
    bool wrong_range;     /* answers with another range than asked for */
    const char *redirect; /* Location of everything but /moved */
    const char *index;    /* body of /index.yaml */
    /* mu: what it saw */
    unsigned requests;
    unsigned long long last_from;
    char last_path[128];
} http_server;

/* Both under its lock: what it does from now on; what it saw. */
#define http_tell(s, field, value)      \
    do {                                \
        pthread_mutex_lock(&(s)->mu);   \
        (s)->field = (value);           \
        pthread_mutex_unlock(&(s)->mu); \
    } while (0)

static unsigned http_requests(http_server *s) {
    pthread_mutex_lock(&s->mu);
    unsigned n = s->requests;
    pthread_mutex_unlock(&s->mu);
    return n;
}

static unsigned long long http_last_from(http_server *s) {
    pthread_mutex_lock(&s->mu);
    unsigned long long from = s->last_from;
    pthread_mutex_unlock(&s->mu);
    return from;
}

static bool http_last_path_is(http_server *s, const char *path) {
    pthread_mutex_lock(&s->mu);
    bool is = strcmp(s->last_path, path) == 0;
    pthread_mutex_unlock(&s->mu);
    return is;
}

static void http_send(int fd, const void *data, size_t len) {
    for (const char *p = data; len > 0;) {
        ssize_t n = send(fd, p, len, MSG_NOSIGNAL);
        if (n <= 0) return;
        p += n;
        len -= (size_t)n;
    }
}

static void http_answer(http_server *s, int fd) {
    char head[4096], path[128] = "", out[512];
    size_t n = 0;
    head[0] = '\0';
    while (n < sizeof head - 1 && !strstr(head, "\r\n\r\n")) {
        ssize_t got = recv(fd, head + n, sizeof head - 1 - n, 0);
        if (got <= 0) return;
        n += (size_t)got;
        head[n] = '\0';
    }
    pthread_mutex_lock(&s->mu);
    const char *range = strstr(head, "\r\nRange: bytes=");
    unsigned long long from = range ? strtoull(range + 15, NULL, 10) : 0;
    (void)sscanf(head, "GET %127s", path);
    s->requests++;
    s->last_from = from;
    snprintf(s->last_path, sizeof s->last_path, "%s", path);
    const char *body = s->body;
    size_t len = s->len;
    if (s->index && strcmp(path, "/index.yaml") == 0) {
        body = s->index;
        len = strlen(body);
    }
    int h;
    if (s->redirect && strcmp(path, "/moved") != 0) {
        h = snprintf(out, sizeof out, "HTTP/1.1 302 Found\r\nLocation: %s\r\nContent-Length: 5\r\n\r\nmoved",
                     s->redirect);
        http_send(fd, out, (size_t)h);
    } else if (s->status) {
        h = snprintf(out, sizeof out, "HTTP/1.1 %u No\r\nContent-Length: 2\r\n\r\nno", s->status);
        http_send(fd, out, (size_t)h);
    } else if (from > 0 && from >= len && !s->no_ranges) {
        h = snprintf(out, sizeof out, "HTTP/1.1 416 No\r\nContent-Range: bytes */%zu\r\nContent-Length: 0\r\n\r\n",
                     len);
        http_send(fd, out, (size_t)h);
    } else {
        bool part = range && !s->no_ranges;
        if (!part) from = 0;
        size_t rest = len - (size_t)from;
        h = part ? snprintf(out, sizeof out,
                            "HTTP/1.1 206 Partial\r\nContent-Range: bytes %llu-%zu/%zu\r\nContent-Length: %zu\r\n\r\n",
                            from + s->wrong_range, len - 1, len, rest)
                 : snprintf(out, sizeof out, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n", rest);
        http_send(fd, out, (size_t)h);
        http_send(fd, body + from, rest < s->cut ? rest : s->cut);
    }
    pthread_mutex_unlock(&s->mu);
}

static void *http_loop(void *arg) {
    http_server *s = arg;
    for (int fd; (fd = accept(s->fd, NULL, NULL)) >= 0;) {
        http_answer(s, fd);
        shutdown(fd, SHUT_WR);
        char rest[256];
        while (recv(fd, rest, sizeof rest, 0) > 0) continue;
        close(fd);
    }
    return NULL;
}

static void http_start(http_server *s) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    memset(s, 0, sizeof *s);
    s->cut = SIZE_MAX;
    pthread_mutex_init(&s->mu, NULL);
    s->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(s->fd, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(listen(s->fd, 64), 0);
    assert_int_equal(getsockname(s->fd, (struct sockaddr *)&a, &len), 0);
    s->port = ntohs(a.sin_port);
    assert_int_equal(pthread_create(&s->thread, NULL, http_loop, s), 0);
}

static void http_stop(http_server *s) {
    shutdown(s->fd, SHUT_RDWR);
    pthread_join(s->thread, NULL);
    close(s->fd);
    pthread_mutex_destroy(&s->mu);
}

#endif
