/* bench/sampling.c - what a token costs between its logits and its id: the chains that clients ask for, and a grammar.
 *
 *     build/bench/sampling MODEL.gguf...
 *
 * Of the models only the vocabularies matter; logits are random. A chain's figure is the processor time of one row, of
 * the fastest of fifteen rounds of twenty. A grammar is a JSON Schema of four properties, followed along an answer.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../tests/unit/support/random.h"
#include "base/clock.h"
#include "engine/sampling.h"

#define ROUNDS 15
#define ROWS 20
#define COMPILED 15  /* the fastest */
#define HISTORY 200u /* tokens that a penalty looks back on */
#define ANSWER_MAX 256u

static const char SCHEMA[] =
    "{\"type\":\"object\",\"properties\":{\"name\":{\"type\":\"string\"},\"age\":{\"type\":\"integer\"},"
    "\"languages\":{\"type\":\"array\",\"items\":{\"enum\":[\"English\",\"French\",\"German\"]}},"
    "\"active\":{\"type\":\"boolean\"}},\"required\":[\"name\",\"age\",\"languages\",\"active\"],"
    "\"additionalProperties\":false}";
static const char ANSWER[] =
    "{\"name\": \"Augusta Ada King, Countess of Lovelace\", \"age\": 36, \"languages\": [\"English\", \"French\"], "
    "\"active\": true}";

static void die(const char *what, const realm_error *err) {
    fprintf(stderr, "sampling: %s: %s\n", what, err->text);
    exit(1);
}

static void time_chain(const char *name, realm_sampler *w, const float *logits, const realm_sampling *sampling) {
    realm_error err = {0};
    realm_chain *chain = NULL;
    uint64_t best_ns = UINT64_MAX;
    if (realm_chain_from_sampling(sampling, w->n_vocab, &chain, &err)) die(name, &err);
    for (uint32_t i = 0; i < HISTORY; i++) {
        const realm_token t = (realm_token)((size_t)i * 37 % w->n_vocab);
        if (realm_chain_accept(chain, &t, 1, true, &err)) die(name, &err);
    }
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t sum_ns = 0;
        for (int row = 0; row < ROWS; row++) {
            realm_sample_job job = {.logits = logits, .chain = chain, .target = -1};
            const uint64_t begin_ns = realm_clock_thread_ns();
            realm_sampler_run(w, &job);
            sum_ns += realm_clock_thread_ns() - begin_ns;
            if (job.status != REALM_OK) die(name, &job.error);
            if (realm_chain_rewind(chain, 1, &err)) die(name, &err);
        }
        if (sum_ns < best_ns) best_ns = sum_ns;
    }
    printf("  %-44s %8.1f us\n", name, (double)best_ns / ROWS / 1e3);
    realm_chain_close(chain);
}

