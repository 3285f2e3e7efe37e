/* Linear layers in the tiled layouts, int8 inputs, AVX-512 VNNI. */
#include "ob_kernels.h"

#if defined(OB_X86) && defined(__GNUC__)
#define TARGET OB_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,f16c")
#define LANES 16
#include "ob_linear_t16_i8_x86.h"

void ob_enter_linear_t16_avx512(ob_kernels *k) { enter(k, OB_ISA_AVX512); }
#endif
