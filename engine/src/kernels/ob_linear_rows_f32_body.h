/* Linear layers with float inputs, any layout: one source for every x86 instruction set. The file that includes it has
 * defined TARGET, INLINE, UNROLL, ROWS and TOKENS (of a block of many tokens), and on `lanes`, the 16 floats of the fixed
 * order:
 *   lanes no_lanes(void), load_float32(const float *), load_float16(const uint8_t *), load_int8(const uint8_t *)
 *   lanes keep(lanes, int count)          [the lanes from count on become zero]
 *   lanes add_product(lanes acc, lanes a, lanes b), float tree16(lanes)
 *
 * float32, float16 and int8 rows are read in place. Other codes are unpacked to int8 rows in work memory first, a few rows
 * at a time, so they stay in the first cache. Several rows in turn hide the latency of the additions. */
#include "../ob_math.h"
#include "ob_kernels.h"

enum { ONE_TOKEN_ROWS = 4 }; /* as many sums in turn as an addition takes cycles */

/* Rows as they are read: in the file or unpacked. */
typedef struct float_rows {
    const uint8_t *data;
    size_t stride;
    uint32_t type; /* OB_LAYOUT_FLOAT32, _FLOAT16 or _INT8 */
} float_rows;

INLINE lanes load_weights(uint32_t type, const uint8_t *row, size_t k) {
    if (type == OB_LAYOUT_FLOAT32) return load_float32((const float *)(const void *)row + k);
    return type == OB_LAYOUT_FLOAT16 ? load_float16(row + 2 * k) : load_int8(row + k);
}

/* acc[r, t] += the product of 16 inputs from k on. */
INLINE void step16(uint32_t type, const float_rows *from, size_t k, int rows, const float *x, size_t x_stride, int tokens,
                   lanes acc[][TOKENS]) {
    lanes weights[ONE_TOKEN_ROWS];
    UNROLL for (int r = 0; r < rows; r++) weights[r] = load_weights(type, from->data + r * from->stride, k);
    UNROLL for (int t = 0; t < tokens; t++) {
        lanes inputs = load_float32(x + t * x_stride + k);
        UNROLL for (int r = 0; r < rows; r++) acc[r][t] = add_product(acc[r][t], weights[r], inputs);
    }
}

/* sums[r, t] += scale[r, g] * the group's sum for every group g; without groups the sum alone. rows and tokens are
 * constants. Rows are padded to 64 bytes and inputs to 16 floats, so the loads of a tail stay inside. */
INLINE void block(uint32_t type, int per_group, const ob_weights *w, const ob_inputs *in, const float_rows *from, uint32_t row,
                  int rows, uint32_t first, int tokens, float *y, size_t y_stride) {
    const float *x = in->x_TK + first * in->x_stride;
    float sums[ONE_TOKEN_ROWS][TOKENS] = {{0}};
    const uint32_t line = type == OB_LAYOUT_FLOAT32 ? 16 : type == OB_LAYOUT_FLOAT16 ? 32 : 64; /* inputs of 64 bytes */
    for (uint32_t g = 0; g < w->num_groups; g++) {
        lanes acc[ONE_TOKEN_ROWS][TOKENS];
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int t = 0; t < tokens; t++) acc[r][t] = no_lanes();
        uint32_t k = g * w->group, end = k + ob_group_length(w, g);
        for (; tokens == 1 && k + line <= end; k += line) { /* the next rows' lines are asked for while these are summed */
            UNROLL for (int r = 0; r < rows; r++)
                __builtin_prefetch(from->data + (r + rows) * from->stride + (size_t)k / line * 64);
            UNROLL for (uint32_t i = 0; i < line; i += 16) step16(type, from, k + i, rows, x, in->x_stride, tokens, acc);
        }
        for (; k + 16 <= end; k += 16) step16(type, from, k, rows, x, in->x_stride, tokens, acc);
        if (k < end)
            UNROLL for (int r = 0; r < rows; r++) {
                lanes weights = keep(load_weights(type, from->data + r * from->stride, k), (int)(end - k));
                UNROLL for (int t = 0; t < tokens; t++)
                    acc[r][t] = add_product(acc[r][t], weights, load_float32(x + t * in->x_stride + k));
            }
        for (int r = 0; r < rows; r++) {
            float scale = per_group ? ob_scale_at(w, row + (uint32_t)r, g) : 1.0f;
            for (int t = 0; t < tokens; t++) sums[r][t] = per_group ? sums[r][t] + tree16(acc[r][t]) * scale : tree16(acc[r][t]);
        }
    }
    for (int r = 0; r < rows; r++) {
        float scale = per_group ? 1.0f : ob_scale_at(w, row + (uint32_t)r, 0);
        for (int t = 0; t < tokens; t++) {
            float value = sums[r][t] * (scale * in->scale_T[first + t]);
            y[(first + t) * y_stride + row + r] = w->bias ? value + w->bias[row + r] : value;
        }
    }
}

