/* A tenant's program that walks into one of its limits, named by the last message as "WHAT" or "WHAT NUMBER".
 *
 * Most do one thing again and again until it is refused, and answer "DONE CODE AGAIN TEXT": how often it worked, the
 * code of the refusal, what the same call returns once something was given back (0 when that works), and the host's
 * words. NUMBER bounds how often; a walk that ends there has CODE 0. */
#include "realm_guest.h"
#include "realm_text.h"

enum { EVENTS = 16, ROW = 65536, SIDE = 512, WIDTH = 576 /* of SmolLM2-135M */, LAYER = 4 << 20 };

static realm_guest_event events[EVENTS];
static char text[16384], question_bytes[256], room[65536], out_bytes[1024], why[512], block[1024];
static int32_t held;
static float row[ROW];
static char layer[LAYER];

/* ---- one step of each walk, the n-th; a handle, a count or a negative code ---- */

static int32_t make_prompt(uint32_t n) {
    int32_t h = realm_prompt_text("a", 1, 0);
    if (h > 0 && n == 0) held = h;
    return h;
}

static int32_t start(uint32_t n, uint32_t max_tokens) {
    realm_generate_options o = {.size = sizeof o,
                                .set = REALM_SET_MAX_TOKENS | REALM_SET_FLAGS | REALM_SET_TEMPERATURE,
                                .max_tokens = max_tokens,
                                .flags = REALM_GENERATE_IGNORE_END};
    int32_t g = realm_generate(realm_prompt_own(), &o, REALM_MODE_EVENTS);
    if (g > 0 && n == 0) held = g;
    return g;
}

static int32_t start_long(uint32_t n) { return start(n, 0); }

static int32_t make_tensor(uint32_t n) {
    const uint64_t dims[] = {SIDE, SIDE}; /* a MiB of floats */
    int32_t h = realm_tensor_new(dims, 2);
    if (h > 0 && n == 0) held = h;
    return h;
}

/* A key of 4 and a value of 1020 bytes, other ones for each n. */
static int32_t put(uint32_t n) {
    char key[4] = {'k', (char)('0' + n / 100 % 10), (char)('0' + n / 10 % 10), (char)('0' + n % 10)};
    return realm_store_put(key, sizeof key, block, sizeof block - sizeof key);
}

static int32_t save(uint32_t n) {
    char name[2] = {(char)('a' + n / 26 % 26), (char)('a' + n % 26)};
    int32_t c = realm_context_new(), status = c;
    if (c > 0) status = realm_context_append(c, (const int32_t[]){1, 2, 3}, 3);
    if (status >= 0) status = realm_context_save(c, name, sizeof name);
    if (c > 0) realm_close(c);
    return status;
}

/* A forward pass over the request's prompt: the logits of its last token. */
static int32_t pass(void) {
    int32_t p = realm_prompt_own(), c = realm_context_new();
    int32_t status = realm_context_append_prompt(c, p);
    int32_t f = status < 0 ? status : realm_forward(c, NULL, 0, 1, 0);
    if (f > 0 && (status = realm_wait(f, events, 1, NULL, 0, -1)) >= 0) status = events[0].status;
    if (f > 0) { /* a refusal keeps the host's words */
        realm_close(p);
        realm_close(c);
    }
    return status < 0 ? status : f;
}

static int32_t read_row(uint32_t n) {
    if (n == 0 && (held = pass()) < 0) return held;
    return realm_logits_read(held, 0, row, ROW);
}

static int32_t read_tensor(uint32_t n) {
    if (n == 0 && (held = make_tensor(0)) < 0) return held;
    return realm_tensor_read(held, 0, row, 1024);
}

static int32_t keep_rows(uint32_t n) {
    int32_t f = pass();
    if (f > 0 && n == 0) held = f;
    return f;
}

static int32_t grow(uint32_t n) {
    (void)n;
    if (__builtin_wasm_memory_grow(0, 1) == (size_t)-1) return REALM_E_LIMIT;
    *(volatile char *)((__builtin_wasm_memory_size(0) - 1) << 16) = 1;
    return 0;
}

/* ---- what gives one of them back ---- */

static int32_t close_first(void) { return realm_close(held); }
static int32_t close_started(void) {
    int32_t n = realm_cancel(held);
    while (n >= 0) { /* until its end has come */
        n = realm_wait(held, events, EVENTS, text, sizeof text, -1);
        for (int32_t i = 0; i < n; i++)
            if (events[i].kind == REALM_EVENT_KIND_END) return realm_close(held);
    }
    return n;
}
static int32_t delete_first(void) { return realm_store_delete("k000", 4); }
static int32_t drop_first(void) { return realm_context_drop("aa", 2); }
static int32_t nothing(void) { return 0; }

static const struct walk {
    const char *name;
    int32_t (*step)(uint32_t n);
    int32_t (*give_back)(void);
} WALKS[] = {
    {"handles", make_prompt, close_first},
    {"generations", start_long, close_started},
    {"tensors", make_tensor, close_first},
    {"keep", keep_rows, close_first},
    {"store", put, delete_first},
    {"contexts", save, drop_first},
    {"read", read_row, nothing},
    {"read tensor", read_tensor, nothing},
    {"memory", grow, nothing},
};

