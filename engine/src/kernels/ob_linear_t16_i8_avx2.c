/* Linear layers in the tiled layouts, int8 inputs, AVX2: maddubs into int16 sums. */
#include "ob_kernels.h"

#if defined(OB_X86) && defined(__GNUC__)
#define TARGET OB_TARGET("avx2,f16c")
#define LANES 8
#define DOT_IS_SHORT
#include "ob_linear_t16_i8_x86.h"

void ob_enter_linear_t16_avx2(ob_kernels *k) { enter(k, OB_ISA_AVX2); }
#endif
