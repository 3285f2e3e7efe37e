/* Bytes of the file to codes, one row at a time: what the reference kernels and the embedding read. */
#include "../ob_math.h"
#include "ob_kernels.h"

uint32_t ob_layout_tile(uint32_t layout) {
    switch (layout) {
    case OB_LAYOUT_BINARY_T16: return 32;
    case OB_LAYOUT_TERNARY_T16: return 16;
    case OB_LAYOUT_TERNARY5_T16: return 20;
    default: return 0;
    }
}

/* group: cols unless the codes are packed group by group (ternary5). */
uint64_t ob_layout_row_bytes(uint32_t layout, uint32_t cols, uint32_t group) {
    switch (layout) {
    case OB_LAYOUT_FLOAT32: return (uint64_t)cols * 4;
    case OB_LAYOUT_FLOAT16: return (uint64_t)cols * 2;
    case OB_LAYOUT_INT8: return cols;
    case OB_LAYOUT_INT4: return ((uint64_t)cols + 1) / 2;
    case OB_LAYOUT_BINARY: return ((uint64_t)cols + 7) / 8;
    case OB_LAYOUT_TERNARY: return ((uint64_t)cols + 3) / 4;
    case OB_LAYOUT_TERNARY5:
        return (uint64_t)(cols / group) * ((group + 4) / 5) + ((uint64_t)(cols % group) + 4) / 5;
    default: return 0;
    }
}

static const uint8_t power3[5] = {1, 3, 9, 27, 81};

/* Digit i (0 the most significant) of a base-3 byte, minus 1. */
static int8_t digit5(uint8_t byte, uint32_t i) {
    uint8_t rest = (uint8_t)(byte * power3[i]);
    return (int8_t)((rest * 3 >> 8) - 1);
}

static int8_t tile_code(const ob_weights *w, uint32_t row, uint32_t group, uint32_t k) {
    uint64_t tile = (uint64_t)(row / OB_BLOCK_ROWS) * w->tiles_block + (uint64_t)group * w->tiles_group + k / w->tile;
    uint32_t inside = k % w->tile, plane = inside / 4;
    uint8_t byte = w->data[tile * OB_TILE_BYTES + row % OB_BLOCK_ROWS * 4 + inside % 4];
    switch (w->layout) {
    case OB_LAYOUT_BINARY_T16: return (int8_t)((byte >> plane & 1) * 2 - 1);
    case OB_LAYOUT_TERNARY_T16: return (int8_t)((byte >> 2 * plane & 3) - 1);
    default: return digit5(byte, plane);
    }
}

void ob_unpack_codes(const ob_weights *w, uint32_t row, uint32_t group, uint32_t begin, uint32_t count, int8_t *codes) {
    static const int8_t pair[4] = {0, 1, 0, -1};
    if (w->tile) {
        for (uint32_t i = 0; i < count; i++) codes[i] = tile_code(w, row, group, begin + i);
        return;
    }
    const uint8_t *data = w->data + row * w->row_stride;
    uint64_t first = (uint64_t)group * w->group + begin; /* of the whole row */
    switch (w->layout) {
    case OB_LAYOUT_INT8:
        for (uint32_t i = 0; i < count; i++) codes[i] = (int8_t)data[first + i];
        break;
    case OB_LAYOUT_INT4:
        for (uint32_t i = 0; i < count; i++)
            codes[i] = (int8_t)((data[(first + i) / 2] >> 4 * ((first + i) & 1) & 15) - 8);
        break;
    case OB_LAYOUT_BINARY:
        for (uint32_t i = 0; i < count; i++)
            codes[i] = (int8_t)((data[(first + i) / 8] >> ((first + i) & 7) & 1) * 2 - 1);
        break;
    case OB_LAYOUT_TERNARY:
        for (uint32_t i = 0; i < count; i++) codes[i] = pair[data[(first + i) / 4] >> 2 * ((first + i) & 3) & 3];
        break;
    case OB_LAYOUT_TERNARY5: {
        const uint8_t *bytes = data + (uint64_t)group * ((w->group + 4) / 5);
        for (uint32_t i = 0; i < count; i++) codes[i] = digit5(bytes[(begin + i) / 5], (begin + i) % 5);
        break;
    }
    default: memset(codes, 0, count); break;
    }
}

void ob_unpack_floats(const ob_weights *w, uint32_t row, uint32_t group, uint32_t begin, uint32_t count, float *values) {
    const uint8_t *data = w->data + row * w->row_stride;
    uint64_t first = (uint64_t)group * w->group + begin;
    if (w->layout == OB_LAYOUT_FLOAT32) {
        memcpy(values, data + 4 * first, (size_t)count * 4);
    } else if (w->layout == OB_LAYOUT_FLOAT16) {
        for (uint32_t i = 0; i < count; i++) {
            uint16_t half;
            memcpy(&half, data + 2 * (first + i), 2);
            values[i] = ob_half_to_float(half);
        }
    } else {
        int8_t codes[64];
        for (uint32_t i = 0; i < count; i += 64) {
            uint32_t part = count - i < 64 ? count - i : 64;
            ob_unpack_codes(w, row, group, begin + i, part, codes);
            for (uint32_t j = 0; j < part; j++) values[i + j] = (float)codes[j];
        }
    }
}

float ob_scale_at(const ob_weights *w, uint32_t row, uint32_t group) {
    const uint16_t *halves = w->scale;
    const float *floats = w->scale;
    switch (w->granularity) {
    case OB_GRANULARITY_TENSOR: return floats[0];
    case OB_GRANULARITY_ROW: return floats[row];
    case OB_GRANULARITY_GROUP:
        if (w->tile)
            return ob_half_to_float(
                halves[((uint64_t)(row / OB_BLOCK_ROWS) * w->num_groups + group) * OB_BLOCK_ROWS + row % OB_BLOCK_ROWS]);
        return ob_half_to_float(halves[(uint64_t)row * w->num_groups + group]);
    default: return 1.0f;
    }
}
