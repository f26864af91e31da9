/* One thing of the host's at a time that its client leaves behind, named by the request's field "text"; what holds
 * still says "!" first. */
#include "realm_guest.h"

static realm_guest_event events[4];
static char name[32], text[4096], value[64];

static realm_generate_options endless(void) {
    return (realm_generate_options){.size = sizeof(realm_generate_options),
                                    .set = REALM_SET_MAX_TOKENS | REALM_SET_FLAGS,
                                    .flags = REALM_GENERATE_IGNORE_END};
}

/* Until there is no more, or no use in it. */
static int32_t listen(int32_t g) {
    int32_t n = g;
    while (n > 0) n = realm_wait(g, events, 4, text, sizeof text, -1);
    return n;
}

static int32_t pipe(void) {
    realm_generate_options o = endless();
    return listen(realm_generate(realm_prompt_own(), &o, REALM_MODE_PIPE));
}

static int32_t by_events(void) {
    realm_generate_options o = endless();
    return listen(realm_generate(realm_prompt_own(), &o, REALM_MODE_EVENTS));
}

static int32_t ahead(void) {
    realm_generate_options o = endless();
    o.run_ahead = 8;
    return listen(realm_generate(realm_prompt_own(), &o, REALM_MODE_AHEAD));
}

static int32_t whole(void) {
    realm_generate_options o = endless();
    return realm_host_generate(0, REALM_LITERAL("abc"), &o, text, sizeof text);
}

/* A context that has its prompt computed. */
static int32_t computed(void) {
    int32_t c = realm_context_new(), n = c < 0 ? c : realm_context_append_prompt(c, realm_prompt_own());
    if (n < 0) return n;
    int32_t pass = realm_forward(c, NULL, 0, 1, 0);
    if (pass < 0) return pass;
    if ((n = realm_wait(pass, events, 1, NULL, 0, -1)) < 0 || (n = realm_close(pass)) < 0) return n;
    return c;
}

/* Decides on each token itself. */
static int32_t lockstep(void) {
    int32_t c = computed(), n = c;
    for (int32_t token = 5; n >= 0;) {
        int32_t pass = n = realm_forward(c, &token, 1, 1, 0);
        if (n >= 0) n = realm_wait(pass, events, 1, NULL, 0, -1);
        if (n >= 0) n = token = realm_logits_sample(pass, 0, 0, NULL);
        if (n >= 0) n = realm_close(pass);
        if (n >= 0) n = realm_context_truncate(c, 4);
    }
    return n;
}

/* Waits for a token that is not computed before another one is confirmed. */
static int32_t stalled(void) {
    realm_generate_options o = endless();
    o.run_ahead = 1;
    int32_t g = realm_generate(realm_prompt_own(), &o, REALM_MODE_AHEAD), n = g;
    if (n > 0) n = realm_wait(g, events, 1, text, sizeof text, -1);
    if (n > 0 && (n = realm_emit("!", 1)) >= 0) n = realm_wait(g, events, 1, text, sizeof text, -1);
    return n;
}

/* Another generation has come to an end that may be taken back. */
static int32_t parked_on(int32_t context) {
    realm_generate_options o = endless();
    o.max_tokens = 4;
    o.run_ahead = 8;
    if (context) {
        o.set |= REALM_SET_CONTEXT;
        o.context = context;
    }
    int32_t g = realm_generate(context ? 0 : realm_prompt_own(), &o, REALM_MODE_AHEAD), n = g;
    for (bool ended = false; n > 0 && !ended;) {
        n = realm_wait(g, events, 4, text, sizeof text, -1);
        for (int32_t i = 0; i < n; i++) ended |= events[i].kind == REALM_EVENT_KIND_END;
    }
    return n < 0 ? n : stalled();
}

static int32_t parked(void) { return parked_on(0); }

static int32_t lent(void) {
    int32_t c = computed();
    return c < 0 ? c : parked_on(c);
}

static int32_t saved(void) {
    int32_t c = computed(), n = c < 0 ? c : realm_context_save(c, REALM_LITERAL("kept"));
    return n < 0 ? n : stalled();
}

static int32_t tensors(void) {
    uint64_t dims[] = {64, 64};
    int32_t t = realm_tensor_new(dims, 2);
    if (t < 0) return t;
    realm_guest_tensor_op op = {.kind = REALM_TENSOR_OP_SCALE, .out = t, .a = t, .scale = 2};
    return realm_tensor_run(&op, 1);
}

static int32_t quick_job(void) {
    realm_emit("!", 1);
    return realm_store_put(REALM_LITERAL("key"), value, sizeof value);
}

static int32_t heavy_job(void) {
    realm_emit("!", 1);
    return realm_grammar_compile(REALM_GRAMMAR_REGEX, REALM_LITERAL("[a-z]{9}+"));
}

REALM_EXPORT(realm_main) int32_t realm_main(void) {
    static const struct {
        const char *name;
        int32_t (*fn)(void);
    } LEAVES[] = {{"pipe", pipe},         {"events", by_events}, {"ahead", ahead},         {"whole", whole},
                  {"lockstep", lockstep}, {"stalled", stalled},  {"parked", parked},       {"lent", lent},
                  {"saved", saved},       {"tensors", tensors},  {"quick job", quick_job}, {"heavy job", heavy_job}};
    int32_t n = realm_input(REALM_LITERAL("text"), name, sizeof name - 1);
    if (n < 0) return n;
    for (size_t k = 0; k < sizeof LEAVES / sizeof *LEAVES; k++) {
        size_t i = 0;
        while (LEAVES[k].name[i] && LEAVES[k].name[i] == name[i]) i++;
        if (LEAVES[k].name[i] == name[i]) return LEAVES[k].fn();
    }
    return REALM_E_NOT_FOUND;
}
