/* Random calls, and what is known of their results at each moment: contexts as plain lists of tokens, generations of
 * every mode over them, the store and tensors beside them. What needs a model to judge is told to the client as a line
 * `T n token token ...`: from the n-th on each token is the greedy one behind those before it, but for those with a
 * `!`. A line `X ...` is a result that cannot be. The request's "text" is `seed operations ending lossy`,
 * lossy where the tenant may be deleted meanwhile, with what it has stored and saved. */
#include "realm_guest.h"
#include "realm_text.h"

enum { CONTEXTS = 6, GENERATIONS = 6, LEN_MAX = 180, NEW_MAX = 20, VOCABULARY = 320, RESERVED = 3 };

typedef struct sequence {
    int32_t tokens[256];
    bool forced[256];
    uint32_t n;
} sequence;

typedef struct context {
    int32_t handle, running; /* of generations, or -1 */
    sequence s;
} context;

typedef struct generation {
    int32_t handle, context; /* of contexts, or -1 */
    uint32_t mode, base, asked, confirmed, rows;
    sequence s;
    bool ended, cancelled, drawn, alone; /* drawn: not greedy; alone: on no context */
    int32_t twin;
} generation;

static context contexts[CONTEXTS];
static generation generations[GENERATIONS];
static uint64_t state;
static char out[16384];
static uint32_t refused, wrong, n_ended, n_rewinds, n_twins;
static struct {
    realm_event_ring head;
    realm_guest_event events[16];
    char text[1024];
} ring;
static bool has_ring;

static uint32_t below(uint32_t n) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33) % n;
}

static void tell(const char *what, int32_t code) {
    char why[200];
    realm_text t = REALM_TEXT_IN(out);
    realm_text_puts(&t, "X ");
    realm_text_puts(&t, what);
    realm_text_putc(&t, ' ');
    realm_text_int(&t, code);
    realm_text_putc(&t, ' ');
    int32_t n = realm_last_error(why, sizeof why);
    if (n > 0) realm_text_add(&t, why, (size_t)n);
    realm_text_putc(&t, '\n');
    realm_text_emit(&t);
    wrong++;
}

static bool expect(bool ok, const char *what, int32_t code) {
    if (!ok) tell(what, code);
    return ok;
}

static bool lossy;

/* What was kept may be gone with the tenant. */
static bool is_lost(int32_t code) { return lossy && code == REALM_E_NOT_FOUND; }

/* Limits that others of the same tenant share. */
static bool is_refusal(int32_t code) {
    if (code != REALM_E_CROWDED && code != REALM_E_BUSY && code != REALM_E_LIMIT && code != REALM_E_QUOTA) return false;
    refused++;
    return true;
}

static void show(const sequence *s, uint32_t from) {
    realm_text t = REALM_TEXT_IN(out);
    realm_text_puts(&t, "T ");
    realm_text_int(&t, from);
    for (uint32_t i = 0; i < s->n; i++) {
        realm_text_puts(&t, i >= from && s->forced[i] ? " !" : " ");
        realm_text_int(&t, s->tokens[i]);
    }
    realm_text_putc(&t, '\n');
    expect(realm_text_emit(&t) >= 0, "emit", 0);
}

static void put(sequence *s, const int32_t *tokens, uint32_t n, bool forced) {
    for (uint32_t i = 0; i < n; i++) {
        s->tokens[s->n] = tokens[i];
        s->forced[s->n++] = forced;
    }
}

/* Few different texts, so that the prefix cache has something to find. */
static uint32_t some(int32_t *to, uint32_t at, uint32_t most) {
    uint32_t n = 1 + below(most), which = below(3);
    for (uint32_t i = 0; i < n; i++)
        to[i] = (int32_t)(RESERVED + (which * 97 + (at + i) * 31) % (VOCABULARY - RESERVED));
    return n;
}

