/* Linear layers in the tiled layouts, int8 inputs: AMX int8 tiles for many tokens, AVX-512 VNNI for few. */
#include "ob_kernels.h"

#if defined(OB_X86) && defined(__GNUC__)
#define TARGET OB_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,f16c,amx-tile,amx-int8")
#define LANES 16
#define WITH_AMX
#include "ob_linear_t16_i8_x86.h"

void ob_enter_linear_t16_amx(ob_kernels *k) { enter(k, OB_ISA_AMX); }
#endif
