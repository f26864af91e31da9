/* Ids of the reference implementations for every text of tests/data/tokenizer/strings.txt, seven vocabularies
 * (tests/data/tokenizer/make_golden.py). */
#include "fixture.h"

typedef struct reader {
    FILE *f;
    char *line;
    size_t cap;
} reader;

static reader open_lines(const char *path) {
    reader r = {.f = fopen(path, "r")};
    if (!r.f) fail_msg("%s is not there", path);
    return r;
}

static bool next_line(reader *r) { return getline(&r->line, &r->cap, r->f) >= 0; }

static void close_lines(reader *r) {
    fclose(r->f);
    free(r->line);
}

static size_t from_hex(char *s) {
    size_t n = 0;
    unsigned v;
    for (; sscanf(s + 2 * n, "%2x", &v) == 1; n++) s[n] = (char)v;
    return n;
}

static void check(const char *name, const char *model) {
    char path[256];
    realm_tokenizer *t = open_file(model);
    reader texts = open_lines(DATA "strings.txt");
    snprintf(path, sizeof path, DATA "%s.ids", name);
    reader ids = open_lines(path);
    size_t n = 0;
    for (; next_line(&texts); n++) {
        assert_true(next_line(&ids));
        unsigned flags = (unsigned)(texts.line[0] - '0');
        char *text = texts.line + 2;
        size_t len = from_hex(text);
        realm_tokens got = encode(t, text, len, flags);
        char *at = ids.line;
        for (size_t i = 0;; i++) {
            char *end;
            long want = strtol(at, &end, 10);
            if (end == at) {
                if (i != got.len)
                    fail_msg("%s, text %zu \"%.*s\": %zu ids, not %zu", name, n, (int)len, text, got.len, i);
                break;
            }
            if (i >= got.len || got.ids[i] != want)
                fail_msg("%s, text %zu \"%.*s\": id %zu is %d, not %ld", name, n, (int)len, text, i,
                         i < got.len ? got.ids[i] : -1, want);
            at = end;
        }
        realm_tokens_release(&got);
    }
    assert_false(next_line(&ids));
    assert_true(n >= 1000);
    close_lines(&ids);
    close_lines(&texts);
    realm_tokenizer_close(t);
}

#define SMALL(name, id)                 \
    static void id(void **state) {      \
        (void)state;                    \
        check(name, DATA name ".gguf"); \
    }
SMALL("gpt-2", gpt2)
SMALL("default", default_pre)
SMALL("llama-bpe", llama_bpe)
SMALL("qwen2", qwen2)
SMALL("spm", spm)

static void smollm2(void **state) {
    (void)state;
    check("smollm2", cached_model("smollm2-135m-instruct-q4_1.gguf"));
}

static void gemma3(void **state) {
    (void)state;
    check("gemma3", cached_model("gemma-3-270m-q4_k_m.gguf"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gpt2), cmocka_unit_test(default_pre), cmocka_unit_test(llama_bpe), cmocka_unit_test(qwen2),
        cmocka_unit_test(spm),  cmocka_unit_test(smollm2),     cmocka_unit_test(gemma3)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
