/* Random modules (tests/smith) as tenants' programs: compiled in the child process, run against every import that there
 * is. Whatever they do, the server refuses or ends them with a line of text, and nothing of them stays: no memory, no
 * mapping, no descriptor.
 *
 *     REALM_MODULES=10000 REALM_SEED=7 build/unit/tenant/test_modules      `make fuzz-modules` does that
 */
#include "sandbox/sandbox.h"
#include "support/held.h"
#include "tenant/client.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED true /* slow, and memory is not what it would be */
#define MODULES_DEFAULT 60ul
#else
#define SANITIZED false
#define MODULES_DEFAULT 300ul
#endif
#define MODULE_MAX (1u << 20)
#define AT_ONCE 8
#define CPU_MS "20"
#define WALL_MS "2000"

static unsigned long number(const char *name, unsigned long otherwise) {
    const char *s = getenv(name);
    return s && *s ? strtoul(s, NULL, 10) : otherwise;
}

/* Lines of what tests/smith reads. */
static void write_imports(const char *path) {
    size_t n = 0;
    const realm_import *t = realm_host_imports(&n);
    FILE *f = fopen(path, "w");
    if (!f) fail_msg("%s", path);
    for (size_t i = 0; i < n; i++) {
        char params[REALM_IMPORT_ARGS_MAX + 1] = "-", result = t[i].result ? t[i].result : 'i';
        for (size_t k = 0; t[i].params[k]; k++) {
            params[k] = t[i].params[k] == 'p' ? (t[i].wide ? 'l' : 'i') : t[i].params[k];
            params[k + 1] = 0;
        }
        fprintf(f, "%s %s %s %c\n", t[i].module, t[i].name, params, result == 'v' ? '-' : result);
    }
    fclose(f);
}

static realm_tenant *limited_tenant(int i) {
    char name[32];
    realm_error err = {0};
    realm_limits l;
    realm_tenant *t = NULL;
    snprintf(name, sizeof name, "smith%d", i);
    realm_limits_init(&l);
    if (realm_limits_set(&l, "cpu_ms_per_wake", CPU_MS, &err) || realm_limits_set(&l, "wall_ms", WALL_MS, &err) ||
        realm_limits_set(&l, "memory_bytes", "4194304", &err) ||
        realm_store_tenant_create(realm_runtime_store(rt), name, &l, NULL, 0, NULL, &err) ||
        realm_runtime_tenant(rt, name, &t, &err))
        fail_msg("%s", err.text);
    return t;
}

static bool one_line(const char *text) { return text[0] && !strchr(text, '\n'); }

static void test_modules(void **state) {
    unsigned long n = number("REALM_MODULES", MODULES_DEFAULT), seed = number("REALM_SEED", 1);
    unsigned long refused = 0, returned = 0, ended = 0;
    char path[SCRATCH_MAX] = "test-modules", command[1024];
    static unsigned char wasm[MODULE_MAX];
    realm_tenant *t[AT_ONCE];
    held before = {0};
    (void)state;
    int fd = scratch_file(path);
    if (fd < 0) fail_msg("%s", path);
    close(fd);
    write_imports(path);
    snprintf(command, sizeof command, "$(tools/build-smith) %lu %lu < %s", seed, n, path);
    FILE *modules = popen(command, "r");
    if (!modules) fail_msg("%s", command);
    for (int i = 0; i < AT_ONCE; i++) t[i] = limited_tenant(i);
    unsigned long done = 0;
    while (done < n) {
        client c[AT_ONCE];
        bool runs[AT_ONCE] = {0};
        for (int i = 0; i < AT_ONCE && done < n; i++, done++) {
            uint32_t len = 0;
            realm_error err = {0};
            if (fread(&len, sizeof len, 1, modules) != 1 || len > sizeof wasm || fread(wasm, 1, len, modules) != len)
                fail_msg("module %lu: none came (tools/build-smith needs cargo and its registry, once)", done);
            faults(true);
            if (realm_tenant_set_program(t[i], wasm, len, &err)) {
                refused++;
                if (!one_line(err.text) || err.code == REALM_E_INTERNAL)
                    fail_msg("seed %lu, module %lu: refused with \"%s\"", seed, done, err.text);
                continue;
            }
            begin(&c[i], t[i], text_request());
            runs[i] = true;
        }
        for (int i = 0; i < AT_ONCE; i++) {
            if (!runs[i]) continue;
            follow(&c[i], 0); /* fails the test when it does not end */
            if (c[i].status && !one_line(c[i].error)) fail_msg("ended with %d and no text", c[i].status);
            returned += !c[i].status;
            ended += c[i].status != REALM_OK;
            end(&c[i]);
        }
        if (done >= n / 2 && !before.rss_kib) before = measure(); /* after what grows once has grown */
    }
    /* The last programs go as well. */
    realm_error err = {0};
    for (int i = 0; i < AT_ONCE; i++)
        if (realm_tenant_set_program(t[i], NULL, 0, &err)) fail_msg("%s", err.text);
    held after = measure();
    pclose(modules);
    unlink(path);
    for (int i = 0; i < AT_ONCE; i++) realm_tenant_release(t[i]);
    printf("%lu modules: %lu refused, %lu returned, %lu ended by a trap or limit\n", n, refused, returned, ended);
    printf("second half: memory %+ld KiB, mappings %+ld, descriptors %+ld\n", after.rss_kib - before.rss_kib,
           after.mappings - before.mappings, after.descriptors - before.descriptors);
    assert_true(returned + ended >= n / 4); /* or this tests little but the section reader */
    assert_true(refused > 0);
    assert_true(after.descriptors <= before.descriptors);
    assert_true(after.mappings <= before.mappings + 64);
    assert_true(SANITIZED || after.rss_kib <= before.rss_kib + 16384);
}

int main(int argc, char **argv) {
    if (is_compiler(argc, argv)) return compile(argv);
    if (open_runtime()) return 1;
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_modules)};
    return close_runtime(cmocka_run_group_tests_name("random modules", tests, NULL, NULL));
}
