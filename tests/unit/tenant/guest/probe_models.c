/* Models, rightly and wrongly. The server has "tiny" (the request's) and "other"; field "image" is the file of "tiny"
 * in hex. */
#include "probe.h"

#define SERVER 0x40000000
#define NAMED "token_embd.weight"

static char image[1u << 20], info[8192];
static size_t image_len;
static float values[320 * 64 + 1];
static int32_t ids[64], more[64];

static int nibble(char c) { return c <= '9' ? c - '0' : c - 'a' + 10; }

static int32_t load(void) {
    static char hex[2u << 20];
    int32_t n = realm_input(REALM_LITERAL("image"), hex, sizeof hex);
    TRUE(n > 0);
    image_len = (size_t)n / 2;
    for (size_t i = 0; i < image_len; i++) image[i] = (char)(nibble(hex[2 * i]) << 4 | nibble(hex[2 * i + 1]));
    return 1;
}

static int32_t server(void) {
    int32_t tiny = realm_model_find(REALM_LITERAL("tiny")), other = realm_model_find(REALM_LITERAL("other"));
    TRUE(tiny >= SERVER && other >= SERVER && tiny != other);
    IS(realm_model_find(REALM_LITERAL("nothing")), REALM_E_NOT_FOUND);
    IS(realm_model_find(REALM_LITERAL("7")), REALM_E_NOT_FOUND);
    IS(realm_model_find("", 0), REALM_E_NOT_FOUND);
    IS(realm_model_find(REALM_LITERAL("ti\0ny")), REALM_E_NOT_FOUND);
    IS(realm_model_find(PAST, 4), REALM_E_RANGE);
    IS(realm_model_find(buf, 4000), REALM_E_LIMIT);
    int32_t n = realm_get_model_info(0, info, sizeof info);
    TRUE(n > 100 && info[0] == '{');
    IS(realm_get_model_info(tiny, info, sizeof info), n);
    IS(realm_get_model_info(0, info, 4), n); /* does not fit */
    IS(realm_get_model_info(SERVER + 2, info, sizeof info), REALM_E_NOT_FOUND);
    IS(realm_get_model_info(-1, info, sizeof info), REALM_E_NOT_FOUND);
    IS(realm_get_model_info(5, info, sizeof info), REALM_E_NOT_FOUND);
    IS(realm_get_tensor(0, REALM_LITERAL(NAMED), values, sizeof values), REALM_E_DENIED);
    IS(realm_get_tensor(other, REALM_LITERAL(NAMED), values, sizeof values), REALM_E_DENIED);
    TRUE(error_says("read_weights"));
    /* Two models with different weights and vocabularies of one size. */
    realm_generate_options o = {.size = sizeof o,
                                .set = REALM_SET_MAX_TOKENS | REALM_SET_FLAGS,
                                .max_tokens = 12,
                                .flags = REALM_GENERATE_IGNORE_END};
    n = realm_host_generate(0, REALM_LITERAL("abc abc"), &o, buf, sizeof buf);
    TRUE(n > 0);
    IS(realm_host_generate(tiny, REALM_LITERAL("abc abc"), &o, text, sizeof text), n);
    TRUE(same(buf, text, (size_t)n));
    int32_t m = realm_host_generate(other, REALM_LITERAL("abc abc"), &o, text, sizeof text);
    TRUE(m > 0 && (m != n || !same(buf, text, (size_t)n)));
    IS(realm_host_generate(SERVER + 9, "a", 1, &o, text, sizeof text), REALM_E_NOT_FOUND);
    IS(realm_host_generate(12345, "a", 1, &o, text, sizeof text), REALM_E_NOT_FOUND);
    IS(realm_model_use(other), 0);
    IS(realm_model_use(tiny), other);
    IS(realm_model_use(0), 0); /* the request's own is the same model */
    IS(realm_model_use(SERVER + 2), REALM_E_NOT_FOUND);
    IS(realm_model_use(99), REALM_E_NOT_FOUND);
    IS(realm_model_use(-5), REALM_E_NOT_FOUND);
    IS(realm_model_use((int32_t)0x80000000 | SERVER), REALM_E_NOT_FOUND); /* a bit more than the first has */
    return 1;
}

