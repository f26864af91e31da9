/* tenant/host/abi_wasi.h - the tables of what stock toolchains import besides `realm`.
 *
 * WASI preview 1 (`wasi_snapshot_preview1`), every function with its signature, so that any stock module links; what
 * works is the closed subset that runtimes of Go, Rust and C need to start, to print and to tell the time. There are no
 * files and no sockets behind it. And the few functions that AssemblyScript's runtime takes from its host (`env`).
 *
 * Signatures: the witx files of WASI preview 1; assemblyscript.org, "Host bindings" and the standard library's imports.
 */
#ifndef REALM_TENANT_ABI_WASI_H
#define REALM_TENANT_ABI_WASI_H

#include "sandbox/sandbox.h"

#define REALM_WASI_LOGS (REALM_IMPORT_SUSPENDS | REALM_IMPORT_BRIEF) /* may write to the log */

/* X(name, function, parameters, result, flags): letters of realm_import; result 0 is an i32, here an errno. Those that
 * answer wasi_nosys do so for every argument, those that answer wasi_badf know that no descriptor fits. */
#define REALM_WASI_CALLS(X)                                            \
    X(args_get, wasi_args_get, "pp", 0, 0)                             \
    X(args_sizes_get, wasi_args_sizes_get, "pp", 0, 0)                 \
    X(environ_get, wasi_environ_get, "pp", 0, 0)                       \
    X(environ_sizes_get, wasi_environ_sizes_get, "pp", 0, 0)           \
    X(clock_res_get, wasi_clock_res_get, "ip", 0, 0)                   \
    X(clock_time_get, wasi_clock_time_get, "ilp", 0, 0)                \
    X(fd_advise, wasi_nosys, "illi", 0, 0)                             \
    X(fd_allocate, wasi_nosys, "ill", 0, 0)                            \
    X(fd_close, wasi_fd_close, "i", 0, 0)                              \
    X(fd_datasync, wasi_nosys, "i", 0, 0)                              \
    X(fd_fdstat_get, wasi_fd_fdstat_get, "ip", 0, 0)                   \
    X(fd_fdstat_set_flags, wasi_fd_fdstat_set_flags, "ii", 0, 0)       \
    X(fd_fdstat_set_rights, wasi_nosys, "ill", 0, 0)                   \
    X(fd_filestat_get, wasi_fd_filestat_get, "ip", 0, 0)               \
    X(fd_filestat_set_size, wasi_nosys, "il", 0, 0)                    \
    X(fd_filestat_set_times, wasi_nosys, "illi", 0, 0)                 \
    X(fd_pread, wasi_fd_seek, "ipplp", 0, 0)                           \
    X(fd_prestat_get, wasi_badf, "ip", 0, 0)                           \
    X(fd_prestat_dir_name, wasi_badf, "ipp", 0, 0)                     \
    X(fd_pwrite, wasi_fd_seek, "ipplp", 0, 0)                          \
    X(fd_read, wasi_fd_read, "ippp", 0, 0)                             \
    X(fd_readdir, wasi_badf, "ipplp", 0, 0)                            \
    X(fd_renumber, wasi_nosys, "ii", 0, 0)                             \
    X(fd_seek, wasi_fd_seek, "ilip", 0, 0)                             \
    X(fd_sync, wasi_nosys, "i", 0, 0)                                  \
    X(fd_tell, wasi_fd_seek, "ip", 0, 0)                               \
    X(fd_write, wasi_fd_write, "ippp", 0, REALM_WASI_LOGS)             \
    X(path_create_directory, wasi_badf, "ipp", 0, 0)                   \
    X(path_filestat_get, wasi_badf, "iippp", 0, 0)                     \
    X(path_filestat_set_times, wasi_badf, "iipplli", 0, 0)             \
    X(path_link, wasi_badf, "iippipp", 0, 0)                           \
    X(path_open, wasi_badf, "iippillip", 0, 0)                         \
    X(path_readlink, wasi_badf, "ippppp", 0, 0)                        \
    X(path_remove_directory, wasi_badf, "ipp", 0, 0)                   \
    X(path_rename, wasi_badf, "ippipp", 0, 0)                          \
    X(path_symlink, wasi_badf, "ppipp", 0, 0)                          \
    X(path_unlink_file, wasi_badf, "ipp", 0, 0)                        \
    X(poll_oneoff, wasi_poll_oneoff, "pppp", 0, REALM_IMPORT_SUSPENDS) \
    X(proc_exit, wasi_proc_exit, "i", 'v', 0)                          \
    X(proc_raise, wasi_nosys, "i", 0, 0)                               \
    X(sched_yield, wasi_sched_yield, "", 0, 0)                         \
    X(random_get, wasi_random_get, "pp", 0, REALM_IMPORT_SUSPENDS)     \
    X(sock_accept, wasi_nosys, "iip", 0, 0)                            \
    X(sock_recv, wasi_nosys, "ippipp", 0, 0)                           \
    X(sock_send, wasi_nosys, "ippip", 0, 0)                            \
    X(sock_shutdown, wasi_nosys, "ii", 0, 0)

/* X(name as a string, function, parameters, result, flags). */
#define REALM_ENV_CALLS(X)                                       \
    X("abort", env_abort, "ppii", 'v', 0)                        \
    X("trace", env_trace, "piddddd", 'v', REALM_WASI_LOGS)       \
    X("seed", env_seed, "", 'd', 0)                              \
    X("Date.now", env_date_now, "", 'd', 0)                      \
    X("performance.now", env_perf_now, "", 'd', 0)               \
    X("console.log", env_log_info, "p", 'v', REALM_WASI_LOGS)    \
    X("console.info", env_log_info, "p", 'v', REALM_WASI_LOGS)   \
    X("console.debug", env_log_debug, "p", 'v', REALM_WASI_LOGS) \
    X("console.warn", env_log_warn, "p", 'v', REALM_WASI_LOGS)   \
    X("console.error", env_log_error, "p", 'v', REALM_WASI_LOGS) \
    X("process.exit", env_exit, "i", 'v', 0)

/* The functions, each once; wasi.c and env.c. */
/* clang-format off */
#define REALM_WASI_FUNCTIONS(X) \
    X(wasi_args_get) X(wasi_args_sizes_get) X(wasi_environ_get) X(wasi_environ_sizes_get) X(wasi_clock_res_get) \
    X(wasi_clock_time_get) X(wasi_fd_close) X(wasi_fd_fdstat_get) X(wasi_fd_fdstat_set_flags) \
    X(wasi_fd_filestat_get) X(wasi_fd_seek) X(wasi_fd_read) X(wasi_fd_write) X(wasi_poll_oneoff) X(wasi_proc_exit) \
    X(wasi_sched_yield) X(wasi_random_get) X(wasi_nosys) X(wasi_badf) \
    X(env_abort) X(env_trace) X(env_seed) X(env_date_now) X(env_perf_now) X(env_log_info) X(env_log_debug) \
    X(env_log_warn) X(env_log_error) X(env_exit)
/* clang-format on */

#define REALM_WASI_DECLARE(fn) realm_call_result fn(realm_call *call, const uint64_t *args, int32_t *result);
REALM_WASI_FUNCTIONS(REALM_WASI_DECLARE)
#undef REALM_WASI_DECLARE

#endif
