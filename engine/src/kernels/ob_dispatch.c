/* The one dispatch table: which kernel serves each operation, chosen once per model. */
#include "../ob_cpu.h"
#include "ob_kernels.h"

static const char *const names[OB_NUM_ISAS] = {"auto", "scalar", "avx2", "avxvnni", "avx512", "amx", "neon", "i8mm", "wasm"};

static int same(const char *a, const char *b) {
    while (*a && *a == *b) a++, b++;
    return *a == *b;
}

uint32_t ob_isa_from_name(const char *name) {
    for (uint32_t isa = 0; name && isa < OB_NUM_ISAS; isa++)
        if (same(name, names[isa])) return isa;
    return OB_NUM_ISAS;
}

const char *ob_isa_name(uint32_t isa) { return isa < OB_NUM_ISAS ? names[isa] : "unknown"; }

static const char *reason(uint32_t isa) {
    switch (isa) {
    case OB_ISA_AVX2: return "processor has AVX2 and F16C";
    case OB_ISA_AVXVNNI: return "processor has AVX-VNNI";
    case OB_ISA_AVX512: return "processor has AVX-512 with VNNI";
    case OB_ISA_AMX: return "processor has AMX int8 tiles";
    case OB_ISA_NEON: return ob_cpu_features() & OB_CPU_ARM_DOT ? "processor has NEON with dot products" : "processor has NEON";
    case OB_ISA_I8MM: return "processor has NEON int8 matrix products";
#ifdef __wasm_relaxed_simd__
    case OB_ISA_WASM: return "built with relaxed WebAssembly SIMD";
#else
    case OB_ISA_WASM: return "built with WebAssembly SIMD";
#endif
    default: return "reference; the only one here";
    }
}

int ob_isa_available(uint32_t isa) {
    if (isa == OB_ISA_AUTO || isa == OB_ISA_SCALAR) return 1;
#if defined(OB_X86) && defined(__GNUC__)
    if (isa == OB_ISA_AVX2) return (ob_cpu_features() & OB_CPU_AVX2) != 0;
    if (isa == OB_ISA_AVXVNNI) return (ob_cpu_features() & OB_CPU_AVXVNNI) != 0;
    if (isa == OB_ISA_AVX512) return (ob_cpu_features() & OB_CPU_AVX512) != 0;
    if (isa == OB_ISA_AMX) return (ob_cpu_features() & OB_CPU_AMX) != 0 && ob_cpu_request_amx();
#endif
#ifdef OB_ARM
    if (isa == OB_ISA_NEON) return 1;
#endif
#ifdef OB_ARM_I8MM
    if (isa == OB_ISA_I8MM) return (ob_cpu_features() & OB_CPU_ARM_DOT) && (ob_cpu_features() & OB_CPU_ARM_I8MM);
#endif
#ifdef __wasm_simd128__
    if (isa == OB_ISA_WASM) return 1;
#endif
    return 0;
}

static void enter_scalar(ob_kernels *k) {
    for (uint32_t i = 0; i < OB_NUM_LAYOUTS; i++) {
        ob_enter_f32(k, i, ob_linear_any_f32_ref, OB_ISA_SCALAR);
        ob_enter_i8(k, i, ob_linear_any_i8_ref, OB_ISA_SCALAR);
    }
    k->norm_quantize = ob_norm_quantize_ref;
    k->activate = ob_activate_ref;
    k->rotate = ob_rotate_ref;
    k->turn = ob_turn_ref;
    k->add = ob_add_ref;
    k->kv_store = ob_kv_store_ref;
    k->kv_load = ob_kv_load_ref;
    k->attend = ob_attend_ref;
    k->isa_rows = k->isa_attend = OB_ISA_SCALAR;
}

