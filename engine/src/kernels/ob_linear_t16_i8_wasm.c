/* Linear layers in the tiled layouts, int8 inputs, WebAssembly SIMD: products of int16 pairs (i32x4.dot_i16x8).
 *
 * A quarter's 16-bit lanes are its even bytes with the odd ones above them, so one AND gives the digits of two inputs of
 * each of four rows, in place. The inputs are scaled instead, once for all rows: plane j's by what makes every product
 * the same power of two too large (ternary 64, binary 128), taken off the sum at the end. In work memory a tile's inputs
 * are words of two int16, for plane j the inputs 4 j, 4 j + 2 (even bytes) and 4 j + 1, 4 j + 3 (odd bytes).
 *
 * Base 3: with r(0) the byte and r(j + 1) = 3 r(j) mod 256, digit j is (3 r(j) - r(j + 1)) / 256. So the sum of digit(j) x(j)
 * is that of r(j) z(j) / 256 with z(0) = 3 x(0), z(j) = 3 x(j) - x(j - 1), z(5) = -x(4): six products, and no digits. */
#include "ob_kernels.h"

#ifdef __wasm_simd128__
#include "../ob_math.h"
#include "ob_bytes_wasm.h"

#define TARGET
#define INLINE OB_INLINE
#define UNROLL OB_UNROLL

enum { MAX_TOKENS = 4, MAX_QUARTERS = 4, QUARTER_BYTES = 16, RUN_TILES = 1024 };

typedef int32_t i32x4 __attribute__((vector_size(16)));
typedef float f32x4 __attribute__((vector_size(16)));

/* ---- inputs, once for all rows ---- */

INLINE int num_words(uint32_t layout) { return layout == OB_LAYOUT_TERNARY_T16 ? 8 : layout == OB_LAYOUT_BINARY_T16 ? 16 : 12; }

INLINE uint32_t x_tile_bytes(uint32_t layout) { return 4 * (uint32_t)num_words(layout); }

INLINE size_t group_bytes(uint32_t layout, uint32_t tiles) {
    (void)layout;
    return (size_t)tiles * OB_TILE_BYTES;
}

/* z(j) of base 3 for byte b of each plane. */
INLINE int16_t base3_input(const int8_t *x, int j, int b) {
    return (int16_t)((j < 5 ? 3 * x[4 * j + b] : 0) - (j > 0 ? x[4 * (j - 1) + b] : 0));
}

INLINE int16_t prepared_input(uint32_t layout, const int8_t *x, int j, int b) {
    if (layout == OB_LAYOUT_TERNARY5_T16) return base3_input(x, j, b);
    return (int16_t)(x[4 * j + b] * (layout == OB_LAYOUT_TERNARY_T16 ? 1 << (6 - 2 * j) : 1 << (7 - j)));
}

INLINE void prepare_tiles(uint32_t layout, const int8_t *x, uint32_t tiles, uint32_t tile, int16_t *out) {
    const int planes = num_words(layout) / 2;
    for (uint32_t i = 0; i < tiles; i++, x += tile)
        UNROLL for (int j = 0; j < planes; j++) {
            *out++ = prepared_input(layout, x, j, 0);
            *out++ = prepared_input(layout, x, j, 2);
            *out++ = prepared_input(layout, x, j, 1);
            *out++ = prepared_input(layout, x, j, 3);
        }
}

/* ---- products ---- */

/* Sums over at most RUN_TILES tiles, still times the power of two: below 2^31, or in base 3 once they are complete. */
INLINE void dot_run(uint32_t layout, const uint8_t *data, uint32_t tiles, const uint8_t *x, size_t x_stride, int tokens,
                    int quarters, v128_t acc[MAX_TOKENS][MAX_QUARTERS]) {
    const int planes = num_words(layout) / 2, bits = 8 / planes;
    for (uint32_t i = 0; i < tiles; i++, data += OB_TILE_BYTES, x += x_tile_bytes(layout)) {
        v128_t bytes[MAX_QUARTERS], odd[MAX_QUARTERS];
        UNROLL for (int q = 0; q < quarters; q++) {
            bytes[q] = wasm_v128_load(data + 16 * q);
            odd[q] = wasm_u16x8_shr(bytes[q], 8);
        }
        UNROLL for (int j = 0; j < planes; j++) {
            const v128_t mask = wasm_i16x8_splat((int16_t)(layout == OB_LAYOUT_TERNARY5_T16 ? 255 : ((1 << bits) - 1) << bits * j));
            UNROLL for (int h = 0; h < 2; h++) {
                v128_t digits[MAX_QUARTERS];
                UNROLL for (int q = 0; q < quarters; q++) {
                    if (layout == OB_LAYOUT_TERNARY5_T16 && h) digits[q] = wasm_u16x8_shr(bytes[q], 8);
                    else digits[q] = wasm_v128_and(h ? odd[q] : bytes[q], mask);
                }
                UNROLL for (int t = 0; t < tokens; t++) {
                    v128_t pair = wasm_v128_load32_splat(x + (size_t)t * x_stride + 4 * (2 * j + h));
                    UNROLL for (int q = 0; q < quarters; q++)
                        acc[t][q] = wasm_i32x4_add(acc[t][q], wasm_i32x4_dot_i16x8(digits[q], pair));
                }
            }
            if (layout == OB_LAYOUT_TERNARY5_T16)
                UNROLL for (int q = 0; q < quarters; q++)
                    bytes[q] = times3_i8(bytes[q]);
        }
    }
}