static void check_tokens(int32_t handle, const sequence *s) {
    int32_t got[256];
    int32_t n = realm_context_get_tokens(handle, 0, got, 256);
    if (!expect(n == (int32_t)s->n, "length of a context", n)) return;
    for (uint32_t i = 0; i < s->n; i++)
        if (!expect(got[i] == s->tokens[i], "token of a context", (int32_t)i)) return;
}

static int32_t free_context(void) {
    for (int32_t i = 0; i < CONTEXTS; i++)
        if (!contexts[i].handle) return i;
    return -1;
}

static int32_t free_generation(void) {
    for (int32_t i = 0; i < GENERATIONS; i++)
        if (!generations[i].handle) return i;
    return -1;
}

/* A context that nothing runs on, or NULL. */
static context *idle(void) {
    context *c = &contexts[below(CONTEXTS)];
    return c->handle && c->running < 0 ? c : NULL;
}

/* What a generation left there whose handle was closed before its end. */
static void take_over(context *c) {
    int32_t got[256];
    uint32_t before = c->s.n;
    int32_t n = realm_context_get_tokens(c->handle, 0, got, 256);
    if (!expect(n >= (int32_t)before, "a cancelled generation took tokens away", n)) return;
    put(&c->s, got + before, (uint32_t)n - before, false);
    for (uint32_t i = 0; i < before; i++) expect(got[i] == c->s.tokens[i], "tokens of a cancelled one", got[i]);
}

static void open_context(uint32_t what) {
    int32_t i = free_context();
    context *from = what ? idle() : NULL;
    if (i < 0 || (what && !from)) return;
    context *c = &contexts[i];
    int32_t h = what ? realm_context_fork(from->handle) : realm_context_new();
    if (!expect(h > 0, "a context", h)) return;
    if (what) {
        c->s = from->s;
        check_tokens(h, &c->s);
    } else {
        c->s.n = 0;
    }
    c->handle = h;
    c->running = -1;
}

static void change_context(uint32_t what) {
    context *c = &contexts[below(CONTEXTS)];
    int32_t more[40];
    if (c->handle && c->running >= 0 && !generations[c->running].ended) { /* all of these wait for its end */
        realm_guest_context at;
        realm_context_stat(c->handle, &at);
        if (!at.busy) return; /* its end is there, and was not given yet */
        more[0] = RESERVED;
        if (what == 0 && generations[c->running].mode == REALM_MODE_AHEAD) what = 1; /* may be rewound from its end */
        int32_t st = what == 0   ? realm_context_append(c->handle, more, 1)
                     : what == 1 ? realm_context_truncate(c->handle, 100000)
                     : what == 2 ? realm_context_save(c->handle, REALM_LITERAL("busy"))
                                 : realm_context_fork(c->handle);
        if (st == REALM_E_BUSY) return;
        expect(st >= 0 || is_refusal(st) || (what == 1 && st == REALM_E_RANGE), "a busy context", st); /* it came */
        if (st > 0 && what == 0) realm_context_truncate(c->handle, (uint32_t)st - 1);
        if (st == 0 && what == 2) realm_context_drop(REALM_LITERAL("busy"));
        if (st > 0 && what == 3) realm_close(st);
        return;
    }
    if (!(c = idle())) return;
    if (what == 1) {
        uint32_t n = c->s.n - below(c->s.n < 60 ? c->s.n + 1 : 60);
        int32_t st = realm_context_truncate(c->handle, n);
        if (expect(st == 0, "truncate", st)) c->s.n = n;
    } else if (what == 0) {
        uint32_t n = some(more, c->s.n, 40);
        if (c->s.n + n > LEN_MAX) return;
        int32_t st = realm_context_append(c->handle, more, n);
        if (expect(st == (int32_t)(c->s.n + n), "append", st)) put(&c->s, more, n, true);
    }
    check_tokens(c->handle, &c->s);
}

/* ---- saved ones ---- */

static sequence saved[2];
static bool is_saved[2];
static uint64_t mine; /* the seed: names of one's own */

static size_t name_of(char *name, uint32_t i) {
    realm_text t = {.at = name, .max = 40};
    realm_text_puts(&t, "saved/");
    realm_text_int(&t, (int64_t)mine);
    realm_text_putc(&t, (char)('a' + i));
    return t.len;
}

