#include "base/buf.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"

void realm_buf_init(realm_buf *b, size_t max) { *b = (realm_buf){.max = max}; }

void realm_buf_release(realm_buf *b) {
    realm_free(b->data);
    *b = (realm_buf){.max = b->max};
}

static realm_status fail(realm_buf *b, realm_status s) {
    if (b->failed == REALM_OK) b->failed = s;
    return s;
}

size_t realm_buf_room(const realm_buf *b, size_t extra) {
    size_t need;
    if (extra > b->max || b->len > b->max - extra || !realm_add_size(b->len + extra, 1, &need)) return 0;
    if (need <= b->cap) return b->cap;
    size_t cap = b->cap ? b->cap : 128;
    while (cap < need) cap += cap / 2;
    return cap - 1 > b->max ? b->max + 1 : cap;
}

realm_status realm_buf_reserve(realm_buf *b, size_t extra) {
    const size_t cap = realm_buf_room(b, extra);
    if (cap == 0) return fail(b, REALM_E_LIMIT);
    if (cap == b->cap) return REALM_OK;
    char *p = realm_realloc_array(b->data, cap, 1);
    if (!p) return fail(b, REALM_E_NOMEM);
    b->data = p;
    b->cap = cap;
    return REALM_OK;
}

realm_status realm_buf_append(realm_buf *b, const void *data, size_t len) {
    realm_status s = realm_buf_reserve(b, len);
    if (s != REALM_OK) return s;
    if (len) memcpy(b->data + b->len, data, len);
    b->len += len;
    b->data[b->len] = '\0';
    return REALM_OK;
}

realm_status realm_buf_puts(realm_buf *b, const char *s) { return realm_buf_append(b, s, strlen(s)); }

realm_status realm_buf_putc(realm_buf *b, char c) { return realm_buf_append(b, &c, 1); }

realm_status realm_buf_printf(realm_buf *b, const char *fmt, ...) {
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    realm_status s = n < 0 ? fail(b, REALM_E_INTERNAL) : realm_buf_reserve(b, (size_t)n);
    if (s == REALM_OK) {
        vsnprintf(b->data + b->len, (size_t)n + 1, fmt, again);
        b->len += (size_t)n;
    }
    va_end(again);
    return s;
}

void realm_buf_consume(realm_buf *b, size_t n) {
    if (n > b->len) n = b->len;
    b->len -= n;
    if (b->data) {
        memmove(b->data, b->data + n, b->len);
        b->data[b->len] = '\0';
    }
}

void realm_buf_reset(realm_buf *b) {
    b->len = 0;
    b->failed = REALM_OK;
    if (b->data) b->data[0] = '\0';
}

realm_status realm_buf_status(const realm_buf *b) { return b->failed; }

char *realm_buf_take(realm_buf *b, size_t *len) {
    if (!b->data && realm_buf_reserve(b, 0) != REALM_OK) return NULL;
    b->data[b->len] = '\0';
    char *p = b->data;
    if (len) *len = b->len;
    *b = (realm_buf){.max = b->max};
    return p;
}
