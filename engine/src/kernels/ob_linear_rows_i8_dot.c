/* Linear layers of int8 and int4 rows, int8 inputs, NEON with dot products. */
#include "ob_kernels.h"

#ifdef OB_ARM_DOT
#include <arm_neon.h>

#define TARGET OB_TARGET_ARM_DOT
#define DOT(acc, w, x) vdotq_s32(acc, w, x)
#include "ob_linear_rows_i8_neon.h"

void ob_enter_linear_rows_i8_dot(ob_kernels *k) {
    ob_enter_i8(k, OB_LAYOUT_INT8, linear_int8_i8, OB_ISA_NEON);
    ob_enter_i8(k, OB_LAYOUT_INT4, linear_int4_i8, OB_ISA_NEON);
}
#endif