static void save_or_open(uint32_t what) {
    char name[40];
    uint32_t i = below(2);
    size_t n = name_of(name, i);
    context *c = what == 0 ? idle() : NULL;
    if (what == 0 && c) {
        int32_t st = realm_context_save(c->handle, name, n);
        if (is_refusal(st) || is_lost(st)) return;
        if (!expect(st == 0, "save", st)) return;
        saved[i] = c->s;
        is_saved[i] = true;
    } else if (what == 1) {
        int32_t k = free_context();
        if (k < 0) return;
        int32_t h = realm_context_open(name, n);
        if (is_lost(h)) is_saved[i] = false;
        if (!is_saved[i]) {
            expect(h == REALM_E_NOT_FOUND, "open of what was not saved", h);
            return;
        }
        if (!expect(h > 0, "open", h)) return;
        contexts[k] = (context){.handle = h, .running = -1};
        contexts[k].s = saved[i];
        check_tokens(h, &saved[i]);
    } else if (what == 2) {
        int32_t st = realm_context_drop(name, n);
        if (is_lost(st)) is_saved[i] = false;
        expect(st == (is_saved[i] ? 0 : REALM_E_NOT_FOUND), "drop", st);
        is_saved[i] = false;
    }
}

/* ---- generations ---- */

static bool piping(void) {
    for (int i = 0; i < GENERATIONS; i++)
        if (generations[i].handle && generations[i].mode == REALM_MODE_PIPE && !generations[i].ended) return true;
    return false;
}

static int32_t begin(context *c, uint32_t mode, float temperature, uint64_t seed) {
    int32_t more[40], prompt = 0, k = free_generation();
    uint32_t n = c && c->s.n && (below(2) || temperature > 0) ? 0 : some(more, c ? c->s.n : 0, 40);
    if (k < 0 || (c && c->s.n + n + NEW_MAX > LEN_MAX)) return -1;
    if (n) prompt = realm_prompt_tokens(more, n);
    if (!expect(prompt >= 0, "prompt_tokens", prompt)) return -1;
    generation *g = &generations[k];
    *g = (generation){.context = c ? (int32_t)(c - contexts) : -1, .mode = mode, .twin = -1};
    g->asked = 1 + below(NEW_MAX);
    g->drawn = temperature > 0;
    g->alone = !c;
    realm_generate_options o = {.size = sizeof o,
                                .set = REALM_SET_MAX_TOKENS | REALM_SET_TEMPERATURE | REALM_SET_FLAGS | REALM_SET_SEED |
                                       (c ? REALM_SET_CONTEXT : 0u),
                                .max_tokens = temperature > 0 ? NEW_MAX : g->asked,
                                .temperature = temperature,
                                .seed = seed,
                                .flags = REALM_GENERATE_IGNORE_END,
                                .context = c ? c->handle : 0,
                                .run_ahead = 1 + below(8)};
    bool two = mode == REALM_MODE_PIPE && piping();
    int32_t h = realm_generate(prompt, &o, mode);
    if (prompt) realm_close(prompt);
    if (two) {
        expect(h == REALM_E_BUSY, "a second pipe", h);
        return -1;
    }
    if (is_refusal(h) || !expect(h > 0, "generate", h)) return -1;
    if (c) {
        c->running = k;
        g->s = c->s;
    }
    put(&g->s, more, n, true);
    if (c) put(&c->s, more, n, true);
    g->handle = h;
    g->base = g->s.n;
    if (temperature > 0) g->asked = NEW_MAX;
    return k;
}

