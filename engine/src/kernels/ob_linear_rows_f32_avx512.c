/* Linear layers with float inputs, AVX-512: one register is the 16 lanes of the fixed order. */
#include "ob_kernels.h"

#if defined(OB_X86) && defined(__GNUC__)
#include <immintrin.h>

#define TARGET OB_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx2,f16c")
#define INLINE TARGET OB_INLINE
#define UNROLL OB_UNROLL

typedef __m512 lanes;
enum { ROWS = 4, TOKENS = 4 };

INLINE lanes no_lanes(void) { return _mm512_setzero_ps(); }
INLINE lanes load_float32(const float *from) { return _mm512_loadu_ps(from); }
INLINE lanes load_float16(const uint8_t *from) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)from)); }

INLINE lanes load_int8(const uint8_t *from) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)from)));
}

INLINE lanes keep(lanes v, int count) { return _mm512_maskz_mov_ps((__mmask16)((1u << count) - 1), v); }
INLINE lanes add_product(lanes acc, lanes a, lanes b) { return _mm512_add_ps(acc, _mm512_mul_ps(a, b)); }

INLINE float tree16(lanes v) {
    __m256 a = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b)); /* 0+2, 1+3 */
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}

#include "ob_linear_rows_f32_body.h"

void ob_enter_linear_rows_avx512(ob_kernels *k) { enter_f32(k, OB_ISA_AVX512); }
#endif
