/* The event ring and running ahead, rightly and wrongly. */
#include "probe.h"

#define SLOTS 4
#define TEXT 32

static struct {
    realm_event_ring head;
    realm_guest_event events[SLOTS];
    char text[TEXT];
} ring;
static realm_guest_event events[64];
static int32_t ids[64], more[64], prompt[64];

static realm_generate_options options(uint32_t max_tokens) {
    return (realm_generate_options){.size = sizeof(realm_generate_options),
                                    .set = REALM_SET_MAX_TOKENS | REALM_SET_FLAGS,
                                    .max_tokens = max_tokens,
                                    .flags = REALM_GENERATE_IGNORE_END};
}

static int32_t registered(void) {
    ring.head = (realm_event_ring){.n_slots = SLOTS, .text_bytes = TEXT};
    IS(realm_ring_wait(0), REALM_E_INVALID);
    IS(realm_ring_set((realm_event_ring *)(void *)PAST, sizeof ring), REALM_E_RANGE);
    IS(realm_ring_set((realm_event_ring *)(void *)(EDGE - 100), sizeof ring), REALM_E_RANGE);
    IS(realm_ring_set(&ring.head, sizeof ring - 1), REALM_E_RANGE);
    IS(realm_ring_set(&ring.head, 8), REALM_E_RANGE);
    ring.head.n_slots = 3;
    IS(realm_ring_set(&ring.head, sizeof ring), REALM_E_INVALID);
    ring.head.n_slots = 0;
    IS(realm_ring_set(&ring.head, sizeof ring), REALM_E_INVALID);
    ring.head.n_slots = 1u << 31;
    IS(realm_ring_set(&ring.head, sizeof ring), REALM_E_RANGE);
    ring.head.n_slots = SLOTS;
    IS(realm_ring_set(&ring.head, sizeof ring), 0);
    IS(realm_ring_wait(0), REALM_E_NOT_FOUND);
    return 1;
}

/* Two generations through four slots and 32 bytes: the same texts as by wait(). */
static int32_t filled(void) {
    realm_generate_options o = options(20);
    int32_t p = realm_prompt_own(), n;
    size_t len = 0;
    int32_t g = realm_generate(p, &o, REALM_MODE_EVENTS);
    for (bool end = false; !end;) {
        n = realm_wait(g, events, 64, text + len, sizeof text - len, -1);
        TRUE(n > 0);
        for (int32_t i = 0; i < n; i++) len += events[i].text_len, end |= events[i].kind == REALM_EVENT_KIND_END;
    }
    IS(realm_close(g), 0);
    int32_t gs[2] = {realm_generate(p, &o, REALM_MODE_EVENTS), realm_generate(p, &o, REALM_MODE_EVENTS)}, ends = 0;
    TRUE(gs[0] > 0 && gs[1] > 0);
    /* near the end of the counts, which wrap */
    ring.head.head = ring.head.tail = 0xfffffffeu;
    ring.head.text_head = ring.head.text_tail = 0xffffffe0u;
    size_t at[2] = {0, 0};
    while (ends < 2) {
        n = realm_ring_wait(-1);
        TRUE(n > 0 && n <= SLOTS);
        IS(ring.head.head - ring.head.tail, n);
        for (; ring.head.tail != ring.head.head; ring.head.tail++) {
            const realm_guest_event *e = &ring.events[ring.head.tail % SLOTS];
            int which = e->handle == gs[1];
            TRUE(e->handle == gs[which]);
            TRUE(e->text_at % TEXT + e->text_len <= TEXT);
            TRUE(same(ring.text + e->text_at % TEXT, text + at[which], e->text_len));
            at[which] += e->text_len;
            ring.head.text_tail = e->text_at + e->text_len;
            ends += e->kind == REALM_EVENT_KIND_END;
        }
    }
    IS(at[0], len);
    IS(at[1], len);
    IS(realm_close(gs[0]), 0);
    IS(realm_close(gs[1]), 0);
    IS(realm_close(p), 0);
    return 1;
}

/* The program changes the header between two calls, or does not read. */
static int32_t lied(void) {
    realm_generate_options o = options(30);
    int32_t p = realm_prompt_own(), g = realm_generate(p, &o, REALM_MODE_EVENTS);
    TRUE(g > 0);
    while (ring.head.head - ring.head.tail < SLOTS) TRUE(realm_ring_wait(-1) >= 0); /* nothing is read: it fills up */
    IS(realm_ring_wait(-1), 0);                                                     /* full, so it does not wait */
    realm_event_ring good = ring.head;
    static const realm_event_ring LIES[] = {
        {3, TEXT, 0, 0, 0, 0},
        {0, 0, 0, 0, 0, 0},
        {1u << 30, TEXT, 0, 0, 0, 0},
        {SLOTS, 1u << 31, 0, 0, 0, 0},
        {SLOTS, TEXT, 5, 0, 0, 0},
        {SLOTS, TEXT, 0, 1, 0, 0},
        {SLOTS, TEXT, 0, 0, TEXT + 1, 0},
        {SLOTS, TEXT, 0, 0, 0, 9},
        {0xffffffffu, 0xffffffffu, 0xffffffffu, 0xffffffffu, 0xffffffffu, 0xffffffffu},
    };
    for (size_t i = 0; i < sizeof LIES / sizeof *LIES; i++) {
        ring.head = LIES[i];
        TRUE(realm_ring_wait(0) < 0);
        TRUE(ring.head.head == LIES[i].head && ring.head.text_head == LIES[i].text_head); /* and nothing was written */
    }
    ring.head = good;
    IS(realm_ring_wait(0), 0);
    ring.head.tail = ring.head.head;
    ring.head.text_tail = ring.head.text_head;
    TRUE(realm_ring_wait(-1) > 0);
    IS(realm_ring_set(NULL, 0), 0);
    IS(realm_ring_wait(0), REALM_E_INVALID);
    IS(realm_close(g), 0);
    IS(realm_close(p), 0);
    return 1;
}