/* What belongs to one model is refused by another's. */
static int32_t apart(void) {
    realm_guest_context st;
    int32_t other = realm_model_find(REALM_LITERAL("other"));
    int32_t p = realm_prompt_text(REALM_LITERAL("abc"), 0), c = realm_context_new();
    int32_t g = realm_grammar_compile(REALM_GRAMMAR_REGEX, REALM_LITERAL("a+"));
    realm_sampler_stage stage = {.kind = REALM_STAGE_GRAMMAR, .handle = g};
    int32_t s = realm_sampler_new(&stage, 1, 1);
    TRUE(p > 0 && c > 0 && g > 0 && s > 0);
    IS(realm_context_append_prompt(c, p), realm_prompt_get_tokens(p, ids, 64));
    IS(realm_context_save(c, REALM_LITERAL("name")), 0);
    IS(realm_model_use(other), 0);
    int32_t q = realm_prompt_text(REALM_LITERAL("abc"), 0), d = realm_context_new();
    TRUE(q > 0 && d > 0);
    IS(realm_context_append_prompt(c, q), REALM_E_INVALID);
    TRUE(error_says("model"));
    IS(realm_context_append_prompt(d, p), REALM_E_INVALID);
    IS(realm_sampler_new(&stage, 1, 1), REALM_E_INVALID); /* the grammar is for the other vocabulary */
    realm_generate_options o = {.size = sizeof o, .set = REALM_SET_CONTEXT, .context = c};
    IS(realm_generate(q, &o, REALM_MODE_EVENTS), REALM_E_INVALID);
    IS(realm_host_generate(other, "a", 1, &o, text, sizeof text), REALM_E_INVALID);
    o = (realm_generate_options){.size = sizeof o, .set = REALM_SET_SAMPLER, .sampler = s};
    IS(realm_generate(q, &o, REALM_MODE_EVENTS), REALM_E_INVALID);
    o = (realm_generate_options){.size = sizeof o, .set = REALM_SET_GRAMMAR, .grammar = g};
    IS(realm_generate(q, &o, REALM_MODE_EVENTS), REALM_E_INVALID);
    IS(realm_context_append(d, ids, 1), 1);
    int32_t f = realm_forward(d, NULL, 0, 1, 0);
    TRUE(f > 0);
    realm_guest_event e;
    IS(realm_wait(f, &e, 1, NULL, 0, -1), 1);
    IS(realm_logits_sample(f, 0, s, NULL), REALM_E_INVALID);
    TRUE(realm_logits_sample(f, 0, 0, NULL) >= 0);
    /* names of saved contexts are each model's own */
    IS(realm_context_open(REALM_LITERAL("name")), REALM_E_NOT_FOUND);
    IS(realm_context_drop(REALM_LITERAL("name")), REALM_E_NOT_FOUND);
    IS(realm_context_save(d, REALM_LITERAL("name")), 0);
    IS(realm_model_use(0), other);
    int32_t back = realm_context_open(REALM_LITERAL("name"));
    IS(realm_context_stat(back, &st), 0);
    IS(st.n_tokens, realm_prompt_get_tokens(p, ids, 64));
    IS(realm_context_drop(REALM_LITERAL("name")), 0);
    int32_t all[] = {p, c, g, s, q, d, f, back};
    for (int i = 0; i < 8; i++) IS(realm_close(all[i]), 0);
    return 1;
}

static int32_t ids_and_files(void) {
    IS(realm_store_model(image, image_len, 7), 7);
    IS(realm_store_model(image, image_len, 7), 7); /* the same again */
    int32_t own = realm_store_model(image, image_len, 0);
    TRUE(own > 0 && own < SERVER && own != 7);
    IS(realm_store_model(image, image_len, 0), own);
    IS(realm_model_find(REALM_LITERAL("7")), 7);
    IS(realm_model_find(REALM_LITERAL("07")), REALM_E_NOT_FOUND);
    TRUE(realm_get_model_info(7, info, sizeof info) > 100);
    image[image_len - 1] ^= 1; /* in a tensor's values: another model */
    IS(realm_store_model(image, image_len, 7), REALM_E_EXISTS);
    TRUE(error_says("7"));
    IS(realm_store_model(image, image_len, 8), 8);
    image[image_len - 1] ^= 1;
    IS(realm_store_model(image, image_len, 8), REALM_E_EXISTS);
    IS(realm_store_model(image, image_len, -1), REALM_E_RANGE);
    IS(realm_store_model(image, image_len, SERVER), REALM_E_RANGE);
    IS(realm_store_model(image, 0, 9), REALM_E_FORMAT);
    IS(realm_store_model(image, 100, 9), REALM_E_FORMAT);
    TRUE(!error_says("/")); /* where files lie is not told */
    image[0] = 'x';
    IS(realm_store_model(image, image_len, 9), REALM_E_FORMAT);
    image[0] = 'G';
    IS(realm_store_model(PAST, 100, 9), REALM_E_RANGE);
    IS(realm_store_model(EDGE - 100, 101, 9), REALM_E_RANGE);
    IS(realm_get_model_info(9, info, sizeof info), REALM_E_NOT_FOUND);
    return 1;
}

