/* Body of the tiled linear layers on 128-bit registers (NEON, WebAssembly): a tile's 64 bytes are four quarters of four
 * rows. The file that includes this defines TARGET, INLINE, UNROLL, the vector types i32x4 and f32x4, and
 *   MAX_TOKENS, MAX_QUARTERS                      what a call of dot_tiles takes at most
 *   QUARTER_BYTES, group_bytes(layout, tiles)     from a quarter to the next, and all of a group, as dot_tiles reads them
 *   x_tile_bytes(layout)                          bytes of a tile's inputs, as dot_tiles reads them
 *   dot_tiles(layout, data, tiles, x, x_stride, tokens, quarters, acc)
 *                                                 acc[t][q] = four rows' dot products over `tiles` tiles
 *   codes_dot(layout, acc, input_sum)             dot product of the codes from acc
 *   load_halves(bytes)                            four float16 as floats */

/* Four rows from `row` on, bias added, nothing beyond the last row. */
INLINE void store_rows(const ob_weights *w, uint32_t row, f32x4 value, float *y) {
    if (row + 4 <= w->rows) {
        f32x4 bias;
        if (w->bias) memcpy(&bias, w->bias + row, 16), value += bias;
        memcpy(y + row, &value, 16);
    } else {
        for (uint32_t r = 0; row + r < w->rows; r++) y[row + r] = w->bias ? value[r] + w->bias[row + r] : value[r];
    }
}

INLINE f32x4 row_scales(const ob_weights *w, uint32_t row) {
    const float *scale = w->scale; /* float32 [1], or [O] padded to whole blocks */
    f32x4 scales = {scale[0], scale[0], scale[0], scale[0]};
    if (w->granularity == OB_GRANULARITY_ROW) memcpy(&scales, scale + row, 16);
    return scales;
}

/* `quarters` quarters from row `row` on (a multiple of 4) for `tokens` tokens from `first` on; x is the first's. */
INLINE void quarter_tokens(uint32_t layout, const ob_weights *w, const uint8_t *data, const ob_inputs *in, const uint8_t *x,
                           size_t x_stride, uint32_t row, int quarters, uint32_t first, int tokens, float *y, size_t y_stride) {
    const uint32_t block = row / OB_BLOCK_ROWS, inside = row % OB_BLOCK_ROWS;
    const int32_t *sums = in->sums_TG + (size_t)first * w->num_groups;
    i32x4 acc[MAX_TOKENS][MAX_QUARTERS];
    if (w->granularity != OB_GRANULARITY_GROUP) {
        dot_tiles(layout, data, w->tiles_block, x, x_stride, tokens, quarters, acc);
        for (int t = 0; t < tokens; t++)
            UNROLL for (int q = 0; q < quarters; q++) {
                f32x4 value = __builtin_convertvector(codes_dot(layout, acc[t][q], sums[t]), f32x4);
                value *= row_scales(w, row + 4 * (uint32_t)q) * in->scale_T[first + t];
                store_rows(w, row + 4 * (uint32_t)q, value, y + (first + t) * y_stride);
            }
        return;
    }
    const uint8_t *scales = (const uint8_t *)w->scale + ((uint64_t)block * w->num_groups * OB_BLOCK_ROWS + inside) * 2;
    f32x4 total[MAX_TOKENS][MAX_QUARTERS];
    for (int t = 0; t < tokens; t++)
        UNROLL for (int q = 0; q < quarters; q++) total[t][q] = (f32x4){0};
    for (uint32_t g = 0; g < w->num_groups; g++) {
        uint32_t tiles = w->tiles_block - g * w->tiles_group;
        if (tiles > w->tiles_group) tiles = w->tiles_group;
        dot_tiles(layout, data, tiles, x, x_stride, tokens, quarters, acc);
        UNROLL for (int q = 0; q < quarters; q++) {
            f32x4 scale = load_halves(scales + 32 * g + 8 * q);
            for (int t = 0; t < tokens; t++) {
                i32x4 dot = codes_dot(layout, acc[t][q], sums[(size_t)t * w->num_groups + g]);
                total[t][q] += __builtin_convertvector(dot, f32x4) * scale;
            }
        }
        data += group_bytes(layout, tiles);
        x += (size_t)tiles * x_tile_bytes(layout);
    }
    for (int t = 0; t < tokens; t++)
        UNROLL for (int q = 0; q < quarters; q++)
            store_rows(w, row + 4 * (uint32_t)q, total[t][q] * in->scale_T[first + t], y + (first + t) * y_stride);
}

/* All 16 rows of a block, whose weights are at `data`; rows beyond the last are computed and not stored. */
INLINE void block_tokens(uint32_t layout, const ob_weights *w, const uint8_t *data, const ob_inputs *in, const uint8_t *x,
                         size_t x_stride, uint32_t row, int quarters, uint32_t first, int tokens, float *y, size_t y_stride) {
    for (uint32_t r = row; r < row + OB_BLOCK_ROWS && r < w->rows; r += 4 * (uint32_t)quarters) {
        const uint8_t *from = data + (r - row) / 4 * QUARTER_BYTES;
        quarter_tokens(layout, w, from, in, x, x_stride, r, quarters, first, tokens, y, y_stride);
    }
}
