/* Calls every host function, rightly and wrongly. Built for 32-bit and for 64-bit memory. The request's prompt is the
 * text "abc abc" and its input has the fields checked below. */
#include "probe.h"

static int32_t ids[512], more[1024];
static realm_guest_event events[64];

static int32_t about(void) {
    realm_guest_limits l;
    int64_t t = 0, u = 0;
    IS(realm_abi_version(), REALM_ABI_MAJOR << 16 | REALM_ABI_MINOR);
    IS(realm_limits_get(&l, sizeof l), sizeof l);
    IS(l.size, sizeof l);
    IS(l.context_tokens, 256);
    IS(l.handles, 1024);
    IS(l.read_bytes, 64 << 20);
    IS(l.tensor_bytes, 256 << 20);
    IS(l.storage_bytes, 256 << 20);
    IS(l.wall_ms, 3600000);
    IS(l.kv_tokens, 0);
    IS(l.vocabulary, 320);
    IS(l.memory_bytes, 67108864);
    uint32_t first[2] = {0, 77};
    IS(realm_limits_get((realm_guest_limits *)(void *)first, 4), sizeof l); /* a program that knows one field */
    IS(first[0], sizeof l);
    IS(first[1], 77);
    IS(realm_limits_get((realm_guest_limits *)(void *)PAST, sizeof l), REALM_E_RANGE);
    TRUE(error_says("limits_get"));
    IS(realm_limits_get(&l, SIZE_MAX), REALM_E_RANGE); /* all of a buffer is memory, however little is written */
    IS(realm_limits_get((realm_guest_limits *)(void *)(EDGE - sizeof l), sizeof l + 1), REALM_E_RANGE);
    IS(realm_clock_ms(REALM_CLOCK_WALL, &t), 0);
    TRUE(t > 1700000000000);
    IS(realm_clock_ms(REALM_CLOCK_MONOTONIC, &u), 0);
    TRUE(u >= 0 && u < 3600000);
    IS(realm_clock_ms(9, &u), REALM_E_INVALID);
    IS(realm_clock_ms(0, (int64_t *)(void *)(EDGE - 4)), REALM_E_RANGE);
    IS(realm_random(buf, 0), 0);
    IS(realm_random(buf, 64), 0);
    int64_t any = 0;
    for (int i = 0; i < 64; i++) any |= buf[i];
    TRUE(any);
    IS(realm_random(buf, 1u << 20), REALM_E_LIMIT);
    IS(realm_random(EDGE - 8, 9), REALM_E_RANGE);
    IS(realm_random(EDGE - 8, 8), 0);
    IS(realm_random(EDGE, 0), 0);
    IS(realm_log(1, PAST, 4), REALM_E_RANGE);
    for (int i = 0; i < 100000; i++) realm_log(1, REALM_LITERAL("a line\nof two"));
    IS(realm_last_error(PAST, 10), REALM_E_RANGE);
    return 1;
}

static int32_t in_and_out(void) {
    int32_t all = realm_input(NULL, 0, buf, sizeof buf);
    TRUE(all > 20 && buf[0] == '{' && buf[all - 1] == '}');
    buf[0] = 1;
    IS(realm_input(NULL, 0, buf, 4), all); /* does not fit: nothing is written */
    IS(buf[0], 1);
    IS(realm_input(NULL, 0, NULL, 0), all);
    IS(realm_input(NULL, 0, PAST, 0), all);
    IS(realm_input(NULL, 0, PAST, 1), REALM_E_RANGE); /* although it would not fit */
    IS(realm_input(NULL, 0, EDGE - 4096, 4097), REALM_E_RANGE);
    IS(realm_input(NULL, 0, EDGE - 4096, 4096), all);
    IS(realm_input(NULL, 0, buf, SIZE_MAX), REALM_E_RANGE);
    IS(realm_encode(REALM_LITERAL("abc"), 0, ids, SIZE_MAX / 2), REALM_E_RANGE); /* elements, not bytes */
    IS(realm_input(REALM_LITERAL("text"), buf, sizeof buf), 8);                  /* unescaped */
    TRUE(same(buf, "a\"b\n\xe2\x82\xac!", 8));
    IS(realm_input(REALM_LITERAL("list"), buf, sizeof buf), 9);
    TRUE(same(buf, "[1,2.5,1]", 3));
    IS(realm_input(REALM_LITERAL("nothing"), buf, sizeof buf), 4);
    IS(realm_input(REALM_LITERAL("absent"), buf, sizeof buf), REALM_E_NOT_FOUND);
    TRUE(error_says("absent"));
    IS(realm_input(REALM_LITERAL("te\0xt"), buf, sizeof buf), REALM_E_NOT_FOUND);
    IS(realm_input(PAST, 4, buf, sizeof buf), REALM_E_RANGE);
    IS(realm_input(REALM_LITERAL("text"), PAST, 100), REALM_E_RANGE);
    IS(realm_input(buf, 4000, buf, 10), REALM_E_LIMIT);
    IS(realm_emit("\xc3", 1), REALM_E_FORMAT);
    TRUE(error_says("UTF-8"));
    IS(realm_emit(PAST, 1), REALM_E_RANGE);
    IS(realm_emit(EDGE - 1, 2), REALM_E_RANGE);
    IS(realm_emit("", 0), 0);
    IS(realm_stream_token(-1, "", 0), 0);
    IS(realm_stream_token(320, "x", 1), REALM_E_RANGE);
    IS(realm_stream_token(-2, "x", 1), REALM_E_RANGE);
    IS(realm_stream_token(5, "\xff", 1), REALM_E_FORMAT);
    IS(realm_finish(0), REALM_E_INVALID);
    IS(realm_finish(3), REALM_E_INVALID);
    return 1;
}

