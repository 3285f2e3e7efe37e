/* Body of the linear layers of float32, float16 and int8 rows with float inputs on 128-bit registers (NEON, WebAssembly).
 * Four registers are the 16 lanes of the fixed order. The file that includes this defines TARGET, INLINE, UNROLL, the
 * vector f32x4, ROWS and TOKENS (how many rows of one token, or tokens of one row, the registers hold) and
 *   load4(layout, row, k)   four weights from input k on, as floats */

INLINE f32x4 load_floats(const float *from) {
    f32x4 v;
    memcpy(&v, from, sizeof v);
    return v;
}

/* The last `count` < 16 weights: rows are padded to 64 bytes, so the load is inside; lanes beyond count become zero. */
INLINE void load_tail(uint32_t layout, const uint8_t *row, size_t k, uint32_t count, f32x4 out[4]) {
    float values[OB_LANES];
    for (uint32_t l = 0; l < OB_LANES; l += 4) {
        f32x4 v = load4(layout, row, k + l);
        memcpy(values + l, &v, sizeof v);
    }
    for (uint32_t l = count; l < OB_LANES; l++) values[l] = 0.0f;
    for (uint32_t l = 0; l < OB_LANES; l += 4) out[l / 4] = load_floats(values + l);
}

/* rows and tokens are constants after inlining; one of them is 1. */
INLINE void block(uint32_t layout, const ob_weights *w, const ob_inputs *in, uint32_t row, int rows, uint32_t first, int tokens,
                  float *y, size_t y_stride) {
    const uint8_t *data = w->data + row * w->row_stride;
    const float *x = in->x_TK + first * in->x_stride;
    f32x4 acc[ROWS > TOKENS ? ROWS : TOKENS][4];
    const int sums = rows * tokens;
    UNROLL for (int s = 0; s < sums; s++)
        UNROLL for (int i = 0; i < 4; i++) acc[s][i] = (f32x4){0};
    const uint32_t whole = w->cols & ~15u, tail = w->cols & 15u;
    for (uint32_t k = 0; k < whole; k += 16)
        UNROLL for (int i = 0; i < 4; i++)
            UNROLL for (int s = 0; s < sums; s++) {
                f32x4 weights = load4(layout, data + (size_t)(rows > 1 ? s : 0) * w->row_stride, k + 4 * (uint32_t)i);
                f32x4 inputs = load_floats(x + (size_t)(tokens > 1 ? s : 0) * in->x_stride + k + 4 * (uint32_t)i);
                acc[s][i] += weights * inputs;
            }
    for (int s = 0; s < sums && tail; s++) {
        f32x4 weights[4];
        load_tail(layout, data + (size_t)(rows > 1 ? s : 0) * w->row_stride, whole, tail, weights);
        for (int i = 0; i < 4; i++)
            acc[s][i] += weights[i] * load_floats(x + (size_t)(tokens > 1 ? s : 0) * in->x_stride + whole + 4 * (uint32_t)i);
    }
    for (int s = 0; s < sums; s++) {
        const uint32_t r = row + (rows > 1 ? (uint32_t)s : 0), t = first + (tokens > 1 ? (uint32_t)s : 0);
        f32x4 four = (acc[s][0] + acc[s][2]) + (acc[s][1] + acc[s][3]); /* lanes 0-7 + 8-15, then 0-3 + 4-7 */
        float value = ((four[0] + four[2]) + (four[1] + four[3])) * (ob_scale_at(w, r, 0) * in->scale_T[t]);
        y[t * y_stride + r] = w->bias ? value + w->bias[r] : value;
    }
}

INLINE void linear(uint32_t layout, const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end, float *y,
                   size_t y_stride) {
    if (w->granularity == OB_GRANULARITY_GROUP) {
        ob_linear_any_f32_ref(w, in, row_begin, row_end, y, y_stride, NULL);
        return;
    }
    const uint32_t n = in->num_tokens, together = n - n % TOKENS;
    for (uint32_t row = row_begin; row < row_end; row++)
        for (uint32_t t = 0; t < together; t += TOKENS) block(layout, w, in, row, 1, t, TOKENS, y, y_stride);
    for (uint32_t t = together; t < n; t++) {
        uint32_t row = row_begin;
        for (; row + ROWS <= row_end; row += ROWS) block(layout, w, in, row, ROWS, t, 1, y, y_stride);
        for (; row < row_end; row++) block(layout, w, in, row, 1, t, 1, y, y_stride);
    }
}

TARGET static void linear_float32_f32(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end,
                                      float *y_TO, size_t y_stride, uint8_t *work) {
    (void)work;
    linear(OB_LAYOUT_FLOAT32, w, in, row_begin, row_end, y_TO, y_stride);
}

TARGET static void linear_float16_f32(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end,
                                      float *y_TO, size_t y_stride, uint8_t *work) {
    (void)work;
    linear(OB_LAYOUT_FLOAT16, w, in, row_begin, row_end, y_TO, y_stride);
}

TARGET static void linear_int8_f32(const ob_weights *w, const ob_inputs *in, uint32_t row_begin, uint32_t row_end, float *y_TO,
                                   size_t y_stride, uint8_t *work) {
    (void)work;
    linear(OB_LAYOUT_INT8, w, in, row_begin, row_end, y_TO, y_stride);
}
