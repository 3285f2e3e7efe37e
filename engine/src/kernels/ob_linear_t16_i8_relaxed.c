/* Linear layers in the tiled layouts, int8 inputs, WebAssembly with relaxed SIMD: sums of four byte products at once.
 *
 * i32x4.relaxed_dot_i8x16_i7x16_add takes signed bytes and bytes of 0 to 127, for which every engine gives the same: the
 * inputs are the first, digits the second. One token leaves its digits where they lie as far as an accumulator for each
 * place costs less than shifting: ternary's are worth 1 and 4, binary's 1 and 2.
 *
 * Base 3: with s(0) the byte minus 128 and s(j + 1) = 3 s(j) mod 256 as signed bytes, digit j is how many of -43 and 42 are
 * below s(j). */
#include "ob_kernels.h"

#ifdef __wasm_relaxed_simd__
#include "../ob_math.h"
#include "ob_bytes_wasm.h"

#define TARGET
#define INLINE OB_INLINE
#define UNROLL OB_UNROLL

enum { MAX_TOKENS = 4, MAX_QUARTERS = 4, QUARTER_BYTES = 16 };

typedef int32_t i32x4 __attribute__((vector_size(16)));
typedef float f32x4 __attribute__((vector_size(16)));

INLINE int num_planes(uint32_t layout) {
    return layout == OB_LAYOUT_TERNARY_T16 ? 4 : layout == OB_LAYOUT_BINARY_T16 ? 8 : 5;
}

INLINE uint32_t x_tile_bytes(uint32_t layout) { return 4 * (uint32_t)num_planes(layout); }

INLINE size_t group_bytes(uint32_t layout, uint32_t tiles) {
    (void)layout;
    return (size_t)tiles * OB_TILE_BYTES;
}

/* Digits of plane j, times place(layout, j). `rest` is the byte, in base 3 minus 128 and then its remainders. */
INLINE int place(uint32_t layout, int j) {
    return layout == OB_LAYOUT_TERNARY_T16 ? (j & 1 ? 4 : 1) : layout == OB_LAYOUT_BINARY_T16 ? 1 << (j & 1) : 1;
}

INLINE v128_t plane_digits(uint32_t layout, v128_t bytes, int j, v128_t *rest) {
    if (layout == OB_LAYOUT_TERNARY5_T16) {
        v128_t s = *rest;
        v128_t above = wasm_i8x16_gt(s, wasm_i8x16_const_splat(42));
        v128_t minus_digit = wasm_i8x16_add(above, wasm_i8x16_gt(s, wasm_i8x16_const_splat(-43)));
        *rest = times3_i8(s);
        return wasm_i8x16_neg(minus_digit);
    }
    const int bits = 8 / num_planes(layout), down = j * bits & ~(2 * bits - 1); /* in pairs: the upper one stays up */
    v128_t moved = down ? wasm_u16x8_shr(bytes, (uint32_t)down) : bytes;
    return wasm_v128_and(moved, wasm_i8x16_splat((int8_t)(((1 << bits) - 1) * place(layout, j))));
}

