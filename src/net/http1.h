/* net/http1.h - a strict incremental parser of HTTP/1.1 requests (RFC 9110, RFC 9112). Inside the folder; the fuzzer
 * and the unit tests use it too. No sockets, no clocks, no allocation.
 *
 * Bytes stand in the caller's buffer, which may grow or move between calls; the parser keeps offsets. It decides at the
 * first byte that makes a request bad, not at the end of the head, so a client that sends bare line feeds is answered
 * and not timed out.
 */
#ifndef REALM_NET_HTTP1_H
#define REALM_NET_HTTP1_H

#include "net/net.h"

typedef enum realm_http1_result {
    REALM_HTTP1_MORE, /* good so far */
    REALM_HTTP1_DONE,
    REALM_HTTP1_BAD /* `status` and `why` say what to answer; then the connection closes */
} realm_http1_result;

typedef struct realm_http1_span {
    uint32_t at, len;
} realm_http1_span;

typedef struct realm_http1_head {
    realm_http_limits limits;
    uint32_t scan;      /* bytes looked at */
    uint32_t line;      /* where the current line starts */
    uint32_t n_lines;   /* complete ones, the request line included */
    uint32_t size;      /* of the whole head once DONE */
    bool skipped_empty; /* one empty line before the request line is ignored (RFC 9112, 2.2) */
    unsigned status;    /* when BAD */
    const char *why;
    realm_http1_span method, target, path, query, host;
    realm_http1_span names[REALM_HTTP_FIELDS_MAX], values[REALM_HTTP_FIELDS_MAX];
    uint32_t n_fields;
    unsigned minor;
    bool has_length, chunked, absolute, keep_alive, expect_continue;
    uint64_t content_length;
} realm_http1_head;

void realm_http1_head_init(realm_http1_head *h, const realm_http_limits *limits);
/* `data` holds everything from the first byte of this request; bytes already looked at are not looked at again. DONE:
 * the head is its first h->size bytes. */
realm_http1_result realm_http1_head_parse(realm_http1_head *h, const char *data, size_t len);

/* Decoder of a chunked body. */
typedef struct realm_http1_chunks {
    uint32_t line_max, trailer_max; /* bytes */
    uint64_t left;                  /* of the current chunk */
    uint64_t total;                 /* decoded so far */
    uint64_t max;                   /* of `total`; past it 413 */
    uint32_t line_bytes, trailer_bytes, digits;
    int state;
    unsigned status;
    const char *why;
} realm_http1_chunks;

void realm_http1_chunks_init(realm_http1_chunks *c, const realm_http_limits *limits, uint64_t max);
/* Takes bytes from data[0..len): *used were consumed, and data[*piece .. *piece + *n) of them is body (may be empty).
 * MORE with *used == len: feed more; MORE otherwise: call again. DONE: the body ended after *used. */
realm_http1_result realm_http1_chunks_feed(realm_http1_chunks *c, const char *data, size_t len, size_t *used,
                                           size_t *piece, size_t *n);

/* True for "127.0.0.1", "[::1]", any other address literal, and "localhost" (the way a Host may read on loopback). */
bool realm_http1_host_is_local(realm_http_str host);

#endif