#if defined(OB_X86) && defined(__GNUC__)
/* Each set builds on the one before it: what a family lacks, the narrower set's kernel serves. */
static void enter_x86(ob_kernels *k, uint32_t isa) {
    ob_enter_linear_t16_avx2(k), ob_enter_linear_rows_avx2(k), ob_enter_linear_rows_i8_avx2(k);
    ob_enter_rows_avx2(k), ob_enter_attend_avx2(k);
    if (isa >= OB_ISA_AVXVNNI && ob_isa_available(OB_ISA_AVXVNNI))
        ob_enter_linear_t16_avxvnni(k), ob_enter_linear_rows_i8_avxvnni(k);
    if (isa >= OB_ISA_AVX512) {
        ob_enter_linear_t16_avx512(k), ob_enter_linear_rows_avx512(k), ob_enter_linear_rows_i8_avx512(k);
        ob_enter_rows_avx512(k), ob_enter_attend_avx512(k);
    }
    if (isa == OB_ISA_AMX) ob_enter_linear_t16_amx(k);
}
#endif

#ifdef OB_ARM
/* Dot products came with ARMv8.2; what they make faster is there without them as well. */
static void enter_neon(ob_kernels *k) {
    ob_enter_linear_t16_neon(k), ob_enter_linear_rows_i8_neon(k), ob_enter_linear_rows_f32_neon(k);
    ob_enter_rows_neon(k), ob_enter_attend_neon(k);
#ifdef OB_ARM_DOT
    if (ob_cpu_features() & OB_CPU_ARM_DOT) ob_enter_linear_t16_dot(k), ob_enter_linear_rows_i8_dot(k);
#endif
}
#endif

static uint32_t best_isa(void) {
    static const uint32_t best_first[] = {OB_ISA_AMX, OB_ISA_AVX512, OB_ISA_AVXVNNI, OB_ISA_AVX2, OB_ISA_I8MM, OB_ISA_NEON, OB_ISA_WASM};
    for (size_t i = 0; i < sizeof best_first / sizeof *best_first; i++)
        if (ob_isa_available(best_first[i])) return best_first[i];
    return OB_ISA_SCALAR;
}

int ob_kernels_choose(ob_kernels *k, uint32_t isa) {
    if (isa >= OB_NUM_ISAS || !ob_isa_available(isa)) return 0;
    k->isa = isa = isa == OB_ISA_AUTO ? best_isa() : isa;
    enter_scalar(k);
#if defined(OB_X86) && defined(__GNUC__)
    if (isa >= OB_ISA_AVX2 && isa <= OB_ISA_AMX) enter_x86(k, isa);
#endif
#ifdef OB_ARM
    if (isa == OB_ISA_NEON || isa == OB_ISA_I8MM) enter_neon(k);
#endif
#ifdef OB_ARM_I8MM
    if (isa == OB_ISA_I8MM) ob_enter_linear_t16_i8mm(k);
#endif
#ifdef __wasm_simd128__
    if (isa == OB_ISA_WASM) {
        ob_enter_linear_t16_wasm(k), ob_enter_linear_rows_i8_wasm(k), ob_enter_linear_rows_f32_wasm(k);
        ob_enter_rows_wasm(k), ob_enter_attend_wasm(k);
#ifdef __wasm_relaxed_simd__
        ob_enter_linear_t16_relaxed(k), ob_enter_linear_rows_i8_relaxed(k);
#endif
    }
#endif
    return 1;
}

static char *append(char *to, const char *text) {
    while (*text) *to++ = *text++;
    *to = 0;
    return to;
}

int ob_kernels_line(const ob_kernels *k, uint32_t index, char *line) {
    static const char *const layouts[OB_NUM_LAYOUTS] = {"float32", "float16", "int8", "int4", "binary", "ternary", "ternary5",
                                                        "binary_t16", "ternary_t16", "ternary5_t16"};
    uint32_t isa, layout = index / 2;
    if (layout < OB_NUM_LAYOUTS) {
        line = append(append(append(line, "linear "), layouts[layout]), index % 2 ? " int8" : " float");
        isa = index % 2 ? k->isa_i8[layout] : k->isa_f32[layout];
    } else if (index < 2 * OB_NUM_LAYOUTS + 2) {
        line = append(line, index % 2 ? "attention" : "norms, activations, positions");
        isa = index % 2 ? k->isa_attend : k->isa_rows;
    } else return 0;
    append(append(append(append(append(line, ": "), ob_isa_name(isa)), " ("), reason(isa)), ")");
    return 1;
}