INLINE void dot_tiles(uint32_t layout, const uint8_t *data, uint32_t tiles, const uint8_t *x, size_t x_stride, int tokens,
                      int quarters, i32x4 acc[MAX_TOKENS][MAX_QUARTERS]) {
    const int planes = num_planes(layout), places = layout == OB_LAYOUT_TERNARY5_T16 ? 1 : 2;
    v128_t sums[MAX_TOKENS][MAX_QUARTERS][2];
    UNROLL for (int t = 0; t < tokens; t++)
        UNROLL for (int q = 0; q < quarters; q++) sums[t][q][0] = sums[t][q][1] = wasm_i32x4_const_splat(0);
    for (uint32_t i = 0; i < tiles; i++, data += OB_TILE_BYTES, x += x_tile_bytes(layout)) {
        UNROLL for (int q = 0; q < quarters; q++) {
            v128_t bytes = wasm_v128_load(data + 16 * q), rest = wasm_v128_xor(bytes, wasm_i8x16_const_splat(-128));
            UNROLL for (int j = 0; j < planes; j++) {
                v128_t digits = plane_digits(layout, bytes, j, &rest);
                UNROLL for (int t = 0; t < tokens; t++) {
                    v128_t codes = wasm_v128_load32_splat(x + (size_t)t * x_stride + 4 * j);
                    v128_t *sum = &sums[t][q][places == 2 && (j & 1)];
                    *sum = dot_i8_i7(*sum, codes, digits);
                }
            }
        }
    }
    UNROLL for (int t = 0; t < tokens; t++)
        UNROLL for (int q = 0; q < quarters; q++) {
            v128_t upper = places == 2 ? wasm_i32x4_shr(sums[t][q][1], layout == OB_LAYOUT_TERNARY_T16 ? 2 : 1) : sums[t][q][1];
            acc[t][q] = (i32x4)wasm_i32x4_add(sums[t][q][0], upper);
        }
}

INLINE i32x4 codes_dot(uint32_t layout, i32x4 acc, int32_t input_sum) {
    return (layout == OB_LAYOUT_BINARY_T16 ? acc + acc : acc) - input_sum;
}

INLINE f32x4 load_halves(const uint8_t *bytes) {
    uint16_t halves[4];
    memcpy(halves, bytes, 8);
    return (f32x4){ob_half_to_float(halves[0]), ob_half_to_float(halves[1]), ob_half_to_float(halves[2]), ob_half_to_float(halves[3])};
}

#include "ob_linear_t16_i8_quarters.h"

INLINE void linear(uint32_t layout, const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end, float *y,
                   size_t y_stride) {
    const size_t stride = in->codes_stride;
    for (uint32_t row = row_begin; row < row_end; row += OB_BLOCK_ROWS) {
        const uint8_t *data = w->data + (uint64_t)(row / OB_BLOCK_ROWS) * w->tiles_block * OB_TILE_BYTES;
        const uint8_t *x = (const uint8_t *)in->codes_TK;
        uint32_t t = 0, n = in->num_tokens;
        for (; t + 4 <= n; t += 4, x += 4 * stride) block_tokens(layout, w, data, in, x, stride, row, 1, t, 4, y, y_stride);
        for (; t < n; t++, x += stride) block_tokens(layout, w, data, in, x, stride, row, 4, t, 1, y, y_stride);
    }
}

static void linear_binary_t16_i8_relaxed(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end,
                                         float *y_TO, size_t y_stride, uint8_t *work) {
    (void)work;
    linear(OB_LAYOUT_BINARY_T16, w, in, row_begin, row_end, y_TO, y_stride);
}

static void linear_ternary_t16_i8_relaxed(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end,
                                          float *y_TO, size_t y_stride, uint8_t *work) {
    (void)work;
    linear(OB_LAYOUT_TERNARY_T16, w, in, row_begin, row_end, y_TO, y_stride);
}

static void linear_ternary5_t16_i8_relaxed(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end,
                                           float *y_TO, size_t y_stride, uint8_t *work) {
    (void)work;
    linear(OB_LAYOUT_TERNARY5_T16, w, in, row_begin, row_end, y_TO, y_stride);
}

void ob_enter_linear_t16_relaxed(ob_kernels *k) {
    ob_enter_i8(k, OB_LAYOUT_BINARY_T16, linear_binary_t16_i8_relaxed, OB_ISA_WASM);
    ob_enter_i8(k, OB_LAYOUT_TERNARY_T16, linear_ternary_t16_i8_relaxed, OB_ISA_WASM);
    ob_enter_i8(k, OB_LAYOUT_TERNARY5_T16, linear_ternary5_t16_i8_relaxed, OB_ISA_WASM);
}
#endif
