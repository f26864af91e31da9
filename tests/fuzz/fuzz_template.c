/* A chat template and a message for it, divided at the first NUL: compiling and rendering end, with a result whose
 * pieces cover it or with an error that says something. The Rust side is not instrumented; its seeds are the templates
 * of tests/data/template. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "template/template.h"

#define STR(text) {text, sizeof(text) - 1}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const realm_template_str control[] = {STR("<|im_start|>"), STR("<|im_end|>"), STR("[INST]"), STR("[/INST]")};
    static const realm_template_tokens tokens = {STR("<s>"), STR("</s>"), control, 4};
    static const char hex[] = "0123456789abcdef";
    const uint8_t *cut = size ? memchr(data, 0, size) : NULL;
    size_t len = cut ? (size_t)(cut - data) : size;

    realm_template *t;
    realm_error err = {0};
    realm_status s = realm_template_open(&t, (const char *)data, len, &tokens, &err);
    if (s != REALM_OK) {
        if (t || !err.text[0] || s == REALM_E_INTERNAL) abort();
        return 0;
    }

    realm_buf messages, out;
    realm_buf_init(&messages, 1 << 20);
    realm_buf_init(&out, 1 << 20);
    realm_buf_puts(&messages, "[{\"role\":\"system\",\"content\":\"x\"},{\"role\":\"user\",\"content\":\"");
    for (size_t i = len + 1; i < size; i++) {
        realm_buf_puts(&messages, "\\u00");
        realm_buf_putc(&messages, hex[data[i] >> 4]);
        realm_buf_putc(&messages, hex[data[i] & 15]);
    }
    realm_buf_puts(&messages, "\"}]");
    realm_template_input in = {.messages = {messages.data, messages.len}, .tools = STR("[{\"type\":\"function\"}]")};
    realm_template_spans spans = {0};
    if (realm_buf_status(&messages) == REALM_OK) {
        s = realm_template_render(t, &in, &out, &spans, &err);
        if (s == REALM_E_INTERNAL) {
            fprintf(stderr, "%s\n", err.text);
            abort();
        }
        size_t at = 0;
        for (size_t i = 0; i < spans.len; i++) {
            if (spans.items[i].start != at || spans.items[i].len == 0) abort();
            at += spans.items[i].len;
        }
        if (s == REALM_OK && at != out.len) abort();
    }
    realm_template_spans_release(&spans);
    realm_buf_release(&out);
    realm_buf_release(&messages);
    realm_template_close(t);
    return 0;
}