static int32_t walk(const struct walk *w, uint32_t most) {
    realm_text out = REALM_TEXT_IN(out_bytes);
    uint32_t n = 0;
    int32_t code = 0, again = 0, len = 0;
    while (n < most && (code = w->step(n)) >= 0) n++;
    if (code < 0) {
        len = realm_last_error(why, sizeof why);
        if ((again = w->give_back()) >= 0) again = w->step(n);
    }
    realm_text_int(&out, n);
    realm_text_putc(&out, ' ');
    realm_text_int(&out, code < 0 ? code : 0);
    realm_text_putc(&out, ' ');
    realm_text_int(&out, again < 0 ? again : 0);
    realm_text_putc(&out, ' ');
    if (len > 0) realm_text_add(&out, why, (size_t)len < sizeof why ? (size_t)len : sizeof why);
    return realm_text_emit(&out);
}

/* ---- the others ---- */

/* `n` times ten bytes; a refusal is the program's end. */
static int32_t emits(uint32_t n) {
    for (int32_t status; n > 0; n--)
        if ((status = realm_emit("0123456789", 10)) < 0) return status;
    return 0;
}

static int32_t logs(uint32_t n) {
    for (; n > 0; n--) realm_log(3, block, 100);
    return realm_emit("logged", 6);
}

/* Waits for a generation that does not end. */
static int32_t sleeps(void) {
    int32_t g = start(0, 0), n = g;
    while (n >= 0) n = realm_wait(g, events, EVENTS, text, sizeof text, -1);
    return n;
}

static int32_t spins(void) {
    for (volatile uint32_t i = 0;; i++) continue;
}

/* Weights of the request's model by every way there is; the code of each, and what the first says. */
static int32_t weights(void) {
    static const char NAME[] = "output_norm.weight";
    realm_text out = REALM_TEXT_IN(out_bytes);
    int32_t w = realm_tensor_weight(0, REALM_LITERAL(NAME)), len = 0;
    if (w < 0) return w;
    int32_t codes[] = {realm_tensor_read(w, 0, row, WIDTH), 0, 0, 0};
    if (codes[0] < 0) len = realm_last_error(why, sizeof why);
    codes[1] = realm_get_tensor(0, REALM_LITERAL(NAME), row, sizeof row);
    codes[2] = realm_memory64_load_layer(0, 0, layer, sizeof layer);
    int32_t norm = realm_memory64_load_tensor(0, 0, REALM_LITERAL("attn_norm.weight"));
    codes[3] = norm < 0 ? norm : realm_tensor_read(norm, 0, row, WIDTH);
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
        realm_text_int(&out, codes[i] < 0 ? codes[i] : 0);
        realm_text_putc(&out, ' ');
    }
    if (len > 0) realm_text_add(&out, why, (size_t)len);
    return realm_text_emit(&out);
}

/* "save A" computes the request's own prompt and keeps it as A; "open A" tells whether its pages had left KV memory,
 * and goes on from there: the text of 12 tokens. */
static int32_t save_as(const char *name) {
    int32_t c = realm_context_new(), n;
    if (c < 0 || (n = realm_context_append_prompt(c, realm_prompt_own())) < 0) return REALM_E_INTERNAL;
    int32_t f = realm_forward(c, NULL, 0, 1, 0);
    if (f < 0) return f;
    if ((n = realm_wait(f, events, 1, NULL, 0, -1)) < 0) return n;
    if (events[0].status < 0) return events[0].status;
    return (n = realm_context_save(c, name, 1)) < 0 ? n : realm_emit("saved", 5);
}

static int32_t open_as(const char *name) {
    realm_text out = REALM_TEXT_IN(text);
    realm_guest_context stat;
    int32_t c = realm_context_open(name, 1), status = c;
    if (c < 0 || (status = realm_context_stat(c, &stat)) < 0) return status;
    realm_text_puts(&out, stat.suspended ? "suspended:" : "resident:");
    realm_generate_options o = {.size = sizeof o,
                                .set =
                                    REALM_SET_MAX_TOKENS | REALM_SET_FLAGS | REALM_SET_TEMPERATURE | REALM_SET_CONTEXT,
                                .max_tokens = 12,
                                .flags = REALM_GENERATE_IGNORE_END,
                                .context = c};
    status = realm_text_generate(&out, 0, &o, NULL);
    return status < 0 ? status : realm_text_emit(&out);
}

/* "NAME" or "NAME NUMBER": whether it is this one, and the number. */
static bool is(const realm_text *q, const char *name, uint32_t *n) {
    size_t len = realm_strlen(name), i = 0;
    while (i < len && i < q->len && q->at[i] == name[i]) i++;
    if (i < len || (len < q->len && q->at[len] != ' ')) return false;
    *n = 0;
    for (i = len + 1; i < q->len; i++) {
        if (q->at[i] < '0' || q->at[i] > '9') return false;
        *n = *n * 10 + (uint32_t)(q->at[i] - '0');
    }
    if (q->len <= len) *n = UINT32_MAX;
    return true;
}

REALM_EXPORT(realm_main) int32_t realm_main(void) {
    realm_text q = REALM_TEXT_IN(question_bytes);
    uint32_t n;
    int32_t status = realm_text_question(&q, room, sizeof room);
    if (status < 0) return status;
    for (size_t i = 0; i < sizeof block; i++) block[i] = 'x';
    for (size_t i = 0; i < sizeof WALKS / sizeof *WALKS; i++)
        if (is(&q, WALKS[i].name, &n)) return walk(&WALKS[i], n);
    if (is(&q, "emit", &n)) return emits(n);
    if (is(&q, "log", &n)) return logs(n);
    if (is(&q, "sleep", &n)) return sleeps();
    if (is(&q, "spin", &n)) return spins();
    if (is(&q, "weights", &n)) return weights();
    if (q.len == 6 && q.at[0] == 's') return save_as(q.at + 5);
    if (q.len == 6 && q.at[0] == 'o') return open_as(q.at + 5);
    return REALM_E_NOT_FOUND;
}
