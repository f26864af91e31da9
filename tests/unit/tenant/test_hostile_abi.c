/* Pointers and handles that lie, for every call of the table in tenant/host/abi.h, by both twins.
 *
 * The cases are made from the table: a declaration says which parameter is a pointer that is read or written, which is
 * a length, which is a handle. Each case makes the handles it needs, calls once and returns what the call returned:
 *
 *   control     everything as it should be                         must succeed
 *   touch       the same; did the call write to this pointer?
 *   past, across, wrap, high    the pointer's bytes are not all in the memory      must fail where touched or read
 *   endless     the length is 2^32 - 1, or 2^64 - 1                must fail for what is read
 *   end         the memory's end, nothing to read or write         anything but a crash
 *   fits        what is written ends with the memory               as control
 *   forged      handles never given out, closed, of another kind   must fail
 *
 * The last bytes of the memory are a pattern that must have survived every call that failed. A new call is covered once
 * it is in the table; where its control fails this test asks for what it needs in CONTENTS, VALUES or `recipe`. */
#include "tenant/client.h"
#include "tenant/host/abi.h"
#include "tenant/wasm_writer.h"

#define CANARY_AT (WASM_PAGE - 8)
#define CANARY UINT64_C(0xa5a5a5a5a5a5a5a5)
#define FILL 0x5a
#define FIELD_AT 0u
#define EVENTS_AT 45056u
#define TEXT_AT 49152u
#define OUT_AT(i) (16384u + 4096u * (i))
#define R_TOUCHED (-97)
#define R_CANARY (-98)
#define PARAMS_MAX 12u
#define TOGETHER 16u
#define CALLS_TOGETHER 8u
#if defined(__SANITIZE_THREAD__) /* compiles modules at a hundredth of the speed, and no two threads meet here */
#define CALLS_STEP (CALLS_TOGETHER * 4)
#define ATTACKS_LEAST 40u
#define STOCK_ROUNDS 1
#else
#define CALLS_STEP CALLS_TOGETHER
#define ATTACKS_LEAST 200u
#define STOCK_ROUNDS 2
#endif

/* ---- the table, as the cases need it ---- */

typedef struct param {
    char name[32], type[40];
    char letter;
    bool pointer, reads, length, handle;
} param;

typedef struct callee {
    const char *name, *letters, *declaration;
    param p[PARAMS_MAX];
    size_t n;
} callee;

#define ROW(group, id, types, flags, c_params, text) {.name = #id, .letters = types, .declaration = #c_params},
static callee CALLS[] = {REALM_ABI_CALLS(ROW)};
#undef ROW
#define N_CALLS REALM_ARRAY_LEN(CALLS)

/* What a pointer of this name should point at, and its length in the call's own units. */
static const int32_t TOKENS[] = {260, 261, 262};
static const uint64_t DIMS[] = {2, 8};
static const float ZEROS[64];
static const realm_generate_options OPTIONS = {.size = sizeof OPTIONS,
                                               .set = REALM_SET_MAX_TOKENS | REALM_SET_FLAGS,
                                               .max_tokens = 2,
                                               .flags = REALM_GENERATE_IGNORE_END};
static const realm_generate_options AHEAD = {.size = sizeof AHEAD,
                                             .set = REALM_SET_MAX_TOKENS | REALM_SET_FLAGS,
                                             .max_tokens = 8,
                                             .flags = REALM_GENERATE_IGNORE_END,
                                             .run_ahead = 4};
static const realm_sampler_stage STAGES[] = {{.kind = REALM_STAGE_TEMPERATURE, .a = 1},
                                             {.kind = REALM_STAGE_TOP_K, .n = 5}};
static const realm_bias BIAS[] = {{260, 1}, {261, 2}};
static const realm_event_ring RING[12] = {{.n_slots = 4, .text_bytes = 64}};
static const unsigned char BITS[40] = {255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255,
                                       255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255,
                                       255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255};
