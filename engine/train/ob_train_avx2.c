/* Row kernels of pure training, AVX2. */
#include "../src/ob_platform.h"
#include "ob_train_kernels.h"

#if defined(OB_X86) && defined(__GNUC__)
#define TARGET OB_TARGET("avx2")
#define SET ob_train_avx2
#define NAME "avx2"
#define VECTOR_BLOCKS 8
#include "ob_train_body.h"
#endif
