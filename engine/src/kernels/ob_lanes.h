/* A register of floats, and the few operations on it that C's vectors lack, for the instruction set the including file
 * names (OB_SET_*). ob_rows_body.h and ob_attend_body.h are written on it once; they give the same bits for any width.
 * Comparisons follow the reference's `a > b ? x : y`: false for NaN. */
#ifndef OB_LANES_H
#define OB_LANES_H

#include "../ob_math.h"
#include "ob_kernels.h"

#if defined(OB_SET_AVX512)
#include <immintrin.h>
#define TARGET OB_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx2,f16c")
#define WIDTH 16
#elif defined(OB_SET_AVX2)
#include <immintrin.h>
#define TARGET OB_TARGET("avx2,f16c")
#define WIDTH 8
#elif defined(OB_SET_NEON)
#include <arm_neon.h>
#define TARGET
#define WIDTH 4
#elif defined(OB_SET_WASM)
#include <wasm_simd128.h>
#define TARGET
#define WIDTH 4
#endif

#define INLINE TARGET OB_INLINE
#define UNROLL OB_UNROLL

enum { W = WIDTH, PARTS = OB_LANES / W }; /* PARTS registers hold the 16 lanes of a sum */

typedef float vfloat __attribute__((vector_size(4 * WIDTH)));
typedef int32_t vint __attribute__((vector_size(4 * WIDTH)));
typedef float vfloat_anywhere __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

INLINE vfloat load(const float *x) { return *(const vfloat_anywhere *)(const void *)x; }
INLINE void store(float *x, vfloat v) { *(vfloat_anywhere *)(void *)x = v; }
INLINE vfloat all(float x) { return x - (vfloat){0}; }
INLINE vfloat size_of(vfloat x) { return (vfloat)((vint)x & 0x7fffffff); }

/* The first `count` < W floats, then zeros. */
INLINE vfloat load_first(const float *x, uint32_t count) {
    float part[W] = {0};
    for (uint32_t i = 0; i < count; i++) part[i] = x[i];
    return load(part);
}

INLINE float tree(const vfloat parts[PARTS]) {
    float lanes[OB_LANES];
    UNROLL for (int p = 0; p < PARTS; p++) store(lanes + p * W, parts[p]);
    return ob_tree16(lanes);
}

INLINE int32_t sum_lanes(vint v) {
    int32_t sum = 0;
    UNROLL for (int l = 0; l < W; l++) sum += v[l];
    return sum;
}

/* max: a > b ? a : b;  min: a < b ? a : b;  pick: a > b ? x : y;  rounded: nearest, ties to even, |v| < 2^22;
 * times_power: p * 2^n for whole n, rounded once;  codes: the low byte of each lane;  swapped: lane l is lane l ^ h, h a
 * power of two below W. */
#if defined(OB_SET_AVX512)