static void time_chains(size_t n_vocab) {
    realm_error err = {0};
    realm_sampler w;
    realm_sampling greedy, cut, penalty, min_p, whole, nucleus;
    float *logits = malloc(n_vocab * sizeof *logits);
    if (!logits || realm_sampler_init(&w, n_vocab, &err)) die("workspace", &err);
    for (size_t i = 0; i < n_vocab; i++) logits[i] = 4 * random_normal();
    realm_sampling_init(&whole);
    whole.temperature = 0.8f;
    whole.top_k = 0;
    whole.top_p = 1;
    whole.min_p = 0;
    greedy = cut = min_p = nucleus = whole;
    greedy.temperature = 0;
    nucleus.top_p = 0.95f;
    min_p.min_p = 0.05f;
    cut.top_p = 0.95f;
    cut.top_k = 40;
    penalty = cut;
    penalty.repeat_penalty = 1.1f;
    time_chain("greedy", &w, logits, &greedy);
    time_chain("temperature, top-k 40, top-p 0.95", &w, logits, &cut);
    time_chain("the same with a repeat penalty over 200", &w, logits, &penalty);
    time_chain("temperature, min-p 0.05", &w, logits, &min_p);
    time_chain("temperature alone", &w, logits, &whole);
    time_chain("temperature, top-p 0.95", &w, logits, &nucleus);
    realm_sampler_release(&w);
    free(logits);
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void time_grammar(realm_tokenizer *t, size_t n_vocab) {
    realm_error err = {0};
    realm_grammar_vocab *v = NULL;
    realm_grammar *g = NULL;
    realm_grammar_state *state = NULL;
    realm_tokens answer = {0};
    uint32_t *bits = malloc((n_vocab + 31) / 32 * sizeof *bits);
    double mask_us[ANSWER_MAX], accept_us[ANSWER_MAX];
    size_t accepted;
    if (!bits ||
        realm_tokenizer_encode(t, ANSWER, sizeof ANSWER - 1, REALM_ENCODE_CONTINUES, ANSWER_MAX, &answer, &err))
        die("answer", &err);
    const size_t n = answer.len;
    uint64_t begin_ns = realm_clock_thread_ns();
    if (realm_grammar_vocab_open(&v, t, &err)) die("vocabulary", &err);
    printf("  %-44s %8.1f ms\n", "a vocabulary prepared for grammars",
           (double)(realm_clock_thread_ns() - begin_ns) / 1e6);
    uint64_t best_ns = UINT64_MAX; /* by the clock: it is compiled on a thread of its own */
    for (int round = 0; round < COMPILED; round++) {
        realm_grammar_release(g);
        begin_ns = realm_clock_ns();
        if (realm_grammar_compile(v, 1, REALM_GRAMMAR_KIND_JSON_SCHEMA, SCHEMA, sizeof SCHEMA - 1, &g, &err))
            die("schema", &err);
        best_ns = REALM_MIN(best_ns, realm_clock_ns() - begin_ns);
    }
    printf("  %-44s %8.1f ms\n", "a schema of four properties compiled", (double)best_ns / 1e6);
    begin_ns = realm_clock_thread_ns();
    if (realm_grammar_state_open(g, &state, &err)) die("state", &err);
    printf("  %-44s %8.1f us\n", "a generation's state", (double)(realm_clock_thread_ns() - begin_ns) / 1e3);
    for (size_t i = 0; i < n; i++) {
        begin_ns = realm_clock_thread_ns();
        if (realm_grammar_state_mask(state, bits, &err)) die("mask", &err);
        const uint64_t masked_ns = realm_clock_thread_ns();
        if (realm_grammar_state_accept(state, &answer.ids[i], 1, &accepted, &err)) die("accept", &err);
        accept_us[i] = (double)(realm_clock_thread_ns() - masked_ns) / 1e3;
        mask_us[i] = (double)(masked_ns - begin_ns) / 1e3;
        if (accepted != 1) {
            fprintf(stderr, "sampling: the answer breaks its schema at token %zu\n", i);
            exit(1);
        }
    }
    qsort(mask_us, n, sizeof *mask_us, by_value);
    qsort(accept_us, n, sizeof *accept_us, by_value);
    printf("  a mask along an answer of %3zu tokens           %8.1f us (median), %.1f at most\n", n, mask_us[n / 2],
           mask_us[n - 1]);
    printf("  going on by a token %33.1f us (median)\n", accept_us[n / 2]);
    realm_grammar_state_close(state);
    realm_grammar_release(g);
    realm_grammar_vocab_close(v);
    realm_tokens_release(&answer);
    free(bits);
}

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        realm_error err = {0};
        realm_gguf *g = NULL;
        realm_tokenizer *t = NULL;
        if (realm_gguf_open(&g, argv[i], &err) || realm_tokenizer_open(&t, g, &err)) die(argv[i], &err);
        const size_t n_vocab = realm_tokenizer_vocab_size(t);
        printf("%s: %zu tokens\n", argv[i], n_vocab);
        time_chains(n_vocab);
        time_grammar(t, n_vocab);
        realm_tokenizer_close(t);
        realm_gguf_close(g);
    }
    return 0;
}
