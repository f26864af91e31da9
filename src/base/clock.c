#include "base/clock.h"

#include <time.h>

static uint64_t read_ns(clockid_t id) {
    struct timespec ts;
    clock_gettime(id, &ts);
    return (uint64_t)ts.tv_sec * REALM_NS_PER_S + (uint64_t)ts.tv_nsec;
}

uint64_t realm_clock_ns(void) { return read_ns(CLOCK_MONOTONIC); }
int64_t realm_clock_wall_s(void) { return (int64_t)(read_ns(CLOCK_REALTIME) / REALM_NS_PER_S); }
int64_t realm_clock_wall_ms(void) { return (int64_t)(read_ns(CLOCK_REALTIME) / REALM_NS_PER_MS); }
uint64_t realm_clock_thread_ns(void) { return read_ns(CLOCK_THREAD_CPUTIME_ID); }
