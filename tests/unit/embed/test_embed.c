/* realm.h as a caller may get it wrong: each mistake is an error with a text, none ends the process or hangs it. The
 * right use is in examples/, which tests/examples.sh builds and runs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "realm/realm.h"
#include "support/scratch.h"
#include "support/tiny_model.h"

static char tiny_path[SCRATCH_MAX] = "test-embed";
static realm *r;

static int open_all(void **state) {
    (void)state;
    tiny_model *file = tiny_make(&tiny_llama);
    int fd = scratch_file(tiny_path);
    bool ok = fd >= 0 && write(fd, file->file, file->file_len) == (ssize_t)file->file_len;
    if (fd >= 0) close(fd);
    tiny_free(file);
    realm_error err = {0};
    realm_set_log(3, NULL, NULL);
    if (!ok || realm_open(&r, NULL, &err) || realm_model_load(r, "tiny", tiny_path, NULL, &err) ||
        realm_tenant_add(r, "a", NULL, 0, &err)) {
        fprintf(stderr, "%s\n", err.text);
        return -1;
    }
    return 0;
}

static int close_all(void **state) {
    (void)state;
    realm_close(r);
    unlink(tiny_path);
    return 0;
}

static realm_job_params plain(void) {
    realm_job_params p = REALM_JOB_PARAMS_INIT;
    p.tenant = "a";
    p.prompt = "abc abc";
    p.raw = true;
    p.max_tokens = 8;
    return p;
}

#define REFUSED(call, code, says)                                                       \
    do {                                                                                \
        realm_error why = {0};                                                          \
        assert_int_equal(call, code);                                                   \
        if (!strstr(why.text, says)) fail_msg("%s is not said by: %s", says, why.text); \
    } while (0)

static void structures_without_their_size(void **state) {
    (void)state;
    realm *other = r;
    realm_job *job = (realm_job *)r;
    realm_config config = {.state_dir = "/nowhere"};
    realm_load_config load = {.n_ctx = 8};
    realm_job_params p = plain();
    realm_tenant_usage usage = {.size = 1};
    REFUSED(realm_open(&other, &config, &why), REALM_E_INVALID, "realm_config");
    assert_null(other);
    REFUSED(realm_model_load(r, "x", tiny_path, &load, &why), REALM_E_INVALID, "realm_load_config");
    p.size = 8;
    REFUSED(realm_job_start(r, &p, &job, &why), REALM_E_INVALID, "realm_job_params");
    assert_null(job);
    REFUSED(realm_tenant_get_usage(r, "a", &usage, &why), REALM_E_INVALID, "realm_tenant_usage");
}

static void what_is_missing_is_named(void **state) {
    (void)state;
    realm_tenant_usage usage = {.size = sizeof usage};
    REFUSED(realm_model_load(r, NULL, tiny_path, NULL, &why), REALM_E_INVALID, "id");
    REFUSED(realm_model_load(r, "x", NULL, NULL, &why), REALM_E_INVALID, "path");
    REFUSED(realm_tenant_add(r, NULL, NULL, 0, &why), REALM_E_INVALID, "name");
    REFUSED(realm_tenant_limit(r, NULL, "weight", 1, &why), REALM_E_INVALID, "name");
    REFUSED(realm_tenant_limit(r, "a", NULL, 1, &why), REALM_E_INVALID, "limit");
    REFUSED(realm_tenant_get_usage(r, NULL, &usage, &why), REALM_E_INVALID, "name");
}

static void wrong_jobs(void **state) {
    (void)state;
    static const char *const stops[] = {"x", NULL};
    realm_job *job;
#define WRONG(set, code, says)                                   \
    do {                                                         \
        realm_job_params p = plain();                            \
        set;                                                     \
        job = (realm_job *)r;                                    \
        REFUSED(realm_job_start(r, &p, &job, &why), code, says); \
        assert_null(job);                                        \
    } while (0)
    WRONG(p.tenant = NULL, REALM_E_INVALID, "tenant");
    WRONG(p.tenant = "nobody", REALM_E_NOT_FOUND, "nobody");
    WRONG(p.model = "none", REALM_E_NOT_FOUND, "none");
    WRONG(p.prompt = NULL, REALM_E_INVALID, "prompt");
    WRONG(p.prompt = "\xff", REALM_E_INVALID, "UTF-8");
    WRONG(p.messages_json = "[]", REALM_E_INVALID, "one of");
    WRONG((p.stop = stops, p.n_stop = 2), REALM_E_INVALID, "stop string 1");
    WRONG(p.n_stop = 1, REALM_E_INVALID, "stop string 0");
    WRONG((p.stop = stops, p.n_stop = SIZE_MAX), REALM_E_RANGE, "stop strings");
    WRONG(p.temperature = -1, REALM_E_RANGE, "temperature");
    WRONG(p.template_args_json = "{}", REALM_E_INVALID, "template_args_json");
#define WRONG_ARGS(json, code, says) WRONG((p.raw = false, p.template_args_json = json), code, says)
    WRONG_ARGS("", REALM_E_FORMAT, "template_args_json");
    WRONG_ARGS("null", REALM_E_INVALID, "template_args_json");
    WRONG_ARGS("[1]", REALM_E_INVALID, "template_args_json");
    WRONG_ARGS("{\"a\":1,\"a\":2}", REALM_E_FORMAT, "template_args_json");
    WRONG_ARGS("{\"a\":1,\"bos_token\":\"\"}", REALM_E_INVALID, "template_args_json: bos_token");
    char many[1024] = "{";
    for (int i = 0; i <= 32; i++) sprintf(many + strlen(many), "%s\"a%d\":0", i ? "," : "", i);
    WRONG_ARGS(strcat(many, "}"), REALM_E_RANGE, "at most 32");
    WRONG(p.top_p = 0, REALM_E_RANGE, "top_p");
}

static uint32_t prompt_tokens(const realm_job_params *p) {
    realm_error err = {0};
    realm_job *job;
    realm_job_result result = {0};
    if (realm_job_start(r, p, &job, &err) || realm_job_wait(job, NULL, NULL, &result, &err)) fail_msg("%s", err.text);
    realm_job_close(job);
    return result.prompt_tokens;
}

/* The template shows as many letters as its argument says, of which the tiny vocabulary makes a token each. */
static void template_arguments(void **state) {
    (void)state;
    static const char TEMPLATE[] = "{{ messages[0].content }}{% for x in more or [] %} {{ x.letter }}{% endfor %}";
    realm_load_config load = {.size = sizeof load, .chat_template = TEMPLATE};
    realm_error err = {0};
    realm_job_params p = plain();
    p.raw = false;
    p.model = "chatty";
    p.max_tokens = 1;
    if (realm_model_load(r, "chatty", tiny_path, &load, &err)) fail_msg("%s", err.text);
    const uint32_t none = prompt_tokens(&p);
    p.template_args_json = "{}";
    assert_int_equal(prompt_tokens(&p), none);
    p.template_args_json = "{\"not_read\":true, \"more\":[{\"letter\":\"a\"},{\"letter\":\"a\"}]}";
    assert_int_equal(prompt_tokens(&p), none + 4);
    /* One of the version before the field, which is not looked at. */
    p.size = offsetof(realm_job_params, template_args_json);
    assert_int_equal(prompt_tokens(&p), none);
    p.size--;
    realm_job *job;
    REFUSED(realm_job_start(r, &p, &job, &why), REALM_E_INVALID, "realm_job_params");
}

