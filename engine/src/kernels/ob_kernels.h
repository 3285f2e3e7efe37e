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
    uint32_t turn_block;  /* of `turn`; 0 without */
    const float *turn;    /* factors [cols] by which the inputs are turned first; NULL: they are not */
    uint16_t kind, layer;
    uint8_t layout, granularity, activation, scale_type;
} ob_weights;

/* Inputs of a linear layer. Float kernels read x, int8 kernels codes and sums. */
typedef struct ob_inputs {
    const float *x_TK;      /* row t at t * x_stride; x_stride is a multiple of 16, floats after K are zero */
    const int8_t *codes_TK; /* -127 to 127, as ob_weights.codes_cols lays them out, zero padded to 64; t at t * codes_stride */
    const float *scale_T;   /* what a code is worth; 1 for float inputs */
    const int32_t *sums_TG; /* sum of the codes of each group, row t at t * num_groups */
    size_t x_stride, codes_stride;
    uint32_t num_tokens;
} ob_inputs;

/* Work memory that every thread brings to a product, 64-byte aligned; its contents mean nothing between calls. */
enum { OB_WORK_BYTES = 1 << 18 };

/* y[t, r] = sum_k w[r, k] x[t, k] + bias[r] for row_begin <= r < row_end; row_begin is a multiple of 16, row_end too
 * or it is w->rows. y row t at t * y_stride. work: [OB_WORK_BYTES]; the reference uses none and takes NULL. */
typedef void ob_linear_fn(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end, float *y_TO,
                          size_t y_stride, uint8_t *work);

/* A norm; weight NULL: none, x is taken as it is. bias only for OB_NORM_LAYER, or NULL. */
typedef struct ob_norm {
    const float *weight, *bias; /* [size] */
    float eps;
    uint32_t kind; /* OB_NORM_* */
} ob_norm;

/* One token's input of a layer: y = norm(x) [w->cols], then zeros up to a multiple of 16 (y may be x). When w's
 * activations are quantised also codes [codes_stride] as ob_weights.codes_cols lays them out, zero padded, the sum of
 * each group's codes in sums_G, and what a code is worth in *scale. w NULL: only the norm, of `size` values. */
typedef void ob_norm_quantize_fn(const ob_norm *norm, const ob_weights *w, const float *x, uint32_t size, float *y,
                                 size_t codes_stride, int8_t *codes, int32_t *sums_G, float *scale);
/* up[k] = act(gate[k]) * up[k], or act(up[k]) where the MLP has no gate; mlp: OB_MLP_*. */
typedef void ob_activate_fn(uint32_t mlp, const float *gate, float *up, uint32_t size);
/* One head in place: (x[i], x[i + half]) turned by the angle whose cosine and sine are given, i < half. */
typedef void ob_rotate_fn(float *x, const float *cosines, const float *sines, uint32_t half);
/* The signed Walsh-Hadamard rotation, in place: x times factors [size], which are 1 / sqrt(block) with signs; then in
 * each `block` of inputs, a power of two that divides size, for h = 1, 2, 4, ... block / 2 the pairs x[i], x[i + h]
 * (those without bit h in i) become sum and difference. back: the pairs first and the factors last, its inverse. */
typedef void ob_turn_fn(float *x, const float *factors, uint32_t size, uint32_t block, int back);
/* x += scale * y */
typedef void ob_add_fn(float *x, const float *y, float scale, uint32_t size);

/* ---- KV cache and attention ---- */

/* One key or value of one position and key-value head is a row: head_dim numbers as float32 or float16, or, in int8,
 * head_dim codes followed by a float16 scale for each OB_KV_GROUP of them (largest size / 127). Rows are padded to a
 * multiple of 16 bytes. What is read back is an exact float32: code * scale, rounded once. */
enum { OB_KV_GROUP = 32 };
size_t ob_kv_row_bytes(uint32_t kv_type, uint32_t head_dim);
typedef void ob_kv_store_fn(uint32_t kv_type, const float *x, uint32_t head_dim, uint8_t *row);
typedef void ob_kv_load_fn(uint32_t kv_type, const uint8_t *row, uint32_t head_dim, float *x);

/* The query heads of one key-value head, for consecutive tokens of one sequence. Token t (< num_tokens) sees positions
 * p < num_positions - num_tokens + t + 1; position p's key is the row at keys + p * row_bytes. Query of token t, head h
 * (< heads): q + t * q_stride + h * head_dim, the same for out. out = softmax(q.k * scale) v.
 *
 * Arithmetic: positions run in blocks of OB_ATTEND_BLOCK counted from 0. A score is a 16-lane sum over head_dim. After a
 * block the running maximum is raised, what was summed so far is multiplied by e^(old - new), each e^(score - maximum)
 * goes to lane p mod 16 of the sum and times the value to the output, positions in rising order. */
enum { OB_ATTEND_BLOCK = 64 };
typedef struct ob_attention {
    const uint8_t *keys, *values;
    size_t row_bytes;
    const float *q;
    float *out;
    size_t q_stride, out_stride;
    uint32_t kv_type, head_dim, heads, num_tokens, num_positions;
    float scale;
} ob_attention;
typedef void ob_attend_fn(const ob_attention *a, uint8_t *work); /* work: [OB_WORK_BYTES]; the reference takes NULL */