/* A forward pass whose rows tell what would come next. */
static void forward(void) {
    context *c = idle();
    int32_t k = free_generation(), more[40];
    if (!c || k < 0) return;
    uint32_t n = c->s.n && below(2) ? 0 : some(more, c->s.n, 40), rows;
    if (c->s.n + n > LEN_MAX) return;
    rows = 1 + below(n ? n : 1);
    int32_t h = realm_forward(c->handle, more, n, rows, 0);
    if (is_refusal(h) || !expect(h > 0, "forward", h)) return;
    put(&c->s, more, n, true);
    generations[k] = (generation){.handle = h, .context = (int32_t)(c - contexts), .rows = rows, .twin = -1};
    generations[k].s = c->s;
    generations[k].base = c->s.n;
    c->running = k;
}

static void close_generation(generation *g) {
    context *c = g->context >= 0 ? &contexts[g->context] : NULL;
    int32_t st = realm_close(g->handle);
    expect(st == 0, "close", st);
    if (c) {
        c->running = -1;
        take_over(c);
    }
    if (g->twin >= 0) generations[g->twin].twin = -1;
    g->handle = 0;
}

static void compare(generation *a, generation *b) {
    n_twins++;
    bool same = a->s.n == b->s.n;
    for (uint32_t i = 0; same && i < a->s.n; i++) same = a->s.tokens[i] == b->s.tokens[i];
    expect(same, "the same seed drew other tokens", a->handle);
}

/* What it was charged: a context's tokens once, in the first pass that computes them. */
static void check_usage(const generation *g) {
    realm_guest_usage u;
    int32_t st = realm_usage(g->handle, &u);
    if (!expect(st == 0, "usage", st)) return;
    expect(u.cached <= u.prompt, "cached tokens", (int32_t)u.cached);
    expect(u.completion == (g->rows ? 0 : g->asked), "tokens charged as drawn", (int32_t)u.completion);
    expect(g->alone ? u.prompt == g->base : u.prompt <= g->base, "tokens charged as prompt", (int32_t)u.prompt);
}

static void ended(generation *g, const realm_guest_event *e) {
    uint32_t drawn = g->s.n - g->base;
    g->ended = true;
    n_ended++;
    context *c = g->context >= 0 ? &contexts[g->context] : NULL;
    if (e->finish == REALM_END_ERROR) {
        expect(is_refusal(e->status), "a generation failed", e->status);
        g->cancelled = true;
    } else if (e->finish == REALM_END_CANCELLED) {
        expect(g->cancelled, "cancelled by nobody", 0);
    } else if (g->rows) {
        expect(e->finish == REALM_END_STOP, "the end of a forward pass", (int32_t)e->finish);
        uint32_t row = below(g->rows), at = g->s.n - g->rows + row + 1;
        realm_guest_logit_stats stats;
        int32_t st = realm_logits_stats(g->handle, row, &stats);
        if (expect(st == 0, "logits_stats", st)) {
            sequence *s = &g->s;
            s->n = at;
            put(s, &stats.best, 1, false);
            show(s, at);
        }
        if (row == g->rows - 1) {
            int32_t drew = realm_logits_sample(g->handle, row, 0, NULL);
            expect(drew == stats.best, "logits_sample", drew);
        }
    } else {
        expect(e->finish == REALM_END_LENGTH, "the end of a generation", (int32_t)e->finish);
        if (g->mode != REALM_MODE_PIPE) expect(drawn == g->asked, "how many tokens", (int32_t)drawn);
    }
    if (g->mode == REALM_MODE_AHEAD && !g->cancelled) return; /* may be rewound until it is confirmed */
    if (!g->cancelled) check_usage(g);
    if (c && !g->rows) {
        int32_t got[256];
        int32_t n = realm_context_get_tokens(c->handle, 0, got, 256);
        if (g->mode == REALM_MODE_PIPE && n >= (int32_t)g->base) put(&g->s, got + g->s.n, (uint32_t)n - g->s.n, false);
        c->s = g->s;
        check_tokens(c->handle, &c->s);
    }
    if (c) c->running = -1;
    g->context = -1;
    if (g->rows || g->drawn) return;
    show(&g->s, g->base);
}

