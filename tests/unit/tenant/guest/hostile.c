/* One way to misbehave at a time, named by the request's field "text". */
#include "realm_guest.h"

static realm_guest_event events[4];
static char name[64], text[4096], block[16384];

static int32_t start(uint32_t max_tokens) {
    realm_generate_options o = {.size = sizeof o,
                                .set = REALM_SET_MAX_TOKENS | REALM_SET_FLAGS,
                                .max_tokens = max_tokens,
                                .flags = REALM_GENERATE_IGNORE_END};
    return realm_generate(realm_prompt_own(), &o, REALM_MODE_EVENTS);
}

static int32_t spin(void) {
    realm_emit(REALM_LITERAL("!"));
    for (volatile uint32_t i = 0;; i++) continue;
}

/* Starts a generation and never looks at what it brings. */
static int32_t never_polls(void) {
    int32_t g = start(0);
    if (g < 0) return g;
    realm_emit(REALM_LITERAL("!"));
    for (;;) { /* until the client's own room is full: parked from then on */
        int32_t n = realm_emit(block, sizeof block);
        if (n < 0) return n;
    }
}

static volatile uint32_t depth;

__attribute__((noinline)) static uint32_t deeper(void) {
    depth++;
    return depth ? deeper() + depth : 0;
}

static int32_t recurse(void) { return (int32_t)deeper(); }

static int32_t flood_logs(void) {
    for (int i = 0; i < 1000000; i++) realm_log(3, REALM_LITERAL("line"));
    return 0;
}

/* As many generations as are allowed, then as many prompts: all of it is held until the end. */
static int32_t flood_generations(void) {
    int32_t g, n = 0;
    while ((g = start(200)) > 0) n++;
    if (g != REALM_E_CROWDED || n == 0) return g < 0 ? g : REALM_E_INTERNAL;
    realm_emit(REALM_LITERAL("!"));
    for (;;) {
        int32_t k = realm_wait(0, events, 4, text, sizeof text, -1);
        if (k < 0) return k;
        for (int32_t i = 0; i < k; i++) {
            if (events[i].kind != REALM_EVENT_KIND_END) continue;
            realm_close(events[i].handle);
            if ((g = start(200)) < 0) return g;
        }
    }
}

static int32_t flood_handles(void) {
    int32_t h, n = 0;
    while ((h = realm_prompt_text("a", 1, 0)) > 0) n++;
    return h == REALM_E_LIMIT && n > 0 ? 0 : REALM_E_INTERNAL;
}

/* Goes on whatever it is told. */
static int32_t deaf(void) {
    int32_t g = start(0);
    if (g < 0) return g;
    realm_emit(REALM_LITERAL("!"));
    for (;;) realm_wait(g, events, 4, text, sizeof text, -1);
}

static int32_t grow(void) {
    uint32_t pages = 0;
    while (__builtin_wasm_memory_grow(0, 1) != (size_t)-1) {
        uint32_t last = (uint32_t)__builtin_wasm_memory_size(0) - 1;
        *(volatile char *)(size_t)(last * 65536) = 1;
        pages++;
    }
    for (size_t i = 0; i < sizeof block; i++) block[i] = '.';
    for (; pages > 0; pages -= pages < sizeof block ? pages : sizeof block) {
        int32_t n = realm_emit(block, pages < sizeof block ? pages : sizeof block);
        if (n < 0) return n;
    }
    return 0;
}

/* Waits for more of a generation that has ended, and gives the refusal as its own. */
static int32_t waits_again(void) {
    int32_t n = start(2), g = n;
    while (n >= 0) n = realm_wait(g, events, 4, text, sizeof text, -1);
    return n;
}

static int32_t trap(void) { __builtin_trap(); }

REALM_EXPORT(realm_main) int32_t realm_main(void) {
    static const struct {
        const char *name;
        int32_t (*fn)(void);
    } WAYS[] = {{"spin", spin},
                {"never polls", never_polls},
                {"recurse", recurse},
                {"logs", flood_logs},
                {"generations", flood_generations},
                {"handles", flood_handles},
                {"deaf", deaf},
                {"grow", grow},
                {"waits again", waits_again},
                {"trap", trap}};
    int32_t n = realm_input(REALM_LITERAL("text"), name, sizeof name - 1);
    if (n < 0) return n;
    for (size_t k = 0; k < sizeof WAYS / sizeof *WAYS; k++) {
        size_t i = 0;
        while (WAYS[k].name[i] && WAYS[k].name[i] == name[i]) i++;
        if (WAYS[k].name[i] == name[i]) return WAYS[k].fn();
    }
    return REALM_E_NOT_FOUND;
}
