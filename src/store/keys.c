/* store/keys.c - API keys.
 *
 * A key's text is "rk_" and 256 random bits in hex. The store keeps HMAC-SHA-256(server secret, text) and nothing else;
 * the key's public id is the first 8 bytes of that MAC, so look-up by id costs one indexed read whose timing depends on
 * a value that nobody outside can compute, and the whole MAC is then compared in constant time.
 */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/str.h"
#include "crypto/crypto.h"
#include "store/db.h"

#define KEY_IMPORT_MIN 16u
#define KEY_IMPORT_MAX 512u

static realm_status mac_of(realm_store *store, const char *key, size_t len, uint8_t mac[REALM_SHA256_BYTES],
                           char id[17], realm_error *err) {
    realm_status s = realm_hmac_sha256(store->secret, sizeof store->secret, key, len, mac);
    if (s != REALM_OK) return realm_error_set(err, s, "store: HMAC failed");
    realm_hex(mac, 8, id);
    return REALM_OK;
}

realm_status realm_store_derive(realm_store *store, const char *purpose, const char *name,
                                uint8_t out[REALM_SHA256_BYTES], realm_error *err) {
    realm_buf text; /* the purpose ends with NUL; keys' texts never have one */
    realm_buf_init(&text, 4096);
    realm_status s = realm_buf_append(&text, purpose, strlen(purpose) + 1);
    if (s == REALM_OK) s = realm_buf_append(&text, name, strlen(name));
    if (s == REALM_OK) s = realm_hmac_sha256(store->secret, sizeof store->secret, text.data, text.len, out);
    realm_buf_release(&text);
    return s == REALM_OK ? s : realm_error_set(err, s, "store: a secret cannot be derived");
}

static realm_status insert_key(realm_store *store, const char *tenant, bool admin, int64_t expires_s, const char *text,
                               size_t len, bool existing_ok, realm_key_row *out, realm_error *err) {
    db *d = &store->write;
    sqlite3_stmt *st;
    uint8_t mac[REALM_SHA256_BYTES];
    realm_key_row row = {.admin = admin, .created_s = realm_clock_wall_s(), .expires_s = expires_s};
    realm_tenant_row t = {0};
    realm_status s = mac_of(store, text, len, mac, row.id, err);
    if (s != REALM_OK) return s;
    if (!admin) {
        if ((s = realm_store_tenant_find(store, tenant, &t, err)) != REALM_OK) return s;
        row.tenant_id = t.id;
        memcpy(row.tenant, t.name, sizeof row.tenant);
    }
    if ((s = db_transaction(d, err)) != REALM_OK) return s;
    if (existing_ok) {
        /* The same text for the same tenant again is no change, and brings a revoked key back. */
        s = db_prepare(d, "DELETE FROM api_key WHERE id = ?1 AND tenant_id = ?2 AND mac = ?3", &st, err);
        if (s == REALM_OK) {
            db_bind_text(st, 1, row.id);
            sqlite3_bind_int64(st, 2, row.tenant_id);
            sqlite3_bind_blob(st, 3, mac, sizeof mac, SQLITE_STATIC);
            s = db_run(d, st, err);
        }
    }
    if (s == REALM_OK)
        s = db_prepare(d,
                       "INSERT INTO api_key(id, tenant_id, admin, mac, created_s, expires_s)"
                       " VALUES(?1, ?2, ?3, ?4, ?5, ?6)",
                       &st, err);
    if (s == REALM_OK) {
        db_bind_text(st, 1, row.id);
        sqlite3_bind_int64(st, 2, row.tenant_id);
        sqlite3_bind_int(st, 3, admin);
        sqlite3_bind_blob(st, 4, mac, sizeof mac, SQLITE_STATIC);
        sqlite3_bind_int64(st, 5, row.created_s);
        sqlite3_bind_int64(st, 6, expires_s);
        s = db_run(d, st, err);
        if (s == REALM_E_EXISTS) realm_error_set(err, s, "this key belongs to another tenant");
    }
    if (s == REALM_OK) atomic_fetch_add(&store->local_changes, 1);
    s = db_finish(d, s, err);
    if (s == REALM_OK && out) *out = row;
    return s;
}

realm_status realm_store_key_create(realm_store *store, const char *tenant, bool admin, int64_t expires_s,
                                    char key[REALM_KEY_TEXT_MAX], realm_key_row *out, realm_error *err) {
    uint8_t secret[32];
    char hex[65];
    realm_status s = realm_random_bytes(secret, sizeof secret);
    if (s != REALM_OK) return realm_error_set(err, s, "store: no randomness");
    realm_hex(secret, sizeof secret, hex);
    snprintf(key, REALM_KEY_TEXT_MAX, "rk_%s", hex);
    s = insert_key(store, tenant, admin, expires_s, key, strlen(key), false, out, err);
    realm_secret_wipe(secret, sizeof secret);
    realm_secret_wipe(hex, sizeof hex);
    return s;
}

