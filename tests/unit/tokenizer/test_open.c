/* Files whose tokenizer tables are wrong, each refused with the key's name; memory that runs out at every site. */
#include "fixture.h"

static void refused(const builder *b, realm_status status, const char *words) {
    realm_tokenizer *t = NULL;
    realm_error err;
    realm_status s = open_built(b, &t, &err);
    if (s != status || !strstr(err.text, words))
        fail_msg("%s \"%s\", not %s with \"%s\"", realm_status_name(s), err.text, realm_status_name(status), words);
    assert_null(t);
}

static void tables_that_contradict(void **state) {
    (void)state;
    static builder b;

    start_spm(&b);
    b.model = "bert";
    refused(&b, REALM_E_UNSUPPORTED, "tokenizer.ggml.model \"bert\"");
    b.model = NULL;
    refused(&b, REALM_E_FORMAT, "tokenizer.ggml.model");
    start_spm(&b);
    b.n = b.n_types = b.n_scores = 0;
    refused(&b, REALM_E_FORMAT, "tokenizer.ggml.tokens: the vocabulary is empty");
    start_bpe(&b, "no-such-pre");
    refused(&b, REALM_E_UNSUPPORTED, "tokenizer.ggml.pre \"no-such-pre\"");

    start_spm(&b);
    b.n_scores--;
    refused(&b, REALM_E_FORMAT, "tokenizer.ggml.scores has 258 elements");
    b.n_scores = 0;
    refused(&b, REALM_E_FORMAT, "tokenizer.ggml.scores is missing");
    start_spm(&b);
    b.n_types++;
    refused(&b, REALM_E_FORMAT, "tokenizer.ggml.token_type has 260 elements");
    start_spm(&b);
    b.n = b.n_types = b.n_scores = 0;
    refused(&b, REALM_E_FORMAT, "tokenizer.ggml");

    const float not_finite[] = {(float)(0.0 / 0.0), 1.0f / 0.0f, -1.0f / 0.0f};
    for (size_t i = 0; i < 3; i++) {
        start_spm(&b);
        b.scores[17] = not_finite[i];
        refused(&b, REALM_E_FORMAT, "tokenizer.ggml.scores: the score of token 17");
    }
    start_spm(&b);
    b.types[9] = 7;
    refused(&b, REALM_E_FORMAT, "tokenizer.ggml.token_type: token 9");
    b.types[9] = -1;
    refused(&b, REALM_E_FORMAT, "tokenizer.ggml.token_type: token 9");
    start_spm(&b);
    add(&b, "<0xZZ>", REALM_TOKEN_BYTE, 0);
    refused(&b, REALM_E_FORMAT, "token 259 is of type byte");

    start_spm(&b);
    add(&b, "twice", REALM_TOKEN_NORMAL, 0);
    add(&b, "twice", REALM_TOKEN_NORMAL, 0);
    refused(&b, REALM_E_FORMAT, "tokens 259 and 260 are both \"twice\"");
    start_spm(&b);
    add(&b, "", REALM_TOKEN_NORMAL, 0); /* empty ones may be many */
    add(&b, "", REALM_TOKEN_NORMAL, 0);
    realm_tokenizer *t;
    realm_error err;
    assert_int_equal(open_built(&b, &t, &err), REALM_OK);
    realm_tokenizer_close(t);

    const char *const ids[] = {"tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id",
                               "tokenizer.ggml.unknown_token_id", "tokenizer.ggml.eot_token_id",
                               "tokenizer.ggml.eom_token_id"};
    for (size_t i = 0; i < 5; i++) {
        start_spm(&b);
        set(&b, ids[i], i % 2 ? 259 : UINT32_MAX, false);
        refused(&b, REALM_E_FORMAT, ids[i]);
    }
    start_bpe(&b, "gpt-2");
    set(&b, "tokenizer.ggml.add_bos_token", 1, true);
    refused(&b, REALM_E_FORMAT, "tokenizer.ggml.add_bos_token");
    start_bpe(&b, "gpt-2");
    set(&b, "tokenizer.ggml.add_eos_token", 1, true);
    refused(&b, REALM_E_FORMAT, "tokenizer.ggml.add_eos_token");

    const struct {
        const char *merge, *words;
    } merges[] = {{"", "no pair"},
                  {"a", "no pair"},
                  {"ab", "no pair"},
                  {"a ", "no pair"},
                  {" a", "no pair"},
                  {"a b", "no token"},
                  {"zz a", "left part"},
                  {"a zz", "right part"},
                  {"a b c", "right part"},
                  {"a  b", "right part"},
                  {"abcdefgh abcdefgh", "no token"}}; /* longer than any token */
    for (size_t i = 0; i < sizeof merges / sizeof *merges; i++) {
        start_bpe(&b, "gpt-2");
        add(&b, "abcdefgh", REALM_TOKEN_NORMAL, 0);
        merge(&b, merges[i].merge);
        refused(&b, REALM_E_FORMAT, "tokenizer.ggml.merges: merge 0");
        refused(&b, REALM_E_FORMAT, merges[i].words);
    }
}

