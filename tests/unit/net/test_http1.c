/* The parser alone: what is accepted and how it is read, what is refused, and that neither depends on how the bytes
 * arrive. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/base.h"
#include "net/bad_requests.h"
#include "net/http1.h"

/* Head and body of one request, fed `step` bytes at a time (0: all). Returns the status, 0 when more is needed, 1 when
 * it is whole. */
static unsigned parse(const char *bytes, size_t len, size_t step, realm_http1_head *h, char *body, size_t *body_len) {
    realm_http_limits limits;
    realm_http_limits_init(&limits);
    realm_http1_head_init(h, &limits);
    realm_http1_result r = REALM_HTTP1_MORE;
    size_t have = 0;
    if (body_len) *body_len = 0;
    while (r == REALM_HTTP1_MORE && have < len) {
        have = step == 0 || len - have < step ? len : have + step;
        /* a buffer of exactly this size, so that a sanitizer sees a read past it */
        char *exact = malloc(have);
        memcpy(exact, bytes, have);
        r = realm_http1_head_parse(h, exact, have);
        free(exact);
    }
    if (r == REALM_HTTP1_BAD) return h->status;
    if (r == REALM_HTTP1_MORE) return 0;
    if (!h->chunked) return h->content_length > limits.body_bytes ? 413 : 1;
    realm_http1_chunks c;
    realm_http1_chunks_init(&c, &limits, limits.body_bytes);
    size_t at = h->size, end = at;
    r = REALM_HTTP1_MORE;
    while (r == REALM_HTTP1_MORE && at < len) {
        if (at == end) end = step == 0 || len - end < step ? len : end + step;
        size_t used = 0, piece, n;
        char *exact = malloc(end - at);
        memcpy(exact, bytes + at, end - at);
        r = realm_http1_chunks_feed(&c, exact, end - at, &used, &piece, &n);
        if (n && body) memcpy(body + *body_len, exact + piece, n);
        if (body_len) *body_len += n;
        free(exact);
        at += used;
    }
    return r == REALM_HTTP1_BAD ? c.status : r == REALM_HTTP1_DONE ? 1 : 0;
}

static void check_bad(void *user, const char *what, const char *bytes, size_t len, unsigned status, bool body) {
    (void)user;
    (void)body;
    realm_http1_head *h = malloc(sizeof *h);
    const size_t steps[] = {0, 1, 2, 3, 7, 1000};
    for (size_t i = 0; i < REALM_ARRAY_LEN(steps); i++) {
        if (len > 5000 && steps[i] && steps[i] < 1000) continue;
        unsigned got = parse(bytes, len, steps[i], h, NULL, &(size_t){0});
        if (got != status) fail_msg("%s: %u, not %u (in steps of %zu)", what, got, status, steps[i]);
    }
    free(h);
}

static void malformed_requests_are_refused(void **state) {
    (void)state;
    size_t n = each_bad_request(check_bad, NULL);
    assert_true(n > 700);
}

static realm_http_str at(const char *bytes, realm_http1_span s) { return (realm_http_str){bytes + s.at, s.len}; }
#define assert_str(s, text) assert_true(realm_http_str_is(s, text))

static void good_heads_are_read(void **state) {
    (void)state;
    static const char request[] = "\r\nPOST http://Example.org:81/v1/%41?x=1&y HTTP/1.1\r\n"
                                  "hOST: other\r\n"
                                  "Accept:\r\n"
                                  "X-A:  \t a b\t \r\n"
                                  "X-B:v\xE9\r\n"
                                  "Content-Length: 0005\r\n"
                                  "Expect: 100-Continue\r\n"
                                  "Connection: foo , CLOSE\r\n\r\nhello";
    realm_http1_head *h = malloc(sizeof *h);
    for (size_t step = 0; step < 9; step++) {
        assert_int_equal(parse(request, sizeof request - 1, step, h, NULL, NULL), 1);
        assert_int_equal(h->size, sizeof request - 1 - 5);
        assert_str(at(request, h->method), "POST");
        assert_str(at(request, h->path), "/v1/%41");
        assert_str(at(request, h->query), "x=1&y");
        assert_str(at(request, h->host), "Example.org");
        assert_int_equal(h->n_fields, 7);
        assert_str(at(request, h->values[1]), "");
        assert_str(at(request, h->values[2]), "a b");
        assert_str(at(request, h->values[3]), "v\xE9");
        assert_true(h->has_length && h->expect_continue && !h->keep_alive && !h->chunked);
        assert_int_equal(h->content_length, 5);
    }
    static const struct {
        const char *bytes;
        bool keep;
        const char *host;
    } more[] = {
        {"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", true, "[::1]"},
        {"GET / HTTP/1.1\r\nHost:\r\n\r\n", true, ""},
        {"GET / HTTP/1.0\r\n\r\n", false, ""},
        {"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", true, ""},
        {"GET / HTTP/1.0\r\nConnection: close\r\nConnection: keep-alive\r\n\r\n", false, ""},
        {"GET / HTTP/1.1\r\nConnection: keep-alive, close\r\nHost: a\r\n\r\n", false, "a"},
        {"GET / HTTP/1.0\r\nExpect: nonsense\r\n\r\n", false, ""},
        {"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", true, "a"},
        {"GET / HTTP/1.9\r\nHost: a.b-c_d:65535\r\n\r\n", true, "a.b-c_d"},
        {"GET HTTPS://h?q HTTP/1.1\r\nHost: x\r\n\r\n", true, "h"},
    };
    for (size_t i = 0; i < REALM_ARRAY_LEN(more); i++) {
        unsigned r = parse(more[i].bytes, strlen(more[i].bytes), 0, h, NULL, NULL);
        if (r != 1) fail_msg("%s: %u %s", more[i].bytes, r, h->why);
        assert_int_equal(h->keep_alive, more[i].keep);
        assert_str(at(more[i].bytes, h->host), more[i].host);
    }
    free(h);
}