typedef struct content {
    const char *call, *param;
    const void *bytes;
    size_t size, count;
    uint64_t at; /* where it was put */
} content;
#define STRING(call, param, s) {call, param, s, sizeof s - 1, sizeof s - 1, 0}
#define ARRAY(call, param, a) {call, param, a, sizeof a, REALM_ARRAY_LEN(a), 0}
static content CONTENTS[] = {
    STRING("prompt_chat", "messages", "[{\"role\":\"user\",\"content\":\"ab\"}]"),
    STRING(NULL, "tools", "[]"),
    STRING("input", "name", "text"),
    STRING("model_find", "name", "tiny"),
    STRING(NULL, "name", "saved"),
    STRING("grammar_compile", "text", "abc"),
    STRING(NULL, "text", "abc abc"),
    STRING("realm_host_generate", "prompt", "abc abc"),
    STRING(NULL, "key", "key"),
    STRING("store_put", "value", "value"),
    STRING("store_list", "prefix", "ke"),
    STRING("store_list", "after", "aa"),
    ARRAY(NULL, "tokens", TOKENS),
    ARRAY(NULL, "dims", DIMS),
    ARRAY(NULL, "stages", STAGES),
    ARRAY(NULL, "bias", BIAS),
    {NULL, "options", &OPTIONS, sizeof OPTIONS, 1, 0},
    {"", "ahead", &AHEAD, sizeof AHEAD, 1, 0}, /* of the recipe below alone */
    {NULL, "ring", RING, sizeof RING, sizeof RING, 0},
    {NULL, "bits", BITS, sizeof BITS, sizeof BITS, 0},
    {NULL, "a", ZEROS, 16, 16, 0},
    {NULL, "b", ZEROS, 16, 16, 0},
    {NULL, "values", ZEROS, 16, 4, 0},
    {NULL, "ops", ZEROS, sizeof ZEROS, 2, 0},
    {NULL, "image", ZEROS, sizeof ZEROS, sizeof ZEROS, 0},
};

/* Values of plain parameters, and lengths of what is written; 0 and 64 where nothing is said. */
static const struct {
    const char *call, *param;
    uint64_t value;
} VALUES[] = {
    {NULL, "level", 1},
    {NULL, "reason", 1},
    {NULL, "timeout_ms", 1000},
    {NULL, "token", TINY_PIECE(4)},
    {"logits_top", "k", 4},
    {NULL, "kind", REALM_GRAMMAR_REGEX},
    {NULL, "n_rows", 1},
    {NULL, "n_tokens", 1},
    {"candle_matmul", "m", 2},
    {"candle_matmul", "k", 2},
    {"candle_matmul", "n", 2},
    {"tensor_read", "n", 4},
    {"logits_read", "max", 512},
    {"input", "max", 4096},
    {"store_get", "max", 256},
    {NULL, "n_head", 1},
    {NULL, "n_kv_head", 1},
    {NULL, "head_dim", 8},
    {NULL, "scale_bits", 0x3f800000},
    {"ring_set", "len", sizeof RING},
};

/* Calls whose control cannot succeed here, and why. */
static const struct {
    const char *call, *why;
} EXCUSED[] = {
    {"realm_store_model", "a GGUF image does not fit in the test's one page"},
    {"realm_remove_model", "needs a stored model"},
    {"realm_get_tensor", "needs a stored model, or read_weights"},
    {"tensor_weight", "the names of weights are the model's"},
    {"tensor_run", "its operations name handles: tests of their own"},
    {"attention_forward", "five tensors of shapes that fit: tests of their own"},
    {"tensor_logits", "needs a tensor of the vocabulary's width"},
    {"context_open", "needs a saved context"},
    {"context_drop", "needs a saved context"},
    {"store_get", "needs a key"},
    {"store_delete", "needs a key"},
    {"ring_wait", "needs a ring"},
    {"rewind", "the generation may have ended"},
    {"grammar_accept", "of these tokens it may allow none"},
    {"memory64_load_layer", "needs a streamed model"},
    {"memory64_load_tensor", "needs a streamed model"},
    {"memory64_unload_layer", "needs a streamed model"},
    {"memory64_get_stats", "needs a streamed model"},
};

