/* Models that tenants bring: what a program can do with them, who sees them, what they count as, when they are loaded
 * and unloaded, and that their files come and go with the rows that name them. */
#include "tenant/client.h"
#include "tenant/internal.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

static char dir[SCRATCH_MAX] = "test-models";
static char other_path[SCRATCH_MAX] = "test-other";

/* {"op":..., "id":..., "image": hex} */
static char *request_text(const char *op, int id, const void *file, size_t len) {
    char *s = malloc(2 * len + 128);
    int n = sprintf(s, "{\"endpoint\":\"completion\",\"op\":\"%s\",\"id\":%d,\"image\":\"", op, id);
    for (size_t i = 0; i < len; i++) n += sprintf(s + n, "%02x", ((const unsigned char *)file)[i]);
    strcpy(s + n, "\"}");
    return s;
}

static void ask(client *c, realm_tenant *t, const char *op, int id, const void *file, size_t len) {
    char *input = request_text(op, id, file, len);
    complete(c, t, with_input(input));
    free(input);
}

static void expect(realm_tenant *t, const char *op, int id, realm_status status) {
    client c;
    ask(&c, t, op, id, NULL, 0);
    if (c.status != status) fail_msg("%s %d: %d (%s), not %d", op, id, c.status, c.error, status);
    end(&c);
}

static tiny_model *image_of(uint64_t seed) {
    tiny_spec spec = tiny_llama;
    spec.seed = seed;
    spec.layers = 1;
    return tiny_make(&spec);
}

static void put(realm_tenant *t, int id, const tiny_model *m) {
    client c;
    ask(&c, t, "store", id, m->file, m->file_len);
    expect_ok(&c);
    end(&c);
}

static realm_tenant *limited(const char *name, const char *limit, const char *value) {
    realm_tenant *t = tenant_with(name, TEST_WASM "/guest", "models");
    if (limit) set_limit(name, limit, value);
    return t;
}

