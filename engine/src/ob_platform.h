/* What the core needs from a compiler, in one place: byte order, targets, and the few functions it may link. */
#ifndef OB_PLATFORM_H
#define OB_PLATFORM_H

#include <stddef.h>
#include <stdint.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "onebit reads weights in place from a little-endian file; this processor is big-endian"
#endif

/* The same bits everywhere need float arithmetic that is rounded after every operation. */
#include <float.h>
#if FLT_EVAL_METHOD != 0
#error "float arithmetic has excess precision here; on 32-bit x86 build with -msse2 -mfpmath=sse"
#endif
#ifdef __FAST_MATH__
#error "-ffast-math reorders float sums; build without it"
#endif
#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#endif

/* The core is freestanding: these three are all it asks of a C library (compilers emit calls to them anyway). */
void *memcpy(void *restrict to, const void *restrict from, size_t bytes);
void *memset(void *to, int byte, size_t bytes);
void *memmove(void *to, const void *from, size_t bytes);

#if defined(__GNUC__)
#define OB_TARGET(features) __attribute__((target(features)))
#define OB_INLINE static inline __attribute__((always_inline))
#else
#define OB_TARGET(features)
#define OB_INLINE static inline
#endif

/* The loop that follows has a constant number of rounds, and arrays of registers in it: it must be unrolled whole. Clang
 * reads GCC's pragma without a word and does nothing. */
#if defined(__clang__)
#define OB_UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define OB_UNROLL _Pragma("GCC unroll 32")
#else
#define OB_UNROLL
#endif

/* OB_REFERENCE_ONLY: a build of the core with the reference kernels alone, on a processor that has others. */
#if (defined(__x86_64__) || defined(_M_X64)) && !defined(OB_REFERENCE_ONLY)
#define OB_X86 1
#endif

/* AArch64 extensions that kernels may be compiled for: on from the command line, or function by function. */
#if defined(__aarch64__) && defined(__GNUC__) && !defined(OB_REFERENCE_ONLY)
#define OB_ARM 1
#if defined(__clang__) ? __clang_major__ >= 16 : __GNUC__ >= 9
#define OB_ARM_BY_FUNCTION 1
#endif
#if defined(__ARM_FEATURE_DOTPROD)
#define OB_ARM_DOT 1
#define OB_TARGET_ARM_DOT
#elif defined(OB_ARM_BY_FUNCTION)
#define OB_ARM_DOT 1
#define OB_TARGET_ARM_DOT OB_TARGET("arch=armv8.2-a+dotprod")
#endif
#if defined(__ARM_FEATURE_MATMUL_INT8)
#define OB_ARM_I8MM 1
#define OB_TARGET_ARM_I8MM
#elif defined(OB_ARM_BY_FUNCTION) && (defined(__clang__) || __GNUC__ >= 10)
#define OB_ARM_I8MM 1
#define OB_TARGET_ARM_I8MM OB_TARGET("arch=armv8.2-a+dotprod+i8mm")
#endif
#endif

#endif
