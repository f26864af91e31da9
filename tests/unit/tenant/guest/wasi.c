/* Every working function of the WASI subset, called as the specification says and as it does not; emits "ok", or the
 * line that failed. Declared by hand: no C library stands between. */
#include "realm_guest.h"

#define WASI(name) __attribute__((import_module("wasi_snapshot_preview1"), import_name(#name)))
typedef struct iovec {
    const void *at;
    uint32_t len;
} iovec;

WASI(args_sizes_get) int32_t args_sizes_get(uint32_t *n, uint32_t *len);
WASI(args_get) int32_t args_get(char **list, char *text);
WASI(environ_sizes_get) int32_t environ_sizes_get(uint32_t *n, uint32_t *len);
WASI(environ_get) int32_t environ_get(char **list, char *text);
WASI(clock_res_get) int32_t clock_res_get(int32_t id, uint64_t *out);
WASI(clock_time_get) int32_t clock_time_get(int32_t id, uint64_t precision, uint64_t *out);
WASI(random_get) int32_t random_get(void *out, uint32_t len);
WASI(sched_yield) int32_t sched_yield(void);
WASI(fd_write) int32_t fd_write(int32_t fd, const iovec *list, uint32_t n, uint32_t *written);
WASI(fd_read) int32_t fd_read(int32_t fd, const iovec *list, uint32_t n, uint32_t *got);
WASI(fd_close) int32_t fd_close(int32_t fd);
WASI(fd_seek) int32_t fd_seek(int32_t fd, int64_t by, int32_t whence, uint64_t *at);
WASI(fd_fdstat_get) int32_t fd_fdstat_get(int32_t fd, void *out);
WASI(fd_fdstat_set_flags) int32_t fd_fdstat_set_flags(int32_t fd, int32_t flags);
WASI(fd_filestat_get) int32_t fd_filestat_get(int32_t fd, void *out);
WASI(fd_prestat_get) int32_t fd_prestat_get(int32_t fd, void *out);
WASI(fd_allocate) int32_t fd_allocate(int32_t fd, int64_t at, int64_t len);
WASI(path_open)
int32_t path_open(int32_t fd, int32_t dirflags, const char *path, uint32_t len, int32_t flags, int64_t rights,
                  int64_t inheriting, int32_t fdflags, int32_t *out);
WASI(sock_send) int32_t sock_send(int32_t fd, const iovec *list, uint32_t n, int32_t flags, uint32_t *sent);
WASI(poll_oneoff) int32_t poll_oneoff(const void *subs, void *events, uint32_t n, uint32_t *n_events);
WASI(proc_exit) void proc_exit(int32_t code);

enum { BADF = 8, FAULT = 21, INVAL = 28, NOSYS = 52, SPIPE = 70 };

#define NS_PER_MS 1000000ull

static int failed_at;
#define CHECK(x)                                      \
    do {                                              \
        if (!(x) && !failed_at) failed_at = __LINE__; \
    } while (0)

typedef struct subscription {
    uint64_t userdata;
    uint8_t tag;
    _Alignas(8) uint32_t id_or_fd;
    uint64_t timeout, precision;
    uint16_t flags;
} subscription;
_Static_assert(sizeof(subscription) == 48, "");
typedef struct event {
    uint64_t userdata;
    uint16_t error;
    uint8_t type;
    uint64_t rest[2];
} event;
_Static_assert(sizeof(event) == 32, "");

static bool same(const char *a, const char *b) {
    while (*a && *a == *b) a++, b++;
    return *a == *b;
}

static void words(void) {
    static char *list[8];
    static char text[256];
    uint32_t n = 99, len = 99;
    CHECK(args_sizes_get(&n, &len) == 0 && n == 3 && len == sizeof "program\0-v\0two words");
    CHECK(args_get(list, text) == 0 && list[0] == text);
    CHECK(same(list[0], "program") && same(list[1], "-v") && same(list[2], "two words"));
    CHECK(environ_sizes_get(&n, &len) == 0 && n == 1 && len == sizeof "GREETING=h\xc3\xa9");
    CHECK(environ_get(list, text) == 0 && same(list[0], "GREETING=h\xc3\xa9"));

    CHECK(args_sizes_get((uint32_t *)0xfffffffe, &len) == FAULT);
    CHECK(args_get((char **)0xfffffffc, text) == FAULT);
    CHECK(args_get(list, (char *)0xfffffffc) == FAULT);
}

