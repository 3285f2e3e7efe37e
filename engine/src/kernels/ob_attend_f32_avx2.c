/* Attention of one query head, AVX2: the reference's arithmetic, its 16 lanes in two registers. */
#include "../ob_math.h"
#include "ob_kernels.h"

#ifdef OB_X86
#include <immintrin.h>

#define TARGET OB_TARGET("avx2,f16c")
#define INLINE TARGET OB_INLINE

INLINE float tree16(__m256 low, __m256 high) {
    __m256 a = _mm256_add_ps(low, high);
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}

TARGET void ob_attend_f32_avx2(const float *q, const float *keys, const float *values, size_t stride, uint32_t head_dim,
                               uint32_t num_positions, float scale, float *scores, float *out) {
    if (head_dim % 16) {
        ob_attend_f32_ref(q, keys, values, stride, head_dim, num_positions, scale, scores, out);
        return;
    }
    float best = -FLT_MAX;
    for (uint32_t p = 0; p < num_positions; p++) {
        const float *k = keys + p * stride;
        __m256 low = _mm256_setzero_ps(), high = low;
        for (uint32_t d = 0; d < head_dim; d += 16) {
            low = _mm256_add_ps(low, _mm256_mul_ps(_mm256_loadu_ps(q + d), _mm256_loadu_ps(k + d)));
            high = _mm256_add_ps(high, _mm256_mul_ps(_mm256_loadu_ps(q + d + 8), _mm256_loadu_ps(k + d + 8)));
        }
        scores[p] = tree16(low, high) * scale;
        if (scores[p] > best) best = scores[p];
    }
    float lanes[OB_LANES] = {0};
    for (uint32_t p = 0; p < num_positions; p++) {
        scores[p] = ob_exp(scores[p] - best);
        lanes[p % OB_LANES] += scores[p];
    }
    __m256 inverse = _mm256_set1_ps(1.0f / ob_tree16(lanes));
    for (uint32_t d = 0; d < head_dim; d += 16) {
        __m256 low = _mm256_setzero_ps(), high = low;
        for (uint32_t p = 0; p < num_positions; p++) {
            const float *v = values + p * stride + d;
            __m256 s = _mm256_set1_ps(scores[p]);
            low = _mm256_add_ps(low, _mm256_mul_ps(s, _mm256_loadu_ps(v)));
            high = _mm256_add_ps(high, _mm256_mul_ps(s, _mm256_loadu_ps(v + 8)));
        }
        _mm256_storeu_ps(out + d, _mm256_mul_ps(low, inverse));
        _mm256_storeu_ps(out + d + 8, _mm256_mul_ps(high, inverse));
    }
}
#endif
