/* realm_guest.h - for programs in C: the host's functions, and the few things a freestanding program misses.
 *
 * Build with clang for wasm32, no library needed:
 *
 *   clang --target=wasm32 -O2 -ffreestanding -nostdlib -Wl,--no-entry -I guest/c -I include -o program.wasm program.c
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

#include "realm_calls.h"

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
