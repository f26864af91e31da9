/* crypto/crypto.h - the four primitives that Realm needs, from OpenSSL 3.
 *
 * SHA-256 names content (models, programs), HMAC-SHA-256 stores API keys, randomness makes keys, ids and per-tenant
 * secrets, and comparison of secrets takes the same time whatever they hold. Any thread.
 */
#ifndef REALM_CRYPTO_CRYPTO_H
#define REALM_CRYPTO_CRYPTO_H

#include "base/base.h"

#define REALM_SHA256_BYTES 32
#define REALM_SHA256_HEX 65 /* with NUL */

/* REALM_E_NOMEM alone. */
REALM_WARN_UNUSED realm_status realm_sha256(const void *data, size_t len, uint8_t out[REALM_SHA256_BYTES]);
/* The same over bytes that come in pieces. One thread at a time; NULL-safe close. finish: once, then close. */
typedef struct realm_sha256_stream realm_sha256_stream;
REALM_WARN_UNUSED realm_status realm_sha256_open(realm_sha256_stream **out);
REALM_WARN_UNUSED realm_status realm_sha256_update(realm_sha256_stream *s, const void *data, size_t len);
REALM_WARN_UNUSED realm_status realm_sha256_finish(realm_sha256_stream *s, uint8_t out[REALM_SHA256_BYTES]);
void realm_sha256_close(realm_sha256_stream *s);
REALM_WARN_UNUSED realm_status realm_hmac_sha256(const void *key, size_t key_len, const void *data, size_t len,
                                                 uint8_t out[REALM_SHA256_BYTES]);
/* Cryptographically secure; REALM_E_IO when the system has none. */
REALM_WARN_UNUSED realm_status realm_random_bytes(void *out, size_t len);
/* Overwrites in a way that the compiler may not drop. */
void realm_secret_wipe(void *p, size_t len);
bool realm_secret_equal(const void *a, const void *b, size_t len);
/* Lower-case hex of n bytes into out[2 * n + 1]. */
void realm_hex(const uint8_t *data, size_t n, char *out);

#endif
