/* What one tenant's calls may hold up of others': the pool's threads in turns, the programs' workers never. A call that
 * reads a model's file is a job, so it is refused where a job is refused; and what it brings is right, in pieces. And
 * what a program may hold of the host's memory through its handles. */
#include "tenant/client.h"
#include "tenant/internal.h"

static char wide_path[SCRATCH_MAX] = "test-wide";

/* ---- jobs that wait ---- */

typedef struct gate {
    realm_mutex mu;
    realm_cond cond;
    bool open;
    int freed;
} gate;

typedef struct long_job {
    tenant_job job;
    gate *g;
} long_job;

static void wait_at_gate(tenant_job *job) {
    gate *g = ((long_job *)job)->g;
    realm_mutex_lock(&g->mu);
    while (!g->open) realm_cond_wait(&g->cond, &g->mu);
    realm_mutex_unlock(&g->mu);
}

static void long_free(tenant_job *job) {
    gate *g = ((long_job *)job)->g;
    free(job);
    realm_mutex_lock(&g->mu);
    g->freed++;
    realm_cond_broadcast(&g->cond);
    realm_mutex_unlock(&g->mu);
}

/* As much as one tenant may have under way. */
static void fill(gate *g, realm_tenant *t) {
    realm_error err = {0};
    memset(g, 0, sizeof *g);
    realm_mutex_init(&g->mu, REALM_RANK_LEAF);
    realm_cond_init(&g->cond);
    for (uint32_t i = 0; i < JOBS_PER_TENANT; i++) {
        long_job *j = calloc(1, sizeof *j);
        j->g = g;
        j->job.work = wait_at_gate;
        j->job.free = long_free;
        job_init(&j->job, t, NULL, true);
        if (jobs_submit(rt->jobs, &j->job, &err)) fail_msg("%s", err.text);
        job_release(&j->job);
    }
}

static void empty(gate *g) {
    const uint64_t until = realm_clock_ns() + PATIENCE_NS;
    realm_mutex_lock(&g->mu);
    g->open = true;
    realm_cond_broadcast(&g->cond);
    while (g->freed < (int)JOBS_PER_TENANT)
        if (!realm_cond_wait_until(&g->cond, &g->mu, until)) fail_msg("the jobs do not end");
    realm_mutex_unlock(&g->mu);
    realm_cond_destroy(&g->cond);
    realm_mutex_destroy(&g->mu);
}

/* ---- weights ---- */

static uint64_t sum_of(const realm_gguf_tensor *f) {
    uint64_t sum = 0;
    uint32_t word;
    for (uint64_t i = 0; i < f->n_bytes; i += sizeof word) {
        memcpy(&word, (const char *)f->data + i, sizeof word);
        sum += word;
    }
    return sum;
}

static void copy(client *c, realm_tenant *t, const char *op) {
    char input[64];
    snprintf(input, sizeof input, "{\"op\":\"%s\"}", op);
    complete(c, t, with_input(input));
}

static void expect_sum(realm_tenant *t, const char *op, uint64_t sum) {
    client c;
    copy(&c, t, op);
    expect_ok(&c);
    assert_int_equal(strtoull(c.text, NULL, 10), sum);
    end(&c);
}

/* A file's pages may be on a disk: no worker touches them. The program itself starts at once, though its tenant's
 * heavy jobs wait; and other tenants' copies do not. */
static void weights_are_copied_by_the_pool(void **state) {
    (void)state;
    gate g;
    client c;
    uint64_t layer = 0;
    size_t n;
    realm_tenant *t = tenant_with("reads", TEST_WASM "/guest", "weights"),
                 *other = tenant_with("also-reads", TEST_WASM "/guest", "weights");
    set_limit("reads", "read_weights", "1");
    set_limit("also-reads", "read_weights", "1");
    const tenant_model *wide = rt->models[1];
    const realm_model_tensor *const *list = realm_model_layer_tensors(wide->model, 0, &n);
    for (size_t i = 0; i < n; i++) layer += sum_of(list[i]->file);
    const uint64_t gate_sum = sum_of(realm_gguf_tensor_find(wide->gguf, "blk.0.ffn_gate.weight"));
    expect_sum(t, "layer", layer);
    expect_sum(t, "read", gate_sum);
    fill(&g, t);
    for (int i = 0; i < 2; i++) {
        copy(&c, t, i ? "layer" : "read");
        assert_int_equal(c.status, REALM_E_BUSY);
        assert_non_null(strstr(c.error, "calls of this tenant are waiting"));
        end(&c);
    }
    expect_sum(other, "layer", layer);
    expect_sum(other, "read", gate_sum);
    empty(&g);
    expect_sum(t, "read", gate_sum);
    realm_tenant_release(t);
    realm_tenant_release(other);
}

/* The limit holds before anything is read. */
static void weights_are_metered(void **state) {
    (void)state;
    client c;
    realm_tenant *t = tenant_with("reads", TEST_WASM "/guest", "weights");
    set_limit("reads", "read_bytes", "1000000");
    for (int i = 0; i < 2; i++) {
        copy(&c, t, i ? "layer" : "read");
        assert_int_equal(c.status, REALM_E_LIMIT);
        assert_non_null(strstr(c.error, "read_bytes"));
        end(&c);
    }
    realm_tenant_release(t);
}

