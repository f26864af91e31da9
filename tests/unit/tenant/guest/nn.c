/* Every call of wasi-nn, as it is meant and as it is not; emits "ok", or the line that failed. Then, for comparison
 * with what the engine makes of the same prompt: the answer of compute, and that of compute_single. */
#include "realm_guest.h"

#define NN(name) __attribute__((import_module("wasi_ephemeral_nn"), import_name(#name)))
NN(load) int32_t load(const void *builders, uint32_t n, int32_t encoding, int32_t target, uint32_t *graph);
NN(load_by_name) int32_t load_by_name(const char *name, uint32_t len, uint32_t *graph);
NN(load_by_name_with_config)
int32_t load_by_name_with_config(const char *name, uint32_t len, const char *config, uint32_t config_len,
                                 uint32_t *graph);
NN(init_execution_context) int32_t init_execution_context(uint32_t graph, uint32_t *context);
NN(set_input) int32_t set_input(uint32_t context, uint32_t index, const void *tensor);
NN(compute) int32_t compute(uint32_t context);
NN(compute_single) int32_t compute_single(uint32_t context);
NN(get_output) int32_t get_output(uint32_t context, uint32_t index, char *out, uint32_t max, uint32_t *written);
NN(get_output_single)
int32_t get_output_single(uint32_t context, uint32_t index, char *out, uint32_t max, uint32_t *written);
NN(fini_single) int32_t fini_single(uint32_t context);
NN(finalize_execution_context) int32_t finalize_execution_context(uint32_t context);
NN(unload) int32_t unload(uint32_t graph);

enum { INVALID = 1, ENCODING = 2, BUSY = 4, UNSUPPORTED = 6, TOO_LARGE = 7, END = 100, TOO_LONG = 102, NO_MODEL = 103 };
#define FAR ((void *)0xfffffff0)

static int failed_at;
#define CHECK(x)                                      \
    do {                                              \
        if (!(x) && !failed_at) failed_at = __LINE__; \
    } while (0)

typedef struct tensor {
    const uint32_t *dims;
    uint32_t n_dims, type;
    const void *data;
    uint32_t len;
} tensor;

static const uint32_t ONE[1] = {1};
static int32_t set(uint32_t context, uint32_t index, const char *text, uint32_t len) {
    tensor t = {ONE, 1, 3, text, len};
    return set_input(context, index, &t);
}

static char out[8192], piece[256];
static uint32_t graph, context, n;

static bool same(const char *a, const char *b, uint32_t len) {
    for (uint32_t i = 0; i < len; i++)
        if (a[i] != b[i]) return false;
    return true;
}

static void graphs(void) {
    uint32_t g = 99, c = 99, more[20];
    CHECK(load(0, 0, 6, 0, &g) == UNSUPPORTED && load(0, 0, 1, 0, &g) == ENCODING);
    CHECK(load_by_name(REALM_LITERAL("nobody's"), &g) == NO_MODEL);
    CHECK(load_by_name(FAR, 64, &g) == INVALID &&
          load_by_name(REALM_LITERAL("default"), (void *)0xfffffffe) == INVALID);
    CHECK(init_execution_context(0, &c) == INVALID); /* nothing is loaded yet */
    CHECK(load_by_name(REALM_LITERAL("tiny"), &g) == 0 && unload(g) == 0 && unload(g) == INVALID);
    CHECK(load_by_name_with_config(REALM_LITERAL("default"), REALM_LITERAL("[1]"), &g) != 0);
    CHECK(load_by_name_with_config(REALM_LITERAL("default"), REALM_LITERAL("{\"top-k\":"), &g) == ENCODING);
    CHECK(load_by_name_with_config(REALM_LITERAL("default"), REALM_LITERAL("{\"temp\":0,\"ctx-size\":64}"), &g) == 0);
    CHECK(init_execution_context(g, &c) == 0 && init_execution_context(77, &c) == INVALID);
    CHECK(set(c, 0, REALM_LITERAL("x")) == 0);
    CHECK(unload(g) == 0 && compute(c) == INVALID && set(c, 0, REALM_LITERAL("x")) == INVALID);
    for (n = 0; n < 20 && load_by_name(REALM_LITERAL("default"), &more[n]) == 0; n++) continue;
    CHECK(n == 16 && load_by_name(REALM_LITERAL("default"), &g) == BUSY);
    while (n > 0) CHECK(unload(more[--n]) == 0);
}

