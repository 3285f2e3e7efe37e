/* Body of the linear layers of int8 and int4 rows with int8 inputs on 128-bit registers (NEON, WebAssembly). The file that
 * includes this defines TARGET, INLINE, UNROLL and
 *   ROWS, MAX_TOKENS                   rows and tokens whose sums the registers hold
 *   operand                            16 int8 or 32 int4 codes, or the inputs they meet
 *   accumulator, total(acc)            what dot adds to, {0} at first, and the sum in it
 *   weights(layout, bytes), inputs(layout, x), dot(layout, acc, weights, inputs)
 * int4 codes go as 0 to 15; what that is too much, 8 times the sum of the inputs, is taken off at the end. */

INLINE uint32_t step_of(uint32_t layout) { return layout == OB_LAYOUT_INT4 ? 32 : 16; }

/* acc[r][t] = the products of `count` inputs. Both sides are readable up to whole steps, and x is zero there. */
INLINE void dot_rows(uint32_t layout, const uint8_t *codes, size_t row_stride, const int8_t *x, size_t x_stride,
                     uint32_t count, int rows, int tokens, int32_t sums[ROWS][MAX_TOKENS]) {
    accumulator acc[ROWS][MAX_TOKENS];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int t = 0; t < tokens; t++) acc[r][t] = (accumulator){0};
    for (uint32_t k = 0; k < count; k += step_of(layout), codes += 16) {
        operand in[MAX_TOKENS];
        UNROLL for (int t = 0; t < tokens; t++) in[t] = inputs(layout, x + (size_t)t * x_stride + k);
        UNROLL for (int r = 0; r < rows; r++) {
            operand w = weights(layout, codes + (size_t)r * row_stride);
            UNROLL for (int t = 0; t < tokens; t++) acc[r][t] = dot(layout, acc[r][t], w, in[t]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int t = 0; t < tokens; t++) sums[r][t] = total(acc[r][t]);
}

INLINE void row_tokens(uint32_t layout, const ob_weights *w, const ob_inputs *in, uint32_t row, int rows, uint32_t first,
                       int tokens, float *y, size_t y_stride) {
    const uint8_t *codes = w->data + row * w->row_stride;
    const int8_t *x = in->codes_TK + first * in->codes_stride;
    const int32_t *input_sums = in->sums_TG + (size_t)first * w->num_groups;
    const int per_group = w->granularity == OB_GRANULARITY_GROUP;
    float total[ROWS][MAX_TOKENS] = {{0}};
    for (uint32_t g = 0; g < w->num_groups; g++) {
        int32_t acc[ROWS][MAX_TOKENS];
        const uint32_t begin = g * w->group;
        dot_rows(layout, codes + begin / (step_of(layout) / 16), w->row_stride, x + begin, in->codes_stride, ob_group_length(w, g),
                 rows, tokens, acc);
        for (int r = 0; r < rows; r++) {
            float scale = per_group ? ob_scale_at(w, row + (uint32_t)r, g) : 1.0f;
            for (int t = 0; t < tokens; t++) {
                int32_t offset = layout == OB_LAYOUT_INT4 ? 8 * input_sums[(size_t)t * w->num_groups + g] : 0;
                float sum = (float)(acc[r][t] - offset);
                total[r][t] = per_group ? total[r][t] + sum * scale : sum;
            }
        }
    }
    for (int r = 0; r < rows; r++) {
        float scale = per_group ? 1.0f : ob_scale_at(w, row + (uint32_t)r, 0), bias = w->bias ? w->bias[row + (uint32_t)r] : 0.0f;
        for (int t = 0; t < tokens; t++) {
            float value = total[r][t] * (scale * in->scale_T[first + t]);
            y[(first + t) * y_stride + row + (uint32_t)r] = w->bias ? value + bias : value;
        }
    }
}

INLINE void linear(uint32_t layout, const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end, float *y,
                   size_t y_stride) {
    if (w->num_groups > 1 && w->group % step_of(layout)) {
        ob_linear_any_i8_ref(w, in, row_begin, row_end, y, y_stride, NULL);
        return;
    }
    for (uint32_t row = row_begin; row < row_end;) {
        const uint32_t rows = row_end - row >= ROWS ? ROWS : 1, n = in->num_tokens;
        uint32_t t = 0;
        for (; rows == ROWS && t + MAX_TOKENS <= n; t += MAX_TOKENS)
            row_tokens(layout, w, in, row, ROWS, t, MAX_TOKENS, y, y_stride);
        for (; rows == ROWS && t < n; t++) row_tokens(layout, w, in, row, ROWS, t, 1, y, y_stride);
        for (; t < n; t++) row_tokens(layout, w, in, row, 1, t, 1, y, y_stride);
        row += rows;
    }
}

TARGET static void linear_int8_i8(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end, float *y_TO,
                                  size_t y_stride, uint8_t *work) {
    (void)work;
    linear(OB_LAYOUT_INT8, w, in, row_begin, row_end, y_TO, y_stride);
}

TARGET static void linear_int4_i8(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end, float *y_TO,
                                  size_t y_stride, uint8_t *work) {
    (void)work;
    linear(OB_LAYOUT_INT4, w, in, row_begin, row_end, y_TO, y_stride);
}