static bool excused(const char *call) {
    for (size_t i = 0; i < REALM_ARRAY_LEN(EXCUSED); i++)
        if (!strcmp(EXCUSED[i].call, call)) return true;
    return false;
}

static const content *content_of(const char *call, const char *name) {
    for (size_t i = 0; i < REALM_ARRAY_LEN(CONTENTS); i++)
        if (!strcmp(CONTENTS[i].param, name) && (!CONTENTS[i].call || !strcmp(CONTENTS[i].call, call)))
            return &CONTENTS[i];
    return NULL;
}

static bool value_of(const char *call, const char *name, uint64_t *out) {
    for (size_t i = 0; i < REALM_ARRAY_LEN(VALUES); i++)
        if (!strcmp(VALUES[i].param, name) && (!VALUES[i].call || !strcmp(VALUES[i].call, call))) {
            *out = VALUES[i].value;
            return true;
        }
    return false;
}

static bool is_handle(const param *p) {
    static const char *const NAMES[] = {"prompt", "context", "generation", "handle", "sampler", "grammar", "tensor",
                                        "q",      "k",       "v",          "mask",   "out",     "model"};
    if (strcmp(p->type, "int32_t") != 0) return false;
    for (size_t i = 0; i < REALM_ARRAY_LEN(NAMES); i++)
        if (!strcmp(NAMES[i], p->name)) return true;
    return false;
}

/* "(const char *name, size_t len)" */
static void parse(callee *c) {
    char text[512], *save = NULL;
    snprintf(text, sizeof text, "%s", c->declaration + 1);
    text[strlen(text) - 1] = 0;
    if (!strcmp(text, "void")) return;
    for (char *part = strtok_r(text, ",", &save); part; part = strtok_r(NULL, ",", &save)) {
        param *p = &c->p[c->n];
        char *name = part + strlen(part);
        while (name > part && name[-1] != ' ' && name[-1] != '*') name--;
        while (*part == ' ') part++;
        snprintf(p->name, sizeof p->name, "%s", name);
        char *last = name;
        while (last > part && last[-1] == ' ') last--;
        snprintf(p->type, sizeof p->type, "%.*s", (int)(last - part), part);
        p->letter = c->letters[c->n];
        p->pointer = strchr(p->type, '*') != NULL;
        p->reads = p->pointer && !strncmp(p->type, "const ", 6);
        p->length = !strcmp(p->type, "size_t");
        p->handle = is_handle(p);
        c->n++;
    }
    assert_int_equal(c->n, strlen(c->letters));
}

/* Bytes of one element that a pointer is written with; 0: unknown here. */
static size_t unit_of(const param *p) {
    static const struct {
        const char *type;
        size_t size;
    } UNITS[] = {{"char *", 1},
                 {"void *", 1},
                 {"int32_t *", 4},
                 {"float *", 4},
                 {"int64_t *", 8},
                 {"realm_guest_event *", sizeof(realm_guest_event)},
                 {"realm_guest_usage *", sizeof(realm_guest_usage)},
                 {"realm_guest_token *", sizeof(realm_guest_token)},
                 {"realm_guest_context *", sizeof(realm_guest_context)},
                 {"realm_guest_logit_stats *", sizeof(realm_guest_logit_stats)},
                 {"realm_guest_tensor *", sizeof(realm_guest_tensor)}};
    for (size_t i = 0; i < REALM_ARRAY_LEN(UNITS); i++)
        if (!strcmp(UNITS[i].type, p->type)) return UNITS[i].size;
    return 0;
}

/* The length that belongs to a pointer: the parameter behind it, where that is one. */
static const param *length_of(const callee *c, size_t i) {
    return i + 1 < c->n && c->p[i + 1].length ? &c->p[i + 1] : NULL;
}

