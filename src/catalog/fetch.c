/* catalog/fetch.c - bytes of a URL, from configured origins alone.
 *
 * libcurl is asked for one exchange at a time: redirects are followed here, because each of them has to pass the same
 * check as the URL that a person wrote. URLs are taken apart by libcurl's own parser, the one that the request is made
 * with, so that nobody can write one that is checked as one host and asked at another.
 *
 * libcurl is loaded when it is first needed: with the dozen libraries that it brings along it would triple the time
 * that every command takes to start, and a machine whose models come by other ways need not have it.
 */
#include <ctype.h>
#include <curl/curl.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/alloc.h"
#include "base/str.h"
#include "catalog/internal.h"

#define CONNECT_SECONDS 15L
#define STALL_SECONDS 60L /* without a byte */

/* X(name here, name there) */
#define CURL_CALLS(X)                \
    X(global_init, curl_global_init) \
    X(init, curl_easy_init)          \
    X(reset, curl_easy_reset)        \
    X(setopt, curl_easy_setopt)      \
    X(getinfo, curl_easy_getinfo)    \
    X(perform, curl_easy_perform)    \
    X(cleanup, curl_easy_cleanup)    \
    X(strerror, curl_easy_strerror)  \
    X(url, curl_url)                 \
    X(url_set, curl_url_set)         \
    X(url_get, curl_url_get)         \
    X(url_cleanup, curl_url_cleanup) \
    X(free, curl_free)

/* Written once, under pthread_once. */
static struct {
    bool ready;
    char why[256];
#define CALL_FIELD(here, there) __typeof__(&there) here;
    CURL_CALLS(CALL_FIELD)
#undef CALL_FIELD
} lib;

static void load_curl(void) {
    void *handle = dlopen("libcurl.so.4", RTLD_NOW | RTLD_LOCAL);
    bool all = handle != NULL;
    if (!handle) snprintf(lib.why, sizeof lib.why, "%s", dlerror());
#define CALL_FIND(here, there) all = all && (*(void **)&lib.here = dlsym(handle, #there)) != NULL;
    CURL_CALLS(CALL_FIND)
#undef CALL_FIND
    if (handle && !all) snprintf(lib.why, sizeof lib.why, "libcurl.so.4 is too old");
    lib.ready = all && lib.global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK;
}

static realm_status need_curl(realm_error *err) {
    static pthread_once_t once_only = PTHREAD_ONCE_INIT;
    (void)pthread_once(&once_only, load_curl);
    if (lib.ready) return REALM_OK;
    return realm_error_set(err, REALM_E_UNSUPPORTED, "downloads need libcurl (package libcurl4): %s",
                           lib.why[0] ? lib.why : "it does not start");
}

static realm_status no_memory(realm_error *err) { return realm_error_set(err, REALM_E_NOMEM, "out of memory"); }

/* ---- URLs -------------------------------------------------------------------------------------------------------- */

/* Where http will do: nobody else can listen in. */
static bool is_this_machine(const char *host) {
    unsigned a, b, c, d;
    int end = 0;
    if (strcmp(host, "localhost") == 0 || strcmp(host, "[::1]") == 0) return true;
    return sscanf(host, "%3u.%3u.%3u.%3u%n", &a, &b, &c, &d, &end) == 4 && host[end] == '\0' && a == 127 && b < 256 &&
           c < 256 && d < 256;
}

/* "scheme://host:port", freed with realm_free. */
static realm_status origin_of(CURLU *u, char **out, realm_error *err) {
    char *scheme = NULL, *host = NULL, *port = NULL, *user = NULL, *password = NULL;
    realm_status s = REALM_OK;
    *out = NULL;
    (void)lib.url_get(u, CURLUPART_USER, &user, 0);
    (void)lib.url_get(u, CURLUPART_PASSWORD, &password, 0);
    if (lib.url_get(u, CURLUPART_SCHEME, &scheme, 0) != CURLUE_OK ||
        lib.url_get(u, CURLUPART_HOST, &host, 0) != CURLUE_OK || !host[0] ||
        lib.url_get(u, CURLUPART_PORT, &port, CURLU_DEFAULT_PORT) != CURLUE_OK) {
        s = realm_error_set(err, REALM_E_INVALID, "not an URL with a host");
    } else if (user || password) {
        s = realm_error_set(err, REALM_E_INVALID, "an URL with a user name");
    } else {
        for (char *p = host; *p; p++) *p = (char)tolower((unsigned char)*p);
        bool http = strcmp(scheme, "http") == 0;
        if (!http && strcmp(scheme, "https") != 0)
            s = realm_error_set(err, REALM_E_INVALID, "an URL that is neither https nor http");
        else if (http && !is_this_machine(host))
            s = realm_error_set(err, REALM_E_DENIED, "http is for this machine alone: use https");
    }
    if (s == REALM_OK) {
        size_t len = strlen(scheme) + strlen(host) + strlen(port) + 5;
        if (!(*out = realm_malloc(len)))
            s = no_memory(err);
        else
            snprintf(*out, len, "%s://%s:%s", scheme, host, port);
    }
    lib.free(scheme);
    lib.free(host);
    lib.free(port);
    lib.free(user);
    lib.free(password);
    return s;
}

