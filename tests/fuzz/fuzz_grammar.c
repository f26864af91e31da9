/* A kind of grammar (first byte) and its text: compiling ends, with a grammar whose states mask, accept, fork and roll
 * back or with an error that says something. Where a state works, a token that its mask allows is accepted. The Rust
 * side is not instrumented; its panics come out as REALM_E_INTERNAL. Run from the checkout's root. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "grammar/grammar.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static realm_tokenizer *tokenizer;
static realm_grammar_vocab *vocab;

static void open_once(void) {
    realm_gguf *g;
    realm_error err = {0};
    if (vocab) return;
    if (realm_gguf_open(&g, "tests/data/tokenizer/spm.gguf", &err) != REALM_OK ||
        realm_tokenizer_open(&tokenizer, g, &err) != REALM_OK ||
        realm_grammar_vocab_open(&vocab, tokenizer, &err) != REALM_OK) {
        fprintf(stderr, "%s\n", err.text);
        abort();
    }
    realm_gguf_close(g);
}

static void check(realm_status s, const realm_error *err) {
    if (s != REALM_OK && (!err->text[0] || s == REALM_E_INTERNAL || strchr(err->text, '\n'))) abort();
}

static void walk(realm_grammar *g, uint32_t salt) {
    const size_t n_vocab = realm_tokenizer_vocab_size(tokenizer);
    uint32_t *bits = calloc((n_vocab + 31) / 32, 4);
    realm_grammar_state *s, *fork;
    realm_error err = {0};
    if (!bits || realm_grammar_state_open(g, &s, &err) != REALM_OK) abort();
    for (uint32_t step = 0; step < 12; step++) {
        realm_status r = realm_grammar_state_mask(s, bits, &err);
        check(r, &err);
        if (r != REALM_OK) break;
        size_t at = (salt * 2654435761u + step * 40503u) % n_vocab, tries = 0, n = 0;
        while (tries < n_vocab && !(bits[at / 32] >> (at % 32) & 1)) {
            at = (at + 1) % n_vocab;
            tries++;
        }
        if (tries == n_vocab) break;
        realm_token t = (realm_token)at;
        if (realm_grammar_state_fork(s, &fork, &err) != REALM_OK) abort();
        realm_grammar_state_close(fork);
        r = realm_grammar_state_accept(s, &t, 1, &n, &err);
        check(r, &err);
        if (r != REALM_OK) break;
        if (n != 1) abort();
        if (step % 5 == 4) {
            r = realm_grammar_state_rollback(s, 2, &err);
            check(r, &err);
        }
        if (realm_grammar_state_must_end(s) && !realm_grammar_state_can_end(s)) abort();
    }
    realm_grammar_state_close(s);
    free(bits);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    open_once();
    if (size < 1) return 0;
    realm_grammar *g;
    realm_error err = {0};
    char *text = malloc(size); /* not terminated: nothing may read on */
    if (!text) return 0;
    memcpy(text, data + 1, size - 1);
    realm_status s = realm_grammar_compile(vocab, 0, (realm_grammar_kind)(1 + data[0] % 3), text, size - 1, &g, &err);
    check(s, &err);
    if (s == REALM_OK) walk(g, data[0]);
    realm_grammar_release(g);
    free(text);
    return 0;
}