static void event(const realm_guest_event *e) {
    generation *g = NULL;
    for (int i = 0; i < GENERATIONS; i++)
        if (generations[i].handle && generations[i].handle == e->handle) g = &generations[i];
    if (!expect(g && !g->ended, "an event of nothing", e->handle)) return;
    if (e->kind == REALM_EVENT_KIND_END) {
        ended(g, e);
        if (g->twin >= 0 && generations[g->twin].ended && !g->cancelled && !generations[g->twin].cancelled)
            compare(g, &generations[g->twin]);
    } else if (expect(g->mode != REALM_MODE_PIPE && !g->rows && g->s.n < 250, "a token of this", e->handle)) {
        put(&g->s, &e->token, 1, false);
    }
}

static bool runs(void) {
    for (int i = 0; i < GENERATIONS; i++)
        if (generations[i].handle && !generations[i].ended) return true;
    return false;
}

static void look(void) {
    realm_guest_event e[8];
    char text[256];
    uint32_t at = below(GENERATIONS);
    generation *g = below(2) && generations[at].handle ? &generations[at] : NULL;
    static const int32_t WAITS[] = {0, 1, 3, 20};
    int32_t n, timeout = WAITS[below(4)];
    if (!g && below(2) && has_ring) {
        n = realm_ring_wait(timeout);
        if (!runs() && n == REALM_E_NOT_FOUND) return;
        if (!expect(n >= 0, "ring_wait", n)) return;
        expect(ring.head.head - ring.head.tail == (uint32_t)n, "events of a ring", n);
        while (ring.head.tail != ring.head.head) event(&ring.events[ring.head.tail++ % 16]);
        ring.head.text_tail = ring.head.text_head;
        return;
    }
    n = realm_wait(g ? g->handle : 0, e, 1 + below(8), text, sizeof text, timeout);
    if (g && g->ended) {
        expect(n == REALM_E_CLOSED, "wait behind the end", n);
        return;
    }
    if (!g && !runs()) {
        expect(n == REALM_E_NOT_FOUND, "wait for nothing", n);
        return;
    }
    if (!expect(n >= 0, "wait", n)) return;
    for (int32_t i = 0; i < n; i++) {
        expect(!g || e[i].handle == g->handle, "an event of another", e[i].handle);
        event(&e[i]);
    }
}

/* Confirms what was seen, or takes some of it back. */
static void steer(void) {
    generation *g = &generations[below(GENERATIONS)];
    if (!g->handle || g->mode != REALM_MODE_AHEAD || g->cancelled) return;
    uint32_t seen = g->s.n - g->base;
    if (below(3)) {
        uint32_t n = g->confirmed + below(seen - g->confirmed + 1);
        if (g->ended && below(2)) n = seen;
        int32_t st = realm_confirm(g->handle, n);
        expect(st == 0, "confirm", st);
        g->confirmed = n;
        if (g->ended && n == seen) {
            show(&g->s, g->base);
            if (g->context >= 0) {
                contexts[g->context].s = g->s;
                contexts[g->context].running = -1;
                check_tokens(contexts[g->context].handle, &g->s);
                g->context = -1;
            }
            int32_t closed = realm_close(g->handle);
            expect(closed == 0, "close", closed);
            g->handle = 0;
        }
        return;
    }
    uint32_t keep = g->confirmed + below(seen - g->confirmed + 1), room = g->asked - keep;
    int32_t tokens[4];
    uint32_t n = room ? below(room < 4 ? room + 1 : 4) : 0;
    for (uint32_t i = 0; i < n; i++) tokens[i] = (int32_t)(RESERVED + below(VOCABULARY - RESERVED));
    int32_t st = realm_rewind(g->handle, keep, tokens, n);
    if (!expect(st == 0, "rewind", st)) return;
    n_rewinds++;
    g->s.n = g->base + keep;
    put(&g->s, tokens, n, true);
    g->confirmed = keep + n;
    if (g->ended) n_ended--;
    g->ended = false;
}

