/* grammar/vocab.c - a model's tokens as the matcher wants them, and the watch over calls on states.
 *
 * Tokens that stand for text are given by their bytes. Control tokens are given by their name behind the byte 0xFF,
 * which no text contains: a grammar for text never allows them, a Lark grammar may name them. End tokens are not the
 * library's business here (state.c); they are named to it so that it never takes them for text.
 *
 * A grammar from outside may make a single mask arbitrarily slow within the library's own limits (100 ms were seen),
 * and masks are computed while a batch waits. So calls on states are entered in a list with the processor time that
 * their thread may spend; a thread looks at the list every few milliseconds while there are calls at all, and cancels.
 * Time of the processor, not of the wall: a machine that is busy fails nobody.
 */
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "grammar/internal.h"

#define LOOK_NS (10 * REALM_NS_PER_MS)
#define LOOKS_UNTIL_SLEEP 20u

static uint64_t clock_now(clockid_t c) {
    struct timespec t = {0};
    (void)clock_gettime(c, &t);
    return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

int grammar_call_begin(realm_grammar_vocab *v, const LlgCancellationHandle *handle) {
    grammar_call call = {.handle = handle};
    if (pthread_getcpuclockid(pthread_self(), &call.cpu) != 0) return -1;
    call.until_ns = clock_now(call.cpu) + REALM_GRAMMAR_CALL_CPU_MS * REALM_NS_PER_MS;
    int place = -1;
    realm_mutex_lock(&v->mu);
    if (v->n_calls < REALM_GRAMMAR_CALLS_MAX) {
        place = 0;
        while (v->calls[place].handle) place++;
        v->calls[place] = call;
        v->n_calls++;
        v->called = true;
        if (!v->watching) {
            v->watching = true;
            realm_cond_signal(&v->work);
        }
    }
    realm_mutex_unlock(&v->mu);
    return place;
}

void grammar_call_end(realm_grammar_vocab *v, int place) {
    if (place < 0) return;
    realm_mutex_lock(&v->mu);
    v->calls[place].handle = NULL;
    v->n_calls--;
    realm_mutex_unlock(&v->mu);
}

static void *watch_main(void *arg) {
    realm_grammar_vocab *v = arg;
    unsigned quiet = 0;
    realm_mutex_lock(&v->mu);
    while (!v->shut) {
        if (!v->watching) {
            realm_cond_wait(&v->work, &v->mu);
            quiet = 0;
            continue;
        }
        (void)realm_cond_wait_until(&v->work, &v->mu, realm_clock_ns() + LOOK_NS);
        /* The handle lives while its call is in the list: the call ends under this lock. */
        for (uint32_t i = 0; i < REALM_GRAMMAR_CALLS_MAX && v->n_calls > 0; i++)
            if (v->calls[i].handle && clock_now(v->calls[i].cpu) >= v->calls[i].until_ns)
                llg_cancel(v->calls[i].handle);
        quiet = v->called || v->n_calls > 0 ? 0 : quiet + 1;
        v->called = false;
        if (quiet >= LOOKS_UNTIL_SLEEP) v->watching = false;
    }
    realm_mutex_unlock(&v->mu);
    return NULL;
}

/* ---- tokens ----------------------------------------------------------------------------------------------------- */

typedef struct token_table {
    uint32_t *lens; /* (n) */
    uint8_t *bytes;
    size_t n, n_bytes;
} token_table;

static realm_status token_bytes(const realm_tokenizer *t, realm_token id, const char **bytes, size_t *len,
                                bool *marked) {
    *marked = false;
    switch (realm_tokenizer_attr(t, id)) {
    case REALM_TOKEN_UNKNOWN:
    case REALM_TOKEN_UNUSED:
        *bytes = "";
        *len = 0;
        return REALM_OK;
    case REALM_TOKEN_CONTROL: *marked = true; break;
    default: *marked = realm_tokenizer_is_end(t, id); break;
    }
    if (!*marked) return realm_tokenizer_piece(t, id, false, bytes, len);
    realm_gguf_str name = realm_tokenizer_text(t, id);
    *bytes = name.data;
    *len = name.len;
    return REALM_OK;
}

static realm_status fill_table(token_table *table, const realm_tokenizer *t, realm_error *err) {
    size_t total = 0;
    table->n = realm_tokenizer_vocab_size(t);
    table->lens = realm_calloc(table->n, sizeof *table->lens);
    if (!table->lens) goto no_memory;
    for (int pass = 0; pass < 2; pass++) {
        size_t at = 0;
        for (size_t i = 0; i < table->n; i++) {
            const char *bytes;
            size_t len;
            bool marked;
            realm_status s = token_bytes(t, (realm_token)i, &bytes, &len, &marked);
            if (s != REALM_OK) return realm_error_set(err, s, "token %zu has no text", i);
            if (pass == 1) {
                if (marked) table->bytes[at] = 0xff;
                if (len > 0) memcpy(table->bytes + at + marked, bytes, len);
            }
            table->lens[i] = (uint32_t)(len + marked); /* a token's length is limited */
            if (!realm_add_size(at, len + marked, &at)) goto no_memory;
        }
        if (pass == 1) break;
        total = at;
        if (total > UINT32_MAX) return realm_error_set(err, REALM_E_LIMIT, "the vocabulary's texts exceed 4 GiB");
        table->bytes = realm_malloc(total);
        if (!table->bytes) goto no_memory;
    }
    table->n_bytes = total;
    return REALM_OK;
no_memory:
    return realm_error_set(err, REALM_E_NOMEM, "no memory for a grammar's vocabulary");
}

static realm_status find_ends(realm_grammar_vocab *v, realm_error *err) {
    for (int pass = 0; pass < 2; pass++) {
        v->n_ends = 0;
        for (size_t i = 0; i < v->n_vocab; i++) {
            if (!realm_tokenizer_is_end(v->t, (realm_token)i)) continue;
            if (pass == 1) v->ends[v->n_ends] = (realm_token)i;
            v->n_ends++;
        }
        if (pass == 1) break;
        v->ends = realm_calloc(v->n_ends, sizeof *v->ends);
        if (!v->ends) return realm_error_set(err, REALM_E_NOMEM, "no memory for a grammar's vocabulary");
    }
    return REALM_OK;
}

realm_status realm_grammar_vocab_open(realm_grammar_vocab **out, const realm_tokenizer *t, realm_error *err) {
    *out = NULL;
    token_table table = {0};
    realm_grammar_vocab *v = realm_calloc(1, sizeof *v);
    if (!v) return realm_error_set(err, REALM_E_NOMEM, "no memory for a grammar's vocabulary");
    realm_mutex_init(&v->mu, REALM_RANK_LEAF);
    grammar_turns_init(&v->turns);
    realm_cond_init(&v->work);
    v->t = t;
    v->n_vocab = realm_tokenizer_vocab_size(t);
    realm_status s = find_ends(v, err);
    if (s == REALM_OK) s = fill_table(&table, t, err);
    if (s != REALM_OK) goto fail;
    LlgTokenizerInitV2 init = {.struct_size = sizeof init,
                               .vocab_size = (uint32_t)v->n_vocab,
                               .tok_eos = v->n_ends > 0 ? (uint32_t)v->ends[0] : UINT32_MAX,
                               .token_lens = table.lens,
                               .token_bytes = table.bytes,
                               /* Never asked for: nothing is forced, masks are over all tokenisations of a text. */
                               .use_approximate_greedy_tokenize_fn = true,
                               .tok_eos_extra = v->n_ends > 1 ? (const LlgToken *)(const void *)(v->ends + 1) : NULL,
                               .tok_eos_extra_count = v->n_ends > 1 ? (uint32_t)v->n_ends - 1 : 0};
    char text[256] = "";
    v->llg = llg_new_tokenizer_v2(&init, text, sizeof text);
    if (!v->llg) {
        s = grammar_error(err, REALM_E_FORMAT, text);
        goto fail;
    }
    if ((s = realm_thread_start(&v->watch, "realm-grammar", watch_main, v, err)) != REALM_OK) goto fail;
    realm_free(table.lens);
    realm_free(table.bytes);
    *out = v;
    return REALM_OK;
fail:
    realm_free(table.lens);
    realm_free(table.bytes);
    if (v->llg) llg_free_tokenizer(v->llg);
    realm_free(v->ends);
    realm_cond_destroy(&v->work);
    grammar_turns_release(&v->turns);
    realm_mutex_destroy(&v->mu);
    realm_free(v);
    return s;
}

void realm_grammar_vocab_close(realm_grammar_vocab *v) {
    if (!v) return;
    grammar_turns_wait_idle(&v->turns); /* those that nobody waits for any more */
    realm_mutex_lock(&v->mu);
    v->shut = true;
    realm_cond_signal(&v->work);
    realm_mutex_unlock(&v->mu);
    (void)pthread_join(v->watch, NULL);
    llg_free_tokenizer(v->llg);
    realm_free(v->ends);
    realm_cond_destroy(&v->work);
    grammar_turns_release(&v->turns);
    realm_mutex_destroy(&v->mu);
    realm_free(v);
}