/* For messages: without the query, which may carry a signature. */
static const char *shown(const char *url, char *out, size_t cap) {
    return realm_escape(out, cap, url, strcspn(url, "?#"));
}

/* A handle for the URL, resolved against `base`; NULL with the error filled. */
static CURLU *parse(const char *base, const char *url, realm_error *err) {
    char text[256];
    if (need_curl(err) != REALM_OK) return NULL;
    CURLU *u = lib.url();
    if (!u) {
        (void)no_memory(err);
        return NULL;
    }
    size_t len = strlen(url);
    /* CURLU_NON_SUPPORT_SCHEME is not given: what this libcurl cannot do is refused here. */
    if (len == 0 || len > REALM_CATALOG_URL_MAX || strpbrk(url, " \t\r\n\\") ||
        (base && lib.url_set(u, CURLUPART_URL, base, 0) != CURLUE_OK) ||
        lib.url_set(u, CURLUPART_URL, url, 0) != CURLUE_OK) {
        realm_error_set(err, REALM_E_INVALID, "%s: not an URL", shown(url, text, sizeof text));
        lib.url_cleanup(u);
        return NULL;
    }
    return u;
}

void catalog_origins_release(catalog_origins *o) {
    for (size_t i = 0; i < o->n; i++) realm_free(o->items[i]);
    *o = (catalog_origins){0};
}

static bool listed(const catalog_origins *o, const char *origin) {
    for (size_t i = 0; i < o->n; i++)
        if (strcmp(o->items[i], origin) == 0) return true;
    return false;
}

realm_status catalog_origins_add(catalog_origins *o, const char *url, realm_error *err) {
    char text[256], *origin;
    realm_error local = {0};
    if (!err) err = &local;
    CURLU *u = parse(NULL, url, err);
    if (!u) return err->code;
    realm_status s = origin_of(u, &origin, err);
    lib.url_cleanup(u);
    if (s != REALM_OK) {
        realm_error_prefix(err, "%s", shown(url, text, sizeof text));
        return s;
    }
    if (!listed(o, origin)) {
        if (o->n == REALM_ARRAY_LEN(o->items)) {
            realm_free(origin);
            return realm_error_set(err, REALM_E_LIMIT, "at most %zu origins", REALM_ARRAY_LEN(o->items));
        }
        o->items[o->n++] = origin;
        return REALM_OK;
    }
    realm_free(origin);
    return REALM_OK;
}

realm_status catalog_url(const catalog_origins *o, const char *base, const char *url, char **out, realm_error *err) {
    char text[256], *origin = NULL, *whole = NULL;
    *out = NULL;
    realm_error local = {0};
    if (!err) err = &local;
    CURLU *u = parse(base, url, err);
    if (!u) return err->code;
    realm_status s = origin_of(u, &origin, err);
    if (s == REALM_OK && !listed(o, origin))
        s = realm_error_set(err, REALM_E_DENIED, "%s is not among the origins that may be asked", origin);
    if (s == REALM_OK) {
        (void)lib.url_set(u, CURLUPART_FRAGMENT, NULL, 0);
        if (lib.url_get(u, CURLUPART_URL, &whole, 0) != CURLUE_OK || !(*out = realm_strdup(whole))) s = no_memory(err);
        lib.free(whole);
    } else {
        realm_error_prefix(err, "%s", shown(url, text, sizeof text));
    }
    realm_free(origin);
    lib.url_cleanup(u);
    return s;
}

