/* The row kernels, in loops that compilers turn into vectors: included once for each instruction set, after TARGET, SET and
 * NAME (the table's), and VECTOR_BLOCKS where random numbers have vectors. */
#define STATIC TARGET static
#define INLINE TARGET OB_INLINE
#include "ob_train_random.h"

#include <math.h>
#include <string.h>

enum { PART = OB_TRAIN_PART };

/* The sum of `count` exact terms, which may be added in any order; x is overwritten. */
STATIC double sum_exact(double *x, uint32_t count) {
    while (count > 1) {
        size_t half = count / 2, rest = count - half;
        for (size_t i = 0; i < half; i++) x[i] += x[i + rest];
        count = (uint32_t)rest;
    }
    return x[0];
}

STATIC uint32_t peak(const float *restrict g, uint32_t count) {
    uint32_t most = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, g + i, 4);
        bits &= 0x7fffffffu;
        most = bits > most ? bits : most;
    }
    return most;
}

STATIC double squares(const float *restrict g, uint32_t count, double shift, double *restrict column_I) {
    double term[PART];
    for (size_t i = 0; i < count; i++) {
        double x = g[i];
        term[i] = x * x + shift - shift;
        column_I[i] += term[i];
    }
    return sum_exact(term, count);
}

STATIC double energy(const float *restrict g, uint32_t count, float row, const float *restrict column_I, double largest,
                            double shift) {
    double term[PART];
    for (size_t i = 0; i < count; i++) {
        double x = g[i] * row * column_I[i];
        x = x * x;
        x = x < largest ? x : largest;
        term[i] = x + shift - shift;
    }
    return sum_exact(term, count);
}

/* power is a constant where this is inlined. */
INLINE void add_rounded(int8_t *restrict counts, const float *restrict g, uint32_t count, float factor,
                                  const float *restrict column_I, const int16_t *restrict random, float coefficient,
                                  uint32_t power, int32_t bound) {
    /* What lies beyond moves any counter to its bound. */
    const float most = 300.0f;
    float deposit[PART];
    int32_t change[PART];
    for (size_t i = 0; i < count; i++) {
        float u = g[i] * factor * column_I[i];
        float x = power == 1 ? u : power == 2 ? fabsf(u) * u : u * u * u;
        x *= coefficient;
        x = x < most ? x : most;
        deposit[i] = x > -most ? x : -most;
    }
    for (size_t i = 0; i < count; i++) {
        int32_t floor = (int32_t)deposit[i];
        floor -= (float)floor > deposit[i];
        float limit = (deposit[i] - (float)floor) * 65536.0f - 32768.5f;
        change[i] = floor + ((float)random[i] < limit);
    }
    for (size_t i = 0; i < count; i++) {
        int32_t n = counts[i] + change[i];
        n = n < bound ? n : bound;
        counts[i] = (int8_t)(n > -bound ? n : -bound);
    }
}

STATIC void deposit(int8_t *counts, const float *g, uint32_t count, float factor, const float *column_I,
                           const ob_train_rule *rule, uint32_t row, uint32_t column) {
    int16_t random[PART];
    kronecker16(rule, row, column / 8, (count + 7) / 8, random);
    float c = rule->coefficient;
    if (rule->power == 1) add_rounded(counts, g, count, factor, column_I, random, c, 1, rule->bound);
    else if (rule->power == 2) add_rounded(counts, g, count, factor, column_I, random, c, 2, rule->bound);
    else add_rounded(counts, g, count, factor, column_I, random, c, 3, rule->bound);
}

STATIC uint32_t fire(int8_t *restrict codes, int8_t *restrict counts, uint32_t count, int32_t threshold, int is_binary) {
    const int8_t above = (int8_t)threshold, below = (int8_t)-threshold;
    const int8_t again = is_binary ? -1 : 0; /* a binary code moves two levels */
    uint32_t moved = 0;
    for (size_t i = 0; i < count; i++) {
        int8_t n = counts[i], code = codes[i];
        int8_t move = (int8_t)((n >= above && code < 1 ? 1 : 0) - (n <= below && code > -1 ? 1 : 0));
        codes[i] = (int8_t)(code + move + (move & again));
        counts[i] = move ? 0 : n;
        moved += move ? 1 : 0;
    }
    return moved;
}

/* Terms are added in halves, so that the order depends on their number alone. */
STATIC float dot(const float *restrict g, const float *restrict codes, uint32_t count) {
    float term[PART];
    for (size_t i = 0; i < count; i++) term[i] = g[i] * codes[i];
    while (count > 1) {
        size_t half = count / 2, rest = count - half;
        for (size_t i = 0; i < half; i++) term[i] += term[i + rest];
        count = (uint32_t)rest;
    }
    return term[0];
}

STATIC void widen(const uint16_t *restrict from, uint32_t count, float *restrict to) {
    for (size_t i = 0; i < count; i++) {
        uint32_t bits = (uint32_t)from[i] << 16;
        memcpy(to + i, &bits, 4);
    }
}

const ob_train_kernels SET = {NAME, peak, squares, energy, deposit, fire, dot, widen};
