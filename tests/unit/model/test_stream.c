/* Models under a weight budget: the same logits and tokens at every size, counts for a known order of use, pins, and
 * lack of memory. */
#include "support/tiny_model.h"

#define N_TOKENS 40u
#define LAYERS 5u

static tiny_spec spec_of(const char *arch, uint32_t layers) {
    tiny_spec s = tiny_llama;
    s.layers = layers;
    s.type = REALM_TYPE_Q4_1;
    if (strcmp(arch, "gemma3") == 0) {
        s.arch = "gemma3";
        s.tied = true;
        s.window = 20;
        s.rope_base = 1000000.0f;
    }
    return s;
}

static realm_gguf *gguf_of(const tiny_model *m) {
    realm_error err = {0};
    realm_gguf *g;
    if (realm_gguf_open_memory(&g, m->file, m->file_len, &err) != REALM_OK) model_run_fail("gguf", &err);
    return g;
}

static realm_model_memory measure(const tiny_model *m) {
    realm_error err = {0};
    realm_model_memory need;
    realm_backend *b;
    realm_gguf *g = gguf_of(m);
    assert_int_equal(realm_backend_open_cpu(&b, &(realm_backend_config){.n_threads = 1}, &err), REALM_OK);
    if (realm_model_measure(b, g, &need, &err) != REALM_OK) model_run_fail("measure", &err);
    realm_backend_close(b);
    realm_gguf_close(g);
    assert_int_equal(need.least_budget, need.fixed_bytes + need.layer_bytes);
    return need;
}

static uint64_t budget_of(const realm_model_memory *need, uint32_t slots) {
    return need->fixed_bytes + slots * need->layer_bytes;
}

static void tokens_of(int32_t *tokens) {
    for (uint32_t i = 0; i < N_TOKENS; i++) tokens[i] = (int32_t)((i * 7919 + i * i * 31 + 5) % TINY_VOCAB);
}

/* Logits of all tokens, in chunks. */
static void run_all(model_run *r, float *logits) {
    int32_t tokens[N_TOKENS];
    tokens_of(tokens);
    for (uint32_t from = 0; from < N_TOKENS; from += 8) {
        model_run_step(r, tokens, from, 8, 8);
        for (uint32_t i = 0; i < 8; i++)
            memcpy(logits + (size_t)(from + i) * TINY_VOCAB, model_run_logits(r, i), TINY_VOCAB * sizeof *logits);
    }
}

static void same_at_every_budget(void **state) {
    (void)state;
    static float want[N_TOKENS * TINY_VOCAB], got[N_TOKENS * TINY_VOCAB];
    for (int arch = 0; arch < 2; arch++) {
        const tiny_spec spec = spec_of(arch ? "gemma3" : "llama", LAYERS);
        tiny_model *m = tiny_make(&spec);
        const realm_model_memory need = measure(m);
        model_run r;
        model_run_open(&r, gguf_of(m), 2, 8, 8);
        run_all(&r, want);
        model_run_close(&r);
        for (uint32_t slots = 1; slots <= LAYERS; slots++) {
            realm_model_stream_stats stats;
            model_run_open_budget(&r, gguf_of(m), 2, 8, 8, budget_of(&need, slots));
            assert_true(realm_model_weight_bytes(r.m) <= budget_of(&need, slots) + 4096);
            run_all(&r, got);
            assert_memory_equal(got, want, sizeof got);
            realm_model_get_stream_stats(r.m, &stats);
            assert_true(stats.bytes_resident <= budget_of(&need, slots) + 4096);
            assert_int_equal(stats.hits + stats.misses, slots < LAYERS ? N_TOKENS / 8 * LAYERS : 0);
            assert_true(stats.layers_resident <= slots); /* the last one that was asked for may be under way */
            model_run_close(&r);
        }
        tiny_free(m);
    }
}

