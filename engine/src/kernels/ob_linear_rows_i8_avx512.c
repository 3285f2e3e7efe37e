/* Linear layers of code rows with int8 inputs, AVX-512 VNNI: unsigned times signed, so a weight is its code plus 128. */
#include "ob_kernels.h"

#if defined(OB_X86) && defined(__GNUC__)
#include <immintrin.h>

#define TARGET OB_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,f16c")
#define INLINE TARGET OB_INLINE
#define UNROLL OB_UNROLL

typedef int32_t vec __attribute__((vector_size(64)));
typedef uint32_t vec_u __attribute__((vector_size(64)));
typedef float vec_f __attribute__((vector_size(64)));
enum { VEC_BYTES = 64, LANES = 16, OFFSET = 128, PANEL_TOKENS = 12, MANY_TOKENS = 64, MANY_TOKENS_PACKED = 8 };

INLINE vec zero(void) { return (vec)_mm512_setzero_si512(); }
INLINE vec set_bytes(int byte) { return (vec)_mm512_set1_epi8((char)byte); }
INLINE vec load(const void *from) { return (vec)_mm512_loadu_si512(from); }

INLINE vec broadcast4(const int8_t *from) {
    int32_t word;
    memcpy(&word, from, 4);
    return (vec)_mm512_set1_epi32(word);
}

INLINE vec dot(vec acc, vec w, vec x) { return (vec)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, (__m512i)x); }
INLINE vec dot_nibbles(vec acc, vec w, vec x) { return dot(acc, w, x); }

INLINE vec pair_up(vec a, vec b, vec c, vec d) {
    __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32((__m512i)a, (__m512i)b), _mm512_unpackhi_epi32((__m512i)a, (__m512i)b));
    __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32((__m512i)c, (__m512i)d), _mm512_unpackhi_epi32((__m512i)c, (__m512i)d));
    return (vec)_mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
}

INLINE vec in_order(vec v) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return (vec)_mm512_permutexvar_epi32(order, (__m512i)v);
}

INLINE __m128i fold(vec v) {
    __m256i half = _mm256_add_epi32(_mm512_castsi512_si256((__m512i)v), _mm512_extracti64x4_epi64((__m512i)v, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

INLINE vec_f halves(const uint16_t *from) { return (vec_f)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)from)); }

#include "ob_linear_rows_i8_body.h"

void ob_enter_linear_rows_i8_avx512(ob_kernels *k) { enter_rows_i8(k, OB_ISA_AVX512); }
#endif
