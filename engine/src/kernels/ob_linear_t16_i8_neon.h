/* Body of the tiled linear layers on NEON, int8 inputs. The file that includes this defines TARGET and
 * DOT(acc, digits, x, lane): acc[i] += the dot product of bytes 4i..4i+3 of digits and of lane `lane` of x.
 *
 * Four rows' bytes are a register, and the input codes of a plane one 32-bit lane of another. Digits go as signed bytes:
 *   ternary   0..3; one token: planes stay where they are in the byte, with an accumulator for each place, shifted down
 *             at the end (exact: every term is a multiple of the place); the top plane would be negative and is shifted
 *   binary    "bit is set" as 0 or -1, one comparison a plane
 *   ternary5  with s the byte minus 128, s(0) = s and s(j + 1) = 3 s(j) mod 256 as signed bytes, code j is
 *             (3 s(j) - s(j + 1)) / 256: -1 below -42, +1 above 42. One token: (3 A - B) / 256 with A = sum s(j) x,
 *             B = sum s(j + 1) x needs no codes at all. */
#define INLINE TARGET OB_INLINE
#define UNROLL _Pragma("GCC unroll 8")

enum { MAX_TOKENS = 8, MAX_QUARTERS = 4 };

INLINE uint32_t x_tile_bytes(uint32_t layout) {
    return layout == OB_LAYOUT_TERNARY_T16 ? 16 : layout == OB_LAYOUT_BINARY_T16 ? 32 : 20;
}

typedef int32x4_t i32x4;
typedef float32x4_t f32x4;

/* Digits of plane j as signed bytes; `rest` is the byte minus 128 and then its remainder from plane to plane. */
INLINE int8x16_t plane_digits(uint32_t layout, uint8x16_t bytes, int j, int8x16_t *rest) {
    if (layout == OB_LAYOUT_BINARY_T16) return vreinterpretq_s8_u8(vtstq_u8(bytes, vdupq_n_u8((uint8_t)(1 << j))));
    if (layout == OB_LAYOUT_TERNARY_T16) {
        uint8x16_t down = j == 1 ? vshrq_n_u8(bytes, 2) : j == 2 ? vshrq_n_u8(bytes, 4) : j == 3 ? vshrq_n_u8(bytes, 6) : bytes;
        return vreinterpretq_s8_u8(j == 3 ? down : vandq_u8(down, vdupq_n_u8(3)));
    }
    int8x16_t s = *rest;
    uint8x16_t above = vcgtq_s8(s, vdupq_n_s8(42)), below = vcgtq_s8(vdupq_n_s8(-42), s);
    *rest = vmulq_s8(s, vdupq_n_s8(3));
    return vreinterpretq_s8_u8(vsubq_u8(below, above));
}

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

INLINE int32x4_t codes_dot(uint32_t layout, int32x4_t acc, int32_t input_sum) {
    if (layout == OB_LAYOUT_TERNARY5_T16) return acc;
    if (layout == OB_LAYOUT_BINARY_T16) acc = vnegq_s32(vaddq_s32(acc, acc));
    return vsubq_s32(acc, vdupq_n_s32(input_sum));
}

INLINE f32x4 load_halves(const uint8_t *bytes) {
    float16x4_t halves;
    memcpy(&halves, bytes, 8);
    return vcvt_f32_f16(halves);
}
