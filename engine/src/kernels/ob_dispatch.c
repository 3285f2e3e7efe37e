/* The one dispatch table: which kernel serves each operation, chosen once per model, with the reason in words. */
#include "../ob_cpu.h"
#include "ob_kernels.h"

static int same(const char *a, const char *b) {
    while (*a && *a == *b) a++, b++;
    return *a == *b;
}

uint32_t ob_isa_from_name(const char *name) {
    static const char *const names[OB_NUM_ISAS] = {"auto", "scalar", "avx2", "avx512"};
    for (uint32_t isa = 0; name && isa < OB_NUM_ISAS; isa++)
        if (same(name, names[isa])) return isa;
    return OB_NUM_ISAS;
}

int ob_isa_available(uint32_t isa) {
    if (isa == OB_ISA_AUTO || isa == OB_ISA_SCALAR) return 1;
#ifdef OB_X86
    if (isa == OB_ISA_AVX2) return (ob_cpu_features() & OB_CPU_AVX2) != 0;
    if (isa == OB_ISA_AVX512) return (ob_cpu_features() & OB_CPU_AVX512) != 0;
#endif
    return 0;
}

#define LINES(activation, suffix)                                                                                           \
    {"linear float32 " activation suffix, "linear float16 " activation suffix, "linear int8 " activation suffix,            \
     "linear int4 " activation suffix, "linear binary " activation suffix, "linear ternary " activation suffix,             \
     "linear ternary5 " activation suffix, "linear binary_t16 " activation suffix, "linear ternary_t16 " activation suffix, \
     "linear ternary5_t16 " activation suffix}
enum { WHY_ONLY, WHY_AVX2, WHY_AVX512, NUM_WHYS };
#define WHY_LINES(activation)                                             \
    {LINES(activation, ": scalar (reference; the only one here)"),        \
     LINES(activation, ": avx2 (processor has AVX2 and F16C)"),           \
     LINES(activation, ": avx512 (processor has AVX-512 with VNNI)")}

static void fill_scalar(ob_kernels *k) {
    for (int i = 0; i < OB_NUM_LAYOUTS; i++) {
        k->linear_f32[i] = ob_linear_any_f32_ref;
        k->linear_i8[i] = ob_linear_any_i8_ref;
    }
    k->attend = ob_attend_f32_ref;
}

#ifdef OB_X86
static void fill_avx2(ob_kernels *k) {
    k->linear_f32[OB_LAYOUT_FLOAT32] = ob_linear_float32_f32_avx2;
    k->linear_f32[OB_LAYOUT_FLOAT16] = ob_linear_float16_f32_avx2;
    k->linear_f32[OB_LAYOUT_INT8] = ob_linear_int8_f32_avx2;
    k->linear_i8[OB_LAYOUT_BINARY_T16] = ob_linear_binary_t16_i8_avx2;
    k->linear_i8[OB_LAYOUT_TERNARY_T16] = ob_linear_ternary_t16_i8_avx2;
    k->linear_i8[OB_LAYOUT_TERNARY5_T16] = ob_linear_ternary5_t16_i8_avx2;
    k->attend = ob_attend_f32_avx2;
}

static void fill_avx512(ob_kernels *k) {
    k->linear_f32[OB_LAYOUT_FLOAT32] = ob_linear_float32_f32_avx512;
    k->linear_f32[OB_LAYOUT_FLOAT16] = ob_linear_float16_f32_avx512;
    k->linear_f32[OB_LAYOUT_INT8] = ob_linear_int8_f32_avx512;
    k->linear_i8[OB_LAYOUT_BINARY_T16] = ob_linear_binary_t16_i8_avx512;
    k->linear_i8[OB_LAYOUT_TERNARY_T16] = ob_linear_ternary_t16_i8_avx512;
    k->linear_i8[OB_LAYOUT_TERNARY5_T16] = ob_linear_ternary5_t16_i8_avx512;
    k->attend = ob_attend_f32_avx512;
}
#endif

static int why(const ob_kernels *k, int scalar) {
    if (scalar) return WHY_ONLY;
    return k->isa == OB_ISA_AVX512 ? WHY_AVX512 : WHY_AVX2;
}

static void describe(ob_kernels *k) {
    static const char *const f32[NUM_WHYS][OB_NUM_LAYOUTS] = WHY_LINES("float");
    static const char *const i8[NUM_WHYS][OB_NUM_LAYOUTS] = WHY_LINES("int8");
    static const char *const attend[NUM_WHYS] = {"attention float32: scalar (reference; the only one here)",
                                                 "attention float32: avx2 (processor has AVX2 and F16C)",
                                                 "attention float32: avx512 (processor has AVX-512 with VNNI)"};
    int line = 0;
    for (int i = 0; i < OB_NUM_LAYOUTS; i++) {
        k->lines[line++] = f32[why(k, k->linear_f32[i] == ob_linear_any_f32_ref)][i];
        k->lines[line++] = i8[why(k, k->linear_i8[i] == ob_linear_any_i8_ref)][i];
    }
    k->lines[line++] = attend[why(k, k->attend == ob_attend_f32_ref)];
    k->lines[line] = NULL;
}

int ob_kernels_choose(ob_kernels *kernels, uint32_t isa) {
    if (!ob_isa_available(isa)) return 0;
    if (isa == OB_ISA_AUTO)
        isa = ob_isa_available(OB_ISA_AVX512) ? OB_ISA_AVX512 : ob_isa_available(OB_ISA_AVX2) ? OB_ISA_AVX2 : OB_ISA_SCALAR;
    kernels->isa = isa;
    fill_scalar(kernels);
#ifdef OB_X86
    if (isa == OB_ISA_AVX2) fill_avx2(kernels);
    if (isa == OB_ISA_AVX512) fill_avx512(kernels);
#endif
    describe(kernels);
    return 1;
}
