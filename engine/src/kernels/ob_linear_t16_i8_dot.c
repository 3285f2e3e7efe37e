/* Linear layers in the tiled layouts, int8 inputs, NEON with dot products (sdot by lane). */
#include "ob_kernels.h"

#ifdef OB_ARM_DOT
#include <arm_neon.h>

#define TARGET OB_TARGET_ARM_DOT
#define NAME(name) ob_linear_##name##_t16_i8_dot
#define DOT(acc, digits, x, lane) vdotq_laneq_s32(acc, digits, x, lane)
#include "ob_linear_t16_i8_neon.h"

void ob_enter_linear_t16_dot(ob_kernels *k) {
    ob_enter_i8(k, OB_LAYOUT_BINARY_T16, ob_linear_binary_t16_i8_dot, OB_ISA_NEON);
    ob_enter_i8(k, OB_LAYOUT_TERNARY_T16, ob_linear_ternary_t16_i8_dot, OB_ISA_NEON);
    ob_enter_i8(k, OB_LAYOUT_TERNARY5_T16, ob_linear_ternary5_t16_i8_dot, OB_ISA_NEON);
}
#endif
