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

/* ---- one code ---- */

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

static int8_t row_code(uint32_t layout, const uint8_t *data, uint64_t k) {
    static const int8_t pair[4] = {0, 1, 0, -1};
    switch (layout) {
    case OB_LAYOUT_INT4: return (int8_t)((data[k / 2] >> 4 * (k & 1) & 15) - 8);
    case OB_LAYOUT_BINARY: return (int8_t)((data[k / 8] >> (k & 7) & 1) * 2 - 1);
    case OB_LAYOUT_TERNARY: return pair[data[k / 4] >> 2 * (k & 3) & 3];
    case OB_LAYOUT_TERNARY5: return digit5(data[k / 5], k % 5);
    default: return 0;
    }
}

/* ---- whole bytes and tiles: several codes in the bytes of one integer, in loops that compilers turn into vectors ---- */

/* Adds `by` to each byte; no carry passes, because `high`, the top bits, is set before and cleared after. */
#define ADD_BYTES(x, by, high) ((((x) | (high)) - (by)) ^ (high))

static void unpack_int4(const uint8_t *restrict data, uint32_t bytes, int8_t *restrict codes) {
    for (size_t i = 0; i < bytes; i++) {
        codes[2 * i] = (int8_t)((data[i] & 15) - 8);
        codes[2 * i + 1] = (int8_t)((data[i] >> 4) - 8);
    }
}

static void unpack_binary(const uint8_t *restrict data, uint32_t bytes, int8_t *restrict codes) {
    const uint64_t ones = 0x0101010101010101u;
    for (size_t i = 0; i < bytes; i++) {
        uint64_t bits = data[i] * ones & 0x8040201008040201u;
        bits = (bits + 0x7f7f7f7f7f7f7f7fu) >> 7 & ones; /* bit 7 is clear or the byte's only one: no carry leaves it */
        bits = ~(uint64_t)0 ^ ((bits << 8) - (bits << 1)); /* 0: 0xff, 1: 0xff ^ 0xfe */
        memcpy(codes + 8 * i, &bits, 8);
    }
}

static void unpack_ternary(const uint8_t *restrict data, uint32_t bytes, int8_t *restrict codes) {
    for (size_t i = 0; i < bytes; i++) {
        uint32_t pairs = data[i];
        pairs = (pairs | pairs << 6 | pairs << 12 | pairs << 18) & 0x03030303u;
        uint32_t low = pairs & 0x01010101u, minus = pairs >> 1 & low; /* of the pairs 01 and 11; of 11 */
        pairs = low | ((minus << 8) - (minus << 1));                  /* 11: 0x01 | 0xfe */
        memcpy(codes + 4 * i, &pairs, 4);
    }
}

/* The five codes of every base-3 byte; the other three bytes of an entry are overwritten by what comes next. */
#define CODE5(byte, power) ((uint64_t)(uint8_t)((((byte) * (power) & 255) * 3 >> 8) - 1))
#define CODES5(b) (CODE5(b, 1) | CODE5(b, 3) << 8 | CODE5(b, 9) << 16 | CODE5(b, 27) << 24 | CODE5(b, 81) << 32)
#define CODES5_X4(b) CODES5(b), CODES5((b) + 1), CODES5((b) + 2), CODES5((b) + 3)
#define CODES5_X16(b) CODES5_X4(b), CODES5_X4((b) + 4), CODES5_X4((b) + 8), CODES5_X4((b) + 12)
#define CODES5_X64(b) CODES5_X16(b), CODES5_X16((b) + 16), CODES5_X16((b) + 32), CODES5_X16((b) + 48)
static const uint64_t codes5[256] = {CODES5_X64(0), CODES5_X64(64), CODES5_X64(128), CODES5_X64(192)};

static void unpack_ternary5(const uint8_t *restrict data, uint32_t bytes, int8_t *restrict codes) {
    for (; bytes > 1; bytes--, data++, codes += 5) memcpy(codes, &codes5[*data], 8);
    if (bytes) memcpy(codes, &codes5[*data], 5);
}

