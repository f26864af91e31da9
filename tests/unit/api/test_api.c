/* The protocol, through a real server on loopback over a double of the tenant layer. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "api/api.h"
#include "api/fake_tenant.h"
#include "base/log.h"
#include "data/data.h"

static struct { /* what was logged */
    pthread_mutex_t mu;
    char lines[65536];
    size_t len;
} L = {.mu = PTHREAD_MUTEX_INITIALIZER};

static void keep_line(void *user, realm_log_level level, const char *line, size_t len) {
    (void)user, (void)level;
    pthread_mutex_lock(&L.mu);
    if (L.len + len < sizeof L.lines) {
        memcpy(L.lines + L.len, line, len);
        L.len += len;
        L.lines[L.len] = '\0';
    }
    pthread_mutex_unlock(&L.mu);
}

static struct {
    realm_api *api;
    realm_server *server;
    unsigned short port[2];
} S;

#define HELD_BYTES ((size_t)4 << 20)

static int setup(void **state) {
    (void)state;
    memset(&F, 0, sizeof F);
    static const realm_listen listen[2] = {{"127.0.0.1:0", REALM_API_PUBLIC}, {"127.0.0.1:0", REALM_API_ADMIN}};
    realm_error err = {0};
    static char runtime;
    const realm_api_config ac = {.held_bytes = HELD_BYTES};
    if (realm_api_open(&S.api, (realm_runtime *)&runtime, &ac, &err) != REALM_OK) fail_msg("%s", err.text);
    realm_server_config config = {.listen = listen, .n_listen = 2, .n_threads = 2, .handler = realm_api_handler(S.api)};
    if (realm_server_open(&S.server, &config, &err) != REALM_OK) fail_msg("%s", err.text);
    realm_api_set_server(S.api, S.server);
    for (size_t i = 0; i < 2; i++)
        S.port[i] = (unsigned short)atoi(strrchr(realm_server_address(S.server, i), ':') + 1);
    return 0;
}

/* Whatever a test did, nothing of it may be left. */
static int teardown(void **state) {
    (void)state;
    realm_server_stop(S.server);
    realm_api_close(S.api);
    realm_server_close(S.server);
    assert_int_equal(F.requests, 0);
    assert_int_equal(F.tenants, 0);
    assert_int_equal(F.held, 0);
    assert_int_equal(F.started, F.released);
    return 0;
}

/* ---- a client ---- */

typedef struct reply {
    unsigned status;
    char head[4096];
    char *body; /* chunks joined */
    size_t len;
    realm_json_doc *doc;
    realm_json root;
} reply;

static int dial(int listener) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in a = {
        .sin_family = AF_INET, .sin_port = htons(S.port[listener]), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    return fd;
}

static void done(reply *r) {
    realm_json_doc_close(r->doc);
    free(r->body);
    *r = (reply){0};
}

/* Reads to the end of the connection. */
static reply read_reply(int fd) {
    reply r = {0};
    size_t cap = 1 << 16, n = 0;
    char *raw = malloc(cap + 1);
    for (;;) {
        if (n == cap) raw = realloc(raw, (cap *= 2) + 1);
        ssize_t got = recv(fd, raw + n, cap - n, 0);
        if (got <= 0) break;
        n += (size_t)got;
    }
    raw[n] = '\0';
    close(fd);
    char *end = strstr(raw, "\r\n\r\n");
    if (!end) fail_msg("no answer: %s", raw);
    r.status = (unsigned)atoi(raw + 9);
    snprintf(r.head, sizeof r.head, "%.*s", (int)(end - raw) + 2, raw);
    r.body = calloc(1, n + 1);
    char *p = end + 4;
    if (strstr(r.head, "chunked")) {
        for (size_t len; (len = strtoul(p, &p, 16)) > 0; p += len + 2) {
            memcpy(r.body + r.len, p + 2, len);
            r.len += len;
            p += 2;
        }
    } else {
        r.len = n - (size_t)(p - raw);
        memcpy(r.body, p, r.len);
    }
    free(raw);
    realm_error err = {0};
    if (strstr(r.head, "application/json")) {
        if (realm_json_parse(&r.doc, r.body, r.len, NULL, &err) != REALM_OK) fail_msg("%s: %s", err.text, r.body);
        r.root = realm_json_root(r.doc);
    }
    assert_non_null(strstr(r.head, "x-request-id: req_"));
    return r;
}

static void send_all(int fd, const char *s, size_t len) {
    while (len) {
        ssize_t n = send(fd, s, len, MSG_NOSIGNAL);
        if (n <= 0) return;
        s += n;
        len -= (size_t)n;
    }
}

static int begin(int listener, const char *method, const char *path, const char *key, const char *body) {
    size_t cap = (body ? strlen(body) : 0) + 1024;
    char *q = malloc(cap);
    int n = snprintf(q, cap, "%s %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n", method, path);
    if (key) n += snprintf(q + n, cap - (size_t)n, "Authorization: Bearer %s\r\n", key);
    if (body)
        n +=
            snprintf(q + n, cap - (size_t)n, "Content-Type: application/json\r\nContent-Length: %zu\r\n", strlen(body));
    n += snprintf(q + n, cap - (size_t)n, "\r\n%s", body ? body : "");
    int fd = dial(listener);
    send_all(fd, q, (size_t)n);
    free(q);
    return fd;
}

static reply ask(const char *method, const char *path, const char *key, const char *body) {
    return read_reply(begin(REALM_API_PUBLIC, method, path, key, body));
}
static reply post(const char *path, const char *body) { return ask("POST", path, "tenant", body); }
static reply chat(const char *fields) {
    char body[4096];
    snprintf(body, sizeof body, "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"hello\"}]%s%s}",
             *fields ? "," : "", fields);
    return post("/v1/chat/completions", body);
}
static reply complete(const char *fields) {
    char body[4096];
    snprintf(body, sizeof body, "{\"model\":\"m\",%s}", fields);
    return post("/v1/completions", body);
}

/* The value at a path like "choices.0.message.content" as JSON text. */
static const char *at(const reply *r, const char *path) {
    static char out[8][65536];
    static int k;
    char *o = out[k++ % 8], name[64];
    realm_json v[12];
    size_t d = 0;
    v[0] = r->root;
    while (*path) {
        size_t n = strcspn(path, ".");
        snprintf(name, sizeof name, "%.*s", (int)n, path);
        path += n + (path[n] == '.');
        bool found = realm_json_kind_of(&v[d]) == REALM_JSON_ARRAY ? realm_json_at(&v[d], (size_t)atoi(name), &v[d + 1])
                                                                   : realm_json_get(&v[d], name, &v[d + 1]);
        if (!found) return "(absent)";
        d++;
    }
    realm_buf b;
    realm_buf_init(&b, 1 << 20);
    assert_int_equal(realm_json_dump(&v[d], &b), REALM_OK);
    snprintf(o, 65536, "%s", b.data);
    realm_buf_release(&b);
    return o;
}

static void assert_error(reply *r, unsigned status, const char *param, const char *code) {
    if (r->status != status) fail_msg("%u, not %u: %s", r->status, status, r->body);
    assert_int_equal(realm_json_len(&r->root), 1);
    realm_json e, v;
    assert_true(realm_json_get(&r->root, "error", &e));
    assert_int_equal(realm_json_len(&e), 4);
    assert_true(realm_json_get(&e, "message", &v) && realm_json_kind_of(&v) == REALM_JSON_STRING);
    assert_true(realm_json_get(&e, "type", &v) && realm_json_kind_of(&v) == REALM_JSON_STRING);
    assert_true(realm_json_get(&e, "code", &v));
    char expect[300];
    snprintf(expect, sizeof expect, param ? "\"%s\"" : "null", param);
    if (strcmp(at(r, "error.param"), expect) != 0) fail_msg("param is not %s: %s", expect, r->body);
    if (code) {
        snprintf(expect, sizeof expect, "\"%s\"", code);
        assert_string_equal(at(r, "error.code"), expect);
    }
    done(r);
}

/* ---- tests ---- */

