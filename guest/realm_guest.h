/* realm_guest.h - for programs in C: the host's functions, and the few things a freestanding program misses.
 *
 * Build with clang for wasm32, no library needed:
 *
 *   clang --target=wasm32 -O2 -ffreestanding -nostdlib -Wl,--no-entry -I guest -I include -o program.wasm program.c
 *
 * A program exports realm_main(): it reads the request with realm_input, starts generations, hands text out with
 * realm_emit or lets tokens go straight to the client (REALM_MODE_PIPE), and returns 0, or the negative code of what
 * failed. docs/abi.md describes every function; all return a negative realm_status on failure and leave a line of text
 * for realm_last_error. Functions that give bytes or tokens return how many there are, and write them only when all
 * fit.
 */
#ifndef REALM_GUEST_H
#define REALM_GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "realm/abi.h"
#include "realm/status.h"

#define REALM_EXPORT(name) __attribute__((export_name(#name), visibility("default")))
#if UINTPTR_MAX > 0xffffffffu
#define REALM_IMPORT(name) __attribute__((import_module("realm64"), import_name(#name)))
#else
#define REALM_IMPORT(name) __attribute__((import_module("realm"), import_name(#name)))
#endif

/* States the version of the ABI that this program was built for, in a custom section of the module that the host reads
 * without running anything: minor and major version, 16 bits each, little end first. Once per program. */
#ifndef REALM_GUEST_NO_STATEMENT
#define REALM_ABI_TEXT_(x) #x
#define REALM_ABI_TEXT(x) REALM_ABI_TEXT_(x)
__asm__(".section .custom_section.realm.abi,\"\",@\n.int16 " REALM_ABI_TEXT(REALM_ABI_MINOR) "\n.int16 " REALM_ABI_TEXT(
    REALM_ABI_MAJOR) "\n.text");
#endif

/* ---- about the host ---- */
int32_t realm_abi_version(void) REALM_IMPORT(abi_version);
int32_t realm_limits_get(realm_guest_limits *out, size_t max) REALM_IMPORT(limits_get);
int32_t realm_last_error(char *out, size_t max) REALM_IMPORT(last_error);
int32_t realm_log(int32_t level, const char *text, size_t len) REALM_IMPORT(log); /* 0 debug .. 3 error */
int32_t realm_clock_ms(uint32_t clock, int64_t *out) REALM_IMPORT(clock_ms);
int32_t realm_random(void *out, size_t len) REALM_IMPORT(random);

/* ---- input and output ---- */
/* The request as JSON (name_len 0), or a field of it: a string as its text, anything else as JSON. */
int32_t realm_input(const char *name, size_t name_len, char *out, size_t max) REALM_IMPORT(input);
/* Hands text to the client; waits while the client is slow. */
int32_t realm_emit(const char *text, size_t len) REALM_IMPORT(emit);
int32_t realm_stream_token(int32_t token, const char *text, size_t len) REALM_IMPORT(realm_stream_token);
int32_t realm_finish(uint32_t reason) REALM_IMPORT(finish); /* REALM_END_STOP, REALM_END_LENGTH */

/* ---- text ---- */
int32_t realm_encode(const char *text, size_t len, uint32_t flags, int32_t *out, size_t max) REALM_IMPORT(encode);
int32_t realm_decode(const int32_t *tokens, size_t n, uint32_t flags, char *out, size_t max) REALM_IMPORT(decode);
int32_t realm_token_piece(int32_t token, uint32_t flags, char *out, size_t max) REALM_IMPORT(token_piece);

/* ---- prompts: handles ---- */
int32_t realm_prompt_own(void) REALM_IMPORT(prompt_own); /* the request's own */
int32_t realm_prompt_chat(const char *messages, size_t messages_len, const char *tools, size_t tools_len,
                          uint32_t flags) REALM_IMPORT(prompt_chat);
int32_t realm_prompt_text(const char *text, size_t len, uint32_t flags) REALM_IMPORT(prompt_text);
int32_t realm_prompt_tokens(const int32_t *tokens, size_t n) REALM_IMPORT(prompt_tokens);
int32_t realm_prompt_get_text(int32_t prompt, char *out, size_t max) REALM_IMPORT(prompt_get_text);
int32_t realm_prompt_get_tokens(int32_t prompt, int32_t *out, size_t max) REALM_IMPORT(prompt_get_tokens);

/* ---- generations: handles ---- */
/* `options` NULL: the request's own parameters. */
int32_t realm_generate(int32_t prompt, const realm_generate_options *options, uint32_t mode) REALM_IMPORT(generate);
/* Events of one generation, or of any (0); waits until there are some, at most timeout_ms (-1: for ever). */
int32_t realm_wait(int32_t generation, realm_guest_event *events, size_t max_events, char *text, size_t max_text,
                   int32_t timeout_ms) REALM_IMPORT(wait);
int32_t realm_usage(int32_t generation, realm_guest_usage *out) REALM_IMPORT(usage);
int32_t realm_cancel(int32_t generation) REALM_IMPORT(cancel);
int32_t realm_close(int32_t handle) REALM_IMPORT(close);
/* Prompt in, text out: a whole generation, batched with everybody's. */
int32_t realm_host_generate(int32_t model, const char *prompt, size_t prompt_len, const realm_generate_options *options,
                            char *out, size_t max) REALM_IMPORT(realm_host_generate);

/* ---- helpers ---- */

/* The compiler may call these three for copies and zeroed structures; with -mbulk-memory they are single instructions.
 * Weak, so that a program with a C library keeps its own. */
__attribute__((weak, no_builtin)) void *memset(void *to, int value, size_t n) {
    for (size_t i = 0; i < n; i++) ((unsigned char *)to)[i] = (unsigned char)value;
    return to;
}
__attribute__((weak, no_builtin)) void *memcpy(void *restrict to, const void *restrict from, size_t n) {
    for (size_t i = 0; i < n; i++) ((unsigned char *)to)[i] = ((const unsigned char *)from)[i];
    return to;
}
__attribute__((weak, no_builtin)) void *memmove(void *to, const void *from, size_t n) {
    bool up = (uintptr_t)to <= (uintptr_t)from;
    for (size_t k = 0; k < n; k++) {
        size_t i = up ? k : n - 1 - k;
        ((unsigned char *)to)[i] = ((const unsigned char *)from)[i];
    }
    return to;
}

#define REALM_LITERAL(s) (s), (sizeof(s) - 1)

static inline size_t realm_strlen(const char *s) {
    size_t n = 0;
    while (s[n]) n++;
    return n;
}

#endif
