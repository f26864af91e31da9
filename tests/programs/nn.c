/* A program as it is written for runtimes with a GGML backend for wasi-nn: preloaded model "default", the chat template
 * by hand, settings as JSON, the answer whole and then token by token. The only thing of Realm's is where the answer
 * goes. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NN(name) __attribute__((import_module("wasi_ephemeral_nn"), import_name(name)))
NN("load_by_name") int load_by_name(const char *name, size_t len, uint32_t *graph);
NN("init_execution_context") int init_execution_context(uint32_t graph, uint32_t *context);
NN("set_input") int set_input(uint32_t context, uint32_t index, const void *tensor);
NN("compute") int compute(uint32_t context);
NN("compute_single") int compute_single(uint32_t context);
NN("get_output") int get_output(uint32_t context, uint32_t index, void *out, size_t max, size_t *written);
NN("get_output_single") int get_output_single(uint32_t context, uint32_t index, void *out, size_t max, size_t *written);
NN("fini_single") int fini_single(uint32_t context);
NN("unload") int unload(uint32_t graph);
__attribute__((import_module("realm"), import_name("emit"))) int emit(const char *text, size_t len);

enum { END_OF_SEQUENCE = 100 };

static void must(int e, const char *what) {
    if (!e) return;
    fprintf(stderr, "%s: error %d\n", what, e);
    exit(1);
}

static void set_text(uint32_t context, uint32_t index, const char *text) {
    const uint32_t dims[] = {1};
    struct {
        const uint32_t *dims;
        size_t n_dims;
        uint32_t type; /* 3: u8 */
        const char *data;
        size_t len;
    } tensor = {dims, 1, 3, text, strlen(text)};
    must(set_input(context, index, &tensor), "set_input");
}

int main(void) {
    uint32_t graph, context;
    static char whole[4096], numbers[256], all[4096];
    size_t n = 0, len = 0;
    must(load_by_name("default", 7, &graph), "load_by_name");
    must(init_execution_context(graph, &context), "init_execution_context");
    set_text(context, 1,
             "{\"temp\": 0.0, \"n-predict\": 24, \"ctx-size\": 512, \"stream-stdout\": false, \"threads\": 2}");
    set_text(context, 0,
             "<|im_start|>user\nWhat is the capital of France? Answer in one sentence.<|im_end|>\n"
             "<|im_start|>assistant\n");
    must(compute(context), "compute");
    must(get_output(context, 0, whole, sizeof whole - 1, &len), "get_output");
    must(get_output(context, 1, numbers, sizeof numbers - 1, &n), "get_output");
    emit(whole, len);
    emit("\n", 1);
    emit(numbers, n);
    /* the same, token by token */
    size_t total = 0;
    for (int i = 0;; i++) {
        int e = compute_single(context);
        if (e == END_OF_SEQUENCE || i == 24) break;
        must(e, "compute_single");
        must(get_output_single(context, 0, all + total, sizeof all - total, &n), "get_output_single");
        total += n;
    }
    must(fini_single(context), "fini_single");
    must(unload(graph), "unload");
    const char *same = total == len && !memcmp(all, whole, len) ? "\nthe same token by token" : "\nothers";
    emit(same, strlen(same));
    return 0;
}