static void routes_and_keys(void **state) {
    (void)state;
    static const char body[] = "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}";
    reply r = ask("GET", "/health", NULL, NULL);
    assert_int_equal(r.status, 200);
    done(&r);
    r = ask("GET", "/ready", NULL, NULL);
    assert_int_equal(r.status, 200);
    done(&r);
    static const struct {
        const char *method, *path, *key, *body;
        unsigned status;
        const char *head;
    } cases[] = {
        {"POST", "/v1/chat/completions", NULL, body, 401, "WWW-Authenticate: Bearer"},
        {"POST", "/v1/chat/completions", "wrong", body, 401, "WWW-Authenticate: Bearer"},
        {"POST", "/v1/chat/completions", "admin", body, 401, "WWW-Authenticate: Bearer"},
        {"GET", "/v1/models", NULL, NULL, 401, NULL},
        {"GET", "/v1/usage", NULL, NULL, 401, NULL},
        {"POST", "/tokenize", NULL, "{}", 401, NULL},
        {"GET", "/metrics", NULL, NULL, 401, NULL},
        {"GET", "/metrics", "tenant", NULL, 403, NULL},
        {"GET", "/metrics", "admin", NULL, 200, "text/plain; version=0.0.4"},
        {"GET", "/v1/chat/completions", "tenant", NULL, 405, "Allow: POST, OPTIONS\r\n"},
        {"DELETE", "/v1/models", "tenant", NULL, 405, "Allow: GET, HEAD, OPTIONS\r\n"},
        {"OPTIONS", "/health", NULL, NULL, 200, "Allow: GET, HEAD, OPTIONS\r\n"},
        {"OPTIONS", "/nothing", NULL, NULL, 404, NULL},
        {"OPTIONS", "*", NULL, NULL, 200, "Allow: GET, HEAD, POST, OPTIONS\r\n"},
        {"BREW", "/health", NULL, NULL, 501, NULL},
        {"GET", "/", NULL, NULL, 404, NULL},
        {"GET", "/v1/nothing", "tenant", NULL, 404, NULL},
        {"GET", "/admin/v1/usage", "admin", NULL, 404, NULL},
        {"GET", "/health/", NULL, NULL, 404, NULL},
        {"GET", "//health", NULL, NULL, 404, NULL},
        {"POST", "/v1/chat/completions", "tenant", NULL, 411, NULL},
        {"GET", "/v1/models/m", "tenant", NULL, 200, NULL},
        {"GET", "/v1/models/%6d", "tenant", NULL, 200, NULL},
        {"GET", "/v1/models/x", "tenant", NULL, 404, NULL},
        {"GET", "/v1/models/m%00", "tenant", NULL, 404, NULL},
    };
    for (size_t i = 0; i < REALM_ARRAY_LEN(cases); i++) {
        r = ask(cases[i].method, cases[i].path, cases[i].key, cases[i].body);
        if (r.status != cases[i].status) fail_msg("%s %s: %u", cases[i].method, cases[i].path, r.status);
        if (cases[i].head && !strstr(r.head, cases[i].head)) fail_msg("%s: %s", cases[i].path, r.head);
        if (r.status >= 400) {
            realm_json e;
            assert_true(realm_json_get(&r.root, "error", &e) && realm_json_len(&e) == 4);
        }
        done(&r);
    }
    static const struct {
        const char *fields;
        unsigned status;
    } contents[] = {{"Content-Type: text/plain\r\n", 415},
                    {"Content-Type: application/x-www-form-urlencoded\r\n", 415},
                    {"Content-Type: application/json; charset=latin1\r\n", 415},
                    {"Content-Type: application/json\r\nContent-Encoding: gzip\r\n", 415},
                    {"Content-Type: application/json\r\nContent-Type: application/json\r\n", 400},
                    {"Content-Type: application/json; charset=\"utf-16\r\n", 415},
                    {"Content-Type: application/json; charset=\r\n", 415},
                    {"Content-Type: application/json; charset=utf-8; profile=x\r\n", 200},
                    {"Content-Type: Application/JSON; charset=\"UTF-8\"\r\n", 200},
                    {"", 200}};
    for (size_t i = 0; i < REALM_ARRAY_LEN(contents); i++) {
        char q[1024];
        int n = snprintf(q, sizeof q,
                         "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                         "Authorization: bearer tenant\r\n%sContent-Length: %zu\r\n\r\n%s",
                         contents[i].fields, strlen(body), body);
        int fd = dial(0);
        send_all(fd, q, (size_t)n);
        r = read_reply(fd);
        if (r.status != contents[i].status) fail_msg("%s: %u", contents[i].fields, r.status);
        done(&r);
    }
    int fd = dial(0); /* net's own errors have the same shape */
    send_all(fd, "GET / HTTP/1.1\r\n\r\n", 18);
    r = read_reply(fd);
    assert_error(&r, 400, NULL, "bad_http_request");
}

static reply from_page(int listener, const char *method, const char *path, const char *key) {
    char q[512];
    int n = snprintf(q, sizeof q,
                     "%s %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nOrigin: https://page.example\r\n"
                     "Access-Control-Request-Method: POST\r\n%s%s%s\r\n",
                     method, path, key ? "Authorization: Bearer " : "", key ? key : "", key ? "\r\n" : "");
    int fd = dial(listener);
    send_all(fd, q, (size_t)n);
    return read_reply(fd);
}

/* A page may ask what it may send, without a key, and read what comes, errors too; not on the admin listener. */
static void pages_of_other_origins(void **state) {
    (void)state;
    reply r = from_page(REALM_API_PUBLIC, "OPTIONS", "/v1/chat/completions", NULL);
    assert_int_equal(r.status, 200);
    assert_int_equal(r.len, 0);
    assert_non_null(strstr(r.head, "Access-Control-Allow-Origin: *\r\n"));
    assert_non_null(strstr(r.head, "Access-Control-Allow-Methods: POST, OPTIONS\r\n"));
    assert_non_null(strstr(r.head, "Access-Control-Allow-Headers: authorization, *\r\n"));
    done(&r);
    static const char *const keys[] = {"tenant", "wrong", NULL};
    for (size_t i = 0; i < REALM_ARRAY_LEN(keys); i++) {
        r = from_page(REALM_API_PUBLIC, "GET", "/v1/models", keys[i]);
        assert_int_equal(r.status, i == 0 ? 200 : 401);
        assert_non_null(strstr(r.head, "Access-Control-Allow-Origin: *\r\n"));
        done(&r);
    }
    r = ask("OPTIONS", "/v1/models", NULL, NULL); /* no page */
    assert_int_equal(r.status, 200);
    assert_null(strstr(r.head, "Access-Control"));
    done(&r);
    r = from_page(REALM_API_ADMIN, "OPTIONS", "*", NULL);
    assert_int_equal(r.status, 405);
    assert_non_null(strstr(r.head, "Allow: GET, HEAD\r\n"));
    done(&r);
    r = from_page(REALM_API_ADMIN, "OPTIONS", "/metrics", NULL);
    assert_int_equal(r.status, 405);
    assert_null(strstr(r.head, "Access-Control"));
    done(&r);
    r = from_page(REALM_API_ADMIN, "GET", "/metrics", NULL);
    assert_int_equal(r.status, 200);
    assert_null(strstr(r.head, "Access-Control"));
    done(&r);
}

static void the_admin_listener(void **state) {
    (void)state;
    static const struct {
        const char *path, *key;
        unsigned status;
    } cases[] = {{"/health", NULL, 200},
                 {"/ready", NULL, 200},
                 {"/metrics", NULL, 200},
                 {"/metrics", "tenant", 403},
                 {"/metrics", "wrong", 401},
                 {"/admin/v1/usage", NULL, 401},
                 {"/admin/v1/usage", "tenant", 403},
                 {"/admin/v1/usage", "admin", 200},
                 {"/admin/v1/models", "admin", 200},
                 {"/v1/models", "tenant", 404},
                 {"/v1/chat/completions", "tenant", 404}};
    for (size_t i = 0; i < REALM_ARRAY_LEN(cases); i++) {
        reply r = read_reply(begin(REALM_API_ADMIN, "GET", cases[i].path, cases[i].key, NULL));
        if (r.status != cases[i].status) fail_msg("%s: %u", cases[i].path, r.status);
        if (i == 7) assert_string_equal(at(&r, "1.tenant"), "\"beta\"");
        done(&r);
    }
    realm_api_set_state(S.api, REALM_API_STARTING);
    reply r = ask("GET", "/ready", NULL, NULL);
    assert_error(&r, 503, NULL, "model_loading");
    r = post("/v1/chat/completions", "{\"model\":\"other\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}");
    assert_non_null(strstr(r.head, "retry-after: 1\r\n"));
    assert_error(&r, 503, "model", "model_loading");
    realm_api_set_state(S.api, REALM_API_DRAINING);
    r = ask("GET", "/ready", NULL, NULL);
    assert_error(&r, 503, NULL, "shutting_down");
}

