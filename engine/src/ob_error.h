/* Errors are values: ob_fail fills the caller's buffer and returns the status. */
#ifndef OB_ERROR_H
#define OB_ERROR_H

#include "onebit.h"

/* format: %s const char *, %u uint32_t, %U uint64_t, %% a percent sign. Too long a message is cut. */
ob_status ob_fail(ob_error *error, ob_status status, const char *format, ...);

#endif
