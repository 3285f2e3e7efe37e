/* Linear layers in the tiled layouts, int8 inputs, NEON as every 64-bit ARM has it: products of 8 bits added up in pairs.
 * A pair is at most 2 * 128 * 127, so that 16 bits hold it. */
#include "ob_kernels.h"

#ifdef OB_ARM
#include <arm_neon.h>

#define TARGET
#define NAME(name) ob_linear_##name##_t16_i8_neon
#define DOT(acc, digits, x, lane) \
    add_products(acc, digits, vreinterpretq_s8_s32(vdupq_laneq_s32(vreinterpretq_s32_s8(x), lane)))

OB_INLINE int32x4_t add_products(int32x4_t acc, int8x16_t a, int8x16_t b) {
    int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b)), high = vmull_high_s8(a, b);
    return vpadalq_s16(acc, vpaddq_s16(low, high));
}

#include "ob_linear_t16_i8_neon.h"

void ob_enter_linear_t16_neon(ob_kernels *k) {
    ob_enter_i8(k, OB_LAYOUT_BINARY_T16, ob_linear_binary_t16_i8_neon, OB_ISA_NEON);
    ob_enter_i8(k, OB_LAYOUT_TERNARY_T16, ob_linear_ternary_t16_i8_neon, OB_ISA_NEON);
    ob_enter_i8(k, OB_LAYOUT_TERNARY5_T16, ob_linear_ternary5_t16_i8_neon, OB_ISA_NEON);
}
#endif
