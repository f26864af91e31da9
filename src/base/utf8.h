/* base/utf8.h - UTF-8 as RFC 3629 defines it: no overlong forms, no surrogates, nothing above U+10FFFF. Any thread. */
#ifndef REALM_BASE_UTF8_H
#define REALM_BASE_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Length of the well-formed character at s (1..4) and its code point, or 0 when the bytes are malformed or cut. */
size_t realm_utf8_decode(const char *s, size_t len, uint32_t *code_point);
/* Writes 1..4 bytes and returns how many; 0 for a value that is no Unicode scalar value. */
size_t realm_utf8_encode(uint32_t code_point, char out[4]);
bool realm_utf8_valid(const char *s, size_t len);
/* Characters that begin in s, which may be a piece of a text. */
size_t realm_utf8_count(const char *s, size_t len);
/* Length of the longest prefix that does not end inside a character: a tail that could still become well-formed with
 * more bytes is left out; malformed bytes are not. What streaming output may hand on now. */
size_t realm_utf8_complete_prefix(const char *s, size_t len);

#endif