static void too_small(void **state) {
    (void)state;
    const tiny_spec spec = spec_of("llama", LAYERS);
    tiny_model *m = tiny_make(&spec);
    const realm_model_memory need = measure(m);
    realm_error err = {0};
    realm_backend *b;
    realm_model *model;
    realm_gguf *g = gguf_of(m);
    char least[32];
    assert_int_equal(realm_backend_open_cpu(&b, &(realm_backend_config){.n_threads = 1}, &err), REALM_OK);
    const realm_model_options options = {.weight_budget_bytes = need.least_budget - 1};
    assert_int_equal(realm_model_open(&model, b, g, &options, &err), REALM_E_LIMIT);
    snprintf(least, sizeof least, "at least %llu", (unsigned long long)need.least_budget);
    assert_non_null(strstr(err.text, least));
    realm_backend_close(b);
    realm_gguf_close(g);
    tiny_free(m);
}

static void expect(const model_run *r, uint64_t hits, uint64_t misses, uint64_t evictions, uint64_t prefetched) {
    realm_model_stream_stats s;
    realm_model_get_stream_stats(r->m, &s);
    if (s.hits != hits || s.misses != misses || s.evictions != evictions || s.prefetched != prefetched) {
        print_error("hits %llu, misses %llu, evictions %llu, prefetched %llu; not %llu %llu %llu %llu\n",
                    (unsigned long long)s.hits, (unsigned long long)s.misses, (unsigned long long)s.evictions,
                    (unsigned long long)s.prefetched, (unsigned long long)hits, (unsigned long long)misses,
                    (unsigned long long)evictions, (unsigned long long)prefetched);
        fail();
    }
}

/* Five layers in three places, walked by the plan. The next one is always on its way; what gives way is the one walked
 * last, so that in the second round layer 3 is found where the first has left it. */
static void counts_of_walks(void **state) {
    (void)state;
    const tiny_spec spec = spec_of("llama", LAYERS);
    tiny_model *m = tiny_make(&spec);
    const realm_model_memory need = measure(m);
    model_run r;
    int32_t tokens[N_TOKENS];
    realm_model_stream_stats s;
    tokens_of(tokens);
    model_run_open_budget(&r, gguf_of(m), 2, 8, 8, budget_of(&need, 3));
    expect(&r, 0, 0, 0, 0);
    model_run_step(&r, tokens, 0, 8, 1); /* 0 missed; 1 to 4 came meanwhile, 3 in place of 1 and 4 of 2 */
    expect(&r, 4, 1, 2, 4);
    model_run_step(&r, tokens, 8, 8, 1); /* 1 for 4, 2 for 0, 3 was there, 4 for 2, 0 for 3 */
    expect(&r, 9, 1, 6, 8);
    size_t n;
    uint64_t layer_bytes = 0;
    const realm_model_tensor *const *t = realm_model_layer_tensors(r.m, 0, &n);
    for (size_t i = 0; i < n; i++)
        if (t[i]->use & REALM_WEIGHT_STREAMED) layer_bytes += t[i]->file->n_bytes;
    /* A load that was asked for may still be under way: pinning it waits for that. */
    assert_int_equal(realm_model_layer_pin(r.m, 0, NULL), REALM_OK);
    realm_model_get_stream_stats(r.m, &s);
    assert_int_equal(s.bytes_read, 9 * layer_bytes);
    assert_int_equal(s.layers_resident, 3);
    model_run_close(&r);
    tiny_free(m);
}

static void use(model_run *r, uint32_t layer) {
    realm_error err = {0};
    if (realm_model_layer_need(r->m, layer, &err) != REALM_OK) model_run_fail("need", &err);
    realm_model_layer_done(r->m, layer);
}

