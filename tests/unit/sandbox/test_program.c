/* Modules that are refused, the child that compiles, and the cache of what it made. */
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "fixture.h"
#include "support/scratch.h"

static realm_sandbox *box;
static char dir[SCRATCH_MAX] = "test-programs";

static void refuse(realm_sandbox *s, const void *wasm, size_t len, const realm_program_limits *l, realm_status status,
                   const char *text) {
    realm_error err = {0};
    realm_program *p = NULL;
    realm_status st = realm_program_open(s, wasm, len, l, &p, &err);
    assert_null(p);
    if (st != status || !strstr(err.text, text))
        fail_msg("expected %d \"%s\", got %d \"%s\"", status, text, st, err.text);
    assert_int_equal(err.code, st);
    assert_null(strchr(err.text, '\n'));
}

static void refuse_file(const char *name, realm_status status, const char *text) {
    size_t n = 0;
    char *wasm = read_wasm(name, &n);
    refuse(box, wasm, n, NULL, status, text);
    realm_free(wasm);
}

static void test_refused(void **state) {
    (void)state;
    refuse_file("bad_import", REALM_E_UNSUPPORTED, "import t.no_such_thing: there is no such function");
    refuse_file("bad_import_type", REALM_E_UNSUPPORTED,
                "import t.add has the type func(i32, i64) -> i32, it must be func(i32, i32) -> i32");
    refuse_file("bad_import_module", REALM_E_UNSUPPORTED, "import wasi_snapshot_preview1.fd_write");
    refuse_file("bad_import_kind", REALM_E_UNSUPPORTED, "import t.stack: a global cannot be imported");
    refuse_file("bad_no_memory", REALM_E_UNSUPPORTED, "must export its memory");
    refuse_file("bad_no_entry", REALM_E_UNSUPPORTED, "neither realm_main, nor realm_new and generate, nor _start");
    refuse_file("bad_entry_type", REALM_E_UNSUPPORTED, "export realm_main is a func(i32) -> i32");
    refuse_file("bad_half_pair", REALM_E_UNSUPPORTED, "exports realm_new but not generate");
    refuse_file("bad_memory_huge", REALM_E_LIMIT, "65536 pages of 64 KiB, the limit of memory_bytes allows 1024");
    refuse_file("bad_table_huge", REALM_E_LIMIT, "4000000000 elements");
}

static void test_not_modules(void **state) {
    (void)state;
    static const unsigned char component[] = {0, 'a', 's', 'm', 0x0d, 0, 1, 0};
    static const unsigned char head[] = {0, 'a', 's', 'm', 1, 0, 0, 0};
    /* a data section that says it has 4 GiB - 1 */
    static const unsigned char data4g[] = {0, 'a', 's', 'm', 1, 0, 0, 0, 11, 0xff, 0xff, 0xff, 0xff, 0x0f};
    /* a data segment that says so, in a section that does not */
    static const unsigned char segment4g[] = {0,   'a', 's', 'm',  1,   0,    0,    0,    5,    3,    1,    0,   1,
                                              7,   23,  2,   10,   'r', 'e',  'a',  'l',  'm',  '_',  'm',  'a', 'i',
                                              'n', 0,   0,   6,    'm', 'e',  'm',  'o',  'r',  'y',  2,    0,   11,
                                              11,  1,   0,   0x41, 0,   0x0b, 0xff, 0xff, 0xff, 0xff, 0x0f, 0};
    static const unsigned char toolong[] = {0, 'a', 's', 'm', 1, 0, 0, 0, 11, 0xff, 0xff, 0xff, 0xff, 0x7f};
    static const unsigned char twice[] = {0, 'a', 's', 'm', 1, 0, 0, 0, 1, 1, 0, 1, 1, 0};
    static const unsigned char unknown[] = {0, 'a', 's', 'm', 1, 0, 0, 0, 77, 1, 0};
    refuse(box, "", 0, NULL, REALM_E_FORMAT, "not a WebAssembly module");
    refuse(box, "\0", 1, NULL, REALM_E_FORMAT, "not a WebAssembly module");
    refuse(box, component, sizeof component, NULL, REALM_E_UNSUPPORTED, "components are not supported");
    refuse(box, head, sizeof head, NULL, REALM_E_UNSUPPORTED, "must export its memory");
    refuse(box, data4g, sizeof data4g, NULL, REALM_E_FORMAT, "data section: runs past the end");
    refuse(box, segment4g, sizeof segment4g, NULL, REALM_E_FORMAT, "section");
    refuse(box, toolong, sizeof toolong, NULL, REALM_E_FORMAT, "data section: number too large");
    refuse(box, twice, sizeof twice, NULL, REALM_E_FORMAT, "type section: there twice or out of order");
    refuse(box, unknown, sizeof unknown, NULL, REALM_E_FORMAT, "a section of unknown kind");
    enum { HUGE_BYTES = 100 << 20 };
    char *big = realm_calloc(1, HUGE_BYTES);
    memcpy(big, head, sizeof head);
    refuse(box, big, REALM_MODULE_BYTES_MAX + 1u, NULL, REALM_E_LIMIT, "at most 33554432 are allowed");
    refuse(box, big, HUGE_BYTES, NULL, REALM_E_LIMIT, "has 104857600 bytes, at most 33554432 are allowed");
    realm_free(big);
}