/* Arrays that are none, or of something else. */
static void arrays_of_the_wrong_kind(void **state) {
    (void)state;
    static const uint32_t numbers[] = {1, 2, 3};
    static const float scores[] = {0, 0, 0};
    const realm_gguf_str texts[] = {str("a"), str("b"), str("c")};
    static const struct {
        const char *wrong; /* key */
        bool scalar;
        const char *words;
    } cases[] = {{"tokenizer.ggml.tokens", true, "tokenizer.ggml.tokens is no array"},
                 {"tokenizer.ggml.tokens", false, "tokenizer.ggml.tokens is no array of strings"},
                 {"tokenizer.ggml.scores", true, "tokenizer.ggml.scores is no array"},
                 {"tokenizer.ggml.scores", false, "tokenizer.ggml.scores is no array of numbers"}};
    for (size_t i = 0; i < REALM_ARRAY_LEN(cases); i++) {
        const bool tokens = strcmp(cases[i].wrong, "tokenizer.ggml.tokens") == 0;
        realm_gguf_writer *w;
        realm_gguf *g;
        realm_tokenizer *t = NULL;
        realm_error err = {0};
        void *data;
        size_t len;
        assert_int_equal(realm_gguf_writer_open(&w, 3, 32, &err), REALM_OK);
        assert_int_equal(realm_gguf_put_str(w, "tokenizer.ggml.model", "llama", 5), REALM_OK);
        if (cases[i].scalar)
            assert_int_equal(realm_gguf_put_u32(w, cases[i].wrong, 3), REALM_OK);
        else if (tokens)
            assert_int_equal(realm_gguf_put_array(w, cases[i].wrong, REALM_GGUF_U32, numbers, 3), REALM_OK);
        else
            assert_int_equal(realm_gguf_put_strs(w, cases[i].wrong, texts, 3), REALM_OK);
        if (tokens)
            assert_int_equal(realm_gguf_put_array(w, "tokenizer.ggml.scores", REALM_GGUF_F32, scores, 3), REALM_OK);
        else
            assert_int_equal(realm_gguf_put_strs(w, "tokenizer.ggml.tokens", texts, 3), REALM_OK);
        assert_int_equal(realm_gguf_writer_finish(w, &data, &len, &err), REALM_OK);
        assert_int_equal(realm_gguf_open_memory(&g, data, len, &err), REALM_OK);
        assert_int_equal(realm_tokenizer_open(&t, g, &err), REALM_E_FORMAT);
        if (!strstr(err.text, cases[i].words)) fail_msg("%s, not %s", err.text, cases[i].words);
        assert_null(t);
        realm_gguf_close(g);
        realm_gguf_writer_close(w);
        realm_free(data);
    }
}

static void sizes_past_the_limits(void **state) {
    (void)state;
    static builder b;
    static char big[(1 << 16) + 2];
    memset(big, 'x', sizeof big - 1);
    start_spm(&b);
    add(&b, big + 1, REALM_TOKEN_NORMAL, 0); /* 65,536 bytes */
    realm_tokenizer *t;
    realm_error err;
    assert_int_equal(open_built(&b, &t, &err), REALM_OK);
    realm_tokenizer_close(t);
    start_spm(&b);
    add(&b, big, REALM_TOKEN_NORMAL, 0);
    refused(&b, REALM_E_LIMIT, "tokenizer.ggml.tokens: token 259 has 65537 bytes");
    start_spm(&b);
    add(&b, big + 100, REALM_TOKEN_USER_DEFINED, 0);
    refused(&b, REALM_E_LIMIT, "tokenizer.ggml.tokens: special token 259");

    const size_t n = (1u << 20) + 1;
    realm_gguf_str *tokens = calloc(n, sizeof *tokens);
    realm_gguf_writer *w;
    realm_gguf *g;
    void *data;
    size_t len;
    for (size_t i = 0; i < n; i++) tokens[i] = str("");
    assert_int_equal(realm_gguf_writer_open(&w, 3, 32, &err), REALM_OK);
    assert_int_equal(realm_gguf_put_str(w, "tokenizer.ggml.model", "llama", 5), REALM_OK);
    assert_int_equal(realm_gguf_put_strs(w, "tokenizer.ggml.tokens", tokens, n), REALM_OK);
    assert_int_equal(realm_gguf_writer_finish(w, &data, &len, &err), REALM_OK);
    assert_int_equal(realm_gguf_open_memory(&g, data, len, &err), REALM_OK);
    assert_int_equal(realm_tokenizer_open(&t, g, &err), REALM_E_LIMIT);
    assert_non_null(strstr(err.text, "1048577 tokens"));
    realm_gguf_close(g);
    realm_gguf_writer_close(w);
    realm_free(data);
    free(tokens);
}

