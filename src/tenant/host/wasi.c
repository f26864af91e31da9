/* tenant/host/wasi.c - the closed subset of WASI preview 1 that stock toolchains' runtimes need.
 *
 * A program built for WASI sees a machine with three descriptors and nothing else: 0 is at its end, 1 and 2 are lines
 * in the log, under the budget of `log`. Arguments and environment are what the operator configured for the tenant. The
 * clocks count whole milliseconds, like clock_ms, because fine clocks are what timing attacks are made of. Sleeping
 * parks the instance. Every other function answers ENOSYS, or EBADF where it would need a descriptor.
 *
 * A command's request and answer go through the `realm` imports, as everybody's; text printed is for the log alone, so
 * that a stray printf never becomes part of an answer.
 *
 * Structures and numbers: the witx files of WASI preview 1. All integers are little end first, as everywhere in
 * WebAssembly, and nothing is aligned that a program did not align.
 */
#include <string.h>

#include "base/log.h"
#include "crypto/crypto.h"
#include "tenant/host/abi_wasi.h"
#include "tenant/host/host.h"

/* errno */
enum {
    WASI_OK = 0,
    WASI_BADF = 8,
    WASI_FAULT = 21,
    WASI_INTR = 27,
    WASI_INVAL = 28,
    WASI_IO = 29,
    WASI_NOSYS = 52,
    WASI_SPIPE = 70
};

enum { CLOCK_REALTIME_ID, CLOCK_MONOTONIC_ID };
enum { EVENT_CLOCK, EVENT_FD_READ, EVENT_FD_WRITE };

#define FILETYPE_CHARACTER_DEVICE 2
#define RIGHT_FD_READ (UINT64_C(1) << 1)
#define RIGHT_FD_WRITE (UINT64_C(1) << 6)
#define SUBSCRIPTION_ABSTIME 1u
#define SUBSCRIPTION_BYTES 48u
#define EVENT_BYTES 32u
#define FDSTAT_BYTES 24u
#define FILESTAT_BYTES 64u
#define IOVEC_BYTES 8u
#define IOVECS_MAX 1024u
#define SUBSCRIPTIONS_MAX 1024u
#define WRITE_BYTES_MAX (64u << 10)       /* of one fd_write; libraries write the rest again */
#define MONOTONIC_START_NS REALM_NS_PER_S /* no runtime likes a clock that says 0 */
#define N_FDS 3u

/* ---- small things ---- */

static realm_call_result answer(int32_t *result, int32_t e) {
    *result = e;
    return REALM_CALL_DONE;
}

static bool put_u32(realm_call *call, uint64_t at, uint32_t v) {
    void *to = realm_call_memory(call, at, sizeof v);
    if (to) memcpy(to, &v, sizeof v);
    return to != NULL;
}

static bool put_u64(realm_call *call, uint64_t at, uint64_t v) {
    void *to = realm_call_memory(call, at, sizeof v);
    if (to) memcpy(to, &v, sizeof v);
    return to != NULL;
}

