/* The kernels' common language: a weight matrix as it lies in the file, its inputs, and one function type.
 *
 * Sums. An integer sum is exact, so its order is free. A float sum over K runs in 16 lanes (input k to lane k mod 16,
 * in rising order) and then a tree (lane l + lane l+8, then +4, +2, +1); a group of weights is a sum of its own, and
 * groups are added in rising order. Every kernel of an operation gives the same bits.
 * Letters: T tokens, K inputs (cols), O outputs (rows), G groups. */
#ifndef OB_KERNELS_H
#define OB_KERNELS_H

#include "../ob_platform.h"
#include "onebit.h"

enum { OB_BLOCK_ROWS = 16, OB_TILE_BYTES = 64, OB_LANES = 16 };

/* w[r, k] = code[r, k] * scale; all pointers into the file. */
typedef struct ob_weights {
    const uint8_t *data;  /* row layouts: rows at row_stride; tiled: [blocks, tiles, 64] */
    const void *scale;    /* float32 [1] or [O]; float16 [O, G] or, tiled, [blocks, G, 16]; NULL: 1 */
    const float *bias;    /* [O] or NULL */
    uint64_t row_stride;
    uint32_t rows, cols;
    uint32_t group;       /* inputs under one scale: cols unless per group */
    uint32_t num_groups;
    uint32_t tile;        /* inputs of a tile; 0 in row layouts */
    uint32_t tiles_group; /* tiles of a full group */
    uint32_t tiles_block; /* tiles of a row block */
    uint32_t codes_cols;  /* int8 activations a token needs: cols with every group padded to whole tiles */
    uint16_t kind, layer;
    uint8_t layout, granularity, activation, scale_type;
} ob_weights;

/* Inputs of a linear layer. Float kernels read x, int8 kernels codes and sums. */
typedef struct ob_inputs {
    const float *x_TK;      /* row t at t * x_stride; x_stride is a multiple of 16, floats after K are zero */
    const int8_t *codes_TK; /* row t at t * codes_stride; as ob_weights.codes_cols lays them out, zero padded to 64 */
    const float *scale_T;   /* what a code is worth; 1 for float inputs */
    const int32_t *sums_TG; /* sum of the codes of each group, row t at t * num_groups */
    size_t x_stride, codes_stride;
    uint32_t num_tokens;
} ob_inputs;

/* y[t, r] = sum_k w[r, k] x[t, k] + bias[r] for row_begin <= r < row_end; row_begin is a multiple of 16, row_end too
 * or it is w->rows. y row t at t * y_stride. */
typedef void ob_linear_fn(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end, float *y_TO,
                          size_t y_stride);

/* One query head against `num_positions` cached positions; keys and values at rows of `stride` floats, head_dim wide.
 * scores: [num_positions] work memory; out: [head_dim]. softmax(q.k * scale) v. */
typedef void ob_attend_fn(const float *q, const float *keys, const float *values, size_t stride, uint32_t head_dim,
                          uint32_t num_positions, float scale, float *scores, float *out);

typedef struct ob_kernels {
    ob_linear_fn *linear_f32[OB_NUM_LAYOUTS]; /* by weight layout, float inputs */
    ob_linear_fn *linear_i8[OB_NUM_LAYOUTS];  /* by weight layout, int8 codes */
    ob_attend_fn *attend;
    uint32_t isa;
    const char *lines[2 * OB_NUM_LAYOUTS + 2]; /* what was chosen and why */
} ob_kernels;

/* Fills the table for an OB_ISA_* (AUTO: the best here); 0 when this build or processor cannot run it. */
int ob_kernels_choose(ob_kernels *kernels, uint32_t isa);

/* Geometry of a layout: inputs of a tile (0 for row layouts) and packed bytes of `cols` codes of a row layout. */
uint32_t ob_layout_tile(uint32_t layout);
uint64_t ob_layout_row_bytes(uint32_t layout, uint32_t cols, uint32_t group);

/* Where input k of the matrix lies in a token's int8 codes. */
OB_INLINE uint32_t ob_codes_index(const ob_weights *w, uint32_t group, uint32_t k_in_group) {
    return w->tile ? group * w->tiles_group * w->tile + k_in_group : group * w->group + k_in_group;
}

OB_INLINE uint32_t ob_group_length(const ob_weights *w, uint32_t group) {
    uint32_t begin = group * w->group;
    return w->cols - begin < w->group ? w->cols - begin : w->group;
}

/* Codes of row r, inputs [begin, begin + count) of one group (begin counted inside the group), for code layouts. An
 * invalid ternary pair (10) reads as 0. */
void ob_unpack_codes(const ob_weights *w, uint32_t row, uint32_t group, uint32_t begin, uint32_t count, int8_t *codes);
/* The same as floats, for every layout, not multiplied by the scale. */
void ob_unpack_floats(const ob_weights *w, uint32_t row, uint32_t group, uint32_t begin, uint32_t count, float *values);
float ob_scale_at(const ob_weights *w, uint32_t row, uint32_t group);

/* 16 lanes to one float in the fixed order. */
OB_INLINE float ob_tree16(const float lanes[16]) {
    float a[8];
    for (int l = 0; l < 8; l++) a[l] = lanes[l] + lanes[l + 8];
    for (int l = 0; l < 4; l++) a[l] = a[l] + a[l + 4];
    return (a[0] + a[2]) + (a[1] + a[3]);
}

/* lanes[k mod 16] += a[k] * b[k], k rising from a multiple of 16. */
OB_INLINE void ob_dot_lanes(const float *a, const float *b, size_t count, float lanes[16]) {
    size_t k = 0;
    for (; k + 16 <= count; k += 16)
        for (int l = 0; l < 16; l++) lanes[l] += a[k + l] * b[k + l];
    for (int l = 0; k < count; k++, l++) lanes[l] += a[k] * b[k];
}

ob_linear_fn ob_linear_any_f32_ref, ob_linear_any_i8_ref;
ob_attend_fn ob_attend_f32_ref;
#ifdef OB_X86
ob_linear_fn ob_linear_float32_f32_avx2, ob_linear_float16_f32_avx2, ob_linear_int8_f32_avx2;
ob_linear_fn ob_linear_float32_f32_avx512, ob_linear_float16_f32_avx512, ob_linear_int8_f32_avx512;
ob_linear_fn ob_linear_ternary_t16_i8_avx2, ob_linear_binary_t16_i8_avx2, ob_linear_ternary5_t16_i8_avx2;
ob_linear_fn ob_linear_ternary_t16_i8_avx512, ob_linear_binary_t16_i8_avx512, ob_linear_ternary5_t16_i8_avx512;
ob_attend_fn ob_attend_f32_avx2, ob_attend_f32_avx512;
#endif

#endif
