/* Body of the tiled linear layers on NEON, int8 inputs. The file that includes this defines TARGET, NAME(name) and
 * DOT(acc, digits, x, lane): acc[i] += the dot product of bytes 4i..4i+3 of digits and of 32-bit lane `lane` of x.
 *
 * Four rows' bytes are a register, and the input codes of a plane one 32-bit lane of another. One token needs no digits:
 *   ternary   planes stay where they are in the byte, with an accumulator for each place, shifted down at the end (exact:
 *             every term is a multiple of the place); the top plane would be negative and is shifted
 *   ternary5  with s(j) of ob_t16_digits_neon.h the sum is (3 A - B) / 256, A = sum s(j) x, B = sum s(j + 1) x */
#define INLINE TARGET OB_INLINE
#define UNROLL OB_UNROLL

enum { MAX_TOKENS = 8, MAX_QUARTERS = 4, QUARTER_BYTES = 16 };

INLINE uint32_t x_tile_bytes(uint32_t layout) {
    return layout == OB_LAYOUT_TERNARY_T16 ? 16 : layout == OB_LAYOUT_BINARY_T16 ? 32 : 20;
}

INLINE size_t group_bytes(uint32_t layout, uint32_t tiles) {
    (void)layout;
    return (size_t)tiles * OB_TILE_BYTES;
}

#include "ob_t16_digits_neon.h"

#define PLANE(j, vector, lane)                                                                        \
    do {                                                                                              \
        int8x16_t digits = plane_digits(layout, bytes, j, &rest);                                     \
        UNROLL for (int t = 0; t < tokens; t++) acc[t][q] = DOT(acc[t][q], digits, inputs[t][vector], lane); \
    } while (0)

INLINE void dot_planes(uint32_t layout, const uint8_t *data, uint32_t tiles, const uint8_t *x, size_t x_stride, int tokens,
                       int quarters, i32x4 acc[MAX_TOKENS][MAX_QUARTERS]) {
    const size_t x_tile = x_tile_bytes(layout);
    UNROLL for (int t = 0; t < tokens; t++)
        UNROLL for (int q = 0; q < quarters; q++) acc[t][q] = vdupq_n_s32(0);
    for (uint32_t i = 0; i < tiles; i++, data += OB_TILE_BYTES, x += x_tile) {
        int8x16_t inputs[MAX_TOKENS][2];
        UNROLL for (int t = 0; t < tokens; t++) {
            const int8_t *from = (const int8_t *)x + (size_t)t * x_stride;
            inputs[t][0] = vld1q_s8(from);
            if (layout != OB_LAYOUT_TERNARY_T16) inputs[t][1] = vld1q_s8(from + x_tile - 16);
        }
        UNROLL for (int q = 0; q < quarters; q++) {
            uint8x16_t bytes = vld1q_u8(data + 16 * q);
            int8x16_t rest = vreinterpretq_s8_u8(veorq_u8(bytes, vdupq_n_u8(128)));
            PLANE(0, 0, 0);
            PLANE(1, 0, 1);
            PLANE(2, 0, 2);
            PLANE(3, 0, 3);
            if (layout == OB_LAYOUT_TERNARY5_T16) PLANE(4, 1, 3);
            if (layout == OB_LAYOUT_BINARY_T16) {
                PLANE(4, 1, 0);
                PLANE(5, 1, 1);
                PLANE(6, 1, 2);
                PLANE(7, 1, 3);
            }
        }
    }
}

INLINE void dot_ternary_in_place(const uint8_t *data, uint32_t tiles, const uint8_t *x, i32x4 acc[MAX_QUARTERS]) {
    int32x4_t ones[4], fours[4], sixteens[4];
    UNROLL for (int q = 0; q < 4; q++) ones[q] = fours[q] = sixteens[q] = vdupq_n_s32(0);
    for (uint32_t i = 0; i < tiles; i++, data += OB_TILE_BYTES, x += 16) {
        int8x16_t inputs = vld1q_s8((const int8_t *)x);
        UNROLL for (int q = 0; q < 4; q++) {
            uint8x16_t bytes = vld1q_u8(data + 16 * q);
            ones[q] = DOT(ones[q], vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(3))), inputs, 0);
            fours[q] = DOT(fours[q], vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(12))), inputs, 1);
            sixteens[q] = DOT(sixteens[q], vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(48))), inputs, 2);
            ones[q] = DOT(ones[q], vreinterpretq_s8_u8(vshrq_n_u8(bytes, 6)), inputs, 3);
        }
    }
    UNROLL for (int q = 0; q < 4; q++)
        acc[q] = vaddq_s32(ones[q], vaddq_s32(vshrq_n_s32(fours[q], 2), vshrq_n_s32(sixteens[q], 4)));
}