static void clocks(void) {
    uint64_t t = 0, u = 0;
    CHECK(clock_res_get(0, &t) == 0 && t == NS_PER_MS);
    CHECK(clock_res_get(7, &t) == INVAL);
    CHECK(clock_time_get(1, 0, &t) == 0 && t > 0 && t % NS_PER_MS == 0);
    CHECK(clock_time_get(1, 0, &u) == 0 && u >= t);
    CHECK(clock_time_get(0, 1, &t) == 0 && t > 1700000000000ull * NS_PER_MS && t % NS_PER_MS == 0);
    CHECK(clock_time_get(2, 0, &t) == INVAL);
    CHECK(clock_time_get(0, 0, (uint64_t *)0xfffffffc) == FAULT);
}

static unsigned char noise[200000];
static void randomness(void) {
    unsigned last = 0;
    CHECK(random_get(noise, sizeof noise) == 0); /* three pieces and a bit */
    for (unsigned at = sizeof noise - 64; at < sizeof noise; at++) last |= noise[at];
    CHECK(last != 0);
    CHECK(random_get(noise, 0) == 0);
    CHECK(random_get((void *)0xfffff000, 8192) == FAULT);
    CHECK(sched_yield() == 0);
}

static char zeros[100000];
static void descriptors(void) {
    static char line[3000];
    unsigned char stat[64];
    uint32_t n = 99;
    iovec list[2] = {{"half a ", 7}, {"line\n", 5}}, far = {(void *)0xfffffff0, 64}, none = {0, 0};
    CHECK(fd_write(1, list, 2, &n) == 0 && n == 12);
    CHECK(fd_write(2, list, 1, &n) == 0 && n == 7); /* without an end: written when the program ends */
    for (unsigned i = 0; i < sizeof line; i++) line[i] = i % 1500 == 1499 ? '\n' : 'x';
    list[0] = (iovec){line, sizeof line};
    CHECK(fd_write(1, list, 1, &n) == 0 && n == sizeof line); /* longer than a line may be */
    list[0] = (iovec){zeros, sizeof zeros};
    CHECK(fd_write(1, list, 1, &n) == 0 && n == 65536); /* the rest is to be written again */
    CHECK(fd_write(1, &far, 1, &n) == FAULT && fd_write(1, &none, 1, &n) == 0 && n == 0);
    CHECK(fd_write(1, (void *)0xfffffff8, 2, &n) == FAULT);
    CHECK(fd_write(1, list, 5000, &n) == INVAL);
    CHECK(fd_write(1, list, 1, (uint32_t *)0xfffffffe) == FAULT);
    CHECK(fd_write(0, list, 1, &n) == BADF && fd_write(3, list, 1, &n) == BADF && fd_write(-1, list, 1, &n) == BADF);
    n = 99;
    CHECK(fd_read(0, list, 1, &n) == 0 && n == 0);
    CHECK(fd_read(1, list, 1, &n) == BADF && fd_read(9, list, 1, &n) == BADF);
    CHECK(fd_fdstat_get(1, stat) == 0 && stat[0] == 2 && stat[8] == 64);
    CHECK(fd_fdstat_get(0, stat) == 0 && stat[8] == 2);
    CHECK(fd_fdstat_get(3, stat) == BADF && fd_fdstat_get(1, (void *)0xfffffff0) == FAULT);
    CHECK(fd_filestat_get(2, stat) == 0 && stat[16] == 2);
    CHECK(fd_fdstat_set_flags(1, 4) == 0 && fd_fdstat_set_flags(3, 4) == BADF);
    CHECK(fd_seek(1, 0, 0, (uint64_t *)stat) == SPIPE && fd_seek(5, 0, 0, (uint64_t *)stat) == BADF);
    CHECK(fd_prestat_get(3, stat) == BADF);
    CHECK(fd_allocate(1, 0, 5) == NOSYS && sock_send(3, list, 1, 0, &n) == NOSYS);
    CHECK(path_open(3, 0, "x", 1, 0, -1, -1, 0, (int32_t *)stat) == BADF);
    CHECK(fd_close(0) == 0 && fd_close(0) == BADF && fd_read(0, list, 1, &n) == BADF && fd_close(77) == BADF);
}