#define TEN "\u00e9\u00e9\u00e9\u00e9\u00e9\u00e9\u00e9\u00e9\u00e9\u00e9"
#define MANY_ARGS /* as many as are accepted */                                                                        \
    "\"a0\":0,\"a1\":1,\"a2\":2,\"a3\":3,\"a4\":4,\"a5\":5,\"a6\":6,\"a7\":7,\"a8\":8,\"a9\":9,\"a10\":10,\"a11\":11," \
    "\"a12\":12,\"a13\":13,\"a14\":14,\"a15\":15,\"a16\":16,\"a17\":17,\"a18\":18,\"a19\":19,\"a20\":20,\"a21\":21,"   \
    "\"a22\":22,\"a23\":23,\"a24\":24,\"a25\":25,\"a26\":26,\"a27\":27,\"a28\":28,\"a29\":29,\"a30\":30,\"a31\":31"

static void wrong_fields_are_named(void **state) {
    (void)state;
    static const struct {
        const char *fields, *param;
    } chats[] = {
        {"\"temperature\":2.1", "temperature"},
        {"\"temperature\":-0.1", "temperature"},
        {"\"temperature\":\"1\"", "temperature"},
        {"\"top_p\":1.01", "top_p"},
        {"\"min_p\":-1", "min_p"},
        {"\"top_k\":-1", "top_k"},
        {"\"top_k\":1.5", "top_k"},
        {"\"frequency_penalty\":2.01", "frequency_penalty"},
        {"\"presence_penalty\":-2.01", "presence_penalty"},
        {"\"repeat_penalty\":0", "repeat_penalty"},
        {"\"n\":0", "n"},
        {"\"n\":129", "n"},
        {"\"n\":1.0", "n"},
        {"\"n\":true", "n"},
        {"\"n\":-5", "n"},
        {"\"max_tokens\":0", "max_tokens"},
        {"\"max_tokens\":-1", "max_tokens"},
        {"\"max_completion_tokens\":0", "max_completion_tokens"},
        {"\"max_tokens\":3,\"max_completion_tokens\":4", "max_tokens"},
        {"\"stop\":[\"a\",\"b\",\"c\",\"d\",\"e\"]", "stop"},
        {"\"stop\":\"\"", "stop"},
        {"\"stop\":[\"a\",1]", "stop[1]"},
        {"\"stop\":7", "stop"},
        {"\"seed\":1.5", "seed"},
        {"\"seed\":\"x\"", "seed"},
        {"\"logprobs\":1", "logprobs"},
        {"\"logprobs\":true,\"top_logprobs\":21", "top_logprobs"},
        {"\"top_logprobs\":2", "top_logprobs"},
        {"\"logit_bias\":{\"257\":1}", "logit_bias.257"},
        {"\"logit_bias\":{\"-1\":1}", "logit_bias.-1"},
        {"\"logit_bias\":{\"x\":1}", "logit_bias.x"},
        {"\"logit_bias\":{\"99999999999\":1}", "logit_bias.99999999999"},
        {"\"logit_bias\":{\"1\":101}", "logit_bias.1"},
        {"\"logit_bias\":[]", "logit_bias"},
        {"\"stream\":1", "stream"},
        {"\"stream_options\":{\"include_usage\":true}", "stream_options"},
        {"\"stream\":true,\"stream_options\":{\"include_usage\":1}", "stream_options.include_usage"},
        {"\"stream\":true,\"stream_options\":{\"what\":1}", "stream_options.what"},
        {"\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}]", "tools"},
        {"\"tool_choice\":\"auto\"", "tool_choice"},
        {"\"functions\":[]", "functions"},
        {"\"response_format\":{\"type\":\"json_object\",\"schema\":{}}", "response_format.schema"},
        {"\"response_format\":{\"type\":\"json_schema\"}", "response_format.json_schema"},
        {"\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"schema\":{}}}",
         "response_format.json_schema.name"},
        {"\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"x\"}}",
         "response_format.json_schema.schema"},
        {"\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"x\",\"schema\":true}}",
         "response_format.json_schema.schema"},
        {"\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"x\",\"schema\":{\"type\":\"bad\"}}"
         "}",
         "response_format.json_schema.schema.type"},
        {"\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"a b\",\"schema\":{}}}",
         "response_format.json_schema.name"},
        {"\"json_schema\":{\"type\":\"bad\"}", "json_schema.type"},
        {"\"json_schema\":7", "json_schema"},
        {"\"json_schema\":{},\"response_format\":{\"type\":\"json_object\"}", "json_schema"},
        {"\"grammar\":\"root ::= [a]\"", "grammar"},
        {"\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"x\",\"strict\":1,\"schema\":{}}}",
         "response_format.json_schema.strict"},
        {"\"response_format\":{\"type\":\"xml\"}", "response_format.type"},
        {"\"response_format\":{}", "response_format.type"},
        {"\"response_format\":7", "response_format"},
        {"\"modalities\":[\"audio\"]", "modalities[0]"},
        {"\"audio\":{}", "audio"},
        {"\"user\":7", "user"},
        {"\"metadata\":{\"a\":1}", "metadata.a"},
        {"\"metadata\":{\"" TEN TEN TEN TEN TEN TEN "12345\":\"\"}", "metadata." TEN TEN TEN TEN TEN TEN "12345"},
        {"\"store\":\"yes\"", "store"},
        {"\"service_tier\":\"gold\"", "service_tier"},
        {"\"reasoning_effort\":\"huge\"", "reasoning_effort"},
        {"\"verbosity\":1", "verbosity"},
        {"\"chat_template_kwargs\":[]", "chat_template_kwargs"},
        {"\"chat_template_kwargs\":\"{}\"", "chat_template_kwargs"},
        {"\"chat_template_kwargs\":{\"a\":1,\"messages\":[]}", "chat_template_kwargs.messages"},
        {"\"chat_template_kwargs\":{" MANY_ARGS ",\"z\":0}", "chat_template_kwargs"},
        {"\"seed\":9223372036854775808", "seed"},
        {"\"max_tokens\":100000000000000000000", "max_tokens"},
        {"\"typical_p\":1.5", "typical_p"},
        {"\"typical_p\":\"x\"", "typical_p"},
        {"\"mirostat\":1", "mirostat"},
        {"\"mirostat\":3", "mirostat"},
        {"\"mirostat\":2,\"mirostat_tau\":0", "mirostat_tau"},
        {"\"mirostat_eta\":-1", "mirostat_eta"},
        {"\"dry_multiplier\":-1", "dry_multiplier"},
        {"\"dry_base\":0.5", "dry_base"},
        {"\"dry_allowed_length\":0", "dry_allowed_length"},
        {"\"dry_penalty_last_n\":-2", "dry_penalty_last_n"},
        {"\"dry_sequence_breakers\":\"x\"", "dry_sequence_breakers"},
        {"\"dry_sequence_breakers\":[\"\"]", "dry_sequence_breakers[0]"},
        {"\"dry_sequence_breakers\":[1]", "dry_sequence_breakers[0]"},
        {"\"xtc_probability\":1.1", "xtc_probability"},
        {"\"xtc_threshold\":-0.1", "xtc_threshold"},
        {"\"repeat_last_n\":-2", "repeat_last_n"},
        {"\"samplers\":[]", "samplers"},
        {"\"samplers\":\"top_k\"", "samplers"},
        {"\"samplers\":[\"top_k\",\"bogus\"]", "samplers[1]"},

        {"\"grammar\":\"root ::= x\"", "grammar"},
        {"\"prompt\":\"x\"", "prompt"},
        {"\"unheard_of\":1", "unheard_of"},
        {"\"parse_special\":1", "parse_special"},
    };
    for (size_t i = 0; i < REALM_ARRAY_LEN(chats); i++) {
        reply r = chat(chats[i].fields);
        if (r.status != 400) fail_msg("%s: %u %s", chats[i].fields, r.status, r.body);
        assert_error(&r, 400, chats[i].param, NULL);
    }
    static const struct {
        const char *messages, *param;
    } messages[] = {
        {"", "messages"},
        {",\"messages\":null", "messages"},
        {",\"messages\":[]", "messages"},
        {",\"messages\":\"x\"", "messages"},
        {",\"messages\":[7]", "messages[0]"},
        {",\"messages\":[{\"content\":\"x\"}]", "messages[0].role"},
        {",\"messages\":[{\"role\":\"king\",\"content\":\"x\"}]", "messages[0].role"},
        {",\"messages\":[{\"role\":\"tool\",\"content\":\"x\"}]", "messages[0].role"},
        {",\"messages\":[{\"role\":\"user\"}]", "messages[0].content"},
        {",\"messages\":[{\"role\":\"user\",\"content\":7}]", "messages[0].content"},
        {",\"messages\":[{\"role\":\"user\",\"content\":[]}]", "messages[0].content"},
        {",\"messages\":[{\"role\":\"user\",\"content\":[\"x\"]}]", "messages[0].content[0]"},
        {",\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]", "messages[0].content[0].text"},
        {",\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"image_url\","
         "\"image_url\":{}}]}]",
         "messages[0].content[1].type"},
        {",\"messages\":[{\"role\":\"user\",\"content\":\"x\",\"name\":1}]", "messages[0].name"},
        {",\"messages\":[{\"role\":\"user\",\"content\":\"x\",\"mood\":1}]", "messages[0].mood"},
        {",\"messages\":[{\"role\":\"user\",\"content\":\"x\"},{\"role\":\"assistant\",\"content\":\"x\",\"tool_"
         "calls\":[]}]",
         "messages[1].tool_calls"},
    };
    for (size_t i = 0; i < REALM_ARRAY_LEN(messages); i++) {
        char body[1024];
        snprintf(body, sizeof body, "{\"model\":\"m\"%s}", messages[i].messages);
        reply r = post("/v1/chat/completions", body);
        if (r.status != 400) fail_msg("%s: %u %s", body, r.status, r.body);
        assert_error(&r, 400, messages[i].param, NULL);
    }
    static const struct {
        const char *fields, *param;
    } texts[] = {
        {"\"n\":1", "prompt"},
        {"\"prompt\":null", "prompt"},
        {"\"prompt\":7", "prompt"},
        {"\"prompt\":[]", "prompt"},
        {"\"prompt\":[[]]", "prompt[0]"},
        {"\"prompt\":[1.5]", "prompt[0]"},
        {"\"prompt\":[1,\"x\"]", "prompt[1]"},
        {"\"prompt\":[\"x\",1]", "prompt[1]"},
        {"\"prompt\":[257]", "prompt[0]"},
        {"\"prompt\":[[1],[-1]]", "prompt[1][0]"},
        {"\"prompt\":\"x\",\"logprobs\":6", "logprobs"},
        {"\"prompt\":\"x\",\"logprobs\":true", "logprobs"},
        {"\"prompt\":\"x\",\"suffix\":\"y\"", "suffix"},
        {"\"prompt\":\"x\",\"best_of\":2,\"n\":3", "best_of"},
        {"\"prompt\":\"x\",\"best_of\":2,\"stream\":true", "best_of"},
        {"\"prompt\":[\"a\",\"b\",\"c\"],\"best_of\":64", "best_of"},
        {"\"prompt\":\"x\",\"echo\":1", "echo"},
        {"\"prompt\":[\"a\",\"b\",\"c\"],\"n\":64", "n"},
        {"\"prompt\":\"x\",\"messages\":[]", "messages"},
    };
    for (size_t i = 0; i < REALM_ARRAY_LEN(texts); i++) {
        reply r = complete(texts[i].fields);
        if (r.status != 400) fail_msg("%s: %u %s", texts[i].fields, r.status, r.body);
        assert_error(&r, 400, texts[i].param, NULL);
    }
    static const char *const documents[] = {
        "", "{", "[]", "null", "7", "\"x\"", "{\"a\":1,\"a\":2}", "{\"a\":NaN}", "{} {}", "{\"a\":\"\xff\"}"};
    for (size_t i = 0; i < REALM_ARRAY_LEN(documents); i++) {
        reply r = post("/v1/chat/completions", documents[i]);
        assert_error(&r, 400, NULL, NULL);
    }
    reply r =
        post("/v1/chat/completions", "{\"model\":\"other\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}");
    assert_error(&r, 404, "model", "model_not_found");
    r = post("/v1/chat/completions", "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}");
    assert_error(&r, 400, "model", "missing_required_parameter");
    assert_int_equal(F.started, 0);
}

