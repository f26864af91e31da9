/* Programs that make random calls (guest/random.c), many at once, of tenants with other limits, in an engine whose KV
 * memory is far too small for them and whose room for suspended pages is too; their clients read slowly, cancel or
 * leave. Then the same while limits and programs change, tenants are deleted and made anew, and the model is taken away
 * and loaded again. What the programs know is right they check themselves, tokens are checked here against the model
 * alone; at the end nothing is held by anybody and the ledger says what the engine has counted. */
#include "support/oracle.h"
#include "tenant/client.h"
#include "tenant/internal.h"

#define AT_ONCE 6u
#define TENANTS 3u

static unsigned n_programs = 36, n_operations = 400, first_seed = 1;
static oracle truth;
static char dir[SCRATCH_MAX] = "test-sequences";

static const struct { /* what is different from the defaults */
    const char *name, *program, *limits[6];
} TENANTS_OF[TENANTS] = {{"roomy", "random", {NULL}},
                         {"narrow", "random", {"kv_tokens", "768", "contexts", "3", NULL}},
                         {"few", "random64", {"generations", "4", "storage_bytes", "400", NULL}}};
static realm_tenant *tenants[TENANTS];
static bool upsets; /* everything changes under the programs */
static unsigned n_requests;

typedef struct told { /* what a client was told */
    client c;
    char input[128];
    uint32_t seed, ending;
    char *lines; /* what the program emitted */
    size_t len, cap;
    size_t leave_at; /* bytes of lines at which the client cancels or goes; 0: never */
} told;

static void take_lines(told *t, const realm_event_batch *b) {
    for (size_t i = 0; i < b->n_events; i++) {
        const realm_event *e = &b->events[i];
        if (e->kind == REALM_EVENT_TOKEN && e->id < 0) {
            if (t->len + e->text_len + 1 > t->cap)
                t->lines = realloc(t->lines, t->cap = (t->len + e->text_len + 1) * 2);
            memcpy(t->lines + t->len, b->text.data + e->text_at, e->text_len);
            t->len += e->text_len;
            t->lines[t->len] = 0;
        }
        if (e->kind != REALM_EVENT_END) continue;
        t->c.finish = e->finish;
        t->c.status = b->status;
        snprintf(t->c.error, sizeof t->c.error, "%s", b->error.text);
    }
}

/* `T n tokens`: greedy from the n-th on, but for those with a `!`. */
static unsigned check_line(const told *t, char *line) {
    int32_t tokens[512], want;
    char *at = line + 2;
    uint32_t n = 0, from = (uint32_t)strtoul(at, &at, 10);
    unsigned checked = 0;
    while (*at == ' ') {
        bool forced = at[1] == '!';
        tokens[n] = (int32_t)strtol(at + 1 + forced, &at, 10);
        if (n >= from && !forced) {
            if (tokens[n] != (want = oracle_next(&truth, tokens, n)))
                fail_msg("seed %u: token %u of %s is not %d", t->seed, n, line, want);
            checked++;
        }
        n++;
    }
    return checked;
}

static void check_lines(told *t, unsigned *checked) {
    char *line = t->lines, *next;
    for (; line && (next = strchr(line, '\n')); line = next + 1) {
        *next = 0;
        while ((unsigned char)*line >= 0x80) line++; /* a pipe that ended inside a character */
        if (*line == 'T')
            *checked += check_line(t, line);
        else if (*line != 'N')
            fail_msg("seed %u: %s", t->seed, line);
        else if (getenv("REALM_TEST_VERBOSE"))
            print_message("seed %u, %s: %s\n", t->seed, realm_tenant_name(t->c.tenant), line);
    }
}

static void start(told *t, uint32_t seed) {
    memset(t, 0, sizeof *t);
    t->seed = seed;
    t->ending = seed % 5 == 4 ? 0 : seed % 5;
    if (seed % 7 == 3) t->leave_at = 500 + seed * 37 % 4000;
    snprintf(t->input, sizeof t->input, "{\"endpoint\":\"completion\",\"prompt\":\"abc\",\"text\":\"%u %u %u %d\"}",
             seed, n_operations, t->ending, upsets);
    realm_run_params p = text_request();
    p.input = t->input;
    p.input_len = strlen(t->input);
    begin(&t->c, tenants[seed % TENANTS], p);
    n_requests++;
}

