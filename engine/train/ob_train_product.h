/* The product of int8 inputs and codes, exact in int32, on an instruction set that beats a product of floats. */
#ifndef OB_TRAIN_PRODUCT_H
#define OB_TRAIN_PRODUCT_H

#include <stdint.h>

/* Rows of a panel. Digits (code + 1) lie as [steps, PANEL_ROWS, 4]: what one step of a dot product reads of each row. */
enum { OB_TRAIN_PANEL_ROWS = 16, OB_TRAIN_STEP = 4 };

/* y_TO[t, row + r] = x codes, for `tokens` tokens and the first `rows` of a panel's rows. x_TI: rows of 4 * steps codes;
 * sums_T: of each token's codes; stride: floats from a token's result to the next. */
void ob_train_product_avx2(const int8_t *x_TI, const int32_t *sums_T, uint32_t tokens, uint32_t steps, const uint8_t *panel,
                           uint32_t rows, float *y_TO, uint32_t stride);

#endif