/* How many elements are written: by the length behind the pointer, or that of the list before it. */
static uint64_t count_of(const callee *c, size_t i, const uint64_t *args) {
    if (length_of(c, i)) return args[i + 1];
    if (!strcmp(c->name, "candle_matmul")) return 4; /* m * n */
    return i > 0 && c->p[i - 1].length ? args[i - 1] : 1;
}

static int find_call(const char *name) {
    for (size_t i = 0; i < N_CALLS; i++)
        if (!strcmp(CALLS[i].name, name)) return (int)i;
    return -1;
}

/* ---- the cases ---- */

typedef enum attack {
    CONTROL,
    TOUCH,
    PAST,
    ACROSS,
    WRAP,
    HIGH,
    ENDLESS,
    END,
    FITS,
    NEVER,
    NEGATIVE,
    CLOSED,
    KIND
} attack;
static const char *const ATTACKS[] = {"control", "touch", "past",  "across",   "wrap",   "high",           "endless",
                                      "end",     "fits",  "never", "negative", "closed", "of another kind"};

typedef struct hostile {
    const callee *c;
    size_t p;
    attack a;
    int32_t result;
} hostile;

typedef struct suite {
    wasm_writer w;
    hostile *cases;
    size_t n, cap;
} suite;

/* Calls `name` with constant arguments, or those locals whose bit in `from_local` is set; leaves its result. */
static bool plain_call(suite *s, realm_buf *b, const char *name, unsigned from_local, const uint64_t *args) {
    int at = find_call(name);
    if (at < 0) return false;
    for (size_t i = 0; i < strlen(CALLS[at].letters); i++)
        if (from_local >> i & 1)
            wasm_get(b, (uint32_t)args[i]);
        else
            wasm_const(b, CALLS[at].letters[i], s->w.wide, args[i]);
    wasm_call(b, (uint32_t)at);
    return true;
}

static uint64_t at_of(const char *call, const char *name) { return content_of(call, name)->at; }

/* Code that leaves a fresh handle for a parameter of that name in `local`; `scratch` is a further local. */
static void recipe(suite *s, realm_buf *b, const callee *c, const char *name, uint32_t local, uint32_t scratch) {
    bool forward = !strncmp(c->name, "logits_", 7) || !strcmp(c->name, "hidden_read");
    bool ahead = !strcmp(c->name, "confirm") || !strcmp(c->name, "rewind");
    bool ok = false;
    if (!strcmp(name, "model")) {
        wasm_const(b, 'i', false, 0);
        ok = true;
    } else if (!strcmp(name, "prompt")) {
        ok = plain_call(s, b, "prompt_text", 0, (uint64_t[]){at_of("", "text"), 7, 0});
    } else if (!strcmp(name, "context") || (!strcmp(name, "handle") && forward)) {
        ok = plain_call(s, b, "context_new", 0, NULL);
        if (ok) {
            wasm_set(b, local);
            if (plain_call(s, b, "context_append", 1, (uint64_t[]){local, at_of("", "tokens"), 3})) wasm_byte(b, 0x1a);
            wasm_get(b, local);
        }
        if (ok && forward) {
            wasm_set(b, scratch);
            ok = plain_call(s, b, "forward", 1, (uint64_t[]){scratch, at_of("", "tokens"), 2, 1, REALM_FORWARD_HIDDEN});
            wasm_set(b, local);
            if (plain_call(s, b, "wait", 1, (uint64_t[]){local, EVENTS_AT, 8, TEXT_AT, 4096, (uint64_t)-1}))
                wasm_byte(b, 0x1a);
            wasm_get(b, local);
        }
    } else if (!strcmp(name, "generation") || !strcmp(name, "handle")) {
        ok = plain_call(s, b, "prompt_text", 0, (uint64_t[]){at_of("", "text"), 7, 0});
        wasm_set(b, scratch);
        ok = ok && plain_call(s, b, "generate", 1,
                              (uint64_t[]){scratch, at_of("", ahead ? "ahead" : "options"),
                                           ahead ? REALM_MODE_AHEAD : REALM_MODE_EVENTS});
    } else if (!strcmp(name, "sampler")) {
        ok = plain_call(s, b, "sampler_new", 0, (uint64_t[]){at_of("", "stages"), 2, 1});
    } else if (!strcmp(name, "grammar")) {
        ok = plain_call(s, b, "grammar_compile", 0,
                        (uint64_t[]){REALM_GRAMMAR_REGEX, at_of("grammar_compile", "text"), 3});
    } else if (strchr("qkvmot", name[0])) {
        ok = plain_call(s, b, "tensor_new", 0, (uint64_t[]){at_of("", "dims"), 2});
    }
    if (!ok) wasm_const(b, 'i', false, 0); /* its group is not in the table */
    wasm_set(b, local);
}