static void template_arguments_reach_the_template(void **state) {
    (void)state;
    static const char *const fields[] = {"\"chat_template_kwargs\":null", "\"chat_template_kwargs\":{}",
                                         "\"chat_template_kwargs\":{\"enable_thinking\":false,\"x\":[1,{\"y\":null}]}",
                                         "\"chat_template_kwargs\":{" MANY_ARGS "}"};
    for (size_t i = 0; i < REALM_ARRAY_LEN(fields); i++) {
        reply r = chat(fields[i]);
        if (r.status != 200) fail_msg("%s", r.body);
        done(&r);
        const char *value = strchr(fields[i], ':') + 1;
        assert_string_equal(F.template_args, i ? value : "");
        assert_int_equal(strstr(F.input, fields[i]) != NULL, i > 0);
    }
    reply r = complete("\"prompt\":\"x\",\"chat_template_kwargs\":{}"); /* there is no template */
    assert_error(&r, 400, "chat_template_kwargs", "unknown_parameter");
}

static void what_the_program_and_the_engine_get(void **state) {
    (void)state;
    reply r = post(
        "/v1/chat/completions",
        "{\"model\":\"m\",\"messages\":[{\"role\":\"developer\",\"content\":\"be\",\"name\":null},{\"role\":\"user\","
        "\"content\":"
        "[{\"type\":\"text\",\"text\":\"a\\\"\"},{\"type\":\"text\",\"text\":\"b\"}]},{\"role\":\"assistant\","
        "\"content\":\"\","
        "\"refusal\":null,\"annotations\":[]}],\"temperature\":0.7,\"top_p\":0,\"top_k\":40,\"max_completion_tokens\":"
        "5,"
        "\"stop\":[\"x\"],\"seed\":-3,\"logit_bias\":{\"65\":-100,\"0\":1.5},\"user\":\"u\",\"metadata\":{\"k\":\"v\","
        "\"" TEN TEN TEN TEN TEN TEN "1234\":\"\"},"
        "\"store\":false,\"service_tier\":\"auto\",\"prompt_cache_key\":\"p\",\"reasoning_effort\":\"low\","
        "\"response_format\":{\"type\":\"text\"},\"tools\":null,\"typical_p\":1,\"dry_multiplier\":0,\"n\":null}");
    if (r.status != 200) fail_msg("%s", r.body);
    assert_string_equal(at(&r, "choices.0.finish_reason"), "\"length\"");
    done(&r);
    assert_non_null(strstr(F.input, "\"endpoint\":\"chat\""));
    assert_non_null(strstr(
        F.input, "\"messages\":[{\"role\":\"system\",\"content\":\"be\"},{\"role\":\"user\",\"content\":\"a\\\"\\nb\"},"
                 "{\"role\":\"assistant\",\"content\":\"\"}]"));
    assert_non_null(strstr(F.input, "\"temperature\":0.7"));
    assert_null(strstr(F.input, "\"n\":"));
    const realm_sampling *s = &F.params.sampling;
    assert_true(s->temperature == 0.7f && s->top_k == 40 && s->top_p > 0 && s->top_p < 1e-3f &&
                s->seed == (uint64_t)-3);
    assert_int_equal(F.params.max_tokens, 5);
    assert_int_equal(F.params.n_stop, 1);
    assert_int_equal(s->n_bias, 2);
    r = complete("\"prompt\":[65,66]");
    assert_int_equal(r.status, 200);
    done(&r);
    assert_int_equal(F.params.max_tokens, 16);
    assert_non_null(strstr(F.input, "\"endpoint\":\"completion\""));
    assert_non_null(strstr(F.input, "\"prompt\":[65,66]"));
}

/* Every sampler field reaches the engine, in both endpoints; the breakers are the tokens that hold one of the strings.
 */
static void samplers_reach_the_engine(void **state) {
    (void)state;
    static const char fields[] =
        "\"typical_p\":0.5,\"xtc_probability\":0.25,\"xtc_threshold\":0.2,\"dry_multiplier\":0.75,\"dry_base\":2,"
        "\"dry_allowed_length\":3,\"dry_penalty_last_n\":-1,\"dry_sequence_breakers\":[\"b\",\"a\"],\"mirostat\":2,"
        "\"mirostat_tau\":4,\"mirostat_eta\":0.5,\"samplers\":[\"top_k\",\"temperature\",\"typ_p\"],\"repeat_last_n\":"
        "7";
    const realm_sampling *s = &F.params.sampling;
    for (int text = 0; text < 2; text++) {
        char body[512];
        (void)snprintf(body, sizeof body, "%s%s", text ? "\"prompt\":\"x\"," : "", fields);
        F.params = (realm_generation_params){0};
        reply r = text ? complete(body) : chat(fields);
        assert_int_equal(r.status, 200);
        done(&r);
        assert_true(s->typical_p == 0.5f && s->xtc_probability == 0.25f && s->xtc_threshold == 0.2f);
        assert_true(s->dry_multiplier == 0.75f && s->dry_base == 2 && s->dry_allowed == 3 && s->dry_last_n == 0);
        assert_int_equal(s->n_dry_breakers, 2);
        assert_int_equal(F.breakers[0], 'a');
        assert_int_equal(F.breakers[1], 'b');
        assert_true(s->mirostat_tau == 4 && s->mirostat_eta == 0.5f && s->penalty_last_n == 7);
        assert_int_equal(s->n_order, 3);
        assert_int_equal(s->order[0], REALM_STAGE_KIND_TOP_K);
        assert_int_equal(s->order[1], REALM_STAGE_KIND_TEMPERATURE);
        assert_int_equal(s->order[2], REALM_STAGE_KIND_TYPICAL);
    }
    reply r = chat("\"dry_multiplier\":1,\"typical_p\":0,\"mirostat_tau\":3"); /* defaults; mirostat not asked for */
    assert_int_equal(r.status, 200);
    done(&r);
    assert_true(s->dry_base == 1.75f && s->dry_allowed == 2 && s->dry_last_n == 64 && s->n_dry_breakers == 4);
    assert_true(s->typical_p > 0 && s->typical_p < 1e-3f && s->mirostat_tau == 0 && s->n_order == 0);
    r = chat("\"dry_multiplier\":1,\"dry_penalty_last_n\":0,\"repeat_penalty\":2,\"presence_penalty\":1,\"repeat_last_"
             "n\":0");
    assert_int_equal(r.status, 200);
    done(&r);
    assert_true(s->dry_multiplier == 0 && s->repeat_penalty == 1 && s->presence_penalty == 0);
}