INLINE vfloat max(vfloat a, vfloat b) { return (vfloat)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE vfloat min(vfloat a, vfloat b) { return (vfloat)_mm512_min_ps((__m512)a, (__m512)b); }
INLINE vfloat pick(vfloat a, vfloat b, vfloat x, vfloat y) {
    return (vfloat)_mm512_mask_blend_ps(_mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ), (__m512)y, (__m512)x);
}
INLINE vint rounded(vfloat v) { return (vint)_mm512_cvtps_epi32((__m512)v); }
INLINE vfloat times_power(vfloat p, vfloat n) { return (vfloat)_mm512_scalef_ps((__m512)p, (__m512)n); }
INLINE vfloat swapped(vfloat v, int h) {
    __m512 x = (__m512)v;
    switch (h) {
    case 1: return (vfloat)_mm512_permute_ps(x, 0xb1);
    case 2: return (vfloat)_mm512_permute_ps(x, 0x4e);
    case 4: return (vfloat)_mm512_shuffle_f32x4(x, x, 0xb1);
    default: return (vfloat)_mm512_shuffle_f32x4(x, x, 0x4e);
    }
}
INLINE void store_codes(int8_t *to, vint codes) { _mm_storeu_si128((__m128i *)(void *)to, _mm512_cvtepi32_epi8((__m512i)codes)); }
INLINE vfloat load_codes(const uint8_t *from) {
    return (vfloat)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)from)));
}
INLINE vfloat load_half(const uint8_t *from) {
    return (vfloat)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)from));
}
INLINE void store_half(uint8_t *to, vfloat v) {
    _mm256_storeu_si256((__m256i *)(void *)to, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

#elif defined(OB_SET_AVX2)

INLINE vfloat max(vfloat a, vfloat b) { return (vfloat)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE vfloat min(vfloat a, vfloat b) { return (vfloat)_mm256_min_ps((__m256)a, (__m256)b); }
INLINE vfloat pick(vfloat a, vfloat b, vfloat x, vfloat y) {
    return (vfloat)_mm256_blendv_ps((__m256)y, (__m256)x, _mm256_cmp_ps((__m256)a, (__m256)b, _CMP_GT_OQ));
}
INLINE vint rounded(vfloat v) { return (vint)_mm256_cvtps_epi32((__m256)v); }
INLINE vfloat swapped(vfloat v, int h) {
    __m256 x = (__m256)v;
    switch (h) {
    case 1: return (vfloat)_mm256_permute_ps(x, 0xb1);
    case 2: return (vfloat)_mm256_permute_ps(x, 0x4e);
    default: return (vfloat)_mm256_permute2f128_ps(x, x, 1);
    }
}
INLINE void store_codes(int8_t *to, vint codes) {
    __m128i words = _mm_packs_epi32(_mm256_castsi256_si128((__m256i)codes), _mm256_extracti128_si256((__m256i)codes, 1));
    _mm_storel_epi64((__m128i *)(void *)to, _mm_packs_epi16(words, words));
}
INLINE vfloat load_codes(const uint8_t *from) {
    return (vfloat)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)from)));
}
INLINE vfloat load_half(const uint8_t *from) {
    return (vfloat)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)from));
}
INLINE void store_half(uint8_t *to, vfloat v) {
    _mm_storeu_si128((__m128i *)(void *)to, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
}

#elif defined(OB_SET_NEON)

INLINE vfloat pick(vfloat a, vfloat b, vfloat x, vfloat y) { return vbslq_f32(vcgtq_f32(a, b), x, y); }
INLINE vfloat max(vfloat a, vfloat b) { return pick(a, b, a, b); }
INLINE vfloat min(vfloat a, vfloat b) { return pick(b, a, a, b); }
INLINE vint rounded(vfloat v) { return (vint)vcvtnq_s32_f32(v); }
INLINE vfloat swapped(vfloat v, int h) { return h == 1 ? vrev64q_f32(v) : vextq_f32(v, v, 2); }
INLINE void store_codes(int8_t *to, vint codes) {
    int16x4_t words = vmovn_s32((int32x4_t)codes);
    int32x2_t bytes = vreinterpret_s32_s8(vmovn_s16(vcombine_s16(words, words)));
    int32_t word = vget_lane_s32(bytes, 0);
    memcpy(to, &word, 4);
}
INLINE vfloat load_codes(const uint8_t *from) {
    int32_t word;
    memcpy(&word, from, 4);
    return (vfloat)vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(word))))));
}
INLINE vfloat load_half(const uint8_t *from) { return (vfloat)vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(from))); }
INLINE void store_half(uint8_t *to, vfloat v) { vst1_u8(to, vreinterpret_u8_f16(vcvt_f16_f32(v))); }

#elif defined(OB_SET_WASM)

