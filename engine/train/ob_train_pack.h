/* Bytes to numbers and back, a part of a row at a time. Codes: four a byte in two's complement, or eight signs; counters:
 * as ob_train_counters. What is left of a last byte is filled as onebit.nn.pure_storage does. */
#ifndef OB_TRAIN_PACK_H
#define OB_TRAIN_PACK_H

#include <stdint.h>

/* bits: 1 (signs), 2, 4 or 8. 8 does nothing: such numbers are their own storage. */
void ob_train_unpack_part(const uint8_t *packed, uint32_t bits, uint32_t count, int8_t *numbers);
void ob_train_pack_part(const int8_t *numbers, uint32_t bits, uint32_t count, uint8_t *packed);

/* What each byte of codes stands for: up to eight numbers of up to four bytes. */
typedef struct {
    uint32_t per_byte, size; /* numbers of a byte; bytes of a number */
    uint8_t bytes[256][32];
} ob_train_table;

void ob_train_fill_table(ob_train_table *table, int is_binary, uint32_t type);
void ob_train_look_up(const ob_train_table *table, const uint8_t *packed, uint32_t count, void *to);

#endif
