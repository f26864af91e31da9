#include "base/str.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "base/utf8.h"

const char *realm_escape(char *out, size_t cap, const char *s, size_t len) {
    size_t o = 0, i = 0, safe = 0; /* safe: where "..." and the NUL still fit */
    if (cap == 0) return out;
    while (i < len) {
        char piece[8];
        uint32_t c = 0;
        size_t n = realm_utf8_decode(s + i, len - i, &c), w;
        if (n > 0 && c >= 0x20 && c != '\\' && (c < 0x7f || c > 0x9f)) {
            memcpy(piece, s + i, n);
            w = n;
        } else {
            n = 1;
            w = (size_t)snprintf(piece, sizeof piece, "\\x%02X", (unsigned)(unsigned char)s[i]);
        }
        if (o + 4 <= cap) safe = o;
        if (o + w + 1 > cap) {
            o = safe;
            if (o + 4 <= cap) {
                memcpy(out + o, "...", 3);
                o += 3;
            }
            break;
        }
        memcpy(out + o, piece, w);
        o += w;
        i += n;
    }
    out[o] = '\0';
    return out;
}
