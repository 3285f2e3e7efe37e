/* Linear layers of float32, float16 and int8 rows with float inputs (embedding-sized heads), NEON. */
#include "ob_kernels.h"

#ifdef OB_ARM
#include <arm_neon.h>

#define TARGET
#define INLINE OB_INLINE
#define UNROLL OB_UNROLL

enum { ROWS = 4, TOKENS = 4 };
typedef float32x4_t f32x4;

INLINE f32x4 load4(uint32_t layout, const uint8_t *row, size_t k) {
    if (layout == OB_LAYOUT_FLOAT32) return vreinterpretq_f32_u8(vld1q_u8(row + 4 * k));
    if (layout == OB_LAYOUT_FLOAT16) return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(row + 2 * k)));
    uint32_t word;
    memcpy(&word, row + k, 4);
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(word))))));
}

#include "ob_linear_rows_f32_128.h"

void ob_enter_linear_rows_f32_neon(ob_kernels *k) {
    ob_enter_f32(k, OB_LAYOUT_FLOAT32, linear_float32_f32, OB_ISA_NEON);
    ob_enter_f32(k, OB_LAYOUT_FLOAT16, linear_float16_f32, OB_ISA_NEON);
    ob_enter_f32(k, OB_LAYOUT_INT8, linear_int8_f32, OB_ISA_NEON);
}
#endif