/* Used by name, the least recently used layer gives way. */
static void counts_of_uses(void **state) {
    (void)state;
    const tiny_spec spec = spec_of("llama", 6);
    tiny_model *m = tiny_make(&spec);
    const realm_model_memory need = measure(m);
    model_run r;
    model_run_open_budget(&r, gguf_of(m), 2, 8, 8, budget_of(&need, 3));
    use(&r, 0); /* missed; 1 fetched */
    use(&r, 1); /* 2 fetched */
    use(&r, 2); /* 3 fetched, for 0, the oldest */
    expect(&r, 2, 1, 1, 3);
    use(&r, 3); /* 4 fetched, for 1 */
    expect(&r, 3, 1, 2, 4);
    assert_int_equal(realm_model_layer_need(r.m, 0, NULL), REALM_OK); /* missed, for 2; 1 would be for 3 */
    realm_model_layer_done(r.m, 0);
    realm_model_stream_stats s;
    realm_model_get_stream_stats(r.m, &s);
    assert_int_equal(s.misses, 2);
    assert_int_equal(s.hits, 3);
    model_run_close(&r);
    tiny_free(m);
}

static void pins(void **state) {
    (void)state;
    static float want[N_TOKENS * TINY_VOCAB], got[N_TOKENS * TINY_VOCAB];
    const tiny_spec spec = spec_of("llama", LAYERS);
    tiny_model *m = tiny_make(&spec);
    const realm_model_memory need = measure(m);
    realm_error err = {0};
    realm_model_stream_stats before, after;
    model_run r;
    model_run_open(&r, gguf_of(m), 2, 8, 8);
    run_all(&r, want);
    /* Without a budget pins only count. */
    assert_int_equal(realm_model_layer_pin(r.m, 1, &err), REALM_OK);
    realm_model_get_stream_stats(r.m, &after);
    assert_int_equal(after.layers_pinned, 1);
    assert_int_equal(after.layers_resident, LAYERS);
    assert_int_equal(realm_model_layer_unpin(r.m, 1, &err), REALM_OK);
    model_run_close(&r);

    model_run_open_budget(&r, gguf_of(m), 2, 8, 8, budget_of(&need, 3));
    assert_int_equal(realm_model_layer_pin(r.m, LAYERS, &err), REALM_E_RANGE);
    assert_int_equal(realm_model_layer_unpin(r.m, 0, &err), REALM_E_INVALID);
    assert_int_equal(realm_model_layer_pin(r.m, 1, &err), REALM_OK);
    assert_int_equal(realm_model_layer_pin(r.m, 1, &err), REALM_OK);
    assert_int_equal(realm_model_layer_pin(r.m, 4, &err), REALM_OK);
    assert_int_equal(realm_model_layer_pin(r.m, 2, &err), REALM_E_LIMIT);
    assert_non_null(strstr(err.text, "3 layers, 2 are pinned"));
    realm_model_get_stream_stats(r.m, &before);
    run_all(&r, got); /* three layers through the one place that is left */
    assert_memory_equal(got, want, sizeof got);
    realm_model_get_stream_stats(r.m, &after);
    assert_int_equal(after.layers_pinned, 2);
    /* Each step finds the pinned two; 2 takes the place of 0, 3 that of 2, and 0, for the next step, that of 3. */
    assert_int_equal(after.evictions - before.evictions, 3 * (N_TOKENS / 8));
    assert_int_equal(realm_model_layer_unpin(r.m, 1, &err), REALM_OK);
    assert_int_equal(realm_model_layer_pin(r.m, 2, &err), REALM_E_LIMIT); /* 1 is pinned once more */
    assert_int_equal(realm_model_layer_unpin(r.m, 1, &err), REALM_OK);
    assert_int_equal(realm_model_layer_pin(r.m, 2, &err), REALM_OK);
    model_run_close(&r);

    model_run_open_budget(&r, gguf_of(m), 2, 8, 8, need.least_budget);
    assert_int_equal(realm_model_layer_pin(r.m, 0, &err), REALM_E_LIMIT); /* the one place is the plan's */
    model_run_close(&r);
    tiny_free(m);
}

/* Slots are mapped as they are first used: what fails then is a typed error, and the model goes on when there is memory
 * again; with one slot at least it goes on without. */