static int32_t tokens(void) {
    int32_t n = realm_encode(REALM_LITERAL("abc stop"), 0, ids, 512);
    TRUE(n > 0 && n < 10);
    ids[0] = -5;
    IS(realm_encode(REALM_LITERAL("abc stop"), 0, ids, (size_t)n - 1), n);
    IS(ids[0], -5);
    IS(realm_encode(REALM_LITERAL("abc stop"), 0, ids, 512), n);
    IS(realm_decode(ids, (size_t)n, 0, buf, sizeof buf), 8);
    TRUE(same(buf, "abc stop", 8));
    int32_t plain = realm_encode(REALM_LITERAL("</s>"), 0, ids, 512);
    TRUE(plain > 1); /* text, not the control token */
    IS(realm_encode(REALM_LITERAL("</s>"), REALM_TEXT_PARSE_SPECIAL, ids, 512), 1);
    IS(ids[0], 2);
    IS(realm_encode(REALM_LITERAL("a"), 8, ids, 512), REALM_E_UNSUPPORTED);
    IS(realm_encode(PAST, 1, 0, ids, 512), REALM_E_RANGE);
    IS(realm_encode("a", 1, 0, (int32_t *)(void *)PAST, 512), REALM_E_RANGE);
    IS(realm_encode(buf, 0xfffffff, 0, ids, 512), REALM_E_LIMIT);
    ids[0] = 320;
    IS(realm_decode(ids, 1, 0, buf, sizeof buf), REALM_E_RANGE);
    ids[0] = -1;
    IS(realm_decode(ids, 1, 0, buf, sizeof buf), REALM_E_RANGE);
    IS(realm_decode((int32_t *)(void *)(EDGE - 4), 2, 0, buf, sizeof buf), REALM_E_RANGE);
    IS(realm_decode(ids, 0x7fffffff, 0, buf, sizeof buf), REALM_E_LIMIT);
    IS(realm_decode(ids, 0, 0, buf, sizeof buf), 0);
    IS(realm_token_piece(260, 0, buf, sizeof buf), 1);
    IS(buf[0], 'a');
    IS(realm_token_piece(2, 0, buf, sizeof buf), 0);
    IS(realm_token_piece(2, REALM_TEXT_SPECIAL, buf, sizeof buf), 4);
    IS(realm_token_piece(320, 0, buf, sizeof buf), REALM_E_RANGE);
    IS(realm_token_piece(-1, 0, buf, sizeof buf), REALM_E_RANGE);
    return 1;
}

