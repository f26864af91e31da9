/* Programs that import what stock toolchains import: the subset of WASI preview 1, and AssemblyScript's `env`. */
#include "tenant/client.h"

static char log_text[1 << 20];
static size_t log_len;
static pthread_mutex_t log_mu = PTHREAD_MUTEX_INITIALIZER; /* lines come under locks of any rank */

static void keep_log(void *user, realm_log_level level, const char *line, size_t len) {
    (void)user;
    (void)level;
    pthread_mutex_lock(&log_mu);
    if (len < sizeof log_text - log_len) {
        memcpy(log_text + log_len, line, len);
        log_len += len;
        log_text[log_len] = 0;
    }
    pthread_mutex_unlock(&log_mu);
}

static size_t count(const char *part) {
    size_t n = 0;
    pthread_mutex_lock(&log_mu);
    for (const char *at = log_text; (at = strstr(at, part)); at += strlen(part)) n++;
    pthread_mutex_unlock(&log_mu);
    return n;
}

static realm_tenant *wasi_tenant(const char *program) {
    realm_error err = {0};
    realm_strings args = {0}, env = {0};
    realm_tenant *t = tenant_with(program, TEST_WASM "/guest", program);
    if (realm_strings_add(&args, "-v", 2, &err) || realm_strings_add(&args, "two words", 9, &err) ||
        realm_strings_set_env(&env, "GREETING=h\xc3\xa9", 12, &err) ||
        realm_store_tenant_set_strings(realm_runtime_store(rt), program, &args, &env, &err))
        fail_msg("%s", err.text);
    realm_runtime_reload(rt);
    return t;
}

static void test_every_function(void **state) {
    client c;
    (void)state;
    realm_tenant *t = wasi_tenant("wasi");
    complete(&c, t, with_input("{}"));
    expect_ok(&c);
    if (strcmp(c.text, "ok") != 0) fail_msg("tests/unit/tenant/guest/wasi.c:%s", c.text);
    end(&c);
    realm_tenant_release(t);
    /* one line each, whatever the pieces; what had no newline when the program ended; long ones cut */
    assert_int_equal(count("wasi: info: half a line"), 1);
    assert_int_equal(count("wasi: warn: half a "), 1);
    assert_true(count("xxxxxxxxxxxxxxxxxxxxxxxx") >= 2);
    char too_long[1100];
    memset(too_long, 'x', sizeof too_long);
    too_long[1001] = 0;
    assert_int_equal(count(too_long), 0);
}

static void test_exit(void **state) {
    static const struct {
        const char *input;
        realm_status status;
        const char *text;
    } CASES[] = {{"{\"exit\":\"0\"}", REALM_OK, ""},
                 {"{\"exit\":\"3\"}", REALM_E_PROGRAM, "exited with code 3"},
                 {"{\"exit\":\"-5\"}", REALM_E_PROGRAM, "returned -5"}};
    client c;
    (void)state;
    realm_tenant *t = wasi_tenant("wasi");
    for (size_t i = 0; i < REALM_ARRAY_LEN(CASES); i++) {
        complete(&c, t, with_input(CASES[i].input));
        assert_int_equal(c.status, CASES[i].status);
        if (!strstr(c.error, CASES[i].text)) fail_msg("\"%s\" does not say \"%s\"", c.error, CASES[i].text);
        assert_int_equal(c.len, 0);
        end(&c);
    }
    realm_tenant_release(t);
}

/* One that sleeps for an hour holds no worker, and ends by itself when its request is cancelled. */
static void test_sleepers(void **state) {
    enum { N = 16 };
    static client c[N];
    client other;
    (void)state;
    realm_tenant *t = wasi_tenant("wasi");
    for (int i = 0; i < N; i++) {
        begin(&c[i], t, with_input("{\"sleep\":\"1\"}"));
        follow(&c[i], 6);
        assert_string_equal(c[i].text, "sleeps");
    }
    complete(&other, t, with_input("{}"));
    expect_ok(&other);
    end(&other);
    for (int i = 0; i < N; i++) realm_run_cancel(c[i].run);
    for (int i = 0; i < N; i++) {
        follow(&c[i], 0);
        assert_int_equal(c[i].finish, REALM_FINISH_CANCELLED);
        assert_int_equal(c[i].status, REALM_OK); /* by itself: it was not ended by the host */
        end(&c[i]);
    }
    realm_tenant_release(t);
}

/* Yielding is no wait: a program that does nothing else is ended by its limit of CPU time. */
static void test_yielding_is_spinning(void **state) {
    client c;
    realm_limits l;
    realm_error err = {0};
    (void)state;
    realm_limits_init(&l);
    l.cpu_ms_per_wake = 50;
    realm_tenant *t = wasi_tenant("wasi");
    if (realm_store_tenant_set(realm_runtime_store(rt), "wasi", &l, NULL, 0, &err)) fail_msg("%s", err.text);
    realm_runtime_reload(rt);
    complete(&c, t, with_input("{\"spin\":\"1\"}"));
    assert_int_equal(c.status, REALM_E_LIMIT);
    if (!strstr(c.error, "cpu_ms_per_wake (50 ms)")) fail_msg("%s", c.error);
    end(&c);
    realm_tenant_release(t);
}

static void test_assemblyscript(void **state) {
    client c;
    (void)state;
    realm_tenant *t = wasi_tenant("env");
    complete(&c, t, with_input("{}"));
    assert_int_equal(c.status, REALM_E_PROGRAM);
    assert_string_equal(c.text, "before");
    if (!strstr(c.error, "h\xc3\xa9l\xf0\x9f\x98\x80\xef\xbf\xbd!, at h")) fail_msg("%s", c.error);
    if (!strstr(c.error, ":12:34")) fail_msg("%s", c.error);
    end(&c);
    realm_tenant_release(t);
    assert_int_equal(count("env: info: h\xc3\xa9l\xf0\x9f\x98\x80\xef\xbf\xbd! 1.5, -2"), 1);
}

int main(int argc, char **argv) {
    if (is_compiler(argc, argv)) return compile(argv);
    realm_log_configure(REALM_LOG_DEBUG, keep_log, NULL);
    if (open_runtime()) return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_function),
        cmocka_unit_test(test_exit),
        cmocka_unit_test(test_sleepers),
        cmocka_unit_test(test_assemblyscript),
        cmocka_unit_test(test_yielding_is_spinning),
    };
    return close_runtime(cmocka_run_group_tests_name("wasi", tests, NULL, NULL));
}
