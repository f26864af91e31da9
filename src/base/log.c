#include "base/log.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static struct {
    _Atomic int least;
    realm_log_sink sink;
    void *user;
} log_state = {.least = REALM_LOG_INFO};

void realm_log_configure(realm_log_level least, realm_log_sink sink, void *user) {
    log_state.sink = sink;
    log_state.user = user;
    /* relaxed: callers configure before other threads exist */
    atomic_store_explicit(&log_state.least, (int)least, memory_order_relaxed);
}

bool realm_log_enabled(realm_log_level level) {
    return (int)level >= atomic_load_explicit(&log_state.least, memory_order_relaxed);
}

void realm_log(realm_log_level level, const char *where, const char *fmt, ...) {
    static const char *const names[] = {"debug", "info", "warn", "error"};
    if (!realm_log_enabled(level)) return;
    char line[1024];
    struct timespec ts;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &ts);
    gmtime_r(&ts.tv_sec, &tm);
    size_t n = strftime(line, sizeof line, "%Y-%m-%dT%H:%M:%S", &tm);
    n += (size_t)snprintf(line + n, sizeof line - n, ".%03ldZ %-5s %s: ", ts.tv_nsec / 1000000, names[level], where);
    va_list ap;
    va_start(ap, fmt);
    int m = vsnprintf(line + n, sizeof line - n - 1, fmt, ap);
    va_end(ap);
    if (m > 0) n = REALM_MIN(n + (size_t)m, sizeof line - 2);
    for (size_t i = 0; i < n; i++) /* one event, one line, whatever the text holds */
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f) line[i] = '?';
    line[n++] = '\n';
    if (log_state.sink) {
        log_state.sink(log_state.user, level, line, n);
    } else {
        ssize_t ignored = write(STDERR_FILENO, line, n);
        (void)ignored;
    }
}
