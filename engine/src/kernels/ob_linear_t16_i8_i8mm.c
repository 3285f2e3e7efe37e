/* Linear layers in the tiled layouts, int8 inputs, NEON with int8 matrix products: smmla adds 2 rows x 8 inputs times
 * 8 inputs x 2 tokens. It wants eight inputs of a row side by side, so a block's 16 rows are laid out anew in work memory,
 * once for all tokens: [pairs of planes, 8 pairs of rows, 2 rows, 8 bytes]. Where a group has an odd number of planes its
 * last pair is a plane of zeros and the last plane. One or three tokens do not pay for that: they take the dot products. */
#include "ob_kernels.h"

#ifdef OB_ARM_I8MM
#include <arm_neon.h>

#define TARGET OB_TARGET_ARM_I8MM
#define INLINE TARGET OB_INLINE
#define UNROLL OB_UNROLL

enum { MAX_TOKENS = 8, MAX_QUARTERS = 4, QUARTER_BYTES = 32, PAIR_BYTES = 128 };

#include "ob_t16_digits_neon.h"

INLINE uint32_t num_planes(uint32_t layout) {
    return layout == OB_LAYOUT_TERNARY_T16 ? 4 : layout == OB_LAYOUT_BINARY_T16 ? 8 : 5;
}

INLINE uint32_t x_tile_bytes(uint32_t layout) { return 4 * num_planes(layout); }

INLINE size_t group_bytes(uint32_t layout, uint32_t tiles) {
    return ((size_t)tiles * num_planes(layout) + 1) / 2 * PAIR_BYTES;
}

/* ---- the panel ---- */

/* A plane and the one before it to two registers of two rows each, for quarter q of a pair at `to`. */
INLINE void store_pair(uint8_t *to, int q, int8x16_t first, int8x16_t second) {
    int32x4_t a = vreinterpretq_s32_s8(first), b = vreinterpretq_s32_s8(second);
    vst1q_s8((int8_t *)to + q * QUARTER_BYTES, vreinterpretq_s8_s32(vzip1q_s32(a, b)));
    vst1q_s8((int8_t *)to + q * QUARTER_BYTES + 16, vreinterpretq_s8_s32(vzip2q_s32(a, b)));
}

INLINE void pack_group(uint32_t layout, const uint8_t *data, uint32_t tiles, uint8_t *panel) {
    UNROLL for (int q = 0; q < 4; q++) {
        int8x16_t waiting = vdupq_n_s8(0);
        uint8_t *to = panel;
        int have = 0;
        for (uint32_t i = 0; i < tiles; i++) {
            uint8x16_t bytes = vld1q_u8(data + (size_t)i * OB_TILE_BYTES + 16 * q);
            int8x16_t rest = vreinterpretq_s8_u8(veorq_u8(bytes, vdupq_n_u8(128)));
            UNROLL for (int j = 0; j < (int)num_planes(layout); j++) {
                int8x16_t digits = plane_digits(layout, bytes, j, &rest);
                if (have) store_pair(to, q, waiting, digits), to += PAIR_BYTES;
                else waiting = digits;
                have = !have;
            }
        }
        if (have) store_pair(to, q, vdupq_n_s8(0), waiting);
    }
}

INLINE size_t panel_bytes(uint32_t layout, const ob_weights *w) {
    uint32_t last = w->tiles_block - (w->num_groups - 1) * w->tiles_group;
    return (w->num_groups - 1) * group_bytes(layout, w->tiles_group) + group_bytes(layout, last);
}

INLINE void pack_block(uint32_t layout, const ob_weights *w, uint32_t row, uint8_t *panel) {
    const uint8_t *data = w->data + (uint64_t)(row / OB_BLOCK_ROWS) * w->tiles_block * OB_TILE_BYTES;
    for (uint32_t g = 0; g < w->num_groups; g++) {
        uint32_t tiles = w->tiles_block - g * w->tiles_group;
        if (tiles > w->tiles_group) tiles = w->tiles_group;
        pack_group(layout, data, tiles, panel);
        data += (size_t)tiles * OB_TILE_BYTES;
        panel += group_bytes(layout, tiles);
    }
}

/* ---- products ---- */

INLINE int8x16_t two_tokens(const uint8_t *x, size_t x_stride) {
    return vcombine_s8(vld1_s8((const int8_t *)x), vld1_s8((const int8_t *)x + x_stride));
}