INLINE vfloat pick(vfloat a, vfloat b, vfloat x, vfloat y) {
    return (vfloat)wasm_v128_bitselect((v128_t)x, (v128_t)y, wasm_f32x4_gt((v128_t)a, (v128_t)b));
}
INLINE vfloat max(vfloat a, vfloat b) { return (vfloat)wasm_f32x4_pmax((v128_t)b, (v128_t)a); } /* b < a ? a : b */
INLINE vfloat min(vfloat a, vfloat b) { return (vfloat)wasm_f32x4_pmin((v128_t)b, (v128_t)a); }
INLINE vint rounded(vfloat v) { return (vint)(v + 12582912.0f) - 0x4b400000; }
INLINE vfloat swapped(vfloat v, int h) {
    v128_t x = (v128_t)v;
    return (vfloat)(h == 1 ? wasm_i32x4_shuffle(x, x, 1, 0, 3, 2) : wasm_i32x4_shuffle(x, x, 2, 3, 0, 1));
}
INLINE void store_codes(int8_t *to, vint codes) {
    v128_t words = wasm_i16x8_narrow_i32x4((v128_t)codes, (v128_t)codes);
    wasm_v128_store32_lane(to, wasm_i8x16_narrow_i16x8(words, words), 0);
}
INLINE vfloat load_codes(const uint8_t *from) {
    return (vfloat)wasm_f32x4_convert_i32x4(wasm_i32x4_extend_low_i16x8(wasm_i16x8_extend_low_i8x16(wasm_v128_load32_zero(from))));
}
/* The exponent moved by a product, which subnormal halves need as well; infinity and NaN get theirs back. */
INLINE vfloat load_half(const uint8_t *from) {
    vint half = (vint)wasm_i32x4_load16x4(from) << 13 & (int32_t)0x8fffe000; /* the sign is there already */
    vint value = (vint)((vfloat)half * 5.192296858534828e33f); /* 2^112 */
    vint endless = (vint)wasm_i32x4_gt((v128_t)(value & 0x7fffffff), wasm_i32x4_splat(0x477fffff)) & 0x7f800000; /* 65536 on */
    return (vfloat)(value | endless);
}
INLINE void store_half(uint8_t *to, vfloat v) {
    for (int l = 0; l < W; l++) {
        uint16_t half = ob_float_to_half(v[l]);
        memcpy(to + 2 * l, &half, 2);
    }
}

#endif

/* No lane is NaN. */
INLINE float largest_lane(vfloat v) {
#if defined(OB_SET_AVX512)
    return _mm512_reduce_max_ps((__m512)v);
#elif defined(OB_SET_NEON)
    return vmaxvq_f32(v);
#else
    float lanes[W];
    store(lanes, v);
    for (int width = W / 2; width; width /= 2)
        for (int l = 0; l < width; l++) lanes[l] = lanes[l] > lanes[l + width] ? lanes[l] : lanes[l + width];
    return lanes[0];
#endif
}

/* Four float16 as floats. */
INLINE void four_halves(const uint8_t *from, float *to) {
#if defined(OB_SET_AVX512) || defined(OB_SET_AVX2)
    _mm_storeu_ps(to, _mm_cvtph_ps(_mm_loadl_epi64((const __m128i *)(const void *)from)));
#else
    store(to, load_half(from));
#endif
}

#ifndef OB_SET_AVX512
INLINE vfloat times_power(vfloat p, vfloat n) {
    vint whole = rounded(n), half = (whole - (whole >> 31)) >> 1; /* in two steps, as ob_exp: 2^n can leave the range */
    return (p * (vfloat)((half + 127) << 23)) * (vfloat)((whole - half + 127) << 23);
}
#endif

/* ob_exp, ob_tanh, ob_silu and ob_gelu of each lane, the same bits. */
INLINE vfloat exp_lanes(vfloat x) {
    vfloat inside = min(max(x, all(-104.0f)), all(88.73f));
    vfloat n = (inside * 1.44269504f + 12582912.0f) - 12582912.0f;
    vfloat r = (inside - n * 0.693359375f) - n * -2.12194440e-4f;
    vfloat p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = (p * (r * r) + r) + 1.0f;
    vfloat value = pick(x, all(88.73f), all(ob_float_from_bits(0x7f800000u)), times_power(p, n));
    vfloat below = pick(all(-100.0f), x, all(0.0f), x); /* zero, or the NaN itself */
    return pick(x, all(-104.0f), value, below);
}

INLINE vfloat tanh_lanes(vfloat x) {
    vfloat size = size_of(x), z = x * x, p = all(-5.70498872745e-3f);
    p = p * z + 2.06390887954e-2f;
    p = p * z - 5.37397155531e-2f;
    p = p * z + 1.33314422036e-1f;
    p = p * z - 3.33332819422e-1f;
    vfloat t = 1.0f - 2.0f / (exp_lanes(2.0f * size) + 1.0f);
    return pick(all(0.625f), size, p * z * x + x, pick(all(0.0f), x, -t, t));
}

INLINE vfloat silu_lanes(vfloat x) { return x / (1.0f + exp_lanes(-x)); }

INLINE vfloat gelu_lanes(vfloat x) {
    return 0.5f * x * (1.0f + tanh_lanes(0.7978845608f * (x + 0.044715f * x * x * x)));
}

#endif
