/* Attention of one query head, AVX-512: the reference's arithmetic, 16 lanes in one register. */
#include "../ob_math.h"
#include "ob_kernels.h"

#ifdef OB_X86
#include <immintrin.h>

#define TARGET OB_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx2,f16c")
#define INLINE TARGET OB_INLINE

INLINE float tree16(__m512 lanes) {
    __m256 a = _mm256_add_ps(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps(lanes, 1));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}

/* ob_exp for x <= 0 (or NaN), operation by operation. */
INLINE __m512 exp16(__m512 x) {
    const __m512 magic = _mm512_set1_ps(12582912.0f);
    __mmask16 in_range = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-104.0f), _CMP_GT_OQ);
    __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    __m512 safe = _mm512_maskz_mov_ps(in_range, x);
    __m512 n = _mm512_sub_ps(_mm512_add_ps(_mm512_mul_ps(safe, _mm512_set1_ps(1.44269504f)), magic), magic);
    __m512 r = _mm512_sub_ps(safe, _mm512_mul_ps(n, _mm512_set1_ps(0.693359375f)));
    r = _mm512_sub_ps(r, _mm512_mul_ps(n, _mm512_set1_ps(-2.12194440e-4f)));
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_add_ps(_mm512_add_ps(_mm512_mul_ps(p, _mm512_mul_ps(r, r)), r), _mm512_set1_ps(1.0f));
    __m512i whole = _mm512_cvtps_epi32(n);
    __m512i half = _mm512_srai_epi32(_mm512_add_epi32(whole, _mm512_srli_epi32(whole, 31)), 1);
    const __m512i bias = _mm512_set1_epi32(127);
    __m512i first = _mm512_slli_epi32(_mm512_add_epi32(half, bias), 23);
    __m512i second = _mm512_slli_epi32(_mm512_add_epi32(_mm512_sub_epi32(whole, half), bias), 23);
    p = _mm512_mul_ps(_mm512_mul_ps(p, _mm512_castsi512_ps(first)), _mm512_castsi512_ps(second));
    return _mm512_mask_mov_ps(_mm512_maskz_mov_ps(in_range, p), is_nan, x);
}

/* scores[p] = q.k[p] * scale; returns the largest. */
INLINE float score(const float *q, const float *keys, size_t stride, uint32_t head_dim, uint32_t num_positions, float scale,
                   float *scores) {
    float best = -FLT_MAX;
    for (uint32_t p = 0; p < num_positions; p++) {
        const float *k = keys + p * stride;
        __m512 acc = _mm512_setzero_ps();
        for (uint32_t d = 0; d < head_dim; d += 16)
            acc = _mm512_add_ps(acc, _mm512_mul_ps(_mm512_loadu_ps(q + d), _mm512_loadu_ps(k + d)));
        scores[p] = tree16(acc) * scale;
        if (scores[p] > best) best = scores[p];
    }
    return best;
}

/* scores become e^(score - best); returns their sum. */
INLINE float soften(float *scores, uint32_t num_positions, float best) {
    __m512 sum = _mm512_setzero_ps(), shift = _mm512_set1_ps(best);
    for (uint32_t p = 0; p < num_positions; p += 16) {
        uint32_t left = num_positions - p;
        __mmask16 keep = left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
        __m512 e = exp16(_mm512_sub_ps(_mm512_maskz_loadu_ps(keep, scores + p), shift));
        _mm512_mask_storeu_ps(scores + p, keep, e);
        sum = _mm512_mask_add_ps(sum, keep, sum, e);
    }
    return tree16(sum);
}

TARGET void ob_attend_f32_avx512(const float *q, const float *keys, const float *values, size_t stride, uint32_t head_dim,
                                 uint32_t num_positions, float scale, float *scores, float *out) {
    if (head_dim % 16) {
        ob_attend_f32_ref(q, keys, values, stride, head_dim, num_positions, scale, scores, out);
        return;
    }
    float best = score(q, keys, stride, head_dim, num_positions, scale, scores);
    __m512 inverse = _mm512_set1_ps(1.0f / soften(scores, num_positions, best));
    uint32_t d = 0;
    for (; d + 64 <= head_dim; d += 64) { /* four registers of outputs: independent chains of additions */
        const float *v = values + d;
        __m512 a0 = _mm512_setzero_ps(), a1 = a0, a2 = a0, a3 = a0;
        for (uint32_t p = 0; p < num_positions; p++, v += stride) {
            __m512 s = _mm512_set1_ps(scores[p]);
            a0 = _mm512_add_ps(a0, _mm512_mul_ps(s, _mm512_loadu_ps(v)));
            a1 = _mm512_add_ps(a1, _mm512_mul_ps(s, _mm512_loadu_ps(v + 16)));
            a2 = _mm512_add_ps(a2, _mm512_mul_ps(s, _mm512_loadu_ps(v + 32)));
            a3 = _mm512_add_ps(a3, _mm512_mul_ps(s, _mm512_loadu_ps(v + 48)));
        }
        _mm512_storeu_ps(out + d, _mm512_mul_ps(a0, inverse));
        _mm512_storeu_ps(out + d + 16, _mm512_mul_ps(a1, inverse));
        _mm512_storeu_ps(out + d + 32, _mm512_mul_ps(a2, inverse));
        _mm512_storeu_ps(out + d + 48, _mm512_mul_ps(a3, inverse));
    }
    for (; d < head_dim; d += 16) {
        __m512 acc = _mm512_setzero_ps();
        for (uint32_t p = 0; p < num_positions; p++)
            acc = _mm512_add_ps(acc, _mm512_mul_ps(_mm512_set1_ps(scores[p]), _mm512_loadu_ps(values + p * stride + d)));
        _mm512_storeu_ps(out + d, _mm512_mul_ps(acc, inverse));
    }
}
#endif
