/* Any bytes as a stream of HTTP requests: the result must not depend on how the bytes are cut, nothing is read past
 * them, and what is accepted must satisfy the rules that smuggling lives from breaking. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "net/http1.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct outcome {
    int result;
    unsigned status;
    size_t consumed, body;
    uint64_t hash; /* of the body's bytes */
} outcome;

static void require(int holds) {
    if (!holds) abort();
}

static void check_head(const realm_http1_head *h, const char *d) {
    unsigned hosts = 0, lengths = 0, codings = 0;
    for (uint32_t i = 0; i < h->n_fields; i++) {
        realm_http_str name = {d + h->names[i].at, h->names[i].len};
        require(h->values[i].at + h->values[i].len <= h->size && name.len > 0);
        require(!memchr(d + h->values[i].at, '\n', h->values[i].len) &&
                !memchr(d + h->values[i].at, '\r', h->values[i].len));
        hosts += realm_http_str_is_nocase(name, "host");
        lengths += realm_http_str_is_nocase(name, "content-length");
        codings += realm_http_str_is_nocase(name, "transfer-encoding");
    }
    require(hosts <= 1 && (hosts == 1 || h->minor == 0));
    require(lengths + codings <= 1 && (lengths == 1) == h->has_length && (codings == 1) == h->chunked);
    require(h->method.len > 0 && h->path.at + h->path.len <= h->size && h->size <= h->limits.head_bytes);
    require(h->path.len == 0 ? h->absolute : d[h->path.at] == '/' || d[h->path.at] == '*' || h->absolute);
}

static outcome run(const char *d, size_t size, const uint8_t *cuts, size_t n_cuts) {
    realm_http_limits limits;
    realm_http_limits_init(&limits);
    static realm_http1_head h;
    realm_http1_head_init(&h, &limits);
    outcome o = {.hash = 1469598103934665603u};
    size_t have = 0, k = 0;
    realm_http1_result r = REALM_HTTP1_MORE;
    while (r == REALM_HTTP1_MORE && have < size) {
        size_t step = n_cuts ? 1 + cuts[k++ % n_cuts] % 64u : size;
        have = size - have < step ? size : have + step;
        r = realm_http1_head_parse(&h, d, have);
        require(h.scan <= have);
    }
    o.result = (int)r;
    if (r == REALM_HTTP1_BAD) o.status = h.status;
    if (r != REALM_HTTP1_DONE) return o;
    check_head(&h, d);
    o.consumed = h.size;
    if (!h.chunked) return o;
    realm_http1_chunks c;
    realm_http1_chunks_init(&c, &limits, 4096);
    size_t at = h.size;
    r = REALM_HTTP1_MORE;
    while (r == REALM_HTTP1_MORE && at < size) {
        size_t step = n_cuts ? 1 + cuts[k++ % n_cuts] % 64u : size, used = 0, piece, n;
        if (step > size - at) step = size - at;
        r = realm_http1_chunks_feed(&c, d + at, step, &used, &piece, &n);
        require(used <= step && piece + n <= step && (r == REALM_HTTP1_BAD || used > 0));
        for (size_t i = 0; i < n; i++) o.hash = (o.hash ^ (uint8_t)d[at + piece + i]) * 1099511628211u;
        o.body += n;
        at += used;
    }
    require(o.body <= 4096 && o.body == c.total);
    o.result = (int)r;
    if (r == REALM_HTTP1_BAD) o.status = c.status;
    if (r == REALM_HTTP1_DONE) o.consumed = at;
    return o;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 9) return 0;
    char *d = malloc(size - 8); /* its own block: a read past the end is seen */
    if (!d) return 0;
    memcpy(d, data + 8, size - 8);
    outcome whole = run(d, size - 8, NULL, 0), cut = run(d, size - 8, data, 8);
    require(whole.result == cut.result && whole.status == cut.status && whole.consumed == cut.consumed);
    if (whole.result == (int)REALM_HTTP1_DONE) require(whole.body == cut.body && whole.hash == cut.hash);
    if (whole.result == (int)REALM_HTTP1_BAD) require(whole.status >= 400 && whole.status < 600);
    free(d);
    return 0;
}
