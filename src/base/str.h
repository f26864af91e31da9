/* base/str.h - bytes from outside made fit for one line of a message. Any thread. */
#ifndef REALM_BASE_STR_H
#define REALM_BASE_STR_H

#include <stddef.h>

/* Writes at most cap-1 bytes and a NUL: printable ASCII and well-formed UTF-8 above U+009F as they are, backslash,
 * controls and malformed bytes as \xNN, "..." at the end where it was cut. Returns `out`. */
const char *realm_escape(char *out, size_t cap, const char *s, size_t len);

#endif
