/* Linear layers in the tiled layouts, int8 inputs, AVX-512 VNNI.
 *
 * A tile is one 64-byte load: 32-bit lane r is row r of the block, and plane j of its four bytes meets the four input
 * codes 4j..4j+3, broadcast to all lanes. Weights are stored as unsigned digits (ternary: code + 1, binary: bit), so a
 * dot product of digits is corrected at the end by the sum of the input codes (ternary: dot - sum, binary: 2 dot - sum).
 * One token: planes stay where they are in the byte and have an accumulator each, shifted down once at the end (exact:
 * every term of the accumulator of plane j is a multiple of its weight). More tokens: planes are shifted down, and every
 * plane is used for up to 16 tokens while it is in a register. */
#include "ob_kernels.h"

#ifdef OB_X86
#include <immintrin.h>

#define TARGET OB_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,f16c")
#define INLINE TARGET OB_INLINE
#define UNROLL _Pragma("GCC unroll 16")

enum { MAX_TOKENS = 16 };

INLINE __m512i broadcast4(const int8_t *x) {
    int32_t word;
    memcpy(&word, x, 4);
    return _mm512_set1_epi32(word);
}

/* floor(byte * 3 / 256), the leading base-3 digit: 0, 1 or 2 (256 / 3 and 512 / 3 lie above 85 and 170). */
INLINE __m512i leading_digit(__m512i bytes) {
    const __m512i one = _mm512_set1_epi8(1);
    __m512i above_85 = _mm512_min_epu8(_mm512_subs_epu8(bytes, _mm512_set1_epi8(85)), one);
    __m512i above_170 = _mm512_min_epu8(_mm512_subs_epu8(bytes, _mm512_set1_epi8((char)170)), one);
    return _mm512_add_epi8(above_85, above_170);
}

/* Digits of plane j as bytes; `rest` carries the base-3 remainder from plane to plane. */
INLINE __m512i plane_digits(uint32_t layout, __m512i bytes, int j, __m512i *rest) {
    if (layout == OB_LAYOUT_TERNARY_T16) return _mm512_and_si512(_mm512_srli_epi16(bytes, (unsigned)(2 * j)), _mm512_set1_epi8(3));
    if (layout == OB_LAYOUT_BINARY_T16) return _mm512_and_si512(_mm512_srli_epi16(bytes, (unsigned)j), _mm512_set1_epi8(1));
    __m512i now = j ? *rest : bytes, digits = leading_digit(now);
    *rest = _mm512_add_epi8(_mm512_add_epi8(now, now), now);
    return digits;
}

INLINE int num_planes(uint32_t layout) {
    return layout == OB_LAYOUT_TERNARY_T16 ? 4 : layout == OB_LAYOUT_BINARY_T16 ? 8 : 5;
}

/* acc[t] = sum over `tiles` tiles of digit * code, for `tokens` (a constant) tokens. */
INLINE void dot_tiles(uint32_t layout, const uint8_t *data, uint32_t tiles, const int8_t *x, size_t x_stride, int tokens,
                      __m512i *acc) {
    const int planes = num_planes(layout);
    for (int t = 0; t < tokens; t++) acc[t] = _mm512_setzero_si512();
    for (uint32_t i = 0; i < tiles; i++, data += OB_TILE_BYTES, x += 4 * planes) {
        __m512i bytes = _mm512_loadu_si512(data), rest = bytes;
        UNROLL for (int j = 0; j < planes; j++) {
            __m512i digits = plane_digits(layout, bytes, j, &rest);
            UNROLL for (int t = 0; t < tokens; t++)
                acc[t] = _mm512_dpbusd_epi32(acc[t], digits, broadcast4(x + (size_t)t * x_stride + 4 * j));
        }
    }
}