/* ---- one exchange ------------------------------------------------------------------------------------------------ */

typedef struct exchange {
    CURL *curl;
    const catalog_sink *sink;
    uint64_t from;
    bool begun;
    realm_status status; /* the sink's, or ours */
    realm_error *err;
    char location[REALM_CATALOG_URL_MAX + 1];
    char range[64]; /* of Content-Range */
} exchange;

static bool field(const char *line, size_t len, const char *name, char *out, size_t cap) {
    size_t n = strlen(name);
    if (len <= n || strncasecmp(line, name, n) != 0 || line[n] != ':') return false;
    line += n + 1;
    len -= n + 1;
    while (len && (line[0] == ' ' || line[0] == '\t')) line++, len--;
    while (len && isspace((unsigned char)line[len - 1])) len--;
    snprintf(out, cap, "%.*s", (int)REALM_MIN(len, cap), line); /* one too long is cut, and then no URL that works */
    return true;
}

static size_t on_header(char *line, size_t size, size_t n, void *user) {
    exchange *x = user;
    (void)size;
    if (n > 5 && strncasecmp(line, "HTTP/", 5) == 0) x->location[0] = x->range[0] = '\0'; /* an answer after 1xx */
    if (!field(line, n, "location", x->location, sizeof x->location))
        (void)field(line, n, "content-range", x->range, sizeof x->range);
    return n;
}

/* The status line is known: where the body stands in the whole. False when it is not to be read. */
static bool begin(exchange *x) {
    long code = 0;
    curl_off_t length = -1;
    uint64_t at = 0, total = 0;
    if (x->begun) return true;
    lib.getinfo(x->curl, CURLINFO_RESPONSE_CODE, &code);
    lib.getinfo(x->curl, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &length);
    if (code == 206) {
        unsigned long long first = 0, last = 0, whole = 0;
        int got = sscanf(x->range, "bytes %llu-%llu/%llu", &first, &last, &whole);
        if (got < 2 || first != x->from || last < first) {
            char text[96];
            x->status = realm_error_set(x->err, REALM_E_FORMAT, "asked for bytes from %llu, the server sent \"%s\"",
                                        (unsigned long long)x->from,
                                        realm_escape(text, sizeof text, x->range, strlen(x->range)));
            return false;
        }
        at = first;
        total = got == 3 ? whole : 0;
    } else if (code == 200) {
        total = length > 0 ? (uint64_t)length : 0;
    } else {
        return false;
    }
    x->begun = true;
    x->status = x->sink->begin(x->sink->user, at, total, x->err);
    return x->status == REALM_OK;
}

static size_t on_body(char *data, size_t size, size_t n, void *user) {
    exchange *x = user;
    (void)size;
    long code = 0;
    lib.getinfo(x->curl, CURLINFO_RESPONSE_CODE, &code);
    if (code != 200 && code != 206) return 0; /* the page of a redirect or an error: not read */
    if (!begin(x)) return 0;
    x->status = x->sink->take(x->sink->user, data, n, x->err);
    return x->status == REALM_OK ? n : 0;
}

static bool may_pass(CURLcode c) {
    switch (c) {
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_CONNECT:
    case CURLE_PARTIAL_FILE:
    case CURLE_OPERATION_TIMEDOUT:
    case CURLE_GOT_NOTHING:
    case CURLE_SEND_ERROR:
    case CURLE_RECV_ERROR:
    case CURLE_HTTP2:
    case CURLE_HTTP2_STREAM: return true;
    default: return false;
    }
}

/* What a status other than success means. */
static realm_status refused(long code, const char *range, uint64_t from, bool *again, realm_error *err) {
    if (code == 416 && from > 0) {
        unsigned long long whole = 0;
        /* There is nothing after what we have: either it is all, or it is a part of something else. */
        if (sscanf(range, "bytes */%llu", &whole) == 1 && whole == from) return REALM_OK;
        return realm_error_set(err, REALM_E_RANGE, "the server has no byte %llu of it", (unsigned long long)from);
    }
    *again = code == 408 || code == 429 || code >= 500;
    return realm_error_set(err,
                           code == 404 || code == 410   ? REALM_E_NOT_FOUND
                           : code == 401 || code == 403 ? REALM_E_DENIED
                                                        : REALM_E_IO,
                           "the server answers %ld", code);
}

