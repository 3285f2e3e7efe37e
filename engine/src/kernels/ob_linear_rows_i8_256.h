/* The vectors of ob_linear_rows_i8_body.h for 256 bits: all that AVX2 and AVX-VNNI share. TARGET is the including file's. */
#include <immintrin.h>

#define INLINE TARGET OB_INLINE
#define UNROLL OB_UNROLL

typedef int32_t vec __attribute__((vector_size(32)));
typedef uint32_t vec_u __attribute__((vector_size(32)));
typedef float vec_f __attribute__((vector_size(32)));
enum { VEC_BYTES = 32, LANES = 8 };

INLINE vec zero(void) { return (vec)_mm256_setzero_si256(); }
INLINE vec set_bytes(int byte) { return (vec)_mm256_set1_epi8((char)byte); }
INLINE vec load(const void *from) { return (vec)_mm256_loadu_si256((const __m256i *)from); }

INLINE vec broadcast4(const int8_t *from) {
    int32_t word;
    memcpy(&word, from, 4);
    return (vec)_mm256_set1_epi32(word);
}

INLINE vec pair_up(vec a, vec b, vec c, vec d) {
    __m256i ab = _mm256_add_epi32(_mm256_unpacklo_epi32((__m256i)a, (__m256i)b), _mm256_unpackhi_epi32((__m256i)a, (__m256i)b));
    __m256i cd = _mm256_add_epi32(_mm256_unpacklo_epi32((__m256i)c, (__m256i)d), _mm256_unpackhi_epi32((__m256i)c, (__m256i)d));
    return (vec)_mm256_add_epi32(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
}

INLINE vec in_order(vec v) {
    return (vec)_mm256_permutevar8x32_epi32((__m256i)v, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

INLINE __m128i fold(vec v) {
    return _mm_add_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
}

INLINE vec_f halves(const uint16_t *from) { return (vec_f)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)from)); }
