/* sandbox/compile.c - compiling in a child process, so that a module cannot take the server with it.
 *
 * A module of a few kilobytes can make an optimising compiler run for hours or fill memory; Wasmtime does not count
 * that as a fault, and rightly. So compiling happens in a fresh process of the same program (`program compile-child IN
 * OUT`), which has nothing of the server's (no descriptors but its two files, no environment but a few lines), limits
 * itself in CPU time, address space and file size before it reads a byte of the module, and is killed when the wall
 * clock runs out. Both files are anonymous memory:
 *
 *     IN   a `job`, then the module          OUT  a `reply`, then the artifact or the error's text
 *
 * A third descriptor, a pipe that nobody writes to, tells the parent that the child has ended, with a timeout and
 * without touching the process's signal handlers.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sandbox/internal.h"

#define CPU_S_DEFAULT 30u
#define WALL_MS_DEFAULT 60000u
#define MEMORY_DEFAULT (UINT64_C(2) << 30)
#define COMPILER_THREADS "4"
/* Sanitizers reserve terabytes of address space for themselves: their builds go without that one limit. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define LIMIT_MEMORY false
#else
#define LIMIT_MEMORY true
#endif
/* The compiler is not built with the thread sanitizer, which takes what its threads hand to each other for thousands of
 * races and spends minutes on describing them. */
#if defined(__SANITIZE_THREAD__)
#define PARALLEL false
#else
#define PARALLEL true
#endif
#define IN_FD 3
#define OUT_FD 4
#define PIPE_FD 5

typedef struct job {
    char magic[8];
    realm_tuning tuning;
    uint64_t memory_bytes, wasm_len;
    uint32_t cpu_s, pad;
} job;

typedef struct reply {
    char magic[8];
    int32_t status; /* realm_status */
    uint32_t pad;
    uint64_t len; /* of what follows */
} reply;

static const char JOB_MAGIC[8] = {'r', 'e', 'a', 'l', 'm', 'j', 'b', '1'};
static const char REPLY_MAGIC[8] = {'r', 'e', 'a', 'l', 'm', 'r', 'p', '1'};

static bool write_all(int fd, const void *data, size_t len) {
    const char *p = data;
    while (len > 0) {
        ssize_t n = write(fd, p, len);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        p += n;
        len -= (size_t)n;
    }
    return true;
}

static bool read_all(int fd, void *data, size_t len) {
    char *p = data;
    while (len > 0) {
        ssize_t n = read(fd, p, len);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        p += n;
        len -= (size_t)n;
    }
    return true;
}

/* ---- compiling itself, in whichever process ---- */

static realm_status compile_here(const realm_tuning *t, bool parallel, const void *wasm, size_t len, char **artifact,
                                 size_t *n, realm_error *err) {
    wasm_engine_t *engine = NULL;
    wasmtime_module_t *module = NULL;
    wasm_byte_vec_t bytes = {0};
    realm_status st = REALM_OK;
    wasm_config_t *config = realm_engine_config_new(t, parallel);
    if (!config || !(engine = wasm_engine_new_with_config(config)))
        return realm_error_set(err, REALM_E_NOMEM, "no memory for the compiler");
    wasmtime_error_t *e = wasmtime_module_new(engine, wasm, len, &module);
    if (e) {
        st = realm_wasmtime_error(e, REALM_E_FORMAT, "the module does not compile", err);
        goto done;
    }
    if ((e = wasmtime_module_serialize(module, &bytes))) {
        st = realm_wasmtime_error(e, REALM_E_INTERNAL, "the compiled module cannot be written", err);
        goto done;
    }
    if (bytes.size > REALM_ARTIFACT_BYTES_MAX) {
        st = realm_error_set(err, REALM_E_LIMIT, "the compiled module has %zu bytes, at most %u are allowed",
                             bytes.size, REALM_ARTIFACT_BYTES_MAX);
        goto done;
    }
    if (!(*artifact = realm_malloc(bytes.size)))
        st = realm_error_set(err, REALM_E_NOMEM, "no memory for the compiled module");
    else
        memcpy(*artifact, bytes.data, *n = bytes.size);
done:
    if (bytes.data) wasm_byte_vec_delete(&bytes);
    if (module) wasmtime_module_delete(module);
    wasm_engine_delete(engine);
    return st;
}