/* ---- modules made here ---- */

typedef struct bytes {
    unsigned char *p;
    size_t n;
} bytes;

static void put(bytes *b, unsigned char v) { b->p[b->n++] = v; }
static void put_leb(bytes *b, uint32_t v) {
    for (; v >= 0x80; v >>= 7) put(b, (unsigned char)(v | 0x80));
    put(b, (unsigned char)v);
}
static void put_all(bytes *b, const void *p, size_t n) {
    memcpy(b->p + b->n, p, n);
    b->n += n;
}

/* `n` functions that load and add or multiply `adds` times each; realm_main is the first. */
static bytes many_functions(uint32_t n, uint32_t adds) {
    bytes m = {realm_calloc(1, REALM_MODULE_BYTES_MAX), 0}, s = {realm_calloc(1, REALM_MODULE_BYTES_MAX), 0};
    static const unsigned char head[] = {0, 'a', 's', 'm', 1, 0, 0, 0, 1, 5, 1, 0x60, 0, 1, 0x7f};
    static const unsigned char exports[] = {7,   23, 2, 10, 'r', 'e', 'a', 'l', 'm', '_', 'm', 'a', 'i',
                                            'n', 0,  0, 6,  'm', 'e', 'm', 'o', 'r', 'y', 2,   0};
    put_all(&m, head, sizeof head);
    put_leb(&s, n);
    for (uint32_t i = 0; i < n; i++) put(&s, 0);
    put(&m, 3);
    put_leb(&m, (uint32_t)s.n);
    put_all(&m, s.p, s.n);
    put_all(&m, (const unsigned char[]){5, 3, 1, 0, 1}, 5);
    put_all(&m, exports, sizeof exports);
    s.n = 0;
    put_leb(&s, n);
    for (uint32_t i = 0; i < n; i++) {
        bytes f = {s.p + s.n + 5, 0}; /* behind a length of five bytes */
        put(&f, 0);
        put(&f, 0x41);
        put(&f, 0);
        for (uint32_t k = 0; k < adds; k++) {
            put(&f, 0x41); /* i32.const address */
            put_leb(&f, (k * 4) & 0x3f);
            put(&f, 0x28); /* i32.load */
            put(&f, 2);
            put(&f, 0);
            put(&f, k % 3 ? 0x6a : 0x6c); /* add, mul */
        }
        put(&f, 0x0b);
        uint32_t len = (uint32_t)f.n;
        for (int k = 0; k < 5; k++, len >>= 7) put(&s, (unsigned char)((len & 0x7f) | (k < 4 ? 0x80 : 0)));
        s.n += f.n;
    }
    put(&m, 10);
    put_leb(&m, (uint32_t)s.n);
    put_all(&m, s.p, s.n);
    realm_free(s.p);
    return m;
}