static uint64_t good_value(const callee *c, size_t i) {
    const param *p = &c->p[i];
    uint64_t v = 0;
    if (p->pointer) {
        const content *k = content_of(c->name, p->name);
        return k ? k->at : OUT_AT(i % 7);
    }
    if (value_of(c->name, p->name, &v)) return v;
    if (!p->length) return 0;
    const content *k = i > 0 && c->p[i - 1].pointer ? content_of(c->name, c->p[i - 1].name) : NULL;
    return k ? k->count : 64;
}

static void add(suite *s, const callee *c, size_t at, attack a) {
    const uint64_t all = s->w.wide ? UINT64_MAX : UINT32_MAX;
    const uint32_t result = PARAMS_MAX, scratch = PARAMS_MAX + 1;
    realm_buf b;
    uint64_t args[PARAMS_MAX];
    realm_buf_init(&b, 1u << 16);
    for (size_t i = 0; i < c->n; i++) {
        args[i] = good_value(c, i);
        if (c->p[i].handle) recipe(s, &b, c, c->p[i].name, (uint32_t)i, scratch);
    }
    bool constant = false; /* instead of the local with the handle */
    size_t unit = at < c->n ? unit_of(&c->p[at]) : 0;
    switch (a) {
    case PAST: args[at] = WASM_PAGE + 16; break;
    case ACROSS: args[at] = WASM_PAGE - 1; break;
    case WRAP: args[at] = all; break;
    case HIGH: args[at] |= UINT64_C(1) << 32; break;
    case ENDLESS: args[at + 1] = all; break;
    case END:
        args[at] = WASM_PAGE;
        if (length_of(c, at)) args[at + 1] = 0;
        break;
    case FITS: args[at] = WASM_PAGE - unit * count_of(c, at, args); break;
    case NEVER:
        args[at] = 0x3fffffc0;
        constant = true;
        break;
    case NEGATIVE:
        args[at] = UINT32_MAX;
        constant = true;
        break;
    case CLOSED:
        (void)plain_call(s, &b, "close", 1, (uint64_t[]){at});
        wasm_byte(&b, 0x1a);
        break;
    case KIND:
        recipe(s, &b, c, !strcmp(c->p[at].name, "prompt") ? "generation" : "prompt", (uint32_t)at, scratch);
        break;
    default: break;
    }
    for (size_t i = 0; i < c->n; i++)
        if (c->p[i].handle && !(constant && i == at))
            wasm_get(&b, (uint32_t)i);
        else
            wasm_const(&b, c->p[i].letter, s->w.wide, args[i]);
    wasm_call(&b, (uint32_t)(c - CALLS));
    wasm_set(&b, result);
    if (a == TOUCH) {
        wasm_address(&b, &s->w, args[at]);
        wasm_load64(&b);
        wasm_const(&b, 'l', false, UINT64_C(0x5a5a5a5a5a5a5a5a));
    } else {
        wasm_address(&b, &s->w, CANARY_AT);
        wasm_load64(&b);
        wasm_const(&b, 'l', false, CANARY);
    }
    wasm_byte(&b, 0x52); /* i64.ne */
    if (a != TOUCH) {    /* and the call failed */
        wasm_get(&b, result);
        wasm_const(&b, 'i', false, 0);
        wasm_byte(&b, 0x48); /* i32.lt_s */
        wasm_byte(&b, 0x71); /* i32.and */
    }
    wasm_byte(&b, 0x04); /* if */
    wasm_byte(&b, 0x40);
    wasm_const(&b, 'i', false, (uint64_t)(int64_t)(a == TOUCH ? R_TOUCHED : R_CANARY));
    wasm_byte(&b, 0x0f); /* return */
    wasm_byte(&b, 0x0b);
    wasm_get(&b, result);
    if (s->n == s->cap) s->cases = realloc(s->cases, (s->cap = s->cap * 2 + 64) * sizeof *s->cases);
    assert_int_equal(wasm_case(&s->w, PARAMS_MAX + 2, &b), s->n);
    s->cases[s->n++] = (hostile){.c = c, .p = at, .a = a};
    realm_buf_release(&b);
}