/* Files in the tenant's folder. */
static int files_of(const char *name) {
    char path[128];
    realm_tenant_row row;
    int n = 0;
    assert_int_equal(realm_store_tenant_find(realm_runtime_store(rt), name, &row, NULL), REALM_OK);
    snprintf(path, sizeof path, "%s/tenants/%lld", dir, (long long)row.id);
    DIR *d = opendir(path);
    if (!d) return 0;
    for (struct dirent *e; (e = readdir(d));) n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

static void probe_with(const char *program) {
    client c;
    tiny_model *m = tiny_make(&tiny_llama);
    realm_tenant *t = tenant_with(program, TEST_WASM "/guest", program);
    ask(&c, t, "", 0, m->file, m->file_len);
    expect_ok(&c);
    if (strcmp(c.text, "ok") != 0) fail_msg("%s: %s", program, c.text);
    end(&c);
    realm_tenant_release(t);
    tiny_free(m);
    assert_int_equal(files_of(program), 0);
}

static void every_call(void **state) {
    (void)state;
    probe_with("probe_models");
    probe_with("probe_models64");
}

static void only_its_tenant_sees_it(void **state) {
    (void)state;
    client c;
    tiny_model *a = image_of(11), *b = image_of(12);
    realm_tenant *t = limited("owner", NULL, NULL), *u = limited("stranger", NULL, NULL);
    put(t, 5, a);
    expect(u, "run", 5, REALM_E_NOT_FOUND);
    expect(u, "delete", 5, REALM_E_NOT_FOUND);
    put(u, 5, b); /* the same number, another file */
    ask(&c, t, "run", 5, NULL, 0);
    expect_ok(&c);
    char *mine = strdup(c.text);
    end(&c);
    ask(&c, u, "run", 5, NULL, 0);
    expect_ok(&c);
    assert_string_not_equal(c.text, mine);
    end(&c);
    /* The same file in two tenants is two files: neither can tell that the other has it. */
    put(u, 6, a);
    ask(&c, u, "run", 6, NULL, 0);
    assert_string_equal(c.text, mine);
    end(&c);
    free(mine);
    assert_int_equal(files_of("owner"), 1);
    assert_int_equal(files_of("stranger"), 2);
    ledger_agrees();
    realm_tenant_release(t);
    realm_tenant_release(u);
    tiny_free(a);
    tiny_free(b);
}

static void one_file_counts_once(void **state) {
    (void)state;
    client c;
    tiny_model *a = image_of(21), *b = image_of(22);
    char limit[32];
    snprintf(limit, sizeof limit, "%zu", a->file_len + 1000);
    realm_tenant *t = limited("counted", "storage_bytes", limit);
    put(t, 1, a);
    put(t, 2, a);
    assert_int_equal(files_of("counted"), 1);
    ask(&c, t, "store", 3, b->file, b->file_len);
    assert_int_equal(c.status, REALM_E_LIMIT);
    assert_non_null(strstr(c.error, "storage_bytes"));
    end(&c);
    assert_int_equal(files_of("counted"), 1);
    expect(t, "delete", 1, REALM_OK);
    assert_int_equal(files_of("counted"), 1);
    expect(t, "run", 2, REALM_OK);
    expect(t, "delete", 2, REALM_OK);
    assert_int_equal(files_of("counted"), 0);
    put(t, 3, b);
    realm_tenant_release(t);
    tiny_free(a);
    tiny_free(b);
}

/* Five models where four may be loaded; each counts what it computes, also after it was unloaded. */
static void loaded_and_unloaded(void **state) {
    (void)state;
    enum { N = 5 };
    realm_tenant *t = limited("many", NULL, NULL);
    for (int i = 1; i <= N; i++) {
        tiny_model *m = image_of((uint64_t)(30 + i));
        put(t, i, m);
        tiny_free(m);
    }
    for (int round = 0; round < 2; round++)
        for (int i = 1; i <= N; i++) expect(t, "run", i, REALM_OK);
    realm_usage u = usage_of("many");
    assert_int_equal(u.completion_tokens, 2 * N * 8);
    ledger_agrees();
    expect(t, "hold", 4, REALM_OK);
    expect(t, "hold", 5, REALM_E_BUSY);
    realm_tenant_release(t);
}

/* Eight requests want it at once: it is loaded once, and all get the same answer. */
static void loaded_once(void **state) {
    (void)state;
    enum { N = 8 };
    client c[N];
    tiny_model *m = image_of(41);
    realm_tenant *t = limited("crowd", NULL, NULL);
    put(t, 1, m);
    char *input = request_text("run", 1, NULL, 0);
    for (int i = 0; i < N; i++) {
        begin(&c[i], t, with_input(input));
    }
    for (int i = 0; i < N; i++) {
        follow(&c[i], 0);
        expect_ok(&c[i]);
        assert_string_equal(c[i].text, c[0].text);
    }
    for (int i = 0; i < N; i++) end(&c[i]);
    free(input);
    realm_tenant_release(t);
    tiny_free(m);
}

typedef struct unloader {
    pthread_t thread;
    realm_tenant *t;
} unloader;

static void *unload_all(void *user) {
    models_unload_idle(((unloader *)user)->t, false);
    return NULL;
}

/* A program ends and leaves a generation behind while the engine is inside a step of it; the model is unloaded at that
 * moment. What the step computes reaches the ledger. */
static void the_last_step_is_counted(void **state) {
    (void)state;
    enum { N = 9 };
    realm_token prompt[N];
    realm_error err = {0};
    tenant_model *m = NULL;
    realm_generation *g = NULL;
    realm_turn_stats device;
    tiny_model *file = image_of(61);
    realm_tenant *t = limited("leaves", NULL, NULL);
    const uint64_t until = realm_clock_ns() + PATIENCE_NS;
    put(t, 1, file);
    assert_int_equal(model_hold(t, 1, &m, &err), REALM_OK);
    for (int i = 0; i < N; i++) prompt[i] = TINY_BYTE('a' + i);
    realm_generation_params p = {.account = m->account, .prompt = prompt, .n_prompt = N, .max_tokens = 4};
    realm_sampling_init(&p.sampling);
    realm_backend_turn_begin(rt->backend);
    assert_int_equal(realm_generation_submit(m->engine, &p, &g, &err), REALM_OK);
    do { /* until it stands before the device, with the step in its hands */
        realm_backend_turn_get_stats(rt->backend, &device);
        assert_true(realm_clock_ns() < until);
        usleep(100);
    } while (device.waiting == 0);
    realm_generation_release(g);
    realm_engine *e = m->engine;
    realm_account *a = NULL; /* to see the engine close by */
    assert_int_equal(realm_account_open(e, NULL, NULL, &a, &err), REALM_OK);
    realm_served_release(m);
    unloader u = {.t = t};
    assert_int_equal(pthread_create(&u.thread, NULL, unload_all, &u), 0);
    p.account = a;
    realm_status closed;
    do {
        assert_true(realm_clock_ns() < until);
        if ((closed = realm_generation_submit(e, &p, &g, &err)) == REALM_OK) realm_generation_release(g);
        usleep(1000);
    } while (closed != REALM_E_CLOSED);
    realm_account_close(a);
    realm_backend_turn_end(rt->backend);
    (void)pthread_join(u.thread, NULL);
    realm_runtime_reload(rt); /* the ledger's thread has been round */
    assert_int_equal(usage_of("leaves").prompt_tokens, N);
    ledger_agrees();
    realm_tenant_release(t);
    tiny_free(file);
}

/* More than one piece of four MiB, byte for byte the file that was sent. */
static void in_pieces(void **state) {
    (void)state;
    client c;
    realm_error err = {0};
    enum { ROWS = 1024, COLS = 1152 };
    static float big[ROWS * COLS];
    for (size_t i = 0; i < REALM_ARRAY_LEN(big); i++) big[i] = (float)i;
    realm_gguf_writer *w;
    void *file;
    size_t len;
    uint64_t dims[] = {COLS, ROWS};
    assert_int_equal(realm_gguf_writer_open(&w, 3, 32, &err), REALM_OK);
    assert_int_equal(realm_gguf_put_str(w, "general.architecture", "llama", 5), REALM_OK);
    assert_int_equal(realm_gguf_put_tensor(w, "big", REALM_TYPE_F32, 2, dims, big), REALM_OK);
    assert_int_equal(realm_gguf_writer_finish(w, &file, &len, &err), REALM_OK);
    realm_gguf_writer_close(w);
    assert_true(len > (4u << 20));
    realm_tenant *t = limited("pieces", NULL, NULL);
    ask(&c, t, "store", 9, file, len);
    expect_ok(&c);
    end(&c);
    realm_model_row row;
    realm_tenant_row tr;
    char path[256], *back;
    size_t back_len;
    assert_int_equal(realm_store_tenant_find(realm_runtime_store(rt), "pieces", &tr, &err), REALM_OK);
    assert_int_equal(realm_store_model_find(realm_runtime_store(rt), tr.id, 9, &row, &err), REALM_OK);
    snprintf(path, sizeof path, "%s/tenants/%lld/%s.gguf", dir, (long long)tr.id, row.sha256);
    assert_int_equal(realm_file_read(path, 8u << 20, &back, &back_len, &err), REALM_OK);
    assert_int_equal(back_len, len);
    assert_memory_equal(back, file, len);
    realm_free(back);
    realm_free(file);
    expect(t, "run", 9, REALM_E_FORMAT); /* well-formed, but nothing to run: it has no tokenizer */
    realm_tenant_release(t);
}

/* ---- removing ---- */

static struct {
    realm_mutex mu;
    realm_cond cond;
    bool closed, reached, waited_out;
} gate;

int __real_unlink(const char *path);
int __wrap_unlink(const char *path);
int __wrap_unlink(const char *path) {
    const uint64_t until = realm_clock_ns() + PATIENCE_NS;
    realm_mutex_lock(&gate.mu);
    while (gate.closed && strstr(path, "/tenants/")) {
        gate.reached = true;
        realm_cond_broadcast(&gate.cond);
        if (!realm_cond_wait_until(&gate.cond, &gate.mu, until)) {
            gate.closed = false;
            gate.waited_out = true;
        }
    }
    realm_mutex_unlock(&gate.mu);
    return __real_unlink(path);
}

static void close_gate(void) {
    realm_mutex_lock(&gate.mu);
    gate.closed = true;
    gate.reached = false;
    realm_mutex_unlock(&gate.mu);
}

/* Waits until somebody stands at it. */
static void reach_gate(void) {
    realm_mutex_lock(&gate.mu);
    while (!gate.reached) realm_cond_wait(&gate.cond, &gate.mu);
    realm_mutex_unlock(&gate.mu);
}

static void open_gate(void) {
    realm_mutex_lock(&gate.mu);
    gate.closed = false;
    realm_cond_broadcast(&gate.cond);
    realm_mutex_unlock(&gate.mu);
}

static void await_removal(const char *path) {
    const uint64_t until = realm_clock_ns() + PATIENCE_NS;
    while (access(path, F_OK) == 0) {
        if (realm_clock_ns() > until) fail_msg("%s stays", path);
        usleep(1000);
    }
}

/* However long it takes to remove what a tenant leaves, of one that was loaded and of one that was not, others' answers
 * end, changes of the store are seen, and the next to be removed is. */
static void removing_holds_up_nobody(void **state) {
    (void)state;
    client c;
    char path[2][SCRATCH_MAX + 32], file[256];
    realm_tenant_row row;
    realm_store *store = realm_runtime_store(rt);
    tiny_model *m = image_of(61);
    realm_tenant *t = limited("loaded", NULL, NULL), *other = tenant_with("other", NULL, NULL);
    put(t, 1, m);
    realm_tenant_release(t);
    assert_int_equal(realm_store_tenant_create(store, "unknown", NULL, NULL, 0, NULL, NULL), REALM_OK);
    static const char *const names[] = {"loaded", "unknown"};
    for (int i = 0; i < 2; i++) {
        assert_int_equal(realm_store_tenant_find(store, names[i], &row, NULL), REALM_OK);
        snprintf(path[i], sizeof path[i], "%s/tenants/%lld", dir, (long long)row.id);
        snprintf(file, sizeof file, "%s/upload-x", path[i]);
        (void)mkdir(path[i], 0700);
        assert_int_equal(realm_file_replace(file, "x", 1, 0600, NULL), REALM_OK);
    }
    for (int i = 0; i < 2; i++) {
        close_gate();
        assert_int_equal(realm_store_tenant_delete(store, names[i], NULL), REALM_OK);
        reach_gate();
        complete(&c, other, text_request());
        expect_ok(&c);
        end(&c);
        realm_runtime_reload(rt);
        assert_false(gate.waited_out);
        open_gate();
        await_removal(path[i]);
    }
    ledger_agrees();
    realm_tenant_release(other);
    tiny_free(m);
}

/* The runtime ends and begins anew: ids and files are there; what no row names is swept up, but what another process is
 * writing. */
static void kept_and_swept(void **state) {
    (void)state;
    char path[256], stray[300], unlisted[400], writing[300];
    int fd;
    tiny_model *m = image_of(51);
    realm_tenant *t = limited("keeper", NULL, NULL);
    realm_tenant_row row;
    put(t, 77, m);
    realm_tenant_release(t);
    assert_int_equal(realm_store_tenant_find(realm_runtime_store(rt), "keeper", &row, NULL), REALM_OK);
    snprintf(path, sizeof path, "%s/tenants/%lld", dir, (long long)row.id);
    snprintf(stray, sizeof stray, "%s/upload-abcdef", path);
    assert_int_equal(realm_file_replace(stray, "x", 1, 0600, NULL), REALM_OK);
    snprintf(unlisted, sizeof unlisted, "%s/%064d.gguf", path, 7); /* moved into place, and killed */
    assert_int_equal(realm_file_replace(unlisted, "x", 1, 0600, NULL), REALM_OK);
    snprintf(writing, sizeof writing, "%s/upload-XXXXXX", path); /* another process stores a model */
    assert_int_equal(realm_file_make(writing, &fd, NULL), REALM_OK);
    for (int written = 0; written <= 1; written++) {
        realm_runtime_close(rt);
        rt = NULL;
        assert_int_equal(open_runtime(), 0);
        assert_int_not_equal(access(stray, F_OK), 0);
        assert_int_not_equal(access(unlisted, F_OK), 0);
        assert_int_equal(access(writing, F_OK), written ? -1 : 0);
        if (!written) close(fd); /* it is killed */
    }
    assert_int_equal(files_of("keeper"), 1);
    t = limited("keeper", NULL, NULL);
    expect(t, "run", 77, REALM_OK);
    realm_tenant_release(t);
    /* And with the tenant its files go, whether it was loaded since the start or not. */
    assert_int_equal(files_of("counted"), 1);
    assert_int_equal(realm_store_tenant_find(realm_runtime_store(rt), "counted", &row, NULL), REALM_OK);
    snprintf(stray, sizeof stray, "%s/tenants/%lld", dir, (long long)row.id);
    assert_int_equal(realm_store_tenant_delete(realm_runtime_store(rt), "counted", NULL), REALM_OK);
    await_removal(stray);
    assert_int_equal(files_of("keeper"), 1);
    assert_int_equal(realm_store_tenant_delete(realm_runtime_store(rt), "keeper", NULL), REALM_OK);
    await_removal(path);
    ledger_agrees();
    tiny_free(m);
}

static int open_all(void) {
    realm_error err = {0};
    if (!scratch_dir(dir)) return 1;
    state_dir = dir;
    if (open_runtime()) return 1;
    tiny_model *m = image_of(2);
    realm_model_config config = {.engine = {.n_ctx = 256, .max_generations = 16}};
    int fd = scratch_file(other_path);
    close(fd);
    if (realm_file_replace(other_path, m->file, m->file_len, 0600, &err) ||
        realm_runtime_add_model(rt, "other", other_path, &config, NULL, NULL, &err)) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    tiny_free(m);
    return 0;
}

/* ---- what is being stored ---- */

typedef struct held_job {
    tenant_job job;
    atomic_bool let;
} held_job;

static void work_when_let(tenant_job *job) {
    while (!atomic_load(&((held_job *)job)->let)) usleep(1000);
}

static void held_free(tenant_job *job) { free(job); }

/* An image is on the disk before it is listed, and counted from its first byte on: a tenant's programs together do not
 * write more than it may keep. */
static void images_on_their_way_count(void **state) {
    (void)state;
    client first, second;
    realm_error err = {0};
    char quota[32];
    tiny_model *m = image_of(31), *n = image_of(32);
    snprintf(quota, sizeof quota, "%zu", m->file_len + n->file_len / 2);
    realm_tenant *t = limited("two-at-once", "storage_bytes", quota);
    held_job *held = calloc(1, sizeof *held); /* of a tenant's heavy jobs one runs at a time: this one */
    held->job.work = work_when_let;
    held->job.free = held_free;
    job_init(&held->job, t, NULL, true);
    if (jobs_submit(rt->jobs, &held->job, &err)) fail_msg("%s", err.text);
    char *input = request_text("store", 1, m->file, m->file_len);
    begin(&first, t, with_input(input));
    for (uint64_t until = realm_clock_ns() + PATIENCE_NS; atomic_load(&t->storing_bytes) != m->file_len;) {
        if (realm_clock_ns() > until) fail_msg("the first is not being stored");
        usleep(1000);
    }
    ask(&second, t, "store", 2, n->file, n->file_len);
    assert_int_equal(second.status, REALM_E_LIMIT);
    assert_non_null(strstr(second.error, "beside what is being stored"));
    end(&second);
    atomic_store(&held->let, true);
    job_release(&held->job);
    follow(&first, 0);
    expect_ok(&first);
    end(&first);
    assert_int_equal(files_of("two-at-once"), 1);
    assert_int_equal(atomic_load(&t->storing_bytes), 0);
    ask(&second, t, "store", 2, n->file, n->file_len); /* is written, and found to be too much */
    assert_int_equal(second.status, REALM_E_LIMIT);
    assert_non_null(strstr(second.error, "storage_bytes"));
    end(&second);
    expect(t, "drop", 1, REALM_OK);
    put(t, 2, n);
    free(input);
    realm_tenant_release(t);
    tiny_free(m);
    tiny_free(n);
}

int main(int argc, char **argv) {
    if (is_compiler(argc, argv)) return compile(argv);
    realm_mutex_init(&gate.mu, REALM_RANK_LEAF);
    realm_cond_init(&gate.cond);
    if (open_all()) return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_call),
        cmocka_unit_test(images_on_their_way_count),
        cmocka_unit_test(only_its_tenant_sees_it),
        cmocka_unit_test(one_file_counts_once),
        cmocka_unit_test(loaded_and_unloaded),
        cmocka_unit_test(loaded_once),
        cmocka_unit_test(the_last_step_is_counted),
        cmocka_unit_test(in_pieces),
        cmocka_unit_test(removing_holds_up_nobody),
        cmocka_unit_test(kept_and_swept),
    };
    int failed = close_runtime(cmocka_run_group_tests_name("models", tests, NULL, NULL));
    unlink(other_path);
    char cmd[96];
    snprintf(cmd, sizeof cmd, "rm -rf '%s'", dir);
    return system(cmd) || failed;
}