static void a_refused_module_makes_no_tenant(void **state) {
    (void)state;
    static const unsigned char NONE[] = {0, 'a', 's', 'm'};
    realm_job *job;
    realm_error err = {0};
    realm_job_params p = plain();
    p.tenant = "late";
    REFUSED(realm_tenant_add(r, "late", NONE, sizeof NONE, &why), REALM_E_FORMAT, "module");
    REFUSED(realm_job_start(r, &p, &job, &why), REALM_E_NOT_FOUND, "late");
    assert_int_equal(realm_tenant_add(r, "late", NULL, 0, &err), REALM_OK);
    REFUSED(realm_tenant_add(r, "late", NONE, sizeof NONE, &why), REALM_E_FORMAT,
            "module"); /* one that was there stays */
    assert_int_equal(realm_job_start(r, &p, &job, &err), REALM_OK);
    realm_job_close(job);
}

static bool once(void *user, const char *text, size_t len) {
    (void)text, (void)len;
    ++*(int *)user;
    return false;
}

static void a_job_ends_once(void **state) {
    (void)state;
    realm_job *job;
    realm_error err = {0};
    realm_job_params p = plain();
    realm_job_result result;
    assert_int_equal(realm_job_start(r, &p, &job, &err), REALM_OK);
    assert_int_equal(realm_job_wait(job, NULL, NULL, &result, &err), REALM_OK);
    assert_int_equal(result.completion_tokens, 8);
    REFUSED(realm_job_wait(job, NULL, NULL, &result, &why), REALM_E_INVALID, "waited");
    realm_job_cancel(job);
    realm_job_close(job);

    p.max_tokens = 0; /* cancelled from its callback, and nobody asks for the result */
    int n = 0;
    assert_int_equal(realm_job_start(r, &p, &job, &err), REALM_OK);
    assert_int_equal(realm_job_wait(job, once, &n, NULL, &err), REALM_OK);
    assert_int_equal(n, 1);
    realm_job_close(job);
}