static void twins(void) {
    context *c = idle();
    int32_t k = free_context();
    if (!c || k < 0 || c->s.n == 0) return;
    int32_t h = realm_context_new();
    if (!expect(h > 0, "a context", h)) return;
    int32_t st = realm_context_append(h, c->s.tokens, c->s.n);
    expect(st == (int32_t)c->s.n, "append", st);
    contexts[k] = (context){.handle = h, .running = -1};
    contexts[k].s = c->s;
    uint64_t seed = state;
    int32_t a = begin(c, REALM_MODE_EVENTS, 0.9f, seed), b = begin(&contexts[k], REALM_MODE_EVENTS, 0.9f, seed);
    if (a < 0 || b < 0) return;
    generations[a].twin = b;
    generations[b].twin = a;
}

/* ---- beside them ---- */

static char values[4][64];
static int32_t lengths[4] = {-1, -1, -1, -1};

static void store(void) {
    char key[40], got[64];
    uint32_t i = below(4), what = below(4);
    size_t n = name_of(key, i);
    if (what == 0) {
        uint32_t len = below(64);
        for (uint32_t k = 0; k < len; k++) got[k] = (char)below(256);
        int32_t st = realm_store_put(key, n, got, len);
        if (is_refusal(st) || is_lost(st) || !expect(st >= 0, "store_put", st)) return;
        lengths[i] = (int32_t)len;
        for (uint32_t k = 0; k < len; k++) values[i][k] = got[k];
    } else if (what == 1) {
        int32_t st = realm_store_delete(key, n);
        if (is_refusal(st)) return;
        if (is_lost(st)) lengths[i] = -1;
        expect(lengths[i] < 0 ? st == REALM_E_NOT_FOUND : st >= 0, "store_delete", st);
        lengths[i] = -1;
    } else {
        int32_t st = realm_store_get(key, n, got, sizeof got);
        if (is_refusal(st)) return;
        if (is_lost(st)) lengths[i] = -1;
        if (!expect(lengths[i] < 0 ? st == REALM_E_NOT_FOUND : st == lengths[i], "store_get", st)) return;
        for (int32_t k = 0; k < st; k++)
            if (!expect(got[k] == values[i][k], "a stored value", k)) return;
    }
}

static void tensors(void) {
    uint64_t dims[] = {2 + below(6), 4};
    int32_t t[3] = {0};
    float in[32], sum[32];
    uint32_t n = (uint32_t)dims[0] * 4;
    for (int i = 0; i < 3; i++)
        if ((t[i] = realm_tensor_new(dims, 2)) < 0) {
            expect(is_refusal(t[i]), "tensor_new", t[i]);
            for (int k = 0; k < i; k++) realm_close(t[k]);
            return;
        }
    for (uint32_t i = 0; i < n; i++) in[i] = (float)below(100);
    expect(realm_tensor_write(t[0], 0, in, n) >= 0, "tensor_write", 0);
    expect(realm_tensor_write(t[1], 4, in, n - 4) >= 0, "tensor_write", 1);
    realm_guest_tensor_op op = {.kind = REALM_TENSOR_OP_ADD, .out = t[2], .a = t[0], .b = t[1]};
    int32_t st = realm_tensor_run(&op, 1);
    if (!is_refusal(st) && expect(st >= 0, "tensor_run", st)) {
        st = realm_tensor_read(t[2], 0, sum, n);
        if (!is_refusal(st) && expect(st >= 0, "tensor_read", st))
            for (uint32_t i = 0; i < n; i++)
                if (!expect(sum[i] == in[i] + (i < 4 ? 0 : in[i - 4]), "a sum", (int32_t)i)) break;
    }
    for (int i = 0; i < 3; i++)
        if (below(4)) expect(realm_close(t[i]) == 0, "close of a tensor", t[i]); /* some are left to the end */
}

