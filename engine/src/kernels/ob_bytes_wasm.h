/* Arithmetic of bytes in WebAssembly SIMD that the compiler has to be helped with. */
#ifndef OB_BYTES_WASM_H
#define OB_BYTES_WASM_H

#include <wasm_simd128.h>

#include "../ob_platform.h"

/* 3 v mod 256. There are no products or shifts of bytes to speak of: Clang would make a product of the sums, which it takes
 * apart lane by lane, or a shift of the first, which engines make of several instructions. What is added is hidden from it
 * (benchmarks/LOG.md: 8 times the speed in base 3). */
OB_INLINE v128_t times3_i8(v128_t v) {
    v128_t same = v;
    __asm__("" : "+r"(same));
    v128_t twice = wasm_i8x16_add(v, same);
    __asm__("" : "+r"(twice));
    return wasm_i8x16_add(v, twice);
}

#ifdef __wasm_relaxed_simd__
/* Four products to each 32-bit lane of acc. `small` is 0 to 127 in every byte, where all engines must give the same. */
OB_INLINE v128_t dot_i8_i7(v128_t acc, v128_t signed_bytes, v128_t small) {
    typedef int8_t bytes __attribute__((vector_size(16)));
    typedef int32_t words __attribute__((vector_size(16)));
    return (v128_t)__builtin_wasm_relaxed_dot_i8x16_i7x16_add_s_i32x4((bytes)signed_bytes, (bytes)small, (words)acc);
}
#endif

#endif
