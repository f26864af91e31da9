/* base/base.h - what every other folder stands on: error text, checked arithmetic, annotations.
 *
 * The folder knows nothing of models, tenants or sockets and uses libc and POSIX alone. Its parts:
 *
 *   base.h     error text, annotations, checked size arithmetic, bit helpers
 *   alloc.h    malloc with injected failure for tests, aligned memory, page mappings
 *   arena.h    request and step memory: allocate forwards, free whole
 *   buf.h      growable byte buffer that declares its maximum
 *   file.h     read-only mappings, whole-file reads, atomic replacement
 *   log.h      one line per event on the sink
 *   thread.h   ranked mutexes, conditions
 *   clock.h    monotonic and wall time
 *   rota.h     whose turn it is, where many want a few places
 *   utf8.h     validation and cutting at character boundaries
 *   str.h      escaping bytes for messages
 */
#ifndef REALM_BASE_BASE_H
#define REALM_BASE_BASE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "realm/status.h"

#define REALM_WARN_UNUSED __attribute__((warn_unused_result))
#define REALM_PRINTF(fmt_index, first_arg) __attribute__((format(printf, fmt_index, first_arg)))
/* Marks what librealm exports; everything else is built with hidden visibility. */
#define REALM_API __attribute__((visibility("default")))
#define REALM_ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define REALM_MIN(a, b) ((a) < (b) ? (a) : (b))
#define REALM_MAX(a, b) ((a) > (b) ? (a) : (b))

/* Writes code and formatted text into `err` (may be NULL) and returns `code`, so that callers can
 * `return realm_error_set(err, REALM_E_FORMAT, ...)`. Text beyond the buffer is cut. Any thread. */
realm_status realm_error_set(realm_error *err, realm_status code, const char *fmt, ...) REALM_PRINTF(3, 4);
/* Puts "<formatted>: " before the text already in `err` (may be NULL). Returns err's code, or REALM_OK without one. */
realm_status realm_error_prefix(realm_error *err, const char *fmt, ...) REALM_PRINTF(2, 3);
void realm_error_clear(realm_error *err);

/* Checked arithmetic for sizes that come from a file, a request or a program: false on overflow, *out untouched. */
static inline bool realm_add_size(size_t a, size_t b, size_t *out) {
    size_t r;
    if (__builtin_add_overflow(a, b, &r)) return false;
    *out = r;
    return true;
}
static inline bool realm_mul_size(size_t a, size_t b, size_t *out) {
    size_t r;
    if (__builtin_mul_overflow(a, b, &r)) return false;
    *out = r;
    return true;
}
static inline bool realm_add_u64(uint64_t a, uint64_t b, uint64_t *out) {
    uint64_t r;
    if (__builtin_add_overflow(a, b, &r)) return false;
    *out = r;
    return true;
}
static inline bool realm_mul_u64(uint64_t a, uint64_t b, uint64_t *out) {
    uint64_t r;
    if (__builtin_mul_overflow(a, b, &r)) return false;
    *out = r;
    return true;
}
/* Rounds up to a multiple of `align` (a power of two); false on overflow. */
static inline bool realm_align_u64(uint64_t v, uint64_t align, uint64_t *out) {
    uint64_t r;
    if (!realm_add_u64(v, align - 1, &r)) return false;
    *out = r & ~(align - 1);
    return true;
}
/* Spreads the bits of a number over all of them, one to one: the finaliser of splitmix64 (Steele, Lea, Flood: Fast
 * Splittable Pseudorandom Number Generators, 2014). For hashes and seeds, not for secrets. */
static inline uint64_t realm_mix_u64(uint64_t z) {
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}
static inline bool realm_is_pow2(uint64_t v) { return v != 0 && (v & (v - 1)) == 0; }

#endif