INLINE void dot_tiles(uint32_t layout, const uint8_t *data, uint32_t tiles, const uint8_t *x, size_t x_stride, int tokens,
                      int quarters, i32x4 acc[MAX_TOKENS][MAX_QUARTERS]) {
    const uint32_t shift = layout == OB_LAYOUT_TERNARY_T16 ? 6 : layout == OB_LAYOUT_BINARY_T16 ? 7 : 8;
    for (int t = 0; t < tokens; t++)
        UNROLL for (int q = 0; q < quarters; q++) acc[t][q] = (i32x4){0};
    while (tiles) {
        uint32_t part = tiles < RUN_TILES ? tiles : RUN_TILES;
        v128_t run[MAX_TOKENS][MAX_QUARTERS];
        UNROLL for (int t = 0; t < tokens; t++)
            UNROLL for (int q = 0; q < quarters; q++) run[t][q] = wasm_i32x4_const_splat(0);
        dot_run(layout, data, part, x, x_stride, tokens, quarters, run);
        UNROLL for (int t = 0; t < tokens; t++)
            UNROLL for (int q = 0; q < quarters; q++) acc[t][q] += (i32x4)wasm_i32x4_shr(run[t][q], shift);
        data += (size_t)part * OB_TILE_BYTES;
        x += (size_t)part * x_tile_bytes(layout);
        tiles -= part;
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
                   size_t y_stride, uint8_t *work) {
    const size_t stride = (size_t)w->tiles_block * x_tile_bytes(layout);
    if (stride > OB_WORK_BYTES) {
        ob_linear_any_i8_ref(w, in, row_begin, row_end, y, y_stride, work);
        return;
    }
    const uint32_t fit = (uint32_t)(OB_WORK_BYTES / stride), most = fit > 4 ? fit & ~3u : fit;
    for (uint32_t first = 0; first < in->num_tokens; first += most) {
        const uint32_t end = in->num_tokens - first < most ? in->num_tokens : first + most;
        for (uint32_t t = first; t < end; t++)
            prepare_tiles(layout, in->codes_TK + t * in->codes_stride, w->tiles_block, w->tile,
                          (int16_t *)(void *)(work + (t - first) * stride));
        for (uint32_t row = row_begin; row < row_end; row += OB_BLOCK_ROWS) {
            const uint8_t *data = w->data + (uint64_t)(row / OB_BLOCK_ROWS) * w->tiles_block * OB_TILE_BYTES, *x = work;
            uint32_t t = first;
            for (; t + 4 <= end; t += 4, x += 4 * stride) block_tokens(layout, w, data, in, x, stride, row, 2, t, 4, y, y_stride);
            for (; t < end; t++, x += stride) block_tokens(layout, w, data, in, x, stride, row, 4, t, 1, y, y_stride);
        }
    }
}

static void linear_binary_t16_i8_wasm(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end,
                                      float *y_TO, size_t y_stride, uint8_t *work) {
    linear(OB_LAYOUT_BINARY_T16, w, in, row_begin, row_end, y_TO, y_stride, work);
}

static void linear_ternary_t16_i8_wasm(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end,
                                       float *y_TO, size_t y_stride, uint8_t *work) {
    linear(OB_LAYOUT_TERNARY_T16, w, in, row_begin, row_end, y_TO, y_stride, work);
}

static void linear_ternary5_t16_i8_wasm(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end,
                                        float *y_TO, size_t y_stride, uint8_t *work) {
    linear(OB_LAYOUT_TERNARY5_T16, w, in, row_begin, row_end, y_TO, y_stride, work);
}

void ob_enter_linear_t16_wasm(ob_kernels *k) {
    ob_enter_i8(k, OB_LAYOUT_BINARY_T16, linear_binary_t16_i8_wasm, OB_ISA_WASM);
    ob_enter_i8(k, OB_LAYOUT_TERNARY_T16, linear_ternary_t16_i8_wasm, OB_ISA_WASM);
    ob_enter_i8(k, OB_LAYOUT_TERNARY5_T16, linear_ternary5_t16_i8_wasm, OB_ISA_WASM);
}
#endif
