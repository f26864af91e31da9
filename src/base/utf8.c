#include "base/utf8.h"

/* Bytes that the lead byte announces and the bounds of the second byte (Unicode 15, table 3-7). */
static size_t lead(unsigned char b, unsigned char *lo, unsigned char *hi) {
    *lo = 0x80;
    *hi = 0xBF;
    if (b < 0x80) return 1;
    if (b < 0xC2) return 0;
    if (b < 0xE0) return 2;
    if (b < 0xF0) {
        if (b == 0xE0) *lo = 0xA0;
        if (b == 0xED) *hi = 0x9F;
        return 3;
    }
    if (b < 0xF5) {
        if (b == 0xF0) *lo = 0x90;
        if (b == 0xF4) *hi = 0x8F;
        return 4;
    }
    return 0;
}

size_t realm_utf8_decode(const char *s, size_t len, uint32_t *code_point) {
    if (len == 0) return 0;
    const unsigned char *u = (const unsigned char *)s;
    unsigned char lo, hi;
    size_t n = lead(u[0], &lo, &hi);
    if (n == 0 || n > len) return 0;
    uint32_t c = n == 1 ? u[0] : u[0] & (0x7Fu >> n);
    for (size_t i = 1; i < n; i++) {
        if (u[i] < lo || u[i] > hi) return 0;
        c = c << 6 | (u[i] & 0x3Fu);
        lo = 0x80;
        hi = 0xBF;
    }
    if (code_point) *code_point = c;
    return n;
}

size_t realm_utf8_encode(uint32_t c, char out[4]) {
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xC0 | c >> 6);
        out[1] = (char)(0x80 | (c & 0x3F));
        return 2;
    }
    if (c < 0x10000) {
        if (c >= 0xD800 && c < 0xE000) return 0;
        out[0] = (char)(0xE0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 0x3F));
        out[2] = (char)(0x80 | (c & 0x3F));
        return 3;
    }
    if (c > 0x10FFFF) return 0;
    out[0] = (char)(0xF0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 0x3F));
    out[2] = (char)(0x80 | (c >> 6 & 0x3F));
    out[3] = (char)(0x80 | (c & 0x3F));
    return 4;
}

bool realm_utf8_valid(const char *s, size_t len) {
    size_t i = 0;
    while (i < len) {
        size_t n = realm_utf8_decode(s + i, len - i, NULL);
        if (n == 0) return false;
        i += n;
    }
    return true;
}

size_t realm_utf8_count(const char *s, size_t len) {
    size_t n = 0;
    for (size_t i = 0; i < len; i++) n += ((unsigned char)s[i] & 0xC0) != 0x80;
    return n;
}

size_t realm_utf8_complete_prefix(const char *s, size_t len) {
    const unsigned char *u = (const unsigned char *)s;
    /* Look for a lead byte among the last three whose character is cut by the end of the buffer. */
    for (size_t back = 1; back <= 3 && back <= len; back++) {
        unsigned char b = u[len - back];
        if (b >= 0x80 && b < 0xC0) continue;
        unsigned char lo, hi;
        size_t n = lead(b, &lo, &hi);
        if (n <= back) break; /* whole, or malformed */
        if (back > 1 && (u[len - back + 1] < lo || u[len - back + 1] > hi)) break;
        return len - back;
    }
    return len;
}
