/* The registers of ob_linear_rows_i8_128.h on NEON. The file that includes this defines TARGET and DOT(acc, w, x): four
 * products to each 32-bit lane. */
#define INLINE TARGET OB_INLINE
#define UNROLL OB_UNROLL

enum { ROWS = 4, MAX_TOKENS = 4 };
typedef int32x4_t accumulator;
typedef int8x16x2_t operand; /* int4: even inputs, odd inputs */

INLINE int32_t total(accumulator acc) {
    return (int32_t)((uint32_t)acc[0] + (uint32_t)acc[1] + (uint32_t)acc[2] + (uint32_t)acc[3]);
}

INLINE operand weights(uint32_t layout, const uint8_t *bytes) {
    uint8x16_t v = vld1q_u8(bytes);
    if (layout == OB_LAYOUT_INT8) return (operand){{vreinterpretq_s8_u8(v), vreinterpretq_s8_u8(v)}};
    return (operand){{vreinterpretq_s8_u8(vandq_u8(v, vdupq_n_u8(15))), vreinterpretq_s8_u8(vshrq_n_u8(v, 4))}};
}

INLINE operand inputs(uint32_t layout, const int8_t *x) {
    if (layout == OB_LAYOUT_INT4) return vld2q_s8(x);
    int8x16_t v = vld1q_s8(x);
    return (operand){{v, v}};
}

INLINE accumulator dot(uint32_t layout, accumulator acc, operand w, operand x) {
    acc = DOT(acc, w.val[0], x.val[0]);
    return layout == OB_LAYOUT_INT4 ? DOT(acc, w.val[1], x.val[1]) : acc;
}

#include "ob_linear_rows_i8_128.h"