static void opened_and_closed_beside_each_other(void **state) {
    (void)state;
    for (int i = 0; i < 5; i++) {
        realm *other;
        realm_error err = {0};
        realm_job *job;
        realm_job_params p = plain();
        if (realm_open(&other, NULL, &err) || realm_model_load(other, "tiny", tiny_path, NULL, &err) ||
            realm_tenant_add(other, "a", NULL, 0, &err) || realm_job_start(other, &p, &job, &err))
            fail_msg("%s", err.text);
        if (i % 2) assert_int_equal(realm_job_wait(job, NULL, NULL, NULL, &err), REALM_OK);
        realm_job_close(job);
        realm_close(other);
    }
    realm_job_close(NULL);
    realm_close(NULL);
}

/* Programs reserve address space; where a limit leaves little of it there are fewer of them. */
static void little_address_space(void **state) {
    (void)state;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    skip(); /* they have reserved more than any limit */
#endif
    pid_t child = fork();
    if (child == 0) { /* a thread of its parent's may hold any lock: exec'ed anew */
        const struct rlimit limit = {UINT64_C(60) << 30, UINT64_C(60) << 30};
        if (setrlimit(RLIMIT_AS, &limit) != 0) _exit(2);
        execl("/proc/self/exe", "test_embed", "within", tiny_path, (char *)NULL);
        _exit(3);
    }
    int status = -1;
    assert_int_equal(waitpid(child, &status, 0), child);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) fail_msg("the child ended with 0x%x", (unsigned)status);
}

/* One job, in the child. */
static int within(const char *path) {
    realm_error err = {0};
    realm_job *job = NULL;
    realm_job_params p = plain();
    realm_job_result result = {0};
    if (realm_open(&r, NULL, &err) || realm_model_load(r, "tiny", path, NULL, &err) ||
        realm_tenant_add(r, "a", NULL, 0, &err) || realm_job_start(r, &p, &job, &err) ||
        realm_job_wait(job, NULL, NULL, &result, &err))
        fprintf(stderr, "%s\n", err.text);
    realm_job_close(job);
    realm_close(r);
    return result.completion_tokens == 8 ? 0 : 1;
}

int main(int argc, char **argv) {
    if (argc == 3) return within(argv[2]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(structures_without_their_size),
        cmocka_unit_test(what_is_missing_is_named),
        cmocka_unit_test(wrong_jobs),
        cmocka_unit_test(template_arguments),
        cmocka_unit_test(a_refused_module_makes_no_tenant),
        cmocka_unit_test(a_job_ends_once),
        cmocka_unit_test(opened_and_closed_beside_each_other),
        cmocka_unit_test(little_address_space),
    };
    return cmocka_run_group_tests_name("embed", tests, open_all, close_all);
}
