/* Row kernels of pure training for every processor: what its compiler's default instruction set gives. */
#include "../src/ob_platform.h"
#include "ob_train_kernels.h"

#define TARGET
#define SET ob_train_base
#define NAME "baseline"
#include "ob_train_body.h"
