/* Kernels of pure training (docs/pure-training.md) for a program that holds the tensors: Python by ctypes, which checks
 * shapes and types before. They work on packed storage, in place; onebit.nn.torch_pure is the reference, and integers and
 * exact sums are the same bit for bit, for any number of threads and instruction set. No part of the inference core.
 *
 * Suffixes: O rows, I columns, B bytes of a row, G groups of columns. Matrices are contiguous. Numbers of rows and columns
 * are below 2^31. */
#ifndef OB_TRAIN_H
#define OB_TRAIN_H

#include "onebit.h"

/* Raised when a signature below changes. */
#define OB_TRAIN_VERSION 5u
OB_API uint32_t ob_train_version(void);
/* The instruction set that the kernels were chosen for: "avx512", "avx2" or "baseline". */
OB_API const char *ob_train_isa(void);
/* Takes one of them from now on, for tests; NULL: the best. 0: this processor does not have it. */
OB_API int32_t ob_train_choose(const char *isa);

enum { OB_TRAIN_FLOAT32 = 0, OB_TRAIN_BFLOAT16 = 1, OB_TRAIN_INT8 = 2 };

/* A gradient, or a part of its rows; threads: at most that many work on it. */
typedef struct {
    const void *g_OI;
    uint32_t type; /* OB_TRAIN_FLOAT32 or OB_TRAIN_BFLOAT16 */
    uint32_t rows, cols;
    uint32_t threads;
} ob_train_gradient;

/* Counters: bits 8 as they are; 4 a nibble, low one first, plus 8; 2 two's complement, low pair first. */
typedef struct {
    void *counters_OB;
    uint32_t bits;
    int32_t threshold, bound;
} ob_train_counters;

/* The numbers of onebit.optim.pure_deposit. */
typedef struct {
    double decay, floor, tiny;    /* of moments */
    double largest, energy_shift; /* of squared updates */
    double clip;
} ob_train_normalisation;

/* Moments of the rows and columns of a matrix, and the factors that follow from them. */
typedef struct {
    float *row_O, *column_I, *row_factors_O, *column_factors_I;
    uint32_t rows, cols;
} ob_train_moments;

/* The largest |g|; NaN where there is one. */
OB_API float ob_train_peak(const ob_train_gradient *g);
/* Sums of g^2, each rounded by adding and subtracting `shift`, over rows and over columns. 0: no memory. */
OB_API int32_t ob_train_square_sums(const ob_train_gradient *g, double shift, double *row_O, double *column_I);
/* New moments from the sums of squares, in place, and their factors; settled: 1 - decay^deposits. 0: peak^2 is no float, and
 * the moments stay. */
OB_API int32_t ob_train_update_moments(const ob_train_normalisation *n, float peak, double settled, const double *row_O,
                                       const double *column_I, const ob_train_moments *m);
/* The sum of (g row column)^2, each at most `largest` and rounded by `shift`. */
OB_API double ob_train_update_energy(const ob_train_gradient *g, const float *row_O, const float *column_I, double largest,
                                     double shift);
/* counters += coefficient |u|^(power - 1) u, u = g row column, rounded at random: Philox4x32-10 of seed, tensor, step, row
 * (counted from first_row) and column. */
OB_API void ob_train_deposit(const ob_train_gradient *g, const ob_train_counters *counters, const float *row_O,
                             const float *column_I, float coefficient, uint32_t power, uint32_t seed, uint32_t tensor,
                             uint64_t step, uint32_t first_row);
/* All of a deposit, for a matrix that one process holds: peak, sums, moments, energy, counters. forgets: the counters do,
 * which take the third power. A gradient that is no number changes nothing. 0: no memory. */
OB_API int32_t ob_train_deposit_whole(const ob_train_gradient *g, const ob_train_counters *counters,
                                      const ob_train_normalisation *n, float *row_moments_O, float *column_moments_I,
                                      double settled, float eta, int32_t forgets, uint32_t seed, uint32_t tensor,
                                      uint64_t step);
/* Moves the codes whose counters are full, which then start at 0 (all counters do when forgets): how many moved. codes_OB:
 * four codes a byte, two's complement, or eight signs. */
OB_API int64_t ob_train_fire(uint8_t *codes_OB, const ob_train_counters *counters, uint32_t rows, uint32_t cols,
                             int32_t is_binary, int32_t forgets, uint32_t threads);
/* Codes as numbers of `type`, [O, I]. */
OB_API void ob_train_unpack(const uint8_t *codes_OB, uint32_t rows, uint32_t cols, int32_t is_binary, uint32_t type,
                            void *out_OI, uint32_t threads);
/* Sums of g times the codes over groups of `group` columns. */
OB_API void ob_train_code_sums(const ob_train_gradient *g, const uint8_t *codes_OB, int32_t is_binary, uint32_t group,
                               float *sums_OG);
/* Whether ob_train_product is faster here than a product of floats: AVX2. */
OB_API int32_t ob_train_has_product(void);
/* y = x codes^T, exact. x_TI: codes of int8, [tokens, cols]; y_TO: whole numbers. 0: no memory. */
OB_API int32_t ob_train_product(const int8_t *x_TI, uint32_t tokens, uint32_t cols, const uint8_t *codes_OB, uint32_t rows,
                                int32_t is_binary, float *y_TO, uint32_t threads);

#endif
