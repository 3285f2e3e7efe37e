/* The functions of libm the core needs, as plain arithmetic: the same bits wherever floats are IEEE 754.
 * Float versions are within about 1 ulp (tests/test_kernels.c measures them against the double libm). No function here
 * has undefined behaviour on NaN or infinity: hostile weights can produce both. */
#ifndef OB_MATH_H
#define OB_MATH_H

#include "ob_platform.h"

#if defined(OB_X86)
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

OB_INLINE float ob_float_from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

OB_INLINE uint32_t ob_bits_from_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

OB_INLINE float ob_abs(float x) { return ob_float_from_bits(ob_bits_from_float(x) & 0x7fffffffu); }

OB_INLINE int ob_is_finite(float x) { return (ob_bits_from_float(x) & 0x7f800000u) != 0x7f800000u; }

/* Round half to even for |x| < 2^22: adding 1.5 * 2^23 leaves no room for a fraction. */
OB_INLINE float ob_rint(float x) { return (x + 12582912.0f) - 12582912.0f; }

/* Correctly rounded square root (every hardware instruction is). */
OB_INLINE float ob_sqrt(float x) {
#if defined(OB_X86)
    return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x)));
#elif defined(__aarch64__)
    return vget_lane_f32(vsqrt_f32(vdup_n_f32(x)), 0);
#elif defined(__wasm__)
    return __builtin_sqrtf(x);
#else
    if (!(x > 0.0f) || !ob_is_finite(x)) return x == 0.0f || x > 0.0f ? x : ob_float_from_bits(0x7fc00000u);
    int shift = 0;
    if (x < 1.17549435e-38f) x *= 16777216.0f, shift = 12; /* subnormal: scale by 2^24 */
    uint32_t bits = ob_bits_from_float(x);
    int exponent = (int)(bits >> 23) - 127;
    uint64_t mantissa = (bits & 0x7fffffu) | 0x800000u;
    if (exponent & 1) mantissa <<= 1, exponent--;
    mantissa <<= 25; /* 24 bits of root and one to round by */
    uint64_t root = 0;
    for (uint64_t bit = 1ull << 24; bit; bit >>= 1)
        if ((root | bit) * (root | bit) <= mantissa) root |= bit;
    /* root has 25 bits; a square root is never exactly half way */
    uint32_t rounded = (uint32_t)((root + 1) >> 1);
    return ob_float_from_bits(((uint32_t)(exponent / 2 - shift + 127) << 23) + (rounded - 0x800000u));
#endif
}

/* e^x. n = round(x / ln 2), then a polynomial on |r| <= 0.35 (coefficients: minimax, degree 6). */
OB_INLINE float ob_exp(float x) {
    if (!(x > -104.0f)) return x != x ? x : 0.0f;
    if (x > 88.73f) return ob_float_from_bits(0x7f800000u);
    float n = ob_rint(x * 1.44269504f);
    float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = (p * (r * r) + r) + 1.0f;
    int32_t whole = (int32_t)n, half = whole / 2; /* two steps: 2^whole alone can leave the float range */
    return (p * ob_float_from_bits((uint32_t)(half + 127) << 23)) *
           ob_float_from_bits((uint32_t)(whole - half + 127) << 23);
}

OB_INLINE float ob_tanh(float x) {
    float size = ob_abs(x);
    if (size < 0.625f) {
        float z = x * x, p = -5.70498872745e-3f;
        p = p * z + 2.06390887954e-2f;
        p = p * z - 5.37397155531e-2f;
        p = p * z + 1.33314422036e-1f;
        p = p * z - 3.33332819422e-1f;
        return p * z * x + x;
    }
    float t = 1.0f - 2.0f / (ob_exp(2.0f * size) + 1.0f);
    return x < 0.0f ? -t : t;
}

OB_INLINE float ob_silu(float x) { return x / (1.0f + ob_exp(-x)); }

/* tanh approximation of GELU */
OB_INLINE float ob_gelu(float x) {
    return 0.5f * x * (1.0f + ob_tanh(0.7978845608f * (x + 0.044715f * x * x * x)));
}

OB_INLINE float ob_half_to_float(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16, exponent = half >> 10 & 31, mantissa = half & 0x3ffu;
    if (exponent == 31) return ob_float_from_bits(sign | 0x7f800000u | mantissa << 13 | (mantissa ? 0x400000u : 0));
    if (exponent) return ob_float_from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
    float size = (float)mantissa * 5.9604644775390625e-8f; /* 2^-24 */
    return ob_float_from_bits(ob_bits_from_float(size) | sign);
}

/* Rounded to the nearest, ties to even, as the hardware does; NaN stays NaN. */
OB_INLINE uint16_t ob_float_to_half(float value) {
    uint32_t bits = ob_bits_from_float(value), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (size >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* 65520 and more */
    if (size < 0x38800000u) { /* below 2^-14: a multiple of 2^-24 */
        float steps = ob_float_from_bits(size) * 16777216.0f;
        return (uint16_t)(sign | (uint32_t)ob_rint(steps));
    }
    uint32_t odd = size >> 13 & 1;
    return (uint16_t)(sign | (size - 0x38000000u + 0xfffu + odd) >> 13);
}

/* ---- double precision, for rotary angles only ---- */

OB_INLINE double ob_round64(double x) { return (x + 6755399441055744.0) - 6755399441055744.0; } /* |x| < 2^51 */

/* ln x for a positive normal x: m in [0.7, 1.4], series in (m - 1) / (m + 1). */
OB_INLINE double ob_log64(double x) {
    uint64_t bits;
    memcpy(&bits, &x, 8);
    int exponent = (int)(bits >> 52) - 1023;
    bits = (bits & 0xfffffffffffffull) | 0x3ff0000000000000ull;
    double m;
    memcpy(&m, &bits, 8);
    if (m > 1.4142135623730951) m *= 0.5, exponent++;
    double s = (m - 1.0) / (m + 1.0), z = s * s, sum = 0.0;
    for (int k = 25; k >= 1; k -= 2) sum = sum * z + 1.0 / k;
    return 2.0 * s * sum + exponent * 0.6931471805599453;
}

/* e^x for |x| < 700. */
OB_INLINE double ob_exp64(double x) {
    double n = ob_round64(x * 1.4426950408889634);
    double r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10;
    double sum = 1.0;
    for (int k = 14; k >= 1; k--) sum = sum * r / k + 1.0;
    uint64_t bits = (uint64_t)((int64_t)n + 1023) << 52;
    double power;
    memcpy(&power, &bits, 8);
    return sum * power;
}

/* sin and cos of 0 <= x < 2^30: pi/2 in three parts of 33 bits, then Taylor series on |r| <= pi/4. */
OB_INLINE void ob_sincos64(double x, double *sine, double *cosine) {
    double n = ob_round64(x * 0.63661977236758134308);
    double r = ((x - n * 1.57079632673412561417e+00) - n * 6.07710050630396597660e-11) - n * 2.02226624879595063154e-21;
    double z = r * r, s = 1.0, c = 1.0;
    for (int k = 18; k >= 2; k -= 2) {
        s = 1.0 - s * z / (k * (k + 1));
        c = 1.0 - c * z / (k * (k - 1));
    }
    s *= r;
    switch ((int64_t)n & 3) {
    case 0: *sine = s, *cosine = c; break;
    case 1: *sine = c, *cosine = -s; break;
    case 2: *sine = -s, *cosine = -c; break;
    default: *sine = -c, *cosine = s; break;
    }
}

#endif
