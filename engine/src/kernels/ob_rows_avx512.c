/* Norms, activations, positions and cache rows, AVX-512: ob_rows_body.h in its registers. */
#include "ob_kernels.h"

#if defined(OB_X86) && defined(__GNUC__)
#define OB_SET_AVX512
#include "ob_rows_body.h"

void ob_enter_rows_avx512(ob_kernels *k) { enter_rows(k, OB_ISA_AVX512); }
#endif