/* Reads what is there; true once it is over. */
static bool step(told *t) {
    realm_event_batch b;
    realm_event_batch_init(&b);
    while (t->c.finish == REALM_FINISH_NONE && realm_run_poll(t->c.run, &b) > 0) take_lines(t, &b);
    realm_event_batch_release(&b);
    if (t->c.finish != REALM_FINISH_NONE) return true;
    if (t->ending == 3 && t->lines && strstr(t->lines, "N ")) realm_run_cancel(t->c.run);
    if (t->leave_at && t->len > t->leave_at) {
        if (t->seed % 2) return true; /* goes */
        realm_run_cancel(t->c.run);
    }
    return false;
}

static void finish(told *t, unsigned *checked) {
    check_lines(t, checked);
    const realm_status s = t->c.status;
    if (t->c.finish == REALM_FINISH_NONE || t->leave_at) {
        assert_true(s == REALM_OK || s == REALM_E_CANCELLED || t->ending);
    } else if (t->ending == 1 || t->ending == 2 ? s != REALM_E_PROGRAM : s && t->ending == 0) {
        fail_msg("seed %u: %d %s", t->seed, s, t->c.error);
    }
    end(&t->c);
    free(t->lines);
}

/* The program, or one that differs from it in a custom section. */
static void set_program(unsigned i, bool other) {
    realm_error err = {0};
    size_t n = 0;
    char *wasm = read_file(TEST_WASM "/guest", TENANTS_OF[i].program, &n), *longer = malloc(n + 4);
    assert_non_null(longer);
    memcpy(longer, wasm, n);
    memcpy(longer + n, "\0\2\1x", 4);
    if (realm_store_tenant_set(realm_runtime_store(rt), TENANTS_OF[i].name, NULL, longer, n + (other ? 4 : 0), &err))
        fail_msg("%s", err.text);
    realm_free(wasm);
    free(longer);
}

static void make_tenant(unsigned i) {
    const char *name = TENANTS_OF[i].name;
    tenants[i] = tenant_with(name, NULL, NULL);
    set_program(i, false);
    for (const char *const *l = TENANTS_OF[i].limits; *l; l += 2) set_limit(name, l[0], l[1]);
}

static void delete_tenant(unsigned i) {
    realm_error err = {0};
    realm_tenant_release(tenants[i]);
    if (realm_store_tenant_delete(realm_runtime_store(rt), TENANTS_OF[i].name, &err)) fail_msg("%s", err.text);
}

static void upset(unsigned n) {
    realm_error err = {0};
    const bool odd = n / 6 % 2;
    switch (n % 6) {
    case 0: set_program(1, odd); break;
    case 1: set_limit("narrow", "kv_tokens", odd ? "288" : "1000"); break;
    case 2: set_limit("roomy", "generations", odd ? "2" : "64"); break;
    case 3: set_limit("narrow", "contexts", odd ? "1" : "3"); break;
    case 4:
        delete_tenant(2);
        realm_runtime_reload(rt);
        make_tenant(2);
        break;
    default:
        if (realm_runtime_retire_model(rt, "tiny", &err) || add_tiny(&err)) fail_msg("%s", err.text);
    }
    realm_runtime_reload(rt);
}

static void tenants_leave_nothing(void) {
    realm_engine_stats st;
    realm_tenant_stats *list;
    realm_error err = {0};
    size_t n;
    nothing_is_left();
    if (realm_runtime_tenant_stats(rt, &list, &n, &err)) fail_msg("%s", err.text);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(list[i].generations, 0);
        assert_int_equal(list[i].tensor_bytes, 0);
    }
    realm_free(list);
    for (unsigned i = 0; i < TENANTS; i++) delete_tenant(i);
    realm_runtime_reload(rt);
    realm_engine_get_stats(engine_of(rt, "tiny"), &st);
    for (uint64_t until = realm_clock_ns() + PATIENCE_NS; st.contexts > 0 && realm_clock_ns() < until; usleep(2000))
        realm_engine_get_stats(engine_of(rt, "tiny"), &st); /* contexts go with their tenants, a little later */
    assert_int_equal(st.contexts, 0);
    assert_int_equal(st.kv_pages_used, 0);
    assert_int_equal(st.suspended_pages, 0);
    assert_int_equal(st.suspended_bytes + st.suspended_disk, 0);
    print_message("%llu pages suspended, %llu resumed, %llu lost; %llu generations ended, %llu cancelled\n",
                  (unsigned long long)st.suspends, (unsigned long long)st.resumes, (unsigned long long)st.dropped,
                  (unsigned long long)st.ended, (unsigned long long)st.cancelled);
    if (!upsets) assert_true(st.suspends + st.dropped > 0 && st.cancelled > 0); /* else the engine is a new one */
    assert_int_equal(st.failed, 0);
}

