/* A WASI command by clang and wasi-libc. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

__attribute__((import_module("realm"), import_name("emit"))) int emit(const char *text, size_t len);

static long long now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

int main(int argc, char **argv) {
    struct timespec ms = {0, 20000000};
    char text[512];
    long long began = now_ms();
    nanosleep(&ms, NULL);
    printf("printed\n");
    const char *env = getenv("GREETING");
    snprintf(text, sizeof text, "args=%d,%s,%s env=%s slept=%d files=%d eof=%d", argc, argv[0], argc > 1 ? argv[1] : "",
             env ? env : "", now_ms() - began >= 20, fopen("/etc/passwd", "r") != NULL, getchar() == EOF);
    emit(text, strlen(text));
    return argc > 1 && !strcmp(argv[1], "fail") ? 3 : 0;
}