static void test_too_many_functions(void **state) {
    (void)state;
    bytes m = many_functions(100000, 1);
    refuse(box, m.p, m.n, NULL, REALM_E_LIMIT, "function section: 100000 functions, at most 50000 are allowed");
    realm_free(m.p);
}

static void test_compiler_limits(void **state) {
    (void)state;
    bytes m = many_functions(40000, 100);
    uint64_t used_ns = 0;
    realm_program_limits cpu = {.compile_cpu_s = 1, .compile_cpu_ns = &used_ns};
    refuse(box, m.p, m.n, &cpu, REALM_E_LIMIT, "more than 1 s of CPU time");
    assert_true(used_ns > 500 * REALM_NS_PER_MS && used_ns < 10 * REALM_NS_PER_S); /* for nothing, but it was used */
    realm_program_limits memory = {.compile_memory_bytes = 96u << 20};
    if (!SANITIZED) refuse(box, m.p, m.n, &memory, REALM_E_LIMIT, "memory");
    realm_program_limits wall = {.compile_wall_ms = 100};
    refuse(box, m.p, m.n, &wall, REALM_E_TIMEOUT, "more than 100 ms");
    realm_free(m.p);
}

static void write_script(const char *name, const char *text) {
    realm_error err = {0};
    char *path = realm_path_join(dir, name);
    assert_int_equal(realm_file_replace(path, text, strlen(text), 0700, &err), REALM_OK);
    realm_free(path);
}

/* Compilers that hang, crash, or answer nonsense. */
static void test_bad_compilers(void **state) {
    (void)state;
    static const struct {
        const char *script;
        realm_status status;
        const char *text;
    } cases[] = {
        {"#!/bin/sh\nexec sleep 300\n", REALM_E_TIMEOUT, "more than 300 ms"},
        {"#!/bin/sh\nsleep 300\n", REALM_E_TIMEOUT, "more than 300 ms"},
        {"#!/bin/sh\nkill -SEGV $$\n", REALM_E_LIMIT, "signal 11"},
        {"#!/bin/sh\nexit 3\n", REALM_E_INTERNAL, "exit status 3"},
        {"#!/bin/sh\necho nonsense, but long enough to be a reply >&4\n", REALM_E_INTERNAL, "without a result"},
        {"#!/bin/sh\nhead -c 100000 /dev/zero >&4\n", REALM_E_INTERNAL, "without a result"},
    };
    size_t n = 0;
    char *wasm = read_wasm("answer", &n), *path = realm_path_join(dir, "compiler");
    realm_sandbox_config c = {.n_workers = 1,
                              .max_instances = 4,
                              .max_memory_bytes = 1u << 20,
                              .compiler_path = path,
                              .imports = IMPORTS,
                              .n_imports = REALM_ARRAY_LEN(IMPORTS)};
    realm_sandbox *s = NULL;
    assert_int_equal(realm_sandbox_open(&s, &c, NULL), REALM_OK);
    for (size_t i = 0; i < REALM_ARRAY_LEN(cases); i++) {
        realm_program_limits l = {.compile_wall_ms = 300};
        if (cases[i].status != REALM_E_TIMEOUT) l.compile_wall_ms = 60000;
        write_script("compiler", cases[i].script);
        uint64_t t0 = realm_clock_ns();
        refuse(s, wasm, n, &l, cases[i].status, cases[i].text);
        assert_true(realm_clock_ns() - t0 < PATIENCE_NS);
    }
    realm_sandbox_close(s);
    c.compiler_path = "/no/such/compiler";
    assert_int_equal(realm_sandbox_open(&s, &c, NULL), REALM_OK);
    refuse(s, wasm, n, NULL, REALM_E_IO, "cannot run the compiler /no/such/compiler");
    realm_sandbox_close(s);
    c.compiler_path = NULL;
    assert_int_equal(realm_sandbox_open(&s, &c, NULL), REALM_OK);
    refuse(s, wasm, n, NULL, REALM_E_UNSUPPORTED, "no compiler program is configured");
    realm_sandbox_close(s);
    realm_free(path);
    realm_free(wasm);
}

static uint64_t compile_cpu_ns; /* of the last open_info */

