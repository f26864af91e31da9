/* One limit at a time, named by the request's field "text": does what meets it and says what came of it. */
#include "realm_guest.h"

static char name[64], block[60000];

static void put_number(uint64_t v) {
    char digits[24];
    size_t at = sizeof digits;
    do digits[--at] = (char)('0' + v % 10);
    while (v /= 10);
    realm_emit(digits + at, sizeof digits - at);
}

static int32_t handles(void) {
    uint32_t n = 0;
    int32_t h;
    while ((h = realm_prompt_text("a", 1, 0)) > 0) n++;
    if (h != REALM_E_LIMIT) return h;
    put_number(n);
    return 0;
}

static int32_t emits(void) {
    for (;;) {
        int32_t n = realm_emit("0123456789", 10);
        if (n < 0) return n;
    }
}

static int32_t pipes(void) {
    realm_guest_event e;
    int32_t g = realm_generate(realm_prompt_own(), NULL, REALM_MODE_PIPE);
    if (g < 0) return g;
    int32_t n = realm_wait(g, &e, 1, NULL, 0, -1);
    if (n < 0) return n;
    return e.finish == REALM_END_LENGTH ? 0 : -1;
}

static int32_t spins(void) {
    int64_t t;
    while (realm_clock_ms(REALM_CLOCK_MONOTONIC, &t) == 0) {
    }
    return -1;
}

static int32_t logs(void) {
    for (int i = 0; i < 100; i++) realm_log(3, block, 1000);
    return 0;
}

/* Whole rows, until no more may be read; says how many. */
static int32_t reads(void) {
    static float row[4096];
    realm_guest_event e;
    int32_t c = realm_context_new(), f, n, rows = 0;
    if ((n = realm_context_append_prompt(c, realm_prompt_own())) < 0) return n;
    if ((f = realm_forward(c, NULL, 0, 1, 0)) < 0) return f;
    if ((n = realm_wait(f, &e, 1, NULL, 0, -1)) < 0) return n;
    while ((n = realm_logits_read(f, 0, row, 4096)) > 0) rows++;
    if (n != REALM_E_LIMIT) return n;
    put_number((uint64_t)rows);
    return 0;
}

/* Forward passes kept open, until there is no room for one more; and again after one is closed. */
static int32_t keeps(void) {
    realm_guest_event e;
    int32_t c = realm_context_new(), f, n, passes = 0, last = 0;
    if ((n = realm_context_append_prompt(c, realm_prompt_own())) < 0) return n;
    while ((f = realm_forward(c, NULL, 0, 1, 0)) > 0) {
        if ((n = realm_wait(f, &e, 1, NULL, 0, -1)) < 0) return n;
        passes++;
        last = f;
    }
    if (f != REALM_E_LIMIT) return f;
    realm_close(last);
    if ((f = realm_forward(c, NULL, 0, 1, 0)) < 0) return f;
    put_number((uint64_t)passes);
    return 0;
}

static bool is(const char *what) {
    size_t i = 0;
    while (what[i] && name[i] == what[i]) i++;
    return what[i] == name[i];
}

REALM_EXPORT(realm_main) int32_t realm_main(void) {
    for (size_t i = 0; i < sizeof block; i++) block[i] = 'x';
    int32_t n = realm_input(REALM_LITERAL("text"), name, sizeof name - 1);
    if (n < 0) return n;
    if (is("handles")) return handles();
    if (is("emit")) return emits();
    if (is("pipe")) return pipes();
    if (is("wall")) return spins();
    if (is("log")) return logs();
    if (is("read")) return reads();
    if (is("keep")) return keeps();
    return -1;
}