static void lack_of_memory(void **state) {
    (void)state;
    static float want[N_TOKENS * TINY_VOCAB], got[N_TOKENS * TINY_VOCAB];
    const tiny_spec spec = spec_of("llama", LAYERS);
    tiny_model *m = tiny_make(&spec);
    const realm_model_memory need = measure(m);
    model_run r;
    model_run_open(&r, gguf_of(m), 2, 8, 8);
    run_all(&r, want);
    model_run_close(&r);
    for (int64_t slots = 0; slots < 3; slots++) {
        model_run_open_budget(&r, gguf_of(m), 2, 8, 8, budget_of(&need, 3));
        int32_t tokens[N_TOKENS];
        uint32_t out = 7;
        realm_error err = {0};
        tokens_of(tokens);
        const realm_batch_seq seq = {.n_rows = 8, .pages = r.pages};
        const realm_batch batch = {
            .n_rows = 8, .tokens = tokens, .n_seqs = 1, .seqs = &seq, .n_out = 1, .out_rows = &out};
        realm_alloc_inject_failure(2 * slots, true); /* a slot is a handle and a mapping */
        realm_status s = r.b->v->run(r.b, r.plan, &batch, &err);
        realm_alloc_inject_failure(-1, false);
        if (slots == 0) {
            assert_int_equal(s, REALM_E_NOMEM);
            assert_non_null(strstr(err.text, "layer 0"));
        } else {
            assert_int_equal(s, REALM_OK);
            assert_memory_equal(model_run_logits(&r, 0), want + (size_t)7 * TINY_VOCAB, TINY_VOCAB * sizeof *want);
        }
        run_all(&r, got);
        assert_memory_equal(got, want, sizeof got);
        /* Pins, too: nothing is counted that is not there. */
        model_run_close(&r);
        model_run_open_budget(&r, gguf_of(m), 2, 8, 8, budget_of(&need, 3));
        realm_model_stream_stats stats;
        realm_alloc_inject_failure(0, true);
        assert_int_equal(realm_model_layer_pin(r.m, 3, &err), REALM_E_NOMEM);
        realm_alloc_inject_failure(-1, false);
        realm_model_get_stream_stats(r.m, &stats);
        assert_int_equal(stats.layers_pinned, 0);
        assert_int_equal(stats.layers_resident, 0);
        assert_int_equal(realm_model_layer_pin(r.m, 3, &err), REALM_OK);
        model_run_close(&r);
    }
    tiny_free(m);
}

static void opening_without_memory(void **state) {
    (void)state;
    const tiny_spec spec = spec_of("llama", 3);
    tiny_model *m = tiny_make(&spec);
    const realm_model_memory need = measure(m);
    realm_gguf *g = gguf_of(m);
    realm_backend *b;
    assert_int_equal(realm_backend_open_cpu(&b, &(realm_backend_config){.n_threads = 1}, NULL), REALM_OK);
    const realm_model_options options = {.weight_budget_bytes = budget_of(&need, 2)};
    for (int64_t after = 0;; after++) {
        realm_error err = {0};
        realm_model *model;
        realm_alloc_inject_failure(after, false);
        realm_status s = realm_model_open(&model, b, g, &options, &err);
        realm_alloc_inject_failure(-1, false);
        if (s == REALM_OK) {
            realm_model_close(model);
            assert_true(after > 20);
            break;
        }
        assert_int_equal(s, REALM_E_NOMEM);
        assert_null(model);
    }
    realm_backend_close(b);
    realm_gguf_close(g);
    tiny_free(m);
}