/* One request without redirects. A redirect is REALM_OK with *location set. */
static realm_status once(exchange *x, const char *url, char *detail, bool *again) {
    CURL *c = x->curl;
    long code = 0;
    char range[32];
    lib.reset(c);
    snprintf(range, sizeof range, "%llu-", (unsigned long long)x->from);
    lib.setopt(c, CURLOPT_URL, url);
    lib.setopt(c, CURLOPT_PROTOCOLS_STR, "http,https");
    lib.setopt(c, CURLOPT_FOLLOWLOCATION, 0L);
    lib.setopt(c, CURLOPT_NETRC, (long)CURL_NETRC_IGNORED);
    lib.setopt(c, CURLOPT_NOSIGNAL, 1L);
    lib.setopt(c, CURLOPT_USERAGENT, "realm/" REALM_VERSION);
    lib.setopt(c, CURLOPT_CONNECTTIMEOUT, CONNECT_SECONDS);
    lib.setopt(c, CURLOPT_LOW_SPEED_LIMIT, 1L);
    lib.setopt(c, CURLOPT_LOW_SPEED_TIME, STALL_SECONDS);
    lib.setopt(c, CURLOPT_ERRORBUFFER, detail);
    lib.setopt(c, CURLOPT_HEADERFUNCTION, on_header);
    lib.setopt(c, CURLOPT_HEADERDATA, x);
    lib.setopt(c, CURLOPT_WRITEFUNCTION, on_body);
    lib.setopt(c, CURLOPT_WRITEDATA, x);
    if (strncmp(url, "http://", 7) == 0) lib.setopt(c, CURLOPT_PROXY, ""); /* this machine */
    if (x->from > 0) lib.setopt(c, CURLOPT_RANGE, range);
    detail[0] = '\0';
    CURLcode got = lib.perform(c);
    if (x->status != REALM_OK) return x->status;
    lib.getinfo(c, CURLINFO_RESPONSE_CODE, &code);
    bool answered = got == CURLE_OK || got == CURLE_WRITE_ERROR; /* the latter: on_body wants no more */
    if (answered && code >= 300 && code < 400 && x->location[0]) return REALM_OK;
    x->location[0] = '\0';
    if (answered && code >= 300) return refused(code, x->range, x->from, again, x->err);
    if (got == CURLE_OK) {
        if (begin(x)) return REALM_OK; /* an empty body */
        return x->status != REALM_OK ? x->status : realm_error_set(x->err, REALM_E_IO, "the server answers %ld", code);
    }
    *again = may_pass(got);
    return realm_error_set(x->err, got == CURLE_OUT_OF_MEMORY ? REALM_E_NOMEM : REALM_E_IO, "%s",
                           detail[0] ? detail : lib.strerror(got));
}

realm_status catalog_fetch(const catalog_origins *o, const char *url, uint64_t from, const catalog_sink *sink,
                           bool *again, realm_error *err) {
    realm_error local = {0};
    bool ignored = false;
    char detail[CURL_ERROR_SIZE], text[256];
    if (!again) again = &ignored;
    *again = false;
    if (!err) err = &local;
    char *at;
    realm_status s = catalog_url(o, NULL, url, &at, err);
    if (s != REALM_OK) return s;
    exchange *x = realm_calloc(1, sizeof *x);
    CURL *curl = lib.init();
    if (!x || !curl) {
        s = no_memory(err);
        goto done;
    }
    *x = (exchange){.curl = curl, .sink = sink, .from = from, .err = err};
    for (unsigned n = 0;; n++) {
        if ((s = once(x, at, detail, again)) != REALM_OK || !x->location[0]) break;
        if (n == REALM_CATALOG_REDIRECTS_MAX) {
            s = realm_error_set(err, REALM_E_IO, "more than %u redirects", REALM_CATALOG_REDIRECTS_MAX);
            break;
        }
        char *next;
        if ((s = catalog_url(o, at, x->location, &next, err)) != REALM_OK) {
            realm_error_prefix(err, "redirected to");
            break;
        }
        realm_free(at);
        at = next;
        x->location[0] = '\0';
    }
    if (s != REALM_OK && x->status == REALM_OK) realm_error_prefix(err, "%s", shown(url, text, sizeof text));
done:
    lib.cleanup(curl);
    realm_free(x);
    realm_free(at);
    return s;
}
