/* A smoke test for an installation: the library answers, says the same thing twice with the same seed, refuses what it
 * should, cancels, and counts. Prints one line per check; exits 0 when all held.
 *
 *     simple_test MODEL.gguf
 */
#include <realm/realm.h>
#include <stdio.h>
#include <string.h>

static int n_failed;

static void check(bool ok, const char *what) {
    printf("%-6s %s\n", ok ? "ok" : "FAILED", what);
    if (!ok) n_failed++;
}

typedef struct text {
    char data[4096];
    size_t len, stop_after; /* stop_after > 0: ends the job once this many bytes came */
} text;

static bool collect(void *user, const char *piece, size_t len) {
    text *t = user;
    if (len > sizeof t->data - 1 - t->len) return false;
    memcpy(t->data + t->len, piece, len);
    t->len += len;
    return t->stop_after == 0 || t->len < t->stop_after;
}

static realm_status ask(realm *r, const realm_job_params *p, text *out, realm_job_result *result, realm_error *err) {
    realm_job *job;
    realm_status s = realm_job_start(r, p, &job, err);
    if (s != REALM_OK) return s;
    s = realm_job_wait(job, collect, out, result, err);
    realm_job_close(job);
    return s;
}

int main(int argc, char **argv) {
    realm *r = NULL;
    realm_error err = {0};
    if (argc != 2) return fprintf(stderr, "usage: %s MODEL.gguf\n", argv[0]), 2;
    if (realm_open(&r, NULL, &err) != REALM_OK || realm_model_load(r, "model", argv[1], NULL, &err) != REALM_OK ||
        realm_tenant_add(r, "tester", NULL, 0, &err) != REALM_OK) {
        fprintf(stderr, "simple_test: %s\n", err.text);
        realm_close(r);
        return 1;
    }
    realm_job_params p = REALM_JOB_PARAMS_INIT;
    p.tenant = "tester";
    p.prompt = "Name a colour.";
    p.max_tokens = 24;
    p.temperature = 1;
    p.seed = 7;
    text first = {0}, second = {0}, cut = {.stop_after = 1};
    realm_job_result a, b, c;
    check(ask(r, &p, &first, &a, &err) == REALM_OK && first.len > 0, "a request is answered");
    check(ask(r, &p, &second, &b, &err) == REALM_OK && strcmp(first.data, second.data) == 0,
          "the same seed gives the same text");
    check(a.completion_tokens > 0 && a.completion_tokens <= 24 && a.prompt_tokens == b.prompt_tokens,
          "tokens are counted");
    p.max_tokens = 0;
    check(ask(r, &p, &cut, &c, &err) == REALM_OK && c.end == REALM_JOB_CANCELLED, "a job can be cancelled");
    p.temperature = -1;
    check(ask(r, &p, &cut, &c, &err) == REALM_E_RANGE && strstr(err.text, "temperature"), "a bad parameter is named");
    p.temperature = 0;
    p.tenant = "nobody";
    check(ask(r, &p, &cut, &c, &err) == REALM_E_NOT_FOUND, "an unknown tenant is refused");
    check(realm_tenant_add(r, "bad", "not wasm", 8, &err) != REALM_OK, "a module that is none is refused");
    realm_tenant_usage u = {.size = sizeof u};
    check(realm_tenant_get_usage(r, "tester", &u, &err) == REALM_OK && u.requests == 3 && u.aborted_requests == 1 &&
              u.prompt_tokens == a.prompt_tokens + b.prompt_tokens + c.prompt_tokens &&
              u.completion_tokens >= a.completion_tokens + b.completion_tokens && u.program_cpu_ns > 0,
          "the ledger has it all");
    realm_close(r);
    return n_failed ? 1 : 0;
}
