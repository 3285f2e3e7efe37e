/* Linear layers of code rows with int8 inputs, AVX-512 VNNI. */
#include "ob_kernels.h"

#ifdef OB_X86
#include <immintrin.h>

#define TARGET OB_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,f16c")
#define INLINE TARGET OB_INLINE
#define UNROLL _Pragma("GCC unroll 16")

typedef int32_t vec __attribute__((vector_size(64)));
enum { VEC_BYTES = 64, OFFSET = 128 };

INLINE vec zero(void) { return (vec)_mm512_setzero_si512(); }
INLINE vec load(const void *from) { return (vec)_mm512_loadu_si512(from); }
INLINE vec signed_weights(vec w) { return (vec)_mm512_xor_si512((__m512i)w, _mm512_set1_epi8((char)0x80)); }
INLINE vec dot(vec acc, vec w, vec x) { return (vec)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, (__m512i)x); }
INLINE int32_t sum_lanes(vec v) { return _mm512_reduce_add_epi32((__m512i)v); }

#include "ob_linear_rows_i8_body.h"

void ob_enter_linear_rows_i8_avx512(ob_kernels *k) { ob_enter_i8(k, OB_LAYOUT_INT8, linear_int8_i8, OB_ISA_AVX512); }
#endif