static int32_t prompts(void) {
    int32_t own = realm_prompt_own();
    TRUE(own > 0);
    IS(realm_prompt_get_text(own, buf, sizeof buf), 7);
    TRUE(same(buf, "abc abc", 7));
    int32_t n = realm_prompt_get_tokens(own, ids, 512);
    TRUE(n > 1);
    int32_t chat =
        realm_prompt_chat(REALM_LITERAL("[{\"role\":\"user\",\"content\":\"a</s>b\"}]"), NULL, 0, REALM_CHAT_ANSWER);
    TRUE(chat > 0);
    IS(realm_prompt_get_text(chat, buf, sizeof buf), 12);
    TRUE(same(buf, "a</s>b</s>a:", 12)); /* the template's own </s> is a token, the message's is text */
    int32_t m = realm_prompt_get_tokens(chat, more, 512), ends = 0;
    for (int32_t i = 0; i < m; i++) ends += more[i] == 2;
    IS(ends, 1);
    IS(realm_prompt_chat(REALM_LITERAL("[{]"), NULL, 0, 0), REALM_E_INVALID);
    IS(realm_prompt_chat(REALM_LITERAL("[]"), NULL, 0, 2), REALM_E_UNSUPPORTED);
    IS(realm_prompt_chat(PAST, 3, NULL, 0, 0), REALM_E_RANGE);
    IS(realm_prompt_chat(REALM_LITERAL("[]"), PAST, 3, 0), REALM_E_RANGE);
    int32_t by_tokens = realm_prompt_tokens(ids, (size_t)n);
    TRUE(by_tokens > 0);
    IS(realm_prompt_get_tokens(by_tokens, more, 512), n);
    for (int32_t i = 0; i < n; i++) IS(more[i], ids[i]);
    IS(realm_prompt_tokens((int32_t *)(void *)PAST, 2), REALM_E_RANGE);
    IS(realm_prompt_text(PAST, 3, 0), REALM_E_RANGE);
    for (int i = 0; i < 4096; i++) buf[i] = 'e';
    IS(realm_prompt_text(buf, 4096, 0), REALM_E_CONTEXT); /* longer than the context */
    TRUE(error_says("context"));
    /* handles: closed, forged, of another kind */
    IS(realm_close(chat), 0);
    IS(realm_close(chat), REALM_E_INVALID);
    IS(realm_prompt_get_text(chat, buf, sizeof buf), REALM_E_INVALID);
    int32_t again = realm_prompt_text("a", 1, 0);
    TRUE(again > 0 && again != chat); /* the slot is used again, the handle is not */
    IS(realm_prompt_get_text(chat, buf, sizeof buf), REALM_E_INVALID);
    IS(realm_prompt_get_text(0, buf, sizeof buf), REALM_E_INVALID);
    IS(realm_prompt_get_text(-1, buf, sizeof buf), REALM_E_INVALID);
    IS(realm_prompt_get_text(again + 4096, buf, sizeof buf), REALM_E_INVALID);
    IS(realm_wait(again, events, 64, text, sizeof text, 0), REALM_E_INVALID);
    IS(realm_cancel(again), REALM_E_INVALID);
    IS(realm_close(again), 0);
    IS(realm_close(by_tokens), 0);
    int32_t opened = 0, h;
    while ((h = realm_prompt_text("a", 1, 0)) > 0) more[opened++] = h;
    IS(h, REALM_E_LIMIT);
    TRUE(error_says("handles: 1024"));
    IS(opened, 1023);
    while (opened > 0) IS(realm_close(more[--opened]), 0);
    IS(realm_close(own), 0);
    return 1;
}

static int32_t drain(int32_t g, int32_t *n_tokens) {
    *n_tokens = 0;
    for (;;) {
        int32_t n = realm_wait(g, events, 64, text, sizeof text, -1);
        if (n < 0) return n;
        for (int32_t i = 0; i < n; i++) {
            if (events[i].handle != g) return -100;
            if (events[i].kind == REALM_EVENT_KIND_END) return (int32_t)events[i].finish;
            ++*n_tokens;
        }
    }
}

