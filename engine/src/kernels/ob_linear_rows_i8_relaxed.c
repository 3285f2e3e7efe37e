/* Linear layers of int8 and int4 rows, int8 inputs, WebAssembly with relaxed SIMD.
 *
 * Its dot product wants one side from 0 to 127 (see ob_bytes_wasm.h). int4 codes are that. For int8 the inputs are cut into
 * those above zero and those below, with a sum of their own each. */
#include "ob_kernels.h"

#ifdef __wasm_relaxed_simd__
#include "ob_bytes_wasm.h"

#define TARGET
#define INLINE OB_INLINE
#define UNROLL OB_UNROLL

enum { ROWS = 4, MAX_TOKENS = 1 };
typedef int32_t i32x4 __attribute__((vector_size(16)));
typedef struct operand {
    v128_t part[2]; /* int8: weights twice, inputs above zero and below; int4: the even ones, the odd ones */
} operand;
typedef struct accumulator {
    v128_t plus, minus;
} accumulator;

INLINE int32_t total(accumulator acc) {
    i32x4 lanes = (i32x4)wasm_i32x4_sub(acc.plus, acc.minus);
    return (int32_t)((uint32_t)lanes[0] + (uint32_t)lanes[1] + (uint32_t)lanes[2] + (uint32_t)lanes[3]);
}

INLINE operand weights(uint32_t layout, const uint8_t *bytes) {
    v128_t v = wasm_v128_load(bytes), nibble = wasm_i8x16_const_splat(15);
    if (layout == OB_LAYOUT_INT8) return (operand){{v, v}};
    return (operand){{wasm_v128_and(v, nibble), wasm_v128_and(wasm_u16x8_shr(v, 4), nibble)}};
}

INLINE operand inputs(uint32_t layout, const int8_t *x) {
    v128_t v = wasm_v128_load(x), zero = wasm_i8x16_const_splat(0);
    if (layout == OB_LAYOUT_INT8) return (operand){{wasm_i8x16_max(v, zero), wasm_i8x16_max(wasm_i8x16_sub(zero, v), zero)}};
    v128_t next = wasm_v128_load(x + 16);
    return (operand){{wasm_i8x16_shuffle(v, next, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30),
                      wasm_i8x16_shuffle(v, next, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31)}};
}

INLINE accumulator dot(uint32_t layout, accumulator acc, operand w, operand x) {
    if (layout == OB_LAYOUT_INT8)
        return (accumulator){dot_i8_i7(acc.plus, w.part[0], x.part[0]), dot_i8_i7(acc.minus, w.part[1], x.part[1])};
    return (accumulator){dot_i8_i7(dot_i8_i7(acc.plus, x.part[0], w.part[0]), x.part[1], w.part[1]), acc.minus};
}

#include "ob_linear_rows_i8_128.h"

void ob_enter_linear_rows_i8_relaxed(ob_kernels *k) {
    ob_enter_i8(k, OB_LAYOUT_INT8, linear_int8_i8, OB_ISA_WASM);
    ob_enter_i8(k, OB_LAYOUT_INT4, linear_int4_i8, OB_ISA_WASM);
}
#endif
