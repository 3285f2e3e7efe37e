/* CRC-32C by hardware instruction (SSE4.2, ARMv8 CRC), else four bits at a time. */
#include "ob_crc32c.h"

#include "ob_cpu.h"
#include "ob_platform.h"

uint32_t ob_crc32c_ref(uint32_t crc, const uint8_t *bytes, uint64_t count) {
    /* crc of the 16 nibbles */
    static const uint32_t table[16] = {0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1, 0x417b1dbc, 0x5125dad3,
                                       0x61c69362, 0x7198540d, 0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9,
                                       0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75};
    crc = ~crc;
    for (uint64_t i = 0; i < count; i++) {
        crc ^= bytes[i];
        crc = (crc >> 4) ^ table[crc & 15];
        crc = (crc >> 4) ^ table[crc & 15];
    }
    return ~crc;
}

#if defined(OB_X86)
#include <nmmintrin.h>
#define OB_CRC_HARDWARE 1
OB_TARGET("sse4.2") static uint32_t crc_hardware(uint32_t crc, const uint8_t *bytes, uint64_t count) {
    uint64_t state = ~crc;
    for (; count >= 8; bytes += 8, count -= 8) {
        uint64_t word;
        memcpy(&word, bytes, 8);
        state = _mm_crc32_u64(state, word);
    }
    for (; count; bytes++, count--) state = _mm_crc32_u8((uint32_t)state, *bytes);
    return ~(uint32_t)state;
}
static int has_hardware(void) { return (ob_cpu_features() & OB_CPU_SSE42) != 0; }
#elif defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#define OB_CRC_HARDWARE 1
static uint32_t crc_hardware(uint32_t crc, const uint8_t *bytes, uint64_t count) {
    uint32_t state = ~crc;
    for (; count >= 8; bytes += 8, count -= 8) {
        uint64_t word;
        memcpy(&word, bytes, 8);
        state = __crc32cd(state, word);
    }
    for (; count; bytes++, count--) state = __crc32cb(state, *bytes);
    return ~state;
}
static int has_hardware(void) { return 1; }
#endif

uint32_t ob_crc32c(uint32_t crc, const uint8_t *bytes, uint64_t count) {
#ifdef OB_CRC_HARDWARE
    if (has_hardware()) return crc_hardware(crc, bytes, count);
#endif
    return ob_crc32c_ref(crc, bytes, count);
}