/* What is refused says so by its code: a value that is not one of a list, a key that nobody knows. */
static void codes_say_what_is_wrong(void **state) {
    (void)state;
    reply r = chat("\"service_tier\":\"gold\"");
    assert_error(&r, 400, "service_tier", "invalid_value");
    r = chat("\"stream\":true,\"stream_options\":{\"more\":1}");
    assert_error(&r, 400, "stream_options.more", "unknown_parameter");
    r = post("/tokenize", "{\"content\":\"a\",\"more\":1}");
    assert_error(&r, 400, "more", "unknown_parameter");
}

/* The prompt alone: nothing is generated, and only completions can ask for it. */
static void no_tokens_at_all(void **state) {
    (void)state;
    reply r = complete("\"prompt\":\"x\",\"max_tokens\":0");
    assert_int_equal(r.status, 200);
    assert_true(F.params.prompt_only);
    done(&r);
    r = complete("\"prompt\":\"x\",\"max_tokens\":1");
    assert_int_equal(r.status, 200);
    assert_false(F.params.prompt_only);
    done(&r);
    r = chat("\"max_tokens\":0");
    assert_error(&r, 400, "max_tokens", "invalid_value");
}

static void chat_answers(void **state) {
    (void)state;
    reply r = chat("\"logprobs\":true,\"top_logprobs\":2");
    assert_int_equal(r.status, 200);
    assert_non_null(strstr(r.head, "x-ratelimit-limit-requests: 60\r\n"));
    assert_non_null(strstr(r.head, "x-ratelimit-remaining-requests: 59\r\n"));
    assert_non_null(strstr(r.head, "x-ratelimit-reset-requests: 1s\r\n"));
    assert_non_null(strstr(r.head, "x-ratelimit-limit-tokens: 5000\r\n"));
    assert_non_null(strstr(r.head, "x-ratelimit-remaining-tokens: 4000\r\n"));
    assert_non_null(strstr(r.head, "x-ratelimit-reset-tokens: 12s\r\n"));
    assert_string_equal(at(&r, "object"), "\"chat.completion\"");
    assert_memory_equal(at(&r, "id"), "\"chatcmpl-", 10);
    assert_string_equal(at(&r, "model"), "\"m\"");
    assert_string_equal(at(&r, "choices.0.message"),
                        "{\"role\":\"assistant\",\"content\":\"Hi \xC3\xA9!\",\"refusal\":null,\"annotations\":[]}");
    assert_string_equal(at(&r, "choices.0.finish_reason"), "\"stop\"");
    assert_string_equal(at(&r, "usage"),
                        "{\"prompt_tokens\":4,\"completion_tokens\":7,\"total_tokens\":11,\"prompt_tokens_details\":"
                        "{\"cached_tokens\":1},\"completion_tokens_details\":{\"reasoning_tokens\":0}}");
    assert_string_equal(at(&r, "choices.0.logprobs.content.0"),
                        "{\"token\":\"H\",\"logprob\":-1.25,\"bytes\":[72],\"top_logprobs\":[{\"token\":\"H\","
                        "\"logprob\":-1.25,\"bytes\":[72]},"
                        "{\"token\":\"z\",\"logprob\":-3.5,\"bytes\":[122]}]}");
    assert_string_equal(at(&r, "choices.0.logprobs.content.3.bytes"), "[195]"); /* half a character, not left out */
    assert_string_equal(at(&r, "choices.0.logprobs.content.5.token"), "\"!\"");
    done(&r);
    r = chat("");
    assert_string_equal(at(&r, "choices.0.logprobs"), "null");
    done(&r);
    r = chat("\"user\":\"@emit\"");
    assert_string_equal(at(&r, "choices.0.message.content"), "\"HELLO THERE\"");
    done(&r);
}

/* The data of each event of a stream, NULL-terminated; the last must be [DONE]. */
static char **events_of(reply *r) {
    static char *events[32768];
    size_t n = 0;
    assert_non_null(strstr(r->head, "Content-Type: text/event-stream"));
    for (char *p = r->body; *p;) {
        assert_memory_equal(p, "data: ", 6);
        char *end = memmem(p, r->len - (size_t)(p - r->body), "\n\n", 2); /* strstr measures the rest each time */
        assert_non_null(end);
        *end = '\0';
        events[n++] = p + 6;
        p = end + 2;
    }
    assert_true(n > 0);
    assert_string_equal(events[n - 1], "[DONE]");
    events[n - 1] = NULL;
    return events;
}

static void chat_streams(void **state) {
    (void)state;
    reply r = chat("\"stream\":true,\"stream_options\":{\"include_usage\":true},\"logprobs\":true,\"n\":2");
    assert_int_equal(r.status, 200);
    char **e = events_of(&r), text[2][64] = {"", ""};
    int finished[2] = {0}, opened[2] = {0}, n_logprobs = 0;
    size_t i = 0;
    for (; e[i]; i++) {
        reply chunk = {0};
        assert_int_equal(realm_json_parse(&chunk.doc, e[i], strlen(e[i]), NULL, NULL), REALM_OK);
        chunk.root = realm_json_root(chunk.doc);
        assert_string_equal(at(&chunk, "object"), "\"chat.completion.chunk\"");
        if (!e[i + 1]) {
            assert_string_equal(at(&chunk, "choices"), "[]");
            assert_string_equal(at(&chunk, "usage.completion_tokens"), "14");
        } else {
            int k = atoi(at(&chunk, "choices.0.index"));
            assert_string_equal(at(&chunk, "usage"), "null");
            assert_false(finished[k]);
            const char *role = at(&chunk, "choices.0.delta.role"), *content = at(&chunk, "choices.0.delta.content");
            assert_int_equal(strcmp(role, "\"assistant\"") == 0, !opened[k]);
            opened[k] = 1;
            if (*content == '"') strncat(text[k], content + 1, strlen(content) - 2);
            finished[k] = strcmp(at(&chunk, "choices.0.finish_reason"), "\"stop\"") == 0;
            n_logprobs += strcmp(at(&chunk, "choices.0.logprobs.content.0"), "(absent)") != 0;
        }
        realm_json_doc_close(chunk.doc);
    }
    assert_true(finished[0] && finished[1]);
    assert_string_equal(text[0], "Hi \xC3\xA9!");
    assert_string_equal(text[1], "Hi \xC3\xA9!");
    assert_int_equal(n_logprobs, 12);
    done(&r);
    r = chat("\"stream\":true");
    for (e = events_of(&r); *e; e++) assert_null(strstr(*e, "usage"));
    done(&r);
}

static void choices_have_their_own_seeds(void **state) {
    (void)state;
    uint64_t first[4];
    for (int round = 0; round < 2; round++) {
        F.started = F.released = 0;
        reply r = chat("\"n\":4,\"seed\":42");
        assert_int_equal(r.status, 200);
        assert_string_equal(at(&r, "choices.3.index"), "3");
        assert_int_equal(F.expected, 4);
        for (int i = 0; i < 4; i++) {
            uint64_t seed = F.seeds[i];
            for (int k = 0; k < i; k++) assert_true(seed != F.seeds[k]);
            if (round) assert_true(seed == first[i]);
            first[i] = seed;
        }
        assert_true(first[0] == 42);
        done(&r);
    }
}