/* One token, power-of-two planes: no shifts inside the loop. */
INLINE __m512i dot_tiles_in_place(uint32_t layout, const uint8_t *data, uint32_t tiles, const int8_t *x) {
    const int planes = num_planes(layout), bits = 8 / planes;
    __m512i acc[8];
    UNROLL for (int j = 0; j < planes; j++) acc[j] = _mm512_setzero_si512();
    for (uint32_t i = 0; i < tiles; i++, data += OB_TILE_BYTES, x += 4 * planes) {
        __m512i bytes = _mm512_loadu_si512(data);
        UNROLL for (int j = 0; j < planes; j++) {
            __m512i mask = _mm512_set1_epi8((char)(((1 << bits) - 1) << bits * j));
            acc[j] = _mm512_dpbusd_epi32(acc[j], _mm512_and_si512(bytes, mask), broadcast4(x + 4 * j));
        }
    }
    __m512i sum = acc[0];
    UNROLL for (int j = 1; j < planes; j++) sum = _mm512_add_epi32(sum, _mm512_srai_epi32(acc[j], (unsigned)(bits * j)));
    return sum;
}

/* Base 3 without digits: with v0 the byte and v(i+1) = 3 v(i) mod 256, digit i is (3 v(i) - v(i+1)) / 256. So the dot
 * product is (3 A - B) / 256 with A = sum v(i) x, B = sum v(i+1) x. 3 A stays below 2^31 for 1024 tiles of one lane:
 * 3 * 255 * 128 * 20 * 1024 = 2.0e9. */
INLINE __m512i dot_tiles_base3(const uint8_t *data, uint32_t tiles, const int8_t *x) {
    __m512i sum = _mm512_setzero_si512();
    while (tiles) {
        uint32_t part = tiles < 1024 ? tiles : 1024;
        __m512i a = _mm512_setzero_si512(), b = a, a1 = a, b1 = a;
        for (uint32_t i = 0; i < part; i++, data += OB_TILE_BYTES, x += 20) {
            __m512i v = _mm512_loadu_si512(data);
            UNROLL for (int j = 0; j < 5; j++) {
                __m512i word = broadcast4(x + 4 * j), next = _mm512_add_epi8(_mm512_add_epi8(v, v), v);
                if (j & 1) {
                    a1 = _mm512_dpbusd_epi32(a1, v, word);
                    b1 = _mm512_dpbusd_epi32(b1, next, word);
                } else {
                    a = _mm512_dpbusd_epi32(a, v, word);
                    b = _mm512_dpbusd_epi32(b, next, word);
                }
                v = next;
            }
        }
        a = _mm512_add_epi32(a, a1);
        b = _mm512_add_epi32(b, b1);
        __m512i exact = _mm512_sub_epi32(_mm512_add_epi32(_mm512_add_epi32(a, a), a), b);
        sum = _mm512_add_epi32(sum, _mm512_srai_epi32(exact, 8));
        tiles -= part;
    }
    return sum;
}

INLINE void dot_block(uint32_t layout, const uint8_t *data, uint32_t tiles, const int8_t *x, size_t x_stride, int tokens,
                      __m512i *acc) {
    if (tokens > 1)
        dot_tiles(layout, data, tiles, x, x_stride, tokens, acc);
    else if (layout == OB_LAYOUT_TERNARY5_T16)
        acc[0] = dot_tiles_base3(data, tiles, x);
    else
        acc[0] = dot_tiles_in_place(layout, data, tiles, x);
}

/* The codes' dot product from the digits' and the sum of the inputs, as floats. */
INLINE __m512 corrected(uint32_t layout, __m512i dot, int32_t input_sum) {
    if (layout == OB_LAYOUT_BINARY_T16) dot = _mm512_add_epi32(dot, dot);
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(dot, _mm512_set1_epi32(input_sum)));
}

INLINE void store_rows(const ob_weights *w, uint32_t row, __m512 value, float *y) {
    uint32_t left = w->rows - row;
    __mmask16 keep = left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
    if (w->bias) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(keep, w->bias + row));
    _mm512_mask_storeu_ps(y + row, keep, value);
}

