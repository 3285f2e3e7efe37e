#include "ob_cpu.h"

#include "ob_platform.h"

#if defined(OB_X86) && defined(__GNUC__)
#include <cpuid.h>

/* Register state the operating system saves: bits 1, 2 are SSE and AVX; 5, 6, 7 are the parts of AVX-512,
 * 17 and 18 those of AMX. */
static uint32_t saved_state(void) {
    uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    (void)high;
    return low;
}

uint32_t ob_cpu_features(void) {
    uint32_t a, b, c, d, features = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
    if (c >> 20 & 1) features |= OB_CPU_SSE42;
    int f16c = c >> 29 & 1, osxsave = c >> 27 & 1;
    uint32_t state = osxsave ? saved_state() : 0;
    if ((state & 0x6) != 0x6 || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return features;
    uint32_t max_leaf_7 = a;
    int tiles = d >> 24 & 1, tiles_int8 = d >> 25 & 1;
    int avx2 = b >> 5 & 1;
    int f = b >> 16 & 1, dq = b >> 17 & 1, bw = b >> 30 & 1, vl = b >> 31 & 1, vnni = c >> 11 & 1;
    if (avx2 && f16c) features |= OB_CPU_AVX2;
    if (avx2 && f16c && max_leaf_7 >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 4 & 1) features |= OB_CPU_AVXVNNI;
    if ((state & 0xe6) == 0xe6 && f && dq && bw && vl && vnni) features |= OB_CPU_AVX512;
    if ((features & OB_CPU_AVX512) && tiles && tiles_int8 && (state >> 17 & 3) == 3) features |= OB_CPU_AMX;
    return features;
}

/* Linux: arch_prctl(ARCH_REQ_XCOMP_PERM, 18), for the whole process; asking again does no harm. */
int ob_cpu_request_amx(void) {
#if defined(__linux__) && defined(__x86_64__)
    long result = 158;
    __asm__ volatile("syscall" : "+a"(result) : "D"(0x1023L), "S"(18L) : "rcx", "r11", "memory");
    return result == 0;
#else
    return 0;
#endif
}
#elif defined(OB_ARM)
#if defined(__linux__)
#include <sys/auxv.h>

/* The system's numbers; older headers lack the names. */
enum { HWCAP_DOT = 1 << 20, HWCAP2_INT8_PRODUCTS = 1 << 13 };

static uint32_t asked(void) {
    uint32_t features = getauxval(AT_HWCAP) & HWCAP_DOT ? OB_CPU_ARM_DOT : 0;
    return getauxval(AT_HWCAP2) & HWCAP2_INT8_PRODUCTS ? features | OB_CPU_ARM_I8MM : features;
}
#elif defined(__APPLE__)
#include <sys/sysctl.h>

static int has(const char *name) {
    int value = 0;
    size_t bytes = sizeof value;
    return !sysctlbyname(name, &value, &bytes, NULL, 0) && value;
}

static uint32_t asked(void) {
    uint32_t features = has("hw.optional.arm.FEAT_DotProd") ? OB_CPU_ARM_DOT : 0;
    return has("hw.optional.arm.FEAT_I8MM") ? features | OB_CPU_ARM_I8MM : features;
}
#else
static uint32_t asked(void) { return 0; }
#endif

/* What the compiler was told to take for granted is there; the rest has to be asked for. */
uint32_t ob_cpu_features(void) {
    uint32_t features = asked();
#ifdef __ARM_FEATURE_DOTPROD
    features |= OB_CPU_ARM_DOT;
#endif
#ifdef __ARM_FEATURE_MATMUL_INT8
    features |= OB_CPU_ARM_I8MM;
#endif
    return features;
}
#else
uint32_t ob_cpu_features(void) { return 0; }
#endif
