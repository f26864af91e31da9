/* Writes WebAssembly modules for tests that need hundreds of them: imports, one memory, a table of cases.
 *
 * realm_main asks input() for the length of the request's field "c" and calls the case of that number, so that one
 * compiled module holds every case and each case runs in an instance of its own. */
#ifndef TESTS_UNIT_TENANT_WASM_WRITER_H
#define TESTS_UNIT_TENANT_WASM_WRITER_H

#include "base/buf.h"
#include "sandbox/sandbox.h"

#define WASM_I32 0x7f
#define WASM_I64 0x7e
#define WASM_PAGE 65536u

typedef struct wasm_writer {
    realm_buf types, imports, bodies;
    const realm_import *table; /* what can be called: function i of the module is import i */
    size_t n_table;
    uint32_t n_cases;
    bool wide;
} wasm_writer;

static void wasm_byte(realm_buf *b, unsigned v) {
    char c = (char)v;
    if (realm_buf_append(b, &c, 1)) abort();
}

static void wasm_u(realm_buf *b, uint64_t v) {
    for (; v >= 0x80; v >>= 7) wasm_byte(b, (unsigned)(v & 0x7f) | 0x80u);
    wasm_byte(b, (unsigned)v);
}

static void wasm_s(realm_buf *b, int64_t v) {
    for (;;) {
        unsigned byte = (unsigned)v & 0x7fu;
        v >>= 7;
        if ((v == 0 && !(byte & 0x40)) || (v == -1 && (byte & 0x40))) {
            wasm_byte(b, byte);
            return;
        }
        wasm_byte(b, byte | 0x80u);
    }
}

static void wasm_text(realm_buf *b, const char *s) {
    wasm_u(b, strlen(s));
    if (realm_buf_puts(b, s)) abort();
}

static void wasm_section(realm_buf *out, unsigned id, const realm_buf *content) {
    wasm_byte(out, id);
    wasm_u(out, content->len);
    if (content->len && realm_buf_append(out, content->data, content->len)) abort();
}

static unsigned wasm_letter(char letter, bool wide) {
    switch (letter) {
    case 'p': return wide ? WASM_I64 : WASM_I32;
    case 'l': return WASM_I64;
    case 'f': return 0x7d;
    case 'd': return 0x7c;
    default: return WASM_I32;
    }
}

/* A constant for a parameter of that letter. */
static void wasm_const(realm_buf *b, char letter, bool wide, uint64_t v) {
    unsigned type = wasm_letter(letter, wide);
    if (type == WASM_I64) {
        wasm_byte(b, 0x42);
        wasm_s(b, (int64_t)v);
    } else if (type == WASM_I32) {
        wasm_byte(b, 0x41);
        wasm_s(b, (int32_t)(uint32_t)v);
    } else {
        wasm_byte(b, type == 0x7d ? 0x43 : 0x44);
        for (unsigned i = 0; i < (type == 0x7d ? 4u : 8u); i++) wasm_byte(b, (unsigned)(v >> 8 * i) & 0xffu);
    }
}

static void wasm_call(realm_buf *b, uint32_t function) {
    wasm_byte(b, 0x10);
    wasm_u(b, function);
}
static void wasm_set(realm_buf *b, uint32_t local) {
    wasm_byte(b, 0x21);
    wasm_u(b, local);
}
static void wasm_get(realm_buf *b, uint32_t local) {
    wasm_byte(b, 0x20);
    wasm_u(b, local);
}
static void wasm_address(realm_buf *b, const wasm_writer *w, uint64_t at) { wasm_const(b, 'p', w->wide, at); }
static void wasm_load64(realm_buf *b) {
    wasm_byte(b, 0x29);
    wasm_byte(b, 0);
    wasm_byte(b, 0);
}

static void wasm_open(wasm_writer *w, const realm_import *table, size_t n, bool wide) {
    memset(w, 0, sizeof *w);
    realm_buf_init(&w->types, 1u << 24);
    realm_buf_init(&w->imports, 1u << 24);
    realm_buf_init(&w->bodies, 1u << 24);
    w->table = table;
    w->n_table = n;
    w->wide = wide;
    for (size_t i = 0; i < n; i++) {
        wasm_byte(&w->types, 0x60);
        wasm_u(&w->types, strlen(table[i].params));
        for (const char *p = table[i].params; *p; p++) wasm_byte(&w->types, wasm_letter(*p, table[i].wide));
        char result = table[i].result;
        wasm_u(&w->types, result == 'v' ? 0 : 1);
        if (result != 'v') wasm_byte(&w->types, wasm_letter(result, table[i].wide)); /* 0 is an i32 */
        wasm_text(&w->imports, table[i].module);
        wasm_text(&w->imports, table[i].name);
        wasm_byte(&w->imports, 0);
        wasm_u(&w->imports, i);
    }
    wasm_byte(&w->types, 0x60); /* type n: () -> i32, of realm_main and every case */
    wasm_u(&w->types, 0);
    wasm_u(&w->types, 1);
    wasm_byte(&w->types, WASM_I32);
}

