/* Row kernels of pure training: what ob_train.c divides a matrix into. ob_train_body.h has them once; it is compiled for
 * each instruction set, and all give the same bits: float32 operations in the order of onebit.nn.torch_pure, none fused,
 * and sums that are exact in any order. */
#ifndef OB_TRAIN_KERNELS_H
#define OB_TRAIN_KERNELS_H

#include "ob_train.h"

/* Columns that are worked on at once. A multiple of 64, so that parts of a row begin with a byte of every packing and
 * with a random block. */
enum { OB_TRAIN_PART = 512 };

/* What a deposit needs beside gradients and counters. */
typedef struct {
    float coefficient;
    uint32_t power; /* 1, 2 or 3 */
    int32_t bound;
    uint32_t seed, tensor;
    uint64_t step;
} ob_train_rule;

/* g: `count` <= OB_TRAIN_PART numbers of a row; column_I: those of the same columns. */
typedef struct {
    const char *name;
    /* The largest |g|, as its bits: those of NaN are larger than infinity's. */
    uint32_t (*peak)(const float *g, uint32_t count);
    /* Adds g^2, rounded by `shift`, to each column; returns their sum. */
    double (*squares)(const float *g, uint32_t count, double shift, double *column_I);
    /* The sum of (g row column)^2, each at most `largest` and rounded by `shift`. */
    double (*energy)(const float *g, uint32_t count, float row, const float *column_I, double largest, double shift);
    /* counts: int8, changed in place. column: the first one's number, a multiple of 8; row: in the whole matrix. */
    void (*deposit)(int8_t *counts, const float *g, uint32_t count, float factor, const float *column_I,
                    const ob_train_rule *rule, uint32_t row, uint32_t column);
    /* Moves codes whose counters are full; returns how many. */
    uint32_t (*fire)(int8_t *codes, int8_t *counts, uint32_t count, int32_t threshold, int is_binary);
    /* The sum of g times the codes. */
    float (*dot)(const float *g, const float *codes, uint32_t count);
    /* bfloat16 to float32. */
    void (*widen)(const uint16_t *from, uint32_t count, float *to);
} ob_train_kernels;

extern const ob_train_kernels ob_train_base, ob_train_avx2, ob_train_avx512;

#endif
