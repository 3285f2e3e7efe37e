/* Which instruction sets the processor and the operating system allow. Asks the processor, keeps no state. */
#ifndef OB_CPU_H
#define OB_CPU_H

#include <stdint.h>

enum {
    OB_CPU_SSE42 = 1,
    OB_CPU_AVX2 = 2,   /* with F16C */
    OB_CPU_AVX512 = 4, /* F, BW, VL, DQ, VNNI */
    OB_CPU_AVXVNNI = 8, /* with AVX2 */
    OB_CPU_AMX = 16     /* int8 tiles, beside AVX-512 */
};
enum { OB_CPU_ARM_DOT = 1 << 16, OB_CPU_ARM_I8MM = 1 << 17 };

uint32_t ob_cpu_features(void);
/* Asks the operating system for the tile registers, which a process must do before it uses them; 0 when refused.
 * x86 only. */
int ob_cpu_request_amx(void);

#endif