static void others(void) {
    char text[64];
    static const realm_sampler_stage stage = {.kind = REALM_STAGE_TEMPERATURE, .a = 0.5f};
    int32_t a = realm_sampler_new(&stage, 1, state), b = a > 0 ? realm_sampler_fork(a) : 0;
    if (!is_refusal(a) && expect(a > 0, "sampler_new", a)) expect(realm_close(a) == 0, "close", a);
    if (b > 0 && below(2)) realm_close(b);
    if (below(4) == 0) {
        int32_t g = realm_grammar_compile(REALM_GRAMMAR_REGEX, REALM_LITERAL("[abc]+"));
        if (!is_refusal(g) && expect(g > 0, "grammar_compile", g) && below(2)) realm_close(g);
    }
    if (below(8) == 0) {
        realm_generate_options o = {.size = sizeof o, .set = REALM_SET_MAX_TOKENS, .max_tokens = 1 + below(4)};
        int32_t n = realm_host_generate(0, REALM_LITERAL("abc"), &o, text, sizeof text);
        if (!is_refusal(n)) expect(n >= 0, "realm_host_generate", n);
    }
}

static void operation(void) {
    switch (below(26)) {
    case 0: open_context(0); break;
    case 1: open_context(1); break;
    case 2: change_context(0); break;
    case 3: change_context(below(4)); break;
    case 4: {
        context *c = &contexts[below(CONTEXTS)];
        if (!c->handle || below(3)) break;
        expect(realm_close(c->handle) == 0, "close of a context", c->handle);
        if (c->running >= 0) generations[c->running].context = -1;
        c->handle = 0;
        break;
    }
    case 5: save_or_open(below(3)); break;
    case 6:
    case 7: {
        context *c = idle();
        if (c) begin(c, below(3), 0, 0);
        break;
    }
    case 8: begin(NULL, below(2) * 2, 0, 0); break;
    case 9: forward(); break;
    case 10: {
        generation *g = &generations[below(GENERATIONS)];
        if (!g->handle || below(3)) break;
        g->cancelled = true;
        expect(realm_cancel(g->handle) == 0, "cancel", g->handle);
        break;
    }
    case 11: {
        generation *g = &generations[below(GENERATIONS)];
        if (g->handle && (g->ended || below(4) == 0)) close_generation(g);
        break;
    }
    case 12: store(); break;
    case 13: tensors(); break;
    case 14: others(); break;
    case 15: twins(); break;
    case 16: steer(); break;
    default: look();
    }
}

static int32_t number(const char **at) {
    int32_t n = 0;
    while (**at >= '0' && **at <= '9') n = n * 10 + (*(*at)++ - '0');
    while (**at == ' ') (*at)++;
    return n;
}

REALM_EXPORT(realm_main) int32_t realm_main(void) {
    char text[64] = "";
    const char *at = text;
    int32_t n = realm_input(REALM_LITERAL("text"), text, sizeof text - 1);
    if (n < 0) return n;
    mine = state = (uint64_t)(uint32_t)number(&at);
    state = state * 977 + 1;
    int32_t ops = number(&at), ending = number(&at);
    lossy = number(&at);
    ring.head = (realm_event_ring){.n_slots = 16, .text_bytes = 1024};
    has_ring = below(2) && realm_ring_set(&ring.head, sizeof ring) == 0;
    for (int32_t i = 0; i < ops && !wrong; i++) operation();
    realm_text t = REALM_TEXT_IN(out);
    realm_text_puts(&t, "N ");
    realm_text_int(&t, n_ended);
    realm_text_putc(&t, ' ');
    realm_text_int(&t, n_rewinds);
    realm_text_putc(&t, ' ');
    realm_text_int(&t, n_twins);
    realm_text_putc(&t, ' ');
    realm_text_int(&t, refused);
    realm_text_putc(&t, '\n');
    realm_text_emit(&t);
    if (ending == 1) __builtin_trap();
    if (ending == 2) return REALM_E_DENIED;
    while (ending == 3 && realm_wait(0, &(realm_guest_event){0}, 1, out, 256, 1000) != REALM_E_CANCELLED) continue;
    char name[40]; /* what is kept beyond this request */
    for (uint32_t i = 0; i < 4; i++) {
        size_t len = name_of(name, i);
        if (i < 2 && is_saved[i]) realm_context_drop(name, len);
        if (lengths[i] >= 0) realm_store_delete(name, len);
    }
    return 0;
}
