/* gguf/index.c - the name index: SipHash over the bytes, open addressing with linear probing.
 *
 * A model file is untrusted, and a million names chosen to collide under a known hash would take hours. SipHash-1-3
 * (Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012; one compression and three finalisation rounds) with
 * a key drawn per file makes each lookup constant in expectation whatever the file holds.
 */
#include <string.h>
#include <sys/random.h>

#include "base/alloc.h"
#include "gguf/internal.h"

static inline uint64_t rotate(uint64_t v, int by) { return v << by | v >> (64 - by); }

static inline void sip_round(uint64_t v[4]) {
    v[0] += v[1];
    v[2] += v[3];
    v[1] = rotate(v[1], 13) ^ v[0];
    v[3] = rotate(v[3], 16) ^ v[2];
    v[0] = rotate(v[0], 32);
    v[2] += v[1];
    v[0] += v[3];
    v[1] = rotate(v[1], 17) ^ v[2];
    v[3] = rotate(v[3], 21) ^ v[0];
    v[2] = rotate(v[2], 32);
}

static uint64_t sip_hash(const uint64_t key[2], const char *s, size_t len) {
    uint64_t v[4] = {key[0] ^ 0x736f6d6570736575u, key[1] ^ 0x646f72616e646f6du, key[0] ^ 0x6c7967656e657261u,
                     key[1] ^ 0x7465646279746573u};
    uint64_t last = (uint64_t)len << 56, m;
    size_t i = 0;
    for (; i + 8 <= len; i += 8) {
        memcpy(&m, s + i, 8);
        v[3] ^= m;
        sip_round(v);
        v[0] ^= m;
    }
    for (int shift = 0; i < len; i++, shift += 8) last |= (uint64_t)(unsigned char)s[i] << shift;
    v[3] ^= last;
    sip_round(v);
    v[0] ^= last;
    v[2] ^= 0xff;
    for (int r = 0; r < 3; r++) sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

static realm_gguf_str name_at(const realm_gguf_index *x, size_t position) {
    realm_gguf_str s;
    memcpy(&s, x->names + position * x->stride, sizeof s);
    return s;
}

realm_status realm_gguf_index_init(realm_gguf_index *x, size_t n, const realm_gguf_str *names, size_t stride,
                                   realm_error *err) {
    *x = (realm_gguf_index){.names = (const char *)names, .stride = stride};
    size_t n_slots = 2;
    while (n_slots / 2 < n) n_slots *= 2;
    if (getrandom(x->key, sizeof x->key, 0) != (ssize_t)sizeof x->key)
        return realm_error_set(err, REALM_E_IO, "no random bytes from the system");
    x->slots = realm_calloc(n_slots, sizeof *x->slots);
    if (!x->slots) return realm_error_set(err, REALM_E_NOMEM, "out of memory for an index of %zu names", n);
    x->mask = n_slots - 1;
    return REALM_OK;
}

void realm_gguf_index_release(realm_gguf_index *x) {
    realm_free(x->slots);
    *x = (realm_gguf_index){0};
}

/* The slot of an equal name, or the free one where it would go; a free one is always there. */
static size_t probe(const realm_gguf_index *x, const char *name, size_t len) {
    size_t at = (size_t)sip_hash(x->key, name, len) & x->mask;
    for (; x->slots[at]; at = (at + 1) & x->mask) {
        realm_gguf_str s = name_at(x, x->slots[at] - 1);
        if (s.len == len && memcmp(s.data, name, len) == 0) break;
    }
    return at;
}

bool realm_gguf_index_add(realm_gguf_index *x, size_t position) {
    realm_gguf_str s = name_at(x, position);
    size_t at = probe(x, s.data, s.len);
    if (x->slots[at]) return false;
    x->slots[at] = (uint32_t)position + 1;
    return true;
}

size_t realm_gguf_index_find(const realm_gguf_index *x, const char *name, size_t len) {
    if (!x->slots) return SIZE_MAX;
    uint32_t slot = x->slots[probe(x, name, len)];
    return slot ? slot - 1 : SIZE_MAX;
}
