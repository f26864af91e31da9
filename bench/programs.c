/* bench/programs.c - size and start of real programs: what a toolchain costs before the program has done anything.
 *
 * For each module: its bytes, the time to make an instance, and the time from asking for one until it makes its first
 * call of `realm`, which is when the toolchain's own start-up is over. That call ends it; the imports of WASI and of
 * AssemblyScript do next to nothing here. Medians of 500, one after the other, one worker.
 *
 *     build/bench/programs FILE.wasm...          `make bench-programs`: the table of docs/programs.md
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/thread.h"
#include "sandbox/sandbox.h"
#include "tenant/host/abi.h"
#include "tenant/host/abi_wasi.h"

enum { ROUNDS = 500 };

typedef struct job {
    realm_mutex mu;
    realm_cond cond;
    bool done;
    uint64_t made_ns;
    uint64_t first_call_ns; /* 0: it made none */
} job;

static realm_call_result first_call(realm_call *call, const uint64_t *args, int32_t *result) {
    job *j = realm_call_user(call);
    (void)args, (void)result;
    j->first_call_ns = realm_clock_ns();
    return realm_call_fail(call, "measured");
}

/* Start-up code asks for the time, which may not be 0, and for folders until there are no more. */
static realm_call_result stand_in(realm_call *call, const uint64_t *args, int32_t *result, const char *name) {
    enum { WASI_EBADF = 8 };
    if (!strcmp(name, "wasi_badf")) *result = WASI_EBADF;
    uint64_t now = realm_clock_ns();
    void *to = !strcmp(name, "wasi_clock_time_get") ? realm_call_memory(call, args[2], sizeof now) : NULL;
    if (to) memcpy(to, &now, sizeof now);
    return REALM_CALL_DONE;
}

#define STAND_IN(fn)                                                                           \
    static realm_call_result p_##fn(realm_call *call, const uint64_t *args, int32_t *result) { \
        return stand_in(call, args, result, #fn);                                              \
    }
REALM_WASI_FUNCTIONS(STAND_IN)
#undef STAND_IN

#define ROW32(group, name, params, flags, declaration, text) {"realm", #name, params, false, flags, first_call, 0},
#define ROW64(group, name, params, flags, declaration, text) {"realm64", #name, params, true, flags, first_call, 0},
#define ROW_WASI(name, fn, params, result, flags) \
    {"wasi_snapshot_preview1", #name, params, false, flags, p_##fn, result},
#define ROW_ENV(name, fn, params, result, flags) {"env", name, params, false, flags, p_##fn, result},
static const realm_import IMPORTS[] = {REALM_ABI_CALLS(ROW32) REALM_ABI_CALLS(ROW64) REALM_WASI_CALLS(ROW_WASI)
                                           REALM_ENV_CALLS(ROW_ENV)};

static void die(const char *what, const char *why) {
    fprintf(stderr, "bench-programs: %s: %s\n", what, why);
    exit(1);
}

static void on_done(void *user, realm_instance *i, const realm_instance_result *r) {
    job *j = user;
    (void)i;
    realm_mutex_lock(&j->mu);
    if (!j->first_call_ns) fprintf(stderr, "bench-programs: %s\n", r->text);
    j->made_ns = r->start_ns;
    j->done = true;
    realm_cond_signal(&j->cond);
    realm_mutex_unlock(&j->mu);
}

static int by_value(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void measure(realm_sandbox *s, job *j, const char *path) {
    char *data = NULL;
    size_t n = 0;
    realm_error err = {0};
    realm_program *p = NULL;
    realm_program_limits limits = {.trusted = true};
    uint64_t made[ROUNDS], first[ROUNDS];
    if (realm_file_read(path, REALM_MODULE_BYTES_MAX, &data, &n, &err) ||
        realm_program_open(s, data, n, &limits, &p, &err))
        die(path, err.text);
    realm_free(data);
    for (int k = 0; k < ROUNDS; k++) {
        realm_instance *i = NULL;
        realm_instance_params params = {
            .user = j, .on_done = on_done, .memory_bytes = 64u << 20, .cpu_ms_per_wake = 60000};
        j->done = false;
        j->first_call_ns = 0;
        uint64_t asked = realm_clock_ns();
        if (realm_instance_start(p, &params, &i, &err)) die(path, err.text);
        realm_mutex_lock(&j->mu);
        while (!j->done) realm_cond_wait(&j->cond, &j->mu);
        realm_mutex_unlock(&j->mu);
        realm_instance_release(i);
        if (!j->first_call_ns) die(path, "ended without a call");
        made[k] = j->made_ns;
        first[k] = j->first_call_ns - asked;
    }
    realm_program_release(p);
    qsort(made, ROUNDS, sizeof *made, by_value);
    qsort(first, ROUNDS, sizeof *first, by_value);
    printf("%-36s %9zu %8.1f us %10.1f us\n", path, n, (double)made[ROUNDS / 2] / 1e3, (double)first[ROUNDS / 2] / 1e3);
}

int main(int argc, char **argv) {
    realm_error err = {0};
    realm_sandbox *s = NULL;
    realm_sandbox_config c = {.n_workers = 1,
                              .max_instances = 4,
                              .imports = IMPORTS,
                              .n_imports = REALM_ARRAY_LEN(IMPORTS),
                              .abi_major = REALM_ABI_MAJOR};
    job j = {0};
    realm_mutex_init(&j.mu, REALM_RANK_REQUEST);
    realm_cond_init(&j.cond);
    if (realm_sandbox_open(&s, &c, &err)) die("sandbox", err.text);
    printf("%-36s %9s %11s %13s\n", "program", "bytes", "made", "first call");
    for (int i = 1; i < argc; i++) measure(s, &j, argv[i]);
    realm_sandbox_close(s);
    return 0;
}
