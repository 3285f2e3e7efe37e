/* CRC-32C (Castagnoli, reflected polynomial 0x82f63b78), as RFC 3720 and the .1bit format use it. */
#ifndef OB_CRC32C_H
#define OB_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* Continues a checksum: start with crc = 0, feed bytes [count]. Hardware instructions where there are any. */
uint32_t ob_crc32c(uint32_t crc, const uint8_t *bytes, uint64_t count);
/* The portable form, for tests. */
uint32_t ob_crc32c_ref(uint32_t crc, const uint8_t *bytes, uint64_t count);

#endif
