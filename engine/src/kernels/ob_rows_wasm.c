/* Norms, activations, positions and cache rows, WebAssembly SIMD: ob_rows_body.h in its registers. */
#include "ob_kernels.h"

#ifdef __wasm_simd128__
#define OB_SET_WASM
#include "ob_rows_body.h"

void ob_enter_rows_wasm(ob_kernels *k) { enter_rows(k, OB_ISA_WASM); }
#endif