/* `rows` rows, at most ONE_TOKEN_ROWS. */
INLINE void all_tokens(uint32_t type, int per_group, const ob_weights *w, const ob_inputs *in, const float_rows *from,
                       uint32_t row, uint32_t rows, float *y, size_t y_stride) {
    uint32_t t = 0, n = in->num_tokens;
    if (rows < ONE_TOKEN_ROWS) {
        for (uint32_t r = 0; r < rows; r++) {
            const float_rows one = {from->data + r * from->stride, from->stride, type};
            for (t = 0; t + TOKENS <= n; t += TOKENS) block(type, per_group, w, in, &one, row + r, 1, t, TOKENS, y, y_stride);
            for (; t < n; t++) block(type, per_group, w, in, &one, row + r, 1, t, 1, y, y_stride);
        }
        return;
    }
    for (; t + TOKENS <= n; t += TOKENS)
        for (uint32_t r = 0; r < ONE_TOKEN_ROWS; r += ROWS) {
            const float_rows some = {from->data + r * from->stride, from->stride, type};
            block(type, per_group, w, in, &some, row + r, ROWS, t, TOKENS, y, y_stride);
        }
    for (; t < n; t++) block(type, per_group, w, in, from, row, ONE_TOKEN_ROWS, t, 1, y, y_stride);
}

INLINE void linear(uint32_t type, int per_group, const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end,
                   float *y, size_t y_stride, uint8_t *work) {
    const size_t unpacked = ((size_t)w->cols + 63) / 64 * 64;
    const int in_place = w->layout <= OB_LAYOUT_INT8;
    const uint32_t step = in_place || ONE_TOKEN_ROWS * unpacked <= OB_WORK_BYTES ? ONE_TOKEN_ROWS : 1;
    for (uint32_t row = row_begin; row < row_end; row += step) {
        const uint32_t rows = row_end - row < step ? row_end - row : step;
        float_rows from = {w->data + row * w->row_stride, w->row_stride, type};
        if (!in_place) {
            from = (float_rows){work, unpacked, type};
            for (uint32_t r = 0; r < rows; r++)
                for (uint32_t g = 0; g < w->num_groups; g++)
                    ob_unpack_codes(w, row + r, g, 0, ob_group_length(w, g), (int8_t *)work + r * unpacked + (size_t)g * w->group);
        }
        all_tokens(type, per_group, w, in, &from, row, rows, y, y_stride);
    }
}

TARGET static void linear_float32_f32(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end,
                                      float *y_TO, size_t y_stride, uint8_t *work) {
    linear(OB_LAYOUT_FLOAT32, 0, w, in, row_begin, row_end, y_TO, y_stride, work);
}

TARGET static void linear_float16_f32(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end,
                                      float *y_TO, size_t y_stride, uint8_t *work) {
    linear(OB_LAYOUT_FLOAT16, 0, w, in, row_begin, row_end, y_TO, y_stride, work);
}

TARGET static void linear_codes_f32(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end,
                                    float *y_TO, size_t y_stride, uint8_t *work) {
    if (w->granularity == OB_GRANULARITY_GROUP) linear(OB_LAYOUT_INT8, 1, w, in, row_begin, row_end, y_TO, y_stride, work);
    else linear(OB_LAYOUT_INT8, 0, w, in, row_begin, row_end, y_TO, y_stride, work);
}

OB_INLINE void enter_f32(ob_kernels *k, uint8_t isa) {
    ob_enter_f32(k, OB_LAYOUT_FLOAT32, linear_float32_f32, isa);
    ob_enter_f32(k, OB_LAYOUT_FLOAT16, linear_float16_f32, isa);
    for (uint32_t layout = OB_LAYOUT_INT8; layout < OB_NUM_LAYOUTS; layout++) ob_enter_f32(k, layout, linear_codes_f32, isa);
}
