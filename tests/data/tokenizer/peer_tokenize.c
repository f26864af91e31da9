/* Tokenises for make_golden.py through llama.cpp's public interface: PROGRAM MODEL.gguf
 *
 * stdin: records of u32 length, u8 flags (1: add special tokens, 2: parse special tokens), bytes.
 * stdout: records of u32 count, i32 ids.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llama.h"

static void quiet(enum ggml_log_level level, const char *text, void *user) {
    (void)user;
    if (level >= GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    llama_log_set(quiet, NULL);
    struct llama_model_params params = llama_model_default_params();
    params.vocab_only = true;
    struct llama_model *model = llama_model_load_from_file(argv[1], params);
    if (!model) return 1;
    const struct llama_vocab *vocab = llama_model_get_vocab(model);
    unsigned char head[5];
    while (fread(head, 1, sizeof head, stdin) == sizeof head) {
        unsigned len;
        memcpy(&len, head, sizeof len);
        char *text = malloc(len + 1u);
        int cap = 4 * (int)len + 16;
        llama_token *ids = malloc((size_t)cap * sizeof *ids);
        if (!text || !ids || fread(text, 1, len, stdin) != len) return 1;
        int n = llama_tokenize(vocab, text, (int)len, ids, cap, head[4] & 1, head[4] & 2);
        if (n < 0) return 1;
        fwrite(&n, sizeof n, 1, stdout);
        fwrite(ids, sizeof *ids, (size_t)n, stdout);
        free(ids);
        free(text);
    }
    llama_model_free(model);
    return 0;
}