#define BASE3_PLANE(vector, lane)                                   \
    do {                                                            \
        int8x16_t next = vmulq_s8(s, vdupq_n_s8(3));                \
        a[q] = DOT(a[q], s, vector, lane);                          \
        b[q] = DOT(b[q], next, vector, lane);                       \
        s = next;                                                   \
    } while (0)

/* Sums wrap around on the way, which is harmless: 3 A - B = 256 * sum of code * x stays below 2^31 for 2048 tiles. */
INLINE void dot_base3(const uint8_t *data, uint32_t tiles, const uint8_t *x, i32x4 acc[MAX_QUARTERS]) {
    UNROLL for (int q = 0; q < 4; q++) acc[q] = vdupq_n_s32(0);
    while (tiles) {
        uint32_t part = tiles < 2048 ? tiles : 2048;
        int32x4_t a[4], b[4];
        UNROLL for (int q = 0; q < 4; q++) a[q] = b[q] = vdupq_n_s32(0);
        for (uint32_t i = 0; i < part; i++, data += OB_TILE_BYTES, x += 20) {
            int8x16_t low = vld1q_s8((const int8_t *)x), high = vld1q_s8((const int8_t *)x + 4);
            UNROLL for (int q = 0; q < 4; q++) {
                int8x16_t s = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(data + 16 * q), vdupq_n_u8(128)));
                BASE3_PLANE(low, 0);
                BASE3_PLANE(low, 1);
                BASE3_PLANE(low, 2);
                BASE3_PLANE(low, 3);
                BASE3_PLANE(high, 3);
            }
        }
        UNROLL for (int q = 0; q < 4; q++) {
            int32x4_t exact = vsubq_s32(vmulq_n_s32(a[q], 3), b[q]);
            acc[q] = vaddq_s32(acc[q], vshrq_n_s32(exact, 8));
        }
        tiles -= part;
    }
}

INLINE void dot_tiles(uint32_t layout, const uint8_t *data, uint32_t tiles, const uint8_t *x, size_t x_stride, int tokens,
                      int quarters, i32x4 acc[MAX_TOKENS][MAX_QUARTERS]) {
    if (tokens > 1 || layout == OB_LAYOUT_BINARY_T16)
        dot_planes(layout, data, tiles, x, x_stride, tokens, quarters, acc);
    else if (layout == OB_LAYOUT_TERNARY_T16)
        dot_ternary_in_place(data, tiles, x, acc[0]);
    else
        dot_base3(data, tiles, x, acc[0]);
}

#include "ob_linear_t16_i8_quarters.h"

INLINE void linear(uint32_t layout, const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end, float *y,
                   size_t y_stride) {
    const size_t stride = in->codes_stride;
    for (uint32_t row = row_begin; row < row_end; row += OB_BLOCK_ROWS) {
        const uint8_t *data = w->data + (uint64_t)(row / OB_BLOCK_ROWS) * w->tiles_block * OB_TILE_BYTES;
        const uint8_t *x = (const uint8_t *)in->codes_TK;
        uint32_t t = 0, n = in->num_tokens;
        for (; t + 8 <= n; t += 8) block_tokens(layout, w, data, in, x + t * stride, stride, row, 2, t, 8, y, y_stride);
        for (; t + 4 <= n; t += 4) block_tokens(layout, w, data, in, x + t * stride, stride, row, 4, t, 4, y, y_stride);
        for (; t < n; t++) block_tokens(layout, w, data, in, x + t * stride, stride, row, 4, t, 1, y, y_stride);
    }
}

TARGET void NAME(binary)(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end, float *y_TO,
                         size_t y_stride, uint8_t *work) {
    (void)work;
    linear(OB_LAYOUT_BINARY_T16, w, in, row_begin, row_end, y_TO, y_stride);
}

TARGET void NAME(ternary)(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end, float *y_TO,
                         size_t y_stride, uint8_t *work) {
    (void)work;
    linear(OB_LAYOUT_TERNARY_T16, w, in, row_begin, row_end, y_TO, y_stride);
}

TARGET void NAME(ternary5)(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end, float *y_TO,
                         size_t y_stride, uint8_t *work) {
    (void)work;
    linear(OB_LAYOUT_TERNARY5_T16, w, in, row_begin, row_end, y_TO, y_stride);
}
