/* Attention, AVX2: ob_attend_body.h in its registers. */
#include "ob_kernels.h"

#if defined(OB_X86) && defined(__GNUC__)
#define OB_SET_AVX2
#include "ob_attend_body.h"

void ob_enter_attend_avx2(ob_kernels *k) { enter_attend(k, OB_ISA_AVX2); }
#endif
