/* Linear layers of float32, float16 and int8 rows with float inputs (embedding-sized heads), WebAssembly SIMD. */
#include "ob_kernels.h"

#ifdef __wasm_simd128__
#include <wasm_simd128.h>

#define TARGET
#define INLINE OB_INLINE
#define UNROLL OB_UNROLL

enum { ROWS = 2, TOKENS = 2 };
typedef float f32x4 __attribute__((vector_size(16)));

/* A half's exponent and mantissa at a float's place are 2^112 times too small, subnormal or not; infinity and NaN apart. */
INLINE v128_t halves_to_floats(v128_t halves) {
    v128_t size = wasm_v128_and(halves, wasm_i32x4_const_splat(0x7fff)), sign = wasm_i32x4_shl(wasm_v128_xor(halves, size), 16);
    v128_t placed = wasm_i32x4_shl(size, 13), number = wasm_f32x4_mul(placed, wasm_f32x4_const_splat(0x1p112f));
    v128_t is_nan = wasm_i32x4_gt(size, wasm_i32x4_const_splat(0x7c00));
    v128_t none = wasm_v128_or(placed, wasm_v128_or(wasm_i32x4_const_splat(0x7f800000),
                                                    wasm_v128_and(is_nan, wasm_i32x4_const_splat(0x400000))));
    v128_t is_none = wasm_i32x4_gt(size, wasm_i32x4_const_splat(0x7bff));
    return wasm_v128_or(sign, wasm_v128_bitselect(none, number, is_none));
}

INLINE f32x4 load4(uint32_t layout, const uint8_t *row, size_t k) {
    if (layout == OB_LAYOUT_FLOAT32) return (f32x4)wasm_v128_load(row + 4 * k);
    if (layout == OB_LAYOUT_FLOAT16) return (f32x4)halves_to_floats(wasm_u32x4_load16x4(row + 2 * k));
    v128_t word = wasm_v128_load32_zero(row + k);
    return (f32x4)wasm_f32x4_convert_i32x4(wasm_i32x4_extend_low_i16x8(wasm_i16x8_extend_low_i8x16(word)));
}

#include "ob_linear_rows_f32_128.h"

void ob_enter_linear_rows_f32_wasm(ob_kernels *k) {
    ob_enter_f32(k, OB_LAYOUT_FLOAT32, linear_float32_f32, OB_ISA_WASM);
    ob_enter_f32(k, OB_LAYOUT_FLOAT16, linear_float16_f32, OB_ISA_WASM);
    ob_enter_f32(k, OB_LAYOUT_INT8, linear_int8_f32, OB_ISA_WASM);
}
#endif
