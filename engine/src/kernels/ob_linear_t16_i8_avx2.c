/* Linear layers in the tiled layouts, int8 inputs, AVX2: the tile's 16 lanes as two halves of 8 rows.
 * maddubs gives int16 pairs: a digit of 3 (invalid, but a file may hold it) times two inputs of 127 makes 762, four
 * planes of one tile 3048, a run of 10 tiles 30480, which int16 still holds; then the run is widened to int32. */
#include "ob_kernels.h"

#ifdef OB_X86
#include <immintrin.h>

#define TARGET OB_TARGET("avx2,f16c")
#define INLINE TARGET OB_INLINE
#define UNROLL _Pragma("GCC unroll 8")

enum { MAX_TOKENS = 4, RUN_TILES = 10 };

INLINE __m256i broadcast4(const int8_t *x) {
    int32_t word;
    memcpy(&word, x, 4);
    return _mm256_set1_epi32(word);
}

INLINE __m256i leading_digit(__m256i bytes) {
    const __m256i one = _mm256_set1_epi8(1);
    __m256i above_85 = _mm256_min_epu8(_mm256_subs_epu8(bytes, _mm256_set1_epi8(85)), one);
    __m256i above_170 = _mm256_min_epu8(_mm256_subs_epu8(bytes, _mm256_set1_epi8((char)170)), one);
    return _mm256_add_epi8(above_85, above_170);
}

INLINE __m256i plane_digits(uint32_t layout, __m256i bytes, int j, __m256i *rest) {
    if (layout == OB_LAYOUT_TERNARY_T16) return _mm256_and_si256(_mm256_srli_epi16(bytes, 2 * j), _mm256_set1_epi8(3));
    if (layout == OB_LAYOUT_BINARY_T16) return _mm256_and_si256(_mm256_srli_epi16(bytes, j), _mm256_set1_epi8(1));
    __m256i now = j ? *rest : bytes, digits = leading_digit(now);
    *rest = _mm256_add_epi8(_mm256_add_epi8(now, now), now);
    return digits;
}

INLINE int num_planes(uint32_t layout) {
    return layout == OB_LAYOUT_TERNARY_T16 ? 4 : layout == OB_LAYOUT_BINARY_T16 ? 8 : 5;
}

/* acc[t] = digits . codes for 8 rows: `data` points at this half's 32 bytes of the first tile. */
INLINE void dot_tiles(uint32_t layout, const uint8_t *data, uint32_t tiles, const int8_t *x, size_t x_stride, int tokens,
                      __m256i *acc) {
    const int planes = num_planes(layout);
    const __m256i ones = _mm256_set1_epi16(1);
    for (int t = 0; t < tokens; t++) acc[t] = _mm256_setzero_si256();
    while (tiles) {
        uint32_t run = tiles < RUN_TILES ? tiles : RUN_TILES;
        __m256i short_acc[MAX_TOKENS];
        for (int t = 0; t < tokens; t++) short_acc[t] = _mm256_setzero_si256();
        for (uint32_t i = 0; i < run; i++, data += OB_TILE_BYTES, x += 4 * planes) {
            __m256i bytes = _mm256_loadu_si256((const __m256i *)data), rest = bytes;
            UNROLL for (int j = 0; j < planes; j++) {
                __m256i digits = plane_digits(layout, bytes, j, &rest);
                UNROLL for (int t = 0; t < tokens; t++) {
                    __m256i pairs = _mm256_maddubs_epi16(digits, broadcast4(x + (size_t)t * x_stride + 4 * j));
                    short_acc[t] = _mm256_add_epi16(short_acc[t], pairs);
                }
            }
        }
        for (int t = 0; t < tokens; t++) acc[t] = _mm256_add_epi32(acc[t], _mm256_madd_epi16(short_acc[t], ones));
        tiles -= run;
    }
}

INLINE __m256 corrected(uint32_t layout, __m256i dot, int32_t input_sum) {
    if (layout == OB_LAYOUT_BINARY_T16) dot = _mm256_add_epi32(dot, dot);
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(dot, _mm256_set1_epi32(input_sum)));
}

/* y[row .. row + 8), bias added, nothing beyond the last row. */
INLINE void store_rows(const ob_weights *w, uint32_t row, __m256 value, float *y) {
    float out[8];
    _mm256_storeu_ps(out, value);
    for (uint32_t r = 0; r < 8 && row + r < w->rows; r++) y[row + r] = w->bias ? out[r] + w->bias[row + r] : out[r];
}