static void more_choices_than_a_tenant_may_run_go_in_turns(void **state) {
    (void)state;
    F.max_running = 3;
    reply r = chat("\"n\":10");
    if (r.status != 200) fail_msg("%s", r.body);
    assert_int_equal(F.expected, 10);
    assert_string_equal(at(&r, "usage.completion_tokens"), "70");
    assert_string_equal(at(&r, "choices.9.message.content"), "\"Hi \xC3\xA9!\"");
    done(&r);
    F.max_running = 0;
    r = chat("\"n\":128,\"max_tokens\":1");
    assert_int_equal(r.status, 200);
    assert_true(F.most_running <= 33);
    done(&r);
}

/* As many as before run at once when a limit that kept them from it is gone. */
static void choices_that_were_crowded_spread_again(void **state) {
    (void)state;
    F.max_running = 1;
    F.refused = 0;
    F.lift_after = 31; /* all that are tried beside the first */
    reply r = chat("\"n\":64");
    if (r.status != 200) fail_msg("%s", r.body);
    assert_int_equal(F.refused, 31);
    assert_true(F.most_running > 4 && F.most_running <= 32);
    assert_string_equal(at(&r, "usage.completion_tokens"), "448");
    done(&r);
}

static void completions(void **state) {
    (void)state;
    reply r = complete("\"prompt\":\"ab\",\"logprobs\":2,\"max_tokens\":5");
    assert_int_equal(r.status, 200);
    assert_string_equal(at(&r, "object"), "\"text_completion\"");
    assert_string_equal(at(&r, "choices.0.text"), "\"Hi \xC3\xA9\"");
    assert_string_equal(at(&r, "choices.0.finish_reason"), "\"length\"");
    assert_string_equal(at(&r, "choices.0.logprobs.tokens"), "[\"H\",\"i\",\" \",\"bytes:\\\\xc3\",\"bytes:\\\\xa9\"]");
    assert_string_equal(at(&r, "choices.0.logprobs.token_logprobs"), "[-1.25,-1.25,-1.25,-1.25,-1.25]");
    assert_string_equal(at(&r, "choices.0.logprobs.text_offset"), "[0,1,2,3,4]");
    assert_string_equal(at(&r, "choices.0.logprobs.top_logprobs.0"), "{\"H\":-1.25,\"z\":-3.5}");
    done(&r);
    r = complete("\"prompt\":\"ab\",\"logprobs\":0,\"echo\":true,\"max_tokens\":1");
    assert_string_equal(at(&r, "choices.0.text"), "\"abH\"");
    assert_string_equal(at(&r, "choices.0.logprobs"),
                        "{\"tokens\":[\"a\",\"b\",\"H\"],\"token_logprobs\":[null,-0.5,-1.25],"
                        "\"top_logprobs\":null,\"text_offset\":[0,1,2]}");
    done(&r);
    F.expected = 0;
    r = complete("\"prompt\":[[72,256],[105]],\"echo\":true,\"n\":2,\"max_tokens\":1");
    assert_int_equal(realm_json_len(&r.root), 7);
    assert_string_equal(at(&r, "choices.0.text"), "\"H<|end|>H\"");
    assert_string_equal(at(&r, "choices.1.text"), "\"H<|end|>H\"");
    assert_string_equal(at(&r, "choices.3.text"), "\"iH\"");
    assert_string_equal(at(&r, "choices.3.index"), "3");
    assert_int_equal(F.expected, 0); /* two prompts share nothing */
    done(&r);
    r = complete(
        "\"prompt\":\"ab\",\"stream\":true,\"echo\":true,\"logprobs\":1,\"stream_options\":{\"include_usage\":true}");
    char text[64] = "", tokens[256] = "";
    for (char **e = events_of(&r); *e; e++) {
        reply chunk = {0};
        assert_int_equal(realm_json_parse(&chunk.doc, *e, strlen(*e), NULL, NULL), REALM_OK);
        chunk.root = realm_json_root(chunk.doc);
        const char *t = at(&chunk, "choices.0.text"), *l = at(&chunk, "choices.0.logprobs.tokens");
        if (*t == '"') snprintf(text + strlen(text), sizeof text - strlen(text), "%.*s", (int)strlen(t) - 2, t + 1);
        if (*l == '[' && l[1] != ']') snprintf(tokens + strlen(tokens), sizeof tokens - strlen(tokens), "%s", l);
        realm_json_doc_close(chunk.doc);
    }
    assert_string_equal(text, "abHi \xC3\xA9!");
    assert_string_equal(tokens, "[\"a\",\"b\",\"H\"][\"i\"][\" \"][\"bytes:\\\\xc3\"][\"bytes:\\\\xa9\"][\"!\"]");
    done(&r);
    r = complete("\"prompt\":\"x\",\"suffix\":null,\"best_of\":1,\"user\":\"u\"");
    assert_int_equal(r.status, 200);
    done(&r);
}

static void failures(void **state) {
    (void)state;
    reply r = chat("\"user\":\"@program\"");
    assert_non_null(strstr(r.head, "x-should-retry: false"));
    assert_error(&r, 500, NULL, "program_failed");
    r = chat("\"user\":\"@program\",\"stream\":true"); /* nothing was sent yet: a status, not a stream */
    assert_error(&r, 500, NULL, "program_failed");
    r = chat("\"user\":\"@range\"");
    assert_error(&r, 400, "messages", "context_length_exceeded");
    r = chat("\"user\":\"@quota\""); /* waiting does not help, so nobody is told how long */
    assert_non_null(strstr(r.head, "x-should-retry: false"));
    assert_null(strstr(r.head, "retry-after"));
    assert_error(&r, 429, NULL, "insufficient_quota");
    /* a grammar is the client's fault where it sent one, else the program's */
    static const char schema[] = ",\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"x\","
                                 "\"schema\":{\"type\":\"object\"}}}";
    char body[512];
    (void)snprintf(body, sizeof body, "\"user\":\"@grammar\"%s", schema);
    r = chat(body);
    assert_error(&r, 400, "response_format.json_schema.schema", "unusable_schema");
    r = chat("\"user\":\"@grammar\",\"response_format\":{\"type\":\"json_object\"}");
    assert_error(&r, 400, "response_format", "unusable_schema");
    r = chat("\"user\":\"@grammar\"");
    assert_error(&r, 500, NULL, "program_failed");
    (void)snprintf(body, sizeof body, "\"user\":\"@grammar\",\"stream\":true%s", schema);
    r = chat(body);
    assert_error(&r, 400, "response_format.json_schema.schema", "unusable_schema");
    (void)snprintf(body, sizeof body, "\"user\":\"@grammar2\",\"stream\":true%s", schema);
    r = chat(body);
    assert_int_equal(r.status, 200);
    char **said = events_of(&r), *error = NULL;
    for (; *said; said++) error = *said;
    assert_string_equal(error,
                        "{\"error\":{\"message\":\"response_format.json_schema.schema: the grammar needs more than 50 "
                        "ms\",\"type\":\"invalid_request_error\",\"param\":\"response_format.json_schema.schema\","
                        "\"code\":\"unusable_schema\"}}");
    done(&r);
    r = chat("\"user\":\"@midfail\"");
    assert_error(&r, 500, NULL, NULL);
    r = chat("\"user\":\"@midfail\",\"stream\":true");
    assert_int_equal(r.status, 200);
    char **e = events_of(&r), *last = NULL;
    for (; *e; e++) last = *e;
    assert_memory_equal(
        last,
        "{\"error\":{\"message\":\"the compute device failed\",\"type\":\"server_error\",\"param\":null,\"code\":", 88);
    done(&r);
    /* which device, file or database it was is told to the log, with the request's id */
    assert_non_null(strstr(L.lines, "the device is lost"));
    r = ask("GET", "/v1/models", "broken", NULL);
    char id[64];
    assert_int_equal(sscanf(strstr(r.head, "x-request-id: "), "x-request-id: %63[a-z0-9_]", id), 1);
    assert_null(strstr(r.body, "/var/lib"));
    assert_error(&r, 500, NULL, "internal_error");
    strcat(id, ": store: /var/lib/realm.db: gone");
    assert_non_null(strstr(L.lines, id));
    r = post("/v1/chat/completions", "{\"model\":\"limited\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}");
    assert_non_null(strstr(r.head, "retry-after: 3\r\n"));
    assert_non_null(strstr(r.head, "x-ratelimit-remaining-tokens: 0\r\n"));
    assert_error(&r, 429, NULL, "rate_limit_exceeded");
    F.max_running = -1; /* every run is refused */
    r = chat("");
    assert_error(&r, 429, NULL, "rate_limit_exceeded");
}

static void wait_for(_Atomic int *n, int value) {
    for (int i = 0; i < 500 && atomic_load(n) < value; i++) nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    assert_int_equal(atomic_load(n), value);
}