static void memory_runs_out_anywhere(void **state) {
    (void)state;
    const char *files[] = {DATA "llama-bpe.gguf", DATA "spm.gguf"};
    const char *text = "The quick <|x|>y brown \xF0\x9F\x98\x80 fox [INST] 12345 <s> isn't here";
    for (size_t f = 0; f < 2; f++) {
        realm_gguf *g;
        realm_tokenizer *t = NULL;
        realm_error err = {0};
        assert_int_equal(realm_gguf_open(&g, files[f], &err), REALM_OK);
        int64_t fails = 0;
        for (;; fails++) {
            realm_alloc_inject_failure(fails, false);
            realm_status s = realm_tokenizer_open(&t, g, &err);
            realm_alloc_inject_failure(-1, false);
            if (s == REALM_OK) break;
            assert_int_equal(s, REALM_E_NOMEM);
            assert_null(t);
        }
        assert_true(fails >= 10);
        realm_gguf_close(g);

        realm_tokens out = {0};
        assert_int_equal(realm_tokens_push(&out, 7), REALM_OK);
        for (fails = 0;; fails++) {
            out.cap = out.len; /* so that the first push has to grow */
            realm_alloc_inject_failure(fails, false);
            realm_status s = realm_tokenizer_encode(t, text, strlen(text), 3, SIZE_MAX, &out, &err);
            realm_alloc_inject_failure(-1, false);
            if (s == REALM_OK) break;
            assert_int_equal(s, REALM_E_NOMEM);
            assert_int_equal(out.len, 1);
            assert_int_equal(out.ids[0], 7);
        }
        assert_true(fails >= 3);

        realm_buf buf;
        for (fails = 0;; fails++) {
            realm_buf_init(&buf, 1 << 20);
            realm_alloc_inject_failure(fails, false);
            realm_status s = realm_tokenizer_decode(t, out.ids, out.len, true, &buf, &err);
            realm_alloc_inject_failure(-1, false);
            if (s == REALM_OK) break;
            assert_int_equal(s, REALM_E_NOMEM);
            assert_int_equal(buf.len, 0);
            realm_buf_release(&buf);
        }
        assert_true(fails >= 1);
        realm_buf_release(&buf);

        /* A stream that failed can be pushed again. */
        realm_detok d;
        realm_detok_init(&d, t, true);
        realm_buf_init(&buf, 1 << 20);
        realm_alloc_inject_failure(0, false);
        assert_int_equal(realm_detok_push(&d, out.ids[2], &buf), REALM_E_NOMEM);
        realm_alloc_inject_failure(-1, false);
        realm_buf_reset(&buf);
        assert_int_equal(realm_detok_push(&d, out.ids[2], &buf), REALM_OK);
        const char *bytes;
        size_t len;
        assert_int_equal(realm_tokenizer_piece(t, out.ids[2], true, &bytes, &len), REALM_OK);
        assert_int_equal(buf.len, len);
        realm_buf_release(&buf);
        realm_tokens_release(&out);
        realm_tokenizer_close(t);
    }
}

/* Bytes of a file changed at random: it opens and works, or is refused with a line. */
static void damaged_files(void **state) {
    (void)state;
    const char *files[] = {DATA "gpt-2.gguf", DATA "spm.gguf"};
    for (size_t f = 0; f < 2; f++) {
        static char good[1 << 16], bad[1 << 16];
        FILE *in = fopen(files[f], "rb");
        assert_non_null(in);
        size_t len = fread(good, 1, sizeof good, in), opened = 0;
        fclose(in);
        assert_in_range(len, 1000, sizeof good - 1);
        uint64_t seed = 21 + f;
        for (unsigned round = 0; round < 400; round++) {
            memcpy(bad, good, len);
            for (unsigned k = 1 + next_random(&seed) % 4; k > 0; k--)
                bad[next_random(&seed) % len] = (char)next_random(&seed);
            realm_gguf *g;
            realm_tokenizer *t;
            realm_error err = {0};
            if (realm_gguf_open_memory(&g, bad, len, &err) != REALM_OK) continue;
            if (realm_tokenizer_open(&t, g, &err) == REALM_OK) {
                char s[256];
                realm_tokens out = encode(t, s, random_text(&seed, s, 60), 3);
                realm_tokens_release(&out);
                realm_tokenizer_close(t);
                opened++;
            } else {
                assert_true(err.text[0] != '\0');
            }
            realm_gguf_close(g);
        }
        assert_in_range(opened, 1, 399);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(tables_that_contradict),
                                       cmocka_unit_test(arrays_of_the_wrong_kind),
                                       cmocka_unit_test(sizes_past_the_limits),
                                       cmocka_unit_test(memory_runs_out_anywhere), cmocka_unit_test(damaged_files)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
