/* Keys are compared by realm_secret_equal over the whole MAC, and by nothing else: the linker puts a counter in front
 * of that function (mk/test.mk), which can also lie about the result. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "store/store.h"

bool __real_realm_secret_equal(const void *a, const void *b, size_t len);
bool __wrap_realm_secret_equal(const void *a, const void *b, size_t len);

static int calls;
static size_t compared;
static bool deny;

bool __wrap_realm_secret_equal(const void *a, const void *b, size_t len) {
    calls++;
    compared = len;
    return __real_realm_secret_equal(a, b, len) && !deny;
}

static void the_whole_mac_decides(void **state) {
    (void)state;
    realm_error err = {0};
    realm_store *s;
    realm_key_row row;
    char key[REALM_KEY_TEXT_MAX];
    assert_int_equal(realm_store_open(&s, NULL, &err), REALM_OK);
    assert_int_equal(realm_store_tenant_create(s, "alpha", NULL, NULL, 0, NULL, &err), REALM_OK);
    assert_int_equal(realm_store_key_create(s, "alpha", false, 0, key, NULL, &err), REALM_OK);
    calls = 0;
    assert_int_equal(realm_store_key_find(s, key, strlen(key), &row, &err), REALM_OK);
    assert_int_equal(calls, 1);
    assert_int_equal(compared, 32);
    deny = true; /* nothing else lets a key in */
    assert_int_equal(realm_store_key_find(s, key, strlen(key), &row, &err), REALM_E_UNAUTHENTICATED);
    deny = false;
    assert_int_equal(calls, 2);
    /* Keys that share all but one byte are as unknown as any: no part of a key is looked up as it is written. */
    for (size_t i = 0; i < strlen(key); i++) {
        char wrong[REALM_KEY_TEXT_MAX];
        memcpy(wrong, key, sizeof wrong);
        wrong[i] ^= 1;
        assert_int_equal(realm_store_key_find(s, wrong, strlen(key), &row, &err), REALM_E_UNAUTHENTICATED);
    }
    assert_int_equal(calls, 2);
    realm_store_close(s);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_whole_mac_decides)};
    return cmocka_run_group_tests_name("comparing keys", tests, NULL, NULL);
}