static void waiting(void) {
    static subscription s[3];
    static event e[3];
    uint64_t before = 0, after = 0;
    uint32_t n = 99;
    clock_time_get(1, 0, &before);
    s[0] = (subscription){.userdata = 0xfeedull << 32 | 1, .id_or_fd = 1, .timeout = 15 * NS_PER_MS};
    s[1] = (subscription){.userdata = 2, .id_or_fd = 0, .timeout = 3600000 * NS_PER_MS};
    CHECK(poll_oneoff(s, e, 2, &n) == 0 && n == 1);
    CHECK(e[0].userdata == s[0].userdata && e[0].error == 0 && e[0].type == 0);
    clock_time_get(1, 0, &after);
    CHECK(after - before >= 14 * NS_PER_MS); /* both are cut to milliseconds */
    s[0].timeout = after + 10 * NS_PER_MS;   /* absolute */
    s[0].flags = 1;
    CHECK(poll_oneoff(s, e, 2, &n) == 0 && n == 1);
    clock_time_get(1, 0, &before);
    CHECK(before >= after + 10 * NS_PER_MS);
    s[0].timeout = 1; /* long ago */
    CHECK(poll_oneoff(s, e, 1, &n) == 0 && n == 1);
    s[0] = (subscription){.userdata = 5, .tag = 2, .id_or_fd = 1};
    s[2] = (subscription){.userdata = 6, .tag = 1, .id_or_fd = 9};
    CHECK(poll_oneoff(s, e, 3, &n) == 0 && n == 2); /* ready, and one that is not open; the hour is not waited for */
    CHECK(e[0].userdata == 5 && e[0].error == 0 && e[0].type == 2 && e[1].userdata == 6 && e[1].error == BADF);
    s[0] = (subscription){.tag = 0, .id_or_fd = 5};
    s[1] = (subscription){.tag = 9};
    CHECK(poll_oneoff(s, e, 2, &n) == 0 && n == 2 && e[0].error == INVAL && e[1].error == INVAL);
    CHECK(poll_oneoff(s, e, 0, &n) == INVAL && poll_oneoff(s, e, 100000, &n) == INVAL);
    CHECK(poll_oneoff((void *)0xffffff00, e, 8, &n) == FAULT && poll_oneoff(s, (void *)0xffffffe8, 1, &n) == FAULT);
}

static void put_number(int32_t n) {
    char text[16];
    unsigned at = sizeof text;
    do text[--at] = (char)('0' + n % 10);
    while ((n /= 10) > 0);
    realm_emit(text + at, sizeof text - at);
}

/* With a field "exit" in the request: ends with that code. With "sleep": for an hour. */
REALM_EXPORT(_start) void _start(void) {
    char code[16];
    int32_t n = realm_input(REALM_LITERAL("exit"), code, sizeof code), value = 0;
    if (n > 0) {
        for (int32_t i = code[0] == '-'; i < n; i++) value = value * 10 + (code[i] - '0');
        proc_exit(code[0] == '-' ? -value : value);
        realm_emit(REALM_LITERAL("went on"));
    }
    if (realm_input(REALM_LITERAL("sleep"), code, sizeof code) > 0) {
        static subscription s = {.timeout = 3600000 * NS_PER_MS};
        static event e;
        uint32_t got;
        realm_emit(REALM_LITERAL("sleeps"));
        proc_exit(poll_oneoff(&s, &e, 1, &got) == 27 ? 0 : 1); /* EINTR: the request was cancelled */
    }
    if (realm_input(REALM_LITERAL("spin"), code, sizeof code) > 0)
        for (;;) sched_yield(); /* no way around the limit of CPU time */
    words();
    clocks();
    randomness();
    waiting();
    descriptors();
    if (failed_at)
        put_number(failed_at);
    else
        realm_emit(REALM_LITERAL("ok"));
}
