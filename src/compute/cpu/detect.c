/* compute/cpu/detect.c - which instruction sets may be used, and how much the caches hold. Compiled at the baseline,
 * like everything outside x86/.
 *
 * An instruction set counts only when the processor has it (CPUID) and the operating system saves its registers
 * (XCR0, read by XGETBV): bits 1 and 2 for the 256-bit registers, 5 to 7 for the masks and the 512-bit ones. Bit
 * numbers: Intel Software Developer's Manual, volume 2A, CPUID; volume 1, 13.3.
 */
#include <stdio.h>

#include "compute/cpu/cpu.h"

const char *realm_cpu_level_name(realm_cpu_level level) {
    switch (level) {
    case REALM_CPU_SCALAR: return "scalar";
    case REALM_CPU_AVX2: return "avx2";
    case REALM_CPU_AVX512: return "avx512";
    case REALM_CPU_VNNI: return "vnni";
    }
    return "unknown";
}

#if defined(__x86_64__)
#include <cpuid.h>

static bool has(uint32_t reg, uint32_t bits) { return (reg & bits) == bits; }

realm_cpu_level realm_cpu_detect(void) {
    uint32_t a, b, c, d, xcr0, xcr0_high;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return REALM_CPU_SCALAR;
    /* FMA, OSXSAVE, AVX, F16C */
    if (!has(c, 1u << 12 | 1u << 27 | 1u << 28 | 1u << 29)) return REALM_CPU_SCALAR;
    __asm__ volatile("xgetbv" : "=a"(xcr0), "=d"(xcr0_high) : "c"(0));
    if (!has(xcr0, 0x06)) return REALM_CPU_SCALAR;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return REALM_CPU_SCALAR;
    /* AVX2, BMI2 */
    if (!has(b, 1u << 5 | 1u << 8)) return REALM_CPU_SCALAR;
    /* AVX512 F, DQ, BW, VL */
    if (!has(xcr0, 0xe6) || !has(b, 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31)) return REALM_CPU_AVX2;
    return has(c, 1u << 11) ? REALM_CPU_VNNI : REALM_CPU_AVX512;
}
#else
realm_cpu_level realm_cpu_detect(void) { return REALM_CPU_SCALAR; }
#endif

/* As the kernel tells it; what CPUID says of a virtual machine's processor may be of the whole socket. */
uint64_t realm_cpu_cache_bytes(void) {
    uint64_t most = 0;
    for (unsigned i = 0;; i++) {
        char path[80];
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%u/size", i);
        FILE *f = fopen(path, "re");
        if (!f) return most;
        unsigned long n;
        char unit = 0;
        if (fscanf(f, "%lu%c", &n, &unit) >= 1)
            most = REALM_MAX(most, (uint64_t)n << (unit == 'K' ? 10 : unit == 'M' ? 20 : 0));
        fclose(f);
    }
}
