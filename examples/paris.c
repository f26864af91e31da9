/* The capital of France, in forty lines: one model, one tenant, text as it comes.
 *
 *     cc examples/paris.c $(pkg-config --cflags --libs realm) -o paris && ./paris MODEL.gguf
 */
#include <realm/realm.h>
#include <stdio.h>

static bool print_piece(void *user, const char *text, size_t len) {
    (void)user;
    fwrite(text, 1, len, stdout);
    fflush(stdout);
    return true; /* false would cancel the job */
}

int main(int argc, char **argv) {
    realm *r = NULL;
    realm_job *job = NULL;
    realm_error err = {0};
    realm_job_result result;
    if (argc != 2) return fprintf(stderr, "usage: %s MODEL.gguf\n", argv[0]), 2;

    realm_status s = realm_open(&r, NULL, &err);
    if (s == REALM_OK) s = realm_model_load(r, "model", argv[1], NULL, &err);
    if (s == REALM_OK) s = realm_tenant_add(r, "alpha", NULL, 0, &err); /* the default program */
    if (s == REALM_OK) {
        realm_job_params p = REALM_JOB_PARAMS_INIT;
        p.tenant = "alpha";
        p.prompt = "What is the capital of France? Answer in one sentence.";
        p.max_tokens = 32;
        s = realm_job_start(r, &p, &job, &err);
    }
    if (s == REALM_OK) s = realm_job_wait(job, print_piece, NULL, &result, &err);
    if (s == REALM_OK)
        printf("\n(%u prompt tokens, %u generated)\n", result.prompt_tokens, result.completion_tokens);
    else
        fprintf(stderr, "paris: %s\n", err.text);
    realm_job_close(job);
    realm_close(r);
    return s == REALM_OK ? 0 : 1;
}