static int32_t tensors(void) {
    const int32_t bytes = 320 * 64 * 4;
    IS(realm_get_tensor(7, REALM_LITERAL(NAMED), values, sizeof values), bytes);
    float sum = 0;
    for (int32_t i = 0; i < 64; i++) sum += values[i] * values[i];
    TRUE(sum > 1);
    IS(realm_get_tensor(7, REALM_LITERAL(NAMED), values, (size_t)bytes - 1), REALM_E_RANGE);
    TRUE(error_says("81920"));
    IS(realm_get_tensor(7, REALM_LITERAL("no.such"), values, sizeof values), REALM_E_NOT_FOUND);
    IS(realm_get_tensor(7, PAST, 3, values, sizeof values), REALM_E_RANGE);
    IS(realm_get_tensor(7, REALM_LITERAL(NAMED), (float *)(void *)PAST, sizeof values), REALM_E_RANGE);
    IS(realm_get_tensor(7, REALM_LITERAL(NAMED), (float *)(void *)(EDGE - bytes + 1), sizeof values), REALM_E_RANGE);
    IS(realm_get_tensor(7, image, 5000, values, sizeof values), REALM_E_LIMIT);
    IS(realm_get_tensor(6, REALM_LITERAL(NAMED), values, sizeof values), REALM_E_NOT_FOUND);
    return 1;
}

static int32_t used(void) {
    realm_generate_options o = {.size = sizeof o,
                                .set = REALM_SET_MAX_TOKENS | REALM_SET_FLAGS,
                                .max_tokens = 12,
                                .flags = REALM_GENERATE_IGNORE_END};
    realm_guest_event e[32];
    int32_t n = realm_host_generate(0, REALM_LITERAL("abc abc"), &o, buf, sizeof buf);
    IS(realm_host_generate(7, REALM_LITERAL("abc abc"), &o, text, sizeof text), n); /* the same file */
    TRUE(same(buf, text, (size_t)n));
    IS(realm_model_use(7), 0);
    realm_guest_limits l;
    IS(realm_limits_get(&l, sizeof l), sizeof l);
    IS(l.context_tokens, 512); /* of this model: the server cut its own to 256 */
    int32_t p = realm_prompt_text(REALM_LITERAL("abc abc"), REALM_TEXT_ADD_SPECIAL), own = realm_prompt_own();
    TRUE(p > 0 && own > 0);
    IS(realm_prompt_get_tokens(p, ids, 64), realm_prompt_get_tokens(own, more, 64));
    IS(realm_model_use(0), 7);
    int32_t g = realm_generate(p, &o, REALM_MODE_EVENTS); /* with the prompt's model, whichever is in use */
    TRUE(g > 0);
    size_t at = 0;
    for (bool end = false; !end;) {
        int32_t k = realm_wait(g, e, 32, text + at, sizeof text - at, -1);
        TRUE(k > 0);
        for (int32_t i = 0; i < k; i++) at += e[i].text_len, end |= e[i].kind == REALM_EVENT_KIND_END;
    }
    IS(at, n);
    TRUE(same(buf, text, at));
    return 1;
}

static int32_t removed(void) {
    IS(realm_remove_model(0), REALM_E_DENIED);
    IS(realm_remove_model(SERVER), REALM_E_DENIED);
    IS(realm_remove_model(-1), REALM_E_DENIED);
    IS(realm_remove_model(100), REALM_E_NOT_FOUND);
    IS(realm_remove_model(7), 0);
    IS(realm_remove_model(7), REALM_E_NOT_FOUND);
    IS(realm_model_use(7), 0); /* in use by this instance, so it stays for it */
    IS(realm_model_use(0), 7);
    IS(realm_get_model_info(7, info, sizeof info), REALM_E_NOT_FOUND);
    IS(realm_remove_model(8), 0);
    IS(realm_store_model(image, image_len, 8), 8); /* free again, also for another file */
    IS(realm_remove_model(8), 0);
    int32_t own = realm_store_model(image, image_len, 0);
    IS(realm_get_tensor(own, REALM_LITERAL(NAMED), values, sizeof values), 320 * 64 * 4);
    IS(realm_remove_model(own), 0);
    return 1;
}

PROBE(load, server, apart, ids_and_files, tensors, used, removed)
