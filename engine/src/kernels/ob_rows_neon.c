/* Norms, activations, positions and cache rows, NEON: ob_rows_body.h in its registers. */
#include "ob_kernels.h"

#ifdef OB_ARM
#define OB_SET_NEON
#include "ob_rows_body.h"

void ob_enter_rows_neon(ob_kernels *k) { enter_rows(k, OB_ISA_NEON); }
#endif