static realm_program_info open_info(realm_sandbox *s, const char *name) {
    realm_program_limits limits = {.compile_cpu_ns = &compile_cpu_ns};
    realm_error err = {0};
    realm_program *p = NULL;
    realm_program_info info;
    size_t n = 0;
    char *wasm = read_wasm(name, &n);
    compile_cpu_ns = UINT64_MAX;
    if (realm_program_open(s, wasm, n, &limits, &p, &err)) fail_msg("%s: %s", name, err.text);
    realm_program_get_info(p, &info);
    realm_program_release(p); /* the only one: whoever comes next loads it anew */
    realm_free(wasm);
    return info;
}

/* The instance may hold its program a moment longer than its end is known: the last thing that a sandbox does here. */
static void run_and_close(realm_sandbox *s, const char *name) {
    run r = run_module(s, name, (realm_instance_params){0});
    assert_int_equal(r.result.status, REALM_OK);
    realm_sandbox_close(s);
}

/* Path of the one artifact in the cache. */
static char *artifact(const char *cache) {
    char *found = NULL;
    DIR *d = opendir(cache);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));)
        if (strstr(e->d_name, ".cwasm")) {
            assert_null(found);
            found = realm_path_join(cache, e->d_name);
        }
    closedir(d);
    assert_non_null(found);
    return found;
}

static void flip(const char *path, off_t at) {
    unsigned char b = 0;
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0 && pread(fd, &b, 1, at) == 1);
    b ^= 1;
    assert_true(pwrite(fd, &b, 1, at) == 1);
    close(fd);
}

static void test_cache(void **state) {
    (void)state;
    char *cache = realm_path_join(dir, "cache");
    realm_sandbox *s = open_sandbox(1, 4, cache);
    faults_remember();
    assert_false(open_info(s, "answer").from_cache);
    assert_true(compile_cpu_ns > 0);
    assert_true(open_info(s, "answer").from_cache);
    assert_int_equal(compile_cpu_ns, 0);
    run_and_close(s, "answer");
    /* what was not written to the end goes, but what another process is writing */
    char *killed = realm_path_join(cache, "0.cwasm.abcdef"), *writing = realm_path_join(cache, "0.cwasm.XXXXXX");
    int fd;
    assert_int_equal(realm_file_replace(killed, "x", 1, 0600, NULL), REALM_OK);
    assert_int_equal(realm_file_make(writing, &fd, NULL), REALM_OK);
    s = open_sandbox(1, 4, cache); /* another process of this server would do the same */
    assert_int_not_equal(access(killed, F_OK), 0);
    assert_int_equal(unlink(writing), 0);
    close(fd);
    realm_free(killed);
    realm_free(writing);
    assert_true(open_info(s, "answer").from_cache);
    char *path = artifact(cache), *secret = realm_path_join(cache, "secret");
    struct stat sb;
    assert_int_equal(stat(path, &sb), 0);
    assert_int_equal(sb.st_mode & 0777, 0600);
    const off_t places[] = {0, 9, 45, 104, sb.st_size / 2, sb.st_size - 1};
    for (size_t i = 0; i < REALM_ARRAY_LEN(places); i++) {
        flip(path, places[i]);
        assert_false(open_info(s, "answer").from_cache); /* refused, made again, replaced */
        assert_true(open_info(s, "answer").from_cache);
    }
    assert_int_equal(truncate(path, sb.st_size - 1), 0);
    assert_false(open_info(s, "answer").from_cache);
    assert_int_equal(truncate(path, 20), 0);
    assert_false(open_info(s, "answer").from_cache);
    run_and_close(s, "answer");
    /* a secret that others can read is not believed */
    assert_int_equal(stat(secret, &sb), 0);
    assert_int_equal(sb.st_mode & 0777, 0600);
    assert_int_equal(chmod(secret, 0644), 0);
    s = open_sandbox(1, 4, cache);
    assert_int_equal(stat(secret, &sb), 0);
    assert_int_equal(sb.st_mode & 0777, 0600);
    assert_false(open_info(s, "answer").from_cache);
    run_and_close(s, "answer");
    realm_free(secret);
    realm_free(path);
    realm_free(cache);
}