static void limits_are_exact(void **state) {
    (void)state;
    realm_http1_head *h = malloc(sizeof *h);
    char *r = malloc(100000);
    for (int over = 0; over < 2; over++) {
        int n = sprintf(r, "GET /%0*d HTTP/1.1\r\nHost: a\r\n\r\n", 8191 + over, 0);
        assert_int_equal(parse(r, (size_t)n, 0, h, NULL, NULL), over ? 414 : 1);
        int fixed = (int)strlen("GET / HTTP/1.1\r\nHost: a\r\nX: \r\n\r\n");
        n = sprintf(r, "GET / HTTP/1.1\r\nHost: a\r\nX: %0*d\r\n\r\n", 32768 - fixed + over, 0);
        assert_int_equal(n, 32768 + over);
        assert_int_equal(parse(r, (size_t)n, 0, h, NULL, NULL), over ? 431 : 1);
        n = sprintf(r, "GET / HTTP/1.1\r\nHost: a\r\n");
        for (int i = 0; i < 127 + over; i++) n += sprintf(r + n, "X: 1\r\n");
        n += sprintf(r + n, "\r\n");
        assert_int_equal(parse(r, (size_t)n, 0, h, NULL, NULL), over ? 431 : 1);
        n = sprintf(r, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2;%0*d\r\nhi\r\n0\r\n\r\n",
                    60 + over, 0);
        char body[8];
        size_t len;
        assert_int_equal(parse(r, (size_t)n, 0, h, body, &len), over ? 400 : 1);
    }
    static const char *const lengths[] = {"33554432", "33554433", "18446744073709551615", "18446744073709551616",
                                          "99999999999999999999999999999999"};
    for (size_t i = 0; i < REALM_ARRAY_LEN(lengths); i++) {
        int n = sprintf(r, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %s\r\n\r\n", lengths[i]);
        assert_int_equal(parse(r, (size_t)n, 0, h, NULL, NULL), i ? 413 : 1);
    }
    free(r);
    free(h);
}

static void chunks_are_joined(void **state) {
    (void)state;
    static const char request[] = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n"
                                  "2\r\nhe\r\n0003;a=\"b\";c\r\nllo\r\nA \t;x\r\n, world!!\n\r\n"
                                  "000;last\r\nTrailer: x\r\nOther:\r\n\r\n";
    realm_http1_head *h = malloc(sizeof *h);
    for (size_t step = 0; step < 40; step++) {
        char body[64];
        size_t len;
        assert_int_equal(parse(request, sizeof request - 1, step, h, body, &len), 1);
        assert_int_equal(len, 15);
        assert_memory_equal(body, "hello, world!!\n", 15);
    }
    /* every cut of it needs more */
    for (size_t cut = 0; cut < sizeof request - 1; cut++) {
        char body[64];
        size_t len;
        assert_int_equal(parse(request, cut, 0, h, body, &len), 0);
    }
    free(h);
}

static void local_hosts(void **state) {
    (void)state;
    static const char *const yes[] = {"localhost", "LocalHost", "127.0.0.1", "[::1]", "192.168.1.2"};
    static const char *const no[] = {"",      "localhost.evil.com", "evil.com", "127.0.0.1.evil.com", "0x7f000001",
                                     "1.2.3", "2130706433"};
    for (size_t i = 0; i < REALM_ARRAY_LEN(yes); i++)
        assert_true(realm_http1_host_is_local((realm_http_str){yes[i], strlen(yes[i])}));
    for (size_t i = 0; i < REALM_ARRAY_LEN(no); i++)
        assert_false(realm_http1_host_is_local((realm_http_str){no[i], strlen(no[i])}));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(malformed_requests_are_refused),
        cmocka_unit_test(good_heads_are_read),
        cmocka_unit_test(limits_are_exact),
        cmocka_unit_test(chunks_are_joined),
        cmocka_unit_test(local_hosts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
