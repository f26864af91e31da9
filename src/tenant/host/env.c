/* tenant/host/env.c - what AssemblyScript's runtime takes from its host: an end on failed assertions, a seed, the time,
 * lines for the log.
 *
 * Its strings are UTF-16, their length in bytes stands in the four bytes before them. Halves of pairs that stand alone
 * become U+FFFD.
 */
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/utf8.h"
#include "crypto/crypto.h"
#include "tenant/host/abi_wasi.h"
#include "tenant/host/host.h"

#define TEXT_MAX HOST_LOG_BYTES_MAX

/* Reads a string as UTF-8, cut to what fits; "" for none or one that is outside the memory. */
static size_t take_string(realm_call *call, uint64_t at, char out[TEXT_MAX + 4]) {
    uint32_t bytes = 0;
    size_t n = 0;
    const unsigned char *head = at >= sizeof bytes ? realm_call_memory(call, at - sizeof bytes, sizeof bytes) : NULL;
    if (head) memcpy(&bytes, head, sizeof bytes);
    bytes = REALM_MIN(bytes, 2 * TEXT_MAX) & ~1u;
    const unsigned char *units = head ? realm_call_memory(call, at, bytes) : NULL;
    for (uint32_t i = 0; units && i < bytes && n < TEXT_MAX; i += 2) {
        uint32_t c = units[i] | (uint32_t)units[i + 1] << 8;
        if (c >= 0xd800 && c < 0xdc00 && i + 3 < bytes) {
            uint32_t low = units[i + 2] | (uint32_t)units[i + 3] << 8;
            if (low >= 0xdc00 && low < 0xe000) {
                c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
                i += 2;
            }
        }
        char utf8[4];
        size_t k = realm_utf8_encode(c, utf8);
        if (k == 0) k = realm_utf8_encode(0xfffd, utf8);
        memcpy(out + n, utf8, k);
        n += k;
    }
    out[n] = 0;
    return n;
}

realm_call_result env_abort(realm_call *call, const uint64_t *args, int32_t *result) {
    char what[TEXT_MAX + 4], file[TEXT_MAX + 4];
    (void)result;
    const bool said = take_string(call, args[0], what) > 0;
    take_string(call, args[1], file);
    return realm_call_fail(call, "%.160s, at %.80s:%u:%u", said ? what : "abort", file, (unsigned)args[2],
                           (unsigned)args[3]);
}

static void log_text(realm_call *call, realm_log_level level, uint64_t at) {
    char text[TEXT_MAX + 4];
    host_log_line(host_of(call), level, text, take_string(call, at, text));
}

/* trace(message, n, a0 .. a4): the first n of five numbers. */
realm_call_result env_trace(realm_call *call, const uint64_t *args, int32_t *result) {
    char text[TEXT_MAX + 4 + 5 * 32];
    size_t len = take_string(call, args[0], text);
    (void)result;
    for (size_t k = 0; k < REALM_MIN(args[1], UINT64_C(5)); k++) {
        double v;
        memcpy(&v, &args[2 + k], sizeof v);
        len += (size_t)snprintf(text + len, sizeof text - len, "%s%.17g", k ? ", " : " ", v);
    }
    host_log_line(host_of(call), REALM_LOG_INFO, text, len);
    return REALM_CALL_DONE;
}

realm_call_result env_log_debug(realm_call *call, const uint64_t *args, int32_t *result) {
    (void)result;
    log_text(call, REALM_LOG_DEBUG, args[0]);
    return REALM_CALL_DONE;
}

realm_call_result env_log_info(realm_call *call, const uint64_t *args, int32_t *result) {
    (void)result;
    log_text(call, REALM_LOG_INFO, args[0]);
    return REALM_CALL_DONE;
}

realm_call_result env_log_warn(realm_call *call, const uint64_t *args, int32_t *result) {
    (void)result;
    log_text(call, REALM_LOG_WARN, args[0]);
    return REALM_CALL_DONE;
}

realm_call_result env_log_error(realm_call *call, const uint64_t *args, int32_t *result) {
    (void)result;
    log_text(call, REALM_LOG_ERROR, args[0]);
    return REALM_CALL_DONE;
}

static realm_call_result give_double(realm_call *call, double v) {
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    realm_call_return(call, bits);
    return REALM_CALL_DONE;
}

/* A number whose bits seed the generator of Math.random: any finite one from 2^53 values. */
realm_call_result env_seed(realm_call *call, const uint64_t *args, int32_t *result) {
    uint64_t r = 0;
    (void)args;
    (void)result;
    if (realm_random_bytes(&r, sizeof r)) return realm_call_fail(call, "no randomness for the program");
    return give_double(call, (double)(r >> 11));
}

realm_call_result env_date_now(realm_call *call, const uint64_t *args, int32_t *result) {
    (void)args;
    (void)result;
    return give_double(call, (double)realm_clock_wall_ms());
}

realm_call_result env_perf_now(realm_call *call, const uint64_t *args, int32_t *result) {
    (void)args;
    (void)result;
    return give_double(call, (double)((realm_clock_ns() - host_of(call)->opened_ns) / REALM_NS_PER_MS));
}

realm_call_result env_exit(realm_call *call, const uint64_t *args, int32_t *result) {
    return wasi_proc_exit(call, args, result);
}