static void clients_that_leave_cancel(void **state) {
    (void)state;
    static const char *const fields[] = {"", ",\"stream\":true", ",\"n\":4"};
    int started = 0;
    for (int i = 0; i < 3; i++) {
        char body[512];
        snprintf(body, sizeof body, "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"@wait\"}]%s}",
                 fields[i]);
        int fd = begin(0, "POST", "/v1/chat/completions", "tenant", body);
        started += i == 2 ? 4 : 1;
        wait_for(&F.started, started);
        close(fd);
        wait_for(&F.released, started);
    }
    assert_int_equal(F.cancelled, 6);
    /* in the middle of a stream, and while a worker still has the request */
    int fd = begin(0, "POST", "/v1/completions", "tenant",
                   "{\"model\":\"m\",\"prompt\":\"@long\",\"max_tokens\":20000,\"stream\":true}");
    char some[4096];
    assert_true(recv(fd, some, sizeof some, 0) > 0);
    close(fd);
    wait_for(&F.released, 7);
    for (int i = 0; i < 50; i++)
        close(begin(0, "POST", "/v1/completions", "tenant", "{\"model\":\"m\",\"prompt\":\"@wait\"}"));
    for (int i = 0; i < 500 && F.released < F.started; i++) nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    for (int i = 0; i < 500 && F.tenants; i++) nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    assert_int_equal(F.tenants, 0);
}

static void a_slow_reader_pauses_its_run(void **state) {
    (void)state;
    int fd = socket(AF_INET, SOCK_STREAM, 0), small = 65536;
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    struct sockaddr_in a = {
        .sin_family = AF_INET, .sin_port = htons(S.port[0]), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    const char *body = "{\"model\":\"m\",\"prompt\":\"@long\",\"max_tokens\":20000,\"stream\":true}";
    char q[512];
    int n = snprintf(
        q, sizeof q,
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer tenant\r\n"
        "Content-Length: %zu\r\n\r\n%s",
        strlen(body), body);
    send_all(fd, q, (size_t)n);
    nanosleep(&(struct timespec){.tv_nsec = 500000000}, NULL);
    assert_true(F.produced < 10000);
    int large = 1 << 20;
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &large, sizeof large);
    reply r = read_reply(fd);
    size_t x = 0;
    for (char **e = events_of(&r); *e; e++) x += strstr(*e, "\"text\":\"x\"") != NULL;
    assert_int_equal(x, 20000);
    done(&r);
}

/* Each allocation that a worker makes for a request fails once: 503, and nothing is left behind. */
static void memory_may_run_out(void **state) {
    (void)state;
    static const char *const bodies[] = {"{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":"
                                         "\"text\",\"text\":\"x\"}]}],\"logit_bias\":{\"1\":2},\"n\":2}",
                                         "{\"model\":\"m\",\"prompt\":[[1,2],[3]],\"echo\":true,\"stop\":\"q\"}"};
    for (size_t k = 0; k < 2; k++) {
        int refused = 0;
        for (int i = 1; i < 60; i++) {
            F.fail_after = i;
            reply r = post(k ? "/v1/completions" : "/v1/chat/completions", bodies[k]);
            if (r.status != 200 && r.status != 503) fail_msg("%d: %u %s", i, r.status, r.body);
            refused += r.status == 503;
            done(&r);
        }
        assert_true(refused > 4 && refused < 59);
    }
}

static void text_endpoints(void **state) {
    (void)state;
    reply r = post("/tokenize", "{\"content\":\"a<|end|>\"}");
    assert_string_equal(r.body, "{\"tokens\":[97,60,124,101,110,100,124,62]}");
    done(&r);
    r = post("/tokenize", "{\"model\":\"m\",\"content\":\"a<|end|>\",\"add_special\":true,\"parse_special\":true}");
    assert_string_equal(r.body, "{\"tokens\":[256,97,256]}");
    done(&r);
    r = post("/detokenize", "{\"tokens\":[256,97,195,169]}");
    assert_string_equal(r.body, "{\"content\":\"<|end|>a\xC3\xA9\"}");
    done(&r);
    r = post("/apply-template", "{\"messages\":[{\"role\":\"developer\",\"content\":\"x\"}]}");
    assert_string_equal(at(&r, "prompt"), "\"T:[{\\\"role\\\":\\\"system\\\",\\\"content\\\":\\\"x\\\"}]+\"");
    done(&r);
    r = post("/apply-template",
             "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"chat_template_kwargs\":{\"a\":1}}");
    assert_string_equal(at(&r, "prompt"),
                        "\"T:[{\\\"role\\\":\\\"user\\\",\\\"content\\\":\\\"x\\\"}]+{\\\"a\\\":1}\"");
    done(&r);
    static const struct {
        const char *path, *body, *param;
        unsigned status;
    } bad[] = {
        {"/tokenize", "{}", "content", 400},
        {"/tokenize", "{\"content\":7}", "content", 400},
        {"/tokenize", "{\"content\":\"x\",\"add_special\":1}", "add_special", 400},
        {"/tokenize", "{\"content\":\"x\",\"what\":1}", "what", 400},
        {"/tokenize", "{\"model\":\"q\",\"content\":\"x\"}", "model", 404},
        {"/tokenize", "[]", NULL, 400},
        {"/detokenize", "{\"tokens\":[1,257]}", "tokens[1]", 400},
        {"/detokenize", "{\"tokens\":[-1]}", "tokens[0]", 400},
        {"/detokenize", "{\"tokens\":\"x\"}", "tokens", 400},
        {"/apply-template", "{\"messages\":[]}", "messages", 400},
        {"/apply-template", "{\"messages\":[{}]}", "messages[0].role", 400},
        {"/apply-template", "{\"chat_template_kwargs\":{\"messages\":[]}}", "chat_template_kwargs.messages", 400}};
    for (size_t i = 0; i < REALM_ARRAY_LEN(bad); i++) {
        r = post(bad[i].path, bad[i].body);
        assert_error(&r, bad[i].status, bad[i].param, NULL);
    }
}

/* What a limit refuses costs a head: no byte of its body is waited for. What is found later is found before a schema is
 * compiled. */
static void limits_come_first(void **state) {
    (void)state;
    static const char *const paths[] = {"/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize",
                                        "/apply-template"};
    for (size_t i = 0; i < REALM_ARRAY_LEN(paths); i++) {
        char q[512];
        int n = snprintf(q, sizeof q,
                         "POST %s HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer limited\r\nContent-Type: "
                         "application/json\r\nContent-Length: 1000000\r\n\r\n",
                         paths[i]);
        int fd = dial(REALM_API_PUBLIC);
        send_all(fd, q, (size_t)n);
        reply r = read_reply(fd);
        assert_non_null(strstr(r.head, "retry-after: 3\r\n"));
        assert_non_null(strstr(r.head, "x-ratelimit-remaining-requests: 0\r\n"));
        assert_error(&r, 429, NULL, "rate_limit_exceeded");
    }
    assert_int_equal(F.admitted, REALM_ARRAY_LEN(paths));
    reply r = ask("GET", "/v1/models", "limited", NULL); /* costs nothing, and is no request */
    assert_int_equal(r.status, 200);
    done(&r);
    assert_int_equal(F.admitted, REALM_ARRAY_LEN(paths));
    static const char schema[] = "\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"response_format\":{\"type\":"
                                 "\"json_schema\",\"json_schema\":{\"name\":\"x\",\"schema\":{\"type\":\"object\"}}}}";
    char body[512];
    (void)snprintf(body, sizeof body, "{\"model\":\"limited\",%s", schema);
    r = post("/v1/chat/completions", body);
    assert_error(&r, 429, NULL, "rate_limit_exceeded");
    assert_int_equal(F.compiled, 0);
    (void)snprintf(body, sizeof body, "{\"model\":\"m\",%s", schema);
    r = post("/v1/chat/completions", body);
    assert_int_equal(r.status, 200);
    assert_int_equal(F.compiled, 1);
    done(&r);
}

/* A body with its answer has half of the room at most, whatever its tenant does; it is free again afterwards. */
static void bodies_and_answers_are_held_to_a_share(void **state) {
    (void)state;
    enum { MEDIUM = 300000, LARGE = 1000000 }; /* of answer there are four times as much */
    char *body = malloc(LARGE + 64);
    for (int i = 0; i < 6; i++) {
        const int n = i % 2 == 0 ? MEDIUM : LARGE;
        memset(body + sprintf(body, "{\"content\":\""), 'x', (size_t)n);
        strcpy(body + strlen("{\"content\":\"") + n, "\"}");
        reply r = ask("POST", "/tokenize", i < 3 ? "tenant" : "other", body);
        if (n == LARGE) {
            assert_error(&r, 413, NULL, "body_too_large"); /* it would never fit */
        } else {
            assert_int_equal(r.status, 200);
            done(&r);
        }
    }
    free(body);
}

