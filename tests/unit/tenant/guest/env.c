/* What AssemblyScript's runtime imports, called as it does. */
#include "realm_guest.h"

#define ENV(name) __attribute__((import_module("env"), import_name(name)))
ENV("abort") void env_abort(const void *message, const void *file, uint32_t line, uint32_t column);
ENV("trace") void env_trace(const void *message, int32_t n, double a, double b, double c, double d, double e);
ENV("seed") double env_seed(void);
ENV("Date.now") double date_now(void);
ENV("console.log") void console_log(const void *text);

/* A string as its runtime keeps it: the length in bytes, then UTF-16. */
static const struct {
    uint32_t bytes;
    uint16_t units[8];
} hello = {14, {'h', 0xe9, 'l', 0xd83d, 0xde00, 0xd800, '!'}};

REALM_EXPORT(realm_main) int32_t realm_main(void) {
    double a = env_seed(), b = env_seed();
    if (a == b || !(a >= 0)) return -1;
    if (!(date_now() > 1.7e12)) return -2;
    console_log(hello.units);
    console_log((void *)0xfffffff0); /* nothing there */
    console_log((void *)2);
    env_trace(hello.units, 2, 1.5, -2, 0, 0, 0);
    realm_emit(REALM_LITERAL("before"));
    env_abort(hello.units, hello.units, 12, 34);
    realm_emit(REALM_LITERAL("after"));
    return 0;
}