static uint32_t get_u32(const unsigned char *p) {
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static uint64_t get_u64(const unsigned char *p) {
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static bool fd_open(const realm_host *h, uint64_t fd) { return fd < N_FDS && !(h->wasi_closed & 1u << fd); }

realm_call_result wasi_nosys(realm_call *call, const uint64_t *args, int32_t *result) {
    (void)call;
    (void)args;
    return answer(result, WASI_NOSYS);
}

realm_call_result wasi_badf(realm_call *call, const uint64_t *args, int32_t *result) {
    (void)call;
    (void)args;
    return answer(result, WASI_BADF);
}

/* ---- arguments and environment ---- */

static realm_call_result sizes_get(realm_call *call, const uint64_t *args, const realm_words *w, int32_t *result) {
    bool ok = put_u32(call, args[0], w->n) && put_u32(call, args[1], (uint32_t)w->len);
    return answer(result, ok ? WASI_OK : WASI_FAULT);
}

/* (array of pointers, their bytes). */
static realm_call_result words_get(realm_call *call, const uint64_t *args, const realm_words *w, int32_t *result) {
    unsigned char *pointers = realm_call_memory(call, args[0], (uint64_t)w->n * sizeof(uint32_t));
    char *text = realm_call_memory(call, args[1], w->len);
    if (!pointers || !text) return answer(result, WASI_FAULT);
    size_t at = 0;
    for (uint32_t i = 0; i < w->n; i++) {
        uint32_t to = (uint32_t)(args[1] + at);
        memcpy(pointers + i * sizeof to, &to, sizeof to);
        at += strlen(w->text + at) + 1;
    }
    if (w->len) memcpy(text, w->text, w->len);
    return answer(result, WASI_OK);
}

realm_call_result wasi_args_sizes_get(realm_call *call, const uint64_t *args, int32_t *result) {
    return sizes_get(call, args, realm_run_args(host_of(call)->run), result);
}

realm_call_result wasi_args_get(realm_call *call, const uint64_t *args, int32_t *result) {
    return words_get(call, args, realm_run_args(host_of(call)->run), result);
}

realm_call_result wasi_environ_sizes_get(realm_call *call, const uint64_t *args, int32_t *result) {
    return sizes_get(call, args, realm_run_env(host_of(call)->run), result);
}

realm_call_result wasi_environ_get(realm_call *call, const uint64_t *args, int32_t *result) {
    return words_get(call, args, realm_run_env(host_of(call)->run), result);
}

/* ---- clocks, randomness ---- */

/* Whole milliseconds, in nanoseconds; false for a clock that there is not. */
static bool clock_now(const realm_host *h, uint64_t id, uint64_t *ns) {
    uint64_t ms;
    if (id == CLOCK_REALTIME_ID)
        ms = (uint64_t)realm_clock_wall_ms();
    else if (id == CLOCK_MONOTONIC_ID)
        ms = (realm_clock_ns() - h->opened_ns + MONOTONIC_START_NS) / REALM_NS_PER_MS;
    else
        return false;
    *ns = ms * REALM_NS_PER_MS;
    return true;
}

realm_call_result wasi_clock_res_get(realm_call *call, const uint64_t *args, int32_t *result) {
    if (args[0] > CLOCK_MONOTONIC_ID) return answer(result, WASI_INVAL);
    return answer(result, put_u64(call, args[1], REALM_NS_PER_MS) ? WASI_OK : WASI_FAULT);
}

realm_call_result wasi_clock_time_get(realm_call *call, const uint64_t *args, int32_t *result) {
    uint64_t ns;
    if (!clock_now(host_of(call), args[0], &ns)) return answer(result, WASI_INVAL);
    return answer(result, put_u64(call, args[2], ns) ? WASI_OK : WASI_FAULT);
}

/* A large request is filled in pieces, one a millisecond: a wait begins the program's CPU time anew, so it must not
 * cost as much as it gives. */
realm_call_result wasi_random_get(realm_call *call, const uint64_t *args, int32_t *result) {
    uint64_t *done = realm_call_state(call), len = args[1];
    unsigned char *to = realm_call_memory(call, args[0], len);
    if (!to) return answer(result, WASI_FAULT);
    size_t piece = (size_t)REALM_MIN(len - *done, (uint64_t)HOST_RANDOM_MAX);
    if (piece && realm_random_bytes(to + *done, piece)) return answer(result, WASI_IO);
    *done += piece;
    if (*done == len) return answer(result, WASI_OK);
    if (realm_call_cancelled(call)) return answer(result, WASI_INTR);
    realm_call_wake_at(call, realm_clock_ns() + REALM_NS_PER_MS);
    return REALM_CALL_SUSPEND;
}

/* Who else is ready runs when this one's time slice is over, as always. Not a wait: a loop around this spins. */
realm_call_result wasi_sched_yield(realm_call *call, const uint64_t *args, int32_t *result) {
    (void)call;
    (void)args;
    return answer(result, WASI_OK);
}

/* ---- the three descriptors ---- */

struct host_wasi { /* lines of 1 and 2 that have not ended */
    char line[2][HOST_LOG_BYTES_MAX];
    size_t len[2];
};

static void end_line(realm_host *h, unsigned stream) {
    host_wasi *w = h->wasi;
    host_log_line(h, stream == 0 ? REALM_LOG_INFO : REALM_LOG_WARN, w->line[stream], w->len[stream]);
    w->len[stream] = 0;
}

/* What is past the longest line is dropped, as `log` does. */
static void print(realm_host *h, unsigned stream, const char *text, size_t len) {
    host_wasi *w = h->wasi;
    while (len > 0) {
        const char *nl = memchr(text, '\n', len);
        size_t n = nl ? (size_t)(nl - text) : len, room = sizeof w->line[stream] - w->len[stream];
        if (REALM_MIN(n, room)) memcpy(w->line[stream] + w->len[stream], text, REALM_MIN(n, room));
        w->len[stream] += REALM_MIN(n, room);
        if (nl) end_line(h, stream);
        n += nl != NULL;
        text += n;
        len -= n;
    }
}

void host_wasi_close(realm_host *h) {
    if (!h->wasi) return;
    for (unsigned stream = 0; stream < 2; stream++)
        if (h->wasi->len[stream]) end_line(h, stream);
    realm_free(h->wasi);
    h->wasi = NULL;
}

/* (fd, iovecs, n, written) */
realm_call_result wasi_fd_write(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    if (args[0] == 0 || !fd_open(h, args[0])) return answer(result, WASI_BADF);
    if (args[2] > IOVECS_MAX) return answer(result, WASI_INVAL);
    const unsigned char *vecs = realm_call_memory(call, args[1], args[2] * IOVEC_BYTES);
    if (!vecs || !realm_call_memory(call, args[3], sizeof(uint32_t))) return answer(result, WASI_FAULT);
    bool wanted = realm_log_enabled(REALM_LOG_DEBUG);
    if (wanted && !h->wasi && !(h->wasi = realm_calloc(1, sizeof *h->wasi))) return answer(result, WASI_IO);
    uint32_t written = 0;
    for (uint64_t i = 0; i < args[2] && written < WRITE_BYTES_MAX; i++) {
        uint32_t at = get_u32(vecs + i * IOVEC_BYTES), len = get_u32(vecs + i * IOVEC_BYTES + 4);
        const char *text = realm_call_memory(call, at, len);
        if (!text) return answer(result, WASI_FAULT);
        len = REALM_MIN(len, WRITE_BYTES_MAX - written);
        if (wanted) print(h, (unsigned)args[0] - 1, text, len);
        written += len;
    }
    return answer(result, put_u32(call, args[3], written) ? WASI_OK : WASI_FAULT);
}

/* 0 is at its end. */
realm_call_result wasi_fd_read(realm_call *call, const uint64_t *args, int32_t *result) {
    if (args[0] != 0 || !fd_open(host_of(call), 0)) return answer(result, WASI_BADF);
    return answer(result, put_u32(call, args[3], 0) ? WASI_OK : WASI_FAULT);
}

realm_call_result wasi_fd_close(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    if (!fd_open(h, args[0])) return answer(result, WASI_BADF);
    h->wasi_closed |= (uint8_t)(1u << args[0]);
    return answer(result, WASI_OK);
}

/* None of the three has a position. */
realm_call_result wasi_fd_seek(realm_call *call, const uint64_t *args, int32_t *result) {
    return answer(result, fd_open(host_of(call), args[0]) ? WASI_SPIPE : WASI_BADF);
}

/* A character device without the right to seek is what libraries take for a terminal, and buffer by lines. */
realm_call_result wasi_fd_fdstat_get(realm_call *call, const uint64_t *args, int32_t *result) {
    if (!fd_open(host_of(call), args[0])) return answer(result, WASI_BADF);
    unsigned char *to = realm_call_memory(call, args[1], FDSTAT_BYTES);
    if (!to) return answer(result, WASI_FAULT);
    uint64_t rights = args[0] == 0 ? RIGHT_FD_READ : RIGHT_FD_WRITE;
    memset(to, 0, FDSTAT_BYTES);
    to[0] = FILETYPE_CHARACTER_DEVICE;
    memcpy(to + 8, &rights, sizeof rights);
    return answer(result, WASI_OK);
}

/* Nothing here ever blocks a thread, so there is nothing to set. */
realm_call_result wasi_fd_fdstat_set_flags(realm_call *call, const uint64_t *args, int32_t *result) {
    return answer(result, fd_open(host_of(call), args[0]) ? WASI_OK : WASI_BADF);
}

realm_call_result wasi_fd_filestat_get(realm_call *call, const uint64_t *args, int32_t *result) {
    if (!fd_open(host_of(call), args[0])) return answer(result, WASI_BADF);
    unsigned char *to = realm_call_memory(call, args[1], FILESTAT_BYTES);
    if (!to) return answer(result, WASI_FAULT);
    memset(to, 0, FILESTAT_BYTES);
    to[16] = FILETYPE_CHARACTER_DEVICE;
    return answer(result, WASI_OK);
}

/* ---- waiting ---- */

typedef struct poll_state { /* between the runs of poll_oneoff */
    uint64_t began_ns, began_wall_ns;
} poll_state;

/* When a clock's subscription is due, on the monotonic clock, rounded up to a millisecond; INVAL for an unknown one. */
static int32_t clock_due(const realm_host *h, const poll_state *s, const unsigned char *sub, uint64_t *due_ns) {
    uint32_t id = get_u32(sub + 16);
    uint64_t timeout = get_u64(sub + 24), from = s->began_ns;
    bool absolute = (sub[40] & SUBSCRIPTION_ABSTIME) != 0;
    if (id > CLOCK_MONOTONIC_ID) return WASI_INVAL;
    if (absolute) {
        uint64_t now = id == CLOCK_REALTIME_ID ? s->began_wall_ns : s->began_ns - h->opened_ns + MONOTONIC_START_NS;
        timeout = timeout > now ? timeout - now : 0;
    }
    if (timeout > UINT64_MAX - REALM_NS_PER_MS) timeout = UINT64_MAX - REALM_NS_PER_MS;
    timeout = (timeout + REALM_NS_PER_MS - 1) / REALM_NS_PER_MS * REALM_NS_PER_MS;
    if (!realm_add_u64(from, timeout, due_ns)) *due_ns = UINT64_MAX;
    return WASI_OK;
}

/* Whether a subscription has its event, and what its errno is. `due_ns` becomes the least time that is still to come.
 */
static bool sub_ready(const realm_host *h, const poll_state *s, const unsigned char *sub, uint64_t now_ns, uint16_t *e,
                      uint64_t *due_ns) {
    uint64_t due = 0;
    *e = WASI_OK;
    switch (sub[8]) {
    case EVENT_CLOCK:
        *e = (uint16_t)clock_due(h, s, sub, &due);
        if (*e || due <= now_ns) return true;
        *due_ns = REALM_MIN(*due_ns, due);
        return false;
    case EVENT_FD_READ:
    case EVENT_FD_WRITE:
        if (!fd_open(h, get_u32(sub + 16)) || (get_u32(sub + 16) == 0) != (sub[8] == EVENT_FD_READ)) *e = WASI_BADF;
        return true; /* the three never make anybody wait */
    default: *e = WASI_INVAL; return true;
    }
}

static void put_event(unsigned char *to, const unsigned char *sub, uint16_t e) {
    memset(to, 0, EVENT_BYTES);
    memcpy(to, sub, 8); /* the program's own mark */
    memcpy(to + 8, &e, sizeof e);
    to[10] = sub[8];
}

/* (subscriptions, events, n, events written) */
realm_call_result wasi_poll_oneoff(realm_call *call, const uint64_t *args, int32_t *result) {
    realm_host *h = host_of(call);
    poll_state *s = realm_call_state(call);
    uint64_t n = args[2], now = realm_clock_ns(), due = UINT64_MAX;
    uint32_t n_events = 0;
    if (n == 0 || n > SUBSCRIPTIONS_MAX) return answer(result, WASI_INVAL);
    const unsigned char *subs = realm_call_memory(call, args[0], n * SUBSCRIPTION_BYTES);
    unsigned char *events = realm_call_memory(call, args[1], n * EVENT_BYTES);
    if (!subs || !events || !realm_call_memory(call, args[3], sizeof n_events)) return answer(result, WASI_FAULT);
    if (!realm_call_resumed(call)) {
        s->began_ns = now;
        s->began_wall_ns = (uint64_t)realm_clock_wall_ms() * REALM_NS_PER_MS;
    }
    for (uint64_t i = 0; i < n; i++) {
        /* A copy: nobody promised that the two lists do not overlap. */
        unsigned char sub[SUBSCRIPTION_BYTES];
        uint16_t e;
        memcpy(sub, subs + i * SUBSCRIPTION_BYTES, sizeof sub);
        if (sub_ready(h, s, sub, now, &e, &due)) put_event(events + EVENT_BYTES * n_events++, sub, e);
    }
    if (n_events == 0) {
        if (realm_call_cancelled(call)) return answer(result, WASI_INTR);
        realm_call_wake_at(call, due);
        return REALM_CALL_SUSPEND;
    }
    return answer(result, put_u32(call, args[3], n_events) ? WASI_OK : WASI_FAULT);
}

/* ---- the end ---- */

/* 0 is success. A negative number is what realm_main would return: the code of what failed. Any other is a failure that
 * only the program knows. */
realm_call_result wasi_proc_exit(realm_call *call, const uint64_t *args, int32_t *result) {
    int32_t code = (int32_t)(uint32_t)args[0];
    if (code > 0) return realm_call_fail(call, "the program exited with code %d", code);
    *result = code;
    return REALM_CALL_EXIT;
}