/* tokens is even */
INLINE void dot_tiles(uint32_t layout, const uint8_t *panel, uint32_t tiles, const uint8_t *x, size_t x_stride, int tokens,
                      int quarters, i32x4 acc[MAX_TOKENS][MAX_QUARTERS]) {
    const uint32_t planes = tiles * num_planes(layout);
    i32x4 sums[2 * MAX_QUARTERS][MAX_TOKENS / 2]; /* [pair of rows][pair of tokens]: row 0 token 0, 0 1, 1 0, 1 1 */
    UNROLL for (int r = 0; r < 2 * quarters; r++)
        UNROLL for (int t = 0; t < tokens / 2; t++) sums[r][t] = vdupq_n_s32(0);
    for (uint32_t p = 0; p < planes; p += 2, panel += PAIR_BYTES) {
        const uint8_t *from = x + 4 * (p + 2 <= planes ? p : p - 1);
        int8x16_t inputs[MAX_TOKENS / 2];
        UNROLL for (int t = 0; t < tokens / 2; t++) inputs[t] = two_tokens(from + 2 * (size_t)t * x_stride, x_stride);
        UNROLL for (int r = 0; r < 2 * quarters; r++) {
            int8x16_t rows = vld1q_s8((const int8_t *)panel + 16 * r);
            UNROLL for (int t = 0; t < tokens / 2; t++) sums[r][t] = vmmlaq_s32(sums[r][t], rows, inputs[t]);
        }
    }
    UNROLL for (int q = 0; q < quarters; q++)
        UNROLL for (int t = 0; t < tokens / 2; t++) {
            acc[2 * t][q] = vuzp1q_s32(sums[2 * q][t], sums[2 * q + 1][t]);
            acc[2 * t + 1][q] = vuzp2q_s32(sums[2 * q][t], sums[2 * q + 1][t]);
        }
}

#include "ob_linear_t16_i8_quarters.h"

INLINE void linear(uint32_t layout, ob_linear_fn *dot, const ob_weights *w, const ob_inputs *in, uint32_t row_begin,
                   uint32_t row_end, float *y, size_t y_stride, uint8_t *work) {
    const size_t stride = in->codes_stride;
    const uint32_t n = in->num_tokens, paired = n < 4 || panel_bytes(layout, w) > OB_WORK_BYTES ? 0 : n & ~1u;
    const uint8_t *x = (const uint8_t *)in->codes_TK;
    for (uint32_t row = row_begin; row < row_end && paired; row += OB_BLOCK_ROWS) {
        uint32_t t = 0;
        pack_block(layout, w, row, work);
        for (; t + 8 <= paired; t += 8) block_tokens(layout, w, work, in, x + t * stride, stride, row, 2, t, 8, y, y_stride);
        for (; t + 4 <= paired; t += 4) block_tokens(layout, w, work, in, x + t * stride, stride, row, 4, t, 4, y, y_stride);
        for (; t < paired; t += 2) block_tokens(layout, w, work, in, x + t * stride, stride, row, 4, t, 2, y, y_stride);
    }
    if (paired == n) return;
    ob_inputs rest = *in;
    rest.codes_TK += paired * stride, rest.scale_T += paired, rest.sums_TG += (size_t)paired * w->num_groups;
    rest.num_tokens = n - paired;
    dot(w, &rest, row_begin, row_end, y + paired * y_stride, y_stride, work);
}

TARGET static void linear_binary_t16_i8_i8mm(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end,
                                             float *y_TO, size_t y_stride, uint8_t *work) {
    linear(OB_LAYOUT_BINARY_T16, ob_linear_binary_t16_i8_dot, w, in, row_begin, row_end, y_TO, y_stride, work);
}

TARGET static void linear_ternary_t16_i8_i8mm(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end,
                                              float *y_TO, size_t y_stride, uint8_t *work) {
    linear(OB_LAYOUT_TERNARY_T16, ob_linear_ternary_t16_i8_dot, w, in, row_begin, row_end, y_TO, y_stride, work);
}

TARGET static void linear_ternary5_t16_i8_i8mm(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end,
                                               float *y_TO, size_t y_stride, uint8_t *work) {
    linear(OB_LAYOUT_TERNARY5_T16, ob_linear_ternary5_t16_i8_dot, w, in, row_begin, row_end, y_TO, y_stride, work);
}

void ob_enter_linear_t16_i8mm(ob_kernels *k) {
    ob_enter_i8(k, OB_LAYOUT_BINARY_T16, linear_binary_t16_i8_i8mm, OB_ISA_I8MM);
    ob_enter_i8(k, OB_LAYOUT_TERNARY_T16, linear_ternary_t16_i8_i8mm, OB_ISA_I8MM);
    ob_enter_i8(k, OB_LAYOUT_TERNARY5_T16, linear_ternary5_t16_i8_i8mm, OB_ISA_I8MM);
}
#endif