static void tensors_by_name(void **state) {
    (void)state;
    const tiny_spec spec = spec_of("llama", 3);
    tiny_model *m = tiny_make(&spec);
    const realm_model_memory need = measure(m);
    realm_error err = {0};
    model_run r;
    model_run_open_budget(&r, gguf_of(m), 1, 8, 8, budget_of(&need, 2));
    size_t n, total = 0;
    for (uint32_t layer = 0; layer < 3; layer++) {
        const realm_model_tensor *const *t = realm_model_layer_tensors(r.m, layer, &n);
        assert_int_equal(n, 9);
        char prefix[16];
        snprintf(prefix, sizeof prefix, "blk.%u.", layer);
        for (size_t i = 0; i < n; i++) {
            assert_int_equal(t[i]->layer, layer);
            assert_memory_equal(t[i]->file->name.data, prefix, strlen(prefix));
            assert_true(i == 0 || t[i] > t[i - 1]);
        }
        total += n;
    }
    assert_null(realm_model_layer_tensors(r.m, 3, &n));
    assert_int_equal(total + 3, realm_gguf_tensor_count(r.g)); /* embedding, norm, output */
    assert_null(realm_model_tensor_find(r.m, "blk.0.attn_q", 12));
    assert_null(realm_model_tensor_find(r.m, "", 0));
    assert_null(realm_model_tensor_find(r.m, "blk.0.attn_q.weight\0", 20));
    const char *name = "blk.1.ffn_down.weight.and more";
    const realm_model_tensor *t = realm_model_tensor_find(r.m, name, strlen("blk.1.ffn_down.weight"));
    assert_non_null(t);
    const float *want = tiny_find(m, "blk.1.ffn_down.weight");
    float got[3 * 96];
    assert_int_equal(realm_model_tensor_rows(t, 5, 3, got, &err), REALM_OK);
    assert_memory_equal(got, want + 5 * 96, sizeof got);
    assert_int_equal(realm_model_tensor_rows(t, 62, 3, got, &err), REALM_E_RANGE);
    assert_int_equal(realm_model_tensor_rows(t, UINT64_MAX, 2, got, &err), REALM_E_RANGE);
    model_run_close(&r);
    tiny_free(m);
}

/* The real file under half its size, token for token. */
static void half_of_smollm2(void **state) {
    (void)state;
    static const int32_t prompt[] = {504, 3575, 282, 4649, 314};
    const uint32_t n_prompt = REALM_ARRAY_LEN(prompt), n_all = n_prompt + 20;
    int32_t tokens[2][64];
    const char *path = cached_model("smollm2-135m-instruct-q4_1.gguf");
    if (!path) skip();
    for (int half = 0; half < 2; half++) {
        realm_error err = {0};
        realm_gguf *g;
        model_run r;
        if (realm_gguf_open(&g, path, &err) != REALM_OK) model_run_fail("gguf", &err);
        const uint64_t budget = half ? realm_gguf_file_size(g) / 2 : 0;
        model_run_open_budget(&r, g, 2, 8, 1, budget);
        memcpy(tokens[half], prompt, sizeof prompt);
        for (uint32_t at = 0; at < n_all;) {
            uint32_t n = at == 0 ? n_prompt : 1, top = 0;
            model_run_step(&r, tokens[half], at, n, 1);
            at += n;
            const float *logits = model_run_logits(&r, 0);
            for (uint32_t j = 1; j < realm_model_hparams(r.m)->n_vocab; j++)
                if (logits[j] > logits[top]) top = j;
            tokens[half][at] = (int32_t)top;
        }
        realm_model_stream_stats s;
        realm_model_get_stream_stats(r.m, &s);
        if (half) {
            assert_true(realm_model_weight_bytes(r.m) <= budget);
            assert_true(s.bytes_resident <= budget);
            assert_true(s.evictions > 20 * 15);
        }
        model_run_close(&r);
    }
    assert_memory_equal(tokens[0], tokens[1], n_all * sizeof tokens[0][0]);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(same_at_every_budget),
                                       cmocka_unit_test(too_small),
                                       cmocka_unit_test(counts_of_walks),
                                       cmocka_unit_test(counts_of_uses),
                                       cmocka_unit_test(pins),
                                       cmocka_unit_test(lack_of_memory),
                                       cmocka_unit_test(opening_without_memory),
                                       cmocka_unit_test(tensors_by_name),
                                       cmocka_unit_test(half_of_smollm2)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
