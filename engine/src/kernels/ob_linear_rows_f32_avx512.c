/* Linear layers of float32, float16 and int8 rows with float inputs (embedding-sized heads), AVX-512.
 * One 512-bit register is the 16 lanes of the fixed order; four rows at a time hide the latency of the additions. */
#include "../ob_math.h"
#include "ob_kernels.h"

#ifdef OB_X86
#include <immintrin.h>

#define TARGET OB_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx2,f16c")
#define INLINE TARGET OB_INLINE
#define UNROLL _Pragma("GCC unroll 4")

enum { ROWS = 4, MAX_TOKENS = 4 };

/* 16 weights from input k on, as floats. */
INLINE __m512 load16(uint32_t layout, const uint8_t *row, size_t k) {
    if (layout == OB_LAYOUT_FLOAT32) return _mm512_loadu_ps((const float *)(const void *)row + k);
    if (layout == OB_LAYOUT_FLOAT16) return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(row + 2 * k)));
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(row + k))));
}

/* The last `count` < 16 inputs: rows are padded to 64 bytes, so the load is inside; lanes beyond count become zero. */
INLINE __m512 load_tail(uint32_t layout, const uint8_t *row, size_t k, uint32_t count) {
    return _mm512_maskz_mov_ps((__mmask16)((1u << count) - 1), load16(layout, row, k));
}

INLINE float tree16(__m512 lanes) {
    __m256 a = _mm256_add_ps(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps(lanes, 1));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b)); /* 0+2, 1+3 */
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}

/* rows and tokens are constants after inlining. */
INLINE void block(uint32_t layout, const ob_weights *w, const ob_inputs *in, uint32_t row, int rows, uint32_t first,
                  int tokens, float *y, size_t y_stride) {
    const uint8_t *data = w->data + row * w->row_stride;
    const float *x = in->x_TK + first * in->x_stride;
    __m512 acc[ROWS][MAX_TOKENS];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int t = 0; t < tokens; t++) acc[r][t] = _mm512_setzero_ps();
    uint32_t whole = w->cols & ~15u, tail = w->cols & 15u;
    for (uint32_t k = 0; k < whole; k += 16) {
        __m512 inputs[MAX_TOKENS];
        UNROLL for (int t = 0; t < tokens; t++) inputs[t] = _mm512_loadu_ps(x + t * in->x_stride + k);
        UNROLL for (int r = 0; r < rows; r++) {
            __m512 weights = load16(layout, data + r * w->row_stride, k);
            UNROLL for (int t = 0; t < tokens; t++)
                acc[r][t] = _mm512_add_ps(acc[r][t], _mm512_mul_ps(weights, inputs[t]));
        }
    }
    if (tail) {
        UNROLL for (int r = 0; r < rows; r++) {
            __m512 weights = load_tail(layout, data + r * w->row_stride, whole, tail);
            UNROLL for (int t = 0; t < tokens; t++) {
                __m512 inputs = _mm512_loadu_ps(x + t * in->x_stride + whole);
                acc[r][t] = _mm512_add_ps(acc[r][t], _mm512_mul_ps(weights, inputs));
            }
        }
    }
    for (int r = 0; r < rows; r++) {
        float scale = ob_scale_at(w, row + r, 0);
        for (int t = 0; t < tokens; t++) {
            float value = tree16(acc[r][t]) * (scale * in->scale_T[first + t]);
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
        for (; t + 4 <= n; t += 4) block(layout, w, in, row, ROWS, t, 4, y, y_stride);
        for (; t < n; t++) block(layout, w, in, row, ROWS, t, 1, y, y_stride);
    }
    for (; row < row_end; row++)
        for (uint32_t t = 0; t < n; t++) block(layout, w, in, row, 1, t, 1, y, y_stride);
}

TARGET static void linear_float32_f32_avx512(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end,
                                         float *y_TO, size_t y_stride, uint8_t *work) {
    (void)work;
    linear(OB_LAYOUT_FLOAT32, w, in, row_begin, row_end, y_TO, y_stride);
}

TARGET static void linear_float16_f32_avx512(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end,
                                         float *y_TO, size_t y_stride, uint8_t *work) {
    (void)work;
    linear(OB_LAYOUT_FLOAT16, w, in, row_begin, row_end, y_TO, y_stride);
}

TARGET static void linear_int8_f32_avx512(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end,
                                      float *y_TO, size_t y_stride, uint8_t *work) {
    (void)work;
    linear(OB_LAYOUT_INT8, w, in, row_begin, row_end, y_TO, y_stride);
}

void ob_enter_linear_rows_avx512(ob_kernels *k) {
    ob_enter_f32(k, OB_LAYOUT_FLOAT32, linear_float32_f32_avx512, OB_ISA_AVX512);
    ob_enter_f32(k, OB_LAYOUT_FLOAT16, linear_float16_f32_avx512, OB_ISA_AVX512);
    ob_enter_f32(k, OB_LAYOUT_INT8, linear_int8_f32_avx512, OB_ISA_AVX512);
}
#endif
