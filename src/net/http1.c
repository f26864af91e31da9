/* The head is read line by line; a line is judged when its LF arrives, and every byte when it is seen. What RFC 9112
 * lets a recipient forgive is not forgiven here, because each kindness is a way to make two servers in a row see
 * different requests: bare LF, bare CR, obs-fold, space before the colon, Content-Length twice or beside
 * Transfer-Encoding, lists in Content-Length, transfer codings other than chunked, more than one space in the request
 * line.
 */
#include "net/http1.h"

#include <arpa/inet.h>
#include <string.h>

/* ---- character classes (RFC 9110, 5.6.2; RFC 3986) ---- */

static bool is_digit(unsigned char c) { return c >= '0' && c <= '9'; }
static bool is_alpha(unsigned char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
static bool is_tchar(unsigned char c) { return is_alpha(c) || is_digit(c) || (c && strchr("!#$%&'*+-.^_`|~", c)); }
static bool is_uri(unsigned char c) { return is_alpha(c) || is_digit(c) || (c && strchr("-._~:/?@!$&'()*+,;=%[]", c)); }
static int hex_value(unsigned char c) {
    if (is_digit(c)) return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}
static unsigned char lower(unsigned char c) { return c >= 'A' && c <= 'Z' ? (unsigned char)(c | 0x20) : c; }
/* Field values: visible characters, space, tab, obs-text. */
static bool is_value(unsigned char c) { return c == '\t' || (c >= 0x20 && c != 0x7f); }

bool realm_http_str_is(realm_http_str s, const char *text) {
    return s.len == strlen(text) && memcmp(s.data, text, s.len) == 0;
}

bool realm_http_str_is_nocase(realm_http_str s, const char *text) {
    if (s.len != strlen(text)) return false;
    for (size_t i = 0; i < s.len; i++)
        if (lower((unsigned char)s.data[i]) != lower((unsigned char)text[i])) return false;
    return true;
}

bool realm_http_find(const realm_http_head *h, const char *lower_name, realm_http_str *value, size_t *count) {
    size_t n = 0;
    for (size_t i = 0; i < h->n_fields; i++) {
        if (!realm_http_str_is(h->fields[i].name, lower_name)) continue;
        if (n++ == 0) *value = h->fields[i].value;
    }
    if (count) *count = n;
    return n == 1;
}

void realm_http_limits_init(realm_http_limits *l) {
    *l = (realm_http_limits){.head_bytes = 32u << 10,
                             .fields = REALM_HTTP_FIELDS_MAX,
                             .target_bytes = 8u << 10,
                             .body_bytes = 32u << 20,
                             .chunk_line_bytes = 64,
                             .head_ms = 10000,
                             .body_ms = 30000,
                             .idle_ms = 75000,
                             .write_ms = 60000,
                             .connections = 10240,
                             .bodies_bytes = (uint64_t)1 << 30,
                             .out_bytes = 64u << 10};
}

/* ---- head ---- */

void realm_http1_head_init(realm_http1_head *h, const realm_http_limits *limits) {
    *h = (realm_http1_head){.limits = *limits};
    if (h->limits.fields > REALM_HTTP_FIELDS_MAX) h->limits.fields = REALM_HTTP_FIELDS_MAX;
}

static realm_http1_result bad(realm_http1_head *h, unsigned status, const char *why) {
    h->status = status;
    h->why = why;
    return REALM_HTTP1_BAD;
}

/* host [":" port] (RFC 3986, 3.2.2 without userinfo): a name or IPv4 address, or an IPv6 address in brackets. Sets the
 * host's length. */
static bool authority(const char *s, size_t len, size_t *host_len) {
    size_t i = 0;
    if (len && s[0] == '[') {
        char text[INET6_ADDRSTRLEN];
        struct in6_addr a;
        const char *close = memchr(s, ']', len);
        if (!close || (size_t)(close - s - 1) >= sizeof text) return false;
        i = (size_t)(close - s);
        memcpy(text, s + 1, i - 1);
        text[i - 1] = '\0';
        if (inet_pton(AF_INET6, text, &a) != 1) return false;
        i++;
    } else {
        while (i < len && (is_alpha((unsigned char)s[i]) || is_digit((unsigned char)s[i]) || strchr("-._~", s[i]))) i++;
    }
    *host_len = i;
    if (i == len) return true;
    if (s[i] != ':' || len - i > 6) return false;
    unsigned port = 0;
    for (i++; i < len; i++) {
        if (!is_digit((unsigned char)s[i])) return false;
        port = port * 10 + (unsigned)(s[i] - '0');
    }
    return port <= 65535;
}

/* Every '%' starts two hex digits. */
static bool percent_ok(const char *s, size_t len) {
    for (size_t i = 0; i < len; i++) {
        if (s[i] != '%') continue;
        if (len - i < 3 || hex_value((unsigned char)s[i + 1]) < 0 || hex_value((unsigned char)s[i + 2]) < 0)
            return false;
    }
    return true;
}

static realm_http1_result target(realm_http1_head *h, const char *data) {
    const char *t = data + h->target.at;
    size_t len = h->target.len, at = 0;
    realm_http_str method = {data + h->method.at, h->method.len};
    if (realm_http_str_is(method, "CONNECT")) return bad(h, 501, "CONNECT is not supported");
    if (len == 1 && t[0] == '*') {
        if (!realm_http_str_is(method, "OPTIONS")) return bad(h, 400, "target '*' belongs to OPTIONS");
        h->path = h->target;
        return REALM_HTTP1_MORE;
    }
    if (t[0] != '/') {
        /* absolute-form: the scheme is not the server's to judge beyond being HTTP's */
        static const char *const schemes[] = {"http://", "https://"};
        for (size_t i = 0; i < 2; i++) {
            size_t n = strlen(schemes[i]);
            if (len > n && realm_http_str_is_nocase((realm_http_str){t, n}, schemes[i])) at = n;
        }
        if (!at) return bad(h, 400, "the request target is neither a path nor an http URL");
        size_t end = at, host_len;
        while (end < len && t[end] != '/' && t[end] != '?') end++;
        if (end == at || !authority(t + at, end - at, &host_len) || host_len == 0)
            return bad(h, 400, "the request target has no valid host");
        h->absolute = true;
        h->host = (realm_http1_span){h->target.at + (uint32_t)at, (uint32_t)host_len};
        at = end;
    }
    if (!percent_ok(t + at, len - at)) return bad(h, 400, "a percent sign in the target does not start an escape");
    const char *q = memchr(t + at, '?', len - at);
    size_t path_end = q ? (size_t)(q - t) : len;
    h->path = (realm_http1_span){h->target.at + (uint32_t)at, (uint32_t)(path_end - at)};
    if (q) h->query = (realm_http1_span){h->target.at + (uint32_t)path_end + 1, (uint32_t)(len - path_end - 1)};
    return REALM_HTTP1_MORE;
}

/* method SP request-target SP HTTP-version (RFC 9112, 3). `s` is the line without CRLF. */
static realm_http1_result request_line(realm_http1_head *h, const char *data, uint32_t from, uint32_t to) {
    const char *s = data + from;
    size_t len = to - from, m = 0;
    while (m < len && is_tchar((unsigned char)s[m])) m++;
    if (m == 0 || m == len || s[m] != ' ') return bad(h, 400, "malformed request line");
    h->method = (realm_http1_span){from, (uint32_t)m};
    size_t t = m + 1, e = t;
    while (e < len && s[e] != ' ') e++;
    if (e - t > h->limits.target_bytes) return bad(h, 414, "the request target is too long");
    for (size_t i = t; i < e; i++)
        if (!is_uri((unsigned char)s[i])) return bad(h, 400, "a character in the request target must be escaped");
    if (e == t || e == len) return bad(h, 400, "malformed request line");
    h->target = (realm_http1_span){from + (uint32_t)t, (uint32_t)(e - t)};
    const char *v = s + e + 1;
    size_t vlen = len - e - 1;
    if (vlen != 8 || memcmp(v, "HTTP/", 5) != 0 || !is_digit((unsigned char)v[5]) || v[6] != '.' ||
        !is_digit((unsigned char)v[7]))
        return bad(h, 400, "malformed HTTP version");
    if (v[5] != '1') return bad(h, 505, "only HTTP/1.0 and HTTP/1.1 are spoken here");
    h->minor = v[7] == '0' ? 0 : 1;
    h->keep_alive = h->minor == 1;
    return target(h, data);
}

static realm_http1_result field_line(realm_http1_head *h, const char *data, uint32_t from, uint32_t to) {
    const char *s = data + from;
    size_t len = to - from, n = 0;
    if (s[0] == ' ' || s[0] == '\t') return bad(h, 400, "folded header lines are not accepted");
    while (n < len && is_tchar((unsigned char)s[n])) n++;
    if (n == 0 || n == len || s[n] != ':') return bad(h, 400, "malformed header field");
    if (h->n_fields >= h->limits.fields) return bad(h, 431, "too many header fields");
    size_t a = n + 1, b = len;
    while (a < b && (s[a] == ' ' || s[a] == '\t')) a++;
    while (b > a && (s[b - 1] == ' ' || s[b - 1] == '\t')) b--;
    h->names[h->n_fields] = (realm_http1_span){from, (uint32_t)n};
    h->values[h->n_fields] = (realm_http1_span){from + (uint32_t)a, (uint32_t)(b - a)};
    h->n_fields++;
    return REALM_HTTP1_MORE;
}

/* Calls each element of a comma-separated list of tokens. */
static bool list_has(realm_http_str v, const char *token) {
    size_t i = 0;
    while (i < v.len) {
        size_t e = i;
        while (e < v.len && v.data[e] != ',') e++;
        size_t a = i, b = e;
        while (a < b && (v.data[a] == ' ' || v.data[a] == '\t')) a++;
        while (b > a && (v.data[b - 1] == ' ' || v.data[b - 1] == '\t')) b--;
        if (realm_http_str_is_nocase((realm_http_str){v.data + a, b - a}, token)) return true;
        i = e + 1;
    }
    return false;
}

static realm_http1_result content_length(realm_http1_head *h, realm_http_str v) {
    if (h->has_length) return bad(h, 400, "more than one Content-Length");
    if (v.len == 0) return bad(h, 400, "malformed Content-Length");
    uint64_t n = 0;
    bool huge = false;
    for (size_t i = 0; i < v.len; i++) {
        if (!is_digit((unsigned char)v.data[i])) return bad(h, 400, "malformed Content-Length");
        huge |= !realm_mul_u64(n, 10, &n) || !realm_add_u64(n, (uint64_t)(v.data[i] - '0'), &n);
    }
    h->has_length = true;
    h->content_length = huge ? UINT64_MAX : n;
    return REALM_HTTP1_MORE;
}

static realm_http1_result transfer_encoding(realm_http1_head *h, realm_http_str v) {
    if (h->chunked) return bad(h, 400, "more than one Transfer-Encoding");
    if (h->minor == 0) return bad(h, 400, "Transfer-Encoding in HTTP/1.0");
    if (realm_http_str_is_nocase(v, "chunked")) {
        h->chunked = true;
        return REALM_HTTP1_MORE;
    }
    /* A coding after or before chunked, or twice, leaves the end of the body in doubt; an unknown one alone is merely
     * unknown (RFC 9112, 6.1). */
    if (v.len == 0 || list_has(v, "chunked") || memchr(v.data, ',', v.len))
        return bad(h, 400, "the only transfer coding accepted is chunked, alone");
    return bad(h, 501, "unknown transfer coding");
}

/* The fields that decide about framing and routing, once all lines are there. */
static realm_http1_result semantics(realm_http1_head *h, const char *data) {
    unsigned hosts = 0;
    bool te = false;
    for (uint32_t i = 0; i < h->n_fields; i++) {
        realm_http_str name = {data + h->names[i].at, h->names[i].len};
        realm_http_str v = {data + h->values[i].at, h->values[i].len};
        realm_http1_result r = REALM_HTTP1_MORE;
        if (realm_http_str_is_nocase(name, "host")) {
            size_t host_len;
            if (hosts++) return bad(h, 400, "more than one Host");
            if (!authority(v.data, v.len, &host_len)) return bad(h, 400, "malformed Host");
            if (!h->absolute) h->host = (realm_http1_span){h->values[i].at, (uint32_t)host_len};
        } else if (realm_http_str_is_nocase(name, "content-length")) {
            r = content_length(h, v);
        } else if (realm_http_str_is_nocase(name, "transfer-encoding")) {
            te = true;
            r = transfer_encoding(h, v);
        } else if (realm_http_str_is_nocase(name, "connection")) {
            if (list_has(v, "close"))
                h->keep_alive = false;
            else if (h->minor == 0 && list_has(v, "keep-alive"))
                h->keep_alive = true;
        } else if (realm_http_str_is_nocase(name, "expect") && h->minor == 1) {
            if (!realm_http_str_is_nocase(v, "100-continue")) return bad(h, 417, "unknown expectation");
            h->expect_continue = true;
        }
        if (r == REALM_HTTP1_BAD) return r;
    }
    if (te && h->has_length) return bad(h, 400, "Transfer-Encoding together with Content-Length");
    if (hosts == 0 && h->minor == 1) return bad(h, 400, "Host is missing");
    /* "close" in any Connection field wins over an earlier keep-alive of HTTP/1.0 */
    for (uint32_t i = 0; i < h->n_fields; i++)
        if (realm_http_str_is_nocase((realm_http_str){data + h->names[i].at, h->names[i].len}, "connection") &&
            list_has((realm_http_str){data + h->values[i].at, h->values[i].len}, "close"))
            h->keep_alive = false;
    return REALM_HTTP1_DONE;
}

realm_http1_result realm_http1_head_parse(realm_http1_head *h, const char *data, size_t len) {
    while (h->scan < len) {
        if (h->scan >= h->limits.head_bytes) {
            if (h->n_lines == 0) return bad(h, 414, "the request line is too long");
            return bad(h, 431, "the head is too long");
        }
        unsigned char c = (unsigned char)data[h->scan++];
        bool after_cr = h->scan >= 2 && h->scan - 1 > h->line && data[h->scan - 2] == '\r';
        if (c != '\n') {
            if (after_cr) return bad(h, 400, "a carriage return without a line feed");
            if (c != '\r' && !is_value(c)) return bad(h, 400, "a control character in the head");
            /* The target's limit holds before the line ends, and obs-fold and a first byte that no method has are known
             * at once. */
            if (h->n_lines == 0 && h->scan - h->line > h->limits.target_bytes + 64)
                return bad(h, 414, "the request target is too long");
            if (h->n_lines == 0 && h->scan - 1 == h->line && c != '\r' && !is_tchar(c))
                return bad(h, 400, "malformed request line");
            continue;
        }
        if (!after_cr) return bad(h, 400, "a line feed without a carriage return");
        uint32_t from = h->line, to = h->scan - 2;
        h->line = h->scan;
        realm_http1_result r;
        if (h->n_lines == 0) {
            if (from == to) {
                if (h->skipped_empty) return bad(h, 400, "empty lines before the request line");
                h->skipped_empty = true;
                continue;
            }
            r = request_line(h, data, from, to);
        } else if (from == to) {
            h->size = h->scan;
            return semantics(h, data);
        } else {
            r = field_line(h, data, from, to);
        }
        if (r == REALM_HTTP1_BAD) return r;
        h->n_lines++;
    }
    return REALM_HTTP1_MORE;
}

/* ---- chunked ---- (RFC 9112, 7.1)
 *
 *   SIZE --CRLF--> DATA --all--> DATA_CR --> DATA_LF --> SIZE
 *    | ';'  ^                                     size 0: TRAILER --empty line--> DONE
 *    v      |
 *   EXT ----+
 */
enum { C_SIZE, C_PAD, C_EXT, C_SIZE_LF, C_DATA, C_DATA_CR, C_DATA_LF, C_TRAILER, C_NAME, C_VALUE, C_LINE_LF, C_END_LF };

void realm_http1_chunks_init(realm_http1_chunks *c, const realm_http_limits *limits, uint64_t max) {
    *c = (realm_http1_chunks){
        .line_max = limits->chunk_line_bytes, .trailer_max = limits->head_bytes, .max = max, .state = C_SIZE};
}

static realm_http1_result bad_chunk(realm_http1_chunks *c, unsigned status, const char *why) {
    c->status = status;
    c->why = why;
    return REALM_HTTP1_BAD;
}

/* One byte of framing. */
static realm_http1_result chunk_byte(realm_http1_chunks *c, unsigned char b) {
    switch (c->state) {
    case C_SIZE: {
        int v = hex_value(b);
        if (v >= 0) {
            if (++c->digits > 16) return bad_chunk(c, 400, "malformed chunk size");
            c->left = c->left << 4 | (unsigned)v;
            return REALM_HTTP1_MORE;
        }
        if (c->digits == 0) return bad_chunk(c, 400, "malformed chunk size");
    } /* fallthrough */
    case C_PAD: /* spaces before ';' only */
        if (b == '\r' && c->state == C_SIZE)
            c->state = C_SIZE_LF;
        else if (b == ';')
            c->state = C_EXT;
        else if (b == ' ' || b == '\t')
            c->state = C_PAD;
        else
            return bad_chunk(c, 400, "malformed chunk size");
        return REALM_HTTP1_MORE;
    case C_EXT:
        if (b == '\r')
            c->state = C_SIZE_LF;
        else if (!is_value(b))
            return bad_chunk(c, 400, "malformed chunk extension");
        return REALM_HTTP1_MORE;
    case C_SIZE_LF:
        if (b != '\n') return bad_chunk(c, 400, "malformed chunk line");
        if (c->left > c->max - c->total) return bad_chunk(c, 413, "the body is too large");
        c->state = c->left ? C_DATA : C_TRAILER;
        return REALM_HTTP1_MORE;
    case C_DATA_CR:
        if (b != '\r') return bad_chunk(c, 400, "a chunk does not end where its size says");
        c->state = C_DATA_LF;
        return REALM_HTTP1_MORE;
    case C_DATA_LF:
        if (b != '\n') return bad_chunk(c, 400, "a chunk does not end where its size says");
        c->state = C_SIZE;
        c->digits = 0;
        c->line_bytes = 0;
        return REALM_HTTP1_MORE;
    case C_TRAILER: /* start of a trailer line */
        if (b == '\r') {
            c->state = C_END_LF;
            return REALM_HTTP1_MORE;
        }
        c->state = C_NAME;
        if (!is_tchar(b)) return bad_chunk(c, 400, "malformed trailer");
        return REALM_HTTP1_MORE;
    case C_NAME:
        if (b == ':')
            c->state = C_VALUE;
        else if (!is_tchar(b))
            return bad_chunk(c, 400, "malformed trailer");
        return REALM_HTTP1_MORE;
    case C_VALUE:
        if (b == '\r')
            c->state = C_LINE_LF;
        else if (!is_value(b))
            return bad_chunk(c, 400, "malformed trailer");
        return REALM_HTTP1_MORE;
    case C_LINE_LF:
        if (b != '\n') return bad_chunk(c, 400, "malformed trailer");
        c->state = C_TRAILER;
        return REALM_HTTP1_MORE;
    default: /* C_END_LF */
        if (b != '\n') return bad_chunk(c, 400, "malformed end of the body");
        return REALM_HTTP1_DONE;
    }
}

realm_http1_result realm_http1_chunks_feed(realm_http1_chunks *c, const char *data, size_t len, size_t *used,
                                           size_t *piece, size_t *n) {
    size_t i = 0;
    *n = *piece = 0;
    while (i < len) {
        if (c->state == C_DATA) {
            size_t take = c->left < len - i ? (size_t)c->left : len - i;
            *piece = i;
            *n = take;
            *used = i + take;
            c->left -= take;
            c->total += take;
            if (c->left == 0) c->state = C_DATA_CR;
            return REALM_HTTP1_MORE;
        }
        if (c->state < C_DATA) {
            if (++c->line_bytes > c->line_max) return bad_chunk(c, 400, "a chunk line is too long");
        } else if (c->state >= C_TRAILER) {
            if (++c->trailer_bytes > c->trailer_max) return bad_chunk(c, 431, "the trailers are too long");
        }
        realm_http1_result r = chunk_byte(c, (unsigned char)data[i++]);
        if (r != REALM_HTTP1_MORE) {
            *used = i;
            return r;
        }
    }
    *used = i;
    return REALM_HTTP1_MORE;
}

bool realm_http1_host_is_local(realm_http_str host) {
    if (realm_http_str_is_nocase(host, "localhost")) return true;
    if (host.len && host.data[0] == '[') return true; /* checked to be an address by the parser */
    char text[INET_ADDRSTRLEN];
    struct in_addr a;
    if (host.len == 0 || host.len >= sizeof text) return false;
    memcpy(text, host.data, host.len);
    text[host.len] = '\0';
    return inet_pton(AF_INET, text, &a) == 1;
}
