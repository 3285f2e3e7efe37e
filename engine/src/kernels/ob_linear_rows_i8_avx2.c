/* Linear layers of code rows with int8 inputs, AVX2: the product of sizes, |w| unsigned, and inputs with w's sign. Two
 * such products fit 16 bits, 2 * 128 * 127 = 32512, because an input is never -128. */
#include "ob_kernels.h"

#if defined(OB_X86) && defined(__GNUC__)
#define TARGET OB_TARGET("avx2,f16c")
#include "ob_linear_rows_i8_256.h"

enum { OFFSET = 0, PANEL_TOKENS = 4, MANY_TOKENS = 48, MANY_TOKENS_PACKED = 8 };

/* w unsigned, at most 128 */
INLINE vec dot_unsigned(vec acc, __m256i w, __m256i x) {
    return acc + (vec)_mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1));
}

INLINE vec dot(vec acc, vec w, vec x) {
    return dot_unsigned(acc, _mm256_abs_epi8((__m256i)w), _mm256_sign_epi8((__m256i)x, (__m256i)w));
}

INLINE vec dot_nibbles(vec acc, vec w, vec x) { return dot_unsigned(acc, (__m256i)w, (__m256i)x); }

#include "ob_linear_rows_i8_body.h"

void ob_enter_linear_rows_i8_avx2(ob_kernels *k) { enter_rows_i8(k, OB_ISA_AVX2); }
#endif