/* The same bytes twice are one program, also when two threads come at once; limits are checked for each. */
typedef struct opener {
    const char *wasm;
    size_t n;
    realm_program *p;
} opener;

static void *open_one(void *arg) {
    opener *o = arg;
    realm_program_limits trusted = {.trusted = true};
    if (realm_program_open(box, o->wasm, o->n, &trusted, &o->p, NULL)) o->p = NULL;
    return NULL;
}

static void test_shared(void **state) {
    (void)state;
    enum { THREADS = 4 };
    opener o[THREADS];
    pthread_t t[THREADS];
    size_t n = 0;
    char *wasm = read_wasm("dirty", &n);
    realm_sandbox_stats before, after;
    realm_error err = {0};
    for (int round = 0; round < 30; round++) {
        for (int i = 0; i < THREADS; i++) {
            o[i] = (opener){.wasm = wasm, .n = n};
            assert_int_equal(realm_thread_start(&t[i], "opener", open_one, &o[i], &err), REALM_OK);
        }
        for (int i = 0; i < THREADS; i++) pthread_join(t[i], NULL);
        for (int i = 0; i < THREADS; i++) {
            assert_non_null(o[i].p);
            assert_ptr_equal(o[i].p, o[0].p);
        }
        for (int i = 1; i < THREADS; i++) realm_program_release(o[i].p);
        realm_sandbox_get_stats(box, &before);
        realm_program *again = open_program(box, "dirty");
        realm_sandbox_get_stats(box, &after);
        assert_ptr_equal(again, o[0].p);
        assert_int_equal(after.compiled + after.cache_hits, before.compiled + before.cache_hits);
        realm_program_limits small = {.memory_bytes = 65536};
        realm_program *refused = NULL;
        assert_int_equal(realm_program_open(box, wasm, n, &small, &refused, &err), REALM_E_LIMIT);
        assert_null(refused);
        realm_program_release(again);
        realm_program_release(o[0].p);
    }
    realm_free(wasm);
}

static void test_describe(void **state) {
    (void)state;
    realm_program *p = open_program(box, "gen_grow"), *q = open_program(box, "pointers64");
    realm_program_info i;
    realm_buf b;
    realm_program_get_info(p, &i);
    assert_int_equal(i.kind, REALM_PROGRAM_GENERATE);
    assert_int_equal(i.memory_min_bytes, 65536);
    assert_int_equal(i.memory_max_bytes, 4 * 65536);
    assert_int_equal(i.n_functions, 2);
    realm_program_get_info(q, &i);
    assert_int_equal(i.kind, REALM_PROGRAM_MAIN);
    assert_true(i.memory64);
    assert_int_equal(i.n_imports, 1);
    assert_string_equal(i.imports[0].module, "t64");
    assert_string_equal(i.imports[0].type, "func(i64, i64) -> i32");
    realm_buf_init(&b, 1u << 20);
    assert_int_equal(realm_program_describe(q, true, NULL, &b), REALM_OK);
    assert_non_null(strstr(b.data, "{\"module\":\"t64\",\"name\":\"touch\",\"type\":\"func(i64, i64) -> i32\"}"));
    realm_buf_reset(&b);
    assert_int_equal(realm_program_describe(p, false, NULL, &b), REALM_OK);
    assert_non_null(strstr(b.data, "generate: func(i32, i32, i32, i32) -> i32"));
    realm_buf_release(&b);
    realm_program_release(p);
    realm_program_release(q);
}

/* Every prefix and thousands of flipped bytes of a module: an answer, never a fault. Those that pass are compiled here,
 * so that the validator behind this reader sees them too. */
