/* What the tiled kernels on NEON share: digits as signed bytes, and how their sums become those of the codes. The file that
 * includes this defines INLINE.
 *   ternary   0..3
 *   binary    "bit is set" as 0 or -1, one comparison a plane
 *   ternary5  the codes -1, 0, 1 themselves: with s the byte minus 128, s(0) = s and s(j + 1) = 3 s(j) mod 256 as signed
 *             bytes, code j is (3 s(j) - s(j + 1)) / 256: -1 below -42, +1 above 42 */

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

INLINE i32x4 codes_dot(uint32_t layout, i32x4 acc, int32_t input_sum) {
    if (layout == OB_LAYOUT_TERNARY5_T16) return acc;
    if (layout == OB_LAYOUT_BINARY_T16) acc = vnegq_s32(vaddq_s32(acc, acc));
    return vsubq_s32(acc, vdupq_n_s32(input_sum));
}

INLINE f32x4 load_halves(const uint8_t *bytes) {
    float16x4_t halves;
    memcpy(&halves, bytes, 8);
    return vcvt_f32_f16(halves);
}