/* Which kernel serves each operation, and of which instruction set it is. */
typedef struct ob_kernels {
    ob_linear_fn *linear_f32[OB_NUM_LAYOUTS]; /* by weight layout, float inputs */
    ob_linear_fn *linear_i8[OB_NUM_LAYOUTS];  /* by weight layout, int8 codes */
    ob_norm_quantize_fn *norm_quantize;
    ob_activate_fn *activate;
    ob_rotate_fn *rotate;
    ob_turn_fn *turn;
    ob_add_fn *add;
    ob_kv_store_fn *kv_store;
    ob_kv_load_fn *kv_load;
    ob_attend_fn *attend;
    uint8_t isa_f32[OB_NUM_LAYOUTS], isa_i8[OB_NUM_LAYOUTS], isa_rows, isa_attend; /* OB_ISA_* of the above */
    uint32_t isa;
} ob_kernels;

/* Fills the table for an OB_ISA_* (AUTO: the best here); 0 when this build or processor cannot run it. */
int ob_kernels_choose(ob_kernels *kernels, uint32_t isa);
/* ob_model_kernel's line of operation `index`; 0 after the last. */
int ob_kernels_line(const ob_kernels *kernels, uint32_t index, char *line);
/* Each family of kernels enters itself; a later call overrides an earlier one. */
typedef void ob_enter_fn(ob_kernels *kernels);
OB_INLINE void ob_enter_f32(ob_kernels *k, uint32_t layout, ob_linear_fn *f, uint8_t isa) {
    k->linear_f32[layout] = f, k->isa_f32[layout] = isa;
}
OB_INLINE void ob_enter_i8(ob_kernels *k, uint32_t layout, ob_linear_fn *f, uint8_t isa) {
    k->linear_i8[layout] = f, k->isa_i8[layout] = isa;
}

/* Geometry of a layout: inputs of a tile (0 for row layouts) and packed bytes of `cols` codes of a row layout. */
uint32_t ob_layout_tile(uint32_t layout);
uint64_t ob_layout_row_bytes(uint32_t layout, uint32_t cols, uint32_t group);

/* Where input k of the matrix lies in a token's int8 codes. */
OB_INLINE uint32_t ob_codes_index(const ob_weights *w, uint32_t group, uint32_t k_in_group) {
    return w->tile ? group * w->tiles_group * w->tile + k_in_group : group * w->group + k_in_group;
}

OB_INLINE uint32_t ob_code_of_input(const ob_weights *w, uint32_t k) { return ob_codes_index(w, k / w->group, k % w->group); }

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
ob_norm_quantize_fn ob_norm_quantize_ref;
ob_activate_fn ob_activate_ref;
ob_rotate_fn ob_rotate_ref;
ob_turn_fn ob_turn_ref;
ob_add_fn ob_add_ref;
ob_kv_store_fn ob_kv_store_ref;
ob_kv_load_fn ob_kv_load_ref;
ob_attend_fn ob_attend_ref;
#if defined(OB_X86) && defined(__GNUC__)
ob_enter_fn ob_enter_linear_t16_avx2, ob_enter_linear_t16_avxvnni, ob_enter_linear_t16_avx512, ob_enter_linear_t16_amx;
ob_enter_fn ob_enter_linear_rows_avx2, ob_enter_linear_rows_avx512;
ob_enter_fn ob_enter_linear_rows_i8_avx2, ob_enter_linear_rows_i8_avxvnni, ob_enter_linear_rows_i8_avx512;
ob_enter_fn ob_enter_rows_avx2, ob_enter_rows_avx512, ob_enter_attend_avx2, ob_enter_attend_avx512;
#endif
#ifdef OB_ARM
ob_enter_fn ob_enter_linear_t16_neon, ob_enter_linear_t16_dot, ob_enter_linear_t16_i8mm;
ob_enter_fn ob_enter_linear_rows_i8_neon, ob_enter_linear_rows_i8_dot, ob_enter_linear_rows_f32_neon;
ob_enter_fn ob_enter_rows_neon, ob_enter_attend_neon;
ob_linear_fn ob_linear_binary_t16_i8_neon, ob_linear_ternary_t16_i8_neon, ob_linear_ternary5_t16_i8_neon;
ob_linear_fn ob_linear_binary_t16_i8_dot, ob_linear_ternary_t16_i8_dot, ob_linear_ternary5_t16_i8_dot;
#endif
#ifdef __wasm_simd128__
ob_enter_fn ob_enter_linear_t16_wasm, ob_enter_linear_rows_i8_wasm, ob_enter_linear_rows_f32_wasm;
ob_enter_fn ob_enter_rows_wasm, ob_enter_attend_wasm;
#ifdef __wasm_relaxed_simd__
ob_enter_fn ob_enter_linear_t16_relaxed, ob_enter_linear_rows_i8_relaxed;
#endif
#endif

#endif