static int32_t generations(void) {
    realm_generate_options o = {.size = sizeof o,
                                .set = REALM_SET_MAX_TOKENS | REALM_SET_FLAGS,
                                .max_tokens = 12,
                                .flags = REALM_GENERATE_IGNORE_END};
    realm_guest_usage u;
    int32_t p = realm_prompt_own(), n = 0;
    IS(realm_wait(0, events, 64, text, sizeof text, 0), REALM_E_NOT_FOUND);
    int32_t g = realm_generate(p, &o, REALM_MODE_EVENTS);
    TRUE(g > 0);
    IS(drain(g, &n), REALM_END_LENGTH);
    IS(n, 12);
    IS(realm_usage(g, &u), 0);
    IS(u.completion, 12);
    TRUE(u.prompt > 1);
    IS(realm_usage(g, (realm_guest_usage *)(void *)PAST), REALM_E_RANGE);
    IS(realm_wait(g, events, 64, text, sizeof text, -1), REALM_E_CLOSED);
    IS(realm_close(g), 0);
    IS(realm_wait(g, events, 64, text, sizeof text, -1), REALM_E_INVALID);
    /* two at once, any of them */
    int32_t a = realm_generate(p, &o, REALM_MODE_EVENTS), b = realm_generate(p, &o, REALM_MODE_EVENTS), ends = 0;
    TRUE(a > 0 && b > 0 && a != b);
    while (ends < 2) {
        n = realm_wait(0, events, 3, text, sizeof text, -1);
        TRUE(n > 0 && n <= 3);
        for (int32_t i = 0; i < n; i++) {
            TRUE(events[i].handle == a || events[i].handle == b);
            ends += events[i].kind == REALM_EVENT_KIND_END;
        }
    }
    IS(realm_close(a), 0);
    IS(realm_close(b), 0);
    /* cancelled, and closed while running */
    o.max_tokens = 200;
    g = realm_generate(p, &o, REALM_MODE_EVENTS);
    TRUE(g > 0);
    IS(realm_cancel(g), 0);
    IS(drain(g, &n), REALM_END_CANCELLED);
    IS(realm_close(g), 0);
    g = realm_generate(p, &o, REALM_MODE_EVENTS);
    TRUE(g > 0);
    IS(realm_close(g), 0);
    /* what is wrong with options */
    o.set |= REALM_SET_TEMPERATURE;
    o.temperature = -1;
    IS(realm_generate(p, &o, 0), REALM_E_RANGE);
    TRUE(error_says("temperature"));
    o.set = 1u << 30;
    IS(realm_generate(p, &o, 0), REALM_E_UNSUPPORTED);
    o.set = REALM_SET_FLAGS;
    o.flags = 1u << 20;
    IS(realm_generate(p, &o, 0), REALM_E_UNSUPPORTED);
    o.flags = 0;
    o.set = REALM_SET_STOP;
    o.n_stop = 1000;
    IS(realm_generate(p, &o, 0), REALM_E_RANGE);
    o.n_stop = 1;
    o.stop = ~UINT64_C(0) - 3;
    IS(realm_generate(p, &o, 0), REALM_E_RANGE);
    realm_bytes stop = {.ptr = UINT64_C(1) << 40, .len = 3};
    o.stop = (uint64_t)(uintptr_t)&stop;
    IS(realm_generate(p, &o, 0), REALM_E_RANGE);
    stop.len = 0;
    IS(realm_generate(p, &o, 0), REALM_E_RANGE);
    o.set = REALM_SET_BIAS;
    o.n_bias = 0xffffffffu;
    IS(realm_generate(p, &o, 0), REALM_E_RANGE);
    o.size = 3;
    IS(realm_generate(p, &o, 0), REALM_E_RANGE);
    o.size = 0xffffffffu;
    IS(realm_generate(p, &o, 0), REALM_E_RANGE);
    IS(realm_generate(p, (realm_generate_options *)(void *)(EDGE - 2), 0), REALM_E_RANGE);
    IS(realm_generate(p, NULL, 7), REALM_E_INVALID);
    IS(realm_generate(12345, NULL, 0), REALM_E_INVALID);
    /* what is wrong with wait */
    o = (realm_generate_options){.size = 12, .set = REALM_SET_MAX_TOKENS, .max_tokens = 3}; /* an early, short struct */
    g = realm_generate(p, &o, REALM_MODE_EVENTS);
    TRUE(g > 0);
    IS(realm_wait(g, events, 0, text, sizeof text, -1), REALM_E_RANGE);
    IS(realm_wait(g, (realm_guest_event *)(void *)(EDGE - 8), 1, text, sizeof text, -1), REALM_E_RANGE);
    IS(realm_wait(g, events, 64, EDGE - 8, 9, -1), REALM_E_RANGE);
    TRUE(drain(g, &n) > 0);
    TRUE(n <= 3);
    IS(realm_close(g), 0);
    IS(realm_close(p), 0);
    return 1;
}

static int32_t whole(void) {
    realm_generate_options o = {.size = sizeof o,
                                .set = REALM_SET_MAX_TOKENS | REALM_SET_FLAGS,
                                .max_tokens = 20,
                                .flags = REALM_GENERATE_IGNORE_END};
    int32_t n = realm_host_generate(0, REALM_LITERAL("abc abc"), &o, buf, sizeof buf);
    TRUE(n > 0);
    int32_t m = realm_host_generate(0, REALM_LITERAL("abc abc"), &o, text, 4); /* cut between characters */
    TRUE(m >= 0 && m <= 4);
    TRUE(same(buf, text, (size_t)m));
    o.flags |= REALM_GENERATE_CHAT;
    TRUE(realm_host_generate(0, REALM_LITERAL("say \"a\""), &o, buf, sizeof buf) > 0);
    IS(realm_host_generate(1, "a", 1, &o, buf, sizeof buf), REALM_E_NOT_FOUND);
    IS(realm_host_generate(0, PAST, 1, &o, buf, sizeof buf), REALM_E_RANGE);
    IS(realm_host_generate(0, "a", 1, &o, EDGE - 1, 2), REALM_E_RANGE);
    o.set |= REALM_SET_TOP_P;
    o.top_p = 7;
    IS(realm_host_generate(0, "a", 1, &o, buf, sizeof buf), REALM_E_RANGE);
    return 1;
}

PROBE(about, in_and_out, tokens, prompts, generations, whole)
