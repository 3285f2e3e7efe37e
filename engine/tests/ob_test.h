/* The least a C test needs: a check that says what failed, and a generator of test numbers. */
#ifndef OB_TEST_H
#define OB_TEST_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static int failures;

#define CHECK(condition, ...)                                                   \
    do {                                                                        \
        if (!(condition)) {                                                     \
            failures++;                                                         \
            fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition);     \
            fprintf(stderr, __VA_ARGS__);                                       \
            fputc('\n', stderr);                                                \
        }                                                                       \
    } while (0)

static inline uint32_t test_random(uint64_t *state) {
    *state = *state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(*state >> 33);
}

/* about normal: the sum of four uniform numbers, -2 to 2 */
static inline float test_normal(uint64_t *state) {
    float sum = 0;
    for (int i = 0; i < 4; i++) sum += (float)test_random(state) / 2147483648.0f - 0.5f;
    return sum;
}

static inline void *test_aligned(size_t bytes) {
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
    if (!memory) abort();
    return memory;
}

#endif
