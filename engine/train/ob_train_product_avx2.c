/* A panel of digits against tiles of tokens, AVX2: maddubs into int16 sums, as ob_linear_t16_i8_x86.h has it. */
#include "ob_train_product.h"

#include "../src/ob_platform.h"

#if defined(OB_X86) && defined(__GNUC__)
#include <immintrin.h>

#define INLINE OB_TARGET("avx2") OB_INLINE

/* TILE x 2 sums fill the registers beside two vectors of digits and a broadcast. A digit is at most 2 and a code at least
 * -128, so that a step adds at most 512 to an int16: 64 steps fit. */
enum { TILE = 6, VECTORS = 2, LANES = 8, RUN = 64 };

/* sum + maddubs(digits, codes). As assembly: from intrinsics GCC 12 makes all products first, and sums in memory. */
INLINE __m256i add_products(__m256i sum, __m256i digits, __m256i codes) {
    __m256i products;
    __asm__("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(sum), "=&x"(products) : "x"(digits), "x"(codes));
    return sum;
}

/* tokens is a constant where this is inlined. */
INLINE void tile(const int8_t *x_TI, const int32_t *sums_T, uint32_t tokens, uint32_t steps, const uint8_t *panel,
                 __m256i total[TILE][VECTORS]) {
    const __m256i ones = _mm256_set1_epi16(1);
    const size_t cols = (size_t)steps * OB_TRAIN_STEP;
    OB_UNROLL for (uint32_t t = 0; t < tokens; t++)
        OB_UNROLL for (int v = 0; v < VECTORS; v++) total[t][v] = _mm256_set1_epi32(-sums_T[t]); /* digits are codes + 1 */
    for (uint32_t begin = 0; begin < steps; begin += RUN) {
        const uint32_t end = begin + RUN < steps ? begin + RUN : steps;
        __m256i sum[TILE][VECTORS];
        OB_UNROLL for (uint32_t t = 0; t < tokens; t++)
            OB_UNROLL for (int v = 0; v < VECTORS; v++) sum[t][v] = _mm256_setzero_si256();
        for (uint32_t step = begin; step < end; step++) {
            const __m256i *digits = (const __m256i *)(const void *)(panel + (size_t)step * 64);
            const __m256i digits0 = _mm256_loadu_si256(digits), digits1 = _mm256_loadu_si256(digits + 1);
            OB_UNROLL for (uint32_t t = 0; t < tokens; t++) {
                int32_t four;
                memcpy(&four, x_TI + t * cols + (size_t)step * OB_TRAIN_STEP, 4);
                const __m256i codes = _mm256_set1_epi32(four);
                sum[t][0] = add_products(sum[t][0], digits0, codes);
                sum[t][1] = add_products(sum[t][1], digits1, codes);
            }
        }
        OB_UNROLL for (uint32_t t = 0; t < tokens; t++)
            OB_UNROLL for (int v = 0; v < VECTORS; v++)
                total[t][v] = _mm256_add_epi32(total[t][v], _mm256_madd_epi16(sum[t][v], ones));
    }
}

INLINE void store(__m256i total[TILE][VECTORS], uint32_t tokens, uint32_t rows, float *y_TO, uint32_t stride) {
    for (uint32_t t = 0; t < tokens; t++) {
        float *y = y_TO + (size_t)t * stride, last[OB_TRAIN_PANEL_ROWS];
        float *to = rows == OB_TRAIN_PANEL_ROWS ? y : last;
        for (int v = 0; v < VECTORS; v++) _mm256_storeu_ps(to + v * LANES, _mm256_cvtepi32_ps(total[t][v]));
        if (to == last) memcpy(y, last, rows * sizeof *y);
    }
}

OB_TARGET("avx2")
void ob_train_product_avx2(const int8_t *x_TI, const int32_t *sums_T, uint32_t tokens, uint32_t steps, const uint8_t *panel,
                           uint32_t rows, float *y_TO, uint32_t stride) {
    const size_t cols = (size_t)steps * OB_TRAIN_STEP;
    __m256i total[TILE][VECTORS];
    for (uint32_t t = 0, count; t < tokens; t += count) {
        const int8_t *x = x_TI + t * cols;
        float *y = y_TO + (size_t)t * stride;
        count = tokens - t < TILE ? tokens - t : TILE;
        switch (count) {
        case 1: tile(x, sums_T + t, 1, steps, panel, total); break;
        case 2: tile(x, sums_T + t, 2, steps, panel, total); break;
        case 3: tile(x, sums_T + t, 3, steps, panel, total); break;
        case 4: tile(x, sums_T + t, 4, steps, panel, total); break;
        case 5: tile(x, sums_T + t, 5, steps, panel, total); break;
        default: tile(x, sums_T + t, TILE, steps, panel, total); break;
        }
        store(total, count, rows, y, stride);
    }
}
#endif
