/* What a fuzz target shares with its driver: libFuzzer (clang) or standalone.c (any compiler). */
#ifndef ONEBIT_FUZZ_H
#define ONEBIT_FUZZ_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed);
/* Given by the driver: random byte-level changes in place; returns the new size. */
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

static inline uint32_t fuzz_random(uint64_t *state) { /* splitmix64 */
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)(z >> 32 ^ z);
}

/* A number that a parser may get wrong: near 0, near a power of two, near the size, or anything. */
static inline uint64_t fuzz_number(uint64_t *state, uint64_t size) {
    switch (fuzz_random(state) % 6) {
    case 0: return fuzz_random(state) % 5;
    case 1: return ((uint64_t)1 << fuzz_random(state) % 64) - fuzz_random(state) % 2;
    case 2: return size + fuzz_random(state) % 130 - 65;
    case 3: return fuzz_random(state) % (size + 1);
    case 4: return 0 - (uint64_t)(fuzz_random(state) % 200);
    default: return (uint64_t)fuzz_random(state) << 32 | fuzz_random(state);
    }
}

static inline void fuzz_put(uint8_t *p, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++) p[i] = (uint8_t)(value >> 8 * i);
}

static inline uint64_t fuzz_get(const uint8_t *p, int bytes) {
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++) value |= (uint64_t)p[i] << 8 * i;
    return value;
}

#endif
