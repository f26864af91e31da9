/* What the probes share: they call host functions rightly and wrongly, and emit "ok", or what they expected and where.
 */
#ifndef PROBE_H
#define PROBE_H

#include "realm_guest.h"

#define PAST ((char *)(uintptr_t)0x7ffffff0u)       /* far outside */
#define EDGE ((char *)(uintptr_t)(pages() * 65536)) /* one past the end */

static inline size_t pages(void) { return __builtin_wasm_memory_size(0); }

static char buf[4096], text[4096]; /* text: also of error_says */

static inline void put_number(int64_t v) {
    char digits[24];
    size_t at = sizeof digits;
    bool negative = v < 0;
    uint64_t u = negative ? 0 - (uint64_t)v : (uint64_t)v;
    do digits[--at] = (char)('0' + u % 10);
    while (u /= 10);
    if (negative) digits[--at] = '-';
    realm_emit(digits + at, sizeof digits - at);
}

static inline int32_t failed(int line, int64_t got, int64_t want) {
    realm_emit(REALM_LITERAL("line "));
    put_number(line);
    realm_emit(REALM_LITERAL(": got "));
    put_number(got);
    realm_emit(REALM_LITERAL(", want "));
    put_number(want);
    int32_t n = realm_last_error(text, sizeof text);
    realm_emit(REALM_LITERAL("; last error: "));
    if (n > 0) realm_emit(text, (size_t)n);
    return 0;
}

#define IS(expr, want)                                                               \
    do {                                                                             \
        int64_t got_ = (int64_t)(expr);                                              \
        if (got_ != (int64_t)(want)) return failed(__LINE__, got_, (int64_t)(want)); \
    } while (0)
#define TRUE(cond) IS(!!(cond), 1)

static inline bool same(const char *a, const char *b, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (a[i] != b[i]) return false;
    return true;
}

static inline bool error_says(const char *part) {
    int32_t n = realm_last_error(text, sizeof text);
    size_t len = realm_strlen(part);
    for (int32_t i = 0; n > 0 && i + (int32_t)len <= n; i++)
        if (same(text + i, part, len)) return true;
    return false;
}

/* A probe's parts return 1, or what failed() returned. */
#define PROBE(...)                                                \
    REALM_EXPORT(realm_main) int32_t realm_main(void) {           \
        static int32_t (*const parts[])(void) = {__VA_ARGS__};    \
        for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) \
            if (parts[i]() != 1) return 0;                        \
        realm_emit(REALM_LITERAL("ok"));                          \
        return 0;                                                 \
    }

#endif
