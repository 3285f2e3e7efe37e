/* Attention, WebAssembly SIMD: ob_attend_body.h in its registers. */
#include "ob_kernels.h"

#ifdef __wasm_simd128__
#define OB_SET_WASM
#include "ob_attend_body.h"

void ob_enter_attend_wasm(ob_kernels *k) { enter_attend(k, OB_ISA_WASM); }
#endif
