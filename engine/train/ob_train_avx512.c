/* Row kernels of pure training, AVX-512. */
#include "../src/ob_platform.h"
#include "ob_train_kernels.h"

#if defined(OB_X86) && defined(__GNUC__)
#define TARGET OB_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx2")
#define SET ob_train_avx512
#define NAME "avx512"
#define VECTOR_BLOCKS 16
#include "ob_train_body.h"
#endif
