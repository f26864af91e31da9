/* Malformed HTTP requests, made by rule, with the status that each must get. Used twice: against the parser alone and
 * against a server on loopback. */
#ifndef TESTS_NET_BAD_REQUESTS_H
#define TESTS_NET_BAD_REQUESTS_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* `what` names the case; `body` is true where the fault lies after the head. */
typedef void (*bad_request_fn)(void *user, const char *what, const char *bytes, size_t len, unsigned status, bool body);

typedef struct bad_requests {
    bad_request_fn fn;
    void *user;
    size_t n;
    char bytes[80000], what[160];
} bad_requests;

#define BAD_HOST "Host: localhost\r\n"

static void bad_raw(bad_requests *b, const char *what, const char *bytes, size_t len, unsigned status, bool body) {
    b->n++;
    b->fn(b->user, what, bytes, len, status, body);
}

static void bad(bad_requests *b, unsigned status, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(b->bytes, sizeof b->bytes, fmt, ap);
    va_end(ap);
    snprintf(b->what, sizeof b->what, "%.100s", b->bytes);
    bad_raw(b, b->what, b->bytes, (size_t)n, status, false);
}

static void bad_body(bad_requests *b, unsigned status, const char *what, const char *chunks) {
    int n = snprintf(b->bytes, sizeof b->bytes, "POST / HTTP/1.1\r\n" BAD_HOST "Transfer-Encoding: chunked\r\n\r\n%s",
                     chunks);
    bad_raw(b, what, b->bytes, (size_t)n, status, true);
}

/* A byte put into a template at the mark '\1'. */
static void bad_byte(bad_requests *b, unsigned status, const char *template, unsigned char byte) {
    size_t n = strlen(template);
    memcpy(b->bytes, template, n);
    *(char *)memchr(b->bytes, '\1', n) = (char)byte;
    snprintf(b->what, sizeof b->what, "byte 0x%02x in: %.100s", byte, template);
    bad_raw(b, b->what, b->bytes, n, status, false);
}