realm_status realm_store_key_import(realm_store *store, const char *tenant, const char *key, realm_error *err) {
    size_t len = strlen(key);
    if (len < KEY_IMPORT_MIN || len > KEY_IMPORT_MAX)
        return realm_error_set(err, REALM_E_RANGE, "a key has %u to %u bytes, this one has %zu", KEY_IMPORT_MIN,
                               KEY_IMPORT_MAX, len);
    for (size_t i = 0; i < len; i++)
        if (key[i] < 0x21 || key[i] > 0x7e)
            return realm_error_set(err, REALM_E_INVALID, "byte %zu of the key is not printable ASCII", i);
    return insert_key(store, tenant, false, 0, key, len, true, NULL, err);
}

#define KEY_COLUMNS "k.id, k.tenant_id, ifnull(t.name, ''), k.admin, k.revoked_s, k.created_s, k.expires_s"

static void fill_key(sqlite3_stmt *st, realm_key_row *out) {
    db_copy_text(st, 0, out->id, sizeof out->id);
    out->tenant_id = sqlite3_column_int64(st, 1);
    db_copy_text(st, 2, out->tenant, sizeof out->tenant);
    out->admin = sqlite3_column_int(st, 3) != 0;
    out->revoked = sqlite3_column_int64(st, 4) != 0;
    out->created_s = sqlite3_column_int64(st, 5);
    out->expires_s = sqlite3_column_int64(st, 6);
}

realm_status realm_store_key_find(realm_store *store, const char *key, size_t len, realm_key_row *out,
                                  realm_error *err) {
    db *d = store->finder;
    sqlite3_stmt *st;
    bool row;
    char id[17];
    uint8_t mac[REALM_SHA256_BYTES];
    if (len > KEY_IMPORT_MAX) return realm_error_set(err, REALM_E_UNAUTHENTICATED, "this key is not valid");
    realm_status s = mac_of(store, key, len, mac, id, err);
    if (s != REALM_OK) return s;
    s = db_begin(d,
                 "SELECT " KEY_COLUMNS ", k.mac FROM api_key k LEFT JOIN tenant t ON t.id = k.tenant_id"
                 " WHERE k.id = ?1 AND (k.admin OR t.deleted_s = 0)", /* made while its tenant was deleted: none */
                 &st, err);
    if (s != REALM_OK) return s;
    db_bind_text(st, 1, id);
    s = db_step(d, st, &row, err);
    bool valid = false;
    if (s == REALM_OK && row) {
        fill_key(st, out);
        valid = sqlite3_column_bytes(st, 7) == (int)sizeof mac &&
                realm_secret_equal(sqlite3_column_blob(st, 7), mac, sizeof mac) && !out->revoked &&
                (out->expires_s == 0 || out->expires_s > realm_clock_wall_s());
    }
    db_end(d, st);
    if (s == REALM_OK && !valid) s = realm_error_set(err, REALM_E_UNAUTHENTICATED, "this key is not valid");
    return s;
}

realm_status realm_store_key_revoke(realm_store *store, const char *id_or_key, realm_error *err) {
    db *d = &store->write;
    sqlite3_stmt *st;
    char derived[17];
    uint8_t mac[REALM_SHA256_BYTES];
    realm_status s = mac_of(store, id_or_key, strlen(id_or_key), mac, derived, err);
    if (s != REALM_OK) return s;
    if ((s = db_transaction(d, err)) != REALM_OK) return s;
    s = db_prepare(d, "UPDATE api_key SET revoked_s = ?3 WHERE id IN (?1, ?2) AND revoked_s = 0", &st, err);
    if (s == REALM_OK) {
        db_bind_text(st, 1, id_or_key);
        db_bind_text(st, 2, derived);
        sqlite3_bind_int64(st, 3, realm_clock_wall_s());
        s = db_run(d, st, err);
    }
    if (s == REALM_OK && sqlite3_changes(d->h) == 0)
        s = realm_error_set(err, REALM_E_NOT_FOUND, "no such key, or it is revoked already");
    if (s == REALM_OK) atomic_fetch_add(&store->local_changes, 1);
    return db_finish(d, s, err);
}

realm_status realm_store_key_each(realm_store *store, bool (*fn)(void *user, const realm_key_row *row), void *user,
                                  realm_error *err) {
    db *d = store->reader;
    char after[17] = "";
    for (;;) {
        sqlite3_stmt *st;
        bool row;
        realm_key_row r;
        realm_status s = db_begin(d,
                                  "SELECT " KEY_COLUMNS " FROM api_key k LEFT JOIN tenant t ON t.id = k.tenant_id"
                                  " WHERE k.id > ?1 ORDER BY k.id LIMIT 1",
                                  &st, err);
        if (s != REALM_OK) return s;
        db_bind_text(st, 1, after);
        s = db_step(d, st, &row, err);
        if (s == REALM_OK && row) fill_key(st, &r);
        db_end(d, st);
        if (s != REALM_OK || !row) return s;
        if (!fn(user, &r)) return REALM_OK;
        memcpy(after, r.id, sizeof after);
    }
}
