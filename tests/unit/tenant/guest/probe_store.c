/* The tenant's store, rightly and wrongly. The tenant's storage_bytes are 3 MiB. */
#include "probe.h"

static char big[(1u << 20) + 1];

static int32_t values(void) {
    IS(realm_store_get(REALM_LITERAL("absent"), buf, sizeof buf), REALM_E_NOT_FOUND);
    TRUE(error_says("store_get"));
    IS(realm_store_put(REALM_LITERAL("a"), REALM_LITERAL("one")), 0);
    IS(realm_store_get(REALM_LITERAL("a"), buf, sizeof buf), 3);
    TRUE(same(buf, "one", 3));
    buf[0] = 1;
    IS(realm_store_get(REALM_LITERAL("a"), buf, 2), 3); /* does not fit: nothing is written */
    IS(buf[0], 1);
    IS(realm_store_get(REALM_LITERAL("a"), NULL, 0), 3);
    IS(realm_store_put(REALM_LITERAL("a"), REALM_LITERAL("\0two\xff")), 0); /* bytes, not text */
    IS(realm_store_get(REALM_LITERAL("a"), buf, sizeof buf), 5);
    TRUE(same(buf, "\0two\xff", 5));
    IS(realm_store_put(REALM_LITERAL("empty"), "", 0), 0);
    IS(realm_store_get(REALM_LITERAL("empty"), buf, sizeof buf), 0);
    IS(realm_store_delete(REALM_LITERAL("empty")), 0);
    IS(realm_store_delete(REALM_LITERAL("empty")), REALM_E_NOT_FOUND);
    IS(realm_store_get(REALM_LITERAL("empty"), buf, sizeof buf), REALM_E_NOT_FOUND);
    IS(realm_store_get(REALM_LITERAL("'; DROP TABLE value;--"), buf, sizeof buf), REALM_E_NOT_FOUND);
    return 1;
}

static int32_t lists(void) {
    static const char *const KEYS[] = {"l/2", "l/1", "l", "m", "l/10", "k\xff"};
    for (size_t i = 0; i < 6; i++) IS(realm_store_put(KEYS[i], realm_strlen(KEYS[i]), "x", 1), 0);
    IS(realm_store_list(REALM_LITERAL("l/"), NULL, 0, buf, sizeof buf), 13);
    TRUE(same(buf, "l/1\0l/10\0l/2\0", 13));
    IS(realm_store_list(REALM_LITERAL("l/"), REALM_LITERAL("l/1"), buf, sizeof buf), 9);
    TRUE(same(buf, "l/10\0l/2\0", 9));
    IS(realm_store_list(REALM_LITERAL("l/"), REALM_LITERAL("l/1"), buf, 8), 5); /* one fits */
    IS(realm_store_list(REALM_LITERAL("l/"), REALM_LITERAL("l/1"), buf, 4), REALM_E_RANGE);
    IS(realm_store_list(REALM_LITERAL("l/"), REALM_LITERAL("l/2"), buf, sizeof buf), 0);
    IS(realm_store_list(REALM_LITERAL("l/"), REALM_LITERAL("zzz"), buf, sizeof buf), 0);
    IS(realm_store_list(NULL, 0, REALM_LITERAL("l/2"), buf, sizeof buf), 2);
    TRUE(same(buf, "m\0", 2));
    IS(realm_store_list(REALM_LITERAL("none"), NULL, 0, buf, sizeof buf), 0);
    for (size_t i = 0; i < 6; i++) IS(realm_store_delete(KEYS[i], realm_strlen(KEYS[i])), 0);
    return 1;
}

static int32_t wrong(void) {
    IS(realm_store_put("", 0, "x", 1), REALM_E_INVALID);
    IS(realm_store_put(big, 257, "x", 1), REALM_E_LIMIT);
    IS(realm_store_put(REALM_LITERAL("a\0b"), "x", 1), REALM_E_INVALID);
    TRUE(error_says("NUL"));
    IS(realm_store_put(PAST, 3, "x", 1), REALM_E_RANGE);
    IS(realm_store_put(EDGE - 2, 3, "x", 1), REALM_E_RANGE);
    IS(realm_store_put("k", 1, PAST, 1), REALM_E_RANGE);
    IS(realm_store_put("k", 1, EDGE - 1, 2), REALM_E_RANGE);
    IS(realm_store_put("k", 1, PAST, (size_t)-1), REALM_E_LIMIT);
    IS(realm_store_put((char *)~(uintptr_t)0, (size_t)-1, "x", 1), REALM_E_LIMIT);
    IS(realm_store_put("a", 1, "one", 3), 0);
    IS(realm_store_get("a", 1, EDGE - 2, 3), REALM_E_RANGE);
    IS(realm_store_get("a", 1, EDGE - 3, 3), 3); /* the last bytes of the memory */
    IS(realm_store_get(PAST, 1, buf, sizeof buf), REALM_E_RANGE);
    IS(realm_store_get("", 0, buf, sizeof buf), REALM_E_INVALID);
    IS(realm_store_delete(PAST, 1), REALM_E_RANGE);
    IS(realm_store_delete("", 0), REALM_E_INVALID);
    IS(realm_store_list(PAST, 1, NULL, 0, buf, sizeof buf), REALM_E_RANGE);
    IS(realm_store_list(NULL, 0, PAST, 1, buf, sizeof buf), REALM_E_RANGE);
    IS(realm_store_list(NULL, 0, NULL, 0, EDGE - 4, 5), REALM_E_RANGE);
    IS(realm_store_list(big, 257, NULL, 0, buf, sizeof buf), REALM_E_LIMIT);
    return 1;
}

/* 3 MiB: two full values, and all but the keys' bytes of a third. */
static int32_t quota(void) {
    const int32_t mib = 1 << 20;
    realm_guest_limits l;
    IS(realm_limits_get(&l, sizeof l), sizeof l);
    IS(l.storage_bytes, 3 * mib);
    IS(realm_store_delete("a", 1), 0);
    IS(realm_store_put("1", 1, big, (size_t)mib + 1), REALM_E_LIMIT);
    TRUE(error_says("1048576"));
    IS(realm_store_put("1", 1, big, (size_t)mib), 0);
    IS(realm_store_put("2", 1, big, (size_t)mib), 0);
    IS(realm_store_put("3", 1, big, (size_t)mib - 2), REALM_E_LIMIT);
    TRUE(error_says("storage_bytes"));
    IS(realm_store_put("3", 1, big, (size_t)mib - 3), 0); /* to the byte */
    IS(realm_store_put("4", 1, "", 0), REALM_E_LIMIT);
    IS(realm_store_put("3", 1, big, (size_t)mib - 4), 0); /* less, and then there is room for a key */
    IS(realm_store_put("4", 1, "", 0), 0);
    IS(realm_store_get("1", 1, big, sizeof big), mib);
    for (size_t i = '1'; i <= '4'; i++) {
        char key = (char)i;
        IS(realm_store_delete(&key, 1), 0);
    }
    IS(realm_store_put("1", 1, big, (size_t)mib), 0);
    IS(realm_store_delete("1", 1), 0);
    return 1;
}

PROBE(values, lists, wrong, quota)