static void inputs(void) {
    static char long_text[40000];
    tensor t = {ONE, 1, 3, "x", 1};
    CHECK(set(99, 0, "x", 1) == INVALID && set(context, 7, "x", 1) == INVALID);
    CHECK(set_input(context, 0, FAR) == INVALID);
    t.data = FAR, t.len = 64;
    CHECK(set_input(context, 0, &t) == INVALID);
    t = (tensor){FAR, 64, 3, "x", 1};
    CHECK(set_input(context, 0, &t) == INVALID);
    t = (tensor){ONE, 1, 9, "x", 1};
    CHECK(set_input(context, 0, &t) == INVALID);
    CHECK(set(context, 0, "\xff\xfe", 2) == INVALID);
    CHECK(compute(context) == INVALID && compute_single(context) == INVALID); /* no prompt yet */
    for (unsigned i = 0; i < sizeof long_text; i++) long_text[i] = (char)('a' + i % 3);
    CHECK(set(context, 0, long_text, sizeof long_text) == 0); /* it is computing that says so */
    CHECK(compute(context) == TOO_LONG && compute_single(context) == TOO_LONG && compute(context) == TOO_LONG);
    CHECK(set(context, 1, REALM_LITERAL("{\"grammar\":\"root ::= x\"}")) == UNSUPPORTED);
    CHECK(set(context, 1, REALM_LITERAL("{\"embedding\":true}")) == UNSUPPORTED);
    CHECK(set(context, 1, REALM_LITERAL("{\"embedding\":false,\"image\":\"\",\"unknown\":[1]}")) == 0);
    CHECK(set(context, 1, REALM_LITERAL("{\"top-k\":\"many\"}")) == INVALID);
    CHECK(set(context, 1, REALM_LITERAL("not json")) == ENCODING);
}

static bool starts(const char *text, const char *with) {
    while (*with && *text == *with) text++, with++;
    return !*with;
}

static void whole(void) {
    CHECK(set(context, 1, REALM_LITERAL("{\"temp\":0,\"n-predict\":6,\"ignore-eos\":true,\"stream-stdout\":true}")) ==
          0);
    CHECK(set(context, 1, REALM_LITERAL("{\"n-predict\":0,\"seed\":\"x\"}")) == INVALID); /* none of it counts */
    CHECK(set(context, 0, REALM_LITERAL("abc abc")) == 0);
    CHECK(compute(context) == 0);
    CHECK(get_output(context, 0, out, sizeof out, &n) == 0 && n > 0);
    realm_emit(out, n);
    realm_emit(REALM_LITERAL("|"));
    uint32_t len = n;
    CHECK(get_output(context, 0, piece, 1, &n) == TOO_LARGE && n == len);
    CHECK(get_output(context, 0, FAR, 64, &n) == INVALID && get_output(context, 5, out, 64, &n) == INVALID);
    CHECK(get_output(context, 0, out, sizeof out, (uint32_t *)0xfffffffe) == INVALID);
    CHECK(get_output(context, 1, piece, sizeof piece, &n) == 0);
    piece[n] = 0;
    CHECK(starts(piece, "{\"input_tokens\": "));
    CHECK(same(piece + n - 19, "\"output_tokens\": 6}", 19));
    CHECK(set(context, 1, REALM_LITERAL("{\"n-predict\":0,\"stream-stdout\":true}")) == 0 && compute(context) == 0);
    CHECK(get_output(context, 0, out, sizeof out, &n) == 0 && n == 0);
    CHECK(set(context, 1, REALM_LITERAL("{\"stream-stdout\":1}")) == INVALID);
    CHECK(set(context, 1, REALM_LITERAL("{\"n-predict\":0}")) == 0);
}

