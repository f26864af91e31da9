/* A program that does nothing but sleep, once it has said so: what a running instance holds. */
#include "realm_guest.h"

typedef struct subscription { /* of WASI preview 1, to a clock */
    uint64_t user;
    uint64_t kind; /* 0: a clock */
    uint32_t clock;
    uint64_t timeout_ns, precision_ns;
    uint16_t flags;
} subscription;

__attribute__((import_module("wasi_snapshot_preview1"), import_name("poll_oneoff"))) int32_t
poll_oneoff(const subscription *in, void *events, size_t n, size_t *n_events);

static subscription sleep_a_minute = {.clock = 1, .timeout_ns = 60000000000};
static uint64_t event[4];

REALM_EXPORT(realm_main) int32_t realm_main(void) {
    size_t n = 0;
    int32_t status = realm_emit(REALM_LITERAL("."));
    if (status < 0) return status;
    return poll_oneoff(&sleep_a_minute, event, 1, &n) ? REALM_E_INTERNAL : 0;
}