static void test_mutations(void **state) {
    (void)state;
    size_t n = 0, passed = 0;
    char *wasm = read_wasm("wait", &n);
    realm_program_limits l = {.trusted = true};
    uint32_t seed = 12345;
    for (size_t i = 0; i < n; i++) {
        realm_program *p = NULL;
        realm_error err = {0};
        char *copy = realm_malloc(i ? i : 1); /* exact size, so that a sanitizer sees reads past it */
        memcpy(copy, wasm, i);
        if (realm_program_open(box, copy, i, &l, &p, &err) == REALM_OK) passed++;
        realm_program_release(p);
        realm_free(copy);
    }
    assert_int_equal(passed, 0);
    for (int k = 0; k < 3000; k++) {
        realm_program *p = NULL;
        realm_error err = {0};
        char *copy = realm_malloc(n);
        memcpy(copy, wasm, n);
        for (int c = 0; c <= k % 3; c++) {
            seed = seed * 1664525u + 1013904223u;
            copy[8 + (seed >> 8) % (n - 8)] = (char)(seed >> 16);
        }
        realm_status st = realm_program_open(box, copy, n, &l, &p, &err);
        assert_true(st == REALM_OK || err.text[0]);
        realm_program_release(p);
        realm_free(copy);
    }
    realm_free(wasm);
}

/* Every allocation of opening a sandbox, opening a program and starting an instance fails once. */
static void test_out_of_memory(void **state) {
    (void)state;
    realm_error err = {0};
    realm_sandbox *s = NULL;
    realm_program *p = NULL;
    realm_instance *inst = NULL;
    run r;
    size_t n = 0;
    char *wasm = read_wasm("gen", &n), *cache = realm_path_join(dir, "cache-oom");
    realm_sandbox_config c = {.n_workers = 1,
                              .max_instances = 4,
                              .max_memory_bytes = 1u << 20,
                              .imports = IMPORTS,
                              .n_imports = REALM_ARRAY_LEN(IMPORTS),
                              .compiler_path = "x",
                              .cache_dir = cache};
    realm_program_limits l = {.trusted = true};
    int failures = 0;
    for (int64_t k = 0; realm_alloc_inject_failure(k, false), realm_sandbox_open(&s, &c, &err); k++, failures++) {
        assert_null(s);
        assert_true(k < 1000 && err.text[0]);
    }
    realm_alloc_inject_failure(-1, false);
    assert_true(failures > 5);
    for (int64_t k = 0; realm_alloc_inject_failure(k, false), realm_program_open(s, wasm, n, &l, &p, &err); k++) {
        assert_null(p);
        assert_true(k < 1000 && err.text[0]);
        failures++;
    }
    realm_alloc_inject_failure(-1, false);
    assert_true(failures > 10);
    run_init(&r);
    faults_restore();
    realm_instance_params params = {
        .user = &r, .on_cpu = on_cpu, .on_done = on_done, .prompt = "x", .prompt_len = 1, .model_id = 9};
    for (int64_t k = 0; realm_alloc_inject_failure(k, false), realm_instance_start(p, &params, &inst, &err); k++) {
        assert_null(inst);
        assert_int_equal(err.code, REALM_E_NOMEM);
        assert_true(k < 100);
    }
    realm_alloc_inject_failure(-1, false);
    r.instance = inst;
    run_wait(&r);
    assert_int_equal(r.n_done, 1);
    assert_int_equal(r.result.status, REALM_OK);
    realm_program_release(p);
    realm_sandbox_close(s);
    realm_free(cache);
    realm_free(wasm);
}

static void remove_tree(void) {
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    if (system(command)) perror(command);
}

int main(int argc, char **argv) {
    if (argc == 5 && !strcmp(argv[2], "compile-child")) realm_sandbox_compile_child(argc - 3, argv + 3);
    if (!scratch_dir(dir)) return 1;
    box = open_sandbox(1, 8, NULL);
    faults_remember();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_not_modules),
        cmocka_unit_test(test_too_many_functions),
        cmocka_unit_test(test_compiler_limits),
        cmocka_unit_test(test_bad_compilers),
        cmocka_unit_test(test_cache),
        cmocka_unit_test(test_shared),
        cmocka_unit_test(test_describe),
        cmocka_unit_test(test_mutations),
        cmocka_unit_test(test_out_of_memory),
    };
    int failed = cmocka_run_group_tests_name("programs", tests, NULL, NULL);
    realm_sandbox_close(box);
    remove_tree();
    return failed;
}