static void add_calls(suite *s, size_t first, size_t n) {
    for (size_t k = first; k < REALM_MIN(first + n, N_CALLS); k++) {
        const callee *c = &CALLS[k];
        add(s, c, 0, CONTROL);
        for (size_t i = 0; i < c->n; i++) {
            const param *p = &c->p[i];
            if (p->pointer) {
                if (!content_of(c->name, p->name)) add(s, c, i, TOUCH);
                add(s, c, i, PAST);
                add(s, c, i, ACROSS);
                add(s, c, i, WRAP);
                if (s->w.wide) add(s, c, i, HIGH);
                if (length_of(c, i)) add(s, c, i, ENDLESS);
                add(s, c, i, END);
                if (!p->reads && unit_of(p)) add(s, c, i, FITS);
            } else if (p->handle) {
                add(s, c, i, NEVER);
                add(s, c, i, NEGATIVE);
                if (strcmp(p->name, "model") != 0) {
                    add(s, c, i, CLOSED);
                    add(s, c, i, KIND);
                }
            }
        }
    }
}

/* ---- running them ---- */

/* What realm_main returned: the code itself, or 0. Anything but an orderly end (which exit and abort are) fails the
 * test. */
static int32_t returned(const client *c, const char *what, size_t number) {
    int value = 0;
    if (c->status == REALM_OK && c->finish != REALM_FINISH_ERROR) return 0;
    if (c->status != REALM_E_PROGRAM || strstr(c->error, "exited") || strstr(c->error, "abort"))
        return (int32_t)c->status;
    if (sscanf(c->error, "the program returned %d", &value) != 1) fail_msg("%s, case %zu: %s", what, number, c->error);
    return value;
}

static void start_case(client *c, realm_tenant *t, size_t number, char *input, size_t cap) {
    realm_run_params p = text_request();
    int n = snprintf(input, cap, "{\"text\":\"abc abc\",\"c\":\"%*s\"}", (int)number, "");
    assert_true(n > 0 && (size_t)n < cap);
    p.input = input;
    p.input_len = (size_t)n;
    begin(c, t, p);
}

typedef void (*case_done)(void *user, size_t number, int32_t result);

static void run_cases(realm_tenant *t, const char *what, size_t n, case_done done, void *user) {
    static client c[TOGETHER];
    static char input[1u << 16];
    for (size_t first = 0; first < n; first += TOGETHER) {
        size_t m = REALM_MIN(n - first, TOGETHER);
        for (size_t i = 0; i < m; i++) start_case(&c[i], t, first + i, input, sizeof input);
        for (size_t i = 0; i < m; i++) {
            follow(&c[i], 0);
            done(user, first + i, returned(&c[i], what, first + i));
            end(&c[i]);
        }
    }
}