/* Tokens until `want` were seen or the end came; how many. */
static int32_t take(int32_t g, int32_t *out, int32_t have, int32_t want, bool *end) {
    *end = false;
    while (have < want && !*end) {
        int32_t n = realm_wait(g, events, 64, text, sizeof text, -1);
        if (n < 0) return n;
        for (int32_t i = 0; i < n; i++) {
            if (events[i].kind == REALM_EVENT_KIND_END)
                *end = true;
            else
                out[have++] = events[i].token;
        }
    }
    return have;
}

static int32_t ahead(void) {
    realm_generate_options o = options(16);
    bool end;
    int32_t p = realm_prompt_own(), n_prompt = realm_prompt_get_tokens(p, prompt, 64), n;
    int32_t g = realm_generate(p, &o, REALM_MODE_EVENTS);
    IS(take(g, ids, 0, 16, &end), 16); /* what it says by itself */
    IS(realm_confirm(g, 1), REALM_E_INVALID);
    IS(realm_rewind(g, 0, NULL, 0), REALM_E_INVALID);
    IS(realm_close(g), 0);
    IS(realm_generate(p, NULL, REALM_MODE_AHEAD), REALM_E_RANGE);
    o.run_ahead = 65;
    IS(realm_generate(p, &o, REALM_MODE_AHEAD), REALM_E_RANGE);
    TRUE(error_says("run_ahead"));
    IS(realm_generate(p, &o, 3), REALM_E_INVALID);
    o.run_ahead = 4;
    g = realm_generate(p, &o, REALM_MODE_AHEAD);
    TRUE(g > 0);
    n = take(g, more, 0, 4, &end);
    IS(n, 4); /* and not one more before they are confirmed */
    IS(realm_wait(g, events, 64, text, sizeof text, 30), 0);
    IS(realm_confirm(g, 5), REALM_E_RANGE);
    IS(realm_confirm(g, 3), 0);
    n = take(g, more, n, 7, &end);
    IS(n, 7);
    for (int32_t i = 0; i < n; i++) IS(more[i], ids[i]);
    /* something else instead of the sixth and seventh token */
    int32_t forced[2] = {265, 266};
    IS(realm_rewind(g, 2, forced, 2), REALM_E_RANGE); /* three are confirmed */
    IS(realm_rewind(g, 8, forced, 2), REALM_E_RANGE); /* seven were seen */
    IS(realm_rewind(g, 5, (int32_t *)(void *)PAST, 2), REALM_E_RANGE);
    IS(realm_rewind(g, 5, forced, 2), 0);
    int32_t tail[16], seen = 7, n_tail = 0;
    for (end = false; !end;) {
        IS(realm_confirm(g, (uint32_t)seen), 0);
        n = take(g, tail, n_tail, n_tail + 1, &end);
        TRUE(n >= n_tail);
        seen += n - n_tail;
        n_tail = n;
    }
    IS(seen, 16);
    IS(realm_close(g), 0);
    /* the same by a prompt that has these tokens at its end */
    for (int i = 0; i < 5; i++) prompt[n_prompt + i] = ids[i];
    prompt[n_prompt + 5] = forced[0];
    prompt[n_prompt + 6] = forced[1];
    o = options(9);
    int32_t q = realm_prompt_tokens(prompt, (size_t)n_prompt + 7);
    g = realm_generate(q, &o, REALM_MODE_EVENTS);
    IS(take(g, more, 0, 9, &end), 9);
    IS(n_tail, 9);
    for (int i = 0; i < 9; i++) IS(tail[i], more[i]);
    IS(realm_close(g), 0);
    /* from an end that came meanwhile */
    o = options(4);
    o.run_ahead = 8;
    g = realm_generate(p, &o, REALM_MODE_AHEAD);
    n = take(g, more, 0, 99, &end);
    TRUE(end && n == 4);
    IS(realm_wait(g, events, 64, text, sizeof text, 0), REALM_E_CLOSED);
    IS(realm_rewind(g, 2, NULL, 0), 0);
    n = take(g, more, 2, 99, &end);
    TRUE(end && n == 4);
    for (int i = 0; i < 4; i++) IS(more[i], ids[i]);
    IS(realm_rewind(g, 5, NULL, 0), REALM_E_RANGE);
    IS(realm_cancel(g), 0);
    IS(realm_rewind(g, 4, NULL, 0), REALM_E_CLOSED);
    IS(realm_close(g), 0);
    /* An end that was not given yet is not confirmed with the tokens before it. */
    o = options(3);
    o.run_ahead = 8;
    g = realm_generate(p, &o, REALM_MODE_AHEAD);
    for (int i = 0; i < 3; i++) IS(realm_wait(g, events, 1, text, sizeof text, -1), 1);
    IS(events[0].kind, REALM_EVENT_KIND_TOKEN);
    IS(realm_confirm(g, 3), 0);
    IS(realm_rewind(g, 3, NULL, 0), 0);
    IS(realm_wait(g, events, 2, text, sizeof text, -1), 1);
    IS(events[0].kind, REALM_EVENT_KIND_END);
    IS(realm_confirm(g, 3), 0); /* and with this it is final */
    IS(realm_rewind(g, 3, NULL, 0), REALM_E_CLOSED);
    IS(realm_close(g), 0);
    IS(realm_close(q), 0);
    IS(realm_close(p), 0);
    return 1;
}

PROBE(registered, filled, lied, ahead)
