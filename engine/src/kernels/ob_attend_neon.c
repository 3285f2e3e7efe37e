/* Attention, NEON: ob_attend_body.h in its registers. */
#include "ob_kernels.h"

#ifdef OB_ARM
#define OB_SET_NEON
#include "ob_attend_body.h"

void ob_enter_attend_neon(ob_kernels *k) { enter_attend(k, OB_ISA_NEON); }
#endif