/* Adds a case with n_locals i32 locals; `code` ends with an i32 on the stack. Returns its number. */
static uint32_t wasm_case(wasm_writer *w, uint32_t n_locals, const realm_buf *code) {
    realm_buf head;
    realm_buf_init(&head, 64);
    wasm_u(&head, 1);
    wasm_u(&head, n_locals);
    wasm_byte(&head, WASM_I32);
    wasm_u(&w->bodies, head.len + code->len + 1);
    if (realm_buf_append(&w->bodies, head.data, head.len) || realm_buf_append(&w->bodies, code->data, code->len))
        abort();
    wasm_byte(&w->bodies, 0x0b);
    realm_buf_release(&head);
    return w->n_cases++;
}

/* The module's bytes, with `data` at address 0 on; the writer is released. `input` is the index of input() in the
 * table, `field` the address of the letter "c". */
static void wasm_finish(wasm_writer *w, uint32_t input, uint64_t field, const void *data, size_t len, realm_buf *out) {
    realm_buf s;
    uint32_t type = (uint32_t)w->n_table;
    realm_buf_init(out, 1u << 25);
    realm_buf_init(&s, 1u << 25);
    if (realm_buf_append(out, "\0asm\1\0\0\0", 8)) abort();

    wasm_u(&s, w->n_table + 1);
    if (realm_buf_append(&s, w->types.data, w->types.len)) abort();
    wasm_section(out, 1, &s);
    realm_buf_reset(&s);

    wasm_u(&s, w->n_table);
    if (realm_buf_append(&s, w->imports.data, w->imports.len)) abort();
    wasm_section(out, 2, &s);
    realm_buf_reset(&s);

    wasm_u(&s, w->n_cases + 1);
    for (uint32_t i = 0; i <= w->n_cases; i++) wasm_u(&s, type);
    wasm_section(out, 3, &s);
    realm_buf_reset(&s);

    wasm_u(&s, 1); /* a table of functions */
    wasm_byte(&s, 0x70);
    wasm_byte(&s, 0);
    wasm_u(&s, w->n_cases);
    wasm_section(out, 4, &s);
    realm_buf_reset(&s);

    wasm_u(&s, 1);
    wasm_byte(&s, w->wide ? 4 : 0);
    wasm_u(&s, 1);
    wasm_section(out, 5, &s);
    realm_buf_reset(&s);

    wasm_u(&s, 2);
    wasm_text(&s, "memory");
    wasm_byte(&s, 2);
    wasm_u(&s, 0);
    wasm_text(&s, "realm_main");
    wasm_byte(&s, 0);
    wasm_u(&s, w->n_table);
    wasm_section(out, 7, &s);
    realm_buf_reset(&s);

    wasm_u(&s, 1); /* the cases into the table */
    wasm_u(&s, 0);
    wasm_const(&s, 'i', false, 0);
    wasm_byte(&s, 0x0b);
    wasm_u(&s, w->n_cases);
    for (uint32_t i = 0; i < w->n_cases; i++) wasm_u(&s, w->n_table + 1 + i);
    wasm_section(out, 9, &s);
    realm_buf_reset(&s);

    realm_buf body;
    realm_buf_init(&body, 256);
    wasm_u(&body, 0);
    wasm_address(&body, w, field);
    wasm_address(&body, w, 1);
    wasm_address(&body, w, 0);
    wasm_address(&body, w, 0);
    wasm_call(&body, input);
    wasm_byte(&body, 0x11); /* call_indirect */
    wasm_u(&body, type);
    wasm_u(&body, 0);
    wasm_byte(&body, 0x0b);
    wasm_u(&s, w->n_cases + 1);
    wasm_u(&s, body.len);
    if (realm_buf_append(&s, body.data, body.len) || realm_buf_append(&s, w->bodies.data, w->bodies.len)) abort();
    wasm_section(out, 10, &s);
    realm_buf_reset(&s);
    realm_buf_release(&body);

    wasm_u(&s, 1);
    wasm_u(&s, 0);
    wasm_address(&s, w, 0);
    wasm_byte(&s, 0x0b);
    wasm_u(&s, len);
    if (realm_buf_append(&s, data, len)) abort();
    wasm_section(out, 11, &s);
    realm_buf_release(&s);
    realm_buf_release(&w->types);
    realm_buf_release(&w->imports);
    realm_buf_release(&w->bodies);
}

#endif