/* ---- the child ---- */

static bool limit(int what, uint64_t value) {
    struct rlimit now, want = {.rlim_cur = (rlim_t)value, .rlim_max = (rlim_t)value};
    if (getrlimit((__rlimit_resource_t)what, &now)) return false;
    if (now.rlim_max != RLIM_INFINITY && now.rlim_max < want.rlim_max) want.rlim_cur = want.rlim_max = now.rlim_max;
    return !setrlimit((__rlimit_resource_t)what, &want);
}

static bool limit_self(const job *j) {
    return limit(RLIMIT_CORE, 0) && limit(RLIMIT_CPU, j->cpu_s) &&
           (!LIMIT_MEMORY || limit(RLIMIT_AS, j->memory_bytes)) &&
           limit(RLIMIT_FSIZE, REALM_ARTIFACT_BYTES_MAX + (UINT64_C(1) << 16)) && limit(RLIMIT_NOFILE, 64) &&
           !prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) && !prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
}

static int compile_child(int argc, char **argv) {
    char *end_in, *end_out;
    if (argc != 2) return 2;
    long in = strtol(argv[0], &end_in, 10), out = strtol(argv[1], &end_out, 10);
    if (!*argv[0] || *end_in || !*argv[1] || *end_out || in < 0 || out < 0 || in > 1024 || out > 1024) return 2;
    job j;
    if (!read_all((int)in, &j, sizeof j) || memcmp(j.magic, JOB_MAGIC, sizeof j.magic) ||
        j.wasm_len > REALM_MODULE_BYTES_MAX || !limit_self(&j))
        return 2;
    prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    realm_error err = {0};
    reply r = {.status = REALM_OK};
    memcpy(r.magic, REPLY_MAGIC, sizeof r.magic);
    char *artifact = NULL;
    size_t n = 0;
    char *wasm = realm_malloc((size_t)j.wasm_len);
    if (!wasm || !read_all((int)in, wasm, (size_t)j.wasm_len))
        r.status = realm_error_set(&err, REALM_E_NOMEM, "the compiler could not read the module");
    else
        r.status = compile_here(&j.tuning, PARALLEL, wasm, (size_t)j.wasm_len, &artifact, &n, &err);
    r.len = r.status ? strlen(err.text) : n;
    bool written =
        write_all((int)out, &r, sizeof r) && write_all((int)out, r.status ? err.text : artifact, (size_t)r.len);
    realm_free(artifact);
    realm_free(wasm);
    return written ? 0 : 1;
}

void realm_sandbox_compile_child(int argc, char **argv) { _exit(compile_child(argc, argv)); }

/* ---- the parent ---- */

/* Anonymous memory at a descriptor above those that the child gets its files at, so that duplicating cannot collide. */
static int memory_file(const char *name) {
    int fd = memfd_create(name, MFD_CLOEXEC);
    if (fd < 0 || fd > PIPE_FD) return fd;
    int high = fcntl(fd, F_DUPFD_CLOEXEC, PIPE_FD + 1);
    close(fd);
    return high;
}

