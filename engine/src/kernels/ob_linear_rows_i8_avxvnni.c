/* Linear layers of code rows with int8 inputs, AVX-VNNI: unsigned times signed, so a weight is its code plus 128. */
#include "ob_kernels.h"

#if defined(OB_X86) && defined(__GNUC__)
#define TARGET OB_TARGET("avxvnni,avx2,f16c")
#include "ob_linear_rows_i8_256.h"

enum { OFFSET = 128, PANEL_TOKENS = 6, MANY_TOKENS = 48, MANY_TOKENS_PACKED = 8 };

INLINE vec dot(vec acc, vec w, vec x) { return (vec)_mm256_dpbusd_avx_epi32((__m256i)acc, (__m256i)w, (__m256i)x); }
INLINE vec dot_nibbles(vec acc, vec w, vec x) { return dot(acc, w, x); }

#include "ob_linear_rows_i8_body.h"

void ob_enter_linear_rows_i8_avxvnni(ob_kernels *k) { enter_rows_i8(k, OB_ISA_AVXVNNI); }
#endif