/* One block of 16 rows for `tokens` tokens from `first` on. */
INLINE void block_tokens(uint32_t layout, const ob_weights *w, const ob_inputs *in, uint32_t row, uint32_t first,
                         int tokens, float *y, size_t y_stride) {
    const uint8_t *data = w->data + (uint64_t)(row / OB_BLOCK_ROWS) * w->tiles_block * OB_TILE_BYTES;
    const int8_t *x = in->codes_TK + first * in->codes_stride;
    const int32_t *sums = in->sums_TG + (size_t)first * w->num_groups;
    __m512i acc[MAX_TOKENS];
    if (w->granularity != OB_GRANULARITY_GROUP) {
        dot_block(layout, data, w->tiles_block, x, in->codes_stride, tokens, acc);
        const float *scale = w->scale; /* float32 [1], or [O] padded to whole blocks */
        __m512 scales = w->granularity == OB_GRANULARITY_ROW ? _mm512_loadu_ps(scale + row) : _mm512_set1_ps(*scale);
        for (int t = 0; t < tokens; t++) {
            __m512 factor = _mm512_mul_ps(scales, _mm512_set1_ps(in->scale_T[first + t]));
            store_rows(w, row, _mm512_mul_ps(corrected(layout, acc[t], sums[t]), factor), y + (first + t) * y_stride);
        }
        return;
    }
    const uint8_t *scales = (const uint8_t *)w->scale + (uint64_t)(row / OB_BLOCK_ROWS) * w->num_groups * 32;
    __m512 total[MAX_TOKENS];
    for (int t = 0; t < tokens; t++) total[t] = _mm512_setzero_ps();
    for (uint32_t g = 0; g < w->num_groups; g++) {
        uint32_t tiles = w->tiles_block - g * w->tiles_group;
        if (tiles > w->tiles_group) tiles = w->tiles_group;
        dot_block(layout, data, tiles, x, in->codes_stride, tokens, acc);
        __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(scales + 32 * g)));
        for (int t = 0; t < tokens; t++) {
            __m512 part = _mm512_mul_ps(corrected(layout, acc[t], sums[(size_t)t * w->num_groups + g]), scale);
            total[t] = _mm512_add_ps(total[t], part);
        }
        data += (size_t)tiles * OB_TILE_BYTES;
        x += (size_t)tiles * w->tile;
    }
    for (int t = 0; t < tokens; t++)
        store_rows(w, row, _mm512_mul_ps(total[t], _mm512_set1_ps(in->scale_T[first + t])), y + (first + t) * y_stride);
}

INLINE void linear(uint32_t layout, const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end, float *y,
                   size_t y_stride) {
    for (uint32_t row = row_begin; row < row_end; row += OB_BLOCK_ROWS) {
        uint32_t t = 0, n = in->num_tokens;
        for (; t + 16 <= n; t += 16) block_tokens(layout, w, in, row, t, 16, y, y_stride);
        for (; t + 4 <= n; t += 4) block_tokens(layout, w, in, row, t, 4, y, y_stride);
        for (; t < n; t++) block_tokens(layout, w, in, row, t, 1, y, y_stride);
    }
}

TARGET static void linear_ternary_t16_i8_avx512(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end,
                                            float *y_TO, size_t y_stride, uint8_t *work) {
    (void)work;
    linear(OB_LAYOUT_TERNARY_T16, w, in, row_begin, row_end, y_TO, y_stride);
}

TARGET static void linear_binary_t16_i8_avx512(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end,
                                           float *y_TO, size_t y_stride, uint8_t *work) {
    (void)work;
    linear(OB_LAYOUT_BINARY_T16, w, in, row_begin, row_end, y_TO, y_stride);
}

TARGET static void linear_ternary5_t16_i8_avx512(const ob_weights *w, const ob_inputs *in, uint32_t row_begin,
                                             uint32_t row_end, float *y_TO, size_t y_stride, uint8_t *work) {
    (void)work;
    linear(OB_LAYOUT_TERNARY5_T16, w, in, row_begin, row_end, y_TO, y_stride);
}

void ob_enter_linear_t16_avx512(ob_kernels *k) {
    ob_enter_i8(k, OB_LAYOUT_BINARY_T16, linear_binary_t16_i8_avx512, OB_ISA_AVX512);
    ob_enter_i8(k, OB_LAYOUT_TERNARY_T16, linear_ternary_t16_i8_avx512, OB_ISA_AVX512);
    ob_enter_i8(k, OB_LAYOUT_TERNARY5_T16, linear_ternary5_t16_i8_avx512, OB_ISA_AVX512);
}
#endif