static realm_tenant *tenant_of(const char *name, realm_buf *module) {
    realm_error err = {0};
    realm_tenant *t = tenant_with(name, NULL, NULL);
    if (realm_tenant_set_program(t, module->data, module->len, &err)) fail_msg("%s", err.text);
    realm_buf_release(module);
    return t;
}

static void keep_result(void *user, size_t number, int32_t result) { ((suite *)user)->cases[number].result = result; }

static int32_t result_of(const suite *s, const callee *c, size_t p, attack a) {
    for (size_t i = 0; i < s->n; i++)
        if (s->cases[i].c == c && s->cases[i].p == p && s->cases[i].a == a) return s->cases[i].result;
    return 0;
}

/* What is wrong with a case's result, or NULL. */
static const char *judge(const suite *s, const hostile *h) {
    const param *p = &h->c->p[h->p];
    int32_t control = result_of(s, h->c, 0, CONTROL);
    if (h->result == R_CANARY) return "wrote before it failed";
    if (h->a == CONTROL) return control < 0 && !excused(h->c->name) ? "does not work as it should be used" : NULL;
    if (control < 0) return NULL; /* it need not come as far as the pointer; it did not crash */
    bool used = p->reads || content_of(h->c->name, p->name) || result_of(s, h->c, h->p, TOUCH) == R_TOUCHED;
    switch (h->a) {
    case PAST:
    case ACROSS:
    case WRAP:
    case HIGH: return used && h->result >= 0 ? "was taken" : NULL;
    case ENDLESS: return p->reads && h->result >= 0 ? "was taken" : NULL;
    case FITS:
        /* What an excused call needs may be missing; room is not. */
        return h->result == REALM_E_RANGE || (h->result < 0 && !excused(h->c->name)) ? "was refused" : NULL;
    case NEVER:
    case NEGATIVE:
    case CLOSED: return h->result >= 0 ? "was taken" : NULL;
    case KIND: return h->result >= 0 && strcmp(h->c->name, "close") != 0 ? "was taken" : NULL;
    default: return NULL;
    }
}

/* Cases of some calls: a module and a tenant of their own, so that none takes long to compile. Adds to both counts. */
static void lie_to(size_t first, size_t n, bool wide, const unsigned char *data, size_t *attacks, size_t *wrong) {
    suite s = {0};
    size_t n_table;
    char name[32];
    const realm_import *table = realm_host_imports(&n_table);
    /* The table has every call for 32 bits, then every call for 64. */
    wasm_open(&s.w, table + (wide ? N_CALLS : 0), N_CALLS, wide);
    assert_string_equal(s.w.table[0].name, CALLS[0].name);
    assert_true(s.w.table[N_CALLS - 1].wide == wide);
    add_calls(&s, first, n);
    realm_buf module;
    wasm_finish(&s.w, (uint32_t)find_call("input"), FIELD_AT, data, WASM_PAGE, &module);
    snprintf(name, sizeof name, "lies%s-%zu", wide ? "64" : "", first);
    realm_tenant *t = tenant_of(name, &module);
    run_cases(t, "a lie", s.n, keep_result, &s);
    for (size_t i = 0; i < s.n; i++) {
        const hostile *h = &s.cases[i];
        const char *why = judge(&s, h);
        *attacks += h->a != CONTROL && h->a != TOUCH;
        if (!why) continue;
        print_error("%s(%s): %s %s: %d (%s)\n", h->c->name, h->c->n ? h->c->p[h->p].name : "", ATTACKS[h->a], why,
                    h->result, h->result < 0 ? realm_status_name((realm_status)h->result) : "");
        *wrong += 1;
    }
    free(s.cases);
    realm_tenant_release(t);
}

