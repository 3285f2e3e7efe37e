/* Linear layers of int8 and int4 rows, int8 inputs, NEON with dot products. */
#include "ob_kernels.h"

#ifdef OB_ARM_DOT
#include <arm_neon.h>

#define TARGET OB_TARGET_ARM_DOT
#define INLINE TARGET OB_INLINE
#define UNROLL _Pragma("GCC unroll 4")

enum { ROWS = 4, MAX_TOKENS = 4 };
typedef int32x4_t i32x4;
typedef int8x16x2_t operand; /* int4: even inputs, odd inputs */

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

INLINE i32x4 dot(uint32_t layout, i32x4 acc, operand w, operand x) {
    acc = vdotq_s32(acc, w.val[0], x.val[0]);
    return layout == OB_LAYOUT_INT4 ? vdotq_s32(acc, w.val[1], x.val[1]) : acc;
}

#include "ob_linear_rows_i8_128.h"

void ob_enter_linear_rows_i8_neon(ob_kernels *k) {
    ob_enter_i8(k, OB_LAYOUT_INT8, linear_int8_i8, OB_ISA_NEON);
    ob_enter_i8(k, OB_LAYOUT_INT4, linear_int4_i8, OB_ISA_NEON);
}
#endif
