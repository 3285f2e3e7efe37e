/* Linear layers with float inputs, AVX2: the 16 lanes of the fixed order are two registers. */
#include "ob_kernels.h"

#if defined(OB_X86) && defined(__GNUC__)
#include <immintrin.h>

#define TARGET OB_TARGET("avx2,f16c")
#define INLINE TARGET OB_INLINE
#define UNROLL OB_UNROLL

typedef struct lanes {
    __m256 low, high;
} lanes;
enum { ROWS = 2, TOKENS = 2 };

INLINE lanes no_lanes(void) { return (lanes){_mm256_setzero_ps(), _mm256_setzero_ps()}; }
INLINE lanes load_float32(const float *from) { return (lanes){_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }

INLINE lanes load_float16(const uint8_t *from) {
    const __m128i *halves = (const __m128i *)(const void *)from;
    return (lanes){_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
}

INLINE __m256 load8(const uint8_t *from) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)from)));
}

INLINE lanes load_int8(const uint8_t *from) { return (lanes){load8(from), load8(from + 8)}; }

INLINE __m256 keep8(__m256 v, int count) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_and_ps(v, _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane)));
}

INLINE lanes keep(lanes v, int count) { return (lanes){keep8(v.low, count), keep8(v.high, count - 8)}; }

INLINE lanes add_product(lanes acc, lanes a, lanes b) {
    return (lanes){_mm256_add_ps(acc.low, _mm256_mul_ps(a.low, b.low)), _mm256_add_ps(acc.high, _mm256_mul_ps(a.high, b.high))};
}

INLINE float tree16(lanes v) {
    __m256 a = _mm256_add_ps(v.low, v.high);
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b)); /* 0+2, 1+3 */
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}

#include "ob_linear_rows_f32_body.h"

void ob_enter_linear_rows_avx2(ob_kernels *k) { enter_f32(k, OB_ISA_AVX2); }
#endif
