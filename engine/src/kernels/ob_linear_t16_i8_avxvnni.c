/* Linear layers in the tiled layouts, int8 inputs, AVX-VNNI: the dot product of VNNI on 256 bits, without AVX-512. */
#include "ob_kernels.h"

#if defined(OB_X86) && defined(__GNUC__)
#define TARGET OB_TARGET("avx2,f16c,avxvnni")
#define LANES 8
#include "ob_linear_t16_i8_x86.h"

void ob_enter_linear_t16_avxvnni(ob_kernels *k) { enter(k, OB_ISA_AVXVNNI); }
#endif
