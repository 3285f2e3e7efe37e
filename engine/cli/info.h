/* onebit-run --info: what is in the file, and which kernels would run it here. */
#ifndef ONEBIT_RUN_INFO_H
#define ONEBIT_RUN_INFO_H

#include "onebit.h"

void info_print(const ob_model *model);

#endif