/* One row of `tiles` tiles; data at the row's four bytes of the first. */
static void unpack_tiles(uint32_t layout, const uint8_t *restrict data, uint32_t tiles, int8_t *restrict codes) {
    const uint32_t planes = ob_layout_tile(layout) / 4;
    for (uint32_t i = 0; i < tiles; i++, data += OB_TILE_BYTES) {
        uint32_t bytes, even, odd;
        memcpy(&bytes, data, 4);
        even = bytes & 0x00ff00ffu, odd = bytes >> 8 & 0x00ff00ffu;
        for (uint32_t j = 0; j < planes; j++, codes += 4) {
            uint32_t four;
            if (layout == OB_LAYOUT_BINARY_T16) four = (bytes >> j & 0x01010101u) << 1;
            else if (layout == OB_LAYOUT_TERNARY_T16) four = bytes >> 2 * j & 0x03030303u;
            else {
                even *= 3, odd *= 3; /* a digit is what leaves the byte */
                four = (even >> 8 & 0x00030003u) | (odd & 0x03000300u);
                even &= 0x00ff00ffu, odd &= 0x00ff00ffu;
            }
            four = ADD_BYTES(four, 0x01010101u, 0x80808080u);
            memcpy(codes, &four, 4);
        }
    }
}

static void unpack_units(uint32_t layout, const uint8_t *data, uint32_t units, int8_t *codes) {
    switch (layout) {
    case OB_LAYOUT_INT8: memcpy(codes, data, units); break;
    case OB_LAYOUT_INT4: unpack_int4(data, units, codes); break;
    case OB_LAYOUT_BINARY: unpack_binary(data, units, codes); break;
    case OB_LAYOUT_TERNARY: unpack_ternary(data, units, codes); break;
    case OB_LAYOUT_TERNARY5: unpack_ternary5(data, units, codes); break;
    case OB_LAYOUT_BINARY_T16: unpack_tiles(OB_LAYOUT_BINARY_T16, data, units, codes); break;
    case OB_LAYOUT_TERNARY_T16: unpack_tiles(OB_LAYOUT_TERNARY_T16, data, units, codes); break;
    default: unpack_tiles(OB_LAYOUT_TERNARY5_T16, data, units, codes); break;
    }
}

/* Codes in one byte, or in one row of a tile. */
static uint32_t unit_codes(const ob_weights *w) {
    static const uint8_t of_layout[] = {1, 1, 1, 2, 8, 4, 5};
    return w->tile ? w->tile : of_layout[w->layout];
}

void ob_unpack_codes(const ob_weights *w, uint32_t row, uint32_t group, uint32_t begin, uint32_t count, int8_t *codes) {
    const uint32_t unit = unit_codes(w);
    const uint8_t *data = w->data + row * w->row_stride;
    uint64_t k = (uint64_t)group * w->group + begin; /* of the whole row, where groups do not start a new byte */
    if (w->layout <= OB_LAYOUT_FLOAT16) {
        memset(codes, 0, count);
        return;
    }
    if (w->layout == OB_LAYOUT_TERNARY5) data += (uint64_t)group * ((w->group + 4) / 5), k = begin;
    if (w->tile) {
        uint64_t tile = (uint64_t)(row / OB_BLOCK_ROWS) * w->tiles_block + (uint64_t)group * w->tiles_group;
        data = w->data + tile * OB_TILE_BYTES + row % OB_BLOCK_ROWS * 4, k = begin;
    }
    uint32_t i = 0;
    for (; i < count && (k + i) % unit; i++)
        codes[i] = w->tile ? tile_code(w, row, group, begin + i) : row_code(w->layout, data, k + i);
    uint32_t units = (count - i) / unit;
    unpack_units(w->layout, data + (k + i) / unit * (w->tile ? OB_TILE_BYTES : 1), units, codes + i);
    for (i += units * unit; i < count; i++)
        codes[i] = w->tile ? tile_code(w, row, group, begin + i) : row_code(w->layout, data, k + i);
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
        int8_t codes[320]; /* a multiple of what is unpacked at once, whatever the layout */
        for (uint32_t i = 0; i < count; i += 320) {
            uint32_t part = count - i < 320 ? count - i : 320;
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
