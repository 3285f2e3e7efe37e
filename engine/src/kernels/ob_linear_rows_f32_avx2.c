/* Linear layers of float32, float16 and int8 rows with float inputs, AVX2: the 16 lanes are two registers. */
#include "ob_kernels.h"

#ifdef OB_X86
#include <immintrin.h>

#define TARGET OB_TARGET("avx2,f16c")
#define INLINE TARGET OB_INLINE
#define UNROLL _Pragma("GCC unroll 4")

enum { ROWS = 2, MAX_TOKENS = 2 };

/* 8 weights from input k on, as floats. */
INLINE __m256 load8(uint32_t layout, const uint8_t *row, size_t k) {
    if (layout == OB_LAYOUT_FLOAT32) return _mm256_loadu_ps((const float *)(const void *)row + k);
    if (layout == OB_LAYOUT_FLOAT16) return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(row + 2 * k)));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(row + k))));
}

/* Lanes before `count` (which may be negative or above 8) kept, the others zero. */
INLINE __m256 keep(__m256 value, int count) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_and_ps(value, _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane)));
}

INLINE float tree16(__m256 low, __m256 high) {
    __m256 a = _mm256_add_ps(low, high);
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b)); /* 0+2, 1+3 */
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}

/* rows and tokens are constants after inlining. */
INLINE void block(uint32_t layout, const ob_weights *w, const ob_inputs *in, uint32_t row, int rows, uint32_t first,
                  int tokens, float *y, size_t y_stride) {
    const uint8_t *data = w->data + row * w->row_stride;
    const float *x = in->x_TK + first * in->x_stride;
    __m256 low[ROWS][MAX_TOKENS], high[ROWS][MAX_TOKENS];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int t = 0; t < tokens; t++) low[r][t] = high[r][t] = _mm256_setzero_ps();
    uint32_t whole = w->cols & ~15u;
    int tail = (int)(w->cols & 15u);
    for (uint32_t k = 0; k < whole; k += 16)
        UNROLL for (int r = 0; r < rows; r++) {
            const uint8_t *weights = data + r * w->row_stride;
            __m256 first8 = load8(layout, weights, k), next8 = load8(layout, weights, k + 8);
            UNROLL for (int t = 0; t < tokens; t++) {
                const float *inputs = x + t * in->x_stride + k;
                low[r][t] = _mm256_add_ps(low[r][t], _mm256_mul_ps(first8, _mm256_loadu_ps(inputs)));
                high[r][t] = _mm256_add_ps(high[r][t], _mm256_mul_ps(next8, _mm256_loadu_ps(inputs + 8)));
            }
        }
    if (tail) /* rows are padded to 64 bytes and inputs to 16 floats, so the loads stay inside */
        UNROLL for (int r = 0; r < rows; r++) {
            const uint8_t *weights = data + r * w->row_stride;
            __m256 first8 = keep(load8(layout, weights, whole), tail);
            __m256 next8 = keep(load8(layout, weights, whole + 8), tail - 8);
            UNROLL for (int t = 0; t < tokens; t++) {
                const float *inputs = x + t * in->x_stride + whole;
                low[r][t] = _mm256_add_ps(low[r][t], _mm256_mul_ps(first8, _mm256_loadu_ps(inputs)));
                high[r][t] = _mm256_add_ps(high[r][t], _mm256_mul_ps(next8, _mm256_loadu_ps(inputs + 8)));
            }
        }
    for (int r = 0; r < rows; r++) {
        float scale = ob_scale_at(w, row + r, 0);
        for (int t = 0; t < tokens; t++) {
            float value = tree16(low[r][t], high[r][t]) * (scale * in->scale_T[first + t]);
            y[(first + t) * y_stride + row + r] = w->bias ? value + w->bias[row + r] : value;
        }
    }
}

INLINE void linear(uint32_t layout, const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end, float *y,
                   size_t y_stride) {
    if (w->granularity == OB_GRANULARITY_GROUP) {
        ob_linear_any_f32_ref(w, in, row_begin, row_end, y, y_stride, NULL);
        return;
    }
    uint32_t row = row_begin, n = in->num_tokens;
    for (; row + ROWS <= row_end; row += ROWS) {
        uint32_t t = 0;
        for (; t + 2 <= n; t += 2) block(layout, w, in, row, ROWS, t, 2, y, y_stride);
        for (; t < n; t++) block(layout, w, in, row, ROWS, t, 1, y, y_stride);
    }
    for (; row < row_end; row++)
        for (uint32_t t = 0; t < n; t++) block(layout, w, in, row, 1, t, 1, y, y_stride);
}

TARGET static void linear_float32_f32_avx2(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end,
                                       float *y_TO, size_t y_stride, uint8_t *work) {
    (void)work;
    linear(OB_LAYOUT_FLOAT32, w, in, row_begin, row_end, y_TO, y_stride);
}

TARGET static void linear_float16_f32_avx2(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end,
                                       float *y_TO, size_t y_stride, uint8_t *work) {
    (void)work;
    linear(OB_LAYOUT_FLOAT16, w, in, row_begin, row_end, y_TO, y_stride);
}

TARGET static void linear_int8_f32_avx2(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end,
                                    float *y_TO, size_t y_stride, uint8_t *work) {
    (void)work;
    linear(OB_LAYOUT_INT8, w, in, row_begin, row_end, y_TO, y_stride);
}

void ob_enter_linear_rows_avx2(ob_kernels *k) {
    ob_enter_f32(k, OB_LAYOUT_FLOAT32, linear_float32_f32_avx2, OB_ISA_AVX2);
    ob_enter_f32(k, OB_LAYOUT_FLOAT16, linear_float16_f32_avx2, OB_ISA_AVX2);
    ob_enter_f32(k, OB_LAYOUT_INT8, linear_int8_f32_avx2, OB_ISA_AVX2);
}
#endif