static void the_ledger_is_exact(void) {
    realm_store *store;
    realm_error err = {0};
    realm_usage engine, sum = {0};
    if (realm_store_open(&store, state_dir, &err)) fail_msg("%s", err.text);
    assert_int_equal(realm_store_usage_each(store, NULL, 0, add_usage, &sum, NULL), REALM_OK);
    assert_int_equal(realm_store_usage_engine(store, &engine, NULL), REALM_OK);
    realm_store_close(store);
    assert_int_equal(sum.prompt_tokens, engine.prompt_tokens);
    assert_int_equal(sum.completion_tokens, engine.completion_tokens);
    assert_int_equal(sum.program_cpu_ns, engine.program_cpu_ns);
    assert_int_equal(sum.tensor_ns, engine.tensor_ns);
    assert_int_equal(sum.requests, n_requests);
    assert_true(sum.cached_tokens <= sum.prompt_tokens);
}

static void run_programs(void) {
    static told all[AT_ONCE];
    bool runs[AT_ONCE] = {false};
    unsigned begun = 0, ended = 0, checked = 0, n_upsets = 0;
    for (unsigned i = 0; i < TENANTS; i++) make_tenant(i);
    realm_runtime_reload(rt);
    uint64_t until = realm_clock_ns() + PATIENCE_NS;
    while (ended < n_programs) {
        bool any = false;
        for (unsigned i = 0; i < AT_ONCE; i++) {
            if (!runs[i] && begun < n_programs) {
                start(&all[i], first_seed + begun++);
                runs[i] = true;
            }
            if (!runs[i]) continue;
            size_t before = all[i].len;
            if (step(&all[i])) {
                finish(&all[i], &checked);
                runs[i] = false;
                ended++;
                any = true;
                if (upsets) upset(n_upsets++);
            }
            any = any || all[i].len > before;
        }
        if (any) until = realm_clock_ns() + PATIENCE_NS;
        if (realm_clock_ns() > until) {
            for (unsigned i = 0; i < AT_ONCE; i++)
                if (runs[i]) print_message("seed %u has not ended\n", all[i].seed);
            fail_msg("nothing goes on");
        }
        usleep(500);
    }
    print_message("%u tokens as the model alone says\n", checked);
    assert_true(checked > 20 * n_programs);
    tenants_leave_nothing();
    the_ledger_is_exact();
}

static void random_programs(void **state) {
    (void)state;
    run_programs();
}

static void and_everything_changes(void **state) {
    (void)state;
    upsets = true;
    run_programs();
}

static unsigned setting(const char *name, unsigned otherwise) {
    const char *s = getenv(name);
    return s ? (unsigned)strtoul(s, NULL, 10) : otherwise;
}

int main(int argc, char **argv) {
    char remove[96];
    if (is_compiler(argc, argv)) return compile(argv);
    n_programs = setting("REALM_PROGRAMS", n_programs);
    n_operations = setting("REALM_OPERATIONS", n_operations);
    first_seed = setting("REALM_SEED", first_seed);
    /* Kilobytes of KV memory for 14 pages of 16 long sequences, and other rooms as small. */
    const uint64_t bytes = page_bytes_of(&tiny_llama);
    state_dir = scratch_dir(dir);
    tiny_engine.kv_bytes = 30 * bytes;
    tiny_engine.spill_bytes = 8 * bytes;
    tiny_engine.spill_dir = state_dir;
    tiny_engine.spill_dir_bytes = 20 * bytes;
    if (!state_dir || open_runtime()) return 1;
    tiny_model *m = tiny_make(&tiny_llama);
    oracle_open_tiny(&truth, m);
    const struct CMUnitTest tests[] = {cmocka_unit_test(random_programs), cmocka_unit_test(and_everything_changes)};
    int failed = close_runtime(cmocka_run_group_tests_name("sequences", tests, NULL, NULL));
    oracle_close(&truth);
    tiny_free(m);
    snprintf(remove, sizeof remove, "rm -rf '%s'", dir);
    return system(remove) ? 1 : failed;
}