static int spawn_compiler(const char *path, int in, int out, int ended, pid_t *pid) {
    char in_text[] = "3", out_text[] = "4", threads[] = "RAYON_NUM_THREADS=" COMPILER_THREADS,
         arenas[] = "MALLOC_ARENA_MAX=2";
    char program[] = "program", child[] = "compile-child";
    char *argv[] = {(char *)path, program, child, in_text, out_text, NULL};
    char *envp[] = {threads, arenas, NULL};
    posix_spawn_file_actions_t fa;
    posix_spawnattr_t attr;
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    int e = posix_spawn_file_actions_init(&fa);
    if (e) return e;
    if ((e = posix_spawnattr_init(&attr))) {
        posix_spawn_file_actions_destroy(&fa);
        return e;
    }
    if (!(e = posix_spawnattr_setflags(&attr,
                                       POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP)) &&
        !(e = posix_spawnattr_setsigmask(&attr, &none)) && !(e = posix_spawnattr_setsigdefault(&attr, &all)) &&
        !(e = posix_spawn_file_actions_adddup2(&fa, in, IN_FD)) &&
        !(e = posix_spawn_file_actions_adddup2(&fa, out, OUT_FD)) &&
        !(e = posix_spawn_file_actions_adddup2(&fa, ended, PIPE_FD)) &&
        !(e = posix_spawn_file_actions_addopen(&fa, 0, "/dev/null", O_RDONLY, 0)) &&
        !(e = posix_spawn_file_actions_addopen(&fa, 1, "/dev/null", O_WRONLY, 0)) &&
        !(e = posix_spawn_file_actions_addopen(&fa, 2, "/dev/null", O_WRONLY, 0)) &&
        !(e = posix_spawn_file_actions_addclosefrom_np(&fa, PIPE_FD + 1)))
        e = posix_spawn(pid, path, &fa, &attr, argv, envp);
    posix_spawnattr_destroy(&attr);
    posix_spawn_file_actions_destroy(&fa);
    return e;
}

/* Waits until the child's end of the pipe is closed; false when the time is up. */
static bool wait_ended(int fd, uint64_t deadline_ns) {
    for (;;) {
        uint64_t now = realm_clock_ns();
        if (now >= deadline_ns) return false;
        struct pollfd p = {.fd = fd, .events = POLLIN};
        int n = poll(&p, 1, (int)REALM_MIN((deadline_ns - now) / REALM_NS_PER_MS + 1, UINT64_C(60000)));
        if (n > 0) return true;
        if (n < 0 && errno != EINTR) return false;
    }
}

static realm_status read_reply(int out, int wait_status, bool reaped, const realm_program_limits *l, char **artifact,
                               size_t *len, realm_error *err) {
    reply r;
    struct stat sb;
    bool whole = !lseek(out, 0, SEEK_SET) && read_all(out, &r, sizeof r) &&
                 !memcmp(r.magic, REPLY_MAGIC, sizeof r.magic) && !fstat(out, &sb) &&
                 r.len <= REALM_ARTIFACT_BYTES_MAX && (uint64_t)sb.st_size == sizeof r + r.len;
    if (!whole && reaped && WIFSIGNALED(wait_status)) {
        int sig = WTERMSIG(wait_status);
        if (sig == SIGXCPU || sig == SIGKILL)
            return realm_error_set(err, REALM_E_LIMIT, "compiling the module took more than %u s of CPU time",
                                   l->compile_cpu_s);
        return realm_error_set(err, REALM_E_LIMIT,
                               "compiling the module ended with signal %d: it may need more than %llu MiB of memory",
                               sig, (unsigned long long)(l->compile_memory_bytes >> 20));
    }
    if (!whole)
        return realm_error_set(err, REALM_E_INTERNAL, "the compiler process ended without a result (exit status %d)",
                               reaped && WIFEXITED(wait_status) ? WEXITSTATUS(wait_status) : -1);
    char *data = realm_malloc((size_t)r.len + 1);
    if (!data || !read_all(out, data, (size_t)r.len)) {
        realm_free(data);
        return realm_error_set(err, REALM_E_NOMEM, "no memory for the compiled module");
    }
    data[r.len] = 0;
    if (r.status) {
        realm_status st = r.status < 0 && r.status >= REALM_E_TOO_LARGE ? (realm_status)r.status : REALM_E_INTERNAL;
        realm_error_set(err, st, "%s", data);
        realm_free(data);
        return st;
    }
    *artifact = data;
    *len = (size_t)r.len;
    return REALM_OK;
}

