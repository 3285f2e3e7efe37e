/* Threads of the training kernels: one pool for the process, made when a job first needs it. */
#ifndef OB_TRAIN_THREADS_H
#define OB_TRAIN_THREADS_H

#include "onebit.h"

/* Runs the items on up to `threads` threads, the caller's included; on the caller's alone when the pool is in use. */
void ob_train_run(ob_task task, void *argument, uint32_t items, uint32_t threads);

#endif
