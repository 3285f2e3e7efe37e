/* Linear layers of int8 and int4 rows, int8 inputs, WebAssembly SIMD: everything widened to int16. */
#include "ob_kernels.h"

#ifdef __wasm_simd128__
#include <wasm_simd128.h>

#define TARGET
#define INLINE OB_INLINE
#define UNROLL OB_UNROLL

enum { ROWS = 4, MAX_TOKENS = 2 };
typedef int32_t accumulator __attribute__((vector_size(16)));
typedef struct operand {
    v128_t part[4]; /* int8: inputs 0-7, 8-15; int4: the even ones of 0-15, the odd ones, the same of 16-31 */
} operand;

INLINE int32_t total(accumulator acc) {
    return (int32_t)((uint32_t)acc[0] + (uint32_t)acc[1] + (uint32_t)acc[2] + (uint32_t)acc[3]);
}

INLINE operand weights(uint32_t layout, const uint8_t *bytes) {
    operand w;
    if (layout == OB_LAYOUT_INT8) {
        w.part[0] = wasm_i16x8_load8x8(bytes), w.part[1] = wasm_i16x8_load8x8(bytes + 8);
    } else {
        v128_t low = wasm_u16x8_load8x8(bytes), high = wasm_u16x8_load8x8(bytes + 8), nibble = wasm_i16x8_const_splat(15);
        w.part[0] = wasm_v128_and(low, nibble), w.part[1] = wasm_u16x8_shr(low, 4);
        w.part[2] = wasm_v128_and(high, nibble), w.part[3] = wasm_u16x8_shr(high, 4);
    }
    return w;
}

INLINE operand inputs(uint32_t layout, const int8_t *x) {
    operand in;
    if (layout == OB_LAYOUT_INT8) {
        in.part[0] = wasm_i16x8_load8x8(x), in.part[1] = wasm_i16x8_load8x8(x + 8);
    } else {
        v128_t low = wasm_v128_load(x), high = wasm_v128_load(x + 16);
        in.part[0] = wasm_i16x8_shr(wasm_i16x8_shl(low, 8), 8), in.part[1] = wasm_i16x8_shr(low, 8);
        in.part[2] = wasm_i16x8_shr(wasm_i16x8_shl(high, 8), 8), in.part[3] = wasm_i16x8_shr(high, 8);
    }
    return in;
}

INLINE accumulator dot(uint32_t layout, accumulator acc, operand w, operand x) {
    UNROLL for (int i = 0; i < (layout == OB_LAYOUT_INT8 ? 2 : 4); i++)
        acc = (accumulator)wasm_i32x4_add((v128_t)acc, wasm_i32x4_dot_i16x8(w.part[i], x.part[i]));
    return acc;
}

#include "ob_linear_rows_i8_128.h"

void ob_enter_linear_rows_i8_wasm(ob_kernels *k) {
    ob_enter_i8(k, OB_LAYOUT_INT8, linear_int8_i8, OB_ISA_WASM);
    ob_enter_i8(k, OB_LAYOUT_INT4, linear_int4_i8, OB_ISA_WASM);
}
#endif
