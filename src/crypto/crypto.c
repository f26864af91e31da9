#include "crypto/crypto.h"

#include <limits.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

realm_status realm_sha256(const void *data, size_t len, uint8_t out[REALM_SHA256_BYTES]) {
    return EVP_Digest(data, len, out, NULL, EVP_sha256(), NULL) == 1 ? REALM_OK : REALM_E_NOMEM;
}

/* A stream is OpenSSL's own context under our name. */
realm_status realm_sha256_open(realm_sha256_stream **out) {
    EVP_MD_CTX *c = EVP_MD_CTX_new();
    *out = NULL;
    if (!c || EVP_DigestInit_ex(c, EVP_sha256(), NULL) != 1) {
        EVP_MD_CTX_free(c);
        return REALM_E_NOMEM;
    }
    *out = (realm_sha256_stream *)c;
    return REALM_OK;
}

realm_status realm_sha256_update(realm_sha256_stream *s, const void *data, size_t len) {
    return EVP_DigestUpdate((EVP_MD_CTX *)s, data, len) == 1 ? REALM_OK : REALM_E_NOMEM;
}

realm_status realm_sha256_finish(realm_sha256_stream *s, uint8_t out[REALM_SHA256_BYTES]) {
    return EVP_DigestFinal_ex((EVP_MD_CTX *)s, out, NULL) == 1 ? REALM_OK : REALM_E_NOMEM;
}

void realm_sha256_close(realm_sha256_stream *s) { EVP_MD_CTX_free((EVP_MD_CTX *)s); }

realm_status realm_hmac_sha256(const void *key, size_t key_len, const void *data, size_t len,
                               uint8_t out[REALM_SHA256_BYTES]) {
    if (key_len > INT_MAX) return REALM_E_INVALID;
    unsigned n = 0;
    return HMAC(EVP_sha256(), key, (int)key_len, data, len, out, &n) && n == REALM_SHA256_BYTES ? REALM_OK
                                                                                                : REALM_E_NOMEM;
}

realm_status realm_random_bytes(void *out, size_t len) {
    if (len > INT_MAX) return REALM_E_INVALID;
    return RAND_bytes(out, (int)len) == 1 ? REALM_OK : REALM_E_IO;
}

void realm_secret_wipe(void *p, size_t len) { OPENSSL_cleanse(p, len); }

bool realm_secret_equal(const void *a, const void *b, size_t len) { return CRYPTO_memcmp(a, b, len) == 0; }

void realm_hex(const uint8_t *data, size_t n, char *out) {
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < n; i++) {
        out[2 * i] = digits[data[i] >> 4];
        out[2 * i + 1] = digits[data[i] & 15];
    }
    out[2 * n] = '\0';
}
