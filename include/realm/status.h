/* realm/status.h - the one list of result codes, and the error text that goes with them.
 *
 * Every fallible function of Realm returns a realm_status: 0 is success, a negative value says what kind of failure it
 * was. Where the caller passes a realm_error, the function that failed first writes the code and one line of text into
 * it; callers up the stack may prefix where they were. The same numbers are what a WebAssembly program sees as negative
 * results of its host calls (docs/abi.md), so they never change meaning.
 */
#ifndef REALM_STATUS_H
#define REALM_STATUS_H

#ifdef __cplusplus
extern "C" {
#endif

/* X(name, value, short description) */
#define REALM_STATUS_LIST(X)                                 \
    X(REALM_OK, 0, "success")                                \
    X(REALM_E_INVALID, -1, "invalid argument")               \
    X(REALM_E_FORMAT, -2, "malformed data")                  \
    X(REALM_E_UNSUPPORTED, -3, "not supported")              \
    X(REALM_E_NOMEM, -4, "out of memory")                    \
    X(REALM_E_IO, -5, "input or output failed")              \
    X(REALM_E_NOT_FOUND, -6, "not found")                    \
    X(REALM_E_EXISTS, -7, "already exists")                  \
    X(REALM_E_LIMIT, -8, "a limit was reached")              \
    X(REALM_E_RANGE, -9, "out of range or buffer too small") \
    X(REALM_E_AGAIN, -10, "would block")                     \
    X(REALM_E_CANCELLED, -11, "cancelled")                   \
    X(REALM_E_TIMEOUT, -12, "timed out")                     \
    X(REALM_E_DENIED, -13, "not permitted")                  \
    X(REALM_E_UNAUTHENTICATED, -14, "no valid key")          \
    X(REALM_E_PROGRAM, -15, "the program failed")            \
    X(REALM_E_CLOSED, -16, "closed")                         \
    X(REALM_E_DEVICE, -17, "the compute device failed")      \
    X(REALM_E_INTERNAL, -18, "internal error")               \
    X(REALM_E_BUSY, -19, "overloaded")                       \
    X(REALM_E_RATE, -20, "too many in this time")            \
    X(REALM_E_QUOTA, -21, "more than the quota holds")       \
    X(REALM_E_CROWDED, -22, "too many at the same time")     \
    X(REALM_E_CONTEXT, -23, "longer than the context")       \
    X(REALM_E_TOO_LARGE, -24, "more than is taken")          \
    X(REALM_E_GRAMMAR, -25, "the grammar cannot be kept to")

typedef enum realm_status {
#define REALM_STATUS_ENUM(name, value, text) name = value,
    REALM_STATUS_LIST(REALM_STATUS_ENUM)
#undef REALM_STATUS_ENUM
} realm_status;

#define REALM_ERROR_TEXT_MAX 512

/* Caller-owned; zero-initialise it. `text` is always NUL-terminated UTF-8 and may be empty. */
typedef struct realm_error {
    realm_status code;
    char text[REALM_ERROR_TEXT_MAX];
} realm_error;

/* Name of a code ("REALM_E_LIMIT") and its short description; static strings, any thread. */
const char *realm_status_name(realm_status status);
const char *realm_status_text(realm_status status);

#ifdef __cplusplus
}
#endif

#endif
