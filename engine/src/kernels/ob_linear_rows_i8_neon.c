/* Linear layers of int8 and int4 rows, int8 inputs, NEON as every 64-bit ARM has it. */
#include "ob_kernels.h"

#ifdef OB_ARM
#include <arm_neon.h>

#define TARGET
#define DOT(acc, w, x) add_products(acc, w, x)

OB_INLINE int32x4_t add_products(int32x4_t acc, int8x16_t a, int8x16_t b) { /* a pair is at most 2 * 128 * 127 */
    int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b)), high = vmull_high_s8(a, b);
    return vpadalq_s16(acc, vpaddq_s16(low, high));
}

#include "ob_linear_rows_i8_neon.h"

void ob_enter_linear_rows_i8_neon(ob_kernels *k) {
    ob_enter_i8(k, OB_LAYOUT_INT8, linear_int8_i8, OB_ISA_NEON);
    ob_enter_i8(k, OB_LAYOUT_INT4, linear_int4_i8, OB_ISA_NEON);
}
#endif