/* Eight rows from `row` (a multiple of 8) for `tokens` tokens from `first` on. */
INLINE void half_tokens(uint32_t layout, const ob_weights *w, const ob_inputs *in, uint32_t row, uint32_t first, int tokens,
                        float *y, size_t y_stride) {
    uint32_t half = row % OB_BLOCK_ROWS / 8, block = row / OB_BLOCK_ROWS;
    const uint8_t *data = w->data + (uint64_t)block * w->tiles_block * OB_TILE_BYTES + 32 * half;
    const int8_t *x = in->codes_TK + first * in->codes_stride;
    const int32_t *sums = in->sums_TG + (size_t)first * w->num_groups;
    __m256i acc[MAX_TOKENS];
    if (w->granularity != OB_GRANULARITY_GROUP) {
        dot_tiles(layout, data, w->tiles_block, x, in->codes_stride, tokens, acc);
        const float *scale = w->scale;
        __m256 scales = w->granularity == OB_GRANULARITY_ROW ? _mm256_loadu_ps(scale + row) : _mm256_set1_ps(*scale);
        for (int t = 0; t < tokens; t++) {
            __m256 factor = _mm256_mul_ps(scales, _mm256_set1_ps(in->scale_T[first + t]));
            store_rows(w, row, _mm256_mul_ps(corrected(layout, acc[t], sums[t]), factor), y + (first + t) * y_stride);
        }
        return;
    }
    const uint8_t *scales = (const uint8_t *)w->scale + (uint64_t)block * w->num_groups * 32 + 16 * half;
    __m256 total[MAX_TOKENS];
    for (int t = 0; t < tokens; t++) total[t] = _mm256_setzero_ps();
    for (uint32_t g = 0; g < w->num_groups; g++) {
        uint32_t tiles = w->tiles_block - g * w->tiles_group;
        if (tiles > w->tiles_group) tiles = w->tiles_group;
        dot_tiles(layout, data, tiles, x, in->codes_stride, tokens, acc);
        __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(scales + 32 * g)));
        for (int t = 0; t < tokens; t++) {
            __m256 part = _mm256_mul_ps(corrected(layout, acc[t], sums[(size_t)t * w->num_groups + g]), scale);
            total[t] = _mm256_add_ps(total[t], part);
        }
        data += (size_t)tiles * OB_TILE_BYTES;
        x += (size_t)tiles * w->tile;
    }
    for (int t = 0; t < tokens; t++)
        store_rows(w, row, _mm256_mul_ps(total[t], _mm256_set1_ps(in->scale_T[first + t])), y + (first + t) * y_stride);
}

INLINE void linear(uint32_t layout, const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end, float *y,
                   size_t y_stride) {
    for (uint32_t row = row_begin; row < row_end; row += 8) {
        uint32_t t = 0, n = in->num_tokens;
        for (; t + 4 <= n; t += 4) half_tokens(layout, w, in, row, t, 4, y, y_stride);
        for (; t < n; t++) half_tokens(layout, w, in, row, t, 1, y, y_stride);
    }
}

TARGET static void linear_ternary_t16_i8_avx2(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end,
                                          float *y_TO, size_t y_stride, uint8_t *work) {
    (void)work;
    linear(OB_LAYOUT_TERNARY_T16, w, in, row_begin, row_end, y_TO, y_stride);
}

TARGET static void linear_binary_t16_i8_avx2(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end,
                                         float *y_TO, size_t y_stride, uint8_t *work) {
    (void)work;
    linear(OB_LAYOUT_BINARY_T16, w, in, row_begin, row_end, y_TO, y_stride);
}

TARGET static void linear_ternary5_t16_i8_avx2(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end,
                                           float *y_TO, size_t y_stride, uint8_t *work) {
    (void)work;
    linear(OB_LAYOUT_TERNARY5_T16, w, in, row_begin, row_end, y_TO, y_stride);
}

void ob_enter_linear_t16_avx2(ob_kernels *k) {
    ob_enter_i8(k, OB_LAYOUT_BINARY_T16, linear_binary_t16_i8_avx2, OB_ISA_AVX2);
    ob_enter_i8(k, OB_LAYOUT_TERNARY_T16, linear_ternary_t16_i8_avx2, OB_ISA_AVX2);
    ob_enter_i8(k, OB_LAYOUT_TERNARY5_T16, linear_ternary5_t16_i8_avx2, OB_ISA_AVX2);
}
#endif