/* The text of a request's own prompt, where it takes long, is another thread's than the workers'. */
static void long_prompts_come_to_their_end(void **state) {
    (void)state;
    enum { LEN = 40000 };
    char *text = malloc(LEN);
    client c;
    realm_tenant *t = tenant_with("writes", NULL, NULL);
    realm_run_params p = text_request();
    memset(text, 'a', LEN);
    p.prompt = text;
    for (int i = 0; i < 2; i++) {
        p.prompt_len = i ? 7 : LEN;
        complete(&c, t, p);
        if (i)
            expect_ok(&c);
        else
            assert_int_equal(c.status, REALM_E_CONTEXT);
        end(&c);
    }
    free(text);
    realm_tenant_release(t);
}

/* ---- what handles stand for is counted, not the handles alone ---- */

static void holds(const char *op, const char *count_and_why) {
    client c;
    realm_tenant *t = tenant_with("holds", TEST_WASM "/guest", "holds");
    set_limit("holds", "cpu_ms_per_wake", "600000"); /* a sanitizer's build takes more than the second */
    copy(&c, t, op);
    expect_ok(&c);
    if (strncmp(c.text, count_and_why, strlen(count_and_why)) != 0) fail_msg("%s: %s", op, c.text);
    end(&c);
    realm_tenant_release(t);
}

/* 256 KiB and 96 bytes for each of 9 of the text: of 3 MiB 11 are had, a sampler with one counts as one too, and a
 * generation with that. Nothing is left of what the first program held. */
static void grammars_count_as_memory(void **state) {
    (void)state;
    realm_tenant *t = tenant_with("holds", NULL, NULL);
    set_limit("holds", "tensor_bytes", "3145728");
    for (int i = 0; i < 2; i++) {
        holds("grammars", "11 tensor_bytes: a grammar of 263008 bytes: ");
        holds("samplers", "10 tensor_bytes: a sampler's grammar of 263008 bytes: ");
        holds("many", "9 tensor_bytes: a generation's grammar of 263008 bytes: ");
    }
    realm_tensor_usage u;
    realm_tensor_budget_usage(t->tensors, &u);
    assert_int_equal(u.bytes, 0);
    realm_tenant_release(t);
}

/* And what it is moved along, 24 bytes for each of the text (2 a token), by the program itself or a sampler; once more
 * after a rollback costs nothing. */
static void text_of_grammars_counts(void **state) {
    (void)state;
    realm_tenant *t = tenant_with("holds", NULL, NULL);
    set_limit("holds", "tensor_bytes", "3145728");
    holds("along", "60 tensor_bytes: a grammar's text of 48000 bytes");
    holds("took", "54 tensor_bytes: a grammar's text of 48000 bytes");
    realm_tensor_usage u;
    realm_tensor_budget_usage(t->tensors, &u);
    assert_int_equal(u.bytes, 0);
    realm_tenant_release(t);
}

/* 5 bytes a token: 60,000 tokens, of 64 MiB; the first, which grew, may have room for all 65,536. */
static void contexts_count_as_memory(void **state) {
    (void)state;
    holds("contexts", "221 the prompts, contexts and samplers of a program may take 67108864 bytes");
}

/* The tokens of a prompt, and its text once that was asked for: 60,000 times 4 bytes each. */
static void prompts_count_as_memory(void **state) {
    (void)state;
    holds("prompts", "139 the prompts, contexts and samplers of a program may take 67108864 bytes");
}

/* ---- */

/* One whose first layer and whose ffn_gate are more than a piece. */
static int add_wide(void) {
    realm_error err = {0};
    tiny_spec spec = tiny_llama;
    const realm_model_config config = {.engine = {.n_ctx = 65536, .max_generations = 2, .kv_bytes = 16u << 20}};
    spec.layers = 1;
    spec.n_ctx = 65536;
    spec.ff = 20000;
    tiny_model *m = tiny_make(&spec);
    int fd = scratch_file(wide_path);
    if (fd >= 0) close(fd);
    realm_status st = realm_file_replace(wide_path, m->file, m->file_len, 0600, &err);
    if (!st) st = realm_runtime_add_model(rt, "wide", wide_path, &config, NULL, NULL, &err);
    if (st) fprintf(stderr, "%s\n", err.text);
    tiny_free(m);
    return st != REALM_OK;
}

int main(int argc, char **argv) {
    if (is_compiler(argc, argv)) return compile(argv);
    if (open_runtime() || add_wide()) return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weights_are_copied_by_the_pool), cmocka_unit_test(weights_are_metered),
        cmocka_unit_test(long_prompts_come_to_their_end), cmocka_unit_test(grammars_count_as_memory),
        cmocka_unit_test(text_of_grammars_counts),        cmocka_unit_test(contexts_count_as_memory),
        cmocka_unit_test(prompts_count_as_memory),
    };
    int failed = close_runtime(cmocka_run_group_tests_name("walls", tests, NULL, NULL));
    unlink(wide_path);
    return failed;
}
