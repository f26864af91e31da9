/* Three tenants at once on one copy of the weights, each with its own program, and what each used.
 *
 *     multi_tenant MODEL.gguf shout.wasm redact.wasm
 *
 * "plain" has the default program, the others bring their own. All three jobs run in the same batch; the answers are
 * printed when each has ended.
 */
#include <realm/realm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define N_TENANTS 3
#define ANSWER_MAX 4096

typedef struct answer {
    char text[ANSWER_MAX];
    size_t len;
} answer;

static bool collect(void *user, const char *text, size_t len) {
    answer *a = user;
    if (len > sizeof a->text - 1 - a->len) return false;
    memcpy(a->text + a->len, text, len);
    a->len += len;
    return true;
}

/* A whole file; NULL when it cannot be read. */
static void *slurp(const char *path, size_t *len) {
    FILE *f = fopen(path, "rb");
    void *data = NULL;
    if (!f) return NULL;
    if (fseek(f, 0, SEEK_END) == 0) {
        long size = ftell(f);
        rewind(f);
        if (size >= 0 && (data = malloc((size_t)size + 1))) *len = fread(data, 1, (size_t)size, f);
    }
    fclose(f);
    return data;
}

static realm_status add_tenant(realm *r, const char *name, const char *wasm_file, realm_error *err) {
    size_t len = 0;
    void *wasm = wasm_file ? slurp(wasm_file, &len) : NULL;
    if (wasm_file && !wasm) {
        snprintf(err->text, sizeof err->text, "cannot read %s", wasm_file);
        return err->code = REALM_E_IO;
    }
    realm_status s = realm_tenant_add(r, name, wasm, len, err);
    free(wasm);
    return s;
}

int main(int argc, char **argv) {
    static const char *const names[N_TENANTS] = {"plain", "shout", "redact"};
    realm *r = NULL;
    realm_job *jobs[N_TENANTS] = {0};
    answer answers[N_TENANTS] = {0};
    realm_error err = {0};
    if (argc != 4) return fprintf(stderr, "usage: %s MODEL.gguf SHOUT.wasm REDACT.wasm\n", argv[0]), 2;
    const char *programs[N_TENANTS] = {NULL, argv[2], argv[3]};

    realm_status s = realm_open(&r, NULL, &err);
    if (s == REALM_OK) s = realm_model_load(r, "model", argv[1], NULL, &err);
    for (int i = 0; i < N_TENANTS && s == REALM_OK; i++) s = add_tenant(r, names[i], programs[i], &err);
    for (int i = 0; i < N_TENANTS && s == REALM_OK; i++) {
        realm_job_params p = REALM_JOB_PARAMS_INIT;
        p.tenant = names[i];
        p.prompt = "What is the capital of France? Answer in one sentence.";
        p.max_tokens = 32;
        s = realm_job_start(r, &p, &jobs[i], &err);
    }
    for (int i = 0; i < N_TENANTS && s == REALM_OK; i++) {
        s = realm_job_wait(jobs[i], collect, &answers[i], NULL, &err);
        if (s == REALM_OK) printf("%-7s %s\n", names[i], answers[i].text);
    }
    for (int i = 0; i < N_TENANTS; i++) realm_job_close(jobs[i]);
    for (int i = 0; i < N_TENANTS && s == REALM_OK; i++) {
        realm_tenant_usage u = {.size = sizeof u};
        s = realm_tenant_get_usage(r, names[i], &u, &err);
        if (s == REALM_OK)
            printf("%-7s %llu request, %llu + %llu tokens, %.3f ms of its program\n", names[i],
                   (unsigned long long)u.requests, (unsigned long long)u.prompt_tokens,
                   (unsigned long long)u.completion_tokens, (double)u.program_cpu_ns / 1e6);
    }
    if (s != REALM_OK) fprintf(stderr, "multi_tenant: %s\n", err.text);
    realm_close(r);
    return s == REALM_OK ? 0 : 1;
}
