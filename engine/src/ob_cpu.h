/* Which instruction sets the processor and the operating system allow. Asks the processor, keeps no state. */
#ifndef OB_CPU_H
#define OB_CPU_H

#include <stdint.h>

enum { OB_CPU_SSE42 = 1, OB_CPU_AVX2 = 2 /* with F16C */, OB_CPU_AVX512 = 4 /* F, BW, VL, DQ, VNNI */ };
enum { OB_CPU_ARM_DOT = 1 << 16, OB_CPU_ARM_I8MM = 1 << 17 };

uint32_t ob_cpu_features(void);

#endif
