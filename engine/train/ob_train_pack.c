#include "ob_train_pack.h"

#include "../src/ob_platform.h"
#include "ob_train.h"

static void unpack_signs(const uint8_t *packed, uint32_t count, int8_t *numbers) {
    for (uint32_t i = 0; i < count; i++) numbers[i] = (int8_t)((packed[i / 8] >> i % 8 & 1) * 2 - 1);
}

static void unpack_pairs(const uint8_t *restrict packed, uint32_t count, int8_t *restrict numbers) {
    uint32_t bytes = count / 4;
    for (uint32_t b = 0; b < bytes; b++) {
        numbers[4 * b] = (int8_t)((int8_t)(uint8_t)(packed[b] << 6) >> 6);
        numbers[4 * b + 1] = (int8_t)((int8_t)(uint8_t)(packed[b] << 4) >> 6);
        numbers[4 * b + 2] = (int8_t)((int8_t)(uint8_t)(packed[b] << 2) >> 6);
        numbers[4 * b + 3] = (int8_t)((int8_t)packed[b] >> 6);
    }
    for (uint32_t i = 4 * bytes; i < count; i++) numbers[i] = (int8_t)((int8_t)(uint8_t)(packed[i / 4] << (6 - 2 * (i % 4))) >> 6);
}

static void unpack_nibbles(const uint8_t *restrict packed, uint32_t count, int8_t *restrict numbers) {
    for (uint32_t b = 0; b < count / 2; b++) {
        numbers[2 * b] = (int8_t)((packed[b] & 15) - 8);
        numbers[2 * b + 1] = (int8_t)((packed[b] >> 4) - 8);
    }
    if (count % 2) numbers[count - 1] = (int8_t)((packed[count / 2] & 15) - 8);
}

void ob_train_unpack_part(const uint8_t *packed, uint32_t bits, uint32_t count, int8_t *numbers) {
    if (bits == 1) unpack_signs(packed, count, numbers);
    else if (bits == 2) unpack_pairs(packed, count, numbers);
    else if (bits == 4) unpack_nibbles(packed, count, numbers);
}

static void pack_signs(const int8_t *numbers, uint32_t count, uint8_t *packed) {
    uint32_t bytes = count / 8;
    for (uint32_t b = 0; b < bytes; b++) {
        uint64_t eight;
        memcpy(&eight, numbers + 8 * b, 8);
        /* The sign of each byte as its lowest bit; the product gathers them in the highest byte. */
        packed[b] = (uint8_t)(((~eight >> 7 & 0x0101010101010101u) * 0x0102040810204080u) >> 56);
    }
    if (count % 8) packed[bytes] = 0;
    for (uint32_t i = 8 * bytes; i < count; i++) packed[bytes] |= (uint8_t)((numbers[i] > 0) << i % 8);
}

static void pack_pairs(const int8_t *restrict numbers, uint32_t count, uint8_t *restrict packed) {
    uint32_t bytes = count / 4;
    for (uint32_t b = 0; b < bytes; b++) {
        uint32_t four;
        memcpy(&four, numbers + 4 * b, 4);
        four &= 0x03030303u;
        packed[b] = (uint8_t)(four | four >> 6 | four >> 12 | four >> 18);
    }
    if (count % 4) packed[bytes] = 0;
    for (uint32_t i = 4 * bytes; i < count; i++) packed[bytes] |= (uint8_t)((numbers[i] & 3) << 2 * (i % 4));
}

static void pack_nibbles(const int8_t *restrict numbers, uint32_t count, uint8_t *restrict packed) {
    for (uint32_t b = 0; b < count / 2; b++) packed[b] = (uint8_t)((numbers[2 * b] + 8) | (numbers[2 * b + 1] + 8) << 4);
    if (count % 2) packed[count / 2] = (uint8_t)((numbers[count - 1] + 8) | 8 << 4); /* what is left counts 0 */
}

void ob_train_pack_part(const int8_t *numbers, uint32_t bits, uint32_t count, uint8_t *packed) {
    if (bits == 1) pack_signs(numbers, count, packed);
    else if (bits == 2) pack_pairs(numbers, count, packed);
    else if (bits == 4) pack_nibbles(numbers, count, packed);
}

/* ---- tables ---- */

void ob_train_fill_table(ob_train_table *table, int is_binary, uint32_t type) {
    static const uint32_t float_of[3] = {0xbf800000u, 0, 0x3f800000u}; /* -1, 0, 1; its high half is bfloat16's */
    table->per_byte = is_binary ? 8 : 4;
    table->size = type == OB_TRAIN_FLOAT32 ? 4 : type == OB_TRAIN_BFLOAT16 ? 2 : 1;
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint8_t packed = (uint8_t)byte;
        int8_t codes[8];
        ob_train_unpack_part(&packed, is_binary ? 1 : 2, table->per_byte, codes);
        for (uint32_t i = 0; i < table->per_byte; i++) {
            uint32_t bits = float_of[codes[i] < 0 ? 0 : codes[i] + 1];
            if (type == OB_TRAIN_BFLOAT16) bits >>= 16;
            if (type == OB_TRAIN_INT8) bits = (uint8_t)codes[i];
            memcpy(table->bytes[byte] + i * table->size, &bits, table->size);
        }
    }
}

/* step is a constant where this is inlined: the bytes that a byte of codes becomes. */
OB_INLINE void look_up(const ob_train_table *table, const uint8_t *packed, uint32_t bytes, uint8_t *to, uint32_t step) {
    for (uint32_t b = 0; b < bytes; b++) memcpy(to + (size_t)b * step, table->bytes[packed[b]], step);
}

void ob_train_look_up(const ob_train_table *table, const uint8_t *packed, uint32_t count, void *to) {
    const uint32_t step = table->per_byte * table->size, bytes = count / table->per_byte;
    switch (step) {
    case 4: look_up(table, packed, bytes, to, 4); break;
    case 8: look_up(table, packed, bytes, to, 8); break;
    case 16: look_up(table, packed, bytes, to, 16); break;
    default: look_up(table, packed, bytes, to, 32); break;
    }
    uint32_t left = count % table->per_byte;
    if (left) memcpy((uint8_t *)to + (size_t)bytes * step, table->bytes[packed[bytes]], left * table->size);
}