static void lies(bool wide) {
    static unsigned char data[WASM_PAGE];
    size_t attacks = 0, wrong = 0;
    uint64_t at = 64;
    memset(data, FILL, sizeof data);
    memset(data + CANARY_AT, 0xa5, 8);
    data[FIELD_AT] = 'c';
    for (size_t i = 0; i < REALM_ARRAY_LEN(CONTENTS); i++) {
        content *k = &CONTENTS[i];
        k->at = at;
        memcpy(data + at, k->bytes, k->size);
        at += (k->size + 15) / 16 * 16;
    }
    assert_true(at <= OUT_AT(0));
    for (size_t first = 0; first < N_CALLS; first += CALLS_STEP)
        lie_to(first, CALLS_TOGETHER, wide, data, &attacks, &wrong);
    assert_int_equal(wrong, 0);
    assert_true(attacks > ATTACKS_LEAST);
}

static void every_call_checks_what_it_is_given(void **state) {
    (void)state;
    lies(false);
}
static void and_so_do_the_64_bit_twins(void **state) {
    (void)state;
    lies(true);
}

/* ---- imports of stock toolchains: values from the edges, in every combination that chance brings ---- */

static uint64_t edge(uint32_t *rng) {
    static const uint64_t EDGES[] = {0,
                                     1,
                                     2,
                                     3,
                                     8,
                                     OUT_AT(0),
                                     OUT_AT(1),
                                     64,
                                     WASM_PAGE,
                                     WASM_PAGE - 1,
                                     WASM_PAGE - 8,
                                     WASM_PAGE + 1,
                                     0x7fffffff,
                                     0x80000000,
                                     0xfffffff8,
                                     0xffffffff};
    *rng = *rng * 1664525u + 1013904223u;
    return EDGES[(*rng >> 20) % REALM_ARRAY_LEN(EDGES)];
}

static void ignore_result(void *user, size_t number, int32_t result) {
    (void)user;
    (void)number;
    (void)result;
}

static void stock_imports_take_anything(void **state) {
    (void)state;
    size_t n_table;
    const realm_import *table = realm_host_imports(&n_table);
    wasm_writer w;
    static unsigned char data[WASM_PAGE];
    uint32_t rng = 1;
    realm_import *narrow = calloc(n_table, sizeof *narrow);
    size_t n = 0, first = N_CALLS;
    for (size_t i = 0; i < N_CALLS; i++) narrow[n++] = table[i];
    for (size_t i = 2 * N_CALLS; i < n_table; i++)
        if (!table[i].wide) narrow[n++] = table[i];
    assert_true(n > first);
    memset(data, 0, sizeof data);
    data[FIELD_AT] = 'c';
    wasm_open(&w, narrow, n, false);
    for (size_t i = first; i < n; i++)
        for (int round = 0; round < STOCK_ROUNDS; round++) {
            realm_buf b;
            realm_buf_init(&b, 1u << 16);
            for (int k = 0; k < 16; k++) {
                for (const char *p = narrow[i].params; *p; p++) wasm_const(&b, *p, false, edge(&rng));
                wasm_call(&b, (uint32_t)i);
                if (narrow[i].result != 'v') wasm_byte(&b, 0x1a); /* drop */
            }
            wasm_const(&b, 'i', false, 0);
            (void)wasm_case(&w, 1, &b);
            realm_buf_release(&b);
        }
    size_t n_cases = w.n_cases;
    realm_buf module;
    wasm_finish(&w, (uint32_t)find_call("input"), FIELD_AT, data, sizeof data, &module);
    realm_tenant *t = tenant_of("stock", &module);
    run_cases(t, "a stock import", n_cases, ignore_result, NULL);
    realm_tenant_release(t);
    free(narrow);
}

int main(int argc, char **argv) {
    if (is_compiler(argc, argv)) return compile(argv);
    for (size_t i = 0; i < N_CALLS; i++) parse(&CALLS[i]);
    if (open_runtime()) return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_call_checks_what_it_is_given),
        cmocka_unit_test(and_so_do_the_64_bit_twins),
        cmocka_unit_test(stock_imports_take_anything),
    };
    return close_runtime(cmocka_run_group_tests_name("hostile calls", tests, NULL, NULL));
}