/* Of the 64 threads that compile schemas a tenant has half, whatever it sends. */
static void schemas_are_compiled_in_shares(void **state) {
    (void)state;
    static const char form[] =
        "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"json_schema\":{\"title\":"
        "\"%s\"}}";
    char held[256], quick[256];
    (void)snprintf(held, sizeof held, form, "hold");
    (void)snprintf(quick, sizeof quick, form, "go");
    F.hold = 1;
    int fds[32];
    for (int i = 0; i < 32; i++) fds[i] = begin(REALM_API_PUBLIC, "POST", "/v1/chat/completions", "tenant", held);
    for (int i = 0; i < 3000 && F.compiled < 32; i++) nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    assert_int_equal(F.compiled, 32);
    reply r = ask("POST", "/v1/chat/completions", "tenant", quick);
    assert_error(&r, 429, NULL, "rate_limit_exceeded");
    r = ask("POST", "/v1/chat/completions", "other", quick);
    assert_int_equal(r.status, 200);
    done(&r);
    close(fds[0]); /* one that has left is not waited for when the schema is there */
    F.hold = 0;
    for (int i = 1; i < 32; i++) {
        r = read_reply(fds[i]);
        assert_int_equal(r.status, 200);
        done(&r);
    }
    r = ask("POST", "/v1/chat/completions", "tenant", quick);
    assert_int_equal(r.status, 200);
    done(&r);
}

static void models_and_usage(void **state) {
    (void)state;
    reply r = ask("GET", "/v1/models", "tenant", NULL);
    assert_string_equal(r.body, "{\"object\":\"list\",\"data\":[{\"id\":\"m\",\"object\":\"model\",\"created\":"
                                "1700000000,\"owned_by\":\"realm\"}]}");
    done(&r);
    r = ask("GET", "/v1/usage", "tenant", NULL);
    assert_string_equal(at(&r, "requests"), "5");
    done(&r);
    r = ask("GET", "/v1/usage?since=1700000000", "tenant", NULL);
    assert_string_equal(at(&r, "requests"), "1");
    done(&r);
    r = ask("GET", "/v1/usage?since=x", "tenant", NULL);
    assert_error(&r, 400, "since", NULL);
}

/* Strictly: lines of two kinds; HELP, TYPE and then all series of a family; names that tell counters from others; no
 * family twice. */
static void check_exposition(char *text) {
    static char seen[1024][96];
    char name[128] = "", type[16] = "";
    size_t n_seen = 0;
    for (char *next, *line = text; *line; line = next) {
        char found[128], value[64];
        next = strchr(line, '\n');
        assert_non_null(next); /* the last line has its line feed too */
        *next++ = '\0';
        if (sscanf(line, "# HELP %127[a-z0-9_] %63[^\n]", found, value) == 2) {
            snprintf(name, sizeof name, "%s", found);
            type[0] = '\0';
            for (size_t i = 0; i < n_seen; i++) assert_string_not_equal(seen[i], name);
            assert_true(n_seen < REALM_ARRAY_LEN(seen) && strlen(name) < sizeof *seen);
            strcpy(seen[n_seen++], name);
            assert_int_equal(line[strlen(line) - 1], '.');
            continue;
        }
        if (sscanf(line, "# TYPE %127[a-z0-9_] %15[a-z]", found, type) == 2) {
            assert_string_equal(found, name);
            bool total = strlen(name) > 6 && strcmp(name + strlen(name) - 6, "_total") == 0;
            assert_int_equal(total, strcmp(type, "counter") == 0);
            continue;
        }
        assert_true(type[0]);
        size_t n = strlen(name);
        if (strncmp(line, name, n) != 0) fail_msg("%s is not of %s", line, name);
        if (strcmp(type, "histogram") != 0 && line[n] != ' ' && line[n] != '{') fail_msg("%s", line);
        char *at = line + strcspn(line, "{ "), *end;
        if (*at == '{') {
            do {
                at += 1 + strspn(at + 1, "abcdefghijklmnopqrstuvwxyz_");
                assert_true(at[0] == '=' && at[1] == '"');
                for (at += 2; *at && *at != '"'; at++) at += *at == '\\';
                assert_int_equal(*at++, '"');
            } while (*at == ',');
            assert_int_equal(*at++, '}');
        }
        assert_int_equal(*at, ' ');
        (void)strtod(at + 1, &end);
        assert_true(end > at + 1 && *end == '\0');
    }
}

static void metrics(void **state) {
    (void)state;
    reply r = chat("");
    done(&r);
    r = read_reply(begin(REALM_API_ADMIN, "GET", "/metrics", NULL, NULL));
    static const char *const lines[] = {"realm_http_requests_total{route=\"/v1/chat/completions\",status=\"2xx\"} 1",
                                        "realm_requests_total 3",
                                        "realm_program_cpu_seconds_total 2.000000001",
                                        "realm_device_waits_total 9",
                                        "realm_engine_steps_total{model=\"m\"} 7",
                                        "realm_prompt_tokens_total{model=\"m\"} 1",
                                        "realm_kv_suspended_bytes{model=\"m\",place=\"memory\"} 0",
                                        "realm_kv_suspended_bytes{model=\"m\",place=\"disk\"} 5",
                                        "realm_stream_misses_total{model=\"m\"} 1152921504606846976",
                                        "realm_time_to_first_token_seconds_count 1"};
    for (size_t i = 0; i < REALM_ARRAY_LEN(lines); i++) {
        char line[160];
        snprintf(line, sizeof line, "\n%s\n", lines[i]);
        if (!strstr(r.body, line)) fail_msg("no line %s", lines[i]);
    }
    assert_null(strstr(r.body, "acme")); /* open to whoever reaches the listener: no tenant is named */
    check_exposition(r.body);
    done(&r);
    for (int admin = 0; admin < 2; admin++) {
        r = read_reply(begin(admin ? REALM_API_ADMIN : REALM_API_PUBLIC, "GET", "/metrics", "admin", NULL));
        assert_non_null(strstr(r.body, "\nrealm_tenant_requests_total{tenant=\"acme\"} 4\n"));
        assert_non_null(strstr(r.body, "\nrealm_tenant_requests_total{tenant=\"b.c\"} 0\n"));
        assert_non_null(strstr(r.body, "\nrealm_tenant_program_cpu_seconds_total{tenant=\"acme\"} 0.001500000\n"));
        assert_non_null(strstr(r.body, "\nrealm_tenant_storage_bytes{tenant=\"b.c\"} 12\n"));
        check_exposition(r.body);
        done(&r);
    }
}

/* An answer that fails in its stream has taken its time too. */
static void failed_streams_are_timed(void **state) {
    (void)state;
    reply r = chat("\"user\":\"@midfail\",\"stream\":true");
    done(&r);
    r = read_reply(begin(REALM_API_ADMIN, "GET", "/metrics", NULL, NULL));
    assert_non_null(strstr(r.body, "\nrealm_http_requests_total{route=\"/v1/chat/completions\",status=\"5xx\"} 1\n"));
    assert_non_null(strstr(r.body, "\nrealm_http_request_seconds_total{route=\"/v1/chat/completions\"} "));
    done(&r);
}

/* A worker that counts connections is not awaited by the server. */
static void metrics_while_the_server_stops(void **state) {
    (void)state;
    F.hold = 1;
    int fd = begin(REALM_API_ADMIN, "GET", "/metrics", NULL, NULL);
    wait_for(&F.counted, 1);
    realm_server_stop(S.server);
    F.hold = 0;
    close(fd);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(routes_and_keys),
        TEST(pages_of_other_origins),
        TEST(the_admin_listener),
        TEST(wrong_fields_are_named),
        TEST(template_arguments_reach_the_template),
        TEST(what_the_program_and_the_engine_get),
        TEST(samplers_reach_the_engine),
        TEST(codes_say_what_is_wrong),
        TEST(no_tokens_at_all),
        TEST(chat_answers),
        TEST(chat_streams),
        TEST(choices_have_their_own_seeds),
        TEST(more_choices_than_a_tenant_may_run_go_in_turns),
        TEST(choices_that_were_crowded_spread_again),
        TEST(completions),
        TEST(failures),
        TEST(clients_that_leave_cancel),
        TEST(a_slow_reader_pauses_its_run),
        TEST(memory_may_run_out),
        TEST(text_endpoints),
        TEST(limits_come_first),
        TEST(schemas_are_compiled_in_shares),
        TEST(bodies_and_answers_are_held_to_a_share),
        TEST(models_and_usage),
        TEST(metrics),
        TEST(failed_streams_are_timed),
        TEST(metrics_while_the_server_stops),
    };
    realm_log_configure(REALM_LOG_INFO, keep_line, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