static size_t each_bad_request(bad_request_fn fn, void *user) {
    bad_requests *b = calloc(1, sizeof *b);
    b->fn = fn;
    b->user = user;

    /* request line */
    static const char *const lines[] = {"GET",
                                        "GET /",
                                        "GET / ",
                                        "GET  / HTTP/1.1",
                                        "GET /  HTTP/1.1",
                                        "GET / HTTP/1.1 ",
                                        " GET / HTTP/1.1",
                                        "GET\t/\tHTTP/1.1",
                                        "GET / a HTTP/1.1",
                                        "GET / HTTP/1",
                                        "GET / HTTP/1.",
                                        "GET / HTTP/.1",
                                        "GET / HTTP/11.1",
                                        "GET / HTTP/1.11",
                                        "GET / HTTP/+1.1",
                                        "GET / HTTP/1,1",
                                        "GET / http/1.1",
                                        "GET / Http/1.1",
                                        "GET / HTTPS/1.1",
                                        "GET / HTTP1.1",
                                        "GET / HTTP /1.1",
                                        "GET / ICY/1.1",
                                        "GET foo HTTP/1.1",
                                        "GET foo/bar HTTP/1.1",
                                        "GET ../x HTTP/1.1",
                                        "GET * HTTP/1.1",
                                        "POST * HTTP/1.1",
                                        "GET http:// HTTP/1.1",
                                        "GET http:///x HTTP/1.1",
                                        "GET http://a:b/ HTTP/1.1",
                                        "GET http://a:99999/ HTTP/1.1",
                                        "GET http://u@h/ HTTP/1.1",
                                        "GET http://[::1/ HTTP/1.1",
                                        "GET http://[zz]/ HTTP/1.1",
                                        "GET ftp://localhost/ HTTP/1.1",
                                        "GET mailto:x HTTP/1.1",
                                        "GET /%% HTTP/1.1",
                                        "GET /%%2 HTTP/1.1",
                                        "GET /%%zz HTTP/1.1",
                                        "GET /?%%g0 HTTP/1.1",
                                        "GET /#frag HTTP/1.1",
                                        "GET /a\\b HTTP/1.1",
                                        "G(T / HTTP/1.1",
                                        "GET: / HTTP/1.1",
                                        "GET/ HTTP/1.1",
                                        "\"GET\" / HTTP/1.1"};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        char line[128];
        snprintf(line, sizeof line, lines[i], 0); /* turns %% into % */
        bad(b, 400, "%s\r\n" BAD_HOST "\r\n", line);
    }
    static const char *const versions[] = {"HTTP/0.9", "HTTP/2.0", "HTTP/3.0", "HTTP/9.9", "HTTP/0.0"};
    for (size_t i = 0; i < sizeof versions / sizeof *versions; i++)
        bad(b, 505, "GET / %s\r\n" BAD_HOST "\r\n", versions[i]);
    bad(b, 505, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    bad(b, 501, "CONNECT localhost:80 HTTP/1.1\r\n" BAD_HOST "\r\n");

    /* every byte that does not belong, where it does not belong */
    for (unsigned c = 0; c < 256; c++) {
        bool alnum = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        bool token = alnum || (c && strchr("!#$%&'*+-.^_`|~", (int)c));
        bool uri = alnum || (c && strchr("-._~:/?@!$&'()*+,;=[]", (int)c));
        bool control = (c < 0x20 && c != '\t') || c == 0x7f;
        if (!token && c != ' ' && c != '\r' && c != '\n')
            bad_byte(b, 400, "G\1T / HTTP/1.1\r\n" BAD_HOST "\r\n", (unsigned char)c);
        if (!uri && c != ' ' && c != '%') bad_byte(b, 400, "GET /a\1b HTTP/1.1\r\n" BAD_HOST "\r\n", (unsigned char)c);
        if (!token && c != ':') bad_byte(b, 400, "GET / HTTP/1.1\r\n" BAD_HOST "X\1Y: 1\r\n\r\n", (unsigned char)c);
        if (control) bad_byte(b, 400, "GET / HTTP/1.1\r\n" BAD_HOST "X: a\1b\r\n\r\n", (unsigned char)c);
    }

    /* line ends and folding */
    bad(b, 400, "GET / HTTP/1.1\n" BAD_HOST "\r\n");
    bad(b, 400, "GET / HTTP/1.1\nHost: localhost\n\n");
    bad(b, 400, "GET / HTTP/1.1\r\nHost: localhost\n\r\n");
    bad(b, 400, "GET / HTTP/1.1\r\n" BAD_HOST "\n");
    bad(b, 400, "GET / HTTP/1.1\rHost: localhost\r\r");
    bad(b, 400, "GET / HTTP/1.1\r\r\n" BAD_HOST "\r\n");
    bad(b, 400, "GET / HTTP/1.1\r\n" BAD_HOST "X: a\r b\r\n\r\n");
    bad(b, 400, "GET / HTTP/1.1\r\n" BAD_HOST "X: a\r\n b\r\n\r\n");
    bad(b, 400, "GET / HTTP/1.1\r\n" BAD_HOST "X: a\r\n\tb\r\n\r\n");
    bad(b, 400, "GET / HTTP/1.1\r\n Host: localhost\r\n\r\n");
    bad(b, 400, "GET / HTTP/1.1\r\n\tHost: localhost\r\n\r\n");
    bad(b, 400, "\r\n\r\nGET / HTTP/1.1\r\n" BAD_HOST "\r\n");
    bad(b, 400, "\nGET / HTTP/1.1\r\n" BAD_HOST "\r\n");

    /* fields */
    bad(b, 400, "GET / HTTP/1.1\r\n" BAD_HOST "X : 1\r\n\r\n");
    bad(b, 400, "GET / HTTP/1.1\r\n" BAD_HOST "X\t: 1\r\n\r\n");
    bad(b, 400, "GET / HTTP/1.1\r\nHost : localhost\r\n\r\n");
    bad(b, 400, "GET / HTTP/1.1\r\n" BAD_HOST ": 1\r\n\r\n");
    bad(b, 400, "GET / HTTP/1.1\r\n" BAD_HOST "X\r\n\r\n");
    bad(b, 400, "GET / HTTP/1.1\r\n" BAD_HOST "X 1\r\n\r\n");

    /* Host */
    bad(b, 400, "GET / HTTP/1.1\r\n\r\n");
    bad(b, 400, "GET http://localhost/ HTTP/1.1\r\n\r\n");
    bad(b, 400, "GET / HTTP/1.1\r\n" BAD_HOST BAD_HOST "\r\n");
    bad(b, 400, "GET / HTTP/1.1\r\n" BAD_HOST "host: example.org\r\n\r\n");
    bad(b, 400, "GET / HTTP/1.0\r\n" BAD_HOST BAD_HOST "\r\n");
    static const char *const hosts[] = {"a b",      "a/b",         "a,b",       "user@a", "a:b",   "a:99999", "a:1:2",
                                        "[::1",     "[::1]x",      "[1.2.3.4]", "[::g]",  "::1",   "a:-1",    "a?b",
                                        "a:123456", "local\"host", "(a)",       "{a}",    "a%20b", "a\\b",    "[]"};
    for (size_t i = 0; i < sizeof hosts / sizeof *hosts; i++)
        bad(b, 400, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", hosts[i]);

    /* Content-Length */
    static const char *const lengths[] = {"",   "-1",    "+1", "1 1", "1,1",  "1, 1",     "0x1", "1.0", "1e3", "a",
                                          "1a", "\"1\"", "1;", ";1",  "1\t1", "\xc2\xb2", "٣",   "--1", "+-1", "0 0"};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
        bad(b, 400, "POST / HTTP/1.1\r\n" BAD_HOST "Content-Length: %s\r\n\r\n", lengths[i]);
    bad(b, 400, "POST / HTTP/1.1\r\n" BAD_HOST "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello");
    bad(b, 400, "POST / HTTP/1.1\r\n" BAD_HOST "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello");
    bad(b, 400, "POST / HTTP/1.1\r\n" BAD_HOST "Content-Length: 0\r\ncontent-length: 5\r\n\r\nhello");
    bad(b, 400, "GET / HTTP/1.1\r\n" BAD_HOST "Content-Length: 0\r\nContent-Length: 0\r\n\r\n");

    /* Transfer-Encoding, and smuggling with both */
    static const char *const codings[] = {"chunked, chunked", "chunked,",          ",chunked",          "gzip, chunked",
                                          "chunked, gzip",    "identity, chunked", "chunked, identity", "",
                                          "gzip, deflate",    "chunked ,x"};
    for (size_t i = 0; i < sizeof codings / sizeof *codings; i++)
        bad(b, 400, "POST / HTTP/1.1\r\n" BAD_HOST "Transfer-Encoding: %s\r\n\r\n0\r\n\r\n", codings[i]);
    static const char *const unknown[] = {"gzip",
                                          "identity",
                                          "deflate",
                                          "xchunked",
                                          "chunkedx",
                                          "chunked;q=1",
                                          "\"chunked\"",
                                          "chunk",
                                          "\x0b"
                                          "chunked",
                                          "chunked\xa0"};
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++)
        bad(b, unknown[i][0] == '\x0b' ? 400 : 501,
            "POST / HTTP/1.1\r\n" BAD_HOST "Transfer-Encoding: %s\r\n\r\n0\r\n\r\n", unknown[i]);
    static const char *const names[] = {"Transfer-Encoding", "transfer-encoding", "TRANSFER-ENCODING"};
    for (size_t i = 0; i < 3; i++) {
        bad(b, 400, "POST / HTTP/1.1\r\n" BAD_HOST "%s: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", names[i]);
        bad(b, 400, "POST / HTTP/1.1\r\n" BAD_HOST "Content-Length: 5\r\n%s: chunked\r\n\r\n0\r\n\r\n", names[i]);
        bad(b, 400, "POST / HTTP/1.1\r\n" BAD_HOST "Content-Length: 0\r\n%s: CHUNKED\r\n\r\n0\r\n\r\n", names[i]);
        bad(b, 400, "POST / HTTP/1.1\r\n" BAD_HOST "%s: chunked\r\n%s: chunked\r\n\r\n0\r\n\r\n", names[i],
            names[2 - i]);
        bad(b, 400, "POST / HTTP/1.0\r\n" BAD_HOST "%s: chunked\r\n\r\n0\r\n\r\n", names[i]);
        bad(b, 400, "POST / HTTP/1.1\r\n" BAD_HOST "%s : chunked\r\n\r\n0\r\n\r\n", names[i]);
    }
    bad(b, 400, "POST / HTTP/1.1\r\n" BAD_HOST "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n");

    /* expectations */
    bad(b, 417, "POST / HTTP/1.1\r\n" BAD_HOST "Content-Length: 1\r\nExpect: 200-ok\r\n\r\n");
    bad(b, 417, "POST / HTTP/1.1\r\n" BAD_HOST "Content-Length: 1\r\nExpect: 100-continue, x\r\n\r\n");
    bad(b, 417, "GET / HTTP/1.1\r\n" BAD_HOST "Expect:\r\n\r\n");

    /* sizes */
    char *big = malloc(70000);
    memset(big, 'a', 70000);
    big[69999] = '\0';
    bad(b, 414, "GET /%.9000s HTTP/1.1\r\n" BAD_HOST "\r\n", big);
    bad(b, 414, "GET /%.8192s HTTP/1.1\r\n" BAD_HOST "\r\n", big);
    bad(b, 414, "GET /%.40000s HTTP/1.1\r\n" BAD_HOST "\r\n", big);
    bad(b, 414, "%.40000s", big);
    bad(b, 431, "GET / HTTP/1.1\r\n" BAD_HOST "X: %.33000s\r\n\r\n", big);
    bad(b, 431, "GET / HTTP/1.1\r\n" BAD_HOST "%.33000s: x\r\n\r\n", big);
    size_t at = (size_t)snprintf(b->bytes, sizeof b->bytes, "GET / HTTP/1.1\r\n" BAD_HOST);
    for (int i = 0; i < 128; i++) at += (size_t)snprintf(b->bytes + at, sizeof b->bytes - at, "X%d: 1\r\n", i);
    at += (size_t)snprintf(b->bytes + at, sizeof b->bytes - at, "\r\n");
    bad_raw(b, "129 fields", b->bytes, at, 431, false);
    free(big);

    /* chunked bodies */
    static const char *const chunks[] = {"-2\r\nhi\r\n0\r\n\r\n",
                                         "+2\r\nhi\r\n0\r\n\r\n",
                                         "0x2\r\nhi\r\n0\r\n\r\n",
                                         " 2\r\nhi\r\n0\r\n\r\n",
                                         "2 \r\nhi\r\n0\r\n\r\n",
                                         "2\t\r\nhi\r\n0\r\n\r\n",
                                         "g\r\n",
                                         "\r\n",
                                         ";a\r\n",
                                         "2\nhi\r\n0\r\n\r\n",
                                         "2\r\nhi\n0\r\n\r\n",
                                         "2\r\nhi0\r\n\r\n",
                                         "2\r\nhiX\r\n0\r\n\r\n",
                                         "2\r\nhi\r0\r\n\r\n",
                                         "2\rhi\r\n0\r\n\r\n",
                                         "2\r\nh\r\n0\r\n\r\n",
                                         "2\r\nhii\r\n0\r\n\r\n",
                                         "0\r\n\n",
                                         "0\n\n",
                                         "0\r\n\rX",
                                         "2;a\rb\r\nhi\r\n0\r\n\r\n",
                                         "2;\x01\r\nhi\r\n0\r\n\r\n",
                                         "2;a\nhi\r\n0\r\n\r\n",
                                         "0\r\n bad: 1\r\n\r\n",
                                         "0\r\nbad\r\n\r\n",
                                         "0\r\nbad : 1\r\n\r\n",
                                         "0\r\n: 1\r\n\r\n",
                                         "0\r\na: \x02\r\n\r\n",
                                         "0\r\na: 1\n\r\n",
                                         "00000000000000002\r\nhi\r\n",
                                         "2,2\r\nhi\r\n",
                                         "2\r\nhi\r\n-0\r\n\r\n",
                                         "2\r\nhi\r\n0 \r\n\r\n",
                                         "2.0\r\nhi\r\n",
                                         "1_0\r\n",
                                         "2 ;a\rx"};
    for (size_t i = 0; i < sizeof chunks / sizeof *chunks; i++) bad_body(b, 400, chunks[i], chunks[i]);
    bad_body(b, 400, "chunk line of 65 bytes",
             "2;aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\nhi\r\n0\r\n\r\n");
    static const char *const huge[] = {
        "2000001\r\n",          "7fffffff\r\n",         "ffffffff\r\n",         "7fffffffffffffff\r\n",
        "8000000000000000\r\n", "ffffffffffffffff\r\n", "fffffffffffffffe\r\n", "FFFFFFFFFFFFFFFF;x=y\r\n"};
    for (size_t i = 0; i < sizeof huge / sizeof *huge; i++) bad_body(b, 413, huge[i], huge[i]);
    bad_body(b, 413, "one byte, then a size that overflows the sum", "1\r\nx\r\nffffffffffffffff\r\n");

    size_t n = b->n;
    free(b);
    return n;
}

#endif