static uint64_t timeval_ns(const struct timeval *t) {
    return (uint64_t)t->tv_sec * REALM_NS_PER_S + (uint64_t)t->tv_usec * REALM_NS_PER_US;
}

static realm_status compile_in_child(realm_sandbox *s, const void *wasm, size_t len, const realm_program_limits *l,
                                     char **artifact, size_t *artifact_len, realm_error *err) {
    job j = {.tuning = s->tuning, .memory_bytes = l->compile_memory_bytes, .wasm_len = len, .cpu_s = l->compile_cpu_s};
    memcpy(j.magic, JOB_MAGIC, sizeof j.magic);
    int in = -1, out = -1, ends[2] = {-1, -1}, wait_status = 0;
    pid_t pid = -1;
    realm_status st;
    in = memory_file("realm-module");
    out = memory_file("realm-artifact");
    if (in < 0 || out < 0 || pipe2(ends, O_CLOEXEC)) {
        st = realm_error_set(err, REALM_E_IO, "cannot start the compiler: %s", strerror(errno));
        goto done;
    }
    for (int k = 0; k < 2; k++) {
        if (ends[k] > PIPE_FD) continue;
        int high = fcntl(ends[k], F_DUPFD_CLOEXEC, PIPE_FD + 1);
        close(ends[k]);
        ends[k] = high;
    }
    if (!write_all(in, &j, sizeof j) || !write_all(in, wasm, len) || lseek(in, 0, SEEK_SET)) {
        st = realm_error_set(err, REALM_E_NOMEM, "no memory to hand the module to the compiler");
        goto done;
    }
    int e = spawn_compiler(s->compiler_path, in, out, ends[1], &pid);
    if (e) {
        st = realm_error_set(err, REALM_E_IO, "cannot run the compiler %s: %s", s->compiler_path, strerror(e));
        goto done;
    }
    close(ends[1]);
    ends[1] = -1;
    bool in_time = wait_ended(ends[0], realm_clock_ns() + l->compile_wall_ms * REALM_NS_PER_MS);
    if (!in_time) kill(-pid, SIGKILL); /* its process group: itself and whatever it started */
    pid_t got;
    struct rusage used;
    do got = wait4(pid, &wait_status, 0, &used);
    while (got < 0 && errno == EINTR);
    if (got == pid && l->compile_cpu_ns) *l->compile_cpu_ns = timeval_ns(&used.ru_utime) + timeval_ns(&used.ru_stime);
    if (!in_time)
        st = realm_error_set(err, REALM_E_TIMEOUT, "compiling the module took more than %u ms", l->compile_wall_ms);
    else /* a host that ignores SIGCHLD leaves nothing to wait for: the reply alone decides then */
        st = read_reply(out, wait_status, got == pid, l, artifact, artifact_len, err);
done:
    for (int k = 0; k < 2; k++)
        if (ends[k] >= 0) close(ends[k]);
    if (in >= 0) close(in);
    if (out >= 0) close(out);
    return st;
}

realm_status realm_compile(realm_sandbox *s, const void *wasm, size_t len, const realm_program_limits *limits,
                           char **artifact, size_t *artifact_len, realm_error *err) {
    realm_program_limits l = *limits;
    if (!l.compile_cpu_s) l.compile_cpu_s = CPU_S_DEFAULT;
    if (!l.compile_wall_ms) l.compile_wall_ms = WALL_MS_DEFAULT;
    if (!l.compile_memory_bytes) l.compile_memory_bytes = MEMORY_DEFAULT;
    /* Not in parallel: threads for it would stay in the server for good. */
    if (l.trusted) return compile_here(&s->tuning, false, wasm, len, artifact, artifact_len, err);
    if (!s->compiler_path)
        return realm_error_set(err, REALM_E_UNSUPPORTED,
                               "no compiler program is configured: modules are compiled in a child process only");
    return compile_in_child(s, wasm, len, &l, artifact, artifact_len, err);
}
