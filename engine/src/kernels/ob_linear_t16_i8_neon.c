/* Linear layers in the tiled layouts, int8 inputs, NEON with dot products (sdot by lane). */
#include "ob_kernels.h"

#ifdef OB_ARM_DOT
#include <arm_neon.h>

#define TARGET OB_TARGET_ARM_DOT
#define DOT(acc, digits, x, lane) vdotq_laneq_s32(acc, digits, x, lane)
#include "ob_linear_t16_i8_neon.h"

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
        const uint8_t *x = (const uint8_t *)in->codes_TK;
        uint32_t t = 0, n = in->num_tokens;
        for (; t + 8 <= n; t += 8) block_tokens(layout, w, in, x + t * stride, stride, row, 2, t, 8, y, y_stride);
        for (; t + 4 <= n; t += 4) block_tokens(layout, w, in, x + t * stride, stride, row, 4, t, 4, y, y_stride);
        for (; t < n; t++) block_tokens(layout, w, in, x + t * stride, stride, row, 4, t, 1, y, y_stride);
    }
}

TARGET static void linear_binary_t16_i8_neon(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end,
                                             float *y_TO, size_t y_stride, uint8_t *work) {
    (void)work;
    linear(OB_LAYOUT_BINARY_T16, w, in, row_begin, row_end, y_TO, y_stride);
}

TARGET static void linear_ternary_t16_i8_neon(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end,
                                              float *y_TO, size_t y_stride, uint8_t *work) {
    (void)work;
    linear(OB_LAYOUT_TERNARY_T16, w, in, row_begin, row_end, y_TO, y_stride);
}

TARGET static void linear_ternary5_t16_i8_neon(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end,
                                               float *y_TO, size_t y_stride, uint8_t *work) {
    (void)work;
    linear(OB_LAYOUT_TERNARY5_T16, w, in, row_begin, row_end, y_TO, y_stride);
}

void ob_enter_linear_t16_neon(ob_kernels *k) {
    ob_enter_i8(k, OB_LAYOUT_BINARY_T16, linear_binary_t16_i8_neon, OB_ISA_NEON);
    ob_enter_i8(k, OB_LAYOUT_TERNARY_T16, linear_ternary_t16_i8_neon, OB_ISA_NEON);
    ob_enter_i8(k, OB_LAYOUT_TERNARY5_T16, linear_ternary5_t16_i8_neon, OB_ISA_NEON);
}
#endif
