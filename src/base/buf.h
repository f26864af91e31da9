/* base/buf.h - a growable byte buffer that declares its maximum.
 *
 * Appending past the maximum, or running out of memory, sets `failed` and leaves the content as it was; writers may
 * append freely and look once at the end with realm_buf_status. One thread at a time.
 */
#ifndef REALM_BASE_BUF_H
#define REALM_BASE_BUF_H

#include <stddef.h>

#include "base/base.h"

typedef struct realm_buf {
    char *data; /* NUL-terminated once anything was appended; NULL before */
    size_t len;
    size_t cap;
    size_t max; /* largest len allowed */
    realm_status failed;
} realm_buf;

void realm_buf_init(realm_buf *b, size_t max);
void realm_buf_release(realm_buf *b);
/* What `cap` would be once there is room for `extra` more bytes; 0: that is more than `max`. */
size_t realm_buf_room(const realm_buf *b, size_t extra);
/* Makes room for `extra` more bytes. */
realm_status realm_buf_reserve(realm_buf *b, size_t extra);
realm_status realm_buf_append(realm_buf *b, const void *data, size_t len);
realm_status realm_buf_puts(realm_buf *b, const char *s);
realm_status realm_buf_putc(realm_buf *b, char c);
realm_status realm_buf_printf(realm_buf *b, const char *fmt, ...) REALM_PRINTF(2, 3);
/* Drops the first n bytes. */
void realm_buf_consume(realm_buf *b, size_t n);
/* Empties the buffer, keeps its memory and clears `failed`. */
void realm_buf_reset(realm_buf *b);
/* REALM_OK, or the first failure since the last reset. */
realm_status realm_buf_status(const realm_buf *b);
/* Moves the memory out (caller frees with realm_free); never NULL unless memory ran out. */
char *realm_buf_take(realm_buf *b, size_t *len);

#endif