static void single(void) {
    uint32_t total = 0;
    CHECK(set(context, 0, REALM_LITERAL("abc abc")) == 0);
    for (int i = 0; i < 6; i++) {
        CHECK(compute_single(context) == 0);
        CHECK(get_output_single(context, 0, piece, sizeof piece, &n) == 0);
        CHECK(total + n <= sizeof out);
        realm_emit(piece, n);
        total += n;
    }
    realm_emit(REALM_LITERAL("|"));
    CHECK(get_output_single(context, 1, piece, sizeof piece, &n) == 0);
    CHECK(same(piece + n - 19, "\"output_tokens\": 6}", 19));
    CHECK(fini_single(context) == 0 && fini_single(99) == INVALID);
    /* anew, to its end: the request allows 16 tokens */
    for (n = 0; compute_single(context) == 0 && n < 100; n++) continue;
    CHECK(n == 16 || n == 17); /* a character may have been held back to the end */
    CHECK(get_output(context, 1, piece, sizeof piece, &n) == 0 && same(piece + n - 20, "\"output_tokens\": 16}", 20));
}

/* What an answer keeps to, whole and token by token; the model alone would not. */
static void schema(void) {
    static const char TRUE_OR_FALSE[] =
        "{\"temp\":0,\"n-predict\":40,\"json-schema\":\"{\\\"type\\\":\\\"boolean\\\"}\"}";
    CHECK(set(context, 0, REALM_LITERAL("abc abc")) == 0);
    CHECK(set(context, 1, REALM_LITERAL("{\"n-predict\":40,\"json-schema\":\"{\"}")) == 0);
    CHECK(compute(context) == INVALID && compute_single(context) == INVALID);
    CHECK(set(context, 1, REALM_LITERAL("{\"json-schema\":{}}")) == INVALID);
    CHECK(set(context, 1, REALM_LITERAL(TRUE_OR_FALSE)) == 0);
    for (int round = 0; round < 2; round++) {
        CHECK(compute(context) == 0 && get_output(context, 0, out, sizeof out, &n) == 0);
        CHECK((n == 4 && same(out, "true", 4)) || (n == 5 && same(out, "false", 5)));
    }
    uint32_t len = n, at = 0;
    while (compute_single(context) == 0 && at < 40) {
        CHECK(get_output_single(context, 0, piece, sizeof piece, &n) == 0 && at + n <= len && same(out + at, piece, n));
        at += n;
    }
    CHECK(at == len);
    CHECK(set(context, 1, REALM_LITERAL("{\"json-schema\":\"\"}")) == 0);
}

/* Another model of the server's, at the same time; here it is the same file, so it says the same. */
static void two_models(void) {
    static char others[8192];
    uint32_t g = 99, c = 99, len = 0;
    CHECK(load_by_name_with_config(REALM_LITERAL("other"),
                                   REALM_LITERAL("{\"temp\":0,\"n-predict\":6,\"ignore-eos\":true}"), &g) == 0);
    CHECK(init_execution_context(g, &c) == 0);
    CHECK(set(c, 0, REALM_LITERAL("abc abc")) == 0 && compute(c) == 0);
    CHECK(get_output(c, 0, others, sizeof others, &len) == 0 && len > 0);
    CHECK(set(context, 1, REALM_LITERAL("{\"n-predict\":6}")) == 0 && compute(context) == 0);
    CHECK(get_output(context, 0, out, sizeof out, &n) == 0 && n == len && same(out, others, n));
    CHECK(unload(g) == 0 && compute(c) == INVALID);
}

REALM_EXPORT(realm_main) int32_t realm_main(void) {
    graphs();
    CHECK(load_by_name(REALM_LITERAL("default"), &graph) == 0);
    CHECK(init_execution_context(graph, &context) == 0);
    inputs();
    whole();
    single();
    schema();
    two_models();
    CHECK(finalize_execution_context(context) == 0 && finalize_execution_context(context) == INVALID);
    if (!failed_at) {
        realm_emit(REALM_LITERAL("ok"));
        return 0;
    }
    char text[16];
    unsigned at = sizeof text;
    do text[--at] = (char)('0' + failed_at % 10);
    while ((failed_at /= 10) > 0);
    realm_emit(text + at, sizeof text - at);
    return 0;
}
